// A sum over the whole grid in a fixed tree, without a second launch.
//
// A tally is 64 numbers, two a lane: the diagnostics by their place, the loss in the last. Leaves are units or tiles of 1024 segments, by
// index; every 32 neighbours make a node, added up in ascending order by whichever leaf arrives last. The last one finds itself by a
// ticket, and sets the ticket back: the workspace is zero before a call and after it.
//
// What is a sum over segments and not an integer goes by tiles of them, so that no bit depends on how units were made: the loss of variants in
// which a segment decides, and the sum of s. In a tile, 32 neighbours are a group, folded by the lanes of a warp by halves 16, 8, 4, 2, 1;
// then the tile's 32 groups likewise.
#pragma once

#include "../warp.cuh"

constexpr uint32_t LOSS = MOERL_TALLY - 1;
constexpr uint32_t PLACES = MOERL_MAX_NEGATIVE_WEIGHT + 1;
static_assert(MOERL_TALLY == 2 * WARP && PLACES < LOSS, "two numbers a lane");

MOERL_DEVICE bool is_maximum(uint32_t place) { return place >= MOERL_MAX_RATIO && place < PLACES; }

// Which numbers of a tally, a bit each.
template <uint32_t PLACE> constexpr uint64_t BIT = uint64_t{1} << PLACE;
constexpr uint64_t DIAGNOSTICS = BIT<PLACES> - 1;
constexpr uint64_t BY_SEGMENTS = BIT<LOSS> | BIT<MOERL_SUM_SEQUENCE_RATIO>;

MOERL_DEVICE bool has_place(uint64_t places, uint32_t place) { return (places >> place & 1u) != 0; }

// All that are asked for.
MOERL_DEVICE uint64_t all_places(const MoerlObjective& p) { return (p.diagnostics != nullptr ? DIAGNOSTICS : 0u) | BIT<LOSS>; }

// What a number begins with.
MOERL_DEVICE double nothing(uint32_t place) { return is_maximum(place) ? -static_cast<double>(f32_of(0x7f800000u)) : 0.0; }

MOERL_DEVICE double join(uint32_t place, double a, double b) {
    if (is_maximum(place)) return b > a ? b : a;
    return a + b;
}

// A lane's two numbers, of the places lane and lane + 32.
struct Tally {
    double low, high;
};

MOERL_DEVICE Tally empty_tally() { return {nothing(lane_index()), nothing(lane_index() + WARP)}; }

// Puts `value`, the same in every lane, into its place of the warp's tally.
MOERL_DEVICE void place(Tally& mine, uint32_t where, double value) {
    if (lane_index() == where % WARP) (where < WARP ? mine.low : mine.high) = value;
}

MOERL_DEVICE Tally join(const Tally& a, const Tally& b) { return {join(lane_index(), a.low, b.low), join(lane_index() + WARP, a.high, b.high)}; }

MOERL_DEVICE void publish_place(const MoerlObjective& p, uint32_t place, double value, bool replace) {
    double* const to = p.diagnostics + place;
    store(to, replace ? value : join(place, load(to), value));
}

// The root, added to what there is; `replace_diagnostics`: instead of it. The loss is one of the diagnostics.
MOERL_DEVICE void publish(const MoerlObjective& p, const Tally& mine, uint64_t places, bool replace_diagnostics) {
    const uint32_t lane = lane_index(), high = lane + WARP;
    const double loss = shuffle(mine.high, LOSS - WARP);
    const bool with_loss = has_place(places, LOSS), is_loss = with_loss && lane == MOERL_SUM_LOSS;
    if (with_loss && high == LOSS && p.loss != nullptr) store(p.loss, p.opens_totals ? loss : load(p.loss) + loss);
    if (p.diagnostics == nullptr) return;
    if (is_loss || has_place(places, lane)) publish_place(p, lane, is_loss ? loss : mine.low, replace_diagnostics);
    if (high < PLACES && has_place(places, high)) publish_place(p, high, mine.high, replace_diagnostics);
}

constexpr uint32_t LOADS_AT_ONCE = 8;

