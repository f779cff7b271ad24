//! The arrays of a call.

use bytemuck::{Pod, Zeroable};

use super::{Aggregation, Anchor, Config, Plane, Variant};
use crate::backend::Backend;
use crate::device::workspace::ObjectiveWorkspace;
use crate::diagnostics;
use crate::error::{Checks, Extent, Kind, Result};
use crate::memory::{Memory, View, ViewMut};
use crate::segments::Plan;

/// The advantages: constants of the gradient. A segment's may be anything where no token counts.
#[derive(Debug)]
pub enum Advantages<'a, M> {
    /// `[S]`
    PerSegment(View<'a, f32, M>),
    /// `[N]`
    PerToken(View<'a, f32, M>),
}

impl<M> Clone for Advantages<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Advantages<'_, M> {}

/// What the [`Aggregation`] divides by: for the whole optimiser step, over all micro-batches and ranks.
#[derive(Debug)]
pub enum Denominators<'a, M> {
    /// Counted by the caller. Those that the aggregation does not use may be 0.
    Global {
        /// T: tokens that count.
        tokens: u64,
        /// B: segments with a token that counts.
        segments: u64,
        /// P: prompts with a token that counts.
        prompts: u64,
        /// L: the longest completion allowed.
        max_len: u64,
    },
    /// T, B, P, L as `[4]` f64 in the backend's memory, for graphs and for counts that only the device has.
    Device(View<'a, f64, M>),
    /// Counted in this call alone, which makes the gradient depend on how a batch is split. Not for the phases.
    Local {
        /// As in `Global`; this one cannot be counted.
        max_len: u64,
    },
}

impl<M> Clone for Denominators<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Denominators<'_, M> {}

impl<M> Denominators<'_, M> {
    /// T and B, for every aggregation that needs no more.
    pub fn global(tokens: u64, segments: u64) -> Self {
        Denominators::Global { tokens, segments, prompts: 0, max_len: 0 }
    }

    /// Counted in this call alone; see [`Denominators::Local`].
    pub fn local() -> Self {
        Denominators::Local { max_len: 0 }
    }
}

/// What a call is about: N tokens in S segments, as the [`Plan`] divides them.
#[derive(Debug)]
pub struct Batch<'a, M> {
    /// `[N]`: l, the current policy's log-probabilities of the chosen tokens.
    pub logprobs: View<'a, f32, M>,
    /// `[N]`: o, the old policy's; absent on the first on-policy step, when o = l and every ratio is 1.
    pub old_logprobs: Option<View<'a, f32, M>>,
    /// A.
    pub advantages: Advantages<'a, M>,
    /// `[N]`: m, 1 where the token counts; absent: every token counts.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[N]`: w ≥ 0, constants that multiply the policy's term of tokens (importance weights); absent: 1.
    pub weights: Option<View<'a, f32, M>>,
    /// `[S]`: W ≥ 0, likewise for whole segments; absent: 1.
    pub segment_weights: Option<View<'a, f32, M>>,
    /// `[N]`: 0 where the token was rejected; absent: every token is kept. See [`RejectionScope`](super::RejectionScope).
    pub keep: Option<View<'a, u8, M>>,
    /// `[N]`: q, under the policy that the rollout engine ran; needed by [`Anchor::Rollout`], the mismatch penalty and MiniRL.
    pub rollout_logprobs: Option<View<'a, f32, M>>,
    /// `[N]`: r, under the reference policy; needed by a divergence.
    pub ref_logprobs: Option<View<'a, f32, M>>,
    /// `[N]`: H, the current policy's entropies; needed by an entropy bonus.
    pub entropy: Option<View<'a, f32, M>>,
    /// `[N]`: log γ ≤ 0, added to every Δ as a constant: how far the router has moved (RSPO 2510.27023).
    pub router_shift: Option<View<'a, f32, M>>,
    /// `[N]`: 1 for the tokens that [`Variant::KlCov`] penalises; needed by it.
    pub chosen: Option<View<'a, u8, M>>,
    /// `[S]`: for `Custom` the coefficient c, for `PromptMean` the counted tokens of the segment's prompt.
    pub segment_scale: Option<View<'a, f32, M>>,
    /// What the aggregation divides by.
    pub denominators: Denominators<'a, M>,
}

