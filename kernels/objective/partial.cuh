// Phase 1: what the tokens of every segment sum to.
#pragma once

#include "../block.cuh"
#include "policy.cuh"

// Where a warp keeps the tokens of several short segments, by slot.
template <bool WIDE> struct PartialStage;
template <> struct PartialStage<false> {
    float delta[SLOTS];
    float weighted[SLOTS];  // w A, or w where A is the segment's
    uint8_t marks[SLOTS];
};
template <> struct PartialStage<true> : PartialStage<false> {
    float log_weight[SLOTS];
    float divergence[SLOTS];
};
static_assert(sizeof(PartialStage<false>) == 9360 && sizeof(PartialStage<true>) == 17680, "src/device/objective.rs asks for this much a warp");
constexpr uint8_t COUNTS = 1, NEGATIVE = 2, UNSOUND = 4, KEPT = 8, POSITIVE = 16;

// The advantage that tokens share, as the bits of its f32. Those of no token and those that differ are NaN, which no advantage is here.
constexpr uint32_t NO_ADVANTAGE = 0xffffffffu, VARYING = 0xfffffffeu;

struct SegmentSums {
    float delta, positive, negative, folded, divergence;
    uint32_t count, nonfinite, kept;
    uint32_t advantage;  // of the tokens, where they have to share one
};

constexpr SegmentSums NO_SUMS = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0, 0, 0, NO_ADVANTAGE};

MOERL_DEVICE uint32_t shared_advantage(uint32_t a, uint32_t b) {
    if (a == NO_ADVANTAGE || b == NO_ADVANTAGE) return a == NO_ADVANTAGE ? b : a;
    return f32_of(a) == f32_of(b) ? a : VARYING;
}

MOERL_DEVICE uint32_t warp_shared_advantage(uint32_t advantage) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) advantage = shared_advantage(advantage, shuffle_xor(advantage, lanes));
    return advantage;
}

// True where a segment's tokens have advantages of their own although they have to share one.
MOERL_DEVICE bool needs_one_advantage(const MoerlObjective& p) { return p.variant == MOERL_GMPO && p.advantage_per_token != 0; }

MOERL_DEVICE void keep_varying(uint64_t& fault, const MoerlObjective& p, uint64_t segment, uint32_t advantage) {
    if (advantage == VARYING) keep_first(fault, fault_at(segment, p.tag, MOERL_FAULT_VARYING_ADVANTAGE));
}

// True where S+ and S- are A times a count, and not sums.
MOERL_DEVICE bool has_plain_advantages(const MoerlObjective& p) { return (p.weights == nullptr || p.folds_weights) && p.keep == nullptr && !p.advantage_per_token; }

MOERL_DEVICE bool has_advantage_sums(const MoerlObjective& p) { return p.positive != nullptr && !has_plain_advantages(p); }

// What is read of every token.
MOERL_DEVICE uint32_t partial_reads(const MoerlObjective& p) { return p.logprobs != nullptr ? READ_ALL : uint32_t{MOERL_READ_KEEP}; }

MOERL_DEVICE float positive_part(float weight, float advantage) { return advantage > 0.0f ? weight * advantage : 0.0f; }
MOERL_DEVICE float negative_part(float weight, float advantage) { return advantage < 0.0f ? weight * advantage : 0.0f; }

// A token's share of C: its log-ratio, clipped as its advantage's sign has it, and the logarithm of its weight.
MOERL_DEVICE float folded_part(const MoerlObjective& p, float delta, float advantage, float log_weight) {
    if (p.variant == MOERL_VESPO) return fminf(fmaxf(delta, -20.0f), 20.0f) + log_weight;
    const float x = advantage > 0.0f ? fminf(delta, p.token_log_upper) : advantage < 0.0f ? fmaxf(delta, p.token_log_lower) : delta;
    return x + log_weight;
}

MOERL_DEVICE float log_weight_of(const MoerlObjective& p, const Token<true>& token) { return p.weights != nullptr ? logf(token.weight) : 0.0f; }

// The planes of a segment, in the order of their records.
struct Planes {
    double delta, positive, negative, count, nonfinite, folded, divergence, kept;
};

