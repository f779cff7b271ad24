//! Weights of tokens and of segments, rejections and groups over packed segments.

use moerl::advantage::GroupPlan;
use moerl::correction::{
    Batch, Config, Level, Metropolis, Output, Plans, Rejection, Weight, diagnostics, workspace_bytes,
};
use moerl::element::Element;
use moerl::objective::{Groups, Plan};
use moerl::{Backend, Buffer};

use super::case::{Call, Case, Floor, Scale, generate, hashed, normal};
use super::export::Exporter;
use super::measure::Measure;
use super::packed::{EXPORTED, Packed, exported_mask, two_kinds};
use crate::failure::Result;

/// Segments of a group.
const GROUP: usize = 8;

/// A correction, with the bytes that its phases must read of a token.
struct Kind {
    name: &'static str,
    config: Config,
    read: u64,
    grouped: bool,
}

fn kinds() -> Vec<Kind> {
    let tis = |level| Config::tis(level, 2.0);
    let self_normalised = Config::new(Weight::SelfNormalised { level: Level::Geometric, leave_one_out: false });
    let metropolis =
        Config::new(Weight::Metropolis { level: Level::Geometric, mode: Metropolis::Multiplicity, seed: 7 });
    let veto = Rejection::Veto { low: 1e-4, high: 1e4 };
    // Both log-probabilities and the mask: once where a token decides alone, or a segment for all its tokens (then the mask again); twice where
    // a segment and each token have a say.
    let kind = |name, config, read| Kind { name, config, read, grouped: false };
    vec![
        kind("tis of tokens", tis(Level::Token), 9),
        kind("band of tokens", Config::new(Weight::Band { level: Level::Token, low: 0.5, high: 5.0 }), 9),
        kind("tis of tokens, veto", tis(Level::Token).with_rejection(veto), 18),
        kind("tis of tokens with diagnostics", tis(Level::Token).with_diagnostics(), 18),
        kind("tis of sequences", tis(Level::Sequence), 10),
        kind("tis of sequences, geometric", tis(Level::Geometric), 10),
        Kind { grouped: true, ..kind("self-normalised, geometric", self_normalised.clone(), 10) },
        Kind {
            grouped: true,
            ..kind("self-normalised, geometric, with diagnostics", self_normalised.with_diagnostics(), 10)
        },
        Kind { grouped: true, ..kind("metropolis, geometric", metropolis, 10) },
    ]
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let mut cases = Vec::new();
    for packed in two_kinds(scale) {
        for Kind { name, config, read, grouped } in kinds() {
            let (tokens, segments) = (packed.tokens() as u64, packed.count() as u64);
            // An offset a segment; where they are grouped, a member too.
            let of_segment = if grouped { 12 } else { 8 };
            let packed = packed.clone();
            cases.push(Case {
                noun: "correction",
                operation: name.into(),
                shape: packed.shape() + if grouped { ", groups of 8" } else { "" },
                element: Element::F32,
                floor: Floor { read: read * tokens + of_segment * segments, written: 5 * tokens },
                prepare: Box::new(move |backend, stream| correction(backend, stream, &packed, &config, grouped)),
            });
        }
    }
    cases
}

fn correction<B: Measure + 'static>(
    backend: &B,
    stream: &B::Stream,
    packed: &Packed,
    config: &Config,
    grouped: bool,
) -> moerl::Result<Call<B>> {
    let (tokens, segments) = (packed.tokens(), packed.count());
    let plan = Plan::new(backend, stream, &packed.segments()?)?;
    let groups: Vec<i32> = (0..segments).map(|i| (i / GROUP) as i32).collect();
    let groups = GroupPlan::new(backend, stream, &Groups::from_ids(&groups))?;
    let old: Vec<f32> = generate(tokens, |u| -5.0 * hashed(u));
    let rollout: Vec<f32> = generate(tokens, |u| old[u] - 0.1 * hashed(u + tokens));
    let (old, rollout) = (backend.upload(stream, &old)?, backend.upload(stream, &rollout)?);
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let ids = backend.upload(stream, &(0..segments as u64).collect::<Vec<_>>())?;
    let mut weights = backend.allocate::<f32>(stream, tokens)?;
    let mut keep = backend.allocate::<u8>(stream, tokens)?;
    let mut sums = backend.allocate::<f64>(stream, diagnostics::LEN)?;
    let bytes = workspace_bytes(&Plans { groups: Some(&groups), ..Plans::new(&plan) });
    let mut workspace = backend.allocate::<u8>(stream, bytes)?;
    let config = config.clone();
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let plans = Plans { groups: grouped.then_some(&groups), ..Plans::new(&plan) };
        let batch = Batch {
            loss_mask: Some(mask.view()),
            segment_ids: grouped.then(|| ids.view()),
            ..Batch::new(old.view(), rollout.view())
        };
        let output = Output {
            weights: Some(weights.view_mut()),
            keep: Some(keep.view_mut()),
            diagnostics: config.diagnostics.then(|| sums.view_mut()),
            ..Output::new(workspace.view_mut())
        };
        backend.correction(stream, &config, plans, batch, output)
    }))
}

/// Every correction that tosses no coin, without its statistics.
///
/// # Errors
/// The backend's.
pub fn export<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    let packed = Packed::exported();
    let (tokens, segments) = (packed.tokens(), packed.count());
    let plan = Plan::new(to.backend, &to.stream, &packed.segments()?)?;
    let members: Vec<i32> = (0..segments).map(|i| (i / GROUP) as i32).collect();
    let groups = GroupPlan::new(to.backend, &to.stream, &Groups::from_ids(&members))?;
    let is_exported = |config: &Config| !config.diagnostics && !matches!(config.weight, Weight::Metropolis { .. });
    for Kind { name, config, grouped, .. } in kinds().into_iter().filter(|kind| is_exported(&kind.config)) {
        let shape = packed.shape() + if grouped { ", groups of 8" } else { "" };
        to.call("correction", name, &shape, Element::F32);
        let old: Vec<f32> = generate(tokens, |u| -5.0 * hashed(u));
        // Around 1, but for a segment above every cap, and two tokens that the veto is about.
        let log_ratio = |u: usize| match u {
            600 => 11.0,
            1201 => -11.0,
            _ => 0.3 * normal(u + tokens) + f32::from(u8::from(u / EXPORTED[1] == 5)),
        };
        let rollout: Vec<f32> = generate(tokens, |u| old[u] - log_ratio(u));
        let (old, rollout) = (to.input("old", &EXPORTED, &old)?, to.input("rollout", &EXPORTED, &rollout)?);
        let mask = to.input("mask", &EXPORTED, &exported_mask())?;
        let (mut weights, mut keep) = (to.zeros::<f32>(tokens)?, to.zeros::<u8>(tokens)?);
        let plans = Plans { groups: grouped.then_some(&groups), ..Plans::new(&plan) };
        let mut workspace = to.zeros::<u8>(workspace_bytes(&plans))?;
        let batch = Batch { loss_mask: Some(mask.view()), ..Batch::new(old.view(), rollout.view()) };
        let output = Output {
            weights: Some(weights.view_mut()),
            keep: Some(keep.view_mut()),
            ..Output::new(workspace.view_mut())
        };
        to.backend.correction(&to.stream, &config, plans, batch, output)?;
        to.result("weights", &EXPORTED, &weights)?;
        to.result("keep", &EXPORTED, &keep)?;
    }
    Ok(())
}
