//! Launches `kernels/logprob.cu`, and `kernels/logprob_general.cu` for what it does not know.

mod combine;
mod keep;

use std::ffi::c_void;

pub(super) use combine::combine;

use crate::abi::{
    MOERL_I32, MOERL_I64, MOERL_RESULT_PANELS, MOERL_RESULT_ROWS, MOERL_RESULT_WHOLE, MoerlLogprobBackward,
    MoerlLogprobForward, MoerlPartial,
};
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::element::Element;
use crate::error::Result;
use crate::logprob::{Backward, Config, Forward, Gradient, PANEL, Partial, PartialCall, SUPER_PANEL, Sizes};
use crate::memory::{Matrix, Memory, View, ViewMut};

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
    /// and 240 for f32,
    forward_f32: (u32, usize),
    /// or 200 for 16-bit logits in the general kernels, which leaves room for 8 warps.
    general: (u32, usize),
    /// Likewise for backward, which holds 128 bytes a thread in 80 registers,
    backward: (u32, usize),
    /// or in up to 128 in the general kernels.
    backward_general: (u32, usize),
    /// Rows per group at most: one warp finishes a group, a lane each.
    group_rows: usize,
    /// Panel records that a block keeps in shared memory: 40 KB, so that with the kernel's own 6 KB it stays under the 48 KB that any
    /// device grants without asking.
    shared_records: usize,
    /// With fewer rows per multiprocessor than this, and a workspace, blocks share rows.
    split_below: usize,
    /// Panels that a multiprocessor reduces in the time that a second launch takes.
    split_panels: usize,
}

const TUNING: Tuning = Tuning {
    forward: (192, 2),
    forward_f32: (256, 1),
    general: (128, 2),
    backward: (256, 3),
    backward_general: (256, 2),
    group_rows: 32,
    shared_records: 2560,
    split_below: 2,
    split_panels: 24,
};

impl Tuning {
    /// Whether blocks are to share rows: with few of them, and where blocks that walk a last row leave the others idle for longer than a second
    /// launch takes and the records' way through memory. A row is walked twice as fast when most blocks are idle.
    fn shares_rows(&self, sizes: &Sizes, multiprocessors: usize, resident: usize) -> bool {
        let (rows, panels) = (sizes.rows, sizes.vocabulary.div_ceil(PANEL));
        let blocks = resident * multiprocessors;
        let idle = match rows % blocks {
            0 => 0,
            last => (blocks / 2).saturating_sub(last) * panels,
        };
        rows < self.split_below * multiprocessors || idle > self.split_panels * multiprocessors + rows * panels / 128
    }

    fn forward_of(&self, logits: Element, is_general: bool) -> (u32, usize) {
        match (logits, is_general) {
            (Element::F32, _) => self.forward_f32,
            (_, true) => self.general,
            (_, false) => self.forward,
        }
    }
}

const WARP: usize = 32;
/// Bytes of a panel's record; in global memory it is read and written whole.
const RECORD: usize = size_of::<Partial>();

const fn plain(name: &'static str) -> Kernel {
    Kernel { image: "logprob", name }
}
const fn general(name: &'static str) -> Kernel {
    Kernel { image: "logprob_general", name }
}

/// The kernel's name for logits of a type.
macro_rules! by_element {
    ($logits:expr, $name:literal) => {
        match $logits {
            Element::Bf16 => concat!($name, "_bf16"),
            Element::F16 => concat!($name, "_f16"),
            _ => concat!($name, "_f32"),
        }
    };
}
use by_element;

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
    call: Forward<'_, E::Memory>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    forward_of(executor, stream, config, &sizes, call)
}

/// A validated call, or a piece of one.
pub(super) fn forward_of<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    mut call: Forward<'_, E::Memory>,
) -> Result<()> {
    if sizes.rows == 0 {
        return Ok(());
    }
    if call.asks_for_rows() {
        rows(executor, stream, config, sizes, &mut call, &mut Shard::whole())?;
    }
    if call.asks_for_kept() { keep::forward(executor, stream, config, sizes, &mut call) } else { Ok(()) }
}

