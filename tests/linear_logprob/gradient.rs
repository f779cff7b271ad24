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

/// What a sum in f32 may lose at each term, of the sum of their magnitudes: tensor cores cut where others round.
const CUT: f64 = 1.0 / (1 << 23) as f64;

/// A number, and how far from it a backend may be.
#[derive(Clone, Copy, Default)]
struct Near {
    value: f64,
    off: f64,
}

/// What `round` makes of a number that is known to `off`. As rounding keeps the order, it lies between what it makes of the ends.
fn rounded_near(number: Near, round: impl Fn(f64) -> f64) -> Near {
    let value = round(number.value);
    let ends = [number.value - number.off, number.value + number.off];
    Near { value, off: ends.into_iter().map(|end| (round(end) - value).abs()).fold(0.0, f64::max) }
}

/// The gradient of the logits, row after row, as the products take it.
///
/// A logit is a sum of H products in f32, off by (H + 1)·[`CUT`] of the sum of their magnitudes, and is then rounded. If logits are off by D, the
/// z = x/T are by D/T: a probability by the factor exp(2D/T), the mean of z by D/T·(1 + 2·spread); so a gradient by no more than
/// 2.2·(1 + spread)·D/T of the scale of its terms. To this comes the gradient's own goal, with its exponents' share (2e-6 and 3·2⁻²⁴ of
/// the exponent), and its rounding to f32. Only what then lies at the border between two numbers of the factors' type may become either.
fn d_logits(case: &Case, up: &Upstream) -> Vec<Vec<Near>> {
    let ulp = 2f64.powi(-24);
    let factor = |g: f64| match case.config.head.d_logits() {
        Element::Bf16 => f64::from(rounded(g as f32)),
        _ => g,
    };
    let row = |r: usize| -> Vec<Near> {
        if case.is_absent(r) {
            return vec![Near::default(); case.shape.vocabulary];
        }
        let temperature = case.temperature_of(r);
        let (products, magnitude) = case.products(r);
        let summed = (case.shape.hidden + 1) as f64 * CUT * magnitude;
        let logits: Vec<Near> =
            products.into_iter().map(|value| rounded_near(Near { value, off: summed }, |x| case.stored(x))).collect();
        let moved = logits.iter().fold(0.0_f64, |most, x| most.max(x.off)) / temperature;
        let z: Vec<f64> = logits.iter().map(|x| x.value / temperature).collect();
        let (least, most) = z.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), z| (a.min(*z), b.max(*z)));
        let shared = 2e-6 + 2.2 * (1.0 + most - least) * moved;
        let (gradient, scale) = exact_gradient(case, r, up);
        (0..case.shape.vocabulary)
            .map(|j| {
                let off = (shared + 3.0 * ulp * (most - z[j])) * scale[j] + ulp * gradient[j].abs();
                rounded_near(Near { value: gradient[j], off }, factor)
            })
            .collect()
    };
    (0..case.shape.rows).map(row).collect()
}

/// A sum of products with numbers that are known exactly.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    /// Of the magnitudes of its terms.
    size: f64,
    /// How far off it may be: by what is known of the gradients, and by (n + 1)·[`CUT`] of `size`.
    off: f64,
}

fn dot(terms: impl Iterator<Item = (Near, f32)>) -> Sum {
    let (sum, count) = terms.fold((Sum::default(), 0), |(sum, count), (near, other)| {
        let other = f64::from(other);
        let term = near.value * other;
        let off = sum.off + near.off * other.abs();
        (Sum { value: sum.value + term, size: sum.size + term.abs(), off }, count + 1)
    });
    Sum { off: sum.off + f64::from(count + 1) * CUT * sum.size, ..sum }
}

/// Both gradients in f64.
struct Expected {
    d_hidden: Vec<Sum>,
    d_weight: Vec<Sum>,
}

fn expected(case: &Case, d_logits: &[Vec<Near>]) -> Expected {
    let (rows, width, vocabulary) = (case.shape.rows, case.shape.hidden, case.shape.vocabulary);
    let of_row = |r: usize, h: usize| dot((0..vocabulary).map(|j| (d_logits[r][j], case.weight_row(j)[h])));
    let of_token = |j: usize, h: usize| dot((0..rows).map(|r| (d_logits[r][j], case.hidden_row(r)[h])));
    Expected {
        d_hidden: (0..rows * width).map(|i| of_row(i / width, i % width)).collect(),
        d_weight: (0..vocabulary * width).map(|i| of_token(i / width, i % width)).collect(),
    }
}

