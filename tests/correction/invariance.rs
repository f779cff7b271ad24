//! What must not change a bit, or a decision.

use moerl::Backend;
use moerl::correction::{Config, Level, Metropolis, Rejection, Weight};
use rand::seq::SliceRandom;

use crate::case::{Case, run, run_in_pieces};
use crate::common::{self, bits};

fn configs() -> Vec<Config> {
    let token = Rejection::Band { level: Level::Token, low: 0.7, high: 1.5 };
    let sequence = Rejection::Veto { low: 0.2, high: 5.0 };
    vec![
        Config::tis(Level::Token, 1.1).with_rejection(token).with_rejection(sequence),
        Config::tis(Level::Sequence, 1.1).with_rejection(token),
        Config::new(Weight::Metropolis { level: Level::Token, mode: Metropolis::Mask, seed: 4 }),
    ]
}

pub fn neighbours_do_not_change_a_bit<B: Backend>(backend: &B) {
    let lengths = [7, 33, 5, 1030, 9];
    let case = Case::random(&lengths, 3).with_mask(3).with_offsets(3);
    for config in configs() {
        let alone = run(backend, &config, &case);
        for kept in 0..lengths.len() {
            let range = case.segments().range(kept);
            let mut spoilt = case.clone();
            for u in (0..case.tokens()).filter(|u| !range.contains(u)) {
                spoilt.old_logprobs[u] = f32::NAN;
            }
            let found = run(backend, &config, &spoilt);
            assert_eq!(bits(&found.weights[range.clone()]), bits(&alone.weights[range.clone()]), "segment {kept}");
            assert_eq!(found.keep[range.clone()], alone.keep[range], "segment {kept}");
            assert_eq!(found.segment_log_weights[kept].to_bits(), alone.segment_log_weights[kept].to_bits());
        }
    }
}

pub fn masked_tokens_may_hold_anything<B: Backend>(backend: &B) {
    for lengths in [vec![5, 60, 3, 1], vec![1500], vec![0, 17, 17]] {
        let clean = Case::random(&lengths, 2).with_mask(2).with_offsets(2);
        let mut dirty = clean.clone();
        for u in (0..clean.tokens()).filter(|&u| clean.loss_mask.as_ref().unwrap()[u] == 0) {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 500.0][u % 4];
            dirty.old_logprobs[u] = bad;
            dirty.rollout_logprobs[u] = bad;
            dirty.kept_log_mass.as_mut().unwrap()[u] = bad;
            dirty.router_shift.as_mut().unwrap()[u] = bad;
        }
        for config in configs() {
            let (expected, found) = (run(backend, &config, &clean), run(backend, &config, &dirty));
            assert_eq!(bits(&found.weights), bits(&expected.weights));
            assert_eq!((&found.keep, &found.globals), (&expected.keep, &expected.globals));
            assert_eq!(found.fault, None);
            for (u, &mask) in clean.loss_mask.as_ref().unwrap().iter().enumerate() {
                assert!(mask != 0 || (found.weights[u].to_bits(), found.keep[u]) == (0, 0), "token {u}");
            }
        }
    }
}

pub fn the_place_in_the_pack_does_not_change_a_bit<B: Backend>(backend: &B) {
    for length in [1, 6, 40, 1300] {
        let segment = Case::random(&[length], 5).with_mask(5);
        for config in configs() {
            let alone = run(backend, &config, &segment);
            for offset in (0..34).step_by(if length > 1000 { 5 } else { 1 }) {
                // In front: a segment of its own, which shares a unit with a short one.
                let front = Case::random(&[offset], 6).with_mask(6);
                let join = |a: &Vec<f32>, b: &Vec<f32>| [a.as_slice(), b].concat();
                let case = Case {
                    lengths: vec![offset, length],
                    old_logprobs: join(&front.old_logprobs, &segment.old_logprobs),
                    rollout_logprobs: join(&front.rollout_logprobs, &segment.rollout_logprobs),
                    loss_mask: Some([front.loss_mask.unwrap(), segment.loss_mask.clone().unwrap()].concat()),
                    segment_ids: Some(vec![77, segment.segment_ids.as_ref().unwrap()[0]]),
                    ..Case::default()
                };
                let found = run(backend, &config, &case);
                assert_eq!(bits(&found.weights[offset..]), bits(&alone.weights), "{length} at {offset}");
                assert_eq!(found.keep[offset..], alone.keep, "{length} at {offset}");
                assert_eq!(found.segment_log_weights[1].to_bits(), alone.segment_log_weights[0].to_bits());
            }
        }
    }
}

