//! Any statistics of changed routes: lengths, numbers, masks, places and sums to add to in whatever combination, and what must be refused.

use moerl::memory::{View, ViewMut};
use moerl::route_change::{BINS, Bin, Call, NUMBERS, workspace_bytes};
use moerl::{Backend, Reference, Result};
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::common::placed::{Place, Placed};
use crate::common::property::{for_any, unless_refused};
#[cfg(feature = "emulate")]
use crate::common::schedules::schedules;
use crate::common::{report, seeded};

/// What is drawn of a call.
#[derive(Clone, Debug)]
struct Drawn {
    tokens: usize,
    /// Of the numbers; see [`number`].
    kind: u8,
    /// Rollout, mask, clipped, keep: a bit each; and whether the first call adds to what is there.
    has: u8,
    /// How likely a number is NaN or infinite.
    bad: f64,
    /// Bins are below this.
    bins: usize,
    aligned: bool,
    flaw: Flaw,
    seed: u64,
}

const ROLLOUT: u8 = 1;
const MASK: u8 = 2;
const CLIPPED: u8 = 4;
const KEEP: u8 = 8;
const ACCUMULATE: u8 = 16;

/// What is wrong with the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    Old,
    Rollout,
    Mask,
    Clipped,
    Keep,
    Change,
    Sums,
    Workspace,
    Shared,
    /// An address that is no multiple of an element.
    Odd,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    // Of a warp, of what a block takes at once, of a block.
    let tokens = prop_oneof![
        3 => 0_usize..9,
        4 => select(vec![31_usize, 127, 128, 129, 1023, 1024, 1025, 2047, 2049, 3100]),
    ];
    let flaws = [
        Flaw::Old,
        Flaw::Rollout,
        Flaw::Mask,
        Flaw::Clipped,
        Flaw::Keep,
        Flaw::Change,
        Flaw::Sums,
        Flaw::Workspace,
        Flaw::Shared,
        Flaw::Odd,
    ];
    let flaw = prop_oneof![6 => Just(Flaw::Nothing), 1 => select(flaws.to_vec())];
    let bad = select(vec![0.0, 0.0, 0.02, 0.6, 1.0]);
    let bins = select(vec![1_usize, 15, 16, 17, 256]);
    (tokens, 0_u8..5, 0_u8..32, bad, bins, any::<bool>(), flaw, any::<u64>()).prop_map(
        |(tokens, kind, has, bad, bins, aligned, flaw, seed)| Drawn {
            tokens,
            kind,
            has,
            bad,
            bins,
            aligned,
            flaw,
            seed,
        },
    )
}

fn number(kind: u8, rng: &mut StdRng) -> f32 {
    let extremes = [f32::MAX, -f32::MAX, -1e30, 1e19, -2e19, f32::MIN_POSITIVE, 1e-45, 0.0, -0.0, -1.0];
    match kind {
        0 => -rng.random_range(0_i32..32) as f32 / 8.0,
        1 => -rng.random_range(0.0_f32..4.0),
        2 => -1.0 + rng.random_range(-4_i32..4) as f32 * f32::EPSILON,
        3 => rng.random_range(-1.0_f32..1.0) * 10f32.powi(rng.random_range(-44..38)),
        _ => extremes[rng.random_range(0..extremes.len())],
    }
}

/// The arrays of a call.
struct Tokens {
    /// l, o, q.
    floats: [Vec<f32>; 3],
    /// Mask, clipped, keep, changes.
    bytes: [Vec<u8>; 4],
}

impl Drawn {
    fn has(&self, array: u8) -> bool {
        self.has & array != 0
    }

    fn tokens(&self) -> Tokens {
        let (mut rng, n) = (seeded(self.seed), self.tokens);
        let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let bad = self.bad / 3.0;
        let mut float = || if rng.random_bool(bad) { few[rng.random_range(0..3)] } else { number(self.kind, &mut rng) };
        let floats = [(); 3].map(|()| (0..n).map(|_| float()).collect());
        let mut byte = |values: [u8; 4]| (0..n).map(|_| values[rng.random_range(0..4)]).collect();
        let mask = [[1, 1, 1, 0], [1, 2, 255, 0], [0; 4]][self.seed as usize % 3];
        let [mask, clipped, keep] = [byte(mask), byte([0, 0, 1, 255]), byte([1, 0, 3, 1])];
        let change = (0..n).map(|_| rng.random_range(0..self.bins) as u8).collect();
        Tokens { floats, bytes: [mask, clipped, keep, change] }
    }

