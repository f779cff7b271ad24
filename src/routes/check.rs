//! What can be wrong with recorded experts, and where.

use std::collections::BTreeMap;
use std::fmt;

use super::layers::{Layer, LayerMap, MappedLayer};
use super::packing::sentinel;
use super::payload::{ARGUMENT, Payload};
use crate::element::Element;
use crate::error::{Checks, Error, Kind, Problem, Result};
use crate::gate::{MAX_EXPERTS, MAX_TOP_K};

/// Defects that an error spells out; the others it counts.
pub(super) const SPELLED: usize = 8;
/// With k = 1 a row of zeros is expert 0. A layer of at least so many rows, all of them zeros, was all the same never written: even
/// of 16 experts, chance would send them all there once in 16¹⁶.
const LONE_ZERO_ROWS: usize = 16;

/// What a payload must hold.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The caller's number of the sequence, for errors.
    pub sequence: u64,
    /// Which of its layers are which.
    pub layers: &'a LayerMap,
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
    /// Columns of fused shared experts behind the k chosen ones, which are cut off. 0 from [`new`](Expected::new).
    pub shared_columns: usize,
    /// The rows: n − 1 of a sequence of n tokens, less those before a `start_len`; n where a trainer recorded them.
    pub rows: usize,
    /// A row of zeros is missing (zero tails of verl and prime-rl). With k = 1 expert 0 is meant all the same. False from `new`.
    pub zeros_are_missing: bool,
}

impl<'a> Expected<'a> {
    /// So many rows of `top_k` ids of `experts` experts, without extra columns, zeros meaning expert 0.
    pub fn new(sequence: u64, layers: &'a LayerMap, experts: usize, top_k: usize, rows: usize) -> Expected<'a> {
        Expected { sequence, layers, experts, top_k, shared_columns: 0, rows, zeros_are_missing: false }
    }
}

/// Why a row cannot be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It names an expert that there is not.
    Range {
        /// The id.
        expert: i64,
        /// E.
        experts: usize,
    },
    /// It names an expert twice.
    Duplicate {
        /// The id.
        expert: i64,
    },
    /// Some but not all of its ids are the sentinel.
    Partial,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defect {
    /// With a row of a layer.
    Row {
        /// The sequence.
        sequence: u64,
        /// The row of the payload.
        row: usize,
        /// The layer.
        layer: Layer,
        /// What is wrong.
        fault: Fault,
        /// Its ids.
        ids: Vec<i64>,
    },
    /// A layer with experts has nothing but zeros: it was never recorded.
    ZeroLayer {
        /// The sequence.
        sequence: u64,
        /// The layer.
        layer: Layer,
        /// Its rows.
        rows: usize,
    },
    /// There are more or fewer rows than the sequence has.
    Rows {
        /// The sequence.
        sequence: u64,
        /// The payload's rows.
        found: usize,
        /// The sequence's rows.
        needed: usize,
    },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Row { sequence, row, layer, fault, ids } => {
                write!(f, "sequence {sequence}, row {row}, {layer}: ")?;
                match fault {
                    Fault::Range { expert, experts } => {
                        write!(f, "names expert {expert}, but the router has {experts} experts")?;
                    }
                    Fault::Duplicate { expert } => write!(f, "names expert {expert} twice")?,
                    Fault::Partial => write!(f, "some but not all ids are the sentinel")?,
                }
                write!(f, " (ids {ids:?})")
            }
            Defect::ZeroLayer { sequence, layer, rows } => {
                write!(f, "sequence {sequence}, {layer}: all {rows} recorded rows are zeros, so it was never recorded")
            }
            Defect::Rows { sequence, found, needed } => {
                write!(f, "sequence {sequence}: has {found} rows, needs {needed}")
            }
        }
    }
}

/// What a row of a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Replay,
    Missing,
    Bad(Fault),
}

/// In the order of the gate's own rules.
fn classify(ids: &[i64], expected: &Expected<'_>, sentinel: Option<i64>) -> Row {
    let absent = ids.iter().filter(|&&id| Some(id) == sentinel).count();
    if absent == ids.len() || (expected.zeros_are_missing && is_zeros(ids)) {
        return Row::Missing;
    }
    if absent > 0 {
        return Row::Bad(Fault::Partial);
    }
    if let Some(&expert) = ids.iter().find(|&&id| !(0..expected.experts as i64).contains(&id)) {
        return Row::Bad(Fault::Range { expert, experts: expected.experts });
    }
    match ids.iter().enumerate().find(|&(j, id)| ids[..j].contains(id)) {
        Some((_, &expert)) => Row::Bad(Fault::Duplicate { expert }),
        None => Row::Replay,
    }
}

/// Zeros that cannot be a choice: k = 1 may mean expert 0.
fn is_zeros(ids: &[i64]) -> bool {
    ids.len() > 1 && ids.iter().all(|&id| id == 0)
}

