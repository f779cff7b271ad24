//! Launches `kernels/gate_backward.cu`.

use super::{BACKWARD, BACKWARD_ROW, Tier, element_code, grid, grid_of_warps, name, router, tier};
use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::Result;
use crate::gate::{Backward, Config, Output, Shape, aligned_workspace};
use crate::memory::{MatrixMut, Memory};
use crate::router_loss::{self, Gradient};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlGateBackward {}

/// Where only slots are worked on, by the most of them.
const COMPACT: [(usize, usize, &str); 3] =
    [(8, 2, "gate_backward_compact_8"), (16, 4, "gate_backward_compact_16"), (32, 8, "gate_backward_compact_32")];
/// Where whole rows are stored, a few at a time, likewise.
const TILES: [Tier; 2] = [
    Tier {
        most: 8,
        lanes: 2,
        names: ["gate_backward_tiles_bf16_8", "gate_backward_tiles_f16_8", "gate_backward_tiles_f32_8"],
    },
    Tier {
        most: 16,
        lanes: 4,
        names: ["gate_backward_tiles_bf16_16", "gate_backward_tiles_f16_16", "gate_backward_tiles_f32_16"],
    },
];
/// Bytes of rows that a warp stores at a time, where a row is not longer: shared memory then holds no fewer warps than registers do.
const TILE_BYTES: usize = 4096;
/// Threads of a block that sums a panel, or finishes so many experts; `BACKWARD_THREADS` in the kernels.
const PANEL_THREADS: usize = 256;

fn named(name: &'static str) -> Kernel {
    Kernel { image: "gate_backward", name }
}

/// [`Backend::gate_backward`](crate::Backend::gate_backward).
pub(in crate::device) fn backward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Backward<'_, E::Memory>,
) -> Result<()> {
    let shape = call.validate(config)?;
    if shape.tokens == 0 {
        if let Some(target) = &mut call.d_expert_scale {
            executor.set_bytes(stream, target.reborrow(), 0)?;
        }
        return Ok(());
    }
    let reads_rows = call.reads_rows(config);
    let is_dense = matches!(call.output, Output::Dense(_));
    let mut arguments = Arguments::new::<E>();
    let mut params = inputs(&mut arguments, config, &call, &shape);
    let (kernel, grid) = match &mut call.output {
        Output::Compact { d_selected_logits, .. } => {
            params.d_selected_logits = arguments.write("d_selected_logits", d_selected_logits);
            let fits = |&&(most, ..): &&(usize, usize, &str)| shape.top_k <= most;
            let &(_, lanes, kernel) = COMPACT.iter().find(fits).unwrap_or(&COMPACT[COMPACT.len() - 1]);
            (named(kernel), grid_of_warps(executor, shape.tokens, 32 / lanes, 0, PANEL_THREADS))
        }
        Output::Dense(target) | Output::Accumulate(target) => {
            params.d_router_logits = arguments.write_matrix("d_router_logits", target);
            params.d_router_logits_stride = target.row_stride() as i64;
            let tiles = tiles(executor, target, &shape).filter(|_| is_dense && !reads_rows);
            params.tile_rows = tiles.as_ref().map_or(0, |(_, _, rows)| *rows);
            let tier = tier(if reads_rows { BACKWARD_ROW } else { BACKWARD }, shape.experts);
            let kernel = named(name(&tier.names, target.element()));
            tiles.map_or_else(
                || (kernel, grid(shape.tokens, tier.lanes, params.stage_bytes as usize)),
                |(kernel, grid, _)| (kernel, grid),
            )
        }
    };
    params.accumulate = u8::from(matches!(call.output, Output::Accumulate(_)));
    // SAFETY: validate checked the length, type and alignment of every array against the shape, and that what the gradient needs
    // is there; `stage_bytes` is what a row takes in shared memory.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }?;
    if call.d_expert_scale.is_some() { expert_scale(executor, stream, config, &mut call, &shape) } else { Ok(()) }
}

