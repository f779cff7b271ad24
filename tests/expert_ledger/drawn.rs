//! What calls on a layer's tokens are made of.

use moerl::Backend;
use moerl::element::Element;
use moerl::expert_ledger::{ExpertSums, Tokens};
use moerl::memory::View;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::index;

use crate::common::placed::{Place, Placed, Rows, rounded};
use crate::common::seeded;

/// What is drawn of a layer and of what is done with it.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub tokens: usize,
    pub experts: usize,
    pub k: usize,
    pub element: usize,
    /// Of the weights; see [`Drawn::weight`].
    pub kind: u8,
    /// How likely a number is NaN or infinite, and a row of weights 0, and an id nobody's.
    pub bad: f64,
    /// Mask, shift, count: a bit each.
    pub has: u8,
    pub gap: usize,
    pub aligned: bool,
    pub layers: usize,
    pub clip: Option<f32>,
    pub flaw: Flaw,
    pub seed: u64,
}

pub const MASK: u8 = 1;
pub const SHIFT: u8 = 2;
pub const COUNT: u8 = 4;

/// What is wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    Nothing,
    Ids,
    Advantages,
    Mask,
    Type,
    /// Of the ledger: its shift, count, workspace. Of the advantages: their deviations, their length, no layers.
    First,
    Second,
    Third,
    Shared,
    /// An address that is no multiple of an element.
    Odd,
}

pub fn drawn() -> impl Strategy<Value = Drawn> {
    // Of what a block looks at at once, of a panel.
    let tokens = prop_oneof![
        3 => 0_usize..9,
        3 => select(vec![31_usize, 32, 33, 255, 256, 257, 513]),
    ];
    // Of the experts of a block, and beyond what there may be.
    let experts = prop_oneof![
        3 => 1_usize..9,
        6 => select(vec![1_usize, 64, 255, 256, 257, 512, 513]),
        1 => select(vec![0_usize, 4095, 4096, 4097]),
    ];
    let k = prop_oneof![5 => 1_usize..9, 2 => select(vec![16_usize, 31, 32]), 1 => select(vec![0_usize, 33])];
    let clip = select(vec![None, Some(f32::INFINITY), Some(1.0), Some(1e-3), Some(f32::MIN_POSITIVE), Some(1e30)]);
    let unsound = select(vec![0.0, -1.0, f32::NAN]).prop_map(Some);
    let clip = prop_oneof![12 => clip.boxed(), 1 => unsound.boxed()];
    let flaws = [
        Flaw::Ids,
        Flaw::Advantages,
        Flaw::Mask,
        Flaw::Type,
        Flaw::First,
        Flaw::Second,
        Flaw::Third,
        Flaw::Shared,
        Flaw::Odd,
    ];
    let flaw = prop_oneof![6 => Just(Flaw::Nothing), 1 => select(flaws.to_vec())];
    let shape = (tokens, experts, k, 0_usize..3, 0_u8..5, select(vec![0.0, 0.0, 0.03, 0.4]));
    let rest = (0_u8..8, 0_usize..5, any::<bool>(), select(vec![1_usize, 3, 1000]), clip, flaw, any::<u64>());
    (shape, rest).prop_map(|((tokens, experts, k, element, kind, bad), rest)| {
        let (has, gap, aligned, layers, clip, flaw, seed) = rest;
        Drawn { tokens, experts, k, element, kind, bad, has, gap, aligned, layers, clip, flaw, seed }
    })
}

/// The numbers of a layer.
#[derive(Clone)]
pub struct Numbers {
    pub ids: Vec<i32>,
    pub weights: Vec<f32>,
    pub advantages: Vec<f32>,
    pub mask: Vec<u8>,
    /// K or μ, and 1/(√v + ε).
    pub shift: Vec<f64>,
    pub inverse: Vec<f64>,
    pub sums: Vec<ExpertSums>,
    /// Â before.
    pub normalized: Vec<f32>,
}

impl Drawn {
    pub fn has(&self, array: u8) -> bool {
        self.has & array != 0
    }
    pub fn element(&self) -> Element {
        Element::FLOATS[self.element]
    }

    fn weight(&self, rng: &mut StdRng) -> f32 {
        let extremes = [f32::MAX, 1e30, 1e-45, f32::MIN_POSITIVE, 0.0, -0.0, 1.0];
        let x = match self.kind {
            0 | 1 => rng.random_range(0.01..2.5),
            2 => 0.125 * rng.random_range(0_i32..4) as f32,
            // Of either sign: they may cancel.
            3 => rng.random_range(-2_i32..3) as f32,
            _ => extremes[rng.random_range(0..extremes.len())],
        };
        rounded(self.element(), x)
    }

