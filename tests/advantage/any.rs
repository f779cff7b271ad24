//! Any call: options, shapes, inputs and outputs in whatever combination.

use moerl::advantage::{
    Baseline, BaselineCall, BaselinePlan, BatchNorm, COUNTS, Call, Config, CountTokens, DoublyRobust, GroupPlan,
    MOMENTS, Moments, Pass, ReinforcePp, ReinforcePpBaseline, Single, TokenBaseline, TokenCall, TokenEstimator,
    Weights, Whiten, Whitening, baseline_workspace_bytes, batch_norm, moments_workspace_bytes, reinforce_pp,
    reinforce_pp_baseline, token_workspace_bytes, workspace_bytes,
};
use moerl::objective::{Groups, Plan, Segments};
use moerl::{Backend, Error, Reference};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::common::property::{Padded, for_any};
use crate::common::{bits, canonical, report, seeded};

/// What a call left, by name: floats, and whatever else as words.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    floats: Vec<(&'static str, Vec<f32>)>,
    words: Vec<(&'static str, Vec<u64>)>,
    moments: Vec<f64>,
    fault: Option<Error>,
}

impl Found {
    fn bits(&self) -> Vec<(&'static str, Vec<u64>)> {
        let floats = self.floats.iter().map(|(name, x)| (*name, canonical(x).map(u64::from).collect()));
        let moments = ("moments", self.moments.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect());
        floats.chain(self.words.iter().cloned()).chain([moments]).collect()
    }
}

fn assert_same_bits(what: &str, found: &Found, expected: &Found) {
    for (found, expected) in found.bits().iter().zip(expected.bits()) {
        assert_eq!(*found, expected, "{what}: other bits");
    }
    assert_eq!(found.fault, expected.fault, "{what}");
}

/// `scale` gives what the terms of each float's sum come to.
fn assert_agrees(found: &Found, expected: &Found, scale: impl Fn(&str, usize) -> f64) {
    for ((name, found), (_, expected)) in found.floats.iter().zip(&expected.floats) {
        assert_eq!(found.len(), expected.len());
        for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
            if f == e || (f.is_nan() && e.is_nan()) {
                continue;
            }
            // Rounded once on both sides; sums in f64 in another order.
            let tolerance = 1.2e-7 * f64::from(e).abs() + 1e-14 * scale(name, i) + 1e-44;
            let share = report::see(0, name, "any", (f64::from(f) - f64::from(e)).abs(), tolerance);
            assert!(share <= 1.0, "{name} {i}: {f} not {e}: {share} of the tolerance");
        }
    }
    for (f, e) in found.moments.iter().zip(&expected.moments) {
        let is_close = f == e || (f - e).abs() <= 1e-11 * e.abs();
        assert!(is_close || (f.is_nan() && e.is_nan()), "moments: {found:?} not {expected:?}");
    }
    assert_eq!(found.words, expected.words);
    assert_eq!(found.fault, expected.fault);
}

/// Arrays at addresses of their own choice.
struct Arrays<'b, B: Backend> {
    backend: &'b B,
    stream: B::Stream,
    shifts: Option<StdRng>,
}

impl<'b, B: Backend> Arrays<'b, B> {
    fn new(backend: &'b B, shifted: bool) -> Arrays<'b, B> {
        Arrays { backend, stream: backend.stream().unwrap(), shifts: shifted.then(|| seeded(1)) }
    }
    fn put<T: bytemuck::Pod + Send + Sync>(&mut self, values: &[T], beside: T) -> Padded<B, T> {
        let skipped = self.shifts.as_mut().map_or(0, |rng| rng.random_range(0..4));
        Padded::new(self.backend, &self.stream, values, skipped, beside)
    }
    fn floats(&mut self, values: &[f32]) -> Padded<B, f32> {
        self.put(values, 7.5)
    }
    fn maybe<T: bytemuck::Pod + Send + Sync>(&mut self, values: &Option<Vec<T>>, beside: T) -> Option<Padded<B, T>> {
        values.as_ref().map(|values| self.put(values, beside))
    }
    fn read<T: bytemuck::Pod + Send + Sync>(&self, array: &Padded<B, T>, name: &str) -> Vec<T> {
        array.read(self.backend, &self.stream, name)
    }
    fn scratch(&mut self, bytes: usize) -> Padded<B, u8> {
        self.put(&vec![0xa5; bytes], 0x5a)
    }
}

/// Runs of tokens that count and that do not; sometimes none or all.
fn mask(rng: &mut StdRng, tokens: usize) -> Vec<u8> {
    let (mut on, turn) = (rng.random_bool(0.5), [0.0, 0.02, 0.2, 0.6][rng.random_range(0..4)]);
    let mut next = || {
        on ^= rng.random_bool(turn);
        if on { [1, 1, 1, 9][rng.random_range(0..4)] } else { 0 }
    };
    (0..tokens).map(|_| next()).collect()
}

/// Lengths about every limit that makes work go another way.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let at_limits = select(vec![0_usize, 1, 2, 31, 32, 33, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2047, 2048, 2049]);
    prop_oneof![
        6 => vec(0_usize..10, 0..6),
        4 => vec(prop_oneof![at_limits, 0_usize..70], 1..7),
        2 => (select(vec![1_usize, 2, 17, 33]), select(vec![31_usize, 64, 255, 256, 257])).prop_map(|(l, n)| vec![l; n]),
        1 => select(vec![vec![32 * 1024], vec![3, 32 * 1024 + 1], vec![33 * 1024 + 7, 0, 5]]),
    ]
}

