//! A product that is exact has the bits of `logprob` on the same logits, with everything that `logprob` can be asked, chunk after chunk.

use moerl::Backend;
use moerl::error::FaultCode;
use moerl::linear_logprob::Config;
use moerl::logprob;

use crate::common::seeded;
use crate::support::*;

on_every_multiplying_backend!(
    plain_calls_have_the_bits_of_logprob,
    temperatures_masks_and_many_ids_have_the_bits_of_logprob,
    a_softcap_has_the_bits_of_logprob,
    keep_sets_have_the_bits_of_logprob,
    faults_name_the_row_of_the_call,
);

fn same_bits<B: Backend>(backend: &B, case: &Case) {
    let (found, expected) = (forward(backend, case), forward_of_logits(backend, case));
    assert_eq!(found.fault, expected.fault, "{}", backend.name());
    assert_eq!(found.label_added, expected.label_added);
    for r in 0..case.shape.rows {
        assert_eq!(found.row_bits(r), expected.row_bits(r), "{}: row {r}", backend.name());
    }
}

fn selecting(seed: u64, logprob: logprob::Config) -> Vec<Case> {
    let mut rng = seeded(seed);
    let case =
        |head| Case::selecting(&mut rng, Config { logprob: logprob.clone(), ..config(head, 128) }, shape(300, 16, 90));
    HEADS.map(case).to_vec()
}

fn plain_calls_have_the_bits_of_logprob<B: Backend>(backend: &B) {
    for case in selecting(60, logprob::Config { vocabulary: Some(77), ..at_temperature(1.1) }) {
        let case = Case { tokens: case.tokens.iter().map(|t| t % 77).collect(), ..case };
        same_bits(backend, &case);
    }
}

fn temperatures_masks_and_many_ids_have_the_bits_of_logprob<B: Backend>(backend: &B) {
    for case in selecting(61, logprob::Config::default()) {
        let rows = case.shape.rows;
        let tokens = (0..3 * rows).map(|i| if i % 31 == 5 { -100 } else { (i * 7 % 90) as i32 }).collect();
        let temperature = (0..rows).map(|r| [0.1, 1.0, 1.7][r % 3]).collect();
        let loss_mask = (0..rows).map(|r| u8::from(r % 11 != 0)).collect();
        same_bits(
            backend,
            &Case { tokens, ids: 3, temperature: Some(temperature), loss_mask: Some(loss_mask), ..case },
        );
    }
}

fn a_softcap_has_the_bits_of_logprob<B: Backend>(backend: &B) {
    for case in selecting(62, logprob::Config { softcap: Some(20.0), logit_scale: 0.5, ..at_temperature(0.9) }) {
        same_bits(backend, &case);
    }
}

fn keep_sets_have_the_bits_of_logprob<B: Backend>(backend: &B) {
    for strict_keep in [false, true] {
        for case in selecting(63, logprob::Config { strict_keep, ..at_temperature(1.2) }) {
            let sets: Vec<Vec<i32>> = (0..case.shape.rows as i32)
                .map(|r| (0..90).filter(|id| r % 5 != 0 && (id * 13 + r) % 7 < 2).collect())
                .collect();
            let mut offsets = vec![0];
            sets.iter().for_each(|set| offsets.push(offsets[offsets.len() - 1] + set.len() as i64));
            same_bits(backend, &Case { keep: Some((sets.concat(), offsets)), ..case });
        }
    }
}

fn faults_name_the_row_of_the_call<B: Backend>(backend: &B) {
    let case = &selecting(64, logprob::Config::default())[1];
    let mut bad = case.clone();
    bad.tokens[257] = 90;
    let found = forward(backend, &bad);
    let fault = found.fault.expect("a token is outside the vocabulary");
    assert_eq!((fault.row, fault.tag, fault.code), (257, 7, FaultCode::Target));
    assert!(found.logprobs[257].is_nan() && found.logprobs[256].is_finite() && found.logprobs[258].is_finite());

    // The offsets of a later chunk neither begin at 0 nor end at the last id, and are sound all the same; those of the call must.
    let rows = case.shape.rows;
    let offsets: Vec<i64> = (0..=rows as i64).collect();
    let ids: Vec<i32> = (0..rows).map(|r| (r % 90) as i32).collect();
    let sound = Case { keep: Some((ids.clone(), offsets.clone())), ..case.clone() };
    assert_eq!(forward(backend, &sound).fault, None);
    let longer = Case { keep: Some(([&ids[..], &[3]].concat(), offsets)), ..case.clone() };
    let fault = forward(backend, &longer).fault.expect("an id belongs to no row");
    assert_eq!((fault.row, fault.code), (rows as u64 - 1, FaultCode::KeepOffsets));
}
