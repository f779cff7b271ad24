//! The emulator: the same kernels as on a GPU, compiled as C++ and run on the CPU thread by thread.
//!
//! Every access of a kernel to global memory is checked against the buffers of its launch; shared memory is poisoned and stands between
//! red zones; a divergent barrier or warp collective, and an asynchronous copy that nobody waits for, are errors with the line of the
//! kernel. Threads run in an order that a seed decides, so that a missing barrier shows and can be shown again. The traffic meter
//! counts what a launch reads and writes. kernels/emulation/README.md says how it works and what it cannot see.

mod buffer;
mod ffi;
mod product;
mod traffic;

use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters, Product};
use crate::error::{Error, Result};
use crate::memory::{Host, View, ViewMut};
pub use buffer::EmulatorBuffer;
#[doc(hidden)]
pub use ffi::{Table, sanitizer};
pub use traffic::{BufferTraffic, LaunchTraffic, Launched, Touches};

/// In which order the threads of a block run between the points where they wait for one another. Blocks are begun in a random order
/// as well, but for the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// The lowest thread that can run.
    InOrder,
    /// The highest.
    Reverse,
    /// Any, drawn anew at every switch.
    Random,
    /// Every warp, and every thread within its warp, has a random priority; the highest that can run does. Finds missing barriers that
    /// a uniform choice does not.
    #[default]
    Priorities,
}

/// Runs the kernels on the CPU. Work is done when a call returns, so the stream is `()`.
///
/// ```
/// use moerl::device::emulator::Schedule;
/// let emulator = moerl::Emulator::new().with_seed(7).with_schedule(Schedule::Random).metered();
/// assert!(emulator.take_traffic().is_empty()); // nothing has been launched yet
/// ```
#[derive(Debug)]
pub struct Emulator {
    table: Table,
    seed: u64,
    schedule: Schedule,
    blocks_in_flight: u32,
    multiprocessors: u32,
    metered: bool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    launches: Vec<Launched>,
    traffic: Vec<LaunchTraffic>,
}

impl Default for Emulator {
    fn default() -> Self {
        Emulator::new()
    }
}

impl Emulator {
    /// Random priorities from seed 0, one block after the other, no meter.
    pub fn new() -> Emulator {
        Emulator {
            table: Table::shipped(),
            seed: 0,
            schedule: Schedule::default(),
            blocks_in_flight: 1,
            multiprocessors: 4,
            metered: false,
            record: Mutex::default(),
        }
    }

