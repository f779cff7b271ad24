// Phase 1: what the tokens of every piece sum to. A piece is a segment, or a turn of one.
#pragma once

#include "tally.cuh"
#include "token.cuh"

// Where a warp keeps the tokens of several short pieces, by slot.
template <bool FULL> struct CorrectionPartialStage;
template <> struct CorrectionPartialStage<false> {
    float delta[SLOTS];
    uint8_t marks[SLOTS];
};
template <> struct CorrectionPartialStage<true> : CorrectionPartialStage<false> {
    float old[SLOTS];
    float rollout[SLOTS];
    float advantage[SLOTS];
};
static_assert(sizeof(CorrectionPartialStage<false>) == 5200 && sizeof(CorrectionPartialStage<true>) == 17680, "src/device/correction.rs asks for this much a warp");
constexpr uint8_t STAGED_COUNTS = 1, STAGED_SOUND = 2;

// The sums of floats: the log-ratio, then MOERL_CORRECTION_K1 and what follows.
constexpr int FLOAT_SUMS = 1 + MOERL_CORRECTION_MAX - MOERL_CORRECTION_K1;
template <bool FULL> constexpr int SUMS_OF = FULL ? FLOAT_SUMS : 1;

// A record of a tile: the float sums, two maxima, and counts of at most 1024, two a word.
constexpr uint32_t RECORD_WORDS = 16;
constexpr uint32_t RECORD_MAXIMA = FLOAT_SUMS;
constexpr uint32_t RECORD_COUNTS = FLOAT_SUMS + 2;
static_assert(RECORD_COUNTS + 4 == RECORD_WORDS, "counts and what the rejections of tokens reject");

template <bool FULL> struct PieceSums {
    float sums[SUMS_OF<FULL>];
    float max, max_negative;
    uint32_t counts[4];  // count | nonfinite << 16; kept; rejected 0 | 1 << 16; rejected 2 | 3 << 16
};

template <bool FULL> MOERL_DEVICE PieceSums<FULL> no_sums() {
    PieceSums<FULL> r;
    MOERL_UNROLL
    for (int i = 0; i < SUMS_OF<FULL>; i++) r.sums[i] = 0.0f;
    r.max = r.max_negative = f32_of(0xff800000u);
    MOERL_UNROLL
    for (int i = 0; i < 4; i++) r.counts[i] = 0;
    return r;
}

// A sound token's share of a sum.
MOERL_DEVICE float share_of(const MoerlCorrection& p, int sum, float delta, float old, float rollout, float advantage) {
    const float x = clamped(delta);
    switch (sum == 0 ? static_cast<int>(MOERL_CORRECTION_LOG_RATIO) : sum - 1 + static_cast<int>(MOERL_CORRECTION_K1)) {
        case MOERL_CORRECTION_LOG_RATIO: return delta;
        case MOERL_CORRECTION_K1: return x;
        case MOERL_CORRECTION_K2: return 0.5f * x * x;
        case MOERL_CORRECTION_K3: return divergence_k3(x);
        case MOERL_CORRECTION_ADVANTAGE: return advantage;
        case MOERL_CORRECTION_OLD: return old;
        case MOERL_CORRECTION_ROLLOUT: return rollout;
        case MOERL_CORRECTION_WEIGHT: return token_weight(p, delta);
        case MOERL_CORRECTION_RAW_WEIGHT: return expf(saturated(p, delta));
        default: return rejections_of(p, delta) == 0 ? divergence_k3(delta) : 0.0f;
    }
}

// Counts a token, and raises the maxima.
template <bool FULL> MOERL_DEVICE void count_into(PieceSums<FULL>& to, const MoerlCorrection& p, float delta, bool counts, bool is_sound) {
    if (!counts) return;
    to.counts[0] += is_sound ? 1u : 0x10001u;
    if (!is_sound) return;
    const uint32_t rejected = rejections_of(p, delta);
    to.counts[1] += rejected == 0;
    to.counts[2] += (rejected & 1u) | (rejected >> 1 & 1u) << 16;
    to.counts[3] += (rejected >> 2 & 1u) | (rejected >> 3 & 1u) << 16;
    to.max = fmaxf(to.max, delta);
    to.max_negative = fmaxf(to.max_negative, -delta);
}