const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// Numbers of some kind: eighths, normal-sized, far from 0, all equal, or anything that f32 holds.
fn numbers(rng: &mut StdRng, kind: u8, len: usize, bad: f64) -> Vec<f32> {
    let same = rng.random_range(-2.0_f32..2.0);
    let next = |rng: &mut StdRng| match kind {
        0 => rng.random_range(-8_i32..8) as f32 / 8.0,
        1 => rng.random_range(-1.0_f32..1.0),
        2 => 1e4 + rng.random_range(-1.0_f32..1.0),
        3 => same,
        _ => rng.random_range(-1.0_f32..1.0) * 10f32.powi(rng.random_range(-20..20)),
    };
    (0..len).map(|_| if rng.random_bool(bad) { BAD[rng.random_range(0..3)] } else { next(rng) }).collect()
}

// ---- groups -------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct GroupCall {
    config: Config,
    sizes: Vec<usize>,
    /// Segments in no group.
    alone: usize,
    seed: u64,
    kind: u8,
    bad: f64,
    has_lengths: bool,
    shifted: bool,
}

fn group_call() -> impl Strategy<Value = GroupCall> {
    let sizes = prop_oneof![
        6 => vec(0_usize..9, 0..8),
        3 => vec(select(vec![0_usize, 1, 31, 32, 33, 64, 1023, 1024, 1025, 2049]), 1..5),
        1 => Just(vec![1; 300]),
        1 => Just(vec![5000, 3, 1025]),
    ];
    let baseline = select(vec![Baseline::Mean, Baseline::LeaveOneOut, Baseline::LengthWeighted]);
    let epsilon = select(vec![1e-6, 1e-4, 0.0, 1.0]);
    let tolerance = select(vec![1e-6, 0.0, 0.1, 2.0]);
    let config = (baseline, any::<bool>(), 0_u32..2, epsilon, tolerance, any::<bool>()).prop_map(
        |(baseline, std, ddof, epsilon, degenerate_tol, keeps)| {
            let single = if keeps { Single::Reward } else { Single::Zero };
            Config { baseline, std, ddof, epsilon, degenerate_tol, single }
        },
    );
    let bad = select(vec![0.0, 0.0, 0.2, 0.9]);
    (config, sizes, 0_usize..3, any::<u64>(), 0_u8..5, bad, any::<bool>(), any::<bool>()).prop_map(
        |(config, sizes, alone, seed, kind, bad, has_lengths, shifted)| GroupCall {
            config,
            sizes,
            alone,
            seed,
            kind,
            bad,
            has_lengths,
            shifted,
        },
    )
}

impl GroupCall {
    fn segments(&self) -> usize {
        self.sizes.iter().sum::<usize>() + self.alone
    }
    /// Members that lie anywhere, in any order.
    fn groups(&self) -> Groups {
        let mut all: Vec<u32> = (0..self.segments() as u32).collect();
        all.shuffle(&mut seeded(self.seed));
        let members = &all[..self.segments() - self.alone];
        let mut ends = vec![0];
        ends.extend(self.sizes.iter().scan(0, |end, &size| {
            *end += size as u32;
            Some(*end)
        }));
        Groups::new(&ends, members, self.segments()).unwrap()
    }
    fn rewards(&self) -> Vec<f32> {
        numbers(&mut seeded(self.seed ^ 1), self.kind, self.segments(), self.bad)
    }
    fn lengths(&self) -> Vec<u32> {
        let mut rng = seeded(self.seed ^ 2);
        let most = [1, 3, 4000][rng.random_range(0..3)];
        (0..self.segments()).map(|_| rng.random_range(0..most)).collect()
    }
}

