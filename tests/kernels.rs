//! Host and kernels agree on names, and kernels keep to the words of `device.cuh`.
//!
//! That a launched kernel exists is found by launching it: the agreement suites do so under emulation.
#![allow(missing_docs, dead_code)] // the module is the build script's

#[path = "../build/kernels.rs"]
mod kernels;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The source tree; `None` where the tests run without it.
fn root() -> Option<PathBuf> {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    if root.is_none() {
        println!("skipped: not started by cargo");
    }
    root
}

/// Every kernel by file: the file's name and the declared names.
fn declared(root: &Path) -> Vec<(String, Vec<String>)> {
    let sources = kernels::sources(&root.join("kernels")).expect("the folder of kernels");
    let names = |source: &PathBuf| {
        let text = fs::read_to_string(source).expect("readable");
        (kernels::name(source).to_owned(), kernels::entries(&text).into_iter().map(|entry| entry.name).collect())
    };
    sources.iter().map(names).collect()
}

/// All Rust of `src/device`, where launches are written, without its tests.
fn launching_code(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&launching_code(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            text.push_str(&fs::read_to_string(path).expect("readable"));
        }
    }
    text
}

#[test]
fn every_file_declares_kernels_and_no_name_twice() {
    let Some(root) = root() else { return };
    let mut all = Vec::new();
    for (file, names) in declared(&root) {
        assert!(!names.is_empty(), "kernels/{file}.cu declares no kernel at the start of a line");
        all.extend(names);
    }
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "a kernel is found by its name");
}

#[test]
fn every_file_of_kernels_is_launched_and_every_launch_names_a_file() {
    let Some(root) = root() else { return };
    let code = launching_code(&root.join("src/device"));
    let named: BTreeSet<&str> =
        code.split("image: \"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(image, _)| image).collect();
    let files: Vec<String> = declared(&root).into_iter().map(|(file, _)| file).collect();
    assert_eq!(named, files.iter().map(String::as_str).collect());
}

#[test]
fn nothing_depends_on_an_architecture_newer_than_10_0() {
    let Some(root) = root() else { return };
    // Code for 12.0 is made from the PTX of 10.0 (build/architecture.rs), which does not know what it will run on.
    let text = fs::read_to_string(root.join("kernels/device.cuh")).expect("readable");
    for condition in text.lines().filter(|line| line.contains("__CUDA_ARCH__")) {
        let number: String = condition.chars().filter(char::is_ascii_digit).collect();
        assert!(number.parse::<u32>().expect("a number to compare with") <= 1000, "{condition}");
    }
}

#[test]
fn a_kernel_touches_global_memory_through_device_cuh_alone() {
    let Some(root) = root() else { return };
    // CUDA's own words, which the emulator does not know and must not miss.
    let words = [
        "threadIdx",
        "blockIdx",
        "blockDim",
        "gridDim",
        "__shared__",
        "__syncthreads",
        "__shfl",
        "asm(",
        "asm volatile",
        "atomicAdd",
        "__ldg",
        "__CUDA_ARCH__",
    ];
    for file in fs::read_dir(root.join("kernels")).expect("readable").flatten().map(|entry| entry.path()) {
        let is_kernel_code = file.extension().is_some_and(|extension| extension == "cu" || extension == "cuh");
        if !is_kernel_code || file.file_name().is_some_and(|name| name == "device.cuh") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("readable");
        for word in words {
            assert!(!text.contains(word), "{} says {word}: only device.cuh may", file.display());
        }
    }
}
