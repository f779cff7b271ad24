//! What is wrong with a call or its data, and what comes of it.

use approx::assert_abs_diff_eq;
use bytemuck::Zeroable;
use moerl::diagnostics::Diagnostics;
use moerl::error::{FaultCode, Kind};
use moerl::objective::{
    Cap, Coefficient, Config, Denominators, NonFinite, Output, Phases, Plan, Plane, Segments, Variant, Window,
    workspace_bytes,
};
use moerl::{Backend, Buffer, Error};

use crate::case::{Case, Uploaded, objectives, run, try_run};
use crate::common::bits;

/// The batch as the objective takes it: GMPO with one advantage a segment.
fn fitting(config: &Config, case: &Case) -> Case {
    let case = case.clone();
    if matches!(config.variant, Variant::Gmpo(_)) { case.with_one_advantage_a_segment() } else { case }
}

pub fn masked_tokens_may_hold_anything<B: Backend>(backend: &B) {
    for lengths in [vec![5, 60, 3, 1], vec![1500], vec![0, 17, 17, 17]] {
        let rich = Case::random(&lengths, 2).with_mask(2).with_weights(2).with_token_advantages(2).with_terms(2);
        for config in objectives() {
            let clean = fitting(&config, &rich);
            let mut dirty = clean.clone();
            for (u, &mask) in clean.loss_mask.as_ref().unwrap().iter().enumerate().filter(|(_, mask)| **mask == 0) {
                assert_eq!(mask, 0);
                let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 500.0][u % 4];
                dirty.logprobs[u] = bad;
                dirty.old_logprobs.as_mut().unwrap()[u] = bad;
                dirty.advantages[u] = bad;
                for array in
                    [&mut dirty.weights, &mut dirty.rollout_logprobs, &mut dirty.ref_logprobs, &mut dirty.entropy]
                {
                    array.as_mut().unwrap()[u] = bad;
                }
            }
            let (expected, found) = (run(backend, &config, &clean), run(backend, &config, &dirty));
            assert_eq!(found.loss.to_bits(), expected.loss.to_bits());
            for (u, (f, e)) in found.d_logprobs.iter().zip(&expected.d_logprobs).enumerate() {
                assert_eq!(f.to_bits(), e.to_bits(), "token {u}");
                assert!(clean.loss_mask.as_ref().unwrap()[u] != 0 || f.to_bits() == 0, "token {u}: {f}");
            }
            assert_eq!(found.fault, None);
        }
    }
}

pub fn nothing_to_count_is_zero<B: Backend>(backend: &B) {
    for config in objectives() {
        for lengths in [vec![], vec![0, 0], vec![3, 2000]] {
            let mut case = Case::random(&lengths, 1).with_terms(1);
            case.loss_mask = Some(vec![0; case.tokens()]);
            case.denominators = Some([0, 0, 0, 1]);
            // The advantage of a segment that does not count may be anything.
            case.advantages.fill(f32::NAN);
            let found = run(backend, &config, &case);
            assert_eq!(found.loss, 0.0, "{lengths:?}");
            assert!(found.d_logprobs.iter().all(|g| g.to_bits() == 0), "{lengths:?}");
            assert!(found.sequence_ratio.iter().all(|&ratio| ratio == 1.0), "{lengths:?}");
            assert_eq!(found.fault, None, "{lengths:?}");
        }
    }
}

fn code(fault: &Option<Error>) -> (u64, u16, FaultCode) {
    match fault {
        Some(Error::Data(fault)) => (fault.row, fault.tag, fault.code),
        other => panic!("no fault: {other:?}"),
    }
}

