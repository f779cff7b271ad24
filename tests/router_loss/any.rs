//! Any batch of a router through all steps: against the reference, and against itself where it comes another way.

use moerl::element::Element;
use moerl::gate::{self, Output, Score};
use moerl::objective::Segments;
use moerl::router_loss::{Backward, BiasUpdate, Config, CountsFrom, Finish, Gradient, Partial, Plan, Scope};
use moerl::{Backend, Buffer, Reference, Result};
use proptest::prelude::*;
use rand::RngExt;
use rand::seq::{IndexedRandom, index};

use crate::case::{Finished, Sums};
use crate::common;
use crate::common::placed::{Place, Placed, Rows, is_written, rounded};
use crate::common::property::for_any;
use crate::common::report::see_values;

crate::on_every_backend!(any_batch_agrees_with_the_reference_and_with_itself);

/// A batch and the calls that it goes through.
#[derive(Clone, Debug)]
struct Call {
    gate: gate::Config,
    config: Config,
    experts: usize,
    k: usize,
    lengths: Vec<usize>,
    /// Of the logits, of the reference's and of the gradient.
    elements: [Element; 3],
    place: Place,
    /// Which arrays there are: a bit each, [`MASK`] and so on.
    inputs: u32,
    /// NaN, infinities and numbers far from 0, here and there.
    wild: bool,
    seed: u64,
}

const MASK: u32 = 1;
const COUNT: u32 = 2;
const SELECTED: u32 = 4;
const IDS: u32 = 8;
const REFERENCE: u32 = 16;
const BEFORE: u32 = 32;
const COUNT_ROWS: u32 = 64;
const SEGMENTS: u32 = 128;
const ACCUMULATE: u32 = 256;
const BALANCE: u32 = 512;

/// The numbers of a call.
struct Numbers {
    logits: Vec<f32>,
    reference: Vec<f32>,
    ids: Vec<i32>,
    selected: Vec<f32>,
    mask: Vec<u8>,
    count: i32,
    old: Vec<f32>,
    count_rows: Vec<u64>,
    before: Sums,
}

impl Call {
    fn has(&self, input: u32) -> bool {
        self.inputs & input != 0
    }
    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn numbers(&self) -> Numbers {
        let (tokens, experts, k, segments) = (self.tokens(), self.experts, self.k, self.lengths.len());
        let mut rng = common::seeded(self.seed);
        let mut numbers = |element| -> Vec<f32> {
            let mut one = || {
                let normal = common::normal(&mut rng) * if rng.random_ratio(1, 97) { 6.0 } else { 1.5 };
                let far = [-300.0, -100.0, -50.0, 20.0, 50.0, 300.0];
                let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                match rng.random_range(0..400) {
                    0 if self.wild => *few.choose(&mut rng).unwrap(),
                    1..20 if self.wild => *far.choose(&mut rng).unwrap(),
                    _ => normal,
                }
            };
            (0..tokens * experts).map(|_| rounded(element, one())).collect()
        };
        let (mut logits, mut reference, old) =
            (numbers(self.elements[0]), numbers(self.elements[1]), numbers(self.elements[2]));
        let mut ids: Vec<i32> = (0..tokens)
            .flat_map(|_| index::sample(&mut rng, experts, k).into_iter().map(|e| e as i32).collect::<Vec<_>>())
            .collect();
        let mut selected = vec![0.5f32; tokens * k];
        let mask: Vec<u8> =
            (0..tokens).map(|_| if rng.random_ratio(1, 4) { 0 } else { rng.random_range(1..3) }).collect();
        let counts = [tokens as i32, tokens as i32 - 1, tokens as i32 / 2, 0, -1, tokens as i32 + 3];
        let likely = if rng.random_ratio(1, 4) { counts.len() } else { 3 };
        let count = counts[rng.random_range(0..likely)];
        let has_ids = self.has(IDS) || self.config.counts_from == CountsFrom::Routes;
        for t in 0..tokens {
            if rng.random_ratio(1, 9) {
                ids[t * k + rng.random_range(0..k)] = if rng.random_ratio(1, 2) { -1 } else { experts as i32 };
            }
            if rng.random_ratio(1, 9) {
                selected[t * k + rng.random_range(0..k)] = f32::from_bits(u32::MAX);
            }
            // What does not count may hold anything.
            let nowhere = has_ids && ids[t * k..][..k].iter().any(|&e| e < 0 || e as usize >= experts);
            let marked = self.has(SELECTED) && selected[t * k..][..k].iter().any(|x| x.to_bits() == u32::MAX);
            if nowhere || marked || (self.has(MASK) && mask[t] == 0) || (self.has(COUNT) && t as i32 >= count) {
                logits[t * experts..][..experts].fill(f32::NAN);
                reference[t * experts..][..experts].fill(f32::INFINITY);
            }
        }
        let wide = |n: usize| (0..n).map(|i| i as u64 % 7).collect::<Vec<u64>>();
        let before = Sums {
            probabilities: (0..segments * experts).map(|i| (i % 5) as f64 * 0.125).collect(),
            counts: wide(segments * experts),
            rows: wide(segments),
            totals: vec![1.5, -2.25, 0.5],
            nonfinite: vec![3],
        };
        let count_rows = (0..segments).map(|_| rng.random_range(0..9)).collect();
        Numbers { logits, reference, ids, selected, mask, count, old, count_rows, before }
    }

