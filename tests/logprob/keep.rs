//! Keep-sets: the sampler's distribution, replayed.

use std::collections::BTreeSet;

use moerl::Backend;
use moerl::element::{Float, bf16, f16};
use moerl::error::{FaultCode, Kind};
use moerl::logprob::{Backward, Config, Gradient, KeepSets, sort_keep_sets};
use moerl::memory::{Matrix, MatrixMut, View};
use rand::RngExt;

use crate::common::seeded;
use crate::on_every_backend;
use crate::support::*;

on_every_backend!(
    kept_outputs_are_those_of_the_kept_columns,
    kept_columns_are_summed_as_a_row_of_their_own,
    an_empty_set_is_the_whole_row,
    one_kept_column_is_certain,
    a_token_outside_its_set_joins_it,
    a_token_outside_its_set_is_impossible_where_sets_are_strict,
    masked_columns_may_be_kept,
    faulty_sets_spoil_the_kept_outputs_alone,
    faulty_offsets_are_faults,
    absent_rows_have_no_kept_outputs,
    asking_for_kept_outputs_alone_gives_the_same,
    gradients_of_kept_outputs_agree_with_f64,
    gradients_off_the_set_are_zero,
    a_column_off_the_set_has_no_gradient_whatever_it_holds,
    faulty_sets_have_no_gradient,
);

const INF: f32 = f32::INFINITY;
const KEPT: Asked = Asked { kept: true, ..EVERYTHING };
const KEPT_ALONE: Asked = Asked { kept: true, ..NOTHING };

/// A random ascending set of this size, with the token in it where `with` says so and not in it otherwise.
fn random_set(rng: &mut rand::rngs::StdRng, columns: usize, size: usize, token: i64, with: bool) -> Vec<i32> {
    let mut set = BTreeSet::new();
    if with && size > 0 {
        set.insert(token as i32);
    }
    while set.len() < size {
        let id = rng.random_range(0..columns as i32);
        if i64::from(id) != token {
            set.insert(id);
        }
    }
    set.into_iter().collect()
}

fn random_case<T: Float>(seed: u64, columns: usize, sizes: &[usize], with: bool) -> Inputs<T> {
    let mut rng = seeded(seed);
    let mut inputs = Inputs::<T>::random(&mut rng, sizes.len(), columns, 3.0);
    let sets: Vec<Vec<i32>> =
        (0..sizes.len()).map(|r| random_set(&mut rng, columns, sizes[r], inputs.token(r) as i64, with)).collect();
    inputs.keep = Some(Keep::of(&sets));
    inputs.temperature = Some((0..sizes.len()).map(|r| [1.0, 0.7, 1.3][r % 3]).collect());
    inputs
}

/// The set that a row's distribution is over: S and, unless sets are strict, the token; the whole row if S is empty.
fn support_of<T: Float>(inputs: &Inputs<T>, r: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = inputs.keep.as_ref().unwrap().set(r).iter().map(|&id| id as usize).collect();
    if columns.is_empty() {
        return (0..inputs.vocabulary()).collect();
    }
    if !columns.contains(&inputs.token(r)) && !inputs.config.strict_keep {
        columns.push(inputs.token(r));
    }
    columns
}

pub(crate) fn assert_kept<T: Float>(inputs: &Inputs<T>, found: &Outputs, what: &str) {
    for r in 0..inputs.rows {
        let (row, temperature) = (inputs.capped_row(r), inputs.temperature_of(r));
        let columns = support_of(inputs, r);
        let kept: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
        let at = columns.iter().position(|&column| column == inputs.token(r));
        let expected = exact(&kept, temperature, at.unwrap_or(0));
        let logprob = if at.is_some() { expected.logprob } else { f64::NEG_INFINITY };
        let whole = exact(&row, temperature, inputs.token(r));
        let mass = (expected.lse - whole.lse).exp().min(1.0);
        for (name, found, expected, goal) in [
            ("logprob", found.kept_logprobs[r], logprob, 1e-6 + 2.0 * ulp(logprob)),
            ("entropy", found.kept_entropy[r], expected.entropy, 4e-6 + 2.0 * ulp(expected.entropy)),
            ("mass", found.kept_mass[r], mass, 4e-6 * mass),
        ] {
            assert!(of_goal(found, expected, goal) <= 1.0, "{what}: kept {name} of row {r}: {found} for {expected}");
        }
        assert!(found.kept_logprobs[r] <= 0.0 && found.kept_entropy[r] >= 0.0 && found.kept_mass[r] <= 1.0);
    }
}

