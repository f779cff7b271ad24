//! Log-probabilities of chosen tokens, entropies and log-sum-exps, straight from logits; and their gradients.
//!
//! For row `u` of the logits `x`, V counted columns, temperature T and a chosen token `y = tokens[u,k]`:
//!
//! ```text
//! u_j = x_j, or C·tanh(logit_scale·x_j/C) with a softcap C
//! M = max u_j    d_j = u_j − M    e_j = exp(d_j / T)    s = Σ e_j    A = Σ e_j·d_j/T    q = Σ e_j²
//!
//! logprobs = d_y/T − log s        max     = M/T               lse    = M/T + log s
//! entropy  = log s − A/s          log_sum = log s             sum_p2 = q/s²
//! rank     = #(x_j > x_y) + #(x_j = x_y, j < y)               argmax = the column of rank 0
//! ```
//!
//! and with the upstream gradients `a_k = d_logprobs[u,k]`, `b = d_entropy[u]`, `c = d_lse[u]` and `p_j = e_j/s`
//!
//! ```text
//! d_logits[u,j] = ( Σ_k a_k·1[j = y_k] − p_j·(Σ_k a_k − b·(A/s − d_j/T) − c) ) / T · h_j
//! h_j = 1, or logit_scale·(1 − (u_j/C)²) with a softcap
//! ```
//!
//! Row `u` of the logits is the distribution that predicts `tokens[u]`; nothing is shifted. Every logit is read once, forward and
//! backward, and a row's bits depend on that row alone: not on the other rows, their number, its stride or address, which outputs
//! are asked for, or how the work is divided. `exp(new − old)` of equal logits is exactly 1.
//!
//! **Keep-sets** ([`KeepSets`]) replay top-p and top-k sampling: the same numbers over the tokens that the sampler kept, and their gradients.
//!
//! **Vocabulary shards.** Where each device has some of the columns ([`Config::vocab_start`]), [`PartialCall`] sums them into records of 16 bytes
//! a row, any collective gathers these, and [`Combine`] makes the outputs of them.
//!
//! **Absent rows.** A row whose `loss_mask` is 0 or whose only token is [`Config::ignore_index`] is never looked at: its outputs are
//! +0.0 (rank and argmax −1) and so is its gradient, whatever its logits hold. Of several tokens an ignored one is absent alone.
//!
//! **Bad data** that only the device can see sets the error word and leaves a defined result in that row, and in no other:
//!
//! | found | code | the row holds |
//! |---|---|---|
//! | a token outside `[0, V)` | [`Target`](FaultCode::Target) | NaN in its `logprobs`, rank −1; everything else as usual |
//! | a temperature that is not positive and finite, or below about 4.24e-39 | [`Temperature`](FaultCode::Temperature) | NaN, rank and argmax −1 |
//! | −∞ in every column | [`EmptyRow`](FaultCode::EmptyRow) | −∞ in `max` and `lse`, NaN in the rest, rank and argmax −1 |
//! | NaN or +∞ in a counted column | [`NonfiniteLogit`](FaultCode::NonfiniteLogit) | NaN, rank and argmax −1 |
//! | kept ids that do not ascend or are outside the vocabulary | [`Keep`](FaultCode::Keep) | NaN in the kept outputs; everything else as usual |
//! | offsets of kept ids that descend or leave the ids | [`KeepOffsets`](FaultCode::KeepOffsets) | the same |
//! | −∞ in every kept column | [`EmptyKeep`](FaultCode::EmptyKeep) | NaN in the kept outputs, `kept_mass` 0; everything else as usual |
//!
//! −∞ in some columns is a mask and legal. The gradient of a faulty row is NaN, or zero if its upstream gradients are all zero.
//!
//! The form, with the maximum subtracted before anything is scaled, is that of the online softmax (Milakov and Gimelshein,
//! <https://arxiv.org/abs/1805.02867>).

mod call;
mod keep;
mod outputs;
mod shard;

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

pub(crate) use call::part;
pub use call::{Backward, Forward, Gradient};
pub use keep::{KeepSets, sort_keep_sets};
pub use shard::{Combine, PartialCall};

use crate::element::Element;
#[cfg(doc)]
use crate::error::FaultCode;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Matrix, Memory, View, ViewMut};

/// Columns of a panel, the smallest unit of a row's sums. Part of the contract on bits.
pub const PANEL: usize = 2048;
/// Panels, or merged groups of them, that one step of the merge takes. Part of the contract on bits.
pub const SUPER_PANEL: usize = 128;

