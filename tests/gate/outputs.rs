//! What forward can write beside ids and weights: recorded ids, maps over all experts, the cutoff; and the scale of each expert.

use moerl::element::{Element, Float, Scalar, bf16};
use moerl::error::FaultCode;
use moerl::gate::{Config, Filler, Forward, Preset, Score};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Error, Reference};

use crate::common;
use crate::harness::*;

crate::on_every_backend!(
    recorded_ids_are_the_ids_in_the_width_of_the_tape,
    maps_say_which_experts_were_chosen_with_which_weight,
    the_cutoff_is_what_the_last_expert_was_chosen_by,
    experts_are_scaled_last,
    a_scale_that_leaves_no_number_leaves_no_weight,
);

/// More rows than few, for the emulator's four multiprocessors.
const MANY: usize = 260;

#[derive(Debug, PartialEq)]
struct Outputs {
    ids: Vec<i32>,
    weights: Vec<u32>,
    tape: Vec<i64>,
    probs: Vec<u32>,
    bytemap: Vec<u8>,
    bitmap: Vec<u8>,
    cutoff: Vec<u32>,
    fault: Option<FaultCode>,
}

/// Which of the outputs are asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    maps: bool,
    cutoff: bool,
    expert_scale: Option<&'a [f32]>,
}

/// Layer 1 of a tape of 3 layers of type `R`, whose other elements are 99; everything else filled with what a forgotten store would leave.
fn outputs<B: Backend, T: Float, R: Scalar + Into<i64>>(
    backend: &B,
    problem: &Problem<T>,
    filler: R,
    wanted: Wanted<'_>,
) -> Outputs {
    let Problem { tokens, experts, k, .. } = *problem;
    let stream = backend.stream().unwrap();
    let logits = backend.upload(&stream, &problem.logits).unwrap();
    let bias = problem.bias.as_ref().map(|bias| backend.upload(&stream, bias).unwrap());
    let mask = problem.token_mask.as_ref().map(|mask| backend.upload(&stream, mask).unwrap());
    let scale = wanted.expert_scale.map(|scale| backend.upload(&stream, scale).unwrap());
    let routes: Option<Vec<i32>> = problem.tape.as_ref().map(|tape| tape.array.iter().map(|&id| id as i32).collect());
    let routes = routes.map(|routes| backend.upload(&stream, &routes).unwrap());
    let mut ids = backend.upload(&stream, &vec![-77i32; tokens * k]).unwrap();
    let mut weights = backend.upload(&stream, &vec![-77f32; tokens * k]).unwrap();
    let mut tape = backend.upload(&stream, &vec![filler; tokens * 3 * k]).unwrap();
    let mut probs = backend.upload(&stream, &vec![-77f32; tokens * (experts + 3)]).unwrap();
    let mut bytemap = backend.upload(&stream, &vec![77u8; tokens * experts]).unwrap();
    let mut bitmap = backend.upload(&stream, &vec![77u8; tokens * experts.div_ceil(8)]).unwrap();
    let mut cutoff = backend.upload(&stream, &vec![-77f32; tokens]).unwrap();
    let mut word = backend.error_word(&stream).unwrap();
    let mut call = Forward::new(
        Matrix::new(logits.view(), tokens, experts).unwrap(),
        ids.view_mut(),
        MatrixMut::new(weights.view_mut(), tokens, k).unwrap(),
    );
    if let Some(routes) = &routes {
        call.routes = Matrix::new(routes.view(), tokens, k).unwrap().into();
    }
    call.selection_bias = bias.as_ref().map(Buffer::view);
    call.token_mask = mask.as_ref().map(Buffer::view);
    call.expert_scale = scale.as_ref().map(Buffer::view);
    let layer = tape.view_mut().slice(k..tokens * 3 * k);
    call.record_ids = Some(MatrixMut::strided(layer, tokens, k, 3 * k).unwrap());
    if wanted.maps {
        call.dense_probs = Some(MatrixMut::strided(probs.view_mut(), tokens, experts, experts + 3).unwrap());
        call.bytemap = Some(bytemap.view_mut());
        call.bitmap = Some(bitmap.view_mut());
    }
    if wanted.cutoff {
        call.cutoff = Some(cutoff.view_mut());
    }
    call.errors = Some(word.view_mut());
    backend.gate_forward(&stream, &problem.config, call).unwrap();
    let fault = match backend.check(&stream, &mut word) {
        Ok(()) => None,
        Err(Error::Data(fault)) => Some(fault.code),
        Err(other) => panic!("{other}"),
    };
    Outputs {
        ids: backend.download(&stream, ids.view()).unwrap(),
        weights: common::bits(&backend.download(&stream, weights.view()).unwrap()),
        tape: backend.download(&stream, tape.view()).unwrap().into_iter().map(Into::into).collect(),
        probs: common::bits(&backend.download(&stream, probs.view()).unwrap()),
        bytemap: backend.download(&stream, bytemap.view()).unwrap(),
        bitmap: backend.download(&stream, bitmap.view()).unwrap(),
        cutoff: common::bits(&backend.download(&stream, cutoff.view()).unwrap()),
        fault,
    }
}

