//! Mistakes that others have made, and reported.

use moerl::diagnostics::{self, Diagnostics};
use moerl::objective::{
    Aggregation, CispoCap, Config, DenominatorBasis, Kl, KlForm, Output, Plan, RejectionScope, Saturation, Variant,
    Window, workspace_bytes,
};
use moerl::{Backend, Buffer};

use crate::case::{Case, Uploaded, objectives, run, run_plain};
use crate::common::bits;

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

/// A masked token whose log-ratio is 200 has no part in anything, saturated or not (NeMo-RL #4120).
pub fn a_masked_log_ratio_of_200_changes_nothing<B: Backend>(backend: &B) {
    let clean = Case::random(&[5, 40, 1100], 3).with_mask(3).with_token_advantages(3).with_weights(3).with_terms(3);
    let mut dirty = clean.clone();
    for (u, _) in clean.loss_mask.as_ref().unwrap().iter().enumerate().filter(|(_, mask)| **mask == 0) {
        dirty.logprobs[u] = -1.0;
        dirty.old_logprobs.as_mut().unwrap()[u] = -201.0;
        dirty.ref_logprobs.as_mut().unwrap()[u] = -201.0;
    }
    for config in objectives() {
        for saturation in [Saturation::default(), Saturation::NONE] {
            let config = Config { saturation, ..config.clone() };
            let (expected, found) = (run(backend, &config, &clean), run(backend, &config, &dirty));
            assert_eq!(found.loss.to_bits(), expected.loss.to_bits(), "{config:?}");
            assert_eq!(bits(&found.d_logprobs), bits(&expected.d_logprobs), "{config:?}");
            assert_eq!(found.diagnostics, expected.diagnostics, "{config:?}");
        }
    }
}

/// The value of `k3` weighted by the segment's ratio moves with every token: Liger's backward, c s (l − r), leaves that out.
pub fn a_weighted_divergence_has_its_own_gradient<B: Backend>(backend: &B) {
    let case = Case { advantages: vec![0.0; 2], ..Case::random(&[7, 300], 6).with_terms(6) };
    let config = Config::ppo_clip(0.2, 0.2).with_kl(Kl::new(1.0, KlForm::K3IsSequence));
    let found = run(backend, &config, &case);
    let reference = case.ref_logprobs.as_ref().unwrap();
    let (mut apart, mut size) = (0.0_f64, 0.0_f64);
    for (i, range) in case.segments().ranges().enumerate() {
        let (n, s) = (range.len() as f64, f64::from(found.sequence_ratio[i]));
        let x = |u: usize| f64::from(reference[u]) - f64::from(case.logprobs[u]);
        let mean: f64 = range.clone().map(|u| (x(u).exp_m1() - x(u)) / n).sum();
        let c = 1.0 / (2.0 * n);
        for u in range {
            let exact = c * s * (mean - x(u).exp_m1());
            assert!((f64::from(found.d_logprobs[u]) - exact).abs() <= 2e-6 * (exact.abs() + c * s), "token {u}");
            apart += (exact + c * s * x(u)).powi(2);
            size += exact * exact;
        }
    }
    assert!(apart.sqrt() > 0.05 * size.sqrt(), "a batch on which both agree");
}

/// What calls add up to is what one call makes of the batch: nothing is divided or counted twice (ms-swift #10117, TRL #6024, #5619).
pub fn accumulated_calls_are_one_batch<B: Backend>(backend: &B) {
    let lengths = [40, 1, 0, 900, 17, 1100, 33, 5];
    let case = Case::random(&lengths, 7).with_mask(7).with_terms(7);
    let stream = backend.stream().unwrap();
    for config in objectives() {
        let whole = run(backend, &config, &case);
        let mut loss = backend.upload(&stream, &[f64::NAN]).unwrap();
        let mut sums = backend.upload(&stream, &[f64::NAN; diagnostics::LEN]).unwrap();
        for (at, cut) in [0, 1, 4, 8].windows(2).enumerate() {
            let part = case.part(cut[0]..cut[1]);
            let plan = Plan::new(backend, &stream, &part.segments()).unwrap();
            let input = Uploaded::new(backend, &stream, &part);
            let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan)).unwrap();
            let output = Output {
                loss: Some(loss.view_mut()),
                diagnostics: Some(sums.view_mut()),
                accumulate: at > 0,
                ..Output::new(workspace.view_mut())
            };
            backend.objective(&stream, &config, &plan, input.batch(), output).unwrap();
        }
        let found = backend.download(&stream, loss.view()).unwrap()[0];
        assert!((found - whole.loss).abs() <= 1e-11 * whole.loss.abs().max(1.0), "{found} not {}", whole.loss);
        let sums = Diagnostics::from_sums(&backend.download(&stream, sums.view()).unwrap()).unwrap();
        let expected = Diagnostics::from_sums(&whole.diagnostics).unwrap();
        assert_eq!((sums.tokens, sums.segments), (expected.tokens, expected.segments));
        assert_eq!(sums.empty_segments, expected.empty_segments);
        assert!((sums.loss - expected.loss).abs() <= 1e-11 * expected.loss.abs().max(1.0));
    }
}

