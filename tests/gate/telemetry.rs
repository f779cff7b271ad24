//! Telemetry: what is counted and measured of a call, that it changes nothing, and the replacement of experts that fell behind.

use approx::assert_abs_diff_eq;
use moerl::element::{Element, Float, bf16, f16};
use moerl::error::Kind;
use moerl::gate::{
    Config, Forward, Groups, Missing, NO_OVERLAP, Preset, ROW_COUNTS, RowCount, ShiftFinish, Telemetry, mean_overlap,
};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Reference};
use rand::RngExt;

use crate::common;
use crate::common::report::{count, see_values};
use crate::harness::*;
use crate::watch::*;

crate::on_every_backend!(
    every_measure_agrees_with_the_reference,
    telemetry_changes_no_bit_of_any_result,
    a_swapped_pair_shows_as_two_experts_that_differ,
    counts_and_histograms_add_up,
    aggregates_go_on_from_what_is_there,
    measures_have_their_limits,
    equal_weights_are_no_distance_apart,
    recorded_weights_that_are_no_weights_are_counted,
    recorded_weights_are_counted_without_a_measure_of_them,
    a_row_whose_scale_leaves_no_number_is_no_distance_from_its_record,
    a_probability_that_is_flushed_to_zero_diverges_from_nothing,
    the_routers_divergence_is_zero_from_itself,
    score_replace_goes_from_replay_to_the_native_set,
    score_replace_fills_the_slots_in_order,
    the_router_shift_is_zero_where_nothing_moved,
    the_router_shift_has_a_floor,
    what_an_output_needs_is_asked_for,
);

/// A problem whose tape is the native choice with experts changed here and there, and with rows of every kind.
fn drifted<T: Float>(config: Config, tokens: usize, experts: usize, k: usize, seed: u64) -> (Problem<T>, Given<T>) {
    let problem = Problem::<T>::random(config.clone(), tokens, experts, k, seed);
    let mut rng = common::seeded(seed + 1);
    let mut ids = forward(&Reference, &problem).ids;
    for (t, row) in ids.chunks_exact_mut(k).enumerate() {
        for _ in 0..t % 4 {
            let (slot, expert) = (rng.random_range(0..k), rng.random_range(0..experts as i32));
            if !row.contains(&expert) {
                row[slot] = expert;
            }
        }
    }
    let mut tape = Tape::new(Element::I32, ids.iter().map(|&id| i64::from(id)), k);
    tape.has_sentinel = true;
    tape.array[k..2 * k].fill(-1);
    if k > 1 {
        tape.array[2 * k] = tape.array[2 * k + 1];
    }
    let mut mode = vec![1; tokens];
    (mode[3], mode[4]) = (0, 2);
    tape.row_mode = Some(mode);
    let mut mask = vec![1; tokens];
    mask[5] = 0;
    let weights: Vec<f32> = (0..tokens * k).map(|_| rng.random_range(0.05..1.0)).collect();
    let near = |x: &T, rng: &mut rand::rngs::StdRng| T::from_f32(x.to_f32() + rng.random_range(-0.5..0.5));
    let reference = problem.logits.iter().map(|x| near(x, &mut rng)).collect();
    // An old policy that was another router, with other experts; one of its rows had none.
    let mut old = problem.random_ids(seed + 2);
    old[6 * k] = -1;
    let logprobs = (0..tokens * k).map(|_| rng.random_range(-6.0..-0.1)).collect();
    let given = Given {
        recorded_weights: Some(weights),
        ref_logits: Some(reference),
        old: Some((old, logprobs)),
        before: None,
    };
    (Problem { tape: Some(tape), token_mask: Some(mask), ..problem }, given)
}

