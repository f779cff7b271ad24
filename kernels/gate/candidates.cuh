// The few columns of a row among which its k best must be: those that reach a threshold which at least k columns reach.
//
// A row's columns are dealt to 32 heaps. The RANK-th largest of the heaps' maxima is the threshold: RANK columns reach it for certain, and few
// more do. Finding it takes a comparison a column and no ids. A mask says which columns reach it, and only those are looked at one by one.
// A row with a NaN, or with more than CANDIDATES columns at the threshold or above, is not settled here: `Outcome::slow`.
#pragma once

#include "network.cuh"
#include "score.cuh"
#include "segments.cuh"
#include "slots.cuh"

constexpr uint32_t CANDIDATES = 16;  // of a row
constexpr int HEAPS = 8;             // registers of a lane that hold maxima
constexpr uint32_t MANY_EXPERTS = 512;

// ---- two 16-bit values a word, two or four lanes a row ----------------------------------------------------------------------

// In both halves; NaN if a value of the row is.
template <class T, int RANK, int LANES> MOERL_DEVICE uint32_t packed_threshold(const Segments<T, LANES>& values) {
    uint32_t most[HEAPS];
    MOERL_UNROLL
    for (int i = 0; i < HEAPS; i++) most[i] = MINUS_INFINITY<T>;
    for (uint32_t block = 0; block < values.blocks(); block++) {
        MOERL_UNROLL
        for (int pack = 0; pack < 4; pack++) {
            const Words4 words = words_of(values.own() + block * BLOCK + pack * 8);
            MOERL_UNROLL
            for (int j = 0; j < 4; j++) {
                uint32_t& heap = most[(pack * 4 + j) % HEAPS];
                heap = max_nan_x2<T>(heap, words.w[j]);
            }
        }
    }
    sort<Halves<T>>(most);
    uint32_t merged[RANK <= 8 ? 8 : 16];
    merge<Halves<T>>(most, 1, merged);
    if constexpr (LANES == 4) {
        static_assert(RANK <= 8, "of two lists of 8");
        uint32_t all[8];
        merge<Halves<T>>(merged, 2, all);
        return ranked_of_halves<T, RANK>(all);
    } else {
        return ranked_of_halves<T, RANK>(merged);
    }
}

// Bit i + 16 h of a block's mask: half h of the block's word i reaches the threshold.
template <class T> MOERL_DEVICE uint32_t packed_mask(const T* block, uint32_t threshold) {
    uint32_t mask = 0;
    MOERL_UNROLL
    for (int pack = 0; pack < 4; pack++) {
        const Words4 words = words_of(block + pack * 8);
        MOERL_UNROLL
        for (int j = 0; j < 4; j++) mask |= at_least_x2<T>(words.w[j], threshold) & 0x00010001u << (pack * 4 + j);
    }
    return mask;
}

// A candidate on its way to be sorted: the logit's bits above a number that falls as the id rises. As signed words the larger of two is the
// better one once the logit's magnitude has been negated where the logit is; -0 is then +0.
MOERL_DEVICE int32_t packed_key(uint32_t candidate) {
    const uint32_t sign = static_cast<uint32_t>(static_cast<int32_t>(candidate) >> 31);
    return static_cast<int32_t>(((candidate & 0x7fff0000u) ^ sign) - sign + (candidate & 0xffffu));
}
constexpr uint32_t NO_CANDIDATE = 0xffff0000u;  // its key is below every other's

