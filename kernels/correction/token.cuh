// One token of a correction: its log-ratio, its own weight, what rejects it.
#pragma once

#include "../block.cuh"
#include "../objective/unit.cuh"
#include "../philox.cuh"

constexpr float DIVERGENCE_CLAMP = 20.0f;
constexpr float POSITIVE_LOGPROB = 1e-3f;
constexpr uint32_t TOKEN_STREAM = 1;  // of uniform numbers; segments have stream 0

// A quarter of a row's tokens as they lie in memory.
struct CorrectionPack {
    uint64_t index;
    uint32_t bits;     // slots that are tokens of the unit
    uint32_t mask;     // a byte a slot
    uint32_t unsound;  // slots with an old log-probability that is not finite
    Four old, rollout, mass, shift, advantages;
};

// expm1(x) - x. Where that cancels, the series: what it leaves out is below 2^-25 of it.
MOERL_DEVICE float divergence_k3(float x) {
    if (fabsf(x) >= 0.125f) return expm1f(x) - x;
    const float tail = fmaf(x, fmaf(x, fmaf(x, 1.0f / 720.0f, 1.0f / 120.0f), 1.0f / 24.0f), 1.0f / 6.0f);
    return x * x * fmaf(x, tail, 0.5f);
}

MOERL_DEVICE float saturated(const MoerlCorrection& p, float x) { return fminf(fmaxf(x, -p.saturation), p.saturation); }

MOERL_DEVICE float clamped(float x) { return fminf(fmaxf(x, -DIVERGENCE_CLAMP), DIVERGENCE_CLAMP); }

// o from its repetitions: their mean, or the logarithm of the mean of their exponentials, in one pass.
MOERL_DEVICE Four load_old(const MoerlCorrection& p, uint64_t index, uint32_t bits, uint32_t& unsound) {
    Four r = load_four(p.old_logprobs, index, bits, p.aligned != 0);
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) unsound |= static_cast<uint32_t>(!is_finite(r.x[v])) << v;
    if (p.repeats == 1) return r;
    Four sums = {{1.0f, 1.0f, 1.0f, 1.0f}};
    for (uint32_t repeat = 1; repeat < p.repeats; repeat++) {
        const Four next = load_four(p.old_logprobs, static_cast<uint64_t>(repeat) * p.token_count + index, bits, p.aligned != 0);
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) {
            unsound |= static_cast<uint32_t>(!is_finite(next.x[v])) << v;
            const float largest = p.mean_of_repeats ? 0.0f : fmaxf(r.x[v], next.x[v]);
            sums.x[v] = sums.x[v] * expf(r.x[v] - largest) + expf(next.x[v] - largest);
            r.x[v] = p.mean_of_repeats ? r.x[v] + next.x[v] : largest;
        }
    }
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) r.x[v] = p.mean_of_repeats ? r.x[v] / static_cast<float>(p.repeats) : r.x[v] + logf(sums.x[v] / static_cast<float>(p.repeats));
    return r;
}

MOERL_DEVICE CorrectionPack load_correction_pack(const MoerlCorrection& p, const Geometry& g, int row, bool with_tokens) {
    CorrectionPack r;
    const bool aligned = p.aligned != 0;
    r.index = g.base + static_cast<uint64_t>(row * ROW) + 4u * lane_index();
    r.bits = slots_of(g, row);
    r.mask = load_mask(p.loss_mask, r.index, r.bits, aligned);
    r.unsound = 0;
    r.old = r.rollout = r.mass = r.shift = r.advantages = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (!with_tokens) return r;
    r.old = load_old(p, r.index, r.bits, r.unsound);
    r.rollout = load_four(p.rollout_logprobs, r.index, r.bits, aligned);
    r.mass = load_four(p.kept_log_mass, r.index, r.bits, aligned);
    r.shift = load_four(p.router_shift, r.index, r.bits, aligned);
    r.advantages = load_four(p.advantage_per_token ? p.advantages : nullptr, r.index, r.bits, aligned);
    return r;
}

// One token, as the formulas see it. `rollout` includes the kept mass.
struct CorrectionToken {
    float delta, old, rollout, advantage;
    bool counts, is_sound;
};

