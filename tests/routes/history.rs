//! Moving averages, reservoirs, samples.

use moerl::routes::{History, HistoryConfig, Item, Layer};

use crate::fixture::refused;

fn config() -> HistoryConfig {
    HistoryConfig { experts: 8, top_k: 2, capacity: 4, decay: 0.9, threshold: 0.5, seed: 17 }
}

fn item(row: u64) -> Item {
    Item { sequence: row / 10, row, behaviour_logprob: -0.5, policy_version: 3, gate: 0.25 }
}

/// A history in which expert 7 of these layers is under-used.
fn starved(config: HistoryConfig, layers: u32) -> History {
    let mut history = History::new(config).unwrap();
    for layer in 0..layers {
        history.observe(Layer(layer), &[40, 40, 40, 40, 40, 0, 0, 0], 100).unwrap();
    }
    history
}

#[test]
fn experts_below_their_share_are_under_used() {
    let mut history = History::new(config()).unwrap();
    assert!(history.under_used(Layer(0)).is_empty());
    // An even load is 0.25; half of it is the threshold.
    history.observe(Layer(0), &[25, 13, 12, 0, 50, 50, 25, 25], 100).unwrap();
    assert_eq!(history.under_used(Layer(0)), [2, 3]);
    assert!(history.under_used(Layer(1)).is_empty());
    // 0.9 · 0.1 · 0.12 + 0.1 · 0.5, over 0.19: 0.320.
    history.observe(Layer(0), &[25, 13, 50, 0, 50, 12, 25, 25], 100).unwrap();
    assert_eq!(history.under_used(Layer(0)), [3]);
    // A step without tokens says nothing.
    let before = history.clone();
    history.observe(Layer(0), &[0; 8], 0).unwrap();
    assert_eq!(history, before);
}

#[test]
fn a_reservoir_fills_and_then_replaces() {
    let mut history = starved(config(), 1);
    for row in 0..4 {
        assert!(history.offer(Layer(0), 7, 0, item(row)).unwrap());
    }
    let mut kept = 0;
    for row in 4..100 {
        kept += usize::from(history.offer(Layer(0), 7, 0, item(row)).unwrap());
    }
    assert_eq!((history.items(Layer(0), 7).len(), history.arrived(Layer(0), 7)), (4, 100));
    assert!(kept > 0 && kept < 96, "{kept} kept");
    // Experts with enough work are passed over.
    assert!(!history.offer(Layer(0), 1, 0, item(0)).unwrap());
    assert_eq!((history.items(Layer(0), 1).len(), history.arrived(Layer(0), 1), history.len()), (0, 0, 4));
}

#[test]
fn the_same_arrivals_leave_the_same_items_and_another_seed_leaves_others() {
    let fill = |seed| {
        let mut history = starved(HistoryConfig { seed, ..config() }, 3);
        for layer in 0..3 {
            for row in 0..200 {
                history.offer(Layer(layer), 6, row / 50, item(row)).unwrap();
            }
        }
        history
    };
    assert_eq!(fill(17), fill(17));
    let rows =
        |history: &History, layer| -> Vec<u64> { history.items(Layer(layer), 6).iter().map(|item| item.row).collect() };
    let (one, other) = (fill(17), fill(18));
    assert_ne!(rows(&one, 0), rows(&other, 0));
    assert_ne!(rows(&one, 0), rows(&one, 1), "layers draw apart");
    // What a layer keeps does not depend on the other layers.
    let mut alone = starved(config(), 3);
    for row in 0..200 {
        alone.offer(Layer(1), 6, row / 50, item(row)).unwrap();
    }
    assert_eq!(rows(&alone, 1), rows(&one, 1));
    assert_eq!(one.sample(5, 0), one.sample(5, 0));
    assert_ne!(one.sample(5, 0), one.sample(5, 1));
}

