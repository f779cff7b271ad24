// The k best of a row in the total order: value descending with -0 = +0, NaN behind -inf, equal values by id.
//
// A value becomes a 32-bit key that orders as the values do, so everything from here on is exact integer work and no neighbour, schedule
// or lane count can show in the result. k rounds: each lane finds its own best, a butterfly over the row's lanes finds the row's, its
// owner strikes it out.
#pragma once

#include "columns.cuh"
#include "score.cuh"

constexpr uint32_t TAKEN_KEY = 0;  // taken already, in no admitted group, or no expert at all
constexpr uint32_t NAN_KEY = 1;    // the key of -inf is 0x007fffff

MOERL_DEVICE uint32_t key_of(float value) {
    if (value != value) return NAN_KEY;
    const uint32_t bits = bits_of(value + 0.0f);  // -0 + 0 = +0
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}
MOERL_DEVICE float value_of(uint32_t key) {
    if (key == NAN_KEY) return f32_of(0x7fc00000u);
    return f32_of(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A key and, below it, the id, so that the larger of two is the better one.
MOERL_DEVICE uint64_t ranked(uint32_t key, uint32_t id) { return static_cast<uint64_t>(key) << 32 | ~id; }
MOERL_DEVICE uint32_t id_of(uint64_t ranked) { return ~static_cast<uint32_t>(ranked); }

template <int LANES> MOERL_DEVICE uint64_t best_of_row(uint32_t key, uint32_t id) {
    if constexpr (LANES == WARP) {
        const uint32_t most = reduce_max_u32(key);
        return ranked(most, reduce_min_u32(key == most ? id : ~0u));
    } else {
        uint64_t best = ranked(key, id);
        MOERL_UNROLL
        for (int lanes = 1; lanes < LANES; lanes *= 2) {
            const uint64_t other = shuffle_xor(best, lanes);
            best = other > best ? other : best;
        }
        return best;
    }
}

// The sum of the `top` largest values of a group, in this order; equal ones as often as they occur. By a whole warp, each lane with the columns
// from its own on.
MOERL_DEVICE float group_score(const uint32_t* keys, uint32_t size, uint32_t top) {
    uint64_t behind = ~0ull;  // of this lane's columns: those taken already are not below it
    float score = 0.0f;
    for (uint32_t m = 0; m < top; m++) {
        uint64_t own = 0;
        for (uint32_t c = lane_index(); c < size; c += WARP) {
            const uint64_t candidate = ranked(keys[c], c);
            if (candidate < behind && candidate > own) own = candidate;
        }
        const uint64_t best = best_of_row<WARP>(static_cast<uint32_t>(own >> 32), own == 0 ? ~0u : id_of(own));
        behind = best;
        const float value = value_of(static_cast<uint32_t>(best >> 32));
        score = m == 0 ? value : score + value;
    }
    return score;
}

// Strikes out the experts of all but the best groups. Called by whole warps.
template <class T, int LANES> MOERL_DEVICE void limit_groups(const MoerlGateForward& p, const Staged<T, LANES>& row, bool wanted) {
    const uint32_t lane = Group<LANES>::lane(), size = p.group_size;
    const uint32_t groups = wanted ? p.router.experts / size : 0;
    if constexpr (LANES == WARP) {
        for (uint32_t group = 0; group < groups; group++) {
            const float score = group_score(row.keys + group * size, size, p.group_top);
            if (lane == 0) row.groups[group] = key_of(score);
        }
    }
    // A lane per group: the group's best, then the best behind that one, and so on; their sum in this order is the group's score.
    for (uint32_t group = lane; LANES != WARP && group < groups; group += LANES) {
        uint64_t behind = ~0ull;
        float score = 0.0f;
        for (uint32_t m = 0; m < p.group_top; m++) {
            uint64_t best = 0;
            for (uint32_t c = group * size; c < (group + 1) * size; c++) {
                const uint64_t candidate = ranked(row.keys[c], c);
                if (candidate < behind && candidate > best) best = candidate;
            }
            behind = best;
            const float value = value_of(static_cast<uint32_t>(best >> 32));
            score = m == 0 ? value : score + value;
        }
        row.groups[group] = key_of(score);
    }
    sync_warp();
    // A group is out if enough are better.
    for (uint32_t group = lane; group < groups; group += LANES) {
        const uint64_t own = ranked(row.groups[group], group);
        uint32_t better = 0;
        for (uint32_t other = 0; other < groups; other++) better += ranked(row.groups[other], other) > own ? 1u : 0u;
        if (better < p.admitted_groups) continue;
        for (uint32_t c = group * size; c < (group + 1) * size; c++) row.keys[c] = TAKEN_KEY;
    }
    sync_warp();
}

// What an expert is selected by: its logit, or its score plus bias.
MOERL_DEVICE float selection_value(const MoerlGateForward& p, uint32_t column, float logit, float lse, bool& nan_bias) {
    // Both softmax modes are selected by the softmax over all.
    const uint32_t score = p.router.score == MOERL_GATE_SOFTMAX_SELECTED ? static_cast<uint32_t>(MOERL_GATE_SOFTMAX) : p.router.score;
    float value = logit;
    if (p.scored != 0) value = score_of(score, capped(value, p.router.softcap), lse);
    if (p.selection_bias != nullptr) {
        const float bias = load(p.selection_bias + column);
        nan_bias = nan_bias || bias != bias;
        value += bias;
    }
    return value;
}

// The staged keys of a staged row. Called by whole warps; the keys are there for the row's lanes at the end.
template <class T, int LANES>
MOERL_DEVICE void stage_keys(const MoerlGateForward& p, const Staged<T, LANES>& row, bool wanted, float lse, bool& nan_bias) {
    const uint32_t experts = wanted ? p.router.experts : 0;
    for (uint32_t c = Group<LANES>::lane(); c < experts; c += LANES) row.keys[c] = key_of(selection_value(p, c, row.logit(c), lse, nan_bias));
    sync_warp();
    if (p.group_size != p.router.experts) limit_groups<T, LANES>(p, row, wanted);
}

// Slot `round` takes the row's `round`-th best.
template <int LANES>
MOERL_DEVICE void fill_slot(uint32_t round, uint64_t best, uint32_t (&ids)[Group<LANES>::SLOTS], uint32_t (&chosen)[Group<LANES>::SLOTS]) {
    MOERL_UNROLL
    for (int s = 0; s < Group<LANES>::SLOTS; s++) {
        if (Group<LANES>::slot(s) != round) continue;
        ids[s] = id_of(best);
        chosen[s] = static_cast<uint32_t>(best >> 32);
    }
}

// The k best, best first, to the slots of `ids`, and their keys to `chosen`. Strikes them out of `keys`. Called by whole warps.
template <class T, int LANES, int VALUES>
MOERL_DEVICE void take_best(uint32_t top_k, uint32_t (&keys)[VALUES], uint32_t (&ids)[Group<LANES>::SLOTS],
                            uint32_t (&chosen)[Group<LANES>::SLOTS]) {
    using Row = Columns<T, LANES, VALUES>;
    for (uint32_t round = 0; round < top_k; round++) {
        uint32_t key = keys[0], id = Row::column(0);
        MOERL_UNROLL
        for (int v = 1; v < VALUES; v++) {
            // Columns increase with v: an equal one that comes later is worse.
            if (keys[v] > key) {
                key = keys[v];
                id = Row::column(v);
            }
        }
        const uint64_t best = best_of_row<LANES>(key, id);
        MOERL_UNROLL
        for (int v = 0; v < VALUES; v++) keys[v] = Row::column(v) == id_of(best) ? TAKEN_KEY : keys[v];
        fill_slot<LANES>(round, best, ids, chosen);
    }
}

// The same from the staged keys, for rows that registers do not hold.
template <class T, int LANES>
MOERL_DEVICE void take_best_staged(uint32_t top_k, const Staged<T, LANES>& row, uint32_t experts, uint32_t (&ids)[Group<LANES>::SLOTS],
                                   uint32_t (&chosen)[Group<LANES>::SLOTS]) {
    for (uint32_t round = 0; round < top_k; round++) {
        uint32_t key = TAKEN_KEY, id = 0;
        for (uint32_t c = Group<LANES>::lane(); c < experts; c += LANES) {
            if (row.keys[c] > key) {
                key = row.keys[c];
                id = c;
            }
        }
        const uint64_t best = best_of_row<LANES>(key, id);
        // A column belongs to one lane: nobody else reads what is struck out here.
        if (experts != 0 && id_of(best) % LANES == Group<LANES>::lane()) row.keys[id_of(best)] = TAKEN_KEY;
        fill_slot<LANES>(round, best, ids, chosen);
    }
}
