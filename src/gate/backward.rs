//! One backward call: its arrays, and every check that the host can make.

use super::call::{check_array, check_floats, check_lse_use, check_sizes};
use super::{Bad, Config, Filler, Missing, Score, Shape};
use crate::abi::MOERL_PANEL;
use crate::element::Element;
use crate::error::{Checks, Extent, Kind, Result};
use crate::memory::{Matrix, MatrixMut, Memory, View, ViewMut};
use crate::router_loss;

/// Where the gradient of the router logits goes.
#[derive(Debug)]
pub enum Output<'a, M> {
    /// `[T, E]` bf16, f16 or f32 (whatever the logits are), any row stride: rounded once. Every element is written.
    Dense(MatrixMut<'a, M>),
    /// As [`Dense`](Output::Dense), added to what is there, in f32 before the one rounding. Where the gradient is exactly 0 nothing is touched.
    Accumulate(MatrixMut<'a, M>),
    /// The gradients of the slots alone: what softmax over all experts, and terms that reach every expert, cannot have.
    Compact {
        /// `[T, k]`, without gaps, beside `topk_ids`.
        d_selected_logits: ViewMut<'a, f32, M>,
        /// E.
        experts: usize,
    },
}

/// The router surrogate `L = −Σ_t c_t A_t Σ_{e∈S} g̃_te log p_te`, whose gradient `−c_t A_t (g̃_te·1[e∈S] − p_te)` is added in the same write.
///
/// `g̃_te` is the weight before scaling, divided by its sum over the slots, and a constant; `p` is the softmax over all experts. The gradient pulls the
/// router towards the mixture that it used where the advantage is positive, and away from it where it is negative.
///
/// With `g̃ = p` on all E experts ("virtual advantages" of the experts that were not chosen, weighted by their probability) the gradient is
/// `−c_t A_t (p − p)`, which is 0: such a term teaches nothing, and is not offered. Nor is `A_t p_te` summed over all experts, for
/// `Σ_e A_t p_te = A_t` is a constant.
///
/// A row whose log-sum-exp is not finite has no surrogate; rows without weights have none either. Every row's logits are read.
#[derive(Clone, Copy, Debug)]
pub struct Surrogate<'a, M> {
    /// `[T]`: A_t.
    pub advantages: View<'a, f32, M>,
    /// `[T]`: c_t before the coefficient; without it 1.
    pub weights: Option<View<'a, f32, M>>,
    /// Multiplies every c_t, for example by one over the number of tokens.
    pub coefficient: f32,
}

/// One backward call. Uses the ids of forward and never selects again.
///
/// What forward saved makes it read k logits a row. Without it (`selected_logits` and `lse` both `None`, `router_logits` given) the slots are read
/// again from the logits, and the log-sum-exp is summed again where it is needed, with the same bits. Nothing then says which rows have
/// no weights but `token_mask`, `row_count` and ids of −1 ([`Filler::Sentinel`]).
#[derive(Debug)]
pub struct Backward<'a, M> {
    /// `[T, k]` f32, bf16 or f16, any row stride: the gradient of the loss by the weights. NaN stays within its row.
    pub d_topk_weights: Matrix<'a, M>,
    /// `[T, k]`: the experts of the forward call. A row with an id outside `[0, E)` has no gradient.
    pub topk_ids: View<'a, i32, M>,
    /// `[T, k]`: what the forward call saved.
    pub selected_logits: Option<View<'a, f32, M>>,
    /// `[T]`: what the forward call saved beside them. Only where [`Config::needs_lse`].
    pub lse: Option<View<'a, f32, M>>,
    /// `[T, E]`: the logits of the forward call. Needed (and read) where nothing was saved, where [`Config::needs_lse`], and by a surrogate.
    pub router_logits: Option<Matrix<'a, M>>,
    /// `[E]`: multiplies the weights of each expert, as in the forward call.
    pub expert_scale: Option<View<'a, f32, M>>,
    /// `[T]`: 0 makes a row padding. Needed only where nothing was saved.
    pub token_mask: Option<View<'a, u8, M>>,
    /// One number on the device: rows from it on are padding. Needed only where nothing was saved.
    pub row_count: Option<View<'a, i32, M>>,
    /// A term added in the same write.
    pub surrogate: Option<Surrogate<'a, M>>,
    /// Terms added in the same write, of rows that have weights. Every row's logits are read.
    pub regularizer: Option<router_loss::Gradient<'a, M>>,
    /// Where the gradient goes.
    pub output: Output<'a, M>,
    /// `[E]`: the gradient of `expert_scale`. Rows are summed in panels of 256 in f32, panels in f64, in order.
    pub d_expert_scale: Option<ViewMut<'a, f32, M>>,
    /// Scratch memory of [`Backward::workspace_bytes`] for `d_expert_scale`.
    pub workspace: Option<ViewMut<'a, u8, M>>,
}