/// χ² of how often each of n things was among c that were drawn without repetition, in `trials` trials.
fn chi2(seen: &[u32], c: usize, trials: usize) -> f64 {
    let n = seen.len() as f64;
    let share = c as f64 / n;
    let expected = trials as f64 * share;
    // A thing is drawn once at most, so a count varies by 1 − share less, and n counts of fixed sum have n − 1 freedoms.
    let scale = expected * (1.0 - share) * n / (n - 1.0);
    seen.iter().map(|&count| (f64::from(count) - expected).powi(2) / scale).sum()
}

/// 99.9th percentile of χ² with 49 degrees of freedom. Seeds are fixed, so the tests cannot flicker.
const CHI2_49: f64 = 85.35;

#[test]
fn every_item_that_arrived_is_kept_with_the_same_probability() {
    const ITEMS: usize = 50;
    const LAYERS: u32 = 4000;
    let mut history = starved(HistoryConfig { capacity: 10, ..config() }, LAYERS);
    let mut seen = [0_u32; ITEMS];
    for layer in 0..LAYERS {
        for row in 0..ITEMS as u64 {
            history.offer(Layer(layer), 5, 0, item(row)).unwrap();
        }
        for item in history.items(Layer(layer), 5) {
            seen[item.row as usize] += 1;
        }
    }
    let found = chi2(&seen, 10, LAYERS as usize);
    println!("chi2 of the reservoirs: {found:.2}, 49 degrees of freedom");
    assert!(found < CHI2_49, "{found}: {seen:?}");
}

#[test]
fn samples_are_uniform_and_hold_nothing_twice() {
    const ROUNDS: u32 = 4000;
    let mut history = starved(HistoryConfig { capacity: 50, ..config() }, 1);
    for row in 0..50 {
        history.offer(Layer(0), 5, 0, item(row)).unwrap();
    }
    let (mut seen, mut first) = ([0_u32; 50], [0_u32; 50]);
    for round in 0..ROUNDS {
        let sample = history.sample(10, round);
        let mut rows: Vec<u64> = sample.iter().map(|sampled| sampled.item.row).collect();
        first[rows[0] as usize] += 1;
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 10);
        rows.iter().for_each(|&row| seen[row as usize] += 1);
    }
    let found = [chi2(&seen, 10, ROUNDS as usize), chi2(&first, 1, ROUNDS as usize)];
    println!("chi2 of samples and of their first items: {found:.2?}, 49 degrees of freedom");
    assert!(found.iter().all(|&x| x < CHI2_49), "{found:?}");
    assert_eq!(history.sample(99, 0).len(), 50);
}

#[test]
fn bad_configurations_and_arrivals_are_named() {
    let bad = HistoryConfig { experts: 0, top_k: 0, capacity: 0, decay: 1.0, threshold: f64::NAN, seed: 0 };
    refused(
        History::new(bad),
        "experts: are 0, need 1 to 4096; top_k: is 0, needs 1 to the 0 experts; capacity: is 0, needs at least 1; \
         decay: is 1, needs 0 or more and less than 1; threshold: is NaN, needs a finite number that is not negative",
    );
    let mut history = starved(config(), 1);
    refused(history.observe(Layer(0), &[1; 7], 9), "counts: has shape [7], needs [8]");
    refused(history.observe(Layer(1 << 20), &[1; 8], 9), "layer: is 1048576, needs to be below 1048575");
    refused(history.offer(Layer(0), 8, 0, item(0)), "history: layer 0 has 8 experts, not expert 8");
    history.offer(Layer(0), 7, 2, item(5)).unwrap();
    refused(
        history.offer(Layer(0), 7, 2, item(5)),
        "history: layer 0, expert 7: (step 2, row 5) arrives after (step 2, row 5)",
    );
    refused(
        history.offer(Layer(0), 7, 1, item(9)),
        "history: layer 0, expert 7: (step 1, row 9) arrives after (step 2, row 5)",
    );
    assert!(history.offer(Layer(0), 7, 3, item(0)).unwrap());
}
