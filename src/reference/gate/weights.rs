//! From the logits of the slots to their weights, and back to gradients.

use crate::gate::{Config, Nonfinite, Renormalize, Score};

/// The smallest result of an exponential: the kernels' one flushes what is below to zero, and so do the meaning and this reference.
const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

/// What of a configuration weights depend on.
pub(in crate::reference) struct Rules {
    score: Score,
    renormalize: Renormalize,
    pub(super) scaling_factor: f64,
    softcap: Option<f64>,
    nonfinite: Nonfinite,
}

/// The experts of a row, their logits before the softcap, the log-sum-exp of the row after it, and what multiplies each weight last.
pub(super) struct Slots {
    pub(super) ids: Vec<usize>,
    pub(super) selected: Vec<f64>,
    pub(super) lse: f64,
    pub(super) expert_scale: Vec<f64>,
}

pub(in crate::reference) fn exp(x: f64) -> f64 {
    let y = x.exp();
    if y < SMALLEST { 0.0 } else { y }
}

fn sigmoid(x: f64) -> f64 {
    let t = exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + t) } else { t / (1.0 + t) }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn log_softplus(x: f64) -> f64 {
    // Far below zero softplus(x) = eˣ to all digits, and eˣ leaves the range of f64 long before its logarithm does.
    if x < -40.0 { x } else { softplus(x).ln() }
}

fn sqrt_softplus(x: f64) -> f64 {
    if x.is_nan() { x } else { exp(log_softplus(x) / 2.0) }
}

/// σ(x) / 2 softplus(x) = d log √softplus(x) / dx, in (0, ½].
fn sqrt_softplus_slope(x: f64) -> f64 {
    if x < -40.0 { 0.5 } else { sigmoid(x) / (2.0 * softplus(x)) }
}

pub(in crate::reference) fn log_sum_exp(x: &[f64]) -> f64 {
    if x.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() { max } else { max + x.iter().map(|x| exp(x - max)).sum::<f64>().ln() }
}

/// What is flushed to zero is an exponential beside the largest one, before the division.
fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms: Vec<f64> = x.iter().map(|x| exp(x - max)).collect();
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|term| term / sum).collect()
}

impl Rules {
    pub(in crate::reference) fn new(config: &Config, top_k: usize) -> Rules {
        Rules {
            score: config.score,
            renormalize: config.renormalize_for(top_k),
            scaling_factor: f64::from(config.scaling_factor.unwrap_or(1.0)),
            softcap: config.softcap.map(f64::from),
            nonfinite: config.nonfinite,
        }
    }

    fn capped(&self, x: f64) -> f64 {
        self.softcap.map_or(x, |c| c * (x / c).tanh())
    }

    pub(in crate::reference) fn capped_row(&self, x: &[f64]) -> Vec<f64> {
        x.iter().map(|&x| self.capped(x)).collect()
    }

    pub(in crate::reference) fn softcap_slope(&self, x: f64) -> f64 {
        self.softcap.map_or(1.0, |c| {
            let w = (-2.0 * x.abs() / c).exp();
            4.0 * w / ((1.0 + w) * (1.0 + w))
        })
    }

    /// The scores that selection adds a bias to: both softmax modes take the softmax over all (over all that are numbers).
    pub(super) fn scores_of_row(&self, logits: &[f64]) -> Vec<f64> {
        let x = self.capped_row(logits);
        match self.score {
            Score::Softmax | Score::SoftmaxSelected => {
                let numbers: Vec<f64> = x.iter().copied().filter(|x| !x.is_nan()).collect();
                let lse = log_sum_exp(&numbers);
                x.iter().map(|x| exp(x - lse)).collect()
            }
            _ => x.iter().map(|&x| self.score_of(x, 0.0)).collect(),
        }
    }

