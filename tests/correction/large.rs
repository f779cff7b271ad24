//! More repeated log-probabilities than 31 bits count, on a device; the same at a small size, emulated.

use moerl::correction::{Batch, Config, Level, Output, Plans, workspace_bytes};
use moerl::device::executor::Executor;
use moerl::objective::{Plan, Segments};
use moerl::{Backend, Buffer};

use crate::case::{Case, run};
use crate::common::bits;
use crate::common::large::Tile;

/// R repetitions of so many tokens in segments of one length; some segments must be what they are alone.
fn are_what_they_are_alone<B: Executor>(backend: &B, repeats: usize, segments: usize, length: usize) {
    let (stream, tokens) = (backend.stream().unwrap(), segments * length);
    let (old, rollout) = (Tile::<f32>::new(1, 0.02), Tile::<f32>::new(2, 0.02));
    let mut old_logprobs = backend.allocate::<f32>(&stream, repeats * tokens).unwrap();
    let mut rollout_logprobs = backend.allocate::<f32>(&stream, tokens).unwrap();
    old.lay(backend, &stream, old_logprobs.view_mut());
    rollout.lay(backend, &stream, rollout_logprobs.view_mut());
    let plan = Plan::new(backend, &stream, &Segments::from_lengths(vec![length; segments]).unwrap()).unwrap();
    let plans = Plans::new(&plan);
    let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plans)).unwrap();
    let mut weights = backend.allocate::<f32>(&stream, tokens).unwrap();

    let mut chosen = vec![0, 1, segments / 2, segments - 2, segments - 1];
    chosen.dedup();
    let pick = |tile: &Tile<f32>, first: usize| -> Vec<f32> {
        let range = |i: usize| first + i * length..first + (i + 1) * length;
        chosen.iter().flat_map(|&i| tile.range(range(i))).collect()
    };
    let alone = Case {
        lengths: vec![length; chosen.len()],
        old_logprobs: (0..repeats).flat_map(|r| pick(&old, r * tokens)).collect(),
        rollout_logprobs: pick(&rollout, 0),
        ..Case::default()
    };
    for config in [Config::tis(Level::Token, 1.01), Config::tis(Level::Geometric, 1.001)] {
        let batch = Batch::new(old_logprobs.view(), rollout_logprobs.view());
        let output = Output { weights: Some(weights.view_mut()), ..Output::new(workspace.view_mut()) };
        backend.correction(&stream, &config, plans, batch, output).unwrap();
        let expected = run(backend, &config, &alone).weights;
        for (at, &i) in chosen.iter().enumerate() {
            let found = backend.download(&stream, weights.view().slice(i * length..(i + 1) * length)).unwrap();
            assert_eq!(bits(&found), bits(&expected[at * length..(at + 1) * length]), "{config:?}: segment {i}");
        }
    }
}

#[cfg(feature = "emulate")]
mod emulator {
    #[test]
    fn a_small_batch_is_checked_as_a_large_one() {
        super::are_what_they_are_alone(&moerl::Emulator::new(), 16, 6, 2048);
        super::are_what_they_are_alone(&moerl::Emulator::new(), 3, 90, 44);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    #[test]
    fn more_than_two_to_the_31_repeated_logprobs() {
        let Some(gpu) = crate::common::cuda() else { return };
        let (repeats, segments, length) = (16, 32_770, 4096);
        assert!(repeats * segments * length > 1 << 31);
        let bytes = 4 * (repeats + 2) * segments * length;
        let Some(_alone) = crate::common::large::room(&gpu, "2^31 repeated log-probabilities", bytes) else { return };
        super::are_what_they_are_alone(&gpu, repeats, segments, length);
    }
}
