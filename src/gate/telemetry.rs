//! What a forward call may be asked beside its results, and what those numbers come to.

use super::call::{check_array, check_floats};
use super::{Config, Shape};
use crate::abi::MOERL_GATE_ROW_COUNTS;
use crate::error::{Checks, Extent, Kind, Result};
use crate::memory::{Matrix, MatrixMut, Memory, View, ViewMut};

/// The places of [`Telemetry::row_counts`]. Every row is one of the first five; the others say more of replayed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum RowCount {
    /// Rows that the gate selects for, where no forced ids were asked for.
    Native,
    /// Rows whose forced ids were used.
    Replay,
    /// Rows whose forced ids are absent, whatever became of them.
    Missing,
    /// Rows whose forced ids are not k distinct experts, whatever became of them.
    Bad,
    /// Rows that the mask, the mode or the row count makes padding.
    Padding,
    /// Replayed rows in which [`Config::score_replace`] replaced an expert.
    Replaced,
    /// Replayed rows whose [recorded weights](Telemetry::recorded_weights), where those are given, are not finite, or sum to 0.
    BadReference,
}

/// The length of [`Telemetry::row_counts`].
pub const ROW_COUNTS: usize = MOERL_GATE_ROW_COUNTS as usize;

/// What [`Telemetry::overlap`] holds for a row that was not replayed.
pub const NO_OVERLAP: u8 = u8::MAX;

/// What to count and to measure of a forward call; `None`, throughout from `default`: not at all. Ids, weights and saved values are those
/// of the call without telemetry, bit for bit.
///
/// F are a row's experts (of a replayed row the recorded ones, before [`Config::score_replace`]), N its native choice, `c` what selection
/// goes by (the logit, or score plus bias), `w` the weights. Experts are counted, and numbers measured, for rows that have weights; the
/// numbers of other rows are NaN.
///
/// *Cheap* outputs read nothing but the slots. *Row* outputs read all logits of replayed rows, once: such a row then costs as much as a
/// native one.
#[derive(Debug)]
pub struct Telemetry<'a, M> {
    /// `[T]`, row: `o = #(F ∩ N)` of replayed rows, [`NO_OVERLAP`] of others.
    pub overlap: Option<ViewMut<'a, u8, M>>,
    /// `[k + 1]`, row: how many replayed rows have each `o`; added to what is there. See [`mean_overlap`].
    pub overlap_hist: Option<ViewMut<'a, u64, M>>,
    /// `[T]`, row: set to 1 where `o < k`, else left: one buffer for all layers tells where any differs.
    pub changed: Option<ViewMut<'a, u8, M>>,
    /// `[T]`, row: increased by 1 where `o < k`.
    pub changed_layers: Option<ViewMut<'a, u16, M>>,
    /// `[T]`: how many experts of the row [`Config::score_replace`] replaced.
    pub replaced: Option<ViewMut<'a, u8, M>>,
    /// `[T]`, row: `c_(k) − c_(k+1)` among admitted experts; 0 for equal ones, +∞ where none is left.
    pub margin: Option<ViewMut<'a, f32, M>>,
    /// `[T]`, row: `c_(k) − min over F of c`: how far the worst expert of the row is from being chosen. Negative where a limit to groups
    /// excludes it although its value would do.
    pub deficit: Option<ViewMut<'a, f32, M>>,
    /// `[T]`, row: Σ over F of the softmax over all experts (after the softcap). NaN for a row whose log-sum-exp is not finite.
    pub forced_mass: Option<ViewMut<'a, f32, M>>,
    /// `[T]`, cheap: `Σ_j |w_j − w̄_j| / scaling_factor` of replayed rows. Needs `recorded_weights`.
    pub gate_l1: Option<ViewMut<'a, f32, M>>,
    /// `[T]`, cheap: `Σ_j ŵ̄_j log(ŵ̄_j / ŵ_j)` of replayed rows, both normalised over the slots. Needs `recorded_weights`.
    pub set_kl: Option<ViewMut<'a, f32, M>>,
    /// `[T]`, row and reference row: `KL(p_ref ‖ p)` over all experts, of the softmax over all. Needs `ref_logits`.
    pub router_kl: Option<ViewMut<'a, f32, M>>,
    /// `[T, E]` bf16, f16 or f32: the gradient of `router_kl` by the logits, `p − p_ref` (times the softcap's slope); exactly 0 in rows
    /// without weights and where `router_kl` is NaN. Needs `ref_logits`.
    pub d_router_kl: Option<MatrixMut<'a, M>>,
    /// `[E]`, cheap: tokens per expert as they were sent; added to what is there. See [`Load`].
    pub counts: Option<ViewMut<'a, u64, M>>,
    /// `[E]`, row: tokens per expert as the native choice of the same rows would have sent them; added to what is there.
    pub native_counts: Option<ViewMut<'a, u64, M>>,
    /// `[`[`ROW_COUNTS`]`]`, cheap: added to what is there; see [`RowCount`].
    pub row_counts: Option<ViewMut<'a, u64, M>>,
    /// w̄, `[R, k]` bf16, f16 or f32, any row stride: the weights that were recorded with the forced ids, row for row and slot for slot.
    pub recorded_weights: Option<Matrix<'a, M>>,
    /// `[T, E]` of the element type of `router_logits`, any row stride: the logits of a reference router.
    pub ref_logits: Option<Matrix<'a, M>>,
    /// `[T, k]`, row: log softmax over all experts of the row's experts; to be handed to a later call's [`RouterShift`].
    pub logprob_sel: Option<ViewMut<'a, f32, M>>,
    /// Row: how far the router has moved since `logprob_sel` was recorded.
    pub router_shift: Option<RouterShift<'a, M>>,
}

