// Phase 1: what the tokens of every segment sum to.
#pragma once

#include "../block.cuh"
#include "climb.cuh"
#include "ratio.cuh"

// Where a warp keeps the tokens of several short segments, by slot.
struct PartialStage {
    float delta[SLOTS];
    float weighted[SLOTS];  // w A, or w where A is the segment's
    uint8_t marks[SLOTS];
};
static_assert(sizeof(PartialStage) == 9360, "src/device/objective.rs asks for this much a warp");
constexpr uint8_t COUNTS = 1, NEGATIVE = 2, UNSOUND = 4;

struct SegmentSums {
    float delta, positive, negative;
    uint32_t count, nonfinite;
};

// True where S+ and S- are A times a count, and not sums.
MOERL_DEVICE bool has_plain_advantages(const MoerlObjective& p) { return p.weights == nullptr && !p.advantage_per_token; }

MOERL_DEVICE float positive_part(float weight, float advantage) { return advantage > 0.0f ? weight * advantage : 0.0f; }
MOERL_DEVICE float negative_part(float weight, float advantage) { return advantage < 0.0f ? weight * advantage : 0.0f; }

// Adds to a segment's planes, or begins them.
MOERL_DEVICE void store_sums(const MoerlObjective& p, uint64_t segment, bool more, double delta, double positive, double negative, double count, double nonfinite) {
    if (more) count += load(p.count + segment);
    store(p.count + segment, count);
    if (p.nonfinite != nullptr) {
        if (more) nonfinite += load(p.nonfinite + segment);
        store(p.nonfinite + segment, nonfinite);
    }
    if (p.log_ratio == nullptr) return;
    if (more) delta += load(p.log_ratio + segment);
    store(p.log_ratio + segment, delta);
    if (has_plain_advantages(p)) {
        // Exact, however the segment was cut. Where nothing is sound A may be NaN.
        const double sound = count - nonfinite;
        const double advantage = sound > 0.0 ? static_cast<double>(load(p.advantages + segment)) : 0.0;
        positive = advantage > 0.0 ? advantage * sound : 0.0;
        negative = advantage < 0.0 ? advantage * sound : 0.0;
    } else if (more) {
        positive += load(p.positive + segment);
        negative += load(p.negative + segment);
    }
    store(p.positive + segment, positive);
    store(p.negative + segment, negative);
}

MOERL_DEVICE void count_locally(const MoerlObjective& p, uint64_t tokens, uint64_t segments) {
    if (p.local_counts == nullptr || lane_index() != 0) return;
    if (tokens != 0) atomic_add(p.local_counts, tokens);
    if (segments != 0) atomic_add(p.local_counts + 1, segments);
}

