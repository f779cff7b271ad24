//! Forward, recomputation and backward of micro-batches, in any order, are one batch to the bit.

use moerl::Backend;
use moerl::element::{Element, Float, bf16};
use moerl::gate::{Config, Preset};
use rand::seq::SliceRandom;

use crate::common;
use crate::common::report::count;
use crate::harness::*;

crate::on_every_backend!(micro_batches_recomputed_in_any_order_are_the_batch, twenty_runs_give_the_same_bits);

/// Rows of every micro-batch.
const LENGTHS: [usize; 5] = [33, 1, 31, 70, 2];

/// Rows that select in several ways, with NaN and infinities among them.
pub fn problem(config: Config, experts: usize, k: usize) -> Problem<bf16> {
    let config = Config { scaling_factor: Some(2.5), ..config };
    let mut problem = Problem::<bf16>::random(config, LENGTHS.iter().sum(), experts, k, 31);
    problem.logits[5 * experts..6 * experts].fill(bf16::ONE);
    problem.logits[40 * experts + 3] = bf16::NAN;
    problem.logits[90 * experts + 4] = bf16::INFINITY;
    problem
}

fn result<B: Backend, T: Float>(backend: &B, problem: &Problem<T>, upstream: &[f32]) -> (Forwarded, Vec<u32>) {
    let forwarded = forward(backend, problem);
    let gradient = common::bits(&backward(backend, problem, &forwarded, upstream));
    (forwarded, gradient)
}

/// All micro-batches forward, then recomputation and backward of each, in an order of this seed.
pub fn shuffled_micro_batches_are_the_batch<B: Backend>(backend: &B, problem: &Problem<bf16>, seed: u64) {
    let (experts, k) = (problem.experts, problem.k);
    let upstream = problem.random_upstream(32);
    let (whole, gradient) = result(backend, problem, &upstream);
    let mut begin = 0;
    let mut batches: Vec<(usize, Problem<bf16>, Forwarded)> = LENGTHS
        .iter()
        .map(|&length| {
            let batch = problem.rows(&(begin..begin + length).collect::<Vec<_>>());
            let first = forward(backend, &batch);
            begin += length;
            (begin - length, batch, first)
        })
        .collect();
    let mut rng = common::seeded(seed);
    batches.shuffle(&mut rng);
    let recorded: Vec<Problem<bf16>> =
        batches.iter().map(|(_, batch, first)| batch.forced(Element::U16, &first.ids)).collect();
    // The recomputed forwards run in one order, the backwards in another.
    let recomputed: Vec<Forwarded> = recorded.iter().map(|batch| forward(backend, batch)).collect();
    let mut order: Vec<usize> = (0..batches.len()).collect();
    order.shuffle(&mut rng);
    for at in order {
        let (begin, batch, first) = &batches[at];
        let slots = begin * k..(begin + batch.tokens) * k;
        assert_eq!(recomputed[at].bits(), first.bits(), "rows from {begin}, recomputed");
        assert_eq!(first.ids, whole.ids[slots.clone()], "rows from {begin}");
        assert_eq!(common::bits(&first.weights), common::bits(&whole.weights[slots.clone()]), "rows from {begin}");
        let found = common::bits(&backward(backend, &recorded[at], &recomputed[at], &upstream[slots]));
        assert_eq!(found, gradient[begin * experts..][..batch.tokens * experts], "gradient of rows from {begin}");
    }
    count(10, batches.len());
}

fn micro_batches_recomputed_in_any_order_are_the_batch<B: Backend>(backend: &B) {
    for (preset, experts, k) in
        [(Preset::Qwen3, 128, 8), (Preset::DeepseekV3, 256, 8), (Preset::Ernie4_5, 64, 6), (Preset::Llama4, 16, 1)]
    {
        let problem = problem(Config { top_k: Some(k), ..Config::preset(preset) }, experts, k);
        for seed in 0..3 {
            shuffled_micro_batches_are_the_batch(backend, &problem, seed);
        }
    }
}

fn twenty_runs_give_the_same_bits<B: Backend>(backend: &B) {
    for config in [Config::softmax_selected(8), Config::preset(Preset::DeepseekV3), Config::softmax(8)] {
        let problem = problem(config, 256, 8);
        let upstream = problem.random_upstream(33);
        let bits = |(forwarded, gradient): (Forwarded, Vec<u32>)| (forwarded.bits(), forwarded.fault, gradient);
        let first = bits(result(backend, &problem, &upstream));
        for run in 1..20 {
            assert!(bits(result(backend, &problem, &upstream)) == first, "run {run}");
        }
        count(10, 20);
    }
}
