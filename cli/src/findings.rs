//! What the device error word says, and whether a step may go on.
//!
//! Anything at a masked token is legal, but the word keeps only the first row, which may hide a counted one behind it. So a finding
//! is settled in two looks: the rows' data on the host, for ids that no option makes legal; and the operation once more with the
//! masked rows absent, for numbers that are not finite.

use std::ops::Range;

use moerl::error::{Fault, FaultCode};

use crate::failure::{Failure, Result};

/// The fault that an error word held, if any.
///
/// # Errors
/// Every other error.
pub fn taken(checked: moerl::Result<()>) -> moerl::Result<Option<Fault>> {
    match checked {
        Ok(()) => Ok(None),
        Err(moerl::Error::Data(fault)) => Ok(Some(fault)),
        Err(other) => Err(other),
    }
}

/// True for faults that `--nonfinite` allows.
pub fn is_nonfinite(code: FaultCode) -> bool {
    matches!(
        code,
        FaultCode::NanLogit
            | FaultCode::NonfiniteWeight
            | FaultCode::NanBias
            | FaultCode::EmptyRow
            | FaultCode::NonfiniteLogit
            | FaultCode::NonfiniteInput
    )
}

/// Decides about a finding in some rows.
#[derive(Clone, Debug)]
pub struct Settle<'a> {
    /// The tensor that was read.
    pub tensor: &'a str,
    /// The rows of the call.
    pub rows: Range<usize>,
    /// `[N]`: 1 where a token counts.
    pub mask: &'a [u8],
    /// Whether the caller said what to do about numbers that are not finite.
    pub nonfinite: bool,
}

impl Settle<'_> {
    /// How many calls had a finding that is allowed: 0 or 1. `words` says what is wrong with a row's ids, if anything; `again` runs the
    /// operation with the given rows absent and returns what it found.
    ///
    /// # Errors
    /// [`Failure::Input`] for a finding at a counted token that is not allowed.
    pub fn by(
        &self,
        fault: Option<Fault>,
        words: impl Fn(usize) -> Option<String>,
        again: impl FnOnce(&[u8]) -> moerl::Result<Option<Fault>>,
    ) -> Result<usize> {
        if fault.is_none() {
            return Ok(0);
        }
        let counted = |row: &usize| self.mask[*row] != 0;
        if let Some(message) = self.rows.clone().filter(counted).find_map(words) {
            return Err(Failure::input(message));
        }
        match again(&self.mask[self.rows.clone()])? {
            None => Ok(0),
            Some(fault) if self.nonfinite && is_nonfinite(fault.code) => Ok(1),
            Some(fault) => Err(self.refusal(fault)),
        }
    }

    /// The words for a fault at a counted token.
    pub fn refusal(&self, fault: Fault) -> Failure {
        let row = self.rows.start as u64 + fault.row;
        let hint = if is_nonfinite(fault.code) { " (--nonfinite runs it all the same)" } else { "" };
        Failure::input(format!("{}: row {row}, a counted token: {}{hint}", self.tensor, fault.code))
    }
}
