//! Orders: what each kind of schedule promises, and what CUDA would refuse to launch at all.

use moerl::device::emulator::Schedule;
use moerl::{Emulator, Error};

use crate::harness::{Run, all_schedules, emulator, sanitizer};

const THREADS: u32 = 64;
const BLOCKS: u32 = 3;

/// The how manieth each thread came by, block after block.
fn order(emulator: &Emulator) -> Vec<u32> {
    let output = (BLOCKS * THREADS) as usize;
    Run { blocks: BLOCKS, threads: THREADS, output, counters: &[0], ..Run::new("order") }.ok(emulator).output
}

#[test]
fn in_order_and_reverse_are_what_they_say() {
    let in_order = order(&emulator().with_schedule(Schedule::InOrder));
    assert_eq!(in_order, (0..BLOCKS * THREADS).collect::<Vec<_>>());
    let reverse = order(&emulator().with_schedule(Schedule::Reverse));
    assert_eq!(reverse, (0..BLOCKS * THREADS).rev().collect::<Vec<_>>());
}

#[test]
fn a_seed_decides_the_order_and_another_seed_another_one() {
    for schedule in [Schedule::Random, Schedule::Priorities] {
        for blocks in [1, 3] {
            let of = |seed| order(&emulator().with_schedule(schedule).with_blocks_in_flight(blocks).with_seed(seed));
            assert_eq!(of(5), of(5));
            let different = (1..20).filter(|&seed| of(seed) != of(0)).count();
            assert_eq!(different, 19, "{schedule:?}");
        }
    }
}

#[test]
fn with_priorities_warps_come_one_after_the_other_for_the_most_part() {
    // At an atomic a thread may lose its place (one time in eight), so the rule has exceptions.
    let mut neighbours = 0;
    for seed in 0..20 {
        let places = order(&emulator().with_seed(seed));
        for block in places.chunks(THREADS as usize) {
            let mut warps: Vec<(u32, usize)> = block.iter().enumerate().map(|(t, &place)| (place, t / 32)).collect();
            warps.sort_unstable();
            neighbours += warps.windows(2).filter(|pair| pair[0].1 == pair[1].1).count();
        }
    }
    let pairs = 20 * BLOCKS as usize * (THREADS as usize - 1);
    assert!(neighbours * 10 > pairs * 7, "{neighbours} of {pairs}");
}

#[test]
fn blocks_in_flight_meet_and_others_do_not() {
    for emulator in all_schedules() {
        let emulator = emulator.with_blocks_in_flight(3);
        let run = Run { blocks: 3, threads: 32, output: 96, counters: &[0], number: 3, ..Run::new("rendezvous") };
        let expected: Vec<u32> = (0..96).map(|i| i / 32).collect();
        assert_eq!(run.ok(&emulator).output, expected);
    }
}

#[test]
fn the_last_block_sees_what_the_others_wrote_before_their_fence() {
    let input: Vec<u32> = (0..9).map(|i| (i as f32 * 0.3).to_bits()).collect();
    let expected = input.iter().fold(0.0, |sum, &x| sum + f32::from_bits(x));
    for emulator in all_schedules() {
        let run = Run { blocks: 9, input: &input, output: 10, counters: &[0], ..Run::new("last_block") };
        assert_eq!(f32::from_bits(run.ok(&emulator).output[0]), expected);
    }
}

#[test]
fn launches_are_recorded() {
    let emulator = emulator();
    order(&emulator);
    Run { output: 192, ..Run::new("indices") }.ok(&emulator);
    let launches = emulator.take_launches();
    assert_eq!(launches.iter().map(|l| l.kernel.name).collect::<Vec<_>>(), ["order", "indices"]);
    assert_eq!((launches[0].grid.blocks, launches[0].grid.threads), (BLOCKS, THREADS));
    assert!(emulator.launches().is_empty());
}

#[test]
fn what_cuda_would_refuse_is_refused() {
    let refused = |run: Run, words: &str| match run.on(&emulator()) {
        Err(Error::Emulation(message)) => assert!(message.contains(words), "{message}"),
        other => panic!("{other:?}"),
    };
    refused(Run::new("no_such_kernel"), "there is no such kernel");
    refused(Run { blocks: 0, ..Run::new("order") }, "a grid of 0 blocks");
    refused(Run { blocks: 1 << 31, ..Run::new("order") }, "a grid of 2147483648 blocks");
    refused(Run { threads: 0, ..Run::new("order") }, "0 threads");
    refused(Run { threads: 33, ..Run::new("votes") }, "33 threads a block; it is declared for 1 to 32");
    refused(Run { shared_bytes: 227 * 1024 + 1, ..Run::new("order") }, "232449 bytes of shared memory");
}

#[test]
fn the_sanitizer_that_was_asked_for_looks_on() {
    // `cargo xtask test --sanitize` sets it, and loads a stand-in for the emulator that is linked in.
    assert_eq!(sanitizer(), std::env::var("MOERL_EMULATION_SANITIZE").unwrap_or_default());
}