/// [`Backend::logprob_partial`](crate::Backend::logprob_partial).
pub(super) fn partial<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    call: PartialCall<'_, E::Memory>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    partial_of(executor, stream, config, &sizes, call)
}

/// As [`forward_of`].
pub(super) fn partial_of<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    call: PartialCall<'_, E::Memory>,
) -> Result<()> {
    if sizes.rows == 0 {
        return Ok(());
    }
    let mut shard = Shard {
        result: if call.panel_records { MOERL_RESULT_PANELS } else { MOERL_RESULT_ROWS },
        records_per_row: call.records_per_row,
        label_logits: call.label_logits,
        best: call.best,
    };
    let mut forward = Forward {
        tokens: call.tokens,
        temperature: call.temperature,
        loss_mask: call.loss_mask,
        keep: call.keep,
        rank: call.rank,
        saved: Some(call.records),
        sum_sq: call.sum_sq,
        other_labels: call.other_labels,
        kept_saved: call.kept_records,
        label_added: call.label_added,
        workspace: call.workspace,
        ..Forward::new(call.logits)
    };
    rows(executor, stream, config, sizes, &mut forward, &mut shard)?;
    if forward.kept_saved.is_none() {
        return Ok(());
    }
    // An empty set's record is that of the shard's columns, which is there only where records are of rows.
    if call.panel_records {
        forward.saved = None;
    }
    keep::forward(executor, stream, config, sizes, &mut forward)
}

/// What a shard's call has besides those of a whole vocabulary.
struct Shard<'a, M> {
    /// `MoerlLogprobResult`.
    result: u32,
    records_per_row: usize,
    label_logits: Option<View<'a, f32, M>>,
    best: Option<ViewMut<'a, u64, M>>,
}

impl<M> Shard<'_, M> {
    fn whole() -> Self {
        Shard { result: MOERL_RESULT_WHOLE, records_per_row: 1, label_logits: None, best: None }
    }
}

/// True if the call asks for what the plain kernels do not know.
fn is_general<M: Memory>(config: &Config, sizes: &Sizes, call: &Forward<'_, M>, shard: &Shard<'_, M>) -> bool {
    shard.result != MOERL_RESULT_WHOLE
        || sizes.ids > 1
        || config.softcap.is_some()
        || call.rank.is_some()
        || call.argmax.is_some()
}

/// Everything but the kept outputs.
fn rows<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    call: &mut Forward<'_, E::Memory>,
    shard: &mut Shard<'_, E::Memory>,
) -> Result<()> {
    let (_, resident) = TUNING.forward_of(call.logits.element(), is_general(config, sizes, call, shard));
    let few = TUNING.shares_rows(sizes, executor.multiprocessors() as usize, resident);
    match call.workspace.take() {
        Some(workspace) if few => by_panels(executor, stream, config, sizes, call, shard, Some(workspace)),
        _ if shard.result == MOERL_RESULT_PANELS => by_panels(executor, stream, config, sizes, call, shard, None),
        _ => by_rows(executor, stream, config, sizes, call, shard),
    }
}

