//! What a correction computes.

use crate::error::{Checks, Kind, Result};
pub use crate::objective::NonFinite;

/// Most rejections of a configuration.
pub const MAX_REJECTIONS: usize = crate::abi::MOERL_CORRECTION_OPTIONS as usize;
/// Most rejections that look at tokens: there are no more kinds.
pub const MAX_TOKEN_REJECTIONS: usize = crate::abi::MOERL_CORRECTION_TOKEN_OPTIONS as usize;
/// Most proposal policies of [`Weight::MultipleImportance`].
pub const MAX_PROPOSALS: usize = crate::abi::MOERL_CORRECTION_PROPOSALS as usize;
/// Most repetitions of the old log-probabilities.
pub const MAX_REPEATS: usize = crate::abi::MOERL_CORRECTION_REPEATS as usize;

/// A correction. Plain data; [`validate`](Config::validate) names every fault.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// What a token or a segment counts for.
    pub weight: Weight,
    /// What is left out: whatever one of these rejects. At most [`MAX_REJECTIONS`].
    pub rejections: Vec<Rejection>,
    /// Divide the weights by their mean over all ranks, after truncation: over tokens for the levels token and turn, else over segments. A
    /// mean of at most 1e-8 divides nothing (verl, slime).
    pub batch_normalise: bool,
    /// Bounds X, after it was summed, where its exponential is taken: ±20 (verl, SkyRL). Positive; +∞ for none. Weights that are normalised
    /// or compared by their logarithms are not bounded, but for those that the gradient flows through.
    pub saturation: f32,
    /// How several old log-probabilities of a token become one.
    pub repeats: Repeats,
    /// What becomes of NaN and infinity at counted tokens.
    pub nonfinite: NonFinite,
    /// exp δ outside these bounds is called catastrophic in [`Diagnostics`](super::Diagnostics).
    pub catastrophic: (f64, f64),
    /// Make the planes that [`Output::diagnostics`](super::Output::diagnostics) needs.
    pub diagnostics: bool,
}

/// The step at which log-ratios become one number X.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Level {
    /// X_u = δ_u.
    #[default]
    Token,
    /// The mean of δ over a turn (ROLL's "segment").
    Turn,
    /// X = Σ m δ over the segment: the product of its tokens' ratios. **It collapses with length**: at a standard deviation of .02 per
    /// token the mean of min(w, 2) is 1.00, .955, .50, .11 and the effective fraction of the samples .96, .67, .09, .009 at 100, 1k, 8k,
    /// 32k tokens. Field reports agree (NeMo-RL #2269, TRL #5814).
    Sequence,
    /// X = Σ m δ / n: the geometric mean of its tokens' ratios.
    Geometric,
}

