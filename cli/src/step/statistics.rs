//! What a person asks about an update beside the objective's own diagnostics: how far the rollout engine and the reference policy are,
//! and how many samples the mismatch leaves.
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
    /// Under the old policy.
    pub old: Option<&'a [f32]>,
    /// Under the rollout engine.
    pub rollout: Option<&'a [f32]>,
    /// Under the reference policy.
    pub reference: Option<&'a [f32]>,
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
        let counted_tokens = || (0..inputs.mask.len()).filter(counted);
        let mut statistics = Statistics::default();
        if let Some(reference) = inputs.reference {
            let delta = |u: usize| f64::from(reference[u]) - f64::from(inputs.logprobs[u]);
            statistics.reference_kl = divergence(counted_tokens().map(delta));
        }
        if let Some(rollout) = inputs.rollout {
            let trainer = inputs.old.unwrap_or(inputs.logprobs);
            let delta = |u: usize| f64::from(trainer[u]) - f64::from(rollout[u]);
            statistics.mismatch_kl = divergence(counted_tokens().map(delta));
            let by_segment = inputs.offsets.windows(2).filter_map(|pair| {
                let range = pair[0] as usize..pair[1] as usize;
                range.filter(counted).map(delta).reduce(|sum, delta| sum + delta)
            });
            let (tokens, segments) = (sample_size(counted_tokens().map(delta)), sample_size(by_segment));
            statistics.sample_size = tokens.zip(segments).map(|(tokens, segments)| SampleSize { tokens, segments });
        }
        statistics
    }

    /// As JSON, with `null` for what is absent.
    pub fn to_json(&self) -> Value {
        let kl = |kl: Option<Divergence>| kl.map(|kl| json!({"k1": kl.k1, "k3": kl.k3}));
        json!({
            "reference_kl": kl(self.reference_kl),
            "mismatch_kl": kl(self.mismatch_kl),
            "effective_sample_size": self.sample_size.map(|s| json!({"tokens": s.tokens, "segments": s.segments})),
        })
    }
}

fn divergence(deltas: impl Iterator<Item = f64>) -> Option<Divergence> {
    let (n, k1, k3) =
        deltas.fold((0_u64, 0.0, 0.0), |(n, k1, k3), delta| (n + 1, k1 - delta, k3 + (delta.exp_m1() - delta)));
    (n > 0).then(|| Divergence { k1: k1 / n as f64, k3: k3 / n as f64 })
}

/// The largest log-weight is subtracted first: products over long segments overflow otherwise.
fn sample_size(log_weights: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let max = log_weights.clone().fold(f64::NEG_INFINITY, f64::max);
    let (n, sum, squares) = log_weights.fold((0_u64, 0.0, 0.0), |(n, sum, squares), x| {
        let w = (x - max).exp();
        (n + 1, sum + w, squares + w * w)
    });
    (n > 0).then(|| sum * sum / (squares * n as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6 * expected.abs().max(1e-3), "{found} {expected}");
    }

    #[test]
    fn two_tokens_by_hand() {
        // Rollout (.20, .10), trainer (.25, .30): Δ = (.223144, 1.098612); a masked NaN between them and an empty segment behind.
        let log = |p: [f32; 3]| p.map(f32::ln).to_vec();
        let (rollout, trainer) = (log([0.2, f32::NAN, 0.1]), log([0.25, f32::NAN, 0.3]));
        let statistics = Statistics::of(&Inputs {
            mask: &[1, 0, 1],
            offsets: &[0, 3, 3],
            logprobs: &trainer,
            old: None,
            rollout: Some(&rollout),
            reference: Some(&trainer),
        });
        let kl = statistics.mismatch_kl.unwrap();
        close(kl.k1, -1.321756 / 2.0);
        close(kl.k3, (0.25 + 2.0 - 1.321756) / 2.0);
        assert_eq!(statistics.reference_kl, Some(Divergence { k1: 0.0, k3: 0.0 }));
        let size = statistics.sample_size.unwrap();
        close(size.tokens, 4.25 * 4.25 / (2.0 * (1.25 * 1.25 + 9.0)));
        assert_eq!(size.segments, 1.0);
    }

    #[test]
    fn weights_of_two_one_one_have_an_effective_size_of_8_in_9() {
        let log = [2.0_f64, 1.0, 1.0].map(|w| w.ln() + 800.0);
        close(sample_size(log.into_iter()).unwrap(), 2.666667 / 3.0);
        assert_eq!(sample_size(std::iter::empty()), None);
    }

    #[test]
    fn nothing_counted_means_nothing_said() {
        let statistics = Statistics::of(&Inputs {
            mask: &[0],
            offsets: &[0, 1],
            logprobs: &[f32::NAN],
            old: None,
            rollout: Some(&[0.0]),
            reference: None,
        });
        assert_eq!(statistics, Statistics::default());
    }
}
