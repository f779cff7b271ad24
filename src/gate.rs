//! Top-k expert gating, and forced route replay: the experts that were recorded earlier, weighted by today's router logits.
//!
//! For every token t, E router logits `x` become k distinct experts `S` (the *slots*, in rank order) and k weights. The gate either
//! selects the experts itself (*native*) or takes forced ids (*replay*); behind that fork there is one road, so that replaying the
//! native choice gives its results bit for bit:
//!
//! 1. softcap `x ← c·tanh(x/c)`, if configured; then the [`Score`] `s_e`.
//! 2. Native only: the k best by *selection value*, which is the logit itself (before the softcap) without a selection bias, and
//!    `s_e + bias_e` with one. Order: value descending, then id ascending; −0 equals +0; NaN behind −∞. So every row, whatever
//!    it holds, yields k distinct ids.
//! 3. The scores of S, without the bias, are gathered; [`Renormalize`]d; multiplied by the scaling factor, then by the
//!    expert's [scale](Forward::expert_scale) where one is given.
//!
//! The gradient flows through the current logits of the slots (and through the log-sum-exp where the score is a softmax over all
//! experts), never through ids or bias. With `g_j = scaling_factor · d_topk_weights_j`, `n_j` the weight before scaling and
//! `⟨g,n⟩ = Σ_j g_j n_j` over the slots:
//!
//! | score | `d_router_logits` at slot j | elsewhere |
//! |---|---|---|
//! | softmax over the selected (also softmax with a floor that the sum reaches) | `n_j (g_j − ⟨g,n⟩)` | exactly 0 |
//! | softmax over all | `p_j (g_j − ⟨g,p⟩)`, divided by a floor that the sum does not reach | `−p_e ⟨g,p⟩`, likewise |
//! | sigmoid, renormalised | `n_j σ(−x_j) (g_j − ⟨g,n⟩)` | exactly 0 |
//! | sigmoid, not renormalised, or under a floor m that the sum does not reach | `g_j σ(x_j) σ(−x_j)`, `/m` | exactly 0 |
//! | √softplus, renormalised | `n_j r_j (g_j − ⟨g,n⟩)`, `r = σ(x) / 2 softplus(x)` | exactly 0 |
//! | √softplus, not renormalised, or under a floor | `g_j s_j r_j`, `/m` | exactly 0 |
//! | raw | `g_j` | exactly 0 |
//!
//! and a softcap multiplies each by `4w/(1+w)²`, `w = exp(−2|x|/c)`. An expert scale multiplies `g_j`, and its own gradient is the sum over tokens of
//! `d_topk_weights_j` times the weight before that factor. [`Surrogate`] adds its term in the same write.
//!
//! Forced weights over the selected experts are those of rollout routing replay (R3, <https://arxiv.org/abs/2510.11370>, with ids
//! recorded by the rollout engine) and of R2 (<https://arxiv.org/abs/2512.01374>, with ids recorded under the old policy); the gate
//! does not know which of the two it serves.
//!
//! **Rows.** What a row is, is decided per row in this order:
//!
//! 1. `token_mask` 0, or behind `row_count`: *padding*. 2. [`Forced::row_mode`]: 0 native, 1 replay, 2 padding.
//! 3. [`Forced::row_index`] −1, or a row that the forced ids do not have: *missing*. 4. All ids the sentinel: *missing*.
//! 5. All ids zero where [`Forced::zeros_are_missing`] and k > 1: *missing*. 6. Some ids the sentinel, an id outside `[0, E)`, or
//!    one id twice: *bad*. 7. Else *replay*.
//!
//! Padding rows, and missing or bad ones under a policy that says so, get the filler ids `(t·k + j) mod E`, distinct and spread over
//! the experts, with weight 0 and gradient exactly 0, whatever their logits hold.
//!
//! **Telemetry.** A forward call may be asked how far its forced experts are from those it would choose today: see [`Telemetry`]. Without it
//! nothing is spent on it. [`Config::score_replace`] lets replayed experts that have fallen too far behind go.
//!
//! **Bad data** that only the device can see sets the error word (smallest row first) and never disturbs another row:
//!
//! | found | code | the row |
//! |---|---|---|
//! | a forced id twice; outside `[0, E)`; some but not all the sentinel | [`Duplicate`], [`Range`], [`Partial`] | by [`Bad`] |
//! | a forced row absent | [`Missing`](FaultCode::Missing), only under [`Missing::Error`] | by [`Missing`] |
//! | `row_index` below −1; `row_mode` above 2 | [`RowIndex`], [`RowMode`] | by [`Missing`]; by [`Bad`] |
//! | `row_count` outside `[0, T]` | [`RowCount`] (row 0) | the count is clamped |
//! | a NaN logit that a native row does not select | [`NanLogit`] | ranks last; the weights are unaffected |
//! | a weight that would be NaN or infinite | [`NonfiniteWeight`] | by [`Nonfinite`] |
//! | NaN in the selection bias | [`NanBias`] (row 0) | that expert ranks last |
//!
//! [`Duplicate`]: FaultCode::Duplicate
//! [`Range`]: FaultCode::Range
//! [`Partial`]: FaultCode::Partial
//! [`RowIndex`]: FaultCode::RowIndex
//! [`RowMode`]: FaultCode::RowMode
//! [`RowCount`]: FaultCode::RowCount
//! [`NanLogit`]: FaultCode::NanLogit
//! [`NonfiniteWeight`]: FaultCode::NonfiniteWeight
//! [`NanBias`]: FaultCode::NanBias

