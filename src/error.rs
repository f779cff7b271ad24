//! What can go wrong, as values.

use std::fmt;

/// The result of everything fallible here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation could not be done, or what the device found in its data.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arguments of a call contradict each other or the configuration; every fault found, nothing was queued.
    #[error("{}", join(.0))]
    Invalid(Vec<Problem>),
    /// Bad data that only the device could see, as the error word recorded it.
    #[error("{0}")]
    Data(Fault),
    /// Something that this machine lacks.
    #[error("{what}; {fix}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// The CUDA driver refused a call.
    #[error("{call}: CUDA error {code} ({name})")]
    Driver {
        /// The driver function.
        call: &'static str,
        /// Its numeric result.
        code: u32,
        /// The result's name.
        name: String,
    },
    /// The emulator found a kernel at fault.
    #[error("emulated kernel: {0}")]
    Emulation(String),
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// An [`Error::Invalid`] with one problem.
    pub fn invalid(kind: Kind, argument: &'static str, message: impl Into<String>) -> Error {
        Error::Invalid(vec![Problem { kind, argument, message: message.into() }])
    }

    /// True if one of the problems of an [`Error::Invalid`] is of this kind.
    pub fn is(&self, kind: Kind) -> bool {
        matches!(self, Error::Invalid(problems) if problems.iter().any(|p| p.kind == kind))
    }
}

/// One fault of a call's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of fault.
    pub kind: Kind,
    /// The argument or field at fault.
    pub argument: &'static str,
    /// What was found and what is needed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.argument, self.message)
    }
}

/// The kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Sizes or strides that do not fit.
    Shape,
    /// An element type that the argument cannot have.
    Dtype,
    /// An address that is not a multiple of the element's size.
    Alignment,
    /// Two arrays that share memory and must not.
    Overlap,
    /// A number of the configuration outside its range, or options that exclude each other.
    Config,
    /// A term of the configuration needs an input that was not given.
    MissingInput,
    /// The workspace is too small.
    Workspace,
    /// A softmax temperature that is not a positive, finite number f32 can scale by.
    Temperature,
    /// A softcap, or a scale of logits, that is not positive and finite.
    Softcap,
    /// Keep-sets in a call with several tokens per row.
    KeepSetWithManyIds,
    /// A denominator of zero although tokens count.
    ZeroDenominator,
    /// Weights against the rollout where the ratio is taken against it too.
    DoubleCorrection,
    /// Log-probabilities in 16 bits where their rounding would drown the ratio.
    LowPrecision,
    /// Packed offsets that do not describe segments of the tokens given.
    Segments,
    /// Recorded experts that cannot be replayed: damaged bytes, impossible ids, keys that were never recorded.
    Routes,
    /// A moving average in 16 bits, where it would stop moving.
    EmaStateTooNarrow,
}

/// What the device error word holds: the smallest (row, tag, code) of all faults since the last check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The first row (token, or segment where the code says so) at fault.
    pub row: u64,
    /// The caller's number for the call: a layer, a micro-batch.
    pub tag: u16,
    /// What is wrong.
    pub code: FaultCode,
}

impl Fault {
    /// The fault that an error word holds; `None` for a clear word.
    pub fn from_word(word: u64) -> Option<Fault> {
        (word != crate::abi::MOERL_NO_FAULT).then(|| Fault {
            row: word >> crate::abi::MOERL_FAULT_ROW_SHIFT,
            tag: (word >> crate::abi::MOERL_FAULT_TAG_SHIFT) as u16,
            code: FaultCode::from_abi((word & 0xff) as u32),
        })
    }

