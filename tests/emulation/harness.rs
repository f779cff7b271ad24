//! Launches the test kernels of this folder.

use moerl::device::emulator::Table;
pub use moerl::device::emulator::sanitizer;
use moerl::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use moerl::memory::{Host, Matrix};
use moerl::{Backend, Buffer, Emulator, Error};

unsafe extern "C" {
    static moerl_emulation_test_table: std::ffi::c_void;
}

/// The structure of call.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TestCall {
    pub input: *const u32,
    pub output: *mut u32,
    pub counters: *mut u32,
    pub count: u64,
    pub stride: u64,
    pub number: u32,
    pub variant: u32,
}

impl TestCall {
    pub const NONE: TestCall = TestCall {
        input: std::ptr::null(),
        output: std::ptr::null_mut(),
        counters: std::ptr::null_mut(),
        count: 0,
        stride: 0,
        number: 0,
        variant: 0,
    };
}

// SAFETY: mirrors the structure that every kernel of this folder takes.
unsafe impl Parameters for TestCall {}

/// An emulator of the kernels in this folder.
pub fn emulator() -> Emulator {
    // SAFETY: build.rs generates the table as constant data.
    Emulator::new().with_table(unsafe { Table::from_raw(&raw const moerl_emulation_test_table) })
}

/// A launch to be made.
#[derive(Clone)]
pub struct Run<'a> {
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub input: &'a [u32],
    /// The input as rows with gaps: columns and stride.
    pub rows: Option<(usize, usize)>,
    /// Words of output and counters.
    pub output: usize,
    pub counters: &'a [u32],
    pub count: usize,
    pub stride: usize,
    pub number: u32,
    pub variant: u32,
}

/// What a launch left behind.
#[derive(Debug, PartialEq)]
pub struct Left {
    pub output: Vec<u32>,
    pub counters: Vec<u32>,
}

impl<'a> Run<'a> {
    /// One warp, no memory.
    pub fn new(kernel: &'static str) -> Run<'a> {
        Run {
            kernel,
            blocks: 1,
            threads: 32,
            shared_bytes: 0,
            input: &[],
            rows: None,
            output: 0,
            counters: &[],
            count: 0,
            stride: 0,
            number: 0,
            variant: 0,
        }
    }

    /// Launches it.
    pub fn on(&self, emulator: &Emulator) -> Result<Left, Error> {
        let input = emulator.upload(&(), self.input)?;
        let mut output = emulator.allocate::<u32>(&(), self.output)?;
        let mut counters = emulator.upload(&(), self.counters)?;
        let mut arguments = Arguments::new::<Emulator>();
        let input_pointer = match self.rows {
            None => arguments.read("input", input.view()),
            Some((columns, stride)) => {
                // The kernels see words; the matrix only says where the rows lie.
                let floats: &[f32] = bytemuck::cast_slice(input.as_slice());
                let rows = (floats.len() + stride - columns) / stride;
                arguments.read_matrix("input", &Matrix::<Host>::strided(floats, rows, columns, stride)?).cast()
            }
        };
        let call = TestCall {
            input: input_pointer,
            output: arguments.write("output", &mut output.view_mut()),
            counters: arguments.write("counters", &mut counters.view_mut()),
            count: self.count as u64,
            stride: self.stride as u64,
            number: self.number,
            variant: self.variant,
        };
        let kernel = Kernel { image: "tests", name: self.kernel };
        let grid = Grid { blocks: self.blocks, threads: self.threads, shared_bytes: self.shared_bytes };
        // SAFETY: the pointers come from `arguments`; a kernel that goes beyond its buffers is what the emulator is to stop.
        unsafe { emulator.launch(&(), kernel, grid, &arguments, &call)? };
        Ok(Left { output: output.as_slice().to_vec(), counters: counters.as_slice().to_vec() })
    }

    /// Launches it and expects no fault.
    pub fn ok(&self, emulator: &Emulator) -> Left {
        self.on(emulator).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Numbers that look random: splitmix64, from any seed.
pub fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Words that look random.
pub fn noisy_words(seed: u64, len: usize) -> Vec<u32> {
    let mut noise = noise(seed);
    (0..len).map(|_| noise() as u32).collect()
}

/// All kinds of schedule, with 20 seeds each where seeds matter, and up to three blocks at once.
pub fn all_schedules() -> Vec<Emulator> {
    use moerl::device::emulator::Schedule;
    let mut all = vec![
        emulator().with_schedule(Schedule::InOrder),
        emulator().with_schedule(Schedule::Reverse),
        emulator().with_schedule(Schedule::InOrder).with_blocks_in_flight(3),
        emulator().with_schedule(Schedule::Reverse).with_blocks_in_flight(3),
    ];
    for seed in 0..20 {
        let blocks = [1, 2, 3][seed as usize % 3];
        all.push(emulator().with_seed(seed).with_schedule(Schedule::Random).with_blocks_in_flight(blocks));
        all.push(emulator().with_seed(seed).with_schedule(Schedule::Priorities).with_blocks_in_flight(blocks));
    }
    all
}
