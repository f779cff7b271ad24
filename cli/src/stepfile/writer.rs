//! Writes a safetensors file whose tensors are filled in any order, piece by piece: memory stays bounded whatever their size.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use moerl::element::{Element, Scalar};
use serde_json::{Map, Value, json};

use super::container::safetensors_name;
use crate::failure::{Failure, Result};

/// A file under construction: `PATH.part` until [`finish`](Writer::finish) gives it its name. Dropped unfinished, it is removed.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    file: Option<File>,
    tensors: Vec<Declared>,
    data_start: u64,
}

#[derive(Debug)]
struct Declared {
    name: String,
    element: Element,
    shape: Vec<usize>,
    start: u64,
    bytes: u64,
}

/// One tensor of a [`Writer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

impl Writer {
    /// Starts a file with these tensors, whose data lie in this order, and room for `metadata_bytes` of metadata.
    ///
    /// # Errors
    /// [`Failure::Input`] if the tensors' sizes overflow 63 bits, [`Failure::Run`] if the file cannot be written.
    pub fn create(
        path: &Path,
        tensors: &[(&str, Element, &[usize])],
        metadata_bytes: usize,
    ) -> Result<(Writer, Vec<Slot>)> {
        let mut declared = Vec::new();
        let mut end: u64 = 0;
        for &(name, element, shape) in tensors {
            let bytes = shape.iter().try_fold(element.size() as u64, |bytes, &n| bytes.checked_mul(n as u64));
            let after = bytes.and_then(|bytes| end.checked_add(bytes)).filter(|&after| after < 1 << 62);
            let Some((bytes, after)) = bytes.zip(after) else {
                return Err(Failure::input(format!("{name}: {shape:?} {element} is more than a file can hold")));
            };
            declared.push(Declared { name: name.to_owned(), element, shape: shape.to_owned(), start: end, bytes });
            end = after;
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".part");
        let partial = PathBuf::from(partial);
        let failed = |error: std::io::Error| Failure::run(format!("{}: cannot be written: {error}", path.display()));
        let mut writer =
            Writer { path: path.to_owned(), partial: partial.clone(), file: None, tensors: declared, data_start: 0 };
        let room = writer.header(None).to_string().len() + metadata_bytes;
        writer.data_start = (8 + room).next_multiple_of(8) as u64;
        let file = File::create(&partial).map_err(failed)?;
        writer.file = Some(file);
        let slots = (0..writer.tensors.len()).map(Slot).collect();
        if let Some(file) = &writer.file {
            file.set_len(writer.data_start + end).map_err(failed)?;
        }
        Ok((writer, slots))
    }

    /// Writes `values` at element `offset` of a tensor. Panics outside the tensor or with another type than declared.
    ///
    /// # Errors
    /// [`Failure::Run`] if the file cannot be written.
    pub fn write<T: Scalar>(&mut self, slot: Slot, offset: usize, values: &[T]) -> Result<()> {
        let tensor = &self.tensors[slot.0];
        assert_eq!(T::ELEMENT, tensor.element, "{}", tensor.name);
        let start = (offset * size_of::<T>()) as u64;
        assert!(start + size_of_val(values) as u64 <= tensor.bytes, "{}: written behind its end", tensor.name);
        self.write_at(self.data_start + tensor.start + start, super::bytes_of(values))
    }

    /// Writes the header and gives the file its name. `metadata` must fit the room that was asked for.
    ///
    /// # Errors
    /// [`Failure::Run`] if the file cannot be written.
    pub fn finish(mut self, metadata: &[(&str, String)]) -> Result<()> {
        let metadata: Map<String, Value> =
            metadata.iter().map(|(name, text)| ((*name).to_owned(), Value::String(text.clone()))).collect();
        let mut header = self.header(Some(metadata)).to_string().into_bytes();
        let room = self.data_start as usize - 8;
        if header.len() > room {
            return Err(self.failed(format!("its header needs {} bytes, {room} were kept free", header.len())));
        }
        header.resize(room, b' ');
        self.write_at(0, &(room as u64).to_le_bytes())?;
        self.write_at(8, &header)?;
        self.file = None;
        std::fs::rename(&self.partial, &self.path).map_err(|error| self.failed(error))
    }

    fn write_at(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.file {
            Some(file) => file.seek(SeekFrom::Start(position)).and_then(|_| file.write_all(bytes)),
            None => Ok(()),
        };
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: impl std::fmt::Display) -> Failure {
        Failure::run(format!("{}: cannot be written: {error}", self.path.display()))
    }

    fn header(&self, metadata: Option<Map<String, Value>>) -> Value {
        let mut header = Map::new();
        if let Some(metadata) = metadata.filter(|metadata| !metadata.is_empty()) {
            header.insert("__metadata__".into(), Value::Object(metadata));
        }
        for tensor in &self.tensors {
            let offsets = [tensor.start, tensor.start + tensor.bytes];
            let info =
                json!({"dtype": safetensors_name(tensor.element), "shape": tensor.shape, "data_offsets": offsets});
            header.insert(tensor.name.clone(), info);
        }
        Value::Object(header)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish` there is no file of that name; a file left over from a failure would only mislead.
        let _ = std::fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Container;
    use super::*;

    #[test]
    fn what_is_written_in_pieces_is_read_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let shape = [2, 3];
        let (mut writer, slots) =
            Writer::create(&path, &[("b", Element::F32, &shape), ("a", Element::U8, &[3])], 64).unwrap();
        writer.write(slots[1], 1, &[7_u8, 8]).unwrap();
        writer.write(slots[0], 3, &[3.0_f32, 4.0, 5.0]).unwrap();
        assert!(!path.exists());
        writer.finish(&[("note", "hello".into())]).unwrap();
        let file = Container::open(&path).unwrap();
        assert_eq!(file.tensor("b").unwrap().all::<f32>().as_ref(), [0.0, 0.0, 0.0, 3.0, 4.0, 5.0]);
        assert_eq!(file.tensor("a").unwrap().all::<u8>().as_ref(), [0, 7, 8]);
        assert_eq!(file.metadata().unwrap()["note"], "hello");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_file_is_removed_and_an_absurd_one_never_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        drop(Writer::create(&path, &[("a", Element::U8, &[3])], 0).unwrap());
        let absurd = Writer::create(&path, &[("a", Element::F32, &[1 << 40, 1 << 40])], 0);
        assert!(matches!(absurd, Err(Failure::Input(message)) if message.contains('a')));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
