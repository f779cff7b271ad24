//! Any list of tensors: steps, lengths, types, places and optional arrays in whatever combination, and what must be refused.

use moerl::element::{Element, bf16};
use moerl::ema::{Call, Step, Tensor};
use moerl::memory::ViewMut;
use moerl::{Backend, Reference, Result};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::common::placed::{Place, Placed, Rows, rounded};
use crate::common::property::{for_any, unless_refused};
#[cfg(feature = "emulate")]
use crate::common::schedules::schedules;
use crate::common::{bits, report, seeded};

/// A list and the numbers of a step.
#[derive(Clone, Debug)]
struct List {
    step: Step,
    lens: Vec<usize>,
    /// Of the numbers; see [`List::number`].
    kind: u8,
    /// How likely an element is NaN or infinite.
    bad: f64,
    /// Everything begins at 16 bytes.
    aligned: bool,
    /// Copies, and the count of what is not finite: a bit each.
    wants: u8,
    flaw: Flaw,
    seed: u64,
}

/// What is wrong with one tensor, or with the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    State,
    Copy,
    Initial,
    InitialType,
    ParametersType,
    StateType,
    NarrowState,
    Gaps,
    StateGaps,
    Count,
    Shared,
    Odd,
}

const COPIES: u8 = 1;
const COUNT: u8 = 2;

fn list() -> impl Strategy<Value = List> {
    // Of a vector, a round of a block, a block; several blocks.
    let limits = vec![0, 1, 7, 8, 9, 31, 2047, 2048, 2049, 8191, 8192, 8193, 16_385];
    let lens = prop_oneof![
        12 => vec(prop_oneof![select(limits), 0_usize..70], 0..5),
        // Of a launch, and several launches.
        1 => (select(vec![511_usize, 512, 513, 1025]), 0_usize..3).prop_map(|(n, l)| (0..n).map(|i| (i + l) % 4).collect()),
        1 => Just([vec![0; 512], vec![5, 0]].concat()),
    ];
    let weight = select(vec![1.0, 0.5, 0.1, 1e-3, 1.0 - 0.9999, 1e-9, 1e-40, 1e-60]);
    let scale = select(vec![1.0, 1.0, 1.0 / 0.271, 1e5, -1.0, 0.0, 1e-40, -1.7e38]);
    let bias = select(vec![0.0, 0.5, 1.0, 0.3, -2.0, 1e-40, 1.7e38]);
    let sound = (weight, scale, bias).prop_map(|(weight, scale, bias)| Step { weight, scale, bias });
    let weight = select(vec![0.0, -0.1, 1.0 + 1e-9, f64::NAN, f64::INFINITY, 0.5]);
    let other = || select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.8e38, -1e39, 1.0]);
    let unsound = (weight, other(), other()).prop_map(|(weight, scale, bias)| Step { weight, scale, bias });
    let step = prop_oneof![14 => sound, 1 => unsound];
    let flaws = vec![
        Flaw::State,
        Flaw::Copy,
        Flaw::Initial,
        Flaw::InitialType,
        Flaw::ParametersType,
        Flaw::StateType,
        Flaw::NarrowState,
        Flaw::Gaps,
        Flaw::StateGaps,
        Flaw::Count,
        Flaw::Shared,
        Flaw::Odd,
    ];
    let flaw = prop_oneof![4 => Just(Flaw::Nothing), 1 => select(flaws)];
    let bad = select(vec![0.0, 0.0, 0.01, 0.5]);
    (step, lens, 0_u8..5, bad, any::<bool>(), 0_u8..4, flaw, any::<u64>()).prop_map(
        |(step, lens, kind, bad, aligned, wants, flaw, seed)| List {
            step,
            lens,
            kind,
            bad,
            aligned,
            wants,
            flaw,
            seed,
        },
    )
}

/// One tensor of a list: what it has, where it lies, its numbers.
struct Case {
    element: Element,
    initial_element: Element,
    state_element: Element,
    /// Rows of p, s and p₀.
    rows: [usize; 3],
    /// Elements in front of p, s, p₀ and the copy where not all begin at 16 bytes.
    before: [usize; 4],
    gaps: [usize; 2],
    parameters: Vec<f32>,
    state: Vec<f32>,
    initial: Option<Vec<f32>>,
    /// Its length.
    copy: Option<usize>,
}

