//! The ledger of experts, its normaliser, and the clip of their gradients: what every backend must agree on.

#[path = "expert_ledger/any.rs"]
mod any;
#[path = "expert_ledger/any_moments.rs"]
mod any_moments;
#[path = "expert_ledger/any_norms.rs"]
mod any_norms;
mod common;
#[path = "expert_ledger/drawn.rs"]
mod drawn;

use any::*;
use any_norms::*;
use approx::assert_abs_diff_eq;
use common::report::{self, see, see_values};
use moerl::element::{Float, bf16, f16};
use moerl::error::Kind;
use moerl::expert_ledger::{
    Advantages, ClipScale, ExpertSums, Ledger, Moments, Normalizer, SquaredNorms, Tokens, ledger_workspace,
    norm_workspace,
};
use moerl::gate::{Backward, Config};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};
use rand::RngExt;
use rand::seq::SliceRandom;

on_every_backend!(
    a_ledger_is_the_plain_loop,
    ledgers_of_parts_add_up,
    absent_and_broken_tokens_are_left_out,
    advantages_are_normalised_layer_by_layer,
    a_clip_limits_what_an_expert_may_say,
    an_expert_without_tokens_stays_as_it_was,
    norms_are_summed_over_parameters,
    scales_clip_large_gradients_alone,
    an_advantage_shared_out_by_probability_moves_no_router,
    faults_are_listed_together,
    any_ledger_is_the_reference_s,
    any_advantages_are_the_reference_s,
    any_norms_are_the_reference_s,
    any_scales_are_the_reference_s,
);

/// How near the suites come to their tolerances: runs each once more, and prints what they saw.
mod worst {
    use super::*;

    on_every_backend!(
        #[ignore = "prints what the suites see: cargo test worst -- --ignored --nocapture"]
        worst_of_every_group,
    );

    fn worst_of_every_group<B: Backend>(backend: &B) {
        super::every_suite(backend);
        report::print("gate", backend.name());
    }
}

/// A layer's tokens.
#[derive(Clone)]
struct Layer {
    experts: usize,
    k: usize,
    ids: Vec<i32>,
    weights: Vec<f32>,
    advantages: Vec<f32>,
    mask: Vec<u8>,
}

impl Layer {
    fn random(tokens: usize, experts: usize, k: usize, seed: u64) -> Layer {
        let mut rng = common::seeded(seed);
        let mut all: Vec<i32> = (0..experts as i32).collect();
        let ids = (0..tokens).flat_map(|_| {
            all.shuffle(&mut rng);
            all[..k].to_vec()
        });
        let ids = ids.collect();
        Layer {
            experts,
            k,
            ids,
            weights: (0..tokens * k).map(|_| rng.random_range(0.01..2.5)).collect(),
            advantages: (0..tokens).map(|_| rng.random_range(-2.0..3.0)).collect(),
            mask: (0..tokens).map(|_| u8::from(rng.random_ratio(9, 10))).collect(),
        }
    }

    fn tokens(&self) -> usize {
        self.advantages.len()
    }

    fn part(&self, range: std::ops::Range<usize>) -> Layer {
        let slots = range.start * self.k..range.end * self.k;
        Layer {
            ids: self.ids[slots.clone()].to_vec(),
            weights: self.weights[slots].to_vec(),
            advantages: self.advantages[range.clone()].to_vec(),
            mask: self.mask[range].to_vec(),
            ..*self
        }
    }
}

struct Uploaded<B: Backend, W: Float> {
    ids: B::Buffer<i32>,
    weights: B::Buffer<W>,
    advantages: B::Buffer<f32>,
    mask: B::Buffer<u8>,
    k: usize,
}

impl<B: Backend, W: Float> Uploaded<B, W> {
    fn new(backend: &B, stream: &B::Stream, layer: &Layer) -> Self {
        let weights: Vec<W> = layer.weights.iter().map(|&w| W::from_f32(w)).collect();
        Uploaded {
            ids: backend.upload(stream, &layer.ids).unwrap(),
            weights: backend.upload(stream, &weights).unwrap(),
            advantages: backend.upload(stream, &layer.advantages).unwrap(),
            mask: backend.upload(stream, &layer.mask).unwrap(),
            k: layer.k,
        }
    }