    fn plan<B: Backend>(&self, backend: &B, stream: &B::Stream) -> Plan<B> {
        Plan::new(backend, stream, &Segments::from_lengths(self.lengths.iter().copied()).unwrap()).unwrap()
    }
}

/// The arrays that say what counts, on a backend.
struct Marks<B: Backend> {
    ids: Option<Placed<B, i32>>,
    selected: Option<Placed<B, f32>>,
    mask: Option<Placed<B, u8>>,
    count: Option<Placed<B, i32>>,
}

impl<B: Backend> Marks<B> {
    fn new(backend: &B, stream: &B::Stream, call: &Call, numbers: &Numbers, place: Place) -> Self {
        let place = Place { gap: 0, ..place };
        macro_rules! given {
            ($there:expr, $values:expr) => {
                $there.then(|| Placed::new(backend, stream, place, $values.len(), $values))
            };
        }
        Marks {
            ids: given!(call.has(IDS) || call.config.counts_from == CountsFrom::Routes, &numbers.ids),
            selected: given!(call.has(SELECTED), &numbers.selected),
            mask: given!(call.has(MASK), &numbers.mask),
            count: given!(call.has(COUNT), &[numbers.count]),
        }
    }
}

fn partial<B: Backend>(
    backend: &B,
    call: &Call,
    numbers: &Numbers,
    place: Place,
    before: Option<&Sums>,
) -> Result<Sums> {
    let (tokens, experts, segments) = (call.tokens(), call.experts, call.lengths.len());
    let stream = backend.stream()?;
    let plan = call.plan(backend, &stream);
    let logits = Rows::new(backend, &stream, call.elements[0], place, [tokens, experts], Some(&numbers.logits));
    let reference = Rows::new(backend, &stream, call.elements[1], place, [tokens, experts], Some(&numbers.reference));
    let marks = Marks::new(backend, &stream, call, numbers, place);
    macro_rules! sums {
        ($($name:ident: $type:ty, $len:expr);* $(;)?) => {
            $(let mut $name = match before {
                Some(before) => Placed::<B, $type>::new(backend, &stream, Place { gap: 0, ..place }, $len, &before.$name),
                None => Placed::<B, $type>::output(backend, &stream, place.before, $len),
            };)*
        };
    }
    sums! { probabilities: f64, segments * experts; counts: u64, segments * experts; rows: u64, segments; totals: f64, 3; nonfinite: u64, 1; }
    let bytes = Partial::<B::Memory>::workspace_bytes(&plan, experts);
    let mut workspace = Placed::<B, u8>::output(backend, &stream, place.before, bytes);
    for _ in 0..if before.is_some() { 1 } else { 2 } {
        let partial = Partial {
            router_logits: logits.matrix(),
            topk_ids: marks.ids.as_ref().map(Placed::view),
            ref_logits: call.has(REFERENCE).then(|| reference.matrix()),
            selected_logits: marks.selected.as_ref().map(Placed::view),
            token_mask: marks.mask.as_ref().map(Placed::view),
            row_count: marks.count.as_ref().map(Placed::view),
            probabilities: probabilities.view_mut(),
            counts: counts.view_mut(),
            rows: rows.view_mut(),
            totals: totals.view_mut(),
            nonfinite: nonfinite.view_mut(),
            accumulate: before.is_some(),
            workspace: workspace.view_mut(),
        };
        backend.router_loss_partial(&stream, &call.gate, &call.config, &plan, partial)?;
    }
    workspace.read("workspace", backend, &stream);
    macro_rules! read {
        ($($name:ident),*) => {
            Sums { $($name: {
                let values = $name.read(stringify!($name), backend, &stream);
                assert!(values.iter().all(is_written), "{}: not everything was written", stringify!($name));
                values
            }),* }
        };
    }
    Ok(read!(probabilities, counts, rows, totals, nonfinite))
}

