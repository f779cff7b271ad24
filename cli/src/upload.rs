//! Pieces of a file's tensors in a backend's memory, whatever their element type.

use std::ops::Range;

use moerl::element::{Element, bf16, f16};
use moerl::error::Kind;
use moerl::memory::Matrix;
use moerl::{Backend, Buffer, Error, Result};

use crate::stepfile::Tensor;

/// An array of a backend whose element type is known at run time.
pub enum AnyBuffer<B: Backend> {
    /// bfloat16
    Bf16(B::Buffer<bf16>),
    /// IEEE half precision
    F16(B::Buffer<f16>),
    /// IEEE single precision
    F32(B::Buffer<f32>),
    /// 8-bit unsigned
    U8(B::Buffer<u8>),
    /// 16-bit unsigned
    U16(B::Buffer<u16>),
    /// 16-bit signed
    I16(B::Buffer<i16>),
    /// 32-bit signed
    I32(B::Buffer<i32>),
}

/// Evaluates an expression for the buffer inside, whatever its type.
macro_rules! each {
    ($any:expr, $buffer:ident => $value:expr) => {
        match $any {
            AnyBuffer::Bf16($buffer) => $value,
            AnyBuffer::F16($buffer) => $value,
            AnyBuffer::F32($buffer) => $value,
            AnyBuffer::U8($buffer) => $value,
            AnyBuffer::U16($buffer) => $value,
            AnyBuffer::I16($buffer) => $value,
            AnyBuffer::I32($buffer) => $value,
        }
    };
}

impl<B: Backend> AnyBuffer<B> {
    /// Copies elements `range` of a tensor.
    ///
    /// # Errors
    /// `Dtype` for 64-bit integers and types that no operation takes; the backend's own.
    pub fn upload(backend: &B, stream: &B::Stream, tensor: &Tensor<'_>, range: Range<usize>) -> Result<AnyBuffer<B>> {
        Ok(match tensor.element {
            Some(Element::Bf16) => AnyBuffer::Bf16(backend.upload(stream, &tensor.elements(range))?),
            Some(Element::F16) => AnyBuffer::F16(backend.upload(stream, &tensor.elements(range))?),
            Some(Element::F32) => AnyBuffer::F32(backend.upload(stream, &tensor.elements(range))?),
            Some(Element::U8) => AnyBuffer::U8(backend.upload(stream, &tensor.elements(range))?),
            Some(Element::U16) => AnyBuffer::U16(backend.upload(stream, &tensor.elements(range))?),
            Some(Element::I16) => AnyBuffer::I16(backend.upload(stream, &tensor.elements(range))?),
            Some(Element::I32) => AnyBuffer::I32(backend.upload(stream, &tensor.elements(range))?),
            _ => return Err(Error::invalid(Kind::Dtype, "tensor", format!("{} {}", tensor.name, tensor.describe()))),
        })
    }

    /// `rows` rows of `columns` elements, the first at element `first`, `row_stride` apart.
    ///
    /// # Errors
    /// `Shape` where the array is too short.
    pub fn matrix(
        &self,
        first: usize,
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Result<Matrix<'_, B::Memory>> {
        each!(self, buffer => {
            let view = buffer.view();
            let end = view.len();
            Matrix::strided(view.slice(first.min(end)..end), rows, columns, row_stride)
        })
    }
}
