//! What recorded experts give away: each row against the gate's own choice, and against that of its neighbours.

use std::ops::Range;

use moerl::element::{Element, bf16};
use moerl::gate::{Forced, Forward, Load, MAX_EXPERTS, Routes as Selection, Telemetry};
use moerl::memory::MatrixMut;
use moerl::{Backend, Buffer};
use serde::Serialize;

use super::danger::{Danger, FEWEST, Kind, LAST_ROWS, SHIFT};
use super::logprobs::nonfinite_danger;
use crate::clock::Clock;
use crate::failure::Result;
use crate::progress::Progress;
use crate::step::Router;
use crate::stepfile::{MISSING, Recorded, StepFile, Tensor};
use crate::table::{count, percent};
use crate::upload::AnyBuffer;

/// The bytes of router logits that are handed to a backend at once.
const CHUNK_BYTES: usize = 8 << 20;

/// One recorded tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Routes {
    /// Its name.
    pub tensor: &'static str,
    /// By layer.
    pub layers: Vec<Layer>,
    /// The share of (token, layer) pairs whose set is not the gate's own choice; `None` without router logits.
    pub changed: Option<f64>,
    /// The share of tokens with such a layer.
    pub changed_tokens: Option<f64>,
    /// The mean share of a row's experts that the gate chooses for the token before, for the token itself, for the token after.
    pub overlap_by_token: [Option<f64>; 3],
    /// And that it chooses in the layer before, in the layer itself, in the layer after.
    pub overlap_by_layer: [Option<f64>; 3],
    /// Of sequences with two rows or more: those whose last row alone was not recorded, and all.
    pub missing_last_rows: (u64, u64),
    /// `[N]`: the share of layers whose set changed, in sixteenths.
    #[serde(skip)]
    pub change_by_token: Option<Vec<u8>>,
}

/// What a layer's rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// k distinct experts that exist.
    pub recorded: u64,
    /// Not recorded: all bits one.
    pub missing: u64,
    /// Zeros, where k > 1.
    pub zeros: u64,
    /// Partly not recorded.
    pub partial: u64,
    /// An expert twice.
    pub duplicates: u64,
    /// An expert that does not exist.
    pub out_of_range: u64,
}

/// One layer of a recorded tensor.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Layer {
    /// Its rows.
    pub rows: Rows,
    /// Tokens per expert, of good rows.
    pub load: Vec<u64>,
    /// Coefficient of variation of the load, 0 where it is even.
    pub load_cv: Option<f64>,
    /// The busiest expert's tokens over the mean.
    pub load_max_over_mean: Option<f64>,
    /// The mean share of experts that today's choice has too.
    pub overlap: Option<f64>,
    /// The share of rows whose set is not today's choice.
    pub changed: Option<f64>,
    /// The mean probability of the recorded experts under today's router.
    pub forced_mass: Option<f64>,
    /// Mean distance between the last chosen expert and the first that is not.
    pub margin: Option<f64>,
    /// Mean distance of the worst recorded expert from being chosen.
    pub deficit: Option<f64>,
}

/// What a survey of a file's routes comes to.
pub struct Survey {
    /// By tensor.
    pub routes: Vec<Routes>,
    /// What is wrong.
    pub dangers: Vec<Danger>,
}

