//! What only the emulator can show: every schedule and grid gives the same bits, and each logit is read once.

use moerl::Emulator;
use moerl::device::emulator::{LaunchTraffic, Touches};
use moerl::element::{Float, bf16, f16};
use moerl::logprob::{Config, Partial};
use rand::RngExt;

use crate::common::schedules::schedules;
use crate::common::{is_sanitized, seeded};
use crate::support::*;

fn rows_with_faults(seed: u64, rows: usize, columns: usize) -> Inputs<bf16> {
    let mut rng = seeded(seed);
    let mut inputs = Inputs::<bf16>::random(&mut rng, rows, columns, 4.0);
    let tokens = inputs.tokens.as_mut().unwrap();
    tokens[3] = -100;
    tokens[8] = columns as i64;
    inputs.logits[6 * columns + 1] = bf16::NAN;
    inputs.temperature = Some((0..rows).map(|r| if r == 9 { -1.0 } else { rng.random_range(0.5..2.0) }).collect());
    inputs
}

#[test]
fn every_schedule_and_grid_gives_the_same_forward() {
    let rows = rows_with_faults(1, 75, 2500).laid_out(3, 2501);
    let few = rows_with_faults(2, 11, 9001);
    let shared = Inputs { workspace: true, ..few.clone() };
    let first = Emulator::new();
    let expected = [&rows, &few, &shared].map(|inputs| forward(&first, inputs, EVERYTHING));
    assert_eq!(expected[1].bits(), expected[2].bits());
    for emulator in schedules() {
        for (inputs, expected) in [&rows, &few, &shared].into_iter().zip(&expected) {
            let found = forward(&emulator, inputs, EVERYTHING);
            assert_eq!((found.bits(), found.fault), (expected.bits(), expected.fault), "{emulator:?}");
        }
    }
}

#[test]
fn every_schedule_and_grid_gives_the_same_gradient() {
    let inputs = rows_with_faults(3, 37, 2500).laid_out(3, 2501);
    let mut up = Upstream::random(&mut seeded(4), 37);
    for array in [&mut up.logprobs, &mut up.entropy, &mut up.lse] {
        array.as_mut().unwrap()[20..25].fill(0.0);
    }
    let first = Emulator::new();
    let saved = forward(&first, &inputs, EVERYTHING).saved;
    for target in [Target::InPlace, Target::Elsewhere { offset: 2, stride: 2507 }] {
        let bits = |emulator: &Emulator| -> Vec<u16> {
            let memory: Vec<bf16> = backward(emulator, &inputs, &saved, &up, target);
            memory.iter().map(|g| if g.is_nan() { 0x7fc0 } else { g.to_bits() }).collect()
        };
        let expected = bits(&first);
        assert!(schedules().all(|emulator| bits(&emulator) == expected));
    }
}

/// Calls on 9 rows, one of each kind that the general kernels serve, with what their forward call saved.
fn general_cases() -> Vec<(Inputs<bf16>, Vec<Partial>, Upstream)> {
    let (rows, columns) = (9, 4133);
    let mut rng = seeded(13);
    let mut case = |ids: usize, softcap: Option<f32>, is_kept: bool, is_dense: bool| {
        let tokens = (0..rows * ids).map(|_| rng.random_range(0..columns as i64)).collect();
        let mut inputs = Inputs::<bf16>::random(&mut rng, rows, columns, 4.0).with_tokens(ids, tokens);
        inputs.config.softcap = softcap;
        let mut some = |n: usize| (0..n).map(|_| normal(&mut rng)).collect::<Vec<f32>>();
        let mut up = Upstream::default();
        if is_dense {
            up = Upstream {
                logprobs: Some(some(rows * ids)),
                entropy: Some(some(rows)),
                lse: Some(some(rows)),
                kept: None,
            };
            up.logprobs.as_mut().unwrap()[3 * ids..5 * ids].fill(0.0);
            up.entropy.as_mut().unwrap()[3..5].fill(0.0);
            up.lse.as_mut().unwrap()[3..5].fill(0.0);
            up.lse.as_mut().unwrap()[7] = f32::NAN;
        }
        if is_kept {
            let sets: Vec<Vec<i32>> = (0..rows as i32)
                .map(|r| (0..columns as i32).filter(|j| j % 31 == r || j * r % 67 == 5).collect())
                .collect();
            inputs.keep = Some(Keep::of(&sets));
            up.kept = Some(KeptUpstream { saved: Vec::new(), logprobs: some(rows), entropy: some(rows) });
        }
        let found = forward(&Emulator::new(), &inputs, Asked { kept: is_kept, ..EVERYTHING });
        if let Some(kept) = &mut up.kept {
            kept.saved = found.kept_saved;
        }
        (inputs, found.saved, up)
    };
    vec![
        case(3, None, false, true),
        case(40, Some(20.0), false, true),
        case(1, None, true, true),
        case(1, Some(20.0), true, false),
    ]
}

