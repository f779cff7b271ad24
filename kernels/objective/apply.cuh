// Phase 3: what a token decides.
#pragma once

#include "../block.cuh"
#include "climb.cuh"
#include "owners.cuh"
#include "ratio.cuh"

// Where a warp keeps what it needs to know of a unit's segments, and the values of their tokens.
struct ApplyStage {
    Words4 coefficients[MOERL_UNIT_SEGMENTS];
    float advantages[MOERL_UNIT_SEGMENTS];
    float values[SLOTS];
    uint8_t owners[SLOTS];  // which of the unit's segments begins at a slot, then which one the slot belongs to
};
static_assert(sizeof(ApplyStage) == 10320, "src/device/objective.rs asks for this much a warp");

struct Applied {
    float gradient, value, ratio;
    uint32_t clipped;
};

// What must be read of every token, beside its mask.
template <int VARIANT> MOERL_DEVICE bool reads_logprobs(const MoerlObjective& p) { return VARIANT == MOERL_PPO_CLIP || p.ratio != nullptr; }
template <int VARIANT> MOERL_DEVICE bool reads_advantages(const MoerlObjective& p) { return VARIANT != MOERL_GSPO || p.clipped != nullptr; }

MOERL_DEVICE MoerlCoefficient coefficient_of(const Words4& w) { return {f32_of(w.w[0]), f32_of(w.w[1]), f32_of(w.w[2]), w.w[3]}; }

// A token that counts and is not sound.
MOERL_DEVICE Applied apply_unsound(const MoerlObjective& p) {
    if (p.nonfinite_policy != MOERL_PROPAGATE) return {0.0f, 0.0f, 1.0f, 0u};
    const float nan = f32_of(0x7fc00000u);
    return {nan, p.is_sequence_level ? 0.0f : nan, nan, 0u};
}

template <int VARIANT> MOERL_DEVICE Applied apply_token(const MoerlObjective& p, const Token& token, const MoerlCoefficient& c) {
    if (!token.counts) return {0.0f, 0.0f, 1.0f, 0u};
    if (!token.is_sound) return apply_unsound(p);
    Applied r = {0.0f, 0.0f, 1.0f, 0u};
    if (reads_logprobs<VARIANT>(p)) r.ratio = expf(saturate(p, token.delta));
    const float scaled = -c.weight * token.weight * token.advantage;
    const bool is_dropped = (c.flags & MOERL_DROPPED) != 0;
    if constexpr (VARIANT == MOERL_GSPO) {
        r.gradient = c.gradient;
        r.clipped = clipped_for(c.flags, token.advantage);
    } else if constexpr (VARIANT == MOERL_GSPO_TOKEN) {
        r.clipped = clipped_for(c.flags, token.advantage);
        const bool shows = (passes(c.flags, token.advantage) && !is_dropped) || c.ratio != c.ratio;
        r.gradient = shows ? scaled * c.ratio + 0.0f : 0.0f;
    } else {
        const float delta = token.delta;
        uint32_t flags = flags_of(delta > p.token_log_upper, delta < p.token_log_lower, delta > p.token_log_cap);
        flags = with_passes(flags, is_inside(p, delta));
        r.clipped = clipped_for(flags, token.advantage);
        const float bounded = token.advantage > 0.0f ? bounded_for_positive(p, r.ratio) : bounded_for_negative(p, r.ratio);
        if (!is_dropped) r.value = -token.weight * token.advantage * bounded;
        const bool shows = (passes(flags, token.advantage) && !is_dropped) || c.weight != c.weight;
        r.gradient = shows ? scaled * r.ratio + 0.0f : 0.0f;
    }
    return r;
}

