//! What a row is: native, forced, missing, bad or padding, and what becomes of it.

use moerl::element::{Element, bf16};
use moerl::error::FaultCode;
use moerl::gate::{Bad, Config, Filler, Forward, Missing, ROW_COUNTS, RowCount, Telemetry};
use moerl::memory::{Matrix, MatrixMut, View};
use moerl::{Backend, Buffer, Reference};

use crate::common;
use crate::common::report::count;
use crate::harness::*;

crate::on_every_backend!(
    every_kind_of_row_in_one_batch,
    each_fault_of_a_forced_row_is_named,
    the_smallest_row_is_reported,
    zeros_can_mean_missing_only_with_two_or_more_slots,
    sentinels_depend_on_the_type_of_the_ids,
    rows_behind_the_tape_are_missing,
    a_row_index_reorders_the_tape,
    a_row_count_on_the_device_cuts_the_batch,
    padding_is_spread_over_the_experts,
    padding_may_hold_anything,
    a_tape_without_rows_may_lie_nowhere,
    no_rows_have_no_fault,
);

const K: usize = 4;
const E: usize = 32;

/// Ids of a row that replays, and of rows that do not.
const GOOD: [i64; K] = [9, 3, 30, 0];
const SENTINEL: [i64; K] = [-1; K];
const PARTIAL: [i64; K] = [1, -1, 2, 3];
const TWICE: [i64; K] = [5, 6, 7, 5];
const OUTSIDE: [i64; K] = [5, 6, 32, 7];
const NEGATIVE: [i64; K] = [5, -2, 6, 7];
const ZEROS: [i64; K] = [0; K];

fn batch(config: Config, rows: &[[i64; K]]) -> Problem<bf16> {
    let mut tape = Tape::new(Element::I32, rows.iter().flatten().copied(), K);
    tape.has_sentinel = true;
    Problem { tape: Some(tape), ..Problem::random(config, rows.len(), E, K, 1) }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Native,
    Replay,
    Filler,
    Spread,
}

fn check_row<B: Backend>(
    backend: &B,
    problem: &Problem<bf16>,
    found: &Forwarded,
    gradient: &[f32],
    t: usize,
    kind: Kind,
) {
    let alone = problem.rows(&[t]);
    let ids = &found.ids[t * K..][..K];
    let filler: Vec<i32> = (0..K).map(|j| ((t * K + j) % E) as i32).collect();
    let expected = match kind {
        Kind::Native => forward(backend, &alone),
        Kind::Replay => forward(backend, &alone.forced(Element::I32, &GOOD.map(|id| id as i32))),
        Kind::Filler | Kind::Spread => forward(backend, &alone.forced(Element::I32, &filler)),
    };
    let weights = common::bits(&found.weights[t * K..][..K]);
    let gradient = common::bits(&gradient[t * E..][..E]);
    assert_eq!(ids, expected.ids, "row {t} as {kind:?}");
    if kind == Kind::Filler {
        assert_eq!((weights, gradient), (vec![0; K], vec![0; E]), "row {t}");
    } else {
        assert_eq!(weights, common::bits(&expected.weights), "row {t} as {kind:?}");
        assert_eq!(gradient, common::bits(&backward(backend, &alone, &expected, &[1.0, -2.0, 0.5, 3.0])), "row {t}");
    }
    count(8, 1);
}

fn every_kind_of_row_in_one_batch<B: Backend>(backend: &B) {
    let rows = [GOOD, SENTINEL, PARTIAL, GOOD, TWICE, OUTSIDE, GOOD, NEGATIVE, GOOD, ZEROS, GOOD, GOOD, SENTINEL];
    let policies = [Missing::Native, Missing::ZeroWeight, Missing::Error, Missing::Spread];
    for base in [Config::softmax_selected(K), Config::softmax(K), Config::sigmoid(K)] {
        for missing in policies {
            for bad in [Bad::Native, Bad::ZeroWeight] {
                let mut problem = batch(Config { missing, bad, ..base.clone() }, &rows);
                problem.token_mask = Some((0..13).map(|t| u8::from(t != 6)).collect());
                let tape = problem.tape.as_mut().unwrap();
                tape.zeros_are_missing = true;
                // Row 3 is to be native, row 8 padding, row 10 has no such mode; row 11's index is none, row 12 replays what others may not.
                tape.row_mode = Some(vec![1, 1, 1, 0, 1, 1, 1, 1, 2, 1, 9, 1, 1]);
                tape.row_index = Some(vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1, 0]);
                let found = forward(backend, &problem);
                let upstream = [1.0, -2.0, 0.5, 3.0].repeat(13);
                let gradient = backward(backend, &problem, &found, &upstream);
                let missing_kind = match missing {
                    Missing::Native => Kind::Native,
                    Missing::Spread => Kind::Spread,
                    _ => Kind::Filler,
                };
                let bad_kind = if bad == Bad::Native { Kind::Native } else { Kind::Filler };
                for t in 0..13 {
                    let kind = match t {
                        0 | 12 => Kind::Replay,
                        3 => Kind::Native,
                        6 | 8 => Kind::Filler,
                        1 | 9 | 11 => missing_kind,
                        _ => bad_kind,
                    };
                    check_row(backend, &problem, &found, &gradient, t, kind);
                }
                let fault = found.fault.unwrap();
                let expected =
                    if missing == Missing::Error { (1, FaultCode::Missing) } else { (2, FaultCode::Partial) };
                assert_eq!((fault.row, fault.code), expected);
                assert_eq!(Some(fault), forward(&Reference, &problem).fault);
            }
        }
    }
}

