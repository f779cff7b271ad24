//! Where the gradient comes from and where it goes: saved or read again, dense or compact, added, scaled, with a surrogate.

use moerl::element::{Element, Float, bf16, f16};
use moerl::error::{FaultCode, Kind};
use moerl::gate::{Backward, Bad, Config, Filler, Missing, Nonfinite, Output, Renormalize, Score, Surrogate};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Reference, Result};

use crate::common;
use crate::common::report::{count, see, see_values};
use crate::harness::*;

crate::on_every_backend!(
    what_was_not_saved_is_found_again_to_the_bit,
    without_saved_values_padding_is_told_by_mask_count_and_sentinel,
    the_compact_gradient_is_the_dense_one,
    accumulating_adds_before_the_one_rounding,
    nothing_is_added_where_the_gradient_is_absent,
    an_expert_scale_multiplies_the_gradient,
    scaled_weights_and_their_gradient_agree,
    an_infinite_weight_is_a_row_without_weights_and_without_gradient,
    the_gradient_of_the_expert_scale_agrees_with_the_reference,
    the_surrogate_agrees_with_the_reference,
    a_surrogate_over_all_experts_teaches_nothing,
    a_surrogate_divides_weights_that_are_hardly_there,
    drifted_ids_keep_their_gradient,
    calls_that_contradict_themselves_are_refused,
    no_rows_have_no_gradient,
);

/// c_t and A_t.
#[derive(Clone, Debug)]
pub struct Terms {
    pub advantages: Vec<f32>,
    pub weights: Option<Vec<f32>>,
    pub coefficient: f32,
}

/// A backward call on what forward returned.
#[derive(Clone, Debug)]
pub struct Case<'a, T> {
    pub problem: &'a Problem<T>,
    pub forwarded: &'a Forwarded,
    pub upstream: &'a [f32],
    pub unsaved: bool,
    pub compact: bool,
    pub surrogate: Option<Terms>,
    pub wants_expert_scale: bool,
}

impl<'a, T: Float> Case<'a, T> {
    pub fn new(problem: &'a Problem<T>, forwarded: &'a Forwarded, upstream: &'a [f32]) -> Self {
        Case {
            problem,
            forwarded,
            upstream,
            unsaved: false,
            compact: false,
            surrogate: None,
            wants_expert_scale: false,
        }
    }

    /// The gradient in f32.
    pub fn run<B: Backend>(&self, backend: &B) -> Vec<f32> {
        self.run_into::<B, f32>(backend, None).unwrap().0
    }

    /// The gradient, added to `old` where that is given, and that of the expert scale.
    pub fn run_into<B: Backend, G: Float>(&self, backend: &B, old: Option<&[G]>) -> Result<(Vec<G>, Vec<f32>)> {
        let Problem { tokens, experts, k, .. } = *self.problem;
        let stream = backend.stream()?;
        let upstream = backend.upload(&stream, self.upstream)?;
        let logits = backend.upload(&stream, &self.problem.logits)?;
        let ids = backend.upload(&stream, &self.forwarded.ids)?;
        let selected = backend.upload(&stream, &self.forwarded.selected)?;
        let lse = backend.upload(&stream, &self.forwarded.lse)?;
        let scale = self.problem.expert_scale.as_ref().map(|scale| backend.upload(&stream, scale)).transpose()?;
        let mask = self.problem.token_mask.as_ref().map(|mask| backend.upload(&stream, mask)).transpose()?;
        let count = self.problem.row_count.map(|count| backend.upload(&stream, &[count])).transpose()?;
        let terms = self.surrogate.as_ref();
        let advantages = terms.map(|terms| backend.upload(&stream, &terms.advantages)).transpose()?;
        let weights = terms.and_then(|terms| terms.weights.as_ref());
        let weights = weights.map(|weights| backend.upload(&stream, weights)).transpose()?;
        let untouched = vec![G::from_f32(-77.0); tokens * experts];
        let mut dense = backend.upload(&stream, old.unwrap_or(&untouched))?;
        let mut compact = backend.upload(&stream, &vec![-77f32; tokens * k])?;
        let mut d_scale = backend.upload(&stream, &vec![-77f32; experts])?;
        let mut workspace =
            backend.upload(&stream, &vec![0xffu8; Backward::<B::Memory>::workspace_bytes(tokens, experts)])?;

        let matrix = Matrix::new(upstream.view(), tokens, k)?;
        let target = MatrixMut::new(dense.view_mut(), tokens, experts)?;
        let mut call = Backward::new(matrix, ids.view(), selected.view(), target);
        if self.unsaved {
            call.selected_logits = None;
            call.token_mask = mask.as_ref().map(Buffer::view);
            call.row_count = count.as_ref().map(Buffer::view);
        } else if self.problem.config.needs_lse() {
            call.lse = Some(lse.view());
        }
        if self.unsaved || self.problem.config.needs_lse() || self.surrogate.is_some() {
            let view = logits.view().slice(self.problem.first..self.problem.logits.len());
            call.router_logits = Some(Matrix::strided(view, tokens, experts, self.problem.stride)?);
        }
        call.output = match call.output {
            Output::Dense(target) if old.is_some() => Output::Accumulate(target),
            _ if self.compact => Output::Compact { d_selected_logits: compact.view_mut(), experts },
            other => other,
        };
        call.expert_scale = scale.as_ref().map(Buffer::view);
        call.surrogate = terms.zip(advantages.as_ref()).map(|(terms, advantages)| Surrogate {
            advantages: advantages.view(),
            weights: weights.as_ref().map(Buffer::view),
            coefficient: terms.coefficient,
        });
        if self.wants_expert_scale {
            call.d_expert_scale = Some(d_scale.view_mut());
            call.workspace = Some(workspace.view_mut());
        }
        backend.gate_backward(&stream, &self.problem.config, call)?;
        let gradient = if self.compact {
            backend.download(&stream, compact.view())?.into_iter().map(G::from_f32).collect()
        } else {
            backend.download(&stream, dense.view())?
        };
        Ok((gradient, backend.download(&stream, d_scale.view())?))
    }
}

