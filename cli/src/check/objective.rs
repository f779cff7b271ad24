//! Family objective: losses with their gradients, and divergences.
//!
//! A producer's convention is part of the meaning of its configuration (which rows a mean counts, where a log-ratio is clamped), so
//! producers are known by name: verl, trl, liger-kernel, paper. Tensors: `BATCH/cu_seqlens`, `loss_mask`, `logp_new`, `logp_old`,
//! the advantages and weights that the case names; expected `ID/grad`, and the loss in the case.

mod paper;
mod trl;
mod verl;

use moerl::objective::{Clip, Config as Objective, Kl, KlForm, Segments};
use moerl::{Backend, Reference};

use super::{Case, Compared, Config, Stop, Tolerance, correction, unsupported};
use crate::clock::Clock;
use crate::objective::{Counts, HostAdvantages, Inputs, run};

/// Runs one case.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    let kind = case.text("family").unwrap_or_default();
    match (case.producer_name(), kind) {
        ("verl", "policy_loss") => loss(backend, case, verl::meaning),
        ("verl", "kl_penalty") => verl::kl_penalty(backend, case),
        ("trl" | "liger-kernel", "grpo_loss") => loss(backend, case, trl::meaning),
        ("paper", "gspo_paper") => loss(backend, case, paper::meaning),
        ("verl", "rollout_correction") => correction::check(backend, case),
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
    /// `[N]`: 0 where the producer rejects a token.
    keep: Option<Vec<u8>>,
}

impl Meaning {
    fn new(objective: Objective, counts: Counts) -> Meaning {
        Meaning { objective, counts, gradient: GRADIENT, keep: None }
    }
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
    let Meaning { objective, counts, gradient, keep } = meaning(case, &data)?;
    let (advantage, shape) =
        case.tensor::<f32>(&format!("{batch}/{}", case.text("advantage").unwrap_or("advantage")))?;
    let advantages = if shape == [data.segments.len()] {
        HostAdvantages::PerSegment(&advantage)
    } else {
        HostAdvantages::PerToken(&advantage)
    };
    let n = data.segments.tokens();
    let weights = case.text("weights").map(|name| case.values::<f32>(&format!("{batch}/{name}"), n)).transpose()?;
    let reference = objective.kl.map(|_| case.values::<f32>(&format!("{batch}/logp_ref"), n)).transpose()?;
    let inputs = Inputs {
        old: Some(&data.old),
        weights: weights.as_deref(),
        keep: keep.as_deref(),
        reference: reference.as_deref(),
        counts,
        ..Inputs::new(&data.segments, &data.logprobs, advantages, &data.mask)
    };
    let (found, fault) = run(backend, &backend.stream()?, &objective, &inputs, &mut Clock::default())?;
    if let Some(fault) = fault {
        return Err(Stop::Fail(fault.to_string()));
    }
    let mut compared = Compared::default();
    let Some(expected) = case.json.get("loss").and_then(serde_json::Value::as_f64) else {
        return Err(Stop::Fail("the case has no loss".into()));
    };
    let tolerance = Tolerance { relative: 0.0, absolute: LOSS * sum_of_terms(&objective, &inputs)? };
    compared.one("loss", 0, found.loss, expected, tolerance);
    let expected = case.values::<f32>(&format!("{}/grad", case.id), n)?;
    let largest = expected.iter().fold(0.0, |largest: f64, &g| largest.max(f64::from(g).abs()));
    let tolerance =
        if data.widest() > WIDE { GRADIENT_WIDE } else { Tolerance { relative: 0.0, absolute: gradient * largest } };
    compared.close("grad", &found.d_logprobs, &expected, tolerance);
    Ok(compared)
}

/// Σ |m c w L|: what the loss's rounding is measured against. The terms of one sign of A have one sign themselves, and those of a divergence
/// but for k1, so that the reference's losses add up to it.
fn sum_of_terms(objective: &Objective, inputs: &Inputs<'_>) -> Result<f64, Stop> {
    let (HostAdvantages::PerSegment(values) | HostAdvantages::PerToken(values)) = inputs.advantages;
    let absolute = |objective: &Objective, part: fn(f32) -> f32| -> Result<f64, Stop> {
        let values: Vec<f32> = values.iter().map(|&a| part(a)).collect();
        let advantages = match inputs.advantages {
            HostAdvantages::PerSegment(_) => HostAdvantages::PerSegment(&values),
            HostAdvantages::PerToken(_) => HostAdvantages::PerToken(&values),
        };
        let (found, _) = run(&Reference, &(), objective, &Inputs { advantages, ..*inputs }, &mut Clock::default())?;
        Ok(found.loss.abs())
    };
    let policy = Objective { kl: None, ..objective.clone() };
    let mut sum = absolute(&policy, |a| a.max(0.0))? + absolute(&policy, |a| a.min(0.0))?;
    if let Some(kl) = objective.kl {
        let form = if kl.form == KlForm::K1 { KlForm::Abs } else { kl.form };
        sum += absolute(&Objective { kl: Some(Kl { form, ..kl }), ..objective.clone() }, |_| 0.0)?;
    }
    Ok(sum)
}

fn clip(config: &Config<'_>, low: &str, high: &str) -> Result<Clip, Stop> {
    match config.number(low).zip(config.number(high)) {
        Some((low, high)) => Ok(Clip::new(low, high)),
        None => Err(Stop::Fail(format!("the configuration has no {low} and {high}"))),
    }
}
