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
    /// Threads of a block: 8 warps that each hold one panel and fetch the next.
    threads: u32,
    /// Blocks per multiprocessor: with 128 registers a thread, two fill it.
    forward_blocks: usize,
    /// Backward needs fewer registers; three blocks keep more stores in flight.
    backward_blocks: usize,
    /// Rows per group at most: their finish in f64 takes one lane each.
    group_rows: usize,
    /// Panel records that a block keeps in shared memory: 40 KB, less than any device grants without asking.
    shared_records: usize,
    /// Below this many rows per multiprocessor, rows are split over blocks.
    split_below: usize,
}

const TUNING: Tuning = Tuning {
    threads: 256,
    forward_blocks: 2,
    backward_blocks: 3,
    group_rows: 32,
    shared_records: 2560,
    split_below: 2,
};

/// The address is rounded up to this: records are read and written whole.
const RECORD: usize = size_of::<Partial>();

const fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "logprob", name }
}

/// As few groups as give every block the same number of them, none longer than `limit` rows.
fn groups(rows: usize, blocks: usize, limit: usize) -> usize {
    let share = rows.div_ceil(blocks);
    let turns = share.div_ceil(limit);
    rows.div_ceil(rows.div_ceil(blocks * turns))
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

/// The part of a workspace that begins at a multiple of a record: room for the records of every panel, then for the labels.
fn split_workspace<'a, M: Memory>(workspace: ViewMut<'a, u8, M>, sizes: &Sizes) -> (ViewMut<'a, u8, M>, usize) {
    let records = sizes.rows * sizes.vocabulary.div_ceil(PANEL) * RECORD;
    let skipped = workspace.address().next_multiple_of(RECORD) - workspace.address();
    let used = records + sizes.rows * size_of::<f32>();
    (workspace.slice(skipped..skipped + used), records)
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
    let panels = sizes.vocabulary.div_ceil(PANEL);
    let multiprocessors = executor.multiprocessors() as usize;
    let split = call.workspace.take().filter(|_| sizes.rows < TUNING.split_below * multiprocessors);
    let is_split = split.is_some();

    // A row of more than one super-panel is walked alone.
    let limit = if panels <= SUPER_PANEL { (TUNING.shared_records / panels).clamp(1, TUNING.group_rows) } else { 1 };
    let most = TUNING.forward_blocks * multiprocessors;
    let groups = if is_split { sizes.rows } else { groups(sizes.rows, most, limit) };
    let rows_per_group = sizes.rows.div_ceil(groups);

    let mut arguments = Arguments::new::<E>();
    let (tokens, tokens_stride, tokens_element) = tokens_of(&mut arguments, &call.tokens);
    let (records, labels) = match split {
        None => (std::ptr::null_mut(), std::ptr::null_mut()),
        Some(workspace) => {
            let (mut used, behind) = split_workspace(workspace, &sizes);
            let start = arguments.write("workspace", &mut used);
            (start.cast(), start.wrapping_add(behind).cast())
        }
    };
    let params = MoerlLogprobForward {
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
        records,
        labels,
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
    };
    let with_squares = call.sum_p2.is_some() || call.sum_sq.is_some();
    let threads = TUNING.threads;
    if is_split {
        let units = sizes.rows * panels;
        // One warp per panel, in blocks small enough that every multiprocessor gets one.
        let warps = units.div_ceil(multiprocessors).clamp(1, threads as usize / 32);
        let blocks = units.div_ceil(warps).min(multiprocessors * TUNING.forward_blocks * 8 / warps) as u32;
        let grid = Grid { blocks, threads: 32 * warps as u32, shared_bytes: 0 };
        let kernel = panels_kernel(call.logits.element());
        // SAFETY: validate checked every length against the sizes; `records` and `labels` have room for all panels and rows, by
        // workspace_bytes.
        unsafe { executor.launch(stream, kernel, grid, &arguments, &params)? };
        let grid = Grid { blocks: groups.min(most) as u32, threads, shared_bytes: 0 };
        // SAFETY: likewise.
        return unsafe { executor.launch(stream, kernel_merge(), grid, &arguments, &params) };
    }
    let shared_bytes = (rows_per_group * panels.min(SUPER_PANEL) * RECORD) as u32;
    let grid = Grid { blocks: groups.min(most) as u32, threads, shared_bytes };
    // SAFETY: validate checked every length against the sizes.
    unsafe { executor.launch(stream, forward_kernel(call.logits.element(), with_squares), grid, &arguments, &params) }
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

fn kernel_merge() -> Kernel {
    kernel("logprob_merge")
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
    let most = TUNING.backward_blocks * executor.multiprocessors() as usize;
    let groups = groups(sizes.rows, most, TUNING.group_rows);
    // Too few rows for all blocks: several share a row.
    let warps = TUNING.threads as usize / 32;
    let shares = (most / groups).clamp(1, panels.div_ceil(warps));

    let in_place = call.is_in_place();
    let mut arguments = Arguments::new::<E>();
    let (tokens, tokens_stride, tokens_element) = tokens_of(&mut arguments, &call.tokens);
    let kernel = backward_kernel(call.gradient.logits().element(), call.gradient.d_logits_element());
    let logits_stride = call.gradient.logits().row_stride() as i64;
    let (logits, d_logits, d_logits_stride) = match &mut call.gradient {
        Gradient::InPlace(both) => {
            let both = arguments.write_matrix("logits", both);
            (both.cast_const(), both, logits_stride)
        }
        Gradient::Into { d_logits, .. } if in_place => {
            let both = arguments.write_matrix("logits", d_logits);
            (both.cast_const(), both, logits_stride)
        }
        Gradient::Into { logits, d_logits } => (
            arguments.read_matrix("logits", logits),
            arguments.write_matrix("d_logits", d_logits),
            d_logits.row_stride() as i64,
        ),
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
        logits_stride,
        d_logits_stride,
        tokens_stride,
        ignore_index: config.ignore_index,
        tokens_element,
        vocabulary: sizes.vocabulary as u32,
        columns: sizes.columns as u32,
        panels: panels as u32,
        shares: shares as u32,
        uniform_temperature: config.temperature,
    };
    let grid = Grid { blocks: (groups * shares) as u32, threads: TUNING.threads, shared_bytes: 0 };
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
