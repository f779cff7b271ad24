//! The outputs that a call on logits and one on the records of shards have in common.

use super::{Partial, check_row_array};
use crate::error::{Checks, Extent};
use crate::memory::{Memory, ViewMut};

/// An output that may be asked for.
type Asked<'c, 'a, T, M> = &'c Option<ViewMut<'a, T, M>>;

/// The arrays, by their names.
pub(super) struct Outputs<'c, 'a, M> {
    /// `[N]`, but `logprobs` is `[N, K]`.
    pub floats: [(&'static str, Asked<'c, 'a, f32, M>); 10],
    /// `[N, K]`.
    pub rank: Asked<'c, 'a, i32, M>,
    /// `[N]`.
    pub argmax: Asked<'c, 'a, i32, M>,
    /// `[N]`.
    pub records: [(&'static str, Asked<'c, 'a, Partial, M>); 2],
}

/// Those of a call.
macro_rules! outputs_of {
    ($call:expr) => {
        $crate::logprob::outputs::Outputs {
            floats: [
                ("logprobs", &$call.logprobs),
                ("entropy", &$call.entropy),
                ("max", &$call.max),
                ("log_sum", &$call.log_sum),
                ("lse", &$call.lse),
                ("sum_p2", &$call.sum_p2),
                ("sum_sq", &$call.sum_sq),
                ("kept_logprobs", &$call.kept_logprobs),
                ("kept_entropy", &$call.kept_entropy),
                ("kept_mass", &$call.kept_mass),
            ],
            rank: &$call.rank,
            argmax: &$call.argmax,
            records: [("saved", &$call.saved), ("kept_saved", &$call.kept_saved)],
        }
    };
}
pub(super) use outputs_of;

impl<M: Memory> Outputs<'_, '_, M> {
    /// Their lengths, for N rows of K tokens.
    pub fn check(&self, checks: &mut Checks, rows: usize, ids: usize) {
        for (name, array) in self.floats {
            let len = rows * if name == "logprobs" { ids } else { 1 };
            check_row_array(checks, name, array.as_ref().map(ViewMut::as_view), len);
        }
        check_row_array(checks, "rank", self.rank.as_ref().map(ViewMut::as_view), rows * ids);
        check_row_array(checks, "argmax", self.argmax.as_ref().map(ViewMut::as_view), rows);
        for (name, array) in self.records {
            check_row_array(checks, name, array.as_ref().map(ViewMut::as_view), rows);
        }
    }

    /// Their bytes.
    pub fn extents(&self) -> Vec<Option<Extent>> {
        let floats = self.floats.map(|(name, array)| array.as_ref().map(|array| array.extent(name)));
        let records = self.records.map(|(name, array)| array.as_ref().map(|array| array.extent(name)));
        let order = [("rank", self.rank), ("argmax", self.argmax)]
            .map(|(name, array)| array.as_ref().map(|array| array.extent(name)));
        [&floats[..], &order, &records].concat()
    }
}
