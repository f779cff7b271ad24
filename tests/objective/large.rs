//! The largest batches: 2²⁴ tokens, a segment of 2²⁰, 2²⁰ segments of one; on a device more tokens than 31 bits count.

use moerl::device::executor::Executor;
use moerl::objective::{Advantages, Batch, Config, Denominators, Output, Plan, Segments, workspace_bytes};
use moerl::{Backend, Buffer, Reference};

use crate::case::{Case, run_plain};
use crate::common::bits;
use crate::common::large::Tile;

fn configs() -> [Config; 3] {
    [Config::ppo_clip(0.2, 0.28), Config::gspo(0.01, 0.015), Config::gspo_token(0.01, 0.015)]
}

/// All of a batch against the reference, and some of its segments against what they are alone.
fn agrees<B: Backend>(backend: &B, configs: &[Config], lengths: &[usize]) {
    let case = Case::random(lengths, 1).with_mask(1);
    let negative = Case { advantages: case.advantages.iter().map(|a| -a.abs()).collect(), ..case.clone() };
    for config in configs {
        let (loss, gradient) = run_plain(backend, config, &case);
        let (expected_loss, expected) = run_plain(&Reference, config, &case);
        let scale = run_plain(&Reference, config, &negative).0;
        assert!((loss - expected_loss).abs() <= 2e-6 * scale, "{config:?}: {loss} not {expected_loss}");
        let largest = expected.iter().fold(0.0_f32, |largest, g| largest.max(g.abs()));
        assert!(largest > 0.0, "{config:?}: everything is clipped");
        let mut undecided = 0;
        for (u, (g, e)) in gradient.iter().zip(&expected).enumerate() {
            let old = case.old_logprobs.as_ref().unwrap()[u].abs();
            let tolerance = (1e-6 + case.logprobs[u].abs().max(old) * 1.2e-7) * e.abs() + 1e-8 * largest;
            if (g - e).abs() <= tolerance {
                continue;
            }
            // Within rounding of a bound an input may fall on either side of it.
            assert!(*g == 0.0 || *e == 0.0, "{config:?}: token {u}: {g} not {e}");
            undecided += 1;
        }
        assert!(undecided * 1000 <= case.tokens(), "{config:?}: {undecided} tokens clipped otherwise");
        for i in [0, lengths.len() / 2, lengths.len() - 1] {
            let alone = run_plain(backend, config, &case.part(i..i + 1)).1;
            assert_eq!(bits(&gradient[case.segments().range(i)]), bits(&alone), "{config:?}: segment {i}");
        }
    }
}

/// So many tokens in segments of one length, made on the device; those around token 2³¹, the first and the last must be what they are alone.
fn are_what_they_are_alone<B: Executor>(backend: &B, segments: usize, length: usize) {
    let (stream, tokens) = (backend.stream().unwrap(), segments * length);
    let (new, old) = (Tile::<f32>::new(1, 0.02), Tile::<f32>::new(2, 0.02));
    let mut logprobs = backend.allocate::<f32>(&stream, tokens).unwrap();
    let mut old_logprobs = backend.allocate::<f32>(&stream, tokens).unwrap();
    new.lay(backend, &stream, logprobs.view_mut());
    old.lay(backend, &stream, old_logprobs.view_mut());
    let advantage = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -0.5 };
    let advantages = backend.upload(&stream, &(0..segments).map(advantage).collect::<Vec<f32>>()).unwrap();
    let plan = Plan::new(backend, &stream, &Segments::from_lengths(vec![length; segments]).unwrap()).unwrap();
    let mut workspace = backend.allocate::<u8>(&stream, workspace_bytes(&plan)).unwrap();
    let mut d_logprobs = backend.allocate::<f32>(&stream, tokens).unwrap();

    let beyond = (1_usize << 31) / length;
    let mut chosen = vec![0, segments / 2, beyond - 1, beyond, segments - 2, segments - 1];
    chosen.retain(|&i| i < segments);
    chosen.dedup();
    let pick = |tile: &Tile<f32>| -> Vec<f32> {
        chosen.iter().flat_map(|&i| tile.range(i * length..(i + 1) * length)).collect()
    };
    let alone = Case {
        logprobs: pick(&new),
        old_logprobs: Some(pick(&old)),
        advantages: chosen.iter().map(|&i| advantage(i)).collect(),
        denominators: Some([tokens as u64, segments as u64, 0, 0]),
        ..Case::random(&vec![length; chosen.len()], 0)
    };
    for config in configs() {
        let denominators = Denominators::global(tokens as u64, segments as u64);
        let batch = Batch {
            old_logprobs: Some(old_logprobs.view()),
            ..Batch::new(logprobs.view(), Advantages::PerSegment(advantages.view()), denominators)
        };
        let output = Output { d_logprobs: Some(d_logprobs.view_mut()), ..Output::new(workspace.view_mut()) };
        backend.objective(&stream, &config, &plan, batch, output).unwrap();
        let expected = run_plain(backend, &config, &alone).1;
        for (at, &i) in chosen.iter().enumerate() {
            let found = d_logprobs.view().slice(i * length..(i + 1) * length);
            let found = backend.download(&stream, found).unwrap();
            assert_eq!(bits(&found), bits(&expected[at * length..(at + 1) * length]), "{config:?}: segment {i}");
        }
    }
}

