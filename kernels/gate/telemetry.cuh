// The telemetry kernel's body: a forward call, and what it is asked about its rows.
#pragma once

#include "backward.cuh"
#include "forward.cuh"
#include "row_measures.cuh"

// ---- the native choice of a row -----------------------------------------------------------------------------------------

template <int LANES> struct Choice {
    uint32_t ids[Group<LANES>::SLOTS];  // N, best first
    uint32_t kth;                       // the key of the k-th best
    uint32_t next;                      // of the one behind it; TAKEN_KEY: none is left
};

// Of a row whose keys are staged. Called by whole warps. Where registers do not hold the row, the keys are struck out.
template <class T, int LANES, int VALUES>
MOERL_DEVICE Choice<LANES> choose(const MoerlGateTelemetry& p, const Staged<T, LANES>& staged, bool wanted) {
    using Slots = Group<LANES>;
    const uint32_t top_k = p.forward.router.top_k, experts = wanted ? p.forward.router.experts : 0;
    Choice<LANES> choice = {};
    uint32_t chosen[Slots::SLOTS] = {}, rest = TAKEN_KEY;
    if constexpr (VALUES == IN_SHARED_MEMORY) {
        take_best_staged<T, LANES>(top_k, staged, experts, choice.ids, chosen);
        if (p.margin != nullptr) {
            for (uint32_t c = Slots::lane(); c < experts; c += LANES) rest = staged.keys[c] > rest ? staged.keys[c] : rest;
        }
    } else {
        uint32_t keys[VALUES];
        MOERL_UNROLL
        for (int v = 0; v < VALUES; v++) {
            const uint32_t column = Columns<T, LANES, VALUES>::column(v);
            keys[v] = column < experts ? staged.keys[column] : TAKEN_KEY;
        }
        take_best<T, LANES>(top_k, keys, choice.ids, chosen);
        MOERL_UNROLL
        for (int v = 0; v < VALUES; v++) rest = keys[v] > rest ? keys[v] : rest;
    }
    if (p.margin != nullptr) {
        MOERL_UNROLL
        for (int lanes = 1; lanes < LANES; lanes *= 2) {
            const uint32_t other = shuffle_xor(rest, lanes);
            rest = other > rest ? other : rest;
        }
    }
    choice.kth = of_slot<LANES>(chosen, top_k - 1);
    choice.next = rest;
    return choice;
}

// How far apart two values in the total order are; equal infinities are not.
MOERL_DEVICE float apart(float upper, float lower) { return upper == lower ? 0.0f : upper - lower; }

// Forced experts too far below the k-th best give way, in the order of the slots, to the best that the row does not have yet.
// Returns how many. `keys`: of the forced experts; one in no admitted group has TAKEN_KEY and is below everything. Called by whole warps.
template <int LANES>
MOERL_DEVICE uint32_t replace(const MoerlGateTelemetry& p, const Choice<LANES>& choice, const uint32_t (&keys)[Group<LANES>::SLOTS],
                              bool wanted, uint32_t (&ids)[Group<LANES>::SLOTS]) {
    using Slots = Group<LANES>;
    const uint32_t top_k = p.forward.router.top_k;
    const float kth = value_of(choice.kth);
    bool dropped[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        // Written so that NaN, of an expert or of a difference, is too far.
        const bool near = keys[s] >= choice.kth || kth - value_of(keys[s]) <= p.score_replace;
        dropped[s] = wanted && Slots::slot(s) < top_k && !near;
    }
    const uint32_t gone = slots_where<LANES>(dropped);
    const uint32_t kept = held_slots<LANES>(choice.ids, ids, top_k, ~gone);
    uint32_t replacement[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        // The slots of N that the row does not have yet; as many as are dropped, or more.
        uint32_t free = ~kept;
        for (int before = popcount(gone & ((1u << Slots::slot(s)) - 1u)); before > 0; before--) free &= free - 1;
        replacement[s] = of_slot<LANES>(choice.ids, static_cast<uint32_t>(lowest_set(free)) % MAX_SLOTS);
    }
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) ids[s] = dropped[s] ? replacement[s] : ids[s];
    return static_cast<uint32_t>(popcount(gone));
}

