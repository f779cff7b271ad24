//! What must not change a bit.

use approx::assert_abs_diff_eq;
use bytemuck::Zeroable;
use moerl::diagnostics::{self, Sum};
use moerl::objective::{
    Aggregation, Coefficient, Config, Denominators, NonFinite, Output, Phases, Plan, RatioLevel, Sapo, Segments,
    Variant, workspace_bytes,
};
use moerl::{Backend, Buffer};

use crate::case::{Asked, Asking, Case, Uploaded, objectives, run, run_asking, run_plain};
use crate::common::{bits, is_sanitized, sampled};

/// A batch with what an objective may read, but for corrections.
fn rich(lengths: &[usize], seed: u64) -> Case {
    Case::random(lengths, seed).with_mask(seed).with_weights(seed).with_token_advantages(seed).with_terms(seed)
}

pub fn neighbours_do_not_change_a_bit<B: Backend>(backend: &B) {
    let lengths = [7, 33, 5, 1030, 9];
    let case = rich(&lengths, 3);
    for config in objectives() {
        let alone = run(backend, &config, &case);
        for kept in 0..lengths.len() {
            let range = case.segments().range(kept);
            let mut spoilt = case.clone();
            for u in (0..case.tokens()).filter(|u| !range.contains(u)) {
                spoilt.logprobs[u] = f32::NAN;
                spoilt.advantages[u] = f32::NAN;
            }
            let found = run(backend, &config, &spoilt);
            assert_eq!(
                bits(&found.d_logprobs[range.clone()]),
                bits(&alone.d_logprobs[range.clone()]),
                "segment {kept}"
            );
            assert_eq!(found.sequence_ratio[kept].to_bits(), alone.sequence_ratio[kept].to_bits());
        }
    }
}

pub fn the_place_in_the_pack_does_not_change_a_bit<B: Backend>(backend: &B) {
    for length in [1, 6, 40, 1300] {
        let segment = rich(&[length], 5);
        for config in objectives() {
            let alone = run(backend, &config, &segment);
            // Under a sanitizer one of each alignment.
            for offset in (0..34).step_by(if is_sanitized() { 11 } else { 1 }) {
                // In front: a segment of its own, which shares a unit with a short one.
                let case = segment.behind(&rich(&[offset], 6));
                let found = run(backend, &config, &case);
                assert_eq!(bits(&found.d_logprobs[offset..]), bits(&alone.d_logprobs), "{length} at {offset}");
                assert_eq!(found.sequence_ratio[1].to_bits(), alone.sequence_ratio[0].to_bits());
            }
        }
    }
}

pub fn splitting_a_batch_changes_no_gradient<B: Backend>(backend: &B) {
    let lengths = [40, 1, 1, 900, 17, 17, 0, 1100, 33];
    let case = rich(&lengths, 7);
    for config in objectives() {
        for aggregation in [Aggregation::SeqMeanTokenMean, Aggregation::TokenMean] {
            let config = config.clone().with_aggregation(aggregation);
            let (loss, gradient) = run_plain(backend, &config, &case);
            for pieces in [1, 2, 7, lengths.len()] {
                let cuts: Vec<usize> = (0..=pieces).map(|piece| piece * lengths.len() / pieces).collect();
                let (mut total, mut joined, mut size) = (0.0, Vec::new(), 0.0);
                for cut in cuts.windows(2) {
                    let (loss, gradient) = run_plain(backend, &config, &case.part(cut[0]..cut[1]));
                    total += loss;
                    size += loss.abs();
                    joined.extend(gradient);
                }
                assert_eq!(bits(&joined), bits(&gradient), "{pieces} pieces");
                assert!((total - loss).abs() <= 1e-12 * size, "{pieces} pieces: {total} not {loss}");
            }
        }
    }
}

