//! A gate problem in plain vectors, and its way through any backend.

use moerl::element::{Element, Float, Scalar, bf16, f16};
use moerl::error::Fault;
use moerl::gate::{Backward, Config, Forced, Forward, Routes, Telemetry};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Error};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};

use crate::common;

/// Recorded ids `[rows, k]` inside a wider array.
#[derive(Clone, Debug)]
pub struct Tape {
    pub element: Element,
    pub array: Vec<i64>,
    pub first: usize,
    pub stride: usize,
    pub rows: usize,
    pub row_index: Option<Vec<i32>>,
    pub row_mode: Option<Vec<u8>>,
    pub has_sentinel: bool,
    pub zeros_are_missing: bool,
}

impl Tape {
    /// These ids, row after row.
    pub fn new(element: Element, ids: impl IntoIterator<Item = i64>, k: usize) -> Tape {
        let array: Vec<i64> = ids.into_iter().collect();
        Tape {
            element,
            rows: array.len() / k,
            array,
            first: 0,
            stride: k,
            row_index: None,
            row_mode: None,
            has_sentinel: false,
            zeros_are_missing: false,
        }
    }
}

/// Everything that a forward call takes. `logits` has `stride` elements a row.
#[derive(Clone, Debug)]
pub struct Problem<T> {
    pub config: Config,
    pub tokens: usize,
    pub experts: usize,
    pub k: usize,
    pub logits: Vec<T>,
    pub first: usize,
    pub stride: usize,
    pub bias: Option<Vec<f32>>,
    pub expert_scale: Option<Vec<f32>>,
    pub token_mask: Option<Vec<u8>>,
    pub row_count: Option<i32>,
    pub tape: Option<Tape>,
}

impl<T: Float> Problem<T> {
    /// Normal logits with outliers, from a seed.
    pub fn random(config: Config, tokens: usize, experts: usize, k: usize, seed: u64) -> Problem<T> {
        let mut rng = common::seeded(seed);
        let logits = (0..tokens * experts)
            .map(|_| {
                let x: f32 = StandardNormal.sample(&mut rng);
                let outlier = if rng.random_ratio(1, 97) { 9.0 } else { 1.5 };
                T::from_f32(x * outlier)
            })
            .collect();
        let bias = config.needs_selection_bias.then(|| {
            (0..experts)
                .map(|_| 0.3 * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng))
                .collect()
        });
        Problem { bias, ..Problem::new(config, experts, k, logits) }
    }

    /// These logits, row after row, native.
    pub fn new(config: Config, experts: usize, k: usize, logits: Vec<T>) -> Problem<T> {
        Problem {
            config,
            tokens: logits.len() / experts,
            experts,
            k,
            logits,
            first: 0,
            stride: experts,
            bias: None,
            expert_scale: None,
            token_mask: None,
            row_count: None,
            tape: None,
        }
    }

    /// One row of these logits.
    pub fn row(config: Config, k: usize, logits: &[f32]) -> Problem<T> {
        Problem::new(config, logits.len(), k, logits.iter().map(|&x| T::from_f32(x)).collect())
    }

    /// Replayed from these ids, row after row.
    pub fn forced(&self, element: Element, ids: &[i32]) -> Problem<T> {
        Problem { tape: Some(Tape::new(element, ids.iter().map(|&id| i64::from(id)), self.k)), ..self.clone() }
    }

    /// Only these rows, in this order. Native problems alone.
    pub fn rows(&self, rows: &[usize]) -> Problem<T> {
        let logits = rows.iter().flat_map(|&t| self.logits_of(t).to_vec()).collect();
        Problem {
            bias: self.bias.clone(),
            expert_scale: self.expert_scale.clone(),
            ..Problem::new(self.config.clone(), self.experts, self.k, logits)
        }
    }

    pub fn logits_of(&self, t: usize) -> &[T] {
        &self.logits[self.first + t * self.stride..][..self.experts]
    }

    /// Random distinct ids for every row.
    pub fn random_ids(&self, seed: u64) -> Vec<i32> {
        let mut rng = common::seeded(seed);
        let mut experts: Vec<i32> = (0..self.experts as i32).collect();
        (0..self.tokens)
            .flat_map(|_| {
                experts.shuffle(&mut rng);
                experts[..self.k].to_vec()
            })
            .collect()
    }

    /// Random gradients of the weights.
    pub fn random_upstream(&self, seed: u64) -> Vec<f32> {
        let mut rng = common::seeded(seed);
        (0..self.tokens * self.k).map(|_| StandardNormal.sample(&mut rng)).collect()
    }
}