// Two 16-bit logits a word, two lanes a row: column 2 i + h of a block is half h of its word i.
//
// The ids and logits of the k best, of a row that is not slow, in slot order. Answers whether it is. `place` has room for CANDIDATES words of
// the row.
template <class T, int RANK, class Slots>
MOERL_DEVICE bool choose_packed(const Segments<T, 2>& logits, uint32_t top_k, uint32_t* place, uint32_t (&ids)[Slots::SLOTS],
                                float (&selected)[Slots::SLOTS]) {
    constexpr int MOST_BLOCKS = MANY_EXPERTS / 2 / BLOCK;
    const uint32_t lane = Slots::lane();
    const uint32_t threshold = packed_threshold<T, RANK>(logits);
    const float value = to_f32(T{static_cast<uint16_t>(threshold & 0xffffu)});
    uint32_t masks[MOST_BLOCKS] = {}, own = 0;
    MOERL_UNROLL
    for (int b = 0; b < MOST_BLOCKS; b++) {
        if (static_cast<uint32_t>(b) >= logits.blocks()) break;
        masks[b] = packed_mask<T>(logits.own() + b * BLOCK, threshold);
        own += static_cast<uint32_t>(popcount(masks[b]));
    }
    const uint32_t all = own + shuffle_xor(own, 1);
    const bool slow = value != value || all < top_k || all > CANDIDATES;

    MOERL_UNROLL
    for (int i = 0; i < 8; i += 4) {
        *reinterpret_cast<Words4*>(place + lane * 8 + i) = {{NO_CANDIDATE, NO_CANDIDATE, NO_CANDIDATE, NO_CANDIDATE}};
    }
    sync_warp();
    // The first lane fills the row's place from the front, the other from the back. A column's number is 0xffff - 2 * id: 2 bytes a column.
    uint32_t* next = lane == 0 ? place : place + CANDIDATES - 1;
    const int step = 1 - 2 * static_cast<int>(lane);
    const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(logits.own());
    const uint32_t last = 0xffffu - lane * logits.run * 2;
    MOERL_UNROLL
    for (int b = 0; b < MOST_BLOCKS; b++) {
        if (static_cast<uint32_t>(b) >= logits.blocks()) break;
        for (uint32_t left = slow ? 0 : masks[b]; left != 0;) {
            const uint32_t bit = 31u - static_cast<uint32_t>(leading_zeros(left));
            left ^= 1u << bit;
            const uint32_t byte = bit * 4 - (bit >> 4) * 62;  // word bit % 16, half bit / 16
            const T* const logit = reinterpret_cast<const T*>(bytes + b * BLOCK * 2 + byte);
            *next = static_cast<uint32_t>(logit->bits) << 16 | (last - b * BLOCK * 2 - byte);
            next += step;
        }
    }
    sync_warp();

    int32_t keys[8];
    MOERL_UNROLL
    for (int i = 0; i < 8; i += 4) {
        const Words4 words = words_of(place + lane * 8 + i);
        MOERL_UNROLL
        for (int j = 0; j < 4; j++) keys[i + j] = packed_key(words.w[j]);
    }
    sort<Keys>(keys);
    // The first lane goes on with the better half of the sixteen, the other with the rest.
    int32_t halves[8];
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) {
        const int32_t other = shuffle_xor(keys[7 - i], 1);
        halves[i] = Slots::SLOTS == 4 || lane == 0 ? Keys::first(keys[i], other) : Keys::second(keys[i], other);
    }
    int32_t chosen[Slots::SLOTS];
    MOERL_UNROLL
    for (int i = 0; i < Slots::SLOTS; i++) {
        // Eight slots: both lanes have the better half, and again the first goes on with the better part of it.
        if constexpr (Slots::SLOTS == 4) chosen[i] = lane == 0 ? Keys::first(halves[i], halves[i + 4]) : Keys::second(halves[i], halves[i + 4]);
        else chosen[i] = halves[i];
    }
    sort_bitonic<Keys, Slots::SLOTS>(chosen);
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const uint32_t number = static_cast<uint32_t>(chosen[s]) & 0xffffu;
        ids[s] = (0xffffu - number) >> 1;
        // Back from the negated magnitude to sign and magnitude.
        const uint32_t sign = static_cast<uint32_t>(chosen[s] >> 31), above = static_cast<uint32_t>(chosen[s]) - number;
        const uint32_t bits = ((above ^ sign) - sign) | (sign & 0x80000000u);
        selected[s] = to_f32(T{static_cast<uint16_t>(bits >> 16)});
    }
    return slow;
}

// ---- candidates by id, ranked by f32 values -----------------------------------------------------------------------------------

// NaN if a value of the row is.
template <int RANK> MOERL_DEVICE float wide_threshold(const Segments<float, 4>& values) {
    float most[HEAPS];
    MOERL_UNROLL
    for (int i = 0; i < HEAPS; i++) most[i] = -INFINITY;
    for (uint32_t block = 0; block < values.blocks(); block++) {
        MOERL_UNROLL
        for (int pack = 0; pack < 8; pack++) {
            const Words4 words = words_of(values.own() + block * BLOCK + pack * 4);
            MOERL_UNROLL
            for (int j = 0; j < 4; j++) {
                float& heap = most[(pack * 4 + j) % HEAPS];
                heap = max_nan(heap, f32_of(words.w[j]));
            }
        }
    }
    sort<Singles>(most);
    constexpr int KEPT = RANK <= 8 ? 8 : 16;
    float merged[KEPT], others[KEPT];
    merge<Singles>(most, 1, merged);
    MOERL_UNROLL
    for (int i = 0; i < KEPT; i++) others[i] = i < RANK ? shuffle_xor(merged[i], 2) : 0.0f;
    return ranked_of_two<RANK>(merged, others);
}

// Bit i of a block's mask: column i reaches the threshold.
MOERL_DEVICE uint32_t wide_mask(const float* block, float threshold) {
    uint32_t mask = 0;
    MOERL_UNROLL
    for (int pack = 0; pack < 8; pack++) {
        const Words4 words = words_of(block + pack * 4);
        MOERL_UNROLL
        for (int j = 0; j < 4; j++) mask |= f32_of(words.w[j]) >= threshold ? 1u << (pack * 4 + j) : 0u;
    }
    return mask;
}

