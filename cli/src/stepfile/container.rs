//! A safetensors file, memory-mapped: the header checked, every fault worded with the tensor that has it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use moerl::element::{Element, Scalar};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo};
use serde_json::Value;

use crate::failure::{Failure, Result, one_line};

/// The bytes of the number in front of the header that says how long it is.
const LENGTH_BYTES: usize = 8;

/// An open safetensors file. Nothing but its header has been read.
#[derive(Debug)]
pub struct Container {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    metadata: Metadata,
}

/// One tensor of a [`Container`].
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// The type of its elements, if it is one that this command reads.
    pub element: Option<Element>,
    /// The name of that type in the file's header.
    pub dtype: Dtype,
    bytes: &'a [u8],
}

impl Container {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// One line that names the file, and where one is at fault the tensor.
    pub fn open(path: &Path) -> Result<Container> {
        let named = |message: String| Failure::input(format!("{}: {message}", path.display()));
        let map = map_file(path)?;
        if map.len() < LENGTH_BYTES {
            return Err(named(format!("truncated: {} bytes, a safetensors file has at least 8", map.len())));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| named(explain(&map, &error)))?;
        Ok(Container { path: path.to_owned(), map, data_start: LENGTH_BYTES + header, metadata })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Never: a safetensors file has a header.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The text stored under `__metadata__`.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.metadata.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// The tensor of that name, if the file has one.
    pub fn tensor<'a>(&'a self, name: &'a str) -> Option<Tensor<'a>> {
        let info: &TensorInfo = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        Some(Tensor {
            name,
            shape: &info.shape,
            element: element(info.dtype),
            dtype: info.dtype,
            bytes: &self.map[self.data_start + start..self.data_start + end],
        })
    }
}

impl<'a> Tensor<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements `range`, borrowed from the file where they are aligned there, else copied.
    ///
    /// Panics if `T` is not the element type or `range` is outside: both are checked when a file is opened.
    pub fn elements<T: Scalar>(&self, range: Range<usize>) -> Cow<'a, [T]> {
        assert_eq!(Some(T::ELEMENT), self.element, "{} holds {:?}", self.name, self.dtype);
        let bytes = &self.bytes[range.start * size_of::<T>()..range.end * size_of::<T>()];
        match bytemuck::try_cast_slice(bytes) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()),
        }
    }

    /// All elements.
    pub fn all<T: Scalar>(&self) -> Cow<'a, [T]> {
        self.elements(0..self.len())
    }

    /// All elements of an integer tensor, widened. `None` for other types.
    pub fn integers(&self) -> Option<Vec<i64>> {
        fn widen<T: Scalar + Into<i64>>(tensor: &Tensor<'_>) -> Vec<i64> {
            tensor.all::<T>().iter().map(|&x| x.into()).collect()
        }
        match self.element? {
            Element::U8 => Some(widen::<u8>(self)),
            Element::U16 => Some(widen::<u16>(self)),
            Element::I16 => Some(widen::<i16>(self)),
            Element::I32 => Some(widen::<i32>(self)),
            Element::I64 => Some(widen::<i64>(self)),
            _ => None,
        }
    }

    /// Its elements as they lie in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// `f32 [860, 1536]`
    pub fn describe(&self) -> String {
        format!("{} {:?}", dtype_name(self.dtype), self.shape)
    }
}

/// Maps a file into memory, for reading.
///
/// # Errors
/// One line that names the file.
pub fn map_file(path: &Path) -> Result<Mmap> {
    let named = |message: String| Failure::input(format!("{}: {message}", path.display()));
    let file = File::open(path).map_err(|error| named(format!("cannot be opened: {error}")))?;
    let facts = file.metadata().map_err(|error| named(format!("cannot be read: {error}")))?;
    if !facts.is_file() {
        return Err(named("is not a file".into()));
    }
    // SAFETY: the map is only read. Another process that shortens the file meanwhile ends this one by a signal, as with every
    // memory-mapped reader; the bytes are plain numbers, so one that overwrites them only changes what is computed.
    unsafe { Mmap::map(&file) }.map_err(|error| named(format!("cannot be mapped: {error}")))
}

