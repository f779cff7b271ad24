//! Borrowed arrays, wherever they lie.
//!
//! A [`View`] is an address and a length with a type, a lifetime and a *memory*: [`Host`] or [`Device`]. It owns nothing and copies
//! nothing, so a trainer hands over the tensors it already has. [`Matrix`] adds rows with any stride and forgets the element type,
//! which a call then checks at run time.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use crate::element::{Element, Float, Scalar};
use crate::error::{Checks, Error, Extent, Kind, Result};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Host {}
    impl Sealed for super::Device {}
}

/// Where an array lies.
pub trait Memory: sealed::Sealed + Copy + std::fmt::Debug + Send + Sync + 'static {}

/// Ordinary memory: what [`Reference`](crate::Reference) and the emulator work on.
#[derive(Clone, Copy, Debug)]
pub enum Host {}
/// Memory of a CUDA device.
#[derive(Clone, Copy, Debug)]
pub enum Device {}

impl Memory for Host {}
impl Memory for Device {}

/// A borrowed array for reading.
pub struct View<'a, T, M> {
    address: usize,
    len: usize,
    lends: PhantomData<(&'a [T], M)>,
}

/// A borrowed array for writing.
pub struct ViewMut<'a, T, M> {
    address: usize,
    len: usize,
    lends: PhantomData<(&'a mut [T], M)>,
}

impl<T, M> Clone for View<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T, M> Copy for View<'_, T, M> {}

impl<T, M> std::fmt::Debug for View<'_, T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View {{ {:#x}, len {} }}", self.address, self.len)
    }
}
impl<T, M> std::fmt::Debug for ViewMut<'_, T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ViewMut {{ {:#x}, len {} }}", self.address, self.len)
    }
}

impl<'a, T: Pod, M: Memory> View<'a, T, M> {
    /// An array of `len` elements at a device or host address.
    ///
    /// # Safety
    /// `address .. address + len · size_of::<T>()` must be memory of kind `M`, initialised, and must stay so, unwritten by anyone
    /// else, until all work queued on it has finished.
    pub unsafe fn from_raw(address: usize, len: usize) -> Self {
        View { address, len, lends: PhantomData }
    }

    /// Its elements in `range`. Panics where the range is outside, as slices do.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {} elements", self.len);
        View { address: self.address + range.start * size_of::<T>(), len: range.len(), lends: PhantomData }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The address of the first element.
    pub fn address(&self) -> usize {
        self.address
    }

    /// The bytes it covers, for overlap checks.
    pub(crate) fn extent(&self, name: &'static str) -> Extent {
        Extent { name, address: self.address, bytes: self.len * size_of::<T>(), written: false }
    }
}

impl<'a, T: Pod, M: Memory> ViewMut<'a, T, M> {
    /// An array of `len` elements at a device or host address, for writing.
    ///
    /// # Safety
    /// As [`View::from_raw`], and nothing else may read or write the memory until all work queued on it has finished.
    pub unsafe fn from_raw(address: usize, len: usize) -> Self {
        ViewMut { address, len, lends: PhantomData }
    }

    /// The same array, lent on for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T, M> {
        ViewMut { address: self.address, len: self.len, lends: PhantomData }
    }
    /// The same array; an empty one stays behind.
    pub(crate) fn take(&mut self) -> Self {
        ViewMut { address: self.address, len: std::mem::take(&mut self.len), lends: PhantomData }
    }
    /// What lies before element `middle`, and the rest. Panics where that is outside.
    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        assert!(middle <= self.len, "{middle} of {} elements", self.len);
        let address = self.address + middle * size_of::<T>();
        let rest = ViewMut { address, len: self.len - middle, lends: PhantomData };
        (ViewMut { address: self.address, len: middle, lends: PhantomData }, rest)
    }
    /// The same array, for reading.
    pub fn as_view(&self) -> View<'_, T, M> {
        View { address: self.address, len: self.len, lends: PhantomData }
    }
    /// Its elements in `range`. Panics where the range is outside, as slices do.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {} elements", self.len);
        ViewMut { address: self.address + range.start * size_of::<T>(), len: range.len(), lends: PhantomData }
    }
    /// The same memory as bytes: any of them make a `T`.
    pub fn into_bytes(self) -> ViewMut<'a, u8, M> {
        ViewMut { address: self.address, len: self.len * size_of::<T>(), lends: PhantomData }
    }
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The address of the first element.
    pub fn address(&self) -> usize {
        self.address
    }

    /// The bytes it covers, for overlap checks.
    pub(crate) fn extent(&self, name: &'static str) -> Extent {
        Extent { name, address: self.address, bytes: self.len * size_of::<T>(), written: true }
    }
}

