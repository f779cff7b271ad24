//! The device images: compiling one fatbin per kernel file, only where something changed, several at a time.
//!
//! They lie in a folder named after what they hold code for, so that a build for one device and one for all keep each other's files. Beside
//! `NAME.fatbin` stand `NAME.key`, the digest of what it was made from, and `NAME.log`, what the compiler said of every kernel's registers.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::architecture::{Architecture, Targets};
use crate::kernels;
use crate::toolkit::{self, Nvcc};

/// Variables that nvcc itself reads, besides those that we hand on.
const NVCC_READS: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// Removed by `cargo xtask toolkit`, which cannot otherwise tell a finished build that nvcc has arrived.
const WAITING: &str = "nvcc-missing";

/// Names the folder of the images.
const FOLDER: &str = "MOERL_IMAGES";

/// Compiles `sources` and writes `images.rs`, which embeds them.
pub fn build(sources: &[PathBuf], root: &Path, out: &Path) -> Result<(), String> {
    for name in ["MOERL_REQUIRE_NVCC", "NVCC_CCBIN", "CUDA_COMPUTE_CAP", "CUDA_COMPUTE_CAPS"].iter().chain(&NVCC_READS)
    {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("DOCS_RS").is_some() {
        return write_table(out, &[], "", "", "the documentation is built without them");
    }
    let pinned = toolkit::pinned(&toolkit::target_folders(root, out));
    let search = toolkit::find(&|name| env::var_os(name), Path::new("/usr/local/cuda"), &pinned);
    for name in &search.variables {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let Some(path) = search.nvcc else {
        return without_nvcc(out, &format!("nvcc was not found ({})", search.tried.join(", ")));
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let nvcc = Nvcc::open(path)?;
    let targets = targets(&nvcc)?;
    let folder = out.join(targets.to_string().replace(' ', "+"));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let images = compile_all(&nvcc, &targets, sources, &folder)?;
    // For the table, and for `cargo xtask kernels`.
    println!("cargo::rustc-env={FOLDER}={}", folder.display());
    write_table(out, &images, &nvcc.version, &targets.to_string(), "")
}

/// No compiler: an error where one is demanded, else a table without images and one warning.
fn without_nvcc(out: &Path, reason: &str) -> Result<(), String> {
    let fix = "install the CUDA toolkit 12 or newer, set NVCC or CUDA_HOME, or run `cargo xtask toolkit` in moerl's repository";
    if env::var("MOERL_REQUIRE_NVCC").is_ok_and(|value| value == "1") {
        return Err(format!("{reason}, and MOERL_REQUIRE_NVCC=1 demands it: {fix}"));
    }
    println!("cargo::warning=built without GPU kernels: {reason}; to have them, {fix}");
    let waiting = out.join(WAITING);
    write_if_changed(&waiting, reason)?;
    // Older than this run, else cargo would take it for a change and run again.
    let aged =
        fs::File::options().write(true).open(&waiting).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH));
    aged.map_err(|error| format!("{}: {error}", waiting.display()))?;
    println!("cargo::rerun-if-changed={}", waiting.display());
    write_table(out, &[], "", "", reason)
}

fn targets(nvcc: &Nvcc) -> Result<Targets, String> {
    let asked = |name| Some((name, env::var(name).ok().filter(|text| !text.trim().is_empty())?));
    if let Some((name, text)) = ["CUDA_COMPUTE_CAPS", "CUDA_COMPUTE_CAP"].into_iter().find_map(asked) {
        let named = |error| format!("{name}: {error}");
        return Targets::exactly(Architecture::parse_list(&text).map_err(named)?, &nvcc.known).map_err(named);
    }
    Targets::default_for(&nvcc.known).map_err(|error| format!("{}: {error}", nvcc.path.display()))
}

/// The options that every kernel is compiled with, for these targets.
fn options(nvcc: &Nvcc, targets: &Targets) -> Vec<String> {
    let mut options: Vec<String> = toolkit::OPTIONS.iter().map(|&option| option.to_owned()).collect();
    options.extend(targets.options());
    options.push("-Xptxas=-v".to_owned());
    if nvcc.major() >= 13 {
        // Drivers for CUDA 13, which code of this compiler needs anyway, can unpack both. What is shipped has a seventh of its size, and packing takes a
        // twelfth of the compiler's time; what is tested has a fifth, for next to nothing.
        let is_shipped = env::var("PROFILE").is_ok_and(|profile| profile == "release");
        let mode = if is_shipped { "size" } else { "balance" };
        options.extend(["--fatbin-options=-compress-all".to_owned(), format!("--compress-mode={mode}")]);
    }
    if let Some(compiler) = env::var_os("NVCC_CCBIN").filter(|value| !value.is_empty()) {
        options.extend(["-ccbin".to_owned(), compiler.to_string_lossy().into_owned()]);
    }
    options
}

/// One embedded file.
struct Image {
    name: String,
    file: PathBuf,
    kernels: Vec<String>,
}

fn compile_all(nvcc: &Nvcc, targets: &Targets, sources: &[PathBuf], folder: &Path) -> Result<Vec<Image>, String> {
    let options = options(nvcc, targets);
    let mut images = Vec::new();
    let mut stale = Vec::new();
    for source in sources {
        let file = folder.join(kernels::name(source)).with_extension("fatbin");
        let key = key(nvcc, &options, source)?;
        if !file.is_file() || fs::read_to_string(file.with_extension("key")).ok().as_ref() != Some(&key) {
            stale.push((source, file.clone(), key));
        }
        let text = fs::read_to_string(source).map_err(|error| format!("{}: {error}", source.display()))?;
        let kernels = kernels::entries(&text).into_iter().map(|entry| entry.name).collect();
        images.push(Image { name: kernels::name(source).to_owned(), file, kernels });
    }
    // The longest first, so that no core waits for the last one; the size of what is read is a fair guess.
    let read = |source: &Path| -> u64 {
        let files = kernels::closure(source).unwrap_or_default();
        files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum()
    };
    stale.sort_by_cached_key(|(source, ..)| std::cmp::Reverse(read(source)));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).max(1);
    let threads_each = (jobs / stale.len().max(1)).max(1);
    in_parallel(jobs, stale, |(source, file, key)| {
        compile(nvcc, &options, threads_each, source, &file)?;
        fs::write(file.with_extension("key"), key).map_err(|error| format!("{}: {error}", file.display()))
    })?;
    Ok(images)
}

