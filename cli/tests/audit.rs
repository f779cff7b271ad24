//! `moerl audit`: nothing is found in sound files, and in a file spoiled on purpose the planted fault and nothing else.

mod common;

use common::{Draft, Folder, assert_refused, data, moerl, process, small};
use moerl::element::bf16;
use serde_json::Value;

/// The verdicts on a draft: name and tensor.
fn verdicts(draft: &Draft) -> Vec<(String, String)> {
    let folder = Folder::new();
    let path = folder.write("x.safetensors", &draft.bytes());
    let outcome = moerl(&["audit", "--backend", "reference", "--json", path.to_str().unwrap()]).unwrap();
    assert_eq!(outcome.exit_code, 0);
    named(&serde_json::from_str(&outcome.text).unwrap())
}

fn named(audit: &Value) -> Vec<(String, String)> {
    let dangers = audit["files"][0]["dangers"].as_array().unwrap();
    let text = |danger: &Value, key: &str| danger[key].as_str().unwrap().to_owned();
    dangers.iter().map(|danger| (text(danger, "verdict"), text(danger, "tensor"))).collect()
}

/// The shipped file without what an audit of log-probabilities and routes does not read.
fn shipped() -> Draft {
    let mut draft = Draft::of(&data("step.safetensors"));
    let logprobs = draft.values::<f32>("logp_new");
    // Log-probabilities in place of logits, so that a test takes milliseconds.
    draft.remove("logits").remove("logits_bf16").set("logprobs", &[860], &logprobs);
    draft
}

/// A generated file: longer segments, more layers.
fn generated(more: &str) -> Draft {
    let folder = Folder::new();
    let path = folder.path("x.safetensors");
    let sizes = "--tokens 6000 --vocab 400 --experts 32 --layers 3 --top-k 4 --seed 3 --no-logits";
    let arguments: Vec<&str> =
        ["generate"].into_iter().chain(sizes.split(' ')).chain(more.split_whitespace()).collect();
    moerl(&[&arguments[..], &[path.to_str().unwrap()]].concat()).unwrap();
    let mut draft = Draft::of(&path);
    for (name, alias) in
        [("old_logprobs", "logp_old"), ("rollout_logprobs", "logp_rollout"), ("ref_logprobs", "logp_ref")]
    {
        draft.piece(name).name = alias.into();
    }
    draft
}

fn map(draft: &mut Draft, name: &str, change: impl Fn(usize, f32) -> f32) {
    let values: Vec<f32> = draft.values::<f32>(name).iter().enumerate().map(|(u, &x)| change(u, x)).collect();
    draft.overwrite(name, &values);
}

/// Row `u`, layer `l`, slot `j` of the recorded experts becomes `change(u, l, j)`, in the old recording where it does not say.
fn reroute(draft: &mut Draft, change: impl Fn(&dyn Fn(usize, usize, usize) -> u8, usize, usize, usize) -> u8) {
    let ids = draft.values::<u8>("routes_rollout");
    let [n, layers, k] = draft.piece("routes_rollout").shape[..] else { panic!("three dimensions") };
    let old = |u: usize, l: usize, j: usize| ids[((u % n) * layers + l % layers) * k + j];
    let mut new = Vec::with_capacity(ids.len());
    for u in 0..n {
        for l in 0..layers {
            new.extend((0..k).map(|j| change(&old, u, l, j)));
        }
    }
    draft.overwrite("routes_rollout", &new);
}

fn offsets(draft: &mut Draft) -> Vec<usize> {
    draft.values::<i32>("cu_seqlens").iter().map(|&end| end as usize).collect()
}

#[test]
fn sound_files_have_no_danger() {
    assert_eq!(verdicts(&shipped()), []);
    assert_eq!(verdicts(&generated("")), []);
    assert_eq!(verdicts(&small()), []);
    let mut draft = small();
    for name in ["old_logprobs", "rollout_logprobs", "ref_logprobs", "router_logits", "routes_rollout"] {
        draft.remove(name);
    }
    assert_eq!(verdicts(&draft), []);
}

