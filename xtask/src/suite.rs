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

/// The emulator's suites, with the kernels compiled under a sanitizer.
pub fn sanitize(workspace: &Workspace, sanitizer: Sanitizer, arguments: &[String]) -> Result<()> {
    let suppressions = workspace.root.join("kernels/emulation/tsan.supp");
    let (name, library, options) = match sanitizer {
        // Rust's test harness leaves its threads' memory to the system.
        Sanitizer::Address => ("address", "libasan.so", ("ASAN_OPTIONS", "detect_leaks=0".to_owned())),
        Sanitizer::Thread => {
            let options = format!("halt_on_error=1:suppressions={}", suppressions.display());
            ("thread", "libtsan.so", ("TSAN_OPTIONS", options))
        }
    };
    let path = output(Command::new("gcc").arg(format!("-print-file-name={library}")))?;
    let path = path.trim();
    if !path.starts_with('/') {
        bail!("gcc has no {library}: install its sanitizer libraries");
    }
    // The sanitizer's runtime must come first in the process, and cargo itself must run without it: hence a runner.
    let platform = host_platform(workspace)?.to_uppercase().replace('-', "_");
    let mut command = workspace.cargo();
    command
        .env(format!("CARGO_TARGET_{platform}_RUNNER"), format!("{}env LD_PRELOAD={path}", fixed_addresses(sanitizer)));
    command.env("MOERL_EMULATION_SANITIZE", name).env(options.0, options.1).env("UBSAN_OPTIONS", "print_stacktrace=1");
    // Apart from the plain build by its features: neither build invalidates the other.
    command.args(["test", "--package", "moerl", "--no-default-features", "--features", "emulate", "--lib", "--tests"]);
    // The reference is plain Rust.
    run(command.args(arguments).args(["--", "--skip", "reference::"]))
}

/// ThreadSanitizer dies of address randomisation wider than it was built for; where it can be switched off, it is.
fn fixed_addresses(sanitizer: Sanitizer) -> &'static str {
    let can = || Command::new("setarch").args(["-R", "true"]).output().is_ok_and(|output| output.status.success());
    if sanitizer == Sanitizer::Thread && can() { "setarch -R " } else { "" }
}

fn host_platform(workspace: &Workspace) -> Result<String> {
    let said = output(workspace.command("rustc").arg("-vV"))?;
    said.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host platform")
}
