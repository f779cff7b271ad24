//! Time and bytes per second of `gate`: native forward, replay forward, dense and compact backward, at the shapes of released models. The bytes are
//! those that the mathematics needs: forward reads a native row's logits, or a replayed row's ids and the 32-byte sectors of its logits, and
//! writes ids, weights and saved logits; backward reads those and writes the row, or k gradients.
//!
//! On a CUDA device: by events on its stream, with a cold L2 (each call takes other arrays, of more bytes in all than any L2 holds).
//! One row (`1`) is what a launch costs. Without a device the f64 reference is timed by the clock, on few rows, and it says so.
//!
//! `cargo bench --bench gate [-- FILTER]`

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use moerl::element::{Float, bf16};
use moerl::gate::{Backward, Config, Forward, Preset};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Reference, Result};

/// More bytes than the L2 of any device holds.
const COLD_BYTES: usize = 256 << 20;

/// Devices milliseconds or the clock's, of `calls` calls.
trait Timer<B: Backend> {
    fn time(&self, backend: &B, stream: &B::Stream, calls: &mut dyn FnMut() -> Result<()>) -> Result<Duration>;
}

struct Clock;

impl<B: Backend> Timer<B> for Clock {
    fn time(&self, backend: &B, stream: &B::Stream, calls: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        calls()?;
        backend.synchronize(stream)?;
        Ok(start.elapsed())
    }
}

#[cfg(feature = "cuda")]
struct Events;