/// Ranks that each hold some of the segments, and the segments in another order: the same gradients, and losses that add up.
pub fn the_order_and_the_ranks_of_segments_change_no_gradient<B: Backend>(backend: &B) {
    let lengths = [40, 1, 1, 900, 17, 17, 0, 1100, 33, 5, 31];
    let case = rich(&lengths, 12);
    let segments = case.segments();
    let of = |chosen: &[usize]| {
        let tokens: Vec<usize> = chosen.iter().flat_map(|&i| segments.range(i)).collect();
        (case.select(chosen.iter().map(|&i| lengths[i]).collect(), &tokens), tokens)
    };
    for config in objectives() {
        let (loss, gradient) = run_plain(backend, &config, &case);
        let agree = |parts: &[Vec<usize>], what: &str| {
            let (mut total, mut size, mut seen) = (0.0, 0.0, 0);
            for part in parts {
                let (piece, tokens) = of(part);
                let (loss, found) = run_plain(backend, &config, &piece);
                total += loss;
                size += loss.abs();
                for (&u, g) in tokens.iter().zip(&found) {
                    assert_eq!(g.to_bits(), gradient[u].to_bits(), "{what}: token {u}");
                }
                seen += tokens.len();
            }
            assert_eq!(seen, case.tokens());
            assert!((total - loss).abs() <= 1e-12 * size, "{what}: {total} not {loss}");
        };
        for ranks in [1, 2, 3, 8] {
            let parts: Vec<Vec<usize>> =
                (0..ranks).map(|rank| (0..lengths.len()).filter(|i| i % ranks == rank).collect()).collect();
            agree(&parts, &format!("{ranks} ranks"));
        }
        agree(&[(0..lengths.len()).rev().collect()], "reversed");
        agree(&[vec![7, 2, 9, 0, 10, 4, 3, 6, 1, 8, 5]], "shuffled");
    }
}

/// Tokens that do not count may lengthen a segment until kernels take it by another way: a lane, a warp, a block, tiles over the grid.
pub fn the_size_class_does_not_change_a_bit<B: Backend>(backend: &B) {
    for length in [1, 9, 31] {
        let segment = rich(&[length], 14);
        let padding = Case { loss_mask: Some(vec![0; 5000]), ..rich(&[5000], 15) };
        for config in objectives() {
            let (loss, gradient) = run_plain(backend, &config, &segment);
            let ratio = run(backend, &config, &segment).sequence_ratio[0];
            for longer in [32, 33, 128, 1024, 1025, 5000] {
                // With a short segment in front, which shares a unit where there is room.
                for front in [0, 3] {
                    let mut case = padding.behind(&segment).behind(&rich(&[front], 16));
                    case = case.select(vec![front, longer], &(0..front + longer).collect::<Vec<_>>());
                    case.denominators = segment.denominators;
                    let mask = case.loss_mask.as_mut().unwrap();
                    mask[..front].fill(0);
                    let (found_loss, found) = run_plain(backend, &config, &case);
                    assert_eq!(bits(&found[front..front + length]), bits(&gradient), "{length} in {longer}");
                    assert!(found[front + length..].iter().all(|g| g.to_bits() == 0), "{length} in {longer}");
                    assert!((found_loss - loss).abs() <= 1e-12 * loss.abs(), "{length} in {longer}");
                    let found = run(backend, &config, &case).sequence_ratio[1];
                    assert_eq!(found.to_bits(), ratio.to_bits(), "{length} in {longer}");
                }
            }
        }
    }
}

/// Context-parallel ranks, each with a piece of every segment: planes are added up, every rank finishes all of it. Loss and gradient.
fn by_ranks<B: Backend>(
    backend: &B,
    config: &Config,
    case: &Case,
    owner: impl Fn(usize) -> usize,
    ranks: usize,
) -> Vec<f32> {
    let stream = backend.stream().unwrap();
    let segments = case.segments();
    let pieces: Vec<(Case, Vec<usize>)> = (0..ranks)
        .map(|rank| {
            let parts: Vec<Vec<usize>> = segments
                .ranges()
                .map(|range| range.clone().filter(|&u| owner(u - range.start) == rank).collect())
                .collect();
            let tokens = parts.concat();
            (case.select(parts.iter().map(Vec::len).collect(), &tokens), tokens)
        })
        .collect();
    let count = config.planes().len() * segments.len();
    let plans: Vec<Plan<B>> =
        pieces.iter().map(|(piece, _)| Plan::new(backend, &stream, &piece.segments()).unwrap()).collect();
    let mut joined = vec![0.0; count];
    let mut coefficients = backend.upload(&stream, &vec![Coefficient::zeroed(); segments.len()]).unwrap();
    for ((piece, _), plan) in pieces.iter().zip(&plans) {
        let mut sums = backend.upload(&stream, &vec![f64::NAN; count]).unwrap();
        let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(plan)).unwrap();
        let input = Uploaded::new(backend, &stream, piece);
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        let output = Output::new(workspace.view_mut());
        backend.objective_partial(&stream, config, plan, input.batch(), phases, output).unwrap();
        for (to, from) in joined.iter_mut().zip(backend.download(&stream, sums.view()).unwrap()) {
            *to += from;
        }
    }
    let mut gradient = vec![f32::NAN; case.tokens()];
    for ((piece, tokens), plan) in pieces.iter().zip(&plans) {
        let mut sums = backend.upload(&stream, &joined).unwrap();
        let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(plan)).unwrap();
        let input = Uploaded::new(backend, &stream, piece);
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        let output = Output::new(workspace.view_mut());
        backend.objective_finish(&stream, config, plan, input.batch(), phases, output).unwrap();
        let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; piece.tokens()]).unwrap();
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        let output = Output { d_logprobs: Some(d_logprobs.view_mut()), ..Output::new(workspace.view_mut()) };
        backend.objective_apply(&stream, config, plan, input.batch(), phases, output).unwrap();
        for (&u, g) in tokens.iter().zip(backend.download(&stream, d_logprobs.view()).unwrap()) {
            gradient[u] = g;
        }
    }
    gradient
}

