//! One update at the size of a real model, stage by stage: Qwen3-30B-A3B, 48 layers of 128 experts, 8 chosen, a vocabulary of 151,936,
//! over 65,536 packed tokens.
//!
//! A stage is all its calls together: every layer of the gate, every chunk of the logits. One layer's and one chunk's arrays are used again
//! and again (48 layers of them would not fit, and are far out of every cache all the same).

use moerl::Buffer;
use moerl::element::{Element, bf16};
use moerl::gate::{self, Preset};
use moerl::logprob::{self, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::objective::{self, Advantages, Batch, Denominators, Output, Plan, Segments};

use super::case::{Call, Case, Floor, Prepare, Scale, generate, hashed, normal};
use super::measure::Measure;

const TOP_K: usize = 8;

#[derive(Clone, Copy)]
struct Size {
    tokens: usize,
    layers: usize,
    experts: usize,
    vocabulary: usize,
    /// Rows of logits that exist at a time.
    chunk: usize,
}

/// The stages.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let size = match scale {
        Scale::Full => Size { tokens: 65_536, layers: 48, experts: 128, vocabulary: 151_936, chunk: 8192 },
        Scale::Small => Size { tokens: 64, layers: 2, experts: 128, vocabulary: 4096, chunk: 32 },
    };
    let Size { tokens, layers, experts, vocabulary, .. } = size;
    let n = tokens as u64;
    let slots = (tokens * layers * TOP_K) as u64;
    let row_bytes = n * vocabulary as u64 * 2;
    let case = |operation: &str, element, floor, prepare: Prepare<B>| Case {
        noun: "update",
        operation: operation.into(),
        shape: format!("N={tokens} L={layers} E={experts} k={TOP_K} V={vocabulary}"),
        element,
        floor,
        prepare,
    };
    vec![
        // Ids and, at best, no more than the chosen logits; then ids, weights and logits of the slots.
        case(
            "gate, replay, all layers",
            Element::Bf16,
            Floor { read: slots * (1 + 2), written: slots * 12 },
            Box::new(move |backend, stream| gate_forward(backend, stream, size)),
        ),
        case(
            "gate backward, all layers",
            Element::Bf16,
            Floor { read: slots * 12, written: n * (layers * experts) as u64 * 2 },
            Box::new(move |backend, stream| gate_backward(backend, stream, size)),
        ),
        case(
            "logprob, by chunks",
            Element::Bf16,
            Floor { read: row_bytes + 4 * n, written: 24 * n },
            Box::new(move |backend, stream| logprob_forward(backend, stream, size)),
        ),
        case(
            "logprob backward, by chunks",
            Element::Bf16,
            Floor { read: row_bytes + 28 * n, written: row_bytes },
            Box::new(move |backend, stream| logprob_backward(backend, stream, size)),
        ),
        case(
            "objective, gspo",
            Element::F32,
            Floor { read: 10 * n, written: 4 * n },
            Box::new(move |backend, stream| gspo(backend, stream, size)),
        ),
    ]
}

fn routes(size: Size) -> impl Iterator<Item = usize> {
    (0..size.tokens).flat_map(move |t| (0..TOP_K).map(move |j| (t * 17 + j * (2 * (t % 8) + 1)) % size.experts))
}

fn gate_forward<B: Measure + 'static>(backend: &B, stream: &B::Stream, size: Size) -> moerl::Result<Call<B>> {
    let Size { tokens, layers, experts, .. } = size;
    let config = gate::Config::preset(Preset::Qwen3);
    let logits: Vec<bf16> = generate(tokens * experts, |i| bf16::from_f32(2.0 * normal(i)));
    let logits = backend.upload(stream, &logits)?;
    let forced = backend.upload(stream, &routes(size).map(|e| e as u8).collect::<Vec<_>>())?;
    let mut ids = backend.allocate::<i32>(stream, tokens * TOP_K)?;
    let mut weights = backend.allocate::<f32>(stream, tokens * TOP_K)?;
    let mut selected = backend.allocate::<f32>(stream, tokens * TOP_K)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        (0..layers).try_for_each(|_| {
            let weights = MatrixMut::new(weights.view_mut(), tokens, TOP_K)?;
            let logits = Matrix::new(logits.view(), tokens, experts)?;
            let mut call = gate::Forward::new(logits, ids.view_mut(), weights);
            call.routes = Matrix::new(forced.view(), tokens, TOP_K)?.into();
            call.selected_logits = Some(selected.view_mut());
            backend.gate_forward(stream, &config, call)
        })
    }))
}

fn gate_backward<B: Measure + 'static>(backend: &B, stream: &B::Stream, size: Size) -> moerl::Result<Call<B>> {
    let Size { tokens, layers, experts, .. } = size;
    let config = gate::Config::preset(Preset::Qwen3);
    let ids = backend.upload(stream, &routes(size).map(|e| e as i32).collect::<Vec<_>>())?;
    let selected = backend.upload(stream, &(0..tokens * TOP_K).map(normal).collect::<Vec<_>>())?;
    let upstream = backend.upload(stream, &(0..tokens * TOP_K).map(|i| normal(i + 1)).collect::<Vec<_>>())?;
    let mut gradient = backend.allocate::<bf16>(stream, tokens * experts)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        (0..layers).try_for_each(|_| {
            let upstream = Matrix::new(upstream.view(), tokens, TOP_K)?;
            let gradient = MatrixMut::new(gradient.view_mut(), tokens, experts)?;
            let call = gate::Backward::new(upstream, ids.view(), selected.view(), gradient);
            backend.gate_backward(stream, &config, call)
        })
    }))
}

