//! Every objective against the f64 reference.

use std::collections::BTreeMap;

use moerl::objective::{
    Anchor, Cap, Cispo, CispoCap, Clip, Config, DenominatorBasis, Divergence, Dppo, Kl, KlForm, RatioLevel,
    RejectionScope, Sapo, Variant, Vespo, Window,
};
use moerl::{Backend, Reference, diagnostics};

use crate::case::{Case, Found, run, run_plain};
use crate::common::bits;

/// Every variant by its name, with windows that clip some of a random batch.
pub fn named() -> Vec<(&'static str, Variant)> {
    let clip = |low, high, cap| Clip { low, high, cap };
    let cispo = |cap, level, unified_mask| Variant::Cispo(Cispo { cap, level, unified_mask });
    let sapo = |level| Variant::Sapo(Sapo { level, ..Sapo::default() });
    let dppo = |divergence| Variant::Dppo(Dppo { divergence, low: 0.02, high: 0.03, cap: 1.5 });
    let (window, mask) = (Window::new(0.2, 0.28), Some(Window::new(0.2, 0.28)));
    vec![
        ("ppo_clip", Variant::PpoClip(clip(0.2, 0.28, Cap::Dual(1.5)))),
        ("gspo", Variant::Gspo(clip(0.01, 0.015, Cap::None))),
        ("gspo_token", Variant::GspoToken(clip(0.01, 0.015, Cap::Delta(1.02)))),
        ("cispo", cispo(CispoCap::Window(window), RatioLevel::Token, None)),
        ("cispo unified", cispo(CispoCap::Raw { max: 1.2 }, RatioLevel::Token, mask)),
        ("cispo sequence", cispo(CispoCap::Raw { max: 1.01 }, RatioLevel::Sequence, None)),
        ("cispo sequence unified", cispo(CispoCap::Window(Window::new(0.01, 0.01)), RatioLevel::Sequence, mask)),
        ("gmpo", Variant::Gmpo(Window::new(0.2, 0.25))),
        ("sapo", sapo(RatioLevel::Token)),
        ("sapo sequence", sapo(RatioLevel::Sequence)),
        ("vespo", Variant::Vespo(Vespo::default())),
        ("dppo_tv", dppo(Divergence::TotalVariation)),
        ("dppo_kl", dppo(Divergence::Kl { epsilon: 0.0 })),
        ("dppo_kl + 1e-8", dppo(Divergence::Kl { epsilon: 1e-8 })),
        ("reinforce_is", Variant::ReinforceIs),
        ("minirl", Variant::MiniRl(Window::new(0.2, 0.27))),
        ("topr", Variant::Topr),
        ("square_penalty", Variant::SquarePenalty { tau: 0.1 }),
        ("gpg", Variant::Gpg),
        ("tis_loss", Variant::TisLoss),
        ("kl_cov", Variant::KlCov { penalty: 0.3 }),
    ]
}

fn divergences() -> Vec<Option<Kl>> {
    let plain = [KlForm::K1, KlForm::Abs, KlForm::K2, KlForm::K3, KlForm::K3IsToken, KlForm::K3IsSequence]
        .map(|form| Some(Kl::new(0.1, form)));
    let clamped = Kl { input_clamp: Some(0.7), output_clamp: Some(0.2), ..Kl::new(0.1, KlForm::K3) };
    let straight = Kl { straight_through: true, ..clamped };
    let sequence = Kl { form: KlForm::K3IsSequence, ..clamped };
    let token = Kl { form: KlForm::K3IsToken, ..clamped };
    [&[None][..], &plain, &[Some(clamped), Some(straight), Some(sequence), Some(token)]].concat()
}

/// How much more than one rounding of ρ shows in a gradient: by the slope of the sigmoid, or of the exponent of φ.
fn condition(variant: &Variant) -> f64 {
    match variant {
        Variant::Sapo(_) => 2.0,
        Variant::Vespo(_) => 2.0,
        _ => 1.0,
    }
}

