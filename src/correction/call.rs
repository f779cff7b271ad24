//! The arrays of a call.

use bytemuck::{Pod, Zeroable};

use super::config::{Config, Level, MAX_REJECTIONS, MAX_REPEATS, Rejection, Weight};
use super::diagnostics;
use super::turns::Plans;
use crate::backend::Backend;
use crate::device::workspace::CorrectionWorkspace;
use crate::error::{Checks, Extent, Kind, Result};
use crate::memory::{Memory, View, ViewMut};
use crate::objective::Advantages;

/// The length of [`Output::globals`].
pub const GLOBALS: usize = crate::abi::MOERL_CORRECTION_GLOBALS as usize;
/// The length of [`Output::rejected`].
pub const REJECTED: usize = 2 * MAX_REJECTIONS;

/// The sums of [`Output::globals`], by place. The first half is of segments and made by `finish`, the second of tokens and made by
/// `partial`. Where a segment is spread over context-parallel ranks, each of them finishes all of it: add the first half up over the
/// data-parallel ranks alone, the second over all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Global {
    /// Tokens that are kept and finite. This place and the next three are [`Denominators::Device`](crate::objective::Denominators::Device) of what is
    /// left after rejection: T, B, P (where there are groups), and 0.
    KeptTokens = 0,
    /// Segments with a token that is kept.
    KeptSegments = 1,
    /// Groups with such a segment.
    KeptGroups = 2,
    /// What the weights of segments are divided by the number of: segments with a token that counts; for weights of turns, and for weights of
    /// tokens that their segment may set to 0 and the batch normalises, their tokens.
    Weighed = 4,
    /// Σ W over those, truncated and not yet normalised.
    Weights = 5,
    /// Σ W².
    WeightsSquared = 6,
    /// Σ exp 2X at the level `Sequence`, saturated.
    SequenceChi2 = 7,
    /// Tokens that count.
    Tokens = 8,
    /// Σ w over those of a weight of tokens, truncated and not yet normalised.
    TokenWeights = 9,
    /// Σ w².
    TokenWeightsSquared = 10,
    /// Σ exp 2δ, saturated.
    TokenChi2 = 11,
}

/// What a call is about: N tokens in S segments, as the plan divides them.
#[derive(Debug)]
pub struct Batch<'a, M> {
    /// `[R · N]`: o, the old policy's log-probabilities of the chosen tokens, R repetitions one behind the other. In bypass, where there is no
    /// old policy, l, the current one's: the correction is then against the rollout alone.
    pub old_logprobs: View<'a, f32, M>,
    /// `[N]`: q, the rollout's.
    pub rollout_logprobs: View<'a, f32, M>,
    /// `[N]`: 1 where the token counts; absent: every token counts.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[N]`: log S ≤ 0, S the mass that top-p or top-k kept and q was renormalised by: δ = o − (q + log S).
    pub kept_log_mass: Option<View<'a, f32, M>>,
    /// `[N]` ≤ 0: added to δ as a constant. For bypass; in the decoupled form it belongs to the objective's ratio.
    pub router_shift: Option<View<'a, f32, M>>,
    /// A: for [`Rejection::OffPolicySequence`].
    pub advantages: Option<Advantages<'a, M>>,
    /// `[S]`: D = Σ m (l − o), a plane of the objective's sums: for the same.
    pub current_log_ratio: Option<View<'a, f64, M>>,
    /// `[S]`: what a segment is called, whatever the packing: the counter of its uniform number. At the level `Token` a token's position is counted from where
    /// the segment begins in this call: where ranks hold pieces of a segment, hand them `uniforms`.
    pub segment_ids: Option<View<'a, u64, M>>,
    /// `[S]`, at the level `Token` `[N]`: U in (0, 1), instead of those drawn by seed and id.
    pub uniforms: Option<View<'a, f32, M>>,
    /// `[G]`: X of the last accepted member that an earlier call left; NaN for a group that begins. See [`Output::carry_log_weights`].
    pub carried: Option<View<'a, f64, M>>,
    /// `[S]`: R, for the leave-one-out baseline and what is attached. NaN and infinity are left out of the sums over a group, and their own
    /// advantage is 0.
    pub rewards: Option<View<'a, f32, M>>,
    /// `[S]`: lp, the sum of the target's log-probabilities over the segment.
    pub target_logprobs: Option<View<'a, f64, M>>,
    /// `[S · M]`: Q, the same under each proposal; may be −∞ but not all of a segment's.
    pub proposal_logprobs: Option<View<'a, f64, M>>,
}

