// Selection by sigmoid + bias for many rows: first a value that is near enough, for every expert, then the exact one for the few that count.
//
// Near values are half precision, two a word, and take one special-function operation. So that half precision is fine enough, they are measured
// from a middle that is common to the row: near the threshold they are then small, and their steps are too. A near value is never further from
// the exact one than half of `near_error`, so what lies further than `near_error` below a threshold which k near values reach is not among the
// k best.
#pragma once

#include "candidates.cuh"
#include "select.cuh"

// What near values are measured from. The best of a row have sigmoids around 3/4 and biases not far from the first one's.
MOERL_DEVICE float middle_of(const float* selection_bias) {
    const float first = load(selection_bias);
    return is_finite(first) ? first + 0.75f : 0.0f;
}

// From the logit, and the bias plus 1/2 less the middle: σ(x) = 1/2 + tanh(x/2) / 2.
MOERL_DEVICE float near_value(float x, float bias) { return fmaf(0.5f, tanh_approx(0.5f * x), bias); }

// Twice what a near value and the exact one can be apart, both measured from `middle`. The tangent is within 2^-11 of the truth, and counts half.
// Half precision rounds to 2^-11 relative, or 2^-25 where it is denormal. What else is rounded (the exact sigmoid to 2^-21 and its sum with the
// bias, the bias less the middle, the near value's sum) is to 2^-24 of the value, of the middle or of 1. The rest is for the subtraction of this
// bound itself.
MOERL_DEVICE float near_error(float value, float middle) {
    return fmaf(fabsf(value), 0x1.02p-10f, fmaf(fabsf(middle), 0x1p-21f, 0x1.02p-11f));
}

// A row's near values lie in blocks of 32 columns: word i of a block has column i in its low half and column i + 16 in its high half.
constexpr uint32_t HALF_BLOCK = BLOCK / 2;

// The place of a lane's column among its near values.
MOERL_DEVICE uint32_t near_place(uint32_t column) {
    return column / BLOCK * BLOCK + column % HALF_BLOCK * 2 + column % BLOCK / HALF_BLOCK;
}

// Eight near values from eight columns.
template <class T> MOERL_DEVICE void near_values(const T* logits, const float* bias, float (&values)[8]) {
    MOERL_UNROLL
    for (int i = 0; i < 8; i += PACK<T>) {
        float x[PACK<T>];
        unpack<T>(words_of(logits + i), x);
        MOERL_UNROLL
        for (int j = 0; j < PACK<T>; j += 4) {
            const Words4 of_bias = words_of(bias + i + j);
            MOERL_UNROLL
            for (int l = 0; l < 4; l++) values[i + j + l] = near_value(x[j + l], f32_of(of_bias.w[l]));
        }
    }
}

// The near values of this lane's columns. Rows that are not wanted get what they get. `bias`: of all experts as near_value takes it, in shared
// memory.
template <class T, int LANES>
MOERL_DEVICE void score_nearly(const float* bias, const Segments<T, LANES>& logits, const Segments<f16, LANES>& near) {
    const float* const own_bias = bias + lane_index() % LANES * logits.run;
    const uint32_t whole = logits.run / BLOCK * BLOCK;
    for (uint32_t block = 0; block < whole; block += BLOCK) {
        MOERL_UNROLL
        for (uint32_t i = 0; i < HALF_BLOCK; i += 8) {
            const uint32_t column = block + i;
            float low[8], high[8];
            near_values<T>(logits.own() + column, own_bias + column, low);
            near_values<T>(logits.own() + column + HALF_BLOCK, own_bias + column + HALF_BLOCK, high);
            MOERL_UNROLL
            for (int j = 0; j < 8; j += 4) {
                Words4 words;
                MOERL_UNROLL
                for (int l = 0; l < 4; l++) words.w[l] = from_f32_x2<f16>(low[j + l], high[j + l]);
                *reinterpret_cast<Words4*>(near.own() + block + (i + j) * 2) = words;
            }
        }
    }
    for (uint32_t column = whole; column < near.blocks() * BLOCK; column++) {
        const bool there = column < logits.run;
        const float value = there ? near_value(to_f32(logits.own()[column]), own_bias[column]) : -INFINITY;
        near.own()[near_place(column)] = from_f32<f16>(value);
    }
}

