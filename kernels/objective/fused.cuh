// All three phases of whole segments in one launch: sums, coefficients and values never leave the chip.
//
// For calls whose segments are all of one tile at most, with an advantage each and no weights. Bytes a token: 9 read and 4 written, and what maps are
// asked for; a segment: 8 of offsets and 4 of A read. Where segments decide the loss, a group of 32 neighbours (climb.cuh) that
// lies in one unit is folded on chip and hands on its sum alone, 8 bytes; of a group that several units share, every segment hands on its own.
// The last to arrive of a tile of 1024 segments adds both up. With diagnostics a unit adds its tally, and a group its sum of s. Every sum is that
// of the three phases, bit for bit.
#pragma once

#include "apply.cuh"
#include "segment_groups.cuh"

constexpr uint32_t STAGED_READS = MOERL_READ_LOGPROBS | MOERL_READ_OLD;

// Where a warp keeps its unit: what apply.cuh's stage holds, and which tokens count.
struct FusedStage {
    Words4 coefficients[MOERL_UNIT_SEGMENTS];
    float advantages[MOERL_UNIT_SEGMENTS];
    float values[SLOTS];  // log-ratios, then what the tokens add to the loss
    uint8_t owners[SLOTS];
    uint8_t marks[SLOTS];
};
static_assert(sizeof(FusedStage) == 11360, "src/device/objective.rs asks for this much a warp");

// Puts the tokens into shared memory, if all are in order; false in every lane if one is not.
template <bool TALLY> MOERL_DEVICE bool stage_sound_tokens(const MoerlObjective& p, const Geometry& g, FusedStage& stage, TokenTally& tally) {
    const bool has_old = p.old_logprobs != nullptr;
    Suspicion suspicion = NO_SUSPICION;
    for (int first = 0; first < g.rows; first += WHOLE_ROWS) {
        const Rows<WHOLE_ROWS> rows = load_rows<WHOLE_ROWS>(p, g, first, STAGED_READS);
        MOERL_UNROLL
        for (int r = 0; r < WHOLE_ROWS; r++) {
            const Pack<false>& pack = rows.of[r];
            const int slot = (first + r) * ROW + 4 * static_cast<int>(lane_index());
            if (pack.bits == 0u) continue;
            suspicion.masks |= pack.mask;
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                const float current = pack.logprobs.x[v], old = has_old ? pack.old_logprobs.x[v] : current, delta = current - old;
                const bool counts = byte_of(pack.mask, v) != 0;
                stage.values[slot + v] = counts ? delta : 0.0f;
                stage.marks[slot + v] = counts ? COUNTS : uint8_t{0};
                stage.owners[slot + v] = 0;
                if (!counts) continue;
                suspect(suspicion, current, old);
                suspect(suspicion, delta);
                if constexpr (TALLY) {
                    tally.tokens++;
                    look_at(tally, current);
                    if (has_old) look_at(tally, old);
                }
            }
        }
    }
    return is_above_suspicion(suspicion);
}

// As stage_sound_tokens, whatever the tokens are.
template <bool TALLY> MOERL_DEVICE void stage_any_tokens(const MoerlObjective& p, const Geometry& g, FusedStage& stage, TokenTally& tally, uint64_t& fault) {
    tally = no_tokens();
    MOERL_ROLLED
    for (int row = 0; row < g.rows; row++) {
        Pack<false> pack = load_rows<1>(p, g, row, STAGED_READS).of[0];
        if (p.old_logprobs == nullptr) pack.old_logprobs = {{0.0f, 0.0f, 0.0f, 0.0f}};  // not read, and looked at below
        const int slot = row * ROW + 4 * static_cast<int>(lane_index());
        if (pack.bits == 0u) continue;
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) {
            const Token<false> token = token_of<false>(p, pack, v, 0.0f, STAGED_READS);
            stage.values[slot + v] = token.is_sound ? token.delta : 0.0f;
            stage.marks[slot + v] = static_cast<uint8_t>((token.counts ? COUNTS : 0u) | (token.counts && !token.is_sound ? UNSOUND : 0u));
            keep_faults(fault, p, pack, token, v, true);
            if constexpr (TALLY) {
                tally.tokens += token.counts;
                tally.nonfinite += token.counts && !token.is_sound;
                if (!token.is_sound) continue;
                look_at(tally, pack.logprobs.x[v]);
                look_at(tally, pack.old_logprobs.x[v]);
            }
        }
    }
}

