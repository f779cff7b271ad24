//! The calls: their arrays, and every check that the host can make.

use super::{Config, CountsFrom, Plan, Scope};
use crate::abi::MoerlPanelSums;
use crate::backend::Backend;
use crate::error::{Checks, Extent, Kind, Result};
use crate::gate::{self, Output, Score, check_array, check_floats, check_sizes};
use crate::memory::{Matrix, Memory, View, ViewMut};
use crate::segments::Segments;

/// Bytes by which a workspace may have to be cut for its f64 to be aligned.
const ALIGNMENT: usize = 8;

/// Sums over the rows of a micro-batch, for S segments (1 for [`Scope::Batch`]) and E experts. Every array is additive: sum it over micro-batches and ranks with whatever
/// collective there is.
#[derive(Debug)]
pub struct Partial<'a, M> {
    /// `[T, E]` bf16, f16 or f32, any row stride.
    pub router_logits: Matrix<'a, M>,
    /// `[T, k]`: the ids that forward returned. A row with an id outside `[0, E)` does not count. Needed for [`CountsFrom::Routes`].
    pub topk_ids: Option<View<'a, i32, M>>,
    /// `[T, E]` bf16, f16 or f32: the logits of the reference router. Needed for `router_kl`.
    pub ref_logits: Option<Matrix<'a, M>>,
    /// `[T, k]`: what forward saved. Rows that it marked as having no weights do not count.
    pub selected_logits: Option<View<'a, f32, M>>,
    /// `[T]`: 0 makes a row padding.
    pub token_mask: Option<View<'a, u8, M>>,
    /// One number on the device: rows from it on are padding.
    pub row_count: Option<View<'a, i32, M>>,
    /// `[S, E]`: Σ_t P_te.
    pub probabilities: ViewMut<'a, f64, M>,
    /// `[S, E]`: n_e.
    pub counts: ViewMut<'a, u64, M>,
    /// `[S]`: T_v, the rows that count.
    pub rows: ViewMut<'a, u64, M>,
    /// `[3]`: Σ LSE², Σ H, Σ KL.
    pub totals: ViewMut<'a, f64, M>,
    /// `[1]`: rows left out because their sums are not numbers.
    pub nonfinite: ViewMut<'a, u64, M>,
    /// The sums are added to what is there: micro-batches of the same segments. False from a constructor: they replace it.
    pub accumulate: bool,
    /// Scratch memory of [`Partial::workspace_bytes`].
    pub workspace: ViewMut<'a, u8, M>,
}

/// Where the parts of the workspace of [`Partial`] begin, in bytes from a multiple of 8.
pub(crate) struct PartialWorkspace {
    pub(crate) probabilities: usize,
    pub(crate) counts: usize,
    end: usize,
}

impl PartialWorkspace {
    /// The sums of panels come first, then `[panels, E]` f32, then `[panels, E]` u32.
    pub(crate) fn of(panels: usize, experts: usize) -> PartialWorkspace {
        let probabilities = panels * size_of::<MoerlPanelSums>();
        let counts = probabilities + panels * experts * size_of::<f32>();
        PartialWorkspace { probabilities, counts, end: counts + panels * experts * size_of::<u32>() }
    }
}

