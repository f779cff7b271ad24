// Segments of one token each, in one launch without diagnostics: a lane takes one from its loads to its gradient.
//
// Where every segment has one token, a sum over it is that token's value, and the way by shared memory, on which a segment costs about 20 instructions of a
// warp more, is for nothing. What the tokens come to is the same, bit for bit.
#pragma once

#include "apply.cuh"
#include "segment_groups.cuh"

constexpr uint32_t STAGED_READS = MOERL_READ_LOGPROBS | MOERL_READ_OLD;

// True in every lane where all the unit's segments have one token.
MOERL_DEVICE bool are_singles(const MoerlObjective& p, const MoerlUnit& unit) {
    if (unit.tokens != unit.segments) return false;
    bool is_other = false;
    for (uint32_t i = lane_index(); i < unit.segments; i += WARP) is_other = is_other || static_cast<uint64_t>(load(p.offsets + unit.segment + i)) != unit.token + i;
    return !any(is_other, FULL_WARP);
}

struct Single {
    Pack<false> pack;  // of one slot
    float advantage;
};

MOERL_DEVICE Single load_single(const MoerlObjective& p, const MoerlUnit& unit, uint32_t own) {
    const bool is_segment = own < unit.segments;
    Single r = {};
    r.pack.index = unit.token + own;
    r.pack.bits = is_segment ? 1u : 0u;
    if (!is_segment) return r;
    r.pack.mask = p.loss_mask != nullptr ? uint32_t{load_stream(p.loss_mask + r.pack.index)} : 1u;
    r.pack.logprobs.x[0] = load_stream(p.logprobs + r.pack.index);
    if (p.old_logprobs != nullptr) r.pack.old_logprobs.x[0] = load_stream(p.old_logprobs + r.pack.index);
    r.advantage = load(p.advantages + unit.segment + own);
    return r;
}

// Sums and finishes a segment, and writes its token's gradient. Returns the token's share of the loss; `value` is the segment's.
template <int FAMILY> MOERL_DEVICE double do_single(const MoerlObjective& p, const Single& single, float common, uint64_t segment, double& value, uint64_t& fault) {
    const Pack<false>& pack = single.pack;
    Token<false> token = token_of<false>(p, pack, 0, 0.0f, STAGED_READS);
    keep_faults(fault, p, pack, token, 0, true);
    value = 0.0;
    if (!token.counts) {
        store_stream(p.d_logprobs + pack.index, 0.0f);
        return 0.0;
    }
    token.advantage = single.advantage;
    if (!is_finite(single.advantage)) {
        keep_first(fault, fault_at(pack.index, p.tag, MOERL_FAULT_NONFINITE_INPUT));
        token.is_sound = false;
    }
    SegmentSums sums = NO_SUMS;
    sums.count = 1;  // as a constant: what is divided by it, is not
    sums.nonfinite = !token.is_sound;
    if (FAMILY != CLIPPED_RATIO && token.is_sound) sums.delta = token.delta + 0.0f;
    const Finished made = finish_segment(p, common, segment, planes_of_advantage(p, sums, single.advantage));
    keep_segment_faults(fault, p, made, segment);
    value = made.value;
    TokenTally none = no_tokens();
    const uint32_t reads = FAMILY == CLIPPED_RATIO ? uint32_t{MOERL_READ_LOGPROBS} : 0u;
    const Applied applied = token.is_sound ? apply_plain<FAMILY, false>(p, token, made.coefficient, reads, none) : apply_unsound(p);
    store_stream(p.d_logprobs + pack.index, applied.gradient);
    return value_scale<FAMILY>(made.coefficient) * static_cast<double>(applied.value + 0.0f);
}

// Returns the unit's share of the loss where tokens decide it.
template <int FAMILY> MOERL_DEVICE double do_singles(const MoerlObjective& p, const MoerlUnit& unit, uint64_t& fault) {
    constexpr bool BY_GROUPS = !HAS_VALUES<FAMILY>;
    const float common = common_coefficient(p);
    const Groups whole = groups_of(p, unit);
    const uint32_t before = BY_GROUPS ? unit.segment % WARP : 0u, end = before + unit.segments;
    Shares<false> folded = no_shares<false>();
    double loss = 0.0;
    uint32_t own = lane_index() - before;  // of the segments before the unit: beyond all of its own
    Single next = load_single(p, unit, own);
    MOERL_ROLLED
    for (uint32_t first = 0; first < end; first += WARP, own += WARP) {
        const Single single = next;
        next = load_single(p, unit, own + WARP);  // on its way while this one is worked on
        const bool is_segment = single.pack.bits != 0;
        Shares<false> shares = no_shares<false>();
        if (is_segment) loss += do_single<FAMILY>(p, single, common, static_cast<uint64_t>(unit.segment) + own, shares.loss, fault);
        if constexpr (BY_GROUPS) take_group(p, whole, (static_cast<uint64_t>(unit.segment) + first) / WARP, is_segment, shares, folded);
    }
    if constexpr (BY_GROUPS) store_folded(p, whole, folded);
    return warp_sum(loss);
}
