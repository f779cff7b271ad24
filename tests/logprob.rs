//! Agreement of every backend with the definitions of `moerl::logprob`, and of every backend with itself in bits.

mod common;

#[path = "logprob/accuracy.rs"]
mod accuracy;
#[path = "logprob/any.rs"]
mod any;
#[path = "logprob/any_call.rs"]
mod any_call;
#[path = "logprob/any_definition.rs"]
mod any_definition;
#[path = "logprob/any_drawn.rs"]
mod any_drawn;
#[path = "logprob/any_shards.rs"]
mod any_shards;
#[path = "logprob/backward.rs"]
mod backward;
#[cfg(feature = "emulate")]
#[path = "logprob/emulated.rs"]
mod emulated;
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[path = "logprob/exponential.rs"]
mod exponential;
#[path = "logprob/forward.rs"]
mod forward;
#[cfg(feature = "cuda")]
#[path = "logprob/graph.rs"]
mod graph;
#[path = "logprob/invariance.rs"]
mod invariance;
#[path = "logprob/keep.rs"]
mod keep;
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[path = "logprob/large.rs"]
mod large;
#[path = "logprob/order.rs"]
mod order;
#[path = "logprob/refusals.rs"]
mod refusals;
#[path = "logprob/shards.rs"]
mod shards;
#[path = "logprob/softcap.rs"]
mod softcap;
#[path = "logprob/support.rs"]
mod support;
#[cfg(feature = "emulate")]
#[path = "logprob/traffic.rs"]
mod traffic;
