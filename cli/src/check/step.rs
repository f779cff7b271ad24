//! Family step: a step file that brings expected tensors.
//!
//! | tensor | is compared with |
//! |---|---|
//! | `logp_new`, `entropy_new` `[N]` | logprob of `logits` |
//! | `logp_new_bf16` `[N]` | logprob of `logits_bf16`, for the rows that it has |
//! | `routes_new`, `routes_old` `[N, L, k]` | as sets, the native choice from `router_logits`, `router_logits_old` |
//! | `advantage` `[S]` | `reward` normalised within `group` |
//!
//! An expectation whose input the file lacks fails: it would otherwise never be looked at.

use std::path::Path;

use moerl::objective::Groups;
use moerl::{Backend, gate, logprob};

use super::{Compared, Record, Stop, Tolerance, Verdict};
use crate::advantage::{Estimator, Rewards};
use crate::arguments::Family;
use crate::clock::Clock;
use crate::failure::Result;
use crate::gate::{Rows, forward};
use crate::step::{self, Context};
use crate::stepfile::{StepFile, Tensor};
use crate::upload::AnyBuffer;

/// Expected in f64 and cast to f32, from the same stored logits.
const LOGPROB: Tolerance = Tolerance { relative: 1e-6, absolute: 2e-6 };
/// The file's advantage was formed in f32: a difference of rewards near 1 (half an ulp: 6e-8) over a deviation of some 0.05.
const ADVANTAGE: Tolerance = Tolerance { relative: 1e-5, absolute: 2e-6 };

/// A record for every expected tensor of a file whose id `chosen` accepts; none if the file has no such tensor.
///
/// # Errors
/// A file that is no step file, or a backend that does not work.
pub(super) fn records<B: Backend>(backend: &B, path: &Path, chosen: &dyn Fn(&str) -> bool) -> Result<Vec<Record>> {
    type Run<B> = fn(&Expectation<'_, B>) -> std::result::Result<Compared, Stop>;
    let known: [(&str, Run<B>); 6] = [
        ("logp_new", |e| e.logprobs("logits")),
        ("entropy_new", |e| e.entropy("logits")),
        ("logp_new_bf16", |e| e.logprobs("logits_bf16")),
        ("routes_new", |e| e.routes("router_logits")),
        ("routes_old", |e| e.routes("router_logits_old")),
        ("advantage", |e| e.advantage()),
    ];
    let file = StepFile::open(path)?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let context = Context {
        backend,
        stream: backend.stream()?,
        file: &file,
        mask: file.loss_mask(),
        compare: false,
        nonfinite: false,
    };
    let mut records = Vec::new();
    for (name, run) in known {
        let id = format!("{stem}/{name}");
        let Some(expected) = file.tensor(name).filter(|_| chosen(&id)) else { continue };
        let verdict = match run(&Expectation { context: &context, expected }) {
            Ok(compared) => compared.verdict(),
            Err(Stop::Differs(reason)) => Verdict::Differs(reason),
            Err(Stop::Unsupported(reason)) => Verdict::Unsupported(reason),
            Err(Stop::Fail(reason)) => Verdict::Fail(reason),
        };
        records.push(Record { family: Family::Step, producer: "step file".into(), id, verdict });
    }
    Ok(records)
}

struct Expectation<'a, B: Backend> {
    context: &'a Context<'a, B>,
    expected: Tensor<'a>,
}