    fn tokens(&self) -> Tokens<'_, B::Memory> {
        let tokens = self.advantages.view().len();
        Tokens {
            topk_ids: self.ids.view(),
            topk_weights: Matrix::new(self.weights.view(), tokens, self.k).unwrap(),
            advantages: self.advantages.view(),
            loss_mask: Some(self.mask.view()),
        }
    }
}

fn ledger_of<B: Backend, W: Float>(
    backend: &B,
    layer: &Layer,
    shift: Option<&[f64]>,
    before: &[ExpertSums],
) -> (Vec<ExpertSums>, u64) {
    let stream = backend.stream().unwrap();
    let uploaded = Uploaded::<B, W>::new(backend, &stream, layer);
    let shift = shift.map(|shift| backend.upload(&stream, shift).unwrap());
    let mut sums = backend.upload(&stream, before).unwrap();
    let mut nonfinite = backend.allocate::<u64>(&stream, 1).unwrap();
    // What an earlier call left there.
    let junk = ExpertSums { n: 77, gate: f64::NAN, advantage: -1.0, advantage_square: 1.0 };
    let len = ledger_workspace(layer.tokens(), layer.experts);
    let mut workspace = backend.upload(&stream, &vec![junk; len]).unwrap();
    let call = Ledger {
        tokens: uploaded.tokens(),
        shift: shift.as_ref().map(Buffer::view),
        sums: sums.view_mut(),
        nonfinite: Some(nonfinite.view_mut()),
        workspace: workspace.view_mut(),
    };
    backend.expert_ledger(&stream, call).unwrap();
    (backend.download(&stream, sums.view()).unwrap(), backend.download(&stream, nonfinite.view()).unwrap()[0])
}

fn empty(experts: usize) -> Vec<ExpertSums> {
    vec![ExpertSums::default(); experts]
}

/// The formula, once more, without a thought to order.
fn plain_loop<W: Float>(layer: &Layer, shift: &[f64]) -> Vec<ExpertSums> {
    let mut sums = empty(layer.experts);
    for t in (0..layer.tokens()).filter(|&t| layer.mask[t] != 0) {
        let weights: Vec<f64> =
            layer.weights[t * layer.k..][..layer.k].iter().map(|&w| f64::from(W::from_f32(w).to_f32())).collect();
        let sum: f64 = weights.iter().sum();
        for (j, w) in weights.iter().enumerate() {
            let e = layer.ids[t * layer.k + j] as usize;
            let away = f64::from(layer.advantages[t]) - shift[e];
            sums[e].n += 1;
            sums[e].gate += w / sum;
            sums[e].advantage += w / sum * away;
            sums[e].advantage_square += w / sum * away * away;
        }
    }
    sums
}

fn assert_close(found: &[ExpertSums], expected: &[ExpertSums]) {
    for (e, (f, x)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.n, x.n, "expert {e}");
        for (f, x) in [(f.gate, x.gate), (f.advantage, x.advantage), (f.advantage_square, x.advantage_square)] {
            // f64 sums of at most a thousand terms of about 1, in another order.
            let share = see(13, "the ledger's sums", "f64", (f - x).abs() / (2.0 + x.abs()), 1e-12);
            assert!(share <= 1.0, "expert {e}: {f}, not {x}");
        }
    }
}

fn a_ledger_is_the_plain_loop<B: Backend>(backend: &B) {
    fn check<B: Backend, W: Float>(backend: &B) {
        for (tokens, experts, k) in [(1, 1, 1), (31, 8, 2), (700, 64, 6), (513, 300, 8), (40, 1100, 32)] {
            let layer = Layer::random(tokens, experts, k, tokens as u64);
            let shift: Vec<f64> = (0..experts).map(|e| 0.01 * e as f64 - 0.3).collect();
            let (found, nonfinite) = ledger_of::<B, W>(backend, &layer, Some(&shift), &empty(experts));
            assert_close(&found, &plain_loop::<W>(&layer, &shift));
            assert_eq!(nonfinite, 0);
            let (found, _) = ledger_of::<B, W>(backend, &layer, None, &empty(experts));
            assert_close(&found, &plain_loop::<W>(&layer, &vec![0.0; experts]));
        }
    }
    check::<_, f32>(backend);
    check::<_, bf16>(backend);
    check::<_, f16>(backend);
}

