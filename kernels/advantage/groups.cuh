// Rewards against those of their group.
//
//   mean                A_i = R_i - mean, over sd + eps where asked for                 (GRPO, Dr. GRPO)
//   leave one out       A_i = R_i - mean of the others = (R_i - mean) K / (K - 1)       (RLOO)
//   length weighted     A_i = R_i - sum n R / sum n                                     (OPO)
//
// Data. A warp takes a group of up to MOERL_GROUP_CHUNK members; its lanes take members in turn, wherever they lie. Each reward is read three
// times, the second and third time from the cache: a group is 4 to 64 answers. Larger groups are cut into chunks, a block each, and the block that
// arrives last adds the chunks up; a launch for sums, one for squares, one to write.
//
// Tricks. Two passes in f64, mean first: E[x^2] - E[x]^2 cancels. Threads add their members in ascending order and fold by halves, so a group's
// bits depend on its members' order alone.
#pragma once

#include "sums.cuh"

constexpr uint32_t GROUP_WARPS = 4;

// Calls visit(member, reward) for this thread's share of members begin..end.
template <class Visit> MOERL_DEVICE void for_members(const MoerlGroupAdvantages& p, uint64_t begin, uint64_t end, uint32_t first, uint32_t step, Visit visit) {
    for (uint64_t at = begin + first; at < end; at += step) {
        const uint32_t member = load(p.members + at);
        visit(member, load(p.rewards + member));
    }
}

// What one thread's members come to.
MOERL_DEVICE MoerlGroupSums sums_of(const MoerlGroupAdvantages& p, uint64_t begin, uint64_t end, uint32_t first, uint32_t step) {
    const double infinity = static_cast<double>(f32_of(0x7f800000u));
    MoerlGroupSums s = {0.0, 0.0, infinity, -infinity, 0.0, 0.0};
    for_members(p, begin, end, first, step, [&](uint32_t member, float reward) {
        if (!is_finite(reward)) return;
        const double value = static_cast<double>(reward);
        s.count += 1.0;
        s.sum += value;
        s.min = Smaller()(s.min, value);
        s.max = Larger()(s.max, value);
        if (p.baseline == MOERL_BASELINE_LENGTH_WEIGHTED) {
            const double length = static_cast<double>(load(p.lengths + member));
            s.weight += length;
            s.weighted += length * value;
        }
    });
    return s;
}

MOERL_DEVICE double squares_of(const MoerlGroupAdvantages& p, uint64_t begin, uint64_t end, uint32_t first, uint32_t step, double mean) {
    double squares = 0.0;
    for_members(p, begin, end, first, step, [&](uint32_t, float reward) {
        const double difference = static_cast<double>(reward) - mean;
        if (is_finite(reward)) squares += difference * difference;
    });
    return squares;
}

MOERL_DEVICE bool is_degenerate(const MoerlGroupAdvantages& p, const MoerlGroupSums& s) {
    if (!(p.degenerate_tol > 0.0) || s.count < 2.0) return false;
    const double largest = Larger()(Larger()(s.max, -s.min), 1.0);
    return s.max - s.min <= p.degenerate_tol * largest;
}

// All but the factor of a division by the standard deviation.
MOERL_DEVICE MoerlGroupScale scale_of(const MoerlGroupAdvantages& p, const MoerlGroupSums& s) {
    const double mean = s.count > 0.0 ? s.sum / s.count : 0.0;
    MoerlGroupScale scale = {mean, mean, 1.0, static_cast<uint32_t>(s.count), is_degenerate(p, s)};
    if (p.baseline == MOERL_BASELINE_LEAVE_ONE_OUT && s.count > 1.0) scale.factor = s.count / (s.count - 1.0);
    // Where nobody has a token, nobody reads the advantage: a factor of 0 keeps it finite.
    if (p.baseline == MOERL_BASELINE_LENGTH_WEIGHTED) {
        scale.shift = s.weight > 0.0 ? s.weighted / s.weight : 0.0;
        scale.factor = s.weight > 0.0 ? 1.0 : 0.0;
    }
    return scale;
}

