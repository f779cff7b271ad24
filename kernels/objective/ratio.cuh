// The bounds of a ratio.
#pragma once

#include "../block.cuh"
#include "unit.cuh"

MOERL_DEVICE float saturate(const MoerlObjective& p, float x) { return fminf(fmaxf(x, p.saturation_low), p.saturation_high); }

MOERL_DEVICE bool is_inside(const MoerlObjective& p, float x) { return p.saturation_low <= x && x <= p.saturation_high; }

MOERL_DEVICE uint32_t flag_if(bool holds, uint32_t flag) { return holds ? flag : 0u; }

// A factor of 0 leaves nothing, whatever it multiplies: that may be infinite.
MOERL_DEVICE float times(float factor, float x) { return factor == 0.0f ? 0.0f : factor * x; }
MOERL_DEVICE double times(double factor, double x) { return factor == 0.0 ? 0.0 : factor * x; }

// What passes a gradient, beside the flags for where the ratio lies.
MOERL_DEVICE uint32_t with_passes(uint32_t flags, bool inside) {
    const bool positive = inside && (flags & MOERL_ABOVE) == 0;
    const bool negative = inside && (flags & (MOERL_BELOW | MOERL_CAPPED)) == 0;
    return flags | flag_if(positive, MOERL_PASS_POSITIVE) | flag_if(negative, MOERL_PASS_NEGATIVE);
}

MOERL_DEVICE uint32_t flags_of(bool above, bool below, bool capped) {
    return flag_if(above, MOERL_ABOVE) | flag_if(below, MOERL_BELOW) | flag_if(capped, MOERL_CAPPED);
}

// Where the logarithm of a token's ratio lies.
MOERL_DEVICE uint32_t token_flags(const MoerlObjective& p, float delta) {
    return flags_of(delta > p.token_log_upper, delta < p.token_log_lower, delta > p.token_log_cap);
}

// Those of the first three flags that concern an advantage of this sign.
template <class T> MOERL_DEVICE uint32_t clipped_for(uint32_t flags, T advantage) {
    if (advantage > T(0)) return flags & MOERL_ABOVE;
    if (advantage < T(0)) return flags & (MOERL_BELOW | MOERL_CAPPED);
    return 0u;
}

MOERL_DEVICE bool passes(uint32_t flags, float advantage) {
    return (advantage > 0.0f && (flags & MOERL_PASS_POSITIVE) != 0) || (advantage < 0.0f && (flags & MOERL_PASS_NEGATIVE) != 0);
}

// The ratio that a value counts with.
MOERL_DEVICE float bounded_for_positive(const MoerlObjective& p, float ratio) { return fminf(ratio, p.upper); }
MOERL_DEVICE float bounded_for_negative(const MoerlObjective& p, float ratio) { return fminf(fmaxf(ratio, p.lower), p.cap); }

// expm1(x) - x, which is never negative. Near 0 the difference would lose what is left of it, so there it is the series up to x^9, whose
// next term is below 1e-8 of the sum.
MOERL_DEVICE float k3_of(float x) {
    if (!(fabsf(x) < 0.5f)) return expm1f(x) - x;
    float r = 2.75573192e-6f;  // 1/9!
    r = fmaf(r, x, 2.48015873e-5f);
    r = fmaf(r, x, 1.98412698e-4f);
    r = fmaf(r, x, 1.38888889e-3f);
    r = fmaf(r, x, 8.33333333e-3f);
    r = fmaf(r, x, 4.16666667e-2f);
    r = fmaf(r, x, 1.66666667e-1f);
    r = fmaf(r, x, 0.5f);
    return r * x * x;
}
