//! How a call is measured: by events on a device, by the traffic meter under emulation, by the clock for the reference.

use std::time::{Duration, Instant};

use bytemuck::Pod;
use moerl::device::executor::Product;
use moerl::{Backend, Reference};

use super::case::Call;

/// What a call came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// Device time with the inputs out of the caches, or the CPU's time of the reference.
    pub cold: Option<Duration>,
    /// Device time of the same call right after itself.
    pub warm: Option<Duration>,
    /// Device time of launches of the same grids that do nothing.
    pub empty: Option<Duration>,
    /// The kernels that the call launched, in order.
    pub kernels: Option<Vec<&'static str>>,
    /// What the traffic meter counted.
    pub traffic: Option<Traffic>,
}

/// What the kernels of a call touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes loaded.
    pub loaded: u64,
    /// Bytes stored.
    pub stored: u64,
    /// Sectors of 32 bytes, by block.
    pub sectors: u64,
}

/// What a device's memory gives, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Of a kernel that copies: bytes read and bytes written, added up.
    pub copy: f64,
    /// Of a kernel that reads.
    pub read: f64,
    /// Of a kernel that fills.
    pub fill: f64,
}

/// A backend whose calls can be measured.
pub trait Measure: Backend + Sized {
    /// `row` so many times: what a device can do for itself need not come over the bus.
    ///
    /// # Errors
    /// The backend's.
    fn repeated<T: Pod + Send + Sync>(
        &self,
        stream: &Self::Stream,
        row: &[T],
        times: usize,
    ) -> moerl::Result<Self::Buffer<T>> {
        self.upload(stream, &row.repeat(times))
    }

    /// True if products of matrices are worth measuring alone, by [`multiply`](Measure::multiply).
    const TIMES_PRODUCTS: bool = false;

    /// Queues a product of matrices.
    ///
    /// # Errors
    /// [`moerl::Error::Unavailable`] where nothing multiplies.
    fn multiply(&self, _: &Self::Stream, _: Product<'_, Self::Memory>) -> moerl::Result<()> {
        Err(moerl::Error::Unavailable {
            what: format!("products are not measured on {}", self.name()),
            fix: "measure them on a device".into(),
        })
    }

    /// Measures one call.
    ///
    /// # Errors
    /// The call's.
    fn measure(&self, stream: &Self::Stream, call: &mut Call<Self>) -> moerl::Result<Figure>;

    /// What memory gives; `None` where nothing is timed on a device.
    ///
    /// # Errors
    /// The device's.
    fn bandwidth(&self, stream: &Self::Stream) -> moerl::Result<Option<Bandwidth>>;
}

impl Measure for Reference {
    fn measure(&self, stream: &(), call: &mut Call<Reference>) -> moerl::Result<Figure> {
        let start = Instant::now();
        call(self, stream)?;
        Ok(Figure { cold: Some(start.elapsed()), ..Figure::default() })
    }

    fn bandwidth(&self, (): &()) -> moerl::Result<Option<Bandwidth>> {
        Ok(None)
    }
}

#[cfg(feature = "emulate")]
impl Measure for moerl::Emulator {
    fn measure(&self, stream: &(), call: &mut Call<moerl::Emulator>) -> moerl::Result<Figure> {
        self.take_traffic();
        call(self, stream)?;
        let launches = self.take_traffic();
        let sectors = |launch: &moerl::device::emulator::LaunchTraffic| -> u64 {
            launch.buffers.iter().map(|buffer| buffer.loads.sectors + buffer.stores.sectors).sum()
        };
        let traffic = Traffic {
            loaded: launches.iter().map(|launch| launch.load_bytes()).sum(),
            stored: launches.iter().map(|launch| launch.store_bytes()).sum(),
            sectors: launches.iter().map(sectors).sum(),
        };
        let kernels = launches.iter().map(|launch| launch.kernel).collect();
        Ok(Figure { kernels: Some(kernels), traffic: Some(traffic), ..Figure::default() })
    }

    fn bandwidth(&self, (): &()) -> moerl::Result<Option<Bandwidth>> {
        Ok(None)
    }
}

#[cfg(feature = "cuda")]
pub use device::Timed;

#[cfg(feature = "cuda")]
mod device {
    use std::cell::{Cell, RefCell};

