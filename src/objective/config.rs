//! What an objective computes.

use crate::error::{Checks, Kind, Result};

/// An objective. Plain data; [`validate`](Config::validate) names every fault, [`lint`](Config::lint) what is legal and unusual.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// The value of a token or segment.
    pub variant: Variant,
    /// How values become one loss.
    pub aggregation: Aggregation,
    /// Where the exponential stops to grow.
    pub saturation: Saturation,
    /// What becomes of NaN and infinity at counted tokens.
    pub nonfinite: NonFinite,
    /// Multiplies loss and gradient, for trainers that average gradients over data-parallel ranks. Positive, finite.
    pub dp_scale: f64,
    /// [`Denominators::Local`](super::Denominators::Local) counts segments without a counted token.
    pub count_empty: bool,
}

/// The value of a token or segment. The table is at [the module](super).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Variant {
    /// PPO's clipped surrogate per token, ratio ρ: GRPO, DAPO, Dr. GRPO.
    PpoClip(Clip),
    /// The clipped surrogate of the segment's ratio s, whose gradient spreads evenly over the counted tokens.
    Gspo(Clip),
    /// The clip of [`Gspo`](Variant::Gspo) with a gradient per token. verl calls this one gspo.
    GspoToken(Clip),
}

impl Variant {
    /// Its window and cap.
    pub fn clip(&self) -> Clip {
        match *self {
            Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => clip,
        }
    }

    /// True where the ratio is the segment's.
    pub fn is_sequence_level(&self) -> bool {
        !matches!(self, Variant::PpoClip(_))
    }
}

/// The window [1 − low, 1 + high] of a ratio, and the cap behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Clip {
    /// εl ≥ 0. From 1 on there is no lower bound.
    pub low: f64,
    /// εh ≥ 0.
    pub high: f64,
    /// What bounds the ratio beyond the window.
    pub cap: Cap,
}

impl Clip {
    /// A window without a cap.
    pub fn new(low: f64, high: f64) -> Clip {
        Clip { low, high, cap: Cap::None }
    }
}

/// A second bound of the ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Cap {
    /// None: a negative advantage costs as much as its ratio.
    #[default]
    None,
    /// Dual clip: A < 0 costs at most C·|A|, C > 1; beyond it no gradient (1912.09729).
    Dual(f64),
    /// −min(min(ratio, δ)A, clip(ratio)A), δ > 0 (INTELLECT-2; TRL's `delta`). Below 1 + εh it lowers the bound for A > 0 as well.
    Delta(f64),
}

/// Bounds of a log-ratio where its exponential is taken: value and gradient are those of the clamped function, so the gradient is 0
/// outside. Sums are never clamped.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Saturation {
    /// The lower bound, −∞ for none.
    pub low: f32,
    /// The upper bound, +∞ for none: the exponential then overflows to +∞ at 88.72.
    pub high: f32,
}

impl Saturation {
    /// No bounds (TRL).
    pub const NONE: Saturation = Saturation { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// ±`bound`.
    pub const fn symmetric(bound: f32) -> Saturation {
        Saturation { low: -bound, high: bound }
    }

    /// An upper bound alone (verl's `gspo`, at 10).
    pub const fn above(bound: f32) -> Saturation {
        Saturation { low: f32::NEG_INFINITY, high: bound }
    }
}

impl Default for Saturation {
    /// ±20.
    fn default() -> Saturation {
        Saturation::symmetric(20.0)
    }
}

/// What becomes of NaN and ±∞ among the inputs of a counted token. All three set the error word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NonFinite {
    /// NaN in that segment and in the loss, and nowhere else.
    Propagate,
    /// The token has weight 0, Δ = 0 in sums and gradient 0; it stays in n and the denominators.
    #[default]
    ZeroWeight,
    /// The whole segment has value 0 and gradient 0; it stays in the denominators.
    DropSegment,
}

