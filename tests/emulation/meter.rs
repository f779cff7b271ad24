//! The traffic meter, on kernels whose traffic is known beforehand.

use moerl::device::emulator::{BufferTraffic, Touches};
use moerl::device::executor::{Arguments, Executor, Grid, Kernel};
use moerl::{Buffer, Emulator};

use crate::harness::{Run, TestCall, all_schedules, emulator, noisy_words};

/// What the only launch so far did to the buffer.
fn traffic(emulator: &Emulator, buffer: &str) -> BufferTraffic {
    let launches = emulator.take_traffic();
    assert_eq!(launches.len(), 1);
    *launches[0].buffer(buffer).unwrap()
}

fn metered(run: &Run, buffer: &str) -> BufferTraffic {
    let emulator = emulator().metered();
    run.ok(&emulator);
    traffic(&emulator, buffer)
}

const NOTHING: fn(u64) -> Touches = |bytes| Touches {
    accesses: 0,
    bytes: 0,
    untouched: bytes,
    once: 0,
    again: 0,
    most: 0,
    sectors: 0,
    warp_sectors: 0,
};

#[test]
fn a_copy_touches_every_byte_once_under_every_schedule() {
    let (rows, columns) = (6, 256);
    let input = noisy_words(1, rows * columns);
    let bytes = (4 * rows * columns) as u64;
    for (variant, width) in [(0, 4), (1, 16)] {
        let once = Touches {
            accesses: bytes / width,
            bytes,
            untouched: 0,
            once: bytes,
            again: 0,
            most: 1,
            sectors: bytes / 32,
            warp_sectors: bytes / 32,
        };
        for emulator in all_schedules() {
            let emulator = emulator.metered();
            let run = Run {
                blocks: rows as u32,
                threads: 64,
                input: &input,
                output: input.len(),
                count: columns,
                stride: columns,
                variant,
                ..Run::new("copy_rows")
            };
            assert_eq!(run.ok(&emulator).output, input);
            let launch = &emulator.take_traffic()[0];
            assert_eq!((launch.kernel, launch.grid.blocks, launch.grid.threads), ("copy_rows", 6, 64));
            assert_eq!((launch.load_bytes(), launch.store_bytes()), (bytes, bytes));
            let nothing = NOTHING(bytes);
            assert_eq!(
                *launch.buffer("input").unwrap(),
                BufferTraffic { name: "input", bytes, loads: once, stores: nothing, atomics: 0 }
            );
            assert_eq!(
                *launch.buffer("output").unwrap(),
                BufferTraffic { name: "output", bytes, loads: nothing, stores: once, atomics: 0 }
            );
            assert_eq!(launch.buffer("counters").unwrap().bytes, 0);
        }
    }
}

#[test]
fn gaps_between_rows_belong_to_no_buffer() {
    let (rows, columns, stride) = (5, 20, 27);
    let input = noisy_words(2, (rows - 1) * stride + columns);
    let run = Run {
        blocks: rows as u32,
        input: &input,
        rows: Some((columns, stride)),
        output: rows * columns,
        count: columns,
        stride,
        ..Run::new("copy_rows")
    };
    let found = metered(&run, "input");
    let bytes = (4 * rows * columns) as u64;
    assert_eq!(found.bytes, bytes);
    assert_eq!((found.loads.untouched, found.loads.once, found.loads.again), (0, bytes, 0));
    // A row of 80 bytes begins 12 bytes further into its sector each time: 0, 12, 24, 4, 16 bytes; 24 + 80 reaches a fourth sector.
    assert_eq!(found.loads.sectors, 3 + 3 + 4 + 3 + 3);
    // Half of the rows: the other half is untouched.
    let found = metered(&Run { blocks: 2, ..run }, "input");
    assert_eq!((found.loads.untouched, found.loads.once), (bytes * 3 / 5, bytes * 2 / 5));
}

#[test]
fn bytes_touched_again_and_the_most_touches_are_counted() {
    let input = noisy_words(3, 32 * 8);
    let found = metered(&Run { input: &input, output: 32, stride: 8, number: 2, ..Run::new("strided_loads") }, "input");
    let expected = Touches {
        accesses: 96,
        bytes: 384,
        untouched: 32 * 28,
        once: 0,
        again: 32 * 4,
        most: 3,
        // Every lane has a sector of its own, in each of the three instructions; the block has seen it the first time.
        sectors: 32,
        warp_sectors: 96,
    };
    assert_eq!(found.loads, expected);
    // All lanes load one word: one sector an instruction.
    let found = metered(&Run { input: &input, output: 32, stride: 0, number: 2, ..Run::new("strided_loads") }, "input");
    assert_eq!((found.loads.most, found.loads.sectors, found.loads.warp_sectors), (96, 1, 3));
    // Two blocks that load the same sector count it twice.
    let found = metered(&Run { blocks: 2, input: &input, output: 64, stride: 0, ..Run::new("strided_loads") }, "input");
    assert_eq!((found.loads.most, found.loads.sectors, found.loads.warp_sectors), (64, 2, 2));
}

#[test]
fn asynchronous_copies_are_loads_and_atomics_are_neither() {
    let input = noisy_words(4, 256);
    let run = Run { threads: 64, input: &input, counters: &[0], ..Run::new("asynchronous_load") };
    let found = metered(&run, "input");
    assert_eq!((found.loads.accesses, found.loads.bytes, found.loads.once, found.loads.sectors), (64, 1024, 1024, 32));
    let found = metered(&run, "counters");
    assert_eq!(found, BufferTraffic { name: "counters", bytes: 4, loads: NOTHING(4), stores: NOTHING(4), atomics: 64 });
}

#[test]
fn memory_updated_in_place_is_loaded_by_one_name_and_stored_by_the_other() {
    let emulator = emulator().metered();
    let mut words = emulator.send(&(), &noisy_words(5, 100)).unwrap();
    let before = words.as_slice().to_vec();
    let mut arguments = Arguments::new::<Emulator>();
    let call = TestCall {
        output: arguments.write("gradient", &mut words.view_mut()),
        input: arguments.read("logits", words.view()),
        count: 100,
        ..TestCall::NONE
    };
    let kernel = Kernel { image: "tests", name: "increment_in_place" };
    // SAFETY: both pointers are of the one array, which has the 100 words; the threads of the launch share none of them.
    unsafe {
        emulator.launch(&(), kernel, Grid { blocks: 1, threads: 32, shared_bytes: 0 }, &arguments, &call).unwrap()
    };
    assert!(words.as_slice().iter().zip(&before).all(|(after, before)| *after == before.wrapping_add(1)));
    let launch = &emulator.take_traffic()[0];
    let (logits, gradient) = (launch.buffer("logits").unwrap(), launch.buffer("gradient").unwrap());
    assert_eq!((logits.loads.once, logits.stores.once), (400, 0));
    assert_eq!((gradient.loads.once, gradient.stores.once), (0, 400));
}

#[test]
fn faults_are_found_while_the_meter_runs() {
    let input = noisy_words(6, 40);
    let run = Run { threads: 1, input: &input, output: 20, number: 40, ..Run::new("stray_load") };
    let message = run.on(&emulator().metered()).unwrap_err().to_string();
    assert!(message.contains("byte 160 of `input`, which has 160"), "{message}");
}