fn configurations(k: usize) -> Vec<(&'static str, Config)> {
    let with_bias = |config| Config { needs_selection_bias: true, ..config };
    let groups = |top| Some(Groups { count: 8, admitted: 4, top: Some(top) });
    vec![
        ("softmax_selected", Config::softmax_selected(k)),
        ("softmax", Config::softmax(k)),
        ("sigmoid, bias", with_bias(Config { scaling_factor: Some(2.5), ..Config::sigmoid(k) })),
        ("softmax_selected, bias", with_bias(Config::softmax_selected(k))),
        ("sqrt_softplus, softcap", Config { softcap: Some(4.0), ..Config::sqrt_softplus(k) }),
        ("groups", with_bias(Config { groups: groups(2), ..Config::sigmoid(k) })),
        ("groups by maximum", Config { groups: groups(1), missing: Missing::Spread, ..Config::softmax(k) }),
        (
            "score_replace",
            Config { score_replace: Some(0.7), missing: Missing::ZeroWeight, ..Config::softmax_selected(k) },
        ),
        (
            "score_replace, groups",
            with_bias(Config { groups: groups(2), score_replace: Some(0.05), ..Config::sigmoid(k) }),
        ),
    ]
}

fn agrees<B: Backend, T: Float>(backend: &B, name: &str, problem: &Problem<T>, given: &Given<T>) {
    let found = watch(backend, problem, Asked::All, given);
    let expected = watch(&Reference, problem, Asked::All, given);
    assert_eq!(found.results().ids, expected.results().ids, "{name}");
    assert_eq!(found.results().fault, expected.results().fault, "{name}");
    assert_eq!(found.bits().0, expected.bits().0, "{name}: {found:?} {expected:?}");
    for ((measure, found), (_, expected)) in found.floats().into_iter().zip(expected.floats()) {
        let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
        // Differences and logarithms of f32: a few roundings of their terms, which are below 32 here.
        let worst = see_values(11, measure, name, found, &expected, 4e-6, 1e-5);
        assert!(worst <= 1.0, "{name}: {measure} is {worst} tolerances off: {found:?} {expected:?}");
    }
}

fn every_measure_agrees_with_the_reference<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B, experts: usize, k: usize) {
        for (i, (name, config)) in configurations(k).into_iter().enumerate() {
            let (problem, given) = drifted::<T>(config, 19, experts, k, i as u64);
            agrees(backend, &format!("{name}, {experts} experts, {k} chosen"), &problem, &given);
        }
    }
    crate::for_every_float!(check(backend, 64, 8));
    check::<_, bf16>(backend, 256, 8);
    for (experts, k) in [(16, 4), (160, 1), (384, 10), (1024, 32), (2000, 6)] {
        check::<_, f32>(backend, experts, k);
    }
}

fn telemetry_changes_no_bit_of_any_result<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for experts in [64, 100, 256, 512, 1536] {
            for (i, (name, config)) in configurations(6).into_iter().enumerate() {
                if experts % 8 != 0 && config.groups.is_some() {
                    continue;
                }
                let config = Config { score_replace: None, ..config };
                let (mut forced, given) = drifted::<T>(config, 11, experts, 6, i as u64);
                forced.logits[9 * experts + 1] = T::from_f32(f32::NAN);
                let native = Problem { tape: None, ..forced.clone() };
                for problem in [forced, native] {
                    let given = if problem.tape.is_some() { given.clone() } else { Given::default() };
                    let plain = forward(backend, &problem);
                    for asked in [Asked::Cheap, Asked::Choice, Asked::All] {
                        let found = watch(backend, &problem, asked, &given);
                        assert_eq!(found.results().bits(), plain.bits(), "{name}, {experts} experts, {asked:?}");
                        assert_eq!(found.results().fault, plain.fault, "{name}, {experts} experts, {asked:?}");
                        count(11, problem.tokens);
                    }
                }
            }
        }
    }
    check::<_, bf16>(backend);
    check::<_, f32>(backend);
}

fn a_swapped_pair_shows_as_two_experts_that_differ<B: Backend>(backend: &B) {
    let problem = Problem::<bf16>::random(Config::softmax_selected(8), 6, 128, 8, 1);
    let native = forward(backend, &problem).ids;
    let mut ids = native.clone();
    let others: Vec<i32> = (0..128).filter(|e| !native[24..32].contains(e)).collect();
    (ids[24 + 2], ids[24 + 5]) = (others[0], others[40]);
    let found = watch(backend, &problem.forced(Element::U8, &ids), Asked::Choice, &Given::default());
    assert_eq!(found.overlap, [8, 8, 8, 6, 8, 8]);
    assert_eq!(found.changed, [0, 0, 0, 1, 0, 0]);
    assert_eq!(found.overlap_hist, [0, 0, 0, 0, 0, 0, 1, 0, 5]);
    assert_eq!(mean_overlap(&found.overlap_hist), Some(46.0 / 48.0));
    for (e, (carried, chosen)) in found.counts.iter().zip(&found.native_counts).enumerate() {
        let is = |other: i32| u64::from(e as i32 == other);
        let (came, went) = (is(others[0]) + is(others[40]), is(native[26]) + is(native[29]));
        assert_eq!(carried + went, chosen + came, "expert {e}");
    }
}