mod backward;
mod call;
mod preset;
mod telemetry;

pub(crate) use backward::aligned_workspace;
pub use backward::{Backward, Output, Surrogate};
pub use call::{Forced, Forward, Routes, Shape};
pub(crate) use call::{check_array, check_floats, check_sizes};
pub use preset::Preset;
pub use telemetry::{Load, NO_OVERLAP, ROW_COUNTS, RouterShift, RowCount, ShiftFinish, Telemetry, mean_overlap};

#[cfg(doc)]
use crate::error::FaultCode;
use crate::error::{Checks, Kind, Result};

/// The most experts that a router may have.
pub const MAX_EXPERTS: usize = 4096;
/// The most experts that a token may be sent to.
pub const MAX_TOP_K: usize = 32;

/// What a logit `x_e` is turned into before it is gathered. `σ(x) = 1/(1+e⁻ˣ)`, `softplus(x) = log(1+eˣ)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Score {
    /// `exp(x_e − log Σ_all exp x)`: Megatron's pre-softmax, Ernie 4.5. Its gradient reaches every expert.
    Softmax,
    /// `exp(x_e) / Σ_S exp(x)`: Mixtral, Qwen3, GPT-OSS. Equal to softmax over all, top-k, divided by the sum; it is normalised already.
    SoftmaxSelected,
    /// `σ(x_e)`: DeepSeek-V3 and its kin; without bias and renormalisation, Llama 4.
    Sigmoid,
    /// `√softplus(x_e)`: DeepSeek-V4.
    SqrtSoftplus,
    /// `x_e`.
    Raw,
}

/// How the scores of the selected experts are made to sum to about 1. `D` is their sum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Renormalize {
    /// Not at all.
    None,
    /// `s/(D + ε)`: Megatron, TransformerEngine, Hugging Face's DeepSeek-V3, with ε = 1e-20.
    AddEps(f32),
    /// `s/max(D, m)`: Ernie 4.5, with m = 1e-12. The only one that [`Score::Softmax`] may have.
    Floor(f32),
    /// `s/D`, or `s` where D is 0: vLLM.
    Guard,
    /// `s/D` formed from logarithms: finite for every finite logit.
    Exact,
}

/// Selection limited to the best groups of consecutive experts (DeepSeek-V2, V3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Groups {
    /// G equal groups; must divide E.
    pub count: usize,
    /// g: how many groups are admitted.
    pub admitted: usize,
    /// m: a group's score is the sum of its m largest selection values; `None`: k/g.
    pub top: Option<usize>,
}

