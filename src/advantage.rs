//! Advantages from rewards: how much better an answer is than the other answers to its prompt.
//!
//! For a group of K segments with rewards R, mean μ and standard deviation sd = √(Σ(R−μ)²/(K−ddof)):
//!
//! ```text
//! A_i = (R_i − μ) / (sd + ε)        GRPO (2402.03300)
//! A_i =  R_i − μ                    Dr. GRPO (2503.20783), without the division
//! ```
//!
//! Mean and variance are formed in f64, in two passes: the mean of squares less the square of the mean cancels. A NaN or infinite reward gets A = 0 and leaves its group's
//! statistics. A group whose rewards differ by no more than [`Config::degenerate_tol`] gets exactly 0: dividing by its sd of 1e-8 would make
//! noise an advantage. A group of one gets what [`Single`] says.

use crate::backend::{Backend, Buffer};
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

/// Group-normalised advantage.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
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
        Config { std: true, ddof: 1, epsilon: 1e-6, degenerate_tol: 1e-6, single: Single::Zero }
    }
}

impl Config {
    /// Dr. GRPO: without the standard deviation.
    pub fn without_std() -> Config {
        Config { std: false, ..Config::default() }
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

/// Groups, where a backend's kernels can read them.
#[derive(Debug)]
pub struct GroupPlan<B: Backend> {
    groups: Groups,
    pub(crate) offsets: B::Buffer<u32>,
    pub(crate) members: B::Buffer<u32>,
}

impl<B: Backend> GroupPlan<B> {
    /// Hands the groups to the backend.
    ///
    /// # Errors
    /// The backend's, where it cannot take the arrays.
    pub fn new(backend: &B, stream: &B::Stream, groups: &Groups) -> Result<GroupPlan<B>> {
        Ok(GroupPlan {
            groups: groups.clone(),
            offsets: backend.upload(stream, groups.offsets())?,
            members: backend.upload(stream, groups.all_members())?,
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

/// One call on S segments in G groups.
#[derive(Debug)]
pub struct Call<'a, M> {
    /// `[S]`
    pub rewards: View<'a, f32, M>,
    /// `[S]`; of segments in no group nothing is written.
    pub advantages: ViewMut<'a, f32, M>,
    /// `[`[`COUNTS`]`]`: added to what is there; see [`Count`].
    pub counts: Option<ViewMut<'a, u64, M>>,
}

impl<M: Memory> Call<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Segments`, `Overlap`.
    pub fn validate(&self, config: &Config, groups: &Groups) -> Result<()> {
        let segments = self.rewards.len();
        let mut checks = Checks::new();
        checks.merge(config.validate());
        checks.shape("advantages", &[self.advantages.len()], &[segments]);
        if let Some(counts) = &self.counts {
            checks.shape("counts", &[counts.len()], &[COUNTS]);
        }
        let largest = groups.all_members().iter().max();
        checks.require(largest.is_none_or(|&member| (member as usize) < segments), Kind::Segments, "rewards", || {
            format!("has {segments} elements, but a group names segment {}", largest.copied().unwrap_or_default())
        });
        let addresses = [
            ("rewards", self.rewards.address(), 4),
            ("advantages", self.advantages.address(), 4),
            ("counts", self.counts.as_ref().map_or(0, |array| array.address()), 8),
        ];
        for (name, address, size) in addresses {
            checks.require(address.is_multiple_of(size), Kind::Alignment, name, || {
                format!("address {address:#x} is not a multiple of {size}")
            });
        }
        checks.disjoint(&[
            Some(self.rewards.extent("rewards")),
            Some(self.advantages.extent("advantages")),
            self.counts.as_ref().map(|array| array.extent("counts")),
        ]);
        checks.finish()
    }
}
