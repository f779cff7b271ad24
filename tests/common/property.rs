//! What property tests share: a runner that draws the same calls in every run, and arrays that show what is written beside them.

use std::ops::Range;

use bytemuck::Pod;
use moerl::memory::{View, ViewMut};
use moerl::{Backend, Buffer, Result};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner, contextualize_config};

/// Runs `test` on drawn values: `cases` of them, a quarter of that under AddressSanitizer, an eighth under ThreadSanitizer, from a fixed seed. `PROPTEST_CASES` and
/// `PROPTEST_RNG_SEED` in the environment say otherwise. Panics with the smallest value that fails.
pub fn for_any<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(&S::Value)) {
    let cases = cases.div_ceil(match super::sanitizer() {
        "" => 1,
        "address" => 4,
        _ => 8,
    });
    let config = contextualize_config(Config {
        cases,
        rng_seed: RngSeed::Fixed(0x6d6f_6572_6c00),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    });
    let outcome = TestRunner::new(config).run(strategy, |value| {
        test(&value);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// What a call found and what it should have; `None` where both are refused. Panics where only one is, or for another reason.
pub fn unless_refused<T>(found: Result<T>, expected: Result<T>) -> Option<(T, T)> {
    // Addresses differ from backend to backend.
    let words = |text: String| text.split(' ').map(|w| if w.starts_with("0x") { "0x" } else { w }.to_owned()).collect();
    match (found, expected) {
        (Ok(found), Ok(expected)) => Some((found, expected)),
        (Err(found), Err(expected)) => {
            println!("refused: {found}"); // shown where a test fails that expects otherwise
            let [found, expected]: [Vec<String>; 2] = [found, expected].map(|error| words(error.to_string()));
            assert_eq!(found, expected, "refused for another reason");
            None
        }
        (Err(error), Ok(_)) => panic!("refused, and not by the reference: {error}"),
        (Ok(_), Err(error)) => panic!("not refused, but by the reference: {error}"),
    }
}

/// How many elements lie in front of an array, beside those that shift it, and behind it.
const MARGIN: usize = 16;

/// An array with a margin on both sides, so that it may begin at any element and what is written beside it is seen.
pub struct Padded<B: Backend, T: Pod + Send + Sync> {
    buffer: B::Buffer<T>,
    margins: [Vec<T>; 2],
    range: Range<usize>,
}

impl<B: Backend, T: Pod + Send + Sync> Padded<B, T> {
    /// `data`, `skipped` (below 4) elements behind a boundary. The margins hold `beside`.
    pub fn new(backend: &B, stream: &B::Stream, data: &[T], skipped: usize, beside: T) -> Padded<B, T> {
        let margins = [vec![beside; MARGIN + skipped], vec![beside; MARGIN]];
        let all = [&margins[0], data, &margins[1]].concat();
        let range = margins[0].len()..margins[0].len() + data.len();
        Padded { buffer: backend.upload(stream, &all).unwrap(), margins, range }
    }

    pub fn view(&self) -> View<'_, T, B::Memory> {
        self.buffer.view().slice(self.range.clone())
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T, B::Memory> {
        self.buffer.view_mut().slice(self.range.clone())
    }

    /// What it holds. Panics where the margins do not hold what they held.
    pub fn read(&self, backend: &B, stream: &B::Stream, name: &str) -> Vec<T> {
        let mut all = backend.download(stream, self.buffer.view()).unwrap();
        let behind = all.split_off(self.range.end);
        let inside = all.split_off(self.range.start);
        for (side, (found, expected)) in ["in front of", "behind"].iter().zip([all, behind].iter().zip(&self.margins)) {
            assert_eq!(bytes_of(found), bytes_of(expected), "{name}: something was written {side} it");
        }
        inside
    }
}

/// The bytes of each value, for comparisons in which NaN equals itself.
pub fn bytes_of<T: Pod>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
