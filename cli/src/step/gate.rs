//! The gate stage: every layer natively and with the recorded experts forced, forward and backward, a bounded number of rows at a time.

use std::borrow::Cow;
use std::ops::Range;

use moerl::element::Element;
use moerl::error::FaultCode;
use moerl::gate::{Config, Groups, Preset, Renormalize, Score};
use moerl::{Backend, Reference};
use rand_distr::{Distribution, StandardNormal};

use super::output::{Name, Output};
use super::report::Changed;
use super::{Context, Stage, largest_difference};
use crate::arguments::{self, ReplayName};
use crate::clock::Clock;
use crate::failure::{Failure, Result};
use crate::findings::Settle;
use crate::gate::{Choice, ForcedIds, Rows, backward, forward};
use crate::progress::Progress;
use crate::random;
use crate::stepfile::{MISSING, Recorded, StepFile, Tensor};
use crate::upload::AnyBuffer;

/// The bytes of router logits that are handed to a backend at once.
const CHUNK_BYTES: usize = 8 << 20;

/// What the gate of a step is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The router.
    pub config: Config,
    /// k.
    pub top_k: usize,
    /// Whose experts are replayed.
    pub replay: Option<Recorded>,
    /// In words, for the table.
    pub words: String,
}

impl Plan {
    /// What the options and the file come to.
    ///
    /// # Errors
    /// [`Failure::Input`] for an unknown gate, a k that nothing says, or routes that the file does not have.
    pub fn new(options: &arguments::Step, file: &StepFile) -> Result<Plan> {
        let Router { config, top_k, mut words } = Router::new(&options.router, file)?;
        let has = |which: Recorded| file.routes(which).is_some();
        let replay = match options.replay {
            Some(ReplayName::None) => None,
            Some(ReplayName::Rollout) => Some(Recorded::Rollout),
            Some(ReplayName::Old) => Some(Recorded::Old),
            None => [Recorded::Rollout, Recorded::Old].into_iter().find(|&which| has(which)),
        };
        if let Some(which) = replay.filter(|&which| !has(which)) {
            return Err(Failure::input(format!("{}: missing, needed by --replay {}", which.tensor(), which.name())));
        }
        if let (Some(which), Some(chosen)) = (replay, file.chosen.filter(|&chosen| chosen != top_k)) {
            return Err(Failure::input(format!(
                "{}: names {chosen} experts a token, the gate chooses {top_k} (--replay none leaves them out)",
                which.tensor()
            )));
        }
        words += &replay.map_or(", nothing replayed".into(), |which| format!(", {} replayed", which.tensor()));
        Ok(Plan { config, top_k, replay, words })
    }
}

/// The router of a file: what its options say, else what the file's tensors tell.
#[derive(Clone, Debug)]
pub struct Router {
    /// The gate.
    pub config: Config,
    /// k.
    pub top_k: usize,
    /// In words.
    pub words: String,
}

impl Router {
    /// What the options and the file come to.
    ///
    /// # Errors
    /// [`Failure::Input`] for an unknown gate, or a k that nothing says.
    pub fn new(options: &arguments::Router, file: &StepFile) -> Result<Router> {
        let biased = file.router_bias(0).is_some();
        let (mut config, words) = match options.gate.as_deref() {
            Some(name) => (named(name)?, name.to_owned()),
            None if biased => (Config::sigmoid(1), "sigmoid with the file's router_bias for selection".into()),
            None => (Config::softmax_selected(1), "softmax over the chosen experts".into()),
        };
        if options.gate.as_deref().is_none_or(|name| Preset::from_name(name).is_none()) {
            config.top_k = None;
        }
        if let Some((count, admitted)) = options.groups.zip(options.topk_groups) {
            config.groups = Some(Groups { count, admitted, top: options.group_top });
        }
        if let Some(rule) = options.renormalize {
            config.renormalize = rule;
        }
        if let Some(scale) = options.scale {
            config.scaling_factor = Some(scale);
        }
        config.top_k = options.top_k.or(config.top_k);
        let Some(top_k) = config.resolve_top_k(file.chosen) else {
            return Err(Failure::input("top_k: the file has no routes to tell it from; give --top-k"));
        };
        Ok(Router { config, top_k, words })
    }
}