impl<M> Default for Telemetry<'_, M> {
    fn default() -> Self {
        Telemetry {
            overlap: None,
            overlap_hist: None,
            changed: None,
            changed_layers: None,
            replaced: None,
            margin: None,
            deficit: None,
            forced_mass: None,
            gate_l1: None,
            set_kl: None,
            router_kl: None,
            d_router_kl: None,
            counts: None,
            native_counts: None,
            row_counts: None,
            recorded_weights: None,
            ref_logits: None,
            logprob_sel: None,
            router_shift: None,
        }
    }
}

/// One layer's part of the router shift of RSPO (<https://arxiv.org/abs/2510.23027>): `shift += (1/k) Σ over S_old of |log p − log p_old|`, p
/// the softmax over all experts. Layers are called in their order; [`ShiftFinish`] makes the token's factor of the sum.
///
/// A row without weights now, without a record, or with a NaN adds nothing.
#[derive(Debug)]
pub struct RouterShift<'a, M> {
    /// `[T, k]`: S_old, the `topk_ids` of the old policy's call.
    pub old_topk_ids: View<'a, i32, M>,
    /// `[T, k]`: the [`logprob_sel`](Telemetry::logprob_sel) of that call.
    pub old_logprob_sel: View<'a, f32, M>,
    /// `[T]`: added to.
    pub shift: ViewMut<'a, f32, M>,
}

/// Makes of the layers' sum what [`objective`](crate::objective) adds to a token's log-ratio:
/// `router_shift = max(ln γ_min, −shift / L)`, at most 0. A constant: no gradient flows through it.
#[derive(Debug)]
pub struct ShiftFinish<'a, M> {
    /// `[T]`: what the calls of L layers have added up.
    pub shift: View<'a, f32, M>,
    /// L.
    pub layers: usize,
    /// The least factor, in `[0, 1]`; 0: no floor.
    pub gamma_min: f64,
    /// `[T]`, in the log domain; `exp` of it is the factor γ.
    pub router_shift: ViewMut<'a, f32, M>,
}

