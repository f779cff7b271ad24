//! Family step: a step file that brings expected tensors.
//!
//! | tensor | is compared with |
//! |---|---|
//! | `logp_new`, `entropy_new` [N] | logprob of `logits` |
//! | `logp_new_bf16` [N] | logprob of `logits_bf16`, for the rows that it has |
//! | `routes_new`, `routes_old` [N, L, k] | as sets, the native choice from `router_logits`, `router_logits_old` |
//! | `advantage` [S] | `reward` normalised within `group` |

use std::path::Path;

use moerl::Backend;

use super::{Record, Stop};
use crate::failure::Result;
use crate::stepfile::{Container, StepFile};
