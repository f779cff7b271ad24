//! Values: agreement with f64, special rows, faults.

use moerl::Backend;
use moerl::element::{Float, bf16, f16};
use moerl::error::FaultCode;
use moerl::logprob::Config;
use rand::RngExt;

use crate::common::{is_sanitized, seeded};
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    agrees_with_f64_at_every_width,
    agrees_with_f64_at_every_width_in_half_precision,
    five_tokens_agree_with_f64_at_every_width,
    offsets_and_two_level_rows_keep_their_digits,
    equal_logits_give_the_logarithm_of_the_width,
    one_hot_rows_have_no_entropy,
    logprob_is_never_positive_and_entropy_never_negative,
    no_sign_is_wrong_in_very_many_rows,
    minus_infinity_masks_columns,
    a_row_of_minus_infinity_is_a_fault,
    infinity_and_nan_are_faults_of_their_row,
    temperatures_of_every_size,
    bad_temperatures_are_faults_of_their_row,
    absent_rows_are_zero_whatever_they_hold,
    tokens_outside_the_vocabulary_are_faults,
    tokens_are_optional,
    padding_is_not_counted,
    signed_zeros_at_the_maximum,
    any_number_of_rows,
    rows_beyond_a_dimension_of_a_grid,
    the_first_fault_is_reported_with_its_tag,
);

const INF: f32 = f32::INFINITY;

/// Widths around every boundary of the tree: octet, panel, super-panel.
const WIDTHS: &[usize] =
    &[1, 2, 7, 8, 31, 255, 256, 257, 2047, 2048, 2049, 4100, 32001, 50257, 128256, 151936, 262144, 262145, 524289];

/// Rows of every deviation and temperature; wide ones take turns instead of all combinations.
fn random_rows<T: Float>(seed: u64, columns: usize) -> Inputs<T> {
    let mut rng = seeded(seed);
    let combinations: Vec<(f32, f32)> =
        [0.1, 3.0, 10.0].iter().flat_map(|&d| [0.1, 0.7, 1.0, 1.3, 8.0].map(|t| (d, t))).collect();
    let chosen: Vec<(f32, f32)> = match columns {
        0..5000 => combinations,
        5000..100_000 => vec![(3.0, 0.7), (10.0, 1.3), (0.1, 0.1)],
        _ => vec![combinations[columns % 15]],
    };
    let logits = chosen.iter().flat_map(|&(d, _)| (0..columns).map(|_| d * normal(&mut rng)).collect::<Vec<_>>());
    let logits = logits.map(T::from_f32).collect();
    let tokens = chosen.iter().map(|_| rng.random_range(0..columns as i64)).collect();
    let temperature = Some(chosen.iter().map(|&(_, t)| t).collect());
    Inputs { tokens: Some(tokens), temperature, ..Inputs::new(chosen.len(), columns, logits) }
}

fn agrees_with_f64_at_every_width<B: Backend>(backend: &B) {
    for &columns in WIDTHS {
        worst_of(backend, &random_rows::<f32>(1, columns)).assert_within_goals(&format!("f32, {columns} columns"));
    }
}

fn agrees_with_f64_at_every_width_in_half_precision<B: Backend>(backend: &B) {
    for &columns in WIDTHS {
        worst_of(backend, &random_rows::<bf16>(2, columns)).assert_within_goals(&format!("bf16, {columns} columns"));
        if columns < 100_000 {
            worst_of(backend, &random_rows::<f16>(3, columns)).assert_within_goals(&format!("f16, {columns} columns"));
        }
    }
}

/// As [`worst_of`], with five tokens a row, some of them the same.
fn worst_of_five<B: Backend, T: Float>(backend: &B, seed: u64, columns: usize) -> Worst {
    let mut rng = seeded(seed + 100);
    let one = random_rows::<T>(seed, columns);
    let tokens = (0..one.rows * 5).map(|_| rng.random_range(0..columns as i64)).collect();
    let inputs = one.with_tokens(5, tokens);
    let found = forward(backend, &inputs, EVERYTHING);
    let first = found.first_ids();
    let mut worst = Worst::default();
    for r in 0..inputs.rows {
        let (row, temperature) = (inputs.row(r), inputs.temperature_of(r));
        let expected = exact(&row, temperature, inputs.token(r));
        worst.see(&first, r, &expected);
        for (k, &token) in inputs.tokens_of(r).iter().enumerate() {
            let logprob = row[token as usize] / temperature - expected.max - expected.log_sum;
            let found = found.logprobs[r * 5 + k];
            worst.logprob = worst.logprob.max(of_goal(found, logprob, 1e-6 + 2.0 * ulp(logprob)));
            assert!(found <= 0.0, "row {r}, token {token}: {found}");
        }
    }
    assert_eq!(found.fault, None);
    worst
}