fn named(name: &str) -> Result<Config> {
    if let Some(preset) = Preset::from_name(name) {
        return Ok(Config::preset(preset));
    }
    Ok(match name {
        "softmax" => Config::softmax(1),
        "softmax_selected" => Config::softmax_selected(1),
        "sigmoid" => Config::sigmoid(1),
        "sqrtsoftplus" => Config::sqrt_softplus(1),
        "raw" => Config::new(Score::Raw, 1),
        _ => {
            let presets: Vec<&str> = Preset::ALL.iter().map(|preset| preset.name()).collect();
            return Err(Failure::input(format!(
                "--gate {name}: needs softmax, softmax_selected, sigmoid, sqrtsoftplus, raw or one of {}",
                presets.join(", ")
            )));
        }
    })
}

/// `none`, `guard`, `exact`, `add-eps:E` or `floor:M`.
///
/// # Errors
/// What is possible.
pub fn parse_renormalize(text: &str) -> std::result::Result<Renormalize, String> {
    let number = |text: &str| text.parse::<f32>().map_err(|error| format!("{text}: {error}"));
    match text.split_once(':') {
        None if text == "none" => Ok(Renormalize::None),
        None if text == "guard" => Ok(Renormalize::Guard),
        None if text == "exact" => Ok(Renormalize::Exact),
        Some(("add-eps", eps)) => number(eps).map(Renormalize::AddEps),
        Some(("floor", floor)) => number(floor).map(Renormalize::Floor),
        _ => Err("needs none, guard, exact, add-eps:NUMBER or floor:NUMBER".into()),
    }
}

/// What the stage found out.
#[derive(Debug)]
pub struct Gated {
    /// One line of the table for each direction.
    pub stages: Vec<Stage>,
    /// Native against recorded choice.
    pub changed: Option<Changed>,
    /// By layer and expert, the tokens that it got: replayed where routes are, else native.
    pub load: Vec<Vec<u64>>,
    /// Euclidean norms of the router logits' gradient, natively and with replay.
    pub norms: Vec<(&'static str, f64)>,
}

/// The native and the replayed direction share the code; this is what differs.
struct Direction {
    forward: Stage,
    backward: Stage,
    squares: f64,
    forced: bool,
}

/// Runs every layer.
///
/// # Errors
/// A finding at a counted token, or what the backend or the output met.
pub fn run<B: Backend>(context: &Context<'_, B>, plan: &Plan, output: &mut Output) -> Result<Option<Gated>> {
    let Some((logits, (layers, experts))) = context.file.router_logits().zip(context.file.router) else {
        return Ok(None);
    };
    let n = context.file.tokens;
    let direction = |name: &str, forced: bool| Direction {
        forward: Stage::new(format!("gate, {name}"), n * layers),
        backward: Stage::new(format!("gate backward, {name}"), n * layers),
        squares: 0.0,
        forced,
    };
    let mut directions = vec![direction("native", false)];
    if plan.replay.is_some() {
        directions.push(direction("replay", true));
    }
    let recorded = plan
        .replay
        .or_else(|| [Recorded::Rollout, Recorded::Old].into_iter().find(|&w| context.file.routes(w).is_some()));
    let mut drift =
        recorded.map(|which| Drift::new(which, layers, n)).filter(|_| context.file.chosen == Some(plan.top_k));
    let mut load = vec![vec![0_u64; experts]; layers];
    let row_bytes = experts * logits.element.map_or(4, Element::size);
    let step = (CHUNK_BYTES / row_bytes.max(1)).max(1);
    let progress = Progress::new((n * layers) as u64, "gate");
    for first in (0..n).step_by(step) {
        let range = first..(first + step).min(n);
        let mut chunk = Chunk::new(context, plan, logits, (layers, experts), range.clone())?;
        for (layer, load) in load.iter_mut().enumerate() {
            let d_weights = upstream(context.file, plan.top_k, layer, range.clone());
            let mut native_ids = Vec::new();
            for direction in &mut directions {
                let choice = chunk.run(layer, direction, &d_weights)?;
                let at = (layer * n + range.start) * plan.top_k;
                let (ids, weights) = if direction.forced {
                    (Name::ReplayIds, Name::ReplayWeights)
                } else {
                    (Name::NativeIds, Name::NativeWeights)
                };
                output.write(ids, at, &choice.ids)?;
                output.write(weights, at, &choice.weights)?;
                if direction.forced == plan.replay.is_some() {
                    let experts = choice.ids.iter().filter_map(|&id| usize::try_from(id).ok());
                    experts.for_each(|expert| load[expert] += 1);
                }
                if !direction.forced {
                    native_ids = choice.ids;
                }
            }
            if let Some(drift) = &mut drift {
                drift.count(context.file, layer, range.clone(), &native_ids, plan.top_k);
            }
            progress.advance(range.len() as u64);
        }
    }
    let norms = directions.iter().map(|d| {
        (if d.forced { "router logits' gradient, replay" } else { "router logits' gradient, native" }, d.squares.sqrt())
    });
    let norms = norms.collect();
    let (forwards, backwards): (Vec<Stage>, Vec<Stage>) =
        directions.into_iter().map(|d| (d.forward, d.backward)).unzip();
    let stages = forwards.into_iter().chain(backwards).collect();
    Ok(Some(Gated { stages, changed: drift.map(Drift::finish), load, norms }))
}

/// The gradient of the weights: the file's, else seeded normals.
fn upstream(file: &StepFile, top_k: usize, layer: usize, rows: Range<usize>) -> Cow<'_, [f32]> {
    match file.d_topk_weights() {
        Some(tensor) => {
            let first = layer * file.tokens;
            tensor.elements((first + rows.start) * top_k..(first + rows.end) * top_k)
        }
        None => rows
            .flat_map(|row| {
                let mut numbers = random::numbers(0, random::Stream::Upstream, row, layer);
                (0..top_k).map(move |_| StandardNormal.sample(&mut numbers))
            })
            .collect(),
    }
}

