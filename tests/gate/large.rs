//! Batches of more than 2³¹ logits, on a device; the same at a small size, emulated.

use moerl::device::executor::Executor;
use moerl::element::{Float, bf16};
use moerl::gate::{Backward, Config, Forward};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use crate::agreement::agrees;
use crate::common::large::Tile;
use crate::common::report::count;
use crate::harness::*;

/// Rows to look at closely: the first, the middle ones, those on both sides of logit 2³¹, the last.
fn chosen_rows(tokens: usize, experts: usize) -> Vec<usize> {
    let beyond = (1 << 31) / experts;
    let mut rows = vec![0, 1, tokens / 2, beyond - 1, beyond, beyond + 1, tokens - 2, tokens - 1];
    rows.retain(|&t| t < tokens);
    rows.dedup();
    rows
}

/// What forward leaves, on the device.
struct Results<B: Executor> {
    ids: B::Buffer<i32>,
    weights: B::Buffer<f32>,
    selected: B::Buffer<f32>,
    lse: B::Buffer<f32>,
}

impl<B: Executor> Results<B> {
    /// Bytes that no kernel writes.
    fn untouched(backend: &B, stream: &B::Stream, tokens: usize, k: usize) -> Results<B> {
        fn filled<B: Executor, T: bytemuck::Pod + Send + Sync>(b: &B, stream: &B::Stream, len: usize) -> B::Buffer<T> {
            let mut buffer = b.allocate(stream, len).unwrap();
            b.fill(stream, buffer.view_mut(), 0x7f).unwrap();
            buffer
        }
        Results {
            ids: filled(backend, stream, tokens * k),
            weights: filled(backend, stream, tokens * k),
            selected: filled(backend, stream, tokens * k),
            lse: filled(backend, stream, tokens),
        }
    }

    fn row(&self, backend: &B, stream: &B::Stream, t: usize, k: usize, has_lse: bool) -> Forwarded {
        let slots = t * k..(t + 1) * k;
        Forwarded {
            ids: backend.download(stream, self.ids.view().slice(slots.clone())).unwrap(),
            weights: backend.download(stream, self.weights.view().slice(slots.clone())).unwrap(),
            selected: backend.download(stream, self.selected.view().slice(slots)).unwrap(),
            lse: if has_lse { backend.download(stream, self.lse.view().slice(t..t + 1)).unwrap() } else { Vec::new() },
            fault: None,
        }
    }
}

