//! What only the emulator can show of the backward kernels: which bytes they touch, and independence of the schedule.

use moerl::Emulator;
use moerl::device::emulator::LaunchTraffic;
use moerl::element::bf16;
use moerl::gate::{Config, Preset};

use crate::backward::{Case, terms};
use crate::common;
use crate::common::schedules::schedules;
use crate::harness::*;
use crate::recompute;

const T: usize = 130;
const E: usize = 256;
const K: usize = 8;
const SLOTS: u64 = (T * K) as u64;

fn metered(work: impl FnOnce(&Emulator)) -> LaunchTraffic {
    let emulator = Emulator::new().metered();
    work(&emulator);
    let mut launches = emulator.take_traffic();
    assert_eq!(launches.len(), 1);
    launches.remove(0)
}

fn problem(config: Config) -> (Problem<bf16>, Forwarded, Vec<f32>) {
    let problem = Problem::<bf16>::random(config, T, E, K, 5);
    let forwarded = forward(&Emulator::new(), &problem);
    let upstream = problem.random_upstream(6);
    (problem, forwarded, upstream)
}

/// Each byte of an input of a slot was loaded once.
fn slots_were_read_once(traffic: &LaunchTraffic, names: &[&str]) {
    for name in names {
        let loads = traffic.buffer(name).unwrap().loads;
        assert_eq!((loads.bytes, loads.most), (SLOTS * 4, 1), "{name}");
    }
}

#[test]
fn a_compact_gradient_touches_nothing_dense() {
    let (problem, forwarded, upstream) = problem(Config::sigmoid(K));
    let traffic = metered(|emulator| {
        Case { compact: true, ..Case::new(&problem, &forwarded, &upstream) }.run(emulator);
    });
    slots_were_read_once(&traffic, &["topk_ids", "selected_logits", "d_topk_weights"]);
    let stores = traffic.buffer("d_selected_logits").unwrap().stores;
    assert_eq!((stores.bytes, stores.most, stores.untouched), (SLOTS * 4, 1, 0));
    assert!(traffic.buffer("router_logits").is_none() && traffic.buffer("d_router_logits").is_none());
    assert_eq!((traffic.load_bytes(), traffic.store_bytes()), (SLOTS * 12, SLOTS * 4));
}

#[test]
fn without_saved_values_only_the_slots_are_read_again() {
    let (problem, forwarded, upstream) = problem(Config::softmax_selected(K));
    let traffic = metered(|emulator| {
        Case { unsaved: true, ..Case::new(&problem, &forwarded, &upstream) }.run(emulator);
    });
    slots_were_read_once(&traffic, &["topk_ids", "d_topk_weights"]);
    let loads = traffic.buffer("router_logits").unwrap().loads;
    assert_eq!((loads.bytes, loads.most), (SLOTS * 2, 1));
}

#[test]
fn accumulating_reads_and_writes_only_what_changes() {
    let (problem, forwarded, upstream) = problem(Config::softmax_selected(K));
    let old = vec![bf16::ONE; T * E];
    let traffic = metered(|emulator| {
        Case::new(&problem, &forwarded, &upstream).run_into::<_, bf16>(emulator, Some(&old)).unwrap();
    });
    let mut packs = 0;
    for ids in forwarded.ids.chunks_exact(K) {
        let mut touched: Vec<i32> = ids.iter().map(|id| id / 8).collect();
        touched.sort_unstable();
        touched.dedup();
        packs += touched.len() as u64;
    }
    let target = traffic.buffer("d_router_logits").unwrap();
    assert_eq!((target.loads.bytes, target.loads.most), (packs * 16, 1));
    assert_eq!((target.stores.bytes, target.stores.most), (packs * 16, 1));
}

#[test]
fn a_surrogate_adds_one_read_of_the_row() {
    for config in [Config::softmax_selected(K), Config::softmax(K)] {
        let (problem, forwarded, upstream) = problem(config);
        let traffic = metered(|emulator| {
            let case = Case { surrogate: Some(terms(T)), ..Case::new(&problem, &forwarded, &upstream) };
            case.run_into::<_, bf16>(emulator, None).unwrap();
        });
        let loads = traffic.buffer("router_logits").unwrap().loads;
        assert_eq!((loads.bytes, loads.most, loads.untouched), ((T * E * 2) as u64, 1, 0));
        assert_eq!(loads.accesses, loads.bytes / 16);
        let stores = traffic.buffer("d_router_logits").unwrap().stores;
        assert_eq!((stores.bytes, stores.most, stores.untouched), ((T * E * 2) as u64, 1, 0));
        slots_were_read_once(&traffic, &["topk_ids", "selected_logits", "d_topk_weights"]);
    }
}

#[test]
fn no_schedule_changes_a_recomputed_micro_batch() {
    for (config, experts) in [(Config::softmax_selected(K), 128), (Config::preset(Preset::DeepseekV3), 256)] {
        let problem = recompute::problem(config, experts, K);
        for (seed, emulator) in schedules().enumerate() {
            recompute::shuffled_micro_batches_are_the_batch(&emulator, &problem, seed as u64);
        }
    }
}

#[test]
fn no_schedule_changes_a_bit_of_a_gradient() {
    let (problem, forwarded, upstream) = problem(Config::softmax(K));
    let problem = Problem { expert_scale: Some((0..E).map(|e| 1.0 + e as f32 / 64.0).collect()), ..problem };
    let case =
        Case { surrogate: Some(terms(T)), wants_expert_scale: true, ..Case::new(&problem, &forwarded, &upstream) };
    let run = |emulator: &Emulator| {
        let (gradient, d_expert_scale) = case.run_into::<_, f32>(emulator, None).unwrap();
        (common::bits(&gradient), common::bits(&d_expert_scale))
    };
    let expected = run(&Emulator::new());
    for emulator in schedules() {
        assert_eq!(run(&emulator), expected, "{emulator:?}");
    }
}
