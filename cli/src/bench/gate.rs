//! Shapes of released routers: native choice, replay, and the gradient; and, of one of them, what each further output or term costs.

use std::collections::BTreeSet;

use moerl::element::{Element, Float, bf16};
use moerl::gate::{Backward, Config, Forward, Output, Preset, ROW_COUNTS, ShiftFinish, Surrogate, Telemetry};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use super::case::{Call, Case, Floor, Prepare, Scale, generate, normal};
use super::export::Exporter;
use super::measure::Measure;
use crate::failure::Result;

/// A model's router, or a kind that none of these models has.
#[derive(Clone, Copy)]
enum Router {
    Model(Preset),
    /// Softmax over all experts: weights and gradient need the whole row.
    Softmax,
}

impl Router {
    fn name(self) -> &'static str {
        match self {
            Router::Model(preset) => preset.name(),
            Router::Softmax => "softmax",
        }
    }

    fn config(self, k: usize) -> Config {
        match self {
            Router::Model(preset) => Config::preset(preset),
            Router::Softmax => Config::softmax(k),
        }
    }
}

/// Routers with their experts and k.
const ROUTERS: [(Router, usize, usize); 7] = [
    (Router::Model(Preset::Qwen3), 128, 8),
    (Router::Model(Preset::Qwen3_5), 256, 8),
    (Router::Model(Preset::DeepseekV3), 256, 8),
    (Router::Model(Preset::Glm5), 256, 8),
    (Router::Model(Preset::KimiK2), 384, 8),
    (Router::Model(Preset::Qwen3Next), 512, 10),
    (Router::Softmax, 128, 8),
];

/// Layers whose router shift is added up.
const LAYERS: usize = 48;
/// Rows of an exported call.
const EXPORTED: usize = 32;

#[derive(Clone, Copy)]
struct Shape {
    router: Router,
    tokens: usize,
    experts: usize,
    k: usize,
}

impl Shape {
    fn name(self) -> String {
        let Shape { router, tokens, experts, k } = self;
        format!("{} T={tokens} E={experts} k={k}", router.name())
    }
}

/// What forward is asked for beside ids, weights and saved logits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// The choice as bytes, bits and a dense row of weights.
    Maps,
    /// How far the weights of the forced experts are from the recorded ones, and the experts' load.
    SlotTelemetry,
    /// How far the forced experts are from the native choice.
    RowTelemetry,
}

/// Which gradient.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradient {
    Dense,
    Compact,
    /// Added to what is there.
    Accumulated,
    WithSurrogate,
    /// With the gradient of a scale of each expert.
    WithExpertScale,
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    // Few rows, and as many as the kernels for many rows take.
    let (tokens, one): (&[usize], _) =
        if scale == Scale::Full { (&[1, 64, 4096, 16_384, 65_536], 16_384) } else { (&[4, 64], 64) };
    let mut cases = Vec::new();
    for (router, experts, k) in ROUTERS {
        for &tokens in tokens {
            let shape = Shape { router, tokens, experts, k };
            cases.extend(of_type::<B, bf16>(shape));
            cases.extend(of_type::<B, f32>(shape));
        }
    }
    let (router, experts, k) = ROUTERS[0];
    cases.extend(of_one::<B, bf16>(Shape { router, tokens: one, experts, k }));
    cases
}

fn case<B: Measure>(operation: &str, shape: Shape, element: Element, floor: Floor, prepare: Prepare<B>) -> Case<B> {
    Case { noun: "gate", operation: operation.into(), shape: shape.name(), element, floor, prepare }
}

fn row_bytes<T: Float>(shape: Shape) -> u64 {
    (shape.tokens * shape.experts * T::ELEMENT.size()) as u64
}

fn slots(shape: Shape) -> u64 {
    (shape.tokens * shape.k) as u64
}

