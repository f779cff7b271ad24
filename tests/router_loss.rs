//! Regularisers of a router, on every backend: sums, values, gradients, and the update of a selection bias.

mod common;

#[path = "router_loss/agreement.rs"]
mod agreement;
#[path = "router_loss/any.rs"]
mod any;
#[path = "router_loss/case.rs"]
mod case;
#[path = "router_loss/draw.rs"]
mod draw;
#[cfg(feature = "emulate")]
#[path = "router_loss/emulated.rs"]
mod emulated;
#[path = "router_loss/meaning.rs"]
mod meaning;
#[path = "router_loss/refusals.rs"]
mod refusals;
#[path = "router_loss/worst.rs"]
mod worst;
