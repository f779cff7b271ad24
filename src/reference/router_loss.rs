//! Regularisers in f64: the formulas of [`crate::router_loss`] as they stand there.

use super::Reference;
use super::gate::weights::{Rules, exp, log_sum_exp};
use super::gate::{WITHOUT_WEIGHTS, write_dense};
use crate::error::Result;
use crate::gate;
use crate::memory::{Host, View};
use crate::router_loss::{Backward, BiasUpdate, Config, CountsFrom, Finish, Gradient, Partial, Plan};

/// Coefficients of the gradients, in the order of the losses.
#[derive(Clone, Copy, Debug, Default)]
struct Coefficients {
    balance: f64,
    z: f64,
    entropy: f64,
    kl: f64,
}

/// What a row comes to.
struct Row {
    /// After the softcap.
    x: Vec<f64>,
    lse: f64,
    /// p, the softmax over all.
    softmax: Vec<f64>,
    /// P.
    probabilities: Vec<f64>,
    /// ρ.
    slopes: Vec<f64>,
    entropy: f64,
    /// p_ref and KL(p_ref‖p).
    reference: Option<(Vec<f64>, f64)>,
}

impl Row {
    /// `None` where it is left out.
    fn of(rules: &Rules, logits: &[f64], ref_logits: Option<&[f64]>) -> Option<Row> {
        let x = rules.capped_row(logits);
        let lse = log_sum_exp(&x);
        if !lse.is_finite() {
            return None;
        }
        let softmax: Vec<f64> = x.iter().map(|x| exp(x - lse)).collect();
        let (scores, slopes): (Vec<f64>, Vec<f64>) = x.iter().map(|&x| rules.score_over_all(x, lse)).unzip();
        let sum: f64 = scores.iter().sum();
        let is_softmax = rules.is_softmax();
        let probabilities = scores.iter().map(|s| if is_softmax { *s } else { s / (sum + 1e-20) }).collect();
        let entropy = x.iter().zip(&softmax).filter(|(_, p)| **p > 0.0).map(|(x, p)| -p * (x - lse)).sum();
        let reference = match ref_logits {
            None => None,
            Some(logits) => Some(divergence(&rules.capped_row(logits), &x, lse)?),
        };
        Some(Row { x, lse, softmax, probabilities, slopes, entropy, reference })
    }

    /// Adds what the losses bring to the gradient of the logits before the softcap.
    fn add_gradient(&self, rules: &Rules, logits: &[f64], c: Coefficients, q: Option<&[f64]>, gradient: &mut [f64]) {
        let inner: f64 = q.map_or(0.0, |q| q.iter().zip(&self.probabilities).map(|(q, p)| q * p).sum());
        for (e, to) in gradient.iter_mut().enumerate() {
            let p = self.softmax[e];
            let mut d = c.z * self.lse * p;
            if p > 0.0 {
                d += c.entropy * p * (self.x[e] - self.lse + self.entropy);
            }
            if let Some((reference, _)) = &self.reference {
                d += c.kl * (p - reference[e]);
            }
            if let Some(q) = q {
                d += c.balance * self.probabilities[e] * self.slopes[e] * (q[e] - inner);
            }
            *to += d * rules.softcap_slope(logits[e]);
        }
    }
}

/// p_ref and KL(p_ref‖p); `None` where one is not a number.
fn divergence(reference: &[f64], x: &[f64], lse: f64) -> Option<(Vec<f64>, f64)> {
    let ref_lse = log_sum_exp(reference);
    if !ref_lse.is_finite() {
        return None;
    }
    let p: Vec<f64> = reference.iter().map(|r| exp(r - ref_lse)).collect();
    let terms = p.iter().zip(reference).zip(x).filter(|((p, _), _)| **p > 0.0);
    let kl: f64 = terms.map(|((p, r), x)| p * ((r - ref_lse) - (x - lse))).sum();
    kl.is_finite().then_some((p, kl))
}

