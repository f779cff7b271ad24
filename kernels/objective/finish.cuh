// Phase 2: what a segment decides. A lane takes four neighbouring segments, a block a tile of 1024.
#pragma once

#include "../block.cuh"
#include "partial.cuh"

constexpr uint32_t FINISH_THREADS = 256;
constexpr uint32_t FINISH_WARPS = FINISH_THREADS / WARP;
constexpr uint32_t SEGMENTS_AT_ONCE = 4;
constexpr uint32_t LANES_OF_GROUP = WARP / SEGMENTS_AT_ONCE;

struct Finished {
    MoerlCoefficient coefficient;
    double value;
    uint32_t clipped;  // by the signs of S+ and S-
    uint32_t count;
    bool saturated_high, saturated_low;
    bool has_unsound_weight;
    bool has_both_signs;  // of an advantage that the tokens have to share
};

struct SegmentTally {
    uint32_t segments, empty, dropped, above, below, capped, tokens_above, tokens_below, tokens_capped, saturated_high, saturated_low;
    float max_ratio, max_negative_ratio;
};

MOERL_DEVICE SegmentTally no_segments() {
    const float least = f32_of(0xff800000u);
    return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, least, least};
}

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

// What every coefficient has in common; NaN where a denominator is 0.
MOERL_DEVICE float common_coefficient(const MoerlObjective& p) {
    const double divisor = common_divisor(p);
    return divisor > 0.0 ? static_cast<float>(p.scale / divisor) : f32_of(0x7fc00000u);
}

// c of a segment with `count` tokens in its denominators. Where rejection left none, nothing is divided; nor where none has more than ONE.
template <bool ONE = false> MOERL_DEVICE float coefficient_of(const MoerlObjective& p, float common, double count, uint64_t segment) {
    if (!(count > 0.0)) return 0.0f;
    float c = common;
    bool is_valid = true;
    if (!ONE && (p.divisors & MOERL_BY_COUNT) != 0) c /= static_cast<float>(count);
    if ((p.divisors & (MOERL_BY_SCALE | MOERL_TIMES_SCALE)) != 0) {
        const float scale = load(p.segment_scale + segment);
        if ((p.divisors & MOERL_TIMES_SCALE) != 0) {
            c *= scale;
        } else {
            is_valid = scale > 0.0f;
            c /= scale;
        }
    }
    return is_valid ? c : f32_of(0x7fc00000u);
}

// What the policy's term of a segment comes to, where the segment decides it: its value and what every token's gradient has in common.
struct SegmentTerm {
    double value;
    float gradient;
};

// s between the bounds of the window.
MOERL_DEVICE SegmentTerm bounded_segment(const MoerlObjective& p, float ratio, float count, double positive, double negative, uint32_t flags) {
    const double value = times(positive, static_cast<double>(bounded_for_positive(p, ratio))) + times(negative, static_cast<double>(bounded_for_negative(p, ratio)));
    const double passing = ((flags & MOERL_PASS_POSITIVE) != 0 ? positive : 0.0) + ((flags & MOERL_PASS_NEGATIVE) != 0 ? negative : 0.0);
    return {-value, passing == 0.0 ? 0.0f : -(ratio / count) * static_cast<float>(passing)};
}

// A soft gate in place of the window.
MOERL_DEVICE SegmentTerm gated_segment(const MoerlObjective& p, float ratio, float count, double positive, double negative, bool inside) {
    const float up = p.positive_rate * (ratio - 1.0f), down = p.negative_rate * (ratio - 1.0f);
    const double value = static_cast<double>(4.0f / p.positive_rate * sigmoid(up)) * positive + static_cast<double>(4.0f / p.negative_rate * sigmoid(down)) * negative;
    const float slope = sigmoid_slope(up) * static_cast<float>(positive) + sigmoid_slope(down) * static_cast<float>(negative);
    return {-value, inside ? times(slope, -(ratio / count)) : 0.0f};
}

// exp(lambda + k lw - lambda e^lw).
MOERL_DEVICE float shaped_weight(double log_weight, float rate, float scale) {
    const double x = static_cast<double>(scale) + static_cast<double>(rate) * log_weight - static_cast<double>(scale) * static_cast<double>(expf(static_cast<float>(log_weight)));
    return expf(static_cast<float>(x));
}