/// What forward returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Forwarded {
    pub ids: Vec<i32>,
    pub weights: Vec<f32>,
    pub selected: Vec<f32>,
    pub lse: Vec<f32>,
    pub fault: Option<Fault>,
}

impl Forwarded {
    /// Everything but the fault, in bits.
    pub fn bits(&self) -> (Vec<i32>, Vec<u32>, Vec<u32>, Vec<u32>) {
        (self.ids.clone(), common::bits(&self.weights), common::bits(&self.selected), common::bits(&self.lse))
    }
}

/// A tape on a backend.
pub enum Ids<B: Backend> {
    U8(B::Buffer<u8>),
    U16(B::Buffer<u16>),
    I16(B::Buffer<i16>),
    I32(B::Buffer<i32>),
}

impl<B: Backend> Ids<B> {
    pub fn upload(backend: &B, stream: &B::Stream, tape: &Tape) -> Ids<B> {
        macro_rules! narrowed {
            ($type:ty) => {{
                let ids: Vec<$type> = tape.array.iter().map(|&id| id as $type).collect();
                backend.upload(stream, &ids).unwrap()
            }};
        }
        match tape.element {
            Element::U8 => Ids::U8(narrowed!(u8)),
            Element::U16 => Ids::U16(narrowed!(u16)),
            Element::I16 => Ids::I16(narrowed!(i16)),
            _ => Ids::I32(narrowed!(i32)),
        }
    }

    pub fn matrix(&self, tape: &Tape, k: usize) -> Matrix<'_, B::Memory> {
        fn layer<'a, T: Scalar, B: Backend>(array: &'a B::Buffer<T>, tape: &Tape, k: usize) -> Matrix<'a, B::Memory> {
            Matrix::strided(array.view().slice(tape.first..tape.array.len()), tape.rows, k, tape.stride).unwrap()
        }
        match self {
            Ids::U8(ids) => layer::<u8, B>(ids, tape, k),
            Ids::U16(ids) => layer::<u16, B>(ids, tape, k),
            Ids::I16(ids) => layer::<i16, B>(ids, tape, k),
            Ids::I32(ids) => layer::<i32, B>(ids, tape, k),
        }
    }
}

/// Forward with f32 weights. Panics where the call is refused.
pub fn forward<B: Backend, T: Float>(backend: &B, problem: &Problem<T>) -> Forwarded {
    forward_into::<B, T, f32>(backend, problem)
}

/// Forward with weights of type `W`.
pub fn forward_into<B: Backend, T: Float, W: Float>(backend: &B, problem: &Problem<T>) -> Forwarded {
    forward_watched::<B, T, W>(backend, problem, None)
}

