//! Rollout correction in plain f64 loops.

mod groups;
mod phases;
mod segments;
#[cfg(test)]
mod tests;

pub(super) use phases::{apply, finish, one_call, partial};

use crate::abi::*;
use crate::correction::{Batch, Config, Divergence, Level, Metropolis, Over, Plane, Rejection, Repeats, Weight};
use crate::error::{Fault, FaultCode};
use crate::memory::{Host, View};
use crate::objective::Advantages;
use crate::random;

/// δ is clamped to this where a divergence is estimated.
const DIVERGENCE_CLAMP: f64 = 20.0;
/// Above this a log-probability is a fault.
const POSITIVE_LOGPROB: f64 = 1e-3_f32 as f64;
/// Streams of uniform numbers: the last word but one of the counter.
const OF_SEGMENTS: u32 = 0;
const OF_TOKENS: u32 = 1;

/// One token, as the formulas see it.
#[derive(Clone, Copy, Debug)]
struct Token {
    delta: f64,
    old: f64,
    rollout: f64,
    advantage: f64,
}

/// The inputs of a batch, widened.
struct Tokens<'b, 'a> {
    batch: &'b Batch<'a, Host>,
    count: usize,
    repeats: usize,
    combine: Repeats,
    /// Whether the sign of Σ m A is asked for.
    needs_advantages: bool,
}

fn at(array: Option<View<'_, f32, Host>>, index: usize, or: f64) -> f64 {
    array.map_or(or, |array| f64::from(array.as_slice()[index]))
}

impl<'b, 'a> Tokens<'b, 'a> {
    fn of(config: &Config, batch: &'b Batch<'a, Host>, count: usize, repeats: usize) -> Tokens<'b, 'a> {
        let needs_advantages = config.planes().contains(&Plane::Advantage);
        Tokens { batch, count, repeats, combine: config.repeats, needs_advantages }
    }

    fn counts(&self, token: usize) -> bool {
        self.batch.loss_mask.is_none_or(|mask| mask.as_slice()[token] != 0)
    }

    /// o from its repetitions.
    fn old(&self, token: usize) -> f64 {
        let values = self.batch.old_logprobs.as_slice();
        let repeated = (0..self.repeats).map(|r| f64::from(values[r * self.count + token]));
        let count = self.repeats as f64;
        match self.combine {
            Repeats::Mean => repeated.sum::<f64>() / count,
            Repeats::LogMean => {
                let largest = repeated.clone().fold(f64::NEG_INFINITY, f64::max);
                largest + (repeated.map(|o| (o - largest).exp()).sum::<f64>() / count).ln()
            }
        }
    }

    /// `None` where an input is not finite. `advantage` is 0 unless it is one per token and asked for.
    fn token(&self, token: usize) -> Option<Token> {
        let values = self.batch.old_logprobs.as_slice();
        let advantage = match self.batch.advantages {
            Some(Advantages::PerToken(array)) if self.needs_advantages => f64::from(array.as_slice()[token]),
            _ => 0.0,
        };
        let rollout = f64::from(self.batch.rollout_logprobs.as_slice()[token]);
        let (mass, shift) = (at(self.batch.kept_log_mass, token, 0.0), at(self.batch.router_shift, token, 0.0));
        let are_finite = [rollout, mass, shift, advantage].iter().all(|x| x.is_finite())
            && (0..self.repeats).all(|r| values[r * self.count + token].is_finite());
        are_finite.then(|| {
            let (old, rollout) = (self.old(token), rollout + mass);
            Token { delta: old - rollout + shift, old, rollout, advantage }
        })
    }

    /// The first fault of a token, as the error word holds it.
    fn fault(&self, token: usize, tag: u16) -> u64 {
        let word = |code| Fault { row: token as u64, tag, code }.to_word();
        let mut first = MOERL_NO_FAULT;
        if self.batch.loss_mask.is_some_and(|mask| mask.as_slice()[token] > 1) {
            first = first.min(word(FaultCode::Mask));
        }
        if self.counts(token) {
            let largest = self.old(token).max(at(Some(self.batch.rollout_logprobs), token, 0.0));
            if self.token(token).is_none() {
                first = first.min(word(FaultCode::NonfiniteInput));
            } else if largest > POSITIVE_LOGPROB {
                first = first.min(word(FaultCode::PositiveLogprob));
            }
        }
        first
    }
}

fn clamped(delta: f64) -> f64 {
    delta.clamp(-DIVERGENCE_CLAMP, DIVERGENCE_CLAMP)
}

