//! Advantages of tokens, from the end of every segment backwards.

use crate::advantage::batch::{Weights, Whitening, moments_workspace_bytes, whiten};
use crate::advantage::group::{LeftOut, array};
use crate::backend::Backend;
use crate::device::workspace::TokenWorkspace;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Memory, View, ViewMut};
use crate::objective::Plan;

/// How a token's advantage comes from those to its right.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TokenEstimator {
    /// G_t = r_t + γ G_{t+1}: the discounted return, without a value model.
    Returns {
        /// γ
        gamma: f64,
    },
    /// A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t (1506.02438).
    Gae {
        /// γ
        gamma: f64,
        /// λ
        lambda: f64,
    },
    /// y_t = min(ρ̄, ρ_t) δ_t + γλ min(c̄, ρ_t) y_{t+1} (1802.01561): the doubly robust estimate per decision. At ρ = 1 and bars of at least 1 it is
    /// `Gae`, bit for bit.
    Vtrace {
        /// γ
        gamma: f64,
        /// λ
        lambda: f64,
        /// ρ̄, which bounds the weight of a token's own error: what the values converge to depends on it. ∞: no bound.
        ratio_bar: f64,
        /// c̄, which bounds what later errors weigh: variance against speed. ∞: no bound.
        trace_bar: f64,
        /// A_t = r_t + γ v_{t+1} − V_t with v = V + y, the advantage of the policy gradient; else A_t = y_t.
        one_step: bool,
    },
}

/// The numbers of an estimator.
pub(crate) struct Numbers {
    pub(crate) gamma: f64,
    pub(crate) lambda: f64,
    pub(crate) ratio_bar: f64,
    pub(crate) trace_bar: f64,
    pub(crate) one_step: bool,
}

impl TokenEstimator {
    /// 1802.01561 with λ 1 and both bars 1.
    pub fn vtrace(gamma: f64) -> TokenEstimator {
        TokenEstimator::Vtrace { gamma, lambda: 1.0, ratio_bar: 1.0, trace_bar: 1.0, one_step: true }
    }

    pub(crate) fn numbers(&self) -> Numbers {
        match *self {
            TokenEstimator::Returns { gamma } => {
                Numbers { gamma, lambda: 1.0, ratio_bar: 1.0, trace_bar: 1.0, one_step: false }
            }
            TokenEstimator::Gae { gamma, lambda } => {
                Numbers { gamma, lambda, ratio_bar: 1.0, trace_bar: 1.0, one_step: false }
            }
            TokenEstimator::Vtrace { gamma, lambda, ratio_bar, trace_bar, one_step } => {
                Numbers { gamma, lambda, ratio_bar, trace_bar, one_step }
            }
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let numbers = self.numbers();
        let mut checks = Checks::new();
        for (name, value) in [("gamma", numbers.gamma), ("lambda", numbers.lambda)] {
            checks.require((0.0..=1.0).contains(&value), Kind::Config, name, || format!("is {value}, needs 0 to 1"));
        }
        for (name, value) in [("ratio_bar", numbers.ratio_bar), ("trace_bar", numbers.trace_bar)] {
            checks.require(value > 0.0, Kind::Config, name, || format!("is {value}, needs a number above 0"));
        }
        checks.finish()
    }
}

/// One call on a batch of whole segments. Rewards of tokens and of segments add up; a segment's stands on its last counted token.
///
/// Masked tokens are absent: the recurrence skips them, and every result is +0 there. So are counted tokens of which something is not finite (or all of
/// a segment, where its own reward or bootstrap is not finite): they are counted in `nonfinite`, set the error word, and their advantage is `left_out`.
#[derive(Debug)]
pub struct TokenCall<'a, M> {
    /// r `[N]`
    pub token_rewards: Option<View<'a, f32, M>>,
    /// R `[S]`
    pub segment_rewards: Option<View<'a, f32, M>>,
    /// V `[N]`, of every estimator but `Returns`.
    pub values: Option<View<'a, f32, M>>,
    /// `[S]`: V behind the last counted token; absent: 0.
    pub bootstrap: Option<View<'a, f32, M>>,
    /// ρ `[N]`, current over behaviour policy, of `Vtrace`.
    pub ratio: Option<View<'a, f32, M>>,
    /// `[N]`: 1 where the token counts; absent: everywhere.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// A `[N]`
    pub advantages: Option<ViewMut<'a, f32, M>>,
    /// The advantage of a counted token of which something is not finite.
    pub left_out: LeftOut,
    /// V + y `[N]`: what a value model is to learn.
    pub returns: Option<ViewMut<'a, f32, M>>,
    /// min(ρ̄, ρ) `[N]`: what weighs the policy gradient of `Vtrace`'s one-step advantage.
    pub policy_weights: Option<ViewMut<'a, f32, M>>,
    /// `[1]`: counted tokens that were left out are added.
    pub nonfinite: Option<ViewMut<'a, u64, M>>,
    /// The [`ErrorWord`](crate::ErrorWord).
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The call's number in the error word.
    pub tag: u16,
    /// [`token_workspace_bytes`]; may hold anything.
    pub workspace: ViewMut<'a, u8, M>,
}

/// The bytes of workspace that calls with this plan need.
pub fn token_workspace_bytes<B: Backend>(plan: &Plan<B>) -> usize {
    TokenWorkspace::of(plan.unit_count).bytes()
}

