//! Legal, and probably not meant.

use std::fmt;

use super::{Aggregation, Cap, Clip, Config, KlForm, Variant, Window};

/// Something about a [`Config`] that is allowed but seldom wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// A window for tokens around the ratio of a segment, which never leaves it.
    WideSequenceWindow {
        /// εh.
        clip_high: f64,
    },
    /// A window for segments around the ratio of a token, which leaves it at once.
    NarrowTokenWindow {
        /// εh.
        clip_high: f64,
    },
    /// GSPO is defined with 1/(B·n); other coefficients weigh segments by their length.
    SequenceAggregation(Aggregation),
    /// δ below 1 + εh lowers the bound for positive advantages as well.
    DeltaInsideWindow {
        /// δ.
        delta: f64,
        /// 1 + εh.
        upper: f64,
    },
    /// Without an upper bound the exponential overflows to infinity.
    NoSaturation,
    /// β = 0: the reference policy is read for its diagnostics alone.
    KlWithoutWeight,
    /// The gradient of `K1` is 1 at every token, wherever the reference is.
    KlWithoutDirection,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::WideSequenceWindow { clip_high } => write!(
                f,
                "clip_high {clip_high}: the ratio of a segment moves by 1e-4 to 1e-3, so this window never clips; the paper has 3e-4 and 4e-4"
            ),
            Warning::NarrowTokenWindow { clip_high } => {
                write!(f, "clip_high {clip_high}: the ratio of a token leaves so narrow a window at once; usual is 0.2")
            }
            Warning::SequenceAggregation(aggregation) => {
                write!(
                    f,
                    "aggregation {aggregation:?}: GSPO and GMPO are defined by SeqMeanTokenMean, others weigh segments by length (LUSPO means to, with SeqMeanTokenSum)"
                )
            }
            Warning::DeltaInsideWindow { delta, upper } => {
                write!(f, "delta {delta} is below 1 + clip_high = {upper}, so it bounds positive advantages as well")
            }
            Warning::NoSaturation => {
                f.write_str("saturation: without an upper bound a log-ratio above 88.7 makes the loss infinite")
            }
            Warning::KlWithoutWeight => f.write_str("kl: beta is 0, so the reference policy costs reads and changes nothing"),
            Warning::KlWithoutDirection => f.write_str(
                "kl: the gradient of K1 is 1 at every token and does not depend on the reference; K3, or straight_through, is what draws towards it",
            ),
        }
    }
}

/// From here on a segment's window is one meant for tokens, and below the second a token's one meant for segments.
const WIDE: f64 = 0.05;
const NARROW: f64 = 0.005;

impl Config {
    /// What about this configuration is legal and unusual.
    pub fn lint(&self) -> Vec<Warning> {
        let sequence = self.variant.is_sequence_level();
        let mut warnings = Vec::new();
        let window = match self.variant {
            Variant::PpoClip(Clip { low, high, .. })
            | Variant::Gspo(Clip { low, high, .. })
            | Variant::GspoToken(Clip { low, high, .. }) => Some(Window { low, high }),
            Variant::MiniRl(window) => Some(window),
            _ => None,
        };
        if let Some(Window { high, .. }) = window {
            if sequence && high >= WIDE {
                warnings.push(Warning::WideSequenceWindow { clip_high: high });
            }
            if !sequence && high < NARROW {
                warnings.push(Warning::NarrowTokenWindow { clip_high: high });
            }
        }
        if let Variant::Gspo(_) | Variant::GspoToken(_) | Variant::Gmpo(_) = self.variant
            && self.aggregation != Aggregation::SeqMeanTokenMean
        {
            warnings.push(Warning::SequenceAggregation(self.aggregation));
        }
        if let Some(Clip { high, cap: Cap::Delta(delta), .. }) = self.variant.clip()
            && delta < 1.0 + high
        {
            warnings.push(Warning::DeltaInsideWindow { delta, upper: 1.0 + high });
        }
        if self.saturation.high > 88.0 {
            warnings.push(Warning::NoSaturation);
        }
        if let Some(kl) = self.kl {
            if kl.beta == 0.0 {
                warnings.push(Warning::KlWithoutWeight);
            }
            if kl.form == KlForm::K1 && !kl.straight_through {
                warnings.push(Warning::KlWithoutDirection);
            }
        }
        warnings
    }
}