MOERL_DEVICE float greatest_of_warp(float x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
    return x;
}

template <bool FULL> MOERL_DEVICE void reduce_counts(PieceSums<FULL>& sums) {
    MOERL_UNROLL
    for (int i = 0; i < 4; i++) sums.counts[i] = reduce_add_u32(sums.counts[i]);
    sums.max = greatest_of_warp(sums.max);
    sums.max_negative = greatest_of_warp(sums.max_negative);
}

// The statistics of tokens that one lane has seen. Weights are near 1, and E[w^2] - E[w]^2 cancels: their squares are taken about 1 in f32, and become
// those about 0 in f64.
struct CorrectionTally {
    uint32_t tokens, nonfinite, above, below, saturated_high, saturated_low, catastrophic;
    float weight, weight_excess, chi2, k1, k3, error, jensen_shannon, raw, raw_excess, max, max_negative;
};

MOERL_DEVICE CorrectionTally no_correction_tally() {
    const float nothing_yet = f32_of(0xff800000u);
    return {0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, nothing_yet, nothing_yet};
}

MOERL_DEVICE void count_correction(CorrectionTally& tally, const MoerlCorrection& p, const CorrectionToken& token) {
    if (!token.counts) return;
    tally.tokens++;
    if (!token.is_sound) {
        tally.nonfinite++;
        return;
    }
    const float delta = token.delta, x = saturated(p, delta), raw = expf(x);
    if (p.level == MOERL_CORRECTION_TOKEN) {
        const float weight = token_weight(p, delta);
        tally.weight += weight;
        tally.weight_excess = fmaf(weight - 1.0f, weight - 1.0f, tally.weight_excess);
    }
    tally.chi2 = fmaf(raw, raw, tally.chi2);
    tally.k1 -= delta;
    tally.k3 += divergence_k3(delta);
    tally.error += expf(fabsf(delta));
    // M = LSE(o, q) - ln 2 lies `below` the larger of the two and above the other.
    const float gap = fabsf(token.old - token.rollout);
    const float below = -log1pf(0.5f * expm1f(-gap));
    tally.jensen_shannon += 0.5f * (divergence_k3(below) + divergence_k3(below - gap));
    tally.raw += raw;
    tally.raw_excess = fmaf(raw - 1.0f, raw - 1.0f, tally.raw_excess);
    tally.above += x > p.reported_log_high;
    tally.below += x < p.reported_log_low;
    tally.saturated_high += delta > p.saturation;
    tally.saturated_low += delta < -p.saturation;
    const double exact = static_cast<double>(delta);
    tally.catastrophic += exact < p.catastrophic_low || exact > p.catastrophic_high;
    tally.max = fmaxf(tally.max, delta);
    tally.max_negative = fmaxf(tally.max_negative, -delta);
}

MOERL_DEVICE void put(double& mine, uint32_t place, double value) { mine = lane_index() == place ? value : mine; }

// The warp's sum of `count` weights and that of their squares: w^2 = 2 w - 1 + (w - 1)^2.
MOERL_DEVICE void put_moments(double& mine, uint32_t place, uint32_t place_squared, double count, float weights, float excess_squared) {
    const double sum = static_cast<double>(warp_sum(weights)), second = static_cast<double>(warp_sum(excess_squared));
    put(mine, place, sum);
    put(mine, place_squared, 2.0 * sum - count + second);
}

