//! Log-probabilities of chosen tokens, entropies and log-sum-exps, straight from logits; and their gradients.
//!
//! For row `u` of the logits `x`, V counted columns, temperature T and the chosen token `y = tokens[u]`:
//!
//! ```text
//! M = max x_j    d_j = x_j − M    e_j = exp(d_j / T)    s = Σ e_j    A = Σ e_j·d_j/T    q = Σ e_j²
//!
//! logprobs = d_y/T − log s        max     = M/T               lse    = M/T + log s
//! entropy  = log s − A/s          log_sum = log s             sum_p2 = q/s²
//! ```
//!
//! and with the upstream gradients `a = d_logprobs[u]`, `b = d_entropy[u]`, `c = d_lse[u]` and `p_j = e_j/s`
//!
//! ```text
//! d_logits[u,j] = (a·1[j = y] − p_j·(a − b·(A/s − d_j/T) − c)) / T
//! ```
//!
//! Row `u` of the logits is the distribution that predicts `tokens[u]`; nothing is shifted. Every logit is read once, forward and
//! backward, and a row's bits depend on that row alone: not on the other rows, their number, its stride or address, which outputs
//! are asked for, or how the work is divided. `exp(new − old)` of equal logits is exactly 1.
//!
//! **Absent rows.** A row whose `loss_mask` is 0 or whose token is [`Config::ignore_index`] is never looked at: its outputs are
//! +0.0 and so is its gradient, whatever its logits hold.
//!
//! **Bad data** that only the device can see sets the error word and leaves a defined result in that row, and in no other:
//!
//! | found | code | the row holds |
//! |---|---|---|
//! | a token outside `[0, V)` | [`Target`](FaultCode::Target) | NaN in `logprobs`; everything else as usual |
//! | a temperature that is not positive and finite, or below about 4.24e-39 | [`Temperature`](FaultCode::Temperature) | NaN |
//! | −∞ in every column | [`EmptyRow`](FaultCode::EmptyRow) | −∞ in `max` and `lse`, NaN in the rest |
//! | NaN or +∞ in a counted column | [`NonfiniteLogit`](FaultCode::NonfiniteLogit) | NaN |
//!
//! −∞ in some columns is a mask and legal. The gradient of a faulty row is NaN, or zero if its upstream gradients are all zero.
//!
//! The form, with the maximum subtracted before anything is scaled, is that of the online softmax (Milakov and Gimelshein,
//! <https://arxiv.org/abs/1805.02867>).

use bytemuck::{Pod, Zeroable};

use crate::element::Element;
#[cfg(doc)]
use crate::error::FaultCode;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Matrix, MatrixMut, Memory, View, ViewMut};

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
    /// The token id of an absent row.
    pub ignore_index: i64,
}

impl Default for Config {
    /// Temperature 1, every column, rows of token −100 absent.
    fn default() -> Config {
        Config { temperature: 1.0, vocabulary: None, ignore_index: -100 }
    }
}

impl Config {
    /// As the default, at this temperature.
    pub fn at_temperature(temperature: f32) -> Config {
        Config { temperature, ..Config::default() }
    }

    /// # Errors
    /// `Temperature` where f32 cannot scale by it.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        checks.require(temperature_is_valid(self.temperature), Kind::Temperature, "temperature", || {
            format!("is {}, needs a positive finite number of at least about 4.24e-39", self.temperature)
        });
        checks.finish()
    }

    /// V, for logits of this many columns.
    fn vocabulary_of(&self, columns: usize) -> usize {
        self.vocabulary.unwrap_or(columns)
    }
}

/// True where `log2(e) / temperature` is a positive, finite f32; then so is `1 / temperature`.
pub(crate) fn temperature_is_valid(temperature: f32) -> bool {
    temperature > 0.0 && temperature.is_finite() && scale_of(temperature).is_finite()
}

/// `log2(e) / temperature`, rounded once: what f32 arithmetic scales differences of logits by.
pub(crate) fn scale_of(temperature: f32) -> f32 {
    (std::f64::consts::LOG2_E / f64::from(temperature)) as f32
}

/// What a row's columns sum to: all that the outputs are made of, and what backward needs again. 16 bytes a row.
///
/// An absent row's record is all zeros. A faulty row's has a `max_logit` of −∞, +∞ or NaN.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Partial {
    /// M: the largest logit, before the temperature. A zero is +0.0.
    pub max_logit: f32,
    /// s = Σ exp((x_j − M)/T).
    pub sum: f32,
    /// W = A/ln 2 = Σ exp((x_j − M)/T)·(x_j − M)·log2(e)/T.
    pub weighted: f32,
    /// The chosen token's logit; −∞ without tokens, NaN for a token outside the vocabulary.
    pub label: f32,
}

