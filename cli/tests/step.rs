//! `moerl step`: the figures of the shipped update, what it refuses, what it writes, and how much memory it takes.

mod common;

use common::{Draft, Folder, assert_refused, close, data, moerl, process, shipped, small, step};
use moerl::element::f16;
use moerl_cli::step::Report;
use moerl_cli::stepfile::{Container, StepFile};
use proptest::prelude::*;
use serde_json::Value;

/// The figures that the golden vectors state for the shipped file: the paper's objective over non-empty sequences, and the statistics
/// that its maker measured.
fn assert_figures(report: &Report) {
    close("loss", report.loss, -0.04882187804703956 * 24.0 / 23.0, 2e-6);
    let objective = report.objective.as_ref().unwrap();
    assert_eq!((objective.tokens, objective.segments, objective.empty_segments), (776, 23, 1));
    close("clipped", objective.sequence_clip_fraction.unwrap().any, 0.7391304347826086, 1e-12);
    let ratio = objective.sequence_ratio.unwrap();
    close("smallest ratio", ratio.min, 0.791747044374533, 1e-6);
    close("largest ratio", ratio.max, 1.2615805128781696, 1e-6);
    close("mean of -Δ", objective.policy_kl_k1.unwrap(), 0.05251991198979778, 1e-5);
    let mismatch = report.statistics.mismatch_kl.unwrap();
    // The sign convention of the producer: rollout less old, so k1 is the negative mean log-ratio either way.
    close("mismatch k3", mismatch.k3, 0.0005329793082501606, 1e-4);
    close("mismatch k1", mismatch.k1, 0.001795620811700763, 1e-4);
    let changed = report.changed.as_ref().unwrap();
    assert_eq!(changed.by_layer.len(), 4);
}

#[test]
fn the_shipped_update_has_its_known_figures_on_the_reference() {
    let report = shipped(&["--backend", "reference", "--replay", "old"]);
    assert_figures(&report);
    // Measured when the file was made, over all 860 rows: old routes against those of the current policy.
    let changed = report.changed.unwrap();
    close("expert sets changed", changed.share(), 305.0 / 3440.0, 1e-12);
    close("tokens with a changed set", changed.any_layer, 248.0 / 860.0, 1e-12);
    assert!(report.exact.is_none());
}

#[cfg(feature = "emulate")]
#[test]
fn the_shipped_update_has_its_known_figures_on_the_emulated_kernels() {
    let report = shipped(&["--backend", "emulator"]);
    assert_figures(&report);
    let exact = report.exact.as_ref().unwrap();
    close("loss against the reference", report.loss, exact.0, 2e-6);
    assert_eq!(report.stages.len(), 7);
    for stage in &report.stages {
        for (quantity, by) in &stage.differences {
            // Everything is of order 1 and computed in f32 from the same inputs.
            assert!(*by <= 1e-5, "{}: {quantity} {by}", stage.name);
        }
        for (quantity, rows) in &stage.rows_that_differ {
            assert_eq!(*rows, 0, "{}: {quantity}", stage.name);
        }
    }
    let text = report.render();
    assert!(text.contains("emulator") && text.contains("largest difference from the reference"), "{text}");
}

