// Phase 2: what a segment decides. A lane takes four neighbouring segments, a block a tile of 1024.
#pragma once

#include "../block.cuh"
#include "climb.cuh"
#include "ratio.cuh"

constexpr uint32_t FINISH_THREADS = 256;
constexpr uint32_t FINISH_WARPS = FINISH_THREADS / WARP;
constexpr uint32_t SEGMENTS_AT_ONCE = 4;

struct Finished {
    MoerlCoefficient coefficient;
    double value;
    uint32_t clipped;  // by the signs of S+ and S-
    uint32_t count;
    bool saturated_high, saturated_low;
};

struct SegmentTally {
    uint32_t segments, empty, dropped, above, below, capped, tokens_above, tokens_below, tokens_capped, saturated_high, saturated_low;
    double ratio;
    float max_ratio, max_negative_ratio;
};

// The product of what divides every coefficient.
MOERL_DEVICE double common_divisor(const MoerlObjective& p) {
    double product = 1.0;
    MOERL_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        if ((p.divisors >> i & 1u) == 0) continue;
        double value = p.divisor_values[i];
        if (p.denominators != nullptr) value = load(p.denominators + i);
        if (p.local_counts != nullptr && i < 2) value = static_cast<double>(load(p.local_counts + i));
        product *= value;
    }
    return product;
}

MOERL_DEVICE float coefficient_of(const MoerlObjective& p, double common, double count, uint64_t segment) {
    float c = static_cast<float>(p.scale / common);
    bool is_valid = common > 0.0;
    if ((p.divisors & MOERL_BY_COUNT) != 0) c /= static_cast<float>(count);
    if ((p.divisors & (MOERL_BY_SCALE | MOERL_TIMES_SCALE)) != 0) {
        const float scale = load(p.segment_scale + segment);
        if ((p.divisors & MOERL_TIMES_SCALE) != 0) {
            c *= scale;
        } else {
            is_valid = is_valid && scale > 0.0f;
            c /= scale;
        }
    }
    return is_valid ? c : f32_of(0x7fc00000u);
}

MOERL_DEVICE Finished finish_segment(const MoerlObjective& p, double common, uint64_t segment, bool spreads_evenly) {
    Finished r = {{1.0f, 0.0f, 0.0f, MOERL_EMPTY}, 0.0, 0, 0, false, false};
    const double count = load(p.count + segment);
    if (!(count > 0.0)) return r;
    r.count = static_cast<uint32_t>(count);
    const bool has_ratio = p.log_ratio != nullptr;
    const double log_ratio = has_ratio ? load(p.log_ratio + segment) : 0.0;
    // The logarithm is compared in f64 and without a division; the ratio itself needs no more than f32.
    const float x = static_cast<float>(log_ratio) / static_cast<float>(count);
    r.saturated_high = x > p.saturation_high;
    r.saturated_low = x < p.saturation_low;
    float ratio = expf(saturate(p, x));
    uint32_t flags = flags_of(log_ratio > count * p.log_upper, log_ratio < count * p.log_lower, log_ratio > count * p.log_cap);
    flags = with_passes(flags, is_inside(p, x));
    float weight = coefficient_of(p, common, count, segment);
    const bool has_unsound = p.nonfinite != nullptr && load(p.nonfinite + segment) > 0.0;
    if (has_unsound) {
        flags |= MOERL_NONFINITE;
        if (p.nonfinite_policy == MOERL_DROP_SEGMENT) {
            flags |= MOERL_DROPPED;
            weight = 0.0f;
        } else if (p.nonfinite_policy == MOERL_PROPAGATE && p.is_sequence_level) {
            ratio = f32_of(0x7fc00000u);
        }
    }
    r.coefficient = {ratio, weight, 0.0f, flags};
    if (!has_ratio) return r;
    const double positive = load(p.positive + segment), negative = load(p.negative + segment);
    r.clipped = clipped_for(flags, positive) | clipped_for(flags, negative);
    if (!p.is_sequence_level || (flags & MOERL_DROPPED) != 0) return r;
    const bool is_nan = ratio != ratio;
    // fminf and fmaxf would lose a NaN.
    const double bounded = static_cast<double>(bounded_for_positive(p, ratio)) * positive + static_cast<double>(bounded_for_negative(p, ratio)) * negative;
    r.value = is_nan ? static_cast<double>(ratio) : -static_cast<double>(weight) * bounded;
    if (spreads_evenly) {
        const double passing = ((flags & MOERL_PASS_POSITIVE) != 0 ? positive : 0.0) + ((flags & MOERL_PASS_NEGATIVE) != 0 ? negative : 0.0);
        r.coefficient.gradient = -weight * (ratio / static_cast<float>(count)) * static_cast<float>(passing) + 0.0f;
    }
    return r;
}

MOERL_DEVICE void count_segment(SegmentTally& tally, const MoerlObjective& p, const Finished& made) {
    if ((made.coefficient.flags & MOERL_EMPTY) != 0) {
        tally.empty++;
        return;
    }
    tally.segments++;
    tally.dropped += (made.coefficient.flags & MOERL_DROPPED) != 0;
    if (p.log_ratio == nullptr) return;
    tally.ratio += static_cast<double>(made.coefficient.ratio);
    tally.max_ratio = fmaxf(tally.max_ratio, made.coefficient.ratio);
    tally.max_negative_ratio = fmaxf(tally.max_negative_ratio, -made.coefficient.ratio);
    const bool above = (made.clipped & MOERL_ABOVE) != 0, below = (made.clipped & MOERL_BELOW) != 0, capped = (made.clipped & MOERL_CAPPED) != 0;
    tally.above += above;
    tally.below += below;
    tally.capped += capped;
    if (!p.is_sequence_level) return;
    tally.tokens_above += above ? made.count : 0u;
    tally.tokens_below += below ? made.count : 0u;
    tally.tokens_capped += capped ? made.count : 0u;
    tally.saturated_high += made.saturated_high;
    tally.saturated_low += made.saturated_low;
}

