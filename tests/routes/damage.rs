//! Bytes as a broken engine or a broken wire leaves them: no panic, no lie believed, nothing allocated that the bytes do not justify.

use moerl::Error;
use moerl::element::Element;
use moerl::routes::{Expected, LayerMap, Packing, Payload, RoutedExperts, Sglang};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::allocator::peak;
use crate::common;
use crate::fixture::*;

const INPUTS: usize = 10_000;
/// What errors and a map of layers may take, whatever the input.
const OVERHEAD: usize = 16 << 10;

const ROWS: usize = 24;
const LAYERS: usize = 3;
const TOP_K: usize = 4;
const EXPERTS: usize = 64;

/// The same bytes with one to four faults of the kinds that wires, disks and headers have.
fn mutate(bytes: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..5) {
        let len = bytes.len();
        if len == 0 {
            return bytes;
        }
        // Half of the faults at the start, where headers are.
        let at = if rng.random() { rng.random_range(0..len) } else { rng.random_range(0..len.min(128)) };
        let to = rng.random_range(at..=len.min(at + 16));
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = b"0123456789,()'{}:=<>|+/"[rng.random_range(0..23)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..to)),
            5 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes[at..to].fill(if rng.random() { 0xff } else { 0 }),
        }
    }
    bytes
}

/// Decodes `INPUTS` damaged copies. What is accepted must be what a tape promises; what is refused must be worded.
fn survives(seed: u64, whole: &[u8], decode: impl Fn(&[u8]) -> Result<RoutedExperts, Error>) {
    let mut rng = common::seeded(seed);
    let (mut accepted, mut worst, mut texts) = (0, 0.0_f64, std::collections::BTreeSet::new());
    assert!(decode(whole).is_ok());
    for _ in 0..INPUTS {
        let input = mutate(whole, &mut rng);
        let (result, held) = peak(|| decode(&input));
        let most = 2 * input.len() + OVERHEAD;
        worst = worst.max(held as f64 / most as f64);
        assert!(held <= most, "{held} bytes held for an input of {}: {result:?}", input.len());
        match result {
            Ok(routes) => {
                accepted += 1;
                for layer in 0..routes.layers().len() {
                    for (row, ids) in unpack(&routes, layer).iter().enumerate() {
                        let distinct = (0..ids.len()).all(|j| !ids[..j].contains(&ids[j]));
                        let inside = ids.iter().all(|&id| (0..EXPERTS as i64).contains(&id));
                        assert!(distinct && inside || ids.iter().all(|&id| id == -1), "row {row}: {ids:?}");
                    }
                }
            }
            Err(error) => {
                assert!(matches!(error, Error::Invalid(_)), "{error:?}");
                let text = error.to_string();
                assert!(!text.chars().any(char::is_control), "{text:?}");
                texts.insert(text);
            }
        }
    }
    println!("{accepted} of {INPUTS} accepted, {} refusals, at most {worst:.2} of the memory allowed", texts.len());
    // Neither is everything refused at the door, nor does everything pass.
    assert!(accepted > 0 && texts.len() > 100, "{accepted} accepted, {} different refusals", texts.len());
}

fn recorded() -> Recorded {
    Recorded::random(ROWS, LAYERS, TOP_K, EXPERTS, 20)
}

fn pack(payload: &Payload<'_>) -> Result<RoutedExperts, Error> {
    // The layers and rows that a lying header claims: only the bytes can refuse them.
    let [rows, layers, columns] = payload.shape();
    let map = LayerMap::identity(layers.min(1 << 10));
    let expected = Expected::new(0, &map, EXPERTS, columns.clamp(1, 32), rows);
    payload.pack(&expected, Packing::new(EXPERTS, Element::U16).unwrap())
}

#[test]
fn damaged_sglang_text() {
    let text = base64(&recorded().bytes(Element::I32));
    let shape = Sglang { tokens: ROWS + 1, start_len: 0, layers: LAYERS, columns: TOP_K };
    survives(21, &text, |text| pack(&Payload::sglang(text, shape)?));
}

#[test]
fn damaged_vllm_files() {
    let file = npy("<u2", &recorded().shape(), &recorded().bytes(Element::U16));
    survives(22, &file, |file| pack(&Payload::vllm(file)?));
}

#[test]
fn damaged_vllm_split_files() {
    let whole = recorded();
    let prompt = npy("<i2", &[ROWS, LAYERS, TOP_K], &whole.bytes(Element::I16));
    let map = LayerMap::identity(LAYERS);
    survives(23, &prompt, |file| {
        let prompt = Payload::vllm(file)?;
        let response = npy("<i2", &[ROWS, LAYERS, TOP_K], &whole.bytes(Element::I16));
        let expected = Expected::new(0, &map, EXPERTS, TOP_K, 2 * ROWS);
        Payload::vllm(&response)?.pack_split(&prompt, &expected, Packing::narrowest(EXPERTS)?)
    });
}

#[test]
fn damaged_prime_rl_text() {
    let text = base64(&recorded().bytes(Element::U8));
    survives(24, &text, |text| pack(&Payload::prime_rl(text, Element::U8, recorded().shape())?));
}

#[test]
fn damaged_megatron_indices() {
    for (seed, element) in [(25, Element::I32), (26, Element::I64)] {
        let bytes = recorded().bytes(element);
        survives(seed, &bytes, |bytes| pack(&Payload::megatron(bytes, element, recorded().shape())?));
    }
}

#[test]
fn damaged_tensors() {
    let bytes = recorded().bytes(Element::I16);
    survives(27, &bytes, |bytes| pack(&Payload::tensor(bytes, Element::I16, recorded().shape())?));
}

#[test]
fn headers_that_claim_the_world_allocate_nothing() {
    let most = 1_usize << 62;
    for shape in [[most, 1, 1], [1, most, 1], [1, 1, most], [most, most, most], [usize::MAX, 0, 0], [most, 0, 7]] {
        let file = npy("|u1", &shape, &[0; 16]);
        let (result, held) = peak(|| Payload::vllm(&file).map(drop));
        assert!(result.is_err() && held < 4096, "{shape:?}: {held} bytes held");
        let text = base64(&[0; 16]);
        let (result, held) = peak(|| Payload::prime_rl(&text, Element::U8, shape).map(drop));
        assert!(result.is_err() && held < 4096, "{shape:?}: {held} bytes held");
    }
}
