// Phase 2: what segments, turns and groups decide. A lane takes a segment; where groups decide a warp takes a group.
#pragma once

#include "segment.cuh"

constexpr uint32_t DECIDING_THREADS = 128;
constexpr uint32_t DECIDING_WARPS = DECIDING_THREADS / WARP;

// What one lane has seen of segments.
struct SegmentsSeen {
    double at[TALLY_PLACES];  // by place
    double rejected[MOERL_CORRECTION_OPTIONS];
    uint32_t segments_rejected[MOERL_CORRECTION_OPTIONS];
};

MOERL_DEVICE void see_none(SegmentsSeen& seen) {
    MOERL_UNROLL
    for (uint32_t place = 0; place < TALLY_PLACES; place++) seen.at[place] = least(place, true);
    MOERL_UNROLL
    for (uint32_t i = 0; i < MOERL_CORRECTION_OPTIONS; i++) {
        seen.rejected[i] = 0.0;
        seen.segments_rejected[i] = 0;
    }
}

// What is known of a segment in the end.
struct Settled {
    float weight;
    bool is_accepted;
    uint32_t multiplicity;
    float advantage;
};

MOERL_DEVICE void see_segment(SegmentsSeen& seen, const MoerlCorrection& p, const Judged& judged, const Settled& settled, const Pieces& pieces, double kept, double kept_k3, double spread, double spread_squared) {
    double(&at)[TALLY_PLACES] = seen.at;
    const double n = judged.count;
    if (!(n > 0.0)) {
        at[MOERL_CORRECTION_EMPTY_SEGMENTS] += 1.0;
        return;
    }
    const bool has_planes = p.place[MOERL_CORRECTION_OLD] != 255;
    at[MOERL_CORRECTION_KEPT_TOKENS] += kept;
    at[MOERL_CORRECTION_KEPT_SEGMENTS] += kept > 0.0 ? 1.0 : 0.0;
    at[MOERL_CORRECTION_SEQUENCE_CHI2] += exp(2.0 * saturated(p, judged.log_ratio));
    at[MOERL_CORRECTION_SEGMENTS] += 1.0;
    at[MOERL_CORRECTION_DROPPED_SEGMENTS] += judged.is_dropped ? 1.0 : 0.0;
    at[MOERL_CORRECTION_ACCEPTED] += settled.is_accepted ? 1.0 : 0.0;
    const bool of_turns = p.level == MOERL_CORRECTION_TURN, of_tokens = p.level == MOERL_CORRECTION_TOKEN;
    const double weight = static_cast<double>(settled.weight);
    double weighed = of_turns ? n : 1.0, sum = of_turns ? spread : weight, squares = of_turns ? spread_squared : weight * weight;
    if (weighs_tokens_by_segments(p)) {
        // Every token with its segment's mean.
        weighed = n;
        sum = plane_of(p, MOERL_CORRECTION_WEIGHT, pieces) * weight;
        squares = sum * sum / n;
    }
    if (is_finite_f64(sum)) {
        at[MOERL_CORRECTION_WEIGHED] += weighed;
        at[MOERL_CORRECTION_WEIGHTS] += sum;
        at[MOERL_CORRECTION_WEIGHTS_SQUARED] += squares;
        if (!of_tokens) {
            at[MOERL_CORRECTION_SPREAD_WEIGHTS] += spread;
            at[MOERL_CORRECTION_SPREAD_WEIGHTS_SQUARED] += spread_squared;
        }
    }
    if (!has_planes) return;
    const double difference = -judged.log_ratio / n;
    const double old = -plane_of(p, MOERL_CORRECTION_OLD, pieces) / n, rollout = -plane_of(p, MOERL_CORRECTION_ROLLOUT, pieces) / n;
    at[MOERL_CORRECTION_SUM_KEPT_K3] += kept_k3;
    at[MOERL_CORRECTION_PPL_OLD] += exp(old);
    at[MOERL_CORRECTION_PPL_ROLLOUT] += exp(rollout);
    at[MOERL_CORRECTION_LOG_PPL_ROLLOUT] += rollout;
    at[MOERL_CORRECTION_LOG_PPL_DIFF] += difference;
    at[MOERL_CORRECTION_LOG_PPL_ABS_DIFF] += difference < 0.0 ? -difference : difference;
    at[MOERL_CORRECTION_PPL_RATIO] += exp(difference);
    at[MOERL_CORRECTION_GEOMETRIC_CHI2] += exp(-2.0 * saturated(p, difference));
    at[MOERL_CORRECTION_MAX_LOG_PPL_DIFF] = greater(at[MOERL_CORRECTION_MAX_LOG_PPL_DIFF], difference);
    at[MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF] = greater(at[MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF], -difference);
    const double high = plane_of(p, MOERL_CORRECTION_MAX, pieces), low = -plane_of(p, MOERL_CORRECTION_MAX_NEGATIVE, pieces);
    const bool has_sound = low <= high;
    const bool is_catastrophic = has_sound && (low < p.catastrophic_low || high > p.catastrophic_high);
    at[MOERL_CORRECTION_SEGMENTS_CATASTROPHIC] += is_catastrophic ? 1.0 : 0.0;
    const bool of_segments = p.level >= MOERL_CORRECTION_SEQUENCE;
    const double raw = of_segments ? saturated(p, judged.x) : log(plane_of(p, MOERL_CORRECTION_RAW_WEIGHT, pieces) / n);
    at[MOERL_CORRECTION_SEQUENCES_ABOVE] += raw > static_cast<double>(p.reported_log_high) ? 1.0 : 0.0;
    at[MOERL_CORRECTION_SEQUENCES_BELOW] += raw < static_cast<double>(p.reported_log_low) ? 1.0 : 0.0;
    const double own = (of_tokens ? plane_of(p, MOERL_CORRECTION_WEIGHT, pieces) * weight : spread) / n;
    if (!is_finite_f64(own)) return;
    at[MOERL_CORRECTION_SEQUENCE_WEIGHTS] += own;
    at[MOERL_CORRECTION_SEQUENCE_WEIGHTS_SQUARED] += own * own;
    at[MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT] = greater(at[MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT], own);
    at[MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT] = greater(at[MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT], -own);
}

