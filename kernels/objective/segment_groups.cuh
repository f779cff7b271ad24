// The sums over segments where several units have a part in them: the loss of variants in which a segment decides and, with diagnostics, the sum of s.
#pragma once

#include "finish.cuh"

// The groups of 32 neighbouring segments that lie in the unit whole.
struct Groups {
    uint64_t first, end;

    MOERL_DEVICE bool has(uint64_t group) const { return first <= group && group < end; }
    // Those of a tile, a bit each.
    MOERL_DEVICE uint32_t marks(uint64_t tile) const {
        const uint64_t begin = tile * WARP, low = first > begin ? first : begin, high = end < begin + WARP ? end : begin + WARP;
        return low < high ? ((1u << (high - low)) - 1u) << (low - begin) : 0u;
    }
};
static_assert(MOERL_TILE == WARP * WARP && MOERL_UNIT_SEGMENTS / WARP < 32, "a bit for every group of a tile, and a lane for every one of a unit");

MOERL_DEVICE Groups groups_of(const MoerlObjective& p, const MoerlUnit& unit) {
    const uint64_t begin = unit.segment, end = begin + unit.segments;
    return {(begin + WARP - 1) / WARP, end == p.segment_count ? (end + WARP - 1) / WARP : end / WARP};
}

// What a segment adds to the sums over segments: its loss and, with diagnostics, s. Sums of groups on their way to the workspace stand a lane each.
template <bool TALLY> struct Shares;
template <> struct Shares<false> {
    double loss;
};
template <> struct Shares<true> {
    double loss, ratio;
};

template <bool TALLY> MOERL_DEVICE Shares<TALLY> no_shares() { return {}; }

template <bool TALLY> MOERL_DEVICE Shares<TALLY> fold_lanes(const Shares<TALLY>& shares) {
    Shares<TALLY> r = shares;
    r.loss = warp_sum(shares.loss);
    if constexpr (TALLY) r.ratio = warp_sum(shares.ratio);
    return r;
}

// A segment's shares go where the three phases keep D, or C where that alone decides, and n; null: no segment decides anything.
MOERL_DEVICE double* own_losses(const MoerlObjective& p) { return p.log_ratio != nullptr ? p.log_ratio : p.folded; }

template <bool TALLY> MOERL_DEVICE void store_own(const MoerlObjective& p, uint64_t segment, const Shares<TALLY>& shares) {
    store(own_losses(p) + segment, shares.loss);
    if constexpr (TALLY) store(p.count + segment, shares.ratio);
}

template <bool TALLY> MOERL_DEVICE Shares<TALLY> load_own(const MoerlObjective& p, uint64_t segment) {
    Shares<TALLY> r;
    r.loss = load(own_losses(p) + segment);
    if constexpr (TALLY) r.ratio = load(p.count + segment);
    return r;
}

// Where the second sum of every group lies behind the first of all.
MOERL_DEVICE double* group_ratios(const MoerlObjective& p) { return p.group_sums + (p.segment_count + WARP - 1) / WARP; }

template <bool TALLY> MOERL_DEVICE void store_group(const MoerlObjective& p, uint64_t group, const Shares<TALLY>& shares) {
    store(p.group_sums + group, shares.loss);
    if constexpr (TALLY) store(group_ratios(p) + group, shares.ratio);
}

template <bool TALLY> MOERL_DEVICE Shares<TALLY> load_group(const MoerlObjective& p, uint64_t group) {
    Shares<TALLY> r;
    r.loss = load(p.group_sums + group);
    if constexpr (TALLY) r.ratio = load(group_ratios(p) + group);
    return r;
}

// Hands on what the lanes' segments of one group add: folded, in the lane that counts the group among the unit's whole ones, or a segment each.
template <bool TALLY> MOERL_DEVICE void take_group(const MoerlObjective& p, const Groups& whole, uint64_t group, bool is_segment, const Shares<TALLY>& shares, Shares<TALLY>& folded) {
    if (whole.has(group)) {
        const Shares<TALLY> sum = fold_lanes(shares);
        if (group == whole.first + lane_index()) folded = sum;
    } else if (is_segment) {
        store_own(p, group * WARP + lane_index(), shares);
    }
}

