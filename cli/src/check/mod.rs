//! `moerl check`: golden vectors through a backend.
//!
//! A folder holds pairs of files, `NAME.safetensors` and `NAME.cases.json` (or the same JSON in the safetensors metadata under
//! `cases`), and step files with expected tensors. Every case ends with a verdict; none is skipped.
//!
//! | verdict | meaning |
//! |---|---|
//! | PASS | every quantity within its tolerance |
//! | DIFFERS | the producer defines something else, by a rule over its function and configuration that is printed |
//! | UNSUPPORTED | a producer, function, option or feature that this version does not know |
//! | FAIL | a quantity outside its tolerance, a missing tensor, or an error of the operation |

mod advantage;
mod correction;
mod gate;
mod logprob;
mod objective;
mod router_loss;
mod step;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moerl::Backend;
use moerl::element::Scalar;
use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::arguments::{Check, Family};
use crate::backend::{Chosen, Task};
use crate::failure::{Failure, Result};
use crate::progress::Progress;
use crate::stepfile::Container;
use crate::table::{Table, number};

/// What a case came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every quantity within its tolerance.
    Pass(Worst),
    /// The producer defines something else.
    Differs(String),
    /// This version does not know it.
    Unsupported(String),
    /// Outside a tolerance, or not run at all although it should.
    Fail(String),
}

/// The largest error over its tolerance, and which quantity had it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worst {
    /// Error / tolerance.
    pub ratio: f64,
    /// The quantity.
    pub quantity: String,
}

/// A case with its verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// gate, logprob, objective or step.
    pub family: Family,
    /// Who made the expected values.
    pub producer: String,
    /// The case's name in its file.
    pub id: String,
    /// What it came to.
    pub verdict: Verdict,
}

/// Runs the command.
///
/// # Errors
/// [`Failure::Input`] for a folder without golden vectors, or with files that cannot be read.
pub fn run(options: &Check) -> Result<Outcome> {
    let backend = Chosen::open(options.backend)?;
    let records = backend.run(Vectors { options })?;
    let failed = records.iter().any(|r| matches!(r.verdict, Verdict::Fail(_) | Verdict::Unsupported(_)));
    let text = if options.json { as_json(&backend, &records) } else { as_text(&backend, options, &records) };
    Ok(Outcome { text, exit_code: u8::from(failed) })
}

/// The golden vectors of a folder, as work for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'a> {
    /// Which folder, family and cases.
    pub options: &'a Check,
}

impl Task for Vectors<'_> {
    type Output = Vec<Record>;

    fn run<B: Backend>(self, backend: &B) -> Result<Vec<Record>> {
        let only = self.options.only.as_deref().map(glob::Pattern::new).transpose();
        let only = only.map_err(|error| Failure::input(format!("--only: {error}")))?;
        let chosen = |family: Family, id: &str| {
            self.options.family.is_none_or(|wanted| wanted == family)
                && only.as_ref().is_none_or(|only| only.matches(id))
        };
        let mut records = Vec::new();
        for path in safetensors_in(&self.options.folder)? {
            let file = Container::open(&path)?;
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            match cases(&file, &path.with_extension("cases.json"))? {
                Some(cases) => {
                    let cases: Vec<Case> = cases.into_iter().map(|json| Case::new(&file, &stem, json)).collect();
                    let progress = Progress::new(cases.len() as u64, "cases");
                    for case in cases.iter().filter(|case| chosen(case.family, &case.id)) {
                        records.push(case.record(backend));
                        progress.advance(1);
                    }
                }
                None => records.extend(step::records(backend, &path, &|id| chosen(Family::Step, id))?),
            }
        }
        if records.is_empty() {
            let folder = self.options.folder.display();
            return Err(Failure::input(format!("{folder}: no golden vectors here match --family and --only")));
        }
        Ok(records)
    }
}

fn safetensors_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Failure::input(format!("{}: cannot be read: {error}", folder.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::input(format!("{}: holds no *.safetensors", folder.display())));
    }
    Ok(paths)
}

