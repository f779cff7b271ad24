//! Group-normalised advantages in plain f64 loops.

use crate::advantage::{COUNTS, Call, Config, Count, GroupPlan, Single};
use crate::error::Result;
use crate::memory::Host;
use crate::reference::Reference;

/// The advantages of one group's rewards, all finite; true where the rule of `degenerate_tol` made them 0.
fn group(config: &Config, rewards: &[f64]) -> (Vec<f64>, bool) {
    let count = rewards.len() as f64;
    if rewards.len() == 1 {
        return (vec![if config.single == Single::Reward { rewards[0] } else { 0.0 }], false);
    }
    let (min, max) = rewards.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), &r| (min.min(r), max.max(r)));
    if config.degenerate_tol > 0.0 && max - min <= config.degenerate_tol * max.abs().max(min.abs()).max(1.0) {
        return (vec![0.0; rewards.len()], true);
    }
    let mean = rewards.iter().sum::<f64>() / count;
    let divisor = if config.std {
        let squares: f64 = rewards.iter().map(|r| (r - mean) * (r - mean)).sum();
        (squares / (count - f64::from(config.ddof))).sqrt() + config.epsilon
    } else {
        1.0
    };
    // Equal rewards and ε = 0: 0/0.
    (rewards.iter().map(|r| if *r == mean { 0.0 } else { (r - mean) / divisor }).collect(), false)
}

/// [`Backend::group_advantages`](crate::Backend::group_advantages).
pub(super) fn group_advantages(config: &Config, plan: &GroupPlan<Reference>, mut call: Call<'_, Host>) -> Result<()> {
    let groups = plan.groups();
    call.validate(config, groups)?;
    let mut counts = [0; COUNTS];
    let rewards = call.rewards.as_slice();
    let advantages = call.advantages.as_mut_slice();
    for index in 0..groups.len() {
        let members = groups.members(index);
        let (valid, broken): (Vec<u32>, Vec<u32>) =
            members.iter().partition(|&&member| rewards[member as usize].is_finite());
        for &member in &broken {
            advantages[member as usize] = 0.0;
        }
        counts[Count::RewardsNonFinite as usize] += broken.len() as u64;
        counts[Count::GroupsSizeOne as usize] += u64::from(members.len() == 1);
        if valid.is_empty() {
            continue;
        }
        let of_group: Vec<f64> = valid.iter().map(|&member| f64::from(rewards[member as usize])).collect();
        let (values, is_degenerate) = group(config, &of_group);
        counts[Count::GroupsZeroStd as usize] += u64::from(is_degenerate);
        for (&member, value) in valid.iter().zip(values) {
            advantages[member as usize] = value as f32;
        }
    }
    if let Some(to) = &mut call.counts {
        for (to, from) in to.as_mut_slice().iter_mut().zip(counts) {
            *to += from;
        }
    }
    Ok(())
}
