//! `cargo xtask …`: the chores of this repository. Each command does whatever set-up it needs by itself.

/// Parts of the library's build script, which uses the rest of them.
#[allow(dead_code)]
#[path = "../../build"]
mod build {
    pub mod architecture;
    pub mod emulation;
    pub mod kernels;
    pub mod toolkit;
}

mod bindings;
mod bundle;
mod figures;
mod kernels;
mod msrv;
mod processes;
mod roads;
mod sass;
mod step;
mod suite;
mod toolkit;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use build::{architecture, emulation, kernels as kernel_files, toolkit as find_nvcc};
use emulation::Sanitizer;
use workspace::Workspace;

/// The chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run a real policy update: `moerl step` on the shipped example, on the GPU or the emulated kernels.
    Step {
        /// Handed on to `moerl step`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every test on every backend; without a GPU the kernels run emulated.
    Test {
        /// Only the emulator's suites, with the kernels compiled under a sanitizer.
        #[arg(long)]
        sanitize: Option<Sanitizer>,
        /// Handed on to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make sure that there is an nvcc: the one of this machine, else a pinned one under the target folder.
    Toolkit {
        /// The pinned disassembler and libclang too.
        #[arg(long)]
        all: bool,
    },
    /// Generate src/abi.rs and kernels/abi_layout.h from kernels/abi.h.
    Bindings {
        /// Only compare with what is there.
        #[arg(long)]
        check: bool,
    },
    /// Compile every kernel for every architecture and print registers, shared memory and spills; spills are errors.
    Kernels,
    /// Pack test and command binaries with their data and a run.sh, for a GPU machine without Rust.
    Bundle,
    /// Check that the stated minimal Rust version covers every dependency.
    Msrv,
    /// Check that no kernel got longer, wider or hungrier than benches/figures.tsv says.
    Figures {
        /// One of the two parts; the other stays as it is written down.
        #[arg(long, value_name = "PART")]
        only: Option<figures::Part>,
        /// Write the file anew instead.
        #[arg(long)]
        write: bool,
    },
    /// Disassemble every kernel and count its instructions.
    Sass {
        /// The architecture.
        #[arg(long, default_value_t = 90)]
        arch: u32,
        /// Also count a turn of every loop that moves 128 bits at a time: the shortest way around it.
        #[arg(long)]
        loops: bool,
        /// Fail where a streaming kernel has no 128-bit loads.
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
        Chore::Step { arguments } => step::step(&workspace, &arguments),
        Chore::Test { sanitize: None, arguments } => suite::test(&workspace, &arguments),
        Chore::Test { sanitize: Some(sanitizer), arguments } => suite::sanitize(&workspace, sanitizer, &arguments),
        Chore::Toolkit { all } => {
            let nvcc = toolkit::nvcc(&workspace)?;
            println!("nvcc {} at {}", nvcc.version, nvcc.path.display());
            if all {
                println!("cuobjdump in {}", toolkit::disassembler(&workspace)?.display());
                println!("libclang in {}", toolkit::libclang(&workspace)?.display());
            }
            Ok(())
        }
        Chore::Bindings { check } => bindings::run(&workspace, check),
        Chore::Bundle => bundle::bundle(&workspace),
        Chore::Msrv => msrv::msrv(&workspace),
        Chore::Kernels => kernels::kernels(&workspace),
        Chore::Figures { only, write } => figures::figures(&workspace, only, write),
        Chore::Sass { arch, loops, check } => sass::sass(&workspace, arch, loops, check),
    }
}