MOERL_DEVICE Planes planes_of(const SegmentSums& s) { return {s.delta, s.positive, s.negative, static_cast<double>(s.count), static_cast<double>(s.nonfinite), s.folded, s.divergence, static_cast<double>(s.kept)}; }

MOERL_DEVICE double store_plane(double* plane, uint64_t segment, bool more, double sum) {
    if (plane == nullptr) return sum;
    if (more) sum += load(plane + segment);
    store(plane + segment, sum);
    return sum;
}

// A of `sound` tokens that weigh 1: exact, however the segment was cut. Where nothing is sound A may be NaN.
MOERL_DEVICE double plain_advantages(const MoerlObjective& p, uint64_t segment, double sound) {
    return sound > 0.0 ? static_cast<double>(load(p.advantages + segment)) * sound : 0.0;
}

// Adds to a segment's planes, or begins them.
template <bool WIDE> MOERL_DEVICE void store_sums(const MoerlObjective& p, uint64_t segment, bool more, const Planes& sums) {
    const double count = store_plane(p.count, segment, more, sums.count);
    const double nonfinite = store_plane(p.nonfinite, segment, more, sums.nonfinite);
    if constexpr (WIDE) {
        store_plane(p.folded, segment, more, sums.folded);
        store_plane(p.divergence, segment, more, sums.divergence);
    }
    store_plane(p.kept, segment, more, WIDE ? sums.kept : sums.count);
    store_plane(p.log_ratio, segment, more, sums.delta);
    if (p.positive == nullptr) return;
    if (!has_plain_advantages(p)) {
        store_plane(p.positive, segment, more, sums.positive);
        store_plane(p.negative, segment, more, sums.negative);
        return;
    }
    const double sum = plain_advantages(p, segment, count - nonfinite);
    store(p.positive + segment, sum > 0.0 ? sum : 0.0);
    store(p.negative + segment, sum < 0.0 ? sum : 0.0);
}

// Where the launch finishes segments as well, they were counted before it.
MOERL_DEVICE void count_locally(const MoerlObjective& p, uint64_t tokens, uint64_t segments) {
    if (p.local_counts == nullptr || p.finishes || lane_index() != 0) return;
    if (tokens != 0) atomic_add(p.local_counts, tokens);
    if (segments != 0) atomic_add(p.local_counts + 1, segments);
}

// What the denominators count of a segment.
template <bool WIDE, class Sums> MOERL_DEVICE auto in_denominators(const MoerlObjective& p, const Sums& sums) {
    return WIDE && p.after_rejection ? sums.kept : sums.count;
}

// A tile's eight numbers, which the tree of the segment adds up in the order of Planes, and the advantage of its tokens.
template <bool WIDE> MOERL_DEVICE void store_record(const MoerlObjective& p, uint64_t index, const SegmentSums& sums) {
    uint32_t* const record = p.tile_records + 8 * index;
    store16(record, {{bits_of(sums.delta), bits_of(sums.positive), bits_of(sums.negative), sums.count | sums.nonfinite << 16}});
    if constexpr (WIDE) store16(record + 4, {{bits_of(sums.folded), bits_of(sums.divergence), sums.kept, sums.advantage}});
}

// Number `place` of a record.
MOERL_DEVICE double recorded(const uint32_t* record, uint32_t place) {
    const uint32_t word = load(record + (place < 4 ? place : place - 1));
    if (place == 3) return static_cast<double>(word & 0xffffu);
    if (place == 4) return static_cast<double>(word >> 16);
    if (place == 7) return static_cast<double>(word);
    return static_cast<double>(f32_of(word));
}

MOERL_DEVICE double if_there(const double* plane, uint64_t segment) { return plane != nullptr ? load(plane + segment) : 0.0; }

// Number `place` of what an earlier call left of a segment.
MOERL_DEVICE double stored_plane(const MoerlObjective& p, uint32_t place, uint64_t segment) {
    switch (place) {
        case 0: return if_there(p.log_ratio, segment);
        case 1: return if_there(p.positive, segment);
        case 2: return if_there(p.negative, segment);
        case 3: return if_there(p.count, segment);
        case 4: return if_there(p.nonfinite, segment);
        case 5: return if_there(p.folded, segment);
        case 6: return if_there(p.divergence, segment);
        default: return if_there(p.kept, segment);
    }
}