fn ledgers_of_parts_add_up<B: Backend>(backend: &B) {
    let layer = Layer::random(900, 32, 4, 1);
    let whole = ledger_of::<B, f32>(backend, &layer, None, &empty(32)).0;
    // Cut between panels of 256 rows, in one sum after the other.
    let mut sums = empty(32);
    for range in [0..512, 512..900] {
        sums = ledger_of::<B, f32>(backend, &layer.part(range), None, &sums).0;
    }
    assert_close(&sums, &whole);
}

fn absent_and_broken_tokens_are_left_out<B: Backend>(backend: &B) {
    let mut layer = Layer::random(100, 16, 2, 2);
    layer.mask.fill(1);
    let good = layer.part(5..100);
    layer.weights[0] = f32::NAN;
    layer.advantages[1] = f32::INFINITY;
    layer.weights[4..6].fill(0.0); // a row of the gate that goes nowhere
    layer.ids[6..8].fill(-1);
    layer.mask[3] = 0;
    (layer.mask[4], layer.advantages[4], layer.weights[8]) = (0, f32::NAN, f32::NAN);
    let (found, nonfinite) = ledger_of::<B, f32>(backend, &layer, None, &empty(16));
    assert_close(&found, &ledger_of::<B, f32>(backend, &good, None, &empty(16)).0);
    assert_eq!(nonfinite, 2);
}

fn normalised<B: Backend>(backend: &B, layers: &[Layer], normalizer: &Normalizer, clip: Option<f32>) -> Vec<f32> {
    let stream = backend.stream().unwrap();
    let tokens = layers[0].tokens();
    let mut normalized = backend.allocate::<f32>(&stream, tokens).unwrap();
    for (l, layer) in layers.iter().enumerate() {
        let uploaded = Uploaded::<B, f32>::new(backend, &stream, layer);
        let mean = backend.upload(&stream, &normalizer.means(l)).unwrap();
        let inverse = backend.upload(&stream, &normalizer.inverse_deviations(l)).unwrap();
        let call = Advantages {
            tokens: uploaded.tokens(),
            mean: mean.view(),
            inverse_deviation: inverse.view(),
            layers: layers.len(),
            clip,
            normalized: normalized.view_mut(),
        };
        backend.expert_advantages(&stream, call).unwrap();
    }
    backend.download(&stream, normalized.view()).unwrap()
}

/// Three layers over the same tokens, and a normaliser that has seen them.
fn three_layers<B: Backend>(backend: &B) -> (Vec<Layer>, Normalizer) {
    let first = Layer::random(300, 24, 3, 3);
    let mut normalizer = Normalizer::new(3, 24, 0.9, 1e-6).unwrap();
    let layers: Vec<Layer> = (0..3)
        .map(|l| {
            let routes = Layer::random(300, 24, 3, 10 + l);
            Layer { advantages: first.advantages.clone(), mask: first.mask.clone(), ..routes }
        })
        .collect();
    for (l, layer) in layers.iter().enumerate() {
        let sums = ledger_of::<B, f32>(backend, layer, Some(&normalizer.means(l)), &empty(24)).0;
        normalizer.update(l, &sums).unwrap();
    }
    (layers, normalizer)
}

