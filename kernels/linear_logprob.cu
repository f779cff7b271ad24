// What surrounds the products of linear_logprob: rows of hidden states gathered into a chunk, rows of their gradient put back, and an f32 gradient
// rounded once to the weight's type.
//
// Data. Everything is read once and written once, in 16-byte packs: a row begins at a multiple of 16 bytes and is a multiple of 16 bytes long.
#include "pack.cuh"

// Consecutive threads take consecutive packs of the rows, in turns of the whole grid.
MOERL_KERNEL(linear_copy, MoerlLinearCopy, 256) {
    const uint64_t all = p.rows * p.packs, step = static_cast<uint64_t>(grid_size()) * block_size();
    for (uint64_t i = static_cast<uint64_t>(block_index()) * block_size() + thread_index(); i < all; i += step) {
        const uint64_t row = i / p.packs, pack = i % p.packs;
        store16(static_cast<Words4*>(p.to) + row * p.to_stride + pack, load16_stream(static_cast<const Words4*>(p.from) + row * p.from_stride + pack));
    }
}

// A thread takes 8 numbers; the last one takes what is left one by one.
MOERL_KERNEL(linear_round, MoerlLinearRound, 256) {
    constexpr uint64_t EIGHT = PACK<bf16>;
    bf16* const to = static_cast<bf16*>(p.to);
    const uint64_t packs = (p.length + EIGHT - 1) / EIGHT, step = static_cast<uint64_t>(grid_size()) * block_size();
    for (uint64_t i = static_cast<uint64_t>(block_index()) * block_size() + thread_index(); i < packs; i += step) {
        const uint64_t first = i * EIGHT;
        if (first + EIGHT > p.length) {
            for (uint64_t j = first; j < p.length; j++) store(to + j, from_f32<bf16>(load(p.from + j)));
            return;
        }
        float low[PACK<float>], high[PACK<float>], x[EIGHT];
        unpack<float>(load16_stream(p.from + first), low);
        unpack<float>(load16_stream(p.from + first + PACK<float>), high);
        MOERL_UNROLL
        for (int j = 0; j < PACK<float>; j++) x[j] = low[j], x[PACK<float> + j] = high[j];
        store16_stream(to + first, pack<bf16>(x));
    }
}