/// What becomes of a row whose forced ids are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Missing {
    /// The gate selects for itself.
    #[default]
    Native,
    /// Filler ids with weight 0.
    ZeroWeight,
    /// As `ZeroWeight`, and the error word says so.
    Error,
    /// Filler ids, weighted as if they were forced (slime).
    Spread,
}

/// What becomes of a row whose forced ids are not k distinct experts. The error word names it in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Bad {
    /// The gate selects for itself.
    #[default]
    Native,
    /// Filler ids with weight 0.
    ZeroWeight,
}

/// What becomes of a row with a weight that would be NaN or infinite. The error word names it in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Nonfinite {
    /// All its weights are 0, and its gradient is exactly 0.
    #[default]
    Zero,
    /// All its weights are NaN, and so is its gradient wherever there is one.
    Propagate,
}

/// The ids of rows that go nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Filler {
    /// `(t·k + j) mod E`: legal for every consumer, and no expert gets more than its share.
    #[default]
    RoundRobin,
    /// −1.
    Sentinel,
}

/// A router: how logits become weights, and what to do about rows without usable routes.
///
/// ```
/// use moerl::gate::{Config, Preset, Renormalize};
/// let qwen3 = Config::preset(Preset::Qwen3);
/// let glm = Config { scaling_factor: Some(2.5), ..Config::sigmoid(8) };
/// let ernie = Config { renormalize: Renormalize::Floor(1e-12), ..Config::softmax(6) };
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// k, where it is stated: it must then be the routes' as well. `None`: the routes' k, else [`preset_top_k`](Config::preset_top_k).
    pub top_k: Option<usize>,
    /// k where neither `top_k` nor forced ids say it.
    pub preset_top_k: Option<usize>,
    /// The score function.
    pub score: Score,
    /// `c` of the softcap `c·tanh(x/c)` that precedes the score.
    pub softcap: Option<f32>,
    /// True where the router has a selection bias: a call must then bring one. A call may bring one in any case.
    pub needs_selection_bias: bool,
    /// Limits native selection to the best groups.
    pub groups: Option<Groups>,
    /// How the scores are normalised.
    pub renormalize: Renormalize,
    /// With k = 1, the scores of [`Score::Sigmoid`] and [`Score::SqrtSoftplus`] are left as they are unless this is set (Megatron's rule).
    pub renormalize_single: bool,
    /// Multiplies every weight, last. `None` where a preset's family leaves it to the model: it must then be filled in.
    pub scaling_factor: Option<f32>,
    /// Rows without forced ids.
    pub missing: Missing,
    /// Rows with impossible forced ids.
    pub bad: Bad,
    /// Rows with NaN or infinite weights.
    pub nonfinite: Nonfinite,
    /// The ids of rows that go nowhere.
    pub filler: Filler,
    /// δ: in a replayed row, a forced expert e stays while `c_(k) − c_e ≤ δ`, `c` being what native selection goes by and `c_(k)` its k-th
    /// best; one in no admitted group never stays. The others give way, slot after slot, to the best experts of the native choice that
    /// the row does not have yet. `None`, or +∞: all stay; 0: the native choice, up to equal values. Replayed rows are then read whole.
    pub score_replace: Option<f32>,
}

impl Config {
    /// `top_k` experts by this score, not renormalised, scaled by 1.
    pub fn new(score: Score, top_k: usize) -> Config {
        Config {
            top_k: Some(top_k),
            preset_top_k: None,
            score,
            softcap: None,
            needs_selection_bias: false,
            groups: None,
            renormalize: Renormalize::None,
            renormalize_single: false,
            scaling_factor: Some(1.0),
            missing: Missing::default(),
            bad: Bad::default(),
            nonfinite: Nonfinite::default(),
            filler: Filler::default(),
            score_replace: None,
        }
    }

