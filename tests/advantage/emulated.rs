//! What only the emulator can show: schedules, and what a launch reads and writes.

use moerl::advantage::{Baseline, Config, TokenBaseline, TokenEstimator, Whitening};
use moerl::{Emulator, Reference};
use rand::RngExt;

use crate::batch::whitened;
use crate::common::schedules::schedules;
use crate::common::{bits, is_sanitized, seeded, worst};
use crate::group::{run, run_with_lengths};
use crate::{baseline, token};

#[test]
fn every_schedule_gives_the_same_bits() {
    let mut rng = seeded(2);
    // Small groups, and one in three chunks.
    let ids: Vec<i32> = (0..2900).map(|i| if i % 10 == 0 { rng.random_range(0..9) } else { 100 }).collect();
    let rewards: Vec<f32> = ids.iter().map(|_| rng.random_range(-3.0..3.0)).collect();
    let lengths: Vec<u32> = ids.iter().map(|_| rng.random_range(0..50)).collect();
    let config = Config { baseline: Baseline::LengthWeighted, ..Config::default() };
    let first = run_with_lengths(&Emulator::new(), &config, &ids, &rewards, &lengths);
    let values = &rewards[..];
    let whitened_first = whitened(&Emulator::new(), &Whitening::default(), values, None);
    for emulator in schedules() {
        let found = run_with_lengths(&emulator, &config, &ids, &rewards, &lengths);
        assert_eq!(bits(&found.0), bits(&first.0), "{emulator:?}");
        assert_eq!(found.1, first.1);
        assert_eq!(bits(&whitened(&emulator, &Whitening::default(), values, None)), bits(&whitened_first));
    }
}

#[test]
fn a_group_does_not_see_its_neighbours() {
    let mut rng = seeded(4);
    let rewards: Vec<f32> = (0..40).map(|_| rng.random_range(-3.0..3.0)).collect();
    let alone = run(&Emulator::new(), &Config::default(), &[1; 40], &rewards);
    let ids: Vec<i32> = (0..120).map(|i| if i % 3 == 1 { 1 } else { i }).collect();
    let among: Vec<f32> = (0..120).map(|i| if i % 3 == 1 { rewards[i / 3] } else { f32::NAN }).collect();
    let found = run(&Emulator::new(), &Config::default(), &ids, &among).0;
    let own: Vec<f32> = found.iter().skip(1).step_by(3).copied().collect();
    assert_eq!(bits(&own), bits(&alone.0));
}

#[test]
fn values_are_read_once_per_pass() {
    let emulator = Emulator::new().metered();
    let values = vec![1.5_f32; 10_000];
    whitened(&emulator, &Whitening::default(), &values, Some(&vec![1; 10_000]));
    let launches = emulator.take_traffic();
    assert_eq!(launches.len(), 3);
    for launch in &launches {
        let (read, mask) = (launch.buffer("values").unwrap(), launch.buffer("mask").unwrap());
        assert_eq!((read.loads.bytes, mask.loads.bytes), (40_000, 10_000), "{}", launch.kernel);
    }
    let written = launches[2].buffer("values").unwrap();
    assert_eq!((written.stores.bytes, written.stores.once), (40_000, 40_000));
}

const VTRACE: TokenEstimator =
    TokenEstimator::Vtrace { gamma: 0.99, lambda: 0.95, ratio_bar: 1.0, trace_bar: 1.0, one_step: false };

#[test]
fn every_schedule_gives_tokens_the_same_bits() {
    // Chains, blocks of their own, and tiles of three segments that arrive in any order.
    let lengths = [5, 40, 3, 700, 2500, 33, 1, 0, 1025, 3000];
    let (case, baselines) = (token::Case::random(&lengths, 1), baseline::Case::random(&lengths, 2, 1));
    let first = token::run(&Emulator::new(), &VTRACE, &case);
    let first_baseline = baseline::run(&Emulator::new(), &TokenBaseline::default(), &baselines).0;
    for emulator in schedules() {
        let found = token::run(&emulator, &VTRACE, &case);
        for (f, e) in found.all().iter().zip(first.all()) {
            assert_eq!(bits(f), bits(e), "{emulator:?}");
        }
        let found = baseline::run(&emulator, &TokenBaseline::default(), &baselines).0;
        assert_eq!(bits(&found), bits(&first_baseline), "{emulator:?}");
    }
}

