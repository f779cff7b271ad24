//! Every backend against the f64 reference.

use moerl::correction::{Config, Diagnostics, Divergence, Level, Metropolis, Over, Rejection, Repeats, Weight};
use moerl::{Backend, Reference};

use crate::case::{Case, Found, distributions, run, run_plain};
use crate::common::bits;

/// Each weight at each of its levels.
pub fn weights() -> Vec<Config> {
    let mut all = vec![
        Config::default(),
        Config::new(Weight::SequenceMasked { low: 0.99, high: 1.02 }),
        Config::new(Weight::MultipleImportance { proportions: vec![0.25, 0.75] }),
        Config::new(Weight::Metropolis { level: Level::Token, mode: Metropolis::Mask, seed: 3 }),
        Config::new(Weight::SelfNormalisedAttached),
        // Some segments beyond, and more where they are long.
        Config { saturation: 0.5, ..Config::new(Weight::SelfNormalisedAttached) },
    ];
    for level in [Level::Token, Level::Turn, Level::Sequence, Level::Geometric] {
        all.push(Config::tis(level, 1.1));
        all.push(Config::new(Weight::Clamped { level, low: 0.9, high: 1.2 }));
        all.push(Config { batch_normalise: true, ..Config::new(Weight::Band { level, low: 0.5, high: 1.3 }) });
    }
    for level in [Level::Sequence, Level::Geometric] {
        all.push(Config::new(Weight::SelfNormalised { level, leave_one_out: true }));
        all.push(Config::new(Weight::Metropolis { level, mode: Metropolis::Multiplicity, seed: 9 }));
        all.push(Config::new(Weight::Metropolis { level, mode: Metropolis::Mask, seed: 9 }));
    }
    all
}

/// Combinations that between them have every rejection.
pub fn rejections() -> Vec<Vec<Rejection>> {
    let divergence = |estimate, over| Rejection::Divergence { estimate, over };
    let k1 = Divergence::K1 { low: 0.8, high: 1.25 };
    let band = |level, low, high| Rejection::Band { level, low, high };
    vec![
        vec![],
        vec![
            band(Level::Token, 0.7, 1.6),
            divergence(k1, Over::Token),
            divergence(Divergence::K2(0.02), Over::Token),
            divergence(Divergence::K3(0.015), Over::Token),
        ],
        vec![
            band(Level::Sequence, 0.3, 4.0),
            divergence(k1, Over::Sum),
            divergence(Divergence::K2(8.0), Over::Sum),
            divergence(Divergence::K3(9.0), Over::Sum),
            Rejection::Veto { low: 0.15, high: 6.9 },
        ],
        vec![
            band(Level::Geometric, 0.97, 1.03),
            divergence(k1, Over::Mean),
            divergence(Divergence::K2(0.05), Over::Mean),
            divergence(Divergence::K3(0.06), Over::Mean),
            divergence(Divergence::K2(1.9), Over::Max),
            divergence(Divergence::K3(3.9), Over::Max),
            Rejection::OffPolicySequence { threshold: 0.001 },
            divergence(Divergence::K3(0.5), Over::Token),
        ],
        vec![band(Level::Turn, 0.95, 1.05), band(Level::Token, 0.5, 2.0)],
    ]
}

/// The batch for a configuration: the Metropolis test of tokens takes no turns.
fn for_config(case: &Case, config: &Config) -> Case {
    Case { has_turns: !matches!(config.weight, Weight::Metropolis { level: Level::Token, .. }), ..case.clone() }
}

/// A batch that has what every configuration asks for.
fn complete(lengths: &[usize], seed: u64) -> Case {
    let mut case = Case::random(lengths, seed).with_mask(seed).with_groups(4, seed).with_advantages(false, seed);
    case.target_logprobs = Some(lengths.iter().map(|&n| -2.0 * n as f64).collect());
    case.proposal_logprobs = Some(
        lengths
            .iter()
            .enumerate()
            .flat_map(|(i, &n)| [-2.0 * n as f64 - 0.1 * (i % 7) as f64, -2.0 * n as f64 + 0.3])
            .collect(),
    );
    case
}

fn relative(found: f64, expected: f64, relative: f64, absolute: f64) -> bool {
    let same = found == expected || (found.is_nan() && expected.is_nan());
    same || (found - expected).abs() <= absolute + relative * expected.abs()
}

