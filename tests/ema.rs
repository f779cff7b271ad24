//! Moving averages: what every backend must agree on.

#[path = "ema/any.rs"]
mod any;
mod common;

use any::*;
use approx::assert_abs_diff_eq;
use half::{bf16, f16};
use moerl::element::Float;
use moerl::ema::{Bema, Call, Debias, Step, Tensor};
use moerl::error::Kind;
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Reference};
use rand::RngExt;

on_every_backend!(
    three_steps_give_the_values_of_the_table,
    an_average_that_began_at_the_parameters_needs_no_debiasing,
    bema_adds_a_share_of_the_lag,
    lists_of_every_type_and_length_agree_with_the_reference,
    elements_that_are_not_finite_leave_the_average_as_it_is,
    unaligned_tensors_give_the_same_bits,
    states_of_16_bits_are_refused,
    faults_of_a_list_are_listed_together,
    a_copy_is_rounded_to_the_nearest,
    opposite_ends_of_f32_are_no_further_apart_than_it_goes,
    numbers_of_a_step_that_f32_cannot_weigh_by_are_refused,
    any_list_is_the_reference_s,
);

/// One tensor in ordinary memory, and what a step makes of it.
#[derive(Clone, Debug)]
struct Case<T> {
    parameters: Vec<T>,
    state: Vec<f32>,
    initial: Option<Vec<T>>,
}

impl<T: Float> Case<T> {
    fn random(len: usize, seed: u64) -> Case<T> {
        let mut rng = common::seeded(seed);
        Case {
            parameters: (0..len).map(|_| T::from_f32(rng.random_range(-2.0..2.0))).collect(),
            state: (0..len).map(|_| rng.random_range(-2.0..2.0)).collect(),
            initial: None,
        }
    }

    fn with_initial(mut self, seed: u64) -> Case<T> {
        self.initial = Some(Case::random(self.parameters.len(), seed).parameters);
        self
    }
}

/// In a backend's memory, `skip` elements behind the beginning of each array.
struct Uploaded<B: Backend, T: Float> {
    parameters: B::Buffer<T>,
    state: B::Buffer<f32>,
    initial: Option<B::Buffer<T>>,
    copy: B::Buffer<bf16>,
    skip: usize,
    len: usize,
}

impl<B: Backend, T: Float> Uploaded<B, T> {
    fn new(backend: &B, stream: &B::Stream, case: &Case<T>, skip: usize) -> Uploaded<B, T> {
        let shifted =
            |values: &[T]| backend.upload(stream, &[vec![T::from_f32(0.0); skip], values.to_vec()].concat()).unwrap();
        Uploaded {
            parameters: shifted(&case.parameters),
            state: backend.upload(stream, &[vec![0.0; skip], case.state.clone()].concat()).unwrap(),
            initial: case.initial.as_deref().map(shifted),
            copy: backend.upload(stream, &vec![bf16::NAN; skip + case.state.len()]).unwrap(),
            skip,
            len: case.parameters.len(),
        }
    }

    fn tensor(&mut self) -> Tensor<'_, B::Memory> {
        let range = self.skip..self.skip + self.len;
        let parameters = self.parameters.view().slice(range.clone());
        Tensor {
            copy: Some(self.copy.view_mut().slice(range.clone())),
            initial: self
                .initial
                .as_ref()
                .map(|initial| Matrix::new(initial.view().slice(range.clone()), 1, self.len).unwrap()),
            ..Tensor::new(
                Matrix::new(parameters, 1, self.len).unwrap(),
                MatrixMut::new(self.state.view_mut().slice(range), 1, self.len).unwrap(),
            )
        }
    }

    fn download(&self, backend: &B, stream: &B::Stream) -> (Vec<f32>, Vec<bf16>) {
        let range = self.skip..self.skip + self.len;
        (
            backend.download(stream, self.state.view().slice(range.clone())).unwrap(),
            backend.download(stream, self.copy.view().slice(range)).unwrap(),
        )
    }
}

/// One step of one tensor: the state, the copy, the elements that were not finite.
fn run<B: Backend, T: Float>(backend: &B, step: &Step, case: &Case<T>, skip: usize) -> (Vec<f32>, Vec<bf16>, u64) {
    let stream = backend.stream().unwrap();
    let mut on_device = Uploaded::new(backend, &stream, case, skip);
    let mut nonfinite = backend.allocate::<u64>(&stream, 1).unwrap();
    let call = Call { tensors: &mut [on_device.tensor()], nonfinite: Some(nonfinite.view_mut()) };
    backend.ema(&stream, step, call).unwrap();
    let (state, copy) = on_device.download(backend, &stream);
    (state, copy, backend.download(&stream, nonfinite.view()).unwrap()[0])
}

