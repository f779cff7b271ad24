//! Forced ids: replaying the native choice is the native result, bit for bit; every layout of a tape.

use moerl::Backend;
use moerl::element::{Element, Float, bf16};
use moerl::gate::{Config, Preset};

use crate::common;
use crate::common::report::count;
use crate::harness::*;

crate::on_every_backend!(
    replaying_native_ids_is_bitwise_native_for_every_preset,
    replaying_native_ids_is_bitwise_native_for_every_rule,
    replaying_native_ids_is_bitwise_native_for_every_shape,
    every_layout_of_a_tape_serves_every_layer,
    permuted_slots_permute_the_result,
    drifted_ids_keep_their_gradient,
    bias_takes_no_part_in_replay,
);

fn is_identical<B: Backend, T: Float>(backend: &B, name: &str, problem: &Problem<T>, elements: &[Element]) {
    let native = forward(backend, problem);
    let upstream = problem.random_upstream(2);
    let gradient = backward_into::<B, T, f32, T>(backend, problem, &native, &upstream);
    for &element in elements {
        if element == Element::U8 && problem.experts > 256 {
            continue;
        }
        let replay = problem.forced(element, &native.ids);
        let replayed = forward(backend, &replay);
        assert_eq!(replayed.bits(), native.bits(), "{name}, {element}");
        let again = backward_into::<B, T, f32, T>(backend, &replay, &replayed, &upstream);
        let bits = |x: &[T]| x.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&again), bits(&gradient), "{name}, {element}");
        count(1, problem.tokens);
    }
}

fn replaying_native_ids_is_bitwise_native_for_every_preset<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for &preset in Preset::ALL {
            let mut config = Config::preset(preset);
            config.scaling_factor.get_or_insert(2.446);
            let k = config.resolve_top_k(None).unwrap_or(6);
            config.top_k = Some(k);
            let experts = if k > 16 { 512 } else { 256 };
            let problem = Problem::<T>::random(config, 5, experts, k, preset as u64);
            is_identical(backend, preset.name(), &problem, Element::ROUTES);
        }
    }
    crate::for_every_float!(check(backend));
}

fn replaying_native_ids_is_bitwise_native_for_every_rule<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for (name, config) in every_rule(6) {
            let mut problem = Problem::<T>::random(config, 9, 64, 6, 4);
            // Zeros of both signs, infinities and NaN among the chosen and elsewhere.
            for (t, x) in [(1, 0.0), (2, f32::INFINITY), (3, f32::NEG_INFINITY), (4, f32::NAN)] {
                problem.logits[t * 64 + 3] = T::from_f32(x);
            }
            problem.logits[64..128].fill(T::from_f32(-0.0));
            problem.logits[70] = T::from_f32(0.0);
            is_identical(backend, name, &problem, &[Element::U8]);
        }
    }
    crate::for_every_float!(check(backend));
}

fn replaying_native_ids_is_bitwise_native_for_every_shape<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for experts in [8, 16, 32, 64, 128, 160, 192, 256, 384, 512, 576, 896, 1024, 4096] {
            for k in [1, 2, 4, 6, 8, 10, 16, 22, 31, 32].into_iter().filter(|&k| k <= experts) {
                // Under a sanitizer each shape has one type of ids, and each type many shapes.
                let sanitized = common::is_sanitized();
                let elements = if sanitized { &Element::ROUTES[(experts / 8 + k) % 4..][..1] } else { Element::ROUTES };
                // The softmax over all takes another road where rows are replayed: every row whole.
                for config in [Config::softmax_selected(k), Config::softmax(k)] {
                    let problem = Problem::<T>::random(config, 3, experts, k, 5);
                    is_identical(backend, &format!("{experts} experts, {k} chosen"), &problem, elements);
                }
            }
        }
    }
    crate::for_every_float!(check(backend));
}

