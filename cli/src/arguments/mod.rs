//! The command line.

mod objective;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

pub use objective::{
    AdvantageName, AggregationName, AnchorName, KlName, LevelName, NonfiniteName, Objective, ObjectiveName, PresetName,
    Switch, text_of,
};

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
    /// Run one policy update from a step file and print what came of it.
    Step(Box<Step>),
    /// Look for the mismatch between rollout and trainer in step files, and for recorded data that is not what it should be.
    Audit(Audit),
    /// Run golden vectors through a backend and say where it differs.
    Check(Check),
    /// Say which devices, drivers and kernel images there are, and what to do about what is missing.
    Devices,
    /// Write a synthetic step file of any size.
    Generate(Generate),
    /// Measure every kernel: time against what memory gives on a device, bytes moved under emulation.
    Bench(crate::bench::Options),
    /// Look into recorded experts.
    Routes(Routes),
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
    /// Lengths of responses: uniform:LO,HI, fixed:N, or lognormal:MEAN,SIGMA of the logarithm (at most 16,384 tokens).
    #[arg(long, value_name = "DISTRIBUTION", default_value = "lognormal:6,0.8")]
    pub lengths: Lengths,
    /// How far the current policy has drifted from the old one, in updates.
    #[arg(long, value_name = "UPDATES", default_value_t = 1.0, help_heading = "Policies")]
    pub staleness: f64,
    /// How noisy the rollout engine's kernels are, in multiples of a sound engine's.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, help_heading = "Policies")]
    pub rollout_noise: f64,
    /// The precision of the rollout engine's logits.
    #[arg(long, value_name = "TYPE", default_value = "bf16", help_heading = "Policies")]
    pub rollout_precision: Precision,
    /// Round the rollout's log-probabilities to bf16, as an engine does that forgets to widen them.
    #[arg(long, help_heading = "Policies")]
    pub bf16_logprobs: bool,
    /// The share of a rollout's expert sets in which one expert is another, beside what noise changes.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = "Policies")]
    pub changed_routes: f64,
    /// Write the tokens' log-probabilities instead of logits.
    #[arg(long)]
    pub no_logits: bool,
    /// The file to write.
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
}

/// How long responses are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Every length between the two, as likely as any other.
    Uniform(usize, usize),
    /// This one.
    Fixed(usize),
    /// Mean and deviation of the logarithm.
    LogNormal(f64, f64),
}

impl std::str::FromStr for Lengths {
    type Err = String;
    fn from_str(text: &str) -> Result<Lengths, String> {
        let pair = |text: &str| text.split_once(',').map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()));
        let found = match text.split_once(':') {
            Some(("uniform", bounds)) => pair(bounds)
                .and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)))
                .filter(|&(low, high)| 1 <= low && low <= high)
                .map(|(low, high)| Lengths::Uniform(low, high)),
            Some(("fixed", length)) => length.trim().parse().ok().filter(|&n: &usize| n > 0).map(Lengths::Fixed),
            Some(("lognormal", numbers)) => pair(numbers)
                .and_then(|(mean, sigma)| Some((mean.parse::<f64>().ok()?, sigma.parse::<f64>().ok()?)))
                .filter(|(mean, sigma)| mean.is_finite() && sigma.is_finite() && *sigma >= 0.0)
                .map(|(mean, sigma)| Lengths::LogNormal(mean, sigma)),
            _ => None,
        };
        found.ok_or_else(|| "needs uniform:LO,HI (1 ≤ LO ≤ HI), fixed:N or lognormal:MEAN,SIGMA".into())
    }
}

/// The precision of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Numbers are rounded to 8 significant bits.
    Bf16,
    /// They are not.
    F32,
}

/// `moerl routes`
#[derive(Clone, Debug, clap::Args)]
pub struct Routes {
    /// What to do.
    #[command(subcommand)]
    pub command: RoutesCommand,
}

