//! Any forward call, whatever its configuration, arrays and sizes are: against the reference, and against itself where less is asked for.

use std::collections::BTreeMap;

use moerl::element::Element;
use moerl::gate::{Config, Forced, Forward, ROW_COUNTS, RouterShift, Routes, Score, Telemetry};
use moerl::{Backend, Reference, Result};

use crate::common;
use crate::common::placed::{Place, Placed, Rows, is_written, rounded};
use crate::common::property::for_any;
use crate::common::report::see_values;
use crate::draw::{Call, Extras};
use crate::harness::{Forwarded, Ids, Problem};
use crate::margin::{is_choice_of, is_undecided};

crate::on_every_backend!(any_call_agrees_with_the_reference_and_with_itself);

/// The outputs beside ids and weights, by the bits of [`Call::asked`]. Those from `overlap` on are telemetry.
pub const OUTPUTS: [&str; 24] = [
    "selected",
    "lse",
    "record_ids",
    "dense_probs",
    "bytemap",
    "bitmap",
    "cutoff",
    "overlap",
    "overlap_hist",
    "changed",
    "changed_layers",
    "replaced",
    "margin",
    "deficit",
    "forced_mass",
    "gate_l1",
    "set_kl",
    "router_kl",
    "d_router_kl",
    "logprob_sel",
    "shift",
    "counts",
    "native_counts",
    "row_counts",
];

fn bit(name: &str) -> u32 {
    1 << OUTPUTS.iter().position(|&output| output == name).unwrap()
}

/// All that such a call may ask for.
pub fn everything(call: &Call) -> u32 {
    let mut asked = (1 << OUTPUTS.len()) - 1;
    if !call.config.needs_lse() {
        asked &= !bit("lse");
    }
    if call.ids.is_none() {
        asked &= !(bit("gate_l1") | bit("set_kl"));
    }
    asked
}

/// Every output that was asked for, by its bits; and the error word.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub of: BTreeMap<&'static str, Vec<u64>>,
    pub word: u64,
}

impl Outcome {
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.of[name].iter().map(|&bits| f32::from_bits(bits as u32)).collect()
    }
    pub fn ids(&self) -> Vec<i32> {
        self.of["ids"].iter().map(|&id| id as u32 as i32).collect()
    }

    /// What a backward call takes of it.
    pub fn forwarded(&self) -> Forwarded {
        let lse = if self.of.contains_key("lse") { self.floats("lse") } else { Vec::new() };
        Forwarded {
            ids: self.ids(),
            weights: self.floats("weights"),
            selected: self.floats("selected"),
            lse,
            fault: None,
        }
    }
}

/// How a call's outputs come.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub asked: u32,
    pub weights: Element,
    pub place: Place,
    /// The call is made twice, with the same arrays but for those that are added to.
    pub twice: bool,
    pub broken: u8,
}

fn float_bits(values: Vec<f32>) -> Vec<u64> {
    values.into_iter().map(|x| u64::from(common::canonical_bits(x))).collect()
}

