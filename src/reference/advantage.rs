//! Advantages in plain f64 loops.

mod batch;
mod group;
mod token;

pub(super) use batch::{batch_moments, batch_whiten, count_tokens, doubly_robust};
pub(super) use group::group_advantages;
pub(super) use token::{token_advantages, token_baseline};
