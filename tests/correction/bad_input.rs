//! What is wrong with a call or its data, and what comes of it.

use moerl::correction::{
    Batch, Config, Divergence, Level, Metropolis, NonFinite, Output, Over, Plans, Rejection, TurnPlan, Weight,
    workspace_bytes,
};
use moerl::error::{FaultCode, Kind};
use moerl::objective::{Plan, Segments};
use moerl::{Backend, Buffer, Error};

use crate::case::{Case, Uploaded, run, try_run};

fn code(fault: &Option<Error>) -> (u64, u16, FaultCode) {
    match fault {
        Some(Error::Data(fault)) => (fault.row, fault.tag, fault.code),
        other => panic!("no fault: {other:?}"),
    }
}

pub fn a_token_that_is_not_finite_is_handled_as_configured<B: Backend>(backend: &B) {
    // Segment 1 is touched, in a unit of several segments and on its own.
    for lengths in [vec![4, 6, 5], vec![40, 1200, 30]] {
        let clean = Case::random(&lengths, 9).with_offsets(9).with_repeats(2, 9);
        let at = lengths[0] + 2;
        let own = lengths[0]..lengths[0] + lengths[1];
        for (which, value) in [(0, f32::NAN), (1, f32::NEG_INFINITY), (2, f32::INFINITY), (3, f32::NAN), (4, f32::NAN)]
        {
            let mut case = clean.clone();
            match which {
                0 => case.old_logprobs[at] = value,
                1 => case.old_logprobs[clean.tokens() + at] = value,
                2 => case.rollout_logprobs[at] = value,
                3 => case.kept_log_mass.as_mut().unwrap()[at] = value,
                _ => case.router_shift.as_mut().unwrap()[at] = value,
            }
            for level in [Level::Token, Level::Sequence] {
                let of = |nonfinite, case: &Case| run(backend, &Config { nonfinite, ..Config::tis(level, 5.0) }, case);
                let untouched = of(NonFinite::ZeroWeight, &clean);
                for policy in [NonFinite::Propagate, NonFinite::ZeroWeight, NonFinite::DropSegment] {
                    let found = of(policy, &case);
                    assert_eq!(code(&found.fault), (at as u64, 7, FaultCode::NonfiniteInput), "{policy:?}");
                    for u in (0..case.tokens()).filter(|u| !own.contains(u)) {
                        assert_eq!(found.weights[u].to_bits(), untouched.weights[u].to_bits(), "{policy:?}: {u}");
                    }
                    assert_eq!(found.weights[at].is_nan(), policy == NonFinite::Propagate);
                    assert!(found.globals.iter().all(|x| x.is_finite()), "{policy:?}");
                }
                let found = of(NonFinite::Propagate, &case);
                assert_eq!(found.segment_weights[1].is_nan(), level == Level::Sequence);
                assert_eq!(found.keep[at], 1);
                let found = of(NonFinite::DropSegment, &case);
                assert!(own.clone().all(|u| found.weights[u].to_bits() == 0 && found.keep[u] == 0));
                let found = of(NonFinite::ZeroWeight, &case);
                assert_eq!((found.weights[at].to_bits(), found.keep[at], found.log_ratio[at].to_bits()), (0, 0, 0));
                assert_eq!(found.kept[1] as usize, lengths[1] - 1);
                let expected = run(&moerl::Reference, &Config::tis(level, 5.0), &case);
                for u in own.clone() {
                    let (f, e) = (found.weights[u], expected.weights[u]);
                    assert!((f - e).abs() <= 2e-4 * e, "token {u}: {f} not {e}");
                }
            }
        }
    }
}

pub fn faults_are_reported_whatever_is_asked_for<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    for lengths in [vec![1], vec![5, 7], vec![1500]] {
        let mut case = Case::random(&lengths, 3);
        case.old_logprobs[0] = f32::NAN;
        let input = Uploaded::new(backend, &stream, &case).unwrap();
        for level in [Level::Token, Level::Sequence] {
            let mut errors = backend.error_word(&stream).unwrap();
            let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&input.plans())).unwrap();
            let output = Output { errors: Some(errors.view_mut()), tag: 3, ..Output::new(workspace.view_mut()) };
            backend.correction(&stream, &Config::tis(level, 2.0), input.plans(), input.batch(), output).unwrap();
            let fault = backend.check(&stream, &mut errors).err();
            assert_eq!(code(&fault), (0, 3, FaultCode::NonfiniteInput), "{level:?}");
        }
    }
}