/// A forward call on one backend.
#[allow(clippy::too_many_lines)]
pub fn run<B: Backend>(
    backend: &B,
    call: &Call,
    problem: &Problem<f32>,
    extras: &Extras,
    manner: Manner,
) -> Result<Outcome> {
    let Call { tokens, experts, k, ref config, .. } = *call;
    let Manner { asked, place, broken, .. } = manner;
    let stream = backend.stream()?;
    let flat = Place { gap: 0, ..place };
    let logits = Rows::new(backend, &stream, call.logits, place, [tokens, experts], Some(&problem.logits));
    let reference = Rows::new(backend, &stream, call.logits, place, [tokens, experts], Some(&extras.ref_logits));
    macro_rules! given {
        ($values:expr) => {
            $values.as_ref().map(|values| Placed::<B, _>::new(backend, &stream, flat, values.len(), values))
        };
    }
    let (bias, scale) = (given!(problem.bias), given!(problem.expert_scale));
    let short = problem.token_mask.as_ref().map(|mask| if broken == 1 { vec![1; tokens + 1] } else { mask.clone() });
    let (mask, count) = (given!(short), given!(problem.row_count.map(|count| vec![count])));
    let tape = problem.tape.as_ref();
    let ids_of_tape = tape.map(|tape| Ids::upload(backend, &stream, tape));
    let row_index = tape.and_then(|tape| given!(tape.row_index));
    let row_mode = tape.and_then(|tape| given!(tape.row_mode));
    let tape_rows = tape.map_or(0, |tape| tape.rows);
    let recorded = Rows::new(backend, &stream, call.elements[3], place, [tape_rows, k], Some(&extras.recorded_weights));
    let (old_ids, old_logprobs) = (given!(Some(&extras.old_ids)), given!(Some(&extras.old_logprobs)));

    macro_rules! outputs {
        ($($name:ident: $type:ty, $len:expr);* $(;)?) => {
            $(let mut $name = Placed::<B, $type>::output(backend, &stream, place.before, $len);)*
        };
    }
    outputs! {
        ids: i32, tokens * k; selected: f32, tokens * k; lse: f32, tokens; cutoff: f32, tokens;
        bytemap: u8, tokens * experts; bitmap: u8, tokens * experts.div_ceil(8);
        overlap: u8, tokens; replaced: u8, tokens; margin: f32, tokens; deficit: f32, tokens; forced_mass: f32, tokens;
        gate_l1: f32, tokens; set_kl: f32, tokens; router_kl: f32, tokens; logprob_sel: f32, tokens * k;
    }
    let mut weights = Rows::new(backend, &stream, manner.weights, place, [tokens, k], None);
    let mut record_ids = Rows::new(backend, &stream, call.elements[1], place, [tokens, k], None);
    let mut dense_probs = Rows::new(backend, &stream, Element::F32, place, [tokens, experts], None);
    let mut d_router_kl = Rows::new(backend, &stream, call.elements[2], place, [tokens, experts], None);
    let mut found = None;
    for _ in 0..1 + usize::from(manner.twice) {
        macro_rules! sums {
            ($($name:ident: $type:ty, $len:expr, $start:expr);* $(;)?) => {
                $(
                    let start: Vec<$type> = (0..$len).map($start).collect();
                    let mut $name = Placed::<B, $type>::new(backend, &stream, flat, start.len(), &start);
                )*
            };
        }
        sums! {
            overlap_hist: u64, k + 1, |i| 5 + 3 * i as u64; changed: u8, tokens, |i| (i % 2) as u8;
            changed_layers: u16, tokens, |i| i as u16; shift: f32, tokens, |i| i as f32 * 0.25;
            counts: u64, experts, |i| i as u64; native_counts: u64, experts, |i| 2 * i as u64;
            row_counts: u64, ROW_COUNTS, |i| i as u64; word: u64, 1, |_| u64::MAX;
        }
        backend.synchronize(&stream)?;
        let is = |name: &str| asked & bit(name) != 0;
        macro_rules! asked_for {
            ($name:ident) => {
                is(stringify!($name)).then(|| $name.view_mut())
            };
        }
        let mut forward = Forward::new(logits.matrix(), ids.view_mut(), weights.matrix_mut());
        forward.selection_bias = bias.as_ref().map(Placed::view);
        forward.expert_scale = scale.as_ref().map(Placed::view);
        forward.token_mask = mask.as_ref().map(Placed::view);
        forward.row_count = count.as_ref().map(Placed::view);
        forward.tag = 9;
        forward.selected_logits = asked_for!(selected);
        forward.lse = asked_for!(lse);
        forward.cutoff = asked_for!(cutoff);
        forward.bytemap = asked_for!(bytemap);
        forward.bitmap = asked_for!(bitmap);
        forward.record_ids = is("record_ids").then(|| record_ids.matrix_mut());
        forward.dense_probs = is("dense_probs").then(|| dense_probs.matrix_mut());
        forward.errors = Some(word.view_mut());
        if let (Some(tape), Some(ids)) = (tape, &ids_of_tape) {
            forward.routes = Routes::Forced(Forced {
                row_index: row_index.as_ref().map(Placed::view),
                row_mode: row_mode.as_ref().map(Placed::view),
                has_sentinel: tape.has_sentinel,
                zeros_are_missing: tape.zeros_are_missing,
                ..Forced::new(ids.matrix(tape, k))
            });
        }
        let needs_reference = is("router_kl") || is("d_router_kl");
        let is_watched = asked >> OUTPUTS.iter().position(|&name| name == "overlap").unwrap() != 0;
        forward.telemetry = is_watched.then(|| Telemetry {
            overlap: asked_for!(overlap),
            overlap_hist: asked_for!(overlap_hist),
            changed: asked_for!(changed),
            changed_layers: asked_for!(changed_layers),
            replaced: asked_for!(replaced),
            margin: asked_for!(margin),
            deficit: asked_for!(deficit),
            forced_mass: asked_for!(forced_mass),
            gate_l1: asked_for!(gate_l1),
            set_kl: asked_for!(set_kl),
            router_kl: asked_for!(router_kl),
            d_router_kl: is("d_router_kl").then(|| d_router_kl.matrix_mut()),
            counts: asked_for!(counts),
            native_counts: asked_for!(native_counts),
            row_counts: asked_for!(row_counts),
            recorded_weights: (tape.is_some() && broken != 2).then(|| recorded.matrix()),
            ref_logits: (needs_reference && broken != 3).then(|| reference.matrix()),
            logprob_sel: asked_for!(logprob_sel),
            router_shift: is("shift").then(|| RouterShift {
                old_topk_ids: old_ids.as_ref().unwrap().view(),
                old_logprob_sel: old_logprobs.as_ref().unwrap().view(),
                shift: shift.view_mut(),
            }),
        });
        backend.gate_forward(&stream, config, forward)?;

        let mut of = BTreeMap::new();
        macro_rules! read {
            ($($name:ident => $wide:expr),* $(,)?) => {
                $(if stringify!($name) == "ids" || is(stringify!($name)) {
                    let values = $name.read(stringify!($name), backend, &stream);
                    // A byte of a bitmap may be any.
                    let is_whole = stringify!($name) == "bitmap" || values.iter().all(is_written);
                    assert!(is_whole, "{}: not everything was written", stringify!($name));
                    of.insert(stringify!($name), values.into_iter().map($wide).collect::<Vec<u64>>());
                })*
            };
        }
        let of_float = |x: f32| u64::from(common::canonical_bits(x));
        read! {
            ids => |id| u64::from(id as u32), selected => |x| u64::from(x.to_bits()), lse => |x| u64::from(x.to_bits()),
            cutoff => of_float, bytemap => u64::from, bitmap => u64::from, overlap => u64::from, replaced => u64::from,
            margin => of_float, deficit => of_float, forced_mass => of_float, gate_l1 => of_float, set_kl => of_float,
            router_kl => of_float, logprob_sel => of_float, overlap_hist => u64::from, changed => u64::from,
            changed_layers => u64::from, shift => of_float, counts => u64::from, native_counts => u64::from,
            row_counts => u64::from,
        }
        of.insert("weights", float_bits(weights.read("weights", backend, &stream)));
        let mut rows = |name: &'static str, rows: &Rows<B>| {
            if is(name) {
                of.insert(name, float_bits(rows.read(name, backend, &stream)));
            }
        };
        rows("record_ids", &record_ids);
        rows("dense_probs", &dense_probs);
        rows("d_router_kl", &d_router_kl);
        let outcome = Outcome { of, word: word.read("errors", backend, &stream)[0] };
        if let Some(before) = found.replace(outcome.clone()) {
            assert_same(&outcome, &before, Element::F32, "a second call");
        }
    }
    Ok(found.unwrap())
}

