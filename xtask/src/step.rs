//! A real policy update, from a clone: `moerl step`, on the example that ships with the repository unless another file is named.

use std::path::Path;

use anyhow::Result;

use crate::toolkit;
use crate::workspace::{Workspace, run};

/// Runs it on the GPU where there is one, else on the emulated kernels. `arguments` go to `moerl step`.
pub fn step(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let gpu = has_gpu();
    if gpu {
        toolkit::nvcc(workspace)?;
    }
    let mut command = workspace.cargo();
    command.args(["run", "--release", "--package", "moerl-cli"]);
    if gpu {
        command.args(["--features", "emulate"]);
    } else {
        command.args(["--no-default-features", "--features", "emulate"]);
    }
    command.args(["--", "step"]);
    if !arguments.iter().any(|argument| argument.starts_with("--backend")) {
        command.args(["--backend", if gpu { "auto" } else { "emulator" }]);
    }
    if std::env::var_os("MOERL_DATA").is_none() {
        command.env("MOERL_DATA", workspace.root.join("tests/golden"));
    }
    run(command.args(arguments))
}

/// Whether a driver has put a device there. Whether it can be used is for the command to find out.
fn has_gpu() -> bool {
    ["/dev/nvidiactl", "/dev/dxg"].iter().any(|device| Path::new(device).exists()) || cfg!(windows)
}
