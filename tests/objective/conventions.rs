//! Presets, lint, what a term needs, and what the diagnostics say.

use moerl::Backend;
use moerl::diagnostics::{Diagnostics, LEN};
use moerl::error::{FaultCode, Kind};
use moerl::objective::{
    Aggregation, Algorithm, Anchor, Cap, CispoCap, Clip, Config, DenominatorBasis, Divergence, Dppo, Kl, KlForm,
    Preset, Sapo, Saturation, Variant, Vespo, Warning,
};
use moerl::{Error, Reference};

use crate::case::{Case, run, try_run};

const PRESETS: [Preset; 10] = [
    Preset::Moerl,
    Preset::Trl,
    Preset::Liger,
    Preset::Verl,
    Preset::Slime,
    Preset::OpenRlhf,
    Preset::NemoRl,
    Preset::SkyRl,
    Preset::Areal,
    Preset::Prime,
];

#[test]
fn every_preset_of_every_algorithm_is_valid_and_says_what_it_changes() {
    for preset in PRESETS {
        for algorithm in Algorithm::ALL {
            let config = Config::preset(preset, algorithm);
            config.validate().unwrap();
            let plain = Config::new(config.variant);
            assert_eq!(config.differences().is_empty(), config == plain, "{preset:?}, {algorithm:?}");
        }
    }
}

#[test]
fn presets_follow_their_systems() {
    let verl = |algorithm| Config::preset(Preset::Verl, algorithm);
    let grpo = verl(Algorithm::Grpo);
    assert_eq!(grpo.variant, Variant::PpoClip(Clip { cap: Cap::Dual(3.0), ..Clip::new(0.2, 0.2) }));
    assert_eq!((grpo.aggregation, grpo.denominator_basis), (Aggregation::TokenMean, DenominatorBasis::AfterRejection));
    let gspo = verl(Algorithm::Gspo);
    assert!(matches!(gspo.variant, Variant::GspoToken(_)));
    assert_eq!(gspo.saturation, Saturation::above(10.0));
    assert_eq!(verl(Algorithm::Sapo).aggregation, Aggregation::SeqMeanTokenMean);
    let Variant::Dppo(Dppo { divergence, cap, .. }) = verl(Algorithm::DppoKl).variant else { panic!() };
    assert_eq!((divergence, cap), (Divergence::Kl { epsilon: 1e-8 }, 20.0));
    let kl = Config::default().with_kl(Kl::new(0.01, KlForm::K3));
    let of = |preset| kl.clone().with_preset(preset).kl.unwrap();
    assert_eq!((of(Preset::Verl).input_clamp, of(Preset::Verl).output_clamp), (Some(20.0), Some(10.0)));
    assert!(of(Preset::NemoRl).straight_through && !of(Preset::Trl).straight_through);
    let trl = Config::cispo(CispoCap::Raw { max: 5.0 }).with_preset(Preset::Trl);
    assert_eq!((trl.aggregation, trl.count_empty), (Aggregation::TokenMean, true));
    assert_eq!(Config::preset(Preset::SkyRl, Algorithm::DppoTv).anchor, Anchor::Rollout);
}

#[test]
fn lint_names_terms_that_do_nothing() {
    let kl = |beta, form| Config::default().with_kl(Kl::new(beta, form)).lint();
    assert_eq!(kl(0.0, KlForm::K3), [Warning::KlWithoutWeight]);
    assert_eq!(kl(0.1, KlForm::K1), [Warning::KlWithoutDirection]);
    assert_eq!(kl(0.1, KlForm::K3), []);
    assert_eq!(
        Config::preset(Preset::Areal, Algorithm::Gspo).lint(),
        [Warning::SequenceAggregation(Aggregation::TokenMean)]
    );
}