/// What the numbers of a call mean.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// Divides every logit, in f32 arithmetic. Positive, finite, at least about 4.24e-39. A call may bring one per row instead.
    pub temperature: f32,
    /// V: how many of the logits' columns count, the first ones; `None`: all. Columns behind them (padding) are not read.
    pub vocabulary: Option<usize>,
    /// The token id of an absent row; where a row has several, of an absent token.
    pub ignore_index: i64,
    /// C: bounds the logits by C·tanh(logit_scale·x/C), before the temperature. −∞, +∞ and NaN pass.
    pub softcap: Option<f32>,
    /// Multiplies the logits before the softcap. Without a softcap the temperature is divided by it, in f64.
    pub logit_scale: f32,
    /// The token id of the first column: not 0 where the logits are a shard of the vocabulary.
    pub vocab_start: usize,
    /// How many tokens there are in all shards together; `None`: those of these logits. Tokens beyond are faults.
    pub vocab_total: Option<usize>,
    /// `kept_logprobs` of a token that is not in its keep-set is −∞; otherwise the token joins the set.
    pub strict_keep: bool,
}

impl Default for Config {
    /// Temperature 1, every column, rows of token −100 absent, no softcap, no shards.
    fn default() -> Config {
        Config {
            temperature: 1.0,
            vocabulary: None,
            ignore_index: -100,
            softcap: None,
            logit_scale: 1.0,
            vocab_start: 0,
            vocab_total: None,
            strict_keep: false,
        }
    }
}

impl Config {
    /// As the default, at this temperature.
    pub fn at_temperature(temperature: f32) -> Config {
        Config { temperature, ..Config::default() }
    }

    /// # Errors
    /// `Temperature` where f32 cannot scale by it; `Softcap` for a softcap or a scale of logits that is not positive and finite.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        checks.merge(self.validate_limits());
        checks.require(self.scales(self.temperature), Kind::Temperature, "temperature", || {
            format!("is {}, needs a positive finite number of at least about 4.24e-39", self.temperature)
        });
        checks.finish()
    }

    /// All but the temperature, which a call may bring along.
    fn validate_limits(&self) -> Result<()> {
        let is_positive = |x: f32| x > 0.0 && x.is_finite();
        let mut checks = Checks::new();
        if let Some(c) = self.softcap {
            let valid = is_positive(c) && is_positive(self.cap_scale());
            checks.require(valid, Kind::Softcap, "softcap", || {
                format!(
                    "is {c}, needs a positive finite number that logit_scale {} can be divided by",
                    self.logit_scale
                )
            });
        }
        checks.require(is_positive(self.logit_scale), Kind::Softcap, "logit_scale", || {
            format!("is {}, needs a positive finite number", self.logit_scale)
        });
        checks.finish()
    }

    /// True where `log2(e) / T` is a positive, finite f32 with the logits' scale in T; then so is `1 / T`.
    pub(crate) fn scales(&self, temperature: f32) -> bool {
        let scale = (std::f64::consts::LOG2_E / (f64::from(temperature) / self.logit_fold())) as f32;
        temperature > 0.0 && temperature.is_finite() && scale.is_finite()
    }

    /// What the temperature is divided by.
    pub(crate) fn logit_fold(&self) -> f64 {
        if self.softcap.is_some() { 1.0 } else { f64::from(self.logit_scale) }
    }

    /// `logit_scale / C`, rounded once; 0 without a softcap.
    pub(crate) fn cap_scale(&self) -> f32 {
        self.softcap.map_or(0.0, |c| (f64::from(self.logit_scale) / f64::from(c)) as f32)
    }

    /// V, for logits of this many columns.
    fn vocabulary_of(&self, columns: usize) -> usize {
        self.vocabulary.unwrap_or(columns)
    }
}

/// What a row's columns sum to: all that the outputs are made of, and what backward needs again. 16 bytes a row.
///
/// An absent row's record is all zeros. A faulty row's has a `max_logit` of −∞, +∞ or NaN.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Partial {
    /// M: the largest logit, after the softcap and before the temperature. A zero is +0.0.
    pub max_logit: f32,
    /// s = Σ exp((x_j − M)/T).
    pub sum: f32,
    /// W = A/ln 2 = Σ exp((x_j − M)/T)·(x_j − M)·log2(e)/T.
    pub weighted: f32,
    /// The (first) chosen token's logit, after the softcap; −∞ without tokens and for a token of another shard, NaN for a token outside the
    /// vocabulary.
    pub label: f32,
}

/// What a call's shapes come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// N.
    pub rows: usize,
    /// V, the columns that count.
    pub vocabulary: usize,
    /// P, the columns that are there.
    pub columns: usize,
    /// K, the tokens of a row; 1 without tokens.
    pub ids: usize,
    /// The token of the first column.
    pub vocab_start: usize,
    /// Tokens of all shards.
    pub vocab_total: usize,
    /// Where these rows begin in a call that is made piece by piece, and how many rows it has.
    pub(crate) first_row: usize,
    pub(crate) call_rows: usize,
}

