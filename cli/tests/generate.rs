//! `moerl generate`: step files that `step` can read, the same for the same seed, with the mismatch of real runs, in bounded memory.

mod common;

use common::{Folder, assert_refused, limited, moerl, process};
use moerl_cli::stepfile::{AdvantageSource, Policy, PolicySource, Recorded, StepFile};

fn generate(folder: &Folder, name: &str, arguments: &str) -> std::path::PathBuf {
    let path = folder.path(name);
    let mut all: Vec<&str> = std::iter::once("generate").chain(arguments.split(' ')).collect();
    all.push(path.to_str().unwrap());
    moerl(&all).unwrap();
    path
}

#[test]
fn a_file_has_the_sizes_asked_for() {
    let folder = Folder::new();
    let path = generate(&folder, "x", "--tokens 1500 --vocab 300 --experts 300 --layers 3 --top-k 6 --seed 5");
    let file = StepFile::open(&path).unwrap();
    assert_eq!((file.tokens, file.vocabulary, file.router, file.chosen), (1500, Some(300), Some((3, 300)), Some(6)));
    assert!(matches!(file.policy(), Some(PolicySource::Logits(_))));
    assert!(matches!(file.advantage(), Some(AdvantageSource::Reward(_))));
    assert_eq!(file.ignored(), Vec::<String>::new());
    assert!(file.token_ids(0..1500).iter().all(|&token| (0..300).contains(&token)));
    // 300 experts do not fit a byte.
    let routes = file.routes(Recorded::Rollout).unwrap();
    assert_eq!(routes.describe(), "u16 [1500, 3, 6]");
    for row in routes.all::<u16>().chunks_exact(6) {
        assert!((1..6).all(|i| row[i] < 300 && !row[..i].contains(&row[i])), "{row:?}");
    }
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1);
}

#[test]
fn a_seed_gives_the_same_file_and_another_one_another() {
    let folder = Folder::new();
    let sizes = "--tokens 700 --vocab 40 --experts 8 --layers 2 --top-k 2 --seed";
    let read = |name: &str, seed: &str| std::fs::read(generate(&folder, name, &format!("{sizes} {seed}"))).unwrap();
    let first = read("a", "1");
    assert!(first == read("b", "1"));
    assert!(first != read("c", "2"));
}

