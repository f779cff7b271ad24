//! Advantages of tokens, from the end of every segment backwards.

use moerl::advantage::{
    MOMENTS, ReinforcePp, TokenCall, TokenEstimator, moments_workspace_bytes, reinforce_pp, token_workspace_bytes,
};
use moerl::error::{Fault, FaultCode};
use moerl::objective::{Plan, Segments};
use moerl::{Backend, Buffer, Error, Reference};
use rand::RngExt;

use crate::common::{self, bits};
use crate::group::assert_close;

/// A batch in ordinary memory.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub lengths: Vec<usize>,
    pub token_rewards: Option<Vec<f32>>,
    pub segment_rewards: Option<Vec<f32>>,
    pub values: Option<Vec<f32>>,
    pub bootstrap: Option<Vec<f32>>,
    pub ratio: Option<Vec<f32>>,
    pub loss_mask: Option<Vec<u8>>,
}

impl Case {
    /// Everything there is.
    pub fn random(lengths: &[usize], seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let n: usize = lengths.iter().sum();
        let mut floats =
            |len: usize, low: f32, high: f32| Some((0..len).map(|_| rng.random_range(low..high)).collect());
        Case {
            lengths: lengths.to_vec(),
            token_rewards: floats(n, -0.1, 0.1),
            segment_rewards: floats(lengths.len(), -1.0, 1.0),
            values: floats(n, -1.0, 1.0),
            bootstrap: floats(lengths.len(), -1.0, 1.0),
            ratio: floats(n, 0.2, 1.6),
            loss_mask: floats(n, 0.0, 4.0).map(|m: Vec<f32>| m.iter().map(|&m| u8::from(m >= 1.0)).collect()),
        }
    }

    /// With what the estimator uses, no more.
    pub fn fit(&self, estimator: &TokenEstimator) -> Case {
        let mut case = self.clone();
        if matches!(estimator, TokenEstimator::Returns { .. }) {
            case.values = None;
        }
        if !matches!(estimator, TokenEstimator::Vtrace { .. }) {
            case.ratio = None;
        }
        case
    }

    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

#[derive(Clone, Debug)]
pub struct Found {
    pub advantages: Vec<f32>,
    pub returns: Vec<f32>,
    pub policy_weights: Vec<f32>,
    pub nonfinite: u64,
    pub fault: Option<Error>,
}

impl Found {
    pub fn all(&self) -> [&[f32]; 3] {
        [&self.advantages, &self.returns, &self.policy_weights]
    }
}

pub fn run<B: Backend>(backend: &B, estimator: &TokenEstimator, case: &Case) -> Found {
    let stream = backend.stream().unwrap();
    let segments = Segments::from_lengths(case.lengths.iter().copied()).unwrap();
    let plan = Plan::new(backend, &stream, &segments).unwrap();
    let send = |array: &Option<Vec<f32>>| array.as_ref().map(|array| backend.upload(&stream, array).unwrap());
    let (token_rewards, segment_rewards) = (send(&case.token_rewards), send(&case.segment_rewards));
    let (values, bootstrap, ratio) = (send(&case.values), send(&case.bootstrap), send(&case.ratio));
    let mask = case.loss_mask.as_ref().map(|mask| backend.upload(&stream, mask).unwrap());
    let filled = || backend.upload(&stream, &vec![f32::NAN; case.tokens()]).unwrap();
    let (mut advantages, mut returns, mut policy_weights) = (filled(), filled(), filled());
    let mut nonfinite = backend.allocate::<u64>(&stream, 1).unwrap();
    let mut errors = backend.error_word(&stream).unwrap();
    // What another call may have left there must not matter.
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; token_workspace_bytes(&plan)]).unwrap();
    let call = TokenCall {
        token_rewards: token_rewards.as_ref().map(Buffer::view),
        segment_rewards: segment_rewards.as_ref().map(Buffer::view),
        values: values.as_ref().map(Buffer::view),
        bootstrap: bootstrap.as_ref().map(Buffer::view),
        ratio: ratio.as_ref().map(Buffer::view),
        loss_mask: mask.as_ref().map(Buffer::view),
        advantages: Some(advantages.view_mut()),
        returns: Some(returns.view_mut()),
        policy_weights: Some(policy_weights.view_mut()),
        nonfinite: Some(nonfinite.view_mut()),
        errors: Some(errors.view_mut()),
        tag: 3,
        ..TokenCall::new(workspace.view_mut())
    };
    backend.token_advantages(&stream, estimator, &plan, call).unwrap();
    Found {
        advantages: backend.download(&stream, advantages.view()).unwrap(),
        returns: backend.download(&stream, returns.view()).unwrap(),
        policy_weights: backend.download(&stream, policy_weights.view()).unwrap(),
        nonfinite: backend.download(&stream, nonfinite.view()).unwrap()[0],
        fault: backend.check(&stream, &mut errors).err(),
    }
}

