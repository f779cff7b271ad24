//! Old against current log-probability, as a map of how many tokens are where.

use super::Figure;
use super::svg::{MARGINS, Margins, Plot, labelled, plain, ticks};
use crate::step::Inputs;
use crate::table::count;

const CELLS: usize = 48;
const SIZE: (f64, f64) = (560.0, 400.0);
/// The share of tokens that the axes need not reach.
const BEYOND: f64 = 0.002;

/// `None` without an old policy or a counted token.
pub fn figure(inputs: &Inputs<'_>) -> Option<Figure> {
    let old = inputs.old?;
    let pairs: Vec<(f64, f64)> = (0..inputs.mask.len())
        .filter(|&u| inputs.mask[u] != 0)
        .map(|u| (f64::from(old[u]), f64::from(inputs.logprobs[u])))
        .filter(|(old, current)| old.is_finite() && current.is_finite())
        .collect();
    let mut lowest: Vec<f64> = pairs.iter().map(|(old, current)| old.min(*current)).collect();
    let at = (lowest.len() as f64 * BEYOND) as usize;
    if lowest.is_empty() {
        return None;
    }
    let low = (*lowest.select_nth_unstable_by(at, f64::total_cmp).1 * 1.02).min(-1e-3);
    let cell = |x: f64| (((x - low) / -low * CELLS as f64).max(0.0) as usize).min(CELLS - 1);
    let mut map = vec![0_usize; CELLS * CELLS];
    pairs.iter().for_each(|&(old, current)| map[cell(current) * CELLS + cell(old)] += 1);
    let most = *map.iter().max()?;
    let mut plot = Plot::new(SIZE, Margins { right: 24.0, ..MARGINS }, (low, 0.0), (low, 0.0));
    let axis = labelled(ticks((low, 0.0), 6), plain);
    plot.left_axis(&axis, "current log-probability (nats)");
    let edge = |cell: usize| low - low * cell as f64 / CELLS as f64;
    for (place, &n) in map.iter().enumerate().filter(|(_, n)| **n > 0) {
        let (row, column) = (place / CELLS, place % CELLS);
        let shade = 0.15 + 0.85 * (1.0 + n as f64).ln() / (1.0 + most as f64).ln();
        let (from, to) = ((edge(column), edge(row)), (edge(column + 1), edge(row + 1)));
        let title = format!("old {:.2}, current {:.2}: {} tokens", from.0, from.1, count(n as u64));
        plot.rectangle("first", from, to, shade.min(1.0), &title);
    }
    plot.line("guide", &[(low, low), (0.0, 0.0)]);
    plot.bottom_axis(&axis, "old log-probability (nats)");
    let caption = format!(
        "{} tokens, the stronger the more (up to {} in a cell). On the dashed line nothing has changed; above it the update has made the \
         token likelier. A cloud beside the line, or a second one, is a fault of alignment rather than learning.",
        count(pairs.len() as u64),
        count(most as u64)
    );
    let title = "Old against current log-probability".to_owned();
    Some(Figure { svg: plot.render(&title), title, caption, is_wide: false })
}
