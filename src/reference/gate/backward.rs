//! The gradient of a call, row by row.

use super::WITHOUT_WEIGHTS;
use super::weights::{Rules, Slots, log_sum_exp};
use crate::error::Result;
use crate::gate::{Backward, Config, Output, Shape, Surrogate};
use crate::memory::Host;
use crate::reference::router_loss;

pub(in crate::reference) fn backward(config: &Config, mut call: Backward<'_, Host>) -> Result<()> {
    let shape = call.validate(config)?;
    let rules = Rules::new(config, shape.top_k);
    let mut d_expert_scale = vec![0.0; shape.experts];
    for t in 0..shape.tokens {
        let mut gradient = vec![0.0; shape.experts];
        let slots = slots_of(config, &rules, &call, t, &shape);
        if let Some(slots) = &slots {
            let logits = call.router_logits.filter(|_| call.reads_rows(config)).map(|logits| logits.row_f64(t));
            let upstream = call.d_topk_weights.row_f64(t);
            rules.add_gradient(slots, logits.as_deref(), &upstream, &mut gradient);
            if let (Some(surrogate), Some(logits)) = (&call.surrogate, &logits) {
                rules.add_surrogate(slots, logits, coefficient(surrogate, t), &mut gradient);
            }
            if let (Some(regularizer), Some(logits)) = (&call.regularizer, &logits) {
                router_loss::add_gradient(&rules, regularizer, logits, t, &mut gradient);
            }
            for (&e, d) in slots.ids.iter().zip(rules.expert_scale_gradient(slots, &upstream)) {
                d_expert_scale[e] += d;
            }
        }
        write(&mut call.output, t, &gradient, slots.as_ref(), &shape)?;
    }
    if let Some(target) = &mut call.d_expert_scale {
        for (to, d) in target.as_mut_slice().iter_mut().zip(d_expert_scale) {
            *to = d as f32;
        }
    }
    Ok(())
}

/// c_t A_t.
fn coefficient(surrogate: &Surrogate<'_, Host>, t: usize) -> f64 {
    let weight = surrogate.weights.map_or(1.0, |weights| f64::from(weights.as_slice()[t]));
    f64::from(surrogate.coefficient) * weight * f64::from(surrogate.advantages.as_slice()[t])
}

/// The slots of a row; `None` where it has no weights.
fn slots_of(config: &Config, rules: &Rules, call: &Backward<'_, Host>, t: usize, shape: &Shape) -> Option<Slots> {
    let count = call.row_count.map_or(shape.tokens as i64, |count| i64::from(count.as_slice()[0]));
    if t as i64 >= count || call.token_mask.is_some_and(|mask| mask.as_slice()[t] == 0) {
        return None;
    }
    let range = t * shape.top_k..(t + 1) * shape.top_k;
    let ids: Vec<usize> = call.topk_ids.as_slice()[range.clone()].iter().map(|&id| id as u32 as usize).collect();
    if ids.iter().any(|&e| e >= shape.experts) {
        return None;
    }
    let logits = call.router_logits.map(|logits| logits.row_f64(t));
    let selected = match (&call.selected_logits, &logits) {
        (Some(saved), _) => {
            let saved = &saved.as_slice()[range];
            if saved.iter().any(|x| x.to_bits() == WITHOUT_WEIGHTS.to_bits()) {
                return None;
            }
            saved.iter().map(|&x| f64::from(x)).collect()
        }
        (None, logits) => {
            let logits = logits.as_ref()?; // validate has seen that they are there
            ids.iter().map(|&e| logits[e]).collect()
        }
    };
    let lse = match (&call.lse, &logits) {
        (Some(saved), _) => f64::from(saved.as_slice()[t]),
        // As forward would have saved it.
        (None, Some(logits)) if call.reads_rows(config) => f64::from(log_sum_exp(&rules.capped_row(logits)) as f32),
        _ => 0.0,
    };
    let expert_scale = call.expert_scale.map(|scale| scale.as_slice());
    let expert_scale = ids.iter().map(|&e| expert_scale.map_or(1.0, |scale| f64::from(scale[e]))).collect();
    Some(Slots { ids, selected, lse, expert_scale })
}

fn write(
    output: &mut Output<'_, Host>,
    t: usize,
    gradient: &[f64],
    slots: Option<&Slots>,
    shape: &Shape,
) -> Result<()> {
    match output {
        Output::Dense(_) | Output::Accumulate(_) => write_dense(output, t, gradient),
        Output::Compact { d_selected_logits, .. } => {
            let to = &mut d_selected_logits.as_mut_slice()[t * shape.top_k..(t + 1) * shape.top_k];
            to.fill(0.0);
            if let Some(slots) = slots {
                to.iter_mut().zip(&slots.ids).for_each(|(to, &e)| *to = gradient[e] as f32);
            }
            Ok(())
        }
    }
}

/// A row of the gradient to a dense output.
pub(in crate::reference) fn write_dense(output: &mut Output<'_, Host>, t: usize, gradient: &[f64]) -> Result<()> {
    match output {
        Output::Dense(target) => target.write_row(t, &gradient.iter().map(|&d| d as f32).collect::<Vec<_>>()),
        Output::Accumulate(target) => {
            let old = target.as_matrix().row_f64(t);
            target.write_row(t, &old.iter().zip(gradient).map(|(old, d)| (old + d) as f32).collect::<Vec<_>>())
        }
        // No caller has one: a compact output is of slots.
        Output::Compact { .. } => Ok(()),
    }
}
