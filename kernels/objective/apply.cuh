// Phase 3: what a token decides.
#pragma once

#include "../block.cuh"
#include "owners.cuh"
#include "policy.cuh"

// Where a warp keeps what it needs to know of a unit's segments, and the values of their tokens.
struct ApplyStage {
    Words4 coefficients[MOERL_UNIT_SEGMENTS];
    float advantages[MOERL_UNIT_SEGMENTS];
    float values[SLOTS];
    uint8_t owners[SLOTS];  // which of the unit's segments begins at a slot, then which one the slot belongs to
};
static_assert(sizeof(ApplyStage) == 10320, "src/device/objective.rs asks for this much a warp");

// Which code an objective runs: that of one of the three most used variants with nothing beside it, or the one that knows them all.
enum Family { CLIPPED_RATIO = MOERL_FAMILY_CLIPPED_RATIO, SHARED_GRADIENT = MOERL_FAMILY_SHARED_GRADIENT, SEGMENT_RATIO = MOERL_FAMILY_SEGMENT_RATIO, ANY = MOERL_FAMILY_ANY };

template <int FAMILY> constexpr bool IS_WIDE = FAMILY == ANY;
// Values that `finish` could not know.
template <int FAMILY> constexpr bool HAS_VALUES = FAMILY == CLIPPED_RATIO || FAMILY == ANY;

struct Applied {
    float gradient, value, ratio, kl, d_entropy;
    uint32_t clipped;
};

constexpr Applied NOTHING = {0.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0u};

// What must be read of every token, beside its mask.
template <int FAMILY> MOERL_DEVICE uint32_t reads_of(const MoerlObjective& p) {
    constexpr uint32_t LOGPROBS = MOERL_READ_LOGPROBS | MOERL_READ_OLD, ADVANTAGES = MOERL_READ_ADVANTAGES | MOERL_READ_WEIGHTS;
    if constexpr (FAMILY == ANY) return p.reads;
    const bool with_logprobs = FAMILY == CLIPPED_RATIO || p.ratio != nullptr, with_advantages = FAMILY != SHARED_GRADIENT || p.clipped != nullptr;
    return (with_logprobs ? LOGPROBS : 0u) | (with_advantages ? ADVANTAGES : 0u);
}

// True where `partial` reads more than the masks.
MOERL_DEVICE bool sums_tokens(const MoerlObjective& p) {
    return p.log_ratio != nullptr || p.positive != nullptr || p.negative != nullptr || p.nonfinite != nullptr || p.folded != nullptr || p.divergence != nullptr;
}

// True of a segment with these flags where `partial` saw an unsound token: `apply` reads again what it had read, to find it.
MOERL_DEVICE bool is_read_again(const MoerlObjective& p, uint32_t flags) { return (flags & MOERL_NONFINITE) != 0 && sums_tokens(p); }

MOERL_DEVICE MoerlCoefficient coefficient_of(const Words4& w) { return {f32_of(w.w[0]), f32_of(w.w[1]), f32_of(w.w[2]), w.w[3], 0.0f, 0.0f, 0.0f, 0.0f}; }

// With the second half, of segment `segment`.
template <bool WIDE> MOERL_DEVICE MoerlCoefficient completed(const MoerlObjective& p, MoerlCoefficient c, uint64_t segment) {
    if constexpr (WIDE) {
        const Words4 w = load16(&p.coefficients[segment].scale);
        c.scale = f32_of(w.w[0]);
        c.sequence_ratio = f32_of(w.w[1]);
        c.shared = f32_of(w.w[2]);
        c.segment_weight = f32_of(w.w[3]);
    }
    return c;
}

// A token that counts and is not sound.
MOERL_DEVICE Applied apply_unsound(const MoerlObjective& p) {
    if (p.nonfinite_policy != MOERL_PROPAGATE) return NOTHING;
    const float nan = f32_of(0x7fc00000u);
    return {nan, nan, nan, nan, nan, 0u};
}