fn kept_outputs_are_those_of_the_kept_columns<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize, sizes: &[usize]) {
        for with in [true, false] {
            let inputs = random_case::<T>(1, columns, sizes, with);
            let found = forward(backend, &inputs, KEPT);
            assert_kept(&inputs, &found, &format!("{columns} columns of {}", T::ELEMENT));
            assert_eq!(found.fault, None);
            let nonempty = sizes.iter().filter(|&&size| size > 0).count() as u64;
            assert_eq!(found.label_added, if with { 0 } else { nonempty });
            assert_eq!(found.bits(), forward(backend, &inputs, EVERYTHING).bits(), "the others are unaffected");
        }
    }
    run::<B, bf16>(backend, 5000, &[1, 0, 2, 7, 31, 256, 257, 512, 2046, 2047, 2048, 2049, 4100]);
    run::<B, f32>(backend, 2100, &[3, 2047, 2048, 0]);
    run::<B, f16>(backend, 40, &[1, 5, 39, 0, 20]);
}

fn kept_columns_are_summed_as_a_row_of_their_own<B: Backend>(backend: &B) {
    let columns = 5000;
    let mut inputs = random_case::<bf16>(2, columns, &[512, 2047, 2048, 2049, 4999], true);
    inputs.config.softcap = Some(20.0);
    let found = forward(backend, &inputs, KEPT);
    for r in 0..inputs.rows {
        let set = inputs.keep.as_ref().unwrap().set(r);
        let logits: Vec<bf16> = set.iter().map(|&id| inputs.logits[r * columns + id as usize]).collect();
        let token = set.iter().position(|&id| i64::from(id) == inputs.tokens_of(r)[0]).unwrap();
        let packed = Inputs {
            config: inputs.config.clone(),
            temperature: Some(vec![inputs.temperature.as_ref().unwrap()[r]]),
            tokens: Some(vec![token as i64]),
            ..Inputs::new(1, logits.len(), logits)
        };
        let alone = forward(backend, &packed, EVERYTHING);
        assert_eq!(
            canonical(&[found.kept_logprobs[r], found.kept_entropy[r]]).collect::<Vec<_>>(),
            alone.row_bits(0)[..2]
        );
        assert_eq!(found.kept_saved[r], alone.saved[0], "row {r}");
    }
}

fn an_empty_set_is_the_whole_row<B: Backend>(backend: &B) {
    for columns in [9, 2048, 2049, 5003] {
        let mut inputs = random_case::<bf16>(3, columns, &[0, 0, 0], true);
        inputs.tokens.as_mut().unwrap()[1] = columns as i64 - 1;
        for asked in [KEPT, KEPT_ALONE] {
            let found = forward(backend, &inputs, asked);
            let whole = forward(backend, &inputs, EVERYTHING);
            for r in 0..3 {
                let expected = [whole.logprobs[r], whole.entropy[r]].map(f32::to_bits);
                assert_eq!([found.kept_logprobs[r], found.kept_entropy[r]].map(f32::to_bits), expected);
                assert_eq!(found.kept_saved[r], whole.saved[r]);
            }
            if asked.saved {
                assert_eq!(found.kept_mass, [1.0; 3]);
            }
            assert_eq!(found.label_added, 0);
        }
    }
    let every: Vec<i32> = (0..5003).collect();
    let mut inputs = random_case::<f32>(4, 5003, &[0], true);
    let empty = forward(backend, &inputs, KEPT);
    inputs.keep = Some(Keep::of(&[every]));
    let full = forward(backend, &inputs, KEPT);
    assert_eq!(full.kept_bits(0), empty.kept_bits(0), "all columns kept is none cut off");
}