    /// Softmax over the selected experts: Mixtral, Qwen3, GPT-OSS.
    pub fn softmax_selected(top_k: usize) -> Config {
        Config::new(Score::SoftmaxSelected, top_k)
    }
    /// Softmax over all experts, not renormalised: Megatron's pre-softmax, Qwen3 with `norm_topk_prob = false`.
    pub fn softmax(top_k: usize) -> Config {
        Config::new(Score::Softmax, top_k)
    }
    /// Sigmoid, divided by the sum plus 1e-20: DeepSeek-V3 without its groups, scale and bias.
    pub fn sigmoid(top_k: usize) -> Config {
        Config { renormalize: Renormalize::AddEps(1e-20), ..Config::new(Score::Sigmoid, top_k) }
    }
    /// √softplus, divided by the sum plus 1e-20: DeepSeek-V4 without its scale and bias.
    pub fn sqrt_softplus(top_k: usize) -> Config {
        Config { renormalize: Renormalize::AddEps(1e-20), ..Config::new(Score::SqrtSoftplus, top_k) }
    }
    /// A model's router.
    pub fn preset(preset: Preset) -> Config {
        preset.config()
    }

    /// k, for forced ids of `routes_top_k` columns: `top_k`, else the routes', else the preset's.
    pub fn resolve_top_k(&self, routes_top_k: Option<usize>) -> Option<usize> {
        self.top_k.or(routes_top_k).or(self.preset_top_k)
    }

    /// The rule that holds for k experts: [`Renormalize::None`] for a single sigmoid or √softplus unless `renormalize_single`.
    pub fn renormalize_for(&self, top_k: usize) -> Renormalize {
        let lone = top_k == 1 && !self.renormalize_single;
        match self.score {
            Score::Sigmoid | Score::SqrtSoftplus if lone => Renormalize::None,
            _ => self.renormalize,
        }
    }

    /// True if the weights and the gradient need the log-sum-exp of the whole row.
    pub fn needs_lse(&self) -> bool {
        self.score == Score::Softmax
    }

    /// Checks what can be said without a call.
    ///
    /// # Errors
    /// `Config` with every fault.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        self.check_numbers(&mut checks);
        self.check_rules(&mut checks);
        checks.finish()
    }

    fn check_numbers(&self, checks: &mut Checks) {
        let scale = self.scaling_factor;
        checks
            .require(scale.is_some(), Kind::Config, "scaling_factor", || {
                "is not given, and the preset leaves it to the model".into()
            })
            .require(scale.is_none_or(f32::is_finite), Kind::Config, "scaling_factor", || {
                format!("is {}, needs a finite number", scale.unwrap_or_default())
            });
        if let Some(c) = self.softcap {
            checks.require(is_positive(c), Kind::Config, "softcap", || {
                format!("is {c}, needs a positive number, 2^-126 to 2^126")
            });
        }
        if let Some(delta) = self.score_replace {
            checks.require(delta >= 0.0, Kind::Config, "score_replace", || {
                format!("is {delta}, needs a number of at least 0; +inf replaces nothing")
            });
        }
        if let Renormalize::AddEps(x) | Renormalize::Floor(x) = self.renormalize {
            checks.require(is_positive(x), Kind::Config, "renormalize", || {
                format!("adds or floors by {x}, needs a positive number, 2^-126 to 2^126")
            });
        }
    }

    fn check_rules(&self, checks: &mut Checks) {
        let rule = self.renormalize;
        let allowed = match self.score {
            Score::Softmax => matches!(rule, Renormalize::None | Renormalize::Floor(_)),
            Score::SoftmaxSelected | Score::Raw => rule == Renormalize::None,
            Score::Sigmoid | Score::SqrtSoftplus => true,
        };
        checks.require(allowed, Kind::Config, "renormalize", || match self.score {
            Score::Softmax => {
                format!("is {rule:?}; softmax over all takes None or Floor; to divide by the sum, use SoftmaxSelected")
            }
            Score::SoftmaxSelected => format!("is {rule:?}; softmax over the selected is normalised already, use None"),
            _ => format!("is {rule:?}; raw logits are never renormalised, use None"),
        });
    }
}

/// Positive, finite, and neither it nor its reciprocal so small that arithmetic may flush it to zero.
fn is_positive(x: f32) -> bool {
    x >= f32::MIN_POSITIVE && 1.0 / x >= f32::MIN_POSITIVE
}
