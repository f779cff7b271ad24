//! What engines and trainers hand over: `[rows, layers, columns]` expert ids in bytes, described but not yet read.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::npy;
use crate::element::Element;
use crate::error::{Checks, Error, Kind, Result};

/// The argument that errors name: the field of vLLM's, SGLang's and prime-rl's responses.
pub(super) const ARGUMENT: &str = "routed_experts";

/// Expert ids `[rows, layers, columns]` as they came over the wire. Borrows the bytes and decodes what is asked for, row by row: a
/// rank that wants its share of a memory-mapped file pays for that share alone.
///
/// | who | what | |
/// |---|---|---|
/// | SGLang | base64 of i32 `[n − 1 − start_len, layers, columns]` | [`sglang`](Payload::sglang) |
/// | vLLM | npy u8 or u16 `[n − 1, layers, k]`; split: prompt and response, i16 | [`vllm`](Payload::vllm), [`pack_split`](Payload::pack_split) |
/// | prime-rl | base64 of u8 or u16, type and shape beside it | [`prime_rl`](Payload::prime_rl) |
/// | Megatron | i32 or i64 `[tokens, layers, k]` | [`megatron`](Payload::megatron) |
/// | a step file, any tensor | `[rows, layers, k]` | [`tensor`](Payload::tensor) |
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    source: Source<'a>,
    element: Element,
    big_endian: bool,
    shape: [usize; 3],
}

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Plain(&'a [u8]),
    Base64(&'a [u8]),
}

/// What SGLang's text does not say about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sglang {
    /// n: the tokens of the sequence, prompt and response.
    pub tokens: usize,
    /// `start_len` of the request: the first row that was asked for.
    pub start_len: usize,
    /// `num_hidden_layers`.
    pub layers: usize,
    /// Ids per token and layer: k, and the columns of fused shared experts behind them.
    pub columns: usize,
}

