// The gradient where it stays among the slots: what a row brings, and the kernels for dense and compact results.
#pragma once

#include "forward.cuh"
#include "weights.cuh"

constexpr int BACKWARD_THREADS = 256;

MOERL_DEVICE float load_float(const void* from, uint32_t element, int64_t at) {
    if (element == MOERL_BF16) return to_f32(load(static_cast<const bf16*>(from) + at));
    if (element == MOERL_F16) return to_f32(load(static_cast<const f16*>(from) + at));
    return load(static_cast<const float*>(from) + at);
}

// Rows from here on are padding. Forward has reported a count that is none.
MOERL_DEVICE uint64_t rows_with_gradient(const MoerlGateBackward& p) {
    if (p.row_count == nullptr) return p.rows;
    const int64_t count = load(p.row_count), most = static_cast<int64_t>(p.rows);
    return static_cast<uint64_t>(count < 0 ? 0 : count > most ? most : count);
}

// What a row brings to its gradient, dealt to its lanes.
template <int LANES> struct RowInputs {
    float selected[Group<LANES>::SLOTS];      // logits before the softcap, as forward saw them
    float upstream[Group<LANES>::SLOTS];      // d_topk_weights
    float expert_scale[Group<LANES>::SLOTS];  // 1 where there is none
    uint32_t ids[Group<LANES>::SLOTS];
    bool absent;                              // no weights and no gradient, whatever the inputs hold
};

// As forward saves it: +0 for -0, one NaN for all.
MOERL_DEVICE float as_saved(float logit) { return logit != logit ? f32_of(0x7fc00000u) : logit + 0.0f; }

// A row behind the end is absent. Logits that were not saved are gathered, unless the whole row is yet to be read. Called by whole warps.
template <int LANES> MOERL_DEVICE RowInputs<LANES> read_inputs(const MoerlGateBackward& p, uint64_t row, bool gather) {
    using Slots = Group<LANES>;
    const uint32_t top_k = p.router.top_k;
    RowInputs<LANES> r;
    const bool counts = row < rows_with_gradient(p) && (p.token_mask == nullptr || load(p.token_mask + row) != 0);
    bool absent = !counts;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const uint32_t slot = Slots::slot(s);
        r.ids[s] = 0;
        r.selected[s] = r.upstream[s] = 0.0f;
        r.expert_scale[s] = 1.0f;
        if (!counts || slot >= top_k) continue;
        const int64_t at = static_cast<int64_t>(row * top_k + slot);
        const uint32_t id = p.topk_ids != nullptr ? static_cast<uint32_t>(load(p.topk_ids + at)) : 0u;
        if (id >= p.router.experts) {  // the sentinel of a row that goes nowhere
            absent = true;
            continue;
        }
        r.ids[s] = id;
        if (p.selected_logits != nullptr) {
            r.selected[s] = load(p.selected_logits + at);
            absent = absent || bits_of(r.selected[s]) == WITHOUT_WEIGHTS_BITS;
        } else if (gather) {
            r.selected[s] = as_saved(load_float(p.router_logits, p.router_logits_element, static_cast<int64_t>(row) * p.router_logits_stride + id));
        }
        if (p.d_topk_weights != nullptr) {
            const int64_t upstream_at = static_cast<int64_t>(row) * p.d_topk_weights_stride + slot;
            r.upstream[s] = load_float(p.d_topk_weights, p.d_topk_weights_element, upstream_at);
        }
        if (p.expert_scale != nullptr) r.expert_scale[s] = load(p.expert_scale + id);
    }
    r.absent = Slots::any_of(absent);
    return r;
}

// What the gradient of a row came to, before anything is written.
template <int LANES> struct RowGradient {
    Weights<LANES> weights;
    Gradient<LANES> gradient;
    bool differentiable;
    float instead;  // of the gradient of a row that is not
};

// Called by whole warps.
template <int LANES> MOERL_DEVICE RowGradient<LANES> row_gradient(const MoerlGateBackward& p, const RowInputs<LANES>& row, float lse) {
    using Slots = Group<LANES>;
    RowGradient<LANES> r;
    r.weights = weigh<LANES>(p.router, row.selected, lse);
    float scaled[Slots::SLOTS];
    bool finite = true;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        scaled[s] = row.upstream[s] * row.expert_scale[s];
        const float weight = r.weights.normalized[s] * p.router.scaling_factor * row.expert_scale[s];
        if (Slots::slot(s) < p.router.top_k) finite = finite && is_finite(weight);
    }
    const bool all_finite = !Slots::any_of(!finite);  // by every lane, whatever its row came to
    r.weights.usable = r.weights.usable && all_finite;
    r.gradient = differentiate<LANES>(p.router, r.weights, row.selected, scaled, lse);
    const bool has_weights = !row.absent && p.d_topk_weights != nullptr;
    r.differentiable = has_weights && r.weights.usable;
    // A row without a gradient has one value throughout, and that is 0, unless NaN is to be seen wherever there would have been one.
    r.instead = has_weights && !r.weights.usable && p.router.propagate != 0 ? f32_of(0x7fc00000u) : 0.0f;
    return r;
}

