//! Family objective, rollout correction: verl's `compute_rollout_correction_and_rejection_mask`, its weights, mask and metrics.
//!
//! Metrics come from the diagnostics where those have them. What verl reports beside that of every rejection (moments of the statistic) is
//! made from what the operation returns a token (δ, weights, `keep`).

use moerl::Backend;
use moerl::correction::{Config as Correction, Diagnostics, Divergence, Level, Over, Rejection, Weight};
use moerl::objective::Segments;
use serde_json::Value;

use super::{Case, Compared, Stop, Tolerance, unsupported};
use crate::clock::Clock;
use crate::correction::{Inputs, Outcome, run};

/// A weight is exp of an f32 difference: an ulp of the log-probabilities for every token of a sum, 2 ulp of exp.
const WEIGHT: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-7 };
/// Sums of up to some hundred f32 terms.
const METRIC: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-7 };
/// A difference of rounded moments: √(E[x²] − E[x]²) of numbers around 1.
const DEVIATION: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-6 };
/// Of exp 2X, where X is a sum of log-ratios of up to 20.
const CHI2: Tolerance = Tolerance { relative: 5e-5, absolute: 1e-6 };

/// A rejection as verl names it, with its thresholds on verl's statistic.
struct Criterion {
    name: String,
    over: Over,
    /// 1, 2 or 3: k1 is of −δ.
    kind: u8,
    low: f64,
    high: f64,
}

/// What the case's configuration means.
struct Meaning {
    correction: Correction,
    options: Vec<Criterion>,
    has_weights: bool,
    /// Outside it a weight is 0.
    band: Option<(f64, f64)>,
}

fn meaning(case: &Case<'_>) -> Result<Meaning, Stop> {
    let config = case.config(&[
        "rollout_is",
        "rollout_is_batch_normalize",
        "rollout_is_threshold",
        "rollout_rs",
        "rollout_rs_threshold",
    ])?;
    let bad = |what: &str| Stop::Fail(format!("{what} is not what verl takes"));
    let level = match config.text("rollout_is") {
        "token" => Some(Level::Token),
        "sequence" => Some(Level::Sequence),
        "" => None,
        other => return unsupported(format!("rollout_is {other}")),
    };
    let band = bounds_of(config.text("rollout_is_threshold"));
    let upper = band.map_or_else(|| config.number("rollout_is_threshold").unwrap_or(2.0), |(_, high)| high);
    let weight = match (level, band) {
        (None, _) => Weight::One,
        (Some(level), Some((low, high))) => Weight::Band { level, low, high },
        (Some(level), None) => Weight::Truncated { level, max: upper },
    };
    let mut correction = Correction {
        batch_normalise: config.flag("rollout_is_batch_normalize"),
        ..Correction::new(weight).with_diagnostics()
    };
    let names: Vec<&str> = config.text("rollout_rs").split(',').filter(|name| !name.is_empty()).collect();
    let thresholds: Vec<&str> = config.text("rollout_rs_threshold").split(',').collect();
    let mut options = Vec::new();
    for (name, threshold) in names.iter().zip(thresholds) {
        let (over, kind) = name.rsplit_once("_k").ok_or_else(|| bad(name))?;
        let over = match over {
            "token" => Over::Token,
            "seq_sum" => Over::Sum,
            "seq_mean" => Over::Mean,
            "seq_max" => Over::Max,
            other => return unsupported(format!("rejection of {other}")),
        };
        let number = || threshold.parse::<f64>().map_err(|_| bad(threshold));
        let (rejection, kind, low, high) = match kind {
            "1" => {
                let (low, high) = bounds_of(threshold).ok_or_else(|| bad(threshold))?;
                (Rejection::verl_k1(over, low, high), 1, low.ln(), high.ln())
            }
            "2" => (Rejection::Divergence { estimate: Divergence::K2(number()?), over }, 2, 0.0, number()?),
            "3" => (Rejection::Divergence { estimate: Divergence::K3(number()?), over }, 3, 0.0, number()?),
            other => return unsupported(format!("estimator k{other}")),
        };
        correction = correction.with_rejection(rejection);
        options.push(Criterion { name: (*name).to_owned(), over, kind, low, high });
    }
    Ok(Meaning { correction, options, has_weights: level.is_some(), band })
}

