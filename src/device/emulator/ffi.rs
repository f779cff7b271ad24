//! The C interface of the runtime: kernels/emulation/emulation.h, mirrored by hand.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::traffic::{BufferTraffic, Touches};
use crate::device::executor::BufferRange;

/// MOERL_EMULATION_ALIAS.
pub(super) const ALIAS: usize = if cfg!(target_arch = "x86_64") { 1 << 62 } else { 1 << 55 };

/// A table of emulated kernels.
#[derive(Clone, Copy, Debug)]
pub struct Table(*const c_void);

// SAFETY: a table is constant data of the program, read by anyone.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// The kernels of this crate.
    pub fn shipped() -> Table {
        Table(&raw const moerl_emulation_table)
    }

    /// Another table.
    ///
    /// # Safety
    /// `table` must point to a `MoerlEmulationTable` that is never freed.
    pub unsafe fn from_raw(table: *const c_void) -> Table {
        Table(table)
    }

    pub(super) fn as_ptr(self) -> *const c_void {
        self.0
    }
}

/// MoerlEmulationRange.
#[repr(C)]
pub(super) struct Range {
    name: *const c_char,
    address: u64,
    bytes: u64,
    row_bytes: u64,
    stride_bytes: u64,
    writable: u64,
}

impl Range {
    /// The caller keeps `name` alive as long as the range.
    pub(super) fn new(buffer: &BufferRange, name: &CStr) -> Range {
        Range {
            name: name.as_ptr(),
            address: buffer.address as u64,
            bytes: buffer.bytes as u64,
            row_bytes: buffer.row_bytes as u64,
            stride_bytes: buffer.stride_bytes as u64,
            writable: u64::from(buffer.writable),
        }
    }
}

/// MoerlEmulationTraffic.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    loads: u64,
    stores: u64,
    atomics: u64,
    load_bytes: u64,
    store_bytes: u64,
    bytes_loaded_once: u64,
    bytes_loaded_again: u64,
    bytes_stored_once: u64,
    bytes_stored_again: u64,
    most_loads: u64,
    most_stores: u64,
    load_sectors: u64,
    store_sectors: u64,
    warp_load_sectors: u64,
    warp_store_sectors: u64,
}

impl Traffic {
    pub(super) fn named(&self, buffer: &BufferRange) -> BufferTraffic {
        let rows = if buffer.stride_bytes == 0 { 1 } else { buffer.bytes.div_ceil(buffer.stride_bytes) };
        let bytes = (rows * buffer.row_bytes).min(buffer.bytes) as u64;
        BufferTraffic {
            name: buffer.name,
            bytes,
            loads: Touches {
                accesses: self.loads,
                bytes: self.load_bytes,
                untouched: bytes - self.bytes_loaded_once - self.bytes_loaded_again,
                once: self.bytes_loaded_once,
                again: self.bytes_loaded_again,
                most: self.most_loads,
                sectors: self.load_sectors,
                warp_sectors: self.warp_load_sectors,
            },
            stores: Touches {
                accesses: self.stores,
                bytes: self.store_bytes,
                untouched: bytes - self.bytes_stored_once - self.bytes_stored_again,
                once: self.bytes_stored_once,
                again: self.bytes_stored_again,
                most: self.most_stores,
                sectors: self.store_sectors,
                warp_sectors: self.warp_store_sectors,
            },
            atomics: self.atomics,
        }
    }
}

/// MoerlEmulationLaunch.
#[repr(C)]
pub(super) struct Launch {
    pub(super) table: *const c_void,
    pub(super) kernel: *const c_char,
    pub(super) params: *const c_void,
    pub(super) params_bytes: u64,
    pub(super) ranges: *const Range,
    pub(super) range_count: u64,
    pub(super) traffic: *mut Traffic,
    pub(super) seed: u64,
    pub(super) schedule: u32,
    pub(super) blocks_in_flight: u32,
    pub(super) blocks: u32,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) reserved: u32,
}

const _: () = assert!(size_of::<Range>() == 48 && size_of::<Traffic>() == 120 && size_of::<Launch>() == 88);

unsafe extern "C" {
    static moerl_emulation_table: c_void;
    fn moerl_emulation_launch(launch: *const Launch, message: *mut c_char, message_bytes: usize) -> c_int;
    fn moerl_emulation_sanitizer() -> *const c_char;
}

/// What the kernels run under: `address`, `thread`, or empty for no sanitizer.
pub fn sanitizer() -> &'static str {
    // SAFETY: the function takes nothing, and returns a terminated constant.
    unsafe { CStr::from_ptr(moerl_emulation_sanitizer()) }.to_str().expect("the names of sanitizers are ASCII")
}

/// Runs a kernel to its end; the error is the runtime's message.
///
/// # Safety
/// Every pointer in `launch` must be valid for the count beside it, and `params` be the structure that the kernel takes.
pub(super) unsafe fn launch(launch: &Launch) -> Result<(), String> {
    let mut message: [c_char; 1024] = [0; 1024];
    // SAFETY: the caller vouches for what `launch` points to; `message` has the length given.
    let result = unsafe { moerl_emulation_launch(launch, message.as_mut_ptr(), message.len()) };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: the runtime always terminates the message, within the length given.
    let text = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(text.to_string_lossy().into_owned())
}
