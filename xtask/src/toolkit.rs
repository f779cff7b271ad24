//! The pinned tools: nvcc, the disassembler and libclang, from Python wheels, in an environment under the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::find_nvcc;
use crate::workspace::{Workspace, output};

/// One thing to install, every wheel of it pinned: nvcc alone would pull a newer nvvm, whose PTX this ptxas refuses.
pub struct Tool {
    pub name: &'static str,
    wheels: &'static [&'static str],
}

pub const NVCC: Tool = Tool {
    name: "nvcc 13.0.88",
    wheels: &[
        "nvidia-cuda-nvcc==13.0.88",
        "nvidia-nvvm==13.0.88",
        "nvidia-cuda-crt==13.0.88",
        "nvidia-cuda-runtime==13.0.96",
        "nvidia-cuda-cccl==13.0.85",
    ],
};

pub const DISASSEMBLER: Tool =
    Tool { name: "cuobjdump 13.2.86", wheels: &["nvidia-cuda-cuobjdump==13.2.86", "nvidia-cuda-nvdisasm==13.2.86"] };

pub const SANITIZER: Tool = Tool { name: "compute-sanitizer 13.0.85", wheels: &["nvidia-cuda-sanitizer-api==13.0.85"] };

pub const LIBCLANG: Tool = Tool { name: "libclang 18.1.1", wheels: &["libclang==18.1.1"] };

/// nvcc as the build script will find it; the pinned one is installed when there is none.
pub fn nvcc(workspace: &Workspace) -> Result<find_nvcc::Nvcc> {
    let look = || {
        let pinned = find_nvcc::pinned(&[workspace.target.clone(), workspace.root.join("target")]);
        find_nvcc::find(&|name| std::env::var_os(name), Path::new("/usr/local/cuda"), &pinned)
    };
    let mut search = look();
    if search.nvcc.is_none() {
        if std::env::var_os("NVCC").is_some_and(|named| !named.is_empty()) {
            bail!("no compiler at {}", search.tried.join(", "));
        }
        install(workspace, &NVCC)?;
        wake_build_scripts(workspace);
        search = look();
    }
    let path = search.nvcc.context("the wheels hold no nvcc")?;
    find_nvcc::Nvcc::open(path).map_err(anyhow::Error::msg)
}

/// The folder of the disassemblers `cuobjdump` and `nvdisasm`.
pub fn disassembler(workspace: &Workspace) -> Result<PathBuf> {
    install(workspace, &DISASSEMBLER)?;
    let found = find_nvcc::pinned(std::slice::from_ref(&workspace.target));
    found.into_iter().find(|folder| folder.join("cuobjdump").is_file()).context("the wheels hold no cuobjdump")
}

/// The folder whose `bin` and `lib` hold compute-sanitizer.
pub fn sanitizer(workspace: &Workspace) -> Result<PathBuf> {
    install(workspace, &SANITIZER)?;
    let folder = packages(workspace)?.join("nvidia/cu13");
    if folder.join("bin/compute-sanitizer").is_file() {
        Ok(folder)
    } else {
        bail!("the wheel holds no compute-sanitizer")
    }
}

/// The folder of `libclang.so`.
pub fn libclang(workspace: &Workspace) -> Result<PathBuf> {
    install(workspace, &LIBCLANG)?;
    let folder = packages(workspace)?.join("clang/native");
    if folder.is_dir() { Ok(folder) } else { bail!("the wheel holds no {}", folder.display()) }
}

/// Installs `tool` under the target folder, unless it is there.
pub fn install(workspace: &Workspace, tool: &Tool) -> Result<()> {
    if tool.wheels.iter().all(|wheel| is_installed(workspace, wheel)) {
        return Ok(());
    }
    let home = workspace.target.join("toolkit");
    let begin = Instant::now();
    eprintln!("installing {} under {}", tool.name, home.display());
    let python = home.join("bin/python3");
    if !python.is_file() {
        output(Command::new("python3").args(["-m", "venv"]).arg(&home))
            .context("a Python 3 with venv is needed to install the pinned tools (Debian: apt install python3-venv)")?;
    }
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
    output(Command::new(&python).args(quiet).args(tool.wheels))
        .with_context(|| format!("cannot install {}", tool.name))?;
    eprintln!("installed {} in {:.1} s", tool.name, begin.elapsed().as_secs_f64());
    Ok(())
}

/// Whether the environment holds this wheel in this version.
fn is_installed(workspace: &Workspace, wheel: &str) -> bool {
    let record = format!("{}.dist-info", wheel.replace('-', "_").replace("==", "-"));
    packages(workspace).is_ok_and(|folder| folder.join(record).is_dir())
}

fn packages(workspace: &Workspace) -> Result<PathBuf> {
    let lib = workspace.target.join("toolkit/lib");
    let versions = fs::read_dir(&lib).with_context(|| lib.display().to_string())?;
    let mut found = versions.flatten().map(|version| version.path().join("site-packages"));
    found.find(|folder| folder.is_dir()).with_context(|| format!("{} holds no packages", lib.display()))
}

/// Lets build scripts that found no nvcc run again: each left a file that it watches.
fn wake_build_scripts(workspace: &Workspace) {
    let children = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let platforms =
        children(&workspace.target).into_iter().filter(|path| path.file_name().is_none_or(|name| name != "toolkit"));
    let profiles = platforms.flat_map(|folder| children(&folder).into_iter().chain([folder]));
    for package in profiles.flat_map(|profile| children(&profile.join("build"))) {
        let waiting = package.join("out/nvcc-missing");
        if waiting.is_file() {
            // A failure only means that the user rebuilds by hand.
            let _ = fs::remove_file(&waiting);
        }
    }
}
