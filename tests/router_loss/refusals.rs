//! Calls that are refused before anything is queued, in words.

use moerl::element::f16;
use moerl::error::Kind;
use moerl::gate::{Config as Gate, Score};
use moerl::router_loss::{BiasUpdate, Config, CountsFrom, Scope};
use moerl::{Backend, Buffer, Reference};

use crate::case::{Case, every_loss};

fn refused(case: &Case<f16>, kind: Kind, words: &str) {
    let error = case.partial(&Reference, None).expect_err(words);
    assert!(error.is(kind) && error.to_string().contains(words), "{error}");
}

#[test]
fn sums_ask_for_what_they_need() {
    let case = Case::<f16>::random(Gate::sigmoid(2), every_loss(), &[4], 8, 2, 1);
    case.partial(&Reference, None).unwrap();
    let raw = Case { gate: Gate::new(Score::Raw, 2), ..case.clone() };
    refused(&raw, Kind::Config, "balance: needs probabilities, which raw logits are not");
    let infinite = Case { config: Config { z: f64::INFINITY, ..every_loss() }, ..case.clone() };
    refused(&infinite, Kind::Config, "z: has the coefficient inf");
    let segments = Case { lengths: vec![1, 3], ..case.clone() };
    refused(&segments, Kind::Segments, "plan: has 2 segments, and a batch is one");
    let scoped = Case { config: Config { scope: Scope::Segments, ..every_loss() }, ..segments };
    scoped.partial(&Reference, None).unwrap();
    let three = Case { gate: Gate::sigmoid(3), ..case.clone() };
    refused(&three, Kind::Shape, "topk_ids: has shape [8], needs [12]");
    let masked = Case { token_mask: Some(vec![1; 3]), ..case.clone() };
    refused(&masked, Kind::Shape, "token_mask: has shape [3], needs [4]");
    let fresh = Case { config: Config { counts_from: CountsFrom::TopK, ..every_loss() }, ..case };
    fresh.partial(&Reference, None).unwrap();
}

#[test]
fn a_bias_update_needs_a_count_for_every_expert() {
    let counts = Reference.upload(&(), &[1u64, 2]).unwrap();
    let mut bias = Reference.upload(&(), &[0f32; 3]).unwrap();
    let call = BiasUpdate { counts: counts.view(), selection_bias: bias.view_mut(), step: 1e-3 };
    let error = Reference.router_bias_update(&(), call).unwrap_err();
    assert!(error.is(Kind::Shape) && error.to_string().contains("selection_bias: has shape [3], needs [2]"), "{error}");
    let call = BiasUpdate { counts: counts.view(), selection_bias: bias.view_mut(), step: f32::NAN };
    assert!(Reference.router_bias_update(&(), call).unwrap_err().is(Kind::Config));
}
