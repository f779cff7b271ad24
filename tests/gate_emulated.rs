//! What only the emulator can show of the gate kernels: independence of the schedule, and which bytes they touch.
#![cfg(feature = "emulate")]

mod common;

#[allow(dead_code)]
#[path = "gate/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "gate/watch.rs"]
mod watch;

use common::schedules::schedules;
use harness::*;
use moerl::Emulator;
use moerl::device::emulator::LaunchTraffic;
use moerl::element::{Element, Float, bf16, f16};
use moerl::gate::{Config, Preset};
use watch::{Asked, Given, Watched, watch};

fn schedules_agree<T: Float>(problem: &Problem<T>) {
    let upstream = problem.random_upstream(1);
    let mut first = None;
    for emulator in schedules() {
        let forwarded = forward(&emulator, problem);
        let gradient = common::bits(&backward(&emulator, problem, &forwarded, &upstream));
        let result = (forwarded.bits(), forwarded.fault, gradient);
        match &first {
            None => first = Some(result),
            Some(first) => assert!(*first == result, "{emulator:?}"),
        }
    }
}

#[test]
fn no_schedule_changes_a_bit() {
    for (preset, experts, k) in [
        (Preset::Qwen3, 128, 8),
        (Preset::DeepseekV3, 256, 8),
        (Preset::Ernie4_5_21bA3b, 64, 6),
        (Preset::KimiK2, 384, 8),
    ] {
        let mut problem = Problem::<bf16>::random(Config::preset(preset), 70, experts, k, 1);
        problem.logits[30 * experts] = bf16::NAN;
        problem.logits[50 * experts] = bf16::INFINITY;
        schedules_agree(&problem);
        let mut ids = problem.random_ids(2);
        ids[k * 9] = ids[k * 9 + 1];
        ids[k * 41] = ids[k * 41 + 1];
        schedules_agree(&problem.forced(Element::U16, &ids));
    }
    schedules_agree(&Problem::<f32>::random(Config::softmax_selected(10), 70, 512, 10, 3));
    schedules_agree(&Problem::<f16>::random(Config::softmax(32), 9, 2000, 32, 4));
}

#[test]
fn the_first_of_many_bad_rows_is_reported_under_every_schedule() {
    let mut problem = Problem::<bf16>::random(Config::softmax_selected(2), 400, 16, 2, 5);
    for t in [399, 77, 250, 311, 78] {
        problem.logits[t * 16..][..16].fill(bf16::NAN);
    }
    for seed in 0..if common::is_sanitized() { 12 } else { 100 } {
        let emulator = Emulator::new().with_seed(seed).with_blocks_in_flight(4);
        assert_eq!(forward(&emulator, &problem).fault.unwrap().row, 77);
    }
}

fn metered<R>(work: impl FnOnce(&Emulator) -> R) -> (R, LaunchTraffic) {
    metered_on(Emulator::new(), work)
}

fn metered_on<R>(emulator: Emulator, work: impl FnOnce(&Emulator) -> R) -> (R, LaunchTraffic) {
    let emulator = emulator.metered();
    let result = work(&emulator);
    let mut launches = emulator.take_traffic();
    assert_eq!(launches.len(), 1);
    (result, launches.remove(0))
}

