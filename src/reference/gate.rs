//! Gating in f64: a stable sort, then the formulas of [`crate::gate`] as they stand there.

mod backward;
mod telemetry;
pub(super) mod weights;

pub(super) use backward::{backward, write_dense};

use crate::abi::MOERL_NO_FAULT;
use crate::element::Element;
use crate::error::{Fault, FaultCode, Result};
use crate::gate::{Bad, Config, Filler, Forced, Forward, Missing, Nonfinite, RowCount, Score, Shape};
use crate::memory::Host;
pub(super) use telemetry::router_shift;
use weights::{Rules, log_sum_exp};

/// What a NaN of all ones in the saved logits says: the row has no weights and no gradient.
pub(super) const WITHOUT_WEIGHTS: f32 = f32::from_bits(u32::MAX);

/// What a row turned out to be.
enum Row {
    Native,
    Forced(Vec<usize>),
    /// Filler ids without weight.
    WithoutWeights,
}

pub(super) fn forward(config: &Config, mut call: Forward<'_, Host>) -> Result<()> {
    let shape = call.validate(config)?;
    if shape.tokens == 0 {
        return Ok(());
    }
    let rules = Rules::new(config, shape.top_k);
    let mut faults = Faults { first: MOERL_NO_FAULT, tag: call.tag };
    let count = row_count(&call, &shape, &mut faults);
    let mut telemetry = call.telemetry.take().unwrap_or_default();
    let replaces = config.replaces().filter(|_| call.forced().is_some());
    for t in 0..shape.tokens {
        let logits = call.router_logits.row_f64(t);
        let (row, kind) = if t >= count || call.token_mask.is_some_and(|mask| mask.as_slice()[t] == 0) {
            (Row::WithoutWeights, RowCount::Padding)
        } else {
            classify(config, call.forced(), t, &shape, &mut faults)
        };
        telemetry::count_row(&mut telemetry, kind);
        telemetry::clear(&mut telemetry, t, &shape)?;
        let (forced, is_native) = match row {
            Row::WithoutWeights => {
                write_without_weights(config, &mut call, t, &shape)?;
                continue;
            }
            Row::Native => (Vec::new(), true),
            Row::Forced(ids) => (ids, false),
        };
        let replays = kind == RowCount::Replay;
        let lse = log_sum_exp(&rules.capped_row(&logits));
        let seen = telemetry::Row { t, replays, logits: &logits, lse };
        let needs_choice = is_native || telemetry.needs_choice() || replaces.is_some();
        let choice = needs_choice.then(|| choose(config, &rules, &call, &logits, &shape));
        let mut ids = forced;
        let mut cutoff = f64::NAN;
        if let Some(choice) = &choice {
            if is_native {
                ids = choice.order[..shape.top_k].to_vec();
                cutoff = choice.values[ids[shape.top_k - 1]];
            }
            telemetry::measure_choice(&mut telemetry, &seen, choice, &ids);
        }
        write_cutoff(&mut call, t, cutoff);
        let before = ids.clone();
        if let (Some(delta), Some(choice), true) = (replaces, &choice, replays) {
            let (replaced, count) = telemetry::replace(f64::from(delta), choice, &ids);
            ids = replaced;
            telemetry::count_replaced(&mut telemetry, t, count);
        }
        telemetry::measure_softmax(&mut telemetry, &rules, &seen, &before, &ids)?;
        let bias_matters = is_native || (replaces.is_some() && replays);
        let nan_bias = call.selection_bias.is_some_and(|bias| bias.as_slice().iter().any(|b| b.is_nan()));
        faults.require(!(bias_matters && nan_bias), 0, FaultCode::NanBias);
        if is_native && config.score != Score::Softmax {
            let unselected = (0..shape.experts).filter(|e| !ids.contains(e));
            faults.require(!unselected.into_iter().any(|e| logits[e].is_nan()), t, FaultCode::NanLogit);
        }
        let selected: Vec<f64> = ids.iter().map(|&e| logits[e]).collect();
        // The saved value is what backward will see, so forward sees it too.
        let lse = if config.needs_lse() { f64::from(lse as f32) } else { 0.0 };
        let exact = rules.weights(&selected, lse);
        let scale = |e: usize| call.expert_scale.map_or(1.0, |scale| f64::from(scale.as_slice()[e]));
        let weights: Vec<f32> = exact.iter().zip(&ids).map(|(&w, &e)| (w * scale(e)) as f32).collect();
        let finite = rules.is_usable(&selected, lse)
            && (call.expert_scale.is_none() || weights.iter().all(|weight| weight.is_finite()));
        let recorded = call.forced().filter(|_| replays).map(|forced| tape_row(forced, t) as usize);
        telemetry::measure_weights(&mut telemetry, &seen, &ids, &exact, rules.scaling_factor, recorded, finite);
        faults.require(finite, t, FaultCode::NonfiniteWeight);
        let slots = t * shape.top_k..(t + 1) * shape.top_k;
        for (to, &e) in call.topk_ids.as_mut_slice()[slots.clone()].iter_mut().zip(&ids) {
            *to = e as i32;
        }
        let unusable = if config.nonfinite == Nonfinite::Zero { 0.0 } else { f32::NAN };
        call.topk_weights.write_row(t, &if finite { weights } else { vec![unusable; shape.top_k] })?;
        if let Some(saved) = &mut call.selected_logits {
            for (to, &x) in saved.as_mut_slice()[slots].iter_mut().zip(&selected) {
                *to = if x.is_nan() { f32::NAN } else { x as f32 }; // never the mark
            }
        }
        if let Some(saved) = &mut call.lse {
            saved.as_mut_slice()[t] = lse as f32;
        }
    }
    for t in 0..shape.tokens {
        record(&mut call, t, &shape);
        write_maps(&mut call, t, &shape);
    }
    if let Some(errors) = &mut call.errors {
        let word = &mut errors.as_mut_slice()[0];
        *word = faults.first.min(*word);
    }
    Ok(())
}

