//! What only the emulator can show: schedules, and what a launch reads and writes.

use moerl::Emulator;
use moerl::device::emulator::LaunchTraffic;
use moerl::objective::{Aggregation, Config, Kl, KlForm, Variant};

use crate::case::{Asking, Case, objectives, run, run_asking};
use crate::common::schedules::schedules;
use crate::common::{bits, sampled};
use crate::variants::named;

#[test]
fn every_schedule_gives_the_same_bits() {
    // Units of several segments, of one, and of tiles; more than 32 units, so that the trees have two levels.
    let lengths: Vec<usize> = [vec![5, 40, 3, 700, 500, 2500, 33], vec![600; 30]].concat();
    let case = Case::random(&lengths, 3).with_mask(3).with_token_advantages(3).with_terms(3);
    for config in sampled(objectives(), 0) {
        let first = run(&Emulator::new(), &config, &case);
        for emulator in schedules() {
            let found = run(&emulator, &config, &case);
            assert_eq!(found.loss.to_bits(), first.loss.to_bits(), "{emulator:?}");
            assert_eq!(bits(&found.d_logprobs), bits(&first.d_logprobs), "{emulator:?}");
            assert_eq!(found.diagnostics, first.diagnostics, "{emulator:?}");
        }
    }
}

fn schedules_agree(config: &Config, case: &Case, asking: Asking) {
    let first = run_asking(&Emulator::new(), config, case, asking);
    for emulator in schedules() {
        let found = run_asking(&emulator, config, case, asking);
        assert_eq!(found.loss.to_bits(), first.loss.to_bits(), "{emulator:?}");
        assert_eq!(bits(&found.d_logprobs), bits(&first.d_logprobs), "{emulator:?}");
        assert_eq!(found.diagnostics, first.diagnostics, "{emulator:?}");
    }
}

#[test]
fn every_schedule_gives_the_same_bits_in_one_launch() {
    // Mixed lengths, so that units begin and end inside groups of 32 segments; runs of ones, so that others hold groups whole and nothing else. More than 32 units,
    // and more than one tile of 1024 segments.
    let mixed = (0..250).map(|i| 1 + (i * 37 + i * i) % 200);
    let lengths: Vec<usize> = (0..5).flat_map(|_| mixed.clone().chain([1; 600])).collect();
    assert!(lengths.len() > 1024 && lengths.iter().sum::<usize>() > 33 * 1024);
    let case = Case::random(&lengths, 4).with_mask(4);
    for (which, config) in objectives().into_iter().take(3).enumerate() {
        for diagnostics in sampled([false, true], which) {
            schedules_agree(&config, &case, Asking { diagnostics, ratio: false });
        }
    }
}

#[test]
fn every_schedule_gives_the_same_bits_of_segments_of_one_token() {
    // More than 32 units of 256, and more than one tile of 1024 segments. Loss that segments decide, that tokens do, and that both do.
    let case = Case::random(&[1; 33 * 256 + 40], 4).with_mask(4).with_terms(4).with_corrections(4);
    for (config, diagnostics) in objectives().into_iter().skip(1).zip([false, false, true, true]) {
        schedules_agree(&config, &case, Asking { diagnostics, ratio: false });
    }
}

/// The launches of one call.
fn traffic(config: &Config, case: &Case) -> Vec<LaunchTraffic> {
    traffic_of(config, case, Asking::default())
}

fn traffic_of(config: &Config, case: &Case, asking: Asking) -> Vec<LaunchTraffic> {
    let emulator = Emulator::new().metered();
    run_asking(&emulator, config, case, asking);
    emulator.take_traffic()
}

/// Asserts that a launch reads each byte of these arrays once, of no other token array any, within 5 %.
fn assert_reads(launch: &LaunchTraffic, arrays: &[&str], case: &str) {
    for name in [
        "logprobs",
        "old_logprobs",
        "advantages",
        "loss_mask",
        "weights",
        "rollout_logprobs",
        "ref_logprobs",
        "entropy",
        "keep",
        "chosen",
        "router_shift",
    ] {
        let Some(buffer) = launch.buffer(name) else { continue };
        let expected = if arrays.contains(&name) { buffer.bytes } else { 0 };
        let sectors = buffer.loads.sectors * 32;
        assert_eq!(buffer.loads.bytes, expected, "{case}: {}: {name}", launch.kernel);
        assert!(
            sectors as f64 <= 1.05 * expected as f64 + 64.0,
            "{case}: {}: {name}: {sectors} of {expected}",
            launch.kernel
        );
    }
    for name in arrays {
        assert!(launch.buffer(name).is_some(), "{case}: {} has no {name}", launch.kernel);
    }
}

