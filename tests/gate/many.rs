//! Many rows: the kernels that look at values before ids, and their slow path.

use moerl::element::{Element, Float, bf16, f16};
use moerl::gate::{Config, Groups, Preset};
use moerl::{Backend, Reference};

use crate::common::report::count;
use crate::common::{is_sanitized, sampled};
use crate::harness::*;
use crate::margin::assert_ids;

crate::on_every_backend!(
    many_rows_are_chosen_as_few_are,
    rows_of_few_values_take_the_slow_path_and_are_chosen_all_the_same,
    near_scores_choose_as_exact_ones_do,
    groups_that_half_precision_cannot_score_are_limited_exactly,
    any_number_of_rows_is_chosen_alike,
    a_million_thin_rows_are_gated_as_few_are,
    rows_may_lie_anywhere,
    padding_among_many_rows_is_padding,
);

/// More than four for each multiprocessor: of a device, and of the emulator's few.
fn many<B: Backend>(backend: &B) -> usize {
    if backend.name() == "emulator" { 130 } else { 620 }
}

/// What the kernels that look at ids at once make of the rows: they take those that begin at no 16-byte boundary.
fn by_rounds<B: Backend, T: Float>(backend: &B, problem: &Problem<T>) -> Forwarded {
    let stride = problem.experts + 1;
    let mut logits = vec![T::from_f32(f32::NAN); problem.tokens * stride];
    for t in 0..problem.tokens {
        logits[t * stride..][..problem.experts].copy_from_slice(problem.logits_of(t));
    }
    forward(backend, &Problem { logits, first: 0, stride, ..problem.clone() })
}

fn agrees<B: Backend, T: Float>(backend: &B, name: &str, problem: &Problem<T>) {
    let many = forward(backend, problem);
    assert_eq!(many.bits(), by_rounds(backend, problem).bits(), "{name}");
    let expected = forward(&Reference, problem);
    if problem.bias.is_none() {
        assert_eq!(many.ids, expected.ids, "{name}"); // with one, f32 sums may tie what f64 sums do not: see `assert_ids`
    }
    assert_eq!(many.fault, expected.fault, "{name}");
    let replayed = forward(backend, &problem.forced(Element::U16, &many.ids));
    assert_eq!(replayed.bits(), many.bits(), "{name}, replayed");
    count(2, problem.tokens);
    count(10, problem.tokens);
}

fn many_rows_are_chosen_as_few_are<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for (experts, k) in [(128, 8), (32, 4), (256, 8), (160, 6), (384, 8), (512, 10), (64, 1), (96, 9)] {
            let name = format!("{k} of {experts}, {}", T::ELEMENT);
            agrees(backend, &name, &Problem::<T>::random(Config::softmax_selected(k), many(backend), experts, k, 1));
        }
        for (experts, k) in [(128, 8), (256, 8), (160, 8), (384, 8), (64, 6)] {
            let name = format!("{k} of {experts}, biased, {}", T::ELEMENT);
            let config = Config { needs_selection_bias: true, ..Config::sigmoid(k) };
            let problem = Problem::<T>::random(config, many(backend), experts, k, 1);
            agrees(backend, &name, &problem);
            assert_ids(&name, &problem, &forward(backend, &problem).ids, &forward(&Reference, &problem).ids);
        }
        let grouped = Config::preset(Preset::DeepseekV3);
        let problem = Problem::<T>::random(grouped.clone(), many(backend), 256, 8, 1);
        agrees(backend, "deepseek_v3", &problem);
        assert_ids("deepseek_v3", &problem, &forward(backend, &problem).ids, &forward(&Reference, &problem).ids);
        let groups = Some(Groups { count: 8, admitted: 4, top: Some(1) });
        agrees(
            backend,
            "one of a group",
            &Problem::<T>::random(Config { groups, ..grouped }, many(backend), 128, 8, 1),
        );
    }
    crate::for_every_float!(check(backend));
}

