//! Checked expert ids in ordinary memory, and arrays of several layers in any memory.

use std::ops::Range;

use super::check::{Expected, Row, SPELLED, replayed};
use super::layers::Layer;
use super::packing::Packing;
use super::payload::{ARGUMENT, Payload};
use crate::element::{Element, Scalar};
use crate::error::{Error, Kind, Result};
use crate::memory::{Host, Matrix, Memory, View};

/// How an array of several layers lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[rows, layers, k]`: vLLM, SGLang, and everything packed here.
    TokenMajor,
    /// `[layers, rows, k]`: Megatron.
    LayerMajor,
}

/// Expert ids of several layers in one array of any memory, whoever owns it. [`layer`](RouteArray::layer) is what the gate takes as
/// forced ids; nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct RouteArray<'a, M> {
    /// `[rows, layers · k]` or `[layers · rows, k]`.
    ids: Matrix<'a, M>,
    order: Order,
    rows: usize,
    layers: usize,
    top_k: usize,
}

impl<'a, M: Memory> RouteArray<'a, M> {
    /// `rows · layers · top_k` ids without gaps.
    ///
    /// # Errors
    /// `Shape` where the array is too short, `Dtype` unless it holds u8, u16, i16 or i32.
    pub fn new<T: Scalar>(
        array: impl Into<View<'a, T, M>>,
        order: Order,
        rows: usize,
        layers: usize,
        top_k: usize,
    ) -> Result<Self> {
        if !Element::ROUTES.contains(&T::ELEMENT) {
            let message = format!("hold {}, need u8, u16, i16 or i32", T::ELEMENT);
            return Err(Error::invalid(Kind::Dtype, "routes", message));
        }
        let (of_rows, of_columns) = match order {
            Order::TokenMajor => (Some(rows), layers.checked_mul(top_k)),
            Order::LayerMajor => (layers.checked_mul(rows), Some(top_k)),
        };
        let (Some(of_rows), Some(of_columns)) = (of_rows, of_columns) else {
            let message = format!("{layers} layers of {rows} rows of {top_k} are more than there can be");
            return Err(Error::invalid(Kind::Shape, "routes", message));
        };
        Ok(RouteArray { ids: Matrix::new(array, of_rows, of_columns)?, order, rows, layers, top_k })
    }

    /// `[rows, k]`: the ids of one layer, by its ordinal.
    ///
    /// # Errors
    /// `Routes` for a layer that is not there.
    pub fn layer(&self, ordinal: usize) -> Result<Matrix<'a, M>> {
        if ordinal >= self.layers {
            let message = format!("have {} layers, none at {ordinal}", self.layers);
            return Err(Error::invalid(Kind::Routes, "routes", message));
        }
        Ok(match self.order {
            Order::TokenMajor => self.ids.column_range(ordinal * self.top_k..(ordinal + 1) * self.top_k),
            Order::LayerMajor => self.ids.row_range(ordinal * self.rows..(ordinal + 1) * self.rows),
        })
    }

    /// The rows of every layer.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// L.
    pub fn layers(&self) -> usize {
        self.layers
    }
}

/// Packed ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    U8(Vec<u8>),
    U16(Vec<u16>),
}

impl Ids {
    fn with_capacity(element: Element, len: usize) -> Ids {
        if element == Element::U8 { Ids::U8(Vec::with_capacity(len)) } else { Ids::U16(Vec::with_capacity(len)) }
    }

    /// Appends ids that fit: the callers have checked them.
    pub(super) fn extend(&mut self, ids: impl Iterator<Item = i64>) {
        match self {
            Ids::U8(own) => own.extend(ids.map(|id| id as u8)),
            Ids::U16(own) => own.extend(ids.map(|id| id as u16)),
        }
    }

    fn append(&mut self, other: &Ids, range: Range<usize>) {
        match (self, other) {
            (Ids::U8(own), Ids::U8(other)) => own.extend_from_slice(&other[range]),
            (Ids::U16(own), Ids::U16(other)) => own.extend_from_slice(&other[range]),
            _ => unreachable!("equal packings have equal types"),
        }
    }
}