MOERL_DEVICE double spread_correction(const MoerlCorrection& p, const CorrectionTally& tally) {
    double mine = least(lane_index(), false);
    const uint32_t tokens = reduce_add_u32(tally.tokens), nonfinite = reduce_add_u32(tally.nonfinite);
    const double sound = static_cast<double>(tokens - nonfinite);
    const double weighed = p.level == MOERL_CORRECTION_TOKEN ? sound : 0.0;
    put(mine, MOERL_CORRECTION_TOKENS, tokens);
    put_moments(mine, MOERL_CORRECTION_TOKEN_WEIGHTS, MOERL_CORRECTION_TOKEN_WEIGHTS_SQUARED, weighed, tally.weight, tally.weight_excess);
    put(mine, MOERL_CORRECTION_TOKEN_CHI2, warp_sum(tally.chi2));
    put(mine, MOERL_CORRECTION_TOKENS_NONFINITE, nonfinite);
    put(mine, MOERL_CORRECTION_MISMATCH_K1, warp_sum(tally.k1));
    put(mine, MOERL_CORRECTION_MISMATCH_K3, warp_sum(tally.k3));
    put(mine, MOERL_CORRECTION_PROBABILITY_ERROR, warp_sum(tally.error));
    put(mine, MOERL_CORRECTION_JENSEN_SHANNON, warp_sum(tally.jensen_shannon));
    put_moments(mine, MOERL_CORRECTION_TOKEN_RAW, MOERL_CORRECTION_TOKEN_RAW_SQUARED, sound, tally.raw, tally.raw_excess);
    put(mine, MOERL_CORRECTION_TOKENS_ABOVE, reduce_add_u32(tally.above));
    put(mine, MOERL_CORRECTION_TOKENS_BELOW, reduce_add_u32(tally.below));
    put(mine, MOERL_CORRECTION_TOKENS_SATURATED_HIGH, reduce_add_u32(tally.saturated_high));
    put(mine, MOERL_CORRECTION_TOKENS_SATURATED_LOW, reduce_add_u32(tally.saturated_low));
    put(mine, MOERL_CORRECTION_TOKENS_CATASTROPHIC, reduce_add_u32(tally.catastrophic));
    put(mine, MOERL_CORRECTION_MAX_LOG_RATIO, greatest_of_warp(tally.max));
    put(mine, MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO, greatest_of_warp(tally.max_negative));
    return mine;
}

MOERL_DEVICE double* plane_at(const MoerlCorrection& p, uint32_t plane, uint64_t piece) {
    return p.place[plane] == 255 ? nullptr : p.planes + p.place[plane] * p.piece_count + piece;
}

// The word of a record that a plane is in, and which half of it.
MOERL_DEVICE double plane_of_record(uint32_t plane, uint32_t word) {
    if (plane == MOERL_CORRECTION_LOG_RATIO || plane >= MOERL_CORRECTION_K1) return static_cast<double>(f32_of(word));
    const bool is_high = plane == MOERL_CORRECTION_NONFINITE || (plane > MOERL_CORRECTION_KEPT && (plane & 1u) != 0);
    return static_cast<double>(is_high ? word >> 16 : word & 0xffffu);
}
MOERL_DEVICE uint32_t word_of_plane(uint32_t plane) {
    if (plane == MOERL_CORRECTION_LOG_RATIO) return 0;
    if (plane >= MOERL_CORRECTION_MAX) return RECORD_MAXIMA + plane - MOERL_CORRECTION_MAX;
    if (plane >= MOERL_CORRECTION_K1) return 1 + plane - MOERL_CORRECTION_K1;
    if (plane <= MOERL_CORRECTION_NONFINITE) return RECORD_COUNTS;
    return plane == MOERL_CORRECTION_KEPT ? RECORD_COUNTS + 1 : RECORD_COUNTS + 2 + (plane - MOERL_CORRECTION_REJECTED) / 2;
}

template <bool FULL> MOERL_DEVICE uint32_t record_word(const PieceSums<FULL>& sums, uint32_t word) {
    uint32_t found = 0;
    MOERL_UNROLL
    for (uint32_t i = 0; i < static_cast<uint32_t>(SUMS_OF<FULL>); i++) found = word == i ? bits_of(sums.sums[i]) : found;
    if (word == RECORD_MAXIMA) found = bits_of(sums.max);
    if (word == RECORD_MAXIMA + 1) found = bits_of(sums.max_negative);
    MOERL_UNROLL
    for (uint32_t i = 0; i < 4; i++) found = word == RECORD_COUNTS + i ? sums.counts[i] : found;
    return found;
}

MOERL_DEVICE bool is_maximum_plane(uint32_t plane) { return plane >= MOERL_CORRECTION_MAX; }

MOERL_DEVICE void store_plane(const MoerlCorrection& p, uint32_t plane, uint64_t piece, double value) {
    double* const to = plane_at(p, plane, piece);
    if (to == nullptr) return;
    store(to, p.accumulate ? joined(is_maximum_plane(plane), load(to), value) : value);
}

