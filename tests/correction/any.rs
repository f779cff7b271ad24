//! Any call: options, shapes, inputs and outputs in whatever combination.

use std::cell::Cell;

use moerl::correction::{Config, Divergence, Level, Rejection, Weight};
use moerl::objective::Groups;
use moerl::{Backend, Reference};
use rand::RngExt;

use crate::case::{Case, Found, Uploaded, run_in_pieces};
use crate::common::property::{bytes_of, for_any};
use crate::common::{canonical, report, seeded};
use crate::drawn::{Drawn, drawn};
use crate::outputs::{ALL, Outputs, Shifts, run, run_phases};

/// How far log-ratios of a call may be from exact ones, and so logarithms of its weights.
struct Rounding {
    of_tokens: Vec<f64>,
    of_segments: Vec<f64>,
    most: f64,
    /// Σ m (|o| + |q| + |δ| + 1): sums of terms of both signs are known to a share of it.
    scale: f64,
}

/// Every operation in f32 rounds by 2^-24 of its result, and so does each of the ten levels of a sum's tree.
fn rounding(case: &Case) -> Rounding {
    const ROUND: f64 = 1.0 / (1 << 24) as f64;
    let tokens = case.tokens();
    let repeats = case.old_logprobs.len().checked_div(tokens).unwrap_or(1);
    let at = |array: &Option<Vec<f32>>, u: usize| array.as_ref().map_or(0.0, |array| f64::from(array[u]));
    let (mut of_tokens, mut deltas, mut scale) = (vec![0.0; tokens], vec![0.0; tokens], 0.0);
    for u in (0..tokens).filter(|&u| case.loss_mask.as_ref().is_none_or(|mask| mask[u] != 0)) {
        let old = (0..repeats).map(|r| f64::from(case.old_logprobs[r * tokens + u]).abs()).fold(0.0, f64::max);
        let rollout = f64::from(case.rollout_logprobs[u]);
        let (mass, shift) = (at(&case.kept_log_mass, u), at(&case.router_shift, u));
        let delta = old + rollout.abs();
        let delta = if repeats > 1 {
            delta + 1.0
        } else {
            (f64::from(case.old_logprobs[u]) - rollout - mass).abs() + shift.abs()
        };
        if !(delta + old + rollout).is_finite() {
            continue;
        }
        let of_repeats = if repeats > 1 { (repeats + 4) as f64 * (old + 1.0) } else { 0.0 };
        of_tokens[u] = ROUND * (2.0 * delta + if mass != 0.0 { rollout.abs() } else { 0.0 } + of_repeats);
        deltas[u] = delta;
        scale += old + rollout.abs() + delta + 1.0;
    }
    let of_segment = |range: std::ops::Range<usize>| {
        of_tokens[range.clone()].iter().sum::<f64>() + 12.0 * ROUND * deltas[range].iter().sum::<f64>()
    };
    let of_segments: Vec<f64> = case.segments().ranges().map(of_segment).collect();
    let most = of_segments.iter().copied().fold(0.0, f64::max);
    Rounding { of_tokens, of_segments, most, scale }
}

/// The same call with every bound moved by what rounding may make of a number that is compared with it.
fn nudged(drawn: &Drawn, case: &Case, by: f64) -> (Drawn, Case) {
    let (mut drawn, mut case) = (drawn.clone(), case.clone());
    let widen = |low: &mut f64, high: &mut f64| {
        (*low, *high) = (*low * (-by).exp(), *high * by.exp());
        if *low > *high {
            *high = *low;
        }
    };
    let raise = |most: &mut f64| *most = (*most + by * (2.0 * *most + 8.0 * most.sqrt() + by.abs())).max(0.0);
    match &mut drawn.config.weight {
        Weight::Clamped { low, high, .. } | Weight::Band { low, high, .. } | Weight::SequenceMasked { low, high } => {
            widen(low, high)
        }
        Weight::Truncated { max, .. } => *max *= by.exp(),
        _ => {}
    }
    for rejection in &mut drawn.config.rejections {
        match rejection {
            Rejection::Band { low, high, .. }
            | Rejection::Veto { low, high }
            | Rejection::Divergence { estimate: Divergence::K1 { low, high }, .. } => widen(low, high),
            Rejection::Divergence { estimate: Divergence::K2(most) | Divergence::K3(most), .. } => raise(most),
            Rejection::OffPolicySequence { threshold } => *threshold += by,
            _ => {}
        }
    }
    widen(&mut drawn.config.catastrophic.0, &mut drawn.config.catastrophic.1);
    drawn.config.saturation = (f64::from(drawn.config.saturation) + by).max(1e-9) as f32;
    if drawn.is_test_of_tokens() && case.uniforms.is_none() {
        case.rollout_logprobs.iter_mut().for_each(|q| *q += by as f32);
    }
    case.uniforms.iter_mut().flatten().for_each(|u| *u *= by.exp() as f32);
    (drawn, case)
}