fn advantages_are_normalised_layer_by_layer<B: Backend>(backend: &B) {
    let (layers, normalizer) = three_layers(backend);
    let found = normalised(backend, &layers, &normalizer, None);
    let mut expected = vec![0.0; 300];
    for (l, layer) in layers.iter().enumerate() {
        let moments = normalizer.layer(l);
        for t in (0..300).filter(|&t| layer.mask[t] != 0) {
            let weights = &layer.weights[t * 3..][..3];
            let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            for (j, &w) in weights.iter().enumerate() {
                let Moments { mean, variance, .. } = moments[layer.ids[t * 3 + j] as usize];
                let z = (f64::from(layer.advantages[t]) - mean) / (variance.sqrt() + 1e-6);
                expected[t] += f64::from(w) / sum * z / 3.0;
            }
        }
    }
    // One rounding to f32 for each layer.
    assert!(see_values(13, "normalised advantages", "three layers", &found, &expected, 2e-7, 2e-7) <= 1.0);
    let mean = found.iter().map(|&a| f64::from(a)).sum::<f64>() / 300.0;
    assert!(mean.abs() < 0.1, "{mean}");
}

fn a_clip_limits_what_an_expert_may_say<B: Backend>(backend: &B) {
    let (layers, normalizer) = three_layers(backend);
    let free = normalised(backend, &layers, &normalizer, None);
    let clipped = normalised(backend, &layers, &normalizer, Some(0.25));
    assert!(free.iter().any(|a| a.abs() > 1.0));
    assert!(clipped.iter().all(|a| a.abs() <= 0.25 + 1e-6));
    assert_eq!(common::bits(&normalised(backend, &layers, &normalizer, Some(1e6))), common::bits(&free));
}

fn an_expert_without_tokens_stays_as_it_was<B: Backend>(backend: &B) {
    let mut layer = Layer::random(50, 8, 2, 4);
    let mut normalizer = Normalizer::new(1, 8, 0.5, 1e-6).unwrap();
    let step = |layer: &Layer, normalizer: &mut Normalizer| {
        let sums = ledger_of::<B, f32>(backend, layer, Some(&normalizer.means(0)), &empty(8)).0;
        normalizer.update(0, &sums).unwrap();
    };
    step(&layer, &mut normalizer);
    let before = normalizer.layer(0).to_vec();
    // Now nobody goes to expert 5.
    layer.mask = layer.ids.chunks(2).map(|ids| u8::from(!ids.contains(&5))).collect();
    step(&layer, &mut normalizer);
    for (e, (before, after)) in before.iter().zip(normalizer.layer(0)).enumerate() {
        assert_eq!(before == after, e == 5, "expert {e}");
    }
}

fn squared_norms<B: Backend, T: Float>(
    backend: &B,
    gradient: &[T],
    experts: usize,
    stride: usize,
    before: &[f64],
) -> Vec<f64> {
    let stream = backend.stream().unwrap();
    let columns = if experts == 0 { 0 } else { gradient.len() - (experts - 1) * stride };
    let uploaded = backend.upload(&stream, gradient).unwrap();
    let mut squares = backend.upload(&stream, before).unwrap();
    let mut workspace = backend.upload(&stream, &vec![f64::NAN; norm_workspace(experts, columns)]).unwrap();
    let call = SquaredNorms {
        gradient: Matrix::strided(uploaded.view(), experts, columns, stride).unwrap(),
        squares: squares.view_mut(),
        workspace: workspace.view_mut(),
    };
    backend.expert_squared_norms(&stream, call).unwrap();
    backend.download(&stream, squares.view()).unwrap()
}

fn norms_are_summed_over_parameters<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Float>(backend: &B) {
        let mut rng = common::seeded(5);
        for (elements, gap) in [(1, 0), (4096, 0), (8193, 3), (20000, 8)] {
            let stride = elements + gap;
            let gradient: Vec<T> =
                (0..2 * stride + elements).map(|_| T::from_f32(rng.random_range(-1.0..1.0))).collect();
            let mut expected = vec![0.5, 0.0, 2.0];
            for (e, to) in expected.iter_mut().enumerate() {
                *to += gradient[e * stride..][..elements].iter().map(|x| f64::from(x.to_f32()).powi(2)).sum::<f64>();
            }
            let found = squared_norms(backend, &gradient, 3, stride, &[0.5, 0.0, 2.0]);
            for (f, x) in found.iter().zip(&expected) {
                let share = see(13, "squared norms", T::ELEMENT.name(), (f - x).abs() / x, 1e-13);
                assert!(share <= 1.0, "{elements} elements: {f}, not {x}");
            }
        }
    }
    check::<_, bf16>(backend);
    check::<_, f16>(backend);
    check::<_, f32>(backend);
}

