//! The gate, on every backend: the same behaviours of the reference, the emulated kernels and a device.
//!
//! How near each group of tests comes to its tolerances, a line a group, quantity and backend:
//! `cargo test --test gate --test router_loss --test expert_ledger worst -- --ignored --nocapture`.

mod common;

#[path = "gate/agreement.rs"]
mod agreement;
#[path = "gate/any.rs"]
mod any;
#[path = "gate/any_backward.rs"]
mod any_backward;
#[path = "gate/backward.rs"]
mod backward;
#[cfg(feature = "emulate")]
#[path = "gate/backward_emulated.rs"]
mod backward_emulated;
#[path = "gate/bad_input.rs"]
mod bad_input;
#[path = "gate/draw.rs"]
mod draw;
#[cfg(feature = "cuda")]
#[path = "gate/graph.rs"]
mod graph;
#[path = "gate/harness.rs"]
mod harness;
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[path = "gate/large.rs"]
mod large;
#[path = "gate/many.rs"]
mod many;
#[path = "gate/margin.rs"]
mod margin;
#[path = "gate/outputs.rs"]
mod outputs;
#[path = "gate/recompute.rs"]
mod recompute;
#[path = "gate/replay.rs"]
mod replay;
#[path = "gate/rows.rs"]
mod rows;
#[path = "gate/selection.rs"]
mod selection;
#[path = "gate/telemetry.rs"]
mod telemetry;
#[path = "gate/watch.rs"]
mod watch;
#[path = "gate/weights.rs"]
mod weights;
#[path = "gate/worst.rs"]
mod worst;
