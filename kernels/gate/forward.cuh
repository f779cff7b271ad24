// The forward kernel's body: what a row is, the selection for those that select, then one road for all.
#pragma once

#include "columns.cuh"
#include "rows.cuh"
#include "select.cuh"
#include "weights.cuh"

MOERL_DEVICE void store_weight(void* to, uint32_t element, int64_t at, float weight) {
    if (element == MOERL_BF16) store(static_cast<bf16*>(to) + at, from_f32<bf16>(weight));
    else if (element == MOERL_F16) store(static_cast<f16*>(to) + at, from_f32<f16>(weight));
    else store(static_cast<float*>(to) + at, weight);
}

// -1 is all ones in every width: the sentinel.
MOERL_DEVICE void store_id(void* to, uint32_t element, int64_t at, int32_t id) {
    if (element == MOERL_U8) store(static_cast<uint8_t*>(to) + at, static_cast<uint8_t>(id));
    else if (element == MOERL_I32) store(static_cast<int32_t*>(to) + at, id);
    else store(static_cast<uint16_t*>(to) + at, static_cast<uint16_t>(id));
}

constexpr uint32_t WITHOUT_WEIGHTS_BITS = 0xffffffffu;  // in the saved logits: this row has no weights and no gradient

MOERL_DEVICE void write_slot(const MoerlGateForward& p, uint64_t row, uint32_t slot, int32_t id, float weight, float selected) {
    const int64_t at = static_cast<int64_t>(row * p.router.top_k + slot);
    store(p.topk_ids + at, id);
    store_weight(p.topk_weights, p.topk_weights_element, static_cast<int64_t>(row) * p.topk_weights_stride + slot, weight);
    if (p.selected_logits != nullptr) store(p.selected_logits + at, selected);
}
MOERL_DEVICE void record_slot(const MoerlGateForward& p, uint64_t row, uint32_t slot, int32_t id) {
    store_id(p.record_ids, p.record_ids_element, static_cast<int64_t>(row) * p.record_ids_stride + slot, id);
}

template <class Slots>
MOERL_DEVICE void write_without_weights(const MoerlGateForward& p, uint64_t row) {
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const uint32_t slot = Slots::slot(s);
        if (slot >= p.router.top_k) continue;
        const int32_t id = p.sentinel_filler != 0 ? -1 : static_cast<int32_t>(filler_id(p.router, row, slot));
        write_slot(p, row, slot, id, 0.0f, f32_of(WITHOUT_WEIGHTS_BITS));
        if (p.record_ids != nullptr) record_slot(p, row, slot, id);
    }
    if (p.lse != nullptr && Slots::lane() == 0) store(p.lse + row, f32_of(WITHOUT_WEIGHTS_BITS));
}

// The weights as they leave the kernel. A row with one that is not finite, before or after the scale of its expert, has none: answers
// whether all are. Called by whole warps.
template <class Slots>
MOERL_DEVICE bool scale_weights(const MoerlGateForward& p, const SlotWeights<Slots>& weights, const uint32_t (&ids)[Slots::SLOTS], bool weighs,
                                float (&scaled)[Slots::SLOTS]) {
    bool usable = weights.usable;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) scaled[s] = weights.normalized[s] * p.router.scaling_factor;
    if (p.expert_scale != nullptr) {
        bool finite = true;
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (!weighs || Slots::slot(s) >= p.router.top_k) continue;
            scaled[s] *= load(p.expert_scale + ids[s]);
            finite = finite && is_finite(scaled[s]);
        }
        usable = !Slots::any_of(!finite) && usable;
    }
    const float instead = p.router.propagate != 0 ? f32_of(0x7fc00000u) : 0.0f;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) scaled[s] = usable ? scaled[s] : instead;
    return usable;
}

template <class Slots>
MOERL_DEVICE void write_weighed(const MoerlGateForward& p, uint64_t row, const uint32_t (&ids)[Slots::SLOTS],
                                const float (&selected)[Slots::SLOTS], const float (&scaled)[Slots::SLOTS]) {
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const uint32_t slot = Slots::slot(s);
        if (slot >= p.router.top_k) continue;
        write_slot(p, row, slot, static_cast<int32_t>(ids[s]), scaled[s], selected[s]);
        if (p.record_ids != nullptr) record_slot(p, row, slot, static_cast<int32_t>(ids[s]));
    }
}

// All that a row leaves behind. `cutoff`: what the last of its slots was chosen by, NaN where they were not chosen. Answers whether its weights are
// numbers. Called by whole warps.
template <int LANES>
MOERL_DEVICE bool write_row(const MoerlGateForward& p, uint64_t row, Source source, const uint32_t (&ids)[Group<LANES>::SLOTS],
                            const float (&selected)[Group<LANES>::SLOTS], float lse, float cutoff, const Weights<LANES>& weights,
                            uint64_t& fault) {
    using Slots = Group<LANES>;
    const bool weighs = source == Source::Native || source == Source::Forced;
    float scaled[Slots::SLOTS];
    const bool usable = scale_weights<Slots>(p, weights, ids, weighs, scaled);
    if (weighs && !usable) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NONFINITE_WEIGHT));
    if (weighs) {
        write_weighed<Slots>(p, row, ids, selected, scaled);
        if (p.lse != nullptr && Slots::lane() == 0) store(p.lse + row, lse);
    }
    if (source == Source::WithoutWeights) write_without_weights<Slots>(p, row);
    if (p.cutoff != nullptr && source != Source::BehindTheEnd && Slots::lane() == 0) store(p.cutoff + row, cutoff);
    return usable;
}

