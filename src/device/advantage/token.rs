//! Launches of `kernels/advantage/tokens.cuh` and `baseline.cuh`: one where no segment has several tiles, else one more for these.

use super::kernel;
use crate::abi::*;
use crate::advantage::{BASELINE_TILE, BaselineCall, BaselinePlan, Piece, TokenBaseline, TokenCall, TokenEstimator};
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Parameters};
use crate::device::workspace::{BaselineWorkspace, TokenWorkspace};
use crate::error::Result;
use crate::objective::Plan;

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlTokenAdvantages {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlTokenBaseline {}

const _: () = {
    assert!(size_of::<MoerlReturnMap>() == 40 && size_of::<MoerlReturnState>() == 16);
    assert!(size_of::<MoerlEnergy>() == 16 && size_of::<Piece>() == size_of::<MoerlGroupPiece>());
    assert!(BASELINE_TILE == MOERL_BASELINE_TILE as usize);
};

/// Warps of a block, a unit each; `RETURN_WARPS` and `BASELINE_WARPS` in the kernels: a stage takes up to 20 KB, and two stay below the 48 KB that any
/// device grants without asking.
const UNIT_WARPS: usize = 2;

fn unit_grid(units: usize) -> Grid {
    Grid { blocks: units.div_ceil(UNIT_WARPS) as u32, threads: 32 * UNIT_WARPS as u32, shared_bytes: 0 }
}

/// [`Backend::token_advantages`](crate::Backend::token_advantages).
pub(crate) fn token_advantages<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &TokenEstimator,
    plan: &Plan<E>,
    mut call: TokenCall<'_, E::Memory>,
) -> Result<()> {
    call.validate(config, plan)?;
    if plan.unit_count == 0 {
        return Ok(());
    }
    let layout = TokenWorkspace::of(plan.unit_count);
    let mut workspace = layout.aligned(call.workspace);
    if plan.has_tiles {
        executor.set_bytes(stream, workspace.reborrow().slice(layout.tickets()..layout.maps()), 0)?;
    }
    let mut arguments = Arguments::new::<E>();
    let part = arguments.write("workspace", &mut workspace);
    let numbers = config.numbers();
    let params = MoerlTokenAdvantages {
        token_rewards: arguments.read_optional("token_rewards", call.token_rewards),
        segment_rewards: arguments.read_optional("segment_rewards", call.segment_rewards),
        values: arguments.read_optional("values", call.values),
        bootstrap: arguments.read_optional("bootstrap", call.bootstrap),
        ratio: arguments.read_optional("ratio", call.ratio),
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        offsets: arguments.read("cu_seqlens", plan.offsets()),
        units: arguments.read("units", plan.units.view()).cast(),
        advantages: arguments.write_optional("advantages", &mut call.advantages),
        returns: arguments.write_optional("returns", &mut call.returns),
        policy_weights: arguments.write_optional("policy_weights", &mut call.policy_weights),
        nonfinite: arguments.write_optional("nonfinite", &mut call.nonfinite),
        errors: arguments.write_optional("errors", &mut call.errors),
        maps: part.wrapping_add(layout.maps()).cast(),
        carries: part.wrapping_add(layout.carries()).cast(),
        tickets: part.wrapping_add(layout.tickets()).cast(),
        unit_count: plan.unit_count as u64,
        gamma: numbers.gamma,
        decay: numbers.gamma * numbers.lambda,
        ratio_bar: numbers.ratio_bar,
        trace_bar: numbers.trace_bar,
        tag: u32::from(call.tag),
        left_out: call.left_out.advantage(),
        one_step: u8::from(numbers.one_step),
        reserved: [0; 7],
    };
    let names = if plan.has_tiles { &["token_maps", "token_advantages"][..] } else { &["token_advantages"] };
    for name in names {
        // SAFETY: validate compared every length with the plan's sizes, and the workspace with what TokenWorkspace lays out; offsets and units are
        // the plan's own.
        unsafe { executor.launch(stream, kernel(name), unit_grid(plan.unit_count), &arguments, &params)? };
    }
    Ok(())
}

/// [`Backend::token_baseline`](crate::Backend::token_baseline).
pub(crate) fn token_baseline<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &TokenBaseline,
    baseline: &BaselinePlan<E>,
    mut call: BaselineCall<'_, E::Memory>,
) -> Result<()> {
    call.validate(config, baseline)?;
    let plan = &baseline.plan;
    if plan.unit_count == 0 {
        return Ok(());
    }
    let layout = BaselineWorkspace::of(plan.segments().tokens(), plan.segments().len(), plan.unit_count);
    let mut workspace = layout.aligned(call.workspace);
    // Tickets count arrivals from zero, and nobody writes the count of an empty segment.
    executor.set_bytes(stream, workspace.reborrow().slice(layout.tickets()..layout.energies()), 0)?;
    let mut arguments = Arguments::new::<E>();
    let part = arguments.write("workspace", &mut workspace);
    let params = MoerlTokenBaseline {
        returns: arguments.read("returns", call.returns),
        logprobs: arguments.read("logprobs", call.logprobs),
        sum_p2: arguments.read("sum_p2", call.sum_p2),
        weights: arguments.read_optional("weights", call.weights),
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        offsets: arguments.read("cu_seqlens", plan.offsets()),
        units: arguments.read("units", plan.units.view()).cast(),
        group_ptr: arguments.read("group_ptr", baseline.groups.offsets()),
        members: arguments.read("group_members", baseline.groups.members()),
        pieces: arguments.read("pieces", baseline.pieces.view()).cast(),
        advantages: arguments.write("advantages", &mut call.advantages),
        nonfinite: arguments.write_optional("nonfinite", &mut call.nonfinite),
        errors: arguments.write_optional("errors", &mut call.errors),
        energies: part.wrapping_add(layout.energies()).cast(),
        tickets: part.wrapping_add(layout.tickets()).cast(),
        cumulative: part.wrapping_add(layout.cumulative()).cast(),
        positions: part.wrapping_add(layout.positions()).cast(),
        counts: part.wrapping_add(layout.counts()).cast(),
        unit_count: plan.unit_count as u64,
        epsilon: config.epsilon,
        tag: u32::from(call.tag),
        zero_tail: u8::from(config.zero_tail),
        reserved: [0; 3],
    };
    let units = unit_grid(plan.unit_count);
    let pieces = Grid { blocks: baseline.piece_count as u32, threads: MOERL_BASELINE_TILE, shared_bytes: 0 };
    for (name, grid, is_needed) in [
        ("energy_tiles", units, plan.has_tiles),
        ("energy_scatter", units, true),
        ("token_baseline", pieces, baseline.piece_count > 0),
    ] {
        if is_needed {
            // SAFETY: as above, with BaselinePlan::new's check that every member is one of the segments, and BaselineWorkspace.
            unsafe { executor.launch(stream, kernel(name), grid, &arguments, &params)? };
        }
    }
    Ok(())
}