// The slots of the rows of a block in shared memory, where every lane of a row finds those that fall into its packs.
template <int LANES> struct SharedSlots {
    uint32_t* ids;
    float* values;

    MOERL_DEVICE void put(const RowInputs<LANES>& row, const RowGradient<LANES>& r, uint32_t top_k) const {
        using Slots = Group<LANES>;
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (Slots::slot(s) >= top_k) continue;
            ids[Slots::slot(s)] = row.ids[s];
            values[Slots::slot(s)] = r.differentiable ? r.gradient.slot[s] : r.instead;
        }
    }

    // Bits of the slots that fall into packs of PER_PACK of this lane.
    template <int PER_PACK> MOERL_DEVICE uint32_t of_lane(uint32_t top_k) const {
        uint32_t mine = 0;
        for (uint32_t slot = 0; slot < top_k; slot++) {
            if (ids[slot] / PER_PACK % LANES == Group<LANES>::lane()) mine |= 1u << slot;
        }
        return mine;
    }
};

template <class T> MOERL_DEVICE bool is_whole(const T* pack, uint32_t count) {
    return count == PACK<T> && reinterpret_cast<uintptr_t>(pack) % 16 == 0;
}

// Stores `count` gradients, each rounded once; `accumulate`: to what is there, added in f32.
template <class T> MOERL_DEVICE void store_pack(T* to, uint32_t count, bool accumulate, float (&d)[PACK<T>]) {
    if (is_whole(to, count)) {
        if (accumulate) {
            float old[PACK<T>];
            unpack<T>(load16_once(to), old);
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) d[j] += old[j];
        }
        store16_stream(to, pack<T>(d));
        return;
    }
    MOERL_UNROLL
    for (int j = 0; j < PACK<T>; j++) {
        if (static_cast<uint32_t>(j) >= count) continue;
        if (accumulate) d[j] += to_f32(load(to + j));
        store(to + j, from_f32<T>(d[j]));
    }
}

template <class T, int LANES> MOERL_DEVICE void gate_backward(const MoerlGateBackward& p) {
    using Slots = Group<LANES>;
    constexpr uint32_t ROWS = WARP / LANES;
    MOERL_SHARED(uint32_t, shared_ids, BACKWARD_THREADS / LANES * MAX_SLOTS);
    MOERL_SHARED(float, shared_values, BACKWARD_THREADS / LANES * MAX_SLOTS);
    const uint32_t top_k = p.router.top_k, experts = p.router.experts;
    const uint32_t row_of_block = warp_index() * ROWS + lane_index() / LANES;
    const SharedSlots<LANES> slots = {shared_ids + row_of_block * MAX_SLOTS, shared_values + row_of_block * MAX_SLOTS};
    const uint64_t row = static_cast<uint64_t>(block_index()) * (block_size() / LANES) + row_of_block;
    const bool accumulate = p.accumulate != 0;

    const RowInputs<LANES> inputs = read_inputs<LANES>(p, row, true);
    slots.put(inputs, row_gradient<LANES>(p, inputs, 0.0f), top_k);
    sync_warp();
    const uint32_t mine = slots.template of_lane<PACK<T>>(top_k);
    T* const target = static_cast<T*>(p.d_router_logits) + static_cast<int64_t>(row) * p.d_router_logits_stride;
    for (uint32_t first = Slots::lane() * PACK<T>; row < p.rows && first < experts; first += LANES * PACK<T>) {
        const uint32_t count = experts - first < PACK<T> ? experts - first : PACK<T>;
        float d[PACK<T>] = {};
        bool touched = false;
        for (uint32_t left = mine; left != 0; left &= left - 1) {
            const int slot = lowest_set(left);
            const uint32_t offset = slots.ids[slot] - first;
            touched = touched || offset < PACK<T>;
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) d[j] = offset == static_cast<uint32_t>(j) ? slots.values[slot] : d[j];
        }
        // Nothing is added where no slot is.
        if (accumulate && (!touched || inputs.absent)) continue;
        store_pack(target + first, count, accumulate, d);
    }
}

// The gradients of the slots alone, beside topk_ids.
template <int LANES> MOERL_DEVICE void gate_backward_compact(const MoerlGateBackward& p) {
    using Slots = Group<LANES>;
    const uint32_t row_of_block = warp_index() * (WARP / LANES) + lane_index() / LANES;
    const uint64_t row = static_cast<uint64_t>(block_index()) * (block_size() / LANES) + row_of_block;
    const RowInputs<LANES> inputs = read_inputs<LANES>(p, row, true);
    const RowGradient<LANES> r = row_gradient<LANES>(p, inputs, 0.0f);
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (row >= p.rows || Slots::slot(s) >= p.router.top_k) continue;
        store(p.d_selected_logits + row * p.router.top_k + Slots::slot(s), r.differentiable ? r.gradient.slot[s] : r.instead);
    }
}
