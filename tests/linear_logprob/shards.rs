//! Two shards of the vocabulary against one.

use moerl::element::Element;
use moerl::linear_logprob::{Config, Head, Projection};
use moerl::logprob::{self, Combine, Partial, PartialCall};
use moerl::memory::Matrix;
use moerl::{Backend, Buffer};

use crate::common::seeded;
use crate::support::*;

on_every_multiplying_backend!(two_shards_make_the_outputs_and_gradients_of_one);

const CUT: usize = 24;

/// One shard of a case.
fn shard(case: &Case, columns: std::ops::Range<usize>) -> Case {
    let logprob = logprob::Config {
        vocab_start: columns.start,
        vocab_total: Some(case.shape.vocabulary),
        ..case.config.logprob.clone()
    };
    let width = case.shape.hidden;
    Case {
        config: Config { logprob, ..case.config.clone() },
        shape: shape(case.shape.rows, width, columns.len()),
        weight: case.weight[columns.start * width..columns.end * width].to_vec(),
        ..case.clone()
    }
}

/// The records of a shard.
fn records<B: Backend>(backend: &B, case: &Case) -> Vec<Partial> {
    let stream = backend.stream().unwrap();
    let (rows, width) = (case.shape.rows, case.shape.hidden);
    let operand = case.config.head.operand();
    let hidden = Stored::<B>::new(backend, &stream, operand, &case.hidden).unwrap();
    let weight = Stored::<B>::new(backend, &stream, operand, &case.weight).unwrap();
    let tokens = backend.upload(&stream, &case.tokens).unwrap();
    let bytes = case.config.forward_footprint(&case.shape).workspace();
    let mut workspace = backend.allocate::<u8>(&stream, bytes).unwrap();
    let mut records = backend.allocate::<Partial>(&stream, rows).unwrap();
    let projection = Projection {
        rows: case.needed.as_deref(),
        ..Projection::new(
            hidden.matrix(rows, width).unwrap(),
            weight.matrix(case.shape.vocabulary, width).unwrap(),
            workspace.view_mut(),
        )
    };
    let mut call = PartialCall::new(projection, records.view_mut());
    call.tokens = Some(Matrix::new(tokens.view(), rows, 1).unwrap());
    backend.linear_logprob_partial(&stream, &case.config, call).expect("a valid call");
    backend.download(&stream, records.view()).unwrap()
}

fn two_shards_make_the_outputs_and_gradients_of_one<B: Backend>(backend: &B) {
    let mut rng = seeded(80);
    for (head, needed) in
        [(Head::F32Logits, None), (Head::F32Weights, None), (Head::F32Logits, Some(vec![5..70, 70..140]))]
    {
        let mut case = Case::random(&mut rng, config(head, 128), shape(150, 16, 60));
        case.needed = needed;
        let up = Upstream::random(&mut rng, &case);
        let one = forward(backend, &case);
        let shards = [shard(&case, 0..CUT), shard(&case, CUT..60)];

        let stream = backend.stream().unwrap();
        let gathered: Vec<Partial> = shards.iter().flat_map(|shard| records(backend, shard)).collect();
        let gathered = backend.upload(&stream, &gathered).unwrap();
        let tokens = backend.upload(&stream, &case.tokens).unwrap();
        // What is not needed is masked for whoever does not know it.
        let mask: Vec<u8> = (0..150).map(|r| u8::from(!case.is_absent(r))).collect();
        let mask = backend.upload(&stream, &mask).unwrap();
        let mut logprobs = backend.allocate::<f32>(&stream, 150).unwrap();
        let mut saved = backend.allocate::<Partial>(&stream, 150).unwrap();
        let mut call = Combine::new(&[1, 1], gathered.view());
        call.tokens = Some(Matrix::new(tokens.view(), 150, 1).unwrap());
        call.loss_mask = Some(mask.view());
        call.logprobs = Some(logprobs.view_mut());
        call.saved = Some(saved.view_mut());
        let whole = logprob::Config { vocab_total: Some(60), ..case.config.logprob.clone() };
        backend.logprob_combine(&stream, &whole, call).expect("a valid call");
        let logprobs = backend.download(&stream, logprobs.view()).unwrap();
        let saved = backend.download(&stream, saved.view()).unwrap();
        // Each logit is the same sum of 16 products, in another product of matrices: 16·2⁻²⁴ of magnitudes below 20.
        for (r, (found, expected)) in logprobs.iter().zip(&one.logprobs).enumerate() {
            assert!((found - expected).abs() <= 5e-5, "row {r}: {found} {expected}");
        }

        let (d_hidden, d_weight) = backward(backend, &case, &one.saved, &up, Element::F32, WeightTarget::Sum);
        let [a, b] = shards.map(|shard| backward(backend, &shard, &saved, &up, Element::F32, WeightTarget::Sum));
        // A gradient that is rounded to the other side in bf16 is 2⁻⁷ of itself apart; TF32 rounds factors that differ in the last bit of f32.
        let near = |x: f32, y: f32, size: f32| (x - y).abs() <= (size + y.abs()) / 128.0;
        for (i, d) in d_hidden.iter().enumerate() {
            assert!(near(a.0[i] + b.0[i], *d, 1.0), "d_hidden {i}: {} + {} for {d}", a.0[i], b.0[i]);
        }
        for (i, (x, d)) in a.1.iter().chain(&b.1).zip(&d_weight).enumerate() {
            assert!(near(*x, *d, 1.0), "d_weight {i}: {x} for {d}");
        }
    }
}