MOERL_DEVICE double plus(double a, double b) { return a + b; }

// Puts the advantage that the group's tiles share into the record of the first.
MOERL_DEVICE void share_group(const MoerlObjective& p, uint64_t leader, uint64_t members) {
    if (!needs_one_advantage(p)) return;
    uint32_t* const records = p.tile_records + 8 * leader + 7;
    const uint32_t advantage = warp_shared_advantage(lane_index() < members ? load(records + 8 * lane_index()) : NO_ADVANTAGE);
    sync_warp();  // the first was read by one lane and is written by another
    if (lane_index() == 0) store(records, advantage);
}

MOERL_DEVICE uint32_t advantage_of_groups(const MoerlObjective& p, uint64_t first, uint64_t groups) {
    if (!needs_one_advantage(p)) return NO_ADVANTAGE;
    uint32_t advantage = NO_ADVANTAGE;
    for (uint64_t g = lane_index(); g < groups; g += WARP) advantage = shared_advantage(advantage, load(p.tile_records + 8 * (first + g * MOERL_TILE_GROUP) + 7));
    return warp_shared_advantage(advantage);
}

// The last of a group of 32 tiles adds the group up, the last group adds the groups up. True in the warp that brings the last one, with all in `planes`.
template <bool WIDE> MOERL_DEVICE bool join_tiles(const MoerlObjective& p, uint64_t index, const MoerlUnit& unit, const SegmentSums& sums, Planes& planes, uint64_t& fault) {
    const uint32_t lane = lane_index();
    const uint64_t start = static_cast<uint64_t>(load(p.offsets + unit.segment)), end = static_cast<uint64_t>(load(p.offsets + unit.segment + 1));
    const uint64_t tile = (unit.token - start) / MOERL_TILE, tiles = (end - start + MOERL_TILE - 1) / MOERL_TILE;
    const uint64_t first = index - tile;  // the unit of the segment's first tile
    const uint64_t group = tile / MOERL_TILE_GROUP, groups = (tiles + MOERL_TILE_GROUP - 1) / MOERL_TILE_GROUP;
    const uint64_t leader = first + group * MOERL_TILE_GROUP;
    const uint64_t behind = tiles - group * MOERL_TILE_GROUP;
    const uint64_t members = behind < MOERL_TILE_GROUP ? behind : MOERL_TILE_GROUP;
    const bool takes_part = lane < (WIDE ? 8 : 5);

    if (lane == 0) store_record<WIDE>(p, index, sums);
    if (!is_last(p.group_tickets + leader, static_cast<uint32_t>(members))) return false;
    if (takes_part) {
        const uint32_t* const records = p.tile_records + 8 * leader;
        store(p.group_records + 8 * leader + lane, fold_ascending(0.0, members, [&](uint64_t member) { return recorded(records + 8 * member, lane); }, plus));
    }
    if constexpr (WIDE) share_group(p, leader, members);
    if (!is_last(p.tile_tickets + first, static_cast<uint32_t>(groups))) return false;
    double total = 0.0;
    if (takes_part) {
        // The fold goes on from what an earlier call left.
        if (p.accumulate) total = stored_plane(p, lane, unit.segment);
        const double* const records = p.group_records + 8 * first + lane;
        total = fold_ascending(total, groups, [&](uint64_t g) { return load(records + 8 * g * MOERL_TILE_GROUP); }, plus);
    }
    planes = {shuffle(total, 0), shuffle(total, 1), shuffle(total, 2), shuffle(total, 3), shuffle(total, 4), shuffle(total, 5), shuffle(total, 6), shuffle(total, 7)};
    sync_warp();  // the planes were read by several lanes and are written by one
    if constexpr (WIDE) keep_varying(fault, p, unit.segment, advantage_of_groups(p, first, groups));
    count_locally(p, 0, in_denominators<WIDE>(p, planes) > 0.0 || p.count_empty);
    return true;
}

