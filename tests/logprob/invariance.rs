//! A row's bits are a function of that row alone.

use moerl::Backend;
use moerl::element::{Float, bf16, f16};
use moerl::logprob::Config;
use rand::RngExt;

use crate::common::{is_sanitized, seeded};
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    a_row_alone_is_the_row_in_any_batch,
    any_stride_and_alignment_gives_the_same_bits,
    asking_for_less_changes_nothing,
    sixteen_bit_logits_are_the_same_values_in_f32,
    arguments_that_say_the_same_give_the_same_bits,
    equal_logits_give_a_ratio_of_exactly_one,
    sharing_a_row_changes_nothing,
    a_hundred_runs_give_the_same_bits,
);

fn mixed<T: Float>(seed: u64, rows: usize, columns: usize) -> Inputs<T> {
    let mut rng = seeded(seed);
    let mut inputs = Inputs::random(&mut rng, rows, columns, 4.0);
    inputs.temperature = Some((0..rows).map(|_| rng.random_range(0.3..2.0)).collect());
    for (i, x) in inputs.logits.iter_mut().enumerate() {
        if i % 97 == 3 {
            *x = T::from_f32(f32::NEG_INFINITY);
        }
    }
    inputs
}

fn a_row_alone_is_the_row_in_any_batch<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, rows: usize, columns: usize) {
        let inputs = mixed::<T>(1, rows, columns);
        let whole = forward(backend, &inputs, EVERYTHING);
        for r in [0, 1, rows / 2, rows - 1] {
            assert_eq!(
                forward(backend, &inputs.rows_of(&[r]), EVERYTHING).row_bits(0),
                whole.row_bits(r),
                "row {r} alone"
            );
        }
        let reversed: Vec<usize> = (0..rows).rev().collect();
        let turned = forward(backend, &inputs.rows_of(&reversed), EVERYTHING);
        assert!((0..rows).all(|r| turned.row_bits(r) == whole.row_bits(rows - 1 - r)), "rows in reverse");
        let third = rows / 3;
        for part in [0..third, third..2 * third, 2 * third..rows] {
            let chosen: Vec<usize> = part.clone().collect();
            assert_eq!(forward(backend, &inputs.rows_of(&chosen), EVERYTHING).bits(), whole.bits()[part]);
        }
    }
    run::<B, bf16>(backend, 150, 4100);
    run::<B, f32>(backend, 40, 2051);
    run::<B, f16>(backend, 7, 33_000);
    run::<B, bf16>(backend, 4, 262_145);
}

fn any_stride_and_alignment_gives_the_same_bits<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize) {
        let inputs = mixed::<T>(2, 5, columns);
        let plain = forward(backend, &inputs, EVERYTHING);
        for offset in 0..16 / size_of::<T>() {
            // By columns + 1 every row begins at another offset.
            let strides = [columns + 1, columns, columns + 3, 2 * columns];
            for &stride in if is_sanitized() { &strides[..1] } else { &strides[..] } {
                let moved = forward(backend, &inputs.laid_out(offset, stride), EVERYTHING);
                assert_eq!(moved.bits(), plain.bits(), "{} columns at {offset} by {stride}", columns);
            }
        }
    }
    for columns in [1, 2, 5, 8, 63, 255, 259, 2047, 2048, 2049, 4096, 5000] {
        run::<B, bf16>(backend, columns);
        run::<B, f32>(backend, columns);
    }
    run::<B, f16>(backend, 2055);
}

fn asking_for_less_changes_nothing<B: Backend>(backend: &B) {
    let mut inputs = mixed::<bf16>(3, 9, 4500);
    inputs.loss_mask = Some(vec![1, 1, 0, 1, 1, 1, 1, 1, 1]);
    let everything = forward(backend, &inputs, EVERYTHING);
    for choice in 0..32 {
        let bit = |n: u32| choice >> n & 1 == 1;
        let asked =
            Asked { logprobs: bit(0), entropy: bit(1), rest: bit(2), squares: bit(3), saved: bit(4), ..NOTHING };
        let some = forward(backend, &inputs, asked);
        for r in 0..inputs.rows {
            let (all, some) = (everything.row_bits(r), some.row_bits(r));
            for (at, is_asked) in [
                asked.logprobs,
                asked.entropy,
                asked.rest,
                asked.rest,
                asked.rest,
                asked.squares,
                asked.squares,
                asked.saved,
                asked.saved,
                asked.saved,
                asked.saved,
            ]
            .into_iter()
            .enumerate()
            {
                if is_asked {
                    assert_eq!(some[at], all[at], "row {r}, output {at}, {asked:?}");
                } else if at < 7 {
                    assert_eq!(some[at], UNTOUCHED.to_bits(), "row {r}, output {at} was not asked for");
                }
            }
        }
    }
}

