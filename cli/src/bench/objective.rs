//! Loss and gradient over packed segments of every kind of length; what statistics and maps cost beside them, and terms that need more arrays.

use moerl::element::Element;
use moerl::objective::{
    Advantages, Aggregation, Batch, Config, Denominators, Kl, KlForm, Output, Plan, workspace_bytes,
};
use moerl::{Backend, Buffer, diagnostics};

use super::case::{Call, Case, Floor, Scale, generate, hashed, normal};
use super::export::Exporter;
use super::measure::Measure;
use super::packed::{EXPORTED, Packed, every_kind, exported_mask, short_kinds, two_kinds};
use crate::failure::Result;

/// Tokens of a segment that a warp can keep.
const KEPT: usize = 1024;

/// An objective, by name.
#[derive(Clone)]
struct Objective {
    name: &'static str,
    config: Config,
    /// The array that it needs beside the two log-probabilities and the mask.
    needs: Option<Needs>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    RefLogprobs,
    RouterShift,
    /// An advantage of each token, in place of the segment's.
    TokenAdvantages,
}

/// What is asked for beside loss and gradient.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Diagnostics,
    /// Ratios of tokens and sequences, and whether they were clipped.
    Maps,
}

impl Beside {
    fn suffix(self) -> &'static str {
        match self {
            Beside::Nothing => "",
            Beside::Diagnostics => " with diagnostics",
            Beside::Maps => " with maps",
        }
    }
}

/// Those that everyone has.
fn common() -> [Objective; 2] {
    let plain = |name, config| Objective { name, config, needs: None };
    [plain("ppo_clip", Config::ppo_clip(0.2, 0.28)), plain("gspo", Config::gspo(3e-4, 4e-4))]
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let [ppo_clip, gspo] = common();
    let gspo_token = Objective { name: "gspo_token", config: Config::gspo_token(3e-4, 4e-4), needs: None };
    let k3 = Objective {
        name: "ppo_clip, k3",
        config: ppo_clip.config.clone().with_kl(Kl::new(1e-3, KlForm::K3)),
        needs: Some(Needs::RefLogprobs),
    };
    let shift = Objective { name: "gspo, router shift", needs: Some(Needs::RouterShift), ..gspo.clone() };
    let token_mean = Objective {
        name: "ppo_clip, mean over tokens",
        config: ppo_clip.config.clone().with_aggregation(Aggregation::TokenMean),
        needs: None,
    };
    let per_token =
        Objective { name: "gspo_token, A per token", needs: Some(Needs::TokenAdvantages), ..gspo_token.clone() };
    let both = [Beside::Nothing, Beside::Diagnostics];
    let mut cases = Vec::new();
    for packed in every_kind(scale) {
        cases.extend(cases_of(&packed, &ppo_clip, &both));
        cases.extend(cases_of(&packed, &gspo, &both));
        cases.extend(cases_of(&packed, &gspo_token, &both));
    }
    for packed in short_kinds(scale).iter().chain(&two_kinds(scale)) {
        cases.extend(cases_of(packed, &ppo_clip, &[Beside::Maps]));
        cases.extend(cases_of(packed, &gspo, &[Beside::Maps]));
        cases.extend(cases_of(packed, &token_mean, &[Beside::Nothing]));
        cases.extend(cases_of(packed, &per_token, &both));
        cases.extend(cases_of(packed, &k3, &both));
        cases.extend(cases_of(packed, &shift, &both));
    }
    cases
}

fn cases_of<B: Measure + 'static>(packed: &Packed, objective: &Objective, beside: &[Beside]) -> Vec<Case<B>> {
    let (tokens, segments) = (packed.tokens() as u64, packed.count() as u64);
    // Two log-probabilities and the mask; the mask again where a segment's count or sum is asked for, not known until all of it was read, and it is
    // too long to be kept.
    let needs_segments = objective.config.aggregation != Aggregation::TokenMean;
    let again = if needs_segments && packed.longest() > KEPT { 1 } else { 0 };
    let read = 9 + again + if objective.needs.is_some() { 4 } else { 0 };
    // Where it begins, unless each has one token; and its advantage.
    let of_offsets = if packed.longest() > 1 { 8 } else { 0 };
    let of_advantages = if objective.needs == Some(Needs::TokenAdvantages) { 0 } else { 4 };
    let case = |&beside: &Beside| {
        let (of_token, of_segment) = if beside == Beside::Maps { (5, 5) } else { (0, 0) };
        let (packed, objective) = (packed.clone(), objective.clone());
        Case {
            noun: "objective",
            operation: format!("{}{}", objective.name, beside.suffix()),
            shape: packed.shape(),
            element: Element::F32,
            floor: Floor {
                read: read * tokens + (of_offsets + of_advantages) * segments,
                written: (4 + of_token) * tokens + of_segment * segments,
            },
            prepare: Box::new(move |backend: &B, stream: &B::Stream| {
                objective_call(backend, stream, &packed, &objective, beside)
            }) as _,
        }
    };
    beside.iter().map(case).collect()
}