fn of_type<B: Measure + 'static, T: Float>(shape: Shape) -> [Case<B>; 4] {
    let Shape { router, tokens, experts, k } = shape;
    let config = router.config(k);
    let (row, slots) = (row_bytes::<T>(shape), slots(shape));
    let bias = if config.needs_selection_bias { 4 * experts as u64 } else { 0 };
    // A softmax over all experts needs every logit, and saves its logarithm.
    let lse = if config.needs_lse() { 4 * tokens as u64 } else { 0 };
    let (replay, saved) = if config.needs_lse() { (row, row) } else { (touched::<T>(shape, 32), 0) };
    let forward = |name, forced, read| {
        let floor = Floor { read, written: 12 * slots + lse };
        let prepare = move |b: &B, s: &B::Stream| forward::<B, T>(b, s, shape, forced, Beside::Nothing);
        case(name, shape, T::ELEMENT, floor, Box::new(prepare))
    };
    let backward = |name, gradient, floor| {
        let prepare = move |b: &B, s: &B::Stream| backward::<B, T>(b, s, shape, gradient);
        case(name, shape, T::ELEMENT, floor, Box::new(prepare))
    };
    let fourth = if config.needs_lse() {
        // Which no compact gradient can hold.
        backward(
            "backward, accumulated",
            Gradient::Accumulated,
            Floor { read: 12 * slots + 2 * row + lse, written: row },
        )
    } else {
        backward("backward, compact", Gradient::Compact, Floor { read: 12 * slots, written: 4 * slots })
    };
    [
        forward("forward, native", false, row + bias),
        forward("forward, replay", true, 2 * slots + replay),
        backward("backward", Gradient::Dense, Floor { read: 12 * slots + saved + lse, written: row }),
        fourth,
    ]
}

/// What outputs and terms cost that most calls do without.
fn of_one<B: Measure + 'static, T: Float>(shape: Shape) -> Vec<Case<B>> {
    let Shape { tokens, experts, .. } = shape;
    let (row, slots, tokens, experts) = (row_bytes::<T>(shape), slots(shape), tokens as u64, experts as u64);
    let forward = |name, forced, beside, read, written| {
        let prepare = move |b: &B, s: &B::Stream| forward::<B, T>(b, s, shape, forced, beside);
        case(name, shape, T::ELEMENT, Floor { read, written: 12 * slots + written }, Box::new(prepare))
    };
    let backward = |name, gradient, read, written| {
        let prepare = move |b: &B, s: &B::Stream| backward::<B, T>(b, s, shape, gradient);
        case(name, shape, T::ELEMENT, Floor { read: 12 * slots + read, written }, Box::new(prepare))
    };
    let packs = touched::<T>(shape, 16);
    vec![
        forward("forward, native with maps", false, Beside::Maps, row, tokens * (5 * experts + experts / 8)),
        forward(
            "forward, replay with telemetry of slots",
            true,
            Beside::SlotTelemetry,
            6 * slots + touched::<T>(shape, 32),
            8 * tokens,
        ),
        forward("forward, replay with telemetry of rows", true, Beside::RowTelemetry, 2 * slots + row, 9 * tokens),
        backward("backward, accumulated", Gradient::Accumulated, packs, packs),
        backward("backward with surrogate", Gradient::WithSurrogate, row + 4 * tokens, row),
        backward("backward with expert scale", Gradient::WithExpertScale, 4 * experts, row + 4 * experts),
        case(
            "router shift",
            shape,
            Element::F32,
            Floor { read: 4 * tokens, written: 4 * tokens },
            Box::new(move |b, s| router_shift(b, s, shape)),
        ),
    ]
}

/// k different experts of token t.
fn routes(shape: Shape, t: usize) -> impl Iterator<Item = usize> {
    let step = 2 * (t * 31 % (shape.experts / shape.k / 2)) + 1;
    (0..shape.k).map(move |j| (t * 17 + j * step) % shape.experts)
}

/// Bytes of the aligned pieces of `piece` bytes that hold a slot of a row.
fn touched<T: Float>(shape: Shape, piece: usize) -> u64 {
    let pieces = |t| routes(shape, t).map(|e| e * T::ELEMENT.size() / piece).collect::<BTreeSet<_>>().len();
    (0..shape.tokens).map(pieces).sum::<usize>() as u64 * piece as u64
}

