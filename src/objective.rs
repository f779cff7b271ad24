//! Policy objectives over packed segments: from log-probabilities and advantages to a loss and its gradient.
//!
//! Token `u` belongs to segment `i`; `m_u` is its mask, `n_i = Σ m` over the segment (never its length). With the current
//! log-probability `l`, the old one `o`, the advantage `A` and the token weight `w`:
//!
//! ```text
//! Δ_u = l_u − o_u       ρ_u = exp Δ_u                       ratio of the token
//! D_i = Σ m Δ           s_i = exp(D_i / n_i)                length-normalised ratio of the segment
//! S⁺  = Σ m w max(A,0)  S⁻  = Σ m w min(A,0)
//!
//! Loss = Σ_u m_u c_i w_u L_u        d_logprobs[u] = dLoss / dl_u
//! ```
//!
//! | [`Variant`] | value | gradient |
//! |---|---|---|
//! | `PpoClip` | L_u = −min(ρA, clip(ρ)A) | −c w A ρ where the clip passes |
//! | `Gspo` | Σ_u m w L_u = −[ min(s, 1+εh) S⁺ + max(s, 1−εl) S⁻ ] | −c (s/n) ( S⁺[s ≤ 1+εh] + S⁻[s ≥ 1−εl] ), for every counted token |
//! | `GspoToken` | as `Gspo` | −c w A s where the clip passes |
//!
//! The clip passes the gradient where `A > 0 and ratio ≤ 1+εh` or `A < 0 and ratio ≥ 1−εl`, bounds included; `A = 0` passes nothing.
//! A [`Cap`] bounds what A < 0 may cost. The coefficient `c` is the [`Aggregation`]'s, with denominators that the caller states for the
//! whole optimiser step ([`Denominators`]), so that a batch may be split into calls and ranks at will: the gradient keeps its bits.
//!
//! Sources: GRPO 2402.03300, DAPO 2503.14476, Dr. GRPO 2503.20783, dual clip 1912.09729, the two-sided bound of INTELLECT-2
//! 2505.07291, GSPO and GSPO-token 2507.18071 (equations 5–7 and 13–14).
//!
//! **Masked means absent**: whatever the arrays hold at a token with `m = 0`, its gradient is +0.0 and nothing else sees it.
//! **Bad data** that only the device can see sets the error word: NaN or infinity at a counted token (what happens then is
//! [`NonFinite`]'s to say), a mask value other than 0 and 1 (counts as 1), a log-probability above 1e-3, a denominator of 0 although a token
//! counts (loss and gradient are then NaN).
//!
//! # One call or three
//!
//! [`Backend::objective`](crate::Backend::objective) does everything. Where segments are spread over ranks or over calls, the three
//! phases stand alone: [`objective_partial`](crate::Backend::objective_partial) sums every segment's piece into planes `sums[P][S]`
//! ([`Config::planes`]) that an all-reduce may add up; [`objective_finish`](crate::Backend::objective_finish) makes a
//! [`Coefficient`] of every segment; [`objective_apply`](crate::Backend::objective_apply) writes the gradient. No more than a launch each.

mod bounds;
mod call;
mod config;
mod lint;
mod preset;

pub use crate::segments::{Groups, Plan, Segments};
pub(crate) use bounds::Bounds;
pub(crate) use call::check;
pub use call::{Advantages, Batch, Coefficient, Denominators, Output, Phases, Sizes, workspace_bytes};
pub use config::{Aggregation, Cap, Clip, Config, NonFinite, Plane, Saturation, Variant};
pub use lint::Warning;
pub use preset::{Algorithm, Preset};