impl<M> Clone for Batch<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Batch<'_, M> {}

impl<'a, M: Memory> Batch<'a, M> {
    /// A batch without anything optional.
    pub fn new(logprobs: View<'a, f32, M>, advantages: Advantages<'a, M>, denominators: Denominators<'a, M>) -> Self {
        Batch {
            logprobs,
            old_logprobs: None,
            advantages,
            loss_mask: None,
            weights: None,
            segment_weights: None,
            keep: None,
            rollout_logprobs: None,
            ref_logprobs: None,
            entropy: None,
            router_shift: None,
            chosen: None,
            segment_scale: None,
            denominators,
        }
    }
}

/// What a call writes. Ask for any; none changes the bits of the others.
///
/// One exception, of bad data: [`Variant::Gpg`], [`Variant::ReinforceIs`] and [`Variant::SnisAttached`] have no ratio, so that their old (or, by the
/// anchor, rollout) log-probabilities and `router_shift` are looked at only where a ratio, a map of segments or diagnostics are asked for. A number
/// in them that is NaN or infinite is a fault, and treated as [`NonFinite`](super::NonFinite) says, then alone.
#[derive(Debug)]
pub struct Output<'a, M> {
    /// `[1]`: the loss.
    pub loss: Option<ViewMut<'a, f64, M>>,
    /// `[N]`: the gradient of the loss by `logprobs`; +0.0 where the token does not count.
    pub d_logprobs: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `entropy`, −m c η.
    pub d_entropy: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the divergence's value, without c and β; +0.0 where the token does not count.
    pub kl: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: ρ, saturated as configured; 1 where the token does not count.
    pub ratio: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: 1 where the window's upper bound stops the gradient, 2 where its lower bound does, 4 where the cap does; else 0.
    pub clipped: Option<ViewMut<'a, u8, M>>,
    /// `[S]`: s, saturated as configured; 1 where no token counts. For every variant.
    pub sequence_ratio: Option<ViewMut<'a, f32, M>>,
    /// `[S]`: 1 where S⁺ > 0 and s > 1 + εh, or S⁻ < 0 and s < 1 − εl; else 0. For every variant.
    pub sequence_clipped: Option<ViewMut<'a, u8, M>>,
    /// `[`[`diagnostics::LEN`]`]`: the sums that [`Diagnostics`](crate::diagnostics::Diagnostics) is made of.
    pub diagnostics: Option<ViewMut<'a, f64, M>>,
    /// Scratch memory of at least [`workspace_bytes`], whatever it holds. The three phases of a batch share one.
    pub workspace: ViewMut<'a, u8, M>,
    /// Where bad data is reported.
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The caller's number for this call, reported with a fault.
    pub tag: u16,
    /// Loss and diagnostics are added to what is there, instead of replacing it.
    pub accumulate: bool,
}

impl<'a, M: Memory> Output<'a, M> {
    /// A call that asks for nothing yet.
    pub fn new(workspace: ViewMut<'a, u8, M>) -> Self {
        Output {
            loss: None,
            d_logprobs: None,
            d_entropy: None,
            kl: None,
            ratio: None,
            clipped: None,
            sequence_ratio: None,
            sequence_clipped: None,
            diagnostics: None,
            workspace,
            errors: None,
            tag: 0,
            accumulate: false,
        }
    }

    pub(crate) fn wants_sequence(&self) -> bool {
        self.sequence_ratio.is_some() || self.sequence_clipped.is_some()
    }
}

/// What the three phases hand from one to the next.
///
/// `partial` writes `sums` (with [`Output::accumulate`] it goes on from what is there, so that a segment may come in several calls, each
/// with a plan of its pieces), loss and diagnostics it sets to zero unless told to accumulate. `finish` reads `sums` and writes
/// `coefficients` and what a segment decides: loss of the sequence variants, sequence ratios. `apply` reads `coefficients` and adds what
/// tokens decide: gradient, loss of the token variants.
#[derive(Debug)]
pub struct Phases<'a, M> {
    /// `[P · S]`: plane after plane, as [`Config::planes`] lists them; to be added up over ranks.
    pub sums: ViewMut<'a, f64, M>,
    /// `[S]`
    pub coefficients: ViewMut<'a, Coefficient, M>,
}

