//! The conventions of other systems, as configurations.

use super::{
    Aggregation, Anchor, Cap, Clip, Config, DenominatorBasis, Divergence, Dppo, RejectionScope, Sapo, Saturation,
    Variant, Vespo, Window,
};

/// Whose conventions a configuration follows. What each changes is what [`Config::differences`] lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Preset {
    /// This crate's.
    #[default]
    Moerl,
    /// TRL's `GRPOTrainer`: no saturation, means over segments count empty ones, CISPO and VESPO by the mean over tokens.
    Trl,
    /// Liger's GRPO losses, which follow TRL's definitions.
    Liger,
    /// verl's `core_algos`: means over tokens, dual clip at 3, log-ratios clamped to ±20, "gspo" is [`Variant::GspoToken`] with log s clamped
    /// above at 10, a mask that shrinks with rejection.
    Verl,
    /// slime: the caller's denominators per rollout, values of the divergence clamped to 10.
    Slime,
    /// OpenRLHF: means over tokens for a token's ratio, ±20; GSPO as published and unbounded.
    OpenRlhf,
    /// NeMo-RL: the divergence straight-through, clamped as verl does.
    NemoRl,
    /// SkyRL: the caller's coefficients, ±20 for tokens and +10 for segments, DPPO against the rollout.
    SkyRl,
    /// AReaL: GSPO by the mean over tokens, which weighs segments by their length.
    Areal,
    /// prime-rl: sums over tokens, a scale that the caller gives.
    Prime,
}

/// An objective by the name that the field has for it. CISPO is not among them: it has no default cap, see [`Config::cispo`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Algorithm {
    /// Token clip, mean over segments of the mean over tokens.
    #[default]
    Grpo,
    /// Token clip, mean over the tokens of the (micro-)batch (TRL's `bnpo`).
    Bnpo,
    /// Token clip with a higher upper bound, mean over the tokens of the whole step.
    Dapo,
    /// Token clip, sum over tokens divided by the longest completion allowed.
    DrGrpo,
    /// The segment's ratio.
    Gspo,
    /// The segment's ratio, a gradient per token.
    GspoToken,
    /// The segment's ratio, every token weighing the same.
    Luspo,
    /// The geometric mean of clipped ratios, ±0.4.
    Gmpo,
    /// A soft gate per token.
    Sapo,
    /// A soft gate per segment.
    SapoSequence,
    /// A gamma-shaped weight of the segment.
    Vespo,
    /// A trust region of 0.1 in total variation.
    DppoTv,
    /// A trust region of 0.05 in the binary divergence.
    DppoKl,
    /// REINFORCE with the rollout's ratio and PPO's mask.
    MiniRl,
    /// Tapered REINFORCE.
    Topr,
    /// REINFORCE with a squared penalty, τ = 0.1.
    SquarePenalty,
    /// Plain policy gradient.
    Gpg,
    /// The self-normalised estimate of a group's mean reward, gradient through its weights.
    SnisAttached,
    /// Truncated ratios as weights.
    TisLoss,
}

impl Algorithm {
    /// Every one.
    pub const ALL: [Algorithm; 19] = [
        Algorithm::Grpo,
        Algorithm::Bnpo,
        Algorithm::Dapo,
        Algorithm::DrGrpo,
        Algorithm::Gspo,
        Algorithm::GspoToken,
        Algorithm::Luspo,
        Algorithm::Gmpo,
        Algorithm::Sapo,
        Algorithm::SapoSequence,
        Algorithm::Vespo,
        Algorithm::DppoTv,
        Algorithm::DppoKl,
        Algorithm::MiniRl,
        Algorithm::Topr,
        Algorithm::SquarePenalty,
        Algorithm::Gpg,
        Algorithm::SnisAttached,
        Algorithm::TisLoss,
    ];

    /// As its paper has it, with this crate's conventions.
    fn config(self) -> Config {
        let token = Clip::new(0.2, 0.2);
        let sequence = Clip::new(3e-4, 4e-4);
        let trust = |divergence, bound| Variant::Dppo(Dppo { divergence, low: bound, high: bound, cap: f64::INFINITY });
        let variant = match self {
            Algorithm::Grpo | Algorithm::Bnpo | Algorithm::DrGrpo => Variant::PpoClip(token),
            Algorithm::Dapo => Variant::PpoClip(Clip::new(0.2, 0.28)),
            Algorithm::Gspo | Algorithm::Luspo => Variant::Gspo(sequence),
            Algorithm::GspoToken => Variant::GspoToken(sequence),
            Algorithm::Gmpo => Variant::Gmpo(Window::new(0.4, 0.4)),
            Algorithm::Sapo => Variant::Sapo(Sapo::default()),
            Algorithm::SapoSequence => Variant::Sapo(Sapo { level: super::RatioLevel::Sequence, ..Sapo::default() }),
            Algorithm::Vespo => Variant::Vespo(Vespo::default()),
            Algorithm::DppoTv => trust(Divergence::TotalVariation, 0.1),
            Algorithm::DppoKl => trust(Divergence::Kl { epsilon: 0.0 }, 0.05),
            Algorithm::MiniRl => Variant::MiniRl(Window::new(0.2, 0.27)),
            Algorithm::Topr => Variant::Topr,
            Algorithm::SquarePenalty => Variant::SquarePenalty { tau: 0.1 },
            Algorithm::Gpg => Variant::Gpg,
            Algorithm::SnisAttached => Variant::SnisAttached,
            Algorithm::TisLoss => Variant::TisLoss,
        };
        let aggregation = match self {
            Algorithm::Bnpo | Algorithm::Dapo => Aggregation::TokenMean,
            Algorithm::DrGrpo => Aggregation::SeqMeanTokenSumNorm,
            Algorithm::Luspo => Aggregation::SeqMeanTokenSum,
            Algorithm::SnisAttached => Aggregation::TokenSum,
            _ => Aggregation::SeqMeanTokenMean,
        };
        Config::new(variant).with_aggregation(aggregation)
    }
}