/// The weight w of a token, or W of a segment, from x = exp X. Constants of the gradient, but for the one that says otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Weight {
    /// 1.
    #[default]
    One,
    /// min(x, max): truncated importance sampling, TIS (verl's 2; OpenRLHF, slime).
    Truncated {
        /// The level.
        level: Level,
        /// C > 0.
        max: f64,
    },
    /// clamp(x, low, high) (slime).
    Clamped {
        /// The level.
        level: Level,
        /// The lower bound, ≥ 0.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// x inside [low, high], else 0: IcePop, "MIS band" (reference .5–5; TRL: sequence, above 3 left out).
    Band {
        /// The level.
        level: Level,
        /// The lower bound, ≥ 0.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// exp δ_u, not truncated, where exp(Σ m δ / n) of the segment is inside [low, high], else 0 (OpenRLHF, NeMo-RL: .999–1.002).
    SequenceMasked {
        /// The lower bound, ≥ 0.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// Self-normalised in each group: W_i = K exp(X_i − M) / Σ_j exp(X_j − M), M the group's largest X, K its members that are kept and
    /// have a token that counts. The mean is 1; biased by O(1/K). A group whose X are all −∞ gets 1.
    SelfNormalised {
        /// `Sequence` or `Geometric`.
        level: Level,
        /// Write the advantages R_i − b_i with the leave-one-out baseline b_i = Σ_{j≠i} w_j R_j / Σ_{j≠i} w_j, 0 in a group of one.
        leave_one_out: bool,
    },
    /// As `SelfNormalised` at the level `Sequence`, but not a constant: the gradient flows through the weights. With w̄ = W/K the objective of a
    /// group is −Σ w̄_j R_j, its gradient at a counted token of segment i is −w̄_i (R_i − Σ w̄_j R_j), and
    /// [`Output::advantages`](super::Output::advantages) are the factor w̄_i (R_i − Σ w̄_j R_j), for
    /// [`Variant::SnisAttached`](crate::objective::Variant::SnisAttached). X is of the current policy against the rollout: hand l over in the place
    /// of o. It saturates as [`Config::saturation`] says, in weights and gradient alike: a segment beyond has the factor 0. Biased by O(1/K).
    SelfNormalisedAttached,
    /// Metropolis–independence sampling: see [the module](super#metropolisindependence-sampling). No threshold.
    Metropolis {
        /// `Sequence` (right in theory, few accepted where segments are long), `Geometric` (a tempered target, a heuristic), or `Token`:
        /// then w_u = [U_u < min(1, exp δ_u)], the test of speculative decoding, and the mode is not looked at.
        level: Level,
        /// What W is.
        mode: Metropolis,
        /// Of the uniform numbers; there is no default. Not looked at where [`Batch::uniforms`](super::Batch::uniforms) are given.
        seed: u64,
    },
    /// Balance heuristic over M proposals: log W_i = lp_i − LSE_j(log α_j + Q_ij), with sums of log-probabilities over the segment under the
    /// target, lp, and the proposals, Q. W is at most p/(α q) of the proposal that it came from.
    MultipleImportance {
        /// α: the share of the samples that each proposal made; positive, adding up to 1. At most [`MAX_PROPOSALS`].
        proportions: Vec<f64>,
    },
}

/// What the weight of a [`Weight::Metropolis`] segment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Metropolis {
    /// 1 and the rejections spent on the segment, 0 where it was rejected. Leaves the target distribution invariant.
    #[default]
    Multiplicity,
    /// 1 where it was accepted, else 0. **Not** invariant for the target.
    Mask,
}

/// An estimate of a divergence per token, from δ clamped to ±20 (here only, as verl does).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Divergence {
    /// δ; keeps ln low ≤ X ≤ ln high.
    K1 {
        /// The lower bound as a ratio, ≥ 0.
        low: f64,
        /// The upper bound as a ratio.
        high: f64,
    },
    /// δ²/2; keeps what is at most this.
    K2(f64),
    /// expm1(δ) − δ; keeps what is at most this.
    K3(f64),
}

/// How the tokens' divergences become what is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Over {
    /// Not at all: each token is kept or rejected.
    Token,
    /// Their sum over the segment.
    Sum,
    /// Their mean over the segment.
    Mean,
    /// Their maximum over the segment; not for `K1`. Trust-region masking (2512.23075) with `K2` or `K3`.
    Max,
}

/// A rule that leaves tokens, turns or segments out.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Rejection {
    /// Keeps low ≤ exp X ≤ high. At the geometric level: Geo-RS (verl's `seq_mean_k1`; reference .999–1.001).
    Band {
        /// The level.
        level: Level,
        /// The lower bound, ≥ 0.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// Keeps what diverges little.
    Divergence {
        /// The estimate and its bounds.
        estimate: Divergence,
        /// Of what.
        over: Over,
    },
    /// Keeps a segment none of whose counted tokens has exp δ < low (slime's `rs_veto_threshold`) or > high (SkyRL's outlier mask).
    Veto {
        /// The lower bound, ≥ 0; 0 for none.
        low: f64,
        /// The upper bound; +∞ for none.
        high: f64,
    },
    /// Off-policy sequence masking (DeepSeek-V3.2 eq. 9): keeps a segment with A ≥ 0 or mean_m(q − l) ≤ τ. The mean is −X/n, with
    /// [`Batch::current_log_ratio`](super::Batch::current_log_ratio) −(D + X)/n. Of an A per token the sign of Σ m A counts.
    OffPolicySequence {
        /// τ.
        threshold: f64,
    },
}

impl Rejection {
    /// verl's `k1`, which is of −δ: its bounds apply to q/o. The same test here has them inverted and exchanged.
    pub fn verl_k1(over: Over, low: f64, high: f64) -> Rejection {
        Rejection::Divergence { estimate: Divergence::K1 { low: 1.0 / high, high: 1.0 / low }, over }
    }

    /// True where tokens are kept or rejected one by one.
    pub fn is_of_tokens(&self) -> bool {
        matches!(self, Rejection::Band { level: Level::Token, .. } | Rejection::Divergence { over: Over::Token, .. })
    }

    pub(crate) fn is_of_turns(&self) -> bool {
        matches!(self, Rejection::Band { level: Level::Turn, .. })
    }
}

/// How R old log-probabilities of a token become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Repeats {
    /// LSE_r(o_r) − ln R: the mean of the probabilities.
    #[default]
    LogMean,
    /// The mean of the log-probabilities.
    Mean,
}

