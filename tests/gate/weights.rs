//! What the weights and gradients come to where arithmetic is hard, and where it must give exact zeros.

use moerl::Backend;
use moerl::error::FaultCode;
use moerl::gate::{Config, Nonfinite, Renormalize, Score};

use crate::common;
use crate::common::report::{count, see_values};
use crate::harness::*;

crate::on_every_backend!(
    a_forced_logit_far_below_the_rest_keeps_its_weight,
    tiny_sigmoids_are_renormalised_without_underflow,
    sqrt_softplus_is_right_at_both_ends,
    a_saturated_softcap_keeps_its_gradient,
    a_single_expert_is_renormalised_only_on_request,
    infinities_have_their_limits,
    weights_that_are_not_numbers_become_zeros,
    weights_that_are_not_numbers_can_be_propagated,
    faults_leave_other_rows_alone,
    gradients_that_are_not_numbers_stay_in_their_row,
);

fn close(found: &[f32], expected: &[f64], relative: f64) {
    let worst = see_values(4, "weights and gradients", &format!("of {}", expected[0]), found, expected, 0.0, relative);
    assert!(worst <= 1.0, "{found:?} is {worst} tolerances from {expected:?}");
}

fn row(config: Config, logits: &[f32]) -> Problem<f32> {
    let k = config.top_k.unwrap();
    Problem::row(config, k, logits)
}

fn a_forced_logit_far_below_the_rest_keeps_its_weight<B: Backend>(backend: &B) {
    let problem = row(Config::softmax_selected(2), &[0.0, -200.0, -201.0, 3.0]);
    let found = forward(backend, &problem.forced(moerl::element::Element::U8, &[1, 2]));
    close(&found.weights, &[1.0 / (1.0 + (-1f64).exp()), 1.0 / (1.0 + 1f64.exp())], 1e-6);
    assert_eq!(found.fault, None);
    let gradient = backward(backend, &problem, &found, &[1.0, 0.0]);
    close(&gradient[1..3], &[0.1966119332414819, -0.1966119332414819], 1e-6);
}

fn tiny_sigmoids_are_renormalised_without_underflow<B: Backend>(backend: &B) {
    for (x, w) in [(-44.0, 0.123024), (-50.0, 0.0167093), (-60.0, 8.7564e-7)] {
        let problem = row(Config::sigmoid(8), &[x; 12]);
        let found = forward(backend, &problem);
        close(&found.weights, &[w; 8], 1e-5); // the six digits that the expectation has
        let exact = Config { renormalize: Renormalize::Exact, ..Config::sigmoid(8) };
        let exact = row(exact, &[x; 12]);
        let exactly = forward(backend, &exact);
        close(&exactly.weights, &[0.125; 8], 1e-6);
        for (problem, forwarded) in [(problem, found), (exact, exactly)] {
            let gradient = backward(backend, &problem, &forwarded, &problem.random_upstream(1));
            assert!(gradient.iter().all(|d| d.is_finite()) && gradient.iter().any(|d| *d != 0.0));
        }
    }
}

fn sqrt_softplus_is_right_at_both_ends<B: Backend>(backend: &B) {
    let config = Config { renormalize: Renormalize::None, ..Config::sqrt_softplus(1) };
    for (x, s, r) in [
        (-17.0, 2.03468e-4, 0.5),
        (-50.0, 1.38879e-11, 0.5),
        (-100.0, 1.92875e-22, 0.5),
        (20.0, 4.4721360, 0.025),
        (20.0001, 4.4721472, 0.0249999),
        (88.0, 9.3808315, 0.0056818),
    ] {
        let problem = row(config.clone(), &[x]);
        let found = forward(backend, &problem);
        close(&found.weights, &[s], 1e-5);
        close(&backward(backend, &problem, &found, &[1.0]), &[s * r], 1e-5);
    }
}

fn a_saturated_softcap_keeps_its_gradient<B: Backend>(backend: &B) {
    for x in [300.0, -300.0] {
        let problem = row(Config { softcap: Some(30.0), ..Config::new(Score::Raw, 1) }, &[x]);
        let found = forward(backend, &problem);
        close(&found.weights, &[30f64.copysign(x.into())], 1e-6);
        close(&backward(backend, &problem, &found, &[1.0]), &[8.24461e-9], 1e-5);
    }
}

fn a_single_expert_is_renormalised_only_on_request<B: Backend>(backend: &B) {
    let logits = [0.0, 1.0];
    let sigmoid = 1.0 / (1.0 + (-1f64).exp());
    let plain = forward(backend, &row(Config::sigmoid(1), &logits));
    close(&plain.weights, &[sigmoid], 1e-6);
    let asked = forward(backend, &row(Config { renormalize_single: true, ..Config::sigmoid(1) }, &logits));
    assert_eq!(asked.weights, [1.0]);
    let problem = row(Config::softmax_selected(1), &logits);
    let selected = forward(backend, &problem);
    assert_eq!(selected.weights, [1.0]);
    assert_eq!(backward(backend, &problem, &selected, &[3.0]), [0.0, 0.0]);
}

