//! Device memory that we own.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use crate::backend::Buffer;
use crate::device::cuda::context::Context;
use crate::device::cuda::driver::DevicePointer;
use crate::error::{Error, Kind, Result};
use crate::memory::{Device, View, ViewMut};

/// An owned array in device memory.
///
/// Dropping it waits for the device, so that no queued work loses its memory; not while the same thread records a graph. A trainer's inner loop lends the memory that it has
/// ([`View::from_raw`], [`lend`](crate::device::cuda::lend)) and meets no such wait.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    context: Arc<Context>,
    pub(super) pointer: DevicePointer,
    len: usize,
    holds: PhantomData<T>,
}

impl<T: Pod> DeviceBuffer<T> {
    /// `len` elements, not yet initialised.
    pub(super) fn allocate(context: &Arc<Context>, len: usize) -> Result<DeviceBuffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::invalid(Kind::Shape, "len", format!("{len} elements of {} bytes exceed any memory", size_of::<T>()))
        })?;
        let pointer = context.allocate(bytes)?;
        Ok(DeviceBuffer { context: context.clone(), pointer, len, holds: PhantomData })
    }

    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Pod> Buffer<T, Device> for DeviceBuffer<T> {
    fn view(&self) -> View<'_, T, Device> {
        // SAFETY: `pointer` is `len` elements of device memory, initialised before the buffer was handed out, and freed only after
        // all queued work.
        unsafe { View::from_raw(self.pointer as usize, self.len) }
    }
    fn view_mut(&mut self) -> ViewMut<'_, T, Device> {
        // SAFETY: as `view`, and `&mut self` keeps others away while the view lives.
        unsafe { ViewMut::from_raw(self.pointer as usize, self.len) }
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from `allocate`, and is given up here.
        unsafe { self.context.free(self.pointer) };
    }
}
