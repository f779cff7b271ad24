//! Launches `kernels/echo.cu`: what the device sees of a parameter structure.

use crate::abi::{MoerlEcho, MoerlEchoCall};
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::Result;

const ECHO: Kernel = Kernel { image: "echo", name: "echo" };

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlEchoCall {}

/// The bytes of `sent` as the device copied them field by field, and its sizeof and field offsets.
pub fn echo<E: Executor>(executor: &E, stream: &E::Stream, sent: MoerlEcho) -> Result<(Vec<u8>, Vec<u64>)> {
    let mut copy = executor.zeros::<u8>(stream, size_of::<MoerlEcho>())?;
    let mut layout = executor.zeros::<u64>(stream, 12)?;
    let mut arguments = Arguments::new::<E>();
    let params = MoerlEchoCall {
        copy: arguments.write("copy", &mut copy.view_mut()).cast(),
        layout: arguments.write("layout", &mut layout.view_mut()),
        sent,
    };
    // SAFETY: `copy` has sizeof(MoerlEcho) bytes, `layout` the 12 numbers that the kernel writes.
    unsafe { executor.launch(stream, ECHO, Grid { blocks: 1, threads: 32, shared_bytes: 0 }, &arguments, &params)? };
    Ok((executor.fetch(stream, copy.view())?, executor.fetch(stream, layout.view())?))
}

#[cfg(all(test, feature = "emulate"))]
mod tests {
    use super::*;
    use crate::Emulator;

    #[test]
    fn the_emulator_echoes_a_structure_field_by_field_and_lays_it_out_as_the_host_does() {
        let sent = MoerlEcho {
            input: std::ptr::without_provenance(0x1122_3344_5566_7788),
            output: std::ptr::without_provenance_mut(0x99aa_bbcc_ddee_ff00),
            count: u64::MAX - 1,
            stride: -3,
            real64: -0.5,
            number: 0xdead_beef,
            offset: -7,
            real32: f32::MIN_POSITIVE,
            small: 513,
            flag: 1,
            last: 255,
        };
        // SAFETY: the structure is plain data without padding (its size is the sum of its fields', which abi.rs asserts).
        let bytes = unsafe { std::slice::from_raw_parts((&raw const sent).cast::<u8>(), size_of::<MoerlEcho>()) };
        let (copy, layout) = echo(&Emulator::new(), &(), sent).expect("echo");
        assert_eq!(copy, bytes);
        assert_eq!(layout, [56, 0, 8, 16, 24, 32, 40, 44, 48, 52, 54, 55]);
    }
}
