//! What is drawn of a call, and the data that follow from it.

use moerl::element::{Element, Float};
use moerl::logprob::Config;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;

use super::support::*;
use crate::common::seeded;

const INF: f32 = f32::INFINITY;

/// What is drawn of a call; its data follow from `seed`.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub seed: u64,
    pub rows: usize,
    pub vocabulary: usize,
    /// Columns behind those that count, and what lies between the rows.
    pub padding: usize,
    pub gap: usize,
    pub offset: usize,
    /// f32, bf16, f16.
    pub element: usize,
    /// 0: no tokens.
    pub ids: usize,
    pub ignore_index: i64,
    pub wide_tokens: bool,
    pub temperature: f32,
    pub is_per_row: bool,
    pub logit_scale: f32,
    pub softcap: Option<f32>,
    pub has_mask: bool,
    pub has_keep: bool,
    pub strict_keep: bool,
    pub workspace: bool,
    pub values: Values,
    /// Data that are faults.
    pub has_faults: bool,
    /// Outputs, by bits in the order of `OUTPUTS`.
    pub asked: u32,
    /// Upstream gradients, by bits in the order of [`Gradients`].
    pub upstream: u32,
    pub target: usize,
    pub is_other_element: bool,
    /// Where shards end, in thousandths of the vocabulary.
    pub cuts: Vec<usize>,
    pub by_panels: bool,
    /// Shards begin at panels.
    pub is_cut_at_panels: bool,
}

/// What logits are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    Normal(f32),
    /// Whole numbers, of which many are equal, and zeros of both signs.
    Ties,
    Equal,
    /// Around ±1e4.
    Offset(f32),
    /// Half of the columns are −∞.
    Masked,
    /// One column far above the rest.
    Peak,
    /// Near the largest numbers of the type.
    Huge,
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1..40_usize,
        2 => select(vec![63, 64, 65, 127, 128, 255, 256, 257, 511, 513, 1023, 1024, 1025]),
        4 => 2030..2070_usize,
        2 => 4090..4104_usize,
        1 => 5000..9000_usize,
    ]
}

/// Any call. Where the smaller choice is first, a failure shrinks to it.
pub fn drawn() -> impl Strategy<Value = Drawn> {
    let shape = (
        prop_oneof![8 => 0..6_usize, 3 => 6..40_usize, 1 => 40..330_usize],
        width(),
        prop_oneof![3 => Just(0_usize), 2 => 1..20_usize],
        prop_oneof![2 => Just(0_usize), 1 => 1..9_usize],
        prop_oneof![2 => Just(0_usize), 1 => 1..9_usize],
        0..3_usize,
        select(vec![
            Values::Normal(1.0),
            Values::Normal(0.1),
            Values::Normal(3.0),
            Values::Normal(30.0),
            Values::Ties,
            Values::Equal,
            Values::Offset(1e4),
            Values::Offset(-1e4),
            Values::Masked,
            Values::Peak,
            Values::Huge,
        ]),
    );
    let config = (
        prop_oneof![
            12 => select(vec![1.0_f32, 0.7, 1.3, 0.1, 8.0]),
            4 => select(vec![1e-3, 1e4, 1e-8, 1e-30, 4.3e-39]),
            1 => select(vec![0.0, -1.0, f32::NAN, INF, 4.1e-39]),
        ],
        any::<bool>(),
        prop_oneof![12 => Just(1.0_f32), 6 => select(vec![0.5, 2.0, 0.37, 1e-6, 1e6]), 1 => select(vec![0.0, INF])],
        prop_oneof![10 => Just(None), 6 => select(vec![30.0, 1.5, 50.0, 1e4]).prop_map(Some), 1 => Just(Some(-1.0))],
        select(vec![-100_i64, 0, -1, 1 << 40]),
        any::<bool>(),
    );
    let inputs = (
        prop_oneof![6 => Just(1_usize), 2 => Just(0), 3 => 2..5_usize, 1 => 31..41_usize],
        any::<bool>(),
        any::<bool>(),
        prop_oneof![1 => Just(false), 1 => Just(true)],
        any::<bool>(),
        prop_oneof![2 => Just(false), 1 => Just(true)],
    );
    let outputs = (
        any::<u32>(),
        any::<u32>(),
        0..3_usize,
        any::<bool>(),
        prop::collection::vec(0..1000_usize, 0..5),
        any::<bool>(),
        any::<bool>(),
    );
    (any::<u64>(), shape, config, inputs, outputs).prop_map(|(seed, shape, config, inputs, outputs)| {
        let (rows, vocabulary, padding, gap, offset, element, values) = shape;
        let (temperature, is_per_row, logit_scale, softcap, ignore_index, strict_keep) = config;
        let (ids, wide_tokens, has_mask, has_keep, workspace, has_faults) = inputs;
        let (asked, upstream, target, is_other_element, cuts, by_panels, is_cut_at_panels) = outputs;
        let most = 1 + 16_000 / vocabulary;
        Drawn {
            seed,
            rows: rows.min(most),
            vocabulary,
            padding,
            gap,
            offset,
            element,
            ids,
            ignore_index,
            wide_tokens,
            temperature,
            is_per_row,
            logit_scale,
            softcap,
            has_mask,
            // Sets of several tokens are refused: not every time.
            has_keep: has_keep && (ids < 2 || seed.is_multiple_of(16)),
            strict_keep,
            workspace,
            values,
            has_faults,
            asked,
            upstream,
            target,
            is_other_element,
            cuts,
            by_panels,
            is_cut_at_panels,
        }
    })
}

