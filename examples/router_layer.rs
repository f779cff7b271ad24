//! A router layer that records its experts under the old policy and replays them under the new one.
//!
//! Two layers, two micro-batches, activation recomputation. The old policy's forward pass fills a tape; the new policy's passes read it,
//! in whatever order they run: forward, recompute and backward of a micro-batch see the same experts, and give the same bits.
//!
//! `cargo run --example router_layer` runs on a GPU where there is one, else on plain f64 loops; with `--features emulate` on the
//! emulated kernels.

use moerl::element::bf16;
use moerl::gate::{Backward, Config, Forward, Routes};
use moerl::memory::{Matrix, MatrixMut};
use moerl::random::{key, philox4x32_10};
use moerl::routes::{Layer, MicroBatch, Packing, Recorder, RouteTape};
use moerl::{Backend, Buffer, Result};

const EXPERTS: usize = 128;
const TOP_K: usize = 8;
/// Tokens of each micro-batch.
const TOKENS: [usize; 2] = [48, 31];
/// Hidden layers 1 and 2 have experts.
const LAYERS: [Layer; 2] = [Layer(1), Layer(2)];
/// What an optimiser step adds to a router logit, in units of the logits' spread.
const DRIFT: f32 = 0.05;

fn main() -> Result<()> {
    #[cfg(feature = "cuda")]
    match moerl::Cuda::open(0) {
        Ok(gpu) => return show(&gpu),
        Err(reason) => eprintln!("no GPU to use: {reason}"),
    }
    #[cfg(feature = "emulate")]
    return show(&moerl::Emulator::new());
    #[cfg(not(feature = "emulate"))]
    show(&moerl::Reference)
}

fn show<B: Backend>(backend: &B) -> Result<()> {
    println!(
        "{}: {TOP_K} of {EXPERTS} experts, recorded under the old policy, replayed under the new one\n",
        backend.name()
    );
    println!(
        "layer  micro-batch  tokens  would change  replayed as recorded  recompute      backward       |gradient|"
    );
    for pass in run(backend)? {
        let bits = |same| if same { "same bits" } else { "OTHER BITS" };
        println!(
            "{:>5}  {:>11}  {:>6}  {:>10.1} %  {:>20}  {:13}  {:13}  {:>10.4}",
            pass.layer.0,
            pass.micro_batch.0,
            pass.tokens,
            100.0 * pass.changed as f64 / pass.tokens as f64,
            if pass.as_recorded { "all" } else { "NOT ALL" },
            bits(pass.same_recompute),
            bits(pass.same_backward),
            pass.gradient_norm,
        );
    }
    Ok(())
}

/// What became of one layer in one micro-batch.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Which layer.
    pub layer: Layer,
    /// Which micro-batch.
    pub micro_batch: MicroBatch,
    /// Its tokens.
    pub tokens: usize,
    /// Tokens that the new policy's own gate would send to other experts.
    pub changed: usize,
    /// Replay used the recorded experts, in their slots.
    pub as_recorded: bool,
    /// The recomputed forward pass gave the bits of the first.
    pub same_recompute: bool,
    /// The gradient after recomputation has the bits of the gradient without.
    pub same_backward: bool,
    /// Euclidean norm of the router logits' gradient.
    pub gradient_norm: f64,
}

/// One step: record, then train with recomputation, micro-batches and layers out of order.
pub fn run<B: Backend>(backend: &B) -> Result<Vec<Pass>> {
    let stream = backend.stream()?;
    let router = Router { backend, stream: &stream, config: Config::softmax_selected(TOP_K) };

    // The old policy chooses, and the tape remembers.
    let mut recorder = Recorder::new(Packing::narrowest(EXPERTS)?, TOP_K)?;
    let mut recorded = Vec::new();
    for (layer, micro_batch) in order() {
        let saved = router.forward(&logits(layer, micro_batch, 0.0), Routes::Native)?;
        recorder.record(backend, &stream, layer, micro_batch, &saved.ids)?;
        recorded.push(saved.ids);
    }
    let tape: RouteTape<B> = recorder.seal()?;

    // The new policy's forward passes, and their gradients as they were without recomputation.
    let mut first = Vec::new();
    for (layer, micro_batch) in order() {
        let logits = logits(layer, micro_batch, DRIFT);
        let saved = router.forward(&logits, tape.get(layer, micro_batch)?.into())?;
        let gradient = router.backward(&saved)?;
        first.push((saved, gradient));
    }

    // Backward passes, last micro-batch and last layer first, each after recomputing its forward pass. Nothing is popped from anywhere.
    let mut passes = Vec::new();
    for (i, (layer, micro_batch)) in order().into_iter().enumerate().rev() {
        let logits = logits(layer, micro_batch, DRIFT);
        let saved = router.forward(&logits, tape.replay(layer, micro_batch)?.into())?;
        let gradient = router.backward(&saved)?;
        let native = router.forward(&logits, Routes::Native)?;
        let (first_saved, first_gradient) = &first[i];
        passes.push(Pass {
            layer,
            micro_batch,
            tokens: TOKENS[micro_batch.0 as usize],
            changed: sets(&native.ids).zip(sets(&recorded[i])).filter(|(native, recorded)| native != recorded).count(),
            as_recorded: saved.ids == recorded[i],
            same_recompute: saved.bits() == first_saved.bits(),
            same_backward: bits(&gradient) == bits(first_gradient),
            gradient_norm: gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt(),
        });
    }
    tape.assert_all_consumed()?;
    passes.reverse();
    Ok(passes)
}

