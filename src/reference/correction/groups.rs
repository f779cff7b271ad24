//! What the segments of a group decide together.

use super::segments::Segment;
use super::{is_of_multiplicity, uniform};
use crate::correction::{Batch, Config, Level, Weight};
use crate::memory::Host;

/// What a group leaves beside the weights of its segments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) carry_multiplicity: u32,
    /// NaN where no member was accepted and nothing was carried.
    pub(super) carry: f64,
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
) -> Chain {
    match config.weight {
        Weight::SelfNormalised { leave_one_out, .. } => {
            normalise(batch, members, segments, decided, leave_one_out);
            Chain::default()
        }
        Weight::Metropolis { level, seed, .. } if level != Level::Token => {
            walk(config, batch, seed, group, members, segments, decided)
        }
        _ => Chain::default(),
    }
}

fn normalise(
    batch: &Batch<'_, Host>,
    members: &[u32],
    segments: &mut [Segment],
    decided: &mut [Decided],
    leave_one_out: bool,
) {
    let largest = of_members(members, segments).map(|i| segments[i].x).fold(f64::NEG_INFINITY, f64::max);
    // Without a member above −∞ all weigh the same.
    let relative = |x: f64| if largest == f64::NEG_INFINITY { 1.0 } else { (x - largest).exp() };
    let count = of_members(members, segments).count() as f64;
    let total: f64 = of_members(members, segments).map(|i| relative(segments[i].x)).sum();
    let reward = |i: usize| batch.rewards.map_or(0.0, |rewards| f64::from(rewards.as_slice()[i]));
    if leave_one_out {
        for i in of_members(members, segments) {
            let others = || of_members(members, segments).filter(|&j| j != i && reward(j).is_finite());
            let weight: f64 = others().map(|j| relative(segments[j].x)).sum();
            let weighted: f64 = others().map(|j| relative(segments[j].x) * reward(j)).sum();
            let baseline = if weight > 0.0 { weighted / weight } else { 0.0 };
            decided[i].advantage = if reward(i).is_finite() { reward(i) - baseline } else { 0.0 };
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
    }
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
) -> Chain {
    let carried = batch.carried.map_or(f64::NAN, |carried| carried.as_slice()[group]);
    let mut chain = Chain { carry_multiplicity: 0, carry: carried };
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
