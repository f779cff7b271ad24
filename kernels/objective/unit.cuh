// How a warp walks over a unit, and how the tokens of a segment are summed.
//
// The tree. Position p = 128 k + 4 j + v of a tile (counted from the SEGMENT's start) belongs to chain v of lane j; a chain is added up
// over ascending k; b(j) = (chain 0 + chain 1) + (chain 2 + chain 3); the lanes fold by halves 16, 8, 4, 2, 1. All f32; absent = +0.
//
// The data. Lanes load aligned packs of 4 tokens wherever the tile begins. With `head` tokens missing to a boundary, slot v of a pack holds position
// 4 j + v - head: chains of this lane for v >= head, of its left neighbour below that. Ownership rotates instead of data: a lane
// accumulates whatever its slots hold, and one exchange after the last row hands the chains over.
#pragma once

#include "../warp.cuh"

constexpr int ROW = 4 * WARP;         // tokens of a row
constexpr int ROWS_AT_ONCE = 2;         // rows whose loads are in flight together
constexpr int WHOLE_ROWS = 4;           // where they need no test a token: 4 KB a warp
constexpr int MASKS_AT_ONCE = 8;        // and where only masks are read
constexpr int SLOTS = MOERL_TILE + 16;  // tokens of a unit, from the boundary before it

struct Geometry {
    uint64_t base;  // the token of slot 0, a multiple of 4
    int head;       // slots before the unit's first token
    int tokens;
    int rows;
};

MOERL_DEVICE MoerlUnit load_unit(const MoerlUnit* unit) {
    const Words4 w = load16(unit);
    return {static_cast<uint64_t>(w.w[1]) << 32 | w.w[0], w.w[2], static_cast<uint16_t>(w.w[3] & 0xffffu), static_cast<uint16_t>(w.w[3] >> 16)};
}

MOERL_DEVICE Geometry geometry(const MoerlUnit& unit) {
    const int head = static_cast<int>(unit.token & 3);
    const int tokens = unit.tokens;
    return {unit.token - static_cast<uint64_t>(head), head, tokens, tokens == 0 ? 0 : (head + tokens + ROW - 1) / ROW};
}

MOERL_DEVICE int between(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Bit v: slot v of this lane's pack in `row` is a token of the unit.
MOERL_DEVICE uint32_t slots_of(const Geometry& g, int row) {
    const int first = row * ROW + 4 * static_cast<int>(lane_index()) - g.head;
    return (1u << between(g.tokens - first, 0, 4)) - (1u << between(-first, 0, 4));
}

// The bytes of four slots.
MOERL_DEVICE uint32_t spread_bits(uint32_t bits) { return (bits * 0x00204081u) & 0x01010101u; }

// True in every lane where all slots of `count` rows from `first` on are tokens of the unit and may be loaded in one.
MOERL_DEVICE bool are_whole(const MoerlObjective& p, const Geometry& g, int first, int count) {
    return p.aligned != 0 && first * ROW >= g.head && (first + count) * ROW <= g.head + g.tokens;
}

struct Four {
    float x[4];
};

// The slots of `bits` of four floats; 0 in the others and where there is no array.
MOERL_DEVICE Four load_four(const float* array, uint64_t index, uint32_t bits, bool aligned) {
    Four r = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (array == nullptr) return r;
    if (bits == 15u && aligned) {
        const Words4 words = load16_stream(array + index);
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) r.x[v] = f32_of(words.w[v]);
        return r;
    }
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        if ((bits >> v & 1u) != 0) r.x[v] = load_stream(array + index + v);
    }
    return r;
}

// As load_four, one byte each.
MOERL_DEVICE uint32_t load_mask(const uint8_t* mask, uint64_t index, uint32_t bits, bool aligned) {
    if (mask == nullptr) return 0x01010101u;
    if (bits == 15u && aligned) return load_stream(reinterpret_cast<const uint32_t*>(mask + index));
    uint32_t r = 0;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        if ((bits >> v & 1u) != 0) r |= static_cast<uint32_t>(load_stream(mask + index + v)) << (8 * v);
    }
    return r;
}

MOERL_DEVICE void store_four(float* array, uint64_t index, uint32_t bits, bool aligned, const Four& values) {
    if (array == nullptr) return;
    if (bits == 15u && aligned) {
        store16_stream(array + index, {{bits_of(values.x[0]), bits_of(values.x[1]), bits_of(values.x[2]), bits_of(values.x[3])}});
        return;
    }
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        if ((bits >> v & 1u) != 0) store_stream(array + index + v, values.x[v]);
    }
}

