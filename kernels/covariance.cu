// Which tokens Clip-Cov and KL-Cov single out.
//
//   cov_u = (A_u - mean A) (l_u - mean l), means over counted tokens
//   random     of the tokens with lower < cov < upper, the k with the smallest Philox keys
//   bernoulli  of those, each by its own coin
//   largest    the k with the largest cov
//   k = max(1, floor(fraction n)); ties by token id
//
// Data. A thread takes four tokens of a block's 1024, 256 apart. Means take one launch, the k-th key eight: a digit of 8 bits each, counted by
// integer atomics and settled by the block that arrives last. Marking is the last launch. Inputs are read once a launch; nothing is sorted.
//
// Tricks. A key is 64 bits: the order in the high half, the token's id in the low one, so that every choice is one of keys that differ, and
// depends on ids, not on places. Sums are in f64, by the position in the batch.
#include "block.cuh"
#include "philox.cuh"

constexpr uint32_t THREADS = 256, WARPS = THREADS / WARP, TOKENS_AT_ONCE = 4, BINS = 256;
static_assert(THREADS == BINS, "a thread clears its bin");

struct Candidate {
    double advantage, logprob;
    uint64_t token;
    bool counts;
};

MOERL_DEVICE Candidate candidate(const MoerlCovariance& p, uint32_t v) {
    Candidate r = {0.0, 0.0, static_cast<uint64_t>(block_index()) * THREADS * TOKENS_AT_ONCE + v * THREADS + thread_index(), false};
    if (r.token >= p.tokens || (p.loss_mask != nullptr && load_stream(p.loss_mask + r.token) == 0)) return r;
    const float advantage = load_stream(p.advantages + r.token), logprob = load_stream(p.logprobs + r.token);
    if (!is_finite(advantage) || !is_finite(logprob)) return r;
    return {static_cast<double>(advantage), static_cast<double>(logprob), r.token, true};
}

