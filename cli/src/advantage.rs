//! Advantage calls with their results on the host: what `step` and `check` share.

use moerl::advantage::{Call, Config, GroupPlan};
use moerl::objective::Groups;
use moerl::{Backend, Buffer, Result};

use crate::clock::Clock;

/// The advantage of every segment, from its reward and those of its group.
///
/// # Errors
/// The operation's and the backend's.
pub fn run<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    groups: &Groups,
    rewards: &[f32],
    clock: &mut Clock,
) -> Result<Vec<f32>> {
    let groups = GroupPlan::new(backend, stream, groups)?;
    let on_device = backend.upload(stream, rewards)?;
    let mut advantages = backend.allocate::<f32>(stream, rewards.len())?;
    let call = Call { rewards: on_device.view(), advantages: advantages.view_mut(), counts: None };
    clock.time(backend, stream, || backend.group_advantages(stream, config, &groups, call))?;
    backend.download(stream, advantages.view())
}
