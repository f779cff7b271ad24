//! The worst error of every quantity against f64, and the row that has it: `cargo test … accuracy -- --nocapture` prints the table.

use std::collections::BTreeMap;

use moerl::Backend;
use rand::RngExt;

use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(every_quantity_is_within_its_goal);

/// By quantity: the worst share of the goal, the error there and the row.
#[derive(Default)]
struct Table(BTreeMap<&'static str, (f64, f64, String)>);

impl Table {
    fn see(&mut self, quantity: &'static str, found: f32, expected: f64, goal: f64, row: &str) {
        let share = of_goal(found, expected, goal);
        let worst = self.0.entry(quantity).or_insert_with(|| (-1.0, 0.0, String::new()));
        if share > worst.0 {
            *worst = (share, (f64::from(found) - expected).abs(), row.into());
        }
    }
}

/// A row and its name.
type Named = (String, Vec<f32>);

/// Random rows, and rows of two levels, most of whose mass lies in many small terms: where a biased exponent shows most.
fn rows(columns: usize) -> Vec<Named> {
    let mut rng = seeded(columns as u64);
    let mut rows: Vec<Named> = [0.1, 3.0, 10.0]
        .iter()
        .map(|&spread| (format!("normal of {spread}"), (0..columns).map(|_| spread * normal(&mut rng)).collect()))
        .collect();
    for depth in [16.37, 11.0, 8.5] {
        let level = |j: usize| if j == columns / 3 { 100.0 } else { 100.0 - depth };
        rows.push((format!("100 over {}", 100.0 - depth), (0..columns).map(level).collect()));
    }
    rows.push(("around -1e7".into(), (0..columns).map(|_| 3.0 * normal(&mut rng) - 1e7).collect()));
    if columns > 100_000 { rows.split_off(2) } else { rows }
}

fn see_row<B: Backend>(backend: &B, table: &mut Table, (name, logits): &Named, temperature: f32) {
    let columns = logits.len();
    let what = format!("{columns} columns, {name}, T = {temperature}");
    let mut rng = seeded(7);
    let mut inputs = Inputs::new(1, columns, logits.clone());
    inputs.config.temperature = temperature;
    inputs.tokens = Some(vec![rng.random_range(0..columns as i64)]);
    let set: Vec<i32> = (0..columns as i32).filter(|id| id % 3 == 0).collect();
    inputs.keep = Some(Keep::of(std::slice::from_ref(&set)));
    let found = forward(backend, &inputs, Asked { kept: true, ..EVERYTHING });
    let row = inputs.row(0);
    let near = |x: f64| 1e-6 + 2.0 * ulp(x);
    let whole = exact(&row, f64::from(temperature), inputs.token(0));
    table.see("logprob", found.logprobs[0], whole.logprob, near(whole.logprob), &what);
    table.see("log_sum", found.log_sum[0], whole.log_sum, near(whole.log_sum), &what);
    table.see("entropy", found.entropy[0], whole.entropy, 4e-6 + 2.0 * ulp(whole.entropy), &what);
    table.see("sum_p2", found.sum_p2[0], whole.sum_p2, 4e-6 * whole.sum_p2, &what);

    let mut columns_kept: Vec<usize> = set.iter().map(|&id| id as usize).collect();
    let at = columns_kept.iter().position(|&column| column == inputs.token(0)).unwrap_or_else(|| {
        columns_kept.push(inputs.token(0));
        columns_kept.len() - 1
    });
    let kept_row: Vec<f64> = columns_kept.iter().map(|&column| row[column]).collect();
    let kept = exact(&kept_row, f64::from(temperature), at);
    let mass = (kept.lse - whole.lse).exp().min(1.0);
    table.see("kept_logprob", found.kept_logprobs[0], kept.logprob, near(kept.logprob), &what);
    table.see("kept_entropy", found.kept_entropy[0], kept.entropy, 4e-6 + 2.0 * ulp(kept.entropy), &what);
    // exp of a difference: the f64 oracle itself loses digits where lse is large, as around -1e7.
    let oracle = 4.0 * f64::EPSILON * whole.lse.abs();
    table.see("kept_mass", found.kept_mass[0], mass, (4e-6 + oracle) * mass, &what);

    let up = Upstream { logprobs: Some(vec![0.7]), entropy: Some(vec![-0.4]), lse: Some(vec![0.2]), kept: None };
    let gradient: Vec<f32> = backward(backend, &inputs, &found.saved, &up, Target::Apart);
    let (expected, scale) = exact_gradient(&row, f64::from(temperature), Some(inputs.token(0)), up.of(0));
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for j in 0..columns {
        // Where p is below e^-20 of the largest the exponent's own rounding is more than the goal: see the suite of gradients.
        if (max - row[j]) / f64::from(temperature) < 20.0 {
            table.see("gradient, f32", gradient[j], expected[j], 2e-6 * scale[j] + 1e-43, &what);
        }
    }
}

fn every_quantity_is_within_its_goal<B: Backend>(backend: &B) {
    let mut table = Table::default();
    for columns in [7, 2049, 5003, 151_936] {
        for row in &rows(columns) {
            for temperature in if columns > 100_000 { &[0.7, 1.0][..] } else { &[0.1, 0.7, 1.0, 1.3] } {
                see_row(backend, &mut table, row, *temperature);
            }
        }
    }
    println!("{:>14} {:>10} {:>8}  row", backend.name(), "error", "of goal");
    for (quantity, (share, error, row)) in &table.0 {
        println!("{quantity:>14} {error:>10.2e} {share:>8.3}  {row}");
    }
    for (quantity, (share, _, row)) in &table.0 {
        assert!(*share <= 1.0, "{quantity} is off by {share} of its goal: {row}");
    }
}
