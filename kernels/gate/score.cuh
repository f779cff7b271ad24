// Exponentials and the scores made of them, each to a few units in the last place of f32 over the whole range.
#pragma once

#include "../device.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.693147181f;

// e^x for x that is not far above 0. The product x·log2(e) is rounded, which exp2 would magnify by |x|; what rounding lost is put back.
MOERL_DEVICE float exp_of(float x) {
    const float t = x * LOG2_E;
    const float y = exp2_approx(t);
    // log2(e) − LOG2_E = 1.925963e-8. Beyond |t| = 200 the result is 0, infinite or NaN, and there is nothing to put back.
    const float lost = fabsf(t) < 200.0f ? fmaf(x, 1.925963e-8f, fmaf(x, LOG2_E, -t)) : 0.0f;
    const float r = fmaf(y, lost * LN_2, y);
    return r < 1.17549435e-38f ? 0.0f : r;  // as exp2_approx: 0 or a normal number
}

// 1/x to the last place for normal x, and exactly 1 for 1: the approximation and one step of Newton's, without a division's slow path.
MOERL_DEVICE float inverse_of(float x) {
    const float r = reciprocal_approx(x);
    return fmaf(r, fmaf(-x, r, 1.0f), r);
}

// 1 / (1 + e^-x), by the exponential that cannot overflow; sigmoid(-x) is 1 - sigmoid(x) without the cancellation.
MOERL_DEVICE float sigmoid(float x) {
    const float t = exp_of(-fabsf(x));
    return (x < 0.0f ? t : 1.0f) * reciprocal_approx(1.0f + t);
}

// log(1 + e^x). log1p keeps the e^x that 1 + e^x would drop.
MOERL_DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(exp_of(-fabsf(x))); }

// Below this, softplus(x) = e^x to the last place, and its root is better taken in the exponent, before e^x underflows.
constexpr float SOFTPLUS_IS_EXP = -16.0f;

MOERL_DEVICE float log_softplus(float x) { return x < SOFTPLUS_IS_EXP ? x : logf(softplus(x)); }
MOERL_DEVICE float sqrt_softplus(float x) {
    if (x != x) return x;
    return x < SOFTPLUS_IS_EXP ? exp_of(0.5f * x) : sqrtf(softplus(x));
}
// The derivative of log sqrt_softplus(x), in (0, 1/2].
MOERL_DEVICE float sqrt_softplus_slope(float x) {
    return x < SOFTPLUS_IS_EXP ? 0.5f : sigmoid(x) * reciprocal_approx(2.0f * softplus(x));
}

// Of a logit after the softcap; `lse` is for the softmax over all.
MOERL_DEVICE float score_of(uint32_t score, float x, float lse) {
    if (score == MOERL_GATE_SOFTMAX) return exp_of(x - lse);
    if (score == MOERL_GATE_SIGMOID) return sigmoid(x);
    if (score == MOERL_GATE_SQRT_SOFTPLUS) return sqrt_softplus(x);
    return x;
}

// The softcap c·tanh(x/c) of a logit; c = 0: none.
MOERL_DEVICE float capped(float x, float softcap) { return softcap == 0.0f ? x : softcap * tanhf(x * reciprocal_approx(softcap)); }
// Its derivative. 1 - tanh² is the same, and is 0 where tanh has rounded to 1.
MOERL_DEVICE float softcap_slope(float x, float softcap) {
    if (softcap == 0.0f) return 1.0f;
    const float w = exp_of(-2.0f * fabsf(x) * reciprocal_approx(softcap));
    const float r = reciprocal_approx(1.0f + w);
    return 4.0f * w * r * r;
}
