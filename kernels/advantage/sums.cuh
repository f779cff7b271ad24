// Sums by a whole block, and the block that arrives last.
#pragma once

#include "../block.cuh"
#include "../objective/climb.cuh"
#include "../objective/unit.cuh"

constexpr uint32_t SUM_THREADS = 256;
constexpr uint32_t SUM_WARPS = SUM_THREADS / WARP;

// How values of two threads become one.
struct Add {
    MOERL_DEVICE double operator()(double a, double b) const { return a + b; }
};
struct Smaller {
    MOERL_DEVICE double operator()(double a, double b) const { return b < a ? b : a; }
};
struct Larger {
    MOERL_DEVICE double operator()(double a, double b) const { return b > a ? b : a; }
};

// Over a warp by halves 16, 8, 4, 2, 1; every lane gets the result.
template <class Join> MOERL_DEVICE double warp_join(double x, Join join) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = join(x, shuffle_xor(x, lanes));
    return x;
}

// Over a block of SUM_THREADS, warps in ascending order; every thread gets the result. All threads call.
template <class Join> MOERL_DEVICE double block_join(double x, Join join) {
    MOERL_SHARED(double, of_warps, SUM_WARPS);
    x = warp_join(x, join);
    sync_block();  // the numbers of the call before have been read
    if (lane_index() == 0) of_warps[warp_index()] = x;
    sync_block();
    x = of_warps[0];
    MOERL_UNROLL
    for (uint32_t warp = 1; warp < SUM_WARPS; warp++) x = join(x, of_warps[warp]);
    return x;
}

// True in every thread of the block that arrives as the last of `members` at this ticket. What the others' first threads stored before is then
// visible.
MOERL_DEVICE bool block_is_last(uint32_t* ticket, uint32_t members) {
    bool last = false;
    if (warp_index() == 0) last = is_last(ticket, members);
    return sync_block_or(last);
}
