//! Any call: a router, a batch, what is given and what is asked for; drawn small, its numbers made from a seed.

use moerl::element::Element;
use moerl::gate::{Bad, Config, Filler, Groups, MAX_TOP_K, Missing, Nonfinite, Renormalize, Score};
use proptest::prelude::*;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::common;
use crate::common::placed::{Place, rounded};
use crate::harness::{Problem, Tape};

/// What the logits are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Normal,
    /// Of a few values, of both zeros among them.
    Ties,
    /// NaN, infinities and numbers far from 0, here and there.
    Wild,
    /// Around −44 and less, where sigmoids all but vanish.
    Far,
}

/// A forward call.
#[derive(Clone, Debug)]
pub struct Call {
    pub config: Config,
    pub tokens: usize,
    pub experts: usize,
    pub k: usize,
    pub logits: Element,
    pub data: Data,
    pub seed: u64,
    /// Which arrays there are: a bit each, [`BIAS`] and so on.
    pub inputs: u32,
    /// Of the forced ids, where there are any.
    pub ids: Option<Element>,
    /// Which outputs are asked for: a bit each, in the order of `any::OUTPUTS`.
    pub asked: u32,
    /// Of `topk_weights`, `record_ids`, `d_router_kl` and `recorded_weights`.
    pub elements: [Element; 4],
    pub place: Place,
    /// Which rule of a call is broken, if it is one of those that there are.
    pub broken: u8,
}

// Bits of Call::inputs.
pub const BIAS: u32 = 1;
pub const SCALE: u32 = 2;
pub const MASK: u32 = 4;
pub const COUNT: u32 = 8;
pub const INDEX: u32 = 16;
pub const MODE: u32 = 32;
pub const SENTINEL: u32 = 64;
pub const ZEROS: u32 = 128;
pub const SHORT_TAPE: u32 = 256;
pub const ODD_BIAS: u32 = 512;
pub const ODD_SCALE: u32 = 1024;

pub fn float() -> impl Strategy<Value = Element> {
    prop::sample::select(vec![Element::F32, Element::Bf16, Element::F16])
}

pub fn place() -> impl Strategy<Value = Place> {
    let some = |values: &'static [usize]| prop::sample::select(values);
    prop_oneof![
        Just(Place::default()),
        (some(&[0, 1, 2, 4, 8]), some(&[0, 1, 3, 8, 16])).prop_map(|(before, gap)| Place { before, gap }),
    ]
}

/// Experts, and how many are chosen: where the kernels change, and in between.
fn sizes() -> impl Strategy<Value = (usize, usize)> {
    let experts = prop_oneof![
        4 => 1usize..=40,
        6 => prop::sample::select(vec![32usize, 64, 96, 128, 160, 224, 256]),
        3 => prop::sample::select(vec![127usize, 129, 192, 255, 257, 320, 384, 511, 512]),
        1 => prop::sample::select(vec![513usize, 1000, 1024, 1025, 2048, 4095, 4096]),
    ];
    let k = prop_oneof![1 => 1..=MAX_TOP_K, 2 => prop::sample::select(vec![1usize, 2, 4, 6, 7, 8, 9, 10, 11, 16, 17, 31, 32])];
    (experts, k).prop_map(|(experts, k)| (experts, k.min(experts)))
}

fn rule() -> impl Strategy<Value = (Score, Renormalize)> {
    let any = || {
        prop::sample::select(vec![
            Renormalize::None,
            Renormalize::AddEps(1e-20),
            Renormalize::AddEps(0.5),
            Renormalize::Floor(1e-12),
            Renormalize::Floor(0.3),
            Renormalize::Floor(2.0),
            Renormalize::Floor(1e6),
            Renormalize::Guard,
            Renormalize::Exact,
        ])
    };
    prop_oneof![
        Just((Score::SoftmaxSelected, Renormalize::None)),
        prop::sample::select(vec![
            (Score::Softmax, Renormalize::None),
            (Score::Softmax, Renormalize::Floor(1e-12)),
            (Score::Softmax, Renormalize::Floor(0.3)),
            (Score::Softmax, Renormalize::Floor(2.0)),
        ]),
        any().prop_map(|renormalize| (Score::Sigmoid, renormalize)),
        any().prop_map(|renormalize| (Score::SqrtSoftplus, renormalize)),
        Just((Score::Raw, Renormalize::None)),
    ]
}

