//! Family objective, advantages: what rewards come to.
//!
//! Tensors: `BATCH/cu_seqlens`, `loss_mask`, `group`, `reward`, and `logp_old`, `sum_pi_squared_old`, weights for the baselines of tokens; expected `ID/advantage`, one value per token.

use moerl::advantage::{self, BaselineCall, BaselinePlan, Config, Single, TokenBaseline, TokenCall, TokenEstimator};
use moerl::objective::{Groups, Plan, Segments};
use moerl::{Backend, Buffer};

use super::{Case, Compared, Stop, Tolerance, unsupported};
use crate::advantage::{Estimator, Rewards, returns, run};
use crate::clock::Clock;

/// A group's mean and deviation are formed in f64 and the quotient rounded once; the producer's was cast to f32 as well. The absolute
/// part is for groups of equal rewards, exactly 0 here: the producer divides the rounding of its mean by ε.
const ADVANTAGE: Tolerance = Tolerance { relative: 1e-6, absolute: 1e-6 };

/// Runs one case.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    match case.producer_name() {
        "verl" => verl(backend, case),
        producer => unsupported(format!("producer {producer}, whose conventions are not known")),
    }
}

/// The batch that a case is about.
struct Data {
    segments: Segments,
    mask: Vec<u8>,
    groups: Groups,
    rewards: Vec<f32>,
}

impl Data {
    fn new(case: &Case<'_>) -> Result<Data, Stop> {
        let batch = case.text("batch").unwrap_or_default();
        let (offsets, _) = case.tensor::<i32>(&format!("{batch}/cu_seqlens"))?;
        let segments = Segments::from_offsets(&offsets)?;
        Ok(Data {
            mask: case.values::<u8>(&format!("{batch}/loss_mask"), segments.tokens())?,
            groups: Groups::from_ids(&case.values::<i32>(&format!("{batch}/group"), segments.len())?),
            rewards: case.values::<f32>(&format!("{batch}/reward"), segments.len())?,
            segments,
        })
    }

    /// The counted tokens of every segment.
    fn lengths(&self) -> Vec<u32> {
        let counted = |range: std::ops::Range<usize>| self.mask[range].iter().filter(|&&m| m != 0).count() as u32;
        self.segments.ranges().map(counted).collect()
    }

    /// A value per segment as the producer returns it: one per token, 0 where the mask is.
    fn by_token(&self, values: &[f32]) -> Vec<f32> {
        let mut by_token = Vec::with_capacity(self.mask.len());
        for (segment, range) in self.segments.ranges().enumerate() {
            by_token.extend(range.map(|u| if self.mask[u] != 0 { values[segment] } else { 0.0 }));
        }
        by_token
    }
}

/// verl's `compute_*_advantage`.
fn verl<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let function = case.text("function").unwrap_or_default();
    // A group of one keeps its reward.
    let kept = |config: Config| config.with_single(Single::Reward);
    let estimator = match function {
        "grpo" | "grpo_nostd" => {
            let config = case.config(&["norm_adv_by_std_in_grpo"])?;
            let std = function == "grpo";
            if config.get("norm_adv_by_std_in_grpo").is_some() && config.flag("norm_adv_by_std_in_grpo") != std {
                return Err(Stop::Fail("norm_adv_by_std_in_grpo contradicts the function".into()));
            }
            Estimator::Group(Config::verl(std))
        }
        "rloo" => case.config(&[]).map(|_| Estimator::Group(kept(Config::rloo())))?,
        "opo" => case.config(&[]).map(|_| Estimator::Group(kept(Config::opo())))?,
        "reinforce_pp_baseline" => {
            case.config(&[]).map(|_| Estimator::ReinforcePpBaseline(kept(Config::without_std())))?
        }
        name if name.starts_with("reinforce_pp_gamma") => return reinforce_pp(backend, case),
        name if name.contains("optimal_token_baseline") => return token_baseline(backend, case),
        other => return unsupported(format!("advantage {other}")),
    };
    let data = Data::new(case)?;
    let stream = backend.stream()?;
    let inputs = Rewards { groups: &data.groups, rewards: &data.rewards, lengths: Some(&data.lengths()) };
    let found = run(backend, &stream, &estimator, &inputs, &mut Clock::default())?;
    compare(case, &data.by_token(&found), |_| true)
}

/// Compares with the case's advantages, at the tokens that `is_defined`.
fn compare(case: &Case<'_>, found: &[f32], is_defined: impl Fn(usize) -> bool) -> Result<Compared, Stop> {
    let expected = case.values::<f32>(&format!("{}/advantage", case.id), found.len())?;
    let pick = |values: &[f32]| -> Vec<f32> {
        values.iter().enumerate().filter(|&(token, _)| is_defined(token)).map(|(_, &value)| value).collect()
    };
    let mut compared = Compared::default();
    compared.close("advantage", &pick(found), &pick(&expected), ADVANTAGE);
    Ok(compared)
}

