//! Calls that once went wrong: options and absent arrays that no other test puts together.

use bytemuck::Zeroable;
use moerl::diagnostics::Sum;
use moerl::error::{FaultCode, Kind};
use moerl::objective::{
    Aggregation, Cispo, CispoCap, Coefficient, Config, Kl, KlForm, NonFinite, Output, Phases, Plan, RatioLevel, Sapo,
    Saturation, Variant, Vespo, Window, workspace_bytes,
};
use moerl::{Backend, Buffer, Error, Reference};

use crate::case::{Asking, Case, Uploaded, objectives, run, run_asking, run_plain};

/// Lengths that take one launch of segments of one token, one of short segments, and two.
const WAYS: [&[usize]; 3] = [&[1, 1, 1], &[3, 40, 0, 5], &[3, 2500]];

/// Nothing moves with the entropy where it is in no term.
pub fn without_a_bonus_the_entropys_gradient_is_zero<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    for lengths in WAYS {
        let mut case = Case::random(lengths, 3).with_terms(3);
        case.logprobs[1] = f32::NAN;
        let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
        let input = Uploaded::new(backend, &stream, &case);
        for config in objectives().into_iter().filter(|config| config.entropy_bonus == 0.0) {
            let config = Config { nonfinite: NonFinite::Propagate, ..config };
            let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan)).unwrap();
            let mut d_entropy = backend.upload(&stream, &vec![f32::NAN; case.tokens()]).unwrap();
            let output = Output { d_entropy: Some(d_entropy.view_mut()), ..Output::new(workspace.view_mut()) };
            backend.objective(&stream, &config, &plan, input.batch(), output).unwrap();
            let found = backend.download(&stream, d_entropy.view()).unwrap();
            assert!(found.iter().all(|g| g.to_bits() == 0), "{lengths:?}, {config:?}: {found:?}");
        }
    }
}

/// Where phases know s they know which segments are clipped, as the one call does.
pub fn phases_know_which_segments_are_clipped<B: Backend>(backend: &B) {
    let window = Window::new(0.001, 0.001);
    let cispo = Cispo { level: RatioLevel::Sequence, ..Cispo::new(CispoCap::Window(window)) };
    let divergence = Kl::new(0.1, KlForm::K3IsSequence);
    let case = Case::random(&[3, 40, 0, 5, 1100], 3).with_terms(3);
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
    let input = Uploaded::new(backend, &stream, &case);
    for config in [Config::new(Variant::Cispo(cispo)), Config::ppo_clip(0.001, 0.001).with_kl(divergence)] {
        let whole = run(backend, &config, &case);
        assert!(whole.sequence_clipped.contains(&1));
        let len = config.planes().len() * case.lengths.len();
        let mut sums = backend.allocate::<f64>(&stream, len).unwrap();
        let mut coefficients = backend.upload(&stream, &vec![Coefficient::zeroed(); case.lengths.len()]).unwrap();
        let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan)).unwrap();
        let mut clipped = backend.upload(&stream, &vec![0xff_u8; case.lengths.len()]).unwrap();
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        let output = Output::new(workspace.view_mut());
        backend.objective_partial(&stream, &config, &plan, input.batch(), phases, output).unwrap();
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        let output = Output { sequence_clipped: Some(clipped.view_mut()), ..Output::new(workspace.view_mut()) };
        backend.objective_finish(&stream, &config, &plan, input.batch(), phases, output).unwrap();
        assert_eq!(backend.download(&stream, clipped.view()).unwrap(), whole.sequence_clipped, "{config:?}");
        // Diagnostics count them whether the map is asked for or not.
        let asked = run_asking(backend, &config, &case, Asking { diagnostics: true, ratio: false }).diagnostics;
        for sum in [Sum::SequenceClippedHigh, Sum::SequenceClippedLow, Sum::ClippedHigh, Sum::ClippedLow] {
            assert_eq!(asked[sum as usize], whole.diagnostics[sum as usize], "{sum:?}, {config:?}");
        }
    }
}