fn scales_clip_large_gradients_alone<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let squares = backend.upload(&stream, &[0.0, 0.25, 4.0, 1e300, f64::NAN]).unwrap();
    let mut scale = backend.upload(&stream, &[-77f32; 5]).unwrap();
    let call = ClipScale { squares: squares.view(), clip: 1.0, scale: scale.view_mut() };
    backend.expert_clip_scale(&stream, call).unwrap();
    let found = backend.download(&stream, scale.view()).unwrap();
    assert_eq!(found[..2], [1.0, 1.0]);
    assert!(common::worst(&found[2..4], &[1.0 / 2.000001, 1e-150], 1e-45, 1e-7) <= 1.0, "{found:?}");
    assert!(found[4].is_nan());
}

/// `Σ_e A p_e` is A whatever the router says: as weights of all experts with the same gradient A, it has none for the logits.
fn an_advantage_shared_out_by_probability_moves_no_router<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    // Equal logits have probabilities that f32 holds: nothing is left of the sum but what is there.
    let logits = backend.upload(&stream, &[0.75f32; 8]).unwrap();
    let ids = backend.upload(&stream, &[0i32, 1, 2, 3, 3, 2, 1, 0]).unwrap();
    let upstream = backend.upload(&stream, &[1.5f32, 1.5, 1.5, 1.5, -3.0, -3.0, -3.0, -3.0]).unwrap();
    let mut gradient = backend.upload(&stream, &[-77f32; 8]).unwrap();
    let call = Backward::new(
        Matrix::new(upstream.view(), 2, 4).unwrap(),
        ids.view(),
        logits.view(),
        MatrixMut::new(gradient.view_mut(), 2, 4).unwrap(),
    );
    backend.gate_backward(&stream, &Config::softmax_selected(4), call).unwrap();
    // The reference's probabilities come from logarithms in f64, and are equal to one rounding of that.
    let most = if backend.name() == "reference" { 1e-15 } else { 0.0 };
    assert!(backend.download(&stream, gradient.view()).unwrap().iter().all(|&d| d.abs() <= most));
}

/// The surrogate's gradient `−c A (g̃_e − p_e)` with `g̃ = p` on all experts.
#[test]
fn a_virtual_advantage_weighted_by_probability_moves_no_router() {
    let probabilities = [0.5f64, 0.3, 0.15, 0.05];
    let surrogate =
        |gate: &[f64]| -> Vec<f64> { gate.iter().zip(&probabilities).map(|(g, p)| -2.5 * (g - p)).collect() };
    assert!(surrogate(&probabilities).iter().all(|&d| d == 0.0));
    // Of the chosen experts alone it does move.
    assert!(surrogate(&[0.625, 0.375, 0.0, 0.0]).iter().all(|&d| d != 0.0));
}

#[test]
fn running_moments_are_those_of_the_weighted_steps() {
    let beta = 0.8;
    let steps: Vec<Vec<(f64, f64)>> = vec![
        vec![(0.4, 1.0), (0.6, -2.0), (1.0, 0.5)],
        vec![(0.2, 3.0), (0.9, 2.0)],
        vec![(1.0, -1.0), (0.3, 0.0), (0.7, 4.0), (0.1, 1e3)],
    ];
    let mut moments = Moments::default();
    for tokens in &steps {
        let mut sums = ExpertSums::default();
        for &(gate, advantage) in tokens {
            let away = advantage - moments.mean;
            sums.n += 1;
            sums.gate += gate;
            sums.advantage += gate * away;
            sums.advantage_square += gate * away * away;
        }
        moments.update(beta, &sums);
    }
    // A step's tokens share (1−β) β^age by their gates.
    let mut weighted = Vec::new();
    for (age, tokens) in steps.iter().rev().enumerate() {
        let gates: f64 = tokens.iter().map(|(gate, _)| gate).sum();
        weighted.extend(tokens.iter().map(|(gate, a)| ((1.0 - beta) * beta.powi(age as i32) * gate / gates, *a)));
    }
    let weight: f64 = weighted.iter().map(|(w, _)| w).sum();
    let mean = weighted.iter().map(|(w, a)| w * a).sum::<f64>() / weight;
    let variance = weighted.iter().map(|(w, a)| w * (a - mean) * (a - mean)).sum::<f64>() / weight;
    assert_abs_diff_eq!(moments.weight, weight, epsilon = 1e-14);
    assert!((moments.mean - mean).abs() < 1e-12 * mean.abs(), "{} not {mean}", moments.mean);
    assert!((moments.variance - variance).abs() < 1e-12 * variance, "{} not {variance}", moments.variance);
}