fn five_tokens_agree_with_f64_at_every_width<B: Backend>(backend: &B) {
    for &columns in WIDTHS {
        let what = |element| format!("{element}, {columns} columns, five tokens");
        worst_of_five::<B, f32>(backend, 1, columns).assert_within_goals(&what("f32"));
        worst_of_five::<B, bf16>(backend, 2, columns).assert_within_goals(&what("bf16"));
        if columns < 100_000 {
            worst_of_five::<B, f16>(backend, 3, columns).assert_within_goals(&what("f16"));
        }
    }
}

fn offsets_and_two_level_rows_keep_their_digits<B: Backend>(backend: &B) {
    let columns = 5003;
    let mut rng = seeded(4);
    let noise: Vec<f32> = (0..columns).map(|_| 3.0 * normal(&mut rng)).collect();
    let mut logits = Vec::new();
    for offset in [-200.0, 1e4, -1e4, 1e7, -1e7] {
        logits.extend(noise.iter().map(|x| x + offset));
    }
    // Most of the mass in many small terms: where a biased exponent shows most.
    for depth in [16.37, 11.0, 8.5] {
        logits.extend((0..columns).map(|j| if j == 77 { 100.0 } else { 100.0 - depth }));
    }
    logits.extend((0..columns).map(|j| [3e38, -3e38, 0.0][j % 3]));
    for temperature in [0.1, 0.7, 1.0, 1.3] {
        let inputs = Inputs { config: Config::at_temperature(temperature), ..Inputs::new(9, columns, logits.clone()) };
        worst_of(backend, &inputs).assert_within_goals(&format!("offsets at temperature {temperature}"));
    }
}

fn equal_logits_give_the_logarithm_of_the_width<B: Backend>(backend: &B) {
    for columns in [1, 5, 2048, 2049, 40_000] {
        for value in [-200.0, 0.0, 7.5] {
            let found = forward(backend, &Inputs::new(1, columns, vec![value; columns]), EVERYTHING);
            let log_width = (columns as f64).ln() as f32;
            // All terms are exactly 1, so the sums are exact integers and only f64 follows.
            assert_eq!(
                found.floats(0),
                [-log_width, log_width, value, log_width, value + log_width, 1.0 / columns as f32]
            );
        }
    }
}

fn one_hot_rows_have_no_entropy<B: Backend>(backend: &B) {
    let columns = 4099;
    for hot in [0, 2047, 2048, columns - 1] {
        let mut logits = vec![bf16::from_f32(1.0); columns];
        logits[hot] = bf16::from_f32(91.0);
        let inputs = Inputs { tokens: Some(vec![hot as i64]), ..Inputs::new(1, columns, logits) };
        let found = forward(backend, &inputs, EVERYTHING);
        assert!((-1e-6..=0.0).contains(&found.logprobs[0]), "{:?}", found.floats(0));
        assert!((0.0..=1e-6).contains(&found.entropy[0]), "{:?}", found.floats(0));
        assert_eq!((found.max[0], found.sum_p2[0]), (91.0, 1.0));
    }
}

fn logprob_is_never_positive_and_entropy_never_negative<B: Backend>(backend: &B) {
    let mut rng = seeded(5);
    let (rows, columns) = (400, 19);
    let logits = (0..rows * columns).map(|i| {
        let spread = [0.0, 1e-7, 1e-3, 1.0, 30.0, 300.0][i / columns % 6];
        bf16::from_f32(spread * normal(&mut rng) + [0.0, -90.0, 90.0][i / columns % 3])
    });
    let mut inputs = Inputs::new(rows, columns, logits.collect());
    // The likeliest token, where rounding would be the first to cross 0.
    let likeliest = |r| (0..columns).max_by(|&i, &j| inputs.row(r)[i].total_cmp(&inputs.row(r)[j])).unwrap() as i64;
    inputs.tokens = Some((0..rows).map(likeliest).collect());
    for temperature in [0.01, 0.7, 1.0, 3.0] {
        inputs.config = Config::at_temperature(temperature);
        worst_of(backend, &inputs).assert_within_goals(&format!("the likeliest token at temperature {temperature}"));
    }
}

