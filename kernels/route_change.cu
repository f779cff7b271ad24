// How the ratio moves where the routing has: sums over counted tokens by how many of their experts changed.
//
//   bin b: count, sum |D|, sum D^2, sum d, sum d^2, clipped, rejected      D = l - o, d = o - q
//
// Data. A block takes 1024 tokens, a thread eight of them, 128 apart; 4 + 4 + 4 bytes a token and a byte for each mask, once.
//
// Tricks. A thread has a column of shared memory of its own for every bin and sum, so that nothing is added atomically but counts; columns join in
// f64 in the order of threads, blocks in the order of blocks, by the block that arrives last.
#include "block.cuh"

constexpr uint32_t THREADS = 128, TOKENS_AT_ONCE = 8, BINS = MOERL_ROUTE_BINS, REALS = 4, COUNTS = 3, NUMBERS = MOERL_ROUTE_NUMBERS;
static_assert(NUMBERS == REALS + COUNTS && BINS * NUMBERS <= THREADS, "a thread a number");

// Where number `i` of a bin's sums stands among count, |D|, D^2, d, d^2, clipped, rejected.
MOERL_DEVICE uint32_t place_of_real(uint32_t i) { return 1 + i; }
MOERL_DEVICE uint32_t place_of_count(uint32_t i) { return i == 0 ? 0u : 4 + i; }

MOERL_DEVICE void add_token(const MoerlRouteChange& p, uint64_t token, float* reals, uint32_t* counts) {
    if (p.loss_mask != nullptr && load_stream(p.loss_mask + token) == 0) return;
    const float logprob = load_stream(p.logprobs + token), old = load_stream(p.old_logprobs + token);
    const float rollout = p.rollout_logprobs != nullptr ? load_stream(p.rollout_logprobs + token) : old;
    if (!is_finite(logprob) || !is_finite(old) || !is_finite(rollout)) return;
    const float moved = logprob - old, apart = old - rollout;
    const uint32_t changed = load_stream(p.route_change + token), bin = changed < BINS ? changed : BINS - 1;
    const float values[REALS] = {fabsf(moved), moved * moved, apart, apart * apart};
    MOERL_UNROLL
    for (uint32_t i = 0; i < REALS; i++) reals[(i * BINS + bin) * THREADS + thread_index()] += values[i];
    shared_atomic_add(counts + bin, 1u);
    if (p.clipped != nullptr && load_stream(p.clipped + token) != 0) shared_atomic_add(counts + BINS + bin, 1u);
    if (p.keep != nullptr && load_stream(p.keep + token) == 0) shared_atomic_add(counts + 2 * BINS + bin, 1u);
}

MOERL_KERNEL(route_change, MoerlRouteChange, 128) {
    MOERL_SHARED(float, reals, REALS * BINS * THREADS);
    MOERL_SHARED(uint32_t, counts, COUNTS * BINS);
    MOERL_SHARED(uint32_t, last, 1);
    for (uint32_t i = thread_index(); i < REALS * BINS * THREADS; i += THREADS) reals[i] = 0.0f;
    if (thread_index() < COUNTS * BINS) counts[thread_index()] = 0;
    sync_block();
    for (uint32_t v = 0; v < TOKENS_AT_ONCE; v++) {
        const uint64_t token = (static_cast<uint64_t>(block_index()) * TOKENS_AT_ONCE + v) * THREADS + thread_index();
        if (token < p.tokens) add_token(p, token, reals, counts);
    }
    sync_block();
    const uint32_t number = thread_index();
    double sum = 0.0;
    uint32_t place = 0;
    const bool takes_part = number < NUMBERS * BINS;
    if (number < REALS * BINS) {
        for (uint32_t thread = 0; thread < THREADS; thread++) sum += static_cast<double>(reals[number * THREADS + thread]);
        place = number % BINS * NUMBERS + place_of_real(number / BINS);
    } else if (takes_part) {
        const uint32_t of_counts = number - REALS * BINS;
        sum = static_cast<double>(counts[of_counts]);
        place = of_counts % BINS * NUMBERS + place_of_count(of_counts / BINS);
    }
    if (takes_part) store(p.records + static_cast<uint64_t>(block_index()) * BINS * NUMBERS + place, sum);
    fence_device();
    sync_block();
    if (thread_index() == 0) {
        const uint32_t before = atomic_add(p.ticket, 1u);
        last[0] = before == grid_size() - 1 ? 1u : 0u;
    }
    sync_block();
    fence_device();
    if (last[0] == 0 || !takes_part) return;
    double total = p.accumulate ? load(p.sums + place) : 0.0;
    for (uint64_t block = 0; block < grid_size(); block++) total += load(p.records + block * BINS * NUMBERS + place);
    store(p.sums + place, total);
}
