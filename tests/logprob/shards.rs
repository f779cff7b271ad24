//! Vocabulary shards: sums of each, outputs from all.

use moerl::element::{Float, bf16, f16};
use moerl::error::{Fault, FaultCode, Kind};
use moerl::logprob::{Backward, Combine, Config, Gradient, KeepSets, PANEL, Partial, PartialCall};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Error};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    shards_agree_with_f64_and_with_one_shard,
    panel_records_give_the_bits_of_one_shard,
    shards_may_arrive_in_any_order,
    shards_of_one_column_and_of_masked_columns_are_neutral,
    negative_rows_survive,
    faults_are_those_of_one_shard,
    a_single_shard_is_the_whole,
    keep_sets_go_over_shards,
    gradients_of_shards_are_parts_of_the_whole,
);

const INF: f32 = f32::INFINITY;

/// What a shard leaves.
struct Left {
    records: Vec<Partial>,
    sum_sq: Vec<f32>,
    other_labels: Vec<f32>,
    best: Vec<u64>,
    rank: Vec<i32>,
    kept: Vec<Partial>,
    label_added: u64,
}

/// The columns from `start` on, `width` of them.
fn shard_of<T: Float>(inputs: &Inputs<T>, start: usize, width: usize) -> Inputs<T> {
    let row = |r: usize| &inputs.logits[inputs.offset + r * inputs.stride + start..][..width];
    let total = inputs.vocabulary();
    Inputs {
        config: Config { vocab_start: start, vocab_total: Some(total), vocabulary: None, ..inputs.config.clone() },
        logits: (0..inputs.rows).flat_map(row).copied().collect(),
        columns: width,
        stride: width,
        offset: 0,
        ..inputs.clone()
    }
}

/// The tokens' raw logits, whoever owns them.
fn label_logits<T: Float>(inputs: &Inputs<T>) -> Vec<f32> {
    let of = |r: usize, token: i64| {
        usize::try_from(token).ok().filter(|&t| t < inputs.vocabulary()).map_or(0.0, |t| inputs.row(r)[t] as f32)
    };
    (0..inputs.rows).flat_map(|r| inputs.tokens_of(r).iter().map(move |&t| of(r, t))).collect()
}