fn two_tokens() -> Case {
    Case { lengths: vec![2], token_rewards: Some(vec![0.0, 1.0]), values: Some(vec![0.5, 0.4]), ..Case::default() }
}

pub fn two_tokens_give_gae_of_the_table<B: Backend>(backend: &B) {
    let gae = TokenEstimator::Gae { gamma: 1.0, lambda: 0.95 };
    let found = run(backend, &gae, &two_tokens());
    assert_close(&found.advantages, &[0.47, 0.60]);
    assert_close(&found.returns, &[0.97, 1.0]);
    let returns = TokenEstimator::Returns { gamma: 0.5 };
    let found = run(backend, &returns, &two_tokens().fit(&returns));
    assert_eq!((found.advantages, found.policy_weights), (vec![0.5, 1.0], vec![1.0; 2]));
}

pub fn two_tokens_give_vtrace_of_the_table<B: Backend>(backend: &B) {
    let case = Case { ratio: Some(vec![0.5, 2.0]), ..two_tokens() };
    let vtrace =
        |one_step| TokenEstimator::Vtrace { gamma: 1.0, lambda: 1.0, ratio_bar: 1.0, trace_bar: 1.0, one_step };
    let found = run(backend, &vtrace(false), &case);
    assert_close(&found.advantages, &[0.25, 0.60]);
    assert_close(&found.returns, &[0.75, 1.0]);
    assert_close(&found.policy_weights, &[0.5, 1.0]);
    assert_close(&run(backend, &vtrace(true), &case).advantages, &[0.5, 0.6]);
    assert_eq!(TokenEstimator::vtrace(1.0), vtrace(true));
}

/// Lengths of every kind that the kernels tell apart, with long segments of more than one tile and of more than one group of tiles.
fn lengths() -> Vec<Vec<usize>> {
    vec![
        vec![1; 300],
        vec![17; 90],
        vec![0, 1, 31, 32, 33, 64, 65, 0, 1024, 3, 1025, 500, 500, 0, 2049, 7],
        vec![40; 60],
        vec![33; 31],
        vec![35_000],
        vec![0, 0],
        vec![],
    ]
}

fn estimators() -> [TokenEstimator; 4] {
    [
        TokenEstimator::Returns { gamma: 0.97 },
        TokenEstimator::Gae { gamma: 1.0, lambda: 1.0 },
        TokenEstimator::Vtrace { gamma: 1.0, lambda: 0.95, ratio_bar: 1.2, trace_bar: 1.0, one_step: true },
        TokenEstimator::Vtrace { gamma: 0.99, lambda: 1.0, ratio_bar: f64::INFINITY, trace_bar: 1.0, one_step: false },
    ]
}