const ALL: Wanted<'static> = Wanted { maps: true, cutoff: true, expert_scale: None };
const RECORD: Wanted<'static> = Wanted { maps: false, cutoff: false, expert_scale: None };

fn recorded_ids_are_the_ids_in_the_width_of_the_tape<B: Backend>(backend: &B) {
    fn check<B: Backend, R: Scalar + Into<i64>>(backend: &B, problem: &Problem<bf16>, filler: R, missing: i64) {
        let found = outputs(backend, problem, filler, RECORD);
        let k = problem.k;
        for (t, row) in found.tape.chunks_exact(3 * k).enumerate() {
            let expected = found.ids[t * k..][..k].iter().map(|&id| if id < 0 { missing } else { i64::from(id) });
            assert!(row[k..2 * k].iter().copied().eq(expected), "row {t}: {row:?}");
            assert!(row[..k].iter().chain(&row[2 * k..]).all(|&id| id == 99), "row {t}: {row:?}");
        }
    }
    for (tokens, experts, k) in [(9, 200, 6), (MANY, 128, 8), (MANY, 224, 9)] {
        let config = Config { filler: Filler::Sentinel, ..Config::softmax_selected(k) };
        let mut problem = Problem::<bf16>::random(config, tokens, experts, k, 1);
        problem.token_mask = Some((0..tokens).map(|t| u8::from(t % 5 != 3)).collect());
        check(backend, &problem, 99u8, 255);
        check(backend, &problem, 99u16, 65_535);
        check(backend, &problem, 99i16, -1);
        check(backend, &problem, 99i32, -1);
    }
}

fn maps_say_which_experts_were_chosen_with_which_weight<B: Backend>(backend: &B) {
    for (tokens, experts, k) in [(7, 20, 3), (5, 64, 32), (MANY, 128, 8), (3, 4096, 8), (1, 1, 1)] {
        for filler in [Filler::RoundRobin, Filler::Sentinel] {
            let config = Config { filler, ..Config::sigmoid(k) };
            let mut problem = Problem::<bf16>::random(config, tokens, experts, k, 2);
            problem.token_mask = Some((0..tokens).map(|t| u8::from(t % 3 != 1)).collect());
            for forced in [false, true] {
                let problem =
                    if forced { problem.forced(Element::I32, &problem.random_ids(4)) } else { problem.clone() };
                let found = outputs(backend, &problem, 0i32, ALL);
                for t in 0..tokens {
                    for e in 0..experts {
                        let slot = found.ids[t * k..][..k].iter().position(|&id| id == e as i32);
                        let weight = slot.map_or(0, |slot| found.weights[t * k + slot]);
                        assert_eq!(found.probs[t * (experts + 3) + e], weight, "row {t}, expert {e}");
                        assert_eq!(found.bytemap[t * experts + e], u8::from(slot.is_some()), "row {t}, expert {e}");
                        let byte = found.bitmap[t * experts.div_ceil(8) + e / 8];
                        assert_eq!(byte >> (e % 8) & 1, u8::from(slot.is_some()), "row {t}, expert {e}");
                    }
                    let last = found.bitmap[(t + 1) * experts.div_ceil(8) - 1];
                    assert!(experts % 8 == 0 || last >> (experts % 8) == 0, "bits behind the last expert are 0");
                    let gap = &found.probs[t * (experts + 3)..][experts..experts + 3];
                    assert_eq!(gap, [(-77f32).to_bits(); 3], "the gap between rows is not touched");
                }
            }
        }
    }
}

