//! The corrections of other systems.

use moerl::Backend;
use moerl::correction::{Config, Diagnostics, Level, Over, Preset, Rejection, Weight};

use crate::case::{Case, run};

#[test]
fn every_preset_is_valid_and_says_what_it_changes() {
    for preset in Preset::ALL {
        let config = Config::preset(preset);
        config.validate().unwrap();
        assert_eq!(config.differences().is_empty(), config == Config::default(), "{preset:?}");
        assert_eq!(config == Config::default(), preset == Preset::default(), "{preset:?}");
    }
    let skyrl = Config::preset(Preset::SkyRl).differences();
    assert_eq!(skyrl, ["weight: Truncated { level: Token, max: 2.0 }", "rejection: Veto { low: 0.0001, high: 100.0 }"]);
}

pub fn presets_weigh_as_their_systems_do<B: Backend>(backend: &B) {
    // Segments of one token, but for the last, whose ratios 8 and 1/8 make up for each other.
    let ratios = [6.0_f64, 0.25, 1.001, 1e-5, 8.0, 0.125];
    let mut case = Case::of_log_ratios(&ratios.map(|x| x.ln() as f32));
    case.lengths = vec![1, 1, 1, 1, 2];
    let tiny = 1e-5;
    for (preset, expected, keep) in [
        (Preset::Moerl, [1.0; 6], [1; 6]),
        (Preset::Trl, [0.0, 0.25, 1.001, tiny, 1.0, 1.0], [1; 6]),
        (Preset::Verl, [2.0, 0.25, 1.001, tiny, 2.0, 0.125], [1; 6]),
        (Preset::Slime, [2.0, 0.25, 1.001, tiny, 2.0, 0.125], [1; 6]),
        (Preset::OpenRlhf, [5.0, 0.5, 1.001, 0.5, 5.0, 0.5], [1; 6]),
        (Preset::NemoRl, [0.0, 0.0, 1.001, 0.0, 8.0, 0.125], [1; 6]),
        (Preset::SkyRl, [2.0, 0.25, 1.001, tiny, 2.0, 0.125], [1, 1, 1, 0, 1, 1]),
    ] {
        let found = run(backend, &Config::preset(preset), &case);
        for (f, e) in found.weights.iter().zip(expected) {
            // A log-ratio of 11 is known to half of 1e-6.
            assert!((f64::from(*f) - e).abs() <= 2e-6 * e, "{preset:?}: {:?} not {expected:?}", found.weights);
        }
        assert_eq!(found.keep, keep, "{preset:?}");
    }
    // slime lets NaN through, the others weigh it with 0.
    case.old_logprobs[1] = f32::NAN;
    for preset in [Preset::Trl, Preset::Verl, Preset::Slime, Preset::OpenRlhf, Preset::NemoRl, Preset::SkyRl] {
        let weight = run(backend, &Config::preset(preset), &case).weights[1];
        assert_eq!(weight.is_nan(), preset == Preset::Slime, "{preset:?}");
        assert!(weight.is_nan() || weight == 0.0, "{preset:?}: {weight}");
    }
}

/// A segment without a counted token has no mean (TRL's `mean_seq` divides 0 by 0): among others it is absent, from weights, rejections and
/// statistics.
pub fn a_segment_without_tokens_divides_nothing<B: Backend>(backend: &B) {
    let mut case = Case::random(&[9, 4, 0, 33, 1100], 5).with_mask(5);
    case.loss_mask.as_mut().unwrap()[9..13].fill(0);
    let estimate = moerl::correction::Divergence::K3(10.0);
    for weight in [
        Weight::Truncated { level: Level::Geometric, max: 2.0 },
        Weight::SequenceMasked { low: 0.5, high: 2.0 },
        Weight::Band { level: Level::Sequence, low: 0.0, high: 3.0 },
    ] {
        let config = Config { batch_normalise: true, ..Config::new(weight) }
            .with_rejection(Rejection::Divergence { estimate, over: Over::Mean })
            .with_rejection(Rejection::Band { level: Level::Geometric, low: 0.5, high: 2.0 })
            .with_diagnostics();
        let found = run(backend, &config, &case);
        assert!(found.weights.iter().chain(&found.segment_weights).all(|w| w.is_finite()), "{config:?}");
        assert!(found.globals.iter().all(|x| x.is_finite()), "{:?}", found.globals);
        assert_eq!((found.segment_weights[2], found.kept[1], found.kept[2]), (found.segment_weights[1], 0, 0));
        assert_eq!(found.rejected[..4], [0; 4], "{config:?}");
        let seen = Diagnostics::from_sums(&found.diagnostics, false).unwrap();
        assert_eq!((seen.segments, seen.empty_segments), (3, 2));
        let spread = seen.weight_seq.unwrap();
        assert!([seen.ppl_old.unwrap(), seen.log_ppl_diff.unwrap(), spread.mean].iter().all(|x| x.is_finite()));
    }
}