#[test]
fn every_array_is_read_once_per_phase_and_the_gradient_written_once() {
    for (which, lengths) in
        [("seventeens", vec![17; 300]), ("long", vec![9000]), ("mixed", vec![1000, 24, 2048, 512, 500, 4096])]
    {
        let case = Case::random(&lengths, 3).with_mask(3);
        let rich = case.clone().with_token_advantages(3).with_weights(3);
        let mask = ["loss_mask"];
        let all = ["logprobs", "old_logprobs", "advantages", "loss_mask", "weights"];
        let [ppo, gspo, token] = [0, 1, 2].map(|which| objectives()[which].clone());
        for (config, case, partial, apply) in [
            (&ppo, &rich, &mask[..], &all[..]),
            (&gspo, &rich, &all[..], &mask[..]),
            (&token, &rich, &all[..], &["advantages", "loss_mask", "weights"][..]),
        ] {
            let launches = traffic(config, case);
            assert_eq!(launches.len(), 2, "{which}");
            assert_reads(&launches[0], partial, which);
            assert_reads(&launches[1], apply, which);
            let written = launches[1].buffer("d_logprobs").unwrap();
            assert_eq!((written.stores.bytes, written.stores.once), (written.bytes, written.bytes), "{which}");
        }
        // With an advantage per segment, the tokens cost 9 bytes in partial and 1 + 4 in apply; in one launch 9 + 4.
        let launches = traffic(&gspo, &case);
        let tokens = case.tokens() as u64;
        let of = |launch: &LaunchTraffic, names: &[&str]| {
            names.iter().filter_map(|name| launch.buffer(name)).map(|b| b.loads.bytes + b.stores.bytes).sum::<u64>()
        };
        assert_eq!(of(&launches[0], &["logprobs", "old_logprobs", "loss_mask"]), 9 * tokens, "{which}");
        assert_eq!(launches.len(), if which == "seventeens" { 1 } else { 2 }, "{which}");
        if launches.len() == 1 {
            assert_reads(&launches[0], &["logprobs", "old_logprobs", "loss_mask", "advantages"], which);
            assert_eq!(of(&launches[0], &["d_logprobs"]), 4 * tokens, "{which}");
            assert_eq!(launches[0].buffer("logprobs").unwrap().loads.most, 1, "{which}");
            continue;
        }
        assert_eq!(of(&launches[1], &["logprobs", "old_logprobs", "loss_mask", "d_logprobs"]), 5 * tokens, "{which}");
        assert_eq!(launches[0].buffer("logprobs").unwrap().loads.most, 1, "{which}");
    }
}

/// What an objective has to know of every token, in `partial` and in `apply`. Letters: l, o, A, w, q, r, H, c(hosen), k(ept); the mask always.
fn needed(name: &str) -> (&'static str, &'static str) {
    match name {
        "gspo" | "sapo sequence" => ("loAw", ""),
        "gspo_token" => ("loAw", "Aw"),
        "cispo sequence" | "cispo sequence unified" => ("loAw", "lAw"),
        "gmpo" => ("loAw", "loA"),
        "vespo" => ("loAw", "lA"),
        "reinforce_is" | "gpg" => ("", "lAw"),
        "minirl" => ("", "loAwq"),
        "kl_cov" => ("", "loAwc"),
        _ => ("", "loAw"),
    }
}

fn arrays(letters: &str) -> Vec<&'static str> {
    let array = |letter| match letter {
        'l' => "logprobs",
        'o' => "old_logprobs",
        'A' => "advantages",
        'w' => "weights",
        'q' => "rollout_logprobs",
        'r' => "ref_logprobs",
        'H' => "entropy",
        'c' => "chosen",
        _ => "keep",
    };
    letters.chars().map(array).chain(["loss_mask"]).collect()
}

#[test]
fn every_objective_reads_what_it_needs_once() {
    let plain = Case::random(&[1000, 24, 17, 17, 2048, 500, 33], 3)
        .with_mask(3)
        .with_token_advantages(3)
        .with_weights(3)
        .with_terms(3);
    let kept = Case { keep: Some(vec![1; plain.tokens()]), ..plain.clone() };
    for (name, variant) in named() {
        let (partial, apply) = needed(name);
        let joined = |letters: &str, more: &str| {
            let more: String = more.chars().filter(|&c| !letters.contains(c)).collect();
            arrays(&format!("{letters}{more}"))
        };
        let kl = |form| Some(Kl::new(0.1, form));
        let bonus = |config| Config { mismatch_penalty: 0.1, entropy_bonus: 0.1, ..config };
        for (what, case, config, more_partial, more_apply) in [
            ("bare", &plain, Config::new(variant), "", ""),
            ("k3", &plain, Config { kl: kl(KlForm::K3), ..Config::new(variant) }, "", "lr"),
            ("k3, s", &plain, Config { kl: kl(KlForm::K3IsSequence), ..Config::new(variant) }, "loAwr", "lr"),
            ("terms", &plain, bonus(Config::new(variant)), "", "lqH"),
            ("kept", &kept, Config::new(variant), if partial.is_empty() { "" } else { "k" }, "k"),
        ] {
            let name = format!("{name}, {what}");
            // Where a segment's tokens share a gradient, which of them were kept is known by then.
            let more_apply = if variant_shares(&variant) && what == "kept" { "" } else { more_apply };
            let launches = traffic(&config, case);
            assert_eq!(launches.len(), 2, "{name}");
            assert_reads(&launches[0], &joined(partial, more_partial), &name);
            assert_reads(&launches[1], &joined(apply, more_apply), &name);
            let written = launches[1].buffer("d_logprobs").unwrap();
            assert_eq!((written.stores.bytes, written.stores.once), (written.bytes, written.bytes), "{name}");
        }
    }
}