fn partial<B: Backend, T: Float>(
    backend: &B,
    shard: &Inputs<T>,
    labels: &[f32],
    records_per_row: Option<usize>,
) -> Left {
    let stream = backend.stream().unwrap();
    let (rows, ids) = (shard.rows, shard.ids);
    let width = records_per_row.unwrap_or(1);
    let logits = backend.upload(&stream, &shard.logits).unwrap();
    let tokens = backend.upload(&stream, shard.tokens.as_ref().unwrap()).unwrap();
    let labels = backend.upload(&stream, labels).unwrap();
    let temperature = shard.temperature.as_ref().map(|t| backend.upload(&stream, t).unwrap());
    let loss_mask = shard.loss_mask.as_ref().map(|m| backend.upload(&stream, m).unwrap());
    let empty = Partial { max_logit: -INF, sum: 0.0, weighted: 0.0, label: -INF };
    let mut records = backend.upload(&stream, &vec![empty; rows * width]).unwrap();
    let mut sum_sq = backend.allocate::<f32>(&stream, rows * width).unwrap();
    let mut other_labels = backend.allocate::<f32>(&stream, rows * (ids - 1)).unwrap();
    let mut best = backend.allocate::<u64>(&stream, rows).unwrap();
    let mut rank = backend.allocate::<i32>(&stream, rows * ids).unwrap();
    let mut kept = backend.upload(&stream, &vec![empty; rows]).unwrap();
    let mut label_added = backend.allocate::<u64>(&stream, 1).unwrap();
    let keep = shard
        .keep
        .as_ref()
        .map(|k| (backend.upload(&stream, &k.ids).unwrap(), backend.upload(&stream, &k.offsets).unwrap()));
    let mut scratch = backend.allocate::<u8>(&stream, moerl::logprob::workspace_bytes(rows, shard.columns)).unwrap();
    let call = PartialCall {
        tokens: Some(Matrix::new(tokens.view(), rows, ids).unwrap()),
        temperature: temperature.as_ref().map(Buffer::view),
        loss_mask: loss_mask.as_ref().map(Buffer::view),
        label_logits: Some(labels.view()),
        keep: keep.as_ref().map(|(ids, offsets)| KeepSets { ids: ids.view(), offsets: offsets.view() }),
        panel_records: records_per_row.is_some(),
        records_per_row: width,
        sum_sq: Some(sum_sq.view_mut()),
        other_labels: (ids > 1).then(|| other_labels.view_mut()),
        best: Some(best.view_mut()),
        rank: Some(rank.view_mut()),
        kept_records: keep.is_some().then(|| kept.view_mut()),
        label_added: keep.is_some().then(|| label_added.view_mut()),
        workspace: shard.workspace.then(|| scratch.view_mut()),
        ..PartialCall::new(Matrix::new(logits.view(), rows, shard.columns).unwrap(), records.view_mut())
    };
    backend.logprob_partial(&stream, &shard.config, call).expect("a valid call");
    Left {
        records: backend.download(&stream, records.view()).unwrap(),
        sum_sq: backend.download(&stream, sum_sq.view()).unwrap(),
        other_labels: backend.download(&stream, other_labels.view()).unwrap(),
        best: backend.download(&stream, best.view()).unwrap(),
        rank: backend.download(&stream, rank.view()).unwrap(),
        kept: backend.download(&stream, kept.view()).unwrap(),
        label_added: backend.download(&stream, label_added.view()).unwrap()[0],
    }
}

/// The whole way, over shards of these widths.
fn over_shards<B: Backend, T: Float>(backend: &B, inputs: &Inputs<T>, widths: &[usize], by_panels: bool) -> Outputs {
    let mut start = 0;
    let labels = label_logits(inputs);
    let panels: Vec<usize> = widths.iter().map(|&width| if by_panels { width.div_ceil(PANEL) } else { 1 }).collect();
    let per_row = panels.iter().copied().max().unwrap();
    let left: Vec<Left> = widths
        .iter()
        .map(|&width| {
            let shard = shard_of(inputs, start, width);
            start += width;
            partial(backend, &shard, &labels, by_panels.then_some(per_row))
        })
        .collect();
    assert_eq!(start, inputs.vocabulary());
    combine(backend, inputs, &panels, per_row, &left)
}

/// Shards that are done in another order, each in its place when all are there.
fn shards_may_arrive_in_any_order<B: Backend>(backend: &B) {
    for (widths, ids) in [(vec![2500, 2500], 1), (vec![1, 2048, 900], 3), (vec![700, 5, 1300, 1, 2049, 64, 900, 33], 2)]
    {
        let columns = widths.iter().sum();
        let inputs = case::<bf16>(14, 5, columns, ids);
        let labels = label_logits(&inputs);
        for by_panels in [false, true] {
            let panels: Vec<usize> = widths.iter().map(|w| if by_panels { w.div_ceil(PANEL) } else { 1 }).collect();
            let per_row = panels.iter().copied().max().unwrap();
            let starts: Vec<usize> = widths
                .iter()
                .scan(0, |start, width| {
                    *start += width;
                    Some(*start - width)
                })
                .collect();
            let expected = over_shards(backend, &inputs, &widths, by_panels);
            let mut rng = seeded(15);
            for _ in 0..4 {
                let mut order: Vec<usize> = (0..widths.len()).collect();
                order.shuffle(&mut rng);
                let mut arrived: Vec<(usize, Left)> = order
                    .iter()
                    .map(|&i| {
                        let shard = shard_of(&inputs, starts[i], widths[i]);
                        (i, partial(backend, &shard, &labels, by_panels.then_some(per_row)))
                    })
                    .collect();
                arrived.sort_by_key(|(i, _)| *i);
                let left: Vec<Left> = arrived.into_iter().map(|(_, left)| left).collect();
                let found = combine(backend, &inputs, &panels, per_row, &left);
                assert_eq!(found.bits(), expected.bits(), "{widths:?} in the order {order:?}");
                assert_eq!(
                    canonical(&found.logprobs).collect::<Vec<_>>(),
                    canonical(&expected.logprobs).collect::<Vec<_>>()
                );
                assert_eq!((found.rank, found.argmax), (expected.rank.clone(), expected.argmax.clone()), "{order:?}");
            }
        }
    }
}

