//! `moerl bench`: what every kernel takes, against what it must move.
//!
//! On a device: time by events, with the caches full of other things (cold) and right after itself (warm), beside launches of the same grids
//! that do nothing, and as a share of what the device's memory gives to a kernel that only copies, reads or fills, measured in the same
//! process. Under emulation: bytes and sectors by the traffic meter. On the reference: the CPU's time, for what it is worth.

pub mod advantage;
pub mod case;
pub mod correction;
pub mod covariance;
pub mod ema;
pub mod expert_ledger;
pub mod export;
pub mod gate;
pub mod linear;
pub mod logprob;
pub mod measure;
pub mod objective;
pub mod options;
pub mod packed;
pub mod route_change;
pub mod router_loss;
pub mod update;

use std::fs;
use std::time::Duration;

use moerl::Reference;
use serde_json::{Value, json};

use crate::arguments::BackendName;
use crate::backend::Chosen;
use crate::failure::{Failure, Result};
use crate::progress::Progress;
use crate::table::{Table, count, duration, number, percent};
use case::{Case, Floor, Scale};
use measure::{Bandwidth, Figure, Measure};
pub use options::{Noun, Options};

/// What was measured, in the order of the table.
#[derive(Clone, Debug)]
struct Measured {
    noun: &'static str,
    operation: String,
    shape: String,
    element: String,
    floor: Floor,
    figure: Figure,
}

/// Measures, prints a table and writes the figures where the options ask for it; or exports calls instead.
///
/// # Errors
/// [`Failure`]: no such backend, a file that cannot be written, a kernel at fault.
pub fn run(options: &Options) -> Result<String> {
    if let Some(path) = &options.export {
        return Chosen::open(options.backend)?.run(export::Export { options, path });
    }
    let Outcome { heading, bandwidth, measured, notes } = match options.backend {
        BackendName::Emulator => emulated(options)?,
        BackendName::Reference => on("reference: plain f64 loops on this CPU", &Reference, options, Scale::Small)?,
        BackendName::Cuda | BackendName::Auto => match Chosen::open(options.backend)? {
            #[cfg(feature = "cuda")]
            Chosen::Cuda(gpu) => {
                let info = gpu.info()?;
                on(&format!("cuda: {}", info.name), &measure::Timed::new(gpu)?, options, Scale::Full)?
            }
            other => on(&other.describe(), &Reference, options, Scale::Small)?,
        },
    };
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&document(&heading, bandwidth, &measured)).expect("plain numbers");
        fs::write(path, text + "\n").map_err(|error| Failure::run(format!("{}: {error}", path.display())))?;
    }
    Ok(report(&heading, bandwidth, &measured) + &notes.iter().map(|note| format!("\n{note}\n")).collect::<String>())
}

/// What ran, what memory gives, and the figures; what could not be measured here, and what memory calls take.
struct Outcome {
    heading: String,
    bandwidth: Option<Bandwidth>,
    measured: Vec<Measured>,
    notes: Vec<String>,
}

#[cfg(feature = "emulate")]
fn emulated(options: &Options) -> Result<Outcome> {
    let emulator = moerl::Emulator::new().metered();
    on("emulator: bytes that the kernels moved, by the traffic meter", &emulator, options, Scale::Small)
}

#[cfg(not(feature = "emulate"))]
fn emulated(options: &Options) -> Result<Outcome> {
    Chosen::open(options.backend).map(|_| unreachable!("this build has no emulator to open"))
}

fn on<B: Measure + 'static>(heading: &str, backend: &B, options: &Options, scale: Scale) -> Result<Outcome> {
    let stream = backend.stream()?;
    let bandwidth = backend.bandwidth(&stream)?;
    let scale = options.shapes.unwrap_or(scale);
    let cases = cases::<B>(scale, options);
    if cases.is_empty() {
        return Err(Failure::input("no case has this name: leave out --only to see them all"));
    }
    let progress = Progress::new(cases.len() as u64, "kernels measured");
    let (mut measured, mut notes) = (Vec::with_capacity(cases.len()), Vec::new());
    if cases.iter().any(|case| case.noun == "linear") {
        notes.push(linear::memory(scale));
    }
    for case in cases {
        let figure = (case.prepare)(backend, &stream).and_then(|mut call| backend.measure(&stream, &mut call));
        let figure = match figure {
            // Where everything is asked for, what this machine lacks is no failure.
            Err(reason @ moerl::Error::Unavailable { .. }) if options.nouns.is_empty() => {
                notes.push(format!("not measured: {} {} ({reason})", case.noun, case.operation));
                progress.advance(1);
                continue;
            }
            figure => figure?,
        };
        let Case { noun, operation, shape, element, floor, .. } = case;
        measured.push(Measured { noun, operation, shape, element: element.to_string(), floor, figure });
        progress.advance(1);
    }
    Ok(Outcome { heading: heading.to_owned(), bandwidth, measured, notes })
}

fn cases<B: Measure + 'static>(scale: Scale, options: &Options) -> Vec<Case<B>> {
    let mut cases: Vec<Case<B>> = options.nouns().flat_map(|noun| noun.cases(scale)).collect();
    if let Some(part) = &options.only {
        cases.retain(|case| format!("{} {} {} {}", case.noun, case.operation, case.shape, case.element).contains(part));
    }
    cases
}