/// A segment without a counted token may have anything for its weight and its scale, whether its tokens are counted first or not.
pub fn an_empty_segment_may_have_any_number_of_its_own<B: Backend>(backend: &B) {
    for (lengths, masked) in [(vec![2, 0, 3], 0..0), (vec![2, 4, 3], 2..6), (vec![2, 1100, 3], 2..1102)] {
        let mut case = Case::random(&lengths, 3);
        case.segment_weights = Some(vec![1.0, f32::NAN, 0.5]);
        case.segment_scale = Some(vec![1.0, f32::NAN, 0.5]);
        if !masked.is_empty() {
            case.loss_mask = Some(vec![1; case.tokens()]);
            case.loss_mask.as_mut().unwrap()[masked].fill(0);
        }
        for aggregation in [Aggregation::TokenMean, Aggregation::TokenSum, Aggregation::Custom] {
            for config in objectives().into_iter().filter(|config| !config.has_terms_of_their_own()) {
                let config = config.with_aggregation(aggregation);
                let found = run_asking(backend, &config, &case, Asking::default());
                assert_eq!(found.fault, None, "{lengths:?}, {config:?}");
                assert!(found.loss.is_finite(), "{lengths:?}, {config:?}");
            }
        }
    }
}

trait Terms {
    fn has_terms_of_their_own(&self) -> bool;
}
impl Terms for Config {
    fn has_terms_of_their_own(&self) -> bool {
        self.kl.is_some() || self.mismatch_penalty != 0.0 || self.entropy_bonus != 0.0
    }
}

/// Statistics of tokens are those of what they have of their own: a segment's advantage that is not finite leaves them their ratios, a weight of 0
/// nothing that multiplies −A.
pub fn statistics_are_of_the_token_alone<B: Backend>(backend: &B) {
    for lengths in WAYS {
        let plain = Case::random(lengths, 3);
        let mut unsound = plain.clone();
        unsound.advantages[1] = f32::INFINITY;
        let weightless = Case { weights: Some((0..plain.tokens()).map(|u| (u % 3) as f32).collect()), ..plain };
        for case in [unsound, weightless] {
            for nonfinite in [NonFinite::Propagate, NonFinite::ZeroWeight, NonFinite::DropSegment] {
                let config = Config { nonfinite, ..Config::ppo_clip(0.2, 0.28) };
                let asking = Asking { diagnostics: true, ratio: false };
                let (found, expected) =
                    (run_asking(backend, &config, &case, asking), run_asking(&Reference, &config, &case, asking));
                for sum in [Sum::Ratio, Sum::RatioSquared, Sum::MaxRatio, Sum::MaxNegativeRatio, Sum::Pull] {
                    let (f, e) = (found.diagnostics[sum as usize], expected.diagnostics[sum as usize]);
                    assert!((f - e).abs() <= 2e-5 * e.abs(), "{lengths:?}, {nonfinite:?}: {sum:?}: {f} not {e}");
                }
            }
        }
    }
}

/// A segment that is dropped pulls nothing, whatever its ratio would have been and whether that is asked for.
pub fn a_dropped_segment_pulls_nothing<B: Backend>(backend: &B) {
    for length in [2, 40, 1100] {
        let mut case = Case::random(&[length], 3);
        case.logprobs[0] = f32::NAN;
        for config in [Config::ppo_clip(0.2, 0.28), Config::new(Variant::Vespo(Vespo::default()))] {
            let config = Config { nonfinite: NonFinite::DropSegment, ..config };
            let asking = Asking { diagnostics: true, ratio: false };
            for found in
                [run(backend, &config, &case).diagnostics, run_asking(backend, &config, &case, asking).diagnostics]
            {
                assert_eq!(found[Sum::Pull as usize], 0.0, "{length}, {config:?}");
            }
        }
    }
}