/// The coefficient c of a segment's tokens: n is the segment's counted tokens, T and B those and the segments of the whole step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Aggregation {
    /// 1/T (DAPO; verl, OpenRLHF, NeMo-RL).
    TokenMean,
    /// 1.
    TokenSum,
    /// 1/(B·n) (GRPO, GSPO).
    #[default]
    SeqMeanTokenMean,
    /// 1/B.
    SeqMeanTokenSum,
    /// 1/(B·L), L the longest completion allowed (Dr. GRPO).
    SeqMeanTokenSumNorm,
    /// 1/(P·N), P prompts in all and N the counted tokens of the segment's prompt, which the batch brings per segment.
    PromptMean,
    /// Given per segment.
    Custom,
}

/// A plane of the sums that [`objective_partial`](crate::Backend::objective_partial) makes: one f64 per segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Plane {
    /// D = Σ m Δ.
    LogRatio,
    /// n = Σ m, a whole number.
    Count,
    /// S⁺ = Σ m w max(A, 0).
    PositiveAdvantage,
    /// S⁻ = Σ m w min(A, 0).
    NegativeAdvantage,
    /// Σ m [an input of the token is NaN or infinite], a whole number.
    NonFinite,
}

impl Plane {
    /// All planes, in the order they have in memory.
    pub const ALL: [Plane; 5] =
        [Plane::LogRatio, Plane::Count, Plane::PositiveAdvantage, Plane::NegativeAdvantage, Plane::NonFinite];
}

impl Default for Config {
    /// GRPO with ±0.2.
    fn default() -> Config {
        Config::ppo_clip(0.2, 0.2)
    }
}

impl Config {
    /// The defaults around a variant.
    pub fn new(variant: Variant) -> Config {
        Config {
            variant,
            aggregation: Aggregation::default(),
            saturation: Saturation::default(),
            nonfinite: NonFinite::default(),
            dp_scale: 1.0,
            count_empty: false,
        }
    }

    /// [`Variant::PpoClip`] with this window.
    pub fn ppo_clip(clip_low: f64, clip_high: f64) -> Config {
        Config::new(Variant::PpoClip(Clip::new(clip_low, clip_high)))
    }

    /// [`Variant::Gspo`] with this window; the paper's is 3e-4, 4e-4.
    pub fn gspo(clip_low: f64, clip_high: f64) -> Config {
        Config::new(Variant::Gspo(Clip::new(clip_low, clip_high)))
    }

    /// [`Variant::GspoToken`] with this window.
    pub fn gspo_token(clip_low: f64, clip_high: f64) -> Config {
        Config::new(Variant::GspoToken(Clip::new(clip_low, clip_high)))
    }

    /// The same with another aggregation.
    #[must_use]
    pub fn with_aggregation(mut self, aggregation: Aggregation) -> Config {
        self.aggregation = aggregation;
        self
    }

    /// The same with a cap behind the window.
    #[must_use]
    pub fn with_cap(mut self, cap: Cap) -> Config {
        match &mut self.variant {
            Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => clip.cap = cap,
        }
        self
    }

    /// The planes that the phases of this objective exchange, in the order they have in memory.
    pub fn planes(&self) -> &'static [Plane] {
        match (self.variant.is_sequence_level(), self.nonfinite) {
            (true, _) => &Plane::ALL,
            (false, NonFinite::DropSegment) => &[Plane::Count, Plane::NonFinite],
            (false, _) => &[Plane::Count],
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let Clip { low, high, cap } = self.variant.clip();
        let mut checks = Checks::new();
        let mut number = |holds: bool, name: &'static str, value: f64, needed: &str| {
            checks.require(holds, Kind::Config, name, || format!("is {value}, needs {needed}"));
        };
        number(low >= 0.0 && low.is_finite(), "clip_low", low, "a finite number of at least 0");
        number(high >= 0.0 && high.is_finite(), "clip_high", high, "a finite number of at least 0");
        match cap {
            Cap::None => {}
            Cap::Dual(c) => number(c > 1.0 && c.is_finite(), "dual_clip", c, "a finite number above 1"),
            Cap::Delta(d) => number(d > 0.0 && d.is_finite(), "delta", d, "a finite number above 0"),
        }
        let scale = self.dp_scale;
        number(scale > 0.0 && scale.is_finite(), "dp_scale", scale, "a finite number above 0");
        let Saturation { low, high } = self.saturation;
        checks.require(low < high, Kind::Config, "saturation", || {
            format!("is [{low}, {high}], needs a lower bound below the upper one")
        });
        checks.finish()
    }
}
