//! Finding nvcc, and asking it what it can do.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variables that may hold a toolkit's root, in the order in which they are tried.
pub const ROOTS: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];

/// Contraction is off: g++ does not contract, and the emulator must be able to agree in bits. Kernels write fmaf where they want it.
pub const OPTIONS: [&str; 5] = ["-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"];

/// The outcome of looking for nvcc.
#[derive(Debug)]
pub struct Search {
    pub nvcc: Option<PathBuf>,
    /// Every place that was looked at in vain, in words.
    pub tried: Vec<String>,
    /// The variables on which the outcome depends.
    pub variables: Vec<&'static str>,
}

/// Looks for nvcc: `NVCC` alone where it is set, else the toolkit roots, `PATH`, the usual folder and the pinned toolkit.
///
/// `variable` reads the environment; `pinned` are the folders where `cargo xtask toolkit` may have put one.
pub fn find(variable: &dyn Fn(&str) -> Option<OsString>, usual: &Path, pinned: &[PathBuf]) -> Search {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut search = Search { nvcc: None, tried: Vec::new(), variables: vec!["NVCC"] };
    if let Some(named) = set("NVCC") {
        let named = PathBuf::from(named);
        let is_path = named.components().count() > 1;
        if !is_path {
            search.variables.push("PATH");
        }
        search.nvcc = if is_path {
            executable(&named)
        } else {
            on_path(&set("PATH").unwrap_or_default(), &named.to_string_lossy())
        };
        search.tried.push(format!("NVCC={}", named.display()));
        return search;
    }
    for root in ROOTS {
        search.variables.push(root);
        let Some(folder) = set(root) else { continue };
        if search.look(&PathBuf::from(&folder).join("bin"), &format!("{root}={}", folder.display())) {
            return search;
        }
    }
    search.variables.push("PATH");
    search.nvcc = set("PATH").and_then(|path| on_path(&path, "nvcc"));
    if search.nvcc.is_some() {
        return search;
    }
    search.tried.push("PATH".to_owned());
    if search.look(&usual.join("bin"), &usual.display().to_string()) {
        return search;
    }
    for folder in pinned {
        if search.look(folder, &folder.display().to_string()) {
            return search;
        }
    }
    search
}

impl Search {
    fn look(&mut self, folder: &Path, place: &str) -> bool {
        self.nvcc = executable(&folder.join("nvcc"));
        if self.nvcc.is_none() {
            self.tried.push(place.to_owned());
        }
        self.nvcc.is_some()
    }
}

/// `path`, or `path.exe`, where there is such a file.
fn executable(path: &Path) -> Option<PathBuf> {
    let mut suffixed = path.as_os_str().to_owned();
    suffixed.push(std::env::consts::EXE_SUFFIX);
    [path.to_owned(), PathBuf::from(suffixed)].into_iter().find(|path| path.is_file())
}

fn on_path(path: &OsString, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path).find_map(|folder| executable(&folder.join(name)))
}

/// The folders that hold nvcc inside the environment that `cargo xtask toolkit` makes at `<target>/toolkit`, for each `target`.
pub fn pinned(targets: &[PathBuf]) -> Vec<PathBuf> {
    let versions = |target: &PathBuf| fs::read_dir(target.join("toolkit/lib")).into_iter().flatten().flatten();
    targets.iter().flat_map(versions).map(|version| version.path().join("site-packages/nvidia/cu13/bin")).collect()
}

/// The target folders that a build script with this manifest folder and `OUT_DIR` may belong to.
pub fn target_folders(root: &Path, out: &Path) -> Vec<PathBuf> {
    // <target>/<profile>/build/<package>/out, or one deeper for a named platform.
    let mut folders = vec![root.join("target")];
    for folder in out.ancestors().skip(4).take(2) {
        if !folders.iter().any(|known| known == folder) {
            folders.push(folder.to_owned());
        }
    }
    folders
}

/// A compiler that answers.
#[derive(Debug)]
pub struct Nvcc {
    pub path: PathBuf,
    /// As it says itself: `13.0.88`.
    pub version: String,
    /// The compute capabilities that it can make code for.
    pub known: Vec<u32>,
}

impl Nvcc {
    pub fn open(path: PathBuf) -> Result<Self, String> {
        let version = ask(&path, "--version")?;
        let version = version_in(&version).ok_or_else(|| format!("{} --version names no version", path.display()))?;
        let known = known_in(&ask(&path, "--list-gpu-code")?);
        Ok(Self { path, version, known })
    }

    /// The first number of the version; 0 where it cannot be read.
    pub fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
}

fn ask(path: &Path, option: &str) -> Result<String, String> {
    let output = Command::new(path).arg(option).output().map_err(|error| format!("{}: {error}", path.display()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{} {option}: {}: {complaint}", path.display(), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `13.0.88` from `Cuda compilation tools, release 13.0, V13.0.88`.
pub fn version_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(", V")?;
    rest.split_whitespace().next().map(str::to_owned)
}

/// The numbers of `sm_80 sm_90 …`.
pub fn known_in(text: &str) -> Vec<u32> {
    text.split_whitespace().filter_map(|word| word.strip_prefix("sm_")?.parse().ok()).collect()
}
