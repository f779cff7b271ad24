//! The histogram of ratios of the current policy to the old one.

use super::Figure;
use super::svg::{MARGINS, Margins, Plot, labelled, plain, plain_percent, ticks};
use crate::step::Inputs;
use crate::table::{count, percent};

const SIZE: (f64, f64) = (560.0, 400.0);
const BINS: usize = 49;
/// The share of tokens that the axis need not reach; they are counted in the outermost bins.
const BEYOND: f64 = 0.005;
/// The strip of sequences below the bars.
const STRIP: f64 = 22.0;

/// The window of an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// The lowest ratio that passes, 0 for none.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// True where it is the sequence's ratio that has to pass.
    pub is_of_sequences: bool,
}

/// `None` without an old policy, or where the two are the same.
pub fn figure(inputs: &Inputs<'_>, window: Option<Window>) -> Option<Figure> {
    let old = inputs.old?;
    let apart = |u: usize| f64::from(inputs.logprobs[u]) - f64::from(old[u]);
    let counted = |u: &usize| inputs.mask[*u] != 0 && apart(*u).is_finite();
    let tokens: Vec<f64> = (0..inputs.mask.len()).filter(counted).map(apart).collect();
    let sequences: Vec<f64> = inputs
        .offsets
        .windows(2)
        .filter_map(|bounds| {
            let inside = (bounds[0] as usize..bounds[1] as usize).filter(counted);
            let (sum, n) = inside.fold((0.0, 0), |(sum, n), u| (sum + apart(u), n + 1));
            (n > 0).then(|| sum / f64::from(n))
        })
        .collect();
    let reach = reach(&tokens)?;
    let mut bins = [0_usize; BINS];
    for &x in &tokens {
        let place = (x / reach * 0.5 + 0.5) * BINS as f64;
        bins[(place.max(0.0) as usize).min(BINS - 1)] += 1;
    }
    let share = |n: usize| n as f64 / tokens.len() as f64;
    let most = share(*bins.iter().max()?);
    let framed = Margins { top: 30.0, ..MARGINS };
    let margins = Margins { bottom: framed.bottom + STRIP, ..framed };
    let mut plot = Plot::new(SIZE, margins, (-reach, reach), (0.0, most * 1.08));
    plot.left_axis(&labelled(ticks((0.0, most), 6), plain_percent), "share of tokens");
    if let Some(window) = window {
        draw_window(&mut plot, window, reach, most * 1.08);
    }
    let edge = |bin: usize| (bin as f64 / BINS as f64 * 2.0 - 1.0) * reach;
    for (bin, &n) in bins.iter().enumerate().filter(|(_, n)| **n > 0) {
        let (from, to) = (edge(bin), edge(bin + 1));
        let title = format!("{:.4} to {:.4}: {} tokens", from.exp(), to.exp(), count(n as u64));
        let gap = (to - from) * 0.06;
        plot.rectangle("first", (from + gap, 0.0), (to - gap, share(n)), 1.0, &title);
    }
    plot.line("unity", &[(0.0, 0.0), (0.0, most * 1.08)]);
    let below = |pixels: f64| -pixels / (SIZE.1 - margins.top - margins.bottom) * most * 1.08;
    for &x in sequences.iter().filter(|x| x.abs() <= reach) {
        plot.line("mark", &[(x, below(4.0)), (x, below(STRIP - 4.0))]);
    }
    // The axis belongs below the strip.
    let mut axis = Plot::new(SIZE, framed, (-reach, reach), (0.0, 1.0));
    axis.bottom_axis(&ratio_ticks(reach), "ratio of current to old policy (logarithmic)");
    plot.absorb(axis);
    let names = [("first", "tokens"), ("second", "sequences"), ("bound", "window")];
    for (index, (class, name)) in names.into_iter().take(if window.is_some() { 3 } else { 2 }).enumerate() {
        plot.legend(class, (framed.left + 100.0 * index as f64, 8.0), name);
    }
    let outside = tokens.iter().filter(|x| x.abs() > reach).count();
    let what = match window {
        Some(Window { is_of_sequences: true, .. }) => {
            "The window, which may be too narrow to be more than a line, holds for sequences: one outside is clipped if its advantage \
             points further out"
        }
        Some(_) => "The window holds for tokens: one outside is clipped if its advantage points further out",
        None => "A sound update is a narrow hill around 1",
    };
    let caption = format!(
        "Bars are the ratios of {} tokens, the marks below them the length-normalised ratios of {} sequences. {what}. {} of tokens lie beyond \
         the ends and are counted there.",
        count(tokens.len() as u64),
        count(sequences.len() as u64),
        percent(share(outside))
    );
    let title = "Ratio of current to old policy".to_owned();
    Some(Figure { svg: plot.render(&title), title, caption, is_wide: false })
}

/// How far the axis goes to either side; `None` where nothing moved.
fn reach(tokens: &[f64]) -> Option<f64> {
    let mut sizes: Vec<f64> = tokens.iter().map(|x| x.abs()).collect();
    let at = ((sizes.len() as f64 * (1.0 - BEYOND)) as usize).min(sizes.len().checked_sub(1)?);
    let reach = *sizes.select_nth_unstable_by(at, f64::total_cmp).1;
    (reach > 0.0).then(|| (reach * 1.02).min(40.0))
}

fn draw_window(plot: &mut Plot, window: Window, reach: f64, top: f64) {
    let (low, high) = (window.low.max(f64::MIN_POSITIVE).ln().max(-reach), window.high.ln().min(reach));
    plot.rectangle("window", (low, 0.0), (high, top), 1.0, &format!("window: {} to {}", window.low, window.high));
    for bound in [low, high].into_iter().filter(|bound| bound.abs() < reach) {
        plot.line("bound", &[(bound, 0.0), (bound, top)]);
    }
}

/// Round ratios at their logarithms.
fn ratio_ticks(reach: f64) -> Vec<(f64, String)> {
    if reach > 1.6 {
        // Powers, as many as fit.
        let most = (reach / std::f64::consts::LN_10).floor() as i32;
        let (base, most) = if most >= 1 { (10.0_f64, most) } else { (2.0, (reach / std::f64::consts::LN_2) as i32) };
        let step = (most / 3).max(1);
        let powers = (-most..=most).filter(|power| power % step == 0).map(|power| base.powi(power));
        return powers.map(|ratio| (ratio.ln(), format_ratio(ratio))).collect();
    }
    let round = ticks(((-reach).exp(), reach.exp()), 11);
    round.into_iter().map(|ratio| (ratio.ln(), format_ratio(ratio))).collect()
}

fn format_ratio(ratio: f64) -> String {
    if (1e-3..1e6).contains(&ratio) { plain(ratio) } else { format!("{ratio:.0e}") }
}
