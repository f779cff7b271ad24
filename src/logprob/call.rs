//! The calls on whole vocabularies: forward and backward.

use std::ops::Range;

use bytemuck::Pod;

use super::outputs::{Outputs, outputs_of};
#[cfg(doc)]
use super::workspace_bytes;
use super::{Config, KeepSets, Partial, Sizes, check_error_word, check_row_array, check_rows};
use crate::element::Element;
use crate::error::{Checks, Extent, Kind, Result};
use crate::memory::{Matrix, MatrixMut, Memory, View, ViewMut};

/// One forward call: N rows, V counted of P columns. Ask for any outputs; asking for more does not change the bits of the others.
///
/// L is where the logits come from: a matrix of them, or what they are a product of ([`Projection`](crate::linear_logprob::Projection)).
#[derive(Debug)]
pub struct Forward<'a, M, L = Matrix<'a, M>> {
    /// `[N, P]` bf16, f16 or f32; any row stride, any address that is a multiple of the element's size. Never written.
    pub logits: L,
    /// `[N, K]` i32 or i64, any row stride: the chosen tokens, any number of them. Without them there are no `logprobs`, ranks or kept outputs.
    pub tokens: Option<Matrix<'a, M>>,
    /// `[N]`: a temperature per row, instead of the configuration's.
    pub temperature: Option<View<'a, f32, M>>,
    /// `[N]`: 0 makes a row absent.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// The sampler's keep-set of each row, where K = 1.
    pub keep: Option<KeepSets<'a, M>>,
    /// `[N, K]` without gaps, at most 0, in nats.
    pub logprobs: Option<ViewMut<'a, f32, M>>,
    /// `[N]`, at least 0, in nats.
    pub entropy: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: M/T. With `log_sum`, log-probabilities can be formed without losing digits to a common offset of the logits.
    pub max: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: log s, at least 0.
    pub log_sum: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the log-sum-exp M/T + log s.
    pub lse: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: Σ p². Has no gradient.
    pub sum_p2: Option<ViewMut<'a, f32, M>>,
    /// `[N, K]` without gaps: how many columns precede the token by their logit, the lower column first among equals; 0 is the greedy choice,
    /// −1 none.
    pub rank: Option<ViewMut<'a, i32, M>>,
    /// `[N]`: the greedy choice, the lowest column that holds the largest logit; −1 none.
    pub argmax: Option<ViewMut<'a, i32, M>>,
    /// `[N]`: what backward needs.
    pub saved: Option<ViewMut<'a, Partial, M>>,
    /// `[N]`: q = Σ e², in the units of `saved`.
    pub sum_sq: Option<ViewMut<'a, f32, M>>,
    /// `[N, K−1]` without gaps: the logits of the tokens behind the first, after the softcap.
    pub other_labels: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the log-probability of the token among the kept ones.
    pub kept_logprobs: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the entropy of the kept ones.
    pub kept_entropy: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the probability of the kept ones in the whole vocabulary, at most 1. Needs `saved`.
    pub kept_mass: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: what backward needs of the keep-sets.
    pub kept_saved: Option<ViewMut<'a, Partial, M>>,
    /// One number, added to: in how many rows the token was not in its keep-set.
    pub label_added: Option<ViewMut<'a, u64, M>>,
    /// Scratch memory of at least [`workspace_bytes`]; lets several blocks share a row, which is faster for few rows.
    pub workspace: Option<ViewMut<'a, u8, M>>,
    /// Where bad data is reported.
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The caller's number for this call, reported with a fault.
    pub tag: u16,
}

impl<'a, M: Memory, L> Forward<'a, M, L> {
    /// A call on `logits` `[N, P]` that asks for nothing yet.
    pub fn new(logits: L) -> Self {
        Forward {
            logits,
            tokens: None,
            temperature: None,
            loss_mask: None,
            keep: None,
            logprobs: None,
            entropy: None,
            max: None,
            log_sum: None,
            lse: None,
            sum_p2: None,
            rank: None,
            argmax: None,
            saved: None,
            sum_sq: None,
            other_labels: None,
            kept_logprobs: None,
            kept_entropy: None,
            kept_mass: None,
            kept_saved: None,
            label_added: None,
            workspace: None,
            errors: None,
            tag: 0,
        }
    }