// The ratio that statistics count a token with: its own also where its segment's advantage is not finite.
template <bool WIDE> MOERL_DEVICE float counted_ratio(const MoerlObjective& p, const Token<WIDE>& token, const Applied& made) { return token.is_sound ? made.ratio : expf(saturate(p, token.delta)); }

// False of tokens that have no part in the policy's term.
MOERL_DEVICE bool pulls(const MoerlCoefficient& c, float weight) { return weight != 0.0f && (c.flags & MOERL_DROPPED) == 0; }

// One of the three, of a token that counts and is sound.
template <int FAMILY, bool TALLY> MOERL_DEVICE Applied apply_plain(const MoerlObjective& p, const Token<false>& token, const MoerlCoefficient& c, uint32_t reads, TokenTally& tally) {
    Applied r = NOTHING;
    if ((reads & MOERL_READ_LOGPROBS) != 0) r.ratio = expf(saturate(p, token.delta));
    const float scaled = -c.weight * token.weight * token.advantage;
    // Nothing is left, whatever 0 would multiply: that may be infinite.
    const bool is_out = (c.flags & MOERL_DROPPED) != 0 || scaled == 0.0f;
    if constexpr (FAMILY == SHARED_GRADIENT) {
        r.gradient = c.gradient;
        r.clipped = clipped_for(c.flags, token.advantage);
    } else if constexpr (FAMILY == SEGMENT_RATIO) {
        r.clipped = clipped_for(c.flags, token.advantage);
        // NaN must show: a segment with s = NaN passes nothing, nor does every token of one without a denominator.
        const bool shows = (passes(c.flags, token.advantage) && !is_out) || c.ratio != c.ratio || c.weight != c.weight;
        r.gradient = shows ? scaled * c.ratio + 0.0f : 0.0f;
    } else {
        const uint32_t flags = with_passes(token_flags(p, token.delta), is_inside(p, token.delta));
        r.clipped = clipped_for(flags, token.advantage);
        const float bounded = token.advantage > 0.0f ? bounded_for_positive(p, r.ratio) : bounded_for_negative(p, r.ratio);
        if (!is_out) r.value = -token.weight * token.advantage * bounded;
        const bool shows = (passes(flags, token.advantage) && !is_out) || c.weight != c.weight;
        r.gradient = shows ? scaled * r.ratio + 0.0f : 0.0f;
        if constexpr (TALLY) count_pull(tally, passes(flags, token.advantage) && pulls(c, token.weight) ? r.ratio : 0.0f, flags);
    }
    return r;
}

// What stands beside the policy's term, added to it.
template <bool TALLY> MOERL_DEVICE void apply_terms(const MoerlObjective& p, const Token<true>& token, const MoerlCoefficient& c, Applied& r, TermTally& terms) {
    const bool counts = token.is_kept || !p.rejects_all;
    Divergence kl = {0.0f, 0.0f, false};
    if (p.kl_form != MOERL_KL_NONE) kl = divergence_of(p, token, c, r.ratio);
    r.kl = kl.value;
    if (counts && c.scale != 0.0f) {
        const float apart = token.from_rollout;
        r.d_entropy = -c.scale * p.entropy_bonus + 0.0f;
        r.gradient = fmaf(c.scale, times(p.kl_beta, kl.slope) + 2.0f * p.mismatch_penalty * apart, r.gradient);
        const float kl_value = times(p.kl_beta, kl.value), mismatch = p.mismatch_penalty * apart * apart, bonus = -p.entropy_bonus * token.entropy;
        r.value += kl_value + mismatch + bonus;
        if constexpr (TALLY) {
            terms.kl_loss += times(kl_value, c.scale);
            terms.mismatch_loss += times(mismatch, c.scale);
            terms.entropy_loss += times(bonus, c.scale);
        }
    }
    r.gradient += c.shared;
    if constexpr (TALLY) {
        terms.entropy += token.entropy;
        terms.ref_k1 -= token.to_ref;
        terms.ref_k3 += k3_of(token.to_ref);
        if (p.has_rollout) terms.rollout_entropy -= expf(saturate(p, token.from_rollout)) * token.current;
    }
}