fn k3(x: f64) -> f64 {
    x.exp_m1() - x
}

fn saturate(config: &Config, x: f64) -> f64 {
    let bound = f64::from(config.saturation);
    x.clamp(-bound, bound)
}

/// exp x, bounded or banded.
fn weight_of(config: &Config, x: f64) -> f64 {
    let (low, high) = config.weight_bounds();
    let x = saturate(config, x);
    let is_inside = low.ln() <= x && x <= high.ln();
    match config.weight {
        Weight::Truncated { .. } | Weight::Clamped { .. } => x.exp().clamp(low, high),
        Weight::Band { .. } if !is_inside => 0.0,
        _ => x.exp(),
    }
}

/// A token's own weight, and, for the Metropolis test, its expectation.
fn own_weight(config: &Config, delta: f64) -> f64 {
    match config.weight {
        Weight::Truncated { level: Level::Token, .. }
        | Weight::Clamped { level: Level::Token, .. }
        | Weight::Band { level: Level::Token, .. }
        | Weight::SequenceMasked { .. } => weight_of(config, delta),
        Weight::Metropolis { level: Level::Token, .. } => delta.exp().min(1.0),
        _ => 1.0,
    }
}

/// True where this rejection of tokens keeps a token; of other rejections always.
fn keeps_token(config: &Config, rejection: &Rejection, delta: f64) -> bool {
    match *rejection {
        Rejection::Band { level: Level::Token, low, high } => {
            let x = saturate(config, delta);
            low.ln() <= x && x <= high.ln()
        }
        Rejection::Divergence { estimate, over: Over::Token } => keeps(estimate, clamped(delta)),
        _ => true,
    }
}

/// True where the divergence of one clamped δ is within its bounds.
fn keeps(estimate: Divergence, x: f64) -> bool {
    match estimate {
        Divergence::K1 { low, high } => low.ln() <= x && x <= high.ln(),
        Divergence::K2(most) => x * x / 2.0 <= most,
        Divergence::K3(most) => k3(x) <= most,
    }
}

fn keeps_token_at_all(config: &Config, delta: f64) -> bool {
    config.rejections.iter().all(|rejection| keeps_token(config, rejection, delta))
}

/// The planes of a piece.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sums([f64; Plane::ALL.len()]);

impl Sums {
    fn new() -> Sums {
        Sums(Plane::ALL.map(|plane| if plane.is_maximum() { f64::NEG_INFINITY } else { 0.0 }))
    }
    fn at(&self, plane: Plane) -> f64 {
        self.0[plane as usize]
    }
    fn add(&mut self, plane: Plane, value: f64) {
        let place = &mut self.0[plane as usize];
        *place = if plane.is_maximum() { place.max(value) } else { *place + value };
    }
    fn merge(&mut self, other: &Sums) {
        for plane in Plane::ALL {
            self.add(plane, other.at(plane));
        }
    }
    fn mean(&self) -> f64 {
        self.at(Plane::LogRatio) / self.at(Plane::Count)
    }
}

fn sum_piece(config: &Config, tokens: &Tokens<'_, '_>, range: std::ops::Range<usize>) -> Sums {
    let rejected = [Plane::Rejected0, Plane::Rejected1, Plane::Rejected2, Plane::Rejected3];
    let mut sums = Sums::new();
    for u in range.filter(|&u| tokens.counts(u)) {
        sums.add(Plane::Count, 1.0);
        let Some(Token { delta, old, rollout, advantage }) = tokens.token(u) else {
            sums.add(Plane::NonFinite, 1.0);
            continue;
        };
        let is_kept = keeps_token_at_all(config, delta);
        let of_tokens = config.rejections.iter().filter(|rejection| rejection.is_of_tokens());
        for (rejection, plane) in of_tokens.zip(rejected) {
            sums.add(plane, f64::from(!keeps_token(config, rejection, delta)));
        }
        let x = clamped(delta);
        for (plane, value) in [
            (Plane::LogRatio, delta),
            (Plane::Kept, f64::from(is_kept)),
            (Plane::K1, x),
            (Plane::K2, x * x / 2.0),
            (Plane::K3, k3(x)),
            (Plane::Advantage, advantage),
            (Plane::Old, old),
            (Plane::Rollout, rollout),
            (Plane::Weight, own_weight(config, delta)),
            (Plane::RawWeight, saturate(config, delta).exp()),
            (Plane::KeptK3, if is_kept { k3(delta) } else { 0.0 }),
            (Plane::Max, delta),
            (Plane::MaxNegative, -delta),
        ] {
            sums.add(plane, value);
        }
    }
    sums
}

