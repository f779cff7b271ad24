//! The arithmetic of device.cuh, exhaustively where there are few enough inputs, against the `half` crate and f64.

use half::{bf16, f16};

use crate::harness::{Run, emulator, noise};

const TO_F32_F16: u32 = 0;
const TO_F32_BF16: u32 = 1;
const FROM_F32_F16: u32 = 2;
const FROM_F32_BF16: u32 = 3;
const EXP2: u32 = 4;

fn unary(variant: u32, input: &[u32]) -> Vec<u32> {
    let (count, output) = (input.len(), input.len());
    Run { blocks: 4, threads: 256, input, output, count, variant, ..Run::new("unary") }.ok(&emulator()).output
}

fn binary(variant: u32, pairs: &[[u32; 2]]) -> Vec<u32> {
    let input = pairs.as_flattened();
    let count = pairs.len();
    Run { blocks: 4, threads: 256, input, output: count, count, variant, ..Run::new("binary") }.ok(&emulator()).output
}

/// Equal bits; any NaN where a NaN is expected.
fn same_f32(found: u32, expected: f32) -> bool {
    if expected.is_nan() { f32::from_bits(found).is_nan() } else { found == expected.to_bits() }
}

#[test]
fn sixteen_bit_floats_widen_exactly() {
    let all: Vec<u32> = (0..=0xffff).collect();
    for (bits, found) in all.iter().zip(unary(TO_F32_F16, &all)) {
        assert!(same_f32(found, f16::from_bits(*bits as u16).to_f32()), "f16 {bits:04x} became {found:08x}");
    }
    for (bits, found) in all.iter().zip(unary(TO_F32_BF16, &all)) {
        assert!(same_f32(found, bf16::from_bits(*bits as u16).to_f32()), "bf16 {bits:04x} became {found:08x}");
    }
}

/// Every value of a 16-bit type, every midpoint between two of them, and the f32 next to each on both sides; then noise.
fn edges(widen: impl Fn(u16) -> f32) -> Vec<u32> {
    let mut edges = Vec::new();
    for bits in 0..=0x7fffu16 {
        let (x, next) = (widen(bits), widen((bits + 1).min(0x7fff)));
        let middle = ((f64::from(x) + f64::from(next)) / 2.0) as f32;
        for value in [x, middle] {
            for bits in [value.to_bits().wrapping_sub(1), value.to_bits(), value.to_bits().wrapping_add(1)] {
                edges.extend([bits, bits ^ 0x8000_0000]);
            }
        }
    }
    let mut noise = noise(1);
    edges.extend((0..200_000).map(|_| noise() as u32));
    edges
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    let inputs = edges(|bits| f16::from_bits(bits).to_f32());
    for (&x, found) in inputs.iter().zip(unary(FROM_F32_F16, &inputs)) {
        let expected = f16::from_f32(f32::from_bits(x));
        let same = if expected.is_nan() { found == 0x7fff } else { found == u32::from(expected.to_bits()) };
        assert!(same, "{x:08x} became f16 {found:04x}, not {expected}");
    }
    let inputs = edges(|bits| bf16::from_bits(bits).to_f32());
    for (&x, found) in inputs.iter().zip(unary(FROM_F32_BF16, &inputs)) {
        let expected = bf16::from_f32(f32::from_bits(x));
        let same = if expected.is_nan() { found == 0x7fff } else { found == u32::from(expected.to_bits()) };
        assert!(same, "{x:08x} became bf16 {found:04x}, not {expected}");
    }
}

#[test]
fn two_values_go_into_one_word_the_first_one_low() {
    let mut noise = noise(2);
    let pairs: Vec<[u32; 2]> = (0..50_000).map(|_| [noise() as u32, noise() as u32]).collect();
    let singles: Vec<u32> = pairs.as_flattened().to_vec();
    for (variant, single) in [(3, FROM_F32_F16), (4, FROM_F32_BF16)] {
        let narrow = unary(single, &singles);
        for (word, halves) in binary(variant, &pairs).iter().zip(narrow.chunks(2)) {
            assert_eq!(*word, halves[1] << 16 | halves[0]);
        }
    }
}

