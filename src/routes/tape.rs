//! Routes for every layer of every micro-batch, in a backend's memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::experts::{Ids, Order, RouteArray, RoutedExperts};
use super::layers::Layer;
use super::packing::Packing;
use crate::backend::{Backend, Buffer};
use crate::element::Element;
use crate::error::{Error, Kind, Result};
use crate::gate::{Forced, MAX_TOP_K};
use crate::memory::MatrixMut;

/// The most keys that an error names.
const NAMED: usize = 4;

/// A micro-batch of a step by the caller's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MicroBatch(pub u32);

impl fmt::Display for MicroBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "micro-batch {}", self.0)
    }
}

type Key = (MicroBatch, Layer);

fn fault(message: String) -> Error {
    Error::invalid(Kind::Routes, "tape", message)
}

/// One array of ids `[rows, layers, k]`, and which of its rows a call's rows take.
struct Reel<B: Backend> {
    ids: PackedBuffer<B>,
    row_index: Option<B::Buffer<i32>>,
    rows: usize,
    layers: usize,
}

enum PackedBuffer<B: Backend> {
    U8(B::Buffer<u8>),
    U16(B::Buffer<u16>),
}

/// A layer of a reel.
struct Place {
    reel: usize,
    ordinal: usize,
}

/// Takes routes for (layer, micro-batch) in any order, each once. Every array is of one router's shape: E experts, k chosen.
pub struct Recorder<B: Backend> {
    packing: Packing,
    top_k: usize,
    reels: Vec<Reel<B>>,
    places: BTreeMap<Key, Place>,
}

impl<B: Backend> fmt::Debug for Recorder<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("packing", &self.packing).field("keys", &self.places.keys()).finish()
    }
}

impl<B: Backend> Recorder<B> {
    /// For routers of k out of E experts.
    ///
    /// # Errors
    /// `Config` unless k is 1 to 32 and at most E.
    pub fn new(packing: Packing, top_k: usize) -> Result<Recorder<B>> {
        let most = packing.experts().min(MAX_TOP_K);
        if !(1..=most).contains(&top_k) {
            let message = format!("is {top_k}, needs 1 to {most} for {} experts", packing.experts());
            return Err(Error::invalid(Kind::Config, "top_k", message));
        }
        Ok(Recorder { packing, top_k, reels: Vec::new(), places: BTreeMap::new() })
    }

    /// All layers of a micro-batch at once: what a rollout engine recorded (R3). `row_index` `[T]` says which row each row of the
    /// micro-batch takes (see [`PackedRoutes::row_index`](super::PackedRoutes::row_index)); without it, row t takes row t.
    ///
    /// # Errors
    /// `Routes` for a key that is recorded already, for other experts, k or packing than the tape's, and for a `row_index` that names
    /// no row. The backend's, where it cannot take the arrays.
    pub fn load(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        micro_batch: MicroBatch,
        routes: &RoutedExperts,
        row_index: Option<&[i32]>,
    ) -> Result<()> {
        if (routes.packing(), routes.top_k()) != (self.packing, self.top_k) {
            let [theirs, own] = [(routes.packing(), routes.top_k()), (self.packing, self.top_k)]
                .map(|(packing, k)| format!("{k} of {} experts in {}", packing.experts(), packing.element()));
            return Err(fault(format!("{micro_batch} is of {theirs}, the tape of {own}")));
        }
        for &layer in routes.layers() {
            self.vacant((micro_batch, layer))?;
        }
        let row_index = self.index_of(micro_batch, routes, row_index)?;
        let ids = match &routes.ids {
            Ids::U8(ids) => PackedBuffer::U8(backend.upload(stream, ids)?),
            Ids::U16(ids) => PackedBuffer::U16(backend.upload(stream, ids)?),
        };
        let row_index = row_index.map(|index| backend.upload(stream, &index)).transpose()?;
        self.reels.push(Reel { ids, row_index, rows: routes.rows(), layers: routes.layers().len() });
        for (ordinal, &layer) in routes.layers().iter().enumerate() {
            self.places.insert((micro_batch, layer), Place { reel: self.reels.len() - 1, ordinal });
        }
        Ok(())
    }

    /// The given index, with −1 for rows that are missing; one of its own where only that can say so.
    fn index_of(
        &self,
        micro_batch: MicroBatch,
        routes: &RoutedExperts,
        given: Option<&[i32]>,
    ) -> Result<Option<Vec<i32>>> {
        let rows = routes.rows();
        let seen = |row: i32| if routes.has_bitmap() && routes.is_missing(row as usize) { -1 } else { row };
        let Some(given) = given else {
            return Ok(routes.has_bitmap().then(|| (0..rows as i32).map(seen).collect()));
        };
        let outside = given.iter().position(|&row| row < -1 || row >= 0 && row as usize >= rows);
        if let Some(at) = outside {
            return Err(fault(format!("row_index of {micro_batch} names row {} at {at}, of {rows}", given[at])));
        }
        Ok(Some(given.iter().map(|&row| if row < 0 { row } else { seen(row) }).collect()))
    }

