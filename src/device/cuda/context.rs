//! A device's context: what keeps streams, memory and modules alive, and makes them current on a thread.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::cuda::driver::{DevicePointer, Driver, Handle, attribute};
use crate::error::{Error, Result};

/// A retained context of one device. Everything made in it holds a reference to it.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) ordinal: usize,
    pub(super) device: i32,
    pub(super) handle: Handle,
    keeper: Keeper,
}

/// Who keeps the context alive.
#[derive(Debug)]
enum Keeper {
    /// We do: the device's primary context was retained, and is released in the end.
    Primary,
    /// Whoever this belongs to: it is only held on to.
    Foreign(#[allow(dead_code)] Arc<cudarc::driver::CudaContext>),
}

// SAFETY: a context is a handle that the driver allows any thread to use at any time; `Driver` is a table of functions that may be
// called from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The primary context of the device with this number.
    pub(super) fn primary(driver: &'static Driver, ordinal: usize) -> Result<Arc<Context>> {
        let device = device(driver, ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for the handle that the driver stores; `device` came from cuDeviceGet.
        driver.check("cuDevicePrimaryCtxRetain", unsafe { (driver.context_retain)(&mut handle, device) })?;
        Ok(Arc::new(Context { driver, ordinal, device, handle, keeper: Keeper::Primary }))
    }

    /// A context that belongs to cudarc.
    pub(super) fn foreign(driver: &'static Driver, context: Arc<cudarc::driver::CudaContext>) -> Result<Arc<Context>> {
        let ordinal = context.ordinal();
        let device = device(driver, ordinal)?;
        let handle = context.cu_ctx().cast();
        Ok(Arc::new(Context { driver, ordinal, device, handle, keeper: Keeper::Foreign(context) }))
    }

    /// Makes the context current on this thread until the value returned is dropped.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        let mut current = std::ptr::null_mut();
        // SAFETY: `current` is valid for the handle that the driver stores.
        self.driver.check("cuCtxGetCurrent", unsafe { (self.driver.context_get)(&mut current) })?;
        let pushed = current != self.handle;
        if pushed {
            // SAFETY: the context lives as long as `self`.
            self.driver.check("cuCtxPushCurrent", unsafe { (self.driver.context_push)(self.handle) })?;
        }
        Ok(Entered { context: self, pushed, stays: PhantomData })
    }

    /// A number that describes the device.
    pub(super) fn attribute(&self, attribute: i32) -> Result<u32> {
        device_attribute(self.driver, self.device, attribute)
    }

    /// Allocates `bytes` of device memory, at least one.
    pub(super) fn allocate(&self, bytes: usize) -> Result<DevicePointer> {
        let _entered = self.enter()?;
        let mut pointer = 0;
        // SAFETY: `pointer` is valid for the address that the driver stores.
        let status = unsafe { (self.driver.memory_allocate)(&mut pointer, bytes.max(1)) };
        self.driver.check("cuMemAlloc", status)?;
        Ok(pointer)
    }

    /// Frees memory. cuMemFree waits for the work that is queued in the context, on any stream. (Asking for that wait by
    /// cuCtxSynchronize would do harm: it breaks off every capture in the context, also one on another thread.)
    ///
    /// # Safety
    /// `pointer` must come from [`allocate`](Context::allocate) and not be used again.
    pub(super) unsafe fn free(&self, pointer: DevicePointer) {
        if let Ok(_entered) = self.enter() {
            // SAFETY: the caller hands the memory over. A refusal means that the context is lost or that this thread is
            // recording a graph; the memory is then left to the driver.
            unsafe { (self.driver.memory_free)(pointer) };
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if matches!(self.keeper, Keeper::Primary) {
            // SAFETY: retained once in `primary`; everything made in the context holds a reference to it, so nothing is left.
            unsafe { (self.driver.context_release)(self.device) };
        }
    }
}

/// The context is current on this thread; dropping this restores the one before.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    context: &'a Context,
    pushed: bool,
    /// What is current is a matter of this thread alone.
    stays: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: pushed by `enter` on this thread, which the guard cannot leave.
            unsafe { (self.context.driver.context_pop)(&mut popped) };
        }
    }
}

/// The number of devices that the driver sees.
pub(super) fn count(driver: &Driver) -> Result<usize> {
    let mut count = 0;
    // SAFETY: `count` is valid for the number that the driver stores.
    driver.check("cuDeviceGetCount", unsafe { (driver.device_count)(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's handle of a device.
pub(super) fn device(driver: &Driver, ordinal: usize) -> Result<i32> {
    let count = count(driver)?;
    if ordinal >= count {
        return Err(Error::Unavailable {
            what: format!("there is no CUDA device {ordinal}: the driver sees {count}"),
            fix: "name one of those, or check CUDA_VISIBLE_DEVICES".into(),
        });
    }
    let mut device = 0;
    // SAFETY: `device` is valid for the handle that the driver stores; `ordinal` is below the count, which is a C int.
    driver.check("cuDeviceGet", unsafe { (driver.device_get)(&mut device, ordinal as i32) })?;
    Ok(device)
}

/// A number that describes a device.
pub(super) fn device_attribute(driver: &Driver, device: i32, attribute: i32) -> Result<u32> {
    let mut value = 0;
    // SAFETY: `value` is valid for the number that the driver stores.
    driver.check("cuDeviceGetAttribute", unsafe { (driver.device_attribute)(&mut value, attribute, device) })?;
    Ok(value.unsigned_abs())
}

/// The compute capability, major and minor.
pub(super) fn capability(driver: &Driver, device: i32) -> Result<(u32, u32)> {
    Ok((device_attribute(driver, device, attribute::MAJOR)?, device_attribute(driver, device, attribute::MINOR)?))
}