#[test]
fn exp2_is_close_and_flushes_what_is_subnormal() {
    let mut noise = noise(3);
    let mut xs: Vec<f32> = (0..100_000).map(|_| (noise() >> 40) as f32 / 65536.0 - 128.0).collect();
    xs.extend([
        -126.0,
        -126.0f32.next_down(),
        -126.5,
        -149.0,
        -150.0,
        -1000.0,
        0.0,
        -0.0,
        1e-40,
        1.0,
        127.0,
        127.99999,
        128.0,
        1e30,
    ]);
    let bits: Vec<u32> = xs.iter().map(|x| x.to_bits()).collect();
    for (&x, found) in xs.iter().zip(unary(EXP2, &bits)) {
        let (exact, found) = (f64::from(x).exp2(), f32::from_bits(found));
        if x < -126.0 {
            assert_eq!(found.to_bits(), 0, "2^{x} is below 2^-126");
        } else if x >= 128.0 {
            assert_eq!(found, f32::INFINITY);
        } else {
            // The bound that PTX gives for ex2.approx; exp2f of the C library is better.
            assert!((f64::from(found) - exact).abs() <= exact * 2f64.powi(-22), "2^{x}: {found} for {exact}");
        }
    }
    let special = [f32::NEG_INFINITY.to_bits(), f32::INFINITY.to_bits(), f32::NAN.to_bits(), 0xffc0_0001];
    assert_eq!(unary(EXP2, &special), [0, f32::INFINITY.to_bits(), 0x7fff_ffff, 0x7fff_ffff]);
}

/// IEEE 754-2019 maximum, with CUDA's NaN.
fn maximum(a: f32, b: f32) -> u32 {
    if a.is_nan() || b.is_nan() {
        return 0x7fff_ffff;
    }
    let larger = if a == b { if a.is_sign_positive() { a } else { b } } else { a.max(b) };
    larger.to_bits()
}

/// The minimum likewise: the larger of the negatives, negated.
fn minimum(a: f32, b: f32) -> u32 {
    if a.is_nan() || b.is_nan() { 0x7fff_ffff } else { maximum(-a, -b) ^ 0x8000_0000 }
}

#[test]
fn max_nan_and_min_nan_keep_nan_and_order_the_zeros() {
    let values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e-45,
        -1e-45,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
    ];
    let pairs: Vec<[f32; 2]> = values.iter().flat_map(|&a| values.map(|b| [a, b])).collect();
    let bits: Vec<[u32; 2]> = pairs.iter().map(|pair| pair.map(f32::to_bits)).collect();
    for ([a, b], (larger, smaller)) in pairs.iter().zip(binary(0, &bits).into_iter().zip(binary(5, &bits))) {
        assert_eq!(larger, maximum(*a, *b), "max({a}, {b})");
        assert_eq!(smaller, minimum(*a, *b), "min({a}, {b})");
    }
}

/// Pairs of words of two 16-bit floats each, with every special value against every other.
fn pairs_of_halves() -> Vec<[u32; 2]> {
    let mut values: Vec<u16> =
        vec![0, 0x8000, 1, 0x8001, 0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x3c00, 0xbc00];
    let mut noise = noise(4);
    values.extend((0..100).map(|_| noise() as u16));
    let against = |a: u16| {
        values
            .iter()
            .map(move |&b| [u32::from(a) << 16 | u32::from(b), u32::from(b) << 16 | u32::from(b ^ a)])
            .collect::<Vec<_>>()
    };
    values.iter().flat_map(|&a| against(a)).collect()
}

fn widen_f16(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}
fn widen_bf16(bits: u32) -> f32 {
    bf16::from_bits(bits as u16).to_f32()
}

