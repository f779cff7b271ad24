// From a row's record to its outputs: f64, rounded once, one lane per row.
#pragma once

#include "row.cuh"

struct Finished {
    float logprob, entropy, max, log_sum, lse, sum_p2, sum_sq;
    MoerlPartial saved;
    uint32_t fault;  // 0: none
};

MOERL_DEVICE Finished finished_as(float value, uint32_t fault) {
    return {value, value, value, value, value, value, value, {value, value, value, value}, fault};
}

// `sums` holds sum_sq in the label's place; `label` is the label's logit, if the row has one.
MOERL_DEVICE Finished finish(const Row& row, MoerlPartial sums, float label) {
    if (row.absent) return finished_as(0.0f, 0);
    const bool outside = row.label == LABEL_OUTSIDE;
    if (!row.scalable) return finished_as(not_a_number(), outside ? MOERL_FAULT_TARGET : MOERL_FAULT_TEMPERATURE);

    const float sum_sq = sums.label;
    MoerlPartial saved = sums;
    saved.label = outside ? not_a_number() : row.label == NO_LABEL ? -INFINITE : label;
    if (!is_finite(saved.max_logit)) {
        const bool empty = saved.max_logit == -INFINITE;
        Finished f = finished_as(not_a_number(), outside ? MOERL_FAULT_TARGET : empty ? MOERL_FAULT_EMPTY_ROW : MOERL_FAULT_NONFINITE_LOGIT);
        if (empty) f.max = f.lse = -INFINITE, f.sum_sq = 0.0f;
        f.saved = saved;
        return f;
    }
    // In f64 a product with the reciprocal is as good as the quotient.
    const double cooling = 1.0 / static_cast<double>(row.temperature), share = 1.0 / static_cast<double>(saved.sum);
    const double log_sum = log(static_cast<double>(saved.sum));
    const double max = static_cast<double>(saved.max_logit) * cooling;
    const double logprob = (static_cast<double>(saved.label) - static_cast<double>(saved.max_logit)) * cooling - log_sum;
    const double entropy = log_sum - static_cast<double>(saved.weighted) * LN_2 * share;
    Finished f;
    f.logprob = static_cast<float>(logprob > 0.0 ? 0.0 : logprob);
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

MOERL_DEVICE void store_finished(const MoerlLogprobForward& p, uint64_t row, const Finished& f) {
    store_optional(p.logprobs, row, f.logprob);
    store_optional(p.entropy, row, f.entropy);
    store_optional(p.max, row, f.max);
    store_optional(p.log_sum, row, f.log_sum);
    store_optional(p.lse, row, f.lse);
    store_optional(p.sum_p2, row, f.sum_p2);
    store_optional(p.sum_sq, row, f.sum_sq);
    if (p.saved != nullptr) {  // the caller's records may lie at any multiple of 4
        store(&p.saved[row].max_logit, f.saved.max_logit);
        store(&p.saved[row].sum, f.saved.sum);
        store(&p.saved[row].weighted, f.saved.weighted);
        store(&p.saved[row].label, f.saved.label);
    }
}