pub fn context_parallel_ranks_agree<B: Backend>(backend: &B) {
    // The longest one has segments whose pieces are empty on some rank.
    let case = rich(&[40, 1, 0, 900, 17, 2100, 5], 13);
    for config in objectives() {
        let gradient = by_phases(backend, &config, &case, &[usize::MAX / 2]).1;
        let largest = gradient.iter().fold(0.0_f32, |largest, g| largest.max(g.abs()));
        let agrees = |found: &[f32], what: &str| {
            for (u, (f, g)) in found.iter().zip(&gradient).enumerate() {
                // 1e-8 in D/n; φ of VESPO is of D itself, a sum of up to 2100 terms of .3.
                let tolerance = if matches!(config.variant, Variant::Vespo(_)) { 2e-4 } else { 5e-7 };
                let error = (f - g).abs();
                assert!(
                    error <= tolerance * g.abs() + 1e-8 * largest,
                    "{what}: {:?}: token {u}: {f} not {g}",
                    config.variant
                );
            }
        };
        for ranks in [1, 2, 3, 8] {
            // Round robin by 64, halves from both ends (zig-zag), and token by token.
            agrees(&by_ranks(backend, &config, &case, |at| at / 64 % ranks, ranks), "round robin");
            agrees(
                &by_ranks(
                    backend,
                    &config,
                    &case,
                    |at| (at / 32 % (2 * ranks)).min(2 * ranks - 1 - at / 32 % (2 * ranks)),
                    ranks,
                ),
                "zig-zag",
            );
            agrees(&by_ranks(backend, &config, &case, |at| at % ranks, ranks), "token by token");
        }
    }
}

/// Loss and gradient by the three phases, the tokens coming in calls that end at these positions of every segment.
pub fn by_phases<B: Backend>(backend: &B, config: &Config, case: &Case, ends: &[usize]) -> (f64, Vec<f32>) {
    let Asked { loss, d_logprobs, .. } = by_phases_asking(backend, config, case, ends, false);
    (loss, d_logprobs)
}