fn combine<B: Backend, T: Float>(
    backend: &B,
    inputs: &Inputs<T>,
    counts: &[usize],
    per_row: usize,
    left: &[Left],
) -> Outputs {
    let stream = backend.stream().unwrap();
    let (rows, ids) = (inputs.rows, inputs.ids);
    fn all<V: Copy>(left: &[Left], of: impl Fn(&Left) -> &Vec<V>) -> Vec<V> {
        left.iter().flat_map(|shard| of(shard).clone()).collect()
    }
    let records = backend.upload(&stream, &all(left, |l| &l.records)).unwrap();
    let sum_sq = backend.upload(&stream, &all(left, |l| &l.sum_sq)).unwrap();
    let other_labels = backend.upload(&stream, &all(left, |l| &l.other_labels)).unwrap();
    let best = backend.upload(&stream, &all(left, |l| &l.best)).unwrap();
    let kept_records = backend.upload(&stream, &all(left, |l| &l.kept)).unwrap();
    let counted: Vec<i32> = (0..rows * ids).map(|i| left.iter().map(|l| l.rank[i]).sum()).collect();
    let mut rank = backend.upload(&stream, &counted).unwrap();
    let tokens = backend.upload(&stream, inputs.tokens.as_ref().unwrap()).unwrap();
    let temperature = inputs.temperature.as_ref().map(|t| backend.upload(&stream, t).unwrap());
    let loss_mask = inputs.loss_mask.as_ref().map(|m| backend.upload(&stream, m).unwrap());
    let keep = inputs
        .keep
        .as_ref()
        .map(|k| (backend.upload(&stream, &k.ids).unwrap(), backend.upload(&stream, &k.offsets).unwrap()));
    let mut outputs: Vec<B::Buffer<f32>> = [ids, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        .iter()
        .map(|&width| backend.upload(&stream, &vec![UNTOUCHED; rows * width]).unwrap())
        .collect();
    let [logprobs, entropy, max, log_sum, lse, sum_p2, sum_sq_out, kept_logprobs, kept_entropy, kept_mass] =
        &mut outputs[..]
    else {
        unreachable!()
    };
    let mut argmax = backend.allocate::<i32>(&stream, rows).unwrap();
    let mut saved = backend.allocate::<Partial>(&stream, rows).unwrap();
    let mut kept_saved = backend.allocate::<Partial>(&stream, rows).unwrap();
    let mut errors = backend.error_word(&stream).unwrap();
    let has_kept = keep.is_some();
    let call = Combine {
        records_per_row: per_row,
        shard_sum_sq: Some(sum_sq.view()),
        shard_other_labels: (ids > 1).then(|| other_labels.view()),
        shard_best: Some(best.view()),
        kept_records: has_kept.then(|| kept_records.view()),
        tokens: Some(Matrix::new(tokens.view(), rows, ids).unwrap()),
        temperature: temperature.as_ref().map(Buffer::view),
        loss_mask: loss_mask.as_ref().map(Buffer::view),
        keep: keep.as_ref().map(|(ids, offsets)| KeepSets { ids: ids.view(), offsets: offsets.view() }),
        logprobs: Some(logprobs.view_mut()),
        entropy: Some(entropy.view_mut()),
        max: Some(max.view_mut()),
        log_sum: Some(log_sum.view_mut()),
        lse: Some(lse.view_mut()),
        sum_p2: Some(sum_p2.view_mut()),
        sum_sq: Some(sum_sq_out.view_mut()),
        rank: Some(rank.view_mut()),
        argmax: Some(argmax.view_mut()),
        saved: Some(saved.view_mut()),
        kept_logprobs: has_kept.then(|| kept_logprobs.view_mut()),
        kept_entropy: has_kept.then(|| kept_entropy.view_mut()),
        kept_mass: has_kept.then(|| kept_mass.view_mut()),
        kept_saved: has_kept.then(|| kept_saved.view_mut()),
        errors: Some(errors.view_mut()),
        tag: TAG,
        ..Combine::new(counts, records.view())
    };
    let config = Config { vocab_total: Some(inputs.vocabulary()), vocabulary: None, ..inputs.config.clone() };
    backend.logprob_combine(&stream, &config, call).expect("a valid call");
    let fault = match backend.check(&stream, &mut errors) {
        Ok(()) => None,
        Err(Error::Data(fault)) => Some(fault),
        Err(other) => panic!("{other}"),
    };
    let mut fetched = outputs.iter().map(|b| backend.download(&stream, b.view()).unwrap());
    let mut take = || fetched.next().expect("an output");
    Outputs {
        logprobs: take(),
        entropy: take(),
        max: take(),
        log_sum: take(),
        lse: take(),
        sum_p2: take(),
        sum_sq: take(),
        kept_logprobs: take(),
        kept_entropy: take(),
        kept_mass: take(),
        saved: backend.download(&stream, saved.view()).unwrap(),
        kept_saved: backend.download(&stream, kept_saved.view()).unwrap(),
        rank: backend.download(&stream, rank.view()).unwrap(),
        argmax: backend.download(&stream, argmax.view()).unwrap(),
        other_labels: Vec::new(),
        label_added: left.iter().map(|l| l.label_added).sum(),
        fault,
    }
}

fn case<T: Float>(seed: u64, rows: usize, columns: usize, ids: usize) -> Inputs<T> {
    let mut rng = seeded(seed);
    let tokens = (0..rows * ids).map(|_| rng.random_range(0..columns as i64)).collect();
    let mut inputs = Inputs::<T>::random(&mut rng, rows, columns, 3.0).with_tokens(ids, tokens);
    inputs.temperature = Some((0..rows).map(|r| [1.0, 0.7, 1.3][r % 3]).collect());
    inputs
}

fn assert_as_one_shard<T: Float>(inputs: &Inputs<T>, found: &Outputs, one: &Outputs, what: &str) {
    let mut worst = Worst::default();
    for r in 0..inputs.rows {
        assert_eq!(found.saved[r].max_logit, one.saved[r].max_logit, "{what}");
        assert_eq!(found.saved[r].label.to_bits(), one.saved[r].label.to_bits(), "{what}");
        assert_eq!(found.max[r], one.max[r], "{what}");
        worst.see(&found.first_ids(), r, &exact(&inputs.capped_row(r), inputs.temperature_of(r), inputs.token(r)));
    }
    assert_eq!((&found.rank, &found.argmax), (&one.rank, &one.argmax), "{what}");
    let near = |x: f32, y: f32| (x - y).abs() as f64 <= 1e-6 + 2.0 * ulp(f64::from(y));
    assert!(found.logprobs.iter().zip(&one.logprobs).all(|(&x, &y)| x == y || near(x, y)), "{what}");
    worst.assert_within_goals(what);
}

fn shards_agree_with_f64_and_with_one_shard<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, widths: &[usize], ids: usize, workspace: bool) {
        let columns = widths.iter().sum();
        let inputs = Inputs { workspace, ..case::<T>(1, 7, columns, ids) };
        let one = forward(backend, &inputs, WITH_ORDER);
        for by_panels in [false, true] {
            let found = over_shards(backend, &inputs, widths, by_panels);
            assert_as_one_shard(&inputs, &found, &one, &format!("{widths:?}, panels {by_panels}"));
            assert_eq!(found.fault, None);
        }
    }
    run::<B, bf16>(backend, &[2500, 2500], 1, false);
    run::<B, bf16>(backend, &[1, 2048, 900], 3, true);
    run::<B, f32>(backend, &[5, 7, 11, 13, 17, 19, 23, 29], 2, false);
    run::<B, f16>(backend, &[4097, 3], 1, false);
}

