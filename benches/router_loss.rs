//! Time and bytes per second of `router_loss`: the sums of a balance loss and a z-loss, and their gradient, at the shapes of released models. The bytes are those
//! that the mathematics needs: sums read the logits and the ids, the gradient reads the logits and writes as many.
//!
//! On a CUDA device: by events on its stream, with a cold L2 (each call takes other logits, of more bytes in all than any L2 holds). Without a device the f64
//! reference is timed by the clock, on few rows, and it says so.
//!
//! `cargo bench --bench router_loss [-- FILTER]`

#[path = "timer/mod.rs"]
mod timer;

use criterion::{BenchmarkId, Criterion, Throughput};
use moerl::element::{Float, bf16};
use moerl::gate::{self, Output, Preset};
use moerl::memory::{Matrix, MatrixMut};
use moerl::router_loss::{Backward, Config, Finish, Gradient, Partial, Plan};
use moerl::{Backend, Buffer, Reference, Result};
use timer::{Clock, Timer};

/// More bytes than the L2 of any device holds.
#[cfg(feature = "cuda")]
const COLD_BYTES: usize = 256 << 20;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    #[cfg(feature = "cuda")]
    match moerl::Cuda::open(0) {
        Ok(gpu) => {
            run(&gpu, &timer::Events, &[4096, 16_384, 65_536], COLD_BYTES, &mut criterion);
            criterion.final_summary();
            return;
        }
        Err(reason) => println!("router_loss: no CUDA device ({reason}); these are times of the CPU reference"),
    }
    #[cfg(not(feature = "cuda"))]
    println!("router_loss: built without the feature cuda; these are times of the CPU reference");
    run(&Reference, &Clock, &[64], 0, &mut criterion);
    criterion.final_summary();
}