/// The element type of a safetensors dtype, if it is one that operations take.
fn element(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::BF16 => Some(Element::Bf16),
        Dtype::F16 => Some(Element::F16),
        Dtype::F32 => Some(Element::F32),
        Dtype::U8 => Some(Element::U8),
        Dtype::U16 => Some(Element::U16),
        Dtype::I16 => Some(Element::I16),
        Dtype::I32 => Some(Element::I32),
        Dtype::I64 => Some(Element::I64),
        _ => None,
    }
}

/// The name of a dtype in messages: `f32`.
pub fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// The name of an element type in a safetensors header: `F32`.
pub fn safetensors_name(element: Element) -> String {
    element.name().to_uppercase()
}

/// What the header's reader refused, with the numbers that it does not tell and the tensor at fault.
fn explain(map: &[u8], error: &SafeTensorError) -> String {
    let claimed = map.first_chunk::<LENGTH_BYTES>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let behind = map.len().saturating_sub(LENGTH_BYTES);
    match error {
        SafeTensorError::HeaderTooLarge => {
            format!("damaged header: its length says {claimed} bytes, more than the 100 MB that a header may have")
        }
        SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooSmall => {
            format!("truncated or damaged: the header's length says {claimed} bytes, the file has {behind} behind it")
        }
        SafeTensorError::InvalidHeader(_) => "damaged header: not UTF-8 text".into(),
        SafeTensorError::InvalidHeaderDeserialization(error) | SafeTensorError::JsonError(error) => {
            format!("damaged header: {error}")
        }
        other => usize::try_from(claimed)
            .ok()
            .and_then(|length| map.get(LENGTH_BYTES..LENGTH_BYTES + length).map(|text| (text, behind - length)))
            .and_then(|(text, data)| tensor_at_fault(text, data))
            .unwrap_or_else(|| format!("damaged header: {other}")),
    }
}

/// The first tensor, in the order of their data, whose shape, type and offsets contradict each other or the file.
fn tensor_at_fault(header: &[u8], data_bytes: usize) -> Option<String> {
    let header: HashMap<String, Value> = serde_json::from_slice(header).ok()?;
    let mut tensors: Vec<(u64, u64, &str, &Value)> = Vec::new();
    for (name, info) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |i: usize| info["data_offsets"].get(i).and_then(Value::as_u64);
        tensors.push((offset(0)?, offset(1)?, name, info));
    }
    tensors.sort_unstable_by_key(|&(start, end, name, _)| (start, end, name));
    let mut expected = 0;
    for (start, end, name, info) in tensors {
        let name = one_line(name);
        if end < start {
            return Some(format!("tensor {name}: its data ends at byte {end}, before its start at {start}"));
        }
        if end > data_bytes as u64 {
            return Some(format!("tensor {name}: its data ends at byte {end}, the file has {data_bytes} (truncated?)"));
        }
        if start != expected {
            let fault = if start < expected { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Some(format!("tensor {name}: its data starts at byte {start}, {fault}, which ends at {expected}"));
        }
        let dtype: Dtype = serde_json::from_value(info["dtype"].clone()).ok()?;
        let shape: Vec<u64> = serde_json::from_value(info["shape"].clone()).ok()?;
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |bits, &n| bits.checked_mul(n));
        if bits.is_none_or(|bits| bits != (end - start) * 8) {
            let needed =
                bits.map_or_else(|| "more than 2^64 bits".into(), |bits| format!("{} bytes", bits.div_ceil(8)));
            return Some(format!(
                "tensor {name}: {} {shape:?} needs {needed}, its offsets give it {}",
                dtype_name(dtype),
                end - start
            ));
        }
        expected = end;
    }
    let left = (data_bytes as u64).checked_sub(expected)?;
    (left > 0).then(|| format!("{left} bytes behind the last tensor belong to none"))
}