/// A call twice into the same arrays.
fn run_group<B: Backend>(backend: &B, call: &GroupCall, has_counts: bool) -> Result<Vec<Found>, Error> {
    let mut arrays = Arrays::new(backend, call.shifted);
    let plan = GroupPlan::new(backend, &arrays.stream, &call.groups()).unwrap();
    let rewards = arrays.floats(&call.rewards());
    let lengths = call.has_lengths.then(|| arrays.put(&call.lengths(), 77));
    let mut advantages = arrays.floats(&vec![f32::NAN; call.segments()]);
    let mut counts = arrays.put(&[5_u64; COUNTS], 77);
    let mut scratch = arrays.scratch(workspace_bytes(&plan));
    let mut found = Vec::new();
    for _ in 0..2 {
        let given = Call {
            lengths: lengths.as_ref().map(Padded::view),
            counts: has_counts.then(|| counts.view_mut()),
            workspace: Some(scratch.view_mut()),
            ..Call::new(rewards.view(), advantages.view_mut())
        };
        backend.group_advantages(&arrays.stream, &call.config, &plan, given)?;
        arrays.read(&scratch, "workspace");
        found.push(Found {
            floats: vec![("advantages of groups", arrays.read(&advantages, "advantages"))],
            words: vec![("counts", arrays.read(&counts, "counts"))],
            ..Found::default()
        });
    }
    Ok(found)
}

pub fn any_groups_are_the_reference_s<B: Backend>(backend: &B) {
    for_any(150, &group_call(), |call| {
        let (expected, found) = (run_group(&Reference, call, true), run_group(backend, call, true));
        let (expected, found) = match (expected, found) {
            (Ok(expected), Ok(found)) => (expected, found),
            (Err(expected), Err(found)) => return assert_eq!(found.to_string(), expected.to_string()),
            other => panic!("{other:?}"),
        };
        let other = run_group(backend, call, false).unwrap();
        assert_eq!(bits(&other[0].floats[0].1), bits(&found[0].floats[0].1), "without counts");
        assert_eq!(bits(&found[0].floats[0].1), bits(&found[1].floats[0].1), "again");
        let (groups, rewards) = (call.groups(), call.rewards());
        let mut scales = vec![0.0; call.segments()];
        for group in 0..groups.len() {
            let members: Vec<usize> = groups.members(group).iter().map(|&m| m as usize).collect();
            let finite: Vec<f64> = members.iter().map(|&m| f64::from(rewards[m])).filter(|r| r.is_finite()).collect();
            let count = finite.len() as f64;
            let mean = finite.iter().sum::<f64>() / count;
            let squares: f64 = finite.iter().map(|r| (r - mean) * (r - mean)).sum();
            let sd = if call.config.std { (squares / count).sqrt() + call.config.epsilon } else { 1.0 };
            let largest = finite.iter().fold(0.0_f64, |a, r| a.max(r.abs()));
            members.iter().for_each(|&m| scales[m] = largest * (1.0 + count) / sd);
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert_agrees(found, expected, |_, i| scales[i]);
        }
        let in_groups = groups.all_members().iter().map(|&m| found[0].floats[0].1[m as usize]);
        let flat = call.config.epsilon == 0.0 && call.kind == 4;
        assert!(flat || in_groups.into_iter().all(f32::is_finite), "{found:?}");
    });
    report::print("advantage", backend.name());
}

// ---- batches ------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct BatchCall {
    whitening: Whitening,
    len: usize,
    seed: u64,
    kind: u8,
    bad: f64,
    /// One, a mask, counts, or counts of 0.
    weights: u8,
    /// Doubly robust estimates: weights, estimates, a count.
    has: u8,
    shifted: bool,
}

fn batch_call() -> impl Strategy<Value = BatchCall> {
    let len = prop_oneof![
        4 => 0_usize..9,
        4 => select(vec![31_usize, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4097, 9000]),
    ];
    let whitening = (any::<bool>(), 0_u32..2, select(vec![1e-8, 0.0, 1.0]), any::<bool>())
        .prop_map(|(centre, ddof, epsilon, epsilon_in_root)| Whitening { centre, ddof, epsilon, epsilon_in_root });
    let bad = select(vec![0.0, 0.0, 0.2, 0.95]);
    (whitening, len, any::<u64>(), 0_u8..4, bad, 0_u8..4, any::<u8>(), any::<bool>()).prop_map(
        |(whitening, len, seed, kind, bad, weights, has, shifted)| BatchCall {
            whitening,
            len,
            seed,
            kind,
            bad,
            weights,
            has,
            shifted,
        },
    )
}