/// Places of the diagnostics that are counts.
const COUNTS: [usize; 17] = [0, 8, 15, 16, 17, 18, 19, 32, 33, 34, 36, 40, 41, 42, 54, 55, 56];

/// What is decided, not rounded.
fn decisions(found: &Found) -> Vec<u64> {
    let counts = [0, 1, 2, 4, 8].map(|place| found.globals[place].to_bits());
    let bytes = found.keep.iter().chain(&found.accepted).map(|&b| u64::from(b));
    let words = [&found.kept, &found.multiplicity, &found.carry_multiplicity].into_iter().flatten().map(|&w| w.into());
    let diagnosed = COUNTS.iter().map(|&place| found.diagnostics[place].to_bits());
    bytes.chain(words).chain(found.rejected.iter().copied()).chain(counts).chain(diagnosed).collect()
}

/// Where floats are 0, which decides about them too.
fn zeros(found: &Found) -> Vec<bool> {
    [&found.weights, &found.segment_weights, &found.advantages].into_iter().flatten().map(|&x| x == 0.0).collect()
}

fn bytes_of_all(found: &Found) -> Vec<(&'static str, Vec<u8>)> {
    let floats = |values: &[f32]| bytes_of(&canonical(values).collect::<Vec<_>>()).to_vec();
    let doubles = |values: &[f64]| {
        bytes_of(&values.iter().map(|&x| if x.is_nan() { f64::NAN } else { x }).collect::<Vec<_>>()).to_vec()
    };
    vec![
        ("weights", floats(&found.weights)),
        ("keep", found.keep.clone()),
        ("log_ratio", floats(&found.log_ratio)),
        ("segment_weights", floats(&found.segment_weights)),
        ("segment_log_weights", doubles(&found.segment_log_weights)),
        ("kept", bytes_of(&found.kept).to_vec()),
        ("accepted", found.accepted.clone()),
        ("multiplicity", bytes_of(&found.multiplicity).to_vec()),
        ("carry_multiplicity", bytes_of(&found.carry_multiplicity).to_vec()),
        ("carry_log_weights", doubles(&found.carry_log_weights)),
        ("advantages", floats(&found.advantages)),
        ("expected_rewards", doubles(&found.expected_rewards)),
        ("rejected", bytes_of(&found.rejected).to_vec()),
        ("globals", doubles(&found.globals)),
        ("diagnostics", doubles(&found.diagnostics)),
        ("errors", format!("{:?}", found.fault).into_bytes()),
    ]
}

fn assert_same_bits(what: &str, found: &Found, expected: &Found) {
    for ((name, found), (_, expected)) in bytes_of_all(found).iter().zip(bytes_of_all(expected)) {
        assert!(*found == expected, "{what}: {name}: other bits: {found:x?} not {expected:x?}");
    }
}

fn see(what: &'static str, found: f64, expected: f64, relative: f64, absolute: f64) {
    // What f32 cannot hold is infinite.
    let is_beyond = found.is_infinite() && f64::from(expected as f32) == found;
    if found == expected || is_beyond || (found.is_nan() && expected.is_nan()) {
        return;
    }
    let share = report::see(0, what, "any", (found - expected).abs() / (absolute + relative * expected.abs()), 1.0);
    assert!(share <= 1.0, "{what}: {found} not {expected}: {share} of what rounding is");
}

