//! Advantage calls with their results on the host: what `step` and `check` share.

use moerl::advantage::{
    self, BatchNorm, Call, Config, GroupPlan, MOMENTS, ReinforcePp, ReinforcePpBaseline, TokenCall,
    moments_workspace_bytes, token_workspace_bytes, workspace_bytes,
};
use moerl::objective::{Groups, Plan, Segments};
use moerl::{Backend, Buffer, Result};

use crate::clock::Clock;

/// Which advantages of segments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimator {
    /// [`Config`] alone.
    Group(Config),
    /// Over the standard deviation of the batch.
    BatchNorm(Config),
    /// Whitened over the counted tokens of the batch.
    ReinforcePpBaseline(Config),
}

/// What segments got, and how many tokens of each count.
#[derive(Clone, Copy, Debug)]
pub struct Rewards<'a> {
    /// The answers to one prompt.
    pub groups: &'a Groups,
    /// `[S]`
    pub rewards: &'a [f32],
    /// `[S]`, for the estimators that weigh by it.
    pub lengths: Option<&'a [u32]>,
}

/// The advantage of every segment, from its reward and those of its group.
///
/// # Errors
/// The operation's and the backend's.
pub fn run<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    estimator: &Estimator,
    inputs: &Rewards<'_>,
    clock: &mut Clock,
) -> Result<Vec<f32>> {
    let groups = GroupPlan::new(backend, stream, inputs.groups)?;
    let rewards = backend.upload(stream, inputs.rewards)?;
    let lengths = inputs.lengths.map(|lengths| backend.upload(stream, lengths)).transpose()?;
    let mut advantages = backend.allocate::<f32>(stream, inputs.rewards.len())?;
    let mut moments = backend.allocate::<f64>(stream, MOMENTS)?;
    let bytes = workspace_bytes(&groups).max(moments_workspace_bytes(inputs.rewards.len()));
    let mut workspace = backend.allocate::<u8>(stream, bytes)?;
    let call = Call {
        lengths: lengths.as_ref().map(Buffer::view),
        workspace: Some(workspace.view_mut()),
        ..Call::new(rewards.view(), advantages.view_mut())
    };
    let moments = moments.view_mut();
    clock.time(backend, stream, || match estimator {
        Estimator::Group(config) => backend.group_advantages(stream, config, &groups, call),
        Estimator::BatchNorm(config) => {
            advantage::batch_norm(backend, stream, config, &groups, BatchNorm { call, moments })
        }
        Estimator::ReinforcePpBaseline(config) => {
            advantage::reinforce_pp_baseline(backend, stream, config, &groups, ReinforcePpBaseline { call, moments })
        }
    })?;
    backend.download(stream, advantages.view())
}

/// The advantage of every token: its segment's reward discounted by the counted tokens between, whitened over the batch (REINFORCE++).
///
/// # Errors
/// The operation's and the backend's.
pub fn returns<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    gamma: f64,
    segments: &Segments,
    rewards: &[f32],
    mask: &[u8],
    clock: &mut Clock,
) -> Result<Vec<f32>> {
    let plan = Plan::new(backend, stream, segments)?;
    let (rewards, loss_mask) = (backend.upload(stream, rewards)?, backend.upload(stream, mask)?);
    let mut advantages = backend.allocate::<f32>(stream, mask.len())?;
    let mut moments = backend.allocate::<f64>(stream, MOMENTS)?;
    let bytes = token_workspace_bytes(&plan).max(moments_workspace_bytes(mask.len()));
    let mut workspace = backend.allocate::<u8>(stream, bytes)?;
    let call = TokenCall {
        segment_rewards: Some(rewards.view()),
        loss_mask: Some(loss_mask.view()),
        advantages: Some(advantages.view_mut()),
        ..TokenCall::new(workspace.view_mut())
    };
    let batch = ReinforcePp { call, moments: moments.view_mut() };
    clock.time(backend, stream, || advantage::reinforce_pp(backend, stream, gamma, &plan, batch))?;
    backend.download(stream, advantages.view())
}
