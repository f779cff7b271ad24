//! Packed segments of every kind of length.

use std::rc::Rc;

use moerl::objective::Segments;

use super::case::{Scale, hashed, normal};

/// Segments that fill a number of tokens.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What the lengths are like: `of 8k`.
    name: &'static str,
    /// Tokens of each segment. Shared: there may be as many as tokens, and every case has them.
    lengths: Rc<[usize]>,
}

/// Segments of an exported call, and the tokens of each: of one length, so that a peer may take them for a matrix.
pub const EXPORTED: [usize; 2] = [16, 96];

/// The mask of an exported call: gaps, whole turns, and here and there the last token.
pub fn exported_mask() -> Vec<u8> {
    let [segments, length] = EXPORTED;
    let is_counted = |u: usize| {
        let (segment, token) = (u / length, u % length);
        hashed(u) >= 0.1 && token / 12 != segment % 16 && (token < length - 1 || segment % 4 != 1)
    };
    (0..segments * length).map(|u| u8::from(is_counted(u))).collect()
}

impl Packed {
    /// What is exported.
    pub fn exported() -> Packed {
        let [segments, length] = EXPORTED;
        packed("of 96", segments * length, |_| length)
    }

    /// `N=1048576 of 8k`
    pub fn shape(&self) -> String {
        format!("N={} {}", self.tokens(), self.name)
    }

    /// All tokens.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The number of segments.
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// The tokens of the longest segment.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// The segments.
    ///
    /// # Errors
    /// Those of [`Segments::from_lengths`].
    pub fn segments(&self) -> moerl::Result<Segments> {
        Segments::from_lengths(self.lengths.iter().copied())
    }
}

/// On a device: in its cache, and far out of it.
fn sizes(scale: Scale) -> &'static [usize] {
    if scale == Scale::Full { &[1 << 20, 1 << 24] } else { &[1 << 15] }
}

/// Every kind of length: none may cost much more per byte than another.
pub fn every_kind(scale: Scale) -> Vec<Packed> {
    sizes(scale).iter().flat_map(|&tokens| distributions(tokens)).collect()
}

/// Answers as they are, and long ones.
pub fn two_kinds(scale: Scale) -> Vec<Packed> {
    sizes(scale).iter().flat_map(|&tokens| [of_1_to_2k(tokens), of_8k(tokens)]).collect()
}

/// The shortest kinds, at which what a segment costs shows most.
pub fn short_kinds(scale: Scale) -> Vec<Packed> {
    sizes(scale).iter().flat_map(|&tokens| [of_1(tokens), of_17(tokens)]).collect()
}

fn distributions(tokens: usize) -> Vec<Packed> {
    let half = tokens / 2;
    vec![
        of_1(tokens),
        of_17(tokens),
        of_1_to_2k(tokens),
        packed("of 4k in the mean, log-normal", tokens, |i| (3000.0 * (0.75 * normal(i)).exp()) as usize),
        of_8k(tokens),
        packed("of 16k", tokens, |_| 16_384),
        packed("one of half, others of 256", tokens, |i| if i == 0 { half } else { 256 }),
        packed("one", tokens, |_| tokens),
    ]
}

fn of_1(tokens: usize) -> Packed {
    packed("of length 1", tokens, |_| 1)
}

fn of_17(tokens: usize) -> Packed {
    packed("of length 17", tokens, |_| 17)
}

fn of_1_to_2k(tokens: usize) -> Packed {
    packed("of 1 to 2k, uniform", tokens, |i| 1 + (hashed(i) * 2047.0) as usize)
}

fn of_8k(tokens: usize) -> Packed {
    packed("of 8k", tokens, |_| 8192)
}

/// Segments of the lengths that `length` gives for 0, 1, …, the last one cut where the tokens end.
fn packed(name: &'static str, tokens: usize, length: impl Fn(usize) -> usize) -> Packed {
    let (mut lengths, mut left) = (Vec::new(), tokens);
    while left > 0 {
        let length = length(lengths.len()).clamp(1, left);
        lengths.push(length);
        left -= length;
    }
    Packed { name, lengths: lengths.into() }
}