// Any objective, of a token that counts and is sound.
template <bool TALLY> MOERL_DEVICE Applied apply_any(const MoerlObjective& p, const Token<true>& token, const MoerlCoefficient& c, TokenTally& tally, TermTally& terms) {
    Applied r = NOTHING;
    r.ratio = expf(saturate(p, token.delta));
    const Policy made = policy_of(p, token, c, r.ratio);
    r.clipped = clipped_for(made.flags, token.advantage);
    const float weight = policy_weight(p, token);
    r.gradient = times(c.weight, times(weight, made.slope));
    if (shares_gradient(p, token, made)) r.gradient += c.gradient;
    r.value = c.weight == 0.0f ? 0.0f : times(c.segment_weight * weight, made.value);
    if constexpr (TALLY) {
        if (!p.value_in_finish) count_pull(tally, pulls(c, weight) ? made.pull : 0.0f, made.flags);
    }
    apply_terms<TALLY>(p, token, c, r, terms);
    r.gradient += 0.0f;
    if ((c.flags & MOERL_DROPPED) != 0) r.gradient = r.value = r.d_entropy = 0.0f;
    return r;
}

// What a warp keeps while it goes over its unit.
struct Going {
    TokenTally tokens;
    TermTally terms;
    uint64_t fault;
};

// One pack's tokens, written. `usual`: what is read of segments that are not read again.
template <int FAMILY, bool TALLY, class Segment>
MOERL_DEVICE void apply_pack(const MoerlObjective& p, Pack<IS_WIDE<FAMILY>>& pack, uint32_t reads, uint32_t usual, Four& values, Going& going, Segment segment_of) {
    Four gradients, ratios, kls, d_entropies;
    uint32_t clipped = 0;
    MOERL_UNROLL
    for (int v = 0; v < 4; v++) {
        MoerlCoefficient c;
        float advantage;
        segment_of(v, c, advantage);
        if (reads != usual && !is_read_again(p, c.flags)) hide_unread(pack, v, usual);
        const Token<IS_WIDE<FAMILY>> token = token_of<IS_WIDE<FAMILY>>(p, pack, v, advantage, reads);
        Applied made = NOTHING;
        if (token.counts && !token.is_sound) {
            made = apply_unsound(p);
        } else if (token.counts) {
            if constexpr (FAMILY == ANY) made = apply_any<TALLY>(p, token, c, going.tokens, going.terms);
            else made = apply_plain<FAMILY, TALLY>(p, token, c, reads, going.tokens);
        }
        gradients.x[v] = made.gradient;
        ratios.x[v] = made.ratio;
        values.x[v] = made.value;
        kls.x[v] = made.kl;
        d_entropies.x[v] = made.d_entropy;
        clipped |= made.clipped << (8 * v);
        if constexpr (HAS_VALUES<FAMILY>) {
            keep_faults(going.fault, p, pack, token, v, (reads & MOERL_READ_LOGPROBS) != 0);
            if constexpr (TALLY) {
                if (!p.is_sequence_level) count_token(going.tokens, p, pack, v, token, counted_ratio(p, token, made), made.clipped);
            }
        }
    }
    const bool aligned = p.aligned != 0;
    store_four(p.d_logprobs, pack.index, pack.bits, aligned, gradients);
    store_four(p.ratio, pack.index, pack.bits, aligned, ratios);
    store_bytes(p.clipped, pack.index, pack.bits, aligned, clipped);
    if constexpr (FAMILY == ANY) {
        store_four(p.kl, pack.index, pack.bits, aligned, kls);
        store_four(p.d_entropy, pack.index, pack.bits, aligned, d_entropies);
    }
}

// Rows whose loads are in flight together where every token is looked at by itself.
template <int FAMILY, bool TALLY> constexpr int PIECE_ROWS = FAMILY == CLIPPED_RATIO && TALLY ? 2 : 1;