/// The cases that belong to a file: from the JSON file beside it, else from its metadata; `None` without either.
fn cases(file: &Container, beside: &Path) -> Result<Option<Vec<Value>>> {
    let text = match std::fs::read_to_string(beside) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            match file.metadata().and_then(|metadata| metadata.get("cases")) {
                Some(text) => text.clone(),
                None => return Ok(None),
            }
        }
        Err(error) => return Err(Failure::input(format!("{}: cannot be read: {error}", beside.display()))),
    };
    let named = |message: &str| Failure::input(format!("{}: {message}", beside.display()));
    match serde_json::from_str(&text).map_err(|error| named(&error.to_string()))? {
        Value::Array(cases) => Ok(Some(cases)),
        Value::Object(mut object) => match object.remove("cases") {
            Some(Value::Array(cases)) => Ok(Some(cases)),
            _ => Err(named("has no list of cases")),
        },
        _ => Err(named("is neither a list of cases nor an object with one")),
    }
}

/// One golden case: what its JSON says, and the file with its tensors.
#[derive(Debug)]
pub struct Case<'a> {
    file: &'a Container,
    json: Value,
    family: Family,
    producer: String,
    id: String,
}

/// Why a case has no PASS. The functions that run cases use it with `?`.
#[derive(Debug)]
enum Stop {
    Differs(String),
    Unsupported(String),
    Fail(String),
}

impl From<moerl::Error> for Stop {
    fn from(error: moerl::Error) -> Stop {
        Stop::Fail(error.to_string())
    }
}

fn unsupported<T>(reason: impl Into<String>) -> std::result::Result<T, Stop> {
    Err(Stop::Unsupported(reason.into()))
}

impl<'a> Case<'a> {
    fn new(file: &'a Container, stem: &str, json: Value) -> Case<'a> {
        let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
        let id = text("id").or_else(|| text("name")).unwrap_or_else(|| "(a case without id)".into());
        // The first word of the file's name says the family, unless the case itself names one of ours.
        let word = stem.split(['.', '_', '-']).next().unwrap_or_default();
        let family = text("family").as_deref().and_then(Family::parse).or_else(|| Family::parse(word));
        let family = family.unwrap_or(Family::Objective);
        Case { file, family, producer: text("producer").unwrap_or_default(), id, json }
    }

    fn record<B: Backend>(&self, backend: &B) -> Record {
        let outcome = match self.family {
            Family::Gate => gate::check(backend, self),
            Family::Logprob => logprob::check(backend, self),
            Family::Objective if self.text("family") == Some("advantage") => advantage::check(backend, self),
            Family::Objective => objective::check(backend, self),
            Family::Step => unsupported("a step file needs no list of cases"),
        };
        let verdict = match outcome {
            Ok(compared) => compared.verdict(),
            Err(Stop::Differs(reason)) => Verdict::Differs(reason),
            Err(Stop::Unsupported(reason)) => Verdict::Unsupported(reason),
            Err(Stop::Fail(reason)) => Verdict::Fail(reason),
        };
        Record { family: self.family, producer: self.producer.clone(), id: self.id.clone(), verdict }
    }

    /// The producer's name without its version: `megatron-core`.
    fn producer_name(&self) -> &str {
        self.producer.split(' ').next().unwrap_or_default()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.json.get(key).and_then(Value::as_str)
    }

    /// The configuration, if every key in it is one of `known`.
    fn config(&self, known: &[&str]) -> std::result::Result<Config<'_>, Stop> {
        static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let config = self.json.get("config").and_then(Value::as_object).unwrap_or(&EMPTY);
        match config.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => unsupported(format!("configuration key {key}")),
            None => Ok(Config { values: config }),
        }
    }

    /// Whether the file has this tensor.
    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_some()
    }

    /// A tensor of the file and its shape.
    fn tensor<T: Scalar>(&self, name: &str) -> std::result::Result<(Vec<T>, Vec<usize>), Stop> {
        let tensor = self.file.tensor(name).ok_or_else(|| Stop::Fail(format!("tensor {name} is missing")))?;
        if tensor.element != Some(T::ELEMENT) {
            return Err(Stop::Fail(format!("tensor {name} is {}, needs {}", tensor.describe(), T::ELEMENT)));
        }
        Ok((tensor.all::<T>().into_owned(), tensor.shape.to_vec()))
    }

    /// A tensor that must have this many elements.
    fn values<T: Scalar>(&self, name: &str, len: usize) -> std::result::Result<Vec<T>, Stop> {
        let (values, shape) = self.tensor(name)?;
        if values.len() == len {
            Ok(values)
        } else {
            Err(Stop::Fail(format!("tensor {name} has shape {shape:?}, needs {len} elements")))
        }
    }
}