/// Ten million rows on a device; a hundred thousand by the reference and five thousand emulated, thread by thread.
fn no_sign_is_wrong_in_very_many_rows<B: Backend>(backend: &B) {
    let columns = 19;
    let sanitized = is_sanitized();
    let rows = match backend.name() {
        "cuda" => 1_000_000,
        "emulator" if sanitized => 100,
        "emulator" => 500,
        _ => 10_000,
    };
    let mut seen = 0;
    for (batch, &(spread, offset, temperature)) in [
        (1.0, 0.0, 1.0),
        (0.0, 90.0, 0.7),
        (1e-7, 0.0, 1e-3),
        (1e-3, -90.0, 1.0),
        (30.0, 90.0, 0.01),
        (300.0, 0.0, 3.0),
        (3.0, 1e4, 0.3),
        // Of two levels: most of the mass in one column, or in all others.
        (f32::NAN, 0.0, 1.0),
        (f32::NAN, 100.0, 0.7),
        (f32::NAN, -3.0, 4.0),
    ]
    .iter()
    .enumerate()
    {
        let mut rng = seeded(20 + batch as u64);
        let mut number = || {
            let level = if rng.random_ratio(1, 8) { 16.37 } else { 0.0 };
            let noise = if spread.is_nan() { level } else { spread * normal(&mut rng) };
            bf16::from_f32(noise + offset)
        };
        // Rows begin anywhere in these, so that all are different.
        let numbers: Vec<bf16> = (0..1 << 20).map(|_| number()).collect();
        let mut inputs = Inputs::new(rows, columns, numbers.iter().cycle().take(rows * columns).copied().collect());
        inputs.config = Config::at_temperature(temperature);
        // The likeliest token, where rounding would be the first to cross 0.
        let order = Asked { order: true, ..NOTHING };
        let argmax = forward(backend, &Inputs { tokens: None, ..inputs.clone() }, order).argmax;
        inputs.tokens = Some(argmax.into_iter().map(i64::from).collect());
        let found = forward(backend, &inputs, Asked { logprobs: true, entropy: true, rest: true, ..NOTHING });
        assert_eq!(found.fault, None);
        for r in 0..rows {
            let (logprob, entropy, log_sum) = (found.logprobs[r], found.entropy[r], found.log_sum[r]);
            assert!(
                logprob <= 0.0 && entropy >= 0.0 && log_sum >= 0.0,
                "batch {batch}, row {r}: {:?}",
                found.floats(r)
            );
            // And no larger than of as many equal columns.
            assert!(entropy <= 2.9445 && logprob >= -2.9445, "batch {batch}, row {r}: {:?}", found.floats(r));
        }
        seen += rows;
    }
    println!("{}: {seen} rows of {columns} columns", backend.name());
}

/// Which columns are masked.
type Mask = fn(usize) -> bool;

fn minus_infinity_masks_columns<B: Backend>(backend: &B) {
    let columns = 20_001;
    let mut rng = seeded(6);
    let noise: Vec<f32> = (0..columns).map(|_| 2.0 * normal(&mut rng)).collect();
    let masks: [(&str, Mask); 5] = [
        ("the first half panel", |j| j < 1024),
        ("eight panels", |j| j < 16384),
        ("all but one", |j| j != 5000),
        ("the last panel", |j| j >= 18432),
        ("every other", |j| j % 2 == 1),
    ];
    for (what, masked) in masks {
        let logits: Vec<f32> = noise.iter().enumerate().map(|(j, &x)| if masked(j) { -INF } else { x }).collect();
        let open = (0..columns).find(|&j| !masked(j)).unwrap() as i64;
        let shut = (0..columns).find(|&j| masked(j)).unwrap() as i64;
        let inputs = Inputs { tokens: Some(vec![open]), ..Inputs::new(1, columns, logits.clone()) };
        worst_of(backend, &inputs).assert_within_goals(what);
        let inputs = Inputs { tokens: Some(vec![shut]), ..Inputs::new(1, columns, logits) };
        let found = forward(backend, &inputs, EVERYTHING);
        assert_eq!(found.logprobs[0], -INF, "{what}: a masked token");
        assert_eq!((found.saved[0].label, found.fault), (-INF, None), "{what}: a masked token is legal");
    }
}