template <bool FULL> MOERL_DEVICE void store_piece(const MoerlCorrection& p, uint64_t piece, const PieceSums<FULL>& sums) {
    for (uint32_t plane = 0; plane < MOERL_CORRECTION_PLANES; plane++) {
        if (p.place[plane] != 255) store_plane(p, plane, piece, plane_of_record(plane, record_word(sums, word_of_plane(plane))));
    }
}

// The last of a group of 32 tiles adds the group up, the last group adds the groups up: lane i plane i.
template <bool FULL> MOERL_DEVICE void join_piece_tiles(const MoerlCorrection& p, uint64_t index, const MoerlUnit& unit, const PieceSums<FULL>& sums) {
    const uint32_t lane = lane_index();
    const uint64_t start = static_cast<uint64_t>(load(p.offsets + unit.segment)), end = static_cast<uint64_t>(load(p.offsets + unit.segment + 1));
    const uint64_t tile = (unit.token - start) / MOERL_TILE, tiles = (end - start + MOERL_TILE - 1) / MOERL_TILE;
    const uint64_t first = index - tile;  // the unit of the piece's first tile
    const uint64_t group = tile / MOERL_TILE_GROUP, groups = (tiles + MOERL_TILE_GROUP - 1) / MOERL_TILE_GROUP;
    const uint64_t leader = first + group * MOERL_TILE_GROUP;
    const uint64_t behind = tiles - group * MOERL_TILE_GROUP;
    const uint32_t members = static_cast<uint32_t>(behind < MOERL_TILE_GROUP ? behind : MOERL_TILE_GROUP);
    if (lane < RECORD_WORDS) store(p.tile_records + RECORD_WORDS * index + lane, record_word(sums, lane));
    if (!is_last(p.group_tickets + leader, members)) return;
    const bool takes_part = lane < MOERL_CORRECTION_PLANES && p.place[lane] != 255;
    const bool greatest = is_maximum_plane(lane);
    double mine = greatest ? -static_cast<double>(f32_of(0x7f800000u)) : 0.0;
    if (takes_part) {
        const uint32_t* const words = p.tile_records + RECORD_WORDS * leader + word_of_plane(lane);
        for (uint32_t member = 0; member < members; member++) mine = joined(greatest, mine, plane_of_record(lane, load(words + RECORD_WORDS * member)));
        store(p.group_records + MOERL_CORRECTION_PLANES * leader + lane, mine);
    }
    if (!is_last(p.tile_tickets + first, static_cast<uint32_t>(groups)) || !takes_part) return;
    // The fold goes on from what an earlier call left.
    double* const to = plane_at(p, lane, unit.segment);
    double total = p.accumulate ? load(to) : (greatest ? -static_cast<double>(f32_of(0x7f800000u)) : 0.0);
    for (uint64_t g = 0; g < groups; g++) total = joined(greatest, total, load(p.group_records + MOERL_CORRECTION_PLANES * (first + g * MOERL_TILE_GROUP) + lane));
    store(to, total);
}

// A token's share of everything. Four chains a sum, of which this is one.
template <bool FULL, class Chain> MOERL_DEVICE void add_token(const MoerlCorrection& p, const CorrectionToken& token, PieceSums<FULL>& sums, CorrectionTally& tally, Chain chain) {
    count_into(sums, p, token.delta, token.counts, token.is_sound);
    MOERL_UNROLL
    for (int i = 0; i < SUMS_OF<FULL>; i++) chain(i, token.is_sound ? share_of(p, i, token.delta, token.old, token.rollout, token.advantage) : 0.0f);
    if constexpr (FULL) count_correction(tally, p, token);
}