/// A case's configuration.
#[derive(Clone, Copy, Debug)]
struct Config<'a> {
    values: &'a Map<String, Value>,
}

impl Config<'_> {
    /// The value, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A number; JSON has no infinities, so those are text.
    fn number(&self, key: &str) -> Option<f64> {
        let value = self.get(key)?;
        value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
    }
}

/// How far a result may be from its expected value: `absolute + relative · |expected|`.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    relative: f64,
    absolute: f64,
}

/// Every comparison of a case.
#[derive(Debug, Default)]
struct Compared {
    worst: Worst,
    failure: Option<String>,
}

impl Compared {
    /// Compares numbers; NaN equals NaN, and an infinity itself.
    fn close(&mut self, quantity: &str, found: &[f32], expected: &[f32], tolerance: Tolerance) {
        if found.len() != expected.len() {
            self.failed(format!("{quantity}: {} values, {} expected", found.len(), expected.len()));
            return;
        }
        for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
            self.one(quantity, i, f64::from(f), f64::from(e), tolerance);
        }
    }

    /// Compares one number, element `i` of its quantity.
    fn one(&mut self, quantity: &str, i: usize, found: f64, expected: f64, tolerance: Tolerance) {
        let same = found == expected || (found.is_nan() && expected.is_nan());
        let allowed = tolerance.absolute + tolerance.relative * expected.abs();
        let ratio = if same { 0.0 } else { (found - expected).abs() / allowed };
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        if ratio > self.worst.ratio {
            self.worst = Worst { ratio, quantity: quantity.to_owned() };
            if ratio > 1.0 {
                self.failure = Some(format!(
                    "{quantity}[{i}]: {found:e}, expected {expected:e}, {} × its tolerance",
                    number(ratio, 3)
                ));
            }
        }
    }

    /// Compares what must be equal.
    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, quantity: &str, found: &[T], expected: &[T]) {
        if found.len() != expected.len() {
            self.failed(format!("{quantity}: {} values, {} expected", found.len(), expected.len()));
        } else if let Some(i) = (0..found.len()).find(|&i| found[i] != expected[i]) {
            self.failed(format!("{quantity}[{i}]: {:?}, expected {:?}", found[i], expected[i]));
        }
    }

    fn failed(&mut self, message: String) {
        self.failure.get_or_insert(message);
        self.worst.ratio = f64::INFINITY;
    }

    fn verdict(self) -> Verdict {
        match self.failure {
            Some(message) => Verdict::Fail(message),
            None => Verdict::Pass(self.worst),
        }
    }
}

/// The verdicts of one family and producer.
#[derive(Debug, Default)]
struct Tally<'a> {
    passed: usize,
    differ: usize,
    unsupported: usize,
    failed: usize,
    worst: Option<(&'a Worst, &'a str)>,
}