/// Each block walks whole rows.
fn by_rows<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    call: &mut Forward<'_, E::Memory>,
    shard: &mut Shard<'_, E::Memory>,
) -> Result<()> {
    let panels = sizes.vocabulary.div_ceil(PANEL);
    // A row of more than one super-panel is walked alone.
    let limit = if panels <= SUPER_PANEL { (TUNING.shared_records / panels).clamp(1, TUNING.group_rows) } else { 1 };
    let is_general = is_general(config, sizes, call, shard);
    let (threads, resident) = TUNING.forward_of(call.logits.element(), is_general);
    let most = resident * executor.multiprocessors() as usize;
    let groups = groups(sizes.rows, most, limit);
    let kernel = if is_general {
        general(by_element!(call.logits.element(), "logprob_forward_general"))
    } else if call.sum_p2.is_some() || call.sum_sq.is_some() {
        plain(by_element!(call.logits.element(), "logprob_forward_squares"))
    } else {
        plain(by_element!(call.logits.element(), "logprob_forward"))
    };
    let grid = Grid {
        blocks: groups.min(most) as u32,
        threads,
        shared_bytes: (sizes.rows.div_ceil(groups) * panels.min(SUPER_PANEL) * RECORD) as u32,
    };
    let mut arguments = Arguments::new::<E>();
    let mut params = forward_params(&mut arguments, config, sizes, call, groups);
    shard_params(&mut arguments, shard, &mut params);
    // SAFETY: validate checked every length against the sizes; the shared memory holds a super-panel of every row of a group.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}

/// The panels of all rows are dealt to all blocks. Their records are the result, or a second kernel merges what they leave in the workspace.
fn by_panels<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    call: &mut Forward<'_, E::Memory>,
    shard: &mut Shard<'_, E::Memory>,
    workspace: Option<ViewMut<'_, u8, E::Memory>>,
) -> Result<()> {
    let multiprocessors = executor.multiprocessors() as usize;
    let panels_per_row = sizes.vocabulary.div_ceil(PANEL);
    let panels = sizes.rows * panels_per_row;
    // A warp per panel, in blocks so small that every multiprocessor gets one; no more warps than run at once.
    let is_general = is_general(config, sizes, call, shard);
    let (threads, resident) = TUNING.forward_of(call.logits.element(), is_general);
    let warps = panels.div_ceil(multiprocessors).clamp(1, threads as usize / WARP);
    let most = threads as usize / WARP * resident * multiprocessors;
    let grid =
        Grid { blocks: panels.min(most).div_ceil(warps) as u32, threads: (warps * WARP) as u32, shared_bytes: 0 };
    let (kernel, merge) = if is_general {
        (general(by_element!(call.logits.element(), "logprob_panels_general")), general("logprob_merge_general"))
    } else {
        (plain(by_element!(call.logits.element(), "logprob_panels")), plain("logprob_merge"))
    };

    // What blocks add to or compare with together.
    if let Some(rank) = &mut call.rank {
        executor.set_bytes(stream, rank.reborrow(), 0)?;
    }
    if let Some(best) = &mut shard.best {
        executor.set_bytes(stream, best.reborrow(), 0xff)?;
    }
    let mut arguments = Arguments::new::<E>();
    let mut params;
    if shard.result == MOERL_RESULT_PANELS {
        let mut records = call.saved.take();
        params = forward_params(&mut arguments, config, sizes, call, sizes.rows);
        params.records = arguments.write_optional("records", &mut records).cast();
        params.record_stride = shard.records_per_row as u64;
        call.saved = records;
        shard_params(&mut arguments, shard, &mut params);
    } else {
        // Room for a record per panel, from a multiple of a record's size on, then for the best column and a label per row.
        let mut workspace = workspace.expect("rows are shared only with a workspace");
        let skipped = workspace.address().next_multiple_of(RECORD) - workspace.address();
        let (best, labels) = (panels * RECORD, panels * RECORD + sizes.rows * size_of::<u64>());
        let used = labels + sizes.rows * size_of::<f32>();
        if call.argmax.is_some() && shard.best.is_none() {
            executor.set_bytes(stream, workspace.reborrow().slice(skipped + best..skipped + labels), 0xff)?;
        }
        params = forward_params(&mut arguments, config, sizes, call, sizes.rows);
        let start = arguments.write("workspace", &mut workspace.slice(skipped..skipped + used));
        params.records = start.cast();
        params.record_stride = panels_per_row as u64;
        params.labels = start.wrapping_add(labels).cast();
        if call.argmax.is_some() {
            params.best = start.wrapping_add(best).cast();
        }
        shard_params(&mut arguments, shard, &mut params);
    }
    // SAFETY: validate checked every length against the sizes, that of the workspace by workspace_bytes.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params)? };
    if shard.result == MOERL_RESULT_PANELS {
        if call.other_labels.is_none() && shard.best.is_none() {
            return Ok(());
        }
        params.sum_sq = std::ptr::null_mut(); // the panels' are the result
    }
    // A block per row, as far as a grid goes: blocks take further rows in turn.
    let grid = Grid { blocks: sizes.rows.min(i32::MAX as usize) as u32, threads, shared_bytes: 0 };
    // SAFETY: likewise.
    unsafe { executor.launch(stream, merge, grid, &arguments, &params) }
}