// A unit that is one piece, or a tile of one: summed in registers.
template <bool FULL> MOERL_DEVICE PieceSums<FULL> sum_whole(const MoerlCorrection& p, const MoerlUnit& unit, CorrectionTally& tally, uint64_t& fault) {
    constexpr int rows_at_once = FULL ? 1 : ROWS_AT_ONCE;
    const Geometry g = geometry(unit);
    Chains<SUMS_OF<FULL>> chains = no_chains<SUMS_OF<FULL>>();
    PieceSums<FULL> sums = no_sums<FULL>();
    for (int first = 0; first < g.rows; first += rows_at_once) {
        CorrectionPack packs[rows_at_once];
        MOERL_UNROLL
        for (int r = 0; r < rows_at_once; r++) packs[r] = load_correction_pack(p, g, first + r, true);
        if constexpr (FULL) {
            // A thousand instructions a token: four times as many do not stay in an instruction cache. The token at hand is the first one of the pack, the
            // chain at hand the first of each sum, and after four turns all are where they were.
            MOERL_ROLLED
            for (int v = 0; v < 4; v++) {
                const CorrectionToken token = correction_token(packs[0], 0);
                add_token<FULL>(p, token, sums, tally, [&](int i, float share) { rotate(chains.of[i], chains.of[i][0] + share); });
                keep_token_faults(fault, p, packs[0], token, 0);
                next_token(packs[0]);
            }
        } else {
            MOERL_UNROLL
            for (int r = 0; r < rows_at_once; r++) {
                MOERL_UNROLL
                for (int v = 0; v < 4; v++) {
                    const CorrectionToken token = correction_token(packs[r], v);
                    add_token<FULL>(p, token, sums, tally, [&](int i, float share) { chains.of[i][v] += share; });
                    keep_token_faults(fault, p, packs[r], token, v);
                }
            }
        }
    }
    reduce_counts(sums);
    MOERL_UNROLL
    for (int i = 0; i < SUMS_OF<FULL>; i++) sums.sums[i] = fold(chains.of[i], g.head);
    return sums;
}

MOERL_DEVICE CorrectionToken staged_token(const CorrectionPartialStage<true>& stage, int slot) {
    const uint8_t marks = stage.marks[slot];
    return {stage.delta[slot], stage.old[slot], stage.rollout[slot], stage.advantage[slot], (marks & STAGED_COUNTS) != 0, (marks & STAGED_SOUND) != 0};
}

template <bool FULL> MOERL_DEVICE void stage_pieces(const MoerlCorrection& p, const MoerlUnit& unit, CorrectionPartialStage<FULL>& stage, CorrectionTally& tally, uint64_t& fault) {
    const Geometry g = geometry(unit);
    for (int row = 0; row < g.rows; row++) {
        const CorrectionPack pack = load_correction_pack(p, g, row, true);
        const int slot = row * ROW + 4 * static_cast<int>(lane_index());
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) {
            if ((pack.bits >> v & 1u) == 0) continue;
            const CorrectionToken token = correction_token(pack, v);
            stage.delta[slot + v] = token.is_sound ? token.delta : 0.0f;
            stage.marks[slot + v] = static_cast<uint8_t>((token.counts ? STAGED_COUNTS : 0) | (token.is_sound ? STAGED_SOUND : 0));
            if constexpr (FULL) {
                stage.old[slot + v] = token.old;
                stage.rollout[slot + v] = token.rollout;
                stage.advantage[slot + v] = token.advantage;
            }
            keep_token_faults(fault, p, pack, token, v);
        }
        if constexpr (FULL) {
            // Once in the code, and not four times: the lane's own slots.
            MOERL_ROLLED
            for (int own = slot; own < slot + 4; own++) {
                if ((pack.bits >> (own - slot) & 1u) != 0) count_correction(tally, p, staged_token(stage, own));
            }
        }
    }
    sync_warp();
}

template <bool FULL> MOERL_DEVICE float staged_share(const MoerlCorrection& p, const CorrectionPartialStage<FULL>& stage, int sum, int slot) {
    if ((stage.marks[slot] & STAGED_SOUND) == 0) return 0.0f;
    if constexpr (FULL) return share_of(p, sum, stage.delta[slot], stage.old[slot], stage.rollout[slot], stage.advantage[slot]);
    return stage.delta[slot];
}

template <bool FULL> MOERL_DEVICE void count_staged(PieceSums<FULL>& sums, const MoerlCorrection& p, const CorrectionPartialStage<FULL>& stage, int slot) {
    count_into(sums, p, stage.delta[slot], (stage.marks[slot] & STAGED_COUNTS) != 0, (stage.marks[slot] & STAGED_SOUND) != 0);
}