// Four bytes, each at most 63.
MOERL_DEVICE uint32_t sum_of_bytes(uint32_t bytes) { return (bytes * 0x01010101u) >> 24; }

// As sum_piece where nothing but n is asked for. False in every lane where the masks hold something else than 0 and 1.
MOERL_DEVICE bool count_sound_piece(const MoerlObjective& p, const Geometry& g, SegmentSums& sums) {
    Suspicion suspicion = NO_SUSPICION;
    uint32_t counts = 0;
    for (int first = 0; first < g.rows; first += MASKS_AT_ONCE) {
        const Rows<MASKS_AT_ONCE> rows = load_rows<MASKS_AT_ONCE>(p, g, first, 0u);
        MOERL_UNROLL
        for (int r = 0; r < MASKS_AT_ONCE; r++) {
            suspicion.masks |= rows.of[r].mask;
            counts += rows.of[r].mask;
        }
    }
    sums.count = reduce_add_u32(sum_of_bytes(counts));
    return is_above_suspicion(suspicion);
}

// As sum_piece where every token is in order; false in every lane where one is not.
template <bool WITH_SUMS> MOERL_DEVICE bool sum_sound_piece(const MoerlObjective& p, const Geometry& g, float segment_advantage, SegmentSums& sums) {
    constexpr int ROWS = SOUND_ROWS<WITH_SUMS>;
    const bool has_old = p.old_logprobs != nullptr;
    constexpr uint32_t READS = MOERL_READ_LOGPROBS | MOERL_READ_OLD | (WITH_SUMS ? MOERL_READ_WEIGHTS | MOERL_READ_ADVANTAGES : 0);
    Suspicion suspicion = suspicion_of(p, segment_advantage);
    Chains<3> chains = no_chains<3>();
    uint32_t counts = 0;
    for (int first = 0; first < g.rows; first += ROWS) {
        const Rows<ROWS> rows = load_rows<ROWS>(p, g, first, READS);
        MOERL_UNROLL
        for (int r = 0; r < ROWS; r++) {
            const Pack<false>& pack = rows.of[r];
            suspicion.masks |= pack.mask;
            counts += pack.mask;
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                if (byte_of(pack.mask, v) == 0) continue;
                const float current = pack.logprobs.x[v], old = has_old ? pack.old_logprobs.x[v] : current;
                suspect(suspicion, current, old);
                chains.of[0][v] += current - old;
                if constexpr (WITH_SUMS) {
                    const auto [weight, advantage] = factors_of<WITH_SUMS>(p, pack, v, segment_advantage, suspicion);
                    chains.of[1][v] += positive_part(weight, advantage);
                    chains.of[2][v] += negative_part(weight, advantage);
                }
            }
        }
    }
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) suspect(suspicion, chains.of[0][v]);
    sums.count = reduce_add_u32(sum_of_bytes(counts));
    sums.delta = fold(chains.of[0], g.head);
    if constexpr (WITH_SUMS) {
        sums.positive = fold(chains.of[1], g.head);
        sums.negative = fold(chains.of[2], g.head);
    }
    return is_above_suspicion(suspicion);
}

