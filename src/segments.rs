//! Packed pieces of variable length, and groups of them.

use bytemuck::{Pod, Zeroable};

use crate::backend::{Backend, Buffer};
use crate::error::{Checks, Error, Kind, Result};
use crate::memory::View;

/// Where the segments of a packed batch begin: S segments, `cu_seqlens[i]..cu_seqlens[i + 1]` are the tokens of segment `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    offsets: Vec<i64>,
}

impl Segments {
    /// Segments between these offsets `[S + 1]`: the first is 0, none is smaller than the one before it, the last is N.
    ///
    /// # Errors
    /// `Segments`, naming the first index at fault.
    pub fn from_offsets<T: Copy + Into<i64>>(cu_seqlens: &[T]) -> Result<Segments> {
        let offsets: Vec<i64> = cu_seqlens.iter().map(|&offset| offset.into()).collect();
        let falls = offsets.windows(2).position(|pair| pair[1] < pair[0]);
        let mut checks = Checks::new();
        checks
            .require(!offsets.is_empty(), Kind::Segments, "cu_seqlens", || {
                "is empty, needs one offset more than there are segments".into()
            })
            .require(offsets.first().is_none_or(|&first| first == 0), Kind::Segments, "cu_seqlens", || {
                format!("begins with {}, needs 0", offsets[0])
            })
            .require(falls.is_none(), Kind::Segments, "cu_seqlens", || {
                let at = falls.unwrap_or_default();
                format!("falls from {} to {} at index {}, needs to rise", offsets[at], offsets[at + 1], at + 1)
            })
            .require(offsets.len() <= u32::MAX as usize, Kind::Segments, "cu_seqlens", || {
                format!("has {} segments, at most 4294967294 are supported", offsets.len() - 1)
            });
        checks.finish()?;
        Ok(Segments { offsets })
    }

    /// Segments of these lengths, one behind the other.
    ///
    /// # Errors
    /// `Segments` as [`from_offsets`](Segments::from_offsets), and where the lengths add up to more than offsets can hold.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Segments> {
        let mut offsets = vec![0_i64];
        let mut end = 0_i64;
        for length in lengths {
            end = i64::try_from(length).ok().and_then(|length| end.checked_add(length)).ok_or_else(|| {
                Error::invalid(Kind::Segments, "lengths", format!("add up to more than {} tokens", i64::MAX))
            })?;
            offsets.push(end);
        }
        Segments::from_offsets(&offsets)
    }

    /// S.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }
    /// True if there are no segments.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// N, the tokens of all segments.
    pub fn tokens(&self) -> usize {
        self.offsets[self.len()] as usize
    }
    /// The tokens of segment `index`.
    pub fn range(&self, index: usize) -> std::ops::Range<usize> {
        self.offsets[index] as usize..self.offsets[index + 1] as usize
    }
    /// The tokens of every segment in turn.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        (0..self.len()).map(|index| self.range(index))
    }
    /// The offsets `[S + 1]`.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }
    /// The longest segment's tokens.
    pub fn longest(&self) -> usize {
        self.ranges().map(|range| range.len()).max().unwrap_or(0)
    }
}

/// Positions of a tile: the unit of a segment's sums, counted from the segment's start. Part of the contract on bits.
pub const TILE: usize = 1024;
/// Tiles that are summed before they join the rest, in f64. Part of the contract on bits.
pub const TILE_GROUP: usize = 32;
/// Most segments that one unit of work holds.
pub(crate) const UNIT_SEGMENTS: usize = 256;

/// What one warp works on: a tile of a long segment, or whole short segments, of at most [`TILE`] tokens together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Unit {
    /// The first token.
    pub(crate) token: u64,
    /// The first segment.
    pub(crate) segment: u32,
    /// The number of tokens, 0..=1024.
    pub(crate) tokens: u16,
    /// The number of whole segments; 0 for a tile of a segment that has several.
    pub(crate) segments: u16,
}

/// Units in the order of their tokens. A segment of more than one tile has a unit for each; shorter ones share units.
fn units(segments: &Segments) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut open = false;
    for (index, range) in segments.ranges().enumerate() {
        if range.len() > TILE {
            units.extend(range.clone().step_by(TILE).map(|start| Unit {
                token: start as u64,
                segment: index as u32,
                tokens: (range.end - start).min(TILE) as u16,
                segments: 0,
            }));
            open = false;
            continue;
        }
        let joins = open
            && units.last().is_some_and(|unit| {
                usize::from(unit.tokens) + range.len() <= TILE && usize::from(unit.segments) < UNIT_SEGMENTS
            });
        match units.last_mut() {
            Some(unit) if joins => {
                unit.tokens += range.len() as u16;
                unit.segments += 1;
            }
            _ => units.push(Unit {
                token: range.start as u64,
                segment: index as u32,
                tokens: range.len() as u16,
                segments: 1,
            }),
        }
        open = true;
    }
    units
}