/// As by_phases, with diagnostics or without.
pub fn by_phases_asking<B: Backend>(
    backend: &B,
    config: &Config,
    case: &Case,
    ends: &[usize],
    with_diagnostics: bool,
) -> Asked {
    let stream = backend.stream().unwrap();
    let segments = case.segments();
    let planes = config.planes().len();
    let mut sums = backend.upload(&stream, &vec![f64::NAN; planes * segments.len()]).unwrap();
    let mut coefficients = backend.upload(&stream, &vec![Coefficient::zeroed(); segments.len()]).unwrap();
    let mut loss = backend.upload(&stream, &[f64::NAN]).unwrap();
    let mut diagnostics = backend.upload(&stream, &[f64::NAN; diagnostics::LEN]).unwrap();
    let mut errors = backend.error_word(&stream).unwrap();
    let mut gradient = vec![0.0; case.tokens()];

    // Every call's pieces, as a batch of their own, and where its tokens come from.
    let pieces: Vec<(Case, Vec<usize>)> = ends
        .iter()
        .enumerate()
        .map(|(call, &end)| {
            let begin = if call == 0 { 0 } else { ends[call - 1] };
            let ranges: Vec<_> = segments
                .ranges()
                .map(|range| (range.start + begin).min(range.end)..(range.start + end).min(range.end))
                .collect();
            let tokens: Vec<usize> = ranges.iter().cloned().flatten().collect();
            let piece = case.select(ranges.iter().map(|range| range.len()).collect(), &tokens);
            (piece, tokens)
        })
        .collect();
    let plans: Vec<Plan<B>> =
        pieces.iter().map(|(piece, _)| Plan::new(backend, &stream, &piece.segments()).unwrap()).collect();
    let mut workspace =
        backend.upload(&stream, &vec![0xa5_u8; plans.iter().map(workspace_bytes).max().unwrap()]).unwrap();

    for (call, ((piece, _), plan)) in pieces.iter().zip(&plans).enumerate() {
        let input = Uploaded::new(backend, &stream, piece);
        let mut output = Output::new(workspace.view_mut());
        output.loss = Some(loss.view_mut());
        output.diagnostics = with_diagnostics.then(|| diagnostics.view_mut());
        output.errors = Some(errors.view_mut());
        output.tag = 7;
        output.accumulate = call > 0;
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        backend.objective_partial(&stream, config, plan, input.batch(), phases, output).unwrap();
    }
    let last = Uploaded::new(backend, &stream, &pieces[pieces.len() - 1].0);
    let mut output = Output::new(workspace.view_mut());
    output.loss = Some(loss.view_mut());
    output.diagnostics = with_diagnostics.then(|| diagnostics.view_mut());
    output.errors = Some(errors.view_mut());
    output.tag = 7;
    let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
    backend.objective_finish(&stream, config, &plans[plans.len() - 1], last.batch(), phases, output).unwrap();
    for ((piece, tokens), plan) in pieces.iter().zip(&plans) {
        let input = Uploaded::new(backend, &stream, piece);
        let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; piece.tokens()]).unwrap();
        let mut output = Output::new(workspace.view_mut());
        output.loss = Some(loss.view_mut());
        output.diagnostics = with_diagnostics.then(|| diagnostics.view_mut());
        output.errors = Some(errors.view_mut());
        output.tag = 7;
        output.d_logprobs = Some(d_logprobs.view_mut());
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        backend.objective_apply(&stream, config, plan, input.batch(), phases, output).unwrap();
        let found = backend.download(&stream, d_logprobs.view()).unwrap();
        for (&u, g) in tokens.iter().zip(found) {
            gradient[u] = g;
        }
    }
    Asked {
        loss: backend.download(&stream, loss.view()).unwrap()[0],
        d_logprobs: gradient,
        diagnostics: if with_diagnostics { backend.download(&stream, diagnostics.view()).unwrap() } else { vec![] },
        fault: backend.check(&stream, &mut errors).err(),
    }
}

pub fn phases_give_what_the_one_call_gives<B: Backend>(backend: &B) {
    let case = rich(&[40, 1, 0, 900, 17, 2100], 7);
    for config in objectives() {
        let (loss, gradient) = run_plain(backend, &config, &case);
        let (by_phases, d_logprobs) = by_phases(backend, &config, &case, &[usize::MAX / 2]);
        if backend.name() == "reference" {
            // The reference's one call keeps f64 coefficients, its phases hand over f32 ones.
            assert!((by_phases - loss).abs() <= 1e-6 * loss.abs());
        } else {
            assert_eq!(by_phases.to_bits(), loss.to_bits());
            assert_eq!(bits(&d_logprobs), bits(&gradient));
        }
    }
}

/// The numbers bit for bit; any NaN is any other.
/// Equal bit for bit, a NaN to any other.
pub fn same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// Sums of segments of one token: those in f32 add up in another order.
pub fn nearly_same(a: &[f64], b: &[f64]) -> bool {
    let tokens = a[Sum::Tokens as usize];
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| same(&[a], &[b]) || (a - b).abs() <= 1e-6 * (a.abs() + tokens))
}

/// A segment of several tiles, with the arrays that `case` has.
fn tail_of(case: &Case) -> Case {
    let tail = Case::random(&[2500], 9).with_mask(9);
    Case {
        old_logprobs: tail.old_logprobs.filter(|_| case.old_logprobs.is_some()),
        loss_mask: tail.loss_mask.filter(|_| case.loss_mask.is_some()),
        denominators: case.denominators,
        ..tail
    }
}

