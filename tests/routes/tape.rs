//! The tape on every backend: what was recorded is what the gate is forced to, as often as it is asked.

use moerl::element::{Element, Scalar};
use moerl::gate::{Config, Forced, Forward, Routes};
use moerl::memory::{Matrix, MatrixMut};
use moerl::routes::{
    Layer, LayerMap, MicroBatch, Order, PackedRoutes, Packing, Payload, Recorder, RouteArray, RouteTape, RoutedExperts,
};
use moerl::{Backend, Buffer, Error, Reference};

use crate::fixture::*;

crate::on_every_backend!(
    every_layer_of_a_loaded_micro_batch_is_forced_as_recorded,
    recorded_layers_are_forced_as_recorded,
    arrays_of_both_orders_serve_every_layer_without_a_copy,
    rows_of_256_experts_that_are_missing_reach_the_gate_as_missing,
    packed_sequences_replay_their_own_rows,
);

fn pack(recorded: &Recorded, packing: Packing) -> RoutedExperts {
    let bytes = recorded.bytes(Element::I32);
    let map = LayerMap::identity(recorded.layers);
    let payload = Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap();
    payload.pack(&recorded.expected(&map), packing).unwrap()
}

/// What the gate makes of these routes: ids `[tokens, k]`. Router logits fall with the expert, so that a native row is 0, 1, 2, …
fn forced<'a, B: Backend>(
    backend: &B,
    routes: impl Into<Routes<'a, B::Memory>>,
    tokens: usize,
    experts: usize,
    k: usize,
) -> Vec<Vec<i64>>
where
    B::Memory: 'a,
{
    let stream = backend.stream().unwrap();
    let logits: Vec<f32> = (0..tokens * experts).map(|i| -((i % experts) as f32) / 16.0).collect();
    let logits = backend.upload(&stream, &logits).unwrap();
    let mut ids = backend.allocate::<i32>(&stream, tokens * k).unwrap();
    let mut weights = backend.allocate::<f32>(&stream, tokens * k).unwrap();
    let mut word = backend.error_word(&stream).unwrap();
    {
        let logits = Matrix::new(logits.view(), tokens, experts).unwrap();
        let weights = MatrixMut::new(weights.view_mut(), tokens, k).unwrap();
        let call = Forward {
            routes: routes.into(),
            errors: Some(word.view_mut()),
            ..Forward::new(logits, ids.view_mut(), weights)
        };
        backend.gate_forward(&stream, &Config::softmax_selected(k), call).unwrap();
    }
    backend.check(&stream, &mut word).unwrap();
    let ids = backend.download(&stream, ids.view()).unwrap();
    ids.chunks(k).map(|row| row.iter().map(|&id| i64::from(id)).collect()).collect()
}

fn layer_of(recorded: &Recorded, layer: usize) -> Vec<Vec<i64>> {
    (0..recorded.rows).map(|row| recorded.at(row, layer).to_vec()).collect()
}

fn every_layer_of_a_loaded_micro_batch_is_forced_as_recorded<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    for packing in [Packing::narrowest(64).unwrap(), Packing::new(64, Element::U16).unwrap()] {
        let mut recorder = Recorder::new(packing, 4).unwrap();
        let batches: Vec<Recorded> = (0..2).map(|m| Recorded::random(5 + m, 3, 4, 64, m as u64)).collect();
        for (m, recorded) in batches.iter().enumerate() {
            let routes = pack(recorded, packing);
            recorder.load(backend, &stream, MicroBatch(m as u32), &routes, None).unwrap();
        }
        let tape: RouteTape<B> = recorder.seal().unwrap();
        // In an order of no pipeline, and twice.
        for (layer, m) in [(2, 1), (0, 0), (2, 1), (1, 0), (0, 1), (1, 1), (2, 0), (1, 0)] {
            let routes = tape.replay(Layer(layer), MicroBatch(m)).unwrap();
            let recorded = &batches[m as usize];
            let found = forced(backend, routes, recorded.rows, 64, 4);
            assert_eq!(found, layer_of(recorded, layer as usize), "layer {layer}, micro-batch {m}");
        }
        tape.assert_all_consumed().unwrap();
    }
}

fn recorded_layers_are_forced_as_recorded<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let recorded = Recorded::random(6, 2, 4, 256, 60);
    for packing in [Packing::narrowest(256).unwrap(), Packing::new(256, Element::U16).unwrap()] {
        let mut recorder = Recorder::new(packing, 4).unwrap();
        for layer in [1, 0] {
            let ids: Vec<i32> = layer_of(&recorded, layer).concat().iter().map(|&id| id as i32).collect();
            recorder.record(backend, &stream, Layer(layer as u32), MicroBatch(9), &ids).unwrap();
        }
        let tape: RouteTape<B> = recorder.seal().unwrap();
        assert_eq!(tape.keys().collect::<Vec<_>>(), [(Layer(0), MicroBatch(9)), (Layer(1), MicroBatch(9))]);
        for layer in 0..2 {
            let routes = tape.get(Layer(layer), MicroBatch(9)).unwrap();
            assert_eq!(routes.ids.element(), packing.element());
            assert_eq!(forced(backend, routes, 6, 256, 4), layer_of(&recorded, layer as usize));
        }
    }
}