#[test]
fn every_schedule_and_grid_gives_the_same_general_gradient() {
    for (inputs, saved, up) in general_cases() {
        let inputs = inputs.laid_out(3, 4136);
        for target in [Target::InPlace, Target::Elsewhere { offset: 2, stride: 4139 }] {
            let bits = |emulator: &Emulator| -> Vec<u16> {
                let memory: Vec<bf16> = backward(emulator, &inputs, &saved, &up, target);
                memory.iter().map(|g| if g.is_nan() { 0x7fc0 } else { g.to_bits() }).collect()
            };
            let expected = bits(&Emulator::new());
            for emulator in schedules() {
                let launches = |e: &Emulator| e.take_launches().pop().expect("a launch").kernel.name;
                assert!(bits(&emulator) == expected, "{emulator:?}");
                assert_eq!(launches(&emulator), "logprob_backward_general_bf16");
            }
        }
    }
}

/// Where rows begin in a line of 128 bytes moves the panels, and whether logits and gradient begin alike decides whether whole packs are read.
#[test]
fn a_general_gradient_is_the_same_wherever_rows_lie() {
    let rows_of = |inputs: &Inputs<bf16>, offset: usize, stride: usize, memory: &[bf16]| -> Vec<Vec<u32>> {
        let there = Inputs { offset, stride, ..inputs.clone() };
        gradient_rows(&there, memory).iter().map(|row| canonical(row).collect()).collect()
    };
    let emulator = Emulator::new().with_multiprocessors(3);
    for (inputs, saved, up) in general_cases() {
        let columns = inputs.columns;
        let plain: Vec<bf16> = backward(&emulator, &inputs, &saved, &up, Target::Apart);
        let plain = rows_of(&inputs, 0, columns, &plain);
        for (offset, stride) in
            [(0, columns + 3), (1, columns), (8, columns + 11), (63, columns + 1), (64, 2 * columns)]
        {
            let moved = inputs.laid_out(offset, stride);
            for (offset, stride) in [(offset, stride), (0, columns + 1), (5, columns + 60)] {
                let to = Target::Elsewhere { offset, stride };
                let memory: Vec<bf16> = backward(&emulator, &moved, &saved, &up, to);
                assert!(
                    rows_of(&inputs, offset, stride, &memory) == plain,
                    "from {}, {} to {to:?}",
                    moved.offset,
                    moved.stride
                );
            }
            let memory: Vec<bf16> = backward(&emulator, &moved, &saved, &up, Target::InPlace);
            assert!(rows_of(&inputs, offset, stride, &memory) == plain, "in place at {offset} by {stride}");
        }
        // Rows alone, in a grid of their own.
        for r in [0, 4, 8] {
            let some = Upstream {
                logprobs: up.logprobs.as_ref().map(|a| a[r * inputs.ids..(r + 1) * inputs.ids].to_vec()),
                entropy: up.entropy.as_ref().map(|a| vec![a[r]]),
                lse: up.lse.as_ref().map(|a| vec![a[r]]),
                kept: up.kept.as_ref().map(|k| KeptUpstream {
                    saved: vec![k.saved[r]],
                    logprobs: vec![k.logprobs[r]],
                    entropy: vec![k.entropy[r]],
                }),
            };
            let memory: Vec<bf16> = backward(&emulator, &inputs.rows_of(&[r]), &saved[r..=r], &some, Target::Apart);
            assert!(rows_of(&inputs.rows_of(&[r]), 0, columns, &memory)[0] == plain[r], "row {r} alone");
        }
    }
}

