//! Every wire format, and the text of every error that it can have.

use moerl::element::Element;
use moerl::error::Kind;
use moerl::routes::{Expected, LayerMap, Packing, Payload, RoutedExperts, Sglang};

use crate::fixture::*;

fn holds(routes: &RoutedExperts, recorded: &Recorded) {
    assert_eq!(routes.rows(), recorded.rows);
    for layer in 0..recorded.layers {
        let rows: Vec<Vec<i64>> = (0..recorded.rows).map(|row| recorded.at(row, layer).to_vec()).collect();
        assert_eq!(unpack(routes, layer), rows, "layer {layer}");
    }
}

fn packs(payload: &Payload<'_>, recorded: &Recorded) -> RoutedExperts {
    let map = LayerMap::identity(recorded.layers);
    let routes = payload.pack(&recorded.expected(&map), Packing::narrowest(recorded.experts).unwrap()).unwrap();
    holds(&routes, recorded);
    routes
}

#[test]
fn sglang_base64_is_read_whole_from_a_start_and_without_shared_columns() {
    let recorded = Recorded::random(11, 3, 4, 64, 1);
    let text = base64(&recorded.bytes(Element::I32));
    let shape = Sglang { tokens: 12, start_len: 0, layers: 3, columns: 4 };
    packs(&Payload::sglang(&text, shape).unwrap(), &recorded);

    let tail = recorded.rows_from(5);
    let text = base64(&tail.bytes(Element::I32));
    packs(&Payload::sglang(&text, Sglang { start_len: 5, ..shape }).unwrap(), &tail);

    let text = base64(&recorded.with_shared(2).bytes(Element::I32));
    let payload = Payload::sglang(&text, Sglang { columns: 6, ..shape }).unwrap();
    let map = LayerMap::identity(3);
    let expected = Expected { shared_columns: 2, ..recorded.expected(&map) };
    holds(&payload.pack(&expected, Packing::narrowest(64).unwrap()).unwrap(), &recorded);
    // Shared columns that nobody spoke of are not cut off in silence.
    refused(payload.check(&recorded.expected(&map)), "routed_experts: has 6 ids per token and layer, needs 4 chosen");
    refused(
        payload.check(&Expected { shared_columns: 1, ..recorded.expected(&map) }),
        "routed_experts: has 6 ids per token and layer, needs 4 chosen and 1 shared",
    );
}

#[test]
fn sglang_text_of_another_length_is_refused() {
    let recorded = Recorded::random(11, 3, 4, 64, 1);
    let text = base64(&recorded.bytes(Element::I32));
    let shape = Sglang { tokens: 12, start_len: 0, layers: 3, columns: 4 };
    refused(
        Payload::sglang(&text, Sglang { tokens: 13, ..shape }),
        "routed_experts: has 528 bytes, but 12 rows of 3 layers of 4 i32 need 576",
    );
    refused(
        Payload::sglang(&text, Sglang { start_len: 5, ..shape }),
        "routed_experts: has 11 rows, needs 6: the engine ignored start_len 5 and sent the whole sequence",
    );
    refused(
        Payload::sglang(&text, Sglang { start_len: 12, ..shape }),
        "start_len: is 12, behind the 11 rows of 12 tokens",
    );
    refused(Payload::sglang(&text, Sglang { tokens: 0, ..shape }), "start_len: is 0, behind the 0 rows of 0 tokens");
    refused(
        Payload::sglang(&text[..703], shape),
        "routed_experts: is no base64: 703 characters are no multiple of 4 (truncated?)",
    );
    refused(
        Payload::sglang(&text, Sglang { layers: 0, ..shape }),
        "routed_experts: has shape [11, 0, 4], needs at least one layer and one id; \
         routed_experts: has 528 bytes, but 11 rows of 0 layers of 4 i32 need 0",
    );
    refused(
        Payload::sglang(&text, Sglang { layers: usize::MAX, ..shape }),
        "routed_experts: has 528 bytes, but 11 rows of 18446744073709551615 layers of 4 i32 need more than there can be",
    );
}

#[test]
fn characters_that_are_not_base64_are_named_with_their_place() {
    let recorded = Recorded::random(11, 3, 4, 64, 1);
    let text = base64(&recorded.bytes(Element::I32));
    let map = LayerMap::identity(3);
    let shape = Sglang { tokens: 12, start_len: 0, layers: 3, columns: 4 };
    let spoiled = |at: usize, by: u8| {
        let mut text = text.clone();
        text[at] = by;
        let payload = Payload::sglang(&text, shape).unwrap();
        payload.check(&recorded.expected(&map))
    };
    refused(spoiled(0, b'*'), "routed_experts: is no base64: character '*' at 0");
    refused(spoiled(501, b'\n'), "routed_experts: is no base64: character '\\n' at 501");
    refused(spoiled(502, b'='), "routed_experts: is no base64: character '=' at 502");
    // At the end of a row's characters, where a decoder of that row alone takes it for the end of the text.
    refused(spoiled(63, b'='), "routed_experts: is no base64: padding inside characters 0..64");
}

