//! Types, sentinels, bitmaps, bytes.

use moerl::element::Element;
use moerl::error::Kind;
use moerl::routes::{Expected, LayerMap, Packing, Payload, RoutedExperts, bytes_per_token};

use crate::fixture::*;

fn pack(recorded: &Recorded, packing: Packing) -> moerl::Result<RoutedExperts> {
    let bytes = recorded.bytes(Element::I32);
    let map = LayerMap::identity(recorded.layers);
    Payload::megatron(&bytes, Element::I32, recorded.shape())?.pack(&recorded.expected(&map), packing)
}

#[test]
fn the_narrowest_type_holds_every_expert() {
    for (experts, element, sentinel) in [
        (1, Element::U8, true),
        (255, Element::U8, true),
        (256, Element::U8, false),
        (257, Element::U16, true),
        (4096, Element::U16, true),
    ] {
        let packing = Packing::narrowest(experts).unwrap();
        assert_eq!((packing.element(), packing.has_sentinel()), (element, sentinel), "{experts} experts");
    }
    assert!(Packing::new(256, Element::U16).unwrap().has_sentinel());
    refused(Packing::new(512, Element::U8), "packing: is u8, which cannot name 512 experts; use u16");
    refused(Packing::new(8, Element::I32), "packing: is i32, needs u8 or u16");
    refused(Packing::narrowest(4097), "experts: are 4097, need 1 to 4096");
    assert!(Packing::narrowest(0).unwrap_err().is(Kind::Config));
}

#[test]
fn missing_rows_of_256_experts_in_u8_are_kept_in_a_bitmap() {
    let mut recorded = Recorded::random(130, 2, 2, 256, 40);
    for row in [0, 63, 64, 129] {
        (0..2).for_each(|layer| recorded.at_mut(row, layer).fill(-1));
    }
    // An expert 255 is an expert.
    recorded.at_mut(5, 0).copy_from_slice(&[255, 254]);
    let routes = pack(&recorded, Packing::narrowest(256).unwrap()).unwrap();
    let missing: Vec<usize> = (0..130).filter(|&row| routes.is_missing(row)).collect();
    assert_eq!(missing, [0, 63, 64, 129]);
    assert_eq!(unpack(&routes, 0)[5], [255, 254]);
    assert_eq!(routes.bytes(), 130 * 2 * 2 + 3 * 8);
    // Cut and joined, each row keeps its bit.
    let joined = RoutedExperts::concat([&routes.slice(64..130), &routes.slice(0..64)]).unwrap();
    let missing: Vec<usize> = (0..130).filter(|&row| joined.is_missing(row)).collect();
    assert_eq!(missing, [0, 65, 66, 129]);
}

#[test]
fn a_row_missing_in_some_layers_needs_a_sentinel() {
    let mut recorded = Recorded::random(3, 2, 2, 256, 41);
    recorded.at_mut(1, 1).fill(-1);
    refused(
        pack(&recorded, Packing::narrowest(256).unwrap()),
        "routed_experts: sequence 3, row 1: is missing in some layers only, which 256 experts in u8 cannot say; pack into u16",
    );
    let wide = pack(&recorded, Packing::new(256, Element::U16).unwrap()).unwrap();
    assert_eq!((unpack(&wide, 1)[1].clone(), wide.is_missing(1)), (vec![-1, -1], false));
    assert_eq!(unpack(&wide, 0)[1], recorded.at(1, 0));
}

#[test]
fn bytes_per_token_are_those_of_the_models() {
    let table = [
        ("Qwen3-30B-A3B", 48, 8, Element::U8, 384, 12.6),
        ("Qwen3-235B-A22B", 94, 8, Element::U8, 752, 24.6),
        ("DeepSeek-V3", 58, 8, Element::U8, 464, 15.2),
        ("DeepSeek-V3 in u16", 58, 8, Element::U16, 928, 30.4),
        ("Kimi K2", 60, 8, Element::U16, 960, 31.5),
        ("Qwen3-Next", 48, 10, Element::U16, 960, 31.5),
        ("60 layers in int32", 60, 8, Element::I32, 1920, 62.9),
    ];
    for (model, layers, k, element, bytes, megabytes) in table {
        assert_eq!(bytes_per_token(layers, k, element), bytes, "{model}");
        // To the one decimal that is stated.
        assert!((bytes as f64 * 32_768.0 / 1e6 - megabytes).abs() < 0.05, "{model}");
    }
    let recorded = Recorded::random(10, 48, 8, 128, 42);
    let routes = pack(&recorded, Packing::narrowest(128).unwrap()).unwrap();
    assert_eq!(routes.bytes(), 10 * bytes_per_token(48, 8, Element::U8));
}

#[test]
fn only_rows_of_one_kind_are_joined() {
    let one = pack(&Recorded::random(3, 2, 2, 64, 43), Packing::narrowest(64).unwrap()).unwrap();
    let two = pack(&Recorded::random(3, 2, 2, 64, 43), Packing::new(64, Element::U16).unwrap()).unwrap();
    refused(
        RoutedExperts::concat([&one, &two]),
        "routed_experts: part 1 is 2 layers of 2 of 64 experts in u16, part 0 is 2 layers of 2 of 64 experts in u8",
    );
    refused(RoutedExperts::concat([]), "routed_experts: nothing to join");
}

#[test]
fn an_expectation_of_other_rows_is_a_defect() {
    let recorded = Recorded::random(3, 1, 2, 8, 44);
    let bytes = recorded.bytes(Element::U8);
    let payload = Payload::tensor(&bytes, Element::U8, recorded.shape()).unwrap();
    let map = LayerMap::identity(1);
    let expected = Expected { rows: 4, ..recorded.expected(&map) };
    refused(payload.check(&expected), "routed_experts: sequence 3: has 3 rows, needs 4");
    refused(payload.pack(&expected, Packing::narrowest(8).unwrap()), "routed_experts: sequence 3: has 3 rows, needs 4");
}
