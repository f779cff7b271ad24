// What each row is: native, forced, or without weights; and the ids that it brings.
#pragma once

#include "slot_arrays.cuh"

enum class Source : uint32_t {
    BehindTheEnd,    // no row: its lanes only take part in the warp's collectives
    WithoutWeights,  // filler ids
    Native,
    Forced,
};

// What telemetry asks of a row besides.
struct RowFacts {
    uint32_t kind;      // MoerlGateRowCount, of the first five
    uint64_t tape_row;  // the forced ids' row, for a replayed one
};

// `(row·k + slot) mod E`, without leaving 64 bits for rows below 2^40.
MOERL_DEVICE uint32_t filler_id(const MoerlGateRouter& router, uint64_t row, uint32_t slot) {
    return static_cast<uint32_t>((row * router.top_k + slot) % router.experts);
}

// The forced ids of the lane's slots; 0 where there is none.
template <class Slots>
MOERL_DEVICE void load_forced(const MoerlGateForward& p, uint64_t tape_row, bool present, int32_t (&ids)[Slots::SLOTS]) {
    const uint32_t top_k = p.router.top_k;
    const int64_t row = static_cast<int64_t>(tape_row) * p.forced_ids_stride;
    switch (p.forced_ids_element) {
        case MOERL_U8: return load_slots<Slots>(static_cast<const uint8_t*>(p.forced_ids), row, top_k, present, ids);
        case MOERL_U16: return load_slots<Slots>(static_cast<const uint16_t*>(p.forced_ids), row, top_k, present, ids);
        case MOERL_I16: return load_slots<Slots>(static_cast<const int16_t*>(p.forced_ids), row, top_k, present, ids);
        default: return load_slots<Slots>(static_cast<const int32_t*>(p.forced_ids), row, top_k, present, ids);
    }
}

// Where a row that cannot be replayed goes. Spread rows are forced to their filler ids.
template <class Slots>
MOERL_DEVICE Source settle(const MoerlGateForward& p, uint32_t policy, uint64_t row, uint32_t (&ids)[Slots::SLOTS]) {
    if (policy == MOERL_GATE_POLICY_NATIVE) return Source::Native;
    if (policy == MOERL_GATE_POLICY_ZERO_WEIGHT) return Source::WithoutWeights;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) ids[s] = filler_id(p.router, row, Slots::slot(s));
    return Source::Forced;
}

// Two slots of the row hold one id. All pairs: slot s of this lane against every slot of the lanes at each xor distance.
template <class Slots> MOERL_DEVICE bool has_duplicate(const int32_t (&ids)[Slots::SLOTS], uint32_t top_k) {
    // The xor distances between lanes that hold slots: below the first power of two that is not below their number.
    uint32_t reach = 1;
    while (reach < Slots::lanes_with_slots(top_k)) reach *= 2;
    bool twice = false;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (Slots::slot_of(0, s) >= top_k) continue;
        MOERL_UNROLL
        for (int r = 0; r < s; r++) twice = twice || (Slots::slot(s) < top_k && ids[r] == ids[s]);
        for (uint32_t distance = 1; distance < reach; distance++) {
            const int32_t other = shuffle_xor(ids[s], static_cast<int>(distance));
            const uint32_t other_slot = Slots::slot_of(Slots::lane() ^ distance, s);
            MOERL_UNROLL
            for (int r = 0; r < Slots::SLOTS; r++) {
                twice = twice || (other_slot < top_k && Slots::slot(r) < top_k && ids[r] == other);
            }
        }
    }
    return Slots::any_of(twice);
}

// What `row` is where no ids are forced. Rows from `row_count` on are padding.
MOERL_DEVICE Source native_or_padding(const MoerlGateForward& p, uint64_t row, uint64_t row_count) {
    if (row >= p.rows) return Source::BehindTheEnd;
    const bool padding = row >= row_count || (p.token_mask != nullptr && load(p.token_mask + row) == 0);
    return padding ? Source::WithoutWeights : Source::Native;
}