impl<M> Clone for Batch<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Batch<'_, M> {}

impl<'a, M: Memory> Batch<'a, M> {
    /// Log-probabilities alone.
    pub fn new(old_logprobs: View<'a, f32, M>, rollout_logprobs: View<'a, f32, M>) -> Self {
        Batch {
            old_logprobs,
            rollout_logprobs,
            loss_mask: None,
            kept_log_mass: None,
            router_shift: None,
            advantages: None,
            current_log_ratio: None,
            segment_ids: None,
            uniforms: None,
            carried: None,
            rewards: None,
            target_logprobs: None,
            proposal_logprobs: None,
        }
    }
}

/// What a call writes. Ask for any; none changes the bits of the others.
#[derive(Debug)]
pub struct Output<'a, M> {
    /// `[N]`: the whole weight of a token, w_u W_i, normalised as configured; 0 where it does not count. It is the same whether the token is
    /// kept or not.
    pub weights: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: 1 where the token counts and nothing rejects it, else 0: a loss mask.
    pub keep: Option<ViewMut<'a, u8, M>>,
    /// `[N]`: δ; 0 where the token does not count or is not finite.
    pub log_ratio: Option<ViewMut<'a, f32, M>>,
    /// `[S]`: W; 1 where no token counts or the weight is of tokens or turns. Hand the objective these or `weights`, not both.
    pub segment_weights: Option<ViewMut<'a, f32, M>>,
    /// `[S]`: X of the configured level (`Sequence` for a weight of tokens or turns), not saturated; of multiple importance sampling log W.
    pub segment_log_weights: Option<ViewMut<'a, f64, M>>,
    /// `[S]`: tokens that are kept and finite.
    pub kept: Option<ViewMut<'a, u32, M>>,
    /// `[S]`: 1 where the Metropolis test accepted the segment, or the chain began with it.
    pub accepted: Option<ViewMut<'a, u8, M>>,
    /// `[S]`: 1 and the rejections spent on the segment; 0 where it was rejected.
    pub multiplicity: Option<ViewMut<'a, u32, M>>,
    /// `[G]`: rejections before the first acceptance, spent on what was carried in. With these, the multiplicities of a group add up to its
    /// members.
    pub carry_multiplicity: Option<ViewMut<'a, u32, M>>,
    /// `[G]`: X of the last accepted member, to be carried into the next call; NaN where there is none.
    pub carry_log_weights: Option<ViewMut<'a, f64, M>>,
    /// `[S]`: R_i − b_i with the leave-one-out baseline; of [`Weight::SelfNormalisedAttached`] w̄_i (R_i − Σ w̄_j R_j). 0 where the segment is
    /// not kept.
    pub advantages: Option<ViewMut<'a, f32, M>>,
    /// `[G]`: Σ w̄_j R_j, the self-normalised estimate of a group's mean reward under the policy that X is of; needs rewards. 0 where no member
    /// has one. Attached, the objective's value is the negative sum of these.
    pub expected_rewards: Option<ViewMut<'a, f64, M>>,
    /// `[`[`REJECTED`]`]`: by every rejection, in their order, tokens and segments with such a token. Added to what is there.
    pub rejected: Option<ViewMut<'a, u64, M>>,
    /// `[`[`GLOBALS`]`]`: what ranks add up; see [`Global`].
    pub globals: Option<ViewMut<'a, f64, M>>,
    /// `[`[`diagnostics::LEN`]`]`: the sums that [`Diagnostics`](super::Diagnostics) is made of.
    pub diagnostics: Option<ViewMut<'a, f64, M>>,
    /// Scratch memory of at least [`workspace_bytes`], whatever it holds. The three phases of a batch share one.
    pub workspace: ViewMut<'a, u8, M>,
    /// Where bad data is reported.
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The caller's number for this call, reported with a fault.
    pub tag: u16,
    /// Globals and diagnostics are added to what is there, instead of replacing it.
    pub accumulate: bool,
}

