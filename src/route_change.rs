//! Where the ratio moves: statistics of tokens by how many of their experts changed.
//!
//! About a tenth of a mixture-of-experts model's routers decide otherwise in every forward pass (Megatron-LM issue 4168), so log-probabilities
//! move even where no parameter has. These sums, by bin of `route_change`, tell how much of the policy's ratio, of the mismatch with the
//! rollout, of clipping and of rejection goes with it.

use crate::device::workspace::RouteChangeWorkspace;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Memory, View, ViewMut};

/// The bins of `route_change`; larger values count in the last.
pub const BINS: usize = 16;
/// The sums of a bin.
pub const NUMBERS: usize = 7;

/// One call on N tokens. A counted token whose log-probabilities are not finite has no part in it. On a device differences and their squares are
/// f32: where tokens are further apart than 1e19, sums of a bin may be infinite or NaN.
#[derive(Debug)]
pub struct Call<'a, M> {
    /// `[N]`: l, under the current policy.
    pub logprobs: View<'a, f32, M>,
    /// `[N]`: o, under the old policy.
    pub old_logprobs: View<'a, f32, M>,
    /// `[N]`: q, under the rollout's; absent: the mismatch is 0.
    pub rollout_logprobs: Option<View<'a, f32, M>>,
    /// `[N]`: 1 where the token counts; absent: every token does.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[N]`: what the objective's [`Output::clipped`](crate::objective::Output::clipped) holds.
    pub clipped: Option<View<'a, u8, M>>,
    /// `[N]`: 0 where the token was rejected.
    pub keep: Option<View<'a, u8, M>>,
    /// `[N]`: how many experts of the token changed, or the share of its layers in which some did, times 16.
    pub route_change: View<'a, u8, M>,
    /// `[`[`BINS`]` · `[`NUMBERS`]`]`: see [`Bin`]; may be added up over calls and ranks.
    pub sums: ViewMut<'a, f64, M>,
    /// Scratch memory of at least [`workspace_bytes`], whatever it holds.
    pub workspace: ViewMut<'a, u8, M>,
    /// The sums are added to what is there.
    pub accumulate: bool,
}

/// The bytes of workspace that a call on `tokens` tokens needs.
pub fn workspace_bytes(tokens: usize) -> usize {
    RouteChangeWorkspace::of(tokens).bytes()
}

impl<M: Memory> Call<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Shape`, `Alignment`, `Overlap`, `Workspace`.
    pub fn validate(&self) -> Result<()> {
        let n = self.logprobs.len();
        let needed = workspace_bytes(n);
        let mut checks = Checks::new();
        checks.shape("old_logprobs", &[self.old_logprobs.len()], &[n]);
        checks.shape("route_change", &[self.route_change.len()], &[n]);
        checks.shape("sums", &[self.sums.len()], &[BINS * NUMBERS]);
        if let Some(array) = self.rollout_logprobs {
            checks.shape("rollout_logprobs", &[array.len()], &[n]);
        }
        for (name, array) in [("loss_mask", self.loss_mask), ("clipped", self.clipped), ("keep", self.keep)] {
            if let Some(array) = array {
                checks.shape(name, &[array.len()], &[n]);
            }
        }
        for (name, address, size) in [
            ("logprobs", self.logprobs.address(), 4),
            ("old_logprobs", self.old_logprobs.address(), 4),
            ("rollout_logprobs", self.rollout_logprobs.map_or(0, |array| array.address()), 4),
            ("sums", self.sums.address(), 8),
        ] {
            checks.require(address.is_multiple_of(size), Kind::Alignment, name, || {
                format!("address {address:#x} is not a multiple of {size}")
            });
        }
        checks.require(self.workspace.len() >= needed, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {needed}", self.workspace.len())
        });
        checks.disjoint(&[
            Some(self.logprobs.extent("logprobs")),
            Some(self.old_logprobs.extent("old_logprobs")),
            self.rollout_logprobs.map(|array| array.extent("rollout_logprobs")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.clipped.map(|array| array.extent("clipped")),
            self.keep.map(|array| array.extent("keep")),
            Some(self.route_change.extent("route_change")),
            Some(self.sums.extent("sums")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish()
    }
}

/// What the tokens of a bin did. Means over nothing are `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Bin {
    /// Tokens.
    pub tokens: u64,
    /// Mean of |l − o|.
    pub moved: Option<f64>,
    /// Mean of (l − o)².
    pub moved_squared: Option<f64>,
    /// Mean of o − q.
    pub mismatch: Option<f64>,
    /// Mean of (o − q)².
    pub mismatch_squared: Option<f64>,
    /// The share that was clipped.
    pub clipped: Option<f64>,
    /// The share that was rejected.
    pub rejected: Option<f64>,
}

impl Bin {
    /// Every bin, from the sums of a call; `None` unless there are as many as [`Call::sums`] has.
    pub fn from_sums(sums: &[f64]) -> Option<Vec<Bin>> {
        (sums.len() == BINS * NUMBERS).then(|| sums.chunks(NUMBERS).map(Bin::of).collect())
    }

    fn of(sums: &[f64]) -> Bin {
        let count = sums[0];
        let mean = |sum: f64| (count > 0.0).then(|| sum / count);
        Bin {
            tokens: count as u64,
            moved: mean(sums[1]),
            moved_squared: mean(sums[2]),
            mismatch: mean(sums[3]),
            mismatch_squared: mean(sums[4]),
            clipped: mean(sums[5]),
            rejected: mean(sums[6]),
        }
    }
}
