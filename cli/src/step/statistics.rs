//! What a person asks about an update, from log-probabilities on the host: divergences, ratios, effective sample sizes.
//!
//! Plain f64 sums over counted tokens in ascending order. A mean over nothing is absent, never NaN.

use serde_json::{Value, json};

/// The log-probabilities of a step, each `[N]`.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// 1 where a token counts.
    pub mask: &'a [u8],
    /// Packed offsets, `[S+1]`.
    pub offsets: &'a [i64],
    /// Under the current policy.
    pub logprobs: &'a [f32],
    /// Under the policy that ratios are taken against, if the file has it.
    pub anchor: Option<&'a [f32]>,
    /// Under the old policy.
    pub old: Option<&'a [f32]>,
    /// Under the rollout engine.
    pub rollout: Option<&'a [f32]>,
    /// Under the reference policy.
    pub reference: Option<&'a [f32]>,
}

/// A smallest and a largest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// Two estimates of a divergence, in nats a token: the mean log-ratio, and the one that is never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// mean(−Δ)
    pub k1: f64,
    /// mean(expm1(Δ) − Δ)
    pub k3: f64,
}

/// (Σw)² / (n·Σw²) of importance weights, between 1/n and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSize {
    /// Over tokens.
    pub tokens: f64,
    /// Over segments, each weight being the product of its tokens'.
    pub segments: f64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Counted tokens.
    pub tokens: u64,
    /// Segments with a counted token.
    pub segments: u64,
    /// exp(current − anchor), by token.
    pub ratio: Option<Range>,
    /// exp of the mean of current − anchor, by segment.
    pub sequence_ratio: Option<Range>,
    /// KL(old ‖ current), with Δ = current − old.
    pub policy_kl: Option<Divergence>,
    /// KL(current ‖ reference), with Δ = reference − current.
    pub reference_kl: Option<Divergence>,
    /// KL(rollout ‖ old), with Δ = old − rollout (current − rollout where there is no old).
    pub mismatch_kl: Option<Divergence>,
    /// Of the weights old / rollout (current / rollout where there is no old).
    pub sample_size: Option<SampleSize>,
}

impl Statistics {
    /// Computes them.
    pub fn of(inputs: &Inputs<'_>) -> Statistics {
        let counted = |u: &usize| inputs.mask[*u] != 0;
        let tokens = (0..inputs.mask.len()).filter(counted).count() as u64;
        let segments = || inputs.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
        let nonempty = segments().filter(|range| range.clone().any(|u| counted(&u))).count() as u64;
        let mut statistics = Statistics { tokens, segments: nonempty, ..Statistics::default() };

        let between = |to: Option<&[f32]>, from: Option<&[f32]>| -> Option<Vec<f64>> {
            let (to, from) = to.zip(from)?;
            Some(to.iter().zip(from).map(|(&to, &from)| f64::from(to) - f64::from(from)).collect())
        };
        let current = Some(inputs.logprobs);
        if let Some(delta) = between(current, inputs.anchor) {
            statistics.ratio = range((0..delta.len()).filter(counted).map(|u| delta[u].exp()));
            statistics.sequence_ratio = range(segments().filter_map(|range| {
                let of: Vec<f64> = range.filter(counted).map(|u| delta[u]).collect();
                (!of.is_empty()).then(|| (of.iter().sum::<f64>() / of.len() as f64).exp())
            }));
        }
        let divergence = |delta: Vec<f64>| divergence((0..delta.len()).filter(counted).map(|u| delta[u]));
        statistics.policy_kl = between(current, inputs.old).and_then(divergence);
        statistics.reference_kl = between(inputs.reference, current).and_then(divergence);
        if let Some(delta) = between(inputs.old.or(current), inputs.rollout) {
            let by_segment = segments()
                .filter(|range| range.clone().any(|u| counted(&u)))
                .map(|range| range.filter(counted).map(|u| delta[u]).sum::<f64>());
            let tokens = sample_size((0..delta.len()).filter(counted).map(|u| delta[u]));
            let of_segments = sample_size(by_segment);
            statistics.sample_size = tokens.zip(of_segments).map(|(tokens, segments)| SampleSize { tokens, segments });
            statistics.mismatch_kl = divergence(delta);
        }
        statistics
    }