fn a_row_of_minus_infinity_is_a_fault<B: Backend>(backend: &B) {
    for columns in [3, 2048, 5000] {
        let mut logits = vec![-INF; 3 * columns];
        logits[..columns].fill(1.0);
        logits[2 * columns..].fill(2.0);
        let found = forward(backend, &Inputs::new(3, columns, logits), EVERYTHING);
        let [logprob, entropy, max, log_sum, lse, sum_p2] = found.floats(1);
        assert!(logprob.is_nan() && entropy.is_nan() && log_sum.is_nan() && sum_p2.is_nan());
        assert_eq!((max, lse), (-INF, -INF));
        let fault = found.fault.expect("a fault");
        assert_eq!((fault.row, fault.code), (1, FaultCode::EmptyRow));
        assert!([0, 2].iter().all(|&r| found.floats(r).iter().all(|x| x.is_finite())), "neighbours are untouched");
    }
}

fn infinity_and_nan_are_faults_of_their_row<B: Backend>(backend: &B) {
    let columns = 4097;
    for bad in [INF, f32::NAN, -f32::NAN] {
        for at in [0, 1, 2047, 2048, columns - 1] {
            let mut logits = vec![0.5; 3 * columns];
            logits[columns + at] = bad;
            logits[columns + 5] = -INF;
            let inputs = Inputs { tokens: Some(vec![1, 5, 1]), ..Inputs::new(3, columns, logits) };
            let found = forward(backend, &inputs, EVERYTHING);
            assert!(found.floats(1).iter().all(|x| x.is_nan()), "{bad} at {at}: {:?}", found.floats(1));
            let fault = found.fault.expect("a fault");
            assert_eq!((fault.row, fault.code), (1, FaultCode::NonfiniteLogit));
            assert_eq!(found.row_bits(0), found.row_bits(2));
            assert!(found.floats(0).iter().all(|x| x.is_finite()), "neighbours are untouched");
        }
    }
}

fn temperatures_of_every_size<B: Backend>(backend: &B) {
    let columns = 3001;
    let mut rng = seeded(7);
    let temperatures = vec![1e-30, 1e-8, 1e-3, 1.0, 1e4, 1e30];
    let rows = temperatures.len();
    let row: Vec<f32> = (0..columns).map(|_| normal(&mut rng)).collect();
    let mut inputs = Inputs::new(rows, columns, row.repeat(rows));
    inputs.temperature = Some(temperatures.clone());
    let mixed = forward(backend, &inputs, EVERYTHING);
    for (r, &temperature) in temperatures.iter().enumerate() {
        let alone = Inputs { config: Config::at_temperature(temperature), temperature: None, ..inputs.rows_of(&[r]) };
        assert_eq!(
            forward(backend, &alone, EVERYTHING).row_bits(0),
            mixed.row_bits(r),
            "an array is the same as a scalar"
        );
        let expected = exact(&inputs.row(r), f64::from(temperature), inputs.token(r));
        // The smallest temperatures push logprob and max out of f32's range: both sides are then infinite, or as far as f32 goes.
        let near = |x: f64| 1e-6 + 2.0 * ulp(x);
        for (found, expected, goal) in [
            (mixed.logprobs[r], expected.logprob, near(expected.logprob)),
            (mixed.log_sum[r], expected.log_sum, near(expected.log_sum)),
            (mixed.entropy[r], expected.entropy, 4e-6 + 2.0 * ulp(expected.entropy)),
        ] {
            let expected = f64::from(expected as f32);
            assert!(of_goal(found, expected, goal) <= 1.0, "temperature {temperature}: {found} for {expected}");
        }
    }
    assert_eq!(mixed.entropy[0], 0.0, "the row is its largest logit");
}

