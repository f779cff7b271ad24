// What is counted and measured of a row behind its selection: the block's tally of integers, and a number a row each.
//
// Every float is one row's, so no sum of floats runs over rows; what does run over rows is integers, which may come in any order.
#pragma once

#include "backward.cuh"
#include "columns.cuh"
#include "weights.cuh"

constexpr uint32_t NO_OVERLAP = 0xff;  // of a row that was not replayed

// What a row is to its measures.
struct RowState {
    bool exists;
    bool weighs;          // it has weights
    bool replays;         // from forced ids
    float selection_lse;  // log Σ exp of the row, NaN left out
    float lse;            // the same, NaN if any is
};

// ---- slots ----------------------------------------------------------------------------------------------------------------

// What slot `slot`, which may differ from lane to lane, has. Called by whole warps.
template <int LANES> MOERL_DEVICE uint32_t of_slot(const uint32_t (&x)[Group<LANES>::SLOTS], uint32_t slot) {
    uint32_t found = 0;
    MOERL_UNROLL
    for (int s = 0; s < Group<LANES>::SLOTS; s++) {
        const uint32_t candidate = Group<LANES>::from(x[s], slot % LANES);
        if (slot / LANES == static_cast<uint32_t>(s)) found = candidate;
    }
    return found;
}

// Bit j: p of slot j.
template <int LANES> MOERL_DEVICE uint32_t slots_where(const bool (&p)[Group<LANES>::SLOTS]) {
    uint32_t slots = 0;
    MOERL_UNROLL
    for (int s = 0; s < Group<LANES>::SLOTS; s++) slots |= Group<LANES>::own(ballot(p[s], FULL_WARP)) << (s * LANES);
    return slots;
}

// The slots of `ids` whose expert is also in one of the slots `among` of `others`. Called by whole warps.
template <int LANES>
MOERL_DEVICE uint32_t held_slots(const uint32_t (&ids)[Group<LANES>::SLOTS], const uint32_t (&others)[Group<LANES>::SLOTS], uint32_t top_k,
                                 uint32_t among) {
    using Slots = Group<LANES>;
    bool held[Slots::SLOTS] = {};
    for (uint32_t slot = 0; slot < top_k; slot++) {
        const uint32_t other = of_slot<LANES>(others, slot);
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            held[s] = held[s] || (Slots::slot(s) < top_k && ids[s] == other && (among >> slot & 1u) != 0);
        }
    }
    return slots_where<LANES>(held);
}

// ---- the tally --------------------------------------------------------------------------------------------------------------

// A block's own counts, added to the sums at its end. Long rows leave no room for those of the experts, and few rows to count.
struct Tally {
    const MoerlGateTelemetry& p;
    uint32_t* rows;           // [MOERL_GATE_ROW_COUNTS]
    uint32_t* overlap;        // [MAX_SLOTS + 1]
    uint32_t* counts;         // [E]; null: counted in the sums
    uint32_t* native_counts;  // likewise

    MOERL_DEVICE Tally(const MoerlGateTelemetry& telemetry, uint32_t* small, unsigned char* shared)
        : p(telemetry), rows(small), overlap(small + MOERL_GATE_ROW_COUNTS), counts(nullptr), native_counts(nullptr) {
        if (p.tally_bytes == 0) return;
        counts = reinterpret_cast<uint32_t*>(shared);
        native_counts = counts + p.forward.router.experts;
    }

    // Called by the whole block.
    MOERL_DEVICE void clear() const {
        for (uint32_t i = thread_index(); i < MOERL_GATE_ROW_COUNTS + MAX_SLOTS + 1; i += block_size()) rows[i] = 0;
        for (uint32_t i = thread_index(); i < p.tally_bytes / sizeof(uint32_t); i += block_size()) counts[i] = 0;
        sync_block();
    }

    // Called by the whole block.
    MOERL_DEVICE void publish() const {
        sync_block();
        add(p.row_counts, rows, MOERL_GATE_ROW_COUNTS);
        add(p.overlap_hist, overlap, p.forward.router.top_k + 1);
        add(p.counts, counts, p.forward.router.experts);
        add(p.native_counts, native_counts, p.forward.router.experts);
    }

