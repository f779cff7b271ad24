//! Gradients of hidden states and weight against f64, and that the weight's is summed in f32.

use moerl::Backend;
use moerl::element::{Element, bf16};
use moerl::linear_logprob::Head;

use crate::common::seeded;
use crate::support::*;

on_every_multiplying_backend!(
    gradients_agree_with_f64_in_every_head_and_type,
    gradients_agree_with_f64_at_every_chunk_size,
    the_weight_is_summed_in_f32_over_many_chunks,
);

/// The gradient of the logits, row after row, rounded as the products take it; without that for an f32 head.
fn d_logits(case: &Case, up: &Upstream) -> Vec<Vec<f64>> {
    let round = |g: f64| match case.config.head.d_logits() {
        Element::Bf16 => f64::from(bf16::from_f32(g as f32).to_f32()),
        _ => g,
    };
    (0..case.shape.rows).map(|r| exact_gradient(case, r, up).into_iter().map(round).collect()).collect()
}

/// A sum, and the sum of its terms' magnitudes.
fn dot(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

/// Both gradients in f64, with the magnitudes that their errors are measured by.
struct Expected {
    d_hidden: Vec<(f64, f64)>,
    d_weight: Vec<(f64, f64)>,
}

fn expected(case: &Case, d_logits: &[Vec<f64>]) -> Expected {
    let (rows, width, vocabulary) = (case.shape.rows, case.shape.hidden, case.shape.vocabulary);
    let of_row = |r: usize, h: usize| dot((0..vocabulary).map(|j| d_logits[r][j] * f64::from(case.weight_row(j)[h])));
    let of_token = |j: usize, h: usize| dot((0..rows).map(|r| d_logits[r][j] * f64::from(case.hidden_row(r)[h])));
    Expected {
        d_hidden: (0..rows * width).map(|i| of_row(i / width, i % width)).collect(),
        d_weight: (0..vocabulary * width).map(|i| of_token(i / width, i % width)).collect(),
    }
}

/// Worst error, as a share of the sum of the terms' magnitudes, plus a floor for sums that are all zeros.
fn worst(found: &[f32], expected: &[(f64, f64)]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, (e, size))| (f64::from(*f) - e).abs() / (size + 1e-9)).fold(0.0, f64::max)
}

/// A gradient of a logit is off by 4e-6 of itself or so and, where it is a factor in bf16, may be rounded to the other side: one step, 2⁻⁷ of
/// that term. A logit in bf16 may itself be one step apart, which changes p by 2⁻⁷ of the largest logit, 8 here. TF32 leaves a factor
/// 2⁻¹⁰ off where it is cut, and the weight is exact in it.
fn tolerance<B: Backend>(backend: &B, head: Head) -> f64 {
    match head {
        Head::Bf16Logits => 8.0 / 128.0,
        Head::F32Logits => 1.0 / 128.0,
        Head::F32Weights if takes_tf32(backend) => 1.0 / 512.0,
        Head::F32Weights => 1e-5,
    }
}

fn agree<B: Backend>(backend: &B, case: &Case, up: &Upstream, d_hidden: Element, target: WeightTarget) {
    let head = case.config.head;
    let exact = expected(case, &d_logits(case, up));
    let (hidden, weight) = backward(backend, case, &saved(backend, case), up, d_hidden, target);
    let weight: Vec<f32> = weight.iter().map(|x| if target == WeightTarget::Added { x - BEFORE } else { *x }).collect();
    // Rounded once to a 16-bit type in the end; beside BEFORE there are 2⁻¹⁷ left.
    let half = |element: Element| if element == Element::Bf16 { 1.0 / 512.0 } else { 0.0 };
    let beside = if target == WeightTarget::Added { f64::from(1 << 5) / f64::from(1 << 17) } else { 0.0 };
    let rounded = target == WeightTarget::Rounded && head.operand() == Element::Bf16;
    let tolerance = tolerance(backend, head);
    let (h, w) = (worst(&hidden, &exact.d_hidden), worst(&weight, &exact.d_weight));
    println!("{} {head:?} {target:?}: d_hidden off by {h:.2e}, d_weight by {w:.2e} of {tolerance:.2e}", backend.name());
    assert!(h <= tolerance + half(d_hidden), "d_hidden: {h:e} of {tolerance:e}");
    let allowed = tolerance + beside + if rounded { 1.0 / 512.0 } else { 0.0 };
    assert!(w <= allowed, "d_weight: {w:e} of {allowed:e}");
}

fn gradients_agree_with_f64_in_every_head_and_type<B: Backend>(backend: &B) {
    let mut rng = seeded(50);
    for head in HEADS {
        let mut config = config(head, 128);
        config.logprob.temperature = 1.3;
        let case = Case::random(&mut rng, config, shape(200, 16, 45));
        let up = Upstream::random(&mut rng, &case);
        agree(backend, &case, &up, head.operand(), WeightTarget::Rounded);
        agree(backend, &case, &up, Element::F32, WeightTarget::Sum);
        agree(backend, &case, &up, Element::F32, WeightTarget::Added);
    }
}

fn gradients_agree_with_f64_at_every_chunk_size<B: Backend>(backend: &B) {
    let mut rng = seeded(51);
    for chunk in [128, 512, 2048] {
        for rows in [1, chunk, chunk + 1] {
            if is_slow(backend) && rows > 600 {
                continue;
            }
            let case = Case::random(&mut rng, config(Head::F32Logits, chunk), shape(rows, 8, 20));
            let up = Upstream::random(&mut rng, &case);
            agree(backend, &case, &up, Element::F32, WeightTarget::Sum);
        }
    }
}

/// All rows alike: every chunk adds the same, and what an accumulator of 8 bits loses of it adds up.
fn the_weight_is_summed_in_f32_over_many_chunks<B: Backend>(backend: &B) {
    if is_slow(backend) {
        return;
    }
    let (chunk, chunks) = (128, 32);
    let mut rng = seeded(52);
    let mut case = Case::random(&mut rng, config(Head::F32Logits, chunk), shape(chunk * chunks, 8, 24));
    let (row, token) = (case.hidden_row(0).to_vec(), case.tokens[0]);
    case.hidden.chunks_exact_mut(8).for_each(|to| to.copy_from_slice(&row));
    case.tokens.fill(token);
    let rows = case.shape.rows;
    let up = Upstream { logprobs: vec![1.0; rows], entropy: vec![0.0; rows], lse: vec![0.0; rows] };

    let (_, found) = backward(backend, &case, &saved(backend, &case), &up, Element::F32, WeightTarget::Sum);
    let exact = expected(&case, &d_logits(&case, &up)).d_weight;
    // The terms have one sign: an f32 sum of 4096 of them in any order is off by no more than 4096·2⁻²⁴, half of that by chance at the worst.
    let tolerance = 1.3e-4;
    let f32_error = worst(&found, &exact);

    let mut sum = vec![bf16::from_f32(0.0); found.len()];
    for _ in 0..chunks {
        for (sum, (all, _)) in sum.iter_mut().zip(&exact) {
            *sum = bf16::from_f32(sum.to_f32() + (all / chunks as f64) as f32);
        }
    }
    let sum: Vec<f32> = sum.iter().map(|x| x.to_f32()).collect();
    let bf16_error = worst(&sum, &exact);
    println!("{}: f32 off by {f32_error:.2e}, bf16 by {bf16_error:.2e}", backend.name());
    assert!(f32_error <= tolerance, "{f32_error:e}");
    assert!(bf16_error > 10.0 * tolerance, "a bf16 sum is off by {bf16_error:e} only: this test shows nothing");
}