#[test]
fn the_mismatch_between_the_policies_has_the_size_of_real_runs() {
    let folder = Folder::new();
    let sizes = "--tokens 6000 --vocab 400 --experts 32 --layers 2 --top-k 4 --seed 3";
    for arguments in [sizes.to_owned(), format!("{sizes} --no-logits")] {
        let path = generate(&folder, "x", &arguments);
        let file = StepFile::open(&path).unwrap();
        let old = file.logprobs(Policy::Old).unwrap();
        let rollout = file.logprobs(Policy::Rollout).unwrap();
        let gap = old.iter().zip(rollout.iter()).map(|(o, q)| f64::from((o - q).abs())).sum::<f64>() / 6000.0;
        // A bf16 engine: 0.005 to 0.03 nats a token in the runs that the literature reports.
        assert!((0.003..0.04).contains(&gap), "{gap}");
        assert!(old.iter().chain(rollout.iter()).all(|&l| l <= 0.0));

        let ids = |which| file.routes(which).unwrap().all::<u8>().into_owned();
        let changed = ids(Recorded::Old)
            .chunks_exact(4)
            .zip(ids(Recorded::Rollout).chunks_exact(4))
            .filter(|(a, b)| a.iter().any(|id| !b.contains(id)))
            .count() as f64
            / 12_000.0;
        // The step file that ships with the project has 2.6 % between its bf16 engine and its f32 trainer.
        assert!((0.01..0.06).contains(&changed), "{changed}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let folder = Folder::new();
    let path = generate(&folder, "x", "--tokens 50 --vocab 64 --experts 4 --layers 1 --top-k 1 --seed 9");
    let file = StepFile::open(&path).unwrap();
    let Some(PolicySource::Logits(logits)) = file.policy() else { panic!("logits were asked for") };
    let logits = logits.all::<f32>();
    let (tokens, old) = (file.token_ids(0..50), file.logprobs(Policy::Old).unwrap());
    for (u, row) in logits.chunks_exact(64).enumerate() {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let current = f64::from(row[tokens[u] as usize]) - sum.ln();
        // The drift of one update moves a log-probability by a few tenths of a nat.
        assert!((current - f64::from(old[u])).abs() < 1.0, "{current} {}", old[u]);
    }
}

#[test]
fn a_million_tokens_pass_through_little_memory_and_a_pipe_sees_no_progress_bar() {
    let folder = Folder::new();
    let path = folder.path("x");
    let arguments = "generate --tokens 1000000 --vocab 50000 --experts 8 --layers 1 --top-k 2 --seed 1 --no-logits";
    let arguments: Vec<&str> = arguments.split(' ').chain([path.to_str().unwrap()]).collect();
    // The file has 49 MB.
    let output = if cfg!(target_os = "linux") { limited(40 << 10, &arguments) } else { process(&arguments) };
    assert!(output.status.success());
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(StepFile::open(&path).unwrap().tokens, 1_000_000);
}

/// What an audit says of a file of that kind.
fn audit(more: &str) -> serde_json::Value {
    let folder = Folder::new();
    let sizes = "--tokens 4000 --vocab 60 --experts 16 --layers 2 --top-k 2 --seed 11";
    let path = generate(&folder, "x", format!("{sizes} {more}").trim_end());
    let outcome = moerl(&["audit", "--backend", "reference", "--json", path.to_str().unwrap()]).unwrap();
    let audit: serde_json::Value = serde_json::from_str(&outcome.text).unwrap();
    audit["files"][0].clone()
}

#[test]
fn every_knob_moves_the_statistic_that_an_audit_reports() {
    let changed = |audit: &serde_json::Value| audit["routes"][0]["changed"].as_f64().unwrap();
    let mismatch = |audit: &serde_json::Value| audit["statistics"]["mismatch_kl"]["k3"].as_f64().unwrap();
    let drift = |audit: &serde_json::Value| audit["policies"]["ratio"]["policy_kl_k3"].as_f64().unwrap();
    for logits in ["", " --no-logits"] {
        let of = |more: &str| audit(format!("{more}{logits}").trim_start());
        let plain = of("");
        let noisy = of("--rollout-noise 4");
        // A divergence grows with the square of the noise; bf16 adds the same to both.
        assert!(
            (8.0..18.0).contains(&(mismatch(&noisy) / mismatch(&plain))),
            "{}",
            mismatch(&noisy) / mismatch(&plain)
        );
        assert!((drift(&noisy) / drift(&plain) - 1.0).abs() < 0.2);
        let stale = of("--staleness 9");
        assert!((6.0..12.0).contains(&(drift(&stale) / drift(&plain))), "{}", drift(&stale) / drift(&plain));
        assert!((mismatch(&stale) / mismatch(&plain) - 1.0).abs() < 0.1);
        let exact = of("--rollout-noise 0 --rollout-precision f32 --staleness 0");
        assert_eq!((mismatch(&exact), changed(&exact)), (0.0, 0.0));
        assert!(drift(&exact) < 1e-10, "{}", drift(&exact));
        let rerouted = of("--rollout-noise 0 --rollout-precision f32 --staleness 0 --changed-routes 0.3");
        // Within four deviations of 8000 coins.
        assert!((changed(&rerouted) - 0.3).abs() < 4.0 * (0.3_f64 * 0.7 / 8000.0).sqrt(), "{}", changed(&rerouted));
        let verdict = |audit: &serde_json::Value| audit["dangers"][0]["verdict"].as_str().map(str::to_owned);
        assert_eq!(verdict(&of("--bf16-logprobs")).as_deref(), Some("bf16 log-probabilities"));
        // Responses of a hundred tokens, each off by about a nat: the heaviest of 40 weights is nearly all of them.
        let loud = of("--rollout-noise 60 --lengths fixed:100");
        assert_eq!(verdict(&loud).as_deref(), Some("mismatch large for sequence weights"));
        assert_eq!(verdict(&plain), None);
    }
}

#[test]
fn lengths_have_the_distribution_asked_for() {
    let folder = Folder::new();
    let lengths = |distribution: &str| -> Vec<i64> {
        let sizes = "--tokens 20000 --vocab 40 --experts 4 --layers 1 --top-k 1 --seed 2 --no-logits --lengths";
        let file = StepFile::open(&generate(&folder, "x", &format!("{sizes} {distribution}"))).unwrap();
        let lengths: Vec<i64> = file.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(lengths.iter().sum::<i64>(), 20_000);
        lengths
    };
    let whole = |lengths: &[i64]| lengths[..lengths.len() - 1].to_vec();
    assert!(whole(&lengths("fixed:30")).iter().all(|&n| n == 30));
    let uniform = whole(&lengths("uniform:5,9"));
    assert!((5..=9).all(|n| uniform.contains(&n)) && uniform.iter().all(|n| (5..=9).contains(n)));
    let normal = whole(&lengths("lognormal:3,0"));
    assert!(normal.iter().all(|&n| n == 20), "e^3 is 20.09");
    assert_eq!(lengths("lognormal:6,0.8"), lengths("lognormal:6,0.8"));
}

#[test]
fn sizes_that_no_step_file_has_are_refused() {
    let base = ["--tokens=10", "--vocab=10", "--experts=8", "--layers=1", "--top-k=2", "--seed=1", "/nonexistent/x"];
    for (replaced, needle) in [
        ("--tokens=9000000000", "--tokens 9000000000"),
        ("--vocab=1", "--vocab 1"),
        ("--experts=5000", "--experts 5000"),
        ("--layers=70000", "--layers 70000"),
        ("--top-k=9", "--top-k 9: 1 to 8"),
        ("--top-k=0", "--top-k 0"),
        ("--tokens=-1", "--tokens"),
        ("--seed=x", "--seed"),
    ] {
        let option = replaced.split('=').next().unwrap();
        let arguments = base.map(|a| if a.starts_with(option) { replaced } else { a });
        assert_refused(replaced, moerl(&[&["generate"], &arguments[..]].concat()), &[needle]);
    }
    for (added, needle) in [
        ("--lengths=uniform:0,4", "uniform:LO,HI"),
        ("--lengths=uniform:9,4", "uniform:LO,HI"),
        ("--lengths=zipf:1", "lognormal:MEAN,SIGMA"),
        ("--staleness=-1", "--staleness -1"),
        ("--rollout-noise=nan", "--rollout-noise NaN"),
        ("--changed-routes=1.5", "--changed-routes 1.5"),
        ("--rollout-precision=f8", "bf16"),
    ] {
        assert_refused(added, moerl(&[&["generate"], &base[..], &[added]].concat()), &[needle]);
    }
    let failure = moerl(&[&["generate"], &base[..]].concat()).unwrap_err();
    assert_eq!(failure.exit_code(), 1, "{failure}");
}
