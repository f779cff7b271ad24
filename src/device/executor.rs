//! The seam between what is launched and who runs it.

use std::ffi::c_void;

use bytemuck::Pod;

use crate::backend::Buffer;
use crate::element::Element;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Layout, Matrix, MatrixMut, Memory, View, ViewMut};

/// A kernel: the file `kernels/<image>.cu` and the name it is declared with there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file, without its ending.
    pub image: &'static str,
    /// The name.
    pub name: &'static str,
}

/// How many threads run a kernel. One dimension: a grid's x may reach 2³¹−1 blocks, y and z only 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub blocks: u32,
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory per block, in bytes.
    pub shared_bytes: u32,
}

/// A parameter structure of `kernels/abi.h`.
///
/// # Safety
/// The type must be `#[repr(C)]` with the layout of the structure that the kernel takes by value.
pub unsafe trait Parameters: Copy {}

/// Runs kernels: a CUDA device, or the emulator.
pub trait Executor {
    /// The memory that its kernels work on.
    type Memory: Memory;
    /// A queue of work.
    type Stream;
    /// An owned array.
    type Buffer<T: Pod + Send + Sync>: Buffer<T, Self::Memory>;

    /// What kernels see added to every address. The emulator hands out an inaccessible alias of the real memory.
    const ALIAS: usize;
    /// `emulator` or `cuda`.
    const NAME: &'static str;

    /// As [`Backend::stream`](crate::Backend::stream).
    fn new_stream(&self) -> Result<Self::Stream>;
    /// As [`Backend::synchronize`](crate::Backend::synchronize).
    fn wait(&self, stream: &Self::Stream) -> Result<()>;
    /// As [`Backend::allocate`](crate::Backend::allocate).
    fn zeros<T: Pod + Send + Sync>(&self, stream: &Self::Stream, len: usize) -> Result<Self::Buffer<T>>;
    /// As [`Backend::upload`](crate::Backend::upload).
    fn send<T: Pod + Send + Sync>(&self, stream: &Self::Stream, data: &[T]) -> Result<Self::Buffer<T>>;
    /// As [`Backend::download`](crate::Backend::download).
    fn fetch<T: Pod + Send + Sync>(&self, stream: &Self::Stream, array: View<'_, T, Self::Memory>) -> Result<Vec<T>>;

    /// As [`Backend::fill`](crate::Backend::fill).
    fn set_bytes<T: Pod>(&self, stream: &Self::Stream, array: ViewMut<'_, T, Self::Memory>, byte: u8) -> Result<()>;

    /// How many blocks run side by side at full speed: the multiprocessors of the device. Never part of a result's bits.
    fn multiprocessors(&self) -> u32;

    /// Queues a product of matrices.
    ///
    /// # Errors
    /// [`Product::validate`]'s; [`Error::Unavailable`](crate::Error::Unavailable) where this build or machine has nothing that multiplies.
    fn multiply(&self, stream: &Self::Stream, product: Product<'_, Self::Memory>) -> Result<()>;

    /// Queues one kernel. Allocates nothing and waits for nothing.
    ///
    /// # Safety
    /// `params` must be the structure that `kernel` takes, and every pointer in it null or made by `arguments` from a view that is
    /// long enough for what the kernel does with `params`.
    unsafe fn launch<P: Parameters>(
        &self,
        stream: &Self::Stream,
        kernel: Kernel,
        grid: Grid,
        arguments: &Arguments,
        params: &P,
    ) -> Result<()>;
}

/// A product of matrices, summed in f32: `to = a · b`, or added to what is there.
#[derive(Debug)]
pub struct Product<'a, M> {
    /// `[rows, k]`.
    pub a: Factor<'a, M>,
    /// `[k, columns]`, in the same type.
    pub b: Factor<'a, M>,
    /// `[rows, columns]`, in the factors' type or f32.
    pub to: MatrixMut<'a, M>,
    /// The product is added to what `to` holds.
    pub is_added: bool,
    /// What the product may use for itself, at a multiple of 256.
    pub workspace: ViewMut<'a, u8, M>,
}

impl<M: Memory> Product<'_, M> {
    /// # Errors
    /// `Shape` where the factors do not fit each other or the product, `Dtype` where their types do not, `Alignment` of the workspace.
    pub fn validate(&self) -> Result<()> {
        let ((rows, k), (inner, columns)) = (self.a.shape(), self.b.shape());
        let (a, b, to) = (self.a.matrix.element(), self.b.matrix.element(), self.to.element());
        let mut checks = Checks::new();
        checks
            .shape("b", &[inner, columns], &[k, columns])
            .shape("to", &[self.to.rows(), self.to.columns()], &[rows, columns])
            .require(a == b && Element::FLOATS.contains(&a) && (to == a || to == Element::F32), Kind::Dtype, "to", || {
                format!("holds {to}, the factors {a} and {b}: they must be one floating-point type, and it that type or f32")
            })
            .require(self.workspace.address().is_multiple_of(256), Kind::Alignment, "workspace", || {
                format!("address {:#x} is not a multiple of 256", self.workspace.address())
            });
        checks.finish()
    }
}

/// A factor of a [`Product`].
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a, M> {
    /// The factor, or its transpose.
    pub matrix: Matrix<'a, M>,
    /// The factor is the transpose of `matrix`.
    pub is_transposed: bool,
}

impl<'a, M: Memory> Factor<'a, M> {
    /// The matrix itself.
    pub fn plain(matrix: Matrix<'a, M>) -> Self {
        Factor { matrix, is_transposed: false }
    }
    /// Its transpose.
    pub fn transposed(matrix: Matrix<'a, M>) -> Self {
        Factor { matrix, is_transposed: true }
    }
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        let (rows, columns) = (self.matrix.rows(), self.matrix.columns());
        if self.is_transposed { (columns, rows) } else { (rows, columns) }
    }
}