#[test]
fn a_person_can_read_the_table() {
    let text = shipped(&["--backend", "reference"]).render();
    for needle in [
        "reference: plain f64 loops",
        "860 tokens, 776 counted, in 24 sequences",
        "gspo",
        "gate, replay",
        "logprob backward",
        "loss",
        "clipped share of sequences",
        "ratio by token",
        "KL old to current",
        "effective sample size",
        "expert sets changed",
        "█",
    ] {
        assert!(text.contains(needle), "no `{needle}` in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 140), "{text}");
}

#[test]
fn every_objective_and_option_runs_and_means_what_it_says() {
    let loss = |arguments: &[&str]| shipped(&[&["--backend", "reference"], arguments].concat()).loss;
    // Golden losses of the same file: verl and TRL with their denominators.
    close("verl vanilla", loss(&["--objective", "dapo", "--preset", "verl"]), -0.019318807996856396, 2e-6);
    close(
        "verl gspo",
        loss(&["--objective", "gspo", "--preset", "verl", "--aggregation", "token-mean"]),
        0.02968728353711237,
        2e-6,
    );
    close(
        "trl grpo",
        loss(&["--objective", "grpo", "--preset", "trl", "--clip-high", "0.28"]),
        -0.09459443633404219,
        2e-6,
    );
    close("gspo-token", loss(&["--objective", "gspo-token"]), -0.04882187804703956 * 24.0 / 23.0, 2e-6);
    let sum = loss(&["--objective", "dr-grpo"]);
    close("max-len", loss(&["--objective", "dr-grpo", "--max-len", "192"]), sum / 2.0, 1e-12);
    assert_ne!(loss(&["--anchor", "rollout"]), loss(&[]));
    assert_ne!(loss(&["--objective", "grpo", "--dual-clip", "1.1"]), loss(&["--objective", "grpo"]));
    assert!(loss(&["--aggregation", "prompt-mean"]).is_finite());
    assert!(loss(&["--replay", "none", "--gate", "sigmoid", "--renormalize", "exact", "--scale", "2.5"]).is_finite());
    assert!(loss(&["--gate", "sigmoid", "--groups", "8", "--topk-groups", "4", "--group-top", "2"]).is_finite());
    assert!(loss(&["--temperature", "0.7"]).is_finite());
}

#[test]
fn a_correction_weights_the_loss_as_verl_does() {
    let loss =
        |arguments: &[&str]| shipped(&[&["--backend", "reference", "--preset", "verl"], arguments].concat()).loss;
    // Golden losses of the same file with verl's token weights, truncated at 2.
    let vanilla = ["--objective", "dapo", "--correction", "tis=2"];
    close("vanilla", loss(&vanilla), -0.01736447743649369, 2e-6);
    let gspo = ["--objective", "gspo", "--aggregation", "token-mean", "--correction", "tis=2"];
    close("gspo", loss(&gspo), 0.03131301666696384, 2e-6);
    let dapo = |terms: &str| loss(&["--objective", "dapo", "--correction", terms]);
    // What a veto rejects loses its value; what none rejects keeps it.
    close("no veto", dapo("veto=0.00001"), loss(&["--objective", "dapo"]), 1e-12);
    assert_ne!(dapo("veto=0.8"), loss(&["--objective", "dapo"]));
    for terms in
        ["icepop-sequence=0.5_2,normalise", "snis", "metropolis=7", "seq-mask-tis=0.99_1.01", "opsm=0.001,tis=2"]
    {
        assert!(dapo(terms).is_finite(), "{terms}");
    }
    let refused = step(&small(), &["--anchor", "rollout", "--correction", "tis=2"]).unwrap_err().to_string();
    assert!(refused.contains("corrects twice"), "{refused}");
    let mut draft = small();
    draft.remove("rollout_logprobs");
    let refused = step(&draft, &["--correction", "tis=2"]).unwrap_err().to_string();
    assert!(refused.contains("rollout_logprobs: missing"), "{refused}");
}

#[test]
fn without_old_log_probabilities_every_ratio_is_1_and_the_table_says_so() {
    let mut draft = small();
    draft.remove("old_logprobs").remove("rollout_logprobs").remove("routes_rollout");
    let text = step(&draft, &["--top-k", "2"]).unwrap().text;
    assert!(text.contains("first on-policy step") && text.contains("1.0000 to 1.0000"), "{text}");
    assert!(text.contains("nothing replayed"), "{text}");
    let mut draft = small();
    draft.remove("router_logits").remove("routes_rollout");
    assert!(step(&draft, &[]).unwrap().text.contains("no router_logits"));
}

#[test]
fn a_router_bias_makes_the_gate_a_sigmoid_and_the_table_says_so() {
    let mut draft = small();
    draft.set("router_bias", &[2, 4], &[0.1_f32, 0.0, -0.1, 0.0, 9.0, 9.0, 0.0, 0.0]);
    let text = step(&draft, &[]).unwrap().text;
    assert!(text.contains("sigmoid with the file's router_bias"), "{text}");
}

#[test]
fn the_output_file_holds_every_result() {
    let folder = Folder::new();
    let out = folder.path("out.safetensors");
    let report = shipped(&["--backend", "reference", "--out", out.to_str().unwrap(), "--with-d-logits"]);
    let file = Container::open(&out).unwrap();
    let shapes: [(&str, &[usize]); 13] = [
        ("logprobs", &[860]),
        ("entropy", &[860]),
        ("advantages", &[860]),
        ("correction_weights", &[860]),
        ("d_logprobs", &[860]),
        ("sequence_ratio", &[24]),
        ("sequence_clipped", &[24]),
        ("loss", &[1]),
        ("d_logits", &[860, 1536]),
        ("native_topk_ids", &[4, 860, 4]),
        ("native_topk_weights", &[4, 860, 4]),
        ("replay_topk_ids", &[4, 860, 4]),
        ("replay_topk_weights", &[4, 860, 4]),
    ];
    assert_eq!(file.names().len(), shapes.len());
    for (name, shape) in shapes {
        assert_eq!(file.tensor(name).unwrap().shape, shape, "{name}");
    }
    let all = |name: &str| file.tensor(name).unwrap().all::<f32>().into_owned();
    assert_eq!(all("loss"), [report.loss as f32]);

    let input = StepFile::open(&data("step.safetensors")).unwrap();
    let mask = input.loss_mask();
    let (advantages, weights, gradient) = (all("advantages"), all("correction_weights"), all("d_logprobs"));
    for u in 0..860 {
        assert_eq!(weights[u], f32::from(mask[u]), "{u}");
        assert!(mask[u] == 1 || (advantages[u] == 0.0 && gradient[u] == 0.0), "{u}");
    }
    // Log-probabilities stand there for masked tokens too.
    let expected = input.tensor("logp_new").unwrap().all::<f32>();
    for (u, (found, expected)) in all("logprobs").iter().zip(expected.iter()).enumerate() {
        close(&format!("logprob {u}"), (*found).into(), (*expected).into(), 2e-6);
    }
    // Sequence 19 is fully masked.
    let clipped = file.tensor("sequence_clipped").unwrap().all::<u8>();
    assert_eq!((all("sequence_ratio")[19], clipped[19]), (1.0, 0));
    assert_eq!(clipped.iter().filter(|&&c| c == 1).count(), 17);
    // The rows of d_logits: gradient times (one at the token less probability) sums to 0, and vanishes where the gradient does.
    for (u, row) in all("d_logits").chunks(1536).enumerate() {
        let (sum, largest) =
            row.iter().fold((0.0, 0.0_f64), |(s, m), &g| (s + f64::from(g), m.max(f64::from(g).abs())));
        assert!(sum.abs() <= 1e-4 * largest, "{u}: {sum}");
        assert_eq!(largest > 0.0, gradient[u] != 0.0, "{u}");
    }
    // Replayed ids are the recorded ones, in their order.
    let replayed = file.tensor("replay_topk_ids").unwrap().all::<i32>();
    let routes = input.tensor("routes_rollout").unwrap().all::<u8>();
    for layer in 0..4 {
        for u in 0..860 {
            let recorded: Vec<i32> = routes[(u * 4 + layer) * 4..][..4].iter().map(|&id| id.into()).collect();
            assert_eq!(replayed[(layer * 860 + u) * 4..][..4], recorded, "{layer} {u}");
        }
    }
    let diagnostics: Value = serde_json::from_str(&file.metadata().unwrap()["diagnostics"]).unwrap();
    assert_eq!(diagnostics["objective_diagnostics"]["tokens"], 776);
    assert_eq!(diagnostics["loss"].as_f64(), Some(report.loss));
    assert_eq!(diagnostics["routes_changed"]["by_layer"].as_array().unwrap().len(), 4);
}

#[test]
fn optional_results_are_absent_from_the_output_file() {
    let folder = Folder::new();
    let mut draft = small();
    draft.remove("logits").set("logprobs", &[6], &[-1.0_f32; 6]);
    let (input, out) = (folder.write("x.safetensors", &draft.bytes()), folder.path("out"));
    let arguments =
        ["step", input.to_str().unwrap(), "--backend", "reference", "--replay", "none", "--out", out.to_str().unwrap()];
    moerl(&arguments).unwrap();
    let names = Container::open(&out).unwrap().names();
    for absent in ["entropy", "d_logits", "replay_topk_ids"] {
        assert!(!names.contains(&absent.to_owned()), "{names:?}");
    }
    assert!(names.contains(&"native_topk_ids".to_owned()));
}

#[test]
fn other_types_of_logits_and_routes_run() {
    let mut draft = small();
    let logits: Vec<f16> = (0..30).map(|i| f16::from_f32((i as f32 * 0.7).sin())).collect();
    draft.set("logits", &[6, 5], &logits);
    let ids: Vec<u8> = draft.piece("routes_rollout").bytes.clone();
    step(&draft, &[]).unwrap();
    draft.set("routes_rollout", &[6, 2, 2], &ids.iter().map(|&id| id.into()).collect::<Vec<u16>>());
    step(&draft, &[]).unwrap();
    draft.set("routes_rollout", &[6, 2, 2], &ids.iter().map(|&id| id.into()).collect::<Vec<i16>>());
    step(&draft, &[]).unwrap();
    draft.set("routes_rollout", &[6, 2, 2], &ids.iter().map(|&id| id.into()).collect::<Vec<i32>>());
    step(&draft, &[]).unwrap();
}

#[test]
fn bad_values_at_counted_tokens_are_refused_and_at_masked_ones_legal() {
    type Spoil = fn(&mut Draft, usize);
    // Token 2 is masked, token 1 and 4 are not; rows of logits have 5 columns, of router logits 4, of routes 2 × 2.
    let table: &[(&str, Spoil, &[&str])] = &[
        (
            "token outside",
            |d, u| {
                d.poke("tokens", u, 5_i32);
            },
            &["tokens: row", "names token 5", "5"],
        ),
        (
            "negative token",
            |d, u| {
                d.poke("tokens", u, -1_i32);
            },
            &["tokens: row", "-1"],
        ),
        (
            "NaN logit",
            |d, u| {
                d.poke("logits", 5 * u + 3, f32::NAN);
            },
            &["logits: row", "NaN or +inf", "--nonfinite"],
        ),
        (
            "infinite logit",
            |d, u| {
                d.poke("logits", 5 * u, f32::INFINITY);
            },
            &["logits: row"],
        ),
        (
            "empty row",
            |d, u| {
                (0..5).for_each(|j| {
                    d.poke("logits", 5 * u + j, f32::NEG_INFINITY);
                })
            },
            &["logits: row", "-inf"],
        ),
        (
            "NaN old",
            |d, u| {
                d.poke("old_logprobs", u, f32::NAN);
            },
            &["old_logprobs: token", "NaN", "--nonfinite"],
        ),
        (
            "positive old",
            |d, u| {
                d.poke("old_logprobs", u, 0.5_f32);
            },
            &["old_logprobs: token", "0.5", "at most 0"],
        ),
        (
            "expert outside",
            |d, u| {
                d.poke("routes_rollout", 4 * u + 3, 4_u8);
            },
            &["routes_rollout: row", "layer 1", "expert 4", "has 4"],
        ),
        (
            "expert twice",
            |d, u| {
                let id = d.piece("routes_rollout").bytes[4 * u];
                d.poke("routes_rollout", 4 * u + 1, id);
            },
            &["routes_rollout: row", "layer 0", "twice"],
        ),
        (
            "half a sentinel",
            |d, u| {
                d.poke("routes_rollout", 4 * u, 255_u8);
            },
            &["routes_rollout: row", "sentinel"],
        ),
        (
            "NaN router logit",
            |d, u| {
                d.poke("router_logits", 24 + 4 * u, f32::NAN);
            },
            &["router_logits: layer 1: row", "NaN"],
        ),
    ];
    for (what, spoil, needles) in table {
        for counted in [1, 4] {
            let mut draft = small();
            spoil(&mut draft, counted);
            let place = format!("{counted}");
            assert_refused(what, step(&draft, &[]), &[needles, &[place.as_str()][..]].concat());
            // A fault at a masked token in front of it hides nothing.
            spoil(&mut draft, 2);
            assert_refused(what, step(&draft, &[]), needles);
        }
        let mut draft = small();
        spoil(&mut draft, 2);
        if let Err(failure) = step(&draft, &[]) {
            panic!("{what} at a masked token: {failure}");
        }
    }
    let mut draft = small();
    draft.poke("loss_mask", 1, 7_u8);
    assert_refused("a mask of 7", step(&draft, &[]), &["loss_mask: token 1 is 7, needs 0 or 1"]);
}

#[test]
fn numbers_that_are_not_finite_can_be_run_on_request() {
    let mut draft = small();
    draft.poke("logits", 5 + 3, f32::NAN).poke("old_logprobs", 4, f32::NEG_INFINITY).poke("router_logits", 0, f32::NAN);
    for (rule, finite) in [("zero-weight", true), ("drop-segment", true), ("propagate", false)] {
        let text = step(&draft, &["--nonfinite", rule]).unwrap().text;
        assert!(text.contains("allowed by --nonfinite"), "{text}");
        let loss = text.lines().find(|line| line.starts_with("loss")).unwrap();
        assert_eq!(!loss.contains("NaN"), finite, "{rule}: {loss}");
    }
    // It allows numbers only: ids that do not exist stay refused, also behind a NaN.
    draft.poke("tokens", 3, 9_i32);
    assert_refused("a token outside", step(&draft, &["--nonfinite", "zero-weight"]), &["tokens: row 3"]);
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let table: &[(&[&str], &[&str])] = &[
        (&["--objective", "cispo"], &["cispo", "--cispo-cap"]),
        (&["--objective", "cispo", "--cispo-cap", "2"], &["window:LO,HI", "raw:MAX"]),
        (&["--objective", "cispo", "--cispo-cap", "raw:-1"], &["cispo_max", "-1"]),
        (&["--cispo-cap", "raw:2"], &["--cispo-cap", "gspo"]),
        (&["--objective", "sapo", "--clip-low", "0.1"], &["--clip-low", "sapo"]),
        (&["--objective", "cispo", "--cispo-cap", "raw:2", "--clip-high", "0.1"], &["--cispo-cap"]),
        (&["--objective", "gmpo", "--dual-clip", "2"], &["--dual-clip", "gmpo"]),
        (&["--tau-pos", "1"], &["--tau-pos", "gspo"]),
        (&["--objective", "sapo", "--tau-neg", "0"], &["tau_negative", "0"]),
        (&["--ratio-level", "sequence"], &["--ratio-level"]),
        (&["--penalty", "1"], &["--penalty", "square-penalty"]),
        (&["--objective", "clip-cov"], &["--cov-seed"]),
        (&["--objective", "kl-cov", "--cov-fraction", "2"], &["fraction", "2"]),
        (&["--objective", "reinforce-is"], &["--correction"]),
        (&["--kl", "k3"], &["--beta"]),
        (&["--kl", "k4", "--beta", "1"], &["k3-is-sequence"]),
        (&["--beta=-1"], &["kl_beta", "-1"]),
        (&["--entropy-coef=-1"], &["entropy_bonus", "-1"]),
        (&["--correction", "tis"], &["--correction"]),
        (&["--clip-low=-1"], &["clip_low", "-1"]),
        (&["--clip-high=nan"], &["clip_high"]),
        (&["--dual-clip", "0.5"], &["dual_clip", "0.5"]),
        (&["--dual-clip", "2", "--delta", "2"], &["--delta"]),
        (&["--temperature", "0"], &["temperature"]),
        (&["--gate", "gpt9"], &["--gate gpt9", "qwen3"]),
        (&["--gate", "deepseek_v3"], &["groups"]),
        (&["--renormalize", "half"], &["half", "add-eps"]),
        (&["--replay", "old"], &["routes_old: missing"]),
        (&["--top-k", "9", "--replay", "none"], &["top_k", "9"]),
        (&["--top-k", "1"], &["routes_rollout: names 2", "chooses 1"]),
        (&["--with-d-logits"], &["--out"]),
        (&["--groups", "2"], &["--topk-groups"]),
        (&["--groups", "3", "--topk-groups", "1"], &["groups", "divide the 4 experts"]),
    ];
    for (arguments, needles) in table {
        assert_refused(&format!("{arguments:?}"), step(&small(), arguments), needles);
    }
    let mut draft = small();
    draft.remove("rollout_logprobs");
    assert_refused("no anchor", step(&draft, &["--anchor", "rollout"]), &["rollout_logprobs: missing"]);
    draft.remove("routes_rollout");
    assert_refused("no k", step(&draft, &[]), &["--top-k"]);
}

#[test]
fn everything_masked_and_nothing_at_all_are_updates_of_zero() {
    let mut draft = small();
    draft.set("loss_mask", &[6], &[0_u8; 6]);
    let text = step(&draft, &[]).unwrap().text;
    assert!(text.lines().any(|line| line.starts_with("loss") && line.trim_end().ends_with('0')), "{text}");

    let mut draft = Draft { tensors: Vec::new() };
    draft.set::<i32>("tokens", &[0], &[]).set("cu_seqlens", &[1], &[0_i32]).set::<f32>("logprobs", &[0], &[]);
    draft.set::<f32>("advantage", &[0], &[]);
    step(&draft, &[]).unwrap();
    draft.set::<f32>("logits", &[0, 7], &[]).set::<f32>("router_logits", &[3, 0, 4], &[]);
    draft.set::<u8>("routes_rollout", &[0, 3, 2], &[]).set::<f32>("old_logprobs", &[0], &[]);
    step(&draft, &[]).unwrap();

    let mut draft = small();
    draft.set::<f32>("router_logits", &[0, 6, 4], &[]).set::<u8>("routes_rollout", &[6, 0, 2], &[]);
    step(&draft, &[]).unwrap();
    draft.set("cu_seqlens", &[6], &[0_i32, 0, 4, 4, 6, 6]).set("group", &[5], &[1_i32, 2, 1, 1, 1]);
    draft.set("reward", &[5], &[f32::NAN, 1.0, 0.5, 0.0, 2.0]);
    step(&draft, &[]).unwrap();
}

#[test]
fn a_damaged_file_is_exit_code_2_and_one_line_for_the_process_too() {
    let folder = Folder::new();
    let path = folder.write("x.safetensors", &small().bytes()[..300]);
    let output = process(&["step", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("x.safetensors") && line.contains("truncated"), "{line}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_may_be_wrong_and_nothing_crashes(
        wrong in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        nonfinite in any::<bool>(),
    ) {
        let mut bytes = small().bytes();
        for (at, value) in wrong {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let folder = Folder::new();
        let path = folder.write("x.safetensors", &bytes);
        let mut arguments = vec!["step", path.to_str().unwrap(), "--backend", "reference"];
        arguments.extend(nonfinite.then_some("--nonfinite=propagate"));
        if let Err(failure) = moerl(&arguments) {
            prop_assert_eq!(failure.exit_code(), 2, "{}", failure);
            prop_assert!(!failure.to_string().contains('\n'), "{}", failure);
        }
    }
}

/// The whole address space is limited to what the peak of resident memory may be: the file (which is mapped), 64 bytes a token, and
/// 256 MB.
#[cfg(target_os = "linux")]
#[test]
fn a_million_tokens_fit_in_little_more_than_the_file() {
    let folder = Folder::new();
    let (path, out) = (folder.path("x.safetensors"), folder.path("out"));
    let sizes = "--tokens 1000000 --vocab 50000 --experts 8 --layers 1 --top-k 2 --seed 4 --no-logits";
    moerl(&[&["generate"], &sizes.split(' ').collect::<Vec<_>>()[..], &[path.to_str().unwrap()]].concat()).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    let kilobytes = (bytes + 64 * 1_000_000 + (256 << 20)) / 1024;
    let output = common::limited(
        kilobytes,
        &["step", path.to_str().unwrap(), "--backend", "reference", "--out", out.to_str().unwrap()],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    assert!(String::from_utf8(output.stdout).unwrap().contains("1,000,000 tokens"));
}