fn write_cutoff(call: &mut Forward<'_, Host>, t: usize, cutoff: f64) {
    if let Some(cutoffs) = &mut call.cutoff {
        cutoffs.as_mut_slice()[t] = if cutoff.is_nan() { f32::NAN } else { cutoff as f32 + 0.0 };
    }
}

/// The ids of row t once more, in the tape's width.
fn record(call: &mut Forward<'_, Host>, t: usize, shape: &Shape) {
    let Some(record) = &mut call.record_ids else { return };
    let ids = &call.topk_ids.as_mut_slice()[t * shape.top_k..][..shape.top_k];
    match record.element() {
        Element::U8 => narrow(record.row_mut(t), ids, |id| id as u8),
        Element::U16 => narrow(record.row_mut(t), ids, |id| id as u16),
        Element::I16 => narrow(record.row_mut(t), ids, |id| id as i16),
        _ => narrow(record.row_mut(t), ids, |id| id),
    }
}

fn narrow<T>(row: Option<&mut [T]>, ids: &[i32], narrowed: impl Fn(i32) -> T) {
    for (to, &id) in row.unwrap_or_default().iter_mut().zip(ids) {
        *to = narrowed(id);
    }
}

/// Row t as maps over all experts.
fn write_maps(call: &mut Forward<'_, Host>, t: usize, shape: &Shape) {
    let ids = &call.topk_ids.as_mut_slice()[t * shape.top_k..][..shape.top_k];
    let weights = call.topk_weights.as_matrix().row_f64(t);
    let mut probs = vec![0.0; shape.experts];
    let mut bytes = vec![0; shape.experts];
    for (&id, &weight) in ids.iter().zip(&weights).filter(|(id, _)| **id >= 0) {
        (probs[id as usize], bytes[id as usize]) = (weight as f32, 1u8);
    }
    if let Some(row) = call.dense_probs.as_mut().and_then(|matrix| matrix.row_mut::<f32>(t)) {
        row.copy_from_slice(&probs);
    }
    if let Some(bytemap) = &mut call.bytemap {
        bytemap.as_mut_slice()[t * shape.experts..][..shape.experts].copy_from_slice(&bytes);
    }
    if let Some(bitmap) = &mut call.bitmap {
        let length = shape.experts.div_ceil(8);
        let row = &mut bitmap.as_mut_slice()[t * length..][..length];
        for (byte, eight) in row.iter_mut().zip(bytes.chunks(8)) {
            *byte = eight.iter().enumerate().map(|(bit, &set)| set << bit).sum();
        }
    }
}

