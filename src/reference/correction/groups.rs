//! What the segments of a group decide together.

use super::segments::Segment;
use super::{is_of_multiplicity, saturate, uniform};
use crate::correction::{Batch, Config, Level, Weight};
use crate::memory::Host;

/// What a group leaves beside the weights of its segments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupOutcome {
    pub(super) carry_multiplicity: u32,
    /// NaN where no member was accepted and nothing was carried.
    pub(super) carry: f64,
    /// Σ w̄ R of weights that are normalised.
    pub(super) expected_reward: f64,
}

/// What a group decides about one member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Decided {
    pub(super) accepted: bool,
    pub(super) multiplicity: u32,
    pub(super) advantage: f64,
}

/// Sets the weights of one group's members.
pub(super) fn decide(
    config: &Config,
    batch: &Batch<'_, Host>,
    group: usize,
    members: &[u32],
    segments: &mut [Segment],
    decided: &mut [Decided],
) -> GroupOutcome {
    match config.weight {
        Weight::SelfNormalised { .. } | Weight::SelfNormalisedAttached => {
            let expected_reward = normalise(config, batch, members, segments, decided);
            GroupOutcome { expected_reward, ..GroupOutcome::default() }
        }
        Weight::Metropolis { level, seed, .. } if level != Level::Token => {
            walk(config, batch, seed, group, members, segments, decided)
        }
        _ => GroupOutcome::default(),
    }
}

/// Sets the weights and what comes of the rewards. Returns Σ w̄ R.
fn normalise(
    config: &Config,
    batch: &Batch<'_, Host>,
    members: &[u32],
    segments: &mut [Segment],
    decided: &mut [Decided],
) -> f64 {
    let is_attached = config.weight == Weight::SelfNormalisedAttached;
    // The gradient is that of the saturated function.
    let weighed = |x: f64| if is_attached { saturate(config, x) } else { x };
    let largest = of_members(members, segments).map(|i| weighed(segments[i].x)).fold(f64::NEG_INFINITY, f64::max);
    // Without a member above −∞ all weigh the same.
    let relative = |x: f64| if largest == f64::NEG_INFINITY { 1.0 } else { (weighed(x) - largest).exp() };
    let count = of_members(members, segments).count() as f64;
    let total: f64 = of_members(members, segments).map(|i| relative(segments[i].x)).sum();
    let reward = |i: usize| batch.rewards.map_or(0.0, |rewards| f64::from(rewards.as_slice()[i]));
    let rewarded = || of_members(members, segments).filter(|&i| reward(i).is_finite());
    let total_rewarded: f64 = rewarded().map(|i| relative(segments[i].x)).sum();
    let expected: f64 = rewarded().map(|i| relative(segments[i].x) / total_rewarded * reward(i)).sum();
    if config.makes_advantages() {
        for i in rewarded() {
            let x = segments[i].x;
            decided[i].advantage = if is_attached {
                // Of w̄_i (R_i − Σ w̄ R), as one sum of differences: alone in its group a segment has exactly 0.
                let apart: f64 = rewarded().map(|j| relative(segments[j].x) * (reward(i) - reward(j))).sum();
                let stands_still = x != saturate(config, x);
                if stands_still { 0.0 } else { relative(x) / total_rewarded * (apart / total_rewarded) }
            } else {
                let others = || rewarded().filter(|&j| j != i);
                let weight: f64 = others().map(|j| relative(segments[j].x)).sum();
                let weighted: f64 = others().map(|j| relative(segments[j].x) * reward(j)).sum();
                reward(i) - if weight > 0.0 { weighted / weight } else { 0.0 }
            };
        }
    }
    for &member in members {
        let segment = &mut segments[member as usize];
        segment.weight = if segment.is_empty() {
            1.0
        } else if segment.is_member() {
            count * relative(segment.x) / total
        } else if segment.x.is_nan() && segment.is_kept {
            f64::NAN
        } else {
            0.0
        };
        if is_attached && segment.weight.is_nan() {
            decided[member as usize].advantage = f64::NAN;
        }
    }
    expected
}

fn of_members<'s>(members: &'s [u32], segments: &'s [Segment]) -> impl Iterator<Item = usize> + 's {
    members.iter().map(|&member| member as usize).filter(|&member| segments[member].is_member())
}

fn walk(
    config: &Config,
    batch: &Batch<'_, Host>,
    seed: u64,
    group: usize,
    members: &[u32],
    segments: &mut [Segment],
    decided: &mut [Decided],
) -> GroupOutcome {
    let carried = batch.carried.map_or(f64::NAN, |carried| carried.as_slice()[group]);
    let mut chain = GroupOutcome { carry_multiplicity: 0, carry: carried, expected_reward: 0.0 };
    let mut current: Option<usize> = None;
    for member in members.iter().map(|&member| member as usize) {
        let segment = &segments[member];
        let begins = chain.carry.is_nan();
        let accepted = segment.is_member() && (begins || log_uniform(batch, seed, member) < segment.x - chain.carry);
        if accepted {
            decided[member] = Decided { accepted, multiplicity: 1, advantage: 0.0 };
            chain.carry = segment.x;
            current = Some(member);
        } else {
            match current {
                Some(current) => decided[current].multiplicity += 1,
                None => chain.carry_multiplicity += 1,
            }
        }
    }
    for member in members.iter().map(|&member| member as usize) {
        let Decided { accepted, multiplicity, .. } = decided[member];
        let weight = if is_of_multiplicity(config) { multiplicity } else { u32::from(accepted) };
        segments[member].weight = if segments[member].is_empty() { 1.0 } else { f64::from(weight) };
    }
    chain
}

fn log_uniform(batch: &Batch<'_, Host>, seed: u64, segment: usize) -> f64 {
    match (batch.uniforms, batch.segment_ids) {
        (Some(uniforms), _) => f64::from(uniforms.as_slice()[segment]).ln(),
        (None, Some(ids)) => uniform(seed, ids.as_slice()[segment], None).ln(),
        // check() has asked for one of them.
        (None, None) => f64::INFINITY,
    }
}
