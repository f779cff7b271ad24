//! Rows that the host knows not to be needed, and rows that only the device knows to be absent.

use moerl::Backend;
use moerl::element::Element;
use moerl::linear_logprob::Head;

use crate::common::seeded;
use crate::support::*;

on_every_multiplying_backend!(
    rows_that_are_not_needed_are_as_masked_ones_whatever_they_hold,
    needed_rows_do_not_see_where_they_are_in_a_chunk,
    rows_without_gradient_have_none,
    gaps_between_rows_are_left_alone,
);

fn needed() -> Vec<std::ops::Range<usize>> {
    vec![3..70, 90..91, 120..260, 299..300]
}

fn rows_that_are_not_needed_are_as_masked_ones_whatever_they_hold<B: Backend>(backend: &B) {
    let mut rng = seeded(70);
    for head in HEADS {
        let mut case = Case::random(&mut rng, config(head, 128), shape(310, 16, 40));
        case.needed = Some(needed());
        let up = Upstream::random(&mut rng, &case);
        let mask = (0..310).map(|r| u8::from(!case.is_absent(r))).collect();
        let masked = Case { needed: None, loss_mask: Some(mask), ..case.clone() };
        let expected = forward(backend, &masked);
        for r in (0..310).filter(|r| !needed().iter().any(|range| range.contains(r))) {
            case.hidden[r * 16..][..16].fill(f32::NAN);
        }
        let found = forward(backend, &case);
        assert_eq!(found.fault, None);
        for r in 0..310 {
            if case.is_absent(r) {
                assert_eq!(found.row_bits(r), expected.row_bits(r), "{head:?}: row {r}");
            } else {
                assert!((found.logprobs[r] - expected.logprobs[r]).abs() < 0.1, "{head:?}: row {r}");
            }
        }
        let (d_hidden, d_weight) = backward(backend, &case, &found.saved, &up, Element::F32, WeightTarget::Sum);
        let (by_mask, d_weight_by_mask) =
            backward(backend, &masked, &expected.saved, &up, Element::F32, WeightTarget::Sum);
        for r in 0..310 {
            let row = r * 16..(r + 1) * 16;
            let is_zero = d_hidden[row.clone()].iter().all(|x| x.to_bits() == 0);
            assert_eq!(is_zero, case.is_absent(r), "row {r}");
            assert_eq!(by_mask[row].iter().all(|&x| x == 0.0), case.is_absent(r), "row {r}");
        }
        // The same rows in other places: only the order of sums differs.
        for (a, b) in d_weight.iter().zip(&d_weight_by_mask) {
            assert!((a - b).abs() <= 1e-3 * (1.0 + b.abs()), "{head:?}: {a} {b}");
        }
    }
}

/// A sum of a product is over k alone, in the same order in every row of a tile; this is what the library promises by one algorithm.
fn needed_rows_do_not_see_where_they_are_in_a_chunk<B: Backend>(backend: &B) {
    if takes_tf32(backend) {
        return; // which place of a tile a row has may matter there
    }
    let mut case = Case::random(&mut seeded(71), config(Head::F32Logits, 128), shape(310, 16, 40));
    let all = forward(backend, &case);
    case.needed = Some(needed());
    let some = forward(backend, &case);
    for r in (0..310).filter(|&r| !case.is_absent(r)) {
        assert_eq!(some.row_bits(r), all.row_bits(r), "row {r}");
    }
}

fn rows_without_gradient_have_none<B: Backend>(backend: &B) {
    let mut rng = seeded(72);
    let case = Case::random(&mut rng, config(Head::F32Logits, 128), shape(200, 16, 40));
    let mut up = Upstream::random(&mut rng, &case);
    for r in (0..200).filter(|r| r % 3 != 0) {
        (up.logprobs[r], up.entropy[r], up.lse[r]) = (0.0, -0.0, 0.0);
    }
    let saved = saved(backend, &case);
    let (d_hidden, d_weight) = backward(backend, &case, &saved, &up, Element::Bf16, WeightTarget::Rounded);
    for (r, row) in d_hidden.chunks_exact(16).enumerate() {
        assert_eq!(row.iter().all(|&x| x == 0.0), r % 3 != 0, "row {r}");
    }
    assert!(d_weight.iter().all(|x| x.is_finite()) && d_weight.iter().any(|&x| x != 0.0));
}

fn gaps_between_rows_are_left_alone<B: Backend>(backend: &B) {
    use moerl::Buffer;
    use moerl::element::bf16;
    use moerl::linear_logprob::{Gradients, Projection};
    use moerl::logprob::Backward;
    use moerl::memory::{Matrix, MatrixMut};

    let mut rng = seeded(73);
    let case = Case::random(&mut rng, config(Head::Bf16Logits, 128), shape(150, 16, 24));
    let up = Upstream::random(&mut rng, &case);
    let saved = saved(backend, &case);
    let (expected, _) = backward(backend, &case, &saved, &up, Element::Bf16, WeightTarget::Rounded);

    let stream = backend.stream().unwrap();
    let stride = 24;
    let strided: Vec<bf16> = (0..150 * stride)
        .map(|i| bf16::from_f32(if i % stride < 16 { case.hidden_row(i / stride)[i % stride] } else { f32::NAN }))
        .collect();
    let hidden = backend.upload(&stream, &strided).unwrap();
    let weight = Stored::<B>::new(backend, &stream, Element::Bf16, &case.weight).unwrap();
    let mut d_hidden = backend.upload(&stream, &vec![bf16::from_f32(BEFORE); 150 * stride]).unwrap();
    let footprint = case.config.backward_footprint(&case.shape, Some(Element::Bf16), None);
    let mut workspace = backend.allocate::<u8>(&stream, footprint.workspace()).unwrap();
    let (tokens, saved) = (backend.upload(&stream, &case.tokens).unwrap(), backend.upload(&stream, &saved).unwrap());
    let upstream = [&up.logprobs, &up.entropy, &up.lse].map(|up| backend.upload(&stream, up).unwrap());
    let projection = Projection::new(
        Matrix::strided(hidden.view(), 150, 16, stride).unwrap(),
        weight.matrix(24, 16).unwrap(),
        workspace.view_mut(),
    );
    let d_hidden_matrix = MatrixMut::strided(d_hidden.view_mut(), 150, 16, stride).unwrap();
    let mut call =
        Backward::new(Gradients { d_hidden: Some(d_hidden_matrix), ..Gradients::new(projection) }, saved.view());
    call.tokens = Some(Matrix::new(tokens.view(), 150, 1).unwrap());
    call.d_logprobs = Some(upstream[0].view());
    call.d_entropy = Some(upstream[1].view());
    call.d_lse = Some(upstream[2].view());
    backend.linear_logprob_backward(&stream, &case.config, call).expect("a valid call");
    for (i, found) in backend.download(&stream, d_hidden.view()).unwrap().iter().enumerate() {
        let expected = if i % stride < 16 { expected[i / stride * 16 + i % stride] } else { BEFORE };
        assert_eq!(found.to_f32(), expected, "element {i}");
    }
}
