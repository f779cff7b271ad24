//! The three phases, and all in one.

use super::{
    Coefficient, Counts, Statistics, Sums, Tokens, apply_token, clipped, finish_segment, flag, is_inside, local_counts,
    saturate, sum_segment,
};
use crate::abi::MOERL_NO_FAULT;
#[cfg(doc)]
use crate::backend::Backend;
use crate::diagnostics::{SUMS, Sum};
use crate::error::{Fault, FaultCode, Result};
use crate::memory::{Host, View};
use crate::objective::{self, Advantages, Batch, Config, Denominators, Output, Phases, Plane};
use crate::reference::Reference;
use crate::segments::{Plan, Segments};

fn wide(array: View<'_, f32, Host>) -> Vec<f64> {
    array.as_slice().iter().map(|&x| f64::from(x)).collect()
}

impl Tokens {
    fn of(batch: &Batch<'_, Host>) -> Tokens {
        let (advantages, per_token) = match batch.advantages {
            Advantages::PerSegment(array) => (array, false),
            Advantages::PerToken(array) => (array, true),
        };
        Tokens {
            logprobs: wide(batch.logprobs),
            old_logprobs: batch.old_logprobs.map(wide),
            advantages: wide(advantages),
            per_token,
            loss_mask: batch.loss_mask.map(|mask| mask.as_slice().to_vec()),
            weights: batch.weights.map(wide),
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
                    token_statistics(config, tokens, u, segment, &mut statistics);
                }
            }
            sum_segment(tokens, segment, range)
        })
        .collect();
    report(output, fault);
    add_statistics(output, &statistics);
    sums
}

fn token_statistics(config: &Config, tokens: &Tokens, token: usize, segment: usize, statistics: &mut Statistics) {
    statistics.add(Sum::Tokens, 1.0);
    let Some(seen) = tokens.token_alone(token, segment) else {
        return statistics.add(Sum::NonFiniteTokens, 1.0);
    };
    let delta = seen.delta;
    let ratio = saturate(config.saturation, delta).exp();
    for (sum, value) in [
        (Sum::PolicyKlK1, -delta),
        (Sum::PolicyKlK2, delta * delta / 2.0),
        (Sum::PolicyKlK3, delta.exp_m1() - delta),
        (Sum::Ratio, ratio),
        (Sum::RatioSquared, ratio * ratio),
        (Sum::Weight, seen.weight),
        (Sum::WeightSquared, seen.weight * seen.weight),
    ] {
        statistics.add(sum, value);
    }
    statistics.raise(Sum::MaxRatio, ratio);
    statistics.raise(Sum::MaxNegativeRatio, -ratio);
    if !config.variant.is_sequence_level() {
        saturation_statistics(config, delta, statistics);
    }
}

fn saturation_statistics(config: &Config, x: f64, statistics: &mut Statistics) {
    let outside = !is_inside(config.saturation, x);
    statistics.add(Sum::SaturatedHigh, f64::from(outside && x > 0.0));
    statistics.add(Sum::SaturatedLow, f64::from(outside && x < 0.0));
}

/// The bits 1, 2, 4 of a segment, by the signs of S⁺ and S⁻.
fn sequence_clipped(flags: u32, sums: &Sums) -> u32 {
    clipped(flags, sums.positive) | clipped(flags, sums.negative)
}

fn segment_statistics(config: &Config, sums: &Sums, made: &Coefficient, with_ratio: bool, statistics: &mut Statistics) {
    if made.flags & flag::EMPTY != 0 {
        return statistics.add(Sum::EmptySegments, 1.0);
    }
    let sequence = config.variant.is_sequence_level();
    statistics.add(Sum::Segments, 1.0);
    statistics.add(Sum::DroppedSegments, f64::from(made.flags & flag::DROPPED != 0));
    if !with_ratio {
        return;
    }
    statistics.add(Sum::SequenceRatio, made.ratio);
    statistics.raise(Sum::MaxSequenceRatio, made.ratio);
    statistics.raise(Sum::MaxNegativeSequenceRatio, -made.ratio);
    let flags = sequence_clipped(made.flags, sums);
    for (bit, of_segments, of_tokens) in [
        (flag::ABOVE, Sum::SequenceClippedHigh, Sum::ClippedHigh),
        (flag::BELOW, Sum::SequenceClippedLow, Sum::ClippedLow),
        (flag::CAPPED, Sum::SequenceCapped, Sum::Capped),
    ] {
        if flags & bit != 0 {
            statistics.add(of_segments, 1.0);
            statistics.add(of_tokens, if sequence { sums.count } else { 0.0 });
        }
    }
    if sequence {
        saturation_statistics(config, sums.log_ratio / sums.count, statistics);
    }
}