impl<'a, M: Memory> Output<'a, M> {
    /// A call that asks for nothing yet.
    pub fn new(workspace: ViewMut<'a, u8, M>) -> Self {
        Output {
            weights: None,
            keep: None,
            log_ratio: None,
            segment_weights: None,
            segment_log_weights: None,
            kept: None,
            accepted: None,
            multiplicity: None,
            carry_multiplicity: None,
            carry_log_weights: None,
            advantages: None,
            expected_rewards: None,
            rejected: None,
            globals: None,
            diagnostics: None,
            workspace,
            errors: None,
            tag: 0,
            accumulate: false,
        }
    }

    /// True where something is asked for that is written after all segments are decided about: what tokens have, and weights of segments that
    /// the batch's mean divides.
    pub(crate) fn wants_tokens(&self, config: &Config) -> bool {
        let divides_segments = config.batch_normalise && self.segment_weights.is_some();
        self.weights.is_some() || self.keep.is_some() || self.log_ratio.is_some() || divides_segments
    }

    /// True where something is asked for that only segments as a whole have.
    pub(crate) fn wants_segments(&self) -> bool {
        let floats = [&self.segment_weights, &self.advantages].iter().any(|array| array.is_some());
        let doubles = [
            &self.segment_log_weights,
            &self.globals,
            &self.diagnostics,
            &self.carry_log_weights,
            &self.expected_rewards,
        ];
        let words = [&self.kept, &self.multiplicity, &self.carry_multiplicity].iter().any(|array| array.is_some());
        floats
            || doubles.iter().any(|array| array.is_some())
            || words
            || self.accepted.is_some()
            || self.rejected.is_some()
    }
}

/// What the three phases hand from one to the next.
///
/// `partial` writes `sums`; with [`Output::accumulate`] it goes on from what is there, so that a segment may come in several calls, each with
/// a plan of its pieces. The globals and diagnostics it sets to zero unless told to accumulate. `finish` reads `sums` and writes `decisions`
/// and what a segment decides. `apply` reads `decisions` and, for [`Config::batch_normalise`], the globals after their reduction.
#[derive(Debug)]
pub struct Phases<'a, M> {
    /// `[P · pieces]`: plane after plane, as [`Config::planes`] lists them; to be joined over ranks, each plane as
    /// [`Plane::is_maximum`](super::Plane::is_maximum) says.
    pub sums: ViewMut<'a, f64, M>,
    /// `[pieces]`
    pub decisions: ViewMut<'a, Decision, M>,
}

/// What `apply` needs to know of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Decision {
    /// What multiplies the weights of its tokens.
    pub weight: f32,
    /// Bits: 1 kept, 2 some token is not finite, 4 dropped.
    pub flags: u32,
}

/// The bytes of workspace that calls with these plans need, whatever the configuration.
pub fn workspace_bytes<B: Backend>(plans: &Plans<'_, B>) -> usize {
    CorrectionWorkspace::of(plans).bytes()
}

/// The sizes of a checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// N.
    pub tokens: usize,
    /// S.
    pub segments: usize,
    /// Turns, or S.
    pub pieces: usize,
    /// G.
    pub groups: usize,
    /// R.
    pub repeats: usize,
}