/// The reference's sums are f64, rounded to f32 where a record holds them: merging shows that.
fn sums_in_records<B: Backend>(backend: &B) -> bool {
    backend.name() != "reference"
}

fn panel_records_give_the_bits_of_one_shard<B: Backend>(backend: &B) {
    if !sums_in_records(backend) {
        return;
    }
    fn run<B: Backend, T: Float>(backend: &B, inputs: &Inputs<T>, widths: &[usize]) {
        let one = forward(backend, inputs, WITH_ORDER);
        let found = over_shards(backend, inputs, widths, true);
        for r in 0..inputs.rows {
            let bits = |o: &Outputs| [&o.row_bits(r)[..], &canonical(&o.logprobs).collect::<Vec<_>>()].concat();
            assert_eq!(bits(&found), bits(&one), "{widths:?}, row {r}");
        }
        assert_eq!((&found.rank, &found.argmax, found.fault), (&one.rank, &one.argmax, one.fault), "{widths:?}");
    }
    run(backend, &case::<bf16>(2, 3, 262_144, 1), &[32_768; 8]);
    // Not cut at the super-panels.
    run(backend, &case::<bf16>(3, 2, 264_193, 1), &[88_064, 88_064, 88_065]);
    run(backend, &case::<f32>(4, 5, 5000, 2), &[2048, 2952]);
    let mut capped = case::<bf16>(5, 5, 5000, 1);
    capped.config.softcap = Some(20.0);
    run(backend, &capped, &[4096, 904]);
}

