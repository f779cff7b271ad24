//! Advantages.

use moerl::Backend;
use moerl::objective::Groups;

use super::super::{Case, Compared, Stop, Tolerance, unsupported};
use super::Data;
use crate::advantage;
use crate::clock::Clock;

/// A group's mean and deviation are formed in f64 and the quotient rounded once; the producer's was cast to f32 as well. The absolute
/// part is for groups of equal rewards, exactly 0 here: the producer divides the rounding of its mean by ε.
const ADVANTAGE: Tolerance = Tolerance { relative: 1e-6, absolute: 1e-6 };

/// verl's `compute_grpo_outcome_advantage`: one value per token, 0 where the mask is.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let std = match case.text("function") {
        Some("grpo") => true,
        Some("grpo_nostd") => false,
        other => return unsupported(format!("advantage {}", other.unwrap_or("without a function"))),
    };
    let config = case.config(&["norm_adv_by_std_in_grpo"])?;
    if config.get("norm_adv_by_std_in_grpo").is_some() && config.flag("norm_adv_by_std_in_grpo") != std {
        return Err(Stop::Fail("norm_adv_by_std_in_grpo contradicts the function".into()));
    }
    let (data, batch) = Data::new(case)?;
    let s = data.segments.len();
    let groups = Groups::from_ids(&case.values::<i32>(&format!("{batch}/group"), s)?);
    let rewards = case.values::<f32>(&format!("{batch}/reward"), s)?;
    let convention = moerl::advantage::Config::verl(std);
    let found = advantage::run(backend, &backend.stream()?, &convention, &groups, &rewards, &mut Clock::default())?;
    let mut by_token = Vec::with_capacity(data.mask.len());
    for (segment, range) in data.segments.ranges().enumerate() {
        by_token.extend(range.map(|u| if data.mask[u] != 0 { found[segment] } else { 0.0 }));
    }
    let expected = case.values::<f32>(&format!("{}/advantage", case.id), by_token.len())?;
    let mut compared = Compared::default();
    compared.close("advantage", &by_token, &expected, ADVANTAGE);
    Ok(compared)
}