/// What takes three launches by phases, and beside a segment of several tiles, a call may do in one; and it may do less where less is asked for.
pub fn what_is_asked_for_does_not_change_a_bit<B: Backend>(backend: &B) {
    let all = [
        vec![1; 1100],
        // Units of one-token segments that begin inside a group of 32 segments, and end there.
        [vec![1024], vec![1; 700], vec![1000, 3], vec![1; 300]].concat(),
        vec![17; 90],
        vec![0, 1, 3, 0, 1024, 31, 32, 33, 500, 500, 0, 7],
        vec![256; 12],
        // Units begin and end inside groups of 32 segments, which several units then share.
        (0..1100).map(|i| [1, 40, 3, 0, 9, 200, 17][i * i % 7] % (1 + i * 5 % 60)).collect(),
        vec![5, 2500, 1, 1, 600],
    ];
    for (seed, lengths) in all.iter().enumerate() {
        let plain = Case::random(lengths, seed as u64);
        let masked = plain.clone().with_mask(3);
        let mut odd = masked.clone();
        let middle = odd.tokens() / 2;
        odd.logprobs[middle] = f32::NAN;
        odd.old_logprobs.as_mut().unwrap()[middle / 2] = f32::NEG_INFINITY;
        odd.loss_mask.as_mut().unwrap()[middle / 3] = 9;
        odd.advantages[lengths.len() / 3] = f32::INFINITY;
        let first = Case { old_logprobs: None, ..masked.clone() };
        let odd_first = Case { old_logprobs: None, ..odd.clone() };
        // They differ in arithmetic alone, for which no sanitizer looks.
        let policies = [NonFinite::Propagate, NonFinite::ZeroWeight, NonFinite::DropSegment];
        let policies = if is_sanitized() { &policies[seed % 3..][..1] } else { &policies[..] };
        for (case, what) in [
            (&plain, "plain"),
            (&masked, "masked"),
            (&odd, "odd"),
            (&first, "without old"),
            (&odd_first, "odd, without old"),
        ] {
            let sequence_sapo = Config::new(Variant::Sapo(Sapo { level: RatioLevel::Sequence, ..Sapo::default() }));
            let configs = objectives().into_iter().take(3).chain([sequence_sapo]);
            for config in sampled(configs, seed) {
                for &nonfinite in policies {
                    let config = Config { nonfinite, ..config.clone() };
                    let everything = run(backend, &config, case);
                    let (loss, gradient) = run_plain(backend, &config, case);
                    let name = format!("{what}, {:?}, {nonfinite:?}, case {seed}", config.variant);
                    assert_eq!(bits(&gradient), bits(&everything.d_logprobs), "{name}");
                    assert_eq!(loss.to_bits(), everything.loss.to_bits(), "{name}");
                    let of = |ratio| run_asking(backend, &config, case, Asking { diagnostics: true, ratio });
                    let (alone, beside) = (of(false), of(true));
                    assert_eq!(bits(&alone.d_logprobs), bits(&gradient), "{name}");
                    assert_eq!(alone.loss.to_bits(), loss.to_bits(), "{name}");
                    assert!(
                        same(&alone.diagnostics, &beside.diagnostics),
                        "{name}: {:?} not {:?}",
                        alone.diagnostics,
                        beside.diagnostics
                    );
                    assert_eq!(alone.fault, everything.fault, "{name}");
                    assert_eq!(beside.fault, everything.fault, "{name}");
                    if backend.name() == "reference" {
                        continue;
                    }
                    let phases = by_phases_asking(backend, &config, case, &[usize::MAX / 2], true);
                    assert_eq!(bits(&phases.d_logprobs), bits(&gradient), "{name}");
                    assert!(same(&[phases.loss], &[loss]), "{name}: {} not {loss}", phases.loss);
                    let equal = if lengths.iter().all(|&length| length == 1) { nearly_same } else { same };
                    assert!(
                        equal(&phases.diagnostics, &alone.diagnostics),
                        "{name}: {:?} not {:?}",
                        phases.diagnostics,
                        alone.diagnostics
                    );
                    assert_eq!(phases.fault, everything.fault, "{name}");
                    let more = run(backend, &config, &tail_of(case).behind(case));
                    assert_eq!(bits(&everything.ratio), bits(&more.ratio[..case.tokens()]), "{name}");
                    assert_eq!(everything.clipped, more.clipped[..case.tokens()], "{name}");
                    assert_eq!(bits(&everything.sequence_ratio), bits(&more.sequence_ratio[..lengths.len()]), "{name}");
                    assert_eq!(everything.sequence_clipped, more.sequence_clipped[..lengths.len()], "{name}");
                }
            }
        }
    }
}