/// Micro-batch by micro-batch, layer by layer.
fn order() -> Vec<(Layer, MicroBatch)> {
    let batches = (0..TOKENS.len() as u32).map(MicroBatch);
    batches.flat_map(|micro_batch| LAYERS.map(|layer| (layer, micro_batch))).collect()
}

/// The gate of one layer.
struct Router<'a, B: Backend> {
    backend: &'a B,
    stream: &'a B::Stream,
    config: Config,
}

/// What forward leaves for backward.
struct Saved {
    ids: Vec<i32>,
    weights: Vec<f32>,
    selected_logits: Vec<f32>,
}

impl Saved {
    fn bits(&self) -> (&[i32], Vec<u32>, Vec<u32>) {
        (&self.ids, bits(&self.weights), bits(&self.selected_logits))
    }
}

impl<B: Backend> Router<'_, B> {
    fn forward(&self, logits: &[bf16], routes: Routes<'_, B::Memory>) -> Result<Saved> {
        let Router { backend, stream, config } = self;
        let tokens = logits.len() / EXPERTS;
        let logits = backend.upload(stream, logits)?;
        let mut ids = backend.allocate::<i32>(stream, tokens * TOP_K)?;
        let mut weights = backend.allocate::<f32>(stream, tokens * TOP_K)?;
        let mut selected_logits = backend.allocate::<f32>(stream, tokens * TOP_K)?;
        let mut faults = backend.error_word(stream)?;
        backend.gate_forward(
            stream,
            config,
            Forward {
                routes,
                selected_logits: Some(selected_logits.view_mut()),
                errors: Some(faults.view_mut()),
                ..Forward::new(
                    Matrix::new(logits.view(), tokens, EXPERTS)?,
                    ids.view_mut(),
                    MatrixMut::new(weights.view_mut(), tokens, TOP_K)?,
                )
            },
        )?;
        backend.check(stream, &mut faults)?;
        Ok(Saved {
            ids: backend.download(stream, ids.view())?,
            weights: backend.download(stream, weights.view())?,
            selected_logits: backend.download(stream, selected_logits.view())?,
        })
    }

    /// The gradient of the router logits, `[tokens, EXPERTS]`, where the weights' gradient is the slot's number.
    fn backward(&self, saved: &Saved) -> Result<Vec<f32>> {
        let Router { backend, stream, config } = self;
        let tokens = saved.ids.len() / TOP_K;
        let upstream: Vec<f32> = (0..saved.ids.len()).map(|i| (i % TOP_K) as f32).collect();
        let upstream = backend.upload(stream, &upstream)?;
        let ids = backend.upload(stream, &saved.ids)?;
        let selected_logits = backend.upload(stream, &saved.selected_logits)?;
        let mut gradient = backend.allocate::<f32>(stream, tokens * EXPERTS)?;
        backend.gate_backward(
            stream,
            config,
            Backward::new(
                Matrix::new(upstream.view(), tokens, TOP_K)?,
                ids.view(),
                selected_logits.view(),
                MatrixMut::new(gradient.view_mut(), tokens, EXPERTS)?,
            ),
        )?;
        backend.download(stream, gradient.view())
    }
}

/// Router logits of a layer for a micro-batch's tokens: normal numbers, and `drift` times others.
fn logits(layer: Layer, micro_batch: MicroBatch, drift: f32) -> Vec<bf16> {
    let normal = |policy: u32, i: u32| {
        let [a, b, ..] = philox4x32_10(key(1), [i, layer.0, micro_batch.0, policy]);
        // Box and Muller, from uniform numbers above 0.
        let [u, v] = [a, b].map(|word| (word as f32 + 1.0) / 4_294_967_296.0);
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    };
    let count = (TOKENS[micro_batch.0 as usize] * EXPERTS) as u32;
    (0..count).map(|i| bf16::from_f32(normal(0, i) + drift * normal(1, i))).collect()
}

fn sets(ids: &[i32]) -> impl Iterator<Item = Vec<i32>> + '_ {
    ids.chunks(TOP_K).map(|row| {
        let mut set = row.to_vec();
        set.sort_unstable();
        set
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
