//! What the losses come to where that is known without a reference.

use approx::assert_abs_diff_eq;
use moerl::element::bf16;
use moerl::gate::Config as Gate;
use moerl::router_loss::{BiasUpdate, Config, CountsFrom, Scope};
use moerl::{Backend, Buffer};

use crate::case::{Case, Sums, every_loss};
use crate::common;
use crate::common::report::{count, see};

crate::on_every_backend!(
    a_uniform_router_has_the_coefficient_as_its_balance_loss,
    padding_may_hold_anything,
    an_empty_batch_has_no_loss_and_no_gradient,
    micro_batches_add_up_to_the_batch,
    panels_of_a_segment_do_not_know_their_neighbours,
    a_global_batch_takes_its_counts_from_elsewhere,
    a_fresh_choice_has_ties_by_id,
    a_row_without_a_route_is_in_no_choice,
    one_expert_a_token_is_balanced_too,
    a_router_that_is_its_reference_does_not_diverge,
    the_bias_moves_towards_an_even_load,
);

/// Logits of one value throughout, and every expert as often as the others.
fn uniform(config: Config, tokens: usize, experts: usize, k: usize) -> Case<f32> {
    let mut case = Case::<f32>::random(Gate::softmax_selected(k), config, &[tokens], experts, k, 1);
    case.logits.fill(0.25);
    case.ids = (0..tokens * k).map(|slot| (slot % experts) as i32).collect();
    case
}

fn a_uniform_router_has_the_coefficient_as_its_balance_loss<B: Backend>(backend: &B) {
    for gate in [Gate::softmax_selected(2), Gate::sigmoid(2), Gate::sqrt_softplus(2)] {
        let case = Case { gate, ..uniform(Config::switch(0.01), 16, 8, 2) };
        let sums = case.partial(backend, None).unwrap();
        assert_eq!(sums.counts, [4; 8]);
        let finished = case.finish(backend, &sums, None).unwrap();
        let error = (finished.values[0] - 0.01).abs();
        assert!(see(12, "a uniform router's loss", "switch", error, 1e-8) < 1.0, "{:?}", finished.values);
        let gradient = case.backward::<B, f32>(backend, &finished).unwrap();
        // q is one number for all, and so is Σ q P: 1/16 of them, and a few units of their last place.
        assert!(gradient.iter().all(|d| d.abs() < 1e-9), "{gradient:?}");
    }
    // An entropy of log E, and a log-sum-exp of x + log E.
    let case = uniform(Config { balance: 0.0, router_kl: 0.0, ..every_loss() }, 16, 8, 2);
    let finished = case.finish(backend, &case.partial(backend, None).unwrap(), None).unwrap();
    assert_abs_diff_eq!(finished.values[1], 0.01 * (0.25 + 8f64.ln()).powi(2), epsilon = 1e-8);
    assert!((finished.values[2] + 0.3 * 8f64.ln()).abs() < 1e-6);
}

fn padding_may_hold_anything<B: Backend>(backend: &B) {
    for scope in [Scope::Batch, Scope::Segments] {
        let mut clean = Case::<bf16>::random(Gate::sigmoid(2), Config { scope, ..every_loss() }, &[40], 12, 2, 2);
        clean.token_mask = Some((0..40).map(|t| u8::from(t % 3 != 1)).collect());
        clean.row_count = Some(35);
        let mut dirty = clean.clone();
        for t in (0..40).filter(|t| t % 3 == 1 || *t >= 35) {
            dirty.logits[t * 12..][..12].fill(bf16::NAN);
            dirty.reference[t * 12..][..12].fill(bf16::INFINITY);
            dirty.ids[t * 2..][..2].fill(-5);
        }
        let sums = clean.partial(backend, None).unwrap();
        assert_eq!(dirty.partial(backend, None).unwrap(), sums);
        let finished = clean.finish(backend, &sums, None).unwrap();
        let gradients =
            [&clean, &dirty].map(|case| common::bits(&case.backward::<B, f32>(backend, &finished).unwrap()));
        assert_eq!(gradients[0], gradients[1]);
        count(12, clean.tokens());
    }
}