/// A plane of the sums that [`correction_partial`](crate::Backend::correction_partial) makes: one f64 per piece, which is a segment or, with
/// turns, a turn. All but the last two are added up over ranks, those are maxima.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Plane {
    /// Σ m δ.
    LogRatio = crate::abi::MOERL_CORRECTION_LOG_RATIO,
    /// n = Σ m, a whole number, like the next ones.
    Count = crate::abi::MOERL_CORRECTION_COUNT,
    /// Counted tokens with an input that is NaN or infinite.
    NonFinite = crate::abi::MOERL_CORRECTION_NONFINITE,
    /// Counted tokens that no rejection of tokens rejects.
    Kept = crate::abi::MOERL_CORRECTION_KEPT,
    /// Counted tokens that the first rejection of tokens rejects.
    Rejected0 = crate::abi::MOERL_CORRECTION_REJECTED,
    /// Those that the second one rejects.
    Rejected1 = crate::abi::MOERL_CORRECTION_REJECTED + 1,
    /// Those that the third one rejects.
    Rejected2 = crate::abi::MOERL_CORRECTION_REJECTED + 2,
    /// Those that the fourth one rejects.
    Rejected3 = crate::abi::MOERL_CORRECTION_REJECTED + 3,
    /// Σ m clamp(δ).
    K1 = crate::abi::MOERL_CORRECTION_K1,
    /// Σ m clamp(δ)²/2.
    K2 = crate::abi::MOERL_CORRECTION_K2,
    /// Σ m (expm1(δ) − δ), δ clamped.
    K3 = crate::abi::MOERL_CORRECTION_K3,
    /// Σ m A.
    Advantage = crate::abi::MOERL_CORRECTION_ADVANTAGE,
    /// Σ m o.
    Old = crate::abi::MOERL_CORRECTION_OLD,
    /// Σ m q.
    Rollout = crate::abi::MOERL_CORRECTION_ROLLOUT,
    /// Σ m w of a weight of tokens.
    Weight = crate::abi::MOERL_CORRECTION_WEIGHT,
    /// Σ m exp δ, saturated.
    RawWeight = crate::abi::MOERL_CORRECTION_RAW_WEIGHT,
    /// Σ m (expm1(δ) − δ) over tokens that no rejection of tokens rejects.
    KeptK3 = crate::abi::MOERL_CORRECTION_KEPT_K3,
    /// max δ.
    Max = crate::abi::MOERL_CORRECTION_MAX,
    /// max −δ.
    MaxNegative = crate::abi::MOERL_CORRECTION_MAX_NEGATIVE,
}

impl Plane {
    /// All planes, in the order they have in memory.
    pub const ALL: [Plane; 19] = [
        Plane::LogRatio,
        Plane::Count,
        Plane::NonFinite,
        Plane::Kept,
        Plane::Rejected0,
        Plane::Rejected1,
        Plane::Rejected2,
        Plane::Rejected3,
        Plane::K1,
        Plane::K2,
        Plane::K3,
        Plane::Advantage,
        Plane::Old,
        Plane::Rollout,
        Plane::Weight,
        Plane::RawWeight,
        Plane::KeptK3,
        Plane::Max,
        Plane::MaxNegative,
    ];

    /// True for a maximum, false for a sum.
    pub fn is_maximum(self) -> bool {
        matches!(self, Plane::Max | Plane::MaxNegative)
    }
}

impl Default for Config {
    /// No weight and no rejection: statistics alone.
    fn default() -> Config {
        Config {
            weight: Weight::One,
            rejections: Vec::new(),
            batch_normalise: false,
            saturation: 20.0,
            repeats: Repeats::default(),
            nonfinite: NonFinite::default(),
            catastrophic: (1e-4, 1e4),
            diagnostics: false,
        }
    }
}

impl Config {
    /// The defaults around a weight.
    pub fn new(weight: Weight) -> Config {
        Config { weight, ..Config::default() }
    }

    /// Truncated importance weights.
    pub fn tis(level: Level, max: f64) -> Config {
        Config::new(Weight::Truncated { level, max })
    }

    /// The same with one more rejection.
    #[must_use]
    pub fn with_rejection(mut self, rejection: Rejection) -> Config {
        self.rejections.push(rejection);
        self
    }

    /// The same with diagnostics.
    #[must_use]
    pub fn with_diagnostics(mut self) -> Config {
        self.diagnostics = true;
        self
    }