fn finish_all(
    config: &Config,
    tokens: &Tokens,
    counts: &Counts,
    sums: &[Sums],
    output: &mut Output<'_, Host>,
) -> Vec<Coefficient> {
    let mut fault = MOERL_NO_FAULT;
    let mut statistics = Statistics::new();
    let mut loss = 0.0;
    let mut made = Vec::with_capacity(sums.len());
    for (segment, sums) in sums.iter().enumerate() {
        let (coefficient, value, no_denominator) = finish_segment(config, counts, sums, tokens.scale(segment));
        loss += value;
        if no_denominator {
            let row = segment as u64;
            fault = fault.min(Fault { row, tag: output.tag, code: FaultCode::ZeroDenominator }.to_word());
        }
        let with_ratio = config.variant.is_sequence_level() || output.wants_sequence();
        segment_statistics(config, sums, &coefficient, with_ratio, &mut statistics);
        if let Some(ratios) = &mut output.sequence_ratio {
            ratios.as_mut_slice()[segment] = coefficient.ratio as f32;
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

fn apply_all(
    config: &Config,
    segments: &Segments,
    tokens: &Tokens,
    coefficients: &[Coefficient],
    output: &mut Output<'_, Host>,
) {
    let mut statistics = Statistics::new();
    let mut loss = 0.0;
    for ((segment, range), coefficient) in segments.ranges().enumerate().zip(coefficients) {
        let mut value = 0.0;
        for u in range {
            let (mut gradient, mut bits, mut ratio) = (0.0, 0, 1.0);
            if tokens.counts(u) {
                let of_token;
                (of_token, gradient, bits, ratio) = apply_token(config, coefficient, tokens.token(u, segment));
                value += of_token;
                if !config.variant.is_sequence_level() {
                    token_statistics(config, tokens, u, segment, &mut statistics);
                }
            }
            if !config.variant.is_sequence_level() {
                for (bit, sum) in
                    [(flag::ABOVE, Sum::ClippedHigh), (flag::BELOW, Sum::ClippedLow), (flag::CAPPED, Sum::Capped)]
                {
                    statistics.add(sum, f64::from(bits & bit != 0));
                }
            }
            if let Some(gradients) = &mut output.d_logprobs {
                gradients.as_mut_slice()[u] = gradient as f32;
            }
            if let Some(flags) = &mut output.clipped {
                flags.as_mut_slice()[u] = bits as u8;
            }
            if let Some(ratios) = &mut output.ratio {
                ratios.as_mut_slice()[u] = ratio as f32;
            }
        }
        if coefficient.flags & flag::EMPTY == 0 && !config.variant.is_sequence_level() {
            loss += coefficient.weight * value;
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
    let (segments, tokens) = (plan.segments(), Tokens::of(&batch));
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
    let mut sums = sum_tokens(config, plan.segments(), &Tokens::of(&batch), &mut output);
    let count = sums.len();
    let stored = phases.sums.as_mut_slice();
    for (place, &which) in config.planes().iter().enumerate() {
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
    let tokens = Tokens::of(&batch);
    let counts = counts_of(config, plan.segments(), &batch, &tokens);
    let count = plan.segments().len();
    let mut sums = vec![Sums::default(); count];
    let stored = phases.sums.as_mut_slice();
    for (place, &which) in config.planes().iter().enumerate() {
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
        })
        .collect();
    apply_all(config, plan.segments(), &Tokens::of(&batch), &coefficients, &mut output);
    Ok(())
}