fn an_empty_batch_has_no_loss_and_no_gradient<B: Backend>(backend: &B) {
    for (lengths, scope, masked) in [
        (vec![0], Scope::Batch, false),
        (vec![5], Scope::Batch, true),
        (vec![], Scope::Segments, false),
        (vec![0, 0], Scope::Segments, false),
        (vec![2, 3], Scope::Segments, true),
    ] {
        let mut case = Case::<f32>::random(Gate::softmax(2), Config { scope, ..every_loss() }, &lengths, 8, 2, 3);
        case.token_mask = masked.then(|| vec![0; case.tokens()]);
        let sums = case.partial(backend, None).unwrap();
        assert!(sums.probabilities.iter().all(|p| *p == 0.0) && sums.rows.iter().all(|n| *n == 0));
        assert_eq!((sums.totals.as_slice(), sums.nonfinite.as_slice()), ([0.0; 3].as_slice(), [0].as_slice()));
        let finished = case.finish(backend, &sums, None).unwrap();
        assert_eq!(finished.values, [0.0; 4]);
        assert!(finished.q.iter().chain(&finished.coefficients).all(|x| x.to_bits() == 0));
        let gradient = case.backward::<B, f32>(backend, &finished).unwrap();
        assert!(gradient.iter().all(|d| d.to_bits() == 0));
    }
}

fn part(case: &Case<bf16>, from: usize, to: usize) -> Case<bf16> {
    let (e, k) = (case.experts, case.k);
    Case {
        lengths: vec![to - from],
        logits: case.logits[from * e..to * e].to_vec(),
        reference: case.reference[from * e..to * e].to_vec(),
        ids: case.ids[from * k..to * k].to_vec(),
        ..case.clone()
    }
}

fn micro_batches_add_up_to_the_batch<B: Backend>(backend: &B) {
    let case = Case::<bf16>::random(Gate::sigmoid(2), every_loss(), &[600], 8, 2, 4);
    let whole = case.partial(backend, None).unwrap();
    let parts = [part(&case, 0, 256), part(&case, 256, 512), part(&case, 512, 600)];
    let added =
        parts.iter().fold(None, |before: Option<Sums>, part| Some(part.partial(backend, before.as_ref()).unwrap()));
    let added = added.unwrap();
    // Panels are of 256 rows: these are the same panels, added in the same order.
    assert_eq!(added, whole);
    let finished = case.finish(backend, &whole, None).unwrap();
    let gradient = case.backward::<B, f32>(backend, &finished).unwrap();
    let parts: Vec<f32> = parts.iter().flat_map(|part| part.backward::<B, f32>(backend, &finished).unwrap()).collect();
    assert_eq!(common::bits(&parts), common::bits(&gradient));
    count(12, case.tokens());
}

fn panels_of_a_segment_do_not_know_their_neighbours<B: Backend>(backend: &B) {
    let config = Config { scope: Scope::Segments, ..every_loss() };
    let case = Case::<bf16>::random(Gate::softmax(2), config, &[3, 300, 0, 40], 8, 2, 5);
    let all = case.partial(backend, None).unwrap();
    for (segment, (from, to)) in [(0, 3), (3, 303), (303, 303), (303, 343)].into_iter().enumerate() {
        let alone = part(&case, from, to).partial(backend, None).unwrap();
        assert_eq!(all.probabilities[segment * 8..][..8], alone.probabilities);
        assert_eq!((all.counts[segment * 8..][..8].to_vec(), all.rows[segment]), (alone.counts, alone.rows[0]));
    }
}

fn a_global_batch_takes_its_counts_from_elsewhere<B: Backend>(backend: &B) {
    let case = Case::<bf16>::random(Gate::softmax(2), Config::switch(0.5), &[30], 8, 2, 6);
    let sums = case.partial(backend, None).unwrap();
    let elsewhere =
        Case::<bf16>::random(Gate::softmax(2), Config::switch(0.5), &[50], 8, 2, 7).partial(backend, None).unwrap();
    let counts: Vec<u64> = sums.counts.iter().zip(&elsewhere.counts).map(|(a, b)| a + b).collect();
    let finished = case.finish(backend, &Sums { counts: counts.clone(), ..sums.clone() }, Some(&[80])).unwrap();
    let f = |e: usize| counts[e] as f64 / (2.0 * 80.0);
    let value: f64 = (0..8).map(|e| 0.5 * 8.0 * f(e) * sums.probabilities[e] / 30.0).sum();
    assert_abs_diff_eq!(finished.values[0], value, epsilon = 1e-12);
    assert!((0..8).all(|e| (f64::from(finished.q[e]) - 0.5 * 8.0 * f(e) / 30.0).abs() < 1e-8));
}

