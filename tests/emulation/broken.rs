//! Kernels broken on purpose, and the check that is meant to catch each: a worded fault, a wrong result by poison or by the schedule, a
//! crash, or a sanitizer's report.
//!
//! Where the process does not survive, or ThreadSanitizer would count a report against the test run, a case runs in a child process:
//! this test binary again, told by an environment variable to run that one case.

use std::process::{Command, Output};

use moerl::Error;
use moerl::device::emulator::Schedule;

use crate::harness::{Left, Run, emulator, noisy_words, sanitizer};

const CHILD: &str = "MOERL_EMULATION_TEST_CASE";

fn words(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 3 + 1).collect()
}

/// The fault that a run ends with; it must name all of `expected`.
fn assert_fault(run: &Run, expected: &[&str]) {
    match run.on(&emulator()) {
        Err(Error::Emulation(message)) => {
            for part in expected {
                assert!(message.contains(part), "`{part}` is not in: {message}");
            }
        }
        other => panic!("expected a fault, got {other:?}"),
    }
}

/// Of 100 seeds, how many make the run's result differ from that of the kernel as it should be (`variant` 0).
fn wrong_of_100(run: &Run, schedule: Schedule) -> usize {
    let of = |run: &Run, seed| run.ok(&emulator().with_schedule(schedule).with_seed(seed));
    let right: Left = of(&Run { variant: 0, ..run.clone() }, 0);
    for seed in 1..100 {
        assert_eq!(of(&Run { variant: 0, ..run.clone() }, seed), right, "the healthy kernel is right under every seed");
    }
    (0..100).filter(|&seed| of(run, seed) != right).count()
}

// ---- child processes ----------------------------------------------------------------------------------------------------------

/// The cases that run in a child.
fn child_case(name: &str) -> Run<'static> {
    let input: &'static [u32] = words(4096).leak();
    let run = |kernel| Run { kernel, threads: 64, input, output: 4096, ..Run::new(kernel) };
    match name {
        "raw_dereference" => Run { threads: 32, ..run("raw_dereference") },
        "too_large_a_frame" => Run { threads: 32, count: 4096, ..run("too_large_a_frame") },
        "shared_store" => Run { number: 1, ..run("shared_store_past_the_end") },
        "dynamic_shared_store" => Run { number: 1, shared_bytes: 256, ..run("dynamic_shared_store_past_the_end") },
        "shared_load" => Run { number: 1, ..run("shared_load_past_the_end") },
        "shared_index" => Run { number: 1, ..run("shared_array_index_past_the_end") },
        "misaligned_shared" => run("misaligned_shared_access"),
        "reduction" => Run { threads: 256, variant: 1, ..run("reduction_without_barrier") },
        "reduction_healthy" => Run { threads: 256, variant: 0, ..run("reduction_without_barrier") },
        "histogram" => histogram(1, input),
        "histogram_healthy" => histogram(0, input),
        "warp_exchange" => Run { threads: 32, variant: 1, ..run("exchange_without_warp_barrier") },
        "stage" => Run { number: 5, variant: 1, ..run("stage_reused_too_soon") },
        "stage_healthy" => Run { number: 5, variant: 0, ..run("stage_reused_too_soon") },
        "one_place" => Run { blocks: 4, threads: 1, variant: 1, ..run("blocks_store_to_one_place") },
        "one_place_healthy" => Run { blocks: 4, threads: 1, variant: 0, ..run("blocks_store_to_one_place") },
        "last_block_without_fence" => Run { blocks: 4, threads: 32, counters: &[0], variant: 1, ..run("last_block") },
        "last_block_healthy" => Run { blocks: 4, threads: 32, counters: &[0], variant: 0, ..run("last_block") },
        other => panic!("there is no case {other}"),
    }
}

