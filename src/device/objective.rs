use crate::device::executor::Executor;
use crate::error::{Error, Result};
use crate::objective::{Batch, Config, Output, Phases, Plan};
fn missing() -> Result<()> {
    Err(Error::Unavailable { what: "objective kernels".into(), fix: "use the reference".into() })
}
pub(super) fn one_call<E: Executor>(
    _: &E,
    _: &E::Stream,
    _: &Config,
    _: &Plan<E>,
    _: Batch<'_, E::Memory>,
    _: Output<'_, E::Memory>,
) -> Result<()> {
    missing()
}
pub(super) fn partial<E: Executor>(
    _: &E,
    _: &E::Stream,
    _: &Config,
    _: &Plan<E>,
    _: Batch<'_, E::Memory>,
    _: Phases<'_, E::Memory>,
    _: Output<'_, E::Memory>,
) -> Result<()> {
    missing()
}
pub(super) fn finish<E: Executor>(
    _: &E,
    _: &E::Stream,
    _: &Config,
    _: &Plan<E>,
    _: Batch<'_, E::Memory>,
    _: Phases<'_, E::Memory>,
    _: Output<'_, E::Memory>,
) -> Result<()> {
    missing()
}
pub(super) fn apply<E: Executor>(
    _: &E,
    _: &E::Stream,
    _: &Config,
    _: &Plan<E>,
    _: Batch<'_, E::Memory>,
    _: Phases<'_, E::Memory>,
    _: Output<'_, E::Memory>,
) -> Result<()> {
    missing()
}
