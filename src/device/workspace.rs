//! How much scratch memory a call needs, and what lies where in it.

use crate::abi::{MOERL_CORRECTION_PLANES, MOERL_MOMENTS_TILE, MOERL_TALLY, MOERL_TALLY_PLACES};
use crate::backend::Backend;
use crate::correction::Plans;
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

/// What memory is read in: records that begin there take no sector more than they fill.
const SECTOR: usize = 32;

/// The `end` bytes of a workspace from its first multiple of 16 on.
fn aligned<M: Memory>(workspace: ViewMut<'_, u8, M>, end: usize) -> ViewMut<'_, u8, M> {
    aligned_to(ALIGNMENT, workspace, end)
}

fn aligned_to<M: Memory>(alignment: usize, workspace: ViewMut<'_, u8, M>, end: usize) -> ViewMut<'_, u8, M> {
    let skipped = workspace.address().next_multiple_of(alignment) - workspace.address();
    workspace.slice(skipped..skipped + end)
}

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

    /// Tiles of 1024 segments: the leaves of the tree of the loss over segments.
    fn tiles(&self) -> usize {
        self.segments.div_ceil(1024)
    }

    /// u32 per node of the tree over units. Before them two u64: the counts of local denominators.
    pub(crate) fn tickets(&self) -> usize {
        16
    }
    /// u32 per node of the tree over tiles of segments.
    pub(crate) fn segment_tickets(&self) -> usize {
        self.tickets() + nodes(self.units) * 4
    }
    /// u32 per unit: for the groups of a long segment's tiles.
    pub(crate) fn group_tickets(&self) -> usize {
        self.segment_tickets() + nodes(self.tiles()) * 4
    }
    /// u32 per unit: for a long segment's groups.
    pub(crate) fn tile_tickets(&self) -> usize {
        self.group_tickets() + self.units * 4
    }
    /// u64 per tile of segments.
    pub(crate) fn arrivals(&self) -> usize {
        (self.tile_tickets() + self.units * 4).next_multiple_of(8)
    }
    /// 32 bytes per segment.
    pub(crate) fn coefficients(&self) -> usize {
        (self.arrivals() + self.tiles() * 8).next_multiple_of(SECTOR)
    }
    /// Eight planes of one f64 per segment.
    pub(crate) fn sums(&self) -> usize {
        self.coefficients() + self.segments * 32
    }
    /// Two f64 per group of 32 segments: what they add to the loss, and to the sum of s.
    pub(crate) fn group_sums(&self) -> usize {
        (self.sums() + self.segments * 8 * 8).next_multiple_of(SECTOR)
    }
    /// 32 bytes per unit: what a tile sums to.
    pub(crate) fn tile_records(&self) -> usize {
        (self.group_sums() + self.segments.div_ceil(32) * 2 * 8).next_multiple_of(SECTOR)
    }
    /// Eight f64 per unit: what a group of tiles sums to, where its first tile is.
    pub(crate) fn group_records(&self) -> usize {
        self.tile_records() + self.units * 32
    }
    /// A tally of f64 per unit and node above.
    pub(crate) fn tallies(&self) -> usize {
        (self.group_records() + self.units * 8 * 8).next_multiple_of(SECTOR)
    }
    /// A tally of f64 per tile of segments and node above.
    pub(crate) fn segment_tallies(&self) -> usize {
        self.tallies() + (self.units + nodes(self.units)) * MOERL_TALLY as usize * 8
    }
    fn end(&self) -> usize {
        self.segment_tallies() + (self.tiles() + nodes(self.tiles())) * MOERL_TALLY as usize * 8
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + SECTOR
    }

    /// The part of a workspace of [`bytes`](Self::bytes) that the offsets count from.
    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned_to(SECTOR, workspace, self.end())
    }
}

/// The parts of the workspace of [`group_advantages`](crate::Backend::group_advantages), for groups in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupWorkspace {
    chunks: usize,
}

impl GroupWorkspace {
    pub(crate) fn of(chunks: usize) -> GroupWorkspace {
        GroupWorkspace { chunks }
    }

    /// u32 per chunk: cleared before a launch counts on them.
    pub(crate) fn tickets(&self) -> usize {
        0
    }
    /// Six f64 per chunk.
    pub(crate) fn sums(&self) -> usize {
        (self.chunks * 4).next_multiple_of(ALIGNMENT)
    }
    /// One f64 per chunk.
    pub(crate) fn squares(&self) -> usize {
        self.sums() + self.chunks * 48
    }
    /// 32 bytes per chunk.
    pub(crate) fn scales(&self) -> usize {
        self.squares() + self.chunks * 8
    }
    fn end(&self) -> usize {
        self.scales() + self.chunks * 32
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        if self.chunks == 0 { 0 } else { self.end() + ALIGNMENT }
    }

    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}

/// The parts of the workspace of [`batch_moments`](crate::Backend::batch_moments).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MomentsWorkspace {
    tiles: usize,
}

impl MomentsWorkspace {
    pub(crate) fn of(len: usize) -> MomentsWorkspace {
        MomentsWorkspace { tiles: len.div_ceil(MOERL_MOMENTS_TILE as usize).max(1) }
    }

    /// How many blocks take a tile: one also where there is nothing to add up, for sums of 0 are to be written.
    pub(crate) fn tiles(&self) -> usize {
        self.tiles
    }
    /// One u32: cleared before a launch counts on it. The records follow.
    pub(crate) fn ticket(&self) -> usize {
        0
    }
    /// Two f64 per tile.
    pub(crate) fn records(&self) -> usize {
        ALIGNMENT
    }
    fn end(&self) -> usize {
        self.records() + self.tiles * 16
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + ALIGNMENT
    }

    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}