/// Not a test of its own: runs the case that the parent names.
#[test]
#[ignore = "runs in a child process of other tests"]
fn child() {
    let name = std::env::var(CHILD).expect("the parent names a case");
    let seeds = if sanitizer() == "thread" { 3 } else { 1 };
    for seed in 0..seeds {
        println!("{:?}", child_case(&name).on(&emulator().with_seed(seed)).map(|_| "no fault"));
    }
}

/// Runs a case in a child. True, and what it wrote to stderr, if it ended as it should.
fn in_child(case: &str) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", "broken::child", "--ignored", "--nocapture", "--test-threads=1"]).env(CHILD, case);
    let Output { status, stderr, .. } = command.output().expect("the test binary runs");
    (status.success(), String::from_utf8_lossy(&stderr).into_owned())
}

fn assert_report(case: &str, expected: &[&str]) {
    let (survived, report) = in_child(case);
    assert!(!survived, "{case} must not end well");
    for part in expected {
        assert!(report.contains(part), "`{part}` is not in the report of {case}:\n{report}");
    }
}

fn assert_clean(case: &str) {
    let (survived, report) = in_child(case);
    assert!(survived, "{case} must end well:\n{report}");
}

// ---- missing barriers -----------------------------------------------------------------------------------------------------

fn histogram(variant: u32, input: &[u32]) -> Run<'_> {
    let count = input.len() / 256;
    Run { threads: 256, input, output: 256, count, variant, ..Run::new("histogram_without_barrier") }
}

#[test]
fn a_reduction_without_its_barrier_reads_poison() {
    let input = words(256);
    let run = Run { threads: 256, input: &input, output: 1, variant: 1, ..Run::new("reduction_without_barrier") };
    match sanitizer() {
        "thread" => {
            assert_report("reduction", &["ThreadSanitizer: data race", "broken.cu"]);
            assert_clean("reduction_healthy");
        }
        // The sum is right only where the first warp's turn happens to come last: one seed in eight.
        _ => assert!(wrong_of_100(&run, Schedule::Priorities) >= 75),
    }
}

#[test]
fn zeroing_without_a_barrier_is_found_by_priorities_and_missed_by_a_uniform_choice() {
    let input = noisy_words(1, 4096);
    if sanitizer() == "thread" {
        assert_report("histogram", &["ThreadSanitizer: data race", "broken.cu"]);
        assert_clean("histogram_healthy");
        return;
    }
    let run = histogram(1, &input);
    assert!(wrong_of_100(&run, Schedule::Priorities) >= 95);
    // Why priorities are the default. Nothing depends on this half; it says that the comparison still stands.
    assert!(wrong_of_100(&run, Schedule::Random) <= 50);
}

#[test]
fn a_missing_warp_barrier_is_found() {
    let input = words(32);
    let run = Run { input: &input, output: 32, variant: 1, ..Run::new("exchange_without_warp_barrier") };
    match sanitizer() {
        "thread" => assert_report("warp_exchange", &["ThreadSanitizer: data race", "broken.cu"]),
        _ => assert!(wrong_of_100(&run, Schedule::Priorities) >= 95),
    }
}

#[test]
fn blocks_that_race_with_one_another_are_reported_by_thread_sanitizer() {
    if sanitizer() == "thread" {
        assert_report("one_place", &["ThreadSanitizer: data race", "blocks_store_to_one_place"]);
        assert_clean("one_place_healthy");
    }
}

#[test]
fn a_missing_fence_is_reported_by_thread_sanitizer() {
    if sanitizer() == "thread" {
        assert_report("last_block_without_fence", &["ThreadSanitizer: data race", "last_block"]);
        assert_clean("last_block_healthy");
    }
}

// ---- divergence -----------------------------------------------------------------------------------------------------------