/// Looks at every recorded tensor in one pass over the router logits.
///
/// # Errors
/// What the backend met.
pub fn survey<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    file: &StepFile,
    router: Option<&Router>,
    recorded: &[Recorded],
    mask: &[u8],
) -> Result<Survey> {
    let n = file.tokens;
    let mut tallies: Vec<Tally> = recorded.iter().filter_map(|&which| Tally::new(file, which, router)).collect();
    let logits = file.router_logits();
    let mut bad = BadLogits::default();
    let row_bytes = logits.map_or(4, |logits| logits.shape[2] * logits.element.map_or(4, Element::size));
    let step = (CHUNK_BYTES / row_bytes.max(1)).max(2);
    let progress = Progress::new(n as u64, "routes");
    for first in (0..n).step_by(step) {
        let rows = first..(first + step).min(n);
        // One row more on either side: the neighbours of the first and the last.
        let near = rows.start.saturating_sub(1)..(rows.end + 1).min(n);
        if let Some(logits) = &logits {
            bad.count(logits, rows.clone(), mask);
        }
        let device = router.zip(logits).map(|(router, logits)| Device { backend, stream, file, router, logits });
        let native = match &device {
            Some(device) => device.native(near.clone())?,
            None => Vec::new(),
        };
        for tally in &mut tallies {
            if let Some(device) = &device {
                tally.measure(device, rows.clone())?;
            }
            tally.take(file, rows.clone(), &near, &native);
        }
        progress.advance(rows.len() as u64);
    }
    let mut dangers = Vec::new();
    dangers.extend(bad.danger());
    let mut routes = Vec::new();
    for tally in tallies {
        dangers.extend(tally.dangers(&file.offsets));
        routes.push(tally.finish(&file.offsets));
    }
    Ok(Survey { routes, dangers })
}

/// Counted rows whose router logits hold NaN or +∞; −∞ excludes an expert and is legal.
#[derive(Default)]
struct BadLogits {
    pairs: u64,
    first: Option<(usize, usize)>,
}

impl BadLogits {
    fn count(&mut self, logits: &Tensor<'_>, rows: Range<usize>, mask: &[u8]) {
        let [layers, n, experts] = logits.shape[..] else { return };
        for layer in 0..layers {
            for row in rows.clone().filter(|&row| mask[row] != 0) {
                let at = (layer * n + row) * experts;
                let is_bad = match logits.element {
                    Some(Element::Bf16) => logits.elements::<bf16>(at..at + experts).iter().any(|x| bad(x.to_f32())),
                    _ => logits.elements::<f32>(at..at + experts).iter().any(|&x| bad(x)),
                };
                if is_bad {
                    self.pairs += 1;
                    self.first.get_or_insert((layer, row));
                }
            }
        }
    }

    fn danger(&self) -> Option<Danger> {
        let (layer, row) = self.first?;
        let pairs = count(self.pairs);
        let words = format!("{pairs} (token, layer) pairs with NaN or +inf, the first in layer {layer}, row {row}");
        Some(nonfinite_danger("router_logits", self.pairs as usize, words))
    }
}

fn bad(x: f32) -> bool {
    x.is_nan() || x == f32::INFINITY
}

/// The router in a backend's memory.
struct Device<'a, B: Backend> {
    backend: &'a B,
    stream: &'a B::Stream,
    file: &'a StepFile,
    router: &'a Router,
    logits: Tensor<'a>,
}

