// Batches whose segments have one token each: all phases in one launch, whatever the objective and whatever is asked for.
//
// Segment and token then have the same index: neither offsets nor units are read, and a sum over a segment is its token's value. Bytes a token: what
// the objective names, read once, and what is asked for, written once; for GSPO 4 + 4 + 1 and 4 of A read, 4 written.
//
// A warp takes 256 of them by groups of 32, a lane one of a group, from its loads to its gradient. What comes of it is what the three phases would make
// of it, bit for bit; only the diagnostics' sums in f32 add up in another order.
#pragma once

#include "apply.cuh"
#include "segment_groups.cuh"

template <int N> struct Constant {
    static constexpr int VALUE = N;
};

MOERL_DEVICE MoerlUnit unit_of_singles(const MoerlObjective& p, uint64_t index) {
    const uint64_t first = index * MOERL_UNIT_SEGMENTS, behind = p.segment_count - first;
    const uint16_t tokens = static_cast<uint16_t>(behind < MOERL_UNIT_SEGMENTS ? behind : MOERL_UNIT_SEGMENTS);
    return {first, static_cast<uint32_t>(first), tokens, tokens};
}

// Calls `act` with the family of the objective as a type: where FAMILY is ANY, any of the four.
template <int FAMILY, class Act> MOERL_DEVICE auto with_family(const MoerlObjective& p, Act act) {
    if constexpr (FAMILY != ANY) {
        return act(Constant<FAMILY>{});
    } else {
        switch (p.family) {
            case CLIPPED_RATIO: return act(Constant<CLIPPED_RATIO>{});
            case SHARED_GRADIENT: return act(Constant<SHARED_GRADIENT>{});
            case SEGMENT_RATIO: return act(Constant<SEGMENT_RATIO>{});
            default: return act(Constant<ANY>{});
        }
    }
}

// What `apply` reads of a token.
template <int FAMILY> MOERL_DEVICE uint32_t apply_reads(const MoerlObjective& p) {
    return with_family<FAMILY>(p, [&](auto family) { return reads_of<family.VALUE>(p); });
}

// What is the same for all tokens.
struct Common {
    uint32_t usual;    // what `apply` reads
    uint32_t reads;    // what `partial` or `apply` does
    bool with_tokens;  // `partial` reads more than the masks
    float coefficient;
};

template <int FAMILY> MOERL_DEVICE Common common_of(const MoerlObjective& p) {
    const uint32_t usual = apply_reads<FAMILY>(p);
    const bool with_tokens = sums_tokens(p);
    return {usual, with_tokens ? READ_ALL : usual, with_tokens, common_coefficient(p)};
}

// What a lane keeps while it goes over its tokens.
struct GoingSingles {
    TokenTally tokens;
    TermTally terms;
    SegmentTally segments;
    uint64_t fault;
};

// What comes of a token and its segment.
struct Single {
    Applied token;
    float ratio;          // of the segment
    uint32_t clipped;     // the segment's flags
    double value, share;  // what the segment adds to the loss, and to the sum of s
    double loss;          // what the token adds to the loss
};

// True where nothing is out of order, by one test of a token that counts.
template <bool WIDE> MOERL_DEVICE bool is_in_order(const Pack<WIDE>& pack, const Token<WIDE>& token) {
    Suspicion suspicion = NO_SUSPICION;
    suspect(suspicion, pack.logprobs.x[0], pack.old_logprobs.x[0]);
    suspect(suspicion, token.delta);
    suspect(suspicion, token.advantage);
    suspect(suspicion, token.weight);
    if constexpr (WIDE) {
        suspect(suspicion, pack.rollout.x[0], pack.ref.x[0]);
        suspect(suspicion, token.to_ref);
        suspect(suspicion, token.from_rollout);
        suspect(suspicion, token.entropy);
    }
    return byte_of(pack.mask, 0) == 1 && suspicion.largest <= 1e-3f && suspicion.probe == 0.0f;
}

// The token as `partial` has it, which reads a term's input only where it decides there.
template <bool WIDE> MOERL_DEVICE Token<WIDE> seen_by_partial(const MoerlObjective& p, const Pack<WIDE>& pack, float advantage, const Common& common, GoingSingles& going) {
    Pack<WIDE> seen = pack;
    if constexpr (WIDE) {
        const bool drops = p.nonfinite_policy == MOERL_DROP_SEGMENT;
        if (!drops && p.divergence == nullptr) seen.ref.x[0] = 0.0f;
        if (!drops) seen.rollout.x[0] = seen.entropy.x[0] = 0.0f;
    }
    Token<WIDE> token = token_of<WIDE>(p, seen, 0, advantage, common.reads);
    keep_faults(going.fault, p, seen, token, 0, common.with_tokens);
    if (!common.with_tokens) token.is_sound_alone = token.is_sound = true;
    return token;
}