fn one_kept_column_is_certain<B: Backend>(backend: &B) {
    let mut inputs = random_case::<f32>(5, 3000, &[1, 1], true);
    let found = forward(backend, &inputs, KEPT);
    assert_eq!((&found.kept_logprobs[..], &found.kept_entropy[..]), (&[0.0, 0.0][..], &[0.0, 0.0][..]));
    let kept = KeptUpstream { saved: found.kept_saved, logprobs: vec![1.0; 2], entropy: vec![-2.0; 2] };
    let up = Upstream { kept: Some(kept), ..Upstream::default() };
    let gradient: Vec<f32> = backward(backend, &inputs, &found.saved, &up, Target::Apart);
    assert!(gradient.iter().all(|&g| g == 0.0));
    inputs.logits[inputs.tokens.as_ref().unwrap()[0] as usize] = -INF;
    let found = forward(backend, &inputs, KEPT);
    assert!(found.kept_logprobs[0].is_nan() && found.kept_mass[0] == 0.0);
    assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((0, FaultCode::EmptyKeep)));
}

fn a_token_outside_its_set_joins_it<B: Backend>(backend: &B) {
    // In front of, between and behind the kept ones, and where it needs a panel of its own.
    let columns = 6000;
    for (set, token) in [
        ((10..20).collect::<Vec<i32>>(), 3),
        ((0..40).step_by(2).collect(), 7),
        ((10..20).collect(), 5999),
        ((100..2148).collect(), 50),
        ((100..2148).collect(), 5000),
    ] {
        let mut inputs = Inputs::<f32>::random(&mut seeded(6), 1, columns, 2.0).with_tokens(1, vec![token]);
        inputs.keep = Some(Keep::of(&[set]));
        let found = forward(backend, &inputs, KEPT);
        assert_kept(&inputs, &found, &format!("token {token}"));
        assert_eq!(found.label_added, 1);
    }
}

fn a_token_outside_its_set_is_impossible_where_sets_are_strict<B: Backend>(backend: &B) {
    let mut inputs = random_case::<f32>(7, 3000, &[5, 400, 2048, 2100, 0], false);
    inputs.config = Config { strict_keep: true, ..Config::default() };
    let found = forward(backend, &inputs, KEPT);
    assert_kept(&inputs, &found, "strict");
    assert_eq!(found.kept_logprobs[..4], [-INF; 4]);
    assert!(found.kept_logprobs[4].is_finite(), "nothing was cut off");
    assert_eq!((found.label_added, found.fault), (4, None));
}

fn masked_columns_may_be_kept<B: Backend>(backend: &B) {
    let columns = 3000;
    let mut inputs = random_case::<f32>(8, columns, &[300, 2048, 20], true);
    let keep = inputs.keep.clone().unwrap();
    for r in 0..2 {
        for (i, &id) in keep.set(r).iter().enumerate() {
            if i % 2 == 0 && id as usize != inputs.token(r) {
                inputs.logits[r * columns + id as usize] = -INF;
            }
        }
    }
    for &id in keep.set(2) {
        inputs.logits[2 * columns + id as usize] = -INF;
    }
    let found = forward(backend, &inputs, KEPT);
    let good =
        Inputs { keep: Some(Keep::of(&[keep.set(0).to_vec(), keep.set(1).to_vec()])), ..inputs.rows_of(&[0, 1]) };
    assert_kept(&good, &forward(backend, &good, KEPT), "masked columns");
    assert!(found.kept_logprobs[2].is_nan() && found.kept_entropy[2].is_nan());
    assert_eq!(found.kept_mass[2], 0.0);
    assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((2, FaultCode::EmptyKeep)));
    assert_eq!(found.bits(), forward(backend, &inputs, EVERYTHING).bits(), "full outputs are those without a keep-set");
}