MOERL_DEVICE bool divides(const MoerlGroupAdvantages& p, const MoerlGroupScale& scale) {
    return p.divide != 0 && scale.count > 1 && scale.is_flat == 0;
}

MOERL_DEVICE double factor_of(const MoerlGroupAdvantages& p, const MoerlGroupScale& scale, double squares) {
    return scale.factor / (sqrt(squares / static_cast<double>(scale.count - p.ddof)) + p.epsilon);
}

MOERL_DEVICE float advantage_of(const MoerlGroupAdvantages& p, const MoerlGroupScale& scale, float reward) {
    if (!is_finite(reward)) return p.left_out;
    if (scale.is_flat != 0) return 0.0f;
    if (scale.count == 1) return p.single_keeps_reward ? reward : 0.0f;
    const double difference = static_cast<double>(reward) - scale.shift;
    // With eps = 0 and equal rewards the factor is infinite.
    return difference != 0.0 ? static_cast<float>(difference * scale.factor) : 0.0f;
}

MOERL_DEVICE void add_count(uint64_t* counts, uint32_t which, uint64_t number) {
    if (counts != nullptr && number != 0) atomic_add(counts + which, number);
}

// A warp a group, if it is not for the blocks below.
MOERL_DEVICE void small_groups(const MoerlGroupAdvantages& p) {
    MOERL_SHARED(uint32_t, counts, 3);
    if (thread_index() < 3) counts[thread_index()] = 0;
    sync_block();
    const uint64_t group = static_cast<uint64_t>(block_index()) * GROUP_WARPS + warp_index();
    const uint32_t lane = lane_index();
    const uint32_t begin = group < p.groups ? load(p.group_ptr + group) : 0, end = group < p.groups ? load(p.group_ptr + group + 1) : 0;
    if (begin != end && end - begin <= MOERL_GROUP_CHUNK) {
        MoerlGroupSums sums = sums_of(p, begin, end, lane, WARP);
        sums.count = warp_join(sums.count, Add());
        sums.sum = warp_join(sums.sum, Add());
        sums.min = warp_join(sums.min, Smaller());
        sums.max = warp_join(sums.max, Larger());
        if (p.baseline == MOERL_BASELINE_LENGTH_WEIGHTED) {
            sums.weight = warp_join(sums.weight, Add());
            sums.weighted = warp_join(sums.weighted, Add());
        }
        MoerlGroupScale scale = scale_of(p, sums);
        if (divides(p, scale)) scale.factor = factor_of(p, scale, warp_join(squares_of(p, begin, end, lane, WARP, scale.mean), Add()));
        for_members(p, begin, end, lane, WARP, [&](uint32_t member, float reward) { store(p.advantages + member, advantage_of(p, scale, reward)); });
        if (lane == 0) {
            if (scale.is_flat != 0) shared_atomic_add(counts, 1u);
            if (end - begin == 1) shared_atomic_add(counts + 1, 1u);
            const uint32_t lost = end - begin - scale.count;
            if (lost != 0) shared_atomic_add(counts + 2, lost);
        }
    }
    sync_block();
    if (thread_index() < 3) add_count(p.counts, thread_index(), counts[thread_index()]);
}

// One block's chunk of a large group.
struct Chunk {
    uint64_t begin, end;  // members
    uint64_t first;       // where the list of chunks has the group's first one
    uint32_t members;     // of the whole group
    uint32_t chunks;      // likewise
};

MOERL_DEVICE Chunk chunk_of(const MoerlGroupAdvantages& p) {
    const uint32_t group = load(&p.chunks[block_index()].group), index = load(&p.chunks[block_index()].index);
    const uint64_t begin = load(p.group_ptr + group), end = load(p.group_ptr + group + 1);
    const uint64_t from = begin + static_cast<uint64_t>(index) * MOERL_GROUP_CHUNK;
    const uint64_t to = end - from < MOERL_GROUP_CHUNK ? end : from + MOERL_GROUP_CHUNK;
    const uint32_t members = static_cast<uint32_t>(end - begin);
    return {from, to, block_index() - index, members, (members + MOERL_GROUP_CHUNK - 1) / MOERL_GROUP_CHUNK};
}

