//! CUDA kernels for reinforcement learning of mixture-of-experts language models.
#![warn(missing_docs)]

#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code)]
pub(crate) mod abi;
pub mod advantage;
mod backend;
pub mod device;
pub mod diagnostics;
pub mod element;
pub mod error;
pub mod gate;
pub mod logprob;
pub mod memory;
pub mod objective;
mod reference;
mod segments;

pub use backend::{Backend, Buffer, ErrorWord};
#[cfg(feature = "cuda")]
pub use device::cuda::Cuda;
#[cfg(feature = "emulate")]
pub use device::emulator::Emulator;
pub use error::{Error, Result};
pub use reference::{HostBuffer, Reference};
