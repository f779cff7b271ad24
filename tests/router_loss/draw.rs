//! Batches of a router, drawn: shapes, types, places, and which arrays there are.

use moerl::Backend;
use moerl::element::Element;
use moerl::gate::{self, Score};
use moerl::objective::Segments;
use moerl::router_loss::{Config, CountsFrom, Plan, Scope};
use proptest::prelude::*;
use rand::RngExt;
use rand::seq::{IndexedRandom, index};

use crate::case::Sums;
use crate::common;
use crate::common::placed::{Place, rounded};

/// A batch and the calls that it goes through.
#[derive(Clone, Debug)]
pub struct Call {
    pub gate: gate::Config,
    pub config: Config,
    pub experts: usize,
    pub k: usize,
    pub lengths: Vec<usize>,
    /// Of the logits, of the reference's and of the gradient.
    pub elements: [Element; 3],
    pub place: Place,
    /// Which arrays there are: a bit each, [`MASK`] and so on.
    pub inputs: u32,
    /// NaN, infinities and numbers far from 0, here and there.
    pub wild: bool,
    pub seed: u64,
}

pub const MASK: u32 = 1;
pub const COUNT: u32 = 2;
pub const SELECTED: u32 = 4;
pub const IDS: u32 = 8;
pub const REFERENCE: u32 = 16;
pub const BEFORE: u32 = 32;
pub const COUNT_ROWS: u32 = 64;
pub const SEGMENTS: u32 = 128;
pub const ACCUMULATE: u32 = 256;
pub const BALANCE: u32 = 512;

/// The numbers of a call.
pub struct Numbers {
    pub logits: Vec<f32>,
    pub reference: Vec<f32>,
    pub ids: Vec<i32>,
    pub selected: Vec<f32>,
    pub mask: Vec<u8>,
    pub count: i32,
    pub old: Vec<f32>,
    pub count_rows: Vec<u64>,
    pub before: Sums,
}

impl Call {
    pub fn has(&self, input: u32) -> bool {
        self.inputs & input != 0
    }
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    pub fn numbers(&self) -> Numbers {
        let (tokens, experts, k, segments) = (self.tokens(), self.experts, self.k, self.lengths.len());
        let mut rng = common::seeded(self.seed);
        let mut numbers = |element| -> Vec<f32> {
            let mut one = || {
                let normal = common::normal(&mut rng) * if rng.random_ratio(1, 97) { 6.0 } else { 1.5 };
                let far = [-300.0, -100.0, -50.0, 20.0, 50.0, 300.0];
                let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                match rng.random_range(0..400) {
                    0 if self.wild => *few.choose(&mut rng).unwrap(),
                    1..20 if self.wild => *far.choose(&mut rng).unwrap(),
                    _ => normal,
                }
            };
            (0..tokens * experts).map(|_| rounded(element, one())).collect()
        };
        let (mut logits, mut reference, old) =
            (numbers(self.elements[0]), numbers(self.elements[1]), numbers(self.elements[2]));
        let mut ids: Vec<i32> = (0..tokens)
            .flat_map(|_| index::sample(&mut rng, experts, k).into_iter().map(|e| e as i32).collect::<Vec<_>>())
            .collect();
        let mut selected = vec![0.5f32; tokens * k];
        let mask: Vec<u8> =
            (0..tokens).map(|_| if rng.random_ratio(1, 4) { 0 } else { rng.random_range(1..3) }).collect();
        let counts = [tokens as i32, tokens as i32 - 1, tokens as i32 / 2, 0, -1, tokens as i32 + 3];
        let likely = if rng.random_ratio(1, 4) { counts.len() } else { 3 };
        let count = counts[rng.random_range(0..likely)];
        let has_ids = self.has(IDS) || self.config.counts_from == CountsFrom::Routes;
        for t in 0..tokens {
            if rng.random_ratio(1, 9) {
                ids[t * k + rng.random_range(0..k)] = if rng.random_ratio(1, 2) { -1 } else { experts as i32 };
            }
            if rng.random_ratio(1, 9) {
                selected[t * k + rng.random_range(0..k)] = f32::from_bits(u32::MAX);
            }
            // What does not count may hold anything.
            let nowhere = has_ids && ids[t * k..][..k].iter().any(|&e| e < 0 || e as usize >= experts);
            let marked = self.has(SELECTED) && selected[t * k..][..k].iter().any(|x| x.to_bits() == u32::MAX);
            if nowhere || marked || (self.has(MASK) && mask[t] == 0) || (self.has(COUNT) && t as i32 >= count) {
                logits[t * experts..][..experts].fill(f32::NAN);
                reference[t * experts..][..experts].fill(f32::INFINITY);
            }
        }
        let wide = |n: usize| (0..n).map(|i| i as u64 % 7).collect::<Vec<u64>>();
        let before = Sums {
            probabilities: (0..segments * experts).map(|i| (i % 5) as f64 * 0.125).collect(),
            counts: wide(segments * experts),
            rows: wide(segments),
            totals: vec![1.5, -2.25, 0.5],
            nonfinite: vec![3],
        };
        let count_rows = (0..segments).map(|_| rng.random_range(0..9)).collect();
        Numbers { logits, reference, ids, selected, mask, count, old, count_rows, before }
    }

