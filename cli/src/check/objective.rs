//! Family objective: losses with their gradients.
//!
//! A producer's convention is part of the meaning of its configuration (which rows a mean counts, where a log-ratio is clamped), so
//! producers are known by name: verl, trl, liger-kernel, paper. Tensors: `BATCH/cu_seqlens`, `loss_mask`, `logp_new`, `logp_old`,
//! the advantages and weights that the case names; expected `ID/grad`, and the loss in the case.

use moerl::Backend;
use moerl::objective::{Aggregation, Cap, Clip, Config as Objective, Saturation, Segments, Variant};

use super::{Case, Compared, Config, Stop, Tolerance, unsupported};
use crate::clock::Clock;
use crate::objective::{Counts, HostAdvantages, Inputs, run};

/// Runs one case.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let kind = case.text("family").unwrap_or_default();
    match (case.producer_name(), kind) {
        ("verl", "policy_loss") => loss(backend, case, verl),
        ("trl" | "liger-kernel", "grpo_loss") => loss(backend, case, trl),
        ("paper", "gspo_paper") => loss(backend, case, paper),
        ("verl" | "trl" | "liger-kernel" | "paper", _) => unsupported(format!("{kind} of {}", case.producer_name())),
        (producer, _) => unsupported(format!("producer {producer}, whose conventions are not known")),
    }
}

/// The packed batch that a case is about.
struct Data {
    segments: Segments,
    mask: Vec<u8>,
    logprobs: Vec<f32>,
    old: Vec<f32>,
}

impl Data {
    fn new(case: &Case<'_>) -> Result<(Data, String), Stop> {
        let batch = case.text("batch").unwrap_or_default().to_owned();
        let (offsets, _) = case.tensor::<i32>(&format!("{batch}/cu_seqlens"))?;
        let segments = Segments::from_offsets(&offsets)?;
        let n = segments.tokens();
        let data = Data {
            mask: case.values::<u8>(&format!("{batch}/loss_mask"), n)?,
            logprobs: case.values::<f32>(&format!("{batch}/logp_new"), n)?,
            old: case.values::<f32>(&format!("{batch}/logp_old"), n)?,
            segments,
        };
        Ok((data, batch))
    }

    fn counted(&self, segment: usize) -> u64 {
        self.mask[self.segments.range(segment)].iter().filter(|&&m| m != 0).count() as u64
    }

    /// What denominators are, counted in the batch: tokens, segments with a counted token, longest segment.
    fn counts(&self) -> Counts {
        let counted: Vec<u64> = (0..self.segments.len()).map(|i| self.counted(i)).collect();
        Counts {
            tokens: counted.iter().sum(),
            segments: counted.iter().filter(|&&n| n > 0).count() as u64,
            prompts: 0,
            max_len: self.segments.longest() as u64,
        }
    }

    /// The largest |log-ratio| of a counted token.
    fn widest(&self) -> f64 {
        let ratios = self.logprobs.iter().zip(&self.old).zip(&self.mask).filter(|&(_, &m)| m != 0);
        ratios.map(|((&l, &o), _)| (f64::from(l) - f64::from(o)).abs()).fold(0.0, f64::max)
    }
}

/// What a producer's configuration means: the objective, its denominators, and how exact its gradients are.
struct Meaning {
    objective: Objective,
    counts: Counts,
    /// Of the largest gradient.
    gradient: f64,
}

/// Producers computed in f64 and cast to f32; ours is a product of f32 factors whose exponent carries the rounding of l − o.
const GRADIENT: f64 = 5e-6;
/// Liger computed in f32, and its gradient was recovered by a division by 1 − p.
const GRADIENT_LIGER: f64 = 3e-5;
/// With log-ratios of up to 30, exp turns the rounding of l − o (half an ulp of 30: 1e-6) into that relative error of every element.
const GRADIENT_WIDE: Tolerance = Tolerance { relative: 2e-5, absolute: 0.0 };
/// A batch is wide from this log-ratio on: e^10 between the largest and a typical gradient leaves nothing to compare with.
const WIDE: f64 = 10.0;
/// Of the sum of the absolute terms, each rounded in f32.
const LOSS: f64 = 2e-6;

