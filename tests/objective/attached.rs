//! The self-normalised estimate with the gradient through its weights: the factors of `correction`, and what the objective makes of them.

use approx::assert_abs_diff_eq;
use moerl::advantage::GroupPlan;
use moerl::correction::{self, Plans, Rejection, Weight};
use moerl::error::Kind;
use moerl::objective::{
    Advantages, Aggregation, Anchor, Batch, Config, Denominators, Groups, Kl, KlForm, Output, Plan, Segments, Variant,
    workspace_bytes,
};
use moerl::{Backend, Buffer, Result};

use crate::case::{Case, run, run_plain, try_run};
use crate::common::bits;

/// Answers with their rewards.
#[derive(Clone, Debug)]
struct Answers {
    lengths: Vec<usize>,
    groups: Vec<i32>,
    rewards: Vec<f32>,
    logprobs: Vec<f32>,
    rollout: Vec<f32>,
    mask: Vec<u8>,
}

/// What came of the two calls.
#[derive(Clone, Debug)]
struct Attached {
    weights: Vec<f32>,
    expected_rewards: Vec<f64>,
    d_logprobs: Vec<f32>,
}

/// The correction, then the objective with its factors.
fn attached<B: Backend>(backend: &B, config: &correction::Config, answers: &Answers) -> Result<Attached> {
    let stream = backend.stream()?;
    let segments = Segments::from_lengths(answers.lengths.iter().copied())?;
    let plan = Plan::new(backend, &stream, &segments)?;
    let groups = GroupPlan::new(backend, &stream, &Groups::from_ids(&answers.groups))?;
    let plans = Plans { groups: Some(&groups), ..Plans::new(&plan) };
    let logprobs = backend.upload(&stream, &answers.logprobs)?;
    let rollout = backend.upload(&stream, &answers.rollout)?;
    let rewards = backend.upload(&stream, &answers.rewards)?;
    let mask = backend.upload(&stream, &answers.mask)?;

    let count = segments.len();
    let mut factors = backend.upload(&stream, &vec![f32::NAN; count])?;
    let mut weights = backend.upload(&stream, &vec![f32::NAN; count])?;
    let mut expected = backend.upload(&stream, &vec![f64::NAN; groups.groups().len()])?;
    let mut keep = backend.upload(&stream, &vec![9_u8; answers.mask.len()])?;
    let mut workspace = backend.allocate(&stream, correction::workspace_bytes(&plans))?;
    let batch = correction::Batch {
        loss_mask: Some(mask.view()),
        rewards: Some(rewards.view()),
        ..correction::Batch::new(logprobs.view(), rollout.view())
    };
    let output = correction::Output {
        advantages: Some(factors.view_mut()),
        segment_weights: Some(weights.view_mut()),
        expected_rewards: Some(expected.view_mut()),
        keep: Some(keep.view_mut()),
        ..correction::Output::new(workspace.view_mut())
    };
    backend.correction(&stream, config, plans, batch, output)?;

    let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; answers.mask.len()])?;
    let mut workspace = backend.allocate(&stream, workspace_bytes(&plan))?;
    let denominators = Denominators::global(segments.tokens() as u64, count as u64);
    let batch = Batch {
        loss_mask: Some(mask.view()),
        keep: Some(keep.view()),
        rollout_logprobs: Some(rollout.view()),
        ..Batch::new(logprobs.view(), Advantages::PerSegment(factors.view()), denominators)
    };
    let output = Output { d_logprobs: Some(d_logprobs.view_mut()), ..Output::new(workspace.view_mut()) };
    backend.objective(&stream, &Config::new(Variant::SnisAttached), &plan, batch, output)?;
    Ok(Attached {
        weights: backend.download(&stream, weights.view())?,
        expected_rewards: backend.download(&stream, expected.view())?,
        d_logprobs: backend.download(&stream, d_logprobs.view())?,
    })
}

fn plain() -> correction::Config {
    correction::Config::new(Weight::SelfNormalisedAttached)
}