fn arrays_of_both_orders_serve_every_layer_without_a_copy<B: Backend>(backend: &B) {
    fn check<B: Backend, T: Scalar + TryFrom<i64>>(backend: &B) {
        let stream = backend.stream().unwrap();
        let recorded = Recorded::random(5, 3, 4, 64, 61);
        let by_layer: Vec<i64> = (0..3).flat_map(|layer| layer_of(&recorded, layer).concat()).collect();
        for (order, ids) in [(Order::TokenMajor, &recorded.ids), (Order::LayerMajor, &by_layer)] {
            let ids: Vec<T> = ids.iter().map(|&id| T::try_from(id).ok().expect("an expert of 64")).collect();
            let buffer = backend.upload(&stream, &ids).unwrap();
            let array = RouteArray::new(buffer.view(), order, 5, 3, 4).unwrap();
            let (low, size) = (buffer.view().address(), size_of_val(ids.as_slice()));
            for layer in 0..3 {
                let routes = array.layer(layer).unwrap();
                assert!((low..low + size).contains(&routes.address()), "a view of the array itself");
                assert_eq!(forced(backend, routes, 5, 64, 4), layer_of(&recorded, layer), "{order:?}, layer {layer}");
            }
            refused(array.layer(3), "routes: have 3 layers, none at 3");
        }
    }
    check::<B, u8>(backend);
    check::<B, u16>(backend);
    check::<B, i16>(backend);
    check::<B, i32>(backend);
}

fn rows_of_256_experts_that_are_missing_reach_the_gate_as_missing<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let mut recorded = Recorded::random(5, 2, 4, 256, 62);
    (0..2).for_each(|layer| recorded.at_mut(3, layer).fill(-1));
    recorded.at_mut(2, 1).copy_from_slice(&[255, 9, 8, 7]);
    for packing in [Packing::narrowest(256).unwrap(), Packing::new(256, Element::U16).unwrap()] {
        let mut recorder = Recorder::new(packing, 4).unwrap();
        recorder.load(backend, &stream, MicroBatch(0), &pack(&recorded, packing), None).unwrap();
        let tape: RouteTape<B> = recorder.seal().unwrap();
        let found = forced(backend, tape.get(Layer(1), MicroBatch(0)).unwrap(), 5, 256, 4);
        let mut rows = layer_of(&recorded, 1);
        rows[3] = vec![0, 1, 2, 3]; // the gate's own choice
        assert_eq!(found, rows, "{}", packing.element());
    }
}

fn packed_sequences_replay_their_own_rows<B: Backend>(backend: &B) {
    let stream = backend.stream().unwrap();
    let packing = Packing::narrowest(64).unwrap();
    let (a, b) = (Recorded::random(2, 2, 4, 64, 63), Recorded::random(3, 2, 4, 64, 64));
    let (packed_a, packed_b) = (pack(&a, packing), pack(&b, packing));
    let batch = PackedRoutes::new(&[(&packed_a, 3), (&packed_b, 4)]).unwrap();
    let mut recorder = Recorder::new(packing, 4).unwrap();
    recorder.load(backend, &stream, MicroBatch(0), batch.routes(), Some(&batch.row_index())).unwrap();
    let tape: RouteTape<B> = recorder.seal().unwrap();
    for layer in 0..2 {
        let native = vec![vec![0, 1, 2, 3]];
        let rows = [layer_of(&a, layer), native.clone(), layer_of(&b, layer), native].concat();
        let routes = tape.get(Layer(layer as u32), MicroBatch(0)).unwrap();
        assert_eq!(forced(backend, routes, 7, 64, 4), rows);
    }
}

fn recorder() -> Recorder<Reference> {
    Recorder::new(Packing::narrowest(8).unwrap(), 2).unwrap()
}

#[test]
fn looking_changes_nothing() {
    let mut recorder = recorder();
    recorder.record(&Reference, &(), Layer(0), MicroBatch(0), &[1, 2, 3, 4]).unwrap();
    let tape = recorder.seal().unwrap();
    let facts = |forced: Forced<'_, _>| (forced.ids.address(), forced.ids.rows(), forced.ids.row_stride());
    let first = facts(tape.get(Layer(0), MicroBatch(0)).unwrap());
    for _ in 0..3 {
        assert_eq!(facts(tape.get(Layer(0), MicroBatch(0)).unwrap()), first);
    }
    refused(tape.assert_all_consumed(), "tape: layer 0 of micro-batch 0 was never replayed");
    assert_eq!(facts(tape.replay(Layer(0), MicroBatch(0)).unwrap()), first);
    tape.assert_all_consumed().unwrap();
    tape.rewind();
    assert!(tape.assert_all_consumed().is_err());
}