fn finish<B: Backend>(backend: &B, call: &Call, numbers: &Numbers, sums: &Sums, place: Place) -> Result<Finished> {
    let (experts, segments) = (call.experts, call.lengths.len());
    let stream = backend.stream()?;
    let plan = call.plan(backend, &stream);
    macro_rules! given {
        ($values:expr) => {
            Placed::<B, _>::new(backend, &stream, Place { gap: 0, ..place }, $values.len(), &$values)
        };
    }
    let (probabilities, rows) = (given!(sums.probabilities), given!(sums.rows));
    let (totals, counts, count_rows) = (given!(sums.totals), given!(sums.counts), given!(numbers.count_rows));
    let mut values = Placed::<B, f64>::output(backend, &stream, place.before, 4);
    let mut q = Placed::<B, f32>::output(backend, &stream, place.before, segments * experts);
    let mut coefficients = Placed::<B, f32>::output(backend, &stream, place.before, 4);
    let mut workspace =
        Placed::<B, u8>::output(backend, &stream, place.before, Finish::<B::Memory>::workspace_bytes(&plan));
    let finish = Finish {
        experts,
        probabilities: probabilities.view(),
        rows: rows.view(),
        totals: totals.view(),
        counts: counts.view(),
        count_rows: call.has(COUNT_ROWS).then(|| count_rows.view()),
        valid_segments: call.has(SEGMENTS).then_some(call.seed % 6),
        values: values.view_mut(),
        q: q.view_mut(),
        coefficients: coefficients.view_mut(),
        workspace: workspace.view_mut(),
    };
    backend.router_loss_finish(&stream, &call.gate, &call.config, &plan, finish)?;
    workspace.read("workspace", backend, &stream);
    let finished = Finished {
        values: values.read("values", backend, &stream),
        q: q.read("q", backend, &stream),
        coefficients: coefficients.read("coefficients", backend, &stream),
    };
    let all = finished.q.iter().chain(&finished.coefficients).all(is_written) && finished.values.iter().all(is_written);
    assert!(all, "not everything was written: {finished:?}");
    Ok(finished)
}

fn backward<B: Backend>(
    backend: &B,
    call: &Call,
    numbers: &Numbers,
    finished: &Finished,
    element: Element,
    place: Place,
    accumulate: bool,
) -> Result<Vec<f32>> {
    let (tokens, experts) = (call.tokens(), call.experts);
    let stream = backend.stream()?;
    let plan = call.plan(backend, &stream);
    let logits = Rows::new(backend, &stream, call.elements[0], place, [tokens, experts], Some(&numbers.logits));
    let reference = Rows::new(backend, &stream, call.elements[1], place, [tokens, experts], Some(&numbers.reference));
    let marks = Marks::new(backend, &stream, call, numbers, place);
    let q = backend.upload(&stream, &finished.q)?;
    let coefficients = backend.upload(&stream, &finished.coefficients)?;
    let old = accumulate.then_some(&numbers.old[..]);
    let mut target = Rows::new(backend, &stream, element, place, [tokens, experts], old);
    for _ in 0..if accumulate { 1 } else { 2 } {
        let regularizer = Gradient::new(&plan, q.view(), coefficients.view());
        let is_balanced = call.has(BALANCE) && call.gate.score != Score::Raw;
        let matrix = target.matrix_mut();
        let backward = Backward {
            router_logits: logits.matrix(),
            regularizer: Gradient {
                q: regularizer.q.filter(|_| is_balanced),
                ref_logits: call.has(REFERENCE).then(|| reference.matrix()),
                ..regularizer
            },
            topk_ids: marks.ids.as_ref().map(Placed::view),
            selected_logits: marks.selected.as_ref().map(Placed::view),
            token_mask: marks.mask.as_ref().map(Placed::view),
            row_count: marks.count.as_ref().map(Placed::view),
            output: if accumulate { Output::Accumulate(matrix) } else { Output::Dense(matrix) },
        };
        backend.router_loss_backward(&stream, &call.gate, backward)?;
    }
    Ok(target.read("d_router_logits", backend, &stream))
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}
fn close(name: &'static str, found: &[f32], expected: &[f64], absolute: f64, relative: f64) {
    let worst = see_values(16, name, "any batch", found, expected, absolute, relative);
    assert!(worst <= 1.0, "{name} are {worst} tolerances off: {found:?}, not {expected:?}");
}