impl Drawn {
    pub fn logits<T: Float>(&self, rng: &mut StdRng) -> Vec<T> {
        let columns = self.vocabulary + self.padding;
        let mut logits = Vec::with_capacity(self.rows * columns);
        for _ in 0..self.rows {
            let peak = rng.random_range(0..self.vocabulary);
            for j in 0..columns {
                let x = match self.values {
                    _ if j >= self.vocabulary => [INF, f32::NAN, 0.0][j % 3], // never looked at
                    Values::Normal(deviation) => deviation * normal(rng),
                    Values::Ties => [-0.0, 0.0, 1.0, 2.0, -1.0][rng.random_range(0..5)],
                    Values::Equal => -7.5,
                    Values::Offset(offset) => offset + 3.0 * normal(rng),
                    Values::Masked => [normal(rng), -INF][rng.random_range(0..2)],
                    Values::Peak => {
                        if j == peak {
                            90.0
                        } else {
                            normal(rng)
                        }
                    }
                    Values::Huge if T::ELEMENT == Element::F16 => [6e4, -6e4, 5e4][rng.random_range(0..3)],
                    Values::Huge => [1.6e38, -1.6e38, 1.2e38, 1.0][rng.random_range(0..4)],
                };
                logits.push(T::from_f32(x));
            }
            if self.values == Values::Masked {
                let last = logits.len() - columns + peak;
                logits[last] = T::from_f32(0.5);
            }
        }
        logits
    }

    fn token(&self, rng: &mut StdRng) -> i64 {
        let valid = rng.random_range(0..self.vocabulary as i64);
        let outside = [-1, self.vocabulary as i64, i64::from(i32::MAX), i64::from(i32::MIN), i64::MIN, 1 << 33];
        match rng.random_range(0..20) {
            0 => self.ignore_index,
            1 if self.has_faults => outside[rng.random_range(0..6)],
            _ => valid,
        }
    }

    /// A keep-set for a row of this token.
    fn set(&self, rng: &mut StdRng, token: i64) -> Vec<i32> {
        let last = self.vocabulary as i32 - 1;
        let share = [0.0, 0.003, 0.3, 0.5, 1.0][rng.random_range(0..5)];
        let mut set: Vec<i32> = (0..=last).filter(|_| rng.random_bool(share)).collect();
        if rng.random_bool(0.5) && set.len() > 1 {
            set.retain(|&id| i64::from(id) != token);
        } else if rng.random_bool(0.2) {
            set = i32::try_from(token).ok().filter(|id| (0..=last).contains(id)).into_iter().collect();
        }
        if self.has_faults && set.len() > 1 {
            let at = rng.random_range(0..set.len() - 1);
            match rng.random_range(0..12) {
                0 => set.swap(at, at + 1),
                1 => set[at + 1] = set[at],
                2 => *set.last_mut().unwrap() = last + 1,
                3 => set[0] = -1,
                _ => {}
            }
        }
        set
    }