/// Rows of every kind: a tie of zeros of both signs, NaN, infinities, and all −∞.
fn odd_rows<T: Float>(config: Config, tokens: usize, experts: usize, k: usize, seed: u64) -> Problem<T> {
    let mut problem = Problem::random(config, tokens, experts, k, seed);
    problem.logits[experts..][0] = T::from_f32(-0.0);
    problem.logits[2 * experts] = T::from_f32(f32::NAN);
    problem.logits[3 * experts] = T::from_f32(f32::INFINITY);
    problem.logits[4 * experts] = T::from_f32(f32::NEG_INFINITY);
    problem.logits[5 * experts..6 * experts].fill(T::from_f32(f32::NEG_INFINITY));
    problem
}

fn what_was_not_saved_is_found_again_to_the_bit<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for (i, (name, config)) in every_rule(6).into_iter().enumerate() {
            let experts = [64, 200, 300][i % 3];
            let native = odd_rows::<T>(config, 9, experts, 6, i as u64);
            for problem in [native.forced(Element::U16, &native.random_ids(1)), native] {
                let forwarded = forward(backend, &problem);
                let upstream = problem.random_upstream(2);
                let saved = Case::new(&problem, &forwarded, &upstream);
                let unsaved = Case { unsaved: true, ..saved.clone() };
                assert_eq!(common::bits(&unsaved.run(backend)), common::bits(&saved.run(backend)), "{name}");
                count(10, problem.tokens);
            }
        }
    }
    check::<_, bf16>(backend);
    check::<_, f32>(backend);
}

fn without_saved_values_padding_is_told_by_mask_count_and_sentinel<B: Backend>(backend: &B) {
    for config in [Config::softmax_selected(4), Config::softmax(4), Config::sigmoid(4)] {
        let mut problem = Problem::<f32>::random(config, 12, 40, 4, 1);
        problem.token_mask = Some((0..12).map(|t| u8::from(t != 3)).collect());
        problem.row_count = Some(10);
        let mut forwarded = forward(backend, &problem);
        let mut upstream = problem.random_upstream(2);
        let expected = Case::new(&problem, &forwarded, &upstream).run(backend);
        forwarded.ids[5 * 4..6 * 4].fill(-1);
        for t in [3, 5, 10, 11] {
            problem.logits[t * 40..][..40].fill(f32::NAN);
            upstream[t * 4..][..4].fill(f32::NAN);
        }
        let found = Case { unsaved: true, ..Case::new(&problem, &forwarded, &upstream) }.run(backend);
        for t in 0..12 {
            let row = common::bits(&found[t * 40..][..40]);
            let absent = [3, 5, 10, 11].contains(&t);
            assert_eq!(row, if absent { vec![0; 40] } else { common::bits(&expected[t * 40..][..40]) }, "row {t}");
        }
    }
}

