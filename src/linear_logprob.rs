//! Log-probabilities straight from hidden states and the weight of the head: the logits exist only a chunk at a time.
//!
//! ```text
//! logits = hidden · weightᵀ        hidden [N, H]   weight [V, H]
//! d_hidden = d_logits · weight     d_weight = d_logitsᵀ · hidden
//! ```
//!
//! and between the two everything that [`logprob`] is: the calls are its calls ([`Forward`](logprob::Forward),
//! [`PartialCall`](logprob::PartialCall), [`Backward`](logprob::Backward)), with a [`Projection`] where they have logits and [`Gradients`] where
//! they have the gradient of logits. Temperatures per row, several tokens a row, masks, keep-sets, softcap, ranks and vocabulary shards are as
//! they are there.
//!
//! ```
//! use moerl::element::bf16;
//! use moerl::linear_logprob::{Config, Projection, Shape};
//! use moerl::memory::Matrix;
//! use moerl::{Backend, Buffer, Reference, logprob};
//!
//! let (rows, hidden, vocabulary) = (3, 8, 16);
//! let config = Config { chunk: moerl::linear_logprob::Chunk::Rows(128), ..Config::default() };
//! let states = vec![bf16::from_f32(0.5); rows * hidden];
//! let weight = vec![bf16::from_f32(0.25); vocabulary * hidden];
//! let tokens = vec![1_i32, 2, 3];
//! let mut logprobs = vec![0_f32; rows];
//! let mut workspace = vec![0_u8; config.forward_footprint(&Shape { rows, hidden, vocabulary }).workspace()];
//!
//! let mut call = logprob::Forward::new(Projection::new(
//!     Matrix::new(&states, rows, hidden)?,
//!     Matrix::new(&weight, vocabulary, hidden)?,
//!     (&mut workspace).into(),
//! ));
//! call.tokens = Some(Matrix::new(&tokens, rows, 1)?);
//! call.logprobs = Some((&mut logprobs).into());
//! Reference.linear_logprob_forward(&(), &config, call)?;
//! assert!(logprobs.iter().all(|p| (p + 16_f32.ln()).abs() < 1e-6)); // every token is as likely as any other
//! # Ok::<(), moerl::Error>(())
//! ```
//!
//! **Chunks.** R rows at a time ([`Chunk`]): one product, the kernels of [`logprob`] on its result, the next chunk. Backward makes the chunk
//! again, replaces it by its gradient, and adds to both gradients. R decides what is held in memory ([`Footprint`]) and nothing else that
//! matters: below 1024 rows the additions to the weight's gradient, 8·V·H bytes a chunk, take longer than the product.
//!
//! **The weight's gradient** is summed in f32 over all chunks: into the caller's main gradient, or in the workspace and rounded once to the
//! weight's type in the end ([`WeightGradient`]).
//!
//! **Which bits.** The last chunk is as large as all others, its missing rows absent, and on a device the algorithm of a product is a function of
//! R, V, H and the types alone, without sums that are split over blocks: at a given R a row's bits do not depend on N. Between different R they may.
//!
//! **Rows without tokens.** [`Projection::rows`] names the rows that are needed, where the host knows them: all others are absent as if masked,
//! and no product is made for them. Rows that only the device knows to be absent, or to be without gradient, are not read by the kernels
//! of [`logprob`] but are part of the products.
//!
//! **Vocabulary shards.** Each device has some rows of the weight. [`linear_logprob_partial`](crate::Backend::linear_logprob_partial) makes its
//! records, [`logprob_combine`](crate::Backend::logprob_combine) the outputs; in backward d_weight is this shard's alone, and d_hidden is a
//! partial sum, to be added up over the shards.
//!
//! On a CUDA device the products are cuBLASLt's, loaded when first needed: crate feature `linear`. Record no graph before a call of the same
//! shape has been made, because that is when the library is loaded and an algorithm chosen.
//!
//! Chunking saves memory. It costs no time to speak of, and saves none.

mod call;
mod chunks;
mod footprint;

pub use call::{Gradients, Projection, WeightGradient};
pub(crate) use chunks::{Piece, absent, chunks};
pub use footprint::{Footprint, Shape};

use crate::element::Element;
use crate::error::{Checks, Kind, Result};
use crate::logprob;

/// What R must be a multiple of: a tile of the products.
pub const CHUNK_MULTIPLE: usize = 128;
/// Bytes that rows must begin at a multiple of, for the tensor cores' loads.
pub const ROW_ALIGNMENT: usize = 16;