// load(0) + ... + load(count - 1) by `add`, in ascending order, with several loads in flight.
template <class Load, class Add> MOERL_DEVICE double fold_ascending(double start, uint64_t count, Load load, Add add) {
    for (uint64_t first = 0; first < count; first += LOADS_AT_ONCE) {
        double loaded[LOADS_AT_ONCE];
        MOERL_UNROLL
        for (uint32_t i = 0; i < LOADS_AT_ONCE; i++) loaded[i] = first + i < count ? load(first + i) : 0.0;
        MOERL_UNROLL
        for (uint32_t i = 0; i < LOADS_AT_ONCE; i++) {
            if (first + i < count) start = add(start, loaded[i]);
        }
    }
    return start;
}

// Adds to a ticket for the warp; what it holds then, in every lane. Set back where that is complete. What those who arrived earlier stored before
// is then visible. One lane's fences speak for the warp, which has met before the one and meets after the other.
template <class Ticket, class IsComplete> MOERL_DEVICE Ticket arrive(Ticket* ticket, Ticket more, IsComplete is_complete) {
    sync_warp();
    Ticket after = 0;
    if (lane_index() == 0) {
        fence_device();
        after = atomic_add(ticket, more) + more;
        if (is_complete(after)) {
            atomic_min(ticket, Ticket{0});
            fence_device();
        }
    }
    sync_warp();  // a shuffle alone orders no memory
    return shuffle(after, 0);
}

// True in every lane of the warp that is the last of all `members` to arrive at this ticket.
MOERL_DEVICE bool is_last(uint32_t* ticket, uint32_t members) {
    return arrive(ticket, uint32_t{1}, [&](uint32_t after) { return after == members; }) == members;
}

// As above, of members that arrive several at once and each leave marks, of which `marks` then holds all.
MOERL_DEVICE bool is_last(uint64_t* ticket, uint32_t members, uint32_t arrivals, uint32_t& marks) {
    const uint64_t more = static_cast<uint64_t>(marks) << 32 | arrivals;
    const uint64_t after = arrive(ticket, more, [&](uint64_t it) { return static_cast<uint32_t>(it) == members; });
    marks = static_cast<uint32_t>(after >> 32);
    return static_cast<uint32_t>(after) == members;
}

// A tree's tallies, leaves first, and a ticket a node.
struct Tree {
    double* tallies;
    uint32_t* tickets;
};

MOERL_DEVICE Tree tree_of_units(const MoerlObjective& p) { return {p.tallies, p.tickets}; }
MOERL_DEVICE Tree tree_of_segments(const MoerlObjective& p) { return {p.segment_tallies, p.segment_tickets}; }

// Adds `places` of leaf `index` of `count`. True in the warp that reached the root, with the total in `mine`.
MOERL_DEVICE bool climb(const Tree& tree, Tally& mine, uint64_t index, uint64_t count, uint64_t places) {
    const uint32_t lane = lane_index(), high = lane + WARP;
    const bool has_low = has_place(places, lane), has_high = has_place(places, high);
    double* level = tree.tallies;
    uint32_t* tickets = tree.tickets;
    while (count > 1) {
        double* const leaf = level + index * MOERL_TALLY;
        if (has_low) store(leaf + lane, mine.low);
        if (has_high) store(leaf + high, mine.high);
        const uint64_t node = index / WARP;
        const uint64_t members = count - node * WARP < WARP ? count - node * WARP : WARP;
        if (!is_last(tickets + node, static_cast<uint32_t>(members))) return false;
        const double* const first = level + node * WARP * MOERL_TALLY;
        const auto total = [&](uint32_t place) {
            return fold_ascending(nothing(place), members, [&](uint64_t member) { return load(first + member * MOERL_TALLY + place); }, [&](double a, double b) { return join(place, a, b); });
        };
        mine = empty_tally();
        if (has_low) mine.low = total(lane);
        if (has_high) mine.high = total(high);
        const uint64_t nodes = (count + WARP - 1) / WARP;
        level += count * MOERL_TALLY;
        tickets += nodes;
        index = node;
        count = nodes;
    }
    return true;
}
