//! Statistics over a batch, and the estimators that are made of them.

use crate::advantage::group::{Call, Config, GroupPlan, LeftOut, array};
use crate::backend::Backend;
use crate::device::workspace::MomentsWorkspace;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Memory, View, ViewMut};

/// What a value counts.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a, M> {
    /// 1.
    One,
    /// `[L]`: 1 where not 0, else the value is absent.
    Mask(View<'a, u8, M>),
    /// `[L]`: so many times.
    Counts(View<'a, u32, M>),
}

impl<'a, M: Memory> Weights<'a, M> {
    pub(crate) fn mask(&self) -> Option<View<'a, u8, M>> {
        if let Weights::Mask(mask) = self { Some(*mask) } else { None }
    }
    pub(crate) fn counts(&self) -> Option<View<'a, u32, M>> {
        if let Weights::Counts(counts) = self { Some(*counts) } else { None }
    }
}

/// Which sums a call forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// W = Σ w and Σ w x, in the places 0 and 1; place 2 becomes 0.
    Mean,
    /// Σ w (x − mean)², in place 2, for the mean in the places 0 and 1.
    Squares,
}

/// The length of [`Moments::moments`].
pub const MOMENTS: usize = 3;

/// The first two moments of L values. With ranks: [`Pass::Mean`], all-reduce (SUM) of places 0 and 1, [`Pass::Squares`], all-reduce of place 2.
/// Values that are not finite are absent.
#[derive(Debug)]
pub struct Moments<'a, M> {
    /// `[L]`
    pub values: View<'a, f32, M>,
    /// w
    pub weights: Weights<'a, M>,
    /// `[`[`MOMENTS`]`]`: W, Σ w x, Σ w (x − mean)².
    pub moments: ViewMut<'a, f64, M>,
    /// [`moments_workspace_bytes`]; may hold anything.
    pub workspace: ViewMut<'a, u8, M>,
}

/// The bytes of workspace for the moments of `len` values.
pub fn moments_workspace_bytes(len: usize) -> usize {
    MomentsWorkspace::of(len).bytes()
}

impl<M: Memory> Moments<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Shape`, `Alignment`, `Workspace`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let len = self.values.len();
        let mut checks = Checks::new();
        array(&mut checks, "values", Some(self.values), len);
        array(&mut checks, "mask", self.weights.mask(), len);
        array(&mut checks, "weights", self.weights.counts(), len);
        array(&mut checks, "moments", Some(self.moments.as_view()), MOMENTS);
        let needed = moments_workspace_bytes(len);
        checks.require(self.workspace.len() >= needed, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {needed}", self.workspace.len())
        });
        checks.disjoint(&[
            Some(self.values.extent("values")),
            self.weights.mask().map(|array| array.extent("mask")),
            self.weights.counts().map(|array| array.extent("weights")),
            Some(self.moments.extent("moments")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish()
    }
}

/// How values become whitened ones: (x − mean) / √(var + ε), var = squares / (W − ddof).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Whitening {
    /// Subtract the mean.
    pub centre: bool,
    /// Subtracted from W in the variance: 1 or 0.
    pub ddof: u32,
    /// ε. Not negative.
    pub epsilon: f64,
    /// ε is added to the variance; else to the standard deviation.
    pub epsilon_in_root: bool,
}

impl Default for Whitening {
    /// verl's `masked_whiten`: centred, ddof 1, √(var + 1e-8).
    fn default() -> Whitening {
        Whitening { centre: true, ddof: 1, epsilon: 1e-8, epsilon_in_root: true }
    }
}

impl Whitening {
    /// x / (sd + ε), for values that are centred already.
    pub fn by_deviation(epsilon: f64) -> Whitening {
        Whitening { centre: false, ddof: 1, epsilon, epsilon_in_root: false }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        checks.require(self.epsilon >= 0.0 && self.epsilon.is_finite(), Kind::Config, "epsilon", || {
            format!("is {}, needs a finite number of at least 0", self.epsilon)
        });
        checks.require(self.ddof <= 1, Kind::Config, "ddof", || format!("is {}, needs 0 or 1", self.ddof));
        checks.finish()
    }
}

/// L values to be whitened, in place. Without two values that count there is no deviation, and all become 0; so do absent ones and those that are
/// not finite.
#[derive(Debug)]
pub struct Whiten<'a, M> {
    /// `[L]`
    pub values: ViewMut<'a, f32, M>,
    /// `[L]`: absent where 0.
    pub mask: Option<View<'a, u8, M>>,
    /// Of [`Moments`].
    pub moments: View<'a, f64, M>,
}

impl<M: Memory> Whiten<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`.
    pub fn validate(&self, config: &Whitening) -> Result<()> {
        let len = self.values.len();
        let mut checks = Checks::new();
        checks.merge(config.validate());
        array(&mut checks, "values", Some(self.values.as_view()), len);
        array(&mut checks, "mask", self.mask, len);
        array(&mut checks, "moments", Some(self.moments), MOMENTS);
        checks.disjoint(&[
            Some(self.values.extent("values")),
            self.mask.map(|array| array.extent("mask")),
            Some(self.moments.extent("moments")),
        ]);
        checks.finish()
    }
}

