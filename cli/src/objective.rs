//! Objective calls with their results on the host: what `step` and `check` share.

use moerl::diagnostics::{self, Diagnostics};
use moerl::error::Fault;
use moerl::objective::{Advantages, Batch, Config, Denominators, Output, Plan, Segments, workspace_bytes};
use moerl::{Backend, Buffer, Result};

use crate::clock::Clock;
use crate::findings::taken;

/// Advantages on the host.
#[derive(Clone, Copy, Debug)]
pub enum HostAdvantages<'a> {
    /// `[S]`
    PerSegment(&'a [f32]),
    /// `[N]`
    PerToken(&'a [f32]),
}

impl HostAdvantages<'_> {
    /// The advantage of a token of a segment.
    pub fn at(&self, segment: usize, token: usize) -> f32 {
        match self {
            HostAdvantages::PerSegment(values) => values[segment],
            HostAdvantages::PerToken(values) => values[token],
        }
    }
}

/// What the aggregation divides by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Counted tokens.
    pub tokens: u64,
    /// Segments with a counted token.
    pub segments: u64,
    /// Prompts with a counted token.
    pub prompts: u64,
    /// The longest segment, or the longest completion allowed.
    pub max_len: u64,
}

/// What a call reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The packed pieces.
    pub segments: &'a Segments,
    /// `[N]`, under the current policy.
    pub logprobs: &'a [f32],
    /// `[N]`, under the old policy.
    pub old: Option<&'a [f32]>,
    /// `[N]`, under the rollout engine's.
    pub rollout: Option<&'a [f32]>,
    /// A.
    pub advantages: HostAdvantages<'a>,
    /// `[N]`: 1 where a token counts.
    pub mask: &'a [u8],
    /// `[N]`: constants that multiply the values of tokens.
    pub weights: Option<&'a [f32]>,
    /// `[N]`: 0 where a token was rejected.
    pub keep: Option<&'a [u8]>,
    /// `[N]`: under the reference policy.
    pub reference: Option<&'a [f32]>,
    /// `[N]`: of the current policy.
    pub entropy: Option<&'a [f32]>,
    /// `[N]`: 1 for the tokens that KL-Cov penalises.
    pub chosen: Option<&'a [u8]>,
    /// `[S]`: the counted tokens of each segment's prompt for the mean over prompts, coefficients for the custom one.
    pub segment_scale: Option<&'a [f32]>,
    /// What the aggregation divides by.
    pub counts: Counts,
}

impl<'a> Inputs<'a> {
    /// Without anything optional.
    pub fn new(
        segments: &'a Segments,
        logprobs: &'a [f32],
        advantages: HostAdvantages<'a>,
        mask: &'a [u8],
    ) -> Inputs<'a> {
        Inputs {
            segments,
            logprobs,
            old: None,
            rollout: None,
            advantages,
            mask,
            weights: None,
            keep: None,
            reference: None,
            entropy: None,
            chosen: None,
            segment_scale: None,
            counts: Counts::default(),
        }
    }
}

/// What a call computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The loss.
    pub loss: f64,
    /// `[N]`: its gradient.
    pub d_logprobs: Vec<f32>,
    /// `[N]`: its gradient by the entropies; empty without an entropy bonus.
    pub d_entropy: Vec<f32>,
    /// `[N]`: the divergence's values, if there is one.
    pub kl: Vec<f32>,
    /// `[N]`: not 0 where a bound stops the gradient.
    pub clipped: Vec<u8>,
    /// `[S]`: the length-normalised ratios.
    pub sequence_ratio: Vec<f32>,
    /// `[S]`: 1 where the ratio is outside the window on the side that matters.
    pub sequence_clipped: Vec<u8>,
    /// Ratios, clipped shares, divergences.
    pub diagnostics: Diagnostics,
}

