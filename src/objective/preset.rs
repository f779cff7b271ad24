//! The conventions of other systems, as configurations.

use super::{Aggregation, Cap, Clip, Config, Saturation, Variant};

/// Whose conventions a configuration follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Preset {
    /// This crate's.
    #[default]
    Moerl,
    /// TRL's `GRPOTrainer`.
    Trl,
    /// Liger's GRPO losses, which follow TRL's definitions.
    Liger,
    /// verl's `core_algos`.
    Verl,
}

/// An objective by the name that the field has for it.
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
}

impl Config {
    /// `algorithm` as `preset` understands it.
    pub fn preset(preset: Preset, algorithm: Algorithm) -> Config {
        let token = Clip::new(0.2, 0.2);
        let sequence = Clip::new(3e-4, 4e-4);
        let config = match algorithm {
            Algorithm::Grpo => Config::new(Variant::PpoClip(token)),
            Algorithm::Bnpo => Config::new(Variant::PpoClip(token)).with_aggregation(Aggregation::TokenMean),
            Algorithm::Dapo => {
                Config::new(Variant::PpoClip(Clip::new(0.2, 0.28))).with_aggregation(Aggregation::TokenMean)
            }
            Algorithm::DrGrpo => {
                Config::new(Variant::PpoClip(token)).with_aggregation(Aggregation::SeqMeanTokenSumNorm)
            }
            Algorithm::Gspo => Config::new(Variant::Gspo(sequence)),
            Algorithm::GspoToken => Config::new(Variant::GspoToken(sequence)),
        };
        match preset {
            Preset::Moerl => config,
            Preset::Trl | Preset::Liger => Config { saturation: Saturation::NONE, count_empty: true, ..config },
            Preset::Verl => verl(config),
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
        differs(self.variant.clip().cap != Cap::None, format!("cap: {:?}", self.variant.clip().cap));
        differs(self.aggregation != plain.aggregation, format!("aggregation: {:?}", self.aggregation));
        let Saturation { low, high } = self.saturation;
        differs(self.saturation != plain.saturation, format!("saturation: [{low}, {high}]"));
        differs(self.nonfinite != plain.nonfinite, format!("nonfinite: {:?}", self.nonfinite));
        differs(self.dp_scale != plain.dp_scale, format!("dp_scale: {}", self.dp_scale));
        differs(self.count_empty != plain.count_empty, format!("count_empty: {}", self.count_empty));
        lines
    }
}

/// verl: dual clip at 3 and log-ratios clamped to ±20 for tokens; "gspo" is [`Variant::GspoToken`], with log s clamped above at 10; the
/// mean is over tokens unless chosen otherwise.
fn verl(config: Config) -> Config {
    let config = match config.variant {
        Variant::PpoClip(_) => config.with_cap(Cap::Dual(3.0)),
        Variant::Gspo(clip) | Variant::GspoToken(clip) => {
            Config { variant: Variant::GspoToken(clip), saturation: Saturation::above(10.0), ..config }
        }
    };
    match config.aggregation {
        Aggregation::SeqMeanTokenMean => config.with_aggregation(Aggregation::TokenMean),
        _ => config,
    }
}
