//! Any call over any shards of the vocabulary.

use moerl::element::{Float, bf16, f16};
use moerl::logprob::{Combine, Config, PANEL, Partial, PartialCall, workspace_bytes};
use moerl::memory::Matrix;
use moerl::{Backend, Buffer, Error, Reference};
use rand::RngExt;

use crate::any::{assert_near, by_element};
use crate::any_call::*;
use crate::ask;
use crate::common::property::{Padded, for_any};
use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(any_call_over_shards_is_that_of_one_shard);

/// Widths of the shards that are drawn.
fn widths(d: &Drawn) -> Vec<usize> {
    let unit = if d.is_cut_at_panels { PANEL } else { 1 };
    let mut ends: Vec<usize> = d.cuts.iter().map(|cut| (d.vocabulary * cut / 1000).next_multiple_of(unit)).collect();
    ends.retain(|&end| end > 0 && end < d.vocabulary);
    ends.push(d.vocabulary);
    ends.sort_unstable();
    ends.dedup();
    ends.iter().enumerate().map(|(i, end)| end - if i > 0 { ends[i - 1] } else { 0 }).collect()
}

/// The columns from `start` on, `width` of them.
fn shard_of<T: Float>(inputs: &Inputs<T>, start: usize, width: usize) -> Inputs<T> {
    let config = Config {
        vocab_start: start,
        vocab_total: Some(inputs.vocabulary()),
        vocabulary: None,
        ..inputs.config.clone()
    };
    Inputs { config, columns: width, offset: inputs.offset + start, ..inputs.clone() }
}

/// The tokens' raw logits, whoever owns them.
fn label_logits<T: Float>(inputs: &Inputs<T>) -> Vec<f32> {
    let of = |(i, &token): (usize, &i64)| {
        let column = usize::try_from(token).ok().filter(|&token| token < inputs.vocabulary());
        column.map_or(0.0, |column| inputs.row(i / inputs.ids)[column] as f32)
    };
    inputs.tokens.as_deref().unwrap_or_default().iter().enumerate().map(of).collect()
}

/// What a shard leaves of what was asked for.
struct Left {
    records: Vec<Partial>,
    sum_sq: Option<Vec<f32>>,
    other_labels: Option<Vec<f32>>,
    best: Option<Vec<u64>>,
    rank: Option<Vec<i32>>,
    kept: Option<Vec<Partial>>,
    added: u64,
}

const SQUARES: u32 = 1 << 5 | 1 << 6;

fn partial<B: Backend, T: Float>(
    backend: &B,
    shard: &Inputs<T>,
    labels: &[f32],
    per_row: Option<usize>,
    asked: u32,
    seed: u64,
) -> Result<Left, Error> {
    let stream = backend.stream()?;
    let mut rng = seeded(seed);
    let (rows, ids, width) = (shard.rows, shard.ids, per_row.unwrap_or(1));
    let logits = backend.upload(&stream, &shard.logits)?;
    let given = Given::new(backend, &stream, shard, &mut rng);
    let mut skip = || rng.random_range(0..4);
    let labels = Padded::new(backend, &stream, labels, skip(), f32::NAN);
    let mut records = Padded::new(backend, &stream, &blank::<Partial>(rows * width), skip(), blank(1)[0]);
    let mut sum_sq = Padded::new(backend, &stream, &blank::<f32>(rows * width), skip(), blank(1)[0]);
    let mut other_labels = Padded::new(backend, &stream, &blank::<f32>(rows * (ids - 1)), skip(), blank(1)[0]);
    let mut best = Padded::new(backend, &stream, &blank::<u64>(rows), skip(), blank(1)[0]);
    let mut rank = Padded::new(backend, &stream, &blank::<i32>(rows * ids), skip(), blank(1)[0]);
    let mut kept = Padded::new(backend, &stream, &blank::<Partial>(rows), skip(), blank(1)[0]);
    let mut added = Padded::new(backend, &stream, &[5_u64], skip(), blank(1)[0]);
    let mut scratch = Padded::new(backend, &stream, &blank::<u8>(workspace_bytes(rows, shard.columns)), skip(), 0xee);
    let is = |bits: u32| asked & bits != 0;
    {
        let view = logits.view().slice(shard.offset.min(shard.logits.len())..shard.logits.len());
        let matrix = Matrix::strided(view, rows, shard.columns, shard.stride)?;
        let call = PartialCall {
            tokens: given.tokens()?,
            temperature: given.temperature.as_ref().map(Padded::view),
            loss_mask: given.loss_mask.as_ref().map(Padded::view),
            keep: given.keep(),
            label_logits: is(1 << 11).then(|| labels.view()),
            panel_records: per_row.is_some(),
            records_per_row: width,
            sum_sq: is(SQUARES).then(|| sum_sq.view_mut()),
            other_labels: (ids > 1 && is(1)).then(|| other_labels.view_mut()),
            best: is(1 << 12).then(|| best.view_mut()),
            rank: is(1 << 11).then(|| rank.view_mut()),
            kept_records: is(KEPT).then(|| kept.view_mut()),
            label_added: is(1 << 15).then(|| added.view_mut()),
            workspace: shard.workspace.then(|| scratch.view_mut()),
            ..PartialCall::new(matrix, records.view_mut())
        };
        backend.logprob_partial(&stream, &shard.config, call)?;
    }
    scratch.read(backend, &stream, "workspace");
    Ok(Left {
        records: records.read(backend, &stream, "records"),
        sum_sq: is(SQUARES).then(|| sum_sq.read(backend, &stream, "sum_sq")),
        other_labels: (ids > 1 && is(1)).then(|| other_labels.read(backend, &stream, "other_labels")),
        best: is(1 << 12).then(|| best.read(backend, &stream, "best")),
        rank: is(1 << 11).then(|| rank.read(backend, &stream, "rank")),
        kept: is(KEPT).then(|| kept.read(backend, &stream, "kept_records")),
        added: added.read(backend, &stream, "label_added")[0] - 5,
    })
}

