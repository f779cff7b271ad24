//! Every backend against the f64 reference.

use moerl::Backend;
use moerl::Reference;
use moerl::objective::{Aggregation, Cap, Config, Saturation};

use crate::case::{Case, Found, distributions, run, run_plain};
use crate::common::bits;

const VARIANTS: [fn() -> Config; 3] =
    [|| Config::ppo_clip(0.2, 0.28), || Config::gspo(0.01, 0.015), || Config::gspo_token(0.01, 0.015)];

/// How far a gradient may be from the reference's: 1e-6 for the arithmetic in f32 (a few roundings and 2 ulp of exp), an ulp of the
/// larger log-probability for l − o, and 1e-8 of the largest gradient.
fn assert_agrees(name: &str, config: &Config, case: &Case, found: &Found) {
    let expected = run(&Reference, config, case);
    let largest = expected.d_logprobs.iter().fold(0.0_f64, |largest, g| largest.max(f64::from(g.abs())));
    // Inputs within rounding of a bound may fall on either side of it; there are next to none.
    let undecided = found.clipped.iter().zip(&expected.clipped).filter(|(a, b)| a != b).count();
    assert!(undecided * 1000 <= case.tokens(), "{name}: {undecided} tokens clipped otherwise");
    for (u, (&g, &e)) in found.d_logprobs.iter().zip(&expected.d_logprobs).enumerate() {
        if found.clipped[u] != expected.clipped[u] {
            continue;
        }
        let size = case.old_logprobs.as_ref().map_or(0.0, |old| old[u].abs()).max(case.logprobs[u].abs());
        let tolerance = (1e-6 + f64::from(size) * 2f64.powi(-23)) * f64::from(e.abs()) + 1e-8 * largest;
        let error = (f64::from(g) - f64::from(e)).abs();
        assert!(error <= tolerance, "{name}: token {u}: gradient {g} not {e}");
    }
    for (u, (&r, &e)) in found.ratio.iter().zip(&expected.ratio).enumerate() {
        assert!((r - e).abs() <= 2e-6 * e, "{name}: token {u}: ratio {r} not {e}");
    }
    for (i, (&r, &e)) in found.sequence_ratio.iter().zip(&expected.sequence_ratio).enumerate() {
        assert!((r - e).abs() <= 2e-6 * e, "{name}: segment {i}: ratio {r} not {e}");
    }
    assert_eq!(found.sequence_clipped, expected.sequence_clipped, "{name}");
    // 2e-6 of the sum of the absolute values: the loss where every advantage is negative, so that all terms have one sign.
    let negative = Case { advantages: case.advantages.iter().map(|a| -a.abs()).collect(), ..case.clone() };
    let scale = run(&Reference, config, &negative).loss;
    let error = (found.loss - expected.loss).abs();
    assert!(error <= 2e-6 * scale || error.is_nan(), "{name}: loss {} not {}", found.loss, expected.loss);
    assert_eq!(found.loss.is_nan(), expected.loss.is_nan(), "{name}");
    assert_eq!(found.fault, expected.fault, "{name}");
}

/// Advantages per segment and per token, with and without mask and weights.
fn inputs(lengths: &[usize], seed: u64) -> Vec<(&'static str, Case)> {
    let plain = Case::random(lengths, seed);
    vec![
        ("plain", plain.clone()),
        ("mask", plain.clone().with_mask(seed)),
        ("mask, weights", plain.clone().with_mask(seed).with_weights(seed)),
        ("mask, A per token, weights", plain.with_mask(seed).with_token_advantages(seed).with_weights(seed)),
    ]
}

pub fn results_agree_with_the_reference_for_every_variant_and_length<B: Backend>(backend: &B) {
    for (which, lengths) in distributions() {
        for (kind, case) in inputs(&lengths, 3) {
            for config in VARIANTS.map(|config| config()) {
                let name = format!("{which}, {kind}, {:?}", config.variant);
                let found = run(backend, &config, &case);
                assert_agrees(&name, &config, &case, &found);
                // Fewer outputs, other kernels, the same numbers.
                let (loss, gradient) = run_plain(backend, &config, &case);
                assert_eq!(loss.to_bits(), found.loss.to_bits(), "{name}");
                assert_eq!(bits(&gradient), bits(&found.d_logprobs), "{name}");
            }
        }
    }
}