/// Forward with weights of type `W`, and telemetry.
pub fn forward_watched<B: Backend, T: Float, W: Float>(
    backend: &B,
    problem: &Problem<T>,
    telemetry: Option<Telemetry<'_, B::Memory>>,
) -> Forwarded {
    let Problem { tokens, experts, k, .. } = *problem;
    let stream = backend.stream().unwrap();
    let logits = backend.upload(&stream, &problem.logits).unwrap();
    let bias = problem.bias.as_ref().map(|bias| backend.upload(&stream, bias).unwrap());
    let scale = problem.expert_scale.as_ref().map(|scale| backend.upload(&stream, scale).unwrap());
    let mask = problem.token_mask.as_ref().map(|mask| backend.upload(&stream, mask).unwrap());
    let count = problem.row_count.map(|count| backend.upload(&stream, &[count]).unwrap());
    let tape = problem.tape.as_ref();
    let tape_ids = tape.map(|tape| Ids::upload(backend, &stream, tape));
    let row_index = tape.and_then(|tape| tape.row_index.as_ref()).map(|x| backend.upload(&stream, x).unwrap());
    let row_mode = tape.and_then(|tape| tape.row_mode.as_ref()).map(|x| backend.upload(&stream, x).unwrap());
    // What a forgotten store would leave behind.
    let mut ids = backend.upload(&stream, &vec![-77i32; tokens * k]).unwrap();
    let mut weights = backend.upload(&stream, &vec![W::from_f32(-77.0); tokens * k]).unwrap();
    let mut selected = backend.upload(&stream, &vec![-77f32; tokens * k]).unwrap();
    let mut lse = backend.upload(&stream, &vec![-77f32; tokens]).unwrap();
    let mut word = backend.error_word(&stream).unwrap();

    let view = logits.view().slice(problem.first..problem.logits.len());
    let mut call = Forward::new(
        Matrix::strided(view, tokens, experts, problem.stride).unwrap(),
        ids.view_mut(),
        MatrixMut::new(weights.view_mut(), tokens, k).unwrap(),
    );
    call.selection_bias = bias.as_ref().map(Buffer::view);
    call.expert_scale = scale.as_ref().map(Buffer::view);
    call.token_mask = mask.as_ref().map(Buffer::view);
    call.row_count = count.as_ref().map(Buffer::view);
    call.selected_logits = Some(selected.view_mut());
    call.lse = problem.config.needs_lse().then(|| lse.view_mut());
    call.errors = Some(word.view_mut());
    call.tag = 7;
    call.telemetry = telemetry;
    if let (Some(tape), Some(ids)) = (tape, &tape_ids) {
        call.routes = Routes::Forced(Forced {
            row_index: row_index.as_ref().map(Buffer::view),
            row_mode: row_mode.as_ref().map(Buffer::view),
            has_sentinel: tape.has_sentinel,
            zeros_are_missing: tape.zeros_are_missing,
            ..Forced::new(ids.matrix(tape, k))
        });
    }
    backend.gate_forward(&stream, &problem.config, call).unwrap();
    let fault = match backend.check(&stream, &mut word) {
        Ok(()) => None,
        Err(Error::Data(fault)) => Some(fault),
        Err(other) => panic!("{other}"),
    };
    let widened = |w: Vec<W>| w.into_iter().map(W::to_f32).collect();
    Forwarded {
        ids: backend.download(&stream, ids.view()).unwrap(),
        weights: widened(backend.download(&stream, weights.view()).unwrap()),
        selected: backend.download(&stream, selected.view()).unwrap(),
        lse: if problem.config.needs_lse() { backend.download(&stream, lse.view()).unwrap() } else { Vec::new() },
        fault,
    }
}

/// The gradient of the logits, as type `G`, from gradients of the weights of type `U`.
pub fn backward_into<B: Backend, T: Float, U: Float, G: Float>(
    backend: &B,
    problem: &Problem<T>,
    forwarded: &Forwarded,
    upstream: &[f32],
) -> Vec<G> {
    let Problem { tokens, experts, k, .. } = *problem;
    let stream = backend.stream().unwrap();
    let upstream: Vec<U> = upstream.iter().map(|&x| U::from_f32(x)).collect();
    let upstream = backend.upload(&stream, &upstream).unwrap();
    let logits = backend.upload(&stream, &problem.logits).unwrap();
    let ids = backend.upload(&stream, &forwarded.ids).unwrap();
    let selected = backend.upload(&stream, &forwarded.selected).unwrap();
    let lse = backend.upload(&stream, &forwarded.lse).unwrap();
    let scale = problem.expert_scale.as_ref().map(|scale| backend.upload(&stream, scale).unwrap());
    let mut gradient = backend.upload(&stream, &vec![G::from_f32(-77.0); tokens * experts]).unwrap();
    let mut call = Backward::new(
        Matrix::new(upstream.view(), tokens, k).unwrap(),
        ids.view(),
        selected.view(),
        MatrixMut::new(gradient.view_mut(), tokens, experts).unwrap(),
    );
    call.expert_scale = scale.as_ref().map(Buffer::view);
    if problem.config.needs_lse() {
        let view = logits.view().slice(problem.first..problem.logits.len());
        call.lse = Some(lse.view());
        call.router_logits = Some(Matrix::strided(view, tokens, experts, problem.stride).unwrap());
    }
    backend.gate_backward(&stream, &problem.config, call).unwrap();
    backend.download(&stream, gradient.view()).unwrap()
}

