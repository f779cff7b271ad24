//! Any layer's tokens: experts, weights of any type and stride, masks, shifts, places and sums to add to in whatever combination, and what must
//! be refused.

use moerl::expert_ledger::{Advantages, ExpertSums, Ledger, ledger_workspace};
use moerl::memory::ViewMut;
use moerl::{Backend, Reference, Result};

use crate::common::placed::{Place, Placed};
use crate::common::property::{bytes_of, for_any, unless_refused};
use crate::common::{canonical, report};
use crate::drawn::*;

/// The sums of experts and the count, after one call and after another that adds to them.
fn run_ledger<B: Backend>(
    backend: &B,
    drawn: &Drawn,
    numbers: &Numbers,
    has: u8,
    aligned: bool,
) -> Result<[(Vec<ExpertSums>, u64); 2]> {
    let stream = backend.stream()?;
    let arrays = Arrays::new(backend, &stream, drawn, numbers, has, aligned);
    let place = Place { before: arrays.before, gap: 0 };
    let mut sums = Placed::new(backend, &stream, place, drawn.experts, &numbers.sums);
    let wide = 1 + usize::from(drawn.flaw == Flaw::Second);
    let mut count = Placed::new(backend, &stream, place, wide, &vec![5_u64; wide]);
    let records = ledger_workspace(drawn.tokens, drawn.experts);
    let records = records - usize::from(drawn.flaw == Flaw::Third && records > 0);
    let mut workspace = Placed::<B, ExpertSums>::output(backend, &stream, arrays.before, records);
    let mut found = [(vec![], 0), (vec![], 0)];
    for found in &mut found {
        let mut call = Ledger {
            tokens: arrays.tokens(),
            shift: (has & SHIFT != 0).then(|| arrays.shift.view()),
            sums: sums.view_mut(),
            nonfinite: (has & COUNT != 0).then(|| count.view_mut()),
            workspace: workspace.view_mut(),
        };
        if drawn.flaw == Flaw::Shared && drawn.tokens > 0 {
            // SAFETY: the call is refused before anything looks there.
            call.sums = unsafe { ViewMut::from_raw(call.workspace.address(), drawn.experts) };
        }
        backend.expert_ledger(&stream, call)?;
        *found = (sums.read("sums", backend, &stream), count.read("nonfinite", backend, &stream)[0]);
    }
    workspace.read("workspace", backend, &stream);
    Ok(found)
}

/// What the terms of every sum come to, for each expert; and how many tokens are not finite.
fn sizes(drawn: &Drawn, numbers: &Numbers) -> (Vec<[f64; 3]>, u64) {
    let (mut sizes, mut count) = (vec![[0.0; 3]; drawn.experts], 0);
    for t in (0..drawn.tokens).filter(|&t| !drawn.has(MASK) || numbers.mask[t] != 0) {
        let slots = t * drawn.k..(t + 1) * drawn.k;
        let weights: Vec<f64> = numbers.weights[slots.clone()].iter().map(|&w| f64::from(w)).collect();
        let (advantage, sum) = (f64::from(numbers.advantages[t]), weights.iter().sum::<f64>());
        if !advantage.is_finite() || weights.iter().any(|w| !w.is_finite()) {
            count += 1;
        } else if sum != 0.0 {
            for (&id, weight) in numbers.ids[slots].iter().zip(&weights) {
                let Some(to) = usize::try_from(id).ok().and_then(|id| sizes.get_mut(id)) else { continue };
                let share = (weight / sum).abs();
                let away = if drawn.has(SHIFT) { advantage - numbers.shift[id as usize] } else { advantage };
                to.iter_mut().zip([share, share * away.abs(), share * away * away]).for_each(|(to, x)| *to += x);
            }
        }
    }
    (sizes, count)
}

/// The sums of experts after so many calls.
fn assert_close(drawn: &Drawn, numbers: &Numbers, times: usize, found: &[ExpertSums], expected: &[ExpertSums]) {
    let (sizes, _) = sizes(drawn, numbers);
    let of = |sums: &ExpertSums| [sums.gate, sums.advantage, sums.advantage_square];
    for (e, (f, x)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.n, x.n, "tokens of expert {e}");
        for (i, (f, x)) in of(f).into_iter().zip(of(x)).enumerate() {
            if f == x || (f.is_nan() && x.is_nan()) {
                continue;
            }
            // The same terms in f64, in another order: an addition for each, on both sides.
            let size = times as f64 * sizes[e][i] + of(&numbers.sums[e])[i].abs();
            let tolerance = f64::EPSILON * (times * drawn.tokens + 8) as f64 * size;
            let share = report::see(14, "any ledger's sums", "f64", (f - x).abs(), tolerance.max(f64::MIN_POSITIVE));
            assert!(share <= 1.0, "sum {i} of expert {e}: {f} not {x}: {share} of the tolerance");
        }
    }
}

/// The bits of sums, NaN being one value.
fn bits(sums: &[ExpertSums]) -> Vec<u64> {
    let of = |x: f64| if x.is_nan() { 1 } else { x.to_bits() };
    sums.iter().flat_map(|s| [s.n, of(s.gate), of(s.advantage), of(s.advantage_square)]).collect()
}