/// The arrays of a chunk of logits.
struct Chunk<B: Measure> {
    size: Size,
    logits: B::Buffer<bf16>,
    tokens: B::Buffer<i32>,
    logprobs: B::Buffer<f32>,
    entropy: B::Buffer<f32>,
    saved: B::Buffer<Partial>,
    workspace: B::Buffer<u8>,
}

impl<B: Measure> Chunk<B> {
    fn new(backend: &B, stream: &B::Stream, size: Size) -> moerl::Result<Chunk<B>> {
        let Size { vocabulary, chunk, .. } = size;
        let row: Vec<bf16> = (0..vocabulary).map(|j| bf16::from_f32(3.0 * normal(j))).collect();
        let tokens: Vec<i32> = (0..chunk).map(|row| (row * 31 % vocabulary) as i32).collect();
        Ok(Chunk {
            size,
            logits: backend.repeated(stream, &row, chunk)?,
            tokens: backend.upload(stream, &tokens)?,
            logprobs: backend.allocate(stream, chunk)?,
            entropy: backend.allocate(stream, chunk)?,
            saved: backend.allocate(stream, chunk)?,
            workspace: backend.allocate(stream, logprob::workspace_bytes(chunk, vocabulary))?,
        })
    }

    fn chunks(&self) -> usize {
        self.size.tokens / self.size.chunk
    }

    fn forward(&mut self, backend: &B, stream: &B::Stream) -> moerl::Result<()> {
        let Size { vocabulary, chunk, .. } = self.size;
        let mut call = logprob::Forward::new(Matrix::new(self.logits.view(), chunk, vocabulary)?);
        call.tokens = Some(Matrix::new(self.tokens.view(), chunk, 1)?);
        call.logprobs = Some(self.logprobs.view_mut());
        call.entropy = Some(self.entropy.view_mut());
        call.saved = Some(self.saved.view_mut());
        call.workspace = Some(self.workspace.view_mut());
        backend.logprob_forward(stream, &logprob::Config::default(), call)
    }
}

fn logprob_forward<B: Measure + 'static>(backend: &B, stream: &B::Stream, size: Size) -> moerl::Result<Call<B>> {
    let mut chunk = Chunk::<B>::new(backend, stream, size)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        (0..chunk.chunks()).try_for_each(|_| chunk.forward(backend, stream))
    }))
}

fn logprob_backward<B: Measure + 'static>(backend: &B, stream: &B::Stream, size: Size) -> moerl::Result<Call<B>> {
    let Size { vocabulary, chunk: rows, .. } = size;
    let mut chunk = Chunk::<B>::new(backend, stream, size)?;
    chunk.forward(backend, stream)?;
    let upstream = backend.upload(stream, &(0..rows).map(normal).collect::<Vec<f32>>())?;
    let mut d_logits = backend.allocate::<bf16>(stream, rows * vocabulary)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        (0..chunk.chunks()).try_for_each(|_| {
            let gradient = logprob::Gradient::Into {
                logits: Matrix::new(chunk.logits.view(), rows, vocabulary)?,
                d_logits: MatrixMut::new(d_logits.view_mut(), rows, vocabulary)?,
            };
            let mut call = logprob::Backward::new(gradient, chunk.saved.view());
            call.tokens = Some(Matrix::new(chunk.tokens.view(), rows, 1)?);
            call.d_logprobs = Some(upstream.view());
            call.d_entropy = Some(upstream.view());
            backend.logprob_backward(stream, &logprob::Config::default(), call)
        })
    }))
}

fn gspo<B: Measure + 'static>(backend: &B, stream: &B::Stream, size: Size) -> moerl::Result<Call<B>> {
    let tokens = size.tokens;
    // 16 answers, some far longer than others.
    let cuts = (0..=16).map(|i| (tokens as f64 * (f64::from(i) / 16.0).powf(1.5)) as usize);
    let offsets: Vec<i64> = cuts.map(|cut| cut as i64).collect();
    let plan = Plan::new(backend, stream, &Segments::from_offsets(&offsets)?)?;
    let old: Vec<f32> = (0..tokens).map(|u| -5.0 * hashed(u)).collect();
    let new: Vec<f32> = old.iter().enumerate().map(|(u, o)| o - 0.01 * hashed(u + tokens)).collect();
    let (old, new) = (backend.upload(stream, &old)?, backend.upload(stream, &new)?);
    let advantages = backend.upload(stream, &(0..16).map(normal).collect::<Vec<f32>>())?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let mut loss = backend.allocate::<f64>(stream, 1)?;
    let mut d_logprobs = backend.allocate::<f32>(stream, tokens)?;
    let mut workspace = backend.allocate::<u8>(stream, objective::workspace_bytes(&plan))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let batch = Batch {
            old_logprobs: Some(old.view()),
            loss_mask: Some(mask.view()),
            ..Batch::new(new.view(), Advantages::PerSegment(advantages.view()), Denominators::global(tokens as u64, 16))
        };
        let output = Output {
            loss: Some(loss.view_mut()),
            d_logprobs: Some(d_logprobs.view_mut()),
            ..Output::new(workspace.view_mut())
        };
        backend.objective(stream, &objective::Config::gspo(3e-4, 4e-4), &plan, batch, output)
    }))
}
