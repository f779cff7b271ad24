//! Any backward call after any forward call: against the reference, and against itself where it comes another way.

use moerl::element::Element;
use moerl::gate::{Backward, Output, Score, Surrogate};
use moerl::router_loss::Gradient;
use moerl::{Backend, Reference, Result};
use proptest::prelude::*;
use rand::RngExt;

use crate::any::{check_forward, magnitude};
use crate::common;
use crate::common::placed::{Place, Placed, Rows, rounded};
use crate::common::property::for_any;
use crate::common::report::see_values;
use crate::draw::{self, Call};
use crate::harness::{Forwarded, Problem};

crate::on_every_backend!(any_gradient_agrees_with_the_reference_and_with_itself);

/// Where the gradient goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Dense,
    Accumulate,
    Compact,
}

/// How a backward call comes.
#[derive(Clone, Copy, Debug)]
struct Manner {
    target: Target,
    gradient: Element,
    upstream: Element,
    place: Place,
    /// Bits: what was saved is not given, not even the log-sum-exp; mask and count are given; logits that nobody needs are given.
    given: u32,
    wants_scale: bool,
    twice: bool,
}
const UNSAVED: u32 = 1;
const MASKS: u32 = 2;
const LOGITS: u32 = 4;

/// Terms beside the gate's own: bits.
const SURROGATE: u32 = 1;
const WEIGHTS: u32 = 2;
const REGULARIZER: u32 = 4;
const BALANCE: u32 = 8;
const OFFSETS: u32 = 16;
const REFERENCE: u32 = 32;

/// The numbers that a backward call takes.
struct Numbers {
    upstream: Vec<f32>,
    advantages: Vec<f32>,
    weights: Vec<f32>,
    q: Vec<f32>,
    coefficients: [f32; 4],
    offsets: Vec<i64>,
    ref_logits: Vec<f32>,
    old: Vec<f32>,
}

struct Gradients {
    router_logits: Vec<f32>,
    scale: Vec<f32>,
}

fn is_marked(forwarded: &Forwarded, t: usize, k: usize) -> bool {
    forwarded.selected[t * k..][..k].iter().any(|x| x.to_bits() == u32::MAX)
}

fn numbers(call: &Call, problem: &Problem<f32>, forwarded: &Forwarded, terms: u32) -> Numbers {
    let Call { tokens, experts, k, .. } = *call;
    let mut rng = common::seeded(call.seed ^ 0x5eed);
    let mut normals = |len: usize| (0..len).map(|_| common::normal(&mut rng)).collect::<Vec<f32>>();
    let (mut upstream, mut advantages, mut weights) = (normals(tokens * k), normals(tokens), normals(tokens));
    let (q, old) = (normals(3 * experts), normals(tokens * experts));
    let coefficients = [0.7, 0.02, -0.3, 0.4].map(|c| if rng.random_ratio(1, 3) { 0.0 } else { c });
    let mut ref_logits: Vec<f32> =
        problem.logits.iter().map(|x| rounded(call.elements[3], x + 0.25 * common::normal(&mut rng))).collect();
    // Rows without weights may bring anything.
    for t in (0..tokens).filter(|&t| is_marked(forwarded, t, k)) {
        upstream[t * k..][..k].fill(f32::NAN);
        (advantages[t], weights[t]) = (f32::INFINITY, f32::NAN);
        ref_logits[t * experts..][..experts].fill(f32::NAN);
    }
    let (first, second) = (tokens / 3, tokens / 2);
    let offsets = if terms & OFFSETS != 0 { vec![0, first as i64, second as i64, tokens as i64] } else { vec![] };
    Numbers { upstream, advantages, weights, q, coefficients, offsets, ref_logits, old }
}