/// Expert ids `[rows, layers, k]` of one sequence or several, checked and packed: every row of every layer is k distinct experts or
/// missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedExperts {
    packing: Packing,
    layers: Vec<Layer>,
    top_k: usize,
    rows: usize,
    pub(super) ids: Ids,
    /// One bit a row, where no id can stand for "missing": set where the row is.
    bitmap: Option<Vec<u64>>,
}

impl RoutedExperts {
    fn empty(packing: Packing, layers: Vec<Layer>, top_k: usize, capacity: usize) -> RoutedExperts {
        let ids = Ids::with_capacity(packing.element(), capacity * layers.len() * top_k);
        let bitmap = (!packing.has_sentinel()).then(Vec::new);
        RoutedExperts { packing, layers, top_k, rows: 0, ids, bitmap }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The layers, in the order in which they lie in a row.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }
    /// k.
    pub fn top_k(&self) -> usize {
        self.top_k
    }
    /// How the ids are kept.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// What the ids and the bitmap take.
    pub fn bytes(&self) -> usize {
        let ids = self.rows * self.row_ids() * self.packing.element().size();
        ids + self.bitmap.as_ref().map_or(0, |words| size_of_val(words.as_slice()))
    }

    /// True if a row is missing in every layer, or is not there at all.
    pub fn is_missing(&self, row: usize) -> bool {
        if row >= self.rows {
            return true;
        }
        match (&self.bitmap, &self.ids) {
            (Some(words), _) => words[row / 64] >> (row % 64) & 1 == 1,
            (None, Ids::U8(ids)) => ids[self.row_range(row)].iter().all(|&id| id == u8::MAX),
            (None, Ids::U16(ids)) => ids[self.row_range(row)].iter().all(|&id| id == u16::MAX),
        }
    }

    /// True if missing rows are in a bitmap and not among the ids: the gate then needs a `row_index`.
    pub(super) fn has_bitmap(&self) -> bool {
        self.bitmap.is_some()
    }

    /// The ids, layer by layer.
    pub fn array(&self) -> RouteArray<'_, Host> {
        let (rows, layers, top_k) = (self.rows, self.layers.len(), self.top_k);
        let array = match &self.ids {
            Ids::U8(ids) => RouteArray::new(ids, Order::TokenMajor, rows, layers, top_k),
            Ids::U16(ids) => RouteArray::new(ids, Order::TokenMajor, rows, layers, top_k),
        };
        array.expect("as many ids as rows, layers and k say")
    }

    /// The rows of several, one behind the other.
    ///
    /// # Errors
    /// `Routes` unless layers, k and packing are the same, and for nothing at all.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a RoutedExperts>) -> Result<RoutedExperts> {
        let parts: Vec<&RoutedExperts> = parts.into_iter().collect();
        let fault = |message: String| Error::invalid(Kind::Routes, ARGUMENT, message);
        let first = *parts.first().ok_or_else(|| fault("nothing to join".into()))?;
        let rows = parts.iter().map(|part| part.rows).sum();
        let mut whole = RoutedExperts::empty(first.packing, first.layers.clone(), first.top_k, rows);
        for (i, part) in parts.iter().enumerate() {
            if (&part.layers, part.top_k, part.packing) != (&first.layers, first.top_k, first.packing) {
                return Err(fault(format!("part {i} is {}, part 0 is {}", part.describe(), first.describe())));
            }
            whole.ids.append(&part.ids, 0..part.rows * part.row_ids());
            for row in 0..part.rows {
                whole.count_row(part.is_missing(row));
            }
        }
        Ok(whole)
    }

    /// These rows alone. Panics where the range is outside, as slices do.
    #[must_use]
    pub fn slice(&self, rows: Range<usize>) -> RoutedExperts {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let mut part = RoutedExperts::empty(self.packing, self.layers.clone(), self.top_k, rows.len());
        part.ids.append(&self.ids, rows.start * self.row_ids()..rows.end * self.row_ids());
        for row in rows {
            part.count_row(self.is_missing(row));
        }
        part
    }

    fn describe(&self) -> String {
        let (layers, packing) = (self.layers.len(), &self.packing);
        format!("{layers} layers of {} of {} experts in {}", self.top_k, packing.experts(), packing.element())
    }

    fn row_ids(&self) -> usize {
        self.layers.len() * self.top_k
    }
    fn row_range(&self, row: usize) -> Range<usize> {
        row * self.row_ids()..(row + 1) * self.row_ids()
    }

    /// The ids of a row have been appended; says so, and whether it is missing.
    fn count_row(&mut self, is_missing: bool) {
        let row = self.rows;
        if let Some(words) = &mut self.bitmap {
            if row.is_multiple_of(64) {
                words.push(0);
            }
            words[row / 64] |= u64::from(is_missing) << (row % 64);
        }
        self.rows += 1;
    }
}

