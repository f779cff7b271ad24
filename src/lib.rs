//! CUDA kernels for reinforcement learning of mixture-of-experts language models.
//!
//! | noun | what it computes |
//! |---|---|
//! | [`gate`] | top-k expert gating, and forced route replay: recorded experts, weights recomputed from today's router logits |
//! | [`router_loss`] | load balance, z-loss, entropy bonus and divergence of a router, and the update of a selection bias |
//! | [`logprob`] | log-probability of the chosen tokens, entropy, log-sum-exp, Σp², rank and argmax, in one read of the logits; keep-sets; vocabulary shards |
//! | [`linear_logprob`] | the same straight from hidden states and the head's weight, the logits a chunk at a time |
//! | [`objective`] | GRPO, GSPO and GSPO-token over packed sequences: ratios, clipping, loss, gradient |
//! | [`route_change`] | how ratio, mismatch and clipping go with changed routes |
//! | [`covariance`] | which tokens Clip-Cov and KL-Cov single out |
//! | [`routes`] | the host's side of route replay: engines' wire formats decoded, checked, packed and kept for every (layer, micro-batch) |
//! | [`advantage`] | rewards against those of their group; returns, GAE, V-trace; baselines of tokens |
//! | [`ema`] | moving averages of parameters |
//! | [`correction`] | weights and rejections for rollouts that another engine sampled |
//! | [`expert_ledger`] | what each expert's tokens come to, and what is normalised by it |
//!
//! Each noun's module says what its operations mean; [`Backend`] has them as methods, and is implemented by [`Reference`] (plain
//! loops in f64), by the emulator (feature `emulate`) and by [`Cuda`] (feature `cuda`). Arrays are borrowed: see [`memory`].
//!
//! A call queues its work on the caller's stream, allocates nothing and waits for nothing. Bad arguments are an
//! [`Error::Invalid`] with every fault, before anything is queued; bad data that only the device can see goes to an [`ErrorWord`].

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code)]
pub(crate) mod abi;
pub mod advantage;
mod backend;
pub mod correction;
pub mod covariance;
pub mod device;
pub mod diagnostics;
pub mod element;
pub mod ema;
pub mod error;
pub mod expert_ledger;
pub mod gate;
pub mod linear_logprob;
pub mod logprob;
pub mod memory;
pub mod objective;
pub mod random;
mod reference;
pub mod route_change;
pub mod router_loss;
pub mod routes;
mod segments;

pub use backend::{Backend, Buffer, ErrorWord};
#[cfg(feature = "cuda")]
pub use device::cuda::Cuda;
#[cfg(feature = "emulate")]
pub use device::emulator::Emulator;
pub use error::{Error, Result};
pub use reference::{HostBuffer, Reference};
