//! Calls that are refused before anything is queued, with every fault named.

use std::ops::Range;

use moerl::element::{Element, Scalar, bf16, f16};
use moerl::error::Kind;
use moerl::linear_logprob::{Chunk, Config, Gradients, Head, Projection, Shape, WeightGradient};
use moerl::logprob::{self, Backward, Forward, Partial};
use moerl::memory::{Host, Matrix, MatrixMut};
use moerl::{Backend, Error, Reference};

use crate::support::{config, shape};

/// Memory at a multiple of 16 bytes.
fn aligned<T: Scalar>(len: usize) -> Vec<T> {
    let vec = vec![T::zeroed(); len];
    assert!(vec.is_empty() || (vec.as_ptr() as usize).is_multiple_of(16), "the allocator aligns to 16 bytes");
    vec
}

fn forward_error<T: Scalar>(
    config: &Config,
    hidden: [usize; 2],
    weight: [usize; 2],
    rows: Option<&[Range<usize>]>,
    change: impl for<'a> FnOnce(&mut Forward<'a, Host, Projection<'a, Host>>),
) -> Error {
    let (states, weights) = (aligned::<T>(hidden[0] * hidden[1]), aligned::<T>(weight[0] * weight[1]));
    let footprint = config.forward_footprint(&shape(hidden[0], hidden[1].max(weight[1]), weight[0]));
    let size = footprint.workspace().min(1 << 24); // more is not there
    let mut workspace = vec![0_u8; size];
    let tokens = vec![0_i32; 5];
    let mut logprobs = vec![0.0_f32; 5];
    let projection = Projection {
        rows,
        ..Projection::new(
            Matrix::new(&states, hidden[0], hidden[1]).unwrap(),
            Matrix::new(&weights, weight[0], weight[1]).unwrap(),
            (&mut workspace).into(),
        )
    };
    let mut call = Forward::new(projection);
    call.tokens = Some(Matrix::new(&tokens, 5, 1).unwrap());
    call.logprobs = Some((&mut logprobs).into());
    change(&mut call);
    Reference.linear_logprob_forward(&(), config, call).expect_err("the call is refused")
}

