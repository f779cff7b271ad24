//! How much memory a call takes.

use super::Config;
use crate::element::Element;
use crate::logprob::Partial;

/// The sizes of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// N.
    pub rows: usize,
    /// H.
    pub hidden: usize,
    /// V', the rows of this shard's weight.
    pub vocabulary: usize,
}

/// The bytes that a call takes beside its inputs. With V' rounded up to a multiple of 8:
///
/// | | bf16 logits | f32 logits of a bf16 weight | f32 weight |
/// |---|---|---|---|
/// | `logits` | 2·R·V' | 4·R·V' | 4·R·V' |
/// | `d_logits`, backward | in place | 2·R·V' | in place |
/// | `staged` | 2·R·H | 2·R·H | 4·R·H |
/// | `d_weight`, backward | 4·V'·H, or nothing | the same | nothing |
/// | `product` | W | W | W |
/// | `records`, forward | 16·N | 16·N | 16·N |
///
/// `staged` holds a chunk's hidden states where they do not lie together as they are (the last chunk, named rows, rows with gaps), and then their
/// gradient: twice as much for an f32 gradient of a bf16 head. Unchunked the logits alone would take `N/R` times as much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The chunk of logits.
    pub logits: usize,
    /// A second chunk for their gradient, where it has another type.
    pub d_logits: usize,
    /// A chunk of hidden states, or of their gradient.
    pub staged: usize,
    /// The f32 sum of the weight's gradient, where the caller has none.
    pub d_weight: usize,
    /// What products use for themselves.
    pub product: usize,
    /// What forward saves, in the caller's array.
    pub records: usize,
    /// The gradient of the hidden states, in the caller's array.
    pub d_hidden: usize,
}

/// Addresses within the workspace are multiples of this, as cuBLASLt wants its own to be.
pub(crate) const ALIGNMENT: usize = 256;

impl Footprint {
    /// Bytes of the call's workspace: its parts, and what aligning may cost.
    pub fn workspace(&self) -> usize {
        let parts = [self.product, self.logits, self.d_logits, self.staged, self.d_weight];
        parts.into_iter().fold(ALIGNMENT - 1, usize::saturating_add)
    }

    /// The workspace, and what the call leaves for later.
    pub fn total(&self) -> usize {
        self.workspace().saturating_add(self.records).saturating_add(self.d_hidden)
    }
}

/// A product; as many bytes as can be named where R is so large that there are more, which no workspace has.
fn bytes(factors: [usize; 3]) -> usize {
    factors.into_iter().fold(1, usize::saturating_mul)
}

impl Config {
    /// What [`linear_logprob_forward`](crate::Backend::linear_logprob_forward) takes, and
    /// [`linear_logprob_partial`](crate::Backend::linear_logprob_partial).
    pub fn forward_footprint(&self, shape: &Shape) -> Footprint {
        let rows = self.rows_of_chunk(shape.vocabulary);
        Footprint {
            logits: bytes([rows, self.logits_stride(shape.vocabulary), self.head.logits().size()]),
            staged: bytes([rows, shape.hidden, self.head.operand().size()]),
            product: self.product_workspace.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX),
            records: shape.rows * size_of::<Partial>(),
            ..Footprint::default()
        }
    }

    /// What [`linear_logprob_backward`](crate::Backend::linear_logprob_backward) takes, if it is to make gradients of these types.
    /// A weight's gradient of type f32, written or added to, needs no sum beside it.
    pub fn backward_footprint(&self, shape: &Shape, d_hidden: Option<Element>, d_weight: Option<Element>) -> Footprint {
        let forward = self.forward_footprint(shape);
        let rows = self.rows_of_chunk(shape.vocabulary);
        let d_hidden_size = d_hidden.map_or(0, Element::size);
        let second = if self.head.is_in_place() { 0 } else { self.head.d_logits().size() };
        Footprint {
            d_logits: bytes([rows, self.logits_stride(shape.vocabulary), second]),
            staged: forward.staged.max(bytes([rows, shape.hidden, d_hidden_size])),
            d_weight: match d_weight {
                None | Some(Element::F32) => 0,
                Some(_) => shape.vocabulary * shape.hidden * size_of::<f32>(),
            },
            d_hidden: shape.rows * shape.hidden * d_hidden_size,
            records: 0,
            ..forward
        }
    }
}