fn faulty_sets_spoil_the_kept_outputs_alone<B: Backend>(backend: &B) {
    let columns = 5000;
    let long: Vec<i32> = (0..4000).collect();
    let swapped = |i: usize| {
        let mut set = long.clone();
        set.swap(i, i + 1);
        set
    };
    let twice = |i: usize| {
        let mut set = long.clone();
        set[i + 1] = set[i];
        set
    };
    let sets = [
        vec![1, 5, 5, 9],
        vec![9, 5],
        vec![3, columns as i32],
        vec![-1, 3],
        vec![i32::MIN, 3],
        vec![3, i32::MAX],
        swapped(2046),
        swapped(2047),
        twice(2047),
        swapped(3998),
        twice(7),
        (0..columns as i32 + 1).map(|id| id.min(columns as i32 - 1)).collect(),
        vec![0, 300, 299],
    ];
    for set in sets {
        let mut inputs = Inputs::<f32>::random(&mut seeded(9), 3, columns, 2.0);
        inputs.keep = Some(Keep::of(&[vec![1, 2, 3], set.clone(), vec![4000, 4001]]));
        let found = forward(backend, &inputs, KEPT);
        let what = format!("{:?}…", &set[..set.len().min(4)]);
        assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((1, FaultCode::Keep)), "{what}");
        assert!(
            [found.kept_logprobs[1], found.kept_entropy[1], found.kept_mass[1]].iter().all(|x| x.is_nan()),
            "{what}"
        );
        assert_eq!(found.bits(), forward(backend, &inputs, EVERYTHING).bits(), "{what}: full outputs are unaffected");
        inputs.keep = Some(Keep::of(&[vec![1, 2, 3], vec![], vec![4000, 4001]]));
        let good = forward(backend, &inputs, KEPT);
        assert!([0, 2].iter().all(|&r| good.kept_bits(r) == found.kept_bits(r)), "{what}: neighbours are untouched");
    }
}

fn faulty_offsets_are_faults<B: Backend>(backend: &B) {
    let ids = vec![1, 2, 3, 4, 5, 6];
    for (offsets, row) in [
        (vec![1, 2, 4, 6], 0),
        (vec![0, 2, 4, 5], 2),
        (vec![0, 2, 4, 7], 2),
        (vec![0, 4, 2, 6], 1),
        (vec![0, -1, 4, 6], 0),
        (vec![0, 2, i64::MAX, 6], 1),
        (vec![i64::MIN, 2, 4, 6], 0),
    ] {
        let mut inputs = Inputs::<f32>::random(&mut seeded(10), 3, 50, 2.0);
        inputs.keep = Some(Keep { ids: ids.clone(), offsets: offsets.clone() });
        let found = forward(backend, &inputs, KEPT);
        assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((row, FaultCode::KeepOffsets)), "{offsets:?}");
        assert!(found.kept_logprobs[row as usize].is_nan() && found.kept_entropy[row as usize].is_nan());
        assert_eq!(found.bits(), forward(backend, &inputs, EVERYTHING).bits());
    }
}

fn absent_rows_have_no_kept_outputs<B: Backend>(backend: &B) {
    let mut inputs = random_case::<f32>(11, 2500, &[4, 4, 4, 4, 4], false);
    inputs.loss_mask = Some(vec![1, 0, 1, 1, 1]);
    inputs.tokens.as_mut().unwrap()[2] = -100;
    inputs.logits[2500..7500].fill(f32::NAN);
    inputs.keep.as_mut().unwrap().ids[4..12].fill(-9);
    inputs.temperature.as_mut().unwrap()[3] = f32::NAN;
    inputs.tokens.as_mut().unwrap()[4] = 2500;
    let found = forward(backend, &inputs, KEPT);
    assert_eq!(found.kept_bits(1), [0; 7]);
    assert_eq!(found.kept_bits(2), [0; 7]);
    assert!([3, 4].iter().all(|&r| found.kept_logprobs[r].is_nan()));
    assert!(found.kept_entropy[4].is_finite(), "of the set without the unknown token");
    assert_eq!(found.fault.map(|f| (f.row, f.code)), Some((3, FaultCode::Temperature)));
    assert_eq!(found.label_added, 1, "the first row's");
}