#[cfg(feature = "cuda")]
impl Timer<moerl::Cuda> for Events {
    fn time(
        &self,
        gpu: &moerl::Cuda,
        stream: &<moerl::Cuda as Backend>::Stream,
        calls: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Duration> {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(stream)?;
        calls()?;
        end.record(stream)?;
        end.synchronize()?;
        Ok(Duration::from_secs_f64(f64::from(end.milliseconds_since(&start)?) * 1e-3))
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    #[cfg(feature = "cuda")]
    match moerl::Cuda::open(0) {
        Ok(gpu) => {
            run(&gpu, &Events, &[1, 64, 4096, 16_384, 65_536], COLD_BYTES, &mut criterion);
            criterion.final_summary();
            return;
        }
        Err(reason) => println!("gate: no CUDA device ({reason}); these are times of the CPU reference"),
    }
    #[cfg(not(feature = "cuda"))]
    println!("gate: built without the feature cuda; these are times of the CPU reference");
    run(&Reference, &Clock, &[64], 0, &mut criterion);
    criterion.final_summary();
}

fn run<B: Backend>(backend: &B, timer: &impl Timer<B>, tokens: &[usize], cold_bytes: usize, criterion: &mut Criterion) {
    let presets = [
        (Preset::Qwen3, 128, 8),
        (Preset::Qwen3_5, 256, 8),
        (Preset::DeepseekV3, 256, 8),
        (Preset::Glm5, 256, 8),
        (Preset::KimiK2, 384, 8),
        (Preset::Qwen3Next, 512, 10),
    ];
    let mut routers: Vec<_> =
        presets.map(|(preset, experts, k)| (preset.name(), Config::preset(preset), experts, k)).into();
    // Without a bias no released model is so wide, but the selection is then another one.
    routers.push(("softmax_selected", Config::softmax_selected(8), 384, 8));
    for &(name, ref config, experts, k) in &routers {
        for &tokens in tokens {
            let shape = Shape { name, tokens, experts, k };
            measure::<B, bf16>(backend, timer, shape, config, cold_bytes, criterion).expect("every call is valid");
            measure::<B, f32>(backend, timer, shape, config, cold_bytes, criterion).expect("every call is valid");
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    tokens: usize,
    experts: usize,
    k: usize,
}

/// The arrays of one call.
struct Arrays<B: Backend, T: Float> {
    logits: B::Buffer<T>,
    forced: B::Buffer<u16>,
    ids: B::Buffer<i32>,
    weights: B::Buffer<f32>,
    selected: B::Buffer<f32>,
    upstream: B::Buffer<f32>,
    gradient: B::Buffer<T>,
    compact: B::Buffer<f32>,
}

/// Logits without a pattern: hashed bits, summed to something like a normal distribution.
fn logit(i: usize) -> f32 {
    let hashed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hashed.to_le_bytes().iter().map(|&byte| f32::from(byte) - 127.5).sum::<f32>() / 128.0
}

/// k different experts of token t.
fn routes(shape: Shape, t: usize) -> impl Iterator<Item = usize> {
    let step = 2 * (t * 31 % (shape.experts / shape.k / 2)) + 1;
    (0..shape.k).map(move |j| (t * 17 + j * step) % shape.experts)
}

impl<B: Backend, T: Float> Arrays<B, T> {
    fn new(backend: &B, stream: &B::Stream, shape: Shape) -> Result<Self> {
        let Shape { tokens, experts, k, .. } = shape;
        let logits: Vec<T> = (0..tokens * experts).map(|i| T::from_f32(logit(i))).collect();
        let forced: Vec<u16> = (0..tokens).flat_map(|t| routes(shape, t)).map(|e| e as u16).collect();
        Ok(Arrays {
            logits: backend.upload(stream, &logits)?,
            forced: backend.upload(stream, &forced)?,
            ids: backend.allocate(stream, tokens * k)?,
            weights: backend.allocate(stream, tokens * k)?,
            selected: backend.allocate(stream, tokens * k)?,
            upstream: backend.upload(stream, &vec![0.5; tokens * k])?,
            gradient: backend.allocate(stream, tokens * experts)?,
            compact: backend.allocate(stream, tokens * k)?,
        })
    }

    fn forward(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        config: &Config,
        bias: &B::Buffer<f32>,
        shape: Shape,
        forced: bool,
    ) -> Result<()> {
        let Shape { tokens, experts, k, .. } = shape;
        let weights = MatrixMut::new(self.weights.view_mut(), tokens, k)?;
        let mut call = Forward::new(Matrix::new(self.logits.view(), tokens, experts)?, self.ids.view_mut(), weights);
        if forced {
            call.routes = Matrix::new(self.forced.view(), tokens, k)?.into();
        }
        call.selection_bias = config.needs_selection_bias.then(|| bias.view());
        call.selected_logits = Some(self.selected.view_mut());
        backend.gate_forward(stream, config, call)
    }

    fn backward(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        config: &Config,
        shape: Shape,
        compact: bool,
    ) -> Result<()> {
        let Shape { tokens, experts, k, .. } = shape;
        let upstream = Matrix::new(self.upstream.view(), tokens, k)?;
        let (ids, selected) = (self.ids.view(), self.selected.view());
        let call = if compact {
            Backward::compact(upstream, ids, selected, self.compact.view_mut(), experts)
        } else {
            Backward::new(upstream, ids, selected, MatrixMut::new(self.gradient.view_mut(), tokens, experts)?)
        };
        backend.gate_backward(stream, config, call)
    }
}

fn measure<B: Backend, T: Float>(
    backend: &B,
    timer: &impl Timer<B>,
    shape: Shape,
    config: &Config,
    cold_bytes: usize,
    criterion: &mut Criterion,
) -> Result<()> {
    let Shape { name: router, tokens, experts, k } = shape;
    let stream = backend.stream()?;
    let bias = backend.upload(&stream, &(0..experts).map(|e| logit(e) * 0.1).collect::<Vec<_>>())?;
    let row_bytes = tokens * experts * size_of::<T>();
    let copies = (cold_bytes / row_bytes).clamp(1, 512);
    let mut sets = (0..copies).map(|_| Arrays::<B, T>::new(backend, &stream, shape)).collect::<Result<Vec<_>>>()?;

    let sectors: usize =
        (0..tokens).map(|t| routes(shape, t).map(|e| e * size_of::<T>() / 32).collect::<BTreeSet<_>>().len()).sum();
    let slots = tokens * k;
    let mut group = criterion.benchmark_group(format!("gate/{router}/{experts}/{}", T::ELEMENT));
    for (name, bytes, forced) in
        [("native", row_bytes + 12 * slots, false), ("replay", 2 * slots + 32 * sectors + 12 * slots, true)]
    {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
            bencher.iter_custom(|n| {
                let mut calls = || {
                    (0..n as usize)
                        .try_for_each(|i| sets[i % copies].forward(backend, &stream, config, &bias, shape, forced))
                };
                timer.time(backend, &stream, &mut calls).expect("a valid call")
            });
        });
    }
    // Whatever was filtered out above, backward has what it needs.
    for set in &mut sets {
        set.forward(backend, &stream, config, &bias, shape, false)?;
    }
    for (name, bytes, compact) in [("backward", 12 * slots + row_bytes, false), ("backward compact", 16 * slots, true)]
    {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
            bencher.iter_custom(|n| {
                let mut calls = || {
                    (0..n as usize)
                        .try_for_each(|i| sets[i % copies].backward(backend, &stream, config, shape, compact))
                };
                timer.time(backend, &stream, &mut calls).expect("a valid call")
            });
        });
    }
    group.finish();
    Ok(())
}
