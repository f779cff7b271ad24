//! Advantages of groups, and of the tokens of packed segments.

use moerl::advantage::{
    BaselineCall, BaselinePlan, Call as Group, Config, CountTokens, DoublyRobust, GroupPlan, MOMENTS, TokenBaseline,
    TokenCall, TokenEstimator, Weights, Whitening, baseline_workspace_bytes, moments_workspace_bytes,
    token_workspace_bytes, whiten, workspace_bytes,
};
use moerl::element::Element;
use moerl::objective::{Groups, Plan};
use moerl::{Backend, Buffer};

use super::case::{Call, Case, Floor, Prepare, Scale, generate, hashed, normal};
use super::export::Exporter;
use super::measure::Measure;
use super::packed::{EXPORTED, Packed, exported_mask, two_kinds};
use crate::failure::Result;

/// Segments of a group of answers.
const GROUP: usize = 8;

const REWARD_TO_GO: TokenEstimator = TokenEstimator::Returns { gamma: 1.0 };
const GAE: TokenEstimator = TokenEstimator::Gae { gamma: 1.0, lambda: 0.95 };

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let segments: &[usize] = if scale == Scale::Full { &[1 << 14, 1 << 20] } else { &[1 << 11] };
    let mut cases: Vec<Case<B>> = segments.iter().flat_map(|&segments| of_segments(segments)).collect();
    cases.extend(two_kinds(scale).iter().flat_map(of_tokens));
    cases
}

fn case<B: Measure>(operation: &str, shape: String, read: usize, written: usize, prepare: Prepare<B>) -> Case<B> {
    Case {
        noun: "advantage",
        operation: operation.into(),
        shape,
        element: Element::F32,
        floor: Floor { read: read as u64, written: written as u64 },
        prepare,
    }
}

/// Groups of few, of more than a warp takes, and one that blocks share; and a value model's estimates, corrected.
fn of_segments<B: Measure + 'static>(segments: usize) -> Vec<Case<B>> {
    let mut cases: Vec<Case<B>> = [GROUP, 64, segments]
        .into_iter()
        .map(|size| {
            // A reward and a member a segment, an offset a group.
            let (read, written) = (8 * segments + 4 * segments.div_ceil(size), 4 * segments);
            let shape = format!("S={segments} in groups of {size}");
            case(
                "group norm",
                shape,
                read,
                written,
                Box::new(move |b, s| of_groups(b, s, &Config::default(), segments, size)),
            )
        })
        .collect();
    cases.push(case(
        "rloo",
        format!("S={segments} in groups of {GROUP}"),
        8 * segments + 4 * segments.div_ceil(GROUP),
        4 * segments,
        Box::new(move |b, s| of_groups(b, s, &Config::rloo(), segments, GROUP)),
    ));
    let shape = format!("S={segments}");
    cases.push(case(
        "doubly robust",
        shape,
        12 * segments,
        8 * segments,
        Box::new(move |b, s| doubly_robust(b, s, segments)),
    ));
    cases
}

fn of_tokens<B: Measure + 'static>(packed: &Packed) -> Vec<Case<B>> {
    let (tokens, segments) = (packed.tokens(), packed.count());
    let estimator = |name: &str, estimator: TokenEstimator, values: usize, written: usize| {
        let packed_shape = packed.shape();
        let packed = packed.clone();
        // The mask and so many values a token; an offset and a reward a segment.
        let read = (1 + 4 * values) * tokens + 12 * segments;
        case(
            name,
            packed_shape,
            read,
            written * tokens,
            Box::new(move |b, s| token_advantages(b, s, &packed, estimator)),
        )
    };
    let plain = |prepare: fn(&B, &B::Stream, &Packed) -> moerl::Result<Call<B>>| -> Prepare<B> {
        let packed = packed.clone();
        Box::new(move |backend, stream| prepare(backend, stream, &packed))
    };
    vec![
        estimator("reward to go", REWARD_TO_GO, 0, 4),
        estimator("gae", GAE, 1, 8),
        estimator("v-trace", TokenEstimator::vtrace(1.0), 2, 8),
        // Two passes over values and mask, and one that also writes.
        case("whitening", packed.shape(), 15 * tokens, 4 * tokens, plain(whitening)),
        case(
            "token baseline",
            packed.shape() + ", groups of 8",
            13 * tokens + 12 * segments,
            4 * tokens,
            plain(token_baseline),
        ),
        case("counted tokens", packed.shape(), tokens + 8 * segments, 4 * segments, plain(counted_tokens)),
    ]
}

fn normals<B: Measure>(backend: &B, stream: &B::Stream, len: usize) -> moerl::Result<B::Buffer<f32>> {
    backend.upload(stream, &generate(len, normal))
}

fn plan<B: Measure>(backend: &B, stream: &B::Stream, packed: &Packed) -> moerl::Result<Plan<B>> {
    Plan::new(backend, stream, &packed.segments()?)
}

fn groups(segments: usize, size: usize) -> Groups {
    Groups::from_ids(&(0..segments).map(|i| (i / size) as i32).collect::<Vec<_>>())
}