// The token as `apply` has it, which reads what it needs, and of a segment with an unsound token all.
template <int FAMILY>
MOERL_DEVICE Token<IS_WIDE<FAMILY>> seen_by_apply(const MoerlObjective& p, const Pack<IS_WIDE<FAMILY>>& pack, float advantage, const Common& common, uint32_t flags, GoingSingles& going) {
    Pack<IS_WIDE<FAMILY>> seen = pack;
    const bool hides = common.reads != common.usual && !is_read_again(p, flags);
    if (hides) hide_unread(seen, 0, common.usual);
    if (hides && (common.usual & MOERL_READ_ADVANTAGES) == 0) advantage = 0.0f;
    const Token<IS_WIDE<FAMILY>> token = token_of<IS_WIDE<FAMILY>>(p, seen, 0, advantage, common.reads);
    if (with_family<FAMILY>(p, [](auto family) { return HAS_VALUES<family.VALUE>; })) keep_faults(going.fault, p, seen, token, 0, (common.reads & MOERL_READ_LOGPROBS) != 0);
    return token;
}

// What the segment's one token sums to. As constants n and what is divided by it cost nothing.
template <bool WIDE> MOERL_DEVICE Planes planes_of_single(const MoerlObjective& p, const Token<WIDE>& token) {
    SegmentSums sums = NO_SUMS;
    sums.count = sums.kept = 1;
    if constexpr (WIDE) sums.kept = token.is_kept;
    sums.nonfinite = !token.is_sound;
    if (token.is_sound) {
        const float weight = policy_weight(p, token);
        if (p.log_ratio != nullptr) sums.delta = token.delta + 0.0f;
        sums.positive = positive_part(weight, token.advantage) + 0.0f;
        sums.negative = negative_part(weight, token.advantage) + 0.0f;
        if constexpr (WIDE) {
            if (p.folded != nullptr && token.is_kept) sums.folded = folded_part(p, token.delta, token.advantage, log_weight_of(p, token)) + 0.0f;
            if (p.divergence != nullptr && (token.is_kept || !p.rejects_all)) sums.divergence = plain_divergence(p, token.to_ref).value + 0.0f;
        }
    }
    return has_advantage_sums(p) ? planes_of(sums) : planes_of_advantage(p, sums, token.advantage);
}

template <int FAMILY, bool TALLY, class AToken> MOERL_DEVICE Applied apply_one(const MoerlObjective& p, const AToken& token, const MoerlCoefficient& c, uint32_t reads, GoingSingles& going) {
    if constexpr (FAMILY == ANY) return apply_any<TALLY>(p, token, c, going.tokens, going.terms);
    else return apply_plain<FAMILY, TALLY>(p, token, c, reads, going.tokens);
}

template <int FAMILY, bool TALLY>
MOERL_DEVICE Applied apply_sound(const MoerlObjective& p, const Token<IS_WIDE<FAMILY>>& token, const MoerlCoefficient& c, uint32_t reads, GoingSingles& going) {
    return with_family<FAMILY>(p, [&](auto family) { return apply_one<family.VALUE, TALLY>(p, token, c, reads, going); });
}

template <int FAMILY> MOERL_DEVICE double loss_of(const MoerlObjective& p, const MoerlCoefficient& c, float value) {
    return with_family<FAMILY>(p, [&](auto family) {
        if constexpr (HAS_VALUES<family.VALUE>) return value_scale<family.VALUE>(c) * static_cast<double>(value + 0.0f);
        else return 0.0;
    });
}