pub fn the_same_ids_in_other_packing_give_the_same_decisions<B: Backend>(backend: &B) {
    let lengths: Vec<usize> = (0..60).map(|i| 1 + i * 7 % 23).collect();
    let case = Case::random(&lengths, 4).with_groups(5, 4);
    let config = Config::new(Weight::Metropolis { level: Level::Sequence, mode: Metropolis::Multiplicity, seed: 11 });
    let first = run(backend, &config, &case);
    // Groups in another place of the batch; the order within each is what a chain is about.
    let groups = case.groups.clone().unwrap();
    let mut order: Vec<usize> = Vec::new();
    for group in [3, 0, 4, 2, 1] {
        order.extend((0..lengths.len()).filter(|&i| groups[i] == group));
    }
    let segments = case.segments();
    let tokens: Vec<usize> = order.iter().flat_map(|&i| segments.range(i)).collect();
    let packed = Case {
        lengths: order.iter().map(|&i| lengths[i]).collect(),
        old_logprobs: tokens.iter().map(|&u| case.old_logprobs[u]).collect(),
        rollout_logprobs: tokens.iter().map(|&u| case.rollout_logprobs[u]).collect(),
        segment_ids: Some(order.iter().map(|&i| case.segment_ids.as_ref().unwrap()[i]).collect()),
        groups: Some(order.iter().map(|&i| groups[i]).collect()),
        ..Case::default()
    };
    let found = run(backend, &config, &packed);
    for (at, &i) in order.iter().enumerate() {
        assert_eq!(found.multiplicity[at], first.multiplicity[i], "segment {i}");
    }
    // Another seed, other decisions.
    let other = Weight::Metropolis { level: Level::Sequence, mode: Metropolis::Multiplicity, seed: 12 };
    assert_ne!(run(backend, &Config::new(other), &case).multiplicity, first.multiplicity);
}

/// These segments of a batch, in this order.
fn reordered(case: &Case, order: &[usize]) -> Case {
    let segments = case.segments();
    let tokens: Vec<usize> = order.iter().flat_map(|&i| segments.range(i)).collect();
    let (groups, rewards) = (case.groups.as_ref().unwrap(), case.rewards.as_ref().unwrap());
    Case {
        lengths: order.iter().map(|&i| case.lengths[i]).collect(),
        old_logprobs: tokens.iter().map(|&u| case.old_logprobs[u]).collect(),
        rollout_logprobs: tokens.iter().map(|&u| case.rollout_logprobs[u]).collect(),
        loss_mask: case.loss_mask.as_ref().map(|mask| tokens.iter().map(|&u| mask[u]).collect()),
        groups: Some(order.iter().map(|&i| groups[i]).collect()),
        rewards: Some(order.iter().map(|&i| rewards[i]).collect()),
        ..Case::default()
    }
}

