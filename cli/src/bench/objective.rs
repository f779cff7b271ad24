//! Loss and gradient over packed segments of every kind of length: no kind may cost much more per byte than another.

use moerl::element::Element;
use moerl::objective::{Advantages, Batch, Config, Denominators, Output, Plan, Segments, workspace_bytes};
use moerl::{Buffer, diagnostics};

use super::case::{Call, Case, Floor, Scale, generate, hashed, normal};
use super::measure::Measure;

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let sizes: &[usize] = if scale == Scale::Full { &[1 << 20, 1 << 24] } else { &[1 << 15] };
    // Both read 9 bytes a token for the sums or the ratios, 1 for the count or the gradient, and write 4.
    let objectives = [("ppo_clip", Config::ppo_clip(0.2, 0.28)), ("gspo", Config::gspo(3e-4, 4e-4))];
    let mut cases = Vec::new();
    for &tokens in sizes {
        for (lengths, name) in distributions(tokens) {
            for (objective, config) in &objectives {
                for with_diagnostics in [false, true] {
                    let (lengths, config, segments) = (lengths.clone(), config.clone(), lengths.len() as u64);
                    cases.push(Case {
                        noun: "objective",
                        operation: format!("{objective}{}", if with_diagnostics { " with diagnostics" } else { "" }),
                        shape: format!("N={tokens} {name}"),
                        element: Element::F32,
                        floor: Floor { read: 10 * tokens as u64 + 12 * segments, written: 4 * tokens as u64 },
                        prepare: Box::new(move |backend, stream| {
                            objective_call(backend, stream, &lengths, &config, with_diagnostics)
                        }),
                    });
                }
            }
        }
    }
    cases
}

/// Lengths of segments that fill `tokens`, with their names.
fn distributions(tokens: usize) -> Vec<(Vec<usize>, &'static str)> {
    let fill = |length: &dyn Fn(usize) -> usize| {
        let (mut lengths, mut left) = (Vec::new(), tokens);
        while left > 0 {
            let length = length(lengths.len()).clamp(1, left);
            lengths.push(length);
            left -= length;
        }
        lengths
    };
    let half = tokens / 2;
    let one_long = [vec![half], vec![256; half / 256]].concat();
    vec![
        (fill(&|_| 1), "of length 1"),
        (fill(&|_| 17), "of length 17"),
        (fill(&|i| 1 + (hashed(i) * 2047.0) as usize), "of 1 to 2k, uniform"),
        (fill(&|i| (3000.0 * (0.75 * normal(i)).exp()) as usize), "of 4k in the mean, log-normal"),
        (fill(&|_| 8192), "of 8k"),
        (fill(&|_| 16_384), "of 16k"),
        (one_long, "one of half, others of 256"),
        (vec![tokens], "one"),
    ]
}

fn objective_call<B: Measure + 'static>(
    backend: &B,
    stream: &B::Stream,
    lengths: &[usize],
    config: &Config,
    with_diagnostics: bool,
) -> moerl::Result<Call<B>> {
    let tokens: usize = lengths.iter().sum();
    let plan = Plan::new(backend, stream, &Segments::from_lengths(lengths.iter().copied())?)?;
    let old: Vec<f32> = generate(tokens, |u| -5.0 * hashed(u));
    let new: Vec<f32> = generate(tokens, |u| old[u] - 0.1 * hashed(u + tokens));
    let advantages: Vec<f32> = (0..lengths.len()).map(normal).collect();
    let (old, new) = (backend.upload(stream, &old)?, backend.upload(stream, &new)?);
    let advantages = backend.upload(stream, &advantages)?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let mut loss = backend.allocate::<f64>(stream, 1)?;
    let mut d_logprobs = backend.allocate::<f32>(stream, tokens)?;
    let mut sums = backend.allocate::<f64>(stream, diagnostics::LEN)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(&plan))?;
    let config = config.clone();
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let segments = plan.segments();
        let denominators = Denominators::global(segments.tokens() as u64, segments.len() as u64);
        let batch = Batch {
            old_logprobs: Some(old.view()),
            loss_mask: Some(mask.view()),
            ..Batch::new(new.view(), Advantages::PerSegment(advantages.view()), denominators)
        };
        let output = Output {
            loss: Some(loss.view_mut()),
            d_logprobs: Some(d_logprobs.view_mut()),
            diagnostics: with_diagnostics.then(|| sums.view_mut()),
            ..Output::new(workspace.view_mut())
        };
        backend.objective(stream, &config, &plan, batch, output)
    }))
}
