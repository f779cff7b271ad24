//! Rewards against those of their group.

use moerl::advantage::{Baseline, COUNTS, Call, Config, Count, GroupPlan, Single, workspace_bytes};
use moerl::error::Kind;
use moerl::objective::Groups;
use moerl::{Backend, Buffer, Reference};
use rand::RngExt;

use crate::common;

pub fn run<B: Backend>(backend: &B, config: &Config, ids: &[i32], rewards: &[f32]) -> (Vec<f32>, Vec<u64>) {
    run_with_lengths(backend, config, ids, rewards, &vec![1; ids.len()])
}

pub fn run_with_lengths<B: Backend>(
    backend: &B,
    config: &Config,
    ids: &[i32],
    rewards: &[f32],
    lengths: &[u32],
) -> (Vec<f32>, Vec<u64>) {
    let stream = backend.stream().unwrap();
    let groups = GroupPlan::new(backend, &stream, &Groups::from_ids(ids)).unwrap();
    let rewards = backend.upload(&stream, rewards).unwrap();
    let lengths = backend.upload(&stream, lengths).unwrap();
    let mut advantages = backend.upload(&stream, &vec![f32::NAN; ids.len()]).unwrap();
    let mut counts = backend.allocate::<u64>(&stream, COUNTS).unwrap();
    // What another call may have left there must not matter.
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; workspace_bytes(&groups)]).unwrap();
    let call = Call {
        lengths: Some(lengths.view()),
        counts: Some(counts.view_mut()),
        workspace: Some(workspace.view_mut()),
        ..Call::new(rewards.view(), advantages.view_mut())
    };
    backend.group_advantages(&stream, config, &groups, call).unwrap();
    (backend.download(&stream, advantages.view()).unwrap(), backend.download(&stream, counts.view()).unwrap())
}

pub fn assert_close(found: &[f32], expected: &[f64]) {
    // f64 inside, one rounding to f32; the expected values have 6 digits.
    for (f, e) in found.iter().zip(expected) {
        assert!((f64::from(*f) - e).abs() <= 1e-6 * e.abs(), "{found:?} not {expected:?}");
    }
}

pub fn four_answers_give_the_values_of_the_table<B: Backend>(backend: &B) {
    let rewards = [95.0, 70.0, 85.0, 80.0];
    let (found, _) = run(backend, &Config::without_std(), &[4; 4], &rewards);
    assert_close(&found, &[12.5, -12.5, 2.5, -2.5]);
    let (found, _) = run(backend, &Config::default(), &[4; 4], &rewards);
    assert_close(&found, &[1.200961, -1.200961, 0.2401922, -0.2401922]);
    let (found, _) = run(backend, &Config { ddof: 0, epsilon: 0.0, ..Config::default() }, &[4; 4], &rewards);
    // sd = √(325/4)
    assert_close(&found, &[1.386750, -1.386750, 0.277350, -0.277350]);
}

pub fn the_mean_of_the_others_gives_the_values_of_the_table<B: Backend>(backend: &B) {
    let (found, _) = run(backend, &Config::rloo(), &[4; 4], &[95.0, 70.0, 85.0, 80.0]);
    assert_close(&found, &[16.666667, -16.666667, 3.333333, -3.333333]);
    assert_eq!(run(backend, &Config::rloo(), &[1, 2, 2], &[3.0, 0.0, 1.0]).0, [0.0, -1.0, 1.0]);
    let verl = Config::rloo().with_single(Single::Reward);
    assert_eq!(run(backend, &verl, &[1, 2, 2], &[3.0, 0.0, 1.0]).0, [3.0, -1.0, 1.0]);
}

pub fn a_mean_by_length_gives_the_value_of_the_table<B: Backend>(backend: &B) {
    let lengths = [10, 20, 30, 40];
    let (found, _) = run_with_lengths(backend, &Config::opo(), &[4; 4], &[1.0, 0.0, 0.0, 1.0], &lengths);
    assert_eq!(found, [0.5, -0.5, -0.5, 0.5]);
    // Where no member has a token, nobody reads it.
    let (found, _) = run_with_lengths(backend, &Config::opo(), &[4; 4], &[1.0, 0.0, 0.0, 1.0], &[0; 4]);
    assert_eq!(found, [0.0; 4]);
}