/// A workspace from its first multiple of 8 on.
pub(crate) fn aligned<M: Memory>(workspace: ViewMut<'_, u8, M>) -> ViewMut<'_, u8, M> {
    let skipped = workspace.address().next_multiple_of(ALIGNMENT) - workspace.address();
    let len = workspace.len();
    workspace.slice(skipped.min(len)..len)
}

impl<M: Memory> Partial<'_, M> {
    /// Bytes of workspace that a call takes for E experts.
    pub fn workspace_bytes<B: Backend<Memory = M>>(plan: &Plan<B>, experts: usize) -> usize {
        PartialWorkspace::of(plan.panel_count(), experts).end + ALIGNMENT
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `MissingInput`, `Workspace`.
    pub fn validate<B: Backend<Memory = M>>(
        &self,
        router: &gate::Config,
        config: &Config,
        plan: &Plan<B>,
    ) -> Result<gate::Shape> {
        let mut checks = Checks::new();
        checks.merge(config.validate(router));
        let (tokens, experts) = (self.router_logits.rows(), self.router_logits.columns());
        let columns = self.topk_ids.filter(|_| tokens > 0).map(|ids| ids.len() / tokens);
        let shape = check_sizes(&mut checks, router, tokens, experts, columns);
        check_plan(&mut checks, config, plan.segments(), Some(tokens));
        let gate::Shape { tokens, experts, .. } = shape;
        check_floats(&mut checks, "router_logits", &self.router_logits, &[tokens, experts]);
        check_array(&mut checks, "topk_ids", self.topk_ids, tokens * shape.top_k);
        check_array(&mut checks, "selected_logits", self.selected_logits, tokens * shape.top_k);
        check_array(&mut checks, "token_mask", self.token_mask, tokens);
        check_array(&mut checks, "row_count", self.row_count, 1);
        let needs_ids = config.counts_from == CountsFrom::Routes;
        checks
            .require(self.topk_ids.is_some() || !needs_ids, Kind::MissingInput, "topk_ids", || {
                "are what the counts are of; hand them, or count from TopK".into()
            })
            .require(self.ref_logits.is_some() || config.router_kl == 0.0, Kind::MissingInput, "ref_logits", || {
                "are needed by the divergence from a reference".into()
            });
        if let Some(logits) = &self.ref_logits {
            check_floats(&mut checks, "ref_logits", logits, &[tokens, experts]);
        }
        let segments = plan.segments().len();
        check_array(&mut checks, "probabilities", Some(self.probabilities.as_view()), segments * experts);
        check_array(&mut checks, "counts", Some(self.counts.as_view()), segments * experts);
        check_array(&mut checks, "rows", Some(self.rows.as_view()), segments);
        check_array(&mut checks, "totals", Some(self.totals.as_view()), 3);
        check_array(&mut checks, "nonfinite", Some(self.nonfinite.as_view()), 1);
        check_workspace(&mut checks, &self.workspace, Self::workspace_bytes(plan, experts));
        checks.disjoint(&[
            Some(self.router_logits.layout().extent("router_logits", false)),
            self.topk_ids.map(|array| array.extent("topk_ids")),
            self.ref_logits.map(|logits| logits.layout().extent("ref_logits", false)),
            self.selected_logits.map(|array| array.extent("selected_logits")),
            self.token_mask.map(|array| array.extent("token_mask")),
            self.row_count.map(|array| array.extent("row_count")),
            Some(self.probabilities.extent("probabilities")),
            Some(self.counts.extent("counts")),
            Some(self.rows.extent("rows")),
            Some(self.totals.extent("totals")),
            Some(self.nonfinite.extent("nonfinite")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish().map(|()| shape)
    }
}

/// From sums to losses, and to what their gradients are multiplied by. The sums may be of any number of micro-batches and ranks.
#[derive(Debug)]
pub struct Finish<'a, M> {
    /// E.
    pub experts: usize,
    /// `[S, E]`: Σ_t P_te.
    pub probabilities: View<'a, f64, M>,
    /// `[S]`: T_v, the rows in them.
    pub rows: View<'a, u64, M>,
    /// `[3]`: Σ LSE², Σ H, Σ KL.
    pub totals: View<'a, f64, M>,
    /// `[S, E]`: n_e.
    pub counts: View<'a, u64, M>,
    /// `[S]`: T_n, the rows that `counts` counts, where that is another number than `rows` (a global batch).
    pub count_rows: Option<View<'a, u64, M>>,
    /// The segments with a row, where ranks have different ones: their number over all ranks. `None` or 0: counted here.
    pub valid_segments: Option<u64>,
    /// `[4]`: the values of balance, z, entropy and divergence; their sum is the loss.
    pub values: ViewMut<'a, f64, M>,
    /// `[S, E]`: the derivative of the balance loss by P.
    pub q: ViewMut<'a, f32, M>,
    /// `[4]`: what the gradients of balance, z, entropy and divergence are multiplied by.
    pub coefficients: ViewMut<'a, f32, M>,
    /// Scratch memory of [`Finish::workspace_bytes`].
    pub workspace: ViewMut<'a, u8, M>,
}

impl<M: Memory> Finish<'_, M> {
    /// Bytes of workspace that a call takes.
    pub fn workspace_bytes<B: Backend<Memory = M>>(plan: &Plan<B>) -> usize {
        plan.segments().len() * size_of::<f64>() + ALIGNMENT
    }

    /// Checks the whole call before anything is queued, and settles k.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`, `Workspace`.
    pub fn validate<B: Backend<Memory = M>>(
        &self,
        router: &gate::Config,
        config: &Config,
        plan: &Plan<B>,
    ) -> Result<gate::Shape> {
        let mut checks = Checks::new();
        checks.merge(config.validate(router));
        check_plan(&mut checks, config, plan.segments(), None);
        let shape = check_sizes(&mut checks, router, plan.segments().tokens(), self.experts, None);
        let (segments, experts) = (plan.segments().len(), shape.experts);
        check_array(&mut checks, "probabilities", Some(self.probabilities), segments * experts);
        check_array(&mut checks, "rows", Some(self.rows), segments);
        check_array(&mut checks, "totals", Some(self.totals), 3);
        check_array(&mut checks, "counts", Some(self.counts), segments * experts);
        check_array(&mut checks, "count_rows", self.count_rows, segments);
        check_array(&mut checks, "values", Some(self.values.as_view()), 4);
        check_array(&mut checks, "q", Some(self.q.as_view()), segments * experts);
        check_array(&mut checks, "coefficients", Some(self.coefficients.as_view()), 4);
        check_workspace(&mut checks, &self.workspace, Self::workspace_bytes(plan));
        checks.disjoint(&[
            Some(self.probabilities.extent("probabilities")),
            Some(self.rows.extent("rows")),
            Some(self.totals.extent("totals")),
            Some(self.counts.extent("counts")),
            self.count_rows.map(|array| array.extent("count_rows")),
            Some(self.values.extent("values")),
            Some(self.q.extent("q")),
            Some(self.coefficients.extent("coefficients")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish().map(|()| shape)
    }
}

/// What [`Finish`] returned, for the rows that a backward call has.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a, M> {
    /// `[S, E]`; without it there is no balance loss.
    pub q: Option<View<'a, f32, M>>,
    /// `[4]`.
    pub coefficients: View<'a, f32, M>,
    /// `[S + 1]`: where the segments begin, for [`Scope::Segments`]; without it there is one.
    pub offsets: Option<View<'a, i64, M>>,
    /// `[T, E]` bf16, f16 or f32: the logits of the reference router, where its divergence is asked for.
    pub ref_logits: Option<Matrix<'a, M>>,
}

impl<'a, M: Memory> Gradient<'a, M> {
    /// Of the rows that `plan` divides, which `finish` was called with.
    pub fn new<B: Backend<Memory = M>>(plan: &'a Plan<B>, q: View<'a, f32, M>, coefficients: View<'a, f32, M>) -> Self {
        let offsets = (plan.segments().len() != 1).then(|| plan.offsets());
        Gradient { q: Some(q), coefficients, offsets, ref_logits: None }
    }

    /// S.
    pub(crate) fn segments(&self) -> usize {
        self.offsets.map_or(1, |offsets| offsets.len().saturating_sub(1))
    }

    pub(crate) fn check(&self, checks: &mut Checks, router: &gate::Config, tokens: usize, experts: usize) {
        check_array(checks, "q", self.q, self.segments() * experts);
        check_array(checks, "coefficients", Some(self.coefficients), 4);
        if let Some(logits) = &self.ref_logits {
            check_floats(checks, "ref_logits", logits, &[tokens, experts]);
        }
        checks
            .require(self.q.is_none() || router.score != Score::Raw, Kind::Config, "q", || {
                "is of probabilities, which raw logits are not".into()
            })
            .require(self.segments() > 0 || tokens == 0, Kind::Shape, "offsets", || {
                format!("have no segment for the {tokens} rows")
            });
        check_array(checks, "offsets", self.offsets, self.segments() + 1);
    }

    pub(crate) fn extents(&self) -> [Option<Extent>; 4] {
        [
            self.q.map(|array| array.extent("q")),
            Some(self.coefficients.extent("coefficients")),
            self.offsets.map(|array| array.extent("offsets")),
            self.ref_logits.map(|logits| logits.layout().extent("ref_logits", false)),
        ]
    }
}

/// The gradient of the regularisers alone, where the gate has none.
#[derive(Debug)]
pub struct Backward<'a, M> {
    /// `[T, E]` bf16, f16 or f32, any row stride.
    pub router_logits: Matrix<'a, M>,
    /// What is regularised.
    pub regularizer: Gradient<'a, M>,
    /// `[T, k]`: as in [`Partial`], to know which rows count.
    pub topk_ids: Option<View<'a, i32, M>>,
    /// `[T, k]`: likewise.
    pub selected_logits: Option<View<'a, f32, M>>,
    /// `[T]`: 0 makes a row padding.
    pub token_mask: Option<View<'a, u8, M>>,
    /// One number on the device: rows from it on are padding.
    pub row_count: Option<View<'a, i32, M>>,
    /// Where the gradient goes: [`Output::Dense`] or [`Output::Accumulate`].
    pub output: Output<'a, M>,
}

impl<M: Memory> Backward<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Dtype`, `Alignment`, `Overlap`.
    pub fn validate(&self, router: &gate::Config) -> Result<gate::Shape> {
        let mut checks = Checks::new();
        let (tokens, experts) = (self.router_logits.rows(), self.router_logits.columns());
        let columns = self.topk_ids.filter(|_| tokens > 0).map(|ids| ids.len() / tokens);
        let shape = check_sizes(&mut checks, router, tokens, experts, columns);
        let gate::Shape { tokens, experts, .. } = shape;
        check_floats(&mut checks, "router_logits", &self.router_logits, &[tokens, experts]);
        check_array(&mut checks, "topk_ids", self.topk_ids, tokens * shape.top_k);
        check_array(&mut checks, "selected_logits", self.selected_logits, tokens * shape.top_k);
        check_array(&mut checks, "token_mask", self.token_mask, tokens);
        check_array(&mut checks, "row_count", self.row_count, 1);
        self.regularizer.check(&mut checks, router, tokens, experts);
        let output = match &self.output {
            Output::Dense(target) | Output::Accumulate(target) => {
                check_floats(&mut checks, "d_router_logits", &target.as_matrix(), &[tokens, experts]);
                Some(target.layout().extent("d_router_logits", true))
            }
            Output::Compact { .. } => {
                checks.require(false, Kind::Config, "output", || {
                    "is compact, and regularisers reach every expert; use a dense one".into()
                });
                None
            }
        };
        let [q, coefficients, offsets, ref_logits] = self.regularizer.extents();
        checks.disjoint(&[
            Some(self.router_logits.layout().extent("router_logits", false)),
            self.topk_ids.map(|array| array.extent("topk_ids")),
            self.selected_logits.map(|array| array.extent("selected_logits")),
            self.token_mask.map(|array| array.extent("token_mask")),
            self.row_count.map(|array| array.extent("row_count")),
            q,
            coefficients,
            offsets,
            ref_logits,
            output,
        ]);
        checks.finish().map(|()| shape)
    }
}

/// The update of a selection bias by its experts' load, without a loss: `b_e += u·sign(Σn − E·n_e)`, in exact integers, `sign(0) = 0` (DeepSeek-V3). A call
/// of its own because under replay it changes routing that replay then hides: decide for it.
#[derive(Debug)]
pub struct BiasUpdate<'a, M> {
    /// `[E]`: n_e of the routes taken, summed over micro-batches and ranks; below 2^52, which leaves room for E times each.
    pub counts: View<'a, u64, M>,
    /// `[E]`: updated in place.
    pub selection_bias: ViewMut<'a, f32, M>,
    /// u.
    pub step: f32,
}

impl<M: Memory> BiasUpdate<'_, M> {
    /// Checks the call and returns E.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`.
    pub fn validate(&self) -> Result<usize> {
        let mut checks = Checks::new();
        let experts = self.counts.len();
        checks
            .require((1..=gate::MAX_EXPERTS).contains(&experts), Kind::Shape, "counts", || {
                format!("are of {experts} experts, needs 1 to {}", gate::MAX_EXPERTS)
            })
            .require(self.step.is_finite(), Kind::Config, "step", || {
                format!("is {}, needs a finite number", self.step)
            });
        check_array(&mut checks, "counts", Some(self.counts), experts);
        check_array(&mut checks, "selection_bias", Some(self.selection_bias.as_view()), experts);
        checks.disjoint(&[Some(self.counts.extent("counts")), Some(self.selection_bias.extent("selection_bias"))]);
        checks.finish().map(|()| experts)
    }
}

fn check_plan(checks: &mut Checks, config: &Config, segments: &Segments, tokens: Option<usize>) {
    let (planned, len) = (segments.tokens(), segments.len());
    checks
        .require(tokens.is_none_or(|tokens| tokens == planned), Kind::Segments, "plan", || {
            format!("has {planned} rows, the logits have {}", tokens.unwrap_or_default())
        })
        .require(len == 1 || config.scope == Scope::Segments, Kind::Segments, "plan", || {
            format!("has {len} segments, and a batch is one; balance over segments, or use Plan::whole")
        });
}

fn check_workspace<M: Memory>(checks: &mut Checks, workspace: &ViewMut<'_, u8, M>, needed: usize) {
    let given = workspace.len();
    checks.require(given >= needed, Kind::Workspace, "workspace", || format!("has {given} bytes, needs {needed}"));
}
