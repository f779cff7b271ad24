//! Queues of work on a device, and marks in them.

use std::sync::Arc;

use crate::device::cuda::context::Context;
use crate::device::cuda::driver::Handle;
use crate::error::Result;

const NON_BLOCKING: u32 = 1;
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A queue of work on a device: one of our own, a default one, or one that belongs to somebody else.
#[derive(Debug)]
pub struct Stream {
    pub(super) context: Arc<Context>,
    pub(super) handle: Handle,
    keeper: Keeper,
}

#[derive(Debug)]
enum Keeper {
    /// We do: destroyed in the end.
    Own,
    /// Nobody needs to, or the caller of an `unsafe` constructor promised to.
    Other,
    /// cudarc does, as long as this is held.
    Cudarc(#[allow(dead_code)] Arc<cudarc::driver::CudaStream>),
}

// SAFETY: the driver allows any thread to use a stream at any time.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new one, which does not wait for the legacy default stream.
    pub(super) fn create(context: &Arc<Context>) -> Result<Stream> {
        let _entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for the handle that the driver stores.
        let status = unsafe { (context.driver.stream_create)(&mut handle, NON_BLOCKING) };
        context.driver.check("cuStreamCreate", status)?;
        Ok(Stream { context: context.clone(), handle, keeper: Keeper::Own })
    }

    pub(super) fn legacy_default(context: &Arc<Context>) -> Stream {
        Stream { context: context.clone(), handle: LEGACY as Handle, keeper: Keeper::Other }
    }

    pub(super) fn per_thread_default(context: &Arc<Context>) -> Stream {
        Stream { context: context.clone(), handle: PER_THREAD as Handle, keeper: Keeper::Other }
    }

    /// # Safety
    /// `handle` must be a stream of `context` (or a default one) that outlives the value returned.
    pub(super) unsafe fn foreign(context: &Arc<Context>, handle: usize) -> Stream {
        Stream { context: context.clone(), handle: handle as Handle, keeper: Keeper::Other }
    }

    pub(super) fn cudarc(context: &Arc<Context>, stream: Arc<cudarc::driver::CudaStream>) -> Stream {
        let handle = stream.cu_stream().cast();
        Stream { context: context.clone(), handle, keeper: Keeper::Cudarc(stream) }
    }

    /// The driver's `CUstream`, as a number.
    pub fn as_raw(&self) -> usize {
        self.handle as usize
    }

    /// Waits for all work queued so far.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver), also for what earlier work did wrong.
    pub fn synchronize(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream is alive: we own it, hold its owner, or its owner promised.
        let status = unsafe { (self.context.driver.stream_synchronize)(self.handle) };
        self.context.driver.check("cuStreamSynchronize", status)
    }

    /// Work queued from now on waits for `event`. The thread does not.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver).
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: stream and event are alive.
        let status = unsafe { (self.context.driver.stream_wait)(self.handle, event.handle, 0) };
        self.context.driver.check("cuStreamWaitEvent", status)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Keeper::Own, Ok(_entered)) = (&self.keeper, self.context.enter()) {
            // SAFETY: made in `create`, dropped once; the driver finishes what is queued before it frees the stream.
            unsafe { (self.context.driver.stream_destroy)(self.handle) };
        }
    }
}

/// A mark in a stream: when the work queued before it was done.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: the driver allows any thread to use an event at any time.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn create(context: &Arc<Context>) -> Result<Event> {
        let _entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for the handle that the driver stores; flags 0 keep the time.
        context.driver.check("cuEventCreate", unsafe { (context.driver.event_create)(&mut handle, 0) })?;
        Ok(Event { context: context.clone(), handle })
    }

    /// Marks the end of what is queued on `stream` now.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver).
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: event and stream are alive.
        let status = unsafe { (self.context.driver.event_record)(self.handle, stream.handle) };
        self.context.driver.check("cuEventRecord", status)
    }

    /// Waits until the mark is reached.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver), also for what earlier work did wrong.
    pub fn synchronize(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive.
        let status = unsafe { (self.context.driver.event_synchronize)(self.handle) };
        self.context.driver.check("cuEventSynchronize", status)
    }

    /// Milliseconds on the device from `earlier` to this mark, both reached.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver) where one was not recorded or not reached.
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f32> {
        let _entered = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive; `milliseconds` is valid for the number that the driver stores.
        let status = unsafe { (self.context.driver.event_elapsed)(&mut milliseconds, earlier.handle, self.handle) };
        self.context.driver.check("cuEventElapsedTime", status)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made in `create`, dropped once.
            unsafe { (self.context.driver.event_destroy)(self.handle) };
        }
    }
}
