//! Launches `kernels/gate_telemetry.cu`.

use super::{TUNING, Tier, element_code, name, of_given, tier};
use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::Result;
use crate::gate::{Config, Forward, Routes, Shape, ShiftFinish};
use crate::memory::Memory;

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlGateTelemetry {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlGateRouterShift {}

/// As many lanes a row as the staged forward has: a row's sums have the same trees then.
const TELEMETRY: &[Tier] = tiers!("telemetry": 128 by 8, 256 by 16, 4096 by 32);

/// More experts than this are counted in the sums at once: so long rows leave no room beside them, and few share a block.
const MOST_TALLIED: usize = 1024;

/// Blocks of a multiprocessor; each takes rows until there are none left, so that its counts are added to the sums once.
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;

/// True if a call is one for these kernels.
pub(super) fn is_needed<M: Memory>(config: &Config, call: &Forward<'_, M>) -> bool {
    let replaces = config.replaces().is_some() && matches!(call.routes, Routes::Forced(_));
    replaces || call.telemetry.as_ref().is_some_and(|telemetry| !telemetry.is_empty())
}

/// A forward call whose results are `forward`'s.
pub(super) fn forward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    call: &mut Forward<'_, E::Memory>,
    shape: &Shape,
    mut arguments: Arguments,
    forward: MoerlGateForward,
) -> Result<()> {
    let element = call.router_logits.element();
    let mut telemetry = call.telemetry.take().unwrap_or_default();
    let replaces = config.replaces();
    let is_counted = telemetry.counts.is_some() || telemetry.native_counts.is_some();
    let tally_bytes =
        if is_counted && shape.experts <= MOST_TALLIED { (2 * shape.experts * 4).next_multiple_of(16) } else { 0 };
    let record = telemetry.recorded_weights.filter(|_| telemetry.needs_record());
    let reference = telemetry.ref_logits.filter(|_| telemetry.needs_reference());
    let (selects, sums) = (telemetry.needs_choice() || replaces.is_some(), telemetry.needs_sum());
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    let empty: MoerlGateTelemetry = unsafe { std::mem::zeroed() };
    let mut params = MoerlGateTelemetry {
        forward,
        overlap: arguments.write_optional("overlap", &mut telemetry.overlap),
        overlap_hist: arguments.write_optional("overlap_hist", &mut telemetry.overlap_hist),
        changed: arguments.write_optional("changed", &mut telemetry.changed),
        changed_layers: arguments.write_optional("changed_layers", &mut telemetry.changed_layers),
        replaced: arguments.write_optional("replaced", &mut telemetry.replaced),
        margin: arguments.write_optional("margin", &mut telemetry.margin),
        deficit: arguments.write_optional("deficit", &mut telemetry.deficit),
        forced_mass: arguments.write_optional("forced_mass", &mut telemetry.forced_mass),
        gate_l1: arguments.write_optional("gate_l1", &mut telemetry.gate_l1),
        set_kl: arguments.write_optional("set_kl", &mut telemetry.set_kl),
        router_kl: arguments.write_optional("router_kl", &mut telemetry.router_kl),
        logprob_sel: arguments.write_optional("logprob_sel", &mut telemetry.logprob_sel),
        counts: arguments.write_optional("counts", &mut telemetry.counts),
        native_counts: arguments.write_optional("native_counts", &mut telemetry.native_counts),
        row_counts: arguments.write_optional("row_counts", &mut telemetry.row_counts),
        score_replace: replaces.unwrap_or(f32::INFINITY),
        tally_bytes: tally_bytes as u32,
        selects: u8::from(selects),
        sums: u8::from(sums),
        ..empty
    };
    if let Some(weights) = record {
        params.recorded_weights = of_given(arguments.read_matrix("recorded_weights", &weights));
        params.recorded_weights_stride = weights.row_stride() as i64;
        params.recorded_weights_element = element_code(weights.element());
    }
    if let Some(logits) = reference {
        params.ref_logits = arguments.read_matrix("ref_logits", &logits);
        params.ref_logits_stride = logits.row_stride() as i64;
    }
    if let Some(gradient) = &mut telemetry.d_router_kl {
        params.d_router_kl = arguments.write_matrix("d_router_kl", gradient);
        params.d_router_kl_stride = gradient.row_stride() as i64;
        params.d_router_kl_element = element_code(gradient.element());
    }
    if let Some(shift) = &mut telemetry.router_shift {
        params.old_topk_ids = arguments.read("old_topk_ids", shift.old_topk_ids);
        params.old_logprob_sel = arguments.read("old_logprob_sel", shift.old_logprob_sel);
        params.shift = arguments.write("shift", &mut shift.shift);
    }
    let tier = tier(TELEMETRY, shape.experts);
    let grid = grid(executor, shape.tokens, tier.lanes, params.forward.stage_bytes as usize, tally_bytes);
    let kernel = Kernel { image: "gate_telemetry", name: name(&tier.names, element) };
    // SAFETY: validate checked the length, type and alignment of every array against the shape; `stage_bytes` is what a row of this
    // router takes in shared memory, `tally_bytes` two counts of its experts.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}

/// Blocks that take rows in turn, each with its counts and its rows in shared memory.
fn grid<E: Executor>(executor: &E, rows: usize, lanes: usize, row_bytes: usize, tally_bytes: usize) -> Grid {
    let rows_per_warp = 32 / lanes;
    let fitting = (TUNING.shared_bytes - tally_bytes) / (row_bytes * rows_per_warp);
    let warps = (TUNING.threads / 32).min(fitting).max(1);
    let rows_per_block = warps * rows_per_warp;
    let most = executor.multiprocessors() as usize * BLOCKS_PER_MULTIPROCESSOR;
    Grid {
        blocks: rows.div_ceil(rows_per_block).min(most) as u32,
        threads: 32 * warps as u32,
        shared_bytes: (tally_bytes + rows_per_block * row_bytes) as u32,
    }
}

/// [`Backend::gate_router_shift`](crate::Backend::gate_router_shift).
pub(in crate::device) fn router_shift<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut call: ShiftFinish<'_, E::Memory>,
) -> Result<()> {
    const THREADS: usize = 256;
    call.validate()?;
    let rows = call.shift.len();
    if rows == 0 {
        return Ok(());
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlGateRouterShift {
        shift: arguments.read("shift", call.shift),
        router_shift: arguments.write("router_shift", &mut call.router_shift),
        rows: rows as u64,
        layers: call.layers as f32,
        floor: call.gamma_min.ln() as f32,
    };
    let grid = Grid { blocks: rows.div_ceil(THREADS) as u32, threads: THREADS as u32, shared_bytes: 0 };
    let kernel = Kernel { image: "gate_telemetry", name: "gate_router_shift" };
    // SAFETY: validate checked that both arrays have `rows` elements.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}