// One pack's tokens, written.
template <int VARIANT, bool TALLY, class Segment>
MOERL_DEVICE void apply_pack(const MoerlObjective& p, const Pack& pack, Four& values, TokenTally& tally, uint64_t& fault, Segment segment_of) {
    Four gradients, ratios;
    uint32_t clipped = 0;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        MoerlCoefficient c;
        float advantage;
        segment_of(v, c, advantage);
        const Token token = token_of(p, pack, v, advantage);
        const Applied made = apply_token<VARIANT>(p, token, c);
        gradients.x[v] = made.gradient;
        ratios.x[v] = made.ratio;
        values.x[v] = made.value;
        clipped |= made.clipped << (8 * v);
        if constexpr (VARIANT == MOERL_PPO_CLIP) {
            keep_faults(fault, p, pack, token, v, true);
            if constexpr (TALLY) count_token(tally, p, token, made.ratio, made.clipped);
        }
    }
    const bool aligned = p.aligned != 0;
    store_four(p.d_logprobs, pack.index, pack.bits, aligned, gradients);
    store_four(p.ratio, pack.index, pack.bits, aligned, ratios);
    store_bytes(p.clipped, pack.index, pack.bits, aligned, clipped);
}

// A unit that is one piece of one segment. Returns its share of the loss.
template <int VARIANT, bool TALLY>
MOERL_DEVICE double apply_piece(const MoerlObjective& p, const MoerlUnit& unit, TokenTally& tally, uint64_t& fault) {
    const Geometry g = geometry(unit);
    if (g.tokens == 0) return 0.0;
    const MoerlCoefficient c = coefficient_of(load16(p.coefficients + unit.segment));
    // A segment with an unsound token is read again to find it.
    const bool again = (c.flags & MOERL_NONFINITE) != 0;
    const bool with_tokens = again || reads_logprobs<VARIANT>(p), with_advantages = again || reads_advantages<VARIANT>(p);
    const float advantage = with_advantages && !p.advantage_per_token ? load(p.advantages + unit.segment) : 0.0f;
    Chains<1> chains = no_chains<1>();
    for (int first = 0; first < g.rows; first += ROWS_AT_ONCE) {
        Pack packs[ROWS_AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) packs[r] = load_pack(p, g, first + r, with_tokens, with_advantages);
        MOERL_UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            Four values;
            apply_pack<VARIANT, TALLY>(p, packs[r], values, tally, fault, [&](int, MoerlCoefficient& of, float& own) {
                of = c;
                own = advantage;
            });
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) chains.of[0][v] += values.x[v];
        }
    }
    if constexpr (VARIANT != MOERL_PPO_CLIP) return 0.0;
    const float value = fold(chains.of[0], g.head);
    return (c.flags & MOERL_EMPTY) != 0 ? 0.0 : static_cast<double>(c.weight) * static_cast<double>(value);
}

// Puts the unit's coefficients into shared memory and marks where its segments begin. True if one of them is to be read again.
MOERL_DEVICE bool stage_segments(const MoerlObjective& p, const MoerlUnit& unit, ApplyStage& stage, bool with_advantages) {
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    const Geometry g = geometry(unit);
    for (int slot = static_cast<int>(lane); slot < g.head + g.tokens; slot += WARP) stage.owners[slot] = 0;
    sync_warp();
    bool again = false;
    for (uint32_t i = lane; i < unit.segments; i += WARP) {
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + i;
        const uint64_t start = static_cast<uint64_t>(load(p.offsets + segment)), end = static_cast<uint64_t>(load(p.offsets + segment + 1));
        const Words4 words = load16(p.coefficients + segment);
        stage.coefficients[i] = words;
        const bool is_flagged = (words.w[3] & MOERL_NONFINITE) != 0;
        again = again || is_flagged;
        const bool needs_advantage = !p.advantage_per_token && (with_advantages || is_flagged);
        stage.advantages[i] = needs_advantage ? load(p.advantages + segment) : 0.0f;
        if (end > start) stage.owners[start - base] = static_cast<uint8_t>(i);
    }
    sync_warp();
    return any(again, FULL_WARP);
}