fn the_compact_gradient_is_the_dense_one<B: Backend>(backend: &B) {
    for k in [1, 6, 10, 32] {
        for (i, (name, config)) in every_rule(k).into_iter().enumerate().filter(|(_, (_, c))| !c.needs_lse()) {
            let config = Config { nonfinite: [Nonfinite::Zero, Nonfinite::Propagate][i % 2], ..config };
            let mut problem = odd_rows::<bf16>(config, 9, 300, k, i as u64);
            problem.token_mask = Some((0..9).map(|t| u8::from(t != 6)).collect());
            let forwarded = forward(backend, &problem);
            let upstream = problem.random_upstream(3);
            let dense = Case::new(&problem, &forwarded, &upstream).run(backend);
            let compact = Case { compact: true, ..Case::new(&problem, &forwarded, &upstream) }.run(backend);
            let gathered: Vec<f32> =
                forwarded.ids.iter().enumerate().map(|(slot, &e)| dense[slot / k * 300 + e as usize]).collect();
            assert_eq!(common::bits(&compact), common::bits(&gathered), "{name}, k = {k}");
            let unsaved = Case { compact: true, unsaved: true, ..Case::new(&problem, &forwarded, &upstream) };
            assert_eq!(common::bits(&unsaved.run(backend)), common::bits(&compact), "{name}, k = {k}");
        }
    }
}

fn accumulating_adds_before_the_one_rounding<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        for config in [Config::softmax_selected(6), Config::softmax(6), Config::sigmoid(6)] {
            for experts in [64, 100, 300] {
                let problem = Problem::<T>::random(config.clone(), 5, experts, 6, 4);
                let forwarded = forward(backend, &problem);
                let upstream = problem.random_upstream(5);
                let case = Case::new(&problem, &forwarded, &upstream);
                let exact = case.run(backend);
                // Other logits will do for a gradient that is there already.
                let old: Vec<T> = Problem::<T>::random(problem.config.clone(), 5, experts, 6, 6).logits;
                let (found, _) = case.run_into::<B, T>(backend, Some(&old)).unwrap();
                for (i, ((found, old), d)) in found.iter().zip(&old).zip(&exact).enumerate() {
                    let expected = T::from_f32(old.to_f32() + d);
                    // The reference rounds its f64 sum, not a sum of f32s: there half a unit may fall to the other side.
                    let same = found.to_f32().to_bits() == expected.to_f32().to_bits();
                    let near = (found.to_f32() - expected.to_f32()).abs() <= expected.to_f32().abs() / 128.0;
                    assert!(
                        same || (backend.name() == "reference" && near),
                        "element {i}: {found:?}, not {expected:?}"
                    );
                }
            }
        }
    }
    crate::for_every_float!(check(backend));
}

fn nothing_is_added_where_the_gradient_is_absent<B: Backend>(backend: &B) {
    for config in [Config::softmax_selected(4), Config::softmax(4)] {
        let mut problem = Problem::<bf16>::random(config, 9, 40, 4, 7);
        problem.token_mask = Some(vec![1, 0, 1, 0, 0, 1, 1, 1, 0]);
        let forwarded = forward(backend, &problem);
        let mut upstream = problem.random_upstream(8);
        upstream[4..8].fill(f32::NAN);
        let old: Vec<bf16> = (0..9 * 40).map(|i| bf16::from_f32(i as f32)).collect();
        let case = Case::new(&problem, &forwarded, &upstream);
        let (found, _) = case.run_into::<B, bf16>(backend, Some(&old)).unwrap();
        for t in [1, 3, 4, 8] {
            assert_eq!(found[t * 40..][..40], old[t * 40..][..40], "row {t}");
        }
    }
}

/// Positive and negative scales without a pattern.
fn scales(experts: usize) -> Vec<f32> {
    (0..experts).map(|e| 0.5 + (e * 37 % 19) as f32 * 0.125 - if e % 5 == 0 { 3.0 } else { 0.0 }).collect()
}

