//! Sums, values and gradients against the f64 reference.

use moerl::element::{Float, bf16, f16};
use moerl::gate::{Config as Gate, Renormalize, Score};
use moerl::router_loss::{Config, CountsFrom, Scope};
use moerl::{Backend, Reference};

use crate::case::{Case, Finished, Sums, every_loss};
use crate::common;
use crate::common::report::{count, see_values};

crate::on_every_backend!(
    every_score_agrees_with_the_reference,
    every_shape_agrees_with_the_reference,
    segments_agree_with_the_reference,
    sixteen_bit_gradients_are_rounded_once,
    rows_that_are_not_numbers_are_left_out_and_counted,
    the_gradient_is_added_in_the_write_of_the_gate,
);

/// Sums of f32 terms of a few roundings each, against f64.
fn sums_agree(name: &str, found: &Sums, expected: &Sums) {
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
    assert_eq!(
        (&found.counts, &found.rows, &found.nonfinite),
        (&expected.counts, &expected.rows, &expected.nonfinite),
        "{name}"
    );
    let (sums, expected_sums) = (narrow(&found.probabilities), &expected.probabilities);
    let probabilities = see_values(12, "sums of probabilities", name, &sums, expected_sums, 1e-7, 1e-5);
    assert!(probabilities <= 1.0, "{name}: probabilities are {probabilities} tolerances off");
    // A divergence is a difference of terms that are larger than it.
    let absolute = 1e-5 * found.rows.iter().sum::<u64>() as f64;
    let totals = see_values(12, "totals", name, &narrow(&found.totals), &expected.totals, absolute, 1e-5);
    assert!(totals <= 1.0, "{name}: totals are {totals} tolerances off: {:?} {:?}", found.totals, expected.totals);
}

fn finished_agree(name: &str, found: &Finished, expected: &Finished) {
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    // f64 throughout, from the same sums.
    for (found, expected) in [
        (&narrow(&found.values), &expected.values),
        (&found.q, &wide(&expected.q)),
        (&found.coefficients, &wide(&expected.coefficients)),
    ] {
        let worst = see_values(12, "values and coefficients", name, found, expected, 0.0, 1e-6);
        assert!(worst <= 1.0, "{name}: {found:?} is not {expected:?}");
    }
}

fn agrees<B: Backend, T: Float>(backend: &B, name: &str, case: &Case<T>) {
    let (found, expected) = (case.partial(backend, None).unwrap(), case.partial(&Reference, None).unwrap());
    sums_agree(name, &found, &expected);
    let finished = case.finish(&Reference, &expected, None).unwrap();
    finished_agree(name, &case.finish(backend, &expected, None).unwrap(), &finished);
    let gradient = case.backward::<B, f32>(backend, &finished).unwrap();
    let expected = case.backward::<Reference, f32>(&Reference, &finished).unwrap();
    let wide: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    // q − Σ q P, log p + H and p − p_ref cancel: what is left may be as wrong as the terms were.
    let largest = wide.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let worst = see_values(12, "gradients", name, &gradient, &wide, 2e-6 * largest, 1e-5);
    assert!(worst <= 1.0, "{name}: gradients are {worst} tolerances off");
}

fn scores(k: usize) -> [Gate; 5] {
    [
        Gate::softmax(k),
        Gate::softmax_selected(k),
        Gate::sigmoid(k),
        Gate { renormalize: Renormalize::None, ..Gate::sqrt_softplus(k) },
        Gate { softcap: Some(3.0), ..Gate::sigmoid(k) },
    ]
}

fn every_score_agrees_with_the_reference<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for (i, gate) in scores(4).into_iter().enumerate() {
            for (name, config) in [
                ("switch", Config::switch(0.3)),
                ("z", Config { z: 0.2, ..Config::default() }),
                ("entropy", Config { entropy: 0.4, ..Config::default() }),
                ("divergence", Config { router_kl: 0.5, ..Config::default() }),
                ("megatron", Config::megatron(0.3, 0.1)),
                ("all", every_loss()),
            ] {
                let name = format!("{:?}, {name}", gate.score);
                agrees(backend, &name, &Case::<T>::random(gate.clone(), config, &[9], 24, 4, i as u64));
            }
        }
        let raw = Gate::new(Score::Raw, 4);
        agrees(backend, "raw", &Case::<T>::random(raw, Config { balance: 0.0, ..every_loss() }, &[9], 24, 4, 7));
    }
    check::<_, bf16>(backend);
    check::<_, f16>(backend);
    check::<_, f32>(backend);
}