// The weight of a piece before its segment's: of a turn, else 1.
MOERL_DEVICE float piece_weight(const MoerlCorrection& p, uint64_t piece, double count, bool has_unsound) {
    if (p.level != MOERL_CORRECTION_TURN || !(count > 0.0)) return 1.0f;
    if (has_unsound && p.nonfinite_policy == MOERL_PROPAGATE) return f32_of(0x7fc00000u);
    return shaped(p, plane_of(p, MOERL_CORRECTION_LOG_RATIO, piece) / count);
}

MOERL_DEVICE bool keeps_turn_at_all(const MoerlCorrection& p, uint64_t piece) {
    bool keeps = true;
    for (uint32_t i = 0; i < p.option_count; i++) {
        if (p.options[i].statistic == MOERL_CORRECTION_OF_TURN) keeps = keeps && keeps_turn(p, p.options[i], piece);
    }
    return keeps;
}

// Writes what is decided about a segment and its pieces. Returns the tokens that are kept.
template <bool TALLY> MOERL_DEVICE double settle(const MoerlCorrection& p, uint64_t segment, const Judged& judged, const Settled& settled, SegmentsSeen& seen, uint64_t& fault) {
    const Pieces pieces = pieces_of(p, segment);
    double kept = 0.0, kept_k3 = 0.0, spread = 0.0, spread_squared = 0.0;
    for (uint64_t piece = pieces.first; piece < pieces.end; piece++) {
        const double count = plane_of(p, MOERL_CORRECTION_COUNT, piece);
        const double unsound = plane_of(p, MOERL_CORRECTION_NONFINITE, piece);
        const bool has_unsound = unsound > 0.0;
        const bool is_kept = judged.is_kept && (judged.shows || keeps_turn_at_all(p, piece));
        const float weight = piece_weight(p, piece, count, has_unsound) * settled.weight;
        uint32_t flags = 0;
        if (is_kept) flags |= MOERL_DECISION_KEPT;
        if (has_unsound) flags |= MOERL_DECISION_NONFINITE;
        if (judged.is_dropped) flags |= MOERL_DECISION_DROPPED;
        store(&p.decisions[piece].weight, weight);
        store(&p.decisions[piece].flags, flags);
        if (is_kept) kept += plane_of(p, MOERL_CORRECTION_KEPT, piece);
        if constexpr (TALLY) {
            if (is_kept) kept_k3 += plane_of(p, MOERL_CORRECTION_KEPT_K3, piece);
            if (count > 0.0) {
                // A token that is not finite has no weight.
                spread += (count - unsound) * static_cast<double>(weight);
                spread_squared += (count - unsound) * static_cast<double>(weight) * static_cast<double>(weight);
            }
        }
    }
    if (p.segment_weights != nullptr) store(p.segment_weights + segment, settled.weight);
    if (p.segment_log_weights != nullptr) store(p.segment_log_weights + segment, judged.x);
    if (p.kept != nullptr) store(p.kept + segment, static_cast<uint32_t>(kept));
    if (p.accepted != nullptr) store(p.accepted + segment, static_cast<uint8_t>(settled.is_accepted));
    if (p.multiplicity != nullptr) store(p.multiplicity + segment, settled.multiplicity);
    if (p.baseline_advantages != nullptr) store(p.baseline_advantages + segment, settled.advantage);
    if (judged.is_faulty) keep_first(fault, fault_at(segment, p.tag, MOERL_FAULT_SEGMENT_INPUT));
    if constexpr (TALLY) see_segment(seen, p, judged, settled, pieces, kept, kept_k3, spread, spread_squared);
    return kept;
}