impl List {
    fn number(&self, rng: &mut StdRng) -> f32 {
        let extremes = [f32::MAX, -f32::MAX, 1e38, f32::MIN_POSITIVE, 1e-45, -3e-45, 0.0, -0.0, 1.0, 65504.0];
        match self.kind {
            0 => rng.random_range(-2.0..2.0),
            1 => rng.random_range(-8_i32..8) as f32 / 8.0,
            2 => 1.0 + rng.random_range(-4_i32..4) as f32 * f32::EPSILON,
            3 => rng.random_range(-1.0_f32..1.0) * 10f32.powi(rng.random_range(-44..38)),
            _ => extremes[rng.random_range(0..extremes.len())],
        }
    }

    fn cases(&self) -> Vec<Case> {
        let mut rng = seeded(self.seed);
        let flawed = if self.lens.is_empty() { 0 } else { rng.random_range(0..self.lens.len()) };
        let mut case = |(at, &len): (usize, &usize)| {
            let has = |flaw: Flaw| at == flawed && self.flaw == flaw;
            let element = Element::FLOATS[rng.random_range(0..3)];
            let numbers = |rng: &mut StdRng, len: usize, bad: f64| -> Vec<f32> {
                let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                let one = |rng: &mut StdRng| {
                    if rng.random_bool(bad) { few[rng.random_range(0..3)] } else { self.number(rng) }
                };
                (0..len).map(|_| one(rng)).collect()
            };
            let narrow = |values: Vec<f32>| -> Vec<f32> { values.into_iter().map(|x| rounded(element, x)).collect() };
            let has_initial = rng.random_bool(0.4) || has(Flaw::Initial) || has(Flaw::InitialType);
            let has_copy = rng.random_bool(0.7) || has(Flaw::Copy);
            let gap = |flaw| if has(flaw) { 3 } else { 0 };
            let mut rows = [(); 3].map(|()| [1, 2, 4][rng.random_range(0..3)]);
            rows.iter_mut().filter(|rows| !len.is_multiple_of(**rows)).for_each(|rows| *rows = 1);
            rows[2] = if has(Flaw::Initial) { 1 } else { rows[2] };
            rows[1] = if has(Flaw::State) { 1 } else { rows[1] };
            Case {
                element: if has(Flaw::ParametersType) { Element::I32 } else { element },
                initial_element: if has(Flaw::InitialType) { Element::U16 } else { element },
                state_element: match self.flaw {
                    Flaw::StateType if at == flawed => Element::I32,
                    Flaw::NarrowState if at == flawed => Element::Bf16,
                    _ => Element::F32,
                },
                rows,
                before: [(); 4].map(|()| rng.random_range(0..9)),
                gaps: [gap(Flaw::Gaps), gap(Flaw::StateGaps)],
                parameters: narrow(numbers(&mut rng, len, self.bad)),
                state: numbers(&mut rng, len + usize::from(has(Flaw::State)), self.bad / 50.0),
                initial: has_initial
                    .then(|| narrow(numbers(&mut rng, len + 2 * usize::from(has(Flaw::Initial)), self.bad / 2.0))),
                copy: has_copy.then(|| len + usize::from(has(Flaw::Copy))),
            }
        };
        self.lens.iter().enumerate().map(&mut case).collect()
    }

    /// Whether a call must be refused.
    fn is_unlawful(&self, cases: &[Case]) -> bool {
        let Step { weight, scale, bias } = self.step;
        let held = |x: f64| x.abs() <= 1.7e38;
        let of_tensors = match self.flaw {
            Flaw::Nothing => false,
            Flaw::Count => self.wants & COUNT != 0,
            // Rows that have gaps are two or more.
            Flaw::Gaps => cases.iter().any(|case| case.gaps[0] > 0 && case.rows[0] > 1 && !case.parameters.is_empty()),
            Flaw::StateGaps => cases.iter().any(|case| case.gaps[1] > 0 && case.rows[1] > 1 && !case.state.is_empty()),
            // Nothing shares no memory.
            Flaw::Shared => self.lens.first().is_some_and(|&len| len > 0),
            _ => !cases.is_empty(),
        };
        !(weight > 0.0 && weight <= 1.0 && held(scale) && held(bias)) || of_tensors
    }
}

/// A tensor in a backend's memory.
struct Arrays<B: Backend> {
    parameters: Rows<B>,
    state: Rows<B>,
    initial: Option<Rows<B>>,
    copy: Option<Placed<B, bf16>>,
}

