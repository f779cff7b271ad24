//! Outputs against f64, at every chunk size, around its multiples; and that the number of rows does not show.

use moerl::element::Element;
use moerl::linear_logprob::Head;
use moerl::{Backend, Buffer};

use crate::common::seeded;
use crate::support::*;

on_every_multiplying_backend!(
    outputs_agree_with_f64_in_every_head,
    outputs_agree_with_f64_at_every_chunk_size_and_number_of_rows,
    bits_do_not_depend_on_the_number_of_rows,
    a_limit_of_bytes_is_the_same_as_the_rows_that_fit,
    no_rows_are_no_work,
);

/// Worst error over what it may be. A logit is a sum of H products in f32, in any order, of exact factors: off by no more than H·2⁻²⁴ of the sum of
/// their magnitudes; rounded to bf16 it may then lie one step (2⁻⁷) apart. Log-probabilities, entropy and log-sum-exp move by no more than twice
/// the largest change of a logit, the entropy times (1 + H's own scale), and have their own 1e-6 + 2 ulp, and 4e-6 + 2 ulp.
fn worst<B: Backend>(backend: &B, case: &Case) -> f64 {
    let found = forward(backend, case);
    assert_eq!(found.fault, None);
    let temperature = f64::from(case.config.logprob.temperature);
    let mut worst = 0.0_f64;
    for r in 0..case.shape.rows {
        let (logits, magnitude) = case.logits(r);
        let largest = logits.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let step = if case.config.head == Head::Bf16Logits { largest / 128.0 } else { 0.0 };
        let logit = (case.shape.hidden as f64 * magnitude / f64::from(1 << 24) + step) / temperature;
        let expected = exact(&logits, temperature, case.tokens[r] as usize);
        let spread = logits.iter().fold(0.0_f64, |m, x| m.max((x / temperature - expected.lse).abs()));
        for (found, expected, allowed) in [
            (found.logprobs[r], expected.logprob, 2.0 * logit + 3e-6),
            (found.lse[r], expected.lse, 2.0 * logit + 3e-6),
            (found.entropy[r], expected.entropy, 2.0 * (1.0 + spread) * logit + 6e-6),
        ] {
            let error = (f64::from(found) - expected).abs() / allowed;
            assert!(error <= 1.0, "{}: row {r}: {found} for {expected}, {error} of {allowed:e}", backend.name());
            worst = worst.max(error);
        }
        assert!(found.logprobs[r] <= 0.0 && found.entropy[r] >= 0.0);
    }
    worst
}

fn outputs_agree_with_f64_in_every_head<B: Backend>(backend: &B) {
    let mut rng = seeded(40);
    for head in HEADS {
        let mut config = config(head, 128);
        config.logprob.temperature = 0.7;
        let worst = worst(backend, &Case::random(&mut rng, config, shape(200, 40, 203)));
        println!("{} {head:?}: worst {worst:.3} of what is allowed", backend.name());
    }
}

fn outputs_agree_with_f64_at_every_chunk_size_and_number_of_rows<B: Backend>(backend: &B) {
    let mut rng = seeded(41);
    for chunk in [128, 512, 2048] {
        for rows in [1, chunk - 1, chunk, chunk + 1, 5000] {
            if is_slow(backend) && rows > 600 {
                continue;
            }
            let case = Case::random(&mut rng, config(Head::F32Logits, chunk), shape(rows, 16, 37));
            let worst = worst(backend, &case);
            println!("{} R={chunk} N={rows}: worst {worst:.3} of what is allowed", backend.name());
        }
    }
}

fn bits_do_not_depend_on_the_number_of_rows<B: Backend>(backend: &B) {
    let mut rng = seeded(42);
    for head in HEADS {
        let case = Case::random(&mut rng, config(head, 128), shape(300, 24, 50));
        let up = Upstream::random(&mut rng, &case);
        let all = forward(backend, &case);
        let (d_hidden, _) = backward(backend, &case, &all.saved, &up, Element::F32, WeightTarget::Sum);
        for rows in [1, 127, 128, 129, 256, 257] {
            let some = case.first(rows);
            let found = forward(backend, &some);
            for r in 0..rows {
                assert_eq!(found.row_bits(r), all.row_bits(r), "{head:?}: row {r} of {rows}");
            }
            let up = Upstream {
                logprobs: up.logprobs[..rows].to_vec(),
                entropy: up.entropy[..rows].to_vec(),
                lse: up.lse[..rows].to_vec(),
            };
            let (some, _) = backward(backend, &some, &found.saved, &up, Element::F32, WeightTarget::Sum);
            assert!(some.iter().map(|x| x.to_bits()).eq(d_hidden[..some.len()].iter().map(|x| x.to_bits())));
        }
    }
}

fn a_limit_of_bytes_is_the_same_as_the_rows_that_fit<B: Backend>(backend: &B) {
    use moerl::linear_logprob::Chunk;
    let mut rng = seeded(43);
    let case = Case::random(&mut rng, config(Head::F32Logits, 256), shape(300, 8, 30));
    // 32 logits of 4 bytes a row, with what makes a row a multiple of 16 bytes.
    let limited = case.with(moerl::linear_logprob::Config {
        chunk: Chunk::MaxLogitsBytes(256 * 32 * 4 + 127 * 32 * 4),
        ..case.config.clone()
    });
    assert_eq!(limited.config.chunk_rows(30), Ok(256));
    let (a, b) = (forward(backend, &case), forward(backend, &limited));
    assert!((0..300).all(|r| a.row_bits(r) == b.row_bits(r)));
}

fn no_rows_are_no_work<B: Backend>(backend: &B) {
    let case = Case::random(&mut seeded(44), config(Head::Bf16Logits, 128), shape(0, 16, 24));
    let up = Upstream { logprobs: Vec::new(), entropy: Vec::new(), lse: Vec::new() };
    let (d_hidden, written) = backward(backend, &case, &[], &up, Element::Bf16, WeightTarget::Rounded);
    assert!(d_hidden.is_empty() && written.iter().all(|&x| x == 0.0));
    let (_, added) = backward(backend, &case, &[], &up, Element::Bf16, WeightTarget::Added);
    assert!(added.iter().all(|&x| x == BEFORE));
    let stream = backend.stream().unwrap();
    assert!(backend.allocate::<f32>(&stream, 0).unwrap().view().is_empty());
}
