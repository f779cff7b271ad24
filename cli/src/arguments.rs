//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// CUDA kernels for reinforcement learning of mixture-of-experts models, run and checked on your own data.
#[derive(Debug, Parser)]
#[command(name = "moerl", version, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say which devices, drivers and kernel images there are, and what to do about what is missing.
    Devices,
    /// Write a synthetic step file of any size.
    Generate(Generate),
}

/// Who executes the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// A CUDA device where there is one, else the reference.
    #[default]
    Auto,
    /// The first CUDA device.
    Cuda,
    /// Plain f64 loops on the CPU.
    Reference,
    /// The CUDA kernels, compiled as C++ and run on the CPU thread by thread.
    Emulator,
}

/// `moerl generate`
#[derive(Debug, clap::Args)]
pub struct Generate {
    /// Tokens in all responses together.
    #[arg(long, value_name = "N")]
    pub tokens: usize,
    /// Size of the vocabulary.
    #[arg(long, value_name = "V")]
    pub vocab: usize,
    /// Experts per layer.
    #[arg(long, value_name = "E")]
    pub experts: usize,
    /// Mixture-of-experts layers.
    #[arg(long, value_name = "L")]
    pub layers: usize,
    /// Experts that each token chooses.
    #[arg(long, value_name = "K")]
    pub top_k: usize,
    /// Seed: the same one gives the same file.
    #[arg(long, value_name = "S")]
    pub seed: u64,
    /// Write the tokens' log-probabilities instead of logits.
    #[arg(long)]
    pub no_logits: bool,
    /// The file to write.
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
}
