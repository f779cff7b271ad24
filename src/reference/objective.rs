//! Policy objectives in plain f64 loops.

mod phases;
#[cfg(test)]
mod tests;

pub(super) use phases::{apply, finish, one_call, partial};

use crate::abi::MOERL_NO_FAULT;
use crate::diagnostics::{self, Sum};
use crate::error::{Fault, FaultCode};
use crate::objective::{Aggregation, Bounds, Config, NonFinite, Saturation, Variant};
use crate::segments::Segments;

/// Bits of [`Coefficient::flags`](crate::objective::Coefficient::flags).
pub(crate) mod flag {
    pub(crate) const ABOVE: u32 = 1;
    pub(crate) const BELOW: u32 = 2;
    pub(crate) const CAPPED: u32 = 4;
    pub(crate) const PASS_POSITIVE: u32 = 8;
    pub(crate) const PASS_NEGATIVE: u32 = 16;
    pub(crate) const NONFINITE: u32 = 32;
    pub(crate) const DROPPED: u32 = 64;
    pub(crate) const EMPTY: u32 = 128;
}

/// Above this a log-probability is a fault.
const POSITIVE_LOGPROB: f64 = 1e-3;

/// The inputs of a batch, widened.
#[derive(Clone, Debug, Default)]
struct Tokens {
    logprobs: Vec<f64>,
    old_logprobs: Option<Vec<f64>>,
    /// `[S]` or `[N]`.
    advantages: Vec<f64>,
    per_token: bool,
    loss_mask: Option<Vec<u8>>,
    weights: Option<Vec<f64>>,
    segment_scale: Option<Vec<f64>>,
}

/// One token, as the formulas see it.
#[derive(Clone, Copy, Debug)]
struct Token {
    delta: f64,
    advantage: f64,
    weight: f64,
}

impl Tokens {
    fn counts(&self, token: usize) -> bool {
        self.loss_mask.as_ref().is_none_or(|mask| mask[token] != 0)
    }

    /// The token of a segment; `None` where one of its inputs is not finite.
    fn token(&self, token: usize, segment: usize) -> Option<Token> {
        self.token_alone(token, segment).filter(|token| token.advantage.is_finite())
    }

    /// As [`token`](Tokens::token), whatever its segment's advantage is.
    fn token_alone(&self, token: usize, segment: usize) -> Option<Token> {
        let new = self.logprobs[token];
        let old = self.old_logprobs.as_ref().map_or(new, |old| old[token]);
        let advantage = self.advantages[if self.per_token { token } else { segment }];
        let weight = self.weights.as_ref().map_or(1.0, |weights| weights[token]);
        let is_sound = [new, old, weight].iter().all(|x| x.is_finite()) && (!self.per_token || advantage.is_finite());
        is_sound.then_some(Token { delta: new - old, advantage, weight })
    }

    /// The first fault of a token, as the error word holds it.
    fn fault(&self, token: usize, segment: usize, tag: u16) -> u64 {
        let word = |code| Fault { row: token as u64, tag, code }.to_word();
        let mut first = MOERL_NO_FAULT;
        if self.loss_mask.as_ref().is_some_and(|mask| mask[token] > 1) {
            first = first.min(word(FaultCode::Mask));
        }
        if self.counts(token) {
            let old = self.old_logprobs.as_ref().map_or(0.0, |old| old[token]);
            if self.token(token, segment).is_none() {
                first = first.min(word(FaultCode::NonfiniteInput));
            } else if self.logprobs[token].max(old) > POSITIVE_LOGPROB {
                first = first.min(word(FaultCode::PositiveLogprob));
            }
        }
        first
    }
}

/// The planes of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    log_ratio: f64,
    count: f64,
    positive: f64,
    negative: f64,
    nonfinite: f64,
}

/// [`Coefficient`](crate::objective::Coefficient) before it is rounded.
#[derive(Clone, Copy, Debug, Default)]
struct Coefficient {
    ratio: f64,
    weight: f64,
    gradient: f64,
    flags: u32,
}

/// T, B, P and L.
type Counts = [f64; 4];

/// A statistic that a call adds up.
struct Statistics([f64; diagnostics::LEN]);