template <bool TALLY> MOERL_DEVICE void store_folded(const MoerlObjective& p, const Groups& whole, const Shares<TALLY>& folded) {
    const uint64_t group = whole.first + lane_index();
    if (whole.has(group)) store_group(p, group, folded);
}

// The tile's sums in every lane, from the groups that `folded` marks and the segments of the others.
template <bool TALLY> MOERL_DEVICE Shares<TALLY> sum_tile(const MoerlObjective& p, uint64_t tile, uint32_t folded) {
    constexpr int GROUPS_AT_ONCE = 4;
    const uint32_t lane = lane_index();
    Shares<TALLY> mine = no_shares<TALLY>();  // of the lane's group
    if ((folded >> lane & 1u) != 0) mine = load_group<TALLY>(p, tile * WARP + lane);
    for (uint32_t first = 0; first < WARP; first += GROUPS_AT_ONCE) {
        if ((~folded >> first & ((1u << GROUPS_AT_ONCE) - 1u)) == 0) continue;
        Shares<TALLY> shares[GROUPS_AT_ONCE];
        MOERL_UNROLL
        for (int i = 0; i < GROUPS_AT_ONCE; i++) {
            const uint32_t group = first + static_cast<uint32_t>(i);
            const uint64_t segment = (tile * WARP + group) * WARP + lane;
            const bool is_own = (folded >> group & 1u) == 0 && segment < p.segment_count;
            shares[i] = is_own ? load_own<TALLY>(p, segment) : no_shares<TALLY>();
        }
        MOERL_UNROLL
        for (int i = 0; i < GROUPS_AT_ONCE; i++) {
            const uint32_t group = first + static_cast<uint32_t>(i);
            const Shares<TALLY> sum = fold_lanes(shares[i]);
            if (lane == group && (folded >> group & 1u) == 0) mine = sum;
        }
    }
    mine.loss = fold_tile(mine.loss);
    if constexpr (TALLY) mine.ratio = fold_tile(mine.ratio);
    return mine;
}

// The sums that join_segments makes.
template <bool TALLY> constexpr uint64_t OF_SEGMENTS = TALLY ? BY_SEGMENTS : BIT<LOSS>;

// The sums over segments, whose shares or groups' sums are in the workspace: the last to arrive of a tile of 1024 adds it up. True in the warp that
// reached the root, with the total in `total`.
template <bool TALLY> MOERL_DEVICE bool join_segments(const MoerlObjective& p, const MoerlUnit& unit, Tally& total) {
    const uint64_t first = unit.segment, end = first + unit.segments, tiles = (p.segment_count + MOERL_TILE - 1) / MOERL_TILE;
    const Groups whole = groups_of(p, unit);
    for (uint64_t tile = first / MOERL_TILE; tile * MOERL_TILE < end; tile++) {
        const uint64_t begin = tile * MOERL_TILE, behind = p.segment_count - begin;
        const uint64_t stop = begin + (behind < MOERL_TILE ? behind : MOERL_TILE);
        const uint64_t arrivals = (end < stop ? end : stop) - (first > begin ? first : begin);
        uint32_t folded = whole.marks(tile);
        if (!is_last(p.arrivals + tile, static_cast<uint32_t>(stop - begin), static_cast<uint32_t>(arrivals), folded)) continue;
        const Shares<TALLY> sums = sum_tile<TALLY>(p, tile, folded);
        total = empty_tally();
        place(total, LOSS, sums.loss);
        if constexpr (TALLY) place(total, MOERL_SUM_SEQUENCE_RATIO, sums.ratio);
        // In the unit's last tile, if at all: the root waits for all of them.
        if (climb(tree_of_segments(p), total, tile, tiles, OF_SEGMENTS<TALLY>)) return true;
    }
    return false;
}
