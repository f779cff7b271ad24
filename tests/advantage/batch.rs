//! Statistics over a batch.

use moerl::advantage::{
    BatchNorm, Call, Config, CountTokens, DoublyRobust, GroupPlan, MOMENTS, Moments, Pass, ReinforcePpBaseline,
    Weights, Whitening, batch_norm, moments_workspace_bytes, reinforce_pp_baseline, whiten,
};
use moerl::objective::{Groups, Plan, Segments};
use moerl::{Backend, Buffer, Reference};
use rand::RngExt;

use crate::common;
use crate::group::assert_close;

/// More than one tile of 4096, with values that are not finite, around a mean that would cancel in a single pass.
fn values(len: usize) -> (Vec<f32>, Vec<u8>, Vec<u32>) {
    let mut rng = common::seeded(7);
    let values = (0..len).map(|i| if i % 97 == 5 { f32::NAN } else { 4096.0 + rng.random_range(-1.0..1.0) }).collect();
    let mask = (0..len).map(|_| u8::from(rng.random_range(0..3) != 0)).collect();
    (values, mask, (0..len).map(|_| rng.random_range(0..9)).collect())
}

fn moments_of<B: Backend>(backend: &B, values: &[f32], mask: Option<&[u8]>, counts: Option<&[u32]>) -> Vec<f64> {
    let stream = backend.stream().unwrap();
    let on_device = backend.upload(&stream, values).unwrap();
    let mask = mask.map(|mask| backend.upload(&stream, mask).unwrap());
    let counts = counts.map(|counts| backend.upload(&stream, counts).unwrap());
    let weights = match (&mask, &counts) {
        (Some(mask), _) => Weights::Mask(mask.view()),
        (_, Some(counts)) => Weights::Counts(counts.view()),
        _ => Weights::One,
    };
    let mut moments = backend.upload(&stream, &[f64::NAN; MOMENTS]).unwrap();
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; moments_workspace_bytes(values.len())]).unwrap();
    for pass in [Pass::Mean, Pass::Squares] {
        let call =
            Moments { values: on_device.view(), weights, moments: moments.view_mut(), workspace: workspace.view_mut() };
        backend.batch_moments(&stream, pass, call).unwrap();
    }
    backend.download(&stream, moments.view()).unwrap()
}

pub fn moments_are_sums_that_ranks_may_add_up<B: Backend>(backend: &B) {
    for len in [0, 1, 300, 4096, 9000] {
        let (values, mask, counts) = values(len);
        for (mask, counts) in [(None, None), (Some(&mask[..]), None), (None, Some(&counts[..]))] {
            let found = moments_of(backend, &values, mask, counts);
            let expected = moments_of(&Reference, &values, mask, counts);
            for (f, e) in found.iter().zip(&expected) {
                // Sums of f64 in another order, of up to 9000 · 8 terms.
                assert!((f - e).abs() <= 1e-11 * e.abs(), "{len}: {found:?} not {expected:?}");
            }
        }
    }
    // Where nothing counts there is no mean to be away from.
    assert_eq!(moments_of(backend, &[1.0, -3.0], None, Some(&[0, 0])), [0.0; MOMENTS]);
    let (values, _, _) = values(9000);
    let (a, b) = values.split_at(5000);
    let parts = [moments_of(backend, a, None, None), moments_of(backend, b, None, None)];
    let whole = moments_of(backend, &values, None, None);
    assert!((parts[0][1] + parts[1][1] - whole[1]).abs() <= 1e-12 * whole[1].abs());
    assert_eq!(parts[0][0] + parts[1][0], whole[0]);
}

pub fn whitened<B: Backend>(backend: &B, config: &Whitening, values: &[f32], mask: Option<&[u8]>) -> Vec<f32> {
    let stream = backend.stream().unwrap();
    let mut on_device = backend.upload(&stream, values).unwrap();
    let mask = mask.map(|mask| backend.upload(&stream, mask).unwrap());
    let weights = mask.as_ref().map_or(Weights::One, |mask| Weights::Mask(mask.view()));
    let mut moments = backend.allocate(&stream, MOMENTS).unwrap();
    let mut workspace = backend.allocate(&stream, moments_workspace_bytes(values.len())).unwrap();
    whiten(backend, &stream, config, on_device.view_mut(), weights, moments.view_mut(), workspace.view_mut()).unwrap();
    backend.download(&stream, on_device.view()).unwrap()
}