/// The worst of a quantity, as a multiple of what is allowed.
#[derive(Default)]
struct Worst(BTreeMap<&'static str, (f64, f64)>);

impl Worst {
    fn see(&mut self, name: &'static str, gradient: f64, loss: f64) {
        let (g, l) = self.0.entry(name).or_default();
        (*g, *l) = (g.max(gradient), l.max(loss));
    }
}

/// Compares with the reference. Gradients within 1e-6 for the arithmetic in f32 and an ulp of the larger log-probability for l − o, of the
/// policy's part and the others' apart, and 1e-8 of the largest. The loss within 2e-6 of the sum of its absolute terms.
fn compare(name: &'static str, config: &Config, case: &Case, found: &Found, worst: &mut Worst) {
    let expected = run(&Reference, config, case);
    let bare = Config { kl: None, mismatch_penalty: 0.0, entropy_bonus: 0.0, ..config.clone() };
    let policy = run(&Reference, &bare, case);
    let factor = condition(&config.variant);
    let largest = expected.d_logprobs.iter().fold(0.0_f64, |largest, g| largest.max(f64::from(g.abs())));
    let undecided = found.clipped.iter().zip(&expected.clipped).filter(|(a, b)| a != b).count();
    assert!(undecided * 1000 <= case.tokens(), "{name}, {config:?}: {undecided} tokens clipped otherwise");
    let mut error = 0.0_f64;
    for u in (0..case.tokens()).filter(|&u| found.clipped[u] == expected.clipped[u]) {
        let old = case.old_logprobs.as_ref().map_or(0.0, |old| old[u].abs());
        let reference = case.ref_logprobs.as_ref().map_or(0.0, |array| array[u].abs());
        let size = f64::from(case.logprobs[u].abs().max(old).max(reference));
        let (e, p) = (f64::from(expected.d_logprobs[u]), f64::from(policy.d_logprobs[u]));
        let parts = p.abs() + (e - p).abs();
        let tolerance = factor * ((1e-6 + size * 2f64.powi(-23)) * parts + 1e-8 * largest);
        let off = (f64::from(found.d_logprobs[u]) - e).abs();
        assert!(
            off <= tolerance,
            "{name}, {config:?}: token {u}: {} not {e}, {off:e} of {tolerance:e}",
            found.d_logprobs[u]
        );
        error = error.max(if tolerance > 0.0 { off / tolerance } else { 0.0 });
    }
    for (what, found, expected) in
        [("kl", &found.kl, &expected.kl), ("d_entropy", &found.d_entropy, &expected.d_entropy)]
    {
        for (u, (f, e)) in found.iter().zip(expected).enumerate() {
            // A value of k3 carries the rounding of r − l, relative to its root.
            let allowed = 4e-6 * e.abs() + 2e-6 * e.abs().sqrt() + 1e-9;
            assert!((f - e).abs() <= allowed, "{name}, {config:?}: {what} of token {u}: {f} not {e}");
        }
    }
    // The policy's terms have one sign where every advantage is negative; the others are bounded by their own.
    let negative = Case { advantages: case.advantages.iter().map(|a| -a.abs()).collect(), ..case.clone() };
    let beside = expected.diagnostics[diagnostics::Sum::MismatchLoss as usize].abs()
        + expected.diagnostics[diagnostics::Sum::EntropyLoss as usize].abs();
    let kl = config.kl.map_or(0.0, |kl| {
        kl.beta * expected.kl.iter().map(|kl| f64::from(kl.abs())).sum::<f64>() / case.tokens().max(1) as f64
    });
    let scale = run(&Reference, &bare, &negative).loss.abs().max(policy.loss.abs()) + beside + kl;
    let allowed = factor * 2e-6 * scale;
    let off = (found.loss - expected.loss).abs();
    assert!(off <= allowed, "{name}, {config:?}: loss {} not {}, {off:e} of {allowed:e}", found.loss, expected.loss);
    worst.see(name, error, if allowed > 0.0 { off / allowed } else { 0.0 });
    for (place, (&f, &e)) in found.diagnostics.iter().zip(&expected.diagnostics).enumerate() {
        // f32 sums over up to 1024 tokens, of terms with both signs and of the size of a large weight.
        let tolerance = 2e-5 * e.abs() + 2e-6 * case.tokens() as f64 + undecided as f64;
        assert!(f == e || (f - e).abs() <= tolerance, "{name}, {config:?}: sum {place}: {f} not {e}");
    }
}

/// Segments of every kind: several to a unit, one, and tiles.
const LENGTHS: [usize; 9] = [0, 1, 5, 17, 40, 33, 700, 1100, 31];

pub fn every_objective_agrees_with_the_reference<B: Backend>(backend: &B) {
    let mut worst = Worst::default();
    for (index, (name, variant)) in named().into_iter().enumerate() {
        // A long segment's ratio without length normalisation leaves nothing of phi.
        let lengths = if name == "vespo" { &LENGTHS[..6] } else { &LENGTHS[..] };
        let plain = Case::random(lengths, 3).with_mask(4).with_weights(5).with_terms(6);
        let rich = plain.clone().with_token_advantages(7).with_corrections(8);
        let kls = divergences();
        for (which, kl) in kls.iter().enumerate() {
            // Both batches for the bare variant; every divergence with every second variant and one of the batches, so that each meets each.
            for (is_rich, case) in [(false, &plain), (true, &rich)] {
                if which > 0 && (is_rich != ((which + index) % 2 == 0) || (which + index / 2) % 2 == 0) {
                    continue;
                }
                let config = Config {
                    kl: *kl,
                    mismatch_penalty: if which % 2 == 1 { 0.05 } else { 0.0 },
                    entropy_bonus: if which % 3 == 1 { 0.02 } else { 0.0 },
                    rejection: if which % 2 == 0 { RejectionScope::PolicyTerm } else { RejectionScope::AllTerms },
                    denominator_basis: if which % 4 == 1 && is_rich {
                        DenominatorBasis::AfterRejection
                    } else {
                        DenominatorBasis::Original
                    },
                    ..Config::new(variant)
                };
                let found = run(backend, &config, case);
                compare(name, &config, case, &found, &mut worst);
                // Fewer outputs, other kernels, the same numbers.
                let (loss, gradient) = run_plain(backend, &config, case);
                assert_eq!(loss.to_bits(), found.loss.to_bits(), "{name}");
                assert_eq!(bits(&gradient), bits(&found.d_logprobs), "{name}");
            }
        }
    }
    for (name, (gradient, loss)) in &worst.0 {
        println!("{}: {name}: gradient {gradient:.3}, loss {loss:.3} of what is allowed", backend.name());
    }
}

pub fn ratios_may_be_taken_against_the_rollout<B: Backend>(backend: &B) {
    let case = Case::random(&[40, 1, 0, 900, 17, 1100], 5).with_mask(5).with_terms(5);
    let swapped = Case { old_logprobs: case.rollout_logprobs.clone(), ..case.clone() };
    for (name, variant) in named().into_iter().filter(|(name, _)| !["reinforce_is", "minirl"].contains(name)) {
        let config = Config { mismatch_penalty: 0.1, ..Config::new(variant) };
        let anchored = Config { anchor: Anchor::Rollout, ..config.clone() };
        let (found, expected) = (run(backend, &anchored, &case), run(backend, &config, &swapped));
        assert_eq!(found.loss.to_bits(), expected.loss.to_bits(), "{name}");
        assert_eq!(bits(&found.d_logprobs), bits(&expected.d_logprobs), "{name}");
    }
}

/// What is rejected is as good as weighted with 0, and what all terms lose is as good as masked where no denominator counts it.
pub fn rejected_tokens_lose_their_terms<B: Backend>(backend: &B) {
    let case = Case::random(&[40, 9, 300], 5).with_terms(5);
    let keep: Vec<u8> = (0..case.tokens()).map(|u| u8::from(u % 3 != 0)).collect();
    let rejected = Case { keep: Some(keep.clone()), ..case.clone() };
    let weights = keep.iter().map(|&keep| f32::from(keep)).collect();
    let weighted = Case { weights: Some(weights), ..case.clone() };
    for config in [Config::ppo_clip(0.2, 0.28), Config::gspo(0.01, 0.015), Config::gspo_token(0.01, 0.015)] {
        let config = config.with_kl(Kl::new(0.1, KlForm::K3));
        let (found, expected) = (run(backend, &config, &rejected), run(backend, &config, &weighted));
        assert!((found.loss - expected.loss).abs() <= 1e-12 * expected.loss.abs());
        for (f, e) in found.d_logprobs.iter().zip(&expected.d_logprobs) {
            assert!((f - e).abs() <= 1e-6 * e.abs(), "{f} not {e}");
        }
    }
    let masked = Case { loss_mask: Some(keep), ..case };
    let config = Config {
        rejection: RejectionScope::AllTerms,
        denominator_basis: DenominatorBasis::AfterRejection,
        ..Config::ppo_clip(0.2, 0.28).with_kl(Kl::new(0.1, KlForm::K3))
    };
    for denominators in [rejected.denominators, None] {
        let found = run(backend, &config, &Case { denominators, ..rejected.clone() });
        let expected = run(backend, &config, &Case { denominators, ..masked.clone() });
        assert!(
            (found.loss - expected.loss).abs() <= 1e-6 * expected.loss.abs(),
            "{} not {}",
            found.loss,
            expected.loss
        );
        for (f, e) in found.d_logprobs.iter().zip(&expected.d_logprobs) {
            assert!((f - e).abs() <= 1e-6 * e.abs(), "{f} not {e}");
        }
    }
}

/// A log-ratio of 200 saturates, is counted, and leaves everything finite; the weight of a stop-gradient is not zeroed by it.
pub fn a_log_ratio_of_200_saturates<B: Backend>(backend: &B) {
    for (name, variant) in named() {
        for sign in [1.0, -1.0] {
            let mut case = Case::random(&[3], 1).with_weights(1).with_terms(1);
            case.logprobs = vec![-0.1, -0.2, -0.3];
            case.old_logprobs = Some(vec![-0.1, -200.2, -0.3]);
            case.advantages = vec![sign];
            let found = run(backend, &Config::new(variant), &case);
            assert!(found.loss.is_finite() && found.d_logprobs.iter().all(|g| g.is_finite()), "{name}: {found:?}");
            assert_eq!(found.fault, None, "{name}");
            if name == "cispo" {
                // c w times the cap, as at any ratio beyond it: 1.28 is not zeroed.
                let c = 1.0 / 3.0 / case.denominators.unwrap()[1] as f64;
                let expected = f64::from(case.weights.as_ref().unwrap()[1]) * 1.28 * c;
                assert!(
                    (f64::from(found.d_logprobs[1].abs()) - expected).abs() < 1e-6,
                    "{} {expected}",
                    found.d_logprobs[1]
                );
            }
        }
    }
}