#[test]
fn a_spoiled_file_gets_the_verdict_on_what_was_planted_and_no_other() {
    type Spoil = fn(&mut Draft);
    let table: &[(&str, &str, Spoil)] = &[
        ("bf16 log-probabilities", "old_logprobs", |d| {
            map(d, "logp_old", |_, x| bf16::from_f32(x).to_f32());
        }),
        ("bf16 log-probabilities", "rollout_logprobs", |d| {
            map(d, "logp_rollout", |_, x| bf16::from_f32(x).to_f32());
        }),
        ("kept-mass bias", "rollout_logprobs", |d| {
            map(d, "logp_rollout", |_, x| x - 0.9_f32.ln());
        }),
        ("log-probabilities shifted by one", "rollout_logprobs", |d| {
            let mut values = d.values::<f32>("logp_rollout");
            values.rotate_left(1);
            d.overwrite("logp_rollout", &values);
        }),
        ("log-probabilities shifted by one", "rollout_logprobs", |d| {
            let mut values = d.values::<f32>("logp_rollout");
            values.rotate_right(1);
            d.overwrite("logp_rollout", &values);
        }),
        ("routes shifted by one token", "routes_rollout", |d| {
            reroute(d, |old, u, l, j| old(u + 1, l, j));
        }),
        ("routes shifted by one token", "routes_rollout", |d| {
            let n = d.piece("routes_rollout").shape[0];
            reroute(d, |old, u, l, j| old(u + n - 1, l, j));
        }),
        ("routes shifted by one layer", "routes_rollout", |d| {
            reroute(d, |old, u, l, j| old(u, l + 1, j));
        }),
        ("routes shifted by one layer", "routes_rollout", |d| {
            let layers = d.piece("routes_rollout").shape[1];
            reroute(d, |old, u, l, j| old(u, l + layers - 1, j));
        }),
        ("duplicate or out-of-range experts, all-zero layers", "routes_rollout", |d| {
            reroute(d, |old, u, l, j| old(u, l, if (u, l, j) == (100, 1, 2) { 1 } else { j }));
        }),
        ("duplicate or out-of-range experts, all-zero layers", "routes_rollout", |d| {
            reroute(d, |old, u, l, j| if (u, l, j) == (100, 1, 2) { 32 } else { old(u, l, j) });
        }),
        ("duplicate or out-of-range experts, all-zero layers", "routes_rollout", |d| {
            reroute(d, |old, u, l, j| if (u, l, j) == (100, 1, 2) { 255 } else { old(u, l, j) });
        }),
        ("duplicate or out-of-range experts, all-zero layers", "routes_rollout", |d| {
            reroute(d, |old, u, l, j| if l == 1 { 0 } else { old(u, l, j) });
        }),
        ("missing last row", "routes_rollout", |d| {
            let ends = offsets(d);
            reroute(d, |old, u, l, j| if ends.contains(&(u + 1)) { 0 } else { old(u, l, j) });
        }),
        ("missing last row", "routes_rollout", |d| {
            let ends = offsets(d);
            reroute(d, |old, u, l, j| if ends.contains(&(u + 1)) { 255 } else { old(u, l, j) });
        }),
        ("non-finite values at counted tokens", "rollout_logprobs", |d| {
            map(d, "logp_rollout", |u, x| if u % 100 == 0 { f32::NAN } else { x });
        }),
        ("non-finite values at counted tokens", "old_logprobs", |d| {
            d.poke("logp_old", 1, f32::NEG_INFINITY);
        }),
        ("non-finite values at counted tokens", "router_logits", |d| {
            d.poke("router_logits", 32, f32::NAN);
        }),
    ];
    // Sixteen nats in a response's length: what a temperature forgotten in one engine does.
    let heavy: Spoil = |d| {
        let mask = d.values::<u8>("loss_mask");
        let ends = offsets(d);
        map(d, "logp_rollout", |u, x| {
            let segment = ends.iter().filter(|&&end| end <= u).count();
            if mask[u] != 0 && segment % 3 == 0 { x - 0.4 } else { x }
        });
    };
    for sound in [shipped, || generated("")] {
        for (verdict, tensor, spoil) in
            table.iter().chain([&("mismatch large for sequence weights", "rollout_logprobs", heavy)])
        {
            let mut draft = sound();
            spoil(&mut draft);
            assert_eq!(verdicts(&draft), [((*verdict).to_owned(), (*tensor).to_owned())], "{verdict}");
        }
    }
}

