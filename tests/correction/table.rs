//! Values that can be checked by hand.

use approx::assert_abs_diff_eq;
use moerl::Backend;
use moerl::correction::{Config, Divergence, Global, Level, Metropolis, NonFinite, Over, Rejection, Repeats, Weight};
use moerl::error::FaultCode;

use crate::case::{Case, run, run_in_pieces};

/// f32 log-probabilities: a ratio is known to a few ulp.
fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f64::from(*f) - e).abs() <= 1e-6 * e.abs().max(0.1), "{found:?} not {expected:?}");
    }
}

/// ln of every ratio, as one token each.
fn ratios(values: &[f64]) -> Case {
    Case::of_log_ratios(&values.iter().map(|x| x.ln() as f32).collect::<Vec<_>>())
}

pub fn token_weights_have_the_values_of_the_table<B: Backend>(backend: &B) {
    let case = ratios(&[2.0, 1.0, 0.25, 6.0]);
    let level = Level::Token;
    for (weight, expected) in [
        (Weight::One, [1.0, 1.0, 1.0, 1.0]),
        (Weight::Truncated { level, max: 1.5 }, [1.5, 1.0, 0.25, 1.5]),
        (Weight::Clamped { level, low: 0.5, high: 5.0 }, [2.0, 1.0, 0.5, 5.0]),
        (Weight::Band { level, low: 0.5, high: 5.0 }, [2.0, 1.0, 0.0, 0.0]),
    ] {
        assert_close(&run(backend, &Config::new(weight), &case).weights, &expected);
    }
}

pub fn segment_weights_have_the_values_of_the_table<B: Backend>(backend: &B) {
    // Two segments of two tokens: ratios 2 · 3 and .5 · .5.
    let mut case = ratios(&[2.0, 3.0, 0.5, 0.5]);
    case.lengths = vec![2, 2];
    let of = |weight| run(backend, &Config::new(weight), &case);
    let level = Level::Sequence;
    let found = of(Weight::Truncated { level, max: 5.0 });
    assert_close(&found.segment_weights, &[5.0, 0.25]);
    assert_close(&found.weights, &[5.0, 5.0, 0.25, 0.25]);
    let found = of(Weight::Truncated { level: Level::Geometric, max: 5.0 });
    assert_close(&found.segment_weights, &[6f64.sqrt(), 0.5]);
    assert_abs_diff_eq!(found.segment_log_weights[0], 6f64.ln() / 2.0, epsilon = 1e-7);
    // TRL: the product, and nothing above 3.
    assert_close(&of(Weight::Band { level, low: 0.0, high: 3.0 }).segment_weights, &[0.0, 0.25]);
    let found = of(Weight::SequenceMasked { low: 0.4, high: 2.0 });
    assert_close(&found.weights, &[0.0, 0.0, 0.5, 0.5]);
    assert_close(&found.segment_weights, &[0.0, 1.0]);
}

pub fn saturation_bounds_a_sum_after_it_was_summed<B: Backend>(backend: &B) {
    let mut case = Case::of_log_ratios(&[-15.0, -15.0, 14.0, -30.0]);
    case.lengths = vec![3, 1];
    let found = run(backend, &Config::tis(Level::Sequence, 1e30), &case);
    // −16 is inside although −15 − 15 was not; −30 is not.
    assert_close(&found.segment_weights, &[(-16f64).exp(), (-20f64).exp()]);
    assert_eq!(found.segment_log_weights, [-16.0, -30.0]);
}

pub fn a_renormalised_rollout_has_ratio_one<B: Backend>(backend: &B) {
    // top-p .9: q was divided by the mass that was kept (TRL #6789).
    let mut case = ratios(&[1.0, 1.0]);
    case.old_logprobs = vec![0.3_f64.ln() as f32; 2];
    case.rollout_logprobs = vec![(0.3 / 0.9_f64).ln() as f32; 2];
    assert_close(&run(backend, &Config::tis(Level::Token, 9.0), &case).weights, &[0.9, 0.9]);
    case.kept_log_mass = Some(vec![0.9_f64.ln() as f32; 2]);
    assert_close(&run(backend, &Config::tis(Level::Token, 9.0), &case).weights, &[1.0, 1.0]);
}

