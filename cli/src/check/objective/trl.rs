//! TRL, and Liger after it.

use moerl::objective::{
    Aggregation, Cap, Cispo, CispoCap, Clip, Config as Objective, Kl, KlForm, RatioLevel, Sapo, Saturation, Variant,
    Vespo,
};

use super::super::{Case, Config, Stop, unsupported};
use super::{Data, GRADIENT_LIGER, Meaning, clip};

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
pub(super) fn meaning(case: &Case<'_>, data: &Data) -> Result<Meaning, Stop> {
    let config = case.config(TRL_KEYS)?;
    if config.number("gradient_accumulation").is_some_and(|steps| steps != 1.0) {
        return unsupported("gradient_accumulation");
    }
    let mut counts = data.counts();
    counts.segments = data.segments.len() as u64;
    let aggregation = match config.text("loss_type") {
        "grpo" | "sapo" => Aggregation::SeqMeanTokenMean,
        "bnpo" => Aggregation::TokenMean,
        "dapo" | "cispo" | "vespo" => {
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
    let (variant, level) = variant(&config)?;
    let mut objective =
        Objective { saturation: Saturation::NONE, ..Objective::new(variant) }.with_aggregation(aggregation);
    if let Some(beta) = config.number("beta").filter(|&beta| beta != 0.0) {
        let form = match (config.flag("use_bias_correction_kl"), level) {
            (false, _) => KlForm::K3,
            (true, RatioLevel::Token) => KlForm::K3IsToken,
            (true, RatioLevel::Sequence) => KlForm::K3IsSequence,
        };
        objective = objective.with_kl(Kl::new(beta, form));
    }
    let mut meaning = Meaning::new(objective, counts);
    if let Some(threshold) = config.number("off_policy_mask_threshold") {
        meaning.keep = Some(off_policy_mask(case, data, threshold)?);
    }
    if case.producer_name() == "liger-kernel" {
        meaning.gradient = GRADIENT_LIGER;
    }
    Ok(meaning)
}

fn variant(config: &Config<'_>) -> Result<(Variant, RatioLevel), Stop> {
    let level = match config.text("importance_sampling_level") {
        "token" => RatioLevel::Token,
        "sequence" => RatioLevel::Sequence,
        other => return unsupported(format!("importance_sampling_level {other}")),
    };
    let number = |key: &str, or: f64| config.number(key).unwrap_or(or);
    let Clip { low, high, .. } = clip(config, "epsilon_low", "epsilon_high")?;
    let variant = match (config.text("loss_type"), level) {
        ("cispo", _) => {
            // epsilon_high is the cap itself.
            Variant::Cispo(Cispo { cap: CispoCap::Raw { max: high }, level, unified_mask: None })
        }
        ("sapo", _) => Variant::Sapo(Sapo {
            tau_positive: number("sapo_temperature_pos", 1.0),
            tau_negative: number("sapo_temperature_neg", 1.05),
            level,
        }),
        ("vespo", _) => Variant::Vespo(Vespo {
            positive: (number("vespo_k_pos", 2.0), number("vespo_lambda_pos", 3.0)),
            negative: (number("vespo_k_neg", 3.0), number("vespo_lambda_neg", 2.0)),
        }),
        (_, level) => {
            let clip = Clip { low, high, cap: config.number("delta").map_or(Cap::None, Cap::Delta) };
            if level == RatioLevel::Token { Variant::PpoClip(clip) } else { Variant::Gspo(clip) }
        }
    };
    Ok((variant, level))
}

/// TRL's `get_off_policy_mask`: a segment with A < 0 is rejected where the mean of q − l is above the threshold.
fn off_policy_mask(case: &Case<'_>, data: &Data, threshold: f64) -> Result<Vec<u8>, Stop> {
    let batch = case.text("batch").unwrap_or_default();
    let (n, s) = (data.segments.tokens(), data.segments.len());
    let advantages = case.values::<f32>(&format!("{batch}/advantage"), s)?;
    let rollout = case.values::<f32>(&format!("{batch}/logp_rollout"), n)?;
    let mut keep = vec![1; n];
    for (segment, range) in data.segments.ranges().enumerate() {
        let counted = range.clone().filter(|&u| data.mask[u] != 0);
        let moved: f64 = counted.map(|u| f64::from(rollout[u]) - f64::from(data.logprobs[u])).sum();
        if advantages[segment] < 0.0 && moved > threshold * data.counted(segment) as f64 {
            keep[range].fill(0);
        }
    }
    Ok(keep)
}