/// Which rows count, by what the call says of them.
struct Counted<'a> {
    topk_ids: Option<View<'a, i32, Host>>,
    selected_logits: Option<View<'a, f32, Host>>,
    token_mask: Option<View<'a, u8, Host>>,
    row_count: Option<View<'a, i32, Host>>,
    shape: gate::Shape,
}

impl Counted<'_> {
    fn ids(&self, t: usize) -> Option<&[i32]> {
        let k = self.shape.top_k;
        self.topk_ids.as_ref().map(|ids| &ids.as_slice()[t * k..(t + 1) * k])
    }

    fn has(&self, t: usize) -> bool {
        let k = self.shape.top_k;
        let behind = self.row_count.is_some_and(|count| t as i64 >= i64::from(count.as_slice()[0]));
        let masked = self.token_mask.is_some_and(|mask| mask.as_slice()[t] == 0);
        let marked = |saved: View<'_, f32, Host>| {
            saved.as_slice()[t * k..(t + 1) * k].iter().any(|x| x.to_bits() == WITHOUT_WEIGHTS.to_bits())
        };
        let nowhere = self.ids(t).is_some_and(|ids| ids.iter().any(|&id| id < 0 || id as usize >= self.shape.experts));
        !behind && !masked && !nowhere && !self.selected_logits.is_some_and(marked)
    }
}

/// The k largest logits, ties by id.
fn best(logits: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(std::cmp::Ordering::Equal));
    order.truncate(k);
    order
}

pub(super) fn partial(
    gate: &gate::Config,
    config: &Config,
    plan: &Plan<Reference>,
    mut call: Partial<'_, Host>,
) -> Result<()> {
    let shape = call.validate(gate, config, plan)?;
    let rules = Rules::new(gate, shape.top_k);
    let rows = Counted {
        topk_ids: call.topk_ids,
        selected_logits: call.selected_logits,
        token_mask: call.token_mask,
        row_count: call.row_count,
        shape,
    };
    if !call.accumulate {
        call.probabilities.as_mut_slice().fill(0.0);
        call.counts.as_mut_slice().fill(0);
        call.rows.as_mut_slice().fill(0);
        call.totals.as_mut_slice().fill(0.0);
        call.nonfinite.as_mut_slice().fill(0);
    }
    for (segment, range) in plan.segments().ranges().enumerate() {
        let of_segment = segment * shape.experts..(segment + 1) * shape.experts;
        for t in range.filter(|&t| rows.has(t)) {
            let logits = call.router_logits.row_f64(t);
            let reference = call.ref_logits.filter(|_| config.router_kl != 0.0).map(|logits| logits.row_f64(t));
            let Some(row) = Row::of(&rules, &logits, reference.as_deref()) else {
                call.nonfinite.as_mut_slice()[0] += 1;
                continue;
            };
            let sums = &mut call.probabilities.as_mut_slice()[of_segment.clone()];
            sums.iter_mut().zip(&row.probabilities).for_each(|(to, p)| *to += p);
            let counts = &mut call.counts.as_mut_slice()[of_segment.clone()];
            match (config.counts_from, rows.ids(t)) {
                (CountsFrom::Routes, Some(ids)) => ids.iter().for_each(|&e| counts[e as usize] += 1),
                _ => best(&logits, shape.top_k).into_iter().for_each(|e| counts[e] += 1),
            }
            call.rows.as_mut_slice()[segment] += 1;
            let totals = call.totals.as_mut_slice();
            totals[0] += row.lse * row.lse;
            totals[1] += row.entropy;
            totals[2] += row.reference.map_or(0.0, |(_, kl)| kl);
        }
    }
    Ok(())
}

