//! The optimal baseline of a token index.

use moerl::advantage::{BaselineCall, BaselinePlan, TokenBaseline, baseline_workspace_bytes};
use moerl::error::{Fault, FaultCode};
use moerl::objective::{Groups, Segments};
use moerl::{Backend, Buffer, Error, Reference};
use rand::RngExt;

use crate::common::{self, bits};
use crate::group::assert_close;

#[derive(Clone, Debug)]
pub struct Case {
    pub lengths: Vec<usize>,
    pub ids: Vec<i32>,
    pub returns: Vec<f32>,
    pub logprobs: Vec<f32>,
    pub sum_p2: Vec<f32>,
    pub weights: Option<Vec<f32>>,
    pub loss_mask: Vec<u8>,
}

impl Case {
    pub fn random(lengths: &[usize], groups: i32, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let n: usize = lengths.iter().sum();
        let logprobs: Vec<f32> = (0..n).map(|_| -rng.random_range(0.0_f32..1.0).powi(2) * 8.0).collect();
        Case {
            lengths: lengths.to_vec(),
            ids: lengths.iter().map(|_| rng.random_range(0..groups)).collect(),
            returns: (0..n).map(|_| rng.random_range(-1.0..1.0)).collect(),
            // π² and some of what the rest of the vocabulary may add.
            sum_p2: logprobs
                .iter()
                .map(|l| (2.0 * l).exp() + rng.random_range(0.0..1.0) * (1.0 - l.exp()).powi(2))
                .collect(),
            logprobs,
            weights: Some((0..n).map(|_| rng.random_range(0.0..2.0)).collect()),
            loss_mask: (0..n).map(|_| u8::from(rng.random_range(0..4) != 0)).collect(),
        }
    }
}

pub fn run<B: Backend>(backend: &B, config: &TokenBaseline, case: &Case) -> (Vec<f32>, u64, Option<Error>) {
    let stream = backend.stream().unwrap();
    let segments = Segments::from_lengths(case.lengths.iter().copied()).unwrap();
    let plan = BaselinePlan::new(backend, &stream, &segments, &Groups::from_ids(&case.ids)).unwrap();
    let send = |array: &Vec<f32>| backend.upload(&stream, array).unwrap();
    let (returns, logprobs, sum_p2) = (send(&case.returns), send(&case.logprobs), send(&case.sum_p2));
    let weights = case.weights.as_ref().map(send);
    let mask = backend.upload(&stream, &case.loss_mask).unwrap();
    let mut advantages = backend.upload(&stream, &vec![f32::NAN; case.returns.len()]).unwrap();
    let mut nonfinite = backend.allocate::<u64>(&stream, 1).unwrap();
    let mut errors = backend.error_word(&stream).unwrap();
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; baseline_workspace_bytes(&plan)]).unwrap();
    let call = BaselineCall {
        returns: returns.view(),
        logprobs: logprobs.view(),
        sum_p2: sum_p2.view(),
        weights: weights.as_ref().map(Buffer::view),
        loss_mask: Some(mask.view()),
        advantages: advantages.view_mut(),
        nonfinite: Some(nonfinite.view_mut()),
        errors: Some(errors.view_mut()),
        tag: 4,
        workspace: workspace.view_mut(),
    };
    backend.token_baseline(&stream, config, &plan, call).unwrap();
    let fault = backend.check(&stream, &mut errors).err();
    (
        backend.download(&stream, advantages.view()).unwrap(),
        backend.download(&stream, nonfinite.view()).unwrap()[0],
        fault,
    )
}

/// Two members, of three and two tokens; the third is a group of one.
fn small() -> Case {
    Case {
        lengths: vec![3, 2, 1],
        ids: vec![0, 0, 1],
        returns: vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.5],
        logprobs: vec![0.5_f32.ln(); 6],
        sum_p2: vec![0.5, 0.25, 0.5, 1.0, 0.5, 0.5],
        weights: None,
        loss_mask: vec![1; 6],
    }
}

pub fn two_members_give_the_baseline_of_the_formula<B: Backend>(backend: &B) {
    // e = Σπ²: W = (.5, .75, 1.25) and (1, 1.5); b = (.5 / 1.5, .75 / 2.25); nothing beyond the second longest.
    let (found, _, _) = run(backend, &TokenBaseline::default(), &small());
    let third = 1.0 / 3.0;
    assert_close(&found, &[1.0 - third, 1.0 - third, 1.0, -third, -third, 0.5]);
    // w² = 4 on the first member: W = (2, 3, 5), b = (2 / 3, 3 / 4.5).
    let weighted = Case { weights: Some(vec![2.0, 2.0, 2.0, 1.0, 1.0, 1.0]), ..small() };
    assert_close(
        &run(backend, &TokenBaseline::default(), &weighted).0,
        &[third, third, 1.0, -2.0 * third, -2.0 * third, 0.5],
    );
    let with_tail = TokenBaseline { zero_tail: false, ..TokenBaseline::default() };
    // b = 1.25 / (1.25 + 1e-8): of A = 1 − b nothing is left.
    assert!(run(backend, &with_tail, &small()).0[2].abs() < 1e-7);
    // Tokens that were certain have no variance, and no baseline: not 0/0 where ε is 0.
    let certain = Case { logprobs: vec![0.0; 6], sum_p2: vec![1.0; 6], ..small() };
    let strict = TokenBaseline { epsilon: 0.0, ..with_tail };
    assert_eq!(run(backend, &strict, &certain).0, certain.returns);
}