/// Both passes, in one call or as the sum of two ranks', and the division.
fn run_batch<B: Backend>(backend: &B, call: &BatchCall, ranks: &[std::ops::Range<usize>]) -> Found {
    let mut rng = seeded(call.seed);
    let numbers = numbers(&mut rng, call.kind, call.len, call.bad);
    let counted = mask(&mut rng, call.len);
    let most = if call.weights == 3 { 1 } else { 5 };
    let counts: Vec<u32> = (0..call.len).map(|_| rng.random_range(0..most)).collect();
    let mut arrays = Arrays::new(backend, call.shifted);
    let mut values = arrays.floats(&numbers);
    let (counted, counts) = (arrays.put(&counted, 77), arrays.put(&counts, 77));
    let mut sums = [0.0; MOMENTS];
    for (pass, places) in [(Pass::Mean, 0..2), (Pass::Squares, 2..3)] {
        let known = sums;
        for rank in ranks {
            let mut moments = arrays.put(&if pass == Pass::Mean { [f64::NAN; MOMENTS] } else { known }, 7.5);
            let mut scratch = arrays.scratch(moments_workspace_bytes(rank.len()));
            let weights = match call.weights {
                0 => Weights::One,
                1 => Weights::Mask(counted.view().slice(rank.clone())),
                _ => Weights::Counts(counts.view().slice(rank.clone())),
            };
            let values = values.view().slice(rank.clone());
            let given = Moments { values, weights, moments: moments.view_mut(), workspace: scratch.view_mut() };
            backend.batch_moments(&arrays.stream, pass, given).unwrap();
            arrays.read(&scratch, "workspace");
            let found = arrays.read(&moments, "moments");
            places.clone().for_each(|place| sums[place] += found[place]);
            assert!(pass != Pass::Mean || found[2] == 0.0, "{found:?}");
        }
    }
    let moments = arrays.put(&sums, 7.5);
    let mask = (call.weights == 1).then(|| counted.view());
    let given = Whiten { values: values.view_mut(), mask, moments: moments.view() };
    backend.batch_whiten(&arrays.stream, &call.whitening, given).unwrap();
    Found {
        floats: vec![("whitened", arrays.read(&values, "values"))],
        moments: arrays.read(&moments, "moments"),
        ..Found::default()
    }
}

fn run_robust<B: Backend>(backend: &B, call: &BatchCall, has: u8) -> Found {
    let mut rng = seeded(call.seed);
    let mut arrays = Arrays::new(backend, call.shifted);
    let mut draw = |kind: u8| numbers(&mut rng, kind, call.len, call.bad / 2.0);
    let [rewards, values, weights] = [call.kind, call.kind, 1].map(|kind| arrays.floats(&draw(kind)));
    let mut advantages = arrays.floats(&vec![f32::NAN; call.len]);
    let mut estimates = arrays.floats(&vec![f32::NAN; call.len]);
    let mut nonfinite = arrays.put(&[5_u64], 77);
    let given = DoublyRobust {
        rewards: rewards.view(),
        values: values.view(),
        weights: (call.has & 1 != 0).then(|| weights.view()),
        advantages: advantages.view_mut(),
        estimates: (has & 2 != 0).then(|| estimates.view_mut()),
        nonfinite: (has & 4 != 0).then(|| nonfinite.view_mut()),
    };
    backend.doubly_robust(&arrays.stream, given).unwrap();
    Found {
        floats: vec![
            ("doubly robust", arrays.read(&advantages, "advantages")),
            ("estimates", arrays.read(&estimates, "estimates")),
        ],
        words: vec![("nonfinite", arrays.read(&nonfinite, "nonfinite"))],
        ..Found::default()
    }
}

pub fn any_batch_is_the_reference_s<B: Backend>(backend: &B) {
    for_any(200, &batch_call(), |call| {
        let all = 0..call.len;
        let whole = std::slice::from_ref(&all);
        let (expected, found) = (run_batch(&Reference, call, whole), run_batch(backend, call, whole));
        // Values apart by less than the rounding of their mean are noise over noise, unless there is an epsilon.
        let [weight, sum, squares] = expected.moments[..] else { unreachable!() };
        let size = if weight > 0.0 { (sum / weight).abs() + 1.0 } else { 1.0 };
        let sd = (squares / weight).max(0.0).sqrt() + call.whitening.epsilon.sqrt();
        let scale = if sd > 0.0 { 10.0 * size / sd } else { 0.0 };
        assert_agrees(&found, &expected, |_, _| scale);
        assert!(found.moments.iter().chain(&expected.moments).all(|x| x.is_finite()), "{found:?}");
        assert_same_bits("again", &run_batch(backend, call, whole), &found);
        let cut = seeded(call.seed).random_range(0..=call.len);
        let ranks = run_batch(backend, call, &[0..cut, cut..call.len]);
        for (f, e) in ranks.moments.iter().zip(&found.moments) {
            assert!((f - e).abs() <= 1e-11 * (e.abs() + size * weight), "{ranks:?} not {found:?}");
        }
        let (expected, found) = (run_robust(&Reference, call, 7), run_robust(backend, call, 7));
        assert_agrees(&found, &expected, |_, _| size);
        let mut other = run_robust(backend, call, call.has);
        if call.has & 2 == 0 {
            assert!(other.floats[1].1.iter().all(|x| x.is_nan()), "written, but not asked for");
            other.floats[1] = found.floats[1].clone();
        }
        if call.has & 4 == 0 {
            assert_eq!(other.words[0].1, [5]);
            other.words = found.words.clone();
        }
        assert_same_bits("fewer outputs", &other, &found);
    });
    report::print("advantage", backend.name());
}

// ---- tokens -------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct TokensCall {
    estimator: TokenEstimator,
    lengths: Vec<usize>,
    seed: u64,
    kind: u8,
    /// Optional inputs, a bit each, and outputs.
    has: u8,
    wants: u8,
    /// Tokens and segments of which something is not finite.
    bad: usize,
    shifted: bool,
    lawful: bool,
}