/// Defects found so far, by layer.
pub(super) struct Findings {
    limit: usize,
    layers: Vec<LayerFindings>,
    rows: Option<Defect>,
}

#[derive(Default)]
struct LayerFindings {
    defects: Vec<Defect>,
    count: u64,
    /// Rows of zeros, those of k = 1 included.
    zeros: usize,
    /// Rows that hold something else than zeros and sentinels.
    others: usize,
}

impl Findings {
    fn new(layers: usize, limit: usize) -> Findings {
        Findings { limit, layers: (0..layers).map(|_| LayerFindings::default()).collect(), rows: None }
    }

    fn see(&mut self, ordinal: usize, ids: &[i64], kind: Row, defect: impl FnOnce(Fault) -> Defect) {
        let layer = &mut self.layers[ordinal];
        if ids.iter().all(|&id| id == 0) {
            layer.zeros += 1;
        } else if kind != Row::Missing {
            layer.others += 1;
        }
        if let Row::Bad(fault) = kind {
            layer.count += 1;
            if layer.defects.len() < self.limit {
                layer.defects.push(defect(fault));
            }
        }
    }

    /// All layers' defects in the order of their rows, at most `limit`; and how many there are.
    fn finish(self, expected: &Expected<'_>, whole: bool) -> (Vec<Defect>, u64) {
        let any_others = self.layers.iter().any(|layer| layer.others > 0);
        let lone = if expected.top_k == 1 { LONE_ZERO_ROWS } else { 1 };
        let mut defects: Vec<Defect> = self.rows.into_iter().collect();
        let mut count = defects.len() as u64;
        let mut by_row = Vec::new();
        for (mapped, layer) in replayed(expected.layers).zip(self.layers) {
            // A rank's rows may all lie in a zero tail.
            if layer.others == 0 && layer.zeros >= lone && (whole || any_others) {
                let (sequence, layer) = (expected.sequence, layer.zeros);
                defects.push(Defect::ZeroLayer { sequence, layer: mapped.layer, rows: layer });
                count += 1;
            } else {
                by_row.extend(layer.defects);
                count += layer.count;
            }
        }
        by_row.sort_by_key(|defect| match defect {
            Defect::Row { row, .. } => *row,
            _ => 0,
        });
        defects.extend(by_row);
        defects.truncate(self.limit);
        (defects, count)
    }

    /// # Errors
    /// `Routes` with the first defects.
    pub(super) fn refuse(self, expected: &Expected<'_>, whole: bool) -> Result<()> {
        let (defects, count) = self.finish(expected, whole);
        if count == 0 {
            return Ok(());
        }
        let problem = |message| Problem { kind: Kind::Routes, argument: ARGUMENT, message };
        let mut problems: Vec<Problem> = defects.iter().map(|defect| problem(defect.to_string())).collect();
        let left = count - defects.len() as u64;
        if left > 0 {
            problems.push(problem(format!("and {left} more")));
        }
        Err(Error::Invalid(problems))
    }
}

/// The layers that are replayed from a payload: not those with a table of token ids.
pub(super) fn replayed(map: &LayerMap) -> impl Iterator<Item = &MappedLayer> {
    map.layers().iter().filter(|mapped| !mapped.hash)
}

/// What a payload holds, layer by layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Every layer that is replayed, in the map's order.
    pub layers: Vec<LayerSurvey>,
    /// What is wrong, in the order of rows; at most as many as were asked for.
    pub defects: Vec<Defect>,
    /// How many things are wrong.
    pub defect_count: u64,
}

/// What a payload holds for one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSurvey {
    /// The layer.
    pub layer: Layer,
    /// How many rows name each expert, bad rows left out.
    pub load: BTreeMap<u16, u64>,
    /// Rows that can be replayed.
    pub replayable: u64,
    /// Rows that are missing.
    pub missing: u64,
    /// Rows of zeros, where k > 1.
    pub zeros: u64,
    /// Rows that name an expert that there is not.
    pub out_of_range: u64,
    /// Rows that name an expert twice.
    pub duplicates: u64,
    /// Rows of which some ids are the sentinel.
    pub partial: u64,
}

