//! Launches `kernels/bandwidth.cu`: what a device's memory gives to kernels that only copy, read or fill, and the price of a launch.
//!
//! The figures that other kernels are held against, measured by the same hand in the same process.

use crate::abi::MoerlBandwidth;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::{Checks, Kind, Result};
use crate::memory::{View, ViewMut};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlBandwidth {}

/// Bytes of a pack.
const PACK: usize = 16;
/// Threads of a block.
const THREADS: usize = 256;
/// Packs of a thread; `PACKS` in the kernel.
const PACKS: usize = 4;

fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "bandwidth", name }
}

fn blocks(packs: usize) -> usize {
    packs.div_ceil(THREADS * PACKS)
}

/// How many words [`read`] writes for an array of so many bytes: one a warp.
pub fn read_sums(bytes: usize) -> usize {
    blocks(bytes / PACK) * (THREADS / 32)
}

fn check(name: &'static str, address: usize, bytes: usize, checks: &mut Checks) {
    checks
        .require(bytes.is_multiple_of(PACK), Kind::Shape, name, || {
            format!("has {bytes} bytes, needs a multiple of {PACK}")
        })
        .require(address.is_multiple_of(PACK), Kind::Alignment, name, || {
            format!("address {address:#x} is not a multiple of {PACK}")
        });
}

/// `output = input`. Both of the same length, a multiple of 16 bytes at 16-byte addresses.
///
/// # Errors
/// `Shape`, `Alignment`.
pub fn copy<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    input: View<'_, u8, E::Memory>,
    mut output: ViewMut<'_, u8, E::Memory>,
) -> Result<()> {
    let mut checks = Checks::new();
    check("input", input.address(), input.len(), &mut checks);
    check("output", output.address(), output.len(), &mut checks);
    checks.shape("output", &[output.len()], &[input.len()]).finish()?;
    let mut arguments = Arguments::new::<E>();
    let params = MoerlBandwidth {
        input: arguments.read("input", input).cast(),
        output: arguments.write("output", &mut output).cast(),
        packs: (input.len() / PACK) as u64,
        word: 0,
        reserved: 0,
    };
    launch(executor, stream, "bandwidth_copy", &arguments, &params)
}

/// Reads `input` and leaves the exclusive-or of every warp's words in `sums` ([`read_sums`] of them).
///
/// # Errors
/// `Shape`, `Alignment`.
pub fn read<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    input: View<'_, u8, E::Memory>,
    mut sums: ViewMut<'_, u32, E::Memory>,
) -> Result<()> {
    let mut checks = Checks::new();
    check("input", input.address(), input.len(), &mut checks);
    checks.shape("sums", &[sums.len()], &[read_sums(input.len())]).finish()?;
    let mut arguments = Arguments::new::<E>();
    let params = MoerlBandwidth {
        input: arguments.read("input", input).cast(),
        output: arguments.write("sums", &mut sums).cast(),
        packs: (input.len() / PACK) as u64,
        word: 0,
        reserved: 0,
    };
    launch(executor, stream, "bandwidth_read", &arguments, &params)
}

/// Writes `word` all over `output`.
///
/// # Errors
/// `Shape`, `Alignment`.
pub fn fill<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    mut output: ViewMut<'_, u8, E::Memory>,
    word: u32,
) -> Result<()> {
    let mut checks = Checks::new();
    check("output", output.address(), output.len(), &mut checks);
    checks.finish()?;
    let packs = (output.len() / PACK) as u64;
    let mut arguments = Arguments::new::<E>();
    let output = arguments.write("output", &mut output).cast();
    let params = MoerlBandwidth { input: std::ptr::null(), output, packs, word, reserved: 0 };
    launch(executor, stream, "bandwidth_fill", &arguments, &params)
}

