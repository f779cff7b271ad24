//! The three phases, and all in one.

use super::groups::{self, Decided, GroupOutcome};
use super::segments::{self, Segment};
use super::{
    OF_SEGMENT, Statistics, Sums, Tokens, accepts, is_catastrophic, keeps_token_at_all, own_weight, saturate,
    sum_piece, token_statistics,
};
use crate::abi::*;
#[cfg(doc)]
use crate::backend::Backend;
use crate::correction::{
    self, Batch, Config, Decision, GLOBALS, Global, Level, NonFinite, Output, Phases, Plane, Plans, Sizes, diagnostics,
};
use crate::error::{Fault, FaultCode, Result};
use crate::memory::Host;
use crate::reference::Reference;

type Call<'c> = Plans<'c, Reference>;

/// The places of the globals among those of the tallies: the first half are the first of the segments', the second of the tokens'.
fn place_of_global(global: usize) -> usize {
    if global < GLOBALS / 2 { OF_SEGMENT as usize + global } else { global - GLOBALS / 2 }
}

/// Sets to nothing what the phases add to.
fn open(output: &mut Output<'_, Host>) {
    if output.accumulate {
        return;
    }
    if let Some(globals) = &mut output.globals {
        globals.as_mut_slice().fill(0.0);
    }
    if let Some(sums) = &mut output.diagnostics {
        sums.as_mut_slice().copy_from_slice(&Statistics::new().0);
    }
}

fn report(output: &mut Output<'_, Host>, fault: u64) {
    if let Some(word) = &mut output.errors {
        let word = &mut word.as_mut_slice()[0];
        *word = fault.min(*word);
    }
}

fn add_statistics(output: &mut Output<'_, Host>, statistics: &Statistics) {
    if let Some(globals) = &mut output.globals {
        for (global, to) in globals.as_mut_slice().iter_mut().enumerate() {
            *to += statistics.0[place_of_global(global)];
        }
    }
    if let Some(sums) = &mut output.diagnostics {
        for (place, (to, &from)) in sums.as_mut_slice().iter_mut().zip(&statistics.0).enumerate() {
            *to = if diagnostics::is_maximum(place) { to.max(from) } else { *to + from };
        }
    }
}

fn sum_all(config: &Config, plans: Call<'_>, tokens: &Tokens<'_, '_>, output: &mut Output<'_, Host>) -> Vec<Sums> {
    let mut statistics = Statistics::new();
    let mut fault = MOERL_NO_FAULT;
    for u in 0..tokens.count {
        fault = fault.min(tokens.fault(u, output.tag));
        if tokens.counts(u) {
            token_statistics(config, tokens.token(u), &mut statistics);
        }
    }
    report(output, fault);
    add_statistics(output, &statistics);
    plans.pieces().ranges().map(|range| sum_piece(config, tokens, range)).collect()
}

fn set<T: bytemuck::Pod>(array: &mut Option<crate::memory::ViewMut<'_, T, Host>>, index: usize, value: T) {
    if let Some(array) = array {
        array.as_mut_slice()[index] = value;
    }
}

/// Decides about all segments; their pieces' decisions are in the order of the pieces.
fn finish_all(
    config: &Config,
    plans: Call<'_>,
    batch: &Batch<'_, Host>,
    sums: &[Sums],
    output: &mut Output<'_, Host>,
) -> Vec<(f64, u32)> {
    let count = plans.segments.segments().len();
    let pieces_of = |segment: usize| match plans.turns {
        Some(turns) => turns.first_on_host[segment] as usize..turns.first_on_host[segment + 1] as usize,
        None => segment..segment + 1,
    };
    let mut all: Vec<Segment> = (0..count).map(|i| segments::decide(config, batch, i, &sums[pieces_of(i)])).collect();
    let mut decided = vec![Decided::default(); count];
    let mut statistics = Statistics::new();
    if let Some(groups) = plans.groups {
        for index in 0..groups.groups().len() {
            let members = groups.groups().members(index);
            let outcome = groups::decide(config, batch, index, members, &mut all, &mut decided);
            group_statistics(members, &all, &mut statistics);
            write_group(config, output, index, outcome);
        }
    }
    let mut fault = MOERL_NO_FAULT;
    for (index, (segment, decided)) in all.iter().zip(&decided).enumerate() {
        if segment.is_faulty {
            let row = index as u64;
            fault = fault.min(Fault { row, tag: output.tag, code: FaultCode::SegmentInput }.to_word());
        }
        segment_statistics(config, segment, decided, &mut statistics);
        write_segment(output, index, segment, decided);
    }
    report(output, fault);
    add_statistics(output, &statistics);
    all.iter()
        .flat_map(|segment| segment.pieces.iter().map(|piece| (piece.weight * segment.weight, piece.flags)))
        .collect()
}