// c for the value of a token, which holds W where other terms stand beside it.
template <int FAMILY> MOERL_DEVICE double value_scale(const MoerlCoefficient& c) {
    if ((c.flags & MOERL_EMPTY) != 0) return 0.0;
    return static_cast<double>(FAMILY == ANY ? c.scale : c.weight);
}

template <int FAMILY> MOERL_DEVICE double piece_value(const MoerlCoefficient& c, const Chains<1>& chains, const Geometry& g) {
    if constexpr (!HAS_VALUES<FAMILY>) return 0.0;
    else return value_scale<FAMILY>(c) * static_cast<double>(fold(chains.of[0], g.head));
}

// What a ratio does to a token with an advantage of this sign: between which of its logarithms the gradient passes, and its bounds in the value.
struct Window {
    float low, high, least, most;
};

MOERL_DEVICE Window window_of(const MoerlObjective& p, float advantage) {
    const float infinity = f32_of(0x7f800000u);
    if (advantage > 0.0f) return {p.saturation_low, fminf(p.saturation_high, p.token_log_upper), -infinity, p.upper};
    const float low = fmaxf(p.saturation_low, p.token_log_lower), high = fminf(p.saturation_high, p.token_log_cap);
    return {advantage < 0.0f ? low : infinity, high, p.lower, p.cap};
}

// As apply_piece where the segment decides and every token is in order: the gradient is one number.
MOERL_DEVICE void apply_shared(const MoerlObjective& p, const Geometry& g, const MoerlCoefficient& c) {
    for (int first = 0; first < g.rows; first += MASKS_AT_ONCE) {
        const Rows<MASKS_AT_ONCE> rows = load_rows<MASKS_AT_ONCE>(p, g, first, 0u);
        MOERL_UNROLL
        for (int r = 0; r < MASKS_AT_ONCE; r++) {
            const Pack<false>& pack = rows.of[r];
            Four gradients;
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) gradients.x[v] = byte_of(pack.mask, v) != 0 ? c.gradient : 0.0f;
            store_four(p.d_logprobs, pack.index, pack.bits, p.aligned != 0, gradients);
        }
    }
}

// As apply_piece where each token's own ratio decides, if all tokens are in order; false in every lane if one is not.
template <int FAMILY, bool WITH_ARRAYS> MOERL_DEVICE bool apply_sound_piece(const MoerlObjective& p, const Geometry& g, const MoerlCoefficient& c, float segment_advantage, Chains<1>& chains) {
    constexpr bool BY_RATIO = FAMILY == CLIPPED_RATIO;
    constexpr uint32_t READS = (WITH_ARRAYS ? MOERL_READ_ADVANTAGES | MOERL_READ_WEIGHTS : 0) | (BY_RATIO ? MOERL_READ_LOGPROBS | MOERL_READ_OLD : 0);
    constexpr int ROWS = SOUND_ROWS<WITH_ARRAYS>;
    const bool has_old = p.old_logprobs != nullptr;
    Suspicion suspicion = suspicion_of(p, segment_advantage);
    for (int first = 0; first < g.rows; first += ROWS) {
        const Rows<ROWS> rows = load_rows<ROWS>(p, g, first, READS);
        MOERL_UNROLL
        for (int r = 0; r < ROWS; r++) {
            const Pack<false>& pack = rows.of[r];
            suspicion.masks |= pack.mask;
            Four gradients = {{0.0f, 0.0f, 0.0f, 0.0f}};
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                if (byte_of(pack.mask, v) == 0) continue;
                const auto [weight, advantage] = factors_of<WITH_ARRAYS>(p, pack, v, segment_advantage, suspicion);
                const float scaled = -c.weight * weight * advantage;
                if constexpr (BY_RATIO) {
                    const float current = pack.logprobs.x[v], delta = has_old ? current - pack.old_logprobs.x[v] : 0.0f;
                    suspect(suspicion, current, has_old ? pack.old_logprobs.x[v] : 0.0f);
                    suspect(suspicion, has_old ? delta : current);
                    const Window window = window_of(p, advantage);
                    const float ratio = expf(saturate(p, delta)), bounded = fminf(fmaxf(ratio, window.least), window.most);
                    const bool shows = scaled != 0.0f;  // 0 leaves nothing of what may be infinite
                    gradients.x[v] = shows && window.low <= delta && delta <= window.high ? scaled * ratio + 0.0f : 0.0f;
                    chains.of[0][v] += shows ? -weight * advantage * bounded : 0.0f;
                } else {
                    gradients.x[v] = passes(c.flags, advantage) && scaled != 0.0f ? scaled * c.ratio + 0.0f : 0.0f;
                }
            }
            store_four(p.d_logprobs, pack.index, pack.bits, p.aligned != 0, gradients);
        }
    }
    return is_above_suspicion(suspicion);
}

