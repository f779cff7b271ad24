//! Any call of a correction, drawn.

use moerl::correction::{Config, Divergence, Level, Metropolis, NonFinite, Over, Rejection, Repeats, Weight};
use moerl::objective::Groups;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::case::Case;
use crate::common::seeded;

/// How log-ratios are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// All 0.
    Nothing,
    /// Multiples of 1/64: every sum of them is exact.
    Exact,
    /// About .1, as between two engines.
    Near,
    /// About 2.
    Wide,
    /// Some beyond what saturates.
    Far,
}

/// A call. What is not spelled out here comes from the seed.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub config: Config,
    pub lengths: Vec<usize>,
    pub seed: u64,
    pub spread: Spread,
    pub repeats: usize,
    /// Optional inputs, a bit each.
    pub inputs: u32,
    /// Optional outputs, a bit each.
    pub outputs: u32,
    pub groups: i32,
    pub turns: u8,
    /// Tokens of which something is not finite.
    pub bad: usize,
    /// Arrays begin anywhere.
    pub shifted: bool,
    pub accumulate: bool,
    /// What the configuration needs is there, and only what it makes is asked for.
    pub lawful: bool,
}

fn bounds() -> impl Strategy<Value = (f64, f64)> {
    let infinity = f64::INFINITY;
    select(vec![
        (0.5, 2.0),
        (0.9, 1.1),
        (1.0, 1.0),
        (0.0, infinity),
        (0.0, 1.0),
        (1.0, infinity),
        (1e-9, 1e9),
        (2.0, 3.0),
    ])
}

fn level() -> impl Strategy<Value = Level> {
    select(vec![Level::Token, Level::Turn, Level::Sequence, Level::Geometric])
}

fn weight() -> impl Strategy<Value = Weight> {
    let of_segments = select(vec![Level::Sequence, Level::Geometric]);
    let tested = select(vec![Level::Token, Level::Sequence, Level::Geometric]);
    let max = select(vec![2.0, 1.0, 1.1, 0.25, 1e-9, 1e30]);
    prop_oneof![
        1 => Just(Weight::One),
        2 => (level(), max).prop_map(|(level, max)| Weight::Truncated { level, max }),
        2 => (level(), bounds()).prop_map(|(level, (low, high))| Weight::Clamped { level, low, high }),
        2 => (level(), bounds()).prop_map(|(level, (low, high))| Weight::Band { level, low, high }),
        1 => bounds().prop_map(|(low, high)| Weight::SequenceMasked { low, high }),
        2 => (of_segments, any::<bool>())
            .prop_map(|(level, leave_one_out)| Weight::SelfNormalised { level, leave_one_out }),
        2 => Just(Weight::SelfNormalisedAttached),
        3 => (tested, select(vec![Metropolis::Multiplicity, Metropolis::Mask]), any::<u64>())
            .prop_map(|(level, mode, seed)| Weight::Metropolis { level, mode, seed }),
        1 => select(vec![1_usize, 2, 4, 16])
            .prop_map(|count| Weight::MultipleImportance { proportions: vec![1.0 / count as f64; count] }),
    ]
}