// What the exact value is at least and at most. An infinite near value may stand for a number that half precision does not hold: nothing then
// bounds it on the far side, and sums of bounds are never NaN.
struct Bounds {
    float lowest;
    float highest;
};
MOERL_DEVICE Bounds bounds_of(float near, float middle) {
    constexpr float MOST = 65504.0f;  // of half precision
    const float from = near > MOST ? MOST : near, to = near < -MOST ? -MOST : near;
    return {near < -MOST ? -INFINITY : from - near_error(from, middle), near > MOST ? INFINITY : to + near_error(to, middle)};
}

// Group `g` of this lane's groups as a whole.
struct NearGroup {
    float best;
    float second;
};
template <int LANES> MOERL_DEVICE NearGroup best_of_group(const Segments<f16, LANES>& near, uint32_t g, uint32_t size) {
    if (size % BLOCK == 0) {
        uint32_t best = MINUS_INFINITY<f16>, second = MINUS_INFINITY<f16>;
        for (uint32_t place = g * size; place < (g + 1) * size; place += 8) {
            const Words4 words = words_of(near.own() + place);
            MOERL_UNROLL
            for (int j = 0; j < 4; j++) {
                second = max_nan_x2<f16>(second, min_nan_x2<f16>(best, words.w[j]));
                best = max_nan_x2<f16>(best, words.w[j]);
            }
        }
        const float low = to_f32(f16{static_cast<uint16_t>(best & 0xffffu)}), high = to_f32(f16{static_cast<uint16_t>(best >> 16)});
        second = max_nan_x2<f16>(second, Halves<f16>::swapped(second));
        const float behind = to_f32(f16{static_cast<uint16_t>(second & 0xffffu)});
        return {max_nan(low, high), max_nan(min_nan(low, high), behind)};
    }
    NearGroup group = {-INFINITY, -INFINITY};
    for (uint32_t column = g * size; column < (g + 1) * size; column++) {
        const float value = to_f32(near.own()[near_place(column)]);
        group.second = max_nan(group.second, min_nan(group.best, value));
        group.best = max_nan(group.best, value);
    }
    return group;
}

// Puts -inf in the place of the values of groups that are not admitted. Whole groups belong to a lane. Answers false where the near scores
// cannot tell which groups those are: they then lie too close, or one is NaN. `place` has room for the row's groups, twice.
template <int LANES>
MOERL_DEVICE bool limit_groups_nearly(const MoerlGateForward& p, float middle, const Segments<f16, LANES>& near, const WidePlace& place) {
    const uint32_t size = p.group_size, groups = p.router.experts / size, own = groups / LANES, first = lane_index() % LANES * own;
    float* const lowest = place.values;                          // what a group's exact score is at least
    float* const highest = reinterpret_cast<float*>(place.ids);  // and at most
    bool certain = true;
    for (uint32_t g = 0; g < own; g++) {
        const NearGroup group = best_of_group(near, g, size);
        const Bounds best = bounds_of(group.best, middle), second = bounds_of(p.group_top == 1 ? 0.0f : group.second, middle);
        certain = certain && best.highest == best.highest && second.highest == second.highest;
        lowest[first + g] = p.group_top == 1 ? best.lowest : best.lowest + second.lowest;
        highest[first + g] = p.group_top == 1 ? best.highest : best.highest + second.highest;
    }
    sync_warp();
    for (uint32_t g = 0; g < own; g++) {
        uint32_t better = 0, not_worse = 0;
        for (uint32_t other = 0; other < groups; other++) {
            if (other == first + g) continue;
            better += lowest[other] > highest[first + g] ? 1u : 0u;
            not_worse += highest[other] >= lowest[first + g] ? 1u : 0u;
        }
        if (not_worse < p.admitted_groups) continue;
        certain = certain && better >= p.admitted_groups;
        constexpr uint32_t out = MINUS_INFINITY<f16>;
        if (size % BLOCK == 0) {
            for (uint32_t column = g * size; column < (g + 1) * size; column += 8) {
                *reinterpret_cast<Words4*>(near.own() + column) = {{out, out, out, out}};
            }
        } else {
            for (uint32_t column = g * size; column < (g + 1) * size; column++) {
                near.own()[near_place(column)] = f16{static_cast<uint16_t>(out & 0xffffu)};
            }
        }
    }
    sync_warp();  // the place is somebody else's now
    return certain;
}