/// What `apply` needs to know of a segment. What a field holds depends on the variant.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(16))] // kernels take half of one at once
pub struct Coefficient {
    /// What stands in place of a token's ratio: s, clamped where the variant clamps it; the geometric mean of GMPO; φ of VESPO for A ≥ 0.
    pub ratio: f32,
    /// c·W, with the step's scale.
    pub weight: f32,
    /// The policy's gradient of every counted token, where a segment's tokens share it; φ of VESPO for A < 0.
    pub gradient: f32,
    /// Bits: 1 clipped above, 2 clipped below, 4 capped (as in [`Output::clipped`], for s); 8 A > 0 passes, 16 A < 0 passes; 32 some
    /// token is not finite; 64 dropped; 128 empty.
    pub flags: u32,
    /// c, with the step's scale.
    pub scale: f32,
    /// s.
    pub sequence_ratio: f32,
    /// The gradient of every counted token by way of s in [`KlForm::K3IsSequence`](super::KlForm::K3IsSequence).
    pub shared: f32,
    /// W.
    pub segment_weight: f32,
}

/// The bytes of workspace that calls with this plan need, whatever the configuration.
pub fn workspace_bytes<B: Backend>(plan: &Plan<B>) -> usize {
    ObjectiveWorkspace::of(plan.segments().len(), plan.unit_count).bytes()
}

/// The sizes of a checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// N.
    pub tokens: usize,
    /// S.
    pub segments: usize,
}

/// Adds a shape problem unless an array that is there has `needed` elements.
fn length<T: Pod, M: Memory>(checks: &mut Checks, name: &'static str, array: Option<View<'_, T, M>>, needed: usize) {
    if let Some(array) = array {
        checks.shape(name, &[array.len()], &[needed]);
        alignment(checks, name, array.address(), size_of::<T>());
    }
}

fn alignment(checks: &mut Checks, name: &'static str, address: usize, needed: usize) {
    checks.require(address.is_multiple_of(needed), Kind::Alignment, name, || {
        format!("address {address:#x} is not a multiple of {needed}")
    });
}

fn seen<'b, T: Pod, M: Memory>(array: &'b Option<ViewMut<'_, T, M>>) -> Option<View<'b, T, M>> {
    array.as_ref().map(ViewMut::as_view)
}

impl<'a, M: Memory> Batch<'a, M> {
    fn check(&self, checks: &mut Checks, config: &Config, sizes: Sizes) {
        let Sizes { tokens, segments } = sizes;
        length(checks, "logprobs", Some(self.logprobs), tokens);
        length(checks, "old_logprobs", self.old_logprobs, tokens);
        length(checks, "loss_mask", self.loss_mask, tokens);
        length(checks, "weights", self.weights, tokens);
        length(checks, "segment_weights", self.segment_weights, segments);
        length(checks, "keep", self.keep, tokens);
        length(checks, "rollout_logprobs", self.rollout_logprobs, tokens);
        length(checks, "ref_logprobs", self.ref_logprobs, tokens);
        length(checks, "entropy", self.entropy, tokens);
        length(checks, "router_shift", self.router_shift, tokens);
        length(checks, "chosen", self.chosen, tokens);
        self.check_needs(checks, config);
        length(checks, "segment_scale", self.segment_scale, segments);
        match self.advantages {
            Advantages::PerSegment(array) => length(checks, "advantages", Some(array), segments),
            Advantages::PerToken(array) => length(checks, "advantages", Some(array), tokens),
        }
        let scaled = matches!(config.aggregation, Aggregation::Custom | Aggregation::PromptMean);
        checks.require(!scaled || self.segment_scale.is_some(), Kind::MissingInput, "segment_scale", || {
            format!("is needed for {:?}", config.aggregation)
        });
        match self.denominators {
            Denominators::Global { tokens: t, segments: b, prompts, max_len } => {
                for (name, value) in needed_denominators(config.aggregation, t, b, prompts, max_len) {
                    // With a mask, every token may be absent: only the device can tell.
                    let legal = value > 0 || tokens == 0 || (self.loss_mask.is_some() && name != "max_len");
                    checks.require(legal, Kind::ZeroDenominator, name, || {
                        format!("is 0, but {:?} divides by it", config.aggregation)
                    });
                }
            }
            Denominators::Device(array) => length(checks, "denominators", Some(array), 4),
            Denominators::Local { max_len } => {
                let norm = config.aggregation == Aggregation::SeqMeanTokenSumNorm;
                checks
                    .require(!norm || max_len > 0, Kind::ZeroDenominator, "max_len", || {
                        "is 0, but SeqMeanTokenSumNorm divides by it".into()
                    })
                    .require(config.aggregation != Aggregation::PromptMean, Kind::Config, "denominators", || {
                        "local ones do not count prompts, which PromptMean divides by".into()
                    });
            }
        }
    }