impl Payload<'_> {
    /// Checks every row and packs it.
    ///
    /// # Errors
    /// As [`check`](Payload::check), and `Routes` for a row that is missing in some layers only where the packing has no sentinel.
    pub fn pack(&self, expected: &Expected<'_>, packing: Packing) -> Result<RoutedExperts> {
        // Whatever the header says, so many rows there are: their bytes have been counted.
        let rows = self.shape()[0];
        self.pack_where(expected, packing, (0..rows).map(Some), true)
    }

    /// Checks and packs these rows alone, in this order; `None`, and rows behind the payload's last, are missing. With
    /// [`LayerMap::stage`](super::LayerMap::stage) this is what one rank needs: the whole is never decoded.
    ///
    /// # Errors
    /// As [`pack`](Payload::pack), for the rows that are read.
    pub fn pack_rows(
        &self,
        expected: &Expected<'_>,
        packing: Packing,
        rows: impl ExactSizeIterator<Item = Option<usize>>,
    ) -> Result<RoutedExperts> {
        self.pack_where(expected, packing, rows, false)
    }

    /// vLLM's split form: `prompt_routed_experts` `[P, layers, k]`, and this, `routed_experts` `[G, layers, k]`, behind it.
    /// `expected.rows` is P + G.
    ///
    /// # Errors
    /// As [`pack`](Payload::pack).
    pub fn pack_split(&self, prompt: &Payload<'_>, expected: &Expected<'_>, packing: Packing) -> Result<RoutedExperts> {
        let [prompt_rows, own_rows] = [prompt, self].map(|part| part.shape()[0]);
        if prompt_rows.checked_add(own_rows) != Some(expected.rows) {
            let message = format!(
                "sequence {}: {prompt_rows} rows of the prompt and {own_rows} of the response, needs {} together",
                expected.sequence, expected.rows
            );
            return Err(Error::invalid(Kind::Routes, ARGUMENT, message));
        }
        let part = |payload: &Payload<'_>, rows| payload.pack(&Expected { rows, ..*expected }, packing);
        RoutedExperts::concat([&part(prompt, prompt_rows)?, &part(self, own_rows)?])
    }

    fn pack_where(
        &self,
        expected: &Expected<'_>,
        packing: Packing,
        rows: impl ExactSizeIterator<Item = Option<usize>>,
        whole: bool,
    ) -> Result<RoutedExperts> {
        if packing.experts() != expected.experts {
            let message = format!("is for {} experts, the payload for {}", packing.experts(), expected.experts);
            return Err(Error::invalid(Kind::Config, "packing", message));
        }
        // Before anything is allocated: the payload's own bytes then bound what is.
        self.fits(expected)?;
        let layers: Vec<Layer> = replayed(expected.layers).map(|mapped| mapped.layer).collect();
        let count = layers.len();
        let mut packed = RoutedExperts::empty(packing, layers, expected.top_k, rows.len());
        let (mut absent, mut partly) = (0, None);
        let findings = self.scan(expected, rows, SPELLED, |row, ordinal, ids, kind| {
            if kind == Row::Missing {
                absent += 1;
                packed.ids.extend(std::iter::repeat_n(-1, expected.top_k));
            } else {
                packed.ids.extend(ids.iter().copied());
            }
            if ordinal + 1 == count {
                if (1..count).contains(&absent) {
                    partly = partly.or(row);
                }
                packed.count_row(absent == count);
                absent = 0;
            }
        })?;
        findings.refuse(expected, whole)?;
        match partly {
            Some(row) if !packing.has_sentinel() => {
                let message = format!(
                    "sequence {}, row {row}: is missing in some layers only, which {} experts in {} cannot say; pack into u16",
                    expected.sequence,
                    packing.experts(),
                    packing.element()
                );
                Err(Error::invalid(Kind::Routes, ARGUMENT, message))
            }
            _ => Ok(packed),
        }
    }
}
