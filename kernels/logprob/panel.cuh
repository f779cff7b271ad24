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
//   columns   |head| pack 0 | pack 1 | ... | pack full-1 |rest|        head and rest < one pack
//   lane       31    0        1              (full-1)%32  full%32
//
// The head ends the pack before pack 0, and its chains are those of lane 31 in a misaligned row, so lane 31 takes the packs -1, 31, 63, ...
// there, the first one by narrower loads. The rest is loaded by one lane a column, which also forms its exponential, and its terms come
// last to the chains of the lane behind the last whole pack.
#pragma once

#include "softcap.cuh"

template <class T> constexpr int TURNS = PANEL / (PACK<T> * WARP);  // packs of a lane
template <class T> constexpr int SETS = 8 / PACK<T>;                // sets of chains that a lane meets

// -inf, as often as it goes into a word: a column that is not there.
template <class T> constexpr uint32_t NOTHING = 0xff800000u;
template <> constexpr uint32_t NOTHING<bf16> = 0xff80ff80u;
template <> constexpr uint32_t NOTHING<f16> = 0xfc00fc00u;

template <class T> MOERL_DEVICE Words4 no_columns() { return {{NOTHING<T>, NOTHING<T>, NOTHING<T>, NOTHING<T>}}; }
template <class T> MOERL_DEVICE T no_column() {
    if constexpr (sizeof(T) == 4) return f32_of(NOTHING<T>);
    else return T{static_cast<uint16_t>(NOTHING<T> & 0xffffu)};
}

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

// The last `count` elements before the 16-byte boundary `end`, the first `limit` of them, nothing in the other places. Whole words: where
// `count` is odd, the first element of a 16-bit type is left out.
template <class T> MOERL_DEVICE Words4 load_before(const T* end, int count, int limit) {
    const int first = PACK<T> - count, last = first + limit;
    Words4 r = no_columns<T>();
    MOERL_UNROLL
    for (int w = 0; w < 4; w++) {
        const uint32_t* const word = reinterpret_cast<const uint32_t*>(end) - 4 + w;
        constexpr int PER_WORD = 4 / static_cast<int>(sizeof(T));
        const int place = w * PER_WORD;
        if (place >= first && place + PER_WORD <= last) r.w[w] = load_stream(word);
        if constexpr (PER_WORD == 2) {
            if (place >= first && place + 1 == last) r.w[w] = load_stream(reinterpret_cast<const uint16_t*>(word)) | (NOTHING<T> & 0xffff0000u);
        }
    }
    return r;
}

template <class T> struct Panel {
    Words4 pack[TURNS<T>];
    T edge;    // the lane's column of the rest, if it has one; in lane 31 the first column of an odd head
    int head;  // of the cut; the rest of that is cheaper to form again than to keep

    // The lane's pack of turn 0; WARP more for each further turn.
    MOERL_DEVICE int first_pack(int lane) const { return lane == WARP - 1 && head != 0 ? -1 : lane; }
};

// Issues the loads of a panel. Nothing waits for them here, so that nothing may be computed from what they bring.
template <class T> MOERL_DEVICE void fetch(Panel<T>& held, const T* panel, int columns) {
    const int lane = static_cast<int>(lane_index());
    held.head = columns_to_boundary(panel);
    held.edge = no_column<T>();
    const int first = held.first_pack(lane);
    const T* const body = panel + held.head;
    const T* const mine = body + first * PACK<T>;  // the turns are constant distances from here
    constexpr int TURN = WARP * PACK<T>;
    if (columns == PANEL) {
        if (first >= 0) held.pack[0] = load16_stream(mine);
        else held.pack[0] = load_before(body, held.head, held.head);
        MOERL_UNROLL
        for (int turn = 1; turn < TURNS<T>; turn++) held.pack[turn] = load16_stream(mine + turn * TURN);
        if (held.head == 0) return;
    } else {
        const Cut c = cut<T>(held.head, columns);
        MOERL_UNROLL
        for (int turn = 0; turn < TURNS<T>; turn++) {
            held.pack[turn] = no_columns<T>();
            if (first + turn * WARP >= 0 && first + turn * WARP < c.full) held.pack[turn] = load16_stream(mine + turn * TURN);
        }
        if (first < 0) held.pack[0] = load_before(body, held.head, columns < held.head ? columns : held.head);
    }
    const Cut c = cut<T>(held.head, columns);
    const bool is_odd = sizeof(T) == 2 && first < 0 && held.head % 2 != 0;
    if (lane < c.rest || is_odd) held.edge = load_stream(is_odd ? panel : body + c.full * PACK<T> + lane);
}

