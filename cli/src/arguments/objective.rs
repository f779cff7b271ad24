//! The options of an objective: names, and what they stand for in the library.

use clap::ValueEnum;
use moerl::objective::{Aggregation, Algorithm, CispoCap, Kl, KlForm, NonFinite, Preset, RatioLevel, Window};

/// What a step optimises.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Objective")]
pub struct Objective {
    /// The objective and its usual settings, which the options below change one by one.
    #[arg(long = "objective", default_value = "gspo", value_name = "NAME")]
    pub name: ObjectiveName,
    /// Whose conventions: clamps, caps, what a mean counts, a group's deviation.
    #[arg(long, default_value = "moerl", value_name = "SYSTEM")]
    pub preset: PresetName,
    /// How far below 1 a ratio may go: the window begins at 1 - this. Of dppo: how far a probability may be pushed down.
    #[arg(long, value_name = "E")]
    pub clip_low: Option<f64>,
    /// How far above 1 a ratio may go. Of dppo: how far a probability may be pushed up.
    #[arg(long, value_name = "E")]
    pub clip_high: Option<f64>,
    /// For negative advantages, the ratio above which the loss stays constant (above 1).
    #[arg(long, value_name = "C")]
    pub dual_clip: Option<f64>,
    /// A second bound of the ratio, for both signs of the advantage (INTELLECT-2; TRL's delta).
    #[arg(long, value_name = "D", conflicts_with = "dual_clip")]
    pub delta: Option<f64>,
    /// What cispo clamps its ratio to: window:LO,HI for 1 - LO to 1 + HI (verl, slime), raw:MAX for 0 to MAX (TRL's epsilon_high).
    #[arg(long, value_name = "CAP", value_parser = parse_cap)]
    pub cispo_cap: Option<CispoCap>,
    /// The window 1 - LO to 1 + HI outside which cispo passes no gradient, by the rule of a clipped ratio (ROLL's unified mask).
    #[arg(long, value_name = "LO,HI", value_parser = parse_mask)]
    pub cispo_mask: Option<Window>,
    /// At which level cispo and sapo take their ratio.
    #[arg(long, value_name = "LEVEL")]
    pub ratio_level: Option<LevelName>,
    /// The steepness of sapo's gate for positive advantages.
    #[arg(long, value_name = "TAU")]
    pub tau_pos: Option<f64>,
    /// The steepness of sapo's gate for negative advantages.
    #[arg(long, value_name = "TAU")]
    pub tau_neg: Option<f64>,
    /// The shape of vespo's weight for positive advantages, exp(LAMBDA + K lw - LAMBDA e^lw) of a sequence's log-ratio lw; 2,3 in the paper.
    #[arg(long, value_name = "K,LAMBDA", value_parser = parse_shape)]
    pub vespo_pos: Option<(f64, f64)>,
    /// The same for negative advantages; 3,2 in the paper.
    #[arg(long, value_name = "K,LAMBDA", value_parser = parse_shape)]
    pub vespo_neg: Option<(f64, f64)>,
    /// The largest ratio that dppo weighs a token by, inf for none: that is the paper's; verl and skyrl have 20.
    #[arg(long, value_name = "C")]
    pub dppo_cap: Option<f64>,
    /// The weight of square-penalty's square, or of kl-cov's |log-ratio|.
    #[arg(long, value_name = "WEIGHT")]
    pub penalty: Option<f64>,
    /// The share of tokens that kl-cov and clip-cov single out.
    #[arg(long, value_name = "SHARE")]
    pub cov_fraction: Option<f64>,
    /// The seed of clip-cov's choice; it has no default.
    #[arg(long, value_name = "SEED")]
    pub cov_seed: Option<u64>,
    /// The divergence from the reference policy: k1, abs, k2, k3, k3-is-token, k3-is-sequence; with a + behind it (k3+) the gradient is that
    /// of k2 whatever the value.
    #[arg(long, value_name = "NAME", requires = "beta")]
    pub kl: Option<KlName>,
    /// The weight of the divergence; k3 unless --kl says otherwise.
    #[arg(long, value_name = "BETA")]
    pub beta: Option<f64>,
    /// The weight of the squared difference from the rollout's log-probabilities (prime-rl).
    #[arg(long, value_name = "WEIGHT")]
    pub mismatch_penalty: Option<f64>,
    /// The weight of the entropy bonus.
    #[arg(long, value_name = "WEIGHT")]
    pub entropy_coef: Option<f64>,
    /// How token losses become one number.
    #[arg(long, value_name = "MODE")]
    pub aggregation: Option<AggregationName>,
    /// The length that seq-mean-token-sum-norm divides by, instead of the longest segment's.
    #[arg(long, value_name = "TOKENS")]
    pub max_len: Option<u64>,
    /// How rewards become advantages; without it the file's own advantages are taken, where it has any.
    #[arg(long, value_name = "NAME")]
    pub advantage: Option<AdvantageName>,
    /// Whether rewards are divided by their group's standard deviation.
    #[arg(long, value_name = "SWITCH")]
    pub std: Option<Switch>,
    /// The discount of reinforce-pp.
    #[arg(long, value_name = "GAMMA", default_value_t = 1.0)]
    pub gamma: f64,
    /// The policy that ratios are taken against: old unless the preset says rollout.
    #[arg(long, value_name = "POLICY")]
    pub anchor: Option<AnchorName>,
    /// Weights and rejections against the rollout: terms with commas between them. The first may be a system's own correction: trl, verl, slime,
    /// openrlhf, nemo-rl, skyrl. Weights: tis=C, clamp=LO_HI, icepop=LO_HI (each also
    /// -sequence, -geometric: tis-sequence=2), seq-mask-tis=LO_HI, snis, metropolis=SEED, metropolis-mask=SEED; normalise. Rejections:
    /// band-LEVEL=LO_HI, k1-OVER=LO_HI, k2-OVER=T, k3-OVER=T (OVER: token, sum, mean, max), veto=LO or LO_HI, opsm=T.
    #[arg(long, value_name = "TERMS", value_parser = crate::step::parse_correction)]
    pub correction: Option<moerl::correction::Config>,
    /// What to do about numbers at counted tokens that are not finite; without this option they are an error.
    #[arg(long, value_name = "RULE")]
    pub nonfinite: Option<NonfiniteName>,
}

