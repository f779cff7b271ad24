// The forward kernel for calls with forced ids that need no sum over a row: a few lanes a row, each with a run of slots.
//
// A replayed row is its ids and the logits that they name. A row that turns out to select for itself is staged and chosen by the whole warp,
// one after the other: they are few.
#pragma once

#include "alone.cuh"

// A warp's part of dynamic shared memory is a staged row, and behind it the ids that were chosen for that row.
template <class T, int LANES, int MOST> MOERL_DEVICE void gate_forward_replay(const MoerlGateForward& p) {
    using Slots = Runs<LANES, MOST>;
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t top_k = p.router.top_k;
    unsigned char* const place = shared + static_cast<size_t>(warp_index()) * p.stage_bytes;
    const Staged<T, WARP> staged(place, p.router.experts);
    uint32_t* const best = reinterpret_cast<uint32_t*>(place + p.stage_bytes) - MAX_SLOTS;
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t row_count = rows_that_count(p, fault);
    const uint64_t first_row = (static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index()) * (WARP / LANES);
    const uint64_t row = first_row + lane_index() / LANES;
    const T* const rows = static_cast<const T*>(p.router_logits);
    const T* const logits = rows + static_cast<int64_t>(row) * p.router_logits_stride;

    uint32_t ids[Slots::SLOTS] = {};
    float selected[Slots::SLOTS] = {};
    const Source source = classify<Slots>(p, row, row_count, ids, fault);
    const bool native = source == Source::Native, weighs = native || source == Source::Forced;
    if (source == Source::Forced) {
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (Slots::slot(s) < top_k) selected[s] = to_f32(load(logits + ids[s]));
        }
    }
    for (uint32_t left = ballot(native && Slots::lane() == 0, FULL_WARP); left != 0; left &= left - 1) {
        const uint32_t row_of_warp = static_cast<uint32_t>(lowest_set(left)) / LANES;
        const uint64_t chosen_row = first_row + row_of_warp;
        staged.read(rows + static_cast<int64_t>(chosen_row) * p.router_logits_stride, p.router.experts, true);
        sync_warp();
        choose_staged<T>(p, chosen_row, staged, best, fault);
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (lane_index() / LANES != row_of_warp || Slots::slot(s) >= top_k) continue;
            ids[s] = best[Slots::slot(s)];
            selected[s] = staged.logit(ids[s]);
        }
        sync_warp();  // the place is the next row's now
    }
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) selected[s] = selected[s] != selected[s] ? f32_of(0x7fc00000u) : selected[s] + 0.0f;

    // From here on nobody asks how the ids came about.
    const bool by_softmax = p.router.score == MOERL_GATE_SOFTMAX_SELECTED && p.router.softcap == 0.0f;
    const SlotWeights<Slots> weights = by_softmax ? weigh_by_softmax<Slots>(p.router, selected) : weigh_slots<Slots>(p.router, selected, 0.0f);
    float scaled[Slots::SLOTS];
    const bool usable = scale_weights<Slots>(p, weights, ids, weighs, scaled);
    if (weighs && !usable) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NONFINITE_WEIGHT));
    if (weighs) write_runs<Slots, Slots::WIDTH>(p, row, ids, selected, scaled);
    if (source == Source::WithoutWeights) write_without_weights<Slots>(p, row);
    publish_fault(p.errors, fault);
}
