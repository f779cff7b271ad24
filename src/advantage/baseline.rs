//! The optimal baseline of a token index.

use crate::advantage::group::{GroupPlan, Piece, array};
use crate::backend::Backend;
use crate::device::workspace::BaselineWorkspace;
use crate::error::{Checks, Error, Kind, Result};
use crate::memory::{Memory, View, ViewMut};
use crate::objective::{Groups, Plan, Segments};

/// Token indices of a group that one block takes.
pub(crate) const BASELINE_TILE: usize = 128;

/// The optimal token baseline (2602.07078).
///
/// ```text
/// e_t = (1 − 2π_t + Σπ²) w_t²     W_t = e_0 + … + e_t over the segment's counted tokens
/// b_t = Σ G W / (Σ W + ε) over the group's members with a counted token of index t     A_t = G_t − b_t
/// ```
///
/// Where Σ W is 0, b is.
///
/// e is the squared norm of the gradient of log π_t in the logits, and not below 0 whatever its inputs' rounding makes of it. The index counts counted
/// tokens, so gaps of the mask do not shift it (verl's `tir_optimal_token_baseline`; its plain form aligns members by padded column).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TokenBaseline {
    /// Beyond the second longest member the longest has no baseline but itself: b = 0 there.
    pub zero_tail: bool,
    /// ε. Not negative.
    pub epsilon: f64,
}

impl Default for TokenBaseline {
    /// verl's: the tail is 0, ε 1e-8.
    fn default() -> TokenBaseline {
        TokenBaseline { zero_tail: true, epsilon: 1e-8 }
    }
}

impl TokenBaseline {
    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for one outside its range.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        checks.require(self.epsilon >= 0.0 && self.epsilon.is_finite(), Kind::Config, "epsilon", || {
            format!("is {}, needs a finite number of at least 0", self.epsilon)
        });
        checks.finish()
    }
}

/// Segments and their groups, where a backend's kernels can read them.
pub struct BaselinePlan<B: Backend> {
    pub(crate) plan: Plan<B>,
    pub(crate) groups: GroupPlan<B>,
    pub(crate) pieces: B::Buffer<Piece>,
    pub(crate) piece_count: usize,
}

impl<B: Backend> BaselinePlan<B> {
    /// Divides the work and hands it to the backend.
    ///
    /// # Errors
    /// `Segments` for a member that is no segment, and for a segment of more than 2³²−1 tokens; the backend's, where it cannot take the arrays.
    pub fn new(backend: &B, stream: &B::Stream, segments: &Segments, groups: &Groups) -> Result<BaselinePlan<B>> {
        let outside = groups.all_members().iter().find(|&&member| member as usize >= segments.len());
        if let Some(member) = outside {
            let message = format!("name segment {member}, but there are {}", segments.len());
            return Err(Error::invalid(Kind::Segments, "group_members", message));
        }
        if segments.longest() > u32::MAX as usize {
            let message = format!("has a segment of {} tokens, at most 4294967295 are supported", segments.longest());
            return Err(Error::invalid(Kind::Segments, "cu_seqlens", message));
        }
        let mut pieces = Vec::new();
        for group in 0..groups.len() {
            let lengths = groups.members(group).iter().map(|&member| segments.range(member as usize).len());
            let tiles = lengths.max().unwrap_or(0).div_ceil(BASELINE_TILE) as u32;
            pieces.extend((0..tiles).map(|index| Piece { group: group as u32, index }));
        }
        Ok(BaselinePlan {
            plan: Plan::new(backend, stream, segments)?,
            groups: GroupPlan::new(backend, stream, groups)?,
            piece_count: pieces.len(),
            pieces: backend.upload(stream, &pieces)?,
        })
    }

    /// The segments that it divides.
    pub fn segments(&self) -> &Segments {
        self.plan.segments()
    }
}

/// One call on a batch of whole segments. A counted token of which something is not finite is left out as if it were masked: A = +0; it is counted in
/// `nonfinite` and sets the error word. Where a segment is in no group, nothing is written at its counted tokens.
#[derive(Debug)]
pub struct BaselineCall<'a, M> {
    /// G `[N]`: the reward to go, of [`TokenEstimator::Returns`](crate::advantage::TokenEstimator::Returns) with γ 1.
    pub returns: View<'a, f32, M>,
    /// log π `[N]` of the policy that sampled.
    pub logprobs: View<'a, f32, M>,
    /// Σπ² `[N]` over its vocabulary: [`Forward::sum_p2`](crate::logprob::Forward::sum_p2).
    pub sum_p2: View<'a, f32, M>,
    /// w `[N]`, truncated importance weights; absent: 1.
    pub weights: Option<View<'a, f32, M>>,
    /// `[N]`: 1 where the token counts; absent: everywhere.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// A `[N]`
    pub advantages: ViewMut<'a, f32, M>,
    /// `[1]`: counted tokens that were left out are added.
    pub nonfinite: Option<ViewMut<'a, u64, M>>,
    /// The [`ErrorWord`](crate::ErrorWord).
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The call's number in the error word.
    pub tag: u16,
    /// [`baseline_workspace_bytes`]; may hold anything.
    pub workspace: ViewMut<'a, u8, M>,
}

/// The bytes of workspace that calls with this plan need: 12 a token, and little else.
pub fn baseline_workspace_bytes<B: Backend>(plan: &BaselinePlan<B>) -> usize {
    let segments = plan.segments();
    BaselineWorkspace::of(segments.tokens(), segments.len(), plan.plan.unit_count).bytes()
}

impl<M: Memory> BaselineCall<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Workspace`, `Overlap`.
    pub fn validate<B: Backend<Memory = M>>(&self, config: &TokenBaseline, plan: &BaselinePlan<B>) -> Result<()> {
        let tokens = plan.segments().tokens();
        let mut checks = Checks::new();
        checks.merge(config.validate());
        for (name, given) in [
            ("returns", Some(self.returns)),
            ("logprobs", Some(self.logprobs)),
            ("sum_p2", Some(self.sum_p2)),
            ("weights", self.weights),
            ("advantages", Some(self.advantages.as_view())),
        ] {
            array(&mut checks, name, given, tokens);
        }
        array(&mut checks, "loss_mask", self.loss_mask, tokens);
        array(&mut checks, "nonfinite", self.nonfinite.as_ref().map(ViewMut::as_view), 1);
        array(&mut checks, "errors", self.errors.as_ref().map(ViewMut::as_view), 1);
        let needed = baseline_workspace_bytes(plan);
        checks.require(self.workspace.len() >= needed, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {needed}", self.workspace.len())
        });
        checks.disjoint(&[
            Some(self.returns.extent("returns")),
            Some(self.logprobs.extent("logprobs")),
            Some(self.sum_p2.extent("sum_p2")),
            self.weights.map(|array| array.extent("weights")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            Some(self.advantages.extent("advantages")),
            self.nonfinite.as_ref().map(|array| array.extent("nonfinite")),
            self.errors.as_ref().map(|array| array.extent("errors")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish()
    }
}
