//! Agreement of every backend with the definitions of `moerl::linear_logprob`, and of every backend with itself in bits.

mod common;

/// As `on_every_backend!`; a CUDA device only where the build has products for it.
#[macro_export]
macro_rules! on_every_multiplying_backend {
    ($($suite:ident),* $(,)?) => {
        mod reference {
            $(#[test] fn $suite() { super::$suite(&moerl::Reference); })*
        }
        #[cfg(feature = "emulate")]
        mod emulator {
            $(#[test] fn $suite() { super::$suite(&moerl::Emulator::new()); })*
        }
        #[cfg(feature = "linear")]
        mod cuda {
            $(#[test] fn $suite() { if let Some(gpu) = $crate::common::cuda() { super::$suite(&gpu); } })*
        }
    };
}

#[path = "linear_logprob/agreement.rs"]
mod agreement;
#[path = "linear_logprob/any.rs"]
mod any;
#[path = "linear_logprob/footprint.rs"]
mod footprint;
#[path = "linear_logprob/gradient.rs"]
mod gradient;
/// What draws calls on logits.
#[path = "logprob"]
#[allow(dead_code)] // it has more than is needed here
mod logits {
    pub mod any_call;
    pub mod any_drawn;
    pub mod support;
}
#[path = "linear_logprob/passed_through.rs"]
mod passed_through;
#[path = "linear_logprob/refusals.rs"]
mod refusals;
#[path = "linear_logprob/rows.rs"]
mod rows;
#[path = "linear_logprob/shards.rs"]
mod shards;
#[path = "linear_logprob/support.rs"]
mod support;
