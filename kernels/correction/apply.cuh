// Phase 3: what tokens have.
#pragma once

#include "../objective/owners.cuh"
#include "tally.cuh"
#include "token.cuh"

// Where a warp keeps what it needs to know of a unit's pieces.
struct CorrectionApplyStage {
    float weights[MOERL_UNIT_SEGMENTS];
    uint32_t flags[MOERL_UNIT_SEGMENTS];
    uint8_t owners[SLOTS];  // which of the unit's pieces begins at a slot, then which one the slot belongs to
};
static_assert(sizeof(CorrectionApplyStage) == 3088, "src/device/correction.rs asks for this much a warp");

MOERL_DEVICE MoerlDecision decision_of(const MoerlCorrection& p, uint64_t piece) {
    if (p.decisions == nullptr) return {1.0f, MOERL_DECISION_KEPT};
    return {load(&p.decisions[piece].weight), load(&p.decisions[piece].flags)};
}

// One over the mean of the weights, where the batch normalises them.
MOERL_DEVICE float batch_factor(const MoerlCorrection& p) {
    if (!p.batch_normalise) return 1.0f;
    const bool of_tokens = p.level == MOERL_CORRECTION_TOKEN && !weighs_tokens_by_segments(p);
    uint32_t sum = MOERL_CORRECTION_WEIGHTS, count = MOERL_CORRECTION_WEIGHED;
    if (of_tokens) {
        sum = HALF_GLOBALS + MOERL_CORRECTION_TOKEN_WEIGHTS;
        count = HALF_GLOBALS + MOERL_CORRECTION_TOKENS;
    }
    const double mean = load(p.globals + sum) / load(p.globals + count);
    return mean > 1e-8 ? static_cast<float>(1.0 / mean) : 1.0f;
}

// The outcome of the Metropolis test of a token at a position of its segment.
MOERL_DEVICE float is_accepted(const MoerlCorrection& p, uint64_t segment, uint64_t token, uint64_t start, float delta) {
    constexpr float below_one = 0x1.fffffep-1f;  // f32 would make 1 of what is next to it, and reject a ratio of 1
    const float uniform = p.uniforms != nullptr ? load(p.uniforms + token)
                                                : fminf(below_one, static_cast<float>(uniform_of(p, load(p.segment_ids + segment), static_cast<uint32_t>(token - start), TOKEN_STREAM)));
    return logf(uniform) < delta ? 1.0f : 0.0f;
}

struct Corrected {
    float weight, delta;
    bool is_kept;
};

template <class Drawn> MOERL_DEVICE Corrected correct_token(const MoerlCorrection& p, const CorrectionToken& token, const MoerlDecision& decision, float factor, bool with_tokens, Drawn drawn) {
    Corrected r = {0.0f, 0.0f, false};
    if (!token.counts) return r;
    r.is_kept = (decision.flags & MOERL_DECISION_KEPT) != 0;
    if (!with_tokens) {
        r.weight = decision.weight * factor;
        return r;
    }
    if (!token.is_sound) {
        const bool shows = p.nonfinite_policy == MOERL_PROPAGATE;
        r.weight = shows ? f32_of(0x7fc00000u) : 0.0f;
        r.is_kept = r.is_kept && shows;
        return r;
    }
    const bool is_test = p.level == MOERL_CORRECTION_TOKEN && (p.weight == MOERL_CORRECTION_METROPOLIS_MASK || p.weight == MOERL_CORRECTION_METROPOLIS_MULTIPLICITY);
    r.weight = decision.weight * factor * (is_test ? drawn(token.delta) : token_weight(p, token.delta));
    r.delta = token.delta;
    r.is_kept = r.is_kept && rejections_of(p, token.delta) == 0;
    return r;
}

// One pack's tokens, written. `decision` and `start` give what is decided about the piece of slot v, and where it begins.
template <class Decide> MOERL_DEVICE void correct_pack(const MoerlCorrection& p, const CorrectionPack& pack, float factor, bool with_tokens, uint64_t& fault, Decide decide) {
    Four weights, deltas;
    uint32_t keep = 0;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        const CorrectionToken token = correction_token(pack, v);
        MoerlDecision decision;
        uint64_t piece = 0;
        decide(v, decision, piece);
        const Corrected made = correct_token(p, token, decision, factor, with_tokens, [&](float delta) {
            const uint64_t start = p.uniforms != nullptr ? 0u : static_cast<uint64_t>(load(p.offsets + piece));
            return is_accepted(p, piece, pack.index + static_cast<uint64_t>(v), start, delta);
        });
        weights.x[v] = made.weight;
        deltas.x[v] = made.delta;
        keep |= static_cast<uint32_t>(made.is_kept) << (8 * v);
        // Alone, this phase is the only one that sees the tokens.
        if (p.decisions == nullptr) keep_token_faults(fault, p, pack, token, v);
    }
    const bool aligned = p.aligned != 0;
    store_four(p.weights, pack.index, pack.bits, aligned, weights);
    store_four(p.log_ratio, pack.index, pack.bits, aligned, deltas);
    store_bytes(p.keep, pack.index, pack.bits, aligned, keep);
}