pub fn whitened_values_have_mean_0_and_deviation_1<B: Backend>(backend: &B) {
    let (values, mask, _) = values(9000);
    let found = whitened(backend, &Whitening::default(), &values, Some(&mask));
    let expected: Vec<f64> =
        whitened(&Reference, &Whitening::default(), &values, Some(&mask)).iter().map(|&x| f64::from(x)).collect();
    // A difference of f64 from a mean that other sums made, rounded once.
    assert!(common::worst(&found, &expected, 1e-9, 2e-7) <= 1.0);
    let counted: Vec<f64> =
        (0..values.len()).filter(|&i| mask[i] != 0 && values[i].is_finite()).map(|i| f64::from(found[i])).collect();
    let mean = counted.iter().sum::<f64>() / counted.len() as f64;
    let squares: f64 = counted.iter().map(|x| (x - mean) * (x - mean)).sum();
    // 2⁻²⁴ of each value's size is rounding.
    assert!(mean.abs() < 1e-6 && (squares / (counted.len() - 1) as f64 - 1.0).abs() < 1e-6);
    for i in (0..values.len()).filter(|&i| mask[i] == 0 || !values[i].is_finite()) {
        assert_eq!(found[i].to_bits(), 0);
    }
}

pub fn without_two_values_there_is_no_deviation<B: Backend>(backend: &B) {
    assert_eq!(whitened(backend, &Whitening::default(), &[5.0], None), [0.0]);
    assert_eq!(whitened(backend, &Whitening::default(), &[5.0, 7.0, 8.0], Some(&[0, 1, 0])), [0.0; 3]);
    assert_eq!(whitened(backend, &Whitening::default(), &[5.0, f32::NAN], None), [0.0; 2]);
    assert_eq!(whitened(backend, &Whitening::default(), &[3.0, 4.0], Some(&[0, 0])), [0.0; 2]);
    let strict = Whitening { epsilon: 0.0, ..Whitening::default() };
    assert_eq!(whitened(backend, &strict, &[0.3; 3], None), [0.0; 3]);
    let half = std::f64::consts::FRAC_1_SQRT_2;
    assert_close(&whitened(backend, &strict, &[0.5, 1.0], None), &[-half, half]);
}

struct Arrays<B: Backend> {
    stream: B::Stream,
    groups: GroupPlan<B>,
    rewards: B::Buffer<f32>,
    lengths: B::Buffer<u32>,
    advantages: B::Buffer<f32>,
    moments: B::Buffer<f64>,
    workspace: B::Buffer<u8>,
}

impl<B: Backend> Arrays<B> {
    fn new(backend: &B, ids: &[i32], rewards: &[f32], lengths: &[u32]) -> Arrays<B> {
        let stream = backend.stream().unwrap();
        Arrays {
            groups: GroupPlan::new(backend, &stream, &Groups::from_ids(ids)).unwrap(),
            rewards: backend.upload(&stream, rewards).unwrap(),
            lengths: backend.upload(&stream, lengths).unwrap(),
            advantages: backend.allocate(&stream, rewards.len()).unwrap(),
            moments: backend.allocate(&stream, MOMENTS).unwrap(),
            workspace: backend.allocate(&stream, moments_workspace_bytes(rewards.len())).unwrap(),
            stream,
        }
    }
}

fn call<'a, B: Backend>(
    rewards: &'a B::Buffer<f32>,
    lengths: &'a B::Buffer<u32>,
    advantages: &'a mut B::Buffer<f32>,
    workspace: &'a mut B::Buffer<u8>,
) -> Call<'a, B::Memory> {
    Call {
        lengths: Some(lengths.view()),
        workspace: Some(workspace.view_mut()),
        ..Call::new(rewards.view(), advantages.view_mut())
    }
}

pub fn a_batch_of_rewards_is_divided_by_its_deviation<B: Backend>(backend: &B) {
    let mut a = Arrays::new(backend, &[1, 1, 2, 2], &[95.0, 70.0, 85.0, 80.0], &[1; 4]);
    let call = call::<B>(&a.rewards, &a.lengths, &mut a.advantages, &mut a.workspace);
    let batch = BatchNorm { call, moments: a.moments.view_mut() };
    batch_norm(backend, &a.stream, &Config::trl(true), &a.groups, batch).unwrap();
    // sd of (95, 70, 85, 80), ddof 1.
    let sd = (325.0_f64 / 3.0).sqrt() + 1e-4;
    let found = backend.download(&a.stream, a.advantages.view()).unwrap();
    assert_close(&found, &[12.5 / sd, -12.5 / sd, 2.5 / sd, -2.5 / sd]);
}

