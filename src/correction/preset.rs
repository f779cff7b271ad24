//! The corrections of other systems, as configurations.

use super::{Config, Level, NonFinite, Rejection, Weight};

/// Whose correction a configuration is: what that system does where its correction is switched on and nothing else is said.
/// [`Config::differences`] lists what each changes. verl shrinks its mask where it rejects, which is the objective's to say:
/// [`objective::Preset::Verl`](crate::objective::Preset::Verl).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Preset {
    /// This crate's: no weight, no rejection, statistics alone.
    #[default]
    Moerl,
    /// TRL's `sequence_mask`: the product over the segment, not saturated, and 0 above 3.
    Trl,
    /// verl's `rollout_is: token`: tokens truncated at 2. Its rejections of k1 are written with [`Rejection::verl_k1`], and its perplexities count
    /// empty segments, as [`Diagnostics::from_sums`](super::Diagnostics::from_sums) does where it is told to.
    Verl,
    /// slime's `use_tis`: tokens clamped to 0 and 2 (`tis_clip_low`, `tis_clip`), not saturated; NaN shows.
    Slime,
    /// OpenRLHF's `tis`: tokens clamped to .5 and 5, not saturated. It corrects PPO alone; GSPO there has
    /// [`Anchor::Rollout`](crate::objective::Anchor::Rollout).
    OpenRlhf,
    /// NeMo-RL's `seq-mask-tis`: tokens as they are, in segments whose geometric mean is within .999 and 1.002; a weight that is not finite is 0.
    NemoRl,
    /// SkyRL's `tis_ratio_type: token`: truncated at 2, without segments that have a token below 1e-4 or above 100 (its outlier mask).
    SkyRl,
}

impl Preset {
    /// Every one.
    pub const ALL: [Preset; 7] =
        [Preset::Moerl, Preset::Trl, Preset::Verl, Preset::Slime, Preset::OpenRlhf, Preset::NemoRl, Preset::SkyRl];
}

impl Config {
    /// The correction that `preset` has.
    pub fn preset(preset: Preset) -> Config {
        let level = Level::Token;
        let open = |weight| Config { saturation: f32::INFINITY, ..Config::new(weight) };
        match preset {
            Preset::Moerl => Config::default(),
            Preset::Trl => open(Weight::Band { level: Level::Sequence, low: 0.0, high: 3.0 }),
            Preset::Verl => Config::tis(level, 2.0),
            Preset::Slime => {
                Config { nonfinite: NonFinite::Propagate, ..open(Weight::Clamped { level, low: 0.0, high: 2.0 }) }
            }
            Preset::OpenRlhf => open(Weight::Clamped { level, low: 0.5, high: 5.0 }),
            Preset::NemoRl => open(Weight::SequenceMasked { low: 0.999, high: 1.002 }),
            Preset::SkyRl => Config::tis(level, 2.0).with_rejection(Rejection::Veto { low: 1e-4, high: 100.0 }),
        }
    }

    /// What distinguishes this configuration from the default, a line each.
    pub fn differences(&self) -> Vec<String> {
        let plain = Config::default();
        let mut lines = Vec::new();
        let mut differs = |differs: bool, line: String| {
            if differs {
                lines.push(line);
            }
        };
        differs(self.weight != plain.weight, format!("weight: {:?}", self.weight));
        for rejection in &self.rejections {
            differs(true, format!("rejection: {rejection:?}"));
        }
        differs(self.batch_normalise, format!("batch_normalise: {}", self.batch_normalise));
        differs(self.saturation != plain.saturation, format!("saturation: {}", self.saturation));
        differs(self.repeats != plain.repeats, format!("repeats: {:?}", self.repeats));
        differs(self.nonfinite != plain.nonfinite, format!("nonfinite: {:?}", self.nonfinite));
        differs(self.catastrophic != plain.catastrophic, format!("catastrophic: {:?}", self.catastrophic));
        differs(self.diagnostics, format!("diagnostics: {}", self.diagnostics));
        lines
    }
}
