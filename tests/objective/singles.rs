//! Batches whose segments have one token each take one launch, whatever the objective and whatever is asked for: in the bits of three.

use moerl::Backend;
use moerl::objective::{Config, DenominatorBasis, NonFinite, RejectionScope, Variant};

use crate::case::{Asking, Case, objectives, run, run_asking, run_plain};
use crate::common::{bits, is_sanitized};
use crate::invariance::{by_phases, by_phases_asking, nearly_same, same};
use crate::variants::named;

/// Two units of one-token segments, the second of them neither full nor a multiple of 32; behind them a segment of two tokens.
const SINGLES: usize = 300;

/// A batch with everything that an objective may read.
fn rich() -> Case {
    let lengths = [vec![1; SINGLES], vec![2]].concat();
    Case::random(&lengths, 5).with_mask(5).with_weights(5).with_terms(5).with_corrections(5)
}

/// With a fault in every array.
fn spoilt(rich: &Case) -> Case {
    let mut odd = rich.clone();
    odd.loss_mask.as_mut().unwrap()[..SINGLES / 2].fill(1);
    odd.loss_mask.as_mut().unwrap()[11] = 9;
    odd.logprobs[7] = f32::NAN;
    odd.logprobs[13] = 0.5;
    odd.advantages[21] = f32::INFINITY;
    let spoil = |array: &mut Option<Vec<f32>>, at: usize, by| array.as_mut().unwrap()[at] = by;
    spoil(&mut odd.old_logprobs, 27, f32::NEG_INFINITY);
    spoil(&mut odd.weights, 33, f32::NAN);
    spoil(&mut odd.weights, 34, 0.0);
    spoil(&mut odd.rollout_logprobs, 45, f32::NEG_INFINITY);
    spoil(&mut odd.ref_logprobs, 57, f32::NAN);
    spoil(&mut odd.ref_logprobs, 58, 0.7);
    spoil(&mut odd.entropy, 69, f32::NAN);
    spoil(&mut odd.router_shift, 81, f32::NAN);
    spoil(&mut odd.segment_weights, 93, f32::NAN);
    odd
}

fn cases() -> Vec<(&'static str, Case)> {
    let rich = rich();
    let masked = Case { weights: None, segment_weights: None, keep: None, router_shift: None, ..rich.clone() };
    let odd = spoilt(&rich);
    vec![
        ("plain", Case { loss_mask: None, ..masked.clone() }),
        ("without an old policy", Case { old_logprobs: None, ..masked.clone() }),
        ("masked", masked),
        ("A per token", rich.clone().with_token_advantages(5)),
        ("local denominators", Case { denominators: None, ..rich.clone() }),
        ("odd, A per token", odd.clone().with_token_advantages(5)),
        ("odd", odd),
        ("rich", rich),
    ]
}

pub fn segments_of_one_token_give_what_the_phases_give<B: Backend>(backend: &B) {
    let with_terms = |variant| Config { entropy_bonus: 0.02, mismatch_penalty: 0.01, ..Config::new(variant) };
    let configs: Vec<Config> =
        objectives().into_iter().chain(named().into_iter().map(|(_, variant)| with_terms(variant))).collect();
    for (number, config) in configs.iter().enumerate() {
        for (index, (what, both)) in cases().iter().enumerate() {
            // Of the variants every third case, each another third; a sanitizer finds in one case what it would find in all.
            let is_left_out = number >= objectives().len() && (number + index) % 3 != 0;
            if is_left_out || is_sanitized() && !matches!(*what, "odd" | "local denominators") {
                continue;
            }
            let config = Config {
                nonfinite: [NonFinite::Propagate, NonFinite::ZeroWeight, NonFinite::DropSegment]
                    [(number / 3 + index) % 3],
                denominator_basis: [DenominatorBasis::Original, DenominatorBasis::AfterRejection][number % 2],
                rejection: [RejectionScope::PolicyTerm, RejectionScope::AllTerms][(number / 2 + index) % 2],
                ..config.clone()
            };
            if config.variant == Variant::ReinforceIs && both.weights.is_none() {
                continue;
            }
            let name = format!("{what}: {config:?}");
            let case = Case { denominators: both.denominators, ..both.part(0..SINGLES) };
            let found = run(backend, &config, &case);

            // Beside a longer segment they take other launches.
            let beside = run(backend, &config, both);
            assert_eq!(bits(&found.ratio), bits(&beside.ratio[..SINGLES]), "{name}");
            assert_eq!(bits(&found.sequence_ratio), bits(&beside.sequence_ratio[..SINGLES]), "{name}");
            assert_eq!(found.clipped, beside.clipped[..SINGLES], "{name}");
            assert_eq!(found.sequence_clipped, beside.sequence_clipped[..SINGLES], "{name}");
            if both.denominators.is_some() {
                assert_eq!(bits(&found.d_logprobs), bits(&beside.d_logprobs[..SINGLES]), "{name}");
                for (one, other) in [(&found.d_entropy, &beside.d_entropy), (&found.kl, &beside.kl)] {
                    assert_eq!(bits(one), bits(&other[..one.len()]), "{name}");
                }
            }

            // What is asked for decides what is read, and so which faults are found: the same is asked for on both ways.
            let (loss, gradient) = run_plain(backend, &config, &case);
            if both.denominators.is_some() {
                assert_eq!(bits(&gradient), bits(&run_plain(backend, &config, both).1[..SINGLES]), "{name}");
            }
            // The reference's phases hand over coefficients in f32, unlike its one call. Local denominators do not survive phases.
            if backend.name() == "reference" || both.denominators.is_none() {
                continue;
            }
            let (by_phases, _) = by_phases(backend, &config, &case, &[usize::MAX / 2]);
            assert!(same(&[by_phases], &[loss]), "{name}: {by_phases} not {loss}");
            let asked = run_asking(backend, &config, &case, Asking { diagnostics: true, ratio: false });
            let phases = by_phases_asking(backend, &config, &case, &[usize::MAX / 2], true);
            assert_eq!(bits(&phases.d_logprobs), bits(&asked.d_logprobs), "{name}");
            assert!(same(&[phases.loss], &[asked.loss]), "{name}: {} not {}", phases.loss, asked.loss);
            assert!(
                nearly_same(&asked.diagnostics, &phases.diagnostics),
                "{name}: {:?} not {:?}",
                asked.diagnostics,
                phases.diagnostics
            );
            assert_eq!(asked.fault, phases.fault, "{name}");
        }
    }
}
