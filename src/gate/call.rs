//! One forward or backward call: its arrays, and every check that the host can make.

use bytemuck::Pod;

use super::{Config, Filler, MAX_EXPERTS, MAX_TOP_K, Score, Telemetry};
use crate::element::Element;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Matrix, MatrixMut, Memory, View, ViewMut};

/// Where a row's experts come from.
#[derive(Clone, Copy, Debug)]
pub enum Routes<'a, M> {
    /// The gate selects them.
    Native,
    /// They were recorded earlier.
    Forced(Forced<'a, M>),
}

/// Recorded expert ids of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Forced<'a, M> {
    /// `[R, k]` u8, u16, i16 or i32, any row stride: layer l of a tape `[R, L, k]` is
    /// `Matrix::strided(tape.slice(l * k..len), R, k, L * k)`. Rows of the call behind R are missing.
    pub ids: Matrix<'a, M>,
    /// `[T]`: the row of `ids` that each row of the call takes; −1: none. Without it, row t takes row t.
    pub row_index: Option<View<'a, i32, M>>,
    /// `[T]`: 0 native, 1 replay, 2 padding. Without it, every row replays.
    pub row_mode: Option<View<'a, u8, M>>,
    /// An id with all bits one (−1, 255 in u8, 65535 in u16) stands for "not recorded". True from [`new`](Forced::new).
    pub has_sentinel: bool,
    /// A row of zeros is missing (zero tails of padded tapes). With k = 1 expert 0 is meant all the same. False from `new`.
    pub zeros_are_missing: bool,
}

impl<'a, M: Memory> Forced<'a, M> {
    /// These ids `[R, k]` for every row, with the sentinel.
    pub fn new(ids: Matrix<'a, M>) -> Self {
        Forced { ids, row_index: None, row_mode: None, has_sentinel: true, zeros_are_missing: false }
    }
}

impl<'a, M: Memory> From<Matrix<'a, M>> for Routes<'a, M> {
    fn from(ids: Matrix<'a, M>) -> Self {
        Routes::Forced(Forced::new(ids))
    }
}
impl<'a, M: Memory> From<Forced<'a, M>> for Routes<'a, M> {
    fn from(forced: Forced<'a, M>) -> Self {
        Routes::Forced(forced)
    }
}

/// What a call's shapes come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
}

/// One forward call: T tokens, E experts, k chosen.
#[derive(Debug)]
pub struct Forward<'a, M> {
    /// `[T, E]` bf16, f16 or f32; any row stride, any address that is a multiple of the element's size.
    pub router_logits: Matrix<'a, M>,
    /// Who chooses. Native from [`new`](Forward::new).
    pub routes: Routes<'a, M>,
    /// `[E]`, added to the scores for selection only; −∞ is legal. Takes no part in forced rows.
    pub selection_bias: Option<View<'a, f32, M>>,
    /// `[T]`: 0 makes a row padding.
    pub token_mask: Option<View<'a, u8, M>>,
    /// One number on the device: rows from it on are padding.
    pub row_count: Option<View<'a, i32, M>>,
    /// `[T, k]`, without gaps: the experts.
    pub topk_ids: ViewMut<'a, i32, M>,
    /// `[T, k]` f32, bf16 or f16, any row stride: their weights, rounded once.
    pub topk_weights: MatrixMut<'a, M>,
    /// `[T, k]`, without gaps, for backward: the logits of the experts, before the softcap. A NaN of all ones marks a row without weights.
    pub selected_logits: Option<ViewMut<'a, f32, M>>,
    /// `[T]`, for backward: the log-sum-exp of the row. Only where [`Config::needs_lse`].
    pub lse: Option<ViewMut<'a, f32, M>>,
    /// `[E]`: multiplies the weights of each expert, after the scaling factor.
    pub expert_scale: Option<View<'a, f32, M>>,
    /// `[T, k]` u8, u16, i16 or i32, any row stride: `topk_ids` once more, in the width of a tape. Layer l of a tape `[T, L, k]` is
    /// `MatrixMut::strided(tape.slice(l * k..len), T, k, L * k)`. −1 becomes all ones.
    pub record_ids: Option<MatrixMut<'a, M>>,
    /// `[T, E]` f32, any row stride: the weights (as they stand in `topk_weights`) at their experts, 0 elsewhere.
    pub dense_probs: Option<MatrixMut<'a, M>>,
    /// `[T, E]`, without gaps: 1 at the experts of `topk_ids`, 0 elsewhere.
    pub bytemap: Option<ViewMut<'a, u8, M>>,
    /// `[T, ⌈E/8⌉]`, without gaps: the same as bits, expert e at bit e % 8 of byte e / 8 (TransformerEngine's layout).
    pub bitmap: Option<ViewMut<'a, u8, M>>,
    /// `[T]`: the selection value of the last expert that a row selected for itself; NaN for rows that selected nothing.
    pub cutoff: Option<ViewMut<'a, f32, M>>,
    /// Where bad data is reported.
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The caller's number for this call (a layer), reported with a fault.
    pub tag: u16,
    /// What else to count and measure.
    pub telemetry: Option<Telemetry<'a, M>>,
}