/// A group's weights and factors are its own: wherever it lies in the batch, in which call, and whatever the others hold.
pub fn a_group_keeps_its_bits_wherever_it_lies<B: Backend>(backend: &B) {
    let lengths: Vec<usize> = (0..90).map(|i| [3, 40, 0, 17, 1, 33, 1100][i % 7]).collect();
    let case = Case::random(&lengths, 6).with_mask(6).with_groups(5, 6);
    let groups = case.groups.clone().unwrap();
    let of_groups = |wanted: &[i32]| -> Vec<usize> {
        wanted.iter().flat_map(|&id| (0..lengths.len()).filter(|&i| groups[i] == id).collect::<Vec<_>>()).collect()
    };
    let leave_one_out = Weight::SelfNormalised { level: Level::Geometric, leave_one_out: true };
    for weight in [leave_one_out, Weight::SelfNormalisedAttached] {
        let config = Config::new(weight).with_rejection(Rejection::Veto { low: 0.2, high: 5.0 });
        let first = run(backend, &config, &case);
        let agrees = |order: &[usize], case: &Case, what: &str| {
            let found = run(backend, &config, case);
            for (at, &i) in order.iter().enumerate() {
                assert_eq!(found.advantages[at].to_bits(), first.advantages[i].to_bits(), "{what}: segment {i}");
                assert_eq!(found.segment_weights[at].to_bits(), first.segment_weights[i].to_bits(), "{what}: {i}");
            }
        };
        assert!(first.advantages.iter().filter(|a| a.abs() > 1e-3).count() > 10, "{:?}", first.advantages);
        // In another order, and split into calls and ranks.
        for calls in [vec![vec![3, 0, 4, 2, 1]], vec![vec![0, 1], vec![4, 2, 3]], (0..5).map(|id| vec![id]).collect()] {
            for call in &calls {
                let order = of_groups(call);
                agrees(&order, &reordered(&case, &order), &format!("{calls:?}"));
            }
        }
        // Beside one whose rewards and log-probabilities are no numbers.
        let mut spoilt = case.clone();
        for i in of_groups(&[2]) {
            spoilt.rewards.as_mut().unwrap()[i] = f32::NAN;
            spoilt.old_logprobs[case.segments().range(i)].fill(f32::NAN);
        }
        let found = run(backend, &config, &spoilt);
        for i in of_groups(&[0, 1, 3, 4]) {
            assert_eq!(found.advantages[i].to_bits(), first.advantages[i].to_bits(), "segment {i}");
        }
    }
}

pub fn multiplicities_of_a_group_add_up_to_its_members<B: Backend>(backend: &B) {
    // Lengths of 0, NaN, what a veto rejects, groups of more members than a warp has lanes.
    let lengths: Vec<usize> = (0..150).map(|i| i * 5 % 11).collect();
    let mut case = Case::random(&lengths, 9).with_groups(3, 9);
    case.old_logprobs[40] = f32::NAN;
    for nonfinite in [moerl::correction::NonFinite::Propagate, moerl::correction::NonFinite::DropSegment] {
        for carried in [None, Some(vec![0.0, f64::NAN, 50.0])] {
            let case = Case { carried, ..case.clone() };
            let weight = Weight::Metropolis { level: Level::Sequence, mode: Metropolis::Multiplicity, seed: 1 };
            let config = Config { nonfinite, ..Config::new(weight) }
                .with_rejection(Rejection::Veto { low: 0.3, high: f64::INFINITY });
            let found = run(backend, &config, &case);
            let groups = moerl::objective::Groups::from_ids(case.groups.as_ref().unwrap());
            for group in 0..groups.len() {
                let members = groups.members(group);
                let sum: u32 = members.iter().map(|&member| found.multiplicity[member as usize]).sum();
                assert_eq!(sum + found.carry_multiplicity[group], members.len() as u32, "group {group}");
            }
            for (i, &accepted) in found.accepted.iter().enumerate() {
                assert_eq!(accepted != 0, found.multiplicity[i] != 0, "segment {i}");
            }
        }
    }
}

