//! Arrays of more elements than 32 bits count, made where they lie: one tile of numbers, laid down again and again.

use std::ops::Range;

use moerl::Buffer;
use moerl::device::bandwidth;
use moerl::device::executor::Executor;
use moerl::element::{Float, Scalar};
use moerl::memory::{View, ViewMut};
use rand_distr::{Distribution, StandardNormal};

/// Elements of a tile: eight times a prime, so that rows of a usual width are all different for more than a hundred thousand rows, and
/// those 2³¹ elements apart too.
const LENGTH: usize = 8 * 131_071;

/// Normal numbers; element i of an array made of them is number i mod [`LENGTH`].
pub struct Tile<T>(Vec<T>);

impl<T: Float> Tile<T> {
    pub fn new(seed: u64, deviation: f32) -> Tile<T> {
        let mut rng = super::seeded(seed);
        let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
        Tile((0..LENGTH).map(|_| T::from_f32(deviation * normal())).collect())
    }

    /// These elements of an array.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = T> {
        range.map(|i| self.0[i % LENGTH])
    }

    /// Makes an array of it. Both its address and its length must be multiples of 16 bytes.
    pub fn lay<E: Executor>(&self, executor: &E, stream: &E::Stream, mut array: ViewMut<'_, T, E::Memory>) {
        let tile = executor.send(stream, &self.0).unwrap();
        for begin in (0..array.len()).step_by(LENGTH) {
            let part = LENGTH.min(array.len() - begin);
            copy(executor, stream, tile.view().slice(0..part), array.reborrow().slice(begin..begin + part));
        }
        executor.wait(stream).unwrap();
    }
}

/// Copies an array on the device. Addresses and lengths must be multiples of 16 bytes.
pub fn copy<E: Executor, T: Scalar>(
    executor: &E,
    stream: &E::Stream,
    from: View<'_, T, E::Memory>,
    to: ViewMut<'_, T, E::Memory>,
) {
    assert_eq!(from.len(), to.len());
    let bytes = from.len() * size_of::<T>();
    // SAFETY: the memory of `from`, borrowed for as long; any bytes may be read as such.
    let from = unsafe { View::from_raw(from.address(), bytes) };
    // SAFETY: the memory of `to`, which nobody else sees meanwhile; what is written are elements of `from`.
    let to = unsafe { ViewMut::from_raw(to.address(), bytes) };
    bandwidth::copy(executor, stream, from, to).unwrap();
}

/// Waits for other large tests to end; `None`, and why, where the device has no room for so many bytes.
#[cfg(feature = "cuda")]
pub fn room(gpu: &moerl::Cuda, what: &str, needed: usize) -> Option<std::sync::MutexGuard<'static, ()>> {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    if has_room(gpu, needed) {
        return Some(ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
    let memory = gpu.info().unwrap().memory;
    println!("skipped on cuda: {what} needs {:.1} GB of the device's {:.1}", needed as f64 / 1e9, memory as f64 / 1e9);
    None
}

/// Besides what the context and small tests take: a gigabyte, and a tenth.
#[cfg(feature = "cuda")]
pub fn has_room(gpu: &moerl::Cuda, needed: usize) -> bool {
    needed + needed / 10 + (1 << 30) <= gpu.info().unwrap().memory
}
