// The gradient where it reaches every expert: softmax over all, the surrogate, the regularisers. The row is read once, into shared memory, and its sums
// are those of the forward pass.
#pragma once

#include "../router_loss/row.cuh"
#include "backward.cuh"

// The segment of a row: the last that begins at or before it.
MOERL_DEVICE uint64_t segment_of(const int64_t* offsets, uint64_t segments, uint64_t row) {
    if (offsets == nullptr) return 0;
    uint64_t low = 0, high = segments;  // offsets[low] <= row < offsets[high]
    while (high - low > 1) {
        const uint64_t middle = (low + high) / 2;
        if (static_cast<uint64_t>(load(offsets + middle)) <= row) low = middle;
        else high = middle;
    }
    return low;
}

// What the experts of a row share for the terms that reach all of them:
//   dx_e = p_e (constant + per_log log p_e) - per_reference p_ref_e + balance P_e rho_e (q_e - sum of q P)
struct Everywhere {
    RouterRow row;
    const float* q;       // of the row's segment; null: no balance
    float constant;
    float per_log;
    float per_reference;
    float balance;
    bool any;
};

// Called by whole warps.
template <int LANES>
MOERL_DEVICE Everywhere regularize(const MoerlGateBackward& p, const Staged<float, LANES>& staged, const Staged<float, LANES>& reference,
                                   uint64_t row, bool wanted) {
    const MoerlRouterTerms& terms = p.terms;
    Everywhere all = {{0.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0.0f, false}, nullptr, 0.0f, 0.0f, 0.0f, 0.0f, false};
    const float saved = p.lse != nullptr && wanted ? load(p.lse + row) : 0.0f;
    const bool has_reference = terms.ref_logits != nullptr;
    if (terms.q != nullptr && wanted) all.q = terms.q + segment_of(terms.offsets, terms.segments, row) * p.router.experts;
    all.row = router_row<LANES>(staged, reference, has_reference, p.router, all.q, wanted, p.lse == nullptr, saved, terms.coefficients != nullptr);
    if (terms.coefficients == nullptr || !all.row.usable) return all;
    const float z = load(terms.coefficients + MOERL_ROUTER_Z), entropy = load(terms.coefficients + MOERL_ROUTER_ENTROPY);
    all.per_reference = has_reference ? load(terms.coefficients + MOERL_ROUTER_KL) : 0.0f;
    all.balance = all.q != nullptr ? load(terms.coefficients + MOERL_ROUTER_BALANCE) : 0.0f;
    all.constant = z * all.row.lse + entropy * all.row.entropy + all.per_reference;
    all.per_log = entropy;
    all.any = true;
    return all;
}

// Of the expert in column `c`, before the softcap's slope.
template <int LANES>
MOERL_DEVICE float everywhere_at(const MoerlGateBackward& p, const Everywhere& all, const Staged<float, LANES>& reference, uint32_t c, float y,
                                 float probability) {
    float d = probability * all.constant;
    if (probability > 0.0f) d = fmaf(probability * all.per_log, y - all.row.lse, d);
    if (all.per_reference != 0.0f) {
        d = fmaf(-all.per_reference, exp_of(capped(reference.logit(c), p.router.softcap) - all.row.ref_lse), d);
    }
    if (all.balance != 0.0f) {
        const float share = score_over_all(p.router.score, y, all.row.lse) * all.row.per_score;
        d = fmaf(all.balance * share * log_score_slope(p.router.score, y), load(all.q + c) - all.row.inner, d);
    }
    return d;
}

// dx_j of the surrogate at the slots: -c A g~_j, with g~ the normalised weights divided by their sum. Called by whole warps.
template <int LANES>
MOERL_DEVICE void add_surrogate_of_slots(const MoerlGateBackward& p, const RowInputs<Group<LANES>>& row, float surrogate, RowGradient<Group<LANES>>& r) {
    using Slots = Group<LANES>;
    float share[Slots::SLOTS];
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) share[s] = Slots::slot(s) < p.router.top_k ? r.weights.normalized[s] : 0.0f;
    const float sum = Slots::sum(share, p.router.top_k);
    // Weights under a floor above 1 may be denormal, which a reciprocal takes for 0.
    const float up = sum < 0x1p-100f ? 0x1p64f : 1.0f;
    const float inverse = sum > 0.0f ? inverse_of(sum * up) : 0.0f;
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        r.gradient.slot[s] -= surrogate * (share[s] * up * inverse) * softcap_slope(row.selected[s], p.router.softcap);
    }
}