fn bad_temperatures_are_faults_of_their_row<B: Backend>(backend: &B) {
    for bad in [0.0, -0.0, -1.0, f32::NAN, INF, -INF, 4e-39, f32::MIN_POSITIVE / 8.0] {
        let mut inputs = Inputs::new(3, 40, (0..120).map(|i| i as f32 / 50.0).collect());
        inputs.temperature = Some(vec![1.0, bad, 2.0]);
        let found = forward(backend, &inputs, EVERYTHING);
        assert!(found.floats(1).iter().all(|x| x.is_nan()), "{bad}: {:?}", found.floats(1));
        let fault = found.fault.expect("a fault");
        assert_eq!((fault.row, fault.code), (1, FaultCode::Temperature), "{bad}");
        assert!([0, 2].iter().all(|&r| found.floats(r).iter().all(|x| x.is_finite())));
    }
}

fn absent_rows_are_zero_whatever_they_hold<B: Backend>(backend: &B) {
    let columns = 2500;
    for poison in [f32::NAN, INF, -INF, 1.0] {
        let mut inputs = Inputs::new(4, columns, vec![0.25; 4 * columns]);
        inputs.logits[columns..3 * columns].fill(poison);
        inputs.temperature = Some(vec![1.0, f32::NAN, -1.0, 1.0]);
        inputs.loss_mask = Some(vec![1, 0, 255, 1]);
        inputs.tokens = Some(vec![3, 1 << 20, -100, 3]);
        let found = forward(backend, &inputs, EVERYTHING);
        assert_eq!(found.fault, None);
        for r in [1, 2] {
            assert_eq!(found.row_bits(r), [0; 11], "row {r} is +0.0 throughout");
        }
        assert_eq!(found.row_bits(0), found.row_bits(3));
        assert!(found.logprobs[0] < 0.0);
    }
    let mut inputs = Inputs::new(3, 5, vec![f32::NAN; 15]);
    inputs.tokens = Some(vec![-7; 3]);
    inputs.config.ignore_index = -7;
    assert_eq!(forward(backend, &inputs, EVERYTHING).bits(), [[0; 11]; 3], "all rows ignored");
}

fn tokens_outside_the_vocabulary_are_faults<B: Backend>(backend: &B) {
    let columns = 33;
    let logits: Vec<f32> = (0..3 * columns).map(|i| (i % columns) as f32 / 9.0).collect();
    let inside =
        forward(backend, &Inputs { tokens: Some(vec![1; 3]), ..Inputs::new(3, columns, logits.clone()) }, EVERYTHING);
    for token in [-1, columns as i64, i64::from(i32::MIN), i64::from(i32::MAX), 1 << 40, i64::MIN, i64::MAX] {
        let tokens = Some(vec![1, token, 1]);
        let inputs = Inputs { tokens, wide_tokens: true, ..Inputs::new(3, columns, logits.clone()) };
        let found = forward(backend, &inputs, EVERYTHING);
        assert!(found.logprobs[1].is_nan());
        assert_eq!(found.floats(1)[1..], inside.floats(1)[1..], "token {token}: the other outputs are unaffected");
        let fault = found.fault.expect("a fault");
        assert_eq!((fault.row, fault.code), (1, FaultCode::Target), "token {token}");
        assert_eq!([found.row_bits(0), found.row_bits(2)], [inside.row_bits(0), inside.row_bits(2)]);
    }
}

fn tokens_are_optional<B: Backend>(backend: &B) {
    let inputs = random_rows::<bf16>(8, 2049);
    let with = forward(backend, &inputs, EVERYTHING);
    let asked = Asked { logprobs: false, ..EVERYTHING };
    let without = forward(backend, &Inputs { tokens: None, ..inputs.clone() }, asked);
    assert_eq!(without.fault, None);
    for r in 0..inputs.rows {
        assert_eq!(without.row_bits(r)[1..10], with.row_bits(r)[1..10]);
        assert_eq!((without.saved[r].label, without.logprobs[r]), (-INF, UNTOUCHED));
    }
}

fn padding_is_not_counted<B: Backend>(backend: &B) {
    let (vocabulary, columns) = (50_257, 50_304);
    let mut rng = seeded(9);
    let mut inputs = Inputs::<bf16>::random(&mut rng, 2, columns, 3.0);
    inputs.tokens = Some(vec![vocabulary as i64 - 1, vocabulary as i64]);
    let plain: Vec<bf16> = (0..2).flat_map(|r| inputs.logits[r * columns..][..vocabulary].to_vec()).collect();
    for r in 0..2 {
        inputs.logits[r * columns + vocabulary..(r + 1) * columns].fill(bf16::INFINITY);
    }
    inputs.config.vocabulary = Some(vocabulary);
    let padded = forward(backend, &inputs, EVERYTHING);
    let plain = Inputs { tokens: inputs.tokens.clone(), ..Inputs::new(2, vocabulary, plain) };
    let unpadded = forward(backend, &plain, EVERYTHING);
    assert_eq!(padded.bits(), unpadded.bits());
    assert_eq!(padded.fault.map(|f| (f.row, f.code)), Some((1, FaultCode::Target)), "an id in the padding");
}

