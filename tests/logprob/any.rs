//! Any call at all: configuration, shape, types, alignment, optional inputs and outputs are drawn together, also those that no one would think
//! of. What is checked holds of every call.

use moerl::element::{Element, Float, bf16, f16};
use moerl::logprob::Partial;
use moerl::{Backend, Reference};

use crate::any_call::*;
use crate::common::property::for_any;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(any_forward_call_agrees_with_the_reference, any_backward_call_agrees_with_the_formula);

/// What a softcap adds to an error in z = u/T: two units in the last place of C for each of the two logits that differ.
pub fn capping<T>(inputs: &Inputs<T>, temperature: f64) -> f64
where
    T: Float,
{
    inputs.config.softcap.map_or(0.0, |c| 2.0 * ulp(f64::from(c)) / temperature)
}

/// Where softcapped logits that f32 cannot tell apart differ in z by more than this, no probability is known.
pub const UNKNOWN: f64 = 0.05;

/// Panics where a row's outputs are further from the reference's than the goals allow.
pub fn assert_near<T: Float>(inputs: &Inputs<T>, found: &Found, expected: &Found, r: usize, what: &str) {
    let temperature = inputs.temperature_of(r);
    let more = capping(inputs, temperature);
    let units = inputs.config.softcap.map_or(0.0, |c| 2.0 * ulp(f64::from(c)));
    let is_same = more > UNKNOWN || temperature.is_nan() || temperature <= 0.0;
    let near = |x: f64| 1e-6 + 2.0 * ulp(x);
    for (i, name) in OUTPUTS[..11].iter().enumerate() {
        let (Some(found), Some(expected)) = (&found.words[i], &expected.words[i]) else { continue };
        let width = found.len() / inputs.rows;
        for at in r * width..(r + 1) * width {
            let (f, e) = (f32::from_bits(found[at]), f64::from(f32::from_bits(expected[at])));
            let goal = match i {
                0 | 3 | 4 | 8 => near(e) + more,
                1 | 9 => 4e-6 + 2.0 * ulp(e) + more * (1.0 + e),
                2 => near(e) + more,
                7 => units,
                _ => (4e-6 + 4.0 * more) * e,
            };
            let off = of_goal(f, e, goal);
            let is_alike = is_same && f.is_nan() == e.is_nan();
            assert!(off <= 1.0 || is_alike, "{what}: {name} {at} of row {r}: {f} for {e}, {off} of {goal:e}");
        }
    }
    for name in ["saved", "kept_saved"] {
        let (Some(found), Some(expected)) = (found.words(name), expected.words(name)) else { continue };
        for field in [0, 3] {
            let at = 4 * r + field;
            let (f, e) = (f32::from_bits(found[at]), f64::from(f32::from_bits(expected[at])));
            assert!(of_goal(f, e, units) <= 1.0, "{what}: field {field} of {name} of row {r}: {f} for {e}");
        }
    }
    for name in ["rank", "argmax"] {
        let row = |found: &Found| {
            let words = found.words(name)?;
            let width = words.len() / inputs.rows;
            Some(words[r * width..(r + 1) * width].to_vec())
        };
        let (found, expected) = (row(found), row(expected));
        assert!(
            found.is_none() || expected.is_none() || found == expected,
            "{what}: {name} of row {r}: {found:?} for {expected:?}"
        );
    }
}

pub fn by_element(d: &Drawn, f32s: impl Fn(), bf16s: impl Fn(), f16s: impl Fn()) {
    match d.element {
        0 => f32s(),
        1 => bf16s(),
        _ => f16s(),
    }
}

// ---- forward --------------------------------------------------------------------------------------------------------

fn any_forward_call_agrees_with_the_reference<B: Backend>(backend: &B) {
    for_any(100, &drawn(), |d| {
        by_element(
            d,
            || check_forward::<B, f32>(backend, d),
            || check_forward::<B, bf16>(backend, d),
            || check_forward::<B, f16>(backend, d),
        );
    });
}