/// Tolerances as in the agreement suite: a few roundings, and what cancels.
fn close(name: &str, found: &[f32], expected: &[f32], absolute: f64) {
    let wide: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    let worst = see_values(3, "scaled weights, gradients, surrogates", name, found, &wide, absolute, 1e-5);
    assert!(worst <= 1.0, "{name}: {worst} tolerances off");
}

fn an_expert_scale_multiplies_the_gradient<B: Backend>(backend: &B) {
    for (name, config) in every_rule(6) {
        let problem = Problem::<f32>::random(config, 9, 64, 6, 9);
        let forwarded = forward(backend, &problem);
        let upstream = problem.random_upstream(10);
        let scale = scales(64);
        let with_scale = Problem { expert_scale: Some(scale.clone()), ..problem.clone() };
        let case = Case::new(&with_scale, &forwarded, &upstream);
        // A scale of the weights is one of their gradients, and these scales times those gradients are not rounded again.
        let scaled: Vec<f32> = upstream.iter().zip(&forwarded.ids).map(|(d, &e)| d * scale[e as usize]).collect();
        let found = case.run(backend);
        close(name, &found, &Case::new(&problem, &forwarded, &scaled).run(backend), 1e-6);
        close(name, &found, &Case { forwarded: &forward(&Reference, &problem), ..case }.run(&Reference), 1e-5);
    }
}

/// Weights and gradients of one call after the other, both with the scale: each against the reference, and both against each other.
fn scaled_weights_and_their_gradient_agree<B: Backend>(backend: &B) {
    for (i, (name, config)) in every_rule(6).into_iter().enumerate() {
        let native = Problem::<bf16>::random(config, 9, [64, 200, 300][i % 3], 6, 17);
        let native = Problem { expert_scale: Some(scales(native.experts)), ..native };
        for problem in [native.forced(Element::U16, &native.random_ids(18)), native] {
            let (found, expected) = (forward(backend, &problem), forward(&Reference, &problem));
            assert_eq!((&found.ids, found.fault), (&expected.ids, expected.fault), "{name}");
            close(name, &found.weights, &expected.weights, 1e-6);
            let upstream = problem.random_upstream(19);
            let case = Case { wants_expert_scale: true, ..Case::new(&problem, &found, &upstream) };
            let (gradient, d_scale) = case.run_into::<B, f32>(backend, None).unwrap();
            let oracle = Case { forwarded: &expected, ..case };
            close(name, &gradient, &oracle.run(&Reference), 1e-5);
            // The loss Σ dw·w is linear in the scales: it is what they and their gradient come to.
            let loss = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let scale = problem.expert_scale.as_ref().unwrap();
            let (by_weights, by_scales) = (loss(&upstream, &found.weights), loss(scale, &d_scale));
            let size: f64 = upstream.iter().zip(&found.weights).map(|(d, w)| f64::from((d * w).abs())).sum();
            // A few roundings of 6e-8 in each of the terms.
            let share = see(3, "scales times their gradients", name, (by_weights - by_scales).abs() / size, 1e-6);
            assert!(share <= 1.0, "{name}: {by_weights} and {by_scales}");
        }
    }
}