    /// What the configuration's terms need, and what excludes itself.
    fn check_needs(&self, checks: &mut Checks, config: &Config) {
        let rollout_anchor = config.anchor == Anchor::Rollout;
        for (is_needed, is_there, name, by) in [
            (rollout_anchor, self.rollout_logprobs.is_some(), "rollout_logprobs", "the anchor Rollout"),
            (config.uses_rollout(), self.rollout_logprobs.is_some(), "rollout_logprobs", "the ratio to the rollout"),
            (config.kl.is_some(), self.ref_logprobs.is_some(), "ref_logprobs", "the divergence"),
            (config.entropy_bonus != 0.0, self.entropy.is_some(), "entropy", "the entropy bonus"),
            (matches!(config.variant, Variant::KlCov { .. }), self.chosen.is_some(), "chosen", "KlCov"),
            (config.variant == Variant::ReinforceIs, self.weights.is_some(), "weights", "ReinforceIs"),
        ] {
            checks.require(!is_needed || is_there, Kind::MissingInput, name, || format!("is missing, needed by {by}"));
        }
        let is_per_token = matches!(self.advantages, Advantages::PerToken(_));
        checks.require(!(config.variant == Variant::SnisAttached && is_per_token), Kind::Config, "advantages", || {
            "are per token, but SnisAttached takes the factors of segments that the correction makes".into()
        });
        let is_weighted = self.weights.is_some() || self.segment_weights.is_some();
        checks.require(!(rollout_anchor && is_weighted), Kind::DoubleCorrection, "weights", || {
            "correct for the rollout a second time: with the anchor Rollout the ratio does already; masks are allowed"
                .into()
        });
    }

    fn extents(&self) -> [Option<Extent>; 14] {
        let advantages = match self.advantages {
            Advantages::PerSegment(array) | Advantages::PerToken(array) => array,
        };
        let denominators = match self.denominators {
            Denominators::Device(array) => Some(array.extent("denominators")),
            _ => None,
        };
        [
            Some(self.logprobs.extent("logprobs")),
            self.old_logprobs.map(|array| array.extent("old_logprobs")),
            Some(advantages.extent("advantages")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.weights.map(|array| array.extent("weights")),
            self.segment_weights.map(|array| array.extent("segment_weights")),
            self.keep.map(|array| array.extent("keep")),
            self.rollout_logprobs.map(|array| array.extent("rollout_logprobs")),
            self.ref_logprobs.map(|array| array.extent("ref_logprobs")),
            self.entropy.map(|array| array.extent("entropy")),
            self.router_shift.map(|array| array.extent("router_shift")),
            self.chosen.map(|array| array.extent("chosen")),
            self.segment_scale.map(|array| array.extent("segment_scale")),
            denominators,
        ]
    }
}

/// The denominators that an aggregation uses, by name.
fn needed_denominators(
    aggregation: Aggregation,
    tokens: u64,
    segments: u64,
    prompts: u64,
    max_len: u64,
) -> Vec<(&'static str, u64)> {
    match aggregation {
        Aggregation::TokenMean => vec![("tokens", tokens)],
        Aggregation::TokenSum | Aggregation::Custom => vec![],
        Aggregation::SeqMeanTokenMean | Aggregation::SeqMeanTokenSum => vec![("segments", segments)],
        Aggregation::SeqMeanTokenSumNorm => vec![("segments", segments), ("max_len", max_len)],
        Aggregation::PromptMean => vec![("prompts", prompts)],
    }
}

impl<'a, M: Memory> Output<'a, M> {
    fn check(&self, checks: &mut Checks, sizes: Sizes, workspace_bytes: usize) {
        length(checks, "loss", seen(&self.loss), 1);
        length(checks, "d_logprobs", seen(&self.d_logprobs), sizes.tokens);
        length(checks, "d_entropy", seen(&self.d_entropy), sizes.tokens);
        length(checks, "kl", seen(&self.kl), sizes.tokens);
        length(checks, "ratio", seen(&self.ratio), sizes.tokens);
        length(checks, "clipped", seen(&self.clipped), sizes.tokens);
        length(checks, "sequence_ratio", seen(&self.sequence_ratio), sizes.segments);
        length(checks, "sequence_clipped", seen(&self.sequence_clipped), sizes.segments);
        length(checks, "diagnostics", seen(&self.diagnostics), diagnostics::LEN);
        length(checks, "errors", seen(&self.errors), 1);
        checks.require(self.workspace.len() >= workspace_bytes, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {workspace_bytes}", self.workspace.len())
        });
    }