#[test]
fn vllm_npy_is_read_in_every_type_byte_order_and_version() {
    for (descr, element, big) in [
        ("|u1", Element::U8, false),
        ("<u1", Element::U8, false),
        ("|i1", Element::U8, false),
        ("<u2", Element::U16, false),
        (">u2", Element::U16, true),
        ("<i2", Element::I16, false),
        (">i4", Element::I32, true),
        ("<i8", Element::I64, false),
        (">i8", Element::I64, true),
    ] {
        let recorded = Recorded::random(7, 2, 4, 128, 2);
        let file = npy(descr, &recorded.shape(), &encode(&recorded.ids, element, big));
        let payload = Payload::vllm(&file).unwrap();
        assert_eq!((payload.element(), payload.is_big_endian()), (element, big), "{descr}");
        packs(&payload, &recorded);
    }
    let recorded = Recorded::random(7, 2, 4, 300, 2);
    let version_1 = npy("<u2", &recorded.shape(), &recorded.bytes(Element::U16));
    let mut version_2 = b"\x93NUMPY\x02\x00".to_vec();
    version_2.extend(u32::from(u16::from_le_bytes([version_1[8], version_1[9]])).to_le_bytes());
    version_2.extend(&version_1[10..]);
    packs(&Payload::vllm(&version_2).unwrap(), &recorded);
}

#[test]
fn npy_headers_are_refused_with_what_is_wrong() {
    let data = [0_u8; 8];
    let table = [
        (b"PK\x03\x04".to_vec(), "is no npy file: it does not begin with \\x93NUMPY"),
        (b"\x93NUMPY\x01".to_vec(), "is truncated in its npy header: 7 bytes"),
        (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "is truncated in its npy header: 11 bytes"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), "is truncated in its npy header: 13 bytes"),
        (b"\x93NUMPY\x09\x00\x00\x00".to_vec(), "has npy version 9.0, known are 1 to 3"),
        (npy("<f4", &[1, 1, 2], &data), "holds \"<f4\", needs 1 to 8 byte integers (u1, u2, i1, i2, i4 or i8)"),
        (npy("|u2", &[2, 1, 2], &data), "holds \"|u2\", needs 1 to 8 byte integers (u1, u2, i1, i2, i4 or i8)"),
        (npy("", &[2, 1, 2], &data), "holds \"\", needs 1 to 8 byte integers (u1, u2, i1, i2, i4 or i8)"),
        (npy("<u2", &[2, 2], &data), "has shape [2, 2], needs [rows, layers, k]"),
        (npy("<u2", &[2, 1, 3], &data), "has 8 bytes, but 2 rows of 1 layers of 3 u16 need 12"),
        (npy("<u2", &[4, 0, 1], &[]), "has shape [4, 0, 1], needs at least one layer and one id"),
        (
            npy("<u2", &[usize::MAX, 2, 2], &data),
            "has 8 bytes, but 18446744073709551615 rows of 2 layers of 2 u16 need more than there can be",
        ),
        (
            npy_with("{'descr': '<u2', 'fortran_order': True, 'shape': (2, 1, 2), }", &data),
            "is in Fortran order, needs C order",
        ),
        (npy_with("{'descr': '<u2', 'shape': (2, 1, 2), }", &data), "has an npy header without fortran_order"),
        (npy_with("{'kind': '<u2'}", &data), "has an npy header with the unknown key \"kind\""),
        (npy_with("{'descr': '<u2'", &data), "has a damaged npy header: '}' expected at \"    "),
        (npy_with("{'shape': (2, x", &data), "has a damaged npy header: a dimension expected at \" x"),
        (npy_with("{'shape': (99999999999999999999,)}", &data), "has a damaged npy header: a dimension expected"),
        (npy_with("{'fortran_order': 0}", &data), "has a damaged npy header: True or False expected at \" 0}"),
        (npy_with("{descr", &data), "has a damaged npy header: '\\'' expected at \"descr"),
        (
            npy_with(&format!("{{'shape': ({})}}", "1,".repeat(65)), &data),
            "has a damaged npy header: the end of the shape",
        ),
    ];
    for (file, text) in table {
        let error = Payload::vllm(&file).expect_err(text);
        assert!(error.is(Kind::Routes), "{text}");
        let found = error.to_string();
        assert!(found.starts_with(&format!("routed_experts: {text}")), "`{found}` is not `{text}`");
    }
}

