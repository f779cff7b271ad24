//! Launches `kernels/echo.cu`: what the device sees of a parameter structure.

use crate::abi::{MoerlEcho, MoerlEchoCall};
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::error::Result;

const ECHO: Kernel = Kernel { image: "echo", name: "echo" };

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlEchoCall {}

/// The bytes of `sent` as the device copied them field by field, and its sizeof and field offsets.
#[doc(hidden)]
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