fn every_layout_of_a_tape_serves_every_layer<B: Backend>(backend: &B) {
    const LAYERS: usize = 5;
    for k in [1, 3, 8] {
        let problem = Problem::<bf16>::random(Config::softmax_selected(k), 13, 64, k, 15);
        let layers: Vec<Vec<i32>> = (0..LAYERS).map(|layer| problem.random_ids(layer as u64)).collect();
        for &element in Element::ROUTES {
            for layer in [0, 2, LAYERS - 1] {
                let expected = forward(backend, &problem.forced(element, &layers[layer]));
                // [T, L, k], [L, T, k], and one element further on.
                for (by_token, odd) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
                    let mut array = vec![63; odd];
                    for outer in 0..if by_token { 13 } else { LAYERS } {
                        for inner in 0..if by_token { LAYERS } else { 13 } {
                            let (t, l) = if by_token { (outer, inner) } else { (inner, outer) };
                            array.extend(layers[l][t * k..][..k].iter().map(|&id| i64::from(id)));
                        }
                    }
                    let (first, stride) = if by_token { (layer * k, LAYERS * k) } else { (layer * 13 * k, k) };
                    let tape = Tape { first: odd + first, stride, rows: 13, ..Tape::new(element, array, k) };
                    let found = forward(backend, &Problem { tape: Some(tape), ..problem.clone() });
                    assert_eq!(found.bits(), expected.bits(), "{element}, layer {layer}, by token: {by_token}");
                    count(9, problem.tokens);
                }
            }
        }
    }
}

fn permuted_slots_permute_the_result<B: Backend>(backend: &B) {
    let problem = Problem::<f32>::random(Config::sigmoid(8), 9, 128, 8, 16);
    let ids = problem.random_ids(17);
    let reversed: Vec<i32> =
        ids.chunks_exact(8).flat_map(|row| row.iter().rev().copied().collect::<Vec<_>>()).collect();
    let a = forward(backend, &problem.forced(Element::I32, &ids));
    let b = forward(backend, &problem.forced(Element::I32, &reversed));
    assert_eq!(b.ids, reversed);
    for (a, b) in a.weights.chunks_exact(8).zip(b.weights.chunks_exact(8)) {
        for (j, w) in a.iter().enumerate() {
            // The sum of the scores is taken in the order of the slots.
            assert!((w - b[7 - j]).abs() <= 2.0 * f32::EPSILON * w, "{w} {}", b[7 - j]);
        }
    }
}

fn drifted_ids_keep_their_gradient<B: Backend>(backend: &B) {
    let problem = Problem::<f32>::random(Config::softmax_selected(8), 9, 128, 8, 18);
    let native = forward(backend, &problem);
    // None of these is among the native choice.
    let drifted: Vec<i32> = native
        .ids
        .chunks_exact(8)
        .flat_map(|row| (0..128).filter(|e| !row.contains(e)).take(8).collect::<Vec<_>>())
        .collect();
    let replay = problem.forced(Element::I16, &drifted);
    let found = forward(backend, &replay);
    let gradient = backward(backend, &replay, &found, &problem.random_upstream(19));
    for (t, row) in gradient.chunks_exact(128).enumerate() {
        for (e, &d) in row.iter().enumerate() {
            assert_eq!(d != 0.0, drifted[t * 8..][..8].contains(&(e as i32)), "row {t}, expert {e}: {d}");
        }
    }
    let sums = found.weights.chunks_exact(8).map(|row| row.iter().sum::<f32>());
    assert!(common::worst(&sums.collect::<Vec<_>>(), &[1.0; 9], 1e-6, 0.0) <= 1.0);
}

fn bias_takes_no_part_in_replay<B: Backend>(backend: &B) {
    let plain = Problem::<bf16>::random(Config::sigmoid(8), 9, 128, 8, 20);
    let ids = plain.random_ids(21);
    let replay = plain.forced(Element::U16, &ids);
    let biased = Problem { bias: Some(vec![f32::NAN; 128]), ..replay.clone() };
    let (expected, found) = (forward(backend, &replay), forward(backend, &biased));
    assert_eq!(found.bits(), expected.bits());
    assert_eq!(found.fault, None);
}