fn counts_and_histograms_add_up<B: Backend>(backend: &B) {
    for experts in [64, 2000] {
        let (problem, given) = drifted::<bf16>(Config::softmax_selected(6), 300, experts, 6, 2);
        let found = watch(backend, &problem, Asked::Choice, &given);
        let count = |kind: RowCount| found.row_counts[kind as usize];
        assert_eq!(found.row_counts[..5].iter().sum::<u64>(), 300);
        assert_eq!((count(RowCount::Native), count(RowCount::Missing), count(RowCount::Bad)), (1, 1, 1));
        assert_eq!((count(RowCount::Padding), count(RowCount::Replay)), (2, 295));
        assert_eq!(found.overlap_hist.iter().sum::<u64>(), 295);
        assert_eq!(found.overlap.iter().filter(|&&o| o == NO_OVERLAP).count(), 5);
        // Missing and bad rows select for themselves here.
        assert_eq!(found.counts.iter().sum::<u64>(), 6 * 298);
        assert_eq!(found.native_counts.iter().sum::<u64>(), 6 * 298);
        let differing = found.overlap.iter().filter(|&&o| o < 6).count();
        assert!(differing > 100);
        assert_eq!(found.changed.iter().filter(|&&x| x == 1).count(), differing);
    }
}

fn aggregates_go_on_from_what_is_there<B: Backend>(backend: &B) {
    let layers: Vec<_> = (0..3).map(|layer| drifted::<bf16>(Config::softmax(4), 40, 64, 4, 5 * layer)).collect();
    let mut total: Option<Watched> = None;
    for (problem, given) in &layers {
        total = Some(watch(backend, problem, Asked::All, &Given { before: total, ..given.clone() }));
    }
    let total = total.unwrap();
    let alone: Vec<Watched> =
        layers.iter().map(|(problem, given)| watch(backend, problem, Asked::All, given)).collect();
    let sum = |of: fn(&Watched) -> &Vec<u64>| {
        (0..of(&total).len()).map(|i| alone.iter().map(|layer| of(layer)[i]).sum::<u64>()).collect::<Vec<_>>()
    };
    assert_eq!(total.counts, sum(|w| &w.counts));
    assert_eq!(total.native_counts, sum(|w| &w.native_counts));
    assert_eq!(total.row_counts, sum(|w| &w.row_counts));
    assert_eq!(total.overlap_hist, sum(|w| &w.overlap_hist));
    for t in 0..40 {
        let differing = alone.iter().filter(|layer| layer.changed[t] == 1).count();
        assert_eq!(usize::from(total.changed_layers[t]), differing);
        assert_eq!(total.changed[t], u8::from(differing > 0));
        // Rounded to f32 after every layer, in their order.
        let sum: f64 = alone.iter().map(|layer| f64::from(layer.shift[t])).sum();
        assert!(common::worst(&total.shift[t..=t], &[sum], 0.0, 2e-7) <= 1.0);
    }
}

