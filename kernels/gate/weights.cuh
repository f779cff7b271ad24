// From the logits of the slots to weights, and from the gradient of the weights to that of the slots' logits. Native and forced rows,
// forward and backward all come through here.
#pragma once

#include "score.cuh"
#include "slots.cuh"

// What the slots of a row came to.
template <class Slots> struct SlotWeights {
    float normalized[Slots::SLOTS];  // before scaling
    bool under_floor;                // the scores sum to less than the floor that divides them
    bool usable;                     // every weight is a finite number
};
template <int LANES> using Weights = SlotWeights<Group<LANES>>;

template <class Slots> MOERL_DEVICE void softmax_of_slots(float (&x)[Slots::SLOTS], uint32_t top_k) {
    // Infinity minus itself is NaN: +inf, or -inf throughout, comes out as NaN.
    const float most = Slots::max(x, top_k);
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) x[s] = Slots::slot(s) < top_k ? exp_of(x[s] - most) : 0.0f;
    const float inverse = inverse_of(Slots::sum(x, top_k));
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) x[s] *= inverse;
}

// softmax_selected without softcap, which takes little, without the questions of the other scores.
template <class Slots>
MOERL_DEVICE SlotWeights<Slots> weigh_by_softmax(const MoerlGateRouter& router, const float (&selected)[Slots::SLOTS]) {
    SlotWeights<Slots> w;
    w.under_floor = false;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        w.normalized[s] = Slots::slot(s) < router.top_k ? selected[s] : -INFINITY;
    }
    softmax_of_slots<Slots>(w.normalized, router.top_k);
    bool finite = true;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const bool dead = Slots::slot(s) >= router.top_k;
        finite = finite & (dead | is_finite(w.normalized[s] * router.scaling_factor));  // without branches
    }
    w.usable = !Slots::any_of(!finite);
    return w;
}

// `selected`: the slots' logits before the softcap. `lse` matters to softmax over all alone. Called by whole warps.
template <class Slots>
MOERL_DEVICE SlotWeights<Slots> weigh_slots(const MoerlGateRouter& router, const float (&selected)[Slots::SLOTS], float lse) {
    const uint32_t top_k = router.top_k;
    SlotWeights<Slots> w;
    w.under_floor = false;
    float (&n)[Slots::SLOTS] = w.normalized;
    const bool in_logs = router.renormalize == MOERL_GATE_RENORMALIZE_EXACT;
    const bool of_slots = router.score == MOERL_GATE_SOFTMAX_SELECTED || in_logs;
    float scores[Slots::SLOTS], logs[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const bool live = Slots::slot(s) < top_k;
        const float x = live ? capped(selected[s], router.softcap) : 0.0f;
        logs[s] = x;
        if (in_logs) logs[s] = router.score == MOERL_GATE_SIGMOID ? -softplus(-x) : 0.5f * log_softplus(x);
        if (!live) logs[s] = -INFINITY;
        scores[s] = live && !of_slots ? score_of(router.score, x, lse) : 0.0f;
        n[s] = scores[s];
    }
    bool sums_to_one = of_slots;
    if (!of_slots && router.renormalize != MOERL_GATE_RENORMALIZE_NONE) {
        const float sum = Slots::sum(scores, top_k);
        float divisor = sum;
        if (router.renormalize == MOERL_GATE_RENORMALIZE_ADD_EPS) divisor = sum + router.renormalize_by;
        if (router.renormalize == MOERL_GATE_RENORMALIZE_GUARD) divisor = sum > 0.0f ? sum : 1.0f;
        if (router.renormalize == MOERL_GATE_RENORMALIZE_FLOOR) {
            w.under_floor = sum < router.renormalize_by;
            divisor = w.under_floor ? router.renormalize_by : sum;
            // exp(x − lse) summed and divided is 0/0 where the slots lie far below the row; the softmax of the slots is not.
            sums_to_one = router.score == MOERL_GATE_SOFTMAX && !w.under_floor;
        }
        // Scores, floors and epsilons are 0 or normal numbers, and a divisor has one that is not 0.
        const float inverse = inverse_of(divisor);
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) n[s] = scores[s] * inverse;
    }
    // Rows of one warp may differ here, and all its lanes must call.
    if (any(sums_to_one, FULL_WARP)) {
        softmax_of_slots<Slots>(logs, top_k);
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) n[s] = sums_to_one ? logs[s] : n[s];
    }
    bool finite = router.score != MOERL_GATE_SOFTMAX || is_finite(lse);
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (Slots::slot(s) < top_k) finite = finite && is_finite(n[s] * router.scaling_factor);
    }
    w.usable = !Slots::any_of(!finite);
    return w;
}
template <int LANES>
MOERL_DEVICE Weights<LANES> weigh(const MoerlGateRouter& router, const float (&selected)[Group<LANES>::SLOTS], float lse) {
    return weigh_slots<Group<LANES>>(router, selected, lse);
}

// The gradient of a row by its slots' logits, and what the other experts of softmax over all need.
template <class Slots> struct Gradient {
    float slot[Slots::SLOTS];
    float inner;       // ⟨g, n⟩
    bool reaches_all;  // expert e outside the slots has the gradient −p_e ⟨g, n⟩, not 0
};

// `upstream`: the gradient by the weights, 0 from slot k on. Called by whole warps.
template <class Slots>
MOERL_DEVICE Gradient<Slots> differentiate(const MoerlGateRouter& router, const SlotWeights<Slots>& w, const float (&selected)[Slots::SLOTS],
                                           const float (&upstream)[Slots::SLOTS], float lse) {
    const uint32_t top_k = router.top_k, score = router.score, rule = router.renormalize;
    Gradient<Slots> gradient;
    float g[Slots::SLOTS], products[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const bool live = Slots::slot(s) < top_k;
        g[s] = live ? router.scaling_factor * upstream[s] : 0.0f;
        products[s] = live ? g[s] * w.normalized[s] : 0.0f;
    }
    gradient.inner = Slots::sum(products, top_k);
    gradient.reaches_all =
        score == MOERL_GATE_SOFTMAX && (rule != MOERL_GATE_RENORMALIZE_FLOOR || w.under_floor);
    // The slots do not see each other where nothing divides by their sum.
    const bool apart = score == MOERL_GATE_RAW ||
                       (score != MOERL_GATE_SOFTMAX && score != MOERL_GATE_SOFTMAX_SELECTED &&
                        (rule == MOERL_GATE_RENORMALIZE_NONE || (rule == MOERL_GATE_RENORMALIZE_FLOOR && w.under_floor)));
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        const float x = capped(selected[s], router.softcap);
        float slope = 1.0f;
        if (score == MOERL_GATE_SIGMOID) slope = sigmoid(-x);
        if (score == MOERL_GATE_SQRT_SOFTPLUS) slope = sqrt_softplus_slope(x);
        float d = w.normalized[s] * slope * (apart ? g[s] : g[s] - gradient.inner);
        if (gradient.reaches_all) d = fmaf(w.normalized[s], g[s], -exp_of(x - lse) * gradient.inner);
        if (score == MOERL_GATE_RAW) d = g[s];
        gradient.slot[s] = d * softcap_slope(selected[s], router.softcap);
    }
    return gradient;
}