#[test]
fn two_faults_are_two_verdicts() {
    let mut draft = shipped();
    draft.poke("logp_rollout", 3, f32::NAN);
    map(&mut draft, "logp_old", |_, x| bf16::from_f32(x).to_f32());
    reroute(&mut draft, |old, u, l, j| old(u, l + 1, j));
    let expected = [
        ("non-finite values at counted tokens", "rollout_logprobs"),
        ("bf16 log-probabilities", "old_logprobs"),
        ("routes shifted by one layer", "routes_rollout"),
    ];
    assert_eq!(verdicts(&draft), expected.map(|(verdict, tensor)| (verdict.to_owned(), tensor.to_owned())));
}

#[test]
fn data_that_a_step_refuses_is_reported_and_what_a_masked_token_holds_is_not() {
    // Token 2 is masked, token 1 is not; rows of logits have 5 columns, of router logits 4, of routes 2 × 2.
    let mut draft = small();
    draft.poke("logits", 5 * 2, f32::NAN).poke("old_logprobs", 2, f32::NAN).poke("router_logits", 4 * 2, f32::INFINITY);
    draft.poke("tokens", 2, -7_i32);
    assert_eq!(verdicts(&draft), []);
    let mut draft = small();
    draft.poke("logits", 5, f32::NAN).poke("tokens", 4, 99_i32).poke("router_logits", 4, f32::NAN);
    draft.poke("loss_mask", 0, 7_u8).poke("routes_rollout", 0, 9_u8);
    let found = verdicts(&draft);
    let tensors: Vec<&str> = found.iter().map(|(_, tensor)| tensor.as_str()).collect();
    assert_eq!(tensors, ["logits", "router_logits", "routes_rollout"]);
    // Everything masked, and nothing at all.
    let mut draft = small();
    draft.set("loss_mask", &[6], &[0_u8; 6]);
    assert_eq!(verdicts(&draft), []);
    let mut draft = Draft { tensors: Vec::new() };
    draft.set::<i32>("tokens", &[0], &[]).set("cu_seqlens", &[1], &[0_i32]).set::<f32>("logprobs", &[0], &[]);
    draft.set::<f32>("advantage", &[0], &[]).set::<f32>("router_logits", &[3, 0, 4], &[]);
    draft.set::<u8>("routes_rollout", &[0, 3, 2], &[]).set::<f32>("old_logprobs", &[0], &[]);
    draft.set::<f32>("rollout_logprobs", &[0], &[]);
    assert_eq!(verdicts(&draft), []);
}