    /// As JSON, with `null` for what is absent.
    pub fn to_json(&self) -> Value {
        let range = |range: Option<Range>| range.map(|r| json!({"min": r.min, "max": r.max}));
        let kl = |kl: Option<Divergence>| kl.map(|kl| json!({"k1": kl.k1, "k3": kl.k3}));
        json!({
            "tokens": self.tokens,
            "segments": self.segments,
            "ratio": range(self.ratio),
            "sequence_ratio": range(self.sequence_ratio),
            "policy_kl": kl(self.policy_kl),
            "reference_kl": kl(self.reference_kl),
            "mismatch_kl": kl(self.mismatch_kl),
            "effective_sample_size": self.sample_size.map(|s| json!({"tokens": s.tokens, "segments": s.segments})),
        })
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<Range> {
    values.fold(None, |range, x| match range {
        None => Some(Range { min: x, max: x }),
        // A NaN stays: `min` and `max` of f64 would drop it.
        Some(Range { min, max }) if x.is_nan() || min.is_nan() => Some(Range { min: f64::NAN, max: max + x }),
        Some(Range { min, max }) => Some(Range { min: min.min(x), max: max.max(x) }),
    })
}

fn divergence(deltas: impl Iterator<Item = f64>) -> Option<Divergence> {
    let (n, k1, k3) =
        deltas.fold((0_u64, 0.0, 0.0), |(n, k1, k3), delta| (n + 1, k1 - delta, k3 + (delta.exp_m1() - delta)));
    (n > 0).then(|| Divergence { k1: k1 / n as f64, k3: k3 / n as f64 })
}

/// The largest log-weight is subtracted first: products over long segments overflow otherwise.
fn sample_size(log_weights: impl Iterator<Item = f64>) -> Option<f64> {
    let all: Vec<f64> = log_weights.collect();
    let max = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = || all.iter().map(|&x| (x - max).exp());
    let (sum, squares) = (weights().sum::<f64>(), weights().map(|w| w * w).sum::<f64>());
    (!all.is_empty()).then(|| sum * sum / (squares * all.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6 * expected.abs().max(1e-3), "{found} {expected}");
    }

    #[test]
    fn two_tokens_by_hand() {
        // p_old (.20, .10), p_new (.25, .30): the worked example of the objective's specification; a masked NaN between them.
        let log = |p: [f32; 3]| p.map(f32::ln).to_vec();
        let (old, new) = (log([0.2, f32::NAN, 0.1]), log([0.25, f32::NAN, 0.3]));
        let statistics = Statistics::of(&Inputs {
            mask: &[1, 0, 1],
            offsets: &[0, 3, 3],
            logprobs: &new,
            anchor: Some(&old),
            old: Some(&old),
            rollout: Some(&old),
            reference: None,
        });
        assert_eq!((statistics.tokens, statistics.segments), (2, 1));
        let ratio = statistics.ratio.unwrap();
        close(ratio.min, 1.25);
        close(ratio.max, 3.0);
        close(statistics.sequence_ratio.unwrap().max, 3.75_f64.sqrt());
        let kl = statistics.policy_kl.unwrap();
        close(kl.k1, -1.321756 / 2.0);
        close(kl.k3, (0.25 + 2.0 - 1.321756) / 2.0);
        assert_eq!(statistics.mismatch_kl, Some(Divergence { k1: 0.0, k3: 0.0 }));
        assert_eq!(statistics.sample_size, Some(SampleSize { tokens: 1.0, segments: 1.0 }));
        assert_eq!(statistics.reference_kl, None);
    }

    #[test]
    fn weights_of_two_one_one_have_an_effective_size_of_8_in_9() {
        let log: Vec<f64> = [2.0_f64, 1.0, 1.0].iter().map(|w| w.ln() + 800.0).collect();
        close(sample_size(log.into_iter()).unwrap(), 2.666667 / 3.0);
        assert_eq!(sample_size(std::iter::empty()), None);
    }

    #[test]
    fn nothing_counted_means_nothing_said() {
        let none = Inputs {
            mask: &[0],
            offsets: &[0, 1],
            logprobs: &[f32::NAN],
            anchor: Some(&[0.0]),
            old: None,
            rollout: Some(&[0.0]),
            reference: None,
        };
        let statistics = Statistics::of(&none);
        assert_eq!((statistics.ratio, statistics.mismatch_kl, statistics.sample_size), (None, None, None));
        assert_eq!(range([1.0, f64::NAN, 2.0].into_iter()).map(|r| r.min.is_nan() && r.max.is_nan()), Some(true));
    }
}
