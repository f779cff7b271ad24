//! Weights, ids and gradients against the f64 reference; the shapes of memory; independence of neighbours.

use moerl::element::{Float, bf16, f16};
use moerl::gate::{Config, Preset};
use moerl::{Backend, Reference};

use crate::common;
use crate::common::report::{count, see, see_values};
use crate::harness::*;
use crate::margin::assert_ids;

crate::on_every_backend!(
    every_rule_agrees_with_the_reference,
    every_shape_agrees_with_the_reference,
    gradients_in_sixteen_bits_are_rounded_once,
    weights_and_their_gradients_may_be_sixteen_bits,
    strided_and_misaligned_logits_make_no_difference,
    a_row_does_not_depend_on_its_place_or_its_neighbours,
    softmax_gradients_sum_to_zero,
);

/// f32 against f64: a handful of roundings of 6e-8 each; the floor is for values that cancel, or that an exponential below 2⁻¹²⁶ flushes.
const RELATIVE: f64 = 1e-5;

pub(crate) fn agrees<B: Backend, T: Float>(backend: &B, name: &str, problem: &Problem<T>) {
    let scale = f64::from(problem.config.scaling_factor.unwrap());
    let (found, expected) = (forward(backend, problem), forward(&Reference, problem));
    assert_ids(name, problem, &found.ids, &expected.ids);
    if found.ids != expected.ids {
        return; // what follows is of the same experts
    }
    assert_eq!(found.fault, expected.fault, "{name}");
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    assert_eq!(found.selected, expected.selected, "{name}");
    let (weights, expected_weights) = (&found.weights, wide(&expected.weights));
    let weights = see_values(3, "weights", name, weights, &expected_weights, 1e-7 * scale, RELATIVE);
    assert!(weights <= 1.0, "{name}: weights are {weights} tolerances off");
    let lse = see_values(3, "lse", name, &found.lse, &wide(&expected.lse), 1e-6, 1e-6);
    assert!(lse <= 1.0, "{name}: lse is {lse} tolerances off");

    let upstream = problem.random_upstream(3);
    let gradient = backward(backend, problem, &found, &upstream);
    let expected = wide(&backward(&Reference, problem, &expected, &upstream));
    // g − ⟨g, n⟩ cancels: what is left may be as wrong as the terms were.
    let error = see_values(3, "gradients in f32", name, &gradient, &expected, 2e-6 * scale, RELATIVE);
    assert!(error <= 1.0, "{name}: gradients are {error} tolerances off");
}

fn every_rule_agrees_with_the_reference<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for k in [1, 6] {
            for (i, (name, config)) in every_rule(k).into_iter().enumerate() {
                let problem = Problem::<T>::random(config, 9, 64, k, i as u64);
                agrees(backend, name, &problem);
                agrees(backend, name, &problem.forced(moerl::element::Element::U8, &problem.random_ids(i as u64)));
                let biased = Config { needs_selection_bias: true, ..problem.config };
                agrees(backend, name, &Problem::<T>::random(biased, 5, 64, k, i as u64));
            }
        }
    }
    crate::for_every_float!(check(backend));
}

fn every_shape_agrees_with_the_reference<B: Backend>(backend: &B) {
    for experts in [1, 2, 7, 8, 16, 33, 64, 100, 128, 160, 192, 256, 384, 512, 576, 896, 1024, 1025, 4096] {
        for k in [1, 2, 4, 6, 8, 10, 16, 22, 31, 32].into_iter().filter(|&k| k <= experts) {
            if experts > 256 && ![1, 8, 22, 32].contains(&k) {
                continue; // the lanes that share a row are as many at each of these: the small ones cover the slots
            }
            let name = format!("{experts} experts, {k} chosen");
            agrees(backend, &name, &Problem::<bf16>::random(Config::softmax_selected(k), 5, experts, k, 1));
            let biased = Config { needs_selection_bias: true, ..Config::sigmoid(k) };
            agrees(backend, &name, &Problem::<f32>::random(biased, 3, experts, k, 2));
            agrees(backend, &name, &Problem::<f16>::random(Config::softmax(k), 3, experts, k, 3));
        }
    }
}

fn gradients_in_sixteen_bits_are_rounded_once<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for (name, config) in every_rule(8) {
            let problem = Problem::<T>::random(config, 7, 160, 8, 5);
            let (found, expected) = (forward(backend, &problem), forward(&Reference, &problem));
            let upstream = problem.random_upstream(6);
            let gradient: Vec<T> = backward_into::<B, T, f32, T>(backend, &problem, &found, &upstream);
            let expected: Vec<T> = backward_into::<Reference, T, f32, T>(&Reference, &problem, &expected, &upstream);
            for (i, (&a, &b)) in gradient.iter().zip(&expected).enumerate() {
                // Where terms cancel to less than this, one unit of them is many of what is left.
                let tiny = (a.to_f32() - b.to_f32()).abs() < 5e-6;
                let units = if tiny { 0 } else { ulps_16(a, b) };
                let share = see(3, "gradients in 16 bits, last places", name, f64::from(units), 1.0);
                assert!(share <= 1.0, "{name}: element {i} is {a:?}, not {b:?}");
            }
        }
    }
    check::<_, bf16>(backend);
    check::<_, f16>(backend);
}

