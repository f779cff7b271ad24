//! `moerl step`: the objectives, presets and terms that its options name.

mod common;

use common::{Draft, Folder, assert_refused, close, data, moerl, shipped, small, step};
use moerl_cli::stepfile::Container;

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
        "snis-attached",
        "snis-attached --correction veto=0.5",
        "cispo --cispo-cap raw:2 --cispo-mask 0.2,0.28",
        "vespo --vespo-pos 1,2 --vespo-neg 2,1",
        "dppo-kl --dppo-cap 2",
        "grpo --correction openrlhf",
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

#[test]
fn the_shapes_of_an_objective_are_options() {
    let mut draft = Draft::of(&data("step.safetensors"));
    let logprobs = draft.values::<f32>("logp_new");
    draft.remove("logits").remove("logits_bf16").remove("router_logits").set("logprobs", &[860], &logprobs);
    let text =
        |arguments: &str| step(&draft, &arguments.split_whitespace().collect::<Vec<_>>()).map(|found| found.text);
    let loss = |arguments: &str| {
        let text = text(arguments).unwrap();
        text.lines().find(|line| line.starts_with("loss")).unwrap().to_owned()
    };
    // The defaults, said aloud, change nothing; other numbers do, and are in the table.
    for (plain, same, other, words) in [
        ("--objective vespo", "--vespo-pos 2,3 --vespo-neg 3,2", "--vespo-pos 1,2", "k 1 and 3, lambda 2 and 2"),
        ("--objective vespo", "--vespo-neg 3,2", "--vespo-neg 1,2.5", "k 2 and 1, lambda 3 and 2.5"),
        ("--objective dppo-tv", "--dppo-cap inf", "--dppo-cap 0.9", "ratio at most 0.9"),
        ("--objective dppo-tv --preset verl", "--dppo-cap 20", "--dppo-cap inf --clip-low 1", "bounds 1 down"),
        (
            "--objective cispo --cispo-cap raw:2",
            "",
            "--cispo-mask 0.01,0.02",
            "no gradient outside 1 - 0.01 to 1 + 0.02",
        ),
    ] {
        assert_eq!(loss(&format!("{plain} {same}")), loss(plain), "{same}");
        let changed = format!("{plain} {other}");
        assert_ne!(loss(&changed), loss(plain), "{other}");
        let text = text(&changed).unwrap();
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    for (arguments, part) in [
        ("--objective vespo --vespo-pos 0,3", "vespo_k: is 0"),
        ("--objective vespo --vespo-neg 3,-1", "vespo_lambda: is -1"),
        ("--objective vespo --vespo-pos 2", "needs K,LAMBDA"),
        ("--objective cispo --cispo-cap raw:2 --cispo-mask 0.2", "needs LO,HI"),
        ("--objective grpo --vespo-pos 2,3", "--vespo-pos, --vespo-neg: does not go with --objective grpo"),
        ("--objective dppo-kl --dppo-cap 0", "dppo_cap: is 0"),
        ("--objective gspo --dppo-cap 2", "--dppo-cap: does not go with --objective gspo"),
        ("--objective cispo --cispo-cap raw:2 --cispo-mask=-1,0.2", "clip_low: is -1"),
        ("--objective dapo --cispo-mask 0.1,0.2", "--cispo-cap, --cispo-mask: does not go with --objective dapo"),
        ("--objective snis-attached --anchor old", "anchor: is Old"),
        ("--objective snis-attached --aggregation seq-mean-token-mean", "aggregation: is SeqMeanTokenMean"),
        ("--objective snis-attached --advantage rloo", "--advantage: does not go with --objective snis-attached"),
        ("--objective snis-attached --correction tis=2", "snis-attached has its own"),
        ("--objective snis-attached --correction opsm=0.1", "--correction opsm: needs advantages"),
    ] {
        assert_refused(arguments, text(arguments), &[part]);
    }
    let said = text("--objective snis-attached").unwrap();
    assert!(said.contains("estimated mean reward"), "{said}");
    let missing = step(draft.remove("logp_rollout"), &["--objective", "snis-attached"]);
    assert_refused("no rollout", missing, &["rollout_logprobs: missing, needed by --objective snis-attached"]);
}

/// Two answers to one prompt, rewards 1 and 0, the first one now e^.2 times as likely as at rollout: w = σ(.2), and w (1 − w) for every token.
#[test]
fn attached_gradients_are_those_of_the_estimate() {
    let mut draft = small();
    draft.set("logprobs", &[6], &[-1.0_f32, -1.0, -9.0, -2.0, -2.0, -3.0]).remove("logits");
    draft.set("rollout_logprobs", &[6], &[-1.1_f32, -1.1, -1.0, -2.0, -2.0, -3.0]);
    let folder = Folder::new();
    let (path, out) = (folder.write("x.safetensors", &draft.bytes()), folder.path("out.safetensors"));
    let (path, out) = (path.to_str().unwrap(), out.to_str().unwrap());
    let said = moerl(&["step", "--backend", "reference", path, "--objective", "snis-attached", "--out", out]).unwrap();
    assert!(said.text.contains("estimated mean reward") && said.text.contains("0.549834"), "{}", said.text);
    let file = Container::open(out.as_ref()).unwrap();
    let gradient = file.tensor("d_logprobs").unwrap().all::<f32>();
    let share = 0.247517;
    for (found, expected) in gradient.iter().zip([-share, -share, 0.0, -share, share, share]) {
        assert!((found - expected).abs() < 1e-6, "{gradient:?}");
    }
}