    use bytemuck::Pod;
    use moerl::device::bandwidth;
    use moerl::device::cuda::{DeviceBuffer, Stream};
    use moerl::device::executor::{Arguments, Executor, Grid, Kernel, Parameters, Product};
    use moerl::memory::{Device, View, ViewMut};
    use moerl::{Buffer, Cuda, Result};

    use super::{Bandwidth, Call, Duration, Figure, Measure};

    /// Calls with the caches full of other things; the median is reported.
    const COLD_RUNS: usize = 15;
    /// What cold runs are paid for with at least: more of short ones.
    const WARM_TIME: Duration = Duration::from_millis(20);
    /// Twice the largest level-2 cache of a device known today.
    const FLUSHED: usize = 256 << 20;
    /// What bandwidth is measured over: far out of any cache.
    const STREAMED: usize = 2 << 30;

    /// A device that remembers what is launched, so that empty launches of the same grids can be timed beside it.
    pub struct Timed {
        gpu: Cuda,
        launched: RefCell<Vec<(Kernel, Grid)>>,
        recording: Cell<bool>,
        flush: DeviceBuffer<u8>,
        flushed: RefCell<DeviceBuffer<u32>>,
    }

    impl Timed {
        /// # Errors
        /// The device's.
        pub fn new(gpu: Cuda) -> Result<Timed> {
            let stream = gpu.new_stream()?;
            let flush = gpu.zeros(&stream, FLUSHED)?;
            let flushed = RefCell::new(gpu.zeros(&stream, bandwidth::read_sums(FLUSHED))?);
            Ok(Timed { gpu, launched: RefCell::default(), recording: Cell::new(false), flush, flushed })
        }

        /// Device time of what `work` queues.
        ///
        /// # Errors
        /// The work's, or the device's.
        pub fn time(&self, stream: &Stream, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
            let (start, end) = (self.gpu.event()?, self.gpu.event()?);
            start.record(stream)?;
            work()?;
            end.record(stream)?;
            end.synchronize()?;
            Ok(Duration::from_secs_f64(f64::from(end.milliseconds_since(&start)?) * 1e-3))
        }

        /// The median of several runs, each with the caches full of something else: of what was read, for what was written would first have to be
        /// put back, at the expense of whoever needs its place.
        fn cold(&self, stream: &Stream, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
            let mut times = Vec::with_capacity(COLD_RUNS);
            for _ in 0..COLD_RUNS {
                bandwidth::read(&self.gpu, stream, self.flush.view(), self.flushed.borrow_mut().view_mut())?;
                times.push(self.time(stream, work)?);
            }
            times.sort();
            Ok(times[times.len() / 2])
        }

        /// The mean of as many runs as fill [`WARM_TIME`], after one that does not count.
        fn warm(&self, stream: &Stream, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
            let once = self.time(stream, work)?;
            let runs = (WARM_TIME.as_secs_f64() / once.as_secs_f64().max(1e-6)).ceil().clamp(3.0, 10_000.0) as u32;
            let all = self.time(stream, &mut || (0..runs).try_for_each(|_| work()))?;
            Ok(all / runs)
        }
    }

    impl Measure for Timed {
        const TIMES_PRODUCTS: bool = cfg!(feature = "linear");

        fn multiply(&self, stream: &Stream, product: Product<'_, Device>) -> Result<()> {
            self.gpu.multiply(stream, product)
        }

        fn repeated<T: Pod + Send + Sync>(&self, stream: &Stream, row: &[T], times: usize) -> Result<DeviceBuffer<T>> {
            // A few megabytes come over the bus, of rows that end at a 16-byte boundary again; the device copies them.
            let rows = (16 * (1 + (1 << 18) / size_of_val(row).max(1))).min(times.max(1));
            if [times, rows].iter().any(|rows| !(size_of_val(row) * rows).is_multiple_of(16)) {
                return self.gpu.send(stream, &row.repeat(times));
            }
            let block = self.gpu.send(stream, bytemuck::cast_slice::<T, u8>(&row.repeat(rows)))?;
            let mut array = self.gpu.zeros::<T>(stream, row.len() * times)?;
            for start in (0..times).step_by(rows) {
                let part = start * row.len()..(start + rows).min(times) * row.len();
                let bytes = part.len() * size_of::<T>();
                let part = array.view_mut().slice(part).into_bytes();
                bandwidth::copy(&self.gpu, stream, block.view().slice(0..bytes), part)?;
            }
            Ok(array)
        }