/// What saturates is counted on the side that it is on, wherever the bounds are.
pub fn bounds_on_one_side_of_zero_count_what_is_beyond_them<B: Backend>(backend: &B) {
    let case = Case { logprobs: vec![-1.0, -1.5, -3.0], old_logprobs: Some(vec![-1.0; 3]), ..Case::random(&[3], 1) };
    let config = Config { saturation: Saturation { low: -0.75, high: -0.25 }, ..Config::ppo_clip(0.2, 0.2) };
    let found = run(backend, &config, &case).diagnostics;
    assert_eq!((found[Sum::SaturatedHigh as usize], found[Sum::SaturatedLow as usize]), (1.0, 1.0));
}

/// An infinite weight of a segment is as bad as NaN, also where it multiplies 0.
pub fn an_infinite_segment_weight_shows_in_all_of_its_segment<B: Backend>(backend: &B) {
    for lengths in WAYS {
        let mut case = Case::random(lengths, 3);
        case.segment_weights = Some(vec![1.0; lengths.len()]);
        case.segment_weights.as_mut().unwrap()[1] = f32::INFINITY;
        let own = case.segments().range(1);
        for config in [Config::ppo_clip(0.2, 0.28), Config::gspo(0.2, 0.2), Config::gspo_token(0.2, 0.2)] {
            let config = Config { nonfinite: NonFinite::Propagate, ..config };
            let (loss, gradient) = run_plain(backend, &config, &case);
            assert!(loss.is_nan(), "{lengths:?}, {config:?}: {loss}");
            assert!(gradient[own.clone()].iter().all(|g| g.is_nan()), "{lengths:?}, {config:?}: {gradient:?}");
        }
    }
}

/// A factor of 0 leaves nothing of a ratio that overflows, whichever factor it is.
pub fn an_overflowing_ratio_leaves_no_nan_beside_any_zero<B: Backend>(backend: &B) {
    let sapo = |level| Variant::Sapo(Sapo { level, ..Sapo::default() });
    for lengths in WAYS {
        let tokens = lengths.iter().sum();
        let far = Case {
            logprobs: vec![-1.0; tokens],
            old_logprobs: Some(vec![-131.0; tokens]),
            rollout_logprobs: Some(vec![-131.0; tokens]),
            ref_logprobs: Some(vec![-1.0; tokens]),
            chosen: Some(vec![0; tokens]),
            advantages: vec![-1.0; lengths.len()],
            ..Case::random(lengths, 1)
        };
        let without_advantage = Case { advantages: vec![0.0; lengths.len()], ..far.clone() };
        let without_weight = Case { segment_weights: Some(vec![0.0; lengths.len()]), ..far.clone() };
        for variant in [
            Config::ppo_clip(0.2, 0.2).variant,
            Config::gspo(0.2, 0.2).variant,
            Config::gspo_token(0.2, 0.2).variant,
            Variant::Gmpo(Window::new(0.2, 0.2)),
            Variant::KlCov { penalty: 0.1 },
            Variant::MiniRl(Window::new(0.2, 0.2)),
            sapo(RatioLevel::Token),
            sapo(RatioLevel::Sequence),
        ] {
            let kls = [None, Some(KlForm::K3IsToken), Some(KlForm::K3IsSequence)]
                .map(|form| form.map(|form| Kl::new(0.1, form)));
            for kl in kls {
                let config = Config { kl, saturation: Saturation::NONE, ..Config::new(variant) };
                for case in [&without_advantage, &without_weight] {
                    let (loss, gradient) = run_plain(backend, &config, case);
                    assert!(loss == 0.0, "{lengths:?}, {config:?}: {loss}");
                    assert!(gradient.iter().all(|&g| g == 0.0), "{lengths:?}, {config:?}: {gradient:?}");
                }
            }
        }
        // And with none: far beyond the gate nothing moves.
        let config = Config { saturation: Saturation::NONE, ..Config::new(sapo(RatioLevel::Token)) };
        let (loss, gradient) = run_plain(backend, &config, &far);
        assert!(loss.is_finite() && gradient.iter().all(|&g| g == 0.0), "{lengths:?}: {loss}, {gradient:?}");
    }
}

