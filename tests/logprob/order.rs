//! Several tokens a row, ranks and the argmax.

use moerl::Backend;
use moerl::element::{Float, bf16, f16};
use moerl::error::FaultCode;
use rand::RngExt;

use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    every_token_of_a_row_is_as_if_alone,
    ranks_and_the_argmax_count_columns,
    ranks_of_every_alignment_and_width_are_the_same,
    zeros_of_both_signs_are_equal,
    masked_columns_have_ranks_behind_all_others,
    asking_for_the_order_changes_nothing_else,
    ignored_and_unknown_tokens_are_faults_of_their_own,
    rows_without_an_order_have_none,
    gradients_of_several_tokens_agree_with_f64,
    one_token_of_several_is_one_token,
);

const INF: f32 = f32::INFINITY;

/// Values with many ties.
fn with_ties<T: Float>(seed: u64, rows: usize, columns: usize) -> Inputs<T> {
    let mut rng = seeded(seed);
    let logits = (0..rows * columns).map(|_| match rng.random_range(0..12) {
        0 => T::from_f32(f32::NEG_INFINITY),
        1 => T::from_f32(-0.0),
        _ => T::from_f32((8.0 * normal(&mut rng)).round() / 4.0),
    });
    Inputs::new(rows, columns, logits.collect())
}

/// By the definition: larger logits first, then lower columns.
fn rank_of(row: &[f64], column: usize) -> i32 {
    let precedes = |(j, &x): (usize, &f64)| x > row[column] || (x == row[column] && j < column);
    row.iter().enumerate().filter(|&at| precedes(at)).count() as i32
}

fn assert_order<T: Float>(inputs: &Inputs<T>, found: &Outputs, what: &str) {
    for r in 0..inputs.rows {
        let row = inputs.row(r);
        for (k, &token) in inputs.tokens_of(r).iter().enumerate() {
            let expected = rank_of(&row, token as usize);
            assert_eq!(found.rank[r * inputs.ids + k], expected, "{what}: row {r}, token {token}");
        }
        let best = (0..row.len()).find(|&j| rank_of(&row, j) == 0).unwrap();
        assert_eq!(found.argmax[r], best as i32, "{what}: row {r}");
    }
}

fn ranks_and_the_argmax_count_columns<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, rows: usize, columns: usize, workspace: bool) {
        let mut rng = seeded(columns as u64);
        for ids in [1, 3] {
            let tokens = (0..rows * ids).map(|_| rng.random_range(0..columns as i64)).collect();
            let inputs = Inputs { workspace, ..with_ties::<T>(1, rows, columns).with_tokens(ids, tokens) };
            let found = forward(backend, &inputs, WITH_ORDER);
            assert_order(&inputs, &found, &format!("{} columns, {ids} tokens, {}", columns, T::ELEMENT));
            assert_eq!(found.fault, None);
        }
    }
    for columns in [1, 2, 9, 2047, 2048, 2049, 5003] {
        run::<B, bf16>(backend, 5, columns, false);
        run::<B, f32>(backend, 3, columns, false);
        run::<B, f16>(backend, 3, columns, columns % 2 == 1);
        run::<B, bf16>(backend, 3, columns, true);
    }
}

fn ranks_of_every_alignment_and_width_are_the_same<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B) {
        let columns = 4133;
        let mut inputs = with_ties::<T>(2, 6, columns);
        inputs.tokens = Some(vec![0, 2047, 2048, 4132, 1000, 4100]);
        let plain = forward(backend, &inputs, WITH_ORDER);
        assert_order(&inputs, &plain, "aligned");
        for offset in 0..16 / size_of::<T>() {
            let moved = forward(backend, &inputs.laid_out(offset, columns + offset), WITH_ORDER);
            assert_eq!((&moved.rank, &moved.argmax), (&plain.rank, &plain.argmax), "at {offset}");
        }
        let wide = forward(backend, &inputs.widened(), WITH_ORDER);
        assert_eq!((&wide.rank, &wide.argmax), (&plain.rank, &plain.argmax), "widened");
    }
    run::<B, bf16>(backend);
    run::<B, f16>(backend);
    run::<B, f32>(backend);
}

fn zeros_of_both_signs_are_equal<B: Backend>(backend: &B) {
    for zeros in [[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]] {
        let logits = vec![-1.0, zeros[0], zeros[1], -2.0];
        let inputs = Inputs::new(1, 4, logits).with_tokens(4, vec![0, 1, 2, 3]);
        let found = forward(backend, &inputs, WITH_ORDER);
        assert_eq!(found.rank, [2, 0, 1, 3]);
        assert_eq!(found.argmax, [1]);
    }
}