    /// The same call on other logits, for some of its rows.
    pub(crate) fn over<'b, K>(&'b mut self, logits: K, rows: Range<usize>) -> Forward<'b, M, K> {
        let ids = self.tokens.map_or(1, |tokens| tokens.columns());
        Forward {
            logits,
            tokens: self.tokens.map(|tokens| tokens.row_range(rows.clone())),
            temperature: self.temperature.map(|array| array.slice(rows.clone())),
            loss_mask: self.loss_mask.map(|array| array.slice(rows.clone())),
            keep: self.keep.map(|keep| keep.of_rows(&rows)),
            logprobs: part(&mut self.logprobs, Some(&rows), ids),
            entropy: part(&mut self.entropy, Some(&rows), 1),
            max: part(&mut self.max, Some(&rows), 1),
            log_sum: part(&mut self.log_sum, Some(&rows), 1),
            lse: part(&mut self.lse, Some(&rows), 1),
            sum_p2: part(&mut self.sum_p2, Some(&rows), 1),
            rank: part(&mut self.rank, Some(&rows), ids),
            argmax: part(&mut self.argmax, Some(&rows), 1),
            saved: part(&mut self.saved, Some(&rows), 1),
            sum_sq: part(&mut self.sum_sq, Some(&rows), 1),
            other_labels: part(&mut self.other_labels, Some(&rows), ids.saturating_sub(1)),
            kept_logprobs: part(&mut self.kept_logprobs, Some(&rows), 1),
            kept_entropy: part(&mut self.kept_entropy, Some(&rows), 1),
            kept_mass: part(&mut self.kept_mass, Some(&rows), 1),
            kept_saved: part(&mut self.kept_saved, Some(&rows), 1),
            label_added: part(&mut self.label_added, None, 1),
            workspace: part(&mut self.workspace, None, 1),
            errors: part(&mut self.errors, None, 1),
            tag: self.tag,
        }
    }

    /// Checks all of a call on these `logits` but what they overlap.
    pub(crate) fn check(&self, config: &Config, logits: &Matrix<'_, M>) -> (Sizes, Checks) {
        let sizes = Sizes::of(config, logits, &self.tokens);
        let Sizes { rows, ids, .. } = sizes;
        let mut checks = Checks::new();
        sizes.check(&mut checks, logits);
        checks.require(
            config.vocab_start == 0 && sizes.vocab_total == sizes.vocabulary,
            Kind::Config,
            "vocab_start",
            || "or vocab_total says that the logits are a shard, whose call is logprob_partial".into(),
        );
        checks.merge(check_rows(config, self.temperature, self.loss_mask, self.tokens, rows));
        self.check_tokens(&mut checks);
        self.outputs().check(&mut checks, rows, ids);
        let other_labels = self.other_labels.as_ref().map(ViewMut::as_view);
        check_row_array(&mut checks, "other_labels", other_labels, rows * ids.saturating_sub(1));
        check_row_array(&mut checks, "label_added", self.label_added.as_ref().map(ViewMut::as_view), 1);
        if let Some(keep) = &self.keep {
            keep.check(&mut checks, rows, ids);
        }
        check_error_word(&mut checks, &self.errors);
        if let Some(workspace) = &self.workspace {
            let needed = super::workspace_bytes(rows, sizes.vocabulary);
            checks.require(workspace.len() >= needed, Kind::Workspace, "workspace", || {
                format!("has {} bytes, needs {needed} for {rows} rows of {} columns", workspace.len(), sizes.vocabulary)
            });
        }
        (sizes, checks)
    }

    /// What needs tokens, keep-sets or `saved`.
    fn check_tokens(&self, checks: &mut Checks) {
        for (name, is_asked) in [
            ("logprobs", self.logprobs.is_some()),
            ("rank", self.rank.is_some()),
            ("other_labels", self.other_labels.is_some()),
            ("kept_logprobs", self.asks_for_kept()),
        ] {
            checks.require(!is_asked || self.tokens.is_some(), Kind::Shape, name, || {
                "are asked for, but there are no tokens".into()
            });
        }
        checks
            .require(!self.asks_for_kept() || self.keep.is_some(), Kind::MissingInput, "keep", || {
                "is needed for the kept outputs".into()
            })
            .require(self.kept_mass.is_none() || self.saved.is_some(), Kind::MissingInput, "saved", || {
                "is needed for kept_mass".into()
            });
    }

    /// The arrays that hold zeros in absent rows: all but `rank` and `argmax`.
    pub(crate) fn rows_of_zeros(&mut self) -> Vec<ViewMut<'_, u8, M>> {
        let floats = [
            &mut self.logprobs,
            &mut self.entropy,
            &mut self.max,
            &mut self.log_sum,
            &mut self.lse,
            &mut self.sum_p2,
            &mut self.sum_sq,
            &mut self.other_labels,
            &mut self.kept_logprobs,
            &mut self.kept_entropy,
            &mut self.kept_mass,
        ];
        let records = [&mut self.saved, &mut self.kept_saved];
        let floats = floats.into_iter().flatten().map(|array| array.reborrow().into_bytes());
        floats.chain(records.into_iter().flatten().map(|array| array.reborrow().into_bytes())).collect()
    }

    /// The bytes of every array but the logits.
    pub(crate) fn extents(&self) -> Vec<Option<Extent>> {
        let mut extents = vec![
            self.tokens.map(|tokens| tokens.layout().extent("tokens", false)),
            self.temperature.map(|array| array.extent("temperature")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.keep.map(|keep| keep.ids.extent("kept_ids")),
            self.keep.map(|keep| keep.offsets.extent("kept_offsets")),
            self.label_added.as_ref().map(|array| array.extent("label_added")),
            self.other_labels.as_ref().map(|array| array.extent("other_labels")),
            self.workspace.as_ref().map(|array| array.extent("workspace")),
            self.errors.as_ref().map(|array| array.extent("errors")),
        ];
        extents.extend(self.outputs().extents());
        extents
    }

    /// True if an output of the keep-sets is asked for.
    pub(crate) fn asks_for_kept(&self) -> bool {
        self.kept_logprobs.is_some()
            || self.kept_entropy.is_some()
            || self.kept_mass.is_some()
            || self.kept_saved.is_some()
            || self.label_added.is_some()
    }

    /// True if an output of the whole rows is asked for; otherwise only kept logits are read.
    pub(crate) fn asks_for_rows(&self) -> bool {
        let kept = ["kept_logprobs", "kept_entropy", "kept_mass"];
        self.outputs().floats.iter().any(|(name, array)| array.is_some() && !kept.contains(name))
            || self.rank.is_some()
            || self.argmax.is_some()
            || self.saved.is_some()
            || self.other_labels.is_some()
            || !self.asks_for_kept()
    }

    fn outputs(&self) -> Outputs<'_, 'a, M> {
        outputs_of!(self)
    }
}