MOERL_DEVICE void store_bytes(uint8_t* array, uint64_t index, uint32_t bits, bool aligned, uint32_t values) {
    if (array == nullptr) return;
    if (bits == 15u && aligned) {
        store_stream(reinterpret_cast<uint32_t*>(array + index), values);
        return;
    }
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        if ((bits >> v & 1u) != 0) store_stream(array + index + v, static_cast<uint8_t>(values >> (8 * v) & 0xffu));
    }
}

// A quarter of a row's tokens as they lie in memory. WIDE: with what only some objectives have.
template <bool WIDE> struct Pack;
template <> struct Pack<false> {
    uint64_t index;
    uint32_t bits;  // slots that are tokens of the unit
    uint32_t mask;  // a byte a slot
    Four logprobs, old_logprobs, advantages, weights;
};
template <> struct Pack<true> : Pack<false> {
    uint32_t keep, chosen;  // a byte a slot
    Four shift, rollout, ref, entropy;
};

constexpr uint32_t READ_ALL = 0xffffffffu;

template <class T> MOERL_DEVICE const T* if_read(uint32_t reads, uint32_t which, const T* array) { return (reads & which) != 0 ? array : nullptr; }

// The slots `bits` of the tokens from `index` on.
template <bool WIDE> MOERL_DEVICE Pack<WIDE> load_pack(const MoerlObjective& p, uint64_t index, uint32_t bits, bool aligned, uint32_t reads) {
    Pack<WIDE> r;
    r.index = index;
    r.bits = bits;
    r.mask = load_mask(p.loss_mask, r.index, r.bits, aligned);
    r.logprobs = load_four(if_read(reads, MOERL_READ_LOGPROBS, p.logprobs), r.index, r.bits, aligned);
    r.old_logprobs = load_four(if_read(reads, MOERL_READ_OLD, p.old_logprobs), r.index, r.bits, aligned);
    r.weights = load_four(if_read(reads, MOERL_READ_WEIGHTS, p.weights), r.index, r.bits, aligned);
    r.advantages = load_four(p.advantage_per_token ? if_read(reads, MOERL_READ_ADVANTAGES, p.advantages) : nullptr, r.index, r.bits, aligned);
    if constexpr (WIDE) {
        r.keep = load_mask(if_read(reads, MOERL_READ_KEEP, p.keep), r.index, r.bits, aligned);
        r.chosen = p.chosen == nullptr ? 0u : load_mask(if_read(reads, MOERL_READ_TERMS, p.chosen), r.index, r.bits, aligned);
        r.shift = load_four(if_read(reads, MOERL_READ_SHIFT, p.router_shift), r.index, r.bits, aligned);
        r.rollout = load_four(if_read(reads, MOERL_READ_TERMS, p.rollout_logprobs), r.index, r.bits, aligned);
        r.ref = load_four(if_read(reads, MOERL_READ_TERMS, p.ref_logprobs), r.index, r.bits, aligned);
        r.entropy = load_four(if_read(reads, MOERL_READ_TERMS, p.entropy), r.index, r.bits, aligned);
    }
    return r;
}

template <bool WIDE> MOERL_DEVICE Pack<WIDE> load_pack(const MoerlObjective& p, const Geometry& g, int row, uint32_t reads) {
    return load_pack<WIDE>(p, g.base + static_cast<uint64_t>(row * ROW) + 4u * lane_index(), slots_of(g, row), p.aligned != 0, reads);
}

// Makes of slot v what a token is of which `reads` alone were read.
template <bool WIDE> MOERL_DEVICE void hide_unread(Pack<WIDE>& pack, int v, uint32_t reads) {
    if ((reads & MOERL_READ_LOGPROBS) == 0) pack.logprobs.x[v] = 0.0f;
    if ((reads & MOERL_READ_OLD) == 0) pack.old_logprobs.x[v] = pack.logprobs.x[v];
    if ((reads & MOERL_READ_WEIGHTS) == 0) pack.weights.x[v] = 1.0f;
    if ((reads & MOERL_READ_ADVANTAGES) == 0) pack.advantages.x[v] = 0.0f;
    if constexpr (WIDE) {
        if ((reads & MOERL_READ_SHIFT) == 0) pack.shift.x[v] = 0.0f;
    }
}