    fn before(&self) -> Vec<f64> {
        if !self.has(ACCUMULATE) {
            return vec![f64::NAN; BINS * NUMBERS];
        }
        // Counts stay whole.
        let mut rng = seeded(self.seed ^ 3);
        (0..BINS * NUMBERS).map(|_| f64::from(rng.random_range(0_u32..1 << 20))).collect()
    }

    fn is_unlawful(&self) -> bool {
        match self.flaw {
            Flaw::Nothing => false,
            Flaw::Rollout => self.has(ROLLOUT),
            Flaw::Mask => self.has(MASK),
            Flaw::Clipped => self.has(CLIPPED),
            Flaw::Keep => self.has(KEEP),
            Flaw::Old | Flaw::Change | Flaw::Sums | Flaw::Workspace | Flaw::Shared | Flaw::Odd => true,
        }
    }
}

/// The sums after one call and after another that adds to them.
fn run<B: Backend>(backend: &B, drawn: &Drawn, tokens: &Tokens, has: u8, aligned: bool) -> Result<[Vec<f64>; 2]> {
    let stream = backend.stream()?;
    let mut rng = seeded(drawn.seed ^ 9);
    let mut place = || Place { before: if aligned { 0 } else { rng.random_range(0..17) }, gap: 0 };
    let longer = |flaw: Flaw| usize::from(drawn.flaw == flaw && flaw != Flaw::Nothing);
    macro_rules! put {
        ($values:expr, $flaw:expr) => {{
            let values = [&$values[..], &vec![Default::default(); longer($flaw)]].concat();
            Placed::new(backend, &stream, place(), values.len(), &values)
        }};
    }
    let [logprobs, old, rollout] = &tokens.floats;
    let logprobs: Placed<B, f32> = put!(logprobs, Flaw::Nothing);
    let old: Placed<B, f32> = put!(old, Flaw::Old);
    let rollout: Placed<B, f32> = put!(rollout, Flaw::Rollout);
    let [mask, clipped, keep, change] = &tokens.bytes;
    let mask: Placed<B, u8> = put!(mask, Flaw::Mask);
    let clipped: Placed<B, u8> = put!(clipped, Flaw::Clipped);
    let keep: Placed<B, u8> = put!(keep, Flaw::Keep);
    let change: Placed<B, u8> = put!(change, Flaw::Change);
    let mut sums: Placed<B, f64> = put!(drawn.before(), Flaw::Sums);
    let bytes = workspace_bytes(drawn.tokens) - longer(Flaw::Workspace);
    let mut workspace = Placed::<B, u8>::output(backend, &stream, place().before, bytes);
    let mut found = [vec![], vec![]];
    for (at, found) in found.iter_mut().enumerate() {
        let mut call = Call {
            logprobs: logprobs.view(),
            old_logprobs: old.view(),
            rollout_logprobs: (has & ROLLOUT != 0).then(|| rollout.view()),
            loss_mask: (has & MASK != 0).then(|| mask.view()),
            clipped: (has & CLIPPED != 0).then(|| clipped.view()),
            keep: (has & KEEP != 0).then(|| keep.view()),
            route_change: change.view(),
            sums: sums.view_mut(),
            workspace: workspace.view_mut(),
            accumulate: at > 0 || has & ACCUMULATE != 0,
        };
        if drawn.flaw == Flaw::Shared {
            let address = call.workspace.address().next_multiple_of(8);
            // SAFETY: the call is refused before anything looks there.
            call.sums = unsafe { ViewMut::from_raw(address, BINS * NUMBERS) };
        }
        if drawn.flaw == Flaw::Odd {
            // SAFETY: likewise.
            call.old_logprobs = unsafe { View::from_raw(old.view().address() + 1, drawn.tokens) };
        }
        backend.route_change(&stream, call)?;
        *found = sums.read("sums", backend, &stream);
    }
    workspace.read("workspace", backend, &stream);
    Ok(found)
}