// The unit's share of the loss, from the staged values.
MOERL_DEVICE double sum_values(const MoerlObjective& p, const MoerlUnit& unit, const ApplyStage& stage) {
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    double loss = 0.0;
    for (uint32_t first = 0; first < unit.segments; first += WARP) {
        const bool is_segment = first + lane < unit.segments;
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + first + lane;
        const uint64_t start = is_segment ? static_cast<uint64_t>(load(p.offsets + segment)) : base;
        const int length = is_segment ? static_cast<int>(static_cast<uint64_t>(load(p.offsets + segment + 1)) - start) : 0;
        const int slot = static_cast<int>(start - base);
        float value = 0.0f;
        if (length <= SHORT) value = fold_short(length, [&](int i) { return stage.values[slot + i]; });
        for (uint32_t longer = ballot(length > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer);
            const int its_slot = shuffle(slot, owner);
            const float found = fold_staged(shuffle(length, owner), [&](int i) { return stage.values[its_slot + i]; });
            if (static_cast<int>(lane) == owner) value = found;
        }
        if (is_segment) {
            const MoerlCoefficient c = coefficient_of(stage.coefficients[first + lane]);
            if ((c.flags & MOERL_EMPTY) == 0) loss += static_cast<double>(c.weight) * static_cast<double>(value);
        }
    }
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) loss += shuffle_xor(loss, lanes);
    return loss;
}

// A unit of several segments. Returns its share of the loss.
template <int VARIANT, bool TALLY>
MOERL_DEVICE double apply_segments(const MoerlObjective& p, const MoerlUnit& unit, ApplyStage& stage, TokenTally& tally, uint64_t& fault) {
    const Geometry g = geometry(unit);
    // Which segment's tokens are read again is not told apart here: all of the unit's are.
    const bool again = stage_segments(p, unit, stage, reads_advantages<VARIANT>(p));
    const bool with_tokens = again || reads_logprobs<VARIANT>(p), with_advantages = again || reads_advantages<VARIANT>(p);
    uint32_t carry = 0;
    for (int first = 0; first < g.rows; first += STAGED_ROWS_AT_ONCE) {
        Pack packs[STAGED_ROWS_AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < STAGED_ROWS_AT_ONCE; r++) packs[r] = load_pack(p, g, first + r, with_tokens, with_advantages);
        MOERL_UNROLL
        for (int r = 0; r < STAGED_ROWS_AT_ONCE; r++) {
            const int slot = (first + r) * ROW + 4 * static_cast<int>(lane_index());
            uint32_t owners[4];
            owners_of(stage, slot, packs[r].bits, carry, owners);
            Four values;
            apply_pack<VARIANT, TALLY>(p, packs[r], values, tally, fault, [&](int v, MoerlCoefficient& of, float& own) {
                of = coefficient_of(stage.coefficients[owners[v]]);
                own = stage.advantages[owners[v]];
            });
            if constexpr (VARIANT == MOERL_PPO_CLIP) {
                MOERL_UNROLL
                for (int v = 0; v < 4; v++) {
                    if ((packs[r].bits >> v & 1u) != 0) stage.values[slot + v] = values.x[v];
                }
            }
        }
    }
    sync_warp();
    double loss = 0.0;
    if constexpr (VARIANT == MOERL_PPO_CLIP) loss = sum_values(p, unit, stage);
    sync_warp();
    return loss;
}

template <int VARIANT, bool TALLY> MOERL_DEVICE void apply_phase(const MoerlObjective& p) {
    MOERL_DYNAMIC_SHARED(ApplyStage, stages);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        TokenTally tally = no_tokens();
        const double loss = unit.segments > 1 ? apply_segments<VARIANT, TALLY>(p, unit, stages[warp_index()], tally, fault)
                                              : apply_piece<VARIANT, TALLY>(p, unit, tally, fault);
        // The loss of the sequence variants was known to `finish`.
        if constexpr (VARIANT == MOERL_PPO_CLIP) {
            double mine = nothing(lane_index());
            if constexpr (TALLY) mine = spread(tally);
            if (lane_index() == LOSS) mine = loss;
            if (climb(p, mine, index, p.unit_count)) publish(p, mine, false);
        }
    }
    if constexpr (VARIANT == MOERL_PPO_CLIP) publish_fault(p.errors, fault);
}