/// The return skips masked tokens, as ours does.
fn reinforce_pp<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let Some(gamma) = case.config(&["gamma"])?.number("gamma") else {
        return Err(Stop::Fail("the configuration has no gamma".into()));
    };
    let data = Data::new(case)?;
    let stream = backend.stream()?;
    let found = returns(backend, &stream, gamma, &data.segments, &data.rewards, &data.mask, &mut Clock::default())?;
    compare(case, &found, |_| true)
}

/// `tir_optimal_token_baseline` counts a token's index as we do. The plain one takes the padded column, and a member without a token for a member.
fn token_baseline<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let config = case.config(&["handle_zero_tail", "rollout_is_weights"])?;
    let data = Data::new(case)?;
    let zero_tail = config.flag("handle_zero_tail");
    let found = baselines(backend, case, &data, &config, TokenBaseline { zero_tail, ..TokenBaseline::default() })?;
    if case.text("function") == Some("tir_optimal_token_baseline") {
        return compare(case, &found, |_| true);
    }
    let is_plain = |segment: u32| {
        let mask = &data.mask[data.segments.range(segment as usize)];
        let counted = mask.iter().take_while(|&&m| m != 0).count();
        counted > 0 && mask[counted..].iter().all(|&m| m == 0)
    };
    let mut in_plain_group = vec![false; data.mask.len()];
    let mut odd = 0;
    for group in 0..data.groups.len() {
        let members = data.groups.members(group);
        let plain = members.iter().all(|&segment| is_plain(segment));
        odd += usize::from(!plain);
        for &segment in members {
            in_plain_group[data.segments.range(segment as usize)].fill(plain);
        }
    }
    let compared = compare(case, &found, |token| in_plain_group[token])?;
    if odd == 0 || compared.failure.is_some() {
        return Ok(compared);
    }
    Err(Stop::Differs(format!(
        "aligns the members of a group by padded column: {odd} of {} groups have a mask with gaps or a member without a token; the \
         others agree",
        data.groups.len()
    )))
}

/// Our baseline of the case's batch, with the reward to go of every token.
fn baselines<B: Backend>(
    backend: &B,
    case: &Case<'_>,
    data: &Data,
    config: &super::Config<'_>,
    baseline: TokenBaseline,
) -> Result<Vec<f32>, Stop> {
    let batch = case.text("batch").unwrap_or_default();
    let n = data.mask.len();
    let stream = backend.stream()?;
    let upload = |name: &str| -> Result<B::Buffer<f32>, Stop> {
        Ok(backend.upload(&stream, &case.values::<f32>(&format!("{batch}/{name}"), n)?)?)
    };
    let (logprobs, sum_p2) = (upload("logp_old")?, upload("sum_pi_squared_old")?);
    let weights = match config.text("rollout_is_weights") {
        "" => None,
        name => Some(upload(name)?),
    };
    let rewards = backend.upload(&stream, &data.rewards)?;
    let mask = backend.upload(&stream, &data.mask)?;
    let plan = BaselinePlan::new(backend, &stream, &data.segments, &data.groups)?;
    let returns_plan = Plan::new(backend, &stream, &data.segments)?;
    let bytes = advantage::baseline_workspace_bytes(&plan).max(advantage::token_workspace_bytes(&returns_plan));
    let mut workspace = backend.allocate::<u8>(&stream, bytes)?;
    let (mut returns, mut advantages) = (backend.allocate(&stream, n)?, backend.allocate(&stream, n)?);
    let call = TokenCall {
        segment_rewards: Some(rewards.view()),
        loss_mask: Some(mask.view()),
        advantages: Some(returns.view_mut()),
        ..TokenCall::new(workspace.view_mut())
    };
    backend.token_advantages(&stream, &TokenEstimator::Returns { gamma: 1.0 }, &returns_plan, call)?;
    let call = BaselineCall {
        returns: returns.view(),
        logprobs: logprobs.view(),
        sum_p2: sum_p2.view(),
        weights: weights.as_ref().map(Buffer::view),
        loss_mask: Some(mask.view()),
        advantages: advantages.view_mut(),
        nonfinite: None,
        errors: None,
        tag: 0,
        workspace: workspace.view_mut(),
    };
    backend.token_baseline(&stream, &baseline, &plan, call)?;
    Ok(backend.download(&stream, advantages.view())?)
}
