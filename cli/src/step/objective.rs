//! The advantage and objective stages.

use std::borrow::Cow;

use clap::ValueEnum;
use moerl::advantage;
use moerl::diagnostics::Diagnostics;
use moerl::objective::{Aggregation, Algorithm, Cap, Config, Groups, NonFinite, Segments, Variant};
use moerl::{Backend, Reference};

use super::{Context, Stage, largest_difference};
use crate::advantage::{Estimator, Rewards};
use crate::arguments::{self, AggregationName, AnchorName, NonfiniteName, ObjectiveName, Switch};
use crate::clock::Clock;
use crate::failure::{Failure, Result};
use crate::findings::Settle;
use crate::objective::{Counts, HostAdvantages, Inputs, Outcome, run};
use crate::stepfile::{AdvantageSource, Policy, StepFile};

/// The settings of a step's objective.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The objective.
    pub config: Config,
    /// How rewards become advantages.
    pub advantage: advantage::Config,
    /// What ratios are taken against.
    pub anchor: AnchorName,
    /// L, if it is given.
    pub max_len: Option<u64>,
    /// In words, for the table.
    pub words: String,
}

impl Plan {
    /// What the options come to.
    ///
    /// # Errors
    /// [`Failure::Input`] for numbers outside their range.
    pub fn new(options: &arguments::Step) -> Result<Plan> {
        let (algorithm, name) = match options.objective {
            ObjectiveName::Gspo => (Algorithm::Gspo, "gspo"),
            ObjectiveName::GspoToken => (Algorithm::GspoToken, "gspo-token"),
            ObjectiveName::Grpo => (Algorithm::Grpo, "grpo"),
            ObjectiveName::Dapo => (Algorithm::Dapo, "dapo"),
            ObjectiveName::DrGrpo => (Algorithm::DrGrpo, "dr-grpo"),
        };
        let mut config = Config::preset(options.preset.objective(), algorithm);
        let (Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip)) = &mut config.variant else {
            return Err(Failure::input(format!("--objective {name}: has no clip window")));
        };
        clip.low = options.clip_low.unwrap_or(clip.low);
        clip.high = options.clip_high.unwrap_or(clip.high);
        clip.cap = match (options.dual_clip, options.delta) {
            (Some(bound), _) => Cap::Dual(bound),
            (_, Some(bound)) => Cap::Delta(bound),
            _ => clip.cap,
        };
        if let Some(aggregation) = options.aggregation {
            config.aggregation = aggregation_of(aggregation);
        }
        config.nonfinite = match options.nonfinite {
            Some(NonfiniteName::Propagate) => NonFinite::Propagate,
            Some(NonfiniteName::DropSegment) => NonFinite::DropSegment,
            Some(NonfiniteName::ZeroWeight) | None => NonFinite::ZeroWeight,
        };
        config.validate()?;
        let std = options.std.map_or(options.objective != ObjectiveName::DrGrpo, |std| std == Switch::On);
        let advantage = options.preset.advantage(std);
        let Some(clip) = config.variant.clip() else {
            return Err(Failure::input(format!("--objective {name}: has no clip window")));
        };
        let cap = match clip.cap {
            Cap::Dual(bound) => format!(", dual clip {bound}"),
            Cap::Delta(bound) => format!(", delta {bound}"),
            _ => String::new(),
        };
        let aggregation = name_of(config.aggregation);
        let words = format!("{name}, window 1 - {} to 1 + {}{cap}, {aggregation}", clip.low, clip.high);
        Ok(Plan { config, advantage, anchor: options.anchor, max_len: options.max_len, words })
    }
}

fn aggregation_of(name: AggregationName) -> Aggregation {
    match name {
        AggregationName::TokenMean => Aggregation::TokenMean,
        AggregationName::TokenSum => Aggregation::TokenSum,
        AggregationName::SeqMeanTokenMean => Aggregation::SeqMeanTokenMean,
        AggregationName::SeqMeanTokenSum => Aggregation::SeqMeanTokenSum,
        AggregationName::SeqMeanTokenSumNorm => Aggregation::SeqMeanTokenSumNorm,
        AggregationName::PromptMean => Aggregation::PromptMean,
    }
}

/// The name that `--aggregation` has for it.
fn name_of(aggregation: Aggregation) -> String {
    let named = AggregationName::value_variants().iter().find(|&&name| aggregation_of(name) == aggregation);
    let value = named.and_then(ValueEnum::to_possible_value);
    value.map_or_else(|| format!("{aggregation:?}"), |value| value.get_name().to_owned())
}

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