/// The counted tokens n_i of every segment.
#[derive(Debug)]
pub struct CountTokens<'a, M> {
    /// `[N]`; absent: every token counts.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[S]`
    pub counts: ViewMut<'a, u32, M>,
}

impl<M: Memory> CountTokens<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Shape`, `Alignment`, `Overlap`.
    pub fn validate<B: Backend<Memory = M>>(&self, plan: &crate::objective::Plan<B>) -> Result<()> {
        let mut checks = Checks::new();
        array(&mut checks, "loss_mask", self.loss_mask, plan.segments().tokens());
        array(&mut checks, "counts", Some(self.counts.as_view()), plan.segments().len());
        checks
            .disjoint(&[self.loss_mask.map(|array| array.extent("loss_mask")), Some(self.counts.extent("counts"))])
            .finish()
    }
}

/// Estimates that correct a value model by the weighted error of its prediction: A_i = W_i (R_i − V_i), J_i = V_i + A_i. A segment of which
/// something is not finite gets A = 0 and J = V, or 0 if V is not finite.
#[derive(Debug)]
pub struct DoublyRobust<'a, M> {
    /// R `[S]`
    pub rewards: View<'a, f32, M>,
    /// V `[S]`
    pub values: View<'a, f32, M>,
    /// W `[S]`; absent: 1.
    pub weights: Option<View<'a, f32, M>>,
    /// A `[S]`
    pub advantages: ViewMut<'a, f32, M>,
    /// J `[S]`
    pub estimates: Option<ViewMut<'a, f32, M>>,
    /// `[1]`: segments of which something is not finite are added.
    pub nonfinite: Option<ViewMut<'a, u64, M>>,
}

impl<M: Memory> DoublyRobust<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Shape`, `Alignment`, `Overlap`.
    pub fn validate(&self) -> Result<()> {
        let segments = self.rewards.len();
        let mut checks = Checks::new();
        array(&mut checks, "rewards", Some(self.rewards), segments);
        array(&mut checks, "values", Some(self.values), segments);
        array(&mut checks, "weights", self.weights, segments);
        array(&mut checks, "advantages", Some(self.advantages.as_view()), segments);
        array(&mut checks, "estimates", self.estimates.as_ref().map(ViewMut::as_view), segments);
        array(&mut checks, "nonfinite", self.nonfinite.as_ref().map(ViewMut::as_view), 1);
        checks.disjoint(&[
            Some(self.rewards.extent("rewards")),
            Some(self.values.extent("values")),
            self.weights.map(|array| array.extent("weights")),
            Some(self.advantages.extent("advantages")),
            self.estimates.as_ref().map(|array| array.extent("estimates")),
            self.nonfinite.as_ref().map(|array| array.extent("nonfinite")),
        ]);
        checks.finish()
    }
}

/// Whitens values of one rank: both passes and the division.
///
/// # Errors
/// [`Moments::validate`]'s and [`Whiten::validate`]'s.
pub fn whiten<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Whitening,
    mut values: ViewMut<'_, f32, B::Memory>,
    weights: Weights<'_, B::Memory>,
    mut moments: ViewMut<'_, f64, B::Memory>,
    mut workspace: ViewMut<'_, u8, B::Memory>,
) -> Result<()> {
    for pass in [Pass::Mean, Pass::Squares] {
        let call =
            Moments { values: values.as_view(), weights, moments: moments.reborrow(), workspace: workspace.reborrow() };
        backend.batch_moments(stream, pass, call)?;
    }
    let call = Whiten { values: values.reborrow(), mask: weights.mask(), moments: moments.as_view() };
    backend.batch_whiten(stream, config, call)
}

