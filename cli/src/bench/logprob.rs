//! Vocabularies of released models: forward, and backward with none, most and all of the rows clipped.

use moerl::Buffer;
use moerl::element::{Float, bf16};
use moerl::logprob::{Backward, Config, Forward, Gradient, Partial, workspace_bytes};
use moerl::memory::{Matrix, MatrixMut};

use super::case::{Call, Case, Floor, Scale, normal};
use super::measure::Measure;

/// 50257 is odd, so that almost no row begins at a 16-byte boundary.
const VOCABULARIES: [usize; 5] = [32_000, 50_257, 128_256, 151_936, 262_144];
/// Rows of a training micro-batch.
const ROWS: usize = 8192;
/// Rows of a decoding step, where latency is what counts.
const FEW: [usize; 3] = [1, 16, 128];
/// Shares of rows without a gradient, in per cent.
const CLIPPED: [usize; 3] = [0, 90, 100];

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    vocabulary: usize,
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let mut cases = Vec::new();
    let shapes = match scale {
        Scale::Full => VOCABULARIES.map(|vocabulary| Shape { rows: ROWS, vocabulary }).to_vec(),
        Scale::Small => [32_000, 50_257].map(|vocabulary| Shape { rows: 10, vocabulary }).to_vec(),
    };
    for shape in shapes {
        cases.extend(training::<B, bf16>(shape));
        cases.extend(training::<B, f32>(shape));
    }
    let few: &[usize] = if scale == Scale::Full { &FEW } else { &FEW[..1] };
    cases.extend(few.iter().map(|&rows| forward_case::<B, bf16>(Shape { rows, vocabulary: 151_936 })));
    cases
}

fn bytes<T: Float>(shape: Shape) -> u64 {
    (shape.rows * shape.vocabulary * T::ELEMENT.size()) as u64
}

fn name(shape: Shape) -> String {
    format!("N={} V={}", shape.rows, shape.vocabulary)
}

fn forward_case<B: Measure + 'static, T: Float>(shape: Shape) -> Case<B> {
    let rows = shape.rows as u64;
    Case {
        noun: "logprob",
        operation: "forward".into(),
        shape: name(shape),
        element: T::ELEMENT,
        floor: Floor { read: bytes::<T>(shape) + 4 * rows, written: (4 + 4 + 16) * rows },
        prepare: Box::new(move |backend, stream| forward::<B, T>(backend, stream, shape)),
    }
}

fn training<B: Measure + 'static, T: Float>(shape: Shape) -> Vec<Case<B>> {
    let mut cases = vec![forward_case::<B, T>(shape)];
    for clipped in CLIPPED {
        let live = (0..shape.rows).filter(|&row| is_live(row, clipped)).count() as u64;
        let row = (shape.vocabulary * T::ELEMENT.size()) as u64;
        cases.push(Case {
            noun: "logprob",
            operation: format!("backward, {clipped} % of the rows without a gradient"),
            shape: name(shape),
            element: T::ELEMENT,
            floor: Floor { read: live * (row + 16 + 4) + 8 * shape.rows as u64, written: bytes::<T>(shape) },
            prepare: Box::new(move |backend, stream| backward::<B, T>(backend, stream, shape, clipped)),
        });
    }
    cases
}

/// Spread over the rows without a pattern of their own.
fn is_live(row: usize, clipped: usize) -> bool {
    row * 61 % 100 >= clipped
}

/// One row, again and again: no branch of a kernel depends on the numbers.
fn logits<B: Measure, T: Float>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<B::Buffer<T>> {
    let row: Vec<T> = (0..shape.vocabulary).map(|j| T::from_f32(3.0 * normal(j))).collect();
    backend.repeated(stream, &row, shape.rows)
}

fn tokens(shape: Shape) -> Vec<i32> {
    (0..shape.rows).map(|row| (row * 31 % shape.vocabulary) as i32).collect()
}

fn forward<B: Measure + 'static, T: Float>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let Shape { rows, vocabulary } = shape;
    let logits = logits::<B, T>(backend, stream, shape)?;
    let tokens = backend.upload(stream, &tokens(shape))?;
    let mut logprobs = backend.allocate::<f32>(stream, rows)?;
    let mut entropy = backend.allocate::<f32>(stream, rows)?;
    let mut saved = backend.allocate::<Partial>(stream, rows)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(rows, vocabulary))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let mut call = Forward::new(Matrix::new(logits.view(), rows, vocabulary)?);
        call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
        call.logprobs = Some(logprobs.view_mut());
        call.entropy = Some(entropy.view_mut());
        call.saved = Some(saved.view_mut());
        call.workspace = Some(workspace.view_mut());
        backend.logprob_forward(stream, &Config::default(), call)
    }))
}

fn backward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
    clipped: usize,
) -> moerl::Result<Call<B>> {
    let Shape { rows, vocabulary } = shape;
    let logits = logits::<B, T>(backend, stream, shape)?;
    let tokens = backend.upload(stream, &tokens(shape))?;
    let upstream: Vec<f32> = (0..rows).map(|row| f32::from(u8::from(is_live(row, clipped)))).collect();
    let upstream = backend.upload(stream, &upstream)?;
    let mut saved = backend.allocate::<Partial>(stream, rows)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(rows, vocabulary))?;
    let mut call = Forward::new(Matrix::new(logits.view(), rows, vocabulary)?);
    call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
    call.saved = Some(saved.view_mut());
    call.workspace = Some(workspace.view_mut());
    backend.logprob_forward(stream, &Config::default(), call)?;
    let mut d_logits = backend.allocate::<T>(stream, rows * vocabulary)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let gradient = Gradient::Into {
            logits: Matrix::new(logits.view(), rows, vocabulary)?,
            d_logits: MatrixMut::new(d_logits.view_mut(), rows, vocabulary)?,
        };
        let mut call = Backward::new(gradient, saved.view());
        call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
        call.d_logprobs = Some(upstream.view());
        call.d_entropy = Some(upstream.view());
        backend.logprob_backward(stream, &Config::default(), call)
    }))
}
