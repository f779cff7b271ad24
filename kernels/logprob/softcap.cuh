// The softcap u = C * tanh(logit_scale * x / C) of a logit, and its slope. It is increasing, so the largest logit is the largest after it.
#pragma once

#include "row.cuh"

// No softcap, known to the compiler.
struct NoCap {
    MOERL_DEVICE float of(float x) const { return x; }
    template <int COUNT> MOERL_DEVICE void apply(float (&)[COUNT], float) const {}
};

// A softcap, or none where the limit is 0: one branch per pack.
struct Cap {
    float limit;  // C
    float scale;  // logit_scale / C

    MOERL_DEVICE bool is_on() const { return limit > 0.0f; }
    // -inf, +inf and NaN pass.
    MOERL_DEVICE float limited(float x) const {
        const float u = limit * tanhf(x * scale);
        return fabsf(x) < INFINITE ? u : x;
    }
    MOERL_DEVICE float of(float x) const { return is_on() ? limited(x) : x; }
    // As computed, tanh is not quite increasing: nothing may pass the largest.
    template <int COUNT> MOERL_DEVICE void apply(float (&x)[COUNT], float max) const {
        if (!is_on()) return;
        MOERL_UNROLL
        for (int i = 0; i < COUNT; i++) x[i] = fminf(limited(x[i]), max);
    }
    // du/dx without logit_scale, 1 - tanh^2, without the cancellation; 0 at infinities.
    MOERL_DEVICE float slope(float x) const {
        const float w = exp2_approx(fabsf(x * scale) * static_cast<float>(-2.0 * LOG2_E));
        const float r = 1.0f / (1.0f + w);
        return 4.0f * w * r * r;
    }
};

template <class Call> MOERL_DEVICE Cap cap_of(const Call& p) { return {p.softcap, p.cap_scale}; }