impl<B: Backend> Arrays<B> {
    fn new(backend: &B, stream: &B::Stream, case: &Case, state: &[f32], before: [usize; 4]) -> Arrays<B> {
        let rows = |element, rows: usize, before, gap, values: &[f32]| {
            let shape = [rows, values.len() / rows];
            Rows::new(backend, stream, element, Place { before, gap }, shape, Some(values))
        };
        Arrays {
            parameters: rows(case.element, case.rows[0], before[0], case.gaps[0], &case.parameters),
            state: rows(case.state_element, case.rows[1], before[1], case.gaps[1], state),
            initial: case.initial.as_ref().map(|x| rows(case.initial_element, case.rows[2], before[2], 0, x)),
            copy: case.copy.map(|len| Placed::output(backend, stream, before[3], len)),
        }
    }
    fn tensor(&mut self, with_copy: bool) -> Tensor<'_, B::Memory> {
        Tensor {
            copy: self.copy.as_mut().filter(|_| with_copy).map(Placed::view_mut),
            initial: self.initial.as_ref().map(Rows::matrix),
            ..Tensor::new(self.parameters.matrix(), self.state.matrix_mut())
        }
    }
}

/// What a call left: states, copies, and how many elements were not finite.
#[derive(Clone, Debug)]
struct Found {
    states: Vec<Vec<f32>>,
    copies: Vec<Option<Vec<bf16>>>,
    count: u64,
}

/// A step from these states.
fn run<B: Backend>(backend: &B, list: &List, cases: &[Case], wants: u8, aligned: bool, from: &Found) -> Result<Found> {
    let stream = backend.stream()?;
    let before = |case: &Case| if aligned { [0; 4] } else { case.before };
    let place = |(case, state): (&Case, &Vec<f32>)| Arrays::new(backend, &stream, case, state, before(case));
    let mut arrays: Vec<Arrays<B>> = cases.iter().zip(&from.states).map(place).collect();
    let mut count = Placed::<B, u64>::new(backend, &stream, Place { before: 1, gap: 0 }, 1, &[from.count]);
    let mut two = Placed::<B, u64>::output(backend, &stream, 0, 2);
    let counted = if list.flaw == Flaw::Count { &mut two } else { &mut count };
    let mut tensors: Vec<_> = arrays.iter_mut().map(|arrays| arrays.tensor(wants & COPIES != 0)).collect();
    if let (Some(tensor), Flaw::Shared | Flaw::Odd) = (tensors.first_mut(), list.flaw) {
        let address = tensor.parameters.address() + usize::from(list.flaw == Flaw::Odd);
        // SAFETY: the call is refused before anything looks there, or there is nothing to look at.
        tensor.copy =
            Some(unsafe { ViewMut::from_raw(address, tensor.parameters.rows() * tensor.parameters.columns()) });
    }
    let nonfinite = (wants & COUNT != 0).then(|| counted.view_mut());
    backend.ema(&stream, &list.step, Call { tensors: &mut tensors, nonfinite })?;
    for array in &arrays {
        array.parameters.read("parameters", backend, &stream);
    }
    Ok(Found {
        states: arrays.iter().map(|array| array.state.read("state", backend, &stream)).collect(),
        copies: arrays
            .iter()
            .map(|array| array.copy.as_ref().map(|copy| copy.read("copy", backend, &stream)))
            .collect(),
        count: count.read("nonfinite", backend, &stream)[0],
    })
}

/// Half a unit of f32's last place.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;
/// Half of its smallest number.
const LEAST: f64 = 7.1e-46;

/// `error`, but for a number that f32 holds no digits of.
fn of_factor(factor: f64, times: f64) -> f64 {
    let lost = if factor.abs() < f64::from(f32::MIN_POSITIVE) { LEAST } else { HALF_UNIT * factor.abs() };
    lost * times.abs()
}