impl<B: Backend> Device<'_, B> {
    fn layer_logits(&self, layer: usize, rows: &Range<usize>) -> moerl::Result<AnyBuffer<B>> {
        let (n, experts) = (self.logits.shape[1], self.logits.shape[2]);
        let elements = (layer * n + rows.start) * experts..(layer * n + rows.end) * experts;
        AnyBuffer::upload(self.backend, self.stream, &self.logits, elements)
    }

    /// By layer, the gate's own choice, `[rows, k]`.
    fn native(&self, rows: Range<usize>) -> Result<Vec<Vec<i32>>> {
        let (layers, experts) = (self.logits.shape[0], self.logits.shape[2]);
        let ids = (0..layers).map(|layer| {
            let logits = self.layer_logits(layer, &rows)?;
            let bias = self.file.router_bias(layer);
            let call = crate::gate::Rows {
                logits: &logits,
                rows: rows.len(),
                experts,
                top_k: self.router.top_k,
                bias: bias.as_deref(),
                mask: None,
                forced: None,
                layer,
            };
            let config = &self.router.config;
            let (choice, _) = crate::gate::forward(self.backend, self.stream, config, &call, &mut Clock::default())?;
            Ok(choice.ids)
        });
        ids.collect()
    }

    /// Telemetry of one layer with a tape's experts forced: forced mass, margin and deficit of every row.
    fn telemetry(&self, layer: usize, rows: &Range<usize>, routes: &Tensor<'_>) -> Result<[Vec<f32>; 3]> {
        let (backend, stream) = (self.backend, self.stream);
        let (layers, experts, t, k) = (self.logits.shape[0], self.logits.shape[2], rows.len(), self.router.top_k);
        let logits = self.layer_logits(layer, rows)?;
        let tape = AnyBuffer::upload(backend, stream, routes, rows.start * layers * k..rows.end * layers * k)?;
        let bias = self.file.router_bias(layer).map(|bias| backend.upload(stream, &bias)).transpose()?;
        let (mut ids, mut weights) = (backend.allocate::<i32>(stream, t * k)?, backend.allocate::<f32>(stream, t * k)?);
        let allocate = || backend.allocate::<f32>(stream, t);
        let (mut mass, mut margin, mut deficit) = (allocate()?, allocate()?, allocate()?);
        let has_sentinel = !(experts == 256 && routes.element == Some(Element::U8));
        let forced = Forced { has_sentinel, ..Forced::new(tape.matrix(layer * k, t, k, layers * k)?) };
        let call = Forward {
            routes: Selection::Forced(forced),
            selection_bias: bias.as_ref().map(Buffer::view),
            telemetry: Some(Telemetry {
                forced_mass: Some(mass.view_mut()),
                margin: Some(margin.view_mut()),
                deficit: Some(deficit.view_mut()),
                ..Telemetry::default()
            }),
            ..Forward::new(
                logits.matrix(0, t, experts, experts)?,
                ids.view_mut(),
                MatrixMut::new(weights.view_mut(), t, k)?,
            )
        };
        let config = moerl::gate::Config { top_k: Some(k), ..self.router.config.clone() };
        backend.gate_forward(stream, &config, call)?;
        Ok([
            backend.download(stream, mass.view())?,
            backend.download(stream, margin.view())?,
            backend.download(stream, deficit.view())?,
        ])
    }
}

/// What a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowKind {
    Recorded,
    Missing,
    Zeros,
    Partial,
    Duplicate,
    OutOfRange,
}

fn kind_of(ids: &[i64], experts: usize) -> RowKind {
    let missing = ids.iter().filter(|&&id| id == MISSING).count();
    let exists = |id: &i64| (0..experts as i64).contains(id);
    if missing == ids.len() {
        RowKind::Missing
    } else if missing > 0 {
        RowKind::Partial
    } else if ids.len() > 1 && ids.iter().all(|&id| id == 0) {
        RowKind::Zeros
    } else if !ids.iter().all(exists) {
        RowKind::OutOfRange
    } else if (1..ids.len()).any(|slot| ids[..slot].contains(&ids[slot])) {
        RowKind::Duplicate
    } else {
        RowKind::Recorded
    }
}

/// A mean under construction.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Sums over one recorded tensor.
struct Tally<'a> {
    which: Recorded,
    tensor: Tensor<'a>,
    layers: usize,
    top_k: usize,
    experts: Option<usize>,
    is_compared: bool,
    rows: Vec<Rows>,
    load: Vec<Vec<u64>>,
    changed: Vec<u64>,
    overlap: Vec<Mean>,
    telemetry: Vec<[Mean; 3]>,
    /// Overlap with the neighbours at −1, 0, 1.
    by_token: [Mean; 3],
    by_layer: [Mean; 3],
    /// `[N]`: layers whose set changed.
    changed_layers: Vec<u16>,
    /// `[N]`: true where no layer holds anything but zeros and "not recorded".
    absent: Vec<bool>,
    /// `[N]`: layers that hold zeros.
    zero_layers: Vec<u16>,
    /// The first row and layer that are no k distinct experts.
    first_bad: Option<(usize, usize)>,
    /// By layer: rows whose every expert is 0.
    all_zero: Vec<u64>,
    /// By expert: the number of the last row that named it.
    stamps: Vec<u64>,
    stamp: u64,
}

