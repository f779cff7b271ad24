//! The formulas of `moerl::logprob` once more in f64, and how far from them a result may be.

use moerl::element::{Element, Scalar};
use moerl::logprob::Config;

/// A logit after the softcap, and the slope of that.
pub fn capped(config: &Config, x: f64) -> (f64, f64) {
    match config.softcap.map(f64::from) {
        None => (x, 1.0),
        Some(c) => {
            let v = f64::from(config.logit_scale) * x / c;
            // 1 − tanh² without the cancellation.
            let slope = f64::from(config.logit_scale) / v.cosh().powi(2);
            if x.is_finite() { (c * v.tanh(), slope) } else { (x, 0.0) }
        }
    }
}

/// The definitions, in f64.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    pub logprob: f64,
    pub entropy: f64,
    pub max: f64,
    pub log_sum: f64,
    pub lse: f64,
    pub sum_p2: f64,
}

pub fn exact(logits: &[f64], temperature: f64, token: usize) -> Exact {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms = || logits.iter().map(|x| (x - max) / temperature).filter(|z| *z > f64::NEG_INFINITY);
    let log_sum = terms().map(f64::exp).sum::<f64>().ln();
    let p = |z: f64| (z - log_sum).exp();
    Exact {
        logprob: (logits[token] - max) / temperature - log_sum,
        entropy: terms().map(|z| if p(z) > 0.0 { -p(z) * (z - log_sum) } else { 0.0 }).sum(),
        max: max / temperature,
        log_sum,
        lse: max / temperature + log_sum,
        sum_p2: terms().map(|z| p(z) * p(z)).sum(),
    }
}

/// The gradient of a·logprob + b·entropy + c·lse by every logit, and the scale of its terms (what the goal is a share of).
pub fn exact_gradient(logits: &[f64], temperature: f64, token: Option<usize>, up: [f64; 3]) -> (Vec<f64>, Vec<f64>) {
    let [a, b, c] = up;
    let row = exact(logits, temperature, token.unwrap_or(0));
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mean = row.log_sum - row.entropy; // E − m
    let term = |(j, x): (usize, &f64)| {
        let z = (x - max) / temperature;
        let chosen = f64::from(u8::from(token == Some(j)));
        let p = (z - row.log_sum).exp();
        // By definition: an exponential below 2⁻¹²⁶, where normal f32 numbers end, is 0.
        if z < -126.0 * std::f64::consts::LN_2 {
            return (a * chosen / temperature, a.abs() * chosen / temperature);
        }
        let value = a * chosen - p * (a - b * (mean - z) - c);
        let scale = a.abs() * chosen + p * (a.abs() + b.abs() * ((mean - z).abs() + 1.0) + c.abs());
        (value / temperature, scale / temperature)
    };
    logits.iter().enumerate().map(term).unzip()
}

/// One unit in the last place of an f32 near x.
pub fn ulp(x: f64) -> f64 {
    let x = (x.abs() as f32).max(f32::MIN_POSITIVE);
    f64::from(f32::from_bits(x.to_bits() + 1)) - f64::from(x)
}

/// Half a unit in the last place of the type, near x.
pub fn half_ulp<T: Scalar>(x: f64) -> f64 {
    let bits = match T::ELEMENT {
        Element::Bf16 => 16.0,
        Element::F16 => 13.0,
        _ => 0.0,
    };
    let smallest = if T::ELEMENT == Element::F16 { 2f64.powi(-25) } else { 0.0 };
    (ulp(x) * 2f64.powf(bits) / 2.0).max(smallest)
}

/// |found − expected| in units of the goal; 0 for equal infinities, infinite where only one of them is finite or NaN.
pub fn of_goal(found: f32, expected: f64, goal: f64) -> f64 {
    // What f32 cannot hold is infinite on both sides.
    if found == expected as f32 || (found.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    let share = (f64::from(found) - expected).abs() / goal;
    if share.is_nan() { f64::INFINITY } else { share }
}
