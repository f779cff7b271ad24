//! Generates `src/abi.rs` and `kernels/abi_layout.h` from `kernels/abi.h`.
//!
//! `cargo xtask bindings` runs it with libclang at hand. The first file is bindgen's view of the contract with its sizes and
//! offsets asserted; the second asserts the same numbers where the kernels are compiled.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use bindgen::callbacks::{IntKind, ParseCallbacks};
use clap::Parser;

/// Generates the host's view of the contract between host and kernels.
#[derive(Parser)]
struct Arguments {
    /// The repository's root.
    root: PathBuf,
    /// Compare with the files that are there instead of writing them.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let Arguments { root, check } = Arguments::parse();
    match run(&root, check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bindings: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(root: &Path, check: bool) -> Result<()> {
    let header = root.join("kernels/abi.h");
    let rust = formatted(root, &generate(&header)?)?;
    let layout = layout_header(&rust);
    for (path, text) in [("src/abi.rs", rust), ("kernels/abi_layout.h", layout)] {
        let path = root.join(path);
        if !check {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        } else if !fs::read_to_string(&path).is_ok_and(|old| old == text) {
            bail!("{} is not what kernels/abi.h gives; run `cargo xtask bindings`", path.display());
        }
    }
    Ok(())
}

fn generate(header: &Path) -> Result<String> {
    let text = fs::read_to_string(header).with_context(|| header.display().to_string())?;
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_args(["-x", "c++", "-std=c++17", "-fparse-all-comments"])
        .allowlist_item("[Mm][Oo][Ee][Rr][Ll].*")
        .blocklist_item("MOERL_ABI_H")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .use_core()
        .layout_tests(true)
        .generate_comments(false)
        .disable_header_comment()
        .formatter(bindgen::Formatter::None)
        .parse_callbacks(Box::new(Unsigned))
        .generate()
        .context("bindgen could not read kernels/abi.h")?;
    Ok(format!(
        "//! The contract between host and kernels, generated from `kernels/abi.h` by `cargo xtask bindings`: not edited by hand.\n\
         //!\n\
         //! What each field means stands in that file.\n\n\
         /// A digest of the `kernels/abi.h` that this was generated from.\n\
         pub const ABI_DIGEST: u64 = {:#018x};\n\n{bindings}",
        digest(text.as_bytes())
    ))
}

/// 64-bit FNV-1a, which the test that proves `src/abi.rs` current computes again.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Macro numbers are unsigned: a mask of all ones is not -1.
#[derive(Debug)]
struct Unsigned;

impl ParseCallbacks for Unsigned {
    fn int_macro(&self, _name: &str, value: i64) -> Option<IntKind> {
        Some(if u32::try_from(value).is_ok() { IntKind::U32 } else { IntKind::U64 })
    }
}

/// Runs the repository's rustfmt over `text`.
fn formatted(root: &Path, text: &str) -> Result<String> {
    use io::Write as _;
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(root.join("rustfmt.toml"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("rustfmt is needed (rustup component add rustfmt)")?;
    child.stdin.take().context("no pipe to rustfmt")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("rustfmt: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The sizes and offsets that bindgen found, as C++ assertions.
fn layout_header(rust: &str) -> String {
    let mut text = String::from(
        "// Generated from abi.h by `cargo xtask bindings`: the sizes and offsets that the host uses.\n\
         #pragma once\n\n#include <stddef.h>\n\n#include \"abi.h\"\n\n",
    );
    let joined = rust.split_whitespace().collect::<Vec<_>>().join(" ");
    for assertion in joined.split("[\"").skip(1) {
        if let Some(line) = assertion_in_c(assertion) {
            text.push_str(&line);
        }
    }
    text
}

/// One assertion, from `Offset of field: X::y"][core::mem::offset_of!(X, y) - 8usize];` or `Size of X"][core::mem::size_of::<X>() - 8usize];`.
fn assertion_in_c(assertion: &str) -> Option<String> {
    let (title, rest) = assertion.split_once("\"]")?;
    let (_, number) = rest.split_once(" - ")?;
    let (number, _) = number.split_once("usize")?;
    if let Some(field) = title.strip_prefix("Offset of field: ") {
        let (name, field) = field.split_once("::")?;
        return Some(format!("static_assert(offsetof({name}, {field}) == {number}, \"{name}.{field}\");\n"));
    }
    let name = title.strip_prefix("Size of ")?;
    Some(format!("static_assert(sizeof({name}) == {number}, \"{name}\");\n"))
}