/// Objectives, with their usual settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ObjectiveName {
    /// One clipped ratio per sequence, 3e-4 / 4e-4 (arXiv 2507.18071).
    Gspo,
    /// The same ratio, with the gradient taken token by token (eq. 13 there).
    GspoToken,
    /// A clipped ratio per token, 0.2 / 0.2, mean over tokens, then over sequences.
    Grpo,
    /// As grpo, with the mean over the tokens of the batch.
    Bnpo,
    /// As grpo, with 0.2 / 0.28 and the mean over all tokens.
    Dapo,
    /// As grpo, with rewards not divided by their deviation and sums divided by the longest segment.
    DrGrpo,
    /// As gspo, every token weighing the same (2602.05261).
    Luspo,
    /// REINFORCE weighted by the clamped ratio (2506.13585); needs --cispo-cap.
    Cispo,
    /// The geometric mean of clipped ratios, 0.4 / 0.4 (2507.20673).
    Gmpo,
    /// A soft gate in place of the window (2511.20347).
    Sapo,
    /// REINFORCE weighted by a gamma shape of the sequence's ratio (2602.10693).
    Vespo,
    /// A trust region in total variation, 0.1 (2602.04879).
    DppoTv,
    /// A trust region in the binary divergence, 0.05.
    DppoKl,
    /// REINFORCE weighted by the ratio to the rollout, inside grpo's window (2512.01374).
    Minirl,
    /// Tapered REINFORCE (2503.14286).
    Topr,
    /// REINFORCE with a squared log-ratio as penalty (Kimi 1.5).
    SquarePenalty,
    /// Plain policy gradient.
    Gpg,
    /// The self-normalised estimate of a group's mean reward, the gradient taken through its weights against the rollout; takes rewards.
    SnisAttached,
    /// REINFORCE weighted by the truncated ratio (ROLL).
    TisLoss,
    /// REINFORCE weighted by --correction (verl's bypass mode).
    ReinforceIs,
    /// The unclipped ratio, with a penalty on the tokens of largest covariance (2505.22617).
    KlCov,
    /// As grpo, without a few of the tokens of large covariance (there); needs --cov-seed.
    ClipCov,
}