fn write_group(config: &Config, output: &mut Output<'_, Host>, index: usize, outcome: GroupOutcome) {
    set(&mut output.expected_rewards, index, outcome.expected_reward);
    if matches!(config.weight, correction::Weight::Metropolis { .. }) && config.needs_groups() {
        set(&mut output.carry_multiplicity, index, outcome.carry_multiplicity);
        set(&mut output.carry_log_weights, index, outcome.carry);
    }
}

fn write_segment(output: &mut Output<'_, Host>, index: usize, segment: &Segment, decided: &Decided) {
    set(&mut output.segment_weights, index, segment.weight as f32);
    set(&mut output.segment_log_weights, index, segment.x);
    set(&mut output.kept, index, segment.kept() as u32);
    set(&mut output.accepted, index, u8::from(decided.accepted));
    set(&mut output.multiplicity, index, decided.multiplicity);
    set(&mut output.advantages, index, decided.advantage as f32);
    if let Some(counts) = &mut output.rejected {
        for (option, &tokens) in segment.rejected.iter().enumerate() {
            counts.as_mut_slice()[2 * option] += tokens as u64;
            counts.as_mut_slice()[2 * option + 1] += u64::from(tokens > 0.0);
        }
    }
}

fn group_statistics(members: &[u32], segments: &[Segment], statistics: &mut Statistics) {
    let (mut sum, mut squares, mut is_kept) = (0.0, 0.0, false);
    for segment in members.iter().map(|&member| &segments[member as usize]).filter(|s| !s.is_empty()) {
        is_kept |= segment.kept() > 0.0;
        if segment.weight.is_finite() {
            sum += segment.weight;
            squares += segment.weight * segment.weight;
        }
    }
    statistics.add(OF_SEGMENT + MOERL_CORRECTION_KEPT_GROUPS, f64::from(is_kept));
    if squares > 0.0 {
        statistics.add(OF_SEGMENT + MOERL_CORRECTION_GROUP_ESS, sum * sum / squares);
    }
}