#[test]
fn vllm_split_arrays_are_joined_prompt_first() {
    let recorded = Recorded::random(9, 2, 4, 64, 3);
    let cut = 5 * 2 * 4;
    let [prompt, response] = [(&recorded.ids[..cut], 5), (&recorded.ids[cut..], 4)]
        .map(|(ids, rows)| npy("<i2", &[rows, 2, 4], &encode(ids, Element::I16, false)));
    let (prompt, response) = (Payload::vllm(&prompt).unwrap(), Payload::vllm(&response).unwrap());
    let (map, packing) = (LayerMap::identity(2), Packing::narrowest(64).unwrap());
    holds(&response.pack_split(&prompt, &recorded.expected(&map), packing).unwrap(), &recorded);
    let expected = Expected { rows: 10, ..recorded.expected(&map) };
    refused(
        response.pack_split(&prompt, &expected, packing),
        "routed_experts: sequence 3: 5 rows of the prompt and 4 of the response, needs 10 together",
    );
}

#[test]
fn prime_rl_base64_is_read_in_its_two_types() {
    for (element, experts) in [(Element::U8, 256), (Element::U16, 512)] {
        // 1 to 3 rows: every length of padding.
        for rows in 1..4 {
            let recorded = Recorded::random(rows, 5, 1, experts, 4);
            let text = base64(&recorded.bytes(element));
            packs(&Payload::prime_rl(&text, element, recorded.shape()).unwrap(), &recorded);
        }
    }
    refused(Payload::prime_rl(b"AAAA", Element::I32, [1, 1, 1]), "routed_experts: holds i32, needs u8 or u16");
    refused(
        Payload::prime_rl(b"AAAA", Element::U8, [1, 1, 2]),
        "routed_experts: has 3 bytes, but 1 rows of 1 layers of 2 u8 need 2",
    );
    packs(&Payload::prime_rl(b"", Element::U8, [0, 1, 2]).unwrap(), &Recorded::random(0, 1, 2, 4, 0));
}

#[test]
fn megatron_indices_are_read_in_their_two_types() {
    for element in [Element::I32, Element::I64] {
        let recorded = Recorded::random(6, 4, 8, 384, 5);
        let bytes = recorded.bytes(element);
        packs(&Payload::megatron(&bytes, element, recorded.shape()).unwrap(), &recorded);
        refused(
            Payload::megatron(&bytes[1..], element, recorded.shape()),
            &format!(
                "routed_experts: has {} bytes, but 6 rows of 4 layers of 8 {element} need {}",
                bytes.len() - 1,
                bytes.len()
            ),
        );
    }
    refused(Payload::megatron(&[0; 2], Element::U8, [1, 1, 2]), "routed_experts: holds u8, needs i32 or i64");
}

#[test]
fn tensors_of_a_step_file_are_read_in_every_integer_type() {
    for &element in Element::INTEGERS {
        let recorded = Recorded::random(6, 4, 4, 32, 6);
        packs(&Payload::tensor(&recorded.bytes(element), element, recorded.shape()).unwrap(), &recorded);
    }
    refused(
        Payload::tensor(&[0; 8], Element::F32, [1, 1, 2]),
        "routed_experts: holds f32, needs u8 or u16 or i16 or i32 or i64",
    );
}

#[test]
fn every_sentinel_of_the_wire_is_a_missing_row() {
    for &element in Element::INTEGERS {
        let mut recorded = Recorded::random(4, 2, 3, 64, 7);
        recorded.at_mut(2, 0).fill(-1);
        recorded.at_mut(2, 1).fill(-1);
        let routes = packs(&Payload::tensor(&recorded.bytes(element), element, recorded.shape()).unwrap(), &recorded);
        assert_eq!((0..5).map(|row| routes.is_missing(row)).collect::<Vec<_>>(), [false, false, true, false, true]);
    }
}

#[test]
fn defects_name_sequence_row_layer_and_ids() {
    let mut recorded = Recorded::random(5, 2, 2, 8, 8);
    recorded.at_mut(1, 0).copy_from_slice(&[3, 131]);
    recorded.at_mut(2, 1).copy_from_slice(&[5, 5]);
    recorded.at_mut(4, 0).copy_from_slice(&[-1, 5]);
    recorded.at_mut(3, 1).copy_from_slice(&[-7, 5]);
    let bytes = recorded.bytes(Element::I64);
    let payload = Payload::megatron(&bytes, Element::I64, recorded.shape()).unwrap();
    let map = LayerMap::identity(2);
    let text = "routed_experts: sequence 3, row 1, layer 0: names expert 131, but the router has 8 experts (ids [3, 131]); \
         routed_experts: sequence 3, row 2, layer 1: names expert 5 twice (ids [5, 5]); \
         routed_experts: sequence 3, row 3, layer 1: names expert -7, but the router has 8 experts (ids [-7, 5]); \
         routed_experts: sequence 3, row 4, layer 0: some but not all ids are the sentinel (ids [-1, 5])";
    refused(payload.check(&recorded.expected(&map)), text);
    refused(payload.pack(&recorded.expected(&map), Packing::narrowest(8).unwrap()), text);

    let expected = Expected { rows: 7, ..recorded.expected(&map) };
    let survey = payload.survey(&expected, 2).unwrap();
    assert_eq!(survey.defect_count, 5);
    assert_eq!(survey.defects[0].to_string(), "sequence 3: has 5 rows, needs 7");
    assert_eq!(survey.defects.len(), 2);
    let first = &survey.layers[0];
    assert_eq!((first.replayable, first.out_of_range, first.partial), (3, 1, 1));
    assert_eq!((survey.layers[1].duplicates, survey.layers[1].out_of_range), (1, 1));
}