fn logits<T: Float>(shape: Shape) -> Vec<T> {
    generate(shape.tokens * shape.experts, |i| T::from_f32(2.0 * normal(i)))
}

fn forward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
    forced: bool,
    beside: Beside,
) -> moerl::Result<Call<B>> {
    let Shape { router, tokens, experts, k } = shape;
    let config = router.config(k);
    let logits = backend.upload(stream, &logits::<T>(shape))?;
    let recorded: Vec<u16> = (0..tokens).flat_map(|t| routes(shape, t)).map(|e| e as u16).collect();
    let recorded = backend.upload(stream, &recorded)?;
    let bias = backend.upload(stream, &(0..experts).map(|e| 0.1 * normal(e)).collect::<Vec<_>>())?;
    let mut ids = backend.allocate::<i32>(stream, tokens * k)?;
    let mut weights = backend.allocate::<f32>(stream, tokens * k)?;
    let mut selected = backend.allocate::<f32>(stream, tokens * k)?;
    let mut lse = backend.allocate::<f32>(stream, tokens)?;
    let mut further = Further::new(backend, stream, shape, beside)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let weights = MatrixMut::new(weights.view_mut(), tokens, k)?;
        let mut call = Forward::new(Matrix::new(logits.view(), tokens, experts)?, ids.view_mut(), weights);
        if forced {
            call.routes = Matrix::new(recorded.view(), tokens, k)?.into();
        }
        call.selection_bias = config.needs_selection_bias.then(|| bias.view());
        call.selected_logits = Some(selected.view_mut());
        call.lse = config.needs_lse().then(|| lse.view_mut());
        further.ask(&mut call)?;
        backend.gate_forward(stream, &config, call)
    }))
}

/// The arrays of what is asked for beside the rest.
struct Further<B: Measure> {
    shape: Shape,
    beside: Beside,
    /// `[T, E]`
    probs: B::Buffer<f32>,
    bytemap: B::Buffer<u8>,
    bitmap: B::Buffer<u8>,
    /// `[T, k]`
    recorded_weights: B::Buffer<f32>,
    /// `[T]`
    first: B::Buffer<f32>,
    second: B::Buffer<f32>,
    overlap: B::Buffer<u8>,
    counts: B::Buffer<u64>,
    row_counts: B::Buffer<u64>,
}

impl<B: Measure> Further<B> {
    fn new(backend: &B, stream: &B::Stream, shape: Shape, beside: Beside) -> moerl::Result<Self> {
        let Shape { tokens, experts, k, .. } = shape;
        let maps = if beside == Beside::Maps { tokens } else { 0 };
        let rows = if matches!(beside, Beside::SlotTelemetry | Beside::RowTelemetry) { tokens } else { 0 };
        Ok(Further {
            shape,
            beside,
            probs: backend.allocate(stream, maps * experts)?,
            bytemap: backend.allocate(stream, maps * experts)?,
            bitmap: backend.allocate(stream, maps * experts.div_ceil(8))?,
            recorded_weights: backend.upload(stream, &vec![1.0 / k as f32; rows * k])?,
            first: backend.allocate(stream, rows)?,
            second: backend.allocate(stream, rows)?,
            overlap: backend.allocate(stream, rows)?,
            counts: backend.allocate(stream, experts)?,
            row_counts: backend.allocate(stream, ROW_COUNTS)?,
        })
    }

