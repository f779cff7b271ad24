//! `moerl check`: its verdicts, its exit code, and folders that are no golden vectors.

mod common;

use common::{Folder, assert_refused, data, moerl};
use moerl_cli::Outcome;
use moerl_cli::failure::Failure;
use serde_json::{Value, json};

/// The golden logprob vectors of one case, in a folder of their own, for a test to spoil.
fn one_case(spoil: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Folder {
    let folder = Folder::new();
    let cases = std::fs::read_to_string(data("logprob.cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    let mut case = cases.into_iter().find(|case| case["name"] == "f32_17x257/t07").unwrap();
    let mut tensors = std::fs::read(data("logprob.safetensors")).unwrap();
    spoil(&mut case, &mut tensors);
    folder.write("logprob.safetensors", &tensors);
    folder.write("logprob.cases.json", json!([case]).to_string().as_bytes());
    folder
}

fn check(folder: &Folder, options: &[&str]) -> Result<Outcome, Failure> {
    let path = folder.0.path().to_str().unwrap();
    moerl(&[&["check", path, "--backend", "reference"], options].concat())
}

/// Where the data of a tensor begin in a safetensors file.
fn start_of(file: &[u8], tensor: &str) -> usize {
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn a_case_within_its_tolerances_passes() {
    let outcome = check(&one_case(|_, _| ()), &[]).unwrap();
    assert_eq!(outcome.exit_code, 0, "{}", outcome.text);
    assert!(
        outcome.text.contains("torch 2.15 float64") && outcome.text.contains("f32_17x257/t07: "),
        "{}",
        outcome.text
    );
}

#[test]
fn a_value_outside_its_tolerance_fails_with_its_place() {
    let folder = one_case(|_, file| {
        let at = start_of(file, "f32_17x257/t07/lse") + 4 * 3;
        let value = f32::from_le_bytes(*file[at..].first_chunk().unwrap());
        file[at..at + 4].copy_from_slice(&(value * 1.001).to_le_bytes());
    });
    let outcome = check(&folder, &[]).unwrap();
    assert_eq!(outcome.exit_code, 1);
    assert!(outcome.text.contains("FAIL") && outcome.text.contains("lse[3]: "), "{}", outcome.text);
}

#[test]
fn nan_where_a_number_is_expected_fails() {
    let folder = one_case(|_, file| {
        let at = start_of(file, "f32_17x257/logits");
        file[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let outcome = check(&folder, &[]).unwrap();
    assert_eq!(outcome.exit_code, 1);
    assert!(outcome.text.contains("row 0"), "{}", outcome.text);
}

#[test]
fn what_is_not_known_is_unsupported_and_not_passed_over() {
    let folder = one_case(|case, _| case["config"] = json!({"softcap": 30.0}));
    let outcome = check(&folder, &[]).unwrap();
    assert_eq!(outcome.exit_code, 1);
    assert!(outcome.text.contains("UNSUPPORTED") && outcome.text.contains("softcap"), "{}", outcome.text);
}

#[test]
fn a_missing_tensor_fails() {
    let folder = one_case(|case, _| case["name"] = json!("f32_17x257/t99"));
    let outcome = check(&folder, &[]).unwrap();
    assert_eq!(outcome.exit_code, 1);
    assert!(outcome.text.contains("f32_17x257/t99/temperature is missing"), "{}", outcome.text);
}

#[test]
fn cases_are_found_in_the_files_own_metadata() {
    let folder = one_case(|_, _| ());
    std::fs::remove_file(folder.path("logprob.cases.json")).unwrap();
    let outcome = check(&folder, &["--json", "--only", "f32_17x257/*"]).unwrap();
    let report: Value = serde_json::from_str(&outcome.text).unwrap();
    assert_eq!(report["backend"], "reference");
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        assert_eq!(case["verdict"], "PASS");
        assert!(case["error_over_tolerance"].as_f64().unwrap() < 1.0);
    }
}

#[test]
fn folders_without_golden_vectors_are_refused() {
    let empty = Folder::new();
    assert_refused("an empty folder", check(&empty, &[]), &["holds no *.safetensors"]);
    assert_refused("no folder", moerl(&["check", "/nonexistent"]), &["/nonexistent", "cannot be read"]);
    assert_refused("nothing chosen", check(&one_case(|_, _| ()), &["--only", "x*"]), &["--only"]);
    assert_refused("a bad pattern", check(&one_case(|_, _| ()), &["--only", "[x"]), &["--only"]);
    assert_refused("another family", check(&one_case(|_, _| ()), &["--family", "gate"]), &["--family"]);
    assert_refused("no such family", check(&empty, &["--family", "gates"]), &["gates"]);

    let folder = one_case(|_, file| file.truncate(5000));
    assert_refused("truncated tensors", check(&folder, &[]), &["logprob.safetensors", "truncated"]);
    let folder = one_case(|_, _| ());
    folder.write("logprob.cases.json", b"[{");
    assert_refused("damaged cases", check(&folder, &[]), &["logprob.cases.json"]);
    folder.write("logprob.cases.json", b"{\"x\": 1}");
    assert_refused("no cases", check(&folder, &[]), &["no list of cases"]);
}