/// Tokens that do not count are in no denominator: those of an answer that was cut off and masked (TRL #6369), and those among others (ROLL's
/// mean over tokens).
pub fn what_does_not_count_is_in_no_denominator<B: Backend>(backend: &B) {
    let lengths = [8, 50, 12];
    let mut case = Case { denominators: None, ..Case::random(&lengths, 9) };
    let mut mask = vec![1_u8; 70];
    mask[8..58].fill(0);
    mask[60..63].fill(0);
    case.loss_mask = Some(mask);
    let counted = [8, 0, 9];
    for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean, Aggregation::SeqMeanTokenSum] {
        let config = Config::new(Variant::Gpg).with_aggregation(aggregation);
        let found = run(backend, &config, &case);
        for (i, range) in case.segments().ranges().enumerate() {
            let c = match aggregation {
                Aggregation::TokenMean => 1.0 / 17.0,
                Aggregation::SeqMeanTokenMean => 1.0 / (2.0 * f64::from(counted[i])),
                _ => 0.5,
            };
            for u in range {
                let expected =
                    if case.loss_mask.as_ref().unwrap()[u] == 0 { 0.0 } else { -c * f64::from(case.advantages[i]) };
                let error = (f64::from(found.d_logprobs[u]) - expected).abs();
                assert!(
                    error <= 1e-6 * expected.abs(),
                    "{aggregation:?}: token {u}: {} not {expected}",
                    found.d_logprobs[u]
                );
            }
        }
    }
}

/// Weights are in the gradient as they are in the loss: one that leaves them out has gradients 100 times too large where they are 0.01
/// (Liger #1082). And in the policy's term alone.
pub fn weights_are_in_the_gradient<B: Backend>(backend: &B) {
    let case = Case::random(&[5, 40, 1100], 11).with_mask(11).with_terms(11);
    let weighted = Case { weights: Some(vec![0.01; case.tokens()]), ..case.clone() };
    let by_segment = Case { segment_weights: Some(vec![0.01; 3]), ..case.clone() };
    for config in [
        Config::ppo_clip(0.2, 0.28),
        Config::gspo(0.01, 0.015),
        Config::gspo_token(0.01, 0.015),
        Config::cispo(CispoCap::Raw { max: 2.0 }),
        Config::new(Variant::Gmpo(Window::new(0.2, 0.2))),
    ] {
        let plain = run(backend, &config, &case);
        for weighted in [&weighted, &by_segment] {
            let found = run(backend, &config, weighted);
            assert!((found.loss - 0.01 * plain.loss).abs() <= 1e-6 * plain.loss.abs() * 0.01, "{config:?}");
            for (g, p) in found.d_logprobs.iter().zip(&plain.d_logprobs) {
                // A weight of 0.01 is known to half an ulp, its logarithm to one of 4.6.
                assert!((g - 0.01 * p).abs() <= 2e-6 * (0.01 * p).abs(), "{config:?}: {g} not {}", 0.01 * p);
            }
        }
        let with_kl = config.clone().with_kl(Kl::new(0.1, KlForm::K3));
        let (plain_kl, found) = (run(backend, &with_kl, &case), run(backend, &with_kl, &weighted));
        let moved = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max);
        let kl_alone: Vec<f32> = plain_kl.d_logprobs.iter().zip(&plain.d_logprobs).map(|(all, p)| all - p).collect();
        let left: Vec<f32> = found.d_logprobs.iter().zip(&plain.d_logprobs).map(|(all, p)| all - 0.01 * p).collect();
        let largest = plain_kl.d_logprobs.iter().fold(0.0_f32, |largest, g| largest.max(g.abs()));
        assert!(moved(&kl_alone, &left) <= 1e-6 * f64::from(largest), "{config:?}: the divergence was weighted");
    }
}