impl<'a, M: Memory> Backward<'a, M> {
    /// A call from saved values, with a dense result.
    pub fn new(
        d_topk_weights: Matrix<'a, M>,
        topk_ids: impl Into<View<'a, i32, M>>,
        selected_logits: impl Into<View<'a, f32, M>>,
        d_router_logits: MatrixMut<'a, M>,
    ) -> Self {
        let output = Output::Dense(d_router_logits);
        Backward {
            selected_logits: Some(selected_logits.into()),
            ..Backward::of(d_topk_weights, topk_ids.into(), output)
        }
    }

    /// A call that reads the slots again from the logits of the forward call, with a dense result.
    pub fn unsaved(
        d_topk_weights: Matrix<'a, M>,
        topk_ids: impl Into<View<'a, i32, M>>,
        router_logits: Matrix<'a, M>,
        d_router_logits: MatrixMut<'a, M>,
    ) -> Self {
        let output = Output::Dense(d_router_logits);
        Backward { router_logits: Some(router_logits), ..Backward::of(d_topk_weights, topk_ids.into(), output) }
    }

    /// A call from saved values for the gradients of the slots alone, `[T, k]`, of a router with so many experts.
    pub fn compact(
        d_topk_weights: Matrix<'a, M>,
        topk_ids: impl Into<View<'a, i32, M>>,
        selected_logits: impl Into<View<'a, f32, M>>,
        d_selected_logits: impl Into<ViewMut<'a, f32, M>>,
        experts: usize,
    ) -> Self {
        let output = Output::Compact { d_selected_logits: d_selected_logits.into(), experts };
        Backward {
            selected_logits: Some(selected_logits.into()),
            ..Backward::of(d_topk_weights, topk_ids.into(), output)
        }
    }

    fn of(d_topk_weights: Matrix<'a, M>, topk_ids: View<'a, i32, M>, output: Output<'a, M>) -> Self {
        Backward {
            d_topk_weights,
            topk_ids,
            selected_logits: None,
            lse: None,
            router_logits: None,
            expert_scale: None,
            token_mask: None,
            row_count: None,
            surrogate: None,
            regularizer: None,
            output,
            d_expert_scale: None,
            workspace: None,
        }
    }

    /// Bytes of workspace that `d_expert_scale` takes for T rows of E experts.
    pub fn workspace_bytes(tokens: usize, experts: usize) -> usize {
        tokens.div_ceil(MOERL_PANEL as usize) * experts * size_of::<f32>() + align_of::<f32>()
    }

