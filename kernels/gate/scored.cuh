// Selection by sigmoid + bias for many rows: first a value that is near enough, for every expert, then the exact one for the few that count.
//
// The near value takes two special-function operations and no correction. It is never further from the exact one than half of `near_error`, so
// what lies further than `near_error` below a threshold which k near values reach is not among the k best.
#pragma once

#include "candidates.cuh"
#include "select.cuh"

// sigmoid() of score.cuh without its corrections.
MOERL_DEVICE float near_sigmoid(float x) { return reciprocal_approx(1.0f + exp2_approx(x * -LOG2_E)); }

// Twice what a near value and the exact one can be apart. Either sigmoid is within 2^-21 of the truth: two operations to 2^-22 relative, and a
// product x·log2(e) rounded at 2^-24 |x|, which is below 2^-22 once multiplied by the slope σ(x)(1 − σ(x)). Adding the bias rounds
// either to 2^-24 relative; the rest is for the subtraction of this bound itself.
MOERL_DEVICE float near_error(float value) { return fmaf(fabsf(value), 0x1p-21f, 0x1p-19f); }

// The near values of this lane's columns. Rows that are not wanted get what they get.
template <class T>
MOERL_DEVICE void score_nearly(const float* selection_bias, const Segments<T, 4>& logits, const Segments<float, 4>& values) {
    const float* const bias = selection_bias + lane_index() % 4 * logits.run;
    for (uint32_t column = 0; column < logits.run; column += PACK<T>) {
        float x[PACK<T>];
        unpack<T>(words_of(logits.own() + column), x);
        MOERL_UNROLL
        for (int i = 0; i < PACK<T>; i += 4) {
            const Words4 of_bias = load16(bias + column + i);
            Words4 words;
            MOERL_UNROLL
            for (int j = 0; j < 4; j++) words.w[j] = bits_of(near_sigmoid(x[i + j]) + f32_of(of_bias.w[j]));
            *reinterpret_cast<Words4*>(values.own() + column + i) = words;
        }
    }
    for (uint32_t column = values.run; column < Segments<float, 4>::padded(values.run); column += 4) {
        constexpr uint32_t fill = MINUS_INFINITY<float>;
        *reinterpret_cast<Words4*>(values.own() + column) = {{fill, fill, fill, fill}};
    }
}

// Puts -inf in the place of the values of groups that are not admitted. Whole groups belong to a lane. Answers false where the near scores
// cannot tell which groups those are: they then lie too close, or one is NaN. `place` has room for the row's groups, twice.
MOERL_DEVICE bool limit_groups_nearly(const MoerlGateForward& p, const Segments<float, 4>& values, const WidePlace& place) {
    const uint32_t groups = p.router.experts / p.group_size, own = groups / 4, first = lane_index() % 4 * own;
    float* const lowest = place.values;                          // what a group's exact score is at least
    float* const highest = reinterpret_cast<float*>(place.ids);  // and at most
    bool certain = true;
    for (uint32_t g = 0; g < own; g++) {
        float best = -INFINITY, second = -INFINITY;
        for (uint32_t column = g * p.group_size; column < (g + 1) * p.group_size; column += 4) {
            const Words4 words = words_of(values.own() + column);
            MOERL_UNROLL
            for (int j = 0; j < 4; j++) {
                const float value = f32_of(words.w[j]);
                second = max_nan(second, min_nan(best, value));
                best = max_nan(best, value);
            }
        }
        const float score = p.group_top == 1 ? best : best + second;
        const float error = p.group_top == 1 ? near_error(best) : near_error(best) + near_error(second);
        certain = certain && score == score;
        lowest[first + g] = score - error;
        highest[first + g] = score + error;
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
        for (uint32_t column = g * p.group_size; column < (g + 1) * p.group_size; column += 4) {
            constexpr uint32_t out = MINUS_INFINITY<float>;
            *reinterpret_cast<Words4*>(values.own() + column) = {{out, out, out, out}};
        }
    }
    sync_warp();  // the place is somebody else's now
    return certain;
}