#[test]
fn halves_above_others_are_counted() {
    let pairs = pairs_of_halves();
    let expected = |above: [bool; 2], widen: fn(f32) -> u16| {
        let count = |from: f32, above: bool| u32::from(widen(from + f32::from(u8::from(above))));
        count(250.0, above[0]) << 16 | count(7.0, above[1])
    };
    for ([a, b], found) in pairs.iter().zip(binary(10, &pairs)) {
        let above = [16, 0].map(|at| f16::from_bits((a >> at) as u16) > f16::from_bits((b >> at) as u16));
        assert_eq!(found, expected(above, |x| f16::from_f32(x).to_bits()), "f16 {a:08x} {b:08x}");
    }
    for ([a, b], found) in pairs.iter().zip(binary(11, &pairs)) {
        let above = [16, 0].map(|at| bf16::from_bits((a >> at) as u16) > bf16::from_bits((b >> at) as u16));
        assert_eq!(found, expected(above, |x| bf16::from_f32(x).to_bits()), "bf16 {a:08x} {b:08x}");
    }
}

#[test]
fn max_nan_and_min_nan_on_halves_of_a_word() {
    let narrow_f16 = |x: u32| {
        if f32::from_bits(x).is_nan() { 0x7fff } else { u32::from(f16::from_f32(f32::from_bits(x)).to_bits()) }
    };
    let narrow_bf16 = |x: u32| if f32::from_bits(x).is_nan() { 0x7fff } else { x >> 16 };
    let pairs = pairs_of_halves();
    for (of_f16, of_bf16, choose) in [(1, 2, maximum as fn(f32, f32) -> u32), (6, 7, minimum)] {
        for ([a, b], found) in pairs.iter().zip(binary(of_f16, &pairs)) {
            let chosen = |a, b| narrow_f16(choose(widen_f16(a), widen_f16(b)));
            assert_eq!(found, chosen(a >> 16, b >> 16) << 16 | chosen(*a, *b), "f16 {a:08x} {b:08x}");
        }
        for ([a, b], found) in pairs.iter().zip(binary(of_bf16, &pairs)) {
            let chosen = |a, b| narrow_bf16(choose(widen_bf16(a), widen_bf16(b)));
            assert_eq!(found, chosen(a >> 16, b >> 16) << 16 | chosen(*a, *b), "bf16 {a:08x} {b:08x}");
        }
    }
}

#[test]
fn halves_that_are_at_least_as_large_are_all_ones() {
    let pairs = pairs_of_halves();
    for (variant, widen) in [(8, widen_f16 as fn(u32) -> f32), (9, widen_bf16)] {
        for ([a, b], found) in pairs.iter().zip(binary(variant, &pairs)) {
            let half = |a, b| if widen(a) >= widen(b) { 0xffff } else { 0 };
            assert_eq!(found, half(a >> 16, b >> 16) << 16 | half(*a, *b), "{a:08x} {b:08x}");
        }
    }
}

#[test]
fn bits_are_counted_as_cuda_counts_them() {
    let mut noise = noise(5);
    let mut words: Vec<u32> = (0..1000).map(|_| noise() as u32 >> (noise() % 32)).collect();
    words.extend([0, 1, u32::MAX, 1 << 31]);
    assert_eq!(unary(5, &words), words.iter().map(|x| x.count_ones()).collect::<Vec<_>>());
    assert_eq!(unary(6, &words), words.iter().map(|x| x.leading_zeros()).collect::<Vec<_>>());
    let lowest = |x: &u32| if *x == 0 { u32::MAX } else { x.trailing_zeros() };
    assert_eq!(unary(7, &words), words.iter().map(lowest).collect::<Vec<_>>());
}

/// The vectors that its authors publish (Random123, `kat_vectors`).
#[test]
fn philox_gives_its_authors_known_answers() {
    let ones = u32::MAX;
    let input = [[0; 6], [ones; 6], [0xa409_3822, 0x299f_31d0, 0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]];
    let expected = [
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
    ];
    let run = Run { threads: 32, input: input.as_flattened(), output: 12, count: 3, ..Run::new("philox") };
    assert_eq!(run.ok(&emulator()).output, expected.as_flattened());
}
