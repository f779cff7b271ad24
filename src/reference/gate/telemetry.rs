//! What a forward call may be asked besides, row by row.

use super::weights::{Rules, exp, log_sum_exp};
use super::{Choice, by_value};
use crate::error::Result;
use crate::gate::{NO_OVERLAP, RowCount, Shape, ShiftFinish, Telemetry};
use crate::memory::{Host, ViewMut};

/// A row with weights.
pub(super) struct Row<'a> {
    pub(super) t: usize,
    pub(super) replays: bool,
    pub(super) logits: &'a [f64],
    /// log Σ exp of the capped logits; NaN if one is.
    pub(super) lse: f64,
}

fn set<T: bytemuck::Pod>(array: &mut Option<ViewMut<'_, T, Host>>, at: usize, value: T) {
    if let Some(array) = array {
        array.as_mut_slice()[at] = value;
    }
}

fn add<T: bytemuck::Pod + std::ops::AddAssign>(array: &mut Option<ViewMut<'_, T, Host>>, at: usize, value: T) {
    if let Some(array) = array {
        array.as_mut_slice()[at] += value;
    }
}

pub(super) fn count_row(telemetry: &mut Telemetry<'_, Host>, kind: RowCount) {
    add(&mut telemetry.row_counts, kind as usize, 1);
}

/// What every row has until it is measured: a number that says there is none.
pub(super) fn clear(telemetry: &mut Telemetry<'_, Host>, t: usize, shape: &Shape) -> Result<()> {
    set(&mut telemetry.overlap, t, NO_OVERLAP);
    set(&mut telemetry.replaced, t, 0);
    for array in [
        &mut telemetry.margin,
        &mut telemetry.deficit,
        &mut telemetry.forced_mass,
        &mut telemetry.gate_l1,
        &mut telemetry.set_kl,
        &mut telemetry.router_kl,
    ] {
        set(array, t, f32::NAN);
    }
    for j in 0..shape.top_k {
        set(&mut telemetry.logprob_sel, t * shape.top_k + j, f32::NAN);
    }
    match &mut telemetry.d_router_kl {
        Some(gradient) => gradient.write_row(t, &vec![0.0; shape.experts]),
        None => Ok(()),
    }
}

/// Equal infinities are not apart.
fn apart(upper: f64, lower: f64) -> f64 {
    if upper == lower { 0.0 } else { upper - lower }
}

/// What is asked of the native choice and of the row's experts `ids`, before any is replaced.
pub(super) fn measure_choice(telemetry: &mut Telemetry<'_, Host>, row: &Row<'_>, choice: &Choice, ids: &[usize]) {
    let (t, k) = (row.t, ids.len());
    let kth = choice.values[choice.order[k - 1]];
    for &e in &choice.order[..k] {
        add(&mut telemetry.native_counts, e, 1);
    }
    let next = choice.order.get(k).map_or(f64::INFINITY, |&e| apart(kth, choice.values[e]));
    set(&mut telemetry.margin, t, next as f32);
    let least = ids.iter().map(|&e| choice.values[e]).max_by(|&a, &b| by_value(a, b)).unwrap_or_default();
    set(&mut telemetry.deficit, t, apart(kth, least) as f32);
    if row.replays {
        let overlap = ids.iter().filter(|e| choice.order[..k].contains(e)).count();
        set(&mut telemetry.overlap, t, overlap as u8);
        add(&mut telemetry.overlap_hist, overlap, 1);
        if overlap < k {
            set(&mut telemetry.changed, t, 1);
            add(&mut telemetry.changed_layers, t, 1);
        }
    }
}

/// `ids` with those that are more than `delta` below the k-th best replaced, and how many were.
pub(super) fn replace(delta: f64, choice: &Choice, ids: &[usize]) -> (Vec<usize>, usize) {
    let native = &choice.order[..ids.len()];
    let kth = choice.values[native[native.len() - 1]];
    let stays = |e: &usize| {
        choice.order.contains(e) && (by_value(choice.values[*e], kth).is_le() || kth - choice.values[*e] <= delta)
    };
    let mut row: Vec<Option<usize>> = ids.iter().map(|e| Some(*e).filter(stays)).collect();
    let mut replaced = 0;
    for slot in 0..row.len() {
        if row[slot].is_none() {
            row[slot] = native.iter().copied().find(|e| !row.contains(&Some(*e)));
            replaced += 1;
        }
    }
    (row.into_iter().flatten().collect(), replaced)
}

pub(super) fn count_replaced(telemetry: &mut Telemetry<'_, Host>, t: usize, count: usize) {
    set(&mut telemetry.replaced, t, count as u8);
    if count > 0 {
        count_row(telemetry, RowCount::Replaced);
    }
}

