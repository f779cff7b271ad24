//! Statistics by changed routes: what every backend must agree on.

#[path = "route_change/any.rs"]
mod any;
mod common;

use any::*;
use moerl::route_change::{BINS, Bin, Call, NUMBERS, workspace_bytes};
use moerl::{Backend, Buffer, Reference};
use rand::RngExt;

on_every_backend!(
    sums_agree_with_the_reference,
    calls_add_up,
    tokens_that_are_masked_or_not_finite_have_no_part,
    tokens_of_any_finite_log_probabilities_are_counted,
    any_sums_are_the_reference_s,
);

struct Tokens {
    logprobs: Vec<f32>,
    old: Vec<f32>,
    rollout: Vec<f32>,
    mask: Vec<u8>,
    clipped: Vec<u8>,
    keep: Vec<u8>,
    change: Vec<u8>,
}

impl Tokens {
    fn random(n: usize, seed: u64) -> Tokens {
        let mut rng = common::seeded(seed);
        let mut floats = || (0..n).map(|_| -rng.random_range(0.0_f32..4.0)).collect::<Vec<f32>>();
        let (logprobs, old, rollout) = (floats(), floats(), floats());
        let mut bytes = |limit: u8| (0..n).map(|_| rng.random_range(0..limit)).collect::<Vec<u8>>();
        Tokens { logprobs, old, rollout, mask: bytes(2), clipped: bytes(5), keep: bytes(2), change: bytes(20) }
    }

    fn part(&self, range: std::ops::Range<usize>) -> Tokens {
        Tokens {
            logprobs: self.logprobs[range.clone()].to_vec(),
            old: self.old[range.clone()].to_vec(),
            rollout: self.rollout[range.clone()].to_vec(),
            mask: self.mask[range.clone()].to_vec(),
            clipped: self.clipped[range.clone()].to_vec(),
            keep: self.keep[range.clone()].to_vec(),
            change: self.change[range].to_vec(),
        }
    }
}

/// The sums of calls, one behind the other.
fn run<B: Backend>(backend: &B, calls: &[Tokens]) -> Vec<f64> {
    let stream = backend.stream().unwrap();
    let mut sums = backend.upload(&stream, &[f64::NAN; BINS * NUMBERS]).unwrap();
    for (which, tokens) in calls.iter().enumerate() {
        let floats = |values: &Vec<f32>| backend.upload(&stream, values).unwrap();
        let bytes = |values: &Vec<u8>| backend.upload(&stream, values).unwrap();
        let (logprobs, old, rollout) = (floats(&tokens.logprobs), floats(&tokens.old), floats(&tokens.rollout));
        let (mask, clipped) = (bytes(&tokens.mask), bytes(&tokens.clipped));
        let (keep, change) = (bytes(&tokens.keep), bytes(&tokens.change));
        let mut workspace = bytes(&vec![0xa5; workspace_bytes(tokens.mask.len())]);
        let call = Call {
            logprobs: logprobs.view(),
            old_logprobs: old.view(),
            rollout_logprobs: Some(rollout.view()),
            loss_mask: Some(mask.view()),
            clipped: Some(clipped.view()),
            keep: Some(keep.view()),
            route_change: change.view(),
            sums: sums.view_mut(),
            workspace: workspace.view_mut(),
            accumulate: which > 0,
        };
        backend.route_change(&stream, call).unwrap();
    }
    backend.download(&stream, sums.view()).unwrap()
}

/// f32 sums of at most eight tokens of a thread, joined in f64.
fn assert_close(found: &[f64], expected: &[f64]) {
    for (place, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-6 * (1.0 + expected[place / NUMBERS * NUMBERS] * 16.0), "sum {place}: {f} not {e}");
    }
}

fn sums_agree_with_the_reference<B: Backend>(backend: &B) {
    for n in [0, 1, 127, 1024, 5001] {
        let tokens = Tokens::random(n, 3);
        let found = run(backend, std::slice::from_ref(&tokens));
        assert_close(&found, &run(&Reference, &[tokens]));
        let bins = Bin::from_sums(&found).unwrap();
        assert!(bins.iter().all(|bin| bin.moved.is_some() == (bin.tokens > 0)));
    }
}

fn calls_add_up<B: Backend>(backend: &B) {
    let tokens = Tokens::random(3000, 5);
    let whole = run(backend, std::slice::from_ref(&tokens));
    let split = run(backend, &[tokens.part(0..1700), tokens.part(1700..3000)]);
    assert_close(&split, &whole);
    for place in 0..BINS {
        assert_eq!(split[place * NUMBERS], whole[place * NUMBERS], "counts are exact");
    }
}

fn tokens_that_are_masked_or_not_finite_have_no_part<B: Backend>(backend: &B) {
    let clean = Tokens::random(500, 6);
    let mut dirty = clean.part(0..500);
    for u in (0..500).filter(|&u| clean.mask[u] == 0) {
        (dirty.logprobs[u], dirty.rollout[u]) = (f32::NAN, f32::INFINITY);
    }
    assert_eq!(run(backend, &[dirty]), run(backend, &[clean]));
    let mut unsound = Tokens::random(3, 1);
    (unsound.mask, unsound.old) = (vec![1; 3], vec![f32::NAN; 3]);
    assert_eq!(run(backend, &[unsound]), [0.0; BINS * NUMBERS]);
}

/// However far apart they are: f32 has no difference of the first two, and no square of the third's.
fn tokens_of_any_finite_log_probabilities_are_counted<B: Backend>(backend: &B) {
    let mut tokens = Tokens::random(4, 1);
    (tokens.mask, tokens.change) = (vec![1; 4], vec![2; 4]);
    (tokens.clipped, tokens.keep) = (vec![1, 0, 1, 0], vec![0, 0, 1, 1]);
    tokens.logprobs = vec![f32::MIN, -1.0, f32::MIN, -1.0];
    tokens.old = vec![f32::MAX, f32::MIN, -1.0, -1.0];
    tokens.rollout = vec![-1.0, f32::MAX, -1.0, -1.0];
    let bins = Bin::from_sums(&run(backend, &[tokens])).unwrap();
    assert_eq!((bins[2].tokens, bins[2].clipped, bins[2].rejected), (4, Some(0.5), Some(0.5)));
    assert!(bins[2].moved.is_some_and(|moved| moved > 1e38));
}
