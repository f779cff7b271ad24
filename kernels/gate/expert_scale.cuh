// The gradient of expert_scale: d_e = sum over the tokens of dw times the weight before that factor. Panels of MOERL_PANEL rows add their rows in
// order, in f32; the panels are added in order, in f64.
#pragma once

#include "backward.cuh"

constexpr int PANEL_LANES = 8;
constexpr int PANEL_ROWS_AT_ONCE = BACKWARD_THREADS / PANEL_LANES;

// One block a panel. All warps make the products of 32 rows; then the first warp adds them, row after row, to its column sums: the experts of
// a row are distinct, so its lanes never meet.
MOERL_DEVICE void expert_scale_panel(const MoerlGateBackward& p) {
    using Slots = Group<PANEL_LANES>;
    MOERL_SHARED(uint32_t, ids, PANEL_ROWS_AT_ONCE * MAX_SLOTS);
    MOERL_SHARED(float, products, PANEL_ROWS_AT_ONCE * MAX_SLOTS);
    MOERL_DYNAMIC_SHARED(float, sums);
    const uint32_t top_k = p.router.top_k, experts = p.router.experts;
    const uint32_t row_at_once = thread_index() / PANEL_LANES;
    const uint64_t begin = static_cast<uint64_t>(block_index()) * MOERL_PANEL;
    const uint64_t end = begin + MOERL_PANEL < p.rows ? begin + MOERL_PANEL : p.rows;
    for (uint32_t e = thread_index(); e < experts; e += block_size()) sums[e] = 0.0f;
    for (uint64_t first = begin; first < end; first += PANEL_ROWS_AT_ONCE) {
        const uint64_t row = first + row_at_once;
        const RowInputs<Slots> inputs = read_inputs<Slots>(p, row, true);
        const float lse = p.lse != nullptr && !inputs.absent ? load(p.lse + row) : 0.0f;
        const RowGradient<Slots> r = row_gradient<Slots>(p, inputs, lse);
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s++) {
            if (Slots::slot(s) >= top_k) continue;
            const uint32_t at = row_at_once * MAX_SLOTS + Slots::slot(s);
            ids[at] = inputs.ids[s];
            products[at] = r.differentiable ? inputs.upstream[s] * (r.weights.normalized[s] * p.router.scaling_factor) : r.instead;
        }
        sync_block();
        if (warp_index() == 0) {
            const uint64_t rows = end - first < PANEL_ROWS_AT_ONCE ? end - first : PANEL_ROWS_AT_ONCE;
            for (uint32_t i = 0; i < rows; i++) {
                const uint32_t at = i * MAX_SLOTS + lane_index();
                // A row that goes nowhere brings zeros, and its ids are not distinct.
                if (lane_index() < top_k && products[at] != 0.0f) sums[ids[at]] += products[at];
                sync_warp();
            }
        }
        sync_block();
    }
    sync_block();
    for (uint32_t e = thread_index(); e < experts; e += block_size()) {
        store(p.expert_scale_panels + static_cast<uint64_t>(block_index()) * experts + e, sums[e]);
    }
}

// One thread an expert.
MOERL_DEVICE void expert_scale_finish(const MoerlGateBackward& p) {
    const uint32_t experts = p.router.experts, e = block_index() * block_size() + thread_index();
    if (e >= experts) return;
    const uint64_t panels = (p.rows + MOERL_PANEL - 1) / MOERL_PANEL;
    double sum = 0.0;
    for (uint64_t i = 0; i < panels; i++) sum += static_cast<double>(load(p.expert_scale_panels + i * experts + e));
    store(p.d_expert_scale + e, static_cast<float>(sum));
}
