//! What only the emulator can show: schedules, and what a launch reads and writes.

use moerl::correction::{Config, Level, Metropolis, Rejection, Weight};
use moerl::device::emulator::LaunchTraffic;
use moerl::{Backend, Emulator};

use crate::case::{Arrays, Case, Uploaded, run, run_plain};
use crate::common::bits;
use crate::common::schedules::schedules;

#[test]
fn every_schedule_gives_the_same_bits() {
    // Units of several segments, of one, and of tiles; more than 32 units, so that the trees have two levels.
    let lengths: Vec<usize> = [vec![5, 40, 3, 700, 2500, 33], vec![600; 30]].concat();
    let case = Case::random(&lengths, 3).with_mask(3).with_groups(40, 3);
    let without_groups = Case { groups: None, ..case.clone() };
    for (weight, case) in [
        (Weight::Truncated { level: Level::Sequence, max: 1.5 }, &without_groups),
        (Weight::SelfNormalised { level: Level::Sequence, leave_one_out: true }, &case),
        (Weight::SelfNormalisedAttached, &case),
        (Weight::Metropolis { level: Level::Sequence, mode: Metropolis::Multiplicity, seed: 5 }, &case),
    ] {
        let config = Config::new(weight).with_diagnostics().with_rejection(Rejection::Veto { low: 0.2, high: 5.0 });
        let first = run(&Emulator::new(), &config, case);
        for emulator in schedules() {
            let found = run(&emulator, &config, case);
            assert_eq!(bits(&found.weights), bits(&first.weights), "{emulator:?}");
            assert_eq!(bits(&found.advantages), bits(&first.advantages), "{emulator:?}");
            assert_eq!((&found.globals, &found.diagnostics), (&first.globals, &first.diagnostics), "{emulator:?}");
            assert_eq!((&found.rejected, &found.multiplicity), (&first.rejected, &first.multiplicity), "{emulator:?}");
        }
    }
}

#[test]
fn what_segments_have_alone_takes_no_launch_over_tokens() {
    let case = Case::random(&[1000, 24, 2048, 512, 500, 4096], 3).with_mask(3).with_groups(2, 3);
    let emulator = Emulator::new().metered();
    let input = Uploaded::new(&emulator, &(), &case).unwrap();
    let mut arrays = Arrays::new(&emulator, &(), input.plans());
    let config = Config::new(Weight::SelfNormalisedAttached);
    let mut output = arrays.output(&config);
    (output.weights, output.keep, output.log_ratio) = (None, None, None);
    emulator.correction(&(), &config, input.plans(), input.batch(), output).unwrap();
    let launches = emulator.take_traffic();
    assert_eq!(launches.len(), 2);
    assert_reads(&launches[0], &["old_logprobs", "rollout_logprobs", "loss_mask"], "factors");
    assert_reads(&launches[1], &[], "factors");
    let found = arrays.found(&emulator, &());
    assert_eq!(bits(&found.advantages), bits(&run(&Emulator::new(), &config, &case).advantages));
}

fn traffic(config: &Config, case: &Case) -> Vec<LaunchTraffic> {
    let emulator = Emulator::new().metered();
    run_plain(&emulator, config, case);
    emulator.take_traffic()
}

/// Asserts that a launch reads each byte of these arrays once, of no other token array any, within 5 %.
fn assert_reads(launch: &LaunchTraffic, arrays: &[&str], case: &str) {
    for name in ["old_logprobs", "rollout_logprobs", "loss_mask", "kept_log_mass", "router_shift"] {
        let Some(buffer) = launch.buffer(name) else { continue };
        let expected = if arrays.contains(&name) { buffer.bytes } else { 0 };
        let sectors = buffer.loads.sectors * 32;
        assert_eq!(buffer.loads.bytes, expected, "{case}: {}: {name}", launch.kernel);
        assert!(sectors as f64 <= 1.05 * expected as f64 + 64.0, "{case}: {}: {name}: {sectors}", launch.kernel);
    }
    for name in arrays {
        assert!(launch.buffer(name).is_some(), "{case}: {} has no {name}", launch.kernel);
    }
}

#[test]
fn every_array_is_read_once_per_phase_and_each_output_written_once() {
    for (which, lengths) in
        [("seventeens", vec![17; 300]), ("long", vec![9000]), ("mixed", vec![1000, 24, 2048, 512, 500, 4096])]
    {
        let plain = Case::random(&lengths, 3).with_mask(3);
        let rich = plain.clone().with_offsets(3);
        let mask = ["loss_mask"];
        let tokens = ["old_logprobs", "rollout_logprobs", "loss_mask"];
        let all = ["old_logprobs", "rollout_logprobs", "loss_mask", "kept_log_mass", "router_shift"];
        // A weight of tokens needs one launch.
        let launches = traffic(&Config::tis(Level::Token, 2.0), &rich);
        assert_eq!(launches.len(), 1, "{which}");
        assert_reads(&launches[0], &all, which);
        // One of segments three, the last of which reads masks alone.
        let launches = traffic(&Config::tis(Level::Sequence, 2.0), &rich);
        assert_eq!(launches.len(), 3, "{which}");
        assert_reads(&launches[0], &all, which);
        assert_reads(&launches[1], &[], which);
        assert_reads(&launches[2], &mask, which);
        // Both, with the mean over the batch.
        let both = Config { batch_normalise: true, ..Config::tis(Level::Token, 2.0) }
            .with_rejection(Rejection::Veto { low: 0.2, high: 5.0 });
        let launches = traffic(&both, &plain);
        assert_eq!(launches.len(), 3, "{which}");
        assert_reads(&launches[0], &tokens, which);
        assert_reads(&launches[2], &tokens, which);
        for name in ["weights", "keep"] {
            let written = launches[2].buffer(name).unwrap();
            assert_eq!((written.stores.bytes, written.stores.once), (written.bytes, written.bytes), "{which}: {name}");
        }
    }
}