// A token that counts.
template <int FAMILY, bool TALLY>
MOERL_DEVICE Single do_single(const MoerlObjective& p, const Pack<IS_WIDE<FAMILY>>& pack, float advantage, const Common& common, GoingSingles& going) {
    Token<IS_WIDE<FAMILY>> token = values_of<IS_WIDE<FAMILY>>(p, pack, 0, advantage, common.reads);
    const bool in_order = is_in_order(pack, token);
    if (!in_order) token = seen_by_partial(p, pack, advantage, common, going);
    if constexpr (TALLY) {
        if (common.with_tokens && p.is_sequence_level) count_token(going.tokens, p, pack, 0, token, expf(saturate(p, token.delta)), 0u);
    }
    const Finished finished = finish_segment<true>(p, common.coefficient, pack.index, planes_of_single(p, token));
    const MoerlCoefficient& c = finished.coefficient;
    keep_segment_faults(going.fault, p, finished, pack.index);
    Single r = {NOTHING, c.sequence_ratio, finished.clipped, finished.value, 0.0, 0.0};

    if (!in_order) token = seen_by_apply<FAMILY>(p, pack, advantage, common, c.flags, going);
    r.token = token.is_sound ? apply_sound<FAMILY, TALLY>(p, token, c, in_order ? common.usual : common.reads, going) : apply_unsound(p);
    if constexpr (TALLY) {
        if (!p.is_sequence_level) count_token(going.tokens, p, pack, 0, token, counted_ratio(p, token, r.token), r.token.clipped);
        count_segment(going.segments, p, finished);
        r.share = ratio_share(p, finished);
    }
    r.loss = loss_of<FAMILY>(p, c, r.token.value);
    return r;
}

template <class T> MOERL_DEVICE void store_if_asked(T* array, uint64_t index, T value) {
    if (array != nullptr) store_stream(array + index, value);
}

template <bool WIDE> MOERL_DEVICE void store_single(const MoerlObjective& p, uint64_t index, const Single& single) {
    store_if_asked(p.d_logprobs, index, single.token.gradient);
    if constexpr (WIDE) {
        store_if_asked(p.d_entropy, index, single.token.d_entropy);
        store_if_asked(p.kl, index, single.token.kl);
    }
    store_if_asked(p.ratio, index, single.token.ratio);
    store_if_asked(p.clipped, index, static_cast<uint8_t>(single.token.clipped));
    store_if_asked(p.sequence_ratio, index, single.ratio);
    store_if_asked(p.sequence_clipped, index, static_cast<uint8_t>((single.clipped & (MOERL_ABOVE | MOERL_BELOW)) != 0));
}

// The unit's tokens. Returns what they add to the loss beside what `finish` knew.
template <int FAMILY, bool TALLY> MOERL_DEVICE double do_singles(const MoerlObjective& p, const MoerlUnit& unit, GoingSingles& going) {
    const Common common = common_of<FAMILY>(p);
    double loss = 0.0;
    MOERL_ROLLED
    for (uint32_t first = 0; first < unit.tokens; first += WARP) {
        const uint64_t index = unit.token + first + lane_index();
        Single single = {NOTHING, 1.0f, 0u, 0.0, 0.0, 0.0};
        if (first + lane_index() < unit.tokens) {
            const Pack<IS_WIDE<FAMILY>> pack = load_pack<IS_WIDE<FAMILY>>(p, index, 1u, false, common.reads);
            const bool is_own = p.advantage_per_token != 0, is_read = (common.reads & MOERL_READ_ADVANTAGES) != 0;
            const float advantage = !is_own && is_read ? load_stream(p.advantages + index) : pack.advantages.x[0];
            if (byte_of(pack.mask, 0) != 0) single = do_single<FAMILY, TALLY>(p, pack, advantage, common, going);
            else going.segments.empty++;
            store_single<IS_WIDE<FAMILY>>(p, index, single);
        }
        Shares<TALLY> shares = no_shares<TALLY>();
        shares.loss = single.value;
        if constexpr (TALLY) shares.ratio = single.share;
        const Shares<TALLY> folded = fold_lanes(shares);
        if (lane_index() == 0) store_group(p, (unit.token + first) / WARP, folded);
        loss += single.loss;
    }
    return warp_sum(loss);
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

// FAMILY: ANY where it is the call's to say.
template <int FAMILY, bool TALLY> MOERL_DEVICE void singles_phase(const MoerlObjective& p) {
    GoingSingles going = {no_tokens(), no_terms(), no_segments(), MOERL_NO_FAULT};
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = unit_of_singles(p, index);
        const double loss = do_singles<FAMILY, TALLY>(p, unit, going);
        Tally mine = empty_tally();
        if constexpr (TALLY) {
            mine = join(spread<true>(going.tokens), spread(going.segments));
            place_terms(mine, going.terms);
        }
        place(mine, LOSS, loss);
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
