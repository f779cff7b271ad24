//! Arrays of a type that is known at run time, placed among elements that nobody may touch.

use bytemuck::Pod;
use moerl::element::{Element, Scalar, bf16, f16};
use moerl::memory::{Matrix, MatrixMut, View, ViewMut};
use moerl::{Backend, Buffer};

/// What lies around an array, and in it until it is written.
pub fn untouched<T: Pod>() -> T {
    let mut value = T::zeroed();
    bytemuck::bytes_of_mut(&mut value).fill(0xa5);
    value
}

/// Where rows lie: elements before the first one, and between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub before: usize,
    pub gap: usize,
}

/// Rows of one type in a larger array.
pub struct Placed<B: Backend, T: Pod + Send + Sync> {
    buffer: B::Buffer<T>,
    place: Place,
    rows: usize,
    columns: usize,
}

impl<B: Backend, T: Pod + Send + Sync> Placed<B, T> {
    /// These values, row after row.
    pub fn new(backend: &B, stream: &B::Stream, place: Place, columns: usize, values: &[T]) -> Self {
        let rows = values.len().checked_div(columns).unwrap_or(0);
        let mut array = vec![untouched(); place.before];
        for row in values.chunks_exact(columns.max(1)) {
            array.extend_from_slice(row);
            array.resize(array.len() + place.gap, untouched());
        }
        array.resize(array.len() + 4, untouched());
        Placed { buffer: backend.upload(stream, &array).unwrap(), place, rows, columns }
    }

    /// One array without gaps, nothing written to it yet.
    pub fn output(backend: &B, stream: &B::Stream, before: usize, len: usize) -> Self {
        Placed::new(backend, stream, Place { before, gap: 0 }, len, &vec![untouched(); len])
    }

    fn stride(&self) -> usize {
        self.columns + self.place.gap
    }
    fn len(&self) -> usize {
        if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride() + self.columns }
    }

    /// As one array.
    pub fn view(&self) -> View<'_, T, B::Memory> {
        self.buffer.view().slice(self.place.before..self.place.before + self.len())
    }
    /// As one array, for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_, T, B::Memory> {
        let range = self.place.before..self.place.before + self.len();
        self.buffer.view_mut().slice(range)
    }

    /// The values; asserts that nothing around them was touched.
    pub fn read(&self, name: &str, backend: &B, stream: &B::Stream) -> Vec<T> {
        let array = backend.download(stream, self.buffer.view()).unwrap();
        let mut values = Vec::with_capacity(self.rows * self.columns);
        for (at, value) in array.into_iter().enumerate() {
            let behind = at.checked_sub(self.place.before).filter(|at| *at < self.len());
            if behind.is_some_and(|at| at % self.stride() < self.columns) {
                values.push(value);
            } else {
                let is_untouched = bytemuck::bytes_of(&value) == bytemuck::bytes_of(&untouched::<T>());
                assert!(
                    is_untouched,
                    "{name}: element {at} of the larger array, outside of {:?}, was touched",
                    self.place
                );
            }
        }
        values
    }
}

impl<B: Backend, T: Scalar> Placed<B, T> {
    /// As rows.
    pub fn matrix(&self) -> Matrix<'_, B::Memory> {
        Matrix::strided(self.view(), self.rows, self.columns, self.stride()).unwrap()
    }
    /// As rows, for writing.
    pub fn matrix_mut(&mut self) -> MatrixMut<'_, B::Memory> {
        let (rows, columns, stride) = (self.rows, self.columns, self.stride());
        MatrixMut::strided(self.view_mut(), rows, columns, stride).unwrap()
    }
}

/// [`Placed`] rows of any type.
pub enum Rows<B: Backend> {
    Bf16(Placed<B, bf16>),
    F16(Placed<B, f16>),
    F32(Placed<B, f32>),
    U8(Placed<B, u8>),
    U16(Placed<B, u16>),
    I16(Placed<B, i16>),
    I32(Placed<B, i32>),
}

macro_rules! of_rows {
    ($rows:expr, $array:ident => $value:expr) => {
        match $rows {
            Rows::Bf16($array) => $value,
            Rows::F16($array) => $value,
            Rows::F32($array) => $value,
            Rows::U8($array) => $value,
            Rows::U16($array) => $value,
            Rows::I16($array) => $value,
            Rows::I32($array) => $value,
        }
    };
}

/// A number as an element of this type holds it.
pub fn rounded(element: Element, x: f32) -> f32 {
    match element {
        Element::Bf16 => bf16::from_f32(x).to_f32(),
        Element::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

impl<B: Backend> Rows<B> {
    /// These values as elements of this type; `None`: rows that nothing has been written to yet.
    pub fn new(
        backend: &B,
        stream: &B::Stream,
        element: Element,
        place: Place,
        [rows, columns]: [usize; 2],
        values: Option<&[f32]>,
    ) -> Self {
        macro_rules! of {
            ($variant:ident, $type:ty, $narrowed:expr) => {{
                let values: Vec<$type> = match values {
                    None => vec![untouched(); rows * columns],
                    Some(values) => values.iter().map($narrowed).collect(),
                };
                assert_eq!(values.len(), rows * columns);
                Rows::$variant(Placed::new(backend, stream, place, columns, &values))
            }};
        }
        match element {
            Element::Bf16 => of!(Bf16, bf16, |&x| bf16::from_f32(x)),
            Element::F16 => of!(F16, f16, |&x| f16::from_f32(x)),
            Element::F32 => of!(F32, f32, |&x| x),
            Element::U8 => of!(U8, u8, |&x| x as i64 as u8),
            Element::U16 => of!(U16, u16, |&x| x as i64 as u16),
            Element::I16 => of!(I16, i16, |&x| x as i64 as i16),
            _ => of!(I32, i32, |&x| x as i32),
        }
    }

    /// As rows.
    pub fn matrix(&self) -> Matrix<'_, B::Memory> {
        of_rows!(self, array => array.matrix())
    }
    /// As rows, for writing.
    pub fn matrix_mut(&mut self) -> MatrixMut<'_, B::Memory> {
        of_rows!(self, array => array.matrix_mut())
    }

    /// The values; asserts that all were written, as far as that shows, and nothing around them.
    pub fn read(&self, name: &str, backend: &B, stream: &B::Stream) -> Vec<f32> {
        macro_rules! of {
            ($array:expr, $widened:expr) => {{
                let values = $array.read(name, backend, stream);
                // An element of less than four bytes may well hold what was there before.
                let is_whole = values.iter().all(|x| size_of_val(x) < 4 || is_written(x));
                assert!(is_whole, "{name}: not everything was written");
                values.into_iter().map($widened).collect()
            }};
        }
        match self {
            Rows::Bf16(array) => of!(array, bf16::to_f32),
            Rows::F16(array) => of!(array, f16::to_f32),
            Rows::F32(array) => of!(array, |x| x),
            Rows::U8(array) => of!(array, f32::from),
            Rows::U16(array) => of!(array, f32::from),
            Rows::I16(array) => of!(array, f32::from),
            Rows::I32(array) => of!(array, |x| x as f32),
        }
    }
}

/// Something else than what was there before.
pub fn is_written<T: Pod>(value: &T) -> bool {
    bytemuck::bytes_of(value) != bytemuck::bytes_of(&untouched::<T>())
}
