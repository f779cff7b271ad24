//! Vocabulary shards.

use super::keep::{self, KeepSet};
use super::{Id, Outputs, Row, Sums, argmax, capped, exponential, largest, preceding, put, report};
use crate::error::Result;
use crate::logprob::{Combine, Config, PANEL, Partial, PartialCall, Sizes};
use crate::memory::Host;

/// Smaller for what stands before: the order of `Combine::best`.
fn standing(logit: f64, token: usize) -> u64 {
    let bits = (logit as f32 + 0.0).to_bits();
    let ascending = bits ^ if bits >> 31 != 0 { u32::MAX } else { 1 << 31 };
    u64::from(!ascending) << 32 | token as u64
}

/// [`Backend::logprob_partial`](crate::Backend::logprob_partial).
pub(in crate::reference) fn partial(config: &Config, mut call: PartialCall<'_, Host>) -> Result<()> {
    let sizes = call.validate(config)?;
    for r in 0..sizes.rows {
        let row = Row::read(r, config, &sizes, call.tokens, call.temperature, call.loss_mask);
        let mut raw = if row.absent { Vec::new() } else { call.logits.row_f64(r) };
        raw.truncate(sizes.vocabulary);
        let logits: Vec<f64> = raw.iter().map(|&x| capped(config, x)).collect();
        records(&mut call, r, &row, &logits, &sizes);
        let outputs = Outputs::of(&row, || (Sums::of(&logits, row.temperature), row.labels(&logits)));
        for (k, &label) in outputs.other_labels.iter().enumerate() {
            put(&mut call.other_labels, r * (sizes.ids - 1) + k, label as f32);
        }
        let best = if outputs.is_ranked {
            let column = argmax(&raw);
            standing(raw[column], sizes.vocab_start + column)
        } else {
            u64::MAX
        };
        put(&mut call.best, r, best);
        for (k, (&token, &id)) in row.tokens.iter().zip(&row.ids).enumerate() {
            let at = r * sizes.ids + k;
            let logit = call.label_logits.map_or(f64::NAN, |logits| f64::from(logits.as_slice()[at]));
            let counts = !row.absent && row.valid_temperature && matches!(id, Id::Column(_) | Id::Elsewhere);
            let count = if counts { preceding(&raw, logit, token - sizes.vocab_start as i64) } else { 0 };
            put(&mut call.rank, at, count);
        }
        if let Some(keep) = &call.keep
            && call.kept_records.is_some()
        {
            let set = KeepSet::read(keep, r, &sizes);
            let found = keep::Outputs::of(&row, &set, set.sums(&row, &logits, config), None);
            put(&mut call.kept_records, r, found.saved);
            if let Some(count) = &mut call.label_added {
                count.as_mut_slice()[0] += u64::from(set.misses(&row));
            }
        }
    }
    Ok(())
}

/// The records of a row: of all its columns, or of its panels.
fn records(call: &mut PartialCall<'_, Host>, r: usize, row: &Row, logits: &[f64], sizes: &Sizes) {
    let width = if call.panel_records { PANEL } else { sizes.vocabulary };
    for (n, start) in (0..sizes.vocabulary).step_by(width).enumerate() {
        let outputs = Outputs::of(row, || {
            let columns = start..(start + width).min(sizes.vocabulary);
            let label = match row.ids.first() {
                Some(&Id::Column(y)) if columns.contains(&y) => logits[y],
                Some(Id::Outside) => f64::NAN,
                _ => f64::NEG_INFINITY,
            };
            (Sums::of(&logits[columns], row.temperature), vec![label; row.ids.len().max(1)])
        });
        let at = r * call.records_per_row + n;
        call.records.as_mut_slice()[at] = outputs.saved;
        put(&mut call.sum_sq, at, outputs.sum_sq as f32);
    }
}