fn every_shape_agrees_with_the_reference<B: Backend>(backend: &B) {
    for (tokens, experts, k) in
        [(1, 1, 1), (3, 7, 1), (300, 8, 2), (5, 100, 32), (5, 256, 8), (5, 257, 6), (3, 1025, 8), (2, 4096, 8)]
    {
        let name = format!("{tokens} tokens, {experts} experts");
        for counts_from in [CountsFrom::Routes, CountsFrom::TopK] {
            let config = Config { counts_from, ..every_loss() };
            agrees(backend, &name, &Case::<bf16>::random(Gate::sigmoid(k), config, &[tokens], experts, k, 3));
        }
        agrees(backend, &name, &Case::<f32>::random(Gate::softmax(k), every_loss(), &[tokens], experts, k, 4));
    }
}

fn segments_agree_with_the_reference<B: Backend>(backend: &B) {
    for gate in [Gate::softmax_selected(3), Gate::sigmoid(3)] {
        let config = Config { scope: Scope::Segments, ..every_loss() };
        let mut case = Case::<bf16>::random(gate, config, &[5, 0, 1, 270, 0, 12], 16, 3, 5);
        agrees(backend, "segments", &case);
        // A segment without a row that counts is no segment of the mean.
        case.token_mask = Some((0..case.tokens()).map(|t| u8::from(t != 5 && t % 5 != 2)).collect());
        agrees(backend, "masked segments", &case);
        case.row_count = Some(200);
        agrees(backend, "cut segments", &case);
    }
}

fn sixteen_bit_gradients_are_rounded_once<B: Backend>(backend: &B) {
    let case = Case::<bf16>::random(Gate::sigmoid(4), every_loss(), &[9], 40, 4, 6);
    let finished = case.finish(&Reference, &case.partial(&Reference, None).unwrap(), None).unwrap();
    let exact = case.backward::<B, f32>(backend, &finished).unwrap();
    let rounded = case.backward::<B, bf16>(backend, &finished).unwrap();
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert_eq!(bf16::from_f32(*exact).to_bits(), rounded.to_bits());
    }
}

fn rows_that_are_not_numbers_are_left_out_and_counted<B: Backend>(backend: &B) {
    for gate in [Gate::softmax_selected(2), Gate::sigmoid(2)] {
        let clean = Case::<f32>::random(gate, every_loss(), &[12], 10, 2, 8);
        let mut case = clean.clone();
        case.logits[10] = f32::NAN;
        case.logits[35] = f32::INFINITY;
        case.logits[50..60].fill(f32::NEG_INFINITY);
        case.reference[71] = f32::NAN;
        case.logits[90] = f32::NEG_INFINITY; // which the reference does not have: an infinite divergence
        let bad = [1, 3, 5, 7, 9];
        let sums = case.partial(backend, None).unwrap();
        assert_eq!((sums.rows[0], sums.nonfinite[0], sums.counts.iter().sum::<u64>()), (7, 5, 14));
        agrees(backend, "bad rows", &case);
        let masked = Case { token_mask: Some((0..12).map(|t| u8::from(!bad.contains(&t))).collect()), ..clean };
        assert_eq!(masked.partial(backend, None).unwrap(), Sums { nonfinite: vec![0], ..sums.clone() });
        let finished = case.finish(backend, &sums, None).unwrap();
        let (found, expected) = (
            case.backward::<B, f32>(backend, &finished).unwrap(),
            masked.backward::<B, f32>(backend, &finished).unwrap(),
        );
        assert_eq!(common::bits(&found), common::bits(&expected));
        count(12, case.tokens());
        assert!(bad.iter().all(|t| found[t * 10..][..10].iter().all(|d| d.to_bits() == 0)));
    }
}

fn the_gradient_is_added_in_the_write_of_the_gate<B: Backend>(backend: &B) {
    for gate in scores(4) {
        let mut case = Case::<bf16>::random(gate, Config { scope: Scope::Segments, ..every_loss() }, &[7, 4], 40, 4, 9);
        case.token_mask = Some((0..11).map(|t| u8::from(t != 3)).collect());
        case.logits[5 * 40..][0] = bf16::NAN;
        let finished = case.finish(&Reference, &case.partial(&Reference, None).unwrap(), None).unwrap();
        let upstream: Vec<f32> = (0..11 * 4).map(|i| (i * 7 % 5) as f32 - 2.0).collect();
        let [both, gate] = case.gate_backward(backend, &finished, &upstream).unwrap();
        let alone = case.backward::<B, f32>(backend, &finished).unwrap();
        let sum: Vec<f64> = gate.iter().zip(&alone).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
        // One more rounding.
        let name = format!("{:?}", case.gate.score);
        let worst = see_values(12, "gradients in one write", &name, &both, &sum, 1e-9, 1e-6);
        assert!(worst <= 1.0, "{:?}: {worst} tolerances off", case.gate.score);
        assert_eq!(common::bits(&both[3 * 40..4 * 40]), vec![0; 40]);
    }
}