// Rows of packs of which only the mask, l, o, w and A are read, and only where `reads` says so. The others hold anything.
template <int ROWS> struct Rows {
    Pack<false> of[ROWS];
};

// Where those arrays are; null: not read.
struct Sources {
    const uint8_t* mask;
    const float *logprobs, *old_logprobs, *weights, *advantages;
};

MOERL_DEVICE Sources sources_of(const MoerlObjective& p, uint32_t reads) {
    return {p.loss_mask, if_read(reads, MOERL_READ_LOGPROBS, p.logprobs), if_read(reads, MOERL_READ_OLD, p.old_logprobs), if_read(reads, MOERL_READ_WEIGHTS, p.weights),
            p.advantage_per_token ? if_read(reads, MOERL_READ_ADVANTAGES, p.advantages) : nullptr};
}

// The packs that one load takes: all of them (WHOLE), or those that no end of the unit cuts.
template <bool WHOLE, int ROWS> MOERL_DEVICE void load_field(Rows<ROWS>& rows, Four Pack<false>::*field, const float* array) {
    if (array == nullptr) return;
    MOERL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        Pack<false>& pack = rows.of[r];
        if (WHOLE || pack.bits == 15u) pack.*field = load_four(array, pack.index, 15u, true);
    }
}

template <bool WHOLE, int ROWS> MOERL_DEVICE void load_fields(Rows<ROWS>& rows, const Sources& from) {
    MOERL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        Pack<false>& pack = rows.of[r];
        if (from.mask != nullptr && (WHOLE || pack.bits == 15u)) pack.mask = load_mask(from.mask, pack.index, 15u, true);
    }
    load_field<WHOLE>(rows, &Pack<false>::logprobs, from.logprobs);
    load_field<WHOLE>(rows, &Pack<false>::old_logprobs, from.old_logprobs);
    load_field<WHOLE>(rows, &Pack<false>::weights, from.weights);
    load_field<WHOLE>(rows, &Pack<false>::advantages, from.advantages);
}

MOERL_DEVICE void load_cut_fields(Pack<false>& pack, const Sources& from) {
    pack.logprobs = load_four(from.logprobs, pack.index, pack.bits, false);
    pack.old_logprobs = load_four(from.old_logprobs, pack.index, pack.bits, false);
    pack.weights = load_four(from.weights, pack.index, pack.bits, false);
    pack.advantages = load_four(from.advantages, pack.index, pack.bits, false);
    if (from.mask != nullptr) pack.mask = load_mask(from.mask, pack.index, pack.bits, false);
}

// The rows from `first` on. All loads of four tokens are on their way before those of single ones, where an end of the unit cuts a pack.
// A slot outside the unit has a mask of 0.
template <int ROWS> MOERL_DEVICE Rows<ROWS> load_rows(const MoerlObjective& p, const Geometry& g, int first, uint32_t reads) {
    Rows<ROWS> rows;
    const Sources from = sources_of(p, reads);
    const bool aligned = p.aligned != 0, whole = aligned && first * ROW >= g.head && (first + ROWS) * ROW <= g.head + g.tokens;
    MOERL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        Pack<false>& pack = rows.of[r];
        pack.index = g.base + static_cast<uint64_t>((first + r) * ROW) + 4u * lane_index();
        pack.bits = whole ? 15u : slots_of(g, first + r);
        pack.mask = from.mask == nullptr ? spread_bits(pack.bits) : 0u;
    }
    if (whole) {
        load_fields<true>(rows, from);
        return rows;
    }
    MOERL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        Pack<false>& pack = rows.of[r];
        pack.logprobs = pack.old_logprobs = pack.weights = pack.advantages = {{0.0f, 0.0f, 0.0f, 0.0f}};
    }
    if (aligned) load_fields<false>(rows, from);
    MOERL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        Pack<false>& pack = rows.of[r];
        if (pack.bits != 0u && !(aligned && pack.bits == 15u)) load_cut_fields(pack, from);
    }
    return rows;
}

MOERL_DEVICE uint32_t byte_of(uint32_t bytes, int v) { return bytes >> (8 * v) & 0xffu; }

