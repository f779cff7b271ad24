//! The oracle of [`logprob`](crate::logprob): each row's sums in f64, column after column.
//!
//! One thing is defined rather than real: a probability ratio `e_j` below 2⁻¹²⁶ is 0, because that is where f32 exponentials end.

/// Writes the outputs of row r that have one number a row, and its record.
macro_rules! put_row {
    ($call:expr, $r:expr, $outputs:expr) => {
        put(&mut $call.entropy, $r, $outputs.entropy as f32);
        put(&mut $call.max, $r, $outputs.max as f32);
        put(&mut $call.log_sum, $r, $outputs.log_sum as f32);
        put(&mut $call.lse, $r, $outputs.lse as f32);
        put(&mut $call.sum_p2, $r, $outputs.sum_p2 as f32);
        put(&mut $call.sum_sq, $r, $outputs.sum_sq as f32);
        put(&mut $call.saved, $r, $outputs.saved);
    };
}

/// Likewise those of its keep-set.
macro_rules! put_kept {
    ($call:expr, $r:expr, $outputs:expr) => {
        put(&mut $call.kept_logprobs, $r, $outputs.logprob as f32);
        put(&mut $call.kept_entropy, $r, $outputs.entropy as f32);
        put(&mut $call.kept_mass, $r, $outputs.mass as f32);
        put(&mut $call.kept_saved, $r, $outputs.saved);
    };
}

mod keep;
mod shard;

pub(super) use shard::{combine, partial};

use crate::error::{Fault, FaultCode, Result};
use crate::logprob::{Backward, Config, Forward, Gradient, Partial, Sizes};
use crate::memory::{Host, Matrix, View, ViewMut};
use keep::KeepSet;

/// exp(d/T), and d/T.
fn exponential(d: f64, temperature: f64) -> (f64, f64) {
    let z = d / temperature;
    let e = z.exp();
    if e >= f64::from(f32::MIN_POSITIVE) { (e, z) } else { (0.0, 0.0) }
}

/// A logit after the softcap.
fn capped(config: &Config, x: f64) -> f64 {
    match config.softcap.map(f64::from) {
        Some(c) if x.is_finite() => c * (f64::from(config.logit_scale) * x / c).tanh(),
        _ => x,
    }
}

/// The derivative of [`capped`], without the cancellation at saturation.
fn slope(config: &Config, x: f64) -> f64 {
    let Some(c) = config.softcap.map(f64::from) else { return 1.0 };
    let w = (-2.0 * (f64::from(config.logit_scale) * x / c).abs()).exp();
    f64::from(config.logit_scale) * 4.0 * w / (1.0 + w).powi(2)
}

/// The sums of one row's logits after the softcap, or of some of them.
#[derive(Clone, Copy)]
struct Sums {
    max: f64,
    s: f64,
    a: f64,
    q: f64,
    /// The logit of the row's (first) token, where it is among them.
    label: f64,
}

impl Sums {
    /// NaN and +∞ are recognised by the maximum, so the sums of such a row (and of an empty one) are 0.
    fn of(logits: &[f64], temperature: f64) -> Sums {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, largest) + 0.0;
        let mut sums = Sums { max, s: 0.0, a: 0.0, q: 0.0, label: f64::NEG_INFINITY };
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

    /// As backward needs them, with the label's logit.
    fn record(&self, label: f64) -> Partial {
        Partial {
            max_logit: self.max as f32,
            sum: self.s as f32,
            weighted: (self.a / std::f64::consts::LN_2) as f32,
            label: label as f32,
        }
    }

    /// The log-probability of a logit after the softcap.
    fn logprob(&self, logit: f64, temperature: f64) -> f64 {
        at_most_zero((logit - self.max) / temperature - self.s.ln())
    }

    fn entropy(&self) -> f64 {
        (self.s.ln() - self.a / self.s).max(0.0)
    }
}

/// The larger one; NaN if either is.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Rounding must not carry a value across 0; NaN stays.
fn at_most_zero(x: f64) -> f64 {
    if x > 0.0 { 0.0 } else { x }
}

/// What a token is to the logits at hand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Id {
    Column(usize),
    /// Of another shard.
    Elsewhere,
    Outside,
    Ignored,
}

/// What the arguments say about a row before its logits are looked at.
struct Row {
    absent: bool,
    valid_temperature: bool,
    /// With the scale of the logits in it, where there is no softcap.
    temperature: f64,
    /// The tokens as they are given; none without tokens.
    tokens: Vec<i64>,
    ids: Vec<Id>,
}