#[test]
fn keys_that_are_unknown_unread_or_recorded_twice_are_named() {
    let mut recorder = recorder();
    for layer in 3..6 {
        for m in 0..2 {
            recorder.record(&Reference, &(), Layer(layer), MicroBatch(m), &[1, 2]).unwrap();
        }
    }
    refused(
        recorder.record(&Reference, &(), Layer(4), MicroBatch(1), &[1, 2]),
        "tape: layer 4 of micro-batch 1 is recorded already",
    );
    let routes = pack(&Recorded::random(1, 6, 2, 8, 65), Packing::narrowest(8).unwrap());
    refused(
        recorder.load(&Reference, &(), MicroBatch(1), &routes, None),
        "tape: layer 3 of micro-batch 1 is recorded already",
    );
    refused(
        recorder.record_into(&Reference, &(), Layer(4), MicroBatch(1), 3),
        "tape: layer 4 of micro-batch 1 is recorded already",
    );
    let tape = recorder.seal().unwrap();
    let of = |layer, m| tape.replay(Layer(layer), MicroBatch(m));
    refused(of(7, 0), "tape: layer 7 of micro-batch 0 was not recorded: the layer is not on the tape");
    refused(of(3, 2), "tape: layer 3 of micro-batch 2 was not recorded: the micro-batch is not on the tape");
    refused(of(7, 2), "tape: layer 7 of micro-batch 2 was not recorded: neither is on the tape");
    of(3, 0).unwrap();
    refused(
        tape.assert_all_consumed(),
        "tape: layer 4 of micro-batch 0, layer 5 of micro-batch 0, layer 3 of micro-batch 1, layer 4 of micro-batch 1 \
         and 1 more were never replayed",
    );
}

#[test]
fn a_layer_recorded_for_some_micro_batches_only_does_not_seal() {
    let mut recorder = recorder();
    for (layer, m) in [(0, 0), (1, 0), (0, 1)] {
        recorder.record(&Reference, &(), Layer(layer), MicroBatch(m), &[1, 2]).unwrap();
    }
    let error = recorder.seal().map(drop);
    refused(error, "tape: layer 1 of micro-batch 1 was not recorded, but for other micro-batches");
}

#[test]
fn ids_that_a_tape_cannot_hold_are_refused() {
    let mut recorder = recorder();
    let mut record = |ids: &[i32]| recorder.record(&Reference, &(), Layer(1), MicroBatch(0), ids);
    refused(record(&[1, 2, 3]), "tape: layer 1 of micro-batch 0: 3 ids are no whole rows of 2");
    refused(record(&[1, 2, 3, 8]), "tape: layer 1 of micro-batch 0: row 1 names experts [3, 8], but the router has 8");
    refused(record(&[1, -1]), "tape: layer 1 of micro-batch 0: row 0 names experts [1, -1], but the router has 8");
    record(&[1, 2, -1, -1]).unwrap();
    refused(Recorder::<Reference>::new(Packing::narrowest(8).unwrap(), 9), "top_k: is 9, needs 1 to 8 for 8 experts");

    let mut recorder = self::recorder();
    let other = pack(&Recorded::random(2, 1, 2, 16, 66), Packing::narrowest(16).unwrap());
    refused(
        recorder.load(&Reference, &(), MicroBatch(0), &other, None),
        "tape: micro-batch 0 is of 2 of 16 experts in u8, the tape of 2 of 8 experts in u8",
    );
    let routes = pack(&Recorded::random(2, 1, 2, 8, 67), Packing::narrowest(8).unwrap());
    for (index, text) in [
        ([0, 2], "tape: row_index of micro-batch 0 names row 2 at 1, of 2"),
        ([-2, 1], "tape: row_index of micro-batch 0 names row -2 at 0, of 2"),
    ] {
        refused(recorder.load(&Reference, &(), MicroBatch(0), &routes, Some(&index)), text);
    }
}

#[test]
fn a_kernel_may_record_into_the_tape_itself() -> Result<(), Error> {
    let mut recorder = recorder();
    let mut room = recorder.record_into(&Reference, &(), Layer(0), MicroBatch(0), 3)?;
    room.row_mut::<u8>(0).unwrap().copy_from_slice(&[5, 3]);
    room.row_mut::<u8>(2).unwrap().copy_from_slice(&[0, 7]);
    let tape = recorder.seal()?;
    // A row that was not written is missing.
    let found = forced(&Reference, tape.get(Layer(0), MicroBatch(0))?, 3, 8, 2);
    assert_eq!(found, [[5, 3], [0, 1], [0, 7]]);
    Ok(())
}
