//! Softcap and the scale of the logits.

use approx::assert_abs_diff_eq;
use moerl::Backend;
use moerl::element::{Float, bf16, f16};
use moerl::error::{FaultCode, Kind};
use moerl::logprob::Config;
use rand::RngExt;

use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    capped_rows_agree_with_f64,
    extreme_logits_are_capped,
    a_scale_without_a_softcap_divides_the_temperature,
    gradients_of_capped_rows_agree_with_f64,
    a_token_on_a_masked_column_has_no_gradient,
    infinities_pass_the_softcap,
    capped_rows_are_the_same_however_they_lie,
    the_order_is_that_of_the_raw_logits,
);

const INF: f32 = f32::INFINITY;

fn capped_config(softcap: f32, logit_scale: f32, temperature: f32) -> Config {
    Config { softcap: Some(softcap), logit_scale, ..Config::at_temperature(temperature) }
}

/// The goals, and two units in the last place of C over T for each of the two logits that differ: they are good to that as f32 holds them.
fn assert_near<T: Float>(inputs: &Inputs<T>, found: &Outputs, what: &str) {
    let c = f64::from(inputs.config.softcap.unwrap());
    for r in 0..inputs.rows {
        let temperature = inputs.temperature_of(r);
        let expected = exact(&inputs.capped_row(r), temperature, inputs.token(r));
        let more = 2.0 * ulp(c) / temperature;
        for (name, found, expected, goal) in [
            ("logprob", found.logprobs[r], expected.logprob, 1e-6 + 2.0 * ulp(expected.logprob)),
            ("log_sum", found.log_sum[r], expected.log_sum, 1e-6 + 2.0 * ulp(expected.log_sum)),
            ("entropy", found.entropy[r], expected.entropy, 4e-6 + 2.0 * ulp(expected.entropy)),
            ("max", found.max[r], expected.max, 1e-6 + 2.0 * ulp(expected.max)),
        ] {
            // An entropy moves by up to its own size more.
            let goal = goal + more * if name == "entropy" { 1.0 + expected } else { 1.0 };
            assert!(of_goal(found, expected, goal) <= 1.0, "{what}: {name} of row {r}: {found} for {expected}");
        }
        assert!(found.logprobs[r] <= 0.0 && found.entropy[r] >= 0.0, "{what}: {:?}", found.floats(r));
    }
}

fn capped_rows_agree_with_f64<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize, workspace: bool) {
        let mut rng = seeded(columns as u64);
        for (softcap, logit_scale, temperature, spread) in
            [(30.0, 1.0, 1.0, 10.0), (30.0, 0.5, 0.7, 60.0), (50.0, 2.0, 1.3, 3.0), (5.0, 1.0, 0.3, 100.0)]
        {
            let inputs = Inputs {
                config: capped_config(softcap, logit_scale, temperature),
                workspace,
                ..Inputs::<T>::random(&mut rng, 4, columns, spread)
            };
            let found = forward(backend, &inputs, WITH_ORDER);
            assert_near(&inputs, &found, &format!("{columns} columns of {}, softcap {softcap}", T::ELEMENT));
            assert_eq!(found.fault, None);
        }
    }
    for columns in [1, 2, 9, 2047, 2048, 2049, 5003] {
        run::<B, f32>(backend, columns, false);
        run::<B, bf16>(backend, columns, columns % 2 == 1);
        run::<B, f16>(backend, columns, false);
    }
}

fn extreme_logits_are_capped<B: Backend>(backend: &B) {
    let values = [0.0, -0.0, 1e-4, -1e-4, 0.3, -0.3, 30.0, -30.0, 300.0, -300.0, -INF];
    for logit_scale in [0.5, 1.0, 2.0] {
        let logits = values.repeat(values.len());
        let inputs = Inputs {
            config: capped_config(30.0, logit_scale, 1.0),
            tokens: Some((0..values.len() as i64).collect()),
            ..Inputs::new(values.len(), values.len(), logits)
        };
        let found = forward(backend, &inputs, EVERYTHING);
        assert_near(&inputs, &found, "extreme logits");
        assert_eq!(found.saved[10].label, -INF);
        assert!(logit_scale < 1.0 || found.saved[0].max_logit == 30.0, "tanh(10) is 1 to f32");
    }
}

