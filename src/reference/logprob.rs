//! The oracle of [`logprob`](crate::logprob): each row's sums in f64, column after column.
//!
//! One thing is defined rather than real: a probability ratio `e_j` below 2⁻¹²⁶ is 0, because that is where f32 exponentials end.

use crate::error::{Fault, FaultCode, Result};
use crate::logprob::{Backward, Config, Forward, Gradient, Partial, Sizes, temperature_is_valid};
use crate::memory::{Host, Matrix, View, ViewMut};

/// exp(d/T), and d/T.
fn exponential(d: f64, temperature: f64) -> (f64, f64) {
    let z = d / temperature;
    let e = z.exp();
    if e >= f64::from(f32::MIN_POSITIVE) { (e, z) } else { (0.0, 0.0) }
}

/// The sums of one row.
struct Sums {
    max: f64,
    s: f64,
    a: f64,
    q: f64,
}

impl Sums {
    /// NaN and +∞ are recognised by the maximum, so the sums of such a row (and of an empty one) are 0.
    fn of(logits: &[f64], temperature: f64) -> Sums {
        let larger = |m: f64, &x: &f64| if m.is_nan() || x.is_nan() { f64::NAN } else { m.max(x) };
        let max = logits.iter().fold(f64::NEG_INFINITY, larger) + 0.0;
        let mut sums = Sums { max, s: 0.0, a: 0.0, q: 0.0 };
        if max.is_finite() {
            for x in logits {
                let (e, z) = exponential(x - max, temperature);
                sums.s += e;
                sums.a += e * z;
                sums.q += e * e;
            }
        }
        sums
    }
}

/// Rounding must not carry a value across 0; NaN stays.
fn at_most_zero(x: f64) -> f64 {
    if x > 0.0 { 0.0 } else { x }
}

/// What the arguments say about a row before its logits are looked at.
struct Row {
    absent: bool,
    temperature: f32,
    /// `None` without tokens.
    token: Option<i64>,
}

impl Row {
    fn read(
        row: usize,
        config: &Config,
        tokens: Option<Matrix<'_, Host>>,
        temperature: Option<View<'_, f32, Host>>,
        loss_mask: Option<View<'_, u8, Host>>,
    ) -> Row {
        let token = tokens.map(|tokens| tokens.row_i64(row)[0]);
        Row {
            absent: loss_mask.is_some_and(|mask| mask.as_slice()[row] == 0) || token == Some(config.ignore_index),
            temperature: temperature.map_or(config.temperature, |array| array.as_slice()[row]),
            token,
        }
    }

    /// The column of the token, if it is one.
    fn label(&self, sizes: &Sizes) -> Option<usize> {
        self.token.and_then(|token| usize::try_from(token).ok()).filter(|&token| token < sizes.vocabulary)
    }
}

/// One row's outputs.
#[derive(Clone, Copy)]
struct Outputs {
    logprob: f64,
    entropy: f64,
    max: f64,
    log_sum: f64,
    lse: f64,
    sum_p2: f64,
    saved: Partial,
    sum_sq: f64,
    fault: Option<FaultCode>,
}

impl Outputs {
    fn uniform(value: f32, fault: Option<FaultCode>) -> Outputs {
        let wide = f64::from(value);
        Outputs {
            logprob: wide,
            entropy: wide,
            max: wide,
            log_sum: wide,
            lse: wide,
            sum_p2: wide,
            saved: Partial { max_logit: value, sum: value, weighted: value, label: value },
            sum_sq: wide,
            fault,
        }
    }

    fn of(row: &Row, logits: &[f64], sizes: &Sizes) -> Outputs {
        if row.absent {
            return Outputs::uniform(0.0, None);
        }
        let outside = row.token.is_some() && row.label(sizes).is_none();
        let target = outside.then_some(FaultCode::Target);
        if !temperature_is_valid(row.temperature) {
            return Outputs::uniform(f32::NAN, target.or(Some(FaultCode::Temperature)));
        }
        let temperature = f64::from(row.temperature);
        let sums = Sums::of(logits, temperature);
        let label = if outside { f64::NAN } else { row.label(sizes).map_or(f64::NEG_INFINITY, |y| logits[y]) };
        let saved = Partial {
            max_logit: sums.max as f32,
            sum: sums.s as f32,
            weighted: (sums.a / std::f64::consts::LN_2) as f32,
            label: label as f32,
        };
        if sums.max == f64::NEG_INFINITY {
            let nan = Outputs::uniform(f32::NAN, target.or(Some(FaultCode::EmptyRow)));
            return Outputs { max: sums.max, lse: sums.max, saved, sum_sq: 0.0, ..nan };
        }
        if !sums.max.is_finite() {
            let nan = Outputs::uniform(f32::NAN, target.or(Some(FaultCode::NonfiniteLogit)));
            return Outputs { saved, ..nan };
        }
        let log_sum = sums.s.ln();
        Outputs {
            logprob: at_most_zero((label - sums.max) / temperature - log_sum),
            entropy: (log_sum - sums.a / sums.s).max(0.0),
            max: sums.max / temperature,
            log_sum,
            lse: sums.max / temperature + log_sum,
            sum_p2: sums.q / (sums.s * sums.s),
            saved,
            sum_sq: sums.q,
            fault: target,
        }
    }
}

