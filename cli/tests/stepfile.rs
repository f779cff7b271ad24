//! The step file's reader: damaged, truncated, lying and contradictory files are refused in one line, none of them crashes.

mod common;

use std::path::Path;

use common::{Draft, Folder, assert_refused, data, small};
use moerl::element::bf16;
use moerl_cli::failure::Failure;
use moerl_cli::stepfile::{AdvantageSource, Policy, PolicySource, Recorded, StepFile};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn open(bytes: &[u8]) -> Result<(Folder, StepFile), Failure> {
    let folder = Folder::new();
    let path = folder.write("x.safetensors", bytes);
    StepFile::open(&path).map(|file| (folder, file))
}

#[test]
fn the_shipped_file_says_what_it_holds() {
    let file = StepFile::open(&data("step.safetensors")).unwrap();
    assert_eq!((file.tokens, file.segments), (860, 24));
    assert_eq!(file.vocabulary, Some(1536));
    assert_eq!((file.router, file.chosen), (Some((4, 32)), Some(4)));
    assert_eq!(file.loss_mask().iter().filter(|&&m| m == 1).count(), 776);
    assert!(matches!(file.advantage(), Some(AdvantageSource::PerSegment(_))));
    assert!(matches!(file.policy(), Some(PolicySource::Logits(logits)) if logits.name == "logits"));
    assert_eq!(file.logprobs(Policy::Old).unwrap().len(), 860);
    assert_eq!(file.routes(Recorded::Rollout).unwrap().shape, [860, 4, 4]);
    assert!(file.ignored().contains(&"prompt_ids i32 [6, 16]".to_owned()), "{:?}", file.ignored());
    assert!(file.ignored().iter().any(|name| name.starts_with("logits_bf16")), "{:?}", file.ignored());
}

#[test]
fn aliases_optional_tensors_and_wide_offsets_are_read() {
    let mut draft = small();
    draft.piece("old_logprobs").name = "logp_old".into();
    draft.set("cu_seqlens", &[3], &[0_i64, 4, 6]).remove("loss_mask").remove("router_logits").remove("ref_logprobs");
    draft.remove("logits").set("logprobs", &[6], &[-1.0_f32; 6]).set("advantages", &[6], &[0.5_f32; 6]);
    let (_folder, file) = open(&draft.bytes()).unwrap();
    assert_eq!(file.offsets, [0, 4, 6]);
    assert_eq!(file.loss_mask().as_ref(), [1; 6]);
    assert!(file.logprobs(Policy::Old).is_some() && file.logprobs(Policy::Reference).is_none());
    assert!(matches!(file.policy(), Some(PolicySource::Logprobs(_))));
    assert!(matches!(file.advantage(), Some(AdvantageSource::PerToken(_))));
    assert_eq!(file.router, None);
}

#[test]
fn the_first_name_wins_over_its_alias_and_logits_over_logits_bf16() {
    let mut draft = small();
    draft.set("logp_old", &[3], &[0.0_f32; 3]).set("logits_bf16", &[1, 5], &[bf16::ONE; 5]);
    let (_folder, file) = open(&draft.bytes()).unwrap();
    assert_eq!(file.logprobs(Policy::Old).unwrap().len(), 6);
    assert!(matches!(file.policy(), Some(PolicySource::Logits(logits)) if logits.name == "logits"));
    assert_eq!(file.ignored().len(), 2);

    draft.remove("logits");
    assert_refused("bf16 logits of too few rows", open(&draft.bytes()), &["logits_bf16", "[1, 5]", "[N = 6, V]"]);
    draft.set("logits_bf16", &[6, 5], &[bf16::ONE; 30]);
    assert_eq!(open(&draft.bytes()).unwrap().1.vocabulary, Some(5));
}

