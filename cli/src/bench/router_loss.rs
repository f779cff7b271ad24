//! Balance and z-loss of a router: sums and values over a batch or over each sequence, their gradient alone and within the gate's, and the
//! update of a selection bias.

use moerl::Buffer;
use moerl::element::{Element, Float, bf16};
use moerl::gate::{self, Output, Preset};
use moerl::memory::{Matrix, MatrixMut};
use moerl::objective::Segments;
use moerl::router_loss::{Backward, BiasUpdate, Config, Finish, Gradient, Partial, Plan};

use super::case::{Call, Case, Floor, Prepare, Scale, generate, normal};
use super::measure::Measure;

/// Presets with their experts and k: by softmax over the selected, by sigmoid and bias, and a wide one.
const ROUTERS: [(Preset, usize, usize); 3] =
    [(Preset::Qwen3, 128, 8), (Preset::DeepseekV3, 256, 8), (Preset::Qwen3Next, 512, 10)];

#[derive(Clone, Copy)]
struct Shape {
    preset: Preset,
    tokens: usize,
    /// Tokens of a segment over which the load is balanced: all of them, or those of a sequence.
    segment: usize,
    experts: usize,
    k: usize,
}

impl Shape {
    fn segments(&self) -> usize {
        self.tokens.div_ceil(self.segment)
    }

    fn config(&self) -> Config {
        let balance = if self.segments() == 1 { Config::switch(1e-2) } else { Config::sequence(1e-4) };
        Config { z: 1e-3, ..balance }
    }

    fn name(&self) -> String {
        let Shape { preset, tokens, segment, experts, k } = self;
        let over = if self.segments() == 1 { String::new() } else { format!(", sequences of {segment}") };
        format!("{preset} T={tokens} E={experts} k={k}{over}")
    }
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let (tokens, sequence): (&[usize], _) =
        if scale == Scale::Full { (&[16_384, 65_536], 2048) } else { (&[300], 100) };
    let mut cases = Vec::new();
    for (preset, experts, k) in ROUTERS {
        for &tokens in tokens {
            let batch = Shape { preset, tokens, segment: tokens, experts, k };
            cases.extend(of_type::<B, bf16>(batch));
            cases.extend(of_type::<B, f32>(batch));
            cases.extend(of_type::<B, bf16>(Shape { segment: sequence, ..batch }));
        }
        cases.push(bias_case(experts));
    }
    cases
}

fn of_type<B: Measure + 'static, T: Float>(shape: Shape) -> [Case<B>; 3] {
    let Shape { tokens, experts, k, .. } = shape;
    let row = (tokens * experts * T::ELEMENT.size()) as u64;
    let slots = (tokens * k) as u64;
    // Of each expert of each segment: its probability, its count, and the derivative.
    let of_experts = 20 * (shape.segments() * experts) as u64;
    let case = |operation: &str, read, written, prepare: Prepare<B>| Case {
        noun: "router_loss",
        operation: operation.into(),
        shape: shape.name(),
        element: T::ELEMENT,
        floor: Floor { read, written },
        prepare,
    };
    [
        case("partial, finish", row + 4 * slots, of_experts, Box::new(move |b, s| values::<B, T>(b, s, shape))),
        case("backward", row, row, Box::new(move |b, s| backward::<B, T>(b, s, shape))),
        case("gate backward", row + 12 * slots, row, Box::new(move |b, s| gate_backward::<B, T>(b, s, shape))),
    ]
}

