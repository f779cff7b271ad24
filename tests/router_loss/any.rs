//! Any batch of a router through all steps: against the reference, and against itself where it comes another way.

use moerl::element::Element;
use moerl::gate::{Output, Score};
use moerl::router_loss::{Backward, BiasUpdate, CountsFrom, Finish, Gradient, Partial};
use moerl::{Backend, Buffer, Reference, Result};

use crate::case::{Finished, Sums};
use crate::common;
use crate::common::placed::{Place, Placed, Rows, is_written, rounded};
use crate::common::property::for_any;
use crate::common::report::see_values;
use crate::draw::*;

crate::on_every_backend!(any_batch_agrees_with_the_reference_and_with_itself);

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

fn any_batch_agrees_with_the_reference_and_with_itself<B: Backend>(backend: &B) {
    for_any(100, &calls(), |call| check(backend, call));
}