// One token, as the formulas see it. What was not read is 0, a weight 1.
template <bool WIDE> struct Token;
template <> struct Token<false> {
    float delta, advantage, weight;
    bool counts;
    bool is_sound_alone;  // counts, and what it has of its own is finite
    bool is_sound;          // and its segment's advantage is
};
template <> struct Token<true> : Token<false> {
    float current, old, shift, to_ref, from_rollout, entropy;
    bool is_kept, is_chosen;
};

// A token's values, sound for all that is looked at here. Without an old policy o = l, and l - l is 0, or NaN as it should be.
template <bool WIDE> MOERL_DEVICE Token<WIDE> values_of(const MoerlObjective& p, const Pack<WIDE>& pack, int v, float segment_advantage, uint32_t reads) {
    Token<WIDE> r;
    r.counts = (pack.bits >> v & 1u) != 0 && byte_of(pack.mask, v) != 0;
    const float current = pack.logprobs.x[v];
    const float old = if_read(reads, MOERL_READ_OLD, p.old_logprobs) != nullptr ? pack.old_logprobs.x[v] : current;
    r.delta = current - old;
    r.advantage = p.advantage_per_token ? pack.advantages.x[v] : segment_advantage;
    r.weight = if_read(reads, MOERL_READ_WEIGHTS, p.weights) != nullptr ? pack.weights.x[v] : 1.0f;
    if constexpr (WIDE) {
        r.current = current;
        r.old = old;
        r.shift = pack.shift.x[v];
        const bool has_terms = (reads & MOERL_READ_TERMS) != 0;
        r.to_ref = has_terms && p.ref_logprobs != nullptr ? pack.ref.x[v] - current : 0.0f;
        const float rollout = has_terms && p.rollout_logprobs != nullptr ? pack.rollout.x[v] : old;
        r.from_rollout = current - rollout;
        r.entropy = pack.entropy.x[v];
        r.is_kept = byte_of(pack.keep, v) != 0;
        r.is_chosen = byte_of(pack.chosen, v) != 0;
        r.delta += r.shift;
    }
    r.is_sound_alone = r.is_sound = r.counts;
    return r;
}

// As above, and whether it is sound.
template <bool WIDE> MOERL_DEVICE Token<WIDE> token_of(const MoerlObjective& p, const Pack<WIDE>& pack, int v, float segment_advantage, uint32_t reads) {
    Token<WIDE> r = values_of<WIDE>(p, pack, v, segment_advantage, reads);
    const bool is_own = p.advantage_per_token != 0;
    r.is_sound_alone = r.counts && is_finite(r.delta) && is_finite(r.weight) && (!is_own || is_finite(r.advantage));
    if constexpr (WIDE) r.is_sound_alone = r.is_sound_alone && is_finite(r.to_ref) && is_finite(r.from_rollout) && is_finite(r.entropy);
    r.is_sound = r.is_sound_alone && is_finite(r.advantage);
    return r;
}

// What tells that a token is out of order, whichever it is: seen by one test at the end of a unit. Where all are in order no token
// needs a test of its own: their sum is finite if they are.
struct Suspicion {
    uint32_t masks;  // all masks, by OR
    float largest;   // log-probability
    float probe;     // NaN where a number was not finite
};

constexpr Suspicion NO_SUSPICION = {0u, -3.402823466e38f, 0.0f};

// Of a token that counts.
MOERL_DEVICE void suspect(Suspicion& s, float logprob, float old_logprob) { s.largest = fmaxf(s.largest, fmaxf(logprob, old_logprob)); }
MOERL_DEVICE void suspect(Suspicion& s, float number) { s.probe = fmaf(number, 0.0f, s.probe); }

// True in every lane where no lane has seen a mask's value but 0 and 1, nor a fault.
MOERL_DEVICE bool is_above_suspicion(const Suspicion& s) { return all((s.masks & 0xfefefefeu) == 0u && s.largest <= 1e-3f && s.probe == 0.0f, FULL_WARP); }

// Rows of a piece in flight together where every token is in order: A and w of their own take the registers of two.
template <bool WITH_ARRAYS> constexpr int SOUND_ROWS = WITH_ARRAYS ? WHOLE_ROWS / 2 : WHOLE_ROWS;

// Before the first token of a piece.
MOERL_DEVICE Suspicion suspicion_of(const MoerlObjective& p, float segment_advantage) {
    Suspicion s = NO_SUSPICION;
    if (!p.advantage_per_token) suspect(s, segment_advantage);
    return s;
}