fn asking_for_kept_outputs_alone_gives_the_same<B: Backend>(backend: &B) {
    let inputs = random_case::<bf16>(12, 5000, &[1, 7, 512, 2048, 2049, 4000, 0], false);
    let (all, alone) = (forward(backend, &inputs, KEPT), forward(backend, &inputs, KEPT_ALONE));
    for r in 0..inputs.rows {
        assert_eq!(alone.kept_bits(r)[..2], all.kept_bits(r)[..2], "row {r}");
        assert_eq!(alone.kept_saved[r], all.kept_saved[r]);
    }
    assert!(alone.entropy.iter().chain(&alone.kept_mass).all(|&x| x == UNTOUCHED));
    // Row by row, at other addresses, and from wider logits.
    for r in 0..inputs.rows {
        assert_eq!(forward(backend, &inputs.rows_of(&[r]), KEPT).kept_bits(0), all.kept_bits(r), "row {r} alone");
    }
    let moved = forward(backend, &inputs.laid_out(3, 5003), KEPT);
    let wide = forward(backend, &inputs.widened(), KEPT);
    assert!((0..inputs.rows).all(|r| moved.kept_bits(r) == all.kept_bits(r) && wide.kept_bits(r) == all.kept_bits(r)));
}

fn kept_upstream(rng: &mut rand::rngs::StdRng, found: &Outputs) -> KeptUpstream {
    let rows = found.entropy.len();
    let mut some = || (0..rows).map(|_| normal(rng)).collect();
    KeptUpstream { logprobs: some(), entropy: some(), saved: found.kept_saved.clone() }
}

fn gradients_of_kept_outputs_agree_with_f64<B: Backend>(backend: &B) {
    fn run<B: Backend, T: Float>(backend: &B, columns: usize, sizes: &[usize], softcap: Option<f32>) {
        for (with, strict_keep) in [(true, false), (false, false), (false, true)] {
            let mut inputs = random_case::<T>(13, columns, sizes, with);
            inputs.config = Config { softcap, strict_keep, ..Config::default() };
            let mut rng = seeded(14);
            let found = forward(backend, &inputs, KEPT);
            let full =
                Upstream { kept: Some(kept_upstream(&mut rng, &found)), ..Upstream::random(&mut rng, sizes.len()) };
            let kept_alone = Upstream { kept: full.kept.clone(), ..Upstream::default() };
            for up in [&full, &kept_alone] {
                let apart: Vec<T> = backward(backend, &inputs, &found.saved, up, Target::Apart);
                let in_place: Vec<T> = backward(backend, &inputs, &found.saved, up, Target::InPlace);
                assert!(apart == in_place, "in place is out of place");
                for (r, found) in gradient_rows(&inputs, &apart).iter().enumerate() {
                    assert_gradient::<T>(&inputs, up, r, found);
                }
            }
        }
    }
    run::<B, f32>(backend, 5000, &[1, 7, 512, 2048, 2049, 4999, 0], None);
    run::<B, bf16>(backend, 4133, &[1, 7, 512, 2048, 4000, 0], None);
    run::<B, f32>(backend, 2500, &[7, 512, 0], Some(30.0));
    run::<B, f16>(backend, 40, &[3, 39, 0], None);
}

fn assert_gradient<T: Float>(inputs: &Inputs<T>, up: &Upstream, r: usize, found: &[f32]) {
    let (row, temperature) = (inputs.capped_row(r), inputs.temperature_of(r));
    let (mut expected, mut scale) = exact_gradient(&row, temperature, Some(inputs.token(r)), up.of(r));
    let columns = support_of(inputs, r);
    let kept: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
    let at = columns.iter().position(|&column| column == inputs.token(r));
    let of_kept = up.kept.as_ref().unwrap();
    let (a, b) = (f64::from(of_kept.logprobs[r]), f64::from(of_kept.entropy[r]));
    // Where the token is not in a strict set, the distribution over the set has its gradient, and the token's own column none.
    let (mut more, mut size) = exact_gradient(&kept, temperature, at.or(Some(0)), [a, b, 0.0]);
    if at.is_none() {
        (more[0], size[0]) = (more[0] - a / temperature, size[0] + a.abs() / temperature);
    }
    for (i, &column) in columns.iter().enumerate() {
        expected[column] += more[i];
        scale[column] += size[i];
    }
    for j in 0..row.len() {
        let slope = capped(&inputs.config, inputs.row(r)[j]).1;
        // The goal, the exponents' own rounding (3·2⁻²⁴ of at most 40) and that of the softcap (2 units of 30 over T = 0.7).
        let relative = 2e-6 + 8e-6 + if inputs.config.softcap.is_some() { 8e-6 } else { 0.0 };
        let goal = relative * scale[j] * slope + half_ulp::<T>(expected[j] * slope) + 1e-40;
        let off = of_goal(found[j], expected[j] * slope, goal);
        assert!(off <= 1.0, "row {r}, column {j}: {} for {}", found[j], expected[j] * slope);
    }
}

