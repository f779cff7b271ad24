//! The gradient is the derivative of the loss.

use super::*;
use crate::objective::{Aggregation, Cap, Clip};

fn evaluate(config: &Config, segments: &Segments, tokens: &Tokens, counts: &Counts) -> (f64, Vec<f64>) {
    let mut loss = 0.0;
    let mut gradient = vec![0.0; tokens.logprobs.len()];
    for (segment, range) in segments.ranges().enumerate() {
        let sums = sum_segment(tokens, segment, range.clone());
        let scale = tokens.segment_scale.as_ref().map_or(1.0, |scale| scale[segment]);
        let (coefficient, value, _) = finish_segment(config, counts, &sums, scale);
        loss += value;
        for u in range.filter(|&u| tokens.counts(u)) {
            let (value, g, _, _) = apply_token(config, &coefficient, tokens.token(u, segment));
            loss += coefficient.weight * value;
            gradient[u] = g;
        }
    }
    (loss, gradient)
}

/// The loss of `gspo_token` has no derivative of its own: s stands still except for the token's own factor exp(l − sg[l]). This is that loss
/// at `l`, with s taken at `at`.
fn surrogate(config: &Config, segments: &Segments, tokens: &Tokens, at: &Tokens, counts: &Counts) -> f64 {
    let bounds = Bounds::of(config.variant.clip());
    let mut loss = 0.0;
    for (segment, range) in segments.ranges().enumerate() {
        let sums = sum_segment(at, segment, range.clone());
        let scale = tokens.segment_scale.as_ref().map_or(1.0, |scale| scale[segment]);
        let (coefficient, _, _) = finish_segment(config, counts, &sums, scale);
        for u in range.filter(|&u| tokens.counts(u)) {
            let (Some(token), Some(fixed)) = (tokens.token(u, segment), at.token(u, segment)) else { continue };
            let log_ratio = sums.log_ratio / sums.count + (token.delta - fixed.delta);
            let x = saturate(config.saturation, log_ratio).exp();
            let bounded = if token.advantage > 0.0 { bounds.positive(x) } else { bounds.negative(x) };
            loss -= coefficient.weight * token.weight * token.advantage * bounded;
        }
    }
    loss
}

/// Log-ratios that keep tokens and segments away from every bound: ±5 % of windows at ±20 % (tokens) and ±1 % (segments), and some
/// beyond.
fn batch(per_token: bool, weighted: bool, mask: Option<u64>, saturated: bool) -> (Segments, Tokens) {
    let segments = Segments::from_lengths([3, 1, 0, 5, 2]).unwrap();
    let pattern = [0.03, -0.31, 0.36, 0.05, 0.02, -0.4, 0.11, 0.47, -0.07, -0.33, 0.6];
    let n = segments.tokens();
    let old: Vec<f64> = (0..n).map(|u| -0.5 - 0.37 * (u as f64 * 1.7).sin().abs()).collect();
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let mut logprobs: Vec<f64> = old.iter().zip(pattern).map(|(o, x)| o + x).collect();
    if saturated {
        logprobs[4] -= 30.0;
        logprobs[10] -= 50.0;
    }
    let tokens = Tokens {
        logprobs,
        old_logprobs: Some(old),
        advantages: if per_token {
            (0..n).map(|u| sign(u / 2) * (0.4 + u as f64 * 0.1)).collect()
        } else {
            (0..segments.len()).map(|i| sign(i) * (0.7 + 0.2 * i as f64)).collect()
        },
        per_token,
        loss_mask: mask.map(|bits| (0..n).map(|u| (bits >> u & 1) as u8).collect()),
        weights: weighted.then(|| (0..n).map(|u| 0.5 + 0.13 * u as f64).collect()),
        segment_scale: Some((0..segments.len()).map(|i| 1.5 + i as f64).collect()),
    };
    (segments, tokens)
}

#[test]
fn gradients_are_finite_differences_of_the_loss() {
    let clip = |low, high, cap| Clip { low, high, cap };
    let mut variants = Vec::new();
    for cap in [Cap::None, Cap::Dual(1.5), Cap::Delta(1.1), Cap::Delta(1.55)] {
        variants.push(Variant::PpoClip(clip(0.2, 0.28, cap)));
        variants.push(Variant::Gspo(clip(0.013, 0.017, cap)));
        variants.push(Variant::Gspo(clip(0.2, 0.28, cap)));
        variants.push(Variant::GspoToken(clip(0.013, 0.017, cap)));
        variants.push(Variant::GspoToken(clip(0.2, 0.28, cap)));
    }
    let aggregations = [
        Aggregation::TokenMean,
        Aggregation::TokenSum,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm,
        Aggregation::PromptMean,
        Aggregation::Custom,
    ];
    let counts = [9.0, 4.0, 2.0, 16.0];
    let (mut checked, mut worst) = (0, 0.0_f64);
    for variant in variants {
        for aggregation in aggregations {
            for (per_token, weighted) in [(false, false), (true, false), (false, true), (true, true)] {
                for (mask, saturated) in
                    [(None, false), (Some(0b101_1011_0110), false), (Some(0b111_1110_0000), false), (None, true)]
                {
                    let config = Config::new(variant).with_aggregation(aggregation);
                    let (segments, tokens) = batch(per_token, weighted, mask, saturated);
                    let (_, gradient) = evaluate(&config, &segments, &tokens, &counts);
                    for (u, &expected) in gradient.iter().enumerate() {
                        // Fourth order: the error is h⁴/30 of the fifth derivative, below 1e-12, and 1e-16/h of rounding.
                        let h = 1e-3;
                        let at = |step: f64| {
                            let mut moved = tokens.clone();
                            moved.logprobs[u] += step;
                            match variant {
                                Variant::GspoToken(_) => surrogate(&config, &segments, &moved, &tokens, &counts),
                                _ => evaluate(&config, &segments, &moved, &counts).0,
                            }
                        };
                        let difference = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                        let error = (difference - expected).abs();
                        worst = worst.max(error);
                        assert!(
                            error < 1e-8,
                            "{config:?}, A per token {per_token}, weights {weighted}, mask {mask:?}, saturated {saturated}: \
                             token {u}: {expected} not {difference}"
                        );
                        checked += 1;
                    }
                }
            }
        }
    }
    println!("{checked} derivatives, worst error {worst:.1e}");
}
