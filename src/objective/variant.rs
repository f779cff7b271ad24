//! What a token or a segment is worth.

/// The policy's term. The table is at [the module](super).
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
    /// REINFORCE with the clamped ratio as a constant weight (2506.13585).
    Cispo(Cispo),
    /// The geometric mean of the clipped ratios of a segment (2507.20673). The window is one of the logarithm, [−low, high]; token weights
    /// enter as their geometric mean. A segment has one advantage: where its counted tokens have several, that is the fault
    /// [`VaryingAdvantage`](crate::error::FaultCode::VaryingAdvantage), and their mean is taken.
    Gmpo(Window),
    /// A sigmoid of the ratio in place of the window (2511.20347).
    Sapo(Sapo),
    /// REINFORCE with a gamma-shaped weight of the segment's whole ratio, without length normalisation (2602.10693). Token weights are
    /// factors of that ratio.
    Vespo(Vespo),
    /// REINFORCE with the ratio as a constant, inside a trust region of the token's probability (2602.04879).
    Dppo(Dppo),
    /// −A l, to be weighted by [`Batch::weights`](super::Batch::weights) (verl's bypass mode).
    ReinforceIs,
    /// −A M exp(l − q) l with the ratio to the rollout as a constant, where M is what PPO's window passes (2512.01374).
    MiniRl(Window),
    /// −A l for A > 0, −A min(ρ, 1) l else, the ratio being a constant (2503.14286).
    Topr,
    /// −A l + τ/2 Δ² (Kimi 1.5; verl's DRO).
    SquarePenalty {
        /// τ > 0.
        tau: f64,
    },
    /// −A l.
    Gpg,
    /// −A l with the factors that [`correction`](crate::correction) makes under
    /// [`SelfNormalisedAttached`](crate::correction::Weight::SelfNormalisedAttached) in the place of A: the gradient of −Σ w̄_j R_j, the
    /// self-normalised estimate of a group's mean reward, weights w̄ of the ratio to the rollout and their derivative included. Needs
    /// [`Anchor::Rollout`](super::Anchor::Rollout), one A per segment and a coefficient that the segments of a group share. The value of the
    /// objective is [`expected_rewards`](crate::correction::Output::expected_rewards); the loss is that of −A l.
    SnisAttached,
    /// −A min(ρ, 1) l with the ratio as a constant (ROLL).
    TisLoss,
    /// −A ρ, and λ|Δ| more for the tokens of [`Batch::chosen`](super::Batch::chosen) (2505.22617).
    KlCov {
        /// λ ≥ 0.
        penalty: f64,
    },
}

impl Variant {
    /// Its window and cap, if it has the clip of PPO.
    pub fn clip(&self) -> Option<Clip> {
        match *self {
            Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => Some(clip),
            _ => None,
        }
    }

    /// True where the ratio is the segment's.
    pub fn is_sequence_level(&self) -> bool {
        match self {
            Variant::Gspo(_) | Variant::GspoToken(_) | Variant::Gmpo(_) | Variant::Vespo(_) => true,
            Variant::Cispo(Cispo { level, .. }) | Variant::Sapo(Sapo { level, .. }) => *level == RatioLevel::Sequence,
            _ => false,
        }
    }

    /// True where a segment's sums say what its policy term is worth.
    pub(crate) fn is_valued_by_segment(&self) -> bool {
        self.is_sequence_level() && !matches!(self, Variant::Cispo(_) | Variant::Vespo(_))
    }

    /// True where token weights are part of the ratio and multiply nothing else.
    pub(crate) fn folds_weights(&self) -> bool {
        matches!(self, Variant::Gmpo(_) | Variant::Vespo(_))
    }

    /// True where the length-normalised ratio of a segment is part of the term.
    pub(crate) fn has_sequence_ratio(&self) -> bool {
        self.is_sequence_level() && !self.folds_weights()
    }

    /// True where a segment's tokens share one gradient, whatever they are.
    pub(crate) fn shares_gradient(&self) -> bool {
        matches!(self, Variant::Gspo(_)) || matches!(self, Variant::Sapo(_)) && self.is_sequence_level()
    }

