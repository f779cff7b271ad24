// A panel: up to 2048 columns of a row, held by one warp in registers, summed in a tree that is a function of the column alone.
//
// The tree. Octets of 8 columns from the panel's start; octet o belongs to lane o mod 32; a lane sums position i of its octets in ascending
// order (a CHAIN: the columns that are equal mod 256, eight chains a lane), then folds its chains by halves 4, 2, 1, and the lanes
// fold by halves 16, 8, 4, 2, 1.
//
// The data. Aligned 16-byte packs are loaded wherever they begin, so in a row whose address is `head` columns short of a boundary the pack of a
// lane holds columns that belong to the chains of two lanes. Ownership rotates instead of data: a lane accumulates whichever chains
// its packs hold, and one exchange after the last pack hands them to their owners. Folding is the same for rotated accumulators.
// An f32 pack holds half an octet: a lane meets two sets of four chains, from its even and its odd packs.
//
//   columns        |head| pack 0 | pack 1 | ... | pack full-1 |rest|        head and rest < one pack
//   chains of lane  31    0        1              (full-1)%32  full%32
//   loaded by lane  0..   0        1              (full-1)%32  PACK..         the edges: one column a lane
//
// The chains of the head's columns are those that lane 31 meets last, so they begin with the head. Each edge column's exponential is
// computed by the lane that loaded it, and its terms go to the chain by shuffles.
#pragma once

#include "row.cuh"

template <class T> constexpr int TURNS = PANEL / (PACK<T> * WARP);  // packs of a lane
template <class T> constexpr int SETS = 8 / PACK<T>;                // sets of chains that a lane meets

// -inf, as often as it goes into a word: a column that is not there.
template <class T> constexpr uint32_t NOTHING = 0xff800000u;
template <> constexpr uint32_t NOTHING<bf16> = 0xff80ff80u;
template <> constexpr uint32_t NOTHING<f16> = 0xfc00fc00u;

template <class T> MOERL_DEVICE Words4 no_columns() { return {{NOTHING<T>, NOTHING<T>, NOTHING<T>, NOTHING<T>}}; }

// How columns lie on the 16-byte boundaries.
struct Cut {
    int head;  // columns before the first boundary
    int full;  // whole packs from there on
    int rest;  // columns behind them
};

template <class T> MOERL_DEVICE int columns_to_boundary(const T* p) {
    return static_cast<int>((16u - static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) & 15u)) & 15u) / static_cast<int>(sizeof(T));
}

// `columns` columns of which `head` lie before the first boundary.
template <class T> MOERL_DEVICE Cut cut(int head, int columns) {
    const int behind = columns > head ? columns - head : 0;
    return {head, behind / PACK<T>, behind % PACK<T>};
}

template <class T> struct Panel {
    Words4 pack[TURNS<T>];
    float edge;         // the lane's column of the head or the rest, if it has one
    int head, columns;  // see Cut, which is cheaper to form again than to keep

    MOERL_DEVICE bool has_edges() const { return head != 0 || columns != PANEL; }
    MOERL_DEVICE Cut cut() const { return ::cut<T>(head, columns); }
};

// Issues the loads of a panel. Nothing waits for them here.
template <class T> MOERL_DEVICE void fetch(Panel<T>& held, const T* panel, int columns) {
    const int lane = static_cast<int>(lane_index());
    held.head = columns_to_boundary(panel);
    held.columns = columns;
    held.edge = -INFINITE;
    const T* const mine = panel + held.head + lane * PACK<T>;  // the turns are constant distances from here
    if (!held.has_edges()) {
        MOERL_UNROLL
        for (int turn = 0; turn < TURNS<T>; turn++) held.pack[turn] = load16_stream(mine + turn * (WARP * PACK<T>));
        return;
    }
    const Cut c = held.cut();
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) {
        held.pack[turn] = no_columns<T>();
        if (turn * WARP + lane < c.full) held.pack[turn] = load16_stream(mine + turn * (WARP * PACK<T>));
    }
    const int behind = lane - PACK<T>;
    if (lane < c.head ? lane < columns : behind >= 0 && behind < c.rest) {
        held.edge = to_f32(load_stream(panel + (lane < c.head ? lane : c.head + c.full * PACK<T> + behind)));
    }
}

