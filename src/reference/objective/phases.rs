//! The three phases, and all in one.

use super::statistics::{Statistics, sequence_clipped};
use super::{
    Coefficient, Counts, Finished, Sums, Tokens, apply_token, finish_segment, flag, has_varying_advantage,
    local_counts, sum_segment,
};
use crate::abi::MOERL_NO_FAULT;
#[cfg(doc)]
use crate::backend::Backend;
use crate::diagnostics::{SUMS, Sum};
use crate::error::{Fault, FaultCode, Result};
use crate::memory::{Host, View, ViewMut};
use crate::objective::{self, Advantages, Anchor, Batch, Config, Denominators, Output, Phases, Plane};
use crate::reference::Reference;
use crate::segments::{Plan, Segments};

fn wide(array: View<'_, f32, Host>) -> Vec<f64> {
    array.as_slice().iter().map(|&x| f64::from(x)).collect()
}

impl Tokens {
    fn of(config: &Config, batch: &Batch<'_, Host>) -> Tokens {
        let (advantages, per_token) = match batch.advantages {
            Advantages::PerSegment(array) => (array, false),
            Advantages::PerToken(array) => (array, true),
        };
        Tokens {
            logprobs: wide(batch.logprobs),
            old_logprobs: match config.anchor {
                Anchor::Old => batch.old_logprobs.map(wide),
                Anchor::Rollout => batch.rollout_logprobs.map(wide),
            },
            advantages: wide(advantages),
            per_token,
            loss_mask: batch.loss_mask.map(|mask| mask.as_slice().to_vec()),
            weights: batch.weights.map(wide),
            segment_weights: batch.segment_weights.map(wide),
            keep: batch.keep.map(|keep| keep.as_slice().to_vec()),
            chosen: batch.chosen.map(|chosen| chosen.as_slice().to_vec()),
            router_shift: batch.router_shift.map(wide),
            rollout_logprobs: batch
                .rollout_logprobs
                .filter(|_| config.anchor == Anchor::Old && config.uses_rollout())
                .map(wide),
            ref_logprobs: batch.ref_logprobs.filter(|_| config.kl.is_some()).map(wide),
            entropy: batch.entropy.filter(|_| config.entropy_bonus != 0.0).map(wide),
            segment_scale: batch.segment_scale.map(wide),
        }
    }

    fn scale(&self, segment: usize) -> f64 {
        self.segment_scale.as_ref().map_or(1.0, |scale| scale[segment])
    }
}

fn counts_of(config: &Config, segments: &Segments, batch: &Batch<'_, Host>, tokens: &Tokens) -> Counts {
    match batch.denominators {
        Denominators::Global { tokens, segments, prompts, max_len } => {
            [tokens as f64, segments as f64, prompts as f64, max_len as f64]
        }
        Denominators::Device(array) => {
            let array = array.as_slice();
            [array[0], array[1], array[2], array[3]]
        }
        Denominators::Local { max_len } => local_counts(config, segments, tokens, max_len),
    }
}

fn report(output: &mut Output<'_, Host>, fault: u64) {
    if let Some(word) = &mut output.errors {
        let word = &mut word.as_mut_slice()[0];
        *word = fault.min(*word);
    }
}

fn add_loss(output: &mut Output<'_, Host>, loss: f64) {
    if let Some(total) = &mut output.loss {
        total.as_mut_slice()[0] += loss;
    }
    if let Some(sums) = &mut output.diagnostics {
        sums.as_mut_slice()[Sum::Loss as usize] += loss;
    }
}

fn add_statistics(output: &mut Output<'_, Host>, statistics: &Statistics) {
    if let Some(sums) = &mut output.diagnostics {
        statistics.merge(sums.as_mut_slice());
    }
}

/// Sets to zero what the phases add to.
fn open(output: &mut Output<'_, Host>) {
    if output.accumulate {
        return;
    }
    if let Some(loss) = &mut output.loss {
        loss.as_mut_slice()[0] = 0.0;
    }
    if let Some(sums) = &mut output.diagnostics {
        let sums = sums.as_mut_slice();
        sums[..SUMS].fill(0.0);
        sums[SUMS..].fill(f64::NEG_INFINITY);
    }
}

