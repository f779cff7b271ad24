//! Memory: the formula of the specification, and that a call takes no more.

use moerl::element::Element;
use moerl::linear_logprob::{Config, Head, Shape};

/// Rows, H, V' and R of the example.
const EXAMPLE: Shape = Shape { rows: 65_536, hidden: 4096, vocabulary: 151_936 };
const R: usize = 2048;

#[test]
fn the_footprint_is_the_formula() {
    let (v, h, n) = (EXAMPLE.vocabulary, EXAMPLE.hidden, EXAMPLE.rows);
    let w = 32 << 20;
    for (head, logits, d_logits, operand) in
        [(Head::Bf16Logits, 2, 0, 2), (Head::F32Logits, 4, 2, 2), (Head::F32Weights, 4, 0, 4)]
    {
        let config = Config { head, ..Config::default() };
        let forward = config.forward_footprint(&EXAMPLE);
        // Beside the formula: a chunk of hidden states, and 255 bytes that aligning may cost.
        assert_eq!(forward.total(), logits * R * v + 16 * n + w + operand * R * h + 255, "{head:?}");
        let backward = config.backward_footprint(&EXAMPLE, Some(head.operand()), Some(Element::Bf16));
        let chunk = (logits + d_logits) * R * v;
        assert_eq!(backward.total(), chunk + 4 * v * h + operand * n * h + w + operand * R * h + 255, "{head:?}");
        // The caller's main gradient takes the place of ours.
        let added = config.backward_footprint(&EXAMPLE, None, Some(Element::F32));
        assert_eq!(added.total(), chunk + w + operand * R * h + 255, "{head:?}");
    }
}

#[test]
fn the_example_takes_what_the_specification_says() {
    let gigabytes = |bytes: usize| (bytes as f64 / 1e7).round() / 100.0;
    let of = |head| {
        let config = Config { head, ..Config::default() };
        let backward = config.backward_footprint(&EXAMPLE, Some(Element::Bf16), Some(Element::Bf16));
        [config.forward_footprint(&EXAMPLE).logits, backward.logits + backward.d_logits, backward.d_weight]
            .map(gigabytes)
    };
    assert_eq!(of(Head::Bf16Logits), [0.62, 0.62, 2.49]);
    assert_eq!(of(Head::F32Logits), [1.24, 1.87, 2.49]);
}

/// The workspace is exactly what the footprint says: a byte less is refused, and what lies beside it stays as it is.
#[cfg(feature = "emulate")]
#[test]
fn a_call_stays_within_its_workspace() {
    use moerl::element::bf16;
    use moerl::error::Kind;
    use moerl::linear_logprob::{Gradients, Projection, WeightGradient};
    use moerl::logprob::{Backward, Partial};
    use moerl::memory::{Matrix, MatrixMut, ViewMut};
    use moerl::{Backend, Emulator};

    use crate::common::seeded;
    use crate::support::*;

    let mut rng = seeded(90);
    for head in [Head::Bf16Logits, Head::F32Logits] {
        let case = Case::random(&mut rng, config(head, 128), shape(150, 24, 43));
        let emulator = Emulator::new();
        let saved: Vec<Partial> = saved(&emulator, &case);
        let narrow = |values: &[f32]| values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<bf16>>();
        let stored = |values: &[f32]| emulator.upload(&(), &narrow(values)).unwrap();
        let (hidden, weight) = (stored(&case.hidden), stored(&case.weight));
        let (mut d_hidden, mut d_weight) = (hidden.clone(), weight.clone());
        let up = vec![1.0_f32; 150];
        let needed = case.config.backward_footprint(&case.shape, Some(Element::Bf16), Some(Element::Bf16)).workspace();
        for (len, skipped) in [(needed - 1, 0), (needed, 0), (needed, 1), (needed, 255)] {
            // Every residue of 256 that costs most and least.
            let mut memory = vec![0xa5_u8; needed + 1024];
            let start = memory.as_ptr() as usize;
            let first = start.next_multiple_of(256) - start + skipped;
            let projection = Projection::new(
                Matrix::new(hidden.as_slice(), 150, 24).unwrap(),
                Matrix::new(weight.as_slice(), 43, 24).unwrap(),
                ViewMut::from(&mut memory[..]).slice(first..first + len),
            );
            let gradients = Gradients {
                d_hidden: Some(MatrixMut::new(d_hidden.as_mut_slice(), 150, 24).unwrap()),
                d_weight: Some(WeightGradient::Written(MatrixMut::new(d_weight.as_mut_slice(), 43, 24).unwrap())),
                ..Gradients::new(projection)
            };
            let mut call = Backward::new(gradients, (&saved).into());
            call.d_entropy = Some((&up).into());
            let result = emulator.linear_logprob_backward(&(), &case.config, call);
            if len < needed {
                let error = result.expect_err("a byte is missing");
                assert!(error.is(Kind::Workspace) && error.to_string().contains(&needed.to_string()), "{error}");
            } else {
                result.expect("there is room");
                let mut outside = memory[..first].iter().chain(&memory[first + len..]);
                assert!(outside.all(|&byte| byte == 0xa5));
            }
        }
    }
}