/// The window is one of the ratio: log1p(3e-4) is 2.99955e-4, and a mean log-ratio between that and 3e-4 is outside.
pub fn a_window_is_of_the_ratio_and_not_of_its_logarithm<B: Backend>(backend: &B) {
    let between = 2.9998e-4_f32;
    let inside = 2.9993e-4_f32;
    for config in [Config::gspo(3e-4, 3e-4), Config::gspo_token(3e-4, 3e-4)] {
        for n in [1, 5, 40, 1500] {
            let of = |log_ratio: f32, advantage: f32| {
                let case = Case {
                    logprobs: vec![0.0; n],
                    old_logprobs: Some(vec![-log_ratio; n]),
                    advantages: vec![advantage],
                    ..Case::random(&[n], 1)
                };
                run(backend, &config, &case).d_logprobs
            };
            assert!(of(between, 1.0).iter().all(|g| g.to_bits() == 0), "{n} tokens, above");
            assert!(of(inside, 1.0).iter().all(|&g| g < 0.0), "{n} tokens, below");
            // log1p(−3e-4) is −3.00045e-4: what is below −3e-4 may still be inside.
            let of = |log_ratio: f32| {
                let case = Case {
                    logprobs: vec![-log_ratio; n],
                    old_logprobs: Some(vec![0.0; n]),
                    advantages: vec![-1.0],
                    ..Case::random(&[n], 1)
                };
                run(backend, &config, &case).d_logprobs
            };
            assert!(of(3.0002e-4).iter().all(|&g| g > 0.0), "{n} tokens, inside");
            assert!(of(3.0007e-4).iter().all(|g| g.to_bits() == 0), "{n} tokens, outside");
        }
    }
}

/// A rejection that leaves nothing (TRL #4772: a mask of sequences that emptied every row) is a loss of 0, whatever the denominators count.
pub fn a_batch_without_a_kept_token_is_zero<B: Backend>(backend: &B) {
    let case = Case::random(&[5, 40, 1100], 3).with_mask(3);
    let rejected = Case { keep: Some(vec![0; case.tokens()]), ..case };
    for config in [Config::ppo_clip(0.2, 0.28), Config::gspo(0.01, 0.015), Config::gspo_token(0.01, 0.015)] {
        for basis in [DenominatorBasis::Original, DenominatorBasis::AfterRejection] {
            for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean] {
                for denominators in [None, rejected.denominators] {
                    let config = Config {
                        denominator_basis: basis,
                        rejection: RejectionScope::AllTerms,
                        ..config.clone().with_aggregation(aggregation)
                    };
                    let found = run(backend, &config, &Case { denominators, ..rejected.clone() });
                    assert_eq!(found.loss, 0.0, "{config:?}");
                    assert!(found.d_logprobs.iter().all(|g| g.to_bits() == 0), "{config:?}");
                    assert_eq!(found.fault, None, "{config:?}");
                }
            }
        }
    }
}

/// Denominators after a rejection that never took place (verl's convention, in a call without `keep`) are those before it.
pub fn denominators_after_no_rejection_count_every_token<B: Backend>(backend: &B) {
    for lengths in [vec![1; 300], vec![5, 40, 0, 1, 1000], vec![5, 2100]] {
        let case = Case::random(&lengths, 3).with_mask(3);
        for config in objectives() {
            let after = Config { denominator_basis: DenominatorBasis::AfterRejection, ..config.clone() };
            for denominators in [None, case.denominators] {
                let case = Case { denominators, ..case.clone().with_terms(3) };
                let (loss, gradient) = run_plain(backend, &config, &case);
                let (loss_after, gradient_after) = run_plain(backend, &after, &case);
                assert_eq!(bits(&gradient_after), bits(&gradient), "{lengths:?}: {:?}", config.variant);
                assert_eq!(loss_after.to_bits(), loss.to_bits(), "{lengths:?}: {:?}", config.variant);
            }
        }
    }
}