fn a_scale_without_a_softcap_divides_the_temperature<B: Backend>(backend: &B) {
    let inputs = Inputs::<bf16>::random(&mut seeded(1), 8, 3000, 3.0);
    let up = Upstream::random(&mut seeded(2), 8);
    let with = |config: Config| Inputs { config, ..inputs.clone() };
    // By powers of two the quotient is exact, so that nothing differs.
    let scaled = with(Config { logit_scale: 2.0, ..Config::at_temperature(1.5) });
    let folded = with(Config::at_temperature(0.75));
    let (found, same) = (forward(backend, &scaled, EVERYTHING), forward(backend, &folded, EVERYTHING));
    assert_eq!(found.bits(), same.bits());
    let gradients = [&scaled, &folded].map(|i| backward::<B, bf16, bf16>(backend, i, &found.saved, &up, Target::Apart));
    assert!(gradients[0] == gradients[1]);
    let array = Inputs { temperature: Some(vec![1.5; 8]), ..scaled };
    assert_eq!(forward(backend, &array, EVERYTHING).bits(), same.bits());
    worst_of(backend, &with(Config { logit_scale: 0.37, ..Config::at_temperature(0.9) }))
        .assert_within_goals("a scale");
}

fn gradients_of_capped_rows_agree_with_f64<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize, spread: f32) {
        let rows = 6;
        let mut rng = seeded(3);
        let inputs =
            Inputs { config: capped_config(30.0, 2.0, 0.9), ..Inputs::<T>::random(&mut rng, rows, columns, spread) };
        let up = Upstream::random(&mut rng, rows);
        let saved = forward(backend, &inputs, EVERYTHING).saved;
        for target in [Target::Apart, Target::InPlace] {
            let memory: Vec<T> = backward(backend, &inputs, &saved, &up, target);
            for (r, found) in gradient_rows(&inputs, &memory).iter().enumerate() {
                let (row, capped_row) = (inputs.row(r), inputs.capped_row(r));
                let (expected, scale) =
                    exact_gradient(&capped_row, inputs.temperature_of(r), Some(inputs.token(r)), up.of(r));
                for j in 0..columns {
                    let slope = capped(&inputs.config, row[j]).1;
                    // The goal; the exponents' share as without a softcap (60/T of them at most); 2 units of C over T in p; and of the
                    // slope's exponential, 2^-24 of its own exponent of up to 2·300·2/30.
                    let relative = 2e-6 + 3.0 * 2f64.powi(-24) * 67.0 + 2.0 * ulp(30.0) / 0.9 + 40.0 * 2f64.powi(-23);
                    let goal = relative * scale[j] * slope + half_ulp::<T>(expected[j] * slope) + 1e-40;
                    let off = of_goal(found[j], expected[j] * slope, goal);
                    assert!(off <= 1.0, "row {r}, column {j}: {} for {}", found[j], expected[j] * slope);
                }
            }
        }
    }
    for spread in [3.0, 30.0, 100.0] {
        run::<B, f32>(backend, 2500, spread);
        run::<B, bf16>(backend, 2049, spread);
    }
    run::<B, f16>(backend, 9, 10.0);
}

fn a_token_on_a_masked_column_has_no_gradient<B: Backend>(backend: &B) {
    let columns = 4200;
    let mut inputs = Inputs::<f32>::random(&mut seeded(4), 2, columns, 3.0);
    inputs.config = capped_config(30.0, 1.0, 1.0);
    inputs.logits[2048..4096].fill(-INF); // a panel of nothing else
    inputs.tokens = Some(vec![2050, 5]);
    let found = forward(backend, &inputs, EVERYTHING);
    assert_eq!((found.logprobs[0], found.fault), (-INF, None));
    let up = Upstream { logprobs: Some(vec![1.0; 2]), ..Upstream::default() };
    let gradient: Vec<f32> = backward(backend, &inputs, &found.saved, &up, Target::Apart);
    assert!(gradient[2048..4096].iter().all(|&g| g == 0.0));
    assert!(gradient.iter().all(|g| g.is_finite()));
}

