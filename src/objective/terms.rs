//! What stands in a loss beside the policy's term.

/// An estimate of the divergence from the reference policy, weighted by β and the token's coefficient. x = r − l.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Kl {
    /// β ≥ 0.
    pub beta: f64,
    /// The estimator.
    pub form: KlForm,
    /// The gradient is l − r whatever the value, clamped or not (verl's `+` forms).
    pub straight_through: bool,
    /// Bounds |x|, as verl does at 20. The gradient is 0 outside.
    pub input_clamp: Option<f64>,
    /// Bounds the magnitude of the value, as verl does at 10. The gradient is 0 outside.
    pub output_clamp: Option<f64>,
}

impl Kl {
    /// Without clamps.
    pub const fn new(beta: f64, form: KlForm) -> Kl {
        Kl { beta, form, straight_through: false, input_clamp: None, output_clamp: None }
    }
}

/// An estimator of KL(current ‖ reference).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum KlForm {
    /// l − r.
    K1,
    /// |l − r|.
    Abs,
    /// (l − r)²/2.
    K2,
    /// expm1(x) − x, never negative.
    K3,
    /// ρ times `K3`: unbiased in value and gradient (DeepSeek-V3.2; TRL's `use_bias_correction_kl`).
    K3IsToken,
    /// s times `K3`, where s moves with every token of the segment.
    K3IsSequence,
}

/// Which policy ratios are taken against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Anchor {
    /// [`Batch::old_logprobs`](super::Batch::old_logprobs).
    #[default]
    Old,
    /// [`Batch::rollout_logprobs`](super::Batch::rollout_logprobs), in place of the old ones. Correction weights are then refused: the ratio
    /// is the correction.
    Rollout,
}

/// What a token that [`Batch::keep`](super::Batch::keep) rejects loses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RejectionScope {
    /// The policy's term.
    #[default]
    PolicyTerm,
    /// The divergence, mismatch and entropy terms as well (verl, whose mask shrinks).
    AllTerms,
}

/// What denominators count where tokens were rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum DenominatorBasis {
    /// Every counted token (slime, AReaL, NeMo-RL, OpenRLHF).
    #[default]
    Original,
    /// The tokens that were kept (verl): n of a segment, and what [`Denominators::Local`](super::Denominators::Local) counts.
    AfterRejection,
}
