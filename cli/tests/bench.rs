//! `moerl bench`.

mod common;

use std::collections::BTreeSet;

use clap::ValueEnum;
use common::{assert_refused, moerl};
use moerl_cli::bench::Noun;
use moerl_cli::bench::case::{Case, Scale};
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