    pub fn numbers(&self) -> Numbers {
        let Drawn { tokens, experts, k, bad, .. } = *self;
        let mut rng = seeded(self.seed);
        let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let nobodys = [-1, experts as i32, i32::MAX, i32::MIN, experts as i32 + 200];
        let mut ids = Vec::with_capacity(tokens * k);
        let mut weights = Vec::with_capacity(tokens * k);
        for _ in 0..tokens {
            let mut row: Vec<i32> = index::sample(&mut rng, experts, k.min(experts)).iter().map(|e| e as i32).collect();
            row.resize(k, -1);
            row.iter_mut().filter(|_| rng.random_bool(bad)).for_each(|id| *id = nobodys[(self.seed % 5) as usize]);
            ids.extend(row);
            let is_empty = rng.random_bool(bad / 2.0);
            let is_bad = rng.random_bool(bad / 2.0);
            weights.extend((0..k).map(|_| if is_empty { 0.0 } else { self.weight(&mut rng) }));
            if is_bad && k > 0 {
                let at = weights.len() - 1 - rng.random_range(0..k);
                weights[at] = few[rng.random_range(0..3)];
            }
        }
        let far = [1.0, 1.0, 1e4, f32::MAX][self.seed as usize % 4];
        let mut advantage =
            || if rng.random_bool(bad / 4.0) { few[rng.random_range(0..3)] } else { far * rng.random_range(-1.0..1.0) };
        let advantages = (0..tokens).map(|_| advantage()).collect();
        let of_mask = [[1, 1, 1, 0], [1, 2, 255, 0], [0; 4]][self.seed as usize % 3];
        let mask = (0..tokens).map(|_| of_mask[rng.random_range(0..4)]).collect();
        let mut real = || match rng.random_range(0..60) {
            0 if bad > 0.0 => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][rng.random_range(0..3)],
            1 if bad > 0.0 => [1e30, -1e30, 1e-300, 0.0][rng.random_range(0..4)],
            _ => rng.random_range(-0.5..2.0),
        };
        let (shift, inverse) = ((0..experts).map(|_| real()).collect(), (0..experts).map(|_| real()).collect());
        let mut sums = |e: usize| ExpertSums { n: e as u64, gate: real(), advantage: real(), advantage_square: real() };
        let sums = (0..experts).map(&mut sums).collect();
        let normalized = (0..tokens).map(|t| t as f32 - 7.25).collect();
        Numbers { ids, weights, advantages, mask, shift, inverse, sums, normalized }
    }

    /// What is wrong with the tokens of either call.
    fn has_unlawful_tokens(&self) -> bool {
        let of_arrays = matches!(self.flaw, Flaw::Ids | Flaw::Advantages | Flaw::Type | Flaw::Odd)
            || (self.flaw == Flaw::Mask && self.has(MASK));
        // Of no rows no array has columns.
        of_arrays || !(1..=4096).contains(&self.experts) || !(1..=32).contains(&self.k)
    }
    pub fn is_unlawful_ledger(&self) -> bool {
        let of_arrays = match self.flaw {
            Flaw::First => self.has(SHIFT),
            Flaw::Second => self.has(COUNT),
            Flaw::Third => self.tokens > 0,
            Flaw::Shared => self.tokens > 0,
            _ => false,
        };
        self.has_unlawful_tokens() || of_arrays
    }
    pub fn is_unlawful_advantages(&self) -> bool {
        let of_arrays = matches!(self.flaw, Flaw::First | Flaw::Second | Flaw::Third);
        let is_shared = self.flaw == Flaw::Shared && self.tokens > 0;
        self.has_unlawful_tokens() || of_arrays || is_shared || self.clip.is_some_and(|c| c.is_nan() || c <= 0.0)
    }
}

/// The tokens in a backend's memory.
pub struct Arrays<B: Backend> {
    pub ids: Placed<B, i32>,
    pub weights: Rows<B>,
    pub advantages: Placed<B, f32>,
    pub mask: Option<Placed<B, u8>>,
    pub shift: Placed<B, f64>,
    pub before: usize,
    is_odd: bool,
}

impl<B: Backend> Arrays<B> {
    pub fn new(backend: &B, stream: &B::Stream, drawn: &Drawn, numbers: &Numbers, has: u8, aligned: bool) -> Arrays<B> {
        let before = if aligned { 0 } else { 1 + (drawn.seed % 7) as usize };
        let shape = [drawn.tokens, drawn.k];
        let element = if drawn.flaw == Flaw::Type { Element::I32 } else { drawn.element() };
        macro_rules! put {
            ($values:expr, $flaw:expr) => {{
                let values = [&$values[..], &vec![Default::default(); usize::from(drawn.flaw == $flaw)]].concat();
                Placed::new(backend, stream, Place { before, gap: 0 }, values.len(), &values)
            }};
        }
        Arrays {
            ids: put!(numbers.ids, Flaw::Ids),
            weights: Rows::new(
                backend,
                stream,
                element,
                Place { before, gap: drawn.gap },
                shape,
                Some(&numbers.weights),
            ),
            advantages: put!(numbers.advantages, Flaw::Advantages),
            mask: (has & MASK != 0).then(|| put!(numbers.mask, Flaw::Mask)),
            shift: put!(numbers.shift, Flaw::First),
            before,
            is_odd: drawn.flaw == Flaw::Odd,
        }
    }
    pub fn tokens(&self) -> Tokens<'_, B::Memory> {
        let ids = self.ids.view();
        // SAFETY: a call with an odd address is refused before anything looks there.
        let odd = unsafe { View::from_raw(ids.address() + 1, ids.len()) };
        Tokens {
            topk_ids: if self.is_odd { odd } else { ids },
            topk_weights: self.weights.matrix(),
            advantages: self.advantages.view(),
            loss_mask: self.mask.as_ref().map(Placed::view),
        }
    }
}