/// The file's advantages, or those that its rewards come to.
///
/// # Errors
/// What the backend met.
pub fn advantages<'a, B: Backend>(context: &Context<'a, B>, plan: &Plan) -> Result<(Owned<'a>, Option<Stage>)> {
    let rewards = match context.file.advantage() {
        Some(AdvantageSource::PerToken(tensor)) => return Ok((Owned::PerToken(tensor.all()), None)),
        Some(AdvantageSource::PerSegment(tensor)) => return Ok((Owned::PerSegment(tensor.all()), None)),
        Some(AdvantageSource::Reward(tensor)) => tensor.all::<f32>(),
        None => return Err(Failure::input("advantages: missing")),
    };
    let groups = Groups::from_ids(&context.file.group().unwrap_or_default());
    let mut stage = Stage::new("advantage", rewards.len());
    let estimator = Estimator::Group(plan.advantage);
    let inputs = Rewards { groups: &groups, rewards: &rewards, lengths: None };
    let found = crate::advantage::run(context.backend, &context.stream, &estimator, &inputs, &mut stage.clock)?;
    if context.compare {
        let exact = crate::advantage::run(&Reference, &(), &estimator, &inputs, &mut Clock::default())?;
        stage.differs("advantages", largest_difference(&found, &exact));
    }
    Ok((Owned::PerSegment(found.into()), Some(stage)))
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

/// Loss and gradient.
///
/// # Errors
/// Log-probabilities that an option needs, a finding at a counted token, or what the backend met.
pub fn objective<B: Backend>(
    context: &Context<'_, B>,
    plan: &Plan,
    logprobs: &[f32],
    advantages: HostAdvantages<'_>,
    weights: Option<&[f32]>,
) -> Result<Computed> {
    let file = context.file;
    let anchor = match plan.anchor {
        AnchorName::Old => file.logprobs(Policy::Old),
        AnchorName::Rollout => Some(
            file.logprobs(Policy::Rollout)
                .ok_or_else(|| Failure::input("rollout_logprobs: missing, needed by --anchor rollout"))?,
        ),
    };
    let segments = Segments::from_offsets(&file.offsets)?;
    let (counts, prompt_tokens) = counts(file, &segments, &context.mask, plan)?;
    let inputs = Inputs {
        segments: &segments,
        logprobs,
        anchor: anchor.as_deref(),
        advantages,
        mask: &context.mask,
        weights,
        keep: None,
        reference: None,
        segment_scale: prompt_tokens.as_deref(),
        counts,
    };
    let mut stage = Stage::new("objective", file.tokens);
    let (found, fault) = run(context.backend, &context.stream, &plan.config, &inputs, &mut stage.clock)?;
    let settle =
        Settle { tensor: "objective", rows: 0..file.tokens, mask: &context.mask, nonfinite: context.nonfinite };
    // Masked tokens are absent already: a second run would find the same.
    stage.findings += settle.by(fault, |row| words(&inputs, plan.anchor, context.nonfinite, row), |_| Ok(fault))?;
    let mut exact = None;
    if context.compare {
        let (reference, _) = run(&Reference, &(), &plan.config, &inputs, &mut Clock::default())?;
        stage.differs("d_logprobs", largest_difference(&found.d_logprobs, &reference.d_logprobs));
        stage.differs("ratio", largest_difference(&found.sequence_ratio, &reference.sequence_ratio));
        let differ = found.clipped.iter().zip(&reference.clipped).filter(|(a, b)| a != b).count();
        stage.rows_differ("clipped", differ);
        exact = Some((reference.loss, reference.diagnostics));
    }
    Ok(Computed { found, exact, stage, has_anchor: anchor.is_some() })
}

/// The denominators of the file, and for the mean over prompts the counted tokens of each segment's prompt.
fn counts(file: &StepFile, segments: &Segments, mask: &[u8], plan: &Plan) -> Result<(Counts, Option<Vec<f32>>)> {
    let by_segment: Vec<u64> =
        segments.ranges().map(|range| mask[range].iter().filter(|&&m| m != 0).count() as u64).collect();
    let nonempty = by_segment.iter().filter(|&&n| n > 0).count();
    let mut counts = Counts {
        tokens: by_segment.iter().sum(),
        segments: if plan.config.count_empty { by_segment.len() } else { nonempty } as u64,
        prompts: 0,
        max_len: plan.max_len.unwrap_or(segments.longest() as u64),
    };
    if plan.config.aggregation != Aggregation::PromptMean {
        return Ok((counts, None));
    }
    let ids = file.group().ok_or_else(|| Failure::input("group: missing, needed by --aggregation prompt-mean"))?;
    let groups = Groups::from_ids(&ids);
    let mut prompt_tokens = vec![0.0; by_segment.len()];
    for group in 0..groups.len() {
        let members = groups.members(group);
        let tokens: u64 = members.iter().map(|&member| by_segment[member as usize]).sum();
        counts.prompts += u64::from(tokens > 0);
        members.iter().for_each(|&member| prompt_tokens[member as usize] = tokens as f32);
    }
    Ok((counts, Some(prompt_tokens)))
}

/// What is wrong with a counted token's inputs, in words, if no option allows it.
fn words(inputs: &Inputs<'_>, anchor: AnchorName, nonfinite_allowed: bool, row: usize) -> Option<String> {
    let mask = inputs.mask[row];
    if mask > 1 {
        return Some(format!("loss_mask: token {row} is {mask}, needs 0 or 1"));
    }
    let anchor_name = match anchor {
        AnchorName::Old => "old_logprobs",
        AnchorName::Rollout => "rollout_logprobs",
    };
    let segment = inputs.segments.offsets().partition_point(|&end| end <= row as i64) - 1;
    let advantage = Some(inputs.advantages.at(segment, row));
    let values = [
        ("logprobs", Some(inputs.logprobs[row]), true),
        (anchor_name, inputs.anchor.map(|anchor| anchor[row]), true),
        ("advantages", advantage, false),
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