fn shards_of_one_column_and_of_masked_columns_are_neutral<B: Backend>(backend: &B) {
    let mut inputs = case::<f32>(6, 6, 3001, 1);
    for r in 0..6 {
        inputs.logits[r * 3001 + 1000..r * 3001 + 2000].fill(-INF);
    }
    inputs.tokens = Some(vec![3000, 999, 2000, 5, 2999, 2500]);
    let one = forward(backend, &inputs, WITH_ORDER);
    let found = over_shards(backend, &inputs, &[1000, 1000, 1000, 1], false);
    assert_as_one_shard(&inputs, &found, &one, "a masked shard");
    assert_eq!(found.fault, None, "a shard of -inf alone is legal");
}

fn negative_rows_survive<B: Backend>(backend: &B) {
    let mut inputs = case::<f32>(7, 4, 3000, 1);
    for x in &mut inputs.logits {
        *x -= 200.0;
    }
    let one = forward(backend, &inputs, WITH_ORDER);
    assert_as_one_shard(&inputs, &over_shards(backend, &inputs, &[1500, 1500], false), &one, "all negative");
}

fn faults_are_those_of_one_shard<B: Backend>(backend: &B) {
    let columns = 5000;
    for first in 0..6 {
        let mut inputs = case::<f32>(8, 8, columns, 1);
        inputs.loss_mask = Some(vec![1, 1, 1, 1, 1, 0, 1, 1]);
        let rows = [0, 1, 2, 3, 4, 5].map(|r| r >= first);
        let spoil = |on: bool, x: &mut f32, value: f32| {
            if on {
                *x = value;
            }
        };
        spoil(rows[0], &mut inputs.logits[4900], f32::NAN);
        spoil(rows[1], &mut inputs.logits[columns + 3], INF);
        if rows[2] {
            inputs.logits[2 * columns..3 * columns].fill(-INF);
        }
        spoil(rows[3], &mut inputs.temperature.as_mut().unwrap()[3], -1.0);
        if rows[4] {
            inputs.tokens.as_mut().unwrap()[4] = columns as i64;
        }
        let one = forward(backend, &inputs, WITH_ORDER);
        for by_panels in [false, true] {
            let found = over_shards(backend, &inputs, &[2048, 2952], by_panels);
            assert_eq!(found.fault, one.fault, "first fault in row {first}");
            for r in 0..8 {
                let nan = |o: &Outputs| o.row_bits(r).map(|bits| f32::from_bits(bits).is_nan());
                assert_eq!(nan(&found)[..6], nan(&one)[..6], "row {r}");
                assert_eq!((found.rank[r], found.argmax[r]), (one.rank[r], one.argmax[r]), "row {r}");
            }
            assert_eq!(found.row_bits(5), [0; 11], "an absent row");
        }
    }
    let expected = Fault { row: 4, tag: TAG, code: FaultCode::Target };
    let mut inputs = case::<f32>(9, 5, columns, 1);
    inputs.tokens.as_mut().unwrap()[4] = -3;
    assert_eq!(over_shards(backend, &inputs, &[2048, 2952], false).fault, Some(expected), "an id of no shard");
}

