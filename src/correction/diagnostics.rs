//! Statistics of the mismatch and of the weights, from sums that ranks and calls can add up.

use crate::abi::*;

/// The length of the vector of [`Output::diagnostics`](super::Output::diagnostics): 32 places of tokens, made by `partial`, then 32 of segments,
/// made by `finish`.
pub const LEN: usize = 2 * HALF;
const HALF: usize = MOERL_TALLY_PLACES as usize;

/// True for the places that are maxima; the others are added up over calls and ranks.
pub fn is_maximum(place: usize) -> bool {
    let maxima = [
        MOERL_CORRECTION_MAX_LOG_RATIO,
        MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO,
        MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT,
        MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT,
        MOERL_CORRECTION_MAX_LOG_PPL_DIFF,
        MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF,
    ];
    let at = (place % HALF) as u32;
    if place < HALF { maxima[..2].contains(&at) } else { maxima[2..].contains(&at) }
}

/// Mean, deviation and range, and the fractions outside the configured bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WeightSpread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation: of tokens `√(E[w²] − E[w]²)`, of segments with one less in the divisor.
    pub std: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Fraction above the upper bound.
    pub above: f64,
    /// Fraction below the lower bound; for truncated weights below 1/C.
    pub below: f64,
}

/// What a call, or all calls and ranks whose sums were added up, found. A mean over nothing is `None`. δ = o − q with its offsets.
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
    /// Tokens with δ above and below the saturation.
    pub saturated_high: u64,
    /// Tokens with δ below the saturation.
    pub saturated_low: u64,
    /// Tokens with exp δ outside [`Config::catastrophic`](super::Config::catastrophic).
    pub catastrophic_tokens: u64,
    /// Segments with such a token.
    pub catastrophic_segments: u64,
    /// Tokens that are kept.
    pub kept_tokens: u64,
    /// Segments with a token that is kept.
    pub kept_segments: u64,
    /// Mean of q − o.
    pub mismatch_k1: Option<f64>,
    /// Mean of expm1(δ) − δ.
    pub mismatch_k3: Option<f64>,
    /// The same over rejected tokens.
    pub masked_mismatch_k3: Option<f64>,
    /// The same over kept ones.
    pub unmasked_mismatch_k3: Option<f64>,
    /// Mean of exp|δ| (NeMo-RL).
    pub token_mult_prob_error: Option<f64>,
    /// Mean of ½(f(o−M) + f(q−M)), f(x) = expm1(x) − x, M = LSE(o, q) − ln 2 (NeMo-RL).
    pub js_divergence: Option<f64>,
    /// Mean over segments of exp(−mean o).
    pub ppl_old: Option<f64>,
    /// Mean over segments of exp(−mean q).
    pub ppl_rollout: Option<f64>,
    /// Mean over segments of −mean o.
    pub log_ppl_old: Option<f64>,
    /// Mean over segments of −mean q.
    pub log_ppl_rollout: Option<f64>,
    /// Mean over segments of mean q − mean o.
    pub log_ppl_diff: Option<f64>,
    /// Mean of its absolute value.
    pub log_ppl_abs_diff: Option<f64>,
    /// Its largest value.
    pub log_ppl_diff_max: Option<f64>,
    /// Its smallest value.
    pub log_ppl_diff_min: Option<f64>,
    /// Mean of its exponential.
    pub ppl_ratio: Option<f64>,
    /// Mean of e^2δ, less 1; δ saturated.
    pub chi2_token: Option<f64>,
    /// Mean over segments of exp(2 Σ δ), less 1; Σ δ saturated.
    pub chi2_seq: Option<f64>,
    /// The same with the mean of δ.
    pub chi2_geo: Option<f64>,
    /// Mean of the weights as used, before the batch normalises them, over tokens; of tokens' own weights before their segment may set them to 0.
    pub weight_used_mean: Option<f64>,
    /// Their standard deviation.
    pub weight_used_std: Option<f64>,
    /// (Σw)²/Σw² over tokens: how many they are worth.
    pub ess: Option<f64>,
    /// The same, divided by the tokens.
    pub ess_fraction: Option<f64>,
    /// (ΣW)²/ΣW² over segments, for weights of segments.
    pub ess_segments: Option<f64>,
    /// Σ over groups of a group's (ΣW)²/ΣW², divided by the segments.
    pub ess_group_fraction: Option<f64>,
    /// exp δ of tokens, saturated.
    pub weight: Option<WeightSpread>,
    /// The mean weight of each segment's tokens, as used; the fractions are of the mean raw weight, or of X for weights of segments.
    pub weight_seq: Option<WeightSpread>,
    /// max |w − 1| of those.
    pub weight_seq_max_abs_dev: Option<f64>,
    /// Segments that the Metropolis test accepted, divided by all.
    pub acceptance_rate: Option<f64>,
}

