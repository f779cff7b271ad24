// The forward kernel for many rows that select for themselves: two or four lanes a row, values before ids.
//
// For E = 128 in bf16 a row takes about half the instructions of k rounds of argmax over 8 lanes, but a warp takes more of them one after the
// other: it pays once every multiprocessor has several warps of rows. The result is the same, bit for bit.
//
//   read 16 or 8 rows into shared memory -> threshold -> mask -> at most 16 candidates -> k ids -> the road of all rows
//
// A row that this does not settle (NaN; too many values at the threshold) is chosen by the whole warp, by rounds of argmax over staged keys.
#pragma once

#include "alone.cuh"
#include "candidates.cuh"
#include "scored.cuh"

// The ids of the row of which `row_lane` is the first lane, by the whole warp, to `ids`.
template <class T, int LANES>
MOERL_DEVICE void choose_slowly(const MoerlGateForward& p, uint64_t row, const Segments<T, LANES>& logits, uint32_t row_lane,
                                unsigned char* scratch, uint32_t* ids, uint64_t& fault) {
    const Staged<T, WARP> staged(scratch, p.router.experts);
    for (uint32_t c = lane_index(); c < p.router.experts; c += WARP) staged.logits[c] = logits.at(row_lane, c);
    sync_warp();
    choose_staged<T>(p, row, staged, ids, fault);
}

// What the warp's part of dynamic shared memory holds behind the logits: near values where there is a bias, the candidates of each row, and
// what one slow row is staged in. By then nobody looks at near values any more, and it takes their place.
template <class T, int LANES, bool SCORED> struct ManyPlace {
    static constexpr bool PACKED = sizeof(T) == 2 && !SCORED;
    Segments<T, LANES> logits;
    Segments<f16, LANES> near;
    uint32_t* ids;
    float* candidate_values;
    unsigned char* scratch;

    MOERL_DEVICE ManyPlace(unsigned char* place, uint32_t experts) : logits(place, experts), near(logits.behind(), experts) {
        const uint32_t row = lane_index() / LANES;
        uint32_t* const all = reinterpret_cast<uint32_t*>(SCORED ? near.behind() : logits.behind());
        ids = all + row * CANDIDATES;
        candidate_values = reinterpret_cast<float*>(all + WARP / LANES * CANDIDATES) + row * CANDIDATES;
        scratch = SCORED ? near.place : reinterpret_cast<unsigned char*>(all + WARP / LANES * CANDIDATES * (PACKED ? 1 : 2));
    }
};

// The ids of the row's slots and their logits, +0 for -0; or the answer that the row is slow. `bias` as near_value takes it.
template <class T, int LANES, int RANK, bool SCORED, class Slots>
MOERL_DEVICE bool choose_of_many(const MoerlGateForward& p, const ManyPlace<T, LANES, SCORED>& place, const float* bias, float middle,
                                 uint32_t (&ids)[Slots::SLOTS], float (&selected)[Slots::SLOTS]) {
    const uint32_t top_k = p.router.top_k;
    if constexpr (ManyPlace<T, LANES, SCORED>::PACKED) {
        return choose_packed<T, RANK, Slots>(place.logits, top_k, place.ids, ids, selected);
    } else {
        const WidePlace candidates = {place.candidate_values, place.ids};
        const Segments<T, LANES>& logits = place.logits;
        const uint32_t row_lane = lane_index() / LANES * LANES;
        uint32_t all = 0;
        bool slow = false;
        if constexpr (SCORED) {
            const Segments<f16, LANES>& near = place.near;
            score_nearly<T, LANES>(bias, logits, near);
            const bool certain = p.group_size == p.router.experts || limit_groups_nearly(p, middle, near, candidates);
            const uint32_t threshold = packed_threshold<f16, RANK>(near);
            float lowest = to_f32(f16{static_cast<uint16_t>(threshold & 0xffffu)});
            lowest -= near_error(lowest, middle);
            const uint32_t both = from_f32_x2<f16>(lowest, lowest);
            slow = find_candidates<Slots, LANES>(near.run, near.blocks(), top_k, candidates, all,
                                                 [&](uint32_t b) { return packed_mask<f16>(near.own() + b * BLOCK, both); });
            slow = Slots::any_of(!certain) || slow;
        } else {
            const float threshold = wide_threshold<RANK>(logits);
            slow = find_candidates<Slots, LANES>(logits.run, logits.blocks(), top_k, candidates, all,
                                                 [&](uint32_t b) { return wide_mask(logits.own() + b * BLOCK, threshold); });
        }
        rank_candidates<Slots, LANES>(top_k, slow ? 0 : all, candidates, [&](uint32_t id) {
            const float logit = to_f32(logits.at(row_lane, id));
            if constexpr (SCORED) return sigmoid(logit) + load(p.selection_bias + id);
            else return logit;
        });
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            ids[s] = Slots::slot(s) < top_k ? candidates.ids[Slots::slot(s)] : 0;  // behind them nobody has written
            selected[s] = to_f32(logits.at(row_lane, ids[s])) + 0.0f;
        }
        return slow;
    }
}