template <class T, int LANES> MOERL_DEVICE void gate_backward_row(const MoerlGateBackward& p) {
    using Slots = Group<LANES>;
    constexpr uint32_t ROWS = WARP / LANES;
    MOERL_SHARED(uint32_t, shared_ids, BACKWARD_THREADS / LANES * MAX_SLOTS);
    MOERL_SHARED(float, shared_values, BACKWARD_THREADS / LANES * MAX_SLOTS);
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    const MoerlGateRouter& router = p.router;
    const uint32_t top_k = router.top_k, experts = router.experts;
    const uint32_t row_of_block = warp_index() * ROWS + lane_index() / LANES;
    const SharedSlots<LANES> slots = {shared_ids + row_of_block * MAX_SLOTS, shared_values + row_of_block * MAX_SLOTS};
    const uint64_t row = static_cast<uint64_t>(block_index()) * (block_size() / LANES) + row_of_block;
    const bool accumulate = p.accumulate != 0;
    RowInputs<Group<LANES>> inputs = read_inputs<Slots>(p, row, false);

    unsigned char* const place = shared + static_cast<size_t>(row_of_block) * p.stage_bytes;
    const Staged<float, LANES> staged(place, experts);
    stage_any_row<LANES>(p.router_logits, p.router_logits_element, static_cast<int64_t>(row) * p.router_logits_stride, experts,
                         !inputs.absent, staged.logits);
    // Behind the row, where its keys would be.
    const Staged<float, LANES> reference(reinterpret_cast<unsigned char*>(staged.keys), experts);
    stage_any_row<LANES>(p.terms.ref_logits, p.terms.ref_logits_element, static_cast<int64_t>(row) * p.terms.ref_logits_stride, experts,
                         p.terms.ref_logits != nullptr && !inputs.absent, reference.logits);
    sync_warp();
    if (p.selected_logits == nullptr && !inputs.absent) {
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (Slots::slot(s) < top_k) inputs.selected[s] = as_saved(staged.logit(inputs.ids[s]));
        }
    }
    Everywhere all = regularize<LANES>(p, staged, reference, row, !inputs.absent);
    RowGradient<Group<LANES>> r = row_gradient<Slots>(p, inputs, all.row.lse);
    if (p.advantages != nullptr) {
        float surrogate = 0.0f;
        if (r.differentiable && is_finite(all.row.lse)) {
            const float weight = p.advantage_weights == nullptr ? 1.0f : load(p.advantage_weights + row);
            surrogate = p.surrogate_coefficient * weight * load(p.advantages + row);
            all.constant += surrogate;
            all.any = true;
        }
        add_surrogate_of_slots<LANES>(p, inputs, surrogate, r);
    }
    slots.put(inputs, r, top_k);
    sync_warp();

    const uint32_t mine = slots.template of_lane<PACK<T>>(top_k);
    const bool reaches_all = r.differentiable && r.gradient.reaches_all;
    const float elsewhere = !r.differentiable && (router.score == MOERL_GATE_SOFTMAX || p.advantages != nullptr) ? r.instead : 0.0f;
    T* const target = static_cast<T*>(p.d_router_logits) + static_cast<int64_t>(row) * p.d_router_logits_stride;
    for (uint32_t first = Slots::lane() * PACK<T>; row < p.rows && first < experts; first += LANES * PACK<T>) {
        if (accumulate && inputs.absent) continue;
        const uint32_t count = experts - first < PACK<T> ? experts - first : PACK<T>;
        float d[PACK<T>], more[PACK<T>];
        MOERL_UNROLL
        for (int j = 0; j < PACK<T>; j++) {
            d[j] = elsewhere;
            more[j] = 0.0f;
            const uint32_t column = first + static_cast<uint32_t>(j);
            if (!(reaches_all || all.any) || column >= experts) continue;
            const float x = staged.logit(column), y = capped(x, router.softcap), slope = softcap_slope(x, router.softcap);
            const float probability = exp_of(y - all.row.lse);
            if (reaches_all) d[j] = -probability * r.gradient.inner * slope;
            if (all.any) more[j] = everywhere_at<LANES>(p, all, reference, column, y, probability) * slope;
        }
        for (uint32_t left = mine; left != 0; left &= left - 1) {
            const int slot = lowest_set(left);
            const uint32_t offset = slots.ids[slot] - first;
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) d[j] = offset == static_cast<uint32_t>(j) ? slots.values[slot] : d[j];
        }
        MOERL_UNROLL
        for (int j = 0; j < PACK<T>; j++) d[j] += more[j];
        store_pack(target + first, count, accumulate, d);
    }
}
