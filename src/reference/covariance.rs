//! The choice of tokens by a sort.

use crate::covariance::{Call, Config, Rule};
use crate::error::Result;
use crate::memory::Host;
use crate::random::{key, philox4x32_10};

/// A token that may be chosen: what decides, smallest first, and its place.
type Candidate = ((u32, u32), usize);

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count();
    if count == 0 { 0.0 } else { values.sum::<f64>() / count as f64 }
}

/// Bits that rise with x.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_sign_negative() { !bits } else { bits | 1 << 31 }
}

/// [`Backend::covariance`](crate::Backend::covariance).
pub(super) fn covariance(config: &Config, mut call: Call<'_, Host>) -> Result<()> {
    call.validate(config)?;
    let (logprobs, advantages, ids) = (call.logprobs.as_slice(), call.advantages.as_slice(), call.token_ids.as_slice());
    let is_counted = |&u: &usize| {
        call.loss_mask.is_none_or(|mask| mask.as_slice()[u] != 0)
            && logprobs[u].is_finite()
            && advantages[u].is_finite()
    };
    let counted: Vec<usize> = (0..logprobs.len()).filter(is_counted).collect();
    let of = |values: &[f32]| mean(counted.iter().map(|&u| f64::from(values[u])));
    let (mean_advantage, mean_logprob) = config.means.unwrap_or((of(advantages), of(logprobs)));
    let word = |seed: u64, id: u32| philox4x32_10(key(seed), [id, 0, 1, 0])[0];

    let mut candidates: Vec<Candidate> = counted
        .iter()
        .filter(|&&u| call.excluded.is_none_or(|excluded| excluded.as_slice()[u] == 0))
        .filter_map(|&u| {
            let covariance = (f64::from(advantages[u]) - mean_advantage) * (f64::from(logprobs[u]) - mean_logprob);
            let inside = |(low, high): (f64, f64)| covariance > low && covariance < high;
            let order = match config.rule {
                Rule::Random { bounds, seed, .. } | Rule::Bernoulli { bounds, seed, .. } => {
                    inside(bounds).then(|| word(seed, ids[u]))?
                }
                Rule::Largest { .. } => !ordered(covariance as f32 + 0.0),
            };
            Some(((order, ids[u]), u))
        })
        .collect();
    match config.rule {
        Rule::Bernoulli { probability, .. } => {
            candidates.retain(|((word, _), _)| f64::from(*word) < probability * 2f64.powi(32));
        }
        Rule::Random { fraction, .. } | Rule::Largest { fraction } => {
            candidates.sort_unstable();
            candidates.truncate(((fraction * counted.len() as f64) as usize).max(1));
        }
    }
    for (array, value) in [(&mut call.chosen, 1), (&mut call.keep, 0)] {
        if let Some(array) = array {
            let array = array.as_mut_slice();
            array.fill(1 - value);
            candidates.iter().for_each(|&(_, u)| array[u] = value);
        }
    }
    Ok(())
}