    /// The score that a router's probabilities are made of (both softmax modes: the softmax over all), and the derivative of its logarithm, of a
    /// logit after the softcap.
    pub(in crate::reference) fn score_over_all(&self, x: f64, lse: f64) -> (f64, f64) {
        match self.score {
            Score::Sigmoid => (sigmoid(x), sigmoid(-x)),
            Score::SqrtSoftplus => (sqrt_softplus(x), sqrt_softplus_slope(x)),
            Score::Softmax | Score::SoftmaxSelected | Score::Raw => (exp(x - lse), 1.0),
        }
    }

    /// A router's probabilities are the softmax over all, or scores divided by their sum. (Raw logits have none; they are not balanced.)
    pub(in crate::reference) fn is_softmax(&self) -> bool {
        !matches!(self.score, Score::Sigmoid | Score::SqrtSoftplus)
    }

    fn score_of(&self, x: f64, lse: f64) -> f64 {
        match self.score {
            Score::Softmax => exp(x - lse),
            Score::Sigmoid => sigmoid(x),
            Score::SqrtSoftplus => sqrt_softplus(x),
            Score::SoftmaxSelected | Score::Raw => x,
        }
    }

    fn log_score_of(&self, x: f64) -> f64 {
        match self.score {
            Score::Sigmoid => -softplus(-x),
            _ => log_softplus(x) / 2.0,
        }
    }

    /// n, the weights before scaling, from the logits of the slots before the softcap.
    pub(super) fn normalized(&self, selected: &[f64], lse: f64) -> Vec<f64> {
        let x = self.capped_row(selected);
        if self.score == Score::SoftmaxSelected {
            return softmax(&x);
        }
        let s: Vec<f64> = x.iter().map(|&x| self.score_of(x, lse)).collect();
        let sum: f64 = s.iter().sum();
        let divided_by = |d: f64| s.iter().map(|s| s / d).collect();
        match self.renormalize {
            Renormalize::None => s,
            Renormalize::Floor(m) if self.score == Score::Softmax && sum >= f64::from(m) => softmax(&x),
            Renormalize::Floor(m) => divided_by(sum.max(f64::from(m))),
            Renormalize::AddEps(eps) => divided_by(sum + f64::from(eps)),
            Renormalize::Guard => divided_by(if sum > 0.0 { sum } else { 1.0 }),
            Renormalize::Exact => softmax(&x.iter().map(|&x| self.log_score_of(x)).collect::<Vec<_>>()),
        }
    }

    /// The weights.
    pub(super) fn weights(&self, selected: &[f64], lse: f64) -> Vec<f64> {
        self.normalized(selected, lse).iter().map(|n| n * self.scaling_factor).collect()
    }

    /// True if every weight is a finite number that its formula can stand for.
    pub(super) fn is_usable(&self, selected: &[f64], lse: f64) -> bool {
        let finite = self.weights(selected, lse).iter().all(|&w| (w as f32).is_finite());
        finite && (self.score != Score::Softmax || lse.is_finite())
    }

    /// As [`is_usable`](Self::is_usable), for the weights after their experts' scale.
    pub(super) fn are_usable(&self, slots: &Slots) -> bool {
        let weights = self.weights(&slots.selected, slots.lse);
        let scaled = weights.iter().zip(&slots.expert_scale).all(|(w, scale)| ((w * scale) as f32).is_finite());
        scaled && self.is_usable(&slots.selected, slots.lse)
    }

    /// The gradient of the experts' scales by slot: the gradient of each weight times the weight before its scale.
    pub(super) fn expert_scale_gradient(&self, slots: &Slots, upstream: &[f64]) -> Vec<f64> {
        if !self.are_usable(slots) {
            let instead = if self.nonfinite == Nonfinite::Zero { 0.0 } else { f64::NAN };
            return vec![instead; upstream.len()];
        }
        self.weights(&slots.selected, slots.lse).iter().zip(upstream).map(|(w, d)| w * d).collect()
    }

