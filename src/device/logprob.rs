//! Launches `kernels/logprob.cu`.

use std::ffi::c_void;

use crate::abi::{MOERL_I32, MOERL_I64, MoerlLogprobBackward, MoerlLogprobForward, MoerlPartial};
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::element::Element;
use crate::error::Result;
use crate::logprob::{Backward, Config, Forward, Gradient, PANEL, Partial, SUPER_PANEL, Sizes};
use crate::memory::{Matrix, Memory, ViewMut};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlLogprobForward {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlLogprobBackward {}

const _: () = assert!(size_of::<Partial>() == size_of::<MoerlPartial>());

/// How rows are dealt to blocks. Nothing here changes a bit of any result.
struct Tuning {
    /// Threads of a forward block, and how many such blocks a multiprocessor holds. Each warp holds one panel and fetches the next one, which
    /// takes up to 160 registers a thread for 16-bit logits,
    forward: (u32, usize),
    /// and 240 for f32.
    forward_f32: (u32, usize),
    /// Likewise for backward, which holds 128 bytes a thread in 80 registers.
    backward: (u32, usize),
    /// Rows per group at most: one warp finishes a group, a lane each.
    group_rows: usize,
    /// Panel records that a block keeps in shared memory: 40 KB, so that with the kernel's own 6 KB it stays under the 48 KB that any
    /// device grants without asking.
    shared_records: usize,
    /// With fewer rows per multiprocessor than this, and a workspace, blocks share rows.
    split_below: usize,
}

const TUNING: Tuning = Tuning {
    forward: (192, 2),
    forward_f32: (256, 1),
    backward: (256, 3),
    group_rows: 32,
    shared_records: 2560,
    split_below: 2,
};

impl Tuning {
    fn forward_of(&self, logits: Element) -> (u32, usize) {
        if logits == Element::F32 { self.forward_f32 } else { self.forward }
    }
}

const WARP: usize = 32;
/// Bytes of a panel's record; in global memory it is read and written whole.
const RECORD: usize = size_of::<Partial>();

const fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "logprob", name }
}

/// As few groups as give every block the same number of them with no more than `limit` rows in any. Their sizes differ by at most one row.
fn groups(rows: usize, blocks: usize, limit: usize) -> usize {
    let turns = rows.div_ceil(blocks).div_ceil(limit);
    rows.min(blocks * turns)
}

fn tokens_of<M: Memory>(arguments: &mut Arguments, tokens: &Option<Matrix<'_, M>>) -> (*const c_void, i64, u32) {
    match tokens {
        None => (std::ptr::null(), 0, MOERL_I32),
        Some(tokens) => {
            let element = if tokens.element() == Element::I64 { MOERL_I64 } else { MOERL_I32 };
            (arguments.read_matrix("tokens", tokens), tokens.row_stride() as i64, element)
        }
    }
}

/// [`Backend::logprob_forward`](crate::Backend::logprob_forward).
pub(super) fn forward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Forward<'_, E::Memory>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let few = sizes.rows < TUNING.split_below * executor.multiprocessors() as usize;
    match call.workspace.take() {
        Some(workspace) if few => forward_sharing_rows(executor, stream, config, &sizes, call, workspace),
        _ => forward_by_rows(executor, stream, config, &sizes, call),
    }
}

/// Each block walks whole rows.
fn forward_by_rows<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    mut call: Forward<'_, E::Memory>,
) -> Result<()> {
    let panels = sizes.vocabulary.div_ceil(PANEL);
    // A row of more than one super-panel is walked alone.
    let limit = if panels <= SUPER_PANEL { (TUNING.shared_records / panels).clamp(1, TUNING.group_rows) } else { 1 };
    let squares = call.sum_p2.is_some() || call.sum_sq.is_some();
    let (threads, resident) = TUNING.forward_of(call.logits.element());
    let most = resident * executor.multiprocessors() as usize;
    let groups = groups(sizes.rows, most, limit);
    let kernel = forward_kernel(call.logits.element(), squares);
    let grid = Grid {
        blocks: groups.min(most) as u32,
        threads,
        shared_bytes: (sizes.rows.div_ceil(groups) * panels.min(SUPER_PANEL) * RECORD) as u32,
    };
    let mut arguments = Arguments::new::<E>();
    let params = forward_params(&mut arguments, config, sizes, &mut call, groups);
    // SAFETY: validate checked every length against the sizes; the shared memory holds a super-panel of every row of a group.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}

/// The panels of all rows are dealt to all blocks; a second kernel merges what they leave in the workspace.
fn forward_sharing_rows<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    mut call: Forward<'_, E::Memory>,
    workspace: ViewMut<'_, u8, E::Memory>,
) -> Result<()> {
    let multiprocessors = executor.multiprocessors() as usize;
    let panels = sizes.rows * sizes.vocabulary.div_ceil(PANEL);
    // A warp per panel, in blocks so small that every multiprocessor gets one; no more warps than run at once.
    let (threads, resident) = TUNING.forward_of(call.logits.element());
    let warps = panels.div_ceil(multiprocessors).clamp(1, threads as usize / WARP);
    let most = threads as usize / WARP * resident * multiprocessors;
    let grid =
        Grid { blocks: panels.min(most).div_ceil(warps) as u32, threads: (warps * WARP) as u32, shared_bytes: 0 };
    let kernel = panels_kernel(call.logits.element());

    let mut arguments = Arguments::new::<E>();
    let mut params = forward_params(&mut arguments, config, sizes, &mut call, sizes.rows);
    // Room for a record per panel, from a multiple of a record's size on, then for a label per row.
    let skipped = workspace.address().next_multiple_of(RECORD) - workspace.address();
    let used = panels * RECORD + sizes.rows * size_of::<f32>();
    let start = arguments.write("workspace", &mut workspace.slice(skipped..skipped + used));
    params.records = start.cast();
    params.labels = start.wrapping_add(panels * RECORD).cast();
    // SAFETY: validate checked every length against the sizes, that of the workspace by workspace_bytes.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params)? };

    let grid = Grid { blocks: sizes.rows as u32, threads, shared_bytes: 0 };
    // SAFETY: likewise.
    unsafe { executor.launch(stream, self::kernel("logprob_merge"), grid, &arguments, &params) }
}