#[test]
fn numbers_outside_their_range_are_named() {
    let window = moerl::objective::Window::new(-0.1, 0.2);
    let dppo = Dppo { divergence: Divergence::TotalVariation, low: 0.1, high: 0.1, cap: 20.0 };
    for (config, part) in [
        (Config::cispo(CispoCap::Raw { max: 0.0 }), "cispo_max: is 0"),
        (Config::cispo(CispoCap::Window(window)), "clip_low: is -0.1"),
        (Config::new(Variant::SquarePenalty { tau: 0.0 }), "tau: is 0"),
        (Config::default().with_cap(Cap::Delta(0.0)), "delta: is 0"),
        (Config::default().with_cap(Cap::Dual(0.5)), "dual_clip: is 0.5"),
        (Config::new(Variant::Sapo(Sapo { tau_positive: 0.0, ..Sapo::default() })), "tau_positive: is 0"),
        (Config::new(Variant::Sapo(Sapo { tau_negative: -1.0, ..Sapo::default() })), "tau_negative: is -1"),
        (Config::new(Variant::Vespo(Vespo { positive: (0.0, 3.0), ..Vespo::default() })), "vespo_k: is 0"),
        (Config::new(Variant::Dppo(Dppo { cap: 0.0, ..dppo })), "dppo_cap: is 0"),
        (Config::new(Variant::Dppo(Dppo { low: f64::NAN, ..dppo })), "dppo_low: is NaN"),
        (Config { saturation: Saturation { low: 1.0, high: -1.0 }, ..Config::default() }, "saturation: is [1, -1]"),
        (Config::default().with_kl(Kl::new(-1.0, KlForm::K3)), "kl_beta: is -1"),
        // Finite, but not in a kernel.
        (Config::default().with_kl(Kl::new(1e300, KlForm::K3)), "kl_beta: is 1e300"),
        (Config::new(Variant::SquarePenalty { tau: 1e-300 }), "tau: is 1e-300"),
        (
            Config::default().with_kl(Kl { output_clamp: Some(0.0), ..Kl::new(1.0, KlForm::K3) }),
            "kl_output_clamp: is 0",
        ),
        (Config { entropy_bonus: f64::NAN, ..Config::default() }, "entropy_bonus: is NaN"),
    ] {
        let error = config.validate().unwrap_err();
        assert!(error.is(Kind::Config) && error.to_string().contains(part), "{part:?} is not in {error}");
    }
}

/// εl of 1 and more is legal: a ratio is never below 0.
#[test]
fn a_window_may_have_no_lower_bound() {
    let case = Case { advantages: vec![-1.0], ..Case::random(&[3], 4) };
    let case = Case { logprobs: vec![-15.0, -1.0, -2.0], old_logprobs: Some(vec![-0.5, -1.0, -2.0]), ..case };
    for low in [1.0, 1.5] {
        let config = Config::ppo_clip(low, 0.2);
        config.validate().unwrap();
        assert!(run(&Reference, &config, &case).d_logprobs[0] > 0.0);
    }
    assert_eq!(run(&Reference, &Config::ppo_clip(0.9, 0.2), &case).d_logprobs[0], 0.0);
}

pub fn a_term_without_its_input_is_refused<B: Backend>(backend: &B) {
    let case = Case::random(&[3, 4], 2);
    let bare = Config::default();
    for (config, name) in [
        (bare.clone().with_kl(Kl::new(0.1, KlForm::K3)), "ref_logprobs"),
        (Config { mismatch_penalty: 0.1, ..bare.clone() }, "rollout_logprobs"),
        (Config { anchor: Anchor::Rollout, ..bare.clone() }, "rollout_logprobs"),
        (Config { entropy_bonus: 0.1, ..bare.clone() }, "entropy"),
        (Config::new(Variant::KlCov { penalty: 1.0 }), "chosen"),
        (Config::new(Variant::ReinforceIs), "weights"),
        (bare.clone().with_aggregation(Aggregation::Custom), "segment_scale"),
    ] {
        let error = try_run(backend, &config, &case).unwrap_err();
        assert!(error.is(Kind::MissingInput) && error.to_string().starts_with(name), "{error}");
    }
}

pub fn correcting_for_the_rollout_twice_is_refused<B: Backend>(backend: &B) {
    let config = Config { anchor: Anchor::Rollout, ..Config::default() };
    let case = Case::random(&[3, 4], 2).with_terms(2);
    assert!(try_run(backend, &config, &case).is_ok());
    let kept = Case { keep: Some(vec![1; 7]), ..case.clone() };
    assert!(try_run(backend, &config, &kept).is_ok(), "masks are allowed");
    for weighted in [case.clone().with_weights(1), Case { segment_weights: Some(vec![1.0; 2]), ..case }] {
        let error = try_run(backend, &config, &weighted).unwrap_err();
        assert!(error.is(Kind::DoubleCorrection), "{error}");
    }
}