fn tallies(records: &[Record]) -> BTreeMap<(Family, &str), Tally<'_>> {
    let mut tallies: BTreeMap<(Family, &str), Tally<'_>> = BTreeMap::new();
    for record in records {
        let tally = tallies.entry((record.family, record.producer.as_str())).or_default();
        match &record.verdict {
            Verdict::Pass(worst) => {
                tally.passed += 1;
                if tally.worst.is_none_or(|(so_far, _)| worst.ratio > so_far.ratio) {
                    tally.worst = Some((worst, &record.id));
                }
            }
            Verdict::Differs(_) => tally.differ += 1,
            Verdict::Unsupported(_) => tally.unsupported += 1,
            Verdict::Fail(_) => tally.failed += 1,
        }
    }
    tallies
}

fn as_text(backend: &Chosen, options: &Check, records: &[Record]) -> String {
    let mut text = format!("{}  on {}\n\n", options.folder.display(), backend.describe());
    let mut table = Table::new(&[
        "family",
        "producer",
        ">pass",
        ">differ",
        ">unsupported",
        ">fail",
        ">error/tolerance",
        "worst case",
    ]);
    for ((family, producer), tally) in tallies(records) {
        let (ratio, case) = tally.worst.map_or_else(Default::default, |(worst, id)| {
            (
                number(worst.ratio, 2),
                if worst.quantity.is_empty() { id.into() } else { format!("{id}: {}", worst.quantity) },
            )
        });
        let counts = [tally.passed, tally.differ, tally.unsupported, tally.failed].map(|n| n.to_string());
        table.row([family.name().to_owned(), producer.to_owned()].into_iter().chain(counts).chain([ratio, case]));
    }
    text.push_str(&table.render());
    for (heading, pick) in [
        ("DIFFERS", (|v| if let Verdict::Differs(r) = v { Some(r) } else { None }) as fn(&Verdict) -> Option<&String>),
        ("UNSUPPORTED", |v| if let Verdict::Unsupported(r) = v { Some(r) } else { None }),
        ("FAIL", |v| if let Verdict::Fail(r) = v { Some(r) } else { None }),
    ] {
        text.push_str(&reasons(heading, heading == "FAIL", records, pick));
    }
    text
}

/// The cases of one verdict by reason; `each` names every case, otherwise a reason's first one and their number.
fn reasons(heading: &str, each: bool, records: &[Record], pick: fn(&Verdict) -> Option<&String>) -> String {
    let mut by_reason: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for record in records {
        if let Some(reason) = pick(&record.verdict) {
            by_reason.entry((record.family.name(), reason)).or_default().push(&record.id);
        }
    }
    let mut table = Table::new(&["", "", ">", ""]);
    for ((family, reason), ids) in &by_reason {
        if each {
            ids.iter().for_each(|id| {
                table.row([family, reason, "", *id]);
            });
        } else {
            let more = if ids.len() > 1 { format!("{} and {} more", ids[0], ids.len() - 1) } else { ids[0].to_owned() };
            table.row([(*family).to_owned(), (*reason).to_owned(), ids.len().to_string(), more]);
        }
    }
    if table.is_empty() { String::new() } else { format!("\n{heading}\n{}", table.render()) }
}

fn as_json(backend: &Chosen, records: &[Record]) -> String {
    let cases: Vec<Value> = records
        .iter()
        .map(|record| {
            let mut case = json!({"family": record.family.name(), "producer": record.producer, "id": record.id});
            let (verdict, key, value) = match &record.verdict {
                Verdict::Pass(worst) => {
                    case["quantity"] = json!(worst.quantity);
                    ("PASS", "error_over_tolerance", json!(worst.ratio))
                }
                Verdict::Differs(reason) => ("DIFFERS", "reason", json!(reason)),
                Verdict::Unsupported(reason) => ("UNSUPPORTED", "reason", json!(reason)),
                Verdict::Fail(reason) => ("FAIL", "reason", json!(reason)),
            };
            case["verdict"] = json!(verdict);
            case[key] = value;
            case
        })
        .collect();
    format!("{:#}\n", json!({"backend": backend.name(), "cases": cases}))
}
