//! The reference itself: its outputs against the definitions, its gradients against central differences of these, for any call on small rows.

use moerl::Reference;
use moerl::element::{Float, bf16, f16};
use moerl::logprob::Partial;

use crate::any::{by_element, kept_columns};
use crate::any_call::*;
use crate::common::property::for_any;
use crate::support::*;
use proptest::strategy::Strategy;

/// Calls whose numbers are of a size that f64 differences show.
fn small() -> impl Strategy<Value = Drawn> {
    drawn().prop_map(|d| Drawn {
        rows: d.rows.min(9),
        vocabulary: (d.vocabulary - 1) % 12 + 1,
        temperature: if d.temperature > 0.05 && d.temperature < 10.0 { d.temperature } else { 1.0 },
        logit_scale: if d.logit_scale > 0.1 && d.logit_scale < 10.0 { d.logit_scale } else { 1.0 },
        softcap: d.softcap.filter(|&c| c > 0.0 && c < 1e3),
        values: match d.values {
            Values::Ties | Values::Equal | Values::Masked => d.values,
            _ => Values::Normal(3.0),
        },
        ..d
    })
}

#[test]
fn the_reference_is_the_definition() {
    for_any(400, &small(), |d| by_element(d, || check::<f32>(d), || check::<bf16>(d), || check::<f16>(d)));
}

/// The loss of a row with these raw logits: the sum of the outputs times their upstream gradients.
fn loss<T: Float>(inputs: &Inputs<T>, up: &Gradients, r: usize, raw: &[f64]) -> f64 {
    let of = |i: usize, at: usize| up[i].as_ref().map_or(0.0, |a| f64::from(a[at]));
    let row: Vec<f64> = raw.iter().map(|&x| capped(&inputs.config, x).0).collect();
    let temperature = inputs.temperature_of(r);
    let whole = exact(&row, temperature, 0);
    let mut loss = of(1, r) * whole.entropy + of(2, r) * whole.lse;
    for k in 0..if up[0].is_some() { inputs.ids } else { 0 } {
        let (token, a) = (inputs.tokens_of(r)[k], of(0, r * inputs.ids + k));
        if token != inputs.config.ignore_index && a != 0.0 {
            loss += a * (row[token as usize] / temperature - whole.lse);
        }
    }
    if of(3, r) != 0.0 || of(4, r) != 0.0 {
        let (columns, at) = kept_columns(inputs, r);
        let logits: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
        let kept = exact(&logits, temperature, 0);
        // The logit of a token that is not in a strict set is −∞ whatever the logits are.
        loss += of(3, r) * (at.map_or(0.0, |at| logits[at] / temperature) - kept.lse) + of(4, r) * kept.entropy;
    }
    loss
}

fn check<T: Float>(d: &Drawn) {
    let inputs = d.inputs::<T>();
    let asked = possible(&inputs, ALL);
    let Ok(found) = forward_of(&Reference, &inputs, asked, 1, d.seed) else { return };
    for r in 0..inputs.rows {
        if found.float("entropy", r).is_finite() && found.float("max", r) != 0.0 {
            check_outputs(&inputs, &found, r);
        }
    }
    let saved = [found.records("saved"), found.records("kept_saved")];
    let saved: [&[Partial]; 2] = [&saved[0], &saved[1]];
    let up = d.upstream(&inputs);
    let elsewhere = Target::Elsewhere { offset: 0, stride: inputs.columns };
    let Ok(gradient) = backward_of::<Reference, T, f32>(&Reference, &inputs, saved, &up, elsewhere, d.seed) else {
        return;
    };
    for (r, gradient) in gradient.iter().enumerate() {
        let row = inputs.row(r);
        let is_absent = is_absent(&inputs.config, inputs.ids, &inputs.tokens, &inputs.loss_mask, r);
        if is_absent || gradient[0].is_nan() {
            continue;
        }
        let size: f64 = up.iter().flatten().flatten().filter(|x| x.is_finite()).map(|x| f64::from(x.abs())).sum();
        let steep =
            (f64::from(inputs.config.logit_scale) / inputs.temperature_of(r)).max(1.0 / inputs.temperature_of(r));
        for j in (0..row.len()).filter(|&j| row[j].is_finite()) {
            let step = 1e-5;
            let moved = |by: f64| {
                let mut row = row.clone();
                row[j] += by;
                loss(&inputs, &up, r, &row)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            if slope.is_nan() {
                continue; // a token on a masked column
            }
            let off = (f64::from(gradient[j]) - slope).abs();
            // Of the third derivative, of the differences' own rounding, and of f32.
            let goal = size * (1e-9 * steep.powi(3).max(1.0) + 1e-9) + 1e-7 * slope.abs();
            assert!(off <= goal, "row {r}, column {j}: {} for {slope}, off by {off:e} of {goal:e}", gradient[j]);
        }
    }
}

fn check_outputs<T: Float>(inputs: &Inputs<T>, found: &Found, r: usize) {
    let temperature = inputs.temperature_of(r);
    let row = inputs.capped_row(r);
    let whole = exact(&row, temperature, 0);
    let near = |name: &str, at: usize, expected: f64| {
        let off = of_goal(found.float(name, at), expected, 2e-7 * (1.0 + expected.abs()));
        assert!(off <= 1.0, "{name} {at} of row {r}: {} for {expected}", found.float(name, at));
    };
    for (name, expected) in [
        ("entropy", whole.entropy),
        ("max", whole.max),
        ("log_sum", whole.log_sum),
        ("lse", whole.lse),
        ("sum_p2", whole.sum_p2),
    ] {
        near(name, r, expected);
    }
    let Some(tokens) = &inputs.tokens else { return };
    let columns = 0..inputs.vocabulary() as i64;
    for (at, token) in tokens.iter().enumerate().skip(r * inputs.ids).take(inputs.ids) {
        if columns.contains(token) && *token != inputs.config.ignore_index {
            near("logprobs", at, exact(&row, temperature, *token as usize).logprob);
        }
    }
    if found.words("kept_logprobs").is_some() && found.float("kept_entropy", r).is_finite() {
        let (columns, at) = kept_columns(inputs, r);
        let logits: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
        let kept = exact(&logits, temperature, at.unwrap_or(0));
        near("kept_entropy", r, kept.entropy);
        near("kept_mass", r, (kept.lse - whole.lse).exp().min(1.0));
        let is_outside = !(0..inputs.vocabulary() as i64).contains(&inputs.tokens_of(r)[0]);
        let logprob = at.map_or(if is_outside { f64::NAN } else { f64::NEG_INFINITY }, |_| kept.logprob);
        near("kept_logprobs", r, logprob);
    }
}
