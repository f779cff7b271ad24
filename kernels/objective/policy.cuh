// What a token adds to the loss: the policy's term by variant, and the terms beside it. For kernels that serve every objective; those of
// the three most used variants have their own, shorter code in apply.cuh.
#pragma once

#include "tally.cuh"

// The policy's term of one token, without c, W and w.
struct Policy {
    float value;    // L; 0 where it was known before
    float slope;    // dL/dl
    float pull;     // what multiplies -A in it
    uint32_t flags; // where the ratio lies, for either sign of A
};

// p (1 - p) 4 for p = sigma(z), without the difference.
MOERL_DEVICE float sigmoid_slope(float z) {
    const float e = expf(-fabsf(z));
    return 4.0f * e / ((1.0f + e) * (1.0f + e));
}
MOERL_DEVICE float sigmoid(float z) {
    const float e = expf(-fabsf(z));
    return (z >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// -A pull l, where the pull is a constant.
MOERL_DEVICE Policy surrogate(const Token<true>& token, float pull, uint32_t flags) {
    const float slope = -token.advantage * pull;
    return {slope * token.current, slope, pull, flags};
}

// The largest f32 below 1, the largest probability that has a logarithm of its complement.
constexpr float BELOW_ONE = 0.99999994f;

// How far the policy has moved at the token, as a distance of two coins: the chosen token, or another.
MOERL_DEVICE float binary_divergence(const MoerlObjective& p, const Token<true>& token, float now, float before) {
    if (p.epsilon > 0.0f) {
        const float e = p.epsilon;
        return before * logf((before + e) / (now + e)) + (1.0f - before) * logf((1.0f - before + e) / (1.0f - now + e));
    }
    const float complement = log1pf(-fminf(before, BELOW_ONE)) - log1pf(-fminf(now, BELOW_ONE));
    return fmaf(before, token.old - token.current, (1.0f - before) * complement);
}

// The trust region of DPPO: ABOVE stops A > 0, BELOW stops A < 0.
MOERL_DEVICE uint32_t trust_flags(const MoerlObjective& p, const Token<true>& token) {
    const float now = expf(token.current), before = expf(token.old);
    if (p.variant == MOERL_DPPO_TV) return flags_of(now - before > p.upper, before - now > p.lower, false);
    const float moved = binary_divergence(p, token, now, before);
    return flags_of(moved > p.upper && now > before, moved > p.lower && now < before, false);
}

MOERL_DEVICE Policy clipped_ratio(const MoerlObjective& p, const Token<true>& token, float ratio) {
    const float a = token.advantage;
    const uint32_t flags = with_passes(token_flags(p, token.delta), is_inside(p, token.delta));
    const float bounded = a > 0.0f ? bounded_for_positive(p, ratio) : bounded_for_negative(p, ratio);
    const float pull = passes(flags, a) ? ratio : 0.0f;
    return {times(-a, bounded), -a * pull, pull, flags};
}

MOERL_DEVICE Policy soft_ratio(const MoerlObjective& p, const Token<true>& token, float ratio) {
    const float a = token.advantage, tau = a > 0.0f ? p.positive_rate : p.negative_rate;
    const float z = tau * (ratio - 1.0f);
    const float pull = is_inside(p, token.delta) ? times(sigmoid_slope(z), ratio) : 0.0f;
    return {-a * (4.0f / tau) * sigmoid(z), -a * pull, pull, 0u};
}

// The largest cov tokens pay for having moved; the others have no bound.
MOERL_DEVICE Policy penalised_ratio(const MoerlObjective& p, const Token<true>& token, float ratio) {
    const float a = token.advantage;
    const float pull = is_inside(p, token.delta) ? ratio : 0.0f;
    Policy r = {times(-a, ratio), times(-a, pull), pull, 0u};
    if (token.is_chosen) {
        r.value = fmaf(p.positive_rate, fabsf(token.delta), r.value);
        r.slope += token.delta > 0.0f ? p.positive_rate : token.delta < 0.0f ? -p.positive_rate : 0.0f;
    }
    return r;
}

// A token that counts and is sound. Where `finish` knew the value, only its gradient is left.
MOERL_DEVICE Policy policy_of(const MoerlObjective& p, const Token<true>& token, const MoerlCoefficient& c, float ratio) {
    const float a = token.advantage;
    switch (p.variant) {
        case MOERL_PPO_CLIP: return clipped_ratio(p, token, ratio);
        case MOERL_GSPO_TOKEN: {
            // NaN must show: a segment with s = NaN passes nothing.
            const float pull = passes(c.flags, a) || c.ratio != c.ratio ? c.ratio : 0.0f;
            return {0.0f, -a * pull, pull, c.flags};
        }
        case MOERL_CISPO: {
            const uint32_t flags = with_passes(token_flags(p, token.delta), true);
            return surrogate(token, p.is_gated && !passes(flags, a) ? 0.0f : fminf(fmaxf(ratio, p.lower), p.upper), flags);
        }
        case MOERL_CISPO_SEQUENCE: return surrogate(token, p.is_gated && !passes(c.flags, a) ? 0.0f : c.ratio, c.flags);
        case MOERL_VESPO: return surrogate(token, a >= 0.0f ? c.ratio : c.gradient, 0u);
        case MOERL_SAPO: return soft_ratio(p, token, ratio);
        case MOERL_DPPO_TV:
        case MOERL_DPPO_KL: {
            const uint32_t flags = with_passes(trust_flags(p, token), true);
            return surrogate(token, passes(flags, a) ? fminf(ratio, p.cap) : 0.0f, flags);
        }
        case MOERL_MINIRL: {
            const uint32_t flags = with_passes(token_flags(p, token.delta), true);
            return surrogate(token, passes(flags, a) ? expf(saturate(p, token.from_rollout)) : 0.0f, flags);
        }
        case MOERL_TOPR: return surrogate(token, a > 0.0f ? 1.0f : fminf(ratio, 1.0f), flag_if(ratio > 1.0f, MOERL_CAPPED));
        case MOERL_TIS_LOSS: return surrogate(token, fminf(ratio, 1.0f), flag_if(ratio > 1.0f, MOERL_ABOVE | MOERL_CAPPED));
        case MOERL_POLICY_GRADIENT: return surrogate(token, 1.0f, 0u);
        case MOERL_SQUARE_PENALTY: {
            Policy r = surrogate(token, 1.0f, 0u);
            r.value = fmaf(0.5f * p.positive_rate * token.delta, token.delta, r.value);
            r.slope = fmaf(p.positive_rate, token.delta, r.slope);
            return r;
        }
        case MOERL_KL_COV: return penalised_ratio(p, token, ratio);
        case MOERL_GMPO: {
            const uint32_t flags = with_passes(token_flags(p, token.delta), true);
            const float pull = passes(flags, a) ? c.ratio : 0.0f;
            return {0.0f, 0.0f, pull, flags};
        }
        // gspo, sequence sapo: the segment's gradient, whatever the token.
        default: return {0.0f, 0.0f, 0.0f, c.flags};
    }
}

// True where the token's share of the segment's gradient is its own.
MOERL_DEVICE bool shares_gradient(const MoerlObjective& p, const Token<true>& token, const Policy& made) {
    if (p.variant == MOERL_GMPO) return token.is_kept && passes(made.flags, token.advantage);
    return p.variant == MOERL_GSPO || p.variant == MOERL_SAPO_SEQUENCE;
}

// An estimate of the divergence from the reference policy.
struct Divergence {
    float value, slope;
    bool is_bounded;
};

MOERL_DEVICE Divergence plain_divergence(const MoerlObjective& p, float to_ref) {
    // The clamped function, whose slope is 0 outside.
    const float x = fminf(fmaxf(to_ref, -p.kl_input_clamp), p.kl_input_clamp);
    Divergence r;
    switch (p.kl_form) {
        case MOERL_KL_K1: r = {-x, 1.0f, false}; break;
        case MOERL_KL_ABS: r = {fabsf(x), x > 0.0f ? -1.0f : x < 0.0f ? 1.0f : 0.0f, false}; break;
        case MOERL_KL_K2: r = {0.5f * x * x, -x, false}; break;
        default: r = {k3_of(x), -expm1f(x), false};
    }
    r.is_bounded = x != to_ref || fabsf(r.value) > p.kl_output_clamp;
    r.value = fminf(fmaxf(r.value, -p.kl_output_clamp), p.kl_output_clamp);
    if (r.is_bounded) r.slope = 0.0f;
    return r;
}

MOERL_DEVICE Divergence divergence_of(const MoerlObjective& p, const Token<true>& token, const MoerlCoefficient& c, float ratio) {
    Divergence r = plain_divergence(p, token.to_ref);
    if (p.kl_form == MOERL_KL_K3_TOKEN) {
        // k3 - expm1(x) is -x: the sum of both slopes, where neither is bounded, without its cancellation.
        const bool moves = is_inside(p, token.delta);
        const float slope = moves && !r.is_bounded ? -token.to_ref : (moves ? r.value : 0.0f) + r.slope;
        r.value = times(r.value, ratio);
        r.slope = times(slope, ratio);
    } else if (p.kl_form == MOERL_KL_K3_SEQUENCE) {
        r.value = times(r.value, c.sequence_ratio);
        r.slope = times(r.slope, c.sequence_ratio);
    }
    if (p.kl_straight_through) r.slope = -token.to_ref;
    return r;
}
