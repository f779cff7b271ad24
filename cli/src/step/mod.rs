//! `moerl step`: one policy update, from a step file to gradients, on any backend.
//!
//! The stages are gate (native and replayed), logprob, advantage, correction, objective, and the backward of each. They are written once, over
//! [`Backend`]. Where the backend is not the reference, every stage is also run on the reference **with the same inputs**, so that
//! the differences shown are each operation's own and a ratio near a clip bound does not multiply them.
//!
//! Memory: layers and logits pass through in pieces of bounded size; only vectors over tokens are held whole.

mod correction;
mod gate;
mod logprob;
mod objective;
mod output;
mod plan;
mod report;
mod statistics;

use std::borrow::Cow;

use moerl::Backend;

pub use correction::parse as parse_correction;
pub use gate::{Router, parse_renormalize};
pub use logprob::{Forwarded, forward as logprob_forward, logprobs_of};
pub use report::{Changed, Report, shapes};
pub use statistics::{Divergence, Inputs, SampleSize, Statistics};

use crate::arguments::Step;
use crate::backend::{Chosen, Task};
use crate::clock::Clock;
use crate::failure::{Failure, Result};
use crate::objective::HostAdvantages;
use crate::stepfile::{Policy, PolicySource, StepFile, shipped};
use output::{Name, Output, Wanted};

/// What the stages share.
pub struct Context<'a, B: Backend> {
    /// Who executes.
    pub backend: &'a B,
    /// Where work is queued.
    pub stream: B::Stream,
    /// The input.
    pub file: &'a StepFile,
    /// `[N]`: 1 where a token counts.
    pub mask: Cow<'a, [u8]>,
    /// Whether every stage runs on the reference too.
    pub compare: bool,
    /// Whether the caller said what to do about numbers that are not finite.
    pub nonfinite: bool,
}

/// One line of the table of stages.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// What ran.
    pub name: String,
    /// Over how many rows.
    pub rows: usize,
    /// How long, without copies.
    pub clock: Clock,
    /// Calls with a finding at a counted token that the caller allows.
    pub findings: usize,
    /// Quantities and their largest difference from the reference.
    pub differences: Vec<(&'static str, f64)>,
    /// Integer quantities and the rows in which they differ from the reference.
    pub rows_that_differ: Vec<(&'static str, usize)>,
}

impl Stage {
    fn new(name: impl Into<String>, rows: usize) -> Stage {
        Stage { name: name.into(), rows, ..Stage::default() }
    }

    fn differs(&mut self, quantity: &'static str, by: f64) {
        match self.differences.iter_mut().find(|(name, _)| *name == quantity) {
            Some((_, worst)) => *worst = worst.max(by),
            None => self.differences.push((quantity, by)),
        }
    }

    fn rows_differ(&mut self, quantity: &'static str, rows: usize) {
        match self.rows_that_differ.iter_mut().find(|(name, _)| *name == quantity) {
            Some((_, all)) => *all += rows,
            None => self.rows_that_differ.push((quantity, rows)),
        }
    }
}

/// The largest absolute difference; 0 between equal infinities and between NaNs, infinite where only one side is finite.
fn largest_difference(found: &[f32], exact: &[f32]) -> f64 {
    found.iter().zip(exact).fold(0.0, |worst, (&f, &e)| {
        let same = f == e || (f.is_nan() && e.is_nan());
        let by = if same { 0.0 } else { (f64::from(f) - f64::from(e)).abs() };
        f64::max(worst, if by.is_nan() { f64::INFINITY } else { by })
    })
}

/// Runs the command.
///
/// # Errors
/// Bad input, a finding at a counted token, or a backend that does not work.
pub fn run(options: &Step) -> Result<String> {
    let path = options.input.clone().map_or_else(|| shipped("step.safetensors"), Ok)?;
    let file = StepFile::open(&path)?;
    let backend = Chosen::open(options.backend)?;
    let update = Update { options, file: &file, backend: backend.describe(), compare: !backend.is_reference() };
    let report = backend.run(update).map_err(|failure| failure.during(path.display()))?;
    if let Some(folder) = &options.report {
        report.page(&path.display().to_string()).write(folder, "step.html")?;
    }
    Ok(report.render())
}

/// A policy update, as work for a backend.
#[derive(Debug)]
pub struct Update<'a> {
    /// The settings.
    pub options: &'a Step,
    /// The input.
    pub file: &'a StepFile,
    /// The backend in words.
    pub backend: String,
    /// Whether every stage runs on the reference too.
    pub compare: bool,
}