#[test]
fn an_expert_that_was_never_used_says_nothing() {
    let mut normalizer = Normalizer::new(2, 3, 0.9, 1e-3).unwrap();
    assert_eq!(normalizer.inverse_deviations(1), [0.0; 3]);
    let sums = ExpertSums { n: 2, gate: 1.0, advantage: 2.0, advantage_square: 5.0 };
    normalizer.update(1, &[ExpertSums::default(), sums, ExpertSums { gate: f64::NAN, ..sums }]).unwrap();
    assert_eq!(normalizer.means(1), [0.0, 2.0, 0.0]);
    assert_eq!(normalizer.inverse_deviations(1), [0.0, 1.0 / 1.001, 0.0]);
    assert_eq!(normalizer.means(0), [0.0; 3]);
    assert!(normalizer.update(0, &[sums]).unwrap_err().is(Kind::Shape));
    assert!(Normalizer::new(1, 1, 1.0, 0.0).unwrap_err().to_string().contains("epsilon: is 0"));
}

fn faults_are_listed_together<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let layer = Layer::random(300, 16, 2, 6);
    let uploaded = Uploaded::<B, f32>::new(backend, &stream, &layer);
    let shift = backend.upload(&stream, &[0.0; 3]).unwrap();
    let mut sums = backend.upload(&stream, &empty(16)).unwrap();
    let mut workspace = backend.upload(&stream, &empty(16)).unwrap();
    let mut tokens = uploaded.tokens();
    tokens.advantages = tokens.advantages.slice(0..299);
    let call = Ledger {
        tokens,
        shift: Some(shift.view()),
        sums: sums.view_mut(),
        nonfinite: None,
        workspace: workspace.view_mut(),
    };
    let error = backend.expert_ledger(&stream, call).unwrap_err();
    for part in ["topk_weights: has shape [300], needs [299]", "shift: has shape [3], needs [16]", "needs 32"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    let mut scale = backend.upload(&stream, &[0f32; 2]).unwrap();
    let call = ClipScale { squares: shift.view(), clip: 0.0, scale: scale.view_mut() };
    let error = backend.expert_clip_scale(&stream, call).unwrap_err();
    assert!(error.is(Kind::Config) && error.is(Kind::Shape), "{error}");
}

