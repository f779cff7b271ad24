//! A ledger of what the advantages of each expert's tokens come to, and what is normalised by it. Heuristics without a paper; off unless called.
//!
//! With `w_te` the weights of a layer's gate, `g̃_te = w_te / Σ_{e∈S_t} w_te`, and `A_t` the advantage of token t:
//!
//! 1. **Ledger** ([`Ledger`]), per layer and expert: `n` tokens, `G = Σ_t g̃`, `G1 = Σ_t g̃ (A − K)`, `G2 = Σ_t g̃ (A − K)²`. The shift `K` is
//!    the running mean at the start of the step, equal on all ranks: it keeps `G2` from cancelling. Sums are added to what is there, by
//!    fixed panels of 256 rows in their order; those of several ranks or micro-batches are added number by number.
//! 2. **Running normaliser** ([`Normalizer`], host): with `m = G1/G`, `μ_b = K + m`, `v_b = max(0, G2/G − m²)`, `c' = βc + 1 − β` and
//!    `a = (1−β)/c'` (so that the first step counts whole):
//!    `v ← (1−a)v + a·v_b + a(1−a)(μ_b−μ)²`, `μ ← μ + a(μ_b−μ)`, `c ← c'`. An expert with `G = 0` keeps its `μ`, `v` and `c`.
//! 3. **Advantages** ([`Advantages`]): `Â_t = (1/L) Σ_l Σ_{e∈S_lt} g̃_lte z`, `z = (A_t − μ_le)/(√v_le + ε)`, limited to ±C where a clip is given. Layers
//!    are added in the order of the calls. `Â` is handed to [`objective`](crate::objective) as advantages per token.
//! 4. **Clip per expert** ([`SquaredNorms`], [`ClipScale`]): `scale_e = min(1, C/(‖grad_e‖₂ + 1e-6))`, the norm over all parameters of expert e.
//!
//! All of it is constant to the gradient. A token that the mask leaves out is absent, whatever it holds; so is one whose weights sum to 0 (a
//! padding row of the gate), and one with a weight or an advantage that is NaN or infinite, which is counted.
//!
//! Two quantities that have been proposed are empty, and are not built:
//!
//! * **`A_expert = A·p(e)` over all experts**: `Σ_e A p_e = A` does not depend on the router, so its gradient is exactly 0. Over the selected
//!   experts the chain rule of [`gate`](crate::gate) supplies the factor `w_e` already; another would square it.
//! * **A "virtual advantage" of the experts that were not selected, weighted by p**: the surrogate `−c A Σ_e g̃_e log p_e` has the gradient
//!   `−c A (g̃_e − p_e)`, and with `g̃ = p` on all experts that is `−c A (p_e − p_e) = 0`.

use bytemuck::{Pod, Zeroable};

use crate::abi::{MOERL_LEDGER_PANEL, MOERL_NORM_PANEL};
use crate::element::Element;
use crate::error::{Checks, Kind, Result};
use crate::gate::{MAX_EXPERTS, MAX_TOP_K};
use crate::memory::{Matrix, Memory, View, ViewMut};

/// What one expert's tokens come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct ExpertSums {
    /// Tokens.
    pub n: u64,
    /// G = Σ g̃.
    pub gate: f64,
    /// G1 = Σ g̃ (A − K).
    pub advantage: f64,
    /// G2 = Σ g̃ (A − K)².
    pub advantage_square: f64,
}

/// One layer's experts and weights, and the advantages of its T tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, M> {
    /// `[T, k]`, without gaps: the experts of every token, k distinct ones.
    pub topk_ids: View<'a, i32, M>,
    /// `[T, k]` f32, bf16 or f16, any row stride: their weights.
    pub topk_weights: Matrix<'a, M>,
    /// `[T]`
    pub advantages: View<'a, f32, M>,
    /// `[T]`: 0 leaves a token out.
    pub loss_mask: Option<View<'a, u8, M>>,
}

