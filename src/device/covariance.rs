//! Launches `kernels/covariance.cu`.

use crate::abi::*;
use crate::covariance::{Call, Config, Rule};
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::device::workspace::{COVARIANCE_BLOCK, CovarianceWorkspace};
use crate::error::Result;

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlCovariance {}

/// The digits of a key, the highest first.
const DIGITS: [u32; 8] = [56, 48, 40, 32, 24, 16, 8, 0];

const fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "covariance", name }
}

/// [`Backend::covariance`](crate::Backend::covariance).
pub(super) fn covariance<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Call<'_, E::Memory>,
) -> Result<()> {
    call.validate(config)?;
    let tokens = call.logprobs.len();
    if tokens == 0 {
        return Ok(());
    }
    let layout = CovarianceWorkspace::of(tokens);
    executor.set_bytes(stream, layout.aligned(call.workspace.reborrow()).slice(0..layout.sums()), 0)?;
    let (rule, fraction, bounds, probability, seed) = match config.rule {
        Rule::Random { bounds, fraction, seed } => (MOERL_COVARIANCE_RANDOM, fraction, bounds, 0.0, seed),
        Rule::Bernoulli { bounds, probability, seed } => (MOERL_COVARIANCE_BERNOULLI, 0.0, bounds, probability, seed),
        Rule::Largest { fraction } => (MOERL_COVARIANCE_LARGEST, fraction, (0.0, 0.0), 0.0, 0),
    };
    let (mean_advantage, mean_logprob) = config.means.unwrap_or_default();
    let grid = Grid { blocks: tokens.div_ceil(COVARIANCE_BLOCK) as u32, threads: 256, shared_bytes: 0 };
    let digits = if rule == MOERL_COVARIANCE_BERNOULLI { &[][..] } else { &DIGITS };
    let passes = digits.iter().map(|&shift| ("covariance_digit", shift));
    for (name, shift) in [("covariance_means", 0)].into_iter().chain(passes).chain([("covariance_mark", 0)]) {
        let mut arguments = Arguments::new::<E>();
        let workspace = arguments.write("workspace", &mut layout.aligned(call.workspace.reborrow()));
        let part = |offset: usize| workspace.wrapping_add(offset);
        let params = MoerlCovariance {
            logprobs: arguments.read("logprobs", call.logprobs),
            advantages: arguments.read("advantages", call.advantages),
            loss_mask: arguments.read_optional("loss_mask", call.loss_mask),
            excluded: arguments.read_optional("excluded", call.excluded),
            token_ids: arguments.read("token_ids", call.token_ids),
            chosen: arguments.write_optional("chosen", &mut call.chosen),
            keep: arguments.write_optional("keep", &mut call.keep),
            state: part(0).cast(),
            ticket: part(layout.ticket()).cast(),
            histogram: part(layout.histogram()).cast(),
            sums: part(layout.sums()).cast(),
            tokens: tokens as u64,
            seed,
            threshold: (probability * 2f64.powi(32)).ceil() as u64,
            fraction,
            mean_advantage,
            mean_logprob,
            lower: bounds.0,
            upper: bounds.1,
            rule,
            shift,
            has_means: u32::from(config.means.is_some()),
            reserved: 0,
        };
        // SAFETY: validate compared every length with N and the workspace with what it must hold.
        unsafe { executor.launch(stream, kernel(name), grid, &arguments, &params) }?;
    }
    Ok(())
}
