//! Calls on any backend from plain vectors.

use std::ops::Range;

use moerl::element::{Element, bf16};
use moerl::error::Fault;
use moerl::linear_logprob::{Chunk, Config, Gradients, Head, Projection, Shape, WeightGradient};
use moerl::logprob::{self, Backward, Forward, KeepSets, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Error};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::common::formulas;
pub use crate::common::formulas::exact;
use crate::common::is_sanitized;
pub use crate::common::{canonical, normal};

pub const HEADS: [Head; 3] = [Head::Bf16Logits, Head::F32Logits, Head::F32Weights];

/// The arguments of a call. Hidden states and weight are bf16 values, whatever type they are handed over in, so that TF32 holds them too.
#[derive(Clone, Debug)]
pub struct Case {
    pub config: Config,
    pub shape: Shape,
    /// `[rows, hidden]`.
    pub hidden: Vec<f32>,
    /// `[vocabulary, hidden]`.
    pub weight: Vec<f32>,
    /// `[rows, ids]`.
    pub tokens: Vec<i32>,
    pub ids: usize,
    pub needed: Option<Vec<Range<usize>>>,
    pub temperature: Option<Vec<f32>>,
    pub loss_mask: Option<Vec<u8>>,
    pub keep: Option<(Vec<i32>, Vec<i64>)>,
}

pub fn shape(rows: usize, hidden: usize, vocabulary: usize) -> Shape {
    Shape { rows, hidden, vocabulary }
}

/// Chunks of so many rows; little for the products to work in, as tests make many workspaces.
pub fn config(head: Head, chunk_rows: usize) -> Config {
    Config { head, chunk: Chunk::Rows(chunk_rows), product_workspace: 1 << 20, ..Config::default() }
}

pub fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

impl Case {
    /// Logits of standard deviation 2.
    pub fn random(rng: &mut StdRng, config: Config, shape: Shape) -> Case {
        let scale = 2.0 / (shape.hidden as f32).sqrt();
        let mut some = |n: usize, scale: f32| (0..n).map(|_| rounded(scale * normal(rng))).collect::<Vec<f32>>();
        let (hidden, weight) = (some(shape.rows * shape.hidden, 1.0), some(shape.vocabulary * shape.hidden, scale));
        let tokens = (0..shape.rows).map(|_| rng.random_range(0..shape.vocabulary as i32)).collect();
        Case { hidden, weight, tokens, ..Case::empty(config, shape) }
    }

    /// Row r of the logits is exactly column r mod H of the weight.
    pub fn selecting(rng: &mut StdRng, config: Config, shape: Shape) -> Case {
        let mut case = Case::random(rng, config, shape);
        case.hidden = vec![0.0; shape.rows * shape.hidden];
        for r in 0..shape.rows {
            case.hidden[r * shape.hidden + r % shape.hidden] = 1.0;
        }
        case.weight.iter_mut().for_each(|w| *w = rounded(8.0 * *w));
        case
    }

    fn empty(config: Config, shape: Shape) -> Case {
        Case {
            config,
            shape,
            hidden: Vec::new(),
            weight: Vec::new(),
            tokens: Vec::new(),
            ids: 1,
            needed: None,
            temperature: None,
            loss_mask: None,
            keep: None,
        }
    }

    /// The first rows alone.
    pub fn first(&self, rows: usize) -> Case {
        Case {
            shape: Shape { rows, ..self.shape },
            hidden: self.hidden[..rows * self.shape.hidden].to_vec(),
            tokens: self.tokens[..rows * self.ids].to_vec(),
            temperature: self.temperature.as_ref().map(|t| t[..rows].to_vec()),
            loss_mask: self.loss_mask.as_ref().map(|m| m[..rows].to_vec()),
            keep: self
                .keep
                .as_ref()
                .map(|(ids, offsets)| (ids[..offsets[rows] as usize].to_vec(), offsets[..=rows].to_vec())),
            ..self.clone()
        }
    }

    pub fn with(&self, config: Config) -> Case {
        Case { config, ..self.clone() }
    }

