//! Values that can be checked by hand.

use moerl::Backend;
use moerl::objective::{Cap, Config};

use crate::case::{Case, run};

/// One segment of two tokens: old probabilities .20 and .10, new ones .25 and .30, so that ρ = (1.25, 3), s = √3.75.
fn two_tokens(advantage: f32) -> Case {
    let logs = |values: [f64; 2]| values.iter().map(|p| p.ln() as f32).collect::<Vec<_>>();
    Case {
        lengths: vec![2],
        logprobs: logs([0.25, 0.30]),
        old_logprobs: Some(logs([0.20, 0.10])),
        advantages: vec![advantage],
        per_token: false,
        loss_mask: Some(vec![1, 1]),
        weights: None,
        segment_scale: None,
        denominators: Some([2, 1, 1, 2]),
    }
}

pub fn two_tokens_give_the_values_of_the_table<B: Backend>(backend: &B) {
    let grpo = Config::ppo_clip(0.2, 0.2);
    let (gspo, token) = (Config::gspo(0.2, 0.2), Config::gspo_token(0.2, 0.2));
    let s = 3.75_f64.sqrt();
    for (name, config, advantage, loss, gradient) in [
        ("grpo", grpo.clone(), 1.0, -1.2, [0.0, 0.0]),
        ("grpo", grpo.clone(), -1.0, 2.125, [0.625, 1.5]),
        ("dual clip 2", grpo.clone().with_cap(Cap::Dual(2.0)), 1.0, -1.2, [0.0, 0.0]),
        ("dual clip 2", grpo.clone().with_cap(Cap::Dual(2.0)), -1.0, 1.625, [0.625, 0.0]),
        ("delta 1.1", grpo.clone().with_cap(Cap::Delta(1.1)), 1.0, -1.1, [0.0, 0.0]),
        ("delta 1.1", grpo.with_cap(Cap::Delta(1.1)), -1.0, 1.2, [0.0, 0.0]),
        ("gspo", gspo.clone(), 1.0, -1.2, [0.0, 0.0]),
        ("gspo", gspo.clone(), -1.0, s, [s / 2.0, s / 2.0]),
        ("gspo + delta 1.5", gspo.clone().with_cap(Cap::Delta(1.5)), 1.0, -1.2, [0.0, 0.0]),
        ("gspo + delta 1.5", gspo.clone().with_cap(Cap::Delta(1.5)), -1.0, 1.5, [0.0, 0.0]),
        ("gspo + delta 2.5", gspo.clone().with_cap(Cap::Delta(2.5)), 1.0, -1.2, [0.0, 0.0]),
        ("gspo + delta 2.5", gspo.with_cap(Cap::Delta(2.5)), -1.0, s, [s / 2.0, s / 2.0]),
        ("gspo_token", token.clone(), 1.0, -1.2, [0.0, 0.0]),
        ("gspo_token", token, -1.0, s, [s / 2.0, s / 2.0]),
    ] {
        let found = run(backend, &config, &two_tokens(advantage));
        // f32 inputs: ρ is known to 2 ulp and half an ulp of the logarithms, 5e-7 relative.
        assert!(
            (found.loss - loss).abs() < 1e-6 * loss.abs(),
            "{name}, A = {advantage}: loss {} not {loss}",
            found.loss
        );
        for (found, expected) in found.d_logprobs.iter().zip(gradient) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * expected.abs(), "{name}, A = {advantage}: gradient {found} not {expected}");
        }
        assert!((f64::from(found.sequence_ratio[0]) - s).abs() < 1e-6 * s, "{name}: s {}", found.sequence_ratio[0]);
        assert!((f64::from(found.ratio[1]) - 3.0).abs() < 2e-6, "{name}: rho {}", found.ratio[1]);
    }
}

/// The first number above `x`.
fn above(x: f32) -> f32 {
    f32::from_bits(x.to_bits() + 1)
}

pub fn bounds_pass_the_gradient_and_the_next_number_does_not<B: Backend>(backend: &B) {
    let config = Config::ppo_clip(0.2, 0.28);
    let upper = 0.28_f64.ln_1p() as f32;
    // Δ = l − 0 for a negative bound, and 0 − o for a positive one: both are exact.
    let of = |l: f32, o: f32, advantage: f32| {
        let mut case = two_tokens(advantage);
        case.logprobs = vec![l, 0.0];
        case.old_logprobs = Some(vec![o, 0.0]);
        run(backend, &config, &case).d_logprobs[0]
    };
    assert!(of(0.0, -upper, 1.0) < 0.0);
    assert_eq!(of(0.0, -above(upper), 1.0).to_bits(), 0);
    let lower = (-0.2_f64).ln_1p() as f32;
    // The f32 bound lies on either side of the f64 one; one step inside passes for both, one outside for neither.
    assert!(of(f32::from_bits(lower.to_bits() - 1), 0.0, -1.0) > 0.0);
    assert_eq!(of(above(lower), 0.0, -1.0).to_bits(), 0);
    assert_eq!(of(0.0, 0.0, 0.0).to_bits(), 0);
}