// A unit that is one piece of one segment: summed in registers.
template <bool WIDE, bool TALLY>
MOERL_DEVICE SegmentSums sum_piece(const MoerlObjective& p, const MoerlUnit& unit, TokenTally& tally, uint64_t& fault) {
    constexpr int AT_ONCE = TALLY && !WIDE ? 2 : 1;
    const Geometry g = geometry(unit);
    const uint32_t reads = partial_reads(p);
    const bool with_tokens = p.logprobs != nullptr, needs_one = WIDE && needs_one_advantage(p);
    const float segment_advantage = with_tokens && !p.advantage_per_token && g.tokens != 0 ? load(p.advantages + unit.segment) : 0.0f;
    SegmentSums sums = NO_SUMS;
    if constexpr (!WIDE && !TALLY) {
        // Whether A and w are sound matters also where they are not summed.
        const bool with_arrays = p.weights != nullptr || p.advantage_per_token != 0 || has_advantage_sums(p);
        const bool is_sound = !with_tokens ? count_sound_piece(p, g, sums) : with_arrays ? sum_sound_piece<true>(p, g, segment_advantage, sums) : sum_sound_piece<false>(p, g, segment_advantage, sums);
        if (is_sound) return sums;
        sums = NO_SUMS;
    }
    const bool with_sums = has_advantage_sums(p);
    Chains<WIDE ? 5 : 3> chains = no_chains<WIDE ? 5 : 3>();
    MOERL_ROLLED
    for (int first = 0; first < g.rows; first += AT_ONCE) {
        Pack<WIDE> packs[AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < AT_ONCE; r++) packs[r] = load_pack<WIDE>(p, g, first + r, reads);
        MOERL_UNROLL
        for (int r = 0; r < AT_ONCE; r++) {
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                const Token<WIDE> token = token_of<WIDE>(p, packs[r], v, segment_advantage, reads);
                sums.count += token.counts;
                sums.nonfinite += with_tokens && token.counts && !token.is_sound;
                chains.of[0][v] += token.is_sound ? token.delta : 0.0f;
                if (with_sums) {
                    const float weight = policy_weight(p, token);
                    chains.of[1][v] += token.is_sound ? positive_part(weight, token.advantage) : 0.0f;
                    chains.of[2][v] += token.is_sound ? negative_part(weight, token.advantage) : 0.0f;
                }
                if constexpr (WIDE) {
                    sums.kept += token.counts && token.is_kept;
                    if (needs_one && token.is_sound && token.is_kept) sums.advantage = shared_advantage(sums.advantage, bits_of(token.advantage));
                    if (p.folded != nullptr && token.is_sound && token.is_kept) chains.of[3][v] += folded_part(p, token.delta, token.advantage, log_weight_of(p, token));
                    if (p.divergence != nullptr && token.is_sound && (token.is_kept || !p.rejects_all)) chains.of[4][v] += plain_divergence(p, token.to_ref).value;
                }
                keep_faults(fault, p, packs[r], token, v, with_tokens);
                if constexpr (TALLY) count_token(tally, p, packs[r], v, token, expf(saturate(p, token.delta)), 0u);
            }
        }
    }
    sums.count = reduce_add_u32(sums.count);
    sums.nonfinite = reduce_add_u32(sums.nonfinite);
    if (with_tokens) sums.delta = fold(chains.of[0], g.head);
    if (with_sums) {
        sums.positive = fold(chains.of[1], g.head);
        sums.negative = fold(chains.of[2], g.head);
    }
    if constexpr (WIDE) {
        sums.kept = reduce_add_u32(sums.kept);
        if (needs_one) sums.advantage = warp_shared_advantage(sums.advantage);
        if (p.folded != nullptr) sums.folded = fold(chains.of[3], g.head);
        if (p.divergence != nullptr) sums.divergence = fold(chains.of[4], g.head);
    }
    return sums;
}

// Copies a token of a unit to shared memory. A segment's own advantage is looked at where its tokens are summed.
template <bool WIDE> MOERL_DEVICE void stage_token(const MoerlObjective& p, PartialStage<WIDE>& stage, int slot, const Token<WIDE>& token) {
    const bool is_own = p.advantage_per_token != 0;
    const float weight = policy_weight(p, token);
    stage.delta[slot] = token.is_sound ? token.delta : 0.0f;
    stage.weighted[slot] = token.is_sound ? (is_own ? weight * token.advantage : weight) : 0.0f;
    uint32_t marks = (token.counts ? COUNTS : 0u) | (is_own && token.advantage < 0.0f ? NEGATIVE : 0u) | (token.counts && !token.is_sound ? UNSOUND : 0u);
    if constexpr (WIDE) {
        marks |= (token.is_kept ? KEPT : 0u) | (is_own && token.advantage > 0.0f ? POSITIVE : 0u);
        stage.log_weight[slot] = token.is_sound && p.folded != nullptr ? log_weight_of(p, token) : 0.0f;
        const bool diverges = p.divergence != nullptr && token.is_sound && (token.is_kept || !p.rejects_all);
        stage.divergence[slot] = diverges ? plain_divergence(p, token.to_ref).value : 0.0f;
    }
    stage.marks[slot] = static_cast<uint8_t>(marks);
}

