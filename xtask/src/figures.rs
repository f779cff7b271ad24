//! A ratchet on what needs no GPU to be known: instructions, registers and spills of every kernel, bytes and sectors of every call that
//! `moerl bench` measures. A figure that has grown since it was written down fails; `--write` writes them down anew, on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::toolkit;
use crate::workspace::{Workspace, output};
use crate::{kernel_files, kernels, processes, sass, suite};

/// Where the figures stand.
const FILE: &str = "benches/figures.tsv";

/// The generation whose machine code is counted.
const ARCH: u32 = 90;

/// Kernels that are no operation of the library: what bandwidth is measured with, and what a test of the launch sends back.
const TOOLS: [&str; 5] = ["bandwidth_copy", "bandwidth_empty", "bandwidth_fill", "bandwidth_read", "echo"];

/// What `moerl bench` measures, the longest first. A case that is not looked at is missed: its line says so.
const NOUNS: [&str; 12] = [
    "logprob",
    "gate",
    "update",
    "objective",
    "correction",
    "advantage",
    "router_loss",
    "linear",
    "covariance",
    "expert_ledger",
    "route_change",
    "ema",
];

const HEADING: &str = "\
# What is known of every kernel without a GPU. Written by `cargo xtask figures --write`, checked by `cargo xtask figures`: none may grow.
# code: machine code for sm_90 (pinned nvcc). traffic: the calls of `moerl bench --backend emulator`, by the traffic meter.
";

/// What is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Part {
    /// The machine code; needs the pinned nvcc.
    Code,
    /// What the emulated kernels move; seconds, once they are built.
    Traffic,
}

impl Part {
    const ALL: [Part; 2] = [Part::Code, Part::Traffic];

    fn name(self) -> &'static str {
        match self {
            Part::Code => "code",
            Part::Traffic => "traffic",
        }
    }

    /// The columns of a line, after its part and its name.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Part::Code => &["instructions", "registers", "spilled bytes"],
            Part::Traffic => &["launches", "loaded bytes", "stored bytes", "sectors"],
        }
    }
}

/// By part and name.
type Figures = BTreeMap<(Part, String), Vec<u64>>;

/// Checks the figures, or writes them; of one part, or of both.
pub fn figures(workspace: &Workspace, only: Option<Part>, write: bool) -> Result<()> {
    let path = workspace.root.join(FILE);
    let mut parts = only.map_or(Part::ALL.to_vec(), |part| vec![part]);
    if parts.contains(&Part::Code) {
        let nvcc = toolkit::nvcc(workspace)?;
        if toolkit::NVCC.name != format!("nvcc {}", nvcc.version) {
            let here = format!("the figures are those of {}, this is nvcc {}", toolkit::NVCC.name, nvcc.version);
            if write || only.is_some() {
                bail!("machine code cannot be counted: {here}");
            }
            println!("machine code is not compared: {here}");
            parts.retain(|&part| part != Part::Code);
        }
    }
    let mut found = Figures::new();
    for part in &parts {
        found.extend(match part {
            Part::Code => code(workspace)?,
            Part::Traffic => traffic(workspace)?,
        });
    }
    if write {
        // What was not looked at stays as it is written down.
        let mut all = if path.exists() { read(&path)? } else { Figures::new() };
        all.retain(|(part, _), _| !parts.contains(part));
        all.extend(found);
        fs::write(&path, render(&all)).with_context(|| path.display().to_string())?;
        println!("{FILE}: {} lines", all.len());
        return Ok(());
    }
    let mut written = read(&path)?;
    written.retain(|(part, _), _| parts.contains(part));
    let changes = compare(&written, &found);
    print!("{}", table(&changes));
    let worse = changes.iter().filter(|change| change.is_worse()).count();
    if worse > 0 {
        bail!(
            "{FILE}: {worse} figures are worse, or of what is not there (if that is meant: cargo xtask figures --write)"
        );
    }
    println!("{FILE}: of {} lines no figure has grown, {} are better", found.len(), changes.len());
    Ok(())
}

/// Instructions, registers and spills of every kernel.
fn code(workspace: &Workspace) -> Result<Figures> {
    let compiled = kernels::compile(workspace)?;
    let mixes = sass::all(workspace, &compiled, ARCH)?;
    let line = |(kernel, mix): (String, sass::Mix)| {
        let usage = compiled.table.get(&(kernel.clone(), ARCH)).cloned().unwrap_or_default();
        let instructions: u32 = mix.values().sum();
        let figures = [instructions, usage.registers, usage.spill_bytes].map(u64::from);
        ((Part::Code, kernel), figures.to_vec())
    };
    Ok(mixes.into_iter().map(line).collect())
}