/// Outputs over shards of these widths.
fn over_shards<B: Backend, T: Float>(
    backend: &B,
    inputs: &Inputs<T>,
    widths: &[usize],
    by_panels: bool,
    asked: u32,
    seed: u64,
) -> Result<Found, Error> {
    let labels = label_logits(inputs);
    let counts: Vec<usize> = widths.iter().map(|width| if by_panels { width.div_ceil(PANEL) } else { 1 }).collect();
    let per_row = if by_panels { counts.iter().max().unwrap() + seed as usize % 2 } else { 1 };
    let mut start = 0;
    let mut left = Vec::new();
    for &width in widths {
        let shard = shard_of(inputs, start, width);
        left.push(partial(backend, &shard, &labels, by_panels.then_some(per_row), asked, seed + start as u64)?);
        start += width;
    }

    let stream = backend.stream()?;
    let mut rng = seeded(seed);
    let given = Given::new(backend, &stream, inputs, &mut rng);
    fn gathered<'l, B: Backend, V: bytemuck::Pod + Send + Sync>(
        backend: &B,
        stream: &B::Stream,
        left: &'l [Left],
        of: impl Fn(&'l Left) -> Option<&'l Vec<V>>,
    ) -> Option<Padded<B, V>> {
        let parts: Option<Vec<&[V]>> = left.iter().map(|l| of(l).map(Vec::as_slice)).collect();
        parts.map(|parts| Padded::new(backend, stream, &parts.concat(), parts.len() % 4, V::zeroed()))
    }
    let records = gathered(backend, &stream, &left, |l| Some(&l.records)).expect("always there");
    let sum_sq = gathered(backend, &stream, &left, |l| l.sum_sq.as_ref());
    let other_labels = gathered(backend, &stream, &left, |l| l.other_labels.as_ref());
    let best = gathered(backend, &stream, &left, |l| l.best.as_ref());
    let kept = gathered(backend, &stream, &left, |l| l.kept.as_ref());
    let mut arrays = Arrays::new(backend, &stream, inputs.rows, inputs.ids, &mut rng);
    if asked >> 11 & 1 == 1 {
        let count = |i: usize| left.iter().map(|l| l.rank.as_ref().expect("asked for")[i]).sum();
        let counts: Vec<i32> = (0..inputs.rows * inputs.ids).map(count).collect();
        arrays.ints[0] = Padded::new(backend, &stream, &counts, 1, blank(1)[0]);
    }
    let mut errors = backend.error_word(&stream)?;
    {
        let mut views = arrays.views(asked);
        let mut call = Combine {
            records_per_row: per_row,
            shard_sum_sq: sum_sq.as_ref().map(Padded::view),
            shard_other_labels: other_labels.as_ref().map(Padded::view),
            shard_best: best.as_ref().map(Padded::view),
            kept_records: kept.as_ref().map(Padded::view),
            tokens: given.tokens()?,
            temperature: given.temperature.as_ref().map(Padded::view),
            loss_mask: given.loss_mask.as_ref().map(Padded::view),
            keep: given.keep(),
            errors: Some(errors.view_mut()),
            tag: TAG,
            ..Combine::new(&counts, records.view())
        };
        ask!(call, views);
        let config = Config { vocab_total: Some(inputs.vocabulary()), vocabulary: None, ..inputs.config.clone() };
        backend.logprob_combine(&stream, &config, call)?;
    }
    let fault = fault_of(backend, &stream, &mut errors)?;
    let unwritten = asked & !(1 << 7 | 1 << 15);
    let mut words = arrays.read(backend, &stream, unwritten, 1);
    if asked >> 15 & 1 == 1 {
        words[15] = Some(vec![left.iter().map(|l| l.added).sum::<u64>() as u32]);
    }
    Ok(Found { words, fault })
}