fn signed_zeros_at_the_maximum<B: Backend>(backend: &B) {
    for zeros in [[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]] {
        let logits = vec![zeros[0], zeros[1], -1.0, -2.0];
        let found = forward(backend, &Inputs::new(1, 4, logits), EVERYTHING);
        assert_eq!(found.saved[0].max_logit.to_bits(), 0, "the maximum is +0.0");
        assert_eq!(found.max[0].to_bits(), 0);
    }
}

fn any_number_of_rows<B: Backend>(backend: &B) {
    let empty = forward(backend, &Inputs::<f32>::new(0, 8, vec![]), EVERYTHING);
    assert!(empty.logprobs.is_empty() && empty.fault.is_none());
    let mut rng = seeded(10);
    let whole = Inputs::<f32>::random(&mut rng, 3000, 8, 3.0);
    let all = forward(backend, &whole, EVERYTHING);
    for rows in [1, 31, 32, 33, 257] {
        let first: Vec<usize> = (0..rows).collect();
        assert_eq!(forward(backend, &whole.rows_of(&first), EVERYTHING).bits(), all.bits()[..rows], "{rows} rows");
    }
    worst_of(backend, &whole).assert_within_goals("many short rows");
}

/// The emulator sees 70,001 rows in a test of its own: these take it half a minute.
fn rows_beyond_a_dimension_of_a_grid<B: Backend>(backend: &B) {
    if backend.name() == "emulator" {
        return;
    }
    for rows in [65_535, 65_536, 70_001, 1 << 20] {
        let inputs = Inputs::<bf16>::random(&mut seeded(11), rows, 8, 3.0);
        let found = forward(backend, &inputs, EVERYTHING);
        assert_eq!(found.fault, None);
        let up = Upstream { logprobs: Some(vec![1.0; rows]), ..Upstream::default() };
        let gradient: Vec<bf16> = backward(backend, &inputs, &found.saved, &up, Target::Apart);
        for r in [0, 1, 65_533, 65_534, 65_535, 65_536, 70_000, rows / 2, rows - 1].into_iter().filter(|&r| r < rows) {
            let one = inputs.rows_of(&[r]);
            let alone = forward(backend, &one, EVERYTHING);
            assert_eq!(alone.row_bits(0), found.row_bits(r), "row {r} of {rows}");
            let alone: Vec<bf16> = backward(backend, &one, &alone.saved, &up.rows_of(&[r]), Target::Apart);
            assert_eq!(alone, gradient[8 * r..8 * (r + 1)], "row {r} of {rows}");
        }
        // Every row sums to 0: p of all columns but one, and p − 1.
        for (r, row) in gradient.chunks_exact(8).enumerate() {
            let sum: f32 = row.iter().map(|g| g.to_f32()).sum();
            assert!(sum.abs() < 0.02, "row {r} of {rows}: {row:?}");
        }
    }
}

fn the_first_fault_is_reported_with_its_tag<B: Backend>(backend: &B) {
    let mut inputs = Inputs::new(300, 4, vec![0.0; 1200]);
    let tokens = inputs.tokens.as_mut().unwrap();
    tokens[17] = 99;
    tokens[250] = -3;
    inputs.logits[4 * 16] = f32::NAN;
    inputs.logits[4 * 17] = f32::NAN;
    let found = forward(backend, &inputs, EVERYTHING);
    assert_eq!(found.fault.map(|f| (f.row, f.tag, f.code)), Some((16, TAG, FaultCode::NonfiniteLogit)));
    inputs.logits[4 * 16] = 0.0;
    let found = forward(backend, &inputs, EVERYTHING);
    assert_eq!(
        found.fault.map(|f| (f.row, f.tag, f.code)),
        Some((17, TAG, FaultCode::Target)),
        "the smallest code of a row"
    );
    assert!(found.floats(17).iter().all(|x| x.is_nan()));
}
