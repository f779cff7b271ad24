//! The mismatch between trainer and rollout by position in the response.

use super::Figure;
use super::svg::{MARGINS, Margins, Plot, SIZE, labelled, plain, ticks};
use crate::step::Inputs;
use crate::table::count;

/// About how many bins positions are shown in.
const BINS: usize = 16;
/// From this many positions on the axis is logarithmic.
const LONG: usize = 1000;

/// The mismatch of tokens at some positions of their responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// The first position, counted from 0.
    pub first: usize,
    /// The last position.
    pub last: usize,
    /// Tokens.
    pub tokens: usize,
    /// Mean of |trainer − rollout|, in nats.
    pub mean: f64,
    /// What one token in ten exceeds.
    pub ninetieth: f64,
}

/// The mismatch by position, in bins of about as many tokens each. Empty without a rollout.
pub fn positions(inputs: &Inputs<'_>) -> Vec<Position> {
    let Some(rollout) = inputs.rollout else { return Vec::new() };
    let trainer = inputs.old.unwrap_or(inputs.logprobs);
    let mut tokens: Vec<(u32, f32)> = inputs
        .offsets
        .windows(2)
        .flat_map(|bounds| {
            let (first, end) = (bounds[0] as usize, bounds[1] as usize);
            let apart = move |u: usize| (trainer[u] - rollout[u]).abs();
            let counted = (first..end).filter(move |&u| inputs.mask[u] != 0 && apart(u).is_finite());
            counted.map(move |u| ((u - first) as u32, apart(u)))
        })
        .collect();
    tokens.sort_unstable_by_key(|&(position, _)| position);
    let fewest = tokens.len().div_ceil(BINS);
    let mut bins = Vec::new();
    let mut rest = &tokens[..];
    while let Some(&(first, _)) = rest.first() {
        let last = rest[fewest.min(rest.len()) - 1].0;
        let (bin, behind) = rest.split_at(rest.partition_point(|&(position, _)| position <= last));
        let mut apart: Vec<f32> = bin.iter().map(|&(_, by)| by).collect();
        let mean = apart.iter().map(|&by| f64::from(by)).sum::<f64>() / apart.len() as f64;
        let at = apart.len() * 9 / 10;
        let ninetieth = f64::from(*apart.select_nth_unstable_by(at, f32::total_cmp).1);
        bins.push(Position { first: first as usize, last: last as usize, tokens: bin.len(), mean, ninetieth });
        rest = behind;
    }
    bins
}

/// `None` without bins.
pub fn figure(bins: &[Position]) -> Option<Figure> {
    let last = bins.last()?.last;
    let highest = bins.iter().map(|bin| bin.ninetieth.max(bin.mean)).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.08 } else { 1.0 };
    let is_long = last >= LONG;
    // Positions count from 1 here, so that the first has a logarithm.
    let place = |position: usize| if is_long { (position as f64 + 1.0).log10() } else { position as f64 };
    let margins = Margins { top: 30.0, ..MARGINS };
    let mut plot = Plot::new(SIZE, margins, (place(0), place(last + 1)), (0.0, top));
    plot.left_axis(&labelled(ticks((0.0, top), 6), plain), "|trainer \u{2212} rollout| (nats)");
    let steps = |value: fn(&Position) -> f64| -> Vec<(f64, f64)> {
        bins.iter().flat_map(|bin| [place(bin.first), place(bin.last + 1)].map(|x| (x, value(bin)))).collect()
    };
    let mut band = steps(|bin| bin.ninetieth);
    band.extend([(place(last + 1), 0.0), (place(0), 0.0)]);
    plot.area("band", &band);
    plot.line("line", &steps(|bin| bin.mean));
    let names = if is_long {
        (0..=(last + 1).ilog10()).map(|power| (f64::from(power), count(10_u64.pow(power)))).collect()
    } else {
        labelled(ticks((0.0, last as f64 + 1.0), 7), |position| count(position as u64))
    };
    plot.bottom_axis(
        &names,
        if is_long { "position in the response (logarithmic)" } else { "position in the response" },
    );
    plot.legend("first", (margins.left, 8.0), "mean");
    plot.legend("band", (margins.left + 80.0, 8.0), "nine tokens in ten are below");
    let tokens: usize = bins.iter().map(|bin| bin.tokens).sum();
    let caption = format!(
        "{} tokens in bins of about as many each. Flat is sound: both engines see the same context. A rise along the response says that the \
         engines drift apart (cache precision, other kernels for long contexts); a step, that one of them changed what it computes.",
        count(tokens as u64)
    );
    let title = "Mismatch by position".to_owned();
    Some(Figure { svg: plot.render(&title), title, caption, is_wide: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_in_bins_of_as_many_tokens_that_no_position_is_split_between() {
        let n = 300;
        let (old, rollout) = (vec![-1.0_f32; n], (0..n).map(|u| -1.0 - (u % 100) as f32).collect::<Vec<_>>());
        let mask = vec![1; n];
        let inputs = Inputs {
            mask: &mask,
            offsets: &[0, 100, 200, 300],
            logprobs: &old,
            old: Some(&old),
            rollout: Some(&rollout),
            reference: None,
        };
        let bins = positions(&inputs);
        assert_eq!(bins.iter().map(|bin| bin.tokens).sum::<usize>(), n);
        assert!(bins.windows(2).all(|pair| pair[0].last + 1 == pair[1].first), "{bins:?}");
        // 19 tokens at the least are seven positions of three each.
        assert_eq!((bins[0].first, bins[0].last, bins[0].tokens, bins[0].mean), (0, 6, 21, 3.0));
        assert_eq!(bins[0].ninetieth, 6.0);
    }
}
