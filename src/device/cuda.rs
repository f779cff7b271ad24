//! A CUDA device, through the driver.
//!
//! Nothing here is linked: the driver is loaded when first asked for, and a machine without one gets an [`Error::Unavailable`] that
//! says what is missing and what to do. [`Cuda`] owns no more than the kernels: memory and streams may be its own, cudarc's
//! ([`lend`], [`Cuda::from_cudarc`]), or anybody's by their raw addresses ([`View::from_raw`], [`Cuda::foreign_stream`]).

mod buffer;
mod context;
#[cfg(feature = "linear")]
mod cublaslt;
mod driver;
mod graph;
mod lend;
mod modules;
#[cfg(feature = "linear")]
mod product;
mod stream;

use std::ffi::c_void;
use std::sync::Arc;

use bytemuck::Pod;

pub use crate::device::images::{Image, absence, images, targets, toolkit};
pub use buffer::DeviceBuffer;
pub use graph::Graph;
pub use lend::{Lent, LentMut, lend, lend_mut};
pub use stream::{Event, Stream};

use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters, Product};
use crate::error::{Error, Result};
use crate::memory::{Device, View, ViewMut};
use context::Context;
use driver::{Driver, attribute};
use modules::Modules;

/// A CUDA device that runs the kernels. Cheap to clone: clones share the loaded kernels.
#[derive(Clone, Debug)]
pub struct Cuda {
    context: Arc<Context>,
    modules: Arc<Modules>,
    #[cfg(feature = "linear")]
    products: Arc<product::Products>,
    multiprocessors: u32,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, as [`Cuda::open`] takes it.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
    /// Its memory, in bytes.
    pub memory: usize,
    /// Its multiprocessors.
    pub multiprocessors: u32,
}

/// The CUDA version that the installed driver supports, major and minor.
///
/// # Errors
/// [`Error::Unavailable`] where there is no driver, or none that starts.
pub fn driver_version() -> Result<(u32, u32)> {
    Driver::get()?.version()
}

/// Every device that the driver sees.
///
/// # Errors
/// [`Error::Unavailable`] where there is no driver, or none that starts.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let driver = Driver::get()?;
    (0..context::count(driver)?).map(|ordinal| describe(driver, ordinal)).collect()
}

fn describe(driver: &Driver, ordinal: usize) -> Result<DeviceInfo> {
    let device = context::device(driver, ordinal)?;
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most the given number of bytes, terminated.
    let status = unsafe { (driver.device_name)(name.as_mut_ptr().cast(), name.len() as i32, device) };
    driver.check("cuDeviceGetName", status)?;
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let mut memory = 0;
    // SAFETY: `memory` is valid for the number that the driver stores.
    driver.check("cuDeviceTotalMem", unsafe { (driver.device_memory)(&mut memory, device) })?;
    Ok(DeviceInfo {
        ordinal,
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        capability: context::capability(driver, device)?,
        memory,
        multiprocessors: context::device_attribute(driver, device, attribute::MULTIPROCESSORS)?,
    })
}

impl Cuda {
    /// The device with this number, in its primary context (which cudarc, the CUDA runtime and PyTorch use too).
    ///
    /// # Errors
    /// [`Error::Unavailable`] where there is no driver, no such device, a device older than compute capability 8.0, or no kernels
    /// in this build; [`Error::Driver`] where the driver refuses.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        Cuda::with(Context::primary(Driver::get()?, ordinal)?)
    }

    /// The device of a cudarc context, in that context.
    ///
    /// # Errors
    /// As [`open`](Cuda::open).
    pub fn from_cudarc(context: &Arc<cudarc::driver::CudaContext>) -> Result<Cuda> {
        Cuda::with(Context::foreign(Driver::get()?, context.clone())?)
    }

    fn with(context: Arc<Context>) -> Result<Cuda> {
        let (major, minor) = context::capability(context.driver, context.device)?;
        if major < 8 {
            return Err(Error::Unavailable {
                what: format!("the device has compute capability {major}.{minor}"),
                fix: "the kernels need 8.0 (Ampere) or newer".into(),
            });
        }
        if images().is_empty() {
            return Err(Error::Unavailable {
                what: format!("moerl was built without GPU kernels: {}", absence()),
                fix: "rebuild where nvcc is found (NVCC, CUDA_HOME, PATH; in moerl's repository `cargo xtask toolkit` installs one)"
                    .into(),
            });
        }
        let multiprocessors = context.attribute(attribute::MULTIPROCESSORS)?;
        Ok(Cuda {
            modules: Arc::new(Modules::new(context.clone())),
            #[cfg(feature = "linear")]
            products: Arc::new(product::Products::new(context.clone())),
            context,
            multiprocessors,
        })
    }

    /// What the device is.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn info(&self) -> Result<DeviceInfo> {
        describe(self.context.driver, self.context.ordinal)
    }

    /// Loads every kernel now instead of at its first launch: before timing, and before recording a graph by other means than
    /// [`capture`](Cuda::capture), since nothing can be loaded while a stream is being recorded.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the images do not fit the device or the driver.
    pub fn prepare(&self) -> Result<()> {
        self.modules.load_all()
    }

    /// The legacy default stream, which waits for all other blocking streams.
    pub fn default_stream(&self) -> Stream {
        Stream::legacy_default(&self.context)
    }

    /// The default stream of the calling thread.
    pub fn per_thread_stream(&self) -> Stream {
        Stream::per_thread_default(&self.context)
    }

    /// A stream of cudarc's, in the same context.
    pub fn cudarc_stream(&self, stream: &Arc<cudarc::driver::CudaStream>) -> Stream {
        Stream::cudarc(&self.context, stream.clone())
    }

    /// A stream that belongs to somebody else: the value of its `CUstream` or `cudaStream_t`; 0 is the default stream.
    ///
    /// # Safety
    /// It must be a stream of this device's context and outlive the value returned.
    pub unsafe fn foreign_stream(&self, handle: usize) -> Stream {
        // SAFETY: the caller's promise.
        unsafe { Stream::foreign(&self.context, handle) }
    }

    /// A mark that can be recorded in a stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn event(&self) -> Result<Event> {
        Event::create(&self.context)
    }

    /// Records what `work` queues on `stream` (not the default one) instead of running it.
    ///
    /// `work` may queue operations; it may not allocate, copy to or from the host, wait, or drop a buffer.
    ///
    /// # Errors
    /// What `work` returned, or [`Error::Driver`] where it did something that cannot be recorded.
    pub fn capture(&self, stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        Graph::capture(&self.modules, stream, work)
    }
}