fn rows_of_few_values_take_the_slow_path_and_are_chosen_all_the_same<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (experts, k) in [(128, 8), (256, 8), (512, 10)] {
            for config in [Config::softmax_selected(k), Config { needs_selection_bias: true, ..Config::sigmoid(k) }] {
                let mut problem = Problem::<T>::random(config, many(backend), experts, k, 2);
                for t in (0..many(backend)).filter(|t| t % 3 != 0 || *t < 64) {
                    for e in 0..experts {
                        let value = match t % 13 {
                            0 => 0.5,
                            1 => (e % 2) as f32,
                            2 => (e * 7 % 3) as f32,
                            3 => f32::from(u8::from(e < k - 1) + u8::from(e % (experts / 17) == 3)),
                            4 => f32::from(u8::from(e >= 2)),
                            5 => {
                                if e % 40 == 7 {
                                    1.0
                                } else {
                                    -inf
                                }
                            }
                            6 => -inf,
                            7 => nan,
                            8 => {
                                if e == experts - 1 {
                                    nan
                                } else {
                                    continue;
                                }
                            }
                            9 => {
                                if e == t % experts {
                                    inf
                                } else {
                                    continue;
                                }
                            }
                            10 => {
                                if e % 2 == 0 {
                                    0.0
                                } else {
                                    -0.0
                                }
                            }
                            11 => {
                                if e < 2 {
                                    nan
                                } else {
                                    (e % 5) as f32
                                }
                            }
                            _ => (e * e % 11) as f32,
                        };
                        problem.logits[t * experts + e] = T::from_f32(value);
                    }
                }
                agrees(backend, &format!("{k} of {experts}, {}", T::ELEMENT), &problem);
            }
        }
    }
    check::<_, bf16>(backend);
    check::<_, f32>(backend);
}

fn near_scores_choose_as_exact_ones_do<B: Backend>(backend: &B) {
    for groups in [None, Some(Groups { count: 8, admitted: 4, top: Some(2) })] {
        let config = Config { needs_selection_bias: true, groups, ..Config::sigmoid(8) };
        let mut problem = Problem::<f32>::random(config, many(backend), 128, 8, 3);
        for (i, x) in problem.logits.iter_mut().enumerate() {
            let (t, e) = (i / 128, i % 128);
            *x = match t % 4 {
                // A last place apart, saturated, or so small that their scores differ by less than near scores can tell.
                0 => f32::from_bits(1.0f32.to_bits() + (e * 37 % 128) as u32),
                1 => 18.0 + (e * 11 % 64) as f32,
                2 => -20.0 - (e * 53 % 128) as f32 * 0.25,
                _ => *x,
            };
        }
        agrees(backend, "close scores", &problem);
        for (which, bias) in [8.0, -2.0, -20000.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN].into_iter().enumerate() {
            let biased =
                |every: usize| (0..128).map(|e| if e % every == 0 { bias } else { 0.25 }).collect::<Vec<f32>>();
            for every in sampled([1, 5, 64], which) {
                agrees(backend, "bias", &Problem { bias: Some(biased(every)), ..problem.clone() });
            }
        }
    }
}

/// Experts that nobody shall choose, or that lie further apart than half precision reaches, in groups that are scored by their two best.
fn groups_that_half_precision_cannot_score_are_limited_exactly<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        let config = Config::preset(Preset::DeepseekV3);
        let biased = |bias: Vec<f32>| Problem {
            bias: Some(bias),
            ..Problem::<T>::random(config.clone(), many(backend), 256, 8, 21)
        };
        // Two groups have a score, and of six that have none but hold the best expert of all, the first two are admitted with them.
        let lone = |e: usize| {
            if e < 64 {
                0.0
            } else if e % 32 == 5 {
                2.0
            } else {
                f32::NEG_INFINITY
            }
        };
        agrees(backend, "one expert left", &biased((0..256).map(lone).collect()));
        let far = |e: usize| {
            if e < 64 {
                0.0
            } else if e % 32 == 5 {
                2.0
            } else {
                -1e5 - (e / 32 * 37 % 19) as f32 * 1e3
            }
        };
        agrees(backend, "far apart", &biased((0..256).map(far).collect()));
        let high = |e: usize| if e % 32 == 7 { 1e5 + (e / 32 * 5 % 8) as f32 * 1e3 } else { 0.0 };
        agrees(backend, "far above", &biased((0..256).map(high).collect()));
        agrees(
            backend,
            "all infinite",
            &biased((0..256).map(|e| if e % 32 == 9 { f32::INFINITY } else { 0.0 }).collect()),
        );
        agrees(
            backend,
            "a group away",
            &biased((0..256).map(|e| if e / 32 == 3 { f32::NEG_INFINITY } else { 0.0 }).collect()),
        );
    }
    check::<_, bf16>(backend);
    check::<_, f32>(backend);
}

