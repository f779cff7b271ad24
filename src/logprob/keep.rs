//! The tokens that a sampler kept.

use std::ops::Range;

use crate::error::{Checks, Error, Kind, Result};
use crate::memory::{Memory, View};

/// The tokens that top-p or top-k sampling left of each row, so that the trainer can form the same distribution: row u kept
/// `ids[offsets[u]..offsets[u+1]]`, strictly ascending, and its token. An empty set means that nothing was cut off.
pub struct KeepSets<'a, M> {
    /// `[nnz]`: token ids of the whole vocabulary.
    pub ids: View<'a, i32, M>,
    /// `[N+1]`: from 0, ascending, to nnz.
    pub offsets: View<'a, i64, M>,
}

impl<M> Clone for KeepSets<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for KeepSets<'_, M> {}

impl<M> std::fmt::Debug for KeepSets<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeepSets").field("ids", &self.ids).field("offsets", &self.offsets).finish()
    }
}

impl<'a, M: Memory> KeepSets<'a, M> {
    /// Those of some rows, of the same ids.
    pub(super) fn of_rows(&self, rows: &Range<usize>) -> KeepSets<'a, M> {
        KeepSets { ids: self.ids, offsets: self.offsets.slice(rows.start..rows.end + 1) }
    }

    /// Records what is wrong with them in a call of `rows` rows with `ids` tokens each.
    pub(super) fn check(&self, checks: &mut Checks, rows: usize, ids: usize) {
        super::check_row_array(checks, "kept_offsets", Some(self.offsets), rows + 1);
        super::check_row_array(checks, "kept_ids", Some(self.ids), self.ids.len());
        checks.require(ids == 1, Kind::KeepSetWithManyIds, "keep", || {
            format!("goes with one token a row, but there are {ids}")
        });
    }
}

/// Puts the ids of every keep-set in ascending order, as [`KeepSets`] needs them; on the host.
///
/// # Errors
/// `Shape` where the offsets do not lead from 0 to the number of ids, or an id is twice in a row.
pub fn sort_keep_sets(ids: &mut [i32], offsets: &[i64]) -> Result<()> {
    let mut start = 0;
    for (row, &end) in offsets.iter().enumerate() {
        let end = usize::try_from(end).ok().filter(|&end| (start..=ids.len()).contains(&end) && (row > 0 || end == 0));
        let Some(end) = end else {
            let message =
                format!("offset {row} is {}, needs {start} to {}", offsets[row], if row == 0 { 0 } else { ids.len() });
            return Err(Error::invalid(Kind::Shape, "kept_offsets", message));
        };
        let set = &mut ids[start..end];
        set.sort_unstable();
        if let Some(twice) = set.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("row {} names token {} twice", row - 1, twice[0]);
            return Err(Error::invalid(Kind::Shape, "kept_ids", message));
        }
        start = end;
    }
    if start != ids.len() {
        let message = format!("end at {start}, needs all {} ids", ids.len());
        return Err(Error::invalid(Kind::Shape, "kept_offsets", message));
    }
    Ok(())
}