impl<'a, M: Memory> TokenCall<'a, M> {
    /// A call without inputs or outputs, to be filled in.
    pub fn new(workspace: ViewMut<'a, u8, M>) -> TokenCall<'a, M> {
        TokenCall {
            token_rewards: None,
            segment_rewards: None,
            values: None,
            bootstrap: None,
            ratio: None,
            loss_mask: None,
            advantages: None,
            left_out: LeftOut::Zero,
            returns: None,
            policy_weights: None,
            nonfinite: None,
            errors: None,
            tag: 0,
            workspace,
        }
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `MissingInput`, `Shape`, `Alignment`, `Workspace`, `Overlap`.
    pub fn validate<B: Backend<Memory = M>>(&self, config: &TokenEstimator, plan: &Plan<B>) -> Result<()> {
        let (tokens, segments) = (plan.segments().tokens(), plan.segments().len());
        let mut checks = Checks::new();
        checks.merge(config.validate());
        self.check_presence(&mut checks, config);
        for (name, given, len) in [
            ("token_rewards", self.token_rewards, tokens),
            ("segment_rewards", self.segment_rewards, segments),
            ("values", self.values, tokens),
            ("bootstrap", self.bootstrap, segments),
            ("ratio", self.ratio, tokens),
            ("advantages", self.advantages.as_ref().map(ViewMut::as_view), tokens),
            ("returns", self.returns.as_ref().map(ViewMut::as_view), tokens),
            ("policy_weights", self.policy_weights.as_ref().map(ViewMut::as_view), tokens),
        ] {
            array(&mut checks, name, given, len);
        }
        array(&mut checks, "loss_mask", self.loss_mask, tokens);
        array(&mut checks, "nonfinite", self.nonfinite.as_ref().map(ViewMut::as_view), 1);
        array(&mut checks, "errors", self.errors.as_ref().map(ViewMut::as_view), 1);
        let needed = token_workspace_bytes(plan);
        checks.require(self.workspace.len() >= needed, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {needed}", self.workspace.len())
        });
        checks.disjoint(&[
            self.token_rewards.map(|array| array.extent("token_rewards")),
            self.segment_rewards.map(|array| array.extent("segment_rewards")),
            self.values.map(|array| array.extent("values")),
            self.bootstrap.map(|array| array.extent("bootstrap")),
            self.ratio.map(|array| array.extent("ratio")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.advantages.as_ref().map(|array| array.extent("advantages")),
            self.returns.as_ref().map(|array| array.extent("returns")),
            self.policy_weights.as_ref().map(|array| array.extent("policy_weights")),
            self.nonfinite.as_ref().map(|array| array.extent("nonfinite")),
            self.errors.as_ref().map(|array| array.extent("errors")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish()
    }

    /// What an estimator needs, and what it would silently not use.
    fn check_presence(&self, checks: &mut Checks, config: &TokenEstimator) {
        let (needs_values, needs_ratio) = match config {
            TokenEstimator::Returns { .. } => (false, false),
            TokenEstimator::Gae { .. } => (true, false),
            TokenEstimator::Vtrace { .. } => (true, true),
        };
        let rewarded = self.token_rewards.is_some() || self.segment_rewards.is_some();
        checks.require(rewarded, Kind::MissingInput, "token_rewards", || {
            "is missing, and so is segment_rewards: one of them is needed".into()
        });
        for (name, is_there, is_needed) in
            [("values", self.values.is_some(), needs_values), ("ratio", self.ratio.is_some(), needs_ratio)]
        {
            checks
                .require(is_there || !is_needed, Kind::MissingInput, name, || format!("is needed for {config:?}"))
                .require(!is_there || is_needed, Kind::Config, name, || format!("is not used by {config:?}"));
        }
    }
}

/// What [`reinforce_pp`] works on.
#[derive(Debug)]
pub struct ReinforcePp<'a, M> {
    /// The returns' part; its `advantages` are the result. Its workspace is also that of the moments, and needs [`moments_workspace_bytes`] of N if
    /// those are more.
    pub call: TokenCall<'a, M>,
    /// `[`[`MOMENTS`](crate::advantage::MOMENTS)`]`
    pub moments: ViewMut<'a, f64, M>,
}

/// Discounted returns, whitened over the counted tokens of the batch, on one rank (REINFORCE++, 2501.03262). Gaps of the mask do not reset the return.
/// A counted token of which something is not finite is absent: its advantage is 0, whatever the call's `left_out` says.
///
/// # Errors
/// [`TokenCall::validate`]'s and [`Moments::validate`](crate::advantage::Moments::validate)'s; `MissingInput` without `advantages`.
pub fn reinforce_pp<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    gamma: f64,
    plan: &Plan<B>,
    batch: ReinforcePp<'_, B::Memory>,
) -> Result<()> {
    let ReinforcePp { mut call, moments } = batch;
    let needed = token_workspace_bytes(plan).max(moments_workspace_bytes(plan.segments().tokens()));
    let mut checks = Checks::new();
    checks
        .require(call.advantages.is_some(), Kind::MissingInput, "advantages", || "are the result, and missing".into())
        .require(call.workspace.len() >= needed, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {needed}", call.workspace.len())
        });
    checks.finish()?;
    let Some(mut advantages) = call.advantages.take() else { return Ok(()) };
    let TokenCall { mut workspace, loss_mask, .. } = call;
    let returns = TokenCall {
        advantages: Some(advantages.reborrow()),
        workspace: workspace.reborrow(),
        left_out: LeftOut::Nan,
        returns: call.returns,
        policy_weights: call.policy_weights,
        nonfinite: call.nonfinite,
        errors: call.errors,
        ..call
    };
    backend.token_advantages(stream, &TokenEstimator::Returns { gamma }, plan, returns)?;
    let weights = loss_mask.map_or(Weights::One, Weights::Mask);
    whiten(backend, stream, &Whitening::default(), advantages, weights, moments, workspace)
}