// The last of a group of 32 tiles adds the group up, the last group adds the groups up.
MOERL_DEVICE void join_tiles(const MoerlObjective& p, uint64_t index, const MoerlUnit& unit, const SegmentSums& sums) {
    const uint32_t lane = lane_index();
    const uint64_t start = static_cast<uint64_t>(load(p.offsets + unit.segment)), end = static_cast<uint64_t>(load(p.offsets + unit.segment + 1));
    const uint64_t tile = (unit.token - start) / MOERL_TILE, tiles = (end - start + MOERL_TILE - 1) / MOERL_TILE;
    const uint64_t first = index - tile;  // the unit of the segment's first tile
    const uint64_t group = tile / MOERL_TILE_GROUP, groups = (tiles + MOERL_TILE_GROUP - 1) / MOERL_TILE_GROUP;
    const uint64_t leader = first + group * MOERL_TILE_GROUP;
    const uint64_t behind = tiles - group * MOERL_TILE_GROUP;
    const uint32_t members = static_cast<uint32_t>(behind < MOERL_TILE_GROUP ? behind : MOERL_TILE_GROUP);

    if (lane == 0) {
        const uint32_t counts = sums.count | sums.nonfinite << 16;
        store16(p.tile_records + 4 * index, {{bits_of(sums.delta), bits_of(sums.positive), bits_of(sums.negative), counts}});
    }
    if (!is_last(p.group_tickets + leader, members)) return;
    const bool takes_part = lane < 5;
    double mine = 0.0;
    if (takes_part) {
        const uint32_t* const words = p.tile_records + 4 * leader + (lane < 3 ? lane : 3u);
        for (uint32_t member = 0; member < members; member++) {
            const uint32_t word = load(words + 4 * member);
            mine += lane < 3 ? static_cast<double>(f32_of(word)) : static_cast<double>(lane == 3 ? word & 0xffffu : word >> 16);
        }
        store(p.group_records + 5 * leader + lane, mine);
    }
    if (!is_last(p.tile_tickets + first, static_cast<uint32_t>(groups))) return;
    double total = 0.0;
    if (takes_part) {
        // The fold goes on from what an earlier call left.
        if (p.accumulate) {
            double* const planes[5] = {p.log_ratio, p.positive, p.negative, p.count, p.nonfinite};
            MOERL_UNROLL
            for (uint32_t i = 0; i < 5; i++) {
                if (i == lane && planes[i] != nullptr) total = load(planes[i] + unit.segment);
            }
        }
        for (uint64_t g = 0; g < groups; g++) total += load(p.group_records + 5 * (first + g * MOERL_TILE_GROUP) + lane);
    }
    const double delta = shuffle(total, 0), positive = shuffle(total, 1), negative = shuffle(total, 2);
    const double count = shuffle(total, 3), nonfinite = shuffle(total, 4);
    sync_warp();  // the planes were read by five lanes and are written by one
    if (lane == 0) store_sums(p, unit.segment, false, delta, positive, negative, count, nonfinite);
    count_locally(p, 0, count > 0.0 || p.count_empty);
}

// A unit that is one piece of one segment: summed in registers.
template <bool TALLY>
MOERL_DEVICE SegmentSums sum_piece(const MoerlObjective& p, const MoerlUnit& unit, TokenTally& tally, uint64_t& fault) {
    const Geometry g = geometry(unit);
    const bool with_tokens = p.logprobs != nullptr;
    const bool with_sums = with_tokens && !has_plain_advantages(p);
    const float segment_advantage = with_tokens && !p.advantage_per_token && g.tokens != 0 ? load(p.advantages + unit.segment) : 0.0f;
    Chains<3> chains = no_chains<3>();
    uint32_t count = 0, nonfinite = 0;
    for (int first = 0; first < g.rows; first += ROWS_AT_ONCE) {
        Pack packs[ROWS_AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) packs[r] = load_pack(p, g, first + r, with_tokens, with_tokens);
        MOERL_UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                const Token token = token_of(p, packs[r], v, segment_advantage);
                count += token.counts;
                nonfinite += with_tokens && token.counts && !token.is_sound;
                chains.of[0][v] += token.is_sound ? token.delta : 0.0f;
                if (with_sums) {
                    chains.of[1][v] += token.is_sound ? positive_part(token.weight, token.advantage) : 0.0f;
                    chains.of[2][v] += token.is_sound ? negative_part(token.weight, token.advantage) : 0.0f;
                }
                keep_faults(fault, p, packs[r], token, v, with_tokens);
                if constexpr (TALLY) count_token(tally, p, token, expf(saturate(p, token.delta)), 0u);
            }
        }
    }
    SegmentSums sums = {0.0f, 0.0f, 0.0f, reduce_add_u32(count), reduce_add_u32(nonfinite)};
    if (with_tokens) sums.delta = fold(chains.of[0], g.head);
    if (with_sums) {
        sums.positive = fold(chains.of[1], g.head);
        sums.negative = fold(chains.of[2], g.head);
    }
    return sums;
}

