// The statistics of tokens that one lane has seen.
#pragma once

#include "climb.cuh"
#include "ratio.cuh"

struct TokenTally {
    uint32_t tokens, nonfinite, saturated_high, saturated_low, clipped_high, clipped_low, capped, rejected, seen, bf16_looking, positive, outside;
    float k1, k2, k3, ratio, ratio_squared, weight, weight_squared, gamma, pull, max_ratio, max_negative_ratio, max_weight, max_negative_weight;
};

MOERL_DEVICE TokenTally no_tokens() {
    const float least = f32_of(0xff800000u);
    return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, least, least, least, least};
}

// Counts an array's value: whether it is 0, could be a bf16, or is above 0.
MOERL_DEVICE void look_at(TokenTally& tally, float logprob) {
    tally.seen += logprob != 0.0f;
    tally.bf16_looking += logprob != 0.0f && (bits_of(logprob) & 0xffffu) == 0;
    tally.positive += logprob > 0.0f;
}

// Of a token that is sound by itself; `flags` are the clip flags of a token variant.
MOERL_DEVICE void count_ratio(TokenTally& tally, const MoerlObjective& p, float delta, float ratio, uint32_t flags) {
    tally.k1 -= delta;
    tally.k2 = fmaf(0.5f * delta, delta, tally.k2);
    tally.k3 += k3_of(delta);
    tally.ratio += ratio;
    tally.ratio_squared = fmaf(ratio, ratio, tally.ratio_squared);
    tally.max_ratio = fmaxf(tally.max_ratio, ratio);
    tally.max_negative_ratio = fmaxf(tally.max_negative_ratio, -ratio);
    if (p.is_sequence_level) return;
    tally.saturated_high += delta > p.saturation_high;
    tally.saturated_low += delta < p.saturation_low;
    tally.clipped_high += (flags & MOERL_ABOVE) != 0;
    tally.clipped_low += (flags & MOERL_BELOW) != 0;
    tally.capped += (flags & MOERL_CAPPED) != 0;
}

MOERL_DEVICE void count_weight(TokenTally& tally, float weight) {
    tally.weight += weight;
    tally.weight_squared = fmaf(weight, weight, tally.weight_squared);
    tally.max_weight = fmaxf(tally.max_weight, weight);
    tally.max_negative_weight = fmaxf(tally.max_negative_weight, -weight);
}

// The same of all the lane's sound tokens, where each weighs 1. They are at most a tile's, so that f32 counts them.
MOERL_DEVICE void count_ones(TokenTally& tally) {
    const uint32_t sound = tally.tokens - tally.nonfinite;
    if (sound == 0) return;
    tally.weight = tally.weight_squared = static_cast<float>(sound);
    tally.max_weight = 1.0f;
    tally.max_negative_weight = -1.0f;
}

// A token that counts.
template <bool WIDE> MOERL_DEVICE void count_token(TokenTally& tally, const MoerlObjective& p, const Pack<WIDE>& pack, int v, const Token<WIDE>& token, float ratio, uint32_t flags) {
    if (!token.counts) return;
    tally.tokens++;
    if (!token.is_sound_alone) {
        tally.nonfinite++;
        return;
    }
    count_ratio(tally, p, token.delta, ratio, flags);
    count_weight(tally, token.weight);
    look_at(tally, pack.logprobs.x[v]);
    look_at(tally, pack.old_logprobs.x[v]);
    if constexpr (WIDE) {
        tally.rejected += !token.is_kept;
        if (p.router_shift != nullptr) tally.gamma += expf(token.shift);
    }
}

// Of a sound token whose own ratio decides: what multiplies its advantage in the gradient, and where its ratio lies.
MOERL_DEVICE void count_pull(TokenTally& tally, float pull, uint32_t flags) {
    tally.pull += pull;
    tally.outside += (flags & (MOERL_ABOVE | MOERL_BELOW)) != 0;
}

MOERL_DEVICE float warp_max(float x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
    return x;
}

