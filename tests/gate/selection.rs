//! Which experts are chosen: ties, order, bias, groups, NaN and infinities.

use moerl::Backend;
use moerl::element::{Float, bf16};
use moerl::error::FaultCode;
use moerl::gate::{Config, Groups, Score};

use crate::common::report::{count, see};
use crate::harness::*;

crate::on_every_backend!(
    equal_values_go_by_id,
    sixteen_bit_ties_go_as_a_stable_sort,
    zeros_of_both_signs_tie,
    the_softcap_does_not_tie_what_it_rounds_together,
    saturated_scores_do_not_tie,
    nan_ranks_behind_everything,
    every_content_yields_distinct_ids,
    a_large_bias_does_not_touch_the_weights,
    a_uniform_bias_of_any_size_changes_no_choice,
    nan_in_the_bias_is_reported_and_ranks_last,
    excluded_groups_are_never_chosen_from,
    group_scores_count_duplicates,
    the_best_of_a_group_can_be_its_score,
    groups_with_nan_rank_last,
);

fn chosen<B: Backend>(backend: &B, config: Config, k: usize, logits: &[f32]) -> Vec<i32> {
    forward(backend, &Problem::<f32>::row(config, k, logits)).ids
}

fn equal_values_go_by_id<B: Backend>(backend: &B) {
    for (experts, k) in [(8, 2), (64, 8), (128, 8), (256, 16), (300, 31), (512, 10), (1024, 32), (2000, 32)] {
        let first: Vec<i32> = (0..k as i32).collect();
        assert_eq!(chosen(backend, Config::softmax_selected(k), k, &vec![0.5; experts]), first);
    }
    assert_eq!(chosen(backend, Config::softmax_selected(1), 1, &[0.0, 1.0, 1.0, 0.5]), [1]);
    // Across packs of a lane, across lanes, and on the boundary of k.
    for (a, b) in [(3, 4), (7, 8), (15, 16), (0, 127), (63, 64), (9, 73)] {
        let mut logits = vec![0.0; 128];
        (logits[a], logits[b]) = (2.0, 2.0);
        assert_eq!(chosen(backend, Config::softmax_selected(2), 2, &logits), [a as i32, b as i32]);
        assert_eq!(chosen(backend, Config::softmax_selected(1), 1, &logits), [a as i32]);
        logits[50] = 1.0;
        (logits[a], logits[b]) = (1.0, 3.0);
        assert_eq!(chosen(backend, Config::softmax_selected(2), 2, &logits), [b as i32, a.min(50) as i32]);
    }
}

/// The k best by a stable sort of f32 values without NaN.
fn sorted(logits: &[f32], k: usize) -> Vec<i32> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap());
    order[..k].iter().map(|&e| e as i32).collect()
}

fn sixteen_bit_ties_go_as_a_stable_sort<B: Backend>(backend: &B) {
    for (experts, k) in [(128, 8), (512, 10)] {
        let mut problem = Problem::<bf16>::random(Config::softmax_selected(k), 200, experts, k, 1);
        // Rows of two, three and few values, and rows with 17 and E of them tied at the last place.
        for t in 0..40 {
            for (e, x) in problem.logits[t * experts..][..experts].iter_mut().enumerate() {
                let value = match t % 4 {
                    0 => e % 2,
                    1 => e * 7 % 3,
                    2 => usize::from(e < k - 1) + usize::from(e % 7 == 3),
                    _ => e * e % 11,
                };
                *x = bf16::from_f32(value as f32);
            }
        }
        let found = forward(backend, &problem);
        for t in 0..200 {
            let logits: Vec<f32> = problem.logits_of(t).iter().map(|x| x.to_f32()).collect();
            assert_eq!(found.ids[t * k..][..k], sorted(&logits, k), "row {t}");
            count(2, 1);
        }
    }
}

fn zeros_of_both_signs_tie<B: Backend>(backend: &B) {
    let logits = [-1.0, -0.0, 0.0, -0.0, 0.0];
    assert_eq!(chosen(backend, Config::softmax_selected(4), 4, &logits), [1, 2, 3, 4]);
}

