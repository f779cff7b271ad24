//! Outputs from the records of all shards.

use super::{TUNING, general, groups, tokens_of};
use crate::abi::{MOERL_MAX_SHARDS, MOERL_RESULT_WHOLE, MoerlLogprobCombine, MoerlLogprobForward};
use crate::device::executor::{Arguments, Executor, Grid, Parameters};
use crate::error::Result;
use crate::logprob::{Combine, Config, SUPER_PANEL};
use crate::memory::Memory;

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlLogprobCombine {}

/// Threads of a block, and how many such blocks a multiprocessor holds.
const BLOCK: (u32, usize) = (256, 4);

/// [`Backend::logprob_combine`](crate::Backend::logprob_combine).
pub(in crate::device) fn combine<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Combine<'_, E::Memory>,
) -> Result<()> {
    let vocab_total = call.validate(config)?;
    let rows = call.rows();
    if rows == 0 {
        return Ok(());
    }
    let positions: usize = call.counts.iter().sum();
    let (threads, resident) = BLOCK;
    let most = resident * executor.multiprocessors() as usize;
    // A row of more than one super-panel is merged alone.
    let groups = groups(rows, most, if positions <= SUPER_PANEL { TUNING.group_rows } else { 1 });
    let mut counts = [0; MOERL_MAX_SHARDS as usize];
    for (to, &count) in counts.iter_mut().zip(call.counts) {
        *to = count as u32;
    }
    let mut arguments = Arguments::new::<E>();
    let params = MoerlLogprobCombine {
        outputs: output_params(&mut arguments, config, &mut call, vocab_total, groups),
        records: arguments.read("records", call.records).cast(),
        sum_sq: arguments.read_optional("shard_sum_sq", call.shard_sum_sq),
        other_labels: arguments.read_optional("shard_other_labels", call.shard_other_labels),
        best: arguments.read_optional("shard_best", call.shard_best),
        kept_records: arguments.read_optional("kept_records", call.kept_records).cast(),
        kept_offsets: arguments.read_optional("kept_offsets", call.keep.map(|keep| keep.offsets)),
        kept_logprobs: arguments.write_optional("kept_logprobs", &mut call.kept_logprobs),
        kept_entropy: arguments.write_optional("kept_entropy", &mut call.kept_entropy),
        kept_mass: arguments.write_optional("kept_mass", &mut call.kept_mass),
        kept_saved: arguments.write_optional("kept_saved", &mut call.kept_saved).cast(),
        kept: call.keep.map_or(0, |keep| keep.ids.len() as u64),
        shards: call.counts.len() as u32,
        records_per_row: call.records_per_row as u32,
        positions: positions as u32,
        reserved: 0,
        counts,
    };
    let grid = Grid { blocks: groups.min(most) as u32, threads, shared_bytes: 0 };
    // SAFETY: validate checked every length against the rows, the shards and their records.
    unsafe { executor.launch(stream, general("logprob_combine"), grid, &arguments, &params) }
}

/// The outputs, as those of a forward call without logits whose columns are the whole vocabulary.
fn output_params<M: Memory>(
    arguments: &mut Arguments,
    config: &Config,
    call: &mut Combine<'_, M>,
    vocab_total: usize,
    groups: usize,
) -> MoerlLogprobForward {
    let (tokens, tokens_stride, tokens_element) = tokens_of(arguments, &call.tokens);
    MoerlLogprobForward {
        logits: std::ptr::null(),
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
        other_labels: std::ptr::null_mut(),
        rank: arguments.write_optional("rank", &mut call.rank).cast(),
        argmax: arguments.write_optional("argmax", &mut call.argmax),
        saved: arguments.write_optional("saved", &mut call.saved).cast(),
        sum_sq: arguments.write_optional("sum_sq", &mut call.sum_sq),
        records: std::ptr::null_mut(),
        labels: std::ptr::null_mut(),
        best: std::ptr::null_mut(),
        errors: arguments.write_optional("errors", &mut call.errors),
        rows: call.rows() as u64,
        first_row: 0,
        groups: groups as u64,
        logits_stride: 0,
        tokens_stride,
        ignore_index: config.ignore_index,
        vocab_start: 0,
        vocab_total: vocab_total as i64,
        record_stride: 0,
        logit_fold: config.logit_fold(),
        tokens_element,
        vocabulary: vocab_total as u32,
        ids: call.ids() as u32,
        tag: u32::from(call.tag),
        uniform_temperature: config.temperature,
        softcap: config.softcap.unwrap_or(0.0),
        cap_scale: config.cap_scale(),
        result: MOERL_RESULT_WHOLE,
    }
}