impl Statistics {
    fn new() -> Statistics {
        let mut sums = [0.0; diagnostics::LEN];
        sums[diagnostics::SUMS..].fill(f64::NEG_INFINITY);
        Statistics(sums)
    }
    fn add(&mut self, sum: Sum, value: f64) {
        self.0[sum as usize] += value;
    }
    fn raise(&mut self, sum: Sum, value: f64) {
        let place = &mut self.0[sum as usize];
        *place = place.max(value);
    }
    fn merge(&self, into: &mut [f64]) {
        for (place, (to, &from)) in into.iter_mut().zip(&self.0).enumerate() {
            *to = if place < diagnostics::SUMS { *to + from } else { to.max(from) };
        }
    }
}

fn saturate(bounds: Saturation, x: f64) -> f64 {
    x.max(f64::from(bounds.low)).min(f64::from(bounds.high))
}

fn is_inside(bounds: Saturation, x: f64) -> bool {
    f64::from(bounds.low) <= x && x <= f64::from(bounds.high)
}

impl Bounds {
    fn positive(&self, ratio: f64) -> f64 {
        ratio.min(self.upper)
    }
    fn negative(&self, ratio: f64) -> f64 {
        ratio.max(self.lower).min(self.cap)
    }
    /// Where `x·scale` lies, for the scaled logarithm x of a ratio.
    fn flags(&self, x: f64, scale: f64) -> u32 {
        let mut flags = 0;
        if x > scale * self.log_upper {
            flags |= flag::ABOVE;
        }
        if x < scale * self.log_lower {
            flags |= flag::BELOW;
        }
        if x > scale * self.log_cap {
            flags |= flag::CAPPED;
        }
        flags
    }
}

/// The flags with what passes a gradient.
fn with_passes(flags: u32, inside: bool) -> u32 {
    let positive = inside && flags & flag::ABOVE == 0;
    let negative = inside && flags & (flag::BELOW | flag::CAPPED) == 0;
    flags | if positive { flag::PASS_POSITIVE } else { 0 } | if negative { flag::PASS_NEGATIVE } else { 0 }
}

/// Those of the bits 1, 2, 4 that concern an advantage of this sign.
fn clipped(flags: u32, advantage: f64) -> u32 {
    if advantage > 0.0 {
        flags & flag::ABOVE
    } else if advantage < 0.0 {
        flags & (flag::BELOW | flag::CAPPED)
    } else {
        0
    }
}

fn passes(flags: u32, advantage: f64) -> bool {
    advantage > 0.0 && flags & flag::PASS_POSITIVE != 0 || advantage < 0.0 && flags & flag::PASS_NEGATIVE != 0
}

fn sum_segment(tokens: &Tokens, segment: usize, range: std::ops::Range<usize>) -> Sums {
    let mut sums = Sums::default();
    for u in range.filter(|&u| tokens.counts(u)) {
        sums.count += 1.0;
        match tokens.token(u, segment) {
            None => sums.nonfinite += 1.0,
            Some(token) => {
                sums.log_ratio += token.delta;
                sums.positive += token.weight * token.advantage.max(0.0);
                sums.negative += token.weight * token.advantage.min(0.0);
            }
        }
    }
    sums
}

/// c of a segment with a counted token; NaN where a denominator that it uses is 0.
fn coefficient(config: &Config, counts: &Counts, count: f64, scale: f64) -> f64 {
    let [tokens, segments, prompts, longest] = *counts;
    let denominator = match config.aggregation {
        Aggregation::TokenMean => tokens,
        Aggregation::TokenSum => 1.0,
        Aggregation::SeqMeanTokenMean => segments * count,
        Aggregation::SeqMeanTokenSum => segments,
        Aggregation::SeqMeanTokenSumNorm => segments * longest,
        Aggregation::PromptMean => prompts * scale,
        Aggregation::Custom => return config.dp_scale * scale,
    };
    if denominator > 0.0 { config.dp_scale / denominator } else { f64::NAN }
}