fn rejection() -> impl Strategy<Value = Rejection> {
    let most = || select(vec![0.0, 0.001, 0.05, 0.5, 3.0, 100.0, f64::INFINITY]);
    let estimate = prop_oneof![
        bounds().prop_map(|(low, high)| Divergence::K1 { low, high }),
        most().prop_map(Divergence::K2),
        most().prop_map(Divergence::K3),
    ];
    let over = select(vec![Over::Token, Over::Sum, Over::Mean, Over::Max]);
    prop_oneof![
        3 => (level(), bounds()).prop_map(|(level, (low, high))| Rejection::Band { level, low, high }),
        3 => (estimate, over).prop_map(|(estimate, over)| match (estimate, over) {
            (Divergence::K1 { .. }, Over::Max) => Rejection::Divergence { estimate, over: Over::Mean },
            _ => Rejection::Divergence { estimate, over },
        }),
        1 => bounds().prop_map(|(low, high)| Rejection::Veto { low, high }),
        1 => select(vec![0.0, -0.1, 0.1, f64::INFINITY, f64::NEG_INFINITY])
            .prop_map(|threshold| Rejection::OffPolicySequence { threshold }),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let rejections = prop_oneof![2 => Just(vec![]), 4 => vec(rejection(), 1..4), 1 => vec(rejection(), 4..10)];
    let saturation = prop_oneof![4 => Just(20.0_f32), 3 => select(vec![0.5, 3.0, 1e-3, f32::INFINITY])];
    let nonfinite = select(vec![NonFinite::ZeroWeight, NonFinite::Propagate, NonFinite::DropSegment]);
    let catastrophic = select(vec![(1e-4, 1e4), (0.5, 2.0), (0.0, f64::INFINITY)]);
    (weight(), rejections, any::<bool>(), saturation, any::<bool>(), nonfinite, catastrophic, any::<bool>()).prop_map(
        |(weight, rejections, normalise, saturation, mean, nonfinite, catastrophic, diagnostics)| {
            let is_normalised = matches!(
                weight,
                Weight::Truncated { .. } | Weight::Clamped { .. } | Weight::Band { .. } | Weight::SequenceMasked { .. }
            );
            Config {
                weight,
                rejections,
                batch_normalise: normalise && is_normalised,
                saturation,
                repeats: if mean { Repeats::Mean } else { Repeats::LogMean },
                nonfinite,
                catastrophic,
                diagnostics,
            }
        },
    )
}

/// Lengths about every limit that makes work go another way.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let at_limits = select(vec![0_usize, 1, 2, 31, 32, 33, 127, 129, 1023, 1024, 1025, 2047, 2048, 2049]);
    prop_oneof![
        6 => vec(0_usize..10, 0..6),
        4 => vec(prop_oneof![at_limits, 0_usize..70], 1..7),
        2 => (select(vec![1_usize, 2, 4, 17]), select(vec![31_usize, 127, 128, 129, 256, 257, 300]))
            .prop_map(|(length, count)| vec![length; count]),
        1 => select(vec![vec![32 * 1024], vec![3, 32 * 1024 + 1], vec![33 * 1024 + 7, 0, 5]]),
    ]
}

pub fn drawn() -> impl Strategy<Value = Drawn> {
    let spread = select(vec![Spread::Near, Spread::Nothing, Spread::Exact, Spread::Wide, Spread::Far]);
    let repeats = prop_oneof![4 => Just(1_usize), 2 => 2_usize..9, 1 => 15_usize..18];
    let bad = prop_oneof![4 => Just(0_usize), 1 => 1_usize..4];
    let shape = (lengths(), any::<u64>(), spread, repeats, 1_i32..9, 0_u8..3, bad);
    let lawful = prop_oneof![9 => Just(true), 1 => Just(false)];
    let few = (0_u32..16, 0_u32..16).prop_map(|(a, b)| 1 << a | 1 << b | 1 << 15);
    let outputs = prop_oneof![1 => Just(0_u32), 3 => few, 4 => any::<u32>()];
    (config(), shape, any::<u32>(), outputs, any::<bool>(), any::<bool>(), lawful).prop_map(
        |(config, shape, inputs, outputs, shifted, accumulate, lawful)| {
            let (lengths, seed, spread, repeats, groups, turns, bad) = shape;
            let mut drawn = Drawn {
                config,
                lengths,
                seed,
                spread,
                repeats,
                inputs,
                outputs,
                groups,
                turns,
                bad,
                shifted,
                accumulate,
                lawful,
            };
            // Beyond this f32 ends.
            if drawn.config.saturation.is_infinite()
                && matches!(drawn.spread, Spread::Wide | Spread::Far | Spread::Exact)
            {
                drawn.config.saturation = 40.0;
            }
            drawn
        },
    )
}

impl Drawn {
    pub fn has(&self, input: u32) -> bool {
        self.inputs >> input & 1 != 0
    }
    pub fn is_chain(&self) -> bool {
        matches!(self.config.weight, Weight::Metropolis { level: Level::Sequence | Level::Geometric, .. })
    }
    pub fn is_test_of_tokens(&self) -> bool {
        matches!(self.config.weight, Weight::Metropolis { level: Level::Token, .. })
    }
    fn is_test(&self) -> bool {
        self.is_chain() || self.is_test_of_tokens()
    }
    fn needs_turns(&self) -> bool {
        let of_turns = |rejection: &Rejection| matches!(rejection, Rejection::Band { level: Level::Turn, .. });
        self.config.level() == Level::Turn || self.config.rejections.iter().any(of_turns)
    }
    pub fn normalises_groups(&self) -> bool {
        matches!(self.config.weight, Weight::SelfNormalised { .. } | Weight::SelfNormalisedAttached)
    }

