// Phase 1 as a launch: what segments sum to goes to the planes, or, where nothing has to come between them, into phase 2 at once (`finishes`).
#pragma once

#include "segment_groups.cuh"

// True where a launch that finishes segments sums up what they decide.
MOERL_DEVICE bool joins_segments(const MoerlObjective& p) { return p.finishes && own_losses(p) != nullptr; }

// Where the sums of a unit's segments go.
template <bool WIDE, bool TALLY> struct Sink {
    const MoerlObjective& p;
    uint64_t& fault;
    Groups whole;
    float common;
    bool joins;  // segments decide something that is summed up over them
    SegmentTally tally;
    Shares<TALLY> folded;

    // Of the lanes' segments, at their places in a group of 32. `more`: the planes go on from what is there.
    MOERL_DEVICE void take(uint64_t group, bool is_segment, uint64_t segment, const Planes& sums, bool more) {
        if (!p.finishes) {
            if (is_segment) store_sums<WIDE>(p, segment, more, sums);
            return;
        }
        Shares<TALLY> shares = no_shares<TALLY>();
        if (is_segment) {
            const Finished made = finish_segment(p, common, segment, as_stored<WIDE>(p, segment, sums));
            store_segment(p, segment, made);
            keep_segment_faults(fault, p, made, segment);
            shares.loss = made.value;
            if constexpr (TALLY) {
                count_segment(tally, p, made);
                shares.ratio = ratio_share(p, made);
            }
        }
        if (joins) take_group(p, whole, group, is_segment, shares, folded);
    }
};

template <bool WIDE, bool TALLY> MOERL_DEVICE Sink<WIDE, TALLY> sink_of(const MoerlObjective& p, const MoerlUnit& unit, uint64_t& fault) {
    return {p, fault, groups_of(p, unit), p.finishes ? common_coefficient(p) : 0.0f, joins_segments(p), no_segments(), no_shares<TALLY>()};
}

// Loss and diagnostics begin at zero, unless they go on or a later warp of this launch sets them.
template <bool TALLY> MOERL_DEVICE void open_outputs(const MoerlObjective& p) {
    if (p.keep_totals || block_index() != 0 || warp_index() != 0) return;
    if (lane_index() == 0 && p.loss != nullptr) store(p.loss, 0.0);
    const bool is_set_later = TALLY && p.unit_count != 0;
    if (p.diagnostics == nullptr || is_set_later) return;
    for (uint32_t place = lane_index(); place < PLACES; place += WARP) store(p.diagnostics + place, nothing(place));
}

// After the last of a unit's segments.
template <bool WIDE, bool TALLY> MOERL_DEVICE void close(const MoerlObjective& p, const MoerlUnit& unit, const Sink<WIDE, TALLY>& sink) {
    if (!sink.joins) return;
    store_folded(p, sink.whole, sink.folded);
    Tally total;
    if (join_segments<TALLY>(p, unit, total)) publish(p, total, OF_SEGMENTS<TALLY>, TALLY && !p.keep_totals);
}

// The sink is opened behind the walk over the tokens, whose registers it would take.
template <bool WIDE, bool TALLY>
MOERL_DEVICE void sum_pack(const MoerlObjective& p, const MoerlUnit& unit, PartialStage<WIDE>& stage, TokenTally& tokens, SegmentTally& segments, uint64_t& fault) {
    stage_tokens<WIDE, TALLY>(p, unit, stage, tokens, fault);
    Sink<WIDE, TALLY> sink = sink_of<WIDE, TALLY>(p, unit, fault);
    sum_segments<WIDE>(p, unit, stage, fault, [&](uint64_t group, bool is_segment, uint64_t segment, const Planes& sums) {
        sink.take(group, is_segment, segment, sums, p.accumulate != 0);
    });
    close(p, unit, sink);
    segments = sink.tally;
}

// A unit that is one segment, or a tile of one, which the last to arrive takes.
template <bool WIDE, bool TALLY> MOERL_DEVICE void sum_alone(const MoerlObjective& p, uint32_t index, const MoerlUnit& unit, TokenTally& tokens, SegmentTally& segments, uint64_t& fault) {
    const SegmentSums sums = sum_piece<WIDE, TALLY>(p, unit, tokens, fault);
    const uint32_t counted = in_denominators<WIDE>(p, sums);
    const bool is_tile = unit.segments == 0;
    count_locally(p, counted, !is_tile && (counted != 0 || p.count_empty));
    Planes planes = planes_of(sums);
    if (is_tile) {
        if (!join_tiles<WIDE>(p, index, unit, sums, planes, fault)) return;
    } else {
        keep_varying(fault, p, unit.segment, sums.advantage);
    }
    const MoerlUnit whole = {0, unit.segment, 0, 1};  // as a segment: which tokens are of no concern
    Sink<WIDE, TALLY> sink = sink_of<WIDE, TALLY>(p, whole, fault);
    // A tile's sums went on from what was there already.
    sink.take(unit.segment / WARP, lane_index() == unit.segment % WARP, unit.segment, planes, p.accumulate != 0 && !is_tile);
    close(p, whole, sink);
    segments = sink.tally;
}

template <bool WIDE, bool TALLY> MOERL_DEVICE void partial_phase(const MoerlObjective& p) {
    MOERL_DYNAMIC_SHARED(PartialStage<WIDE>, stages);
    open_outputs<TALLY>(p);
    uint64_t fault = MOERL_NO_FAULT;
    // A register less than 64 bits: 2^32 units are more tokens than any memory holds.
    const uint32_t index = block_index() * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        TokenTally tokens = no_tokens();
        SegmentTally segments = no_segments();
        if (unit.segments > 1) sum_pack<WIDE, TALLY>(p, unit, stages[warp_index()], tokens, segments, fault);
        else sum_alone<WIDE, TALLY>(p, index, unit, tokens, segments, fault);
        if constexpr (TALLY) {
            // Where tokens are counted here, segments decide: what is summed up over them is not summed up over units.
            Tally mine = spread<WIDE>(tokens);
            if (p.finishes) mine = join(mine, spread(segments));
            const uint64_t by_units = p.finishes ? DIAGNOSTICS & ~(BY_SEGMENTS | BIT<MOERL_SUM_LOSS>) : DIAGNOSTICS;
            if (climb(tree_of_units(p), mine, index, p.unit_count, by_units)) publish(p, mine, by_units, !p.keep_totals);
        }
    }
    publish_fault(p.errors, fault);
}
