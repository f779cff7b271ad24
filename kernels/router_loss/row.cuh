// What a row of router logits comes to for the regularisers: the sums that its losses and their gradients are made of. The row is in shared memory; a
// row of reference logits is read once, on the way.
#pragma once

#include "../gate/columns.cuh"

// A row of any type as f32 in shared memory. Loads each logit of a wanted row once; there for the row's lanes after the next sync_warp.
template <int LANES, class T> MOERL_DEVICE void stage_row(const T* row, uint32_t experts, bool wanted, float* stage) {
    if (!wanted) return;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    const uint32_t whole = aligned ? experts / PACK<T> * PACK<T> : 0;
    for (uint32_t c = Group<LANES>::lane() * PACK<T>; c < whole; c += LANES * PACK<T>) {
        float x[PACK<T>];
        unpack<T>(load16_stream(row + c), x);
        MOERL_UNROLL
        for (int j = 0; j < PACK<T>; j++) stage[c + static_cast<uint32_t>(j)] = x[j];
    }
    for (uint32_t c = whole + Group<LANES>::lane(); c < experts; c += LANES) stage[c] = to_f32(load(row + c));
}

template <int LANES>
MOERL_DEVICE void stage_any_row(const void* rows, uint32_t element, int64_t at, uint32_t experts, bool wanted, float* stage) {
    if (element == MOERL_BF16) stage_row<LANES>(static_cast<const bf16*>(rows) + at, experts, wanted, stage);
    else if (element == MOERL_F16) stage_row<LANES>(static_cast<const f16*>(rows) + at, experts, wanted, stage);
    else stage_row<LANES>(static_cast<const float*>(rows) + at, experts, wanted, stage);
}

// The probabilities of a router are the softmax over all, or scores divided by their sum. (Raw logits have none; they are not balanced.)
MOERL_DEVICE bool is_softmax(uint32_t score) { return score != MOERL_GATE_SIGMOID && score != MOERL_GATE_SQRT_SOFTPLUS; }
// What they are made of.
MOERL_DEVICE float score_over_all(uint32_t score, float y, float lse) {
    return is_softmax(score) ? exp_of(y - lse) : score_of(score, y, lse);
}
// rho, the derivative of its logarithm.
MOERL_DEVICE float log_score_slope(uint32_t score, float y) {
    if (score == MOERL_GATE_SIGMOID) return sigmoid(-y);
    return score == MOERL_GATE_SQRT_SOFTPLUS ? sqrt_softplus_slope(y) : 1.0f;
}

struct RouterRow {
    float lse;         // NaN where a logit is
    float entropy;     // of the softmax over all
    float per_score;   // P_e is the score times this
    float inner;       // sum of q P
    float kl;          // of the reference from the row
    float ref_lse;
    bool usable;       // a finite log-sum-exp, and likewise of the reference
};

// Sums over `row`, which is staged, and over `reference`, which is staged too if `has_reference`. `q` is null or [experts]. `lse` is the row's, and has
// no meaning where `sums_lse`; without `regularizes` nothing else is summed. Called by whole warps; rows that are not wanted are not usable.
template <int LANES>
MOERL_DEVICE RouterRow router_row(const Staged<float, LANES>& row, const Staged<float, LANES>& reference, bool has_reference,
                                  const MoerlGateRouter& router, const float* q, bool wanted, bool sums_lse, float lse, bool regularizes) {
    RouterRow r = {lse, 0.0f, 1.0f, 0.0f, 0.0f, 0.0f, false};
    if (sums_lse) {
        const RowSum sum = sum_row<float, LANES>(row, router, wanted, true);
        r.lse = sum.nans != 0 ? f32_of(0x7fc00000u) : sum.lse;
    }
    r.usable = wanted && is_finite(r.lse);
    if (!regularizes) return r;
    if (has_reference) {
        const RowSum sum = sum_row<float, LANES>(reference, router, wanted, true);
        r.ref_lse = sum.lse;
        r.usable = r.usable && sum.nans == 0 && is_finite(sum.lse);
    }
    const uint32_t experts = r.usable ? router.experts : 0;
    const bool softmax = is_softmax(router.score);
    float scores = 0.0f;
    bool impossible = false;  // for the row, but not for the reference
    for (uint32_t c = Group<LANES>::lane(); c < experts; c += LANES) {
        const float y = capped(row.logit(c), router.softcap), log_p = y - r.lse, p = exp_of(log_p);
        const float score = softmax ? p : score_of(router.score, y, r.lse);
        r.entropy -= p > 0.0f ? p * log_p : 0.0f;
        scores += score;
        if (q != nullptr) r.inner += load(q + c) * score;
        if (has_reference) {
            const float ref_log_p = capped(reference.logit(c), router.softcap) - r.ref_lse, ref_p = exp_of(ref_log_p);
            r.kl += ref_p > 0.0f ? ref_p * (ref_log_p - log_p) : 0.0f;
            impossible = impossible || (ref_p > 0.0f && !is_finite(log_p));
        }
    }
    MOERL_UNROLL
    for (int lanes = 1; lanes < LANES; lanes *= 2) {
        r.entropy += shuffle_xor(r.entropy, lanes);
        scores += shuffle_xor(scores, lanes);
        r.inner += shuffle_xor(r.inner, lanes);
        r.kl += shuffle_xor(r.kl, lanes);
    }
    if (Group<LANES>::any_of(impossible)) r.usable = false;
    if (!softmax) r.per_score = 1.0f / (scores + 1e-20f);
    r.inner *= r.per_score;
    return r;
}