/// What the terms of every sum come to, and the largest of them.
fn sizes(drawn: &Drawn, tokens: &Tokens) -> Vec<(f64, f64)> {
    let mut sizes = vec![(0.0, 0.0); BINS * NUMBERS];
    for u in (0..drawn.tokens).filter(|&u| !drawn.has(MASK) || tokens.bytes[0][u] != 0) {
        let [new, old, rollout] = [0, 1, 2].map(|at: usize| f64::from(tokens.floats[at][u]));
        let (moved, apart) = (new - old, if drawn.has(ROLLOUT) { old - rollout } else { 0.0 });
        if moved.is_finite() && apart.is_finite() {
            let bin = usize::from(tokens.bytes[3][u]).min(BINS - 1);
            let terms = [moved.abs(), moved * moved, apart.abs(), apart * apart];
            for (to, term) in sizes[bin * NUMBERS + 1..].iter_mut().zip(terms) {
                *to = (to.0 + term, f64::max(to.1, term));
            }
        }
    }
    sizes
}

/// Half a unit of f32's last place, and half of its smallest number.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;
const LEAST: f64 = 7.1e-46;

/// `times` calls added to `before`.
fn assert_agrees(drawn: &Drawn, tokens: &Tokens, times: f64, found: &[f64], expected: &[f64]) {
    let before = drawn.before();
    for (place, ((&f, &e), (size, largest))) in found.iter().zip(expected).zip(sizes(drawn, tokens)).enumerate() {
        let number = place % NUMBERS;
        if matches!(number, 0 | 5 | 6) {
            assert_eq!(f, e, "count {number} of bin {}", place / NUMBERS);
            continue;
        }
        // The difference and its square are f32, and so is what at most eight tokens of a thread come to.
        if largest > f64::from(f32::MAX) * (1.0 + 1e-6) {
            assert!(f == e || !f.is_finite(), "sum {place} is {f}, of terms that f32 does not hold");
        } else if size < f64::from(f32::MAX) * (1.0 - 1e-6) {
            let added = HALF_UNIT * 10.1 * size + 9.0 * LEAST * drawn.tokens as f64;
            let was = if drawn.has(ACCUMULATE) { before[place] } else { 0.0 };
            let tolerance = times * added + 1e-13 * (was + times * size);
            let share = report::see(0, "sums", "any", (f - e).abs(), tolerance.max(f64::MIN_POSITIVE));
            assert!(share <= 1.0, "sum {place}: {f} not {e}: {share} of the tolerance");
        }
    }
}

fn bits(sums: &[Vec<f64>; 2]) -> Vec<u64> {
    sums.iter().flatten().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect()
}

pub fn any_sums_are_the_reference_s<B: Backend>(backend: &B) {
    for_any(300, &drawn(), |drawn| {
        let tokens = drawn.tokens();
        let both = unless_refused(
            run(backend, drawn, &tokens, drawn.has, drawn.aligned),
            run(&Reference, drawn, &tokens, drawn.has, drawn.aligned),
        );
        assert_eq!(both.is_none(), drawn.is_unlawful());
        let Some((found, expected)) = both else { return };
        for (times, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_agrees(drawn, &tokens, (times + 1) as f64, found, expected);
        }
        let bins = Bin::from_sums(&found[0]).unwrap();
        assert!(bins.iter().all(|bin| bin.moved.is_some() == (bin.tokens > 0)));
        // Every array somewhere else.
        assert_eq!(bits(&run(backend, drawn, &tokens, drawn.has, !drawn.aligned).unwrap()), bits(&found), "elsewhere");
        if drawn.flaw != Flaw::Nothing {
            return; // what is wrong is an array that is not there
        }
        // An array that says nothing is one that is not there.
        let mut silent = Tokens { floats: tokens.floats.clone(), bytes: tokens.bytes.clone() };
        for (at, (array, value)) in [(MASK, 1), (CLIPPED, 0), (KEEP, 1)].into_iter().enumerate() {
            if !drawn.has(array) {
                silent.bytes[at].fill(value);
            }
        }
        let with = drawn.has | MASK | CLIPPED | KEEP;
        assert_eq!(
            bits(&run(backend, drawn, &silent, with, drawn.aligned).unwrap()),
            bits(&found),
            "with silent arrays"
        );
    });
    report::print("route_change", backend.name());
}

#[cfg(feature = "emulate")]
#[test]
fn any_schedule_gives_the_same_sums() {
    for_any(60, &drawn(), |drawn| {
        let tokens = drawn.tokens();
        let Ok(expected) = run(&moerl::Emulator::new(), drawn, &tokens, drawn.has, drawn.aligned) else { return };
        let other = schedules().nth(drawn.seed as usize % 4).unwrap();
        let found = run(&other, drawn, &tokens, drawn.has, drawn.aligned).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{other:?}");
    });
}