// ---- one row ------------------------------------------------------------------------------------------------------------

// What is asked of the native choice and of the recorded experts, before any is replaced. Called by whole warps.
template <class T, int LANES>
MOERL_DEVICE void measure_choice(const MoerlGateTelemetry& p, const Tally& tally, const Staged<T, LANES>& staged, uint64_t row,
                                 const RowState& state, const Choice<LANES>& choice, const uint32_t (&ids)[Group<LANES>::SLOTS]) {
    using Slots = Group<LANES>;
    const MoerlGateForward& f = p.forward;
    const uint32_t overlap = static_cast<uint32_t>(popcount(held_slots<LANES>(choice.ids, ids, f.router.top_k, ~0u)));
    float below[Slots::SLOTS];
    bool nan_bias = false;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        below[s] = -INFINITY;
        if (p.deficit == nullptr || !state.weighs || Slots::slot(s) >= f.router.top_k) continue;
        below[s] = -selection_value(f, ids[s], staged.logit(ids[s]), state.selection_lse, nan_bias);
    }
    const float least = -Slots::max(below, f.router.top_k);
    if (Slots::lane() != 0 || !state.exists) return;
    const float nan = f32_of(0x7fc00000u), kth = value_of(choice.kth);
    const bool differs = state.replays && overlap < f.router.top_k;
    if (p.overlap != nullptr) store(p.overlap + row, static_cast<uint8_t>(state.replays ? overlap : NO_OVERLAP));
    if (state.replays) shared_atomic_add(tally.overlap + overlap, 1u);
    if (differs && p.changed != nullptr) store(p.changed + row, static_cast<uint8_t>(1));
    if (differs && p.changed_layers != nullptr) {
        store(p.changed_layers + row, static_cast<uint16_t>(load(p.changed_layers + row) + 1u));
    }
    if (p.margin != nullptr) {
        const float margin = choice.next == TAKEN_KEY ? INFINITY : apart(kth, value_of(choice.next));
        store(p.margin + row, state.weighs ? margin : nan);
    }
    if (p.deficit != nullptr) store(p.deficit + row, state.weighs ? apart(kth, least) : nan);
}