#[cfg(feature = "emulate")]
#[test]
fn every_schedule_gives_the_same_bits() {
    use moerl::Emulator;
    let layer = Layer::random(600, 300, 6, 7);
    let gradient: Vec<f32> = layer.weights.iter().cycle().take(2 * 9000).copied().collect();
    let run = |emulator: &Emulator| {
        let sums = ledger_of::<_, f32>(emulator, &layer, None, &empty(300)).0;
        let norms = squared_norms(emulator, &gradient, 2, 9000, &[0.0; 2]);
        (bytemuck::cast_slice::<ExpertSums, u64>(&sums).to_vec(), norms.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    let first = run(&Emulator::new());
    for emulator in common::schedules::schedules() {
        assert!(run(&emulator) == first, "{emulator:?}");
    }
}

/// Bytes by the emulator's meter against the floor: what the formulas name, once.
#[cfg(feature = "emulate")]
#[test]
fn each_array_is_read_once() {
    use moerl::Emulator;
    use moerl::device::emulator::LaunchTraffic;
    let metered = |work: &dyn Fn(&Emulator)| {
        let emulator = Emulator::new().metered();
        work(&emulator);
        emulator.take_traffic()
    };
    let read_once = |launch: &LaunchTraffic, name: &str, bytes: usize| {
        let loads = launch.buffer(name).unwrap_or_else(|| panic!("{} has no {name}", launch.kernel)).loads;
        assert_eq!((loads.bytes, loads.most), (bytes as u64, 1), "{name} of {}", launch.kernel);
    };
    let (tokens, experts, k) = (700, 64, 6);
    let mut layer = Layer::random(tokens, experts, k, 8);
    layer.mask.fill(1);
    layer.mask[..100].fill(0);
    let there = tokens - 100;
    let shift = vec![0.25; experts];
    let records = ledger_workspace(tokens, experts) * size_of::<ExpertSums>();

    let launches = metered(&|emulator| drop(ledger_of::<_, bf16>(emulator, &layer, Some(&shift), &empty(experts))));
    let [panels, merge] = &launches[..] else { panic!("{} launches", launches.len()) };
    // Of tokens that are left out only the mask is read, once for the ids and weights of a slot and once for the advantage.
    read_once(panels, "topk_ids", there * k * 4);
    read_once(panels, "topk_weights", there * k * 2);
    read_once(panels, "advantages", there * 4);
    read_once(merge, "workspace", records);
    assert_eq!(panels.buffer("workspace").unwrap().stores.bytes, records as u64);
    assert_eq!(merge.buffer("sums").unwrap().stores.bytes, (experts * size_of::<ExpertSums>()) as u64);
    read_once(merge, "sums", experts * size_of::<ExpertSums>());
    let masks = panels.buffer("loss_mask").unwrap().loads;
    assert_eq!(masks.untouched, 0);
    assert!(masks.most <= k as u64 + 1, "{} looks at a token's mask", masks.most);
    assert!(panels.buffer("sums").unwrap().stores.bytes == 0 && merge.buffer("topk_ids").unwrap().loads.bytes == 0);

    let stream = ();
    let launches = metered(&|emulator| {
        let uploaded = Uploaded::<Emulator, f32>::new(emulator, &stream, &layer);
        let (mean, inverse) = (emulator.upload(&(), &shift).unwrap(), emulator.upload(&(), &shift).unwrap());
        let mut normalized = Backend::allocate::<f32>(emulator, &(), tokens).unwrap();
        let call = Advantages {
            tokens: uploaded.tokens(),
            mean: mean.view(),
            inverse_deviation: inverse.view(),
            layers: 1,
            clip: None,
            normalized: normalized.view_mut(),
        };
        emulator.expert_advantages(&(), call).unwrap();
    });
    let [launch] = &launches[..] else { panic!("{} launches", launches.len()) };
    read_once(launch, "topk_ids", there * k * 4);
    read_once(launch, "advantages", there * 4);
    read_once(launch, "normalized", there * 4);
    assert_eq!(launch.buffer("normalized").unwrap().stores.bytes, (there * 4) as u64);
    // Its weights are summed, then divided: the second time they lie in the cache.
    let weights = launch.buffer("topk_weights").unwrap().loads;
    assert_eq!((weights.bytes, weights.most), ((2 * there * k * 4) as u64, 2));

    let (slices, elements) = (3, 20_000);
    let gradient: Vec<bf16> = (0..slices * elements).map(|i| bf16::from_f32((i % 7) as f32)).collect();
    let launches = metered(&|emulator| drop(squared_norms(emulator, &gradient, slices, elements, &vec![0.0; slices])));
    let [panels, merge] = &launches[..] else { panic!("{} launches", launches.len()) };
    read_once(panels, "gradient", slices * elements * 2);
    assert_eq!(panels.buffer("gradient").unwrap().loads.accesses, (slices * elements / 8) as u64, "16 bytes at a time");
    read_once(merge, "workspace", norm_workspace(slices, elements) * 8);
    assert_eq!(panels.store_bytes(), norm_workspace(slices, elements) as u64 * 8);
    assert_eq!(
        (merge.load_bytes(), merge.store_bytes()),
        (panels.store_bytes() + 8 * slices as u64, 8 * slices as u64)
    );
}
