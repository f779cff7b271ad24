//! Launches of `kernels/advantage/batch.cuh`.

use super::kernel;
use crate::abi::*;
use crate::advantage::{CountTokens, DoublyRobust, Moments, Pass, Whiten, Whitening};
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Parameters};
use crate::device::workspace::MomentsWorkspace;
use crate::error::Result;
use crate::objective::Plan;

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlMoments {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlWhiten {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlCountTokens {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlDoublyRobust {}

/// Threads of a block; `SUM_THREADS` in the kernels.
const THREADS: u32 = 256;
/// Warps of a block that counts tokens, a unit each.
const UNIT_WARPS: usize = 4;

/// [`Backend::batch_moments`](crate::Backend::batch_moments).
pub(crate) fn batch_moments<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    pass: Pass,
    mut call: Moments<'_, E::Memory>,
) -> Result<()> {
    call.validate()?;
    let layout = MomentsWorkspace::of(call.values.len());
    let mut workspace = layout.aligned(call.workspace);
    executor.set_bytes(stream, workspace.reborrow().slice(layout.ticket()..layout.records()), 0)?;
    let mut arguments = Arguments::new::<E>();
    let part = arguments.write("workspace", &mut workspace);
    let params = MoerlMoments {
        values: arguments.read("values", call.values),
        mask: arguments.read_optional("mask", call.weights.mask()),
        weights: arguments.read_optional("weights", call.weights.counts()),
        moments: arguments.write("moments", &mut call.moments),
        records: part.wrapping_add(layout.records()).cast(),
        ticket: part.wrapping_add(layout.ticket()).cast(),
        length: call.values.len() as u64,
        squares: u32::from(pass == Pass::Squares),
        reserved: 0,
    };
    let grid = Grid { blocks: layout.tiles() as u32, threads: THREADS, shared_bytes: 0 };
    // SAFETY: validate compared every length with that of `values`, and the workspace with what MomentsWorkspace lays out.
    unsafe { executor.launch(stream, kernel("batch_moments"), grid, &arguments, &params) }
}

/// [`Backend::batch_whiten`](crate::Backend::batch_whiten).
pub(crate) fn batch_whiten<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Whitening,
    mut call: Whiten<'_, E::Memory>,
) -> Result<()> {
    call.validate(config)?;
    let length = call.values.len();
    if length == 0 {
        return Ok(());
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlWhiten {
        values: arguments.write("values", &mut call.values),
        mask: arguments.read_optional("mask", call.mask),
        moments: arguments.read("moments", call.moments),
        length: length as u64,
        epsilon: config.epsilon,
        ddof: config.ddof,
        centre: u8::from(config.centre),
        epsilon_in_root: u8::from(config.epsilon_in_root),
        reserved: [0; 2],
    };
    let grid = Grid { blocks: length.div_ceil(MOERL_MOMENTS_TILE as usize) as u32, threads: THREADS, shared_bytes: 0 };
    // SAFETY: validate compared every length with that of `values`.
    unsafe { executor.launch(stream, kernel("batch_whiten"), grid, &arguments, &params) }
}

/// [`Backend::count_tokens`](crate::Backend::count_tokens).
pub(crate) fn count_tokens<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    plan: &Plan<E>,
    mut call: CountTokens<'_, E::Memory>,
) -> Result<()> {
    call.validate(plan)?;
    if plan.unit_count == 0 {
        return Ok(());
    }
    executor.set_bytes(stream, call.counts.reborrow(), 0)?;
    let mut arguments = Arguments::new::<E>();
    let params = MoerlCountTokens {
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        offsets: arguments.read("cu_seqlens", plan.offsets()),
        units: arguments.read("units", plan.units.view()).cast(),
        counts: arguments.write("counts", &mut call.counts),
        unit_count: plan.unit_count as u64,
    };
    let blocks = plan.unit_count.div_ceil(UNIT_WARPS) as u32;
    let grid = Grid { blocks, threads: 32 * UNIT_WARPS as u32, shared_bytes: 0 };
    // SAFETY: validate compared the mask with the plan's tokens and the counts with its segments; offsets and units are the plan's own.
    unsafe { executor.launch(stream, kernel("count_tokens"), grid, &arguments, &params) }
}

/// [`Backend::doubly_robust`](crate::Backend::doubly_robust).
pub(crate) fn doubly_robust<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut call: DoublyRobust<'_, E::Memory>,
) -> Result<()> {
    call.validate()?;
    let segments = call.rewards.len();
    if segments == 0 {
        return Ok(());
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlDoublyRobust {
        rewards: arguments.read("rewards", call.rewards),
        values: arguments.read("values", call.values),
        weights: arguments.read_optional("weights", call.weights),
        advantages: arguments.write("advantages", &mut call.advantages),
        estimates: arguments.write_optional("estimates", &mut call.estimates),
        nonfinite: arguments.write_optional("nonfinite", &mut call.nonfinite),
        segments: segments as u64,
    };
    let grid = Grid { blocks: segments.div_ceil(THREADS as usize) as u32, threads: THREADS, shared_bytes: 0 };
    // SAFETY: validate compared every length with that of `rewards`.
    unsafe { executor.launch(stream, kernel("doubly_robust"), grid, &arguments, &params) }
}