/// The parts of the workspace of [`token_advantages`](crate::Backend::token_advantages).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenWorkspace {
    units: usize,
}

impl TokenWorkspace {
    pub(crate) fn of(units: usize) -> TokenWorkspace {
        TokenWorkspace { units }
    }

    /// u32 per unit: cleared before a launch counts on them.
    pub(crate) fn tickets(&self) -> usize {
        0
    }
    /// 40 bytes per unit: what a tile makes of the state to its right.
    pub(crate) fn maps(&self) -> usize {
        (self.units * 4).next_multiple_of(ALIGNMENT)
    }
    /// 16 bytes per unit: that state.
    pub(crate) fn carries(&self) -> usize {
        self.maps() + self.units * 40
    }
    fn end(&self) -> usize {
        self.carries() + self.units * 16
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + ALIGNMENT
    }

    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}

/// The parts of the workspace of [`token_baseline`](crate::Backend::token_baseline).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BaselineWorkspace {
    tokens: usize,
    segments: usize,
    units: usize,
}

impl BaselineWorkspace {
    pub(crate) fn of(tokens: usize, segments: usize, units: usize) -> BaselineWorkspace {
        BaselineWorkspace { tokens, segments, units }
    }

    /// u32 per unit: cleared before a launch counts on them, with the counts.
    pub(crate) fn tickets(&self) -> usize {
        0
    }
    /// u32 per segment: its counted tokens.
    pub(crate) fn counts(&self) -> usize {
        self.units * 4
    }
    /// 16 bytes per unit: what the tiles before one sum to.
    pub(crate) fn energies(&self) -> usize {
        (self.counts() + self.segments * 4).next_multiple_of(ALIGNMENT)
    }
    /// f64 per token.
    pub(crate) fn cumulative(&self) -> usize {
        self.energies() + self.units * 16
    }
    /// u32 per token.
    pub(crate) fn positions(&self) -> usize {
        self.cumulative() + self.tokens * 8
    }
    fn end(&self) -> usize {
        self.positions() + self.tokens * 4
    }
    /// All of it, and what aligning may cost.
    pub(crate) fn bytes(&self) -> usize {
        self.end() + ALIGNMENT
    }

    pub(crate) fn aligned<'a, M: Memory>(&self, workspace: ViewMut<'a, u8, M>) -> ViewMut<'a, u8, M> {
        aligned(workspace, self.end())
    }
}

/// The parts of the workspace of [`correction`](mod@crate::correction), as byte offsets from a multiple of 16.
///
/// Tickets are cleared in stream order before a launch counts on them; nothing goes from one launch to the next but planes and decisions
/// within a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CorrectionWorkspace {
    segments: usize,
    pieces: usize,
    units: usize,
    /// Blocks of `finish`.
    deciding: usize,
}

/// Segments of a block of `finish`; groups of one where groups decide.
pub(crate) const DECIDING_SEGMENTS: usize = 128;
pub(crate) const DECIDING_GROUPS: usize = 4;

impl CorrectionWorkspace {
    pub(crate) fn of<B: Backend>(plans: &Plans<'_, B>) -> CorrectionWorkspace {
        let segments = plans.segments.segments().len();
        let groups = plans.groups.map_or(0, |groups| groups.groups().len());
        CorrectionWorkspace {
            segments,
            pieces: plans.pieces().len(),
            units: plans.pieces_plan().unit_count,
            deciding: segments.div_ceil(DECIDING_SEGMENTS).max(groups.div_ceil(DECIDING_GROUPS)),
        }
    }

    fn leaves(&self) -> usize {
        self.units.max(self.deciding)
    }

    /// u32 per node of the trees of totals.
    pub(crate) fn tickets(&self) -> usize {
        0
    }
    /// u32 per unit: for the groups of a long piece's tiles.
    pub(crate) fn group_tickets(&self) -> usize {
        nodes(self.leaves()) * 4
    }
    /// u32 per unit: for a long piece's groups.
    pub(crate) fn tile_tickets(&self) -> usize {
        self.group_tickets() + self.units * 4
    }
    /// 8 bytes per piece.
    pub(crate) fn decisions(&self) -> usize {
        (self.tile_tickets() + self.units * 4).next_multiple_of(ALIGNMENT)
    }
    /// One f64 per piece and plane.
    pub(crate) fn planes(&self) -> usize {
        self.decisions() + self.pieces * 8
    }
    /// u32 per segment.
    pub(crate) fn multiplicities(&self) -> usize {
        self.planes() + self.pieces * MOERL_CORRECTION_PLANES as usize * 8
    }
    /// 64 bytes per unit: what a tile sums to.
    pub(crate) fn tile_records(&self) -> usize {
        (self.multiplicities() + self.segments * 4).next_multiple_of(ALIGNMENT)
    }
    /// An f64 per unit and plane: what a group of tiles sums to, where its first tile is.
    pub(crate) fn group_records(&self) -> usize {
        self.tile_records() + self.units * 64
    }
    /// A tally of f64 per leaf and node.
    pub(crate) fn tallies(&self) -> usize {
        self.group_records() + self.units * MOERL_CORRECTION_PLANES as usize * 8
    }
    fn end(&self) -> usize {
        self.tallies() + (self.leaves() + nodes(self.leaves())) * MOERL_TALLY_PLACES as usize * 8
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
