// Group-normalised advantages.
//
//   A_i = (R_i - mean) / (sd + eps), or R_i - mean
//
// Data. A warp takes a group; its lanes take members in turn, wherever they lie. Each reward is read three times, the second and third
// time from the cache: a group is 4 to 64 answers.
//
// Tricks. Two passes in f64, mean first: E[x^2] - E[x]^2 cancels. Lanes add their members in ascending order and fold by halves, so a group's
// bits depend on its members' order alone.
#include "block.cuh"

constexpr int GROUP_WARPS = 4;

MOERL_DEVICE bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

MOERL_DEVICE double warp_sum_f64(double x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

struct GroupFacts {
    uint32_t count;  // of finite rewards
    double mean;
    float min, max;
};

template <class Visit> MOERL_DEVICE void for_members(const MoerlGroupAdvantages& p, uint32_t begin, uint32_t end, Visit visit) {
    for (uint64_t at = static_cast<uint64_t>(begin) + lane_index(); at < end; at += WARP) {
        const uint32_t member = load(p.members + at);
        visit(member, load(p.rewards + member));
    }
}

MOERL_DEVICE GroupFacts facts_of(const MoerlGroupAdvantages& p, uint32_t begin, uint32_t end) {
    const float infinity = f32_of(0x7f800000u);
    uint32_t count = 0;
    double sum = 0.0;
    float min = infinity, max = -infinity;
    for_members(p, begin, end, [&](uint32_t, float reward) {
        if (!is_finite(reward)) return;
        count++;
        sum += static_cast<double>(reward);
        min = fminf(min, reward);
        max = fmaxf(max, reward);
    });
    count = reduce_add_u32(count);
    sum = warp_sum_f64(sum);
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        min = fminf(min, shuffle_xor(min, lanes));
        max = fmaxf(max, shuffle_xor(max, lanes));
    }
    return {count, count != 0 ? sum / static_cast<double>(count) : 0.0, min, max};
}

// What the differences from the mean are multiplied by.
MOERL_DEVICE double factor_of(const MoerlGroupAdvantages& p, uint32_t begin, uint32_t end, const GroupFacts& facts) {
    if (!p.divide) return 1.0;
    double squares = 0.0;
    for_members(p, begin, end, [&](uint32_t, float reward) {
        const double difference = static_cast<double>(reward) - facts.mean;
        if (is_finite(reward)) squares += difference * difference;
    });
    squares = warp_sum_f64(squares);
    return 1.0 / (sqrt(squares / static_cast<double>(facts.count - p.ddof)) + p.epsilon);
}

MOERL_DEVICE bool is_degenerate(const MoerlGroupAdvantages& p, const GroupFacts& facts) {
    if (!(p.degenerate_tol > 0.0) || facts.count < 2) return false;
    const double largest = static_cast<double>(fmaxf(fmaxf(facts.max, -facts.min), 1.0f));
    return static_cast<double>(facts.max) - static_cast<double>(facts.min) <= p.degenerate_tol * largest;
}

MOERL_KERNEL(group_advantages, MoerlGroupAdvantages, 128) {
    MOERL_SHARED(uint32_t, counts, 3);
    if (thread_index() < 3) counts[thread_index()] = 0;
    sync_block();
    const uint64_t group = static_cast<uint64_t>(block_index()) * GROUP_WARPS + warp_index();
    if (group < p.groups) {
        const uint32_t begin = load(p.group_ptr + group), end = load(p.group_ptr + group + 1);
        const GroupFacts facts = facts_of(p, begin, end);
        const bool is_flat = is_degenerate(p, facts);
        const double factor = facts.count > 1 && !is_flat ? factor_of(p, begin, end, facts) : 1.0;
        for_members(p, begin, end, [&](uint32_t member, float reward) {
            const double difference = static_cast<double>(reward) - facts.mean;
            float advantage = 0.0f;
            if (facts.count == 1) advantage = p.single_keeps_reward ? reward : 0.0f;
            // With eps = 0 and equal rewards the factor is infinite.
            else if (!is_flat && difference != 0.0) advantage = static_cast<float>(difference * factor);
            store(p.advantages + member, is_finite(reward) ? advantage : 0.0f);
        });
        if (lane_index() == 0) {
            if (is_flat) shared_atomic_add(counts, 1u);
            if (end - begin == 1) shared_atomic_add(counts + 1, 1u);
            const uint32_t lost = end - begin - facts.count;
            if (lost != 0) shared_atomic_add(counts + 2, lost);
        }
    }
    sync_block();
    if (p.counts != nullptr && thread_index() < 3 && counts[thread_index()] != 0) {
        atomic_add(p.counts + thread_index(), static_cast<uint64_t>(counts[thread_index()]));
    }
}
