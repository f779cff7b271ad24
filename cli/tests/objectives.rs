//! `moerl step`: the objectives, presets and terms that its options name.

mod common;

use common::{Draft, assert_refused, close, data, shipped, small, step};

/// Golden losses of the same file, by the peers' own programs.
#[test]
fn objectives_have_the_losses_that_other_systems_state() {
    let table: &[(&str, f64)] = &[
        ("--preset verl --objective cispo --cispo-cap window:0.2,0.28", 0.06431987779004353),
        ("--preset verl --objective cispo --cispo-cap window:0.2,0.28 --correction tis=2", 0.05795690306238104),
        ("--preset verl --objective dppo-tv --clip-low 0.05 --clip-high 0.05", 0.0984520309229113),
        ("--preset verl --objective dppo-kl --clip-low 0.01 --clip-high 0.01", 0.09940485467795193),
        ("--preset verl --objective gpg", -0.15672151834031786),
        ("--preset verl --objective gpg --aggregation token-sum", -121.61589823208666),
        ("--preset verl --objective sapo", -0.2072932909782605),
        ("--preset verl --objective gmpo", -0.1022688544834971),
        ("--preset verl --objective gmpo --correction tis=2", -0.10100844929239705),
        ("--preset trl --objective cispo --cispo-cap raw:1.1", 0.05089492466545034),
        ("--preset trl --objective cispo --cispo-cap raw:1.1 --ratio-level sequence", 0.05268991654885455),
        ("--preset trl --objective sapo", -0.198656044480332),
        ("--preset trl --objective sapo --tau-pos 1 --tau-neg 1.05 --ratio-level sequence", -0.19916166410120442),
        ("--preset trl --objective vespo", 0.32295880408115596),
        ("--preset trl --objective luspo", 0.9598888343666339),
        ("--preset trl --objective dr-grpo --clip-high 0.28 --max-len 128", -0.004880011395039245),
        ("--preset trl --objective grpo --clip-high 0.28 --delta 1.5", -0.09474097785808382),
        ("--preset trl --objective grpo --clip-high 0.28 --beta 0.04", -0.08614233926032216),
        ("--preset trl --objective grpo --clip-high 0.28 --beta 0.04 --kl k3-is-token", -0.08652548574257074),
        ("--preset trl --objective gspo --beta 0.04 --kl k3-is-sequence", -0.04066851133487633),
        ("--preset liger --objective gspo --clip-low 0.01 --clip-high 0.015 --beta 0.04", -0.04586391523480415),
    ];
    for (arguments, expected) in table {
        let arguments: Vec<&str> =
            ["--backend", "reference", "--replay", "none"].into_iter().chain(arguments.split(' ')).collect();
        close(&format!("{arguments:?}"), shipped(&arguments).loss, *expected, 3e-6);
    }
}