fn infinities_pass_the_softcap<B: Backend>(backend: &B) {
    let columns = 2100;
    for bad in [INF, f32::NAN] {
        let mut inputs = Inputs::<f32>::random(&mut seeded(5), 3, columns, 3.0);
        inputs.config = capped_config(30.0, 1.0, 1.0);
        inputs.logits[columns + 2060] = bad;
        inputs.logits[2 * columns..].fill(-INF);
        let found = forward(backend, &inputs, WITH_ORDER);
        assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((1, FaultCode::NonfiniteLogit)));
        assert!(found.floats(1).iter().all(|x| x.is_nan()));
        assert_eq!((found.max[2], found.lse[2]), (-INF, -INF));
        let up = Upstream { entropy: Some(vec![1.0; 3]), ..Upstream::default() };
        let gradient: Vec<f32> = backward(backend, &inputs, &found.saved, &up, Target::Apart);
        let nan = |r: usize| gradient[r * columns..(r + 1) * columns].iter().all(|g| g.is_nan());
        assert_eq!([nan(0), nan(1), nan(2)], [false, true, true]);
    }
}

fn capped_rows_are_the_same_however_they_lie<B: Backend>(backend: &B) {
    let columns = 4133;
    let mut rng = seeded(6);
    let mut inputs = Inputs::<bf16>::random(&mut rng, 5, columns, 20.0);
    inputs.config = capped_config(30.0, 1.0, 0.8);
    let plain = forward(backend, &inputs, WITH_ORDER);
    let up = Upstream::random(&mut rng, 5);
    let gradient: Vec<bf16> = backward(backend, &inputs, &plain.saved, &up, Target::Apart);
    for _ in 0..5 {
        let moved = inputs.laid_out(rng.random_range(0..9), columns + rng.random_range(0..5));
        let found = forward(backend, &moved, WITH_ORDER);
        assert!(
            (0..5).all(|r| found.long_row_bits(r) == plain.long_row_bits(r)),
            "at {} by {}",
            moved.offset,
            moved.stride
        );
        let memory: Vec<bf16> = backward(backend, &moved, &plain.saved, &up, Target::InPlace);
        assert!(gradient_rows(&moved, &memory) == gradient_rows(&inputs, &gradient));
    }
    let shared = forward(backend, &Inputs { workspace: true, ..inputs.clone() }, WITH_ORDER);
    assert!((0..5).all(|r| shared.long_row_bits(r) == plain.long_row_bits(r)), "shared");
    let wide = forward(backend, &inputs.widened(), WITH_ORDER);
    assert!((0..5).all(|r| wide.long_row_bits(r) == plain.long_row_bits(r)), "widened");
}

fn the_order_is_that_of_the_raw_logits<B: Backend>(backend: &B) {
    // All of these are 30 after the softcap.
    let logits = vec![900.0, 901.0, 902.0, 901.0];
    let inputs = Inputs { config: capped_config(30.0, 1.0, 1.0), ..Inputs::new(1, 4, logits) };
    let found = forward(backend, &inputs.with_tokens(4, vec![0, 1, 2, 3]), WITH_ORDER);
    assert_eq!((&found.rank[..], found.argmax[0]), (&[3, 1, 0, 2][..], 2));
    assert_abs_diff_eq!(found.entropy[0], 4.0_f32.ln(), epsilon = 1e-6);
}

#[test]
fn limits_that_are_not_positive_are_refused() {
    for bad in [0.0, -1.0, f32::NAN, INF] {
        for config in
            [Config { softcap: Some(bad), ..Config::default() }, Config { logit_scale: bad, ..Config::default() }]
        {
            let error = config.validate().expect_err("invalid");
            assert!(error.is(Kind::Softcap), "{error}");
            let inputs = Inputs { config, temperature: Some(vec![1.0]), ..Inputs::new(1, 3, vec![0.0_f32; 3]) };
            assert!(try_forward(&moerl::Reference, &inputs, EVERYTHING).expect_err("refused").is(Kind::Softcap));
        }
    }
}