    /// True if every row's logits are read.
    pub(crate) fn reads_rows(&self, config: &Config) -> bool {
        config.needs_lse() || self.surrogate.is_some() || self.regularizer.is_some()
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `MissingInput`, `Workspace`.
    pub fn validate(&self, config: &Config) -> Result<Shape> {
        let mut checks = Checks::new();
        let (rows, columns) = (self.d_topk_weights.rows(), self.d_topk_weights.columns());
        let (tokens, experts) = match &self.output {
            Output::Dense(target) | Output::Accumulate(target) => {
                check_floats(&mut checks, "d_router_logits", &target.as_matrix(), &[rows, target.columns()]);
                (rows, target.columns())
            }
            Output::Compact { experts, .. } => (rows, *experts),
        };
        let shape = check_sizes(&mut checks, config, tokens, experts, Some(columns));
        let Shape { tokens, experts, top_k } = shape;
        check_floats(&mut checks, "d_topk_weights", &self.d_topk_weights, &[tokens, top_k]);
        check_array(&mut checks, "topk_ids", Some(self.topk_ids), tokens * top_k);
        check_array(&mut checks, "selected_logits", self.selected_logits, tokens * top_k);
        check_array(&mut checks, "lse", self.lse, tokens);
        check_lse_use(&mut checks, config, self.lse.is_some());
        check_array(&mut checks, "expert_scale", self.expert_scale, experts);
        check_array(&mut checks, "token_mask", self.token_mask, tokens);
        check_array(&mut checks, "row_count", self.row_count, 1);
        if let Some(logits) = &self.router_logits {
            check_floats(&mut checks, "router_logits", logits, &[tokens, experts]);
        }
        if let Some(regularizer) = &self.regularizer {
            regularizer.check(&mut checks, config, tokens, experts);
        }
        self.check_sources(&mut checks, config);
        self.check_output(&mut checks, config, &shape);
        checks.disjoint(&self.extents());
        checks.finish().map(|()| shape)
    }

    /// What is read must be there.
    fn check_sources(&self, checks: &mut Checks, config: &Config) {
        let has_logits = self.router_logits.is_some();
        checks
            .require(has_logits || !config.needs_lse(), Kind::MissingInput, "router_logits", || {
                "is needed by softmax over all experts".into()
            })
            .require(
                self.lse.is_some() || self.selected_logits.is_none() || !config.needs_lse(),
                Kind::MissingInput,
                "lse",
                || {
                    "is needed by softmax over all experts, beside the selected_logits that forward saved with it"
                        .into()
                },
            )
            .require(has_logits || self.selected_logits.is_some(), Kind::MissingInput, "selected_logits", || {
                "was not given, and neither were the router_logits to read it from".into()
            })
            .require(has_logits || self.surrogate.is_none(), Kind::MissingInput, "router_logits", || {
                "is needed by the surrogate, which reaches every expert".into()
            })
            .require(has_logits || self.regularizer.is_none(), Kind::MissingInput, "router_logits", || {
                "is needed by the regularizer, which reaches every expert".into()
            });
        let marked_by_id = config.filler == Filler::Sentinel
            || (!matches!(config.missing, Missing::ZeroWeight | Missing::Error) && config.bad != Bad::ZeroWeight);
        checks.require(marked_by_id || self.selected_logits.is_some(), Kind::MissingInput, "selected_logits", || {
            "is needed where rows can be without weights (missing or bad) and the filler ids are not the sentinel"
                .into()
        });
        if let Some(surrogate) = &self.surrogate {
            let rows = self.d_topk_weights.rows();
            check_array(checks, "advantages", Some(surrogate.advantages), rows);
            check_array(checks, "surrogate_weights", surrogate.weights, rows);
            checks
                .require(surrogate.coefficient.is_finite(), Kind::Config, "surrogate", || {
                    format!("has the coefficient {}, needs a finite number", surrogate.coefficient)
                })
                .require(config.score != Score::Raw, Kind::Config, "surrogate", || {
                    "divides weights by their sum, which raw logits do not have".into()
                });
        }
    }

    /// The gradients must fit where they go.
    fn check_output(&self, checks: &mut Checks, config: &Config, shape: &Shape) {
        if let Output::Compact { d_selected_logits, .. } = &self.output {
            check_array(checks, "d_selected_logits", Some(d_selected_logits.as_view()), shape.tokens * shape.top_k);
            checks
                .require(!config.needs_lse(), Kind::Config, "d_selected_logits", || {
                    "cannot hold the gradient of softmax over all experts, which reaches all of them; use a dense result".into()
                })
                .require(self.surrogate.is_none(), Kind::Config, "d_selected_logits", || {
                    "cannot hold the surrogate's gradient, which reaches all experts; use a dense result".into()
                })
                .require(self.regularizer.is_none(), Kind::Config, "d_selected_logits", || {
                    "cannot hold a regularizer's gradient, which reaches all experts; use a dense result".into()
                });
        }
        let Some(target) = &self.d_expert_scale else { return };
        check_array(checks, "d_expert_scale", Some(target.as_view()), shape.experts);
        let (needed, given) =
            (Self::workspace_bytes(shape.tokens, shape.experts), self.workspace.as_ref().map_or(0, ViewMut::len));
        checks
            .require(given >= needed, Kind::Workspace, "workspace", || {
                format!("has {given} bytes, needs {needed} for d_expert_scale")
            })
            .require(self.lse.is_some() || !config.needs_lse(), Kind::MissingInput, "lse", || {
                "is needed by d_expert_scale where the score is a softmax over all experts".into()
            });
    }

    fn extents(&self) -> [Option<Extent>; 17] {
        let output = match &self.output {
            Output::Dense(target) | Output::Accumulate(target) => target.layout().extent("d_router_logits", true),
            Output::Compact { d_selected_logits, .. } => d_selected_logits.extent("d_selected_logits"),
        };
        let [q, coefficients, offsets, ref_logits] =
            self.regularizer.map_or([None; 4], |regularizer| regularizer.extents());
        [
            q,
            coefficients,
            offsets,
            ref_logits,
            Some(self.d_topk_weights.layout().extent("d_topk_weights", false)),
            Some(self.topk_ids.extent("topk_ids")),
            self.selected_logits.map(|array| array.extent("selected_logits")),
            self.lse.map(|array| array.extent("lse")),
            self.router_logits.map(|logits| logits.layout().extent("router_logits", false)),
            self.expert_scale.map(|array| array.extent("expert_scale")),
            self.token_mask.map(|array| array.extent("token_mask")),
            self.row_count.map(|array| array.extent("row_count")),
            self.surrogate.map(|surrogate| surrogate.advantages.extent("advantages")),
            self.surrogate.and_then(|surrogate| surrogate.weights).map(|array| array.extent("surrogate_weights")),
            Some(output),
            self.d_expert_scale.as_ref().map(|array| array.extent("d_expert_scale")),
            self.workspace.as_ref().map(|array| array.extent("workspace")),
        ]
    }
}

/// What becomes of the f32 elements in `workspace`: they begin at a multiple of their size.
pub(crate) fn aligned_workspace<M: Memory>(workspace: ViewMut<'_, u8, M>) -> ViewMut<'_, u8, M> {
    let skipped = workspace.address().next_multiple_of(Element::F32.size()) - workspace.address();
    let len = workspace.len();
    workspace.slice(skipped..len)
}