/// What the sums of a segment come to: its coefficient, its value where that is known by now, and whether a denominator was 0.
fn finish_segment(config: &Config, counts: &Counts, sums: &Sums, scale: f64) -> (Coefficient, f64, bool) {
    if sums.count == 0.0 {
        return (Coefficient { ratio: 1.0, flags: flag::EMPTY, ..Coefficient::default() }, 0.0, false);
    }
    let bounds = Bounds::of(config.variant.clip());
    let log_ratio = sums.log_ratio / sums.count;
    let mut ratio = saturate(config.saturation, log_ratio).exp();
    let mut flags = with_passes(bounds.flags(sums.log_ratio, sums.count), is_inside(config.saturation, log_ratio));
    let mut weight = coefficient(config, counts, sums.count, scale);
    let sequence = config.variant.is_sequence_level();
    if sums.nonfinite > 0.0 {
        flags |= flag::NONFINITE;
        match config.nonfinite {
            NonFinite::ZeroWeight => {}
            NonFinite::Propagate if sequence => ratio = f64::NAN,
            NonFinite::Propagate => {}
            NonFinite::DropSegment => {
                flags |= flag::DROPPED;
                weight = 0.0;
            }
        }
    }
    let no_denominator = weight.is_nan();
    if flags & flag::DROPPED != 0 || !sequence {
        return (Coefficient { ratio, weight, gradient: 0.0, flags }, 0.0, no_denominator);
    }
    let value = -weight * (bounds.positive(ratio) * sums.positive + bounds.negative(ratio) * sums.negative);
    let value = if ratio.is_nan() { f64::NAN } else { value };
    let mut passing = 0.0;
    if flags & flag::PASS_POSITIVE != 0 {
        passing += sums.positive;
    }
    if flags & flag::PASS_NEGATIVE != 0 {
        passing += sums.negative;
    }
    let gradient = match config.variant {
        Variant::Gspo(_) => -weight * ratio / sums.count * passing + 0.0,
        _ => 0.0,
    };
    (Coefficient { ratio, weight, gradient, flags }, value, no_denominator)
}

/// A counted token's value (without c), gradient, clip flags and ratio.
fn apply_token(config: &Config, segment: &Coefficient, token: Option<Token>) -> (f64, f64, u32, f64) {
    let dropped = segment.flags & flag::DROPPED != 0;
    let Some(token) = token else {
        let propagates = config.nonfinite == NonFinite::Propagate;
        let value = if propagates { f64::NAN } else { 0.0 };
        return (
            if config.variant.is_sequence_level() { 0.0 } else { value },
            value,
            0,
            if propagates { f64::NAN } else { 1.0 },
        );
    };
    let Token { delta, advantage, weight } = token;
    let ratio = saturate(config.saturation, delta).exp();
    let common = -segment.weight * weight * advantage;
    match config.variant {
        Variant::Gspo(_) => (0.0, segment.gradient, clipped(segment.flags, advantage), ratio),
        Variant::GspoToken(_) => {
            let passes = passes(segment.flags, advantage) && !dropped;
            // NaN must show: a segment with s = NaN passes nothing.
            let gradient = if passes || segment.ratio.is_nan() { common * segment.ratio + 0.0 } else { 0.0 };
            (0.0, gradient, clipped(segment.flags, advantage), ratio)
        }
        Variant::PpoClip(clip) => {
            let bounds = Bounds::of(clip);
            let flags = with_passes(bounds.flags(delta, 1.0), is_inside(config.saturation, delta));
            let bounded = if advantage > 0.0 { bounds.positive(ratio) } else { bounds.negative(ratio) };
            let value = if dropped { 0.0 } else { -weight * advantage * bounded };
            let gradient =
                if passes(flags, advantage) && !dropped || segment.weight.is_nan() { common * ratio } else { 0.0 };
            (value, gradient + 0.0, clipped(flags, advantage), ratio)
        }
    }
}

/// T and B of a batch, and what else the caller said.
fn local_counts(config: &Config, segments: &Segments, tokens: &Tokens, max_len: u64) -> Counts {
    let counts = segments.ranges().map(|range| range.filter(|&u| tokens.counts(u)).count());
    let (mut total, mut nonempty) = (0, 0);
    for count in counts {
        total += count;
        nonempty += usize::from(count > 0 || config.count_empty);
    }
    [total as f64, nonempty as f64, 0.0, max_len as f64]
}
