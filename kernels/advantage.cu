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

template <class Join> MOERL_DEVICE double warp_fold(double x, Join join) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = join(x, shuffle_xor(x, lanes));
    return x;
}

struct GroupFacts {
    double count, mean, min, max;
};

template <class Visit> MOERL_DEVICE void for_members(const MoerlGroupAdvantages& p, uint32_t begin, uint32_t end, Visit visit) {
    for (uint64_t at = static_cast<uint64_t>(begin) + lane_index(); at < end; at += WARP) {
        const uint32_t member = load(p.members + at);
        visit(member, load(p.rewards + member));
    }
}

MOERL_DEVICE GroupFacts facts_of(const MoerlGroupAdvantages& p, uint32_t begin, uint32_t end) {
    const double infinity = static_cast<double>(f32_of(0x7f800000u));
    double count = 0.0, sum = 0.0, min = infinity, max = -infinity;
    for_members(p, begin, end, [&](uint32_t, float reward) {
        if (!is_finite(reward)) return;
        const double r = static_cast<double>(reward);
        count += 1.0;
        sum += r;
        min = r < min ? r : min;
        max = r > max ? r : max;
    });
    const auto add = [](double a, double b) { return a + b; };
    count = warp_fold(count, add);
    sum = warp_fold(sum, add);
    min = warp_fold(min, [](double a, double b) { return b < a ? b : a; });
    max = warp_fold(max, [](double a, double b) { return b > a ? b : a; });
    return {count, count > 0.0 ? sum / count : 0.0, min, max};
}

// What the differences from the mean are multiplied by.
MOERL_DEVICE double factor_of(const MoerlGroupAdvantages& p, uint32_t begin, uint32_t end, const GroupFacts& facts) {
    if (!p.divide) return 1.0;
    double squares = 0.0;
    for_members(p, begin, end, [&](uint32_t, float reward) {
        const double difference = static_cast<double>(reward) - facts.mean;
        if (is_finite(reward)) squares += difference * difference;
    });
    squares = warp_fold(squares, [](double a, double b) { return a + b; });
    return 1.0 / (sqrt(squares / (facts.count - static_cast<double>(p.ddof))) + p.epsilon);
}

MOERL_DEVICE bool is_degenerate(const MoerlGroupAdvantages& p, const GroupFacts& facts) {
    if (!(p.degenerate_tol > 0.0) || facts.count < 2.0) return false;
    double largest = facts.max > -facts.min ? facts.max : -facts.min;
    largest = largest > 1.0 ? largest : 1.0;
    return facts.max - facts.min <= p.degenerate_tol * largest;
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
        const double factor = facts.count > 1.0 && !is_flat ? factor_of(p, begin, end, facts) : 1.0;
        for_members(p, begin, end, [&](uint32_t member, float reward) {
            const double difference = static_cast<double>(reward) - facts.mean;
            float advantage = 0.0f;
            if (facts.count == 1.0) advantage = p.single_keeps_reward ? reward : 0.0f;
            // With eps = 0 and equal rewards the factor is infinite.
            else if (!is_flat && difference != 0.0) advantage = static_cast<float>(difference * factor);
            store(p.advantages + member, is_finite(reward) ? advantage : 0.0f);
        });
        if (lane_index() == 0) {
            if (is_flat) shared_atomic_add(counts, 1u);
            if (end - begin == 1) shared_atomic_add(counts + 1, 1u);
            const uint32_t lost = end - begin - static_cast<uint32_t>(facts.count);
            if (lost != 0) shared_atomic_add(counts + 2, lost);
        }
    }
    sync_block();
    if (p.counts != nullptr && thread_index() < 3 && counts[thread_index()] != 0) {
        atomic_add(p.counts + thread_index(), static_cast<uint64_t>(counts[thread_index()]));
    }
}