#[test]
fn the_statistics_are_those_of_a_step() {
    let path = data("step.safetensors");
    let outcome = moerl(&["audit", "--backend", "reference", "--json", path.to_str().unwrap()]).unwrap();
    let audit: Value = serde_json::from_str(&outcome.text).unwrap();
    let file = &audit["files"][0];
    let close = |what: &str, found: &Value, expected: f64, relative: f64| {
        let found = found.as_f64().unwrap_or(f64::NAN);
        assert!((found - expected).abs() <= relative * expected.abs(), "{what}: {found}, expected {expected}");
    };
    // Stated with the file, by its maker's own programs.
    close("mismatch k3", &file["statistics"]["mismatch_kl"]["k3"], 0.0005329793082501606, 1e-4);
    close("the operation's k3", &file["policies"]["mismatch"]["mismatch_k3"], 0.0005329793082501606, 1e-4);
    close("smallest ratio", &file["policies"]["ratio"]["sequence_ratio"]["min"], 0.791747044374533, 1e-6);
    close("old against today's choice", &file["routes"][1]["changed"], 305.0 / 3440.0, 1e-12);
    close("tokens with a changed set", &file["routes"][1]["changed_tokens"], 248.0 / 860.0, 1e-12);
    let positions = file["mismatch_by_position"].as_array().unwrap();
    assert_eq!(positions.iter().map(|bin| bin["tokens"].as_u64().unwrap()).sum::<u64>(), 776);
    for layer in file["routes"][0]["layers"].as_array().unwrap() {
        let load: u64 = layer["load"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!((load, layer["rows"]["recorded"].as_u64()), (860 * 4, Some(860)));
    }
    let bins = file["policies"]["by_route_change"].as_array().unwrap();
    assert_eq!(bins.iter().map(|bin| bin["tokens"].as_u64().unwrap()).sum::<u64>(), 776);
}

#[cfg(feature = "emulate")]
#[test]
fn the_emulated_kernels_find_what_the_reference_finds() {
    let path = data("step.safetensors");
    let audit = |backend: &str| -> Value {
        let outcome = moerl(&["audit", "--backend", backend, "--json", path.to_str().unwrap()]).unwrap();
        serde_json::from_str(&outcome.text).unwrap()
    };
    let (exact, found) = (audit("reference"), audit("emulator"));
    assert_eq!(named(&found), []);
    for routes in 0..2 {
        assert_eq!(found["files"][0]["routes"][routes]["changed"], exact["files"][0]["routes"][routes]["changed"]);
    }
    let k3 = |audit: &Value| audit["files"][0]["policies"]["mismatch"]["mismatch_k3"].as_f64().unwrap();
    // f32 sums of terms of order 1e-4.
    assert!((k3(&found) - k3(&exact)).abs() <= 1e-5 * k3(&exact));
}

#[test]
fn a_person_can_read_it_and_many_files_end_in_a_line_each() {
    let folder = Folder::new();
    let mut draft = shipped();
    let sound = folder.write("sound.safetensors", &draft.bytes());
    reroute(&mut draft, |old, u, l, j| old(u, l + 1, j));
    let spoiled = folder.write("spoiled.safetensors", &draft.bytes());
    let files = [sound.to_str().unwrap(), spoiled.to_str().unwrap()];
    let outcome = moerl(&["audit", "--backend", "reference", files[0], files[1]]).unwrap();
    let text = outcome.text;
    for needle in [
        "reference: plain f64 loops",
        "860 tokens, 776 counted, in 24 sequences",
        "effective sample size",
        "no danger found",
        "DANGER  routes shifted by one layer: routes_rollout",
        "█",
    ] {
        assert!(text.contains(needle), "no `{needle}` in\n{text}");
    }
    let tail: Vec<&str> = text.lines().rev().take(2).collect();
    assert!(tail[1].contains("sound.safetensors") && tail[1].ends_with("none"), "{text}");
    assert!(tail[0].contains("spoiled.safetensors") && tail[0].ends_with("routes shifted by one layer"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 200), "{text}");
}

#[test]
fn exit_codes_are_0_for_an_audit_1_on_request_and_2_for_what_is_no_step_file() {
    let folder = Folder::new();
    let mut draft = small();
    draft.poke("routes_rollout", 0, 9_u8);
    let path = folder.write("x.safetensors", &draft.bytes());
    let path = path.to_str().unwrap();
    assert_eq!(process(&["audit", path]).status.code(), Some(0));
    assert_eq!(process(&["audit", "--strict", path]).status.code(), Some(1));
    let sound = folder.write("sound.safetensors", &small().bytes());
    assert_eq!(process(&["audit", "--strict", sound.to_str().unwrap()]).status.code(), Some(0));
    let damaged = folder.write("damaged.safetensors", &small().bytes()[..300]);
    let damaged = damaged.to_str().unwrap();
    assert_refused(
        "a damaged file behind a sound one",
        moerl(&["audit", path, damaged]),
        &["damaged.safetensors", "truncated"],
    );
    assert_refused("no file", moerl(&["audit"]), &["IN"]);
    assert_refused("a gate of nobody's", moerl(&["audit", "--gate", "gpt9", path]), &["gpt9"]);
}