fn three_steps_give_the_values_of_the_table<B: Backend>(backend: &B) {
    let mut average = Debias::new();
    let mut case = Case { parameters: vec![1.0_f32; 3], state: vec![0.0; 3], initial: None };
    for expected in [0.1, 0.19, 0.271] {
        let (state, copy, _) = run(backend, &average.step(0.9).unwrap(), &case, 0);
        // f32 of a value that f64 has to 1e-16.
        assert!(state.iter().all(|s| (f64::from(*s) - expected).abs() < 1e-7), "{state:?}");
        assert_eq!(copy, [bf16::ONE; 3], "debiased");
        case.state = state;
    }
    assert_abs_diff_eq!(average.scale(), 1.0 / 0.271, epsilon = 1e-12);
}

fn an_average_that_began_at_the_parameters_needs_no_debiasing<B: Backend>(backend: &B) {
    let case = Case { parameters: vec![0.3_f32; 5], state: vec![0.3; 5], initial: None };
    let (state, copy, _) = run(backend, &Step::new(0.999).unwrap(), &case, 0);
    assert_eq!((state, copy), (vec![0.3; 5], vec![bf16::from_f32(0.3); 5]));
    let (state, _, _) = run(backend, &Step::new(0.0).unwrap(), &Case { state: vec![0.25; 5], ..case }, 0);
    assert_eq!(state, [0.3; 5]);
}

fn bema_adds_a_share_of_the_lag<B: Backend>(backend: &B) {
    let bema = Bema { ema_power: 1.0, bias_power: 0.5, lag: 1.0, multiplier: 1.0 };
    // τ = 4: e = 1/4, a = 1/2; s = 3/4 · 1 + 1/4 · 2 = 1.25; out = 1/2 (2 − 0.5) + 1.25 = 2.
    let case = Case { parameters: vec![2.0_f32], state: vec![1.0], initial: Some(vec![0.5]) };
    let (state, copy, _) = run(backend, &bema.step(3).unwrap(), &case, 0);
    assert_eq!((state, copy), (vec![1.25], vec![bf16::from_f32(2.0)]));
    assert!(Bema { lag: 0.5, ..bema }.step(0).unwrap_err().is(Kind::Config));
    // With its defaults the first weight is 10^−½.
    assert_abs_diff_eq!(Bema::default().step(0).unwrap().weight, 0.1_f64.sqrt(), epsilon = 1e-15);
}

fn agrees<B: Backend, T: Float>(backend: &B, step: &Step, case: &Case<T>) {
    let (state, copy, lost) = run(backend, step, case, 0);
    let (expected, expected_copy, expected_lost) = run(&Reference, step, case, 0);
    let expected: Vec<f64> = expected.iter().map(|&s| f64::from(s)).collect();
    // The difference p − s is rounded to f32 before it is weighed, 2⁻²⁴ of up to 4; so is the result.
    let worst = common::worst(&state, &expected, 2.5e-7, 1.2e-7);
    assert!(worst <= 1.0, "{worst}");
    let copies: Vec<f32> = copy.iter().map(|c| c.to_f32()).collect();
    let expected: Vec<f64> = expected_copy.iter().map(|c| c.to_f64()).collect();
    // A tie may fall to either side: one unit of bf16's last place.
    assert!(common::worst(&copies, &expected, 1e-6, 7.9e-3) <= 1.0);
    assert_eq!(lost, expected_lost);
}

