//! Gradients: agreement with f64, rows that are not read, faults.

use approx::assert_abs_diff_eq;
use moerl::Backend;
use moerl::element::{Float, bf16, f16};
use moerl::logprob::{Config, Partial};
use rand::RngExt;

use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    gradients_agree_with_f64,
    gradients_are_derivatives,
    gradients_of_wide_rows_agree_with_f64,
    the_gradient_of_a_likely_token_keeps_its_digits,
    a_row_of_gradients_sums_to_the_gradient_of_lse,
    masked_columns_and_tokens_have_the_gradient_of_the_formula,
    rows_without_upstream_are_zero_whatever_they_hold,
    faulty_rows_are_nan_and_their_neighbours_are_not,
    padding_gets_zeros_and_what_lies_between_rows_is_untouched,
    in_place_is_out_of_place,
    any_alignment_of_logits_and_gradient_gives_the_same_bits,
    saved_state_may_be_used_again,
);

/// The gradient's goal is 2e-6 of the sum of its terms' sizes: exponents are formed from rounded differences and a rounded scale, each
/// good to 2⁻²⁴ of the exponent. Where p is below e^-20 of the largest that is more than 2e-6 of p itself, so that share is granted
/// by what it is: 3·2⁻²⁴ of |z|. Granted too: half a unit in the last place of the type it is stored in, and the few smallest f32
/// numbers (1e-43) that a product of subnormal factors loses.
pub(crate) fn worst_gradient<T: Float, G: Float>(inputs: &Inputs<T>, up: &Upstream, found: &[Vec<f32>]) -> (f64, f64) {
    let (mut worst, mut strict) = (0.0_f64, 0.0_f64);
    for (r, found) in found.iter().enumerate() {
        let logits = inputs.row(r);
        let temperature = inputs.temperature_of(r);
        let token = inputs.tokens.as_ref().map(|t| t[r] as usize);
        let (expected, scale) = exact_gradient(&logits, temperature, token, up.of(r));
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for j in 0..logits.len() {
            let z = (max - logits[j]) / temperature;
            let depth = if z.is_finite() { z } else { 0.0 };
            let stored = half_ulp::<G>(expected[j]) + 1e-43;
            let goal = 2e-6 * scale[j] + stored;
            strict = strict.max(if z < 20.0 { of_goal(found[j], expected[j], goal) } else { 0.0 });
            worst = worst.max(of_goal(found[j], expected[j], goal + 3.0 * 2f64.powi(-24) * depth * scale[j]));
        }
    }
    (worst, strict)
}

fn check<B: Backend, T: Float, G: Float>(backend: &B, what: &str, inputs: &Inputs<T>, up: &Upstream) {
    let saved = forward(backend, inputs, EVERYTHING).saved;
    let memory: Vec<G> = backward(backend, inputs, &saved, up, Target::Apart);
    let (worst, strict) = worst_gradient::<T, G>(inputs, up, &gradient_rows(inputs, &memory));
    println!(
        "{what}, {} into {}: worst gradient over goal {worst:.3}, {strict:.3} where p > e^-20",
        T::ELEMENT,
        G::ELEMENT
    );
    assert!(worst <= 1.0, "{what}: a gradient is off by {worst} of its goal");
}

fn case<T: Float>(seed: u64, rows: usize, columns: usize) -> (Inputs<T>, Upstream) {
    let mut rng = seeded(seed);
    let mut inputs = Inputs::random(&mut rng, rows, columns, 3.0);
    inputs.temperature = Some((0..rows).map(|r| [0.1, 0.7, 1.0, 1.3, 8.0][r % 5]).collect());
    let mut up = Upstream::random(&mut rng, rows);
    // Each kind of upstream alone, then together.
    for r in 0..rows {
        for (kind, array) in [&mut up.logprobs, &mut up.entropy, &mut up.lse].into_iter().enumerate() {
            if r % 4 < 3 && r % 4 != kind {
                array.as_mut().unwrap()[r] = 0.0;
            }
        }
    }
    (inputs, up)
}