/// Changes whenever the compiler, its options or any file that it reads from the folder of kernels changes.
fn key(nvcc: &Nvcc, options: &[String], source: &Path) -> Result<String, String> {
    let mut hasher = DefaultHasher::new();
    (&nvcc.path, &nvcc.version, options).hash(&mut hasher);
    for name in NVCC_READS {
        env::var_os(name).hash(&mut hasher);
    }
    for file in kernels::closure(source)? {
        fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn compile(nvcc: &Nvcc, options: &[String], threads: usize, source: &Path, file: &Path) -> Result<(), String> {
    let output = Command::new(&nvcc.path)
        .args(["-fatbin", "-t"])
        .arg(threads.to_string())
        .args(options)
        .arg("-o")
        .arg(file)
        .arg(source)
        // nvcc keeps its intermediate files in the temporary folder: ours lies inside OUT_DIR.
        .env("TMPDIR", file.parent().expect("an image has a folder"))
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.path.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let log = file.with_extension("log");
        return fs::write(&log, said.as_bytes()).map_err(|error| format!("{}: {error}", log.display()));
    }
    Err(format!("nvcc could not compile {}\n{}", source.display(), said.trim()))
}

/// Runs `work` on every item, at most `jobs` at a time; the first error, in the items' order of finishing, is returned.
fn in_parallel<T: Send>(
    jobs: usize,
    items: Vec<T>,
    work: impl Fn(T) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let workers = jobs.min(items.len());
    let queue = Mutex::new(items.into_iter());
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no worker panics").next();
                    let Some(item) = next else { return };
                    if let Err(error) = work(item) {
                        failure.lock().expect("no worker panics").get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    failure.into_inner().expect("no worker panics").map_or(Ok(()), Err)
}

fn write_table(out: &Path, images: &[Image], version: &str, targets: &str, absence: &str) -> Result<(), String> {
    let mut text = String::from("// Written by build.rs.\n");
    writeln!(text, "pub const TOOLKIT: &str = {version:?};").expect("a string takes everything");
    writeln!(text, "pub const TARGETS: &str = {targets:?};").expect("a string takes everything");
    writeln!(text, "pub const ABSENCE: &str = {absence:?};").expect("a string takes everything");
    text.push_str("pub static IMAGES: &[Image] = &[\n");
    for Image { name, file, kernels } in images {
        let file = file.file_name().expect("an image has a name").to_string_lossy();
        let bytes = format!("&Aligned(*include_bytes!(concat!(env!(\"{FOLDER}\"), \"/{file}\"))).0");
        writeln!(text, "    Image {{ name: {name:?}, kernels: &{kernels:?}, bytes: {bytes} }},")
            .expect("a string takes everything");
    }
    text.push_str("];\n");
    write_if_changed(&out.join("images.rs"), &text)
}

fn write_if_changed(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