/// The buffers of one launch, by name: turns views into the pointers that a parameter structure holds. The emulator checks every
/// access of the kernel against them. For a device nothing is kept, nor allocated.
#[derive(Debug)]
pub struct Arguments {
    alias: usize,
    ranges: Vec<BufferRange>,
}

/// One buffer of a launch: rows of `row_bytes`, `stride_bytes` apart (equal where there is no gap), `bytes` in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferRange {
    /// The parameter's name.
    pub name: &'static str,
    /// The real address.
    pub address: usize,
    /// Bytes from the first to behind the last.
    pub bytes: usize,
    /// Bytes of a row that belong to the buffer.
    pub row_bytes: usize,
    /// Bytes from one row to the next.
    pub stride_bytes: usize,
    /// The kernel may store there.
    pub writable: bool,
}

impl Arguments {
    /// No buffers yet.
    pub fn new<E: Executor>() -> Arguments {
        Arguments { alias: E::ALIAS, ranges: Vec::new() }
    }

    /// The buffers so far, for the emulator.
    pub fn ranges(&self) -> &[BufferRange] {
        &self.ranges
    }

    fn add(&mut self, range: BufferRange) -> usize {
        // Where kernels see the real addresses, nobody asks for the ranges.
        if self.alias != 0 {
            self.ranges.push(range);
        }
        range.address.wrapping_add(self.alias)
    }

    fn add_flat(&mut self, name: &'static str, address: usize, bytes: usize, writable: bool) -> usize {
        self.add(BufferRange { name, address, bytes, row_bytes: bytes, stride_bytes: bytes, writable })
    }

    fn add_rows(&mut self, name: &'static str, layout: &Layout, writable: bool) -> usize {
        let (row_bytes, stride_bytes) =
            (layout.columns * layout.element.size(), layout.row_stride * layout.element.size());
        let bytes = layout.bytes();
        // Without gaps the rows are one piece: a 16-byte access may span two of them.
        let (row_bytes, stride_bytes) =
            if row_bytes == stride_bytes || layout.rows <= 1 { (bytes, bytes) } else { (row_bytes, stride_bytes) };
        self.add(BufferRange { name, address: layout.address, bytes, row_bytes, stride_bytes, writable })
    }

    /// The pointer to an array that the kernel reads.
    pub fn read<T: Pod, M: Memory>(&mut self, name: &'static str, array: View<'_, T, M>) -> *const T {
        self.add_flat(name, array.address(), array.len() * size_of::<T>(), false) as *const T
    }
    /// As [`read`](Arguments::read); null for `None`.
    pub fn read_optional<T: Pod, M: Memory>(&mut self, name: &'static str, array: Option<View<'_, T, M>>) -> *const T {
        array.map_or(std::ptr::null(), |array| self.read(name, array))
    }
    /// The pointer to an array that the kernel writes (and may read).
    pub fn write<T: Pod, M: Memory>(&mut self, name: &'static str, array: &mut ViewMut<'_, T, M>) -> *mut T {
        self.add_flat(name, array.address(), array.len() * size_of::<T>(), true) as *mut T
    }
    /// As [`write`](Arguments::write); null for `None`.
    pub fn write_optional<T: Pod, M: Memory>(
        &mut self,
        name: &'static str,
        array: &mut Option<ViewMut<'_, T, M>>,
    ) -> *mut T {
        array.as_mut().map_or(std::ptr::null_mut(), |array| self.write(name, array))
    }
    /// The pointer to a matrix that the kernel reads.
    pub fn read_matrix<M: Memory>(&mut self, name: &'static str, matrix: &Matrix<'_, M>) -> *const c_void {
        self.add_rows(name, matrix.layout(), false) as *const c_void
    }
    /// The pointer to a matrix that the kernel writes (and may read).
    pub fn write_matrix<M: Memory>(&mut self, name: &'static str, matrix: &mut MatrixMut<'_, M>) -> *mut c_void {
        self.add_rows(name, matrix.layout(), true) as *mut c_void
    }
}
