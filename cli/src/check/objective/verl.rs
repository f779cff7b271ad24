//! verl.

use moerl::Backend;
use moerl::objective::{
    Aggregation, Cap, Cispo, CispoCap, Clip, Config as Objective, Divergence, Dppo, Kl, KlForm, RatioLevel, Sapo,
    Saturation, Variant, Window,
};

use super::super::{Case, Compared, Stop, Tolerance, unsupported};
use super::{Data, Meaning, clip};
use crate::clock::Clock;
use crate::objective::{HostAdvantages, Inputs, run};

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
pub(super) fn meaning(case: &Case<'_>, data: &Data) -> Result<Meaning, Stop> {
    let config = case.config(VERL_KEYS)?;
    let clip = || -> Result<Clip, Stop> { clip(&config, "clip_ratio_low", "clip_ratio_high") };
    let window = || -> Result<Window, Stop> { clip().map(|Clip { low, high, .. }| Window { low, high }) };
    let dppo = |divergence| -> Result<Variant, Stop> {
        let Window { low, high } = window()?;
        Ok(Variant::Dppo(Dppo { divergence, low, high, cap: config.number("clip_ratio_c").unwrap_or(f64::INFINITY) }))
    };
    let bounded = Saturation::symmetric(20.0);
    let (variant, saturation) = match config.text("policy_loss") {
        "vanilla" => {
            let cap = config.number("clip_ratio_c").map_or(Cap::None, Cap::Dual);
            (Variant::PpoClip(Clip { cap, ..clip()? }), bounded)
        }
        "gspo" => (Variant::GspoToken(clip()?), Saturation::above(10.0)),
        "cispo" => (Variant::Cispo(Cispo::new(CispoCap::Window(window()?))), bounded),
        "dppo_tv" => (dppo(Divergence::TotalVariation)?, bounded),
        "dppo_kl" => (dppo(Divergence::Kl { epsilon: 1e-8 })?, bounded),
        "gpg" => (Variant::Gpg, bounded),
        "geo_mean" => (Variant::Gmpo(window()?), Saturation::NONE),
        "sapo" => {
            let tau = |key: &str, or: f64| config.number(key).unwrap_or(or);
            let (tau_positive, tau_negative) = (tau("tau_pos", 1.0), tau("tau_neg", 1.05));
            (Variant::Sapo(Sapo { tau_positive, tau_negative, level: RatioLevel::Token }), bounded)
        }
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
    // Whatever mode is chosen; the mean of the second is over every row.
    let aggregation = match variant {
        Variant::Sapo(_) | Variant::Gmpo(_) => Aggregation::SeqMeanTokenMean,
        _ => aggregation,
    };
    if matches!(variant, Variant::Gmpo(_)) {
        counts.segments = data.segments.len() as u64;
    }
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
    Ok(Meaning::new(objective, counts))
}

/// Values and gradients are functions of r − l alone, which f32 rounds by 6e-8 of the larger log-probability; for k3 that is relative to its
/// root, which the absolute part is for.
const KL: Tolerance = Tolerance { relative: 5e-6, absolute: 2e-7 };

/// verl's `kl_penalty`: values and derivatives of every token, without mask.
pub(super) fn kl_penalty<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let config = case.config(&["kl_penalty"])?;
    let name = config.text("kl_penalty");
    let form = match name.trim_end_matches('+') {
        "kl" | "k1" => KlForm::K1,
        "abs" => KlForm::Abs,
        "mse" | "k2" => KlForm::K2,
        "low_var_kl" | "k3" => KlForm::K3,
        other => return unsupported(format!("kl_penalty {other}")),
    };
    let (data, batch) = Data::new(case)?;
    let n = data.segments.tokens();
    let reference = case.values::<f32>(&format!("{batch}/logp_ref"), n)?;
    let (mask, advantages) = (vec![1; n], vec![0.0; n]);
    // Only k3 is clamped.
    let (input_clamp, output_clamp) = if form == KlForm::K3 { (Some(20.0), Some(10.0)) } else { (None, None) };
    let kl = Kl { beta: 1.0, form, straight_through: name.ends_with('+'), input_clamp, output_clamp };
    let objective = Objective::new(Variant::Gpg).with_aggregation(Aggregation::TokenSum).with_kl(kl);
    let inputs = Inputs {
        reference: Some(&reference),
        counts: data.counts(),
        ..Inputs::new(&data.segments, &data.logprobs, HostAdvantages::PerToken(&advantages), &mask)
    };
    let (found, fault) = run(backend, &backend.stream()?, &objective, &inputs, &mut Clock::default())?;
    if let Some(fault) = fault {
        return Err(Stop::Fail(fault.to_string()));
    }
    let mut compared = Compared::default();
    compared.close("value", &found.kl, &case.values::<f32>(&format!("{}/value", case.id), n)?, KL);
    compared.close("grad", &found.d_logprobs, &case.values::<f32>(&format!("{}/grad", case.id), n)?, KL);
    Ok(compared)
}