/// What the emulated kernels move.
fn traffic(workspace: &Workspace) -> Result<Figures> {
    // The command is built for its tests, here for the smallest of them.
    let messages = suite::build(workspace, &["--test", "devices"])?;
    let mut programs = messages.iter().filter(|message| message["target"]["kind"][0] == "bin");
    let program = programs.find_map(|message| message["executable"].as_str()).context("cargo builds no `moerl`")?;
    let cases = processes::in_parallel(&NOUNS, |noun| bench(workspace, program, noun))?.concat();
    let missing = missing(&entries(workspace)?, &launched(&cases)?);
    if !missing.is_empty() {
        bail!("no case of `moerl bench` launches {}", missing.join(", "));
    }
    let mut figures = Figures::new();
    for case in &cases {
        let (name, numbers) = traffic_of(case)?;
        if figures.insert((Part::Traffic, name.clone()), numbers).is_some() {
            bail!("two cases of `moerl bench` are called {name}");
        }
    }
    Ok(figures)
}

/// The cases of one noun.
fn bench(workspace: &Workspace, program: &str, noun: &str) -> Result<Vec<Value>> {
    let json = workspace.target.join(format!("figures-{noun}.json"));
    let mut command = workspace.command(program);
    command.args(["bench", noun, "--backend", "emulator", "--json"]).arg(&json);
    // The table is for people; here the file is what counts.
    output(&mut command)?;
    let text = fs::read_to_string(&json).with_context(|| json.display().to_string())?;
    let document: Value = serde_json::from_str(&text).context("what `moerl bench` wrote")?;
    document["cases"].as_array().cloned().context("a list of cases")
}

fn traffic_of(case: &Value) -> Result<(String, Vec<u64>)> {
    let text = |field: &str| case[field].as_str().with_context(|| format!("{field} of a case"));
    let number = |field: &str| case[field].as_u64().with_context(|| format!("{field} of a case"));
    let name = format!("{} {}, {}, {}", text("noun")?, text("operation")?, text("shape")?, text("element")?);
    let figures =
        ["launches", "loaded_bytes", "stored_bytes", "sectors"].map(number).into_iter().collect::<Result<_>>()?;
    Ok((name, figures))
}

/// The kernels that the cases launched.
fn launched(cases: &[Value]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for case in cases {
        for kernel in case["kernels"].as_array().context("the kernels of a case")? {
            names.insert(kernel.as_str().context("the name of a kernel")?.to_owned());
        }
    }
    Ok(names)
}

/// The kernels that the sources declare.
fn entries(workspace: &Workspace) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for source in kernel_files::sources(&workspace.root.join("kernels")).map_err(|error| anyhow!(error))? {
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        names.extend(kernel_files::entries(&text).into_iter().map(|entry| entry.name));
    }
    Ok(names)
}

/// A kernel's name without the types and sizes that it is compiled for: `gate_forward` of `gate_forward_bf16_128`.
fn family(kernel: &str) -> String {
    let is_instance = |word: &&str| ["bf16", "f16", "f32"].contains(word) || word.parse::<u32>().is_ok();
    kernel.split('_').filter(|word| !is_instance(word)).collect::<Vec<_>>().join("_")
}

/// The families of kernels of which none was launched.
fn missing(declared: &[String], launched: &BTreeSet<String>) -> Vec<String> {
    let launched: BTreeSet<String> = launched.iter().map(|kernel| family(kernel)).collect();
    let declared: BTreeSet<String> = declared.iter().map(|kernel| family(kernel)).collect();
    declared.into_iter().filter(|name| !launched.contains(name) && !TOOLS.contains(&name.as_str())).collect()
}

fn render(figures: &Figures) -> String {
    let mut text = HEADING.to_owned();
    let mut last = None;
    for ((part, name), numbers) in figures {
        if last != Some(part) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# part\tname\t{}", part.columns().join("\t"));
        }
        last = Some(part);
        let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "{}\t{name}\t{}", part.name(), numbers.join("\t"));
    }
    text
}

fn read(path: &Path) -> Result<Figures> {
    let text = fs::read_to_string(path);
    parse(&text.with_context(|| format!("{} cannot be read (cargo xtask figures --write makes it)", path.display()))?)
}