#[test]
fn gradients_of_few_rows_go_to_all_multiprocessors() {
    let columns = 151_936;
    let (multiprocessors, panels) = (132, 75);
    let emulator = Emulator::new().with_multiprocessors(multiprocessors);
    let plain = Inputs::<bf16>::random(&mut seeded(14), 4, columns, 3.0);
    let capped = Inputs { config: Config { softcap: Some(20.0), ..Config::default() }, ..plain.clone() };
    for inputs in [plain, capped] {
        for rows in 1..=4 {
            let inputs = inputs.rows_of(&(0..rows).collect::<Vec<_>>());
            let saved = forward(&emulator, &inputs, EVERYTHING).saved;
            let up = Upstream { logprobs: Some(vec![1.0; rows]), ..Upstream::default() };
            emulator.take_launches();
            let _: Vec<bf16> = backward(&emulator, &inputs, &saved, &up, Target::Apart);
            let [launch] = &emulator.take_launches()[..] else { panic!("one launch") };
            let (blocks, warps) = (launch.grid.blocks, launch.grid.threads / 32);
            // No multiprocessor has more panels than by dealing them one by one.
            let fair = (rows as u32 * panels).div_ceil(multiprocessors);
            assert!(blocks.div_ceil(multiprocessors) * warps <= fair, "{rows} rows: {blocks} blocks of {warps} warps");
            assert!(blocks * warps >= rows as u32 * panels, "{rows} rows: {blocks} blocks of {warps} warps");
        }
    }
}

#[test]
fn few_rows_are_shared_by_blocks_only_with_a_workspace() {
    let inputs = rows_with_faults(5, 10, 40_000);
    let shared = Inputs { workspace: true, ..inputs.clone() };
    let names = |inputs: &Inputs<bf16>, multiprocessors| {
        let emulator = Emulator::new().with_multiprocessors(multiprocessors);
        forward(&emulator, inputs, EVERYTHING);
        emulator.take_launches().iter().map(|launched| (launched.kernel.name, launched.grid.blocks)).collect::<Vec<_>>()
    };
    assert_eq!(names(&inputs, 132), [("logprob_forward_squares_bf16", 10)]);
    assert_eq!(names(&shared, 4), [("logprob_forward_squares_bf16", 8)], "enough rows for this device");
    let one_too_many =
        Inputs { workspace: true, ..rows_with_faults(5, 10, 262_144).rows_of(&[0, 1, 2, 4, 5, 6, 7, 8, 9]) };
    let [("logprob_panels_bf16", 8), ("logprob_merge", 9)] = names(&one_too_many, 4)[..] else {
        panic!("the ninth row would be walked alone: {:?}", names(&one_too_many, 4));
    };
    let [("logprob_panels_bf16", panel_blocks), ("logprob_merge", 10)] = names(&shared, 132)[..] else {
        panic!("{:?}", names(&shared, 132));
    };
    assert!(panel_blocks >= 100, "200 panels over 132 multiprocessors came to {panel_blocks} blocks");
}

#[test]
fn more_rows_than_a_grid_dimension_holds() {
    // A sanitizer sees in few rows what it would see in many, and takes minutes for those.
    let rows = if is_sanitized() { 4097 } else { 70_001 };
    let inputs = Inputs::<bf16>::random(&mut seeded(6), rows, 8, 3.0);
    let emulator = Emulator::new().with_multiprocessors(132);
    let found = forward(&emulator, &inputs, EVERYTHING);
    let up = Upstream { logprobs: Some(vec![1.0; rows]), ..Upstream::default() };
    let gradient: Vec<bf16> = backward(&emulator, &inputs, &found.saved, &up, Target::Apart);
    for r in [0, 1, 65_534, 65_535, 65_536, rows - 1].into_iter().filter(|&r| r < rows) {
        let alone = inputs.rows_of(&[r]);
        assert_eq!(forward(&emulator, &alone, EVERYTHING).row_bits(0), found.row_bits(r), "row {r}");
        let alone: Vec<bf16> = backward(&emulator, &alone, &found.saved[r..=r], &up.rows_of(&[r]), Target::Apart);
        assert_eq!(alone, gradient[8 * r..8 * (r + 1)], "row {r}");
    }
    assert!(emulator.launches().iter().all(|launched| launched.grid.blocks < 1 << 31));
}

// ---- traffic --------------------------------------------------------------------------------------------------------

fn traffic_of<T: Float>(emulator: &Emulator, inputs: &Inputs<T>, asked: Asked) -> Vec<LaunchTraffic> {
    emulator.take_traffic();
    forward(emulator, inputs, asked);
    emulator.take_traffic()
}

fn loads(launch: &LaunchTraffic, name: &str) -> Touches {
    launch.buffer(name).unwrap_or_else(|| panic!("{} has no {name}", launch.kernel)).loads
}

/// Every byte of `rows` rows exactly once, in sectors that are at most one per hundred more than these bytes.
fn assert_read_once<T: Float>(touched: Touches, inputs: &Inputs<T>, rows: usize) {
    let bytes = (rows * inputs.vocabulary() * size_of::<T>()) as u64;
    assert_eq!((touched.bytes, touched.once, touched.again), (bytes, bytes, 0), "bytes loaded, once, more than once");
    assert!(touched.sectors * 32 <= bytes + bytes / 100 + 64, "{} sectors for {bytes} bytes", touched.sectors);
}

