// The gradient where it stays among the slots: what a row brings, and the kernels for dense and compact results.
#pragma once

#include "forward.cuh"
#include "segments.cuh"
#include "slot_arrays.cuh"
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
template <class Slots> struct RowInputs {
    float selected[Slots::SLOTS];      // logits before the softcap, as forward saw them
    float upstream[Slots::SLOTS];      // d_topk_weights
    float expert_scale[Slots::SLOTS];  // 1 where there is none
    uint32_t ids[Slots::SLOTS];
    bool absent;                       // no weights and no gradient, whatever the inputs hold
};

// As forward saves it: +0 for -0, one NaN for all.
MOERL_DEVICE float as_saved(float logit) { return logit != logit ? f32_of(0x7fc00000u) : logit + 0.0f; }

// A row behind the end is absent. Logits that were not saved are gathered, unless the whole row is yet to be read. Called by whole warps.
template <class Slots> MOERL_DEVICE RowInputs<Slots> read_inputs(const MoerlGateBackward& p, uint64_t row, bool gather) {
    const uint32_t top_k = p.router.top_k;
    const int64_t first = static_cast<int64_t>(row * top_k);
    RowInputs<Slots> r;
    const bool counts = row < rows_with_gradient(p) && (p.token_mask == nullptr || load(p.token_mask + row) != 0);
    load_slots<Slots>(p.topk_ids, first, top_k, counts && p.topk_ids != nullptr, r.ids);
    load_slots<Slots>(p.selected_logits, first, top_k, counts && p.selected_logits != nullptr, r.selected);
    load_float_slots<Slots>(p.d_topk_weights, p.d_topk_weights_element, static_cast<int64_t>(row) * p.d_topk_weights_stride, top_k,
                            counts && p.d_topk_weights != nullptr, r.upstream);
    bool absent = !counts;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        r.expert_scale[s] = 1.0f;
        if (!counts || Slots::slot(s) >= top_k) continue;
        if (r.ids[s] >= p.router.experts) {  // the sentinel of a row that goes nowhere
            absent = true;
            r.ids[s] = 0;
            r.selected[s] = r.upstream[s] = 0.0f;
            continue;
        }
        if (p.selected_logits != nullptr) {
            absent = absent || bits_of(r.selected[s]) == WITHOUT_WEIGHTS_BITS;
        } else if (gather) {
            const int64_t at = static_cast<int64_t>(row) * p.router_logits_stride + r.ids[s];
            r.selected[s] = as_saved(load_float(p.router_logits, p.router_logits_element, at));
        }
        if (p.expert_scale != nullptr) r.expert_scale[s] = load(p.expert_scale + r.ids[s]);
    }
    r.absent = Slots::any_of(absent);
    return r;
}

// What the gradient of a row came to, before anything is written.
template <class Slots> struct RowGradient {
    SlotWeights<Slots> weights;
    Gradient<Slots> gradient;
    bool differentiable;
    float instead;  // of the gradient of a row that is not

    MOERL_DEVICE float of_slot(int s) const { return differentiable ? gradient.slot[s] : instead; }
};

// Called by whole warps.
template <class Slots> MOERL_DEVICE RowGradient<Slots> row_gradient(const MoerlGateBackward& p, const RowInputs<Slots>& row, float lse) {
    RowGradient<Slots> r;
    r.weights = weigh_slots<Slots>(p.router, row.selected, lse);
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
    r.gradient = differentiate<Slots>(p.router, r.weights, row.selected, scaled, lse);
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

    using Slots = Group<LANES>;

    MOERL_DEVICE void put(const RowInputs<Slots>& row, const RowGradient<Slots>& r, uint32_t top_k) const {
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (Slots::slot(s) >= top_k) continue;
            ids[Slots::slot(s)] = row.ids[s];
            values[Slots::slot(s)] = r.of_slot(s);
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

    const RowInputs<Slots> inputs = read_inputs<Slots>(p, row, true);
    slots.put(inputs, row_gradient<Slots>(p, inputs, 0.0f), top_k);
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
template <class Slots> MOERL_DEVICE void gate_backward_compact(const MoerlGateBackward& p) {
    const uint64_t row = (static_cast<uint64_t>(block_index()) * block_size() + thread_index()) / Slots::LANES;
    const RowInputs<Slots> inputs = read_inputs<Slots>(p, row, true);
    const RowGradient<Slots> r = row_gradient<Slots>(p, inputs, 0.0f);
    if (row >= p.rows) return;
    float d[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) d[s] = r.of_slot(s);
    store_slots<Slots>(p.d_selected_logits + row * p.router.top_k, p.router.top_k, d);
}

// The dense gradient where it stays among the slots and whole rows are stored: a few lanes make a row's slots, and the warp stores its rows, a few
// at a time, from a place in shared memory that is zero but for them.
template <class T, class Slots> MOERL_DEVICE void gate_backward_tiles(const MoerlGateBackward& p) {
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t top_k = p.router.top_k, experts = p.router.experts;
    const uint32_t row_packs = experts / PACK<T>, tile_packs = p.tile_rows * row_packs;
    T* const tile = reinterpret_cast<T*>(shared + static_cast<size_t>(warp_index()) * tile_packs * 16);
    const uint32_t row_of_warp = lane_index() / Slots::LANES;
    const uint64_t first_row = (static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index()) * (WARP / Slots::LANES);
    for (uint32_t pack = lane_index(); pack < tile_packs; pack += WARP) *reinterpret_cast<Words4*>(tile + pack * PACK<T>) = {{0, 0, 0, 0}};

    const RowInputs<Slots> inputs = read_inputs<Slots>(p, first_row + row_of_warp, true);
    const RowGradient<Slots> r = row_gradient<Slots>(p, inputs, 0.0f);
    for (uint32_t first = 0; first < WARP / Slots::LANES && first_row + first < p.rows; first += p.tile_rows) {
        // Without a gradient a row stays zero, and its ids name nobody.
        const bool inside = row_of_warp - first < p.tile_rows && !inputs.absent;
        T* const own = tile + (row_of_warp - first) * experts;
        sync_warp();  // the tile is zero, for whoever writes next
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (inside && Slots::slot(s) < top_k) own[inputs.ids[s]] = from_f32<T>(r.of_slot(s));
        }
        sync_warp();
        const uint64_t left = p.rows - first_row - first;
        const uint32_t packs = left < p.tile_rows ? static_cast<uint32_t>(left) * row_packs : tile_packs;
        T* const target = static_cast<T*>(p.d_router_logits) + static_cast<int64_t>(first_row + first) * p.d_router_logits_stride;
        if (p.d_router_logits_stride == experts) {
            for (uint32_t pack = lane_index(); pack < packs; pack += WARP) store16_stream(target + pack * PACK<T>, words_of(tile + pack * PACK<T>));
        } else {
            for (uint32_t pack = lane_index(); pack < packs; pack += WARP) {
                const uint32_t row = pack / row_packs, column = pack % row_packs * PACK<T>;
                store16_stream(target + static_cast<int64_t>(row) * p.d_router_logits_stride + column, words_of(tile + pack * PACK<T>));
            }
        }
        sync_warp();
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (inside && Slots::slot(s) < top_k) own[inputs.ids[s]] = T{};
        }
    }
}