// ---- the maximum ----------------------------------------------------------------------------------------------------------

// A running maximum: of pairs in one word for the 16-bit types.
template <class T> MOERL_DEVICE uint32_t max_words(uint32_t m, Words4 v) {
    MOERL_UNROLL
    for (int w = 0; w < 4; w++) {
        if constexpr (sizeof(T) == 4) m = bits_of(max_nan(f32_of(m), f32_of(v.w[w])));
        else m = max_nan_x2<T>(m, v.w[w]);
    }
    return m;
}

// M of the panel, in every lane; NaN if a column is; never -0.
template <class T> MOERL_DEVICE float maximum(const Panel<T>& held) {
    uint32_t m = NOTHING<T>;
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) m = max_words<T>(m, held.pack[turn]);
    float mine;
    if constexpr (sizeof(T) == 4) mine = f32_of(m);
    else mine = max_nan(to_f32(T{static_cast<uint16_t>(m & 0xffffu)}), to_f32(T{static_cast<uint16_t>(m >> 16)}));
    return warp_max_nan(max_nan(mine, held.edge)) + 0.0f;
}

// ---- the sums -------------------------------------------------------------------------------------------------------------

// The chains that a lane accumulates: sums of e, of e * t and, where asked for, of e * e.
template <bool SQUARES> struct Chains {
    float e[8], et[8], ee[8];
};

// Adds a pack to the chains of its set.
template <class T, bool SQUARES> MOERL_DEVICE void add_pack(Chains<SQUARES>& chains, Words4 words, int set, float max, float scale) {
    float x[PACK<T>];
    unpack<T>(words, x);
    MOERL_UNROLL
    for (int i = 0; i < PACK<T>; i++) {
        const int chain = set * PACK<T> + i;
        const float t = exponent_of(x[i], max, scale);
        const float e = exp2_approx(t);
        chains.e[chain] += e;
        chains.et[chain] = fmaf(e, t, chains.et[chain]);
        if constexpr (SQUARES) chains.ee[chain] = fmaf(e, e, chains.ee[chain]);
    }
}

// An edge column's terms, in the lane that loaded it.
struct Edge {
    float t, e;
};

// The chains of lane 31's last set begin with the head.
template <class T, bool SQUARES> MOERL_DEVICE void begin_with_head(Chains<SQUARES>& chains, Edge edge, int head) {
    const float et = fmaf(edge.e, edge.t, 0.0f), ee = SQUARES ? fmaf(edge.e, edge.e, 0.0f) : 0.0f;
    MOERL_UNROLL
    for (int place = 1; place < PACK<T>; place++) {
        const int chain = (SETS<T> - 1) * PACK<T> + place, from = place - (PACK<T> - head);
        const bool mine = lane_index() == WARP - 1 && from >= 0;
        const float e = shuffle(edge.e, from & 31), t = shuffle(et, from & 31);
        chains.e[chain] = mine ? e : 0.0f;
        chains.et[chain] = mine ? t : 0.0f;
        if constexpr (SQUARES) {
            const float square = shuffle(ee, from & 31);
            chains.ee[chain] = mine ? square : 0.0f;
        }
    }
}

// The chains of one set of the lane behind the last whole pack end with the rest.
template <class T, bool SQUARES> MOERL_DEVICE void end_with_rest(Chains<SQUARES>& chains, Edge edge, Cut c, int set) {
    MOERL_UNROLL
    for (int place = 0; place < PACK<T> - 1; place++) {
        const int chain = set * PACK<T> + place;
        const bool mine = static_cast<int>(lane_index()) == c.full % WARP && place < c.rest;
        const float t = shuffle(edge.t, PACK<T> + place), found = shuffle(edge.e, PACK<T> + place);
        const float e = mine ? found : 0.0f;
        chains.e[chain] += e;
        chains.et[chain] = fmaf(e, t, chains.et[chain]);
        if constexpr (SQUARES) chains.ee[chain] = fmaf(e, e, chains.ee[chain]);
    }
}

