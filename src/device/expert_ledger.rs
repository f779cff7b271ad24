//! Launches `kernels/expert_ledger.cu`.

use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::device::gate::element_code;
use crate::element::Element;
use crate::error::Result;
use crate::expert_ledger::{
    Advantages, ClipScale, ExpertSums, Ledger, SquaredNorms, Tokens, ledger_workspace, norm_workspace,
};
use crate::memory::Memory;

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlExpertLedger {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlExpertNorms {}

// The kernels' record of an expert is the public one.
const _: () = assert!(size_of::<ExpertSums>() == size_of::<MoerlExpertSums>());

/// Threads of every block; `LEDGER_THREADS` in the kernels.
const THREADS: usize = 256;

fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "expert_ledger", name }
}

/// Blocks with a thread for each of `items`.
fn grid(items: usize) -> Grid {
    Grid { blocks: items.div_ceil(THREADS) as u32, threads: THREADS as u32, shared_bytes: 0 }
}

fn token_params<M: Memory>(arguments: &mut Arguments, tokens: &Tokens<'_, M>, experts: usize) -> MoerlExpertLedger {
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    let empty: MoerlExpertLedger = unsafe { std::mem::zeroed() };
    MoerlExpertLedger {
        topk_ids: arguments.read("topk_ids", tokens.topk_ids),
        topk_weights: arguments.read_matrix("topk_weights", &tokens.topk_weights),
        advantages: arguments.read("advantages", tokens.advantages),
        loss_mask: arguments.read_optional("loss_mask", tokens.loss_mask),
        rows: tokens.len() as u64,
        topk_weights_stride: tokens.topk_weights.row_stride() as i64,
        topk_weights_element: element_code(tokens.topk_weights.element()),
        experts: experts as u32,
        top_k: tokens.top_k() as u32,
        ..empty
    }
}

/// [`Backend::expert_ledger`](crate::Backend::expert_ledger).
pub(super) fn ledger<E: Executor>(executor: &E, stream: &E::Stream, mut call: Ledger<'_, E::Memory>) -> Result<()> {
    call.validate()?;
    let experts = call.sums.len();
    if call.tokens.is_empty() {
        return Ok(());
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlExpertLedger {
        shift: arguments.read_optional("shift", call.shift),
        sums: arguments.write("sums", &mut call.sums).cast(),
        panels: arguments.write("workspace", &mut call.workspace).cast(),
        nonfinite: arguments.write_optional("nonfinite", &mut call.nonfinite),
        panel_count: (ledger_workspace(call.tokens.len(), experts) / experts) as u64,
        ..token_params(&mut arguments, &call.tokens, experts)
    };
    let blocks = params.panel_count as usize * experts.div_ceil(THREADS);
    let panels = Grid { blocks: blocks as u32, ..grid(THREADS) };
    // SAFETY: validate checked the length, type and alignment of every array, and that the workspace has a record for every panel and expert.
    unsafe {
        executor.launch(stream, kernel("expert_ledger_panels"), panels, &arguments, &params)?;
        executor.launch(stream, kernel("expert_ledger_merge"), grid(experts), &arguments, &params)
    }
}

/// [`Backend::expert_advantages`](crate::Backend::expert_advantages).
pub(super) fn advantages<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut call: Advantages<'_, E::Memory>,
) -> Result<()> {
    call.validate()?;
    if call.tokens.is_empty() {
        return Ok(());
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlExpertLedger {
        shift: arguments.read("mean", call.mean),
        inverse_deviation: arguments.read("inverse_deviation", call.inverse_deviation),
        normalized: arguments.write("normalized", &mut call.normalized),
        clip: call.clip.unwrap_or(f32::INFINITY),
        layers: call.layers as f64,
        ..token_params(&mut arguments, &call.tokens, call.mean.len())
    };
    let grid = grid(call.tokens.len());
    // SAFETY: validate checked the length, type and alignment of every array; the kernel passes over ids outside the experts.
    unsafe { executor.launch(stream, kernel("expert_ledger_advantages"), grid, &arguments, &params) }
}

/// [`Backend::expert_squared_norms`](crate::Backend::expert_squared_norms).
pub(super) fn squared_norms<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut call: SquaredNorms<'_, E::Memory>,
) -> Result<()> {
    call.validate()?;
    let (experts, elements) = (call.gradient.rows(), call.gradient.columns());
    if elements == 0 {
        return Ok(());
    }
    let panels = norm_workspace(experts, elements);
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    let empty: MoerlExpertNorms = unsafe { std::mem::zeroed() };
    let mut arguments = Arguments::new::<E>();
    let params = MoerlExpertNorms {
        gradient: arguments.read_matrix("gradient", &call.gradient),
        squares: arguments.write("squares", &mut call.squares),
        panels: arguments.write("workspace", &mut call.workspace),
        elements: elements as u64,
        panel_count: (panels / experts) as u64,
        gradient_stride: call.gradient.row_stride() as i64,
        experts: experts as u32,
        ..empty
    };
    let name = match call.gradient.element() {
        Element::Bf16 => "expert_norm_panels_bf16",
        Element::F16 => "expert_norm_panels_f16",
        _ => "expert_norm_panels_f32",
    };
    let blocks = Grid { blocks: panels as u32, ..grid(THREADS) };
    // SAFETY: validate checked the length, type and alignment of every array, and that the workspace has a number for every panel and expert.
    unsafe {
        executor.launch(stream, kernel(name), blocks, &arguments, &params)?;
        executor.launch(stream, kernel("expert_norm_merge"), grid(experts), &arguments, &params)
    }
}

/// [`Backend::expert_clip_scale`](crate::Backend::expert_clip_scale).
pub(super) fn clip_scale<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut call: ClipScale<'_, E::Memory>,
) -> Result<()> {
    call.validate()?;
    let experts = call.squares.len();
    // SAFETY: plain old data, for which all zeros (null, 0, 0.0) is a value.
    let empty: MoerlExpertNorms = unsafe { std::mem::zeroed() };
    let mut arguments = Arguments::new::<E>();
    let params = MoerlExpertNorms {
        // Only read by this kernel.
        squares: arguments.read("squares", call.squares).cast_mut(),
        scale: arguments.write("scale", &mut call.scale),
        clip: call.clip,
        experts: experts as u32,
        ..empty
    };
    // SAFETY: validate checked the length and alignment of both arrays.
    unsafe { executor.launch(stream, kernel("expert_norm_scale"), grid(experts), &arguments, &params) }
}