    /// Decides everything that is random: every launch with the same seed takes the same course.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Emulator {
        self.seed = seed;
        self
    }

    /// How the threads of a block take turns.
    #[must_use]
    pub fn with_schedule(mut self, schedule: Schedule) -> Emulator {
        self.schedule = schedule;
        self
    }

    /// How many blocks are under way at once (at least 1). Their threads are interleaved at atomics, fences and wherever one waits.
    #[must_use]
    pub fn with_blocks_in_flight(mut self, blocks: u32) -> Emulator {
        self.blocks_in_flight = blocks.max(1);
        self
    }

    /// How many multiprocessors it claims to have (at least 1), for grids that depend on that.
    #[must_use]
    pub fn with_multiprocessors(mut self, multiprocessors: u32) -> Emulator {
        self.multiprocessors = multiprocessors.max(1);
        self
    }

    /// Turns the traffic meter on: see [`take_traffic`](Emulator::take_traffic). Launches then run some ten times slower.
    #[must_use]
    pub fn metered(mut self) -> Emulator {
        self.metered = true;
        self
    }

    /// Other kernels than the crate's own. For the emulator's tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_table(mut self, table: Table) -> Emulator {
        self.table = table;
        self
    }

    /// What the launches so far loaded and stored. Empty unless [`metered`](Emulator::metered).
    pub fn traffic(&self) -> Vec<LaunchTraffic> {
        self.record().traffic.clone()
    }

    /// As [`traffic`](Emulator::traffic), and forgets it.
    pub fn take_traffic(&self) -> Vec<LaunchTraffic> {
        std::mem::take(&mut self.record().traffic)
    }

    /// The launches so far, in order.
    pub fn launches(&self) -> Vec<Launched> {
        self.record().launches.clone()
    }

    /// As [`launches`](Emulator::launches), and forgets them.
    pub fn take_launches(&self) -> Vec<Launched> {
        std::mem::take(&mut self.record().launches)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing panics while it holds the lock; a record would be whole even so.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for Emulator {
    type Memory = Host;
    type Stream = ();
    type Buffer<T: Pod + Send + Sync> = EmulatorBuffer<T>;

    const ALIAS: usize = ffi::ALIAS;
    const NAME: &'static str = "emulator";

    fn new_stream(&self) -> Result<()> {
        Ok(())
    }
    fn wait(&self, (): &()) -> Result<()> {
        Ok(())
    }
    fn zeros<T: Pod + Send + Sync>(&self, (): &(), len: usize) -> Result<EmulatorBuffer<T>> {
        EmulatorBuffer::zeros(len)
    }
    fn send<T: Pod + Send + Sync>(&self, (): &(), data: &[T]) -> Result<EmulatorBuffer<T>> {
        let mut buffer = EmulatorBuffer::zeros(data.len())?;
        buffer.as_mut_slice().copy_from_slice(data);
        Ok(buffer)
    }
    fn fetch<T: Pod + Send + Sync>(&self, (): &(), array: View<'_, T, Host>) -> Result<Vec<T>> {
        Ok(array.as_slice().to_vec())
    }

    fn set_bytes<T: Pod>(&self, (): &(), mut array: ViewMut<'_, T, Host>, byte: u8) -> Result<()> {
        bytemuck::cast_slice_mut::<T, u8>(array.as_mut_slice()).fill(byte);
        Ok(())
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn multiply(&self, (): &(), product: Product<'_, Host>) -> Result<()> {
        product::multiply(product)
    }

    unsafe fn launch<P: Parameters>(
        &self,
        (): &(),
        kernel: Kernel,
        grid: Grid,
        arguments: &Arguments,
        params: &P,
    ) -> Result<()> {
        let launched = Launched { kernel, grid };
        self.record().launches.push(launched);

        let c_string = |name: &str| CString::new(name).expect("names of kernels and parameters contain no NUL");
        let kernel_name = c_string(kernel.name);
        let buffers = arguments.ranges();
        let names: Vec<CString> = buffers.iter().map(|buffer| c_string(buffer.name)).collect();
        let ranges: Vec<ffi::Range> =
            buffers.iter().zip(&names).map(|(buffer, name)| ffi::Range::new(buffer, name)).collect();
        let mut traffic = vec![ffi::Traffic::default(); if self.metered { ranges.len() } else { 0 }];
        let launch = ffi::Launch {
            table: self.table.as_ptr(),
            kernel: kernel_name.as_ptr(),
            params: std::ptr::from_ref(params).cast(),
            params_bytes: size_of::<P>() as u64,
            ranges: ranges.as_ptr(),
            range_count: ranges.len() as u64,
            traffic: if self.metered { traffic.as_mut_ptr() } else { std::ptr::null_mut() },
            seed: self.seed,
            schedule: self.schedule as u32,
            blocks_in_flight: self.blocks_in_flight,
            blocks: grid.blocks,
            threads: grid.threads,
            shared_bytes: grid.shared_bytes,
            reserved: 0,
        };
        // SAFETY: every pointer in `launch` is into a local that outlives the call, with the counts beside it. The caller promised that
        // `params` is what the kernel takes, and that its pointers come from views, which are what `ranges` lists: the runtime
        // lets the kernel touch nothing else, and writes only where a view for writing was lent.
        unsafe { ffi::launch(&launch) }.map_err(Error::Emulation)?;
        if self.metered {
            let buffers = buffers.iter().zip(&traffic).map(|(buffer, traffic)| traffic.named(buffer)).collect();
            self.record().traffic.push(LaunchTraffic { kernel: kernel.name, grid, buffers });
        }
        Ok(())
    }
}