#[test]
fn forward_reads_every_logit_once_and_hardly_anything_else() {
    fn run<T: Float>(columns: usize, offset: usize, stride: usize) {
        let emulator = Emulator::new().metered();
        let inputs = Inputs::<T>::random(&mut seeded(7), 12, columns, 3.0).laid_out(offset, stride);
        let [launch] = &traffic_of(&emulator, &inputs, EVERYTHING)[..] else { panic!("one launch") };
        assert_read_once(loads(launch, "logits"), &inputs, 12);
        let logits = (12 * columns * size_of::<T>()) as u64;
        let total = launch.load_bytes() + launch.store_bytes();
        assert!(total * 100 <= logits * 101, "{total} bytes in all for {logits} bytes of logits");
    }
    run::<bf16>(32_000, 0, 32_000);
    run::<bf16>(32_001, 0, 32_001);
    run::<f16>(16_001, 5, 16_411);
    run::<f32>(16_001, 3, 16_001);
    run::<bf16>(264_193, 0, 264_193);
}

#[test]
fn a_shared_row_is_read_once_and_its_records_are_their_own_line() {
    let emulator = Emulator::new().with_multiprocessors(132).metered();
    let mut inputs = Inputs::<bf16>::random(&mut seeded(8), 3, 50_257, 3.0);
    inputs.workspace = true;
    inputs.tokens.as_mut().unwrap()[1] = -100;
    let [panels, merge] = &traffic_of(&emulator, &inputs, EVERYTHING)[..] else { panic!("two launches") };
    assert_read_once(loads(panels, "logits"), &inputs, 2);
    assert_eq!(loads(merge, "logits").bytes, 0);
    // 16 bytes a panel and 4 a row, written and read back.
    let records = 2 * (50_257_u64.div_ceil(2048) * 16 + 4);
    let written = panels.buffer("workspace").unwrap().stores;
    assert_eq!((written.bytes, written.again), (records, 0));
    assert_eq!(loads(merge, "workspace").bytes, records);
}

#[test]
fn absent_rows_are_not_read() {
    let emulator = Emulator::new().metered();
    let mut inputs = Inputs::<bf16>::random(&mut seeded(9), 9, 5000, 3.0);
    inputs.loss_mask = Some(vec![1, 0, 1, 0, 0, 1, 1, 1, 1]);
    inputs.tokens.as_mut().unwrap()[8] = -100;
    inputs.temperature = Some(vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0]);
    for workspace in [false, true] {
        let inputs = Inputs { workspace, ..inputs.clone() };
        let traffic = traffic_of(&emulator, &inputs, EVERYTHING);
        assert_read_once(loads(&traffic[0], "logits"), &inputs, 4);
        let last = traffic.last().unwrap();
        for name in ["logprobs", "entropy", "max", "log_sum", "lse", "sum_p2", "sum_sq"] {
            let stores = last.buffer(name).unwrap().stores;
            assert_eq!((stores.bytes, stores.once), (36, 36), "{name}: one write per row");
        }
        assert_eq!(last.buffer("saved").unwrap().stores.once, 9 * 16);
        assert_eq!(last.buffer("temperature").unwrap().loads.untouched, 4 * 4, "no temperature of an absent row");
    }
}

#[test]
fn a_token_costs_no_second_look_at_its_logit() {
    let emulator = Emulator::new().metered();
    let columns = 4100;
    for token in [0, 3, 2047, 2048, 4096, 4099] {
        for offset in [0, 3] {
            let inputs = Inputs::<bf16>::random(&mut seeded(10), 1, columns, 3.0).laid_out(offset, columns);
            let inputs = Inputs { tokens: Some(vec![token]), ..inputs };
            assert_read_once(loads(&traffic_of(&emulator, &inputs, EVERYTHING)[0], "logits"), &inputs, 1);
        }
    }
}

/// Panels that cover a row of gradients wherever it begins in a line of 128 bytes, where rows follow one another from such a boundary on.
fn panels_of<G>(columns: usize) -> usize {
    let alike = 1 << ((columns * size_of::<G>()) | 128).trailing_zeros();
    (columns + (128 - alike) / size_of::<G>()).div_ceil(2048)
}