/// A weight is exp of a sum of f32 differences: an ulp of the log-probabilities, 1e-6, per token of a sum, and 2 ulp of exp. Tokens and
/// segments within rounding of a bound may fall on either side of it; the seeds have none, so that everything discrete is equal.
fn assert_agrees(name: &str, case: &Case, found: &Found, expected: &Found) {
    let tolerance = |length: usize| 2e-6 + 1e-7 * length as f64;
    let segments = case.segments();
    for (i, range) in segments.ranges().enumerate() {
        let close = |what: &str, f: f64, e: f64| {
            assert!(relative(f, e, tolerance(range.len()), 1e-7), "{name}: segment {i}: {what} {f} not {e}");
        };
        close("weight", found.segment_weights[i].into(), expected.segment_weights[i].into());
        // X itself, whose terms have both signs.
        let (f, e) = (found.segment_log_weights[i], expected.segment_log_weights[i]);
        assert!(relative(f, e, 1e-6, tolerance(range.len())), "{name}: segment {i}: X {f} not {e}");
        close("advantage", found.advantages[i].into(), expected.advantages[i].into());
        for u in range.clone() {
            close("weight of a token", found.weights[u].into(), expected.weights[u].into());
            let (f, e) = (found.log_ratio[u], expected.log_ratio[u]);
            assert!((f - e).abs() <= 2e-6, "{name}: token {u}: log-ratio {f} not {e}");
        }
    }
    for (group, (&f, &e)) in found.expected_rewards.iter().zip(&expected.expected_rewards).enumerate() {
        let longest = case.lengths.iter().copied().max().unwrap_or(0);
        assert!(relative(f, e, tolerance(longest), 1e-6), "{name}: group {group}: mean reward {f} not {e}");
    }
    assert_eq!(found.keep, expected.keep, "{name}");
    assert_eq!(found.kept, expected.kept, "{name}");
    assert_eq!(found.accepted, expected.accepted, "{name}");
    assert_eq!(found.multiplicity, expected.multiplicity, "{name}");
    assert_eq!(found.carry_multiplicity, expected.carry_multiplicity, "{name}");
    assert_eq!(found.rejected, expected.rejected, "{name}");
    assert_eq!(found.fault, expected.fault, "{name}");
    for (place, (&f, &e)) in found.globals.iter().zip(&expected.globals).enumerate() {
        assert!(relative(f, e, 2e-4, 1e-9), "{name}: global {place}: {f} not {e}");
    }
}

/// The sums have up to 1024 terms in f32 before they become f64.
fn assert_diagnostics_agree(name: &str, case: &Case, found: &Found, expected: &Found) {
    for (place, (&f, &e)) in found.diagnostics.iter().zip(&expected.diagnostics).enumerate() {
        let absolute = 2e-6 * case.tokens() as f64 + 1e-6;
        assert!(relative(f, e, 2e-4, absolute), "{name}: sum {place}: {f} not {e}");
    }
}

pub fn results_agree_with_the_reference_for_every_weight_and_length<B: Backend>(backend: &B) {
    for (which, lengths) in distributions() {
        let case = complete(&lengths, 5);
        for config in weights() {
            let name = format!("{which}, {:?}", config.weight);
            let config = config.with_rejection(Rejection::Band { level: Level::Token, low: 0.5, high: 2.0 });
            let case = for_config(&case, &config);
            let found = run(backend, &config, &case);
            assert_agrees(&name, &case, &found, &run(&Reference, &config, &case));
            // Fewer outputs, other kernels, the same numbers.
            let (weights, keep) = run_plain(backend, &config, &case);
            assert_eq!(bits(&weights), bits(&found.weights), "{name}");
            assert_eq!(keep, found.keep, "{name}");
        }
    }
}

pub fn results_agree_for_every_rejection<B: Backend>(backend: &B) {
    for lengths in [vec![3, 40, 0, 1, 900, 17], vec![1500, 20]] {
        for rejections in rejections() {
            for per_token in [false, true] {
                let config = Config { rejections: rejections.clone(), ..Config::tis(Level::Token, 2.0) };
                let case = for_config(&complete(&lengths, 6).with_advantages(per_token, 6), &config);
                let found = run(backend, &config, &case);
                assert_agrees(&format!("{rejections:?}"), &case, &found, &run(&Reference, &config, &case));
            }
        }
    }
}

