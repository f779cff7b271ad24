//! What the machine code of each kernel is made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::architecture::MACHINE_CODE;
use crate::kernel_files;
use crate::kernels::{self, Compiled};
use crate::processes;
use crate::roads::{Road, operation, parse, roads, wide};
use crate::toolkit;
use crate::workspace::{Workspace, output};

/// Whether an operation counts in a column.
type Belongs = fn(&str) -> bool;

/// The columns of the table: a heading and the instructions that count there.
const CLASSES: [(&str, Belongs); 9] = [
    ("load", |op| op.starts_with("LDG") && !op.starts_with("LDGSTS")),
    ("load.128", |op| op.starts_with("LDG.") && wide(op)),
    ("store", |op| op.starts_with("STG")),
    ("store.128", |op| op.starts_with("STG.") && wide(op)),
    ("async", |op| op.starts_with("LDGSTS") || op.starts_with("UBLKCP")),
    ("local", |op| op.starts_with("LDL") || op.starts_with("STL")),
    ("special", |op| op.starts_with("MUFU")),
    ("shuffle", |op| op.starts_with("SHFL") || op.starts_with("REDUX") || op.starts_with("VOTE")),
    ("barrier", |op| op.starts_with("BAR")),
];

/// The kernels that stream an array which dwarfs all others, by file and what their names contain: they must move it 16 bytes at a time.
/// The merge and finish kernels work on what the streams left, a record a row or segment.
const STREAMS: [(&str, &str); 8] = [
    ("logprob", "logprob_forward"),
    ("logprob", "logprob_panels"),
    ("logprob", "logprob_backward"),
    ("logprob_general", "logprob_forward"),
    ("logprob_general", "logprob_panels"),
    ("logprob_general", "logprob_backward"),
    ("objective", "objective_partial"),
    ("objective", "objective_apply"),
];

/// Instructions of one kernel, by name with all suffixes.
pub type Mix = BTreeMap<String, u32>;

/// Prints the table for one architecture, with `loops` also what turns of the streaming loops cost; with `check`, the streaming kernels without 128-bit
/// loads are an error.
pub fn sass(workspace: &Workspace, arch: u32, loops: bool, check: bool) -> Result<()> {
    if !MACHINE_CODE.contains(&arch) {
        bail!("no machine code is made for sm_{arch}, only for {MACHINE_CODE:?}");
    }
    let compiled = kernels::compile(workspace)?;
    let mut narrow = Vec::new();
    println!("{:40} {:>6} {}", "kernel", "all", CLASSES.map(|(heading, _)| format!("{heading:>9}")).join(" "));
    let mut turns = String::new();
    for (source, listing) in &listings(workspace, &compiled, arch)? {
        if loops {
            turns += &table_of_roads(listing);
        }
        for (kernel, mix) in &mixes(listing) {
            let counts = CLASSES.map(|(_, belongs)| count(mix, belongs));
            let all: u32 = mix.values().sum();
            println!("{kernel:40} {all:>6} {}", counts.map(|count| format!("{count:>9}")).join(" "));
            if streams(kernel_files::name(source), kernel) && count(mix, CLASSES[1].1) == 0 {
                narrow.push(kernel.clone());
            }
        }
    }
    if loops {
        println!(
            "\n{:40} {:>6} {}",
            "a turn of a loop of",
            "all",
            ROAD_HEADINGS.map(|heading| format!("{heading:>9}")).join(" ")
        );
        print!("{turns}");
    }
    if check && !narrow.is_empty() {
        bail!("no 128-bit loads in {}", narrow.join(", "));
    }
    Ok(())
}

fn streams(file: &str, kernel: &str) -> bool {
    STREAMS.iter().any(|(stream, part)| *stream == file && kernel.contains(part))
}

fn count(mix: &Mix, belongs: Belongs) -> u32 {
    mix.iter().filter(|(op, _)| belongs(op)).map(|(_, count)| count).sum()
}

/// The instructions of every kernel.
pub fn all(workspace: &Workspace, compiled: &Compiled, arch: u32) -> Result<BTreeMap<String, Mix>> {
    Ok(listings(workspace, compiled, arch)?.iter().flat_map(|(_, listing)| mixes(listing)).collect())
}

/// The machine code of every file of kernels. Disassembling takes half a minute: what was once read lies beside the image.
fn listings(workspace: &Workspace, compiled: &Compiled, arch: u32) -> Result<Vec<(PathBuf, String)>> {
    let tools = toolkit::disassembler(workspace)?;
    let sources = kernel_files::sources(&workspace.root.join("kernels")).map_err(|error| anyhow!(error))?;
    let listings = processes::in_parallel(&sources, |source| listing(&tools, &compiled.fatbin(source), arch))?;
    Ok(sources.into_iter().zip(listings).collect())
}

fn listing(tools: &Path, fatbin: &Path, arch: u32) -> Result<String> {
    let file = fatbin.with_extension(format!("sm_{arch}.sass"));
    let age = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    if age(&file).is_ok_and(|listed| age(fatbin).is_ok_and(|made| made < listed)) {
        return fs::read_to_string(&file).with_context(|| file.display().to_string());
    }
    let mut command = Command::new(tools.join("cuobjdump"));
    let listing = output(command.arg("-sass").arg("-arch").arg(format!("sm_{arch}")).arg(fatbin))?;
    fs::write(&file, &listing).with_context(|| file.display().to_string())?;
    Ok(listing)
}

const ROAD_HEADINGS: [&str; 5] = ["load.128", "store.128", "special", "start", "per 16 B"];

/// A line for every streaming loop.
fn table_of_roads(listing: &str) -> String {
    let line = |kernel: &str, road: &Road| {
        let cells = [road.loads, road.stores, road.special].map(|count| format!("{count:>9}")).join(" ");
        format!("{kernel:40} {:>6} {cells} {:>9x} {:>9.1}\n", road.instructions, road.start, road.per_pack())
    };
    roads(listing)
        .iter()
        .flat_map(|(kernel, roads)| roads.iter().map(|road| line(kernel, road)).collect::<Vec<_>>())
        .collect()
}

/// Reads `cuobjdump -sass`.
pub fn mixes(listing: &str) -> BTreeMap<String, Mix> {
    let mut found: BTreeMap<String, Mix> = BTreeMap::new();
    let mut kernel = String::new();
    for line in listing.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            kernel = name.trim().to_owned();
        } else if let Some(op) = parse(line).and_then(|(_, text)| operation(text)) {
            *found.entry(kernel.clone()).or_default().entry(op.to_owned()).or_default() += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_counted_by_kernel() {
        let listing = "\t\tFunction : gate\n\
            \t.headerflags\t@\"EF_CUDA_SM90\"\n\
            \t        /*0000*/                   LDC R1, c[0x0][0x28] ;     /* 0x00000a00ff017b82 */\n\
            \t                                                              /* 0x000fe20000000800 */\n\
            \t        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ; /* 0x000000040204 */\n\
            \t        /*0020*/              @P1  LDG.E.128.CONSTANT R8, desc[UR4][R2.64] ; /* 0x000000040204 */\n\
            \t        /*0030*/                   EXIT ;                     /* 0x000000000000794d */\n";
        let mixes = mixes(listing);
        let gate = &mixes["gate"];
        assert_eq!(gate.values().sum::<u32>(), 4);
        assert_eq!(count(gate, CLASSES[1].1), 2);
    }
}
