//! Family gate: experts, weights and gradients of one router, natively and with forced ids. Cases that name a function are losses: `router_loss`.
//!
//! Tensors of a case: `NAME/logits` `[T, E]`, `NAME/bias` `[E]` (optional), `NAME/ids`, `NAME/weights`, `NAME/d_weights` `[T, k]`,
//! `NAME/d_logits` `[T, E]`; `NAME/forced_ids`, `NAME/replay_weights` `[T, k]`, `NAME/replay_d_logits` `[T, E]`. The configuration says
//! everything that matters, so every producer is accepted.
//!
//! A producer's slot order is its own: (id, weight) pairs are compared, and the upstream gradient follows the ids.

use moerl::Backend;
use moerl::gate::{Config as Gate, Groups, Renormalize, Score};

use super::{Case, Compared, Config, Stop, Tolerance, unsupported};
use crate::clock::Clock;
use crate::gate::{Choice, ForcedIds, Rows, backward, forward};
use crate::upload::AnyBuffer;

const KEYS: &[&str] = &[
    "bias_in_selection_only",
    "eps",
    "group_score_top",
    "num_groups",
    "renormalize",
    "scale",
    "score",
    "sigmoid_after_topk",
    "softmax_after_topk",
    "top_k",
    "topk_groups",
];

/// Runs one case.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    if let Some(function) = case.text("function") {
        return super::router_loss::check(backend, case, function);
    }
    let config = case.config(KEYS)?;
    let router = router(&config)?;
    let (mut logits, shape) = case.tensor::<f32>(&format!("{}/logits", case.id))?;
    let &[rows, experts] = shape.as_slice() else {
        return Err(Stop::Fail(format!("logits have shape {shape:?}, need [T, E]")));
    };
    let bias = format!("{}/bias", case.id);
    let mut bias = if case.has(&bias) { Some(case.values::<f32>(&bias, experts)?) } else { None };
    if config.get("bias_in_selection_only").is_some() && !config.flag("bias_in_selection_only") {
        // A bias of the router's linear layer is part of the logits, added in f32 before everything.
        if let Some(bias) = bias.take() {
            logits.iter_mut().zip(bias.iter().cycle()).for_each(|(x, b)| *x += b);
        }
    }
    Layer { backend, case, router, rows, experts, logits, bias }.compare()
}

fn router(config: &Config<'_>) -> Result<Gate, Stop> {
    let top_k = config.number("top_k").map(|k| k as usize);
    let Some(top_k) = top_k else { return Err(Stop::Fail("the configuration has no top_k".into())) };
    let renormalize = config.flag("renormalize");
    let eps = config.number("eps").map(|eps| eps as f32);
    let mut router = match config.text("score") {
        // Softmax over all, divided by the sum of the chosen, is softmax over the chosen; with a floor under the sum it is not.
        "softmax" if config.flag("softmax_after_topk") => Gate::softmax_selected(top_k),
        "softmax" => match (renormalize, eps) {
            (true, Some(floor)) => Gate { renormalize: Renormalize::Floor(floor), ..Gate::softmax(top_k) },
            (true, None) => Gate::softmax_selected(top_k),
            (false, _) => Gate::softmax(top_k),
        },
        // Sigmoid increases strictly: before or after top-k is the same choice.
        "sigmoid" if renormalize => {
            Gate { renormalize: eps.map_or(Renormalize::Exact, Renormalize::AddEps), ..Gate::sigmoid(top_k) }
        }
        "sigmoid" => Gate::new(Score::Sigmoid, top_k),
        other => return unsupported(format!("score {other}")),
    };
    router.scaling_factor = Some(config.number("scale").unwrap_or(1.0) as f32);
    let whole = |key: &str| config.number(key).map(|n| n as usize);
    if let Some(count) = whole("num_groups").filter(|&count| count > 1) {
        let admitted = whole("topk_groups").unwrap_or(count);
        router.groups = Some(Groups { count, admitted, top: whole("group_score_top") });
    }
    Ok(router)
}

/// One router's case.
struct Layer<'a, B> {
    backend: &'a B,
    case: &'a Case<'a>,
    router: Gate,
    rows: usize,
    experts: usize,
    logits: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// What the producer got, natively or with forced ids.