/// A launch of `blocks` blocks of `threads` threads (at most 1024) that do nothing.
///
/// # Errors
/// The backend's.
pub fn empty<E: Executor>(executor: &E, stream: &E::Stream, blocks: u32, threads: u32) -> Result<()> {
    let params =
        MoerlBandwidth { input: std::ptr::null(), output: std::ptr::null_mut(), packs: 0, word: 0, reserved: 0 };
    let mut checks = Checks::new();
    checks
        .require((1..=1024).contains(&threads), Kind::Shape, "threads", || format!("is {threads}, needs 1 to 1024"))
        .require(blocks >= 1, Kind::Shape, "blocks", || "is 0, needs at least 1".into());
    checks.finish()?;
    let grid = Grid { blocks, threads, shared_bytes: 0 };
    // SAFETY: the kernel takes this structure and follows no pointer.
    unsafe { executor.launch(stream, kernel("bandwidth_empty"), grid, &Arguments::new::<E>(), &params) }
}

fn launch<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    name: &'static str,
    arguments: &Arguments,
    params: &MoerlBandwidth,
) -> Result<()> {
    if params.packs == 0 {
        return Ok(());
    }
    let grid = Grid { blocks: blocks(params.packs as usize) as u32, threads: THREADS as u32, shared_bytes: 0 };
    // SAFETY: the callers checked that the arrays hold `packs` packs, at addresses that 16-byte accesses may have, and for `read` a
    // word for every warp of this grid.
    unsafe { executor.launch(stream, kernel(name), grid, arguments, params) }
}

#[cfg(all(test, feature = "emulate"))]
mod tests {
    use super::*;
    use crate::{Backend, Buffer, Emulator};

    #[test]
    fn every_byte_is_moved_once() {
        for packs in [1, 255, 1024, 1025, 5000] {
            let bytes = packs * PACK;
            let emulator = Emulator::new().metered();
            let data: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
            let input = emulator.upload(&(), &data).unwrap();
            let mut output = emulator.allocate::<u8>(&(), bytes).unwrap();
            copy(&emulator, &(), input.view(), output.view_mut()).unwrap();
            assert_eq!(emulator.download(&(), output.view()).unwrap(), data);
            let mut sums = emulator.allocate::<u32>(&(), read_sums(bytes)).unwrap();
            read(&emulator, &(), input.view(), sums.view_mut()).unwrap();
            let words = data.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
            let folded = emulator.download(&(), sums.view()).unwrap().into_iter().fold(0, |a, b| a ^ b);
            assert_eq!(folded, words.fold(0, |a, b| a ^ b));
            fill(&emulator, &(), output.view_mut(), 0xabcd_0123).unwrap();
            let filled = emulator.download(&(), output.view()).unwrap();
            assert!(filled.chunks_exact(4).all(|word| word == 0xabcd_0123_u32.to_ne_bytes()));
            let [copied, read, filled] = &emulator.take_traffic()[..] else { panic!("three launches") };
            for (launch, name) in [(copied, "input"), (read, "input")] {
                let loads = launch.buffer(name).unwrap().loads;
                assert_eq!((loads.once, loads.again, loads.untouched), (bytes as u64, 0, 0));
            }
            for launch in [copied, filled] {
                let stores = launch.buffer("output").unwrap().stores;
                assert_eq!((stores.once, stores.again, stores.untouched), (bytes as u64, 0, 0));
            }
        }
    }

    #[test]
    fn what_a_pack_does_not_divide_is_refused() {
        let emulator = Emulator::new();
        let input = emulator.upload(&(), &[0_u8; 40]).unwrap();
        let mut output = emulator.allocate::<u8>(&(), 40).unwrap();
        let refused = copy(&emulator, &(), input.view(), output.view_mut()).unwrap_err().to_string();
        assert!(refused.contains("input: has 40 bytes, needs a multiple of 16"), "{refused}");
        assert!(empty(&emulator, &(), 1, 1025).is_err());
        empty(&emulator, &(), 3, 64).unwrap();
    }
}