/// One forward call: N rows, V counted of P columns. Ask for any outputs; asking for more does not change the bits of the others.
#[derive(Debug)]
pub struct Forward<'a, M> {
    /// `[N, P]` bf16, f16 or f32; any row stride, any address that is a multiple of the element's size. Never written.
    pub logits: Matrix<'a, M>,
    /// `[N, 1]` i32 or i64: the chosen tokens. Without them there are no `logprobs`.
    pub tokens: Option<Matrix<'a, M>>,
    /// `[N]`: a temperature per row, instead of the configuration's.
    pub temperature: Option<View<'a, f32, M>>,
    /// `[N]`: 0 makes a row absent.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[N]`, at most 0, in nats.
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
    /// `[N]`: what backward needs.
    pub saved: Option<ViewMut<'a, Partial, M>>,
    /// `[N]`: q = Σ e², in the units of `saved`.
    pub sum_sq: Option<ViewMut<'a, f32, M>>,
    /// Scratch memory of at least [`workspace_bytes`]; lets several blocks share a row, which is faster for few rows.
    pub workspace: Option<ViewMut<'a, u8, M>>,
    /// Where bad data is reported.
    pub errors: Option<ViewMut<'a, u64, M>>,
    /// The caller's number for this call, reported with a fault.
    pub tag: u16,
}

