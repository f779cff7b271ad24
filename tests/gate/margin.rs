//! Ids against the reference's. Where experts are chosen by sums in f32 (a bias, groups by their sum), two that f64 tells apart by less
//! than 2⁻²⁰ may change places: such rows are compared by what they were chosen by, and must be few.

use moerl::element::Float;
use moerl::gate::{Config, Score};

use crate::common::report;
use crate::harness::Problem;

/// What f32 arithmetic may move a selection value by.
fn near(c: f64) -> f64 {
    2f64.powi(-20) * c.abs().max(1.0)
}

/// What every expert of a row is chosen by, in f64.
fn selection_values<T: Float>(problem: &Problem<T>, t: usize) -> Vec<f64> {
    let Config { score, softcap, .. } = problem.config;
    let x: Vec<f64> = problem.logits_of(t).iter().map(|x| f64::from(x.to_f32())).collect();
    let x: Vec<f64> = match softcap {
        Some(cap) => x.iter().map(|x| f64::from(cap) * (x / f64::from(cap)).tanh()).collect(),
        None => x,
    };
    // Of those that are numbers.
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().filter(|x| !x.is_nan()).map(|x| (x - max).exp()).sum();
    let lse = if max.is_infinite() { max } else { max + sum.ln() };
    x.iter()
        .enumerate()
        .map(|(e, &x)| {
            let s = match score {
                Score::Softmax | Score::SoftmaxSelected => (x - lse).exp(),
                Score::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                Score::SqrtSoftplus => (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt(),
                _ => x,
            };
            s + problem.bias.as_ref().map_or(0.0, |bias| f64::from(bias[e]))
        })
        .collect()
}

/// `values` from the largest to the smallest, NaN as −∞.
fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f64::NEG_INFINITY);
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// The scores of the groups, and which experts those that are admitted have.
fn groups<T: Float>(problem: &Problem<T>, c: &[f64]) -> Option<(Vec<f64>, usize)> {
    let groups = problem.config.groups?;
    let top = groups.top.unwrap_or(problem.k / groups.admitted);
    let score = |group: &[f64]| sorted(group.to_vec())[..top].iter().sum();
    Some((c.chunks(c.len() / groups.count).map(score).collect(), groups.admitted))
}

/// The distance from the last that is taken to the first that is not; infinite where all are.
fn gap(values: Vec<f64>, taken: usize) -> (f64, f64) {
    let values = sorted(values);
    (values.get(taken).map_or(f64::INFINITY, |next| values[taken - 1] - next), values[taken - 1])
}

/// Whether a row's choice hangs on less than f32 can tell.
fn is_near<T: Float>(problem: &Problem<T>, c: &[f64]) -> bool {
    let mut admitted = c.to_vec();
    if let Some((scores, taken)) = groups(problem, c) {
        let (distance, last) = gap(scores.clone(), taken);
        if distance < near(last) {
            return true;
        }
        let size = c.len() / scores.len();
        admitted = (0..c.len()).filter(|e| scores[e / size] >= last).map(|e| c[e]).collect();
    }
    // Also among the chosen: slots are in the order of the values.
    let admitted = sorted(admitted);
    let taken = (problem.k + 1).min(admitted.len());
    admitted[..taken].windows(2).any(|pair| pair[0] - pair[1] < near(pair[0]))
}

/// Whether f32 may choose other experts for this row than f64 does.
pub fn is_undecided<T: Float>(problem: &Problem<T>, t: usize) -> bool {
    let by_sums = problem.bias.is_some() || problem.config.groups.is_some();
    by_sums && is_near(problem, &selection_values(problem, t))
}

/// Whether a row's ids are the expected ones up to what f32 cannot tell.
pub fn is_choice_of<T: Float>(problem: &Problem<T>, t: usize, found: &[i32], expected: &[i32]) -> bool {
    let by_sums = problem.bias.is_some() || problem.config.groups.is_some();
    let c = selection_values(problem, t);
    if found == expected || !by_sums || !is_near(problem, &c) {
        return found == expected;
    }
    let values = |ids: &[i32]| sorted(ids.iter().map(|&e| c[e as usize]).collect());
    let same_values = values(found).iter().zip(values(expected)).all(|(a, b)| *a == b || (a - b).abs() <= near(b));
    let of_groups = groups(problem, &c).is_some_and(|(scores, taken)| {
        let (distance, last) = gap(scores, taken);
        distance < near(last)
    });
    same_values || of_groups
}

/// Asserts that the ids of every row are the expected ones, up to what f32 cannot tell.
pub fn assert_ids<T: Float>(name: &str, problem: &Problem<T>, found: &[i32], expected: &[i32]) {
    let mut by_value = 0;
    for (t, (found, expected)) in found.chunks_exact(problem.k).zip(expected.chunks_exact(problem.k)).enumerate() {
        assert!(
            is_choice_of(problem, t, found, expected),
            "{name}, row {t}: {found:?}, not {expected:?}, which are apart"
        );
        by_value += usize::from(found != expected);
    }
    let rows = problem.tokens;
    assert!(by_value * 1000 <= rows.max(1000), "{name}: {by_value} of {rows} rows are near a tie");
    report::count(2, rows - by_value);
}

#[test]
fn experts_nearer_than_f32_can_tell_may_change_places() {
    let biased = Config { needs_selection_bias: true, ..Config::sigmoid(2) };
    let problem = Problem {
        bias: Some(vec![1.0, 1.0 + f32::EPSILON, 0.0, 3.0]),
        ..Problem::<f32>::new(biased, 4, 2, vec![0.0; 4])
    };
    assert_ids("near", &problem, &[3, 0], &[3, 1]);
}

#[test]
#[should_panic(expected = "which are apart")]
fn experts_that_are_apart_may_not() {
    let biased = Config { needs_selection_bias: true, ..Config::sigmoid(2) };
    let bias = Some(vec![1.0, 1.001, 0.0, 3.0]);
    assert_ids("apart", &Problem { bias, ..Problem::<f32>::new(biased, 4, 2, vec![0.0; 4]) }, &[3, 0], &[3, 1]);
}