/// What [`batch_norm`] works on.
#[derive(Debug)]
pub struct BatchNorm<'a, M> {
    /// The group's part: its workspace is also that of the moments, and needs [`moments_workspace_bytes`] of S if those are more.
    pub call: Call<'a, M>,
    /// `[`[`MOMENTS`]`]`
    pub moments: ViewMut<'a, f64, M>,
}

/// (R − mean of the group) / (standard deviation of all rewards + ε), on one rank: TRL's `scale_rewards="batch"`. ε and the rest are those of
/// `config`; its `std` does not matter.
///
/// # Errors
/// [`Call::validate`]'s and [`Moments::validate`]'s.
pub fn batch_norm<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    groups: &GroupPlan<B>,
    batch: BatchNorm<'_, B::Memory>,
) -> Result<()> {
    let BatchNorm { call, mut moments } = batch;
    let Call { rewards, lengths, mut advantages, left_out, counts, workspace } = call;
    let mut workspace = workspace.ok_or_else(|| no_workspace(rewards.len()))?;
    let call = Call {
        rewards,
        lengths,
        advantages: advantages.reborrow(),
        left_out,
        counts,
        workspace: Some(workspace.reborrow()),
    };
    backend.group_advantages(stream, &Config { std: false, ..*config }, groups, call)?;
    for pass in [Pass::Mean, Pass::Squares] {
        let (moments, workspace) = (moments.reborrow(), workspace.reborrow());
        backend.batch_moments(stream, pass, Moments { values: rewards, weights: Weights::One, moments, workspace })?;
    }
    let whitening = Whitening { ddof: config.ddof, ..Whitening::by_deviation(config.epsilon) };
    backend.batch_whiten(stream, &whitening, Whiten { values: advantages, mask: None, moments: moments.as_view() })
}

/// What [`reinforce_pp_baseline`] works on.
#[derive(Debug)]
pub struct ReinforcePpBaseline<'a, M> {
    /// The group's part, with `lengths`: the counted tokens. Its workspace as for [`BatchNorm`].
    pub call: Call<'a, M>,
    /// `[`[`MOMENTS`]`]`
    pub moments: ViewMut<'a, f64, M>,
}

/// R − mean of the group, whitened over the counted tokens of the batch, on one rank (2501.03262): every token of a segment has the segment's
/// advantage, so a segment counts as often as it has tokens. One that is alone in its group counts with what the group's part gives it; one whose reward
/// is not finite is absent, and gets 0.
///
/// # Errors
/// [`Call::validate`]'s and [`Moments::validate`]'s; `MissingInput` without lengths.
pub fn reinforce_pp_baseline<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    groups: &GroupPlan<B>,
    batch: ReinforcePpBaseline<'_, B::Memory>,
) -> Result<()> {
    let ReinforcePpBaseline { call, moments } = batch;
    let Call { rewards, lengths, mut advantages, counts, workspace, .. } = call;
    let mut workspace = workspace.ok_or_else(|| no_workspace(rewards.len()))?;
    let lengths = lengths.ok_or_else(|| {
        crate::Error::invalid(Kind::MissingInput, "lengths", "are needed: a segment counts as often as it has tokens")
    })?;
    let call = Call {
        rewards,
        lengths: Some(lengths),
        advantages: advantages.reborrow(),
        left_out: LeftOut::Nan,
        counts,
        workspace: Some(workspace.reborrow()),
    };
    backend.group_advantages(stream, &Config { std: false, ..*config }, groups, call)?;
    whiten(backend, stream, &Whitening::default(), advantages, Weights::Counts(lengths), moments, workspace)
}

fn no_workspace(segments: usize) -> crate::Error {
    let needed = moments_workspace_bytes(segments);
    crate::Error::invalid(Kind::Workspace, "workspace", format!("is missing, needs {needed} bytes"))
}