/// A segment without a finite token has no smallest log-ratio that a bound could reject.
pub fn a_segment_of_nothing_finite_is_not_catastrophic<B: Backend>(backend: &B) {
    let mut case = Case::random(&[1, 4, 2], 4);
    case.old_logprobs[0] = f32::NAN;
    case.rollout_logprobs[5..].fill(f32::NEG_INFINITY);
    let veto = Rejection::Veto { low: 1e-4, high: 1e4 };
    let found = run(backend, &Config::tis(Level::Sequence, 2.0).with_rejection(veto).with_diagnostics(), &case);
    let seen = moerl::correction::Diagnostics::from_sums(&found.diagnostics, false).unwrap();
    assert_eq!((seen.nonfinite_tokens, seen.catastrophic_tokens, seen.catastrophic_segments), (3, 0, 0));
    assert_eq!(found.rejected[..2], [0, 0]);
}

pub fn odd_masks_and_positive_logprobs_are_reported<B: Backend>(backend: &B) {
    let clean = Case::random(&[30, 40], 2).with_mask(2);
    let at = clean.loss_mask.as_ref().unwrap().iter().skip(20).position(|&m| m == 1).unwrap() + 20;
    for level in [Level::Token, Level::Sequence] {
        let config = Config::tis(level, 2.0);
        let mut case = clean.clone();
        case.loss_mask.as_mut().unwrap()[at] = 5;
        assert_eq!(code(&run(backend, &config, &case).fault), (at as u64, 7, FaultCode::Mask));
        let mut case = clean.clone();
        case.rollout_logprobs[at] = 0.5;
        assert_eq!(code(&run(backend, &config, &case).fault), (at as u64, 7, FaultCode::PositiveLogprob));
        case.rollout_logprobs[at] = 1e-3;
        assert_eq!(run(backend, &config, &case).fault, None);
    }
}

pub fn nothing_to_count_is_nothing<B: Backend>(backend: &B) {
    for lengths in [vec![], vec![0, 0], vec![3, 2000]] {
        for level in [Level::Token, Level::Sequence] {
            let mut case = Case::random(&lengths, 1);
            case.loss_mask = Some(vec![0; case.tokens()]);
            let config = Config { batch_normalise: true, ..Config::tis(level, 2.0) }
                .with_rejection(Rejection::Veto { low: 0.5, high: 2.0 })
                .with_diagnostics();
            let found = run(backend, &config, &case);
            assert!(found.weights.iter().all(|w| w.to_bits() == 0) && found.keep.iter().all(|&k| k == 0));
            assert!(found.segment_weights.iter().all(|&w| w == 1.0), "{:?}", found.segment_weights);
            assert!(found.globals.iter().all(|&x| x == 0.0) && found.rejected.iter().all(|&x| x == 0));
            let diagnostics = moerl::correction::Diagnostics::from_sums(&found.diagnostics, false).unwrap();
            assert_eq!((diagnostics.tokens, diagnostics.mismatch_k1, diagnostics.ess), (0, None, None));
            assert_eq!(found.fault, None);
        }
    }
}