template <class T, int LANES, int RANK, bool SCORED> MOERL_DEVICE void gate_forward_many(const MoerlGateForward& p) {
    using Slots = Runs<LANES, RANK <= 8 ? 8 : 16>;
    constexpr uint32_t ROWS = WARP / LANES;  // of a warp
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    MOERL_SHARED(Words4, bias_words, SCORED ? MANY_EXPERTS / 4 : 1);
    float* const bias = reinterpret_cast<float*>(bias_words);
    const uint32_t top_k = p.router.top_k, experts = p.router.experts;
    const ManyPlace<T, LANES, SCORED> place(shared + static_cast<size_t>(warp_index()) * p.stage_bytes, experts);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t row_count = rows_that_count(p, fault);
    const uint64_t first_row = (static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index()) * ROWS;
    const uint32_t row_lane = lane_index() / LANES * LANES;
    const uint64_t row = first_row + row_lane / LANES;
    const Source source = native_or_padding(p, row, row_count);
    const bool native = source == Source::Native;
    const T* const rows = static_cast<const T*>(p.router_logits) + static_cast<int64_t>(first_row) * p.router_logits_stride;
    read_rows<T, LANES>(place.logits, rows, p.router_logits_stride, experts, ballot(native, FULL_WARP));
    float middle = 0.0f;
    if constexpr (SCORED) {
        middle = middle_of(p.selection_bias);
        for (uint32_t e = thread_index(); e < experts; e += block_size()) bias[e] = load(p.selection_bias + e) - middle + 0.5f;
        sync_block();
    } else {
        sync_warp();
    }

    uint32_t ids[Slots::SLOTS];
    float selected[Slots::SLOTS];
    const bool unsettled = choose_of_many<T, LANES, RANK, SCORED, Slots>(p, place, bias, middle, ids, selected);
    const bool slow = native && unsettled;
    for (uint32_t left = ballot(slow && lane_index() == row_lane, FULL_WARP); left != 0; left &= left - 1) {
        const uint32_t lane = static_cast<uint32_t>(lowest_set(left));
        uint32_t* const to = place.ids - (row_lane / LANES) * CANDIDATES + lane / LANES * CANDIDATES;
        choose_slowly<T, LANES>(p, first_row + lane / LANES, place.logits, lane, place.scratch, to, fault);
    }
    if (slow) {
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            ids[s] = Slots::slot(s) < top_k ? place.ids[Slots::slot(s)] : 0;
            const float logit = to_f32(place.logits.at(row_lane, ids[s]));
            selected[s] = logit != logit ? f32_of(0x7fc00000u) : logit + 0.0f;
        }
    }

    // From here on nobody asks how the ids came about.
    const SlotWeights<Slots> weights = p.router.score == MOERL_GATE_SOFTMAX_SELECTED ? weigh_by_softmax<Slots>(p.router, selected)
                                                                                       : weigh_slots<Slots>(p.router, selected, 0.0f);
    float scaled[Slots::SLOTS];
    const bool usable = scale_weights<Slots>(p, weights, ids, native, scaled);
    if (native && !usable) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_NONFINITE_WEIGHT));
    if (native) write_runs<Slots, Slots::WIDTH>(p, row, ids, selected, scaled);
    if (source == Source::WithoutWeights) write_without_weights<Slots>(p, row);
    publish_fault(p.errors, fault);
}