/// The gradient in f32 from gradients in f32.
pub fn backward<B: Backend, T: Float>(
    backend: &B,
    problem: &Problem<T>,
    forwarded: &Forwarded,
    upstream: &[f32],
) -> Vec<f32> {
    backward_into::<B, T, f32, f32>(backend, problem, forwarded, upstream)
}

/// Runs the same generic function for bf16, f16 and f32 logits.
#[macro_export]
macro_rules! for_every_float {
    ($function:ident($($argument:expr),*)) => {{
        $function::<_, moerl::element::bf16>($($argument),*);
        $function::<_, moerl::element::f16>($($argument),*);
        $function::<_, f32>($($argument),*);
    }};
}

/// One configuration of every score and rule that weights can follow, with a name for messages.
pub fn every_rule(k: usize) -> Vec<(&'static str, Config)> {
    use moerl::gate::{Renormalize, Score};
    let with = |score, renormalize| Config { renormalize, renormalize_single: true, ..Config::new(score, k) };
    let mut rules = vec![
        ("softmax", Config::softmax(k)),
        ("softmax, floor reached", with(Score::Softmax, Renormalize::Floor(1e-12))),
        ("softmax, floor not reached", with(Score::Softmax, Renormalize::Floor(2.0))),
        ("softmax_selected", Config::softmax_selected(k)),
        ("raw", Config::new(Score::Raw, k)),
    ];
    let names = [
        ["sigmoid", "sigmoid, eps", "sigmoid, floor reached", "sigmoid, floor", "sigmoid, guard", "sigmoid, exact"],
        [
            "sqrt_softplus",
            "softplus, eps",
            "softplus, floor reached",
            "softplus, floor",
            "softplus, guard",
            "softplus, exact",
        ],
    ];
    for (score, names) in [Score::Sigmoid, Score::SqrtSoftplus].into_iter().zip(names) {
        let renormalize = [
            Renormalize::None,
            Renormalize::AddEps(1e-20),
            Renormalize::Floor(1e-12),
            Renormalize::Floor(1e6),
            Renormalize::Guard,
            Renormalize::Exact,
        ];
        rules.extend(names.into_iter().zip(renormalize.map(|rule| with(score, rule))));
    }
    let capped: Vec<_> =
        rules.iter().map(|(name, config)| (*name, Config { softcap: Some(3.0), ..config.clone() })).collect();
    rules.extend(capped);
    for (_, config) in &mut rules {
        config.scaling_factor = Some(2.5);
    }
    rules
}

/// Distance in units in the last place of two values of one 16-bit type, −0 and +0 apart by none.
pub fn ulps_16<T: Float>(a: T, b: T) -> i32 {
    let ordered = |x: T| {
        let bits = match T::ELEMENT {
            Element::Bf16 => bf16::from_f32(x.to_f32()).to_bits(),
            _ => f16::from_f32(x.to_f32()).to_bits(),
        };
        let magnitude = i32::from(bits & 0x7fff);
        if bits & 0x8000 == 0 { magnitude } else { -magnitude }
    };
    (ordered(a) - ordered(b)).abs()
}
