//! The advantage and objective stages.

use std::borrow::Cow;

use moerl::covariance::{Call, Config as Covariance, Rule, workspace_bytes};
use moerl::diagnostics::Diagnostics;
use moerl::objective::{Aggregation, Anchor, DenominatorBasis, Groups, Segments};
use moerl::{Backend, Buffer, Reference};

use super::correction::Corrected;
use super::plan::{Advantage, Plan};
use super::{Context, Stage, largest_difference};
use crate::advantage::{Rewards, returns};
use crate::clock::Clock;
use crate::failure::{Failure, Result};
use crate::findings::Settle;
use crate::objective::{Counts, HostAdvantages, Inputs, Outcome, run};
use crate::stepfile::{AdvantageSource, Policy, StepFile};

/// The advantages of a step.
#[derive(Clone, Debug)]
pub enum Owned<'a> {
    /// `[S]`
    PerSegment(Cow<'a, [f32]>),
    /// `[N]`
    PerToken(Cow<'a, [f32]>),
}

impl Owned<'_> {
    /// Borrowed.
    pub fn get(&self) -> HostAdvantages<'_> {
        match self {
            Owned::PerSegment(values) => HostAdvantages::PerSegment(values),
            Owned::PerToken(values) => HostAdvantages::PerToken(values),
        }
    }
}

/// The file's advantages, or those that its rewards come to. Where the correction makes something of rewards, the rewards.
///
/// # Errors
/// Rewards that `--advantage` needs, or what the backend met.
pub fn advantages<'a, B: Backend>(context: &Context<'a, B>, plan: &Plan) -> Result<(Owned<'a>, Option<Stage>)> {
    let file = context.file;
    let rewards = match file.advantage() {
        _ if plan.advantage == Advantage::Attached => file.reward("--objective snis-attached")?,
        _ if plan.from_rewards => file.reward("--advantage")?,
        Some(AdvantageSource::PerToken(tensor)) => return Ok((Owned::PerToken(tensor.all()), None)),
        Some(AdvantageSource::PerSegment(tensor)) => return Ok((Owned::PerSegment(tensor.all()), None)),
        Some(AdvantageSource::Reward(tensor)) => tensor.all::<f32>(),
        None => return Err(Failure::input("advantages: missing")),
    };
    let segments = Segments::from_offsets(&file.offsets)?;
    let mut stage = Stage::new("advantage", rewards.len());
    match plan.advantage {
        Advantage::Segments(estimator) => {
            let ids = file.group().ok_or_else(|| Failure::input("group: missing, needed to normalise reward"))?;
            let counted = |range: std::ops::Range<usize>| context.mask[range].iter().filter(|&&m| m != 0).count();
            let lengths: Vec<u32> = segments.ranges().map(|range| counted(range) as u32).collect();
            let inputs = Rewards { groups: &Groups::from_ids(&ids), rewards: &rewards, lengths: Some(&lengths) };
            let (backend, stream) = (context.backend, &context.stream);
            let found = crate::advantage::run(backend, stream, &estimator, &inputs, &mut stage.clock)?;
            if context.compare {
                let exact = crate::advantage::run(&Reference, &(), &estimator, &inputs, &mut Clock::default())?;
                stage.differs("advantages", largest_difference(&found, &exact));
            }
            Ok((Owned::PerSegment(found.into()), Some(stage)))
        }
        // Their correction makes something of the rewards.
        Advantage::Attached => Ok((Owned::PerSegment(rewards), None)),
        Advantage::Returns { gamma } => {
            let (backend, stream, mask) = (context.backend, &context.stream, &context.mask);
            let found = returns(backend, stream, gamma, &segments, &rewards, mask, &mut stage.clock)?;
            if context.compare {
                let exact = returns(&Reference, &(), gamma, &segments, &rewards, mask, &mut Clock::default())?;
                stage.differs("advantages", largest_difference(&found, &exact));
            }
            Ok((Owned::PerToken(found.into()), Some(stage)))
        }
    }
}

/// What the objective computed, and what the reference made of the same inputs.
#[derive(Debug)]
pub struct Computed {
    /// On the backend.
    pub found: Outcome,
    /// The reference's loss and diagnostics, if they were asked for.
    pub exact: Option<(f64, Diagnostics)>,
    /// The line of the table.
    pub stage: Stage,
    /// Whether there was anything to take ratios against.
    pub has_anchor: bool,
}

/// What the stages before have made.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// `[N]`, under the current policy.
    pub logprobs: &'a [f32],
    /// `[N]`, of the current policy; empty where the file has no logits.
    pub entropy: &'a [f32],
    /// A.
    pub advantages: HostAdvantages<'a>,
    /// Weights and rejections.
    pub corrected: Option<&'a Corrected>,
}

