//! What the suites of each group of a specification's tests found: the worst error of every quantity, and how many cases were compared
//! bit for bit. Gathered by thread, so that suites of several backends do not mix; printed by the tests that are named `worst`.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// The worst of a quantity.
struct Seen {
    /// Of the tolerance.
    share: f64,
    /// As the tolerance counts it.
    error: f64,
    tolerance: f64,
    case: String,
}

thread_local! {
    static WORST: RefCell<BTreeMap<(u32, &'static str), Seen>> = const { RefCell::new(BTreeMap::new()) };
    static CASES: RefCell<BTreeMap<u32, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// Cases of a group that were compared bit for bit.
pub fn count(group: u32, cases: usize) {
    CASES.with_borrow_mut(|all| *all.entry(group).or_insert(0) += cases);
}

/// An error of a quantity and what it may be; returns its share of that.
pub fn see(group: u32, quantity: &'static str, case: &str, error: f64, tolerance: f64) -> f64 {
    let share = error / tolerance;
    WORST.with_borrow_mut(|all| {
        let worst = all.entry((group, quantity)).or_insert(Seen { share: -1.0, error, tolerance, case: String::new() });
        if share > worst.share {
            *worst = Seen { share, error, tolerance, case: case.into() };
        }
    });
    share
}

/// [`worst`](super::worst) of these values, seen.
pub fn see_values(
    group: u32,
    quantity: &'static str,
    case: &str,
    found: &[f32],
    expected: &[f64],
    absolute: f64,
    relative: f64,
) -> f64 {
    let tolerance = if relative > 0.0 { relative } else { absolute };
    let share = super::worst(found, expected, absolute, relative);
    see(group, quantity, case, share * tolerance, tolerance)
}

/// A line for every quantity and every group of comparisons that this thread saw.
pub fn print(noun: &str, backend: &str) {
    for (group, cases) in CASES.take() {
        println!("{noun} group {group} on {backend}: {cases} cases equal, bit for bit");
    }
    for ((group, quantity), Seen { error, tolerance, case, .. }) in WORST.take() {
        println!(
            "{noun} group {group} on {backend}: worst error of {quantity} {error:.1e} of {tolerance:.1e} ({case})"
        );
    }
}