impl<'a, M: Memory> Forward<'a, M> {
    /// A native call.
    pub fn new(
        router_logits: Matrix<'a, M>,
        topk_ids: impl Into<ViewMut<'a, i32, M>>,
        topk_weights: MatrixMut<'a, M>,
    ) -> Self {
        Forward {
            router_logits,
            routes: Routes::Native,
            selection_bias: None,
            token_mask: None,
            row_count: None,
            topk_ids: topk_ids.into(),
            topk_weights,
            selected_logits: None,
            lse: None,
            expert_scale: None,
            record_ids: None,
            dense_probs: None,
            bytemap: None,
            bitmap: None,
            cutoff: None,
            errors: None,
            tag: 0,
            telemetry: None,
        }
    }

    /// The forced ids, if there are any.
    pub fn forced(&self) -> Option<&Forced<'a, M>> {
        match &self.routes {
            Routes::Native => None,
            Routes::Forced(forced) => Some(forced),
        }
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `MissingInput`.
    pub fn validate(&self, config: &Config) -> Result<Shape> {
        let mut checks = Checks::new();
        let forced = self.forced();
        let shape = check_router(&mut checks, config, &self.router_logits, forced.map(|forced| forced.ids.columns()));
        let Shape { tokens, experts, top_k } = shape;
        if let Some(forced) = forced {
            check_forced(&mut checks, forced, &shape);
        }
        checks.require(
            self.selection_bias.is_some() || !config.needs_selection_bias,
            Kind::MissingInput,
            "selection_bias",
            || "is part of this router and was not given".into(),
        );
        check_array(&mut checks, "selection_bias", self.selection_bias, experts);
        check_array(&mut checks, "token_mask", self.token_mask, tokens);
        check_array(&mut checks, "row_count", self.row_count, 1);
        check_array(&mut checks, "topk_ids", Some(self.topk_ids.as_view()), tokens * top_k);
        check_floats(&mut checks, "topk_weights", &self.topk_weights.as_matrix(), &[tokens, top_k]);
        check_array(
            &mut checks,
            "selected_logits",
            self.selected_logits.as_ref().map(ViewMut::as_view),
            tokens * top_k,
        );
        check_array(&mut checks, "lse", self.lse.as_ref().map(ViewMut::as_view), tokens);
        check_lse_use(&mut checks, config, self.lse.is_some());
        self.check_maps(&mut checks, config, &shape);
        check_array(&mut checks, "errors", self.errors.as_ref().map(ViewMut::as_view), 1);
        if let Some(telemetry) = &self.telemetry {
            telemetry.check(&mut checks, &shape, forced.map(|forced| forced.ids.rows()), &self.router_logits);
        }
        let mut extents = vec![
            Some(self.router_logits.layout().extent("router_logits", false)),
            forced.map(|forced| forced.ids.layout().extent("forced_ids", false)),
            forced.and_then(|forced| forced.row_index).map(|array| array.extent("row_index")),
            forced.and_then(|forced| forced.row_mode).map(|array| array.extent("row_mode")),
            self.selection_bias.map(|array| array.extent("selection_bias")),
            self.token_mask.map(|array| array.extent("token_mask")),
            self.row_count.map(|array| array.extent("row_count")),
            Some(self.topk_ids.extent("topk_ids")),
            Some(self.topk_weights.layout().extent("topk_weights", true)),
            self.selected_logits.as_ref().map(|array| array.extent("selected_logits")),
            self.lse.as_ref().map(|array| array.extent("lse")),
            self.expert_scale.map(|array| array.extent("expert_scale")),
            self.record_ids.as_ref().map(|matrix| matrix.layout().extent("record_ids", true)),
            self.dense_probs.as_ref().map(|matrix| matrix.layout().extent("dense_probs", true)),
            self.bytemap.as_ref().map(|array| array.extent("bytemap")),
            self.bitmap.as_ref().map(|array| array.extent("bitmap")),
            self.cutoff.as_ref().map(|array| array.extent("cutoff")),
            self.errors.as_ref().map(|array| array.extent("errors")),
        ];
        extents.extend(self.telemetry.as_ref().map(Telemetry::extents).unwrap_or_default());
        checks.disjoint(&extents);
        checks.finish().map(|()| shape)
    }

