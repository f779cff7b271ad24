//! `moerl devices`: what there is to run on, and what to do about what is missing. It never fails.

use crate::arguments::BackendName;
use crate::backend::Chosen;
use crate::table::Table;

/// The text that the command prints.
pub fn run() -> String {
    let mut table = Table::new(&["", ""]);
    cuda(&mut table);
    if cfg!(feature = "emulate") {
        table.row(["emulator", "built in: `--backend emulator` runs the kernels on this CPU"]);
    } else {
        table.row(["emulator", "not in this build"]);
        table.row(["", "fix: rebuild with `--features emulate` (needs a C++17 compiler)"]);
    }
    table.row(["reference", "built in: plain f64 loops, the oracle"]);
    if let Ok(chosen) = Chosen::open(BackendName::Auto) {
        table.row(["auto", chosen.name()]);
    }
    table.render()
}

#[cfg(feature = "cuda")]
fn cuda(table: &mut Table) {
    use moerl::device::cuda;

    let mut missing = |name: &str, error: &moerl::Error| match error {
        moerl::Error::Unavailable { what, fix } => {
            table.row([name, what.as_str()]);
            table.row([String::new(), format!("fix: {fix}")]);
        }
        other => {
            table.row([name.to_owned(), other.to_string()]);
        }
    };
    match cuda::driver_version() {
        Err(error) => missing("driver", &error),
        Ok((major, minor)) => {
            table.row(["driver".to_owned(), format!("supports CUDA {major}.{minor}")]);
            match cuda::devices() {
                Err(error) => {
                    table.row(["devices".to_owned(), error.to_string()]);
                }
                Ok(devices) if devices.is_empty() => {
                    table.row(["devices", "none"]);
                    table.row(["", "fix: attach a GPU, or clear CUDA_VISIBLE_DEVICES"]);
                }
                Ok(devices) => devices.iter().for_each(|device| {
                    table.row([format!("device {}", device.ordinal), describe(device)]);
                }),
            }
        }
    }
    if cuda::images().is_empty() {
        table.row(["kernels".to_owned(), format!("none in this build: {}", cuda::absence())]);
        table.row([
            "",
            "fix: rebuild where nvcc is found (NVCC, CUDA_HOME or PATH; `cargo xtask toolkit` installs one)",
        ]);
    } else {
        let bytes: usize = cuda::images().iter().map(|image| image.bytes.len()).sum();
        let facts = format!("nvcc {}, for {}, {} KB", cuda::toolkit(), cuda::targets(), bytes / 1024);
        table.row(["kernels".to_owned(), facts]);
        for image in cuda::images() {
            let kernels: Vec<&str> = image.kernels.iter().map(|name| name.trim_start_matches("moerl_")).collect();
            table.row([String::new(), format!("{}: {}", image.name, summary(&kernels))]);
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(table: &mut Table) {
    table.row(["cuda", "not in this build"]);
    table.row(["", "fix: rebuild with `--features cuda` (the default)"]);
}

#[cfg(feature = "cuda")]
fn describe(device: &moerl::device::cuda::DeviceInfo) -> String {
    let (major, minor) = device.capability;
    let old = if major < 8 { "; too old: the kernels need compute capability 8.0 or newer" } else { "" };
    let memory = device.memory as f64 / f64::from(1 << 30);
    let processors = device.multiprocessors;
    format!("{}, sm_{major}{minor}, {memory:.0} GiB, {processors} multiprocessors{old}", device.name)
}

/// A few names in full, many as a number.
#[cfg(feature = "cuda")]
fn summary(kernels: &[&str]) -> String {
    if kernels.len() <= 4 { kernels.join(" ") } else { format!("{} kernels", kernels.len()) }
}
