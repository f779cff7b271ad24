//! Statistics of tokens by how many of their experts changed.

use moerl::Buffer;
use moerl::element::Element;
use moerl::route_change::{BINS, Call as RouteChange, NUMBERS, workspace_bytes};

use super::case::{Call, Case, Floor, Scale, generate, hashed};
use super::measure::Measure;

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let sizes: &[usize] = if scale == Scale::Full { &[1 << 20, 1 << 24] } else { &[3000] };
    let case = |&tokens: &usize| Case {
        noun: "route_change",
        operation: "sums by bin".into(),
        shape: format!("N={tokens}"),
        element: Element::F32,
        // Three log-probabilities; mask, clipped, kept and the bin.
        floor: Floor { read: 16 * tokens as u64, written: 8 * (BINS * NUMBERS) as u64 },
        prepare: Box::new(move |backend: &B, stream: &B::Stream| sums(backend, stream, tokens)) as _,
    };
    sizes.iter().map(case).collect()
}

fn sums<B: Measure + 'static>(backend: &B, stream: &B::Stream, tokens: usize) -> moerl::Result<Call<B>> {
    let logprobs = |part: usize| generate(tokens, |u| -5.0 * hashed(u) - 0.1 * hashed(u + part * tokens));
    let new = backend.upload(stream, &logprobs(1))?;
    let old = backend.upload(stream, &logprobs(2))?;
    let rollout = backend.upload(stream, &logprobs(3))?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let clipped = backend.upload(stream, &generate(tokens, |u| u8::from(hashed(u) < 0.1)))?;
    let bins = backend.upload(stream, &generate(tokens, |u| (hashed(u) * BINS as f32) as u8))?;
    let mut sums = backend.allocate::<f64>(stream, BINS * NUMBERS)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(tokens))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = RouteChange {
            logprobs: new.view(),
            old_logprobs: old.view(),
            rollout_logprobs: Some(rollout.view()),
            loss_mask: Some(mask.view()),
            clipped: Some(clipped.view()),
            keep: Some(mask.view()),
            route_change: bins.view(),
            sums: sums.view_mut(),
            workspace: workspace.view_mut(),
            accumulate: false,
        };
        backend.route_change(stream, call)
    }))
}
