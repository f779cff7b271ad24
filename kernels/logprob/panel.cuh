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
//   columns   |head| pack 0 | pack 1 | ... | pack full-1 |tail|        head and tail < one pack, loaded by narrower accesses
//   lane       31    0        1              (full-1)%32  full%32
//
// The chains of the head's columns are those that lane 31 meets last, so the head is added first and by lane 31.
#pragma once

#include "row.cuh"

template <class T> constexpr int TURNS = PANEL / (PACK<T> * WARP);  // packs of a lane
template <class T> constexpr int SETS = 8 / PACK<T>;                // sets of chains that a lane meets

// -inf, as often as it goes into a word: a column that is not there.
template <class T> constexpr uint32_t NOTHING = 0xff800000u;
template <> constexpr uint32_t NOTHING<bf16> = 0xff80ff80u;
template <> constexpr uint32_t NOTHING<f16> = 0xfc00fc00u;

template <class T> MOERL_DEVICE Words4 no_columns() { return {{NOTHING<T>, NOTHING<T>, NOTHING<T>, NOTHING<T>}}; }

// How a panel lies on the 16-byte boundaries.
struct Cut {
    int head;  // columns before the first boundary
    int full;  // whole packs from there on
    int rest;  // columns behind them
};

template <class T> MOERL_DEVICE int columns_to_boundary(const T* p) {
    return static_cast<int>((16u - static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) & 15u)) & 15u) / static_cast<int>(sizeof(T));
}

template <class T> MOERL_DEVICE Cut cut(const T* panel, int columns) {
    const int head = columns_to_boundary(panel);
    const int behind = columns > head ? columns - head : 0;
    return {head, behind / PACK<T>, behind % PACK<T>};
}

// The elements [first, last) of the 16 bytes at `slot`, nothing in the other places.
template <class T> MOERL_DEVICE Words4 load_part(const T* slot, int first, int last) {
    Words4 r = no_columns<T>();
    MOERL_UNROLL
    for (int w = 0; w < 4; w++) {
        if constexpr (sizeof(T) == 4) {
            if (w >= first && w < last) r.w[w] = load_stream(reinterpret_cast<const uint32_t*>(slot) + w);
        } else {
            const bool low = 2 * w >= first && 2 * w < last, high = 2 * w + 1 >= first && 2 * w + 1 < last;
            const uint16_t* const halves = reinterpret_cast<const uint16_t*>(slot) + 2 * w;
            if (low && high) r.w[w] = load_stream(reinterpret_cast<const uint32_t*>(halves));
            else if (low) r.w[w] = load_stream(halves) | (NOTHING<T> & 0xffff0000u);
            else if (high) r.w[w] = static_cast<uint32_t>(load_stream(halves + 1)) << 16 | (NOTHING<T> & 0xffffu);
        }
    }
    return r;
}

template <class T> struct Panel {
    Words4 pack[TURNS<T>];
    Words4 head, tail;  // only where the cut has edges
    Cut cut;
    bool has_edges;     // anything but 2048 aligned columns
};

// Issues the loads of a panel. Nothing waits for them here.
template <class T> MOERL_DEVICE void fetch(Panel<T>& held, const T* panel, int columns) {
    const int lane = static_cast<int>(lane_index());
    held.cut = cut(panel, columns);
    held.has_edges = held.cut.full != PANEL / PACK<T>;
    const T* const body = panel + held.cut.head;
    if (!held.has_edges) {
        MOERL_UNROLL
        for (int turn = 0; turn < TURNS<T>; turn++) held.pack[turn] = load16_stream(body + (turn * WARP + lane) * PACK<T>);
        return;
    }
    const Cut c = held.cut;
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) {
        const int slot = turn * WARP + lane;
        held.pack[turn] = no_columns<T>();
        if (slot < c.full) held.pack[turn] = load16_stream(body + slot * PACK<T>);
    }
    held.head = no_columns<T>();
    held.tail = no_columns<T>();
    const int before = PACK<T> - c.head;  // places of the head's 16 bytes that lie before the panel
    if (lane == WARP - 1 && c.head != 0) {
        held.head = load_part(body - PACK<T>, before, columns < c.head ? before + columns : PACK<T>);
    }
    if (lane == c.full % WARP && c.rest != 0) held.tail = load_part(body + c.full * PACK<T>, 0, c.rest);
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
    if (held.has_edges) m = max_words<T>(max_words<T>(m, held.head), held.tail);
    float mine;
    if constexpr (sizeof(T) == 4) mine = f32_of(m);
    else mine = max_nan(to_f32(T{static_cast<uint16_t>(m & 0xffffu)}), to_f32(T{static_cast<uint16_t>(m >> 16)}));
    return warp_max_nan(mine) + 0.0f;
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

template <class T, bool SQUARES> MOERL_DEVICE Chains<SQUARES> accumulate(const Panel<T>& held, float max, float scale) {
    Chains<SQUARES> chains;
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) chains.e[i] = chains.et[i] = chains.ee[i] = 0.0f;
    if (!held.has_edges) {
        MOERL_UNROLL
        for (int turn = 0; turn < TURNS<T>; turn++) add_pack<T>(chains, held.pack[turn], turn % SETS<T>, max, scale);
        return chains;
    }
    if (held.cut.head != 0) add_pack<T>(chains, held.head, SETS<T> - 1, max, scale);
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) {
        if (turn * WARP < held.cut.full) add_pack<T>(chains, held.pack[turn], turn % SETS<T>, max, scale);
    }
    if (held.cut.rest != 0) {
        if (held.cut.full / WARP % SETS<T> == 0) add_pack<T>(chains, held.tail, 0, max, scale);
        else add_pack<T>(chains, held.tail, SETS<T> - 1, max, scale);
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
    const int head = held.cut.head;
    MoerlPartial record = {max, fold<T>(chains.e, head), fold<T>(chains.et, head), 0.0f};
    if constexpr (SQUARES) record.label = fold<T>(chains.ee, head);
    return record;
}

// Word by word: to choose between two structures would put both into memory.
MOERL_DEVICE void select(Words4& to, bool chosen, const Words4& from) {
    MOERL_UNROLL
    for (int w = 0; w < 4; w++) to.w[w] = chosen ? from.w[w] : to.w[w];
}

// The logit of a column of the panel, in every lane. Cold: once a row.
template <class T> MOERL_DEVICE float logit_at(const Panel<T>& held, int column) {
    const Cut c = held.cut;
    const bool in_head = column < c.head;
    const int at = in_head ? 0 : column - c.head;
    const int slot = in_head ? WARP - 1 : at / PACK<T>, place = in_head ? column + PACK<T> - c.head : at % PACK<T>;
    Words4 words = no_columns<T>();
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) select(words, !in_head && slot / WARP == turn && slot < c.full, held.pack[turn]);
    if (held.has_edges) {
        select(words, in_head, held.head);
        select(words, !in_head && slot == c.full, held.tail);
    }
    float x[PACK<T>];
    unpack<T>(words, x);
    float found = x[0];
    MOERL_UNROLL
    for (int i = 1; i < PACK<T>; i++) found = i == place ? x[i] : found;
    return shuffle(found, slot % WARP);
}