impl Payload<'_> {
    /// Looks at every row and says what is there, and the first `limit` defects.
    ///
    /// # Errors
    /// `Config`, `Dtype`, `Routes` where types and shapes already contradict what is expected, or the text is no base64.
    pub fn survey(&self, expected: &Expected<'_>, limit: usize) -> Result<Survey> {
        let mut layers: Vec<LayerSurvey> = replayed(expected.layers)
            .map(|mapped| LayerSurvey {
                layer: mapped.layer,
                load: BTreeMap::new(),
                replayable: 0,
                missing: 0,
                zeros: 0,
                out_of_range: 0,
                duplicates: 0,
                partial: 0,
            })
            .collect();
        let rows = (0..self.shape()[0]).map(Some);
        let findings = self.scan(expected, rows, limit, |_, ordinal, ids, kind| {
            let layer = &mut layers[ordinal];
            layer.zeros += u64::from(is_zeros(ids));
            match kind {
                Row::Replay => {
                    layer.replayable += 1;
                    for &id in ids {
                        *layer.load.entry(id as u16).or_default() += 1;
                    }
                }
                Row::Missing => layer.missing += 1,
                Row::Bad(Fault::Range { .. }) => layer.out_of_range += 1,
                Row::Bad(Fault::Duplicate { .. }) => layer.duplicates += 1,
                Row::Bad(Fault::Partial) => layer.partial += 1,
            }
        })?;
        let (defects, defect_count) = findings.finish(expected, true);
        Ok(Survey { layers, defects, defect_count })
    }

    /// Range, duplicates, partial sentinels, the row count, layers of zeros: every row on the host.
    ///
    /// # Errors
    /// `Routes` that names sequence, row, layer and ids of the first defects and counts the others; as [`survey`](Payload::survey).
    pub fn check(&self, expected: &Expected<'_>) -> Result<()> {
        let rows = (0..self.shape()[0]).map(Some);
        self.scan(expected, rows, SPELLED, |_, _, _, _| ())?.refuse(expected, true)
    }

    /// Visits these rows, layer by layer: the row, the layer's ordinal, its k ids, and what they are. `None` and rows that the payload
    /// does not have are missing, and their ids are nothing.
    pub(super) fn scan(
        &self,
        expected: &Expected<'_>,
        rows: impl Iterator<Item = Option<usize>>,
        limit: usize,
        mut visit: impl FnMut(Option<usize>, usize, &[i64], Row),
    ) -> Result<Findings> {
        self.fits(expected)?;
        let needed = expected.rows;
        let mut findings = Findings::new(replayed(expected.layers).count(), limit);
        if self.shape()[0] != needed {
            findings.rows = Some(Defect::Rows { sequence: expected.sequence, found: self.shape()[0], needed });
        }
        let sentinel = sentinel(self.element(), expected.experts);
        let (mut scratch, mut ids) = (Vec::new(), [0_i64; MAX_TOP_K]);
        let ids = &mut ids[..expected.top_k];
        let layers = findings.layers.len();
        for row in rows.map(|row| row.filter(|&row| row < self.shape()[0])) {
            let Some(row) = row else {
                (0..layers).for_each(|ordinal| visit(None, ordinal, &[], Row::Missing));
                continue;
            };
            let bytes = self.row(row, &mut scratch)?;
            for (ordinal, mapped) in replayed(expected.layers).enumerate() {
                self.ids(bytes, mapped.payload, ids);
                let kind = classify(ids, expected, sentinel);
                findings.see(ordinal, ids, kind, |fault| Defect::Row {
                    sequence: expected.sequence,
                    row,
                    layer: mapped.layer,
                    fault,
                    ids: ids.to_vec(),
                });
                visit(Some(row), ordinal, ids, kind);
            }
        }
        Ok(findings)
    }

    /// Checks the shape and the type against what is expected, the rows excepted.
    pub(super) fn fits(&self, expected: &Expected<'_>) -> Result<()> {
        let Expected { experts, top_k, shared_columns, layers, .. } = *expected;
        let [_, payload_layers, columns] = self.shape();
        let most = experts.min(MAX_TOP_K);
        let mut checks = Checks::new();
        checks
            .require((1..=MAX_EXPERTS).contains(&experts), Kind::Config, "experts", || {
                format!("are {experts}, need 1 to {MAX_EXPERTS}")
            })
            .require((1..=most).contains(&top_k), Kind::Config, "top_k", || {
                format!("is {top_k}, needs 1 to {most} for {experts} experts")
            })
            .require(Some(columns) == top_k.checked_add(shared_columns), Kind::Routes, ARGUMENT, || {
                let shared = if shared_columns > 0 { format!(" and {shared_columns} shared") } else { String::new() };
                format!("has {columns} ids per token and layer, needs {top_k} chosen{shared}")
            })
            .require(replayed(layers).next().is_some(), Kind::Config, "layers", || {
                "are all chosen by tables of token ids, or there is none: nothing to replay".into()
            })
            .require(payload_layers == layers.payload_layers(), Kind::Routes, ARGUMENT, || {
                format!("has {payload_layers} layers, the layer map is for {}", layers.payload_layers())
            })
            .require(self.element() != Element::U8 || experts <= 256, Kind::Dtype, ARGUMENT, || {
                format!("holds u8, which cannot name {experts} experts: ids above 255 were cut off when it was made")
            });
        checks.finish()
    }
}