fn loss<B: Backend>(
    backend: &B,
    case: &Case<'_>,
    meaning: fn(&Case<'_>, &Data) -> Result<Meaning, Stop>,
) -> Result<Compared, Stop> {
    let (data, batch) = Data::new(case)?;
    let Meaning { objective, counts, gradient } = meaning(case, &data)?;
    let (advantage, shape) =
        case.tensor::<f32>(&format!("{batch}/{}", case.text("advantage").unwrap_or("advantage")))?;
    let advantages = if shape == [data.segments.len()] {
        HostAdvantages::PerSegment(&advantage)
    } else {
        HostAdvantages::PerToken(&advantage)
    };
    let n = data.segments.tokens();
    let weights = case.text("weights").map(|name| case.values::<f32>(&format!("{batch}/{name}"), n)).transpose()?;
    let inputs = Inputs {
        segments: &data.segments,
        logprobs: &data.logprobs,
        anchor: Some(&data.old),
        advantages,
        mask: &data.mask,
        weights: weights.as_deref(),
        segment_scale: None,
        counts,
    };
    let (found, fault) = run(backend, &backend.stream()?, &objective, &inputs, &mut Clock::default())?;
    if let Some(fault) = fault {
        return Err(Stop::Fail(fault.to_string()));
    }
    let mut compared = Compared::default();
    let Some(expected) = case.json.get("loss").and_then(serde_json::Value::as_f64) else {
        return Err(Stop::Fail("the case has no loss".into()));
    };
    let tolerance = Tolerance { relative: 0.0, absolute: LOSS * sum_of_terms(&objective, &inputs) };
    compared.one("loss", 0, found.loss, expected, tolerance);
    let expected = case.values::<f32>(&format!("{}/grad", case.id), n)?;
    let largest = expected.iter().fold(0.0, |largest: f64, &g| largest.max(f64::from(g).abs()));
    let tolerance =
        if data.widest() > WIDE { GRADIENT_WIDE } else { Tolerance { relative: 0.0, absolute: gradient * largest } };
    compared.close("grad", &found.d_logprobs, &expected, tolerance);
    Ok(compared)
}

/// Σ |m c w L| in f64: what the loss's rounding is measured against.
fn sum_of_terms(objective: &Objective, inputs: &Inputs<'_>) -> f64 {
    let clip = objective.variant.clip();
    let Saturation { low, high } = objective.saturation;
    let ratio = |delta: f64| delta.clamp(f64::from(low), f64::from(high)).exp();
    let anchor = inputs.anchor.unwrap_or(inputs.logprobs);
    let mut sum = 0.0;
    for (segment, range) in inputs.segments.ranges().enumerate() {
        let counted: Vec<usize> = range.filter(|&u| inputs.mask[u] != 0).collect();
        let n = counted.len() as f64;
        let delta = |u: usize| f64::from(inputs.logprobs[u]) - f64::from(anchor[u]);
        let mean = counted.iter().map(|&u| delta(u)).sum::<f64>() / n;
        for &u in &counted {
            let x = ratio(if objective.variant.is_sequence_level() { mean } else { delta(u) });
            let a = f64::from(inputs.advantages.at(segment, u));
            let w = inputs.weights.map_or(1.0, |weights| f64::from(weights[u]));
            sum += coefficient(objective, &inputs.counts, n) * w * value(x, a, &clip).abs();
        }
    }
    sum
}

/// −min(xA, clip(x)A) with the cap.
fn value(x: f64, a: f64, clip: &Clip) -> f64 {
    let clipped = x.clamp(1.0 - clip.low, 1.0 + clip.high);
    match clip.cap {
        Cap::Dual(c) if a < 0.0 => (-(x * a).min(clipped * a)).min(-c * a),
        Cap::Delta(d) => -(x.min(d) * a).min(clipped * a),
        _ => -(x * a).min(clipped * a),
    }
}

/// c of a segment with `n` counted tokens.
fn coefficient(objective: &Objective, counts: &Counts, n: f64) -> f64 {
    let (t, b, l) = (counts.tokens as f64, counts.segments as f64, counts.max_len as f64);
    let c = match objective.aggregation {
        Aggregation::TokenMean => 1.0 / t,
        Aggregation::SeqMeanTokenMean => 1.0 / (b * n),
        Aggregation::SeqMeanTokenSum => 1.0 / b,
        Aggregation::SeqMeanTokenSumNorm => 1.0 / (b * l),
        _ => 1.0,
    };
    c * objective.dp_scale
}

const VERL_KEYS: &[&str] = &[
    "clip_ratio",
    "clip_ratio_c",
    "clip_ratio_high",
    "clip_ratio_low",
    "global_batch_info",
    "loss_agg_mode",
    "policy_loss",
    "tau_neg",
    "tau_pos",
];

/// verl's `compute_policy_loss_*`.
fn verl(case: &Case<'_>, data: &Data) -> Result<Meaning, Stop> {
    let config = case.config(VERL_KEYS)?;
    let window = || -> Result<Clip, Stop> { clip(&config, "clip_ratio_low", "clip_ratio_high") };
    let (variant, saturation) = match config.text("policy_loss") {
        "vanilla" => {
            let cap = config.number("clip_ratio_c").map_or(Cap::None, Cap::Dual);
            (Variant::PpoClip(Clip { cap, ..window()? }), Saturation::symmetric(20.0))
        }
        "gspo" => (Variant::GspoToken(window()?), Saturation::above(10.0)),
        other => return unsupported(format!("objective {other}")),
    };
    let aggregation = match config.text("loss_agg_mode") {
        "token-mean" => Aggregation::TokenMean,
        "token-sum" => Aggregation::TokenSum,
        "seq-mean-token-sum" => Aggregation::SeqMeanTokenSum,
        "seq-mean-token-sum-norm" => Aggregation::SeqMeanTokenSumNorm,
        "seq-mean-token-mean" => Aggregation::SeqMeanTokenMean,
        other => return unsupported(format!("loss_agg_mode {other}")),
    };
    let mut counts = data.counts();
    let mut objective = Objective { saturation, ..Objective::new(variant) }.with_aggregation(aggregation);
    if let Some(info) = config.get("global_batch_info") {
        let known = ["batch_num_tokens", "dp_size", "global_batch_size", "loss_scale_factor"];
        let keys = info.as_object().map(|info| info.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(key) = keys.iter().find(|key| !known.contains(&key.as_str())) {
            return unsupported(format!("configuration key global_batch_info.{key}"));
        }
        let number = |key: &str, or: u64| info.get(key).and_then(serde_json::Value::as_u64).unwrap_or(or);
        counts.tokens = number("batch_num_tokens", counts.tokens);
        counts.segments = number("global_batch_size", counts.segments);
        counts.max_len = number("loss_scale_factor", counts.max_len);
        // token-sum divides by nothing, but is multiplied like the others.
        objective.dp_scale = number("dp_size", 1) as f64;
    }
    Ok(Meaning { objective, counts, gradient: GRADIENT })
}

const TRL_KEYS: &[&str] = &[
    "beta",
    "delta",
    "epsilon_high",
    "epsilon_low",
    "gradient_accumulation",
    "importance_sampling_level",
    "loss_type",
    "max_completion_length",
    "num_items_in_batch",
    "off_policy_mask_threshold",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "steps_per_generation",
    "use_bias_correction_kl",
    "vespo_k_neg",
    "vespo_k_pos",
    "vespo_lambda_neg",
    "vespo_lambda_pos",
];

/// TRL's `GRPOTrainer._compute_loss` and Liger's chunked loss. Means over segments count every one, also without a counted token.
fn trl(case: &Case<'_>, data: &Data) -> Result<Meaning, Stop> {
    let config = case.config(TRL_KEYS)?;
    if config.number("beta").is_some_and(|beta| beta != 0.0) {
        return unsupported("KL term");
    }
    if config.get("off_policy_mask_threshold").is_some() {
        return unsupported("off-policy sequence mask");
    }
    if config.number("gradient_accumulation").is_some_and(|steps| steps != 1.0) {
        return unsupported("gradient_accumulation");
    }
    let mut clip = clip(&config, "epsilon_low", "epsilon_high")?;
    if let Some(delta) = config.number("delta") {
        clip.cap = Cap::Delta(delta);
    }
    let variant = match config.text("importance_sampling_level") {
        "token" => Variant::PpoClip(clip),
        "sequence" => Variant::Gspo(clip),
        other => return unsupported(format!("importance_sampling_level {other}")),
    };
    let mut counts = data.counts();
    counts.segments = data.segments.len() as u64;
    let aggregation = match config.text("loss_type") {
        "grpo" => Aggregation::SeqMeanTokenMean,
        "bnpo" => Aggregation::TokenMean,
        "dapo" => {
            counts.tokens = config.number("num_items_in_batch").map_or(counts.tokens, |items| items as u64);
            Aggregation::TokenMean
        }
        "dr_grpo" => {
            counts.max_len = config.number("max_completion_length").map_or(counts.max_len, |len| len as u64);
            Aggregation::SeqMeanTokenSumNorm
        }
        // n times the mean of a segment is its sum (arXiv 2602.05261, as TRL writes it).
        "luspo" => Aggregation::SeqMeanTokenSum,
        other => return unsupported(format!("objective {other}")),
    };
    let objective = Objective { saturation: Saturation::NONE, ..Objective::new(variant) }.with_aggregation(aggregation);
    let gradient = if case.producer_name() == "liger-kernel" { GRADIENT_LIGER } else { GRADIENT };
    Ok(Meaning { objective, counts, gradient })
}

/// The formula of arXiv 2507.18071, equations 5 to 7.
fn paper(case: &Case<'_>, data: &Data) -> Result<Meaning, Stop> {
    let config = case.config(&["clip_high", "clip_low", "sequence_denominator"])?;
    let mut counts = data.counts();
    match config.text("sequence_denominator") {
        "all" => counts.segments = data.segments.len() as u64,
        "non_empty" => {}
        other => return unsupported(format!("sequence_denominator {other}")),
    }
    let variant = Variant::Gspo(clip(&config, "clip_low", "clip_high")?);
    Ok(Meaning {
        objective: Objective { saturation: Saturation::NONE, ..Objective::new(variant) },
        counts,
        gradient: GRADIENT,
    })
}

fn clip(config: &Config<'_>, low: &str, high: &str) -> Result<Clip, Stop> {
    match config.number(low).zip(config.number(high)) {
        Some((low, high)) => Ok(Clip::new(low, high)),
        None => Err(Stop::Fail(format!("the configuration has no {low} and {high}"))),
    }
}