impl Task for Update<'_> {
    type Output = Report;

    fn run<B: Backend>(self, backend: &B) -> Result<Report> {
        let context = Context {
            backend,
            stream: backend.stream()?,
            file: self.file,
            mask: self.file.loss_mask(),
            compare: self.compare,
            nonfinite: self.options.objective.nonfinite.is_some(),
        };
        let router = self.file.router_logits().map(|_| gate::Plan::new(self.options, self.file)).transpose()?;
        let plan = plan::Plan::new(&self.options.objective)?;
        let wanted = Wanted {
            d_logits: self.options.with_d_logits.then_some(self.file.vocabulary).flatten(),
            native: router.as_ref().map(|router| router.top_k),
            replay: router.as_ref().is_some_and(|router| router.replay.is_some()),
        };
        let mut output = Output::create(self.options.out.as_deref(), self.file, wanted)?;
        let mut report = Report::new(&self, &plan, router.as_ref());
        if let Some(router) = &router
            && let Some(gated) = gate::run(&context, router, &mut output)?
        {
            report.gated(gated);
        }
        self.policy(&context, &plan, &mut output, &mut report)?;
        output.finish(&report.diagnostics())?;
        Ok(report)
    }
}

impl Update<'_> {
    /// Log-probabilities, advantages, objective, and the gradients back to the logits.
    fn policy<B: Backend>(
        &self,
        context: &Context<'_, B>,
        plan: &plan::Plan,
        output: &mut Output,
        report: &mut Report,
    ) -> Result<()> {
        let config = moerl::logprob::Config::at_temperature(self.options.temperature);
        let (logits, forwarded) = match self.file.policy() {
            Some(PolicySource::Logits(logits)) => {
                let (forwarded, stage) = logprob::forward(context, &config, logits)?;
                report.stages.push(stage);
                (Some(logits), forwarded)
            }
            Some(PolicySource::Logprobs(tensor)) => (None, logprob::Forwarded::given(tensor.all())),
            None => return Err(Failure::input("logits: missing")),
        };
        output.write(Name::Logprobs, 0, &forwarded.logprobs)?;
        output.write(Name::Entropy, 0, &forwarded.entropy)?;
        let (mut advantages, stage) = objective::advantages(context, plan)?;
        report.stages.extend(stage);
        let corrected = match &plan.correction {
            Some(config) => {
                let (mut corrected, stage) =
                    correction::correct(context, config, plan.config.anchor, &forwarded.logprobs, advantages.get())?;
                report.stages.push(stage);
                report.expected_reward = corrected.expected_reward;
                if let Some(factors) = corrected.factors.take() {
                    advantages = objective::Owned::PerSegment(factors.into());
                }
                Some(corrected)
            }
            None => None,
        };
        let made = objective::Made {
            logprobs: &forwarded.logprobs,
            entropy: &forwarded.entropy,
            advantages: advantages.get(),
            corrected: corrected.as_ref(),
        };
        let computed = objective::objective(context, plan, made)?;
        self.write(context, &computed, advantages.get(), corrected.as_ref(), output)?;
        if let Some(logits) = logits {
            let (norm, stage) =
                logprob::backward(context, &config, logits, &forwarded, &computed.found, |first, rows| {
                    output.write(Name::DLogits, first * logits.shape[1], rows)
                })?;
            report.norms.push(("logits' gradient", norm));
            report.backward = Some(stage);
        }
        let [old, rollout, reference] =
            [Policy::Old, Policy::Rollout, Policy::Reference].map(|policy| self.file.logprobs(policy));
        let inputs = Inputs {
            mask: &context.mask,
            offsets: &self.file.offsets,
            logprobs: &forwarded.logprobs,
            old: old.as_deref(),
            rollout: rollout.as_deref(),
            reference: reference.as_deref(),
        };
        report.statistics = Statistics::of(&inputs);
        if self.options.report.is_some() {
            report.draw(&inputs, plan);
        }
        report.computed(computed, plan);
        Ok(())
    }

    /// The objective's part of the output file.
    fn write<B: Backend>(
        &self,
        context: &Context<'_, B>,
        computed: &objective::Computed,
        advantages: HostAdvantages<'_>,
        corrected: Option<&correction::Corrected>,
        output: &mut Output,
    ) -> Result<()> {
        let found = &computed.found;
        output.write(Name::DLogprobs, 0, &found.d_logprobs)?;
        output.write(Name::SequenceRatio, 0, &found.sequence_ratio)?;
        output.write(Name::SequenceClipped, 0, &found.sequence_clipped)?;
        output.write(Name::Loss, 0, &[found.loss as f32])?;
        for (segment, pair) in self.file.offsets.windows(2).enumerate() {
            let range = pair[0] as usize..pair[1] as usize;
            let counted = |u: usize| context.mask[u] != 0;
            let values: Vec<f32> =
                range.clone().map(|u| if counted(u) { advantages.at(segment, u) } else { 0.0 }).collect();
            let weight = |u: usize| corrected.map_or(1.0, |corrected| corrected.at(u));
            let weights: Vec<f32> = range.clone().map(|u| if counted(u) { weight(u) } else { 0.0 }).collect();
            output.write(Name::Advantages, range.start, &values)?;
            output.write(Name::CorrectionWeights, range.start, &weights)?;
        }
        Ok(())
    }
}