fn run<B: Backend>(
    backend: &B,
    call: &Call,
    problem: &Problem<f32>,
    forwarded: &Forwarded,
    numbers: &Numbers,
    terms: u32,
    manner: Manner,
) -> Result<Gradients> {
    let Call { tokens, experts, k, ref config, .. } = *call;
    let Manner { target, place, given, .. } = manner;
    let stream = backend.stream()?;
    let flat = Place { gap: 0, ..place };
    macro_rules! placed {
        ($values:expr) => {{
            let values = &$values;
            Placed::<B, _>::new(backend, &stream, flat, values.len(), values)
        }};
    }
    let upstream = Rows::new(backend, &stream, manner.upstream, place, [tokens, k], Some(&numbers.upstream));
    let logits = Rows::new(backend, &stream, call.logits, place, [tokens, experts], Some(&problem.logits));
    let reference = Rows::new(backend, &stream, call.elements[3], place, [tokens, experts], Some(&numbers.ref_logits));
    let (ids, selected, lse) = (placed!(forwarded.ids), placed!(forwarded.selected), placed!(forwarded.lse));
    let scale = problem.expert_scale.as_ref().map(|scale| placed!(scale));
    let mask = problem.token_mask.as_ref().map(|mask| placed!(mask));
    let count = problem.row_count.map(|count| placed!([count]));
    let (advantages, weights) = (placed!(numbers.advantages), placed!(numbers.weights));
    let segments = numbers.offsets.len().saturating_sub(1).max(1);
    let (q, coefficients) = (placed!(numbers.q[..segments * experts]), placed!(numbers.coefficients));
    let offsets = placed!(numbers.offsets);
    let (saved, is_softmax) = (given & UNSAVED == 0, config.needs_lse());
    let mut compact = Placed::<B, f32>::output(backend, &stream, place.before, tokens * k);
    let mut d_scale = Placed::<B, f32>::output(backend, &stream, place.before, experts);
    let workspace_bytes = Backward::<B::Memory>::workspace_bytes(tokens, experts);
    let mut workspace = Placed::<B, u8>::output(backend, &stream, place.before, workspace_bytes);
    let old = (target == Target::Accumulate).then_some(&numbers.old[..]);
    let mut found: Option<Gradients> = None;
    let mut dense = Rows::new(backend, &stream, manner.gradient, place, [tokens, experts], old);
    for _ in 0..1 + usize::from(manner.twice) {
        if old.is_some() {
            dense = Rows::new(backend, &stream, manner.gradient, place, [tokens, experts], old);
        }
        backend.synchronize(&stream)?;
        let base = Backward::new(upstream.matrix(), ids.view(), selected.view(), dense.matrix_mut());
        let mut backward = base;
        if !saved {
            backward.selected_logits = None;
        }
        backward.lse = (saved && is_softmax).then(|| lse.view());
        let needs_logits = !saved || is_softmax || terms & (SURROGATE | REGULARIZER) != 0;
        backward.router_logits = (needs_logits || given & LOGITS != 0).then(|| logits.matrix());
        backward.expert_scale = scale.as_ref().map(Placed::view);
        if given & MASKS != 0 {
            backward.token_mask = mask.as_ref().map(Placed::view);
            backward.row_count = count.as_ref().map(Placed::view);
        }
        backward.surrogate = (terms & SURROGATE != 0).then(|| Surrogate {
            advantages: advantages.view(),
            weights: (terms & WEIGHTS != 0).then(|| weights.view()),
            coefficient: 0.5,
        });
        backward.regularizer = (terms & REGULARIZER != 0).then(|| Gradient {
            q: (terms & BALANCE != 0).then(|| q.view()),
            coefficients: coefficients.view(),
            offsets: (!numbers.offsets.is_empty()).then(|| offsets.view()),
            ref_logits: (terms & REFERENCE != 0).then(|| reference.matrix()),
        });
        backward.output = match (target, backward.output) {
            (Target::Accumulate, Output::Dense(matrix)) => Output::Accumulate(matrix),
            (Target::Compact, _) => Output::Compact { d_selected_logits: compact.view_mut(), experts },
            (_, output) => output,
        };
        if manner.wants_scale {
            backward.d_expert_scale = Some(d_scale.view_mut());
            backward.workspace = Some(workspace.view_mut());
        }
        backend.gate_backward(&stream, config, backward)?;
        let router_logits = if target == Target::Compact {
            compact.read("d_selected_logits", backend, &stream)
        } else {
            dense.read("d_router_logits", backend, &stream)
        };
        let scale = if manner.wants_scale { d_scale.read("d_expert_scale", backend, &stream) } else { Vec::new() };
        workspace.read("workspace", backend, &stream);
        let gradients = Gradients { router_logits, scale };
        if let Some(before) = &found {
            assert!(
                common::canonical(&before.router_logits).eq(common::canonical(&gradients.router_logits)),
                "a second call"
            );
            assert!(
                common::canonical(&before.scale).eq(common::canonical(&gradients.scale)),
                "a second call: d_expert_scale"
            );
        }
        found = Some(gradients);
    }
    Ok(found.unwrap())
}

/// What a gradient is made of, at most: its terms cancel, and what is left may be as wrong as they were.
fn size(call: &Call, problem: &Problem<f32>, numbers: &Numbers, terms: u32) -> f64 {
    let most =
        |values: &[f32]| f64::from(values.iter().filter(|x| x.is_finite()).fold(0.0f32, |most, x| most.max(x.abs())));
    let largest = magnitude(&call.config, &problem.logits);
    let scale = problem.expert_scale.as_ref().map_or(1.0, |scale| most(scale));
    let weight = if call.config.score == Score::SqrtSoftplus { 1.0 + largest.sqrt() } else { 1.0 };
    let mut size = f64::from(call.config.scaling_factor.unwrap().abs()) * scale * most(&numbers.upstream) * weight;
    if terms & SURROGATE != 0 {
        size += most(&numbers.advantages) * if terms & WEIGHTS != 0 { most(&numbers.weights) } else { 1.0 };
    }
    if terms & REGULARIZER != 0 {
        let [balance, z, entropy, kl] = numbers.coefficients.map(|c| f64::from(c.abs()));
        size += balance * 2.0 * most(&numbers.q) + (z + 2.0 * entropy) * (largest + 10.0) + kl;
    }
    size
}

