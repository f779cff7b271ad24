//! Each helper, on inputs where a wrong lane, mask or width would show.

use crate::harness::{Run, all_schedules, emulator, noise, noisy_words};

const WARP: usize = 32;

#[test]
fn every_thread_knows_where_it_is() {
    let (blocks, threads) = (3, 72);
    let left = Run { blocks, threads, output: (6 * blocks * threads) as usize, ..Run::new("indices") }.ok(&emulator());
    for (i, found) in left.output.chunks(6).enumerate() {
        let (block, thread) = (i as u32 / threads, i as u32 % threads);
        assert_eq!(found, [thread, block, threads, blocks, thread % 32, thread / 32]);
    }
}

#[test]
fn every_width_of_access_moves_every_byte() {
    let input = noisy_words(1, 4 * 150);
    for variant in 0..11 {
        let run = Run {
            blocks: 2,
            threads: 64,
            input: &input,
            output: input.len(),
            count: input.len(),
            variant,
            ..Run::new("copy")
        };
        assert_eq!(run.ok(&emulator()).output, input, "variant {variant}");
    }
}

#[test]
fn global_atomics_lose_nothing() {
    let (blocks, threads) = (5, 96);
    let input = noisy_words(2, (blocks * threads) as usize);
    let wide = |x: u32| u64::from(x) << 32 | u64::from(x);
    let sum = input.iter().fold(0u64, |sum, &x| sum.wrapping_add(wide(x)));
    let least = wide(*input.iter().min().unwrap());
    let counters = [0, u32::MAX, 0, 0, 0, 0, u32::MAX, u32::MAX];
    for emulator in all_schedules() {
        let run =
            Run { blocks, threads, input: &input, output: input.len(), counters: &counters, ..Run::new("atomics") };
        let left = run.ok(&emulator);
        let mut tickets = left.output;
        tickets.sort_unstable();
        assert!(tickets.iter().enumerate().all(|(i, &t)| t == i as u32), "tickets are handed out once each");
        assert_eq!(left.counters[..3], [blocks * threads, *input.iter().min().unwrap(), *input.iter().max().unwrap()]);
        assert_eq!(left.counters[4..], [sum as u32, (sum >> 32) as u32, least as u32, (least >> 32) as u32]);
    }
}

#[test]
fn shared_atomics_lose_nothing_and_stay_in_their_block() {
    let (blocks, threads) = (4usize, 96usize);
    let input = noisy_words(3, blocks * threads);
    let counters = vec![0; 6 * blocks];
    for emulator in all_schedules() {
        let left = Run {
            blocks: blocks as u32,
            threads: threads as u32,
            input: &input,
            output: input.len(),
            counters: &counters,
            ..Run::new("shared_atomics")
        }
        .ok(&emulator);
        for block in 0..blocks {
            let values = &input[block * threads..][..threads];
            let (least, most) = (*values.iter().min().unwrap(), *values.iter().max().unwrap());
            let or = values.iter().fold(0, |or, v| or | (v & v >> 1 & v >> 2 & v >> 3));
            assert_eq!(left.counters[6 * block..][..6], [threads as u32, least, most, or, least, least]);
            let mut tickets = left.output[block * threads..][..threads].to_vec();
            tickets.sort_unstable();
            assert!(tickets.iter().enumerate().all(|(i, &t)| t == i as u32));
        }
    }
}