#[test]
fn a_mean_over_tokens_takes_at_most_two_launches_and_13_bytes_a_token() {
    for lengths in [vec![17; 100], vec![5000], vec![1000, 24, 2048, 500]] {
        let case = Case::random(&lengths, 3).with_mask(3);
        for aggregation in [Aggregation::TokenMean, Aggregation::TokenSum] {
            let launches = traffic(&Config::ppo_clip(0.2, 0.28).with_aggregation(aggregation), &case);
            assert_eq!(launches.len(), if lengths.iter().all(|&length| length <= 1024) { 1 } else { 2 });
            let names = ["logprobs", "old_logprobs", "loss_mask", "d_logprobs"];
            let moved: u64 = launches
                .iter()
                .flat_map(|launch| names.iter().filter_map(|name| launch.buffer(name)))
                .map(|buffer| buffer.loads.bytes + buffer.stores.bytes)
                .sum();
            assert_eq!(moved, 13 * case.tokens() as u64);
        }
    }
}

fn variant_shares(variant: &Variant) -> bool {
    matches!(variant, Variant::Gspo(_)) || matches!(variant, Variant::Sapo(_)) && variant.is_sequence_level()
}

/// No cliff at short segments: what is moved beside the arrays is little, by sectors of 32 bytes.
#[test]
fn short_segments_move_no_more_than_they_must() {
    for (length, count) in [(1, 8192), (2, 4096), (17, 512), (40, 300), (200, 40)] {
        let case = Case::random(&vec![length; count], 5).with_mask(5);
        // l, o, the mask and the gradient; the offset of a segment, unless each has one token, and its advantage.
        let needed = 13 * case.tokens() + if length == 1 { 4 } else { 12 } * count;
        for config in objectives().into_iter().take(3) {
            for diagnostics in [false, true] {
                let launches = traffic_of(&config, &case, Asking { diagnostics, ratio: false });
                assert_eq!(launches.len(), 1);
                let moved = sectors_of(&launches);
                assert!(
                    moved as f64 <= 1.3 * needed as f64,
                    "{count} of {length}, diagnostics {diagnostics}: {moved} for {needed}: {:?}",
                    config.variant
                );
            }
        }
    }
}

/// In bytes.
fn sectors_of(launches: &[LaunchTraffic]) -> u64 {
    let buffers = launches.iter().flat_map(|launch| &launch.buffers);
    buffers.map(|buffer| 32 * (buffer.loads.sectors + buffer.stores.sectors)).sum()
}

/// Nor where they have one token each, whatever is read and asked for.
#[test]
fn segments_of_one_token_move_no_more_than_they_must() {
    const SEGMENTS: usize = 8192;
    let rich = Case::random(&[1; SEGMENTS], 5)
        .with_mask(5)
        .with_weights(5)
        .with_token_advantages(5)
        .with_terms(5)
        .with_corrections(5);
    for config in objectives() {
        for denominators in [rich.denominators, None] {
            for asking in [false, true].map(|diagnostics| Asking { diagnostics, ratio: true }) {
                let case = Case { denominators, ..rich.clone() };
                let launches = traffic_of(&config, &case, asking);
                // Local denominators are counted first: the masks and the offsets.
                assert_eq!(launches.len(), if denominators.is_some() { 1 } else { 2 });
                let last = launches.last().unwrap();
                let others = ["cu_seqlens", "units", "workspace", "diagnostics", "loss", "errors"];
                let needed: u64 = last
                    .buffers
                    .iter()
                    .filter(|buffer| !others.contains(&buffer.name))
                    .map(|buffer| {
                        let (loads, stores) = (&buffer.loads, &buffer.stores);
                        // Read once or written once.
                        assert!(loads.bytes + stores.bytes <= buffer.bytes, "{}: {config:?}", buffer.name);
                        loads.bytes + stores.bytes
                    })
                    .sum();
                let counted = if denominators.is_some() { 0 } else { 9 * SEGMENTS as u64 };
                let moved = sectors_of(&launches);
                assert!(moved as f64 <= 1.3 * (needed + counted) as f64, "{moved} for {needed}: {config:?}");
            }
        }
    }
}