fn check<B: Backend>(backend: &B, call: &Call, terms: u32, drawn: Manner) {
    let Some((problem, _, outcome)) = check_forward(backend, call) else { return };
    let Call { tokens, experts, k, ref config, .. } = *call;
    let forwarded = outcome.forwarded();
    let numbers = numbers(call, &problem, &forwarded, terms);
    let terms = if config.score == Score::Raw { terms & !(SURROGATE | BALANCE) } else { terms };
    let whole = Manner {
        target: Target::Dense,
        gradient: Element::F32,
        upstream: Element::F32,
        place: Place::default(),
        given: 0,
        wants_scale: true,
        twice: false,
    };
    let found = run(backend, call, &problem, &forwarded, &numbers, terms, Manner { upstream: drawn.upstream, ..whole })
        .unwrap();
    let expected =
        run(&Reference, call, &problem, &forwarded, &numbers, terms, Manner { upstream: drawn.upstream, ..whole })
            .unwrap();
    let largest = magnitude(config, &problem.logits);
    let (absolute, relative) = ((3e-6 + 3e-7 * largest) * size(call, &problem, &numbers, terms), 1e-5 + 3e-7 * largest);
    let close = |name: &'static str, found: &[f32], expected: &[f32], absolute: f64| {
        let wide: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
        let worst = see_values(16, name, "any call", found, &wide, absolute, relative);
        assert!(worst <= 1.0, "{name} is {worst} tolerances off: {found:?}, not {expected:?}");
    };
    close("d_router_logits", &found.router_logits, &expected.router_logits, absolute);
    close("d_expert_scale", &found.scale, &expected.scale, absolute * (tokens as f64).max(1.0));

    // The call as it was drawn.
    let run_drawn = |on_reference: bool| {
        if on_reference {
            run(&Reference, call, &problem, &forwarded, &numbers, terms, drawn)
        } else {
            run(backend, call, &problem, &forwarded, &numbers, terms, drawn)
        }
    };
    let part = match (run_drawn(false), run_drawn(true)) {
        (Ok(part), Ok(_)) => part,
        (Err(found), Err(expected)) => return assert_eq!(found.to_string(), expected.to_string()),
        (found, expected) => panic!("{:?}, and the reference {:?}", found.err(), expected.err()),
    };
    // Rows that nothing tells from others in this call.
    let hidden = |t: usize| {
        let masked = problem.token_mask.as_ref().is_some_and(|mask| mask[t] == 0)
            || problem.row_count.is_some_and(|count| t as i32 >= count);
        drawn.given & UNSAVED != 0
            && is_marked(&forwarded, t, k)
            && forwarded.ids[t * k] >= 0
            && !(masked && drawn.given & MASKS != 0)
    };
    let same = |name: &str, t: usize, found: f32, expected: f32| {
        // The reference forms in f64 what it adds to.
        let near = backend.name() == "reference" && (found - expected).abs() <= 1e-30 + expected.abs() / 100.0;
        let equal = found == expected || found.is_nan() && expected.is_nan();
        assert!(equal || (near && drawn.target == Target::Accumulate), "{name}, row {t}: {found:e}, not {expected:e}");
    };
    for t in (0..tokens).filter(|&t| !hidden(t)) {
        let row = &found.router_logits[t * experts..][..experts];
        match drawn.target {
            Target::Compact => {
                for (j, &id) in forwarded.ids[t * k..][..k].iter().enumerate() {
                    same("compact", t, part.router_logits[t * k + j], if id < 0 { 0.0 } else { row[id as usize] });
                }
            }
            Target::Dense | Target::Accumulate => {
                for (e, &d) in row.iter().enumerate() {
                    let at = t * experts + e;
                    let old =
                        if drawn.target == Target::Accumulate { rounded(drawn.gradient, numbers.old[at]) } else { 0.0 };
                    same("dense", t, part.router_logits[at], rounded(drawn.gradient, old + d));
                }
            }
        }
    }
    if drawn.wants_scale && !(0..tokens).any(hidden) {
        assert!(common::canonical(&part.scale).eq(common::canonical(&found.scale)), "d_expert_scale");
    }
}

fn any_gradient_agrees_with_the_reference_and_with_itself<B: Backend>(backend: &B) {
    let target = prop::sample::select(vec![Target::Dense, Target::Accumulate, Target::Compact]);
    let manner = (target, draw::float(), draw::float(), draw::place(), 0u32..8, any::<bool>()).prop_map(
        |(target, gradient, upstream, place, given, wants_scale)| Manner {
            target,
            gradient,
            upstream,
            place,
            given,
            wants_scale,
            twice: true,
        },
    );
    let terms = prop_oneof![1 => Just(0u32), 1 => 0u32..64];
    for_any(60, &(draw::call(), terms, manner), |(call, terms, manner)| {
        let call = Call { broken: 0, asked: call.asked & 3, ..call.clone() };
        check(backend, &call, *terms, *manner);
    });
}
