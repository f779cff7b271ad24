//! The oracle of [`linear_logprob`](crate::linear_logprob): all logits at once, each a sum in f64 rounded once to the head's type, then the oracle
//! of [`logprob`](crate::logprob). There are no chunks here, so that those of a device must not show.

use super::logprob;
use crate::element::{Element, Float, bf16};
use crate::error::Result;
use crate::linear_logprob::{Config, Gradients, Projection, WeightGradient, absent};
use crate::logprob::{Backward, Forward, Gradient, PartialCall};
use crate::memory::{Host, Matrix, MatrixMut, View};

fn widened(matrix: &Matrix<'_, Host>) -> Vec<Vec<f64>> {
    (0..matrix.rows()).map(|row| matrix.row_f64(row)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The logits, `[N, V]`; zeros in rows that are not needed.
fn logits<T: Float>(projection: &Projection<'_, Host>) -> Vec<T> {
    let weight = widened(&projection.weight);
    let mut needed = vec![true; projection.hidden.rows()];
    for rows in absent(needed.len(), projection.rows) {
        needed[rows].fill(false);
    }
    let row = |r: usize| {
        let hidden = if needed[r] { projection.hidden.row_f64(r) } else { Vec::new() };
        weight.iter().map(move |weight| T::from_f32(dot(&hidden, weight) as f32)).collect::<Vec<T>>()
    };
    (0..needed.len()).flat_map(row).collect()
}

/// 0 in rows that are masked or not needed.
fn mask(projection: &Projection<'_, Host>, loss_mask: Option<View<'_, u8, Host>>) -> Vec<u8> {
    let rows = projection.hidden.rows();
    let mut mask = loss_mask.map_or(vec![1; rows], |mask| mask.as_slice().to_vec());
    for rows in absent(rows, projection.rows) {
        mask[rows].fill(0);
    }
    mask
}

/// [`Backend::linear_logprob_forward`](crate::Backend::linear_logprob_forward).
pub(super) fn forward<'a>(config: &Config, call: Forward<'a, Host, Projection<'a, Host>>) -> Result<()> {
    fn of<'a, T: Float>(config: &Config, mut call: Forward<'a, Host, Projection<'a, Host>>) -> Result<()> {
        let (rows, columns) = (call.logits.hidden.rows(), call.logits.weight.rows());
        let (logits, mask) = (logits::<T>(&call.logits), mask(&call.logits, call.loss_mask));
        let inner = call.over(Matrix::new(&logits, rows, columns)?, 0..rows);
        logprob::forward(&config.logprob, Forward { loss_mask: Some((&mask).into()), ..inner })
    }
    call.validate(config)?;
    if config.head.logits() == Element::Bf16 { of::<bf16>(config, call) } else { of::<f32>(config, call) }
}

/// [`Backend::linear_logprob_partial`](crate::Backend::linear_logprob_partial).
pub(super) fn partial<'a>(config: &Config, call: PartialCall<'a, Host, Projection<'a, Host>>) -> Result<()> {
    fn of<'a, T: Float>(config: &Config, mut call: PartialCall<'a, Host, Projection<'a, Host>>) -> Result<()> {
        let (rows, columns) = (call.logits.hidden.rows(), call.logits.weight.rows());
        let (logits, mask) = (logits::<T>(&call.logits), mask(&call.logits, call.loss_mask));
        let inner = call.over(Matrix::new(&logits, rows, columns)?, 0..rows);
        logprob::partial(&config.logprob, PartialCall { loss_mask: Some((&mask).into()), ..inner })
    }
    call.validate(config)?;
    if config.head.logits() == Element::Bf16 { of::<bf16>(config, call) } else { of::<f32>(config, call) }
}

/// [`Backend::linear_logprob_backward`](crate::Backend::linear_logprob_backward).
pub(super) fn backward<'a>(config: &Config, mut call: Backward<'a, Host, Gradients<'a, Host>>) -> Result<()> {
    call.validate(config)?;
    let d_logits = if config.head.d_logits() == Element::Bf16 {
        d_logits::<bf16>(config, &call)?
    } else {
        d_logits::<f32>(config, &call)?
    };
    let Gradients { projection, d_hidden, d_weight } = &mut call.gradient;
    if let Some(d_hidden) = d_hidden {
        let weight = transposed(&widened(&projection.weight), d_hidden.columns());
        for (row, d_logits) in d_logits.iter().enumerate() {
            let values: Vec<f32> = weight.iter().map(|weight| dot(d_logits, weight) as f32).collect();
            d_hidden.write_row(row, &values)?;
        }
    }
    if let Some(d_weight) = d_weight {
        let columns = projection.weight.rows();
        sum_weight(&transposed(&d_logits, columns), &projection.hidden, d_weight)?;
    }
    Ok(())
}

/// The gradient of every logit, in the type that the products take it in.
fn d_logits<G: Float>(config: &Config, call: &Backward<'_, Host, Gradients<'_, Host>>) -> Result<Vec<Vec<f64>>> {
    fn of<T: Float, G: Float>(config: &Config, call: &Backward<'_, Host, Gradients<'_, Host>>) -> Result<Vec<G>> {
        let projection = &call.gradient.projection;
        let (rows, columns) = (projection.hidden.rows(), projection.weight.rows());
        let (logits, mask) = (logits::<T>(projection), mask(projection, call.loss_mask));
        let mut gradient = vec![G::from_f32(0.0); rows * columns];
        let into = Gradient::Into {
            logits: Matrix::new(&logits, rows, columns)?,
            d_logits: MatrixMut::new(&mut gradient, rows, columns)?,
        };
        let inner = call.over(into, 0..rows);
        logprob::backward(&config.logprob, Backward { loss_mask: Some((&mask).into()), ..inner })?;
        Ok(gradient)
    }
    let gradient =
        if config.head.logits() == Element::Bf16 { of::<bf16, G>(config, call)? } else { of::<f32, G>(config, call)? };
    let columns = call.gradient.projection.weight.rows();
    Ok(gradient.chunks_exact(columns).map(|row| row.iter().map(|x| f64::from(x.to_f32())).collect()).collect())
}

fn transposed(rows: &[Vec<f64>], columns: usize) -> Vec<Vec<f64>> {
    (0..columns).map(|column| rows.iter().map(|row| row[column]).collect()).collect()
}

/// Each element is one sum, rounded once; added to in f32 where it is to be added to.
fn sum_weight(d_logits: &[Vec<f64>], hidden: &Matrix<'_, Host>, d_weight: &mut WeightGradient<'_, Host>) -> Result<()> {
    let (matrix, is_added) = match d_weight {
        WeightGradient::Added(matrix) => (matrix, true),
        WeightGradient::Written(matrix) => (matrix, false),
    };
    let hidden = transposed(&widened(hidden), hidden.columns());
    for (token, d_logits) in d_logits.iter().enumerate() {
        let before = if is_added { matrix.as_matrix().row_f64(token) } else { vec![0.0; hidden.len()] };
        // A row without gradient adds nothing, whatever its hidden states are.
        let sum = |(hidden, before): (&Vec<f64>, f64)| {
            let live = d_logits.iter().zip(hidden).filter(|(d, _)| **d != 0.0);
            (before + live.map(|(d, h)| d * h).sum::<f64>()) as f32
        };
        let values: Vec<f32> = hidden.iter().zip(before).map(sum).collect();
        matrix.write_row(token, &values)?;
    }
    Ok(())
}