fn sum_tokens(config: &Config, segments: &Segments, tokens: &Tokens, output: &mut Output<'_, Host>) -> Vec<Sums> {
    let mut fault = MOERL_NO_FAULT;
    let mut statistics = Statistics::new();
    let sums = segments
        .ranges()
        .enumerate()
        .map(|(segment, range)| {
            for u in range.clone() {
                fault = fault.min(tokens.fault(u, segment, output.tag));
                if tokens.counts(u) && config.variant.is_sequence_level() {
                    statistics.token(config, tokens, u, tokens.token_counted(config, u, segment));
                }
            }
            if has_varying_advantage(config, tokens, segment, range.clone()) {
                let varying = Fault { row: segment as u64, tag: output.tag, code: FaultCode::VaryingAdvantage };
                fault = fault.min(varying.to_word());
            }
            sum_segment(config, tokens, segment, range)
        })
        .collect();
    report(output, fault);
    add_statistics(output, &statistics);
    sums
}

fn finish_all(
    config: &Config,
    tokens: &Tokens,
    counts: &Counts,
    sums: &[Sums],
    output: &mut Output<'_, Host>,
) -> Vec<Coefficient> {
    let with_ratio = config.planes().contains(&Plane::LogRatio) || output.wants_sequence();
    let with_signs = config.planes().contains(&Plane::PositiveAdvantage) || output.wants_sequence();
    let mut fault = MOERL_NO_FAULT;
    let mut statistics = Statistics::new();
    let mut loss = 0.0;
    let mut made = Vec::with_capacity(sums.len());
    for (segment, sums) in sums.iter().enumerate() {
        // What no term needs is not summed.
        let sums = &if with_signs { *sums } else { Sums { positive: 0.0, negative: 0.0, ..*sums } };
        let (scale, weight) = (tokens.scale(segment), tokens.segment_weight(segment));
        let Finished { coefficient, value, no_denominator, bad_weight, both_signs } =
            finish_segment(config, counts, sums, scale, weight);
        loss += value;
        for (holds, code) in [
            (no_denominator, FaultCode::ZeroDenominator),
            (bad_weight, FaultCode::SegmentWeight),
            (both_signs, FaultCode::VaryingAdvantage),
        ] {
            if holds {
                fault = fault.min(Fault { row: segment as u64, tag: output.tag, code }.to_word());
            }
        }
        statistics.segment(config, sums, &coefficient, with_ratio);
        if let Some(ratios) = &mut output.sequence_ratio {
            ratios.as_mut_slice()[segment] = coefficient.sequence_ratio as f32;
        }
        if let Some(flags) = &mut output.sequence_clipped {
            let bits = sequence_clipped(coefficient.flags, sums) & (flag::ABOVE | flag::BELOW);
            flags.as_mut_slice()[segment] = u8::from(bits != 0);
        }
        made.push(coefficient);
    }
    report(output, fault);
    add_loss(output, loss);
    add_statistics(output, &statistics);
    made
}

/// Writes an element of an array that was asked for.
fn put<T: bytemuck::Pod>(array: &mut Option<ViewMut<'_, T, Host>>, index: usize, value: T) {
    if let Some(array) = array {
        array.as_mut_slice()[index] = value;
    }
}

fn apply_all(
    config: &Config,
    segments: &Segments,
    tokens: &Tokens,
    coefficients: &[Coefficient],
    output: &mut Output<'_, Host>,
) {
    let sequence = config.variant.is_sequence_level();
    let mut statistics = Statistics::new();
    let mut loss = 0.0;
    for ((segment, range), coefficient) in segments.ranges().enumerate().zip(coefficients) {
        let mut value = 0.0;
        for u in range {
            let (mut gradient, mut bits, mut ratio, mut kl, mut d_entropy) = (0.0, 0, 1.0, 0.0, 0.0);
            if tokens.counts(u) {
                let token = tokens.token(u, segment);
                let made = apply_token(config, coefficient, token);
                value += made.value;
                if !sequence {
                    statistics.token(config, tokens, u, tokens.token_alone(u, segment));
                }
                if let Some(token) = token {
                    statistics.applied(config, &token, &made, coefficient);
                }
                (gradient, bits, ratio, kl, d_entropy) =
                    (made.gradient, made.clipped, made.ratio, made.kl, made.d_entropy);
            }
            put(&mut output.d_logprobs, u, gradient as f32);
            // Without a bonus nothing moves with the entropy, whatever else a token is.
            put(&mut output.d_entropy, u, if config.entropy_bonus == 0.0 { 0.0 } else { d_entropy as f32 });
            put(&mut output.kl, u, kl as f32);
            put(&mut output.clipped, u, bits as u8);
            put(&mut output.ratio, u, ratio as f32);
        }
        let has_values = !config.variant.is_valued_by_segment() || config.has_terms();
        if coefficient.flags & flag::EMPTY == 0 && has_values {
            loss += coefficient.scale * value;
        }
    }
    add_loss(output, loss);
    add_statistics(output, &statistics);
}

