//! Launches `kernels/ema.cu`: once for every 512 tensors.

use crate::abi::*;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::element::Element;
use crate::ema::{Call, Step, Tensor};
use crate::error::Result;
use crate::memory::{Matrix, Memory};

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlEma {}

/// Threads of a block; `EMA_THREADS` in the kernel.
const THREADS: u32 = 256;
/// Tensors of a launch.
const TENSORS: usize = MOERL_EMA_TENSORS as usize;

/// Where nothing is.
const NONE: MoerlEmaTensor = MoerlEmaTensor {
    parameters: std::ptr::null(),
    initial: std::ptr::null(),
    state: std::ptr::null_mut(),
    copy: std::ptr::null_mut(),
    length: 0,
    first_block: 0,
    element: 0,
    aligned: 0,
    reserved: [0; 2],
};

/// The record of a tensor whose blocks begin with `first_block`.
fn record<M: Memory>(arguments: &mut Arguments, tensor: &mut Tensor<'_, M>, first_block: u32) -> MoerlEmaTensor {
    let addresses = [
        tensor.parameters.address(),
        tensor.state.address(),
        tensor.copy.as_ref().map_or(0, |array| array.address()),
        tensor.initial.as_ref().map_or(0, Matrix::address),
    ];
    MoerlEmaTensor {
        parameters: arguments.read_matrix("parameters", &tensor.parameters),
        initial: tensor.initial.as_ref().map_or(std::ptr::null(), |matrix| arguments.read_matrix("initial", matrix)),
        state: arguments.write_matrix("state", &mut tensor.state).cast(),
        copy: arguments.write_optional("copy", &mut tensor.copy).cast(),
        length: tensor.len() as u64,
        first_block,
        element: match tensor.parameters.element() {
            Element::Bf16 => MOERL_BF16 as u8,
            Element::F16 => MOERL_F16 as u8,
            _ => MOERL_F32 as u8,
        },
        aligned: u8::from(addresses.iter().all(|address| address.is_multiple_of(16))),
        reserved: [0; 2],
    }
}

/// [`Backend::ema`](crate::Backend::ema).
pub(super) fn ema<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    step: &Step,
    mut call: Call<'_, '_, E::Memory>,
) -> Result<()> {
    call.validate(step)?;
    for list in call.tensors.chunks_mut(TENSORS) {
        let mut arguments = Arguments::new::<E>();
        let mut params = MoerlEma {
            nonfinite: arguments.write_optional("nonfinite", &mut call.nonfinite),
            tensor_count: 0,
            weight: step.weight as f32,
            scale: step.scale as f32,
            bias: step.bias as f32,
            tensors: [NONE; TENSORS],
        };
        let mut blocks = 0;
        for tensor in list.iter_mut().filter(|tensor| tensor.len() > 0) {
            params.tensors[params.tensor_count as usize] = record(&mut arguments, tensor, blocks);
            params.tensor_count += 1;
            blocks += tensor.len().div_ceil(MOERL_EMA_CHUNK as usize) as u32;
        }
        if blocks == 0 {
            continue;
        }
        let kernel = Kernel { image: "ema", name: "ema" };
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: validate compared the elements of every tensor's arrays, and that they have no gaps.
        unsafe { executor.launch(stream, kernel, grid, &arguments, &params)? };
    }
    Ok(())
}