    pub fn plan<B: Backend>(&self, backend: &B, stream: &B::Stream) -> Plan<B> {
        Plan::new(backend, stream, &Segments::from_lengths(self.lengths.iter().copied()).unwrap()).unwrap()
    }
}

pub fn calls() -> impl Strategy<Value = Call> {
    let float = || prop::sample::select(vec![Element::F32, Element::Bf16, Element::F16]);
    let experts = prop_oneof![
        4 => 1usize..=40,
        3 => prop::sample::select(vec![64usize, 100, 128, 255, 256, 257]),
        1 => prop::sample::select(vec![512usize, 1000, 1024, 1025, 2048, 2049, 4096]),
    ];
    let coefficient = || prop_oneof![1 => Just(0.0f64), 1 => Just(-0.3), 3 => 0.01..1.0f64];
    (experts, 1usize..=32).prop_flat_map(move |(experts, k)| {
        let length = (12_000 / experts).clamp(1, 300);
        let gate = (
            prop::sample::select(vec![
                Score::Softmax,
                Score::SoftmaxSelected,
                Score::Sigmoid,
                Score::SqrtSoftplus,
                Score::Raw,
            ]),
            prop::sample::select(vec![None, None, Some(3.0f32), Some(30.0)]),
            any::<bool>(),
        );
        let lengths = prop_oneof![
            2 => (0usize..=9).prop_map(|n| vec![n]),
            1 => prop::sample::select(vec![vec![31usize], vec![33], vec![255], vec![256], vec![257]]),
            3 => prop::collection::vec(0usize..9, 0..6),
            1 => prop::collection::vec(prop::sample::select(vec![0usize, 1, 30, 260]), 1..4),
        ];
        let losses = (coefficient(), coefficient(), coefficient(), coefficient());
        let kind = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>(), any::<u32>());
        let place = (prop::sample::select(vec![0usize, 0, 1, 2, 4, 8]), prop::sample::select(vec![0usize, 0, 1, 3, 8]));
        (gate, lengths, losses, kind, place, [float(), float(), float()]).prop_map(
            move |(
                (score, softcap, states_k),
                lengths,
                (balance, z, entropy, router_kl),
                (segments, fresh, wild, seed, inputs),
                (before, gap),
                elements,
            )| {
                let k = k.min(experts);
                let lengths: Vec<usize> = lengths.into_iter().map(|len| len.min(length)).collect();
                let config = Config {
                    balance: if score == Score::Raw && seed % 8 != 0 { 0.0 } else { balance },
                    // Sometimes many segments are said to be one batch, and refused.
                    scope: if segments || (lengths.len() != 1 && seed % 8 != 1) {
                        Scope::Segments
                    } else {
                        Scope::Batch
                    },
                    z,
                    entropy,
                    router_kl,
                    counts_from: if fresh { CountsFrom::TopK } else { CountsFrom::Routes },
                };
                let gate = gate::Config {
                    softcap,
                    top_k: states_k.then_some(k),
                    preset_top_k: Some(k),
                    ..gate::Config::new(score, k)
                };
                let place = Place { before, gap };
                Call {
                    gate,
                    config,
                    experts,
                    k,
                    lengths,
                    elements,
                    place,
                    inputs: inputs | if seed % 8 == 2 { 0 } else { REFERENCE },
                    wild,
                    seed,
                }
            },
        )
    })
}