pub fn a_token_that_is_not_finite_is_handled_as_configured<B: Backend>(backend: &B) {
    // Segment 1 is touched, in a unit of several segments and on its own.
    for lengths in [vec![4, 6, 5], vec![40, 1200, 30]] {
        let rich = Case::random(&lengths, 9).with_token_advantages(9).with_weights(9).with_terms(9);
        let at = lengths[0] + 2;
        let own = lengths[0]..lengths[0] + lengths[1];
        for (which, value) in [(0, f32::NAN), (0, f32::NEG_INFINITY), (1, f32::INFINITY), (2, f32::NAN), (3, f32::NAN)]
        {
            for config in objectives() {
                let clean = fitting(&config, &rich);
                let mut case = clean.clone();
                match which {
                    0 => case.logprobs[at] = value,
                    1 => case.old_logprobs.as_mut().unwrap()[at] = value,
                    2 => case.advantages[at] = value,
                    _ => case.weights.as_mut().unwrap()[at] = value,
                }
                let untouched = run(backend, &config, &clean);
                let of = |nonfinite| run(backend, &Config { nonfinite, ..config.clone() }, &case);
                let policies = [NonFinite::Propagate, NonFinite::ZeroWeight, NonFinite::DropSegment];
                let all = policies.map(of);
                for (policy, found) in policies.into_iter().zip(&all) {
                    assert_eq!(code(&found.fault), (at as u64, 7, FaultCode::NonfiniteInput), "{policy:?}");
                    for u in (0..case.tokens()).filter(|u| !own.contains(u)) {
                        assert_eq!(found.d_logprobs[u].to_bits(), untouched.d_logprobs[u].to_bits(), "{policy:?}: {u}");
                    }
                }
                let [shown, found, dropped] = all;
                assert!(shown.loss.is_nan() && shown.d_logprobs[at].is_nan());
                assert!(dropped.loss.is_finite() && dropped.d_logprobs[own.clone()].iter().all(|g| g.to_bits() == 0));
                assert!(found.loss.is_finite() && found.d_logprobs.iter().all(|g| g.is_finite()));
                assert_eq!(found.d_logprobs[at].to_bits(), 0);
                let zero_weight = Config { nonfinite: NonFinite::ZeroWeight, ..config.clone() };
                let expected = run(&moerl::Reference, &zero_weight, &case);
                assert_abs_diff_eq!(found.loss, expected.loss, epsilon = 8e-6);
            }
        }
    }
    // A segment's advantage that is not finite concerns all its tokens.
    for lengths in [vec![4, 6, 5], vec![40, 1200, 30]] {
        let mut case = Case::random(&lengths, 9).with_terms(9);
        case.advantages[1] = f32::NAN;
        for config in objectives() {
            let found = run(backend, &config, &case);
            assert_eq!(code(&found.fault), (lengths[0] as u64, 7, FaultCode::NonfiniteInput));
            assert!(found.loss.is_finite());
            assert!(found.d_logprobs[lengths[0]..lengths[0] + lengths[1]].iter().all(|g| g.to_bits() == 0));
        }
    }
}

/// The first segment whose tokens do not share one is named, however long it is; the loss is of their mean, every ratio is clipped by the sign of
/// its own. Tokens that are masked, rejected or not finite have no part in it.
pub fn gmpo_reports_advantages_that_vary_inside_a_segment<B: Backend>(backend: &B) {
    let config = Config::new(Variant::Gmpo(Window::new(0.2, 0.2)));
    // In a unit of several segments, in one of its own, in tiles of one group of 32, and of several.
    for (lengths, segment, at) in [
        (vec![4, 6, 5], 1, 3),
        (vec![40, 300, 30], 1, 250),
        (vec![0, 1000, 700], 1, 999),
        (vec![3, 2500, 5], 1, 1024),
        (vec![3, 34_000, 5], 1, 33_900),
    ] {
        let mut clean = Case::random(&lengths, 3).with_mask(3).with_token_advantages(3).with_one_advantage_a_segment();
        let u = clean.segments().range(segment).start + at;
        clean.loss_mask.as_mut().unwrap()[u] = 1;
        assert_eq!(run(backend, &config, &clean).fault, None, "{lengths:?}");
        let mut varying = clean.clone();
        varying.advantages[u] = f32::from_bits(varying.advantages[u].to_bits() + 1);
        let named = (segment as u64, 7, FaultCode::VaryingAdvantage);
        assert_eq!(code(&run(backend, &config, &varying).fault), named, "{lengths:?}");

        let excused = |change: &dyn Fn(&mut Case)| {
            let mut case = varying.clone();
            change(&mut case);
            assert_eq!(run(backend, &config, &case).fault, None, "{lengths:?}");
        };
        excused(&|case| case.loss_mask.as_mut().unwrap()[u] = 0);
        excused(&|case| {
            case.keep = Some(vec![1; case.tokens()]);
            case.keep.as_mut().unwrap()[u] = 0;
        });
        let mut odd = varying.clone();
        odd.advantages[u] = f32::NAN;
        assert_eq!(code(&run(backend, &config, &odd).fault), (u as u64, 7, FaultCode::NonfiniteInput), "{lengths:?}");

        // Of the last segment too: still the first is named. Both signs, so that tokens are clipped by their own.
        let last = varying.tokens() - 1;
        (varying.advantages[last], varying.loss_mask.as_mut().unwrap()[last]) = (-3.0, 1);
        varying.advantages[u] *= -2.0;
        let (found, expected) = (run(backend, &config, &varying), run(&moerl::Reference, &config, &varying));
        assert_eq!(code(&found.fault), named, "{lengths:?}");
        assert_eq!(found.fault, expected.fault, "{lengths:?}");
        assert!((found.loss - expected.loss).abs() <= 8e-6, "{lengths:?}: {} not {}", found.loss, expected.loss);
        // The variants that take an advantage of every token say nothing.
        assert_eq!(run(backend, &Config::gspo(0.01, 0.015), &varying).fault, None, "{lengths:?}");
    }
}