    pub fn is_absent(&self, row: usize) -> bool {
        self.loss_mask.as_ref().is_some_and(|mask| mask[row] == 0)
            || self.needed.as_ref().is_some_and(|needed| !needed.iter().any(|range| range.contains(&row)))
    }

    pub fn hidden_row(&self, row: usize) -> &[f32] {
        &self.hidden[row * self.shape.hidden..][..self.shape.hidden]
    }

    pub fn weight_row(&self, token: usize) -> &[f32] {
        &self.weight[token * self.shape.hidden..][..self.shape.hidden]
    }

    /// A row's logits in f64, rounded once to the head's type; and the sum of the factors' magnitudes of the largest.
    pub fn logits(&self, row: usize) -> (Vec<f64>, f64) {
        let (products, magnitude) = self.products(row);
        (products.into_iter().map(|x| self.stored(x)).collect(), magnitude)
    }

    /// Before they are rounded.
    pub fn products(&self, row: usize) -> (Vec<f64>, f64) {
        let mut magnitude = 0.0_f64;
        let logits = (0..self.shape.vocabulary)
            .map(|token| {
                let products = self.hidden_row(row).iter().zip(self.weight_row(token));
                let products: Vec<f64> = products.map(|(h, w)| f64::from(*h) * f64::from(*w)).collect();
                magnitude = magnitude.max(products.iter().map(|p| p.abs()).sum());
                products.iter().sum()
            })
            .collect();
        (logits, magnitude)
    }

    /// A logit as the head stores it.
    pub fn stored(&self, x: f64) -> f64 {
        match self.config.head.logits() {
            Element::Bf16 => f64::from(rounded(x as f32)),
            _ => f64::from(x as f32),
        }
    }

    pub fn temperature_of(&self, row: usize) -> f64 {
        f64::from(self.temperature.as_ref().map_or(self.config.logprob.temperature, |t| t[row]))
    }
}

/// What a forward call wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    pub logprobs: Vec<f32>,
    pub entropy: Vec<f32>,
    pub lse: Vec<f32>,
    pub sum_p2: Vec<f32>,
    pub rank: Vec<i32>,
    pub argmax: Vec<i32>,
    pub saved: Vec<Partial>,
    pub kept_logprobs: Vec<f32>,
    pub kept_entropy: Vec<f32>,
    pub kept_mass: Vec<f32>,
    pub kept_saved: Vec<Partial>,
    pub label_added: u64,
    pub fault: Option<Fault>,
}

impl Outputs {
    /// Every bit of a row, NaN being one value.
    pub fn row_bits(&self, r: usize) -> Vec<u32> {
        let ids = self.logprobs.len() / self.entropy.len();
        let of_ids = r * ids..(r + 1) * ids;
        let mut floats = vec![
            self.entropy[r],
            self.lse[r],
            self.sum_p2[r],
            self.kept_logprobs[r],
            self.kept_entropy[r],
            self.kept_mass[r],
        ];
        floats.extend(&self.logprobs[of_ids.clone()]);
        for record in [self.saved[r], self.kept_saved[r]] {
            floats.extend([record.max_logit, record.sum, record.weighted, record.label]);
        }
        let mut bits: Vec<u32> = canonical(&floats).collect();
        bits.extend(self.rank[of_ids].iter().map(|&rank| rank as u32));
        bits.push(self.argmax[r] as u32);
        bits
    }
}

/// What arrays hold before a call.
pub const BEFORE: f32 = -77.0;

/// The hidden states or the weight on a backend, in the head's type.
pub enum Stored<B: Backend> {
    Narrow(B::Buffer<bf16>),
    Wide(B::Buffer<f32>),
}

impl<B: Backend> Stored<B> {
    pub fn new(backend: &B, stream: &B::Stream, element: Element, values: &[f32]) -> Result<Self, Error> {
        Ok(match element {
            Element::Bf16 => {
                let narrow: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                Stored::Narrow(backend.upload(stream, &narrow)?)
            }
            _ => Stored::Wide(backend.upload(stream, values)?),
        })
    }

