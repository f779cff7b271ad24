//! The calls on shards of the vocabulary: sums of each, and outputs from all of them.

use std::ops::Range;

use super::outputs::{Outputs, outputs_of};
use super::{
    Config, KeepSets, PANEL, Partial, Sizes, check_error_word, check_row_array, check_rows, part, workspace_bytes,
};
use crate::abi::MOERL_MAX_SHARDS;
use crate::error::{Checks, Extent, Kind, Result};
use crate::memory::{Matrix, Memory, View, ViewMut};

/// One shard's part of a forward call: N rows of this shard's columns. Bad data is reported by [`Combine`], on every shard alike.
///
/// `records`, `sum_sq`, `other_labels`, `best` and `kept_records` are what the shards then exchange, by any collective that gathers them in the
/// order of the shards: `[shards, …]` of each is what [`Combine`] takes.
///
/// L is where the logits come from, as in [`Forward`](super::Forward).
#[derive(Debug)]
pub struct PartialCall<'a, M, L = Matrix<'a, M>> {
    /// `[N, P]` bf16, f16 or f32, this shard's columns: those of the tokens from [`Config::vocab_start`] on.
    pub logits: L,
    /// `[N, K]` i32 or i64: tokens of the whole vocabulary.
    pub tokens: Option<Matrix<'a, M>>,
    /// `[N]`: a temperature per row, instead of the configuration's.
    pub temperature: Option<View<'a, f32, M>>,
    /// `[N]`: 0 makes a row absent.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// The sampler's keep-set of each row, the same on every shard; K = 1.
    pub keep: Option<KeepSets<'a, M>>,
    /// `[N, K]` without gaps: the raw logits of the tokens, whoever owns them; needed for `rank`.
    pub label_logits: Option<View<'a, f32, M>>,
    /// Records of panels instead of rows: if every shard begins at a multiple of [`PANEL`], the outputs then have the bits of one shard.
    pub panel_records: bool,
    /// Records of a row: 1, or with `panel_records` at least ⌈V/[`PANEL`]⌉, the same on every shard. Those beyond the panels are not written.
    pub records_per_row: usize,
    /// `[N, records_per_row]`.
    pub records: ViewMut<'a, Partial, M>,
    /// `[N, records_per_row]`: Σ e² of each record.
    pub sum_sq: Option<ViewMut<'a, f32, M>>,
    /// `[N, K−1]` without gaps: the logits of the tokens behind the first, −∞ for those of other shards.
    pub other_labels: Option<ViewMut<'a, f32, M>>,
    /// `[N]`: the largest logit and its column as one number, for the argmax; the smallest of all shards is the row's.
    pub best: Option<ViewMut<'a, u64, M>>,
    /// `[N, K]` without gaps: how many of this shard's columns precede the token. The caller adds the shards' counts up.
    pub rank: Option<ViewMut<'a, i32, M>>,
    /// `[N]`.
    pub kept_records: Option<ViewMut<'a, Partial, M>>,
    /// One number, added to: in how many rows a token of this shard was not in its keep-set.
    pub label_added: Option<ViewMut<'a, u64, M>>,
    /// Scratch memory of at least [`workspace_bytes`]; lets several blocks share a row.
    pub workspace: Option<ViewMut<'a, u8, M>>,
}

impl<'a, M: Memory, L> PartialCall<'a, M, L> {
    /// A call on `logits` `[N, P]` that writes a record per row.
    pub fn new(logits: L, records: ViewMut<'a, Partial, M>) -> Self {
        PartialCall {
            logits,
            tokens: None,
            temperature: None,
            loss_mask: None,
            keep: None,
            label_logits: None,
            panel_records: false,
            records_per_row: 1,
            records,
            sum_sq: None,
            other_labels: None,
            best: None,
            rank: None,
            kept_records: None,
            label_added: None,
            workspace: None,
        }
    }

