//! What an audit warns of, and from where on.
//!
//! A verdict names a cause. What follows from a cause that is named already (a shift or a bias makes every sequence weight worthless) is said
//! in its line, not raised again.

/// What may be wrong with a step file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Numbers at counted tokens are NaN or infinite.
    NonFinite,
    /// Log-probabilities went through bf16.
    Bf16Logprobs,
    /// The rollout's log-probabilities are of a distribution cut to top-p or top-k and renormalised.
    KeptMassBias,
    /// The rollout's log-probabilities are those of the neighbouring token.
    ShiftedLogprobs,
    /// The sequences' importance weights leave almost no sample.
    LargeMismatch,
    /// Recorded experts are those of the neighbouring token.
    RoutesShiftedByToken,
    /// Recorded experts are those of the neighbouring layer.
    RoutesShiftedByLayer,
    /// Rows name an expert twice, or one that does not exist; layers hold nothing but zeros.
    BadExperts,
    /// The last row of the sequences was not recorded.
    MissingLastRow,
}

/// A share of values that bf16 could hold from which on all of them went through it; below this many values nothing is said.
pub const BF16_SHARE: f64 = 0.99;
/// Fewer tokens than this say nothing about a distribution.
pub const FEWEST: usize = 64;
/// A bias has the same sign at so many tokens, and a median (in nats) above the second number.
pub const BIASED_SHARE: f64 = 0.95;
/// See [`BIASED_SHARE`].
pub const BIASED_MEDIAN: f64 = 5e-3;
/// By how much a neighbour must fit better than the place itself: of a correlation, of a mean overlap.
pub const SHIFT: f64 = 0.2;
/// The share of sequences without a last row.
pub const LAST_ROWS: f64 = 0.5;
/// The effective sample size of sequence weights, over the sequences.
pub const SAMPLE_SIZE: f64 = 0.1;

impl Kind {
    /// Its name in verdicts.
    pub fn name(self) -> &'static str {
        match self {
            Kind::NonFinite => "non-finite values at counted tokens",
            Kind::Bf16Logprobs => "bf16 log-probabilities",
            Kind::KeptMassBias => "kept-mass bias",
            Kind::ShiftedLogprobs => "log-probabilities shifted by one",
            Kind::LargeMismatch => "mismatch large for sequence weights",
            Kind::RoutesShiftedByToken => "routes shifted by one token",
            Kind::RoutesShiftedByLayer => "routes shifted by one layer",
            Kind::BadExperts => "duplicate or out-of-range experts, all-zero layers",
            Kind::MissingLastRow => "missing last row",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Kind::NonFinite => "find out which kernel made them; until then choose a rule with --nonfinite",
            Kind::Bf16Logprobs => {
                "keep log-probabilities in f32 from the log-softmax to the loss: rounding is as large as GSPO's window"
            }
            Kind::KeptMassBias => {
                "have the engine return log-probabilities before top-p, top-k and min-p, or add the logarithm of the kept mass"
            }
            Kind::ShiftedLogprobs => {
                "row u must belong to the position that predicts tokens[u]: undo the shift where the file is made"
            }
            Kind::LargeMismatch => {
                "weigh tokens, or the geometric mean of a sequence; look at the engine's precision and kernels"
            }
            Kind::RoutesShiftedByToken => "row u must hold the experts of the position that predicts tokens[u]",
            Kind::RoutesShiftedByLayer => {
                "map the engine's layers to the model's: dense layers have no router and no place in the file"
            }
            Kind::BadExperts => {
                "a replay of such rows is refused: record again, or mark them as not recorded (all bits one)"
            }
            Kind::MissingLastRow => {
                "the engine records no row for the last token it samples: mark it as not recorded, the gate then chooses"
            }
        }
    }
}

/// A verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Danger {
    /// What is wrong.
    pub kind: Kind,
    /// With which tensor.
    pub tensor: &'static str,
    /// The number that says so.
    pub statistic: f64,
    /// What it was held against.
    pub threshold: f64,
    /// What was found, in words.
    pub found: String,
}
