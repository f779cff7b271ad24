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
    /// Σ s, and segments as above by s; of variants that need no s (of tokens, GMPO, VESPO) only where a sequence output is asked for
    SequenceRatio,
    SequenceClippedHigh,
    SequenceClippedLow,
    SequenceCapped,
    /// the loss, and what of it the divergence, the mismatch penalty and the entropy bonus are
    Loss,
    KlLoss,
    MismatchLoss,
    EntropyLoss,
    /// Σ H, Σ l − r, Σ k3 of r − l, Σ −exp(l − q) l, where the configuration has the term that reads them
    Entropy,
    RefKlK1,
    RefKlK3,
    RolloutEntropy,
    /// Σ of what multiplies −A in the gradient of the policy's term, and tokens whose ratio is outside the window on either side; of variants
    /// in which a token decides
    Pull,
    Outside,
    /// Σ exp(router_shift), where there is one
    RouterGamma,
    /// counted tokens that were rejected
    RejectedTokens,
    /// l and o that are not 0, and those among them that bf16 could hold
    LogprobsSeen,
    Bf16Looking,
    /// l and o above 0
    PositiveLogprobs,
    /// max ρ, max −ρ, max s, max −s, max w, max −w
    MaxRatio,
    MaxNegativeRatio,
    MaxSequenceRatio,
    MaxNegativeSequenceRatio,
    MaxWeight,
    MaxNegativeWeight,
}

/// The entries of [`Sum`] that are sums.
pub const SUMS: usize = Sum::MaxRatio as usize;
/// The entries of [`Sum`] that are maxima.
pub const MAXIMA: usize = Sum::MaxNegativeWeight as usize + 1 - SUMS;
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

/// Raw weights of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Weights {
    /// Mean.
    pub mean: f64,
    /// Standard deviation around it.
    pub std: f64,
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
    /// The loss.
    pub loss: f64,
    /// What of it is not the three next ones.
    pub policy_loss: f64,
    /// The divergence from the reference policy, with c and β.
    pub kl_loss: f64,
    /// The mismatch penalty, with c and κ.
    pub mismatch_loss: f64,
    /// The entropy bonus, with −c and η.
    pub entropy_loss: f64,
    /// Mean H; `None` without an entropy bonus.
    pub entropy: Option<f64>,
    /// Mean of l − r; `None` without a divergence.
    pub ref_kl_k1: Option<f64>,
    /// Mean of k3; `None` without a divergence.
    pub ref_kl_k3: Option<f64>,
    /// Mean of −exp(l − q) l: the entropy, estimated from the rollout's tokens (NeMo-RL). `None` where no term reads q.
    pub approx_entropy: Option<f64>,
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
    /// Mean of what multiplies −A in a token's gradient: the clamped ratio of CISPO, the weight of SAPO, φ of VESPO, ρ inside the window of
    /// PPO. `None` where segments decide, or tokens are weighted by no ratio.
    pub pull: Option<f64>,
    /// Tokens whose ratio is outside the window or clamp, whatever the sign of A (verl's `cispo_clamped`); as `pull`.
    pub outside_fraction: Option<f64>,
    /// Mean of γ = exp(router_shift); `None` without it.
    pub router_gamma: Option<f64>,
    /// Counted tokens that were rejected.
    pub rejected_tokens: u64,
    /// The share of log-probabilities other than 0 that bf16 could hold: about 1 where a trainer has rounded them, which drowns the ratio
    /// of a segment.
    pub bf16_looking: Option<f64>,
    /// Log-probabilities above 0. Up to 1e-3 is what rounding can do; what is larger is a fault.
    pub positive_logprobs: u64,
    /// Token weights as they were given.
    pub weight: Option<Weights>,
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
        let beside = at(Sum::KlLoss) + at(Sum::MismatchLoss) + at(Sum::EntropyLoss);
        // A sum of exactly 0 over tokens is one that was not formed: every term of these is positive, or the array is all zeros.
        let formed = |sum: Sum, holds: bool| over(at(sum), finite).filter(|_| holds);
        let has_ref = at(Sum::RefKlK1) != 0.0 || at(Sum::RefKlK3) != 0.0;
        let with_sequence = at(Sum::MaxSequenceRatio) > f64::NEG_INFINITY || at(Sum::MaxSequenceRatio).is_nan();
        Some(Diagnostics {
            tokens: count(Sum::Tokens),
            segments: count(Sum::Segments),
            empty_segments: count(Sum::EmptySegments),
            nonfinite_tokens: count(Sum::NonFiniteTokens),
            dropped_segments: count(Sum::DroppedSegments),
            loss: at(Sum::Loss),
            policy_loss: at(Sum::Loss) - beside,
            kl_loss: at(Sum::KlLoss),
            mismatch_loss: at(Sum::MismatchLoss),
            entropy_loss: at(Sum::EntropyLoss),
            entropy: formed(Sum::Entropy, at(Sum::Entropy) != 0.0),
            ref_kl_k1: formed(Sum::RefKlK1, has_ref),
            ref_kl_k3: formed(Sum::RefKlK3, has_ref),
            approx_entropy: formed(Sum::RolloutEntropy, at(Sum::RolloutEntropy) != 0.0),
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
            pull: formed(Sum::Pull, at(Sum::Pull) != 0.0),
            outside_fraction: formed(Sum::Outside, at(Sum::Pull) != 0.0),
            router_gamma: formed(Sum::RouterGamma, at(Sum::RouterGamma) != 0.0),
            rejected_tokens: count(Sum::RejectedTokens),
            bf16_looking: over(at(Sum::Bf16Looking), at(Sum::LogprobsSeen)),
            positive_logprobs: count(Sum::PositiveLogprobs),
            weight: over(at(Sum::Weight), finite).map(|mean| Weights {
                mean,
                std: (at(Sum::WeightSquared) / finite - mean * mean).max(0.0).sqrt(),
                min: -at(Sum::MaxNegativeWeight),
                max: at(Sum::MaxWeight),
            }),
            ess,
            ess_fraction: ess.and_then(|ess| over(ess, finite)),
        })
    }
}