// Rows from here on are padding.
MOERL_DEVICE uint64_t rows_that_count(const MoerlGateForward& p, uint64_t& fault) {
    if (p.row_count == nullptr) return p.rows;
    const int64_t count = load(p.row_count), most = static_cast<int64_t>(p.rows);
    if (count < 0 || count > most) keep_first(fault, fault_at(0, p.tag, MOERL_FAULT_ROW_COUNT));
    return static_cast<uint64_t>(count < 0 ? 0 : count > most ? most : count);
}

constexpr int IN_SHARED_MEMORY = 0;  // for VALUES: rows of any length, always staged

// STAGED: rows are kept in shared memory too, where they have to be gone over more than once.
template <class T, int LANES, int VALUES, bool STAGED> MOERL_DEVICE void gate_forward(const MoerlGateForward& p) {
    using Slots = Group<LANES>;
    using Row = Columns<T, LANES, VALUES>;
    constexpr uint32_t ROWS = WARP / LANES;  // of a warp
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t top_k = p.router.top_k, experts = p.router.experts;
    const uint32_t row_of_block = warp_index() * ROWS + lane_index() / LANES;
    const Staged<T, LANES> staged(shared + static_cast<size_t>(row_of_block) * p.stage_bytes, experts);
    const bool softmax_over_all = p.router.score == MOERL_GATE_SOFTMAX;
    const bool needs_sum = softmax_over_all || (p.scored != 0 && p.router.score == MOERL_GATE_SOFTMAX_SELECTED);

    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t row_count = rows_that_count(p, fault);
    const uint64_t row = static_cast<uint64_t>(block_index()) * (block_size() / LANES) + row_of_block;
    const T* const logits = static_cast<const T*>(p.router_logits) + static_cast<int64_t>(row) * p.router_logits_stride;
    uint32_t ids[Slots::SLOTS], chosen[Slots::SLOTS] = {};
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) ids[s] = 0;
    const Source source = classify<Slots>(p, row, row_count, ids, fault);
    const bool weighs = source == Source::Native || source == Source::Forced;
    float lse = 0.0f;
    uint32_t nans = 0;

    // The whole row, where it is needed: by the selection, or by the sum over all.
    const bool native = source == Source::Native, whole = native || (softmax_over_all && weighs);
    if (any(whole, FULL_WARP)) {
        uint32_t best[Slots::SLOTS] = {};
        if constexpr (STAGED) {
            staged.read(logits, experts, whole);
            sync_warp();
            const RowSum sum = sum_row<T, LANES>(staged, p.router, whole, needs_sum);
            nans = sum.nans;
            lse = softmax_over_all && nans != 0 ? f32_of(0x7fc00000u) : sum.lse;
            bool nan_bias = false;
            stage_keys<T, LANES>(p, staged, native, sum.lse, nan_bias);
            if (nan_bias) keep_first(fault, fault_at(0, p.tag, MOERL_FAULT_NAN_BIAS));
        }
        if constexpr (VALUES == IN_SHARED_MEMORY) {
            take_best_staged<T, LANES>(top_k, staged, native ? experts : 0, best, chosen);
        } else {
            uint32_t keys[VALUES];
            if constexpr (STAGED) {
                MOERL_UNROLL
                for (int v = 0; v < VALUES; v++) {
                    const uint32_t column = Row::column(v);
                    keys[v] = native && column < experts ? staged.keys[column] : TAKEN_KEY;
                }
            } else {
                float x[VALUES];
                Row::read(logits, experts, whole, x);
                nans = count_nans<LANES>(x);
                MOERL_UNROLL
                for (int v = 0; v < VALUES; v++) keys[v] = Row::column(v) < experts ? key_of(x[v]) : TAKEN_KEY;
            }
            if (any(native, FULL_WARP)) take_best<T, LANES>(top_k, keys, best, chosen);
        }
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) ids[s] = native ? best[s] : ids[s];
    }

    // From here on nobody asks how the ids came about. The logits of the slots, once each: +0 for -0, one NaN for all.
    float selected[Slots::SLOTS];
    uint32_t selected_nans = 0;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        selected[s] = 0.0f;
        if (!weighs || Slots::slot(s) >= top_k) continue;
        if (STAGED && whole) selected[s] = staged.logit(ids[s]);
        else if (whole) selected[s] = value_of(chosen[s]);
        else selected[s] = to_f32(load(logits + ids[s]));
        selected_nans += selected[s] != selected[s] ? 1u : 0u;
        selected[s] = selected[s] != selected[s] ? f32_of(0x7fc00000u) : selected[s] + 0.0f;
    }
    if (any(nans != 0, FULL_WARP)) {
        MOERL_UNROLL
        for (int lanes = 1; lanes < LANES; lanes *= 2) selected_nans += shuffle_xor(selected_nans, lanes);
        if (source == Source::Native && !softmax_over_all && nans > selected_nans) {
            keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NAN_LOGIT));
        }
    }

    const Weights<LANES> weights = weigh<LANES>(p.router, selected, lse);
    float cutoff = f32_of(0x7fc00000u);
    if (p.cutoff != nullptr) {
        float last = 0.0f;
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) last = Slots::slot(s) == top_k - 1 ? value_of(chosen[s]) : last;
        last = Slots::from(last, (top_k - 1) % LANES);
        if (native) cutoff = last;
    }
    write_row<LANES>(p, row, source, ids, selected, lse, cutoff, weights, fault);
    publish_fault(p.errors, fault);
}
