use crate::advantage::{Call, Config, GroupPlan};
use crate::device::executor::Executor;
use crate::error::{Error, Result};
pub(super) fn group_advantages<E: Executor>(
    _: &E,
    _: &E::Stream,
    _: &Config,
    _: &GroupPlan<E>,
    _: Call<'_, E::Memory>,
) -> Result<()> {
    Err(Error::Unavailable { what: "advantage kernels".into(), fix: "use the reference".into() })
}