#[test]
fn shuffles_bring_the_value_of_the_lane_that_cuda_names() {
    let input: Vec<u32> = noisy_words(4, WARP).iter().map(|x| x >> 1).collect(); // as i32 and as finite f32 bits they stay themselves
    for n in 0..WARP {
        let run = Run { input: &input, output: 8 * WARP, number: n as u32, variant: u32::MAX, ..Run::new("shuffles") };
        for emulator in all_schedules().iter().take(8) {
            let left = run.ok(emulator);
            for lane in 0..WARP {
                let row = &left.output[8 * lane..][..8];
                assert_eq!(row[0], input[n], "shuffle");
                assert_eq!(row[1], input[lane ^ n], "shuffle_xor");
                assert_eq!(row[2], input[if lane < n { lane } else { lane - n }], "shuffle_up");
                assert_eq!(row[3], input[if lane + n > 31 { lane } else { lane + n }], "shuffle_down");
                assert_eq!(row[4], input[lane ^ n], "shuffle_xor of f32");
                assert_eq!(row[5], input[n], "shuffle of f64");
                assert_eq!(row[6..], [(lane ^ n) as u32, input[lane ^ n]], "shuffle_xor of u64");
            }
        }
    }
}

#[test]
fn a_shuffle_within_a_mask_needs_only_its_lanes() {
    let input = noisy_words(5, WARP);
    let mask = 0x0f0f_00f1;
    let left =
        Run { input: &input, output: 8 * WARP, number: 4, variant: mask, ..Run::new("shuffles") }.ok(&emulator());
    for lane in 0..WARP {
        let expected = if mask >> lane & 1 == 1 { input[4] } else { 0 };
        assert_eq!(left.output[8 * lane], expected);
    }
}

#[test]
fn votes_matches_and_reductions_cover_exactly_the_mask() {
    // Few distinct values, so that match_any has something to match; all odd in some cases, so that `all` is true sometimes.
    let inputs: Vec<Vec<u32>> = vec![
        noisy_words(6, WARP).iter().map(|x| x % 5).collect(),
        noisy_words(7, WARP).iter().map(|x| x % 3 * 2 + 1).collect(),
        noisy_words(8, WARP).iter().map(|x| x % 3 * 2).collect(),
        noisy_words(9, WARP),
    ];
    for (input, mask) in
        inputs.iter().flat_map(|input| [u32::MAX, 0x8000_0001, 0x00ff_ff00, 0x5555_5555].map(|mask| (input, mask)))
    {
        for emulator in all_schedules() {
            let left = Run { input, output: 8 * WARP, variant: mask, ..Run::new("votes") }.ok(&emulator);
            let lanes: Vec<usize> = (0..WARP).filter(|lane| mask >> lane & 1 == 1).collect();
            let set = |holds: &dyn Fn(usize) -> bool| lanes.iter().filter(|&&l| holds(l)).fold(0u32, |m, l| m | 1 << l);
            let ballot = set(&|l| input[l] & 1 == 1);
            for &lane in &lanes {
                let expected = [
                    ballot,
                    u32::from(ballot != 0),
                    u32::from(ballot == mask),
                    set(&|l| input[l] == input[lane]),
                    lanes.iter().fold(0, |sum: u32, &l| sum.wrapping_add(input[l])),
                    lanes.iter().map(|&l| input[l]).min().unwrap(),
                    lanes.iter().map(|&l| input[l]).max().unwrap(),
                ];
                assert_eq!(left.output[8 * lane..][..7], expected, "lane {lane}, mask {mask:08x}");
            }
        }
    }
}

#[test]
fn barriers_with_a_predicate_ask_all_threads() {
    let threads = 80;
    for ones in [0, 1, 37, 80] {
        let input: Vec<u32> = (0..threads).map(|i| u32::from(i * 7 % threads < ones)).collect();
        for emulator in all_schedules() {
            let left =
                Run { threads, input: &input, output: 3 * threads as usize, ..Run::new("block_votes") }.ok(&emulator);
            for row in left.output.chunks(3) {
                assert_eq!(row, [u32::from(ones > 0), u32::from(ones == threads), ones]);
            }
        }
    }
}

