//! The reference's gradients against central differences of its own weights.

use super::telemetry::router_kl;
use super::weights::{Rules, Slots, log_sum_exp};
use crate::gate::{Config, Renormalize, Score};
use proptest::prelude::*;
use proptest::test_runner::{Config as Settings, RngSeed, TestRunner, contextualize_config};

const EXPERTS: usize = 12;
const STEP: f64 = 1e-5;

/// Logits between −4 and 4 without a pattern, from a seed.
fn logits(seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 8.0 - 4.0
    };
    (0..EXPERTS).map(|_| next()).collect()
}

fn loss(rules: &Rules, logits: &[f64], ids: &[usize], upstream: &[f64]) -> f64 {
    let selected: Vec<f64> = ids.iter().map(|&e| logits[e]).collect();
    let lse = log_sum_exp(&rules.capped_row(logits));
    let weights = rules.weights(&selected, lse);
    weights.iter().zip(scale_of(ids)).zip(upstream).map(|((w, scale), d)| w * scale * d).sum()
}

/// A scale for each expert.
fn scale_of(ids: &[usize]) -> Vec<f64> {
    ids.iter().map(|&e| 0.5 + 0.25 * e as f64).collect()
}

fn check(name: &str, config: &Config, ids: &[usize], logits: &[f64]) {
    check_within(1e-8, name, config, ids, logits);
}

fn check_within(tolerance: f64, name: &str, config: &Config, ids: &[usize], logits: &[f64]) {
    let rules = Rules::new(config, ids.len());
    let upstream: Vec<f64> = (0..ids.len()).map(|j| 1.5 - 0.7 * j as f64).collect();
    let slots = Slots {
        ids: ids.to_vec(),
        selected: ids.iter().map(|&e| logits[e]).collect(),
        lse: log_sum_exp(&rules.capped_row(logits)),
        expert_scale: scale_of(ids),
    };
    let mut gradient = vec![0.0; EXPERTS];
    rules.add_gradient(&slots, Some(logits), &upstream, &mut gradient);
    for e in 0..EXPERTS {
        let moved = |by: f64| {
            let mut moved = logits.to_vec();
            moved[e] += by;
            loss(&rules, &moved, ids, &upstream)
        };
        let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let error = (gradient[e] - difference).abs();
        assert!(error < tolerance, "{name}: expert {e} has {}, not {difference}", gradient[e]);
    }
}