fn run<B: Backend>(backend: &B, timer: &impl Timer<B>, tokens: &[usize], cold_bytes: usize, criterion: &mut Criterion) {
    for (preset, experts, k) in
        [(Preset::Qwen3, 128, 8), (Preset::DeepseekV3, 256, 8), (Preset::KimiK2, 384, 8), (Preset::Qwen3Next, 512, 10)]
    {
        for &tokens in tokens {
            let shape = Shape { preset, tokens, experts, k };
            measure::<B, bf16>(backend, timer, shape, cold_bytes, criterion).expect("every call is valid");
            measure::<B, f32>(backend, timer, shape, cold_bytes, criterion).expect("every call is valid");
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    preset: Preset,
    tokens: usize,
    experts: usize,
    k: usize,
}

/// Logits without a pattern.
fn logit(i: usize) -> f32 {
    let hashed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hashed.to_le_bytes().iter().map(|&byte| f32::from(byte) - 127.5).sum::<f32>() / 128.0
}

/// The arrays of a call. Logits and gradients are there in several copies, of which each call takes another.
struct Arrays<B: Backend, T: Float> {
    logits: Vec<B::Buffer<T>>,
    gradients: Vec<B::Buffer<T>>,
    ids: B::Buffer<i32>,
    probabilities: B::Buffer<f64>,
    counts: B::Buffer<u64>,
    rows: B::Buffer<u64>,
    totals: B::Buffer<f64>,
    nonfinite: B::Buffer<u64>,
    values: B::Buffer<f64>,
    q: B::Buffer<f32>,
    coefficients: B::Buffer<f32>,
    workspace: B::Buffer<u8>,
}

impl<B: Backend, T: Float> Arrays<B, T> {
    fn new(backend: &B, stream: &B::Stream, plan: &Plan<B>, shape: Shape, copies: usize) -> Result<Self> {
        let Shape { tokens, experts, k, .. } = shape;
        let logits: Vec<T> = (0..tokens * experts).map(|i| T::from_f32(logit(i))).collect();
        let ids: Vec<i32> = (0..tokens * k).map(|slot| (slot * 7 % experts) as i32).collect();
        Ok(Arrays {
            logits: (0..copies).map(|_| backend.upload(stream, &logits)).collect::<Result<_>>()?,
            gradients: (0..copies).map(|_| backend.allocate(stream, tokens * experts)).collect::<Result<_>>()?,
            ids: backend.upload(stream, &ids)?,
            probabilities: backend.allocate(stream, experts)?,
            counts: backend.allocate(stream, experts)?,
            rows: backend.allocate(stream, 1)?,
            totals: backend.allocate(stream, 3)?,
            nonfinite: backend.allocate(stream, 1)?,
            values: backend.allocate(stream, 4)?,
            q: backend.allocate(stream, experts)?,
            coefficients: backend.allocate(stream, 4)?,
            workspace: backend.allocate(stream, Partial::<B::Memory>::workspace_bytes(plan, experts))?,
        })
    }

    fn partial(&mut self, call: &Calls<'_, B>, i: usize) -> Result<()> {
        let Shape { tokens, experts, .. } = call.shape;
        let sums = Partial {
            router_logits: Matrix::new(self.logits[i].view(), tokens, experts)?,
            topk_ids: Some(self.ids.view()),
            ref_logits: None,
            selected_logits: None,
            token_mask: None,
            row_count: None,
            probabilities: self.probabilities.view_mut(),
            counts: self.counts.view_mut(),
            rows: self.rows.view_mut(),
            totals: self.totals.view_mut(),
            nonfinite: self.nonfinite.view_mut(),
            accumulate: false,
            workspace: self.workspace.view_mut(),
        };
        call.backend.router_loss_partial(call.stream, &call.router, &call.config, call.plan, sums)
    }

    fn finish(&mut self, call: &Calls<'_, B>) -> Result<()> {
        let finish = Finish {
            experts: call.shape.experts,
            probabilities: self.probabilities.view(),
            rows: self.rows.view(),
            totals: self.totals.view(),
            counts: self.counts.view(),
            count_rows: None,
            valid_segments: None,
            values: self.values.view_mut(),
            q: self.q.view_mut(),
            coefficients: self.coefficients.view_mut(),
            workspace: self.workspace.view_mut(),
        };
        call.backend.router_loss_finish(call.stream, &call.router, &call.config, call.plan, finish)
    }

    fn backward(&mut self, call: &Calls<'_, B>, i: usize) -> Result<()> {
        let Shape { tokens, experts, .. } = call.shape;
        let backward = Backward {
            router_logits: Matrix::new(self.logits[i].view(), tokens, experts)?,
            regularizer: Gradient::new(call.plan, self.q.view(), self.coefficients.view()),
            topk_ids: None,
            selected_logits: None,
            token_mask: None,
            row_count: None,
            output: Output::Dense(MatrixMut::new(self.gradients[i].view_mut(), tokens, experts)?),
        };
        call.backend.router_loss_backward(call.stream, &call.router, backward)
    }
}

/// What every call shares.
struct Calls<'a, B: Backend> {
    backend: &'a B,
    stream: &'a B::Stream,
    router: gate::Config,
    config: Config,
    plan: &'a Plan<B>,
    shape: Shape,
}

fn measure<B: Backend, T: Float>(
    backend: &B,
    timer: &impl Timer<B>,
    shape: Shape,
    cold_bytes: usize,
    criterion: &mut Criterion,
) -> Result<()> {
    let Shape { preset, tokens, experts, k } = shape;
    let stream = backend.stream()?;
    let router = gate::Config { top_k: Some(k), ..gate::Config::preset(preset) };
    let router = gate::Config { scaling_factor: router.scaling_factor.or(Some(1.0)), ..router };
    let config = Config { z: 1e-3, ..Config::switch(1e-2) };
    let plan = Plan::whole(backend, &stream, tokens)?;
    let row_bytes = tokens * experts * size_of::<T>();
    let copies = (cold_bytes / row_bytes).clamp(1, 512);
    let mut arrays = Arrays::<B, T>::new(backend, &stream, &plan, shape, copies)?;
    let calls = Calls { backend, stream: &stream, router, config, plan: &plan, shape };
    // Whatever is filtered out below, the gradient has its coefficients.
    arrays.partial(&calls, 0)?;
    arrays.finish(&calls)?;

    let mut group = criterion.benchmark_group(format!("router_loss/{preset}/{}", T::ELEMENT));
    group.throughput(Throughput::Bytes((row_bytes + 4 * tokens * k) as u64));
    group.bench_function(BenchmarkId::new("partial", tokens), |bencher| {
        bencher.iter_custom(|n| {
            let mut work = || (0..n as usize).try_for_each(|i| arrays.partial(&calls, i % copies));
            timer.time(backend, &stream, &mut work).expect("a valid call")
        });
    });
    group.throughput(Throughput::Bytes((2 * row_bytes) as u64));
    group.bench_function(BenchmarkId::new("backward", tokens), |bencher| {
        bencher.iter_custom(|n| {
            let mut work = || (0..n as usize).try_for_each(|i| arrays.backward(&calls, i % copies));
            timer.time(backend, &stream, &mut work).expect("a valid call")
        });
    });
    group.finish();
    Ok(())
}
