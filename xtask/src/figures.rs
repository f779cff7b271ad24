//! A ratchet on what needs no GPU to be known: instructions, registers and spills of every kernel, bytes and sectors of every call that
//! `moerl bench` measures. A figure that has grown since it was written down fails; `--write` writes them down anew, on purpose.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::toolkit;
use crate::workspace::{Workspace, run};
use crate::{kernels, sass, suite};

/// Where the figures stand.
const FILE: &str = "benches/figures.tsv";

/// The generation whose machine code is counted.
const ARCH: u32 = 90;

const HEADING: &str = "\
# What is known of every kernel without a GPU. Written by `cargo xtask figures --write`, checked by `cargo xtask figures`: none may grow.
# code: machine code for sm_90 (pinned nvcc). traffic: the calls of `moerl bench --backend emulator`, by the traffic meter.
";

/// The columns of a line, after its kind and its name.
fn columns(kind: &str) -> &'static [&'static str] {
    match kind {
        "code" => &["instructions", "registers", "spilled bytes"],
        _ => &["launches", "loaded bytes", "stored bytes", "sectors"],
    }
}

/// By kind and name.
type Figures = BTreeMap<(String, String), Vec<u64>>;

/// Checks the figures, or writes them.
pub fn figures(workspace: &Workspace, write: bool) -> Result<()> {
    let path = workspace.root.join(FILE);
    let mut found = traffic(workspace)?;
    let nvcc = toolkit::nvcc(workspace)?;
    let pinned = toolkit::NVCC.name == format!("nvcc {}", nvcc.version);
    if pinned {
        found.extend(code(workspace)?);
    } else if write {
        bail!("machine code is counted as {} makes it, and this is nvcc {}", toolkit::NVCC.name, nvcc.version);
    } else {
        println!(
            "machine code is not compared: the figures are those of {}, this is {}",
            toolkit::NVCC.name,
            nvcc.version
        );
    }
    if write {
        fs::write(&path, render(&found)).with_context(|| path.display().to_string())?;
        println!("{FILE}: {} lines", found.len());
        return Ok(());
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut written = parse(&text)?;
    if !pinned {
        written.retain(|(kind, _), _| kind != "code");
    }
    let Comparison { grown, shrunk } = compare(&written, &found);
    for line in &shrunk {
        println!("{line}");
    }
    if !grown.is_empty() {
        bail!("{FILE}: {} (if that is meant: cargo xtask figures --write)", grown.join("\n"));
    }
    println!("{} figures as written down, {} better", found.len() - shrunk.len(), shrunk.len());
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
        (("code".to_owned(), kernel), figures.to_vec())
    };
    Ok(mixes.into_iter().map(line).collect())
}

/// What the emulated kernels move.
fn traffic(workspace: &Workspace) -> Result<Figures> {
    let json = workspace.target.join("figures.json");
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--package", "moerl-cli", "--features", suite::EVERYTHING, "--"]);
    command.args(["bench", "--backend", "emulator", "--json"]).arg(&json);
    // The table is for people; here the file is what counts.
    run(command.stdout(std::process::Stdio::null()))?;
    let text = fs::read_to_string(&json).with_context(|| json.display().to_string())?;
    let document: Value = serde_json::from_str(&text).context("what `moerl bench` wrote")?;
    document["cases"].as_array().context("a list of cases")?.iter().map(traffic_of).collect()
}

fn traffic_of(case: &Value) -> Result<((String, String), Vec<u64>)> {
    let text = |field: &str| case[field].as_str().with_context(|| format!("{field} of a case"));
    let number = |field: &str| case[field].as_u64().with_context(|| format!("{field} of a case"));
    let name = format!("{} {}, {}, {}", text("noun")?, text("operation")?, text("shape")?, text("element")?);
    let figures =
        ["launches", "loaded_bytes", "stored_bytes", "sectors"].map(number).into_iter().collect::<Result<_>>()?;
    Ok((("traffic".to_owned(), name), figures))
}

fn render(figures: &Figures) -> String {
    let mut text = HEADING.to_owned();
    let mut last = "";
    for ((kind, name), numbers) in figures {
        if kind != last {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# kind\tname\t{}", columns(kind).join("\t"));
        }
        last = kind;
        let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "{kind}\t{name}\t{}", numbers.join("\t"));
    }
    text
}

fn parse(text: &str) -> Result<Figures> {
    let line = |line: &str| -> Result<_> {
        let mut cells = line.split('\t');
        let (kind, name) = cells.next().zip(cells.next()).with_context(|| format!("{FILE}: {line}"))?;
        let numbers =
            cells.map(|cell| cell.parse::<u64>().with_context(|| format!("{FILE}: {line}"))).collect::<Result<_>>()?;
        Ok(((kind.to_owned(), name.to_owned()), numbers))
    };
    text.lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

/// Lines about what differs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Comparison {
    /// Also what is new or gone: the file must say what there is.
    grown: Vec<String>,
    shrunk: Vec<String>,
}

fn compare(written: &Figures, found: &Figures) -> Comparison {
    let mut comparison = Comparison::default();
    for (key @ (kind, name), now) in found {
        let Some(then) = written.get(key) else {
            comparison.grown.push(format!("{kind} {name}: is not written down"));
            continue;
        };
        for ((column, &then), &now) in columns(kind).iter().zip(then).zip(now) {
            let line = format!("{kind} {name}: {column} {then} -> {now}");
            if now > then {
                comparison.grown.push(line);
            } else if now < then {
                comparison.shrunk.push(line);
            }
        }
    }
    let gone = written.keys().filter(|key| !found.contains_key(key));
    comparison.grown.extend(gone.map(|(kind, name)| format!("{kind} {name}: is written down, and gone")));
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(lines: &[(&str, &str, &[u64])]) -> Figures {
        lines.iter().map(|(kind, name, numbers)| ((kind.to_string(), name.to_string()), numbers.to_vec())).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let some =
            figures(&[("code", "gate", &[100, 32, 0]), ("traffic", "gate forward, T=1 E=2, bf16", &[1, 2, 3, 4])]);
        assert_eq!(parse(&render(&some)).unwrap(), some);
        assert!(parse("code\tgate\tmany").is_err());
    }

    #[test]
    fn growth_and_change_of_what_there_is_are_faults_and_shrinking_is_not() {
        let written =
            figures(&[("code", "a", &[100, 32, 0]), ("code", "b", &[100, 32, 0]), ("code", "gone", &[1, 1, 0])]);
        let found = figures(&[("code", "a", &[100, 33, 0]), ("code", "b", &[90, 32, 0]), ("code", "new", &[1, 1, 0])]);
        let Comparison { grown, shrunk } = compare(&written, &found);
        assert_eq!(
            grown,
            ["code a: registers 32 -> 33", "code new: is not written down", "code gone: is written down, and gone"]
        );
        assert_eq!(shrunk, ["code b: instructions 100 -> 90"]);
    }
}