/// As the suites of `agreement` ask it, with the rounding of this very batch.
fn assert_agrees(drawn: &Drawn, case: &Case, found: &Found, expected: &Found) {
    let r = rounding(case);
    let shared = if drawn.config.batch_normalise || drawn.normalises_groups() { r.most } else { 0.0 };
    let of_token = drawn.config.level() == Level::Token;
    let largest = case.rewards.iter().flatten().filter(|r| r.is_finite()).fold(0.0_f64, |a, &b| a.max(b.abs().into()));
    for (i, range) in case.segments().ranges().enumerate() {
        let tolerance = 1e-6 + r.of_segments[i] + shared;
        see(
            "weight of a segment",
            found.segment_weights[i].into(),
            expected.segment_weights[i].into(),
            tolerance,
            1e-7,
        );
        see("X", found.segment_log_weights[i], expected.segment_log_weights[i], 1e-6, r.of_segments[i] + 1e-7);
        see("advantage", found.advantages[i].into(), expected.advantages[i].into(), tolerance, tolerance * largest);
        for u in range {
            let tolerance = if of_token { 1e-6 + r.of_tokens[u] + shared } else { tolerance };
            see("weight of a token", found.weights[u].into(), expected.weights[u].into(), tolerance, 1e-7);
            see("log-ratio", found.log_ratio[u].into(), expected.log_ratio[u].into(), 0.0, 1e-7 + r.of_tokens[u]);
        }
    }
    let tolerance = 1e-6 + 2.0 * r.most;
    for (&f, &e) in found.expected_rewards.iter().zip(&expected.expected_rewards) {
        see("mean reward", f, e, tolerance, tolerance * largest);
    }
    for (&f, &e) in found.carry_log_weights.iter().zip(&expected.carry_log_weights) {
        see("carried X", f, e, 1e-6, r.most + 1e-7);
    }
    for (&f, &e) in found.globals.iter().zip(&expected.globals) {
        see("global", f, e, 2e-6 + 2.0 * r.most, 1e-7 * r.scale + 1e-9);
    }
    for (place, (&f, &e)) in found.diagnostics.iter().zip(&expected.diagnostics).enumerate() {
        let relative = 1e-5 + 2.0 * r.most;
        let is_fine = std::panic::catch_unwind(|| see("diagnostics", f, e, relative, 1e-7 * r.scale + 1e-7));
        assert!(is_fine.is_ok(), "diagnostics, place {place}");
    }
    assert_eq!(found.fault, expected.fault);
    let (found, expected) = (decisions(found), decisions(expected));
    assert!(found == expected, "decisions: {found:?} not {expected:?}");
}

fn sum<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    values.iter().map(|&x| x.into()).sum()
}

/// What the outputs of one call, found in fresh arrays, are to one another.
fn assert_adds_up(drawn: &Drawn, case: &Case, found: &Found) {
    let counts = |u: usize| case.loss_mask.as_ref().is_none_or(|mask| mask[u] != 0);
    let (tokens, segments) = ((0..case.tokens()).filter(|&u| counts(u)).count() as f64, case.segments());
    for u in (0..case.tokens()).filter(|&u| !counts(u)) {
        let nothing = (found.weights[u].to_bits(), found.keep[u], found.log_ratio[u].to_bits());
        assert_eq!(nothing, (0, 0, 0), "masked token {u}");
    }
    let is_sound = found.fault.is_none();
    for (i, range) in segments.ranges().enumerate().filter(|_| is_sound) {
        assert_eq!(f64::from(found.kept[i]), sum(&found.keep[range]), "tokens kept of segment {i}");
    }
    assert_eq!(found.globals[0], sum(&found.kept));
    assert_eq!(found.globals[1], found.kept.iter().filter(|&&kept| kept > 0).count() as f64);
    assert_eq!((found.globals[3], found.globals[8]), (0.0, tokens));
    let mean = |values: &[f32], count: f64| values.iter().map(|&w| f64::from(w)).sum::<f64>() / count;
    // A mean of at most 1e-8 divides nothing.
    let is_small = found.weights.iter().all(|w| w.abs() < 1e-6);
    if drawn.config.batch_normalise && !is_small && found.weights.iter().all(|w| w.is_finite()) {
        let of_segments = drawn.config.is_segment_level();
        let weighed: Vec<f32> = segments
            .ranges()
            .zip(&found.segment_weights)
            .filter_map(|(range, &w)| range.clone().any(counts).then_some(w))
            .collect();
        let mean = if of_segments { mean(&weighed, weighed.len() as f64) } else { mean(&found.weights, tokens) };
        assert!((mean - 1.0).abs() < 1e-4, "mean weight {mean}");
    }
    let Some(ids) = &case.groups else { return };
    let groups = Groups::from_ids(ids);
    for group in 0..groups.len() {
        let members = groups.members(group);
        if drawn.is_chain() {
            let spent: u32 = members.iter().map(|&m| found.multiplicity[m as usize]).sum();
            assert_eq!(spent + found.carry_multiplicity[group], members.len() as u32, "group {group}");
        }
        let weights: Vec<f32> = members
            .iter()
            .map(|&m| m as usize)
            .filter(|&m| segments.range(m).any(counts) && found.keep[segments.range(m)].contains(&1))
            .map(|m| found.segment_weights[m])
            .collect();
        // Rejections of tokens may leave nothing of a member.
        let is_plain = drawn
            .config
            .rejections
            .iter()
            .all(|r| !r.is_of_tokens() && !matches!(r, Rejection::Band { level: Level::Turn, .. }));
        if drawn.normalises_groups() && is_plain && is_sound && !weights.is_empty() {
            let mean = mean(&weights, weights.len() as f64);
            assert!((mean - 1.0).abs() < 1e-5, "mean weight {mean} of group {group}");
        }
    }
}