    /// The outputs beyond ids, weights and saved values.
    fn check_maps(&self, checks: &mut Checks, config: &Config, shape: &Shape) {
        let Shape { tokens, experts, top_k } = *shape;
        check_array(checks, "expert_scale", self.expert_scale, experts);
        check_array(checks, "bytemap", self.bytemap.as_ref().map(ViewMut::as_view), tokens * experts);
        check_array(checks, "bitmap", self.bitmap.as_ref().map(ViewMut::as_view), tokens * experts.div_ceil(8));
        check_array(checks, "cutoff", self.cutoff.as_ref().map(ViewMut::as_view), tokens);
        if let Some(probs) = &self.dense_probs {
            check_floats(checks, "dense_probs", &probs.as_matrix(), &[tokens, experts]);
            checks.require(probs.element() == Element::F32, Kind::Dtype, "dense_probs", || {
                format!("holds {}, needs f32", probs.element())
            });
        }
        if let Some(record) = &self.record_ids {
            checks.shape("record_ids", &[record.rows(), record.columns()], &[tokens, top_k]);
            check_id_width(checks, "record_ids", record.element(), experts, config.filler == Filler::Sentinel);
            check_pointer(checks, "record_ids", record.address(), 1, tokens * top_k);
        }
    }
}

/// Checks the configuration against `[T, E]` logits and settles k.
fn check_router<M: Memory>(
    checks: &mut Checks,
    config: &Config,
    logits: &Matrix<'_, M>,
    given_top_k: Option<usize>,
) -> Shape {
    check_floats(checks, "router_logits", logits, &[logits.rows(), logits.columns()]);
    check_sizes(checks, config, logits.rows(), logits.columns(), given_top_k)
}

/// Checks the configuration against T and E and settles k.
pub(crate) fn check_sizes(
    checks: &mut Checks,
    config: &Config,
    tokens: usize,
    experts: usize,
    given_top_k: Option<usize>,
) -> Shape {
    checks.merge(config.validate());
    checks
        .require((1..=MAX_EXPERTS).contains(&experts), Kind::Shape, "router_logits", || {
            format!("have {experts} experts, needs 1 to {MAX_EXPERTS}")
        })
        .require(tokens < 1 << 31, Kind::Shape, "router_logits", || format!("have {tokens} rows, 2^31 are too many"));
    // What is refused must not overflow where the shapes of arrays are made of it.
    let sane = |top_k: usize| Shape {
        tokens: tokens.min(1 << 31),
        experts: experts.min(2 * MAX_EXPERTS),
        top_k: top_k.min(2 * MAX_EXPERTS),
    };
    let Some(top_k) = config.resolve_top_k(given_top_k) else {
        checks.require(false, Kind::Config, "top_k", || "is given by neither the call nor the configuration".into());
        return sane(0);
    };
    checks.require((1..=MAX_TOP_K.min(experts)).contains(&top_k), Kind::Config, "top_k", || {
        format!("is {top_k}, needs 1 to {} for {experts} experts", MAX_TOP_K.min(experts))
    });
    check_groups(checks, config, experts, top_k);
    sane(top_k)
}