pub fn vtrace_at_ratio_one_is_gae_bit_for_bit<B: Backend>(backend: &B) {
    let mut case = Case::random(&[5, 40, 1024, 2500, 1, 100], 1);
    case.ratio = Some(vec![1.0; case.tokens()]);
    for lambda in [1.0, 0.9] {
        let gae = TokenEstimator::Gae { gamma: 0.99, lambda };
        let vtrace = TokenEstimator::Vtrace { gamma: 0.99, lambda, ratio_bar: 1.0, trace_bar: 1.7, one_step: false };
        let (a, b) = (run(backend, &gae, &case.fit(&gae)), run(backend, &vtrace, &case));
        for (a, b) in a.all().iter().zip(b.all()) {
            assert_eq!(bits(a), bits(b));
        }
    }
}

pub fn token_results_agree_with_the_reference_for_every_estimator_and_length<B: Backend>(backend: &B) {
    for (which, lengths) in lengths().iter().enumerate() {
        let case = Case::random(lengths, which as u64);
        for estimator in estimators() {
            let case = case.fit(&estimator);
            let (found, expected) = (run(backend, &estimator, &case), run(&Reference, &estimator, &case));
            for (name, f, e) in [
                ("advantages", &found.advantages, &expected.advantages),
                ("returns", &found.returns, &expected.returns),
                ("policy_weights", &found.policy_weights, &expected.policy_weights),
            ] {
                let e: Vec<f64> = e.iter().map(|&x| f64::from(x)).collect();
                // Rounded once on both sides: one unit of the last place; f64 sums of up to 35,000 terms of size 1 in another order: 1e-11.
                let worst = common::worst(f, &e, 1e-11, 1.2e-7);
                println!("{} {name} {estimator:?} {:?}: {worst:.3} of the tolerance", backend.name(), lengths.first());
                assert!(worst <= 1.0, "{name} {estimator:?} {lengths:?}: {worst}");
            }
            assert_eq!(found.fault, None);
        }
    }
}

pub fn rewards_of_tokens_and_segments_add_up<B: Backend>(backend: &B) {
    let mut case = Case::random(&[4, 1100, 50], 2);
    let gae = TokenEstimator::Gae { gamma: 0.9, lambda: 0.8 };
    case = case.fit(&gae);
    let both = run(backend, &gae, &case);
    // The segment's reward stands on its last counted token.
    let (mask, rewards) = (case.loss_mask.clone().unwrap(), case.segment_rewards.take().unwrap());
    let mut start = 0;
    for (segment, &length) in case.lengths.iter().enumerate() {
        let last = (start..start + length).rev().find(|&u| mask[u] != 0).unwrap();
        case.token_rewards.as_mut().unwrap()[last] += rewards[segment];
        start += length;
    }
    let found = run(backend, &gae, &case);
    let expected: Vec<f64> = both.advantages.iter().map(|&a| f64::from(a)).collect();
    // Adding in f32 rounds by 2⁻²⁴ of up to 1.1.
    assert!(common::worst(&found.advantages, &expected, 1e-7, 1e-6) <= 1.0);
}

pub fn a_mask_gap_changes_nothing<B: Backend>(backend: &B) {
    for estimator in estimators() {
        let mut case = Case { loss_mask: None, ..Case::random(&[3, 200, 1500], 3) }.fit(&estimator);
        let plain = run(backend, &estimator, &case);
        // 50 masked tokens after the first ten of every segment; what they hold must not matter.
        let mut mask = Vec::new();
        let mut start = 0;
        for length in &mut case.lengths {
            let at = start + (*length).min(10);
            mask.extend(std::iter::repeat_n(1, at - start));
            mask.extend(std::iter::repeat_n(0_u8, 50));
            for array in [&mut case.token_rewards, &mut case.values, &mut case.ratio].into_iter().flatten() {
                array.splice(at..at, std::iter::repeat_n(f32::NAN, 50));
            }
            mask.extend(std::iter::repeat_n(1, start + *length - at));
            *length += 50;
            start += *length;
        }
        case.loss_mask = Some(mask.clone());
        let gap = run(backend, &estimator, &case);
        for (gap, plain) in gap.all().iter().zip(plain.all()) {
            let counted: Vec<f32> = gap.iter().zip(&mask).filter(|(_, m)| **m != 0).map(|(&x, _)| x).collect();
            let expected: Vec<f64> = plain.iter().map(|&x| f64::from(x)).collect();
            // Other blocks of 32 positions: f64 in another order, rounded once.
            assert!(common::worst(&counted, &expected, 1e-11, 1.2e-7) <= 1.0, "{estimator:?}");
            assert!(gap.iter().zip(&mask).all(|(x, m)| *m != 0 || x.to_bits() == 0));
        }
        assert_eq!(gap.fault, None);
    }
}