fn estimator() -> impl Strategy<Value = TokenEstimator> {
    let share = || select(vec![1.0, 0.95, 0.5, 0.0]);
    let bar = || select(vec![1.0, 2.0, 0.5, f64::INFINITY]);
    prop_oneof![
        share().prop_map(|gamma| TokenEstimator::Returns { gamma }),
        (share(), share()).prop_map(|(gamma, lambda)| TokenEstimator::Gae { gamma, lambda }),
        (share(), share(), bar(), bar(), any::<bool>()).prop_map(|(gamma, lambda, ratio_bar, trace_bar, one_step)| {
            TokenEstimator::Vtrace { gamma, lambda, ratio_bar, trace_bar, one_step }
        }),
    ]
}

fn tokens_call() -> impl Strategy<Value = TokensCall> {
    let bad = prop_oneof![3 => Just(0_usize), 1 => 1_usize..4];
    let lawful = prop_oneof![9 => Just(true), 1 => Just(false)];
    (estimator(), lengths(), any::<u64>(), 0_u8..4, any::<u8>(), any::<u8>(), bad, any::<bool>(), lawful).prop_map(
        |(estimator, lengths, seed, kind, has, wants, bad, shifted, lawful)| TokensCall {
            estimator,
            lengths,
            seed,
            kind,
            has,
            wants,
            bad,
            shifted,
            lawful,
        },
    )
}

/// The arrays of a token call, by place: rewards of tokens and segments, values, bootstrap, ratio.
struct TokenArrays {
    floats: [Option<Vec<f32>>; 5],
    loss_mask: Option<Vec<u8>>,
}

impl TokensCall {
    fn arrays(&self) -> TokenArrays {
        let mut rng = seeded(self.seed);
        let (tokens, segments) = (self.lengths.iter().sum::<usize>(), self.lengths.len());
        let has = |bit: u32| self.has >> bit & 1 != 0;
        let is_returns = matches!(self.estimator, TokenEstimator::Returns { .. });
        let is_vtrace = matches!(self.estimator, TokenEstimator::Vtrace { .. });
        let law = |bit: u32, needed: bool| if self.lawful { needed } else { has(bit) };
        let is_there = [has(0), has(1) || (self.lawful && !has(0)), law(2, !is_returns), has(3), law(4, is_vtrace)];
        let lens = [tokens, segments, tokens, segments, tokens];
        let mut place = 0;
        let mut floats = is_there.map(|is_there| {
            let len = lens[place];
            place += 1;
            // A product of ratios must stay what f64 holds.
            let longest = self.lengths.iter().copied().max().unwrap_or(0);
            let most = if longest > 300 { 1.1 } else { 3.0 };
            let ratio = |rng: &mut StdRng| (0..len).map(|_| rng.random_range(0.0_f32..most)).collect();
            is_there.then(|| if place == 5 { ratio(&mut rng) } else { numbers(&mut rng, self.kind, len, 0.0) })
        });
        let loss_mask = has(5).then(|| mask(&mut rng, tokens));
        if let Some(mask) = loss_mask.as_ref().filter(|_| has(6)) {
            for u in (0..tokens).filter(|&u| mask[u] == 0) {
                let bad = BAD[rng.random_range(0..3)];
                for array in floats.iter_mut().step_by(2).flatten() {
                    array[u] = bad;
                }
            }
        }
        for _ in 0..self.bad {
            let at = rng.random_range(0..5);
            if let Some(array) = floats[at].as_mut().filter(|array| !array.is_empty()) {
                let len = array.len();
                array[rng.random_range(0..len)] = BAD[rng.random_range(0..3)];
            }
        }
        TokenArrays { floats, loss_mask }
    }

    /// What the terms of each token's sum come to, and of its return.
    fn scales(&self) -> Vec<f64> {
        let TokenArrays { floats, loss_mask } = self.arrays();
        let at = |place: usize, index: usize, absent: f64| {
            let x = floats[place].as_ref().map_or(absent, |array| f64::from(array[index]).abs());
            if x.is_finite() { x } else { 0.0 }
        };
        let (gamma, lambda, ratio_bar, trace_bar) = match self.estimator {
            TokenEstimator::Returns { gamma } => (gamma, 1.0, 1.0, 1.0),
            TokenEstimator::Gae { gamma, lambda } => (gamma, lambda, 1.0, 1.0),
            TokenEstimator::Vtrace { gamma, lambda, ratio_bar, trace_bar, .. } => (gamma, lambda, ratio_bar, trace_bar),
        };
        let segments = Segments::from_lengths(self.lengths.iter().copied()).unwrap();
        let mut scales = vec![0.0; segments.tokens()];
        for (i, range) in segments.ranges().enumerate() {
            let (mut value, mut y, mut count) = (at(1, i, 0.0) + at(3, i, 0.0), 0.0, 1.0);
            for u in range.rev().filter(|&u| loss_mask.as_ref().is_none_or(|mask| mask[u] != 0)) {
                let (own, ratio) = (at(2, u, 0.0), at(4, u, 1.0));
                let difference = at(0, u, 0.0) + value + own;
                scales[u] = (difference + y + ratio.min(ratio_bar) * difference + ratio.max(1.0) * y + own) * count;
                y = ratio.min(ratio_bar) * difference + gamma * lambda * ratio.min(trace_bar) * y;
                (value, count) = (gamma * own, count + 1.0);
            }
        }
        scales
    }
}