#[test]
fn a_native_row_is_loaded_once() {
    for (preset, experts, k) in [(Preset::Qwen3_5, 256, 8), (Preset::DeepseekV3, 256, 8), (Preset::Ernie4_5, 256, 6)] {
        let config = Config { top_k: Some(k), ..Config::preset(preset) };
        let mut problem = Problem::<bf16>::random(config, 1000, experts, k, 1);
        // Rows that the kernels for many rows go over a second time.
        problem.logits[256 * 40..256 * 43].fill(bf16::ONE);
        problem.logits[256 * 990] = bf16::NAN;
        // Many rows for a small device, few for a large one.
        for multiprocessors in [4, 132] {
            let emulator = Emulator::new().with_multiprocessors(multiprocessors);
            let (_, traffic) = metered_on(emulator, |emulator| forward(emulator, &problem));
            let loads = traffic.buffer("router_logits").unwrap().loads;
            assert_eq!((loads.bytes, loads.sectors, loads.most, loads.untouched), (512_000, 16_000, 1, 0));
            assert_eq!(loads.accesses, 512_000 / 16);
            for (name, bytes) in [("topk_ids", 4000 * k), ("topk_weights", 4000 * k), ("selected_logits", 4000 * k)] {
                let stores = traffic.buffer(name).unwrap().stores;
                assert_eq!((stores.bytes, stores.most), (bytes as u64, 1), "{name}");
            }
        }
    }
    // Without a bias there is nothing else to load: at most 2 % more than the logits.
    let problem = Problem::<bf16>::random(Config::softmax_selected(8), 1000, 128, 8, 2);
    let (_, traffic) = metered(|emulator| forward(emulator, &problem));
    assert!(traffic.load_bytes() * 100 <= 256_000 * 102, "{} bytes", traffic.load_bytes());
    assert!(traffic.store_bytes() * 100 <= 96_000 * 102, "{} bytes", traffic.store_bytes());
    // Four slots a store.
    assert_eq!(traffic.buffer("topk_ids").unwrap().stores.accesses, 2000);
}

#[test]
fn many_rows_take_the_kernels_for_many() {
    let kernel = |config: Config, tokens, experts, k, multiprocessors| {
        let emulator = Emulator::new().with_multiprocessors(multiprocessors);
        forward(&emulator, &Problem::<bf16>::random(config, tokens, experts, k, 1));
        emulator.launches().remove(0).kernel.name
    };
    let is_many = |name: &str| name.contains("many");
    assert!(is_many(kernel(Config::softmax_selected(8), 5, 128, 8, 1)));
    assert!(!is_many(kernel(Config::softmax_selected(8), 4, 128, 8, 1)));
    assert!(!is_many(kernel(Config::softmax_selected(8), 5, 128, 8, 2)));
    assert!(is_many(kernel(Config::softmax_selected(10), 65, 512, 10, 1)));
    for preset in [Preset::DeepseekV3, Preset::Glm5, Preset::KimiK2, Preset::MinimaxM2] {
        let config = Config::preset(preset);
        let experts = if preset == Preset::KimiK2 { 384 } else { 256 };
        assert!(is_many(kernel(config, 1, experts, 8, 1)), "{preset}");
    }
    // Rows that do not begin at 16 bytes, sums over the row, more slots than candidates.
    for (config, experts, k) in
        [(Config::softmax_selected(8), 100, 8), (Config::softmax(8), 128, 8), (Config::softmax_selected(11), 128, 11)]
    {
        assert!(!is_many(kernel(config, 65, experts, k, 1)));
    }
}

#[test]
fn replay_touches_only_the_sectors_of_the_forced_slots() {
    fn check<T: Float>(experts: usize, k: usize) {
        for &element in Element::ROUTES {
            if element == Element::U8 && experts > 256 {
                continue;
            }
            let problem = Problem::<T>::random(Config::softmax_selected(k), 300, experts, k, 3);
            let ids = problem.random_ids(4);
            let (_, traffic) = metered(|emulator| forward(emulator, &problem.forced(element, &ids)));
            let in_a_sector = 32 / size_of::<T>() as i32;
            let mut sectors = 0;
            for row in ids.chunks_exact(k) {
                let mut touched: Vec<i32> = row.iter().map(|id| id / in_a_sector).collect();
                touched.sort_unstable();
                touched.dedup();
                sectors += touched.len() as u64;
            }
            let slots = (300 * k) as u64;
            let logits = traffic.buffer("router_logits").unwrap().loads;
            assert_eq!((logits.bytes, logits.most), (slots * size_of::<T>() as u64, 1), "each slot's logit once");
            assert_eq!(logits.sectors, sectors, "no sector without a slot, each once a row");
            // The ids in their own width.
            let loads = traffic.buffer("forced_ids").unwrap().loads;
            assert_eq!((loads.bytes, loads.most), (slots * element.size() as u64, 1), "{element}");
            assert_eq!(traffic.load_bytes(), logits.bytes + loads.bytes, "and nothing else");
        }
    }
    check::<bf16>(128, 8);
    check::<bf16>(256, 8);
    check::<f16>(384, 6);
    check::<f32>(256, 8);
    check::<bf16>(512, 10);
    check::<f32>(1024, 32);
}

