use super::{Case, Compared, Stop, unsupported};
pub(super) fn check<B: moerl::Backend>(_: &B, _: &Case<'_>) -> Result<Compared, Stop> {
    unsupported("x")
}