/// What `part` has is what `whole` has, to the bit; weights rounded.
fn assert_same(part: &Outcome, whole: &Outcome, weights: Element, what: &str) {
    assert_eq!(part.word, whole.word, "{what}: error word");
    for (&name, found) in &part.of {
        let mut expected = whole.of[name].clone();
        if name == "weights" || name == "dense_probs" {
            let narrowed = |bits: u64| u64::from(common::canonical_bits(rounded(weights, f32::from_bits(bits as u32))));
            expected.iter_mut().for_each(|bits| *bits = narrowed(*bits));
        }
        let at = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert!(
            at.is_none(),
            "{what}: {name} at {at:?} is {:?}, not {:?}",
            at.map(|i| found[i]),
            at.map(|i| expected[i])
        );
    }
}

/// The largest finite logit that a score sees: what exponentials are as wrong as.
pub fn magnitude(config: &Config, logits: &[f32]) -> f64 {
    let largest = logits.iter().filter(|x| x.is_finite()).fold(0.0f32, |most, x| most.max(x.abs()));
    f64::from(config.softcap.map_or(largest, |cap| largest.min(cap)))
}

/// Ids as native selection or replacement may have them, everything of integers equal, floats within their tolerances; false where ids differ.
fn agrees(call: &Call, problem: &Problem<f32>, extras: &Extras, found: &Outcome, expected: &Outcome) -> bool {
    let (ids, expected_ids) = (found.ids(), expected.ids());
    if ids != expected_ids {
        let others = other_choices(call, problem, extras);
        let k = call.k;
        for t in (0..call.tokens).filter(|t| ids[t * k..][..k] != expected_ids[t * k..][..k]) {
            let (row, expected) = (&ids[t * k..][..k], &expected_ids[t * k..][..k]);
            let replaced = others.iter().any(|other| other[t * k..][..k] == *row);
            assert!(replaced || is_choice_of(problem, t, row, expected), "row {t}: {row:?}, not {expected:?}");
        }
        return false;
    }
    assert_eq!(found.word, expected.word, "error word");
    let of_row = magnitude(&call.config, &problem.logits);
    let of_both = of_row.max(magnitude(&call.config, &extras.ref_logits));
    // A difference of values is as wrong as they are, and biases may be far larger than scores.
    let of_bias = problem.bias.iter().flatten().filter(|b| b.is_finite()).fold(0.0f32, |most, b| most.max(b.abs()));
    let raw = call.config.score == Score::Raw;
    let scale = f64::from(call.config.scaling_factor.unwrap().abs().max(1.0))
        * if call.config.score == Score::SqrtSoftplus { 1.0 + of_row.sqrt() } else { 1.0 };
    // What the native choice of a replayed row comes to is another number where another expert is as good.
    let is_undecided = (0..call.tokens).any(|t| is_undecided(problem, t));
    const OF_CHOICE: [&str; 7] =
        ["overlap", "overlap_hist", "changed", "changed_layers", "margin", "deficit", "native_counts"];
    for (&name, values) in &expected.of {
        if values == &found.of[name] || (is_undecided && OF_CHOICE.contains(&name)) {
            continue;
        }
        // A weight by a raw score may be negative, and is then no distribution.
        if name == "set_kl" && raw {
            continue;
        }
        let largest = if name.ends_with("router_kl") { of_both } else { of_row };
        // A few roundings of 6e-8, and the exponential of a logit that is rounded.
        let relative = 1e-5 + 3e-7 * largest;
        let (absolute, relative) = match name {
            // Kernels save +0 for −0.
            "selected" => (f64::MIN_POSITIVE, 0.0),
            "weights" | "dense_probs" => (1e-7 * scale, relative),
            "lse" => (1e-6, 1e-6),
            "cutoff" => (1e-6, 1e-6 + 3e-7 * largest),
            "margin" | "deficit" => (4e-6 * scale + 1e-6 * largest + 2.4e-7 * f64::from(of_bias), relative),
            "forced_mass" | "gate_l1" | "set_kl" | "router_kl" | "logprob_sel" | "shift" => {
                (4e-6 * scale + 1e-6 * largest, relative)
            }
            // To the last place of sixteen bits.
            "d_router_kl" => (4e-6 + 1e-6 * largest, if call.elements[2] == Element::F32 { relative } else { 8e-3 }),
            _ => panic!("{name}: {:?}, not {values:?}", found.of[name]),
        };
        let wide: Vec<f64> = values.iter().map(|&bits| f64::from(f32::from_bits(bits as u32))).collect();
        let worst = see_values(16, name, "any call", &found.floats(name), &wide, absolute, relative);
        assert!(worst <= 1.0, "{name} is {worst} tolerances off: {:?}, not {wide:?}", found.floats(name));
    }
    true
}

