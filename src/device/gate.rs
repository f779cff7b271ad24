//! Launches `kernels/gate.cu`, and `kernels/gate_backward.cu` from `backward`.

mod backward;

pub(super) use backward::{backward, regularizer_alone};

use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::element::Element;
use crate::error::Result;
use crate::gate::{Bad, Config, Filler, Forward, Missing, Nonfinite, Renormalize, Score, Shape};
use crate::memory::Memory;

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlGateForward {}

/// A kernel for up to so many experts, and how many lanes share a row there.
struct Tier {
    experts: usize,
    lanes: usize,
    names: [&'static str; 3],
}

macro_rules! tiers {
    ($direction:literal: $($experts:literal by $lanes:literal),*) => {
        &[$(Tier { experts: $experts, lanes: $lanes, names: [
            concat!("gate_", $direction, "_bf16_", $experts),
            concat!("gate_", $direction, "_f16_", $experts),
            concat!("gate_", $direction, "_f32_", $experts),
        ] }),*]
    };
}

mod telemetry;

pub(super) use telemetry::router_shift;

/// Few lanes a row keep more of a warp busy in the rounds of the selection; more lanes hold longer rows in registers.
const FORWARD: &[Tier] = tiers!("forward": 64 by 8, 128 by 8, 256 by 16, 512 by 32, 1024 by 32);
/// The same with rows in shared memory as well, and any length there.
const STAGED: &[Tier] = tiers!("forward_staged": 64 by 8, 128 by 8, 256 by 16, 512 by 32, 1024 by 32, 4096 by 32);
/// Backward holds one pack a lane at a time: the lanes are as many as make full use of wide stores.
const BACKWARD: &[Tier] = tiers!("backward": 128 by 8, 256 by 16, 4096 by 32);
/// The same with the row in shared memory. As many lanes as forward has for a row there, for their sums must have its tree.
const BACKWARD_ROW: &[Tier] = tiers!("backward_row": 128 by 8, 256 by 16, 4096 by 32);

/// How rows are dealt to blocks. Nothing here changes a bit of any result.
struct Tuning {
    /// Threads of a block, where shared memory does not ask for fewer: small blocks end evenly, and eight of these fill a multiprocessor.
    threads: usize,
    /// Shared memory that any device grants without asking, less what the kernels declare for themselves.
    shared_bytes: usize,
}

const TUNING: Tuning = Tuning { threads: 256, shared_bytes: 46 * 1024 };

fn tier(tiers: &'static [Tier], experts: usize) -> &'static Tier {
    tiers.iter().find(|tier| experts <= tier.experts).unwrap_or(&tiers[tiers.len() - 1])
}

fn name(tier: &Tier, element: Element) -> &'static str {
    match element {
        Element::Bf16 => tier.names[0],
        Element::F16 => tier.names[1],
        _ => tier.names[2],
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
    shape.experts <= FORWARD[FORWARD.len() - 1].experts && config.groups.is_none() && !is_scored && !config.needs_lse()
}

/// Bytes of shared memory that a row takes there.
/// As `Staged` of kernels/gate/columns.cuh divides them: the logits, a key for each, a word for each group.
fn row_bytes(config: &Config, shape: &Shape, element: Element) -> usize {
    let groups = config.groups.map_or(0, |groups| groups.count);
    let padded = shape.experts.next_multiple_of(8);
    (padded * (element.size() + size_of::<u32>()) + groups * size_of::<u32>()).next_multiple_of(16)
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
    let element = call.router_logits.element();
    let mut arguments = Arguments::new::<E>();
    let mut params = forward_params(&mut arguments, config, &mut call, &shape);
    if telemetry::is_needed(config, &call) {
        return telemetry::forward(executor, stream, config, call, &shape, arguments, params);
    }
    if fits_registers(config, &shape, params.scored != 0) {
        params.stage_bytes = 0;
    }
    let tier = tier(if params.stage_bytes == 0 { FORWARD } else { STAGED }, shape.experts);
    let grid = grid(shape.tokens, tier.lanes, params.stage_bytes as usize);
    let kernel = Kernel { image: "gate", name: name(tier, element) };
    // SAFETY: validate checked the length, type and alignment of every array against the shape, and `stage_bytes` is what a row of
    // this router takes in shared memory.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
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

/// What forced ids contribute; the rest is zero and null.
fn forced_params<M: Memory>(arguments: &mut Arguments, call: &Forward<'_, M>) -> MoerlGateForward {
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    let empty: MoerlGateForward = unsafe { std::mem::zeroed() };
    let Some(forced) = call.forced() else { return empty };
    MoerlGateForward {
        forced_ids: arguments.read_matrix("forced_ids", &forced.ids),
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