/// [`Backend::objective`].
pub(crate) fn one_call(
    config: &Config,
    plan: &Plan<Reference>,
    batch: Batch<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    objective::check(config, plan, &batch, None, &output)?;
    let (segments, tokens) = (plan.segments(), Tokens::of(config, &batch));
    open(&mut output);
    let sums = sum_tokens(config, segments, &tokens, &mut output);
    let counts = counts_of(config, segments, &batch, &tokens);
    let coefficients = finish_all(config, &tokens, &counts, &sums, &mut output);
    apply_all(config, segments, &tokens, &coefficients, &mut output);
    Ok(())
}

fn plane(sums: &mut Sums, plane: Plane) -> &mut f64 {
    match plane {
        Plane::LogRatio => &mut sums.log_ratio,
        Plane::Count => &mut sums.count,
        Plane::PositiveAdvantage => &mut sums.positive,
        Plane::NegativeAdvantage => &mut sums.negative,
        Plane::Kept => &mut sums.kept,
        Plane::Kl => &mut sums.divergence,
        Plane::Folded => &mut sums.folded,
        Plane::NonFinite => &mut sums.nonfinite,
    }
}

/// [`Backend::objective_partial`].
pub(crate) fn partial(
    config: &Config,
    plan: &Plan<Reference>,
    batch: Batch<'_, Host>,
    mut phases: Phases<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    objective::check(config, plan, &batch, Some(&phases), &output)?;
    open(&mut output);
    let mut sums = sum_tokens(config, plan.segments(), &Tokens::of(config, &batch), &mut output);
    let count = sums.len();
    let stored = phases.sums.as_mut_slice();
    for (place, which) in config.planes().into_iter().enumerate() {
        for (segment, sums) in sums.iter_mut().enumerate() {
            let to = &mut stored[place * count + segment];
            let before = if output.accumulate { *to } else { 0.0 };
            *to = before + *plane(sums, which);
        }
    }
    Ok(())
}

/// [`Backend::objective_finish`].
pub(crate) fn finish(
    config: &Config,
    plan: &Plan<Reference>,
    batch: Batch<'_, Host>,
    mut phases: Phases<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    objective::check(config, plan, &batch, Some(&phases), &output)?;
    let tokens = Tokens::of(config, &batch);
    let counts = counts_of(config, plan.segments(), &batch, &tokens);
    let count = plan.segments().len();
    let mut sums = vec![Sums::default(); count];
    let stored = phases.sums.as_mut_slice();
    for (place, which) in config.planes().into_iter().enumerate() {
        for (segment, sums) in sums.iter_mut().enumerate() {
            *plane(sums, which) = stored[place * count + segment];
        }
    }
    let made = finish_all(config, &tokens, &counts, &sums, &mut output);
    for (to, from) in phases.coefficients.as_mut_slice().iter_mut().zip(made) {
        *to = objective::Coefficient {
            ratio: from.ratio as f32,
            weight: from.weight as f32,
            gradient: from.gradient as f32,
            flags: from.flags,
            scale: from.scale as f32,
            sequence_ratio: from.sequence_ratio as f32,
            shared: from.shared as f32,
            segment_weight: from.segment_weight as f32,
        };
    }
    Ok(())
}

/// [`Backend::objective_apply`].
pub(crate) fn apply(
    config: &Config,
    plan: &Plan<Reference>,
    batch: Batch<'_, Host>,
    mut phases: Phases<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    objective::check(config, plan, &batch, Some(&phases), &output)?;
    let coefficients: Vec<Coefficient> = phases
        .coefficients
        .as_mut_slice()
        .iter()
        .map(|from| Coefficient {
            ratio: f64::from(from.ratio),
            weight: f64::from(from.weight),
            gradient: f64::from(from.gradient),
            flags: from.flags,
            scale: f64::from(from.scale),
            sequence_ratio: f64::from(from.sequence_ratio),
            shared: f64::from(from.shared),
            segment_weight: f64::from(from.segment_weight),
        })
        .collect();
    apply_all(config, plan.segments(), &Tokens::of(config, &batch), &coefficients, &mut output);
    Ok(())
}