// What a staged segment comes to. `sum(value)` and `total(number)` add up over its slots.
template <bool WITH_RATIO, class Sum, class Total> MOERL_DEVICE SegmentSums sums_of(const FusedStage& stage, int slot, Sum sum, Total total) {
    SegmentSums sums = NO_SUMS;
    sums.count = total([&](int i) { return static_cast<uint32_t>(stage.marks[slot + i] & COUNTS); });
    sums.nonfinite = total([&](int i) { return static_cast<uint32_t>((stage.marks[slot + i] & UNSOUND) != 0); });
    sums.kept = sums.count;  // nothing is rejected here
    if constexpr (WITH_RATIO) sums.delta = sum([&](int i) { return stage.values[slot + i]; });
    return sums;
}

// Sums and finishes the unit's segments: a lane each short one, the warp each longer one. Where they decide the loss, lanes stand at the places of
// their segments in a group.
template <int FAMILY, bool TALLY> MOERL_DEVICE void finish_staged(const MoerlObjective& p, const MoerlUnit& unit, FusedStage& stage, SegmentTally& tally, uint64_t& fault) {
    constexpr bool WITH_RATIO = FAMILY != CLIPPED_RATIO, BY_GROUPS = !HAS_VALUES<FAMILY>;
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    const float common = common_coefficient(p);
    const Groups whole = groups_of(p, unit);
    const uint32_t before = BY_GROUPS ? unit.segment % WARP : 0u;
    Shares<TALLY> folded = no_shares<TALLY>();
    for (uint32_t first = 0; first < before + unit.segments; first += WARP) {
        const uint32_t own = first + lane - before;  // of the segments before the unit: beyond all of its own
        const bool is_segment = own < unit.segments;
        const uint64_t segment = static_cast<uint64_t>(unit.segment) + own;
        const uint64_t start = is_segment ? static_cast<uint64_t>(load(p.offsets + segment)) : base;
        const int length = is_segment ? static_cast<int>(static_cast<uint64_t>(load(p.offsets + segment + 1)) - start) : 0;
        const float advantage = length != 0 ? load(p.advantages + segment) : 0.0f;
        const int slot = static_cast<int>(start - base), longest = longest_short(length);
        SegmentSums sums = NO_SUMS;
        if (length <= SHORT) {
            sums = sums_of<WITH_RATIO>(stage, slot, [&](auto value) { return fold_short(length, longest, value); }, [&](auto number) {
                uint32_t total = 0;
                for (int i = 0; i < length; i++) total += number(i);
                return total;
            });
        }
        for (uint32_t longer = ballot(length > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer), its_length = shuffle(length, owner);
            const SegmentSums found = sums_of<WITH_RATIO>(stage, shuffle(slot, owner), [&](auto value) { return fold_staged(its_length, value); }, [&](auto number) {
                uint32_t total = 0;
                for (int i = static_cast<int>(lane); i < its_length; i += WARP) total += number(i);
                return reduce_add_u32(total);
            });
            if (static_cast<int>(lane) == owner) sums = found;
        }
        Shares<TALLY> shares = no_shares<TALLY>();
        if (is_segment) {
            if (!is_finite(advantage) && sums.count != 0) {
                // No token of it is sound.
                sums.nonfinite = sums.count;
                sums.delta = 0.0f;
                int i = 0;
                while ((stage.marks[slot + i] & COUNTS) == 0) i++;
                keep_first(fault, fault_at(start + static_cast<uint64_t>(i), p.tag, MOERL_FAULT_NONFINITE_INPUT));
            }
            const Finished made = finish_segment(p, common, segment, planes_of_advantage(p, sums, advantage));
            const MoerlCoefficient& c = made.coefficient;
            keep_segment_faults(fault, p, made, segment);
            stage.coefficients[own] = {{bits_of(c.ratio), bits_of(c.weight), bits_of(c.gradient), c.flags}};
            stage.advantages[own] = advantage;
            if (length != 0) stage.owners[slot] = static_cast<uint8_t>(own);
            if constexpr (WITH_RATIO) store_sequence_maps(p, segment, made);
            shares.loss = made.value;
            if constexpr (TALLY) {
                count_segment(tally, p, made);
                shares.ratio = ratio_share(p, made);
            }
        }
        if constexpr (BY_GROUPS) take_group(p, whole, (static_cast<uint64_t>(unit.segment) + first) / WARP, is_segment, shares, folded);
    }
    if constexpr (BY_GROUPS) store_folded(p, whole, folded);
    sync_warp();
}

