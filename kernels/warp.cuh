// Warp collectives: all 32 lanes call, all 32 lanes get the result.
#pragma once

#include "device.cuh"

// The halving tree 16, 8, 4, 2, 1: part of the contract on bits wherever a sum is.
MOERL_DEVICE float warp_sum(float x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

MOERL_DEVICE double warp_sum(double x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

MOERL_DEVICE float warp_max_nan(float x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = max_nan(x, shuffle_xor(x, lanes));
    return x;
}

MOERL_DEVICE uint64_t warp_min(uint64_t x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        const uint64_t other = shuffle_xor(x, lanes);
        x = other < x ? other : x;
    }
    return x;
}