/// What can be done with recorded experts.
#[derive(Clone, Debug, Subcommand)]
pub enum RoutesCommand {
    /// Say what a file holds, and everything that is wrong with it; exit code 1 if anything is.
    Inspect(Inspect),
}

/// `moerl routes inspect`
#[derive(Clone, Debug, clap::Args)]
pub struct Inspect {
    /// A file of recorded experts.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Whose format it has; .npy and .safetensors say so themselves.
    #[arg(long)]
    pub format: Option<RoutesFormat>,
    /// The tensor of a safetensors file, instead of all whose name begins with routes or routed_experts.
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// The shape, where the file does not say it.
    #[arg(long, value_name = "ROWS,LAYERS,COLUMNS")]
    pub shape: Option<RoutesShape>,
    /// The integers' type, where the file does not say it: u8, u16, i16, i32, i64.
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<IntegerType>,
    /// The tokens of the sequence: it then needs one row less, and less those before --start-len.
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// The first row that the engine was asked for.
    #[arg(long, value_name = "ROW", default_value_t = 0)]
    pub start_len: usize,
    /// Experts of each router, instead of what the ids show.
    #[arg(long, value_name = "E")]
    pub experts: Option<usize>,
    /// Experts that each token chose; columns behind them are fused shared experts, and are left out.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Hidden layers of the model, with --dense-first and --mtp-layers; otherwise every layer of the file has experts.
    #[arg(long, value_name = "L")]
    pub hidden_layers: Option<usize>,
    /// Dense layers at the model's start.
    #[arg(long, value_name = "L", default_value_t = 0, requires = "hidden_layers")]
    pub dense_first: usize,
    /// Layers for multi-token prediction behind the hidden ones.
    #[arg(long, value_name = "L", default_value_t = 0, requires = "hidden_layers")]
    pub mtp_layers: usize,
    /// A row of zeros is a missing one.
    #[arg(long)]
    pub zeros_are_missing: bool,
    /// How many defects are spelled out.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub defects: usize,
}

/// Whose recorded experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutesFormat {
    /// base64 of int32; needs --shape.
    Sglang,
    /// An npy file.
    Vllm,
    /// base64 of uint8 or uint16; needs --shape and --dtype.
    PrimeRl,
    /// Raw int32 or int64; needs --shape and --dtype.
    Megatron,
    /// Tensors of a step file.
    Safetensors,
}

/// Rows, layers, columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutesShape(pub [usize; 3]);

impl std::str::FromStr for RoutesShape {
    type Err = String;
    fn from_str(text: &str) -> Result<RoutesShape, String> {
        let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        numbers.map(RoutesShape).ok_or_else(|| "needs three numbers: rows, layers, columns".into())
    }
}

/// An integer type by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntegerType(pub moerl::element::Element);

impl std::str::FromStr for IntegerType {
    type Err = String;
    fn from_str(text: &str) -> Result<IntegerType, String> {
        let found = moerl::element::Element::INTEGERS.iter().find(|element| element.name() == text);
        found.map(|&element| IntegerType(element)).ok_or_else(|| "needs u8, u16, i16, i32 or i64".into())
    }
}

/// `moerl check`
#[derive(Clone, Debug, clap::Args)]
pub struct Check {
    /// A folder of *.safetensors with their *.cases.json, and step files with expected tensors.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Only this family.
    #[arg(long)]
    pub family: Option<Family>,
    /// Only the cases whose id matches this pattern (`*`, `?`, `[…]`).
    #[arg(long, value_name = "GLOB")]
    pub only: Option<String>,
    /// Print every case with its verdict as JSON.
    #[arg(long)]
    pub json: bool,
    /// Who executes the operations.
    #[arg(long, default_value = "auto")]
    pub backend: BackendName,
}