/// Adds a shape problem unless an array that is there has `needed` elements.
fn length<T: Pod, M: Memory>(checks: &mut Checks, name: &'static str, array: Option<View<'_, T, M>>, needed: usize) {
    if let Some(array) = array {
        checks.shape(name, &[array.len()], &[needed]);
        checks.require(array.address().is_multiple_of(size_of::<T>()), Kind::Alignment, name, || {
            format!("address {:#x} is not a multiple of {}", array.address(), size_of::<T>())
        });
    }
}

fn seen<'b, T: Pod, M: Memory>(array: &'b Option<ViewMut<'_, T, M>>) -> Option<View<'b, T, M>> {
    array.as_ref().map(ViewMut::as_view)
}

impl<M: Memory> Batch<'_, M> {
    /// R, if N divides the old log-probabilities.
    fn repeats(&self, tokens: usize) -> usize {
        self.old_logprobs.len().checked_div(tokens).unwrap_or(1)
    }

    fn check(&self, checks: &mut Checks, config: &Config, sizes: Sizes) {
        let Sizes { tokens, segments, groups, repeats, .. } = sizes;
        length(checks, "rollout_logprobs", Some(self.rollout_logprobs), tokens);
        length(checks, "loss_mask", self.loss_mask, tokens);
        length(checks, "kept_log_mass", self.kept_log_mass, tokens);
        length(checks, "router_shift", self.router_shift, tokens);
        let len = self.old_logprobs.len();
        checks.require(
            (1..=MAX_REPEATS).contains(&repeats) && len == repeats * tokens,
            Kind::Shape,
            "old_logprobs",
            || format!("has shape [{len}], needs [{tokens}] or up to {MAX_REPEATS} times that"),
        );
        length(checks, "old_logprobs", Some(self.old_logprobs), len);
        match self.advantages {
            Some(Advantages::PerSegment(array)) => length(checks, "advantages", Some(array), segments),
            Some(Advantages::PerToken(array)) => length(checks, "advantages", Some(array), tokens),
            None => {}
        }
        length(checks, "current_log_ratio", self.current_log_ratio, segments);
        length(checks, "segment_ids", self.segment_ids, segments);
        length(checks, "uniforms", self.uniforms, if config.level() == Level::Token { tokens } else { segments });
        length(checks, "carried", self.carried, groups);
        length(checks, "rewards", self.rewards, segments);
        length(checks, "target_logprobs", self.target_logprobs, segments);
        if let Weight::MultipleImportance { proportions } = &config.weight {
            length(checks, "proposal_logprobs", self.proposal_logprobs, segments * proportions.len());
        }
        self.check_needed(checks, config);
    }

    fn check_needed(&self, checks: &mut Checks, config: &Config) {
        let mut needed = |is_there: bool, name: &'static str, by: &str| {
            checks.require(is_there, Kind::MissingInput, name, || format!("is needed for {by}"));
        };
        if config.rejections.iter().any(|rejection| matches!(rejection, Rejection::OffPolicySequence { .. })) {
            needed(self.advantages.is_some(), "advantages", "OffPolicySequence");
        }
        match config.weight {
            Weight::Metropolis { .. } => {
                needed(self.segment_ids.is_some() || self.uniforms.is_some(), "segment_ids", "Metropolis");
            }
            Weight::SelfNormalised { leave_one_out: true, .. } => {
                needed(self.rewards.is_some(), "rewards", "the leave-one-out baseline");
            }
            Weight::SelfNormalisedAttached => needed(self.rewards.is_some(), "rewards", "SelfNormalisedAttached"),
            Weight::MultipleImportance { .. } => {
                needed(self.target_logprobs.is_some(), "target_logprobs", "MultipleImportance");
                needed(self.proposal_logprobs.is_some(), "proposal_logprobs", "MultipleImportance");
            }
            _ => {}
        }
    }

    fn extents(&self) -> Vec<Option<Extent>> {
        let advantages = self.advantages.map(|advantages| match advantages {
            Advantages::PerSegment(array) | Advantages::PerToken(array) => array,
        });
        vec![
            Some(self.old_logprobs.extent("old_logprobs")),
            Some(self.rollout_logprobs.extent("rollout_logprobs")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.kept_log_mass.map(|array| array.extent("kept_log_mass")),
            self.router_shift.map(|array| array.extent("router_shift")),
            advantages.map(|array| array.extent("advantages")),
            self.current_log_ratio.map(|array| array.extent("current_log_ratio")),
            self.segment_ids.map(|array| array.extent("segment_ids")),
            self.uniforms.map(|array| array.extent("uniforms")),
            self.carried.map(|array| array.extent("carried")),
            self.rewards.map(|array| array.extent("rewards")),
            self.target_logprobs.map(|array| array.extent("target_logprobs")),
            self.proposal_logprobs.map(|array| array.extent("proposal_logprobs")),
        ]
    }
}