/// Some rows of all layers.
struct Chunk<'a, B: Backend> {
    context: &'a Context<'a, B>,
    plan: &'a Plan,
    logits: Tensor<'a>,
    layers: usize,
    experts: usize,
    range: Range<usize>,
    tape: Option<AnyBuffer<B>>,
    reference_tape: Option<AnyBuffer<Reference>>,
}

/// Where a layer runs.
struct On<'a, B: Backend> {
    backend: &'a B,
    stream: &'a B::Stream,
    /// The experts to force.
    tape: Option<&'a AnyBuffer<B>>,
}

/// What a layer took, and how many of its calls had a finding that is allowed.
#[derive(Default)]
struct Spent {
    forward: Clock,
    backward: Clock,
    findings: usize,
}

impl<'a, B: Backend> Chunk<'a, B> {
    fn new(
        context: &'a Context<'a, B>,
        plan: &'a Plan,
        logits: Tensor<'a>,
        (layers, experts): (usize, usize),
        range: Range<usize>,
    ) -> Result<Chunk<'a, B>> {
        let routes = plan.replay.and_then(|which| context.file.routes(which));
        let row = routes.map_or(0, |routes| routes.shape[1] * routes.shape[2]);
        let elements = range.start * row..range.end * row;
        let tape =
            routes.map(|r| AnyBuffer::upload(context.backend, &context.stream, &r, elements.clone())).transpose()?;
        let compared = routes.filter(|_| context.compare);
        let reference_tape = compared.map(|r| AnyBuffer::upload(&Reference, &(), &r, elements)).transpose()?;
        Ok(Chunk { context, plan, logits, layers, experts, range, tape, reference_tape })
    }

    fn run(&mut self, layer: usize, direction: &mut Direction, d_weights: &[f32]) -> Result<Choice> {
        let (context, forced) = (self.context, direction.forced);
        let tape = self.tape.as_ref().filter(|_| forced);
        let on = On { backend: context.backend, stream: &context.stream, tape };
        let mut spent = Spent::default();
        let (choice, gradient) = self.layer(layer, &on, d_weights, &mut spent)?;
        direction.forward.clock.add(spent.forward);
        direction.backward.clock.add(spent.backward);
        direction.forward.findings += spent.findings;
        if context.compare {
            let tape = self.reference_tape.as_ref().filter(|_| forced);
            let on = On { backend: &Reference, stream: &(), tape };
            let (exact, exact_gradient) = self.layer(layer, &on, d_weights, &mut Spent::default())?;
            let k = self.plan.top_k;
            let rows = choice.ids.chunks(k).zip(exact.ids.chunks(k)).filter(|(a, b)| a != b).count();
            direction.forward.rows_differ("ids", rows);
            direction.forward.differs("weights", largest_difference(&choice.weights, &exact.weights));
            direction.backward.differs("d_router_logits", largest_difference(&gradient, &exact_gradient));
        }
        direction.squares += gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        Ok(choice)
    }

    /// One layer forward and backward, natively or with the tape's experts.
    fn layer<A: Backend>(
        &self,
        layer: usize,
        on: &On<'_, A>,
        d_weights: &[f32],
        spent: &mut Spent,
    ) -> Result<(Choice, Vec<f32>)> {
        let Chunk { context, plan, experts, range, .. } = self;
        let On { backend, stream, tape } = *on;
        let (n, k) = (context.file.tokens, plan.top_k);
        let elements = (layer * n + range.start) * experts..(layer * n + range.end) * experts;
        let logits = AnyBuffer::upload(backend, stream, &self.logits, elements)?;
        let bias = context.file.router_bias(layer);
        let rows = Rows {
            logits: &logits,
            rows: range.len(),
            experts: *experts,
            top_k: k,
            bias: bias.as_deref(),
            mask: None,
            forced: tape.map(|tape| ForcedIds { tape, first: layer * k, row_stride: self.layers * k }),
            layer,
        };
        let (choice, fault) = forward(backend, stream, &plan.config, &rows, &mut spent.forward)?;
        let tensor = match (&fault, plan.replay) {
            (Some(fault), Some(which)) if is_about_ids(fault.code) => which.tensor(),
            _ => self.logits.name,
        };
        let named = format!("{tensor}: layer {layer}");
        let settle = Settle { tensor: &named, rows: range.clone(), mask: &context.mask, nonfinite: context.nonfinite };
        spent.findings += settle.by(
            fault,
            |row| tape.and_then(|_| self.bad_ids(layer, row)),
            |mask| {
                let rows = Rows { mask: Some(mask), ..rows };
                Ok(forward(backend, stream, &plan.config, &rows, &mut Clock::default())?.1)
            },
        )?;
        let gradient = backward(backend, stream, &plan.config, &rows, &choice, d_weights, &mut spent.backward)?;
        Ok((choice, gradient))
    }

    /// What is wrong with a row's recorded experts, in words.
    fn bad_ids(&self, layer: usize, row: usize) -> Option<String> {
        let which = self.plan.replay?;
        let ids = recorded_ids(self.context.file, which, layer, row, self.plan.top_k);
        if ids.iter().all(|&id| id == MISSING) {
            return None;
        }
        let words = |fault: String| Some(format!("{}: row {row}, layer {layer}: {fault}", which.tensor()));
        for (slot, &id) in ids.iter().enumerate() {
            if id == MISSING {
                return words("some but not all experts are the sentinel".into());
            } else if !(0..self.experts as i64).contains(&id) {
                return words(format!("names expert {id}, the router has {}", self.experts));
            } else if ids[..slot].contains(&id) {
                return words(format!("names expert {id} twice"));
            }
        }
        None
    }
}