/// Collects the smallest fault.
struct Faults {
    first: u64,
    tag: u16,
}

impl Faults {
    fn require(&mut self, holds: bool, row: usize, code: FaultCode) {
        if !holds {
            self.first = self.first.min(Fault { row: row as u64, tag: self.tag, code }.to_word());
        }
    }
}

fn row_count(call: &Forward<'_, Host>, shape: &Shape, faults: &mut Faults) -> usize {
    let Some(count) = call.row_count else { return shape.tokens };
    let count = i64::from(count.as_slice()[0]);
    faults.require((0..=shape.tokens as i64).contains(&count), 0, FaultCode::RowCount);
    count.clamp(0, shape.tokens as i64) as usize
}

fn filler(t: usize, shape: &Shape) -> Vec<usize> {
    (0..shape.top_k).map(|j| (t * shape.top_k + j) % shape.experts).collect()
}

fn write_without_weights(config: &Config, call: &mut Forward<'_, Host>, t: usize, shape: &Shape) -> Result<()> {
    let slots = t * shape.top_k..(t + 1) * shape.top_k;
    for (to, e) in call.topk_ids.as_mut_slice()[slots.clone()].iter_mut().zip(filler(t, shape)) {
        *to = if config.filler == Filler::Sentinel { -1 } else { e as i32 };
    }
    if let Some(saved) = &mut call.selected_logits {
        saved.as_mut_slice()[slots].fill(WITHOUT_WEIGHTS);
    }
    if let Some(saved) = &mut call.lse {
        saved.as_mut_slice()[t] = WITHOUT_WEIGHTS;
    }
    write_cutoff(call, t, f64::NAN);
    call.topk_weights.write_row(t, &vec![0.0; shape.top_k])
}

fn classify(
    config: &Config,
    forced: Option<&Forced<'_, Host>>,
    t: usize,
    shape: &Shape,
    faults: &mut Faults,
) -> (Row, RowCount) {
    let Some(forced) = forced else { return (Row::Native, RowCount::Native) };
    match forced.row_mode.map(|mode| mode.as_slice()[t]) {
        Some(0) => return (Row::Native, RowCount::Native),
        Some(2) => return (Row::WithoutWeights, RowCount::Padding),
        None | Some(1) => {}
        Some(_) => {
            faults.require(false, t, FaultCode::RowMode);
            return (bad(config), RowCount::Bad);
        }
    }
    let index = tape_row(forced, t);
    faults.require(index >= -1, t, FaultCode::RowIndex);
    if index < 0 || index >= forced.ids.rows() as i64 {
        return (missing(config, t, shape, faults), RowCount::Missing);
    }
    let ids = forced.ids.row_i64(index as usize);
    let sentinel = if forced.ids.element().size() == 1 { 0xff } else { 0xffff };
    let is_sentinel = |id: i64| forced.has_sentinel && (id == -1 || id == sentinel && is_unsigned(forced));
    let sentinels = ids.iter().filter(|&&id| is_sentinel(id)).count();
    let zeros = forced.zeros_are_missing && shape.top_k > 1 && ids.iter().all(|&id| id == 0);
    if sentinels == shape.top_k || zeros {
        return (missing(config, t, shape, faults), RowCount::Missing);
    }
    let in_range = ids.iter().all(|id| (0..shape.experts as i64).contains(id));
    let distinct = ids.iter().enumerate().all(|(j, id)| !ids[..j].contains(id));
    let code = match (sentinels, in_range, distinct) {
        (0, true, true) => {
            return (Row::Forced(ids.iter().map(|&id| id as usize).collect()), RowCount::Replay);
        }
        (0, true, false) => FaultCode::Duplicate,
        (0, false, _) => FaultCode::Range,
        _ => FaultCode::Partial,
    };
    faults.require(false, t, code);
    (bad(config), RowCount::Bad)
}