pub fn a_segment_counts_as_often_as_it_has_tokens<B: Backend>(backend: &B) {
    let lengths = [1, 3, 0, 2];
    let mut a = Arrays::new(backend, &[1, 1, 2, 2], &[1.0, 0.0, 4.0, 1.0], &lengths);
    let call = call::<B>(&a.rewards, &a.lengths, &mut a.advantages, &mut a.workspace);
    let batch = ReinforcePpBaseline { call, moments: a.moments.view_mut() };
    reinforce_pp_baseline(backend, &a.stream, &Config::without_std(), &a.groups, batch).unwrap();
    let found = backend.download(&a.stream, a.advantages.view()).unwrap();
    // The same tokens, one by one.
    let centred = [0.5, -0.5, 1.5, -1.5];
    let tokens: Vec<f32> = lengths.iter().zip(centred).flat_map(|(&n, x)| std::iter::repeat_n(x, n as usize)).collect();
    let expected = whitened(&Reference, &Whitening::default(), &tokens, None);
    assert_close(&[found[0], found[1], found[3]], &[expected[0], expected[1], expected[5]].map(f64::from));
}

pub fn a_reward_that_is_not_finite_is_not_whitened<B: Backend>(backend: &B) {
    let lengths = [1, 3, 5, 2, 4];
    let run = |ids: &[i32], rewards: &[f32], lengths: &[u32]| {
        let mut a = Arrays::new(backend, ids, rewards, lengths);
        let call = call::<B>(&a.rewards, &a.lengths, &mut a.advantages, &mut a.workspace);
        let batch = ReinforcePpBaseline { call, moments: a.moments.view_mut() };
        reinforce_pp_baseline(backend, &a.stream, &Config::without_std(), &a.groups, batch).unwrap();
        backend.download(&a.stream, a.advantages.view()).unwrap()
    };
    let found = run(&[1, 1, 2, 2, 2], &[1.0, 0.0, f32::NAN, 4.0, 1.0], &lengths);
    let without = run(&[1, 1, 2, 2], &[1.0, 0.0, 4.0, 1.0], &[1, 3, 2, 4]);
    assert_eq!(found[2].to_bits(), 0);
    assert_close(
        &[found[0], found[1], found[3], found[4]],
        &[without[0], without[1], without[2], without[3]].map(f64::from),
    );
}

pub fn tokens_are_counted_by_segment<B: Backend>(backend: &B) {
    let mut rng = common::seeded(3);
    let lengths = [0, 1, 33, 1024, 5, 2500, 40, 0, 700, 1025];
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &Segments::from_lengths(lengths).unwrap()).unwrap();
    let mask: Vec<u8> = (0..plan.segments().tokens()).map(|_| rng.random_range(0..3)).collect();
    let on_device = backend.upload(&stream, &mask).unwrap();
    let mut counts = backend.upload(&stream, &[7_u32; 10]).unwrap();
    let call = CountTokens { loss_mask: Some(on_device.view()), counts: counts.view_mut() };
    backend.count_tokens(&stream, &plan, call).unwrap();
    let expected: Vec<u32> =
        plan.segments().ranges().map(|range| mask[range].iter().filter(|&&m| m != 0).count() as u32).collect();
    assert_eq!(backend.download(&stream, counts.view()).unwrap(), expected);
    backend.count_tokens(&stream, &plan, CountTokens { loss_mask: None, counts: counts.view_mut() }).unwrap();
    assert_eq!(backend.download(&stream, counts.view()).unwrap(), lengths.map(|n| n as u32));
}

pub fn doubly_robust_estimates_correct_the_value_by_the_weighted_error<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let rewards = backend.upload(&stream, &[1.0_f32, 0.0, f32::NAN, 1.0, 2.0]).unwrap();
    let values = backend.upload(&stream, &[0.5_f32, 0.5, 0.25, f32::INFINITY, 1.0]).unwrap();
    let weights = backend.upload(&stream, &[2.0_f32, 0.5, 1.0, 1.0, 0.0]).unwrap();
    let mut advantages = backend.upload(&stream, &[f32::NAN; 5]).unwrap();
    let mut estimates = backend.upload(&stream, &[f32::NAN; 5]).unwrap();
    let mut nonfinite = backend.allocate::<u64>(&stream, 1).unwrap();
    let call = DoublyRobust {
        rewards: rewards.view(),
        values: values.view(),
        weights: Some(weights.view()),
        advantages: advantages.view_mut(),
        estimates: Some(estimates.view_mut()),
        nonfinite: Some(nonfinite.view_mut()),
    };
    backend.doubly_robust(&stream, call).unwrap();
    assert_eq!(backend.download(&stream, advantages.view()).unwrap(), [1.0, -0.25, 0.0, 0.0, 0.0]);
    assert_eq!(backend.download(&stream, estimates.view()).unwrap(), [1.5, 0.25, 0.25, 0.0, 1.0]);
    assert_eq!(backend.download(&stream, nonfinite.view()).unwrap(), [2]);
}