impl Noun {
    /// Its cases.
    pub fn cases<B: Measure + 'static>(self, scale: Scale) -> Vec<Case<B>> {
        match self {
            Noun::Gate => gate::cases(scale),
            Noun::RouterLoss => router_loss::cases(scale),
            Noun::Logprob => logprob::cases(scale),
            Noun::Linear => linear::cases(scale),
            Noun::Objective => objective::cases(scale),
            Noun::Correction => correction::cases(scale),
            Noun::Advantage => advantage::cases(scale),
            Noun::Covariance => covariance::cases(scale),
            Noun::RouteChange => route_change::cases(scale),
            Noun::ExpertLedger => expert_ledger::cases(scale),
            Noun::Ema => ema::cases(scale),
            Noun::Update => update::cases(scale),
        }
    }
}

impl Measured {
    /// What memory gives to work of this kind: mostly reading, mostly writing, or both.
    fn kind(&self, bandwidth: &Bandwidth) -> (f64, &'static str) {
        let share = self.floor.read as f64 / self.floor.bytes().max(1) as f64;
        match share {
            s if s > 0.9 => (bandwidth.read, "read"),
            s if s < 0.1 => (bandwidth.fill, "fill"),
            _ => (bandwidth.copy, "copy"),
        }
    }

    /// The share of what memory gives, counted in the bytes that must be moved.
    fn share(&self, bandwidth: Option<&Bandwidth>) -> Option<(f64, &'static str)> {
        let (bandwidth, time) = (bandwidth?, self.figure.cold?);
        let (peak, kind) = self.kind(bandwidth);
        Some((self.floor.bytes() as f64 / time.as_secs_f64() / peak, kind))
    }
}

fn report(heading: &str, bandwidth: Option<Bandwidth>, measured: &[Measured]) -> String {
    let mut text = format!("{heading}\n");
    if let Some(Bandwidth { copy, read, fill }) = bandwidth {
        text += &format!(
            "memory gives {} to a copy, {} to reads, {} to a fill\n",
            per_second(copy),
            per_second(read),
            per_second(fill)
        );
    }
    let mut table = Table::new(&[
        "kernel",
        "shape",
        "type",
        ">floor",
        ">time",
        ">warm",
        ">empty launch",
        ">of memory",
        ">launches",
        ">loaded",
        ">stored",
        ">of floor",
        ">in sectors",
    ]);
    let optional = |time: Option<Duration>| time.map(duration).unwrap_or_default();
    for line in measured {
        let figure = &line.figure;
        let traffic = figure.traffic.unwrap_or_default();
        let counted = |bytes: u64| figure.traffic.map(|_| count(bytes)).unwrap_or_default();
        let of_floor = |bytes: u64| {
            let share = bytes as f64 / line.floor.bytes().max(1) as f64;
            figure.traffic.map(|_| number(share, 4)).unwrap_or_default()
        };
        table.row([
            format!("{} {}", line.noun, line.operation),
            line.shape.clone(),
            line.element.clone(),
            count(line.floor.bytes()),
            optional(figure.cold),
            optional(figure.warm),
            optional(figure.empty),
            line.share(bandwidth.as_ref()).map(|(s, kind)| format!("{} {kind}", percent(s))).unwrap_or_default(),
            figure.kernels.as_ref().map(|kernels| kernels.len().to_string()).unwrap_or_default(),
            counted(traffic.loaded),
            counted(traffic.stored),
            of_floor(traffic.loaded + traffic.stored),
            of_floor(32 * traffic.sectors),
        ]);
    }
    format!("{text}\n{}", table.render())
}

fn per_second(bytes: f64) -> String {
    format!("{} GB/s", number(bytes * 1e-9, 4))
}

/// The figures as a document that other programs read; times in microseconds, bandwidth in bytes per second.
fn document(heading: &str, bandwidth: Option<Bandwidth>, measured: &[Measured]) -> Value {
    let microseconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e6);
    let cases: Vec<Value> = measured
        .iter()
        .map(|line| {
            let figure = &line.figure;
            json!({
                "noun": line.noun,
                "operation": line.operation,
                "shape": line.shape,
                "element": line.element,
                "floor_read_bytes": line.floor.read,
                "floor_written_bytes": line.floor.written,
                "cold_us": microseconds(figure.cold),
                "warm_us": microseconds(figure.warm),
                "empty_launch_us": microseconds(figure.empty),
                "share_of_memory": line.share(bandwidth.as_ref()).map(|(share, _)| share),
                "launches": figure.kernels.as_ref().map(Vec::len),
                "kernels": figure.kernels,
                "loaded_bytes": figure.traffic.map(|t| t.loaded),
                "stored_bytes": figure.traffic.map(|t| t.stored),
                "sectors": figure.traffic.map(|t| t.sectors),
            })
        })
        .collect();
    json!({
        "ran_on": heading,
        "version": env!("CARGO_PKG_VERSION"),
        "bandwidth": bandwidth.map(|b| json!({ "copy": b.copy, "read": b.read, "fill": b.fill })),
        "cases": cases,
    })
}