/// By an infinite scale, and by a scale that f32 does not hold the product of.
fn an_infinite_weight_is_a_row_without_weights_and_without_gradient<B: Backend>(backend: &B) {
    for (factor, scale) in [(1.0, f32::INFINITY), (8.0, f32::MAX), (8.0, -f32::MAX)] {
        for nonfinite in [Nonfinite::Zero, Nonfinite::Propagate] {
            let config = Config { nonfinite, scaling_factor: Some(factor), ..Config::sigmoid(2) };
            // Expert 0 is chosen by the first and the last row, with more than half of the weight.
            let logits = vec![2.0, 1.0, 0.0, -1.0, 0.0, 1.0, 5.0, 4.0, 9.0, 0.0, 0.0, 0.5];
            let clean = Problem { expert_scale: Some(vec![1.0; 4]), ..Problem::<f32>::new(config, 4, 2, logits) };
            let problem = Problem { expert_scale: Some(vec![scale, 1.0, 1.0, 1.0]), ..clean.clone() };
            for forced in [false, true] {
                let routed = |problem: &Problem<f32>| {
                    if forced { problem.forced(Element::I32, &[0, 1, 2, 3, 3, 0]) } else { problem.clone() }
                };
                let (clean, problem) = (routed(&clean), routed(&problem));
                let (expected, found) = (forward(backend, &clean), forward(backend, &problem));
                assert_eq!(found.ids, expected.ids);
                assert_eq!(found.fault.map(|fault| (fault.row, fault.code)), Some((0, FaultCode::NonfiniteWeight)));
                let upstream = [1.0, -2.0, 0.5, 3.0, 1.5, -1.0];
                let gradient_of = |problem, forwarded| {
                    let case = Case { wants_expert_scale: true, ..Case::new(problem, forwarded, &upstream) };
                    case.run_into::<B, f32>(backend, None).unwrap()
                };
                let (clean_gradient, _) = gradient_of(&clean, &expected);
                let (gradient, d_scale) = gradient_of(&problem, &found);
                let zero = nonfinite == Nonfinite::Zero;
                for t in [0, 2] {
                    let (weights, d) = (&found.weights[t * 2..][..2], &gradient[t * 4..][..4]);
                    if zero {
                        assert_eq!((common::bits(weights), common::bits(d)), (vec![0; 2], vec![0; 4]), "row {t}");
                    } else {
                        assert!(weights.iter().all(|w| w.is_nan()), "row {t}: {weights:?}");
                        for (e, d) in d.iter().enumerate() {
                            let chosen = found.ids[t * 2..][..2].contains(&(e as i32));
                            assert!(if chosen { d.is_nan() } else { d.to_bits() == 0 }, "row {t}, expert {e}: {d}");
                        }
                    }
                }
                assert_eq!(
                    common::bits(&found.weights[2..4]),
                    common::bits(&expected.weights[2..4]),
                    "the row between"
                );
                assert_eq!(common::bits(&gradient[4..8]), common::bits(&clean_gradient[4..8]), "the row between");
                assert!(if zero { d_scale[0] == 0.0 } else { d_scale[0].is_nan() }, "{d_scale:?}");
                assert!(d_scale[2].is_finite() && d_scale[2] != 0.0, "{d_scale:?}");
            }
        }
    }
}

fn the_gradient_of_the_expert_scale_agrees_with_the_reference<B: Backend>(backend: &B) {
    for (tokens, experts, k, config) in [
        (1, 8, 2, Config::softmax_selected(2)),
        (600, 40, 6, Config { scaling_factor: Some(2.5), ..Config::sigmoid(6) }),
        (257, 300, 32, Config::softmax(32)),
    ] {
        let mut problem = Problem::<bf16>::random(config, tokens, experts, k, 11);
        problem.token_mask = Some((0..tokens).map(|t| u8::from(t % 7 != 3)).collect());
        let forwarded = forward(backend, &problem);
        let upstream = problem.random_upstream(12);
        let case = Case { wants_expert_scale: true, ..Case::new(&problem, &forwarded, &upstream) };
        let (_, found) = case.run_into::<B, f32>(backend, None).unwrap();
        let reference = forward(&Reference, &problem);
        let (_, expected) =
            Case { forwarded: &reference, ..case.clone() }.run_into::<Reference, f32>(&Reference, None).unwrap();
        // Some hundred terms of about 1 that may cancel, each with a few roundings of 6e-8.
        close("d_expert_scale", &found, &expected, 1e-4);
        // By hand: the weights are already what the scale multiplies.
        let mut sums = vec![0f64; experts];
        for (slot, &e) in forwarded.ids.iter().enumerate() {
            if problem.token_mask.as_ref().unwrap()[slot / k] != 0 {
                sums[e as usize] += f64::from(forwarded.weights[slot]) * f64::from(upstream[slot]);
            }
        }
        let sums: Vec<f32> = sums.iter().map(|&x| x as f32).collect();
        close("by hand", &found, &sums, 1e-4);
    }
}

pub fn terms(tokens: usize) -> Terms {
    Terms {
        advantages: (0..tokens).map(|t| (t * 29 % 11) as f32 * 0.25 - 1.25).collect(),
        weights: Some((0..tokens).map(|t| 1.0 + (t % 3) as f32).collect()),
        coefficient: 0.5,
    }
}