fn infinities_have_their_limits<B: Backend>(backend: &B) {
    let inf = f32::INFINITY;
    let config = Config::new(Score::Sigmoid, 3);
    let problem = row(config, &[inf, -inf, 0.0]);
    let found = forward(backend, &problem);
    assert_eq!((found.ids.as_slice(), found.weights.as_slice()), ([0, 2, 1].as_slice(), [1.0, 0.5, 0.0].as_slice()));
    assert_eq!(found.fault, None);
    assert_eq!(backward(backend, &problem, &found, &[1.0; 3]), [0.0, 0.0, 0.25]);

    let problem = row(Config::softmax_selected(2), &[-inf, 0.0, -inf]);
    let found = forward(backend, &problem);
    assert_eq!((found.weights.as_slice(), found.fault), ([1.0, 0.0].as_slice(), None));
    let problem = row(Config::softmax(2), &[-inf, 0.0, -inf]);
    let found = forward(backend, &problem);
    assert_eq!((found.weights.as_slice(), found.fault), ([1.0, 0.0].as_slice(), None));
    for config in [Config::sigmoid(2), Config::sqrt_softplus(2)] {
        let found = forward(backend, &row(config, &[-inf; 3]));
        assert_eq!((found.ids.as_slice(), found.weights.as_slice()), ([0, 1].as_slice(), [0.0, 0.0].as_slice()));
        assert_eq!(found.fault, None);
    }
}

/// Rows of four of which two are chosen, with a weight that cannot be a number.
fn impossible() -> Vec<(Config, [f32; 4])> {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let sqrt_softplus = Config { renormalize: Renormalize::None, ..Config::sqrt_softplus(2) };
    vec![
        (Config::softmax_selected(2), [1.0, inf, 0.0, 2.0]),
        (Config::softmax_selected(2), [-inf; 4]),
        (Config::softmax_selected(2), [nan; 4]),
        (Config::softmax(2), [1.0, inf, 0.0, 2.0]),
        (Config::softmax(2), [-inf; 4]),
        (Config::softmax(2), [1.0, nan, 0.0, 2.0]),
        (Config::sigmoid(2), [nan, nan, nan, 2.0]),
        (sqrt_softplus.clone(), [1.0, inf, 0.0, 2.0]),
        (sqrt_softplus, [nan; 4]),
        (Config::new(Score::Raw, 2), [1.0, inf, 0.0, 2.0]),
        (Config::new(Score::Raw, 2), [-inf, -inf, -inf, 2.0]),
    ]
}

fn weights_that_are_not_numbers_become_zeros<B: Backend>(backend: &B) {
    for (config, logits) in impossible() {
        let problem = row(config, &logits);
        let found = forward(backend, &problem);
        assert_eq!(common::bits(&found.weights), [0; 2], "{:?} of {logits:?}", problem.config.score);
        let code = found.fault.map(|fault| fault.code);
        // A NaN that was not chosen is the smaller code of the same row.
        let hidden = logits.iter().filter(|x| x.is_nan()).count() > 2 && problem.config.score != Score::Softmax;
        assert_eq!(code, Some(if hidden { FaultCode::NanLogit } else { FaultCode::NonfiniteWeight }));
        let gradient = backward(backend, &problem, &found, &[1.0, f32::NAN]);
        assert_eq!(common::bits(&gradient), [0; 4]);
    }
}

fn weights_that_are_not_numbers_can_be_propagated<B: Backend>(backend: &B) {
    for (config, logits) in impossible() {
        let problem = row(Config { nonfinite: Nonfinite::Propagate, ..config }, &logits);
        let found = forward(backend, &problem);
        assert!(found.weights.iter().all(|w| w.is_nan()), "{:?} of {logits:?}", problem.config.score);
        let gradient = backward(backend, &problem, &found, &[1.0, 0.0]);
        for (e, d) in gradient.iter().enumerate() {
            let reached = found.ids.contains(&(e as i32)) || problem.config.needs_lse();
            assert!(if reached { d.is_nan() } else { d.to_bits() == 0 }, "expert {e}: {d}");
        }
    }
}

fn faults_leave_other_rows_alone<B: Backend>(backend: &B) {
    for (config, logits) in impossible() {
        let good = Problem::<f32>::random(config, 40, 4, 2, 2);
        let mut bad = good.clone();
        for t in [11, 17, 30] {
            bad.logits[t * 4..][..4].copy_from_slice(&logits);
        }
        let (expected, found) = (forward(backend, &good), forward(backend, &bad));
        assert_eq!(found.fault.unwrap().row, 11);
        assert_eq!(expected.fault, None);
        let upstream = good.random_upstream(3);
        let gradients = [backward(backend, &good, &expected, &upstream), backward(backend, &bad, &found, &upstream)];
        for t in (0..40).filter(|t| ![11, 17, 30].contains(t)) {
            assert_eq!(found.ids[t * 2..][..2], expected.ids[t * 2..][..2]);
            assert_eq!(common::bits(&found.weights[t * 2..][..2]), common::bits(&expected.weights[t * 2..][..2]));
            let [a, b] = gradients.each_ref().map(|gradient| common::bits(&gradient[t * 4..][..4]));
            assert_eq!(a, b);
            count(7, 1);
        }
    }
}

fn gradients_that_are_not_numbers_stay_in_their_row<B: Backend>(backend: &B) {
    for (_, config) in every_rule(4) {
        let problem = Problem::<f32>::random(config, 12, 64, 4, 5);
        let forwarded = forward(backend, &problem);
        let mut upstream = problem.random_upstream(6);
        let expected = backward(backend, &problem, &forwarded, &upstream);
        upstream[5 * 4] = f32::NAN;
        let found = backward(backend, &problem, &forwarded, &upstream);
        assert!(found[5 * 64..6 * 64].iter().any(|d| d.is_nan()));
        assert_eq!(common::bits(&found[..5 * 64]), common::bits(&expected[..5 * 64]));
        assert_eq!(common::bits(&found[6 * 64..]), common::bits(&expected[6 * 64..]));
    }
}
