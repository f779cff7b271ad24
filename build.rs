//! Builds the kernels: one fatbin per `kernels/*.cu` through nvcc (feature `cuda`), and the same files as C++ (feature `emulate`).
//!
//! Nothing here needs a GPU, nothing is written outside `OUT_DIR`, and a machine without nvcc builds the crate all the same:
//! the device images are then absent, one warning says so, and opening a device at run time returns an error with the fix.
//!
//! | variable | effect |
//! |---|---|
//! | `NVCC` | the compiler itself, a path or a name on `PATH` |
//! | `CUDA_HOME`, `CUDA_PATH`, `CUDA_ROOT` | toolkit roots, tried in this order |
//! | `NVCC_CCBIN` | the host compiler that nvcc calls |
//! | `CUDA_COMPUTE_CAP`, `CUDA_COMPUTE_CAPS` | build for these devices only (`90`, `9.0`, `sm_90`, `90a`; a list for the second, which wins) |
//! | `MOERL_REQUIRE_NVCC=1` | a missing nvcc is an error |
//! | `DOCS_RS` | nothing is compiled |

#[cfg(feature = "cuda")]
#[path = "build/architecture.rs"]
mod architecture;
#[cfg(feature = "emulate")]
#[allow(dead_code)] // xtask uses the rest
#[path = "build/emulation.rs"]
mod emulation;
#[cfg(feature = "cuda")]
#[path = "build/images.rs"]
mod images;
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "cuda")]
#[path = "build/toolkit.rs"]
mod toolkit;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match build(&root, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), allow(unused_variables))]
fn build(root: &Path, out: &Path) -> Result<(), String> {
    #[cfg(feature = "cuda")]
    images::build(&kernels::sources(&root.join("kernels"))?, root, out)?;
    #[cfg(feature = "emulate")]
    if env::var_os("DOCS_RS").is_none() {
        emulation::compile(root, out)?;
    }
    Ok(())
}