#[test]
fn an_error_spells_the_first_defects_and_counts_the_others() {
    let mut recorded = Recorded::random(40, 1, 2, 8, 9);
    recorded.ids.fill(9);
    let bytes = recorded.bytes(Element::I32);
    let payload = Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap();
    let text = payload.check(&recorded.expected(&LayerMap::identity(1))).unwrap_err().to_string();
    assert_eq!(text.matches("names expert 9").count(), 8);
    assert!(text.ends_with("; routed_experts: and 32 more"), "{text}");
}

#[test]
fn a_layer_of_zeros_was_never_recorded() {
    let map = LayerMap::identity(3);
    for k in [1, 2] {
        let mut recorded = Recorded::random(20, 3, k, 8, 10);
        (0..20).for_each(|row| recorded.at_mut(row, 1).fill(0));
        let bytes = recorded.bytes(Element::I32);
        let payload = Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap();
        for zeros_are_missing in [false, true] {
            let expected = Expected { zeros_are_missing, ..recorded.expected(&map) };
            refused(
                payload.check(&expected),
                "routed_experts: sequence 3, layer 1: all 20 recorded rows are zeros, so it was never recorded",
            );
        }
    }
    // With k = 1, a few zeros are what they say.
    let recorded = Recorded { ids: vec![0; 15], ..Recorded::random(15, 1, 1, 8, 0) };
    let bytes = recorded.bytes(Element::I32);
    packs(&Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap(), &recorded);
}

#[test]
fn a_tail_of_zeros_is_missing_where_that_is_said() {
    let mut recorded = Recorded::random(6, 2, 2, 8, 11);
    for row in 4..6 {
        (0..2).for_each(|layer| recorded.at_mut(row, layer).fill(0));
    }
    let bytes = recorded.bytes(Element::I32);
    let payload = Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap();
    let map = LayerMap::identity(2);
    let text = payload.check(&recorded.expected(&map)).unwrap_err().to_string();
    assert!(
        text.starts_with("routed_experts: sequence 3, row 4, layer 0: names expert 0 twice (ids [0, 0])"),
        "{text}"
    );
    let expected = Expected { zeros_are_missing: true, ..recorded.expected(&map) };
    let routes = payload.pack(&expected, Packing::narrowest(8).unwrap()).unwrap();
    assert!(!routes.is_missing(3) && routes.is_missing(4) && routes.is_missing(5));
    assert_eq!(payload.survey(&expected, 9).unwrap().layers[0].zeros, 2);
}

#[test]
fn what_contradicts_the_router_is_refused_before_a_row_is_read() {
    let recorded = Recorded::random(3, 2, 4, 200, 12);
    let bytes = recorded.bytes(Element::U8);
    let payload = Payload::tensor(&bytes, Element::U8, recorded.shape()).unwrap();
    let map = LayerMap::identity(2);
    let with = |experts, top_k| Expected { experts, top_k, ..recorded.expected(&map) };
    refused(
        payload.check(&with(512, 4)),
        "routed_experts: holds u8, which cannot name 512 experts: ids above 255 were cut off when it was made",
    );
    refused(
        payload.check(&with(5000, 4)),
        "experts: are 5000, need 1 to 4096; routed_experts: holds u8, which cannot name \
         5000 experts: ids above 255 were cut off when it was made",
    );
    refused(
        payload.check(&with(200, 33)),
        "top_k: is 33, needs 1 to 32 for 200 experts; routed_experts: has 4 ids per token and layer, needs 33 chosen",
    );
    let wider = LayerMap::identity(5);
    refused(payload.check(&recorded.expected(&wider)), "routed_experts: has 2 layers, the layer map is for 5");
    refused(
        payload.pack(&recorded.expected(&map), Packing::narrowest(64).unwrap()),
        "packing: is for 64 experts, the payload for 200",
    );
}