fn masked_columns_have_ranks_behind_all_others<B: Backend>(backend: &B) {
    let columns = 4500;
    let logits = (0..columns).map(|j| if j % 3 == 0 { -INF } else { (j % 7) as f32 }).collect();
    let inputs = Inputs::new(1, columns, logits).with_tokens(3, vec![0, 2100, 4497]);
    let found = forward(backend, &inputs, WITH_ORDER);
    assert_eq!(found.rank, [3000, 3000 + 700, 3000 + 1499]);
    assert_eq!(found.logprobs, [-INF; 3], "legal, and without probability");
    assert_eq!(found.fault, None);
}

fn every_token_of_a_row_is_as_if_alone<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize, ids: usize, workspace: bool) {
        let rows = 6;
        let mut rng = seeded(3);
        let inputs = Inputs::<T>::random(&mut rng, rows, columns, 3.0);
        let mut tokens: Vec<i64> = (0..rows * ids).map(|_| rng.random_range(0..columns as i64)).collect();
        tokens[1] = tokens[0]; // twice the same
        let many = Inputs { workspace, wide_tokens: true, ..inputs.with_tokens(ids, tokens.clone()) };
        let found = forward(backend, &many, WITH_ORDER);
        let lean = forward(backend, &many, Asked { logprobs: true, ..NOTHING });
        assert_eq!(lean.logprobs, found.logprobs);
        for k in 0..ids {
            let one = inputs.with_tokens(1, (0..rows).map(|r| tokens[r * ids + k]).collect());
            let alone = forward(backend, &one, WITH_ORDER);
            for r in 0..rows {
                assert_eq!(found.logprobs[r * ids + k].to_bits(), alone.logprobs[r].to_bits(), "row {r}, token {k}");
                assert_eq!(found.rank[r * ids + k], alone.rank[r]);
                if k == 0 {
                    assert_eq!(found.row_bits(r), alone.row_bits(r));
                } else {
                    assert_eq!(found.other_labels[r * (ids - 1) + k - 1], alone.saved[r].label);
                }
            }
        }
    }
    run::<B, bf16>(backend, 5003, 5, false);
    run::<B, bf16>(backend, 4100, 3, true);
    run::<B, f32>(backend, 2048, 2, false);
    run::<B, f16>(backend, 300, 40, false);
}

fn asking_for_the_order_changes_nothing_else<B: Backend>(backend: &B) {
    let inputs = with_ties::<bf16>(4, 9, 4500);
    let plain = forward(backend, &inputs, EVERYTHING);
    let ordered = forward(backend, &inputs, WITH_ORDER);
    assert_eq!(plain.bits(), ordered.bits());
    assert_eq!(plain.fault, ordered.fault);
    for asked in [Asked { order: true, ..NOTHING }, Asked { order: true, entropy: true, ..NOTHING }] {
        let some = forward(backend, &inputs, asked);
        assert_eq!((&some.rank, &some.argmax), (&ordered.rank, &ordered.argmax));
        assert!(some.logprobs.iter().all(|&x| x == UNTOUCHED));
    }
    let unnamed = forward(backend, &Inputs { tokens: None, ..inputs }, Asked { logprobs: false, ..WITH_ORDER });
    assert_eq!(unnamed.argmax, ordered.argmax, "the argmax needs no tokens");
}

fn ignored_and_unknown_tokens_are_faults_of_their_own<B: Backend>(backend: &B) {
    let columns = 2500;
    let inputs = Inputs::<f32>::random(&mut seeded(5), 3, columns, 2.0);
    let good = forward(backend, &inputs.with_tokens(3, vec![5, 2400, 7, 5, 2400, 7, 5, 2400, 7]), WITH_ORDER);
    let bad = inputs.with_tokens(3, vec![5, 2400, 7, -100, 2400, 1 << 40, -100, -100, -100]);
    let found = forward(backend, &Inputs { wide_tokens: true, ..bad }, WITH_ORDER);
    assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((1, FaultCode::Target)));
    assert_eq!(found.long_row_bits(0), good.long_row_bits(0));
    assert_eq!(found.logprobs[3].to_bits(), 0, "an ignored token");
    assert_eq!(found.logprobs[4], good.logprobs[4]);
    assert!(found.logprobs[5].is_nan(), "an unknown token");
    assert_eq!(found.rank[3..6], [-1, good.rank[4], -1]);
    for r in [1, 2] {
        assert_eq!(found.floats(r)[1..], good.floats(r)[1..], "the other outputs of row {r} are unaffected");
        assert_eq!(found.argmax[r], good.argmax[r]);
    }
    assert_eq!(canonical(&found.logprobs[6..]).collect::<Vec<_>>(), [0; 3], "of several tokens all may be ignored");
}