impl<'a, T: Pod> From<&'a [T]> for View<'a, T, Host> {
    fn from(slice: &'a [T]) -> Self {
        View { address: slice.as_ptr() as usize, len: slice.len(), lends: PhantomData }
    }
}
impl<'a, T: Pod> From<&'a Vec<T>> for View<'a, T, Host> {
    fn from(vec: &'a Vec<T>) -> Self {
        vec.as_slice().into()
    }
}
impl<'a, T: Pod> From<&'a mut [T]> for ViewMut<'a, T, Host> {
    fn from(slice: &'a mut [T]) -> Self {
        ViewMut { address: slice.as_mut_ptr() as usize, len: slice.len(), lends: PhantomData }
    }
}
impl<'a, T: Pod> From<&'a mut Vec<T>> for ViewMut<'a, T, Host> {
    fn from(vec: &'a mut Vec<T>) -> Self {
        vec.as_mut_slice().into()
    }
}

impl<'a, T: Pod> View<'a, T, Host> {
    /// The slice it was made from.
    pub fn as_slice(&self) -> &'a [T] {
        // SAFETY: a `Host` view is made from a slice that lives for 'a (From), or by `from_raw`, whose caller promised the same;
        // T is Pod, so any initialised bytes are valid.
        unsafe { std::slice::from_raw_parts(self.address as *const T, self.len) }
    }
}

impl<T: Pod> ViewMut<'_, T, Host> {
    /// The slice it was made from.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: a `Host` view for writing is made from an exclusive slice (From), or by `from_raw`, whose caller promised the
        // same; `&mut self` keeps the access exclusive; T is Pod.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut T, self.len) }
    }
}

/// Rows of one element type that is known at run time; consecutive columns, any row stride.
pub struct Matrix<'a, M> {
    layout: Layout,
    lends: PhantomData<(&'a [u8], M)>,
}

/// As [`Matrix`], for writing.
pub struct MatrixMut<'a, M> {
    layout: Layout,
    lends: PhantomData<(&'a mut [u8], M)>,
}

/// Where the rows of a [`Matrix`] lie. Strides are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) address: usize,
    pub(crate) element: Element,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
}

impl Layout {
    fn new<T: Scalar>(address: usize, len: usize, rows: usize, columns: usize, row_stride: usize) -> Result<Layout> {
        let needed = if rows == 0 {
            Some(0)
        } else {
            (rows - 1).checked_mul(row_stride).and_then(|last| last.checked_add(columns))
        };
        let mut checks = Checks::new();
        checks
            .require(rows <= 1 || row_stride >= columns, Kind::Shape, "row_stride", || {
                format!("is {row_stride}, less than the {columns} columns")
            })
            .require(needed.is_some_and(|n| n <= len), Kind::Shape, "matrix", || {
                format!("{rows} rows of {columns} at stride {row_stride} need more than the {len} elements given")
            })
            .require(address.is_multiple_of(size_of::<T>()), Kind::Alignment, "matrix", || {
                format!("address {address:#x} is not a multiple of {}", size_of::<T>())
            });
        checks.finish()?;
        Ok(Layout { address, element: T::ELEMENT, rows, columns, row_stride })
    }

    /// Bytes from the first element to behind the last one.
    pub(crate) fn bytes(&self) -> usize {
        if self.rows == 0 { 0 } else { ((self.rows - 1) * self.row_stride + self.columns) * self.element.size() }
    }

    pub(crate) fn extent(&self, name: &'static str, written: bool) -> Extent {
        Extent { name, address: self.address, bytes: self.bytes(), written }
    }

    fn row_range(&self, range: Range<usize>) -> Layout {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let address = self.address + range.start * self.row_stride * self.element.size();
        Layout { address, rows: range.len(), ..*self }
    }

    /// True if no bytes lie between the rows.
    pub(crate) fn has_no_gaps(&self) -> bool {
        self.row_stride == self.columns
    }
}

impl<M> Clone for Matrix<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Matrix<'_, M> {}

impl<M> std::fmt::Debug for Matrix<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix {:?}", self.layout)
    }
}
impl<M> std::fmt::Debug for MatrixMut<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MatrixMut {:?}", self.layout)
    }
}