/// `lo_hi`
fn bounds_of(text: &str) -> Option<(f64, f64)> {
    let (low, high) = text.split_once('_')?;
    low.parse().ok().zip(high.parse().ok())
}

/// Runs one case.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let meaning = meaning(case)?;
    let batch = case.text("batch").unwrap_or_default();
    let (offsets, _) = case.tensor::<i32>(&format!("{batch}/cu_seqlens"))?;
    let segments = Segments::from_offsets(&offsets)?;
    let n = segments.tokens();
    let mask = case.values::<u8>(&format!("{batch}/loss_mask"), n)?;
    let old = case.values::<f32>(&format!("{batch}/logp_old"), n)?;
    let rollout = case.values::<f32>(&format!("{batch}/logp_rollout"), n)?;
    let inputs = Inputs {
        segments: &segments,
        old: &old,
        rollout: &rollout,
        mask: &mask,
        groups: None,
        advantages: None,
        rewards: None,
    };
    let (found, fault) = run(backend, &backend.stream()?, &meaning.correction, &inputs, &mut Clock::default())?;
    if let Some(fault) = fault {
        return Err(Stop::Fail(fault.to_string()));
    }
    let mut compared = Compared::default();
    if meaning.has_weights {
        let expected = case.values::<f32>(&format!("{}/weights", case.id), n)?;
        compared.close("weights", &found.weights, &expected, WEIGHT);
    }
    if !meaning.options.is_empty() {
        compared.equal("mask", &found.keep, &case.values::<u8>(&format!("{}/mask", case.id), n)?);
    }
    let Some(expected) = case.json.get("metrics").and_then(Value::as_object) else {
        return Err(Stop::Fail("the case has no metrics".into()));
    };
    let Some(diagnostics) = Diagnostics::from_sums(&found.sums, true) else {
        return Err(Stop::Fail("the diagnostics have another length".into()));
    };
    let tokens = Tokens { segments: &segments, mask: &mask, found: &found, meaning: &meaning };
    for (key, value) in expected {
        let name = key.strip_prefix("rollout_corr/").unwrap_or(key);
        let Some(value) = value.as_f64() else {
            return Err(Stop::Fail(format!("{key} is not a number")));
        };
        let Some((metric, tolerance)) = tokens.metric(name, &diagnostics) else {
            return unsupported(format!("metric {key}"));
        };
        compared.one(name, 0, metric, value, tolerance);
    }
    Ok(compared)
}

/// What metrics are made of.
struct Tokens<'a> {
    segments: &'a Segments,
    mask: &'a [u8],
    found: &'a Outcome,
    meaning: &'a Meaning,
}

/// Numbers of tokens, each as often as it counts.
#[derive(Default)]
struct Moments {
    count: f64,
    sum: f64,
    squares: f64,
    max: f64,
    min: f64,
}

impl Moments {
    fn of(values: impl IntoIterator<Item = (f64, f64)>) -> Moments {
        let mut moments = Moments { max: f64::NEG_INFINITY, min: f64::INFINITY, ..Moments::default() };
        for (value, times) in values {
            moments.count += times;
            moments.sum += times * value;
            moments.squares += times * value * value;
            moments.max = moments.max.max(value);
            moments.min = moments.min.min(value);
        }
        moments
    }
    fn mean(&self) -> f64 {
        self.sum / self.count
    }
    fn std(&self) -> f64 {
        (self.squares / self.count - self.mean() * self.mean()).max(0.0).sqrt()
    }
    /// With one less in the divisor.
    fn sample_std(&self) -> f64 {
        ((self.squares - self.count * self.mean() * self.mean()).max(0.0) / (self.count - 1.0)).sqrt()
    }
}

