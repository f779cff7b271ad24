//! What every agreement suite uses: the backends, seeded inputs, comparison by tolerance, data files.
#![allow(dead_code)] // each test binary uses its own part

pub mod formulas;
#[cfg(any(feature = "cuda", feature = "emulate"))]
pub mod large;
pub mod placed;
pub mod property;
pub mod report;
#[cfg(feature = "emulate")]
pub mod schedules;

use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

/// Stamps a suite on every backend: `on_every_backend!(a_behaviour, another)` makes the tests `reference::a_behaviour`,
/// `emulator::a_behaviour`, `cuda::a_behaviour`, … from functions `fn a_behaviour<B: Backend>(backend: &B)`, with any attributes that stand
/// before a name; and `every_suite`, which runs them all.
#[macro_export]
macro_rules! on_every_backend {
    ($($(#[$attribute:meta])* $suite:ident),* $(,)?) => {
        mod reference {
            $(#[test] $(#[$attribute])* fn $suite() { super::$suite(&moerl::Reference); })*
        }
        #[cfg(feature = "emulate")]
        mod emulator {
            $(#[test] $(#[$attribute])* fn $suite() { super::$suite(&moerl::Emulator::new()); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] $(#[$attribute])* fn $suite() { if let Some(gpu) = $crate::common::cuda() { super::$suite(&gpu); } })*
        }
        #[allow(dead_code)] // most binaries have no use for it
        pub(crate) fn every_suite<B: moerl::Backend>(backend: &B) {
            $($suite(backend);)*
        }
    };
}

/// The first CUDA device. Without one, says why and returns `None`; with `MOERL_REQUIRE_GPU=1` that is a failure.
#[cfg(feature = "cuda")]
pub fn cuda() -> Option<moerl::Cuda> {
    match moerl::Cuda::open(0) {
        Ok(gpu) => Some(gpu),
        Err(reason) if std::env::var_os("MOERL_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("MOERL_REQUIRE_GPU is set, but: {reason}")
        }
        Err(reason) => {
            println!("skipped on cuda: {reason}");
            None
        }
    }
}

/// All, or under a sanitizer every second one, beginning with the first or the second as `which` is even or odd: where the others differ in arithmetic alone,
/// for which none looks, or have their turn where `which` is another.
pub fn sampled<T>(all: impl IntoIterator<Item = T>, which: usize) -> impl Iterator<Item = T> {
    let (skipped, step) = if is_sanitized() { (which % 2, 2) } else { (0, 1) };
    all.into_iter().skip(skipped).step_by(step)
}

/// Whether emulated kernels run under a sanitizer, which takes minutes for what takes seconds without.
pub fn is_sanitized() -> bool {
    !sanitizer().is_empty()
}

/// The sanitizer's name, or nothing.
pub fn sanitizer() -> &'static str {
    #[cfg(feature = "emulate")]
    return moerl::device::emulator::sanitizer();
    #[cfg(not(feature = "emulate"))]
    return "";
}

/// A generator that gives the same numbers in every run.
pub fn seeded(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A normal number.
pub fn normal(rng: &mut StdRng) -> f32 {
    rng.sample(StandardNormal)
}

/// A data file of `tests/golden`: under `$MOERL_DATA`, beside the test binary, or in the source tree the test was started from.
pub fn data(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join("data")));
    let started = std::env::var_os("CARGO_MANIFEST_DIR").map(|dir| PathBuf::from(dir).join("tests/golden"));
    let named = std::env::var_os("MOERL_DATA").map(PathBuf::from);
    let tried: Vec<PathBuf> = [named, beside, started].into_iter().flatten().map(|dir| dir.join(name)).collect();
    tried.iter().find(|path| path.exists()).cloned().unwrap_or_else(|| panic!("no {name} among {tried:?}"))
}

/// Largest `|found − expected| / (absolute + relative·|expected|)`; infinite where exactly one side is NaN or the infinities differ.
pub fn worst(found: &[f32], expected: &[f64], absolute: f64, relative: f64) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |worst, (&f, &e)| {
        let f = f64::from(f);
        let error =
            if f == e || (f.is_nan() && e.is_nan()) { 0.0 } else { (f - e).abs() / (absolute + relative * e.abs()) };
        f64::max(worst, if error.is_nan() { f64::INFINITY } else { error })
    })
}

/// The bits of each value, for comparisons in which NaN equals itself and −0 does not equal +0.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The bits of a value, NaN being one value: nothing says which NaN it is.
pub fn canonical_bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// Those of each value.
pub fn canonical(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|&x| canonical_bits(x))
}