/// Groups that suit the experts, from three numbers; sometimes they do not.
fn groups(experts: usize, k: usize, [count, admitted, top]: [usize; 3]) -> Option<Groups> {
    let counts: Vec<usize> = (2..=experts).filter(|&count| experts.is_multiple_of(count)).collect();
    let fitting: Vec<usize> = counts.iter().copied().filter(|&count| count <= 16 || experts <= 64).collect();
    let count = *fitting.get(count.checked_sub(1)? % fitting.len().max(1))?;
    let members = experts / count;
    let least = k.div_ceil(members);
    let admitted = least + admitted % (count - least + 1);
    let top = match top {
        0 if k.is_multiple_of(admitted) && k / admitted <= members => None,
        top => Some(1 + top % members.min(4)),
    };
    Some(Groups { count, admitted, top })
}

type Policies = (bool, bool, Missing, Bad, Nonfinite, Filler);

fn config(experts: usize, k: usize) -> impl Strategy<Value = Config> {
    let policies = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![Missing::Native, Missing::ZeroWeight, Missing::Error, Missing::Spread]),
        prop::sample::select(vec![Bad::Native, Bad::ZeroWeight]),
        prop::sample::select(vec![Nonfinite::Zero, Nonfinite::Propagate]),
        prop::sample::select(vec![Filler::RoundRobin, Filler::Sentinel]),
    );
    let numbers = (
        prop_oneof![3 => Just(None), 1 => prop::sample::select(vec![Some(3.0f32), Some(30.0), Some(0.5)])],
        prop::sample::select(vec![1.0f32, 2.5, -1.5, 0.0, 1e-3]),
        prop_oneof![3 => Just(None), 2 => prop::sample::select(vec![Some(0.0f32), Some(0.05), Some(0.7), Some(1e30), Some(f32::INFINITY)])],
        (prop_oneof![2 => Just(0usize), 1 => 1usize..20], 0usize..20, 0usize..5),
    );
    (rule(), policies, numbers).prop_map(
        move |((score, renormalize), policies, (softcap, scale, score_replace, (count, admitted, top)))| {
            let (renormalize_single, states_k, missing, bad, nonfinite, filler): Policies = policies;
            Config {
                top_k: states_k.then_some(k),
                preset_top_k: (!states_k).then_some(k),
                softcap,
                groups: groups(experts, k, [count, admitted, top]),
                renormalize,
                renormalize_single,
                scaling_factor: Some(scale),
                missing,
                bad,
                nonfinite,
                filler,
                score_replace,
                ..Config::new(score, k)
            }
        },
    )
}

fn tokens(experts: usize) -> impl Strategy<Value = usize> {
    let most = (24_000 / experts).clamp(2, 270);
    prop_oneof![1 => Just(0usize), 8 => 1usize..=5, 6 => 15usize..=40, 1 => 250usize..=262]
        .prop_map(move |tokens| tokens.min(most))
}

pub fn call() -> impl Strategy<Value = Call> {
    sizes().prop_flat_map(|(experts, k)| {
        let shape = (config(experts, k), tokens(experts), float());
        let data = prop_oneof![4 => Just(Data::Normal), 1 => Just(Data::Ties), 2 => Just(Data::Wild), 1 => Just(Data::Far)];
        let ids = prop_oneof![
            2 => Just(None),
            3 => prop::sample::select(vec![Some(Element::I32), Some(Element::U16), Some(Element::I16), Some(Element::U8)]),
        ];
        let asked = prop_oneof![1 => Just(0u32), 2 => any::<u32>(), 1 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| a & b & 0x7f)];
        let elements = (float(), prop::sample::select(Element::ROUTES), float(), float());
        let broken = prop_oneof![12 => Just(0u8), 1 => 1u8..=12];
        // Every other array is there half of the time; odd numbers in bias and scale are rarer.
        let inputs = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(a, b, c)| {
            let rare = a & b & c;
            a & !(ODD_BIAS | ODD_SCALE | SHORT_TAPE) | rare
        });
        (shape, data, any::<u64>(), inputs, ids, asked, elements, place(), broken).prop_map(
            move |((config, tokens, logits), data, seed, inputs, ids, asked, elements, place, broken)| {
                let narrow = experts > 255;
                let elements = [elements.0, elements.1, elements.2, elements.3]
                    .map(|element| if narrow && element == Element::U8 { Element::U16 } else { element });
                let ids = ids.map(|element| if narrow && element == Element::U8 { Element::U16 } else { element });
                Call { config, tokens, experts, k, logits, data, seed, inputs, ids, asked, elements, place, broken }
            },
        )
    })
}