/// Native, replay and backward of `tokens` rows; the chosen rows must be what they are alone, and agree with the reference.
fn check<B: Executor, T: Float>(backend: &B, config: Config, tokens: usize, experts: usize) {
    let k = config.resolve_top_k(None).unwrap();
    let name = format!("{tokens} rows of {experts} experts");
    let stream = backend.stream().unwrap();
    let (tile, upstream_tile) = (Tile::<T>::new(1, 3.0), Tile::<f32>::new(2, 1.0));
    let mut logits = backend.allocate::<T>(&stream, tokens * experts).unwrap();
    tile.lay(backend, &stream, logits.view_mut());
    let mut upstream = backend.allocate::<f32>(&stream, tokens * k).unwrap();
    upstream_tile.lay(backend, &stream, upstream.view_mut());

    let rows = chosen_rows(tokens, experts);
    let numbers = rows.iter().flat_map(|&t| tile.range(t * experts..(t + 1) * experts)).collect();
    let bias = config.needs_selection_bias.then(|| (0..experts).map(|e| (e * 37 % 64) as f32 / 128.0).collect());
    let alone = Problem { bias, ..Problem::new(config.clone(), experts, k, numbers) };
    let expected = forward(backend, &alone);
    agrees(
        backend,
        &name,
        &Problem { config: Config { scaling_factor: Some(1.0), ..config.clone() }, ..alone.clone() },
    );

    let bias = alone.bias.as_ref().map(|bias| backend.upload(&stream, bias).unwrap());
    let has_lse = config.needs_lse();
    let run = |routes: Option<&Results<B>>| {
        let mut results = Results::<B>::untouched(backend, &stream, tokens, k);
        let mut word = backend.error_word(&stream).unwrap();
        let mut call = Forward::new(
            Matrix::new(logits.view(), tokens, experts).unwrap(),
            results.ids.view_mut(),
            MatrixMut::new(results.weights.view_mut(), tokens, k).unwrap(),
        );
        if let Some(routes) = routes {
            call.routes = Matrix::new(routes.ids.view(), tokens, k).unwrap().into();
        }
        call.selection_bias = bias.as_ref().map(Buffer::view);
        call.selected_logits = Some(results.selected.view_mut());
        call.lse = has_lse.then(|| results.lse.view_mut());
        call.errors = Some(word.view_mut());
        backend.gate_forward(&stream, &config, call).unwrap();
        backend.check(&stream, &mut word).unwrap();
        results
    };
    let native = run(None);
    let replayed = run(Some(&native));
    let mut gradient = backend.allocate::<T>(&stream, tokens * experts).unwrap();
    backend.fill(&stream, gradient.view_mut(), 0x7f).unwrap();
    let mut call = Backward::new(
        Matrix::new(upstream.view(), tokens, k).unwrap(),
        native.ids.view(),
        native.selected.view(),
        MatrixMut::new(gradient.view_mut(), tokens, experts).unwrap(),
    );
    if has_lse {
        call.lse = Some(native.lse.view());
        call.router_logits = Some(Matrix::new(logits.view(), tokens, experts).unwrap());
    }
    backend.gate_backward(&stream, &config, call).unwrap();

    let upstream: Vec<f32> = rows.iter().flat_map(|&t| upstream_tile.range(t * k..(t + 1) * k)).collect();
    let expected_gradient = backward_into::<B, T, f32, T>(backend, &alone, &expected, &upstream);
    let bits = |x: &[T]| x.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
    for (i, &t) in rows.iter().enumerate() {
        let slots = i * k..(i + 1) * k;
        let expected = Forwarded {
            ids: expected.ids[slots.clone()].to_vec(),
            weights: expected.weights[slots.clone()].to_vec(),
            selected: expected.selected[slots].to_vec(),
            lse: if has_lse { vec![expected.lse[i]] } else { Vec::new() },
            fault: None,
        };
        for (way, results) in [("native", &native), ("replayed", &replayed)] {
            let found = results.row(backend, &stream, t, k, has_lse);
            assert_eq!(found.bits(), expected.bits(), "{name}: row {t}, {way}");
        }
        let found = backend.download(&stream, gradient.view().slice(t * experts..(t + 1) * experts)).unwrap();
        assert!(bits(&found) == bits(&expected_gradient[i * experts..][..experts]), "{name}: gradient of row {t}");
    }
    count(9, 3 * rows.len());
}

/// Bytes of a call of 16-bit logits: those and their gradient, and of every slot its gradient and twice an id, a weight and a logit.
#[cfg(feature = "cuda")]
fn needed(tokens: usize, experts: usize, k: usize) -> usize {
    tokens * (4 * experts + 28 * k + 8)
}

#[cfg(feature = "emulate")]
mod emulator {
    use super::*;

    #[test]
    fn a_small_batch_is_checked_as_a_large_one() {
        let emulator = moerl::Emulator::new();
        check::<_, bf16>(&emulator, Config::softmax_selected(8), 301, 128);
        check::<_, bf16>(&emulator, Config::softmax(8), 34, 1024);
        check::<_, f32>(&emulator, Config::preset(moerl::gate::Preset::DeepseekV3), 70, 256);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::common;
    use moerl::gate::Preset;

    fn on_a_device(config: Config, tokens: usize, experts: usize) {
        let Some(gpu) = common::cuda() else { return };
        let k = config.resolve_top_k(None).unwrap();
        assert!(tokens * experts > 1 << 31);
        let Some(_alone) = common::large::room(&gpu, "a batch of 2^31 logits", needed(tokens, experts, k)) else {
            return;
        };
        check::<_, bf16>(&gpu, config, tokens, experts);
    }

    #[test]
    fn more_than_two_to_the_31_logits_of_4096_experts() {
        on_a_device(Config::softmax_selected(8), 524_300, 4096);
    }

    #[test]
    fn more_than_two_to_the_31_logits_of_4096_experts_with_a_sum_over_all() {
        on_a_device(Config::softmax(8), 524_300, 4096);
    }

    #[test]
    fn more_than_two_to_the_31_logits_of_many_short_rows() {
        on_a_device(Config::softmax_selected(8), (1 << 24) + 6, 128);
    }

    #[test]
    fn more_than_two_to_the_31_logits_by_bias_and_groups() {
        on_a_device(Config::preset(Preset::DeepseekV3), (1 << 23) + 6, 256);
    }
}