    fn ask<'a>(&'a mut self, call: &mut Forward<'a, B::Memory>) -> moerl::Result<()> {
        let Shape { tokens, experts, k, .. } = self.shape;
        match self.beside {
            Beside::Nothing => {}
            Beside::Maps => {
                call.dense_probs = Some(MatrixMut::new(self.probs.view_mut(), tokens, experts)?);
                call.bytemap = Some(self.bytemap.view_mut());
                call.bitmap = Some(self.bitmap.view_mut());
            }
            Beside::SlotTelemetry => {
                call.telemetry = Some(Telemetry {
                    gate_l1: Some(self.first.view_mut()),
                    set_kl: Some(self.second.view_mut()),
                    counts: Some(self.counts.view_mut()),
                    row_counts: Some(self.row_counts.view_mut()),
                    recorded_weights: Some(Matrix::new(self.recorded_weights.view(), tokens, k)?),
                    ..Telemetry::default()
                });
            }
            Beside::RowTelemetry => {
                call.telemetry = Some(Telemetry {
                    overlap: Some(self.overlap.view_mut()),
                    margin: Some(self.first.view_mut()),
                    forced_mass: Some(self.second.view_mut()),
                    ..Telemetry::default()
                });
            }
        }
        Ok(())
    }
}

fn backward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
    gradient: Gradient,
) -> moerl::Result<Call<B>> {
    let Shape { router, tokens, experts, k } = shape;
    let config = router.config(k);
    let ids: Vec<i32> = (0..tokens).flat_map(|t| routes(shape, t)).map(|e| e as i32).collect();
    let selected = generate(tokens * k, |slot| 2.0 * normal(slot / k * experts + ids[slot] as usize));
    let (ids, selected) = (backend.upload(stream, &ids)?, backend.upload(stream, &selected)?);
    let upstream = backend.upload(stream, &generate(tokens * k, normal))?;
    let reads_rows = config.needs_lse() || gradient == Gradient::WithSurrogate;
    let logits = backend.upload(stream, &if reads_rows { logits::<T>(shape) } else { Vec::new() })?;
    let lse = backend.upload(stream, &vec![(experts as f32).ln() + 2.0; tokens])?;
    let advantages = backend.upload(stream, &generate(tokens, normal))?;
    let scale = backend.upload(stream, &vec![1.0_f32; experts])?;
    let is_compact = gradient == Gradient::Compact;
    let mut dense = backend.allocate::<T>(stream, if is_compact { 0 } else { tokens * experts })?;
    let mut compact = backend.allocate::<f32>(stream, if is_compact { tokens * k } else { 0 })?;
    let mut d_scale = backend.allocate::<f32>(stream, experts)?;
    let mut workspace = backend.allocate::<u8>(stream, Backward::<B::Memory>::workspace_bytes(tokens, experts))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let upstream = Matrix::new(upstream.view(), tokens, k)?;
        let mut call = if is_compact {
            Backward::compact(upstream, ids.view(), selected.view(), compact.view_mut(), experts)
        } else {
            let dense = MatrixMut::new(dense.view_mut(), tokens, experts)?;
            Backward::new(upstream, ids.view(), selected.view(), dense)
        };
        if reads_rows {
            call.router_logits = Some(Matrix::new(logits.view(), tokens, experts)?);
        }
        call.lse = config.needs_lse().then(|| lse.view());
        match gradient {
            Gradient::Dense | Gradient::Compact => {}
            Gradient::Accumulated => {
                call.output = match call.output {
                    Output::Dense(target) => Output::Accumulate(target),
                    output => output,
                };
            }
            Gradient::WithSurrogate => {
                let advantages = advantages.view();
                call.surrogate = Some(Surrogate { advantages, weights: None, coefficient: 1.0 / tokens as f32 });
            }
            Gradient::WithExpertScale => {
                call.expert_scale = Some(scale.view());
                call.d_expert_scale = Some(d_scale.view_mut());
                call.workspace = Some(workspace.view_mut());
            }
        }
        backend.gate_backward(stream, &config, call)
    }))
}

fn router_shift<B: Measure + 'static>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let shift = backend.upload(stream, &vec![0.5_f32; shape.tokens])?;
    let mut router_shift = backend.allocate::<f32>(stream, shape.tokens)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let (shift, router_shift) = (shift.view(), router_shift.view_mut());
        backend.gate_router_shift(stream, ShiftFinish { shift, layers: LAYERS, gamma_min: 0.8, router_shift })
    }))
}