    /// Adds `−cA (g̃ 1[slot] − p)` to a row's gradient, where the row has one. `coefficient` is c·A.
    pub(super) fn add_surrogate(&self, slots: &Slots, logits: &[f64], coefficient: f64, gradient: &mut [f64]) {
        let Slots { ids, selected, lse, .. } = slots;
        if !self.are_usable(slots) {
            if self.nonfinite == Nonfinite::Propagate {
                gradient.fill(f64::NAN);
            }
            return;
        }
        if !lse.is_finite() {
            return;
        }
        for (to, &x) in gradient.iter_mut().zip(logits) {
            *to += coefficient * exp(self.capped(x) - lse) * self.softcap_slope(x);
        }
        let n = self.normalized(selected, *lse);
        let sum: f64 = n.iter().sum();
        for ((&e, n), &x) in ids.iter().zip(&n).zip(selected) {
            let share = if sum > 0.0 { n / sum } else { 0.0 };
            gradient[e] -= coefficient * share * self.softcap_slope(x);
        }
    }

    /// Adds a row's gradient to `gradient`, which is all zeros. `logits` is the whole row, for softmax over all.
    pub(super) fn add_gradient(&self, slots: &Slots, logits: Option<&[f64]>, upstream: &[f64], gradient: &mut [f64]) {
        let Slots { ids, selected, lse, expert_scale } = slots;
        let usable = self.are_usable(slots);
        if !usable && self.nonfinite == Nonfinite::Zero {
            return;
        }
        let n = self.normalized(selected, *lse);
        let g: Vec<f64> = upstream.iter().zip(expert_scale).map(|(d, scale)| d * self.scaling_factor * scale).collect();
        let inner: f64 = g.iter().zip(&n).map(|(g, n)| g * n).sum();
        let reaches_all = self.reaches_all(selected, *lse);
        if let (true, Some(logits)) = (reaches_all, logits) {
            let floor = if let Renormalize::Floor(m) = self.renormalize { f64::from(m) } else { 1.0 };
            for (to, &x) in gradient.iter_mut().zip(logits) {
                let p = exp(self.capped(x) - lse);
                // ⟨g, p⟩ is m·⟨g, n⟩, and the derivative of p/m has the 1/m of n in it.
                *to = -p * inner * self.softcap_slope(x);
            }
            for ((&e, g), &x) in ids.iter().zip(&g).zip(selected) {
                let p = exp(self.capped(x) - lse);
                gradient[e] = (p / floor * g - p * inner) * self.softcap_slope(x);
            }
        } else {
            for (j, &e) in ids.iter().enumerate() {
                gradient[e] = self.slot_gradient(selected, j, g[j], n[j], inner) * self.softcap_slope(selected[j]);
            }
        }
        if !usable {
            // Propagated: NaN wherever this row has a gradient.
            let all: Vec<usize> = (0..gradient.len()).collect();
            for &e in if self.score == Score::Softmax { &all } else { ids } {
                gradient[e] = f64::NAN;
            }
        }
    }

    fn reaches_all(&self, selected: &[f64], lse: f64) -> bool {
        self.score == Score::Softmax
            && match self.renormalize {
                Renormalize::Floor(m) => !self.reaches_floor(selected, lse, m),
                _ => true,
            }
    }

    fn reaches_floor(&self, selected: &[f64], lse: f64, m: f32) -> bool {
        selected.iter().map(|&x| self.score_of(self.capped(x), lse)).sum::<f64>() >= f64::from(m)
    }

    /// The gradient of slot j where it stays among the slots, before the softcap's slope.
    fn slot_gradient(&self, selected: &[f64], j: usize, g: f64, n: f64, inner: f64) -> f64 {
        let x = self.capped(selected[j]);
        let slope = match self.score {
            Score::Sigmoid => sigmoid(-x),
            Score::SqrtSoftplus => sqrt_softplus_slope(x),
            Score::Softmax | Score::SoftmaxSelected | Score::Raw => 1.0,
        };
        let independent = match self.renormalize {
            Renormalize::None => self.score != Score::SoftmaxSelected,
            Renormalize::Floor(m) => self.score != Score::Softmax && !self.reaches_floor(selected, 0.0, m),
            _ => false,
        };
        match self.score {
            Score::Raw => g,
            _ if independent => g * n * slope,
            _ => n * slope * (g - inner),
        }
    }
}