    /// True where the term is −A l and no ratio has a part in it.
    pub(crate) fn is_linear(&self) -> bool {
        matches!(self, Variant::ReinforceIs | Variant::Gpg | Variant::SnisAttached)
    }

    /// True where the token's own Δ decides something.
    pub(crate) fn uses_token_ratio(&self) -> bool {
        !self.has_sequence_ratio() && !self.is_linear() && !matches!(self, Variant::Vespo(_))
    }
}

/// At which level a ratio is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RatioLevel {
    /// ρ, of the token.
    #[default]
    Token,
    /// s, of the segment, length-normalised.
    Sequence,
}

/// A window around 1, or around 0 for a logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Window {
    /// εl ≥ 0.
    pub low: f64,
    /// εh ≥ 0.
    pub high: f64,
}

impl Window {
    /// [−low, high] around its centre.
    pub const fn new(low: f64, high: f64) -> Window {
        Window { low, high }
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

/// [`Variant::Cispo`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cispo {
    /// What the ratio is clamped to.
    pub cap: CispoCap,
    /// Whose ratio.
    pub level: RatioLevel,
    /// A window outside which no gradient passes, by PPO's rule (equation 7; ROLL).
    pub unified_mask: Option<Window>,
}

impl Cispo {
    /// Of tokens, without the mask of equation 7.
    pub const fn new(cap: CispoCap) -> Cispo {
        Cispo { cap, level: RatioLevel::Token, unified_mask: None }
    }
}

/// The two conventions for the numbers that CISPO is configured with. They differ by 1, so a bare number is not accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum CispoCap {
    /// [max(0, 1 − low), 1 + high] (verl, slime, NeMo-RL, ROLL, SkyRL).
    Window(Window),
    /// [0, max] (TRL, Liger, Unsloth, ms-swift: their `epsilon_high` is the cap itself).
    Raw {
        /// The largest weight, above 0.
        max: f64,
    },
}

impl CispoCap {
    /// The lowest and the highest weight.
    pub fn range(&self) -> (f64, f64) {
        match *self {
            CispoCap::Window(Window { low, high }) => ((1.0 - low).max(0.0), 1.0 + high),
            CispoCap::Raw { max } => (0.0, max),
        }
    }
}

/// [`Variant::Sapo`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sapo {
    /// The sigmoid's steepness for A > 0.
    pub tau_positive: f64,
    /// And for A < 0.
    pub tau_negative: f64,
    /// Whose ratio.
    pub level: RatioLevel,
}

impl Default for Sapo {
    /// 1.0 and 1.05, of tokens, as in the paper.
    fn default() -> Sapo {
        Sapo { tau_positive: 1.0, tau_negative: 1.05, level: RatioLevel::Token }
    }
}

/// [`Variant::Vespo`]: φ = exp(λ + k·lw − λ·e^lw), 1 where the logarithm lw of the segment's ratio is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Vespo {
    /// (k, λ) for A ≥ 0.
    pub positive: (f64, f64),
    /// And for A < 0.
    pub negative: (f64, f64),
}

impl Default for Vespo {
    /// (2, 3) and (3, 2), as in the paper.
    fn default() -> Vespo {
        Vespo { positive: (2.0, 3.0), negative: (3.0, 2.0) }
    }
}

/// [`Variant::Dppo`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dppo {
    /// How far apart two probabilities of a token are.
    pub divergence: Divergence,
    /// How far A < 0 may push a probability down.
    pub low: f64,
    /// How far A > 0 may push it up.
    pub high: f64,
    /// The largest ratio that weighs; +∞ for none.
    pub cap: f64,
}

/// How far the probability p of a token is from p₀, the old one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Divergence {
    /// |p − p₀| (equation 13).
    TotalVariation,
    /// KL of the coins p₀ and p (equation 14).
    Kl {
        /// Added to every probability (verl, SkyRL: 1e-8); 0 for the exact form, in which p = 1 counts as the largest f32 below it.
        epsilon: f64,
    },
}
