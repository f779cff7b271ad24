//! The gradient is the derivative of the loss.

mod any;

use super::*;
use crate::objective::{Cap, Cispo, CispoCap, Clip, Divergence as Apart, Dppo, Kl, RatioLevel, Sapo, Vespo, Window};

fn evaluate(config: &Config, segments: &Segments, tokens: &Tokens, counts: &Counts) -> (f64, Vec<f64>) {
    let mut loss = 0.0;
    let mut gradient = vec![0.0; tokens.logprobs.len()];
    for (segment, range) in segments.ranges().enumerate() {
        let Finished { coefficient, value, .. } = finished(config, tokens, counts, segment, range.clone());
        loss += value;
        for u in range.filter(|&u| tokens.counts(u)) {
            let made = apply_token(config, &coefficient, tokens.token(u, segment));
            loss += coefficient.scale * made.value;
            gradient[u] = made.gradient;
        }
    }
    (loss, gradient)
}

fn finished(
    config: &Config,
    tokens: &Tokens,
    counts: &Counts,
    segment: usize,
    range: std::ops::Range<usize>,
) -> Finished {
    let sums = sum_segment(config, tokens, segment, range);
    let scale = tokens.segment_scale.as_ref().map_or(1.0, |scale| scale[segment]);
    finish_segment(config, counts, &sums, scale, tokens.segment_weight(segment))
}

/// The loss at `tokens` where everything under a stop-gradient is what it was at `at`: a function that has the gradient as its derivative.
/// At `at` itself it is the loss.
fn surrogate(config: &Config, segments: &Segments, tokens: &Tokens, at: &Tokens, counts: &Counts) -> f64 {
    let mut loss = 0.0;
    for (segment, range) in segments.ranges().enumerate() {
        let live = finished(config, tokens, counts, segment, range.clone());
        let fixed = finished(config, at, counts, segment, range.clone());
        let with_token_factor = matches!(config.variant, Variant::GspoToken(_));
        if !with_token_factor {
            loss += live.value;
        }
        let log_ratio = {
            let sums = sum_segment(config, at, segment, range.clone());
            sums.log_ratio / sums.count
        };
        for u in range.filter(|&u| tokens.counts(u)) {
            let (Some(token), Some(then)) = (tokens.token(u, segment), at.token(u, segment)) else { continue };
            let ratio = saturate(config.saturation, token.delta).exp();
            let c = &live.coefficient;
            let value = match config.variant {
                Variant::GspoToken(_) => {
                    let bounds = Bounds::of(&config.variant);
                    let x = saturate(config.saturation, log_ratio + (token.delta - then.delta)).exp();
                    let bounded = if token.advantage > 0.0 { bounds.positive(x) } else { bounds.negative(x) };
                    -token.advantage * bounded
                }
                Variant::PpoClip(_)
                | Variant::Sapo(_)
                | Variant::SquarePenalty { .. }
                | Variant::KlCov { .. }
                | Variant::Gspo(_)
                | Variant::Gmpo(_) => policy_of(config, c, &token, ratio).value,
                _ => {
                    let then_ratio = saturate(config.saturation, then.delta).exp();
                    -then.advantage * policy_of(config, &fixed.coefficient, &then, then_ratio).pull * token.current
                }
            };
            loss += c.scale * c.segment_weight * policy_weight(config, &token) * value;
            if has_terms(config, &token) {
                let kl = config.kl.map_or(0.0, |kl| kl.beta * divergence_of(config, &token, c, ratio).value);
                let kappa = config.mismatch_penalty * token.from_rollout.powi(2);
                loss += c.scale * (kl + kappa - config.entropy_bonus * token.entropy);
            }
            if let Some(kl) = config.kl.filter(|kl| kl.straight_through && has_terms(config, &token)) {
                // The value as a constant, and a function whose derivative is l − r.
                let constant = |t: &Token, c: &Coefficient, ratio| divergence_of(config, t, c, ratio).value;
                let then_ratio = saturate(config.saturation, then.delta).exp();
                let moved = constant(&then, &fixed.coefficient, then_ratio) - constant(&token, c, ratio);
                let quadratic = (token.to_ref.powi(2) - then.to_ref.powi(2)) / 2.0;
                loss += c.scale * kl.beta * (moved + quadratic);
            }
        }
    }
    loss
}