fn a_fresh_choice_has_ties_by_id<B: Backend>(backend: &B) {
    let config = Config { counts_from: CountsFrom::TopK, ..Config::switch(1.0) };
    let mut case = Case::<f32>::random(Gate::sigmoid(3), config, &[4], 70, 3, 8);
    case.logits.fill(-1.0);
    case.logits[0..70].fill(2.0); // 0, 1, 2
    case.logits[70 + 69] = 5.0; // 69, then 0, 1
    case.logits[140..210].fill(f32::NEG_INFINITY);
    case.logits[140 + 40] = 0.0; // 40, then 0, 1
    case.logits[210 + 1] = 0.0;
    case.logits[210 + 33] = -0.0; // 1, 33, then 0
    let counts = case.partial(backend, None).unwrap().counts;
    let expected: Vec<u64> = (0..70)
        .map(|e| match e {
            0 => 4,
            1 => 4,
            2 | 33 | 40 | 69 => 1,
            _ => 0,
        })
        .collect();
    assert_eq!(counts, expected);
}

fn a_row_without_a_route_is_in_no_choice<B: Backend>(backend: &B) {
    let fresh = |balance| Config { counts_from: CountsFrom::TopK, ..Config::switch(balance) };
    let mut case = Case::<bf16>::random(Gate::softmax(2), fresh(1.0), &[5], 8, 2, 11);
    case.ids[2 * 3 + 1] = -1;
    let sums = case.partial(backend, None).unwrap();
    assert_eq!((sums.rows[0], sums.counts.iter().sum::<u64>()), (4, 8));
    // As its gradient has it.
    let finished = case.finish(backend, &sums, None).unwrap();
    let gradient = case.backward::<B, f32>(backend, &finished).unwrap();
    for (row, gradient) in gradient.chunks(8).enumerate() {
        assert_eq!(gradient.iter().all(|&d| d == 0.0), row == 3, "row {row}: {gradient:?}");
    }
}

fn one_expert_a_token_is_balanced_too<B: Backend>(backend: &B) {
    // Sigmoid with k = 1 has weights that are not normalised; the probabilities are, all the same.
    let case = Case::<f32>::random(Gate::sigmoid(1), Config::switch(1.0), &[20], 6, 1, 9);
    let sums = case.partial(backend, None).unwrap();
    assert_abs_diff_eq!(sums.probabilities.iter().sum::<f64>(), 20.0, epsilon = 1e-4);
    assert_eq!(sums.counts.iter().sum::<u64>(), 20);
}

fn a_router_that_is_its_reference_does_not_diverge<B: Backend>(backend: &B) {
    let config = Config { router_kl: 1.0, ..Config::default() };
    let mut case = Case::<bf16>::random(Gate::softmax(2), config, &[20], 40, 2, 10);
    case.reference = case.logits.clone();
    let finished = case.finish(backend, &case.partial(backend, None).unwrap(), None).unwrap();
    assert_eq!(finished.values[3], 0.0);
    let gradient = case.backward::<B, f32>(backend, &finished).unwrap();
    // p and p_ref come by one road; the one fma of them leaves what the other's product lost.
    assert!(gradient.iter().all(|d| d.abs() < 1e-8), "{gradient:?}");
}

fn the_bias_moves_towards_an_even_load<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let update = |counts: &[u64], bias: &[f32]| {
        let counts = backend.upload(&stream, counts).unwrap();
        let mut bias = backend.upload(&stream, bias).unwrap();
        let call = BiasUpdate { counts: counts.view(), selection_bias: bias.view_mut(), step: 1e-3 };
        backend.router_bias_update(&stream, call).unwrap();
        backend.download(&stream, bias.view()).unwrap()
    };
    assert_eq!(update(&[3, 1, 2, 2], &[0.0; 4]), [-1e-3, 1e-3, 0.0, 0.0]);
    assert_eq!(update(&[0; 3], &[1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
    // Where f32 could not tell the counts apart.
    let many = (1u64 << 50) + 1;
    assert_eq!(update(&[many, many - 1, many - 2], &[0.5; 3]), [0.499, 0.5, 0.501]);
    let experts = 4096;
    let counts: Vec<u64> = (0..experts).map(|e| u64::from(e == 7)).collect();
    let moved = update(&counts, &vec![0.0; experts]);
    assert!(moved.iter().enumerate().all(|(e, b)| *b == if e == 7 { -1e-3 } else { 1e-3 }));
}