fn the_cutoff_is_what_the_last_expert_was_chosen_by<B: Backend>(backend: &B) {
    let rules = [
        (Config::softmax_selected(8), 128),
        (Config::softmax(8), 64),
        (Config { needs_selection_bias: true, ..Config::sigmoid(8) }, 100),
        (Config { needs_selection_bias: true, ..Config::softmax(8) }, 64),
        (Config { needs_selection_bias: true, ..Config::softmax_selected(8) }, 64),
        (Config::preset(Preset::DeepseekV3), 256),
        (Config { softcap: Some(2.0), ..Config::new(Score::Raw, 8) }, 2000),
    ];
    for (config, experts) in rules {
        let mut problem = Problem::<f32>::random(config, MANY, experts, 8, 3);
        problem.token_mask = Some((0..MANY).map(|t| u8::from(t % 7 != 2)).collect());
        let found = outputs(backend, &problem, 0i32, ALL);
        let expected = outputs(&Reference, &problem, 0i32, ALL);
        let values = |outputs: &Outputs| outputs.cutoff.iter().map(|&bits| f32::from_bits(bits)).collect::<Vec<_>>();
        let wide: Vec<f64> = values(&expected).into_iter().map(f64::from).collect();
        // A score of f32, a few units in the last place from that of f64.
        let error = common::worst(&values(&found), &wide, 1e-6, 1e-6);
        assert!(error <= 1.0, "{:?}: {error} tolerances off", problem.config.score);
        // Asking changes nothing else, and neither does the kernel that answers.
        let plain = outputs(backend, &problem, 0i32, RECORD);
        assert_eq!((&plain.ids, &plain.weights, &plain.tape), (&found.ids, &found.weights, &found.tape));
        let forced = problem.forced(Element::I32, &problem.random_ids(5));
        assert!(values(&outputs(backend, &forced, 0i32, ALL)).iter().all(|cutoff| cutoff.is_nan()));
    }
}

fn experts_are_scaled_last<B: Backend>(backend: &B) {
    for (tokens, experts, k) in [(9, 100, 6), (MANY, 128, 8)] {
        let scale: Vec<f32> = (0..experts).map(|e| 0.5 + e as f32 * 0.125).collect();
        let config = Config { scaling_factor: Some(2.5), ..Config::sigmoid(k) };
        let problem = Problem::<bf16>::random(config, tokens, experts, k, 4);
        let plain = outputs(backend, &problem, 0i32, RECORD);
        let found = outputs(backend, &problem, 0i32, Wanted { expert_scale: Some(&scale), ..RECORD });
        assert_eq!(found.ids, plain.ids);
        for ((&w, &plain), &id) in found.weights.iter().zip(&plain.weights).zip(&plain.ids) {
            // One rounding more, or one less in f64.
            let (w, expected) = (f32::from_bits(w), f32::from_bits(plain) * scale[id as usize]);
            assert!((w - expected).abs() <= f32::EPSILON * expected, "{w} {expected}");
        }
        let replay = problem.forced(Element::I32, &plain.ids);
        let replayed = outputs(backend, &replay, 0i32, Wanted { expert_scale: Some(&scale), ..RECORD });
        assert_eq!(replayed, found);
    }
}

fn a_scale_that_leaves_no_number_leaves_no_weight<B: Backend>(backend: &B) {
    for tokens in [3, MANY] {
        let problem = Problem::<f32>::random(Config::softmax_selected(2), tokens, 32, 2, 5);
        let ids = outputs(backend, &problem, 0i32, RECORD).ids;
        let mut scale = vec![1.0; 32];
        scale[ids[3] as usize] = f32::INFINITY;
        let found = outputs(backend, &problem, 0i32, Wanted { expert_scale: Some(&scale), ..RECORD });
        assert_eq!(found.fault, Some(FaultCode::NonfiniteWeight));
        for (ids, weights) in found.ids.chunks_exact(2).zip(found.weights.chunks_exact(2)) {
            assert_eq!(weights == [0; 2], ids.iter().any(|&id| scale[id as usize].is_infinite()));
        }
    }
}
