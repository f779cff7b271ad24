// The slots of a row: the k chosen experts, dealt to the LANES lanes that share the row. Slot j is the lane's `j / LANES`-th, in
// lane `j % LANES` of the group. Collectives are called by the whole warp; each answers for the caller's group.
#pragma once

#include "../block.cuh"
#include "../pack.cuh"

constexpr int MAX_SLOTS = 32;

template <int OF> struct Group {
    static constexpr int WIDTH = 1;
    static constexpr int LANES = OF;
    static constexpr int SLOTS = MAX_SLOTS / LANES;  // per lane

    static MOERL_DEVICE uint32_t lane() { return lane_index() % LANES; }
    static MOERL_DEVICE uint32_t slot_of(uint32_t lane, int s) { return static_cast<uint32_t>(s * LANES) + lane; }
    static MOERL_DEVICE uint32_t slot(int s) { return slot_of(lane(), s); }
    // Lanes from this one on hold no slots.
    static MOERL_DEVICE uint32_t lanes_with_slots(uint32_t top_k) { return top_k < LANES ? top_k : LANES; }

    // The group's bits of a ballot, in the low LANES bits.
    static MOERL_DEVICE uint32_t own(uint32_t warp_bits) {
        if constexpr (LANES == WARP) return warp_bits;
        else return warp_bits >> (lane_index() / LANES * LANES) & ((1u << LANES) - 1u);
    }
    static MOERL_DEVICE bool any_of(bool p) { return own(ballot(p, FULL_WARP)) != 0; }
    static MOERL_DEVICE uint32_t count_of(bool p) { return static_cast<uint32_t>(popcount(own(ballot(p, FULL_WARP)))); }

    // From lane `source` of the group.
    template <class V> static MOERL_DEVICE V from(V v, uint32_t source) {
        return shuffle(v, static_cast<int>(lane_index() / LANES * LANES + source));
    }

    // The sum over 32 slots by halves of neighbours: (0+1), (2+3), … then pairs of those, and so on. The tree does not know LANES, and slots
    // from k on must bring +0. So a row's bits are the same however many lanes share it.
    static MOERL_DEVICE float sum(const float (&x)[SLOTS], uint32_t top_k) {
        float part[SLOTS];
        MOERL_UNROLL
        for (int s = 0; s < SLOTS; s++) {
            part[s] = 0.0f;
            if (static_cast<uint32_t>(s * LANES) >= top_k) continue;
            part[s] = x[s];
            MOERL_UNROLL
            for (int lanes = 1; lanes < LANES; lanes *= 2) part[s] += shuffle_xor(part[s], lanes);
        }
        MOERL_UNROLL
        for (int step = 1; step < SLOTS; step *= 2) {
            MOERL_UNROLL
            for (int s = 0; s < SLOTS; s += 2 * step) part[s] += part[s + step];
        }
        return part[0];
    }

    // The largest, NaN if any is; slots from k on must bring -inf.
    static MOERL_DEVICE float max(const float (&x)[SLOTS], uint32_t top_k) {
        float most = -INFINITY;
        MOERL_UNROLL
        for (int s = 0; s < SLOTS; s++) {
            if (static_cast<uint32_t>(s * LANES) < top_k) most = max_nan(most, x[s]);
        }
        MOERL_UNROLL
        for (int lanes = 1; lanes < LANES; lanes *= 2) most = max_nan(most, shuffle_xor(most, lanes));
        return most;
    }
};

// The slots of a row dealt in runs: lane l of LANES has the slots from l * SLOTS on. For kernels with few lanes a row and few slots, MOST in all.
// Sums have the tree of Group::sum: what is left out there are zeros.
template <int OF, int MOST> struct Runs {
    // Slots that are read and written at once where they may be: with up to 8, k is most often a multiple of 4, and else of 2.
    static constexpr int WIDTH = OF == 2 && MOST <= 8 ? 4 : 2;
    static constexpr int LANES = OF;
    static constexpr int SLOTS = MOST / LANES;  // per lane

    static MOERL_DEVICE uint32_t lane() { return lane_index() % LANES; }
    static MOERL_DEVICE uint32_t slot_of(uint32_t lane, int s) { return lane * SLOTS + static_cast<uint32_t>(s); }
    static MOERL_DEVICE uint32_t slot(int s) { return slot_of(lane(), s); }
    static MOERL_DEVICE uint32_t lanes_with_slots(uint32_t) { return LANES; }
    static MOERL_DEVICE bool any_of(bool p) {
        return (ballot(p, FULL_WARP) >> (lane_index() / LANES * LANES) & ((1u << LANES) - 1u)) != 0;
    }

    static MOERL_DEVICE float sum(const float (&x)[SLOTS], uint32_t) {
        float part[SLOTS];
        MOERL_UNROLL
        for (int s = 0; s < SLOTS; s++) part[s] = x[s];
        MOERL_UNROLL
        for (int step = 1; step < SLOTS; step *= 2) {
            MOERL_UNROLL
            for (int s = 0; s < SLOTS; s += 2 * step) part[s] += part[s + step];
        }
        MOERL_UNROLL
        for (int lanes = 1; lanes < LANES; lanes *= 2) part[0] += shuffle_xor(part[0], lanes);
        return part[0];
    }

    // Slots from k on must bring -inf.
    static MOERL_DEVICE float max(const float (&x)[SLOTS], uint32_t) {
        float most = x[0];
        MOERL_UNROLL
        for (int s = 1; s < SLOTS; s++) most = max_nan(most, x[s]);
        MOERL_UNROLL
        for (int lanes = 1; lanes < LANES; lanes *= 2) most = max_nan(most, shuffle_xor(most, lanes));
        return most;
    }
};