fn same(found: &[f32], expected: &[f32], what: &str) {
    let at = found.iter().zip(expected).position(|(a, b)| common::canonical_bits(*a) != common::canonical_bits(*b));
    assert!(at.is_none(), "{what}: at {at:?} {:?}, not {:?}", at.map(|i| found[i]), at.map(|i| expected[i]));
}

fn check<B: Backend>(backend: &B, call: &Call) {
    let numbers = call.numbers();
    let plain = Place::default();
    let (found, expected) =
        match (partial(backend, call, &numbers, plain, None), partial(&Reference, call, &numbers, plain, None)) {
            (Ok(found), Ok(expected)) => (found, expected),
            (found, expected) => return assert_eq!(found.unwrap_err().to_string(), expected.unwrap_err().to_string()),
        };
    assert_eq!(partial(backend, call, &numbers, call.place, None).unwrap(), found, "elsewhere in memory");
    assert_eq!((&found.counts, &found.rows, &found.nonfinite), (&expected.counts, &expected.rows, &expected.nonfinite));
    let largest = numbers
        .logits
        .iter()
        .chain(&numbers.reference)
        .filter(|x| x.is_finite())
        .fold(0.0f32, |most, x| most.max(x.abs()));
    let largest = f64::from(call.gate.softcap.map_or(largest, |cap| largest.min(cap)));
    let (rows, relative) = (found.rows.iter().sum::<u64>() as f64, 1e-5 + 3e-7 * largest);
    close("sums of probabilities", &narrow(&found.probabilities), &expected.probabilities, 1e-7, relative);
    // A divergence is a difference of terms that are larger than it.
    close("totals", &narrow(&found.totals), &expected.totals, (1e-5 + 1e-6 * largest) * rows, relative);
    if call.has(BEFORE) {
        let before = &numbers.before;
        let added = partial(backend, call, &numbers, call.place, Some(before)).unwrap();
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
        let sum_of = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<u64>>();
        assert_eq!(
            (&added.counts, &added.rows),
            (&sum_of(&before.counts, &found.counts), &sum_of(&before.rows, &found.rows))
        );
        assert_eq!(added.nonfinite, sum_of(&before.nonfinite, &found.nonfinite));
        // The reference adds row after row to what is there.
        close(
            "sums added to others",
            &narrow(&added.probabilities),
            &sum(&before.probabilities, &found.probabilities),
            0.0,
            1e-6,
        );
        close("totals added to others", &narrow(&added.totals), &sum(&before.totals, &found.totals), 1e-6, 1e-6);
    }

    let finished = match (
        finish(backend, call, &numbers, &expected, call.place),
        finish(&Reference, call, &numbers, &expected, plain),
    ) {
        (Ok(found), Ok(expected)) => {
            close("values", &narrow(&found.values), &expected.values, 1e-30, 1e-6);
            close("q", &found.q, &wide(&expected.q), 0.0, 1e-6);
            close("coefficients", &found.coefficients, &wide(&expected.coefficients), 0.0, 1e-6);
            expected
        }
        (found, expected) => return assert_eq!(found.unwrap_err().to_string(), expected.unwrap_err().to_string()),
    };

    let gradient = backward(backend, call, &numbers, &finished, Element::F32, plain, false).unwrap();
    let expected = backward(&Reference, call, &numbers, &finished, Element::F32, plain, false).unwrap();
    let [balance, z, entropy, kl] = finished.coefficients[..] else { unreachable!("four") };
    let q = finished.q.iter().fold(0.0f32, |most, q| most.max(q.abs()));
    let size = f64::from(balance.abs() * 2.0 * q)
        + f64::from(z.abs() + 2.0 * entropy.abs()) * (largest + 10.0)
        + f64::from(kl.abs());
    close("gradients", &gradient, &wide(&expected), (3e-6 + 3e-7 * largest) * size, relative);
    let element = call.elements[2];
    let drawn = backward(backend, call, &numbers, &finished, element, call.place, false).unwrap();
    let rounded_once: Vec<f32> = gradient.iter().map(|&d| rounded(element, d)).collect();
    same(&drawn, &rounded_once, "a rounded gradient, elsewhere in memory");
    if call.has(ACCUMULATE) {
        let drawn = backward(backend, call, &numbers, &finished, element, call.place, true).unwrap();
        for ((&found, &old), &d) in drawn.iter().zip(&numbers.old).zip(&gradient) {
            let expected = rounded(element, old + d);
            let near = backend.name() == "reference" && (found - expected).abs() <= expected.abs() / 100.0;
            assert!(
                found == expected || found.is_nan() && expected.is_nan() || near,
                "added to {old:e}: {found:e}, not {expected:e}"
            );
        }
    }

    let update = |on_reference: bool| {
        let counts: Vec<u64> = found.counts.iter().take(call.experts).copied().collect();
        let bias: Vec<f32> = (0..call.experts).map(|e| e as f32 * 0.01).collect();
        if on_reference { bias_update(&Reference, &counts, &bias) } else { bias_update(backend, &counts, &bias) }
    };
    if !call.lengths.is_empty() {
        same(&update(false), &update(true), "bias");
    }
}