/// The types of the head's product.
///
/// **Both sides alike.** What counts is that the trainer and the rollout engine compute the same head. Rounding of logits to bf16 has been named the
/// largest single mismatch between the two, and an f32 head on *one* side only is worse than none: the trainer's log-probabilities are then
/// more exact than those that were sampled from, and every ratio carries the engine's rounding. Change this together with the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Head {
    /// bf16 hidden states and weight, logits rounded to bf16: 2 bytes a logit, forward and backward. A logit near 8 to 16 then has steps of 0.0625,
    /// and log-probabilities have them too. For engines whose head does the same.
    Bf16Logits,
    /// bf16 hidden states and weight, logits left in f32 as the tensor cores sum them: 4 bytes a logit, and 2 more in backward, where their gradient is rounded to
    /// bf16 for the tensor cores. The products take as long as with [`Bf16Logits`](Head::Bf16Logits).
    #[default]
    F32Logits,
    /// f32 hidden states and weight, logits in f32 and their gradient in place: 4 bytes a logit, twice the weight. On a device the products take
    /// TF32 (11 bits of each factor, sums in f32), at half the rate of bf16; elsewhere f32.
    F32Weights,
}

impl Head {
    /// The type of hidden states and weight.
    pub const fn operand(self) -> Element {
        match self {
            Head::Bf16Logits | Head::F32Logits => Element::Bf16,
            Head::F32Weights => Element::F32,
        }
    }

    /// The type of the logits.
    pub const fn logits(self) -> Element {
        match self {
            Head::Bf16Logits => Element::Bf16,
            Head::F32Logits | Head::F32Weights => Element::F32,
        }
    }

    /// The type of their gradient, which is a factor too.
    pub const fn d_logits(self) -> Element {
        self.operand()
    }

    /// True if the gradient replaces the logits.
    pub(crate) fn is_in_place(self) -> bool {
        self.logits() == self.d_logits()
    }
}

/// How many rows are projected at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Chunk {
    /// R, a multiple of 128.
    Rows(usize),
    /// The largest multiple of 128 whose logits take no more bytes; at least 128. The gradient's second chunk does not count, so that
    /// forward and backward agree.
    MaxLogitsBytes(usize),
}

impl Default for Chunk {
    /// 2048 rows.
    fn default() -> Chunk {
        Chunk::Rows(2048)
    }
}

/// What a call means, and in which pieces it is made.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// What the numbers mean. Its vocabulary is the weight's rows, or fewer.
    pub logprob: logprob::Config,
    /// The types of the product.
    pub head: Head,
    /// The rows of a chunk.
    pub chunk: Chunk,
    /// Bytes of the workspace that products may use for themselves; rounded up to a multiple of 256. Part of what chooses their algorithm.
    pub product_workspace: usize,
}

impl Default for Config {
    /// Logits in f32, 2048 rows at a time, 32 MiB for the products.
    fn default() -> Config {
        Config {
            logprob: logprob::Config::default(),
            head: Head::default(),
            chunk: Chunk::default(),
            product_workspace: 32 << 20,
        }
    }
}

impl Config {
    /// R, for a weight of so many rows.
    ///
    /// # Errors
    /// `Config` where it is no multiple of 128, or not even 128 rows fit.
    pub fn chunk_rows(&self, vocabulary: usize) -> Result<usize> {
        let mut checks = Checks::new();
        let rows = self.rows_of_chunk(vocabulary);
        match self.chunk {
            Chunk::Rows(rows) => {
                checks.require(rows > 0 && rows.is_multiple_of(CHUNK_MULTIPLE), Kind::Config, "chunk", || {
                    format!("has {rows} rows, needs a multiple of {CHUNK_MULTIPLE}")
                });
            }
            Chunk::MaxLogitsBytes(bytes) => {
                checks.require(rows > 0, Kind::Config, "chunk", || {
                    let needed = CHUNK_MULTIPLE * self.logits_stride(vocabulary) * self.head.logits().size();
                    format!(
                        "has {bytes} bytes, needs {needed} for {CHUNK_MULTIPLE} rows of {vocabulary} {} logits",
                        self.head.logits()
                    )
                });
            }
        }
        checks.finish().map(|()| rows)
    }

    /// R, unchecked.
    fn rows_of_chunk(&self, vocabulary: usize) -> usize {
        match self.chunk {
            Chunk::Rows(rows) => rows,
            Chunk::MaxLogitsBytes(bytes) => {
                let row = (self.logits_stride(vocabulary) * self.head.logits().size()).max(1);
                bytes / row / CHUNK_MULTIPLE * CHUNK_MULTIPLE
            }
        }
    }

    /// Elements from one row of the logits to the next: of either type, a multiple of 16 bytes.
    pub(crate) fn logits_stride(&self, vocabulary: usize) -> usize {
        vocabulary.next_multiple_of(ROW_ALIGNMENT / Element::Bf16.size())
    }
}
