// Panel records into one record per row: 128 at a time, level by level, in an order that is a function of the column alone.
#pragma once

#include "row.cuh"

constexpr int LEVELS = 2;  // above the panels: super-panels, and groups of 128 of them; 2^31 columns need no third

MOERL_DEVICE MoerlPartial empty_record() { return {-INFINITE, 0.0f, 0.0f, 0.0f}; }

// Merges `count` <= 128 records; one warp calls, every lane gets the result. Record i belongs to lane i mod 32; a lane adds its
// records in ascending order; lanes fold by halves. A record whose maximum is the common one is multiplied by exactly 1, and one
// of -inf alone by 0. `record(i)` fetches record i.
template <class Source> MOERL_DEVICE MoerlPartial merge(Source record, int count, float scale) {
    const int lane = static_cast<int>(lane_index());
    MoerlPartial mine[SUPER_PANEL / WARP];
    float max = -INFINITE;
    MOERL_UNROLL
    for (int turn = 0; turn < SUPER_PANEL / WARP; turn++) {
        const int i = turn * WARP + lane;
        mine[turn] = empty_record();
        if (i < count) mine[turn] = record(i);
        max = max_nan(max, mine[turn].max_logit);
    }
    MoerlPartial all = {warp_max_nan(max) + 0.0f, 0.0f, 0.0f, 0.0f};
    MOERL_UNROLL
    for (int turn = 0; turn < SUPER_PANEL / WARP; turn++) {
        const float t = exponent_of(mine[turn].max_logit, all.max_logit, scale);
        const float f = exp2_approx(t);
        all.sum += f * mine[turn].sum;
        all.weighted += f * fmaf(mine[turn].sum, t, mine[turn].weighted);
        all.label += (f * f) * mine[turn].label;
    }
    all.sum = warp_sum(all.sum);
    all.weighted = warp_sum(all.weighted);
    all.label = warp_sum(all.label);
    return all;
}

// Where the merged super-panels of a row wait for those that follow; shared memory, one row at a time.
typedef MoerlPartial Upper[SUPER_PANEL];

// Takes super-panel `n` of a row; after the last one, the row's record. One warp calls, with one row's super-panels in order.
MOERL_DEVICE MoerlPartial climb(Upper* upper, int n, bool is_last, MoerlPartial record, float scale) {
    MOERL_UNROLL
    for (int level = 0; level < LEVELS; level++) {
        const int at = n % SUPER_PANEL;
        Upper& waiting = upper[level];
        if (lane_index() == 0) waiting[at] = record;
        sync_warp();
        if (at != SUPER_PANEL - 1 && !is_last) return record;
        record = merge([&](int i) { return waiting[i]; }, at + 1, scale);
        sync_warp();  // every lane has read before the level is filled anew
        n /= SUPER_PANEL;
    }
    return record;
}