// Puts the first column of an odd head where it belongs.
template <class T> MOERL_DEVICE void complete(Panel<T>& held) {
    if constexpr (sizeof(T) == 2) {
        const bool is_odd = lane_index() == WARP - 1 && held.head % 2 != 0;
        // Flips the bits of nothing, which is there, to those of the column.
        const uint32_t flip = is_odd ? static_cast<uint32_t>(held.edge.bits ^ no_column<T>().bits) << 16 : 0;
        MOERL_UNROLL
        for (int w = 0; w < 4; w++) held.pack[0].w[w] ^= w == (PACK<T> - held.head) / 2 ? flip : 0;
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

// The larger half of such a word.
template <class T> MOERL_DEVICE float widest(uint32_t m) {
    if constexpr (sizeof(T) == 4) return f32_of(m);
    else return max_nan(to_f32(T{static_cast<uint16_t>(m & 0xffffu)}), to_f32(T{static_cast<uint16_t>(m >> 16)}));
}

// M of the panel, in every lane; NaN if a column is; never -0.
template <class T> MOERL_DEVICE float maximum(const Panel<T>& held) {
    uint32_t m = NOTHING<T>;
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) m = max_words<T>(m, held.pack[turn]);
    return warp_max_nan(max_nan(widest<T>(m), to_f32(held.edge))) + 0.0f;
}

// ---- the sums -------------------------------------------------------------------------------------------------------------

// The chains that a lane accumulates: sums of e, of e * t and, where asked for, of e * e.
template <bool SQUARES> struct Chains {
    float e[8], et[8], ee[8];
};

// Adds a pack to the chains of its set.
template <class T, bool SQUARES, class Limit>
MOERL_DEVICE void add_pack(Chains<SQUARES>& chains, Words4 words, int set, float max, float scale, Limit cap) {
    float x[PACK<T>];
    unpack<T>(words, x);
    cap.apply(x, max);
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

// The chains of the lane behind the last whole pack end with the rest, whose terms t and e the lanes bring that loaded it. Places that
// are not in the rest have e = 0.
template <class T, bool SQUARES> MOERL_DEVICE void end_with_rest(Chains<SQUARES>& chains, float t, float e, bool mine, int set) {
    MOERL_UNROLL
    for (int place = 0; place < PACK<T> - 1; place++) {
        const int chain = set * PACK<T> + place;
        const float of_place = shuffle(t, place), found = shuffle(e, place);
        const float term = mine ? found : 0.0f;
        chains.e[chain] += term;
        chains.et[chain] = fmaf(term, of_place, chains.et[chain]);
        if constexpr (SQUARES) chains.ee[chain] = fmaf(term, term, chains.ee[chain]);
    }
}

template <class T, bool SQUARES, class Limit>
MOERL_DEVICE Chains<SQUARES> accumulate(const Panel<T>& held, int columns, float max, float scale, Limit cap) {
    Chains<SQUARES> chains;
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) chains.e[i] = chains.et[i] = chains.ee[i] = 0.0f;
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) add_pack<T>(chains, held.pack[turn], turn % SETS<T>, max, scale, cap);
    const Cut c = cut<T>(held.head, columns);
    if (c.rest == 0) return chains;
    float edge[1] = {to_f32(held.edge)};
    cap.apply(edge, max);
    const float t = exponent_of(edge[0], max, scale), e = exp2_approx(t);
    const int lane = c.full % WARP, turn = (c.full - held.first_pack(lane)) / WARP;
    const bool mine = static_cast<int>(lane_index()) == lane;
    if (turn % SETS<T> == 0) end_with_rest<T>(chains, t, e, mine, 0);
    else end_with_rest<T>(chains, t, e, mine, SETS<T> - 1);
    return chains;
}

// Hands the chains that a misaligned lane accumulated for its right neighbour to it.
template <class T> MOERL_DEVICE void hand_over(float (&a)[8], int head) {
    const int left = static_cast<int>(lane_index() + WARP - 1) % WARP;
    const bool last = lane_index() == WARP - 1;  // one pack ahead, so that it met its own chains in the other set
    MOERL_UNROLL
    for (int i = 0; i < PACK<T>; i++) {
        const bool foreign = i >= PACK<T> - head;
        if constexpr (SETS<T> == 1) {
            const float other = i > 0 ? shuffle(a[i], left) : a[i];
            a[i] = foreign ? other : a[i];
        } else {
            const float even = shuffle(a[i], left), odd = shuffle(a[PACK<T> + i], left);
            const float mine = last ? a[PACK<T> + i] : a[i], other = last ? a[i] : a[PACK<T> + i];
            a[i] = foreign ? even : mine;
            a[PACK<T> + i] = foreign ? odd : other;
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

// The record of a completed panel whose largest logit is `largest`, in every lane; sum_sq in the label's place.
template <class T, bool SQUARES, class Limit>
MOERL_DEVICE MoerlPartial reduce(const Panel<T>& held, int columns, float largest, float scale, Limit cap) {
    const float max = cap.of(largest);
    Chains<SQUARES> chains = accumulate<T, SQUARES>(held, columns, max, scale, cap);
    const int head = held.head;
    MoerlPartial record = {max, fold<T>(chains.e, head), fold<T>(chains.et, head), 0.0f};
    if constexpr (SQUARES) record.label = fold<T>(chains.ee, head);
    return record;
}

// The lane's pack of turn `chosen`. By masks: an index that is not known to the compiler would put the packs into memory.
template <class T> MOERL_DEVICE Words4 pack_of(const Panel<T>& held, int chosen) {
    Words4 words = {};
    MOERL_UNROLL
    for (int turn = 0; turn < TURNS<T>; turn++) {
        const uint32_t mask = chosen == turn ? ~0u : 0u;
        MOERL_UNROLL
        for (int w = 0; w < 4; w++) words.w[w] |= held.pack[turn].w[w] & mask;
    }
    return words;
}

// The logit of a column of the panel, in every lane. Cold: once a row.
template <class T> MOERL_DEVICE float logit_at(const Panel<T>& held, int columns, int column) {
    const Cut c = cut<T>(held.head, columns);
    const int at = column - c.head + PACK<T>, slot = at / PACK<T> - 1, place = at % PACK<T>;  // the head is in pack -1
    if (slot == c.full) return shuffle(to_f32(held.edge), place);
    const int lane = slot & (WARP - 1), chosen = (slot - held.first_pack(lane)) / WARP;
    float x[PACK<T>];
    unpack<T>(pack_of(held, chosen), x);
    float found = x[0];
    MOERL_UNROLL
    for (int i = 1; i < PACK<T>; i++) found = i == place ? x[i] : found;
    return shuffle(found, lane);
}