fn each_fault_of_a_forced_row_is_named<B: Backend>(backend: &B) {
    for (ids, code) in [
        (TWICE, Some(FaultCode::Duplicate)),
        (OUTSIDE, Some(FaultCode::Range)),
        (NEGATIVE, Some(FaultCode::Range)),
        (PARTIAL, Some(FaultCode::Partial)),
        (SENTINEL, None),
        (ZEROS, Some(FaultCode::Duplicate)),
        (GOOD, None),
    ] {
        let found = forward(backend, &batch(Config::softmax_selected(K), &[GOOD, GOOD, ids, GOOD]));
        assert_eq!(
            found.fault.map(|fault| (fault.row, fault.tag, fault.code)),
            code.map(|code| (2, 7, code)),
            "{ids:?}"
        );
    }
    // Duplicates at every distance of slots, for every number of them.
    for k in [2, 3, 5, 6, 8, 9, 13, 31, 32] {
        for (a, b) in (0..k).flat_map(|b| (0..b).map(move |a| (a, b))) {
            let mut ids: Vec<i32> = (10..10 + k as i32).collect();
            ids[b] = ids[a];
            for experts in [64, 256, 512] {
                if (experts > 64 || common::is_sanitized()) && (a + b) % 5 != 0 {
                    continue; // other lane counts, and all under a sanitizer, at a fifth of the pairs
                }
                let native = Problem::<f32>::random(Config::softmax_selected(k), 1, experts, k, 2);
                let found = forward(backend, &native.forced(Element::U16, &ids));
                assert_eq!(found.fault.map(|fault| fault.code), Some(FaultCode::Duplicate), "slots {a} and {b} of {k}");
                assert_eq!(found.ids, forward(backend, &native).ids);
            }
        }
    }
    for (index, code) in [
        (-2, Some(FaultCode::RowIndex)),
        (-1, None),
        (2, None),
        (i32::MAX, None),
        (i32::MIN, Some(FaultCode::RowIndex)),
    ] {
        let mut problem = batch(Config::softmax_selected(K), &[GOOD, GOOD]);
        problem.tape.as_mut().unwrap().row_index = Some(vec![0, index]);
        assert_eq!(forward(backend, &problem).fault.map(|fault| (fault.row, fault.code)), code.map(|code| (1, code)));
    }
    let mut problem = batch(Config::softmax_selected(K), &[GOOD, GOOD]);
    problem.tape.as_mut().unwrap().row_mode = Some(vec![1, 3]);
    assert_eq!(forward(backend, &problem).fault.map(|fault| (fault.row, fault.code)), Some((1, FaultCode::RowMode)));
}

fn the_smallest_row_is_reported<B: Backend>(backend: &B) {
    let mut rows = vec![GOOD; 700];
    for t in [613, 257, 480, 258] {
        rows[t] = if t == 257 { OUTSIDE } else { TWICE };
    }
    let found = forward(backend, &batch(Config::softmax_selected(K), &rows));
    assert_eq!(found.fault.map(|fault| (fault.row, fault.code)), Some((257, FaultCode::Range)));
}

fn zeros_can_mean_missing_only_with_two_or_more_slots<B: Backend>(backend: &B) {
    for (k, zeros_are_missing, is_replay) in [(2, true, false), (1, true, true), (1, false, true)] {
        let native = Problem::<f32>::row(Config::softmax_selected(k), k, &[0.0, 3.0, 2.0]);
        let mut problem = native.forced(Element::U8, &vec![0; k]);
        problem.tape.as_mut().unwrap().zeros_are_missing = zeros_are_missing;
        let found = forward(backend, &problem);
        assert_eq!(found.ids, if is_replay { vec![0] } else { vec![1, 2] });
        assert_eq!(found.fault, None);
    }
}