fn measures_have_their_limits<B: Backend>(backend: &B) {
    let row = |logits: &[f32], ids: &[i32]| {
        let problem = Problem::<f32>::row(Config::softmax_selected(2), 2, logits);
        watch(backend, &problem.forced(Element::I32, ids), Asked::All, &Given::default())
    };
    let tie = row(&[1.0, 3.0, 1.0, 0.5], &[1, 0]);
    assert_eq!((tie.margin[0], tie.deficit[0]), (0.0, 0.0));
    // Of k experts in all, none is left, and they have all the mass.
    let whole = row(&[1.0, 3.0], &[1, 0]);
    assert_eq!(whole.margin[0], f32::INFINITY);
    assert_abs_diff_eq!(whole.forced_mass[0], 1.0, epsilon = 1e-6);
    let far = row(&[1.0, 3.0, 2.0, -4.0], &[3, 1]);
    assert_eq!((far.margin[0], far.deficit[0], far.overlap[0]), (1.0, 6.0, 1));
    let infinite = f32::NEG_INFINITY;
    let none = row(&[infinite, 3.0, infinite, infinite], &[1, 2]);
    assert_eq!((none.margin[0], none.deficit[0]), (0.0, 0.0));
    assert_abs_diff_eq!(none.forced_mass[0], 1.0, epsilon = 1e-6);
    // Expert 5 has the second largest value and is in the group that is not admitted.
    let groups = Some(Groups { count: 2, admitted: 1, top: Some(1) });
    let config = Config { groups, ..Config::softmax_selected(2) };
    let problem = Problem::<f32>::row(config, 2, &[9.0, 1.0, 0.0, 0.0, 0.0, 8.0, 7.0, 0.0]);
    let found = watch(backend, &problem.forced(Element::I32, &[5, 6]), Asked::Choice, &Given::default());
    assert_eq!((found.margin[0], found.deficit[0], found.overlap[0]), (1.0, -6.0, 0));
}

fn equal_weights_are_no_distance_apart<B: Backend>(backend: &B) {
    for (_, config) in every_rule(6) {
        let problem = Problem::<f32>::random(config, 40, 64, 6, 3);
        let ids = problem.random_ids(4);
        let weights = forward(backend, &problem.forced(Element::I32, &ids)).weights;
        let given = Given { recorded_weights: Some(weights), ..Given::default() };
        let found = watch(backend, &problem.forced(Element::I32, &ids), Asked::Cheap, &given);
        // A reference forms its weights in f64 and is given them in f32.
        let (l1, kl) = if backend.name() == "reference" { (1e-6, 1e-12) } else { (0.0, 0.0) };
        let usable = |t: usize| found.row_counts[RowCount::BadReference as usize] == 0 || !found.gate_l1[t].is_nan();
        for t in (0..40).filter(|&t| usable(t)) {
            let raw_scale = weights_magnitude(&given, t);
            assert!(found.gate_l1[t] <= l1 * raw_scale && found.gate_l1[t] >= 0.0, "{}", found.gate_l1[t]);
            // Raw scores may be negative, and are then no distribution.
            assert!(found.set_kl[t].is_nan() || (0.0..=kl).contains(&found.set_kl[t]), "{}", found.set_kl[t]);
        }
    }
}

fn weights_magnitude<T>(given: &Given<T>, t: usize) -> f32 {
    given.recorded_weights.as_ref().unwrap()[t * 6..][..6].iter().map(|w| w.abs()).sum::<f32>().max(1.0)
}

fn recorded_weights_that_are_no_weights_are_counted<B: Backend>(backend: &B) {
    let problem = Problem::<f32>::random(Config::softmax_selected(2), 5, 16, 2, 5);
    let ids = problem.random_ids(6);
    let recorded = vec![0.5, 0.5, f32::NAN, 1.0, 0.0, 0.0, f32::INFINITY, 0.0, 0.0, 1.0];
    let given = Given { recorded_weights: Some(recorded), ..Given::default() };
    let found = watch(backend, &problem.forced(Element::U16, &ids), Asked::Cheap, &given);
    assert_eq!(found.row_counts[RowCount::BadReference as usize], 3);
    for t in 0..5 {
        assert_eq!(found.gate_l1[t].is_nan(), [1, 2, 3].contains(&t), "row {t}");
        assert_eq!(found.set_kl[t].is_nan(), [1, 2, 3].contains(&t), "row {t}");
        assert!(found.set_kl[t].is_nan() || found.set_kl[t] >= 0.0);
    }
}

