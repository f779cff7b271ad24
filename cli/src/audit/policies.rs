//! What the operations make of the log-probabilities: the mismatch's diagnostics, the ratio's, and both by how much of the routing changed.

use std::borrow::Cow;

use moerl::correction::{self, Config as Correction};
use moerl::diagnostics::Diagnostics;
use moerl::objective::{Config as Objective, Segments};
use moerl::route_change::{self, Bin};
use moerl::{Backend, Buffer};
use serde::Serialize;

use super::Routes;
use crate::clock::Clock;
use crate::failure::Result;
use crate::objective::{Counts, HostAdvantages};
use crate::step::{Inputs, logprobs_of};
use crate::stepfile::{PolicySource, StepFile};

/// Statistics of the current, old and rollout policies.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Policies {
    /// Of the old policy (the current one where there is no old) against the rollout; `None` without a rollout.
    pub mismatch: Option<correction::Diagnostics>,
    /// Ratios of the current policy to the old one; `None` without an old one.
    pub ratio: Option<Ratio>,
    /// The same by the share of layers whose experts are not the recorded ones, in sixteenths; empty without routes to compare.
    pub by_route_change: Vec<Bin>,
}

/// How far the current policy is from the old one.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // as in moerl::diagnostics
pub struct Ratio {
    pub policy_kl_k1: Option<f64>,
    pub policy_kl_k2: Option<f64>,
    pub policy_kl_k3: Option<f64>,
    pub ratio: Option<moerl::diagnostics::Spread>,
    pub sequence_ratio: Option<moerl::diagnostics::Spread>,
}

/// The log-probabilities of the file's tokens under the current policy, and the tensor that they come from. Bad data makes them NaN.
///
/// # Errors
/// What the backend met.
pub fn current<'a, B: Backend>(
    backend: &B,
    stream: &B::Stream,
    file: &'a StepFile,
    temperature: f32,
) -> Result<(&'static str, Cow<'a, [f32]>)> {
    Ok(match file.policy() {
        Some(PolicySource::Logits(logits)) => {
            let config = moerl::logprob::Config::at_temperature(temperature);
            ("logits", logprobs_of(backend, stream, &config, file, logits)?.into())
        }
        Some(PolicySource::Logprobs(tensor)) => ("logprobs", tensor.all()),
        None => ("logprobs", Cow::default()),
    })
}

impl Policies {
    /// Runs the operations over the tokens that `inputs` counts.
    ///
    /// # Errors
    /// What the backend met.
    pub fn of<B: Backend>(
        backend: &B,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        routes: Option<&Routes>,
    ) -> Result<Policies> {
        let segments = Segments::from_offsets(inputs.offsets)?;
        let trainer = inputs.old.unwrap_or(inputs.logprobs);
        let mismatch = match inputs.rollout {
            Some(rollout) => mismatch(backend, stream, inputs, &segments, trainer, rollout)?,
            None => None,
        };
        let ratio = match inputs.old {
            Some(old) => Some(ratio(backend, stream, inputs, &segments, old)?),
            None => None,
        };
        let by_route_change = match routes.and_then(|routes| routes.change_by_token.as_deref()) {
            Some(change) => by_route_change(backend, stream, inputs, trainer, change)?,
            None => Vec::new(),
        };
        Ok(Policies { mismatch, ratio, by_route_change })
    }
}

fn mismatch<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    inputs: &Inputs<'_>,
    segments: &Segments,
    old: &[f32],
    rollout: &[f32],
) -> Result<Option<correction::Diagnostics>> {
    let config = Correction::default().with_diagnostics();
    let call = crate::correction::Inputs {
        segments,
        old,
        rollout,
        mask: inputs.mask,
        groups: None,
        advantages: None,
        rewards: None,
    };
    let (found, _) = crate::correction::run(backend, stream, &config, &call, &mut Clock::default())?;
    Ok(correction::Diagnostics::from_sums(&found.sums, false))
}

/// From an objective whose advantages are all zero: ratios do not depend on them.
fn ratio<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    inputs: &Inputs<'_>,
    segments: &Segments,
    old: &[f32],
) -> Result<Ratio> {
    let config = Objective::gspo(3e-4, 4e-4);
    let advantages = vec![0.0; segments.len()];
    let counted = inputs.mask.iter().filter(|&&m| m != 0).count() as u64;
    let advantages = HostAdvantages::PerSegment(&advantages);
    let call = crate::objective::Inputs {
        old: Some(old),
        counts: Counts { tokens: counted, segments: segments.len() as u64, ..Counts::default() },
        ..crate::objective::Inputs::new(segments, inputs.logprobs, advantages, inputs.mask)
    };
    let (found, _) = crate::objective::run(backend, stream, &config, &call, &mut Clock::default())?;
    let Diagnostics { policy_kl_k1, policy_kl_k2, policy_kl_k3, ratio, sequence_ratio, .. } = found.diagnostics;
    Ok(Ratio { policy_kl_k1, policy_kl_k2, policy_kl_k3, ratio, sequence_ratio })
}

fn by_route_change<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    inputs: &Inputs<'_>,
    trainer: &[f32],
    change: &[u8],
) -> Result<Vec<Bin>> {
    let n = inputs.mask.len();
    let (logprobs, old) = (backend.upload(stream, inputs.logprobs)?, backend.upload(stream, trainer)?);
    let rollout = inputs.rollout.map(|rollout| backend.upload(stream, rollout)).transpose()?;
    let (mask, change) = (backend.upload(stream, inputs.mask)?, backend.upload(stream, change)?);
    let mut sums = backend.allocate(stream, route_change::BINS * route_change::NUMBERS)?;
    let mut workspace = backend.allocate(stream, route_change::workspace_bytes(n))?;
    let call = route_change::Call {
        logprobs: logprobs.view(),
        old_logprobs: old.view(),
        rollout_logprobs: rollout.as_ref().map(Buffer::view),
        loss_mask: Some(mask.view()),
        clipped: None,
        keep: None,
        route_change: change.view(),
        sums: sums.view_mut(),
        workspace: workspace.view_mut(),
        accumulate: false,
    };
    backend.route_change(stream, call)?;
    Ok(Bin::from_sums(&backend.download(stream, sums.view())?).unwrap_or_default())
}