fn sentinels_depend_on_the_type_of_the_ids<B: Backend>(backend: &B) {
    let native = Problem::<f32>::random(Config::softmax_selected(2), 1, 256, 2, 3);
    let chosen = forward(backend, &native);
    for (element, ids, has_sentinel, fault) in [
        (Element::U16, [65535, 65535], true, None),
        (Element::I16, [-1, -1], true, None),
        (Element::I32, [-1, -1], true, None),
        (Element::U16, [65535, 65535], false, Some(FaultCode::Range)),
        (Element::I16, [-1, -1], false, Some(FaultCode::Range)),
        (Element::I16, [32767, 1], true, Some(FaultCode::Range)),
        (Element::I16, [255, 255], true, Some(FaultCode::Duplicate)),
        (Element::I32, [i64::from(i32::MIN), 1], true, Some(FaultCode::Range)),
    ] {
        let tape = Tape { has_sentinel, ..Tape::new(element, ids, 2) };
        let found = forward(backend, &Problem { tape: Some(tape), ..native.clone() });
        assert_eq!(found.ids, chosen.ids, "{element} {ids:?}");
        assert_eq!(found.fault.map(|fault| fault.code), fault, "{element} {ids:?}");
    }
    // Expert 255 of 256 in u8, where there is no sentinel.
    let found = forward(backend, &native.forced(Element::U8, &[255, 7]));
    assert_eq!((found.ids, found.fault), (vec![255, 7], None));
    let small = Problem::<f32>::random(Config::softmax_selected(2), 1, 255, 2, 3);
    let tape = Tape { has_sentinel: true, ..Tape::new(Element::U8, [255, 255], 2) };
    let found = forward(backend, &Problem { tape: Some(tape), ..small.clone() });
    assert_eq!((found.ids, found.fault), (forward(backend, &small).ids, None));
}

fn rows_behind_the_tape_are_missing<B: Backend>(backend: &B) {
    for recorded in [0, 1, 8] {
        let config = Config { missing: Missing::ZeroWeight, ..Config::softmax_selected(K) };
        let mut problem = batch(config, &[GOOD; 9]);
        problem.tape = Some(Tape::new(Element::I16, [GOOD; 9][..recorded].iter().flatten().copied(), K));
        let found = forward(backend, &problem);
        for (t, ids) in found.ids.chunks_exact(K).enumerate() {
            let replayed = ids == GOOD.map(|id| id as i32);
            assert_eq!(replayed, t < recorded, "row {t} of {recorded} recorded");
        }
        assert_eq!(found.fault, None);
    }
}

fn a_row_index_reorders_the_tape<B: Backend>(backend: &B) {
    let native = Problem::<bf16>::random(Config::sigmoid(K), 40, E, K, 4);
    let ids = native.random_ids(5);
    let expected = forward(backend, &native.forced(Element::U8, &ids));
    // The tape's rows stand in another order, and the index finds them.
    let place = |t: usize| (t * 7 + 3) % 40;
    let mut shuffled = vec![0; 40 * K];
    for t in 0..40 {
        shuffled[place(t) * K..][..K].copy_from_slice(&ids[t * K..][..K]);
    }
    let mut problem = native.forced(Element::U8, &shuffled);
    problem.tape.as_mut().unwrap().row_index = Some((0..40).map(|t| place(t) as i32).collect());
    assert_eq!(forward(backend, &problem).bits(), expected.bits());
}

fn a_row_count_on_the_device_cuts_the_batch<B: Backend>(backend: &B) {
    let native = Problem::<bf16>::random(Config::softmax_selected(K), 20, E, K, 6);
    let all = forward(backend, &native);
    for (count, kept, fault) in [
        (20, 20, None),
        (7, 7, None),
        (0, 0, None),
        (21, 20, Some(FaultCode::RowCount)),
        (-1, 0, Some(FaultCode::RowCount)),
    ] {
        let found = forward(backend, &Problem { row_count: Some(count), ..native.clone() });
        assert_eq!(found.ids[..kept * K], all.ids[..kept * K]);
        assert!(found.weights[kept * K..].iter().all(|w| w.to_bits() == 0));
        assert!(found.weights[..kept * K].iter().all(|w| *w > 0.0));
        assert_eq!(found.fault.map(|fault| (fault.row, fault.code)), fault.map(|code| (0, code)));
    }
}