#[test]
fn gradients_of_any_router_are_central_differences() {
    let rule = prop::sample::select(vec![
        Renormalize::None,
        Renormalize::AddEps(1e-20),
        Renormalize::AddEps(0.5),
        Renormalize::Floor(1e-12),
        Renormalize::Floor(0.3),
        Renormalize::Floor(50.0),
        Renormalize::Guard,
        Renormalize::Exact,
    ]);
    let score = prop::sample::select(vec![
        Score::Softmax,
        Score::SoftmaxSelected,
        Score::Sigmoid,
        Score::SqrtSoftplus,
        Score::Raw,
    ]);
    let slots = Just((0..EXPERTS).collect::<Vec<_>>()).prop_shuffle();
    let numbers = (prop::sample::select(vec![None, Some(0.5f32), Some(3.0), Some(30.0)]), -3f32..3.0, -40f64..10.0);
    let router = (score, rule, any::<bool>(), numbers, slots, 1..=EXPERTS, any::<u64>());
    let settings =
        Settings { cases: 500, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Settings::default() };
    let run = TestRunner::new(contextualize_config(settings)).run(
        &router,
        |(score, renormalize, renormalize_single, (softcap, scale, middle), slots, k, seed)| {
            let scaling_factor = Some(scale);
            let config = Config { renormalize, renormalize_single, softcap, scaling_factor, ..Config::new(score, k) };
            prop_assume!(config.validate().is_ok());
            let (ids, logits) = (&slots[..k], logits(seed).iter().map(|x| x + middle).collect::<Vec<_>>());
            if let (Score::Softmax, Renormalize::Floor(floor)) = (score, renormalize) {
                // The gradient leaps where the sum crosses the floor.
                let x = Rules::new(&config, k).capped_row(&logits);
                let sum: f64 = ids.iter().map(|&e| (x[e] - log_sum_exp(&x)).exp()).sum();
                prop_assume!((sum - f64::from(floor)).abs() > 1e-3 * sum);
            }
            // Up to twelve slots with upstream gradients and scales of a few each.
            check_within(1e-7, &format!("{config:?}"), &config, ids, &logits);
            Ok(())
        },
    );
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn gradients_are_central_differences_in_every_mode() {
    let rules = [
        Renormalize::None,
        Renormalize::AddEps(0.5),
        Renormalize::Floor(1e-12),
        Renormalize::Floor(50.0),
        Renormalize::Guard,
        Renormalize::Exact,
    ];
    let scores = [Score::Softmax, Score::SoftmaxSelected, Score::Sigmoid, Score::SqrtSoftplus, Score::Raw];
    let mut checked = 0;
    for score in scores {
        for renormalize in rules {
            for softcap in [None, Some(2.5)] {
                for ids in [vec![3], vec![11, 0, 7], vec![5, 2, 8, 1, 9, 4]] {
                    let config = Config {
                        renormalize,
                        softcap,
                        renormalize_single: true,
                        scaling_factor: Some(1.7),
                        ..Config::new(score, ids.len())
                    };
                    if config.validate().is_err() {
                        continue;
                    }
                    for seed in 1..4 {
                        check(&format!("{config:?}"), &config, &ids, &logits(seed));
                    }
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 2 * 3 * (3 + 1 + 6 + 6 + 1));
}

#[test]
fn gradients_are_central_differences_where_scores_are_tiny() {
    for score in [Score::Sigmoid, Score::SqrtSoftplus] {
        for renormalize in [Renormalize::AddEps(1e-20), Renormalize::Exact] {
            let config = Config { renormalize, ..Config::new(score, 3) };
            let far: Vec<f64> = logits(9).iter().map(|x| x - 30.0).collect();
            check(&format!("{config:?}"), &config, &[1, 6, 10], &far);
        }
    }
}

#[test]
fn gradients_of_the_surrogate_are_central_differences() {
    const COEFFICIENT: f64 = 0.8;
    let mut checked = 0;
    for score in [Score::Softmax, Score::SoftmaxSelected, Score::Sigmoid, Score::SqrtSoftplus] {
        for softcap in [None, Some(2.5)] {
            for ids in [vec![3], vec![11, 0, 7]] {
                let config = Config { softcap, scaling_factor: Some(1.7), ..Config::new(score, ids.len()) };
                let (rules, logits) = (Rules::new(&config, ids.len()), logits(4));
                let slots = Slots {
                    ids: ids.clone(),
                    selected: ids.iter().map(|&e| logits[e]).collect(),
                    lse: log_sum_exp(&rules.capped_row(&logits)),
                    expert_scale: scale_of(&ids),
                };
                let mut gradient = vec![0.0; EXPERTS];
                rules.add_surrogate(&slots, &logits, COEFFICIENT, &mut gradient);
                // Shares of the weights are constants: −cA Σ_S g̃ log p.
                let weights = rules.weights(&slots.selected, slots.lse);
                let sum: f64 = weights.iter().sum();
                let loss = |x: &[f64]| {
                    let x = rules.capped_row(x);
                    let lse = log_sum_exp(&x);
                    -COEFFICIENT * ids.iter().zip(&weights).map(|(&e, w)| w / sum * (x[e] - lse)).sum::<f64>()
                };
                for e in 0..EXPERTS {
                    let moved = |by: f64| {
                        let mut moved = logits.clone();
                        moved[e] += by;
                        loss(&moved)
                    };
                    let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                    assert!((gradient[e] - difference).abs() < 1e-8, "{config:?}: {} is not {difference}", gradient[e]);
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 4 * 2 * 2 * EXPERTS);
}

#[test]
fn the_gradient_of_the_expert_scale_is_a_central_difference() {
    for score in [Score::Softmax, Score::SoftmaxSelected, Score::Sigmoid, Score::SqrtSoftplus, Score::Raw] {
        let config = Config { scaling_factor: Some(1.7), ..Config::new(score, 3) };
        let (rules, logits, ids) = (Rules::new(&config, 3), logits(5), vec![2, 9, 4]);
        let upstream = [0.4, -1.1, 2.0];
        let mut slots = Slots {
            selected: ids.iter().map(|&e| logits[e]).collect(),
            lse: log_sum_exp(&logits),
            expert_scale: scale_of(&ids),
            ids,
        };
        let found = rules.expert_scale_gradient(&slots, &upstream);
        for (j, found) in found.into_iter().enumerate() {
            let mut loss = |by: f64| {
                slots.expert_scale[j] += by;
                let weights = rules.weights(&slots.selected, slots.lse);
                let loss: f64 =
                    weights.iter().zip(&slots.expert_scale).zip(&upstream).map(|((w, scale), d)| w * scale * d).sum();
                slots.expert_scale[j] -= by;
                loss
            };
            let difference = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            assert!((found - difference).abs() < 1e-8, "{score:?}: {found} is not {difference}");
        }
    }
}

#[test]
fn the_gradient_of_the_routers_divergence_is_central_differences() {
    for softcap in [None, Some(2.5)] {
        let rules = Rules::new(&Config { softcap, ..Config::softmax(1) }, 1);
        let (reference, here) = (logits(4), logits(5));
        let (_, gradient) = router_kl(&rules, &reference, &here).unwrap();
        for e in 0..EXPERTS {
            let moved = |by: f64| {
                let mut moved = here.clone();
                moved[e] += by;
                router_kl(&rules, &reference, &moved).unwrap().0
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!((gradient[e] - difference).abs() < 1e-8, "expert {e} has {}, not {difference}", gradient[e]);
        }
    }
}
