//! Launches `kernels/gate.cu`, and `kernels/gate_backward.cu` from `backward`.

mod backward;

pub(super) use backward::{backward, regularizer_alone};

use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::element::Element;
use crate::error::Result;
use crate::gate::{Bad, Config, Filler, Forward, Missing, Nonfinite, Renormalize, Score, Shape};
use crate::memory::{MatrixMut, Memory};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlGateForward {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlGateMaps {}

/// A kernel for up to so many experts (or slots), and how many lanes share a row there.
struct Tier {
    most: usize,
    lanes: usize,
    names: [&'static str; 3],
}

macro_rules! tiers {
    ($direction:literal: $($experts:literal by $lanes:literal),*) => {
        &[$(Tier { most: $experts, lanes: $lanes, names: [
            concat!("gate_", $direction, "_bf16_", $experts),
            concat!("gate_", $direction, "_f16_", $experts),
            concat!("gate_", $direction, "_f32_", $experts),
        ] }),*]
    };
}

mod telemetry;

pub(super) use telemetry::router_shift;

/// Few lanes a row keep more of a warp busy in the rounds of the selection; more lanes hold longer rows in registers.
const FORWARD: &[Tier] = tiers!("forward": 128 by 8, 256 by 16, 512 by 32, 1024 by 32);
/// The same with rows in shared memory as well, and any length there.
const STAGED: &[Tier] = tiers!("forward_staged": 128 by 8, 256 by 16, 512 by 32, 1024 by 32, 4096 by 32);
/// Backward holds one pack a lane at a time: the lanes are as many as make full use of wide stores.
const BACKWARD: &[Tier] = tiers!("backward": 128 by 8, 256 by 16, 4096 by 32);
/// The same with the row in shared memory. As many lanes as forward has for a row there, for their sums must have its tree.
const BACKWARD_ROW: &[Tier] = tiers!("backward_row": 128 by 8, 256 by 16, 4096 by 32);

/// The kernels for many rows, by the most experts that they choose.
const MANY: &[(usize, [&str; 3])] = &[
    (8, ["gate_forward_many_bf16_8", "gate_forward_many_f16_8", "gate_forward_many_f32_8"]),
    (10, ["gate_forward_many_bf16_10", "gate_forward_many_f16_10", "gate_forward_many_f32_10"]),
];
/// The same by sigmoid + bias, up to 8 chosen.
const MANY_BIASED: [&str; 3] =
    ["gate_forward_many_biased_bf16_8", "gate_forward_many_biased_f16_8", "gate_forward_many_biased_f32_8"];

/// The kernels for rows with forced ids, by the most of them, and how many lanes share a row there.
const REPLAY: &[Tier] = &[
    Tier {
        most: 8,
        lanes: 2,
        names: ["gate_forward_replay_bf16_8", "gate_forward_replay_f16_8", "gate_forward_replay_f32_8"],
    },
    Tier {
        most: 16,
        lanes: 4,
        names: ["gate_forward_replay_bf16_16", "gate_forward_replay_f16_16", "gate_forward_replay_f32_16"],
    },
];

/// How rows are dealt to blocks. Nothing here changes a bit of any result.
struct Tuning {
    /// Threads of a block, where shared memory does not ask for fewer: small blocks end evenly, and eight of these fill a multiprocessor.
    threads: usize,
    /// The same of the kernels for many rows, whose warps take more shared memory.
    threads_of_many: usize,
    /// Shared memory that any device grants without asking, less what the kernels declare for themselves.
    shared_bytes: usize,
    /// With more rows for each multiprocessor than this, the kernels for many rows pay. Measured on an H100: their warp of sixteen rows takes no
    /// longer than a warp of the others takes for four; by sigmoid and bias, no longer than one takes for one.
    few_rows: usize,
}

const TUNING: Tuning = Tuning { threads: 256, threads_of_many: 128, shared_bytes: 46 * 1024, few_rows: 4 };

fn tier(tiers: &'static [Tier], experts: usize) -> &'static Tier {
    tiers.iter().find(|tier| experts <= tier.most).unwrap_or(&tiers[tiers.len() - 1])
}

fn name(names: &[&'static str; 3], element: Element) -> &'static str {
    match element {
        Element::Bf16 => names[0],
        Element::F16 => names[1],
        _ => names[2],
    }
}

pub(super) fn element_code(element: Element) -> u32 {
    match element {
        Element::Bf16 => MOERL_BF16,
        Element::F16 => MOERL_F16,
        Element::F32 => MOERL_F32,
        Element::U8 => MOERL_U8,
        Element::U16 => MOERL_U16,
        Element::I16 => MOERL_I16,
        Element::I32 => MOERL_I32,
        Element::I64 => MOERL_I64,
    }
}

pub(super) fn router(config: &Config, shape: &Shape) -> MoerlGateRouter {
    let (renormalize, renormalize_by) = match config.renormalize_for(shape.top_k) {
        Renormalize::None => (MOERL_GATE_RENORMALIZE_NONE, 0.0),
        Renormalize::AddEps(eps) => (MOERL_GATE_RENORMALIZE_ADD_EPS, eps),
        Renormalize::Floor(floor) => (MOERL_GATE_RENORMALIZE_FLOOR, floor),
        Renormalize::Guard => (MOERL_GATE_RENORMALIZE_GUARD, 0.0),
        Renormalize::Exact => (MOERL_GATE_RENORMALIZE_EXACT, 0.0),
    };
    MoerlGateRouter {
        experts: shape.experts as u32,
        top_k: shape.top_k as u32,
        score: match config.score {
            Score::Softmax => MOERL_GATE_SOFTMAX,
            Score::SoftmaxSelected => MOERL_GATE_SOFTMAX_SELECTED,
            Score::Sigmoid => MOERL_GATE_SIGMOID,
            Score::SqrtSoftplus => MOERL_GATE_SQRT_SOFTPLUS,
            Score::Raw => MOERL_GATE_RAW,
        },
        renormalize,
        renormalize_by,
        scaling_factor: config.scaling_factor.unwrap_or(1.0),
        softcap: config.softcap.unwrap_or(0.0),
        propagate: u32::from(config.nonfinite == Nonfinite::Propagate),
    }
}

/// True if nothing goes over a row more than once, and registers hold it.
fn fits_registers(config: &Config, shape: &Shape, is_scored: bool) -> bool {
    shape.experts <= FORWARD[FORWARD.len() - 1].most && config.groups.is_none() && !is_scored && !config.needs_lse()
}

/// Bytes of shared memory that a row takes there.
/// As `Staged` of kernels/gate/columns.cuh divides them: the logits, a key for each, a word for each group.
fn row_bytes(config: &Config, shape: &Shape, element: Element) -> usize {
    let groups = config.groups.map_or(0, |groups| groups.count);
    let padded = shape.experts.next_multiple_of(8);
    (padded * (element.size() + size_of::<u32>()) + groups * size_of::<u32>()).next_multiple_of(16)
}

/// The launch of a forward call: which kernel, on which grid, and the shared memory that each of its units (a row, or a warp of the kernels
/// for many rows) has.
struct Plan {
    kernel: Kernel,
    grid: Grid,
    unit_bytes: usize,
    /// Slots can be stored several at a time.
    wide_stores: bool,
}

/// `Segments` of kernels/gate/segments.cuh: bytes of a warp's rows, each shared by so many lanes.
fn segment_bytes(experts: usize, lanes: usize, size: usize) -> usize {
    32 * ((experts / lanes).next_multiple_of(32) * size + 16)
}

/// The plan for many rows that select for themselves, where there is one. `ManyPlace` of kernels/gate/many.cuh divides a warp's memory.
fn plan_for_many<E: Executor>(
    executor: &E,
    config: &Config,
    call: &Forward<'_, E::Memory>,
    shape: &Shape,
    params: &MoerlGateForward,
) -> Option<Plan> {
    let Shape { tokens, experts, top_k } = *shape;
    let logits = &call.router_logits;
    let (element, size) = (logits.element(), logits.element().size());
    let is_scored = params.scored != 0;
    let many = is_scored || tokens > TUNING.few_rows * executor.multiprocessors() as usize;
    let regular = experts.is_multiple_of(32) && experts <= 512;
    // A softcap does not change what is chosen by logit, but it is more than the weights of these kernels take in.
    let plain = config.softcap.is_none() && !config.needs_lse() && call.cutoff.is_none() && call.forced().is_none();
    let aligned = logits.address().is_multiple_of(16) && (logits.row_stride() * size).is_multiple_of(16);
    if !many || !regular || !aligned || !plain {
        return None;
    }
    let lanes = if size == 2 { 2 } else { 4 };
    let names = if is_scored {
        let groups = config.groups.map_or(lanes, |groups| groups.count);
        let near = config.score == Score::Sigmoid && call.selection_bias.is_some();
        // Whole groups for each lane, scored by no more than their two best.
        let grouped = groups.is_multiple_of(lanes) && groups <= 16;
        (near && grouped && params.group_top <= 2 && top_k <= 8).then_some(&MANY_BIASED)?
    } else {
        if config.groups.is_some() {
            return None;
        }
        MANY.iter().find(|(most, _)| top_k <= *most).map(|(_, names)| names)?
    };
    let rows = 32 / lanes;
    let behind =
        if is_scored { segment_bytes(experts, lanes, size_of::<u16>()) } else { row_bytes(config, shape, element) };
    let candidates = rows * 16 * if size == 2 && !is_scored { size_of::<u32>() } else { 2 * size_of::<u32>() };
    let unit_bytes = segment_bytes(experts, lanes, size) + behind + candidates;
    let grid = grid_of_warps(executor, tokens, rows, unit_bytes, TUNING.threads_of_many);
    // The slots that one store takes: as in gate_forward_many.
    let width = if lanes == 2 && top_k <= 8 { 4 } else { 2 };
    let wide_stores = has_wide_slots(call, top_k, width);
    Some(Plan { kernel: Kernel { image: "gate", name: name(names, element) }, grid, unit_bytes, wide_stores })
}

/// A grid of warps that have `rows` rows and `unit_bytes` of shared memory each. A block has as many as it may and as shared memory holds, but no
/// more than leave work for every multiprocessor.
fn grid_of_warps<E: Executor>(executor: &E, tokens: usize, rows: usize, unit_bytes: usize, threads: usize) -> Grid {
    let spread = tokens.div_ceil(rows) / executor.multiprocessors().max(1) as usize;
    let warps = (TUNING.shared_bytes / unit_bytes.max(1)).min(threads / 32).min(spread).max(1);
    Grid {
        blocks: tokens.div_ceil(warps * rows) as u32,
        threads: 32 * warps as u32,
        shared_bytes: (warps * unit_bytes) as u32,
    }
}

/// Rows of 16 bytes at 16-byte boundaries, of the slots that a lane stores at once.
fn has_wide_slots<M: Memory>(call: &Forward<'_, M>, top_k: usize, width: usize) -> bool {
    let weights = &call.topk_weights;
    let saved = call.selected_logits.as_ref().map_or(0, |array| array.address());
    weights.element() == Element::F32
        && [top_k, weights.row_stride()].iter().all(|slots| slots.is_multiple_of(width))
        && [call.topk_ids.address(), weights.address(), saved].iter().all(|address| address.is_multiple_of(4 * width))
}

/// The plan for rows with forced ids of which nothing but the slots is needed, where there is one. A row that selects for itself is staged by
/// its warp, and its choice is left behind it.
fn plan_for_replay<E: Executor>(
    executor: &E,
    config: &Config,
    call: &Forward<'_, E::Memory>,
    shape: &Shape,
    params: &MoerlGateForward,
) -> Option<Plan> {
    // The sum over a row, and with it a softmax that selects, has the tree of the lanes that share it elsewhere.
    let selects_by_sum = params.scored != 0 && config.score == Score::SoftmaxSelected;
    let of_slots = !config.needs_lse() && call.lse.is_none() && call.cutoff.is_none() && !selects_by_sum;
    let tier = REPLAY.iter().find(|tier| shape.top_k <= tier.most)?;
    if call.forced().is_none() || !of_slots {
        return None;
    }
    let element = call.router_logits.element();
    let unit_bytes = row_bytes(config, shape, element) + 32 * size_of::<u32>();
    let rows = 32 / tier.lanes;
    let grid = grid_of_warps(executor, shape.tokens, rows, unit_bytes, TUNING.threads);
    let wide_stores = has_wide_slots(call, shape.top_k, if tier.lanes == 2 { 4 } else { 2 });
    Some(Plan { kernel: Kernel { image: "gate", name: name(&tier.names, element) }, grid, unit_bytes, wide_stores })
}

/// The plan for any call.
fn plan<E: Executor>(
    executor: &E,
    config: &Config,
    call: &Forward<'_, E::Memory>,
    shape: &Shape,
    params: &MoerlGateForward,
) -> Plan {
    let of_few_lanes = plan_for_replay(executor, config, call, shape, params)
        .or_else(|| plan_for_many(executor, config, call, shape, params));
    if let Some(plan) = of_few_lanes {
        return plan;
    }
    let in_registers = fits_registers(config, shape, params.scored != 0);
    let element = call.router_logits.element();
    let tier = tier(if in_registers { FORWARD } else { STAGED }, shape.experts);
    let unit_bytes = if in_registers { 0 } else { row_bytes(config, shape, element) };
    let grid = grid(shape.tokens, tier.lanes, unit_bytes);
    Plan { kernel: Kernel { image: "gate", name: name(&tier.names, element) }, grid, unit_bytes, wide_stores: false }
}

/// A grid in which every warp holds `32 / lanes` rows. It covers the rows once: a row is too little work to be worth a loop.
fn grid(rows: usize, lanes: usize, row_bytes: usize) -> Grid {
    let rows_per_warp = 32 / lanes;
    let fitting = TUNING.shared_bytes.checked_div(row_bytes * rows_per_warp).unwrap_or(usize::MAX);
    let warps = (TUNING.threads / 32).min(fitting).max(1);
    let rows_per_block = warps * rows_per_warp;
    Grid {
        blocks: rows.div_ceil(rows_per_block) as u32,
        threads: 32 * warps as u32,
        shared_bytes: (rows_per_block * row_bytes) as u32,
    }
}

/// [`Backend::gate_forward`](crate::Backend::gate_forward).
pub(super) fn forward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Forward<'_, E::Memory>,
) -> Result<()> {
    let shape = call.validate(config)?;
    if shape.tokens == 0 {
        return Ok(());
    }
    let has_maps = call.dense_probs.is_some() || call.bytemap.is_some() || call.bitmap.is_some();
    let mut arguments = Arguments::new::<E>();
    let mut params = forward_params(&mut arguments, config, &mut call, &shape);
    if telemetry::is_needed(config, &call) {
        telemetry::forward(executor, stream, config, &mut call, &shape, arguments, params)?;
    } else {
        let plan = plan(executor, config, &call, &shape, &params);
        params.stage_bytes = plan.unit_bytes as u32;
        params.wide_stores = u8::from(plan.wide_stores);
        // SAFETY: validate checked the length, type and alignment of every array against the shape, and `unit_bytes` is what a row of
        // this router (or a warp of its rows, in the kernels for many) takes in shared memory.
        unsafe { executor.launch(stream, plan.kernel, plan.grid, &arguments, &params)? };
    }
    if has_maps { write_maps(executor, stream, &mut call, &shape) } else { Ok(()) }
}

/// What a call comes to for the kernels, for rows in shared memory.
fn forward_params<M: Memory>(
    arguments: &mut Arguments,
    config: &Config,
    call: &mut Forward<'_, M>,
    shape: &Shape,
) -> MoerlGateForward {
    let groups = config.groups;
    let group_top = groups.map_or(1, |groups| groups.top.unwrap_or(shape.top_k / groups.admitted));
    let is_scored = call.selection_bias.is_some() || group_top > 1;
    let forced = forced_params(arguments, call);
    let record = call.record_ids.as_ref().map(|ids| (ids.element(), ids.row_stride()));
    MoerlGateForward {
        router_logits: arguments.read_matrix("router_logits", &call.router_logits),
        selection_bias: arguments.read_optional("selection_bias", call.selection_bias),
        token_mask: arguments.read_optional("token_mask", call.token_mask),
        row_count: arguments.read_optional("row_count", call.row_count),
        topk_ids: arguments.write("topk_ids", &mut call.topk_ids),
        topk_weights: arguments.write_matrix("topk_weights", &mut call.topk_weights),
        selected_logits: arguments.write_optional("selected_logits", &mut call.selected_logits),
        lse: arguments.write_optional("lse", &mut call.lse),
        errors: arguments.write_optional("errors", &mut call.errors),
        expert_scale: arguments.read_optional("expert_scale", call.expert_scale),
        record_ids: write_optional_matrix(arguments, "record_ids", &mut call.record_ids),
        record_ids_stride: record.map_or(0, |(_, stride)| stride as i64),
        record_ids_element: record.map_or(MOERL_I32, |(element, _)| element_code(element)),
        cutoff: arguments.write_optional("cutoff", &mut call.cutoff),
        rows: shape.tokens as u64,
        router_logits_stride: call.router_logits.row_stride() as i64,
        topk_weights_stride: call.topk_weights.row_stride() as i64,
        router: router(config, shape),
        topk_weights_element: element_code(call.topk_weights.element()),
        missing: match config.missing {
            Missing::Native => MOERL_GATE_POLICY_NATIVE,
            Missing::ZeroWeight | Missing::Error => MOERL_GATE_POLICY_ZERO_WEIGHT,
            Missing::Spread => MOERL_GATE_POLICY_SPREAD,
        },
        bad: match config.bad {
            Bad::Native => MOERL_GATE_POLICY_NATIVE,
            Bad::ZeroWeight => MOERL_GATE_POLICY_ZERO_WEIGHT,
        },
        group_size: groups.map_or(shape.experts, |groups| shape.experts / groups.count) as u32,
        admitted_groups: groups.map_or(1, |groups| groups.admitted) as u32,
        group_top: group_top as u32,
        stage_bytes: row_bytes(config, shape, call.router_logits.element()) as u32,
        tag: u32::from(call.tag),
        missing_is_fault: u8::from(config.missing == Missing::Error),
        sentinel_filler: u8::from(config.filler == Filler::Sentinel),
        scored: u8::from(is_scored),
        ..forced
    }
}

fn write_optional_matrix<M: Memory>(
    arguments: &mut Arguments,
    name: &'static str,
    matrix: &mut Option<MatrixMut<'_, M>>,
) -> *mut std::ffi::c_void {
    matrix.as_mut().map_or(std::ptr::null_mut(), |matrix| arguments.write_matrix(name, matrix))
}

/// The maps over all experts, from the ids and weights that the call has just written.
fn write_maps<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    call: &mut Forward<'_, E::Memory>,
    shape: &Shape,
) -> Result<()> {
    let mut arguments = Arguments::new::<E>();
    let weights = call.topk_weights.as_matrix();
    let params = MoerlGateMaps {
        topk_ids: arguments.read("topk_ids", call.topk_ids.as_view()),
        topk_weights: arguments.read_matrix("topk_weights", &weights),
        dense_probs_stride: call.dense_probs.as_ref().map_or(0, |probs| probs.row_stride() as i64),
        dense_probs: write_optional_matrix(&mut arguments, "dense_probs", &mut call.dense_probs),
        bytemap: arguments.write_optional("bytemap", &mut call.bytemap),
        bitmap: arguments.write_optional("bitmap", &mut call.bitmap),
        rows: shape.tokens as u64,
        topk_weights_stride: weights.row_stride() as i64,
        topk_weights_element: element_code(weights.element()),
        experts: shape.experts as u32,
        top_k: shape.top_k as u32,
        reserved: 0,
    };
    // A warp has a row, and a byte for each expert.
    let warps = TUNING.threads_of_many / 32;
    let grid = Grid {
        blocks: shape.tokens.div_ceil(warps) as u32,
        threads: 32 * warps as u32,
        shared_bytes: (warps * shape.experts.next_multiple_of(32)) as u32,
    };
    // SAFETY: validate checked the length, type and alignment of every array against the shape, and the launch before this one on the
    // same stream writes every id: below E, or -1.
    unsafe { executor.launch(stream, Kernel { image: "gate", name: "gate_maps" }, grid, &arguments, &params) }
}

/// A pointer that is not null, which to a kernel is an array that was not given: one without rows may lie anywhere, and nobody reads it.
fn of_given(array: *const std::ffi::c_void) -> *const std::ffi::c_void {
    if array.is_null() { std::ptr::dangling() } else { array }
}

/// What forced ids contribute; the rest is zero and null.
fn forced_params<M: Memory>(arguments: &mut Arguments, call: &Forward<'_, M>) -> MoerlGateForward {
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    let empty: MoerlGateForward = unsafe { std::mem::zeroed() };
    let Some(forced) = call.forced() else { return empty };
    MoerlGateForward {
        forced_ids: of_given(arguments.read_matrix("forced_ids", &forced.ids)),
        row_index: arguments.read_optional("row_index", forced.row_index),
        row_mode: arguments.read_optional("row_mode", forced.row_mode),
        forced_rows: forced.ids.rows() as u64,
        forced_ids_stride: forced.ids.row_stride() as i64,
        forced_ids_element: element_code(forced.ids.element()),
        sentinel: match forced.ids.element() {
            Element::U8 => i32::from(u8::MAX),
            Element::U16 => i32::from(u16::MAX),
            _ => -1,
        },
        has_sentinel: u8::from(forced.has_sentinel),
        zeros_are_missing: u8::from(forced.zeros_are_missing),
        ..empty
    }
}