fn gradients_agree_with_f64<B: Backend>(backend: &B) {
    for columns in [1, 2, 7, 31, 2047, 2048, 2049, 5003] {
        let what = format!("{columns} columns");
        let (inputs, up) = case::<f32>(1, 20, columns);
        check::<B, f32, f32>(backend, &what, &inputs, &up);
        check::<B, f32, bf16>(backend, &what, &inputs, &up);
        let (inputs, up) = case::<bf16>(2, 20, columns);
        check::<B, bf16, bf16>(backend, &what, &inputs, &up);
        check::<B, bf16, f32>(backend, &what, &inputs, &up);
        let (inputs, up) = case::<f16>(3, 20, columns);
        check::<B, f16, f16>(backend, &what, &inputs, &up);
        check::<B, f16, f32>(backend, &what, &inputs, &up);
    }
}

fn gradients_of_wide_rows_agree_with_f64<B: Backend>(backend: &B) {
    for columns in [50_257, 151_936, 262_145] {
        let (inputs, up) = case::<bf16>(4, 4, columns);
        check::<B, bf16, bf16>(backend, &format!("{columns} columns"), &inputs, &up);
    }
    let (inputs, up) = case::<f32>(5, 4, 128_256);
    check::<B, f32, f32>(backend, "128256 columns", &inputs, &up);
}