template <bool WIDE, bool TALLY>
MOERL_DEVICE void stage_tokens(const MoerlObjective& p, const MoerlUnit& unit, PartialStage<WIDE>& stage, TokenTally& tally, uint64_t& fault) {
    const Geometry g = geometry(unit);
    const uint32_t reads = partial_reads(p);
    for (int row = 0; row < g.rows; row++) {
        const Pack<WIDE> pack = load_pack<WIDE>(p, g, row, reads);
        const int slot = row * ROW + 4 * static_cast<int>(lane_index());
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) {
            const Token<WIDE> token = token_of<WIDE>(p, pack, v, 0.0f, reads);
            if ((pack.bits >> v & 1u) == 0) continue;
            stage_token(p, stage, slot + v, token);
            keep_faults(fault, p, pack, token, v, p.logprobs != nullptr);
            if constexpr (TALLY) count_token(tally, p, pack, v, token, expf(saturate(p, token.delta)), 0u);
        }
    }
    sync_warp();
}

// A staged segment, as the sums of its slots see it.
template <bool WIDE> struct Staged {
    const MoerlObjective& p;
    const PartialStage<WIDE>& stage;
    int slot;
    float advantage;

    MOERL_DEVICE bool is(int i, uint8_t mark) const { return (stage.marks[slot + i] & mark) != 0; }
    // A token's share of S+ or S-.
    MOERL_DEVICE float part(int i, bool negative) const {
        const float weighted = stage.weighted[slot + i];
        if (p.advantage_per_token) return is(i, NEGATIVE) == negative ? weighted : 0.0f;
        return negative ? negative_part(weighted, advantage) : positive_part(weighted, advantage);
    }
    MOERL_DEVICE float folded(int i) const {
        if constexpr (!WIDE) {
            return 0.0f;
        } else {
            if (!is(i, COUNTS) || is(i, UNSOUND) || !is(i, KEPT)) return 0.0f;
            const float own = is(i, POSITIVE) ? 1.0f : is(i, NEGATIVE) ? -1.0f : 0.0f;
            return folded_part(p, stage.delta[slot + i], p.advantage_per_token ? own : advantage, stage.log_weight[slot + i]);
        }
    }
    MOERL_DEVICE float divergence(int i) const {
        if constexpr (WIDE) return stage.divergence[slot + i];
        else return 0.0f;
    }
};

// The sums of a staged segment; `sum(value)` adds up its slots.
template <bool WIDE, class Sum> MOERL_DEVICE void sum_staged_values(const Staged<WIDE>& s, SegmentSums& sums, Sum sum) {
    if (s.p.logprobs != nullptr) sums.delta = sum([&](int i) { return s.stage.delta[s.slot + i]; });
    if (has_advantage_sums(s.p)) {
        sums.positive = sum([&](int i) { return s.part(i, false); });
        sums.negative = sum([&](int i) { return s.part(i, true); });
    }
    if constexpr (WIDE) {
        if (s.p.folded != nullptr) sums.folded = sum([&](int i) { return s.folded(i); });
        if (s.p.divergence != nullptr) sums.divergence = sum([&](int i) { return s.divergence(i); });
    }
}

template <bool WIDE> MOERL_DEVICE void count_staged(const Staged<WIDE>& s, int i, SegmentSums& sums) {
    sums.count += s.is(i, COUNTS);
    sums.nonfinite += s.is(i, UNSOUND);
    if constexpr (WIDE) {
        const bool is_kept = s.is(i, COUNTS) && s.is(i, KEPT);
        sums.kept += is_kept;
        // A kept token's weight is in C, so that what is staged is A itself.
        if (needs_one_advantage(s.p) && is_kept && !s.is(i, UNSOUND)) sums.advantage = shared_advantage(sums.advantage, bits_of(s.stage.weighted[s.slot + i]));
    }
}