MOERL_DEVICE double warp_sum_f64(double x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

// The block's sum, in thread 0.
MOERL_DEVICE double block_sum(double x, double* shared) {
    x = warp_sum_f64(x);
    if (lane_index() == 0) shared[warp_index()] = x;
    sync_block();
    double sum = 0.0;
    for (uint32_t warp = 0; warp < WARPS; warp++) sum += shared[warp];
    sync_block();
    return sum;
}

// True in every thread of the block that arrives last. What the others stored before is then visible.
MOERL_DEVICE bool is_last_block(const MoerlCovariance& p, uint32_t* shared) {
    fence_device();
    sync_block();
    if (thread_index() == 0) {
        const uint32_t before = atomic_add(p.ticket, 1u);
        shared[0] = before == grid_size() - 1 ? 1u : 0u;
        if (shared[0] != 0) atomic_min(p.ticket, 0u);
    }
    sync_block();
    fence_device();
    return shared[0] != 0;
}

MOERL_KERNEL(covariance_means, MoerlCovariance, 256) {
    MOERL_SHARED(double, shared, WARPS);
    MOERL_SHARED(uint32_t, last, 1);
    double sums[3] = {0.0, 0.0, 0.0};
    for (uint32_t v = 0; v < TOKENS_AT_ONCE; v++) {
        const Candidate own = candidate(p, v);
        sums[0] += own.advantage;
        sums[1] += own.logprob;
        sums[2] += own.counts ? 1.0 : 0.0;
    }
    for (uint32_t i = 0; i < 3; i++) {
        const double sum = block_sum(sums[i], shared);
        if (thread_index() == 0) store(p.sums + 3 * static_cast<uint64_t>(block_index()) + i, sum);
    }
    if (!is_last_block(p, last)) return;
    for (uint32_t i = 0; i < 3; i++) {
        double sum = 0.0;
        for (uint64_t block = thread_index(); block < grid_size(); block += THREADS) sum += load(p.sums + 3 * block + i);
        sums[i] = block_sum(sum, shared);
    }
    if (thread_index() != 0) return;
    const double count = sums[2];
    const uint64_t share = static_cast<uint64_t>(p.fraction * count);
    const uint64_t wanted = count > 0.0 ? (share > 1 ? share : 1) : 0;
    store(&p.state->mean_advantage, p.has_means ? p.mean_advantage : count > 0.0 ? sums[0] / count : 0.0);
    store(&p.state->mean_logprob, p.has_means ? p.mean_logprob : count > 0.0 ? sums[1] / count : 0.0);
    store(&p.state->prefix, uint64_t{0});
    store(&p.state->wanted, wanted);
}

struct Means {
    double advantage, logprob;
};

MOERL_DEVICE Means means_of(const MoerlCovariance& p) { return {load(&p.state->mean_advantage), load(&p.state->mean_logprob)}; }

// Bits that rise with x.
MOERL_DEVICE uint32_t ordered(float x) {
    const uint32_t bits = bits_of(x);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The key of a token that may be chosen.
MOERL_DEVICE bool key_of(const MoerlCovariance& p, const Means& means, const Candidate& own, uint64_t& key) {
    if (!own.counts || (p.excluded != nullptr && load_stream(p.excluded + own.token) != 0)) return false;
    const double covariance = (own.advantage - means.advantage) * (own.logprob - means.logprob);
    const uint32_t id = load_stream(p.token_ids + own.token);
    uint32_t order = ~ordered(static_cast<float>(covariance) + 0.0f);
    if (p.rule != MOERL_COVARIANCE_LARGEST) {
        if (!(covariance > p.lower && covariance < p.upper)) return false;
        order = philox4x32_10(p.seed, {{id, 0u, 1u, 0u}}).w[0];
    }
    key = static_cast<uint64_t>(order) << 32 | id;
    return true;
}

// The digit that the last chosen key goes on with, from how many keys have each.
MOERL_DEVICE void settle_digit(const MoerlCovariance& p) {
    uint64_t wanted = load(&p.state->wanted), total = 0;
    for (uint32_t bin = 0; bin < BINS; bin++) total += load(p.histogram + bin);
    if (wanted > total) wanted = total;
    uint64_t below = 0;
    uint32_t digit = 0;
    while (digit < BINS - 1 && below + load(p.histogram + digit) < wanted) below += load(p.histogram + digit++);
    store(&p.state->prefix, load(&p.state->prefix) << 8 | digit);
    store(&p.state->wanted, wanted - below);
}

MOERL_KERNEL(covariance_digit, MoerlCovariance, 256) {
    MOERL_SHARED(uint32_t, bins, BINS);
    MOERL_SHARED(uint32_t, last, 1);
    bins[thread_index()] = 0;
    sync_block();
    const Means means = means_of(p);
    const uint64_t prefix = load(&p.state->prefix);
    for (uint32_t v = 0; v < TOKENS_AT_ONCE; v++) {
        uint64_t key;
        const Candidate own = candidate(p, v);
        if (!key_of(p, means, own, key)) continue;
        // A shift by 64 is none: the first digit has no prefix.
        if (p.shift == 56 || key >> (p.shift + 8) == prefix) shared_atomic_add(bins + (key >> p.shift & 0xffu), 1u);
    }
    sync_block();
    if (bins[thread_index()] != 0) atomic_add(p.histogram + thread_index(), bins[thread_index()]);
    if (!is_last_block(p, last)) return;
    if (thread_index() == 0) settle_digit(p);
    sync_block();
    store(p.histogram + thread_index(), 0u);
}

MOERL_KERNEL(covariance_mark, MoerlCovariance, 256) {
    const Means means = means_of(p);
    const uint64_t last = load(&p.state->prefix);
    const bool any = load(&p.state->wanted) != 0;
    for (uint32_t v = 0; v < TOKENS_AT_ONCE; v++) {
        uint64_t key = 0;
        const Candidate own = candidate(p, v);
        if (own.token >= p.tokens) continue;
        const bool is_eligible = key_of(p, means, own, key);
        const bool is_chosen = is_eligible && (p.rule == MOERL_COVARIANCE_BERNOULLI ? key >> 32 < p.threshold : any && key <= last);
        if (p.chosen != nullptr) store_stream(p.chosen + own.token, static_cast<uint8_t>(is_chosen));
        if (p.keep != nullptr) store_stream(p.keep + own.token, static_cast<uint8_t>(!is_chosen));
    }
}