impl<'a, M: Memory> Forward<'a, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Temperature`, `Softcap`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `Workspace`, `Config`, `MissingInput`,
    /// `KeepSetWithManyIds`.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let (sizes, mut checks) = self.check(config, &self.logits);
        let mut extents = vec![Some(self.logits.layout().extent("logits", false))];
        extents.extend(self.extents());
        checks.disjoint(&extents);
        checks.finish().map(|()| sizes)
    }
}

/// What `rows` have of an array of `width` elements a row; all of it without `rows`.
pub(crate) fn part<'b, T: Pod, M: Memory>(
    array: &'b mut Option<ViewMut<'_, T, M>>,
    rows: Option<&Range<usize>>,
    width: usize,
) -> Option<ViewMut<'b, T, M>> {
    let array = array.as_mut()?.reborrow();
    Some(match rows {
        Some(rows) => array.slice(rows.start * width..rows.end * width),
        None => array,
    })
}

/// Where backward reads logits and writes their gradient.
#[derive(Debug)]
pub enum Gradient<'a, M> {
    /// The gradient replaces the logits `[N, P]`, in their type. Same bits as out of place.
    InPlace(MatrixMut<'a, M>),
    /// The gradient goes elsewhere. The same memory twice, with one type and stride, is the same as in place.
    Into {
        /// `[N, P]` bf16, f16 or f32.
        logits: Matrix<'a, M>,
        /// `[N, P]`, in the logits' type or f32, or in bf16 of f32 logits. Columns from V on are written +0.0.
        d_logits: MatrixMut<'a, M>,
    },
}

impl<M: Memory> Gradient<'_, M> {
    /// The logits.
    pub fn logits(&self) -> Matrix<'_, M> {
        match self {
            Gradient::InPlace(both) => both.as_matrix(),
            Gradient::Into { logits, .. } => *logits,
        }
    }

    /// The type of the gradient's elements.
    pub fn d_logits_element(&self) -> Element {
        self.target().element()
    }

    /// The gradient's matrix, for its facts.
    fn target(&self) -> &MatrixMut<'_, M> {
        match self {
            Gradient::InPlace(both) => both,
            Gradient::Into { d_logits, .. } => d_logits,
        }
    }
}

/// One backward call. Rows whose upstream gradients are all zero, and absent ones, are written +0.0 without being read.
///
/// G is where the logits and their gradient are: in memory, or never as a whole ([`Gradients`](crate::linear_logprob::Gradients)).
#[derive(Debug)]
pub struct Backward<'a, M, G = Gradient<'a, M>> {
    /// The logits of the forward call, and where their gradient goes.
    pub gradient: G,
    /// `[N]`: what the forward call saved. May be used any number of times.
    pub saved: View<'a, Partial, M>,
    /// `[N, K]` i32 or i64: the tokens of the forward call. Needed with `d_logprobs` and the gradients of kept outputs, and wherever a token made a
    /// row absent.
    pub tokens: Option<Matrix<'a, M>>,
    /// `[N]`: the temperatures of the forward call.
    pub temperature: Option<View<'a, f32, M>>,
    /// `[N]`: the mask of the forward call.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// The keep-sets of the forward call. Needed with `d_kept_logprobs` and `d_kept_entropy`.
    pub keep: Option<KeepSets<'a, M>>,
    /// `[N]`: what the forward call saved of them. Needed likewise.
    pub kept_saved: Option<View<'a, Partial, M>>,
    /// `[N, K]` without gaps: the gradient of the loss by `logprobs`.
    pub d_logprobs: Option<View<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `entropy`.
    pub d_entropy: Option<View<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `lse`.
    pub d_lse: Option<View<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `kept_logprobs`.
    pub d_kept_logprobs: Option<View<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `kept_entropy`.
    pub d_kept_entropy: Option<View<'a, f32, M>>,
}

impl<'a, M: Memory, G> Backward<'a, M, G> {
    /// A call without upstream gradients yet.
    pub fn new(gradient: G, saved: View<'a, Partial, M>) -> Self {
        Backward {
            gradient,
            saved,
            tokens: None,
            temperature: None,
            loss_mask: None,
            keep: None,
            kept_saved: None,
            d_logprobs: None,
            d_entropy: None,
            d_lse: None,
            d_kept_logprobs: None,
            d_kept_entropy: None,
        }
    }

    /// The same call on other logits, for some of its rows.
    pub(crate) fn over<K>(&self, gradient: K, rows: Range<usize>) -> Backward<'a, M, K> {
        let ids = self.tokens.map_or(1, |tokens| tokens.columns());
        let upstream = |array: Option<View<'a, f32, M>>, width| {
            array.map(|array| array.slice(rows.start * width..rows.end * width))
        };
        Backward {
            gradient,
            saved: self.saved.slice(rows.clone()),
            tokens: self.tokens.map(|tokens| tokens.row_range(rows.clone())),
            temperature: upstream(self.temperature, 1),
            loss_mask: self.loss_mask.map(|array| array.slice(rows.clone())),
            keep: self.keep.map(|keep| keep.of_rows(&rows)),
            kept_saved: self.kept_saved.map(|array| array.slice(rows.clone())),
            d_logprobs: upstream(self.d_logprobs, ids),
            d_entropy: upstream(self.d_entropy, 1),
            d_lse: upstream(self.d_lse, 1),
            d_kept_logprobs: upstream(self.d_kept_logprobs, 1),
            d_kept_entropy: upstream(self.d_kept_entropy, 1),
        }
    }

    /// Checks all of a call on these `logits` but where their gradient goes, and what overlaps.
    pub(crate) fn check(&self, config: &Config, logits: &Matrix<'_, M>) -> (Sizes, Checks) {
        let sizes = Sizes::of(config, logits, &self.tokens);
        let Sizes { rows, ids, .. } = sizes;
        let mut checks = Checks::new();
        sizes.check(&mut checks, logits);
        checks.merge(check_rows(config, self.temperature, self.loss_mask, self.tokens, rows));
        for (name, array) in self.upstream() {
            // A token is a member of its keep-set.
            let needs_tokens = ["d_logprobs", "d_kept_logprobs", "d_kept_entropy"].contains(&name);
            checks.require(array.is_none() || !needs_tokens || self.tokens.is_some(), Kind::Shape, name, || {
                "are given, but there are no tokens".into()
            });
        }
        checks.require(
            self.upstream().iter().any(|(_, array)| array.is_some()),
            Kind::MissingInput,
            "d_logprobs",
            || "or another upstream gradient is needed".into(),
        );
        for (name, array) in self.upstream() {
            check_row_array(&mut checks, name, array, rows * if name == "d_logprobs" { ids } else { 1 });
        }
        check_row_array(&mut checks, "saved", Some(self.saved), rows);
        check_row_array(&mut checks, "kept_saved", self.kept_saved, rows);
        if let Some(keep) = &self.keep {
            keep.check(&mut checks, rows, ids);
        }
        for (name, is_there) in [("keep", self.keep.is_some()), ("kept_saved", self.kept_saved.is_some())] {
            checks.require(!self.has_kept_upstream() || is_there, Kind::MissingInput, name, || {
                "is needed for the gradients of the kept outputs".into()
            });
        }
        (sizes, checks)
    }

    /// The bytes of every array but the logits and their gradient.
    pub(crate) fn extents(&self) -> Vec<Option<Extent>> {
        let mut extents = vec![
            self.tokens.map(|tokens| tokens.layout().extent("tokens", false)),
            self.temperature.map(|array| array.extent("temperature")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.keep.map(|keep| keep.ids.extent("kept_ids")),
            self.keep.map(|keep| keep.offsets.extent("kept_offsets")),
            Some(self.saved.extent("saved")),
            self.kept_saved.map(|array| array.extent("kept_saved")),
        ];
        extents.extend(self.upstream().map(|(name, array)| array.map(|array| array.extent(name))));
        extents
    }

    fn upstream(&self) -> [(&'static str, Option<View<'a, f32, M>>); 5] {
        [
            ("d_logprobs", self.d_logprobs),
            ("d_entropy", self.d_entropy),
            ("d_lse", self.d_lse),
            ("d_kept_logprobs", self.d_kept_logprobs),
            ("d_kept_entropy", self.d_kept_entropy),
        ]
    }

    /// True if an output of the keep-sets has a gradient.
    pub(crate) fn has_kept_upstream(&self) -> bool {
        self.d_kept_logprobs.is_some() || self.d_kept_entropy.is_some()
    }
}

impl<M: Memory> Backward<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Temperature`, `Softcap`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `MissingInput`, `KeepSetWithManyIds`.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let logits = self.gradient.logits();
        let (sizes, mut checks) = self.check(config, &logits);
        self.check_target(&mut checks, &logits);
        let mut extents = self.extents();
        extents.push((!self.is_in_place()).then(|| logits.layout().extent("logits", false)));
        extents.push(Some(self.gradient.target().layout().extent("d_logits", true)));
        checks.disjoint(&extents);
        checks.finish().map(|()| sizes)
    }

    fn check_target(&self, checks: &mut Checks, logits: &Matrix<'_, M>) {
        let target = self.gradient.target();
        checks.shape("d_logits", &[target.rows(), target.columns()], &[logits.rows(), logits.columns()]).require(
            target.element() == logits.element()
                || target.element() == Element::F32
                || (logits.element() == Element::F32 && target.element() == Element::Bf16),
            Kind::Dtype,
            "d_logits",
            || {
                let other = if logits.element() == Element::F32 { "bf16" } else { "f32" };
                format!("holds {}, needs {} (as the logits) or {other}", target.element(), logits.element())
            },
        );
    }

    /// True if every gradient replaces its logit.
    pub fn is_in_place(&self) -> bool {
        self.gradient.logits().layout() == self.gradient.target().layout()
    }
}
