//! Any steps of the running normaliser, against moments of all their tokens at once.

use moerl::expert_ledger::{ExpertSums, Normalizer};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::common::property::for_any;

/// A token's gate and advantage.
type Token = (f64, f64);

/// β, and the tokens of one expert in every step.
fn steps() -> impl Strategy<Value = (f64, Vec<Vec<Token>>)> {
    let gate = prop_oneof![0.01_f64..1.0, select(vec![1e-30, 1.0])];
    let advantage = prop_oneof![4 => -2.0_f64..2.0, 1 => 1e4_f64..1.0001e4, 1 => select(vec![0.0, 0.5, 1e30])];
    (select(vec![0.0, 0.5, 0.9, 0.999, 1.0 - 1e-12]), vec(vec((gate, advantage), 0..6), 0..8))
}

/// The ledger of these tokens, formed with this shift.
fn ledger(tokens: &[Token], shift: f64) -> ExpertSums {
    let add = |sums: ExpertSums, &(gate, advantage): &Token| ExpertSums {
        n: sums.n + 1,
        gate: sums.gate + gate,
        advantage: sums.advantage + gate * (advantage - shift),
        advantage_square: sums.advantage_square + gate * (advantage - shift) * (advantage - shift),
    };
    tokens.iter().fold(ExpertSums::default(), add)
}

#[test]
fn any_steps_give_the_moments_of_their_tokens() {
    for_any(2000, &steps(), |(beta, steps)| {
        let mut normalizer = Normalizer::new(1, 2, *beta, 1e-6).unwrap();
        for tokens in steps {
            // The other expert's sums are broken, and change nothing.
            let broken = ExpertSums { n: 1, gate: 1.0, advantage: f64::NAN, advantage_square: f64::INFINITY };
            normalizer.update(0, &[ledger(tokens, normalizer.means(0)[0]), broken]).unwrap();
        }
        let [found, other] = normalizer.layer(0) else { unreachable!() };
        assert_eq!((other.mean, other.variance, other.weight), (0.0, 0.0, 0.0));
        // A step's tokens share (1 − β) β^age by their gates; steps without tokens take no turn.
        let mut weighted = Vec::new();
        for (age, tokens) in steps.iter().filter(|tokens| !tokens.is_empty()).rev().enumerate() {
            let gates: f64 = tokens.iter().map(|(gate, _)| gate).sum();
            let of_step = (1.0 - beta) * beta.powi(age as i32);
            weighted.extend(tokens.iter().map(|&(gate, advantage)| (of_step * gate / gates, advantage)));
        }
        let weight: f64 = weighted.iter().map(|(w, _)| w).sum();
        let mean = weighted.iter().map(|(w, a)| w * a).sum::<f64>() / weight;
        let variance = weighted.iter().map(|(w, a)| w * (a - mean) * (a - mean)).sum::<f64>() / weight;
        let largest = weighted.iter().fold(0.0_f64, |most, (_, a)| most.max(a.abs()));
        assert!((found.weight - weight).abs() <= 1e-13);
        let inverse = normalizer.inverse_deviations(0)[0];
        if weighted.is_empty() {
            return assert_eq!((found.mean, found.variance, inverse), (0.0, 0.0, 0.0));
        }
        // Some tens of additions; 1 − β keeps so many digits. Sums around the running mean are no larger than 2 max |A|.
        let digits = 1e-13 + 1e-15 / (1.0 - beta);
        assert!((found.mean - mean).abs() <= digits * largest, "{} not {mean}", found.mean);
        let tolerance = 16.0 * digits * largest * largest;
        assert!((found.variance - variance).abs() <= tolerance, "{} not {variance}", found.variance);
        assert!(found.variance >= 0.0 && inverse > 0.0 && inverse <= 1e6, "{found:?}");
    });
}