template <class T, int LANES, int VALUES>
MOERL_DEVICE void telemetry_row(const MoerlGateTelemetry& p, const Tally& tally, const Staged<T, LANES>& staged, uint64_t row,
                                uint64_t row_count, uint64_t& fault) {
    using Slots = Group<LANES>;
    const MoerlGateForward& f = p.forward;
    const uint32_t top_k = f.router.top_k, experts = f.router.experts;
    const bool softmax_over_all = f.router.score == MOERL_GATE_SOFTMAX, replaces = p.score_replace < INFINITY;
    const bool needs_sum = p.sums != 0 || softmax_over_all || (f.scored != 0 && f.router.score == MOERL_GATE_SOFTMAX_SELECTED);
    const T* const logits = static_cast<const T*>(f.router_logits) + static_cast<int64_t>(row) * f.router_logits_stride;
    uint32_t ids[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) ids[s] = 0;
    RowFacts facts;
    const Source source = classify<Slots>(f, row, row_count, ids, fault, facts);
    const bool native = source == Source::Native, weighs = native || source == Source::Forced;
    RowState state = {source != Source::BehindTheEnd, weighs, weighs && facts.kind == MOERL_GATE_ROWS_REPLAY, 0.0f, 0.0f};

    // The whole row, where anything needs it.
    const bool selects = native || (weighs && p.selects != 0);
    const bool whole = selects || (weighs && (p.sums != 0 || softmax_over_all));
    uint32_t nans = 0, replaced = 0;
    float cutoff = f32_of(0x7fc00000u);
    if (any(whole, FULL_WARP)) {
        staged.read(logits, experts, whole);
        sync_warp();
        const RowSum sum = sum_row<T, LANES>(staged, f.router, whole, needs_sum);
        nans = sum.nans;
        state.selection_lse = sum.lse;
        state.lse = nans != 0 ? f32_of(0x7fc00000u) : sum.lse;
        bool nan_bias = false;
        stage_keys<T, LANES>(f, staged, selects, sum.lse, nan_bias);
        if (nan_bias && (native || (replaces && state.replays))) keep_first(fault, fault_at(0, f.tag, MOERL_FAULT_NAN_BIAS));
        uint32_t forced_keys[Slots::SLOTS];
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) forced_keys[s] = selects && Slots::slot(s) < top_k ? staged.keys[ids[s]] : TAKEN_KEY;
        sync_warp();  // before the selection strikes keys out
        const Choice<LANES> choice = choose<T, LANES, VALUES>(p, staged, selects);
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) ids[s] = native ? choice.ids[s] : ids[s];
        if (native) cutoff = value_of(choice.kth);
        if (weighs) count_experts<LANES>(tally.native_counts, p.native_counts, top_k, choice.ids);
        if (p.selects != 0) measure_choice<T, LANES>(p, tally, staged, row, state, choice, ids);
        if (p.forced_mass != nullptr) measure_mass<T, LANES>(p, staged, row, state, ids);
        if (replaces) replaced = replace<LANES>(p, choice, forced_keys, state.replays, ids);
    } else if (state.exists && Slots::lane() == 0) {
        write_unmeasured(p, row);
    }

    // From here on as every forward: the logits of the slots, +0 for -0 and one NaN for all; weights; stores.
    float selected[Slots::SLOTS];
    uint32_t selected_nans = 0;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        selected[s] = 0.0f;
        if (!weighs || Slots::slot(s) >= top_k) continue;
        selected[s] = whole ? staged.logit(ids[s]) : to_f32(load(logits + ids[s]));
        selected_nans += selected[s] != selected[s] ? 1u : 0u;
        selected[s] = selected[s] != selected[s] ? f32_of(0x7fc00000u) : selected[s] + 0.0f;
    }
    MOERL_UNROLL
    for (int lanes = 1; lanes < LANES; lanes *= 2) selected_nans += shuffle_xor(selected_nans, lanes);
    if (native && !softmax_over_all && nans > selected_nans) keep_first(fault, fault_at(row, f.tag, MOERL_FAULT_NAN_LOGIT));
    const Weights<LANES> weights = weigh<LANES>(f.router, selected, state.lse);
    const bool usable = write_row<LANES>(f, row, source, ids, selected, state.lse, cutoff, weights, fault);

    if (weighs) count_experts<LANES>(tally.counts, p.counts, top_k, ids);
    if (state.exists && Slots::lane() == 0) {
        shared_atomic_add(tally.rows + facts.kind, 1u);
        if (replaced != 0) shared_atomic_add(tally.rows + MOERL_GATE_ROWS_REPLACED, 1u);
        if (p.replaced != nullptr) store(p.replaced + row, static_cast<uint8_t>(replaced));
    }
    if (p.recorded_weights != nullptr) measure_weights<LANES>(p, tally, row, state, facts.tape_row, weights, usable);
    if (p.logprob_sel != nullptr) write_logprobs<LANES>(p, row, state, selected);
    if (p.shift != nullptr) add_shift<T, LANES>(p, staged, row, state);
    if (p.ref_logits != nullptr) measure_router_kl<T, LANES>(p, staged, row, state);
}

template <class T, int LANES, int VALUES> MOERL_DEVICE void gate_telemetry(const MoerlGateTelemetry& p) {
    const MoerlGateForward& f = p.forward;
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    MOERL_SHARED(uint32_t, small, MOERL_GATE_ROW_COUNTS + MAX_SLOTS + 1);
    const Tally tally(p, small, shared);
    tally.clear();
    const uint32_t row_of_block = warp_index() * (WARP / LANES) + lane_index() / LANES;
    const Staged<T, LANES> staged(shared + p.tally_bytes + static_cast<size_t>(row_of_block) * f.stage_bytes, f.router.experts);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t row_count = rows_that_count(f, fault), rows_of_block = block_size() / LANES;
    for (uint64_t first = block_index() * rows_of_block; first < f.rows; first += grid_size() * rows_of_block) {
        telemetry_row<T, LANES, VALUES>(p, tally, staged, first + row_of_block, row_count, fault);
        sync_warp();  // the next row comes to the place of this one
    }
    tally.publish();
    publish_fault(f.errors, fault);
}