/// Which inputs a batch has beside the necessary ones.
#[derive(Clone, Copy, Debug)]
struct Inputs {
    per_token: bool,
    weighted: bool,
    mask: Option<u64>,
    /// Log-ratios beyond ±20.
    saturated: bool,
    /// Segment weights, rejected tokens, a router's shift.
    corrected: bool,
}

/// Five segments of 3, 1, 0, 5 and 2 tokens, log-ratios within and beyond windows at ±20 % (tokens) and ±1 % (segments), none at a bound.
fn batch(inputs: Inputs) -> (Segments, Tokens) {
    let segments = Segments::from_lengths([3, 1, 0, 5, 2]).unwrap();
    let pattern = [0.03, -0.31, 0.36, 0.05, 0.02, -0.4, 0.11, 0.47, -0.07, -0.33, 0.6];
    let n = segments.tokens();
    let old: Vec<f64> = (0..n).map(|u| -1.2 - 0.37 * (u as f64 * 1.7).sin().abs()).collect();
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let mut logprobs: Vec<f64> = old.iter().zip(pattern).map(|(o, x)| o + x).collect();
    if inputs.saturated {
        logprobs[4] -= 30.0;
        logprobs[10] -= 50.0;
    }
    let by_token = |f: &dyn Fn(f64) -> f64| (0..n).map(|u| f(u as f64)).collect::<Vec<_>>();
    let tokens = Tokens {
        advantages: if inputs.per_token {
            (0..n).map(|u| sign(u / 2) * (0.4 + u as f64 * 0.1)).collect()
        } else {
            (0..segments.len()).map(|i| sign(i) * (0.7 + 0.2 * i as f64)).collect()
        },
        per_token: inputs.per_token,
        loss_mask: inputs.mask.map(|bits| (0..n).map(|u| (bits >> u & 1) as u8).collect()),
        weights: inputs.weighted.then(|| by_token(&|u| 0.5 + 0.13 * u)),
        segment_weights: inputs.corrected.then(|| (0..segments.len()).map(|i| 0.6 + 0.3 * i as f64).collect()),
        keep: inputs.corrected.then(|| (0..n).map(|u| u8::from(u % 4 != 1)).collect()),
        chosen: Some((0..n).map(|u| u8::from(u % 3 == 0)).collect()),
        router_shift: inputs.corrected.then(|| by_token(&|u| -0.005 - 0.028 * u)),
        rollout_logprobs: Some(old.iter().enumerate().map(|(u, o)| o + 0.017 * (u as f64 - 4.3)).collect()),
        ref_logprobs: Some(logprobs.iter().enumerate().map(|(u, l)| l + 0.9 * (u as f64 * 2.3 + 0.4).sin()).collect()),
        entropy: Some(by_token(&|u| 1.0 + 0.2 * u)),
        segment_scale: Some((0..segments.len()).map(|i| 1.5 + i as f64).collect()),
        logprobs,
        old_logprobs: Some(old),
    };
    (segments, tokens)
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for cap in [Cap::None, Cap::Dual(1.5), Cap::Delta(1.1), Cap::Delta(1.55)] {
        let clip = |low, high| Clip { low, high, cap };
        variants.push(Variant::PpoClip(clip(0.2, 0.28)));
        variants.push(Variant::Gspo(clip(0.013, 0.017)));
        variants.push(Variant::Gspo(clip(0.2, 0.28)));
        variants.push(Variant::GspoToken(clip(0.013, 0.017)));
        variants.push(Variant::GspoToken(clip(0.2, 0.28)));
    }
    for level in [RatioLevel::Token, RatioLevel::Sequence] {
        for unified_mask in [None, Some(Window::new(0.2, 0.28))] {
            for cap in [CispoCap::Window(Window::new(0.2, 0.28)), CispoCap::Raw { max: 1.05 }] {
                variants.push(Variant::Cispo(Cispo { cap, level, unified_mask }));
            }
        }
        variants.push(Variant::Sapo(Sapo { level, ..Sapo::default() }));
    }
    for divergence in [Apart::TotalVariation, Apart::Kl { epsilon: 0.0 }, Apart::Kl { epsilon: 1e-8 }] {
        variants.push(Variant::Dppo(Dppo { divergence, low: 0.02, high: 0.03, cap: 1.3 }));
    }
    variants.extend([
        Variant::Gmpo(Window::new(0.2, 0.25)),
        Variant::Vespo(Vespo::default()),
        Variant::ReinforceIs,
        Variant::MiniRl(Window::new(0.2, 0.27)),
        Variant::Topr,
        Variant::SquarePenalty { tau: 0.1 },
        Variant::Gpg,
        Variant::TisLoss,
        Variant::KlCov { penalty: 0.3 },
    ]);
    variants
}

