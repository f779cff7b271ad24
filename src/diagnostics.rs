//! Statistics that explain a loss, from sums that ranks and calls can add up.

/// The sums of [`Output::diagnostics`](crate::objective::Output::diagnostics), by place. The first [`SUMS`] are added up over calls and
/// ranks, the others are maxima; a maximum over nothing is −∞. Token statistics are over counted tokens with finite inputs, segment
/// statistics over segments with a counted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
#[allow(missing_docs)] // one line says it for several
pub enum Sum {
    /// Σ m
    Tokens,
    /// counted tokens with NaN or ±∞ among their own inputs
    NonFiniteTokens,
    /// Σ −Δ, Σ Δ²/2, Σ expm1(Δ) − Δ
    PolicyKlK1,
    PolicyKlK2,
    PolicyKlK3,
    /// Σ ρ, Σ ρ² with ρ saturated
    Ratio,
    RatioSquared,
    /// Σ w, Σ w²
    Weight,
    WeightSquared,
    /// ratios (of tokens for a token variant, else of segments) above and below the saturation
    SaturatedHigh,
    SaturatedLow,
    /// counted tokens whose gradient the window stops from above, from below, or the cap; for a sequence variant: n of such segments
    ClippedHigh,
    ClippedLow,
    Capped,
    /// segments with n > 0, with n = 0, dropped for a token that is not finite
    Segments,
    EmptySegments,
    DroppedSegments,
    /// Σ s, and segments as above by s; for a token variant only where a sequence output is asked for
    SequenceRatio,
    SequenceClippedHigh,
    SequenceClippedLow,
    SequenceCapped,
    /// max ρ, max −ρ, max s, max −s
    MaxRatio,
    MaxNegativeRatio,
    MaxSequenceRatio,
    MaxNegativeSequenceRatio,
}

/// The entries of [`Sum`] that are sums.
pub const SUMS: usize = Sum::MaxRatio as usize;
/// The entries of [`Sum`] that are maxima.
pub const MAXIMA: usize = Sum::MaxNegativeSequenceRatio as usize + 1 - SUMS;
/// The length of the vector.
pub const LEN: usize = SUMS + MAXIMA;

/// Mean and range of a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// Fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClipFraction {
    /// A > 0 and the ratio above 1 + εh (or above a smaller δ).
    pub high: f64,
    /// A < 0 and the ratio below 1 − εl.
    pub low: f64,
    /// A < 0 and the ratio above the cap.
    pub capped: f64,
    /// The first two together.
    pub any: f64,
}

/// What a call, or all calls and ranks whose sums were added up, did. A mean over nothing is `None`.
///
/// GSPO clips far more tokens than GRPO by design (2507.18071): a large `clip_fraction` there is no fault.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Diagnostics {
    /// Tokens that count.
    pub tokens: u64,
    /// Segments with such a token.
    pub segments: u64,
    /// Segments without one.
    pub empty_segments: u64,
    /// Counted tokens with NaN or ±∞ among their inputs.
    pub nonfinite_tokens: u64,
    /// Segments left out for that reason.
    pub dropped_segments: u64,
    /// Ratios above the saturation.
    pub saturated_high: u64,
    /// Ratios below the saturation.
    pub saturated_low: u64,
    /// Mean of −Δ.
    pub policy_kl_k1: Option<f64>,
    /// Mean of Δ²/2.
    pub policy_kl_k2: Option<f64>,
    /// Mean of expm1(Δ) − Δ.
    pub policy_kl_k3: Option<f64>,
    /// ρ of tokens.
    pub ratio: Option<Spread>,
    /// s of segments; `None` where the call did not form it.
    pub sequence_ratio: Option<Spread>,
    /// Of tokens.
    pub clip_fraction: Option<ClipFraction>,
    /// Of segments, by s; `None` where the call did not form it.
    pub sequence_clip_fraction: Option<ClipFraction>,
    /// (Σw)²/Σw² of the token weights: how many tokens the weighted ones are worth.
    pub ess: Option<f64>,
    /// The same, divided by the tokens.
    pub ess_fraction: Option<f64>,
}

impl Diagnostics {
    /// From the sums of a call; `None` unless there are [`LEN`] of them.
    pub fn from_sums(sums: &[f64]) -> Option<Diagnostics> {
        let sums: &[f64; LEN] = sums.try_into().ok()?;
        let at = |sum: Sum| sums[sum as usize];
        let count = |sum: Sum| at(sum) as u64;
        let finite = at(Sum::Tokens) - at(Sum::NonFiniteTokens);
        let over = |value: f64, count: f64| (count > 0.0).then(|| value / count);
        let spread = |total: Sum, count: f64, max: Sum, negative: Sum| {
            (count > 0.0).then(|| Spread { mean: at(total) / count, min: -at(negative), max: at(max) })
        };
        let fractions = |count: f64, high: Sum, low: Sum, capped: Sum| {
            (count > 0.0).then(|| ClipFraction {
                high: at(high) / count,
                low: at(low) / count,
                capped: at(capped) / count,
                any: (at(high) + at(low)) / count,
            })
        };
        let ess = over(at(Sum::Weight) * at(Sum::Weight), at(Sum::WeightSquared));
        let segments = at(Sum::Segments);
        let with_sequence = at(Sum::MaxSequenceRatio) > f64::NEG_INFINITY || at(Sum::MaxSequenceRatio).is_nan();
        Some(Diagnostics {
            tokens: count(Sum::Tokens),
            segments: count(Sum::Segments),
            empty_segments: count(Sum::EmptySegments),
            nonfinite_tokens: count(Sum::NonFiniteTokens),
            dropped_segments: count(Sum::DroppedSegments),
            saturated_high: count(Sum::SaturatedHigh),
            saturated_low: count(Sum::SaturatedLow),
            policy_kl_k1: over(at(Sum::PolicyKlK1), finite),
            policy_kl_k2: over(at(Sum::PolicyKlK2), finite),
            policy_kl_k3: over(at(Sum::PolicyKlK3), finite),
            ratio: spread(Sum::Ratio, finite, Sum::MaxRatio, Sum::MaxNegativeRatio),
            sequence_ratio: spread(Sum::SequenceRatio, segments, Sum::MaxSequenceRatio, Sum::MaxNegativeSequenceRatio),
            clip_fraction: fractions(at(Sum::Tokens), Sum::ClippedHigh, Sum::ClippedLow, Sum::Capped),
            sequence_clip_fraction: with_sequence
                .then(|| fractions(segments, Sum::SequenceClippedHigh, Sum::SequenceClippedLow, Sum::SequenceCapped))
                .flatten(),
            ess,
            ess_fraction: ess.and_then(|ess| over(ess, finite)),
        })
    }
}
