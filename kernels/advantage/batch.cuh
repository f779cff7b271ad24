// What concerns a whole batch: its mean and deviation, whitening by them, counted tokens, and estimates that need no neighbour.
//
//   moments   [W, sum w x] in a first pass, sum w (x - sum w x / W)^2 in a second: sums that an all-reduce may add up in between
//   whiten    (x - mean) / sqrt(var + eps), or / (sd + eps); var = squares / (W - ddof)
//
// Data. A block takes MOERL_MOMENTS_TILE values, thread t the values t, t + 256, ...; the block that arrives last adds the tiles up. All in f64: values of
// f32 and a mean that is known first leave nothing to cancel. What is masked, counts 0 times or is not finite
// is absent.
#pragma once

#include "sums.cuh"

MOERL_DEVICE bool is_counted(const uint8_t* mask, uint64_t at) { return mask == nullptr || load_stream(mask + at) != 0; }

MOERL_DEVICE void moments_of(const MoerlMoments& p) {
    const bool squares = p.squares != 0;
    const double mean = squares ? load(p.moments + 1) / load(p.moments) : 0.0;
    const uint64_t first = static_cast<uint64_t>(block_index()) * MOERL_MOMENTS_TILE;
    const uint32_t tiles = grid_size();
    double weight = 0.0, sum = 0.0;
    MOERL_UNROLL
    for (uint32_t i = 0; i < MOERL_MOMENTS_TILE / SUM_THREADS; i++) {
        const uint64_t at = first + i * SUM_THREADS + thread_index();
        if (at >= p.length || !is_counted(p.mask, at)) continue;
        const float value = load_stream(p.values + at);
        const double of_value = p.weights != nullptr ? static_cast<double>(load_stream(p.weights + at)) : 1.0;
        // Where nothing counts there is no mean: 0 times a NaN is no 0.
        if (!is_finite(value) || of_value == 0.0) continue;
        const double difference = static_cast<double>(value) - mean;
        weight += of_value;
        sum += of_value * (squares ? difference * difference : difference);
    }
    weight = block_join(weight, Add());
    sum = block_join(sum, Add());
    if (thread_index() == 0) {
        store(p.records + 2 * static_cast<uint64_t>(block_index()), weight);
        store(p.records + 2 * static_cast<uint64_t>(block_index()) + 1, sum);
    }
    if (!block_is_last(p.ticket, tiles)) return;
    weight = 0.0;
    sum = 0.0;
    for (uint64_t tile = thread_index(); tile < tiles; tile += SUM_THREADS) {
        weight += load(p.records + 2 * tile);
        sum += load(p.records + 2 * tile + 1);
    }
    weight = block_join(weight, Add());
    sum = block_join(sum, Add());
    if (thread_index() != 0) return;
    if (squares) {
        store(p.moments + 2, sum);
    } else {
        store(p.moments, weight);
        store(p.moments + 1, sum);
        store(p.moments + 2, 0.0);
    }
}

MOERL_DEVICE void whiten(const MoerlWhiten& p) {
    const double weight = load(p.moments), degrees = weight - static_cast<double>(p.ddof);
    const double mean = p.centre && weight > 0.0 ? load(p.moments + 1) / weight : 0.0;
    double factor = 0.0;  // of one value, or none, there is no deviation
    if (degrees > 0.0 && weight > 1.0) {
        const double variance = load(p.moments + 2) / degrees;
        factor = 1.0 / (p.epsilon_in_root ? sqrt(variance + p.epsilon) : sqrt(variance) + p.epsilon);
    }
    const uint64_t first = static_cast<uint64_t>(block_index()) * MOERL_MOMENTS_TILE;
    MOERL_UNROLL
    for (uint32_t i = 0; i < MOERL_MOMENTS_TILE / SUM_THREADS; i++) {
        const uint64_t at = first + i * SUM_THREADS + thread_index();
        if (at >= p.length) break;
        float whitened = 0.0f;
        if (is_counted(p.mask, at)) {
            const float value = load(p.values + at);
            const double difference = static_cast<double>(value) - mean;
            // With eps = 0 and equal values the factor is infinite.
            if (is_finite(value) && difference != 0.0 && factor != 0.0) whitened = static_cast<float>(difference * factor);
        }
        store(p.values + at, whitened);
    }
}

MOERL_DEVICE uint32_t count_range(const MoerlCountTokens& p, uint64_t begin, uint64_t end, uint32_t first, uint32_t step) {
    uint32_t count = 0;
    for (uint64_t at = begin + first; at < end; at += step) count += is_counted(p.loss_mask, at) ? 1u : 0u;
    return count;
}

// A warp a unit: a tile by all lanes, whole segments by a lane each unless they are long.
MOERL_DEVICE void count_units(const MoerlCountTokens& p) {
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index >= p.unit_count) return;
    const MoerlUnit unit = load_unit(p.units + index);
    const uint32_t lane = lane_index();
    if (unit.segments == 0) {
        const uint32_t count = reduce_add_u32(count_range(p, unit.token, unit.token + unit.tokens, lane, WARP));
        if (lane == 0 && count != 0) atomic_add(p.counts + unit.segment, count);
        return;
    }
    for (uint32_t base = 0; base < unit.segments; base += WARP) {
        const bool is_segment = base + lane < unit.segments;
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + base + lane;
        const uint64_t begin = is_segment ? static_cast<uint64_t>(load(p.offsets + segment)) : 0;
        const uint64_t end = is_segment ? static_cast<uint64_t>(load(p.offsets + segment + 1)) : 0;
        uint32_t count = end - begin <= SHORT ? count_range(p, begin, end, 0, 1) : 0;
        for (uint32_t longer = ballot(end - begin > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer);
            const uint32_t found = reduce_add_u32(count_range(p, shuffle(begin, owner), shuffle(end, owner), lane, WARP));
            if (static_cast<int>(lane) == owner) count = found;
        }
        if (is_segment) store(p.counts + segment, count);
    }
}

// A_i = W_i (R_i - V_i), J_i = V_i + A_i.
MOERL_DEVICE void doubly_robust_segments(const MoerlDoublyRobust& p) {
    const uint64_t segment = static_cast<uint64_t>(block_index()) * block_size() + thread_index();
    bool is_broken = false;
    if (segment < p.segments) {
        const float reward = load_stream(p.rewards + segment), value = load_stream(p.values + segment);
        const float weight = p.weights != nullptr ? load_stream(p.weights + segment) : 1.0f;
        is_broken = !is_finite(reward) || !is_finite(value) || !is_finite(weight);
        const double advantage = is_broken ? 0.0 : static_cast<double>(weight) * (static_cast<double>(reward) - static_cast<double>(value));
        store(p.advantages + segment, static_cast<float>(advantage));
        if (p.estimates != nullptr) store(p.estimates + segment, static_cast<float>((is_finite(value) ? static_cast<double>(value) : 0.0) + advantage));
    }
    const uint32_t broken = sync_block_count(is_broken);
    if (thread_index() == 0 && broken != 0 && p.nonfinite != nullptr) atomic_add(p.nonfinite, static_cast<uint64_t>(broken));
}
