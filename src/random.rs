//! Random numbers that are a function of what they are for.
//!
//! Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) turns a key and a counter into four words,
//! with no state in between. A decision keyed by the ids of what is decided is then the same however work is packed, ordered or
//! spread over ranks, on the host and in a kernel.

/// Multiplied with the counter's words 0 and 2 in every round.
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// Added to the key between rounds (Weyl sequences: the golden ratio and √3 − 1).
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// The block of four uniform words for this key and this counter.
pub fn philox4x32_10(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let wide = |multiplier: u32, word: u32| {
        let product = u64::from(multiplier) * u64::from(word);
        ((product >> 32) as u32, product as u32)
    };
    let ([mut k0, mut k1], mut c) = (key, counter);
    for _ in 0..ROUNDS {
        let (high0, low0) = wide(MULTIPLIERS[0], c[0]);
        let (high1, low1) = wide(MULTIPLIERS[1], c[2]);
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0];
        k0 = k0.wrapping_add(KEY_STEPS[0]);
        k1 = k1.wrapping_add(KEY_STEPS[1]);
    }
    c
}

/// The two words of a key that hold a 64-bit seed, low word first.
pub fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// A number in `0..bound`, each equally likely: Lemire's multiplication (ACM TOMACS 29, 2019) with the rejection that makes it exact.
/// The counter's last word counts the rejected blocks. Panics if `bound` is 0.
pub fn below(bound: u64, key: [u32; 2], counter: [u32; 3]) -> u64 {
    assert!(bound > 0, "there is no number below 0");
    // Of the 2^64 words, so many are one too many for equal shares.
    let surplus = bound.wrapping_neg() % bound;
    let [c0, c1, c2] = counter;
    let words = (0_u32..).flat_map(|block| {
        let [a, b, c, d] = philox4x32_10(key, [c0, c1, c2, block]);
        [(a, b), (c, d)].map(|(low, high)| u64::from(high) << 32 | u64::from(low))
    });
    words
        .map(|word| u128::from(word) * u128::from(bound))
        .find(|&product| product as u64 >= surplus)
        .map_or(0, |product| (product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that its authors publish (Random123, `kat_vectors`).
    #[test]
    fn philox_gives_its_authors_known_answers() {
        let ones = u32::MAX;
        let table = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 2], [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, answer) in table {
            assert_eq!(philox4x32_10(key, counter), answer, "key {key:x?}, counter {counter:x?}");
        }
    }

    #[test]
    fn numbers_below_a_bound_stay_below_it_and_are_rejected_where_shares_would_differ() {
        // Just above 2^63 almost every second word is rejected, so the blocks behind the first are used too.
        for bound in [1, 2, 3, 10, u64::from(u32::MAX), (1 << 63) + 1, u64::MAX] {
            let drawn: Vec<u64> = (0..64).map(|i| below(bound, key(7), [i, 0, 0])).collect();
            assert!(drawn.iter().all(|&x| x < bound), "{bound}: {drawn:?}");
            let again: Vec<u64> = (0..64).map(|i| below(bound, key(7), [i, 0, 0])).collect();
            assert_eq!(drawn, again);
        }
        let of_first_word = |i: u32| {
            let [low, high, ..] = philox4x32_10(key(7), [i, 0, 0, 0]);
            (u128::from(u64::from(high) << 32 | u64::from(low)) * ((1_u128 << 63) + 1)) >> 64
        };
        let rejected = (0..64).filter(|&i| u128::from(below((1 << 63) + 1, key(7), [i, 0, 0])) != of_first_word(i));
        assert!((16..48).contains(&rejected.count()));
    }

    #[test]
    fn numbers_below_a_bound_are_uniform() {
        const BOUND: usize = 10;
        const DRAWS: u32 = 100_000;
        let mut seen = [0_u32; BOUND];
        for i in 0..DRAWS {
            seen[below(BOUND as u64, key(1), [i, 0, 0]) as usize] += 1;
        }
        let expected = f64::from(DRAWS) / BOUND as f64;
        let chi2: f64 = seen.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        // 99.9th percentile of χ² with 9 degrees of freedom; the seed is fixed, so the test cannot flicker.
        assert!(chi2 < 27.88, "{chi2}: {seen:?}");
    }
}