pub fn repeated_old_logprobs_are_averaged_as_configured<B: Backend>(backend: &B) {
    let mut case = ratios(&[1.0, 1.0]);
    let probabilities = [0.2_f64, 0.4, 0.3, 0.5];
    // Two repetitions of two tokens, q = 1.
    case.old_logprobs = probabilities.iter().map(|p| p.ln() as f32).collect();
    case.rollout_logprobs = vec![0.0, 0.0];
    let config = Config::tis(Level::Token, 9.0);
    assert_close(&run(backend, &config, &case).weights, &[0.25, 0.45]);
    let mean = Config { repeats: Repeats::Mean, ..config };
    assert_close(&run(backend, &mean, &case).weights, &[0.06_f64.sqrt(), 0.2_f64.sqrt()]);
}

pub fn rejections_keep_what_their_bounds_say<B: Backend>(backend: &B) {
    // Segments of two: δ of (.1, −.3), (.5, .5), (−2, 0).
    let mut case = Case::of_log_ratios(&[0.1, -0.3, 0.5, 0.5, -2.0, 0.0]);
    case.lengths = vec![2, 2, 2];
    let e = f64::exp;
    let divergence = |estimate, over| Rejection::Divergence { estimate, over };
    let k1 = Divergence::K1 { low: e(-0.4), high: e(0.4) };
    for (rejection, keep) in [
        (Rejection::Band { level: Level::Token, low: e(-0.2), high: e(0.4) }, [1, 0, 0, 0, 0, 1]),
        (Rejection::Band { level: Level::Sequence, low: e(-0.4), high: e(0.9) }, [1, 1, 0, 0, 0, 0]),
        (Rejection::Band { level: Level::Geometric, low: e(-0.4), high: e(0.6) }, [1, 1, 1, 1, 0, 0]),
        (divergence(k1, Over::Token), [1, 1, 0, 0, 0, 1]),
        (divergence(k1, Over::Sum), [1, 1, 0, 0, 0, 0]),
        (divergence(k1, Over::Mean), [1, 1, 0, 0, 0, 0]),
        // δ²/2: (.005, .045), (.125, .125), (2, 0).
        (divergence(Divergence::K2(0.1), Over::Token), [1, 1, 0, 0, 0, 1]),
        (divergence(Divergence::K2(0.2), Over::Sum), [1, 1, 0, 0, 0, 0]),
        (divergence(Divergence::K2(0.2), Over::Mean), [1, 1, 1, 1, 0, 0]),
        (divergence(Divergence::K2(1.9), Over::Max), [1, 1, 1, 1, 0, 0]),
        // expm1(δ) − δ: (.0052, .0408), (.1487, .1487), (1.1353, 0).
        (divergence(Divergence::K3(0.1), Over::Token), [1, 1, 0, 0, 0, 1]),
        (divergence(Divergence::K3(0.2), Over::Sum), [1, 1, 0, 0, 0, 0]),
        (divergence(Divergence::K3(0.2), Over::Mean), [1, 1, 1, 1, 0, 0]),
        (divergence(Divergence::K3(1.1), Over::Max), [1, 1, 1, 1, 0, 0]),
        (Rejection::Veto { low: e(-1.0), high: f64::INFINITY }, [1, 1, 1, 1, 0, 0]),
        (Rejection::Veto { low: 0.0, high: e(0.4) }, [1, 1, 0, 0, 1, 1]),
    ] {
        let found = run(backend, &Config::default().with_rejection(rejection), &case);
        assert_eq!(found.keep, keep, "{rejection:?}");
        let kept: Vec<u32> = keep.chunks(2).map(|pair| u32::from(pair[0] + pair[1])).collect();
        assert_eq!(found.kept, kept, "{rejection:?}");
        let rejected = keep.iter().filter(|&&k| k == 0).count() as u64;
        let segments = keep.chunks(2).filter(|pair| pair.contains(&0)).count() as u64;
        assert_eq!(found.rejected[..2], [rejected, segments], "{rejection:?}");
        assert_eq!(found.globals[Global::KeptTokens as usize], kept.iter().sum::<u32>().into());
        assert!(found.weights.iter().all(|&w| w == 1.0), "a rejection changes no weight");
    }
    // Combined by AND, counted one by one.
    let both = Config::default()
        .with_rejection(Rejection::Veto { low: e(-1.0), high: f64::INFINITY })
        .with_rejection(Rejection::Band { level: Level::Token, low: e(-0.2), high: e(0.4) });
    let found = run(backend, &both, &case);
    assert_eq!((&found.keep[..], &found.rejected[..4]), (&[1, 0, 0, 0, 0, 0][..], &[2, 1, 4, 3][..]));
}