    pub fn matrix(&self, rows: usize, columns: usize) -> Result<Matrix<'_, B::Memory>, Error> {
        match self {
            Stored::Narrow(buffer) => Matrix::new(buffer.view(), rows, columns),
            Stored::Wide(buffer) => Matrix::new(buffer.view(), rows, columns),
        }
    }

    pub fn matrix_mut(&mut self, rows: usize, columns: usize) -> Result<MatrixMut<'_, B::Memory>, Error> {
        match self {
            Stored::Narrow(buffer) => MatrixMut::new(buffer.view_mut(), rows, columns),
            Stored::Wide(buffer) => MatrixMut::new(buffer.view_mut(), rows, columns),
        }
    }

    pub fn download(&self, backend: &B, stream: &B::Stream) -> Result<Vec<f32>, Error> {
        Ok(match self {
            Stored::Narrow(buffer) => backend.download(stream, buffer.view())?.iter().map(|x| x.to_f32()).collect(),
            Stored::Wide(buffer) => backend.download(stream, buffer.view())?,
        })
    }
}

/// Everything that a forward call can write, on hidden states or on their logits.
fn run_forward<B: Backend>(backend: &B, case: &Case, is_linear: bool) -> Result<Outputs, Error> {
    let stream = backend.stream()?;
    let Shape { rows, hidden: width, vocabulary } = case.shape;
    let tokens = backend.upload(&stream, &case.tokens)?;
    let temperature = case.temperature.as_ref().map(|t| backend.upload(&stream, t)).transpose()?;
    let loss_mask = case.loss_mask.as_ref().map(|m| backend.upload(&stream, m)).transpose()?;
    let keep = case
        .keep
        .as_ref()
        .map(|(ids, offsets)| Ok::<_, Error>((backend.upload(&stream, ids)?, backend.upload(&stream, offsets)?)));
    let keep = keep.transpose()?;
    let mut floats = Vec::new();
    for len in [rows * case.ids, rows, rows, rows, rows, rows, rows] {
        floats.push(backend.upload(&stream, &vec![BEFORE; len])?);
    }
    let record = Partial { label: BEFORE, ..bytemuck::Zeroable::zeroed() };
    let mut saved = backend.upload(&stream, &vec![record; rows])?;
    let mut kept_saved = backend.upload(&stream, &vec![record; rows])?;
    let mut rank = backend.upload(&stream, &vec![BEFORE as i32; rows * case.ids])?;
    let mut argmax = backend.upload(&stream, &vec![BEFORE as i32; rows])?;
    let mut label_added = backend.allocate::<u64>(&stream, 1)?;
    let mut errors = backend.error_word(&stream)?;

    {
        let [logprobs, entropy, lse, sum_p2, kept_logprobs, kept_entropy, kept_mass] = &mut floats[..] else {
            unreachable!()
        };
        // The same for both kinds of call.
        macro_rules! fill {
            ($call:ident) => {
                $call.tokens = Some(Matrix::new(tokens.view(), rows, case.ids)?);
                $call.temperature = temperature.as_ref().map(Buffer::view);
                $call.loss_mask = loss_mask.as_ref().map(Buffer::view);
                $call.keep = keep.as_ref().map(|(ids, offsets)| KeepSets { ids: ids.view(), offsets: offsets.view() });
                $call.logprobs = Some(logprobs.view_mut());
                $call.entropy = Some(entropy.view_mut());
                $call.lse = Some(lse.view_mut());
                $call.sum_p2 = Some(sum_p2.view_mut());
                $call.rank = Some(rank.view_mut());
                $call.argmax = Some(argmax.view_mut());
                $call.saved = Some(saved.view_mut());
                if case.keep.is_some() {
                    $call.kept_logprobs = Some(kept_logprobs.view_mut());
                    $call.kept_entropy = Some(kept_entropy.view_mut());
                    $call.kept_mass = Some(kept_mass.view_mut());
                    $call.kept_saved = Some(kept_saved.view_mut());
                    $call.label_added = Some(label_added.view_mut());
                }
                $call.errors = Some(errors.view_mut());
                $call.tag = 7;
            };
        }
        if is_linear {
            let hidden = Stored::<B>::new(backend, &stream, case.config.head.operand(), &case.hidden)?;
            let weight = Stored::<B>::new(backend, &stream, case.config.head.operand(), &case.weight)?;
            let bytes = case.config.forward_footprint(&case.shape).workspace();
            let mut workspace = backend.allocate::<u8>(&stream, bytes)?;
            let projection = Projection {
                rows: case.needed.as_deref(),
                ..Projection::new(hidden.matrix(rows, width)?, weight.matrix(vocabulary, width)?, workspace.view_mut())
            };
            let mut call = Forward::new(projection);
            fill!(call);
            backend.linear_logprob_forward(&stream, &case.config, call)?;
            backend.synchronize(&stream)?;
        } else {
            let logits: Vec<f32> = (0..rows).flat_map(|r| case.logits(r).0).map(|x| x as f32).collect();
            let logits = Stored::<B>::new(backend, &stream, case.config.head.logits(), &logits)?;
            let mut call = Forward::new(logits.matrix(rows, vocabulary)?);
            fill!(call);
            backend.logprob_forward(&stream, &case.config.logprob, call)?;
            backend.synchronize(&stream)?;
        }
    }
    let fault = match backend.check(&stream, &mut errors) {
        Ok(()) => None,
        Err(Error::Data(fault)) => Some(fault),
        Err(other) => return Err(other),
    };
    let mut fetched = floats.iter().map(|buffer| backend.download(&stream, buffer.view()));
    let mut take = || fetched.next().expect("an output");
    Ok(Outputs {
        logprobs: take()?,
        entropy: take()?,
        lse: take()?,
        sum_p2: take()?,
        kept_logprobs: take()?,
        kept_entropy: take()?,
        kept_mass: take()?,
        rank: backend.download(&stream, rank.view())?,
        argmax: backend.download(&stream, argmax.view())?,
        saved: backend.download(&stream, saved.view())?,
        kept_saved: backend.download(&stream, kept_saved.view())?,
        label_added: backend.download(&stream, label_added.view())?[0],
        fault,
    })
}