pub fn groups_of_one_and_of_equal_rewards_are_zero<B: Backend>(backend: &B) {
    let (found, counts) = run(backend, &Config::default(), &[1, 2, 2, 2], &[3.0, 0.1, 0.1, 0.1]);
    assert_eq!(found, [0.0; 4]);
    assert_eq!(counts[Count::GroupsSizeOne as usize], 1);
    assert_eq!(counts[Count::GroupsZeroStd as usize], 1);
    let (found, _) = run(backend, &Config::verl(true), &[1, 2, 2], &[3.0, 0.0, 1.0]);
    assert_eq!(found[0], 3.0);
    assert_eq!(Config::verl(true).single, Single::Reward);
    // Rewards that differ by rounding alone are equal; without the rule they are ±0.7.
    let noise = [0.3, 0.3 + 3e-8];
    assert_eq!(run(backend, &Config::default(), &[1, 1], &noise).0, [0.0; 2]);
    let strict = Config { degenerate_tol: 0.0, epsilon: 0.0, ..Config::default() };
    assert_close(
        &run(backend, &strict, &[1, 1], &noise).0,
        &[-std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::FRAC_1_SQRT_2],
    );
    assert_eq!(run(backend, &strict, &[1, 1], &[0.3, 0.3]).0, [0.0; 2]);
}

pub fn rewards_that_are_not_finite_leave_their_group<B: Backend>(backend: &B) {
    let (found, counts) = run(backend, &Config::default(), &[1, 1, 1], &[f32::NAN, 1.0, 0.0]);
    assert_eq!(found[0].to_bits(), 0);
    assert_eq!(found[1..], run(backend, &Config::default(), &[1, 1], &[1.0, 0.0]).0);
    assert_eq!(counts[Count::RewardsNonFinite as usize], 1);
    let (found, counts) = run(backend, &Config::default(), &[1, 1], &[f32::NAN, f32::NEG_INFINITY]);
    assert_eq!((found, counts[Count::RewardsNonFinite as usize]), (vec![0.0; 2], 2));
}

pub fn members_may_lie_anywhere_and_groups_have_any_size<B: Backend>(backend: &B) {
    let mut rng = common::seeded(1);
    let ids: Vec<i32> = (0..500).map(|i| if i % 3 == 0 { -7 } else { rng.random_range(0..40) }).collect();
    let rewards: Vec<f32> = ids.iter().map(|_| rng.random_range(-3.0..3.0)).collect();
    let lengths: Vec<u32> = ids.iter().map(|_| rng.random_range(0..3000)).collect();
    for config in every_config() {
        assert_agrees(backend, &config, &ids, &rewards, &lengths);
    }
}

fn every_config() -> [Config; 7] {
    [
        Config::default(),
        Config::without_std(),
        Config::trl(true),
        Config::verl(false),
        Config::rloo(),
        Config::opo(),
        Config { baseline: Baseline::LengthWeighted, single: Single::Reward, ..Config::trl(true) },
    ]
}

/// f64 on both sides, rounded once: half a unit of the last place each, and what the order of f64 sums leaves of a difference near 0.
fn assert_agrees<B: Backend>(backend: &B, config: &Config, ids: &[i32], rewards: &[f32], lengths: &[u32]) {
    let (found, counts) = run_with_lengths(backend, config, ids, rewards, lengths);
    let (expected, expected_counts) = run_with_lengths(&Reference, config, ids, rewards, lengths);
    let expected: Vec<f64> = expected.iter().map(|&a| f64::from(a)).collect();
    let worst = common::worst(&found, &expected, 1e-9, 2e-7);
    println!("{} {config:?}: {worst:.3} of the tolerance", backend.name());
    assert!(worst <= 1.0, "{config:?}: {worst}");
    assert_eq!(counts, expected_counts, "{config:?}");
}