    /// Where the weight is formed.
    pub fn level(&self) -> Level {
        match self.weight {
            Weight::One | Weight::SequenceMasked { .. } => Level::Token,
            Weight::Truncated { level, .. }
            | Weight::Clamped { level, .. }
            | Weight::Band { level, .. }
            | Weight::SelfNormalised { level, .. }
            | Weight::Metropolis { level, .. } => level,
            Weight::SelfNormalisedAttached | Weight::MultipleImportance { .. } => Level::Sequence,
        }
    }

    /// True where the weight is the segment's, so that [`Output::segment_weights`](super::Output::segment_weights) is all of it.
    pub fn is_segment_level(&self) -> bool {
        matches!(self.level(), Level::Sequence | Level::Geometric)
    }

    /// True where [`Output::advantages`](super::Output::advantages) are written: from rewards, by groups.
    pub fn makes_advantages(&self) -> bool {
        matches!(self.weight, Weight::SelfNormalised { leave_one_out: true, .. } | Weight::SelfNormalisedAttached)
    }

    /// True where a group's weights are normalised, so that there is a mean reward of the group.
    pub(crate) fn normalises_groups(&self) -> bool {
        matches!(self.weight, Weight::SelfNormalised { .. } | Weight::SelfNormalisedAttached)
    }

    pub(crate) fn needs_turns(&self) -> bool {
        self.level() == Level::Turn || self.rejections.iter().any(Rejection::is_of_turns)
    }

    pub(crate) fn needs_groups(&self) -> bool {
        match self.weight {
            Weight::SelfNormalised { .. } | Weight::SelfNormalisedAttached => true,
            Weight::Metropolis { level, .. } => level != Level::Token,
            _ => false,
        }
    }

    pub(crate) fn token_rejections(&self) -> usize {
        self.rejections.iter().filter(|rejection| rejection.is_of_tokens()).count()
    }

    /// True where nothing but a token's own ratio decides about it.
    pub(crate) fn is_of_tokens_alone(&self) -> bool {
        self.level() == Level::Token
            && !matches!(self.weight, Weight::SequenceMasked { .. })
            && self.rejections.iter().all(Rejection::is_of_tokens)
            && self.nonfinite != NonFinite::DropSegment
            && !self.batch_normalise
    }

    /// True where the batch normalises weights of tokens that their segment may set to 0: only `finish` knows their sum.
    pub(crate) fn weighs_tokens_by_segments(&self) -> bool {
        let may_be_nothing =
            matches!(self.weight, Weight::SequenceMasked { .. }) || self.nonfinite == NonFinite::DropSegment;
        self.batch_normalise && self.level() == Level::Token && may_be_nothing
    }

    /// The planes that the phases of this correction exchange, in the order they have in memory.
    pub fn planes(&self) -> Vec<Plane> {
        Plane::ALL.into_iter().filter(|&plane| self.has_plane(plane)).collect()
    }

    fn has_plane(&self, plane: Plane) -> bool {
        let sums = |wanted: fn(Divergence) -> bool| {
            self.rejections.iter().any(|rejection| match *rejection {
                Rejection::Divergence { estimate, over } => matches!(over, Over::Sum | Over::Mean) && wanted(estimate),
                _ => false,
            })
        };
        match plane {
            Plane::LogRatio | Plane::Count | Plane::NonFinite | Plane::Kept => true,
            Plane::Rejected0 | Plane::Rejected1 | Plane::Rejected2 | Plane::Rejected3 => {
                self.token_rejections() > (plane as u32 - Plane::Rejected0 as u32) as usize
            }
            Plane::K1 => sums(|estimate| matches!(estimate, Divergence::K1 { .. })),
            Plane::K2 => sums(|estimate| matches!(estimate, Divergence::K2(_))),
            Plane::K3 => sums(|estimate| matches!(estimate, Divergence::K3(_))),
            Plane::Advantage => self.rejections.iter().any(|r| matches!(r, Rejection::OffPolicySequence { .. })),
            Plane::Weight => self.diagnostics || self.weighs_tokens_by_segments(),
            Plane::Old | Plane::Rollout | Plane::RawWeight | Plane::KeptK3 => self.diagnostics,
            Plane::Max | Plane::MaxNegative => {
                self.diagnostics
                    || self.rejections.iter().any(|rejection| {
                        matches!(rejection, Rejection::Veto { .. } | Rejection::Divergence { over: Over::Max, .. })
                    })
            }
        }
    }