// Copies the tokens of a unit to shared memory.
template <bool TALLY>
MOERL_DEVICE void stage_tokens(const MoerlObjective& p, const MoerlUnit& unit, PartialStage& stage, TokenTally& tally, uint64_t& fault) {
    const Geometry g = geometry(unit);
    const bool with_tokens = p.logprobs != nullptr;
    for (int first = 0; first < g.rows; first += STAGED_ROWS_AT_ONCE) {
        Pack packs[STAGED_ROWS_AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < STAGED_ROWS_AT_ONCE; r++) packs[r] = load_pack(p, g, first + r, with_tokens, with_tokens);
        MOERL_UNROLL
        for (int r = 0; r < STAGED_ROWS_AT_ONCE; r++) {
            const int slot = (first + r) * ROW + 4 * static_cast<int>(lane_index());
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                // A segment's own advantage is looked at where its tokens are summed.
                const Token token = token_of(p, packs[r], v, 0.0f);
                if ((packs[r].bits >> v & 1u) == 0) continue;
                const bool is_negative = p.advantage_per_token && token.advantage < 0.0f;
                stage.delta[slot + v] = token.is_sound ? token.delta : 0.0f;
                stage.weighted[slot + v] = token.is_sound ? (p.advantage_per_token ? token.weight * token.advantage : token.weight) : 0.0f;
                stage.marks[slot + v] = static_cast<uint8_t>((token.counts ? COUNTS : 0) | (is_negative ? NEGATIVE : 0) | (token.counts && !token.is_sound ? UNSOUND : 0));
                keep_faults(fault, p, packs[r], token, v, with_tokens);
                if constexpr (TALLY) count_token(tally, p, token, expf(saturate(p, token.delta)), 0u);
            }
        }
    }
    sync_warp();
}

// A token's share of S+ or S-.
MOERL_DEVICE float staged_part(const MoerlObjective& p, const PartialStage& stage, int slot, float segment_advantage, bool negative) {
    const float weighted = stage.weighted[slot];
    if (p.advantage_per_token) return ((stage.marks[slot] & NEGATIVE) != 0) == negative ? weighted : 0.0f;
    return negative ? negative_part(weighted, segment_advantage) : positive_part(weighted, segment_advantage);
}

// One lane's short segment.
MOERL_DEVICE SegmentSums sum_short(const MoerlObjective& p, const PartialStage& stage, int slot, int length, float advantage, bool with_tokens, bool with_sums) {
    SegmentSums sums = {0.0f, 0.0f, 0.0f, 0, 0};
    for (int i = 0; i < length; i++) {
        sums.count += stage.marks[slot + i] & COUNTS;
        sums.nonfinite += (stage.marks[slot + i] & UNSOUND) != 0;
    }
    if (with_tokens) sums.delta = fold_short(length, [&](int i) { return stage.delta[slot + i]; });
    if (with_sums) {
        sums.positive = fold_short(length, [&](int i) { return staged_part(p, stage, slot + i, advantage, false); });
        sums.negative = fold_short(length, [&](int i) { return staged_part(p, stage, slot + i, advantage, true); });
    }
    return sums;
}

// The warp's longer segment.
MOERL_DEVICE SegmentSums sum_staged(const MoerlObjective& p, const PartialStage& stage, int slot, int length, float advantage, bool with_tokens, bool with_sums) {
    uint32_t count = 0, nonfinite = 0;
    for (int i = static_cast<int>(lane_index()); i < length; i += WARP) {
        count += stage.marks[slot + i] & COUNTS;
        nonfinite += (stage.marks[slot + i] & UNSOUND) != 0;
    }
    SegmentSums sums = {0.0f, 0.0f, 0.0f, reduce_add_u32(count), reduce_add_u32(nonfinite)};
    if (with_tokens) sums.delta = fold_staged(length, [&](int i) { return stage.delta[slot + i]; });
    if (with_sums) {
        sums.positive = fold_staged(length, [&](int i) { return staged_part(p, stage, slot + i, advantage, false); });
        sums.negative = fold_staged(length, [&](int i) { return staged_part(p, stage, slot + i, advantage, true); });
    }
    return sums;
}

// A segment whose own advantage is not finite has no sound token.
MOERL_DEVICE void reject_unsound_advantage(const MoerlObjective& p, const PartialStage& stage, uint64_t token, int slot, int length, float advantage, SegmentSums& sums, uint64_t& fault) {
    if (is_finite(advantage) || sums.count == 0) return;
    sums.nonfinite = sums.count;
    sums.delta = sums.positive = sums.negative = 0.0f;
    for (int i = 0; i < length; i++) {
        if ((stage.marks[slot + i] & COUNTS) == 0) continue;
        keep_first(fault, fault_at(token + static_cast<uint64_t>(i), p.tag, MOERL_FAULT_NONFINITE_INPUT));
        return;
    }
}