// A unit that is one piece of one segment. Returns its share of the loss.
template <int FAMILY, bool TALLY> MOERL_DEVICE double apply_piece(const MoerlObjective& p, const MoerlUnit& unit, Going& going) {
    constexpr int AT_ONCE = PIECE_ROWS<FAMILY, TALLY>;
    const Geometry g = geometry(unit);
    if (g.tokens == 0) return 0.0;
    const MoerlCoefficient c = completed<IS_WIDE<FAMILY>>(p, coefficient_of(load16(p.coefficients + unit.segment)), unit.segment);
    const uint32_t reads = is_read_again(p, c.flags) ? READ_ALL : reads_of<FAMILY>(p);
    const float advantage = (reads & MOERL_READ_ADVANTAGES) != 0 && !p.advantage_per_token ? load(p.advantages + unit.segment) : 0.0f;
    Chains<1> chains = no_chains<1>();
    const bool is_plain = (c.flags & (MOERL_NONFINITE | MOERL_DROPPED)) == 0 && c.weight == c.weight && p.ratio == nullptr && p.clipped == nullptr;
    if constexpr (FAMILY == SHARED_GRADIENT) {
        if (is_plain) {
            apply_shared(p, g, c);
            return 0.0;
        }
    } else if constexpr (FAMILY != ANY && !TALLY) {
        const bool with_arrays = p.weights != nullptr || p.advantage_per_token != 0;
        const bool is_sound = is_plain && c.ratio == c.ratio && (with_arrays ? apply_sound_piece<FAMILY, true>(p, g, c, advantage, chains) : apply_sound_piece<FAMILY, false>(p, g, c, advantage, chains));
        if (is_sound) return piece_value<FAMILY>(c, chains, g);
        chains = no_chains<1>();
    }
    MOERL_ROLLED
    for (int first = 0; first < g.rows; first += AT_ONCE) {
        Pack<IS_WIDE<FAMILY>> packs[AT_ONCE];
        MOERL_UNROLL
        for (int r = 0; r < AT_ONCE; r++) packs[r] = load_pack<IS_WIDE<FAMILY>>(p, g, first + r, reads);
        MOERL_UNROLL
        for (int r = 0; r < AT_ONCE; r++) {
            Four values;
            apply_pack<FAMILY, TALLY>(p, packs[r], reads, reads, values, going, [&](int, MoerlCoefficient& of, float& own) {
                of = c;
                own = advantage;
            });
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) chains.of[0][v] += values.x[v];
        }
    }
    return piece_value<FAMILY>(c, chains, g);
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
        const bool is_flagged = is_read_again(p, words.w[3]);
        again = again || is_flagged;
        const bool needs_advantage = !p.advantage_per_token && (with_advantages || is_flagged);
        stage.advantages[i] = needs_advantage ? load(p.advantages + segment) : 0.0f;
        if (end > start) stage.owners[start - base] = static_cast<uint8_t>(i);
    }
    sync_warp();
    return any(again, FULL_WARP);
}

