//! How much scratch memory a call needs, and what lies where in it.

const MOERL_OBJECTIVE_TALLY: u32 = 16;
use crate::segments::SEGMENT_TILE;

/// The parts of the workspace of [`objective`](crate::objective), as byte offsets from a multiple of 16.
///
/// The tickets must be zero when a call begins, and are when it ends: the last unit of every tile of segments, and the last tile of all,
/// finds out by them that it is the last, and sets them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObjectiveWorkspace {
    segments: usize,
    units: usize,
}

/// The workspace begins at the first multiple of this.
pub(crate) const WORKSPACE_ALIGNMENT: usize = 16;

impl ObjectiveWorkspace {
    pub(crate) fn of(segments: usize, units: usize) -> ObjectiveWorkspace {
        ObjectiveWorkspace { segments, units }
    }

    /// Tiles of segments.
    pub(crate) fn segment_tiles(&self) -> usize {
        self.segments.div_ceil(SEGMENT_TILE)
    }

    /// u32 tickets: one for all tiles and one per tile; before them two u64 counts for local denominators.
    pub(crate) fn tickets(&self) -> usize {
        0
    }
    /// 16 bytes per segment.
    pub(crate) fn coefficients(&self) -> usize {
        (16 + (1 + self.segment_tiles()) * 4).next_multiple_of(16)
    }
    /// f64 planes `[5][S]`.
    pub(crate) fn sums(&self) -> usize {
        self.coefficients() + self.segments * 16
    }
    /// f64 per segment: its value.
    pub(crate) fn values(&self) -> usize {
        self.sums() + 5 * self.segments * 8
    }
    /// 16 bytes per unit: the sums of a tile.
    pub(crate) fn records(&self) -> usize {
        (self.values() + self.segments * 8).next_multiple_of(16)
    }
    /// f32 statistics per unit.
    pub(crate) fn unit_tallies(&self) -> usize {
        self.records() + self.units * 16
    }
    /// f64 statistics and value per tile of segments.
    pub(crate) fn tile_tallies(&self) -> usize {
        self.unit_tallies() + self.units * MOERL_OBJECTIVE_TALLY as usize * 4
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        let tallies = self.segment_tiles() * (MOERL_OBJECTIVE_TALLY as usize + 1) * 8;
        self.tile_tallies().next_multiple_of(16) + tallies + WORKSPACE_ALIGNMENT
    }
}