    /// The batch. A Metropolis test by ids has log-ratios whose sums are exact: no decision is within rounding.
    pub fn case(&self) -> Case {
        let mut rng = seeded(self.seed);
        let (tokens, segments, lawful) = (self.lengths.iter().sum::<usize>(), self.lengths.len(), self.lawful);
        let needs = |needed: bool, input: u32| (lawful && needed) || self.has(input);
        let by_ids = self.is_test() && !self.has(7);
        let spread = if by_ids { Spread::Exact } else { self.spread };
        let repeats = if by_ids { 1 } else { self.repeats };
        let mut case = Case { lengths: self.lengths.clone(), ..Case::default() };
        for _ in 0..tokens {
            let (old, rollout) = logprobs(&mut rng, spread);
            case.old_logprobs.push(old);
            case.rollout_logprobs.push(rollout);
        }
        for _ in 1..repeats {
            for u in 0..tokens {
                let moved = case.old_logprobs[u] + rng.random_range(-8_i32..8) as f32 / 64.0;
                case.old_logprobs.push(moved.min(0.0));
            }
        }
        let sixty_fourths = |rng: &mut StdRng, most: i32| -rng.random_range(0..most) as f32 / 64.0;
        case.loss_mask = self.has(0).then(|| mask(&mut rng, tokens));
        case.kept_log_mass = self.has(1).then(|| (0..tokens).map(|_| sixty_fourths(&mut rng, 12)).collect());
        case.router_shift = self.has(2).then(|| (0..tokens).map(|_| sixty_fourths(&mut rng, 4)).collect());
        let is_off_policy = |rejection: &Rejection| matches!(rejection, Rejection::OffPolicySequence { .. });
        let needs_advantages = self.config.rejections.iter().any(is_off_policy);
        // Eighths: whether their sum is negative is no matter of rounding.
        let eighths = |rng: &mut StdRng| rng.random_range(-16_i32..16) as f32 / 8.0;
        let count = if self.has(4) { tokens } else { segments };
        case.advantages = needs(needs_advantages, 3).then(|| (0..count).map(|_| eighths(&mut rng)).collect());
        case.advantages_per_token = self.has(4);
        case.current_log_ratio = self.has(5).then(|| (0..segments).map(|_| rng.random_range(-0.5..0.5)).collect());
        let ids =
            needs(by_ids, 6).then(|| (0..segments).map(|_| rng.random::<u64>() >> rng.random_range(0..64)).collect());
        case.segment_ids = ids;
        let count = if self.config.level() == Level::Token { tokens } else { segments };
        case.uniforms = self.has(7).then(|| (0..count).map(|_| rng.random_range(1e-6_f32..1.0)).collect());
        let has_groups = needs(self.normalises_groups() || self.is_chain(), 8);
        let ids: Vec<i32> = (0..segments).map(|_| rng.random_range(0..self.groups)).collect();
        let groups = if has_groups { Groups::from_ids(&ids).len() } else { 0 };
        let carried = |rng: &mut StdRng| if rng.random_bool(0.4) { f64::NAN } else { rng.random_range(-3.0..3.0) };
        case.carried = self.has(9).then(|| (0..groups).map(|_| carried(&mut rng)).collect());
        case.groups = has_groups.then_some(ids);
        case.rewards = needs(self.normalises_groups(), 10)
            .then(|| (0..segments).map(|_| if rng.random_bool(0.05) { f32::NAN } else { eighths(&mut rng) }).collect());
        if let Weight::MultipleImportance { proportions } = &self.config.weight {
            let lp: Vec<f64> = (0..segments).map(|_| rng.random_range(-4000.0..0.0)).collect();
            let mut proposal =
                |lp: f64| if rng.random_bool(0.2) { f64::NEG_INFINITY } else { lp + rng.random_range(-3.0..3.0) };
            case.proposal_logprobs = needs(true, 11).then(|| {
                lp.iter().flat_map(|&lp| (0..proportions.len()).map(|_| proposal(lp)).collect::<Vec<_>>()).collect()
            });
            case.target_logprobs = needs(true, 12).then_some(lp);
        }
        case.has_turns = if lawful && self.is_test_of_tokens() { false } else { needs(self.needs_turns(), 13) };
        case.turns = (self.turns > 0).then(|| any_turns(&mut rng, &self.lengths));
        self.spoil(&mut rng, &mut case);
        case
    }