fn is_about_ids(code: FaultCode) -> bool {
    matches!(code, FaultCode::Duplicate | FaultCode::Range | FaultCode::Partial | FaultCode::Missing)
}

/// The recorded experts of a row; [`MISSING`] for the sentinel.
fn recorded_ids(file: &StepFile, which: Recorded, layer: usize, row: usize, top_k: usize) -> Vec<i64> {
    let layers = file.router.map_or(0, |(layers, _)| layers);
    let first = (row * layers + layer) * top_k;
    file.recorded_ids(which, first..first + top_k)
}

/// Counts the rows whose native set differs from the recorded one. Rows without a record are left out.
struct Drift {
    which: Recorded,
    changed: Vec<u64>,
    recorded: Vec<u64>,
    any: Vec<bool>,
}

impl Drift {
    fn new(which: Recorded, layers: usize, rows: usize) -> Drift {
        Drift { which, changed: vec![0; layers], recorded: vec![0; layers], any: vec![false; rows] }
    }

    fn count(&mut self, file: &StepFile, layer: usize, rows: Range<usize>, native: &[i32], top_k: usize) {
        for (row, native) in rows.zip(native.chunks(top_k)) {
            let recorded = recorded_ids(file, self.which, layer, row, top_k);
            if recorded.contains(&MISSING) {
                continue;
            }
            self.recorded[layer] += 1;
            if native.iter().any(|&id| !recorded.contains(&id.into())) {
                self.changed[layer] += 1;
                self.any[row] = true;
            }
        }
    }

    fn finish(self) -> Changed {
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let by_layer = self.changed.iter().zip(&self.recorded).map(|(&changed, &of)| share(changed, of)).collect();
        let any = self.any.iter().filter(|&&any| any).count() as u64;
        Changed { recorded: self.which.name(), by_layer, any_layer: share(any, self.any.len() as u64) }
    }
}