#[test]
fn a_warp_sum_is_the_halving_tree() {
    let mut noise = noise(10);
    let values: Vec<f32> = (0..WARP).map(|i| (noise() as i32 as f32) * 1.5f32.powi(i as i32 % 7)).collect();
    let mut tree = values.clone();
    for lanes in [16, 8, 4, 2, 1] {
        tree = (0..WARP).map(|lane| tree[lane] + tree[lane ^ lanes]).collect();
    }
    let input: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
    let left = Run { input: &input, output: 4 * WARP, ..Run::new("warp_collectives") }.ok(&emulator());
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = input.iter().map(|&x| u64::from(x) << 20).min().unwrap();
    for (lane, row) in left.output.chunks(4).enumerate() {
        assert_eq!(row, [tree[lane].to_bits(), largest.to_bits(), least as u32, (least >> 32) as u32]);
    }
}

#[test]
fn the_smallest_fault_of_all_blocks_is_published() {
    let (blocks, threads) = (6, 64);
    let mut input = vec![u32::MAX; blocks * threads];
    let word = |input: &[u32], emulator: &moerl::Emulator| {
        let counters = [u32::MAX, u32::MAX];
        let left =
            Run { blocks: blocks as u32, threads: threads as u32, input, counters: &counters, ..Run::new("publish") };
        let left = left.ok(emulator).counters;
        u64::from(left[1]) << 32 | u64::from(left[0])
    };
    assert_eq!(word(&input, &emulator()), u64::MAX);
    for (thread, row) in [(3, 900), (70, 41), (71, 40), (200, 77), (383, 1000)] {
        input[thread] = row;
    }
    for emulator in all_schedules() {
        assert_eq!(word(&input, &emulator), 40 << 24 | 7 << 8 | 32);
    }
}

#[test]
fn asynchronous_copies_through_a_ring_arrive_under_every_schedule() {
    let (blocks, threads, stages) = (3, 64, 5);
    for (kernel, words) in [("pipeline_4", 1), ("pipeline_8", 2), ("pipeline_16", 4)] {
        let stage = threads * words;
        let count = stages * stage;
        let input = noisy_words(11, blocks * count);
        let expected: Vec<u32> =
            (0..input.len()).map(|i| input[i / stage * stage + (i % stage + 1) % stage].wrapping_add(1)).collect();
        for emulator in all_schedules() {
            let run = Run {
                blocks: blocks as u32,
                threads: threads as u32,
                shared_bytes: (8 * stage) as u32,
                input: &input,
                output: input.len(),
                count,
                ..Run::new(kernel)
            };
            assert_eq!(run.ok(&emulator).output, expected, "{kernel}");
        }
    }
}

#[test]
fn a_softmax_has_the_same_bits_under_every_schedule() {
    let (rows, columns) = (3, 1000);
    let mut noise = noise(12);
    let values: Vec<f32> = (0..rows * columns).map(|_| (noise() >> 40) as f32 / (1 << 20) as f32 - 8.0).collect();
    let input: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
    let run = Run {
        blocks: rows as u32,
        threads: 256,
        input: &input,
        output: input.len(),
        count: columns,
        stride: columns,
        ..Run::new("softmax")
    };
    let first = run.ok(&emulator());
    for (row, out) in values.chunks(columns).zip(first.output.chunks(columns)) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
        for (&x, &y) in row.iter().zip(out) {
            let (expected, y) = (f64::from(x - largest).exp() / sum, f64::from(f32::from_bits(y)));
            // exp2's argument is up to 24 in size and rounded to 24 bits twice: 2^-19 relative in the result; the rest is smaller.
            assert!((y - expected).abs() <= expected * 4e-6, "{y} for {expected}");
        }
    }
    for emulator in all_schedules() {
        assert_eq!(run.ok(&emulator), first);
    }
}

#[test]
fn host_threads_launch_side_by_side() {
    let input: Vec<u32> = (0..4096u32).map(|i| (i as f32).sin().to_bits()).collect();
    let run =
        Run { blocks: 4, threads: 128, input: &input, output: 4096, count: 1024, stride: 1024, ..Run::new("softmax") };
    let expected = run.ok(&emulator());
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (run, expected) = (&run, &expected);
            scope.spawn(move || (0..5).for_each(|_| assert_eq!(run.ok(&emulator().with_seed(seed)), *expected)));
        }
    });
}