fn parse(text: &str) -> Result<Figures> {
    let line = |line: &str| -> Result<_> {
        let unreadable = || format!("{FILE}: cannot be read: {line}");
        let mut cells = line.split('\t');
        let (part, name) = cells.next().zip(cells.next()).with_context(unreadable)?;
        let part = Part::ALL.into_iter().find(|known| known.name() == part).with_context(unreadable)?;
        let numbers: Vec<u64> = cells.map(|cell| cell.parse().with_context(unreadable)).collect::<Result<_>>()?;
        if numbers.len() != part.columns().len() {
            bail!("{}", unreadable());
        }
        Ok(((part, name.to_owned()), numbers))
    };
    text.lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

/// A figure that is not as it was written down.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    part: Part,
    name: String,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Figure {
        column: &'static str,
        from: u64,
        to: u64,
    },
    /// Is not written down.
    New,
    /// Is written down, and no longer there.
    Gone,
}

impl Change {
    /// Also what is new or gone: the file must say what there is.
    fn is_worse(&self) -> bool {
        !matches!(self.what, What::Figure { from, to, .. } if to < from)
    }
}

fn compare(written: &Figures, found: &Figures) -> Vec<Change> {
    let mut changes = Vec::new();
    for ((part, name), now) in found {
        let change = |what| Change { part: *part, name: name.clone(), what };
        let Some(then) = written.get(&(*part, name.clone())) else {
            changes.push(change(What::New));
            continue;
        };
        for ((&column, &from), &to) in part.columns().iter().zip(then).zip(now) {
            if from != to {
                changes.push(change(What::Figure { column, from, to }));
            }
        }
    }
    let gone = written.keys().filter(|key| !found.contains_key(key));
    changes.extend(gone.map(|(part, name)| Change { part: *part, name: name.clone(), what: What::Gone }));
    changes
}

/// A line a change: what it is of, the column, from, to, and how much that is.
fn table(changes: &[Change]) -> String {
    let mut rows = Vec::new();
    for Change { part, name, what } in changes {
        let verdict = match what {
            What::New => ["is not written down".to_owned(), String::new(), String::new(), String::new()],
            What::Gone => ["is written down, and gone".to_owned(), String::new(), String::new(), String::new()],
            What::Figure { column, from, to } => {
                let share = (*to as f64 / (*from).max(1) as f64 - 1.0) * 100.0;
                [(*column).to_owned(), from.to_string(), format!("-> {to}"), format!("{share:+.1} %")]
            }
        };
        let [column, from, to, share] = verdict;
        rows.push([part.name().to_owned(), name.clone(), column, from, to, share]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(lines: &[(Part, &str, &[u64])]) -> Figures {
        lines.iter().map(|(part, name, numbers)| ((*part, name.to_string()), numbers.to_vec())).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let some = figures(&[
            (Part::Code, "gate", &[100, 32, 0]),
            (Part::Traffic, "gate forward, T=1 E=2, bf16", &[1, 2, 3, 4]),
        ]);
        assert_eq!(parse(&render(&some)).unwrap(), some);
    }

    #[test]
    fn a_damaged_line_is_named() {
        for line in ["code\tgate\tmany", "code\tgate\t1\t2", "speed\tgate\t1\t2\t3", "code"] {
            assert!(parse(line).unwrap_err().to_string().contains(line), "{line}");
        }
    }

    #[test]
    fn growth_and_change_of_what_there_is_are_faults_and_shrinking_is_not() {
        let of = |a: &[u64], b: &[u64], third: &str| {
            figures(&[(Part::Code, "a", a), (Part::Code, "b", b), (Part::Code, third, &[1, 1, 0])])
        };
        let changes = compare(&of(&[100, 32, 0], &[100, 32, 0], "gone"), &of(&[100, 33, 0], &[90, 32, 0], "new"));
        let worse: Vec<bool> = changes.iter().map(Change::is_worse).collect();
        assert_eq!(worse, [true, false, true, true]);
        assert_eq!(
            table(&changes),
            "code  a     registers                  32   -> 33  +3.1 %\n\
             code  b     instructions               100  -> 90  -10.0 %\n\
             code  new   is not written down\n\
             code  gone  is written down, and gone\n"
        );
        let same = of(&[1, 1, 1], &[1, 1, 1], "c");
        assert_eq!(compare(&same, &same), []);
    }

    #[test]
    fn a_family_is_missing_until_one_of_its_kernels_runs() {
        let declared = ["gate_forward_bf16_128", "gate_forward_f32_256", "gate_maps", "echo", "bandwidth_read"];
        let declared = declared.map(str::to_owned);
        let launched = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        assert_eq!(missing(&declared, &launched(&[])), ["gate_forward", "gate_maps"]);
        assert_eq!(missing(&declared, &launched(&["gate_forward_f32_256"])), ["gate_maps"]);
        assert!(missing(&declared, &launched(&["gate_forward_f32_256", "gate_maps"])).is_empty());
    }
}