pub fn faults_of_a_call_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &Segments::from_lengths([3, 5]).unwrap()).unwrap();
    let plans = Plans::new(&plan);
    let short = backend.upload(&stream, &[-1.0_f32; 7]).unwrap();
    let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plans) - 1).unwrap();
    let config = Config {
        saturation: f32::NAN,
        batch_normalise: true,
        ..Config::new(Weight::Metropolis { level: Level::Sequence, mode: Metropolis::Mask, seed: 0 })
    }
    .with_rejection(Rejection::Band { level: Level::Turn, low: 2.0, high: 1.0 })
    .with_rejection(Rejection::Divergence { estimate: Divergence::K1 { low: 0.5, high: 2.0 }, over: Over::Max })
    .with_rejection(Rejection::OffPolicySequence { threshold: 0.0 });
    let batch = Batch::new(short.view(), short.view());
    let error = backend.correction(&stream, &config, plans, batch, Output::new(workspace.view_mut())).unwrap_err();
    for kind in [Kind::Config, Kind::Shape, Kind::Workspace, Kind::MissingInput] {
        assert!(error.is(kind), "{kind:?}: {error}");
    }
    let text = error.to_string();
    for part in [
        "saturation: is NaN",
        "band: has bounds 2 and 1",
        "k1: has no maximum",
        "batch_normalise: does not go with Metropolis",
        "groups: are needed",
        "turns: are needed",
        "segment_ids: is needed for Metropolis",
        "advantages: is needed for OffPolicySequence",
        "rollout_logprobs: has shape [7], needs [8]",
        "old_logprobs: has shape [7], needs [8]",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

pub fn numbers_outside_their_range_are_refused<B: Backend>(backend: &B) {
    let case = Case::random(&[3, 4], 2);
    let level = Level::Token;
    for (config, part) in [
        (Config::tis(level, 0.0), "max: is 0"),
        (Config::tis(level, f64::NAN), "max: is NaN"),
        (Config::new(Weight::Clamped { level, low: -1.0, high: 2.0 }), "weight: has bounds -1 and 2"),
        (Config::new(Weight::Band { level, low: 3.0, high: 2.0 }), "weight: has bounds 3 and 2"),
        (Config::new(Weight::SelfNormalised { level, leave_one_out: false }), "level: is Token"),
        (Config::new(Weight::MultipleImportance { proportions: vec![0.5, 0.4] }), "proportions: are [0.5, 0.4]"),
        (Config::new(Weight::MultipleImportance { proportions: vec![0.05; 20] }), "need 1 to 16"),
        (
            Config::default().with_rejection(Rejection::Divergence { estimate: Divergence::K2(-1.0), over: Over::Sum }),
            "divergence: has the threshold -1",
        ),
        (Config { rejections: vec![Rejection::Veto { low: 0.0, high: 2.0 }; 9], ..Config::default() }, "are 9"),
        (
            Config { rejections: vec![Rejection::Band { level, low: 0.0, high: 2.0 }; 5], ..Config::default() },
            "of tokens are 5",
        ),
    ] {
        let error = try_run(backend, &config, &case).unwrap_err();
        assert!(error.is(Kind::Config) && error.to_string().contains(part), "{part:?} is not in {error}");
    }
    // What is attached is of rewards, and by groups.
    let attached = Config::new(Weight::SelfNormalisedAttached);
    let error = try_run(backend, &attached, &case).unwrap_err();
    for part in ["rewards: is needed for SelfNormalisedAttached", "groups: are needed for SelfNormalisedAttached"] {
        assert!(error.is(Kind::MissingInput) && error.to_string().contains(part), "{part:?} is not in {error}");
    }
    // Groups that leave a segment out.
    let mut case = case;
    case.groups = Some(vec![0]);
    let config = Config::new(Weight::SelfNormalised { level: Level::Sequence, leave_one_out: false });
    let error = try_run(backend, &config, &case).unwrap_err();
    assert!(error.is(Kind::Segments) && error.to_string().contains("each of the 2 segments"), "{error}");
}

pub fn turns_must_refine_segments<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let segments = Segments::from_lengths([3, 5]).unwrap();
    for (offsets, part) in [
        (vec![0, 2, 8], "none ends at 3"),
        (vec![0, 3, 7], "none ends at 8"),
        (vec![0, 3, 8, 9], "go on behind token 8"),
    ] {
        let error = TurnPlan::new(backend, &stream, &segments, &offsets).unwrap_err();
        assert!(error.is(Kind::Segments) && error.to_string().contains(part), "{part:?} is not in {error}");
    }
    let turns = TurnPlan::new(backend, &stream, &segments, &[0, 1, 3, 3, 8]).unwrap();
    assert_eq!(turns.turns().len(), 4);
}