fn of_groups<B: Measure + 'static>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    segments: usize,
    size: usize,
) -> moerl::Result<Call<B>> {
    let plan = GroupPlan::new(backend, stream, &groups(segments, size))?;
    let rewards = normals(backend, stream, segments)?;
    let mut advantages = backend.allocate::<f32>(stream, segments)?;
    let mut workspace = backend.allocate::<u8>(stream, workspace_bytes(&plan))?;
    let config = *config;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let workspace = Some(workspace.view_mut());
        let call = Group { workspace, ..Group::new(rewards.view(), advantages.view_mut()) };
        backend.group_advantages(stream, &config, &plan, call)
    }))
}

fn doubly_robust<B: Measure + 'static>(backend: &B, stream: &B::Stream, segments: usize) -> moerl::Result<Call<B>> {
    let rewards = normals(backend, stream, segments)?;
    let values = normals(backend, stream, segments)?;
    let weights = backend.upload(stream, &generate(segments, hashed))?;
    let mut advantages = backend.allocate::<f32>(stream, segments)?;
    let mut estimates = backend.allocate::<f32>(stream, segments)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = DoublyRobust {
            rewards: rewards.view(),
            values: values.view(),
            weights: Some(weights.view()),
            advantages: advantages.view_mut(),
            estimates: Some(estimates.view_mut()),
            nonfinite: None,
        };
        backend.doubly_robust(stream, call)
    }))
}

fn token_advantages<B: Measure + 'static>(
    backend: &B,
    stream: &B::Stream,
    packed: &Packed,
    estimator: TokenEstimator,
) -> moerl::Result<Call<B>> {
    let plan = plan(backend, stream, packed)?;
    let tokens = packed.tokens();
    let with_values = !matches!(estimator, TokenEstimator::Returns { .. });
    let with_ratio = matches!(estimator, TokenEstimator::Vtrace { .. });
    let rewards = normals(backend, stream, packed.count())?;
    let values = normals(backend, stream, tokens)?;
    let ratio = backend.upload(stream, &generate(tokens, |u| 0.9 + 0.2 * hashed(u)))?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let mut advantages = backend.allocate::<f32>(stream, tokens)?;
    let mut returns = backend.allocate::<f32>(stream, tokens)?;
    let mut workspace = backend.allocate::<u8>(stream, token_workspace_bytes(&plan))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = TokenCall {
            segment_rewards: Some(rewards.view()),
            values: with_values.then(|| values.view()),
            ratio: with_ratio.then(|| ratio.view()),
            loss_mask: Some(mask.view()),
            advantages: Some(advantages.view_mut()),
            returns: with_values.then(|| returns.view_mut()),
            ..TokenCall::new(workspace.view_mut())
        };
        backend.token_advantages(stream, &estimator, &plan, call)
    }))
}

fn whitening<B: Measure + 'static>(backend: &B, stream: &B::Stream, packed: &Packed) -> moerl::Result<Call<B>> {
    let tokens = packed.tokens();
    let mut values = normals(backend, stream, tokens)?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let mut moments = backend.allocate::<f64>(stream, MOMENTS)?;
    let mut workspace = backend.allocate::<u8>(stream, moments_workspace_bytes(tokens))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let (values, weights) = (values.view_mut(), Weights::Mask(mask.view()));
        let (moments, workspace) = (moments.view_mut(), workspace.view_mut());
        whiten(backend, stream, &Whitening::default(), values, weights, moments, workspace)
    }))
}

fn token_baseline<B: Measure + 'static>(backend: &B, stream: &B::Stream, packed: &Packed) -> moerl::Result<Call<B>> {
    let segments = packed.segments()?;
    let plan = BaselinePlan::new(backend, stream, &segments, &groups(packed.count(), GROUP))?;
    let tokens = packed.tokens();
    let returns = normals(backend, stream, tokens)?;
    let logprobs = backend.upload(stream, &generate(tokens, |u| -5.0 * hashed(u)))?;
    let sum_p2 = backend.upload(stream, &generate(tokens, hashed))?;
    let mask = backend.upload(stream, &vec![1_u8; tokens])?;
    let mut advantages = backend.allocate::<f32>(stream, tokens)?;
    let mut workspace = backend.allocate::<u8>(stream, baseline_workspace_bytes(&plan))?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = BaselineCall {
            returns: returns.view(),
            logprobs: logprobs.view(),
            sum_p2: sum_p2.view(),
            weights: None,
            loss_mask: Some(mask.view()),
            advantages: advantages.view_mut(),
            nonfinite: None,
            errors: None,
            tag: 0,
            workspace: workspace.view_mut(),
        };
        backend.token_baseline(stream, &TokenBaseline::default(), &plan, call)
    }))
}