/// Element `i` of a tensor after a step from `from`, against the reference's and the copy's formula.
fn assert_element(step: &Step, case: &Case, from: f32, i: usize, found: (f32, Option<bf16>), expected: f32) -> bool {
    let p = f64::from(case.parameters[i]);
    let before = case.initial.as_ref().map(|initial| f64::from(initial[i]));
    let is_sound = p.is_finite() && before.is_none_or(f64::is_finite);
    let (state, from) = (f64::from(found.0), f64::from(from));
    let is_same = bits(&[found.0]) == bits(&[expected]) || (found.0.is_nan() && expected.is_nan());
    if !is_same {
        assert!(is_sound, "an element that is not finite moved the average from {from} to {state}");
        let (expected, moved) = (f64::from(expected), step.weight * (p - from));
        // Rounded are the difference and its weight, and then the sum on both sides.
        let tolerance =
            HALF_UNIT * (1.01 * moved.abs() + 2.0 * expected.abs()) + of_factor(step.weight, p - from) + 4.0 * LEAST;
        // Infinite is what rounds to 2¹²⁸.
        let error = (state.clamp(-128f64.exp2(), 128f64.exp2()) - expected).abs();
        let share = report::see(0, "state", "any", error, tolerance);
        assert!(share <= 1.0, "{from} and {p} make {state} not {expected}: {share} of the tolerance");
    }
    let Some(copy) = found.1.map(bf16::to_f32) else { return is_sound };
    let away = before.filter(|_| is_sound).map(|before| p - before);
    let (out, tolerance) = match away {
        // The difference, its weight and the sum; half a difference may be less than f32's smallest number.
        Some(away) => {
            let (of_bias, out) = (step.bias * away, step.bias * away + state);
            (
                out,
                HALF_UNIT * (1.01 * of_bias.abs() + out.abs())
                    + of_factor(step.bias, away)
                    + 4.0 * LEAST * step.bias.abs(),
            )
        }
        None => (step.scale * state, HALF_UNIT * (step.scale * state).abs() * 1.01 + of_factor(step.scale, state)),
    };
    if out.is_finite() {
        // Rounding keeps order: what lies within the tolerance lies, as bf16, between what its ends become.
        let end = |x: f64| bf16::from_f32(x as f32).to_f32();
        let (low, high) = (end(out - tolerance - 4.0 * LEAST), end(out + tolerance + 4.0 * LEAST));
        assert!(low <= copy && copy <= high, "the copy of {state} is {copy}, not in {low}..={high}");
    } else {
        assert!(f64::from(copy) == out || (copy.is_nan() && out.is_nan()), "the copy of {state} is {copy}");
    }
    is_sound
}

fn assert_agrees(list: &List, cases: &[Case], from: &Found, found: &Found, expected: &Found) {
    let mut lost = 0;
    for (t, case) in cases.iter().enumerate() {
        for i in 0..case.parameters.len() {
            let copy = found.copies[t].as_ref().map(|copy| copy[i]);
            let after = (found.states[t][i], copy);
            lost += u64::from(!assert_element(&list.step, case, from.states[t][i], i, after, expected.states[t][i]));
        }
    }
    assert_eq!((found.count, expected.count), (from.count + lost, from.count + lost));
}

fn all_bits(found: &Found) -> Vec<Vec<u32>> {
    found.states.iter().map(|state| crate::common::canonical(state).collect()).collect()
}

pub fn any_list_is_the_reference_s<B: Backend>(backend: &B) {
    for_any(150, &list(), |list| {
        let cases = list.cases();
        let states = cases.iter().map(|case| case.state.clone()).collect();
        let mut from = Found { states, copies: vec![], count: 5 };
        let every = COPIES | COUNT;
        let every = if list.flaw == Flaw::Count { list.wants } else { every };
        let calls = [(); 2].map(|()| {
            let (found, expected) = unless_refused(
                run(backend, list, &cases, every, list.aligned, &from),
                run(&Reference, list, &cases, every, list.aligned, &from),
            )?;
            if every & COUNT != 0 {
                assert_agrees(list, &cases, &from, &found, &expected);
            }
            from = found.clone();
            Some(found)
        });
        let is_refused = calls[0].is_none();
        assert_eq!(is_refused, list.is_unlawful(&cases), "{}", if is_refused { "refused" } else { "not refused" });
        let [Some(first), _] = calls else { return };
        let states = cases.iter().map(|case| case.state.clone()).collect();
        let from = Found { states, copies: vec![], count: 5 };
        // Fewer outputs, and every array somewhere else.
        let other = run(backend, list, &cases, list.wants, !list.aligned, &from).unwrap();
        assert_eq!(all_bits(&other), all_bits(&first), "other bits");
        if list.wants & COPIES != 0 {
            let same = |(a, b): (&bf16, &bf16)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            let pairs = other.copies.iter().flatten().zip(first.copies.iter().flatten());
            assert!(pairs.into_iter().all(|(a, b)| a.iter().zip(b).all(same)), "other bits in the copy");
        }
        assert_eq!(other.count, if list.wants & COUNT != 0 { first.count } else { 5 });
    });
    report::print("ema", backend.name());
}

#[cfg(feature = "emulate")]
#[test]
fn any_schedule_gives_the_same_averages() {
    for_any(30, &list(), |list| {
        let cases = list.cases();
        let states = cases.iter().map(|case| case.state.clone()).collect();
        let from = Found { states, copies: vec![], count: 5 };
        let run = |emulator: &moerl::Emulator| run(emulator, list, &cases, COUNT, list.aligned, &from);
        let Ok(expected) = run(&moerl::Emulator::new()) else { return };
        let other = schedules().nth(list.seed as usize % 4).unwrap();
        let found = run(&other).unwrap();
        assert_eq!((all_bits(&found), found.count), (all_bits(&expected), expected.count), "{other:?}");
    });
}
