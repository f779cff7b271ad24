//! Ranks, packed sequences, known prefixes.

use moerl::element::Element;
use moerl::routes::{
    ContextParallel, Expected, LayerMap, PackedRoutes, Packing, Payload, PrefixStore, RoutedExperts, Split,
};

use crate::allocator::peak;
use crate::fixture::*;

fn pack(recorded: &Recorded) -> RoutedExperts {
    let bytes = recorded.bytes(Element::I32);
    let map = LayerMap::identity(recorded.layers);
    let payload = Payload::megatron(&bytes, Element::I32, recorded.shape()).unwrap();
    payload.pack(&recorded.expected(&map), Packing::narrowest(recorded.experts).unwrap()).unwrap()
}

#[test]
fn dividing_a_sequence_and_putting_it_together_again_is_the_identity() {
    for split in [Split::Contiguous, Split::Zigzag] {
        for ranks in [1, 2, 4, 8] {
            let parallel = ContextParallel::new(ranks, split).unwrap();
            for tokens in [0, 1, 2, 15, 16, 17, 64, 100] {
                let mut seen = vec![None; tokens];
                for rank in 0..ranks {
                    let positions: Vec<Option<usize>> = parallel.positions(tokens, rank).collect();
                    assert_eq!(positions.len(), tokens.div_ceil(2 * ranks) * 2);
                    for (local, position) in positions.iter().enumerate() {
                        if let Some(position) = *position {
                            assert_eq!(seen[position].replace((rank, local)), None, "token {position} twice");
                        }
                    }
                }
                let owners: Vec<_> = (0..tokens).map(|token| Some(parallel.owner(tokens, token))).collect();
                assert_eq!(seen, owners, "{split:?}, {ranks} ranks, {tokens} tokens");
            }
        }
    }
    refused(ContextParallel::new(0, Split::Zigzag), "ranks: are 0, need at least 1");
}

#[test]
fn contiguous_and_zigzag_are_what_their_names_say() {
    let of = |split, rank| -> Vec<usize> {
        ContextParallel::new(2, split).unwrap().positions(8, rank).map(Option::unwrap).collect()
    };
    assert_eq!([of(Split::Contiguous, 0), of(Split::Contiguous, 1)], [[0, 1, 2, 3], [4, 5, 6, 7]]);
    assert_eq!([of(Split::Zigzag, 0), of(Split::Zigzag, 1)], [[0, 1, 6, 7], [2, 3, 4, 5]]);
}

#[test]
fn packed_sequences_index_their_rows_and_miss_their_last_token() {
    let (a, mut b) = (Recorded::random(3, 2, 2, 16, 50), Recorded::random(4, 2, 2, 16, 51));
    (0..2).for_each(|layer| b.at_mut(1, layer).fill(-1));
    let (a, b) = (pack(&a), pack(&b));
    // The second was recorded by a trainer: it has a row for every token.
    let batch = PackedRoutes::new(&[(&a, 4), (&b, 4), (&a, 4)]).unwrap();
    assert_eq!(batch.segments().offsets(), [0, 4, 8, 12]);
    assert_eq!(batch.row_index(), [0, 1, 2, -1, 3, -1, 5, 6, 7, 8, 9, -1]);
    assert_eq!(batch.routes().rows(), 10);

    let parallel = ContextParallel::new(2, Split::Zigzag).unwrap();
    let ranks: Vec<Vec<i32>> = (0..2).map(|rank| batch.row_index_of_rank(parallel, rank)).collect();
    assert_eq!(ranks, [[0, -1, 3, 6, 7, -1], [1, 2, -1, 5, 8, 9]]);

    refused(PackedRoutes::new(&[(&a, 4), (&b, 6)]), "routed_experts: sequence 1: has 4 rows for 6 tokens, needs 5");
}

#[test]
fn a_rank_packs_its_rows_and_layers_without_the_whole() {
    let recorded = Recorded::random(4096, 8, 4, 64, 52);
    let tokens = 4097;
    let (whole_map, packing) = (LayerMap::identity(8), Packing::narrowest(64).unwrap());
    let stage =
        whole_map.stage(&whole_map.layers()[2..4].iter().map(|mapped| mapped.layer).collect::<Vec<_>>()).unwrap();
    let parallel = ContextParallel::new(4, Split::Zigzag).unwrap();
    let wide = recorded.bytes(Element::I32);
    let text = base64(&recorded.bytes(Element::U8));
    let plain = Payload::megatron(&wide, Element::I32, recorded.shape()).unwrap();
    let coded = Payload::prime_rl(&text, Element::U8, recorded.shape()).unwrap();
    for rank in 0..4 {
        let positions: Vec<Option<usize>> = parallel.positions(tokens, rank).collect();
        for payload in [plain, coded] {
            let expected = recorded.expected(&stage);
            let (part, held) = peak(|| payload.pack_rows(&expected, packing, positions.iter().copied()).unwrap());
            assert_eq!(part.rows(), positions.len());
            for (local, position) in positions.iter().enumerate() {
                let row = position.filter(|&position| position < recorded.rows);
                assert_eq!(part.is_missing(local), row.is_none());
                for ordinal in 0..2 {
                    let layer = part.array().layer(ordinal).unwrap();
                    let ids = row.map_or(vec![255; 4], |row| recorded.at(row, ordinal + 2).to_vec());
                    assert_eq!(layer.row_i64(local), ids);
                }
            }
            // A quarter of the rows, a quarter of the layers; beside them one row's bytes and the map.
            let share = recorded.ids.len() / 16;
            assert!(held < share + 4096, "{held} bytes held for a share of {share}");
        }
    }
}

#[test]
fn a_rank_whose_rows_all_lie_in_a_zero_tail_is_no_error() {
    let mut recorded = Recorded::random(16, 2, 2, 16, 53);
    for row in 4..16 {
        (0..2).for_each(|layer| recorded.at_mut(row, layer).fill(0));
    }
    let bytes = recorded.bytes(Element::U8);
    let payload = Payload::tensor(&bytes, Element::U8, recorded.shape()).unwrap();
    let map = LayerMap::identity(2);
    let expected = Expected { zeros_are_missing: true, ..recorded.expected(&map) };
    let packing = Packing::narrowest(16).unwrap();
    let tail = payload.pack_rows(&expected, packing, (8..16).map(Some)).unwrap();
    assert!((0..8).all(|row| tail.is_missing(row)));
}

#[test]
fn a_known_prefix_stands_in_front_of_a_sequences_own_rows() {
    let recorded = Recorded::random(9, 2, 2, 16, 54);
    let whole = pack(&recorded);
    let mut store = PrefixStore::new();
    assert!(store.insert("prompt", whole.slice(0..6)).is_none());
    assert_eq!(store.rows(&"prompt").unwrap().rows(), 6);
    assert_eq!((store.len(), store.bytes()), (1, 6 * 2 * 2));
    // The engine may be asked to begin anywhere inside what is known.
    for start_len in [0, 4, 6] {
        let own = pack(&recorded.rows_from(start_len));
        assert_eq!(store.join(&"prompt", start_len, &own).unwrap(), whole, "from {start_len}");
    }
    refused(
        store.join(&"prompt", 7, &pack(&recorded.rows_from(7))),
        "routed_experts: rows begin at 7, but the known prefix has 6 rows",
    );
    refused(
        store.join(&"other", 7, &whole),
        "routed_experts: rows begin at 7, and the prefix store does not know what is before them",
    );
    assert!(store.remove(&"prompt").is_some() && store.is_empty());
}
