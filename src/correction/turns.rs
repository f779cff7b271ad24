//! The turns of a segment.

use std::fmt;

use crate::advantage::GroupPlan;
use crate::backend::Backend;
use crate::error::{Error, Kind, Result};
use crate::segments::{Plan, Segments};

/// Offsets of the turns of these segments, as [`TurnPlan::new`] takes them: a turn begins with a run of tokens that count and ends before the
/// next one; what does not count before the first run belongs to the first turn. A segment without a counted token is one turn.
///
/// # Errors
/// `Shape` where the mask has another length.
pub fn turns_from_mask(segments: &Segments, loss_mask: &[u8]) -> Result<Vec<i64>> {
    if loss_mask.len() != segments.tokens() {
        let message = format!("has shape [{}], needs [{}]", loss_mask.len(), segments.tokens());
        return Err(Error::invalid(Kind::Shape, "loss_mask", message));
    }
    let mut offsets = vec![0];
    for range in segments.ranges() {
        let mut has_run = false;
        for u in range.clone() {
            let begins = loss_mask[u] != 0 && (u == range.start || loss_mask[u - 1] == 0);
            if begins && has_run {
                offsets.push(u as i64);
            }
            has_run |= begins;
        }
        offsets.push(range.end as i64);
    }
    Ok(offsets)
}

/// The division of a batch's segments into turns, where a backend's kernels can read it.
pub struct TurnPlan<B: Backend> {
    pub(crate) pieces: Plan<B>,
    /// `[S + 1]`: the first turn of every segment.
    pub(crate) first: B::Buffer<u32>,
    pub(crate) first_on_host: Vec<u32>,
    segments: Segments,
}

impl<B: Backend> fmt::Debug for TurnPlan<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TurnPlan {{ {} turns in {} segments }}", self.turns().len(), self.segments.len())
    }
}

impl<B: Backend> TurnPlan<B> {
    /// Turns between these offsets `[R + 1]`, which refine those of the segments: every segment begins with a turn.
    ///
    /// # Errors
    /// `Segments`, naming the first index at fault.
    pub fn new(backend: &B, stream: &B::Stream, segments: &Segments, turn_offsets: &[i64]) -> Result<TurnPlan<B>> {
        let turns = Segments::from_offsets(turn_offsets)?;
        let mut first = vec![0_u32];
        let mut turn = 0;
        for (segment, range) in segments.ranges().enumerate() {
            while turn < turns.len() && turns.range(turn).end < range.end {
                turn += 1;
            }
            let ends = turn < turns.len() && turns.range(turn).end == range.end;
            if !ends {
                let message = format!("none ends at {}, where segment {segment} does", range.end);
                return Err(Error::invalid(Kind::Segments, "turn_offsets", message));
            }
            turn += 1;
            first.push(turn as u32);
        }
        if turn != turns.len() {
            let message = format!("go on behind token {}, where the last segment ends", segments.tokens());
            return Err(Error::invalid(Kind::Segments, "turn_offsets", message));
        }
        Ok(TurnPlan {
            pieces: Plan::new(backend, stream, &turns)?,
            first: backend.upload(stream, &first)?,
            first_on_host: first,
            segments: segments.clone(),
        })
    }

    /// The turns.
    pub fn turns(&self) -> &Segments {
        self.pieces.segments()
    }

    /// The segments that they divide.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }
}

/// How a batch is divided: its segments, and what the configuration may need beside them.
pub struct Plans<'p, B: Backend> {
    /// The segments.
    pub segments: &'p Plan<B>,
    /// Their turns: for [`Level::Turn`](super::Level::Turn).
    pub turns: Option<&'p TurnPlan<B>>,
    /// Groups of segments that together are all of them: for [`Weight::SelfNormalised`](super::Weight::SelfNormalised) and
    /// [`Weight::Metropolis`](super::Weight::Metropolis).
    pub groups: Option<&'p GroupPlan<B>>,
}

impl<B: Backend> fmt::Debug for Plans<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.groups.map(|groups| groups.groups().len());
        write!(
            f,
            "Plans {{ {} segments, turns: {:?}, groups: {groups:?} }}",
            self.segments.segments().len(),
            self.turns
        )
    }
}

impl<B: Backend> Clone for Plans<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Plans<'_, B> {}

impl<'p, B: Backend> Plans<'p, B> {
    /// Segments alone.
    pub fn new(segments: &'p Plan<B>) -> Plans<'p, B> {
        Plans { segments, turns: None, groups: None }
    }

    /// What the planes have one number of: the turns, or else the segments.
    pub fn pieces(&self) -> &'p Segments {
        self.pieces_plan().segments()
    }

    pub(crate) fn pieces_plan(&self) -> &'p Plan<B> {
        self.turns.map_or(self.segments, |turns| &turns.pieces)
    }
}