/// Loss, gradient and ratios, and what the error word said.
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
    let (n, s) = (inputs.segments.tokens(), inputs.segments.len());
    let plan = Plan::new(backend, stream, inputs.segments)?;
    let optional = |array: Option<&[f32]>| array.map(|array| backend.upload(stream, array)).transpose();
    let logprobs = backend.upload(stream, inputs.logprobs)?;
    let old = optional(inputs.old)?;
    let rollout = optional(inputs.rollout)?;
    let entropy = optional(inputs.entropy)?;
    let weights = optional(inputs.weights)?;
    let segment_scale = optional(inputs.segment_scale)?;
    let reference = optional(inputs.reference)?;
    let flags = |array: Option<&[u8]>| array.map(|array| backend.upload(stream, array)).transpose();
    let (keep, chosen) = (flags(inputs.keep)?, flags(inputs.chosen)?);
    let mask = backend.upload(stream, inputs.mask)?;
    let (HostAdvantages::PerSegment(values) | HostAdvantages::PerToken(values)) = inputs.advantages;
    let advantages = backend.upload(stream, values)?;
    let Counts { tokens, segments, prompts, max_len } = inputs.counts;
    let batch = Batch {
        old_logprobs: old.as_ref().map(Buffer::view),
        rollout_logprobs: rollout.as_ref().map(Buffer::view),
        entropy: entropy.as_ref().map(Buffer::view),
        chosen: chosen.as_ref().map(Buffer::view),
        loss_mask: Some(mask.view()),
        weights: weights.as_ref().map(Buffer::view),
        segment_scale: segment_scale.as_ref().map(Buffer::view),
        ref_logprobs: reference.as_ref().map(Buffer::view),
        keep: keep.as_ref().map(Buffer::view),
        ..Batch::new(
            logprobs.view(),
            match inputs.advantages {
                HostAdvantages::PerSegment(_) => Advantages::PerSegment(advantages.view()),
                HostAdvantages::PerToken(_) => Advantages::PerToken(advantages.view()),
            },
            Denominators::Global { tokens, segments, prompts, max_len },
        )
    };
    let mut loss = backend.allocate::<f64>(stream, 1)?;
    let mut d_logprobs = backend.allocate::<f32>(stream, n)?;
    let with_entropy = config.entropy_bonus != 0.0;
    let mut d_entropy = with_entropy.then(|| backend.allocate::<f32>(stream, n)).transpose()?;
    let mut kl = config.kl.map(|_| backend.allocate::<f32>(stream, n)).transpose()?;
    let mut clipped = backend.allocate::<u8>(stream, n)?;
    let mut sequence_ratio = backend.allocate::<f32>(stream, s)?;
    let mut sequence_clipped = backend.allocate::<u8>(stream, s)?;
    let mut sums = backend.allocate::<f64>(stream, diagnostics::LEN)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(&plan))?;
    let mut errors = backend.error_word(stream)?;
    let output = Output {
        loss: Some(loss.view_mut()),
        d_logprobs: Some(d_logprobs.view_mut()),
        d_entropy: d_entropy.as_mut().map(Buffer::view_mut),
        kl: kl.as_mut().map(Buffer::view_mut),
        clipped: Some(clipped.view_mut()),
        sequence_ratio: Some(sequence_ratio.view_mut()),
        sequence_clipped: Some(sequence_clipped.view_mut()),
        diagnostics: Some(sums.view_mut()),
        errors: Some(errors.view_mut()),
        ..Output::new(workspace.view_mut())
    };
    clock.time(backend, stream, || backend.objective(stream, config, &plan, batch, output))?;
    let fault = taken(backend.check(stream, &mut errors))?;
    let sums = backend.download(stream, sums.view())?;
    let outcome = Outcome {
        loss: backend.download(stream, loss.view())?[0],
        d_logprobs: backend.download(stream, d_logprobs.view())?,
        d_entropy: d_entropy.map_or(Ok(vec![]), |gradient| backend.download(stream, gradient.view()))?,
        kl: kl.map_or(Ok(vec![]), |kl| backend.download(stream, kl.view()))?,
        clipped: backend.download(stream, clipped.view())?,
        sequence_ratio: backend.download(stream, sequence_ratio.view())?,
        sequence_clipped: backend.download(stream, sequence_clipped.view())?,
        diagnostics: Diagnostics::from_sums(&sums).expect("as many sums as were allocated"),
    };
    Ok((outcome, fault))
}
