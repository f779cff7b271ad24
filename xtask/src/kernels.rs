//! Every kernel through nvcc for every architecture: registers, shared memory, spills. A spill or a warning is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::architecture::{MACHINE_CODE, PORTABLE};
use crate::kernel_files;
use crate::suite;
use crate::toolkit;
use crate::workspace::Workspace;

/// What ptxas said about one kernel on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub registers: u32,
    pub shared_bytes: u32,
    pub stack_bytes: u32,
    pub spill_bytes: u32,
}

/// Compiles everything and prints the table.
pub fn kernels(workspace: &Workspace) -> Result<()> {
    let table = compile(workspace)?.table;
    print_table(&table);
    let spilling: Vec<_> =
        table.iter().filter(|(_, usage)| usage.spill_bytes > 0).map(|((kernel, arch), _)| (kernel, arch)).collect();
    if !spilling.is_empty() {
        bail!(
            "registers spilled in {}",
            spilling.iter().map(|(k, a)| format!("{k} (sm_{a})")).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

/// By kernel and architecture.
pub type Table = BTreeMap<(String, u32), Usage>;

/// What the build script made for every architecture.
pub struct Compiled {
    pub table: Table,
    /// A fatbin and a log for each file of kernels.
    folder: PathBuf,
}

impl Compiled {
    pub fn fatbin(&self, source: &Path) -> PathBuf {
        self.folder.join(kernel_files::name(source)).with_extension("fatbin")
    }
}

/// Lets the build script compile every kernel for every architecture, as the tests have it, and reads what the compiler said.
pub fn compile(workspace: &Workspace) -> Result<Compiled> {
    toolkit::nvcc(workspace)?;
    let folder = build(workspace)?;
    let mut table = Table::new();
    let mut complaints = Vec::new();
    for source in kernel_files::sources(&workspace.root.join("kernels")).map_err(|error| anyhow!(error))? {
        let log = folder.join(kernel_files::name(&source)).with_extension("log");
        let said = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        complaints.extend(said.lines().filter(|line| !is_statistics(line)).map(str::to_owned));
        let found = usages(&said);
        same_kernels(&source, &found)?;
        table.extend(found);
    }
    if !complaints.is_empty() {
        bail!("nvcc complains:\n{}", complaints.join("\n"));
    }
    Ok(Compiled { table, folder })
}

/// Runs the build script for its default targets; the folder of its images.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    // The smallest test that has the library built.
    let messages = suite::build(workspace, &["--test", "kernels"])?;
    let variables = messages.iter().filter_map(|message| message["env"].as_array()).flatten();
    let mut folders =
        variables.filter(|pair| pair[0] == "MOERL_IMAGES").filter_map(|pair| Some(pair[1].as_str()?.into()));
    folders.next().context("the build script names no folder of images")
}

/// A line of `ptxas -v`, which complains of nothing.
fn is_statistics(line: &str) -> bool {
    line.starts_with("ptxas info") || line.contains("bytes stack frame") || line.trim().is_empty()
}

/// The build scans the sources for declarations instead of asking nvcc: both must see the same kernels, on every architecture.
fn same_kernels(source: &Path, compiled: &[((String, u32), Usage)]) -> Result<()> {
    let text = fs::read_to_string(source).with_context(|| source.display().to_string())?;
    let entries = kernel_files::entries(&text);
    let declared: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    for arch in MACHINE_CODE {
        let here = compiled.iter().filter(|((_, for_arch), _)| *for_arch == arch);
        let compiled: BTreeSet<&str> = here.map(|((name, _), _)| name.as_str()).collect();
        if declared != compiled {
            let odd: Vec<_> = declared.symmetric_difference(&compiled).copied().collect();
            let odd = odd.join(", ");
            bail!(
                "{}: declared at the start of a line or compiled for sm_{arch}, but not both: {odd}",
                source.display()
            );
        }
    }
    Ok(())
}

/// Reads `ptxas -v`.
pub fn usages(said: &str) -> Vec<((String, u32), Usage)> {
    let mut found: Vec<((String, u32), Usage)> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            // 'gate' for 'sm_90'
            let mut words = rest.split('\'').step_by(2);
            let name = words.next().unwrap_or_default().to_owned();
            let arch = words.next().and_then(|arch| arch.strip_prefix("sm_")?.parse().ok()).unwrap_or(0);
            found.push(((name, arch), Usage::default()));
        } else if let Some((_, usage)) = found.last_mut() {
            if line.contains("bytes stack frame") {
                usage.stack_bytes = number_before(line, " bytes stack frame");
                usage.spill_bytes =
                    number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            } else if line.contains(" registers") {
                usage.registers = number_before(line, " registers");
                usage.shared_bytes = number_before(line, " bytes smem");
            }
        }
    }
    found
}

/// The number that stands right before `unit`; 0 where the unit is absent.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split_once(unit).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn print_table(table: &Table) {
    let width = table.keys().map(|(kernel, _)| kernel.len()).max().unwrap_or(0).max(6);
    println!(
        "{:width$}  {:>6}  {:>9}  {:>6}  {:>5}  {:>6}",
        "kernel", "target", "registers", "shared", "stack", "spills"
    );
    for ((kernel, arch), usage) in table {
        let Usage { registers, shared_bytes, stack_bytes, spill_bytes } = usage;
        println!(
            "{kernel:width$}  sm_{arch:<3}  {registers:>9}  {shared_bytes:>6}  {stack_bytes:>5}  {spill_bytes:>6}"
        );
    }
    println!(
        "{} kernels, machine code for sm_{}, PTX for compute_{}",
        kernels_in(table),
        list(&MACHINE_CODE),
        list(&PORTABLE)
    );
}

fn kernels_in(table: &Table) -> usize {
    table.keys().filter(|(_, arch)| *arch == MACHINE_CODE[0]).count()
}

fn list(archs: &[u32]) -> String {
    archs.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ptxas_says_is_read() {
        let said = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'gate' for 'sm_90'\n\
            ptxas info    : Function properties for gate\n    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 424 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'plain' for 'sm_90'\n\
            ptxas info    : Function properties for plain\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 8 registers, used 0 barriers\n";
        let gate = Usage { registers: 40, shared_bytes: 2048, stack_bytes: 16, spill_bytes: 20 };
        let plain = Usage { registers: 8, ..Usage::default() };
        assert_eq!(usages(said), [(("gate".to_owned(), 90), gate), (("plain".to_owned(), 90), plain)]);
    }
    #[test]
    fn what_is_no_statistic_is_a_complaint() {
        let said = "ptxas info    : 0 bytes gmem\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\n\
            kernels/gate.cu(9): warning #177-D: variable \"x\" was declared but never referenced\n\
            ptxas warning : Registers are spilled to local memory in function 'gate'\n";
        let complaints: Vec<&str> = said.lines().filter(|line| !is_statistics(line)).collect();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints.iter().all(|line| line.contains("warning")));
    }
}