/// What stands for an array that is not there: a mask of ones, a shift of zeros.
fn silent(drawn: &Drawn, numbers: &Numbers) -> Numbers {
    let mut silent = numbers.clone();
    if !drawn.has(MASK) {
        silent.mask.fill(1);
    }
    if !drawn.has(SHIFT) {
        silent.shift.fill(0.0);
    }
    silent
}

pub fn any_ledger_is_the_reference_s<B: Backend>(backend: &B) {
    for_any(100, &drawn(), |drawn| {
        let numbers = drawn.numbers();
        let both = unless_refused(
            run_ledger(backend, drawn, &numbers, drawn.has, drawn.aligned),
            run_ledger(&Reference, drawn, &numbers, drawn.has, drawn.aligned),
        );
        assert_eq!(both.is_none(), drawn.is_unlawful_ledger());
        let Some((found, expected)) = both else { return };
        let (_, lost) = sizes(drawn, &numbers);
        for (times, (found, expected)) in (1..).zip(found.iter().zip(&expected)) {
            assert_close(drawn, &numbers, times, &found.0, &expected.0);
            let count = if drawn.has(COUNT) { 5 + times as u64 * lost } else { 5 };
            assert_eq!((found.1, expected.1), (count, count));
        }
        // Every array somewhere else, one output less.
        let [other, _] = run_ledger(backend, drawn, &numbers, drawn.has & !COUNT, !drawn.aligned).unwrap();
        assert_eq!(bits(&other.0), bits(&found[0].0), "elsewhere");
        if drawn.flaw != Flaw::Nothing {
            return; // what is wrong is an array that is not there
        }
        let other = run_ledger(backend, drawn, &silent(drawn, &numbers), MASK | SHIFT | drawn.has, drawn.aligned);
        assert_eq!(bits(&other.unwrap()[0].0), bits(&found[0].0), "with a mask and a shift that say nothing");
    });
    report::print("gate", backend.name());
}

/// Â after a call.
fn run_advantages<B: Backend>(
    backend: &B,
    drawn: &Drawn,
    numbers: &Numbers,
    has: u8,
    aligned: bool,
) -> Result<Vec<f32>> {
    let stream = backend.stream()?;
    let arrays = Arrays::new(backend, &stream, drawn, numbers, has, aligned);
    let place = Place { before: arrays.before, gap: 0 };
    let inverse = Placed::new(backend, &stream, place, drawn.experts, &numbers.inverse);
    let before = [&numbers.normalized[..], &vec![0.0; usize::from(drawn.flaw == Flaw::Second)]].concat();
    let mut normalized = Placed::new(backend, &stream, place, before.len(), &before);
    let mut call = Advantages {
        tokens: arrays.tokens(),
        mean: arrays.shift.view(),
        inverse_deviation: inverse.view(),
        layers: if drawn.flaw == Flaw::Third { 0 } else { drawn.layers },
        clip: drawn.clip,
        normalized: normalized.view_mut(),
    };
    if drawn.flaw == Flaw::Shared && drawn.tokens > 0 {
        // SAFETY: the call is refused before anything looks there.
        call.normalized = unsafe { ViewMut::from_raw(call.tokens.advantages.address(), drawn.tokens) };
    }
    backend.expert_advantages(&stream, call)?;
    Ok(normalized.read("normalized", backend, &stream))
}

pub fn any_advantages_are_the_reference_s<B: Backend>(backend: &B) {
    for_any(150, &drawn(), |drawn| {
        let numbers = drawn.numbers();
        let both = unless_refused(
            run_advantages(backend, drawn, &numbers, drawn.has, drawn.aligned),
            run_advantages(&Reference, drawn, &numbers, drawn.has, drawn.aligned),
        );
        assert_eq!(both.is_none(), drawn.is_unlawful_advantages());
        let Some((found, expected)) = both else { return };
        let canonical = |values: &[f32]| canonical(values).collect::<Vec<u32>>();
        // The same f64 operations in the order of a token's experts, rounded once.
        assert_eq!(canonical(&found), canonical(&expected));
        for t in (0..drawn.tokens).filter(|&t| drawn.has(MASK) && numbers.mask[t] == 0) {
            assert_eq!(bytes_of(&found[t..=t]), bytes_of(&numbers.normalized[t..=t]), "token {t} is left out");
        }
        let other = run_advantages(backend, drawn, &numbers, drawn.has, !drawn.aligned).unwrap();
        assert_eq!(canonical(&other), canonical(&found), "elsewhere");
        if drawn.flaw != Flaw::Nothing {
            return; // what is wrong is an array that is not there
        }
        let silent = silent(&Drawn { has: drawn.has | SHIFT, ..drawn.clone() }, &numbers);
        let other = run_advantages(backend, drawn, &silent, MASK | drawn.has, drawn.aligned).unwrap();
        assert_eq!(canonical(&other), canonical(&found), "with a mask that says nothing");
    });
}