/// −Σ w̄ R over every group, from the definition, with `step` added to the log-probability of one token.
fn objective_of(answers: &Answers, moved: usize, step: f64) -> f64 {
    let segments = Segments::from_lengths(answers.lengths.iter().copied()).unwrap();
    let x: Vec<Option<f64>> = segments
        .ranges()
        .map(|range| {
            let counted: Vec<usize> = range.filter(|&u| answers.mask[u] != 0).collect();
            let l = |u: usize| f64::from(answers.logprobs[u]) + if u == moved { step } else { 0.0 };
            let sum: f64 = counted.iter().map(|&u| l(u) - f64::from(answers.rollout[u])).sum();
            (!counted.is_empty()).then(|| sum.clamp(-20.0, 20.0))
        })
        .collect();
    let mut loss = 0.0;
    let ids = answers.groups.iter().copied().collect::<std::collections::BTreeSet<_>>();
    for id in ids {
        let members = || (0..x.len()).filter(|&i| answers.groups[i] == id).filter_map(|i| Some((i, x[i]?)));
        let total: f64 = members().map(|(_, x)| x.exp()).sum();
        loss -= members().map(|(i, x)| x.exp() / total * f64::from(answers.rewards[i])).sum::<f64>();
    }
    loss
}

pub fn attached_weights_have_the_values_of_the_table<B: Backend>(backend: &B) {
    // Weights in the ratio of 2, 1, 1.
    let answers = Answers {
        lengths: vec![1, 2, 1],
        groups: vec![4, 4, 4],
        rewards: vec![1.0, 0.0, 0.5],
        logprobs: vec![0.5_f32.ln(), -1.0, -2.0, -3.0],
        rollout: vec![0.25_f32.ln(), -1.0, -2.0, -3.0],
        mask: vec![1; 4],
    };
    let found = attached(backend, &plain(), &answers).unwrap();
    for (f, e) in found.weights.iter().zip([1.5, 0.75, 0.75]) {
        assert_abs_diff_eq!(*f, e, epsilon = 1e-6);
    }
    for (f, e) in found.d_logprobs.iter().zip([-0.1875, 0.15625, 0.15625, 0.03125]) {
        assert!((f - e).abs() < 1e-6 * e.abs(), "{:?}", found.d_logprobs);
    }
    let sum = found.d_logprobs[0] + found.d_logprobs[1] + found.d_logprobs[3];
    assert!(sum.abs() < 1e-7, "one token of each: {sum}");
    assert_abs_diff_eq!(found.expected_rewards[0], 0.625, epsilon = 1e-7);
}

pub fn attached_gradients_are_those_of_the_estimate<B: Backend>(backend: &B) {
    let lengths = vec![3, 40, 1, 17, 0, 5, 33, 2, 6, 1100, 4];
    let case = Case::random(&lengths, 4).with_mask(4);
    let mut mask = case.loss_mask.clone().unwrap();
    // The last but two has no counted token, the last one is beyond the saturation.
    mask[101..107].fill(0);
    mask[43] = 1;
    let mut rollout = case.old_logprobs.clone().unwrap();
    let last = rollout.len() - 1;
    (mask[last], rollout[last]) = (1, case.logprobs[last] - 30.0);
    let answers = Answers {
        // A group of one among them: the third segment.
        groups: vec![0, 1, 2, 0, 1, 1, 0, 0, 1, 1, 0],
        rewards: vec![1.0, 0.0, 3.0, -0.5, 1.0, 0.25, 0.5, 0.0, 1.0, -1.0, 0.75],
        lengths,
        logprobs: case.logprobs,
        rollout,
        mask,
    };
    let found = attached(backend, &plain(), &answers).unwrap();
    let value: f64 = found.expected_rewards.iter().sum();
    let exact = objective_of(&answers, 0, 0.0);
    assert!((value + exact).abs() <= 2e-5, "{value} not {exact}");
    let (mut worst, mut some) = (0.0_f64, 0);
    for (u, &g) in found.d_logprobs.iter().enumerate() {
        let h = 1e-3;
        let at = |step: f64| objective_of(&answers, u, step);
        let expected = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        // X of 1100 tokens is known to some 1e-5, and with it every weight of its group.
        let error = (f64::from(g) - expected).abs();
        worst = worst.max(error);
        assert!(error <= 1e-5 * expected.abs() + 1e-7, "token {u}: {g} not {expected}");
        assert!(answers.mask[u] != 0 || g.to_bits() == 0, "token {u}: {g}");
        some += u32::from(g.abs() > 1e-3);
    }
    println!("{}: {worst:.1e}, {some} gradients above 1e-3", backend.name());
    assert!(some > 50);
    assert_eq!(found.d_logprobs[43], 0.0, "alone in its group");
    assert_eq!(found.d_logprobs[last], 0.0, "beyond the saturation");
}

