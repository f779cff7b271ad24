//! What the general kernels read and write: each logit once, whatever is asked; of keep-sets the kept ones alone.

use moerl::device::emulator::{LaunchTraffic, Touches};
use moerl::element::{Float, bf16};
use moerl::{Emulator, logprob::Config};
use rand::RngExt;

use crate::common::seeded;
use crate::support::*;

fn loads(launch: &LaunchTraffic, name: &str) -> Touches {
    launch.buffer(name).unwrap_or_else(|| panic!("{} has no {name}", launch.kernel)).loads
}

fn traffic_of<T: Float>(inputs: &Inputs<T>, asked: Asked) -> Vec<LaunchTraffic> {
    let emulator = Emulator::new().metered();
    forward(&emulator, inputs, asked);
    emulator.take_traffic()
}

#[test]
fn a_rank_costs_one_more_sector_per_token_and_nothing_else_a_second_look() {
    let (rows, columns) = (5, 20_001);
    let plain = Inputs::<bf16>::random(&mut seeded(1), rows, columns, 3.0);
    let capped = Inputs { config: Config { softcap: Some(30.0), ..Config::default() }, ..plain.clone() };
    let tokens = (0..rows as i64 * 4).map(|i| i * 997).collect();
    let bytes = (rows * columns * 2) as u64;
    for (what, inputs, asked, looks) in [
        ("rank and argmax", &plain, WITH_ORDER, rows as u64),
        ("a softcap", &capped, EVERYTHING, 0),
        ("four tokens", &plain.with_tokens(4, tokens), EVERYTHING, 0),
        ("the argmax", &Inputs { tokens: None, ..plain.clone() }, Asked { order: true, ..NOTHING }, 0),
    ] {
        let [launch] = &traffic_of(inputs, asked)[..] else { panic!("one launch") };
        let touched = loads(launch, "logits");
        assert_eq!((touched.bytes, touched.again, touched.untouched), (bytes + 2 * looks, 2 * looks, 0), "{what}");
        assert!((touched.sectors - looks) * 32 <= bytes + bytes / 100 + 64, "{what}: {} sectors", touched.sectors);
        let total = launch.load_bytes() + launch.store_bytes();
        assert!(total * 100 <= bytes * 101, "{what}: {total} bytes in all for {bytes} bytes of logits");
    }
}

#[test]
fn kept_outputs_alone_read_the_kept_logits_alone() {
    let columns = 151_936;
    let mut rng = seeded(2);
    let sizes = [512, 1, 2047, 3000, 100];
    let mut inputs = Inputs::<bf16>::random(&mut rng, sizes.len(), columns, 3.0);
    let sets: Vec<Vec<i32>> = sizes
        .iter()
        .map(|&size| {
            let mut set: Vec<i32> = (0..size).map(|_| rng.random_range(0..columns as i32)).collect();
            set.sort_unstable();
            set.dedup();
            set
        })
        .collect();
    inputs.keep = Some(Keep::of(&sets));
    inputs.loss_mask = Some(vec![1, 1, 1, 1, 0]);
    let kept: u64 = sets[..4].iter().map(|set| set.len() as u64).sum();
    let members = (0..4).filter(|&r| sets[r].contains(&(inputs.token(r) as i32))).count() as u64;
    let elements = kept + 4 - members;
    let [launch] = &traffic_of(&inputs, Asked { kept: true, ..NOTHING })[..] else { panic!("one launch") };
    assert_eq!(launch.kernel, "logprob_keep_bf16");
    let touched = loads(launch, "logits");
    assert_eq!((touched.bytes, touched.once), (2 * elements, 2 * elements), "each kept logit once");
    assert!(touched.sectors <= elements, "{} sectors of 32 bytes for {elements} logits", touched.sectors);
    // Sets that fit into a panel are read once; a longer one is searched first, 32 ids a step, and each panel looks at the id before it.
    let ids = loads(launch, "kept_ids");
    assert!((4 * kept..4 * (kept + 33 * 5)).contains(&ids.bytes), "{} bytes of {kept} ids", ids.bytes);
}