    /// The bounds of the weight as ratios, where it has bounds.
    pub(crate) fn weight_bounds(&self) -> (f64, f64) {
        match self.weight {
            Weight::Truncated { max, .. } => (0.0, max),
            Weight::Clamped { low, high, .. }
            | Weight::Band { low, high, .. }
            | Weight::SequenceMasked { low, high } => (low, high),
            _ => (0.0, f64::INFINITY),
        }
    }

    /// Beyond these a raw weight counts as above or below: of a truncated one C and 1/C.
    pub(crate) fn reported_bounds(&self) -> (f64, f64) {
        match self.weight {
            Weight::Truncated { max, .. } => (1.0 / max, max),
            _ => self.weight_bounds(),
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range, and for options that exclude each other.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        self.check_weight(&mut checks);
        for rejection in &self.rejections {
            check_rejection(&mut checks, rejection);
        }
        let count = self.rejections.len();
        checks.require(count <= MAX_REJECTIONS, Kind::Config, "rejections", || {
            format!("are {count}, at most {MAX_REJECTIONS} are supported")
        });
        let count = self.token_rejections();
        checks.require(count <= MAX_TOKEN_REJECTIONS, Kind::Config, "rejections", || {
            format!("of tokens are {count}, at most {MAX_TOKEN_REJECTIONS} are supported")
        });
        checks.require(self.saturation > 0.0, Kind::Config, "saturation", || {
            format!("is {}, needs a number above 0", self.saturation)
        });
        bounds(&mut checks, "catastrophic", self.catastrophic.0, self.catastrophic.1);
        let is_normalised = matches!(
            self.weight,
            Weight::Truncated { .. } | Weight::Clamped { .. } | Weight::Band { .. } | Weight::SequenceMasked { .. }
        );
        checks.require(!self.batch_normalise || is_normalised, Kind::Config, "batch_normalise", || {
            format!("does not go with {:?}", self.weight)
        });
        checks.finish()
    }

    fn check_weight(&self, checks: &mut Checks) {
        match &self.weight {
            Weight::One | Weight::SelfNormalisedAttached => {}
            &Weight::Truncated { max, .. } => {
                checks.require(max > 0.0 && max.is_finite(), Kind::Config, "max", || {
                    format!("is {max}, needs a finite number above 0")
                });
            }
            &Weight::Clamped { low, high, .. }
            | &Weight::Band { low, high, .. }
            | &Weight::SequenceMasked { low, high } => bounds(checks, "weight", low, high),
            Weight::SelfNormalised { level, .. } => {
                let is_of_segments = matches!(level, Level::Sequence | Level::Geometric);
                checks.require(is_of_segments, Kind::Config, "level", || {
                    format!("is {level:?}, but weights normalised in a group are of segments")
                });
            }
            Weight::Metropolis { level, .. } => {
                checks.require(*level != Level::Turn, Kind::Config, "level", || {
                    "is Turn, but the Metropolis test is of tokens or segments".into()
                });
            }
            Weight::MultipleImportance { proportions } => {
                let sum: f64 = proportions.iter().sum();
                let are_shares = (1..=MAX_PROPOSALS).contains(&proportions.len())
                    && proportions.iter().all(|&share| share > 0.0)
                    && (sum - 1.0).abs() <= 1e-9;
                checks.require(are_shares, Kind::Config, "proportions", || {
                    format!("are {proportions:?}, need 1 to {MAX_PROPOSALS} positive numbers that add up to 1")
                });
            }
        }
    }
}

fn bounds(checks: &mut Checks, name: &'static str, low: f64, high: f64) {
    checks.require(low >= 0.0 && low <= high && high > 0.0, Kind::Config, name, || {
        format!("has bounds {low} and {high}, needs 0 ≤ low ≤ high and high above 0")
    });
}

fn check_rejection(checks: &mut Checks, rejection: &Rejection) {
    match *rejection {
        Rejection::Band { low, high, .. } => bounds(checks, "band", low, high),
        Rejection::Veto { low, high } => bounds(checks, "veto", low, high),
        Rejection::OffPolicySequence { threshold } => {
            checks.require(!threshold.is_nan(), Kind::Config, "off_policy_sequence", || "is NaN".into());
        }
        Rejection::Divergence { estimate, over } => match estimate {
            Divergence::K1 { low, high } => {
                bounds(checks, "k1", low, high);
                checks.require(over != Over::Max, Kind::Config, "k1", || {
                    "has no maximum over a segment: it has both signs".into()
                });
            }
            Divergence::K2(threshold) | Divergence::K3(threshold) => {
                checks.require(threshold >= 0.0, Kind::Config, "divergence", || {
                    format!("has the threshold {threshold}, needs at least 0")
                });
            }
        },
    }
}