pub fn a_bad_segment_weight_is_reported<B: Backend>(backend: &B) {
    let case = Case { segment_weights: Some(vec![1.0, f32::NAN, 1.0]), ..Case::random(&[3, 40, 5], 2) };
    for config in [Config::ppo_clip(0.2, 0.28), Config::gspo(0.01, 0.015)] {
        let found = run(backend, &config, &case);
        assert!(
            matches!(found.fault, Some(Error::Data(fault)) if fault.row == 1 && fault.code == FaultCode::SegmentWeight)
        );
        assert!(found.loss.is_finite() && found.d_logprobs[3..43].iter().all(|g| g.to_bits() == 0));
    }
}

pub fn the_parts_of_a_loss_add_up<B: Backend>(backend: &B) {
    let case = Case::random(&[40, 3, 1200], 4).with_mask(4).with_terms(4);
    for variant in [Config::ppo_clip(0.2, 0.28).variant, Config::gspo(0.01, 0.015).variant] {
        let config = Config {
            mismatch_penalty: 0.3,
            entropy_bonus: 0.1,
            ..Config::new(variant).with_kl(Kl::new(0.2, KlForm::K3))
        };
        let found = run(backend, &config, &case);
        let seen = Diagnostics::from_sums(&found.diagnostics).unwrap();
        let bare = Config { kl: None, mismatch_penalty: 0.0, entropy_bonus: 0.0, ..config };
        let policy = run(&Reference, &bare, &case).loss;
        assert!((seen.loss - found.loss).abs() <= 1e-12 * found.loss.abs().max(1.0));
        // Their sums are of f32.
        assert!((seen.policy_loss - policy).abs() <= 1e-5 * (seen.kl_loss + seen.mismatch_loss + policy.abs()));
        assert!(seen.kl_loss > 0.0 && seen.mismatch_loss > 0.0 && seen.entropy_loss < 0.0);
        assert!(seen.ref_kl_k3.unwrap() > 0.0 && seen.entropy.unwrap() > 0.0 && seen.approx_entropy.unwrap() > 0.0);
    }
}

/// Log-probabilities that went through bf16 are told from those that did not.
pub fn rounded_log_probabilities_are_noticed<B: Backend>(backend: &B) {
    let mut case = Case::random(&[40, 2000], 4);
    let looking = |case: &Case| {
        let found = run(backend, &Config::default(), case);
        Diagnostics::from_sums(&found.diagnostics).unwrap().bf16_looking.unwrap()
    };
    assert!(looking(&case) < 0.01);
    for array in [&mut case.logprobs, case.old_logprobs.as_mut().unwrap()] {
        array.iter_mut().for_each(|l| *l = f32::from_bits(l.to_bits() & 0xffff_0000));
    }
    assert_eq!(looking(&case), 1.0);
}

/// What rounding leaves above 0 is taken, and counted.
pub fn log_probabilities_just_above_0_are_counted<B: Backend>(backend: &B) {
    let mut case = Case::random(&[40, 3, 2000], 4).with_mask(3);
    let counted: Vec<usize> = (0..case.logprobs.len()).filter(|&u| case.loss_mask.as_ref().unwrap()[u] != 0).collect();
    for &u in &counted[..7] {
        case.logprobs[u] = 1e-4;
    }
    case.old_logprobs.as_mut().unwrap()[counted[20]] = 9e-4;
    let found = run(backend, &Config::default(), &case);
    assert_eq!(found.fault, None);
    assert_eq!(Diagnostics::from_sums(&found.diagnostics).unwrap().positive_logprobs, 8);
}

#[test]
fn a_mean_over_nothing_is_none() {
    let mut sums = [0.0; LEN];
    sums[moerl::diagnostics::SUMS..].fill(f64::NEG_INFINITY);
    let seen = Diagnostics::from_sums(&sums).unwrap();
    assert_eq!((seen.tokens, seen.loss, seen.rejected_tokens), (0, 0.0, 0));
    assert!(seen.ratio.is_none() && seen.policy_kl_k1.is_none() && seen.weight.is_none() && seen.ess.is_none());
    assert!(seen.clip_fraction.is_none() && seen.entropy.is_none() && seen.ref_kl_k1.is_none());
    assert!(seen.pull.is_none() && seen.router_gamma.is_none() && seen.bf16_looking.is_none());
}