impl<M: Memory> ShiftFinish<'_, M> {
    /// Checks the call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        checks
            .require((0.0..=1.0).contains(&self.gamma_min), Kind::Config, "gamma_min", || {
                format!("is {}, needs a number from 0 to 1", self.gamma_min)
            })
            .require(self.layers > 0, Kind::Config, "layers", || "is 0, and a mean over no layer has no value".into());
        check_array(&mut checks, "shift", Some(self.shift), self.shift.len());
        check_array(&mut checks, "router_shift", Some(self.router_shift.as_view()), self.shift.len());
        checks.disjoint(&[Some(self.shift.extent("shift")), Some(self.router_shift.extent("router_shift"))]);
        checks.finish()
    }
}

impl<M: Memory> Telemetry<'_, M> {
    /// True if nothing is asked for.
    pub fn is_empty(&self) -> bool {
        !self.needs_choice() && !self.needs_sum() && !self.needs_slots()
    }

    /// True if replayed rows must be selected natively as well.
    pub(crate) fn needs_choice(&self) -> bool {
        self.overlap.is_some()
            || self.overlap_hist.is_some()
            || self.changed.is_some()
            || self.changed_layers.is_some()
            || self.margin.is_some()
            || self.deficit.is_some()
            || self.native_counts.is_some()
    }

    /// True if the log-sum-exp of every row is needed.
    pub(crate) fn needs_sum(&self) -> bool {
        self.forced_mass.is_some()
            || self.needs_reference()
            || self.logprob_sel.is_some()
            || self.router_shift.is_some()
    }

    fn needs_slots(&self) -> bool {
        self.needs_record() || self.counts.is_some() || self.row_counts.is_some() || self.replaced.is_some()
    }

    /// True if the reference's logits are needed.
    pub(crate) fn needs_reference(&self) -> bool {
        self.router_kl.is_some() || self.d_router_kl.is_some()
    }

    /// True if the recorded weights are needed, or are there to be counted.
    pub(crate) fn needs_record(&self) -> bool {
        let is_counted = self.row_counts.is_some() && self.recorded_weights.is_some();
        self.gate_l1.is_some() || self.set_kl.is_some() || is_counted
    }

    /// Checks shapes, types and what an output needs. `forced_rows`: R, where ids are forced.
    pub(super) fn check(&self, checks: &mut Checks, shape: &Shape, forced_rows: Option<usize>, logits: &Matrix<'_, M>) {
        let Shape { tokens, experts, top_k } = *shape;
        macro_rules! arrays {
            ($($name:ident: $len:expr),* $(,)?) => {
                $(check_array(checks, stringify!($name), self.$name.as_ref().map(ViewMut::as_view), $len);)*
            };
        }
        arrays! {
            overlap: tokens, overlap_hist: top_k + 1, changed: tokens, changed_layers: tokens, replaced: tokens,
            margin: tokens, deficit: tokens, forced_mass: tokens, gate_l1: tokens, set_kl: tokens, router_kl: tokens,
            counts: experts, native_counts: experts, row_counts: ROW_COUNTS, logprob_sel: tokens * top_k,
        }
        if let Some(weights) = &self.recorded_weights {
            check_floats(checks, "recorded_weights", weights, &[forced_rows.unwrap_or_default(), top_k]);
        }
        if let Some(logits_of_reference) = &self.ref_logits {
            check_floats(checks, "ref_logits", logits_of_reference, &[tokens, experts]);
            checks.require(logits_of_reference.element() == logits.element(), Kind::Dtype, "ref_logits", || {
                format!(
                    "hold {}, the router_logits {}: both must be the same",
                    logits_of_reference.element(),
                    logits.element()
                )
            });
        }
        if let Some(gradient) = &self.d_router_kl {
            check_floats(checks, "d_router_kl", &gradient.as_matrix(), &[tokens, experts]);
        }
        if let Some(shift) = &self.router_shift {
            check_array(checks, "old_topk_ids", Some(shift.old_topk_ids), tokens * top_k);
            check_array(checks, "old_logprob_sel", Some(shift.old_logprob_sel), tokens * top_k);
            check_array(checks, "shift", Some(shift.shift.as_view()), tokens);
        }
        checks
            .require(
                !self.needs_record() || self.recorded_weights.is_some(),
                Kind::MissingInput,
                "recorded_weights",
                || "are needed by gate_l1 and set_kl".into(),
            )
            .require(!self.needs_reference() || self.ref_logits.is_some(), Kind::MissingInput, "ref_logits", || {
                "are needed by router_kl and its gradient".into()
            });
    }

    /// Every array, for overlap checks.
    pub(super) fn extents(&self) -> Vec<Option<Extent>> {
        macro_rules! written {
            ($($name:ident),*) => { vec![$(self.$name.as_ref().map(|array| array.extent(stringify!($name)))),*] };
        }
        let mut extents = written!(
            overlap,
            overlap_hist,
            changed,
            changed_layers,
            replaced,
            margin,
            deficit,
            forced_mass,
            gate_l1,
            set_kl,
            router_kl,
            counts,
            native_counts,
            row_counts,
            logprob_sel
        );
        extents.push(self.recorded_weights.map(|matrix| matrix.layout().extent("recorded_weights", false)));
        extents.push(self.ref_logits.map(|matrix| matrix.layout().extent("ref_logits", false)));
        extents.push(self.d_router_kl.as_ref().map(|matrix| matrix.layout().extent("d_router_kl", true)));
        if let Some(shift) = &self.router_shift {
            extents.push(Some(shift.old_topk_ids.extent("old_topk_ids")));
            extents.push(Some(shift.old_logprob_sel.extent("old_logprob_sel")));
            extents.push(Some(shift.shift.extent("shift")));
        }
        extents
    }
}