impl<'a> Payload<'a> {
    /// SGLang's `routed_experts`: base64 of little-endian i32, rows `[start_len, n − 1)`.
    ///
    /// # Errors
    /// `Routes` for text of another length, and for a `start_len` outside the sequence. Characters that are not base64 are found when
    /// they are read.
    pub fn sglang(text: &'a [u8], shape: Sglang) -> Result<Payload<'a>> {
        let Sglang { tokens, start_len, layers, columns } = shape;
        let Some(rows) = tokens.checked_sub(1).and_then(|rows| rows.checked_sub(start_len)) else {
            let message = format!("is {start_len}, behind the {} rows of {tokens} tokens", tokens.saturating_sub(1));
            return Err(Error::invalid(Kind::Routes, "start_len", message));
        };
        let element = Element::I32;
        Payload::new(Source::Base64(text), element, false, [rows, layers, columns]).map_err(|error| {
            let whole = Payload::new(Source::Base64(text), element, false, [tokens - 1, layers, columns]);
            if whole.is_err() || start_len == 0 {
                return error;
            }
            let message = format!(
                "has {} rows, needs {rows}: the engine ignored start_len {start_len} and sent the whole sequence",
                tokens - 1
            );
            Error::invalid(Kind::Routes, ARGUMENT, message)
        })
    }

    /// vLLM's npy file: `[n − 1, layers, k]` u8 or u16, or one of the two arrays of its split form, i16. The header says which, and in
    /// which byte order.
    ///
    /// # Errors
    /// `Routes` for a damaged header, floats, Fortran order, other than three dimensions, and for data that is not as long as the
    /// header says.
    pub fn vllm(npy: &'a [u8]) -> Result<Payload<'a>> {
        let header = npy::parse(npy).map_err(|message| Error::invalid(Kind::Routes, ARGUMENT, message))?;
        let shape = <[usize; 3]>::try_from(header.shape.as_slice()).map_err(|_| {
            let message = format!("has shape {:?}, needs [rows, layers, k]", header.shape);
            Error::invalid(Kind::Routes, ARGUMENT, message)
        })?;
        Payload::new(Source::Plain(&npy[header.data..]), header.element, header.big_endian, shape)
    }

    /// prime-rl's `routed_experts`: base64 of little-endian u8 or u16, with type and shape beside it.
    ///
    /// # Errors
    /// `Dtype` for another type, `Routes` for text of another length.
    pub fn prime_rl(text: &'a [u8], element: Element, shape: [usize; 3]) -> Result<Payload<'a>> {
        needs(element, &[Element::U8, Element::U16])?;
        Payload::new(Source::Base64(text), element, false, shape)
    }

    /// Megatron's recorded indices: little-endian i32 or i64 `[tokens, layers, k]`.
    ///
    /// # Errors
    /// `Dtype` for another type, `Routes` for data of another length.
    pub fn megatron(bytes: &'a [u8], element: Element, shape: [usize; 3]) -> Result<Payload<'a>> {
        needs(element, &[Element::I32, Element::I64])?;
        Payload::new(Source::Plain(bytes), element, false, shape)
    }

    /// Any little-endian integer tensor, such as `routes_rollout` of a step file.
    ///
    /// # Errors
    /// `Dtype` for floats, `Routes` for data of another length.
    pub fn tensor(bytes: &'a [u8], element: Element, shape: [usize; 3]) -> Result<Payload<'a>> {
        needs(element, Element::INTEGERS)?;
        Payload::new(Source::Plain(bytes), element, false, shape)
    }

    fn new(source: Source<'a>, element: Element, big_endian: bool, shape: [usize; 3]) -> Result<Payload<'a>> {
        let [rows, layers, columns] = shape;
        let found = source.len();
        let needed = shape.iter().try_fold(element.size(), |bytes, &n| bytes.checked_mul(n));
        let mut checks = Checks::new();
        checks
            .require(layers > 0 && columns > 0, Kind::Routes, ARGUMENT, || {
                format!("has shape {shape:?}, needs at least one layer and one id")
            })
            .require(found.is_ok(), Kind::Routes, ARGUMENT, || found.clone().err().unwrap_or_default())
            .require(found.is_err() || found.as_ref().ok() == needed.as_ref(), Kind::Routes, ARGUMENT, || {
                let needed = needed.map_or_else(|| "more than there can be".into(), |bytes| bytes.to_string());
                format!(
                    "has {} bytes, but {rows} rows of {layers} layers of {columns} {element} need {needed}",
                    found.clone().unwrap_or_default()
                )
            });
        checks.finish()?;
        Ok(Payload { source, element, big_endian, shape })
    }

    /// `[rows, layers, columns]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }
    /// The type on the wire. i8 counts as u8.
    pub fn element(&self) -> Element {
        self.element
    }
    /// True if the wire's integers have their high byte first.
    pub fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    /// The bytes of one row: `[layers, columns]`. `scratch` is written where they have to be decoded.
    pub(super) fn row<'s>(&'s self, row: usize, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let bytes = self.shape[1] * self.shape[2] * self.element.size();
        self.source.read(row * bytes..(row + 1) * bytes, scratch)
    }

    /// The first `ids.len()` ids of a layer, out of a row's bytes.
    pub(super) fn ids(&self, row: &[u8], layer: usize, ids: &mut [i64]) {
        fn wide<const N: usize>(bytes: &[u8], big: bool, ids: &mut [i64], number: fn([u8; N]) -> i64) {
            let (chunks, _) = bytes.as_chunks::<N>();
            for (id, &chunk) in ids.iter_mut().zip(chunks) {
                let mut little = chunk;
                if big {
                    little.reverse();
                }
                *id = number(little);
            }
        }
        let columns = self.shape[2];
        let bytes = &row[layer * columns * self.element.size()..];
        let big = self.big_endian;
        match self.element {
            Element::U8 => wide(bytes, big, ids, |b: [u8; 1]| i64::from(b[0])),
            Element::U16 => wide(bytes, big, ids, |b| i64::from(u16::from_le_bytes(b))),
            Element::I16 => wide(bytes, big, ids, |b| i64::from(i16::from_le_bytes(b))),
            Element::I32 => wide(bytes, big, ids, |b| i64::from(i32::from_le_bytes(b))),
            Element::I64 => wide(bytes, big, ids, i64::from_le_bytes),
            other => unreachable!("a payload of {other} is never made"),
        }
    }
}

fn needs(element: Element, allowed: &[Element]) -> Result<()> {
    if allowed.contains(&element) {
        return Ok(());
    }
    let names: Vec<&str> = allowed.iter().map(|element| element.name()).collect();
    Err(Error::invalid(Kind::Dtype, ARGUMENT, format!("holds {element}, needs {}", names.join(" or "))))
}

impl Source<'_> {
    /// The bytes behind it, or why that cannot be said.
    fn len(&self) -> std::result::Result<usize, String> {
        match self {
            Source::Plain(bytes) => Ok(bytes.len()),
            Source::Base64(text) if !text.len().is_multiple_of(4) => {
                Err(format!("is no base64: {} characters are no multiple of 4 (truncated?)", text.len()))
            }
            Source::Base64(text) => {
                let padding = text.iter().rev().take(2).take_while(|&&c| c == b'=').count();
                Ok(text.len() / 4 * 3 - padding)
            }
        }
    }

    /// Bytes `range`, which lies inside. Four characters are three bytes, so a range is decoded from the groups that it touches.
    fn read<'s>(&'s self, range: Range<usize>, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let text = match self {
            Source::Plain(bytes) => return Ok(&bytes[range]),
            Source::Base64(text) => text,
        };
        let first = range.start / 3;
        let characters = 4 * first..(4 * range.end.div_ceil(3)).min(text.len());
        scratch.clear();
        let fault = |message: String| Error::invalid(Kind::Routes, ARGUMENT, format!("is no base64: {message}"));
        STANDARD.decode_vec(&text[characters.clone()], scratch).map_err(|error| match error {
            base64::DecodeError::InvalidByte(at, byte) | base64::DecodeError::InvalidLastSymbol(at, byte) => {
                fault(format!("character {:?} at {}", char::from(byte), characters.start + at))
            }
            other => fault(format!("{other} in characters {characters:?}")),
        })?;
        let inside = range.start - 3 * first..range.end - 3 * first;
        scratch.get(inside).ok_or_else(|| fault(format!("padding inside characters {characters:?}")))
    }
}
