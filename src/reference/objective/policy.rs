//! The policy's term of a token, by variant.

use super::{
    Bounds, Coefficient, Config, Rates, Token, Variant, flag, is_inside, passes, saturate, times, with_passes,
};
use crate::objective::{Divergence, Dppo};

/// The policy's term of one token, without c, W and w.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Policy {
    /// L; 0 where the segment's sums had it.
    pub(super) value: f64,
    /// dL/dl.
    pub(super) slope: f64,
    /// What multiplies −A in it.
    pub(super) pull: f64,
    /// Where the ratio lies, for either sign of A.
    pub(super) flags: u32,
}

pub(super) fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// 4p(1 − p) for p = σ(z).
pub(super) fn sigmoid_slope(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    4.0 * e / ((1.0 + e) * (1.0 + e))
}

/// −A pull l, the pull being a constant.
fn surrogate(token: &Token, pull: f64, flags: u32) -> Policy {
    let slope = -token.advantage * pull;
    Policy { value: slope * token.current, slope, pull, flags }
}

/// The largest f32 below 1.
const BELOW_ONE: f64 = 1.0 - 1.0 / 16_777_216.0;

/// KL of the coins p₀ and p.
fn binary_divergence(epsilon: f64, token: &Token, now: f64, before: f64) -> f64 {
    if epsilon > 0.0 {
        let ratio = |a: f64, b: f64| ((a + epsilon) / (b + epsilon)).ln();
        return before * ratio(before, now) + (1.0 - before) * ratio(1.0 - before, 1.0 - now);
    }
    let complement = |p: f64| (-p.min(BELOW_ONE)).ln_1p();
    before * (token.old - token.current) + (1.0 - before) * (complement(before) - complement(now))
}

fn flags_if(above: bool, below: bool) -> u32 {
    (if above { flag::ABOVE } else { 0 }) | if below { flag::BELOW } else { 0 }
}

/// Where the token lies in DPPO's trust region.
fn trust_flags(dppo: &Dppo, token: &Token) -> u32 {
    let (now, before) = (token.current.exp(), token.old.exp());
    match dppo.divergence {
        Divergence::TotalVariation => flags_if(now - before > dppo.high, before - now > dppo.low),
        Divergence::Kl { epsilon } => {
            let moved = binary_divergence(epsilon, token, now, before);
            flags_if(moved > dppo.high && now > before, moved > dppo.low && now < before)
        }
    }
}

/// A counted token that is sound.
pub(super) fn policy_of(config: &Config, segment: &Coefficient, token: &Token, ratio: f64) -> Policy {
    let (bounds, rates) = (Bounds::of(&config.variant), Rates::of(&config.variant));
    let (a, delta) = (token.advantage, token.delta);
    let inside = is_inside(config.saturation, delta);
    let window = bounds.flags(delta, 1.0);
    let gate = |flags: u32, pull: f64| if passes(flags, a) { pull } else { 0.0 };
    match config.variant {
        Variant::PpoClip(_) => {
            let flags = with_passes(window, inside);
            let bounded = if a > 0.0 { bounds.positive(ratio) } else { bounds.negative(ratio) };
            let pull = gate(flags, ratio);
            Policy { value: times(-a, bounded), slope: -a * pull, pull, flags }
        }
        Variant::GspoToken(_) => {
            let pull = if segment.ratio.is_nan() { f64::NAN } else { gate(segment.flags, segment.ratio) };
            Policy { value: 0.0, slope: -a * pull, pull, flags: segment.flags }
        }
        Variant::Cispo(cispo) => {
            let (flags, pull) = if config.variant.is_sequence_level() {
                (segment.flags, segment.ratio)
            } else {
                (with_passes(window, true), ratio.max(bounds.lower).min(bounds.upper))
            };
            surrogate(token, if cispo.unified_mask.is_some() { gate(flags, pull) } else { pull }, flags)
        }
        Variant::Vespo(_) => surrogate(token, if a >= 0.0 { segment.ratio } else { segment.gradient }, 0),
        Variant::Sapo(_) if !config.variant.is_sequence_level() => {
            let tau = if a > 0.0 { rates.positive } else { rates.negative };
            let z = tau * (ratio - 1.0);
            let pull = if inside { times(sigmoid_slope(z), ratio) } else { 0.0 };
            Policy { value: -a * 4.0 / tau * sigmoid(z), slope: -a * pull, pull, flags: 0 }
        }
        Variant::Dppo(dppo) => {
            let flags = with_passes(trust_flags(&dppo, token), true);
            surrogate(token, gate(flags, ratio.min(dppo.cap)), flags)
        }
        Variant::MiniRl(_) => {
            let flags = with_passes(window, true);
            surrogate(token, gate(flags, saturate(config.saturation, token.from_rollout).exp()), flags)
        }
        Variant::Topr => {
            surrogate(token, if a > 0.0 { 1.0 } else { ratio.min(1.0) }, if ratio > 1.0 { flag::CAPPED } else { 0 })
        }
        Variant::TisLoss => surrogate(token, ratio.min(1.0), if ratio > 1.0 { flag::ABOVE | flag::CAPPED } else { 0 }),
        Variant::Gpg | Variant::ReinforceIs | Variant::SnisAttached => surrogate(token, 1.0, 0),
        Variant::SquarePenalty { tau } => {
            let plain = surrogate(token, 1.0, 0);
            Policy { value: plain.value + tau / 2.0 * delta * delta, slope: plain.slope + tau * delta, ..plain }
        }
        Variant::KlCov { penalty } => {
            let pull = if inside { ratio } else { 0.0 };
            let (far, side) = if token.is_chosen { (delta.abs(), sign(delta)) } else { (0.0, 0.0) };
            Policy { value: times(-a, ratio) + penalty * far, slope: times(-a, pull) + penalty * side, pull, flags: 0 }
        }
        Variant::Gmpo(_) => {
            let flags = with_passes(window, true);
            Policy { value: 0.0, slope: 0.0, pull: gate(flags, segment.ratio), flags }
        }
        Variant::Gspo(_) | Variant::Sapo(_) => Policy { flags: segment.flags, ..Policy::default() },
    }
}

/// −1, 0 or 1.
pub(super) fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}