pub fn masked_tokens_hold_anything_and_get_zero<B: Backend>(backend: &B) {
    let case = Case::random(&[7, 40, 1030], 4);
    let mask = case.loss_mask.clone().unwrap();
    for estimator in estimators() {
        let clean = case.fit(&estimator);
        let mut spoiled = clean.clone();
        for array in [&mut spoiled.token_rewards, &mut spoiled.values, &mut spoiled.ratio].into_iter().flatten() {
            for (x, &m) in array.iter_mut().zip(&mask) {
                if m == 0 {
                    *x = f32::INFINITY;
                }
            }
        }
        let (clean, spoiled) = (run(backend, &estimator, &clean), run(backend, &estimator, &spoiled));
        for (c, s) in clean.all().iter().zip(spoiled.all()) {
            assert_eq!(bits(c), bits(s));
            assert!(c.iter().zip(&mask).all(|(x, m)| *m != 0 || x.to_bits() == 0));
        }
        assert_eq!(spoiled.fault, None);
    }
}

pub fn tokens_that_are_not_finite_are_left_out_and_reported<B: Backend>(backend: &B) {
    let gae = TokenEstimator::Gae { gamma: 0.9, lambda: 0.8 };
    let clean = Case { loss_mask: Some(vec![1; 190]), ..Case::random(&[40, 50, 100], 5) }.fit(&gae);
    let mut spoiled = clean.clone();
    spoiled.values.as_mut().unwrap()[60] = f32::NAN;
    spoiled.token_rewards.as_mut().unwrap()[75] = f32::INFINITY;
    let found = run(backend, &gae, &spoiled);
    // As if they were masked.
    let mut masked = clean.clone();
    for token in [60, 75] {
        masked.loss_mask.as_mut().unwrap()[token] = 0;
    }
    let expected = run(backend, &gae, &masked);
    assert_eq!(bits(&found.advantages), bits(&expected.advantages));
    assert_eq!(found.nonfinite, 2);
    assert_eq!(found.fault, Some(Error::Data(Fault { row: 60, tag: 3, code: FaultCode::NonfiniteInput })));
    // Of a segment's own reward or bootstrap all its tokens depend.
    type Array = fn(&mut Case) -> &mut Option<Vec<f32>>;
    let rewards: Array = |case| &mut case.segment_rewards;
    let bootstrap: Array = |case| &mut case.bootstrap;
    for spoil in [rewards, bootstrap] {
        let mut spoiled = clean.clone();
        spoil(&mut spoiled).as_mut().unwrap()[1] = f32::NAN;
        let found = run(backend, &gae, &spoiled);
        assert_eq!(found.nonfinite, 50);
        assert_eq!(found.fault, Some(Error::Data(Fault { row: 40, tag: 3, code: FaultCode::NonfiniteInput })));
        let expected = run(backend, &gae, &clean);
        assert_eq!(bits(&found.advantages[40..90]), [0; 50]);
        assert_eq!(bits(&found.advantages[..40]), bits(&expected.advantages[..40]));
        assert_eq!(bits(&found.advantages[90..]), bits(&expected.advantages[90..]));
    }
}