// The group's sums, from those of its chunks; thread t takes the chunks t, t + 256, ...
template <class Join> MOERL_DEVICE double join_chunks(const double* first, uint32_t stride, uint32_t chunks, double nothing, Join join) {
    double mine = nothing;
    for (uint32_t chunk = thread_index(); chunk < chunks; chunk += SUM_THREADS) mine = join(mine, load(first + static_cast<uint64_t>(chunk) * stride));
    return block_join(mine, join);
}

constexpr uint32_t SUMS_STRIDE = sizeof(MoerlGroupSums) / sizeof(double);

MOERL_DEVICE void chunk_sums(const MoerlGroupAdvantages& p) {
    const Chunk c = chunk_of(p);
    const MoerlGroupSums mine = sums_of(p, c.begin, c.end, thread_index(), SUM_THREADS);
    const MoerlGroupSums sums = {block_join(mine.count, Add()), block_join(mine.sum, Add()), block_join(mine.min, Smaller()), block_join(mine.max, Larger()),
                                 block_join(mine.weight, Add()), block_join(mine.weighted, Add())};
    if (thread_index() == 0) {
        MoerlGroupSums* const to = p.sums + block_index();
        store(&to->count, sums.count);
        store(&to->sum, sums.sum);
        store(&to->min, sums.min);
        store(&to->max, sums.max);
        store(&to->weight, sums.weight);
        store(&to->weighted, sums.weighted);
    }
    if (!block_is_last(p.tickets + c.first, c.chunks)) return;
    const MoerlGroupSums* const first = p.sums + c.first;
    const double infinity = static_cast<double>(f32_of(0x7f800000u));
    MoerlGroupSums all;
    all.count = join_chunks(&first->count, SUMS_STRIDE, c.chunks, 0.0, Add());
    all.sum = join_chunks(&first->sum, SUMS_STRIDE, c.chunks, 0.0, Add());
    all.min = join_chunks(&first->min, SUMS_STRIDE, c.chunks, infinity, Smaller());
    all.max = join_chunks(&first->max, SUMS_STRIDE, c.chunks, -infinity, Larger());
    all.weight = join_chunks(&first->weight, SUMS_STRIDE, c.chunks, 0.0, Add());
    all.weighted = join_chunks(&first->weighted, SUMS_STRIDE, c.chunks, 0.0, Add());
    if (thread_index() != 0) return;
    const MoerlGroupScale scale = scale_of(p, all);
    MoerlGroupScale* const to = p.scales + c.first;
    store(&to->mean, scale.mean);
    store(&to->shift, scale.shift);
    store(&to->factor, scale.factor);
    store(&to->count, scale.count);
    store(&to->is_flat, scale.is_flat);
    add_count(p.counts, 0, scale.is_flat);
    add_count(p.counts, 2, c.members - scale.count);
}

MOERL_DEVICE MoerlGroupScale load_scale(const MoerlGroupScale* from) {
    return {load(&from->mean), load(&from->shift), load(&from->factor), load(&from->count), load(&from->is_flat)};
}

MOERL_DEVICE void chunk_squares(const MoerlGroupAdvantages& p) {
    const Chunk c = chunk_of(p);
    const MoerlGroupScale scale = load_scale(p.scales + c.first);
    if (!divides(p, scale)) return;
    const double squares = block_join(squares_of(p, c.begin, c.end, thread_index(), SUM_THREADS, scale.mean), Add());
    if (thread_index() == 0) store(p.squares + block_index(), squares);
    if (!block_is_last(p.tickets + c.first, c.chunks)) return;
    const double all = join_chunks(p.squares + c.first, 1, c.chunks, 0.0, Add());
    if (thread_index() == 0) store(&p.scales[c.first].factor, factor_of(p, scale, all));
}

MOERL_DEVICE void chunk_apply(const MoerlGroupAdvantages& p) {
    const Chunk c = chunk_of(p);
    const MoerlGroupScale scale = load_scale(p.scales + c.first);
    for_members(p, c.begin, c.end, thread_index(), SUM_THREADS,
                [&](uint32_t member, float reward) { store(p.advantages + member, advantage_of(p, scale, reward)); });
}