fn sixteen_bit_logits_are_the_same_values_in_f32<B: Backend>(backend: &B) {
    for columns in [1, 9, 2047, 2048, 6001] {
        let inputs = mixed::<bf16>(4, 6, columns);
        assert_eq!(
            forward(backend, &inputs, EVERYTHING).bits(),
            forward(backend, &inputs.widened(), EVERYTHING).bits()
        );
        let inputs = mixed::<f16>(5, 6, columns);
        assert_eq!(
            forward(backend, &inputs, EVERYTHING).bits(),
            forward(backend, &inputs.widened(), EVERYTHING).bits()
        );
        let (odd, wide) = (inputs.laid_out(3, columns + 5), inputs.widened().laid_out(1, columns + 2));
        assert_eq!(forward(backend, &odd, EVERYTHING).bits(), forward(backend, &wide, EVERYTHING).bits());
    }
}

fn arguments_that_say_the_same_give_the_same_bits<B: Backend>(backend: &B) {
    let inputs = Inputs { temperature: None, config: Config::at_temperature(0.83), ..mixed::<bf16>(6, 40, 3000) };
    let plain = forward(backend, &inputs, EVERYTHING).bits();
    let array = Inputs { temperature: Some(vec![0.83; 40]), config: Config::default(), ..inputs.clone() };
    assert_eq!(forward(backend, &array, EVERYTHING).bits(), plain, "a temperature per row");
    let wide = Inputs { wide_tokens: true, ..inputs.clone() };
    assert_eq!(forward(backend, &wide, EVERYTHING).bits(), plain, "i64 tokens");
    let masked = Inputs { loss_mask: Some(vec![1; 40]), ..inputs.clone() };
    assert_eq!(forward(backend, &masked, EVERYTHING).bits(), plain, "a mask of ones");
    let counted = Inputs { config: Config { vocabulary: Some(3000), ..inputs.config.clone() }, ..inputs };
    assert_eq!(forward(backend, &counted, EVERYTHING).bits(), plain, "the vocabulary named");
}

fn equal_logits_give_a_ratio_of_exactly_one<B: Backend>(backend: &B) {
    let trainer = mixed::<bf16>(7, 64, 5000);
    let rollout = trainer.rows_of(&(10..20).collect::<Vec<_>>()).laid_out(3, 5011);
    let (new, old) = (forward(backend, &trainer, EVERYTHING), forward(backend, &rollout, EVERYTHING));
    // A token on a masked column has no ratio.
    let finite: Vec<usize> = (0..10).filter(|&r| old.logprobs[r].is_finite()).collect();
    assert!(finite.len() > 5);
    for r in finite {
        assert_eq!((new.logprobs[10 + r] - old.logprobs[r]).exp(), 1.0);
    }
}

fn a_hundred_runs_give_the_same_bits<B: Backend>(backend: &B) {
    for (rows, columns, workspace) in [(9, 300, false), (2, 4100, true)] {
        let inputs = Inputs { workspace, ..mixed::<bf16>(9, rows, columns) };
        let up = Upstream::random(&mut seeded(10), rows);
        let run = || {
            let found = forward(backend, &inputs, WITH_ORDER);
            let gradient: Vec<bf16> = backward(backend, &inputs, &found.saved, &up, Target::InPlace);
            let bits = gradient.iter().map(|g| g.to_bits()).collect::<Vec<_>>();
            ((0..rows).map(|r| found.long_row_bits(r)).collect::<Vec<_>>(), found.fault, bits)
        };
        let first = run();
        assert!((1..100).all(|_| run() == first));
    }
}

fn sharing_a_row_changes_nothing<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, rows: usize, columns: usize) {
        let mut inputs = mixed::<T>(8, rows, columns);
        inputs.tokens.as_mut().unwrap()[rows - 1] = columns as i64 + 5;
        if rows > 2 {
            inputs.tokens.as_mut().unwrap()[1] = -100;
        }
        let apart = forward(backend, &inputs, EVERYTHING);
        let shared = Inputs { workspace: true, ..inputs };
        let shared = forward(backend, &shared, EVERYTHING);
        assert_eq!((shared.bits(), shared.fault), (apart.bits(), apart.fault), "{rows} rows of {columns}");
    }
    run::<B, bf16>(backend, 1, 50_257);
    run::<B, bf16>(backend, 5, 2048);
    run::<B, f32>(backend, 3, 7001);
    run::<B, f16>(backend, 7, 10);
    run::<B, bf16>(backend, 2, 262_145);
    run::<B, bf16>(backend, 1, 524_289);
}
