//! Step files for tests: a small valid one to damage, and the shipped one.
#![allow(dead_code)] // each test binary uses its own part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use moerl::element::Scalar;
use moerl_cli::arguments::{Arguments, Command as Subcommand, Step};
use moerl_cli::backend::Chosen;
use moerl_cli::failure::Failure;
use moerl_cli::step::{Report, Update};
use moerl_cli::stepfile::StepFile;
use moerl_cli::{Outcome, call};
use serde_json::{Map, Value, json};

/// A safetensors file under construction, as wrong as a test wants it.
#[derive(Clone, Debug)]
pub struct Draft {
    pub tensors: Vec<Piece>,
}

/// A tensor of a [`Draft`].
#[derive(Clone, Debug)]
pub struct Piece {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// 6 tokens in segments of 4 and 2, 5 words, 2 layers of 4 experts, 2 of them chosen.
pub fn small() -> Draft {
    let mut draft = Draft { tensors: Vec::new() };
    let wave = |n: usize, by: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * by).sin()).collect() };
    let below = |n: usize, by: f32| -> Vec<f32> { wave(n, by).iter().map(|x| x - 1.5).collect() };
    draft.set("tokens", &[6], &[0_i32, 1, 2, 3, 4, 0]);
    draft.set("cu_seqlens", &[3], &[0_i32, 4, 6]);
    draft.set("loss_mask", &[6], &[1_u8, 1, 0, 1, 1, 1]);
    draft.set("group", &[2], &[7_i32, 7]);
    draft.set("reward", &[2], &[1.0_f32, 0.0]);
    draft.set("logits", &[6, 5], &wave(30, 0.7));
    draft.set("old_logprobs", &[6], &below(6, 0.3));
    draft.set("rollout_logprobs", &[6], &below(6, 0.31));
    draft.set("ref_logprobs", &[6], &below(6, 0.5));
    draft.set("router_logits", &[2, 6, 4], &wave(48, 1.3));
    let routes: Vec<u8> = (0..12).flat_map(|i| [i % 4, (i + 1) % 4]).collect();
    draft.set("routes_rollout", &[6, 2, 2], &routes);
    draft
}

impl Draft {
    /// A file that is there, to damage.
    pub fn of(path: &Path) -> Draft {
        let file = moerl_cli::stepfile::Container::open(path).expect("a safetensors file");
        let piece = |name: String| {
            let tensor = file.tensor(&name).expect("a tensor of that name");
            let element = tensor.element.expect("a type that the command reads");
            Piece {
                dtype: moerl_cli::stepfile::safetensors_name(element),
                shape: tensor.shape.to_vec(),
                bytes: tensor.bytes().to_vec(),
                name,
            }
        };
        Draft { tensors: file.names().into_iter().map(piece).collect() }
    }