/// Adds a layer's tokens to its ledger.
#[derive(Debug)]
pub struct Ledger<'a, M> {
    /// The tokens.
    pub tokens: Tokens<'a, M>,
    /// K, `[E]`: [`Normalizer::means`]; `None`: 0.
    pub shift: Option<View<'a, f64, M>>,
    /// `[E]`: added to.
    pub sums: ViewMut<'a, ExpertSums, M>,
    /// One number: tokens left out for a weight or an advantage that is NaN or infinite; added to.
    pub nonfinite: Option<ViewMut<'a, u64, M>>,
    /// At least [`ledger_workspace`] elements; holds nothing between calls.
    pub workspace: ViewMut<'a, ExpertSums, M>,
}

/// Adds a layer's part of the normalised advantages.
#[derive(Debug)]
pub struct Advantages<'a, M> {
    /// The tokens.
    pub tokens: Tokens<'a, M>,
    /// μ, `[E]`: [`Normalizer::means`].
    pub mean: View<'a, f64, M>,
    /// 1/(√v + ε), `[E]`: [`Normalizer::inverse_deviations`].
    pub inverse_deviation: View<'a, f64, M>,
    /// L, the number of layers that will be added.
    pub layers: usize,
    /// C, the limit of a normalised advantage before it is weighted.
    pub clip: Option<f32>,
    /// Â, `[T]`: added to; tokens left out are not touched.
    pub normalized: ViewMut<'a, f32, M>,
}

/// Adds the squares of one parameter's gradient, expert by expert.
#[derive(Debug)]
pub struct SquaredNorms<'a, M> {
    /// `[E, elements]` f32, bf16 or f16, any row stride: the gradient of every expert's slice of a parameter.
    pub gradient: Matrix<'a, M>,
    /// `[E]`: added to.
    pub squares: ViewMut<'a, f64, M>,
    /// At least [`norm_workspace`] elements; holds nothing between calls.
    pub workspace: ViewMut<'a, f64, M>,
}

/// From squared norms to what each expert's gradient is multiplied by.
#[derive(Debug)]
pub struct ClipScale<'a, M> {
    /// `[E]`: the sums of [`SquaredNorms`] over all parameters (and ranks).
    pub squares: View<'a, f64, M>,
    /// C, positive.
    pub clip: f64,
    /// `[E]`: `min(1, C/(√squares + 1e-6))`; NaN where `squares` is.
    pub scale: ViewMut<'a, f32, M>,
}

/// Elements of [`Ledger::workspace`] for T tokens and E experts.
pub fn ledger_workspace(tokens: usize, experts: usize) -> usize {
    tokens.div_ceil(MOERL_LEDGER_PANEL as usize) * experts
}

/// Elements of [`SquaredNorms::workspace`] for E slices of so many elements.
pub fn norm_workspace(experts: usize, elements: usize) -> usize {
    elements.div_ceil(MOERL_NORM_PANEL as usize) * experts
}

fn check_array<T: Pod, M: Memory>(checks: &mut Checks, name: &'static str, array: View<'_, T, M>, needed: usize) {
    checks.shape(name, &[array.len()], &[needed]);
    check_address(checks, name, array.address(), align_of::<T>());
}

fn check_workspace<T: Pod, M: Memory>(checks: &mut Checks, array: View<'_, T, M>, needed: usize) {
    checks.require(array.len() >= needed, Kind::Workspace, "workspace", || {
        format!("has {} elements, needs {needed}", array.len())
    });
    check_address(checks, "workspace", array.address(), align_of::<T>());
}

fn check_address(checks: &mut Checks, name: &'static str, address: usize, alignment: usize) {
    checks.require(address.is_multiple_of(alignment), Kind::Alignment, name, || {
        format!("address {address:#x} is not a multiple of {alignment}")
    });
}

fn check_floats<M: Memory>(checks: &mut Checks, name: &'static str, matrix: &Matrix<'_, M>) {
    checks.require(Element::FLOATS.contains(&matrix.element()), Kind::Dtype, name, || {
        format!("holds {}, needs bf16, f16 or f32", matrix.element())
    });
}

fn check_experts(checks: &mut Checks, name: &'static str, experts: usize) {
    checks.require((1..=MAX_EXPERTS).contains(&experts), Kind::Shape, name, || {
        format!("is for {experts} experts, needs 1 to {MAX_EXPERTS}")
    });
}