    pub fn inputs<T: Float>(&self) -> Inputs<T> {
        let mut rng = seeded(self.seed);
        let rng = &mut rng;
        let (rows, columns) = (self.rows, self.vocabulary + self.padding);
        let mut inputs = Inputs::new(rows, columns, self.logits::<T>(rng));
        inputs.config = Config {
            temperature: self.temperature,
            vocabulary: (self.padding > 0 || self.seed.is_multiple_of(2)).then_some(self.vocabulary),
            ignore_index: self.ignore_index,
            softcap: self.softcap,
            logit_scale: self.logit_scale,
            strict_keep: self.strict_keep,
            ..Config::default()
        };
        inputs.ids = self.ids.max(1);
        let tokens: Vec<i64> = (0..rows * inputs.ids).map(|_| self.token(rng)).collect();
        inputs.wide_tokens = self.wide_tokens || tokens.iter().any(|&token| i32::try_from(token).is_err());
        inputs.workspace = self.workspace;
        if self.is_per_row {
            let near = [1.0, 0.7, 1.3, 0.1, 8.0, self.temperature.max(1e-30)];
            let bad = [0.0, -1.0, f32::NAN, INF, 4.1e-39];
            let one = |rng: &mut StdRng| match rng.random_range(0..8) {
                0 if self.has_faults => bad[rng.random_range(0..5)],
                _ => near[rng.random_range(0..6)],
            };
            inputs.temperature = Some((0..rows).map(|_| one(rng)).collect());
        }
        if self.has_mask {
            inputs.loss_mask = Some((0..rows).map(|_| [0, 1, 1, 255][rng.random_range(0..4)]).collect());
        }
        if self.has_keep {
            let mut sets = Keep::of(&(0..rows).map(|r| self.set(rng, tokens[r * inputs.ids])).collect::<Vec<_>>());
            if self.has_faults && rng.random_range(0..4) == 0 {
                let at = rng.random_range(0..=rows);
                sets.offsets[at] += [-1, 1, 1 << 40, i64::MIN][rng.random_range(0..4)];
            }
            inputs.keep = Some(sets);
        }
        inputs.tokens = (self.ids > 0).then_some(tokens);
        for r in 0..rows {
            let row = &mut inputs.logits[r * columns..r * columns + self.vocabulary];
            if is_absent(&inputs.config, inputs.ids, &inputs.tokens, &inputs.loss_mask, r) {
                // Must not matter.
                row.fill(T::from_f32([f32::NAN, INF, -INF][r % 3]));
                if let Some(temperature) = &mut inputs.temperature {
                    temperature[r] = [f32::NAN, -1.0, 0.0][r % 3];
                }
            } else if self.has_faults {
                let at = rng.random_range(0..self.vocabulary);
                match rng.random_range(0..9) {
                    0 => row[at] = T::from_f32(f32::NAN),
                    1 => row[at] = T::from_f32(INF),
                    2 => row.fill(T::from_f32(-INF)),
                    3 if inputs.keep.as_ref().is_some_and(Keep::is_readable) => {
                        let set = inputs.keep.as_ref().unwrap().set(r);
                        for &id in set.iter().filter(|&&id| (0..self.vocabulary as i32).contains(&id)) {
                            row[id as usize] = T::from_f32(-INF);
                        }
                    }
                    _ => {}
                }
            }
        }
        inputs.laid_out(self.offset, columns + self.gap)
    }

    /// The upstream gradients that are drawn and that the call can have.
    pub fn upstream<T>(&self, inputs: &Inputs<T>) -> Gradients {
        let mut rng = seeded(self.seed ^ 1);
        let (has_tokens, has_keep) = (inputs.tokens.is_some(), inputs.keep.is_some() && inputs.ids == 1);
        let possible = [has_tokens, true, true, has_tokens && has_keep, has_keep];
        let mut one = |i: usize| {
            let width = if i == 0 { inputs.ids } else { 1 };
            let is_dense = rng.random_bool(0.6);
            let bad = if self.has_faults { 24 } else { 0 };
            let values = (0..inputs.rows * width)
                .map(|_| match rng.random_range(0..64) {
                    at if at < bad / 12 => [f32::NAN, INF][rng.random_range(0..2)],
                    at if at < 16 || !is_dense && at < 50 => [0.0, -0.0][rng.random_range(0..2)],
                    16 => 1e3 * normal(&mut rng),
                    17 => 1e-3 * normal(&mut rng),
                    _ => normal(&mut rng),
                })
                .collect();
            (possible[i] && self.upstream >> i & 1 == 1).then_some(values)
        };
        [one(0), one(1), one(2), one(3), one(4)]
    }
}

impl Keep {
    /// True where the offsets are those of sets.
    pub fn is_readable(&self) -> bool {
        self.offsets[0] == 0
            && self.offsets.windows(2).all(|pair| pair[0] <= pair[1])
            && self.offsets.last() == Some(&(self.ids.len() as i64))
    }
}

/// True for a row that is never looked at.
pub fn is_absent(
    config: &Config,
    ids: usize,
    tokens: &Option<Vec<i64>>,
    loss_mask: &Option<Vec<u8>>,
    row: usize,
) -> bool {
    loss_mask.as_ref().is_some_and(|mask| mask[row] == 0)
        || ids == 1 && tokens.as_ref().is_some_and(|tokens| tokens[row] == config.ignore_index)
}

/// Upstream gradients: of logprobs, entropy, lse, kept_logprobs, kept_entropy.
pub type Gradients = [Option<Vec<f32>>; 5];
