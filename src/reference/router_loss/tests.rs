//! The gradients of the regularisers against central differences of their values.

use super::*;
use crate::gate::Score;
use proptest::prelude::*;
use proptest::test_runner::{Config as Settings, RngSeed, TestRunner, contextualize_config};

const EXPERTS: usize = 8;
const ROWS: usize = 3;
const STEP: f64 = 1e-5;

/// Logits between −4 and 4 without a pattern.
fn logits(seed: u64) -> Vec<Vec<f64>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 8.0 - 4.0
    };
    (0..ROWS).map(|_| (0..EXPERTS).map(|_| next()).collect()).collect()
}

/// The losses of all rows, each with coefficient 1 but the one of `c` that is not 0.
fn value(rules: &Rules, x: &[Vec<f64>], reference: &[Vec<f64>], c: Coefficients, q: &[f64]) -> f64 {
    let of_row = |(x, reference): (&Vec<f64>, &Vec<f64>)| {
        let row = Row::of(rules, x, Some(reference)).unwrap();
        let balance: f64 = q.iter().zip(&row.probabilities).map(|(q, p)| q * p).sum();
        let (_, kl) = row.reference.unwrap();
        // The coefficient of z's gradient is twice that of its value.
        c.balance * balance + c.z / 2.0 * row.lse * row.lse - c.entropy * row.entropy + c.kl * kl
    };
    x.iter().zip(reference).map(of_row).sum()
}

#[test]
fn gradients_of_regularizers_are_central_differences() {
    let scores = [Score::Softmax, Score::SoftmaxSelected, Score::Sigmoid, Score::SqrtSoftplus, Score::Raw];
    let losses = [
        Coefficients { balance: 0.7, ..Coefficients::default() },
        Coefficients { z: 0.3, ..Coefficients::default() },
        Coefficients { entropy: 0.9, ..Coefficients::default() },
        Coefficients { kl: 0.6, ..Coefficients::default() },
        Coefficients { balance: 0.7, z: 0.3, entropy: 0.9, kl: 0.6 },
    ];
    let q: Vec<f64> = (0..EXPERTS).map(|e| 0.2 + 0.3 * (e * 5 % 7) as f64).collect();
    let mut checked = 0;
    for score in scores {
        for softcap in [None, Some(2.5)] {
            let rules = Rules::new(&gate::Config { softcap, ..gate::Config::new(score, 2) }, 2);
            for c in losses.into_iter().filter(|c| score != Score::Raw || c.balance == 0.0) {
                let (x, reference) = (logits(1), logits(2));
                for t in 0..ROWS {
                    let mut gradient = vec![0.0; EXPERTS];
                    let row = Row::of(&rules, &x[t], Some(&reference[t])).unwrap();
                    row.add_gradient(&rules, &x[t], c, Some(&q), &mut gradient);
                    for e in 0..EXPERTS {
                        let moved = |by: f64| {
                            let mut moved = x.clone();
                            moved[t][e] += by;
                            value(&rules, &moved, &reference, c, &q)
                        };
                        let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                        let error = (gradient[e] - difference).abs();
                        assert!(error < 1e-8, "{score:?} {c:?}: {} is not {difference}", gradient[e]);
                        checked += 1;
                    }
                }
            }
        }
    }
    assert_eq!(checked, ROWS * EXPERTS * 2 * (4 * 5 + 3));
}

#[test]
fn gradients_of_any_regularizers_are_central_differences() {
    let score = prop::sample::select(vec![Score::Softmax, Score::SoftmaxSelected, Score::Sigmoid, Score::SqrtSoftplus]);
    let softcap = prop::sample::select(vec![None, Some(0.5f32), Some(3.0), Some(30.0)]);
    let coefficients = prop::array::uniform4(-1f64..1.0);
    let q = prop::collection::vec(-2f64..2.0, EXPERTS);
    let router = (score, softcap, coefficients, q, -40f64..10.0, any::<u64>());
    let settings =
        Settings { cases: 300, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Settings::default() };
    let run = TestRunner::new(contextualize_config(settings)).run(
        &router,
        |(score, softcap, [balance, z, entropy, kl], q, middle, seed)| {
            let rules = Rules::new(&gate::Config { softcap, ..gate::Config::new(score, 2) }, 2);
            let c = Coefficients { balance, z, entropy, kl };
            let moved =
                |x: Vec<Vec<f64>>| x.into_iter().map(|row| row.into_iter().map(|x| x + middle).collect()).collect();
            let (x, reference): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (moved(logits(seed)), moved(logits(!seed)));
            let mut gradient = vec![0.0; EXPERTS];
            Row::of(&rules, &x[0], Some(&reference[0])).unwrap().add_gradient(
                &rules,
                &x[0],
                c,
                Some(&q),
                &mut gradient,
            );
            for e in 0..EXPERTS {
                let moved = |by: f64| {
                    let mut moved = x.clone();
                    moved[0][e] += by;
                    value(&rules, &moved, &reference, c, &q)
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                // Squares of log-sum-exps of up to 40, rounded, over twice the step.
                let error = (gradient[e] - difference).abs();
                prop_assert!(error < 1e-7, "{score:?} {c:?}: {} is not {difference}", gradient[e]);
            }
            Ok(())
        },
    );
    run.unwrap_or_else(|failure| panic!("{failure}"));
}