fn a_single_shard_is_the_whole<B: Backend>(backend: &B) {
    if !sums_in_records(backend) {
        return;
    }
    let inputs = case::<bf16>(10, 9, 4500, 3);
    let one = forward(backend, &inputs, WITH_ORDER);
    let found = over_shards(backend, &inputs, &[4500], false);
    assert_eq!(found.bits(), one.bits(), "merging one record is the identity");
    assert_eq!((&found.logprobs, &found.rank), (&one.logprobs, &one.rank));
}

fn keep_sets_go_over_shards<B: Backend>(backend: &B) {
    let columns = 5000;
    let mut inputs = case::<bf16>(11, 6, columns, 1);
    inputs.tokens = Some(vec![10, 4000, 2048, 7, 4999, 33]);
    let sets = vec![
        (0..40).collect(),
        vec![2047, 2048, 3000], // without the token, which the second shard adds
        (0..5000).step_by(2).collect(),
        vec![],
        vec![4999],
        vec![5, 4],
    ];
    inputs.keep = Some(Keep::of(&sets));
    let asked = Asked { kept: true, ..WITH_ORDER };
    for strict_keep in [false, true] {
        inputs.config.strict_keep = strict_keep;
        let one = forward(backend, &inputs, asked);
        for by_panels in [false, true] {
            let found = over_shards(backend, &inputs, &[2048, 2952], by_panels);
            assert_eq!((found.fault, found.label_added), (one.fault, one.label_added));
            assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((5, FaultCode::Keep)));
            for r in 0..6 {
                let of = |o: &Outputs| [o.kept_logprobs[r], o.kept_entropy[r], o.kept_mass[r]];
                for (x, y) in of(&found).into_iter().zip(of(&one)) {
                    let off = of_goal(x, f64::from(y), 4e-6 + 2.0 * ulp(f64::from(y)));
                    assert!(off <= 1.0, "row {r}: {:?} for {:?}", of(&found), of(&one));
                }
            }
            assert_eq!(found.kept_saved[4].max_logit, one.kept_saved[4].max_logit);
        }
    }
}

