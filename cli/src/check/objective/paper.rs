//! Published formulas.

use moerl::objective::{Config as Objective, Saturation, Variant};

use super::super::{Case, Stop, unsupported};
use super::{Data, Meaning, clip};

/// The formula of arXiv 2507.18071, equations 5 to 7.
pub(super) fn meaning(case: &Case<'_>, data: &Data) -> Result<Meaning, Stop> {
    let config = case.config(&["clip_high", "clip_low", "sequence_denominator"])?;
    let mut counts = data.counts();
    match config.text("sequence_denominator") {
        "all" => counts.segments = data.segments.len() as u64,
        "non_empty" => {}
        other => return unsupported(format!("sequence_denominator {other}")),
    }
    let variant = Variant::Gspo(clip(&config, "clip_low", "clip_high")?);
    Ok(Meaning::new(Objective { saturation: Saturation::NONE, ..Objective::new(variant) }, counts))
}