/// `case` with these segments around its own.
fn among(case: &token::Case, before: &[usize], after: &[usize]) -> token::Case {
    let join = |a: &Option<Vec<f32>>, b: &Option<Vec<f32>>, c: &Option<Vec<f32>>| {
        Some([a, b, c].iter().flat_map(|array| array.as_ref().unwrap().iter().copied()).collect())
    };
    let mut head = token::Case::random(before, 77);
    let tail = token::Case::random(after, 78);
    // Neighbours that are not finite.
    head.values.as_mut().unwrap().fill(f32::NAN);
    head.bootstrap.as_mut().unwrap().fill(f32::INFINITY);
    token::Case {
        lengths: [before, &case.lengths, after].concat(),
        token_rewards: join(&head.token_rewards, &case.token_rewards, &tail.token_rewards),
        segment_rewards: join(&head.segment_rewards, &case.segment_rewards, &tail.segment_rewards),
        values: join(&head.values, &case.values, &tail.values),
        bootstrap: join(&head.bootstrap, &case.bootstrap, &tail.bootstrap),
        ratio: join(&head.ratio, &case.ratio, &tail.ratio),
        loss_mask: Some(
            [&head, case, &tail].iter().flat_map(|c| c.loss_mask.as_ref().unwrap().iter().copied()).collect(),
        ),
    }
}

#[test]
fn a_segment_of_tokens_sees_neither_neighbours_nor_its_place() {
    for lengths in [vec![20], vec![100], vec![1000], vec![2100]] {
        let case = token::Case::random(&lengths, 8);
        let alone = token::run(&Emulator::new(), &VTRACE, &case);
        for (before, after) in
            [(vec![1], vec![]), (vec![3, 30, 0], vec![5, 9]), (vec![40, 61], vec![200]), (vec![1025], vec![2])]
        {
            let found = token::run(&Emulator::new(), &VTRACE, &among(&case, &before, &after));
            let start: usize = before.iter().sum();
            for (f, e) in found.all().iter().zip(alone.all()) {
                assert_eq!(bits(&f[start..start + lengths[0]]), bits(e), "{lengths:?} after {before:?}");
            }
        }
    }
}

#[test]
fn tokens_are_read_once_per_launch_and_written_once() {
    for (lengths, launches) in [(vec![17; 300], 1), (vec![1000, 24, 512, 500], 1), (vec![9000], 2)] {
        let case = token::Case::random(&lengths, 9);
        let tokens = case.tokens() as u64;
        let emulator = Emulator::new().metered();
        token::run(&emulator, &VTRACE, &case);
        let traffic = emulator.take_traffic();
        assert_eq!(traffic.len(), launches);
        for launch in &traffic {
            for (name, bytes) in [("token_rewards", 4), ("values", 4), ("ratio", 4), ("loss_mask", 1)] {
                let read = &launch.buffer(name).unwrap().loads;
                assert_eq!(read.bytes, bytes * tokens, "{}: {name}", launch.kernel);
                // A unit may begin within a sector.
                let sectors = read.sectors * 32;
                assert!(sectors as f64 <= 1.1 * (bytes * tokens) as f64 + 64.0, "{}: {name}: {sectors}", launch.kernel);
            }
        }
        for name in ["advantages", "returns", "policy_weights"] {
            let written = traffic.last().unwrap().buffer(name).unwrap();
            assert_eq!((written.stores.bytes, written.stores.once), (4 * tokens, 4 * tokens), "{name}");
        }
    }
}

fn assert_same(found: &[f32], expected: &[f32]) {
    let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    // f64 sums of a million terms of size 1 in another order: 1e-10 at most; one rounding on both sides.
    let error = worst(found, &expected, 1e-10, 1.2e-7);
    println!("{error:.3} of the tolerance");
    assert!(error <= 1.0, "{error}");
}

#[test]
fn one_segment_of_a_million_tokens_agrees_with_the_reference() {
    // It would take minutes; the smaller sizes of the suites reach the same lines.
    if is_sanitized() {
        return;
    }
    // More tiles than the lanes of a warp take in one round.
    let lengths = [1_050_000, 3];
    let case = token::Case { bootstrap: None, ..token::Case::random(&lengths, 10) };
    // Without discount every token depends on all to its right.
    let estimator = TokenEstimator::Vtrace { gamma: 1.0, lambda: 1.0, ratio_bar: 2.0, trace_bar: 1.0, one_step: false };
    let (found, expected) =
        (token::run(&Emulator::new(), &estimator, &case), token::run(&Reference, &estimator, &case));
    for (f, e) in found.all().iter().zip(expected.all()) {
        assert_same(f, e);
    }
    let case = baseline::Case::random(&lengths, 1, 10);
    let config = TokenBaseline { zero_tail: false, ..TokenBaseline::default() };
    assert_same(&baseline::run(&Emulator::new(), &config, &case).0, &baseline::run(&Reference, &config, &case).0);
}

#[test]
fn a_group_of_more_chunks_than_a_block_has_threads_agrees_with_the_reference() {
    if is_sanitized() {
        return;
    }
    let mut rng = seeded(11);
    let rewards: Vec<f32> = (0..300_000).map(|_| 1000.0 + rng.random_range(-3.0..3.0)).collect();
    let ids = vec![0; rewards.len()];
    let found = run(&Emulator::new(), &Config::default(), &ids, &rewards);
    let expected = run(&Reference, &Config::default(), &ids, &rewards);
    assert_same(&found.0, &expected.0);
    assert_eq!(found.1, expected.1);
}
