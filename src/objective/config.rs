//! What an objective computes.

use super::{
    Anchor, Cap, Cispo, CispoCap, Clip, DenominatorBasis, Divergence, Dppo, Kl, KlForm, RejectionScope, Sapo, Variant,
    Vespo, Window,
};
use crate::error::{Checks, Kind, Result};

/// An objective. Plain data; [`validate`](Config::validate) names every fault, [`lint`](Config::lint) what is legal and unusual.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// The policy's term.
    pub variant: Variant,
    /// What its ratios are taken against.
    pub anchor: Anchor,
    /// The divergence from the reference policy, if it has a place in the loss.
    pub kl: Option<Kl>,
    /// κ ≥ 0 of the term κ(l − q)², which draws the policy to the one that the rollout engine runs (prime-rl).
    pub mismatch_penalty: f64,
    /// η ≥ 0 of the term −ηH. Its gradient is that of the entropy, [`Output::d_entropy`](super::Output::d_entropy).
    pub entropy_bonus: f64,
    /// What a rejected token loses.
    pub rejection: RejectionScope,
    /// Whether denominators count rejected tokens.
    pub denominator_basis: DenominatorBasis,
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
    /// S⁺ = Σ m w max(A, 0) over kept tokens; without w where [`Plane::Folded`] has it.
    PositiveAdvantage,
    /// S⁻ = Σ m w min(A, 0), likewise.
    NegativeAdvantage,
    /// Σ m [the token was kept], a whole number.
    Kept,
    /// K = Σ m k3.
    Kl,
    /// C = Σ m (Δ, clipped as the variant has it, + log w) over kept tokens.
    Folded,
    /// Σ m [an input of the token is NaN or infinite], a whole number.
    NonFinite,
}

impl Plane {
    /// All planes, in the order they have in memory.
    pub const ALL: [Plane; 8] = [
        Plane::LogRatio,
        Plane::Count,
        Plane::PositiveAdvantage,
        Plane::NegativeAdvantage,
        Plane::Kept,
        Plane::Kl,
        Plane::Folded,
        Plane::NonFinite,
    ];
}

impl Default for Config {
    /// GRPO with ±0.2.
    fn default() -> Config {
        Config::ppo_clip(0.2, 0.2)
    }
}