/// Loss and gradient.
///
/// # Errors
/// Tensors that an option needs, a finding at a counted token, or what the backend met.
pub fn objective<B: Backend>(context: &Context<'_, B>, plan: &Plan, made: Made<'_>) -> Result<Computed> {
    let (file, config) = (context.file, &plan.config);
    let old = file.logprobs(Policy::Old).filter(|_| config.anchor == Anchor::Old);
    let rollout = needed(file, Policy::Rollout, rollout_user(plan))?;
    let reference = needed(file, Policy::Reference, config.kl.map(|_| "--beta"))?;
    if config.entropy_bonus != 0.0 && made.entropy.is_empty() && file.tokens > 0 {
        return Err(Failure::input(
            "logits: missing, needed by --entropy-coef: log-probabilities alone have no entropy",
        ));
    }
    let segments = Segments::from_offsets(&file.offsets)?;
    let mut inputs = Inputs {
        old: old.as_deref(),
        rollout: rollout.as_deref(),
        reference: reference.as_deref(),
        entropy: (config.entropy_bonus != 0.0).then_some(made.entropy),
        weights: made.corrected.and_then(|corrected| corrected.weights.as_deref()),
        keep: made.corrected.and_then(|corrected| corrected.keep.as_deref()),
        ..Inputs::new(&segments, made.logprobs, made.advantages, &context.mask)
    };
    if config.variant == moerl::objective::Variant::ReinforceIs && inputs.weights.is_none() {
        return Err(Failure::input("--objective reinforce-is: weighs tokens, but --correction has no weight"));
    }
    let singled = plan.covariance.map(|rule| single_out(context, plan, rule, &inputs)).transpose()?;
    match (&singled, plan.covariance) {
        (Some(singled), Some(Rule::Largest { .. })) => inputs.chosen = Some(&singled.chosen),
        (Some(singled), Some(_)) => inputs.keep = Some(&singled.keep),
        _ => {}
    }
    let (counts, scale) = counts(file, &segments, &context.mask, inputs.keep, plan)?;
    (inputs.counts, inputs.segment_scale) = (counts, scale.as_deref());

    let mut stage = Stage::new("objective", file.tokens);
    let (found, fault) = run(context.backend, &context.stream, config, &inputs, &mut stage.clock)?;
    let settle =
        Settle { tensor: "objective", rows: 0..file.tokens, mask: &context.mask, nonfinite: context.nonfinite };
    // Masked tokens are absent already: a second run would find the same.
    stage.findings += settle.by(fault, |row| words(&inputs, context.nonfinite, row), |_| Ok(fault))?;
    let mut exact = None;
    if context.compare {
        let (reference, _) = run(&Reference, &(), config, &inputs, &mut Clock::default())?;
        stage.differs("d_logprobs", largest_difference(&found.d_logprobs, &reference.d_logprobs));
        stage.differs("ratio", largest_difference(&found.sequence_ratio, &reference.sequence_ratio));
        let differ = found.clipped.iter().zip(&reference.clipped).filter(|(a, b)| a != b).count();
        stage.rows_differ("clipped", differ);
        exact = Some((reference.loss, reference.diagnostics));
    }
    let has_anchor = inputs.old.is_some() || config.anchor == Anchor::Rollout;
    Ok(Computed { found, exact, stage, has_anchor })
}

/// The option that reads the rollout's log-probabilities, if one does.
fn rollout_user(plan: &Plan) -> Option<&'static str> {
    let config = &plan.config;
    let is_minirl = matches!(config.variant, moerl::objective::Variant::MiniRl(_));
    [
        (config.anchor == Anchor::Rollout, "--anchor rollout"),
        (is_minirl, "--objective minirl"),
        (config.mismatch_penalty != 0.0, "--mismatch-penalty"),
    ]
    .into_iter()
    .find_map(|(reads, option)| reads.then_some(option))
}

/// A policy's log-probabilities, where an option reads them.
fn needed<'a>(file: &'a StepFile, policy: Policy, by: Option<&str>) -> Result<Option<Cow<'a, [f32]>>> {
    let Some(by) = by else { return Ok(None) };
    let missing = || Failure::input(format!("{}: missing, needed by {by}", policy.tensor()));
    file.logprobs(policy).map(Some).ok_or_else(missing)
}

/// The tokens that Clip-Cov and KL-Cov single out.
struct Singled {
    /// `[N]`: 1 for those.
    chosen: Vec<u8>,
    /// `[N]`: 0 for those, and for those that were rejected before.
    keep: Vec<u8>,
}

