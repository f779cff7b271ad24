//! What is attached is a derivative.

use super::groups::{self, Decided};
use super::{Sums, segments};
use crate::correction::{Batch, Config, Plane, Weight};
use crate::memory::View;

const REWARDS: [f32; 7] = [1.0, -0.5, 0.25, f32::NAN, 2.0, 0.0, -1.5];

/// The estimate of the mean reward of one group with these X, and the factors of its segments. The last one has no counted token.
fn group(config: &Config, x: &[f64; 7]) -> (f64, Vec<f64>) {
    let lengths = [4.0, 1.0, 9.0, 3.0, 2.0, 5.0, 0.0];
    let rewards = REWARDS.to_vec();
    let none = Vec::new();
    let batch = Batch { rewards: Some(View::from(&rewards)), ..Batch::new(View::from(&none), View::from(&none)) };
    let mut all: Vec<_> = x
        .iter()
        .zip(lengths)
        .enumerate()
        .map(|(i, (&x, n))| {
            let mut sums = Sums::new();
            sums.add(Plane::LogRatio, x);
            sums.add(Plane::Count, n);
            segments::decide(config, &batch, i, &[sums])
        })
        .collect();
    let mut decided = vec![Decided::default(); all.len()];
    let members: Vec<u32> = (0..all.len() as u32).collect();
    let outcome = groups::decide(config, &batch, 0, &members, &mut all, &mut decided);
    (outcome.expected_reward, decided.iter().map(|decided| decided.advantage).collect())
}

/// Fourth order: the error is h⁴/30 of the fifth derivative, below 1e-11, and 1e-16/h of rounding.
fn derivative(f: impl Fn(f64) -> f64) -> f64 {
    let h = 1e-3;
    (8.0 * (f(h) - f(-h)) - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h)
}

#[test]
fn attached_factors_are_finite_differences_of_the_estimate() {
    let config = Config::new(Weight::SelfNormalisedAttached);
    for x in [
        [0.3, -0.7, 1.1, 0.2, -0.1, 0.0, 0.0],
        // One beyond each bound, where nothing moves, one with nearly all of the weight.
        [20.5, -0.7, 19.0, 0.2, 18.5, 17.0, 0.0],
        [-31.0, -19.0, -18.5, 2.0, -18.0, -33.0, 0.0],
        [3.0, -9.0, -9.5, 2.0, -8.0, -9.25, 0.0],
    ] {
        let (_, factors) = group(&config, &x);
        for (i, &factor) in factors.iter().enumerate() {
            let moved = derivative(|step| {
                let mut x = x;
                x[i] += step;
                group(&config, &x).0
            });
            assert!((moved - factor).abs() < 1e-10, "{x:?}: segment {i}: {factor} not {moved}");
        }
        assert_eq!((factors[3], factors[6]), (0.0, 0.0), "without a reward, without a token");
        let beyond = x.iter().zip(&factors).filter(|(x, _)| x.abs() > 20.0);
        assert!(beyond.into_iter().all(|(_, &factor)| factor == 0.0), "{factors:?}");
    }
}

#[test]
fn attached_factors_of_a_group_add_up_to_nothing_unless_one_stands_still() {
    let config = Config::new(Weight::SelfNormalisedAttached);
    let (_, factors) = group(&config, &[0.3, -0.7, 1.1, 0.2, -0.1, 0.0, 0.0]);
    assert!(factors.iter().sum::<f64>().abs() < 1e-15, "{factors:?}");
    // Beyond every bound without saturation: the weights of the unbounded function.
    let open = Config { saturation: f32::INFINITY, ..config };
    let (_, factors) = group(&open, &[40.0, 39.0, 41.0, 0.2, 40.5, 38.0, 0.0]);
    assert!(factors.iter().sum::<f64>().abs() < 1e-15 && factors[0].abs() > 0.01, "{factors:?}");
}