impl<M: Memory> Tokens<'_, M> {
    /// T.
    pub fn len(&self) -> usize {
        self.advantages.len()
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// k.
    pub fn top_k(&self) -> usize {
        self.topk_weights.columns()
    }

    fn check(&self, checks: &mut Checks) {
        let (tokens, top_k) = (self.len(), self.top_k());
        checks
            .shape("topk_weights", &[self.topk_weights.rows()], &[tokens])
            .require((1..=MAX_TOP_K).contains(&top_k), Kind::Shape, "topk_weights", || {
                format!("have {top_k} columns, needs 1 to {MAX_TOP_K}")
            })
            .require(tokens < 1 << 31, Kind::Shape, "advantages", || format!("has {tokens} tokens, 2^31 are too many"));
        check_floats(checks, "topk_weights", &self.topk_weights);
        check_array(checks, "topk_ids", self.topk_ids, tokens * top_k);
        check_array(checks, "advantages", self.advantages, tokens);
        if let Some(mask) = self.loss_mask {
            check_array(checks, "loss_mask", mask, tokens);
        }
    }

    fn extents(&self) -> [Option<crate::error::Extent>; 4] {
        [
            Some(self.topk_ids.extent("topk_ids")),
            Some(self.topk_weights.layout().extent("topk_weights", false)),
            Some(self.advantages.extent("advantages")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
        ]
    }
}

impl<M: Memory> Ledger<'_, M> {
    /// Checks the call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Shape`, `Dtype`, `Alignment`, `Workspace`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        let experts = self.sums.len();
        self.tokens.check(&mut checks);
        check_experts(&mut checks, "sums", experts);
        check_array(&mut checks, "sums", self.sums.as_view(), experts);
        if let Some(shift) = self.shift {
            check_array(&mut checks, "shift", shift, experts);
        }
        if let Some(nonfinite) = &self.nonfinite {
            check_array(&mut checks, "nonfinite", nonfinite.as_view(), 1);
        }
        check_workspace(&mut checks, self.workspace.as_view(), ledger_workspace(self.tokens.len(), experts));
        let mut extents = vec![
            self.shift.map(|array| array.extent("shift")),
            Some(self.sums.extent("sums")),
            self.nonfinite.as_ref().map(|array| array.extent("nonfinite")),
            Some(self.workspace.extent("workspace")),
        ];
        extents.extend(self.tokens.extents());
        checks.disjoint(&extents).finish()
    }
}

impl<M: Memory> Advantages<'_, M> {
    /// Checks the call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Dtype`, `Alignment`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        let experts = self.mean.len();
        self.tokens.check(&mut checks);
        check_experts(&mut checks, "mean", experts);
        check_array(&mut checks, "mean", self.mean, experts);
        check_array(&mut checks, "inverse_deviation", self.inverse_deviation, experts);
        check_array(&mut checks, "normalized", self.normalized.as_view(), self.tokens.len());
        checks
            .require(self.layers > 0, Kind::Config, "layers", || "is 0, and a mean over no layer has no value".into())
            .require(self.clip.is_none_or(|c| c > 0.0), Kind::Config, "clip", || {
                format!("is {}, needs a positive number", self.clip.unwrap_or_default())
            });
        let mut extents = vec![
            Some(self.mean.extent("mean")),
            Some(self.inverse_deviation.extent("inverse_deviation")),
            Some(self.normalized.extent("normalized")),
        ];
        extents.extend(self.tokens.extents());
        checks.disjoint(&extents).finish()
    }
}

impl<M: Memory> SquaredNorms<'_, M> {
    /// Checks the call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Shape`, `Dtype`, `Alignment`, `Workspace`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        let (experts, elements) = (self.gradient.rows(), self.gradient.columns());
        check_experts(&mut checks, "gradient", experts);
        check_floats(&mut checks, "gradient", &self.gradient);
        check_array(&mut checks, "squares", self.squares.as_view(), experts);
        let needed = norm_workspace(experts, elements);
        checks.require(needed < 1 << 31, Kind::Shape, "gradient", || {
            format!("has {experts} × {elements} elements, more than one launch takes")
        });
        check_workspace(&mut checks, self.workspace.as_view(), needed);
        checks.disjoint(&[
            Some(self.gradient.layout().extent("gradient", false)),
            Some(self.squares.extent("squares")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish()
    }
}

impl<M: Memory> ClipScale<'_, M> {
    /// Checks the call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        check_experts(&mut checks, "squares", self.squares.len());
        check_array(&mut checks, "squares", self.squares, self.squares.len());
        check_array(&mut checks, "scale", self.scale.as_view(), self.squares.len());
        checks.require(self.clip > 0.0 && self.clip.is_finite(), Kind::Config, "clip", || {
            format!("is {}, needs a positive finite number", self.clip)
        });
        checks.disjoint(&[Some(self.squares.extent("squares")), Some(self.scale.extent("scale"))]).finish()
    }
}