/// [`Backend::logprob_forward`](crate::Backend::logprob_forward).
pub(super) fn forward(config: &Config, mut call: Forward<'_, Host>) -> Result<()> {
    let sizes = call.validate(config)?;
    let put = |array: &mut Option<ViewMut<'_, f32, Host>>, row: usize, value: f64| {
        if let Some(array) = array {
            array.as_mut_slice()[row] = value as f32;
        }
    };
    for r in 0..sizes.rows {
        let row = Row::read(r, config, call.tokens, call.temperature, call.loss_mask);
        let logits = if row.absent { Vec::new() } else { call.logits.row_f64(r) };
        let counted = &logits[..logits.len().min(sizes.vocabulary)];
        let outputs = Outputs::of(&row, counted, &sizes);
        put(&mut call.logprobs, r, outputs.logprob);
        put(&mut call.entropy, r, outputs.entropy);
        put(&mut call.max, r, outputs.max);
        put(&mut call.log_sum, r, outputs.log_sum);
        put(&mut call.lse, r, outputs.lse);
        put(&mut call.sum_p2, r, outputs.sum_p2);
        put(&mut call.sum_sq, r, outputs.sum_sq);
        if let Some(saved) = &mut call.saved {
            saved.as_mut_slice()[r] = outputs.saved;
        }
        if let (Some(code), Some(word)) = (outputs.fault, &mut call.errors) {
            let word = &mut word.as_mut_slice()[0];
            *word = (*word).min(Fault { row: r as u64, tag: call.tag, code }.to_word());
        }
    }
    Ok(())
}

/// The upstream gradients of a row: a, b, c of the formula.
struct Upstream {
    logprob: f64,
    entropy: f64,
    lse: f64,
}

impl Upstream {
    fn read(call: &Backward<'_, Host>, row: usize) -> Upstream {
        let at = |array: Option<View<'_, f32, Host>>| array.map_or(0.0, |array| f64::from(array.as_slice()[row]));
        Upstream { logprob: at(call.d_logprobs), entropy: at(call.d_entropy), lse: at(call.d_lse) }
    }
    fn is_zero(&self) -> bool {
        self.logprob == 0.0 && self.entropy == 0.0 && self.lse == 0.0
    }
    fn is_finite(&self) -> bool {
        self.logprob.is_finite() && self.entropy.is_finite() && self.lse.is_finite()
    }
}

/// The gradient of a row's counted logits.
fn row_gradient(row: &Row, logits: &[f64], up: &Upstream, sizes: &Sizes) -> Vec<f32> {
    if row.absent || up.is_zero() {
        return vec![0.0; logits.len()];
    }
    let outside = row.token.is_some() && row.label(sizes).is_none();
    let temperature = f64::from(row.temperature);
    let sums = Sums::of(logits, temperature);
    let valid = temperature_is_valid(row.temperature) && sums.max.is_finite() && up.is_finite();
    if !valid || (outside && up.logprob != 0.0) {
        return vec![f32::NAN; logits.len()];
    }
    let mean = sums.a / sums.s;
    let gradient = |(j, x): (usize, &f64)| {
        let (e, z) = exponential(x - sums.max, temperature);
        let p = e / sums.s;
        let chosen = if row.label(sizes) == Some(j) { up.logprob } else { 0.0 };
        ((chosen - p * (up.logprob - up.entropy * (mean - z) - up.lse)) / temperature) as f32
    };
    logits.iter().enumerate().map(gradient).collect()
}

/// [`Backend::logprob_backward`](crate::Backend::logprob_backward). Takes nothing from `saved`: it sums the row again.
pub(super) fn backward(config: &Config, mut call: Backward<'_, Host>) -> Result<()> {
    let sizes = call.validate(config)?;
    for r in 0..sizes.rows {
        let row = Row::read(r, config, call.tokens, call.temperature, call.loss_mask);
        let up = Upstream::read(&call, r);
        let logits = call.gradient.logits().row_f64(r);
        let mut gradient = row_gradient(&row, &logits[..sizes.vocabulary], &up, &sizes);
        gradient.resize(sizes.columns, 0.0);
        match &mut call.gradient {
            Gradient::InPlace(both) => both.write_row(r, &gradient)?,
            Gradient::Into { d_logits, .. } => d_logits.write_row(r, &gradient)?,
        }
    }
    Ok(())
}