/// The panels of a row go to as many blocks, where there are some more blocks than that, so that none of these asks for the row's record twice:
/// 16 bytes beside the 8 KB that a panel of bf16 moves, 0.2 %.
#[test]
fn no_block_reads_a_record_twice() {
    fn run<T: Float>(multiprocessors: u32, columns: usize) {
        let emulator = Emulator::new().with_multiprocessors(multiprocessors).metered();
        let rows = 40;
        let mut inputs = Inputs::<T>::random(&mut seeded(15), rows, columns, 3.0);
        // Every second row, so that records that are read lie in sectors of their own.
        inputs.loss_mask = Some((0..rows).map(|r| u8::from(r % 2 == 0)).collect());
        let saved = forward(&emulator, &inputs, EVERYTHING).saved;
        let up = Upstream::random(&mut seeded(16), rows);
        emulator.take_traffic();
        let _: Vec<T> = backward(&emulator, &inputs, &saved, &up, Target::Apart);
        let [launch] = &emulator.take_traffic()[..] else { panic!("one launch") };
        let records = loads(launch, "saved");
        let panels = panels_of::<T>(columns);
        assert_eq!(records.bytes, (rows / 2 * panels * 16) as u64);
        assert_eq!(records.sectors * 16, records.bytes, "pairs of a block and a record of {panels} panels");
        let moved = (rows / 2 * columns * size_of::<T>() * 2) as u64;
        assert!(records.bytes * 500 <= moved, "{} bytes of records beside {moved}", records.bytes);
    }
    run::<bf16>(5, 20_001);
    run::<f32>(4, 16_384);
    run::<bf16>(7, 32_000);
}

#[test]
fn backward_reads_once_and_writes_once_and_skips_zero_rows() {
    fn run<T: Float, G: Float>(target: Target, columns: usize, padding: usize) {
        let emulator = Emulator::new().metered();
        let (rows, stride) = (12, columns + padding);
        let mut inputs = Inputs::<T>::random(&mut seeded(11), rows, stride, 3.0);
        inputs.config.vocabulary = Some(columns);
        inputs.tokens = Some((0..rows as i64).collect());
        inputs.loss_mask = Some((0..rows).map(|r| u8::from(r != 5)).collect());
        let saved = forward(&emulator, &inputs, EVERYTHING).saved;
        let mut up = Upstream::random(&mut seeded(12), rows);
        for array in [&mut up.logprobs, &mut up.entropy, &mut up.lse] {
            array.as_mut().unwrap()[6..10].fill(0.0);
        }
        emulator.take_traffic();
        let _: Vec<G> = backward(&emulator, &inputs, &saved, &up, target);
        let [launch] = &emulator.take_traffic()[..] else { panic!("one launch") };
        let live = 7;
        assert_read_once(loads(launch, "logits"), &inputs, live);
        let stored = launch.buffer(if target == Target::InPlace { "logits" } else { "d_logits" }).unwrap().stores;
        let (written, again) = ((rows * stride * size_of::<G>()) as u64, (live * size_of::<G>()) as u64);
        assert_eq!(
            (stored.bytes, stored.again, stored.untouched),
            (written + again, again, 0),
            "one more store per token"
        );
        assert!(stored.sectors * 32 <= written + written / 100 + 64, "{} sectors for {written} bytes", stored.sectors);
        // Rows may share sectors at their ends; nothing else does, and instructions store whole ones: 16-byte packs from an arbitrary
        // boundary on would split two sectors of 17.
        let shared = rows as u64 + 1;
        assert!(stored.sectors <= written.div_ceil(32) + shared, "{} sectors for {written} bytes", stored.sectors);
        assert!(
            size_of::<T>() != size_of::<G>() || stored.warp_sectors * 32 <= written + written / 100,
            "{} sectors of instructions for {written} bytes",
            stored.warp_sectors
        );
        // A record for each panel, and none of a row without gradient; of panels there may be one more where rows begin inside a line.
        let records = loads(launch, "saved");
        assert_eq!(records.bytes, (live * panels_of::<G>(stride)) as u64 * 16);
        assert_eq!(records.untouched, (rows - live) as u64 * 16);
        let (all, read) = (launch.load_bytes() + launch.store_bytes(), (live * columns * size_of::<T>()) as u64);
        assert!((all - read - stored.bytes) * 100 <= all, "{} bytes of what rows are about", all - read - stored.bytes);
    }
    for (columns, padding) in [(20_000, 0), (20_001, 0), (20_003, 61), (20_449, 0)] {
        run::<bf16, bf16>(Target::Apart, columns, padding);
        run::<bf16, bf16>(Target::InPlace, columns, padding);
        run::<bf16, f32>(Target::Apart, columns, padding);
        run::<f32, f32>(Target::InPlace, columns, padding);
    }
}