#[test]
fn every_objective_preset_and_advantage_runs() {
    let mut draft = Draft::of(&data("step.safetensors"));
    let logprobs = draft.values::<f32>("logp_new");
    draft.remove("logits").remove("logits_bf16").remove("router_logits").set("logprobs", &[860], &logprobs);
    let loss = |arguments: &str| {
        let text = step(&draft, &arguments.split_whitespace().collect::<Vec<_>>()).unwrap().text;
        let line = text.lines().find(|line| line.starts_with("loss")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    let objectives = [
        "gspo",
        "gspo-token",
        "grpo",
        "bnpo",
        "dapo",
        "dr-grpo",
        "luspo",
        "cispo --cispo-cap raw:2",
        "gmpo",
        "sapo",
        "vespo",
        "dppo-tv",
        "dppo-kl",
        "minirl",
        "topr",
        "square-penalty --penalty 0.2",
        "gpg",
        "tis-loss",
        "reinforce-is --correction tis=2",
        "kl-cov --penalty 2 --cov-fraction 0.01",
        "clip-cov --cov-seed 1",
    ];
    for objective in objectives {
        for preset in ["moerl", "trl", "liger", "verl", "slime", "openrlhf", "nemo-rl", "skyrl", "areal", "prime"] {
            let anchored = preset == "skyrl" && objective.starts_with("dppo");
            assert!(loss(&format!("--objective {objective} --preset {preset}")).is_finite(), "{objective} {preset}");
            assert!(
                !anchored
                    || loss(&format!("--objective {objective} --preset skyrl"))
                        == loss(&format!("--objective {objective} --preset skyrl --anchor rollout")),
                "{objective}"
            );
        }
    }
    let advantages =
        ["group", "group --std off", "rloo", "opo", "batch-norm", "reinforce-pp --gamma 0.9", "reinforce-pp-baseline"];
    let mut losses: Vec<u64> =
        advantages.iter().map(|a| loss(&format!("--objective grpo --advantage {a}")).to_bits()).collect();
    losses.sort_unstable();
    losses.dedup();
    assert_eq!(losses.len(), advantages.len());
    // The file's own advantages are those of its rewards.
    close("from rewards", loss("--objective grpo --advantage group"), loss("--objective grpo"), 1e-5);
    // A bonus changes the loss by its weight times the mean entropy, and rejected tokens leave verl's denominators.
    assert_ne!(loss("--objective grpo --mismatch-penalty 1"), loss("--objective grpo"));
    assert_ne!(loss("--objective dapo --preset verl --correction veto=0.8"), loss("--objective dapo --preset verl"));
}

#[test]
fn an_entropy_bonus_reaches_the_logits() {
    let plain = shipped(&["--backend", "reference", "--replay", "none"]);
    let bonus = shipped(&["--backend", "reference", "--replay", "none", "--entropy-coef", "0.01"]);
    let objective = bonus.objective.as_ref().unwrap();
    // Each sequence's mean entropy, averaged over sequences.
    let entropy = -objective.entropy_loss / 0.01;
    assert!((3.0..5.5).contains(&entropy), "{entropy}");
    close("loss", bonus.loss, plain.loss + objective.entropy_loss, 1e-6);
    assert_ne!(plain.norms.last(), bonus.norms.last());
}

#[test]
fn what_is_legal_and_unusual_is_said() {
    let said = |arguments: &[&str]| step(&small(), arguments).unwrap().text;
    for (arguments, needle) in [
        (&["--clip-high", "0.2"][..], "unusual: clip_high 0.2"),
        (&["--aggregation", "token-mean"], "unusual: aggregation TokenMean"),
        (&["--beta", "0"], "unusual: kl: beta is 0"),
        (&["--beta", "0.1", "--kl", "k1"], "unusual: kl: the gradient of K1"),
        (&["--objective", "grpo", "--delta", "1.1"], "unusual: delta 1.1"),
        (&["--preset", "trl"], "unusual: saturation"),
    ] {
        let text = said(arguments);
        assert!(text.contains(needle), "{text}");
    }
    for arguments in [&["--objective", "luspo"][..], &["--preset", "slime"], &[]] {
        assert!(!said(arguments).contains("unusual"), "{arguments:?}");
    }
}

#[test]
fn a_term_names_the_tensor_that_it_misses() {
    let without = |tensor: &str, arguments: &[&str]| {
        let mut draft = small();
        draft.remove(tensor).set("logprobs", &[6], &[-1.0_f32; 6]);
        step(&draft, arguments)
    };
    let table: &[(&str, &[&str], &str)] = &[
        ("ref_logprobs", &["--beta", "0.1"], "ref_logprobs: missing, needed by --beta"),
        ("rollout_logprobs", &["--mismatch-penalty", "1"], "rollout_logprobs: missing, needed by --mismatch-penalty"),
        ("rollout_logprobs", &["--objective", "minirl"], "rollout_logprobs: missing, needed by --objective minirl"),
        ("rollout_logprobs", &["--objective", "dppo-tv", "--preset", "skyrl"], "rollout_logprobs: missing"),
        ("rollout_logprobs", &["--correction", "tis=2"], "rollout_logprobs: missing, needed by --correction"),
        ("logits", &["--entropy-coef", "0.1"], "logits: missing, needed by --entropy-coef"),
    ];
    for (tensor, arguments, needle) in table {
        assert_refused(&format!("{arguments:?}"), without(tensor, arguments), &[needle]);
    }
    let mut draft = small();
    draft.set("advantage", &[2], &[1.0_f32, -1.0]).remove("reward");
    assert_refused("no rewards", step(&draft, &["--advantage", "rloo"]), &["reward: missing, needed by --advantage"]);
}