pub fn verls_k1_is_of_the_negative_log_ratio<B: Backend>(backend: &B) {
    let case = Case::of_log_ratios(&[0.1, -0.3, 0.5]);
    // −δ in [ln .8, ln 1.2] = [−.223, .182]
    let config = Config::default().with_rejection(Rejection::verl_k1(Over::Token, 0.8, 1.2));
    assert_eq!(run(backend, &config, &case).keep, [1, 0, 0]);
}

pub fn off_policy_answers_are_masked_where_they_are_bad<B: Backend>(backend: &B) {
    // mean(q − l) = .2, .2, −.2.
    let mut case = Case::of_log_ratios(&[-0.2, -0.2, 0.2]);
    case.advantages = Some(vec![1.0, -1.0, -1.0]);
    let config = Config::default().with_rejection(Rejection::OffPolicySequence { threshold: 0.1 });
    assert_eq!(run(backend, &config, &case).keep, [1, 0, 1]);
    // With o in place of l, D makes up for it.
    case.current_log_ratio = Some(vec![0.0, 0.15, -0.5]);
    assert_eq!(run(backend, &config, &case).keep, [1, 1, 0]);
    // An A per token: the sign of its sum.
    let mut case = Case::of_log_ratios(&[-0.2, -0.2, -0.2, -0.2]);
    case.lengths = vec![2, 2];
    case.advantages = Some(vec![1.0, -2.0, 2.0, -1.0]);
    assert_eq!(run(backend, &config, &case).keep, [0, 0, 1, 1]);
}

pub fn turns_are_weighted_and_rejected_one_by_one<B: Backend>(backend: &B) {
    // One segment: a turn of ratios 2, 2; a gap; a turn of ratio .5, .125.
    let mut case = ratios(&[2.0, 2.0, 1.0, 0.5, 0.125]);
    case.lengths = vec![5];
    case.loss_mask = Some(vec![1, 1, 0, 1, 1]);
    case.has_turns = true;
    assert_eq!(case.turn_offsets(), [0, 3, 5]);
    let found = run(backend, &Config::tis(Level::Turn, 1.5), &case);
    assert_close(&found.weights, &[1.5, 1.5, 0.0, 0.25, 0.25]);
    assert_close(&found.segment_weights, &[1.0]);
    let band = Config::default().with_rejection(Rejection::Band { level: Level::Turn, low: 0.5, high: 4.0 });
    let found = run(backend, &band, &case);
    assert_eq!((&found.keep[..], &found.kept[..], &found.rejected[..2]), (&[1, 1, 0, 0, 0][..], &[2][..], &[2, 1][..]));
}

pub fn the_batch_may_normalise_its_weights<B: Backend>(backend: &B) {
    let mut case = ratios(&[2.0, 1.0, 0.5, 4.0]);
    let normalised = |level| Config { batch_normalise: true, ..Config::tis(level, 2.0) };
    // (2 + 1 + .5 + 2) / 4 = 1.375
    let found = run(backend, &normalised(Level::Token), &case);
    assert_close(&found.weights, &[2.0 / 1.375, 1.0 / 1.375, 0.5 / 1.375, 2.0 / 1.375]);
    // Products 2, .5, 4: (2 + .5 + 2) / 3 = 1.5, one a segment whatever its length.
    case.lengths = vec![2, 1, 1];
    let found = run(backend, &normalised(Level::Sequence), &case);
    assert_close(&found.segment_weights, &[2.0 / 1.5, 0.5 / 1.5, 2.0 / 1.5]);
    assert_close(&found.weights, &[2.0 / 1.5, 2.0 / 1.5, 0.5 / 1.5, 2.0 / 1.5]);
    // A mean of at most 1e-8 divides nothing.
    let tiny = Config { batch_normalise: true, ..Config::tis(Level::Token, 1e-9) };
    assert_close(&run(backend, &tiny, &case).weights, &[1e-9; 4]);
}

