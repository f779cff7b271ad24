//! Launches `kernels/router_loss.cu`.

use super::gate::{element_code, router};
use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::Result;
use crate::gate;
use crate::router_loss::{BiasUpdate, Config, CountsFrom, Finish, Partial, PartialWorkspace, Plan, aligned};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlRouterLoss {}

/// Threads of a block that merges or finishes; `PARTIAL_THREADS` and `FINISH_THREADS` in the kernels.
const THREADS: u32 = 256;

fn named(name: &'static str) -> Kernel {
    Kernel { image: "router_loss", name }
}

fn nothing() -> MoerlRouterLoss {
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    unsafe { std::mem::zeroed() }
}

/// Warps of a block that sums a panel: as many as leave shared memory for a row, its reference and its sums each. Part of the contract on bits: it
/// depends on E alone.
fn panel_warps(experts: usize) -> usize {
    match experts {
        0..=256 => 8,
        257..=1024 => 4,
        1025..=2048 => 2,
        _ => 1,
    }
}

/// [`Backend::router_loss_partial`](crate::Backend::router_loss_partial): panels, then the panels of each segment.
pub(super) fn partial<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    gate: &gate::Config,
    config: &Config,
    plan: &Plan<E>,
    mut call: Partial<'_, E::Memory>,
) -> Result<()> {
    let shape = call.validate(gate, config, plan)?;
    let (panels, experts) = (plan.panel_count(), shape.experts);
    let layout = PartialWorkspace::of(panels, experts);
    let mut workspace = aligned(call.workspace.reborrow());
    let reference = call.ref_logits.filter(|_| config.router_kl != 0.0);
    let mut arguments = Arguments::new::<E>();
    let place = arguments.write("workspace", &mut workspace);
    let of_panels = MoerlRouterLoss {
        panel_sums: place as *mut MoerlPanelSums,
        panel_probabilities: place.wrapping_add(layout.probabilities) as *mut f32,
        panel_counts: place.wrapping_add(layout.counts) as *mut u32,
        rows: shape.tokens as u64,
        panel_count: panels as u64,
        segments: plan.segments().len() as u64,
        router: router(gate, &shape),
        ..nothing()
    };
    if panels > 0 {
        let params = MoerlRouterLoss {
            router_logits: arguments.read_matrix("router_logits", &call.router_logits),
            ref_logits: reference.map_or(std::ptr::null(), |logits| arguments.read_matrix("ref_logits", &logits)),
            topk_ids: arguments.read_optional("topk_ids", call.topk_ids),
            selected_logits: arguments.read_optional("selected_logits", call.selected_logits),
            token_mask: arguments.read_optional("token_mask", call.token_mask),
            row_count: arguments.read_optional("row_count", call.row_count),
            panels: arguments.read("panels", plan.panels()) as *const MoerlPanel,
            router_logits_stride: call.router_logits.row_stride() as i64,
            ref_logits_stride: reference.map_or(0, |logits| logits.row_stride() as i64),
            router_logits_element: element_code(call.router_logits.element()),
            ref_logits_element: reference.map_or(MOERL_F32, |logits| element_code(logits.element())),
            counts_best: u8::from(config.counts_from == CountsFrom::TopK),
            ..of_panels
        };
        let warps = panel_warps(experts);
        let arrays = if reference.is_some() { 3 } else { 2 };
        let shared_bytes = (warps * arrays * experts.next_multiple_of(8) * size_of::<f32>()) as u32;
        let grid = Grid { blocks: panels as u32, threads: 32 * warps as u32, shared_bytes };
        // SAFETY: validate checked the length, type and alignment of every array against the shape; panels are rows of the plan, which are those
        // of the logits; the workspace has every panel's part, and shared memory each warp's.
        unsafe { executor.launch(stream, named("router_loss_partial"), grid, &arguments, &params) }?;
    }
    let mut arguments = Arguments::new::<E>();
    arguments.write("workspace", &mut workspace);
    let params = MoerlRouterLoss {
        first_panels: arguments.read("first_panels", plan.first_panels()),
        probabilities: arguments.write("probabilities", &mut call.probabilities),
        counts: arguments.write("counts", &mut call.counts),
        segment_rows: arguments.write("rows", &mut call.rows),
        totals: arguments.write("totals", &mut call.totals),
        nonfinite: arguments.write("nonfinite", &mut call.nonfinite),
        accumulate: u8::from(call.accumulate),
        ..of_panels
    };
    // Without segments there are totals all the same.
    let blocks = (plan.segments().len() * experts.div_ceil(THREADS as usize)).max(1) as u32;
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    // SAFETY: the panels of the launch before, and sums for each segment and expert, as validate checked.
    unsafe { executor.launch(stream, named("router_loss_merge"), grid, &arguments, &params) }
}

/// [`Backend::router_loss_finish`](crate::Backend::router_loss_finish): each segment, then the batch.
pub(super) fn finish<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    gate: &gate::Config,
    config: &Config,
    plan: &Plan<E>,
    mut call: Finish<'_, E::Memory>,
) -> Result<()> {
    let shape = call.validate(gate, config, plan)?;
    let mut workspace = aligned(call.workspace.reborrow());
    let mut arguments = Arguments::new::<E>();
    let params = MoerlRouterLoss {
        probabilities: arguments.read("probabilities", call.probabilities) as *mut f64,
        counts: arguments.read("counts", call.counts) as *mut u64,
        segment_rows: arguments.read("rows", call.rows) as *mut u64,
        count_rows: arguments.read("count_rows", call.count_rows.unwrap_or(call.rows)),
        totals: arguments.read("totals", call.totals) as *mut f64,
        segment_values: arguments.write("workspace", &mut workspace) as *mut f64,
        values: arguments.write("values", &mut call.values),
        q: arguments.write("q", &mut call.q),
        coefficients: arguments.write("coefficients", &mut call.coefficients),
        segments: plan.segments().len() as u64,
        valid_segments: call.valid_segments.unwrap_or(0),
        weights: [config.balance, config.z, config.entropy, config.router_kl],
        router: router(gate, &shape),
        ..nothing()
    };
    let blocks = plan.segments().len() as u32;
    if blocks > 0 {
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: validate checked that every array has an element for each segment and expert.
        unsafe { executor.launch(stream, named("router_loss_segment"), grid, &arguments, &params) }?;
    }
    let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: 0 };
    // SAFETY: likewise, and four values and coefficients.
    unsafe { executor.launch(stream, named("router_loss_finish"), grid, &arguments, &params) }
}

/// [`Backend::router_bias_update`](crate::Backend::router_bias_update).
pub(super) fn bias_update<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut call: BiasUpdate<'_, E::Memory>,
) -> Result<()> {
    let experts = call.validate()?;
    let mut arguments = Arguments::new::<E>();
    let mut params = MoerlRouterLoss {
        counts: arguments.read("counts", call.counts) as *mut u64,
        selection_bias: arguments.write("selection_bias", &mut call.selection_bias),
        bias_step: call.step,
        ..nothing()
    };
    params.router.experts = experts as u32;
    let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: 0 };
    // SAFETY: validate checked that both arrays have E elements.
    unsafe { executor.launch(stream, named("router_loss_bias"), grid, &arguments, &params) }
}