/// Those of a shard's call, where it has them.
fn shard_params<M: Memory>(arguments: &mut Arguments, shard: &mut Shard<'_, M>, params: &mut MoerlLogprobForward) {
    params.result = shard.result;
    params.label_logits = arguments.read_optional("label_logits", shard.label_logits);
    if shard.best.is_some() {
        params.best = arguments.write_optional("best", &mut shard.best);
    }
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
        label_logits: std::ptr::null(),
        logprobs: arguments.write_optional("logprobs", &mut call.logprobs),
        entropy: arguments.write_optional("entropy", &mut call.entropy),
        max: arguments.write_optional("max", &mut call.max),
        log_sum: arguments.write_optional("log_sum", &mut call.log_sum),
        lse: arguments.write_optional("lse", &mut call.lse),
        sum_p2: arguments.write_optional("sum_p2", &mut call.sum_p2),
        other_labels: arguments.write_optional("other_labels", &mut call.other_labels),
        rank: arguments.write_optional("rank", &mut call.rank).cast(),
        argmax: arguments.write_optional("argmax", &mut call.argmax),
        saved: arguments.write_optional("saved", &mut call.saved).cast(),
        sum_sq: arguments.write_optional("sum_sq", &mut call.sum_sq),
        records: std::ptr::null_mut(),
        labels: std::ptr::null_mut(),
        best: std::ptr::null_mut(),
        errors: arguments.write_optional("errors", &mut call.errors),
        rows: sizes.rows as u64,
        first_row: sizes.first_row as u64,
        groups: groups as u64,
        logits_stride: call.logits.row_stride() as i64,
        tokens_stride,
        ignore_index: config.ignore_index,
        vocab_start: sizes.vocab_start as i64,
        vocab_total: sizes.vocab_total as i64,
        record_stride: 0,
        logit_fold: config.logit_fold(),
        tokens_element,
        vocabulary: sizes.vocabulary as u32,
        ids: sizes.ids as u32,
        tag: u32::from(call.tag),
        uniform_temperature: config.temperature,
        softcap: config.softcap.unwrap_or(0.0),
        cap_scale: config.cap_scale(),
        result: MOERL_RESULT_WHOLE,
    }
}

/// [`Backend::logprob_backward`](crate::Backend::logprob_backward).
pub(super) fn backward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    call: Backward<'_, E::Memory>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    backward_of(executor, stream, config, &sizes, call)
}