/// The division of a batch's segments into units of work, where a backend's kernels can read it. May be used for any number of calls
/// on batches of these segments. Nothing about it changes a bit of a result.
#[derive(Debug)]
pub struct Plan<B: Backend> {
    segments: Segments,
    pub(crate) unit_count: usize,
    /// True where a unit holds several segments: kernels then need shared memory.
    pub(crate) has_packs: bool,
    /// True where a segment has several units.
    pub(crate) has_tiles: bool,
    /// True where a segment has no token.
    pub(crate) has_empty: bool,
    /// True where every segment has one token: a segment and its token have the same index, and unit `i` begins at 256 i.
    pub(crate) has_singles_alone: bool,
    pub(crate) offsets: B::Buffer<i64>,
    pub(crate) units: B::Buffer<Unit>,
}

impl<B: Backend> Plan<B> {
    /// Divides the work and hands it to the backend.
    ///
    /// # Errors
    /// The backend's, where it cannot take the arrays.
    pub fn new(backend: &B, stream: &B::Stream, segments: &Segments) -> Result<Plan<B>> {
        let list = units(segments);
        Ok(Plan {
            segments: segments.clone(),
            unit_count: list.len(),
            has_packs: list.iter().any(|unit| unit.segments > 1),
            has_tiles: list.iter().any(|unit| unit.segments == 0),
            has_empty: segments.offsets().windows(2).any(|ends| ends[0] == ends[1]),
            has_singles_alone: segments.offsets().windows(2).all(|ends| ends[1] - ends[0] == 1),
            offsets: backend.upload(stream, segments.offsets())?,
            units: backend.upload(stream, &list)?,
        })
    }

    /// As [`Plan::new`], from offsets `[S + 1]` that lie in the backend's memory; waits for `stream`.
    ///
    /// # Errors
    /// As [`Segments::from_offsets`].
    pub fn from_device(backend: &B, stream: &B::Stream, cu_seqlens: View<'_, i64, B::Memory>) -> Result<Plan<B>> {
        let offsets = backend.download(stream, cu_seqlens)?;
        Plan::new(backend, stream, &Segments::from_offsets(&offsets)?)
    }

    /// The segments that it divides.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    pub(crate) fn offsets(&self) -> View<'_, i64, B::Memory> {
        self.offsets.view()
    }
}

/// Which segments belong together: the answers to one prompt. G groups of any size; members may lie anywhere in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    offsets: Vec<u32>,
    members: Vec<u32>,
}

impl Groups {
    /// Group `g` is `members[group_ptr[g]..group_ptr[g + 1]]`; `segments` is S.
    ///
    /// # Errors
    /// `Segments` for offsets that do not rise from 0 to the number of members, and for a member that is no segment or is named
    /// twice.
    pub fn new(group_ptr: &[u32], members: &[u32], segments: usize) -> Result<Groups> {
        let rises = group_ptr.first() == Some(&0)
            && group_ptr.last().is_some_and(|&last| last as usize == members.len())
            && group_ptr.is_sorted();
        let mut seen = vec![false; segments];
        let outside = members.iter().position(|&member| member as usize >= segments);
        let twice = members
            .iter()
            .position(|&member| seen.get_mut(member as usize).is_some_and(|seen| std::mem::replace(seen, true)));
        let mut checks = Checks::new();
        checks
            .require(rises, Kind::Segments, "group_ptr", || {
                format!("needs to rise from 0 to the {} group members", members.len())
            })
            .require(outside.is_none(), Kind::Segments, "group_members", || {
                let at = outside.unwrap_or_default();
                format!("names segment {} at index {at}, but there are {segments}", members[at])
            })
            .require(twice.is_none(), Kind::Segments, "group_members", || {
                let at = twice.unwrap_or_default();
                format!("names segment {} again at index {at}", members[at])
            });
        checks.finish()?;
        Ok(Groups { offsets: group_ptr.to_vec(), members: members.to_vec() })
    }

    /// Segments with equal ids are a group. Groups come in the order of their first member, members in that of their segments.
    pub fn from_ids(ids: &[i32]) -> Groups {
        let mut order = std::collections::HashMap::new();
        let groups: Vec<usize> = ids
            .iter()
            .map(|id| {
                let next = order.len();
                *order.entry(id).or_insert(next)
            })
            .collect();
        let mut offsets = vec![0_u32; order.len() + 1];
        for &group in &groups {
            offsets[group + 1] += 1;
        }
        for group in 0..order.len() {
            offsets[group + 1] += offsets[group];
        }
        let mut next = offsets.clone();
        let mut members = vec![0; ids.len()];
        for (segment, &group) in groups.iter().enumerate() {
            members[next[group] as usize] = segment as u32;
            next[group] += 1;
        }
        Groups { offsets, members }
    }

    /// G.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }
    /// True if there are no groups.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The members of group `index`.
    pub fn members(&self, index: usize) -> &[u32] {
        &self.members[self.offsets[index] as usize..self.offsets[index + 1] as usize]
    }
    /// `group_ptr`, `[G + 1]`.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }
    /// `group_members`: all groups' members, one group behind the other.
    pub fn all_members(&self) -> &[u32] {
        &self.members
    }
}