fn gradients_off_the_set_are_zero<B: Backend>(backend: &B) {
    let inputs = random_case::<bf16>(15, 5000, &[3, 600, 2048], false).laid_out(3, 5003);
    let found = forward(backend, &inputs, KEPT);
    let up = Upstream { kept: Some(kept_upstream(&mut seeded(16), &found)), ..Upstream::default() };
    for target in [Target::Apart, Target::InPlace] {
        let memory: Vec<bf16> = backward(backend, &inputs, &found.saved, &up, target);
        for (r, row) in gradient_rows(&inputs, &memory).iter().enumerate() {
            let kept: BTreeSet<usize> = support_of(&inputs, r).into_iter().collect();
            assert!((0..5000).filter(|j| !kept.contains(j)).all(|j| row[j] == 0.0));
            assert!(row.iter().filter(|&&g| g != 0.0).count() > kept.len() / 2);
        }
    }
}

/// As its logit is not looked at, under a softcap too, it is no fault either.
fn a_column_off_the_set_has_no_gradient_whatever_it_holds<B: Backend>(backend: &B) {
    for softcap in [None, Some(30.0)] {
        let mut inputs = random_case::<f32>(19, 40, &[3, 5], true);
        inputs.config.softcap = softcap;
        let clean = forward(backend, &inputs, KEPT);
        let up = Upstream { kept: Some(kept_upstream(&mut seeded(20), &clean)), ..Upstream::default() };
        let expected: Vec<f32> = backward(backend, &inputs, &clean.saved, &up, Target::Apart);
        for r in 0..2 {
            let kept: BTreeSet<usize> = support_of(&inputs, r).into_iter().collect();
            for j in (0..40).filter(|j| !kept.contains(j)) {
                inputs.logits[40 * r + j] = [f32::NAN, INF, -INF][j % 3];
            }
        }
        let found = forward(backend, &inputs, KEPT_ALONE);
        assert_eq!((found.fault, &found.kept_logprobs), (None, &clean.kept_logprobs));
        let gradient: Vec<f32> = backward(backend, &inputs, &clean.saved, &up, Target::Apart);
        assert_eq!(gradient, expected);
    }
}

fn faulty_sets_have_no_gradient<B: Backend>(backend: &B) {
    let columns = 2500;
    let mut inputs = random_case::<f32>(17, columns, &[3, 3, 3, 3, 3], true);
    inputs.keep = Some(Keep::of(&[vec![5, 4], vec![5, 4], vec![7, 8], vec![7, 8], vec![7, 8]]));
    for j in [7, 8] {
        inputs.logits[2 * columns + j] = -INF;
        inputs.logits[3 * columns + j] = -INF;
    }
    inputs.tokens = Some(vec![4, 4, 7, 7, 7]);
    let found = forward(backend, &inputs, KEPT);
    let kept = KeptUpstream {
        saved: found.kept_saved,
        logprobs: vec![1.0, 0.0, 1.0, 0.0, f32::NAN],
        entropy: vec![0.0, -0.0, 0.0, 0.0, 0.0],
    };
    let up = Upstream { kept: Some(kept), entropy: Some(vec![1.0; 5]), ..Upstream::default() };
    let memory: Vec<f32> = backward(backend, &inputs, &found.saved, &up, Target::Apart);
    for (r, row) in gradient_rows(&inputs, &memory).iter().enumerate() {
        let nan = [0, 2, 4].contains(&r);
        assert!(row.iter().all(|g| g.is_nan() == nan), "row {r}");
    }
}