fn recorded_weights_are_counted_without_a_measure_of_them<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let recorded = backend.upload(&stream, &[0.5, 0.5, f32::NAN, 1.0, 0.0, 0.0]).unwrap();
    let mut row_counts = backend.upload(&stream, &[0u64; ROW_COUNTS]).unwrap();
    let problem = Problem::<f32>::random(Config::softmax_selected(2), 3, 16, 2, 5);
    let telemetry = Telemetry {
        row_counts: Some(row_counts.view_mut()),
        recorded_weights: Some(Matrix::new(recorded.view(), 3, 2).unwrap()),
        ..Telemetry::default()
    };
    let problem = problem.forced(Element::U16, &problem.random_ids(6));
    forward_watched::<B, f32, f32>(backend, &problem, Some(telemetry));
    let found = backend.download(&stream, row_counts.view()).unwrap();
    assert_eq!((found[RowCount::Replay as usize], found[RowCount::BadReference as usize]), (3, 2));
}

fn a_row_whose_scale_leaves_no_number_is_no_distance_from_its_record<B: Backend>(backend: &B) {
    let problem = Problem::<f32>::row(Config::softmax_selected(2), 2, &[0.0, 1.0, 2.0, 3.0]);
    let given = Given { recorded_weights: Some(vec![0.25, 0.75]), ..Given::default() };
    for (scale, has_weights) in [(f32::INFINITY, false), (f32::NAN, false), (0.5, true)] {
        let problem =
            Problem { expert_scale: Some(vec![1.0, scale, 1.0, 1.0]), ..problem.forced(Element::I32, &[0, 1]) };
        let found = watch(backend, &problem, Asked::Cheap, &given);
        assert_eq!(found.results().fault.is_none(), has_weights);
        assert_eq!(found.gate_l1[0].is_nan(), !has_weights, "{scale}: {:?}", found.gate_l1);
        assert_eq!(found.set_kl[0].is_nan(), !has_weights, "{scale}: {:?}", found.set_kl);
        assert_eq!(found.row_counts[RowCount::BadReference as usize], 0);
    }
}

fn a_probability_that_is_flushed_to_zero_diverges_from_nothing<B: Backend>(backend: &B) {
    // The reference router has an expert with a probability of e^-90 that this one has not at all.
    let problem = Problem::<f32>::row(Config::softmax_selected(1), 1, &[0.0, f32::NEG_INFINITY]);
    let given = Given { ref_logits: Some(vec![0.0, -90.0]), ..Given::default() };
    let found = watch(backend, &problem, Asked::All, &given);
    assert_eq!((found.router_kl[0], &found.d_router_kl[..]), (0.0, &[0.0; 2][..]));
}

fn the_routers_divergence_is_zero_from_itself<B: Backend>(backend: &B) {
    for softcap in [None, Some(3.0)] {
        let config = Config { softcap, ..Config::sigmoid(4) };
        let mut problem = Problem::<f16>::random(config, 30, 100, 4, 7);
        problem.logits[100] = f16::NEG_INFINITY;
        let given = Given { ref_logits: Some(problem.logits.clone()), ..Given::default() };
        let found = watch(backend, &problem, Asked::All, &given);
        assert_eq!(found.router_kl, [0.0; 30]);
        assert!(found.d_router_kl.iter().all(|&d| d == 0.0));
    }
    // p = (1/2, 1/2) against p_ref = (3/4, 1/4).
    let problem = Problem::<f32>::row(Config::softmax_selected(1), 1, &[0.0, 0.0]);
    let given = Given { ref_logits: Some(vec![3f32.ln(), 0.0]), ..Given::default() };
    let found = watch(backend, &problem, Asked::All, &given);
    let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
    assert_abs_diff_eq!(f64::from(found.router_kl[0]), expected, epsilon = 1e-7);
    assert!(common::worst(&found.d_router_kl, &[-0.25, 0.25], 1e-7, 0.0) <= 1.0);
}