MOERL_DEVICE double warp_sum_f64(double x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

MOERL_DEVICE double spread(const SegmentTally& tally) {
    double mine = nothing(lane_index());
    place(mine, MOERL_SUM_SEGMENTS, reduce_add_u32(tally.segments));
    place(mine, MOERL_SUM_EMPTY_SEGMENTS, reduce_add_u32(tally.empty));
    place(mine, MOERL_SUM_DROPPED_SEGMENTS, reduce_add_u32(tally.dropped));
    place(mine, MOERL_SUM_SEQUENCE_CLIPPED_HIGH, reduce_add_u32(tally.above));
    place(mine, MOERL_SUM_SEQUENCE_CLIPPED_LOW, reduce_add_u32(tally.below));
    place(mine, MOERL_SUM_SEQUENCE_CAPPED, reduce_add_u32(tally.capped));
    // 128 segments of up to 2^32 tokens.
    place(mine, MOERL_SUM_CLIPPED_HIGH, warp_sum_f64(tally.tokens_above));
    place(mine, MOERL_SUM_CLIPPED_LOW, warp_sum_f64(tally.tokens_below));
    place(mine, MOERL_SUM_CAPPED, warp_sum_f64(tally.tokens_capped));
    place(mine, MOERL_SUM_SATURATED_HIGH, reduce_add_u32(tally.saturated_high));
    place(mine, MOERL_SUM_SATURATED_LOW, reduce_add_u32(tally.saturated_low));
    place(mine, MOERL_SUM_SEQUENCE_RATIO, warp_sum_f64(tally.ratio));
    place(mine, MOERL_MAX_SEQUENCE_RATIO, warp_max(tally.max_ratio));
    place(mine, MOERL_MAX_NEGATIVE_SEQUENCE_RATIO, warp_max(tally.max_negative_ratio));
    return mine;
}

// The block's 1024 values by the tree of unit.cuh, in f64, by one warp: value 128 k + 4 j + v lies where thread (k, j) put it.
MOERL_DEVICE double fold_values(const double* values) {
    double chains[4] = {0.0, 0.0, 0.0, 0.0};
    for (uint32_t k = 0; k < FINISH_WARPS; k++) {
        MOERL_UNROLL
        for (uint32_t v = 0; v < 4; v++) chains[v] += values[v * FINISH_THREADS + k * WARP + lane_index()];
    }
    return warp_sum_f64((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

template <bool TALLY> MOERL_DEVICE void finish_phase(const MoerlObjective& p, bool spreads_evenly) {
    MOERL_SHARED(double, values, SEGMENTS_AT_ONCE * FINISH_THREADS);
    MOERL_SHARED(double, tallies, FINISH_WARPS * WARP);
    const double common = common_divisor(p);
    const float least = f32_of(0xff800000u);
    SegmentTally tally = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, least, least};
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t first = (static_cast<uint64_t>(block_index()) * FINISH_THREADS + thread_index()) * SEGMENTS_AT_ONCE;
    MOERL_UNROLL
    for (uint32_t v = 0; v < SEGMENTS_AT_ONCE; v++) {
        const uint64_t segment = first + v;
        double value = 0.0;
        if (segment < p.segment_count) {
            const Finished made = finish_segment(p, common, segment, spreads_evenly);
            value = made.value;
            const MoerlCoefficient& c = made.coefficient;
            store16(p.coefficients + segment, {{bits_of(c.ratio), bits_of(c.weight), bits_of(c.gradient), c.flags}});
            if (p.sequence_ratio != nullptr) store(p.sequence_ratio + segment, c.ratio);
            if (p.sequence_clipped != nullptr) store(p.sequence_clipped + segment, static_cast<uint8_t>((made.clipped & (MOERL_ABOVE | MOERL_BELOW)) != 0));
            if (c.weight != c.weight) keep_first(fault, fault_at(segment, p.tag, MOERL_FAULT_ZERO_DENOMINATOR));
            if constexpr (TALLY) count_segment(tally, p, made);
        }
        values[v * FINISH_THREADS + thread_index()] = value;
    }
    if constexpr (TALLY) tallies[thread_index()] = spread(tally);
    publish_fault(p.errors, fault);
    sync_block();
    if (warp_index() != 0) return;
    double mine = nothing(lane_index());
    if constexpr (TALLY) {
        for (uint32_t warp = 0; warp < FINISH_WARPS; warp++) mine = join(lane_index(), mine, tallies[warp * WARP + lane_index()]);
    }
    const double loss = fold_values(values);
    if (lane_index() == LOSS) mine = loss;
    if (!climb(p, mine, block_index(), grid_size())) return;
    publish(p, mine, false);
    if (p.local_counts != nullptr && lane_index() < 2) store(p.local_counts + lane_index(), uint64_t{0});
}
