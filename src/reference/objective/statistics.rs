//! The diagnostics of a call.

use super::{Applied, Coefficient, Config, Saturation, Sums, Token, Tokens, clipped, flag, saturate, times};
use crate::diagnostics::{self, Sum};

/// The sums and maxima of [`Sum`].
pub(super) struct Statistics([f64; diagnostics::LEN]);

impl Statistics {
    pub(super) fn new() -> Statistics {
        let mut sums = [0.0; diagnostics::LEN];
        sums[diagnostics::SUMS..].fill(f64::NEG_INFINITY);
        Statistics(sums)
    }
    pub(super) fn add(&mut self, sum: Sum, value: f64) {
        self.0[sum as usize] += value;
    }
    fn raise(&mut self, sum: Sum, value: f64) {
        let place = &mut self.0[sum as usize];
        *place = place.max(value);
    }
    pub(super) fn merge(&self, into: &mut [f64]) {
        for (place, (to, &from)) in into.iter_mut().zip(&self.0).enumerate() {
            *to = if place < diagnostics::SUMS { *to + from } else { to.max(from) };
        }
    }

    /// A counted token, by the inputs that it has of its own.
    pub(super) fn token(&mut self, config: &Config, tokens: &Tokens, u: usize, seen: Option<Token>) {
        self.add(Sum::Tokens, 1.0);
        let Some(seen) = seen else { return self.add(Sum::NonFiniteTokens, 1.0) };
        let delta = seen.delta;
        let ratio = saturate(config.saturation, delta).exp();
        for (sum, value) in [
            (Sum::PolicyKlK1, -delta),
            (Sum::PolicyKlK2, delta * delta / 2.0),
            (Sum::PolicyKlK3, delta.exp_m1() - delta),
            (Sum::Ratio, ratio),
            (Sum::RatioSquared, ratio * ratio),
            (Sum::Weight, seen.weight),
            (Sum::WeightSquared, seen.weight * seen.weight),
            (Sum::RejectedTokens, f64::from(!seen.is_kept)),
            (Sum::RouterGamma, if tokens.router_shift.is_some() { seen.shift.exp() } else { 0.0 }),
        ] {
            self.add(sum, value);
        }
        self.raise(Sum::MaxRatio, ratio);
        self.raise(Sum::MaxNegativeRatio, -ratio);
        self.raise(Sum::MaxWeight, seen.weight);
        self.raise(Sum::MaxNegativeWeight, -seen.weight);
        self.logprob(seen.current);
        if tokens.old_logprobs.as_ref().is_some_and(|old| old[u] != 0.0) {
            self.logprob(seen.old);
        }
        if !config.variant.is_sequence_level() {
            self.saturation(config.saturation, delta);
        }
    }

    /// A log-probability, which came as f32.
    fn logprob(&mut self, logprob: f64) {
        let bits = (logprob as f32).to_bits();
        self.add(Sum::LogprobsSeen, f64::from(logprob != 0.0));
        self.add(Sum::Bf16Looking, f64::from(logprob != 0.0 && bits & 0xffff == 0));
        self.add(Sum::PositiveLogprobs, f64::from(logprob > 0.0));
    }

    fn saturation(&mut self, saturation: Saturation, x: f64) {
        self.add(Sum::SaturatedHigh, f64::from(x > f64::from(saturation.high)));
        self.add(Sum::SaturatedLow, f64::from(x < f64::from(saturation.low)));
    }

    /// What a sound token came to.
    pub(super) fn applied(&mut self, config: &Config, token: &Token, made: &Applied, segment: &Coefficient) {
        let variant = &config.variant;
        if !variant.is_sequence_level() {
            for (bit, sum) in
                [(flag::ABOVE, Sum::ClippedHigh), (flag::BELOW, Sum::ClippedLow), (flag::CAPPED, Sum::Capped)]
            {
                self.add(sum, f64::from(made.clipped & bit != 0));
            }
        }
        if !variant.is_valued_by_segment() {
            self.add(Sum::Pull, made.policy.pull);
            self.add(Sum::Outside, f64::from(made.policy.flags & (flag::ABOVE | flag::BELOW) != 0));
        }
        let [kl, mismatch, entropy] = made.terms;
        for (sum, value) in [(Sum::KlLoss, kl), (Sum::MismatchLoss, mismatch), (Sum::EntropyLoss, entropy)] {
            self.add(sum, times(value, segment.scale));
        }
        if config.entropy_bonus != 0.0 {
            self.add(Sum::Entropy, token.entropy);
        }
        if config.kl.is_some() {
            self.add(Sum::RefKlK1, -token.to_ref);
            self.add(Sum::RefKlK3, token.to_ref.exp_m1() - token.to_ref);
        }
        if config.uses_rollout() {
            self.add(Sum::RolloutEntropy, -saturate(config.saturation, token.from_rollout).exp() * token.current);
        }
    }

    pub(super) fn segment(&mut self, config: &Config, sums: &Sums, made: &Coefficient, with_ratio: bool) {
        if made.flags & flag::EMPTY != 0 {
            return self.add(Sum::EmptySegments, 1.0);
        }
        let sequence = config.variant.is_sequence_level();
        self.add(Sum::Segments, 1.0);
        self.add(Sum::DroppedSegments, f64::from(made.flags & flag::DROPPED != 0));
        if !with_ratio {
            return;
        }
        self.add(Sum::SequenceRatio, made.sequence_ratio);
        self.raise(Sum::MaxSequenceRatio, made.sequence_ratio);
        self.raise(Sum::MaxNegativeSequenceRatio, -made.sequence_ratio);
        let flags = sequence_clipped(made.flags, sums);
        for (bit, of_segments, of_tokens) in [
            (flag::ABOVE, Sum::SequenceClippedHigh, Sum::ClippedHigh),
            (flag::BELOW, Sum::SequenceClippedLow, Sum::ClippedLow),
            (flag::CAPPED, Sum::SequenceCapped, Sum::Capped),
        ] {
            if flags & bit != 0 {
                self.add(of_segments, 1.0);
                self.add(of_tokens, if sequence { sums.count } else { 0.0 });
            }
        }
        if sequence {
            self.saturation(config.saturation, sums.log_ratio / sums.count);
        }
    }
}

/// The bits 1, 2, 4 of a segment, by the signs of S⁺ and S⁻.
pub(super) fn sequence_clipped(flags: u32, sums: &Sums) -> u32 {
    clipped(flags, sums.positive) | clipped(flags, sums.negative)
}
