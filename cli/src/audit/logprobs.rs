//! What recorded log-probabilities give away. Plain loops over tokens on the host, in f64.

use super::danger::{BF16_SHARE, BIASED_MEDIAN, BIASED_SHARE, Danger, FEWEST, Kind, SAMPLE_SIZE, SHIFT};
use crate::step::{Inputs, Statistics};
use crate::stepfile::{AdvantageSource, StepFile};
use crate::table::{count, number, percent};

/// Counted tokens that hold NaN or infinity, by tensor.
pub fn nonfinite(mask: &[u8], arrays: &[(&'static str, &[f32])]) -> Vec<Danger> {
    let found = arrays.iter().filter_map(|&(tensor, values)| {
        let bad = values.iter().zip(mask).filter(|&(value, &m)| m != 0 && !value.is_finite()).count();
        let first = values.iter().zip(mask).position(|(value, &m)| m != 0 && !value.is_finite())?;
        let what = if tensor == "logits" { "a log-probability of" } else { "is" };
        let words =
            format!("{} counted tokens, the first at row {first}, which {what} {}", count(bad as u64), values[first]);
        Some(nonfinite_danger(tensor, bad, words))
    });
    found.collect()
}

/// The same for advantages: of tokens, or of segments with a counted token. A reward that is NaN is legal and has the advantage 0.
pub fn nonfinite_advantages(file: &StepFile, mask: &[u8]) -> Vec<Danger> {
    match file.advantage() {
        Some(AdvantageSource::PerToken(tensor)) => nonfinite(mask, &[("advantages", &tensor.all::<f32>())]),
        Some(AdvantageSource::PerSegment(tensor)) => {
            let values = tensor.all::<f32>();
            let counts = |i: &usize| (file.offsets[*i]..file.offsets[*i + 1]).any(|u| mask[u as usize] != 0);
            let bad: Vec<usize> = (0..values.len()).filter(|&i| !values[i].is_finite()).filter(counts).collect();
            let Some(&first) = bad.first() else { return Vec::new() };
            let words =
                format!("{} sequences, the first {first}, which has {}", count(bad.len() as u64), values[first]);
            vec![nonfinite_danger("advantage", bad.len(), words)]
        }
        _ => Vec::new(),
    }
}

/// The verdict on values that are not finite.
pub fn nonfinite_danger(tensor: &'static str, bad: usize, found: String) -> Danger {
    Danger { kind: Kind::NonFinite, tensor, statistic: bad as f64, threshold: 1.0, found }
}

/// Arrays whose values all fit in bf16: the low 16 bits of an f32 are then zero.
pub fn bf16(arrays: &[(&'static str, &[f32])]) -> Vec<Danger> {
    let found = arrays.iter().filter_map(|&(tensor, values)| {
        let (seen, short) = values
            .iter()
            .filter(|value| value.is_finite() && **value != 0.0)
            .fold((0_usize, 0_usize), |(seen, short), value| {
                (seen + 1, short + usize::from(value.to_bits() & 0xffff == 0))
            });
        let share = short as f64 / seen.max(1) as f64;
        (seen >= FEWEST && share >= BF16_SHARE).then(|| Danger {
            kind: Kind::Bf16Logprobs,
            tensor,
            statistic: share,
            threshold: BF16_SHARE,
            found: format!("{} of {} values have no more digits than bf16", percent(share), count(seen as u64)),
        })
    });
    found.collect()
}

/// How the rollout's log-probabilities differ from the trainer's: shifted, biased, or too much. `known`: the dangers found so far, one of
/// which may explain worthless weights.
pub fn mismatch(inputs: &Inputs<'_>, statistics: &Statistics, known: &[Danger]) -> Vec<Danger> {
    let Some(rollout) = inputs.rollout else { return Vec::new() };
    let pairs = Pairs { inputs, trainer: inputs.old.unwrap_or(inputs.logprobs), rollout };
    let mut dangers: Vec<Danger> = pairs.shift().or_else(|| pairs.bias()).into_iter().collect();
    let weights = statistics.sample_size.map(|size| size.segments).filter(|&share| share < SAMPLE_SIZE);
    let Some(share) = weights else { return dangers };
    if let Some(cause) = dangers.first_mut() {
        cause.found += &format!("; sequence weights are worth {} of the sequences", percent(share));
    } else if !known.iter().any(|danger| danger.kind == Kind::Bf16Logprobs) {
        let found = format!("the effective sample size of sequence weights is {} of the sequences", percent(share));
        let (kind, tensor) = (Kind::LargeMismatch, "rollout_logprobs");
        dangers.push(Danger { kind, tensor, statistic: share, threshold: SAMPLE_SIZE, found });
    }
    dangers
}

/// The two engines' log-probabilities.
struct Pairs<'a> {
    inputs: &'a Inputs<'a>,
    trainer: &'a [f32],
    rollout: &'a [f32],
}

impl Pairs<'_> {
    fn trainer_name(&self) -> &'static str {
        if self.inputs.old.is_some() { "old_logprobs" } else { "the current policy" }
    }

    fn shift(&self) -> Option<Danger> {
        let own = self.correlation(0)?;
        let (offset, best) = [-1_isize, 1]
            .into_iter()
            .filter_map(|offset| Some((offset, self.correlation(offset)?)))
            .max_by(|a, b| a.1.total_cmp(&b.1))?;
        let side = if offset < 0 { "before" } else { "after" };
        let found = format!(
            "correlate {} with {} at their own token, {} with the one {side} it",
            number(own, 3),
            self.trainer_name(),
            number(best, 3)
        );
        let kind = Kind::ShiftedLogprobs;
        (best - own >= SHIFT).then_some(Danger {
            kind,
            tensor: "rollout_logprobs",
            statistic: best - own,
            threshold: SHIFT,
            found,
        })
    }

    fn bias(&self) -> Option<Danger> {
        let counted = (0..self.inputs.mask.len()).filter(|&u| self.inputs.mask[u] != 0);
        let mut apart: Vec<f32> = counted.map(|u| self.rollout[u] - self.trainer[u]).collect();
        if apart.len() < FEWEST {
            return None;
        }
        let positive = apart.iter().filter(|&&x| x > 0.0).count() as f64 / apart.len() as f64;
        let middle = apart.len() / 2;
        let median = f64::from(*apart.select_nth_unstable_by(middle, f32::total_cmp).1);
        let found = format!(
            "are above {} at {} of tokens, by {} nats in the median: a kept mass of about {}",
            self.trainer_name(),
            percent(positive),
            number(median, 3),
            number((-median).exp(), 3)
        );
        let kind = Kind::KeptMassBias;
        (positive >= BIASED_SHARE && median > BIASED_MEDIAN).then_some(Danger {
            kind,
            tensor: "rollout_logprobs",
            statistic: median,
            threshold: BIASED_MEDIAN,
            found,
        })
    }

    /// Pearson's, of the rollout at a token with the trainer at `offset` from it, over pairs of counted tokens of one segment. `None` for
    /// too few, or where either does not vary.
    fn correlation(&self, offset: isize) -> Option<f64> {
        let mask = self.inputs.mask;
        let pairs = || {
            self.inputs.offsets.windows(2).flat_map(move |bounds| {
                let range = bounds[0] as usize..bounds[1] as usize;
                let inside = range.clone();
                range.filter_map(move |u| {
                    let v = u.checked_add_signed(offset).filter(|v| inside.contains(v))?;
                    (mask[u] != 0 && mask[v] != 0).then(|| (f64::from(self.rollout[u]), f64::from(self.trainer[v])))
                })
            })
        };
        let (n, x, y) = pairs().fold((0_usize, 0.0, 0.0), |(n, x, y), (a, b)| (n + 1, x + a, y + b));
        if n < FEWEST {
            return None;
        }
        let (x, y) = (x / n as f64, y / n as f64);
        let (xx, xy, yy) = pairs().fold((0.0, 0.0, 0.0), |(xx, xy, yy), (a, b)| {
            let (a, b) = (a - x, b - y);
            (xx + a * a, xy + a * b, yy + b * b)
        });
        (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
    }
}
