//! `cargo xtask …`: the chores of this repository. Each command does whatever set-up it needs by itself.

mod bindings;
#[path = "../../build/toolkit.rs"]
mod find_nvcc;
mod toolkit;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// The chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Make sure that there is an nvcc: the one of this machine, else a pinned one under the target folder.
    Toolkit {
        /// The pinned disassembler too.
        #[arg(long)]
        sass: bool,
    },
    /// Generate src/abi.rs and kernels/abi_layout.h from kernels/abi.h.
    Bindings {
        /// Only compare with what is there.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    let workspace = Workspace::find()?;
    match chore {
        Chore::Toolkit { sass } => {
            let nvcc = toolkit::nvcc(&workspace)?;
            println!("nvcc {} at {}", nvcc.version, nvcc.path.display());
            if sass {
                println!("cuobjdump in {}", toolkit::disassembler(&workspace)?.display());
            }
            Ok(())
        }
        Chore::Bindings { check } => bindings::run(&workspace, check),
    }
}
