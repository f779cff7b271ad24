//! Launches `kernels/advantage.cu`.

use crate::abi::MoerlGroupAdvantages;
use crate::advantage::{Call, Config, GroupPlan, Single};
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::Result;

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlGroupAdvantages {}

const KERNEL: Kernel = Kernel { image: "advantage", name: "group_advantages" };

/// Groups of a block, a warp each; `GROUP_WARPS` in the kernel.
const GROUPS_PER_BLOCK: usize = 4;

/// [`Backend::group_advantages`](crate::Backend::group_advantages).
pub(super) fn group_advantages<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    plan: &GroupPlan<E>,
    mut call: Call<'_, E::Memory>,
) -> Result<()> {
    call.validate(config, plan.groups())?;
    let groups = plan.groups().len();
    if groups == 0 {
        return Ok(());
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlGroupAdvantages {
        rewards: arguments.read("rewards", call.rewards),
        advantages: arguments.write("advantages", &mut call.advantages),
        counts: arguments.write_optional("counts", &mut call.counts),
        group_ptr: arguments.read("group_ptr", plan.offsets()),
        members: arguments.read("group_members", plan.members()),
        groups: groups as u64,
        epsilon: config.epsilon,
        degenerate_tol: config.degenerate_tol,
        ddof: config.ddof,
        divide: u8::from(config.std),
        single_keeps_reward: u8::from(config.single == Single::Reward),
        reserved: [0; 2],
    };
    let blocks = groups.div_ceil(GROUPS_PER_BLOCK) as u32;
    let grid = Grid { blocks, threads: 32 * GROUPS_PER_BLOCK as u32, shared_bytes: 0 };
    // SAFETY: validate checked that every member is one of the segments that `rewards` and `advantages` have.
    unsafe { executor.launch(stream, KERNEL, grid, &arguments, &params) }
}
