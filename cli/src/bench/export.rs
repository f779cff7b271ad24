//! `moerl bench --export`: inputs and results of small calls, for another implementation to compute again (`benches/peers`).
//!
//! The arrays that are timed would not do: their masks have no gaps, their ratios stay within bounds, and a moving average of zeros is zero
//! whoever computes it. A tensor is called `noun/operation/shape/element/in/name`, or `out` where the call computed it.

use std::path::Path;

use bytemuck::Pod;
use moerl::element::{Element, Scalar};
use moerl::{Backend, Buffer};

use super::{Noun, Options, advantage, correction, ema, gate, logprob, objective};
use crate::backend::Task;
use crate::failure::{Failure, Result};
use crate::stepfile::{Slot, Writer};

/// Writes all of a tensor, whatever its type.
type Write = Box<dyn Fn(&mut Writer, Slot) -> Result<()>>;

/// A tensor of the file.
struct Tensor {
    name: String,
    element: Element,
    shape: Vec<usize>,
    write: Write,
}

/// Calls of a backend, with the arrays that went in and came out.
pub struct Exporter<'a, B: Backend> {
    /// Who executes.
    pub backend: &'a B,
    /// Where work is queued.
    pub stream: B::Stream,
    /// `noun/operation/shape/element` of the call.
    call: String,
    tensors: Vec<Tensor>,
}

impl<B: Backend> Exporter<'_, B> {
    /// What follows belongs to this call, which `moerl bench` has a line for but for its size.
    pub fn call(&mut self, noun: &str, operation: &str, shape: &str, element: Element) {
        self.call = format!("{noun}/{operation}/{shape}/{element}");
    }

    /// Uploads an input.
    ///
    /// # Errors
    /// The backend's.
    pub fn input<T: Scalar>(&mut self, name: &str, shape: &[usize], values: &[T]) -> Result<B::Buffer<T>> {
        self.keep("in", name, shape, values.to_vec());
        Ok(self.backend.upload(&self.stream, values)?)
    }

    /// Downloads a result.
    ///
    /// # Errors
    /// The backend's.
    pub fn result<T: Scalar>(&mut self, name: &str, shape: &[usize], array: &B::Buffer<T>) -> Result<()> {
        let values = self.backend.download(&self.stream, array.view())?;
        self.keep("out", name, shape, values);
        Ok(())
    }

    /// An array of zeros.
    ///
    /// # Errors
    /// The backend's.
    pub fn zeros<T: Pod + Send + Sync>(&self, len: usize) -> Result<B::Buffer<T>> {
        Ok(self.backend.allocate(&self.stream, len)?)
    }

    fn keep<T: Scalar>(&mut self, side: &str, name: &str, shape: &[usize], values: Vec<T>) {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{}/{name}", self.call);
        self.tensors.push(Tensor {
            name: format!("{}/{side}/{name}", self.call),
            element: T::ELEMENT,
            shape: shape.to_vec(),
            write: Box::new(move |writer, slot| writer.write(slot, 0, &values)),
        });
    }
}

/// Makes the calls and writes the file.
pub struct Export<'a> {
    /// Which nouns.
    pub options: &'a Options,
    /// The file.
    pub path: &'a Path,
}

impl Task for Export<'_> {
    type Output = String;

    fn run<B: Backend>(self, backend: &B) -> Result<String> {
        let mut exporter = Exporter { backend, stream: backend.stream()?, call: String::new(), tensors: Vec::new() };
        for noun in self.options.nouns() {
            match noun {
                Noun::Gate => gate::export(&mut exporter)?,
                Noun::Logprob => logprob::export(&mut exporter)?,
                Noun::Objective => objective::export(&mut exporter)?,
                Noun::Correction => correction::export(&mut exporter)?,
                Noun::Advantage => advantage::export(&mut exporter)?,
                Noun::Ema => ema::export(&mut exporter)?,
                // No peer has them.
                _ => {}
            }
        }
        let tensors = exporter.tensors;
        if tensors.is_empty() {
            return Err(Failure::input(
                "no calls of these are exported: those of gate, logprob, objective, correction, advantage and ema are",
            ));
        }
        let declared: Vec<(&str, Element, &[usize])> =
            tensors.iter().map(|t| (t.name.as_str(), t.element, t.shape.as_slice())).collect();
        let (mut writer, slots) = Writer::create(self.path, &declared, 0)?;
        for (tensor, slot) in tensors.iter().zip(slots) {
            (tensor.write)(&mut writer, slot)?;
        }
        writer.finish(&[])?;
        Ok(format!("{}: {} tensors of calls on {}\n", self.path.display(), tensors.len(), backend.name()))
    }
}