    /// One layer of a micro-batch: the ids `[T, k]` that the gate chose under the old policy (R2), fetched to the host. Rows of −1 are
    /// missing.
    ///
    /// # Errors
    /// `Routes` for a key that is recorded already, for ids that are no whole rows, outside `[0, E)` or missing where the packing has
    /// no sentinel. The backend's, where it cannot take the array.
    pub fn record(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        layer: Layer,
        micro_batch: MicroBatch,
        topk_ids: &[i32],
    ) -> Result<()> {
        self.vacant((micro_batch, layer))?;
        let (k, experts) = (self.top_k, self.packing.experts());
        let named = |message: String| fault(format!("{layer} of {micro_batch}: {message}"));
        if !topk_ids.len().is_multiple_of(k) {
            return Err(named(format!("{} ids are no whole rows of {k}", topk_ids.len())));
        }
        let missing = |row: &[i32]| self.packing.has_sentinel() && row.iter().all(|&id| id == -1);
        let fits = |row: &[i32]| row.iter().all(|&id| usize::try_from(id).is_ok_and(|id| id < experts));
        if let Some((row, ids)) = topk_ids.chunks(k).enumerate().find(|(_, row)| !missing(row) && !fits(row)) {
            return Err(named(format!("row {row} names experts {ids:?}, but the router has {experts}")));
        }
        let ids = match self.packing.element() {
            Element::U8 => {
                let narrow: Vec<u8> = topk_ids.iter().map(|&id| id as u8).collect();
                PackedBuffer::U8(backend.upload(stream, &narrow)?)
            }
            _ => {
                let narrow: Vec<u16> = topk_ids.iter().map(|&id| id as u16).collect();
                PackedBuffer::U16(backend.upload(stream, &narrow)?)
            }
        };
        self.push_layer((micro_batch, layer), ids, topk_ids.len() / k);
        Ok(())
    }

    /// Room for one layer of a micro-batch, `[rows, k]` in the tape's type, for a kernel to write what the gate chose. Until it does,
    /// every row is missing (or, for 256 experts in u8, names expert 255 k times).
    ///
    /// # Errors
    /// `Routes` for a key that is recorded already; the backend's, where it has no room.
    pub fn record_into(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        layer: Layer,
        micro_batch: MicroBatch,
        rows: usize,
    ) -> Result<MatrixMut<'_, B::Memory>> {
        self.vacant((micro_batch, layer))?;
        let k = self.top_k;
        let len = rows.checked_mul(k).ok_or_else(|| fault(format!("{rows} rows of {k} ids are too many")))?;
        let ids = match self.packing.element() {
            Element::U8 => {
                let mut room = backend.allocate::<u8>(stream, len)?;
                backend.fill(stream, room.view_mut(), 0xff)?;
                PackedBuffer::U8(room)
            }
            _ => {
                let mut room = backend.allocate::<u16>(stream, len)?;
                backend.fill(stream, room.view_mut(), 0xff)?;
                PackedBuffer::U16(room)
            }
        };
        match &mut self.push_layer((micro_batch, layer), ids, rows).ids {
            PackedBuffer::U8(room) => MatrixMut::new(room.view_mut(), rows, k),
            PackedBuffer::U16(room) => MatrixMut::new(room.view_mut(), rows, k),
        }
    }

    fn vacant(&self, (micro_batch, layer): Key) -> Result<()> {
        if self.places.contains_key(&(micro_batch, layer)) {
            return Err(fault(format!("{layer} of {micro_batch} is recorded already")));
        }
        Ok(())
    }

    fn push_layer(&mut self, key: Key, ids: PackedBuffer<B>, rows: usize) -> &mut Reel<B> {
        let reel = self.reels.len();
        self.places.insert(key, Place { reel, ordinal: 0 });
        self.reels.push(Reel { ids, row_index: None, rows, layers: 1 });
        &mut self.reels[reel]
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// `Routes` where a layer is recorded for some micro-batches and not for others.
    pub fn seal(self) -> Result<RouteTape<B>> {
        let micro_batches: std::collections::BTreeSet<MicroBatch> = self.places.keys().map(|key| key.0).collect();
        let layers: std::collections::BTreeSet<Layer> = self.places.keys().map(|key| key.1).collect();
        let all = micro_batches.iter().flat_map(|&micro_batch| layers.iter().map(move |&layer| (micro_batch, layer)));
        let absent: Vec<Key> = all.filter(|key| !self.places.contains_key(key)).collect();
        if !absent.is_empty() {
            return Err(fault(format!("{} not recorded, but for other micro-batches", list(&absent))));
        }
        let entries =
            self.places.into_iter().map(|(key, place)| (key, Entry { place, consumed: AtomicBool::new(false) }));
        Ok(RouteTape {
            has_sentinel: self.packing.has_sentinel(),
            top_k: self.top_k,
            reels: self.reels,
            entries: entries.collect(),
        })
    }
}

struct Entry {
    place: Place,
    consumed: AtomicBool,
}