/// Worst error, as a share of the sum of the terms' magnitudes, plus a floor for sums that are all zeros.
fn worst(found: &[f32], expected: &[Sum]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let share = |(f, e): (&f32, &Sum)| (f64::from(*f) - e.value).abs() / (e.size + 1e-9);
    found.iter().zip(expected).map(share).fold(0.0, f64::max)
}

/// How far off the gradients' sums may be.
struct Allowed {
    head: Head,
    /// The factors are cut to TF32.
    is_cut: bool,
    /// Of the sum in the end.
    element: Element,
    /// Of the sum of magnitudes: what is lost beside the number that is added to.
    beside: f64,
}

impl Allowed {
    /// The bound of each step: what the factors are off by; 2⁻¹⁰ of the terms where they are cut to TF32, and as much again; and half a unit of a
    /// 16-bit sum, 2⁻⁸ of it. Where terms nearly cancel inside a gradient, that is wider than what is ever met: no more in any case than one
    /// step of every term, 2⁻⁷ for factors in bf16; 8 of them for logits in bf16, which change p by 2⁻⁷ of the largest, 8 here; and 2⁻⁹.
    fn of(&self, sum: &Sum) -> f64 {
        let is_rounded = self.element == Element::Bf16;
        let cut = if self.is_cut { sum.size / 512.0 } else { 0.0 };
        let off = sum.off + cut + self.beside * sum.size;
        let bound = off + if is_rounded { (sum.value.abs() + off) / 256.0 } else { 0.0 };
        let steps = match self.head {
            Head::Bf16Logits => 8.0 / 128.0,
            Head::F32Logits => 1.0 / 128.0,
            Head::F32Weights if self.is_cut => 1.0 / 512.0,
            Head::F32Weights => 1e-5,
        };
        let most = steps + self.beside + if is_rounded { 1.0 / 512.0 } else { 0.0 };
        (bound + 1e-30).min(most * (sum.size + 1e-9))
    }
}

/// Worst error over what it may be.
fn over_allowed(found: &[f32], expected: &[Sum], allowed: &Allowed) -> f64 {
    assert_eq!(found.len(), expected.len());
    let share = |(f, e): (&f32, &Sum)| (f64::from(*f) - e.value).abs() / allowed.of(e);
    found.iter().zip(expected).map(share).fold(0.0, f64::max)
}

fn agree<B: Backend>(backend: &B, case: &Case, up: &Upstream, d_hidden: Element, target: WeightTarget) {
    let head = case.config.head;
    let exact = expected(case, &d_logits(case, up));
    let (hidden, weight) = backward(backend, case, &saved(backend, case), up, d_hidden, target);
    let weight: Vec<f32> = weight.iter().map(|x| if target == WeightTarget::Added { x - BEFORE } else { *x }).collect();
    let beside = if target == WeightTarget::Added { f64::from(1 << 5) / f64::from(1 << 17) } else { 0.0 };
    let d_weight = if target == WeightTarget::Rounded { head.operand() } else { Element::F32 };
    for (name, found, exact, element, beside) in [
        ("d_hidden", &hidden, &exact.d_hidden, d_hidden, 0.0),
        ("d_weight", &weight, &exact.d_weight, d_weight, beside),
    ] {
        let is_cut = head == Head::F32Weights && takes_tf32(backend);
        let allowed = Allowed { head, is_cut, element, beside };
        let off = over_allowed(found, exact, &allowed);
        let mut shares: Vec<f64> = exact.iter().map(|sum| allowed.of(sum) / (sum.size + 1e-9)).collect();
        shares.sort_by(f64::total_cmp);
        println!(
            "{} {head:?} {target:?}: {name} off by {off:.3} of what is allowed: of the terms {:.1e}, {:.1e} at most",
            backend.name(),
            shares[shares.len() / 2],
            shares[shares.len() - 1]
        );
        assert!(off <= 1.0, "{name}: off by {off} of what is allowed");
    }
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
        for (sum, all) in sum.iter_mut().zip(&exact) {
            *sum = bf16::from_f32(sum.to_f32() + (all.value / chunks as f64) as f32);
        }
    }
    let sum: Vec<f32> = sum.iter().map(|x| x.to_f32()).collect();
    let bf16_error = worst(&sum, &exact);
    println!("{}: f32 off by {f32_error:.2e}, bf16 by {bf16_error:.2e}", backend.name());
    assert!(f32_error <= tolerance, "{f32_error:e}");
    assert!(bf16_error > 10.0 * tolerance, "a bf16 sum is off by {bf16_error:e} only: this test shows nothing");
}
