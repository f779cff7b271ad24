// Batches whose segments have one token each: all phases in one launch, whatever the objective and whatever is asked for.
//
// Segment and token then have the same index: neither offsets nor units are read, a segment's advantage lies as a token's does, and a sum over a
// segment is its token's value. Bytes a token: what the objective names, read once, and what is asked for, written once; for GSPO 4 + 4 + 1 + 4 and 4.
//
// A warp takes a unit of 256 tokens by rows of 128, a lane four neighbours of a row: loaded together, then one after the other through one copy of
// the code. The first of a pack is worked on, and what it comes to is put behind the fourth, where its inputs were (`turn`).
//
// What comes of it is what the three phases would make of it, bit for bit. Hence two looks at a token: `partial` and `apply` do not read the
// same arrays, and so differ in what they can find out of order.
#pragma once

#include "apply.cuh"
#include "segment_groups.cuh"

MOERL_DEVICE MoerlUnit unit_of_singles(const MoerlObjective& p, uint64_t index) {
    const uint64_t first = index * MOERL_UNIT_SEGMENTS, behind = p.segment_count - first;
    const uint16_t tokens = static_cast<uint16_t>(behind < MOERL_UNIT_SEGMENTS ? behind : MOERL_UNIT_SEGMENTS);
    return {first, static_cast<uint32_t>(first), tokens, tokens};
}

// Drops the first of four and puts `last` behind the others.
template <class T> MOERL_DEVICE void turn(T (&of)[4], T last) {
    MOERL_UNROLL
    for (int v = 0; v < 3; v++) of[v] = of[v + 1];
    of[3] = last;
}

MOERL_DEVICE void turn(uint32_t& bytes, uint32_t last) { bytes = bytes >> 8 | last << 24; }

// What `apply` reads of a token.
MOERL_DEVICE uint32_t apply_reads(const MoerlObjective& p) {
    switch (p.family) {
        case CLIPPED_RATIO: return reads_of<CLIPPED_RATIO>(p);
        case SHARED_GRADIENT: return reads_of<SHARED_GRADIENT>(p);
        case SEGMENT_RATIO: return reads_of<SEGMENT_RATIO>(p);
        default: return reads_of<ANY>(p);
    }
}

// The first token of the pack as `partial` has it: a term's input only where it decides there.
MOERL_DEVICE Pack<true> seen_by_partial(const MoerlObjective& p, const Pack<true>& pack) {
    Pack<true> r = pack;
    const bool drops = p.nonfinite_policy == MOERL_DROP_SEGMENT;
    if (!drops && p.divergence == nullptr) r.ref.x[0] = 0.0f;
    if (!drops) r.rollout.x[0] = r.entropy.x[0] = 0.0f;
    return r;
}

// What a lane keeps while it goes over its tokens, and what it hands on.
struct GoingSingles {
    TokenTally tokens;
    TermTally terms;
    SegmentTally segments;
    uint64_t fault;
};

// What the segment's one token sums to.
template <bool TALLY> MOERL_DEVICE SegmentSums sum_single(const MoerlObjective& p, const Pack<true>& pack, bool with_tokens, GoingSingles& going) {
    const Pack<true> seen = seen_by_partial(p, pack);
    const Token<true> token = token_of<true>(p, seen, 0, seen.advantages.x[0], READ_ALL);
    SegmentSums sums = NO_SUMS;
    sums.count = token.counts;
    sums.kept = token.counts && token.is_kept;
    keep_faults(going.fault, p, seen, token, 0, with_tokens);
    if (!with_tokens) return sums;
    if constexpr (TALLY) {
        if (p.is_sequence_level) count_token(going.tokens, p, seen, 0, token, expf(saturate(p, token.delta)), 0u);
    }
    sums.nonfinite = token.counts && !token.is_sound;
    if (!token.is_sound) return sums;
    const float weight = policy_weight(p, token);
    sums.delta = token.delta + 0.0f;
    sums.positive = positive_part(weight, token.advantage) + 0.0f;
    sums.negative = negative_part(weight, token.advantage) + 0.0f;
    if (p.folded != nullptr && token.is_kept) sums.folded = folded_part(p, token.delta, token.advantage, log_weight_of(p, token)) + 0.0f;
    if (p.divergence != nullptr && (token.is_kept || !p.rejects_all)) sums.divergence = plain_divergence(p, token.to_ref).value + 0.0f;
    return sums;
}