    /// The word that records this fault; smaller words win.
    pub fn to_word(self) -> u64 {
        self.row << crate::abi::MOERL_FAULT_ROW_SHIFT
            | u64::from(self.tag) << crate::abi::MOERL_FAULT_TAG_SHIFT
            | u64::from(self.code.to_abi())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} (tag {}): {}", self.row, self.tag, self.code.message())
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

macro_rules! fault_codes {
    ($($(#[$doc:meta])* $name:ident = $abi:ident, $message:literal;)*) => {
        /// What a [`Fault`] says is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum FaultCode {
            $($(#[$doc])* $name,)*
            /// A code that this version does not know.
            Unknown(u8),
        }

        impl FaultCode {
            fn from_abi(code: u32) -> FaultCode {
                match code {
                    $(crate::abi::$abi => FaultCode::$name,)*
                    other => FaultCode::Unknown(other as u8),
                }
            }

            fn to_abi(self) -> u32 {
                match self {
                    $(FaultCode::$name => crate::abi::$abi,)*
                    FaultCode::Unknown(code) => u32::from(code),
                }
            }

            fn message(self) -> String {
                match self {
                    $(FaultCode::$name => $message.into(),)*
                    FaultCode::Unknown(code) => format!("unknown fault code {code}"),
                }
            }
        }
    };
}

fault_codes! {
    /// A forced row names an expert twice.
    Duplicate = MOERL_FAULT_DUPLICATE, "the forced row names an expert twice";
    /// A forced row names an expert that does not exist.
    Range = MOERL_FAULT_RANGE, "the forced row names an expert that the router does not have";
    /// Some ids of a forced row are the sentinel, some are not.
    Partial = MOERL_FAULT_PARTIAL, "some but not all ids of the forced row are the sentinel";
    /// A forced row is absent and the policy calls that an error.
    Missing = MOERL_FAULT_MISSING, "the forced row is absent";
    /// A row mode that is not 0, 1 or 2.
    RowMode = MOERL_FAULT_ROW_MODE, "row_mode must be 0 (native), 1 (replay) or 2 (padding)";
    /// A NaN logit that was not selected.
    NanLogit = MOERL_FAULT_NAN_LOGIT, "a router logit is NaN";
    /// A weight that would be NaN or infinite.
    NonfiniteWeight = MOERL_FAULT_NONFINITE_WEIGHT, "an expert's weight would be NaN or infinite";
    /// NaN in the selection bias.
    NanBias = MOERL_FAULT_NAN_BIAS, "the selection bias holds NaN";
    /// A row index below −1.
    RowIndex = MOERL_FAULT_ROW_INDEX, "row_index must be -1 or a row of the forced ids";
    /// A device row count outside [0, rows].
    RowCount = MOERL_FAULT_ROW_COUNT, "the device row count is outside the rows of the call";
    /// A token id outside the vocabulary.
    Target = MOERL_FAULT_TARGET, "the token id is outside the vocabulary";
    /// A temperature that f32 cannot scale by.
    Temperature = MOERL_FAULT_TEMPERATURE, "the temperature must be positive and finite, with a finite reciprocal";
    /// A row of −∞ alone.
    EmptyRow = MOERL_FAULT_EMPTY_ROW, "every logit of the row is -inf";
    /// +∞ or NaN among the logits.
    NonfiniteLogit = MOERL_FAULT_NONFINITE_LOGIT, "a logit of the row is NaN or +inf";
    /// Kept ids that do not strictly ascend, or that are outside the vocabulary.
    Keep = MOERL_FAULT_KEEP, "the kept ids must be strictly ascending token ids of the vocabulary";
    /// Offsets of kept ids that descend, or leave the ids.
    KeepOffsets = MOERL_FAULT_KEEP_OFFSETS, "the offsets of the kept ids must lead from 0 to their number without descending";
    /// A keep-set of −∞ alone.
    EmptyKeep = MOERL_FAULT_EMPTY_KEEP, "every kept logit of the row is -inf";
    /// NaN or infinity at a token that counts.
    NonfiniteInput = MOERL_FAULT_NONFINITE_INPUT, "an input of a counted token is NaN or infinite";
    /// A log-probability above 1e-3.
    PositiveLogprob = MOERL_FAULT_POSITIVE_LOGPROB, "a log-probability is above 0 by more than 1e-3";
    /// A mask value that is neither 0 nor 1.
    Mask = MOERL_FAULT_MASK, "a mask value is neither 0 nor 1";
    /// A denominator of 0 although a token counts.
    ZeroDenominator = MOERL_FAULT_ZERO_DENOMINATOR, "a denominator is 0 although a token counts";
    /// The sums of a segment's log-probabilities make no weight; the row is the segment.
    SegmentInput = MOERL_FAULT_SEGMENT_INPUT, "the sums of the segment's log-probabilities make no weight";
    /// A segment's weight that is NaN or infinite.
    SegmentWeight = MOERL_FAULT_SEGMENT_WEIGHT, "the segment's weight is NaN or infinite";
    /// The tokens of a segment have different advantages although the objective takes one of a segment (GMPO).
    VaryingAdvantage = MOERL_FAULT_VARYING_ADVANTAGE, "the advantages of the segment's tokens differ, GMPO needs one of a segment: give them per segment";
}

/// Collects every fault of a call's arguments before anything is queued.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    problems: Vec<Problem>,
}

impl Checks {
    pub(crate) fn new() -> Checks {
        Checks::default()
    }

    /// Records a problem unless `holds`.
    pub(crate) fn require(
        &mut self,
        holds: bool,
        kind: Kind,
        argument: &'static str,
        message: impl FnOnce() -> String,
    ) -> &mut Self {
        if !holds {
            self.problems.push(Problem { kind, argument, message: message() });
        }
        self
    }

    /// Records a shape problem unless `found` equals `needed`.
    pub(crate) fn shape(&mut self, argument: &'static str, found: &[usize], needed: &[usize]) -> &mut Self {
        self.require(found == needed, Kind::Shape, argument, || format!("has shape {found:?}, needs {needed:?}"))
    }

    /// Adds what another check found.
    pub(crate) fn merge(&mut self, result: Result<()>) -> &mut Self {
        if let Err(Error::Invalid(problems)) = result {
            self.problems.extend(problems);
        }
        self
    }

    /// Records an overlap problem for every pair of a written array with any other one.
    pub(crate) fn disjoint(&mut self, arrays: &[Option<Extent>]) -> &mut Self {
        let arrays: Vec<Extent> = arrays.iter().flatten().copied().filter(|e| e.bytes > 0).collect();
        for (i, a) in arrays.iter().enumerate() {
            for b in &arrays[i + 1..] {
                let apart = a.address + a.bytes <= b.address || b.address + b.bytes <= a.address;
                self.require(apart || !(a.written || b.written), Kind::Overlap, a.name, || {
                    format!("shares memory with {}, and one of them is written", b.name)
                });
            }
        }
        self
    }

    pub(crate) fn finish(&mut self) -> Result<()> {
        if self.problems.is_empty() { Ok(()) } else { Err(Error::Invalid(std::mem::take(&mut self.problems))) }
    }
}

/// The bytes that an argument covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) name: &'static str,
    pub(crate) address: usize,
    pub(crate) bytes: usize,
    pub(crate) written: bool,
}
