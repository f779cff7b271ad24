//! Advantages of tokens.

use crate::abi::MOERL_NO_FAULT;
use crate::advantage::{BaselineCall, BaselinePlan, TokenBaseline, TokenCall, TokenEstimator};
use crate::error::{Fault, FaultCode, Result};
use crate::memory::{Host, View, ViewMut};
use crate::objective::Plan;
use crate::reference::Reference;

/// An element of an array that may be absent.
fn at(array: Option<View<'_, f32, Host>>, index: usize, absent: f32) -> f64 {
    f64::from(array.map_or(absent, |array| array.as_slice()[index]))
}

fn set(array: &mut Option<ViewMut<'_, f32, Host>>, index: usize, value: f64) {
    if let Some(array) = array {
        array.as_mut_slice()[index] = value as f32;
    }
}

/// Counted tokens of which something is not finite.
#[derive(Default)]
struct Lost {
    tokens: Vec<usize>,
}

impl Lost {
    fn report(
        &self,
        nonfinite: &mut Option<ViewMut<'_, u64, Host>>,
        errors: &mut Option<ViewMut<'_, u64, Host>>,
        tag: u16,
    ) {
        if let Some(count) = nonfinite {
            count.as_mut_slice()[0] += self.tokens.len() as u64;
        }
        let first =
            self.tokens.iter().min().map_or(MOERL_NO_FAULT, |&row| {
                Fault { row: row as u64, tag, code: FaultCode::NonfiniteInput }.to_word()
            });
        if let Some(word) = errors {
            let word = &mut word.as_mut_slice()[0];
            *word = first.min(*word);
        }
    }
}

/// [`Backend::token_advantages`](crate::Backend::token_advantages).
pub(crate) fn token_advantages(
    config: &TokenEstimator,
    plan: &Plan<Reference>,
    mut call: TokenCall<'_, Host>,
) -> Result<()> {
    call.validate(config, plan)?;
    let numbers = config.numbers();
    let gamma = numbers.gamma;
    let mut lost = Lost::default();
    for (segment, range) in plan.segments().ranges().enumerate() {
        let reward = at(call.segment_rewards, segment, 0.0);
        let bootstrap = at(call.bootstrap, segment, 0.0);
        let is_sound_segment = reward.is_finite() && bootstrap.is_finite();
        // What the next counted token contributes besides y: γ V of it, or what stands behind the last one.
        let (mut next_value, mut next_y) = (reward + gamma * bootstrap, 0.0);
        for token in range.rev() {
            let counts = call.loss_mask.is_none_or(|mask| mask.as_slice()[token] != 0);
            let reward = at(call.token_rewards, token, 0.0);
            let value = at(call.values, token, 0.0);
            let ratio = at(call.ratio, token, 1.0);
            let is_sound = is_sound_segment && reward.is_finite() && value.is_finite() && ratio.is_finite();
            let (mut advantage, mut result, mut weight) = (0.0, 0.0, 0.0);
            if counts && is_sound {
                weight = ratio.min(numbers.ratio_bar);
                let difference = reward + next_value - value;
                let trace = gamma * numbers.lambda * ratio.min(numbers.trace_bar);
                let y = weight * difference + trace * next_y;
                advantage = if numbers.one_step { difference + gamma * next_y } else { y };
                result = value + y;
                (next_value, next_y) = (gamma * value, y);
            } else if counts {
                advantage = f64::from(call.left_out.advantage());
                lost.tokens.push(token);
            }
            set(&mut call.advantages, token, advantage);
            set(&mut call.returns, token, result);
            set(&mut call.policy_weights, token, weight);
        }
    }
    lost.report(&mut call.nonfinite, &mut call.errors, call.tag);
    Ok(())
}

/// One counted token, in the order of its segment.
struct Counted {
    token: usize,
    reward_to_go: f64,
    cumulative: f64,
}

/// [`Backend::token_baseline`](crate::Backend::token_baseline).
pub(crate) fn token_baseline(
    config: &TokenBaseline,
    plan: &BaselinePlan<Reference>,
    mut call: BaselineCall<'_, Host>,
) -> Result<()> {
    call.validate(config, plan)?;
    let mut lost = Lost::default();
    let mut segments: Vec<Vec<Counted>> = Vec::new();
    for range in plan.segments().ranges() {
        let (mut counted, mut cumulative) = (Vec::new(), 0.0);
        for token in range {
            let counts = call.loss_mask.is_none_or(|mask| mask.as_slice()[token] != 0);
            let returns = at(Some(call.returns), token, 0.0);
            let logprob = at(Some(call.logprobs), token, 0.0);
            let sum_p2 = at(Some(call.sum_p2), token, 0.0);
            let weight = at(call.weights, token, 1.0);
            if counts && [returns, logprob, sum_p2, weight].iter().all(|x| x.is_finite()) {
                cumulative += (1.0 - 2.0 * logprob.exp() + sum_p2).max(0.0) * weight * weight;
                counted.push(Counted { token, reward_to_go: returns, cumulative });
            } else {
                call.advantages.as_mut_slice()[token] = 0.0;
                lost.tokens.extend(counts.then_some(token));
            }
        }
        segments.push(counted);
    }
    let groups = plan.groups.groups();
    for group in 0..groups.len() {
        let members: Vec<&Vec<Counted>> =
            groups.members(group).iter().map(|&m| &segments[m as usize]).filter(|m| !m.is_empty()).collect();
        let mut lengths: Vec<usize> = members.iter().map(|m| m.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        for index in 0..lengths.first().copied().unwrap_or(0) {
            let there: Vec<&Counted> = members.iter().filter_map(|m| m.get(index)).collect();
            let weighted: f64 = there.iter().map(|c| c.reward_to_go * c.cumulative).sum();
            let weight: f64 = there.iter().map(|c| c.cumulative).sum();
            // Without any variance there is nothing to reduce, and with ε = 0 nothing to divide by.
            let has_baseline = members.len() > 1 && (!config.zero_tail || index < lengths[1]) && weight > 0.0;
            let baseline = if has_baseline { weighted / (weight + config.epsilon) } else { 0.0 };
            for counted in there {
                call.advantages.as_mut_slice()[counted.token] = (counted.reward_to_go - baseline) as f32;
            }
        }
    }
    lost.report(&mut call.nonfinite, &mut call.errors, call.tag);
    Ok(())
}