struct Expected<'a> {
    /// Before every quantity's name: "" or "replay ".
    direction: &'a str,
    forced: Option<&'a [i32]>,
    ids: &'a [i32],
    weights: &'a [f32],
    d_logits: &'a [f32],
}

impl<B: Backend> Layer<'_, B> {
    fn compare(&self) -> Result<Compared, Stop> {
        let k = self.router.top_k.unwrap_or_default();
        let (slots, all) = (self.rows * k, self.rows * self.experts);
        let of = |name: &str, len: usize| self.case.values::<f32>(&format!("{}/{name}", self.case.id), len);
        let ids_of = |name: &str| self.case.values::<i32>(&format!("{}/{name}", self.case.id), slots);
        let d_weights = of("d_weights", slots)?;
        let mut compared = Compared::default();
        let (ids, weights, d_logits) = (ids_of("ids")?, of("weights", slots)?, of("d_logits", all)?);
        let native = Expected { direction: "", forced: None, ids: &ids, weights: &weights, d_logits: &d_logits };
        self.one(&mut compared, &native, &d_weights)?;
        let (ids, weights, d_logits) =
            (ids_of("forced_ids")?, of("replay_weights", slots)?, of("replay_d_logits", all)?);
        let replay =
            Expected { direction: "replay ", forced: Some(&ids), ids: &ids, weights: &weights, d_logits: &d_logits };
        self.one(&mut compared, &replay, &d_weights)?;
        Ok(compared)
    }

    fn one(&self, compared: &mut Compared, expected: &Expected<'_>, d_weights: &[f32]) -> Result<(), Stop> {
        let Expected { direction, forced, ids, weights, d_logits } = *expected;
        let stream = self.backend.stream()?;
        let k = self.router.top_k.unwrap_or_default();
        let logits = AnyBuffer::F32(self.backend.upload(&stream, &self.logits)?);
        let tape = forced.map(|ids| self.backend.upload(&stream, ids).map(AnyBuffer::I32)).transpose()?;
        let rows = Rows {
            logits: &logits,
            rows: self.rows,
            experts: self.experts,
            top_k: k,
            bias: self.bias.as_deref(),
            mask: None,
            forced: tape.as_ref().map(|tape| ForcedIds { tape, first: 0, row_stride: k }),
            layer: 0,
        };
        let (choice, fault) = forward(self.backend, &stream, &self.router, &rows, &mut Clock::default())?;
        if let Some(fault) = fault {
            return Err(Stop::Fail(fault.to_string()));
        }
        let scale = f64::from(self.router.scaling_factor.unwrap_or(1.0)).abs();
        // A weight is one exponential or sigmoid over a sum of k of them; the absolute part is a few ulps of a weight near 1.
        let weight = Tolerance { relative: 2e-6, absolute: 2e-7 * scale };
        // Producers compute gradients in f32, where weight · (upstream − mean) cancels.
        let gradient = Tolerance { relative: 2e-5, absolute: 2e-6 * scale };

        let slots = match_slots(&choice, ids, k);
        let found: Vec<i32> = slots.iter().map(|slot| slot.map_or(-1, |slot| choice.ids[slot])).collect();
        compared.equal(&format!("{direction}ids"), &found, ids);
        let paired: Vec<f32> = slots.iter().map(|slot| slot.map_or(f32::NAN, |slot| choice.weights[slot])).collect();
        compared.close(&format!("{direction}weights"), &paired, weights, weight);
        let mut upstream = vec![0.0; d_weights.len()];
        for (slot, &d) in slots.iter().zip(d_weights) {
            slot.iter().for_each(|&slot| upstream[slot] = d);
        }
        let found = backward(self.backend, &stream, &self.router, &rows, &choice, &upstream, &mut Clock::default())?;
        compared.close(&format!("{direction}d_logits"), &found, d_logits, gradient);
        Ok(())
    }
}

/// For every expected slot, our slot of the same row with the same expert.
fn match_slots(choice: &Choice, ids: &[i32], k: usize) -> Vec<Option<usize>> {
    ids.iter()
        .enumerate()
        .map(|(i, id)| {
            let row = i / k * k;
            (row..row + k).find(|&slot| choice.ids[slot] == *id)
        })
        .collect()
}