fn the_surrogate_agrees_with_the_reference<B: Backend>(backend: &B) {
    for (i, (name, config)) in every_rule(6).into_iter().enumerate().filter(|(_, (_, c))| c.score != Score::Raw) {
        let config = Config { nonfinite: [Nonfinite::Zero, Nonfinite::Propagate][i % 2], ..config };
        let native = odd_rows::<bf16>(config, 9, [64, 200, 300][i % 3], 6, i as u64);
        for problem in [native.forced(Element::U16, &native.random_ids(1)), native] {
            let (found, expected) = (forward(backend, &problem), forward(&Reference, &problem));
            let upstream = problem.random_upstream(13);
            let case = Case { surrogate: Some(terms(9)), ..Case::new(&problem, &found, &upstream) };
            let expected = Case { forwarded: &expected, ..case.clone() }.run(&Reference);
            close(name, &case.run(backend), &expected, 1e-5);
            let unsaved = Case { unsaved: true, ..case.clone() };
            assert_eq!(common::bits(&unsaved.run(backend)), common::bits(&case.run(backend)), "{name}");
            // Alone, it is what −cA (g̃ − p) says.
            let none = vec![0.0; upstream.len()];
            let alone = Case { upstream: &none, ..case }.run(backend);
            let k = problem.k;
            for t in [0, 1, 6, 7, 8] {
                let x: Vec<f64> = problem.logits_of(t).iter().map(|x| f64::from(x.to_f32())).collect();
                if problem.config.softcap.is_some() {
                    continue;
                }
                let Terms { advantages, weights, coefficient } = terms(9);
                let c = f64::from(coefficient * advantages[t] * weights.unwrap()[t]);
                let sum: f64 = x.iter().map(|x| x.exp()).sum();
                let w = &found.weights[t * k..][..k];
                let total: f64 = w.iter().map(|&w| f64::from(w)).sum();
                let expected: Vec<f64> = (0..problem.experts)
                    .map(|e| {
                        let slot = found.ids[t * k..][..k].iter().position(|&id| id as usize == e);
                        c * (x[e].exp() / sum - slot.map_or(0.0, |j| f64::from(w[j]) / total))
                    })
                    .collect();
                let worst = common::worst(&alone[t * problem.experts..][..problem.experts], &expected, 1e-6, 1e-5);
                assert!(worst <= 1.0, "{name}: row {t} is {worst} tolerances off");
            }
        }
    }
}

fn a_surrogate_over_all_experts_teaches_nothing<B: Backend>(backend: &B) {
    // With every expert chosen, g̃ is p, and −cA (p − p) is 0 up to the rounding of the two roads to p (a few units of 6e-8).
    let problem = Problem::<f32>::random(Config::softmax_selected(24), 7, 24, 24, 14);
    let forwarded = forward(backend, &problem);
    let none = vec![0.0; 7 * 24];
    let case = Case { surrogate: Some(terms(7)), ..Case::new(&problem, &forwarded, &none) };
    let found = case.run(backend);
    let largest = found.iter().fold(0.0, |most: f32, d| most.max(d.abs()));
    assert!(see(13, "a gradient that is empty", "surrogate", largest.into(), 1e-6) < 1.0, "{found:?}");
    // Weights that sum to 1 whatever the logits are: the gradient of A Σ p is exactly what is left of A − A.
    let ones = vec![2.0; 7 * 24];
    let constant = Case::new(&problem, &forwarded, &ones).run(backend);
    let largest = constant.iter().fold(0.0, |most: f32, d| most.max(d.abs()));
    assert!(see(13, "a gradient that is empty", "A times the sum of p", largest.into(), 1e-6) < 1.0, "{constant:?}");
}

fn a_surrogate_divides_weights_that_are_hardly_there<B: Backend>(backend: &B) {
    // Scores of 1.6e-38 under a floor of 2: the weights are denormal, and their shares a half each.
    let config = Config { renormalize: Renormalize::Floor(2.0), ..Config::new(Score::Sigmoid, 2) };
    let problem = Problem::<f32>::row(config, 2, &[-87.0, -87.0, -88.0, -88.0]);
    let forwarded = forward(backend, &problem);
    let terms = Some(Terms { advantages: vec![1.0], weights: None, coefficient: 1.0 });
    let found = Case { surrogate: terms, ..Case::new(&problem, &forwarded, &[0.0; 2]) }.run(backend);
    let p = 0.5 / (1.0 + (-1f64).exp());
    let expected = [p - 0.5, p - 0.5, 0.5 - p, 0.5 - p];
    assert!(common::worst(&found, &expected, 1e-6, 0.0) <= 1.0, "{found:?}, not {expected:?}");
}

