//! `moerl step --out`: what a step computed, as a safetensors file, written piece by piece.

use std::path::Path;

use moerl::element::{Element, Scalar};

use crate::failure::Result;
use crate::stepfile::{Slot, StepFile, Writer};

/// Room for the diagnostics, as JSON, in the file's metadata.
const METADATA_BYTES: usize = 64 << 10;

/// The tensors of an output file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `[N]` f32
    Logprobs,
    /// `[N]` f32, where the input had logits
    Entropy,
    /// `[N]` f32, 0 where a token does not count
    Advantages,
    /// `[N]` f32, 1 without a correction, 0 where a token does not count
    CorrectionWeights,
    /// `[N]` f32, 0 where a token does not count
    DLogprobs,
    /// `[S]` f32, 1 where no token counts
    SequenceRatio,
    /// `[S]` u8
    SequenceClipped,
    /// `[1]` f32
    Loss,
    /// `[N, V]` f32
    DLogits,
    /// `[L, N, k]` i32
    NativeIds,
    /// `[L, N, k]` f32
    NativeWeights,
    /// `[L, N, k]` i32
    ReplayIds,
    /// `[L, N, k]` f32
    ReplayWeights,
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Name::Logprobs => "logprobs",
            Name::Entropy => "entropy",
            Name::Advantages => "advantages",
            Name::CorrectionWeights => "correction_weights",
            Name::DLogprobs => "d_logprobs",
            Name::SequenceRatio => "sequence_ratio",
            Name::SequenceClipped => "sequence_clipped",
            Name::Loss => "loss",
            Name::DLogits => "d_logits",
            Name::NativeIds => "native_topk_ids",
            Name::NativeWeights => "native_topk_weights",
            Name::ReplayIds => "replay_topk_ids",
            Name::ReplayWeights => "replay_topk_weights",
        }
    }
}

/// Which of the optional tensors are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// V, if the logits' gradient is.
    pub d_logits: Option<usize>,
    /// k, if the gate runs.
    pub native: Option<usize>,
    /// Whether routes are replayed.
    pub replay: bool,
}

/// An output file under construction; without a path, every write is nothing.
#[derive(Debug)]
pub struct Output {
    writer: Option<Writer>,
    slots: Vec<(Name, Slot)>,
}

impl Output {
    /// Starts the file.
    ///
    /// # Errors
    /// Those of [`Writer::create`].
    pub fn create(path: Option<&Path>, file: &StepFile, wanted: Wanted) -> Result<Output> {
        let Some(path) = path else { return Ok(Output { writer: None, slots: Vec::new() }) };
        let (n, s) = (file.tokens, file.segments);
        let (f32, i32) = (Element::F32, Element::I32);
        let mut tensors: Vec<(Name, Element, Vec<usize>)> = vec![(Name::Logprobs, f32, vec![n])];
        if file.vocabulary.is_some() {
            tensors.push((Name::Entropy, f32, vec![n]));
        }
        tensors.extend([Name::Advantages, Name::CorrectionWeights, Name::DLogprobs].map(|name| (name, f32, vec![n])));
        tensors.push((Name::SequenceRatio, f32, vec![s]));
        tensors.push((Name::SequenceClipped, Element::U8, vec![s]));
        tensors.push((Name::Loss, f32, vec![1]));
        if let (Some((layers, _)), Some(k)) = (file.router, wanted.native) {
            let shape = vec![layers, n, k];
            tensors.push((Name::NativeIds, i32, shape.clone()));
            tensors.push((Name::NativeWeights, f32, shape.clone()));
            if wanted.replay {
                tensors.push((Name::ReplayIds, i32, shape.clone()));
                tensors.push((Name::ReplayWeights, f32, shape));
            }
        }
        if let Some(vocabulary) = wanted.d_logits {
            tensors.push((Name::DLogits, f32, vec![n, vocabulary]));
        }
        let declared: Vec<(&str, Element, &[usize])> =
            tensors.iter().map(|(name, element, shape)| (name.text(), *element, shape.as_slice())).collect();
        let (writer, slots) = Writer::create(path, &declared, METADATA_BYTES)?;
        Ok(Output { writer: Some(writer), slots: tensors.iter().map(|t| t.0).zip(slots).collect() })
    }

    /// Writes a piece of a tensor at element `offset`, if the file has the tensor.
    ///
    /// # Errors
    /// Those of [`Writer::write`].
    pub fn write<T: Scalar>(&mut self, name: Name, offset: usize, values: &[T]) -> Result<()> {
        let slot = self.slots.iter().find(|(slot, _)| *slot == name).map(|&(_, slot)| slot);
        match (&mut self.writer, slot) {
            (Some(writer), Some(slot)) => writer.write(slot, offset, values),
            _ => Ok(()),
        }
    }

    /// Ends the file, with the diagnostics in its metadata.
    ///
    /// # Errors
    /// Those of [`Writer::finish`].
    pub fn finish(self, diagnostics: &serde_json::Value) -> Result<()> {
        self.writer.map_or(Ok(()), |writer| writer.finish(&[("diagnostics", diagnostics.to_string())]))
    }
}