impl Row {
    fn read(
        row: usize,
        config: &Config,
        sizes: &Sizes,
        tokens: Option<Matrix<'_, Host>>,
        temperature: Option<View<'_, f32, Host>>,
        loss_mask: Option<View<'_, u8, Host>>,
    ) -> Row {
        let tokens = tokens.map(|tokens| tokens.row_i64(row)).unwrap_or_default();
        let id = |&token: &i64| match usize::try_from(token) {
            _ if token == config.ignore_index => Id::Ignored,
            Ok(token) if token < sizes.vocab_total => {
                let column = token.checked_sub(sizes.vocab_start).filter(|&column| column < sizes.vocabulary);
                column.map_or(Id::Elsewhere, Id::Column)
            }
            _ => Id::Outside,
        };
        let ids: Vec<Id> = tokens.iter().map(id).collect();
        let given = temperature.map_or(config.temperature, |array| array.as_slice()[row]);
        Row {
            absent: loss_mask.is_some_and(|mask| mask.as_slice()[row] == 0) || ids == [Id::Ignored],
            valid_temperature: config.scales(given),
            temperature: f64::from(given) / config.logit_fold(),
            tokens,
            ids,
        }
    }

    fn is_outside(&self) -> bool {
        self.ids.contains(&Id::Outside)
    }

    /// The logits of the tokens after the softcap, from all columns after it.
    fn labels(&self, logits: &[f64]) -> Vec<f64> {
        let label = |id: &Id| match *id {
            Id::Column(column) => logits[column],
            Id::Outside => f64::NAN,
            Id::Elsewhere | Id::Ignored => f64::NEG_INFINITY,
        };
        self.ids.iter().map(label).collect()
    }
}

/// One row's outputs.
#[derive(Clone)]
struct Outputs {
    logprobs: Vec<f64>,
    entropy: f64,
    max: f64,
    log_sum: f64,
    lse: f64,
    sum_p2: f64,
    /// False where there is no rank and no argmax.
    is_ranked: bool,
    saved: Partial,
    other_labels: Vec<f64>,
    sum_sq: f64,
    fault: Option<FaultCode>,
}

impl Outputs {
    fn uniform(row: &Row, value: f32, fault: Option<FaultCode>) -> Outputs {
        let wide = f64::from(value);
        let of_id = |id: &Id| if *id == Id::Ignored { 0.0 } else { wide };
        Outputs {
            logprobs: row.ids.iter().map(of_id).collect(),
            entropy: wide,
            max: wide,
            log_sum: wide,
            lse: wide,
            sum_p2: wide,
            is_ranked: false,
            saved: Partial { max_logit: value, sum: value, weighted: value, label: value },
            other_labels: row.ids.iter().skip(1).map(|_| wide).collect(),
            sum_sq: wide,
            fault,
        }
    }

    /// From a row's sums and the logits of its tokens after the softcap.
    fn of(row: &Row, sums: impl FnOnce() -> (Sums, Vec<f64>)) -> Outputs {
        if row.absent {
            return Outputs::uniform(row, 0.0, None);
        }
        let target = row.is_outside().then_some(FaultCode::Target);
        if !row.valid_temperature {
            return Outputs::uniform(row, f32::NAN, target.or(Some(FaultCode::Temperature)));
        }
        let (sums, labels) = sums();
        let saved = sums.record(labels.first().copied().unwrap_or(f64::NEG_INFINITY));
        let other_labels = labels.iter().skip(1).copied().collect();
        if !sums.max.is_finite() {
            let is_empty = sums.max == f64::NEG_INFINITY;
            let code = if is_empty { FaultCode::EmptyRow } else { FaultCode::NonfiniteLogit };
            let nan = Outputs::uniform(row, f32::NAN, target.or(Some(code)));
            let nan = Outputs { saved, other_labels, ..nan };
            return if is_empty { Outputs { max: sums.max, lse: sums.max, sum_sq: 0.0, ..nan } } else { nan };
        }
        let log_sum = sums.s.ln();
        let logprob = |(&id, &label): (&Id, &f64)| match id {
            Id::Ignored => 0.0,
            _ => sums.logprob(label, row.temperature),
        };
        Outputs {
            logprobs: row.ids.iter().zip(&labels).map(logprob).collect(),
            entropy: sums.entropy(),
            max: sums.max / row.temperature,
            log_sum,
            lse: sums.max / row.temperature + log_sum,
            sum_p2: sums.q / (sums.s * sums.s),
            is_ranked: true,
            saved,
            other_labels,
            sum_sq: sums.q,
            fault: target,
        }
    }
}

fn put<T: Copy + bytemuck::Pod>(array: &mut Option<ViewMut<'_, T, Host>>, at: usize, value: T) {
    if let Some(array) = array {
        array.as_mut_slice()[at] = value;
    }
}

