//! Launches of `kernels/advantage/groups.cuh`: one for small groups; for groups in chunks sums, squares and the writing.

use super::kernel;
use crate::abi::*;
use crate::advantage::{Baseline, CHUNK, Call, Config, GroupPlan, Piece, Single};
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Parameters};
use crate::device::workspace::GroupWorkspace;
use crate::error::Result;

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlGroupAdvantages {}

const _: () = {
    assert!(CHUNK == MOERL_GROUP_CHUNK as usize && size_of::<Piece>() == size_of::<MoerlGroupPiece>());
    assert!(size_of::<MoerlGroupSums>() == 48 && size_of::<MoerlGroupScale>() == 32);
};

/// Groups of a block, a warp each; `GROUP_WARPS` in the kernel.
const GROUPS_PER_BLOCK: usize = 4;
/// Threads of a block that takes a chunk; `SUM_THREADS` in the kernel.
const CHUNK_THREADS: u32 = 256;

/// [`Backend::group_advantages`](crate::Backend::group_advantages).
pub(crate) fn group_advantages<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    plan: &GroupPlan<E>,
    mut call: Call<'_, E::Memory>,
) -> Result<()> {
    call.validate(config, plan)?;
    let groups = plan.groups().len();
    if groups == 0 {
        return Ok(());
    }
    let layout = GroupWorkspace::of(plan.chunk_count);
    let mut arguments = Arguments::new::<E>();
    let part = match call.workspace.take().filter(|_| plan.chunk_count > 0) {
        None => std::ptr::null_mut(),
        Some(workspace) => {
            let mut workspace = layout.aligned(workspace);
            executor.set_bytes(stream, workspace.reborrow().slice(layout.tickets()..layout.sums()), 0)?;
            arguments.write("workspace", &mut workspace)
        }
    };
    let params = MoerlGroupAdvantages {
        rewards: arguments.read("rewards", call.rewards),
        lengths: arguments.read_optional("lengths", call.lengths),
        advantages: arguments.write("advantages", &mut call.advantages),
        counts: arguments.write_optional("counts", &mut call.counts),
        group_ptr: arguments.read("group_ptr", plan.offsets()),
        members: arguments.read("group_members", plan.members()),
        chunks: arguments.read("chunks", plan.chunks.view()).cast(),
        sums: part.wrapping_add(layout.sums()).cast(),
        squares: part.wrapping_add(layout.squares()).cast(),
        scales: part.wrapping_add(layout.scales()).cast(),
        tickets: part.wrapping_add(layout.tickets()).cast(),
        groups: groups as u64,
        epsilon: config.epsilon,
        degenerate_tol: config.degenerate_tol,
        ddof: config.ddof,
        baseline: match config.baseline {
            Baseline::Mean => MOERL_BASELINE_MEAN,
            Baseline::LeaveOneOut => MOERL_BASELINE_LEAVE_ONE_OUT,
            Baseline::LengthWeighted => MOERL_BASELINE_LENGTH_WEIGHTED,
        },
        left_out: call.left_out.advantage(),
        divide: u8::from(config.std),
        single_keeps_reward: u8::from(config.single == Single::Reward),
        reserved: [0; 2],
    };
    let small = Grid {
        blocks: groups.div_ceil(GROUPS_PER_BLOCK) as u32,
        threads: 32 * GROUPS_PER_BLOCK as u32,
        shared_bytes: 0,
    };
    let chunks = Grid { blocks: plan.chunk_count as u32, threads: CHUNK_THREADS, shared_bytes: 0 };
    let has_chunks = plan.chunk_count > 0;
    for (name, grid, is_needed) in [
        ("group_advantages", small, true),
        ("group_sums", chunks, has_chunks),
        ("group_squares", chunks, has_chunks && config.std),
        ("group_apply", chunks, has_chunks),
    ] {
        if is_needed {
            // SAFETY: validate checked that every member is one of the segments that `rewards`, `lengths` and `advantages` have, and that the workspace
            // has room for what GroupWorkspace lays out; offsets, members and chunks are the plan's own.
            unsafe { executor.launch(stream, kernel(name), grid, &arguments, &params)? };
        }
    }
    Ok(())
}
