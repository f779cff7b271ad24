//! Calls that a graph recorded give the bits of the same calls made one by one, every time it is launched.

use moerl::element::bf16;
use moerl::gate::{Backward, Config, Forward, Preset};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use crate::common::{self, cuda};
use crate::harness::*;

#[test]
fn a_graph_replays_the_bits_of_its_calls() {
    let Some(gpu) = cuda() else { return };
    // Few rows and many, whatever the device has of multiprocessors.
    for (tokens, config, experts) in [
        (40, Config::softmax_selected(8), 128),
        (40_000, Config::softmax_selected(8), 128),
        (40_000, Config::preset(Preset::DeepseekV3), 256),
    ] {
        let problem = Problem::<bf16>::random(config, tokens, experts, 8, 1);
        let upstream = problem.random_upstream(2);
        let eager = forward(&gpu, &problem);
        let eager_gradient = common::bits(&backward(&gpu, &problem, &eager, &upstream));

        let stream = gpu.stream().unwrap();
        let logits = gpu.upload(&stream, &problem.logits).unwrap();
        let bias = problem.bias.as_ref().map(|bias| gpu.upload(&stream, bias).unwrap());
        let upstream = gpu.upload(&stream, &upstream).unwrap();
        let mut ids = gpu.allocate::<i32>(&stream, tokens * 8).unwrap();
        let mut weights = gpu.allocate::<f32>(&stream, tokens * 8).unwrap();
        let mut selected = gpu.allocate::<f32>(&stream, tokens * 8).unwrap();
        let mut gradient = gpu.allocate::<f32>(&stream, tokens * experts).unwrap();
        let record = || {
            let mut call = Forward::new(
                Matrix::new(logits.view(), tokens, experts)?,
                ids.view_mut(),
                MatrixMut::new(weights.view_mut(), tokens, 8)?,
            );
            call.selection_bias = bias.as_ref().map(Buffer::view);
            call.selected_logits = Some(selected.view_mut());
            gpu.gate_forward(&stream, &problem.config, call)?;
            let call = Backward::new(
                Matrix::new(upstream.view(), tokens, 8)?,
                ids.view(),
                selected.view(),
                MatrixMut::new(gradient.view_mut(), tokens, experts)?,
            );
            gpu.gate_backward(&stream, &problem.config, call)
        };
        let graph = gpu.capture(&stream, record).unwrap();
        for launch in 0..3 {
            gpu.fill(&stream, ids.view_mut(), 0x7f).unwrap();
            gpu.fill(&stream, gradient.view_mut(), 0x7f).unwrap();
            // SAFETY: the buffers that the graph was recorded with are all alive, and nobody else uses them meanwhile.
            unsafe { graph.launch(&stream) }.unwrap();
            assert_eq!(gpu.download(&stream, ids.view()).unwrap(), eager.ids, "launch {launch}");
            let found = common::bits(&gpu.download(&stream, weights.view()).unwrap());
            assert_eq!(found, common::bits(&eager.weights), "launch {launch}");
            let found = common::bits(&gpu.download(&stream, gradient.view()).unwrap());
            assert!(found == eager_gradient, "launch {launch}");
        }
    }
}