pub fn forward<B: Backend>(backend: &B, case: &Case) -> Outputs {
    run_forward(backend, case, true).expect("a valid call")
}

/// [`logprob`](moerl::logprob) on the logits of the case, all at once.
pub fn forward_of_logits<B: Backend>(backend: &B, case: &Case) -> Outputs {
    run_forward(backend, case, false).expect("a valid call")
}

/// Upstream gradients.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `[rows, ids]`.
    pub logprobs: Vec<f32>,
    pub entropy: Vec<f32>,
    pub lse: Vec<f32>,
}

impl Upstream {
    pub fn random(rng: &mut StdRng, case: &Case) -> Upstream {
        let rows = case.shape.rows;
        let mut some = |n: usize, scale: f32| (0..n).map(|_| scale * normal(rng)).collect();
        Upstream { logprobs: some(rows * case.ids, 1.0), entropy: some(rows, 0.3), lse: some(rows, 0.1) }
    }
}

/// Where the weight's gradient goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightTarget {
    /// Rounded to the weight's type.
    Rounded,
    /// Written in f32.
    Sum,
    /// Added to [`BEFORE`].
    Added,
}

/// The gradients of hidden states, in this type, and of the weight.
pub fn backward<B: Backend>(
    backend: &B,
    case: &Case,
    saved: &[Partial],
    up: &Upstream,
    d_hidden_element: Element,
    target: WeightTarget,
) -> (Vec<f32>, Vec<f32>) {
    try_backward(backend, case, saved, up, d_hidden_element, target).expect("a valid call")
}

