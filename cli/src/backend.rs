//! Who executes the operations, by name.

use moerl::{Backend, Reference};

use crate::arguments::BackendName;
use crate::failure::{Failure, Result};

/// An open backend.
#[derive(Debug)]
pub enum Chosen {
    /// Plain f64 loops on the CPU; true where they stand in for a device.
    Reference(Reference, bool),
    /// The kernels on the CPU.
    #[cfg(feature = "emulate")]
    Emulator(moerl::Emulator),
    /// The kernels on a device.
    #[cfg(feature = "cuda")]
    Cuda(moerl::Cuda),
}

/// Work that is written once and runs on any backend.
pub trait Task {
    /// What comes of it.
    type Output;
    /// Does it.
    ///
    /// # Errors
    /// Whatever the work meets.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output>;
}

impl Chosen {
    /// Opens a backend.
    ///
    /// # Errors
    /// [`Failure::Run`] that says what is missing and how to get it.
    pub fn open(name: BackendName) -> Result<Chosen> {
        match name {
            BackendName::Auto => Ok(cuda().unwrap_or(Chosen::Reference(Reference, true))),
            BackendName::Cuda => cuda().map_err(|reason| Failure::run(format!("no CUDA backend: {reason}"))),
            BackendName::Reference => Ok(Chosen::Reference(Reference, false)),
            BackendName::Emulator => emulator(),
        }
    }

    /// `reference`, `emulator` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self {
            Chosen::Reference(backend, _) => backend.name(),
            #[cfg(feature = "emulate")]
            Chosen::Emulator(backend) => backend.name(),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(backend) => backend.name(),
        }
    }

    /// What a person should know about it.
    pub fn describe(&self) -> String {
        match self {
            Chosen::Reference(_, stands_in) => {
                let reason = if *stands_in { " (no GPU to use: `moerl devices` says why)" } else { "" };
                format!("reference: plain f64 loops on this CPU, no kernels{reason}")
            }
            #[cfg(feature = "emulate")]
            Chosen::Emulator(_) => "emulator: the CUDA kernels, compiled as C++ and run on this CPU".into(),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(gpu) => match gpu.info() {
                Ok(info) => format!("cuda: device {}, {}", info.ordinal, info.name),
                Err(_) => "cuda".into(),
            },
        }
    }

    /// True for the reference: comparing it with itself would show nothing.
    pub fn is_reference(&self) -> bool {
        matches!(self, Chosen::Reference(..))
    }

    /// Does `task` on it.
    ///
    /// # Errors
    /// The task's.
    pub fn run<T: Task>(&self, task: T) -> Result<T::Output> {
        match self {
            Chosen::Reference(backend, _) => task.run(backend),
            #[cfg(feature = "emulate")]
            Chosen::Emulator(backend) => task.run(backend),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(backend) => task.run(backend),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> std::result::Result<Chosen, moerl::Error> {
    let gpu = moerl::Cuda::open(0)?;
    // Every kernel is loaded now, so that no stage is charged for it.
    gpu.prepare()?;
    Ok(Chosen::Cuda(gpu))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> std::result::Result<Chosen, moerl::Error> {
    Err(moerl::Error::Unavailable {
        what: "this build has no CUDA backend".into(),
        fix: "rebuild with `--features cuda`".into(),
    })
}

#[cfg(feature = "emulate")]
fn emulator() -> Result<Chosen> {
    Ok(Chosen::Emulator(moerl::Emulator::new()))
}

#[cfg(not(feature = "emulate"))]
fn emulator() -> Result<Chosen> {
    Err(Failure::run("this build has no emulator; rebuild with `--features emulate` (needs a C++17 compiler)"))
}
