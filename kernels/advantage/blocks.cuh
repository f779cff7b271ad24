// How a warp deals the tokens of a unit to its lanes, where the order within a segment matters.
//
// A segment is cut into blocks of MOERL_RETURN_BLOCK positions counted from its start; a lane walks through a block alone. Blocks of a segment with several
// form a chain, which one lane joins in order. So the bits of a result depend on positions in the segment, whatever shares the unit.
//
// Tokens pass through shared memory: copies are coalesced, and a lane then walks without bank conflicts, for every block begins one word further on.
#pragma once

#include "sums.cuh"

constexpr int BLOCK = MOERL_RETURN_BLOCK;
constexpr int PADDED = MOERL_TILE + MOERL_TILE / BLOCK;
// Segments of several blocks have at least 33 tokens, so that 1024 tokens hold 31 of them with no more than 62 blocks.
constexpr uint32_t CHAINS = 32;
constexpr uint32_t CHAIN_BLOCKS = 64;

MOERL_DEVICE int padded(int slot) { return slot + slot / BLOCK; }

// The blocks of a unit: those of chains first, then those that are a segment of their own.
struct BlockList {
    uint32_t blocks[CHAIN_BLOCKS + MOERL_UNIT_SEGMENTS];
    uint32_t chains[CHAINS];
};

struct Block {
    int slot, length;
    uint64_t segment;
};

// Where a chain's blocks are in the list.
struct Chain {
    uint32_t first, blocks;
    uint64_t segment;
};

struct BlockCounts {
    uint32_t chained, single, chains;
};

MOERL_DEVICE uint32_t pack_block(int slot, int length, uint32_t segment) {
    return static_cast<uint32_t>(slot) | static_cast<uint32_t>(length - 1) << 10 | segment << 16;
}
MOERL_DEVICE Block block_at(const BlockList& list, const MoerlUnit& unit, uint32_t index) {
    const uint32_t word = list.blocks[index];
    return {static_cast<int>(word & 1023u), static_cast<int>(word >> 10 & 31u) + 1, static_cast<uint64_t>(unit.segment) + (word >> 16)};
}
MOERL_DEVICE Chain chain_at(const BlockList& list, const MoerlUnit& unit, uint32_t index) {
    const uint32_t word = list.chains[index];
    return {word & 255u, word >> 8 & 255u, static_cast<uint64_t>(unit.segment) + (word >> 16)};
}

// The sum of all lower lanes' values; `total` becomes that of all.
MOERL_DEVICE uint32_t sum_before(uint32_t x, uint32_t& total) {
    uint32_t sum = x;
    MOERL_UNROLL
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const uint32_t lower = shuffle_up(sum, lanes);
        if (static_cast<int>(lane_index()) >= lanes) sum += lower;
    }
    total = shuffle(sum, WARP - 1);
    return sum - x;
}

// The blocks of a tile: one chain, the lanes in order.
MOERL_DEVICE BlockCounts list_tile(const MoerlUnit& unit, BlockList& list) {
    const int slot = static_cast<int>(lane_index()) * BLOCK, left = static_cast<int>(unit.tokens) - slot;
    const uint32_t blocks = (unit.tokens + BLOCK - 1) / BLOCK;
    if (left > 0) list.blocks[lane_index()] = pack_block(slot, left < BLOCK ? left : BLOCK, 0);
    if (lane_index() == 0) list.chains[0] = blocks << 8;
    sync_warp();
    return {blocks, 0, 1};
}

MOERL_DEVICE BlockCounts list_segments(const int64_t* offsets, const MoerlUnit& unit, BlockList& list) {
    const uint32_t lane = lane_index();
    BlockCounts counts = {0, 0, 0};
    for (uint32_t base = 0; base < unit.segments; base += WARP) {
        const uint32_t index = base + lane;
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + index;
        const bool is_segment = index < unit.segments;
        const uint64_t start = is_segment ? static_cast<uint64_t>(load(offsets + segment)) : unit.token;
        const int length = is_segment ? static_cast<int>(static_cast<uint64_t>(load(offsets + segment + 1)) - start) : 0;
        const int slot = static_cast<int>(start - unit.token);
        const uint32_t blocks = static_cast<uint32_t>((length + BLOCK - 1) / BLOCK);
        const uint32_t below = (1u << lane) - 1u;
        const uint32_t chains = ballot(blocks > 1, FULL_WARP), singles = ballot(blocks == 1, FULL_WARP);
        uint32_t chained;
        const uint32_t first = counts.chained + sum_before(blocks > 1 ? blocks : 0u, chained);
        if (blocks == 1) list.blocks[CHAIN_BLOCKS + counts.single + static_cast<uint32_t>(popcount(singles & below))] = pack_block(slot, length, index);
        if (blocks > 1) {
            list.chains[counts.chains + static_cast<uint32_t>(popcount(chains & below))] = first | blocks << 8 | index << 16;
            for (uint32_t block = 0; block < blocks; block++) {
                const int behind = static_cast<int>(block) * BLOCK;
                list.blocks[first + block] = pack_block(slot + behind, length - behind < BLOCK ? length - behind : BLOCK, index);
            }
        }
        counts.chained += chained;
        counts.single += static_cast<uint32_t>(popcount(singles));
        counts.chains += static_cast<uint32_t>(popcount(chains));
    }
    sync_warp();
    return counts;
}

MOERL_DEVICE BlockCounts list_blocks(const int64_t* offsets, const MoerlUnit& unit, BlockList& list) {
    return unit.segments == 0 ? list_tile(unit, list) : list_segments(offsets, unit, list);
}

// Where a unit's tile is among those of its segment.
struct Tile {
    uint64_t start, end;   // the segment's tokens
    uint64_t first;        // the unit of its first tile
    uint64_t tile, tiles;
};

MOERL_DEVICE Tile tile_of(const int64_t* offsets, const MoerlUnit& unit, uint64_t index) {
    const uint64_t start = static_cast<uint64_t>(load(offsets + unit.segment)), end = static_cast<uint64_t>(load(offsets + unit.segment + 1));
    const uint64_t tile = (unit.token - start) / MOERL_TILE;
    return {start, end, index - tile, tile, (end - start + MOERL_TILE - 1) / MOERL_TILE};
}

// Begins to copy a unit's floats into padded slots; nothing where there is no array.
MOERL_DEVICE void stage_floats(const float* array, const MoerlUnit& unit, float* to) {
    if (array == nullptr) return;
    for (int slot = static_cast<int>(lane_index()); slot < unit.tokens; slot += WARP) copy_async<4>(to + padded(slot), array + unit.token + static_cast<uint64_t>(slot));
}

MOERL_DEVICE void stage_mask(const uint8_t* mask, const MoerlUnit& unit, uint8_t* to) {
    for (int slot = static_cast<int>(lane_index()); slot < unit.tokens; slot += WARP) {
        to[slot] = mask == nullptr || load_stream(mask + unit.token + static_cast<uint64_t>(slot)) != 0 ? 1 : 0;
    }
}

MOERL_DEVICE void store_floats(float* array, const MoerlUnit& unit, const float* from) {
    if (array == nullptr) return;
    for (int slot = static_cast<int>(lane_index()); slot < unit.tokens; slot += WARP) store_stream(array + unit.token + static_cast<uint64_t>(slot), from[padded(slot)]);
}