/// The kernel for whole rows of zeros and slots, its grid, and the rows that a warp stores at a time; where 16 bytes divide a row.
fn tiles<E: Executor>(executor: &E, target: &MatrixMut<'_, E::Memory>, shape: &Shape) -> Option<(Kernel, Grid, u32)> {
    let tier = TILES.iter().find(|tier| shape.top_k <= tier.most)?;
    let size = target.element().size();
    let row_bytes = shape.experts * size;
    let aligned =
        [target.address(), target.row_stride() * size, row_bytes].iter().all(|bytes| bytes.is_multiple_of(16));
    if !aligned {
        return None;
    }
    let rows = 32 / tier.lanes;
    let mut tile_rows = rows;
    while tile_rows > 1 && tile_rows * row_bytes > TILE_BYTES {
        tile_rows /= 2;
    }
    let grid = grid_of_warps(executor, shape.tokens, rows, tile_rows * row_bytes, PANEL_THREADS);
    Some((named(name(&tier.names, target.element())), grid, tile_rows as u32))
}

/// What the gradient is made of; where it goes is null.
fn inputs<M: Memory>(
    arguments: &mut Arguments,
    config: &Config,
    call: &Backward<'_, M>,
    shape: &Shape,
) -> MoerlGateBackward {
    let reads_rows = call.reads_rows(config);
    // Nothing is read from the logits where the slots were saved and the gradient stays among them.
    let logits = call.router_logits.filter(|_| reads_rows || call.selected_logits.is_none());
    let surrogate = call.surrogate.as_ref();
    MoerlGateBackward {
        router_logits: logits.map_or(std::ptr::null(), |logits| arguments.read_matrix("router_logits", &logits)),
        d_topk_weights: arguments.read_matrix("d_topk_weights", &call.d_topk_weights),
        topk_ids: arguments.read("topk_ids", call.topk_ids),
        selected_logits: arguments.read_optional("selected_logits", call.selected_logits),
        lse: arguments.read_optional("lse", call.lse),
        expert_scale: arguments.read_optional("expert_scale", call.expert_scale),
        token_mask: arguments.read_optional("token_mask", call.token_mask),
        row_count: arguments.read_optional("row_count", call.row_count),
        advantages: arguments.read_optional("advantages", surrogate.map(|surrogate| surrogate.advantages)),
        advantage_weights: arguments.read_optional("surrogate_weights", surrogate.and_then(|s| s.weights)),
        rows: shape.tokens as u64,
        router_logits_stride: logits.map_or(0, |logits| logits.row_stride() as i64),
        d_topk_weights_stride: call.d_topk_weights.row_stride() as i64,
        router: router(config, shape),
        router_logits_element: logits.map_or(MOERL_F32, |logits| element_code(logits.element())),
        d_topk_weights_element: element_code(call.d_topk_weights.element()),
        stage_bytes: if reads_rows { stage_bytes(shape.experts, call.regularizer.as_ref()) } else { 0 },
        surrogate_coefficient: surrogate.map_or(0.0, |surrogate| surrogate.coefficient),
        terms: terms(arguments, call.regularizer.as_ref()),
        // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
        ..unsafe { std::mem::zeroed() }
    }
}

/// What regularisers contribute; null where there are none.
fn terms<M: Memory>(arguments: &mut Arguments, regularizer: Option<&Gradient<'_, M>>) -> MoerlRouterTerms {
    // SAFETY: plain old data, for which all zeros (null, 0) is a value.
    let none: MoerlRouterTerms = unsafe { std::mem::zeroed() };
    let Some(regularizer) = regularizer else { return none };
    let reference = regularizer.ref_logits.as_ref();
    MoerlRouterTerms {
        q: arguments.read_optional("q", regularizer.q),
        coefficients: arguments.read("coefficients", regularizer.coefficients),
        ref_logits: reference.map_or(std::ptr::null(), |logits| arguments.read_matrix("ref_logits", logits)),
        offsets: arguments.read_optional("offsets", regularizer.offsets),
        segments: regularizer.segments() as u64,
        ref_logits_stride: reference.map_or(0, |logits| logits.row_stride() as i64),
        ref_logits_element: reference.map_or(MOERL_F32, |logits| element_code(logits.element())),
        ..none
    }
}