/// What is asked of the softmax over all: of the row's experts before any is replaced (`forced`) and after (`ids`).
pub(super) fn measure_softmax(
    telemetry: &mut Telemetry<'_, Host>,
    rules: &Rules,
    row: &Row<'_>,
    forced: &[usize],
    ids: &[usize],
) -> Result<()> {
    let (t, k) = (row.t, ids.len());
    let log_p: Vec<f64> = rules.capped_row(row.logits).iter().map(|x| x - row.lse).collect();
    let mass: f64 = forced.iter().map(|&e| exp(log_p[e])).sum();
    set(&mut telemetry.forced_mass, t, if row.lse.is_finite() { mass as f32 } else { f32::NAN });
    for (j, &e) in ids.iter().enumerate() {
        set(&mut telemetry.logprob_sel, t * k + j, log_p[e] as f32);
    }
    if let Some(shift) = &mut telemetry.router_shift {
        let slots = t * k..(t + 1) * k;
        let old = shift.old_topk_ids.as_slice()[slots.clone()].iter().zip(&shift.old_logprob_sel.as_slice()[slots]);
        let moved: f64 =
            old.map(|(&e, &old)| log_p.get(e as usize).map_or(f64::NAN, |log_p| (log_p - f64::from(old)).abs())).sum();
        if !moved.is_nan() {
            let to = &mut shift.shift.as_mut_slice()[t];
            *to = (f64::from(*to) + moved / k as f64) as f32;
        }
    }
    let Some(reference) = telemetry.ref_logits else { return Ok(()) };
    let reference = reference.row_f64(t);
    if let Some((kl, gradient)) = router_kl(rules, &reference, row.logits) {
        set(&mut telemetry.router_kl, t, kl as f32);
        if let Some(to) = &mut telemetry.d_router_kl {
            to.write_row(t, &gradient.iter().map(|&d| d as f32).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// KL(p_ref ‖ p) and its gradient by the logits; `None` where a log-sum-exp is not finite.
pub(super) fn router_kl(rules: &Rules, reference: &[f64], logits: &[f64]) -> Option<(f64, Vec<f64>)> {
    let log_softmax = |x: &[f64]| -> Option<Vec<f64>> {
        let x = rules.capped_row(x);
        let lse = Some(log_sum_exp(&x)).filter(|lse| lse.is_finite())?;
        Some(x.iter().map(|x| x - lse).collect())
    };
    let (log_ref, log_p) = (log_softmax(reference)?, log_softmax(logits)?);
    let terms = log_ref.iter().zip(&log_p).map(|(r, p)| if exp(*r) == 0.0 { 0.0 } else { exp(*r) * (r - p) });
    let kl = terms.sum::<f64>().max(0.0);
    let slopes = logits.iter().map(|&x| rules.softcap_slope(x));
    Some((kl, log_ref.iter().zip(&log_p).zip(slopes).map(|((r, p), slope)| (exp(*p) - exp(*r)) * slope).collect()))
}

/// What is asked of the weights `w` of experts `ids`; `recorded`: the row of the forced ids. `usable`: `w` are numbers.
pub(super) fn measure_weights(
    telemetry: &mut Telemetry<'_, Host>,
    row: &Row<'_>,
    ids: &[usize],
    w: &[f64],
    scaling_factor: f64,
    recorded: Option<usize>,
    usable: bool,
) {
    for &e in ids {
        add(&mut telemetry.counts, e, 1);
    }
    if !telemetry.needs_record() {
        return;
    }
    let (Some(weights), Some(recorded)) = (telemetry.recorded_weights, recorded) else { return };
    let old = weights.row_f64(recorded);
    let (sum, old_sum): (f64, f64) = (w.iter().sum(), old.iter().sum());
    if old_sum == 0.0 || old.iter().any(|w| !w.is_finite()) {
        count_row(telemetry, RowCount::BadReference);
    } else if usable {
        let l1: f64 = w.iter().zip(&old).map(|(w, old)| (w - old).abs()).sum();
        set(&mut telemetry.gate_l1, row.t, (l1 / scaling_factor) as f32);
        let terms = w.iter().zip(&old).map(|(w, old)| (w / sum, old / old_sum));
        let kl: f64 = terms.map(|(w, old)| if old == 0.0 { 0.0 } else { old * (old / w).ln() }).sum();
        set(&mut telemetry.set_kl, row.t, if kl < 0.0 { 0.0 } else { kl as f32 });
    }
}

/// [`Backend::gate_router_shift`](crate::Backend::gate_router_shift).
pub(in crate::reference) fn router_shift(mut call: ShiftFinish<'_, Host>) -> Result<()> {
    call.validate()?;
    for (to, &shift) in call.router_shift.as_mut_slice().iter_mut().zip(call.shift.as_slice()) {
        *to = call.gamma_min.ln().max(0.0 - f64::from(shift) / call.layers as f64) as f32;
    }
    Ok(())
}
