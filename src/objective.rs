//! Policy objectives over packed segments: from log-probabilities and advantages to a loss and its gradient.
//!
//! Token `u` belongs to segment `i`; `m_u` is its mask, `n_i = Σ m` over the segment (never its length). With the current
//! log-probability `l`, the old one `o`, the rollout's `q`, the reference's `r`, the advantage `A`, and the weights `w` of a token, `W` of a segment:
//!
//! ```text
//! Δ_u = l_u − o_u + router_shift     ρ_u = exp Δ_u           ratio of the token
//! D_i = Σ m Δ                        s_i = exp(D_i / n_i)    length-normalised ratio of the segment
//! S⁺  = Σ m w max(A,0)               S⁻  = Σ m w min(A,0)
//!
//! Loss = Σ_u m_u c_i ( w_u W_i L_u + β KL_u + κ (l_u − q_u)² − η H_u )        d_logprobs[u] = dLoss / dl_u
//! ```
//!
//! | [`Variant`] | value | gradient |
//! |---|---|---|
//! | `PpoClip` | L_u = −min(ρA, clip(ρ)A) | −c w A ρ where the clip passes |
//! | `Gspo` | Σ_u m w L_u = −[ min(s, 1+εh) S⁺ + max(s, 1−εl) S⁻ ] | −c (s/n) ( S⁺[s ≤ 1+εh] + S⁻[s ≥ 1−εl] ), for every counted token |
//! | `GspoToken` | as `Gspo` | −c w A s where the clip passes |
//! | `Cispo` | −A l, the clamped ρ or s being a constant factor | −c w A clamp(ρ) |
//! | `Gmpo` | −R W (S⁺ + S⁻), R the geometric mean of clipped ratios | −c A R W where the token's clip passes |
//! | `Sapo` | −A (4/τ) σ(τ(ρ−1)) | −c w A 4p(1−p) ρ, p = σ(τ(ρ−1)) |
//! | `Vespo` | −A l, φ being a constant factor | −c A φ |
//! | `Dppo` | −A l, min(ρ, cap) inside a trust region being a constant factor | −c w A min(ρ, cap) inside it |
//! | `ReinforceIs`, `Gpg`, `Topr`, `TisLoss`, `MiniRl` | −A l with a constant factor | −c w A times the factor |
//! | `SnisAttached` | −A l, A the factor that the correction makes | −c A, of −Σ w̄ R over each group |
//! | `SquarePenalty`, `KlCov` | −A l + τ/2 Δ², −A ρ + λ\|Δ\| on chosen tokens | their derivatives |
//!
//! A [`Kl`] estimates the divergence from the reference policy, `κ` draws the policy to the rollout's, `η` rewards entropy. w and W multiply L
//! alone; a token that [`Batch::keep`] rejects has no L.
//!
//! The clip passes the gradient where `A > 0 and ratio ≤ 1+εh` or `A < 0 and ratio ≥ 1−εl`, bounds included; `A = 0` passes nothing.
//! A [`Cap`] bounds what A < 0 may cost. The coefficient `c` is the [`Aggregation`]'s, with denominators that the caller states for the
//! whole optimiser step ([`Denominators`]), so that a batch may be split into calls and ranks at will: the gradient keeps its bits.
//!
//! Sources: GRPO 2402.03300, DAPO 2503.14476, Dr. GRPO 2503.20783, dual clip 1912.09729, the two-sided bound of INTELLECT-2
//! 2505.07291, GSPO and GSPO-token 2507.18071 (equations 5–7 and 13–14), CISPO 2506.13585, GMPO 2507.20673, SAPO 2511.20347, LUSPO
//! 2602.05261, VESPO 2602.10693, DPPO 2602.04879, MiniRL 2512.01374, TOPR 2503.14286, KL-Cov 2505.22617, the router's shift 2510.27023.
//!
//! **Masked means absent**: whatever the arrays hold at a token with `m = 0`, its gradient is +0.0 and nothing else sees it.
//! **Bad data** that only the device can see sets the error word: NaN or infinity at a counted token (what happens then is
//! [`NonFinite`]'s to say), a mask value other than 0 and 1 (counts as 1), a log-probability above 1e-3, a denominator of 0 although a token
//! counts (loss and gradient are then NaN), a segment of [`Variant::Gmpo`] whose tokens do not share an advantage (their mean is taken).
//!
//! # One call or three
//!
//! [`Backend::objective`](crate::Backend::objective) does everything. Where segments are spread over ranks or over calls, the three
//! phases stand alone: [`objective_partial`](crate::Backend::objective_partial) sums every segment's piece into planes `sums[P][S]`
//! ([`Config::planes`]) that an all-reduce may add up; [`objective_finish`](crate::Backend::objective_finish) makes a
//! [`Coefficient`] of every segment; [`objective_apply`](crate::Backend::objective_apply) writes the gradient. A launch each, in either form.
//!
//! # Bits
//!
//! A segment's sums are formed in tiles of [`TILE`] positions counted from its start, in a tree that depends on the position alone; tiles
//! join in f64, in groups of [`TILE_GROUP`]. So gradient and ratios do not depend on the segment's neighbours, on alignment, on the number of
//! segments in a call or on how the work is divided. A segment that comes in several calls keeps its bits if it is cut at multiples of
//! `TILE · TILE_GROUP` tokens; any other cut agrees within 1e-8 in D/n. The loss is a sum of f64 in a tree over segments (32 neighbours, 32
//! of those, and so on), or over tiles for a token variant: calls agree within 1e-12 however the batch is split.
//!
//! ```
//! use moerl::objective::{Advantages, Batch, Config, Denominators, Output, Plan, Segments, workspace_bytes};
//! use moerl::{Backend, Buffer, Reference};
//!
//! # fn main() -> moerl::Result<()> {
//! let (backend, stream) = (Reference, ());
//! let plan = Plan::new(&backend, &stream, &Segments::from_offsets(&[0, 2, 5])?)?;
//! let logprobs = backend.upload(&stream, &[-1.00, -0.50, -2.00, -0.10, -0.70_f32])?;
//! let old_logprobs = backend.upload(&stream, &[-1.02, -0.49, -2.01, -0.11, -0.69_f32])?;
//! let advantages = backend.upload(&stream, &[1.0, -1.0_f32])?;
//! let mut workspace = backend.allocate(&stream, workspace_bytes(&plan))?;
//! let (mut loss, mut d_logprobs) = (backend.allocate(&stream, 1)?, backend.allocate(&stream, 5)?);
//!
//! let batch = Batch {
//!     old_logprobs: Some(old_logprobs.view()),
//!     ..Batch::new(logprobs.view(), Advantages::PerSegment(advantages.view()), Denominators::global(5, 2))
//! };
//! let output = Output {
//!     loss: Some(loss.view_mut()),
//!     d_logprobs: Some(d_logprobs.view_mut()),
//!     ..Output::new(workspace.view_mut())
//! };
//! backend.objective(&stream, &Config::gspo(3e-4, 4e-4), &plan, batch, output)?;
//!
//! // The first segment's ratio, exp((0.02 - 0.01) / 2), is above the window; the second one's is above 1, where A < 0 is not clipped.
//! let gradient = backend.download(&stream, d_logprobs.view())?;
//! assert_eq!(gradient[..2], [0.0, 0.0]);
//! assert!(gradient[2..].iter().all(|&g| g > 0.0));
//! # Ok(())
//! # }
//! ```

mod bounds;
mod call;
mod config;
mod lint;
mod preset;
mod terms;
mod variant;

pub use crate::segments::{Groups, Plan, Segments, TILE, TILE_GROUP};
pub(crate) use bounds::{Bounds, Rates};
pub(crate) use call::check;
pub use call::{Advantages, Batch, Coefficient, Denominators, Output, Phases, Sizes, workspace_bytes};
pub use config::{Aggregation, Config, NonFinite, Plane, Saturation};
pub use lint::Warning;
pub use preset::{Algorithm, Preset};
pub use terms::{Anchor, DenominatorBasis, Kl, KlForm, RejectionScope};
pub use variant::{Cap, Cispo, CispoCap, Clip, Divergence, Dppo, RatioLevel, Sapo, Variant, Vespo, Window};