/// What a call with these outputs leaves where it does not write.
fn hide(found: &mut Found, unwritten: &Found, wanted: u32) {
    macro_rules! hide {
        ($($bit:literal $field:ident),*) => { $(if wanted >> $bit & 1 == 0 { found.$field = unwritten.$field.clone(); })* };
    }
    hide!(0 weights, 1 keep, 2 log_ratio, 3 segment_weights, 4 segment_log_weights, 5 kept, 6 accepted, 7 multiplicity,
        8 carry_multiplicity, 9 carry_log_weights, 10 advantages, 11 expected_rewards, 12 rejected, 13 globals,
        14 diagnostics, 15 fault);
}

/// What is in the arrays before a call.
fn untouched<B: Backend>(backend: &B, drawn: &Drawn, case: &Case) -> Found {
    let stream = backend.stream().unwrap();
    let mut shifts = Shifts::of(drawn);
    let input = Uploaded::shifted(backend, &stream, case, || shifts.next()).unwrap();
    Outputs::new(backend, &stream, input.plans(), drawn.accumulate, &mut shifts).read(backend, &stream)
}

/// Whether the batch may be cut into pieces of segments by what there is for it.
fn may_be_cut(drawn: &Drawn, case: &Case) -> bool {
    let has_others = case.uniforms.is_some() && drawn.config.level() == Level::Token;
    let per_token = case.advantages_per_token && case.advantages.is_some();
    !case.has_turns && !per_token && !has_others && !drawn.is_test_of_tokens()
}

