// From a row's record to its outputs: f64, rounded once, one lane per row.
#pragma once

#include "row.cuh"

constexpr uint64_t NO_STANDING = ~static_cast<uint64_t>(0);  // of the best logit of a row without one

struct Finished {
    float logprob, entropy, max, log_sum, lse, sum_p2, sum_sq;
    MoerlPartial saved;
    uint32_t fault;  // 0: none
};

MOERL_DEVICE Finished finished_as(float value, uint32_t fault) {
    return {value, value, value, value, value, value, value, {value, value, value, value}, fault};
}

// A record's log-probability of a logit; every number after the softcap.
MOERL_DEVICE float logprob_of(float logit, float max, double cooling, double log_sum) {
    const double d = static_cast<double>(logit) - static_cast<double>(max);
    const double logprob = (d > 0.0 ? 0.0 : d) * cooling - log_sum;
    return static_cast<float>(logprob > 0.0 ? 0.0 : logprob);
}

// `sums` holds sum_sq in the label's place; `label` is the label's logit, if the row has one, else -inf.
MOERL_DEVICE Finished finish(const Row& row, double temperature, MoerlPartial sums, float label) {
    if (row.absent) return finished_as(0.0f, 0);
    const bool outside = row.label == LABEL_OUTSIDE;
    if (!row.scalable) return finished_as(not_a_number(), outside ? MOERL_FAULT_TARGET : MOERL_FAULT_TEMPERATURE);

    const float sum_sq = sums.label;
    MoerlPartial saved = sums;
    saved.label = outside ? not_a_number() : label;
    if (!is_finite(saved.max_logit)) {
        const bool empty = saved.max_logit == -INFINITE;
        Finished f = finished_as(not_a_number(), outside ? MOERL_FAULT_TARGET : empty ? MOERL_FAULT_EMPTY_ROW : MOERL_FAULT_NONFINITE_LOGIT);
        if (empty) f.max = f.lse = -INFINITE, f.sum_sq = 0.0f;
        f.saved = saved;
        return f;
    }
    // In f64 a product with the reciprocal is as good as the quotient.
    const double cooling = 1.0 / temperature, share = 1.0 / static_cast<double>(saved.sum);
    const double log_sum = log(static_cast<double>(saved.sum));
    const double max = static_cast<double>(saved.max_logit) * cooling;
    const double entropy = log_sum - static_cast<double>(saved.weighted) * LN_2 * share;
    Finished f;
    f.logprob = logprob_of(saved.label, saved.max_logit, cooling, log_sum);
    f.entropy = static_cast<float>(entropy < 0.0 ? 0.0 : entropy);
    f.max = static_cast<float>(max);
    f.log_sum = static_cast<float>(log_sum);
    f.lse = static_cast<float>(max + log_sum);
    f.sum_p2 = static_cast<float>(static_cast<double>(sum_sq) * share * share);
    f.sum_sq = sum_sq;
    f.saved = saved;
    f.fault = outside ? MOERL_FAULT_TARGET : 0;
    return f;
}

MOERL_DEVICE void store_optional(float* array, uint64_t row, float value) {
    if (array != nullptr) store(array + row, value);
}

// The caller's records may lie at any multiple of 4.
MOERL_DEVICE void store_partial(MoerlPartial* array, uint64_t at, const MoerlPartial& record) {
    if (array == nullptr) return;
    store(&array[at].max_logit, record.max_logit);
    store(&array[at].sum, record.sum);
    store(&array[at].weighted, record.weighted);
    store(&array[at].label, record.label);
}
MOERL_DEVICE MoerlPartial load_partial(const MoerlPartial* array, uint64_t at) {
    return {load(&array[at].max_logit), load(&array[at].sum), load(&array[at].weighted), load(&array[at].label)};
}

MOERL_DEVICE void store_finished(const MoerlLogprobForward& p, uint64_t row, const Finished& f) {
    store_optional(p.entropy, row, f.entropy);
    store_optional(p.max, row, f.max);
    store_optional(p.log_sum, row, f.log_sum);
    store_optional(p.lse, row, f.lse);
    store_optional(p.sum_p2, row, f.sum_p2);
    store_optional(p.sum_sq, row, f.sum_sq);
    store_partial(p.saved, row, f.saved);
}

// What a call with several ids, ranks or the argmax writes besides. `other(k)` is the logit of id k > 0, where it is a column; `standing`
// is the best of the row. Returns whether an id is outside the vocabulary.
template <class Other>
MOERL_DEVICE bool store_ids(const MoerlLogprobForward& p, uint64_t row, const Row& r, const Finished& f, Other other, uint64_t standing) {
    const bool valid = is_read(r) && is_finite(f.saved.max_logit);
    if (p.best != nullptr && p.result != MOERL_RESULT_WHOLE) store(p.best + row, valid ? standing : NO_STANDING);
    if (p.argmax != nullptr) store(p.argmax + row, valid ? static_cast<int32_t>(standing & 0xffffffffu) : -1);
    if (p.tokens == nullptr) return false;
    const double cooling = 1.0 / temperature_of(p, r), log_sum = valid ? log(static_cast<double>(f.saved.sum)) : 0.0;
    bool outside = false;
    for (uint32_t k = 0; k < p.ids; k++) {
        const int32_t id = id_of(p, row, k);
        const bool missing = r.absent || id == NO_LABEL;
        float logit = k == 0 ? f.saved.label : id >= 0 ? other(k) : id == LABEL_OUTSIDE ? not_a_number() : -INFINITE;
        if (r.absent) logit = 0.0f;
        else if (!r.scalable) logit = not_a_number();
        if (k > 0) store_optional(p.other_labels, row * (p.ids - 1) + k - 1, logit);
        const bool defined = valid && id != LABEL_OUTSIDE;
        const float logprob = missing ? 0.0f : defined ? logprob_of(logit, f.saved.max_logit, cooling, log_sum) : not_a_number();
        store_optional(p.logprobs, row * p.ids + k, logprob);
        if (p.rank != nullptr && p.result == MOERL_RESULT_WHOLE && (missing || !defined)) store(p.rank + row * p.ids + k, ~0u);
        outside = outside || (!missing && id == LABEL_OUTSIDE);
    }
    return outside;
}