impl<'a, M: Memory> Forward<'a, M> {
    /// A call on `logits` `[N, P]` that asks for nothing yet.
    pub fn new(logits: Matrix<'a, M>) -> Self {
        Forward {
            logits,
            tokens: None,
            temperature: None,
            loss_mask: None,
            logprobs: None,
            entropy: None,
            max: None,
            log_sum: None,
            lse: None,
            sum_p2: None,
            saved: None,
            sum_sq: None,
            workspace: None,
            errors: None,
            tag: 0,
        }
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Temperature`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `Workspace`.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let sizes = Sizes::of(config, &self.logits);
        let rows = sizes.rows;
        let mut checks = Checks::new();
        sizes.check(&mut checks, &self.logits);
        checks.merge(check_rows(config, self.temperature, self.loss_mask, self.tokens, rows));
        checks.require(self.logprobs.is_none() || self.tokens.is_some(), Kind::Shape, "logprobs", || {
            "are asked for, but there are no tokens".into()
        });
        for (name, output) in self.float_outputs() {
            check_row_array(&mut checks, name, output.as_ref().map(ViewMut::as_view), rows);
        }
        check_row_array(&mut checks, "saved", self.saved.as_ref().map(ViewMut::as_view), rows);
        check_error_word(&mut checks, &self.errors);
        if let Some(workspace) = &self.workspace {
            let needed = workspace_bytes(rows, sizes.vocabulary);
            checks.require(workspace.len() >= needed, Kind::Workspace, "workspace", || {
                format!("has {} bytes, needs {needed} for {rows} rows of {} columns", workspace.len(), sizes.vocabulary)
            });
        }
        let inputs = [
            Some(self.logits.layout().extent("logits", false)),
            self.tokens.map(|tokens| tokens.layout().extent("tokens", false)),
            self.temperature.map(|array| array.extent("temperature")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.saved.as_ref().map(|array| array.extent("saved")),
            self.workspace.as_ref().map(|array| array.extent("workspace")),
            self.errors.as_ref().map(|array| array.extent("errors")),
        ];
        let outputs = self.float_outputs().map(|(name, array)| array.as_ref().map(|array| array.extent(name)));
        checks.disjoint(&[&inputs[..], &outputs[..]].concat());
        checks.finish().map(|()| sizes)
    }

    fn float_outputs(&self) -> [(&'static str, &Option<ViewMut<'a, f32, M>>); 7] {
        [
            ("logprobs", &self.logprobs),
            ("entropy", &self.entropy),
            ("max", &self.max),
            ("log_sum", &self.log_sum),
            ("lse", &self.lse),
            ("sum_p2", &self.sum_p2),
            ("sum_sq", &self.sum_sq),
        ]
    }
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
        /// `[N, P]`, in the logits' type or f32. Columns from V on are written +0.0.
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
#[derive(Debug)]
pub struct Backward<'a, M> {
    /// The logits of the forward call, and where their gradient goes.
    pub gradient: Gradient<'a, M>,
    /// `[N]`: what the forward call saved. May be used any number of times.
    pub saved: View<'a, Partial, M>,
    /// `[N, 1]` i32 or i64: the tokens of the forward call. Needed with `d_logprobs`.
    pub tokens: Option<Matrix<'a, M>>,
    /// `[N]`: the temperatures of the forward call.
    pub temperature: Option<View<'a, f32, M>>,
    /// `[N]`: the mask of the forward call.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[N]`: the gradient of the loss by `logprobs`.
    pub d_logprobs: Option<View<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `entropy`.
    pub d_entropy: Option<View<'a, f32, M>>,
    /// `[N]`: the gradient of the loss by `lse`.
    pub d_lse: Option<View<'a, f32, M>>,
}

impl<'a, M: Memory> Backward<'a, M> {
    /// A call without upstream gradients yet.
    pub fn new(gradient: Gradient<'a, M>, saved: View<'a, Partial, M>) -> Self {
        Backward {
            gradient,
            saved,
            tokens: None,
            temperature: None,
            loss_mask: None,
            d_logprobs: None,
            d_entropy: None,
            d_lse: None,
        }
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Temperature`, `Shape`, `Dtype`, `Alignment`, `Overlap`, `MissingInput`.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let logits = self.gradient.logits();
        let sizes = Sizes::of(config, &logits);
        let rows = sizes.rows;
        let mut checks = Checks::new();
        sizes.check(&mut checks, &logits);
        checks.merge(check_rows(config, self.temperature, self.loss_mask, self.tokens, rows));
        checks.require(self.d_logprobs.is_none() || self.tokens.is_some(), Kind::Shape, "d_logprobs", || {
            "are given, but there are no tokens".into()
        });
        let upstream = [("d_logprobs", self.d_logprobs), ("d_entropy", self.d_entropy), ("d_lse", self.d_lse)];
        checks.require(upstream.iter().any(|(_, array)| array.is_some()), Kind::MissingInput, "d_logprobs", || {
            "or d_entropy or d_lse is needed".into()
        });
        for (name, array) in upstream {
            check_row_array(&mut checks, name, array, rows);
        }
        check_row_array(&mut checks, "saved", Some(self.saved), rows);
        self.check_target(&mut checks, &logits);
        let target = self.gradient.target().layout().extent("d_logits", true);
        let inputs = [
            self.tokens.map(|tokens| tokens.layout().extent("tokens", false)),
            self.temperature.map(|array| array.extent("temperature")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            Some(self.saved.extent("saved")),
            self.d_logprobs.map(|array| array.extent("d_logprobs")),
            self.d_entropy.map(|array| array.extent("d_entropy")),
            self.d_lse.map(|array| array.extent("d_lse")),
            (!self.is_in_place()).then(|| logits.layout().extent("logits", false)),
            Some(target),
        ];
        checks.disjoint(&inputs);
        checks.finish().map(|()| sizes)
    }

    fn check_target(&self, checks: &mut Checks, logits: &Matrix<'_, M>) {
        let target = self.gradient.target();
        checks.shape("d_logits", &[target.rows(), target.columns()], &[logits.rows(), logits.columns()]).require(
            target.element() == logits.element() || target.element() == Element::F32,
            Kind::Dtype,
            "d_logits",
            || format!("holds {}, needs {} (as the logits) or f32", target.element(), logits.element()),
        );
    }

    /// True if every gradient replaces its logit.
    pub fn is_in_place(&self) -> bool {
        self.gradient.logits().layout() == self.gradient.target().layout()
    }
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
}

impl Sizes {
    fn of<M: Memory>(config: &Config, logits: &Matrix<'_, M>) -> Sizes {
        Sizes { rows: logits.rows(), vocabulary: config.vocabulary_of(logits.columns()), columns: logits.columns() }
    }

    fn check<M: Memory>(&self, checks: &mut Checks, logits: &Matrix<'_, M>) {
        let Sizes { rows, vocabulary, columns } = *self;
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
            });
    }
}

/// Bytes of scratch memory with which several blocks may share a row. Worth giving where rows are fewer than about twice the
/// device's multiprocessors; never changes a result.
pub fn workspace_bytes(rows: usize, vocabulary: usize) -> usize {
    let record = size_of::<Partial>();
    // A record per panel and the chosen token's logit per row; the rest lets the device round the address up.
    rows * vocabulary.div_ceil(PANEL) * record + rows * size_of::<f32>() + (record - 1)
}

fn check_rows<M: Memory>(
    config: &Config,
    temperature: Option<View<'_, f32, M>>,
    loss_mask: Option<View<'_, u8, M>>,
    tokens: Option<Matrix<'_, M>>,
    rows: usize,
) -> Result<()> {
    let mut checks = Checks::new();
    if temperature.is_none() {
        checks.merge(config.validate());
    }
    check_row_array(&mut checks, "temperature", temperature, rows);
    check_row_array(&mut checks, "loss_mask", loss_mask, rows);
    if let Some(tokens) = tokens {
        checks.shape("tokens", &[tokens.rows(), tokens.columns()], &[rows, 1]).require(
            Element::TOKENS.contains(&tokens.element()),
            Kind::Dtype,
            "tokens",
            || format!("hold {}, need i32 or i64", tokens.element()),
        );
    }
    checks.finish()
}

fn check_row_array<T: Pod, M: Memory>(
    checks: &mut Checks,
    name: &'static str,
    array: Option<View<'_, T, M>>,
    rows: usize,
) {
    let Some(array) = array else { return };
    checks.shape(name, &[array.len()], &[rows]).require(
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