fn drifted_ids_keep_their_gradient<B: Backend>(backend: &B) {
    for (name, config) in every_rule(4) {
        let mut problem = Problem::<bf16>::random(config, 5, 64, 4, 15);
        // Forced experts far below the row's best, as when the router has moved on.
        let ids: Vec<i32> = [60, 61, 62, 63].repeat(5);
        for t in 0..5 {
            for (j, e) in (60..64).enumerate() {
                problem.logits[t * 64 + e] = bf16::from_f32(-9.0 - j as f32);
            }
        }
        let forced = problem.forced(Element::U8, &ids);
        let forwarded = forward(backend, &forced);
        let gradient = Case::new(&forced, &forwarded, &forced.random_upstream(16)).run(backend);
        for row in gradient.chunks_exact(64) {
            assert!(row[60..].iter().all(|d| *d != 0.0 && d.is_finite()), "{name}: {:?}", &row[60..]);
        }
    }
}

fn calls_that_contradict_themselves_are_refused<B: Backend>(backend: &B) {
    let refused = |case: &Case<'_, f16>, kind: Kind, words: &str| {
        let error = case.run_into::<B, f16>(backend, None).expect_err(words);
        assert!(error.is(kind) && error.to_string().contains(words), "{error}");
    };
    let softmax = Problem::<f16>::random(Config::softmax(2), 3, 8, 2, 1);
    let (forwarded, upstream) = (forward(backend, &softmax), softmax.random_upstream(2));
    let case = Case::new(&softmax, &forwarded, &upstream);
    refused(&Case { compact: true, ..case.clone() }, Kind::Config, "reaches all of them; use a dense result");
    refused(
        &Case { unsaved: true, wants_expert_scale: true, ..case.clone() },
        Kind::MissingInput,
        "lse: is needed by d_expert_scale",
    );
    let scaled = Problem { expert_scale: Some(vec![1.0; 7]), ..softmax.clone() };
    refused(&Case { problem: &scaled, ..case.clone() }, Kind::Shape, "expert_scale: has shape [7], needs [8]");
    let raw = Problem { config: Config::new(Score::Raw, 2), ..softmax.clone() };
    let with_surrogate = Case { surrogate: Some(terms(3)), ..Case::new(&raw, &forwarded, &upstream) };
    refused(&with_surrogate, Kind::Config, "surrogate: divides weights by their sum");
    let selected = Problem { config: Config::softmax_selected(2), ..softmax.clone() };
    let with_surrogate =
        Case { surrogate: Some(terms(3)), compact: true, ..Case::new(&selected, &forwarded, &upstream) };
    refused(&with_surrogate, Kind::Config, "cannot hold the surrogate's gradient");
    let infinite = Some(Terms { coefficient: f32::INFINITY, ..terms(3) });
    let with_surrogate = Case { surrogate: infinite, ..Case::new(&selected, &forwarded, &upstream) };
    refused(&with_surrogate, Kind::Config, "has the coefficient inf");
    let short = Some(terms(2));
    refused(&Case { surrogate: short, ..with_surrogate }, Kind::Shape, "advantages: has shape [2], needs [3]");
    for (missing, bad) in [(Missing::ZeroWeight, Bad::Native), (Missing::Native, Bad::ZeroWeight)] {
        let config = Config { missing, bad, ..Config::softmax_selected(2) };
        let zero_weights = Problem { config: config.clone(), ..softmax.clone() };
        let case = Case { unsaved: true, ..Case::new(&zero_weights, &forwarded, &upstream) };
        refused(&case, Kind::MissingInput, "selected_logits: is needed where rows can be without weights");
        let sentinel = Problem { config: Config { filler: Filler::Sentinel, ..config }, ..softmax.clone() };
        let case = Case { unsaved: true, ..Case::new(&sentinel, &forwarded, &upstream) };
        case.run_into::<B, f16>(backend, None).expect("told by the ids");
    }
}

fn no_rows_have_no_gradient<B: Backend>(backend: &B) {
    let problem = Problem::<f32>::new(Config::sigmoid(2), 8, 2, Vec::new());
    let forwarded = forward(backend, &problem);
    let case = Case { wants_expert_scale: true, ..Case::new(&problem, &forwarded, &[]) };
    assert_eq!(case.run_into::<B, f32>(backend, None).unwrap(), (Vec::new(), vec![0.0; 8]));
}
