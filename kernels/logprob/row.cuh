// What the arguments say about a row before its logits are looked at, and how rows are grouped into blocks.
#pragma once

#include "../block.cuh"
#include "../pack.cuh"

constexpr int PANEL = 2048;       // columns; part of the contract on bits
constexpr int SUPER_PANEL = 128;  // records merged at a time; likewise
constexpr float LOWEST = -200.0f; // exponents are clamped to this: 2^-200 is 0 in f32, and 0 * -200 is 0

constexpr double LOG2_E = 1.4426950408889634;
constexpr double LN_2 = 0.6931471805599453;
constexpr float INFINITE = __builtin_huge_valf();

// An id that is no column of these logits.
constexpr int32_t NO_LABEL = -1;         // there is none, or it is to be ignored
constexpr int32_t LABEL_OUTSIDE = -2;    // it is not in the vocabulary
constexpr int32_t LABEL_ELSEWHERE = -3;  // it is in another shard

MOERL_DEVICE float not_a_number() { return f32_of(0x7fc00000u); }

struct Row {
    int32_t label;      // the first id: a column or one of the above
    float temperature;  // as given
    float scale;        // log2(e) / temperature_of, rounded once
    bool absent;
    bool scalable;      // the temperature is one
};

template <class Call> MOERL_DEVICE int64_t load_token(const Call& p, uint64_t row, uint32_t k) {
    const int64_t at = static_cast<int64_t>(row) * p.tokens_stride + k;
    return p.tokens_element == MOERL_I64 ? load(static_cast<const int64_t*>(p.tokens) + at) : load(static_cast<const int32_t*>(p.tokens) + at);
}

// Id k of a row: a column of these logits or what it is instead.
template <class Call> MOERL_DEVICE int32_t id_of(const Call& p, uint64_t row, uint32_t k) {
    const int64_t token = load_token(p, row, k);
    if (token == p.ignore_index) return NO_LABEL;
    if (token < 0 || token >= p.vocab_total) return LABEL_OUTSIDE;
    const int64_t column = token - p.vocab_start;
    return column >= 0 && column < static_cast<int64_t>(p.vocabulary) ? static_cast<int32_t>(column) : LABEL_ELSEWHERE;
}

// With the scale of the logits in it, where there is no softcap.
template <class Call> MOERL_DEVICE double temperature_of(const Call& p, const Row& r) { return static_cast<double>(r.temperature) / p.logit_fold; }

template <class Call> MOERL_DEVICE Row read_row(const Call& p, uint64_t row) {
    Row r;
    r.label = NO_LABEL;
    r.absent = p.loss_mask != nullptr && load(p.loss_mask + row) == 0;
    if (p.tokens != nullptr) {
        r.label = id_of(p, row, 0);
        r.absent = r.absent || (p.ids == 1 && r.label == NO_LABEL);
    }
    r.temperature = p.temperature != nullptr && !r.absent ? load(p.temperature + row) : p.uniform_temperature;
    r.scale = static_cast<float>(LOG2_E / temperature_of(p, r));
    r.scalable = r.temperature > 0.0f && is_finite(r.temperature) && is_finite(r.scale);
    return r;
}

MOERL_DEVICE bool is_read(const Row& r) { return !r.absent && r.scalable; }

// Row i of a group. Groups are interleaved, so that a run of absent rows is shared by all blocks.
template <class Call> MOERL_DEVICE uint64_t row_of(const Call& p, uint64_t group, int i) {
    return group + static_cast<uint64_t>(i) * p.groups;
}

// t of a column: the difference before the scale, so that it is exactly 0 at the maximum, and NaN (from -inf and faulty rows) is LOWEST.
MOERL_DEVICE float exponent_of(float x, float max, float scale) { return fmaxf((x - max) * scale, LOWEST); }
