//! The host's side of route replay: recorded experts are decoded, checked, packed, and kept for every (layer, micro-batch).
//!
//! ```text
//! bytes of an engine ── Payload ── check ── pack ── RoutedExperts ──┬── PackedRoutes (sequences in one batch)
//!                       (any wire format)          (u8 or u16)      ├── PrefixStore  (rows of a known prompt)
//!                                                                   └── Recorder ── seal ── RouteTape ── gate::Forced
//! ids of the old policy's own forward pass ──────────────────────────── Recorder
//! ```
//!
//! * A [`Payload`] is what came over the wire, unread: SGLang's base64, vLLM's npy, prime-rl's base64, Megatron's tensors. Its type,
//!   byte order and shape are read from its header or given, never guessed. [`LayerMap`] says which of its layers are which layers
//!   of the model.
//! * [`RoutedExperts`] are the same ids checked and [packed](Packing) into the narrowest type, of whole sequences or of the rows and
//!   layers of one rank alone.
//! * A [`RouteTape`] holds them in any backend's memory, keyed by [`Layer`] and [`MicroBatch`]. [`get`](RouteTape::get) is a lookup:
//!   forward, recompute and backward see the same routes, in whatever order micro-batches run. Nothing is popped from anywhere.
//! * [`History`] keeps a uniform sample of the tokens of under-used experts.
//!
//! **Rows.** Row p of a sequence's routes belongs to the forward pass of its input token p. The last sampled token was never forwarded:
//! a sequence of n tokens has n − 1 rows, and its last row is missing.
//!
//! **Missing** means absent for the gate, which then follows [`gate::Missing`](crate::gate::Missing). A row of sentinels (all bits
//! one: −1, 255 in u8, 65535 in u16) is missing, and so is a row of zeros where [`Expected::zeros_are_missing`] says so. With 256
//! experts in u8, 255 is an expert: missing rows are then kept in a bitmap, and reach the gate as −1 of its `row_index`.
//!
//! Sources: R3 (<https://arxiv.org/abs/2510.11370>), GSPO's routing replay (<https://arxiv.org/abs/2507.18071>), and the formats of
//! SGLang, vLLM, prime-rl, slime, verl and Megatron-LM.

mod check;
mod experts;
mod history;
mod layers;
mod npy;
mod packing;
mod parallel;
mod payload;
mod prefix;
mod sequences;
mod tape;

pub use check::{Defect, Expected, Fault, LayerSurvey, Survey};
pub use experts::{Order, RouteArray, RoutedExperts};
pub use history::{History, HistoryConfig, Item, Sampled};
pub use layers::{Form, Layer, LayerMap, MappedLayer, Model, MoeLayers};
pub use packing::{Packing, bytes_per_token};
pub use parallel::{ContextParallel, Split};
pub use payload::{Payload, Sglang};
pub use prefix::PrefixStore;
pub use sequences::PackedRoutes;
pub use tape::{MicroBatch, Recorder, RouteTape};