impl Diagnostics {
    /// From the sums of a call; `None` unless there are [`LEN`] of them. `count_empty`: segments without a counted token enter the
    /// perplexities as 1, the sequence statistics as X = 0, and the weights of segments as 0 (verl).
    pub fn from_sums(sums: &[f64], count_empty: bool) -> Option<Diagnostics> {
        let sums: &[f64; LEN] = sums.try_into().ok()?;
        let token = |place: u32| sums[place as usize];
        let segment = |place: u32| sums[HALF + place as usize];
        let over = |value: f64, count: f64| (count > 0.0).then(|| value / count);

        let (tokens, finite) =
            (token(MOERL_CORRECTION_TOKENS), token(MOERL_CORRECTION_TOKENS) - token(MOERL_CORRECTION_TOKENS_NONFINITE));
        let counted = segment(MOERL_CORRECTION_SEGMENTS);
        let empty = if count_empty { segment(MOERL_CORRECTION_EMPTY_SEGMENTS) } else { 0.0 };
        let segments = counted + empty;
        // An empty segment has X = 0: 1 in what is an exponential, 0 in what is a logarithm or a weight.
        let exponential = |place: u32| over(segment(place) + empty, segments);
        let logarithm = |place: u32| over(segment(place), segments);
        let with_zero = |value: f64| if empty > 0.0 { value.max(0.0) } else { value };

        // Weights of tokens were added up by tokens, others by segments.
        let used = token(MOERL_CORRECTION_TOKEN_WEIGHTS) + segment(MOERL_CORRECTION_SPREAD_WEIGHTS);
        let used_squared =
            token(MOERL_CORRECTION_TOKEN_WEIGHTS_SQUARED) + segment(MOERL_CORRECTION_SPREAD_WEIGHTS_SQUARED);
        let ess = over(used * used, used_squared);
        let (weights, weights_squared) = (segment(MOERL_CORRECTION_WEIGHTS), segment(MOERL_CORRECTION_WEIGHTS_SQUARED));
        let deviation = |mean: f64, square: f64| (square - mean * mean).max(0.0).sqrt();
        let kept_k3 = segment(MOERL_CORRECTION_SUM_KEPT_K3);
        let kept = segment(MOERL_CORRECTION_KEPT_TOKENS);
        let log_diff = |value: f64| (segments > 0.0).then(|| with_zero(value));
        let diff_max = log_diff(segment(MOERL_CORRECTION_MAX_LOG_PPL_DIFF));
        let diff_min = log_diff(segment(MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF)).map(|x| 0.0 - x);
        let sequence_weights = sequence_spread(&segment, segments, empty);
        Some(Diagnostics {
            tokens: tokens as u64,
            segments: counted as u64,
            empty_segments: segment(MOERL_CORRECTION_EMPTY_SEGMENTS) as u64,
            nonfinite_tokens: token(MOERL_CORRECTION_TOKENS_NONFINITE) as u64,
            dropped_segments: segment(MOERL_CORRECTION_DROPPED_SEGMENTS) as u64,
            saturated_high: token(MOERL_CORRECTION_TOKENS_SATURATED_HIGH) as u64,
            saturated_low: token(MOERL_CORRECTION_TOKENS_SATURATED_LOW) as u64,
            catastrophic_tokens: token(MOERL_CORRECTION_TOKENS_CATASTROPHIC) as u64,
            catastrophic_segments: segment(MOERL_CORRECTION_SEGMENTS_CATASTROPHIC) as u64,
            kept_tokens: kept as u64,
            kept_segments: segment(MOERL_CORRECTION_KEPT_SEGMENTS) as u64,
            mismatch_k1: over(token(MOERL_CORRECTION_MISMATCH_K1), finite),
            mismatch_k3: over(token(MOERL_CORRECTION_MISMATCH_K3), finite),
            masked_mismatch_k3: over(token(MOERL_CORRECTION_MISMATCH_K3) - kept_k3, finite - kept),
            unmasked_mismatch_k3: over(kept_k3, kept),
            token_mult_prob_error: over(token(MOERL_CORRECTION_PROBABILITY_ERROR), finite),
            js_divergence: over(token(MOERL_CORRECTION_JENSEN_SHANNON), finite),
            ppl_old: exponential(MOERL_CORRECTION_PPL_OLD),
            ppl_rollout: exponential(MOERL_CORRECTION_PPL_ROLLOUT),
            log_ppl_old: over(
                segment(MOERL_CORRECTION_LOG_PPL_ROLLOUT) + segment(MOERL_CORRECTION_LOG_PPL_DIFF),
                segments,
            ),
            log_ppl_rollout: logarithm(MOERL_CORRECTION_LOG_PPL_ROLLOUT),
            log_ppl_diff: logarithm(MOERL_CORRECTION_LOG_PPL_DIFF),
            log_ppl_abs_diff: logarithm(MOERL_CORRECTION_LOG_PPL_ABS_DIFF),
            log_ppl_diff_max: diff_max,
            log_ppl_diff_min: diff_min,
            ppl_ratio: exponential(MOERL_CORRECTION_PPL_RATIO),
            chi2_token: over(token(MOERL_CORRECTION_TOKEN_CHI2), finite).map(|x| x - 1.0),
            chi2_seq: exponential(MOERL_CORRECTION_SEQUENCE_CHI2).map(|x| x - 1.0),
            chi2_geo: exponential(MOERL_CORRECTION_GEOMETRIC_CHI2).map(|x| x - 1.0),
            weight_used_mean: over(used, tokens),
            weight_used_std: (tokens > 0.0).then(|| deviation(used / tokens, used_squared / tokens)),
            ess,
            ess_fraction: ess.and_then(|ess| over(ess, tokens)),
            ess_segments: over(weights * weights, weights_squared),
            ess_group_fraction: over(segment(MOERL_CORRECTION_GROUP_ESS), counted).filter(|&fraction| fraction > 0.0),
            weight: (finite > 0.0).then(|| {
                let mean = token(MOERL_CORRECTION_TOKEN_RAW) / finite;
                WeightSpread {
                    mean,
                    std: deviation(mean, token(MOERL_CORRECTION_TOKEN_RAW_SQUARED) / finite),
                    min: (-token(MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO)).exp(),
                    max: token(MOERL_CORRECTION_MAX_LOG_RATIO).exp(),
                    above: token(MOERL_CORRECTION_TOKENS_ABOVE) / finite,
                    below: token(MOERL_CORRECTION_TOKENS_BELOW) / finite,
                }
            }),
            weight_seq: sequence_weights,
            weight_seq_max_abs_dev: sequence_weights
                .map(|spread| (spread.max - 1.0).abs().max((spread.min - 1.0).abs())),
            acceptance_rate: over(segment(MOERL_CORRECTION_ACCEPTED), counted),
        })
    }
}

fn sequence_spread(segment: &impl Fn(u32) -> f64, segments: f64, empty: f64) -> Option<WeightSpread> {
    let (sum, squares) =
        (segment(MOERL_CORRECTION_SEQUENCE_WEIGHTS), segment(MOERL_CORRECTION_SEQUENCE_WEIGHTS_SQUARED));
    let (max, min) =
        (segment(MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT), -segment(MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT));
    (segments > 0.0).then(|| {
        let mean = sum / segments;
        let variance = (squares - segments * mean * mean) / (segments - 1.0);
        WeightSpread {
            mean,
            std: if segments > 1.0 { variance.max(0.0).sqrt() } else { 0.0 },
            min: if empty > 0.0 { min.min(0.0) } else { min },
            max: if empty > 0.0 { max.max(0.0) } else { max },
            above: segment(MOERL_CORRECTION_SEQUENCES_ABOVE) / segments,
            below: segment(MOERL_CORRECTION_SEQUENCES_BELOW) / segments,
        }
    })
}