    static MOERL_DEVICE void add(uint64_t* sums, const uint32_t* own, uint32_t len) {
        if (sums == nullptr || own == nullptr) return;
        for (uint32_t i = thread_index(); i < len; i += block_size()) {
            if (own[i] != 0) atomic_add(sums + i, static_cast<uint64_t>(own[i]));
        }
    }
};

// One for each expert of the lane's slots.
template <int LANES>
MOERL_DEVICE void count_experts(uint32_t* own, uint64_t* sums, uint32_t top_k, const uint32_t (&ids)[Group<LANES>::SLOTS]) {
    if (sums == nullptr) return;
    MOERL_UNROLL
    for (int s = 0; s < Group<LANES>::SLOTS; s++) {
        if (Group<LANES>::slot(s) >= top_k) continue;
        if (own != nullptr) shared_atomic_add(own + ids[s], 1u);
        else atomic_add(sums + ids[s], static_cast<uint64_t>(1));
    }
}

// ---- measures -----------------------------------------------------------------------------------------------------------

// Of a row in a warp of which nobody needed a whole row: it has no weights, or nothing was asked of its row.
MOERL_DEVICE void write_unmeasured(const MoerlGateTelemetry& p, uint64_t row) {
    const float nan = f32_of(0x7fc00000u);
    if (p.overlap != nullptr) store(p.overlap + row, static_cast<uint8_t>(NO_OVERLAP));
    if (p.margin != nullptr) store(p.margin + row, nan);
    if (p.deficit != nullptr) store(p.deficit + row, nan);
    if (p.forced_mass != nullptr) store(p.forced_mass + row, nan);
}

// Σ softmax over the row's experts. Called by whole warps.
template <class T, int LANES>
MOERL_DEVICE void measure_mass(const MoerlGateTelemetry& p, const Staged<T, LANES>& staged, uint64_t row, const RowState& state,
                               const uint32_t (&ids)[Group<LANES>::SLOTS]) {
    using Slots = Group<LANES>;
    const MoerlGateRouter& router = p.forward.router;
    float mass[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const bool live = state.weighs && Slots::slot(s) < router.top_k;
        mass[s] = live ? exp_of(capped(staged.logit(ids[s]), router.softcap) - state.lse) : 0.0f;
    }
    const float sum = Slots::sum(mass, router.top_k);
    if (Slots::lane() != 0 || !state.exists) return;
    store(p.forced_mass + row, state.weighs && is_finite(state.lse) ? sum : f32_of(0x7fc00000u));
}

// gate_l1 = Σ |w − w̄| / scaling_factor and set_kl = Σ ŵ̄ log(ŵ̄ / ŵ), over slots, of a row whose weights are numbers, also behind the scale of their
// experts: `usable`. Called by whole warps.
template <int LANES>
MOERL_DEVICE void measure_weights(const MoerlGateTelemetry& p, const Tally& tally, uint64_t row, const RowState& state, uint64_t tape_row,
                                  const Weights<LANES>& weights, bool usable) {
    using Slots = Group<LANES>;
    const MoerlGateRouter& router = p.forward.router;
    float recorded[Slots::SLOTS], current[Slots::SLOTS], distance[Slots::SLOTS];
    bool broken = false;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        recorded[s] = current[s] = distance[s] = 0.0f;
        if (!state.replays || Slots::slot(s) >= router.top_k) continue;
        recorded[s] = load_float(p.recorded_weights, p.recorded_weights_element,
                                 static_cast<int64_t>(tape_row) * p.recorded_weights_stride + Slots::slot(s));
        current[s] = weights.normalized[s] * router.scaling_factor;
        distance[s] = fabsf(current[s] - recorded[s]);
        broken = broken || !is_finite(recorded[s]);
    }
    const float recorded_sum = Slots::sum(recorded, router.top_k), current_sum = Slots::sum(current, router.top_k);
    const bool bad = Slots::any_of(broken) || recorded_sum == 0.0f;
    const float l1 = Slots::sum(distance, router.top_k) / router.scaling_factor;
    float terms[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const float from = recorded[s] / recorded_sum, to = current[s] / current_sum;
        terms[s] = recorded[s] == 0.0f ? 0.0f : from * logf(from / to);
    }
    const float kl = Slots::sum(terms, router.top_k);
    if (Slots::lane() != 0 || !state.exists) return;
    if (state.replays && bad) shared_atomic_add(tally.rows + MOERL_GATE_ROWS_BAD_REFERENCE, 1u);
    const bool comparable = state.replays && !bad && usable;
    const float nan = f32_of(0x7fc00000u);
    if (p.gate_l1 != nullptr) store(p.gate_l1 + row, comparable ? l1 : nan);
    if (p.set_kl != nullptr) store(p.set_kl + row, comparable ? (kl < 0.0f ? 0.0f : kl) : nan);
}