/// A weight of 0 is one: the mean is over the tokens of segments that are masked or dropped, too.
pub fn the_mean_is_of_weights_that_a_segment_set_to_0<B: Backend>(backend: &B) {
    let mut case = ratios(&[2.0, 1.0, 0.5, 4.0]);
    case.lengths = vec![2, 1, 1];
    // Geometric means √2, .5, 4: only the first is inside. (2 + 1) / 4 = .75
    let masked = Config { batch_normalise: true, ..Config::new(Weight::SequenceMasked { low: 0.9, high: 1.5 }) };
    let normalised = [2.0 / 0.75, 1.0 / 0.75, 0.0, 0.0];
    assert_close(&run(backend, &masked, &case).weights, &normalised);
    case.old_logprobs[3] = f32::NAN;
    let dropped = Config { batch_normalise: true, nonfinite: NonFinite::DropSegment, ..Config::tis(Level::Token, 9.0) };
    assert_close(&run(backend, &dropped, &case).weights, &[2.0 / 0.875, 1.0 / 0.875, 0.5 / 0.875, 0.0]);
    // In phases, of which the last divides.
    for config in [&masked, &dropped] {
        let whole = run_in_pieces(backend, config, &case, &[case.piece(|_| true)], false);
        assert_close(&whole.0, &run(backend, config, &case).weights.iter().map(|&w| w.into()).collect::<Vec<_>>());
    }
}

pub fn a_group_normalises_its_own_weights<B: Backend>(backend: &B) {
    let mut case = ratios(&[2.0, 7.0, 1.0, 1.0]);
    case.groups = Some(vec![3, 9, 3, 3]);
    case.rewards = Some(vec![1.0, 5.0, 0.0, 0.5]);
    let weight = Weight::SelfNormalised { level: Level::Sequence, leave_one_out: true };
    let found = run(backend, &Config::new(weight).with_diagnostics(), &case);
    assert_close(&found.segment_weights, &[1.5, 1.0, 0.75, 0.75]);
    // b = (1/4, 0, 5/6, 2/3)
    assert_close(&found.advantages, &[0.75, 5.0, -5.0 / 6.0, -1.0 / 6.0]);
    let diagnostics = moerl::correction::Diagnostics::from_sums(&found.diagnostics, false).unwrap();
    // ESS of the group of three 2.666667, of the group of one 1.
    assert_abs_diff_eq!(diagnostics.ess_group_fraction.unwrap(), (8.0 / 3.0 + 1.0) / 4.0, epsilon = 1e-6);
    // Far below what exp can hold: relative weights 1, 1/e, 1/e.
    case = Case::of_log_ratios(&[-2000.0, 7.0, -2001.0, -2001.0]);
    case.groups = Some(vec![3, 9, 3, 3]);
    let weight = Weight::SelfNormalised { level: Level::Sequence, leave_one_out: false };
    let (first, others) = (3.0 / (1.0 + 2.0 / 1f64.exp()), 3.0 / (1f64.exp() + 2.0));
    assert_close(&run(backend, &Config::new(weight), &case).segment_weights, &[first, 1.0, others, others]);
}

pub fn rejected_segments_leave_their_group<B: Backend>(backend: &B) {
    let mut case = ratios(&[2.0, 1.0, 1.0, 1000.0]);
    case.groups = Some(vec![0; 4]);
    let config = Config::new(Weight::SelfNormalised { level: Level::Sequence, leave_one_out: false })
        .with_rejection(Rejection::Veto { low: 0.0, high: 100.0 });
    let found = run(backend, &config, &case);
    assert_close(&found.segment_weights, &[1.5, 0.75, 0.75, 0.0]);
    assert_eq!(found.keep, [1, 1, 1, 0]);
}