pub fn baselines_agree_with_the_reference<B: Backend>(backend: &B) {
    for (which, lengths) in [
        vec![17; 90],
        vec![0, 1, 31, 32, 33, 64, 65, 0, 1024, 3, 1025, 500, 500, 0, 2049, 7],
        vec![3500, 3000, 40, 0],
        vec![34_000, 200],
    ]
    .iter()
    .enumerate()
    {
        let case = Case::random(lengths, 3, which as u64);
        for zero_tail in [true, false] {
            let config = TokenBaseline { zero_tail, ..TokenBaseline::default() };
            let (found, lost, fault) = run(backend, &config, &case);
            let expected: Vec<f64> = run(&Reference, &config, &case).0.iter().map(|&a| f64::from(a)).collect();
            // One rounding of a difference of numbers of size 1 on both sides, of f64 sums of up to 34,000 terms.
            let worst = common::worst(&found, &expected, 1e-11, 1.2e-7);
            println!("{} zero_tail {zero_tail} {lengths:?}: {worst:.3} of the tolerance", backend.name());
            assert!(worst <= 1.0, "{lengths:?}: {worst}");
            assert_eq!((lost, fault), (0, None));
        }
    }
}

pub fn a_mask_gap_does_not_shift_the_index<B: Backend>(backend: &B) {
    let plain = small();
    let (expected, _, _) = run(backend, &TokenBaseline::default(), &plain);
    // Two masked tokens after the first of the first member.
    let mut gap = plain.clone();
    gap.lengths[0] += 2;
    for array in [&mut gap.returns, &mut gap.logprobs, &mut gap.sum_p2] {
        array.splice(1..1, [f32::NAN; 2]);
    }
    gap.loss_mask.splice(1..1, [0; 2]);
    let (found, lost, fault) = run(backend, &TokenBaseline::default(), &gap);
    assert_eq!((bits(&found[1..3]), lost, fault), (vec![0; 2], 0, None));
    assert_eq!((found[0], &found[3..]), (expected[0], &expected[1..]));
}

pub fn a_baseline_leaves_out_what_is_not_finite<B: Backend>(backend: &B) {
    let clean = Case::random(&[40, 60, 1100], 1, 9);
    let counted = (50..60).find(|&u| clean.loss_mask[u] != 0).unwrap();
    let mut masked = clean.clone();
    masked.loss_mask[counted] = 0;
    let expected = run(backend, &TokenBaseline::default(), &masked).0;
    let arrays: [fn(&mut Case) -> &mut Vec<f32>; 3] =
        [|case| &mut case.returns, |case| &mut case.sum_p2, |case| &mut case.logprobs];
    for spoil in arrays {
        let mut spoiled = clean.clone();
        spoil(&mut spoiled)[counted] = f32::NAN;
        let (found, lost, fault) = run(backend, &TokenBaseline::default(), &spoiled);
        assert_eq!(bits(&found), bits(&expected));
        assert_eq!(lost, 1);
        let row = counted as u64;
        assert_eq!(fault, Some(Error::Data(Fault { row, tag: 4, code: FaultCode::NonfiniteInput })));
    }
}

pub fn faults_of_a_baseline_call_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let segments = Segments::from_lengths([2, 3]).unwrap();
    let error = BaselinePlan::new(backend, &stream, &segments, &Groups::from_ids(&[0, 0, 1])).err().unwrap();
    assert!(error.to_string().contains("name segment 2, but there are 2"), "{error}");
    let plan = BaselinePlan::new(backend, &stream, &segments, &Groups::from_ids(&[0, 0])).unwrap();
    let four = backend.upload(&stream, &[0.0_f32; 4]).unwrap();
    let mut advantages = backend.allocate::<f32>(&stream, 5).unwrap();
    let mut workspace = backend.allocate::<u8>(&stream, 1).unwrap();
    let call = BaselineCall {
        returns: four.view(),
        logprobs: four.view(),
        sum_p2: four.view(),
        weights: None,
        loss_mask: None,
        advantages: advantages.view_mut(),
        nonfinite: None,
        errors: None,
        tag: 0,
        workspace: workspace.view_mut(),
    };
    let config = TokenBaseline { epsilon: -1.0, ..TokenBaseline::default() };
    let error = backend.token_baseline(&stream, &config, &plan, call).unwrap_err();
    for part in ["epsilon: is -1", "sum_p2: has shape [4], needs [5]", "workspace: has 1 bytes"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}