/// Runs the covariance. Clip-Cov leaves the tokens alone that the window stops already: the objective tells which.
fn single_out<B: Backend>(context: &Context<'_, B>, plan: &Plan, rule: Rule, inputs: &Inputs<'_>) -> Result<Singled> {
    let (backend, stream, n) = (context.backend, &context.stream, inputs.mask.len());
    let (counts, scale) = counts(context.file, inputs.segments, inputs.mask, inputs.keep, plan)?;
    let excluded = match rule {
        Rule::Largest { .. } => None,
        _ => {
            let inputs = Inputs { counts, segment_scale: scale.as_deref(), ..*inputs };
            Some(run(backend, stream, &plan.config, &inputs, &mut Clock::default())?.0.clipped)
        }
    };
    let by_token: Vec<f32> = inputs
        .segments
        .ranges()
        .enumerate()
        .flat_map(|(segment, range)| range.map(move |u| inputs.advantages.at(segment, u)))
        .collect();
    let (logprobs, advantages) = (backend.upload(stream, inputs.logprobs)?, backend.upload(stream, &by_token)?);
    let loss_mask = backend.upload(stream, inputs.mask)?;
    let excluded = excluded.map(|excluded| backend.upload(stream, &excluded)).transpose()?;
    let token_ids = backend.upload(stream, &(0..n as u32).collect::<Vec<_>>())?;
    let (mut chosen, mut keep) = (backend.allocate::<u8>(stream, n)?, backend.allocate::<u8>(stream, n)?);
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(n))?;
    let call = Call {
        logprobs: logprobs.view(),
        advantages: advantages.view(),
        loss_mask: Some(loss_mask.view()),
        excluded: excluded.as_ref().map(Buffer::view),
        token_ids: token_ids.view(),
        chosen: Some(chosen.view_mut()),
        keep: Some(keep.view_mut()),
        workspace: workspace.view_mut(),
    };
    backend.covariance(stream, &Covariance::new(rule), call)?;
    let mut keep = backend.download(stream, keep.view())?;
    if let Some(before) = inputs.keep {
        keep.iter_mut().zip(before).for_each(|(keep, before)| *keep &= u8::from(*before != 0));
    }
    Ok(Singled { chosen: backend.download(stream, chosen.view())?, keep })
}

/// The denominators of the file, and what the aggregation reads by segment: for the mean over prompts the counted tokens of the segment's
/// prompt, for the custom one 1 / (segments · its tokens), as slime's mean over samples.
fn counts(
    file: &StepFile,
    segments: &Segments,
    mask: &[u8],
    keep: Option<&[u8]>,
    plan: &Plan,
) -> Result<(Counts, Option<Vec<f32>>)> {
    let config = &plan.config;
    let keep = keep.filter(|_| config.denominator_basis == DenominatorBasis::AfterRejection);
    let counts_in = |u: usize| mask[u] != 0 && keep.is_none_or(|keep| keep[u] != 0);
    let by_segment: Vec<u64> = segments.ranges().map(|range| range.filter(|&u| counts_in(u)).count() as u64).collect();
    let nonempty = by_segment.iter().filter(|&&n| n > 0).count();
    let mut counts = Counts {
        tokens: by_segment.iter().sum(),
        segments: if config.count_empty { by_segment.len() } else { nonempty } as u64,
        prompts: 0,
        max_len: plan.max_len.unwrap_or(segments.longest() as u64),
    };
    match config.aggregation {
        Aggregation::PromptMean => {
            let missing = || Failure::input("group: missing, needed by --aggregation prompt-mean");
            let groups = Groups::from_ids(&file.group().ok_or_else(missing)?);
            let mut prompt_tokens = vec![0.0; by_segment.len()];
            for group in 0..groups.len() {
                let members = groups.members(group);
                let tokens: u64 = members.iter().map(|&member| by_segment[member as usize]).sum();
                counts.prompts += u64::from(tokens > 0);
                members.iter().for_each(|&member| prompt_tokens[member as usize] = tokens as f32);
            }
            Ok((counts, Some(prompt_tokens)))
        }
        Aggregation::Custom => {
            let coefficient = |&n: &u64| if n > 0 { 1.0 / (counts.segments as f64 * n as f64) } else { 0.0 };
            Ok((counts, Some(by_segment.iter().map(|n| coefficient(n) as f32).collect())))
        }
        _ => Ok((counts, None)),
    }
}

/// What is wrong with a counted token's inputs, in words, if no option allows it.
fn words(inputs: &Inputs<'_>, nonfinite_allowed: bool, row: usize) -> Option<String> {
    let mask = inputs.mask[row];
    if mask > 1 {
        return Some(format!("loss_mask: token {row} is {mask}, needs 0 or 1"));
    }
    let segment = inputs.segments.offsets().partition_point(|&end| end <= row as i64) - 1;
    let at = |values: Option<&[f32]>| values.map(|values| values[row]);
    let values = [
        ("logprobs", Some(inputs.logprobs[row]), true),
        ("old_logprobs", at(inputs.old), true),
        ("rollout_logprobs", at(inputs.rollout), true),
        ("ref_logprobs", at(inputs.reference), true),
        ("advantages", Some(inputs.advantages.at(segment, row)), false),
    ];
    values.into_iter().find_map(|(name, value, is_logprob)| {
        let value = value?;
        if is_logprob && value > 1e-3 && value.is_finite() {
            return Some(format!(
                "{name}: token {row}, which counts, is {value}, needs a log-probability of at most 0"
            ));
        }
        let refused = !value.is_finite() && !nonfinite_allowed;
        refused.then(|| format!("{name}: token {row}, which counts, is {value} (--nonfinite runs it all the same)"))
    })
}