fn any_number_of_rows_is_chosen_alike<B: Backend>(backend: &B) {
    let sanitized = is_sanitized();
    for tokens in [1, 2, 31, 33, 257, 1000, if sanitized { 2049 } else { 65_537 }] {
        let problem = Problem::<f16>::random(Config::softmax_selected(2), tokens, 32, 2, tokens as u64);
        let (found, expected) = (forward(backend, &problem), forward(&Reference, &problem));
        assert_eq!((found.ids, found.selected), (expected.ids, expected.selected), "{tokens} rows");
    }
}

fn a_million_thin_rows_are_gated_as_few_are<B: Backend>(backend: &B) {
    let sanitized = is_sanitized();
    // A million rows take the emulator twenty seconds, and 65,537 show all that it can see.
    let numbers: &[usize] = match backend.name() {
        "emulator" if sanitized => &[2049],
        "emulator" => &[65_537],
        _ => &[65_537, 1_000_000],
    };
    for &tokens in numbers {
        let problem = Problem::<bf16>::random(Config::sigmoid(1), tokens, 2, 1, tokens as u64);
        let found = forward(backend, &problem);
        let upstream = problem.random_upstream(6);
        let gradient = backward(backend, &problem, &found, &upstream);
        let expected = forward(&Reference, &problem);
        assert_eq!((&found.ids, &found.selected), (&expected.ids, &expected.selected), "{tokens} rows");
        let rows =
            [0, 1, tokens / 2, 65_534.min(tokens - 3), 65_535.min(tokens - 2), 65_536.min(tokens - 1), tokens - 1];
        let few = problem.rows(&rows);
        let alone = forward(backend, &few);
        let few_upstream: Vec<f32> = rows.iter().map(|&t| upstream[t]).collect();
        let alone_gradient = backward(backend, &few, &alone, &few_upstream);
        for (i, &t) in rows.iter().enumerate() {
            assert_eq!(found.weights[t].to_bits(), alone.weights[i].to_bits(), "row {t} of {tokens}");
            assert_eq!(gradient[2 * t..][..2], alone_gradient[2 * i..][..2], "row {t} of {tokens}");
        }
        count(9, tokens);
    }
}

fn rows_may_lie_anywhere<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        let problem = Problem::<T>::random(Config::softmax_selected(6), many(backend), 96, 6, 4);
        let expected = forward(backend, &problem);
        // The first two begin every row at 16 bytes.
        for (first, stride) in [(0, 96 + 8), (8, 96 + 32), (1, 96), (0, 96 + 1), (4, 96 + 3)] {
            let mut logits = vec![T::from_f32(f32::NAN); first + many(backend) * stride];
            for t in 0..many(backend) {
                logits[first + t * stride..][..96].copy_from_slice(problem.logits_of(t));
            }
            let found = forward(backend, &Problem { logits, first, stride, ..problem.clone() });
            assert_eq!(found.bits(), expected.bits(), "{first} {stride}");
            count(9, many(backend));
        }
    }
    crate::for_every_float!(check(backend));
}

fn padding_among_many_rows_is_padding<B: Backend>(backend: &B) {
    for config in [Config::softmax_selected(8), Config { needs_selection_bias: true, ..Config::sigmoid(8) }] {
        let clean = Problem::<bf16>::random(config, many(backend), 128, 8, 5);
        let expected = forward(backend, &clean);
        let mut problem = clean.clone();
        problem.token_mask = Some((0..many(backend)).map(|t| u8::from(t % 3 != 1)).collect());
        problem.row_count = Some(many(backend) as i32 - 21);
        let is_padding = |t: usize| t % 3 == 1 || t >= many(backend) - 21;
        for t in (0..many(backend)).filter(|&t| is_padding(t)) {
            problem.logits[t * 128..][..128].fill(bf16::NAN);
        }
        let found = forward(backend, &problem);
        assert_eq!(found.fault, None);
        for t in 0..many(backend) {
            let slots = t * 8..(t + 1) * 8;
            if is_padding(t) {
                assert!(found.ids[slots.clone()].iter().enumerate().all(|(j, &id)| id as usize == (t * 8 + j) % 128));
                assert!(found.weights[slots].iter().all(|w| w.to_bits() == 0));
            } else {
                assert_eq!(found.ids[slots.clone()], expected.ids[slots.clone()]);
                assert_eq!(found.weights[slots.clone()], expected.weights[slots]);
            }
        }
    }
}
