//! Rewards against those of their group.

use crate::advantage::{Baseline, COUNTS, Call, Config, Count, GroupPlan, Single};
use crate::error::Result;
use crate::memory::Host;
use crate::reference::Reference;

/// A member with a finite reward.
struct Member {
    segment: usize,
    reward: f64,
    length: f64,
}

/// What is subtracted from the reward of `members[index]`.
fn baseline(config: &Config, members: &[Member], index: usize) -> f64 {
    let mean = |of: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = of.fold((0.0, 0.0), |(sum, count), x| (sum + x, count + 1.0));
        sum / count
    };
    match config.baseline {
        Baseline::Mean => mean(&mut members.iter().map(|m| m.reward)),
        Baseline::LeaveOneOut => {
            mean(&mut members.iter().enumerate().filter(|&(i, _)| i != index).map(|(_, m)| m.reward))
        }
        Baseline::LengthWeighted => {
            let weight: f64 = members.iter().map(|m| m.length).sum();
            let weighted: f64 = members.iter().map(|m| m.length * m.reward).sum();
            if weight > 0.0 { weighted / weight } else { members[index].reward }
        }
    }
}

/// The advantages of one group's members; true where the rule of `degenerate_tol` made them 0.
fn group(config: &Config, members: &[Member]) -> (Vec<f64>, bool) {
    let count = members.len() as f64;
    if let [only] = members {
        return (vec![if config.single == Single::Reward { only.reward } else { 0.0 }], false);
    }
    let rewards = || members.iter().map(|m| m.reward);
    let (min, max) = rewards().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), r| (min.min(r), max.max(r)));
    if config.degenerate_tol > 0.0 && max - min <= config.degenerate_tol * max.abs().max(min.abs()).max(1.0) {
        return (vec![0.0; members.len()], true);
    }
    let divisor = if config.std {
        let mean = rewards().sum::<f64>() / count;
        let squares: f64 = rewards().map(|r| (r - mean) * (r - mean)).sum();
        (squares / (count - f64::from(config.ddof))).sqrt() + config.epsilon
    } else {
        1.0
    };
    // Baselines but that of the others are the same for every member.
    let shared = (config.baseline != Baseline::LeaveOneOut).then(|| baseline(config, members, 0));
    let weightless = config.baseline == Baseline::LengthWeighted && members.iter().all(|m| m.length == 0.0);
    let differences = members.iter().enumerate().map(|(index, m)| {
        if weightless { 0.0 } else { m.reward - shared.unwrap_or_else(|| baseline(config, members, index)) }
    });
    // Equal rewards and ε = 0: 0/0.
    (differences.map(|difference| if difference == 0.0 { 0.0 } else { difference / divisor }).collect(), false)
}

/// [`Backend::group_advantages`](crate::Backend::group_advantages).
pub(crate) fn group_advantages(config: &Config, plan: &GroupPlan<Reference>, mut call: Call<'_, Host>) -> Result<()> {
    call.validate(config, plan)?;
    let groups = plan.groups();
    let mut counts = [0; COUNTS];
    let rewards = call.rewards.as_slice();
    let lengths = call.lengths.map(|lengths| lengths.as_slice());
    let advantages = call.advantages.as_mut_slice();
    for index in 0..groups.len() {
        let all = groups.members(index);
        let mut members = Vec::new();
        for &segment in all {
            let segment = segment as usize;
            advantages[segment] = call.left_out.advantage();
            if rewards[segment].is_finite() {
                let length = lengths.map_or(1.0, |lengths| f64::from(lengths[segment]));
                members.push(Member { segment, reward: f64::from(rewards[segment]), length });
            }
        }
        counts[Count::RewardsNonFinite as usize] += (all.len() - members.len()) as u64;
        counts[Count::GroupsSizeOne as usize] += u64::from(all.len() == 1);
        if members.is_empty() {
            continue;
        }
        let (values, is_degenerate) = group(config, &members);
        counts[Count::GroupsZeroStd as usize] += u64::from(is_degenerate);
        for (member, value) in members.iter().zip(values) {
            advantages[member.segment] = value as f32;
        }
    }
    if let Some(to) = &mut call.counts {
        for (to, from) in to.as_mut_slice().iter_mut().zip(counts) {
            *to += from;
        }
    }
    Ok(())
}
