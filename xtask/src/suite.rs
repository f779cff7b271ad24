//! The whole test suite, plain or under a sanitizer.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::toolkit;
use crate::workspace::{Workspace, output, run};

/// What the emulated kernels are compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sanitizer {
    /// Out-of-bounds and undefined behaviour: AddressSanitizer and UndefinedBehaviorSanitizer.
    Address,
    /// Data races: ThreadSanitizer.
    Thread,
}

/// Every test of the workspace, on every backend there is.
pub fn test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let nvcc = toolkit::nvcc(workspace)?;
    eprintln!("nvcc {} at {}", nvcc.version, nvcc.path.display());
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--features", "moerl/cuda,moerl/emulate"]);
    run(command.args(arguments))
}

/// The emulator's suites, with the kernels compiled under a sanitizer.
pub fn sanitize(workspace: &Workspace, sanitizer: Sanitizer, arguments: &[String]) -> Result<()> {
    let (name, library, options) = match sanitizer {
        // Rust's test harness leaves its threads' memory to the system.
        Sanitizer::Address => ("address", "libasan.so", "ASAN_OPTIONS=detect_leaks=0"),
        Sanitizer::Thread => ("thread", "libtsan.so", "TSAN_OPTIONS=halt_on_error=1"),
    };
    // The sanitizer's runtime must come first in the process, and cargo itself must run without it: hence a runner.
    let library = output(Command::new("gcc").arg(format!("-print-file-name={library}")))?;
    let library = library.trim();
    if !library.starts_with('/') {
        bail!("gcc has no {library}: install its sanitizer libraries");
    }
    let runner = format!("env LD_PRELOAD={library} {options}");
    let platform = host_platform(workspace)?.to_uppercase().replace('-', "_");
    let mut command = workspace.cargo();
    command.env("MOERL_SANITIZE", name).env(format!("CARGO_TARGET_{platform}_RUNNER"), runner);
    // Apart from the plain build by its features: neither build invalidates the other.
    command.args(["test", "--package", "moerl", "--no-default-features", "--features", "emulate", "--lib", "--tests"]);
    run(command.args(arguments).args(["--", "emulat"]))
}

fn host_platform(workspace: &Workspace) -> Result<String> {
    let said = output(workspace.command("rustc").arg("-vV"))?;
    said.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host platform")
}