// One lane's short piece.
template <bool FULL> MOERL_DEVICE PieceSums<FULL> sum_short_piece(const MoerlCorrection& p, const CorrectionPartialStage<FULL>& stage, int slot, int length) {
    PieceSums<FULL> sums = no_sums<FULL>();
    for (int i = 0; i < length; i++) count_staged(sums, p, stage, slot + i);
    MOERL_UNROLL
    for (int sum = 0; sum < SUMS_OF<FULL>; sum++) {
        const auto share = [&](int i) { return staged_share(p, stage, sum, slot + i); };
        if (sum == 0 || p.place[sum - 1 + MOERL_CORRECTION_K1] != 255) sums.sums[sum] = FULL ? fold_short_rolled(length, share) : fold_short(length, SHORT, share);
    }
    return sums;
}

// The warp's longer piece.
template <bool FULL> MOERL_DEVICE PieceSums<FULL> sum_staged_piece(const MoerlCorrection& p, const CorrectionPartialStage<FULL>& stage, int slot, int length) {
    PieceSums<FULL> sums = no_sums<FULL>();
    for (int i = static_cast<int>(lane_index()); i < length; i += WARP) count_staged(sums, p, stage, slot + i);
    reduce_counts(sums);
    MOERL_UNROLL
    for (int sum = 0; sum < SUMS_OF<FULL>; sum++) {
        if (sum == 0 || p.place[sum - 1 + MOERL_CORRECTION_K1] != 255) sums.sums[sum] = fold_staged(length, [&](int i) { return staged_share(p, stage, sum, slot + i); });
    }
    return sums;
}

// A unit of several pieces: staged, then a lane per short piece and the warp for each longer one.
template <bool FULL> MOERL_DEVICE void sum_pieces(const MoerlCorrection& p, const MoerlUnit& unit, CorrectionPartialStage<FULL>& stage, CorrectionTally& tally, uint64_t& fault) {
    stage_pieces(p, unit, stage, tally, fault);
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    for (uint32_t first = 0; first < unit.segments; first += WARP) {
        const bool is_piece = first + lane < unit.segments;
        const uint64_t piece = static_cast<uint64_t>(unit.segment) + first + lane;
        const uint64_t start = is_piece ? static_cast<uint64_t>(load(p.offsets + piece)) : base;
        const int length = is_piece ? static_cast<int>(static_cast<uint64_t>(load(p.offsets + piece + 1)) - start) : 0;
        const int slot = static_cast<int>(start - base);
        PieceSums<FULL> sums = no_sums<FULL>();
        if (length <= SHORT) sums = sum_short_piece(p, stage, slot, length);
        for (uint32_t longer = ballot(length > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer);
            const PieceSums<FULL> found = sum_staged_piece(p, stage, shuffle(slot, owner), shuffle(length, owner));
            if (static_cast<int>(lane) == owner) sums = found;
        }
        if (is_piece) store_piece(p, piece, sums);
    }
}

// What later phases add to begins at nothing; the totals of tokens do so only where no warp of this launch sets them.
MOERL_DEVICE void open_totals(const MoerlCorrection& p) {
    if (p.keep_totals || block_index() != 0 || warp_index() != 0) return;
    publish_totals(p, true, least(lane_index(), true), true);
    if (p.unit_count == 0) publish_totals(p, false, least(lane_index(), false), true);
}

template <bool FULL> MOERL_DEVICE void correction_partial_phase(const MoerlCorrection& p) {
    MOERL_DYNAMIC_SHARED(CorrectionPartialStage<FULL>, stages);
    open_totals(p);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        CorrectionTally tally = no_correction_tally();
        if (unit.segments > 1) {
            sum_pieces<FULL>(p, unit, stages[warp_index()], tally, fault);
        } else {
            const PieceSums<FULL> sums = sum_whole<FULL>(p, unit, tally, fault);
            if (unit.segments == 0) join_piece_tiles(p, index, unit, sums);
            else if (lane_index() == 0) store_piece(p, unit.segment, sums);
        }
        if constexpr (FULL) {
            if (has_totals(p)) {
                double mine = spread_correction(p, tally);
                if (climb_totals(p, false, mine, index, p.unit_count)) publish_totals(p, false, mine, !p.keep_totals);
            }
        }
    }
    publish_fault(p.errors, fault);
}
