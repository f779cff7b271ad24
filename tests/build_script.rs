//! What the build script decides: where nvcc is, which devices to build for, which files a kernel is made of.
#![allow(missing_docs, dead_code)] // the modules are the build script's; each test uses its part

#[path = "../build/architecture.rs"]
mod architecture;
#[path = "../build/kernels.rs"]
mod kernels;
#[path = "../build/toolkit.rs"]
mod toolkit;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use architecture::{Architecture, Targets};

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("moerl-build-script-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary folder can be written");
        Folder(path)
    }

    fn file(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("writable");
        fs::write(&path, text).expect("writable");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Looks for nvcc with these variables alone; `usual` and `pinned` are folders of the test.
fn find(variables: &[(&str, &Path)], usual: &Path, pinned: &[PathBuf]) -> toolkit::Search {
    let variable = |name: &str| -> Option<OsString> {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str().to_owned())
    };
    toolkit::find(&variable, usual, pinned)
}

fn plain(number: u32) -> Architecture {
    Architecture { number, suffix: None }
}

#[test]
fn nvcc_is_taken_from_the_first_place_that_has_one() {
    let folder = Folder::new("order");
    let nothing = folder.0.join("nothing");
    let places = ["named", "home", "path", "root", "bin", "usual", "pinned"];
    let at = |place: &str| folder.file(&format!("{place}/bin/nvcc"), "");
    let [named, home, path, root, bin, usual, pinned] = places.map(at);
    let root_of = |nvcc: &Path| nvcc.parent().and_then(Path::parent).expect("two levels deep").to_owned();
    let folder_of = |nvcc: &Path| nvcc.parent().expect("one level deep").to_owned();

    let pinned_folders = [folder_of(&pinned)];
    let all: Vec<(&str, PathBuf, PathBuf)> = vec![
        ("NVCC", named.clone(), named),
        ("CUDA_HOME", root_of(&home), home),
        ("CUDA_PATH", root_of(&path), path),
        ("CUDA_ROOT", root_of(&root), root),
        ("PATH", folder_of(&bin), bin),
    ];
    // Without the first n variables, the next one decides.
    for missing in 0..all.len() {
        let variables: Vec<(&str, &Path)> =
            all[missing..].iter().map(|(name, value, _)| (*name, value.as_path())).collect();
        let search = find(&variables, &root_of(&usual), &pinned_folders);
        assert_eq!(search.nvcc.as_ref(), Some(&all[missing].2), "with {variables:?}");
        assert!(search.variables.contains(&all[missing].0), "the outcome depends on {}", all[missing].0);
    }
    assert_eq!(find(&[], &root_of(&usual), &pinned_folders).nvcc, Some(usual));
    assert_eq!(find(&[], &nothing, &pinned_folders).nvcc, Some(pinned));
    assert_eq!(find(&[], &nothing, &[]).nvcc, None);
}

#[test]
fn a_toolkit_root_without_a_compiler_is_passed_over_and_named() {
    let folder = Folder::new("empty-root");
    let nvcc = folder.file("bin/nvcc", "");
    let empty = folder.0.join("empty");
    let search = find(&[("CUDA_HOME", &empty), ("CUDA_PATH", &folder.0)], &empty, &[]);
    assert_eq!(search.nvcc, Some(nvcc));
    assert_eq!(search.tried, [format!("CUDA_HOME={}", empty.display())]);
}

#[test]
fn a_compiler_that_is_named_but_absent_is_not_replaced_by_another() {
    let folder = Folder::new("named-absent");
    folder.file("bin/nvcc", "");
    let absent = folder.0.join("absent/nvcc");
    let search = find(&[("NVCC", &absent), ("CUDA_HOME", &folder.0)], &folder.0, &[]);
    assert_eq!(search.nvcc, None);
    assert_eq!(search.tried, [format!("NVCC={}", absent.display())]);
}

#[test]
fn a_compiler_may_be_named_by_its_name_on_the_path() {
    let folder = Folder::new("by-name");
    let nvcc = folder.file("nvcc-13", "");
    let search = find(&[("NVCC", Path::new("nvcc-13")), ("PATH", &folder.0)], &folder.0, &[]);
    assert_eq!(search.nvcc, Some(nvcc));
    assert!(search.variables.contains(&"PATH"));
}

#[test]
fn the_pinned_toolkit_is_found_whatever_the_python_version() {
    let folder = Folder::new("pinned");
    let nvcc = folder.file("target/toolkit/lib/python3.12/site-packages/nvidia/cu13/bin/nvcc", "");
    let pinned = toolkit::pinned(&[folder.0.join("target")]);
    assert_eq!(find(&[], &folder.0.join("none"), &pinned).nvcc, Some(nvcc));
}

