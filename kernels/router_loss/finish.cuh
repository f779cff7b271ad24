// From sums to losses and to what their gradients are multiplied by, in f64.
#pragma once

#include "../block.cuh"

constexpr int FINISH_THREADS = 256;

// The sum over the threads of a block by halves; thread 0 has it. All threads call.
MOERL_DEVICE double block_sum(double* shared, double x) {
    shared[thread_index()] = x;
    for (uint32_t half = FINISH_THREADS / 2; half > 0; half /= 2) {
        sync_block();
        if (thread_index() < half) shared[thread_index()] += shared[thread_index() + half];
    }
    sync_block();
    return shared[0];
}

// One block a segment: its balance loss E sum f P̄, and q_e = E f_e / T_v, both times the coefficient.
MOERL_DEVICE void finish_segment(const MoerlRouterLoss& p) {
    MOERL_SHARED(double, shared, FINISH_THREADS);
    const uint64_t segment = block_index(), experts = p.router.experts;
    const double rows = static_cast<double>(load(p.segment_rows + segment));
    const double counted = static_cast<double>(p.router.top_k) * static_cast<double>(load(p.count_rows + segment));
    const bool is_empty = rows == 0.0 || counted == 0.0;
    double sum = 0.0;
    for (uint64_t e = thread_index(); e < experts; e += FINISH_THREADS) {
        const uint64_t at = segment * experts + e;
        const double f = is_empty ? 0.0 : static_cast<double>(load(p.counts + at)) / counted;
        const double q = is_empty ? 0.0 : p.weights[MOERL_ROUTER_BALANCE] * static_cast<double>(experts) * f / rows;
        sum += q * (is_empty ? 0.0 : load(p.probabilities + at));
        store(p.q + at, static_cast<float>(q));
    }
    sum = block_sum(shared, sum);
    if (thread_index() == 0) store(p.segment_values + segment, sum);
}

// One block: what is of all segments.
MOERL_DEVICE void finish_batch(const MoerlRouterLoss& p) {
    MOERL_SHARED(double, shared, FINISH_THREADS);
    double value = 0.0, rows = 0.0, valid = 0.0;  // counts below 2^53 are exact in f64
    for (uint64_t s = thread_index(); s < p.segments; s += FINISH_THREADS) {
        const double here = static_cast<double>(load(p.segment_rows + s));
        value += load(p.segment_values + s);
        rows += here;
        valid += here != 0.0 ? 1.0 : 0.0;
    }
    value = block_sum(shared, value);
    sync_block();
    rows = block_sum(shared, rows);
    sync_block();
    valid = block_sum(shared, valid);
    if (thread_index() != 0) return;
    if (p.valid_segments != 0) valid = static_cast<double>(p.valid_segments);
    const double per_segment = valid == 0.0 ? 0.0 : 1.0 / valid, per_row = rows == 0.0 ? 0.0 : 1.0 / rows;
    const double z = p.weights[MOERL_ROUTER_Z] * per_row, entropy = p.weights[MOERL_ROUTER_ENTROPY] * per_row;
    const double kl = p.weights[MOERL_ROUTER_KL] * per_row;
    store(p.values + MOERL_ROUTER_BALANCE, value * per_segment);
    store(p.values + MOERL_ROUTER_Z, rows == 0.0 ? 0.0 : z * load(p.totals));
    store(p.values + MOERL_ROUTER_ENTROPY, rows == 0.0 ? 0.0 : -entropy * load(p.totals + 1));
    store(p.values + MOERL_ROUTER_KL, rows == 0.0 ? 0.0 : kl * load(p.totals + 2));
    store(p.coefficients + MOERL_ROUTER_BALANCE, static_cast<float>(per_segment));
    store(p.coefficients + MOERL_ROUTER_Z, static_cast<float>(2.0 * z));
    store(p.coefficients + MOERL_ROUTER_ENTROPY, static_cast<float>(entropy));
    store(p.coefficients + MOERL_ROUTER_KL, static_cast<float>(kl));
}

// b_e += u sign(sum of n - E n_e), in one block.
MOERL_DEVICE void update_bias(const MoerlRouterLoss& p) {
    MOERL_SHARED(uint64_t, partial, FINISH_THREADS);
    const uint64_t experts = p.router.experts;
    uint64_t sum = 0;
    for (uint64_t e = thread_index(); e < experts; e += FINISH_THREADS) sum += load(p.counts + e);
    partial[thread_index()] = sum;
    sync_block();
    sum = 0;
    for (int t = 0; t < FINISH_THREADS; t++) sum += partial[t];
    for (uint64_t e = thread_index(); e < experts; e += FINISH_THREADS) {
        const uint64_t load_of = experts * load(p.counts + e);
        if (load_of == sum) continue;
        store(p.selection_bias + e, load(p.selection_bias + e) + (load_of < sum ? p.bias_step : -p.bias_step));
    }
}