fn gradients_of_shards_are_parts_of_the_whole<B: Backend>(backend: &B) {
    let (columns, rows) = (5000, 5);
    let mut inputs = case::<bf16>(12, rows, columns, 2);
    inputs.tokens = Some(vec![10, 4000, 2048, 2048, 4999, 0, 7, 2047, -100, 4096]);
    let mut rng = seeded(13);
    let mut up = Upstream::random(&mut rng, rows);
    up.logprobs = Some((0..rows * 2).map(|_| normal(&mut rng)).collect());
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let whole: Vec<bf16> = backward(backend, &inputs, &saved, &up, Target::Apart);
    let stream = backend.stream().unwrap();
    for (start, width) in [(0, 2048), (2048, 2952)] {
        let shard = shard_of(&inputs, start, width);
        let part: Vec<bf16> = backward(backend, &shard, &saved, &up, Target::InPlace);
        for r in 0..rows {
            let expected = &whole[r * columns + start..][..width];
            let differs = part[r * width..(r + 1) * width].iter().zip(expected).filter(|(x, y)| x != y).count();
            // The reference sums whole rows again in f64, but takes a shard's sums from the record, which f32 rounds.
            let allowed = if sums_in_records(backend) { 0 } else { width / 50 };
            assert!(differs <= allowed, "{differs} of row {r} from {start} differ");
        }
    }
    // Without any upstream of the rows a shard writes zeros.
    let shard = shard_of(&inputs, 0, 2048);
    let logits = backend.upload(&stream, &shard.logits).unwrap();
    let saved = backend.upload(&stream, &saved).unwrap();
    let zeros = backend.allocate::<f32>(&stream, rows).unwrap();
    let mut target = backend.upload(&stream, &vec![bf16::NAN; rows * 2048]).unwrap();
    let gradient = Gradient::Into {
        logits: Matrix::new(logits.view(), rows, 2048).unwrap(),
        d_logits: MatrixMut::new(target.view_mut(), rows, 2048).unwrap(),
    };
    let call = Backward { d_entropy: Some(zeros.view()), ..Backward::new(gradient, saved.view()) };
    backend.logprob_backward(&stream, &shard.config, call).unwrap();
    assert!(backend.download(&stream, target.view()).unwrap().iter().all(|g| g.to_bits() == 0));
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let logits = [0.0_f32; 8];
    let matrix = || Matrix::new(&logits[..], 2, 4).unwrap();
    let mut records = [bytemuck::Zeroable::zeroed(); 2];
    let config = Config { vocab_start: 4, vocab_total: Some(7), ..Config::default() };
    let call = PartialCall::<moerl::memory::Host>::new(matrix(), (&mut records[..]).into());
    let error = moerl::Reference.logprob_partial(&(), &config, call).expect_err("refused");
    assert!(error.is(Kind::Shape) && error.to_string().contains("4 columns begin at 4"), "{error}");

    let mut records = [bytemuck::Zeroable::zeroed(); 2];
    let mut best = [0; 3];
    let call = PartialCall::<moerl::memory::Host> {
        records_per_row: 2,
        best: Some((&mut best[..]).into()),
        ..PartialCall::new(matrix(), (&mut records[..]).into())
    };
    let error = moerl::Reference.logprob_partial(&(), &Config::default(), call).expect_err("refused").to_string();
    for part in ["records_per_row: is 2, needs 1", "best: has shape [3], needs [2]"] {
        assert!(error.contains(part), "{error}");
    }

    let error = moerl::Reference
        .logprob_forward(
            &(),
            &Config { vocab_total: Some(9), ..Config::default() },
            moerl::logprob::Forward::new(matrix()),
        )
        .expect_err("refused");
    assert!(error.is(Kind::Config) && error.to_string().contains("logprob_partial"), "{error}");

    let records = [Partial { max_logit: 0.0, sum: 1.0, weighted: 0.0, label: 0.0 }; 4];
    let mut entropy = [0.0_f32; 2];
    let mut argmax = [0; 2];
    let counts = [1, 2];
    let mut call = Combine::<moerl::memory::Host>::new(&counts, (&records[..]).into());
    call.entropy = Some((&mut entropy[..]).into());
    call.argmax = Some((&mut argmax[..]).into());
    let error = moerl::Reference.logprob_combine(&(), &Config::default(), call).expect_err("refused").to_string();
    for part in
        ["vocab_total: of all shards must be given", "counts: must be 1 to the 1 records", "argmax: needs shard_best"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
}