/// Of a segment in pieces no call sees all tokens: that its sums have both signs shows when they are added up.
pub fn gmpo_reports_sums_of_both_signs<B: Backend>(backend: &B) {
    let config = Config::new(Variant::Gmpo(Window::new(0.2, 0.2)));
    let case = Case::random(&[4, 4], 3).with_token_advantages(3);
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
    let input = Uploaded::new(backend, &stream, &case);
    for (negative, expected) in [(0.0, None), (-1.0, Some((1, 7, FaultCode::VaryingAdvantage)))] {
        let sums: Vec<f64> = config
            .planes()
            .into_iter()
            .flat_map(|plane| match plane {
                Plane::Count => [4.0, 4.0],
                Plane::PositiveAdvantage => [2.0, 3.0],
                Plane::NegativeAdvantage => [0.0, negative],
                _ => [0.0, 0.0],
            })
            .collect();
        let mut sums = backend.upload(&stream, &sums).unwrap();
        let mut coefficients = backend.upload(&stream, &[Coefficient::zeroed(); 2]).unwrap();
        let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan)).unwrap();
        let mut errors = backend.error_word(&stream).unwrap();
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        let output = Output { errors: Some(errors.view_mut()), tag: 7, ..Output::new(workspace.view_mut()) };
        backend.objective_finish(&stream, &config, &plan, input.batch(), phases, output).unwrap();
        let fault = backend.check(&stream, &mut errors).err();
        assert_eq!(fault.is_some().then(|| code(&fault)), expected);
    }
}

pub fn zero_denominators_are_reported<B: Backend>(backend: &B) {
    for config in objectives() {
        let mut case = Case::random(&[3, 4], 2).with_mask(0).with_terms(0);
        case.loss_mask = Some(vec![0, 0, 0, 1, 1, 1, 1]);
        case.denominators = Some([0, 0, 0, 0]);
        let found = run(backend, &config, &case);
        assert_eq!(code(&found.fault), (1, 7, FaultCode::ZeroDenominator));
        assert!(found.loss.is_nan());
        case.loss_mask = None;
        let refused = try_run(backend, &config, &case).unwrap_err();
        assert!(refused.is(Kind::ZeroDenominator), "{refused}");
    }
}

pub fn odd_masks_and_positive_logprobs_are_reported<B: Backend>(backend: &B) {
    for config in objectives() {
        let clean = Case::random(&[30, 40], 2).with_mask(2).with_terms(2);
        let mut case = clean.clone();
        let mask = case.loss_mask.as_mut().unwrap();
        let at = mask.iter().skip(20).position(|&m| m == 1).unwrap() + 20;
        mask[at] = 5;
        let found = run(backend, &config, &case);
        assert_eq!(code(&found.fault), (at as u64, 7, FaultCode::Mask));
        assert_eq!(found.loss.to_bits(), run(backend, &config, &clean).loss.to_bits());
        let mut case = clean.clone();
        case.logprobs[at] = 0.5;
        assert_eq!(code(&run(backend, &config, &case).fault), (at as u64, 7, FaultCode::PositiveLogprob));
        case.logprobs[at] = 9e-4;
        assert_eq!(run(backend, &config, &case).fault, None);
    }
}