impl ObjectiveName {
    /// The library's name of it, if it has one.
    pub fn algorithm(self) -> Option<Algorithm> {
        Some(match self {
            ObjectiveName::Gspo => Algorithm::Gspo,
            ObjectiveName::GspoToken => Algorithm::GspoToken,
            ObjectiveName::Grpo | ObjectiveName::ClipCov => Algorithm::Grpo,
            ObjectiveName::Bnpo => Algorithm::Bnpo,
            ObjectiveName::Dapo => Algorithm::Dapo,
            ObjectiveName::DrGrpo => Algorithm::DrGrpo,
            ObjectiveName::Luspo => Algorithm::Luspo,
            ObjectiveName::Gmpo => Algorithm::Gmpo,
            ObjectiveName::Sapo => Algorithm::Sapo,
            ObjectiveName::Vespo => Algorithm::Vespo,
            ObjectiveName::DppoTv => Algorithm::DppoTv,
            ObjectiveName::DppoKl => Algorithm::DppoKl,
            ObjectiveName::Minirl => Algorithm::MiniRl,
            ObjectiveName::Topr => Algorithm::Topr,
            ObjectiveName::SquarePenalty => Algorithm::SquarePenalty,
            ObjectiveName::Gpg => Algorithm::Gpg,
            ObjectiveName::SnisAttached => Algorithm::SnisAttached,
            ObjectiveName::TisLoss => Algorithm::TisLoss,
            ObjectiveName::Cispo | ObjectiveName::ReinforceIs | ObjectiveName::KlCov => return None,
        })
    }
}

/// The name that an option has for a value.
pub fn text_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Whose conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PresetName {
    /// This project's.
    Moerl,
    /// TRL's.
    Trl,
    /// Liger's, which follow TRL's.
    Liger,
    /// verl's: dual clip, the mean over tokens, gspo with a gradient per token.
    Verl,
    /// slime's: a coefficient per sequence, here 1 / (sequences · its tokens).
    Slime,
    /// OpenRLHF's.
    Openrlhf,
    /// NeMo-RL's.
    NemoRl,
    /// SkyRL's: plain sums, the coefficient being the caller's part of the advantage.
    Skyrl,
    /// AReaL's: gspo by the mean over tokens.
    Areal,
    /// prime-rl's: plain sums.
    Prime,
}

impl PresetName {
    /// The objective's part of the conventions.
    pub fn objective(self) -> Preset {
        match self {
            PresetName::Moerl => Preset::Moerl,
            PresetName::Trl => Preset::Trl,
            PresetName::Liger => Preset::Liger,
            PresetName::Verl => Preset::Verl,
            PresetName::Slime => Preset::Slime,
            PresetName::Openrlhf => Preset::OpenRlhf,
            PresetName::NemoRl => Preset::NemoRl,
            PresetName::Skyrl => Preset::SkyRl,
            PresetName::Areal => Preset::Areal,
            PresetName::Prime => Preset::Prime,
        }
    }

    /// The advantage's part.
    pub fn advantage(self, std: bool) -> moerl::advantage::Config {
        match self {
            PresetName::Trl | PresetName::Liger => moerl::advantage::Config::trl(std),
            PresetName::Verl => moerl::advantage::Config::verl(std),
            _ => moerl::advantage::Config { std, ..moerl::advantage::Config::default() },
        }
    }
}

/// At which level a ratio is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelName {
    /// Of the token.
    Token,
    /// Of the sequence, length-normalised.
    Sequence,
}

impl From<LevelName> for RatioLevel {
    fn from(level: LevelName) -> RatioLevel {
        match level {
            LevelName::Token => RatioLevel::Token,
            LevelName::Sequence => RatioLevel::Sequence,
        }
    }
}

/// Two numbers.
fn parse_pair(text: &str) -> Option<(f64, f64)> {
    let (first, second) = text.split_once(',')?;
    first.trim().parse().ok().zip(second.trim().parse().ok())
}

/// `LO,HI`
fn parse_mask(text: &str) -> Result<Window, String> {
    let window = parse_pair(text).map(|(low, high)| Window::new(low, high));
    window.ok_or_else(|| "needs LO,HI (1 - LO to 1 + HI), as in 0.2,0.28".into())
}