fn score_replace_goes_from_replay_to_the_native_set<B: Backend>(backend: &B) {
    for preset in [Preset::Qwen3, Preset::DeepseekV3, Preset::Ernie4_5_21bA3b] {
        let config = Config { scaling_factor: Some(1.0), ..Config::preset(preset) };
        let k = config.resolve_top_k(None).unwrap();
        let replacing = |delta| Config { score_replace: Some(delta), ..config.clone() };
        let problem = Problem::<f32>::random(config.clone(), 20, 256, k, 8);
        let native = forward(backend, &problem);
        let ids = problem.random_ids(9);
        let run = |config: Config| {
            let problem = Problem { config, ..problem.forced(Element::U16, &ids) };
            (forward(backend, &problem), watch(backend, &problem, Asked::Choice, &Given::default()))
        };
        let (replayed, watched) = run(config.clone());
        let (all_stay, watched_all) = run(replacing(f32::INFINITY));
        assert_eq!(all_stay.bits(), replayed.bits());
        assert_eq!(watched_all.bits(), watched.bits());
        assert_eq!(watched.replaced, [0; 20]);
        let (strict, watched) = run(replacing(0.0));
        let sorted = |ids: &[i32]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        for t in 0..20 {
            let slots = t * k..(t + 1) * k;
            assert_eq!(sorted(&strict.ids[slots.clone()]), sorted(&native.ids[slots]), "{}, row {t}", preset.name());
            // What telemetry compares is what was recorded.
            assert_eq!(usize::from(watched.replaced[t]), k - usize::from(watched.overlap[t]));
        }
        let replaced = watched.replaced.iter().filter(|&&n| n > 0).count() as u64;
        assert_eq!(watched.row_counts[RowCount::Replaced as usize], replaced);
    }
}

fn score_replace_fills_the_slots_in_order<B: Backend>(backend: &B) {
    // Native: 6 5 4. The third best has 4; with δ = 1.5, experts 3 (3) stays, 2 (2) and 0 (0) go.
    let logits = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, f32::NAN];
    let run = |delta: f32, ids: &[i32]| {
        let config = Config { score_replace: Some(delta), ..Config::softmax_selected(3) };
        let problem = Problem::<f32>::row(config, 3, &logits).forced(Element::I32, ids);
        let found = watch(backend, &problem, Asked::Choice, &Given::default());
        (found.results().ids.clone(), found.replaced[0])
    };
    assert_eq!(run(1.5, &[2, 3, 0]), (vec![6, 3, 5], 2));
    assert_eq!(run(1.5, &[2, 6, 0]), (vec![5, 6, 4], 2));
    assert_eq!(run(2.0, &[2, 6, 0]), (vec![2, 6, 5], 1));
    assert_eq!(run(1e30, &[2, 7, 0]), (vec![2, 6, 0], 1));
    assert_eq!(run(f32::INFINITY, &[2, 7, 0]), (vec![2, 7, 0], 0));
    // Missing rows are none of its business.
    let config = Config { score_replace: Some(0.0), missing: Missing::Spread, ..Config::softmax_selected(3) };
    let mut problem = Problem::<f32>::row(config, 3, &logits).forced(Element::I32, &[-1, -1, -1]);
    problem.tape.as_mut().unwrap().has_sentinel = true;
    assert_eq!(forward(backend, &problem).ids, [0, 1, 2]);
}

/// The log-probabilities of the experts that a call chooses, and their ids.
fn record<B: Backend, T: Float>(backend: &B, problem: &Problem<T>) -> (Vec<i32>, Vec<f32>) {
    let found = watch(backend, problem, Asked::All, &Given::default());
    (found.results().ids.clone(), found.logprob_sel)
}

fn finish<B: Backend>(backend: &B, shift: &[f32], layers: usize, gamma_min: f64) -> Vec<f32> {
    let stream = backend.stream().unwrap();
    let shift = backend.upload(&stream, shift).unwrap();
    let mut router_shift = backend.upload(&stream, &vec![-77f32; shift.view().len()]).unwrap();
    let call = ShiftFinish { shift: shift.view(), layers, gamma_min, router_shift: router_shift.view_mut() };
    backend.gate_router_shift(&stream, call).unwrap();
    backend.download(&stream, router_shift.view()).unwrap()
}