template <class T, bool SQUARES> MOERL_DEVICE Chains<SQUARES> accumulate(const Panel<T>& held, float max, float scale) {
    Chains<SQUARES> chains;
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) chains.e[i] = chains.et[i] = chains.ee[i] = 0.0f;
    const float t = exponent_of(held.edge, max, scale);
    const Edge edge = {t, exp2_approx(t)};
    if (held.head != 0) begin_with_head<T>(chains, edge, held.head);
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) add_pack<T>(chains, held.pack[turn], turn % SETS<T>, max, scale);
    const Cut c = held.cut();
    if (c.rest != 0) {
        if (c.full / WARP % SETS<T> == 0) end_with_rest<T>(chains, edge, c, 0);
        else end_with_rest<T>(chains, edge, c, SETS<T> - 1);
    }
    return chains;
}

// Hands the chains that a misaligned lane accumulated for its right neighbour to it.
template <class T> MOERL_DEVICE void hand_over(float (&a)[8], int head) {
    const int left = static_cast<int>(lane_index() + WARP - 1) % WARP;
    const bool first = lane_index() == 0;  // its left neighbour is lane 31, which met its chains one set later
    MOERL_UNROLL
    for (int i = 1; i < PACK<T>; i++) {
        const bool foreign = i >= PACK<T> - head;
        if constexpr (SETS<T> == 1) {
            const float other = shuffle(a[i], left);
            a[i] = foreign ? other : a[i];
        } else {
            const float even = shuffle(a[i], left), odd = shuffle(a[PACK<T> + i], left);
            a[i] = foreign ? (first ? odd : even) : a[i];
            a[PACK<T> + i] = foreign ? (first ? even : odd) : a[PACK<T> + i];
        }
    }
}

// The panel's sum in every lane.
template <class T> MOERL_DEVICE float fold(float (&a)[8], int head) {
    if (head != 0) hand_over<T>(a, head);
    if constexpr (SETS<T> == 1) {
        float b[4];
        MOERL_UNROLL
        for (int i = 0; i < 4; i++) b[i] = a[i] + a[i + 4];
        return warp_sum((b[0] + b[2]) + (b[1] + b[3]));
    } else {
        // Lanes 2m and 2m+1 hold the two halves of the octets of lane m (even set) and lane 16+m (odd set) of the tree.
        const bool odd = (lane_index() & 1u) != 0;
        float b[4];
        MOERL_UNROLL
        for (int i = 0; i < 4; i++) {
            const float other = shuffle_xor(odd ? a[i] : a[4 + i], 1);
            b[i] = (odd ? a[4 + i] : a[i]) + other;
        }
        float sum = (b[0] + b[2]) + (b[1] + b[3]);
        sum += shuffle_xor(sum, 1);  // lanes m and 16+m of the tree
        MOERL_UNROLL
        for (int lanes = WARP / 2; lanes > 1; lanes /= 2) sum += shuffle_xor(sum, lanes);
        return sum;
    }
}

// The panel's record, in every lane; sum_sq in the label's place.
template <class T, bool SQUARES> MOERL_DEVICE MoerlPartial reduce(const Panel<T>& held, float scale) {
    const float max = maximum(held);
    Chains<SQUARES> chains = accumulate<T, SQUARES>(held, max, scale);
    const int head = held.head;
    MoerlPartial record = {max, fold<T>(chains.e, head), fold<T>(chains.et, head), 0.0f};
    if constexpr (SQUARES) record.label = fold<T>(chains.ee, head);
    return record;
}

// The logit of a column of the panel, in every lane. Cold: once a row.
template <class T> MOERL_DEVICE float logit_at(const Panel<T>& held, int column) {
    const Cut c = held.cut();
    const int at = column - c.head, slot = at / PACK<T>, place = at % PACK<T>;
    if (at < 0) return shuffle(held.edge, column);
    if (slot == c.full) return shuffle(held.edge, PACK<T> + place);
    // By masks: an index that is not known to the compiler would put the packs into memory.
    Words4 words = {};
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) {
        const uint32_t mask = slot / WARP == turn ? ~0u : 0u;
        MOERL_UNROLL
        for (int w = 0; w < 4; w++) words.w[w] |= held.pack[turn].w[w] & mask;
    }
    float x[PACK<T>];
    unpack<T>(words, x);
    float found = x[0];
    MOERL_UNROLL
    for (int i = 1; i < PACK<T>; i++) found = i == place ? x[i] : found;
    return shuffle(found, slot % WARP);
}