/// Running mean and variance of one expert's advantages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Moments {
    /// μ
    pub mean: f64,
    /// v
    pub variance: f64,
    /// c, the weight of all steps so far: 0 before the first, then towards 1.
    pub weight: f64,
}

impl Moments {
    /// Takes in a step whose sums were formed with μ as the shift. A step without tokens, or with sums that are not finite, changes nothing.
    pub fn update(&mut self, beta: f64, sums: &ExpertSums) {
        let is_finite = sums.gate.is_finite() && sums.advantage.is_finite() && sums.advantage_square.is_finite();
        if sums.gate == 0.0 || !is_finite {
            return;
        }
        let m = sums.advantage / sums.gate; // μ_b − μ, for K = μ
        let variance = (sums.advantage_square / sums.gate - m * m).max(0.0);
        let weight = beta * self.weight + 1.0 - beta;
        let a = (1.0 - beta) / weight;
        self.variance = (1.0 - a) * self.variance + a * variance + a * (1.0 - a) * m * m;
        self.mean += a * m;
        self.weight = weight;
    }
}

/// The running normaliser of L layers with E experts each.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Normalizer {
    experts: usize,
    beta: f64,
    epsilon: f64,
    moments: Vec<Moments>,
}

impl Normalizer {
    /// Nothing seen yet. `beta` in `[0, 1)`: what a step keeps of those before it; `epsilon` positive: added to deviations.
    ///
    /// # Errors
    /// `Config` for a number outside its range.
    pub fn new(layers: usize, experts: usize, beta: f64, epsilon: f64) -> Result<Normalizer> {
        let mut checks = Checks::new();
        checks
            .require((0.0..1.0).contains(&beta), Kind::Config, "beta", || format!("is {beta}, needs 0 to below 1"))
            .require(epsilon > 0.0 && epsilon.is_finite(), Kind::Config, "epsilon", || {
                format!("is {epsilon}, needs a positive finite number")
            });
        checks.finish()?;
        Ok(Normalizer { experts, beta, epsilon, moments: vec![Moments::default(); layers * experts] })
    }

    /// The experts of a layer. Panics where there is no such layer, as slices do.
    pub fn layer(&self, layer: usize) -> &[Moments] {
        &self.moments[layer * self.experts..(layer + 1) * self.experts]
    }

    /// μ of a layer's experts: the shift of the next step's ledger, and the mean of its advantages.
    pub fn means(&self, layer: usize) -> Vec<f64> {
        self.layer(layer).iter().map(|moments| moments.mean).collect()
    }

    /// 1/(√v + ε) of a layer's experts; 0 for those that no token has been sent to yet, which then say nothing of a token's advantage.
    pub fn inverse_deviations(&self, layer: usize) -> Vec<f64> {
        let of = |moments: &Moments| {
            if moments.weight == 0.0 { 0.0 } else { 1.0 / (moments.variance.sqrt() + self.epsilon) }
        };
        self.layer(layer).iter().map(of).collect()
    }

    /// Takes in a layer's ledger `[E]` of a step, formed with [`means`](Normalizer::means) as its shift and added up over ranks.
    ///
    /// # Errors
    /// `Shape` where it is of other experts.
    pub fn update(&mut self, layer: usize, sums: &[ExpertSums]) -> Result<()> {
        let mut checks = Checks::new();
        checks.shape("sums", &[sums.len()], &[self.experts]).finish()?;
        for (moments, sums) in self.moments[layer * self.experts..].iter_mut().zip(sums) {
            moments.update(self.beta, sums);
        }
        Ok(())
    }
}