fn the_softcap_does_not_tie_what_it_rounds_together<B: Backend>(backend: &B) {
    // Both are 30.0 after the softcap in f32.
    let config = Config { softcap: Some(30.0), ..Config::softmax_selected(1) };
    assert_eq!(chosen(backend, config, 1, &[300.0, 320.0, 310.0]), [1]);
}

fn saturated_scores_do_not_tie<B: Backend>(backend: &B) {
    assert_eq!(chosen(backend, Config::sigmoid(2), 2, &[20.0, 40.0, 30.0, 1.0]), [1, 2]);
    assert_eq!(chosen(backend, Config::softmax(2), 2, &[-500.0, 0.0, -400.0, -600.0]), [1, 2]);
}

fn nan_ranks_behind_everything<B: Backend>(backend: &B) {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let logits = [nan, -inf, 1.0, nan, -f32::NAN, 0.0];
    let found = forward(backend, &Problem::<f32>::row(Config::sigmoid(3), 3, &logits));
    assert_eq!(found.ids, [2, 5, 1]);
    assert_eq!(found.fault.map(|fault| (fault.row, fault.tag, fault.code)), Some((0, 7, FaultCode::NanLogit)));
    assert_eq!(chosen(backend, Config::sigmoid(6), 6, &logits), [2, 5, 1, 0, 3, 4]);
    assert_eq!(chosen(backend, Config::softmax_selected(3), 3, &[nan; 9]), [0, 1, 2]);
    // The scores of numbers are as if the NaN were not there.
    let problem = Problem { bias: Some(vec![0.0; 6]), ..Problem::<f32>::row(Config::softmax_selected(2), 2, &logits) };
    assert_eq!(forward(backend, &problem).ids, [2, 5]);
}

fn every_content_yields_distinct_ids<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let contents: [&[f32]; 8] =
            [&[nan], &[inf], &[-inf], &[inf, -inf], &[nan, -inf], &[1.0, nan], &[0.0, -0.0], &[inf, nan, -inf, 3.0]];
        for (name, config) in every_rule(8) {
            for experts in [8, 16, 40] {
                let row = |content: &&[f32]| {
                    (0..experts).map(|e| T::from_f32(content[e % content.len()])).collect::<Vec<_>>()
                };
                let logits: Vec<T> = contents.iter().flat_map(row).collect();
                let plain = Problem::new(config.clone(), experts, 8, logits);
                let biased = Problem { bias: Some(vec![0.25; experts]), ..plain.clone() };
                for problem in [plain, biased] {
                    let found = forward(backend, &problem);
                    assert_eq!(found.ids, forward(&moerl::Reference, &problem).ids, "{name}");
                    for ids in found.ids.chunks_exact(8) {
                        let mut ids = ids.to_vec();
                        ids.sort_unstable();
                        ids.dedup();
                        assert!(ids.len() == 8 && ids[0] >= 0 && ids[7] < experts as i32, "{name}: {ids:?}");
                        count(7, 1);
                    }
                }
            }
        }
    }
    crate::for_every_float!(check(backend));
}

fn a_large_bias_does_not_touch_the_weights<B: Backend>(backend: &B) {
    // σ(−13.8155) = 1e-6, with a bias of 8 on top that a subtraction would leave nothing of.
    let config = Config::new(Score::Sigmoid, 2);
    let problem = Problem { bias: Some(vec![8.0, -8.0, 8.0, 0.0]), ..Problem::<f32>::row(config, 2, &[-13.8155; 4]) };
    let found = forward(backend, &problem);
    assert_eq!(found.ids, [0, 2]);
    let exact = 1.0 / (1.0 + f64::from(13.8155f32).exp());
    for w in found.weights {
        // 2^-22 is what the hardware's exponential and its reciprocal promise each, 2 ulp the rest of the chain; a bias subtracted
        // again would be wrong by half of the weight.
        let tolerance = 2.0 * 2f64.powi(-22) + 2.0 * 2f64.powi(-23);
        let share =
            see(5, "a weight of 1e-6 under a bias of 8", "sigmoid", (f64::from(w) / exact - 1.0).abs(), tolerance);
        assert!(share <= 1.0, "{w} is further from {exact} than the hardware's functions explain");
    }
}

