//! Any call on tokens, and on the baselines of their indices.

use moerl::advantage::{
    BaselineCall, BaselinePlan, LeftOut, TokenBaseline, TokenCall, TokenEstimator, baseline_workspace_bytes,
    token_workspace_bytes,
};
use moerl::objective::{Groups, Plan, Segments};
use moerl::{Backend, Error, Reference};
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::common::property::{Padded, for_any};
use crate::common::{bits, report, seeded};
use crate::drawn::*;

// ---- tokens -------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct TokensCall {
    estimator: TokenEstimator,
    left_out: LeftOut,
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
    (estimator(), left_out(), lengths(), any::<u64>(), 0_u8..4, any::<u8>(), any::<u8>(), bad, any::<bool>(), lawful)
        .prop_map(|(estimator, left_out, lengths, seed, kind, has, wants, bad, shifted, lawful)| TokensCall {
            estimator,
            left_out,
            lengths,
            seed,
            kind,
            has,
            wants,
            bad,
            shifted,
            lawful,
        })
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
            left_out: call.left_out,
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