#[test]
fn a_backward_of_kept_outputs_alone_reads_the_kept_packs_alone() {
    let (rows, columns) = (4, 40_000);
    let mut rng = seeded(3);
    let mut inputs = Inputs::<bf16>::random(&mut rng, rows, columns, 3.0);
    let sets: Vec<Vec<i32>> = (0..rows).map(|r| (0..60).map(|i| i * 611 + r as i32).collect()).collect();
    inputs.keep = Some(Keep::of(&sets));
    let emulator = Emulator::new().metered();
    let found = forward(&emulator, &inputs, Asked { kept: true, ..EVERYTHING });
    let kept = KeptUpstream { saved: found.kept_saved, logprobs: vec![1.0, 1.0, 0.0, 1.0], entropy: vec![0.0; rows] };
    let up = Upstream { kept: Some(kept), ..Upstream::default() };
    emulator.take_traffic();
    let _: Vec<bf16> = backward(&emulator, &inputs, &found.saved, &up, Target::Apart);
    let [launch] = &emulator.take_traffic()[..] else { panic!("one launch") };
    let touched = loads(launch, "logits");
    assert!(touched.bytes <= 3 * 61 * 16, "{} bytes for three rows of 61 marked columns", touched.bytes);
    let stored = launch.buffer("d_logits").unwrap().stores;
    assert_eq!(stored.untouched, 0, "every gradient is written");
    assert!(stored.bytes <= (rows * columns * 2 + 3 * 61 * 2) as u64, "and the marked ones once more");
}

#[test]
fn a_general_backward_reads_once_and_skips_zero_rows() {
    fn run<T: Float>(softcap: Option<f32>, offset: usize, stride: usize) {
        let (rows, columns, ids) = (6, 20_001, 3);
        let mut rng = seeded(4);
        let tokens = (0..rows * ids).map(|_| rng.random_range(0..columns as i64)).collect();
        let mut inputs = Inputs::<T>::random(&mut rng, rows, columns, 3.0).with_tokens(ids, tokens);
        inputs.config.softcap = softcap;
        let inputs = inputs.laid_out(offset, stride);
        let emulator = Emulator::new().metered();
        let saved = forward(&emulator, &inputs, EVERYTHING).saved;
        let mut up = Upstream::random(&mut rng, rows);
        up.logprobs = Some((0..rows * ids).map(|_| normal(&mut rng)).collect());
        up.logprobs.as_mut().unwrap()[ids..3 * ids].fill(-0.0);
        up.entropy.as_mut().unwrap()[1..3].fill(0.0);
        up.lse.as_mut().unwrap()[1..3].fill(0.0);
        for target in [Target::Apart, Target::InPlace] {
            emulator.take_traffic();
            let _: Vec<T> = backward(&emulator, &inputs, &saved, &up, target);
            let [launch] = &emulator.take_traffic()[..] else { panic!("one launch") };
            let touched = loads(launch, "logits");
            let live = (4 * columns * size_of::<T>()) as u64;
            assert_eq!((touched.bytes, touched.once), (live, live));
            let stored = launch.buffer(if target == Target::InPlace { "logits" } else { "d_logits" }).unwrap().stores;
            let (written, marked) = ((rows * columns * size_of::<T>()) as u64, 4 * ids as u64);
            assert!((written..=written + marked * size_of::<T>() as u64).contains(&stored.bytes));
            assert_eq!(stored.once + stored.again, written, "every gradient is written, and nothing between rows");
            // Rows may share sectors at their ends, the pieces of a row share none; instructions store whole ones, but those of the tokens.
            assert!(
                stored.sectors <= written.div_ceil(32) + rows as u64 + 1,
                "{} sectors for {written} bytes",
                stored.sectors
            );
            let excess = (stored.warp_sectors - marked) * 32;
            assert!(excess <= written + written / 100, "{} sectors of instructions", stored.warp_sectors);
            // A record for each of the blocks that share a row, 8 panels each.
            let records = loads(launch, "saved");
            assert_eq!(records.bytes, 4 * 16 * (columns as u64).div_ceil(2048).div_ceil(8));
            let others = launch.load_bytes() - touched.bytes;
            assert!(others * 100 <= touched.bytes + stored.bytes, "{others} bytes of what rows are about");
        }
    }
    for softcap in [None, Some(30.0)] {
        run::<bf16>(softcap, 0, 20_001);
        run::<bf16>(softcap, 5, 20_067);
        run::<f32>(softcap, 3, 20_002);
    }
}