pub fn results_agree_for_every_offset<B: Backend>(backend: &B) {
    for repeats in [1, 2, 8] {
        for lengths in [vec![5, 41, 3], vec![1027]] {
            let case = Case::random(&lengths, 7).with_mask(7).with_offsets(7).with_repeats(repeats, 7);
            for combine in [Repeats::LogMean, Repeats::Mean] {
                let config = Config { repeats: combine, ..Config::tis(Level::Sequence, 3.0) };
                let found = run(backend, &config, &case);
                assert_agrees(&format!("{repeats} {combine:?}"), &case, &found, &run(&Reference, &config, &case));
            }
        }
    }
}

pub fn diagnostics_agree_with_the_reference<B: Backend>(backend: &B) {
    for (which, lengths) in distributions() {
        let case = complete(&lengths, 8);
        for config in weights().into_iter().step_by(3) {
            let config = Config { catastrophic: (0.2, 5.0), ..config.with_diagnostics() }
                .with_rejection(Rejection::Band { level: Level::Token, low: 0.5, high: 2.0 });
            let name = format!("{which}, {:?}", config.weight);
            let case = for_config(&case, &config);
            let (found, expected) = (run(backend, &config, &case), run(&Reference, &config, &case));
            assert_agrees(&name, &case, &found, &expected);
            assert_diagnostics_agree(&name, &case, &found, &expected);
        }
    }
}

pub fn diagnostics_mean_what_they_say<B: Backend>(backend: &B) {
    let mut case = Case::of_log_ratios(&[0.2, -0.4, 0.0, 0.0]);
    case.lengths = vec![2, 1, 1];
    case.loss_mask = Some(vec![1, 1, 1, 0]);
    let config = Config::tis(Level::Token, 1.1).with_diagnostics();
    let found = run(backend, &config, &case);
    let of = |count_empty| Diagnostics::from_sums(&found.diagnostics, count_empty).unwrap();
    let d = of(false);
    let close = |found: Option<f64>, expected: f64| {
        let found = found.unwrap();
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(0.1), "{found} not {expected}");
    };
    let (a, b) = (0.2_f64, -0.4_f64);
    assert_eq!((d.tokens, d.segments, d.empty_segments), (3, 2, 1));
    close(d.mismatch_k1, (0.4 - 0.2) / 3.0);
    close(d.mismatch_k3, (a.exp_m1() - a + b.exp_m1() - b) / 3.0);
    close(d.token_mult_prob_error, (a.exp() + (-b).exp() + 1.0) / 3.0);
    close(d.chi2_token, ((2.0 * a).exp() + (2.0 * b).exp() + 1.0) / 3.0 - 1.0);
    close(d.chi2_seq, ((2.0 * (a + b)).exp() + 1.0) / 2.0 - 1.0);
    close(d.chi2_geo, ((a + b).exp() + 1.0) / 2.0 - 1.0);
    close(d.log_ppl_diff, 0.1 / 2.0);
    close(d.ppl_ratio, (0.1_f64.exp() + 1.0) / 2.0);
    // o is 0 and −.4, q −.2 and 0.
    close(d.ppl_old, (0.2_f64.exp() + 1.0) / 2.0);
    close(d.log_ppl_rollout, 0.1 / 2.0);
    let used = [1.1, b.exp(), 1.0];
    let (sum, squares) = (used.iter().sum::<f64>(), used.iter().map(|w| w * w).sum::<f64>());
    close(d.weight_used_mean, sum / 3.0);
    close(d.ess, sum * sum / squares);
    let weight = d.weight.unwrap();
    close(Some(weight.max), a.exp());
    close(Some(weight.min), b.exp());
    close(Some(weight.above), 1.0 / 3.0);
    close(Some(weight.below), 1.0 / 3.0);
    let sequence = d.weight_seq.unwrap();
    close(Some(sequence.mean), ((1.1 + b.exp()) / 2.0 + 1.0) / 2.0);
    // M of the first token: LSE(0, −.2) − ln 2.
    let f = |x: f64| x.exp_m1() - x;
    let half = |o: f64, q: f64| {
        let m = (o.exp() + q.exp()).ln() - 2f64.ln();
        0.5 * (f(o - m) + f(q - m))
    };
    close(d.js_divergence, (half(0.0, -0.2) + half(-0.4, 0.0)) / 3.0);
    // verl counts the empty segment as perplexity 1, X = 0 and weight 0.
    let verl = of(true);
    close(verl.ppl_old, (0.2_f64.exp() + 2.0) / 3.0);
    close(verl.log_ppl_diff, 0.1 / 3.0);
    close(Some(verl.weight_seq.unwrap().min + 1.0), 1.0);
    assert!(Diagnostics::from_sums(&found.diagnostics[1..], false).is_none());
}