// The warp's tally.
template <bool WIDE> MOERL_DEVICE Tally spread(const TokenTally& tally) {
    Tally mine = empty_tally();
    place(mine, MOERL_SUM_TOKENS, reduce_add_u32(tally.tokens));
    place(mine, MOERL_SUM_NONFINITE, reduce_add_u32(tally.nonfinite));
    place(mine, MOERL_SUM_SATURATED_HIGH, reduce_add_u32(tally.saturated_high));
    place(mine, MOERL_SUM_SATURATED_LOW, reduce_add_u32(tally.saturated_low));
    place(mine, MOERL_SUM_CLIPPED_HIGH, reduce_add_u32(tally.clipped_high));
    place(mine, MOERL_SUM_CLIPPED_LOW, reduce_add_u32(tally.clipped_low));
    place(mine, MOERL_SUM_CAPPED, reduce_add_u32(tally.capped));
    place(mine, MOERL_SUM_LOGPROBS_SEEN, reduce_add_u32(tally.seen));
    place(mine, MOERL_SUM_BF16_LOOKING, reduce_add_u32(tally.bf16_looking));
    place(mine, MOERL_SUM_POSITIVE_LOGPROBS, reduce_add_u32(tally.positive));
    place(mine, MOERL_SUM_POLICY_K1, warp_sum(tally.k1));
    place(mine, MOERL_SUM_POLICY_K2, warp_sum(tally.k2));
    place(mine, MOERL_SUM_POLICY_K3, warp_sum(tally.k3));
    place(mine, MOERL_SUM_RATIO, warp_sum(tally.ratio));
    place(mine, MOERL_SUM_RATIO_SQUARED, warp_sum(tally.ratio_squared));
    place(mine, MOERL_SUM_WEIGHT, warp_sum(tally.weight));
    place(mine, MOERL_SUM_WEIGHT_SQUARED, warp_sum(tally.weight_squared));
    place(mine, MOERL_SUM_PULL, warp_sum(tally.pull));
    place(mine, MOERL_SUM_OUTSIDE, reduce_add_u32(tally.outside));
    place(mine, MOERL_MAX_RATIO, warp_max(tally.max_ratio));
    place(mine, MOERL_MAX_NEGATIVE_RATIO, warp_max(tally.max_negative_ratio));
    place(mine, MOERL_MAX_WEIGHT, warp_max(tally.max_weight));
    place(mine, MOERL_MAX_NEGATIVE_WEIGHT, warp_max(tally.max_negative_weight));
    if constexpr (WIDE) {
        place(mine, MOERL_SUM_REJECTED, reduce_add_u32(tally.rejected));
        place(mine, MOERL_SUM_GAMMA, warp_sum(tally.gamma));
    }
    return mine;
}

// The statistics of the terms beside the policy's.
struct TermTally {
    float kl_loss, mismatch_loss, entropy_loss, entropy, ref_k1, ref_k3, rollout_entropy;
};

MOERL_DEVICE TermTally no_terms() { return {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}; }

MOERL_DEVICE void place_terms(Tally& mine, const TermTally& tally) {
    place(mine, MOERL_SUM_KL_LOSS, warp_sum(tally.kl_loss));
    place(mine, MOERL_SUM_MISMATCH_LOSS, warp_sum(tally.mismatch_loss));
    place(mine, MOERL_SUM_ENTROPY_LOSS, warp_sum(tally.entropy_loss));
    place(mine, MOERL_SUM_ENTROPY, warp_sum(tally.entropy));
    place(mine, MOERL_SUM_REF_K1, warp_sum(tally.ref_k1));
    place(mine, MOERL_SUM_REF_K3, warp_sum(tally.ref_k3));
    place(mine, MOERL_SUM_ROLLOUT_ENTROPY, warp_sum(tally.rollout_entropy));
}

// The first fault of a pack's tokens.
template <bool WIDE> MOERL_DEVICE void keep_faults(uint64_t& fault, const MoerlObjective& p, const Pack<WIDE>& pack, const Token<WIDE>& token, int v, bool with_tokens) {
    const uint64_t row = pack.index + static_cast<uint64_t>(v);
    const bool is_token = (pack.bits >> v & 1u) != 0;
    if (is_token && byte_of(pack.mask, v) > 1) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_MASK));
    if (!with_tokens || !token.counts) return;
    float largest = fmaxf(pack.logprobs.x[v], pack.old_logprobs.x[v]);
    if constexpr (WIDE) largest = fmaxf(largest, fmaxf(pack.rollout.x[v], pack.ref.x[v]));
    if (!token.is_sound) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NONFINITE_INPUT));
    else if (largest > 1e-3f) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_POSITIVE_LOGPROB));
}