    /// The same call on other logits, for some of its rows.
    pub(crate) fn over<'b, K>(&'b mut self, logits: K, rows: Range<usize>) -> PartialCall<'b, M, K> {
        let ids = self.tokens.map_or(1, |tokens| tokens.columns());
        let per_row = self.records_per_row;
        let of = |width: usize| rows.start * width..rows.end * width;
        PartialCall {
            logits,
            tokens: self.tokens.map(|tokens| tokens.row_range(rows.clone())),
            temperature: self.temperature.map(|array| array.slice(rows.clone())),
            loss_mask: self.loss_mask.map(|array| array.slice(rows.clone())),
            keep: self.keep.map(|keep| keep.of_rows(&rows)),
            label_logits: self.label_logits.map(|array| array.slice(of(ids))),
            panel_records: self.panel_records,
            records_per_row: per_row,
            records: self.records.reborrow().slice(of(per_row)),
            sum_sq: part(&mut self.sum_sq, Some(&rows), per_row),
            other_labels: part(&mut self.other_labels, Some(&rows), ids.saturating_sub(1)),
            best: part(&mut self.best, Some(&rows), 1),
            rank: part(&mut self.rank, Some(&rows), ids),
            kept_records: part(&mut self.kept_records, Some(&rows), 1),
            label_added: part(&mut self.label_added, None, 1),
            workspace: part(&mut self.workspace, None, 1),
        }
    }

    /// Checks all of a call on these `logits` but what they overlap.
    pub(crate) fn check(&self, config: &Config, logits: &Matrix<'_, M>) -> (Sizes, Checks) {
        let sizes = Sizes::of(config, logits, &self.tokens);
        let Sizes { rows, ids, .. } = sizes;
        let mut checks = Checks::new();
        sizes.check(&mut checks, logits);
        checks.merge(check_rows(config, self.temperature, self.loss_mask, self.tokens, rows));
        let (needed, is_enough) = if self.panel_records {
            let panels = sizes.vocabulary.div_ceil(PANEL);
            (panels, self.records_per_row >= panels)
        } else {
            (1, self.records_per_row == 1)
        };
        checks.require(is_enough, Kind::Shape, "records_per_row", || {
            format!("is {}, needs {needed}", self.records_per_row)
        });
        let records = rows.saturating_mul(self.records_per_row);
        check_row_array(&mut checks, "records", Some(self.records.as_view()), records);
        check_row_array(&mut checks, "sum_sq", self.sum_sq.as_ref().map(ViewMut::as_view), records);
        check_row_array(&mut checks, "label_logits", self.label_logits, rows * ids);
        let other_labels = self.other_labels.as_ref().map(ViewMut::as_view);
        check_row_array(&mut checks, "other_labels", other_labels, rows * ids.saturating_sub(1));
        check_row_array(&mut checks, "best", self.best.as_ref().map(ViewMut::as_view), rows);
        check_row_array(&mut checks, "rank", self.rank.as_ref().map(ViewMut::as_view), rows * ids);
        check_row_array(&mut checks, "kept_records", self.kept_records.as_ref().map(ViewMut::as_view), rows);
        check_row_array(&mut checks, "label_added", self.label_added.as_ref().map(ViewMut::as_view), 1);
        if let Some(keep) = &self.keep {
            keep.check(&mut checks, rows, ids);
        }
        let asks_for_kept = self.kept_records.is_some();
        for (name, is_asked, needs, is_there) in [
            ("rank", self.rank.is_some(), "label_logits", self.label_logits.is_some()),
            ("kept_records", asks_for_kept, "keep", self.keep.is_some()),
            ("label_added", self.label_added.is_some(), "kept_records", asks_for_kept),
            ("rank", self.rank.is_some(), "tokens", self.tokens.is_some()),
            ("kept_records", asks_for_kept, "tokens", self.tokens.is_some()),
            ("other_labels", self.other_labels.is_some(), "tokens", self.tokens.is_some()),
        ] {
            let kind = if needs == "tokens" { Kind::Shape } else { Kind::MissingInput };
            checks.require(!is_asked || is_there, kind, name, || format!("is asked for, but there is no {needs}"));
        }
        if let Some(workspace) = &self.workspace {
            let needed = workspace_bytes(rows, sizes.vocabulary);
            checks.require(workspace.len() >= needed, Kind::Workspace, "workspace", || {
                format!("has {} bytes, needs {needed} for {rows} rows of {} columns", workspace.len(), sizes.vocabulary)
            });
        }
        (sizes, checks)
    }

    /// The arrays that hold zeros in absent rows: all but `best`.
    pub(crate) fn rows_of_zeros(&mut self) -> Vec<ViewMut<'_, u8, M>> {
        let floats = [&mut self.sum_sq, &mut self.other_labels];
        let floats = floats.into_iter().flatten().map(|array| array.reborrow().into_bytes());
        let records = [Some(&mut self.records), self.kept_records.as_mut()];
        let records = records.into_iter().flatten().map(|array| array.reborrow().into_bytes());
        let ranks = self.rank.as_mut().map(|array| array.reborrow().into_bytes());
        floats.chain(records).chain(ranks).collect()
    }

    /// The bytes of every array but the logits.
    pub(crate) fn extents(&self) -> Vec<Option<Extent>> {
        vec![
            self.tokens.map(|tokens| tokens.layout().extent("tokens", false)),
            self.temperature.map(|array| array.extent("temperature")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.keep.map(|keep| keep.ids.extent("kept_ids")),
            self.keep.map(|keep| keep.offsets.extent("kept_offsets")),
            self.label_logits.map(|array| array.extent("label_logits")),
            Some(self.records.extent("records")),
            self.sum_sq.as_ref().map(|array| array.extent("sum_sq")),
            self.other_labels.as_ref().map(|array| array.extent("other_labels")),
            self.best.as_ref().map(|array| array.extent("best")),
            self.rank.as_ref().map(|array| array.extent("rank")),
            self.kept_records.as_ref().map(|array| array.extent("kept_records")),
            self.label_added.as_ref().map(|array| array.extent("label_added")),
            self.workspace.as_ref().map(|array| array.extent("workspace")),
        ]
    }
}