fn gradients_are_derivatives<B: Backend>(backend: &B) {
    let columns = 12;
    let (mut inputs, _) = case::<f32>(6, 1, columns);
    inputs.temperature = Some(vec![0.7]);
    let up = Upstream { logprobs: Some(vec![0.8]), entropy: Some(vec![-1.7]), lse: Some(vec![0.4]), kept: None };
    let loss = |logits: &[f64]| {
        let row = exact(logits, inputs.temperature_of(0), inputs.token(0));
        let [a, b, c] = up.of(0);
        a * row.logprob + b * row.entropy + c * row.lse
    };
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let found: Vec<f32> = backward(backend, &inputs, &saved, &up, Target::Apart);
    for j in 0..columns {
        let step = 1e-5;
        let moved = |by: f64| {
            let mut logits = inputs.row(0);
            logits[j] += by;
            loss(&logits)
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        // Central differences are good to step² and to 2⁻⁵³/step, both near 1e-10; the gradient is f32.
        assert!((f64::from(found[j]) - slope).abs() < 1e-5, "column {j}: {} for {slope}", found[j]);
    }
}

fn the_gradient_of_a_likely_token_keeps_its_digits<B: Backend>(backend: &B) {
    let columns = 2050;
    for (gap, token) in [(21.5_f32, 3), (14.0, 3), (21.5, 2049)] {
        let mut logits = vec![0.0_f32; columns];
        logits[token] = gap;
        let inputs = Inputs { tokens: Some(vec![token as i64]), ..Inputs::new(1, columns, logits) };
        let up = Upstream { logprobs: Some(vec![1.0]), ..Upstream::default() };
        check::<B, f32, f32>(backend, "a likely token", &inputs, &up);
    }
}

fn a_row_of_gradients_sums_to_the_gradient_of_lse<B: Backend>(backend: &B) {
    let (inputs, up) = case::<f32>(7, 20, 3000);
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let memory: Vec<f32> = backward(backend, &inputs, &saved, &up, Target::Apart);
    for (r, row) in gradient_rows(&inputs, &memory).iter().enumerate() {
        let temperature = inputs.temperature_of(r);
        let sum: f64 = row.iter().map(|&g| f64::from(g)).sum();
        let (_, scale) = exact_gradient(&inputs.row(r), temperature, Some(inputs.token(r)), up.of(r));
        let goal = 2e-6 * scale.iter().sum::<f64>() + 1e-30;
        assert!((sum - up.of(r)[2] / temperature).abs() <= goal, "row {r}: {sum} for {}", up.of(r)[2] / temperature);
    }
}

fn masked_columns_and_tokens_have_the_gradient_of_the_formula<B: Backend>(backend: &B) {
    let columns = 4500;
    let (mut inputs, up) = case::<f32>(8, 8, columns);
    for (i, x) in inputs.logits.iter_mut().enumerate() {
        if i % columns < 2100 || i % 5 == 0 {
            *x = f32::NEG_INFINITY;
        }
    }
    inputs.tokens = Some((0..8).map(|r| [7, 2101][r / 4]).collect());
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let found: Vec<f32> = backward(backend, &inputs, &saved, &up, Target::Apart);
    for r in 0..8 {
        for j in 0..columns {
            let masked = inputs.logits[r * columns + j] == f32::NEG_INFINITY;
            if masked && j as i64 != inputs.tokens.as_ref().unwrap()[r] {
                assert_eq!(found[r * columns + j], 0.0, "row {r} column {j}");
            }
        }
    }
    let (a, temperature) = (up.logprobs.as_ref().unwrap()[0], inputs.temperature_of(0));
    assert_eq!(found[7], (f64::from(a) / temperature) as f32, "a token on -inf keeps a/T");
    check::<B, f32, f32>(backend, "masked columns", &inputs, &up);
}

fn rows_without_upstream_are_zero_whatever_they_hold<B: Backend>(backend: &B) {
    let columns = 2300;
    let (inputs, mut up) = case::<bf16>(9, 6, columns);
    let mut poisoned = inputs.clone();
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    for (r, poison) in [(1, f32::NAN), (2, f32::INFINITY), (4, f32::NAN)] {
        poisoned.logits[r * columns..(r + 1) * columns].fill(bf16::from_f32(poison));
    }
    for array in [&mut up.logprobs, &mut up.entropy, &mut up.lse] {
        let array = array.as_mut().unwrap();
        array[1] = 0.0;
        array[2] = -0.0;
        array[4] = f32::NAN; // its row is masked
    }
    poisoned.loss_mask = Some(vec![1, 1, 1, 1, 0, 1]);
    poisoned.tokens.as_mut().unwrap()[5] = -100;
    for target in [Target::Apart, Target::InPlace] {
        let memory: Vec<bf16> = backward(backend, &poisoned, &saved, &up, target);
        for (r, row) in gradient_rows(&inputs, &memory).iter().enumerate() {
            let zero = row.iter().all(|g| g.to_bits() == 0);
            assert_eq!(zero, [1, 2, 4, 5].contains(&r), "row {r}");
            assert!(row.iter().all(|g| g.is_finite()));
        }
    }
}

fn faulty_rows_are_nan_and_their_neighbours_are_not<B: Backend>(backend: &B) {
    let columns = 2100;
    let (mut inputs, up) = case::<f32>(10, 8, columns);
    let mut up = Upstream { logprobs: Some(vec![1.0; 8]), entropy: Some(vec![0.5; 8]), ..up };
    inputs.logits[columns] = f32::NAN;
    inputs.logits[2 * columns + 2099] = f32::INFINITY;
    inputs.logits[3 * columns..4 * columns].fill(f32::NEG_INFINITY);
    inputs.temperature.as_mut().unwrap()[4] = -1.0;
    inputs.tokens.as_mut().unwrap()[5] = 1 << 33;
    inputs.tokens.as_mut().unwrap()[6] = 1 << 33;
    inputs.wide_tokens = true;
    up.logprobs.as_mut().unwrap()[6] = 0.0;
    up.entropy.as_mut().unwrap()[7] = f32::NEG_INFINITY;
    inputs.config.vocabulary = Some(columns - 3);
    inputs.logits[2 * columns + 2000] = f32::INFINITY;
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let memory: Vec<f32> = backward(backend, &inputs, &saved, &up, Target::Apart);
    for (r, row) in gradient_rows(&inputs, &memory).iter().enumerate() {
        let nan = [1, 2, 3, 4, 5, 7].contains(&r);
        assert!(row[..columns - 3].iter().all(|g| g.is_nan() == nan), "row {r}");
        assert!(row[columns - 3..].iter().all(|g| g.to_bits() == 0), "row {r}: padding is +0.0 in any case");
    }
    // A token outside the vocabulary spoils the row only through its own gradient.
    let (expected, _) = exact_gradient(&inputs.row(6), inputs.temperature_of(6), None, up.of(6));
    assert_abs_diff_eq!(f64::from(memory[6 * columns + 9]), expected[9], epsilon = 1e-7);
}

fn padding_gets_zeros_and_what_lies_between_rows_is_untouched<B: Backend>(backend: &B) {
    for (vocabulary, columns, stride) in
        [(4090, 4100, 4117), (2048, 2049, 2049), (1, 5000, 5000), (50_257, 50_304, 50_304)]
    {
        let (mut inputs, up) = case::<bf16>(11, 3, columns);
        inputs.config.vocabulary = Some(vocabulary);
        inputs.tokens = Some(vec![0, vocabulary as i64 - 1, 0]);
        for r in 0..3 {
            inputs.logits[r * columns + vocabulary..(r + 1) * columns].fill(bf16::INFINITY);
        }
        let inputs = inputs.laid_out(5, stride);
        let saved = forward(backend, &inputs, EVERYTHING).saved;
        let memory: Vec<bf16> = backward(backend, &inputs, &saved, &up, Target::Apart);
        let rows = gradient_rows(&inputs, &memory);
        assert!(rows.iter().all(|row| row[vocabulary..].iter().all(|g| g.to_bits() == 0)));
        assert!(worst_gradient::<bf16, bf16>(&inputs, &up, &rows).0 <= 1.0);
        let between = |i: usize| i < 5 || (i - 5) % stride >= columns;
        assert!((0..memory.len()).filter(|&i| between(i)).all(|i| memory[i].to_f32() == BEFORE));
    }
}

fn in_place_is_out_of_place<B: Backend>(backend: &B) {
    for (columns, offset, stride) in [(50_257, 0, 50_257), (2048, 0, 2048), (4100, 3, 4101), (9, 1, 9)] {
        let (inputs, mut up) = case::<bf16>(12, 6, columns);
        for array in [&mut up.logprobs, &mut up.entropy, &mut up.lse] {
            array.as_mut().unwrap()[2] = 0.0;
        }
        let inputs = inputs.laid_out(offset, stride);
        let saved = forward(backend, &inputs, EVERYTHING).saved;
        let apart: Vec<bf16> = backward(backend, &inputs, &saved, &up, Target::Apart);
        let in_place: Vec<bf16> = backward(backend, &inputs, &saved, &up, Target::InPlace);
        assert!(row_bits(&inputs, &apart) == row_bits(&inputs, &in_place), "{columns} columns");
        let again: Vec<bf16> = backward(backend, &inputs, &saved, &up, Target::InPlace);
        assert!(row_bits(&inputs, &again) == row_bits(&inputs, &in_place), "restored logits give the same again");
    }
}

fn row_bits<T: Float, G: Float>(inputs: &Inputs<T>, memory: &[G]) -> Vec<Vec<u32>> {
    gradient_rows(inputs, memory).iter().map(|row| row.iter().map(|g| g.to_bits()).collect()).collect()
}

fn any_alignment_of_logits_and_gradient_gives_the_same_bits<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float, G: Float>(backend: &B) {
        let columns = 4133;
        let (inputs, up) = case::<T>(13, 4, columns);
        let saved = forward(backend, &inputs, EVERYTHING).saved;
        let plain: Vec<G> = backward(backend, &inputs, &saved, &up, Target::Apart);
        let plain = row_bits(&inputs, &plain);
        let mut rng = seeded(14);
        for _ in 0..12 {
            let (offset, more) = (rng.random_range(0..9), rng.random_range(0..9));
            let moved = inputs.laid_out(offset, columns + more);
            let target = Target::Elsewhere { offset: rng.random_range(0..9), stride: columns + rng.random_range(0..9) };
            let memory: Vec<G> = backward(backend, &moved, &saved, &up, target);
            let Target::Elsewhere { offset, stride } = target else { unreachable!() };
            let there = Inputs { offset, stride, ..inputs.clone() };
            assert!(
                row_bits(&there, &memory) == plain,
                "logits at {} by {}, gradient {target:?}",
                moved.offset,
                moved.stride
            );
        }
    }
    run::<B, bf16, bf16>(backend);
    run::<B, bf16, f32>(backend);
    run::<B, f32, f32>(backend);
    run::<B, f32, bf16>(backend);
}

fn saved_state_may_be_used_again<B: Backend>(backend: &B) {
    let (inputs, up) = case::<f16>(15, 5, 3000);
    let saved = forward(backend, &inputs, EVERYTHING).saved;
    let once: Vec<f16> = backward(backend, &inputs, &saved, &up, Target::Apart);
    let twice: Vec<f16> = backward(backend, &inputs, &saved, &up, Target::Apart);
    assert!(row_bits(&inputs, &once) == row_bits(&inputs, &twice));
    // A record without entropies or tokens serves the other gradients just as well.
    let bare = Inputs { tokens: None, ..inputs.clone() };
    let asked = Asked { saved: true, ..NOTHING };
    let lean: Vec<Partial> = forward(backend, &bare, asked).saved;
    let others = Upstream { logprobs: None, ..up };
    let full: Vec<f16> = backward(backend, &bare, &saved, &others, Target::Apart);
    let spare: Vec<f16> = backward(backend, &bare, &lean, &others, Target::Apart);
    assert!(row_bits(&inputs, &full) == row_bits(&inputs, &spare));
    assert_eq!(inputs.config, Config::default());
}