MOERL_DEVICE void finish_policy(const MoerlObjective& p, Finished& r, const Planes& sums, float ratio, double count, bool inside) {
    MoerlCoefficient& c = r.coefficient;
    const double positive = sums.positive, negative = sums.negative;
    if (p.positive != nullptr) r.clipped = clipped_for(c.flags, positive) | clipped_for(c.flags, negative);
    if (!p.is_sequence_level || (c.flags & MOERL_DROPPED) != 0) return;
    // fminf and fmaxf would lose a NaN.
    const bool is_nan = ratio != ratio;
    const float n = static_cast<float>(count);
    SegmentTerm term = {0.0, 0.0f};
    switch (p.variant) {
        case MOERL_GSPO:
        case MOERL_GSPO_TOKEN: term = bounded_segment(p, ratio, n, positive, negative, c.flags); break;
        case MOERL_SAPO_SEQUENCE: term = gated_segment(p, ratio, n, positive, negative, inside); break;
        case MOERL_CISPO_SEQUENCE: c.ratio = fminf(fmaxf(ratio, p.lower), p.upper); break;
        case MOERL_GMPO: {
            const double mean = sums.folded / count;
            const float x = static_cast<float>(mean);
            // A weight of 0 has the logarithm -inf, and leaves nothing of the product.
            const bool is_zero = bits_of(x) == 0xff800000u;
            c.ratio = is_zero ? 0.0f : expf(saturate(p, x));
            const double sum = positive + negative;
            term = {times(sum, -static_cast<double>(c.ratio)), is_inside(p, x) ? times(static_cast<float>(sum), -(c.ratio / n)) : 0.0f};
            break;
        }
        case MOERL_VESPO: {
            // ln 1e-8 and 20
            const double log_weight = fmin(fmax(sums.folded, -18.420680743952367), 20.0);
            c.ratio = shaped_weight(log_weight, p.positive_rate, p.positive_scale);
            c.gradient = is_nan ? ratio : shaped_weight(log_weight, p.negative_rate, p.negative_scale);
            break;
        }
        default: return;
    }
    const bool has_value = p.value_in_finish != 0;
    r.value = is_nan && has_value ? static_cast<double>(ratio) : times(static_cast<double>(c.weight), term.value);
    if (p.variant == MOERL_GSPO || p.variant == MOERL_SAPO_SEQUENCE || p.variant == MOERL_GMPO) c.gradient = is_nan ? ratio : times(c.weight, term.gradient) + 0.0f;
    if (is_nan) c.ratio = ratio;
}

// What `partial` has left of a segment; where nothing needs n, one token.
MOERL_DEVICE Planes planes_at(const MoerlObjective& p, uint64_t segment) {
    return {if_there(p.log_ratio, segment), if_there(p.positive, segment), if_there(p.negative, segment), p.count != nullptr ? load(p.count + segment) : 1.0,
            if_there(p.nonfinite, segment), if_there(p.folded, segment),   if_there(p.divergence, segment), if_there(p.kept, segment)};
}

// The same of sums that are finished at once.
template <bool WIDE> MOERL_DEVICE Planes as_stored(const MoerlObjective& p, uint64_t segment, const Planes& sums) {
    Planes r = sums;
    if (!WIDE) r.kept = sums.count;
    if (p.log_ratio == nullptr) r.delta = 0.0;
    if (p.positive != nullptr && has_plain_advantages(p)) {
        const double sum = plain_advantages(p, segment, sums.count - sums.nonfinite);
        r.positive = sum > 0.0 ? sum : 0.0;
        r.negative = sum < 0.0 ? sum : 0.0;
    }
    return r;
}

// The planes of a segment whose tokens share A and weigh 1.
MOERL_DEVICE Planes planes_of_advantage(const MoerlObjective& p, const SegmentSums& sums, float advantage) {
    Planes planes = planes_of(sums);
    const double sound = planes.count - planes.nonfinite, a = sound > 0.0 && p.positive != nullptr ? static_cast<double>(advantage) : 0.0;
    planes.positive = a > 0.0 ? a * sound : 0.0;
    planes.negative = a < 0.0 ? a * sound : 0.0;
    return planes;
}