fn rows_without_an_order_have_none<B: Backend>(backend: &B) {
    let columns = 2100;
    for workspace in [false, true] {
        let mut inputs = Inputs::<f32>::random(&mut seeded(6), 6, columns, 2.0);
        inputs.workspace = workspace;
        inputs.logits[columns + 3] = f32::NAN;
        inputs.logits[2 * columns..3 * columns].fill(-INF);
        inputs.temperature = Some(vec![1.0, 1.0, 1.0, -1.0, 1.0, 1.0]);
        inputs.loss_mask = Some(vec![1, 1, 1, 1, 0, 1]);
        inputs.logits[5 * columns + 2099] = INF;
        let found = forward(backend, &inputs, WITH_ORDER);
        assert_eq!(found.rank[1..], [-1; 5]);
        assert_eq!(found.argmax[1..], [-1; 5]);
        assert!(found.rank[0] >= 0 && found.argmax[0] >= 0);
        assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((1, FaultCode::NonfiniteLogit)));
    }
}

/// Against the sum of the gradients of each token alone.
fn gradients_of_several_tokens_agree_with_f64<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize) {
        let (rows, ids) = (6, 4);
        let mut rng = seeded(7);
        let mut tokens: Vec<i64> = (0..rows * ids).map(|_| rng.random_range(0..columns as i64)).collect();
        tokens[2] = tokens[0]; // upstreams on one column add up
        tokens[ids + 1] = -100;
        let inputs = Inputs::<T>::random(&mut rng, rows, columns, 3.0).with_tokens(ids, tokens);
        let mut up = Upstream::random(&mut rng, rows);
        let mut of_ids: Vec<f32> = (0..rows * ids).map(|_| normal(&mut rng)).collect();
        of_ids[ids + 1] = f32::NAN; // that of an ignored token is absent
        of_ids[2 * ids..3 * ids].fill(0.0);
        up.logprobs = Some(of_ids.clone());
        let saved = forward(backend, &inputs, EVERYTHING).saved;
        for target in [Target::Apart, Target::InPlace] {
            let memory: Vec<T> = backward(backend, &inputs, &saved, &up, target);
            for (r, found) in gradient_rows(&inputs, &memory).iter().enumerate() {
                let row = inputs.row(r);
                let (b, c) = (f64::from(up.entropy.as_ref().unwrap()[r]), f64::from(up.lse.as_ref().unwrap()[r]));
                let (mut expected, mut scale) = exact_gradient(&row, inputs.temperature_of(r), None, [0.0, b, c]);
                for (&token, &a) in inputs.tokens_of(r).iter().zip(&of_ids[r * ids..]).filter(|at| *at.0 != -100) {
                    let (more, size) =
                        exact_gradient(&row, inputs.temperature_of(r), Some(token as usize), [f64::from(a), 0.0, 0.0]);
                    for j in 0..columns {
                        (expected[j], scale[j]) = (expected[j] + more[j], scale[j] + size[j]);
                    }
                }
                for j in 0..columns {
                    // As in the suite of gradients: 3·2⁻²⁴ of the exponent besides.
                    let goal = 4e-6 * scale[j] + half_ulp::<T>(expected[j]) + 1e-43;
                    let off = of_goal(found[j], expected[j], goal);
                    assert!(off <= 1.0, "row {r}, column {j}: {} for {}", found[j], expected[j]);
                }
            }
        }
    }
    run::<B, f32>(backend, 3001);
    run::<B, bf16>(backend, 2500);
    run::<B, f16>(backend, 31);
}

fn one_token_of_several_is_one_token<B: Backend>(backend: &B) {
    let (rows, columns) = (7, 4133);
    let mut rng = seeded(8);
    let inputs = Inputs::<bf16>::random(&mut rng, rows, columns, 3.0);
    let up = Upstream::random(&mut rng, rows);
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let one: Vec<bf16> = backward(backend, &inputs, &saved, &up, Target::Apart);
    // The others have no upstream.
    let tokens = inputs.tokens.as_ref().unwrap().iter().flat_map(|&t| [t, 11, 2048]).collect();
    let spread = up.logprobs.as_ref().unwrap().iter().flat_map(|&a| [a, 0.0, -0.0]).collect();
    let several = Upstream { logprobs: Some(spread), ..up.clone() };
    let all: Vec<bf16> = backward(backend, &inputs.with_tokens(3, tokens), &saved, &several, Target::Apart);
    // Columns 11 and 2048 are formed as a token's, so they may differ by the rounding of f32 before that of bf16.
    let differing = one.iter().zip(&all).enumerate().filter(|(_, (x, y))| x != y).map(|(i, _)| i % columns);
    assert!(differing.clone().all(|j| j == 11 || j == 2048), "{:?}", differing.collect::<Vec<_>>());
}
