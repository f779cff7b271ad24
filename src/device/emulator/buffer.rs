//! Memory of the emulator: ordinary memory, aligned as cudaMalloc aligns.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use bytemuck::Pod;

use crate::backend::Buffer;
use crate::error::{Error, Result};
use crate::memory::{Host, View, ViewMut};

/// As cudaMalloc promises; kernels may count on it for whole arrays.
const ALIGNMENT: usize = 256;

/// An owned array of the [`Emulator`](crate::Emulator). Exactly as long as it was asked for, so that AddressSanitizer sees its ends.
pub struct EmulatorBuffer<T> {
    first: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: the buffer owns its memory as a Vec<T> does.
unsafe impl<T: Send> Send for EmulatorBuffer<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Sync> Sync for EmulatorBuffer<T> {}

impl<T: Pod> EmulatorBuffer<T> {
    pub(super) fn zeros(len: usize) -> Result<Self> {
        let unavailable = || Error::Unavailable {
            what: format!("no memory for {len} elements of {} bytes", size_of::<T>()),
            fix: "use smaller arrays".into(),
        };
        let layout = layout::<T>(len).ok_or_else(unavailable)?;
        let first = if layout.size() == 0 {
            // No memory, but an address that is aligned all the same.
            NonNull::new(ALIGNMENT as *mut T).expect("an alignment is not 0")
        } else {
            // SAFETY: the layout's size is not 0.
            NonNull::new(unsafe { alloc_zeroed(layout) }.cast()).ok_or_else(unavailable)?
        };
        Ok(EmulatorBuffer { first, len, owns: PhantomData })
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `first` has `len` elements that were zeroed, and T is Pod, for which any bytes are valid.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    /// The elements, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as `as_slice`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

fn layout<T>(len: usize) -> Option<Layout> {
    Layout::array::<T>(len).ok()?.align_to(ALIGNMENT).ok()
}

impl<T> Drop for EmulatorBuffer<T> {
    fn drop(&mut self) {
        let layout = layout::<T>(self.len).expect("it was computed for the allocation");
        if layout.size() != 0 {
            // SAFETY: `first` was allocated with this very layout, and nobody else frees it.
            unsafe { dealloc(self.first.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Pod> Clone for EmulatorBuffer<T> {
    fn clone(&self) -> Self {
        let mut copy = EmulatorBuffer::zeros(self.len).expect("there was memory for the original");
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl<T> fmt::Debug for EmulatorBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmulatorBuffer {{ {:?}, len {} }}", self.first, self.len)
    }
}

impl<T: Pod> Buffer<T, Host> for EmulatorBuffer<T> {
    fn view(&self) -> View<'_, T, Host> {
        self.as_slice().into()
    }
    fn view_mut(&mut self) -> ViewMut<'_, T, Host> {
        self.as_mut_slice().into()
    }
}