#[test]
fn no_dense_output_is_touched_unless_it_is_asked_for() {
    let dense = ["dense_probs", "bytemap", "bitmap", "cutoff", "record_ids"];
    for multiprocessors in [1, 132] {
        for config in [Config::softmax_selected(8), Config::softmax(8), Config::preset(Preset::DeepseekV3)] {
            let problem = Problem::<bf16>::random(config, 100, 256, 8, 3);
            for problem in [problem.forced(Element::U16, &problem.random_ids(4)), problem] {
                let emulator = Emulator::new().with_multiprocessors(multiprocessors);
                let (_, traffic) = metered_on(emulator, |emulator| forward(emulator, &problem));
                for buffer in &traffic.buffers {
                    let touched = buffer.stores.bytes + buffer.loads.bytes + buffer.atomics;
                    assert!(!dense.contains(&buffer.name) || touched == 0, "{} was touched", buffer.name);
                }
                // What is stored is what was asked for.
                let per_row = 3 * 8 * 4 + if problem.config.needs_lse() { 4 } else { 0 };
                assert_eq!(traffic.store_bytes(), 100 * per_row);
            }
        }
    }
}

#[test]
fn backward_writes_each_element_once_and_reads_nothing_else() {
    for (config, reads_logits) in
        [(Config::softmax_selected(8), false), (Config::sigmoid(8), false), (Config::softmax(8), true)]
    {
        for experts in [128, 200, 512] {
            let problem = Problem::<bf16>::random(config.clone(), 130, experts, 8, 5);
            let forwarded = forward(&Emulator::new(), &problem);
            let upstream = problem.random_upstream(6);
            let (_, traffic) =
                metered(|emulator| backward_into::<_, bf16, f32, bf16>(emulator, &problem, &forwarded, &upstream));
            let stores = traffic.buffer("d_router_logits").unwrap().stores;
            assert_eq!((stores.bytes, stores.most, stores.untouched), (130 * experts as u64 * 2, 1, 0));
            assert_eq!(stores.accesses, stores.bytes / 16);
            let slots = 130 * 8 * 4;
            for name in ["topk_ids", "selected_logits", "d_topk_weights"] {
                let loads = traffic.buffer(name).unwrap().loads;
                assert_eq!((loads.bytes, loads.most), (slots, 1), "{name}");
            }
            match traffic.buffer("router_logits") {
                Some(logits) => {
                    assert!(reads_logits);
                    assert_eq!((logits.loads.bytes, logits.loads.most), (130 * experts as u64 * 2, 1));
                }
                None => assert!(!reads_logits),
            }
            // Nothing beyond its inputs. The lanes of a row ask for its log-sum-exp together.
            let lse = traffic.buffer("lse").map_or(0, |lse| lse.loads.bytes);
            assert!(lse <= if reads_logits { 130 * 32 * 4 } else { 0 }, "{lse} bytes of log-sum-exps");
            let logits = if reads_logits { 130 * experts as u64 * 2 } else { 0 };
            assert_eq!(traffic.load_bytes(), 3 * slots + logits + lse);
            assert_eq!(traffic.store_bytes(), stores.bytes);
        }
    }
}