// The unit's share of the loss, from the staged values.
template <int FAMILY, class Stage> MOERL_DEVICE double sum_values(const MoerlObjective& p, const MoerlUnit& unit, const Stage& stage) {
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
        const int longest = longest_short(length);
        if (length <= SHORT) value = fold_short(length, longest, [&](int i) { return stage.values[slot + i]; });
        for (uint32_t longer = ballot(length > SHORT, FULL_WARP); longer != 0; longer &= longer - 1) {
            const int owner = lowest_set(longer);
            const int its_slot = shuffle(slot, owner);
            const float found = fold_staged(shuffle(length, owner), [&](int i) { return stage.values[its_slot + i]; });
            if (static_cast<int>(lane) == owner) value = found;
        }
        if (is_segment) {
            const MoerlCoefficient c = completed<IS_WIDE<FAMILY>>(p, coefficient_of(stage.coefficients[first + lane]), segment);
            loss += value_scale<FAMILY>(c) * static_cast<double>(value);
        }
    }
    return warp_sum(loss);
}

// A unit of several segments. Returns its share of the loss.
template <int FAMILY, bool TALLY> MOERL_DEVICE double apply_segments(const MoerlObjective& p, const MoerlUnit& unit, ApplyStage& stage, Going& going) {
    const Geometry g = geometry(unit);
    const uint32_t usual = reads_of<FAMILY>(p);
    // Which segment's tokens are read again is not told apart where they are loaded: all of the unit's are.
    const uint32_t reads = stage_segments(p, unit, stage, (usual & MOERL_READ_ADVANTAGES) != 0) ? READ_ALL : usual;
    uint32_t carry = 0;
    for (int row = 0; row < g.rows; row++) {
        Pack<IS_WIDE<FAMILY>> pack = load_pack<IS_WIDE<FAMILY>>(p, g, row, reads);
        const int slot = row * ROW + 4 * static_cast<int>(lane_index());
        uint32_t owners[4];
        owners_of(stage, slot, pack.bits, carry, owners);
        Four values;
        apply_pack<FAMILY, TALLY>(p, pack, reads, usual, values, going, [&](int v, MoerlCoefficient& of, float& own) {
            of = completed<IS_WIDE<FAMILY>>(p, coefficient_of(stage.coefficients[owners[v]]), unit.segment + owners[v]);
            own = stage.advantages[owners[v]];
        });
        if constexpr (HAS_VALUES<FAMILY>) {
            MOERL_UNROLL
            for (int v = 0; v < 4; v++) {
                if ((pack.bits >> v & 1u) != 0) stage.values[slot + v] = values.x[v];
            }
        }
    }
    sync_warp();
    double loss = 0.0;
    if constexpr (HAS_VALUES<FAMILY>) loss = sum_values<FAMILY>(p, unit, stage);
    sync_warp();
    return loss;
}

template <int FAMILY, bool TALLY> MOERL_DEVICE void apply_phase(const MoerlObjective& p) {
    MOERL_DYNAMIC_SHARED(ApplyStage, stages);
    Going going = {no_tokens(), no_terms(), MOERL_NO_FAULT};
    const uint64_t index = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        const double loss = unit.segments > 1 ? apply_segments<FAMILY, TALLY>(p, unit, stages[warp_index()], going) : apply_piece<FAMILY, TALLY>(p, unit, going);
        // Where a segment decides, the loss was known to `finish`.
        if constexpr (HAS_VALUES<FAMILY>) {
            Tally mine = empty_tally();
            if constexpr (TALLY) mine = spread<IS_WIDE<FAMILY>>(going.tokens);
            if constexpr (TALLY && FAMILY == ANY) place_terms(mine, going.terms);
            place(mine, LOSS, loss);
            if (climb(tree_of_units(p), mine, index, p.unit_count, all_places(p))) publish(p, mine, all_places(p), false);
        }
    }
    if constexpr (HAS_VALUES<FAMILY>) publish_fault(p.errors, going.fault);
}