fn run_tokens<B: Backend>(backend: &B, call: &TokensCall, wants: u8, calls: usize) -> Result<Vec<Found>, Error> {
    let TokenArrays { floats, loss_mask } = call.arrays();
    let mut arrays = Arrays::new(backend, call.shifted);
    let segments = Segments::from_lengths(call.lengths.iter().copied()).unwrap();
    let plan = Plan::new(backend, &arrays.stream, &segments).unwrap();
    let floats = floats.map(|array| arrays.maybe(&array, 7.5));
    let loss_mask = arrays.maybe(&loss_mask, 77);
    let mut outputs = [(); 3].map(|()| arrays.floats(&vec![f32::NAN; segments.tokens()]));
    let mut nonfinite = arrays.put(&[5_u64], 77);
    let mut scratch = arrays.scratch(token_workspace_bytes(&plan));
    let mut errors = backend.error_word(&arrays.stream).unwrap();
    let mut found = Vec::new();
    for _ in 0..calls {
        let [advantages, returns, policy_weights] = &mut outputs;
        let view = |at: usize| floats[at].as_ref().map(Padded::view);
        let given = TokenCall {
            token_rewards: view(0),
            segment_rewards: view(1),
            values: view(2),
            bootstrap: view(3),
            ratio: view(4),
            loss_mask: loss_mask.as_ref().map(Padded::view),
            advantages: (wants & 1 != 0).then(|| advantages.view_mut()),
            returns: (wants & 2 != 0).then(|| returns.view_mut()),
            policy_weights: (wants & 4 != 0).then(|| policy_weights.view_mut()),
            nonfinite: (wants & 8 != 0).then(|| nonfinite.view_mut()),
            errors: (wants & 16 != 0).then(|| errors.view_mut()),
            tag: 9,
            ..TokenCall::new(scratch.view_mut())
        };
        backend.token_advantages(&arrays.stream, &call.estimator, &plan, given)?;
        arrays.read(&scratch, "workspace");
        let names = ["token advantages", "token returns", "policy weights"];
        found.push(Found {
            floats: names.into_iter().zip(&outputs).map(|(name, array)| (name, arrays.read(array, name))).collect(),
            words: vec![("nonfinite", arrays.read(&nonfinite, "nonfinite"))],
            moments: vec![],
            fault: backend.check(&arrays.stream, &mut errors).err(),
        });
    }
    Ok(found)
}

pub fn any_tokens_are_the_reference_s<B: Backend>(backend: &B) {
    for_any(100, &tokens_call(), |call| {
        let (expected, found) = (run_tokens(&Reference, call, 31, 2), run_tokens(backend, call, 31, 2));
        let (expected, found) = match (expected, found) {
            (Ok(expected), Ok(found)) => (expected, found),
            (Err(expected), Err(found)) => return assert_eq!(found.to_string(), expected.to_string()),
            other => panic!("{other:?}"),
        };
        let scales = call.scales();
        for (found, expected) in found.iter().zip(&expected) {
            assert_agrees(found, expected, |_, u| scales[u]);
        }
        let again = Found { words: found[0].words.clone(), ..found[1].clone() };
        assert_same_bits("again", &again, &found[0]);
        let mut other = run_tokens(backend, call, call.wants, 1).unwrap().remove(0);
        for at in (0..3).filter(|at| call.wants >> at & 1 == 0) {
            assert!(other.floats[at].1.iter().all(|x| x.is_nan()), "written, but not asked for");
            other.floats[at] = found[0].floats[at].clone();
        }
        if call.wants & 8 == 0 {
            assert_eq!(other.words[0].1, [5]);
            other.words = found[0].words.clone();
        }
        if call.wants & 16 == 0 {
            assert_eq!(other.fault, None);
            other.fault = found[0].fault.clone();
        }
        assert_same_bits("fewer outputs", &other, &found[0]);
    });
    report::print("advantage", backend.name());
}

// ---- the baseline of a token index --------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct BaselineDrawn {
    config: TokenBaseline,
    lengths: Vec<usize>,
    groups: usize,
    seed: u64,
    kind: u8,
    has: u8,
    bad: usize,
    shifted: bool,
}

