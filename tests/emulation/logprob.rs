//! Log-probability kernels broken on purpose: what the suites compare must tell each of them from the healthy one.

use bytemuck::Pod;
use moerl::device::emulator::{EmulatorBuffer, Schedule};
use moerl::device::executor::{Arguments, Executor, Grid, Kernel, Parameters, Product};
use moerl::logprob::{Backward, Config, Forward, Gradient, Partial};
use moerl::memory::{Host, Matrix, MatrixMut, View, ViewMut};
use moerl::{Backend, Emulator, Error, Reference};

use crate::harness::{self, noise, sanitizer};

/// A variant of tests/emulation/logprob.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Variant {
    Healthy = 0,
    MaximumFromZero = 1,
    OrderOfArrival = 2,
    NarrowOffset = 3,
    PeeledByAddress = 4,
    NegativeZero = 5,
    MinimumBeforeClamp = 6,
    ZeroByLogprobAlone = 7,
    LabelAfterStore = 8,
}
use Variant::*;

impl Variant {
    fn config(self) -> Config {
        Config { ignore_index: -100 - self as i64, ..Config::default() }
    }
}

/// Launches the kernels of this test where the shipped ones are asked for.
struct Broken(Emulator);

fn emulator() -> Broken {
    Broken(harness::emulator())
}

impl Executor for Broken {
    type Memory = Host;
    type Stream = ();
    type Buffer<T: Pod + Send + Sync> = EmulatorBuffer<T>;

    const ALIAS: usize = <Emulator as Executor>::ALIAS;
    const NAME: &'static str = "broken";

    fn new_stream(&self) -> Result<(), Error> {
        self.0.new_stream()
    }
    fn wait(&self, (): &()) -> Result<(), Error> {
        self.0.wait(&())
    }
    fn zeros<T: Pod + Send + Sync>(&self, (): &(), len: usize) -> Result<EmulatorBuffer<T>, Error> {
        self.0.zeros(&(), len)
    }
    fn send<T: Pod + Send + Sync>(&self, (): &(), data: &[T]) -> Result<EmulatorBuffer<T>, Error> {
        self.0.send(&(), data)
    }
    fn fetch<T: Pod + Send + Sync>(&self, (): &(), array: View<'_, T, Host>) -> Result<Vec<T>, Error> {
        self.0.fetch(&(), array)
    }
    fn set_bytes<T: Pod>(&self, (): &(), array: ViewMut<'_, T, Host>, byte: u8) -> Result<(), Error> {
        self.0.set_bytes(&(), array, byte)
    }
    fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors()
    }
    fn multiply(&self, (): &(), product: Product<'_, Host>) -> Result<(), Error> {
        self.0.multiply(&(), product)
    }
    unsafe fn launch<P: Parameters>(
        &self,
        (): &(),
        kernel: Kernel,
        grid: Grid,
        arguments: &Arguments,
        params: &P,
    ) -> Result<(), Error> {
        let name = match kernel.name {
            "logprob_forward_f32" => "broken_logprob_forward_f32",
            "logprob_backward_f32" => "broken_logprob_backward_f32",
            other => panic!("{other} has no counterpart here"),
        };
        // SAFETY: the counterpart takes the same parameters.
        unsafe { self.0.launch(&(), Kernel { image: "tests", name }, grid, arguments, params) }
    }
}

fn normal_like(seed: u64, len: usize) -> Vec<f32> {
    let mut noise = noise(seed);
    let mut uniform = || (noise() >> 40) as f32 / (1u64 << 24) as f32;
    (0..len).map(|_| (uniform() + uniform() + uniform() - 1.5) * 6.0).collect()
}

/// Log-probabilities, entropies and records of rows of a view.
type Found = (Vec<f32>, Vec<f32>, Vec<Partial>);

