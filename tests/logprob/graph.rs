//! Calls that a graph recorded give the bits of the same calls made one by one, every time it is launched.

use moerl::element::bf16;
use moerl::logprob::{Backward, Forward, Gradient, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use crate::common::{cuda, seeded};
use crate::support::*;

#[test]
fn a_graph_replays_the_bits_of_its_calls() {
    let Some(gpu) = cuda() else { return };
    let (rows, columns) = (40, 5003);
    let inputs = Inputs::<bf16>::random(&mut seeded(1), rows, columns, 4.0);
    let up = Upstream::random(&mut seeded(2), rows);
    let eager = forward(&gpu, &inputs, EVERYTHING);
    let eager_gradient: Vec<bf16> = backward(&gpu, &inputs, &eager.saved, &up, Target::Apart);

    let stream = gpu.stream().unwrap();
    let logits = gpu.upload(&stream, &inputs.logits).unwrap();
    let tokens: Vec<i32> = (0..rows).map(|r| inputs.token(r) as i32).collect();
    let tokens = gpu.upload(&stream, &tokens).unwrap();
    let mut logprobs = gpu.allocate::<f32>(&stream, rows).unwrap();
    let mut entropy = gpu.allocate::<f32>(&stream, rows).unwrap();
    let mut saved = gpu.allocate::<Partial>(&stream, rows).unwrap();
    let upstream = [&up.logprobs, &up.entropy, &up.lse].map(|d| gpu.upload(&stream, d.as_ref().unwrap()).unwrap());
    let mut gradient = gpu.allocate::<bf16>(&stream, rows * columns).unwrap();
    let record = || {
        let mut call = Forward::new(Matrix::new(logits.view(), rows, columns)?);
        call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
        call.logprobs = Some(logprobs.view_mut());
        call.entropy = Some(entropy.view_mut());
        call.saved = Some(saved.view_mut());
        gpu.logprob_forward(&stream, &inputs.config, call)?;
        let target = Gradient::Into {
            logits: Matrix::new(logits.view(), rows, columns)?,
            d_logits: MatrixMut::new(gradient.view_mut(), rows, columns)?,
        };
        let mut call = Backward::new(target, saved.view());
        call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
        call.d_logprobs = Some(upstream[0].view());
        call.d_entropy = Some(upstream[1].view());
        call.d_lse = Some(upstream[2].view());
        gpu.logprob_backward(&stream, &inputs.config, call)
    };
    let graph = gpu.capture(&stream, record).unwrap();
    for launch in 0..3 {
        gpu.fill(&stream, gradient.view_mut(), 0x7f).unwrap();
        gpu.fill(&stream, logprobs.view_mut(), 0x7f).unwrap();
        // SAFETY: the buffers that the graph was recorded with are all alive, and nobody else uses them meanwhile.
        unsafe { graph.launch(&stream) }.unwrap();
        let bits = |values: Vec<f32>| canonical(&values).collect::<Vec<_>>();
        let found = [&logprobs, &entropy].map(|values| bits(gpu.download(&stream, values.view()).unwrap()));
        assert_eq!(found, [bits(eager.logprobs.clone()), bits(eager.entropy.clone())], "launch {launch}");
        assert!(gpu.download(&stream, gradient.view()).unwrap() == eager_gradient, "launch {launch}");
    }
}