fn baseline_call() -> impl Strategy<Value = BaselineDrawn> {
    let config = (any::<bool>(), select(vec![1e-8, 0.0, 1.0]))
        .prop_map(|(zero_tail, epsilon)| TokenBaseline { zero_tail, epsilon });
    let bad = prop_oneof![3 => Just(0_usize), 1 => 1_usize..4];
    (config, lengths(), 1_usize..5, any::<u64>(), 0_u8..4, any::<u8>(), bad, any::<bool>()).prop_map(
        |(config, lengths, groups, seed, kind, has, bad, shifted)| BaselineDrawn {
            config,
            lengths,
            groups,
            seed,
            kind,
            has,
            bad,
            shifted,
        },
    )
}

impl BaselineDrawn {
    /// Members in any order; some segments in no group.
    fn groups(&self) -> Groups {
        let mut rng = seeded(self.seed ^ 3);
        let mut all: Vec<u32> = (0..self.lengths.len() as u32).collect();
        all.shuffle(&mut rng);
        let mut ends: Vec<u32> = (0..self.groups).map(|_| rng.random_range(0..=all.len() as u32)).collect();
        ends.push(0);
        ends.sort_unstable();
        all.truncate(ends[self.groups] as usize);
        Groups::new(&ends, &all, self.lengths.len()).unwrap()
    }
    /// G, log π, Σπ², w, and the mask.
    fn arrays(&self) -> ([Vec<f32>; 4], Vec<u8>) {
        let mut rng = seeded(self.seed);
        let tokens = self.lengths.iter().sum();
        let mut each = |draw: fn(&mut StdRng) -> f32| -> Vec<f32> { (0..tokens).map(|_| draw(&mut rng)).collect() };
        let certain = self.has & 8 != 0;
        let logprobs = if certain { vec![0.0; tokens] } else { each(|rng| -rng.random_range(0.0_f32..3.0)) };
        let sum_p2 = if certain { vec![1.0; tokens] } else { each(|rng| rng.random_range(0.0_f32..1.0)) };
        let weights = each(|rng| rng.random_range(0.0_f32..2.0));
        let returns = numbers(&mut rng, self.kind, tokens, 0.0);
        let mut floats = [returns, logprobs, sum_p2, weights];
        let counted = mask(&mut rng, tokens);
        for u in (0..tokens).filter(|&u| self.has & 6 == 6 && counted[u] == 0) {
            floats.iter_mut().for_each(|array| array[u] = f32::NAN);
        }
        for _ in 0..if tokens == 0 { 0 } else { self.bad } {
            floats[rng.random_range(0..4)][rng.random_range(0..tokens)] = BAD[rng.random_range(0..3)];
        }
        (floats, counted)
    }
}

fn run_baseline<B: Backend>(backend: &B, call: &BaselineDrawn, with_words: bool) -> Vec<Found> {
    let (floats, counted) = call.arrays();
    let mut arrays = Arrays::new(backend, call.shifted);
    let segments = Segments::from_lengths(call.lengths.iter().copied()).unwrap();
    let plan = BaselinePlan::new(backend, &arrays.stream, &segments, &call.groups()).unwrap();
    let floats = floats.map(|array| arrays.floats(&array));
    let counted = arrays.put(&counted, 77);
    let mut advantages = arrays.floats(&vec![0.25; segments.tokens()]);
    let mut nonfinite = arrays.put(&[5_u64], 77);
    let mut scratch = arrays.scratch(baseline_workspace_bytes(&plan));
    let mut errors = backend.error_word(&arrays.stream).unwrap();
    let mut found = Vec::new();
    for _ in 0..2 {
        let given = BaselineCall {
            returns: floats[0].view(),
            logprobs: floats[1].view(),
            sum_p2: floats[2].view(),
            weights: (call.has & 1 != 0).then(|| floats[3].view()),
            loss_mask: (call.has & 2 != 0).then(|| counted.view()),
            advantages: advantages.view_mut(),
            nonfinite: with_words.then(|| nonfinite.view_mut()),
            errors: with_words.then(|| errors.view_mut()),
            tag: 9,
            workspace: scratch.view_mut(),
        };
        backend.token_baseline(&arrays.stream, &call.config, &plan, given).unwrap();
        arrays.read(&scratch, "workspace");
        found.push(Found {
            floats: vec![("token baseline", arrays.read(&advantages, "advantages"))],
            words: vec![("nonfinite", arrays.read(&nonfinite, "nonfinite"))],
            moments: vec![],
            fault: backend.check(&arrays.stream, &mut errors).err(),
        });
    }
    found
}

pub fn any_baseline_is_the_reference_s<B: Backend>(backend: &B) {
    for_any(80, &baseline_call(), |call| {
        let (expected, found) = (run_baseline(&Reference, call, true), run_baseline(backend, call, true));
        let size = if call.kind == 2 { 1e4 } else { 2.0 };
        for (found, expected) in found.iter().zip(&expected) {
            assert_agrees(found, expected, |_, _| size * (10 + call.lengths.len()) as f64);
        }
        assert_eq!(bits(&found[0].floats[0].1), bits(&found[1].floats[0].1), "again");
        let other = run_baseline(backend, call, false).remove(0);
        assert_eq!(bits(&other.floats[0].1), bits(&found[0].floats[0].1), "without words");
        assert!(found[0].floats[0].1.iter().all(|x| x.is_finite()), "{found:?}");
    });
    report::print("advantage", backend.name());
}

