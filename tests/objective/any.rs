//! Any call, whatever its options, arrays and lengths are: against the reference, and against itself where less is asked for, in phases and in pieces.

use std::cell::RefCell;
use std::collections::BTreeMap;

use moerl::diagnostics::{self, Sum};
use moerl::objective::{Config, DenominatorBasis, Plane, Variant};
use moerl::{Backend, Reference};
use rand::RngExt;

use crate::case::Case;
use crate::common;
use crate::common::property::for_any;
use crate::draw::{self, Call};
use crate::outputs::*;

/// The largest errors, as shares of what is allowed.
#[derive(Default)]
struct Worst(BTreeMap<&'static str, f64>);

/// What the reference gives, and what it gives for inputs that are moved by their rounding: an operation on f32 is as good as exact of such ones.
struct Expected {
    exact: Outcome,
    /// The policy's term alone: it may cancel against the others.
    policy: Outcome,
    /// The sum of the loss's absolute terms, about: where every advantage is negative, the policy's terms have one sign.
    size: f64,
    moved: Vec<Outcome>,
    /// φ of VESPO, which a whole segment's log-ratio makes as small as it likes, is the exponential of a number known to an ulp.
    has_exponents: bool,
}

impl Expected {
    fn of(call: &Call, case: &Case) -> moerl::Result<Expected> {
        let call = Call { accumulates: false, ..call.clone() };
        let all = everything(&call.config, false);
        let of = |case: &Case| one_call(&Reference, &call, case, all);
        let exact = of(case)?;
        let config = Config { kl: None, mismatch_penalty: 0.0, entropy_bonus: 0.0, ..call.config.clone() };
        let bare = Call { config, ..call.clone() };
        let policy = one_call(&Reference, &bare, case, bit("d_logprobs") | bit("loss"))?;
        let negative = Case { advantages: case.advantages.iter().map(|a| -a.abs()).collect(), ..case.clone() };
        let negative = one_call(&Reference, &bare, &negative, bit("loss"))?.of["loss"][0];
        let by_policy = policy.of["loss"][0];
        let size = negative.abs().max(by_policy.abs()) + (exact.of["loss"][0] - by_policy).abs();
        let moved = (0..6).map(|how| of(&moved(case, how))).collect::<moerl::Result<_>>()?;
        let has_exponents = matches!(call.config.variant, Variant::Vespo(_));
        Ok(Expected { exact, policy, size, moved, has_exponents })
    }

    /// Asserts that an outcome is as near as what an f32 computation of moved inputs may be.
    fn compare(&self, what: &str, case: &Case, found: &Outcome, worst: &RefCell<Worst>) {
        for (&name, values) in &found.of {
            let exact = &self.exact.of[name];
            let largest = exact.iter().filter(|e| e.is_finite()).fold(0.0_f64, |largest, e| largest.max(e.abs()));
            for (at, (&f, &e)) in values.iter().zip(exact).enumerate() {
                let moved = || self.moved.iter().map(|moved| moved.of[name][at]);
                // Either is right where a decision is within rounding.
                let is_equal = |e: f64| f == e || f.is_nan() && e.is_nan() || f == f64::from(e as f32);
                // What no f32 holds may have met its opposite in a sum.
                let overflows = matches!(name, "loss" | "diagnostics") && e.abs() > 1e30 && !f.is_finite();
                if is_equal(e) || moved().any(is_equal) || overflows {
                    continue;
                }
                let is_flag = matches!(name, "clipped" | "sequence_clipped");
                assert!(!is_flag, "{what}: {name} at {at}: {f} not {e}");
                let spread = moved().fold(0.0_f64, |spread, moved| spread.max((moved - e).abs()));
                let allowed = match name {
                    // f32 sums over up to 1024 tokens, of terms with both signs and of the size of a large weight.
                    "diagnostics" => 2e-5 * e.abs() + 2e-6 * case.tokens() as f64,
                    "loss" => 2e-6 * self.size + 1e-12,
                    "d_logprobs" if self.has_exponents => {
                        let policy = self.policy.of[name][at];
                        let exponent = 1.2e-7 * policy.abs().max(1e-38).ln().abs();
                        (1e-6 + exponent) * (policy.abs() + (e - policy).abs()) + 1e-38
                    }
                    "d_logprobs" => {
                        let policy = self.policy.of[name][at];
                        1e-6 * (policy.abs() + (e - policy).abs()) + 1e-8 * largest
                    }
                    _ => 1e-6 * e.abs() + 1e-8 * largest,
                } + 2.0 * spread;
                let share = (f - e).abs() / allowed;
                assert!(share <= 1.0, "{what}: {name} at {at}: {f:e} not {e:e}: {share} of {allowed:e}");
                let mut worst = worst.borrow_mut();
                let seen = worst.0.entry(name).or_default();
                *seen = seen.max(share);
            }
        }
    }
}

/// The batch with every number off by a rounding of what it is subtracted from, then multiplied with: all up, all down, or either. One kind at
/// a time, for a token's two moves may cancel.
fn moved(case: &Case, how: u64) -> Case {
    let mut rng = common::seeded(how);
    let (moves_factors, way) = (how % 2 == 1, how / 2);
    let mut sign = || match way {
        0 => 1.0,
        1 => -1.0,
        _ => [1.0, -1.0][rng.random_range(0..2)],
    };
    let mut moved = case.clone();
    for u in (0..case.tokens()).filter(|_| !moves_factors) {
        let others = [&case.old_logprobs, &case.rollout_logprobs, &case.ref_logprobs];
        let size = others.into_iter().flatten().fold(case.logprobs[u].abs(), |size, array| size.max(array[u].abs()));
        if size.is_finite() {
            moved.logprobs[u] += sign() * size * f32::EPSILON;
        }
    }
    for array in [Some(&mut moved.advantages), moved.weights.as_mut()].into_iter().flatten().filter(|_| moves_factors) {
        // Up or down, and not away from 0: sums of those above and of those below it cancel. By half of the 1e-6 that a product with an
        // exponential may be off, which shows where it cancels against another part of the same term.
        array.iter_mut().for_each(|x| *x += sign() * x.abs() * 4.0 * f32::EPSILON);
    }
    moved
}

/// T, B, P, L as the call counts them for itself.
fn local_counts(config: &Config, case: &Case) -> [u64; 4] {
    let is_after = config.denominator_basis == DenominatorBasis::AfterRejection;
    let counts = |u: &usize| {
        case.loss_mask.as_ref().is_none_or(|mask| mask[*u] != 0)
            && !(is_after && case.keep.as_ref().is_some_and(|keep| keep[*u] == 0))
    };
    let of_segments: Vec<usize> = case.segments().ranges().map(|range| range.filter(counts).count()).collect();
    let segments = of_segments.iter().filter(|&&count| count > 0 || config.count_empty).count();
    [of_segments.iter().sum::<usize>() as u64, segments as u64, 0, 4096]
}

fn check<B: Backend>(backend: &B, call: &Call, worst: &RefCell<Worst>) {
    let case = &call.case();
    let config = &call.config;
    let all = everything(config, false);
    let asked = call.asked & all;
    let expected = match Expected::of(call, case) {
        Ok(expected) => expected,
        Err(refused) => {
            let found = one_call(backend, call, case, asked).map(|found| found.of);
            assert_eq!(found.unwrap_err(), refused);
            return;
        }
    };
    let plain = Call { accumulates: false, ..call.clone() };
    let full = one_call(backend, &plain, case, all).unwrap();
    expected.compare("all", case, &full, worst);
    assert_eq!(full.fault, expected.exact.fault);

    // Less, and from another start.
    let is_by_token = !config.planes().contains(&Plane::LogRatio);
    let has_maps = asked & (bit("sequence_ratio") | bit("sequence_clipped")) != 0;
    let is_single = case.lengths.iter().all(|&length| length == 1);
    let tokens = case.tokens() as f64;
    let slack = |place: usize, size: f64| {
        // For a variant that needs no D, s is formed where a sequence output is asked for.
        let by_s = is_by_token && !has_maps && is_of_segments(config, place);
        if by_s {
            f64::INFINITY
        } else if is_single {
            1e-6 * (size + tokens)
        } else {
            0.0
        }
    };
    let less = one_call(backend, &plain, case, asked).unwrap();
    assert_same("less", &less, &full, slack);
    assert_eq!(less.fault, full.fault, "less");
    let begun = if call.accumulates { one_call(backend, call, case, asked).unwrap() } else { less.clone() };
    if call.accumulates {
        assert_added(&begun, &less);
        assert_eq!(begun.fault, less.fault, "begun");
    }

    // In phases, which take no local denominators. The reference's hand over coefficients in f32, unlike its one call.
    if backend.name() == "reference" {
        return;
    }
    let counted =
        Case { denominators: Some(case.denominators.unwrap_or_else(|| local_counts(config, case))), ..case.clone() };
    if Expected::of(call, &counted).is_err() {
        return;
    }
    let in_phases = asked & everything(config, true);
    let found = by_phases(backend, call, &counted, &[], in_phases);
    let slack = |place: usize, size: f64| {
        let by_s = is_by_token && is_of_segments(config, place);
        if by_s { f64::INFINITY } else { slack(place, size) }
    };
    assert_same("phases", &found, &begun, slack);
    assert_eq!(found.fault, begun.fault, "phases");
    if !call.cuts.is_empty() {
        let plain = Call { accumulates: false, ..call.clone() };
        let without = if call.has_ranks || is_by_token { bit("diagnostics") } else { 0 };
        let found = by_phases(backend, &plain, &counted, &call.cuts, in_phases & !without);
        expected.compare("pieces", case, &found, worst);
    }
}

/// True of the sums that are formed of s.
fn is_of_segments(config: &Config, place: usize) -> bool {
    let is = |sums: &[Sum]| sums.iter().any(|&sum| sum as usize == place);
    is(&[
        Sum::SequenceRatio,
        Sum::SequenceClippedHigh,
        Sum::SequenceClippedLow,
        Sum::SequenceCapped,
        Sum::MaxSequenceRatio,
        Sum::MaxNegativeSequenceRatio,
    ]) || config.variant.is_sequence_level()
        && is(&[Sum::ClippedHigh, Sum::ClippedLow, Sum::Capped, Sum::SaturatedHigh, Sum::SaturatedLow])
}

/// Loss and diagnostics are more by what they went on from, everything else is the same.
fn assert_added(begun: &Outcome, plain: &Outcome) {
    for (&name, values) in &begun.of {
        for (at, (&f, &e)) in values.iter().zip(&plain.of[name]).enumerate() {
            let before = match name {
                "loss" => LOSS_BEFORE,
                "diagnostics" if at == Sum::Loss as usize || at < diagnostics::SUMS => SUMS_BEFORE,
                _ => 0.0,
            };
            let is_equal = f == e + before || f.is_nan() && e.is_nan();
            assert!(
                is_equal || (f - e - before).abs() <= 1e-12 * (e.abs() + before),
                "begun: {name} at {at}: {f:e} not {e:e} + {before}"
            );
        }
    }
}

pub fn any_call_agrees_with_the_reference_and_itself<B: Backend>(backend: &B) {
    let worst = RefCell::new(Worst::default());
    for_any(160, &draw::call(), |call| check(backend, call, &worst));
    println!("{}: {:.2?} of what is allowed", backend.name(), worst.borrow().0);
}
