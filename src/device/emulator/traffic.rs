//! What launches did to memory.

use crate::device::executor::{Grid, Kernel};

/// A launch, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The kernel.
    pub kernel: Kernel,
    /// Its blocks, threads and shared memory.
    pub grid: Grid,
}

/// What one launch did to its buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchTraffic {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Its blocks, threads and shared memory.
    pub grid: Grid,
    /// Its buffers, in the order in which the launch named them.
    pub buffers: Vec<BufferTraffic>,
}

impl LaunchTraffic {
    /// The buffer of this name.
    pub fn buffer(&self, name: &str) -> Option<&BufferTraffic> {
        self.buffers.iter().find(|buffer| buffer.name == name)
    }

    /// Bytes loaded from all buffers.
    pub fn load_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.loads.bytes).sum()
    }

    /// Bytes stored to all buffers.
    pub fn store_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.stores.bytes).sum()
    }
}

/// What one launch did to one buffer.
///
/// Memory that a launch both reads through one parameter and writes through another (in place) counts as loads of the first and stores
/// of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferTraffic {
    /// The parameter's name.
    pub name: &'static str,
    /// Its size, without gaps between rows.
    pub bytes: u64,
    /// Loads, asynchronous copies included.
    pub loads: Touches,
    /// Stores.
    pub stores: Touches,
    /// Atomic operations, which are neither loads nor stores here.
    pub atomics: u64,
}

/// Accesses to a buffer in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touches {
    /// Accesses by single threads.
    pub accesses: u64,
    /// Bytes of all accesses together.
    pub bytes: u64,
    /// Bytes of the buffer that no access touched.
    pub untouched: u64,
    /// Bytes of the buffer that exactly one access touched.
    pub once: u64,
    /// Bytes of the buffer that more than one access touched.
    pub again: u64,
    /// The most accesses to any one byte (65535 stands for that many or more).
    pub most: u64,
    /// Sectors of 32 bytes at a multiple of 32 that a block touched, added up over the blocks.
    pub sectors: u64,
    /// Sectors that an instruction of a warp touched, added up. For information: the threads of a warp are not run in step, and what
    /// belongs to one instruction is guessed from the order in which each thread comes by the same source line.
    pub warp_sectors: u64,
}
