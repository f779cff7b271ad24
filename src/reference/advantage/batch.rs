//! What concerns a whole batch.

use crate::advantage::{CountTokens, DoublyRobust, Moments, Pass, Weights, Whiten, Whitening};
use crate::error::Result;
use crate::memory::Host;
use crate::objective::Plan;
use crate::reference::Reference;

/// [`Backend::batch_moments`](crate::Backend::batch_moments).
pub(crate) fn batch_moments(pass: Pass, mut call: Moments<'_, Host>) -> Result<()> {
    call.validate()?;
    let weight = |index: usize| match call.weights {
        Weights::One => 1.0,
        Weights::Mask(mask) => f64::from(u8::from(mask.as_slice()[index] != 0)),
        Weights::Counts(counts) => f64::from(counts.as_slice()[index]),
    };
    let values = call.values.as_slice();
    let counted = || {
        let finite = values.iter().enumerate().filter(|(_, value)| value.is_finite());
        finite.map(|(index, &value)| (weight(index), f64::from(value)))
    };
    let moments = call.moments.as_mut_slice();
    match pass {
        Pass::Mean => {
            moments[0] = counted().map(|(w, _)| w).sum::<f64>() + 0.0;
            moments[1] = counted().map(|(w, x)| w * x).sum::<f64>() + 0.0;
            moments[2] = 0.0;
        }
        Pass::Squares => {
            let mean = moments[1] / moments[0];
            let squares = counted().filter(|&(w, _)| w != 0.0).map(|(w, x)| w * (x - mean) * (x - mean));
            moments[2] = squares.sum::<f64>() + 0.0;
        }
    }
    Ok(())
}

/// [`Backend::batch_whiten`](crate::Backend::batch_whiten).
pub(crate) fn batch_whiten(config: &Whitening, mut call: Whiten<'_, Host>) -> Result<()> {
    call.validate(config)?;
    let &[weight, sum, squares] = call.moments.as_slice() else { unreachable!("validate checked the length") };
    let degrees = weight - f64::from(config.ddof);
    let mean = if config.centre { sum / weight } else { 0.0 };
    let variance = squares / degrees;
    let divisor =
        if config.epsilon_in_root { (variance + config.epsilon).sqrt() } else { variance.sqrt() + config.epsilon };
    let mask = call.mask.map(|mask| mask.as_slice());
    for (index, value) in call.values.as_mut_slice().iter_mut().enumerate() {
        let counts = mask.is_none_or(|mask| mask[index] != 0) && value.is_finite() && weight > 1.0 && degrees > 0.0;
        let difference = f64::from(*value) - mean;
        // Equal values and ε = 0: 0/0.
        *value = if counts && difference != 0.0 { (difference / divisor) as f32 } else { 0.0 };
    }
    Ok(())
}

/// [`Backend::count_tokens`](crate::Backend::count_tokens).
pub(crate) fn count_tokens(plan: &Plan<Reference>, mut call: CountTokens<'_, Host>) -> Result<()> {
    call.validate(plan)?;
    let mask = call.loss_mask.map(|mask| mask.as_slice());
    for (count, range) in call.counts.as_mut_slice().iter_mut().zip(plan.segments().ranges()) {
        *count = mask.map_or(range.len(), |mask| mask[range].iter().filter(|&&m| m != 0).count()) as u32;
    }
    Ok(())
}

/// [`Backend::doubly_robust`](crate::Backend::doubly_robust).
pub(crate) fn doubly_robust(mut call: DoublyRobust<'_, Host>) -> Result<()> {
    call.validate()?;
    let (rewards, values) = (call.rewards.as_slice(), call.values.as_slice());
    let mut broken = 0;
    for segment in 0..rewards.len() {
        let (reward, value) = (f64::from(rewards[segment]), f64::from(values[segment]));
        let weight = call.weights.map_or(1.0, |weights| f64::from(weights.as_slice()[segment]));
        let is_sound = reward.is_finite() && value.is_finite() && weight.is_finite();
        broken += u64::from(!is_sound);
        let advantage = if is_sound { weight * (reward - value) } else { 0.0 };
        call.advantages.as_mut_slice()[segment] = advantage as f32;
        if let Some(estimates) = &mut call.estimates {
            let value = if value.is_finite() { value } else { 0.0 };
            estimates.as_mut_slice()[segment] = (value + advantage) as f32;
        }
    }
    if let Some(count) = &mut call.nonfinite {
        count.as_mut_slice()[0] += broken;
    }
    Ok(())
}