// ---- on the host ----------------------------------------------------------------------------------------------------

#[test]
fn sets_are_sorted_on_the_host() {
    let mut ids = vec![5, 3, 9, 2, 7, 1];
    assert_eq!(sort_keep_sets(&mut ids, &[0, 3, 3, 6]), Ok(()));
    assert_eq!(ids, [3, 5, 9, 1, 2, 7]);
    for (offsets, part) in [
        (&[0, 4, 3, 6][..], "offset 2 is 3, needs 4 to 6"),
        (&[1, 3, 3, 6], "offset 0 is 1, needs 0 to 0"),
        (&[0, 3, 3, 5], "end at 5, needs all 6 ids"),
        (&[0, 3, 3, 7], "offset 3 is 7"),
        (&[0, -3, 3, 6], "offset 1 is -3"),
    ] {
        let error = sort_keep_sets(&mut ids.clone(), offsets).expect_err("bad offsets");
        assert!(error.is(Kind::Shape) && error.to_string().contains(part), "{error}");
    }
    let error = sort_keep_sets(&mut [4, 1, 4], &[0, 0, 3]).expect_err("a duplicate");
    assert!(error.to_string().contains("row 1 names token 4 twice"), "{error}");
}

#[test]
fn calls_with_keep_sets_that_do_not_fit_are_refused() {
    let mut inputs = random_case::<f32>(18, 50, &[3, 3], true);
    let refused = |inputs: &Inputs<f32>, asked| try_forward(&moerl::Reference, inputs, asked).expect_err("refused");
    let many = inputs.with_tokens(2, vec![1, 2, 3, 4]);
    assert!(refused(&many, KEPT).is(Kind::KeepSetWithManyIds));
    let unnamed = Inputs { tokens: None, ..inputs.clone() };
    let error = refused(&unnamed, KEPT_ALONE);
    assert!(error.is(Kind::Shape) && error.to_string().contains("kept_logprobs: are asked for"), "{error}");
    inputs.keep = None;
    assert!(refused(&inputs, KEPT).is(Kind::MissingInput));
    inputs.keep = Some(Keep { ids: vec![1], offsets: vec![0, 1] });
    let error = refused(&inputs, KEPT);
    assert!(error.is(Kind::Shape) && error.to_string().contains("kept_offsets: has shape [2], needs [3]"), "{error}");

    let (logits, tokens) = ([0.0_f32; 4], [0_i32; 2]);
    let (ids, offsets) = ([0_i32], [0_i64, 1, 1]);
    // Nobody else knows whether a token has joined its set.
    let (records, ones) = ([bytemuck::Zeroable::zeroed(); 2], [1.0_f32; 2]);
    let mut d_logits = [0.0_f32; 4];
    let gradient = Gradient::Into {
        logits: Matrix::new(&logits[..], 2, 2).unwrap(),
        d_logits: MatrixMut::new(&mut d_logits[..], 2, 2).unwrap(),
    };
    let call = Backward {
        keep: Some(KeepSets { ids: View::from(&ids[..]), offsets: View::from(&offsets[..]) }),
        kept_saved: Some(View::from(&records[..])),
        d_kept_entropy: Some(View::from(&ones[..])),
        ..Backward::new(gradient, View::from(&records[..]))
    };
    let error = moerl::Reference.logprob_backward(&(), &Config::default(), call).expect_err("refused");
    assert!(error.is(Kind::Shape) && error.to_string().contains("d_kept_entropy: are given"), "{error}");

    let mut mass = [0.0_f32; 2];
    let mut call = moerl::logprob::Forward::new(Matrix::new(&logits[..], 2, 2).unwrap());
    call.tokens = Some(Matrix::new(&tokens[..], 2, 1).unwrap());
    call.keep = Some(KeepSets { ids: View::from(&ids[..]), offsets: View::from(&offsets[..]) });
    call.kept_mass = Some((&mut mass[..]).into());
    let error = moerl::Reference.logprob_forward(&(), &Config::default(), call).expect_err("refused");
    assert!(error.is(Kind::MissingInput) && error.to_string().contains("saved"), "{error}");
}