impl<M: Memory> Output<'_, M> {
    fn check(&self, checks: &mut Checks, config: &Config, sizes: Sizes, has_rewards: bool, workspace_bytes: usize) {
        let Sizes { tokens, segments, groups, .. } = sizes;
        length(checks, "weights", seen(&self.weights), tokens);
        length(checks, "keep", seen(&self.keep), tokens);
        length(checks, "log_ratio", seen(&self.log_ratio), tokens);
        length(checks, "segment_weights", seen(&self.segment_weights), segments);
        length(checks, "segment_log_weights", seen(&self.segment_log_weights), segments);
        length(checks, "kept", seen(&self.kept), segments);
        length(checks, "accepted", seen(&self.accepted), segments);
        length(checks, "multiplicity", seen(&self.multiplicity), segments);
        length(checks, "carry_multiplicity", seen(&self.carry_multiplicity), groups);
        length(checks, "carry_log_weights", seen(&self.carry_log_weights), groups);
        length(checks, "advantages", seen(&self.advantages), segments);
        length(checks, "expected_rewards", seen(&self.expected_rewards), groups);
        length(checks, "rejected", seen(&self.rejected), REJECTED);
        length(checks, "globals", seen(&self.globals), GLOBALS);
        length(checks, "diagnostics", seen(&self.diagnostics), diagnostics::LEN);
        length(checks, "errors", seen(&self.errors), 1);
        let chains = matches!(config.weight, Weight::Metropolis { .. }) && config.needs_groups();
        let asks = self.accepted.is_some()
            || self.multiplicity.is_some()
            || self.carry_multiplicity.is_some()
            || self.carry_log_weights.is_some();
        checks
            .require(chains || !asks, Kind::Config, "accepted", || {
                "and what else a Metropolis chain writes needs the weight Metropolis of segments".into()
            })
            .require(config.makes_advantages() || self.advantages.is_none(), Kind::Config, "advantages", || {
                "are written for SelfNormalised with leave_one_out and for SelfNormalisedAttached alone".into()
            })
            .require(
                config.normalises_groups() || self.expected_rewards.is_none(),
                Kind::Config,
                "expected_rewards",
                || "are written for SelfNormalised and SelfNormalisedAttached alone".into(),
            )
            .require(has_rewards || self.expected_rewards.is_none(), Kind::MissingInput, "rewards", || {
                "are needed for expected_rewards".into()
            })
            .require(config.diagnostics || self.diagnostics.is_none(), Kind::Config, "diagnostics", || {
                "are asked for, but the configuration has them off".into()
            })
            .require(!config.batch_normalise || self.globals.is_some(), Kind::MissingInput, "globals", || {
                "are needed for batch_normalise".into()
            })
            .require(self.workspace.len() >= workspace_bytes, Kind::Workspace, "workspace", || {
                format!("has {} bytes, needs {workspace_bytes}", self.workspace.len())
            });
    }

    fn extents(&self) -> Vec<Option<Extent>> {
        vec![
            self.weights.as_ref().map(|array| array.extent("weights")),
            self.keep.as_ref().map(|array| array.extent("keep")),
            self.log_ratio.as_ref().map(|array| array.extent("log_ratio")),
            self.segment_weights.as_ref().map(|array| array.extent("segment_weights")),
            self.segment_log_weights.as_ref().map(|array| array.extent("segment_log_weights")),
            self.kept.as_ref().map(|array| array.extent("kept")),
            self.accepted.as_ref().map(|array| array.extent("accepted")),
            self.multiplicity.as_ref().map(|array| array.extent("multiplicity")),
            self.carry_multiplicity.as_ref().map(|array| array.extent("carry_multiplicity")),
            self.carry_log_weights.as_ref().map(|array| array.extent("carry_log_weights")),
            self.advantages.as_ref().map(|array| array.extent("advantages")),
            self.expected_rewards.as_ref().map(|array| array.extent("expected_rewards")),
            self.rejected.as_ref().map(|array| array.extent("rejected")),
            self.globals.as_ref().map(|array| array.extent("globals")),
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
    plans: &Plans<'_, B>,
    batch: &Batch<'_, B::Memory>,
    phases: Option<&Phases<'_, B::Memory>>,
    output: &Output<'_, B::Memory>,
) -> Result<Sizes> {
    let segments = plans.segments.segments();
    let sizes = Sizes {
        tokens: segments.tokens(),
        segments: segments.len(),
        pieces: plans.pieces().len(),
        groups: plans.groups.map_or(0, |groups| groups.groups().len()),
        repeats: batch.repeats(segments.tokens()),
    };
    let mut checks = Checks::new();
    checks.merge(config.validate());
    check_plans(&mut checks, config, plans);
    batch.check(&mut checks, config, sizes);
    output.check(&mut checks, config, sizes, batch.rewards.is_some(), workspace_bytes(plans));
    let mut extents = [batch.extents(), output.extents()].concat();
    if let Some(phases) = phases {
        checks.shape("sums", &[phases.sums.len()], &[config.planes().len() * sizes.pieces]).shape(
            "decisions",
            &[phases.decisions.len()],
            &[sizes.pieces],
        );
        extents.push(Some(phases.sums.extent("sums")));
        extents.push(Some(phases.decisions.extent("decisions")));
    }
    checks.disjoint(&extents);
    checks.finish().map(|()| sizes)
}

fn check_plans<B: Backend>(checks: &mut Checks, config: &Config, plans: &Plans<'_, B>) {
    let segments = plans.segments.segments();
    checks
        .require(!config.needs_turns() || plans.turns.is_some(), Kind::MissingInput, "turns", || {
            "are needed for the level Turn".into()
        })
        .require(!config.needs_groups() || plans.groups.is_some(), Kind::MissingInput, "groups", || {
            format!("are needed for {:?}", config.weight)
        });
    let tests_tokens = matches!(config.weight, Weight::Metropolis { level: Level::Token, .. });
    if let Some(turns) = plans.turns {
        checks.require(!tests_tokens, Kind::Config, "turns", || {
            "do not go with the Metropolis test of tokens, whose numbers count from the segment's start".into()
        });
        checks.require(turns.segments() == segments, Kind::Segments, "turns", || {
            "divide other segments than those of the plan".into()
        });
    }
    if let Some(groups) = plans.groups {
        let members = groups.groups().all_members();
        let largest = members.iter().max().copied();
        let all = members.len() == segments.len() && largest.is_none_or(|member| (member as usize) < segments.len());
        checks.require(all, Kind::Segments, "groups", || {
            format!("have {} members, but need each of the {} segments once", members.len(), segments.len())
        });
    }
}