impl<M: Memory> PartialCall<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Temperature`, `Softcap`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `Workspace`, `MissingInput`,
    /// `KeepSetWithManyIds`.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let (sizes, mut checks) = self.check(config, &self.logits);
        let mut extents = vec![Some(self.logits.layout().extent("logits", false))];
        extents.extend(self.extents());
        checks.disjoint(&extents);
        checks.finish().map(|()| sizes)
    }
}

/// The outputs of a forward call from the records of all shards, in the order of the shards. Every device that merges the same records gets the
/// same bits.
#[derive(Debug)]
pub struct Combine<'a, M> {
    /// For each shard, how many of its `records_per_row` are valid: 1, or with [`PartialCall::panel_records`] its panels. At most 64 shards.
    pub counts: &'a [usize],
    /// As in [`PartialCall`].
    pub records_per_row: usize,
    /// `[shards, N, records_per_row]`.
    pub records: View<'a, Partial, M>,
    /// `[shards, N, records_per_row]`: needed for `sum_p2` and `sum_sq`.
    pub shard_sum_sq: Option<View<'a, f32, M>>,
    /// `[shards, N, K−1]`: needed for `logprobs` where K > 1.
    pub shard_other_labels: Option<View<'a, f32, M>>,
    /// `[shards, N]`: needed for `argmax`.
    pub shard_best: Option<View<'a, u64, M>>,
    /// `[shards, N]`: needed for the kept outputs.
    pub kept_records: Option<View<'a, Partial, M>>,
    /// `[N, K]` i32 or i64.
    pub tokens: Option<Matrix<'a, M>>,
    /// `[N]`.
    pub temperature: Option<View<'a, f32, M>>,
    /// `[N]`.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// The keep-sets; needed for the kept outputs.
    pub keep: Option<KeepSets<'a, M>>,
    /// `[N, K]`, as in [`Forward`](super::Forward); so are the following.
    pub logprobs: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub entropy: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub max: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub log_sum: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub lse: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub sum_p2: Option<ViewMut<'a, f32, M>>,
    /// `[N, K]`: the counts of all shards, added up. Becomes −1 where there is no rank.
    pub rank: Option<ViewMut<'a, i32, M>>,
    /// `[N]`.
    pub argmax: Option<ViewMut<'a, i32, M>>,
    /// `[N]`: what backward needs, on every shard.
    pub saved: Option<ViewMut<'a, Partial, M>>,
    /// `[N]`.
    pub sum_sq: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub kept_logprobs: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub kept_entropy: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub kept_mass: Option<ViewMut<'a, f32, M>>,
    /// `[N]`.
    pub kept_saved: Option<ViewMut<'a, Partial, M>>,
    /// Where bad data is reported.
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The caller's number for this call, reported with a fault.
    pub tag: u16,
}

impl<'a, M: Memory> Combine<'a, M> {
    /// A call on the row records of so many shards that asks for nothing yet.
    pub fn new(counts: &'a [usize], records: View<'a, Partial, M>) -> Self {
        Combine {
            counts,
            records_per_row: 1,
            records,
            shard_sum_sq: None,
            shard_other_labels: None,
            shard_best: None,
            kept_records: None,
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
            kept_logprobs: None,
            kept_entropy: None,
            kept_mass: None,
            kept_saved: None,
            errors: None,
            tag: 0,
        }
    }

    /// N.
    pub(crate) fn rows(&self) -> usize {
        self.records.len() / self.counts.len().max(1) / self.records_per_row.max(1)
    }

    /// K.
    pub(crate) fn ids(&self) -> usize {
        self.tokens.map_or(1, |tokens| tokens.columns())
    }

    /// Checks the whole call before anything is queued. Of the configuration it needs `vocab_total`, or the `vocabulary` of all shards.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Temperature`, `Softcap`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `MissingInput`, `KeepSetWithManyIds`.
    /// Returns the number of tokens of the whole vocabulary.
    pub fn validate(&self, config: &Config) -> Result<usize> {
        let (rows, ids, shards) = (self.rows(), self.ids(), self.counts.len());
        let mut checks = Checks::new();
        let total = config.vocab_total.or(config.vocabulary);
        checks.require(
            total.is_some_and(|total| (1..=i32::MAX as usize).contains(&total)),
            Kind::Shape,
            "vocab_total",
            || format!("of all shards must be given, 1 to {}", i32::MAX),
        );
        checks.require((1..=MOERL_MAX_SHARDS as usize).contains(&shards), Kind::Shape, "counts", || {
            format!("are of {shards} shards, needs 1 to {MOERL_MAX_SHARDS}")
        });
        let valid = |&count: &usize| (1..=self.records_per_row).contains(&count);
        checks.require(self.counts.iter().all(valid), Kind::Shape, "counts", || {
            format!("must be 1 to the {} records of a row, are {:?}", self.records_per_row, self.counts)
        });
        checks.require(rows <= u32::MAX as usize, Kind::Shape, "records", || {
            format!("are of {rows} rows, at most {} are possible", u32::MAX)
        });
        checks.merge(check_rows(config, self.temperature, self.loss_mask, self.tokens, rows));
        let records = shards * rows * self.records_per_row;
        check_row_array(&mut checks, "records", Some(self.records), records);
        check_row_array(&mut checks, "shard_sum_sq", self.shard_sum_sq, records);
        check_row_array(
            &mut checks,
            "shard_other_labels",
            self.shard_other_labels,
            shards * rows * ids.saturating_sub(1),
        );
        check_row_array(&mut checks, "shard_best", self.shard_best, shards * rows);
        check_row_array(&mut checks, "kept_records", self.kept_records, shards * rows);
        self.outputs().check(&mut checks, rows, ids);
        if let Some(keep) = &self.keep {
            keep.check(&mut checks, rows, ids);
        }
        self.check_inputs(&mut checks);
        check_error_word(&mut checks, &self.errors);
        checks.disjoint(&self.extents());
        checks.finish().map(|()| total.unwrap_or_default())
    }

    /// What each output is made of.
    fn check_inputs(&self, checks: &mut Checks) {
        let squares = self.sum_p2.is_some() || self.sum_sq.is_some();
        let many = self.logprobs.is_some() && self.ids() > 1;
        let kept = self.kept_logprobs.is_some()
            || self.kept_entropy.is_some()
            || self.kept_mass.is_some()
            || self.kept_saved.is_some();
        for (name, is_asked, needs, is_there) in [
            ("logprobs", self.logprobs.is_some(), "tokens", self.tokens.is_some()),
            ("rank", self.rank.is_some(), "tokens", self.tokens.is_some()),
            ("kept_logprobs", kept, "tokens", self.tokens.is_some()),
            ("sum_p2", squares, "shard_sum_sq", self.shard_sum_sq.is_some()),
            ("logprobs", many, "shard_other_labels", self.shard_other_labels.is_some()),
            ("argmax", self.argmax.is_some(), "shard_best", self.shard_best.is_some()),
            ("kept_logprobs", kept, "kept_records", self.kept_records.is_some()),
            ("kept_records", self.kept_records.is_some(), "keep", self.keep.is_some()),
        ] {
            let kind = if needs == "tokens" { Kind::Shape } else { Kind::MissingInput };
            checks.require(!is_asked || is_there, kind, name, || format!("needs {needs}"));
        }
    }

    fn extents(&self) -> Vec<Option<Extent>> {
        let mut extents = vec![
            Some(self.records.extent("records")),
            self.shard_sum_sq.map(|array| array.extent("shard_sum_sq")),
            self.shard_other_labels.map(|array| array.extent("shard_other_labels")),
            self.shard_best.map(|array| array.extent("shard_best")),
            self.kept_records.map(|array| array.extent("kept_records")),
            self.tokens.map(|tokens| tokens.layout().extent("tokens", false)),
            self.temperature.map(|array| array.extent("temperature")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.keep.map(|keep| keep.offsets.extent("kept_offsets")),
            self.errors.as_ref().map(|array| array.extent("errors")),
        ];
        extents.extend(self.outputs().extents());
        extents
    }

    fn outputs(&self) -> Outputs<'_, 'a, M> {
        outputs_of!(self)
    }
}
