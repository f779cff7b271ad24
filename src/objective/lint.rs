//! Legal, and probably not meant.

use std::fmt;

use super::{Aggregation, Cap, Config, Variant};

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
                    "aggregation {aggregation:?}: GSPO is defined by SeqMeanTokenMean, others weigh segments by length"
                )
            }
            Warning::DeltaInsideWindow { delta, upper } => {
                write!(f, "delta {delta} is below 1 + clip_high = {upper}, so it bounds positive advantages as well")
            }
            Warning::NoSaturation => {
                f.write_str("saturation: without an upper bound a log-ratio above 88.7 makes the loss infinite")
            }
        }
    }
}

/// From here on a segment's window is one meant for tokens, and below the second a token's one meant for segments.
const WIDE: f64 = 0.05;
const NARROW: f64 = 0.005;

impl Config {
    /// What about this configuration is legal and unusual.
    pub fn lint(&self) -> Vec<Warning> {
        let clip = self.variant.clip();
        let sequence = self.variant.is_sequence_level();
        let mut warnings = Vec::new();
        if sequence && clip.high >= WIDE {
            warnings.push(Warning::WideSequenceWindow { clip_high: clip.high });
        }
        if !sequence && clip.high < NARROW {
            warnings.push(Warning::NarrowTokenWindow { clip_high: clip.high });
        }
        if matches!(self.variant, Variant::Gspo(_) | Variant::GspoToken(_))
            && self.aggregation != Aggregation::SeqMeanTokenMean
        {
            warnings.push(Warning::SequenceAggregation(self.aggregation));
        }
        if let Cap::Delta(delta) = clip.cap
            && delta < 1.0 + clip.high
        {
            warnings.push(Warning::DeltaInsideWindow { delta, upper: 1.0 + clip.high });
        }
        if self.saturation.high > 88.0 {
            warnings.push(Warning::NoSaturation);
        }
        warnings
    }
}