MOERL_DEVICE CorrectionToken correction_token(const CorrectionPack& pack, int v) {
    CorrectionToken r;
    r.counts = (pack.bits >> v & 1u) != 0 && (pack.mask >> (8 * v) & 0xffu) != 0;
    r.old = pack.old.x[v];
    r.rollout = pack.rollout.x[v] + pack.mass.x[v];
    r.delta = (r.old - r.rollout) + pack.shift.x[v];
    r.advantage = pack.advantages.x[v];
    r.is_sound = r.counts && (pack.unsound >> v & 1u) == 0 && is_finite(r.delta) && is_finite(r.advantage);
    return r;
}

// What the four hold moves one place down, `last` to the end.
MOERL_DEVICE void rotate(float (&x)[4], float last) {
    x[0] = x[1];
    x[1] = x[2];
    x[2] = x[3];
    x[3] = last;
}

// The pack with its second token in the first place.
MOERL_DEVICE void next_token(CorrectionPack& pack) {
    rotate(pack.old.x, 0.0f);
    rotate(pack.rollout.x, 0.0f);
    rotate(pack.mass.x, 0.0f);
    rotate(pack.shift.x, 0.0f);
    rotate(pack.advantages.x, 0.0f);
    pack.index++;
    pack.bits >>= 1;
    pack.mask >>= 8;
    pack.unsound >>= 1;
}

MOERL_DEVICE void keep_token_faults(uint64_t& fault, const MoerlCorrection& p, const CorrectionPack& pack, const CorrectionToken& token, int v) {
    const uint64_t row = pack.index + static_cast<uint64_t>(v);
    const bool is_token = (pack.bits >> v & 1u) != 0;
    if (is_token && (pack.mask >> (8 * v) & 0xffu) > 1) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_MASK));
    if (!token.counts) return;
    if (!token.is_sound) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NONFINITE_INPUT));
    else if (fmaxf(token.old, pack.rollout.x[v]) > POSITIVE_LOGPROB) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_POSITIVE_LOGPROB));
}

// Bit k: the k-th rejection of tokens rejects a token with this log-ratio.
MOERL_DEVICE uint32_t rejections_of(const MoerlCorrection& p, float delta) {
    if (!p.has_token_options) return 0u;
    uint32_t bits = 0;
    const float x = clamped(delta);
    MOERL_ROLLED
    for (uint32_t i = 0; i < p.option_count; i++) {
        const MoerlCorrectionOption& option = p.options[i];
        if (option.statistic > MOERL_CORRECTION_OF_TOKEN_K3) continue;
        float statistic = x;
        if (option.statistic == MOERL_CORRECTION_OF_TOKEN) statistic = saturated(p, delta);
        if (option.statistic == MOERL_CORRECTION_OF_TOKEN_K2) statistic = 0.5f * x * x;
        if (option.statistic == MOERL_CORRECTION_OF_TOKEN_K3) statistic = divergence_k3(x);
        bits |= static_cast<uint32_t>(!(option.token_low <= statistic && statistic <= option.token_high)) << option.rejected;
    }
    return bits;
}

// exp x, bounded or banded, for a weight of tokens.
MOERL_DEVICE float token_weight(const MoerlCorrection& p, float delta) {
    if (p.level != MOERL_CORRECTION_TOKEN || p.weight == MOERL_CORRECTION_ONE) return 1.0f;
    if (p.weight == MOERL_CORRECTION_METROPOLIS_MASK || p.weight == MOERL_CORRECTION_METROPOLIS_MULTIPLICITY) return expf(fminf(delta, 0.0f));
    const float x = saturated(p, delta);
    const float weight = expf(x);
    if (p.weight == MOERL_CORRECTION_CLAMP) return fminf(fmaxf(weight, p.low), p.high);
    if (p.weight == MOERL_CORRECTION_BAND && !(p.token_log_low <= x && x <= p.token_log_high)) return 0.0f;
    return weight;
}

// True where the batch normalises weights of tokens that their segment may set to 0: only finish knows their sum.
MOERL_DEVICE bool weighs_tokens_by_segments(const MoerlCorrection& p) {
    return p.batch_normalise != 0 && p.level == MOERL_CORRECTION_TOKEN && (p.weight == MOERL_CORRECTION_SEQUENCE_MASK || p.nonfinite_policy == MOERL_DROP_SEGMENT);
}

// In (0, 1), for counter words (id, position, stream).
MOERL_DEVICE double uniform_of(const MoerlCorrection& p, uint64_t id, uint32_t position, uint32_t stream) {
    const Words4 counter = {{static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), position, stream}};
    return (static_cast<double>(philox4x32_10(p.seed, counter).w[0]) + 0.5) * 0x1p-32;
}