struct Factors {
    float weight, advantage;
};

// Of a token that counts. Those of its own (WITH_ARRAYS) are looked at.
template <bool WITH_ARRAYS> MOERL_DEVICE Factors factors_of(const MoerlObjective& p, const Pack<false>& pack, int v, float segment_advantage, Suspicion& suspicion) {
    Factors r = {1.0f, segment_advantage};
    if constexpr (WITH_ARRAYS) {
        if (p.weights != nullptr) {
            r.weight = pack.weights.x[v];
            suspect(suspicion, r.weight);
        }
        if (p.advantage_per_token) {
            r.advantage = pack.advantages.x[v];
            suspect(suspicion, r.advantage);
        }
    }
    return r;
}

// What the policy's term of a token is multiplied with, beside c and W.
template <bool WIDE> MOERL_DEVICE float policy_weight(const MoerlObjective& p, const Token<WIDE>& token) {
    if constexpr (WIDE) {
        if (!token.is_kept) return 0.0f;
        if (p.folds_weights) return 1.0f;
    }
    return token.weight;
}

// The chains of `PLANES` sums that a lane accumulates, by slot.
template <int PLANES> struct Chains {
    float of[PLANES][4];
};

template <int PLANES> MOERL_DEVICE Chains<PLANES> no_chains() {
    Chains<PLANES> r;
    MOERL_UNROLL
    for (int i = 0; i < PLANES; i++) {
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) r.of[i][v] = 0.0f;
    }
    return r;
}

// The tile's sum in every lane; never -0.
MOERL_DEVICE float fold(const float (&slots)[4], int head) {
    const int right = static_cast<int>(lane_index() + 1) % WARP;
    float own[4];
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        own[v] = slots[v];
        // Slots below `head` hold the left neighbour's chains: every lane fetches its own from the right.
        if (v < head) own[v] = shuffle(slots[v], right);
    }
    const float even = (own[0] + own[1]) + (own[2] + own[3]), odd = (own[1] + own[2]) + (own[3] + own[0]);
    return warp_sum((head & 1) != 0 ? odd : even) + 0.0f;
}

// Never -0.
MOERL_DEVICE float fold_eight(const float (&b)[8]) { return (((b[0] + b[4]) + (b[2] + b[6])) + ((b[1] + b[5]) + (b[3] + b[7]))) + 0.0f; }

// The tree's sum of at most 32 positions, by one lane: b(0) .. b(7) and the folds by 4, 2, 1 are all that is left of it. `longest`: no lane of the
// warp has more positions than that.
template <class Value> MOERL_DEVICE float fold_short(int length, int longest, Value value) {
    float b[8];
    MOERL_UNROLL
    for (int j = 0; j < 8; j++) {
        b[j] = 0.0f;
        if (4 * j >= longest) continue;
        float x[4];
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) x[v] = 4 * j + v < length ? value(4 * j + v) : 0.0f;
        b[j] = (x[0] + x[1]) + (x[2] + x[3]);
    }
    return fold_eight(b);
}

// The same of a value that takes many instructions: they stand four times in the code, and not thirty-two. What is at hand goes to the end of b.
template <class Value> MOERL_DEVICE float fold_short_rolled(int length, Value value) {
    float b[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    MOERL_ROLLED
    for (int first = 0; first < WARP; first += 4) {
        float x[4];
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) x[v] = first + v < length ? value(first + v) : 0.0f;
        MOERL_UNROLL
        for (int j = 0; j < 7; j++) b[j] = b[j + 1];
        b[7] = (x[0] + x[1]) + (x[2] + x[3]);
    }
    return fold_eight(b);
}

// The tree's sum of up to a tile of positions, by the warp.
template <class Value> MOERL_DEVICE float fold_staged(int length, Value value) {
    float chains[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = 0; k * ROW < length; k++) {
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) {
            const int position = k * ROW + 4 * static_cast<int>(lane_index()) + v;
            chains[v] += position < length ? value(position) : 0.0f;
        }
    }
    return fold(chains, 0);
}

constexpr int SHORT = 32;  // up to here a segment is summed by one lane

// Of the warp's segments that a lane sums, the longest.
MOERL_DEVICE int longest_short(int length) { return static_cast<int>(reduce_max_u32(length <= SHORT ? static_cast<uint32_t>(length) : 0u)); }