// Decides what `row` is, in the order that the interface states. Called by whole warps. `ids` is set for forced rows.
template <class Slots>
MOERL_DEVICE Source classify(const MoerlGateForward& p, uint64_t row, uint64_t row_count, uint32_t (&ids)[Slots::SLOTS], uint64_t& fault,
                             RowFacts& facts) {
    const uint32_t top_k = p.router.top_k;
    Source source = native_or_padding(p, row, row_count);
    facts = {static_cast<uint32_t>(source == Source::WithoutWeights ? MOERL_GATE_ROWS_PADDING : MOERL_GATE_ROWS_NATIVE), 0};
    if (p.forced_ids == nullptr) return source;

    uint32_t mode = 1;
    if (source == Source::Native && p.row_mode != nullptr) {
        mode = load(p.row_mode + row);
        if (mode == 2) {
            source = Source::WithoutWeights;
            facts.kind = MOERL_GATE_ROWS_PADDING;
        }
        if (mode > 2) {
            facts.kind = MOERL_GATE_ROWS_BAD;
            keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_ROW_MODE));
            source = settle<Slots>(p, p.bad, row, ids);
        }
    }
    // From here on, only rows that ask for replay change.
    const bool asks = source == Source::Native && mode == 1;
    int64_t tape_row = static_cast<int64_t>(row);
    if (asks && p.row_index != nullptr) {
        tape_row = load(p.row_index + row);
        if (tape_row < -1) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_ROW_INDEX));
    }
    const bool present = asks && tape_row >= 0 && static_cast<uint64_t>(tape_row) < p.forced_rows;
    int32_t forced[Slots::SLOTS];
    load_forced<Slots>(p, static_cast<uint64_t>(tape_row), present, forced);
    bool sentinel = false, all_sentinel = true, all_zero = top_k > 1 && p.zeros_are_missing != 0, outside = false;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (!present || Slots::slot(s) >= top_k) continue;
        const bool is_sentinel = p.has_sentinel != 0 && forced[s] == p.sentinel;
        sentinel = sentinel || is_sentinel;
        all_sentinel = all_sentinel && is_sentinel;
        all_zero = all_zero && forced[s] == 0;
        outside = outside || static_cast<uint32_t>(forced[s]) >= p.router.experts;
    }
    // One ballot each for the row: what any of its lanes saw.
    const bool some_sentinel = Slots::any_of(sentinel), other_than_sentinel = Slots::any_of(!all_sentinel);
    const bool nonzero = Slots::any_of(!all_zero);
    const bool some_outside = Slots::any_of(outside), twice = has_duplicate<Slots>(forced, top_k);
    if (!asks) return source;

    if (!present || !other_than_sentinel || !nonzero) {
        facts.kind = MOERL_GATE_ROWS_MISSING;
        if (p.missing_is_fault != 0) keep_first(fault, fault_at(row, p.tag, MOERL_FAULT_MISSING));
        return settle<Slots>(p, p.missing, row, ids);
    }
    if (some_sentinel || some_outside || twice) {
        const uint32_t code = some_sentinel ? MOERL_FAULT_PARTIAL : some_outside ? MOERL_FAULT_RANGE : MOERL_FAULT_DUPLICATE;
        keep_first(fault, fault_at(row, p.tag, code));
        facts.kind = MOERL_GATE_ROWS_BAD;
        return settle<Slots>(p, p.bad, row, ids);
    }
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) ids[s] = static_cast<uint32_t>(forced[s]);
    facts = {MOERL_GATE_ROWS_REPLAY, static_cast<uint64_t>(tape_row)};
    return Source::Forced;
}

template <class Slots>
MOERL_DEVICE Source classify(const MoerlGateForward& p, uint64_t row, uint64_t row_count, uint32_t (&ids)[Slots::SLOTS], uint64_t& fault) {
    RowFacts facts;
    return classify<Slots>(p, row, row_count, ids, fault, facts);
}