    /// The elements of a tensor.
    pub fn values<T: Scalar>(&mut self, name: &str) -> Vec<T> {
        self.piece(name).bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Replaces the elements of a tensor by others of the same type.
    pub fn overwrite<T: Scalar>(&mut self, name: &str, values: &[T]) -> &mut Draft {
        self.piece(name).bytes = bytemuck::cast_slice(values).to_vec();
        self
    }

    /// Adds or replaces a tensor.
    pub fn set<T: Scalar>(&mut self, name: &str, shape: &[usize], values: &[T]) -> &mut Draft {
        self.remove(name);
        let piece = Piece {
            name: name.into(),
            dtype: moerl_cli::stepfile::safetensors_name(T::ELEMENT),
            shape: shape.to_vec(),
            bytes: bytemuck::cast_slice(values).to_vec(),
        };
        self.tensors.push(piece);
        self
    }

    pub fn remove(&mut self, name: &str) -> &mut Draft {
        self.tensors.retain(|piece| piece.name != name);
        self
    }

    pub fn piece(&mut self, name: &str) -> &mut Piece {
        self.tensors.iter_mut().find(|piece| piece.name == name).expect("a tensor of the draft")
    }

    /// Changes one element.
    pub fn poke<T: Scalar>(&mut self, name: &str, index: usize, value: T) -> &mut Draft {
        let piece = self.piece(name);
        let at = index * size_of::<T>();
        piece.bytes[at..at + size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        self
    }

    /// The header, as an object that a test may falsify.
    pub fn header(&self) -> Map<String, Value> {
        let mut header = Map::new();
        let mut start = 0;
        for piece in &self.tensors {
            let end = start + piece.bytes.len();
            let info = json!({"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [start, end]});
            header.insert(piece.name.clone(), info);
            start = end;
        }
        header
    }

    pub fn bytes_under(&self, header: &Map<String, Value>) -> Vec<u8> {
        let header = Value::Object(header.clone()).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        self.tensors.iter().for_each(|piece| bytes.extend(&piece.bytes));
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_under(&self.header())
    }
}

/// A folder that is removed with its files.
#[derive(Debug)]
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a writable folder");
        path
    }
}

/// What `moerl ARGUMENTS` says, without starting a process.
pub fn moerl<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Result<Outcome, Failure> {
    let own = std::ffi::OsString::from("moerl");
    call(std::iter::once(own).chain(arguments.iter().map(|argument| argument.as_ref().to_owned())))
}

/// The binary: beside the test binary or in the folder above it, where cargo puts it; `MOERL_BIN` elsewhere.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let name = format!("moerl{}", std::env::consts::EXE_SUFFIX);
    let named = std::env::var_os("MOERL_BIN").map(PathBuf::from);
    let beside = test.ancestors().skip(1).take(2).map(|folder| folder.join(&name));
    named.into_iter().chain(beside).find(|path| path.is_file()).expect("the moerl binary")
}

/// `moerl ARGUMENTS` as a process.
pub fn process<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Output {
    Command::new(binary()).args(arguments).output().expect("a binary that starts")
}

/// `moerl ARGUMENTS` as a process whose address space may not exceed `kilobytes`.
pub fn limited<A: AsRef<std::ffi::OsStr>>(kilobytes: u64, arguments: &[A]) -> Output {
    let script = format!("ulimit -v {kilobytes} && exec \"$0\" \"$@\"");
    Command::new("sh").arg("-c").arg(script).arg(binary()).args(arguments).output().expect("a shell")
}

/// A data file of `tests/golden`: under `$MOERL_DATA`, beside the test binary, or in the source tree the test was started from.
pub fn data(name: &str) -> PathBuf {
    let named = std::env::var_os("MOERL_DATA").map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|folder| folder.join("data")));
    let source = std::env::var_os("CARGO_MANIFEST_DIR").map(|folder| Path::new(&folder).join("../tests/golden"));
    let tried: Vec<PathBuf> = [named, beside, source].into_iter().flatten().map(|folder| folder.join(name)).collect();
    tried.iter().find(|path| path.exists()).cloned().unwrap_or_else(|| panic!("no {name} among {tried:?}"))
}

/// Asserts a refusal of bad input: exit code 2, and one line that contains every one of `needles`.
pub fn assert_refused<T: std::fmt::Debug>(what: &str, result: Result<T, Failure>, needles: &[&str]) {
    let failure = result.expect_err(what);
    assert_eq!(failure.exit_code(), 2, "{what}: {failure}");
    let line = failure.to_string();
    assert!(!line.contains('\n'), "{what}: {line}");
    for needle in needles {
        assert!(line.contains(needle), "{what}: `{line}` does not say `{needle}`");
    }
}

/// The report of a step, as numbers.
pub fn report(arguments: &[&str]) -> Report {
    use clap::Parser;
    let arguments = Arguments::try_parse_from([&["moerl", "step"], arguments].concat()).unwrap();
    let Subcommand::Step(options) = arguments.command else { panic!("step was asked for") };
    let options: &Step = &options;
    let file = StepFile::open(options.input.as_ref().unwrap()).unwrap();
    let backend = Chosen::open(options.backend).unwrap();
    let compare = !backend.is_reference();
    backend.run(Update { options, file: &file, backend: backend.describe(), compare }).unwrap()
}

/// That of the shipped file.
pub fn shipped(arguments: &[&str]) -> Report {
    let path = data("step.safetensors");
    report(&[&[path.to_str().unwrap()], arguments].concat())
}

/// What `moerl step` says of a draft, on the reference.
pub fn step(draft: &Draft, arguments: &[&str]) -> Result<Outcome, Failure> {
    let folder = Folder::new();
    let path = folder.write("x.safetensors", &draft.bytes());
    moerl(&[&["step", "--backend", "reference", path.to_str().unwrap()], arguments].concat())
}

/// Asserts a relative difference of at most `relative`.
pub fn close(what: &str, found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs(), "{what}: {found}, expected {expected}");
}