fn lists_of_every_type_and_length_agree_with_the_reference<B: Backend>(backend: &B) {
    let steps = [Step::new(0.99).unwrap(), Bema::default().step(5).unwrap()];
    for (len, step) in [0, 1, 7, 8, 9, 8192, 20_011].into_iter().flat_map(|len| steps.map(|step| (len, step))) {
        agrees(backend, &step, &Case::<f32>::random(len, 1));
        agrees(backend, &step, &Case::<bf16>::random(len, 2).with_initial(3));
        agrees(backend, &step, &Case::<f16>::random(len, 4));
    }
    // A list in one call is its tensors one by one, bit for bit.
    let stream = backend.stream().unwrap();
    let step = steps[0];
    let lengths = [8192, 1, 0, 40, 16_500, 7, 8193];
    let cases: Vec<Case<bf16>> = lengths.iter().map(|&len| Case::random(len, len as u64)).collect();
    let mut on_device: Vec<Uploaded<B, bf16>> =
        cases.iter().map(|case| Uploaded::new(backend, &stream, case, 0)).collect();
    let other = Case::<f32>::random(3000, 77);
    let mut other_on_device = Uploaded::new(backend, &stream, &other, 0);
    let mut tensors: Vec<_> = on_device.iter_mut().map(Uploaded::tensor).collect();
    tensors.push(other_on_device.tensor());
    backend.ema(&stream, &step, Call { tensors: &mut tensors, nonfinite: None }).unwrap();
    for (case, found) in cases.iter().zip(&on_device) {
        let (state, copy, _) = run(backend, &step, case, 0);
        let found = found.download(backend, &stream);
        assert_eq!((common::bits(&found.0), found.1), (common::bits(&state), copy));
    }
    assert_eq!(other_on_device.download(backend, &stream).0, run(backend, &step, &other, 0).0);
}

fn elements_that_are_not_finite_leave_the_average_as_it_is<B: Backend>(backend: &B) {
    let step = Step::new(0.9).unwrap();
    let mut case = Case::<bf16>::random(3000, 5);
    for (index, value) in [(0, bf16::NAN), (1234, bf16::INFINITY), (2999, bf16::NEG_INFINITY)] {
        case.parameters[index] = value;
    }
    let (state, copy, lost) = run(backend, &step, &case, 0);
    assert_eq!(lost, 3);
    for index in [0, 1234, 2999] {
        assert_eq!(state[index].to_bits(), case.state[index].to_bits());
        assert_eq!(copy[index], bf16::from_f32(case.state[index]));
    }
    assert!(state.iter().all(|s| s.is_finite()));
    agrees(backend, &step, &case.with_initial(6));
}

fn unaligned_tensors_give_the_same_bits<B: Backend>(backend: &B) {
    let step = Step::new(0.9).unwrap();
    let case = Case::<bf16>::random(9000, 7);
    let (state, copy, _) = run(backend, &step, &case, 0);
    for skip in [1, 3, 8] {
        let found = run(backend, &step, &case, skip);
        assert_eq!((common::bits(&found.0), &found.1), (common::bits(&state), &copy), "{skip}");
    }
}

fn states_of_16_bits_are_refused<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let parameters = backend.upload(&stream, &[bf16::ONE; 4]).unwrap();
    let mut state = backend.upload(&stream, &[bf16::ONE; 4]).unwrap();
    let tensor =
        Tensor::new(Matrix::new(parameters.view(), 2, 2).unwrap(), MatrixMut::new(state.view_mut(), 2, 2).unwrap());
    let call = Call { tensors: &mut [tensor], nonfinite: None };
    let error = backend.ema(&stream, &Step::new(0.999).unwrap(), call).unwrap_err();
    assert!(error.is(Kind::EmaStateTooNarrow), "{error}");
    for decay in [1.0, -0.1, f64::NAN, f64::INFINITY] {
        let error = Step::new(decay).unwrap_err();
        assert!(error.is(Kind::Config) && error.to_string().contains(&decay.to_string()), "{error}");
        assert!(Debias::new().step(decay).is_err());
    }
}

fn faults_of_a_list_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let parameters = backend.upload(&stream, &[1.0_f32; 6]).unwrap();
    let integers = backend.upload(&stream, &[1_i32; 4]).unwrap();
    let mut states = [(); 2].map(|()| backend.upload(&stream, &[1.0_f32; 4]).unwrap());
    let [a, b] = &mut states;
    let gaps =
        Tensor::new(Matrix::strided(parameters.view(), 2, 2, 3).unwrap(), MatrixMut::new(a.view_mut(), 1, 4).unwrap());
    let wrong = Tensor::new(Matrix::new(integers.view(), 1, 3).unwrap(), MatrixMut::new(b.view_mut(), 1, 4).unwrap());
    let step = Step { weight: 0.0, scale: f64::INFINITY, bias: 0.0 };
    let error = backend.ema(&stream, &step, Call { tensors: &mut [gaps, wrong], nonfinite: None }).unwrap_err();
    for part in [
        "weight: is 0",
        "scale: is inf",
        "parameters: of tensor 0 has gaps: rows of 2 every 3",
        "parameters: of tensor 1 are i32",
        "state: of tensor 1 has 4 elements, needs 3",
    ] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}

