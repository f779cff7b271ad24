//! Rewards against those of their group.

use bytemuck::{Pod, Zeroable};

use crate::backend::{Backend, Buffer};
use crate::device::workspace::GroupWorkspace;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Memory, View, ViewMut};
use crate::segments::Groups;

/// The advantage of the only member of a group, after non-finite rewards have left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Single {
    /// 0 (TRL).
    #[default]
    Zero,
    /// Its reward (verl).
    Reward,
}

/// What is subtracted from a reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Baseline {
    /// The mean of the group.
    #[default]
    Mean,
    /// The mean of the other members (RLOO, 2402.14740).
    LeaveOneOut,
    /// Σ nR / Σ n (OPO, 2505.23585), for [`Call::lengths`] n: the baseline of least variance if a segment's gradient grows with its length.
    LengthWeighted,
}

/// Group-normalised advantage.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// What is subtracted.
    pub baseline: Baseline,
    /// Divide by the group's standard deviation.
    pub std: bool,
    /// Subtracted from K in the variance: 1 (verl, TRL) or 0. A group of no more members than that has sd 0.
    pub ddof: u32,
    /// ε, added to the standard deviation. Not negative.
    pub epsilon: f64,
    /// A group with max R − min R ≤ `degenerate_tol`·max(1, max|R|) gets exactly 0; 0 turns the rule off. Not negative.
    pub degenerate_tol: f64,
    /// A group of one.
    pub single: Single,
}

impl Default for Config {
    /// GRPO: with the standard deviation, ddof 1, ε 1e-6, degenerate_tol 1e-6, 0 for a group of one.
    fn default() -> Config {
        Config {
            baseline: Baseline::Mean,
            std: true,
            ddof: 1,
            epsilon: 1e-6,
            degenerate_tol: 1e-6,
            single: Single::Zero,
        }
    }
}

impl Config {
    /// Dr. GRPO: without the standard deviation.
    pub fn without_std() -> Config {
        Config { std: false, ..Config::default() }
    }

    /// RLOO: the mean of the others is subtracted, nothing divides.
    pub fn rloo() -> Config {
        Config { baseline: Baseline::LeaveOneOut, ..Config::without_std() }
    }

    /// OPO: the mean by length is subtracted, nothing divides. Needs [`Call::lengths`].
    pub fn opo() -> Config {
        Config { baseline: Baseline::LengthWeighted, ..Config::without_std() }
    }

    /// The same with what a group of one gets.
    pub fn with_single(self, single: Single) -> Config {
        Config { single, ..self }
    }

    /// TRL: ε 1e-4.
    pub fn trl(std: bool) -> Config {
        Config { std, epsilon: 1e-4, ..Config::default() }
    }

    /// verl: a group of one keeps its reward.
    pub fn verl(std: bool) -> Config {
        Config { std, single: Single::Reward, ..Config::default() }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        for (name, value) in [("epsilon", self.epsilon), ("degenerate_tol", self.degenerate_tol)] {
            checks.require(value >= 0.0 && value.is_finite(), Kind::Config, name, || {
                format!("is {value}, needs a finite number of at least 0")
            });
        }
        checks.require(self.ddof <= 1, Kind::Config, "ddof", || format!("is {}, needs 0 or 1", self.ddof));
        checks.finish()
    }
}

/// Members of a group beyond which blocks share it, and of such a block's share. Part of the contract on bits.
pub(crate) const CHUNK: usize = 1024;

/// A piece of a group that one block takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Piece {
    pub(crate) group: u32,
    /// Which of the group's pieces.
    pub(crate) index: u32,
}

/// The pieces of the groups that are too large for one warp.
fn chunks(groups: &Groups) -> Vec<Piece> {
    let large = (0..groups.len()).map(|group| (group, groups.members(group).len())).filter(|&(_, size)| size > CHUNK);
    large
        .flat_map(|(group, size)| {
            (0..size.div_ceil(CHUNK)).map(move |index| Piece { group: group as u32, index: index as u32 })
        })
        .collect()
}

/// Groups, where a backend's kernels can read them.
#[derive(Debug)]
pub struct GroupPlan<B: Backend> {
    groups: Groups,
    pub(crate) offsets: B::Buffer<u32>,
    pub(crate) members: B::Buffer<u32>,
    pub(crate) chunks: B::Buffer<Piece>,
    pub(crate) chunk_count: usize,
}

impl<B: Backend> GroupPlan<B> {
    /// Hands the groups to the backend.
    ///
    /// # Errors
    /// The backend's, where it cannot take the arrays.
    pub fn new(backend: &B, stream: &B::Stream, groups: &Groups) -> Result<GroupPlan<B>> {
        let chunks = chunks(groups);
        Ok(GroupPlan {
            groups: groups.clone(),
            offsets: backend.upload(stream, groups.offsets())?,
            members: backend.upload(stream, groups.all_members())?,
            chunk_count: chunks.len(),
            chunks: backend.upload(stream, &chunks)?,
        })
    }

