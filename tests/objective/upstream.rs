//! Mistakes that others have made, and reported.

use moerl::Backend;
use moerl::objective::{Aggregation, Config, Saturation};

use crate::case::{Case, run};

/// Dr. GRPO without the mean over the batch (verl #3741) grows with the batch.
pub fn a_normalised_sum_is_a_mean_over_the_batch<B: Backend>(backend: &B) {
    let config = Config::ppo_clip(0.2, 0.2).with_aggregation(Aggregation::SeqMeanTokenSumNorm);
    let one = Case { denominators: Some([5, 1, 1, 8]), ..Case::random(&[5], 1) };
    let three = Case { denominators: Some([15, 3, 1, 8]), ..one.behind(&one.behind(&one)) };
    let (one, three) = (run(backend, &config, &one).loss, run(backend, &config, &three).loss);
    assert!((one - three).abs() <= 1e-6 * one.abs(), "{one}, {three}");
}

/// LUSPO multiplies by the length once (TRL #6654; Liger multiplies twice): every token's gradient is A/B.
pub fn luspo_weighs_every_token_alike<B: Backend>(backend: &B) {
    let case = Case {
        old_logprobs: None,
        advantages: vec![1.0, 1.0],
        denominators: Some([10, 2, 1, 8]),
        ..Case::random(&[2, 8], 1)
    };
    let found = run(backend, &Config::luspo(3e-4, 4e-4), &case);
    assert!(found.d_logprobs.iter().all(|&g| (g + 0.5).abs() < 1e-6), "{:?}", found.d_logprobs);
    assert!((found.loss + 5.0).abs() < 1e-6, "{}", found.loss);
}

/// exp overflows at a log-ratio of 89 where nothing saturates it (OpenRLHF #1293); what is infinite then is only what it multiplies, not what is
/// 0 beside it (prime-rl #2084, OpenRLHF #1314).
pub fn an_overflowing_ratio_makes_no_nan<B: Backend>(backend: &B) {
    let case = |advantage: f32| Case {
        logprobs: vec![-1.0; 4],
        old_logprobs: Some(vec![-101.0; 4]),
        advantages: vec![advantage],
        ..Case::random(&[4], 1)
    };
    for config in [Config::gspo(0.2, 0.2), Config::gspo_token(0.2, 0.2), Config::ppo_clip(0.2, 0.2)] {
        let open = Config { saturation: Saturation::NONE, ..config.clone() };
        // Clipped from above: the value is that of the bound.
        let found = run(backend, &open, &case(1.0));
        assert!((found.loss + 1.2).abs() < 1e-6, "{}", found.loss);
        assert!(found.d_logprobs.iter().all(|g| g.to_bits() == 0), "{:?}", found.d_logprobs);
        // Weighted with 0, or masked: nothing is left.
        let weighted = Case { weights: Some(vec![0.0; 4]), ..case(-1.0) };
        let masked = Case { loss_mask: Some(vec![0; 4]), ..case(-1.0) };
        for nothing in [weighted, masked] {
            let found = run(backend, &open, &nothing);
            assert_eq!(found.loss, 0.0, "{config:?}");
            assert!(found.d_logprobs.iter().all(|g| g.to_bits() == 0), "{:?}", found.d_logprobs);
        }
        // And the default saturates.
        let found = run(backend, &config, &case(-1.0));
        assert!(found.loss.is_finite() && found.d_logprobs.iter().all(|&g| g == 0.0));
    }
}