pub fn results_agree_for_every_aggregation<B: Backend>(backend: &B) {
    let mut case = Case::random(&[40, 0, 1, 300, 1100], 5).with_mask(5);
    case.segment_scale = Some(vec![0.5, 1.0, 2.0, 3.0, 0.25]);
    for aggregation in [
        Aggregation::TokenMean,
        Aggregation::TokenSum,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm,
        Aggregation::PromptMean,
        Aggregation::Custom,
    ] {
        for config in VARIANTS.map(|config| config()) {
            for (count_empty, local) in [(false, false), (false, true), (true, true)] {
                if local && aggregation == Aggregation::PromptMean {
                    continue;
                }
                let mut config = config.clone().with_aggregation(aggregation);
                config.count_empty = count_empty;
                config.dp_scale = 2.0;
                let mut case = case.clone();
                if local {
                    case.denominators = None;
                }
                let name = format!("{aggregation:?}, {:?}, local {local}, empty {count_empty}", config.variant);
                let found = run(backend, &config, &case);
                assert_agrees(&name, &config, &case, &found);
            }
        }
    }
}

pub fn results_agree_for_every_saturation_and_cap<B: Backend>(backend: &B) {
    let mut case = Case::random(&[60, 5, 900, 1, 1], 8).with_mask(8);
    // Ratios that saturate, of tokens and of whole segments.
    for u in [3, 30, 62, 63, 64, 965, 966] {
        case.logprobs[u] = -90.0;
        case.old_logprobs.as_mut().unwrap()[u] = if u % 2 == 0 { -30.0 } else { -10.0 };
    }
    case.old_logprobs.as_mut().unwrap()[7] = -60.0;
    case.logprobs[7] = -0.5;
    for saturation in [Saturation::default(), Saturation::above(10.0), Saturation::symmetric(0.05)] {
        for cap in [Cap::None, Cap::Dual(3.0), Cap::Delta(1.005), Cap::Delta(2.0)] {
            for config in VARIANTS.map(|config| config()) {
                let config = Config { saturation, ..config.with_cap(cap) };
                let found = run(backend, &config, &case);
                assert_agrees(&format!("{saturation:?}, {cap:?}, {:?}", config.variant), &config, &case, &found);
            }
        }
    }
}

pub fn absent_old_logprobs_make_every_ratio_one<B: Backend>(backend: &B) {
    for config in VARIANTS.map(|config| config()) {
        let mut case = Case::random(&[9, 40, 2000], 4);
        case.old_logprobs = None;
        let found = run(backend, &config, &case);
        assert!(found.ratio.iter().chain(&found.sequence_ratio).all(|&ratio| ratio == 1.0));
        assert!(found.clipped.iter().all(|&clipped| clipped == 0));
        assert_agrees("absent", &config, &case, &found);
    }
}

pub fn diagnostics_agree_with_the_reference<B: Backend>(backend: &B) {
    for (which, lengths) in distributions() {
        for (kind, case) in inputs(&lengths, 6) {
            for config in VARIANTS.map(|config| config()) {
                let config = config.with_cap(Cap::Dual(1.5));
                let found = run(backend, &config, &case).diagnostics;
                let expected = run(&Reference, &config, &case).diagnostics;
                for (place, (&f, &e)) in found.iter().zip(&expected).enumerate() {
                    // f32 sums over up to 1024 tokens, whose terms have both signs in k1.
                    let tolerance = 1e-5 * e.abs() + 1e-6 * case.tokens() as f64;
                    let agrees = f == e || (f - e).abs() <= tolerance;
                    assert!(agrees, "{which}, {kind}, {:?}: sum {place}: {f} not {e}", config.variant);
                }
            }
        }
    }
}
