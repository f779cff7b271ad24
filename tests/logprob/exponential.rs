//! The exponential that every sum is made of, at every f32 of its range on a device; emulated, at some.
//!
//! No call returns it bare. The gradient of the log-sum-exp does but for one factor: with `T = log2 e` (rounded to f32), a largest logit
//! of 0 and a saved sum of 1 it is `ex2(x)·2·f32(1/T)`, of which only the last product is rounded.

use moerl::device::executor::Executor;
use moerl::logprob::{Backward, Config, Gradient, Partial};
use moerl::memory::MatrixMut;
use moerl::{Backend, Buffer};

/// Rows of a call, and columns.
const ROWS: usize = 4096;
/// −0 and −126: all f32 between them, and these, are the bits between theirs.
const FIRST: u32 = 0x8000_0000;
const LAST: u32 = 0xc2fc_0000;

/// ex2 of each number but for the factor, and the factor.
fn exponentials<B: Executor>(backend: &B, numbers: &[f32]) -> (Vec<f32>, f64) {
    let columns = numbers.len() / ROWS;
    let temperature = std::f64::consts::LOG2_E as f32;
    // What the exponent is scaled by is exactly 1.
    assert_eq!((std::f64::consts::LOG2_E / f64::from(temperature)) as f32, 1.0);
    let factor = f64::from((1.0 / f64::from(temperature)) as f32) * 2.0;
    let stream = backend.stream().unwrap();
    let record = Partial { max_logit: 0.0, sum: 1.0, weighted: 0.0, label: f32::NEG_INFINITY };
    let saved = backend.upload(&stream, &vec![record; ROWS]).unwrap();
    let d_lse = backend.upload(&stream, &vec![2.0f32; ROWS]).unwrap();
    let mut logits = backend.upload(&stream, numbers).unwrap();
    let gradient = Gradient::InPlace(MatrixMut::new(logits.view_mut(), ROWS, columns).unwrap());
    let call = Backward { d_lse: Some(d_lse.view()), ..Backward::new(gradient, saved.view()) };
    backend.logprob_backward(&stream, &Config::at_temperature(temperature), call).unwrap();
    (backend.download(&stream, logits.view()).unwrap(), factor)
}

/// The worst relative error of these, and where it is.
fn worst(numbers: &[f32], found: &[f32], factor: f64) -> (f64, f32) {
    numbers.iter().zip(found).fold((0.0, 0.0), |worst, (&t, &found)| {
        let error = (f64::from(found) / (factor * f64::from(t).exp2()) - 1.0).abs();
        if error > worst.0 { (error, t) } else { worst }
    })
}

/// Every `step`-th of them. What is measured has the product's rounding in it.
fn check<B: Executor>(backend: &B, columns: usize, step: usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut over_all = (0.0, 0.0);
    let (mut next, mut count) = (u64::from(FIRST), 0u64);
    while next <= u64::from(LAST) {
        let first = next;
        let number = |i: usize| f32::from_bits((first + (i * step) as u64).min(LAST.into()) as u32);
        let mut numbers = vec![0f32; ROWS * columns];
        let part = numbers.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for (at, part_of) in numbers.chunks_mut(part).enumerate() {
                scope.spawn(move || part_of.iter_mut().enumerate().for_each(|(i, x)| *x = number(at * part + i)));
            }
        });
        let (found, factor) = exponentials(backend, &numbers);
        let found_worst = std::thread::scope(|scope| {
            let parts: Vec<_> = numbers
                .chunks(part)
                .zip(found.chunks(part))
                .map(|(numbers, found)| scope.spawn(move || worst(numbers, found, factor)))
                .collect();
            parts.into_iter().map(|part| part.join().unwrap()).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
        });
        if found_worst.0 > over_all.0 {
            over_all = found_worst;
        }
        next += (numbers.len() * step) as u64;
        count += numbers.len() as u64;
    }
    let (error, at) = over_all;
    let count = count.min((u64::from(LAST - FIRST) + 1).div_ceil(step as u64));
    println!(
        "ex2 on {}: worst relative error {error:.3e} = 2^{:.2} at t = {at:e}, of {count} numbers; a rounding included",
        backend.name(),
        error.log2()
    );
    assert!(error <= 2f64.powi(-22) + 2f64.powi(-24), "{error:e} at {at:e}");

    // Where there is nothing left: the clamp, masked columns, and what lies below the smallest normal number.
    let mut tail = vec![-200.0f32; ROWS];
    (tail[1], tail[2], tail[3], tail[4]) = (f32::NEG_INFINITY, -1e30, -127.5, -150.0);
    let (found, _) = exponentials(backend, &tail);
    assert!(found.iter().all(|g| *g == 0.0), "{:?}", &found[..5]);
}

#[cfg(feature = "emulate")]
mod emulator {
    #[test]
    fn exponentials_are_good_to_two_to_the_minus_22() {
        // A prime, so that all exponents and mantissas are met.
        super::check(&moerl::Emulator::new(), 8, 34_303);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    #[test]
    fn exponentials_are_good_to_two_to_the_minus_22_at_every_f32_from_minus_126_to_0() {
        if let Some(gpu) = crate::common::cuda() {
            super::check(&gpu, 1 << 14, 1);
        }
    }
}