/// The numbers of a call beside those of its [`Problem`].
#[derive(Clone, Debug)]
pub struct Extras {
    pub recorded_weights: Vec<f32>,
    pub ref_logits: Vec<f32>,
    pub old_ids: Vec<i32>,
    pub old_logprobs: Vec<f32>,
}

impl Call {
    pub fn has(&self, input: u32) -> bool {
        self.inputs & input != 0
    }

    fn logit(&self, rng: &mut StdRng) -> f32 {
        let normal = common::normal(rng) * if rng.random_ratio(1, 97) { 9.0 } else { 1.5 };
        match self.data {
            Data::Normal => normal,
            Data::Ties => *[-1.5, -0.0, 0.0, 1.0, 2.0].choose(rng).unwrap(),
            Data::Far => -44.0 + normal,
            Data::Wild if rng.random_ratio(1, 6) => {
                let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                let far = [-300.0, -100.0, -50.0, -17.0, -15.0, 20.0, 50.0, 88.0, 300.0];
                if rng.random_ratio(1, 40) { *few.choose(rng).unwrap() } else { *far.choose(rng).unwrap() }
            }
            Data::Wild => normal,
        }
    }

    /// The arrays that a call is given.
    pub fn problem(&self) -> (Problem<f32>, Extras) {
        let Call { tokens, experts, k, .. } = *self;
        let mut rng = common::seeded(self.seed);
        let row = |rng: &mut StdRng| -> Vec<f32> {
            let mut row: Vec<f32> = (0..experts).map(|_| rounded(self.logits, self.logit(rng))).collect();
            if self.data == Data::Wild && rng.random_ratio(1, 6) {
                row.fill(*[f32::NEG_INFINITY, f32::NAN, 1.0].choose(rng).unwrap());
            }
            row
        };
        let mut logits: Vec<f32> = (0..tokens).flat_map(|_| row(&mut rng)).collect();
        let mut ref_logits: Vec<f32> = (0..tokens).flat_map(|_| row(&mut rng)).collect();
        let token_mask: Option<Vec<u8>> = self
            .has(MASK)
            .then(|| (0..tokens).map(|_| if rng.random_ratio(1, 4) { 0 } else { rng.random_range(1..3) }).collect());
        let counts = [tokens as i32, tokens as i32 - 1, tokens as i32 / 2, 0, -1, tokens as i32 + 3];
        let row_count =
            self.has(COUNT).then(|| *counts[..if rng.random_ratio(1, 4) { 6 } else { 3 }].choose(&mut rng).unwrap());
        let bias = self.has(BIAS).then(|| {
            let odd = [f32::NEG_INFINITY, -1e5, 8.0, -20000.0, f32::NAN, f32::INFINITY, 1e5];
            let kinds = if rng.random_ratio(1, 3) { odd.len() } else { 4 };
            let mut one = || {
                if self.has(ODD_BIAS) && rng.random_ratio(1, 3) {
                    *odd[..kinds].choose(&mut rng).unwrap()
                } else {
                    0.3 * common::normal(&mut rng)
                }
            };
            (0..experts).map(|_| one()).collect()
        });
        let expert_scale = self.has(SCALE).then(|| {
            let odd = [0.0, -2.0, f32::INFINITY, f32::NAN, 1e30];
            let mut one = || {
                if self.has(ODD_SCALE) && rng.random_ratio(1, 8) {
                    *odd.choose(&mut rng).unwrap()
                } else {
                    0.5 + rng.random_range(0.0..2.0f32)
                }
            };
            (0..experts).map(|_| one()).collect()
        });
        let tape = self.ids.map(|element| self.tape(element, &logits, &mut rng));
        let tape_rows = tape.as_ref().map_or(0, |tape| tape.rows);
        let mut recorded = || match rng.random_range(0..60) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2..12 => 0.0,
            _ => rng.random_range(0.05..1.0),
        };
        let recorded_weights = (0..tape_rows * k).map(|_| rounded(self.elements[3], recorded())).collect();
        let old_ids = (0..tokens * k)
            .map(|_| if rng.random_ratio(1, 60) { -1 } else { rng.random_range(0..experts as i32) })
            .collect();
        let mut old_logprobs: Vec<f32> = (0..tokens * k)
            .map(|_| if rng.random_ratio(1, 60) { f32::NAN } else { rng.random_range(-6.0..-0.1) })
            .collect();
        // Padding may hold anything.
        for t in 0..tokens {
            let masked = token_mask.as_ref().is_some_and(|mask| mask[t] == 0);
            if masked || row_count.is_some_and(|count| t as i32 >= count) {
                for array in [&mut logits, &mut ref_logits] {
                    array[t * experts..][..experts].fill(*[f32::NAN, f32::INFINITY].choose(&mut rng).unwrap());
                }
                old_logprobs[t * k..][..k].fill(f32::INFINITY);
            }
        }
        let problem = Problem {
            tokens,
            bias,
            expert_scale,
            token_mask,
            row_count,
            tape,
            ..Problem::new(self.config.clone(), experts, k, logits)
        };
        (problem, Extras { recorded_weights, ref_logits, old_ids, old_logprobs })
    }

    /// Rows of every kind; those to be replayed drifted from the best logits.
    fn tape(&self, element: Element, logits: &[f32], rng: &mut StdRng) -> Tape {
        let Call { tokens, experts, k, .. } = *self;
        let rows =
            if self.has(SHORT_TAPE) { *[0, tokens.saturating_sub(1), 1].choose(rng).unwrap() } else { tokens + 2 };
        let all_ones = match element {
            Element::U8 => 0xff,
            Element::U16 => 0xffff,
            _ => -1,
        };
        let outside = if matches!(element, Element::U8 | Element::U16) { experts as i64 } else { -5 };
        let mut ids = Vec::new();
        for r in 0..rows {
            let mut order: Vec<usize> = (0..experts).collect();
            if r < tokens && rng.random_ratio(1, 2) {
                order.sort_by(|&a, &b| logits[r * experts + b].total_cmp(&logits[r * experts + a]));
            }
            let (best, drifted) = ((2 * k).min(experts), rng.random_range(0..=k));
            for slot in 0..drifted {
                let among = if rng.random_ratio(1, 2) { best } else { experts };
                order.swap(slot, rng.random_range(0..among));
            }
            let mut row: Vec<i64> = order[..k].iter().map(|&e| e as i64).collect();
            match rng.random_range(0..24) {
                0 => row.fill(all_ones),
                1 => row[0] = all_ones,
                2 => row[k - 1] = row[0],
                3 if !(element == Element::U8 && experts > 254) => row[k / 2] = outside,
                4 => row.fill(0),
                _ => {}
            }
            ids.extend(row);
        }
        let mut index = || match rng.random_range(0..30) {
            0 => -1,
            1 => -7,
            2 => rows as i32,
            _ => rng.random_range(0..rows.max(1) as i32),
        };
        let row_index = self.has(INDEX).then(|| (0..tokens).map(|_| index()).collect());
        let row_mode =
            self.has(MODE).then(|| (0..tokens).map(|_| [1, 1, 1, 1, 0, 2, 1, 1, 3][rng.random_range(0..9)]).collect());
        let has_sentinel = self.has(SENTINEL) && !(element == Element::U8 && experts > 255);
        let zeros_are_missing = self.has(ZEROS);
        Tape { row_index, row_mode, has_sentinel, zeros_are_missing, rows, ..Tape::new(element, ids, k) }
    }
}
