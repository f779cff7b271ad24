// A tally is 32 numbers, one a lane, which climb the tree of tickets of objective/climb.cuh's kind: one tally of tokens, one of segments.
#pragma once

#include "../objective/climb.cuh"

constexpr uint32_t TALLY_PLACES = MOERL_TALLY_PLACES;
constexpr uint32_t HALF_GLOBALS = MOERL_CORRECTION_GLOBALS / 2;
static_assert(TALLY_PLACES == WARP, "a place a lane");

MOERL_DEVICE bool is_greatest(uint32_t place, bool of_segments) {
    if (of_segments) return place >= MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT && place <= MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF;
    return place == MOERL_CORRECTION_MAX_LOG_RATIO || place == MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO;
}

MOERL_DEVICE double least(uint32_t place, bool of_segments) {
    return is_greatest(place, of_segments) ? -static_cast<double>(f32_of(0x7f800000u)) : 0.0;
}

MOERL_DEVICE double joined(bool greatest, double a, double b) {
    if (greatest) return b > a ? b : a;
    return a + b;
}

MOERL_DEVICE double warp_joined(bool greatest, double x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = joined(greatest, x, shuffle_xor(x, lanes));
    return x;
}

MOERL_DEVICE bool has_totals(const MoerlCorrection& p) { return p.globals != nullptr || p.diagnostics != nullptr; }

// Adds leaf `index` of `count`. True in the warp that reached the root, with the total in `mine`.
MOERL_DEVICE bool climb_totals(const MoerlCorrection& p, bool of_segments, double& mine, uint64_t index, uint64_t count) {
    const uint32_t lane = lane_index();
    const bool greatest = is_greatest(lane, of_segments);
    double* level = p.tallies;
    uint32_t* tickets = p.tickets;
    while (count > 1) {
        store(level + index * TALLY_PLACES + lane, mine);
        const uint64_t node = index / WARP;
        const uint32_t members = static_cast<uint32_t>(count - node * WARP < WARP ? count - node * WARP : WARP);
        if (!is_last(tickets + node, members)) return false;
        mine = least(lane, of_segments);
        const double* const first = level + node * WARP * TALLY_PLACES + lane;
        for (uint32_t member = 0; member < members; member++) mine = joined(greatest, mine, load(first + member * TALLY_PLACES));
        const uint64_t nodes = (count + WARP - 1) / WARP;
        level += count * TALLY_PLACES;
        tickets += nodes;
        index = node;
        count = nodes;
    }
    return true;
}

// The root, added to what there is, or replacing it.
MOERL_DEVICE void publish_totals(const MoerlCorrection& p, bool of_segments, double mine, bool replace) {
    const uint32_t lane = lane_index();
    const bool greatest = is_greatest(lane, of_segments);
    if (p.globals != nullptr && lane < HALF_GLOBALS) {
        double* const to = p.globals + lane + (of_segments ? 0u : HALF_GLOBALS);
        store(to, replace ? mine : load(to) + mine);
    }
    if (p.diagnostics != nullptr) {
        double* const to = p.diagnostics + lane + (of_segments ? TALLY_PLACES : 0u);
        store(to, replace ? mine : joined(greatest, load(to), mine));
    }
}
