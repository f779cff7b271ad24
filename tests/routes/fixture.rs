//! Payloads made from the description of their formats, independent of the decoders.

use moerl::Error;
use moerl::element::Element;
use moerl::routes::{Expected, LayerMap, RoutedExperts};
use rand::seq::SliceRandom;

use crate::common;

/// Ids `[rows, layers, k]`, in every row distinct.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub rows: usize,
    pub layers: usize,
    pub k: usize,
    pub experts: usize,
    pub ids: Vec<i64>,
}

impl Recorded {
    pub fn random(rows: usize, layers: usize, k: usize, experts: usize, seed: u64) -> Recorded {
        let mut rng = common::seeded(seed);
        let mut order: Vec<i64> = (0..experts as i64).collect();
        let ids = (0..rows * layers).flat_map(|_| {
            order.shuffle(&mut rng);
            order[..k].to_vec()
        });
        Recorded { rows, layers, k, experts, ids: ids.collect() }
    }

    pub fn at(&self, row: usize, layer: usize) -> &[i64] {
        &self.ids[(row * self.layers + layer) * self.k..][..self.k]
    }

    pub fn at_mut(&mut self, row: usize, layer: usize) -> &mut [i64] {
        &mut self.ids[(row * self.layers + layer) * self.k..][..self.k]
    }

    pub fn shape(&self) -> [usize; 3] {
        [self.rows, self.layers, self.k]
    }

    /// With `columns` more ids behind every token's k: what an engine appends for fused shared experts.
    pub fn with_shared(&self, columns: usize) -> Recorded {
        let wide = |ids: &[i64]| ids.iter().copied().chain((0..columns).map(|j| (self.experts + j) as i64)).collect();
        let ids: Vec<Vec<i64>> = self.ids.chunks(self.k).map(wide).collect();
        Recorded { k: self.k + columns, ids: ids.concat(), ..self.clone() }
    }

    pub fn rows_from(&self, first: usize) -> Recorded {
        let ids = self.ids[first * self.layers * self.k..].to_vec();
        Recorded { rows: self.rows - first, ids, ..self.clone() }
    }

    pub fn bytes(&self, element: Element) -> Vec<u8> {
        encode(&self.ids, element, false)
    }

    /// What `layer` of a packed array should hold, by row.
    pub fn expected<'a>(&self, map: &'a LayerMap) -> Expected<'a> {
        Expected::new(3, map, self.experts, self.k, self.rows)
    }
}

pub fn encode(ids: &[i64], element: Element, big_endian: bool) -> Vec<u8> {
    let bytes = ids.iter().flat_map(|&id| {
        let mut bytes = id.to_le_bytes()[..element.size()].to_vec();
        if big_endian {
            bytes.reverse();
        }
        bytes
    });
    bytes.collect()
}

/// RFC 4648, with padding.
pub fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let word = (0..3).fold(0_u32, |word, i| word << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        let mut text = [b'='; 4];
        for (i, c) in text.iter_mut().enumerate().take(chunk.len() + 1) {
            *c = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
        }
        text
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// NumPy's file format, version 1: the header padded to a multiple of 64 bytes.
pub fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    npy_with(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end()), data)
}

pub fn npy_with(dictionary: &str, data: &[u8]) -> Vec<u8> {
    let mut header = dictionary.to_owned();
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// The packed ids of a layer, row by row, −1 for missing.
pub fn unpack(routes: &RoutedExperts, ordinal: usize) -> Vec<Vec<i64>> {
    let layer = routes.array().layer(ordinal).unwrap();
    let sentinel = if layer.element() == Element::U8 { 255 } else { 65535 };
    (0..routes.rows())
        .map(|row| {
            let ids = layer.row_i64(row);
            if ids.iter().all(|&id| id == sentinel) { vec![-1; ids.len()] } else { ids }
        })
        .collect()
}

/// Asserts the text of a refusal.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>, text: &str) {
    let error = result.expect_err(text);
    assert_eq!(error.to_string(), text);
}
