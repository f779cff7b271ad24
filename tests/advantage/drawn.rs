//! What calls of any kind are made of, and how what they left is compared.

use moerl::advantage::LeftOut;
use moerl::{Backend, Error};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::common::property::Padded;
use crate::common::{canonical, report, seeded};

/// What a call left, by name: floats, and whatever else as words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    pub floats: Vec<(&'static str, Vec<f32>)>,
    pub words: Vec<(&'static str, Vec<u64>)>,
    pub moments: Vec<f64>,
    pub fault: Option<Error>,
}

impl Found {
    pub fn bits(&self) -> Vec<(&'static str, Vec<u64>)> {
        let floats = self.floats.iter().map(|(name, x)| (*name, canonical(x).map(u64::from).collect()));
        let moments = ("moments", self.moments.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect());
        floats.chain(self.words.iter().cloned()).chain([moments]).collect()
    }
}

pub fn assert_same_bits(what: &str, found: &Found, expected: &Found) {
    for (found, expected) in found.bits().iter().zip(expected.bits()) {
        assert_eq!(*found, expected, "{what}: other bits");
    }
    assert_eq!(found.fault, expected.fault, "{what}");
}

/// `scale` gives what the terms of each float's sum come to.
pub fn assert_agrees(found: &Found, expected: &Found, scale: impl Fn(&str, usize) -> f64) {
    for ((name, found), (_, expected)) in found.floats.iter().zip(&expected.floats) {
        assert_eq!(found.len(), expected.len());
        for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
            if f == e || (f.is_nan() && e.is_nan()) {
                continue;
            }
            // Rounded once on both sides; sums in f64 in another order.
            let tolerance = 1.2e-7 * f64::from(e).abs() + 1e-14 * scale(name, i) + 1e-44;
            let share = report::see(0, name, "any", (f64::from(f) - f64::from(e)).abs(), tolerance);
            assert!(share <= 1.0, "{name} {i}: {f} not {e}: {share} of the tolerance");
        }
    }
    for (f, e) in found.moments.iter().zip(&expected.moments) {
        let is_close = f == e || (f - e).abs() <= 1e-11 * e.abs();
        assert!(is_close || (f.is_nan() && e.is_nan()), "moments: {found:?} not {expected:?}");
    }
    assert_eq!(found.words, expected.words);
    assert_eq!(found.fault, expected.fault);
}

/// Arrays at addresses of their own choice.
pub struct Arrays<'b, B: Backend> {
    pub backend: &'b B,
    pub stream: B::Stream,
    pub shifts: Option<StdRng>,
}

impl<'b, B: Backend> Arrays<'b, B> {
    pub fn new(backend: &'b B, shifted: bool) -> Arrays<'b, B> {
        Arrays { backend, stream: backend.stream().unwrap(), shifts: shifted.then(|| seeded(1)) }
    }
    pub fn put<T: bytemuck::Pod + Send + Sync>(&mut self, values: &[T], beside: T) -> Padded<B, T> {
        let skipped = self.shifts.as_mut().map_or(0, |rng| rng.random_range(0..4));
        Padded::new(self.backend, &self.stream, values, skipped, beside)
    }
    pub fn floats(&mut self, values: &[f32]) -> Padded<B, f32> {
        self.put(values, 7.5)
    }
    pub fn maybe<T: bytemuck::Pod + Send + Sync>(
        &mut self,
        values: &Option<Vec<T>>,
        beside: T,
    ) -> Option<Padded<B, T>> {
        values.as_ref().map(|values| self.put(values, beside))
    }
    pub fn read<T: bytemuck::Pod + Send + Sync>(&self, array: &Padded<B, T>, name: &str) -> Vec<T> {
        array.read(self.backend, &self.stream, name)
    }
    pub fn scratch(&mut self, bytes: usize) -> Padded<B, u8> {
        self.put(&vec![0xa5; bytes], 0x5a)
    }
}

/// Runs of tokens that count and that do not; sometimes none or all.
pub fn mask(rng: &mut StdRng, tokens: usize) -> Vec<u8> {
    let (mut on, turn) = (rng.random_bool(0.5), [0.0, 0.02, 0.2, 0.6][rng.random_range(0..4)]);
    let mut next = || {
        on ^= rng.random_bool(turn);
        if on { [1, 1, 1, 9][rng.random_range(0..4)] } else { 0 }
    };
    (0..tokens).map(|_| next()).collect()
}

/// Lengths about every limit that makes work go another way.
pub fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let at_limits = select(vec![0_usize, 1, 2, 31, 32, 33, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2047, 2048, 2049]);
    prop_oneof![
        6 => vec(0_usize..10, 0..6),
        4 => vec(prop_oneof![at_limits, 0_usize..70], 1..7),
        2 => (select(vec![1_usize, 2, 17, 33]), select(vec![31_usize, 64, 255, 256, 257])).prop_map(|(l, n)| vec![l; n]),
        1 => select(vec![vec![32 * 1024], vec![3, 32 * 1024 + 1], vec![33 * 1024 + 7, 0, 5]]),
    ]
}

pub fn left_out() -> impl Strategy<Value = LeftOut> {
    select(vec![LeftOut::Zero, LeftOut::Nan])
}

pub const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// Numbers of some kind: eighths, normal-sized, far from 0, all equal, or anything that f32 holds.
pub fn numbers(rng: &mut StdRng, kind: u8, len: usize, bad: f64) -> Vec<f32> {
    let same = rng.random_range(-2.0_f32..2.0);
    let next = |rng: &mut StdRng| match kind {
        0 => rng.random_range(-8_i32..8) as f32 / 8.0,
        1 => rng.random_range(-1.0_f32..1.0),
        2 => 1e4 + rng.random_range(-1.0_f32..1.0),
        3 => same,
        _ => rng.random_range(-1.0_f32..1.0) * 10f32.powi(rng.random_range(-20..20)),
    };
    (0..len).map(|_| if rng.random_bool(bad) { BAD[rng.random_range(0..3)] } else { next(rng) }).collect()
}
