//! Sums by bin, in plain loops.

use crate::error::Result;
use crate::memory::Host;
use crate::route_change::{BINS, Call, NUMBERS};

/// [`Backend::route_change`](crate::Backend::route_change).
pub(super) fn route_change(mut call: Call<'_, Host>) -> Result<()> {
    call.validate()?;
    let mut sums = [[0.0; NUMBERS]; BINS];
    for u in 0..call.logprobs.len() {
        let (new, old) = (f64::from(call.logprobs.as_slice()[u]), f64::from(call.old_logprobs.as_slice()[u]));
        let rollout = call.rollout_logprobs.map_or(old, |rollout| f64::from(rollout.as_slice()[u]));
        let (moved, apart) = (new - old, old - rollout);
        let is_counted = call.loss_mask.is_none_or(|mask| mask.as_slice()[u] != 0);
        if !is_counted || !moved.is_finite() || !apart.is_finite() {
            continue;
        }
        let is_clipped = call.clipped.is_some_and(|clipped| clipped.as_slice()[u] != 0);
        let is_rejected = call.keep.is_some_and(|keep| keep.as_slice()[u] == 0);
        let bin = usize::from(call.route_change.as_slice()[u]).min(BINS - 1);
        let seen =
            [1.0, moved.abs(), moved * moved, apart, apart * apart, f64::from(is_clipped), f64::from(is_rejected)];
        sums[bin].iter_mut().zip(seen).for_each(|(sum, x)| *sum += x);
    }
    let accumulate = call.accumulate;
    for (to, from) in call.sums.as_mut_slice().iter_mut().zip(sums.as_flattened()) {
        *to = from + if accumulate { *to } else { 0.0 };
    }
    Ok(())
}