MOERL_DEVICE void see_rejection(SegmentsSeen& seen, uint32_t option, double tokens) {
    MOERL_UNROLL
    for (uint32_t i = 0; i < MOERL_CORRECTION_OPTIONS; i++) {
        if (i != option) continue;
        seen.rejected[i] += tokens;
        seen.segments_rejected[i] += tokens > 0.0;
    }
}

// The counts of rejections leave by integer atomics, the totals by the tree.
template <bool TALLY> MOERL_DEVICE void publish_seen(const MoerlCorrection& p, const SegmentsSeen& seen) {
    MOERL_SHARED(double, tallies, DECIDING_THREADS);
    if (p.rejected != nullptr) {
        MOERL_UNROLL
        for (uint32_t i = 0; i < MOERL_CORRECTION_OPTIONS; i++) {
            if (i >= p.option_count) continue;
            const double tokens = warp_joined(false, seen.rejected[i]);
            const uint32_t segments = reduce_add_u32(seen.segments_rejected[i]);
            if (lane_index() != 0 || segments == 0) continue;
            atomic_add(p.rejected + 2 * i, static_cast<uint64_t>(tokens));
            atomic_add(p.rejected + 2 * i + 1, static_cast<uint64_t>(segments));
        }
    }
    if constexpr (!TALLY) return;
    double mine = least(lane_index(), true);
    MOERL_UNROLL
    for (uint32_t place = 0; place < TALLY_PLACES; place++) put(mine, place, warp_joined(is_greatest(place, true), seen.at[place]));
    tallies[thread_index()] = mine;
    sync_block();
    if (warp_index() != 0) return;
    const bool greatest = is_greatest(lane_index(), true);
    mine = least(lane_index(), true);
    for (uint32_t warp = 0; warp < DECIDING_WARPS; warp++) mine = joined(greatest, mine, tallies[warp * WARP + lane_index()]);
    if (climb_totals(p, true, mine, block_index(), grid_size())) publish_totals(p, true, mine, false);
}

template <bool TALLY> MOERL_DEVICE void correction_finish_phase(const MoerlCorrection& p) {
    SegmentsSeen seen;
    see_none(seen);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t segment = static_cast<uint64_t>(block_index()) * DECIDING_THREADS + thread_index();
    if (segment < p.segment_count) {
        const Judged judged = judge(p, segment, [&](uint32_t option, double tokens) { see_rejection(seen, option, tokens); });
        settle<TALLY>(p, segment, judged, {judged.weight, false, 0u, 0.0f}, seen, fault);
    }
    publish_fault(p.errors, fault);
    publish_seen<TALLY>(p, seen);
}
