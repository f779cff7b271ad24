//! Launches the gate kernels.

use crate::device::executor::Executor;
use crate::error::Result;
use crate::gate::{Backward, Config, Forward};

/// [`Backend::gate_forward`](crate::Backend::gate_forward).
pub(super) fn forward<E: Executor>(_: &E, _: &E::Stream, config: &Config, call: Forward<'_, E::Memory>) -> Result<()> {
    call.validate(config)?;
    Err(crate::Error::Unavailable { what: "the gate kernels".into(), fix: "use the reference".into() })
}

/// [`Backend::gate_backward`](crate::Backend::gate_backward).
pub(super) fn backward<E: Executor>(
    _: &E,
    _: &E::Stream,
    config: &Config,
    call: Backward<'_, E::Memory>,
) -> Result<()> {
    call.validate(config)?;
    Err(crate::Error::Unavailable { what: "the gate kernels".into(), fix: "use the reference".into() })
}