template <bool ONE = false> MOERL_DEVICE Finished finish_segment(const MoerlObjective& p, float common, uint64_t segment, const Planes& sums) {
    Finished r = {{1.0f, 0.0f, 0.0f, MOERL_EMPTY, 0.0f, 1.0f, 0.0f, 1.0f}, 0.0, 0, 0, false, false, false, false};
    const double count = sums.count;
    if (!(count > 0.0)) return r;
    r.count = static_cast<uint32_t>(count);
    // Pieces of a segment that came in several calls show by their sums alone.
    r.has_both_signs = p.variant == MOERL_GMPO && sums.positive > 0.0 && sums.negative < 0.0;
    MoerlCoefficient& c = r.coefficient;
    const double log_ratio = sums.delta;
    // The logarithm is compared in f64 and without a division; the ratio itself needs no more than f32.
    const float x = static_cast<float>(log_ratio) / static_cast<float>(count);
    r.saturated_high = x > p.saturation_high;
    r.saturated_low = x < p.saturation_low;
    float ratio = expf(saturate(p, x));
    const bool inside = is_inside(p, x);
    const uint32_t flags = flags_of(log_ratio > count * p.log_upper, log_ratio < count * p.log_lower, log_ratio > count * p.log_cap);
    // A clamped ratio is a constant, which no saturation stops.
    c.flags = with_passes(flags, inside || p.variant == MOERL_CISPO_SEQUENCE);
    c.scale = coefficient_of<ONE>(p, common, p.after_rejection ? sums.kept : count, segment);
    c.segment_weight = p.segment_weights != nullptr ? load(p.segment_weights + segment) : 1.0f;
    bool is_unsound = p.nonfinite != nullptr && sums.nonfinite > 0.0;
    if (!is_finite(c.segment_weight)) {
        r.has_unsound_weight = is_unsound = true;
        c.segment_weight = p.nonfinite_policy == MOERL_ZERO_WEIGHT ? 0.0f : f32_of(0x7fc00000u);  // infinity times 0 shows either way
    }
    if (is_unsound) {
        c.flags |= MOERL_NONFINITE;
        if (p.nonfinite_policy == MOERL_DROP_SEGMENT) {
            c.flags |= MOERL_DROPPED;
            c.scale = c.segment_weight = 0.0f;
        } else if (p.nonfinite_policy == MOERL_PROPAGATE && p.is_sequence_level) {
            ratio = f32_of(0x7fc00000u);
        }
    }
    c.ratio = c.sequence_ratio = ratio;
    c.weight = c.scale * c.segment_weight;
    finish_policy(p, r, sums, ratio, count, inside);
    const bool moves_all = p.divergence != nullptr && !p.kl_straight_through && inside && c.scale != 0.0f;
    if (moves_all) c.shared = times(p.kl_beta * c.scale * static_cast<float>(sums.divergence), ratio / static_cast<float>(count));
    return r;
}

MOERL_DEVICE void store_sequence_maps(const MoerlObjective& p, uint64_t segment, const Finished& made) {
    if (p.sequence_ratio != nullptr) store(p.sequence_ratio + segment, made.coefficient.sequence_ratio);
    if (p.sequence_clipped != nullptr) store(p.sequence_clipped + segment, static_cast<uint8_t>((made.clipped & (MOERL_ABOVE | MOERL_BELOW)) != 0));
}

// For `apply`, and what is asked for.
MOERL_DEVICE void store_segment(const MoerlObjective& p, uint64_t segment, const Finished& made) {
    const MoerlCoefficient& c = made.coefficient;
    store16(p.coefficients + segment, {{bits_of(c.ratio), bits_of(c.weight), bits_of(c.gradient), c.flags}});
    store16(&p.coefficients[segment].scale, {{bits_of(c.scale), bits_of(c.sequence_ratio), bits_of(c.shared), bits_of(c.segment_weight)}});
    store_sequence_maps(p, segment, made);
}