impl<'a> Tally<'a> {
    fn new(file: &'a StepFile, which: Recorded, router: Option<&Router>) -> Option<Tally<'a>> {
        let tensor = file.routes(which)?;
        let [n, layers, top_k] = tensor.shape[..] else { return None };
        let experts = file.router.map(|(_, experts)| experts);
        Some(Tally {
            which,
            tensor,
            layers,
            top_k,
            experts,
            is_compared: router.is_some_and(|router| router.top_k == top_k),
            rows: vec![Rows::default(); layers],
            load: vec![vec![0; experts.unwrap_or(0)]; layers],
            changed: vec![0; layers],
            overlap: vec![Mean::default(); layers],
            telemetry: vec![[Mean::default(); 3]; layers],
            by_token: [Mean::default(); 3],
            by_layer: [Mean::default(); 3],
            changed_layers: vec![0; n],
            absent: vec![false; n],
            zero_layers: vec![0; n],
            first_bad: None,
            all_zero: vec![0; layers],
            stamps: vec![0; experts.unwrap_or(0)],
            stamp: 0,
        })
    }

    fn measure<B: Backend>(&mut self, device: &Device<'_, B>, rows: Range<usize>) -> Result<()> {
        if !self.is_compared {
            return Ok(());
        }
        for layer in 0..self.layers {
            let found = device.telemetry(layer, &rows, &self.tensor)?;
            for (mean, values) in self.telemetry[layer].iter_mut().zip(&found) {
                values.iter().filter(|value| value.is_finite()).for_each(|&value| mean.add(value.into()));
            }
        }
        Ok(())
    }

    /// Takes rows in; `native`: by layer, the gate's own choice for the rows `near`.
    fn take(&mut self, file: &StepFile, rows: Range<usize>, near: &Range<usize>, native: &[Vec<i32>]) {
        let (layers, k) = (self.layers, self.top_k);
        let ids = file.recorded_ids(self.which, rows.start * layers * k..rows.end * layers * k);
        let mut segment = file.offsets.partition_point(|&offset| offset as usize <= rows.start);
        for row in rows.clone() {
            while file.offsets[segment] as usize <= row {
                segment += 1;
            }
            let bounds = file.offsets[segment - 1] as usize..file.offsets[segment] as usize;
            self.absent[row] = true;
            for layer in 0..layers {
                let at = ((row - rows.start) * layers + layer) * k;
                let ids = &ids[at..at + k];
                if self.classify(ids, row, layer) && self.is_compared && !native.is_empty() {
                    self.compare(ids, row, layer, &bounds, near, native);
                }
            }
        }
    }

    /// Counts a row of a layer; true if it is k distinct experts that exist.
    fn classify(&mut self, ids: &[i64], row: usize, layer: usize) -> bool {
        let kind = kind_of(ids, self.experts.unwrap_or(MAX_EXPERTS));
        let rows = &mut self.rows[layer];
        match kind {
            RowKind::Recorded => rows.recorded += 1,
            RowKind::Missing => rows.missing += 1,
            RowKind::Zeros => {
                rows.zeros += 1;
                self.zero_layers[row] += 1;
            }
            RowKind::Partial => rows.partial += 1,
            RowKind::Duplicate => rows.duplicates += 1,
            RowKind::OutOfRange => rows.out_of_range += 1,
        }
        self.all_zero[layer] += u64::from(ids.iter().all(|&id| id == 0));
        if matches!(kind, RowKind::Partial | RowKind::Duplicate | RowKind::OutOfRange) {
            self.first_bad.get_or_insert((row, layer));
        }
        self.absent[row] &= matches!(kind, RowKind::Missing | RowKind::Zeros);
        if kind == RowKind::Recorded {
            for &id in ids {
                // Without router logits nobody says how many experts there are.
                let load = &mut self.load[layer];
                load.resize(load.len().max(id as usize + 1), 0);
                load[id as usize] += 1;
            }
        }
        kind == RowKind::Recorded
    }

    fn compare(
        &mut self,
        ids: &[i64],
        row: usize,
        layer: usize,
        segment: &Range<usize>,
        near: &Range<usize>,
        native: &[Vec<i32>],
    ) {
        self.stamp += 1;
        ids.iter().for_each(|&id| self.stamps[id as usize] = self.stamp);
        let k = self.top_k;
        let shared = |layer: usize, row: usize| {
            let at = (row - near.start) * k;
            let is_shared = |id: &&i32| self.stamps.get(**id as usize) == Some(&self.stamp);
            native[layer][at..at + k].iter().filter(is_shared).count()
        };
        let own = shared(layer, row);
        let share = |shared: usize| shared as f64 / k as f64;
        let before = |place: usize| place.checked_sub(1);
        let rows = [before(row), Some(row), Some(row + 1)].map(|row| row.filter(|row| segment.contains(row)));
        let layers = [before(layer), Some(layer), Some(layer + 1)].map(|l| l.filter(|&l| l < self.layers));
        let by_token = rows.map(|row| row.map(|row| share(shared(layer, row))));
        let by_layer = layers.map(|layer| layer.map(|layer| share(shared(layer, row))));
        for (mean, value) in self.by_token.iter_mut().zip(by_token).chain(self.by_layer.iter_mut().zip(by_layer)) {
            value.into_iter().for_each(|value| mean.add(value));
        }
        self.overlap[layer].add(share(own));
        if own < k {
            self.changed[layer] += 1;
            self.changed_layers[row] += 1;
        }
    }

    /// Sequences whose last row alone was not recorded, those with two rows or more, and the zeros of such last rows; of a sequence of one
    /// row nobody can tell, but its zeros are of the same making.
    fn last_rows(&self, offsets: &[i64]) -> (u64, u64, u64) {
        let (mut missing, mut all, mut zeros) = (0, 0, 0);
        for bounds in offsets.windows(2).filter(|bounds| bounds[1] > bounds[0]) {
            let (last, is_single) = (bounds[1] as usize - 1, bounds[1] - bounds[0] == 1);
            let is_missing = self.absent[last] && (is_single || !self.absent[last - 1]);
            all += u64::from(!is_single);
            missing += u64::from(is_missing && !is_single);
            zeros += if is_missing { u64::from(self.zero_layers[last]) } else { 0 };
        }
        (missing, all, zeros)
    }

    fn dangers(&self, offsets: &[i64]) -> Vec<Danger> {
        let mut dangers = Vec::new();
        dangers.extend(self.shift(&self.by_token, Kind::RoutesShiftedByToken, "token"));
        dangers.extend(self.shift(&self.by_layer, Kind::RoutesShiftedByLayer, "layer"));
        let (missing, all, mut explained) = self.last_rows(offsets);
        let share = missing as f64 / all.max(1) as f64;
        let tensor = self.which.tensor();
        if share >= LAST_ROWS {
            let found = format!(
                "the last row of {} of {} sequences was not recorded, the one before it was",
                count(missing),
                count(all)
            );
            dangers.push(Danger { kind: Kind::MissingLastRow, tensor, statistic: share, threshold: LAST_ROWS, found });
        } else {
            explained = 0;
        }
        dangers.extend(self.bad_experts(explained));
        dangers
    }

    fn shift(&self, means: &[Mean; 3], kind: Kind, what: &str) -> Option<Danger> {
        let [before, own, after] = means.map(|mean| mean.value().filter(|_| mean.count >= FEWEST as u64));
        let own = own?;
        let (side, best) = [("before", before), ("after", after)]
            .into_iter()
            .filter_map(|(side, value)| Some((side, value?)))
            .max_by(|a, b| a.1.total_cmp(&b.1))?;
        let (found_own, found_best) = (percent(own), percent(best));
        let found =
            format!("are {found_best} the gate's choice for the {what} {side}, {found_own} for their own {what}");
        let tensor = self.which.tensor();
        (best - own >= SHIFT).then_some(Danger { kind, tensor, statistic: best - own, threshold: SHIFT, found })
    }

    /// `explained`: zeros that are last rows.
    fn bad_experts(&self, explained: u64) -> Option<Danger> {
        let rows = self.absent.len() as u64;
        // One expert of zero a row is a choice that a small router may make throughout a few rows.
        let enough = if self.top_k > 1 { 1 } else { FEWEST as u64 };
        let is_trivial = self.experts == Some(1);
        let zero_layers: Vec<usize> =
            (0..self.layers).filter(|&layer| !is_trivial && rows >= enough && self.all_zero[layer] == rows).collect();
        let sum = |of: fn(&Rows) -> u64| self.rows.iter().map(of).sum::<u64>();
        let in_zero_layers: u64 = zero_layers.iter().map(|&layer| self.rows[layer].zeros).sum();
        // A last row that is missing has no recorded layer, so neither count includes the other where some layer is recorded.
        let zeros = sum(|rows| rows.zeros).saturating_sub(in_zero_layers).saturating_sub(explained);
        let parts = [
            (sum(|rows| rows.duplicates), "name an expert twice"),
            (sum(|rows| rows.out_of_range), "name an expert that does not exist"),
            (sum(|rows| rows.partial), "are partly not recorded"),
            (zeros, "are zeros"),
        ];
        let mut words: Vec<String> = parts
            .iter()
            .filter(|(rows, _)| *rows > 0)
            .map(|(rows, what)| format!("{} (token, layer) rows {what}", count(*rows)))
            .collect();
        if let Some((row, layer)) = self.first_bad {
            words.push(format!("the first is row {row} of layer {layer}"));
        }
        if !zero_layers.is_empty() {
            let named: Vec<String> = zero_layers.iter().take(8).map(usize::to_string).collect();
            let more = if zero_layers.len() > 8 { ", …" } else { "" };
            words.push(format!("layers that are all zeros: {}{more}", named.join(", ")));
        }
        let found = parts.iter().map(|(rows, _)| rows).sum::<u64>() + zero_layers.len() as u64;
        (found > 0).then(|| Danger {
            kind: Kind::BadExperts,
            tensor: self.which.tensor(),
            statistic: found as f64,
            threshold: 1.0,
            found: words.join("; "),
        })
    }

    fn finish(self, offsets: &[i64]) -> Routes {
        let (missing, all, _) = self.last_rows(offsets);
        let compared: u64 = self.overlap.iter().map(|mean| mean.count).sum();
        let is_compared = self.is_compared && compared > 0;
        let share = |part: u64, of: u64| (is_compared && of > 0).then(|| part as f64 / of as f64);
        let changed_tokens = self.changed_layers.iter().filter(|&&layers| layers > 0).count() as u64;
        let layers = (0..self.layers).map(|layer| {
            let load = Load::of(&self.load[layer]);
            let [forced_mass, margin, deficit] = self.telemetry[layer].map(|mean| mean.value());
            Layer {
                rows: self.rows[layer],
                load: self.load[layer].clone(),
                load_cv: load.map(|load| load.cv),
                load_max_over_mean: load.map(|load| load.max_over_mean),
                overlap: self.overlap[layer].value(),
                changed: share(self.changed[layer], self.overlap[layer].count),
                forced_mass,
                margin,
                deficit,
            }
        });
        let sixteenths = |layers: &u16| (usize::from(*layers) * 16).div_ceil(self.layers.max(1)) as u8;
        Routes {
            tensor: self.which.tensor(),
            layers: layers.collect(),
            changed: share(self.changed.iter().sum(), compared),
            changed_tokens: share(changed_tokens, self.absent.len() as u64),
            overlap_by_token: self.by_token.map(|mean| mean.value()),
            overlap_by_layer: self.by_layer.map(|mean| mean.value()),
            missing_last_rows: (missing, all),
            change_by_token: is_compared.then(|| self.changed_layers.iter().map(sixteenths).collect()),
        }
    }
}