/// A segment without a counted token contributes nothing, whatever its advantage, and is counted.
pub fn empty_segments_among_others_are_absent<B: Backend>(backend: &B) {
    let lengths = [0, 9, 4, 0, 33, 1100, 0];
    let clean = Case::random(&lengths, 6).with_mask(6).with_terms(6);
    let mut case = clean.clone();
    // The third one has tokens, but none that counts.
    case.loss_mask.as_mut().unwrap()[9..13].fill(0);
    for i in [0, 2, 3, 6] {
        case.advantages[i] = f32::NAN;
    }
    let without = clean.part(5..6).behind(&clean.part(4..5).behind(&clean.part(1..2)));
    for config in objectives() {
        let (found, expected) = (run(backend, &config, &case), run(backend, &config, &without));
        assert_eq!(found.fault, None, "{config:?}");
        assert!((found.loss - expected.loss).abs() <= 1e-12 * expected.loss.abs().max(1.0), "{config:?}");
        assert_eq!(bits(&found.d_logprobs[..9]), bits(&expected.d_logprobs[..9]), "{config:?}");
        assert_eq!(bits(&found.d_logprobs[13..]), bits(&expected.d_logprobs[9..]), "{config:?}");
        assert!(found.d_logprobs[9..13].iter().all(|g| g.to_bits() == 0), "{config:?}");
        let seen = Diagnostics::from_sums(&found.diagnostics).unwrap();
        assert_eq!((seen.segments, seen.empty_segments), (3, 4), "{config:?}");
    }
}

/// Beyond the saturation the function is constant: A < 0 without a cap has a finite value and no gradient, and the token is counted.
pub fn saturated_tokens_are_counted_and_pass_nothing<B: Backend>(backend: &B) {
    let case = Case {
        logprobs: vec![-0.1, -0.2, -0.3, -230.0],
        old_logprobs: Some(vec![-0.1, -200.2, -0.3, -0.5]),
        advantages: vec![-1.0],
        denominators: Some([4, 1, 1, 4]),
        ..Case::random(&[4], 1)
    };
    let found = run(backend, &Config::ppo_clip(0.2, 0.2), &case);
    let seen = Diagnostics::from_sums(&found.diagnostics).unwrap();
    assert_eq!((seen.saturated_high, seen.saturated_low), (1, 1));
    // The value is e^20; below the window, 1 − 0.2.
    let expected = (1.0 + 20f64.exp() + 1.0 + 0.8) / 4.0;
    assert!((found.loss - expected).abs() <= 1e-6 * expected, "{} not {expected}", found.loss);
    assert_eq!((found.d_logprobs[1], found.d_logprobs[3]), (0.0, 0.0));
    assert_eq!((found.d_logprobs[0], found.d_logprobs[2]), (0.25, 0.25));
    assert_eq!(found.fault, None);
}

pub fn faults_of_a_call_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let case = Case::random(&[3, 4], 2);
    let plan = Plan::new(backend, &stream, &Segments::from_lengths([3, 5]).unwrap()).unwrap();
    let input = Uploaded::new(backend, &stream, &case);
    let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan) - 1).unwrap();
    let config = Config { dp_scale: 0.0, ..Config::ppo_clip(-0.1, f64::NAN).with_cap(Cap::Dual(1.0)) };
    let mut batch = input.batch();
    batch.denominators = Denominators::global(1, 0);
    let error = backend.objective(&stream, &config, &plan, batch, Output::new(workspace.view_mut())).unwrap_err();
    for kind in [Kind::Config, Kind::Shape, Kind::Workspace, Kind::ZeroDenominator] {
        assert!(error.is(kind), "{kind:?}: {error}");
    }
    let text = error.to_string();
    for part in [
        "clip_low: is -0.1",
        "clip_high: is NaN",
        "dual_clip: is 1",
        "dp_scale: is 0",
        "logprobs: has shape [7], needs [8]",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert!(!text.contains('\n'));
}

#[test]
fn offsets_must_rise_from_zero() {
    for (offsets, part) in
        [(vec![], "is empty"), (vec![1, 2], "begins with 1"), (vec![0, 4, 3], "falls from 4 to 3 at index 2")]
    {
        let error = Segments::from_offsets(&offsets).unwrap_err();
        assert!(error.is(Kind::Segments) && error.to_string().contains(part), "{error}");
    }
    assert_eq!(Segments::from_offsets(&[0_i32, 0, 5]).unwrap().tokens(), 5);
}

#[test]
fn lint_names_windows_of_the_wrong_kind() {
    assert!(!Config::gspo(0.2, 0.2).lint().is_empty());
    assert!(!Config::ppo_clip(3e-4, 4e-4).lint().is_empty());
    assert_eq!(Config::gspo(3e-4, 4e-4).lint(), []);
    assert_eq!(Config::default().lint(), []);
    assert!(matches!(Config::default().variant, Variant::PpoClip(_)));
}