impl<B: Backend> Expectation<'_, B> {
    /// A tensor that the expectation is about.
    fn input(&self, name: &'static str) -> std::result::Result<Tensor<'_>, Stop> {
        self.context.file.tensor(name).ok_or_else(|| Stop::Fail(format!("tensor {name} is missing")))
    }

    fn floats(&self, len: usize) -> std::result::Result<Vec<f32>, Stop> {
        let Tensor { name, element, .. } = self.expected;
        if element != Some(moerl::element::Element::F32) || self.expected.len() < len {
            return Err(Stop::Fail(format!("tensor {name} is {}, needs f32 [{len}]", self.expected.describe())));
        }
        Ok(self.expected.elements(0..len).into_owned())
    }

    fn forward(&self, logits: &'static str) -> std::result::Result<(step::Forwarded<'static>, usize), Stop> {
        let logits = self.input(logits)?;
        let rows = logits.shape.first().copied().unwrap_or_default();
        if logits.shape.len() != 2 || rows > self.context.file.tokens {
            return Err(Stop::Fail(format!("tensor {} is {}, needs [N, V]", logits.name, logits.describe())));
        }
        let forwarded = step::logprob_forward(self.context, &logprob::Config::default(), logits);
        forwarded.map(|(forwarded, _)| (forwarded, rows)).map_err(|failure| Stop::Fail(failure.to_string()))
    }

    fn logprobs(&self, logits: &'static str) -> std::result::Result<Compared, Stop> {
        let (found, rows) = self.forward(logits)?;
        let mut compared = Compared::default();
        compared.close("", &found.logprobs, &self.floats(rows)?, LOGPROB);
        Ok(compared)
    }

    fn entropy(&self, logits: &'static str) -> std::result::Result<Compared, Stop> {
        let (found, rows) = self.forward(logits)?;
        let mut compared = Compared::default();
        compared.close("", &found.entropy, &self.floats(rows)?, LOGPROB);
        Ok(compared)
    }

    /// The native choice of every layer against the recorded one, as sets.
    fn routes(&self, logits: &'static str) -> std::result::Result<Compared, Stop> {
        let logits = self.input(logits)?;
        let (&[layers, rows, experts], &[n, of, k]) = (logits.shape, self.expected.shape) else {
            return Err(Stop::Fail(format!(
                "{} {}, {} {}",
                logits.name,
                logits.describe(),
                self.expected.name,
                self.expected.describe()
            )));
        };
        let recorded = self.expected.integers().filter(|_| (rows, layers) == (n, of));
        let Some(recorded) = recorded else {
            return Err(Stop::Fail(format!(
                "tensor {} is {}, needs ids [{rows}, {layers}, k]",
                self.expected.name,
                self.expected.describe()
            )));
        };
        let (backend, stream) = (self.context.backend, &self.context.stream);
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        for layer in 0..layers {
            let range = layer * rows * experts..(layer + 1) * rows * experts;
            let logits = AnyBuffer::upload(backend, stream, &logits, range)?;
            let bias = self.context.file.router_bias(layer);
            let rows = Rows {
                logits: &logits,
                rows,
                experts,
                top_k: k,
                bias: bias.as_deref(),
                mask: None,
                forced: None,
                layer,
            };
            let router = if bias.is_some() { gate::Config::sigmoid(k) } else { gate::Config::softmax_selected(k) };
            let (choice, _) = forward(backend, stream, &router, &rows, &mut Clock::default())?;
            for (row, ids) in choice.ids.chunks(k).enumerate() {
                let first = (row * layers + layer) * k;
                let set = |ids: &mut dyn Iterator<Item = i64>| {
                    let mut ids: Vec<i64> = ids.collect();
                    ids.sort_unstable();
                    (row, layer, ids)
                };
                found.push(set(&mut ids.iter().map(|&id| id.into())));
                expected.push(set(&mut recorded[first..first + k].iter().copied()));
            }
        }
        let mut compared = Compared::default();
        compared.equal("(row, layer, experts)", &found, &expected);
        Ok(compared)
    }

    fn advantage(&self) -> std::result::Result<Compared, Stop> {
        let file = self.context.file;
        let s = file.segments;
        let reward = self.input("reward")?;
        let Some(group) = file.group().filter(|_| reward.shape == [s] && reward.element == self.expected.element)
        else {
            return Err(Stop::Fail(format!("tensor reward is {}, group is needed too", reward.describe())));
        };
        let estimator = Estimator::Group(moerl::advantage::Config::default());
        let (backend, stream) = (self.context.backend, &self.context.stream);
        let rewards = reward.all::<f32>();
        let groups = Groups::from_ids(&group);
        let inputs = Rewards { groups: &groups, rewards: &rewards, lengths: None };
        let found = crate::advantage::run(backend, stream, &estimator, &inputs, &mut Clock::default())?;
        let mut compared = Compared::default();
        compared.close("", &found, &self.floats(s)?, ADVANTAGE);
        Ok(compared)
    }
}