fn padding_is_spread_over_the_experts<B: Backend>(backend: &B) {
    let many = if common::is_sanitized() { 2000 } else { 100_000 };
    for (tokens, experts, k) in [(many, 32, 3), (1000, 32, 4), (1000, 10, 3), (1000, 7, 7)] {
        let config = Config::softmax_selected(k);
        let mut problem = Problem::<bf16>::new(config, experts, k, vec![bf16::NAN; tokens * experts]);
        problem.token_mask = Some(vec![0; tokens]);
        let found = forward(backend, &problem);
        let mut counts = vec![0; experts];
        for ids in found.ids.chunks_exact(k) {
            for (j, &id) in ids.iter().enumerate() {
                assert!(!ids[..j].contains(&id));
                counts[id as usize] += 1;
            }
        }
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        problem.config.filler = Filler::Sentinel;
        assert!(forward(backend, &problem).ids.iter().all(|&id| id == -1));
    }
}

fn padding_may_hold_anything<B: Backend>(backend: &B) {
    for config in [Config::softmax_selected(K), Config::softmax(K), Config::sigmoid(K)] {
        let clean = Problem::<f32>::random(config, 9, E, K, 8);
        let mut dirty = clean.clone();
        dirty.token_mask = Some(vec![1, 0, 1, 0, 0, 1, 1, 1, 0]);
        let mut upstream = clean.random_upstream(9);
        let expected = forward(backend, &clean);
        let gradient = backward(backend, &clean, &expected, &upstream);
        for t in [1, 3, 4, 8] {
            dirty.logits[t * E..][..E].fill(if t == 3 { f32::INFINITY } else { f32::NAN });
            upstream[t * K..][..K].fill(f32::NAN);
        }
        let found = forward(backend, &dirty);
        assert_eq!(found.fault, None);
        let found_gradient = backward(backend, &dirty, &found, &upstream);
        for t in 0..9 {
            let (weights, d) =
                (common::bits(&found.weights[t * K..][..K]), common::bits(&found_gradient[t * E..][..E]));
            if [1, 3, 4, 8].contains(&t) {
                assert_eq!((weights, d), (vec![0; K], vec![0; E]));
            } else {
                assert_eq!(weights, common::bits(&expected.weights[t * K..][..K]));
                assert_eq!(d, common::bits(&gradient[t * E..][..E]));
            }
        }
    }
}

fn a_tape_without_rows_may_lie_nowhere<B: Backend>(backend: &B) {
    let config = Config { missing: Missing::ZeroWeight, ..Config::softmax_selected(2) };
    let stream = backend.stream().unwrap();
    let logits = backend.upload(&stream, &[1f32; 3 * 8]).unwrap();
    let mut ids = backend.upload(&stream, &[-77i32; 6]).unwrap();
    let mut weights = backend.upload(&stream, &[-77f32; 6]).unwrap();
    let mut gate_l1 = backend.upload(&stream, &[-77f32; 3]).unwrap();
    let mut row_counts = backend.upload(&stream, &[0u64; ROW_COUNTS]).unwrap();
    backend.synchronize(&stream).unwrap();
    // SAFETY: of no elements.
    let nothing = unsafe { View::<u8, B::Memory>::from_raw(0, 0) };
    // SAFETY: likewise.
    let no_weights = unsafe { View::<f32, B::Memory>::from_raw(0, 0) };
    let telemetry = Telemetry {
        gate_l1: Some(gate_l1.view_mut()),
        row_counts: Some(row_counts.view_mut()),
        recorded_weights: Some(Matrix::new(no_weights, 0, 2).unwrap()),
        ..Telemetry::default()
    };
    for telemetry in [None, Some(telemetry)] {
        let call = Forward {
            routes: Matrix::new(nothing, 0, 2).unwrap().into(),
            telemetry,
            ..Forward::new(
                Matrix::new(logits.view(), 3, 8).unwrap(),
                ids.view_mut(),
                MatrixMut::new(weights.view_mut(), 3, 2).unwrap(),
            )
        };
        backend.gate_forward(&stream, &config, call).unwrap();
        assert_eq!(backend.download(&stream, weights.view()).unwrap(), [0.0; 6]);
    }
    assert_eq!(backend.download(&stream, row_counts.view()).unwrap()[RowCount::Missing as usize], 3);
    assert!(backend.download(&stream, gate_l1.view()).unwrap().iter().all(|x| x.is_nan()));
}

fn no_rows_have_no_fault<B: Backend>(backend: &B) {
    let empty = Problem { row_count: Some(5), ..Problem::<f32>::new(Config::sigmoid(2), 8, 2, Vec::new()) };
    assert_eq!(forward(backend, &empty).fault, None);
}
