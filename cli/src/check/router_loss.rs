//! Cases of family gate that are losses of a router: balance (switch) and z, each with its value, its counts and its gradient.
//!
//! Tensors: `aux/logits` `[T, E]`, `aux/forced_ids` `[T, k]`, `aux/padding` `[T]` (1 = padding); `aux/NAME/d_logits` `[T, E]` and, for balance,
//! `aux/NAME/tokens_per_expert` `[E]`. The value is the case's `loss`.

use moerl::gate::{self, Output};
use moerl::memory::{Matrix, MatrixMut};
use moerl::router_loss::{Backward, Config, CountsFrom, Finish, Gradient, Partial, Plan};
use moerl::{Backend, Buffer};

use super::{Case, Compared, Stop, Tolerance, unsupported};

const KEYS: &[&str] = &["coeff", "counts", "formula", "padded", "score", "top_k", "total_num_tokens"];

/// Megatron's balance loss and the probabilities that it takes; its z-loss.
const SWITCH: &str = "compute_routing_scores_for_aux_loss + switch_load_balancing_loss_func";
const Z: &str = "z_loss_func";

/// Runs one case of `function`.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>, function: &str) -> Result<Compared, Stop> {
    let keys = case.config(KEYS)?;
    let coefficient = keys.number("coeff").ok_or_else(|| Stop::Fail("the configuration has no coeff".into()))?;
    let forced = match keys.text("counts") {
        "forced" => true,
        "native" | "" => false,
        other => return unsupported(format!("counts {other}")),
    };
    let counts_from = if forced { CountsFrom::Routes } else { CountsFrom::TopK };
    let config = match function {
        SWITCH => Config { counts_from, ..Config::switch(coefficient) },
        Z => Config { z: coefficient, counts_from, ..Config::default() },
        other => return unsupported(format!("function {other}")),
    };
    let top_k = keys.number("top_k").map_or(1, |k| k as usize);
    let router = match keys.text("score") {
        "softmax" | "" => gate::Config::softmax_selected(top_k),
        "sigmoid" => gate::Config::sigmoid(top_k),
        other => return unsupported(format!("score {other}")),
    };
    let (logits, shape) = case.tensor::<f32>("aux/logits")?;
    let &[rows, experts] = shape.as_slice() else {
        return Err(Stop::Fail(format!("aux/logits have shape {shape:?}, need [T, E]")));
    };
    let mask = keys.flag("padded").then(|| case.values::<u8>("aux/padding", rows)).transpose()?;
    let mask = mask.map(|padding| padding.iter().map(|&padding| 1 - padding.min(1)).collect());
    let ids = forced.then(|| case.values::<i32>("aux/forced_ids", rows * top_k)).transpose()?;
    let batch = Batch { backend, router, config, rows, experts, logits, mask, ids };
    let (value, counts, gradient) = batch.run()?;

    let mut compared = Compared::default();
    let loss = case.json.get("loss").and_then(serde_json::Value::as_f64);
    let loss = loss.ok_or_else(|| Stop::Fail("the case has no loss".into()))?;
    compared.one("loss", 0, value, loss, Tolerance { relative: 2e-6, absolute: 0.0 });
    if function == SWITCH {
        let expected = case.values::<i32>(&format!("aux/{}/tokens_per_expert", case.id), experts)?;
        compared.equal("tokens_per_expert", &counts, &expected.iter().map(|&n| n as u64).collect::<Vec<_>>());
    }
    let expected = case.values::<f32>(&format!("aux/{}/d_logits", case.id), rows * experts)?;
    // The producer computes in f32, where q − Σ q P cancels.
    let largest = expected.iter().fold(0f32, |most, d| most.max(d.abs()));
    let tolerance = Tolerance { relative: 2e-5, absolute: 2e-6 * f64::from(largest) };
    compared.close("d_logits", &gradient, &expected, tolerance);
    Ok(compared)
}

struct Batch<'a, B> {
    backend: &'a B,
    router: gate::Config,
    config: Config,
    rows: usize,
    experts: usize,
    logits: Vec<f32>,
    mask: Option<Vec<u8>>,
    ids: Option<Vec<i32>>,
}

impl<B: Backend> Batch<'_, B> {
    /// The loss, tokens per expert, and the gradient of the logits.
    fn run(&self) -> moerl::Result<(f64, Vec<u64>, Vec<f32>)> {
        let Batch { backend, rows, experts, .. } = *self;
        let stream = backend.stream()?;
        let plan = Plan::whole(backend, &stream, rows)?;
        let logits = backend.upload(&stream, &self.logits)?;
        let ids = self.ids.as_ref().map(|ids| backend.upload(&stream, ids)).transpose()?;
        let mask = self.mask.as_ref().map(|mask| backend.upload(&stream, mask)).transpose()?;
        let mut probabilities = backend.allocate::<f64>(&stream, experts)?;
        let mut counts = backend.allocate::<u64>(&stream, experts)?;
        let mut counted = backend.allocate::<u64>(&stream, 1)?;
        let mut totals = backend.allocate::<f64>(&stream, 3)?;
        let mut nonfinite = backend.allocate::<u64>(&stream, 1)?;
        let mut workspace = backend.allocate::<u8>(&stream, Partial::<B::Memory>::workspace_bytes(&plan, experts))?;
        let sums = Partial {
            router_logits: Matrix::new(logits.view(), rows, experts)?,
            topk_ids: ids.as_ref().map(Buffer::view),
            ref_logits: None,
            selected_logits: None,
            token_mask: mask.as_ref().map(Buffer::view),
            row_count: None,
            probabilities: probabilities.view_mut(),
            counts: counts.view_mut(),
            rows: counted.view_mut(),
            totals: totals.view_mut(),
            nonfinite: nonfinite.view_mut(),
            accumulate: false,
            workspace: workspace.view_mut(),
        };
        backend.router_loss_partial(&stream, &self.router, &self.config, &plan, sums)?;

        let mut values = backend.allocate::<f64>(&stream, 4)?;
        let mut q = backend.allocate::<f32>(&stream, experts)?;
        let mut coefficients = backend.allocate::<f32>(&stream, 4)?;
        let mut workspace = backend.allocate::<u8>(&stream, Finish::<B::Memory>::workspace_bytes(&plan))?;
        let finish = Finish {
            experts,
            probabilities: probabilities.view(),
            rows: counted.view(),
            totals: totals.view(),
            counts: counts.view(),
            count_rows: None,
            valid_segments: None,
            values: values.view_mut(),
            q: q.view_mut(),
            coefficients: coefficients.view_mut(),
            workspace: workspace.view_mut(),
        };
        backend.router_loss_finish(&stream, &self.router, &self.config, &plan, finish)?;

        let mut gradient = backend.allocate::<f32>(&stream, rows * experts)?;
        let backward = Backward {
            router_logits: Matrix::new(logits.view(), rows, experts)?,
            regularizer: Gradient::new(&plan, q.view(), coefficients.view()),
            topk_ids: ids.as_ref().map(Buffer::view),
            selected_logits: None,
            token_mask: mask.as_ref().map(Buffer::view),
            row_count: None,
            output: Output::Dense(MatrixMut::new(gradient.view_mut(), rows, experts)?),
        };
        backend.router_loss_backward(&stream, &self.router, backward)?;
        let loss = backend.download(&stream, values.view())?.iter().sum();
        Ok((loss, backend.download(&stream, counts.view())?, backend.download(&stream, gradient.view())?))
    }
}