fn the_router_shift_is_zero_where_nothing_moved<B: Backend>(backend: &B) {
    let problem = Problem::<bf16>::random(Config::softmax_selected(8), 300, 128, 8, 10);
    let given = Given { old: Some(record(backend, &problem)), ..Given::default() };
    // The reference records f32 of what it forms in f64.
    let tolerance = if backend.name() == "reference" { 1e-6 } else { 0.0 };
    for current in [problem.clone(), problem.forced(Element::U8, &problem.random_ids(11))] {
        let found = watch(backend, &current, Asked::All, &given);
        let router_shift = finish(backend, &found.shift, 1, 0.0);
        assert!(router_shift.iter().all(|&x| x <= 0.0 && x >= -tolerance && x.exp() >= 1.0 - tolerance));
    }
}

fn the_router_shift_has_a_floor<B: Backend>(backend: &B) {
    let old = Problem::<f32>::row(Config::softmax_selected(2), 2, &[0.0, 1.0, 2.0, 3.0]);
    let record = record(backend, &old);
    assert_eq!(record.0, [3, 2]);
    // log p of experts 3 and 2 moves by −3 and by 1 before the sum does: the mean of two distances.
    let logits = [0.0f64, 1.0, 3.0, 0.0];
    let lse = |x: &[f64]| x.iter().map(|x| x.exp()).sum::<f64>().ln();
    let (before, after) = (lse(&[0.0, 1.0, 2.0, 3.0]), lse(&logits));
    let expected = ((0.0 - after - (3.0 - before)).abs() + (3.0 - after - (2.0 - before)).abs()) / 2.0;
    let new = Problem::<f32>::row(Config::softmax_selected(2), 2, &logits.map(|x| x as f32));
    let given = Given { old: Some(record), ..Given::default() };
    let once = watch(backend, &new, Asked::All, &given);
    assert!(common::worst(&once.shift, &[expected], 0.0, 1e-6) <= 1.0);
    let twice = watch(backend, &new, Asked::All, &Given { before: Some(once), ..given });
    assert!(common::worst(&finish(backend, &twice.shift, 2, 0.0), &[-expected], 0.0, 1e-6) <= 1.0);
    assert_eq!(finish(backend, &twice.shift, 2, 0.5), [0.5f64.ln() as f32]);
    assert_eq!(finish(backend, &[0.0, f32::INFINITY], 4, 0.9), [0.0, 0.9f64.ln() as f32]);
    assert_eq!(common::bits(&finish(backend, &[0.0, 1.0], 4, 1.0)), [0, 0]);
    assert_eq!(finish(backend, &[f32::INFINITY], 4, 0.0), [f32::NEG_INFINITY]);
    assert_eq!(finish(backend, &[], 4, 0.0), []);
}

fn what_an_output_needs_is_asked_for<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let logits = backend.upload(&stream, &[0f32; 32]).unwrap();
    let mut ids = backend.allocate::<i32>(&stream, 8).unwrap();
    let mut weights = backend.allocate::<f32>(&stream, 8).unwrap();
    let mut floats = backend.allocate::<f32>(&stream, 8).unwrap();
    let mut counts = backend.allocate::<u64>(&stream, 7).unwrap();
    let kl = floats.view_mut().slice(0..4);
    let mut call = Forward::new(
        Matrix::new(logits.view(), 4, 8).unwrap(),
        ids.view_mut(),
        MatrixMut::new(weights.view_mut(), 4, 2).unwrap(),
    );
    call.telemetry = Some(Telemetry { router_kl: Some(kl), counts: Some(counts.view_mut()), ..Telemetry::default() });
    let config = Config { score_replace: Some(-1.0), ..Config::softmax_selected(2) };
    let error = backend.gate_forward(&stream, &config, call).unwrap_err();
    assert!(error.is(Kind::MissingInput) && error.is(Kind::Shape) && error.is(Kind::Config), "{error}");
    for part in ["ref_logits: are needed by router_kl", "counts: has shape [7], needs [8]", "score_replace: is -1"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    let shift = backend.upload(&stream, &[0f32; 3]).unwrap();
    let mut router_shift = backend.upload(&stream, &[0f32; 2]).unwrap();
    let call = ShiftFinish { shift: shift.view(), layers: 0, gamma_min: 1.5, router_shift: router_shift.view_mut() };
    let error = backend.gate_router_shift(&stream, call).unwrap_err();
    for part in ["gamma_min: is 1.5", "layers: is 0", "router_shift: has shape [2], needs [3]"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}
