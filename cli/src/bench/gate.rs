//! Shapes of released routers: native choice, replay, and the gradient.

use std::collections::BTreeSet;

use moerl::Buffer;
use moerl::element::{Float, bf16};
use moerl::gate::{Backward, Config, Forward, Preset};
use moerl::memory::{Matrix, MatrixMut};

use super::case::{Call, Case, Floor, Scale, generate, normal};
use super::measure::Measure;

/// Presets with their experts and k.
const ROUTERS: [(Preset, usize, usize); 6] = [
    (Preset::Qwen3, 128, 8),
    (Preset::Qwen3_5, 256, 8),
    (Preset::DeepseekV3, 256, 8),
    (Preset::Glm5, 256, 8),
    (Preset::KimiK2, 384, 8),
    (Preset::Qwen3Next, 512, 10),
];

#[derive(Clone, Copy)]
struct Shape {
    preset: Preset,
    tokens: usize,
    experts: usize,
    k: usize,
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let tokens: &[usize] = if scale == Scale::Full { &[1, 64, 4096, 16_384, 65_536] } else { &[64] };
    let mut cases = Vec::new();
    for (preset, experts, k) in ROUTERS {
        for &tokens in tokens {
            let shape = Shape { preset, tokens, experts, k };
            cases.extend(of_type::<B, bf16>(shape));
            cases.extend(of_type::<B, f32>(shape));
        }
    }
    cases
}

fn of_type<B: Measure + 'static, T: Float>(shape: Shape) -> [Case<B>; 3] {
    let Shape { preset, tokens, experts, k } = shape;
    let (row, slots) = ((tokens * experts * T::ELEMENT.size()) as u64, (tokens * k) as u64);
    let bias = if Config::preset(preset).needs_selection_bias { 4 * experts as u64 } else { 0 };
    let sectors: usize =
        (0..tokens).map(|t| routes(shape, t).map(|e| e * T::ELEMENT.size() / 32).collect::<BTreeSet<_>>().len()).sum();
    let case = |operation: &str, read, written, prepare| Case {
        noun: "gate",
        operation: operation.into(),
        shape: format!("{preset} T={tokens} E={experts} k={k}"),
        element: T::ELEMENT,
        floor: Floor { read, written },
        prepare,
    };
    [
        case("forward, native", row + bias, 12 * slots, Box::new(move |b, s| forward::<B, T>(b, s, shape, false))),
        case(
            "forward, replay",
            2 * slots + 32 * sectors as u64,
            12 * slots,
            Box::new(move |b, s| forward::<B, T>(b, s, shape, true)),
        ),
        case("backward", 12 * slots, row, Box::new(move |b, s| backward::<B, T>(b, s, shape))),
    ]
}

/// k different experts of token t.
fn routes(shape: Shape, t: usize) -> impl Iterator<Item = usize> {
    let step = 2 * (t * 31 % (shape.experts / shape.k / 2)) + 1;
    (0..shape.k).map(move |j| (t * 17 + j * step) % shape.experts)
}

fn logits<T: Float>(shape: Shape) -> Vec<T> {
    generate(shape.tokens * shape.experts, |i| T::from_f32(2.0 * normal(i)))
}

fn forward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
    replay: bool,
) -> moerl::Result<Call<B>> {
    let Shape { preset, tokens, experts, k } = shape;
    let config = Config::preset(preset);
    let logits = backend.upload(stream, &logits::<T>(shape))?;
    let forced: Vec<u16> = (0..tokens).flat_map(|t| routes(shape, t)).map(|e| e as u16).collect();
    let forced = backend.upload(stream, &forced)?;
    let bias = backend.upload(stream, &(0..experts).map(|e| 0.1 * normal(e)).collect::<Vec<_>>())?;
    let mut ids = backend.allocate::<i32>(stream, tokens * k)?;
    let mut weights = backend.allocate::<f32>(stream, tokens * k)?;
    let mut selected = backend.allocate::<f32>(stream, tokens * k)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let weights = MatrixMut::new(weights.view_mut(), tokens, k)?;
        let mut call = Forward::new(Matrix::new(logits.view(), tokens, experts)?, ids.view_mut(), weights);
        if replay {
            call.routes = Matrix::new(forced.view(), tokens, k)?.into();
        }
        call.selection_bias = config.needs_selection_bias.then(|| bias.view());
        call.selected_logits = Some(selected.view_mut());
        backend.gate_forward(stream, &config, call)
    }))
}

fn backward<B: Measure + 'static, T: Float>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let Shape { preset, tokens, experts, k } = shape;
    let config = Config::preset(preset);
    let ids: Vec<i32> = (0..tokens).flat_map(|t| routes(shape, t)).map(|e| e as i32).collect();
    let selected = generate(tokens * k, |slot| 2.0 * normal(slot / k * experts + ids[slot] as usize));
    let (ids, selected) = (backend.upload(stream, &ids)?, backend.upload(stream, &selected)?);
    let upstream = backend.upload(stream, &generate(tokens * k, normal))?;
    let mut gradient = backend.allocate::<T>(stream, tokens * experts)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let upstream = Matrix::new(upstream.view(), tokens, k)?;
        let gradient = MatrixMut::new(gradient.view_mut(), tokens, experts)?;
        backend.gate_backward(stream, &config, Backward::new(upstream, ids.view(), selected.view(), gradient))
    }))
}