fn a_uniform_bias_of_any_size_changes_no_choice<B: Backend>(backend: &B) {
    for bias in [-2.0, -20000.0, f32::NEG_INFINITY, f32::INFINITY] {
        for config in [Config::sigmoid(4), Config::sqrt_softplus(4), Config::softmax(4)] {
            // Distances that survive being added to 20000 in f32.
            let logits = [0.0, 2.0, -2.0, 1.0, -1.0, 0.5];
            let problem = Problem { bias: Some(vec![bias; 6]), ..Problem::<f32>::row(config, 4, &logits) };
            let found = forward(backend, &problem);
            let expected: &[i32] = if bias.is_infinite() { &[0, 1, 2, 3] } else { &[1, 3, 5, 0] };
            assert_eq!(found.ids, expected, "bias {bias}");
            count(5, 1);
            assert!(found.weights.iter().all(|w| *w > 0.0), "{:?}", found.weights);
        }
    }
}

fn nan_in_the_bias_is_reported_and_ranks_last<B: Backend>(backend: &B) {
    let logits: Vec<f32> = [5.0, 3.0, 4.0].repeat(3);
    let problem =
        Problem { bias: Some(vec![f32::NAN, 0.0, 0.0]), ..Problem::<f32>::new(Config::sigmoid(2), 3, 2, logits) };
    let found = forward(backend, &problem);
    assert_eq!(found.ids, [2, 1].repeat(3));
    assert_eq!(found.fault.map(|fault| (fault.row, fault.code)), Some((0, FaultCode::NanBias)));
}

fn grouped(k: usize, count: usize, admitted: usize, top: Option<usize>) -> Config {
    Config { groups: Some(Groups { count, admitted, top }), ..Config::sigmoid(k) }
}

fn excluded_groups_are_never_chosen_from<B: Backend>(backend: &B) {
    // Every selection value is negative: an excluded expert that passed for 0 would be chosen.
    for (top, k) in [(Some(2), 8), (Some(1), 8), (None, 8)] {
        let mut problem = Problem::<bf16>::random(grouped(k, 8, 4, top), 50, 64, k, 3);
        problem.bias = Some(vec![-3.0; 64]);
        let (found, expected) = (forward(backend, &problem), forward(&moerl::Reference, &problem));
        assert_eq!(found.ids, expected.ids);
        for ids in found.ids.chunks_exact(k) {
            let mut groups: Vec<i32> = ids.iter().map(|id| id / 8).collect();
            groups.sort_unstable();
            groups.dedup();
            assert!(groups.len() <= 4, "{ids:?}");
            count(6, 1);
        }
    }
}

fn group_scores_count_duplicates<B: Backend>(backend: &B) {
    // Raw scores 3, 3, 1 make 6; 4, 1, 0 make 5.
    let config = Config { groups: Some(Groups { count: 2, admitted: 1, top: Some(2) }), ..Config::new(Score::Raw, 2) };
    assert_eq!(chosen(backend, config, 2, &[4.0, 1.0, 0.0, 3.0, 3.0, 1.0]), [3, 4]);
}

fn the_best_of_a_group_can_be_its_score<B: Backend>(backend: &B) {
    let config = Config { groups: Some(Groups { count: 2, admitted: 1, top: Some(1) }), ..Config::softmax_selected(2) };
    assert_eq!(chosen(backend, config.clone(), 2, &[4.0, 1.0, 0.0, 3.0, 3.0, 1.0]), [0, 1]);
    // Groups tie by their number.
    assert_eq!(chosen(backend, config, 2, &[4.0, 1.0, 0.0, 3.0, 4.0, 1.0]), [0, 1]);
}

fn groups_with_nan_rank_last<B: Backend>(backend: &B) {
    let config = Config { groups: Some(Groups { count: 3, admitted: 2, top: Some(2) }), ..Config::sigmoid(3) };
    let nan = f32::NAN;
    // The first group has one number, so its score is NaN; the third is worse than the second and still admitted.
    assert_eq!(chosen(backend, config, 3, &[9.0, nan, nan, 1.0, 2.0, 3.0, -1.0, -2.0, -3.0]), [5, 4, 3]);
}