#[test]
fn divergent_warp_collectives_are_named_with_line_mask_and_arrivals() {
    let input = words(64);
    let run = |kernel| Run { input: &input, output: 64, ..Run::new(kernel) };
    assert_fault(
        &run("divergent_shuffle"),
        &[
            "divergent_shuffle: block 0, warp 0, broken.cu:",
            "deadlock in shuffle_xor",
            "mask ffffffff, arrived 0000ffff",
            "thread 16 has returned",
        ],
    );
    assert_fault(
        &Run { threads: 64, ..run("divergent_shuffle_that_meets_a_barrier") },
        &["deadlock in shuffle:", "mask ffffffff, arrived 0000ffff", "waits in sync_block at broken.cu:"],
    );
    assert_fault(&run("divergent_operations"), &["divergent warp collective", "ballot", "match_any", "mask ffffffff"]);
    assert_fault(&run("shuffle_from_outside_its_mask"), &["shuffle: reads lane 9, which is not in mask 000000ff"]);
    assert_fault(&run("shuffle_by_a_lane_outside_the_mask"), &["is not in its own mask 000000ff"]);
    // Half a warp is not a warp.
    assert_fault(
        &Run { threads: 16, ..run("divergent_shuffle") },
        &["mask ffffffff names lanes that the warp lacks (it has 0000ffff)"],
    );
}

#[test]
fn divergent_barriers_are_faults_under_every_schedule() {
    let run = |kernel| Run { threads: 96, output: 8, number: 95, ..Run::new(kernel) };
    for emulator in crate::harness::all_schedules() {
        let message = |kernel| run(kernel).on(&emulator).expect_err(kernel).to_string();
        let returned = message("barrier_after_some_returned");
        assert!(returned.contains("divergent barrier") && returned.contains("thread 95"), "{returned}");
        let branches = message("barrier_in_a_branch");
        assert!(branches.contains("divergent barrier: this thread calls sync_block"), "{branches}");
        let skipped = message("barrier_that_one_warp_never_reaches");
        assert!(
            skipped.contains("mask ffffffff, arrived 7fffffff; thread 31 waits in sync_block at broken.cu:"),
            "{skipped}"
        );
    }
}

// ---- global memory --------------------------------------------------------------------------------------------------------

#[test]
fn accesses_out_of_bounds_name_buffer_and_byte() {
    let input = words(40);
    let run =
        |kernel, number: i32| Run { threads: 1, input: &input, output: 20, number: number as u32, ..Run::new(kernel) };
    assert_fault(
        &run("stray_load", 40),
        &[
            "stray_load: block 0, thread ",
            "broken.cu:",
            "load of 4 bytes out of bounds: byte 160 of `input`, which has 160",
        ],
    );
    assert_fault(&run("stray_load", -1), &["load of 4 bytes out of bounds: 4 bytes before `input`"]);
    assert_fault(&run("stray_load", 1 << 28), &["load of 4 bytes out of bounds"]);
    assert_fault(&run("stray_load16", 40), &["load of 16 bytes out of bounds: byte 160 of `input`"]);
    assert_fault(&run("stray_store", 20), &["store of 4 bytes out of bounds: byte 80 of `output`, which has 80"]);
    assert_fault(&run("stray_store16", 20), &["store of 16 bytes out of bounds: byte 80 of `output`"]);
    assert_fault(&run("stray_atomic", 20), &["atomic of 4 bytes out of bounds: byte 80 of `output`"]);
    assert_fault(&run("stray_copy", 40), &["asynchronous copy of 16 bytes out of bounds: byte 160 of `input`"]);
    // 16 bytes that begin inside and end outside.
    assert_fault(
        &Run { input: &input[..38], ..run("stray_load16", 36) },
        &["load of 16 bytes out of bounds: byte 144 of `input`, which has 152"],
    );
    for (kernel, number) in [
        ("stray_load", 39),
        ("stray_load16", 36),
        ("stray_store", 19),
        ("stray_store16", 16),
        ("stray_atomic", 19),
        ("stray_copy", 36),
    ] {
        run(kernel, number).ok(&emulator());
    }
}