#[test]
fn no_schedule_changes_what_telemetry_says() {
    let config = Config { score_replace: Some(0.5), ..Config::softmax_selected(6) };
    for experts in [128, 512] {
        let native = Problem::<bf16>::random(config.clone(), 70, experts, 6, 7);
        let ids = native.random_ids(8);
        let given = Given {
            recorded_weights: Some(native.random_upstream(9)),
            ref_logits: Some(native.rows(&(0..70).rev().collect::<Vec<_>>()).logits),
            old: Some((native.random_ids(10), native.random_upstream(11))),
            before: None,
        };
        let problem = native.forced(Element::U16, &ids);
        let mut first: Option<Watched> = None;
        for emulator in schedules().take(8) {
            let found = watch(&emulator, &problem, Asked::All, &given);
            match &first {
                None => first = Some(found),
                Some(first) => assert_eq!(first.bits(), found.bits(), "{emulator:?}"),
            }
        }
    }
}

#[test]
fn cheap_telemetry_reads_no_logit_but_those_of_the_slots() {
    let problem = Problem::<bf16>::random(Config::softmax_selected(8), 300, 256, 8, 3);
    let replay = problem.forced(Element::U8, &problem.random_ids(4));
    let given = Given { recorded_weights: Some(vec![0.1; 2400]), ..Given::default() };
    let (_, plain) = metered(|emulator| forward(emulator, &replay));
    let (_, cheap) = metered(|emulator| watch(emulator, &replay, Asked::Cheap, &given));
    // The lanes that share a row may be others.
    let logits = |traffic: &LaunchTraffic| {
        let loads = traffic.buffer("router_logits").unwrap().loads;
        (loads.bytes, loads.once, loads.sectors)
    };
    assert_eq!(logits(&cheap), logits(&plain));
    // Beside the forward's own bytes only the recorded weights and what was asked for.
    assert_eq!(cheap.buffer("recorded_weights").unwrap().loads.bytes, 2400 * 4);
    for name in ["gate_l1", "set_kl"] {
        let stores = cheap.buffer(name).unwrap().stores;
        assert_eq!((stores.bytes, stores.most), (1200, 1), "{name}");
    }
    for name in ["topk_ids", "topk_weights", "selected_logits"] {
        assert_eq!(cheap.buffer(name).unwrap().stores.bytes, plain.buffer(name).unwrap().stores.bytes, "{name}");
    }
}

#[test]
fn row_telemetry_reads_each_logit_once() {
    for config in [Config::softmax_selected(8), Config::softmax(8)] {
        for experts in [128, 256, 384] {
            let problem = Problem::<bf16>::random(config.clone(), 130, experts, 8, 5);
            let replay = problem.forced(Element::I32, &problem.random_ids(6));
            let given = Given {
                ref_logits: Some(problem.logits.clone()),
                old: Some((problem.random_ids(7), vec![-3.0; 130 * 8])),
                ..Given::default()
            };
            for asked in [Asked::Choice, Asked::All] {
                let (_, traffic) = metered(|emulator| watch(emulator, &replay, asked, &given));
                for name in ["router_logits", "ref_logits"] {
                    let Some(buffer) = traffic.buffer(name) else { continue };
                    let bytes = 130 * experts as u64 * 2;
                    assert_eq!((buffer.loads.bytes, buffer.loads.most), (bytes, 1), "{name}");
                    assert_eq!(buffer.loads.accesses, bytes / 16, "{name}");
                }
            }
        }
    }
}

#[test]
fn no_telemetry_costs_no_byte() {
    use moerl::gate::Telemetry;
    let problem = Problem::<bf16>::random(Config::softmax_selected(8), 100, 256, 8, 3);
    let replay = problem.forced(Element::U8, &problem.random_ids(4));
    let (_, plain) = metered(|emulator| forward(emulator, &replay));
    let (_, empty) = metered(|emulator| forward_watched::<_, _, f32>(emulator, &replay, Some(Telemetry::default())));
    assert_eq!(plain.kernel, empty.kernel);
    assert_eq!((plain.load_bytes(), plain.store_bytes()), (empty.load_bytes(), empty.store_bytes()));
}