pub fn one_member_may_outweigh_the_others_by_far<B: Backend>(backend: &B) {
    // The baseline of the first is the mean of the others, which its own weight would drown in a difference.
    let mut case = Case::of_log_ratios(&[0.0, -40.0, -40.0]);
    case.groups = Some(vec![0; 3]);
    case.rewards = Some(vec![1.0, 0.25, 0.75]);
    let weight = Weight::SelfNormalised { level: Level::Sequence, leave_one_out: true };
    let found = run(backend, &Config::new(weight), &case);
    assert_close(&found.advantages, &[0.5, -0.75, -0.25]);
}

fn metropolis(mode: Metropolis) -> Config {
    Config::new(Weight::Metropolis { level: Level::Sequence, mode, seed: 1 })
}

pub fn a_chain_with_given_uniforms_has_the_values_of_the_table<B: Backend>(backend: &B) {
    let mut case = Case::of_log_ratios(&[0.0, 0.5_f32.ln(), 2_f32.ln()]);
    case.groups = Some(vec![5; 3]);
    case.uniforms = Some(vec![0.1, 0.7, 0.9]);
    let found = run(backend, &metropolis(Metropolis::Multiplicity), &case);
    assert_eq!((&found.accepted[..], &found.multiplicity[..]), (&[1, 0, 1][..], &[2, 0, 1][..]));
    assert_eq!((&found.segment_weights[..], &found.carry_multiplicity[..]), (&[2.0, 0.0, 1.0][..], &[0][..]));
    assert_abs_diff_eq!(found.carry_log_weights[0], 2f64.ln(), epsilon = 1e-7);
    assert_eq!(run(backend, &metropolis(Metropolis::Mask), &case).segment_weights, [1.0, 0.0, 1.0]);
    // A state that was carried in, and that none can replace.
    case.carried = Some(vec![100f64.ln()]);
    case.uniforms = Some(vec![0.5; 3]);
    let found = run(backend, &metropolis(Metropolis::Multiplicity), &case);
    assert_eq!((&found.accepted[..], &found.multiplicity[..]), (&[0, 0, 0][..], &[0, 0, 0][..]));
    assert_eq!((found.carry_multiplicity[0], found.carry_log_weights[0]), (3, 100f64.ln()));
}

pub fn the_balance_heuristic_has_the_values_of_the_table<B: Backend>(backend: &B) {
    let mut case = ratios(&[1.0, 1.0]);
    case.target_logprobs = Some(vec![0.4_f64.ln(), -3000.0]);
    // The second segment: only the second proposal can make it, with p/q = 2, so that W = 4; far below what exp can hold.
    case.proposal_logprobs = Some(vec![0.2_f64.ln(), 0.6_f64.ln(), f64::NEG_INFINITY, -3000.0 - 2f64.ln()]);
    let config = Config::new(Weight::MultipleImportance { proportions: vec![0.5, 0.5] });
    let found = run(backend, &config, &case);
    assert_close(&found.segment_weights, &[1.0, 4.0]);
    assert_eq!(found.fault, None);
    case.proposal_logprobs.as_mut().unwrap()[3] = f64::NEG_INFINITY;
    let found = run(backend, &config, &case);
    assert_eq!(found.segment_weights[1], 0.0);
    match found.fault {
        Some(moerl::Error::Data(fault)) => assert_eq!((fault.row, fault.code), (1, FaultCode::SegmentInput)),
        other => panic!("no fault: {other:?}"),
    }
}

pub fn the_token_form_of_the_test_is_speculative<B: Backend>(backend: &B) {
    let mut case = Case::of_log_ratios(&[0.5, -0.5, -0.5, -3.0]);
    case.lengths = vec![4];
    case.uniforms = Some(vec![0.99, 0.6, 0.61, 0.01]);
    let config = Config::new(Weight::Metropolis { level: Level::Token, mode: Metropolis::Mask, seed: 0 });
    // e^−.5 = .60653
    assert_eq!(run(backend, &config, &case).weights, [1.0, 1.0, 0.0, 1.0]);
    // What has a ratio of 1 is accepted, also by this id's number, which f32 cannot tell from 1.
    let mut case = Case::of_log_ratios(&[0.0]);
    case.segment_ids = Some(vec![27_838_773]);
    assert_eq!(run(backend, &config, &case).weights, [1.0]);
}
