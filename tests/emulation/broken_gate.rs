//! What the gate's suites ask of ties, biases and weights, asked of a router that is broken on purpose: each flaw is caught by one of them.

use crate::harness::{Run, emulator};

struct Routed {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

fn route(variant: u32, k: u32, logits: &[f32], bias: &[f32]) -> Routed {
    let input: Vec<u32> = logits.iter().chain(bias).map(|x| x.to_bits()).collect();
    let run = Run {
        input: &input,
        output: 2 * k as usize,
        stride: logits.len(),
        number: k,
        variant,
        ..Run::new("broken_router")
    };
    let output = run.ok(&emulator()).output;
    let (ids, weights) = output.split_at(k as usize);
    Routed { ids: ids.to_vec(), weights: weights.iter().map(|&bits| f32::from_bits(bits)).collect() }
}

/// Equal values go by id: within a lane, across lanes, on the boundary of k.
fn ties_go_by_id(variant: u32) -> bool {
    let none = |experts| vec![0.0; experts];
    let all_equal = route(variant, 8, &[0.5; 128], &none(128)).ids == (0..8).collect::<Vec<u32>>();
    let adjacent = route(variant, 1, &[0.0, 1.0, 1.0, 0.5], &none(4)).ids == [1];
    let across = [(3, 4), (31, 32), (0, 127), (9, 73)].into_iter().all(|(a, b)| {
        let mut logits = vec![0.0; 128];
        (logits[a], logits[b]) = (2.0, 2.0);
        route(variant, 1, &logits, &none(128)).ids == [a as u32]
            && route(variant, 2, &logits, &none(128)).ids == [a as u32, b as u32]
    });
    all_equal && adjacent && across
}

/// A bias on all experts, of any size, leaves k distinct ids.
fn biased_ids_are_distinct(variant: u32) -> bool {
    [-2.0, -20000.0, f32::NEG_INFINITY].into_iter().all(|bias| {
        let logits: Vec<f32> = (0..64).map(|e| (e * 37 % 64) as f32 * 0.125).collect();
        let mut ids = route(variant, 8, &logits, &[bias; 64]).ids;
        ids.sort_unstable();
        ids.dedup();
        ids.len() == 8
    })
}

/// A bias of 8 on a score of 1e-6 leaves the weight what it is.
fn weights_are_without_bias(variant: u32) -> bool {
    let exact = 1.0 / (1.0 + f64::from(13.8155f32).exp());
    let routed = route(variant, 2, &[-13.8155; 4], &[8.0, -8.0, 8.0, 0.0]);
    // The product with log2(e), rounded at 2^-24 of 20, and the hardware's two functions.
    routed.weights.iter().all(|&w| (f64::from(w) - exact).abs() <= 4e-6 * exact)
}

#[test]
fn the_router_without_a_flaw_passes() {
    assert!(ties_go_by_id(0) && biased_ids_are_distinct(0) && weights_are_without_bias(0));
}

#[test]
fn a_butterfly_that_keeps_its_own_of_two_equal_values_is_caught() {
    assert!(!ties_go_by_id(1));
}

#[test]
fn a_mask_that_values_can_be_below_is_caught() {
    assert!(!biased_ids_are_distinct(2));
}

#[test]
fn weights_recovered_by_subtracting_the_bias_are_caught() {
    assert!(!weights_are_without_bias(3));
}