/// What a rejection leaves out has no part in the estimate.
pub fn rejected_segments_have_no_part_in_an_attached_estimate<B: Backend>(backend: &B) {
    let answers = Answers {
        lengths: vec![1, 1, 1],
        groups: vec![0, 0, 0],
        rewards: vec![1.0, 0.0, 0.5],
        logprobs: vec![-1.0, -1.0, -1.0],
        rollout: vec![-1.0, -2.0, -6.0],
        mask: vec![1; 3],
    };
    let config = plain().with_rejection(Rejection::Veto { low: 0.0, high: 10.0 });
    let (found, without) = (attached(backend, &config, &answers).unwrap(), {
        let mut answers = answers.clone();
        answers.mask[2] = 0;
        attached(backend, &plain(), &answers).unwrap()
    });
    assert_eq!(bits(&found.d_logprobs), bits(&without.d_logprobs));
    assert_eq!((found.d_logprobs[2], found.weights[2]), (0.0, 0.0));
    assert!(found.d_logprobs[0] < 0.0 && found.d_logprobs[1] > 0.0, "{:?}", found.d_logprobs);
}

pub fn an_attached_objective_is_linear_in_its_factors<B: Backend>(backend: &B) {
    let case = Case::random(&[40, 1, 0, 900, 17, 1100], 5).with_mask(5).with_terms(5);
    for kl in [None, Some(Kl::new(0.1, KlForm::K3))] {
        let of = |variant| Config { kl, aggregation: Aggregation::TokenSum, ..Config::new(variant) };
        let (attached, plain) = (of(Variant::SnisAttached), of(Variant::Gpg));
        let (found, expected) = (run_plain(backend, &attached, &case), run_plain(backend, &plain, &case));
        assert_eq!(found.0.to_bits(), expected.0.to_bits());
        assert_eq!(bits(&found.1), bits(&expected.1));
        // What the diagnostics call the ratio is that to the rollout.
        let anchored = Config { anchor: Anchor::Rollout, ..plain };
        assert_eq!(bits(&run(backend, &attached, &case).ratio), bits(&run(backend, &anchored, &case).ratio));
    }
}

pub fn attached_weights_without_what_they_need_are_refused<B: Backend>(backend: &B) {
    let case = Case::random(&[3, 4], 2).with_terms(2);
    let config = Config::new(Variant::SnisAttached);
    assert!(try_run(backend, &config, &case).is_ok());
    let old = Config { anchor: Anchor::Old, ..config.clone() };
    let by_length = config.clone().with_aggregation(Aggregation::SeqMeanTokenMean);
    let per_token = case.clone().with_token_advantages(2);
    let weighted = Case { segment_weights: Some(vec![1.0; 2]), ..case.clone() };
    let without = Case { rollout_logprobs: None, ..case.clone() };
    for (config, case, kind, part) in [
        (&old, &case, Kind::Config, "anchor: is Old"),
        (&by_length, &case, Kind::Config, "aggregation: is SeqMeanTokenMean"),
        (&config, &per_token, Kind::Config, "advantages: are per token"),
        (&config, &weighted, Kind::DoubleCorrection, "a second time"),
        (&config, &without, Kind::MissingInput, "rollout_logprobs: is missing"),
    ] {
        let error = try_run(backend, config, case).unwrap_err();
        assert!(error.is(kind) && error.to_string().contains(part), "{part:?} is not in {error}");
    }
}
