// The backward kernel's body.
#pragma once

#include "columns.cuh"
#include "forward.cuh"
#include "weights.cuh"

MOERL_DEVICE float load_float(const void* from, uint32_t element, int64_t at) {
    if (element == MOERL_BF16) return to_f32(load(static_cast<const bf16*>(from) + at));
    if (element == MOERL_F16) return to_f32(load(static_cast<const f16*>(from) + at));
    return load(static_cast<const float*>(from) + at);
}

template <class T> constexpr uint32_t ELEMENT = MOERL_F32;
template <> constexpr uint32_t ELEMENT<bf16> = MOERL_BF16;
template <> constexpr uint32_t ELEMENT<f16> = MOERL_F16;

// What the sum over all brings to the `count` experts from `first` on: −p_e ⟨g, n⟩. Loads each logit once.
template <class T>
MOERL_DEVICE void through_the_sum(const MoerlGateBackward& p, uint64_t row, uint32_t first, uint32_t count, float lse, float inner,
                                  float (&d)[PACK<T>]) {
    const int64_t at = static_cast<int64_t>(row) * p.router_logits_stride + first;
    const T* const from = static_cast<const T*>(p.router_logits) + at;
    if (p.router_logits_element == ELEMENT<T> && count == PACK<T> && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
        unpack<T>(load16_stream(from), d);
    } else {
        MOERL_UNROLL
        for (int j = 0; j < PACK<T>; j++) {
            d[j] = static_cast<uint32_t>(j) < count ? load_float(p.router_logits, p.router_logits_element, at + j) : 0.0f;
        }
    }
    MOERL_UNROLL
    for (int j = 0; j < PACK<T>; j++) {
        const float probability = exp_of(capped(d[j], p.router.softcap) - lse);
        d[j] = -probability * inner * softcap_slope(d[j], p.router.softcap);
    }
}

template <class T> MOERL_DEVICE void store_pack(T* to, uint32_t count, const float (&d)[PACK<T>]) {
    if (count == PACK<T> && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
        store16_stream(to, pack<T>(d));
        return;
    }
    MOERL_UNROLL
    for (int j = 0; j < PACK<T>; j++) {
        if (static_cast<uint32_t>(j) < count) store(to + j, from_f32<T>(d[j]));
    }
}

constexpr int BACKWARD_THREADS = 256;

template <class T, int LANES> MOERL_DEVICE void gate_backward(const MoerlGateBackward& p) {
    using Slots = Group<LANES>;
    constexpr uint32_t ROWS = WARP / LANES;
    MOERL_SHARED(uint32_t, shared_ids, BACKWARD_THREADS / LANES * MAX_SLOTS);
    MOERL_SHARED(float, shared_slots, BACKWARD_THREADS / LANES * MAX_SLOTS);
    const uint32_t top_k = p.router.top_k, experts = p.router.experts;
    const uint32_t row_of_block = warp_index() * ROWS + lane_index() / LANES;
    uint32_t* const row_ids = shared_ids + row_of_block * MAX_SLOTS;
    float* const row_slots = shared_slots + row_of_block * MAX_SLOTS;
    const uint64_t row = static_cast<uint64_t>(block_index()) * (block_size() / LANES) + row_of_block;
    const bool exists = row < p.rows;
    uint32_t ids[Slots::SLOTS];
    float selected[Slots::SLOTS], upstream[Slots::SLOTS];
    bool marked = false;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const uint32_t slot = Slots::slot(s);
        ids[s] = 0;
        selected[s] = upstream[s] = 0.0f;
        if (!exists || slot >= top_k) continue;
        const int64_t at = static_cast<int64_t>(row * top_k + slot);
        ids[s] = static_cast<uint32_t>(load(p.topk_ids + at));
        selected[s] = load(p.selected_logits + at);
        upstream[s] = load_float(p.d_topk_weights, p.d_topk_weights_element, static_cast<int64_t>(row) * p.d_topk_weights_stride + slot);
        marked = marked || bits_of(selected[s]) == WITHOUT_WEIGHTS_BITS;
    }
    const bool absent = Slots::any_of(marked);
    const float lse = p.lse != nullptr && exists ? load(p.lse + row) : 0.0f;
    const Weights<LANES> weights = weigh<LANES>(p.router, selected, lse);
    const Gradient<LANES> gradient = differentiate<LANES>(p.router, weights, selected, upstream, lse);
    // A row without a gradient has one value throughout, and that is 0, unless NaN is to be seen wherever there would have been one.
    const bool differentiable = !absent && weights.usable;
    const float instead = !absent && !weights.usable && p.router.propagate != 0 ? f32_of(0x7fc00000u) : 0.0f;
    const float elsewhere = !differentiable && p.router.score == MOERL_GATE_SOFTMAX ? instead : 0.0f;
    const bool reaches_all = differentiable && gradient.reaches_all;

    // The slots, where every lane of the row finds those that fall into its packs.
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (Slots::slot(s) >= top_k) continue;
        row_ids[Slots::slot(s)] = ids[s];
        row_slots[Slots::slot(s)] = differentiable ? gradient.slot[s] : instead;
    }
    sync_warp();
    uint32_t mine = 0;
    for (uint32_t slot = 0; slot < top_k; slot++) {
        if (row_ids[slot] / PACK<T> % LANES == Slots::lane()) mine |= 1u << slot;
    }
    T* const target = static_cast<T*>(p.d_router_logits) + static_cast<int64_t>(row) * p.d_router_logits_stride;
    for (uint32_t first = Slots::lane() * PACK<T>; exists && first < experts; first += LANES * PACK<T>) {
        const uint32_t count = experts - first < PACK<T> ? experts - first : PACK<T>;
        float d[PACK<T>];
        if (reaches_all) {
            through_the_sum<T>(p, row, first, count, lse, gradient.inner, d);
        } else {
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) d[j] = elsewhere;
        }
        for (uint32_t left = mine; left != 0; left &= left - 1) {
            const int slot = lowest_set(left);
            const uint32_t offset = row_ids[slot] - first;
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) d[j] = offset == static_cast<uint32_t>(j) ? row_slots[slot] : d[j];
        }
        store_pack(target + first, count, d);
    }
}
