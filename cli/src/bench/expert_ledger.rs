//! A layer's ledger, the advantages normalised by it, and the clip of each expert's gradient.

use moerl::Buffer;
use moerl::element::{Element, Float, bf16};
use moerl::expert_ledger::{
    Advantages, ClipScale, ExpertSums, Ledger, SquaredNorms, Tokens, ledger_workspace, norm_workspace,
};
use moerl::memory::Matrix;

use super::case::{Call, Case, Floor, Scale, generate, normal};
use super::measure::Measure;

const TOP_K: usize = 8;
/// Of a mean over layers.
const LAYERS: usize = 48;

#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    experts: usize,
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    // An expert's slice of a parameter: 768 × 2048 of Qwen3-30B-A3B.
    let (tokens, slice): (&[usize], _) =
        if scale == Scale::Full { (&[16_384, 65_536], 768 * 2048) } else { (&[300], 3000) };
    let shapes = tokens.iter().flat_map(|&tokens| [128, 256].map(|experts| Shape { tokens, experts }));
    let mut cases: Vec<Case<B>> = shapes.flat_map(of_layer).collect();
    cases.push(norms_case::<B, bf16>(128, slice));
    cases.push(norms_case::<B, f32>(128, slice));
    cases.push(clip_case(128));
    cases
}

fn of_layer<B: Measure + 'static>(shape: Shape) -> [Case<B>; 2] {
    let Shape { tokens, experts } = shape;
    // Ids, weights, an advantage and the mask.
    let of_tokens = (tokens * (8 * TOP_K + 5)) as u64;
    let (n, e) = (tokens as u64, experts as u64);
    let case = |operation: &str, read, written, prepare| Case {
        noun: "expert_ledger",
        operation: operation.into(),
        shape: format!("T={tokens} E={experts} k={TOP_K}"),
        element: Element::F32,
        floor: Floor { read, written },
        prepare,
    };
    [
        case("sums", of_tokens + 40 * e, 32 * e, Box::new(move |backend, stream| sums(backend, stream, shape))),
        case(
            "advantages",
            of_tokens + 4 * n + 16 * e,
            4 * n,
            Box::new(move |backend, stream| advantages(backend, stream, shape)),
        ),
    ]
}

/// The arrays of [`Tokens`].
struct Layer<B: Measure> {
    tokens: usize,
    ids: B::Buffer<i32>,
    weights: B::Buffer<f32>,
    advantages: B::Buffer<f32>,
    mask: B::Buffer<u8>,
}

impl<B: Measure> Layer<B> {
    fn new(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Self> {
        let Shape { tokens, experts } = shape;
        let id = |slot: usize| ((slot / TOP_K * 17 + slot % TOP_K * 3) % experts) as i32;
        Ok(Layer {
            tokens,
            ids: backend.upload(stream, &generate(tokens * TOP_K, id))?,
            weights: backend.upload(stream, &vec![1.0 / TOP_K as f32; tokens * TOP_K])?,
            advantages: backend.upload(stream, &generate(tokens, normal))?,
            mask: backend.upload(stream, &vec![1_u8; tokens])?,
        })
    }

    fn view(&self) -> moerl::Result<Tokens<'_, B::Memory>> {
        Ok(Tokens {
            topk_ids: self.ids.view(),
            topk_weights: Matrix::new(self.weights.view(), self.tokens, TOP_K)?,
            advantages: self.advantages.view(),
            loss_mask: Some(self.mask.view()),
        })
    }
}

fn sums<B: Measure + 'static>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let Shape { tokens, experts } = shape;
    let layer = Layer::new(backend, stream, shape)?;
    let shift = backend.allocate::<f64>(stream, experts)?;
    let mut sums = backend.allocate::<ExpertSums>(stream, experts)?;
    let mut workspace = backend.allocate::<ExpertSums>(stream, ledger_workspace(tokens, experts))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = Ledger {
            tokens: layer.view()?,
            shift: Some(shift.view()),
            sums: sums.view_mut(),
            nonfinite: None,
            workspace: workspace.view_mut(),
        };
        backend.expert_ledger(stream, call)
    }))
}

fn advantages<B: Measure + 'static>(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Call<B>> {
    let Shape { tokens, experts } = shape;
    let layer = Layer::new(backend, stream, shape)?;
    let mean = backend.allocate::<f64>(stream, experts)?;
    let inverse_deviation = backend.upload(stream, &vec![1.0_f64; experts])?;
    let mut normalized = backend.allocate::<f32>(stream, tokens)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = Advantages {
            tokens: layer.view()?,
            mean: mean.view(),
            inverse_deviation: inverse_deviation.view(),
            layers: LAYERS,
            clip: None,
            normalized: normalized.view_mut(),
        };
        backend.expert_advantages(stream, call)
    }))
}

fn norms_case<B: Measure + 'static, T: Float>(experts: usize, slice: usize) -> Case<B> {
    Case {
        noun: "expert_ledger",
        operation: "squared norms".into(),
        shape: format!("E={experts}, slices of {slice}"),
        element: T::ELEMENT,
        floor: Floor {
            read: (experts * slice * T::ELEMENT.size()) as u64 + 8 * experts as u64,
            written: 8 * experts as u64,
        },
        prepare: Box::new(move |backend, stream| {
            // Zeros: no branch depends on the numbers.
            let gradient = backend.allocate::<T>(stream, experts * slice)?;
            let mut squares = backend.allocate::<f64>(stream, experts)?;
            let mut workspace = backend.allocate::<f64>(stream, norm_workspace(experts, slice))?;
            Ok(Box::new(move |backend: &B, stream: &B::Stream| {
                let gradient = Matrix::new(gradient.view(), experts, slice)?;
                let (squares, workspace) = (squares.view_mut(), workspace.view_mut());
                backend.expert_squared_norms(stream, SquaredNorms { gradient, squares, workspace })
            }))
        }),
    }
}

fn clip_case<B: Measure + 'static>(experts: usize) -> Case<B> {
    Case {
        noun: "expert_ledger",
        operation: "clip scale".into(),
        shape: format!("E={experts}"),
        element: Element::F32,
        floor: Floor { read: 8 * experts as u64, written: 4 * experts as u64 },
        prepare: Box::new(move |backend, stream| {
            let squares = backend.upload(stream, &vec![2.0_f64; experts])?;
            let mut scale = backend.allocate::<f32>(stream, experts)?;
            Ok(Box::new(move |backend: &B, stream: &B::Stream| {
                let call = ClipScale { squares: squares.view(), clip: 1.0, scale: scale.view_mut() };
                backend.expert_clip_scale(stream, call)
            }))
        }),
    }
}