        fn measure(&self, stream: &Stream, call: &mut Call<Timed>) -> Result<Figure> {
            self.launched.borrow_mut().clear();
            self.recording.set(true);
            let first = call(self, stream);
            self.recording.set(false);
            first?;
            let launched = self.launched.borrow().clone();
            let cold = self.cold(stream, &mut || call(self, stream))?;
            let warm = self.warm(stream, &mut || call(self, stream))?;
            let empty = self.cold(stream, &mut || {
                launched.iter().try_for_each(|(_, grid)| bandwidth::empty(&self.gpu, stream, grid.blocks, grid.threads))
            })?;
            let (cold, warm, empty) = (Some(cold), Some(warm), Some(empty));
            let kernels = Some(launched.iter().map(|(kernel, _)| kernel.name).collect());
            Ok(Figure { cold, warm, empty, kernels, traffic: None })
        }

        fn bandwidth(&self, stream: &Stream) -> Result<Option<Bandwidth>> {
            let input = self.gpu.zeros::<u8>(stream, STREAMED)?;
            let mut output = self.gpu.zeros::<u8>(stream, STREAMED)?;
            let mut sums = self.gpu.zeros::<u32>(stream, bandwidth::read_sums(STREAMED))?;
            let fill = self.warm(stream, &mut || bandwidth::fill(&self.gpu, stream, output.view_mut(), 0x9e37_79b9))?;
            let copy =
                self.warm(stream, &mut || bandwidth::copy(&self.gpu, stream, input.view(), output.view_mut()))?;
            let read = self.warm(stream, &mut || bandwidth::read(&self.gpu, stream, input.view(), sums.view_mut()))?;
            let per_second = |bytes: usize, time: Duration| bytes as f64 / time.as_secs_f64();
            Ok(Some(Bandwidth {
                copy: per_second(2 * STREAMED, copy),
                read: per_second(STREAMED, read),
                fill: per_second(STREAMED, fill),
            }))
        }
    }

    impl Executor for Timed {
        type Memory = Device;
        type Stream = Stream;
        type Buffer<T: Pod + Send + Sync> = DeviceBuffer<T>;

        const ALIAS: usize = Cuda::ALIAS;
        const NAME: &'static str = Cuda::NAME;

        fn new_stream(&self) -> Result<Stream> {
            self.gpu.new_stream()
        }
        fn wait(&self, stream: &Stream) -> Result<()> {
            self.gpu.wait(stream)
        }
        fn zeros<T: Pod + Send + Sync>(&self, stream: &Stream, len: usize) -> Result<DeviceBuffer<T>> {
            self.gpu.zeros(stream, len)
        }
        fn send<T: Pod + Send + Sync>(&self, stream: &Stream, data: &[T]) -> Result<DeviceBuffer<T>> {
            self.gpu.send(stream, data)
        }
        fn fetch<T: Pod + Send + Sync>(&self, stream: &Stream, array: View<'_, T, Device>) -> Result<Vec<T>> {
            self.gpu.fetch(stream, array)
        }
        fn set_bytes<T: Pod>(&self, stream: &Stream, array: ViewMut<'_, T, Device>, byte: u8) -> Result<()> {
            self.gpu.set_bytes(stream, array, byte)
        }
        fn multiprocessors(&self) -> u32 {
            self.gpu.multiprocessors()
        }
        fn multiply(&self, stream: &Stream, product: Product<'_, Device>) -> Result<()> {
            self.gpu.multiply(stream, product)
        }

        unsafe fn launch<P: Parameters>(
            &self,
            stream: &Stream,
            kernel: Kernel,
            grid: Grid,
            arguments: &Arguments,
            params: &P,
        ) -> Result<()> {
            if self.recording.get() {
                self.launched.borrow_mut().push((kernel, grid));
            }
            // SAFETY: the caller's promise is the one that is asked for here.
            unsafe { self.gpu.launch(stream, kernel, grid, arguments, params) }
        }
    }
}