// How many the lanes before this one of the row have, and all of them; exact where all have at most 255.
struct Counted {
    uint32_t before;
    uint32_t all;
};
template <int LANES> MOERL_DEVICE Counted count_of_lanes(uint32_t own, uint32_t lane) {
    if constexpr (LANES == 2) {
        const uint32_t other = shuffle_xor(own, 1);
        return {lane == 0 ? 0 : other, own + other};
    } else {
        uint32_t bytes = own << (lane * 8);
        bytes += shuffle_xor(bytes, 1);
        bytes += shuffle_xor(bytes, 2);
        const uint32_t all = (bytes & 0xffu) + (bytes >> 8 & 0xffu) + (bytes >> 16 & 0xffu) + (bytes >> 24);
        return {bytes * 0x01010100u >> (lane * 8) & 0xffu, all};
    }
}

// The places of a row's candidates, by id.
struct WidePlace {
    float* values;
    uint32_t* ids;
};

// Leaves the ids of the candidates at `place`, ascending, and how many there are. `mask_of` gives the mask of a block of this lane's columns: bit i
// is for column i.
template <class Slots, int LANES, class Mask>
MOERL_DEVICE bool find_candidates(uint32_t run, uint32_t blocks, uint32_t top_k, const WidePlace& place, uint32_t& all, Mask mask_of) {
    constexpr int MOST_BLOCKS = MANY_EXPERTS / LANES / BLOCK;
    const uint32_t lane = Slots::lane();
    uint32_t masks[MOST_BLOCKS] = {}, own = 0;
    MOERL_UNROLL
    for (int b = 0; b < MOST_BLOCKS; b++) {
        if (static_cast<uint32_t>(b) >= blocks) break;
        masks[b] = mask_of(static_cast<uint32_t>(b));
        own += static_cast<uint32_t>(popcount(masks[b]));
    }
    const Counted counted = count_of_lanes<LANES>(own, lane);
    all = counted.all;
    // Nothing reaches a NaN.
    const bool slow = all < top_k || all > CANDIDATES;
    uint32_t next = counted.before;
    MOERL_UNROLL
    for (int b = 0; b < MOST_BLOCKS; b++) {
        if (static_cast<uint32_t>(b) >= blocks) break;
        for (uint32_t left = slow ? 0 : masks[b]; left != 0; left &= left - 1) {
            place.ids[next++] = lane * run + b * BLOCK + static_cast<uint32_t>(lowest_set(left));
        }
    }
    sync_warp();
    return slow;
}

// The ids of the k best among the candidates, in slot order, at `place.ids`. `value_of_id` gives what they are chosen by. Each lane settles a few
// candidates, from one to the next as many on as lanes share the row: a candidate's rank is the number of those that are better.
template <class Slots, int LANES, class Value>
MOERL_DEVICE void rank_candidates(uint32_t top_k, uint32_t all, const WidePlace& place, Value value_of_id) {
    constexpr int OWN = CANDIDATES / LANES;
    const uint32_t lane = Slots::lane();
    uint32_t ids[OWN];
    float own[OWN];
    MOERL_UNROLL
    for (int q = 0; q < OWN; q++) {
        const uint32_t at = q * LANES + lane;
        ids[q] = at < all ? place.ids[at] : 0;
        own[q] = at < all ? value_of_id(ids[q]) : -INFINITY;
        place.values[at] = own[q];
    }
    sync_warp();
    float ranks[OWN] = {};  // a comparison that gives 1.0 is one instruction
    MOERL_UNROLL
    for (int block = 0; block < static_cast<int>(CANDIDATES) / 4; block++) {
        const Words4 words = words_of(place.values + block * 4);
        MOERL_UNROLL
        for (int j = 0; j < 4; j++) {
            const float other = f32_of(words.w[j]);
            MOERL_UNROLL
            for (int q = 0; q < OWN; q++) {
                // Of equal ones the smaller id is better, and that comes first.
                const int home = q * LANES / 4, first = q * LANES % 4;
                bool better = block < home || (block == home && j < first) ? other >= own[q] : other > own[q];
                if (block == home && j >= first) better = better | ((static_cast<uint32_t>(j - first) < lane) & (other == own[q]));
                ranks[q] += better ? 1.0f : 0.0f;
            }
        }
    }
    MOERL_UNROLL
    for (int q = 0; q < OWN; q++) {
        const uint32_t rank = static_cast<uint32_t>(ranks[q]);
        if (rank < top_k) place.ids[rank] = ids[q];
    }
    sync_warp();
}
