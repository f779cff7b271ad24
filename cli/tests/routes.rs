//! `moerl routes inspect`: what it says of good files, of bad ones, and of what is no file of routes at all.

mod common;

use common::{Draft, Folder, assert_refused, data, moerl};
use moerl_cli::Outcome;
use moerl_cli::failure::Failure;

fn inspect(folder: &Folder, name: &str, options: &[&str]) -> Result<Outcome, Failure> {
    let path = folder.path(name);
    let path = path.to_str().expect("a plain path");
    moerl(&[&["routes", "inspect", path], options].concat())
}

fn says(outcome: &Outcome, lines: &[&str]) {
    for line in lines {
        assert!(outcome.text.contains(line), "no `{line}` in\n{}", outcome.text);
    }
}

/// 6 rows of 2 layers of 2 of 4 experts, all in order.
fn ids() -> Vec<i64> {
    (0..12).flat_map(|i| [i % 4, (i + 1 + i / 4) % 4]).collect()
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn the_shipped_step_file_holds_two_recordings_and_says_where_they_differ() {
    let path = data("step.safetensors");
    let outcome = moerl(&["routes", "inspect", path.to_str().unwrap()]).unwrap();
    assert_eq!(outcome.exit_code, 0);
    says(
        &outcome,
        &[
            "format     safetensors, tensor routes_rollout",
            "holds      u8 [860 rows, 4 layers, 4]",
            "layers     4, all with experts",
            "experts    32 seen of 32, 4 a token",
            "bytes      16 a token, 16 packed in u8",
            "tensor routes_new",
            // What `moerl step` counts under the current policy, whose native choice routes_new is.
            "changed    against routes_rollout, by layer: 5.35 % · 9.19 % · 9.65 % · 12.44 %",
            "tensor routes_old",
            "changed    against routes_rollout, by layer: 1.63 % · 3.26 % · 2.67 % · 2.67 %",
            "defects    none",
        ],
    );
}

#[test]
fn an_npy_file_says_its_own_shape() {
    let folder = Folder::new();
    let bytes: Vec<u8> = ids().iter().flat_map(|&id| (id as u16).to_be_bytes()).collect();
    folder.write("routes.npy", &npy(">u2", "(6, 2, 2)", &bytes));
    let outcome = inspect(&folder, "routes.npy", &["--experts", "5", "--tokens", "7"]).unwrap();
    assert_eq!(outcome.exit_code, 0);
    says(
        &outcome,
        &[
            "format     vLLM, npy",
            "holds      u16 [6 rows, 2 layers, 2], high byte first",
            "experts    4 seen of 5, 2 a token",
            "bytes      8 a token, 4 packed in u8",
            "█",
            "defects    none",
        ],
    );
}

#[test]
fn base64_and_raw_integers_are_read_as_the_options_say() {
    let folder = Folder::new();
    // RFC 4648 of the bytes 0 1 2, 3 0 1: ids in u8.
    folder.write("prime.txt", b"AAECAwAB\n");
    let options = ["--format", "prime-rl", "--shape", "3,1,2", "--dtype", "u8"];
    let outcome = inspect(&folder, "prime.txt", &options).unwrap();
    says(&outcome, &["holds      u8 [3 rows, 1 layers, 2]", "experts    4 seen, at least 4 (the largest id"]);
    // One row of 1 layer: 3 and 1 in i32, and a shared column behind them.
    folder.write("sglang.txt", b"AwAAAAEAAAAJAAAA");
    let options = ["--format", "sglang", "--shape", "1,1,3", "--top-k", "2", "--experts", "4"];
    let outcome = inspect(&folder, "sglang.txt", &options).unwrap();
    says(&outcome, &["experts    2 seen of 4, 2 a token", "defects    none"]);
    let bytes: Vec<u8> = ids().iter().flat_map(|id| id.to_le_bytes()).collect();
    folder.write("megatron.bin", &bytes);
    let options = ["--format", "megatron", "--shape", "6,2,2", "--dtype", "i64"];
    says(
        &inspect(&folder, "megatron.bin", &options).unwrap(),
        &["holds      i64 [6 rows, 2 layers, 2]", "defects    none"],
    );
}

#[test]
fn every_defect_is_told_and_the_exit_code_is_1() {
    let folder = Folder::new();
    let mut ids = ids();
    ids[2..4].copy_from_slice(&[0, 0]); // row 0, layer 1
    ids[4..6].copy_from_slice(&[-1, 1]); // row 1, layer 0
    ids[8..10].copy_from_slice(&[9, 1]); // row 2, layer 0
    ids[12..16].fill(-1); // row 3, missing
    let mut draft = Draft { tensors: Vec::new() };
    draft.set("routed_experts", &[6, 2, 2], &ids);
    folder.write("x.safetensors", &draft.bytes());
    let outcome = inspect(&folder, "x.safetensors", &["--experts", "4", "--tokens", "9"]).unwrap();
    assert_eq!(outcome.exit_code, 1);
    says(
        &outcome,
        &[
            "defects    4",
            "  sequence 0: has 6 rows, needs 8",
            "  sequence 0, row 0, layer 1: names expert 0 twice (ids [0, 0])",
            "  sequence 0, row 1, layer 0: some but not all ids are the sentinel (ids [-1, 1])",
            "  sequence 0, row 2, layer 0: names expert 9, but the router has 4 experts (ids [9, 1])",
        ],
    );
    let outcome = inspect(&folder, "x.safetensors", &["--experts", "4", "--defects", "1"]).unwrap();
    says(&outcome, &["defects    3", "and 2 more (--defects shows more)"]);
    let outcome = inspect(&folder, "x.safetensors", &["--experts", "4", "--zeros-are-missing"]).unwrap();
    says(&outcome, &["defects    2"]);
}

#[test]
fn dense_layers_are_dropped_where_the_model_is_described() {
    let folder = Folder::new();
    let ids: Vec<u8> = (0..6).flat_map(|row| [0, 0, row % 4, (row + 1) % 4]).collect();
    folder.write("routes.npy", &npy("|u1", "(6, 2, 2)", &ids));
    let told = ["--hidden-layers", "2", "--dense-first", "1"];
    let outcome = inspect(&folder, "routes.npy", &told).unwrap();
    assert_eq!(outcome.exit_code, 0);
    says(&outcome, &["layers     1 with experts, 1 others dropped", "defects    none"]);
    let outcome = inspect(&folder, "routes.npy", &[]).unwrap();
    assert_eq!(outcome.exit_code, 1);
    says(&outcome, &["sequence 0, layer 0: all 6 recorded rows are zeros"]);
}

#[test]
fn what_cannot_be_read_is_refused_in_one_line() {
    let folder = Folder::new();
    folder.write("x.bin", &[0; 12]);
    folder.write("x.npy", b"\x93NUMPY\x01\x00\x05\x00{'a':");
    folder.write("x.txt", b"AAE*");
    let mut draft = Draft { tensors: Vec::new() };
    draft.set("routes_rollout", &[3], &[0_u8, 1, 2]).set("routes_old", &[1, 1, 2], &[0.0_f32, 1.0]);
    folder.write("x.safetensors", &draft.bytes());
    folder.write("empty.npy", b"");
    let table: &[(&str, &[&str], &[&str])] = &[
        ("absent.npy", &[], &["absent.npy", "cannot be opened"]),
        (".", &["--format", "vllm"], &["is not a file"]),
        ("empty.npy", &[], &["no npy file"]),
        ("x.bin", &[], &["x.bin", "say what it is with --format"]),
        ("x.bin", &["--format", "megatron"], &["x.bin", "--shape"]),
        ("x.bin", &["--format", "megatron", "--shape", "1,1,3"], &["--dtype"]),
        ("x.bin", &["--format", "megatron", "--shape", "1,1,3", "--dtype", "u8"], &["holds u8, needs i32 or i64"]),
        ("x.bin", &["--format", "megatron", "--shape", "1,1,4", "--dtype", "i32"], &["has 12 bytes", "need 16"]),
        ("x.bin", &["--format", "megatron", "--shape", "1,4", "--dtype", "i32"], &["three numbers"]),
        ("x.bin", &["--format", "megatron", "--shape", "1,1,3", "--dtype", "f32"], &["u8, u16, i16, i32 or i64"]),
        ("x.npy", &[], &["x.npy", "header"]),
        ("x.txt", &["--format", "prime-rl", "--shape", "1,1,3", "--dtype", "u8"], &["character '*' at 3"]),
        ("x.txt", &["--format", "sglang", "--shape", "1,1,3", "--start-len", "99999"], &["has 3 bytes"]),
        ("x.safetensors", &[], &["no tensor of recorded experts", "routes_old, routes_rollout"]),
        ("x.safetensors", &["--tensor", "routes_old"], &["f32 [1, 1, 2]", "needs integers [rows, layers, k]"]),
        ("x.safetensors", &["--tensor", "other"], &["no tensor other"]),
    ];
    for (name, options, needles) in table {
        assert_refused(&format!("{name} {options:?}"), inspect(&folder, name, options), needles);
    }
    folder.write("y.npy", &npy("|u1", "(2, 2, 2)", &[0, 1, 2, 3, 0, 1, 2, 3]));
    for (options, needle) in [
        (&["--experts", "9999"][..], "experts: are 9999, need 1 to 4096"),
        (&["--top-k", "3"], "has 2 ids per token and layer, needs 3 chosen"),
        (&["--hidden-layers", "9"], "the payload has 2, needs all 9 hidden layers"),
        (&["--dense-first", "1"], "--hidden-layers"),
    ] {
        assert_refused(needle, inspect(&folder, "y.npy", options), &[needle]);
    }
}