/// What the three steps share.
struct Arrays<B: Measure, T: Float> {
    shape: Shape,
    router: gate::Config,
    plan: Plan<B>,
    logits: B::Buffer<T>,
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

impl<B: Measure, T: Float> Arrays<B, T> {
    fn new(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Self> {
        let Shape { preset, tokens, segment, experts, k } = shape;
        let lengths = (0..tokens).step_by(segment).map(|start| segment.min(tokens - start));
        let plan = Plan::new(backend, stream, &Segments::from_lengths(lengths)?)?;
        let segments = shape.segments();
        let ids: Vec<i32> = generate(tokens * k, |slot| (slot * 7 % experts) as i32);
        let bytes = Partial::<B::Memory>::workspace_bytes(&plan, experts);
        let bytes = bytes.max(Finish::<B::Memory>::workspace_bytes(&plan));
        Ok(Arrays {
            shape,
            router: gate::Config::preset(preset),
            plan,
            logits: backend.upload(stream, &generate(tokens * experts, |i| T::from_f32(2.0 * normal(i))))?,
            ids: backend.upload(stream, &ids)?,
            probabilities: backend.allocate(stream, segments * experts)?,
            counts: backend.allocate(stream, segments * experts)?,
            rows: backend.allocate(stream, segments)?,
            totals: backend.allocate(stream, 3)?,
            nonfinite: backend.allocate(stream, 1)?,
            values: backend.allocate(stream, 4)?,
            q: backend.allocate(stream, segments * experts)?,
            coefficients: backend.allocate(stream, 4)?,
            workspace: backend.allocate(stream, bytes)?,
        })
    }

    /// With what its gradient is multiplied by.
    fn finished(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Self> {
        let mut arrays = Arrays::new(backend, stream, shape)?;
        arrays.values(backend, stream)?;
        Ok(arrays)
    }

    fn logits(&self) -> moerl::Result<Matrix<'_, B::Memory>> {
        Matrix::new(self.logits.view(), self.shape.tokens, self.shape.experts)
    }

    fn regularizer(&self) -> Gradient<'_, B::Memory> {
        Gradient::new(&self.plan, self.q.view(), self.coefficients.view())
    }

    fn values(&mut self, backend: &B, stream: &B::Stream) -> moerl::Result<()> {
        let Shape { tokens, experts, .. } = self.shape;
        let config = self.shape.config();
        let partial = Partial {
            router_logits: Matrix::new(self.logits.view(), tokens, experts)?,
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
        backend.router_loss_partial(stream, &self.router, &config, &self.plan, partial)?;
        let finish = Finish {
            experts,
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
        backend.router_loss_finish(stream, &self.router, &config, &self.plan, finish)
    }
}

fn values<B: Measure + 'static, T: Float>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let mut arrays = Arrays::<B, T>::new(backend, stream, shape)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| arrays.values(backend, stream)))
}

/// Where the gate has no gradient of its own.
fn backward<B: Measure + 'static, T: Float>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let Shape { tokens, experts, .. } = shape;
    let arrays = Arrays::<B, T>::finished(backend, stream, shape)?;
    let mut gradient = backend.allocate::<T>(stream, tokens * experts)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = Backward {
            router_logits: arrays.logits()?,
            regularizer: arrays.regularizer(),
            topk_ids: None,
            selected_logits: None,
            token_mask: None,
            row_count: None,
            output: Output::Dense(MatrixMut::new(gradient.view_mut(), tokens, experts)?),
        };
        backend.router_loss_backward(stream, &arrays.router, call)
    }))
}

/// In the same write as the gate's gradient.
fn gate_backward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
) -> moerl::Result<Call<B>> {
    let Shape { tokens, experts, k, .. } = shape;
    let arrays = Arrays::<B, T>::finished(backend, stream, shape)?;
    let selected = backend.upload(stream, &generate(tokens * k, normal))?;
    let upstream = backend.upload(stream, &generate(tokens * k, |slot| normal(slot + 1)))?;
    let mut gradient = backend.allocate::<T>(stream, tokens * experts)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let upstream = Matrix::new(upstream.view(), tokens, k)?;
        let gradient = MatrixMut::new(gradient.view_mut(), tokens, experts)?;
        let mut call = gate::Backward::new(upstream, arrays.ids.view(), selected.view(), gradient);
        call.router_logits = Some(arrays.logits()?);
        call.regularizer = Some(arrays.regularizer());
        backend.gate_backward(stream, &arrays.router, call)
    }))
}

fn bias_case<B: Measure + 'static>(experts: usize) -> Case<B> {
    Case {
        noun: "router_loss",
        operation: "bias update".into(),
        shape: format!("E={experts}"),
        element: Element::F32,
        floor: Floor { read: 12 * experts as u64, written: 4 * experts as u64 },
        prepare: Box::new(move |backend, stream| {
            let counts = backend.upload(stream, &(0..experts as u64).collect::<Vec<_>>())?;
            let mut bias = backend.allocate::<f32>(stream, experts)?;
            Ok(Box::new(move |backend: &B, stream: &B::Stream| {
                let call = BiasUpdate { counts: counts.view(), selection_bias: bias.view_mut(), step: 1e-3 };
                backend.router_bias_update(stream, call)
            }))
        }),
    }
}
