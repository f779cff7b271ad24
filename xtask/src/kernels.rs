//! Every kernel through nvcc for every architecture: registers, shared memory, spills. A spill or a warning is an error.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::find_nvcc::{Nvcc, OPTIONS};
use crate::kernel_files;
use crate::toolkit;
use crate::workspace::Workspace;

/// What is compiled: machine code for these…
pub const MACHINE_CODE: [u32; 4] = [80, 90, 100, 120];
/// …and PTX for these.
const PORTABLE: [u32; 2] = [80, 90];

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
    let table = compile(workspace)?;
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

/// Compiles every kernel for every architecture, several at a time, where something changed; the cubins stay under [`cubin`].
pub fn compile(workspace: &Workspace) -> Result<Table> {
    let nvcc = toolkit::nvcc(workspace)?;
    let sources = kernel_files::sources(&workspace.root.join("kernels")).map_err(|error| anyhow!(error))?;
    let machine = MACHINE_CODE.iter().flat_map(|&arch| sources.iter().map(move |source| (source, arch, true)));
    let portable = PORTABLE.iter().flat_map(|&arch| sources.iter().map(move |source| (source, arch, false)));
    let work: Vec<_> = machine.chain(portable).collect();
    for arch in MACHINE_CODE.iter().chain(&PORTABLE) {
        let folder = folder(workspace, *arch);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let queue = Mutex::new(work.into_iter());
    let results = Mutex::new((Table::new(), Vec::new()));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no worker panics").next();
                    let Some((source, arch, machine_code)) = next else { return };
                    let outcome = compile_one(workspace, &nvcc, source, arch, machine_code);
                    let mut results = results.lock().expect("no worker panics");
                    match outcome {
                        Ok(found) => results.0.extend(found),
                        Err(error) => results.1.push(format!("{error:#}")),
                    }
                }
            });
        }
    });
    let (table, failures) = results.into_inner().expect("no worker panics");
    if failures.is_empty() { Ok(table) } else { bail!("{}", failures.join("\n")) }
}

fn folder(workspace: &Workspace, arch: u32) -> PathBuf {
    workspace.target.join(format!("kernels/sm_{arch}"))
}

/// Where the machine code of a source lies.
pub fn cubin(workspace: &Workspace, source: &Path, arch: u32) -> PathBuf {
    folder(workspace, arch).join(kernel_files::name(source)).with_extension("cubin")
}

fn compile_one(
    workspace: &Workspace,
    nvcc: &Nvcc,
    source: &Path,
    arch: u32,
    machine_code: bool,
) -> Result<Vec<((String, u32), Usage)>> {
    let target = cubin(workspace, source, arch).with_extension(if machine_code { "cubin" } else { "ptx" });
    let mut command = Command::new(&nvcc.path);
    command.args(OPTIONS).args(["-Werror", "all-warnings"]);
    if machine_code {
        command.arg("-cubin").arg(format!("-arch=sm_{arch}")).args(["-Xptxas", "-v"]);
    } else {
        command.arg("-ptx").arg(format!("-arch=compute_{arch}"));
    }
    let digest = digest(nvcc, source, &command)?;
    let said = match remembered(&target, &digest) {
        Some(said) => said,
        None => {
            let output = command.arg("-o").arg(&target).arg(source).output();
            let output = output.with_context(|| nvcc.path.display().to_string())?;
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if !output.status.success() {
                let complaints: Vec<&str> = said.lines().filter(|line| !is_statistics(line)).collect();
                bail!("{} for sm_{arch}: {}\n{}", source.display(), output.status, complaints.join("\n"));
            }
            let record = record_of(&target);
            fs::write(&record, format!("{digest}\n{said}")).with_context(|| record.display().to_string())?;
            said
        }
    };
    let found = usages(&said);
    if machine_code {
        same_kernels(source, &found)?;
    }
    Ok(found.into_iter().map(|(kernel, usage)| ((kernel, arch), usage)).collect())
}

/// Of all that a compilation depends on: the compiler, its options, the source and every header that it includes.
fn digest(nvcc: &Nvcc, source: &Path, command: &Command) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    (&nvcc.version, &nvcc.path, command.get_args().collect::<Vec<_>>()).hash(&mut hasher);
    for file in kernel_files::closure(source).map_err(|error| anyhow!(error))? {
        fs::read(&file).with_context(|| file.display().to_string())?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Where it is written down what a compiled file was made from, and what ptxas said then.
fn record_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".record");
    name.into()
}

/// What ptxas said when `target` was made from just this.
fn remembered(target: &Path, digest: &str) -> Option<String> {
    let record = fs::read_to_string(record_of(target)).ok()?;
    let (made_from, said) = record.split_once('\n')?;
    (made_from == digest && target.is_file()).then(|| said.to_owned())
}

/// A line of `ptxas -v`, which complains of nothing.
fn is_statistics(line: &str) -> bool {
    line.starts_with("ptxas info") || line.contains("bytes stack frame")
}

/// The build scans the sources for declarations instead of asking nvcc: both must see the same kernels.
fn same_kernels(source: &Path, compiled: &[(String, Usage)]) -> Result<()> {
    let text = fs::read_to_string(source).with_context(|| source.display().to_string())?;
    let declared: BTreeSet<String> = kernel_files::entries(&text).into_iter().map(|entry| entry.name).collect();
    let compiled: BTreeSet<String> = compiled.iter().map(|(name, _)| name.clone()).collect();
    if declared != compiled {
        let odd: Vec<_> = declared.symmetric_difference(&compiled).cloned().collect();
        bail!("{}: declared at the start of a line or compiled, but not both: {}", source.display(), odd.join(", "));
    }
    Ok(())
}

/// Reads `ptxas -v`.
pub fn usages(said: &str) -> Vec<(String, Usage)> {
    let mut found: Vec<(String, Usage)> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            found.push((name.to_owned(), Usage::default()));
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
        assert_eq!(usages(said), [("gate".to_owned(), gate), ("plain".to_owned(), plain)]);
    }
}