// What `apply` makes of the token, and c for its value: 0 where `finish` knew it. `reads`: what is in the pack; `usual`: what `apply` reads.
template <bool TALLY>
MOERL_DEVICE Applied apply_single(const MoerlObjective& p, const Pack<true>& pack, const MoerlCoefficient& c, uint32_t reads, uint32_t usual, GoingSingles& going, double& scale) {
    Pack<true> seen = pack;
    if (reads != usual && !is_read_again(p, c.flags)) hide_unread(seen, 0, usual);
    const Token<true> token = token_of<true>(p, seen, 0, seen.advantages.x[0], reads);
    Applied made = NOTHING;
    scale = 0.0;
    if (token.counts && !token.is_sound) {
        made = apply_unsound(p);
    } else if (token.counts) {
        switch (p.family) {
            case CLIPPED_RATIO: made = apply_plain<CLIPPED_RATIO, TALLY>(p, token, c, reads, going.tokens); break;
            case SHARED_GRADIENT: made = apply_plain<SHARED_GRADIENT, TALLY>(p, token, c, reads, going.tokens); break;
            case SEGMENT_RATIO: made = apply_plain<SEGMENT_RATIO, TALLY>(p, token, c, reads, going.tokens); break;
            default: made = apply_any<TALLY>(p, token, c, going.tokens, going.terms);
        }
    }
    if (p.family == SHARED_GRADIENT || p.family == SEGMENT_RATIO) return made;
    scale = p.family == ANY ? value_scale<ANY>(c) : value_scale<CLIPPED_RATIO>(c);
    keep_faults(going.fault, p, seen, token, 0, (reads & MOERL_READ_LOGPROBS) != 0);
    if constexpr (TALLY) {
        if (!p.is_sequence_level) count_token(going.tokens, p, seen, 0, token, made.ratio, made.clipped);
    }
    return made;
}

// Of a row's tokens, which lie four a lane, that of segment 32 `group` + lane.
MOERL_DEVICE double in_group(const double (&of)[4], int group) {
    const int lane = static_cast<int>(lane_index()), owner = group * static_cast<int>(LANES_OF_GROUP) + lane / 4;
    double r = 0.0;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        const double its = shuffle(of[v], owner);
        if (lane % 4 == v) r = its;
    }
    return r;
}