fn weights_and_their_gradients_may_be_sixteen_bits<B: Backend>(backend: &B) {
    fn check<B: Backend, W: Float>(backend: &B) {
        let problem = Problem::<bf16>::random(Config::sigmoid(8), 9, 128, 8, 7);
        let exact = forward(backend, &problem);
        let rounded: Vec<f32> = exact.weights.iter().map(|&w| W::from_f32(w).to_f32()).collect();
        assert_eq!(forward_into::<B, bf16, W>(backend, &problem).weights, rounded);
        let upstream = problem.random_upstream(8);
        let widened: Vec<f32> = upstream.iter().map(|&x| W::from_f32(x).to_f32()).collect();
        let narrow: Vec<f32> = backward_into::<B, bf16, W, f32>(backend, &problem, &exact, &upstream);
        assert_eq!(common::bits(&narrow), common::bits(&backward(backend, &problem, &exact, &widened)));
    }
    crate::for_every_float!(check(backend));
}

fn strided_and_misaligned_logits_make_no_difference<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for config in [Config::softmax_selected(6), Config::softmax(6), Config::sigmoid(6)] {
            for experts in [24, 100, 256] {
                let problem = Problem::<T>::random(config.clone(), 11, experts, 6, 9);
                let expected = forward(backend, &problem);
                let upstream = problem.random_upstream(1);
                let gradient = backward(backend, &problem, &expected, &upstream);
                for (first, stride) in [(0, experts + 8), (1, experts), (3, experts + 1), (8, experts + 16)] {
                    let mut logits = vec![T::from_f32(f32::NAN); first + problem.tokens * stride];
                    for t in 0..problem.tokens {
                        logits[first + t * stride..][..experts].copy_from_slice(problem.logits_of(t));
                    }
                    let view = Problem { logits, first, stride, ..problem.clone() };
                    let found = forward(backend, &view);
                    assert_eq!(found.bits(), expected.bits());
                    assert_eq!(common::bits(&backward(backend, &view, &found, &upstream)), common::bits(&gradient));
                    count(9, problem.tokens);
                }
            }
        }
    }
    crate::for_every_float!(check(backend));
}

fn a_row_does_not_depend_on_its_place_or_its_neighbours<B: Backend>(backend: &B) {
    for (preset, experts, k) in [(Preset::Qwen3, 128, 8), (Preset::Ernie4_5, 64, 6), (Preset::DeepseekV3, 256, 8)] {
        let config = Config { top_k: Some(k), ..Config::preset(preset) };
        let mut problem = Problem::<bf16>::random(config, 33, experts, k, 11);
        // Rows that go other ways than most: equal values, NaN, infinities.
        problem.logits[5 * experts..6 * experts].fill(bf16::ONE);
        problem.logits[9 * experts + 3] = bf16::NAN;
        problem.logits[17 * experts + 4] = bf16::INFINITY;
        problem.logits[21 * experts..22 * experts].fill(bf16::NEG_INFINITY);
        let all = forward(backend, &problem);
        let upstream = problem.random_upstream(12);
        let gradient = backward(backend, &problem, &all, &upstream);
        for rows in [vec![4], vec![5], vec![20, 8, 16], (0..33).rev().collect(), vec![32; 70]] {
            let part = problem.rows(&rows);
            let found = forward(backend, &part);
            let upstream: Vec<f32> = rows.iter().flat_map(|&t| upstream[t * k..][..k].to_vec()).collect();
            let found_gradient = backward(backend, &part, &found, &upstream);
            for (i, &t) in rows.iter().enumerate() {
                assert_eq!(found.ids[i * k..][..k], all.ids[t * k..][..k]);
                assert_eq!(common::bits(&found.weights[i * k..][..k]), common::bits(&all.weights[t * k..][..k]));
                let (a, b) = (&found_gradient[i * experts..][..experts], &gradient[t * experts..][..experts]);
                assert_eq!(common::bits(a), common::bits(b));
                count(10, 1);
            }
        }
    }
}

fn softmax_gradients_sum_to_zero<B: Backend>(backend: &B) {
    for config in [Config::softmax(8), Config::softmax_selected(8)] {
        let mut problem = Problem::<f32>::random(config, 17, 128, 8, 13);
        // Where one expert has nearly all the weight, the gradient is what is left of a cancellation, and its sum the rounding of that.
        problem.logits.iter_mut().for_each(|x| *x = x.clamp(-3.0, 3.0));
        let forwarded = forward(backend, &problem);
        let gradient = backward(backend, &problem, &forwarded, &problem.random_upstream(14));
        for row in gradient.chunks_exact(128) {
            let sum: f64 = row.iter().map(|&d| f64::from(d)).sum();
            let magnitude: f64 = row.iter().map(|&d| f64::from(d).abs()).sum();
            let share = see(3, "sums of softmax gradients", "clamped to 3", sum.abs() / magnitude, 1e-6);
            assert!(share < 1.0, "{sum} of {magnitude}");
        }
    }
}
