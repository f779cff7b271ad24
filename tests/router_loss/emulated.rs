//! What only the emulator can show of the regularisers: which bytes they touch, and independence of the schedule.

use moerl::device::emulator::LaunchTraffic;
use moerl::element::bf16;
use moerl::gate::Config as Gate;
use moerl::router_loss::{Config, CountsFrom, Scope};
use moerl::{Emulator, Reference};

use crate::case::{Case, every_loss};
use crate::common;
use crate::common::schedules::schedules;

const T: usize = 300;
const E: usize = 128;
const ROWS: u64 = (T * E * 2) as u64;

fn case(config: Config) -> Case<bf16> {
    Case::random(Gate::softmax_selected(8), config, &[T], E, 8, 1)
}

fn metered(work: impl FnOnce(&Emulator)) -> Vec<LaunchTraffic> {
    let emulator = Emulator::new().metered();
    work(&emulator);
    emulator.take_traffic()
}

fn read_once(traffic: &LaunchTraffic, name: &str) {
    let loads = traffic.buffer(name).unwrap().loads;
    assert_eq!((loads.bytes, loads.most, loads.untouched), (ROWS, 1, 0), "{name}");
    assert_eq!(loads.accesses, ROWS / 16, "{name}");
}

#[test]
fn sums_read_each_logit_once() {
    for (config, reference) in [(Config::switch(1.0), false), (every_loss(), true)] {
        for counts_from in [CountsFrom::Routes, CountsFrom::TopK] {
            let case = case(Config { counts_from, ..config });
            let launches = metered(|emulator| drop(case.partial(emulator, None).unwrap()));
            assert_eq!(launches.len(), 2);
            read_once(&launches[0], "router_logits");
            if reference {
                read_once(&launches[0], "ref_logits");
            }
            assert!(launches[1].buffer("router_logits").is_none());
        }
    }
}

#[test]
fn a_regularizer_adds_one_read_of_the_row_to_the_gate() {
    let case = case(every_loss());
    let finished = case.finish(&Reference, &case.partial(&Reference, None).unwrap(), None).unwrap();
    let upstream = vec![1.0; T * 8];
    let launches = metered(|emulator| drop(case.gate_backward(emulator, &finished, &upstream).unwrap()));
    let [both, alone] = launches.as_slice() else { panic!("{} launches", launches.len()) };
    // Nothing was saved, so the gate alone reads the slots' logits; with regularisers it finds them in the row.
    assert_eq!(alone.buffer("router_logits").unwrap().loads.bytes, (T * 8 * 2) as u64);
    read_once(both, "router_logits");
    read_once(both, "ref_logits");
    let stores = both.buffer("d_router_logits").unwrap().stores;
    assert_eq!((stores.bytes, stores.most, stores.untouched), (2 * ROWS, 1, 0));
    // Alone there are no slots.
    let launches = metered(|emulator| drop(case.backward::<_, bf16>(emulator, &finished).unwrap()));
    read_once(&launches[0], "router_logits");
    let stores = launches[0].buffer("d_router_logits").unwrap().stores;
    assert_eq!((stores.bytes, stores.most, stores.untouched), (ROWS, 1, 0));
}

#[test]
fn no_schedule_changes_a_bit_of_a_sum_or_a_gradient() {
    let config = Config { scope: Scope::Segments, ..every_loss() };
    let case = Case::<bf16>::random(Gate::sigmoid(8), config, &[3, 0, 300, 20], 40, 8, 2);
    let run = |emulator: &Emulator| {
        let sums = case.partial(emulator, None).unwrap();
        let finished = case.finish(emulator, &sums, None).unwrap();
        let gradient = common::bits(&case.backward::<_, f32>(emulator, &finished).unwrap());
        (sums, finished, gradient)
    };
    let expected = run(&Emulator::new());
    for emulator in schedules() {
        assert_eq!(run(&emulator), expected, "{emulator:?}");
    }
}
