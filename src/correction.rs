//! Rollout correction: the engine that sampled is not the policy that learns.
//!
//! About a tenth of the routers of a mixture differs per forward pass between rollout and training, and nearly every token differs in some
//! layer, so the log-probabilities o (old policy, as the trainer computes it) and q (rollout) differ even with equal parameters. Importance weights
//! make up for the difference, rejections leave out what cannot be made up for. Both are constants of the gradient, but for
//! [what is attached](#attached-weights).
//!
//! ```text
//! δ_u = o_u − q_u                       with kept_log_mass o − (q + log S); in bypass l takes the place of o
//! X   = δ_u | mean of a turn | Σ m δ | Σ m δ / n        by Level, saturated at ±20 after it was summed
//! m'  = m · Π [rejection keeps]
//! w   = weight(exp X)                   then, if the batch normalises, w / mean(w)
//! ```
//!
//! in this order. [`Weight`] and [`Rejection`] say what there is and who uses it. A rejection does not change a weight, but it takes a segment
//! out of its group: [`Weight::SelfNormalised`] is normalised over what is kept, and a Metropolis chain rejects it.
//!
//! [`Config::preset`] has the corrections of other systems, [`Config::differences`] what each of them changes.
//!
//! The objective takes the results: [`Output::weights`] or [`Output::segment_weights`] as weights, [`Output::keep`] as what is kept, and
//! [`Output::globals`] as denominators after rejection.
//!
//! **Long segments.** A product of ratios collapses with length, see [`Level::Sequence`]. Of the levels, `Token` and `Geometric` do not.
//!
//! # Metropolis–independence sampling
//!
//! Per group, in the order of its members: c is the carried X if there is one, else that of the first member, which is accepted. Member i is
//! accepted iff ln U_i < X_i − X_c, and then takes the place of c. U is a Philox4x32-10 number with key = seed and counter = (id of the
//! segment, 0), at the level `Token` (id, position in the segment, 1): the result depends on ids, never on packing, rank or grid. Members that
//! a rejection left out, that are dropped, whose X is NaN, or without a counted token, are rejected. What was spent on a state before the first
//! acceptance is [`Output::carry_multiplicity`]; it and the multiplicities add up to the members of the group, always.
//!
//! # Attached weights
//!
//! [`Weight::SelfNormalisedAttached`] makes no weight but an objective: −Σ w̄_j R_j over each group, the estimate of its mean reward under the
//! current policy, with the gradient through w̄. l takes the place of o, so that X = Σ m (l − q), saturated; since
//! ∂w̄_j/∂X_i = w̄_j ([i = j] − w̄_i), the gradient at every counted token of segment i is −w̄_i (R_i − Σ w̄_j R_j), and 0 where X_i is beyond the
//! saturation. w̄_i (R_i − Σ w̄_j R_j) leaves as [`Output::advantages`], which the objective takes as such under
//! [`SnisAttached`](crate::objective::Variant::SnisAttached):
//!
//! ```
//! use moerl::advantage::GroupPlan;
//! use moerl::correction::{self, Plans, Weight};
//! use moerl::objective::{self, Advantages, Denominators, Groups, Plan, Segments, Variant};
//! use moerl::{Backend, Buffer, Reference};
//!
//! # fn main() -> moerl::Result<()> {
//! let (backend, stream) = (Reference, ());
//! // Three answers of a token each to one prompt, twice as likely now as at rollout, and as likely.
//! let plan = Plan::new(&backend, &stream, &Segments::from_lengths([1, 1, 1])?)?;
//! let groups = GroupPlan::new(&backend, &stream, &Groups::from_ids(&[0, 0, 0]))?;
//! let plans = Plans { groups: Some(&groups), ..Plans::new(&plan) };
//! let logprobs = backend.upload(&stream, &[0.5_f32.ln(), -1.0, -1.0])?;
//! let rollout = backend.upload(&stream, &[0.25_f32.ln(), -1.0, -1.0])?;
//! let rewards = backend.upload(&stream, &[1.0, 0.0, 0.5_f32])?;
//!
//! let mut factors = backend.allocate(&stream, 3)?;
//! let mut workspace = backend.allocate(&stream, correction::workspace_bytes(&plans))?;
//! let batch = correction::Batch {
//!     rewards: Some(rewards.view()),
//!     ..correction::Batch::new(logprobs.view(), rollout.view())
//! };
//! let output = correction::Output {
//!     advantages: Some(factors.view_mut()),
//!     ..correction::Output::new(workspace.view_mut())
//! };
//! backend.correction(&stream, &correction::Config::new(Weight::SelfNormalisedAttached), plans, batch, output)?;
//!
//! let mut d_logprobs = backend.allocate(&stream, 3)?;
//! let mut workspace = backend.allocate(&stream, objective::workspace_bytes(&plan))?;
//! let batch = objective::Batch {
//!     rollout_logprobs: Some(rollout.view()),
//!     ..objective::Batch::new(logprobs.view(), Advantages::PerSegment(factors.view()), Denominators::global(3, 3))
//! };
//! let output = objective::Output {
//!     d_logprobs: Some(d_logprobs.view_mut()),
//!     ..objective::Output::new(workspace.view_mut())
//! };
//! backend.objective(&stream, &objective::Config::new(Variant::SnisAttached), &plan, batch, output)?;
//! let gradient = backend.download(&stream, d_logprobs.view())?;
//! for (g, expected) in gradient.iter().zip([-0.1875, 0.15625, 0.03125]) {
//!     assert!((g - expected).abs() < 1e-6);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # One call or three
//!
//! [`Backend::correction`](crate::Backend::correction) does everything. Where segments are spread over ranks or calls, or where the batch
//! normalises over ranks, the phases stand alone: [`correction_partial`](crate::Backend::correction_partial) sums every piece into planes
//! ([`Config::planes`]) that ranks join; [`correction_finish`](crate::Backend::correction_finish) decides about segments, turns and groups;
//! [`correction_apply`](crate::Backend::correction_apply) writes what tokens have. A launch each. Groups must be whole on a rank, or the caller
//! gathers the planes (8 bytes a segment each).
//!
//! **Masked means absent**: whatever the arrays hold at a token with `m = 0`, its weight, δ and `keep` are 0 and nothing else sees it.
//! **Bad data** sets the error word: NaN or infinity at a counted token, a mask value other than 0 and 1, a log-probability above 1e-3. What
//! happens to a token that is not finite is [`NonFinite`]'s to say: `ZeroWeight` gives it weight and `keep` 0 and δ = 0 in the sums,
//! `DropSegment` does so to its segment, `Propagate` makes the weights of the token, or of the segment whose X it is part of, NaN.
//!
//! Sums are formed as the objective forms them ([`objective`](crate::objective), Bits): nothing but a segment's own tokens and their positions
//! decides about its bits.
//!
//! Sources: TIS and MIS (verl `rollout_corr_helper`, slime, OpenRLHF, NeMo-RL, TRL), IcePop, RSPO 2510.27023, trust-region masking 2512.23075,
//! off-policy sequence masking (DeepSeek-V3.2, equation 9), balance heuristic (Veach and Guibas 1995).
//!
//! ```
//! use moerl::correction::{Batch, Config, Level, Output, Plans, workspace_bytes};
//! use moerl::objective::{Plan, Segments};
//! use moerl::{Backend, Buffer, Reference};
//!
//! # fn main() -> moerl::Result<()> {
//! let (backend, stream) = (Reference, ());
//! let plan = Plan::new(&backend, &stream, &Segments::from_offsets(&[0, 2, 3])?)?;
//! let plans = Plans::new(&plan);
//! let old = backend.upload(&stream, &[-0.5, -1.0, -2.0_f32])?;
//! let rollout = backend.upload(&stream, &[-2.5, -1.1, -2.0_f32])?;
//! let mut workspace = backend.allocate(&stream, workspace_bytes(&plans))?;
//! let mut weights = backend.allocate(&stream, 3)?;
//!
//! let output = Output { weights: Some(weights.view_mut()), ..Output::new(workspace.view_mut()) };
//! backend.correction(&stream, &Config::tis(Level::Token, 2.0), plans, Batch::new(old.view(), rollout.view()), output)?;
//!
//! // e² is truncated; e^.1 is not.
//! let weights = backend.download(&stream, weights.view())?;
//! assert_eq!((weights[0], weights[2]), (2.0, 1.0));
//! assert!((weights[1] - 1.10517).abs() < 1e-5);
//! # Ok(())
//! # }
//! ```

mod call;
mod config;
pub mod diagnostics;
mod preset;
mod turns;

pub(crate) use call::check;
pub use call::{Batch, Decision, GLOBALS, Global, Output, Phases, REJECTED, Sizes, workspace_bytes};
pub use config::{
    Config, Divergence, Level, MAX_PROPOSALS, MAX_REJECTIONS, MAX_REPEATS, MAX_TOKEN_REJECTIONS, Metropolis, NonFinite,
    Over, Plane, Rejection, Repeats, Weight,
};
pub use diagnostics::Diagnostics;
pub use preset::Preset;
pub use turns::{Plans, TurnPlan, turns_from_mask};
