//! The gradient is the derivative of the loss, for any objective and batch.

use proptest::prelude::*;
use proptest::test_runner::{Config as Settings, RngSeed, TestRunner, contextualize_config};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;

/// A call, as it is drawn: which variant, how long the segments are, which arrays and options there are, and a seed for all numbers.
#[derive(Clone, Debug)]
struct Drawn {
    variant: usize,
    lengths: Vec<usize>,
    options: u32,
    seed: u64,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let lengths = proptest::collection::vec(0..6_usize, 1..4);
    (0..variants().len(), lengths, any::<u32>(), any::<u64>()).prop_map(|(variant, lengths, options, seed)| Drawn {
        variant,
        lengths,
        options,
        seed,
    })
}

impl Drawn {
    fn has(&self, bit: u32) -> bool {
        self.options >> bit & 1 != 0
    }

    fn config(&self, rng: &mut StdRng) -> Config {
        let mut variant = variants()[self.variant];
        if let Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) = &mut variant {
            clip.low *= rng.random_range(0.0..5.0);
            clip.high *= rng.random_range(0.0..3.0);
        }
        let forms = [KlForm::K1, KlForm::Abs, KlForm::K2, KlForm::K3, KlForm::K3IsToken, KlForm::K3IsSequence];
        let kl = Kl {
            straight_through: self.has(0),
            input_clamp: self.has(1).then(|| rng.random_range(0.1..1.5)),
            output_clamp: self.has(2).then(|| rng.random_range(0.01..0.8)),
            ..Kl::new(rng.random_range(0.0..1.0), *forms.choose(rng).unwrap())
        };
        let low = rng.random_range(-1.0..0.3_f32);
        Config {
            kl: self.has(3).then_some(kl),
            mismatch_penalty: if self.has(4) { rng.random_range(0.0..0.2) } else { 0.0 },
            entropy_bonus: if self.has(5) { rng.random_range(0.0..0.2) } else { 0.0 },
            rejection: if self.has(6) { RejectionScope::AllTerms } else { RejectionScope::PolicyTerm },
            denominator_basis: if self.has(7) { DenominatorBasis::AfterRejection } else { DenominatorBasis::Original },
            saturation: match self.options >> 8 & 3 {
                0 => Saturation::NONE,
                1 => Saturation { low, high: low + rng.random_range(0.1..1.0) },
                _ => Saturation::default(),
            },
            dp_scale: rng.random_range(0.5..4.0),
            ..Config::new(variant).with_aggregation(*AGGREGATIONS.choose(rng).unwrap())
        }
    }

    fn tokens(&self, config: &Config, segments: &Segments, rng: &mut StdRng) -> Tokens {
        let (n, s) = (segments.tokens(), segments.len());
        let is_one = matches!(config.variant, Variant::Gmpo(_));
        let per_token = self.has(10) && !is_one;
        let mut floats =
            |len: usize, low: f64, high: f64| -> Vec<f64> { (0..len).map(|_| rng.random_range(low..high)).collect() };
        let old = floats(n, -4.0, -1.0);
        let far = floats(n, 0.0, 1.0);
        let mut near = |spread: f64| -> Vec<f64> {
            let apart = floats(n, -spread, spread);
            old.iter().zip(apart).map(|(old, apart)| old + apart).collect()
        };
        let (mut logprobs, mut reference, rollout) = (near(0.6), near(1.0), near(0.4));
        if self.has(11) {
            // Beyond what saturates by default. Not far from the reference policy, whose divergence would leave no digits for the rest.
            for u in (0..n).filter(|&u| far[u] < 0.2) {
                logprobs[u] -= 30.0;
                reference[u] -= 30.0;
            }
        }
        let weights = floats(n, 0.1, 2.0);
        let mut tokens = Tokens {
            logprobs,
            old_logprobs: self.has(12).then_some(old),
            advantages: floats(if per_token { n } else { s }, -2.0, 2.0),
            per_token,
            loss_mask: None,
            weights: self.has(13).then_some(weights),
            segment_weights: self.has(14).then(|| floats(s, 0.0, 2.0)),
            keep: None,
            chosen: None,
            router_shift: self.has(15).then(|| floats(n, -0.3, 0.0)),
            rollout_logprobs: config.uses_rollout().then_some(rollout),
            ref_logprobs: config.kl.is_some().then_some(reference),
            entropy: (config.entropy_bonus != 0.0).then(|| floats(n, 0.0, 3.0)),
            segment_scale: Some(floats(s, 0.5, 6.0)),
        };
        let mut bytes = || Some((0..n).map(|_| u8::from(rng.random_range(0..4) != 0)).collect());
        tokens.chosen = bytes();
        tokens.loss_mask = bytes().filter(|_| self.has(16));
        tokens.keep = bytes().filter(|_| self.has(17));
        tokens
    }
}

/// A difference at this step, unless a smaller one says otherwise: then a kink lies between.
fn smooth_derivative(f: impl Fn(f64) -> f64) -> Option<f64> {
    let (large, small) = (derivative(&f), derivative(|step| f(step / 8.0)) * 8.0);
    ((large - small).abs() <= 1e-9 * (1.0 + large.abs())).then_some(large)
}

#[test]
fn gradients_of_any_objective_are_finite_differences() {
    let settings =
        Settings { cases: 1000, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Settings::default() };
    let checked = std::cell::Cell::new((0_usize, 0_usize));
    let run = TestRunner::new(contextualize_config(settings)).run(&drawn(), |drawn| {
        let mut rng = StdRng::seed_from_u64(drawn.seed);
        let segments = Segments::from_lengths(drawn.lengths.iter().copied()).unwrap();
        let config = drawn.config(&mut rng);
        let tokens = drawn.tokens(&config, &segments, &mut rng);
        let counts = [9.0, 4.0, 2.0, 16.0];
        let (loss, gradient) = evaluate(&config, &segments, &tokens, &counts);
        // An old policy that is absent is today's, as a constant.
        let old_logprobs = tokens.old_logprobs.clone().or_else(|| Some(tokens.logprobs.clone()));
        let tokens = Tokens { old_logprobs, ..tokens };
        let same = surrogate(&config, &segments, &tokens, &tokens, &counts);
        assert!((loss - same).abs() <= 1e-11 * (1.0 + loss.abs()), "{loss} not {same}: {config:?}");
        for (u, &expected) in gradient.iter().enumerate() {
            let difference = smooth_derivative(|step| {
                let mut moved = tokens.clone();
                moved.logprobs[u] += step;
                surrogate(&config, &segments, &moved, &tokens, &counts)
            });
            let (all, kinks) = checked.get();
            checked.set((all + 1, kinks + usize::from(difference.is_none())));
            if let Some(difference) = difference {
                let error = (difference - expected).abs();
                assert!(error <= 1e-8 * (1.0 + expected.abs()), "token {u}: {expected} not {difference}: {config:?}");
            }
        }
        Ok(())
    });
    let (all, kinks) = checked.get();
    println!("{all} derivatives, {kinks} at kinks");
    run.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(kinks * 10 <= all, "{kinks} of {all} at kinks");
}
