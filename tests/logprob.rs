//! Agreement of every backend with the definitions of `moerl::logprob`, and of every backend with itself in bits.

mod common;

#[path = "logprob/backward.rs"]
mod backward;
#[cfg(feature = "emulate")]
#[path = "logprob/emulated.rs"]
mod emulated;
#[path = "logprob/forward.rs"]
mod forward;
#[path = "logprob/invariance.rs"]
mod invariance;
#[path = "logprob/refusals.rs"]
mod refusals;
#[path = "logprob/support.rs"]
mod support;