fn objective_call<B: Measure + 'static>(
    backend: &B,
    stream: &B::Stream,
    packed: &Packed,
    objective: &Objective,
    beside: Beside,
) -> moerl::Result<Call<B>> {
    let (tokens, segments) = (packed.tokens(), packed.count());
    let plan = Plan::new(backend, stream, &packed.segments()?)?;
    let old: Vec<f32> = generate(tokens, |u| -5.0 * hashed(u));
    let new: Vec<f32> = generate(tokens, |u| old[u] - 0.1 * hashed(u + tokens));
    let more: Vec<f32> = match objective.needs {
        None => Vec::new(),
        Some(Needs::RefLogprobs) => generate(tokens, |u| old[u] - 0.1 * hashed(u + 2 * tokens)),
        Some(Needs::RouterShift) => generate(tokens, |u| -0.01 * hashed(u + 2 * tokens)),
        Some(Needs::TokenAdvantages) => generate(tokens, normal),
    };
    let advantages: Vec<f32> = (0..segments).map(normal).collect();
    let (old, new) = (backend.upload(stream, &old)?, backend.upload(stream, &new)?);
    let (more, advantages) = (backend.upload(stream, &more)?, backend.upload(stream, &advantages)?);
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let mut loss = backend.allocate::<f64>(stream, 1)?;
    let mut d_logprobs = backend.allocate::<f32>(stream, tokens)?;
    let mut sums = backend.allocate::<f64>(stream, diagnostics::LEN)?;
    let with_maps = beside == Beside::Maps;
    let of_maps = |len: usize| if with_maps { len } else { 0 };
    let mut ratio = backend.allocate::<f32>(stream, of_maps(tokens))?;
    let mut clipped = backend.allocate::<u8>(stream, of_maps(tokens))?;
    let mut sequence_ratio = backend.allocate::<f32>(stream, of_maps(segments))?;
    let mut sequence_clipped = backend.allocate::<u8>(stream, of_maps(segments))?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(&plan))?;
    let Objective { config, needs, .. } = objective.clone();
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let denominators = Denominators::global(tokens as u64, segments as u64);
        let batch = Batch {
            old_logprobs: Some(old.view()),
            loss_mask: Some(mask.view()),
            ref_logprobs: (needs == Some(Needs::RefLogprobs)).then(|| more.view()),
            router_shift: (needs == Some(Needs::RouterShift)).then(|| more.view()),
            ..Batch::new(
                new.view(),
                match needs {
                    Some(Needs::TokenAdvantages) => Advantages::PerToken(more.view()),
                    _ => Advantages::PerSegment(advantages.view()),
                },
                denominators,
            )
        };
        let output = Output {
            loss: Some(loss.view_mut()),
            d_logprobs: Some(d_logprobs.view_mut()),
            diagnostics: (beside == Beside::Diagnostics).then(|| sums.view_mut()),
            ratio: with_maps.then(|| ratio.view_mut()),
            clipped: with_maps.then(|| clipped.view_mut()),
            sequence_ratio: with_maps.then(|| sequence_ratio.view_mut()),
            sequence_clipped: with_maps.then(|| sequence_clipped.view_mut()),
            ..Output::new(workspace.view_mut())
        };
        backend.objective(stream, &config, &plan, batch, output)
    }))
}

/// Loss and gradient, some of it clipped, of the objectives that everyone has.
///
/// # Errors
/// The backend's.
pub fn export<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    let packed = Packed::exported();
    let plan = Plan::new(to.backend, &to.stream, &packed.segments()?)?;
    let (tokens, segments) = (packed.tokens(), packed.count());
    for Objective { name, config, .. } in common() {
        to.call("objective", name, &packed.shape(), Element::F32);
        let old: Vec<f32> = generate(tokens, |u| -5.0 * hashed(u));
        let new = to.input("new", &EXPORTED, &generate(tokens, |u| old[u] + 0.2 * normal(u + tokens)))?;
        let old = to.input("old", &EXPORTED, &old)?;
        let advantages = to.input("advantages", &[segments], &generate(segments, normal))?;
        let mask = exported_mask();
        let counted = mask.iter().map(|&m| u64::from(m)).sum();
        let mask = to.input("mask", &EXPORTED, &mask)?;
        let (mut loss, mut d_logprobs) = (to.zeros::<f64>(1)?, to.zeros::<f32>(tokens)?);
        let mut workspace = to.zeros::<u8>(workspace_bytes(&plan))?;
        let denominators = Denominators::global(counted, segments as u64);
        let batch = Batch {
            old_logprobs: Some(old.view()),
            loss_mask: Some(mask.view()),
            ..Batch::new(new.view(), Advantages::PerSegment(advantages.view()), denominators)
        };
        let output = Output {
            loss: Some(loss.view_mut()),
            d_logprobs: Some(d_logprobs.view_mut()),
            ..Output::new(workspace.view_mut())
        };
        to.backend.objective(&to.stream, &config, &plan, batch, output)?;
        let loss = to.backend.download(&to.stream, loss.view())?;
        let loss = to.backend.upload(&to.stream, &[loss[0] as f32])?;
        to.result("loss", &[1], &loss)?;
        to.result("d_logprobs", &EXPORTED, &d_logprobs)?;
    }
    Ok(())
}