// ---- what is made of several calls --------------------------------------------------------------------------------------

fn run_compositions<B: Backend>(backend: &B, call: &GroupCall) -> Vec<Found> {
    let mut arrays = Arrays::new(backend, call.shifted);
    let plan = GroupPlan::new(backend, &arrays.stream, &call.groups()).unwrap();
    let lengths = call.lengths();
    let (rewards, counted) = (arrays.floats(&call.rewards()), arrays.put(&lengths, 77));
    let bytes = workspace_bytes(&plan).max(moments_workspace_bytes(call.segments()));
    let mut found = Vec::new();
    for by_tokens in [false, true] {
        let mut advantages = arrays.floats(&vec![0.0; call.segments()]);
        let mut moments = arrays.put(&[f64::NAN; MOMENTS], 7.5);
        let mut scratch = arrays.scratch(bytes);
        let given = Call {
            lengths: Some(counted.view()),
            workspace: Some(scratch.view_mut()),
            ..Call::new(rewards.view(), advantages.view_mut())
        };
        let stream = &arrays.stream;
        if by_tokens {
            let batch = ReinforcePpBaseline { call: given, moments: moments.view_mut() };
            reinforce_pp_baseline(backend, stream, &call.config, &plan, batch).unwrap();
        } else {
            let batch = BatchNorm { call: given, moments: moments.view_mut() };
            batch_norm(backend, stream, &call.config, &plan, batch).unwrap();
        }
        found.push(Found {
            floats: vec![("composed", arrays.read(&advantages, "advantages"))],
            moments: arrays.read(&moments, "moments"),
            ..Found::default()
        });
    }
    // A token a segment's reward: the returns of tokens, whitened.
    let segments = Segments::from_lengths(lengths.iter().map(|&n| (n % 40) as usize)).unwrap();
    let plan = Plan::new(backend, &arrays.stream, &segments).unwrap();
    let counts = arrays.put(&vec![0xa5a5_u32; segments.len()], 77);
    let counted = mask(&mut seeded(call.seed), segments.tokens());
    let (counted, mut counts) = (arrays.put(&counted, 77), counts);
    let loss_mask = call.has_lengths.then(|| counted.view());
    let given = CountTokens { loss_mask, counts: counts.view_mut() };
    backend.count_tokens(&arrays.stream, &plan, given).unwrap();
    let mut advantages = arrays.floats(&vec![f32::NAN; segments.tokens()]);
    let mut moments = arrays.put(&[f64::NAN; MOMENTS], 7.5);
    let mut scratch = arrays.scratch(token_workspace_bytes(&plan).max(moments_workspace_bytes(segments.tokens())));
    let given = TokenCall {
        segment_rewards: Some(rewards.view()),
        loss_mask,
        advantages: Some(advantages.view_mut()),
        ..TokenCall::new(scratch.view_mut())
    };
    let batch = ReinforcePp { call: given, moments: moments.view_mut() };
    reinforce_pp(backend, &arrays.stream, 0.9, &plan, batch).unwrap();
    found.push(Found {
        floats: vec![("composed of tokens", arrays.read(&advantages, "advantages"))],
        words: vec![("counts", arrays.read(&counts, "counts").iter().map(|&n| n.into()).collect())],
        moments: arrays.read(&moments, "moments"),
        fault: None,
    });
    found
}

pub fn any_composition_is_the_reference_s<B: Backend>(backend: &B) {
    // Numbers of 40 orders of magnitude have no digits left after a mean.
    let strategy = group_call().prop_filter("no numbers of any size", |call| call.kind < 4 && call.alone == 0);
    for_any(60, &strategy, |call| {
        let (expected, found) = (run_compositions(&Reference, call), run_compositions(backend, call));
        for (found, expected) in found.iter().zip(&expected) {
            // What the moments are of was rounded to f32 on both sides, and is noise where all are equal.
            let scale = if call.kind == 2 { 1e4 } else { 2.0 };
            let [weight, sum, squares] = expected.moments[..] else { unreachable!() };
            let sd = (squares / weight.max(1.0)).sqrt().max(1e-4);
            let at = 1.2e-7 * scale * weight;
            assert!((found.moments[1] - sum).abs() <= at + 1e-11 * sum.abs(), "{found:?} not {expected:?}");
            assert!(
                (found.moments[2] - squares).abs() <= 2.0 * scale * at + 1e-11 * squares,
                "{found:?} not {expected:?}"
            );
            let found = Found { moments: expected.moments.clone(), ..found.clone() };
            assert_agrees(&found, expected, |_, _| 1e8 * scale / sd);
        }
    });
    report::print("advantage", backend.name());
}
