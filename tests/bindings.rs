//! `src/abi.rs` and `kernels/abi_layout.h` belong to the `kernels/abi.h` that is there.
//!
//! This compares a digest and needs no libclang; `cargo xtask bindings --check` generates both again and compares every byte.

use std::fs;
use std::path::PathBuf;

/// A file of the source tree; `None` where the tests run without it.
fn source(path: &str) -> Option<String> {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    Some(fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}")))
}

/// 64-bit FNV-1a, as the generator computes it.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[test]
fn the_bindings_were_generated_from_the_header_that_is_there() {
    let (Some(header), Some(bindings)) = (source("kernels/abi.h"), source("src/abi.rs")) else {
        println!("skipped: not started by cargo");
        return;
    };
    let recorded = format!("ABI_DIGEST: u64 = {:#018x};", digest(&header));
    assert!(bindings.contains(&recorded), "src/abi.rs is stale: run `cargo xtask bindings`");
}

#[test]
fn the_device_asserts_the_size_of_every_structure_of_the_header() {
    let (Some(header), Some(layout)) = (source("kernels/abi.h"), source("kernels/abi_layout.h")) else {
        println!("skipped: not started by cargo");
        return;
    };
    let structures = header.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
    let mut asserted = 0;
    for structure in structures {
        assert!(layout.contains(&format!("static_assert(sizeof({structure}) == ")), "no assertion for {structure}");
        asserted += 1;
    }
    assert!(asserted >= 2, "the header declares structures one per line: found {asserted}");
}
