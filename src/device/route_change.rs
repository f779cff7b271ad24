//! Launches `kernels/route_change.cu`.

use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::device::workspace::RouteChangeWorkspace;
use crate::error::Result;
use crate::route_change::{BINS, Call, NUMBERS};

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlRouteChange {}

const _: () = assert!(BINS == MOERL_ROUTE_BINS as usize && NUMBERS == MOERL_ROUTE_NUMBERS as usize);

const KERNEL: Kernel = Kernel { image: "route_change", name: "route_change" };

/// [`Backend::route_change`](crate::Backend::route_change).
pub(super) fn route_change<E: Executor>(executor: &E, stream: &E::Stream, mut call: Call<'_, E::Memory>) -> Result<()> {
    call.validate()?;
    let layout = RouteChangeWorkspace::of(call.logprobs.len());
    executor.set_bytes(stream, layout.aligned(call.workspace.reborrow()).slice(0..layout.records()), 0)?;
    let mut arguments = Arguments::new::<E>();
    let workspace = arguments.write("workspace", &mut layout.aligned(call.workspace.reborrow()));
    let params = MoerlRouteChange {
        logprobs: arguments.read("logprobs", call.logprobs),
        old_logprobs: arguments.read("old_logprobs", call.old_logprobs),
        rollout_logprobs: arguments.read_optional("rollout_logprobs", call.rollout_logprobs),
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        clipped: arguments.read_optional("clipped", call.clipped),
        keep: arguments.read_optional("keep", call.keep),
        route_change: arguments.read("route_change", call.route_change),
        sums: arguments.write("sums", &mut call.sums),
        ticket: workspace.cast(),
        records: workspace.wrapping_add(layout.records()).cast(),
        tokens: call.logprobs.len() as u64,
        accumulate: u64::from(call.accumulate),
    };
    let grid = Grid { blocks: layout.blocks() as u32, threads: 128, shared_bytes: 0 };
    // SAFETY: validate compared every length with N, the sums with what the kernel writes, and the workspace with what it must hold.
    unsafe { executor.launch(stream, KERNEL, grid, &arguments, &params) }
}