#[test]
fn data_off_its_alignment_is_copied_not_refused() {
    let draft = small();
    let mut header = Value::Object(draft.header()).to_string();
    for _ in 0..8 {
        header.push(' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        draft.tensors.iter().for_each(|piece| bytes.extend(&piece.bytes));
        let (_folder, file) = open(&bytes).unwrap();
        assert_eq!(file.token_ids(1..4).as_ref(), [1, 2, 3]);
    }
}

#[test]
fn truncated_files_are_refused_wherever_they_end() {
    let whole = small().bytes();
    let header = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for length in (0..80).chain(header..header + 24).chain(whole.len() - 40..whole.len()) {
        assert_refused(&format!("{length} bytes"), open(&whole[..length]), &["truncated"]);
    }
}

#[test]
fn bytes_behind_the_last_tensor_are_refused() {
    let mut bytes = small().bytes();
    bytes.extend([0; 3]);
    assert_refused("three bytes too many", open(&bytes), &["3 bytes behind the last tensor"]);
}

#[test]
fn a_header_length_that_lies_allocates_nothing() {
    for (claim, needle) in
        [(u64::MAX, "100 MB"), (1 << 40, "100 MB"), (90_000_000, "truncated or damaged"), (3, "damaged header")]
    {
        let mut bytes = small().bytes();
        bytes[..8].copy_from_slice(&claim.to_le_bytes());
        assert_refused(&format!("a header of {claim} bytes"), open(&bytes), &[needle]);
    }
}

#[test]
fn what_is_no_file_is_refused() {
    assert_refused("a folder", StepFile::open(Folder::new().0.path()), &[]);
    assert_refused("nothing", StepFile::open(Path::new("/nonexistent/x")), &["cannot be opened"]);
    if Path::new("/dev/zero").exists() {
        assert_refused("an endless device", StepFile::open(Path::new("/dev/zero")), &["not a file"]);
    }
}

#[test]
fn headers_whose_numbers_contradict_each_other_name_the_tensor() {
    type Falsify = fn(&mut Map<String, Value>);
    let table: &[(&str, Falsify, &[&str])] = &[
        ("overlap", |h| h["cu_seqlens"]["data_offsets"] = json!([20, 32]), &["cu_seqlens", "overlaps"]),
        ("gap", |h| h["cu_seqlens"]["data_offsets"] = json!([28, 40]), &["cu_seqlens", "gap"]),
        ("backwards", |h| h["tokens"]["data_offsets"] = json!([24, 0]), &["tokens"]),
        ("out of range", |h| h["logits"]["data_offsets"] = json!([66, 1_u64 << 40]), &["logits", "ends at byte"]),
        ("u64::MAX", |h| h["logits"]["data_offsets"] = json!([66, u64::MAX]), &["logits", "ends at byte"]),
        ("shape too large", |h| h["logits"]["shape"] = json!([6, 50]), &["logits", "[6, 50]", "1200 bytes", "120"]),
        ("shape overflow", |h| h["logits"]["shape"] = json!([1_u64 << 40, 1_u64 << 40]), &["logits", "2^64"]),
        ("wider type", |h| h["tokens"]["dtype"] = json!("I64"), &["tokens", "i64", "48 bytes"]),
        ("unknown type", |h| h["tokens"]["dtype"] = json!("X9"), &["damaged header", "X9"]),
        ("negative shape", |h| h["tokens"]["shape"] = json!([-6]), &["damaged header"]),
        (
            "no offsets",
            |h| {
                h["tokens"].as_object_mut().unwrap().remove("data_offsets");
            },
            &["damaged header"],
        ),
        ("a list", |h| h["tokens"] = json!([1, 2]), &["damaged header"]),
    ];
    let draft = small();
    for (what, falsify, needles) in table {
        let mut header = draft.header();
        falsify(&mut header);
        assert_refused(what, open(&draft.bytes_under(&header)), needles);
    }
}

#[test]
fn tensors_that_do_not_fit_each_other_are_named_with_what_is_needed() {
    type Spoil = fn(&mut Draft);
    let table: &[(&str, Spoil, &[&str])] = &[
        (
            "no tokens",
            |d| {
                d.remove("tokens");
            },
            &["tokens: missing"],
        ),
        (
            "tokens of floats",
            |d| {
                d.set("tokens", &[6], &[0.0_f32; 6]);
            },
            &["tokens: holds f32, needs i32"],
        ),
        (
            "tokens of rank 2",
            |d| {
                d.piece("tokens").shape = vec![2, 3];
            },
            &["tokens: has shape [2, 3], needs [N]"],
        ),
        (
            "no offsets",
            |d| {
                d.remove("cu_seqlens");
            },
            &["cu_seqlens: missing"],
        ),
        (
            "empty offsets",
            |d| {
                d.set::<i32>("cu_seqlens", &[0], &[]);
            },
            &["cu_seqlens: is empty"],
        ),
        (
            "offsets from 1",
            |d| {
                d.poke("cu_seqlens", 0, 1_i32);
            },
            &["cu_seqlens: begins with 1, needs 0"],
        ),
        (
            "offsets decrease",
            |d| {
                d.poke("cu_seqlens", 1, 9_i32);
            },
            &["cu_seqlens: offset 2 is 6, less than 9"],
        ),
        (
            "offsets end early",
            |d| {
                d.poke("cu_seqlens", 2, 5_i32);
            },
            &["cu_seqlens: ends with 5, needs N = 6"],
        ),
        (
            "negative offsets",
            |d| {
                d.poke("cu_seqlens", 1, -4_i32);
            },
            &["cu_seqlens: offset 1 is -4"],
        ),
        (
            "short mask",
            |d| {
                d.set("loss_mask", &[5], &[1_u8; 5]);
            },
            &["loss_mask: has shape [5], needs [N = 6]"],
        ),
        (
            "mask of i32",
            |d| {
                d.set("loss_mask", &[6], &[1_i32; 6]);
            },
            &["loss_mask: holds i32, needs u8"],
        ),
        (
            "groups by token",
            |d| {
                d.set("group", &[6], &[0_i32; 6]);
            },
            &["group: has shape [6], needs [S = 2]"],
        ),
        (
            "no advantage",
            |d| {
                d.remove("reward");
            },
            &["advantages: missing", "reward"],
        ),
        (
            "reward without group",
            |d| {
                d.remove("group");
            },
            &["group: missing", "reward"],
        ),
        (
            "advantages in bf16",
            |d| {
                d.set("advantages", &[6], &[bf16::ONE; 6]);
            },
            &["advantages: holds bf16, needs f32"],
        ),
        (
            "no policy",
            |d| {
                d.remove("logits");
            },
            &["logits: missing", "logprobs"],
        ),
        (
            "logits short",
            |d| {
                d.set("logits", &[5, 5], &[0.0_f32; 25]);
            },
            &["logits: has shape [5, 5], needs [N = 6, V]"],
        ),
        (
            "logits in f64 bits",
            |d| {
                d.piece("logits").dtype = "F64".into();
                d.piece("logits").shape = vec![3, 5];
            },
            &["logits: holds f64"],
        ),
        (
            "no words",
            |d| {
                d.set::<f32>("logits", &[6, 0], &[]);
            },
            &["logits: has V = 0"],
        ),
        (
            "old short",
            |d| {
                d.set("old_logprobs", &[5], &[0.0_f32; 5]);
            },
            &["old_logprobs: has shape [5]"],
        ),
        (
            "alias short",
            |d| {
                d.remove("old_logprobs").set("logp_old", &[5], &[0.0_f32; 5]);
            },
            &["logp_old: has shape [5]"],
        ),
        (
            "router by token",
            |d| {
                d.piece("router_logits").shape = vec![6, 2, 4];
            },
            &["router_logits: has shape [6, 2, 4], needs [L, N = 6, E]"],
        ),
        (
            "no experts",
            |d| {
                d.set::<f32>("router_logits", &[2, 6, 0], &[]);
            },
            &["router_logits: has E = 0"],
        ),
        (
            "5000 experts",
            |d| {
                d.set("router_logits", &[1, 6, 5000], &[0.0_f32; 30_000]);
            },
            &["router_logits: has E = 5000", "4096"],
        ),
        (
            "routes of other layers",
            |d| {
                d.piece("routes_rollout").shape = vec![6, 1, 4];
            },
            &["routes_rollout: has shape [6, 1, 4], needs [N = 6, L = 2, k]"],
        ),
        (
            "more than all experts",
            |d| {
                d.set("routes_rollout", &[6, 2, 5], &[0_u8; 60]);
            },
            &["routes_rollout: has k = 5", "1 to 4"],
        ),
        (
            "routes of two k",
            |d| {
                d.set("routes_old", &[6, 2, 1], &[0_u8; 12]);
            },
            &["routes_old", "k = 2"],
        ),
        (
            "routes of floats",
            |d| {
                d.set("routes_rollout", &[6, 2, 2], &[0.0_f32; 24]);
            },
            &["routes_rollout: holds f32, needs u8 or u16 or i16 or i32"],
        ),
        (
            "bias by layer",
            |d| {
                d.set("router_bias", &[2], &[0.0_f32; 2]);
            },
            &["router_bias: has shape [2], needs [L = 2, E = 4]"],
        ),
        (
            "upstream of other k",
            |d| {
                d.set("d_topk_weights", &[2, 6, 3], &[0.0_f32; 36]);
            },
            &["d_topk_weights", "k = 2"],
        ),
    ];
    for (what, spoil, needles) in table {
        let mut draft = small();
        spoil(&mut draft);
        assert_refused(what, open(&draft.bytes()), needles);
    }
}

#[test]
fn every_fault_is_told_at_once() {
    let mut draft = small();
    draft.remove("reward").set("loss_mask", &[5], &[1_u8; 5]);
    assert_refused("two faults", open(&draft.bytes()), &["advantages: missing", "loss_mask: has shape [5]"]);
}

#[test]
fn names_that_would_break_the_line_are_escaped() {
    let mut header = small().header();
    header.insert("a\nb".into(), json!({"dtype": "F32", "shape": [1], "data_offsets": [5, 9]}));
    assert_refused("a line feed in a name", open(&small().bytes_under(&header)), &["a\\nb"]);
}

#[test]
fn no_tokens_at_all_is_a_step_file() {
    let mut draft = Draft { tensors: Vec::new() };
    draft.set::<i32>("tokens", &[0], &[]).set("cu_seqlens", &[1], &[0_i32]).set::<f32>("logprobs", &[0], &[]);
    draft.set::<f32>("advantage", &[0], &[]);
    let (_folder, file) = open(&draft.bytes()).unwrap();
    assert_eq!((file.tokens, file.segments), (0, 0));
}

/// A number that is likely to be near something that matters.
fn awkward() -> impl Strategy<Value = u64> {
    prop_oneof![0..64_u64, Just(u64::MAX), (0..64_u32).prop_map(|bit| 1 << bit), 0..2000_u64, any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_byte_of_the_file_may_be_wrong(at in 0..2000_usize, value in any::<u8>(), cut in proptest::option::of(0..2600_usize)) {
        let mut bytes = small().bytes();
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(cut.unwrap_or(usize::MAX));
        if let Err(failure) = open(&bytes) {
            prop_assert_eq!(failure.exit_code(), 2);
            prop_assert!(!failure.to_string().contains('\n'));
        }
    }

    #[test]
    fn any_number_of_the_header_may_lie(
        tensor in 0..11_usize,
        field in 0..3_usize,
        number in awkward(),
        drop_a_dimension in any::<bool>(),
    ) {
        let draft = small();
        let mut header = draft.header();
        let info = &mut header[&draft.tensors[tensor].name];
        match field {
            0 | 1 => info["data_offsets"][field] = json!(number),
            _ if drop_a_dimension => { info["shape"].as_array_mut().unwrap().pop(); }
            _ => info["shape"][0] = json!(number),
        }
        if let Err(failure) = open(&draft.bytes_under(&header)) {
            prop_assert_eq!(failure.exit_code(), 2);
            prop_assert!(!failure.to_string().contains('\n'));
        }
    }
}
