// A sum over the whole grid in a fixed tree, without a second launch.
//
// A tally is 32 numbers, one a lane: the diagnostics by their place, the loss in lane 31. Leaves are units (or tiles of segments) by
// index; every 32 neighbours make a node, added up in ascending order by whichever leaf arrives last. The last one finds itself by a
// ticket, and sets the ticket back: the workspace is zero before a call and after it.
#pragma once

#include "../warp.cuh"

constexpr uint32_t LOSS = MOERL_TALLY - 1;

MOERL_DEVICE bool is_maximum(uint32_t place) { return place >= MOERL_MAX_RATIO && place <= MOERL_MAX_NEGATIVE_SEQUENCE_RATIO; }

// What a lane's number begins with.
MOERL_DEVICE double nothing(uint32_t place) { return is_maximum(place) ? -static_cast<double>(f32_of(0x7f800000u)) : 0.0; }

MOERL_DEVICE double join(uint32_t place, double a, double b) {
    if (is_maximum(place)) return b > a ? b : a;
    return a + b;
}

// The root, added to what there is, or replacing it.
MOERL_DEVICE void publish(const MoerlObjective& p, double mine, bool replace_diagnostics) {
    const uint32_t lane = lane_index();
    if (lane == LOSS && p.loss != nullptr) store(p.loss, load(p.loss) + mine);
    if (lane <= MOERL_MAX_NEGATIVE_SEQUENCE_RATIO && p.diagnostics != nullptr) {
        double* const to = p.diagnostics + lane;
        store(to, replace_diagnostics ? mine : join(lane, load(to), mine));
    }
}

// True in every lane of the warp that arrives as the last of `members` at this ticket. What the others stored before is then visible.
MOERL_DEVICE bool is_last(uint32_t* ticket, uint32_t members) {
    fence_device();
    sync_warp();
    uint32_t before = 0;
    if (lane_index() == 0) {
        before = atomic_add(ticket, 1u);
        if (before == members - 1) atomic_min(ticket, 0u);
    }
    const bool last = shuffle(before, 0) == members - 1;
    fence_device();
    return last;
}

// Adds leaf `index` of `count`. True in the warp that reached the root, with the total in `mine`.
MOERL_DEVICE bool climb(const MoerlObjective& p, double& mine, uint64_t index, uint64_t count) {
    const uint32_t lane = lane_index();
    const bool takes_part = lane == LOSS || p.diagnostics != nullptr;
    double* level = p.tallies;
    uint32_t* tickets = p.tickets;
    while (count > 1) {
        if (takes_part) store(level + index * MOERL_TALLY + lane, mine);
        const uint64_t node = index / WARP;
        const uint32_t members = static_cast<uint32_t>(count - node * WARP < WARP ? count - node * WARP : WARP);
        if (!is_last(tickets + node, members)) return false;
        mine = nothing(lane);
        if (takes_part) {
            const double* const first = level + node * WARP * MOERL_TALLY + lane;
            for (uint32_t member = 0; member < members; member++) mine = join(lane, mine, load(first + member * MOERL_TALLY));
        }
        const uint64_t nodes = (count + WARP - 1) / WARP;
        level += count * MOERL_TALLY;
        tickets += nodes;
        index = node;
        count = nodes;
    }
    return true;
}

// Puts `value`, the same in every lane, into its place of the warp's tally.
MOERL_DEVICE void place(double& mine, uint32_t where, double value) { mine = lane_index() == where ? value : mine; }