// One lane's short segment.
template <bool WIDE> MOERL_DEVICE SegmentSums sum_short(const Staged<WIDE>& s, int length, int longest) {
    SegmentSums sums = NO_SUMS;
    for (int i = 0; i < length; i++) count_staged(s, i, sums);
    sum_staged_values(s, sums, [&](auto value) { return WIDE ? fold_short_rolled(length, value) : fold_short(length, longest, value); });
    return sums;
}

// The warp's longer segment.
template <bool WIDE> MOERL_DEVICE SegmentSums sum_staged(const Staged<WIDE>& s, int length) {
    SegmentSums sums = NO_SUMS;
    for (int i = static_cast<int>(lane_index()); i < length; i += WARP) count_staged(s, i, sums);
    sums.count = reduce_add_u32(sums.count);
    sums.nonfinite = reduce_add_u32(sums.nonfinite);
    sums.kept = reduce_add_u32(sums.kept);
    if (WIDE && needs_one_advantage(s.p)) sums.advantage = warp_shared_advantage(sums.advantage);
    sum_staged_values(s, sums, [&](auto value) { return fold_staged(length, value); });
    return sums;
}

// A segment whose own advantage is not finite has no sound token.
template <bool WIDE> MOERL_DEVICE void reject_unsound_advantage(const Staged<WIDE>& s, uint64_t token, int length, SegmentSums& sums, uint64_t& fault) {
    if (is_finite(s.advantage) || sums.count == 0) return;
    sums.nonfinite = sums.count;
    sums.delta = sums.positive = sums.negative = sums.folded = sums.divergence = 0.0f;
    for (int i = 0; i < length; i++) {
        if (!s.is(i, COUNTS)) continue;
        keep_first(fault, fault_at(token + static_cast<uint64_t>(i), s.p.tag, MOERL_FAULT_NONFINITE_INPUT));
        return;
    }
}

// A unit of several segments, whose tokens are staged: a lane per short segment, at its place in a group of 32, and the warp for each longer one.
// `take(group, is_segment, segment, sums)` is called by the warp for every group.
template <bool WIDE, class Take> MOERL_DEVICE void sum_segments(const MoerlObjective& p, const MoerlUnit& unit, const PartialStage<WIDE>& stage, uint64_t& fault, Take take) {
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    const bool with_tokens = p.logprobs != nullptr;
    const uint32_t before = unit.segment % WARP;
    for (uint32_t first = 0; first < before + unit.segments; first += WARP) {
        const uint32_t own = first + lane - before;  // of the segments before the unit: beyond all of its own
        const bool is_segment = own < unit.segments;
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + own;
        const uint64_t start = is_segment ? static_cast<uint64_t>(load(p.offsets + segment)) : base;
        const int length = is_segment ? static_cast<int>(static_cast<uint64_t>(load(p.offsets + segment + 1)) - start) : 0;
        const float advantage = with_tokens && !p.advantage_per_token && length != 0 ? load(p.advantages + segment) : 0.0f;
        const Staged<WIDE> staged = {p, stage, static_cast<int>(start - base), advantage};
        SegmentSums sums = NO_SUMS;
        const int longest = longest_short(length);
        if (length <= SHORT) sums = sum_short(staged, length, longest);
        for (uint32_t longer = ballot(length > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer);
            const Staged<WIDE> its = {p, stage, shuffle(staged.slot, owner), shuffle(advantage, owner)};
            const SegmentSums found = sum_staged(its, shuffle(length, owner));
            if (static_cast<int>(lane) == owner) sums = found;
        }
        if (is_segment) {
            reject_unsound_advantage(staged, start, length, sums, fault);
            keep_varying(fault, p, segment, sums.advantage);
        }
        take((static_cast<uint64_t>(unit.segment) + first) / WARP, is_segment, segment, planes_of(sums));
        if (p.local_counts != nullptr) {
            const uint32_t counted = in_denominators<WIDE>(p, sums);
            const uint32_t tokens = reduce_add_u32(counted);
            const uint32_t nonempty = ballot(is_segment && (counted != 0 || p.count_empty), FULL_WARP);
            count_locally(p, tokens, static_cast<uint32_t>(popcount(nonempty)));
        }
    }
    sync_warp();
}