fn check_forward<B: Backend, T: Float>(backend: &B, d: &Drawn) {
    let inputs = d.inputs::<T>();
    let everything = possible(&inputs, ALL);
    let (found, expected) = match (
        forward_of(backend, &inputs, everything, 1, d.seed),
        forward_of(&Reference, &inputs, everything, 1, 0),
    ) {
        (Ok(found), Ok(expected)) => (found, expected),
        (Err(found), Err(expected)) => return assert_eq!(found.to_string(), expected.to_string()),
        (found, expected) => panic!("{found:?}, the reference {expected:?}"),
    };
    assert_eq!(found.fault, expected.fault);
    assert_eq!(found.words[15], expected.words[15], "label_added");
    for r in 0..inputs.rows {
        assert_near(&inputs, &found, &expected, r, backend.name());
        for name in ["logprobs", "kept_logprobs", "entropy", "kept_entropy", "log_sum"] {
            let sign = if name.ends_with("logprobs") { -1.0 } else { 1.0 };
            if found.words(name).is_some() {
                let x = found.float(name, r);
                assert!(x.is_nan() || x * sign >= 0.0, "{name} of row {r} is {x}");
            }
        }
    }

    // Some outputs, of other memory, shared by blocks or not: the same bits; and again into the same arrays.
    let asked = possible(&inputs, d.asked);
    let other = Inputs { workspace: !inputs.workspace, ..inputs.laid_out(d.seed as usize % 7, inputs.columns + d.gap) };
    let some = forward_of(backend, &other, asked, 2, !d.seed).expect("a valid call");
    let of_reference = forward_of(&Reference, &inputs, asked, 1, 0).expect("a valid call");
    assert_eq!(some.fault, of_reference.fault, "with outputs {asked:b}");
    for (i, words) in some.words.iter().enumerate().filter(|(_, words)| words.is_some()) {
        assert_eq!(*words, found.words[i], "{} with outputs {asked:b}", OUTPUTS[i]);
    }

    // A row alone, and in a wider type.
    let is_readable = inputs.keep.as_ref().is_none_or(Keep::is_readable);
    if inputs.rows > 0 && is_readable {
        let r = d.seed as usize % inputs.rows;
        let alone = inputs.rows_of(&[r]);
        let row = found.row(r, inputs.rows);
        let found = forward_of(backend, &alone, everything, 1, d.seed).expect("a valid call");
        assert_eq!(found.row(0, 1), row, "row {r} alone");
        if T::ELEMENT != Element::F32 {
            let wide = forward_of(backend, &alone.widened(), everything, 1, d.seed).expect("a valid call");
            assert_eq!(wide.row(0, 1), row, "row {r} in f32");
        }
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------

/// A row's gradient by the formula, and how far from it one in f32 may be.
struct Slopes {
    value: Vec<f64>,
    goal: Vec<f64>,
}

/// The columns of a row's keep-set, and which of them is the token.
pub fn kept_columns<T: Float>(inputs: &Inputs<T>, r: usize) -> (Vec<usize>, Option<usize>) {
    let token = inputs.tokens_of(r)[0];
    let mut columns: Vec<usize> = inputs.keep.as_ref().unwrap().set(r).iter().map(|&id| id as usize).collect();
    if columns.is_empty() {
        columns = (0..inputs.vocabulary()).collect();
    }
    let is_column = (0..inputs.vocabulary() as i64).contains(&token);
    if is_column && !inputs.config.strict_keep && !columns.contains(&(token as usize)) {
        columns.push(token as usize);
    }
    let at = columns.iter().position(|&column| column as i64 == token);
    (columns, at)
}

/// That of a row whose logits, temperature, sets and upstream gradients are good.
///
/// The goal is 2e-6 of the terms' sizes, 3·2⁻²⁴ of them for each unit of an exponent as in the suite of gradients, what a softcap adds, of its
/// slope's exponential 2⁻²³ of its own exponent, and what exponentials below 2⁻¹²⁶ would have been, which are 0.
fn slopes<T: Float>(inputs: &Inputs<T>, up: &Gradients, r: usize) -> Slopes {
    let row = inputs.capped_row(r);
    let temperature = inputs.temperature_of(r);
    let of = |i: usize, at: usize| up[i].as_ref().map_or(0.0, |a| f64::from(a[at]));
    let mut slopes = Slopes { value: vec![0.0; row.len()], goal: vec![0.0; row.len()] };
    let more = 2.0 * capping(inputs, temperature);
    let mut add = |columns: &[usize], token: Option<usize>, up: [f64; 3]| {
        let logits: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
        let (value, size) = exact_gradient(&logits, temperature, token, up);
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let whole = up.iter().map(|x| x.abs()).sum::<f64>() / temperature;
        for (i, &column) in columns.iter().enumerate() {
            let z = (max - logits[i]) / temperature;
            let depth = if z < 90.0 { z } else { 0.0 };
            slopes.value[column] += value[i];
            slopes.goal[column] += (2e-6 + 3.0 * 2f64.powi(-24) * depth + more) * size[i] + 2e-36 * whole;
        }
        (value, logits)
    };
    let columns: Vec<usize> = (0..row.len()).collect();
    let (b, c) = (of(1, r), of(2, r));
    if b != 0.0 || c != 0.0 {
        add(&columns, None, [0.0, b, c]);
    }
    for k in 0..if inputs.tokens.is_some() { inputs.ids } else { 0 } {
        let (token, a) = (inputs.tokens_of(r)[k], of(0, r * inputs.ids + k));
        if token != inputs.config.ignore_index && a != 0.0 {
            add(&columns, Some(token as usize), [a, 0.0, 0.0]);
        }
    }
    let (a, b) = (of(3, r), of(4, r));
    if a != 0.0 || b != 0.0 {
        let (columns, at) = kept_columns(inputs, r);
        add(&columns, at.or(Some(0)), [a, b, 0.0]);
        if at.is_none() {
            slopes.value[columns[0]] -= a / temperature; // a token that is not in a strict set has no column of its own
        }
    }
    for (j, x) in inputs.row(r).into_iter().enumerate() {
        if let Some(c) = inputs.config.softcap {
            let slope = capped(&inputs.config, x).1;
            let scale = f64::from(inputs.config.logit_scale);
            let exponent = if x.is_finite() { (x * scale / f64::from(c)).abs() } else { 0.0 };
            let whole = slopes.value[j].abs();
            slopes.value[j] *= slope;
            slopes.goal[j] *= slope;
            slopes.goal[j] += whole * slope * (4.0 * 2f64.powi(-23) * exponent.min(60.0) + 2f64.powi(-22));
            slopes.goal[j] += whole * scale * 4.0 * f64::from(f32::MIN_POSITIVE) + 1e-36;
        }
    }
    slopes
}

fn any_backward_call_agrees_with_the_formula<B: Backend>(backend: &B) {
    for_any(120, &drawn(), |d| {
        let is_other = d.is_other_element;
        by_element(
            d,
            || {
                if is_other {
                    check_backward::<B, f32, bf16>(backend, d)
                } else {
                    check_backward::<B, f32, f32>(backend, d)
                }
            },
            || {
                if is_other {
                    check_backward::<B, bf16, f32>(backend, d)
                } else {
                    check_backward::<B, bf16, bf16>(backend, d)
                }
            },
            || {
                if is_other {
                    check_backward::<B, f16, f32>(backend, d)
                } else {
                    check_backward::<B, f16, f16>(backend, d)
                }
            },
        );
    });
}

/// A gradient as an element of type G holds it.
fn stored<G: Float>(x: f64) -> f32 {
    G::from_f32(x as f32).to_f32()
}

fn row_bits<G: Float>(row: &[G]) -> Vec<u32> {
    row.iter().map(|g| canonical_bits(g.to_f32())).collect()
}

fn check_backward<B: Backend, T: Float, G: Float>(backend: &B, d: &Drawn) {
    let inputs = d.inputs::<T>();
    let asked = possible(&inputs, 1 << 13 | 1 << 14);
    let Ok(found) = forward_of(backend, &inputs, asked, 1, d.seed) else { return };
    let kept_saved = found.words("kept_saved").map_or(blank(inputs.rows), |_| found.records("kept_saved"));
    let saved = [found.records("saved"), kept_saved];
    let saved: [&[Partial]; 2] = [&saved[0], &saved[1]];
    let up = d.upstream(&inputs);
    let target = match d.target {
        0 if T::ELEMENT == G::ELEMENT => Target::InPlace,
        1 => Target::Apart,
        _ => Target::Elsewhere { offset: d.seed as usize % 9, stride: inputs.columns + d.gap },
    };
    let (rows, expected) = match (
        backward_of::<B, T, G>(backend, &inputs, saved, &up, target, d.seed),
        backward_of::<Reference, T, f32>(
            &Reference,
            &inputs,
            saved,
            &up,
            Target::Elsewhere { offset: 0, stride: inputs.columns },
            0,
        ),
    ) {
        (Ok(rows), Ok(expected)) => (rows, expected),
        (Err(found), Err(expected)) => return assert_eq!(found.to_string(), expected.to_string()),
        (found, expected) => panic!("{found:?}, the reference {expected:?}"),
    };
    let vocabulary = inputs.vocabulary();
    for (r, row) in rows.iter().enumerate() {
        assert!(row[vocabulary..].iter().all(|g| g.to_f32().to_bits() == 0), "row {r}: padding is +0.0");
        let row = &row[..vocabulary];
        if is_without(&inputs, &up, r) {
            assert!(row.iter().all(|g| g.to_f32().to_bits() == 0), "row {r} has no gradient");
            continue;
        }
        if expected[r][..vocabulary].iter().all(|g| g.is_nan()) {
            assert!(row.iter().all(|g| g.to_f32().is_nan()), "row {r} is faulty");
            continue;
        }
        if capping(&inputs, inputs.temperature_of(r)) > UNKNOWN {
            assert!(row.iter().all(|g| !g.to_f32().is_nan()), "row {r}");
            continue;
        }
        let Slopes { value, goal } = slopes(&inputs, &up, r);
        for j in 0..vocabulary {
            let found = row[j].to_f32();
            let goal = goal[j] + half_ulp::<G>(value[j]) + 1e-43;
            let off = if found == stored::<G>(value[j]) { 0.0 } else { of_goal(found, value[j], goal) };
            assert!(off <= 1.0, "row {r}, column {j}: {found} for {}, {off} of {goal:e}", value[j]);
        }
    }

    // The same bits wherever the gradient goes, and of a row alone.
    let moved = inputs.laid_out(d.seed as usize % 5, inputs.columns + d.seed as usize % 3);
    let again = if T::ELEMENT == G::ELEMENT && target != Target::InPlace { Target::InPlace } else { Target::Apart };
    let other: Vec<Vec<G>> = backward_of(backend, &moved, saved, &up, again, !d.seed).expect("a valid call");
    assert!(rows.iter().zip(&other).all(|(a, b)| row_bits(a) == row_bits(b)), "{again:?} for {target:?}");
    if inputs.rows > 0 && inputs.keep.as_ref().is_none_or(Keep::is_readable) {
        let r = d.seed as usize % inputs.rows;
        let of_row = |(i, a): (usize, &Option<Vec<f32>>)| {
            let width = if i == 0 { inputs.ids } else { 1 };
            a.as_ref().map(|a| a[r * width..(r + 1) * width].to_vec())
        };
        let up: Vec<_> = up.iter().enumerate().map(of_row).collect();
        let up: Gradients = up.try_into().expect("five");
        let saved = saved.map(|saved| &saved[r..=r]);
        let alone: Vec<Vec<G>> =
            backward_of(backend, &inputs.rows_of(&[r]), saved, &up, Target::Apart, d.seed).expect("a valid call");
        assert!(row_bits(&alone[0]) == row_bits(&rows[r]), "row {r} alone");
    }
}

/// True for an absent row, and one whose upstream gradients are all zero.
fn is_without<T: Float>(inputs: &Inputs<T>, up: &Gradients, r: usize) -> bool {
    let of_ids = |k: usize| {
        let is_ignored = inputs.tokens.is_some() && inputs.tokens_of(r)[k] == inputs.config.ignore_index;
        is_ignored || up[0].as_ref().is_none_or(|a| a[r * inputs.ids + k] == 0.0)
    };
    is_absent(&inputs.config, inputs.ids, &inputs.tokens, &inputs.loss_mask, r)
        || (0..inputs.ids).all(of_ids) && up[1..].iter().flatten().all(|a| a[r] == 0.0)
}