// Writes the gradient of the staged tokens, and puts their values in place of their log-ratios.
template <int FAMILY, bool TALLY> MOERL_DEVICE void apply_staged(const MoerlObjective& p, const Geometry& g, FusedStage& stage, TokenTally& tally) {
    uint32_t carry = 0;
    const bool with_ratio = FAMILY == CLIPPED_RATIO || p.ratio != nullptr;
    for (int row = 0; row < g.rows; row++) {
        const int slot = row * ROW + 4 * static_cast<int>(lane_index());
        const uint32_t bits = slots_of(g, row);
        uint32_t owners[4];
        owners_of(stage, slot, bits, carry, owners);
        if (bits == 0u) continue;
        Four gradients, ratios;
        uint32_t clipped = 0;
        MOERL_UNROLL
        for (int v = 0; v < 4; v++) {
            const MoerlCoefficient c = coefficient_of(stage.coefficients[owners[v]]);
            const uint32_t marks = stage.marks[slot + v];
            Token<false> token;
            token.delta = stage.values[slot + v];
            token.advantage = stage.advantages[owners[v]];
            token.weight = 1.0f;
            token.counts = (marks & COUNTS) != 0;
            token.is_sound_alone = token.counts && (marks & UNSOUND) == 0;
            token.is_sound = token.is_sound_alone && is_finite(token.advantage);
            Applied made = NOTHING;
            if (token.counts && !token.is_sound) made = apply_unsound(p);
            else if (token.counts) made = apply_plain<FAMILY, TALLY>(p, token, c, with_ratio ? uint32_t{MOERL_READ_LOGPROBS} : 0u, tally);
            if constexpr (TALLY) {
                if ((bits >> v & 1u) != 0 && token.is_sound_alone) {
                    if constexpr (FAMILY == CLIPPED_RATIO) count_ratio(tally, p, token.delta, counted_ratio(p, token, made), made.clipped);
                    else count_ratio(tally, p, token.delta, expf(saturate(p, token.delta)), 0u);
                }
            }
            gradients.x[v] = made.gradient;
            ratios.x[v] = made.ratio;
            clipped |= made.clipped << (8 * v);
            if constexpr (HAS_VALUES<FAMILY>) stage.values[slot + v] = made.value;
        }
        const uint64_t index = g.base + static_cast<uint64_t>(slot);
        const bool aligned = p.aligned != 0;
        store_four(p.d_logprobs, index, bits, aligned, gradients);
        store_four(p.ratio, index, bits, aligned, ratios);
        store_bytes(p.clipped, index, bits, aligned, clipped);
    }
    if constexpr (TALLY) count_ones(tally);
    sync_warp();
}

template <int FAMILY, bool TALLY> MOERL_DEVICE void fused_phase(const MoerlObjective& p) {
    MOERL_DYNAMIC_SHARED(FusedStage, stages);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        const Geometry g = geometry(unit);
        FusedStage& stage = stages[warp_index()];
        TokenTally tokens = no_tokens();
        SegmentTally segments = no_segments();
        double loss = 0.0;
        if (!stage_sound_tokens<TALLY>(p, g, stage, tokens)) stage_any_tokens<TALLY>(p, g, stage, tokens, fault);
        sync_warp();
        finish_staged<FAMILY, TALLY>(p, unit, stage, segments, fault);
        apply_staged<FAMILY, TALLY>(p, g, stage, tokens);
        if constexpr (HAS_VALUES<FAMILY>) loss = sum_values<FAMILY>(p, unit, stage);
        Tally mine = empty_tally();
        if constexpr (TALLY) mine = join(spread<false>(tokens), spread(segments));
        if constexpr (HAS_VALUES<FAMILY>) {
            place(mine, LOSS, loss);
        } else {
            Tally total;
            if (join_segments<TALLY>(p, unit, total)) publish(p, total, OF_SEGMENTS<TALLY>, !p.keep_totals);
        }
        if constexpr (HAS_VALUES<FAMILY> || TALLY) {
            constexpr uint64_t SUMS = (TALLY ? DIAGNOSTICS : 0u) | BIT<LOSS>;
            const uint64_t by_units = HAS_VALUES<FAMILY> ? SUMS : SUMS & ~(BY_SEGMENTS | BIT<MOERL_SUM_LOSS>);
            if (climb(tree_of_units(p), mine, index, p.unit_count, by_units)) publish(p, mine, by_units, !p.keep_totals);
        }
    }
    publish_fault(p.errors, fault);
}