#[test]
fn stores_to_an_input_are_faults() {
    let input = words(4);
    let run = |kernel| Run { threads: 1, input: &input, output: 4, ..Run::new(kernel) };
    assert_fault(&run("store_to_input"), &["store of 4 bytes to a buffer that is for reading: byte 0 of `input`"]);
    assert_fault(&run("atomic_on_input"), &["atomic of 4 bytes to a buffer that is for reading: byte 0 of `input`"]);
}

#[test]
fn misaligned_accesses_are_faults() {
    let input = words(40);
    let run = |kernel, number| Run { threads: 1, input: &input, output: 40, number, ..Run::new(kernel) };
    assert_fault(&run("stray_load16", 1), &["misaligned load of 16 bytes: byte 4 of `input`", "not a multiple of 16"]);
    assert_fault(&run("stray_store16", 2), &["misaligned store of 16 bytes: byte 8 of `output`"]);
    assert_fault(&run("stray_copy", 3), &["misaligned asynchronous copy of 16 bytes: byte 12 of `input`"]);
    assert_fault(&run("misaligned_load", 0), &["misaligned load of 4 bytes: byte 2 of `input`"]);
    assert_fault(&run("misaligned_copy", 0), &["misaligned asynchronous copy of 16 bytes: the place in shared memory"]);
}

#[test]
fn the_gap_between_two_rows_is_out_of_bounds() {
    let input = words(3 * 24 - 4);
    let run =
        |kernel, number| Run { threads: 1, input: &input, rows: Some((20, 24)), output: 4, number, ..Run::new(kernel) };
    assert_fault(
        &run("stray_load", 20),
        &["load of 4 bytes in the gap between two rows: byte 80 of `input`", "rows of 80 every 96"],
    );
    assert_fault(&run("stray_load", 47), &["in the gap between two rows: byte 188 of `input`"]);
    assert_fault(&run("stray_load", 68), &["out of bounds: byte 272 of `input`, which has 272"]);
    for number in [0, 19, 24, 43, 48, 67] {
        assert_eq!(run("stray_load", number).ok(&emulator()).output[0], input[number as usize]);
    }
}

#[test]
fn pointers_that_are_not_global_are_told_apart() {
    assert_fault(&Run { output: 1, number: 3, ..Run::new("null_load") }, &["load of 4 bytes through a null pointer"]);
    assert_fault(&Run { output: 1, ..Run::new("load_from_shared") }, &["through a pointer that is not a global one"]);
}

#[test]
fn following_a_global_pointer_directly_kills_the_process() {
    assert_report("raw_dereference", &[]);
}

#[test]
fn a_stack_that_overflows_kills_the_process() {
    assert_report("too_large_a_frame", &[]);
}

// ---- shared memory --------------------------------------------------------------------------------------------------------

#[test]
fn stores_past_a_shared_array_damage_its_red_zone() {
    if sanitizer() == "address" {
        assert_report("shared_store", &["AddressSanitizer: use-after-poison", "WRITE of size 4", "broken.cu"]);
        assert_report("dynamic_shared_store", &["AddressSanitizer: use-after-poison", "WRITE of size 4", "broken.cu"]);
        return;
    }
    let run = |kernel, shared_bytes| Run { threads: 64, output: 64, shared_bytes, number: 1, ..Run::new(kernel) };
    assert_fault(
        &run("shared_store_past_the_end", 0),
        &["block 0: a thread stored out of bounds of shared memory: byte 256 of `words`, which has 256"],
    );
    assert_fault(
        &run("dynamic_shared_store_past_the_end", 256),
        &["byte 256 of `dynamic shared memory`, which has 256"],
    );
    assert_fault(&Run { number: -1i32 as u32, ..run("shared_store_past_the_end", 0) }, &["byte -4 of `words`"]);
    Run { number: 0, ..run("shared_store_past_the_end", 0) }.ok(&emulator());
}

#[test]
fn loads_past_a_shared_array_are_reported_by_the_address_and_undefined_behaviour_sanitizers() {
    if sanitizer() == "address" {
        assert_report("shared_load", &["AddressSanitizer: use-after-poison", "READ of size 4", "broken.cu"]);
        assert_report("shared_index", &["out of bounds for type", "broken.cu"]);
        assert_report("misaligned_shared", &["misaligned address", "which requires 16 byte alignment", "broken.cu"]);
    }
}