fn report(errors: &mut Option<ViewMut<'_, u64, Host>>, row: usize, tag: u16, code: Option<FaultCode>) {
    if let (Some(code), Some(word)) = (code, errors) {
        let word = &mut word.as_mut_slice()[0];
        *word = (*word).min(Fault { row: row as u64, tag, code }.to_word());
    }
}

/// How many columns precede a logit at a column, which may lie before or behind them.
fn preceding(raw: &[f64], logit: f64, column: i64) -> i32 {
    let precedes = |(j, &x): (usize, &f64)| x > logit || (x == logit && (j as i64) < column);
    raw.iter().enumerate().filter(|&at| precedes(at)).count() as i32
}

/// The lowest column that holds the largest logit.
fn argmax(raw: &[f64]) -> usize {
    (1..raw.len()).fold(0, |best, j| if raw[j] > raw[best] { j } else { best })
}

/// [`Backend::logprob_forward`](crate::Backend::logprob_forward).
pub(super) fn forward(config: &Config, mut call: Forward<'_, Host>) -> Result<()> {
    let sizes = call.validate(config)?;
    for r in 0..sizes.rows {
        let row = Row::read(r, config, &sizes, call.tokens, call.temperature, call.loss_mask);
        let mut raw = if row.absent { Vec::new() } else { call.logits.row_f64(r) };
        raw.truncate(sizes.vocabulary);
        let logits: Vec<f64> = raw.iter().map(|&x| capped(config, x)).collect();
        let outputs = Outputs::of(&row, || (Sums::of(&logits, row.temperature), row.labels(&logits)));
        let mut fault = None;
        if call.asks_for_rows() {
            for (k, id) in row.ids.iter().enumerate() {
                put(&mut call.logprobs, r * sizes.ids + k, outputs.logprobs[k] as f32);
                let rank = match *id {
                    Id::Column(column) if outputs.is_ranked => preceding(&raw, raw[column], column as i64),
                    _ => -1,
                };
                put(&mut call.rank, r * sizes.ids + k, rank);
            }
            put(&mut call.argmax, r, if outputs.is_ranked { argmax(&raw) as i32 } else { -1 });
            put_row!(call, r, outputs);
            for (k, &label) in outputs.other_labels.iter().enumerate() {
                put(&mut call.other_labels, r * (sizes.ids - 1) + k, label as f32);
            }
            fault = outputs.fault;
        }
        if let Some(keep) = &call.keep
            && call.asks_for_kept()
        {
            let set = KeepSet::read(keep, r, &sizes);
            let sums = set.sums(&row, &logits, config);
            let full = call.saved.is_some().then(|| Sums::of(&logits, row.temperature));
            let found = keep::Outputs::of(&row, &set, sums, full);
            put_kept!(call, r, found);
            if let Some(count) = &mut call.label_added {
                count.as_mut_slice()[0] += u64::from(set.misses(&row));
            }
            report(&mut call.errors, r, call.tag, found.fault);
        }
        report(&mut call.errors, r, call.tag, fault);
    }
    Ok(())
}

/// The upstream gradients of a row: a, b, c of the formula, and a', b' of the keep-set.
struct Upstream {
    logprobs: Vec<f64>,
    entropy: f64,
    lse: f64,
    kept_logprob: f64,
    kept_entropy: f64,
}

impl Upstream {
    /// The gradient of an ignored token is absent.
    fn read(call: &Backward<'_, Host>, r: usize, row: &Row) -> Upstream {
        let at =
            |array: Option<View<'_, f32, Host>>, i: usize| array.map_or(0.0, |array| f64::from(array.as_slice()[i]));
        let of_id = |(k, id): (usize, &Id)| match id {
            Id::Ignored => 0.0,
            _ => at(call.d_logprobs, r * row.ids.len() + k),
        };
        Upstream {
            logprobs: row.ids.iter().enumerate().map(of_id).collect(),
            entropy: at(call.d_entropy, r),
            lse: at(call.d_lse, r),
            kept_logprob: at(call.d_kept_logprobs, r),
            kept_entropy: at(call.d_kept_entropy, r),
        }
    }
    fn of_rows(&self) -> impl Iterator<Item = f64> {
        self.logprobs.iter().copied().chain([self.entropy, self.lse])
    }
    fn has_rows(&self) -> bool {
        self.of_rows().any(|x| x != 0.0)
    }
    fn has_kept(&self) -> bool {
        self.kept_logprob != 0.0 || self.kept_entropy != 0.0
    }
    fn is_finite(&self) -> bool {
        self.of_rows().chain([self.kept_logprob, self.kept_entropy]).all(f64::is_finite)
    }
    /// True if a token outside the vocabulary has one.
    fn is_outside(&self, row: &Row) -> bool {
        let of_rows = row.ids.iter().zip(&self.logprobs).any(|(&id, &a)| id == Id::Outside && a != 0.0);
        of_rows || (row.is_outside() && self.kept_logprob != 0.0)
    }
}

