//! Keep-sets, forward.

use super::{TUNING, by_element, general, groups, tokens_of};
use crate::abi::MoerlLogprobKeep;
use crate::device::executor::{Arguments, Executor, Grid, Parameters};
use crate::element::Element;
use crate::error::Result;
use crate::logprob::{Config, Forward, Sizes};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlLogprobKeep {}

/// Threads of a block, and how many such blocks a multiprocessor holds: a warp has the 64 columns of each of its lanes, and ids on their way, in up to
/// 168 registers.
const BLOCK: (u32, usize) = (192, 2);

/// The kept outputs of a call; where `saved` is there, it has been written.
pub(super) fn forward<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    sizes: &Sizes,
    call: &mut Forward<'_, E::Memory>,
) -> Result<()> {
    let (threads, resident) = BLOCK;
    let most = resident * executor.multiprocessors() as usize;
    let groups = groups(sizes.rows, most, TUNING.group_rows);
    let mut arguments = Arguments::new::<E>();
    let (tokens, tokens_stride, tokens_element) = tokens_of(&mut arguments, &call.tokens);
    let params = MoerlLogprobKeep {
        logits: arguments.read_matrix("logits", &call.logits),
        tokens,
        temperature: arguments.read_optional("temperature", call.temperature),
        loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
        kept_ids: arguments.read_optional("kept_ids", call.keep.map(|keep| keep.ids)),
        kept_offsets: arguments.read_optional("kept_offsets", call.keep.map(|keep| keep.offsets)),
        full: arguments.read_optional("saved", call.saved.as_ref().map(|saved| saved.as_view())).cast(),
        kept_logprobs: arguments.write_optional("kept_logprobs", &mut call.kept_logprobs),
        kept_entropy: arguments.write_optional("kept_entropy", &mut call.kept_entropy),
        kept_mass: arguments.write_optional("kept_mass", &mut call.kept_mass),
        kept_saved: arguments.write_optional("kept_saved", &mut call.kept_saved).cast(),
        label_added: arguments.write_optional("label_added", &mut call.label_added),
        errors: arguments.write_optional("errors", &mut call.errors),
        rows: sizes.rows as u64,
        first_row: sizes.first_row as u64,
        call_rows: sizes.call_rows as u64,
        groups: groups as u64,
        kept: call.keep.map_or(0, |keep| keep.ids.len() as u64),
        logits_stride: call.logits.row_stride() as i64,
        tokens_stride,
        ignore_index: config.ignore_index,
        vocab_start: sizes.vocab_start as i64,
        vocab_total: sizes.vocab_total as i64,
        logit_fold: config.logit_fold(),
        tokens_element,
        vocabulary: sizes.vocabulary as u32,
        ids: sizes.ids as u32,
        tag: u32::from(call.tag),
        uniform_temperature: config.temperature,
        softcap: config.softcap.unwrap_or(0.0),
        cap_scale: config.cap_scale(),
        strict_keep: u32::from(config.strict_keep),
        is_shard: u32::from(sizes.vocab_total != sizes.vocabulary),
        reserved: 0,
    };
    let kernel = general(by_element!(call.logits.element(), "logprob_keep"));
    let grid = Grid { blocks: groups.min(most) as u32, threads, shared_bytes: 0 };
    // SAFETY: validate checked every length against the sizes; the kernel checks the offsets against the number of ids.
    unsafe { executor.launch(stream, kernel, grid, &arguments, &params) }
}