fn check<B: Backend>(backend: &B, drawn: &Drawn, near: &Cell<u32>) {
    let case = drawn.case();
    let reference = run(&Reference, drawn, &case, ALL, 2);
    let (expected, all) = match (reference, run(backend, drawn, &case, ALL, 2)) {
        (Ok(expected), Ok(found)) => (expected, found),
        (Err(expected), Err(found)) => return assert_eq!(found.to_string(), expected.to_string()),
        (expected, found) => panic!("{:?}, but the reference {:?}", found.err(), expected.err()),
    };
    // Not a bit of one output depends on which others there are, and none is written that is not asked for.
    let before = untouched(backend, drawn, &case);
    let mut wanted = drawn.outputs;
    let some = run(backend, drawn, &case, wanted, 1).unwrap().remove(0);
    wanted |= if drawn.config.batch_normalise { 1 << 13 } else { 0 };
    let mut alone = all[0].clone();
    hide(&mut alone, &before, wanted);
    assert_same_bits("with fewer outputs", &some, &alone);
    if drawn.accumulate {
        assert_eq!(
            all[1].rejected.iter().map(|x| x - 5).collect::<Vec<_>>(),
            all[0].rejected.iter().map(|x| 2 * (x - 5)).collect::<Vec<_>>()
        );
    } else {
        let again = Found { rejected: all[0].rejected.clone(), ..all[1].clone() };
        assert_same_bits("again", &again, &all[0]);
        if backend.name() != "reference" {
            assert_same_bits("in three phases", &run_phases(backend, drawn, &case), &all[0]);
        }
    }
    if !drawn.accumulate {
        assert_adds_up(drawn, &case, &all[0]);
    }
    let size = 2e-6 + rounding(&case).most;
    let is_near = [size, -size].into_iter().any(|by| {
        let (nudged, moved) = nudged(drawn, &case, by);
        let found = run(&Reference, &nudged, &moved, ALL, 1).unwrap().remove(0);
        decisions(&found) != decisions(&expected[0]) || zeros(&found) != zeros(&expected[0])
    });
    if is_near {
        near.set(near.get() + 1);
        return;
    }
    for (found, expected) in all.iter().zip(&expected) {
        assert_agrees(drawn, &case, found, expected);
    }
    if drawn.has(15) && may_be_cut(drawn, &case) {
        let cut = drawn.seed as usize % 40;
        let is_first = |at: usize| if drawn.has(16) { at < cut } else { (at / (1 + cut)).is_multiple_of(2) };
        let pieces = [case.piece(is_first), case.piece(|at| !is_first(at))];
        let found = run_in_pieces(backend, &drawn.config, &case, &pieces, drawn.has(16));
        let r = rounding(&case);
        for (&f, &e) in found.0.iter().zip(&expected[0].weights) {
            if drawn.accumulate && drawn.config.batch_normalise {
                break; // by what was held before
            }
            see("weight in pieces", f.into(), e.into(), 4e-6 + 6.0 * r.most, 1e-7);
        }
        assert_eq!(found.1, expected[0].keep, "in pieces");
    }
}

pub fn any_call_is_the_reference_s_whatever_else_is_asked_for<B: Backend>(backend: &B) {
    let (near, all) = (Cell::new(0), Cell::new(0));
    for_any(120, &drawn(), |drawn| {
        all.set(all.get() + 1);
        check(backend, drawn, &near);
    });
    println!("{}: {} of {} calls had a decision within rounding", backend.name(), near.get(), all.get());
    report::print("correction", backend.name());
    assert!(near.get() * 3 < all.get(), "{near:?} of {all:?}");
}

/// The mean rewards of all groups, and what the gradient's factors are.
fn estimate(drawn: &Drawn, case: &Case) -> (f64, Vec<f32>) {
    let found = run(&Reference, drawn, case, ALL, 1).unwrap().remove(0);
    (found.expected_rewards.iter().sum(), found.advantages)
}

#[test]
fn any_attached_factor_is_a_difference_of_the_estimate() {
    for_any(60, &drawn(), |drawn| {
        let mut drawn = Drawn { lawful: true, repeats: 1, accumulate: false, shifted: false, ..drawn.clone() };
        drawn.config = Config {
            weight: Weight::SelfNormalisedAttached,
            rejections: vec![],
            batch_normalise: false,
            ..drawn.config.clone()
        };
        let case = drawn.case();
        let (_, factors) = estimate(&drawn, &case);
        let exact = run(&Reference, &drawn, &case, ALL, 1).unwrap().remove(0);
        let mut rng = seeded(drawn.seed ^ 4);
        for (i, range) in case.segments().ranges().enumerate().filter(|(_, range)| !range.is_empty()).take(6) {
            let u = rng.random_range(range);
            // Fourth order: what is left out is 1/30 h^4 of the fifth derivative, 2e-9 of the rewards.
            let moved = |steps: i32| {
                let mut case = case.clone();
                case.old_logprobs[u] += steps as f32 / 64.0;
                estimate(&drawn, &case).0
            };
            let slope = (8.0 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) * 64.0 / 12.0;
            let is_sound = case.old_logprobs[u].is_finite() && exact.log_ratio[u] != 0.0;
            let kink = (exact.segment_log_weights[i].abs() - f64::from(drawn.config.saturation)).abs();
            if !is_sound || kink < 0.05 || factors[i].is_nan() {
                continue;
            }
            // A step of a log-probability is not 1/64 to the last bit.
            let share = (slope - f64::from(factors[i])).abs() / (1e-6 + 1e-4 * slope.abs());
            assert!(share <= 1.0, "segment {i}, token {u}: {} not {slope}", factors[i]);
        }
    });
}