#[test]
fn the_target_folder_is_found_from_the_output_folder() {
    let root = Path::new("/source");
    let folders = |out: &str| toolkit::target_folders(root, Path::new(out));
    assert!(folders("/elsewhere/debug/build/moerl-0/out").contains(&PathBuf::from("/elsewhere")));
    assert!(folders("/elsewhere/some-platform/debug/build/moerl-0/out").contains(&PathBuf::from("/elsewhere")));
    assert_eq!(folders("/source/target/debug/build/moerl-0/out")[0], PathBuf::from("/source/target"));
}

#[test]
fn what_the_compiler_says_of_itself_is_read() {
    let said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0";
    assert_eq!(toolkit::version_in(said).as_deref(), Some("13.0.88"));
    assert_eq!(toolkit::version_in("gcc 12"), None);
    assert_eq!(toolkit::known_in("sm_80\nsm_90\ncompute_90\n"), [80, 90]);
}

#[test]
fn a_compute_capability_may_be_written_in_every_usual_way() {
    for text in ["90", "9.0", "sm_90", "compute_90", " 90 "] {
        assert_eq!(Architecture::parse(text), Ok(plain(90)), "{text:?}");
    }
    assert_eq!(Architecture::parse("90a"), Ok(Architecture { number: 90, suffix: Some('a') }));
    assert_eq!(Architecture::parse("10.0a"), Ok(Architecture { number: 100, suffix: Some('a') }));
    assert_eq!(Architecture::parse("12.0"), Ok(plain(120)));
    for text in ["", "hopper", "9", "9.", "9.00", "-90", "90aa", "2147483648"] {
        assert!(Architecture::parse(text).is_err(), "{text:?}");
    }
    assert_eq!(Architecture::parse_list("80,9.0; 90 80"), Ok(vec![plain(80), plain(90)]));
    assert!(Architecture::parse_list(" ").is_err());
}

#[test]
fn the_default_is_what_the_toolkit_can_do_of_the_usual_devices() {
    let all = Targets::default_for(&[75, 80, 86, 90, 100, 120]).expect("current toolkit");
    assert_eq!(all.to_string(), "sm_80 sm_90 sm_100 sm_120 compute_80 compute_90");
    assert_eq!(
        all.options().join(" "),
        "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90 \
         -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_100,code=sm_120 \
         -gencode=arch=compute_80,code=compute_80 -gencode=arch=compute_90,code=compute_90"
    );
    assert_eq!(
        Targets::default_for(&[75, 80, 86, 90]).expect("older").to_string(),
        "sm_80 sm_90 compute_80 compute_90"
    );
    assert!(Targets::default_for(&[70, 75]).is_err());
}

#[test]
fn named_devices_replace_the_default_and_must_be_possible() {
    let known = [75, 80, 90];
    let hopper = Architecture { number: 90, suffix: Some('a') };
    let targets = Targets::exactly(vec![hopper, plain(80)], &known).expect("both are known");
    assert_eq!(targets.to_string(), "sm_90a sm_80 compute_80");
    let alone = Targets::exactly(vec![plain(120)], &[120]).expect("known");
    assert_eq!(alone.options()[0], "-gencode=arch=compute_120,code=sm_120");
    let unknown = Targets::exactly(vec![plain(100)], &known).expect_err("not known");
    assert!(unknown.contains("sm_100"), "{unknown}");
    let old = Targets::exactly(vec![plain(75)], &known).expect_err("too old");
    assert!(old.contains("8.0"), "{old}");
}

#[test]
fn a_kernel_depends_on_the_headers_it_reads_and_not_on_the_emulators() {
    let folder = Folder::new("closure");
    let source = folder
        .file("a.cu", "#include \"b.cuh\"\n#include <stdint.h>\n  #  include \"c.h\"\n#include \"emulation/x.h\"\n");
    let b = folder.file("b.cuh", "#include \"c.h\"\n#include \"d.h\"\n");
    let c = folder.file("c.h", "#include \"a.cu\"\n");
    let d = folder.file("d.h", "");
    folder.file("emulation/x.h", "");
    folder.file("unread.h", "");
    assert_eq!(kernels::closure(&source), Ok(vec![source.clone(), b, c, d]));
    assert_eq!(kernels::sources(&folder.0), Ok(vec![source]));
}

#[test]
fn entry_points_are_the_declarations_at_the_start_of_a_line() {
    let text = "// MOERL_KERNEL(not, this, 1)\nMOERL_KERNEL(first, Params, 256) {\n}\n  MOERL_KERNEL(inner, P, 1)\n\
        MOERL_KERNEL(second,Params,32) { body<8>(p); }\n";
    let names: Vec<_> = kernels::entries(text).into_iter().map(|entry| (entry.name, entry.max_threads)).collect();
    assert_eq!(names, [("first".to_owned(), "256".to_owned()), ("second".to_owned(), "32".to_owned())]);
}
