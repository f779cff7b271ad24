//! Arrays that belong to cudarc, lent to a call.

use bytemuck::Pod;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use crate::memory::{Device, View, ViewMut};

/// A slice or view of cudarc, lent for reading.
///
/// While it lives the stream has waited for earlier writes; when it is dropped, the reads queued in between are recorded, so that
/// cudarc's own bookkeeping stays right.
#[must_use = "the array is lent only while this lives"]
pub struct Lent<'a, T> {
    view: View<'a, T, Device>,
    _reads: SyncOnDrop<'a>,
}

/// As [`Lent`], for writing.
#[must_use = "the array is lent only while this lives"]
pub struct LentMut<'a, T> {
    view: ViewMut<'a, T, Device>,
    _writes: SyncOnDrop<'a>,
}

/// Lends a cudarc array to calls that are queued on `stream`.
///
/// ```no_run
/// # fn f(stream: std::sync::Arc<cudarc::driver::CudaStream>, logits: cudarc::driver::CudaSlice<f32>) {
/// use moerl::device::cuda::lend;
/// let logits = lend(&logits, &stream);
/// let view = logits.view(); // [N · V] f32 in device memory
/// # }
/// ```
pub fn lend<'a, T: Pod>(array: &'a impl DevicePtr<T>, stream: &'a CudaStream) -> Lent<'a, T> {
    let (pointer, reads) = array.device_ptr(stream);
    // SAFETY: cudarc's array is `len` elements of device memory, borrowed for 'a, and `reads` orders its later writes and its
    // release after what is queued on `stream`.
    let view = unsafe { View::from_raw(pointer as usize, array.len()) };
    Lent { view, _reads: reads }
}

/// Lends a cudarc array for writing to calls that are queued on `stream`.
pub fn lend_mut<'a, T: Pod>(array: &'a mut impl DevicePtrMut<T>, stream: &'a CudaStream) -> LentMut<'a, T> {
    let len = array.len();
    let (pointer, writes) = array.device_ptr_mut(stream);
    // SAFETY: as in `lend`; the exclusive borrow for 'a keeps others away.
    let view = unsafe { ViewMut::from_raw(pointer as usize, len) };
    LentMut { view, _writes: writes }
}

impl<T: Pod> Lent<'_, T> {
    /// The array.
    pub fn view(&self) -> View<'_, T, Device> {
        self.view
    }
}

impl<T: Pod> LentMut<'_, T> {
    /// The array, for reading.
    pub fn view(&self) -> View<'_, T, Device> {
        self.view.as_view()
    }
    /// The array, for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_, T, Device> {
        self.view.reborrow()
    }
}

impl<T> std::fmt::Debug for Lent<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lent({:?})", self.view)
    }
}
impl<T> std::fmt::Debug for LentMut<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LentMut({:?})", self.view)
    }
}