fn forward_params<M: Memory>(
    arguments: &mut Arguments,
    config: &Config,
    sizes: &Sizes,
    call: &mut Forward<'_, M>,
    groups: usize,
) -> MoerlLogprobForward {
    let (tokens, tokens_stride, tokens_element) = tokens_of(arguments, &call.tokens);
    MoerlLogprobForward {
        logits: arguments.read_matrix("logits", &call.logits),
        tokens,
        temperature: arguments.read_optional("temperature", call.temperature),
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        logprobs: arguments.write_optional("logprobs", &mut call.logprobs),
        entropy: arguments.write_optional("entropy", &mut call.entropy),
        max: arguments.write_optional("max", &mut call.max),
        log_sum: arguments.write_optional("log_sum", &mut call.log_sum),
        lse: arguments.write_optional("lse", &mut call.lse),
        sum_p2: arguments.write_optional("sum_p2", &mut call.sum_p2),
        saved: arguments.write_optional("saved", &mut call.saved).cast(),
        sum_sq: arguments.write_optional("sum_sq", &mut call.sum_sq),
        records: std::ptr::null_mut(),
        labels: std::ptr::null_mut(),
        errors: arguments.write_optional("errors", &mut call.errors),
        rows: sizes.rows as u64,
        groups: groups as u64,
        logits_stride: call.logits.row_stride() as i64,
        tokens_stride,
        ignore_index: config.ignore_index,
        tokens_element,
        vocabulary: sizes.vocabulary as u32,
        tag: u32::from(call.tag),
        uniform_temperature: config.temperature,
    }
}

fn forward_kernel(logits: Element, with_squares: bool) -> Kernel {
    kernel(match (logits, with_squares) {
        (Element::Bf16, false) => "logprob_forward_bf16",
        (Element::Bf16, true) => "logprob_forward_squares_bf16",
        (Element::F16, false) => "logprob_forward_f16",
        (Element::F16, true) => "logprob_forward_squares_f16",
        (_, false) => "logprob_forward_f32",
        (_, true) => "logprob_forward_squares_f32",
    })
}

fn panels_kernel(logits: Element) -> Kernel {
    kernel(match logits {
        Element::Bf16 => "logprob_panels_bf16",
        Element::F16 => "logprob_panels_f16",
        _ => "logprob_panels_f32",
    })
}

/// [`Backend::logprob_backward`](crate::Backend::logprob_backward).
pub(super) fn backward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Backward<'_, E::Memory>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let panels = sizes.columns.div_ceil(PANEL);
    let (threads, resident) = TUNING.backward;
    let most = resident * executor.multiprocessors() as usize;
    let groups = groups(sizes.rows, most, TUNING.group_rows);
    // Too few rows for all blocks: several share a row.
    let warps = threads as usize / WARP;
    let shares = (most / groups).clamp(1, panels.div_ceil(warps));

    let kernel = backward_kernel(call.gradient.logits().element(), call.gradient.d_logits_element());
    let mut arguments = Arguments::new::<E>();
    let (tokens, tokens_stride, tokens_element) = tokens_of(&mut arguments, &call.tokens);
    let in_place = call.is_in_place();
    let logits_stride = call.gradient.logits().row_stride();
    let (logits, d_logits, d_logits_stride) = match &mut call.gradient {
        Gradient::Into { logits, d_logits } if !in_place => (
            arguments.read_matrix("logits", logits),
            arguments.write_matrix("d_logits", d_logits),
            d_logits.row_stride(),
        ),
        Gradient::InPlace(both) | Gradient::Into { d_logits: both, .. } => {
            let both = arguments.write_matrix("logits", both);
            (both.cast_const(), both, logits_stride)
        }
    };
    let params = MoerlLogprobBackward {
        logits,
        d_logits,
        tokens,
        temperature: arguments.read_optional("temperature", call.temperature),
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        saved: arguments.read("saved", call.saved).cast(),
        d_logprobs: arguments.read_optional("d_logprobs", call.d_logprobs),
        d_entropy: arguments.read_optional("d_entropy", call.d_entropy),
        d_lse: arguments.read_optional("d_lse", call.d_lse),
        rows: sizes.rows as u64,
        groups: groups as u64,
        logits_stride: logits_stride as i64,
        d_logits_stride: d_logits_stride as i64,
        tokens_stride,
        ignore_index: config.ignore_index,
        tokens_element,
        vocabulary: sizes.vocabulary as u32,
        columns: sizes.columns as u32,
        panels: panels as u32,
        shares: shares as u32,
        uniform_temperature: config.temperature,
    };
    let grid = Grid { blocks: (groups * shares) as u32, threads, shared_bytes: 0 };
    // SAFETY: validate checked every length against the sizes; `logits` and `d_logits` are both [rows, columns].
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}

fn backward_kernel(logits: Element, d_logits: Element) -> Kernel {
    kernel(match (logits, d_logits) {
        (Element::Bf16, Element::F32) => "logprob_backward_bf16_f32",
        (Element::Bf16, _) => "logprob_backward_bf16",
        (Element::F16, Element::F32) => "logprob_backward_f16_f32",
        (Element::F16, _) => "logprob_backward_f16",
        _ => "logprob_backward_f32",
    })
}