/// As [`forward_of`].
pub(super) fn backward_of<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    mut call: Backward<'_, E::Memory>,
) -> Result<()> {
    if sizes.rows == 0 {
        return Ok(());
    }
    let is_general =
        sizes.ids > 1 || config.softcap.is_some() || sizes.vocab_total != sizes.vocabulary || call.has_kept_upstream();
    let d_logits_element = call.gradient.d_logits_element();
    let kernel = backward_kernel(call.gradient.logits().element(), d_logits_element, is_general);
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
    let skipped = skipped_at_most(d_logits as usize, d_logits_stride, d_logits_element);
    let panels = (sizes.columns + skipped).div_ceil(PANEL);
    let division = Division::of(sizes.rows, panels, executor.multiprocessors() as usize, is_general);
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
        kept_ids: arguments.read_optional("kept_ids", call.keep.map(|keep| keep.ids)),
        kept_offsets: arguments.read_optional("kept_offsets", call.keep.map(|keep| keep.offsets)),
        kept_saved: arguments.read_optional("kept_saved", call.kept_saved).cast(),
        d_kept_logprobs: arguments.read_optional("d_kept_logprobs", call.d_kept_logprobs),
        d_kept_entropy: arguments.read_optional("d_kept_entropy", call.d_kept_entropy),
        rows: sizes.rows as u64,
        first_row: sizes.first_row as u64,
        call_rows: sizes.call_rows as u64,
        kept: call.keep.map_or(0, |keep| keep.ids.len() as u64),
        logits_stride: logits_stride as i64,
        d_logits_stride: d_logits_stride as i64,
        tokens_stride,
        ignore_index: config.ignore_index,
        vocab_start: sizes.vocab_start as i64,
        vocab_total: sizes.vocab_total as i64,
        logit_fold: config.logit_fold(),
        tokens_element,
        vocabulary: sizes.vocabulary as u32,
        ids: sizes.ids as u32,
        columns: sizes.columns as u32,
        panels: panels as u32,
        uniform_temperature: config.temperature,
        softcap: config.softcap.unwrap_or(0.0),
        cap_scale: config.cap_scale(),
        logit_scale: config.logit_scale,
        strict_keep: u32::from(config.strict_keep),
        step: division.step as u32,
        reserved: 0,
    };
    // SAFETY: validate checked every length against the sizes; `logits` and `d_logits` are both [rows, columns].
    unsafe { executor.launch(stream, kernel, division.grid, &arguments, &params) }
}

/// Columns at most by which a row of gradients begins behind a boundary of the caches' lines.
fn skipped_at_most(address: usize, row_stride: usize, element: Element) -> usize {
    const LINE: usize = 128;
    let alike = (address | (row_stride * element.size()) | LINE).trailing_zeros();
    (LINE - (1 << alike)) / element.size()
}

/// How the gradient's panels are dealt.
struct Division {
    grid: Grid,
    /// Among so many the panels of all rows go in turn: warps, a panel each; of the general kernels blocks, a panel for each of their warps.
    step: usize,
}

impl Division {
    fn of(rows: usize, panels: usize, multiprocessors: usize, is_general: bool) -> Division {
        let (threads, resident) = if is_general { TUNING.backward_general } else { TUNING.backward };
        // In blocks so small that every multiprocessor gets one.
        let warps = (rows * panels).div_ceil(multiprocessors).clamp(1, threads as usize / WARP);
        let (pieces, per_block) = if is_general { (panels.div_ceil(warps), 1) } else { (panels, warps) };
        let blocks = (rows * pieces).div_ceil(per_block).min(resident * multiprocessors);
        // No divisor in common with the pieces of a row, so that all meet the short last ones equally often.
        let mut step = blocks * per_block;
        while step < rows * pieces && greatest_common_divisor(step, pieces) > 1 {
            step -= 1;
        }
        let blocks = step.div_ceil(per_block);
        Division { grid: Grid { blocks: blocks as u32, threads: (warps * WARP) as u32, shared_bytes: 0 }, step }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn backward_kernel(logits: Element, d_logits: Element, is_general: bool) -> Kernel {
    match (is_general, logits, d_logits) {
        (false, Element::Bf16, Element::F32) => plain("logprob_backward_bf16_f32"),
        (false, Element::F16, Element::F32) => plain("logprob_backward_f16_f32"),
        (false, Element::F32, Element::Bf16) => plain("logprob_backward_f32_bf16"),
        (false, ..) => plain(by_element!(logits, "logprob_backward")),
        (true, Element::Bf16, Element::F32) => general("logprob_backward_general_bf16_f32"),
        (true, Element::F16, Element::F32) => general("logprob_backward_general_f16_f32"),
        (true, Element::F32, Element::Bf16) => general("logprob_backward_general_f32_bf16"),
        (true, ..) => general(by_element!(logits, "logprob_backward_general")),
    }
}