#[cfg(feature = "emulate")]
mod emulator {
    use super::*;

    /// A sanitizer sees in few segments what it would see in many, and takes minutes for those.
    fn count(most: usize) -> usize {
        if crate::common::is_sanitized() { most / 256 } else { most }
    }

    // One by one: together they would keep one core for most of a minute.
    #[test]
    fn two_to_the_24_tokens_of_ppo() {
        agrees(&moerl::Emulator::new(), &configs()[..1], &vec![4096; count(4096)]);
    }

    #[test]
    fn two_to_the_24_tokens_of_gspo() {
        agrees(&moerl::Emulator::new(), &configs()[1..2], &vec![4096; count(4096)]);
    }

    #[test]
    fn two_to_the_24_tokens_of_gspo_token() {
        agrees(&moerl::Emulator::new(), &configs()[2..], &vec![4096; count(4096)]);
    }

    #[test]
    fn a_segment_of_two_to_the_20_tokens() {
        agrees(&moerl::Emulator::new(), &configs(), &[count(1 << 20)]);
    }

    #[test]
    fn two_to_the_20_segments_of_one_token() {
        agrees(&moerl::Emulator::new(), &configs(), &vec![1; count(1 << 20)]);
    }

    #[test]
    fn a_small_batch_is_checked_as_a_large_one() {
        are_what_they_are_alone(&moerl::Emulator::new(), 9, 4096);
        are_what_they_are_alone(&moerl::Emulator::new(), 100, 32);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::common::large::room;

    fn on_a_device(lengths: &[usize]) {
        let Some(gpu) = crate::common::cuda() else { return };
        let tokens: usize = lengths.iter().sum();
        let Some(_alone) = room(&gpu, "a large batch", 20 * tokens) else { return };
        agrees(&gpu, &configs(), lengths);
    }

    #[test]
    fn two_to_the_24_tokens() {
        on_a_device(&vec![4096; 4096]);
    }

    #[test]
    fn a_segment_of_two_to_the_20_tokens() {
        on_a_device(&[1 << 20]);
    }

    #[test]
    fn two_to_the_20_segments_of_one_token() {
        on_a_device(&vec![1; 1 << 20]);
    }

    #[test]
    fn half_a_million_tokens_and_2048_short_segments() {
        on_a_device(&[vec![1 << 19], vec![256; 2048]].concat());
    }

    #[test]
    fn more_than_two_to_the_31_tokens() {
        let Some(gpu) = crate::common::cuda() else { return };
        let (segments, length) = (524_300, 4096);
        assert!(segments * length > 1 << 31);
        let Some(_alone) = room(&gpu, "2^31 tokens", 13 * segments * length) else { return };
        are_what_they_are_alone(&gpu, segments, length);
    }
}
