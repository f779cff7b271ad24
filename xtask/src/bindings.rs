//! `src/abi.rs` from `kernels/abi.h`: finds libclang and runs the generator, which is a binary of its own.

use std::process::Command;

use anyhow::Result;

use crate::toolkit;
use crate::workspace::{Workspace, output, run as execute};

pub fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let libclang = toolkit::libclang(workspace)?;
    // The wheel is libclang alone; stddef.h and its kin come from the host's gcc.
    let include = output(Command::new("gcc").arg("-print-file-name=include"))?;
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--package", "xtask", "--features", "bindings", "--bin", "bindings", "--"]);
    command.arg(&workspace.root);
    if check {
        command.arg("--check");
    }
    execute(
        command.env("LIBCLANG_PATH", libclang).env("BINDGEN_EXTRA_CLANG_ARGS", format!("-isystem {}", include.trim())),
    )
}
