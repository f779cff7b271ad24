//! Correction calls with their results on the host: what `step` and `check` share.

use moerl::advantage::GroupPlan;
use moerl::correction::{Batch, Config, GLOBALS, Output, Plans, REJECTED, diagnostics, workspace_bytes};
use moerl::error::Fault;
use moerl::objective::{Advantages, Groups, Plan, Segments};
use moerl::{Backend, Buffer, Result};

use crate::clock::Clock;
use crate::findings::taken;
use crate::objective::HostAdvantages;

/// What a call reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The packed pieces.
    pub segments: &'a Segments,
    /// `[N]`, under the old policy, or the current one where there is none.
    pub old: &'a [f32],
    /// `[N]`, under the rollout engine's.
    pub rollout: &'a [f32],
    /// `[N]`: 1 where a token counts.
    pub mask: &'a [u8],
    /// Which segments answer one prompt.
    pub groups: Option<&'a Groups>,
    /// A.
    pub advantages: Option<HostAdvantages<'a>>,
    /// `[S]`: R, where the correction is made of rewards.
    pub rewards: Option<&'a [f32]>,
}

/// What a call returned.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `[N]`: the whole weight of every token.
    pub weights: Vec<f32>,
    /// `[N]`: 1 where a token counts and nothing rejects it.
    pub keep: Vec<u8>,
    /// `[N]`: δ.
    pub log_ratio: Vec<f32>,
    /// `[S]`: X.
    pub log_weights: Vec<f64>,
    /// `[S]`: what the correction makes of rewards; empty where it makes nothing of them.
    pub factors: Vec<f32>,
    /// `[G]`: the estimate of every group's mean reward; empty likewise.
    pub expected_rewards: Vec<f64>,
    /// Tokens and segments that every rejection rejects.
    pub rejected: Vec<u64>,
    /// What ranks add up.
    pub globals: Vec<f64>,
    /// The sums of the diagnostics.
    pub sums: Vec<f64>,
}

/// One call, and the fault that its error word held.
///
/// # Errors
/// The operation's and the backend's.
pub fn run<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    inputs: &Inputs<'_>,
    clock: &mut Clock,
) -> Result<(Outcome, Option<Fault>)> {
    let plan = Plan::new(backend, stream, inputs.segments)?;
    let groups = inputs.groups.map(|groups| GroupPlan::new(backend, stream, groups)).transpose()?;
    let plans = Plans { groups: groups.as_ref(), ..Plans::new(&plan) };
    let (old, rollout) = (backend.upload(stream, inputs.old)?, backend.upload(stream, inputs.rollout)?);
    let mask = backend.upload(stream, inputs.mask)?;
    let advantages = match inputs.advantages {
        Some(HostAdvantages::PerSegment(values) | HostAdvantages::PerToken(values)) => {
            Some(backend.upload(stream, values)?)
        }
        None => None,
    };
    let rewards = inputs.rewards.map(|rewards| backend.upload(stream, rewards)).transpose()?;
    let mut factors = config.makes_advantages().then(|| backend.allocate(stream, inputs.segments.len())).transpose()?;
    let group_count = inputs.groups.map_or(0, Groups::len);
    let mut expected = config.makes_advantages().then(|| backend.allocate(stream, group_count)).transpose()?;
    let ids = backend.upload(stream, &(0..inputs.segments.len() as u64).collect::<Vec<_>>())?;
    let (n, s) = (inputs.segments.tokens(), inputs.segments.len());
    let (mut weights, mut log_ratio) = (backend.allocate(stream, n)?, backend.allocate(stream, n)?);
    let (mut keep, mut log_weights) = (backend.allocate(stream, n)?, backend.allocate(stream, s)?);
    let (mut rejected, mut globals) = (backend.allocate(stream, REJECTED)?, backend.allocate(stream, GLOBALS)?);
    let mut sums = backend.allocate(stream, diagnostics::LEN)?;
    let mut workspace = backend.allocate(stream, workspace_bytes(&plans))?;
    let mut errors = backend.error_word(stream)?;
    let output = Output {
        weights: Some(weights.view_mut()),
        keep: Some(keep.view_mut()),
        log_ratio: Some(log_ratio.view_mut()),
        segment_log_weights: Some(log_weights.view_mut()),
        advantages: factors.as_mut().map(Buffer::view_mut),
        expected_rewards: expected.as_mut().map(Buffer::view_mut),
        rejected: Some(rejected.view_mut()),
        globals: Some(globals.view_mut()),
        diagnostics: Some(sums.view_mut()),
        errors: Some(errors.view_mut()),
        ..Output::new(workspace.view_mut())
    };
    let batch = Batch {
        loss_mask: Some(mask.view()),
        segment_ids: Some(ids.view()),
        rewards: rewards.as_ref().map(Buffer::view),
        advantages: advantages.as_ref().map(|values| match inputs.advantages {
            Some(HostAdvantages::PerToken(_)) => Advantages::PerToken(values.view()),
            _ => Advantages::PerSegment(values.view()),
        }),
        ..Batch::new(old.view(), rollout.view())
    };
    clock.time(backend, stream, || backend.correction(stream, config, plans, batch, output))?;
    let fault = taken(backend.check(stream, &mut errors))?;
    let outcome = Outcome {
        weights: backend.download(stream, weights.view())?,
        keep: backend.download(stream, keep.view())?,
        log_ratio: backend.download(stream, log_ratio.view())?,
        log_weights: backend.download(stream, log_weights.view())?,
        factors: factors.map_or(Ok(Vec::new()), |factors| backend.download(stream, factors.view()))?,
        expected_rewards: expected.map_or(Ok(Vec::new()), |expected| backend.download(stream, expected.view()))?,
        rejected: backend.download(stream, rejected.view())?,
        globals: backend.download(stream, globals.view())?,
        sums: backend.download(stream, sums.view())?,
    };
    Ok((outcome, fault))
}