fn divergences() -> Vec<Option<Kl>> {
    let forms = [KlForm::K1, KlForm::Abs, KlForm::K2, KlForm::K3, KlForm::K3IsToken, KlForm::K3IsSequence];
    let mut kls = vec![None];
    for form in forms {
        let plain = Kl::new(0.7, form);
        let clamped = Kl { input_clamp: Some(0.55), output_clamp: Some(0.12), ..plain };
        kls.extend([plain, clamped, Kl { straight_through: true, ..clamped }].map(Some));
    }
    kls
}

const AGGREGATIONS: [Aggregation; 7] = [
    Aggregation::TokenMean,
    Aggregation::TokenSum,
    Aggregation::SeqMeanTokenMean,
    Aggregation::SeqMeanTokenSum,
    Aggregation::SeqMeanTokenSumNorm,
    Aggregation::PromptMean,
    Aggregation::Custom,
];

fn inputs() -> Vec<Inputs> {
    let mut all = Vec::new();
    for (per_token, weighted) in [(false, false), (true, false), (false, true), (true, true)] {
        for (mask, saturated, corrected) in [
            (None, false, false),
            (Some(0b101_1011_0110), false, true),
            (Some(0b111_1110_0000), false, false),
            (None, true, true),
        ] {
            all.push(Inputs { per_token, weighted, mask, saturated, corrected });
        }
    }
    all
}

/// Fourth order: the error is h⁴/30 of the fifth derivative, below 1e-11, and 1e-16/h of rounding.
fn derivative(f: impl Fn(f64) -> f64) -> f64 {
    let h = 1e-3;
    (8.0 * (f(h) - f(-h)) - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h)
}

#[test]
fn gradients_are_finite_differences_of_the_loss() {
    let counts = [9.0, 4.0, 2.0, 16.0];
    let mut checked = 0;
    for variant in variants() {
        let mut worst = 0.0_f64;
        for (which_kl, kl) in divergences().into_iter().enumerate() {
            for (which, aggregation) in AGGREGATIONS.into_iter().enumerate() {
                for (pattern, inputs) in inputs().into_iter().enumerate() {
                    // Every pair of the four is met; not every quadruple.
                    if which_kl > 0 && (which + pattern + which_kl) % 7 != 0 {
                        continue;
                    }
                    let odd = (which + pattern) % 2 == 1;
                    let config = Config {
                        kl,
                        mismatch_penalty: if which_kl % 2 == 1 { 0.05 } else { 0.0 },
                        entropy_bonus: if which_kl % 3 == 1 { 0.02 } else { 0.0 },
                        rejection: if odd { RejectionScope::AllTerms } else { RejectionScope::PolicyTerm },
                        denominator_basis: [DenominatorBasis::Original, DenominatorBasis::AfterRejection]
                            [usize::from(odd)],
                        ..Config::new(variant).with_aggregation(aggregation)
                    };
                    let (segments, tokens) = batch(inputs);
                    let (loss, gradient) = evaluate(&config, &segments, &tokens, &counts);
                    let same = surrogate(&config, &segments, &tokens, &tokens, &counts);
                    assert!(
                        (loss - same).abs() < 1e-11 * (1.0 + loss.abs()),
                        "{config:?}, {inputs:?}: {loss} not {same}"
                    );
                    for (u, &expected) in gradient.iter().enumerate() {
                        let difference = derivative(|step| {
                            let mut moved = tokens.clone();
                            moved.logprobs[u] += step;
                            surrogate(&config, &segments, &moved, &tokens, &counts)
                        });
                        let error = (difference - expected).abs();
                        worst = worst.max(error);
                        assert!(error < 1e-8, "{config:?}, {inputs:?}: token {u}: {expected} not {difference}");
                        checked += 1;
                    }
                }
            }
        }
        println!("{worst:.1e}  {variant:?}");
    }
    println!("{checked} derivatives");
}