macro_rules! matrix_facts {
    ($type:ident) => {
        impl<M: Memory> $type<'_, M> {
            /// The element type.
            pub fn element(&self) -> Element {
                self.layout.element
            }
            /// The number of rows.
            pub fn rows(&self) -> usize {
                self.layout.rows
            }
            /// The number of columns.
            pub fn columns(&self) -> usize {
                self.layout.columns
            }
            /// Elements from one row's start to the next one's.
            pub fn row_stride(&self) -> usize {
                self.layout.row_stride
            }
            /// The address of the first element.
            pub fn address(&self) -> usize {
                self.layout.address
            }
            pub(crate) fn layout(&self) -> &Layout {
                &self.layout
            }
        }
    };
}
matrix_facts!(Matrix);
matrix_facts!(MatrixMut);

impl<'a, M: Memory> Matrix<'a, M> {
    /// `rows` rows of `columns` elements, one behind the other.
    ///
    /// # Errors
    /// `Shape` where the array is too short.
    pub fn new<T: Scalar>(array: impl Into<View<'a, T, M>>, rows: usize, columns: usize) -> Result<Self> {
        Self::strided(array, rows, columns, columns)
    }

    /// `rows` rows of `columns` elements, `row_stride` elements apart. Layer `l` of a `[T, L, k]` array is
    /// `Matrix::strided(array.slice(l * k..len), T, k, L * k)`.
    ///
    /// # Errors
    /// `Shape` where the array is too short or rows would overlap.
    pub fn strided<T: Scalar>(
        array: impl Into<View<'a, T, M>>,
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Result<Self> {
        let view = array.into();
        let layout = Layout::new::<T>(view.address, view.len, rows, columns, row_stride)?;
        Ok(Matrix { layout, lends: PhantomData })
    }

    /// Rows `range`. Panics where the range is outside, as slices do.
    pub fn row_range(self, range: Range<usize>) -> Self {
        Matrix { layout: self.layout.row_range(range), lends: PhantomData }
    }

    /// Only the facts of a matrix, for checks: it lies nowhere, and nothing may look into it.
    pub(crate) fn nowhere(element: Element, rows: usize, columns: usize) -> Self {
        Matrix { layout: Layout { address: 0, element, rows, columns, row_stride: columns }, lends: PhantomData }
    }

    /// Columns `range` of every row. Panics where the range is outside, as slices do.
    pub fn column_range(self, range: Range<usize>) -> Self {
        let columns = self.layout.columns;
        assert!(range.start <= range.end && range.end <= columns, "columns {range:?} of {columns}");
        let address = self.layout.address + range.start * self.layout.element.size();
        Matrix { layout: Layout { address, columns: range.len(), ..self.layout }, lends: PhantomData }
    }
}

impl<'a, M: Memory> MatrixMut<'a, M> {
    /// `rows` rows of `columns` elements, one behind the other.
    ///
    /// # Errors
    /// `Shape` where the array is too short.
    pub fn new<T: Scalar>(array: impl Into<ViewMut<'a, T, M>>, rows: usize, columns: usize) -> Result<Self> {
        Self::strided(array, rows, columns, columns)
    }

    /// `rows` rows of `columns` elements, `row_stride` elements apart.
    ///
    /// # Errors
    /// `Shape` where the array is too short or rows would overlap.
    pub fn strided<T: Scalar>(
        array: impl Into<ViewMut<'a, T, M>>,
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Result<Self> {
        let view = array.into();
        let layout = Layout::new::<T>(view.address, view.len, rows, columns, row_stride)?;
        Ok(MatrixMut { layout, lends: PhantomData })
    }

    /// The same matrix, lent on for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_, M> {
        MatrixMut { layout: self.layout, lends: PhantomData }
    }
    /// The same matrix, for reading.
    pub fn as_matrix(&self) -> Matrix<'_, M> {
        Matrix { layout: self.layout, lends: PhantomData }
    }
    /// Rows `range`. Panics where the range is outside, as slices do.
    pub fn row_range(self, range: Range<usize>) -> Self {
        MatrixMut { layout: self.layout.row_range(range), lends: PhantomData }
    }