/// The families of golden vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Family {
    /// Expert gating and route replay.
    Gate,
    /// Log-probabilities of chosen tokens.
    Logprob,
    /// Losses, advantages, corrections.
    Objective,
    /// Step files with expected tensors.
    Step,
}

impl Family {
    /// `gate`, `logprob`, `objective` or `step`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Gate => "gate",
            Family::Logprob => "logprob",
            Family::Objective => "objective",
            Family::Step => "step",
        }
    }

    /// The family of that name.
    pub fn parse(name: &str) -> Option<Family> {
        [Family::Gate, Family::Logprob, Family::Objective, Family::Step]
            .into_iter()
            .find(|family| family.name() == name)
    }
}

/// `moerl step`
#[derive(Clone, Debug, clap::Args)]
pub struct Step {
    /// The step file; without one, the example that ships with moerl.
    #[arg(value_name = "IN")]
    pub input: Option<PathBuf>,
    /// Who executes the operations.
    #[arg(long, default_value = "auto")]
    pub backend: BackendName,

    /// The objective.
    #[command(flatten)]
    pub objective: Objective,

    /// Whose experts are replayed: rollout where the file has them, else old, else none.
    #[arg(long, value_name = "WHOSE", help_heading = "Gate")]
    pub replay: Option<ReplayName>,
    /// The router.
    #[command(flatten)]
    pub router: Router,

    /// The temperature that divides the logits.
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f32,
    /// Write the results to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write a page with charts, step.html, to this folder.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Write the logits' gradient too.
    #[arg(long, requires = "out")]
    pub with_d_logits: bool,
    /// List the file's tensors that a step takes no notice of.
    #[arg(short, long)]
    pub verbose: bool,
}

/// What a router does with its logits.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Router {
    /// A model's gate (qwen3, deepseek_v3, …) or a score function (softmax, softmax_selected, sigmoid).
    #[arg(long, value_name = "NAME", help_heading = "Gate")]
    pub gate: Option<String>,
    /// Experts that each token chooses, instead of as many as the file's routes have.
    #[arg(long, value_name = "K", help_heading = "Gate")]
    pub top_k: Option<usize>,
    /// Equal groups of consecutive experts, of which only the best are admitted.
    #[arg(long, value_name = "G", requires = "topk_groups", help_heading = "Gate")]
    pub groups: Option<usize>,
    /// How many groups are admitted.
    #[arg(long, value_name = "G", requires = "groups", help_heading = "Gate")]
    pub topk_groups: Option<usize>,
    /// How many of its best experts make a group's score, instead of k over the admitted groups.
    #[arg(long, value_name = "M", requires = "groups", help_heading = "Gate")]
    pub group_top: Option<usize>,
    /// How the chosen experts' scores are made to sum to 1: none, guard, exact, add-eps:NUMBER, floor:NUMBER.
    #[arg(long, value_name = "RULE", value_parser = crate::step::parse_renormalize, help_heading = "Gate")]
    pub renormalize: Option<moerl::gate::Renormalize>,
    /// The factor on every weight.
    #[arg(long, value_name = "FACTOR", help_heading = "Gate")]
    pub scale: Option<f32>,
}

/// `moerl audit`
#[derive(Clone, Debug, clap::Args)]
pub struct Audit {
    /// Step files.
    #[arg(value_name = "IN", required = true)]
    pub inputs: Vec<PathBuf>,
    /// Who executes the operations.
    #[arg(long, default_value = "auto")]
    pub backend: BackendName,
    /// The temperature that divides the logits.
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f32,
    /// The router.
    #[command(flatten)]
    pub router: Router,
    /// Print every number and every danger as JSON.
    #[arg(long)]
    pub json: bool,
    /// Write a page with charts, audit.html, to this folder.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Exit code 1 if there is a danger.
    #[arg(long)]
    pub strict: bool,
}

/// Whose experts are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReplayName {
    /// The rollout engine's.
    Rollout,
    /// The old policy's.
    Old,
    /// Nobody's.
    None,
}