/// Bytes of shared memory of a row, and of its reference, that are kept there as f32.
fn stage_bytes<M: Memory>(experts: usize, regularizer: Option<&Gradient<'_, M>>) -> u32 {
    let rows = if regularizer.is_some_and(|regularizer| regularizer.ref_logits.is_some()) { 2 } else { 1 };
    (rows * experts.next_multiple_of(8) * size_of::<f32>()) as u32
}

/// [`Backend::router_loss_backward`](crate::Backend::router_loss_backward): the gate's kernel for whole rows, without a gradient of weights.
pub(in crate::device) fn regularizer_alone<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: router_loss::Backward<'_, E::Memory>,
) -> Result<()> {
    let shape = call.validate(config)?;
    let accumulate = u8::from(matches!(call.output, Output::Accumulate(_)));
    let (Output::Dense(target) | Output::Accumulate(target)) = &mut call.output else { return Ok(()) };
    if shape.tokens == 0 {
        return Ok(());
    }
    let regularizer = Some(&call.regularizer);
    let mut arguments = Arguments::new::<E>();
    let params = MoerlGateBackward {
        router_logits: arguments.read_matrix("router_logits", &call.router_logits),
        topk_ids: arguments.read_optional("topk_ids", call.topk_ids),
        selected_logits: arguments.read_optional("selected_logits", call.selected_logits),
        token_mask: arguments.read_optional("token_mask", call.token_mask),
        row_count: arguments.read_optional("row_count", call.row_count),
        d_router_logits: arguments.write_matrix("d_router_logits", target),
        d_router_logits_stride: target.row_stride() as i64,
        rows: shape.tokens as u64,
        router_logits_stride: call.router_logits.row_stride() as i64,
        router: router(config, &shape),
        router_logits_element: element_code(call.router_logits.element()),
        stage_bytes: stage_bytes(shape.experts, regularizer),
        terms: terms(&mut arguments, regularizer),
        accumulate,
        // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
        ..unsafe { std::mem::zeroed() }
    };
    let tier = tier(BACKWARD_ROW, shape.experts);
    let kernel = named(name(&tier.names, target.element()));
    let grid = grid(shape.tokens, tier.lanes, params.stage_bytes as usize);
    // SAFETY: validate checked the length, type and alignment of every array against the shape; without a gradient of weights the kernel reads
    // of the slots only what is given.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}

/// Two launches: panels of rows, then the panels in order.
fn expert_scale<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    call: &mut Backward<'_, E::Memory>,
    shape: &Shape,
) -> Result<()> {
    let (Some(mut target), Some(workspace)) = (call.d_expert_scale.take(), call.workspace.take()) else {
        return Ok(());
    };
    let mut panels = aligned_workspace(workspace);
    let mut arguments = Arguments::new::<E>();
    let shared_bytes = (shape.experts * size_of::<f32>()) as u32;
    let blocks = shape.tokens.div_ceil(MOERL_PANEL as usize) as u32;
    let summed = MoerlGateBackward {
        expert_scale_panels: arguments.write("workspace", &mut panels) as *mut f32,
        ..inputs(&mut arguments, config, call, shape)
    };
    let grid = Grid { blocks, threads: PANEL_THREADS as u32, shared_bytes };
    // SAFETY: as in `backward`; the workspace has a row of E sums for every panel, as validate checked.
    unsafe { executor.launch(stream, named("gate_expert_scale_panel"), grid, &arguments, &summed) }?;
    let mut arguments = Arguments::new::<E>();
    let finished = MoerlGateBackward {
        expert_scale_panels: arguments.write("workspace", &mut panels) as *mut f32,
        d_expert_scale: arguments.write("d_expert_scale", &mut target),
        rows: shape.tokens as u64,
        router: router(config, shape),
        // SAFETY: as in `inputs`.
        ..unsafe { std::mem::zeroed() }
    };
    let blocks = shape.experts.div_ceil(PANEL_THREADS) as u32;
    let grid = Grid { blocks, threads: PANEL_THREADS as u32, shared_bytes: 0 };
    // SAFETY: the panels of the launch before, and one element for each expert.
    unsafe { executor.launch(stream, named("gate_expert_scale_finish"), grid, &arguments, &finished) }
}