/// U of a segment, or of a token at a position of it.
fn uniform(seed: u64, id: u64, position: Option<usize>) -> f64 {
    let stream = if position.is_some() { OF_TOKENS } else { OF_SEGMENTS };
    let counter = [id as u32, (id >> 32) as u32, position.unwrap_or(0) as u32, stream];
    let [word, ..] = random::philox4x32_10(random::key(seed), counter);
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

/// [U < min(1, exp δ)]
fn accepts(
    config: &Config,
    batch: &Batch<'_, Host>,
    segment: usize,
    token: usize,
    position: usize,
    delta: f64,
) -> bool {
    let Weight::Metropolis { seed, .. } = config.weight else { return true };
    let u = match (batch.uniforms, batch.segment_ids) {
        (Some(uniforms), _) => f64::from(uniforms.as_slice()[token]),
        (None, Some(ids)) => uniform(seed, ids.as_slice()[segment], Some(position)),
        (None, None) => return true,
    };
    u.ln() < delta
}

fn is_of_multiplicity(config: &Config) -> bool {
    matches!(config.weight, Weight::Metropolis { mode: Metropolis::Multiplicity, .. })
}

/// The sums that calls and ranks add up: 32 of tokens, 32 of segments.
struct Statistics([f64; 64]);

const OF_SEGMENT: u32 = MOERL_TALLY_PLACES;

impl Statistics {
    fn new() -> Statistics {
        Statistics(std::array::from_fn(|place| {
            if crate::correction::diagnostics::is_maximum(place) { f64::NEG_INFINITY } else { 0.0 }
        }))
    }
    fn add(&mut self, place: u32, value: f64) {
        self.0[place as usize] += value;
    }
    fn raise(&mut self, place: u32, value: f64) {
        let place = &mut self.0[place as usize];
        *place = place.max(value);
    }
}

fn token_statistics(config: &Config, token: Option<Token>, statistics: &mut Statistics) {
    statistics.add(MOERL_CORRECTION_TOKENS, 1.0);
    let Some(Token { delta, old, rollout, .. }) = token else {
        return statistics.add(MOERL_CORRECTION_TOKENS_NONFINITE, 1.0);
    };
    let (x, bound) = (saturate(config, delta), f64::from(config.saturation));
    let (low, high) = config.reported_bounds();
    if config.level() == Level::Token {
        let weight = own_weight(config, delta);
        statistics.add(MOERL_CORRECTION_TOKEN_WEIGHTS, weight);
        statistics.add(MOERL_CORRECTION_TOKEN_WEIGHTS_SQUARED, weight * weight);
    }
    // M − max(o, q) = log((1 + e^−|δ|) / 2)
    let gap = (old - rollout).abs();
    let below = -(((-gap).exp() + 1.0) / 2.0).ln();
    for (place, value) in [
        (MOERL_CORRECTION_TOKEN_CHI2, (2.0 * x).exp()),
        (MOERL_CORRECTION_MISMATCH_K1, -delta),
        (MOERL_CORRECTION_MISMATCH_K3, k3(delta)),
        (MOERL_CORRECTION_PROBABILITY_ERROR, delta.abs().exp()),
        (MOERL_CORRECTION_JENSEN_SHANNON, 0.5 * (k3(below) + k3(below - gap))),
        (MOERL_CORRECTION_TOKEN_RAW, x.exp()),
        (MOERL_CORRECTION_TOKEN_RAW_SQUARED, (2.0 * x).exp()),
        (MOERL_CORRECTION_TOKENS_ABOVE, f64::from(x > high.ln())),
        (MOERL_CORRECTION_TOKENS_BELOW, f64::from(x < low.ln())),
        (MOERL_CORRECTION_TOKENS_SATURATED_HIGH, f64::from(delta > bound)),
        (MOERL_CORRECTION_TOKENS_SATURATED_LOW, f64::from(delta < -bound)),
        (MOERL_CORRECTION_TOKENS_CATASTROPHIC, f64::from(is_catastrophic(config, delta))),
    ] {
        statistics.add(place, value);
    }
    statistics.raise(MOERL_CORRECTION_MAX_LOG_RATIO, delta);
    statistics.raise(MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO, -delta);
}

fn is_catastrophic(config: &Config, delta: f64) -> bool {
    delta < config.catastrophic.0.ln() || delta > config.catastrophic.1.ln()
}
