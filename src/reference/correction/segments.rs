//! What a segment decides on its own.

use super::{Sums, keeps, saturate, weight_of};
use crate::abi::{MOERL_DECISION_DROPPED, MOERL_DECISION_KEPT, MOERL_DECISION_NONFINITE};
use crate::correction::{Batch, Config, Divergence, Level, NonFinite, Over, Plane, Rejection, Weight};
use crate::memory::Host;
use crate::objective::Advantages;

/// A segment before its weight is known.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) sums: Sums,
    pub(super) pieces: Vec<Piece>,
    /// X of the configured level; NaN where an input that is not finite shows.
    pub(super) x: f64,
    pub(super) is_dropped: bool,
    /// No rejection of segments rejects it.
    pub(super) is_kept: bool,
    /// Tokens that each rejection rejects.
    pub(super) rejected: Vec<f64>,
    /// W, final unless a group decides.
    pub(super) weight: f64,
    pub(super) is_faulty: bool,
}

/// A turn, or the whole segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) sums: Sums,
    pub(super) is_kept: bool,
    pub(super) flags: u32,
    /// The weight of a turn; else 1.
    pub(super) weight: f64,
}

impl Segment {
    pub(super) fn count(&self) -> f64 {
        self.sums.at(Plane::Count)
    }
    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0.0
    }
    /// What takes part in its group.
    pub(super) fn is_member(&self) -> bool {
        !self.is_empty() && self.is_kept && !self.x.is_nan()
    }
    pub(super) fn kept(&self) -> f64 {
        self.pieces.iter().filter(|piece| piece.is_kept).map(|piece| piece.sums.at(Plane::Kept)).sum()
    }
}

pub(super) fn decide(config: &Config, batch: &Batch<'_, Host>, index: usize, pieces: &[Sums]) -> Segment {
    let mut sums = Sums::new();
    for piece in pieces {
        sums.merge(piece);
    }
    let has_unsound = sums.at(Plane::NonFinite) > 0.0;
    let shows = has_unsound && config.nonfinite == NonFinite::Propagate;
    let is_dropped = has_unsound && config.nonfinite == NonFinite::DropSegment;
    let is_empty = sums.at(Plane::Count) == 0.0;
    let mut segment = Segment {
        x: if shows { f64::NAN } else { level_of(config, &sums) },
        sums,
        pieces: Vec::new(),
        is_dropped,
        is_kept: !is_dropped,
        rejected: Vec::new(),
        weight: 1.0,
        is_faulty: false,
    };
    let mut piece_kept = vec![true; pieces.len()];
    for rejection in &config.rejections {
        let mut rejected = 0.0;
        if rejection.is_of_tokens() {
            let before = segment_rejections_of_tokens(config, rejection);
            rejected = sums.at(before);
        } else if is_empty || shows {
            // Nothing to reject, or nothing to judge it by.
        } else if rejection.is_of_turns() {
            for (piece, kept) in pieces.iter().zip(&mut piece_kept) {
                if piece.at(Plane::Count) > 0.0 && !keeps_mean(config, rejection, piece.mean()) {
                    rejected += piece.at(Plane::Count);
                    *kept = false;
                }
            }
        } else if !keeps_segment(config, batch, index, rejection, &sums) {
            rejected = sums.at(Plane::Count);
            segment.is_kept = false;
        }
        segment.rejected.push(rejected);
    }
    segment.pieces =
        pieces.iter().zip(piece_kept).map(|(&sums, kept)| make_piece(config, &segment, sums, kept)).collect();
    weigh(config, batch, index, &mut segment);
    segment
}

fn make_piece(config: &Config, segment: &Segment, sums: Sums, kept: bool) -> Piece {
    let has_unsound = sums.at(Plane::NonFinite) > 0.0;
    let is_kept = kept && segment.is_kept;
    let mut flags = 0;
    for (holds, flag) in [
        (is_kept, MOERL_DECISION_KEPT),
        (has_unsound, MOERL_DECISION_NONFINITE),
        (segment.is_dropped, MOERL_DECISION_DROPPED),
    ] {
        flags |= if holds { flag } else { 0 };
    }
    let weight = if config.level() != Level::Turn || sums.at(Plane::Count) == 0.0 {
        1.0
    } else if has_unsound && config.nonfinite == NonFinite::Propagate {
        f64::NAN
    } else {
        weight_of(config, sums.mean())
    };
    Piece { sums, is_kept, flags, weight }
}