    /// The groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(crate) fn offsets(&self) -> View<'_, u32, B::Memory> {
        self.offsets.view()
    }
    pub(crate) fn members(&self) -> View<'_, u32, B::Memory> {
        self.members.view()
    }
}

/// The bytes of workspace that calls with these groups need: 0 unless a group has more than 1024 members.
pub fn workspace_bytes<B: Backend>(groups: &GroupPlan<B>) -> usize {
    GroupWorkspace::of(groups.chunk_count).bytes()
}

/// How many groups and rewards were out of the ordinary, by place in [`Call::counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Count {
    /// Groups that the rule of `degenerate_tol` set to 0.
    GroupsZeroStd,
    /// Groups of one.
    GroupsSizeOne,
    /// Rewards that are NaN or infinite.
    RewardsNonFinite,
}

/// The length of [`Call::counts`].
pub const COUNTS: usize = 3;

/// The advantage of what is left out because something of it is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LeftOut {
    /// 0.
    #[default]
    Zero,
    /// NaN, for what comes before whitening: [`Moments`](crate::advantage::Moments) leaves it out, and [`Whiten`](crate::advantage::Whiten) makes
    /// it 0.
    Nan,
}

impl LeftOut {
    pub(crate) fn advantage(self) -> f32 {
        match self {
            LeftOut::Zero => 0.0,
            LeftOut::Nan => f32::NAN,
        }
    }
}

/// One call on S segments in G groups.
#[derive(Debug)]
pub struct Call<'a, M> {
    /// `[S]`
    pub rewards: View<'a, f32, M>,
    /// `[S]`, counted tokens: see [`Backend::count_tokens`](crate::Backend::count_tokens). For [`Baseline::LengthWeighted`].
    pub lengths: Option<View<'a, u32, M>>,
    /// `[S]`; of segments in no group nothing is written.
    pub advantages: ViewMut<'a, f32, M>,
    /// What a segment whose reward is not finite gets.
    pub left_out: LeftOut,
    /// `[`[`COUNTS`]`]`: added to what is there; see [`Count`].
    pub counts: Option<ViewMut<'a, u64, M>>,
    /// [`workspace_bytes`]; may hold anything.
    pub workspace: Option<ViewMut<'a, u8, M>>,
}

impl<'a, M: Memory> Call<'a, M> {
    /// A call with what every one has.
    pub fn new(rewards: View<'a, f32, M>, advantages: ViewMut<'a, f32, M>) -> Call<'a, M> {
        Call { rewards, lengths: None, advantages, left_out: LeftOut::Zero, counts: None, workspace: None }
    }

    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Segments`, `MissingInput`, `Workspace`, `Overlap`.
    pub fn validate<B: Backend<Memory = M>>(&self, config: &Config, plan: &GroupPlan<B>) -> Result<()> {
        let (segments, groups) = (self.rewards.len(), plan.groups());
        let mut checks = Checks::new();
        checks.merge(config.validate());
        array(&mut checks, "advantages", Some(self.advantages.as_view()), segments);
        array(&mut checks, "rewards", Some(self.rewards), segments);
        array(&mut checks, "lengths", self.lengths, segments);
        array(&mut checks, "counts", self.counts.as_ref().map(ViewMut::as_view), COUNTS);
        let needs_lengths = config.baseline == Baseline::LengthWeighted;
        checks.require(!needs_lengths || self.lengths.is_some(), Kind::MissingInput, "lengths", || {
            format!("are needed for {:?}", config.baseline)
        });
        let largest = groups.all_members().iter().max();
        checks.require(largest.is_none_or(|&member| (member as usize) < segments), Kind::Segments, "rewards", || {
            format!("has {segments} elements, but a group names segment {}", largest.copied().unwrap_or_default())
        });
        let (given, needed) = (self.workspace.as_ref().map_or(0, ViewMut::len), workspace_bytes(plan));
        checks.require(given >= needed, Kind::Workspace, "workspace", || {
            format!("has {given} bytes, needs {needed} for a group of more than {CHUNK} members")
        });
        checks.disjoint(&[
            Some(self.rewards.extent("rewards")),
            self.lengths.map(|array| array.extent("lengths")),
            Some(self.advantages.extent("advantages")),
            self.counts.as_ref().map(|array| array.extent("counts")),
            self.workspace.as_ref().map(|array| array.extent("workspace")),
        ]);
        checks.finish()
    }
}

/// Adds a problem unless an array that is there has `needed` elements at an address that fits them.
pub(crate) fn array<T: Pod, M: Memory>(
    checks: &mut Checks,
    name: &'static str,
    array: Option<View<'_, T, M>>,
    needed: usize,
) {
    if let Some(array) = array {
        checks.shape(name, &[array.len()], &[needed]);
        checks.require(array.address().is_multiple_of(size_of::<T>()), Kind::Alignment, name, || {
            format!("address {:#x} is not a multiple of {}", array.address(), size_of::<T>())
        });
    }
}
