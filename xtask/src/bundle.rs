//! A folder for a GPU machine that has no Rust: test and command binaries, their data, compute-sanitizer, and one script.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::toolkit;
use crate::workspace::{Workspace, output, run};

/// The archive must stay smaller than this.
const LIMIT: u64 = 60 << 20;

/// Suites of the library about the source tree and the emulator, which the other machine does not have.
const LEFT_OUT: [&str; 4] = ["bindings", "build_script", "emulation", "kernels"];
/// The one suite of the command that is carried.
const GOLDEN: &str = "golden";

/// Packs the folder `moerl` of its first argument into its second: the lzma module is there where xz may not be.
const PACK: &str = "\
import lzma, sys, tarfile
filters = [{'id': lzma.FILTER_LZMA2, 'preset': 6, 'dict_size': 256 << 20}]
with lzma.open(sys.argv[2], 'wb', filters=filters) as out, tarfile.open(fileobj=out, mode='w') as tar:
    tar.add(sys.argv[1] + '/moerl', 'moerl')
";

const SCRIPT: &str = include_str!("run.sh");

/// Builds everything and packs it into `target/bundle/moerl.tar.xz`.
pub fn bundle(workspace: &Workspace) -> Result<()> {
    toolkit::nvcc(workspace)?;
    let sanitizer = toolkit::sanitizer(workspace)?;
    let home = workspace.target.join("bundle");
    let folder = home.join("moerl");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let tests = folder.join("tests");
    fs::create_dir_all(&tests).with_context(|| tests.display().to_string())?;

    for (name, binary) in binaries(workspace)? {
        strip(&binary, &if name == "moerl-command" { folder.join("moerl") } else { tests.join(name) })?;
    }
    copy_files(&workspace.root.join("tests/golden"), &tests.join("data"))?;
    copy_files(&workspace.root.join("benches/peers"), &folder.join("peers"))?;
    copy_sanitizer(&sanitizer, &folder.join("compute-sanitizer"))?;
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).with_context(|| script.display().to_string())?;
    run(Command::new("chmod").arg("+x").arg(&script))?;

    // Every binary carries the same images: a window as large as all of them stores them once.
    let archive = home.join("moerl.tar.xz");
    run(Command::new("python3").args(["-c", PACK]).arg(&home).arg(&archive))?;
    let size = fs::metadata(&archive).with_context(|| archive.display().to_string())?.len();
    println!(
        "{}: {:.1} MB; on the GPU machine: tar -xJf moerl.tar.xz (or python3 -m tarfile -e moerl.tar.xz), then moerl/run.sh",
        archive.display(),
        size as f64 / 1e6
    );
    if size > LIMIT {
        bail!("that is more than {} MB", LIMIT >> 20);
    }
    Ok(())
}

/// Builds the tests of the library and the command, in release form; names and paths. All at once: what is built apart has other features, and
/// compiles the kernels again.
fn binaries(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let mut command = workspace.cargo();
    command.args(["test", "--no-run", "--package", "moerl", "--package", "moerl-cli", "--lib", "--bins", "--tests"]);
    command.args(["--features", "moerl-cli/linear", "--release", "--message-format=json-render-diagnostics"]);
    // Every binary carries the images: machine code for two generations, and PTX from which the driver makes the rest.
    if std::env::var_os("CUDA_COMPUTE_CAPS").is_none() {
        command.env("CUDA_COMPUTE_CAPS", "80,90");
    }
    let mut found = Vec::new();
    for line in output_shown(&mut command)?.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        let Some(path) = message["executable"].as_str() else { continue };
        let name = message["target"]["name"].as_str().context("a target has a name")?;
        let is_test = message["profile"]["test"] == true;
        let is_library = message["manifest_path"] == workspace.root.join("Cargo.toml").to_string_lossy().as_ref();
        let name = match (name, is_test, is_library) {
            ("moerl", false, false) => "moerl-command",
            ("moerl", true, true) => "library",
            (GOLDEN, true, false) => GOLDEN,
            (name, true, true) if !LEFT_OUT.contains(&name) => name,
            _ => continue,
        };
        found.push((name.to_owned(), PathBuf::from(path)));
    }
    Ok(found)
}

/// As [`output`], with the command's complaints (cargo's progress) shown.
fn output_shown(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    output(Command::new("strip").arg("-o").arg(to).arg(from)).map(|_| ())
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).with_context(|| entry.path().display().to_string())?;
    }
    Ok(())
}

/// compute-sanitizer finds its libraries beside itself.
fn copy_sanitizer(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    let wanted = |name: &str| {
        ["compute-sanitizer", "libsanitizer-collection", "libInterceptor", "libTreeLauncher"]
            .iter()
            .any(|part| name.starts_with(part))
    };
    for part in ["lib", "bin"] {
        for entry in fs::read_dir(from.join(part)).into_iter().flatten().flatten() {
            if wanted(&entry.file_name().to_string_lossy()) {
                fs::copy(entry.path(), to.join(entry.file_name()))
                    .with_context(|| entry.path().display().to_string())?;
            }
        }
    }
    Ok(())
}