/// Native choice, replay and dense gradient of every router.
///
/// # Errors
/// The backend's.
pub fn export<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    for (router, experts, k) in ROUTERS {
        let shape = Shape { router, tokens: EXPORTED, experts, k };
        export_type::<B, bf16>(to, shape)?;
        export_type::<B, f32>(to, shape)?;
    }
    Ok(())
}

/// Logits of row t whose k largest, and the next, all differ: which of two equal ones is chosen is everyone's own affair.
fn row_without_ties<T: Float>(Shape { experts, k, .. }: Shape, t: usize) -> Vec<T> {
    let row = |attempt: usize| -> Vec<T> {
        (0..experts).map(|e| T::from_f32(2.0 * normal((attempt * EXPORTED + t) * experts + e))).collect()
    };
    let is_clear = |row: &Vec<T>| {
        let mut sorted: Vec<f32> = row.iter().map(|x| x.to_f32()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted[..=k].windows(2).all(|pair| pair[0] > pair[1])
    };
    (0..).map(row).find(is_clear).expect("one of them")
}

fn export_type<B: Backend, T: Float>(to: &mut Exporter<'_, B>, shape: Shape) -> Result<()> {
    let Shape { router, tokens, experts, k } = shape;
    let config = router.config(k);
    let (rows, slots) = ([tokens, experts], [tokens, k]);
    let values: Vec<T> = (0..tokens).flat_map(|t| row_without_ties::<T>(shape, t)).collect();
    let recorded: Vec<i32> = (0..tokens).flat_map(|t| routes(shape, t)).map(|e| e as i32).collect();
    let bias: Vec<f32> = (0..experts).map(|e| 0.1 * normal(e)).collect();
    let (mut selected, mut lse) = (to.zeros::<f32>(tokens * k)?, to.zeros::<f32>(tokens)?);
    let mut chosen = Vec::new();
    // Native last: the gradient is that of its choice.
    for is_forced in [true, false] {
        to.call("gate", if is_forced { "forward, replay" } else { "forward, native" }, &shape.name(), T::ELEMENT);
        let logits = to.input("logits", &rows, &values)?;
        let forced = if is_forced { Some(to.input("ids", &slots, &recorded)?) } else { None };
        let bias = if config.needs_selection_bias { Some(to.input("bias", &[experts], &bias)?) } else { None };
        let (mut ids, mut weights) = (to.zeros::<i32>(tokens * k)?, to.zeros::<f32>(tokens * k)?);
        let mut call = Forward::new(
            Matrix::new(logits.view(), tokens, experts)?,
            ids.view_mut(),
            MatrixMut::new(weights.view_mut(), tokens, k)?,
        );
        if let Some(forced) = &forced {
            call.routes = Matrix::new(forced.view(), tokens, k)?.into();
        }
        call.selection_bias = bias.as_ref().map(|bias| bias.view());
        call.selected_logits = Some(selected.view_mut());
        call.lse = config.needs_lse().then(|| lse.view_mut());
        to.backend.gate_forward(&to.stream, &config, call)?;
        to.result("ids", &slots, &ids)?;
        to.result("weights", &slots, &weights)?;
        chosen = to.backend.download(&to.stream, ids.view())?;
    }
    to.call("gate", "backward", &shape.name(), T::ELEMENT);
    let logits = to.input("logits", &rows, &values)?;
    let ids = to.input("ids", &slots, &chosen)?;
    if config.needs_selection_bias {
        to.input("bias", &[experts], &bias)?;
    }
    let upstream = to.input("d_weights", &slots, &generate(tokens * k, normal))?;
    let mut d_logits = to.zeros::<T>(tokens * experts)?;
    let dense = MatrixMut::new(d_logits.view_mut(), tokens, experts)?;
    let mut call = Backward::new(Matrix::new(upstream.view(), tokens, k)?, ids.view(), selected.view(), dense);
    if config.needs_lse() {
        call.router_logits = Some(Matrix::new(logits.view(), tokens, experts)?);
        call.lse = Some(lse.view());
    }
    to.backend.gate_backward(&to.stream, &config, call)?;
    to.result("d_logits", &rows, &d_logits)
}