MOERL_DEVICE void count_segment(SegmentTally& tally, const MoerlObjective& p, const Finished& made) {
    if ((made.coefficient.flags & MOERL_EMPTY) != 0) {
        tally.empty++;
        return;
    }
    tally.segments++;
    tally.dropped += (made.coefficient.flags & MOERL_DROPPED) != 0;
    if (p.log_ratio == nullptr) return;
    tally.max_ratio = fmaxf(tally.max_ratio, made.coefficient.sequence_ratio);
    tally.max_negative_ratio = fmaxf(tally.max_negative_ratio, -made.coefficient.sequence_ratio);
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

// A segment's share of the sum of s.
MOERL_DEVICE double ratio_share(const MoerlObjective& p, const Finished& made) {
    return p.log_ratio == nullptr || (made.coefficient.flags & MOERL_EMPTY) != 0 ? 0.0 : static_cast<double>(made.coefficient.sequence_ratio);
}

MOERL_DEVICE Tally spread(const SegmentTally& tally) {
    Tally mine = empty_tally();
    place(mine, MOERL_SUM_SEGMENTS, reduce_add_u32(tally.segments));
    place(mine, MOERL_SUM_EMPTY_SEGMENTS, reduce_add_u32(tally.empty));
    place(mine, MOERL_SUM_DROPPED_SEGMENTS, reduce_add_u32(tally.dropped));
    place(mine, MOERL_SUM_SEQUENCE_CLIPPED_HIGH, reduce_add_u32(tally.above));
    place(mine, MOERL_SUM_SEQUENCE_CLIPPED_LOW, reduce_add_u32(tally.below));
    place(mine, MOERL_SUM_SEQUENCE_CAPPED, reduce_add_u32(tally.capped));
    // 128 segments of up to 2^32 tokens.
    place(mine, MOERL_SUM_CLIPPED_HIGH, warp_sum(static_cast<double>(tally.tokens_above)));
    place(mine, MOERL_SUM_CLIPPED_LOW, warp_sum(static_cast<double>(tally.tokens_below)));
    place(mine, MOERL_SUM_CAPPED, warp_sum(static_cast<double>(tally.tokens_capped)));
    place(mine, MOERL_SUM_SATURATED_HIGH, reduce_add_u32(tally.saturated_high));
    place(mine, MOERL_SUM_SATURATED_LOW, reduce_add_u32(tally.saturated_low));
    place(mine, MOERL_MAX_SEQUENCE_RATIO, warp_max(tally.max_ratio));
    place(mine, MOERL_MAX_NEGATIVE_SEQUENCE_RATIO, warp_max(tally.max_negative_ratio));
    return mine;
}

MOERL_DEVICE void keep_segment_faults(uint64_t& fault, const MoerlObjective& p, const Finished& made, uint64_t segment) {
    if (made.coefficient.scale != made.coefficient.scale) keep_first(fault, fault_at(segment, p.tag, MOERL_FAULT_ZERO_DENOMINATOR));
    if (made.has_unsound_weight) keep_first(fault, fault_at(segment, p.tag, MOERL_FAULT_SEGMENT_WEIGHT));
    if (made.has_both_signs) keep_first(fault, fault_at(segment, p.tag, MOERL_FAULT_VARYING_ADVANTAGE));
}

// The group's sum, of lanes that each have four neighbours of it.
MOERL_DEVICE double fold_group(const double (&of)[SEGMENTS_AT_ONCE]) {
    double sums[SEGMENTS_AT_ONCE];
    MOERL_UNROLL
    for (uint32_t v = 0; v < SEGMENTS_AT_ONCE; v++) {
        sums[v] = of[v];
        MOERL_UNROLL
        for (uint32_t lanes = LANES_OF_GROUP / 2; lanes > 0; lanes /= 2) sums[v] += shuffle_xor(sums[v], static_cast<int>(lanes));
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// The tile's sum, of a group's sum a lane; never -0.
MOERL_DEVICE double fold_tile(double group) { return warp_sum(group) + 0.0; }

template <bool TALLY> MOERL_DEVICE void finish_phase(const MoerlObjective& p) {
    MOERL_SHARED(double, losses, WARP);
    MOERL_SHARED(double, ratios, WARP);
    MOERL_SHARED(Tally, tallies, FINISH_WARPS * WARP);
    const float common = common_coefficient(p);
    SegmentTally tally = no_segments();
    double values[SEGMENTS_AT_ONCE], shares[SEGMENTS_AT_ONCE];
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t first = (static_cast<uint64_t>(block_index()) * FINISH_THREADS + thread_index()) * SEGMENTS_AT_ONCE;
    MOERL_UNROLL
    for (uint32_t v = 0; v < SEGMENTS_AT_ONCE; v++) {
        const uint64_t segment = first + v;
        values[v] = shares[v] = 0.0;
        if (segment >= p.segment_count) continue;
        const Finished made = finish_segment(p, common, segment, planes_at(p, segment));
        values[v] = made.value;
        store_segment(p, segment, made);
        keep_segment_faults(fault, p, made, segment);
        if constexpr (TALLY) {
            count_segment(tally, p, made);
            shares[v] = ratio_share(p, made);
        }
    }
    const uint32_t group = thread_index() / LANES_OF_GROUP;
    const bool leads = thread_index() % LANES_OF_GROUP == 0;
    const double loss = fold_group(values);
    if (leads) losses[group] = loss;
    if constexpr (TALLY) {
        const double ratio = fold_group(shares);
        if (leads) ratios[group] = ratio;
        tallies[thread_index()] = spread(tally);
    }
    publish_fault(p.errors, fault);
    sync_block();
    if (warp_index() != 0) return;
    Tally mine = empty_tally();
    if constexpr (TALLY) {
        for (uint32_t warp = 0; warp < FINISH_WARPS; warp++) mine = join(mine, tallies[warp * WARP + lane_index()]);
        place(mine, MOERL_SUM_SEQUENCE_RATIO, fold_tile(ratios[lane_index()]));
    }
    place(mine, LOSS, fold_tile(losses[lane_index()]));
    if (!climb(tree_of_segments(p), mine, block_index(), grid_size(), all_places(p))) return;
    publish(p, mine, all_places(p), false);
    if (p.local_counts != nullptr && lane_index() < 2) store(p.local_counts + lane_index(), uint64_t{0});
}