MOERL_DEVICE void correct_whole(const MoerlCorrection& p, const MoerlUnit& unit, float factor, uint64_t& fault) {
    const Geometry g = geometry(unit);
    if (g.tokens == 0) return;
    const MoerlDecision decision = decision_of(p, unit.segment);
    // A piece with an unsound token is read again to find it.
    const bool with_tokens = p.reads_tokens || (decision.flags & MOERL_DECISION_NONFINITE) != 0;
    for (int first = 0; first < g.rows; first += ROWS_AT_ONCE) {
        CorrectionPack packs[ROWS_AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) packs[r] = load_correction_pack(p, g, first + r, with_tokens);
        MOERL_UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            correct_pack(p, packs[r], factor, with_tokens, fault, [&](int, MoerlDecision& of, uint64_t& piece) {
                of = decision;
                piece = unit.segment;
            });
        }
    }
}

// Puts the unit's decisions into shared memory and marks where its pieces begin. True if one of them is to be read again.
MOERL_DEVICE bool stage_decisions(const MoerlCorrection& p, const MoerlUnit& unit, CorrectionApplyStage& stage) {
    const uint32_t lane = lane_index();
    const uint64_t base = unit.token & ~uint64_t{3};
    const Geometry g = geometry(unit);
    for (int slot = static_cast<int>(lane); slot < g.head + g.tokens; slot += WARP) stage.owners[slot] = 0;
    sync_warp();
    bool again = false;
    for (uint32_t i = lane; i < unit.segments; i += WARP) {
        const uint64_t piece = static_cast<uint64_t>(unit.segment) + i;
        const uint64_t start = static_cast<uint64_t>(load(p.offsets + piece)), end = static_cast<uint64_t>(load(p.offsets + piece + 1));
        const MoerlDecision decision = decision_of(p, piece);
        stage.weights[i] = decision.weight;
        stage.flags[i] = decision.flags;
        again = again || (decision.flags & MOERL_DECISION_NONFINITE) != 0;
        if (end > start) stage.owners[start - base] = static_cast<uint8_t>(i);
    }
    sync_warp();
    return any(again, FULL_WARP);
}

MOERL_DEVICE void correct_pieces(const MoerlCorrection& p, const MoerlUnit& unit, float factor, CorrectionApplyStage& stage, uint64_t& fault) {
    const Geometry g = geometry(unit);
    const bool with_tokens = stage_decisions(p, unit, stage) || p.reads_tokens;
    uint32_t carry = 0;
    for (int row = 0; row < g.rows; row++) {
        const CorrectionPack pack = load_correction_pack(p, g, row, with_tokens);
        const int slot = row * ROW + 4 * static_cast<int>(lane_index());
        uint32_t owners[4];
        owners_of(stage, slot, pack.bits, carry, owners);
        correct_pack(p, pack, factor, with_tokens, fault, [&](int v, MoerlDecision& of, uint64_t& piece) {
            of = {stage.weights[owners[v]], stage.flags[owners[v]]};
            piece = static_cast<uint64_t>(unit.segment) + owners[v];
        });
    }
    sync_warp();
}

// The weights of segments, divided by their mean; the decisions hold them as they were.
MOERL_DEVICE void normalise_segments(const MoerlCorrection& p, float factor) {
    if (!p.batch_normalise || p.segment_weights == nullptr || p.level < MOERL_CORRECTION_SEQUENCE) return;
    const uint64_t threads = static_cast<uint64_t>(grid_size()) * block_size();
    for (uint64_t segment = static_cast<uint64_t>(block_index()) * block_size() + thread_index(); segment < p.segment_count; segment += threads) {
        const uint64_t first = p.first_piece != nullptr ? load(p.first_piece + segment) : segment;
        store(p.segment_weights + segment, decision_of(p, first).weight * factor);
    }
}

MOERL_DEVICE void correction_apply_phase(const MoerlCorrection& p) {
    MOERL_DYNAMIC_SHARED(CorrectionApplyStage, stages);
    const float factor = batch_factor(p);
    normalise_segments(p, factor);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    // Alone, this phase looks for faults whatever is asked for.
    if (index < p.unit_count && ((p.decisions == nullptr && p.errors != nullptr) || p.weights != nullptr || p.keep != nullptr || p.log_ratio != nullptr)) {
        const MoerlUnit unit = load_unit(p.units + index);
        if (unit.segments > 1) correct_pieces(p, unit, factor, stages[warp_index()], fault);
        else correct_whole(p, unit, factor, fault);
    }
    publish_fault(p.errors, fault);
}
