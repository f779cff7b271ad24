//! Emulators that differ in all that a launch leaves open.

use moerl::Emulator;
use moerl::device::emulator::Schedule;

use super::is_sanitized;

/// The emulators whose results must not differ: every order of threads under several seeds, one to three blocks at a time, devices of several sizes.
/// Under a sanitizer every order once: what it looks for does not hang on it.
pub fn schedules() -> impl Iterator<Item = Emulator> {
    let orders = [Schedule::Priorities, Schedule::Random, Schedule::InOrder, Schedule::Reverse];
    let multiprocessors = [7, 1, 132, 2, 5];
    let seeds: u64 = if is_sanitized() { 4 } else { 24 };
    (0..seeds).map(move |seed| {
        Emulator::new()
            .with_seed(seed)
            .with_schedule(orders[seed as usize % orders.len()])
            .with_blocks_in_flight(1 + seed as u32 % 3)
            .with_multiprocessors(multiprocessors[seed as usize % multiprocessors.len()])
    })
}