impl Executor for Cuda {
    type Memory = Device;
    type Stream = Stream;
    type Buffer<T: Pod + Send + Sync> = DeviceBuffer<T>;

    const ALIAS: usize = 0;
    const NAME: &'static str = "cuda";

    fn new_stream(&self) -> Result<Stream> {
        Stream::create(&self.context)
    }

    fn wait(&self, stream: &Stream) -> Result<()> {
        stream.synchronize()
    }

    fn zeros<T: Pod + Send + Sync>(&self, stream: &Stream, len: usize) -> Result<DeviceBuffer<T>> {
        let buffer = DeviceBuffer::allocate(&self.context, len)?;
        let _entered = self.context.enter()?;
        if buffer.bytes() > 0 {
            // SAFETY: the buffer has that many bytes.
            let status = unsafe { (self.context.driver.memory_fill)(buffer.pointer, 0, buffer.bytes(), stream.handle) };
            self.context.driver.check("cuMemsetD8Async", status)?;
        }
        Ok(buffer)
    }

    fn set_bytes<T: Pod>(&self, stream: &Stream, array: ViewMut<'_, T, Device>, byte: u8) -> Result<()> {
        if array.is_empty() {
            return Ok(());
        }
        let _entered = self.context.enter()?;
        let bytes = array.len() * size_of::<T>();
        // SAFETY: the view is that many bytes of device memory, lent for writing; T is Pod, so any bytes are valid.
        let status = unsafe { (self.context.driver.memory_fill)(array.address() as u64, byte, bytes, stream.handle) };
        self.context.driver.check("cuMemsetD8Async", status)
    }

    fn send<T: Pod + Send + Sync>(&self, stream: &Stream, data: &[T]) -> Result<DeviceBuffer<T>> {
        let buffer = DeviceBuffer::<T>::allocate(&self.context, data.len())?;
        let _entered = self.context.enter()?;
        if buffer.bytes() > 0 {
            let from = data.as_ptr().cast::<c_void>();
            // SAFETY: both sides have that many bytes, and `data` stays borrowed until the copy is done.
            let status =
                unsafe { (self.context.driver.memory_to_device)(buffer.pointer, from, buffer.bytes(), stream.handle) };
            self.context.driver.check("cuMemcpyHtoDAsync", status)?;
            stream.synchronize()?;
        }
        Ok(buffer)
    }

    fn fetch<T: Pod + Send + Sync>(&self, stream: &Stream, array: View<'_, T, Device>) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); array.len()];
        let _entered = self.context.enter()?;
        if size_of_val(&data[..]) > 0 {
            let to = data.as_mut_ptr().cast::<c_void>();
            let (from, bytes) = (array.address() as u64, size_of_val(&data[..]));
            // SAFETY: both sides have that many bytes (the view's maker vouches for it), and `data` is not moved until the copy is
            // done.
            let status = unsafe { (self.context.driver.memory_to_host)(to, from, bytes, stream.handle) };
            self.context.driver.check("cuMemcpyDtoHAsync", status)?;
        }
        stream.synchronize()?;
        Ok(data)
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    #[cfg(feature = "linear")]
    fn multiply(&self, stream: &Stream, product: Product<'_, Device>) -> Result<()> {
        self.products.multiply(stream, product)
    }

    #[cfg(not(feature = "linear"))]
    fn multiply(&self, _: &Stream, _: Product<'_, Device>) -> Result<()> {
        Err(Error::Unavailable {
            what: "this build of moerl has nothing that multiplies matrices on a GPU".into(),
            fix: "rebuild with the crate feature `linear`, which uses cuBLASLt".into(),
        })
    }

    unsafe fn launch<P: Parameters>(
        &self,
        stream: &Stream,
        kernel: Kernel,
        grid: Grid,
        _arguments: &Arguments,
        params: &P,
    ) -> Result<()> {
        // The driver refuses a grid of no blocks; there is nothing to do.
        if grid.blocks == 0 {
            return Ok(());
        }
        let function = self.modules.function(kernel)?;
        if grid.shared_bytes > function.max_shared_bytes {
            return Err(Error::Unavailable {
                what: format!(
                    "{} needs {} bytes of shared memory a block, the device has {}",
                    kernel.name, grid.shared_bytes, function.max_shared_bytes
                ),
                fix: "use a device with more, or a smaller shape".into(),
            });
        }
        let _entered = self.context.enter()?;
        let mut pointers = [(&raw const *params).cast_mut().cast::<c_void>()];
        // SAFETY: the caller vouches that `params` is what the kernel takes; the driver copies it before it returns.
        let status = unsafe {
            (self.context.driver.launch)(
                function.handle,
                grid.blocks,
                1,
                1,
                grid.threads,
                1,
                1,
                grid.shared_bytes,
                stream.handle,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.driver.check("cuLaunchKernel", status)
    }
}

#[cfg(test)]
mod tests;