impl Config {
    /// The defaults around a variant. For [`Variant::SnisAttached`] the anchor is [`Anchor::Rollout`] and the aggregation
    /// [`Aggregation::TokenSum`], which leaves the sum over groups.
    pub fn new(variant: Variant) -> Config {
        let is_attached = variant == Variant::SnisAttached;
        Config {
            variant,
            anchor: if is_attached { Anchor::Rollout } else { Anchor::default() },
            kl: None,
            mismatch_penalty: 0.0,
            entropy_bonus: 0.0,
            rejection: RejectionScope::default(),
            denominator_basis: DenominatorBasis::default(),
            aggregation: if is_attached { Aggregation::TokenSum } else { Aggregation::default() },
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

    /// LUSPO (2602.05261): [`Variant::Gspo`] without the division by a segment's length, so that a token of a long answer weighs as much as
    /// one of a short one.
    pub fn luspo(clip_low: f64, clip_high: f64) -> Config {
        Config::gspo(clip_low, clip_high).with_aggregation(Aggregation::SeqMeanTokenSum)
    }

    /// [`Variant::Cispo`] of tokens with this cap.
    pub fn cispo(cap: CispoCap) -> Config {
        Config::new(Variant::Cispo(Cispo::new(cap)))
    }

    /// The same with another aggregation.
    #[must_use]
    pub fn with_aggregation(mut self, aggregation: Aggregation) -> Config {
        self.aggregation = aggregation;
        self
    }

    /// The same with a divergence from the reference policy.
    #[must_use]
    pub fn with_kl(mut self, kl: Kl) -> Config {
        self.kl = Some(kl);
        self
    }

    /// The same with a cap behind the window; a variant without the clip of PPO has none and stays as it is.
    #[must_use]
    pub fn with_cap(mut self, cap: Cap) -> Config {
        if let Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) = &mut self.variant {
            clip.cap = cap;
        }
        self
    }

    pub(crate) fn kl_form(&self) -> Option<KlForm> {
        self.kl.map(|kl| kl.form)
    }

    /// True where something of every token is added beside the policy's term.
    pub(crate) fn has_terms(&self) -> bool {
        self.kl.is_some() || self.mismatch_penalty != 0.0 || self.entropy_bonus != 0.0
    }

    /// True where q is read for its own sake.
    pub(crate) fn uses_rollout(&self) -> bool {
        self.mismatch_penalty != 0.0 || matches!(self.variant, Variant::MiniRl(_))
    }

    fn has_plane(&self, plane: Plane) -> bool {
        let variant = &self.variant;
        let with_sequence_kl = self.kl_form() == Some(KlForm::K3IsSequence);
        match plane {
            Plane::Count => true,
            Plane::LogRatio => variant.has_sequence_ratio() || with_sequence_kl,
            // Where s is known, so is whom it clips.
            Plane::PositiveAdvantage | Plane::NegativeAdvantage => {
                variant.is_valued_by_segment() || self.has_plane(Plane::LogRatio)
            }
            Plane::Kept => self.denominator_basis == DenominatorBasis::AfterRejection,
            Plane::Kl => with_sequence_kl,
            Plane::Folded => variant.folds_weights(),
            Plane::NonFinite => {
                variant.is_sequence_level() || with_sequence_kl || self.nonfinite == NonFinite::DropSegment
            }
        }
    }

    /// The planes that the phases of this objective exchange, in the order they have in memory.
    pub fn planes(&self) -> Vec<Plane> {
        Plane::ALL.into_iter().filter(|&plane| self.has_plane(plane)).collect()
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        validate_variant(&mut checks, &self.variant);
        if let Some(kl) = self.kl {
            let Kl { beta, input_clamp, output_clamp, .. } = kl;
            at_least_0(&mut checks, "kl_beta", beta);
            input_clamp.into_iter().for_each(|clamp| above_0(&mut checks, "kl_input_clamp", clamp));
            output_clamp.into_iter().for_each(|clamp| above_0(&mut checks, "kl_output_clamp", clamp));
        }
        at_least_0(&mut checks, "mismatch_penalty", self.mismatch_penalty);
        at_least_0(&mut checks, "entropy_bonus", self.entropy_bonus);
        above_0(&mut checks, "dp_scale", self.dp_scale);
        let Saturation { low, high } = self.saturation;
        checks.require(low < high, Kind::Config, "saturation", || {
            format!("is [{low}, {high}], needs a lower bound below the upper one")
        });
        if self.variant == Variant::SnisAttached {
            checks
                .require(self.anchor == Anchor::Rollout, Kind::Config, "anchor", || {
                    "is Old, but the weights of SnisAttached are of the ratio to the rollout: needs Rollout".into()
                })
                .require(self.aggregation != Aggregation::SeqMeanTokenMean, Kind::Config, "aggregation", || {
                    "is SeqMeanTokenMean, which divides by the length of each segment; SnisAttached needs a coefficient that the segments of a \
                     group share, as TokenSum or SeqMeanTokenSum"
                        .into()
                });
        }
        checks.finish()
    }
}

fn number(checks: &mut Checks, holds: bool, name: &'static str, value: f64, needed: &str) {
    checks.require(holds, Kind::Config, name, || format!("is {value:?}, needs {needed}"));
}

// Kernels have these numbers as f32: one that becomes infinite, or of which some divide by 0, would be another number there.

fn at_least_0(checks: &mut Checks, name: &'static str, value: f64) {
    let is_held = (value as f32).is_finite();
    number(checks, value >= 0.0 && is_held, name, value, "a finite number of at least 0, no larger than f32 holds");
}

fn above_0(checks: &mut Checks, name: &'static str, value: f64) {
    let is_held = (value as f32).is_normal();
    number(checks, value > 0.0 && is_held, name, value, "a finite number above 0 that f32 holds");
}

fn validate_window(checks: &mut Checks, Window { low, high }: Window) {
    at_least_0(checks, "clip_low", low);
    at_least_0(checks, "clip_high", high);
}

fn validate_variant(checks: &mut Checks, variant: &Variant) {
    match *variant {
        Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => {
            let Clip { low, high, cap } = clip;
            validate_window(checks, Window { low, high });
            match cap {
                Cap::None => {}
                Cap::Dual(c) => number(
                    checks,
                    c > 1.0 && (c as f32).is_finite(),
                    "dual_clip",
                    c,
                    "a finite number above 1 that f32 holds",
                ),
                Cap::Delta(d) => above_0(checks, "delta", d),
            }
        }
        Variant::Cispo(Cispo { cap, unified_mask, .. }) => {
            match cap {
                CispoCap::Window(window) => validate_window(checks, window),
                CispoCap::Raw { max } => above_0(checks, "cispo_max", max),
            }
            unified_mask.into_iter().for_each(|window| validate_window(checks, window));
        }
        Variant::Gmpo(window) | Variant::MiniRl(window) => validate_window(checks, window),
        Variant::Sapo(Sapo { tau_positive, tau_negative, .. }) => {
            above_0(checks, "tau_positive", tau_positive);
            above_0(checks, "tau_negative", tau_negative);
        }
        Variant::Vespo(Vespo { positive, negative }) => {
            for (k, lambda) in [positive, negative] {
                above_0(checks, "vespo_k", k);
                above_0(checks, "vespo_lambda", lambda);
            }
        }
        Variant::Dppo(Dppo { divergence, low, high, cap }) => {
            at_least_0(checks, "dppo_low", low);
            at_least_0(checks, "dppo_high", high);
            number(checks, cap > 0.0, "dppo_cap", cap, "a number above 0, infinite for none");
            if let Divergence::Kl { epsilon } = divergence {
                at_least_0(checks, "dppo_epsilon", epsilon);
            }
        }
        Variant::SquarePenalty { tau } => above_0(checks, "tau", tau),
        Variant::KlCov { penalty } => at_least_0(checks, "kl_cov_penalty", penalty),
        Variant::ReinforceIs | Variant::Topr | Variant::Gpg | Variant::SnisAttached | Variant::TisLoss => {}
    }
}