/// Sealed routes: whoever asks for a (layer, micro-batch) gets the same view, any number of times, in any order, from any thread.
///
/// A [`Recorder`] takes routes, [`seal`](Recorder::seal) makes it a tape, and a tape only gives. The types rule out replaying what is
/// still being recorded, recording into what is being replayed, and mixing up the two halves of a key; nothing is ever popped, so
/// there is no order in which to ask wrongly:
///
/// ```compile_fail,E0308
/// # use moerl::{Reference, routes::*};
/// fn swapped(tape: &RouteTape<Reference>) {
///     let _ = tape.get(MicroBatch(0), Layer(3)); // a micro-batch is no layer
/// }
/// ```
/// ```compile_fail,E0599
/// # use moerl::{Reference, routes::*};
/// fn too_soon(recorder: &Recorder<Reference>) {
///     let _ = recorder.get(Layer(3), MicroBatch(0)); // not sealed yet
/// }
/// ```
/// ```compile_fail,E0382
/// # use moerl::{Reference, routes::*};
/// fn too_late(mut recorder: Recorder<Reference>) {
///     let tape = recorder.seal();
///     let _ = recorder.record(&Reference, &(), Layer(3), MicroBatch(0), &[0; 8]); // moved into the tape
/// }
/// ```
pub struct RouteTape<B: Backend> {
    has_sentinel: bool,
    top_k: usize,
    reels: Vec<Reel<B>>,
    entries: BTreeMap<Key, Entry>,
}

impl<B: Backend> fmt::Debug for RouteTape<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTape").field("top_k", &self.top_k).field("keys", &self.entries.keys()).finish()
    }
}

impl<B: Backend> RouteTape<B> {
    /// The forced ids of a layer in a micro-batch. Pure: forward, recompute and backward see the same.
    ///
    /// # Errors
    /// `Routes` for a key that was not recorded, saying which of the two is unknown.
    pub fn get(&self, layer: Layer, micro_batch: MicroBatch) -> Result<Forced<'_, B::Memory>> {
        let Place { reel, ordinal } = self.entry(layer, micro_batch)?.place;
        let reel = &self.reels[reel];
        let array = match &reel.ids {
            PackedBuffer::U8(ids) => RouteArray::new(ids.view(), Order::TokenMajor, reel.rows, reel.layers, self.top_k),
            PackedBuffer::U16(ids) => {
                RouteArray::new(ids.view(), Order::TokenMajor, reel.rows, reel.layers, self.top_k)
            }
        };
        Ok(Forced {
            row_index: reel.row_index.as_ref().map(|index| index.view()),
            has_sentinel: self.has_sentinel,
            ..Forced::new(array?.layer(ordinal)?)
        })
    }

    /// As [`get`](RouteTape::get), and remembers that the key was used.
    ///
    /// # Errors
    /// As `get`.
    pub fn replay(&self, layer: Layer, micro_batch: MicroBatch) -> Result<Forced<'_, B::Memory>> {
        self.entry(layer, micro_batch)?.consumed.store(true, Ordering::Relaxed);
        self.get(layer, micro_batch)
    }

    /// Says whether every key was replayed at least once: at the end of a step, a layer that was not has trained on other experts.
    ///
    /// # Errors
    /// `Routes` with the first keys that were not.
    pub fn assert_all_consumed(&self) -> Result<()> {
        let unread = self.entries.iter().filter(|(_, entry)| !entry.consumed.load(Ordering::Relaxed));
        let unread: Vec<Key> = unread.map(|(&key, _)| key).collect();
        if unread.is_empty() { Ok(()) } else { Err(fault(format!("{} never replayed", list(&unread)))) }
    }

    /// Forgets what was replayed, for the next pass over the same routes.
    pub fn rewind(&self) {
        self.entries.values().for_each(|entry| entry.consumed.store(false, Ordering::Relaxed));
    }

    /// Every (layer, micro-batch), by micro-batch.
    pub fn keys(&self) -> impl Iterator<Item = (Layer, MicroBatch)> + '_ {
        self.entries.keys().map(|&(micro_batch, layer)| (layer, micro_batch))
    }

    fn entry(&self, layer: Layer, micro_batch: MicroBatch) -> Result<&Entry> {
        self.entries.get(&(micro_batch, layer)).ok_or_else(|| {
            let any = |test: &dyn Fn(&Key) -> bool| self.entries.keys().any(test);
            let unknown = match (any(&|key| key.1 == layer), any(&|key| key.0 == micro_batch)) {
                (false, false) => "neither is",
                (false, true) => "the layer is not",
                (true, _) => "the micro-batch is not",
            };
            fault(format!("{layer} of {micro_batch} was not recorded: {unknown} on the tape"))
        })
    }
}

/// `layer 3 of micro-batch 0, layer 4 of micro-batch 0 and 7 more were`
fn list(keys: &[Key]) -> String {
    let named: Vec<String> =
        keys.iter().take(NAMED).map(|(micro_batch, layer)| format!("{layer} of {micro_batch}")).collect();
    let more = keys.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let verb = if keys.len() == 1 { "was" } else { "were" };
    format!("{}{more} {verb}", named.join(", "))
}