#[test]
fn hidden_and_weight_that_do_not_fit_are_refused() {
    let config = config(Head::F32Logits, 128);
    // A weight that is [H, V].
    let error = forward_error::<bf16>(&config, [5, 16], [16, 24], None, |_| ());
    assert!(error.is(Kind::Shape), "{error}");
    for part in ["weight: has shape [16, 24]", "needs [V, 16]", "hidden is [5, 16]"] {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
    // The two in each other's place: the tokens are of 5 rows.
    let error = forward_error::<bf16>(&config, [24, 16], [5, 16], None, |_| ());
    assert!(error.is(Kind::Shape) && error.to_string().contains("tokens: has shape [5], needs [24]"), "{error}");
    let error = forward_error::<bf16>(&config, [5, 0], [24, 0], None, |_| ());
    assert!(error.to_string().contains("hidden: has no columns"), "{error}");
    let few = Config { logprob: logprob::Config { vocabulary: Some(25), ..logprob::Config::default() }, ..config };
    let error = forward_error::<bf16>(&few, [5, 16], [24, 16], None, |_| ());
    assert!(error.to_string().contains("vocabulary: is 25, needs 1 to the logits' 24"), "{error}");
}

#[test]
fn types_that_are_not_the_heads_are_refused() {
    for (head, name) in [(Head::F32Logits, "bf16"), (Head::Bf16Logits, "bf16"), (Head::F32Weights, "f32")] {
        let error = forward_error::<f16>(&config(head, 128), [5, 16], [24, 16], None, |_| ());
        assert!(error.is(Kind::Dtype), "{error}");
        for part in ["hidden: holds f16", "weight: holds f16", &format!("{head:?} needs {name}")] {
            assert!(error.to_string().contains(part), "{part:?} in {error}");
        }
    }
}

#[test]
fn rows_that_tensor_cores_cannot_load_are_refused() {
    let error = forward_error::<bf16>(&config(Head::F32Logits, 128), [5, 12], [24, 12], None, |_| ());
    assert!(error.is(Kind::Alignment) && error.to_string().contains("rows of 24 bytes"), "{error}");
}

#[test]
fn chunks_that_are_no_tiles_are_refused() {
    for rows in [0, 1, 127, 192] {
        let config = Config { chunk: Chunk::Rows(rows), ..config(Head::F32Logits, 128) };
        let error = config.chunk_rows(24).expect_err("no multiple of 128");
        assert!(error.is(Kind::Config) && error.to_string().contains("multiple of 128"), "{error}");
        let error = forward_error::<bf16>(&config, [5, 16], [24, 16], None, |_| ());
        assert!(error.is(Kind::Config), "{error}");
    }
    let limited = |bytes| Config { chunk: Chunk::MaxLogitsBytes(bytes), ..config(Head::F32Logits, 128) };
    let error = limited(128 * 24 * 4 - 1).chunk_rows(24).expect_err("too few bytes");
    assert!(error.to_string().contains("needs 12288"), "{error}");
    assert_eq!(limited(128 * 24 * 4).chunk_rows(24), Ok(128));
    // Backward takes more but has the same chunks.
    assert_eq!(limited(1 << 20).chunk_rows(24), Ok((1 << 20) / 96 / 128 * 128));
}

#[test]
fn chunks_of_more_bytes_than_can_be_named_are_refused() {
    for rows in [1 << 62, usize::MAX / 128 * 128] {
        let config = Config { chunk: Chunk::Rows(rows), product_workspace: usize::MAX, ..config(Head::F32Logits, 128) };
        let error = forward_error::<bf16>(&config, [5, 16], [24, 16], None, |_| ());
        assert!(error.is(Kind::Workspace), "{error}");
        assert_eq!(config.backward_footprint(&shape(5, 16, 24), None, None).total(), usize::MAX);
    }
}

#[test]
fn rows_out_of_order_are_refused() {
    let lists: [&[Range<usize>]; 4] = [&[0..2, 1..3], &[3..4, 0..1], &[0..2, 3..6], &[0..1, 2..2]];
    for rows in lists {
        let error = forward_error::<bf16>(&config(Head::F32Logits, 128), [5, 16], [24, 16], Some(rows), |_| ());
        assert!(error.is(Kind::Shape) && error.to_string().contains("rows: name"), "{error}");
    }
}

#[test]
fn what_logprob_refuses_is_refused() {
    let config = Config { logprob: logprob::Config::at_temperature(0.0), ..config(Head::F32Logits, 128) };
    let error = forward_error::<bf16>(&config, [5, 16], [24, 16], None, |call| call.tokens = None);
    assert!(error.is(Kind::Temperature), "{error}");
    assert!(error.to_string().contains("logprobs: are asked for, but there are no tokens"), "{error}");
}

fn backward_error(config: &Config, d_hidden: Option<[usize; 2]>, d_weight: Option<(bool, [usize; 2])>) -> Error {
    let sizes @ Shape { rows, hidden, vocabulary } = shape(5, 16, 24);
    let (states, weights) = (aligned::<bf16>(rows * hidden), aligned::<bf16>(vocabulary * hidden));
    let size = config.backward_footprint(&sizes, Some(Element::F32), Some(Element::Bf16)).workspace();
    let mut workspace = vec![0_u8; size];
    let saved = vec![Partial { max_logit: 0.0, sum: 1.0, weighted: 0.0, label: 0.0 }; rows];
    let up = vec![1.0_f32; rows];
    let mut d_hidden_memory = aligned::<bf16>(d_hidden.map_or(0, |[r, c]| r * c));
    let mut d_weight_memory = aligned::<bf16>(d_weight.map_or(0, |(_, [r, c])| r * c));
    let projection = Projection::new(
        Matrix::new(&states, rows, hidden).unwrap(),
        Matrix::new(&weights, vocabulary, hidden).unwrap(),
        (&mut workspace).into(),
    );
    let mut gradients = Gradients::new(projection);
    gradients.d_hidden = d_hidden.map(|[r, c]| MatrixMut::new(&mut d_hidden_memory, r, c).unwrap());
    gradients.d_weight = d_weight.map(|(is_added, [r, c])| {
        let matrix = MatrixMut::new(&mut d_weight_memory, r, c).unwrap();
        if is_added { WeightGradient::Added(matrix) } else { WeightGradient::Written(matrix) }
    });
    let mut call = Backward::new(gradients, (&saved).into());
    call.d_entropy = Some((&up).into());
    Reference.linear_logprob_backward(&(), config, call).expect_err("the call is refused")
}

#[test]
fn gradients_that_do_not_fit_are_refused() {
    let config = config(Head::F32Logits, 128);
    let error = backward_error(&config, None, None);
    assert!(error.is(Kind::MissingInput) && error.to_string().contains("d_hidden: or d_weight is needed"), "{error}");
    let error = backward_error(&config, Some([24, 16]), None);
    assert!(error.to_string().contains("d_hidden: has shape [24, 16], needs [5, 16]"), "{error}");
    let error = backward_error(&config, None, Some((false, [16, 24])));
    assert!(error.to_string().contains("d_weight: has shape [16, 24], needs [24, 16]"), "{error}");
    // A main gradient in 16 bits would lose what is added to it.
    let error = backward_error(&config, None, Some((true, [24, 16])));
    assert!(error.is(Kind::Dtype) && error.to_string().contains("holds bf16, needs f32, to be added to"), "{error}");
}

#[test]
fn a_workspace_that_is_an_input_too_is_refused() {
    let config = config(Head::F32Logits, 128);
    let (states, mut memory) = (aligned::<bf16>(5 * 16), aligned::<f32>(1 << 20));
    let mut lse = vec![0.0_f32; 5];
    let memory = moerl::memory::ViewMut::<f32, Host>::from(&mut memory[..]);
    // SAFETY: the call is refused, so that nothing is written through the second view of the same memory.
    let workspace = unsafe { moerl::memory::ViewMut::from_raw(memory.address(), memory.len() * 4) };
    // SAFETY: likewise.
    let weight = unsafe { moerl::memory::View::<bf16, Host>::from_raw(memory.address() + 4096, 24 * 16) };
    let projection =
        Projection::new(Matrix::new(&states, 5, 16).unwrap(), Matrix::new(weight, 24, 16).unwrap(), workspace);
    let mut call = Forward::new(projection);
    call.lse = Some((&mut lse).into());
    let error = Reference.linear_logprob_forward(&(), &config, call).expect_err("the call is refused");
    assert!(error.is(Kind::Overlap), "{error}");
}

/// Without products a device says which feature it needs.
#[cfg(all(feature = "cuda", not(feature = "linear")))]
#[test]
fn a_device_without_products_names_the_feature() {
    use moerl::Buffer;
    let Some(gpu) = crate::common::cuda() else { return };
    let stream = gpu.stream().unwrap();
    let config = config(Head::F32Logits, 128);
    let hidden = gpu.allocate::<bf16>(&stream, 5 * 16).unwrap();
    let weight = gpu.allocate::<bf16>(&stream, 24 * 16).unwrap();
    let mut workspace = gpu.allocate::<u8>(&stream, config.forward_footprint(&shape(5, 16, 24)).workspace()).unwrap();
    let mut lse = gpu.allocate::<f32>(&stream, 5).unwrap();
    let projection = Projection::new(
        Matrix::new(hidden.view(), 5, 16).unwrap(),
        Matrix::new(weight.view(), 24, 16).unwrap(),
        workspace.view_mut(),
    );
    let mut call = Forward::new(projection);
    call.lse = Some(lse.view_mut());
    let error = gpu.linear_logprob_forward(&stream, &config, call).expect_err("there are no products");
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("`linear`"), "{error}");
}
