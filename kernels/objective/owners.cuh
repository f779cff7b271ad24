// Which of a unit's segments a slot belongs to.
#pragma once

#include "../warp.cuh"

// The largest of this lane's and all lower lanes' values.
MOERL_DEVICE uint32_t max_so_far(uint32_t x) {
    MOERL_UNROLL
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const uint32_t lower = shuffle_up(x, lanes);
        if (static_cast<int>(lane_index()) >= lanes && lower > x) x = lower;
    }
    return x;
}

// The unit's segments as the owners of four slots, from the marks where they begin; `carry` is the last owner of the row before.
template <class Stage> MOERL_DEVICE void owners_of(const Stage& stage, int slot, uint32_t bits, uint32_t& carry, uint32_t (&owners)[4]) {
    uint32_t highest = 0;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        const uint32_t mark = (bits >> v & 1u) != 0 ? stage.owners[slot + v] : 0u;
        highest = mark > highest ? mark : highest;
        owners[v] = highest;
    }
    const uint32_t inclusive = max_so_far(highest);
    uint32_t before = shuffle_up(inclusive, 1);
    before = lane_index() == 0 || before < carry ? carry : before;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) owners[v] = owners[v] > before ? owners[v] : before;
    const uint32_t last = shuffle(inclusive, WARP - 1);
    carry = last > carry ? last : carry;
}