pub fn nothing_to_count_is_zero<B: Backend>(backend: &B) {
    let gae = TokenEstimator::Gae { gamma: 1.0, lambda: 1.0 };
    let mut case = Case::random(&[3, 0, 1500, 40], 6).fit(&gae);
    case.loss_mask = Some(vec![0; case.tokens()]);
    let found = run(backend, &gae, &case);
    for array in found.all() {
        assert!(array.iter().all(|x| x.to_bits() == 0));
    }
    assert_eq!((found.nonfinite, found.fault), (0, None));
}

/// [`reinforce_pp`] on rewards of segments.
pub fn reinforce<B: Backend>(backend: &B, gamma: f64, lengths: &[usize], rewards: &[f32], mask: &[u8]) -> Vec<f32> {
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &Segments::from_lengths(lengths.iter().copied()).unwrap()).unwrap();
    let tokens = mask.len();
    let rewards = backend.upload(&stream, rewards).unwrap();
    let mask = backend.upload(&stream, mask).unwrap();
    let mut advantages = backend.upload(&stream, &vec![f32::NAN; tokens]).unwrap();
    let mut moments = backend.allocate::<f64>(&stream, MOMENTS).unwrap();
    let bytes = token_workspace_bytes(&plan).max(moments_workspace_bytes(tokens));
    let mut workspace = backend.allocate::<u8>(&stream, bytes).unwrap();
    let call = TokenCall {
        segment_rewards: Some(rewards.view()),
        loss_mask: Some(mask.view()),
        advantages: Some(advantages.view_mut()),
        ..TokenCall::new(workspace.view_mut())
    };
    reinforce_pp(backend, &stream, gamma, &plan, ReinforcePp { call, moments: moments.view_mut() }).unwrap();
    backend.download(&stream, advantages.view()).unwrap()
}

pub fn returns_are_whitened_over_the_batch<B: Backend>(backend: &B) {
    // G (.5, 1): mean .75, deviation .353553 (+ 1e-8 in the root).
    let scale = 0.25 / (0.125_f64 + 1e-8).sqrt();
    assert_close(&reinforce(backend, 0.5, &[2], &[1.0], &[1, 1]), &[-scale, scale]);
    assert_close(&reinforce(backend, 0.5, &[3], &[1.0], &[1, 0, 1]), &[-scale, 0.0, scale]);
    assert_eq!(reinforce(backend, 0.5, &[2], &[1.0], &[1, 0]), [0.0; 2]);
    // What is not finite is absent, as if it were masked.
    let found = reinforce(backend, 0.5, &[2, 2, 1], &[1.0, f32::NAN, -3.0], &[1; 5]);
    let masked = reinforce(backend, 0.5, &[2, 2, 1], &[1.0, 0.0, -3.0], &[1, 1, 0, 0, 1]);
    assert_eq!(bits(&found), bits(&masked));
}

pub fn faults_of_a_token_call_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &Segments::from_lengths([2, 3]).unwrap()).unwrap();
    let four = backend.upload(&stream, &[0.0_f32; 4]).unwrap();
    let mut workspace = backend.allocate::<u8>(&stream, 1).unwrap();
    let call =
        TokenCall { bootstrap: Some(four.view()), ratio: Some(four.view()), ..TokenCall::new(workspace.view_mut()) };
    let config = TokenEstimator::Gae { gamma: 1.5, lambda: f64::NAN };
    let error = backend.token_advantages(&stream, &config, &plan, call).unwrap_err();
    for part in [
        "gamma: is 1.5",
        "lambda: is NaN",
        "token_rewards: is missing",
        "values: is needed",
        "ratio: is not used",
        "bootstrap: has shape [4], needs [2]",
        "ratio: has shape [4], needs [5]",
        "workspace: has 1 bytes",
    ] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    for (ratio_bar, trace_bar, part) in [(0.0, 1.0, "ratio_bar: is 0"), (1.0, f64::NAN, "trace_bar: is NaN")] {
        let config = TokenEstimator::Vtrace { gamma: 1.0, lambda: 1.0, ratio_bar, trace_bar, one_step: false };
        assert!(config.validate().unwrap_err().to_string().contains(part));
    }
}