/// What the mean over tokens replaces where a system prefers that.
fn by_tokens(config: Config) -> Config {
    match config.aggregation {
        Aggregation::SeqMeanTokenMean => config.with_aggregation(Aggregation::TokenMean),
        _ => config,
    }
}

/// The divergence's clamps, where there is one.
fn with_kl_clamps(mut config: Config, input: Option<f64>, output: Option<f64>) -> Config {
    if let Some(kl) = &mut config.kl {
        (kl.input_clamp, kl.output_clamp) = (input, output);
    }
    config
}

/// DPPO as verl and SkyRL write it.
fn with_dppo_convention(mut config: Config) -> Config {
    if let Variant::Dppo(dppo) = &mut config.variant {
        dppo.cap = 20.0;
        if let Divergence::Kl { epsilon } = &mut dppo.divergence {
            *epsilon = 1e-8;
        }
    }
    config
}

/// GSPO with a gradient per token, log s bounded above alone.
fn with_capped_segments(config: Config) -> Config {
    match config.variant {
        Variant::Gspo(clip) | Variant::GspoToken(clip) => {
            Config { variant: Variant::GspoToken(clip), saturation: Saturation::above(10.0), ..config }
        }
        _ => config,
    }
}

fn verl(config: Config) -> Config {
    let config = with_kl_clamps(with_dppo_convention(with_capped_segments(config)), Some(20.0), Some(10.0));
    let config =
        Config { denominator_basis: DenominatorBasis::AfterRejection, rejection: RejectionScope::AllTerms, ..config };
    match config.variant {
        Variant::PpoClip(_) => by_tokens(config.with_cap(Cap::Dual(3.0))),
        // Fixed, whatever mode is chosen.
        Variant::Sapo(_) => config.with_aggregation(Aggregation::SeqMeanTokenMean),
        Variant::Gmpo(_) => Config { saturation: Saturation::NONE, count_empty: true, ..config }
            .with_aggregation(Aggregation::SeqMeanTokenMean),
        _ => by_tokens(config),
    }
}

impl Config {
    /// `algorithm` as `preset` understands it.
    pub fn preset(preset: Preset, algorithm: Algorithm) -> Config {
        algorithm.config().with_preset(preset)
    }

    /// The same objective by another system's conventions; a divergence that is there already is given its clamps.
    #[must_use]
    pub fn with_preset(self, preset: Preset) -> Config {
        let is_sequence_level = self.variant.is_sequence_level();
        match preset {
            Preset::Moerl => self,
            Preset::Trl | Preset::Liger => {
                let config = Config { saturation: Saturation::NONE, count_empty: true, ..self };
                match config.variant {
                    Variant::Cispo(_) | Variant::Vespo(_) => by_tokens(config),
                    _ => config,
                }
            }
            Preset::Verl => verl(self),
            // The segments of a group share their coefficient.
            Preset::Slime if self.variant == Variant::SnisAttached => with_kl_clamps(self, None, Some(10.0)),
            Preset::Slime => with_kl_clamps(self.with_aggregation(Aggregation::Custom), None, Some(10.0)),
            Preset::OpenRlhf if is_sequence_level => Config { saturation: Saturation::NONE, ..self },
            Preset::OpenRlhf => by_tokens(self),
            Preset::NemoRl => {
                let mut config = with_kl_clamps(self, Some(20.0), Some(10.0));
                config.kl.iter_mut().for_each(|kl| kl.straight_through = true);
                config
            }
            Preset::SkyRl => {
                let mut config = with_dppo_convention(with_capped_segments(self));
                if matches!(config.variant, Variant::Dppo(_)) {
                    config.anchor = Anchor::Rollout;
                }
                config.with_aggregation(Aggregation::TokenSum)
            }
            Preset::Areal => by_tokens(self),
            Preset::Prime => self.with_aggregation(Aggregation::TokenSum),
        }
    }

    /// What distinguishes this configuration from the default of its variant, a line each.
    pub fn differences(&self) -> Vec<String> {
        let plain = Config::new(self.variant);
        let mut lines = Vec::new();
        let mut differs = |differs: bool, line: String| {
            if differs {
                lines.push(line);
            }
        };
        let cap = self.variant.clip().map_or(Cap::None, |clip| clip.cap);
        differs(cap != Cap::None, format!("cap: {cap:?}"));
        differs(self.anchor != plain.anchor, format!("anchor: {:?}", self.anchor));
        differs(self.kl != plain.kl, format!("kl: {:?}", self.kl));
        differs(self.mismatch_penalty != 0.0, format!("mismatch_penalty: {}", self.mismatch_penalty));
        differs(self.entropy_bonus != 0.0, format!("entropy_bonus: {}", self.entropy_bonus));
        differs(self.rejection != plain.rejection, format!("rejection: {:?}", self.rejection));
        differs(
            self.denominator_basis != plain.denominator_basis,
            format!("denominator_basis: {:?}", self.denominator_basis),
        );
        differs(self.aggregation != plain.aggregation, format!("aggregation: {:?}", self.aggregation));
        let Saturation { low, high } = self.saturation;
        differs(self.saturation != plain.saturation, format!("saturation: [{low}, {high}]"));
        differs(self.nonfinite != plain.nonfinite, format!("nonfinite: {:?}", self.nonfinite));
        differs(self.dp_scale != plain.dp_scale, format!("dp_scale: {}", self.dp_scale));
        differs(self.count_empty != plain.count_empty, format!("count_empty: {}", self.count_empty));
        lines
    }
}
