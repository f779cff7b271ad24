//! The command line of `moerl bench`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::case::Scale;
use crate::arguments::BackendName;

/// `moerl bench`
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What to measure; without one, everything.
    #[arg(value_name = "NOUN")]
    pub nouns: Vec<Noun>,
    /// Only what has this text in its line: "replay", "V=151936", "bf16", …
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// The shapes of training, or a few rows of them; without this option, full on a device, else small.
    #[arg(long, value_name = "SIZE")]
    pub shapes: Option<Scale>,
    /// Write the figures to this file too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Instead of measuring, write inputs and results of small calls to this safetensors file, for other implementations to compute again
    /// (benches/peers).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "shapes", "json"])]
    pub export: Option<PathBuf>,
    /// Who executes: time on a device, bytes under emulation.
    #[arg(long, default_value = "auto")]
    pub backend: BackendName,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Noun {
    /// Expert gating and route replay.
    Gate,
    /// Regularisers of a router.
    RouterLoss,
    /// Log-probabilities of chosen tokens.
    Logprob,
    /// Log-probabilities straight from hidden states.
    Linear,
    /// Losses and their gradients.
    Objective,
    /// Importance weights against the rollout's policy.
    Correction,
    /// Advantages of segments and tokens.
    Advantage,
    /// Tokens singled out by covariance.
    Covariance,
    /// Statistics by changed routes.
    RouteChange,
    /// Advantages by expert, and clipping of their gradients.
    ExpertLedger,
    /// Moving averages of parameters.
    Ema,
    /// A whole update at the size of a real model, stage by stage.
    Update,
}

impl Options {
    /// The nouns asked for, each once.
    pub fn nouns(&self) -> impl Iterator<Item = Noun> {
        let all = Noun::value_variants().iter().copied();
        all.filter(|noun| self.nouns.is_empty() || self.nouns.contains(noun))
    }
}