/// The plane that counts what this rejection of tokens rejects.
fn segment_rejections_of_tokens(config: &Config, rejection: &Rejection) -> Plane {
    let of_tokens = config.rejections.iter().filter(|other| other.is_of_tokens());
    let planes = [Plane::Rejected0, Plane::Rejected1, Plane::Rejected2, Plane::Rejected3];
    of_tokens
        .zip(planes)
        .find(|(other, _)| std::ptr::eq(*other, rejection))
        .map_or(Plane::Rejected0, |(_, plane)| plane)
}

fn level_of(config: &Config, sums: &Sums) -> f64 {
    match config.level() {
        Level::Geometric if sums.at(Plane::Count) > 0.0 => sums.mean(),
        _ => sums.at(Plane::LogRatio),
    }
}

fn keeps_mean(config: &Config, rejection: &Rejection, mean: f64) -> bool {
    let Rejection::Band { low, high, .. } = *rejection else { return true };
    let x = saturate(config, mean);
    low.ln() <= x && x <= high.ln()
}

fn keeps_segment(config: &Config, batch: &Batch<'_, Host>, index: usize, rejection: &Rejection, sums: &Sums) -> bool {
    let count = sums.at(Plane::Count);
    let (max, min) = (sums.at(Plane::Max), -sums.at(Plane::MaxNegative));
    match *rejection {
        Rejection::Band { level: Level::Geometric, .. } => keeps_mean(config, rejection, sums.mean()),
        Rejection::Band { low, high, .. } => {
            let x = saturate(config, sums.at(Plane::LogRatio));
            low.ln() <= x && x <= high.ln()
        }
        Rejection::Divergence { estimate, over: Over::Max } => {
            // Convex, so that the maximum is at an end.
            sums.at(Plane::Max) == f64::NEG_INFINITY || [max, min].iter().all(|&x| keeps(estimate, super::clamped(x)))
        }
        Rejection::Divergence { estimate, over } => {
            let divisor = if over == Over::Mean { count } else { 1.0 };
            match estimate {
                Divergence::K1 { low, high } => {
                    let x = sums.at(Plane::K1) / divisor;
                    low.ln() <= x && x <= high.ln()
                }
                Divergence::K2(most) => sums.at(Plane::K2) / divisor <= most,
                Divergence::K3(most) => sums.at(Plane::K3) / divisor <= most,
            }
        }
        Rejection::Veto { low, high } => !(min < low.ln() || max > high.ln()),
        Rejection::OffPolicySequence { threshold } => {
            let advantage = match batch.advantages {
                Some(Advantages::PerSegment(array)) => f64::from(array.as_slice()[index]),
                _ => sums.at(Plane::Advantage),
            };
            let current = batch.current_log_ratio.map_or(0.0, |array| array.as_slice()[index]);
            advantage >= 0.0 || -(sums.at(Plane::LogRatio) + current) / count <= threshold
        }
    }
}

/// W of a segment that no group decides about.
fn weigh(config: &Config, batch: &Batch<'_, Host>, index: usize, segment: &mut Segment) {
    if segment.is_empty() {
        if let Weight::MultipleImportance { .. } = config.weight {
            segment.x = 0.0;
        }
        return;
    }
    segment.weight = match &config.weight {
        Weight::SequenceMasked { low, high } => {
            let mean = saturate(config, segment.sums.mean());
            let is_inside = low.ln() <= mean && mean <= high.ln();
            if segment.x.is_nan() { f64::NAN } else { f64::from(is_inside) }
        }
        Weight::MultipleImportance { proportions } => {
            (segment.x, segment.is_faulty) = balance(batch, index, proportions);
            if segment.is_faulty { 0.0 } else { segment.x.exp() }
        }
        _ if config.is_segment_level() => {
            if segment.x.is_nan() {
                f64::NAN
            } else {
                weight_of(config, segment.x)
            }
        }
        _ => 1.0,
    };
    if segment.is_dropped {
        segment.weight = 0.0;
    }
}

/// log W of the balance heuristic, and whether it has none.
fn balance(batch: &Batch<'_, Host>, index: usize, proportions: &[f64]) -> (f64, bool) {
    let (Some(target), Some(proposals)) = (batch.target_logprobs, batch.proposal_logprobs) else { return (0.0, true) };
    let (target, count) = (target.as_slice()[index], proportions.len());
    let of_segment = &proposals.as_slice()[index * count..(index + 1) * count];
    let terms: Vec<f64> = of_segment.iter().zip(proportions).map(|(q, share)| share.ln() + (q - target)).collect();
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms.iter().map(|term| (term - largest).exp()).sum();
    let log_weight = -(largest + sum.ln());
    if log_weight.is_finite() { (log_weight, false) } else { (f64::NAN, true) }
}
