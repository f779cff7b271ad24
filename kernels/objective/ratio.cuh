// The bounds of a ratio.
#pragma once

#include "../block.cuh"
#include "climb.cuh"
#include "unit.cuh"

MOERL_DEVICE float saturate(const MoerlObjective& p, float x) { return fminf(fmaxf(x, p.saturation_low), p.saturation_high); }

MOERL_DEVICE bool is_inside(const MoerlObjective& p, float x) { return p.saturation_low <= x && x <= p.saturation_high; }

MOERL_DEVICE uint32_t flag_if(bool holds, uint32_t flag) { return holds ? flag : 0u; }

// What passes a gradient, beside the flags for where the ratio lies.
MOERL_DEVICE uint32_t with_passes(uint32_t flags, bool inside) {
    const bool positive = inside && (flags & MOERL_ABOVE) == 0;
    const bool negative = inside && (flags & (MOERL_BELOW | MOERL_CAPPED)) == 0;
    return flags | flag_if(positive, MOERL_PASS_POSITIVE) | flag_if(negative, MOERL_PASS_NEGATIVE);
}

MOERL_DEVICE uint32_t flags_of(bool above, bool below, bool capped) {
    return flag_if(above, MOERL_ABOVE) | flag_if(below, MOERL_BELOW) | flag_if(capped, MOERL_CAPPED);
}

// Those of the first three flags that concern an advantage of this sign.
template <class T> MOERL_DEVICE uint32_t clipped_for(uint32_t flags, T advantage) {
    if (advantage > T(0)) return flags & MOERL_ABOVE;
    if (advantage < T(0)) return flags & (MOERL_BELOW | MOERL_CAPPED);
    return 0u;
}

MOERL_DEVICE bool passes(uint32_t flags, float advantage) {
    return (advantage > 0.0f && (flags & MOERL_PASS_POSITIVE) != 0) || (advantage < 0.0f && (flags & MOERL_PASS_NEGATIVE) != 0);
}

// The ratio that a value counts with.
MOERL_DEVICE float bounded_for_positive(const MoerlObjective& p, float ratio) { return fminf(ratio, p.upper); }
MOERL_DEVICE float bounded_for_negative(const MoerlObjective& p, float ratio) { return fminf(fmaxf(ratio, p.lower), p.cap); }

// The statistics of tokens that one lane has seen.
struct TokenTally {
    uint32_t tokens, nonfinite, saturated_high, saturated_low, clipped_high, clipped_low, capped;
    float k1, k2, k3, ratio, ratio_squared, weight, weight_squared, max_ratio, max_negative_ratio;
};

MOERL_DEVICE TokenTally no_tokens() {
    const float least = f32_of(0xff800000u);
    return {0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, least, least};
}

// A token that counts; `flags` are the clip flags of a token variant.
MOERL_DEVICE void count_token(TokenTally& tally, const MoerlObjective& p, const Token& token, float ratio, uint32_t flags) {
    if (!token.counts) return;
    tally.tokens++;
    if (!token.is_sound_alone) {
        tally.nonfinite++;
        return;
    }
    const float delta = token.delta;
    tally.k1 -= delta;
    tally.k2 = fmaf(0.5f * delta, delta, tally.k2);
    tally.k3 += expm1f(delta) - delta;
    tally.ratio += ratio;
    tally.ratio_squared = fmaf(ratio, ratio, tally.ratio_squared);
    tally.weight += token.weight;
    tally.weight_squared = fmaf(token.weight, token.weight, tally.weight_squared);
    tally.max_ratio = fmaxf(tally.max_ratio, ratio);
    tally.max_negative_ratio = fmaxf(tally.max_negative_ratio, -ratio);
    if (!p.is_sequence_level) {
        tally.saturated_high += delta > p.saturation_high;
        tally.saturated_low += delta < p.saturation_low;
        tally.clipped_high += (flags & MOERL_ABOVE) != 0;
        tally.clipped_low += (flags & MOERL_BELOW) != 0;
        tally.capped += (flags & MOERL_CAPPED) != 0;
    }
}

MOERL_DEVICE float warp_max(float x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
    return x;
}

// The warp's tally, a number a lane.
MOERL_DEVICE double spread(const TokenTally& tally) {
    double mine = 0.0;
    place(mine, MOERL_SUM_TOKENS, reduce_add_u32(tally.tokens));
    place(mine, MOERL_SUM_NONFINITE, reduce_add_u32(tally.nonfinite));
    place(mine, MOERL_SUM_SATURATED_HIGH, reduce_add_u32(tally.saturated_high));
    place(mine, MOERL_SUM_SATURATED_LOW, reduce_add_u32(tally.saturated_low));
    place(mine, MOERL_SUM_CLIPPED_HIGH, reduce_add_u32(tally.clipped_high));
    place(mine, MOERL_SUM_CLIPPED_LOW, reduce_add_u32(tally.clipped_low));
    place(mine, MOERL_SUM_CAPPED, reduce_add_u32(tally.capped));
    place(mine, MOERL_SUM_POLICY_K1, warp_sum(tally.k1));
    place(mine, MOERL_SUM_POLICY_K2, warp_sum(tally.k2));
    place(mine, MOERL_SUM_POLICY_K3, warp_sum(tally.k3));
    place(mine, MOERL_SUM_RATIO, warp_sum(tally.ratio));
    place(mine, MOERL_SUM_RATIO_SQUARED, warp_sum(tally.ratio_squared));
    place(mine, MOERL_SUM_WEIGHT, warp_sum(tally.weight));
    place(mine, MOERL_SUM_WEIGHT_SQUARED, warp_sum(tally.weight_squared));
    place(mine, MOERL_MAX_RATIO, warp_max(tally.max_ratio));
    place(mine, MOERL_MAX_NEGATIVE_RATIO, warp_max(tally.max_negative_ratio));
    place(mine, MOERL_MAX_SEQUENCE_RATIO, nothing(MOERL_MAX_SEQUENCE_RATIO));
    place(mine, MOERL_MAX_NEGATIVE_SEQUENCE_RATIO, nothing(MOERL_MAX_NEGATIVE_SEQUENCE_RATIO));
    return mine;
}

// The first fault of a pack's tokens.
MOERL_DEVICE void keep_faults(uint64_t& fault, const MoerlObjective& p, const Pack& pack, const Token& token, int v, bool with_tokens) {
    const uint64_t row = pack.index + static_cast<uint64_t>(v);
    const bool is_token = (pack.bits >> v & 1u) != 0;
    if (is_token && (pack.mask >> (8 * v) & 0xffu) > 1) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_MASK));
    if (!with_tokens || !token.counts) return;
    if (!token.is_sound) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NONFINITE_INPUT));
    else if (pack.logprobs.x[v] > 1e-3f || pack.old_logprobs.x[v] > 1e-3f) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_POSITIVE_LOGPROB));
}
