//! How much scratch memory a call needs, and what lies where in it.

use crate::abi::MOERL_TALLY;
use crate::memory::{Memory, ViewMut};

/// The parts of the workspace of [`objective`](crate::objective), as byte offsets from a multiple of 16.
///
/// Counts and tickets are cleared in stream order before a launch counts on them, for a call with another plan may have left anything there.
/// Only the counts go from one phase to the next; the rest holds nothing from one launch to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObjectiveWorkspace {
    segments: usize,
    units: usize,
}

const ALIGNMENT: usize = 16;

/// Nodes of a tree with 32 branches over `leaves`, without the leaves.
fn nodes(leaves: usize) -> usize {
    let mut level = leaves;
    let mut sum = 0;
    while level > 1 {
        level = level.div_ceil(32);
        sum += level;
    }
    sum
}

impl ObjectiveWorkspace {
    pub(crate) fn of(segments: usize, units: usize) -> ObjectiveWorkspace {
        ObjectiveWorkspace { segments, units }
    }

    /// The leaves of the tree of tallies: units, or tiles of 1024 segments, which are no more.
    fn leaves(&self) -> usize {
        self.units.max(self.segments.div_ceil(1024))
    }

    /// u32 per node of the tree. Before them two u64: the counts of local denominators.
    pub(crate) fn tickets(&self) -> usize {
        16
    }
    /// u32 per unit: for the groups of a long segment's tiles.
    pub(crate) fn group_tickets(&self) -> usize {
        self.tickets() + nodes(self.leaves()) * 4
    }
    /// u32 per unit: for a long segment's groups.
    pub(crate) fn tile_tickets(&self) -> usize {
        self.group_tickets() + self.units * 4
    }
    /// 32 bytes per segment.
    pub(crate) fn coefficients(&self) -> usize {
        (self.tile_tickets() + self.units * 4).next_multiple_of(ALIGNMENT)
    }
    /// Eight planes of one f64 per segment.
    pub(crate) fn sums(&self) -> usize {
        self.coefficients() + self.segments * 32
    }
    /// 32 bytes per unit: what a tile sums to.
    pub(crate) fn tile_records(&self) -> usize {
        (self.sums() + self.segments * 8 * 8).next_multiple_of(ALIGNMENT)
    }
    /// Eight f64 per unit: what a group of tiles sums to, where its first tile is.
    pub(crate) fn group_records(&self) -> usize {
        self.tile_records() + self.units * 32
    }
    /// A tally of f64 per leaf and node.
    pub(crate) fn tallies(&self) -> usize {
        (self.group_records() + self.units * 8 * 8).next_multiple_of(ALIGNMENT)
    }
    fn end(&self) -> usize {
        self.tallies() + (self.leaves() + nodes(self.leaves())) * MOERL_TALLY as usize * 8
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + ALIGNMENT
    }

    /// The part of a workspace of [`bytes`](Self::bytes) that the offsets count from.
    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}

/// Tokens of a block of `kernels/covariance.cu`.
pub(crate) const COVARIANCE_BLOCK: usize = 1024;

/// The parts of the workspace of [`covariance`](crate::covariance): the state, a ticket, a histogram, then sums of every block. All but the sums
/// are cleared in stream order before a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CovarianceWorkspace {
    blocks: usize,
}

impl CovarianceWorkspace {
    pub(crate) fn of(tokens: usize) -> CovarianceWorkspace {
        CovarianceWorkspace { blocks: tokens.div_ceil(COVARIANCE_BLOCK) }
    }
    /// u32, behind the state of 32 bytes.
    pub(crate) fn ticket(&self) -> usize {
        size_of::<crate::abi::MoerlCovarianceState>()
    }
    /// u32 for each of 256 digits.
    pub(crate) fn histogram(&self) -> usize {
        self.ticket() + ALIGNMENT
    }
    /// Three f64 per block.
    pub(crate) fn sums(&self) -> usize {
        self.histogram() + 256 * 4
    }
    fn end(&self) -> usize {
        self.sums() + self.blocks * 3 * 8
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + ALIGNMENT
    }
    /// The part of a workspace of [`bytes`](Self::bytes) that the offsets count from.
    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}

fn aligned<M: Memory>(workspace: ViewMut<'_, u8, M>, bytes: usize) -> ViewMut<'_, u8, M> {
    let skipped = workspace.address().next_multiple_of(ALIGNMENT) - workspace.address();
    workspace.slice(skipped..skipped + bytes)
}

/// The parts of the workspace of [`route_change`](crate::route_change): a ticket, which is cleared in stream order before a call, and the
/// sums of every block of 1024 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteChangeWorkspace {
    blocks: usize,
}

impl RouteChangeWorkspace {
    pub(crate) fn of(tokens: usize) -> RouteChangeWorkspace {
        RouteChangeWorkspace { blocks: tokens.div_ceil(1024).max(1) }
    }
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }
    /// An f64 for every number of every bin, of every block.
    pub(crate) fn records(&self) -> usize {
        ALIGNMENT
    }
    fn end(&self) -> usize {
        self.records() + self.blocks * (crate::abi::MOERL_ROUTE_BINS * crate::abi::MOERL_ROUTE_NUMBERS) as usize * 8
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + ALIGNMENT
    }
    /// The part of a workspace of [`bytes`](Self::bytes) that the offsets count from.
    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}