/// The row of the forced ids that row t takes, if there is such a row.
fn tape_row(forced: &Forced<'_, Host>, t: usize) -> i64 {
    forced.row_index.map_or(t as i64, |index| i64::from(index.as_slice()[t]))
}

fn is_unsigned(forced: &Forced<'_, Host>) -> bool {
    matches!(forced.ids.element(), Element::U8 | Element::U16)
}

fn missing(config: &Config, t: usize, shape: &Shape, faults: &mut Faults) -> Row {
    faults.require(config.missing != Missing::Error, t, FaultCode::Missing);
    match config.missing {
        Missing::Native => Row::Native,
        Missing::ZeroWeight | Missing::Error => Row::WithoutWeights,
        Missing::Spread => Row::Forced(filler(t, shape)),
    }
}

fn bad(config: &Config) -> Row {
    match config.bad {
        Bad::Native => Row::Native,
        Bad::ZeroWeight => Row::WithoutWeights,
    }
}

/// Orders values: larger first, −0 equal to +0, NaN behind everything. Stable sorts then leave equal ones by id.
fn by_value(a: f64, b: f64) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// What selection saw: a value for every expert, and those of admitted groups, best first.
struct Choice {
    values: Vec<f64>,
    order: Vec<usize>,
}

fn choose(config: &Config, rules: &Rules, call: &Forward<'_, Host>, logits: &[f64], shape: &Shape) -> Choice {
    let bias = call.selection_bias.map(|bias| bias.as_slice());
    let values = selection_values(config, rules, bias, logits, shape);
    let mut order: Vec<usize> = (0..shape.experts).collect();
    if let Some(groups) = config.groups {
        let admitted = admitted_groups(&values, shape, groups.count, groups.admitted, group_top(config, shape));
        order.retain(|e| admitted.contains(&(e / (shape.experts / groups.count))));
    }
    order.sort_by(|&a, &b| by_value(values[a], values[b]));
    Choice { values, order }
}

fn group_top(config: &Config, shape: &Shape) -> usize {
    config.groups.map_or(1, |groups| groups.top.unwrap_or(shape.top_k / groups.admitted))
}

fn selection_values(config: &Config, rules: &Rules, bias: Option<&[f32]>, logits: &[f64], shape: &Shape) -> Vec<f64> {
    if bias.is_none() && group_top(config, shape) == 1 {
        return logits.to_vec();
    }
    let scores = rules.scores_of_row(logits);
    match bias {
        None => scores,
        Some(bias) => scores.iter().zip(bias).map(|(s, &b)| s + f64::from(b)).collect(),
    }
}

fn admitted_groups(values: &[f64], shape: &Shape, count: usize, admitted: usize, top: usize) -> Vec<usize> {
    let scores: Vec<f64> = values
        .chunks_exact(shape.experts / count)
        .map(|members| {
            let mut members = members.to_vec();
            members.sort_by(|&a, &b| by_value(a, b));
            members[..top].iter().sum()
        })
        .collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| by_value(scores[a], scores[b]));
    order.truncate(admitted);
    order
}

#[cfg(test)]
#[path = "gate/tests.rs"]
mod tests;