impl Sizes {
    fn of<M: Memory>(config: &Config, logits: &Matrix<'_, M>, tokens: &Option<Matrix<'_, M>>) -> Sizes {
        let vocabulary = config.vocabulary_of(logits.columns());
        Sizes {
            rows: logits.rows(),
            vocabulary,
            columns: logits.columns(),
            ids: tokens.map_or(1, |tokens| tokens.columns()),
            vocab_start: config.vocab_start,
            vocab_total: config.vocab_total.unwrap_or(config.vocab_start.saturating_add(vocabulary)),
            first_row: 0,
            call_rows: logits.rows(),
        }
    }

    /// Those of some of the rows.
    pub(crate) fn piece(&self, rows: &Range<usize>) -> Sizes {
        Sizes { rows: rows.len(), first_row: rows.start, ..*self }
    }

    fn check<M: Memory>(&self, checks: &mut Checks, logits: &Matrix<'_, M>) {
        let Sizes { rows, vocabulary, columns, ids, vocab_start, vocab_total, .. } = *self;
        checks
            .require(Element::FLOATS.contains(&logits.element()), Kind::Dtype, "logits", || {
                format!("hold {}, need bf16, f16 or f32", logits.element())
            })
            .require((1..=columns).contains(&vocabulary), Kind::Shape, "vocabulary", || {
                format!("is {vocabulary}, needs 1 to the logits' {columns} columns")
            })
            .require(columns <= i32::MAX as usize, Kind::Shape, "logits", || {
                format!("have {columns} columns, at most {} are possible", i32::MAX)
            })
            .require(rows <= u32::MAX as usize, Kind::Shape, "logits", || {
                format!("have {rows} rows, at most {} are possible", u32::MAX)
            })
            .require((1..=u32::MAX as usize).contains(&ids), Kind::Shape, "tokens", || {
                format!("have {ids} columns, need 1 to {}", u32::MAX)
            })
            .require(vocab_total <= i32::MAX as usize, Kind::Shape, "vocab_total", || {
                format!("is {vocab_total}, at most {} are possible", i32::MAX)
            })
            .require(vocab_start.saturating_add(vocabulary) <= vocab_total, Kind::Shape, "vocab_total", || {
                format!("is {vocab_total}, but {vocabulary} columns begin at {vocab_start}")
            });
    }
}

/// Bytes of scratch memory with which several blocks may share a row. Worth giving where rows are fewer than about twice the
/// device's multiprocessors; never changes a result.
pub fn workspace_bytes(rows: usize, vocabulary: usize) -> usize {
    let record = size_of::<Partial>();
    // A record per panel; the best column and the chosen token's logit per row; the rest lets the device round the address up.
    rows * vocabulary.div_ceil(PANEL) * record + rows * (size_of::<u64>() + size_of::<f32>()) + (record - 1)
}

fn check_rows<M: Memory>(
    config: &Config,
    temperature: Option<View<'_, f32, M>>,
    loss_mask: Option<View<'_, u8, M>>,
    tokens: Option<Matrix<'_, M>>,
    rows: usize,
) -> Result<()> {
    let mut checks = Checks::new();
    checks.merge(if temperature.is_none() { config.validate() } else { config.validate_limits() });
    check_row_array(&mut checks, "temperature", temperature, rows);
    check_row_array(&mut checks, "loss_mask", loss_mask, rows);
    if let Some(tokens) = tokens {
        checks.shape("tokens", &[tokens.rows()], &[rows]).require(
            Element::TOKENS.contains(&tokens.element()),
            Kind::Dtype,
            "tokens",
            || format!("hold {}, need i32 or i64", tokens.element()),
        );
    }
    checks.finish()
}

/// An array that has as many elements as this, where it is there.
pub(crate) fn check_row_array<T: Pod, M: Memory>(
    checks: &mut Checks,
    name: &'static str,
    array: Option<View<'_, T, M>>,
    len: usize,
) {
    let Some(array) = array else { return };
    checks.shape(name, &[array.len()], &[len]).require(
        array.address().is_multiple_of(align_of::<T>()),
        Kind::Alignment,
        name,
        || format!("address {:#x} is not a multiple of {}", array.address(), align_of::<T>()),
    );
}

fn check_error_word<M: Memory>(checks: &mut Checks, errors: &Option<ViewMut<'_, u64, M>>) {
    let Some(errors) = errors else { return };
    checks.require(!errors.is_empty(), Kind::Shape, "errors", || "is empty, needs one word".into()).require(
        errors.address().is_multiple_of(align_of::<u64>()),
        Kind::Alignment,
        "errors",
        || format!("address {:#x} is not a multiple of 8", errors.address()),
    );
}