impl Tokens<'_> {
    fn counted(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.mask.len()).filter(|&u| self.mask[u] != 0)
    }

    /// A metric by the name that verl gives it.
    fn metric(&self, name: &str, d: &Diagnostics) -> Option<(f64, Tolerance)> {
        if let Some(name) = name.strip_prefix("rollout_rs_") {
            return self.rejection_metric(name);
        }
        if let Some(name) = name.strip_prefix("rollout_is_") {
            return self.weight_metric(name, d);
        }
        let value = match name {
            "training_ppl" => d.ppl_old,
            "training_log_ppl" => d.log_ppl_old,
            "rollout_ppl" => d.ppl_rollout,
            "rollout_log_ppl" => d.log_ppl_rollout,
            "kl" => d.mismatch_k1,
            "k3_kl" => d.mismatch_k3,
            "log_ppl_diff" => d.log_ppl_diff,
            "log_ppl_abs_diff" => d.log_ppl_abs_diff,
            "log_ppl_diff_max" => d.log_ppl_diff_max,
            "log_ppl_diff_min" => d.log_ppl_diff_min,
            "ppl_ratio" => d.ppl_ratio,
            "chi2_token" => return Some((d.chi2_token?, CHI2)),
            "chi2_seq" => return Some((d.chi2_seq?, CHI2)),
            _ => None,
        };
        value.map(|value| (value, METRIC))
    }

    fn weight_metric(&self, name: &str, d: &Diagnostics) -> Option<(f64, Tolerance)> {
        let (found, meaning) = (self.found, self.meaning);
        let of_segments = meaning.correction.is_segment_level();
        let (mean, count) =
            if of_segments { (found.globals[5], found.globals[4]) } else { (found.globals[9], found.globals[8]) };
        let factor = mean / count;
        let sequence = d.weight_seq?;
        // Weights as they were before the batch normalised them.
        let scale = if meaning.correction.batch_normalise && factor > 1e-8 { factor } else { 1.0 };
        let used = || self.counted().map(|u| (f64::from(found.weights[u]) * scale, 1.0));
        let largest = found.log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let smallest = found.log_weights.iter().copied().fold(f64::INFINITY, f64::min);
        let raw = d.weight?;
        let value = match name {
            "mean" => d.weight_used_mean?,
            "std" => return Some((d.weight_used_std?, DEVIATION)),
            "eff_sample_size" => d.ess_fraction?,
            // verl's extremes of segments are of the raw weight.
            "max" if of_segments => largest.min(20.0).exp(),
            "min" if of_segments => smallest.exp(),
            "max" => Moments::of(used()).max,
            "min" => Moments::of(used()).min,
            "ratio_fraction_high" if of_segments => sequence.above,
            "ratio_fraction_low" if of_segments => sequence.below,
            "ratio_fraction_high" => raw.above,
            "ratio_fraction_low" => raw.below,
            "oob_ratio" => self.outside_of_band(raw.above + raw.below)?,
            "batch_norm_factor" => scale,
            "seq_mean" => sequence.mean,
            "seq_std" => return Some((sequence.std, DEVIATION)),
            "seq_max" => sequence.max,
            "seq_min" => sequence.min,
            "seq_max_deviation" => d.weight_seq_max_abs_dev?,
            "seq_fraction_high" => sequence.above,
            // verl compares the weight 0 of an empty segment with the lower bound, not its X = 0.
            "seq_fraction_low" => sequence.below + d.empty_segments as f64 / self.segments.len() as f64,
            _ => return None,
        };
        Some((value, METRIC))
    }

    /// The fraction of counted tokens whose raw weight is outside the band.
    fn outside_of_band(&self, of_tokens: f64) -> Option<f64> {
        let (low, high) = self.meaning.band?;
        if !self.meaning.correction.is_segment_level() {
            return Some(of_tokens);
        }
        let outside = |x: f64| x.clamp(-20.0, 20.0) < low.ln() || x.clamp(-20.0, 20.0) > high.ln();
        let spread = self.segments.ranges().zip(&self.found.log_weights);
        let moments = Moments::of(spread.map(|(range, &x)| {
            let count = range.filter(|&u| self.mask[u] != 0).count();
            (f64::from(u8::from(outside(x))), count as f64)
        }));
        Some(moments.mean())
    }

    /// verl's statistic of a token.
    fn divergence(&self, kind: u8, token: usize) -> f64 {
        let delta = f64::from(self.found.log_ratio[token]).clamp(-20.0, 20.0);
        match kind {
            1 => -delta,
            2 => delta * delta / 2.0,
            _ => delta.exp_m1() - delta,
        }
    }

    /// The statistic of every segment with a counted token, and how many it has.
    fn of_segments(&self, option: &Criterion) -> Vec<(f64, f64)> {
        let mut all = Vec::new();
        for range in self.segments.ranges() {
            let values: Vec<f64> =
                range.filter(|&u| self.mask[u] != 0).map(|u| self.divergence(option.kind, u)).collect();
            let (sum, count) = (values.iter().sum::<f64>(), values.len() as f64);
            if values.is_empty() {
                continue;
            }
            let statistic = match option.over {
                Over::Sum => sum,
                Over::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                Over::Mean | Over::Token => sum / count,
            };
            all.push((statistic, count));
        }
        all
    }

    fn rejection_metric(&self, name: &str) -> Option<(f64, Tolerance)> {
        let counted = self.counted().count() as f64;
        let kept = self.counted().filter(|&u| self.found.keep[u] != 0).count() as f64;
        match name {
            "masked_fraction" => return Some((1.0 - kept / counted, METRIC)),
            "seq_masked_fraction" => {
                let rejects = |range: std::ops::Range<usize>| {
                    range.into_iter().any(|u| self.mask[u] != 0 && self.found.keep[u] == 0)
                };
                let rejected = self.segments.ranges().filter(|range| rejects(range.clone())).count();
                return Some((rejected as f64 / self.segments.len() as f64, METRIC));
            }
            _ => {}
        }
        let (at, option) =
            self.meaning.options.iter().enumerate().find(|(_, option)| {
                name.strip_prefix(option.name.as_str()).is_some_and(|rest| rest.starts_with('_'))
            })?;
        let of_segments = self.of_segments(option);
        let nonempty = of_segments.len() as f64;
        let of_tokens = option.over == Over::Token;
        // As often as it has tokens, a segment's; or each token's own.
        let spread: Vec<(f64, f64)> = if of_tokens {
            self.counted().map(|u| (self.divergence(option.kind, u), 1.0)).collect()
        } else {
            of_segments.clone()
        };
        let once = |values: &[(f64, f64)]| Moments::of(values.iter().map(|&(value, _)| (value, 1.0)));
        let beyond = |values: &[(f64, f64)], test: &dyn Fn(f64) -> bool| {
            values.iter().filter(|(value, _)| test(*value)).count() as f64 / values.len() as f64
        };
        let (high, low) = (|x: f64| x > option.high, |x: f64| option.kind == 1 && x < option.low);
        let value = match &name[option.name.len() + 1..] {
            "masked_fraction" => self.found.rejected[2 * at] as f64 / counted,
            "seq_masked_fraction" => self.found.rejected[2 * at + 1] as f64 / nonempty,
            "mean" => Moments::of(spread.iter().copied()).mean(),
            "max" => once(&spread).max,
            "min" => once(&spread).min,
            "fraction_high" => beyond(&spread, &high),
            "fraction_low" => beyond(&spread, &low),
            "std" => {
                let clamped = spread.iter().map(|&(value, times)| (value.clamp(option.low, option.high), times));
                return Some((Moments::of(clamped).std(), DEVIATION));
            }
            "seq_mean" => once(&of_segments).mean(),
            "seq_std" => return Some((once(&of_segments).sample_std(), DEVIATION)),
            "seq_max" => once(&of_segments).max,
            "seq_min" => once(&of_segments).min,
            "seq_max_deviation" => once(&of_segments).max.abs().max(once(&of_segments).min.abs()),
            "seq_fraction_high" => beyond(&of_segments, &high),
            "seq_fraction_low" => beyond(&of_segments, &low),
            _ => return None,
        };
        Some((value, METRIC))
    }
}
