//! The whole test suite, plain or under a sanitizer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::Value;

use crate::emulation::{self, Sanitizer};
use crate::processes;
use crate::toolkit;
use crate::workspace::{Workspace, output, run};

/// All that can be tested, besides the default features. The same as in .ci/run, so that the kernels are compiled once for all checks.
pub const EVERYTHING: &str = "moerl/serde,moerl-cli/emulate";

/// Every test of the workspace, on every backend there is.
pub fn test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let nvcc = toolkit::nvcc(workspace)?;
    eprintln!("nvcc {} at {}", nvcc.version, nvcc.path.display());
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--features", EVERYTHING]);
    run(command.args(arguments))
}

impl ValueEnum for Sanitizer {
    fn value_variants<'a>() -> &'a [Self] {
        &[Sanitizer::Address, Sanitizer::Thread]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Sanitizer::Address => {
                "Out-of-bounds and undefined behaviour: AddressSanitizer and UndefinedBehaviorSanitizer"
            }
            Sanitizer::Thread => "Data races: ThreadSanitizer",
        }))
    }
}

/// The library's suites as `test` builds them, on a stand-in for the emulator that is compiled under a sanitizer.
pub fn sanitize(workspace: &Workspace, sanitizer: Sanitizer, arguments: &[String]) -> Result<()> {
    let binaries = binaries(workspace, arguments)?;
    let (platform, folder) = (host_platform(workspace)?, workspace.target.join("emulation"));
    let stand_in = emulation::stand_in(&workspace.root, &folder, &platform, sanitizer).map_err(anyhow::Error::msg)?;
    let mut libraries = runtime(sanitizer)?.into_os_string();
    libraries.push(":");
    libraries.push(stand_in);
    let suppressions = workspace.root.join("kernels/emulation/tsan.supp");
    let start = |binary: &Path| {
        // The libraries must come first in the process of the tests, and in no other.
        let mut command = if has_fixed_addresses(sanitizer) {
            let mut command = workspace.command("setarch");
            command.args(["-R", "env"]);
            command
        } else {
            workspace.command("env")
        };
        let mut preload = OsString::from("LD_PRELOAD=");
        preload.push(&libraries);
        command.arg(preload).arg(binary).env("CARGO_MANIFEST_DIR", &workspace.root);
        command.env("MOERL_EMULATION_SANITIZE", sanitizer.name());
        // A driver's own memory is nothing for a sanitizer to look at.
        command.env("CUDA_VISIBLE_DEVICES", "").env_remove("MOERL_REQUIRE_GPU");
        // Rust's test harness leaves its threads' memory to the system.
        command.env("ASAN_OPTIONS", "detect_leaks=0").env("UBSAN_OPTIONS", "print_stacktrace=1");
        // By default a process waits a second at its end, for whoever races with that.
        let options = format!("halt_on_error=1:atexit_sleep_ms=0:suppressions={}", suppressions.display());
        command.env("TSAN_OPTIONS", options);
        command
    };
    processes::run_all(processes::list(workspace, &binaries)?, start)
}

/// Builds what `test` runs, or with arguments a part of it; cargo's messages. Whoever needs something built for the default targets takes it from
/// here: with other packages, or without the tests, the dependencies have other features, and all is compiled once more.
pub fn build(workspace: &Workspace, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--features", EVERYTHING, "--no-run"]);
    command.arg("--message-format=json-render-diagnostics").args(arguments);
    for narrowing in ["CUDA_COMPUTE_CAP", "CUDA_COMPUTE_CAPS", "DOCS_RS"] {
        command.env_remove(narrowing);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo test --no-run: {}", output.status);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().map(|line| serde_json::from_str(line).context("cargo's messages")).collect()
}

/// The test binaries of the library.
fn binaries(workspace: &Workspace, arguments: &[String]) -> Result<Vec<PathBuf>> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let messages = build(workspace, &arguments)?;
    let manifest = workspace.root.join("Cargo.toml");
    let ours = messages.iter().filter(|message| {
        message["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest)
            && message["profile"]["test"] == true
            && (message["target"]["kind"][0] == "lib" || message["target"]["kind"][0] == "test")
    });
    Ok(ours.filter_map(|message| Some(message["executable"].as_str()?.into())).collect())
}

/// The sanitizer's own library, which must come first in a process.
fn runtime(sanitizer: Sanitizer) -> Result<PathBuf> {
    let library = match sanitizer {
        Sanitizer::Address => "libasan.so",
        Sanitizer::Thread => "libtsan.so",
    };
    let path = PathBuf::from(output(Command::new("gcc").arg(format!("-print-file-name={library}")))?.trim());
    if path.is_absolute() { Ok(path) } else { bail!("gcc has no {library}: install its sanitizer libraries") }
}

/// ThreadSanitizer dies of address randomisation wider than it was built for; where it can be switched off, it is.
fn has_fixed_addresses(sanitizer: Sanitizer) -> bool {
    let can = || Command::new("setarch").args(["-R", "true"]).output().is_ok_and(|output| output.status.success());
    sanitizer == Sanitizer::Thread && can()
}

fn host_platform(workspace: &Workspace) -> Result<String> {
    let said = output(workspace.command("rustc").arg("-vV"))?;
    said.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host platform")
}