pub(super) fn finish(
    gate: &gate::Config,
    config: &Config,
    plan: &Plan<Reference>,
    mut call: Finish<'_, Host>,
) -> Result<()> {
    let shape = call.validate(gate, config, plan)?;
    let rows = call.rows.as_slice();
    let count_rows = call.count_rows.unwrap_or(call.rows).as_slice();
    let mut balance = 0.0;
    for segment in 0..plan.segments().len() {
        let counted = shape.top_k as f64 * count_rows[segment] as f64;
        for e in segment * shape.experts..(segment + 1) * shape.experts {
            let is_empty = rows[segment] == 0 || counted == 0.0;
            let f = if is_empty { 0.0 } else { call.counts.as_slice()[e] as f64 / counted };
            let q = if is_empty { 0.0 } else { config.balance * shape.experts as f64 * f / rows[segment] as f64 };
            balance += q * call.probabilities.as_slice()[e];
            call.q.as_mut_slice()[e] = q as f32;
        }
    }
    let valid =
        call.valid_segments.filter(|&n| n > 0).unwrap_or_else(|| rows.iter().filter(|&&rows| rows > 0).count() as u64);
    let total: u64 = rows.iter().sum();
    let per = |n: u64| if n == 0 { 0.0 } else { 1.0 / n as f64 };
    let (per_segment, per_row) = (per(valid), per(total));
    let totals = call.totals.as_slice();
    let value = |coefficient: f64, sum: f64| if total == 0 { 0.0 } else { coefficient * per_row * sum };
    call.values.as_mut_slice().copy_from_slice(&[
        balance * per_segment,
        value(config.z, totals[0]),
        value(-config.entropy, totals[1]),
        value(config.router_kl, totals[2]),
    ]);
    call.coefficients.as_mut_slice().copy_from_slice(&[
        per_segment as f32,
        (2.0 * config.z * per_row) as f32,
        (config.entropy * per_row) as f32,
        (config.router_kl * per_row) as f32,
    ]);
    Ok(())
}

/// Adds what the regularisers bring to row t of a gradient.
pub(super) fn add_gradient(
    rules: &Rules,
    regularizer: &Gradient<'_, Host>,
    logits: &[f64],
    t: usize,
    gradient: &mut [f64],
) {
    let reference = regularizer.ref_logits.map(|logits| logits.row_f64(t));
    let Some(row) = Row::of(rules, logits, reference.as_deref()) else { return };
    let segment = regularizer.offsets.map_or(0, |offsets| {
        offsets.as_slice().partition_point(|&begin| begin <= t as i64).saturating_sub(1).min(offsets.len() - 2)
    });
    let experts = logits.len();
    let q: Option<Vec<f64>> = regularizer
        .q
        .map(|q| q.as_slice()[segment * experts..(segment + 1) * experts].iter().map(|&q| f64::from(q)).collect());
    let c: Vec<f64> = regularizer.coefficients.as_slice().iter().map(|&c| f64::from(c)).collect();
    let c = Coefficients { balance: c[0], z: c[1], entropy: c[2], kl: c[3] };
    row.add_gradient(rules, logits, c, q.as_deref(), gradient);
}

pub(super) fn backward(gate: &gate::Config, mut call: Backward<'_, Host>) -> Result<()> {
    let shape = call.validate(gate)?;
    let rules = Rules::new(gate, shape.top_k);
    let rows = Counted {
        topk_ids: call.topk_ids,
        selected_logits: call.selected_logits,
        token_mask: call.token_mask,
        row_count: call.row_count,
        shape,
    };
    for t in 0..shape.tokens {
        let mut gradient = vec![0.0; shape.experts];
        if rows.has(t) {
            add_gradient(&rules, &call.regularizer, &call.router_logits.row_f64(t), t, &mut gradient);
        }
        write_dense(&mut call.output, t, &gradient)?;
    }
    Ok(())
}

pub(super) fn bias_update(mut call: BiasUpdate<'_, Host>) -> Result<()> {
    let experts = call.validate()? as u128;
    let counts = call.counts.as_slice();
    let sum: u128 = counts.iter().map(|&n| u128::from(n)).sum();
    for (bias, &n) in call.selection_bias.as_mut_slice().iter_mut().zip(counts) {
        match (experts * u128::from(n)).cmp(&sum) {
            std::cmp::Ordering::Less => *bias += call.step,
            std::cmp::Ordering::Greater => *bias -= call.step,
            std::cmp::Ordering::Equal => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "router_loss/tests.rs"]
mod tests;