    /// The same matrix, for reading from now on.
    pub(crate) fn into_matrix(self) -> Matrix<'a, M> {
        Matrix { layout: self.layout, lends: PhantomData }
    }

    /// All bytes, those between the rows too.
    pub(crate) fn into_bytes(self) -> ViewMut<'a, u8, M> {
        ViewMut { address: self.layout.address, len: self.layout.bytes(), lends: PhantomData }
    }

    /// The first bytes of an array as rows of another type. Panics where they are too few or begin at no multiple of the type's size.
    pub(crate) fn in_bytes(
        bytes: ViewMut<'a, u8, M>,
        element: Element,
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Self {
        let layout = Layout { address: bytes.address, element, rows, columns, row_stride };
        assert!(layout.bytes() <= bytes.len && bytes.address.is_multiple_of(element.size()), "{layout:?} in {bytes:?}");
        MatrixMut { layout, lends: PhantomData }
    }
}

impl<'a> Matrix<'a, Host> {
    /// Row `row` as a slice, if `T` is the element type.
    pub fn row<T: Scalar>(&self, row: usize) -> Option<&'a [T]> {
        let l = &self.layout;
        assert!(row < l.rows, "row {row} of {}", l.rows);
        (T::ELEMENT == l.element).then(|| {
            // SAFETY: the constructor checked that every row lies inside a slice of T that lives for 'a, and T is the type it was
            // made with; the address is a multiple of T's size.
            unsafe { std::slice::from_raw_parts((l.address as *const T).add(row * l.row_stride), l.columns) }
        })
    }

    /// Row `row` of floats, exactly as `f64`. Empty if the elements are not floats.
    pub fn row_f64(&self, row: usize) -> Vec<f64> {
        fn widen<T: Float>(row: Option<&[T]>) -> Vec<f64> {
            row.unwrap_or_default().iter().map(|x| f64::from(x.to_f32())).collect()
        }
        match self.layout.element {
            Element::Bf16 => widen(self.row::<half::bf16>(row)),
            Element::F16 => widen(self.row::<half::f16>(row)),
            Element::F32 => widen(self.row::<f32>(row)),
            _ => Vec::new(),
        }
    }

    /// Row `row` of integers, as `i64`. Empty if the elements are not integers.
    pub fn row_i64(&self, row: usize) -> Vec<i64> {
        fn widen<T: Scalar + Into<i64>>(row: Option<&[T]>) -> Vec<i64> {
            row.unwrap_or_default().iter().map(|&x| x.into()).collect()
        }
        match self.layout.element {
            Element::U8 => widen(self.row::<u8>(row)),
            Element::U16 => widen(self.row::<u16>(row)),
            Element::I16 => widen(self.row::<i16>(row)),
            Element::I32 => widen(self.row::<i32>(row)),
            Element::I64 => widen(self.row::<i64>(row)),
            _ => Vec::new(),
        }
    }
}

impl MatrixMut<'_, Host> {
    /// Row `row` as a slice for writing, if `T` is the element type.
    pub fn row_mut<T: Scalar>(&mut self, row: usize) -> Option<&mut [T]> {
        let l = self.layout;
        assert!(row < l.rows, "row {row} of {}", l.rows);
        (T::ELEMENT == l.element).then(|| {
            // SAFETY: as `Matrix::row`, from an exclusive slice; `&mut self` keeps the access exclusive.
            unsafe { std::slice::from_raw_parts_mut((l.address as *mut T).add(row * l.row_stride), l.columns) }
        })
    }

    /// Writes row `row` of floats, each value rounded once from `f32`.
    ///
    /// # Errors
    /// `Dtype` if the elements are not floats, `Shape` if the lengths differ.
    pub fn write_row(&mut self, row: usize, values: &[f32]) -> Result<()> {
        fn narrow<T: Float>(row: Option<&mut [T]>, values: &[f32]) {
            for (to, &x) in row.unwrap_or_default().iter_mut().zip(values) {
                *to = T::from_f32(x);
            }
        }
        if values.len() != self.layout.columns {
            return Err(Error::invalid(
                Kind::Shape,
                "values",
                format!("{} values for {} columns", values.len(), self.layout.columns),
            ));
        }
        match self.layout.element {
            Element::Bf16 => narrow(self.row_mut::<half::bf16>(row), values),
            Element::F16 => narrow(self.row_mut::<half::f16>(row), values),
            Element::F32 => narrow(self.row_mut::<f32>(row), values),
            other => return Err(Error::invalid(Kind::Dtype, "matrix", format!("holds {other}, needs a float"))),
        }
        Ok(())
    }
}