fn counted_tokens<B: Measure + 'static>(backend: &B, stream: &B::Stream, packed: &Packed) -> moerl::Result<Call<B>> {
    let plan = plan(backend, stream, packed)?;
    let mask = backend.upload(stream, &vec![1_u8; packed.tokens()])?;
    let mut counts = backend.allocate::<u32>(stream, packed.count())?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let call = CountTokens { loss_mask: Some(mask.view()), counts: counts.view_mut() };
        backend.count_tokens(stream, &plan, call)
    }))
}

/// Groups and tokens.
///
/// # Errors
/// The backend's.
pub fn export<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    export_groups(to, "group norm", &Config::default())?;
    export_groups(to, "rloo", &Config::rloo())?;
    export_doubly_robust(to)?;
    export_tokens(to, "reward to go", &REWARD_TO_GO)?;
    export_tokens(to, "gae", &GAE)?;
    export_whitening(to)
}

fn export_groups<B: Backend>(to: &mut Exporter<'_, B>, name: &str, config: &Config) -> Result<()> {
    let (segments, shape) = (8 * GROUP, [8, GROUP]);
    to.call("advantage", name, &format!("S={segments} in groups of {GROUP}"), Element::F32);
    let plan = GroupPlan::new(to.backend, &to.stream, &groups(segments, GROUP))?;
    // The rewards of one group are all the same.
    let rewards = generate(segments, |i| if i / GROUP == 3 { 0.7 } else { normal(i) });
    let rewards = to.input("rewards", &shape, &rewards)?;
    let (mut advantages, mut workspace) = (to.zeros::<f32>(segments)?, to.zeros::<u8>(workspace_bytes(&plan))?);
    let call = Group { workspace: Some(workspace.view_mut()), ..Group::new(rewards.view(), advantages.view_mut()) };
    to.backend.group_advantages(&to.stream, config, &plan, call)?;
    to.result("advantages", &shape, &advantages)
}

fn export_doubly_robust<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    let segments = 64;
    to.call("advantage", "doubly robust", &format!("S={segments}"), Element::F32);
    let rewards = to.input("rewards", &[segments], &generate(segments, normal))?;
    let values = to.input("values", &[segments], &generate(segments, |i| normal(i + segments)))?;
    let weights = to.input("weights", &[segments], &generate(segments, hashed))?;
    let (mut advantages, mut estimates) = (to.zeros::<f32>(segments)?, to.zeros::<f32>(segments)?);
    let call = DoublyRobust {
        rewards: rewards.view(),
        values: values.view(),
        weights: Some(weights.view()),
        advantages: advantages.view_mut(),
        estimates: Some(estimates.view_mut()),
        nonfinite: None,
    };
    to.backend.doubly_robust(&to.stream, call)?;
    to.result("advantages", &[segments], &advantages)?;
    to.result("estimates", &[segments], &estimates)
}

fn export_tokens<B: Backend>(to: &mut Exporter<'_, B>, name: &str, estimator: &TokenEstimator) -> Result<()> {
    let packed = Packed::exported();
    let (tokens, segments) = (packed.tokens(), packed.count());
    let with_values = !matches!(estimator, TokenEstimator::Returns { .. });
    to.call("advantage", name, &packed.shape(), Element::F32);
    let plan = Plan::new(to.backend, &to.stream, &packed.segments()?)?;
    let rewards = to.input("rewards", &[segments], &generate(segments, normal))?;
    let values = if with_values {
        Some(to.input("values", &EXPORTED, &generate(tokens, |u| normal(u + segments)))?)
    } else {
        None
    };
    let mask = to.input("mask", &EXPORTED, &exported_mask())?;
    let (mut advantages, mut returns) = (to.zeros::<f32>(tokens)?, to.zeros::<f32>(tokens)?);
    let mut workspace = to.zeros::<u8>(token_workspace_bytes(&plan))?;
    let call = TokenCall {
        segment_rewards: Some(rewards.view()),
        values: values.as_ref().map(|values| values.view()),
        loss_mask: Some(mask.view()),
        advantages: Some(advantages.view_mut()),
        returns: with_values.then(|| returns.view_mut()),
        ..TokenCall::new(workspace.view_mut())
    };
    to.backend.token_advantages(&to.stream, estimator, &plan, call)?;
    to.result("advantages", &EXPORTED, &advantages)?;
    if with_values { to.result("returns", &EXPORTED, &returns) } else { Ok(()) }
}

fn export_whitening<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    let packed = Packed::exported();
    let tokens = packed.tokens();
    to.call("advantage", "whitening", &packed.shape(), Element::F32);
    let mut values = to.input("values", &EXPORTED, &generate(tokens, |u| 0.5 + normal(u)))?;
    let mask = to.input("mask", &EXPORTED, &exported_mask())?;
    let mut moments = to.zeros::<f64>(MOMENTS)?;
    let mut workspace = to.zeros::<u8>(moments_workspace_bytes(tokens))?;
    let (weights, whitening) = (Weights::Mask(mask.view()), Whitening::default());
    let (place, moments, workspace) = (values.view_mut(), moments.view_mut(), workspace.view_mut());
    whiten(to.backend, &to.stream, &whitening, place, weights, moments, workspace)?;
    to.result("advantages", &EXPORTED, &values)
}