// log softmax of the chosen experts' logits.
template <int LANES>
MOERL_DEVICE void write_logprobs(const MoerlGateTelemetry& p, uint64_t row, const RowState& state, const float (&selected)[Group<LANES>::SLOTS]) {
    using Slots = Group<LANES>;
    const MoerlGateRouter& router = p.forward.router;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (!state.exists || Slots::slot(s) >= router.top_k) continue;
        const float logprob = capped(selected[s], router.softcap) - state.lse;
        store(p.logprob_sel + (row * router.top_k + Slots::slot(s)), state.weighs ? logprob : f32_of(0x7fc00000u));
    }
}

// Adds this layer's mean of |log p − log p_old| over the old experts. A row that has none adds nothing. Called by whole warps.
template <class T, int LANES>
MOERL_DEVICE void add_shift(const MoerlGateTelemetry& p, const Staged<T, LANES>& staged, uint64_t row, const RowState& state) {
    using Slots = Group<LANES>;
    const MoerlGateRouter& router = p.forward.router;
    float moved[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        moved[s] = 0.0f;
        if (!state.weighs || Slots::slot(s) >= router.top_k) continue;
        const uint64_t at = row * router.top_k + Slots::slot(s);
        const uint32_t expert = static_cast<uint32_t>(load(p.old_topk_ids + at));
        const float old = load(p.old_logprob_sel + at);
        moved[s] = expert < router.experts ? fabsf(capped(staged.logit(expert), router.softcap) - state.lse - old) : f32_of(0x7fc00000u);
    }
    const float mean = Slots::sum(moved, router.top_k) / static_cast<float>(router.top_k);
    if (Slots::lane() == 0 && state.weighs && mean == mean) store(p.shift + row, load(p.shift + row) + mean);
}

// KL(p_ref ‖ p) over all experts, and its gradient p − p_ref. The reference row takes the place of the keys. Called by whole warps.
template <class T, int LANES>
MOERL_DEVICE void measure_router_kl(const MoerlGateTelemetry& p, const Staged<T, LANES>& staged, uint64_t row, const RowState& state) {
    using Slots = Group<LANES>;
    const MoerlGateRouter& router = p.forward.router;
    Staged<T, LANES> reference = staged;
    reference.logits = reinterpret_cast<T*>(staged.keys);
    sync_warp();  // other lanes may still be reading the keys
    reference.read(static_cast<const T*>(p.ref_logits) + static_cast<int64_t>(row) * p.ref_logits_stride, router.experts, state.weighs);
    sync_warp();
    const RowSum sum = sum_row<T, LANES>(reference, router, state.weighs, true);
    const bool comparable = state.weighs && sum.nans == 0 && is_finite(sum.lse) && is_finite(state.lse);
    float kl = 0.0f;
    for (uint32_t c = Slots::lane(); state.exists && c < router.experts; c += LANES) {
        float slope = 0.0f;
        if (comparable) {
            const float logit = staged.logit(c);
            const float log_ref = capped(reference.logit(c), router.softcap) - sum.lse, log_own = capped(logit, router.softcap) - state.lse;
            const float ref = exp_of(log_ref);
            kl += ref == 0.0f ? 0.0f : ref * (log_ref - log_own);
            slope = (exp_of(log_own) - ref) * softcap_slope(logit, router.softcap);
        }
        if (p.d_router_kl != nullptr) {
            store_weight(p.d_router_kl, p.d_router_kl_element, static_cast<int64_t>(row) * p.d_router_kl_stride + c, slope);
        }
    }
    MOERL_UNROLL
    for (int lanes = 1; lanes < LANES; lanes *= 2) kl += shuffle_xor(kl, lanes);
    if (Slots::lane() != 0 || !state.exists || p.router_kl == nullptr) return;
    store(p.router_kl + row, comparable ? (kl < 0.0f ? 0.0f : kl) : f32_of(0x7fc00000u));
}
