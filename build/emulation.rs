//! Compiles the kernels as C++ for the emulator, and the emulator's runtime (feature `emulate`).
//!
//! Three archives: `moerl_emulated_kernels` (every `kernels/*.cu`, and a generated table of their entry points),
//! `moerl_emulation_runtime` (`kernels/emulation/*.cpp`) and, in a checkout that has the folder, `moerl_emulation_tests` (the kernels of
//! `tests/emulation`, most of them broken on purpose, with a table of their own). A linker takes from an archive only what somebody
//! refers to, and nobody but the emulator's tests refers to that last table; published packages lack the folder.
//!
//! `MOERL_EMULATION_SANITIZE=address|thread` compiles the kernels with `-fsanitize=address,undefined` or `-fsanitize=thread`; see
//! kernels/emulation/README.md for how to run the result.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::kernels;

/// Chooses a sanitizer.
const SANITIZE: &str = "MOERL_EMULATION_SANITIZE";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sanitizer {
    None,
    Address,
    Thread,
}

impl Sanitizer {
    fn from_environment() -> Result<Sanitizer, String> {
        println!("cargo::rerun-if-env-changed={SANITIZE}");
        match env::var(SANITIZE).as_deref() {
            Err(_) | Ok("") => Ok(Sanitizer::None),
            Ok("address") => Ok(Sanitizer::Address),
            Ok("thread") => Ok(Sanitizer::Thread),
            Ok(other) => Err(format!("{SANITIZE} is {other:?}; it can be `address` or `thread`")),
        }
    }

    /// What the kernels are compiled with, beyond the usual.
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            Sanitizer::None => &[],
            // A report of UBSan ends the process, as ASan's do: a test run must not pass over it.
            Sanitizer::Address => {
                &["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
            }
            Sanitizer::Thread => &["-fsanitize=thread", "-fno-omit-frame-pointer"],
        }
    }

    /// The macro by which the runtime, itself compiled without, knows whom it has to tell of its fibers.
    fn runtime_macro(self) -> Option<&'static str> {
        match self {
            Sanitizer::None => None,
            Sanitizer::Address => Some("MOERL_EMULATION_ASAN"),
            Sanitizer::Thread => Some("MOERL_EMULATION_TSAN"),
        }
    }

    fn libraries(self) -> &'static [&'static str] {
        match self {
            Sanitizer::None => &[],
            Sanitizer::Address => &["asan", "ubsan"],
            Sanitizer::Thread => &["tsan"],
        }
    }
}