/// The reference's choice with a limit of replacement a little lower and higher: on a bound, either is right.
fn other_choices(call: &Call, problem: &Problem<f32>, extras: &Extras) -> Vec<Vec<i32>> {
    let Some(delta) = call.config.score_replace else { return Vec::new() };
    let near = |by: f32| {
        let mut call = call.clone();
        call.config.score_replace = Some((delta + by).max(0.0));
        let manner = Manner { asked: 0, weights: Element::F32, place: Place::default(), twice: false, broken: 0 };
        run(&Reference, &call, problem, extras, manner).unwrap().ids()
    };
    [-1e-5, 1e-5].map(|by| near(by * (1.0 + delta))).to_vec()
}

/// The forward call in full, checked; `None` where it is refused, or where what follows is of other experts than the reference's.
pub fn check_forward<B: Backend>(backend: &B, call: &Call) -> Option<(Problem<f32>, Extras, Outcome)> {
    let (mut problem, extras) = call.problem();
    let mut call = call.clone();
    match call.broken {
        4 => call.config.scaling_factor = None,
        5 => call.config.softcap = Some(0.0),
        6 => call.config.score_replace = Some(f32::NAN),
        7 => call.config.top_k = Some(call.k + 1),
        8 => call.config.needs_selection_bias = true,
        9 => problem.bias = Some(vec![0.0; call.experts + 1]),
        10 => call.config.renormalize = moerl::gate::Renormalize::Floor(f32::MAX),
        11 => call.config.softcap = Some(f32::MAX),
        _ => {}
    }
    problem.config = call.config.clone();
    let Call { asked, broken, elements: [weights, ..], place, .. } = call;
    let drawn = Manner { asked, weights, place, twice: true, broken };
    let whole =
        Manner { asked: everything(&call), weights: Element::F32, place: Place::default(), twice: false, broken: 0 };
    let part = match (run(backend, &call, &problem, &extras, drawn), run(&Reference, &call, &problem, &extras, drawn)) {
        (Ok(part), Ok(_)) => part,
        (Err(found), Err(expected)) => {
            assert_eq!(found.to_string(), expected.to_string());
            return None;
        }
        (found, expected) => panic!("{found:?}, and the reference {expected:?}"),
    };
    if broken != 0 {
        return None;
    }
    // With fewer experts than a width may name, or without what only a softmax has, not all may be asked for.
    let fits = |asked| Manner { asked, ..whole };
    let found = run(backend, &call, &problem, &extras, whole)
        .or_else(|_| run(backend, &call, &problem, &extras, fits(whole.asked & !bit("record_ids"))));
    let found = found.unwrap();
    assert_same(&part, &found, weights, "what was asked for");
    let least = run(backend, &call, &problem, &extras, fits(0)).unwrap();
    assert_same(&least, &found, Element::F32, "nothing asked for");
    let asked = if found.of.contains_key("record_ids") { whole.asked } else { whole.asked & !bit("record_ids") };
    let expected = run(&Reference, &call, &problem, &extras, fits(asked)).unwrap();
    agrees(&call, &problem, &extras, &found, &expected).then_some((problem, extras, found))
}

fn any_call_agrees_with_the_reference_and_with_itself<B: Backend>(backend: &B) {
    for_any(100, &crate::draw::call(), |call| {
        check_forward(backend, call);
    });
}