#[test]
fn what_nobody_wrote_to_shared_memory_is_not_a_number() {
    let run = |number| Run { threads: 64, blocks: 3, output: 3, number, ..Run::new("uninitialised_shared_memory") };
    assert!(run(5).ok(&emulator()).output.iter().all(|&x| f32::from_bits(x).is_nan()));
    assert_eq!(run(64).ok(&emulator()).output, [64f32.to_bits(); 3]);
}

#[test]
fn shared_memory_beyond_cudas_limits_is_a_fault() {
    assert_fault(
        &Run::new("too_much_static_shared_memory"),
        &["too much shared memory: with `second`, 49156 bytes are declared (at most 49152)"],
    );
    let run = |shared_bytes| Run { shared_bytes, ..Run::new("some_static_shared_memory") };
    run(227 * 1024 - 4096).ok(&emulator());
    assert_fault(&run(227 * 1024 - 4095), &["232449 are used in all (at most 232448)"]);
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------------

#[test]
fn a_missing_or_misplaced_wait_reads_what_was_there_before() {
    let input = words(256);
    for variant in 1..=3 {
        let run = Run { threads: 256, input: &input, output: 256, variant, ..Run::new("copy_without_wait") };
        // Each copy lands late with probability one half, so that all 256 in time never happens.
        assert_eq!(wrong_of_100(&run, Schedule::Priorities), 100, "variant {variant}");
        assert_eq!(wrong_of_100(&run, Schedule::InOrder), 100, "variant {variant}");
    }
}

#[test]
fn copies_that_nobody_waits_for_are_a_fault() {
    let input = words(32);
    let run = Run { input: &input, output: 32, variant: 4, ..Run::new("copy_without_wait") };
    assert_fault(
        &run,
        &["copy_without_wait: block 0", "broken.cu:", "returns without waiting for 1 asynchronous copies"],
    );
}

#[test]
fn a_stage_that_is_filled_again_too_soon_changes_under_its_readers() {
    let input = words(5 * 64);
    let run =
        Run { threads: 64, input: &input, output: 5 * 64, number: 5, variant: 1, ..Run::new("stage_reused_too_soon") };
    match sanitizer() {
        "thread" => {
            assert_report("stage", &["ThreadSanitizer: data race", "broken.cu"]);
            assert_clean("stage_healthy");
        }
        _ => assert!(wrong_of_100(&run, Schedule::Priorities) >= 95),
    }
}

#[test]
fn a_copy_to_a_place_outside_shared_memory_is_a_fault() {
    let input = words(4);
    assert_fault(
        &Run { input: &input, ..Run::new("copy_to_nowhere") },
        &["asynchronous copy of 4 bytes to a place that is not inside a shared array"],
    );
}

/// Prints, for whoever wants to know, what each kind of schedule finds: `cargo test … -- --ignored --nocapture what_each`.
#[test]
#[ignore = "a table, not a test"]
fn what_each_schedule_finds() {
    let (many, few) = (noisy_words(1, 4096), words(5 * 64));
    let reduction = Run { threads: 256, input: &many, output: 1, variant: 1, ..Run::new("reduction_without_barrier") };
    let exchange = Run { input: &many, output: 32, variant: 1, ..Run::new("exchange_without_warp_barrier") };
    let stage =
        Run { threads: 64, input: &few, output: 5 * 64, number: 5, variant: 1, ..Run::new("stage_reused_too_soon") };
    for run in [reduction, histogram(1, &many), exchange, stage] {
        let all = [Schedule::InOrder, Schedule::Reverse, Schedule::Random, Schedule::Priorities];
        println!("{}: {:?}", run.kernel, all.map(|schedule| (schedule, wrong_of_100(&run, schedule))));
    }
}