impl Config {
    /// The deficit from which on replayed experts are replaced; `None` where none ever is.
    pub(crate) fn replaces(&self) -> Option<f32> {
        self.score_replace.filter(|delta| *delta < f32::INFINITY)
    }
}

/// How evenly tokens are spread over experts, from exact integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// The coefficient of variation, `√(E Σn² − (Σn)²) / Σn`: 0 where all experts have equally many, √(E−1) where one has all.
    pub cv: f64,
    /// The largest count over the mean.
    pub max_over_mean: f64,
}

impl Load {
    /// Of tokens per expert. `None` where there are none.
    ///
    /// ```
    /// let load = moerl::gate::Load::of(&[4, 0, 0, 0]).unwrap();
    /// assert_eq!((load.cv, load.max_over_mean), (3f64.sqrt(), 4.0));
    /// ```
    pub fn of(counts: &[u64]) -> Option<Load> {
        let wide = |n: &u64| u128::from(*n);
        let sum: u128 = counts.iter().map(wide).sum();
        if sum == 0 {
            return None;
        }
        // Exact below 2^58 tokens for 4096 experts.
        let squares: u128 = counts.iter().map(|n| wide(n) * wide(n)).sum();
        let spread = counts.len() as u128 * squares - sum * sum;
        let largest = counts.iter().copied().max().unwrap_or_default();
        let (experts, sum) = (counts.len() as f64, sum as f64);
        Some(Load { cv: (spread as f64).sqrt() / sum, max_over_mean: largest as f64 * experts / sum })
    }
}

/// The mean share of a replayed row's k experts that its native choice has too, `Σo / (k · rows)`, from [`Telemetry::overlap_hist`] `[k + 1]`.
/// `None` where nothing was replayed.
pub fn mean_overlap(hist: &[u64]) -> Option<f64> {
    let rows: u128 = hist.iter().map(|&n| u128::from(n)).sum();
    let sum: u128 = hist.iter().enumerate().map(|(o, &n)| o as u128 * u128::from(n)).sum();
    let top_k = hist.len().checked_sub(1).filter(|&k| k > 0 && rows > 0)?;
    Some(sum as f64 / (top_k as f64 * rows as f64))
}