/// ρ k3 has the gradient ρ(l − r), however far apart the policies are.
pub fn a_weighted_divergence_keeps_its_gradient_far_from_the_reference<B: Backend>(backend: &B) {
    let case = Case {
        logprobs: vec![-70.0],
        old_logprobs: None,
        ref_logprobs: Some(vec![-10.0]),
        advantages: vec![0.0],
        denominators: Some([1, 1, 1, 1]),
        ..Case::random(&[1], 1)
    };
    let config = Config::ppo_clip(0.2, 0.2).with_kl(Kl::new(0.5, KlForm::K3IsToken));
    let found = run_plain(backend, &config, &case).1[0];
    assert!((found + 30.0).abs() <= 3e-5, "{found}");
}

/// Without a denominator the gradient of every token is NaN, also of one that is clipped or weighs nothing.
pub fn without_a_denominator_every_gradient_is_nan<B: Backend>(backend: &B) {
    for lengths in WAYS {
        let case = Case::random(lengths, 3);
        let tokens = case.tokens();
        let mask = Case { loss_mask: Some(vec![1; tokens]), denominators: Some([0; 4]), ..case };
        let weighted = Case { weights: Some((0..tokens).map(|u| (u % 2) as f32).collect()), ..mask.clone() };
        for case in [mask, weighted] {
            for config in objectives() {
                let config = Config { kl: None, mismatch_penalty: 0.0, entropy_bonus: 0.0, ..config };
                if matches!(config.variant, Variant::Gmpo(_)) {
                    continue; // a clipped token has no part in the segment's gradient
                }
                let (loss, gradient) = run_plain(backend, &config, &case);
                assert!(loss.is_nan() && gradient.iter().all(|g| g.is_nan()), "{lengths:?}, {config:?}: {gradient:?}");
            }
        }
    }
}

/// A denominator of 0 is no fault of a segment that is dropped.
pub fn a_dropped_segment_divides_by_nothing<B: Backend>(backend: &B) {
    for length in [1, 40, 1100] {
        let mut case =
            Case { loss_mask: Some(vec![1; length]), denominators: Some([0; 4]), ..Case::random(&[length], 1) };
        case.logprobs[0] = f32::NAN;
        for config in [Config::ppo_clip(0.2, 0.2), Config::gspo(0.2, 0.2)] {
            let found = run(backend, &Config { nonfinite: NonFinite::DropSegment, ..config }, &case);
            assert!(matches!(&found.fault, Some(Error::Data(fault)) if fault.code == FaultCode::NonfiniteInput));
            assert_eq!(found.loss, 0.0);
        }
    }
}

/// Sums and coefficients are taken several words at once.
pub fn misaligned_sums_are_refused<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let config = Config::gspo(0.2, 0.2);
    let case = Case::random(&[3], 1);
    let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
    let input = Uploaded::new(backend, &stream, &case);
    let mut sums = backend.allocate::<f64>(&stream, config.planes().len() + 1).unwrap();
    let mut coefficients = backend.upload(&stream, &[Coefficient::zeroed(); 2]).unwrap();
    let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan)).unwrap();
    let (at_sums, at_coefficients) = (sums.view_mut().address() + 4, coefficients.view_mut().address() + 8);
    // SAFETY: both lie within their buffers, and are refused before anything is read or written.
    let phases = unsafe {
        Phases {
            sums: moerl::memory::ViewMut::from_raw(at_sums, config.planes().len()),
            coefficients: moerl::memory::ViewMut::from_raw(at_coefficients, 1),
        }
    };
    let output = Output::new(workspace.view_mut());
    let refused = backend.objective_partial(&stream, &config, &plan, input.batch(), phases, output).unwrap_err();
    assert!(refused.is(Kind::Alignment), "{refused}");
    for name in ["sums: address", "coefficients: address"] {
        assert!(refused.to_string().contains(name), "{refused}");
    }
}
