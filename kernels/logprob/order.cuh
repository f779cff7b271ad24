// Where logits stand in the order of a row: larger ones first, of equal ones (a zero equals a zero) the lower column. By comparison of the raw
// logits alone, which rounds nothing.
#pragma once

#include "panel.cuh"

// The next number of the type below x, which is neither NaN nor -inf.
template <class T> MOERL_DEVICE T next_below(T x) {
    if constexpr (sizeof(T) == 4) {
        const uint32_t bits = bits_of(x);
        return f32_of((bits & 0x7fffffffu) == 0 ? 0x80000001u : bits >> 31 != 0 ? bits + 1 : bits - 1);
    } else {
        const uint32_t bits = x.bits;
        return T{static_cast<uint16_t>((bits & 0x7fffu) == 0 ? 0x8001u : bits >> 15 != 0 ? bits + 1 : bits - 1)};
    }
}

// How many columns of the panel hold more than `threshold`, in every lane. Columns that are not there hold -inf, which is more than nothing.
template <class T> MOERL_DEVICE uint32_t count_above(const Panel<T>& held, int columns, T threshold) {
    uint32_t count = 0;
    if constexpr (sizeof(T) == 4) {
        MOERL_UNROLL
        for (int turn = 0; turn < TURNS<T>; turn++) {
            MOERL_UNROLL
            for (int w = 0; w < 4; w++) count += f32_of(held.pack[turn].w[w]) > threshold ? 1u : 0u;
        }
    } else {
        const uint32_t thresholds = static_cast<uint32_t>(threshold.bits) * 0x00010001u;
        uint32_t counts = 0;  // two numbers of the type, each at most 32
        MOERL_UNROLL
        for (int turn = 0; turn < TURNS<T>; turn++) {
            MOERL_UNROLL
            for (int w = 0; w < 4; w++) counts = count_above_x2<T>(counts, held.pack[turn].w[w], thresholds);
        }
        count = static_cast<uint32_t>(to_f32(T{static_cast<uint16_t>(counts & 0xffffu)}) + to_f32(T{static_cast<uint16_t>(counts >> 16)}));
    }
    const Cut c = cut<T>(held.head, columns);
    if (static_cast<int>(lane_index()) < c.rest && to_f32(held.edge) > to_f32(threshold)) count++;
    return reduce_add_u32(count);
}

// How many of the first `end` columns of the panel equal x, in every lane. Cold: once a row.
template <class T> MOERL_DEVICE uint32_t count_equal(const Panel<T>& held, int columns, float x, int end) {
    const int lane = static_cast<int>(lane_index());
    const Cut c = cut<T>(held.head, columns);
    uint32_t count = lane < c.rest && to_f32(held.edge) == x && c.head + c.full * PACK<T> + lane < end ? 1 : 0;
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) {
        const int slot = held.first_pack(lane) + turn * WARP, first = c.head + slot * PACK<T>;
        const bool there = slot < c.full;  // the columns behind the last whole pack are the edges
        float of_pack[PACK<T>];
        unpack<T>(held.pack[turn], of_pack);
        MOERL_UNROLL
        for (int i = 0; i < PACK<T>; i++) count += there && of_pack[i] == x && first + i >= 0 && first + i < end ? 1u : 0u;
    }
    return reduce_add_u32(count);
}

// How many columns of the panel precede logit x at column `at` of the panel, which may lie before it or behind it.
template <class T> MOERL_DEVICE uint32_t count_preceding(const Panel<T>& held, int columns, T x, int32_t at) {
    // Of a panel before x, those that equal it precede it too: they are more than the next number below.
    const bool before = at >= columns;
    if (before && to_f32(x) == -INFINITE) return static_cast<uint32_t>(columns);
    const uint32_t count = count_above(held, columns, before ? next_below(x) : x);
    return before || at < 0 ? count : count + count_equal(held, columns, to_f32(x), at);
}

// A finite logit (a zero being +0) at a column as one number, smaller for what stands before.
MOERL_DEVICE uint64_t standing(float x, uint64_t column) {
    const uint32_t ascending = bits_of(x) ^ (bits_of(x) >> 31 != 0 ? ~0u : 0x80000000u);
    return static_cast<uint64_t>(~ascending) << 32 | column;
}

// The lowest column of the panel that holds its largest logit, in every lane.
template <class T> MOERL_DEVICE uint32_t column_of_largest(const Panel<T>& held, int columns, float largest) {
    const int lane = static_cast<int>(lane_index());
    const Cut c = cut<T>(held.head, columns);
    uint32_t lowest = lane < c.rest && to_f32(held.edge) == largest ? static_cast<uint32_t>(c.head + c.full * PACK<T> + lane) : ~0u;
    int chosen = TURNS<T>;  // the lane's first pack that holds it
    MOERL_UNROLL
    for (int turn = TURNS<T> - 1; turn >= 0; turn--) {
        if (widest<T>(max_words<T>(NOTHING<T>, held.pack[turn])) == largest) chosen = turn;
    }
    if (chosen < TURNS<T>) {
        float x[PACK<T>];
        unpack<T>(pack_of(held, chosen), x);
        int place = 0;
        MOERL_UNROLL
        for (int i = PACK<T> - 1; i >= 0; i--) place = x[i] == largest ? i : place;
        lowest = static_cast<uint32_t>(c.head + (held.first_pack(lane) + chosen * WARP) * PACK<T> + place);
    }
    return reduce_min_u32(lowest);
}