pub fn try_backward<B: Backend>(
    backend: &B,
    case: &Case,
    saved: &[Partial],
    up: &Upstream,
    d_hidden_element: Element,
    target: WeightTarget,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let stream = backend.stream()?;
    let Shape { rows, hidden: width, vocabulary } = case.shape;
    let operand = case.config.head.operand();
    let d_weight_element = if target == WeightTarget::Rounded { operand } else { Element::F32 };
    let hidden = Stored::<B>::new(backend, &stream, operand, &case.hidden)?;
    let weight = Stored::<B>::new(backend, &stream, operand, &case.weight)?;
    let mut d_hidden = Stored::<B>::new(backend, &stream, d_hidden_element, &vec![BEFORE; rows * width])?;
    let mut d_weight = Stored::<B>::new(backend, &stream, d_weight_element, &vec![BEFORE; vocabulary * width])?;
    let tokens = backend.upload(&stream, &case.tokens)?;
    let saved = backend.upload(&stream, saved)?;
    let temperature = case.temperature.as_ref().map(|t| backend.upload(&stream, t)).transpose()?;
    let loss_mask = case.loss_mask.as_ref().map(|m| backend.upload(&stream, m)).transpose()?;
    let (d_logprobs, d_entropy, d_lse) = (
        backend.upload(&stream, &up.logprobs)?,
        backend.upload(&stream, &up.entropy)?,
        backend.upload(&stream, &up.lse)?,
    );
    let footprint = case.config.backward_footprint(&case.shape, Some(d_hidden_element), Some(d_weight_element));
    let mut workspace = backend.allocate::<u8>(&stream, footprint.workspace())?;
    {
        let projection = Projection {
            rows: case.needed.as_deref(),
            ..Projection::new(hidden.matrix(rows, width)?, weight.matrix(vocabulary, width)?, workspace.view_mut())
        };
        let d_weight = d_weight.matrix_mut(vocabulary, width)?;
        let gradients = Gradients {
            d_hidden: Some(d_hidden.matrix_mut(rows, width)?),
            d_weight: Some(match target {
                WeightTarget::Added => WeightGradient::Added(d_weight),
                _ => WeightGradient::Written(d_weight),
            }),
            ..Gradients::new(projection)
        };
        let mut call = Backward::new(gradients, saved.view());
        call.tokens = Some(Matrix::new(tokens.view(), rows, case.ids)?);
        call.temperature = temperature.as_ref().map(Buffer::view);
        call.loss_mask = loss_mask.as_ref().map(Buffer::view);
        call.d_logprobs = Some(d_logprobs.view());
        call.d_entropy = Some(d_entropy.view());
        call.d_lse = Some(d_lse.view());
        backend.linear_logprob_backward(&stream, &case.config, call)?;
        backend.synchronize(&stream)?;
    }
    Ok((d_hidden.download(backend, &stream)?, d_weight.download(backend, &stream)?))
}

/// The gradient of a row's logits in f64, and the scale of its terms: `[V]` each.
pub fn exact_gradient(case: &Case, row: usize, up: &Upstream) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(case.ids, 1);
    if case.is_absent(row) {
        return (vec![0.0; case.shape.vocabulary], vec![0.0; case.shape.vocabulary]);
    }
    let token = Some(case.tokens[row] as usize);
    let up = [up.logprobs[row], up.entropy[row], up.lse[row]].map(f64::from);
    formulas::exact_gradient(&case.logits(row).0, case.temperature_of(row), token, up)
}

/// Records of a call that only needs them.
pub fn saved<B: Backend>(backend: &B, case: &Case) -> Vec<Partial> {
    forward(backend, case).saved
}

/// True where thousands of rows would take minutes: the kernels emulated under a sanitizer. Fewer rows reach the same lines.
pub fn is_slow<B: Backend>(backend: &B) -> bool {
    backend.name() == "emulator" && is_sanitized()
}

/// True for a backend that takes f32 factors as TF32.
pub fn takes_tf32<B: Backend>(backend: &B) -> bool {
    backend.name() == "cuda"
}

/// As plain logits would be called.
pub fn at_temperature(temperature: f32) -> logprob::Config {
    logprob::Config::at_temperature(temperature)
}
