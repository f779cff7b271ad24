//! Numbers that are a function of a seed, a stream, a row and a layer alone.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

/// Independent streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Lengths of generated segments.
    Lengths = 1,
    /// Rewards and turns of generated segments.
    Segment,
    /// Generated tokens.
    Token,
    /// Generated router logits.
    Router,
    /// Upstream gradients of the gate.
    Upstream,
    /// Expert sets that are changed on request.
    ChangedRoutes,
}

/// A generator: splitmix64 over the four numbers keeps neighbours apart.
pub fn numbers(seed: u64, stream: Stream, row: usize, layer: usize) -> Xoshiro256PlusPlus {
    let mut state = seed;
    for word in [stream as u64, row as u64, layer as u64] {
        state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    Xoshiro256PlusPlus::seed_from_u64(state)
}