// A unit of several segments: staged, then a lane per short segment and the warp for each longer one.
template <bool TALLY>
MOERL_DEVICE void sum_segments(const MoerlObjective& p, const MoerlUnit& unit, PartialStage& stage, TokenTally& tally, uint64_t& fault) {
    stage_tokens<TALLY>(p, unit, stage, tally, fault);
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    const bool with_tokens = p.logprobs != nullptr;
    const bool with_sums = with_tokens && !has_plain_advantages(p);
    for (uint32_t first = 0; first < unit.segments; first += WARP) {
        const bool is_segment = first + lane < unit.segments;
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + first + lane;
        const uint64_t start = is_segment ? static_cast<uint64_t>(load(p.offsets + segment)) : base;
        const int length = is_segment ? static_cast<int>(static_cast<uint64_t>(load(p.offsets + segment + 1)) - start) : 0;
        const int slot = static_cast<int>(start - base);
        const float advantage = with_tokens && !p.advantage_per_token && length != 0 ? load(p.advantages + segment) : 0.0f;
        SegmentSums sums = {0.0f, 0.0f, 0.0f, 0, 0};
        if (length <= SHORT) sums = sum_short(p, stage, slot, length, advantage, with_tokens, with_sums);
        for (uint32_t longer = ballot(length > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer);
            const SegmentSums found = sum_staged(p, stage, shuffle(slot, owner), shuffle(length, owner), shuffle(advantage, owner), with_tokens, with_sums);
            if (static_cast<int>(lane) == owner) sums = found;
        }
        if (is_segment) {
            reject_unsound_advantage(p, stage, start, slot, length, advantage, sums, fault);
            store_sums(p, segment, p.accumulate != 0, sums.delta, sums.positive, sums.negative, sums.count, sums.nonfinite);
        }
        if (p.local_counts != nullptr) {
            const uint32_t tokens = reduce_add_u32(sums.count);
            const uint32_t nonempty = ballot(is_segment && (sums.count != 0 || p.count_empty), FULL_WARP);
            count_locally(p, tokens, static_cast<uint32_t>(popcount(nonempty)));
        }
    }
    sync_warp();
}

// Loss and diagnostics begin at zero, unless they go on or a later warp of this launch sets them.
template <bool TALLY> MOERL_DEVICE void open_outputs(const MoerlObjective& p) {
    const uint32_t lane = lane_index();
    if (p.keep_totals || block_index() != 0 || warp_index() != 0) return;
    if (lane == LOSS && p.loss != nullptr) store(p.loss, 0.0);
    const bool is_set_later = TALLY && p.unit_count != 0;
    if (lane <= MOERL_MAX_NEGATIVE_SEQUENCE_RATIO && p.diagnostics != nullptr && !is_set_later) store(p.diagnostics + lane, nothing(lane));
}

template <bool TALLY> MOERL_DEVICE void partial_phase(const MoerlObjective& p) {
    MOERL_DYNAMIC_SHARED(PartialStage, stages);
    open_outputs<TALLY>(p);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        TokenTally tally = no_tokens();
        if (unit.segments > 1) {
            sum_segments<TALLY>(p, unit, stages[warp_index()], tally, fault);
        } else {
            const SegmentSums sums = sum_piece<TALLY>(p, unit, tally, fault);
            count_locally(p, sums.count, unit.segments != 0 && (sums.count != 0 || p.count_empty));
            if (unit.segments == 0) join_tiles(p, index, unit, sums);
            else if (lane_index() == 0) store_sums(p, unit.segment, p.accumulate != 0, sums.delta, sums.positive, sums.negative, sums.count, sums.nonfinite);
        }
        if constexpr (TALLY) {
            double mine = spread(tally);
            if (climb(p, mine, index, p.unit_count) && lane_index() != LOSS) publish(p, mine, !p.keep_totals);
        }
    }
    publish_fault(p.errors, fault);
}