fn segment_statistics(config: &Config, segment: &Segment, decided: &Decided, statistics: &mut Statistics) {
    if segment.is_empty() {
        return statistics.add(OF_SEGMENT + MOERL_CORRECTION_EMPTY_SEGMENTS, 1.0);
    }
    let sums = &segment.sums;
    let (n, kept) = (segment.count(), segment.kept());
    let x = sums.at(Plane::LogRatio);
    let has_all = config.diagnostics;
    // o, q and δ of tokens that are not finite were left out of the sums.
    let difference = -x / n;
    let (low, high) = config.reported_bounds();
    let (max, min) = (sums.at(Plane::Max), -sums.at(Plane::MaxNegative));
    // Without a finite token there is no smallest δ nor a largest.
    let catastrophic = has_all && min <= max && (is_catastrophic(config, max) || is_catastrophic(config, min));
    let mut add = |place: u32, value: f64| statistics.add(OF_SEGMENT + place, value);
    add(MOERL_CORRECTION_KEPT_TOKENS, kept);
    add(MOERL_CORRECTION_KEPT_SEGMENTS, f64::from(kept > 0.0));
    add(MOERL_CORRECTION_SEQUENCE_CHI2, (2.0 * saturate(config, x)).exp());
    add(MOERL_CORRECTION_SEGMENTS, 1.0);
    add(MOERL_CORRECTION_DROPPED_SEGMENTS, f64::from(segment.is_dropped));
    add(MOERL_CORRECTION_ACCEPTED, f64::from(decided.accepted));
    if has_all {
        let kept_k3: f64 =
            segment.pieces.iter().filter(|piece| piece.is_kept).map(|piece| piece.sums.at(Plane::KeptK3)).sum();
        add(MOERL_CORRECTION_SUM_KEPT_K3, kept_k3);
        add(MOERL_CORRECTION_PPL_OLD, (-sums.at(Plane::Old) / n).exp());
        add(MOERL_CORRECTION_PPL_ROLLOUT, (-sums.at(Plane::Rollout) / n).exp());
        add(MOERL_CORRECTION_LOG_PPL_ROLLOUT, -sums.at(Plane::Rollout) / n);
        add(MOERL_CORRECTION_LOG_PPL_DIFF, difference);
        add(MOERL_CORRECTION_LOG_PPL_ABS_DIFF, difference.abs());
        add(MOERL_CORRECTION_PPL_RATIO, difference.exp());
        add(MOERL_CORRECTION_GEOMETRIC_CHI2, (2.0 * saturate(config, x / n)).exp());
        add(MOERL_CORRECTION_SEGMENTS_CATASTROPHIC, f64::from(catastrophic));
    }
    let of_turns = config.level() == Level::Turn;
    let weighed = if of_turns || config.weighs_tokens_by_segments() { n } else { 1.0 };
    let mut spread = [0.0; 2];
    for piece in segment.pieces.iter().filter(|piece| piece.sums.at(Plane::Count) > 0.0) {
        // A token that is not finite has no weight.
        let n = piece.sums.at(Plane::Count) - piece.sums.at(Plane::NonFinite);
        let w = piece.weight * segment.weight;
        spread = [spread[0] + n * w, spread[1] + n * w * w];
    }
    let mut of_segment = [segment.weight, segment.weight * segment.weight];
    if config.weighs_tokens_by_segments() {
        // Every token with its segment's mean.
        let sum = sums.at(Plane::Weight) * segment.weight;
        of_segment = [sum, sum * sum / n];
    }
    let [sum, squares] = if of_turns { spread } else { of_segment };
    if sum.is_finite() {
        add(MOERL_CORRECTION_WEIGHED, weighed);
        add(MOERL_CORRECTION_WEIGHTS, sum);
        add(MOERL_CORRECTION_WEIGHTS_SQUARED, squares);
        if config.level() != Level::Token {
            add(MOERL_CORRECTION_SPREAD_WEIGHTS, spread[0]);
            add(MOERL_CORRECTION_SPREAD_WEIGHTS_SQUARED, spread[1]);
        }
    }
    if has_all {
        let own = if config.level() == Level::Token { sums.at(Plane::Weight) * segment.weight } else { spread[0] } / n;
        let is_of_segments = config.is_segment_level();
        let raw = if is_of_segments { saturate(config, segment.x) } else { (sums.at(Plane::RawWeight) / n).ln() };
        add(MOERL_CORRECTION_SEQUENCES_ABOVE, f64::from(raw > high.ln()));
        add(MOERL_CORRECTION_SEQUENCES_BELOW, f64::from(raw < low.ln()));
        if own.is_finite() {
            add(MOERL_CORRECTION_SEQUENCE_WEIGHTS, own);
            add(MOERL_CORRECTION_SEQUENCE_WEIGHTS_SQUARED, own * own);
            statistics.raise(OF_SEGMENT + MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT, own);
            statistics.raise(OF_SEGMENT + MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT, -own);
        }
        statistics.raise(OF_SEGMENT + MOERL_CORRECTION_MAX_LOG_PPL_DIFF, difference);
        statistics.raise(OF_SEGMENT + MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF, -difference);
    }
}

/// What the weights are multiplied with: 1, or one over their mean.
fn batch_factor(config: &Config, output: &Output<'_, Host>) -> f64 {
    let Some(globals) = output.globals.as_ref().filter(|_| config.batch_normalise) else { return 1.0 };
    let globals = globals.as_view().as_slice();
    let (sum, count) = if config.level() == Level::Token && !config.weighs_tokens_by_segments() {
        (Global::TokenWeights, Global::Tokens)
    } else {
        (Global::Weights, Global::Weighed)
    };
    let mean = globals[sum as usize] / globals[count as usize];
    if mean > 1e-8 { 1.0 / mean } else { 1.0 }
}