fn a_copy_is_rounded_to_the_nearest<B: Backend>(backend: &B) {
    // Just above and just below the middle of two bf16, 1.234375 and 1.2421875: f32 sees it in its last bits.
    let middle = 1.0 + 61.0 / 256.0_f32;
    let states = [middle.next_down(), middle, middle.next_up(), 1.238_281_7];
    let case = Case { parameters: states.to_vec(), state: states.to_vec(), initial: None };
    let (_, copy, _) = run(backend, &Step::new(0.5).unwrap(), &case, 0);
    let copy: Vec<f32> = copy.iter().map(|c| c.to_f32()).collect();
    assert_eq!(copy, [1.234_375, 1.234_375, 1.242_187_5, 1.242_187_5]);
}

fn opposite_ends_of_f32_are_no_further_apart_than_it_goes<B: Backend>(backend: &B) {
    let (most, large) = (f32::MAX, 127f32.exp2());
    let step = Step { weight: 0.5, scale: 1.0, bias: -0.25 };
    let case = Case { parameters: vec![most, -most, large], state: vec![-most, most, -large / 2.0], initial: None };
    let (state, copy, lost) = run(backend, &step, &case, 0);
    assert_eq!((state, lost), (vec![0.0, 0.0, large / 4.0], 0));
    assert_eq!(copy, [0.0, 0.0, large / 4.0].map(bf16::from_f32));
    let case = Case { parameters: vec![large], state: vec![large], initial: Some(vec![-large]) };
    let (state, copy, _) = run(backend, &step, &case, 0);
    assert_eq!((state, copy), (vec![large], vec![bf16::from_f32(large / 2.0)]));
    // Where p − p₀ weighs nothing, the copy is of the average.
    let (_, copy, _) = run(backend, &Step { bias: 0.0, ..step }, &case, 0);
    assert_eq!(copy, [bf16::from_f32(large)]);
}

fn numbers_of_a_step_that_f32_cannot_weigh_by_are_refused<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let step = Step { weight: 0.5, scale: 1.7e38, bias: -1.7e38 };
    for (step, refused) in [
        (step, &[][..]),
        (Step { scale: 1e39, ..step }, &["scale: is 1"]),
        (Step { bias: -1e300, ..step }, &["bias: is -1"]),
        (Step { scale: f64::NAN, bias: f64::INFINITY, ..step }, &["scale: is NaN", "bias: is inf"]),
    ] {
        let found = backend.ema(&stream, &step, Call { tensors: &mut [], nonfinite: None });
        let text = found.map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(text.is_empty(), refused.is_empty(), "{step:?}: {text}");
        assert!(refused.iter().all(|part| text.contains(part)), "{step:?}: {text}");
    }
}

#[cfg(feature = "emulate")]
#[test]
fn a_list_is_one_launch_that_reads_and_writes_every_element_once() {
    let emulator = moerl::Emulator::new().metered();
    let cases: Vec<Case<bf16>> = [8192, 16_500, 40].iter().map(|&len| Case::random(len, 1)).collect();
    let mut on_device: Vec<_> = cases.iter().map(|case| Uploaded::new(&emulator, &(), case, 0)).collect();
    let mut tensors: Vec<_> = on_device.iter_mut().map(Uploaded::tensor).collect();
    emulator.ema(&(), &Step::new(0.9).unwrap(), Call { tensors: &mut tensors, nonfinite: None }).unwrap();
    let launches = emulator.take_traffic();
    assert_eq!(launches.len(), 1);
    let total = |name: &str, of: fn(&moerl::device::emulator::BufferTraffic) -> u64| -> u64 {
        launches[0].buffers.iter().filter(|buffer| buffer.name == name).map(of).sum()
    };
    let elements = 8192 + 16_500 + 40;
    assert_eq!(total("parameters", |buffer| buffer.loads.bytes), 2 * elements);
    assert_eq!(total("state", |buffer| buffer.loads.bytes), 4 * elements);
    assert_eq!(total("state", |buffer| buffer.stores.once), 4 * elements);
    assert_eq!(total("copy", |buffer| buffer.stores.once), 2 * elements);
}