fn any_call_over_shards_is_that_of_one_shard<B: Backend>(backend: &B) {
    for_any(60, &drawn(), |d| {
        by_element(d, || check::<B, f32>(backend, d), || check::<B, bf16>(backend, d), || check::<B, f16>(backend, d));
    });
}

fn check<B: Backend, T: Float>(backend: &B, d: &Drawn) {
    let inputs = d.inputs::<T>();
    let widths = widths(d);
    let everything = possible(&inputs, ALL) & !(1 << 7);
    let (one, found) = match (
        forward_of(backend, &inputs, everything, 1, d.seed),
        over_shards(backend, &inputs, &widths, d.by_panels, everything, d.seed >> 1),
    ) {
        (Ok(one), Ok(found)) => (one, found),
        (Err(_), Err(found)) => {
            let reference = over_shards(&Reference, &inputs, &widths, d.by_panels, everything, d.seed >> 1);
            return assert_eq!(found.to_string(), reference.expect_err("refused").to_string());
        }
        (one, found) => panic!("{one:?}, over shards {found:?}"),
    };
    let what = format!("over {widths:?}");
    assert_eq!((found.fault, &found.words[15]), (one.fault, &one.words[15]), "{what}");
    let is_exact = backend.name() != "reference";
    let starts_at_panels = widths[..widths.len() - 1].iter().all(|width| width.is_multiple_of(PANEL));
    for (i, name) in OUTPUTS.iter().enumerate() {
        let is_one_tree = is_exact && (widths.len() == 1 || d.by_panels && starts_at_panels) && !KEPT >> i & 1 == 1;
        // The reference's records round what a softcap leaves in f64.
        let is_max = *name == "max" && (is_exact || d.softcap.is_none());
        let is_same = is_one_tree || is_max || ["rank", "argmax"].contains(name);
        assert!(
            !is_same || found.words[i] == one.words[i],
            "{what}: {name}: {:?} for {:?}",
            found.words[i],
            one.words[i]
        );
    }
    for r in 0..inputs.rows {
        assert_near(&inputs, &found, &one, r, &what);
    }

    // Some outputs.
    let asked = possible(&inputs, d.asked) & !(1 << 7);
    let other = Inputs { workspace: !inputs.workspace, ..inputs.laid_out(d.seed as usize % 7, inputs.columns + d.gap) };
    let some = over_shards(backend, &other, &widths, d.by_panels, asked, !d.seed >> 1).expect("a valid call");
    for (i, words) in some.words.iter().enumerate().filter(|(_, words)| words.is_some()) {
        assert_eq!(*words, found.words[i], "{} with outputs {asked:b}", OUTPUTS[i]);
    }
    check_gradients(backend, d, &inputs, &widths, &found);
}

/// Gradients of shards are parts of that of the whole.
fn check_gradients<B: Backend, T: Float>(backend: &B, d: &Drawn, inputs: &Inputs<T>, widths: &[usize], found: &Found) {
    let up = d.upstream(inputs);
    let is_refused = up.iter().all(Option::is_none) || (up[4].is_some() && inputs.tokens.is_none());
    if is_refused || backend.name() == "reference" {
        return; // The reference sums a whole row again in f64.
    }
    let saved = [found.records("saved"), found.records("kept_saved")];
    let saved: [&[Partial]; 2] = [&saved[0], &saved[1]];
    let whole: Vec<Vec<T>> = backward_of(backend, inputs, saved, &up, Target::Apart, 0).expect("a valid call");
    let mut start = 0;
    for &width in widths {
        let shard = shard_of(inputs, start, width);
        let part: Vec<Vec<T>> = backward_of(backend, &shard, saved, &up, Target::Apart, 1).expect("a valid call");
        for (r, part) in part.iter().enumerate() {
            for (j, (g, whole)) in part.iter().zip(&whole[r][start..]).enumerate() {
                let (g, whole) = (g.to_f32(), whole.to_f32());
                // A token's own column may differ in the sign of a zero: the kernel for one token a row is another one.
                let is_same = g == whole || g.is_nan() && whole.is_nan();
                assert!(is_same, "row {r}, column {}: {g} for {whole}", start + j);
            }
        }
        start += width;
    }
}