    fn extents(&self) -> [Option<Extent>; 11] {
        [
            self.loss.as_ref().map(|array| array.extent("loss")),
            self.d_logprobs.as_ref().map(|array| array.extent("d_logprobs")),
            self.d_entropy.as_ref().map(|array| array.extent("d_entropy")),
            self.kl.as_ref().map(|array| array.extent("kl")),
            self.ratio.as_ref().map(|array| array.extent("ratio")),
            self.clipped.as_ref().map(|array| array.extent("clipped")),
            self.sequence_ratio.as_ref().map(|array| array.extent("sequence_ratio")),
            self.sequence_clipped.as_ref().map(|array| array.extent("sequence_clipped")),
            self.diagnostics.as_ref().map(|array| array.extent("diagnostics")),
            Some(self.workspace.extent("workspace")),
            self.errors.as_ref().map(|array| array.extent("errors")),
        ]
    }
}

/// Checks a whole call before anything is queued; `phases` for the calls of one phase.
///
/// # Errors
/// `Invalid` with every fault.
pub(crate) fn check<B: Backend>(
    config: &Config,
    plan: &Plan<B>,
    batch: &Batch<'_, B::Memory>,
    phases: Option<&Phases<'_, B::Memory>>,
    output: &Output<'_, B::Memory>,
) -> Result<Sizes> {
    let sizes = Sizes { tokens: plan.segments().tokens(), segments: plan.segments().len() };
    let mut checks = Checks::new();
    checks.merge(config.validate());
    batch.check(&mut checks, config, sizes);
    output.check(&mut checks, sizes, workspace_bytes(plan));
    checks.require(config.kl.is_some() || output.kl.is_none(), Kind::Config, "kl", || {
        "is asked for, but the configuration has no divergence".into()
    });
    let mut extents = [&batch.extents()[..], &output.extents()[..]].concat();
    if let Some(phases) = phases {
        length(&mut checks, "sums", Some(phases.sums.as_view()), config.planes().len() * sizes.segments);
        checks.shape("coefficients", &[phases.coefficients.len()], &[sizes.segments]);
        alignment(&mut checks, "coefficients", phases.coefficients.address(), align_of::<Coefficient>());
        checks
            .require(!matches!(batch.denominators, Denominators::Local { .. }), Kind::Config, "denominators", || {
                "local ones do not survive phases: count them, and give Global or Device".into()
            })
            .require(
                config.planes().contains(&Plane::LogRatio) || !output.wants_sequence(),
                Kind::Config,
                "sequence_ratio",
                || "is not known to the phases of a token variant; the one call has it".into(),
            );
        extents.push(Some(phases.sums.extent("sums")));
        extents.push(Some(phases.coefficients.extent("coefficients")));
    }
    checks.disjoint(&extents);
    checks.finish().map(|()| sizes)
}
