//! `moerl bench`.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use common::{assert_refused, moerl};
use moerl_cli::bench::Noun;
use moerl_cli::bench::case::{Case, Scale};
use moerl_cli::stepfile::Container;
use serde_json::Value;

fn measured(backend: &str, nouns: &[&str], only: &str) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("figures.json");
    let options = ["--backend", backend, "--only", only, "--json", file.to_str().unwrap()];
    let outcome = moerl(&[&["bench"], nouns, &options].concat()).unwrap();
    assert_eq!(outcome.exit_code, 0);
    (outcome.text, serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap())
}

#[test]
fn the_reference_is_timed_and_the_figures_are_written() {
    let (text, document) = measured("reference", &["gate"], "qwen3_5 T=64 E=256 k=8 bf16");
    assert!(text.starts_with("reference"), "{text}");
    let cases = document["cases"].as_array().unwrap();
    let operations: Vec<&str> = cases.iter().map(|case| case["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["forward, native", "forward, replay", "backward", "backward, compact"]);
    // 64 rows of 256 bf16 logits; 8 ids, weights and chosen logits of each.
    assert_eq!(cases[0]["floor_read_bytes"], 64 * 256 * 2);
    assert_eq!(cases[0]["floor_written_bytes"], 64 * 8 * 12);
    assert!(cases.iter().all(|case| case["cold_us"].as_f64().unwrap() > 0.0 && case["loaded_bytes"].is_null()));
    assert!(document["bandwidth"].is_null());
}

#[cfg(feature = "emulate")]
#[test]
fn under_emulation_the_bytes_are_counted() {
    let (text, document) = measured("emulator", &["gate", "logprob"], "64 E=128 k=8 bf16");
    assert!(text.contains("in sectors"), "{text}");
    let native = &document["cases"][0];
    assert_eq!(native["loaded_bytes"], native["floor_read_bytes"]);
    assert_eq!(native["stored_bytes"], native["floor_written_bytes"]);
    assert!(native["cold_us"].is_null());
}

#[test]
fn every_case_of_full_size_has_its_own_name() {
    let mut names = BTreeSet::new();
    for noun in Noun::value_variants() {
        for Case { noun, operation, shape, element, .. } in noun.cases::<moerl::Reference>(Scale::Full) {
            let name = format!("{noun} {operation}, {shape}, {element}");
            assert!(names.insert(name.clone()), "twice: {name}");
        }
    }
}

/// The list of figures that must not grow is made of these names and numbers.
#[cfg(feature = "emulate")]
#[test]
fn every_case_has_its_own_name_and_moves_no_less_than_its_floor() {
    let (_, document) = measured("emulator", &[], "");
    let cases = document["cases"].as_array().unwrap();
    let mut names = BTreeSet::new();
    for case in cases {
        let text = |field: &str| case[field].as_str().unwrap();
        let number = |field: &str| case[field].as_u64().unwrap();
        let name = format!("{} {}, {}, {}", text("noun"), text("operation"), text("shape"), text("element"));
        let (moved, floor) = (32 * number("sectors"), number("floor_read_bytes") + number("floor_written_bytes"));
        assert!(moved >= floor, "{name}: the floor is {floor} bytes, but the sectors touched are {moved}");
        assert_eq!(case["kernels"].as_array().unwrap().len() as u64, number("launches"), "{name}");
        assert!(names.insert(name), "twice: {case}");
    }
}

#[test]
fn every_stage_of_an_update_runs() {
    let (_, document) = measured("reference", &["update"], "");
    let stages: Vec<&str> =
        document["cases"].as_array().unwrap().iter().map(|case| case["operation"].as_str().unwrap()).collect();
    assert_eq!(
        stages,
        [
            "gate, replay, all layers",
            "gate backward, all layers",
            "logprob, by chunks",
            "logprob backward, by chunks",
            "objective, gspo"
        ]
    );
}

#[test]
fn a_name_that_nothing_has_is_refused() {
    assert_refused(
        "--only nothing",
        moerl(&["bench", "gate", "--backend", "reference", "--only", "nothing"]),
        &["--only"],
    );
    assert_refused("a noun", moerl(&["bench", "fly"]), &["fly"]);
}

/// Inputs and results of a noun's calls, on the reference.
fn exported(nouns: &[&str]) -> (tempfile::TempDir, Container) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls.safetensors");
    let options = ["--backend", "reference", "--export", file.to_str().unwrap()];
    assert_eq!(moerl(&[&["bench"], nouns, &options].concat()).unwrap().exit_code, 0);
    let calls = Container::open(&file).unwrap();
    (folder, calls)
}

#[test]
fn exported_results_are_those_of_the_exported_inputs() {
    let (_folder, calls) = exported(&["ema"]);
    let all = |name: &str| calls.tensor(&format!("ema/step/3 × 1003/f32/{name}")).unwrap().all::<f32>().into_owned();
    let (parameters, before, after) = (all("in/parameters 1"), all("in/state 1"), all("out/state 1"));
    assert_eq!(after.len(), 1003);
    for ((p, before), after) in parameters.iter().zip(&before).zip(&after) {
        assert!((before + 0.001 * (p - before) - after).abs() < 1e-6, "{p} {before} {after}");
    }
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let bench =
        |arguments: &[&str]| moerl(&[&["bench", "--backend", "reference", "--export", "x"], arguments].concat());
    assert_refused("a noun without peers", bench(&["update"]), &["exported", "gate"]);
    assert_refused("a part of the cases", bench(&["--only", "gae"]), &["--export", "--only"]);
}

const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/peers");

/// Python without any installed package, so that PyTorch is not found wherever the tests run.
fn python(arguments: &[&str]) {
    let output = Command::new("python3").args(["-B", "-E", "-S"]).args(arguments).output().expect("Python 3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A table of peers is joined to ours by these names, and nothing else would notice that one of them changed.
#[test]
fn peers_time_cases_that_bench_has_and_say_what_they_lack() {
    let folder = tempfile::tempdir().unwrap();
    for (scale, name) in [(Scale::Full, "full"), (Scale::Small, "small")] {
        let nouns = Noun::value_variants().iter();
        let ours: BTreeSet<_> = nouns
            .flat_map(|noun| noun.cases::<moerl::Reference>(scale))
            .map(|case| (case.noun.to_owned(), case.operation, case.shape, case.element.to_string()))
            .collect();
        let file = folder.path().join(name);
        python(&[&format!("{PEERS}/peers.py"), "--shapes", name, "--json", file.to_str().unwrap()]);
        let document: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let rows = document["rows"].as_array().unwrap();
        assert!(rows.len() > 300, "{} rows", rows.len());
        for row in rows {
            let text = |field: &str| row[field].as_str().unwrap_or_else(|| panic!("{field}: {row}")).to_owned();
            let case = (text("noun"), text("operation"), text("shape"), text("element"));
            assert!(ours.contains(&case), "bench has no such case: {row}");
            assert!(text("missing").starts_with("torch"), "{row}");
        }
    }
}

#[test]
fn peers_are_python() {
    let files = Path::new(PEERS).read_dir().unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "py")) {
        python(&["-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())", file.to_str().unwrap()]);
    }
}