fn apply_all(
    config: &Config,
    plans: Call<'_>,
    batch: &Batch<'_, Host>,
    tokens: &Tokens<'_, '_>,
    decisions: &[(f64, u32)],
    output: &mut Output<'_, Host>,
) {
    let factor = batch_factor(config, output);
    for (piece, (range, &(of_piece, flags))) in plans.pieces().ranges().zip(decisions).enumerate() {
        for u in range.clone() {
            let (mut weight, mut kept, mut delta) = (0.0, false, 0.0);
            if tokens.counts(u) {
                kept = flags & MOERL_DECISION_KEPT != 0;
                match tokens.token(u) {
                    Some(token) => {
                        delta = token.delta;
                        kept &= keeps_token_at_all(config, delta);
                        weight = of_piece * factor * own_weight_drawn(config, batch, piece, u, u - range.start, delta);
                    }
                    None if config.nonfinite == NonFinite::Propagate => weight = f64::NAN,
                    None => kept = false,
                }
            }
            set(&mut output.weights, u, weight as f32);
            set(&mut output.keep, u, u8::from(kept));
            set(&mut output.log_ratio, u, delta as f32);
        }
    }
    if config.batch_normalise && config.is_segment_level() {
        for segment in 0..plans.segments.segments().len() {
            let piece = plans.turns.map_or(segment, |turns| turns.first_on_host[segment] as usize);
            if let Some(&(weight, _)) = decisions.get(piece) {
                set(&mut output.segment_weights, segment, (weight * factor) as f32);
            }
        }
    }
}

/// As `own_weight`, with the outcome of the Metropolis test instead of its expectation.
fn own_weight_drawn(
    config: &Config,
    batch: &Batch<'_, Host>,
    segment: usize,
    token: usize,
    position: usize,
    delta: f64,
) -> f64 {
    match config.weight {
        correction::Weight::Metropolis { level: Level::Token, .. } => {
            f64::from(accepts(config, batch, segment, token, position, delta))
        }
        _ => own_weight(config, delta),
    }
}

/// [`Backend::correction`].
pub(crate) fn one_call(
    config: &Config,
    plans: Call<'_>,
    batch: Batch<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    let Sizes { tokens, repeats, .. } = correction::check(config, &plans, &batch, None, &output)?;
    let tokens = Tokens::of(config, &batch, tokens, repeats);
    open(&mut output);
    let sums = sum_all(config, plans, &tokens, &mut output);
    let decisions = finish_all(config, plans, &batch, &sums, &mut output);
    apply_all(config, plans, &batch, &tokens, &decisions, &mut output);
    Ok(())
}

/// [`Backend::correction_partial`].
pub(crate) fn partial(
    config: &Config,
    plans: Call<'_>,
    batch: Batch<'_, Host>,
    mut phases: Phases<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    let Sizes { tokens, repeats, .. } = correction::check(config, &plans, &batch, Some(&phases), &output)?;
    let tokens = Tokens::of(config, &batch, tokens, repeats);
    open(&mut output);
    let sums = sum_all(config, plans, &tokens, &mut output);
    let count = sums.len();
    let stored = phases.sums.as_mut_slice();
    for (place, plane) in config.planes().into_iter().enumerate() {
        for (piece, sums) in sums.iter().enumerate() {
            let to = &mut stored[place * count + piece];
            *to = match (output.accumulate, plane.is_maximum()) {
                (false, _) => sums.at(plane),
                (true, true) => to.max(sums.at(plane)),
                (true, false) => *to + sums.at(plane),
            };
        }
    }
    Ok(())
}

/// [`Backend::correction_finish`].
pub(crate) fn finish(
    config: &Config,
    plans: Call<'_>,
    batch: Batch<'_, Host>,
    mut phases: Phases<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    let Sizes { pieces, .. } = correction::check(config, &plans, &batch, Some(&phases), &output)?;
    let stored = phases.sums.as_mut_slice();
    let mut sums = vec![Sums::new(); pieces];
    for (place, plane) in config.planes().into_iter().enumerate() {
        for (piece, sums) in sums.iter_mut().enumerate() {
            sums.0[plane as usize] = stored[place * pieces + piece];
        }
    }
    let made = finish_all(config, plans, &batch, &sums, &mut output);
    for (to, (weight, flags)) in phases.decisions.as_mut_slice().iter_mut().zip(made) {
        *to = Decision { weight: weight as f32, flags };
    }
    Ok(())
}

/// [`Backend::correction_apply`].
pub(crate) fn apply(
    config: &Config,
    plans: Call<'_>,
    batch: Batch<'_, Host>,
    mut phases: Phases<'_, Host>,
    mut output: Output<'_, Host>,
) -> Result<()> {
    let Sizes { tokens, repeats, .. } = correction::check(config, &plans, &batch, Some(&phases), &output)?;
    let decisions: Vec<(f64, u32)> =
        phases.decisions.as_mut_slice().iter().map(|decision| (f64::from(decision.weight), decision.flags)).collect();
    apply_all(config, plans, &batch, &Tokens::of(config, &batch, tokens, repeats), &decisions, &mut output);
    Ok(())
}