fn bias_update<B: Backend>(backend: &B, counts: &[u64], bias: &[f32]) -> Vec<f32> {
    let stream = backend.stream().unwrap();
    let counts = Placed::<B, _>::new(backend, &stream, Place { before: 1, gap: 0 }, counts.len(), counts);
    let mut bias = Placed::<B, _>::new(backend, &stream, Place { before: 3, gap: 0 }, bias.len(), bias);
    let update = BiasUpdate { counts: counts.view(), selection_bias: bias.view_mut(), step: 1e-3 };
    backend.router_bias_update(&stream, update).unwrap();
    bias.read("selection_bias", backend, &stream)
}

fn calls() -> impl Strategy<Value = Call> {
    let float = || prop::sample::select(vec![Element::F32, Element::Bf16, Element::F16]);
    let experts = prop_oneof![
        4 => 1usize..=40,
        3 => prop::sample::select(vec![64usize, 100, 128, 255, 256, 257]),
        1 => prop::sample::select(vec![512usize, 1000, 1024, 1025, 2048, 2049, 4096]),
    ];
    let coefficient = || prop_oneof![1 => Just(0.0f64), 1 => Just(-0.3), 3 => 0.01..1.0f64];
    (experts, 1usize..=32).prop_flat_map(move |(experts, k)| {
        let length = (12_000 / experts).clamp(1, 300);
        let gate = (
            prop::sample::select(vec![
                Score::Softmax,
                Score::SoftmaxSelected,
                Score::Sigmoid,
                Score::SqrtSoftplus,
                Score::Raw,
            ]),
            prop::sample::select(vec![None, None, Some(3.0f32), Some(30.0)]),
            any::<bool>(),
        );
        let lengths = prop_oneof![
            2 => (0usize..=9).prop_map(|n| vec![n]),
            1 => prop::sample::select(vec![vec![31usize], vec![33], vec![255], vec![256], vec![257]]),
            3 => prop::collection::vec(0usize..9, 0..6),
            1 => prop::collection::vec(prop::sample::select(vec![0usize, 1, 30, 260]), 1..4),
        ];
        let losses = (coefficient(), coefficient(), coefficient(), coefficient());
        let kind = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>(), any::<u32>());
        let place = (prop::sample::select(vec![0usize, 0, 1, 2, 4, 8]), prop::sample::select(vec![0usize, 0, 1, 3, 8]));
        (gate, lengths, losses, kind, place, [float(), float(), float()]).prop_map(
            move |(
                (score, softcap, states_k),
                lengths,
                (balance, z, entropy, router_kl),
                (segments, fresh, wild, seed, inputs),
                (before, gap),
                elements,
            )| {
                let k = k.min(experts);
                let lengths: Vec<usize> = lengths.into_iter().map(|len| len.min(length)).collect();
                let config = Config {
                    balance: if score == Score::Raw && seed % 8 != 0 { 0.0 } else { balance },
                    // Sometimes many segments are said to be one batch, and refused.
                    scope: if segments || (lengths.len() != 1 && seed % 8 != 1) {
                        Scope::Segments
                    } else {
                        Scope::Batch
                    },
                    z,
                    entropy,
                    router_kl,
                    counts_from: if fresh { CountsFrom::TopK } else { CountsFrom::Routes },
                };
                let gate = gate::Config {
                    softcap,
                    top_k: states_k.then_some(k),
                    preset_top_k: Some(k),
                    ..gate::Config::new(score, k)
                };
                let place = Place { before, gap };
                Call {
                    gate,
                    config,
                    experts,
                    k,
                    lengths,
                    elements,
                    place,
                    inputs: inputs | if seed % 8 == 2 { 0 } else { REFERENCE },
                    wild,
                    seed,
                }
            },
        )
    })
}

fn any_batch_agrees_with_the_reference_and_with_itself<B: Backend>(backend: &B) {
    for_any(100, &calls(), |call| check(backend, call));
}
