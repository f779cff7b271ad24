//! Which layers of a payload are which layers of the model.

use moerl::element::Element;
use moerl::routes::{Form, Layer, LayerMap, Model, MoeLayers, Packing, Payload};

use crate::fixture::*;

fn deepseek_v3() -> Model {
    Model { mtp_layers: 1, moe: MoeLayers::AfterDense(3), ..Model::new(61) }
}

fn names(map: &LayerMap) -> Vec<u32> {
    map.layers().iter().map(|mapped| mapped.layer.0).collect()
}

#[test]
fn all_hidden_layers_and_layers_with_experts_give_the_same_names() {
    let model = deepseek_v3();
    for payload_layers in [58, 59, 61, 62] {
        let map = LayerMap::new(&model, payload_layers).unwrap();
        assert_eq!(names(&map), (3..61).collect::<Vec<u32>>(), "{payload_layers} layers");
        let first = if payload_layers < 61 { 0 } else { 3 };
        assert_eq!(map.layers()[0].payload, first);
        assert_eq!((map.ordinal(first), map.ordinal(first + 57)), (Some(0), Some(57)));
        // The dense layers before, and the one for multi-token prediction behind.
        assert_eq!((first.checked_sub(1).and_then(|dense| map.ordinal(dense)), map.ordinal(first + 58)), (None, None));
    }
}

#[test]
fn dense_first_3_of_61_reads_the_rows_of_the_58() {
    let mut recorded = Recorded::random(5, 62, 8, 256, 30);
    let map = LayerMap::new(&deepseek_v3(), 62).unwrap();
    for row in 0..5 {
        // Zeros where dense layers are, and ids of another router where tokens ahead are predicted.
        (0..3).for_each(|dense| recorded.at_mut(row, dense).fill(0));
        recorded.at_mut(row, 61).fill(999);
    }
    let bytes = recorded.bytes(Element::I32);
    let payload = Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap();
    let routes = payload.pack(&recorded.expected(&map), Packing::narrowest(256).unwrap()).unwrap();
    assert_eq!(routes.layers().len(), 58);
    for ordinal in [0, 30, 57] {
        let rows: Vec<Vec<i64>> = (0..5).map(|row| recorded.at(row, ordinal + 3).to_vec()).collect();
        assert_eq!(unpack(&routes, ordinal), rows, "ordinal {ordinal}");
    }
    // Read as if every layer had experts, the dense ones show.
    let text = payload.check(&recorded.expected(&LayerMap::identity(62))).unwrap_err().to_string();
    assert!(text.starts_with("routed_experts: sequence 3, layer 0: all 5 recorded rows are zeros"), "{text}");
}

#[test]
fn frequencies_and_lists_name_the_layers_with_experts() {
    let every = |first_dense, step, phase| MoeLayers::Every { first_dense, step, phase };
    let table = [
        (MoeLayers::All, vec![0, 1, 2, 3, 4, 5, 6, 7]),
        (MoeLayers::AfterDense(6), vec![6, 7]),
        (every(0, 2, 0), vec![0, 2, 4, 6]),
        (every(0, 2, 1), vec![1, 3, 5, 7]),
        (every(3, 2, 0), vec![4, 6]),
        (MoeLayers::List(vec![1, 6]), vec![1, 6]),
    ];
    for (moe, layers) in table {
        let model = Model { moe, ..Model::new(8) };
        assert_eq!(model.moe_layers().unwrap(), layers, "{:?}", model.moe);
    }
    let refusal = |moe, text: &str| refused(Model { moe, ..Model::new(8) }.moe_layers(), text);
    refusal(MoeLayers::AfterDense(8), "moe_layers: AfterDense(8) leaves none of the 8 hidden layers");
    refusal(
        every(0, 0, 0),
        "moe_layers: Every { first_dense: 0, step: 0, phase: 0 } leaves none of the 8 hidden layers",
    );
    refusal(MoeLayers::List(vec![2, 2]), "moe_layers: [2, 2] do not rise");
    refusal(MoeLayers::List(vec![1, 8]), "moe_layers: name layer 8, but the model has 8");
}

#[test]
fn a_payload_that_fits_nothing_or_two_readings_is_refused() {
    refused(
        LayerMap::new(&deepseek_v3(), 60),
        "layers: the payload has 60, needs all 61 hidden layers or the 58 with experts, each with or without 1 for \
         multi-token prediction",
    );
    refused(
        LayerMap::new(&Model::new(48), 47),
        "layers: the payload has 47, needs all 48 hidden layers or the 48 with experts",
    );
    let ambiguous = Model { mtp_layers: 3, moe: MoeLayers::AfterDense(3), ..Model::new(61) };
    refused(
        LayerMap::new(&ambiguous, 61),
        "layers: the payload has 61, which may be all 61 hidden layers or the 58 with experts and 3 for multi-token \
         prediction; say which form it has",
    );
    let of = |form| LayerMap::with_form(&ambiguous, form, 61).unwrap().layers()[0].payload;
    assert_eq!((of(Form::HiddenLayers), of(Form::MoeLayers)), (3, 0));
    refused(
        LayerMap::with_form(&deepseek_v3(), Form::MoeLayers, 61),
        "layers: the payload has 61, needs all 61 hidden layers or the 58 with experts, each with or without 1 for \
         multi-token prediction",
    );
}

#[test]
fn a_stage_holds_its_layers_in_the_order_that_it_says() {
    // Two virtual stages of one rank: layers 4, 5 and 0, 1.
    let recorded = Recorded::random(3, 8, 2, 16, 31);
    let bytes = recorded.bytes(Element::U8);
    let payload = Payload::tensor(&bytes, Element::U8, recorded.shape()).unwrap();
    let whole = LayerMap::identity(8);
    let stage = whole.stage(&[4, 5, 0, 1].map(Layer)).unwrap();
    let routes = payload.pack(&recorded.expected(&stage), Packing::narrowest(16).unwrap()).unwrap();
    assert_eq!(routes.layers(), [4, 5, 0, 1].map(Layer));
    for (ordinal, layer) in [4, 5, 0, 1].into_iter().enumerate() {
        let rows: Vec<Vec<i64>> = (0..3).map(|row| recorded.at(row, layer).to_vec()).collect();
        assert_eq!(unpack(&routes, ordinal), rows);
    }
    refused(whole.stage(&[Layer(1), Layer(1)]), "layers: layer 1 is named twice");
    refused(whole.stage(&[Layer(8)]), "layers: layer 8 is not a layer with experts");
    refused(
        payload.check(&recorded.expected(&whole.stage(&[]).unwrap())),
        "layers: are all chosen by tables of token ids, or there is none: nothing to replay",
    );
}

#[test]
fn layers_with_token_tables_are_marked_and_not_replayed() {
    let model = Model { hash: vec![0, 1, 2], ..Model::new(6) };
    let map = LayerMap::new(&model, 6).unwrap();
    assert_eq!(
        map.layers().iter().map(|mapped| mapped.hash).collect::<Vec<_>>(),
        [true, true, true, false, false, false]
    );
    let mut recorded = Recorded::random(4, 6, 6, 256, 32);
    (0..4).for_each(|row| recorded.at_mut(row, 1).fill(0));
    let bytes = recorded.bytes(Element::U8);
    let payload = Payload::tensor(&bytes, Element::U8, recorded.shape()).unwrap();
    let routes = payload.pack(&recorded.expected(&map), Packing::narrowest(256).unwrap()).unwrap();
    assert_eq!(routes.layers(), [3, 4, 5].map(Layer));
    assert_eq!(unpack(&routes, 0)[2], recorded.at(2, 3));
}