/// Groups on either side of the size from which blocks share one; interleaved, with rewards that are not finite.
pub fn large_groups_agree_with_the_reference<B: Backend>(backend: &B) {
    let mut rng = common::seeded(5);
    let sizes = [1024, 1025, 4100, 3, 1, 2048];
    let mut ids: Vec<i32> =
        sizes.iter().enumerate().flat_map(|(group, &size)| std::iter::repeat_n(group as i32, size)).collect();
    for i in (1..ids.len()).rev() {
        ids.swap(i, rng.random_range(0..=i));
    }
    let rewards: Vec<f32> = ids
        .iter()
        .map(|&id| match (id, rng.random_range(0..50)) {
            (_, 0) => f32::NAN,
            (5, _) => 0.25,
            _ => 100.0 + rng.random_range(-3.0..3.0),
        })
        .collect();
    let lengths: Vec<u32> = ids.iter().map(|_| rng.random_range(0..3000)).collect();
    for config in every_config() {
        assert_agrees(backend, &config, &ids, &rewards, &lengths);
    }
}

pub fn a_large_offset_costs_no_digits<B: Backend>(backend: &B) {
    let rewards: Vec<f32> = [0.0, 1.0, 2.0, 5.0].iter().map(|r| r + 65536.0).collect();
    let strict = Config { degenerate_tol: 0.0, ..Config::default() };
    let (offset, _) = run(backend, &strict, &[0; 4], &rewards);
    let (plain, _) = run(backend, &strict, &[0; 4], &[0.0, 1.0, 2.0, 5.0]);
    assert_eq!(offset, plain);
}

pub fn counts_add_up<B: Backend>(backend: &B) {
    let ids: Vec<i32> = (0..40).map(|i| i / 2).collect();
    let (_, counts) = run(backend, &Config::default(), &ids, &[0.5; 40]);
    assert_eq!(counts, [20, 0, 0]);
}

pub fn faults_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let groups = GroupPlan::new(backend, &stream, &Groups::from_ids(&[0, 0, 1])).unwrap();
    let rewards = backend.upload(&stream, &[1.0_f32, 2.0]).unwrap();
    let mut advantages = backend.upload(&stream, &[0.0_f32; 3]).unwrap();
    let config = Config { epsilon: -1.0, ddof: 2, ..Config::opo() };
    let call = Call::new(rewards.view(), advantages.view_mut());
    let error = backend.group_advantages(&stream, &config, &groups, call).unwrap_err();
    for part in [
        "epsilon: is -1",
        "ddof: is 2",
        "advantages: has shape [3], needs [2]",
        "names segment 2",
        "lengths: are needed",
    ] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    let large = GroupPlan::new(backend, &stream, &Groups::from_ids(&[0; 1025])).unwrap();
    let rewards = backend.upload(&stream, &[1.0_f32; 1025]).unwrap();
    let mut advantages = backend.upload(&stream, &[0.0_f32; 1025]).unwrap();
    let call = Call::new(rewards.view(), advantages.view_mut());
    let error = backend.group_advantages(&stream, &Config::default(), &large, call).unwrap_err();
    assert!(error.is(Kind::Workspace), "{error}");
}

#[test]
fn groups_are_checked() {
    for (ptr, members, part) in [
        (vec![0, 2], vec![0, 3], "names segment 3 at index 1"),
        (vec![0, 2], vec![1, 1], "names segment 1 again"),
        (vec![0, 1], vec![0, 1], "group_ptr"),
        (vec![], vec![], "group_ptr"),
    ] {
        let error = Groups::new(&ptr, &members, 3).unwrap_err();
        assert!(error.is(Kind::Segments) && error.to_string().contains(part), "{error}");
    }
    let groups = Groups::from_ids(&[5, -1, 5, 0, -1]);
    assert_eq!(groups.len(), 3);
    assert_eq!(groups.members(0), [0, 2]);
    assert_eq!(groups.members(1), [1, 4]);
    assert_eq!(groups, Groups::new(&[0, 2, 4, 5], &[0, 2, 1, 4, 3], 5).unwrap());
}