/// The sums that a record stands for.
pub(super) fn sums_of(record: &Partial) -> Sums {
    let wide = f64::from;
    Sums {
        max: wide(record.max_logit),
        s: wide(record.sum),
        a: wide(record.weighted) * std::f64::consts::LN_2,
        q: 0.0,
        label: wide(record.label),
    }
}

/// One record for all.
fn merged(records: &[Sums], temperature: f64) -> Sums {
    let over = |of: fn(&Sums) -> f64| records.iter().map(of).fold(f64::NEG_INFINITY, largest);
    let mut all = Sums { max: over(|s| s.max) + 0.0, s: 0.0, a: 0.0, q: 0.0, label: over(|s| s.label) };
    if all.max.is_finite() {
        for part in records {
            let (f, z) = exponential(part.max - all.max, temperature);
            all.s += f * part.s;
            all.a += f * (part.a + part.s * z);
            all.q += f * f * part.q;
        }
    }
    all
}

/// [`Backend::logprob_combine`](crate::Backend::logprob_combine).
pub(in crate::reference) fn combine(config: &Config, mut call: Combine<'_, Host>) -> Result<()> {
    let vocab_total = call.validate(config)?;
    let (rows, ids, shards) = (call.rows(), call.ids(), call.counts.len());
    let sizes = Sizes {
        rows,
        vocabulary: vocab_total,
        columns: vocab_total,
        ids,
        vocab_start: 0,
        vocab_total,
        first_row: 0,
        call_rows: rows,
    };
    for r in 0..rows {
        let row = Row::read(r, config, &sizes, call.tokens, call.temperature, call.loss_mask);
        let mut records = Vec::new();
        for (shard, &count) in call.counts.iter().enumerate() {
            let start = (shard * rows + r) * call.records_per_row;
            for at in start..start + count {
                let q = call.shard_sum_sq.map_or(0.0, |array| f64::from(array.as_slice()[at]));
                records.push(Sums { q, ..sums_of(&call.records.as_slice()[at]) });
            }
        }
        let full = merged(&records, row.temperature);
        let other = |k: usize| {
            let array = call.shard_other_labels?;
            let of_shard = |shard: usize| f64::from(array.as_slice()[(shard * rows + r) * (ids - 1) + k - 1]);
            Some((0..shards).map(of_shard).fold(f64::NEG_INFINITY, largest))
        };
        let labels: Vec<f64> =
            (0..row.ids.len()).map(|k| if k == 0 { full.label } else { other(k).unwrap_or(f64::NAN) }).collect();
        let outputs = Outputs::of(&row, || (full, labels));
        for (k, id) in row.ids.iter().enumerate() {
            put(&mut call.logprobs, r * ids + k, outputs.logprobs[k] as f32);
            if !(outputs.is_ranked && matches!(id, Id::Column(_))) {
                put(&mut call.rank, r * ids + k, -1);
            }
        }
        let best = call
            .shard_best
            .map(|best| (0..shards).map(|shard| best.as_slice()[shard * rows + r]).fold(u64::MAX, u64::min));
        put(&mut call.argmax, r, best.filter(|_| outputs.is_ranked).map_or(-1, |best| best as u32 as i32));
        put_row!(call, r, outputs);
        report(&mut call.errors, r, call.tag, outputs.fault);
        if let (Some(keep), Some(kept)) = (&call.keep, call.kept_records) {
            let set = KeepSet::read(keep, r, &sizes);
            let of_shard = |shard: usize| sums_of(&kept.as_slice()[shard * rows + r]);
            let kept: Vec<Sums> = (0..shards).map(of_shard).collect();
            let sums = if set.is_every() { full } else { merged(&kept, row.temperature) };
            let sums = Some(sums).filter(|_| !row.absent && row.valid_temperature && set.fault().is_none());
            let found = keep::Outputs::of(&row, &set, sums, Some(full));
            put_kept!(call, r, found);
            report(&mut call.errors, r, call.tag, found.fault);
        }
    }
    Ok(())
}