fn check_groups(checks: &mut Checks, config: &Config, experts: usize, top_k: usize) {
    let Some(groups) = config.groups else { return };
    let (count, admitted) = (groups.count, groups.admitted);
    if count == 0 || admitted == 0 || admitted > count || !experts.is_multiple_of(count) {
        checks.require(false, Kind::Config, "groups", || {
            format!("admit {admitted} of {count}, which must divide the {experts} experts and admit 1 to {count}")
        });
        return;
    }
    let members = experts / count;
    checks
        .require(admitted * members >= top_k, Kind::Config, "groups", || {
            format!("admit {admitted} × {members} experts, less than the {top_k} to choose")
        })
        .require(groups.top.is_some() || top_k.is_multiple_of(admitted), Kind::Config, "groups", || {
            format!("do not say how many experts make a group's score, and {top_k}/{admitted} is not whole")
        });
    let top = groups.top.unwrap_or(top_k / admitted);
    checks.require((1..=members).contains(&top), Kind::Config, "groups", || {
        format!("are scored by their best {top}, needs 1 to {members}")
    });
}

fn check_forced<M: Memory>(checks: &mut Checks, forced: &Forced<'_, M>, shape: &Shape) {
    let ids = &forced.ids;
    check_id_width(checks, "forced_ids", ids.element(), shape.experts, forced.has_sentinel);
    checks.require(ids.columns() == shape.top_k, Kind::Shape, "forced_ids", || {
        format!("name {} experts per row, needs {}", ids.columns(), shape.top_k)
    });
    check_pointer(checks, "forced_ids", ids.address(), 1, ids.rows() * ids.columns());
    check_array(checks, "row_index", forced.row_index, shape.tokens);
    check_array(checks, "row_mode", forced.row_mode, shape.tokens);
}

/// That the integers can name every expert, and the sentinel where there is one.
fn check_id_width(checks: &mut Checks, name: &'static str, element: Element, experts: usize, has_sentinel: bool) {
    checks
        .require(Element::ROUTES.contains(&element), Kind::Dtype, name, || {
            format!("hold {element}, need u8, u16, i16 or i32")
        })
        // 16 bits hold every id of MAX_EXPERTS experts, and the sentinel.
        .require(element != Element::U8 || experts <= 256, Kind::Dtype, name, || {
            format!("hold u8, which cannot name {experts} experts; use u16")
        })
        .require(element != Element::U8 || experts != 256 || !has_sentinel, Kind::Dtype, name, || {
            "hold u8, in which 255 would be both an expert of 256 and the sentinel; use u16 or do without the sentinel"
                .into()
        });
}

pub(super) fn check_lse_use(checks: &mut Checks, config: &Config, given: bool) {
    checks.require(!given || config.needs_lse(), Kind::Config, "lse", || {
        format!("is only there for the score {:?}, not for {:?}", Score::Softmax, config.score)
    });
}

pub(crate) fn check_floats<M: Memory>(
    checks: &mut Checks,
    name: &'static str,
    matrix: &Matrix<'_, M>,
    needed: &[usize; 2],
) {
    checks.shape(name, &[matrix.rows(), matrix.columns()], needed).require(
        Element::FLOATS.contains(&matrix.element()),
        Kind::Dtype,
        name,
        || format!("holds {}, needs bf16, f16 or f32", matrix.element()),
    );
    // A matrix is aligned to its elements by construction.
    check_pointer(checks, name, matrix.address(), 1, matrix.rows() * matrix.columns());
}

pub(crate) fn check_array<T: Pod, M: Memory>(
    checks: &mut Checks,
    name: &'static str,
    array: Option<View<'_, T, M>>,
    needed: usize,
) {
    let Some(array) = array else { return };
    checks.shape(name, &[array.len()], &[needed]);
    check_pointer(checks, name, array.address(), align_of::<T>(), array.len());
}

pub(super) fn check_pointer(checks: &mut Checks, name: &'static str, address: usize, alignment: usize, len: usize) {
    checks.require(address != 0 || len == 0, Kind::Alignment, name, || "is a null pointer".into()).require(
        address.is_multiple_of(alignment),
        Kind::Alignment,
        name,
        || format!("address {address:#x} is not a multiple of {alignment}"),
    );
}