fn forward<B: Backend<Memory = Host, Stream = ()>>(
    backend: &B,
    config: &Config,
    logits: Matrix<'_, Host>,
    tokens: &[i32],
) -> Result<Found, Error> {
    let rows = tokens.len();
    let (mut logprobs, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
    let mut saved = vec![Partial { max_logit: 0.0, sum: 0.0, weighted: 0.0, label: 0.0 }; rows];
    let mut call = Forward::new(logits);
    call.tokens = Some(Matrix::new(tokens, rows, 1)?);
    call.logprobs = Some((&mut logprobs).into());
    call.entropy = Some((&mut entropy).into());
    call.saved = Some((&mut saved).into());
    backend.logprob_forward(&(), config, call)?;
    Ok((logprobs, entropy, saved))
}

/// True if a variant's forward is the reference's to 1e-5.
fn agrees(variant: Variant, logits: &[f32], columns: usize) -> bool {
    let config = variant.config();
    let tokens: Vec<i32> = (0..logits.len() / columns).map(|r| (r * 7 % columns) as i32).collect();
    let matrix = || Matrix::new(logits, tokens.len(), columns).unwrap();
    let found = forward(&emulator(), &config, matrix(), &tokens);
    let (expected, _, _) = forward(&Reference, &config, matrix(), &tokens).unwrap();
    found.is_ok_and(|(found, _, _)| found.iter().zip(&expected).all(|(x, y)| x == y || (x - y).abs() < 1e-5))
}

#[test]
fn a_maximum_started_at_zero_shows_in_rows_below_it() {
    let low: Vec<f32> = normal_like(1, 5000).iter().map(|x| x - 200.0).collect();
    assert!(agrees(Healthy, &low, 2500));
    assert!(!agrees(MaximumFromZero, &low, 2500));
    assert!(agrees(MaximumFromZero, &normal_like(1, 5000), 2500), "and nowhere else");
}

#[test]
fn a_merge_in_the_order_of_arrival_shows_in_the_bits_of_another_schedule() {
    let (columns, logits) = (40 * 2048, normal_like(2, 40 * 2048));
    let bits = |variant: Variant, seed: u64| {
        let emulator = Broken(harness::emulator().with_seed(seed).with_schedule(Schedule::Random));
        let matrix = Matrix::new(&logits, 1, columns).unwrap();
        let (logprobs, entropy, _) = forward(&emulator, &variant.config(), matrix, &[3]).unwrap();
        (logprobs[0].to_bits(), entropy[0].to_bits())
    };
    let differ = |variant| (1..20).any(|seed| bits(variant, seed) != bits(variant, 0));
    assert!(!differ(Healthy));
    assert!(differ(OrderOfArrival));
}

#[test]
fn a_tree_by_the_address_shows_in_the_bits_of_another_alignment() {
    let (columns, logits) = (2048, normal_like(3, 2048 + 4));
    let bits = |variant: Variant, shift: usize| {
        let row: Vec<f32> = logits[..columns].to_vec();
        let moved = [vec![0.0; shift], row].concat();
        let matrix = Matrix::new(&moved[shift..], 1, columns).unwrap();
        let (_, entropy, saved) = forward(&emulator(), &variant.config(), matrix, &[3]).unwrap();
        (entropy[0].to_bits(), saved[0].sum.to_bits(), saved[0].weighted.to_bits())
    };
    let differ = |variant| (1..4).any(|shift| bits(variant, shift) != bits(variant, 0));
    assert!(!differ(Healthy));
    assert!(differ(PeeledByAddress));
}

#[test]
fn a_negative_zero_shows_in_the_saved_maximum() {
    let maximum = |variant: Variant| {
        let logits = [-0.0_f32, -1.0, -0.0];
        let (_, _, saved) =
            forward(&emulator(), &variant.config(), Matrix::new(&logits[..], 1, 3).unwrap(), &[1]).unwrap();
        saved[0].max_logit.to_bits()
    };
    assert_eq!(maximum(Healthy), 0);
    assert_ne!(maximum(NegativeZero), 0);
}

#[test]
fn a_minimum_before_the_clamp_shows_in_the_record_of_masked_columns() {
    let logits = [f32::NEG_INFINITY; 2048];
    let sum = |variant: Variant| {
        let (_, _, saved) =
            forward(&emulator(), &variant.config(), Matrix::new(&logits[..], 1, 2048).unwrap(), &[1]).unwrap();
        saved[0].sum
    };
    assert_eq!(sum(Healthy), 0.0);
    assert_ne!(sum(MinimumBeforeClamp), 0.0);
}

/// Rows so far apart that only 64 bits hold their offset. The memory between them is never touched, so that it need not be there.
#[test]
fn a_narrow_offset_shows_beyond_two_to_the_31_elements() {
    let (columns, stride, rows) = (100, (1usize << 30) + 8, 3);
    let len = (rows - 1) * stride + columns;
    if !sanitizer().is_empty() {
        return println!("skipped: a sanitizer keeps books of all memory");
    }
    let layout = std::alloc::Layout::array::<f32>(len).unwrap();
    // SAFETY: the layout is not empty; zeros are f32s.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<f32>();
    if memory.is_null() {
        return println!("skipped: the system does not promise {} GB", layout.size() >> 30);
    }
    for r in 0..rows {
        for (j, x) in normal_like(5 + r as u64, columns).into_iter().enumerate() {
            // SAFETY: within the rows' `len` elements.
            unsafe { memory.add(r * stride + j).write(x) };
        }
    }
    // SAFETY: the memory is `len` zeros or more, written by nobody until it is freed.
    let view: View<'_, f32, Host> = unsafe { View::from_raw(memory as usize, len) };
    let matrix = || Matrix::strided(view, rows, columns, stride).unwrap();
    let run = |variant: Variant| forward(&emulator(), &variant.config(), matrix(), &[1, 2, 3]);
    let expected = forward(&Reference, &Config::default(), matrix(), &[1, 2, 3]).unwrap();
    let close = |found: &Found| found.0.iter().zip(&expected.0).all(|(x, y)| (x - y).abs() < 1e-5);
    // The shipped kernels, and those of this test.
    assert!(close(&forward(&Emulator::new(), &Config::default(), matrix(), &[1, 2, 3]).unwrap()));
    assert!(close(&run(Healthy).unwrap()));
    assert!(!run(NarrowOffset).is_ok_and(|found| close(&found)));
    // SAFETY: from alloc_zeroed with this layout; no view of it is used any more.
    unsafe { std::alloc::dealloc(memory.cast(), layout) };
}

/// The gradient in place of a row with upstreams a and b.
fn gradient<B: Backend<Memory = Host, Stream = ()>>(backend: &B, variant: Variant, a: f32, b: f32) -> Vec<f32> {
    let columns = 3000;
    let mut logits = normal_like(9, columns);
    let tokens = [17];
    let (_, _, saved) =
        forward(&Reference, &Config::default(), Matrix::new(&logits, 1, columns).unwrap(), &tokens).unwrap();
    let (a, b) = ([a], [b]);
    let mut call = Backward::new(Gradient::InPlace(MatrixMut::new(&mut logits, 1, columns).unwrap()), (&saved).into());
    call.tokens = Some(Matrix::new(&tokens[..], 1, 1).unwrap());
    call.d_logprobs = Some((&a[..]).into());
    call.d_entropy = Some((&b[..]).into());
    backend.logprob_backward(&(), &variant.config(), call).unwrap();
    logits
}

fn gradient_agrees(variant: Variant, a: f32, b: f32) -> bool {
    let (found, expected) = (gradient(&emulator(), variant, a, b), gradient(&Reference, variant, a, b));
    found.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-6)
}

#[test]
fn a_zero_test_on_one_upstream_alone_shows_where_another_has_a_gradient() {
    assert!(gradient_agrees(Healthy, 0.0, 1.5) && gradient_agrees(Healthy, 0.0, 0.0));
    assert!(gradient_agrees(ZeroByLogprobAlone, 1.0, 1.5));
    assert!(!gradient_agrees(ZeroByLogprobAlone, 0.0, 1.5));
}

#[test]
fn a_label_read_after_the_store_shows_in_place() {
    assert!(gradient_agrees(Healthy, 1.0, 0.5));
    assert!(!gradient_agrees(LabelAfterStore, 1.0, 0.5));
}
