//! `moerl audit`: how far the rollout engine is from the trainer, and recorded data that is not what it should be.
//!
//! Step files are read as [`step`](crate::step) reads them; what it refuses, this reports. Statistics come from the operations
//! ([`correction`](moerl::correction), [`objective`](moerl::objective), [`gate`](moerl::gate), [`route_change`](moerl::route_change)) on
//! any backend; the dangers of [`danger`] are looked for on the host.

pub mod danger;
mod logprobs;
mod policies;
mod report;
mod routes;

use std::borrow::Cow;

use moerl::Backend;

pub use danger::{Danger, Kind};
pub use policies::Policies;
pub use routes::{Layer, Routes, Rows};

use crate::Outcome;
use crate::arguments::Audit;
use crate::backend::{Chosen, Task};
use crate::failure::Result;
use crate::page::{Charts, Position, Routing, positions};
use crate::step::{Inputs, Router, Statistics};
use crate::stepfile::{Policy, Recorded, StepFile};

/// Runs the command.
///
/// # Errors
/// A file that cannot be read as a step file, or a backend that does not work.
pub fn run(options: &Audit) -> Result<Outcome> {
    // A file that is none is refused before time is spent on the others.
    let files: Vec<StepFile> = options.inputs.iter().map(|path| StepFile::open(path)).collect::<Result<_>>()?;
    let backend = Chosen::open(options.backend)?;
    let findings: Vec<Findings> = files
        .iter()
        .map(|file| {
            let named = |failure: crate::failure::Failure| failure.during(file.path().display());
            backend.run(Examination { options, file }).map_err(named)
        })
        .collect::<Result<_>>()?;
    if let Some(folder) = &options.report {
        report::page(&backend, &findings).write(folder, "audit.html")?;
    }
    let text = if options.json {
        format!("{:#}\n", report::json(&backend, &findings))
    } else {
        report::text(&backend, &findings)
    };
    let has_danger = findings.iter().any(|findings| !findings.dangers.is_empty());
    Ok(Outcome { text, exit_code: u8::from(options.strict && has_danger) })
}

/// What was found in a file.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The file's path.
    pub file: String,
    /// Its sizes, in words.
    pub shapes: String,
    /// Tokens that count.
    pub counted: u64,
    /// Divergences and sample sizes, over counted tokens with finite log-probabilities.
    pub statistics: Statistics,
    /// What the operations make of the log-probabilities.
    pub policies: Policies,
    /// Mean and high end of the mismatch by position in the response.
    pub positions: Vec<Position>,
    /// For the page, if there is to be one.
    pub charts: Option<Charts>,
    /// The recorded experts, each tensor against today's choice.
    pub routes: Vec<Routes>,
    /// What is wrong.
    pub dangers: Vec<Danger>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// One file, as work for a backend.
struct Examination<'a> {
    options: &'a Audit,
    file: &'a StepFile,
}

impl Task for Examination<'_> {
    type Output = Findings;

    fn run<B: Backend>(self, backend: &B) -> Result<Findings> {
        let (options, file) = (self.options, self.file);
        let stream = backend.stream()?;
        let mask: Vec<u8> = file.loss_mask().iter().map(|&m| u8::from(m != 0)).collect();
        let mut notes = Vec::new();

        let (current_name, current) = policies::current(backend, &stream, file, options.temperature)?;
        let [old, rollout, reference] =
            [Policy::Old, Policy::Rollout, Policy::Reference].map(|policy| file.logprobs(policy));
        let named: Vec<(&'static str, &[f32])> = [
            ("old_logprobs", old.as_deref()),
            ("rollout_logprobs", rollout.as_deref()),
            ("ref_logprobs", reference.as_deref()),
            (current_name, Some(&current[..])),
        ]
        .into_iter()
        .filter_map(|(name, values)| Some((name, values?)))
        .collect();
        let mut dangers = logprobs::nonfinite(&mask, &named);
        dangers.extend(logprobs::nonfinite_advantages(file, &mask));
        let recorded: Vec<_> = named.iter().copied().filter(|(name, _)| *name != "logits").collect();
        dangers.extend(logprobs::bf16(&recorded));

        // A token with a number that is not finite is reported once, and absent from everything else.
        let finite = |u: usize| named.iter().all(|(_, values)| values[u].is_finite());
        let mask: Vec<u8> = mask.iter().enumerate().map(|(u, &m)| if finite(u) { m } else { 0 }).collect();
        let inputs = Inputs {
            mask: &mask,
            offsets: &file.offsets,
            logprobs: &current,
            old: old.as_deref(),
            rollout: rollout.as_deref(),
            reference: reference.as_deref(),
        };
        let statistics = Statistics::of(&inputs);
        match rollout {
            Some(_) => dangers.extend(logprobs::mismatch(&inputs, &statistics, &dangers)),
            None => notes.push("no rollout_logprobs in the file: no mismatch to look at".to_owned()),
        }

        let routes = self.routes(backend, &stream, &mut dangers, &mut notes)?;
        let policies = Policies::of(backend, &stream, &inputs, routes.first())?;
        dangers.sort_by_key(|danger| danger.kind);
        Ok(Findings {
            file: file.path().display().to_string(),
            shapes: crate::step::shapes(file),
            counted: file.loss_mask().iter().filter(|&&m| m != 0).count() as u64,
            statistics,
            policies,
            charts: options.report.as_ref().map(|_| charts(&inputs, &routes)),
            positions: positions(&inputs),
            routes,
            dangers,
            notes,
        })
    }
}

fn charts(inputs: &Inputs<'_>, routes: &[Routes]) -> Charts {
    let compared = routes.iter().filter(|routes| routes.changed.is_some());
    let changed: Vec<(&str, Vec<f64>)> = compared
        .map(|routes| (routes.tensor, routes.layers.iter().map(|layer| layer.changed.unwrap_or_default()).collect()))
        .collect();
    let load: Vec<Vec<u64>> =
        routes.first().map(|routes| routes.layers.iter().map(|layer| layer.load.clone()).collect()).unwrap_or_default();
    let loaded = routes.first().map_or("", |routes| routes.tensor);
    Charts::of(inputs, None, &Routing { changed: &changed, load: &load, loaded })
}

impl Examination<'_> {
    fn routes<B: Backend>(
        &self,
        backend: &B,
        stream: &B::Stream,
        dangers: &mut Vec<Danger>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Routes>> {
        let file = self.file;
        let recorded: Vec<Recorded> =
            [Recorded::Rollout, Recorded::Old].into_iter().filter(|&which| file.routes(which).is_some()).collect();
        if recorded.is_empty() {
            notes.push("no recorded experts in the file".to_owned());
        }
        let router = match file.router_logits() {
            Some(_) if !recorded.is_empty() || self.options.router.top_k.is_some() => {
                Some(Router::new(&self.options.router, file)?)
            }
            Some(_) => None,
            None => {
                if !recorded.is_empty() {
                    notes.push("no router_logits in the file: recorded experts are compared with nothing".to_owned());
                }
                None
            }
        };
        let mask: Cow<'_, [u8]> = file.loss_mask();
        let survey = routes::survey(backend, stream, file, router.as_ref(), &recorded, &mask)?;
        dangers.extend(survey.dangers);
        Ok(survey.routes)
    }
}