    /// What must not matter, at masked tokens, and what does.
    fn spoil(&self, rng: &mut StdRng, case: &mut Case) {
        const BAD: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 500.0];
        let tokens = case.tokens();
        if let Some(mask) = case.loss_mask.clone().filter(|_| self.has(14)) {
            for u in (0..tokens).filter(|&u| mask[u] == 0) {
                let bad = BAD[rng.random_range(0..4)];
                case.rollout_logprobs[u] = bad;
                case.old_logprobs.iter_mut().skip(u).step_by(tokens).for_each(|o| *o = bad);
                let offsets = case.kept_log_mass.iter_mut().chain(&mut case.router_shift);
                let per_token = case.advantages.iter_mut().filter(|_| case.advantages_per_token);
                offsets.chain(per_token).for_each(|array| array[u] = bad);
            }
        }
        for _ in 0..if tokens == 0 { 0 } else { self.bad } {
            let u = rng.random_range(0..tokens);
            let bad = BAD[rng.random_range(0..3)];
            let old = rng.random_range(0..case.old_logprobs.len());
            match (rng.random_range(0..7), &mut case.kept_log_mass, &mut case.router_shift, &mut case.loss_mask) {
                (0, _, _, _) => case.old_logprobs[old] = bad,
                (1, _, _, _) => case.rollout_logprobs[u] = [0.5, 1e-3, 1e-3_f32.next_up()][rng.random_range(0..3)],
                (2, Some(mass), _, _) => mass[u] = bad,
                (3, _, Some(shift), _) => shift[u] = bad,
                (4, _, _, Some(mask)) => mask[u] = 2 + (u % 254) as u8,
                (5, ..) if case.advantages_per_token && case.advantages.is_some() => {
                    case.advantages.as_mut().unwrap()[u] = bad;
                }
                _ => case.rollout_logprobs[u] = bad,
            }
        }
    }
}

fn logprobs(rng: &mut StdRng, spread: Spread) -> (f32, f32) {
    let rollout = -rng.random_range(0_i32..512) as f32 / 64.0;
    let mut within = |most: f32| rng.random_range(-1.0..1.0) * most;
    let old = match spread {
        Spread::Nothing => rollout,
        Spread::Exact => rollout + (within(96.0) as i32) as f32 / 64.0,
        Spread::Near => rollout + within(0.1),
        Spread::Wide => rollout + within(4.0),
        Spread::Far if within(1.0) > 0.6 => rollout + within(28.0),
        Spread::Far => rollout + within(1.0),
    };
    // Either may be the larger one, neither is above 0.
    (old.min(0.0), rollout.min(rollout - old))
}

/// Runs of tokens that count and that do not; sometimes none or all.
fn mask(rng: &mut StdRng, tokens: usize) -> Vec<u8> {
    let (mut on, turn) = (rng.random_bool(0.5), [0.0, 0.02, 0.2, 0.6][rng.random_range(0..4)]);
    let mut next = || {
        on ^= rng.random_bool(turn);
        u8::from(on)
    };
    (0..tokens).map(|_| next()).collect()
}

/// Turns that end anywhere, some of them empty.
fn any_turns(rng: &mut StdRng, lengths: &[usize]) -> Vec<i64> {
    let (mut offsets, mut start) = (vec![0], 0);
    for &length in lengths {
        let mut ends: Vec<usize> = (0..rng.random_range(0..4)).map(|_| start + rng.random_range(0..=length)).collect();
        ends.retain(|&end| end < start + length);
        ends.sort_unstable();
        start += length;
        offsets.extend(ends.iter().map(|&end| end as i64));
        offsets.push(start as i64);
    }
    offsets
}