/// Compiles `sources` (the kernels) and what they need to run on the CPU, and tells cargo to link it.
pub fn compile(sources: &[PathBuf], out: &Path) -> Result<(), String> {
    let sanitizer = Sanitizer::from_environment()?;
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let kernels = root.join("kernels");
    let emulation = kernels.join("emulation");
    let folder = out.join("emulation");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;

    archive_kernels("moerl_emulated_kernels", "moerl_emulation_table", sources, &kernels, &folder, sanitizer)?;

    let tests = root.join("tests").join("emulation");
    println!("cargo::rerun-if-changed={}", tests.display());
    if tests.is_dir() {
        let sources = kernels::sources(&tests)?;
        archive_kernels("moerl_emulation_tests", "moerl_emulation_test_table", &sources, &kernels, &folder, sanitizer)?;
    }

    let headers = files(&emulation, "h")?;
    let sources = files(&emulation, "cpp")?;
    let runtime: Vec<Unit> = sources.into_iter().map(|source| Unit { source, inputs: headers.clone() }).collect();
    let mut compiler = compiler(&kernels);
    if let Some(name) = sanitizer.runtime_macro() {
        compiler.define(name, None);
    }
    archive("moerl_emulation_runtime", &runtime, compiler, &folder, sanitizer)?;
    for library in sanitizer.libraries() {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}

/// The flags that all of the emulator is compiled with.
fn compiler(kernels: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include(kernels)
        // Emulated code is slow enough; an unoptimised one would make the suites wait without telling more.
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .extra_warnings(true)
        // As nvcc is told (-fmad=false): a product and a sum are rounded twice unless the kernel says fmaf.
        .flag("-ffp-contract=off")
        // A frame larger than a page must not step over the guard page of a fiber's stack.
        .flag_if_supported("-fstack-clash-protection")
        // Kernels look at the same 16 bytes as words, floats and pairs of 16-bit floats.
        .flag("-fno-strict-aliasing");
    build
}

/// Compiles kernel files and a table of their entry points into one archive.
fn archive_kernels(
    name: &str,
    table: &str,
    sources: &[PathBuf],
    kernels: &Path,
    folder: &Path,
    sanitizer: Sanitizer,
) -> Result<(), String> {
    let emulation = files(&kernels.join("emulation"), "h")?;
    // What a kernel elsewhere can include from here.
    let shared = [files(kernels, "cuh")?, files(kernels, "h")?].concat();
    let mut units = Vec::new();
    let mut entries = Vec::new();
    for source in sources {
        let text = fs::read_to_string(source).map_err(|error| format!("{}: {error}", source.display()))?;
        entries.extend(kernels::entries(&text).into_iter().map(|entry| entry.name));
        // A wrapper, because a C++ compiler does not take a .cu file for C++.
        let wrapper = folder.join(format!("{name}_{}.cpp", kernels::name(source)));
        write_if_new(&wrapper, &format!("#include {:?}\n", source.display().to_string()))?;
        let inputs = [kernels::closure(source)?, shared.clone(), emulation.clone()].concat();
        units.push(Unit { source: wrapper, inputs });
    }
    let mut seen = HashSet::new();
    if let Some(twice) = entries.iter().find(|entry| !seen.insert(entry.as_str())) {
        return Err(format!("two kernels are named {twice}: a launch finds a kernel by its name"));
    }
    let file = folder.join(format!("{table}.cpp"));
    write_if_new(&file, &table_source(table, &entries))?;
    units.push(Unit { source: file, inputs: emulation });

    let mut compiler = compiler(kernels);
    compiler.define("MOERL_EMULATION", None);
    for flag in sanitizer.kernel_flags() {
        compiler.flag(flag);
    }
    if sanitizer != Sanitizer::None {
        // What a sanitizer adds takes the compiler longer to optimise than it saves; a report needs lines, not variables.
        compiler.flag("-g1").opt_level(1);
    }
    archive(name, &units, compiler, folder, sanitizer)
}

fn table_source(table: &str, entries: &[String]) -> String {
    let declarations: String =
        entries.iter().map(|name| format!("extern const MoerlEmulationKernel moerl_emulated_{name};\n")).collect();
    let addresses: String = entries.iter().map(|name| format!("    &moerl_emulated_{name},\n")).collect();
    format!(
        "#include \"emulation/emulation.h\"\n\nextern \"C\" {{\n{declarations}\
         static const MoerlEmulationKernel* const kernels[] = {{\n{addresses}}};\n\
         extern const MoerlEmulationTable {table};\n\
         const MoerlEmulationTable {table} = {{kernels, {}}};\n}}\n",
        entries.len()
    )
}

/// A file to compile, and everything that its object depends on.
struct Unit {
    source: PathBuf,
    inputs: Vec<PathBuf>,
}

impl Unit {
    fn digest(&self, flags: &str) -> Result<String, String> {
        let mut hasher = DefaultHasher::new();
        flags.hash(&mut hasher);
        for file in self.inputs.iter().chain([&self.source]) {
            fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?.hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}

/// Compiles what has changed since the last build, all at once, and archives the lot.
fn archive(name: &str, units: &[Unit], compiler: cc::Build, folder: &Path, sanitizer: Sanitizer) -> Result<(), String> {
    let failed = |error: cc::Error| format!("the feature `emulate` needs a C++17 compiler (CXX names it): {error}");
    let command = format!("{:?}", compiler.try_get_compiler().map_err(failed)?);
    let mut objects = Vec::new();
    let mut stale = Vec::new();
    for unit in units {
        let digest =
            unit.digest(&format!("{command} {:?} {:?}", sanitizer.kernel_flags(), sanitizer.runtime_macro()))?;
        let object = folder.join(format!("{}-{digest}.o", kernels::name(&unit.source)));
        if !object.is_file() {
            stale.push((unit.source.clone(), object.clone()));
        }
        objects.push(object);
    }
    if !stale.is_empty() {
        let mut build = compiler.clone();
        build.files(stale.iter().map(|(source, _)| source)).out_dir(folder.join("fresh"));
        let fresh = build.try_compile_intermediates().map_err(failed)?;
        for (built, (_, object)) in fresh.iter().zip(&stale) {
            fs::rename(built, object).map_err(|error| format!("{}: {error}", object.display()))?;
        }
    }
    let place = folder.join(name);
    fs::create_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    let mut build = compiler;
    build.objects(&objects).out_dir(place);
    build.try_compile(name).map_err(failed)
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}

fn write_if_new(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
