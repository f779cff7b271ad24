//! Any call on groups and batches: options, shapes, inputs and outputs in whatever combination.

use moerl::advantage::{
    Baseline, BatchNorm, COUNTS, Call, Config, CountTokens, DoublyRobust, GroupPlan, LeftOut, MOMENTS, Moments, Pass,
    ReinforcePp, ReinforcePpBaseline, Single, TokenCall, Weights, Whiten, Whitening, batch_norm,
    moments_workspace_bytes, reinforce_pp, reinforce_pp_baseline, token_workspace_bytes, workspace_bytes,
};
use moerl::objective::{Groups, Plan, Segments};
use moerl::{Backend, Error, Reference};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;

use rand::seq::SliceRandom;

use crate::common::property::{Padded, for_any};
use crate::common::{bits, report, seeded};
use crate::drawn::*;

// ---- groups -------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct GroupCall {
    config: Config,
    left_out: LeftOut,
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
    (config, left_out(), sizes, 0_usize..3, any::<u64>(), 0_u8..5, bad, any::<bool>(), any::<bool>()).prop_map(
        |(config, left_out, sizes, alone, seed, kind, bad, has_lengths, shifted)| GroupCall {
            config,
            left_out,
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
            left_out: call.left_out,
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
        let flat = call.config.epsilon == 0.0 && call.kind == 4;
        for &member in groups.all_members() {
            let (reward, advantage) = (rewards[member as usize], found[0].floats[0].1[member as usize]);
            let is_marked = call.left_out == LeftOut::Nan && !reward.is_finite();
            assert!(if is_marked { advantage.is_nan() } else { flat || advantage.is_finite() }, "{member}: {found:?}");
        }
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
            left_out: call.left_out,
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
        left_out: call.left_out,
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
