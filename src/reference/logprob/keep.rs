//! Keep-sets.

use super::{Id, Row, Sums};
use crate::error::FaultCode;
use crate::logprob::{Config, KeepSets, Partial, Sizes};
use crate::memory::Host;

/// The keep-set of a row.
pub(super) struct KeepSet {
    /// Token ids, as given.
    ids: Vec<i64>,
    fault: Option<FaultCode>,
    sizes: Sizes,
}

impl KeepSet {
    pub(super) fn read(keep: &KeepSets<'_, Host>, row: usize, sizes: &Sizes) -> KeepSet {
        let (ids, offsets) = (keep.ids.as_slice(), keep.offsets.as_slice());
        let (start, end) = (offsets[row], offsets[row + 1]);
        let at = |offset: i64| usize::try_from(offset).ok();
        let set = at(start).zip(at(end)).and_then(|(start, end)| ids.get(start..end));
        let closed = (row > 0 || start == 0) && (row + 1 < sizes.rows || at(end) == Some(ids.len()));
        let Some(set) = set.filter(|_| closed) else {
            return KeepSet { ids: Vec::new(), fault: Some(FaultCode::KeepOffsets), sizes: *sizes };
        };
        let ids: Vec<i64> = set.iter().map(|&id| i64::from(id)).collect();
        let valid = ids.windows(2).all(|pair| pair[0] < pair[1])
            && ids.iter().all(|&id| usize::try_from(id).is_ok_and(|id| id < sizes.vocab_total));
        KeepSet { ids, fault: (!valid).then_some(FaultCode::Keep), sizes: *sizes }
    }

    /// True where nothing was cut off.
    pub(super) fn is_every(&self) -> bool {
        self.ids.is_empty() && self.fault.is_none()
    }

    pub(super) fn fault(&self) -> Option<FaultCode> {
        self.fault
    }

    /// True if the row's token is one of these columns and not in the set.
    pub(super) fn misses(&self, row: &Row) -> bool {
        let present = !row.absent && row.valid_temperature && self.fault.is_none() && !self.is_every();
        present && matches!(row.ids[0], Id::Column(_)) && !self.ids.contains(&row.tokens[0])
    }

    /// The kept columns, and that of the token behind them if it joins.
    pub(super) fn columns(&self, row: &Row, config: &Config) -> Vec<usize> {
        let Sizes { vocab_start, vocabulary, .. } = self.sizes;
        if self.is_every() {
            return (0..vocabulary).collect();
        }
        let column = |&id: &i64| (id as usize).checked_sub(vocab_start).filter(|&column| column < vocabulary);
        let mut columns: Vec<usize> = self.ids.iter().filter_map(column).collect();
        if let Id::Column(y) = row.ids[0]
            && self.misses(row)
            && !config.strict_keep
        {
            columns.push(y);
        }
        columns
    }

    /// The sums over the kept columns; `None` for a faulty set.
    pub(super) fn sums(&self, row: &Row, logits: &[f64], config: &Config) -> Option<Sums> {
        if row.absent || !row.valid_temperature || self.fault.is_some() {
            return None;
        }
        let kept: Vec<f64> = self.columns(row, config).iter().map(|&column| logits[column]).collect();
        let mut sums = Sums::of(&kept, row.temperature);
        sums.label = match row.ids[0] {
            Id::Column(y) if !(config.strict_keep && self.misses(row)) => logits[y],
            _ => f64::NEG_INFINITY,
        };
        Some(sums)
    }
}

/// One row's kept outputs.
pub(super) struct Outputs {
    pub(super) logprob: f64,
    pub(super) entropy: f64,
    pub(super) mass: f64,
    pub(super) saved: Partial,
    pub(super) fault: Option<FaultCode>,
}

impl Outputs {
    fn uniform(value: f32, fault: Option<FaultCode>) -> Outputs {
        let wide = f64::from(value);
        let saved = Partial { max_logit: value, sum: value, weighted: value, label: value };
        Outputs { logprob: wide, entropy: wide, mass: wide, saved, fault }
    }

    /// From the sums of the set, and those of the whole row if they are known.
    pub(super) fn of(row: &Row, set: &KeepSet, sums: Option<Sums>, full: Option<Sums>) -> Outputs {
        if row.absent {
            return Outputs::uniform(0.0, None);
        }
        let target = row.is_outside().then_some(FaultCode::Target);
        if !row.valid_temperature {
            return Outputs::uniform(f32::NAN, target.or(Some(FaultCode::Temperature)));
        }
        let Some(sums) = sums else {
            return Outputs::uniform(f32::NAN, target.or(Some(set.fault().unwrap_or(FaultCode::Keep))));
        };
        let label = if row.is_outside() { f64::NAN } else { sums.label };
        let saved = sums.record(label);
        let full_max = full.map(|full| full.max);
        if !sums.max.is_finite() {
            let is_empty = sums.max == f64::NEG_INFINITY;
            let code = match full_max {
                _ if !is_empty => FaultCode::NonfiniteLogit,
                _ if set.is_every() => FaultCode::EmptyRow,
                Some(f64::NEG_INFINITY) => FaultCode::EmptyRow,
                _ => FaultCode::EmptyKeep,
            };
            let nan = Outputs { saved, ..Outputs::uniform(f32::NAN, target.or(Some(code))) };
            let has_mass = is_empty && full_max.is_some_and(f64::is_finite);
            return if has_mass { Outputs { mass: 0.0, ..nan } } else { nan };
        }
        let mass = full
            .filter(|full| full.max.is_finite())
            .map_or(f64::NAN, |full| (((sums.max - full.max) / row.temperature).exp() * sums.s / full.s).min(1.0));
        Outputs { logprob: sums.logprob(label, row.temperature), entropy: sums.entropy(), mass, saved, fault: target }
    }
}