// A row's tokens. Returns what they add to the loss beside what `finish` knew, in the lanes where `sum_values` has their segments.
template <bool TALLY> MOERL_DEVICE double do_row(const MoerlObjective& p, const Geometry& g, int row, float common, double loss, GoingSingles& going) {
    const bool with_tokens = sums_tokens(p), aligned = p.aligned != 0;
    const uint32_t usual = apply_reads(p), reads = with_tokens ? READ_ALL : usual;
    Pack<true> pack = load_pack<true>(p, g, row, reads);
    if (!p.advantage_per_token) pack.advantages = load_four(if_read(reads, MOERL_READ_ADVANTAGES, p.advantages), pack.index, pack.bits, aligned);
    const uint64_t index = pack.index;
    const uint32_t bits = pack.bits;
    double values[4] = {}, ratios[4] = {}, products[4] = {};
    MOERL_ROLLED
    for (int v = 0; v < 4; v++) {
        const uint64_t segment = pack.index;
        const SegmentSums sums = sum_single<TALLY>(p, pack, with_tokens, going);
        const Finished finished = finish_segment(p, common, segment, has_advantage_sums(p) ? planes_of(sums) : planes_of_advantage(p, sums, pack.advantages.x[0]));
        const MoerlCoefficient& c = finished.coefficient;
        keep_segment_faults(going.fault, p, finished, segment);
        double scale = 0.0;
        const Applied made = apply_single<TALLY>(p, pack, c, reads, usual, going, scale);
        if constexpr (TALLY) {
            if ((pack.bits & 1u) != 0) count_segment(going.segments, p, finished);
            turn(ratios, ratio_share(p, finished));
        }
        turn(values, finished.value);
        turn(products, scale * static_cast<double>(made.value + 0.0f));
        turn(pack.logprobs.x, made.gradient);
        turn(pack.old_logprobs.x, made.ratio);
        turn(pack.ref.x, made.kl);
        turn(pack.entropy.x, made.d_entropy);
        turn(pack.shift.x, c.sequence_ratio);
        turn(pack.rollout.x, 0.0f);
        turn(pack.advantages.x, 0.0f);
        turn(pack.weights.x, 0.0f);
        turn(pack.mask, made.clipped);
        turn(pack.keep, (finished.clipped & (MOERL_ABOVE | MOERL_BELOW)) != 0);
        turn(pack.chosen, 0u);
        pack.bits >>= 1;
        pack.index++;
    }
    store_four(p.d_logprobs, index, bits, aligned, pack.logprobs);
    store_four(p.ratio, index, bits, aligned, pack.old_logprobs);
    store_four(p.kl, index, bits, aligned, pack.ref);
    store_four(p.d_entropy, index, bits, aligned, pack.entropy);
    store_four(p.sequence_ratio, index, bits, aligned, pack.shift);
    store_bytes(p.clipped, index, bits, aligned, pack.mask);
    store_bytes(p.sequence_clipped, index, bits, aligned, pack.keep);

    Shares<TALLY> group;
    group.loss = fold_group(values);
    if constexpr (TALLY) group.ratio = fold_group(ratios);
    if (bits != 0u && lane_index() % LANES_OF_GROUP == 0) store_group(p, index / WARP, group);
    if (p.family == CLIPPED_RATIO || p.family == ANY) {
        for (int i = 0; i < ROW / WARP; i++) loss += in_group(products, i);
    }
    return loss;
}

// The loss has two parts, and each its tree: what segments decide, and what tokens do. Whoever brings the second publishes both, in this order.
MOERL_DEVICE void publish_part(const MoerlObjective& p, uint32_t part, const Tally& mine) {
    const double loss = shuffle(mine.high, LOSS - WARP);
    if (lane_index() == 0) store(p.group_records + part, loss);
    if (!is_last(p.tile_tickets, 2)) return;
    const double by_segments = load(p.group_records), by_tokens = load(p.group_records + 1);
    if (lane_index() != 0) return;
    const auto add = [&](double* to) {
        if (to != nullptr) store(to, ((p.keep_totals ? load(to) : 0.0) + by_segments) + by_tokens);
    };
    add(p.loss);
    add(p.diagnostics != nullptr ? p.diagnostics + MOERL_SUM_LOSS : nullptr);
}

template <bool TALLY> MOERL_DEVICE void singles_phase(const MoerlObjective& p) {
    GoingSingles going = {no_tokens(), no_terms(), no_segments(), MOERL_NO_FAULT};
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = unit_of_singles(p, index);
        const Geometry g = geometry(unit);
        const float common = common_coefficient(p);
        double loss = 0.0;
        MOERL_ROLLED
        for (int row = 0; row < g.rows; row++) loss = do_row<TALLY>(p, g, row, common, loss, going);
        Tally mine = empty_tally();
        if constexpr (TALLY) {
            mine = join(spread<true>(going.tokens), spread(going.segments));
            place_terms(mine, going.terms);
        }
        place(mine, LOSS, warp_sum(loss));
        constexpr uint64_t BY_UNITS = TALLY ? DIAGNOSTICS & ~(BY_SEGMENTS | BIT<MOERL_SUM_LOSS>) : 0u;
        if (climb(tree_of_units(p), mine, index, p.unit_count, BY_UNITS | BIT<LOSS>)) {
            publish(p, mine, BY_UNITS, !p.keep_totals);
            publish_part(p, 1, mine);
        }
        if (join_segments<TALLY>(p, unit, mine)) {
            publish(p, mine, TALLY ? BY_SEGMENTS & ~BIT<LOSS> : 0u, !p.keep_totals);
            publish_part(p, 0, mine);
        }
    }
    publish_fault(p.errors, going.fault);
}
