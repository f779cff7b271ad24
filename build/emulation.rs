//! Compiles the kernels as C++ for the emulator, and the emulator's runtime (feature `emulate`).
//!
//! Three archives: `moerl_emulated_kernels` (every `kernels/*.cu`, and a generated table of their entry points),
//! `moerl_emulation_runtime` (`kernels/emulation/*.cpp`) and, in a checkout that has the folder, `moerl_emulation_tests` (the kernels of
//! `tests/emulation`, most of them broken on purpose, with a table of their own). A linker takes from an archive only what somebody
//! refers to, and nobody but the emulator's tests refers to that last table; published packages lack the folder.
//!
//! `cargo xtask test --sanitize` compiles all of it once more by this file, into a shared library that takes the place of what is linked in;
//! see kernels/emulation/README.md.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use super::kernels;

/// What a stand-in is compiled under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizer {
    Address,
    Thread,
}

impl Sanitizer {
    pub fn name(self) -> &'static str {
        match self {
            Sanitizer::Address => "address",
            Sanitizer::Thread => "thread",
        }
    }

    /// What the kernels are compiled with, beyond the usual.
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            // A report of UBSan ends the process, as ASan's do: a test run must not pass over it.
            Sanitizer::Address => {
                &["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
            }
            Sanitizer::Thread => &["-fsanitize=thread", "-fno-omit-frame-pointer"],
        }
    }

    /// The macro by which the runtime, itself compiled without, knows whom it has to tell of its fibers.
    fn runtime_macro(self) -> &'static str {
        match self {
            Sanitizer::Address => "MOERL_EMULATION_ASAN",
            Sanitizer::Thread => "MOERL_EMULATION_TSAN",
        }
    }
}

/// Compiles the emulator of the package at `root` into archives under `out`, and tells cargo to link them. For the build script.
pub fn compile(root: &Path, out: &Path) -> Result<(), String> {
    let folder = out.join("emulation");
    println!("cargo::rerun-if-changed={}", root.join(TESTS).display());
    for part in parts(root, &folder, &compiler(root))? {
        part.archive(&folder)?;
    }
    Ok(())
}

/// Compiles the emulator of the repository at `root` under a sanitizer, into a shared library under `folder`. Outside of a build script, where
/// nobody but the caller knows the `platform`.
pub fn stand_in(root: &Path, folder: &Path, platform: &str, sanitizer: Sanitizer) -> Result<PathBuf, String> {
    let folder = folder.join(sanitizer.name());
    let mut usual = compiler(root);
    usual.cargo_metadata(false).target(platform).host(platform).flag("-fvisibility=hidden");
    usual.define(sanitizer.runtime_macro(), None);
    let mut objects = Vec::new();
    for mut part in parts(root, &folder, &usual)? {
        if part.is_kernels {
            for flag in sanitizer.kernel_flags() {
                part.compiler.flag(flag);
            }
            // What a sanitizer adds takes the compiler longer to optimise than it saves; a report needs lines, not variables.
            part.compiler.flag("-g1").opt_level(1);
        }
        objects.extend(part.objects(&folder)?);
    }
    let library = folder.join("libmoerl_emulation.so");
    let mut command = usual.try_get_compiler().map_err(failed)?.to_command();
    command.args(sanitizer.kernel_flags()).arg("-shared").arg("-o").arg(&library).args(objects);
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(library)
}

/// Kernels that only tests launch. Published packages lack the folder.
const TESTS: &str = "tests/emulation";

/// What becomes one archive.
struct Part {
    name: &'static str,
    units: Vec<Unit>,
    is_kernels: bool,
    compiler: cc::Build,
}

/// The whole emulator; generated sources are written to `folder`.
fn parts(root: &Path, folder: &Path, usual: &cc::Build) -> Result<Vec<Part>, String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let kernels = root.join("kernels");
    let emulation = kernels.join("emulation");
    let mut compiler = usual.clone();
    compiler.define("MOERL_EMULATION", None);
    let mut parts = Vec::new();
    let mut add = |name, table, sources: &Path| -> Result<(), String> {
        let units = kernel_units(name, table, &kernels::sources(sources)?, &kernels, folder)?;
        parts.push(Part { name, units, is_kernels: true, compiler: compiler.clone() });
        Ok(())
    };
    add("moerl_emulated_kernels", "moerl_emulation_table", &kernels)?;
    if root.join(TESTS).is_dir() {
        add("moerl_emulation_tests", "moerl_emulation_test_table", &root.join(TESTS))?;
    }
    let headers = files(&emulation, "h")?;
    let sources = files(&emulation, "cpp")?;
    let units = sources.into_iter().map(|source| Unit { source, inputs: headers.clone() }).collect();
    parts.push(Part { name: "moerl_emulation_runtime", units, is_kernels: false, compiler: usual.clone() });
    Ok(parts)
}

/// The flags that all of the emulator is compiled with.
fn compiler(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include(root.join("kernels"))
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

/// Kernel files, and a table of their entry points.
fn kernel_units(
    name: &str,
    table: &str,
    sources: &[PathBuf],
    kernels: &Path,
    folder: &Path,
) -> Result<Vec<Unit>, String> {
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

    Ok(units)
}

fn table_source(table: &str, entries: &[String]) -> String {
    let declarations: String =
        entries.iter().map(|name| format!("extern const MoerlEmulationKernel moerl_emulated_{name};\n")).collect();
    let addresses: String = entries.iter().map(|name| format!("    &moerl_emulated_{name},\n")).collect();
    format!(
        "#include \"emulation/emulation.h\"\n\nextern \"C\" {{\n{declarations}\
         static const MoerlEmulationKernel* const kernels[] = {{\n{addresses}}};\n\
         extern const MoerlEmulationTable {table};\n\
         const MoerlEmulationTable {table} = {{\"{table}\", kernels, {}}};\n}}\n",
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

fn failed(error: cc::Error) -> String {
    format!("the feature `emulate` needs a C++17 compiler (CXX names it): {error}")
}

impl Part {
    /// Compiles what has changed since the last build, all at once.
    fn objects(&self, folder: &Path) -> Result<Vec<PathBuf>, String> {
        let command = format!("{:?}", self.compiler.try_get_compiler().map_err(failed)?);
        let mut objects = Vec::new();
        let mut stale = Vec::new();
        for unit in &self.units {
            let digest = unit.digest(&command)?;
            let object = folder.join(format!("{}-{digest}.o", kernels::name(&unit.source)));
            if !object.is_file() {
                stale.push((unit.source.clone(), object.clone()));
            }
            objects.push(object);
        }
        if !stale.is_empty() {
            let mut build = self.compiler.clone();
            build.files(stale.iter().map(|(source, _)| source)).out_dir(folder.join("fresh"));
            let fresh = build.try_compile_intermediates().map_err(failed)?;
            for (built, (_, object)) in fresh.iter().zip(&stale) {
                fs::rename(built, object).map_err(|error| format!("{}: {error}", object.display()))?;
            }
        }
        Ok(objects)
    }

    fn archive(&self, folder: &Path) -> Result<(), String> {
        let place = folder.join(self.name);
        fs::create_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
        let mut build = self.compiler.clone();
        build.objects(self.objects(folder)?).out_dir(place);
        build.try_compile(self.name).map_err(failed)
    }
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