pub fn segments_may_come_in_several_calls<B: Backend>(backend: &B) {
    // Cut at a multiple of 32 tiles: the same bits. Cut anywhere: the same numbers.
    let case = Case::random(&[100, 33_500, 1], 8).with_mask(8).with_token_advantages(8).with_terms(8);
    for config in objectives().into_iter().take(4) {
        let (loss, gradient) = by_phases(backend, &config, &case, &[usize::MAX / 2]);
        let (cut_loss, cut_gradient) = by_phases(backend, &config, &case, &[32_768, usize::MAX / 2]);
        assert_eq!(bits(&cut_gradient), bits(&gradient), "{:?}", config.variant);
        // Values of a token variant are rounded once per call and segment.
        assert!((cut_loss - loss).abs() <= 1e-12 * loss.abs().max(1.0));
        let (_, anywhere) = by_phases(backend, &config, &case, &[77, 5001, usize::MAX / 2]);
        for (a, b) in anywhere.iter().zip(&gradient) {
            // 1e-8 in D/n, and an ulp for the rounding of s.
            assert!((a - b).abs() <= 3e-7 * b.abs(), "{a} not {b}");
        }
    }
}

pub fn unaligned_arrays_give_the_same_bits<B: Backend>(backend: &B) {
    let case = rich(&[40, 1, 900, 17, 1100], 9);
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
    let shifted = |values: &[f32], by: usize| {
        let padded = [vec![f32::NAN; by], values.to_vec()].concat();
        backend.upload(&stream, &padded).unwrap()
    };
    for config in objectives() {
        let expected = run(backend, &config, &case);
        for by in 1..4 {
            let logprobs = shifted(&case.logprobs, by);
            let old = shifted(case.old_logprobs.as_ref().unwrap(), 4 - by);
            let input = Uploaded::new(backend, &stream, &case);
            let mut batch = input.batch();
            batch.logprobs = logprobs.view().slice(by..by + case.tokens());
            batch.old_logprobs = Some(old.view().slice(4 - by..4 - by + case.tokens()));
            let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan) + by).unwrap();
            let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; case.tokens() + by]).unwrap();
            let mut loss = backend.upload(&stream, &[f64::NAN]).unwrap();
            let mut output = Output::new(workspace.view_mut().slice(by..by + workspace_bytes(&plan)));
            output.d_logprobs = Some(d_logprobs.view_mut().slice(by..by + case.tokens()));
            output.loss = Some(loss.view_mut());
            backend.objective(&stream, &config, &plan, batch, output).unwrap();
            let found = backend.download(&stream, d_logprobs.view()).unwrap();
            assert_eq!(bits(&found[by..]), bits(&expected.d_logprobs));
            assert_eq!(backend.download(&stream, loss.view()).unwrap()[0].to_bits(), expected.loss.to_bits());
        }
    }
}

pub fn gspo_token_is_gspo_where_they_coincide<B: Backend>(backend: &B) {
    let case = Case::random(&[40, 1, 900, 17, 1100], 9).with_mask(9);
    let (one, other) =
        (run(backend, &Config::gspo(0.01, 0.015), &case), run(backend, &Config::gspo_token(0.01, 0.015), &case));
    assert_abs_diff_eq!(one.loss, other.loss, epsilon = 1e-12);
    for (a, b) in one.d_logprobs.iter().zip(&other.d_logprobs) {
        // c = 1/(B n): the one multiplies A n by s/n, the other does not; a few roundings of f32.
        assert!((a - b).abs() <= 5e-7 * b.abs(), "{a} not {b}");
    }
}

pub fn repeated_runs_are_equal_bit_for_bit<B: Backend>(backend: &B) {
    let case = rich(&[40, 1, 900, 17, 2100], 9);
    for config in objectives() {
        let first = run(backend, &config, &case);
        for _ in 0..3 {
            let again = run(backend, &config, &case);
            assert_eq!(again.loss.to_bits(), first.loss.to_bits());
            assert_eq!(bits(&again.d_logprobs), bits(&first.d_logprobs));
            assert_eq!(again.diagnostics, first.diagnostics);
        }
    }
}

#[test]
fn a_plan_may_be_made_from_offsets_in_the_backends_memory() {
    let offsets = vec![0_i64, 3, 3, 9];
    let plan = Plan::from_device(&moerl::Reference, &(), (&offsets).into()).unwrap();
    assert_eq!(plan.segments(), &Segments::from_lengths([3, 0, 6]).unwrap());
    let _: Denominators<'_, moerl::memory::Host> = Denominators::local();
}
