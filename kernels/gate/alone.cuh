// What kernels with few lanes a row share: a row that the whole warp chooses for, and stores of runs of slots.
#pragma once

#include "forward.cuh"

// The ids of a staged row that is native, by the whole warp, to `ids`, for kernels whose selection asks for no sum over a row.
template <class T>
MOERL_DEVICE void choose_staged(const MoerlGateForward& p, uint64_t row, const Staged<T, WARP>& staged, uint32_t* ids, uint64_t& fault) {
    using Slots = Group<WARP>;
    const RowSum sum = sum_row<T, WARP>(staged, p.router, true, false);
    bool nan_bias = false;
    stage_keys<T, WARP>(p, staged, true, 0.0f, nan_bias);
    if (nan_bias) keep_first(fault, fault_at(0, p.tag, MOERL_FAULT_NAN_BIAS));
    uint32_t best[Slots::SLOTS] = {}, chosen[Slots::SLOTS];
    take_best_staged<T, WARP>(p.router.top_k, staged, p.router.experts, best, chosen);
    const bool live = Slots::slot(0) < p.router.top_k;
    const float logit = staged.logit(best[0]);
    const uint32_t chosen_nans = Slots::count_of(live && logit != logit);
    if (sum.nans > chosen_nans) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NAN_LOGIT));
    if (live) ids[Slots::slot(0)] = best[0];
    sync_warp();
}

// write_weighed for lanes that have runs of slots. Where the host says so, k is a multiple of WIDTH and every run of WIDTH slots lies at a boundary
// of its size.
template <class Slots, int WIDTH>
MOERL_DEVICE void write_runs(const MoerlGateForward& p, uint64_t row, const uint32_t (&ids)[Slots::SLOTS],
                             const float (&selected)[Slots::SLOTS], const float (&scaled)[Slots::SLOTS]) {
    if (p.wide_stores == 0) {
        write_weighed<Slots>(p, row, ids, selected, scaled);
        return;
    }
    const uint32_t first = Slots::slot(0), top_k = p.router.top_k;
    const int64_t at = static_cast<int64_t>(row * top_k + first);
    float id_words[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) id_words[s] = f32_of(ids[s]);
    store_run<WIDTH>(reinterpret_cast<float*>(p.topk_ids) + at, id_words, first, top_k);
    store_run<WIDTH>(static_cast<float*>(p.topk_weights) + static_cast<int64_t>(row) * p.topk_weights_stride + first, scaled, first, top_k);
    if (p.selected_logits != nullptr) store_run<WIDTH>(p.selected_logits + at, selected, first, top_k);
    if (p.record_ids == nullptr) return;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (Slots::slot(s) < top_k) record_slot(p, row, Slots::slot(s), static_cast<int32_t>(ids[s]));
    }
}