/// `K,LAMBDA`
fn parse_shape(text: &str) -> Result<(f64, f64), String> {
    parse_pair(text).ok_or_else(|| "needs K,LAMBDA, as in 2,3".into())
}

/// `window:LO,HI` or `raw:MAX`. A bare number could be either and is refused.
fn parse_cap(text: &str) -> Result<CispoCap, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let cap = match text.split_once(':') {
        Some(("window", bounds)) => parse_pair(bounds).map(|(low, high)| CispoCap::Window(Window::new(low, high))),
        Some(("raw", max)) => number(max).map(|max| CispoCap::Raw { max }),
        _ => None,
    };
    cap.ok_or_else(|| "needs window:LO,HI (1 - LO to 1 + HI) or raw:MAX (0 to MAX)".into())
}

/// A divergence by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KlName {
    form: KlForm,
    straight_through: bool,
}

impl KlName {
    /// k3, whose gradient is its own.
    pub const K3: KlName = KlName { form: KlForm::K3, straight_through: false };

    /// With a weight.
    pub fn weighted(self, beta: f64) -> Kl {
        Kl { straight_through: self.straight_through, ..Kl::new(beta, self.form) }
    }
}

impl std::str::FromStr for KlName {
    type Err = String;
    fn from_str(text: &str) -> Result<KlName, String> {
        let (name, straight_through) = match text.strip_suffix('+').or_else(|| text.strip_suffix("-straight")) {
            Some(name) => (name, true),
            None => (text, false),
        };
        let form = match name {
            "k1" => KlForm::K1,
            "abs" => KlForm::Abs,
            "k2" => KlForm::K2,
            "k3" => KlForm::K3,
            "k3-is-token" => KlForm::K3IsToken,
            "k3-is-sequence" => KlForm::K3IsSequence,
            _ => {
                return Err(
                    "needs k1, abs, k2, k3, k3-is-token or k3-is-sequence, with or without a + behind it".into()
                );
            }
        };
        Ok(KlName { form, straight_through })
    }
}

/// How token losses become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AggregationName {
    /// Sum over tokens / tokens.
    TokenMean,
    /// Sum over tokens.
    TokenSum,
    /// Mean over segments of their mean.
    SeqMeanTokenMean,
    /// Mean over segments of their sum.
    SeqMeanTokenSum,
    /// The same, divided by the longest segment.
    SeqMeanTokenSumNorm,
    /// Mean over prompts of the mean over a prompt's tokens.
    PromptMean,
}

impl From<AggregationName> for Aggregation {
    fn from(name: AggregationName) -> Aggregation {
        match name {
            AggregationName::TokenMean => Aggregation::TokenMean,
            AggregationName::TokenSum => Aggregation::TokenSum,
            AggregationName::SeqMeanTokenMean => Aggregation::SeqMeanTokenMean,
            AggregationName::SeqMeanTokenSum => Aggregation::SeqMeanTokenSum,
            AggregationName::SeqMeanTokenSumNorm => Aggregation::SeqMeanTokenSumNorm,
            AggregationName::PromptMean => Aggregation::PromptMean,
        }
    }
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AdvantageName {
    /// Less the group's mean, over its deviation (--std off: not divided).
    Group,
    /// Less the mean of the group's others.
    Rloo,
    /// Less the group's mean weighted by length.
    Opo,
    /// Less the group's mean, over the deviation of all rewards.
    BatchNorm,
    /// Discounted returns, whitened over the batch's tokens.
    ReinforcePp,
    /// Less the group's mean, whitened over the batch's tokens.
    ReinforcePpBaseline,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// The policy that ratios are taken against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AnchorName {
    /// The trainer's policy when the step began.
    Old,
    /// The rollout engine's.
    Rollout,
}

/// What to do about numbers that are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NonfiniteName {
    /// NaN in the segment and in the loss.
    Propagate,
    /// The token has weight 0.
    ZeroWeight,
    /// The segment is left out.
    DropSegment,
}

impl From<NonfiniteName> for NonFinite {
    fn from(name: NonfiniteName) -> NonFinite {
        match name {
            NonfiniteName::Propagate => NonFinite::Propagate,
            NonfiniteName::ZeroWeight => NonFinite::ZeroWeight,
            NonfiniteName::DropSegment => NonFinite::DropSegment,
        }
    }
}