/// A chain over two states whose target is the other way round than what they are sampled from.
pub fn multiplicity_leaves_the_target_invariant_and_the_mask_does_not<B: Backend>(backend: &B) {
    const STEPS: usize = 100_000;
    // Sampled with .8 and .2, wanted with .3 and .7.
    let (sampled, wanted) = (0.8_f64, 0.3_f64);
    let log_weights = [(wanted / sampled).ln() as f32, ((1.0 - wanted) / (1.0 - sampled)).ln() as f32];
    let mut rng = common::seeded(5);
    let states: Vec<usize> = (0..STEPS).map(|_| usize::from(!rand::RngExt::random_bool(&mut rng, sampled))).collect();
    let mut case = Case::of_log_ratios(&states.iter().map(|&state| log_weights[state]).collect::<Vec<_>>());
    case.groups = Some(vec![0; STEPS]);
    case.segment_ids = Some((0..STEPS as u64).collect());
    let fraction = |mode| {
        let config = Config::new(Weight::Metropolis { level: Level::Sequence, mode, seed: 2 });
        let weights = run(backend, &config, &case).segment_weights;
        let of_first: f64 =
            weights.iter().zip(&states).filter(|(_, state)| **state == 0).map(|(&w, _)| f64::from(w)).sum();
        of_first / weights.iter().map(|&w| f64::from(w)).sum::<f64>()
    };
    // The chain leaves a state with probability at least a = sampled · min(1, ...), b: its correlation is 1 − a − b. From the first state it
    // always accepts the second (.2), from the second it accepts the first with probability .8 · (w0/w1) = .0857.
    let correlation = 1.0 - 0.2 - 0.8 * (0.375 / 3.5);
    let sigma = (wanted * (1.0 - wanted) * (1.0 + correlation) / (1.0 - correlation) / STEPS as f64).sqrt();
    let found = fraction(Metropolis::Multiplicity);
    assert!((found - wanted).abs() <= 3.0 * sigma, "{found} not {wanted} within {}", 3.0 * sigma);
    let found = fraction(Metropolis::Mask);
    assert!((found - wanted).abs() > 30.0 * sigma, "{found} is {wanted}");
}

pub fn segments_may_come_in_several_calls_and_on_several_ranks<B: Backend>(backend: &B) {
    let case = Case::random(&[100, 33_500, 1], 8).with_mask(8);
    for config in configs().into_iter().take(2) {
        let config = Config { batch_normalise: true, ..config };
        let whole = run_in_pieces(backend, &config, &case, &[case.piece(|_| true)], false);
        let one_call = run(backend, &config, &case);
        if backend.name() == "reference" {
            // The phases round decisions to f32.
            assert!(whole.0.iter().zip(&one_call.weights).all(|(a, b)| (a - b).abs() <= 2e-7 * b.abs()));
        } else {
            assert_eq!(bits(&whole.0), bits(&one_call.weights));
        }
        assert_eq!(whole.1, one_call.keep);
        // Cut at 32 tiles, in order: the same sums.
        let cut = [case.piece(|at| at < 32_768), case.piece(|at| at >= 32_768)];
        let found = run_in_pieces(backend, &config, &case, &cut, true);
        assert_eq!(bits(&found.2), bits(&whole.2));
        assert_eq!(found.1, whole.1);
        // Zig-zag over two ranks.
        let ranks = [case.piece(|at| at / 64 % 2 == 0), case.piece(|at| at / 64 % 2 == 1)];
        let found = run_in_pieces(backend, &config, &case, &ranks, false);
        assert_eq!(found.1, whole.1);
        for (a, b) in found.0.iter().zip(&whole.0) {
            // Tiles hold other tokens: X differs by some 1e-7 of the sum of its terms, of which there are 25,000 of .1.
            assert!((a - b).abs() <= 3e-4 * b.abs(), "{a} not {b}");
        }
    }
}

pub fn repeated_runs_are_equal_bit_for_bit<B: Backend>(backend: &B) {
    let mut lengths = vec![40, 1, 900, 17, 2100];
    lengths.shuffle(&mut common::seeded(3));
    let case = Case::random(&lengths, 9).with_mask(9).with_groups(2, 9);
    for weight in [
        Weight::Truncated { level: Level::Token, max: 1.5 },
        Weight::SelfNormalised { level: Level::Sequence, leave_one_out: true },
    ] {
        let config = Config::new(weight).with_diagnostics();
        let first = run(backend, &config, &case);
        for _ in 0..3 {
            let again = run(backend, &config, &case);
            assert_eq!(bits(&again.weights), bits(&first.weights));
            assert_eq!(bits(&again.advantages), bits(&first.advantages));
            assert_eq!((&again.globals, &again.diagnostics), (&first.globals, &first.diagnostics));
        }
    }
}
