//! The tokens that Clip-Cov and KL-Cov single out.

use moerl::Buffer;
use moerl::covariance::{Call as Covariance, Config, Rule, workspace_bytes};
use moerl::element::Element;

use super::case::{Call, Case, Floor, Scale, generate, hashed, normal};
use super::measure::Measure;

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let sizes: &[usize] = if scale == Scale::Full { &[1 << 20, 1 << 24] } else { &[3000] };
    let bounds = (1.0, 5.0);
    let rules = [
        ("largest", Rule::Largest { fraction: 2e-3 }),
        ("random", Rule::Random { bounds, fraction: 2e-4, seed: 7 }),
        ("bernoulli", Rule::Bernoulli { bounds, probability: 2e-4, seed: 7 }),
    ];
    let mut cases = Vec::new();
    for &tokens in sizes {
        for (name, rule) in rules {
            cases.push(Case {
                noun: "covariance",
                operation: name.into(),
                shape: format!("N={tokens}"),
                element: Element::F32,
                // Log-probability, advantage, mask and id; whether it is chosen.
                floor: Floor { read: 13 * tokens as u64, written: tokens as u64 },
                prepare: Box::new(move |backend, stream| choose(backend, stream, tokens, Config::new(rule))),
            });
        }
    }
    cases
}

fn choose<B: Measure + 'static>(
    backend: &B,
    stream: &B::Stream,
    tokens: usize,
    config: Config,
) -> moerl::Result<Call<B>> {
    let logprobs = backend.upload(stream, &generate(tokens, |u| -5.0 * hashed(u)))?;
    let advantages = backend.upload(stream, &generate(tokens, normal))?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let ids = backend.upload(stream, &generate(tokens, |u| u as u32))?;
    let mut chosen = backend.allocate::<u8>(stream, tokens)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(tokens))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = Covariance {
            logprobs: logprobs.view(),
            advantages: advantages.view(),
            loss_mask: Some(mask.view()),
            excluded: None,
            token_ids: ids.view(),
            chosen: Some(chosen.view_mut()),
            keep: None,
            workspace: workspace.view_mut(),
        };
        backend.covariance(stream, &config, call)
    }))
}