/// Adds what a distribution with these sums puts into the gradient of the logits at `columns`. `own` is the upstream of the tokens at a column, `id`
/// that of all tokens.
fn add_share(
    gradient: &mut [f64],
    logits: &[f64],
    columns: &[usize],
    sums: &Sums,
    row: &Row,
    up: [f64; 3],
    own: impl Fn(usize) -> f64,
) {
    let [id, entropy, lse] = up;
    let mean = sums.a / sums.s;
    for &j in columns {
        let (e, z) = exponential(logits[j] - sums.max, row.temperature);
        let p = e / sums.s;
        gradient[j] += (own(j) - p * (id - entropy * (mean - z) - lse)) / row.temperature;
    }
}

/// The gradient of a row's counted logits. `all` are the sums of all shards, `kept` those of the keep-set.
fn row_gradient(
    config: &Config,
    row: &Row,
    raw: &[f64],
    up: &Upstream,
    all: impl Fn(&[f64]) -> Sums,
    keep: Option<(KeepSet, Option<Sums>)>,
) -> Vec<f32> {
    if row.absent || !(up.has_rows() || up.has_kept()) {
        return vec![0.0; raw.len()];
    }
    let nan = vec![f32::NAN; raw.len()];
    if !row.valid_temperature || !up.is_finite() || up.is_outside(row) {
        return nan;
    }
    let logits: Vec<f64> = raw.iter().map(|&x| capped(config, x)).collect();
    let mut gradient = vec![0.0; raw.len()];
    let own = |j: usize| row.ids.iter().zip(&up.logprobs).filter(|&(&id, _)| id == Id::Column(j)).map(|(_, a)| a).sum();
    if up.has_rows() {
        let sums = all(&logits);
        if !sums.max.is_finite() {
            return nan;
        }
        let columns: Vec<usize> = (0..raw.len()).collect();
        let id = up.logprobs.iter().sum();
        add_share(&mut gradient, &logits, &columns, &sums, row, [id, up.entropy, up.lse], own);
    }
    if let Some((set, kept)) = keep
        && up.has_kept()
    {
        let Some(sums) = kept.or_else(|| set.sums(row, &logits, config)).filter(|sums| sums.max.is_finite()) else {
            return nan;
        };
        let columns = set.columns(row, config);
        let own = |j: usize| if row.ids[0] == Id::Column(j) { up.kept_logprob } else { 0.0 };
        add_share(&mut gradient, &logits, &columns, &sums, row, [up.kept_logprob, up.kept_entropy, 0.0], own);
    }
    // What is outside a keep-set has no gradient, whatever it holds.
    let of_raw = |(&g, &x): (&f64, &f64)| if g == 0.0 { 0.0 } else { (g * slope(config, x)) as f32 };
    gradient.iter().zip(raw).map(of_raw).collect()
}

/// [`Backend::logprob_backward`](crate::Backend::logprob_backward). Takes nothing from `saved` where the logits are not a shard: it sums the row again.
pub(super) fn backward(config: &Config, mut call: Backward<'_, Host>) -> Result<()> {
    let sizes = call.validate(config)?;
    let is_shard = sizes.vocab_total != sizes.vocabulary;
    for r in 0..sizes.rows {
        let row = Row::read(r, config, &sizes, call.tokens, call.temperature, call.loss_mask);
        let up = Upstream::read(&call, r, &row);
        let raw = call.gradient.logits().row_f64(r);
        let saved = call.saved.as_slice()[r];
        let all = |logits: &[f64]| if is_shard { shard::sums_of(&saved) } else { Sums::of(logits, row.temperature) };
        let keep = call.keep.as_ref().map(|keep| {
            let kept = call.kept_saved.filter(|_| is_shard).map(|kept| shard::sums_of(&kept.as_slice()[r]));
            (KeepSet::read(keep, r, &sizes), kept)
        });
        let mut gradient = row_gradient(config, &row, &raw[..sizes.vocabulary], &up, all, keep);
        gradient.resize(sizes.columns, 0.0);
        match &mut call.gradient {
            Gradient::InPlace(both) => both.write_row(r, &gradient)?,
            Gradient::Into { d_logits, .. } => d_logits.write_row(r, &gradient)?,
        }
    }
    Ok(())
}
