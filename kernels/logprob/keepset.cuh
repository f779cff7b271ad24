// The keep-set of a row: ids in CSR, and what its record comes to.
#pragma once

#include "finish.cuh"

struct KeepSet {
    int64_t begin, end;  // of the row's ids
    uint32_t fault;      // of the offsets
    MOERL_DEVICE bool is_empty() const { return begin == end; }
};

// The first offset must be 0, the last one the number of ids, and none may descend: those of the whole call, `rows` of which begin `first` rows
// before these.
template <class Call> MOERL_DEVICE KeepSet read_keep_set(const Call& p, uint64_t row, uint64_t first, uint64_t rows) {
    const int64_t begin = load(p.kept_offsets + row), end = load(p.kept_offsets + row + 1), kept = static_cast<int64_t>(p.kept);
    const bool valid = begin >= 0 && begin <= end && end <= kept && (first + row > 0 || begin == 0) && (first + row + 1 < rows || end == kept);
    if (!valid) return {0, 0, MOERL_FAULT_KEEP_OFFSETS};
    return {begin, end, 0};
}

// The first of the ascending ids [begin, end) that is not below `value`; one warp calls, every lane gets the result. Each round the lanes cut
// what is left into 33 parts. Where ids do not ascend the result is some place in [begin, end].
MOERL_DEVICE int64_t lower_bound(const int32_t* ids, int64_t begin, int64_t end, int64_t value) {
    while (end - begin > WARP) {
        const int64_t step = (end - begin + WARP) / (WARP + 1);
        const int64_t probe = begin + (static_cast<int64_t>(lane_index()) + 1) * step - 1;
        const int below = popcount(ballot(probe < end && load(ids + probe) < value, FULL_WARP));
        const int64_t next = begin + below * step, last = next + step - 1;
        begin = next < end ? next : end;
        if (below < WARP && last < end) end = last;
    }
    const int64_t at = begin + static_cast<int64_t>(lane_index());
    return begin + popcount(ballot(at < end && load(ids + at) < value, FULL_WARP));
}

struct FinishedKeep {
    float logprob, entropy, mass;
    MoerlPartial saved;
    uint32_t fault;  // 0: none
};

MOERL_DEVICE FinishedKeep finished_keep_as(float value, uint32_t fault) { return {value, value, value, {value, value, value, value}, fault}; }

// `record` with the label's logit in its place: after the softcap, if the row's id is in the set or has joined it, else -inf. `fault` is that of
// the set, which may stand for all columns. `full` is the whole row's record, if `has_full`.
MOERL_DEVICE FinishedKeep finish_keep(const Row& row, double temperature, MoerlPartial record, uint32_t fault, bool is_every, bool has_full, const MoerlPartial& full) {
    if (row.absent) return finished_keep_as(0.0f, 0);
    const bool outside = row.label == LABEL_OUTSIDE;
    if (!row.scalable) return finished_keep_as(not_a_number(), static_cast<uint32_t>(outside ? MOERL_FAULT_TARGET : MOERL_FAULT_TEMPERATURE));
    if (fault != 0) return finished_keep_as(not_a_number(), outside ? static_cast<uint32_t>(MOERL_FAULT_TARGET) : fault);
    if (outside) record.label = not_a_number();
    if (!is_finite(record.max_logit)) {
        const bool empty = record.max_logit == -INFINITE, empty_row = empty && (is_every || (has_full && full.max_logit == -INFINITE));
        const uint32_t code = empty_row ? MOERL_FAULT_EMPTY_ROW : empty ? MOERL_FAULT_EMPTY_KEEP : MOERL_FAULT_NONFINITE_LOGIT;
        FinishedKeep f = finished_keep_as(not_a_number(), outside ? static_cast<uint32_t>(MOERL_FAULT_TARGET) : code);
        if (empty && has_full && is_finite(full.max_logit)) f.mass = 0.0f;
        f.saved = record;
        return f;
    }
    const double cooling = 1.0 / temperature, sum = record.sum, log_sum = log(sum);
    const double entropy = log_sum - static_cast<double>(record.weighted) * LN_2 / sum;
    FinishedKeep f = {};
    f.logprob = outside ? not_a_number() : logprob_of(record.label, record.max_logit, cooling, log_sum);
    f.entropy = static_cast<float>(entropy < 0.0 ? 0.0 : entropy);
    f.mass = not_a_number();
    if (has_full && is_finite(full.max_logit)) {
        const double lower = (static_cast<double>(record.max_logit) - static_cast<double>(full.max_logit)) * cooling;
        const double mass = exp(lower) * sum / static_cast<double>(full.sum);
        f.mass = static_cast<float>(mass > 1.0 ? 1.0 : mass);
    }
    f.saved = record;
    f.fault = outside ? MOERL_FAULT_TARGET : 0;
    return f;
}

template <class Call> MOERL_DEVICE void store_finished_keep(const Call& p, uint64_t row, const FinishedKeep& f) {
    store_optional(p.kept_logprobs, row, f.logprob);
    store_optional(p.kept_entropy, row, f.entropy);
    store_optional(p.kept_mass, row, f.mass);
    store_partial(p.kept_saved, row, f.saved);
}
