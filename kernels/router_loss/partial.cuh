// Sums over rows: panels of at most MOERL_PANEL rows in f32, then the panels of each segment, in order, in f64.
#pragma once

#include "../block.cuh"
#include "row.cuh"

constexpr int PARTIAL_THREADS = 256;

// The row has weights: it is not padding, not marked, and its ids are experts. Called by whole warps.
MOERL_DEVICE bool row_counts(const MoerlRouterLoss& p, uint64_t row, uint64_t row_count) {
    if (row >= row_count || (p.token_mask != nullptr && load(p.token_mask + row) == 0)) return false;
    bool counts = true;
    if (lane_index() < p.router.top_k) {
        const uint64_t at = row * p.router.top_k + lane_index();
        if (p.selected_logits != nullptr) counts = bits_of(load(p.selected_logits + at)) != 0xffffffffu;
        if (p.topk_ids != nullptr) counts = counts && static_cast<uint32_t>(load(p.topk_ids + at)) < p.router.experts;
    }
    return all(counts, FULL_WARP);
}

// Counts the k best of a staged row without NaN, ties by id. The row's logits are spent.
MOERL_DEVICE void count_best(const MoerlRouterLoss& p, float* row, uint32_t* counts) {
    for (uint32_t k = 0; k < p.router.top_k; k++) {
        float most = -INFINITY;
        uint32_t best = p.router.experts;  // behind every expert
        for (uint32_t c = lane_index(); c < p.router.experts; c += WARP) {
            const float x = row[c];
            if (x == x && (x > most || best == p.router.experts)) {
                most = x;
                best = c;
            }
        }
        MOERL_UNROLL
        for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
            const float other = shuffle_xor(most, lanes);
            const uint32_t other_best = shuffle_xor(best, lanes);
            const bool wins = other > most || (other == most && other_best < best);
            most = wins ? other : most;
            best = wins ? other_best : best;
        }
        if (lane_index() == best % WARP) {
            atomic_add(counts + best, 1u);
            row[best] = f32_of(0x7fc00000u);  // taken
        }
        sync_warp();
    }
}

// A block's dynamic shared memory: for each warp a row, its reference, and its column sums.
struct PanelPlace {
    float* row;
    float* sums;
    uint32_t padded;

    MOERL_DEVICE PanelPlace(float* shared, uint32_t experts, bool has_reference) {
        padded = (experts + 7) / 8 * 8;
        row = shared + static_cast<size_t>(warp_index()) * padded * (has_reference ? 3 : 2);
        sums = row + static_cast<size_t>(padded) * (has_reference ? 2 : 1);
    }
};

// One block a panel. Row r belongs to warp r % warps, and the number of warps depends on E alone; so does the tree of every sum.
MOERL_DEVICE void sum_panel(const MoerlRouterLoss& p) {
    MOERL_SHARED(MoerlPanelSums, warps, PARTIAL_THREADS / WARP);
    MOERL_DYNAMIC_SHARED(float, shared);
    const uint32_t experts = p.router.experts, warp_count = block_size() / WARP;
    const uint64_t begin = load(&p.panels[block_index()].row);
    const uint32_t rows = load(&p.panels[block_index()].rows);
    const uint64_t columns = static_cast<uint64_t>(block_index()) * experts;
    uint64_t row_count = p.rows;
    if (p.row_count != nullptr) {
        const int64_t given = load(p.row_count);
        if (given < static_cast<int64_t>(p.rows)) row_count = static_cast<uint64_t>(given < 0 ? 0 : given);
    }
    const PanelPlace place(shared, experts, p.ref_logits != nullptr);
    const Staged<float, WARP> staged(reinterpret_cast<unsigned char*>(place.row), experts);
    const Staged<float, WARP> reference(reinterpret_cast<unsigned char*>(staged.keys), experts);
    for (uint32_t e = thread_index(); e < experts; e += block_size()) store(p.panel_counts + columns + e, 0u);
    for (uint32_t e = lane_index(); e < experts; e += WARP) place.sums[e] = 0.0f;
    MoerlPanelSums sums = {0.0, 0.0, 0.0, 0, 0};
    sync_block();

    for (uint32_t r = warp_index(); r < rows; r += warp_count) {
        const uint64_t row = begin + r;
        if (!row_counts(p, row, row_count)) continue;
        stage_any_row<WARP>(p.router_logits, p.router_logits_element, static_cast<int64_t>(row) * p.router_logits_stride, experts, true,
                            staged.logits);
        stage_any_row<WARP>(p.ref_logits, p.ref_logits_element, static_cast<int64_t>(row) * p.ref_logits_stride, experts,
                            p.ref_logits != nullptr, reference.logits);
        sync_warp();
        const RouterRow facts =
            router_row<WARP>(staged, reference, p.ref_logits != nullptr, p.router, nullptr, true, true, 0.0f, true);
        sums.rows += facts.usable ? 1u : 0u;
        sums.nonfinite += facts.usable ? 0u : 1u;
        if (facts.usable) {
            sums.lse_squared += static_cast<double>(facts.lse) * static_cast<double>(facts.lse);
            sums.entropy += static_cast<double>(facts.entropy);
            sums.kl += static_cast<double>(facts.kl);
            for (uint32_t c = lane_index(); c < experts; c += WARP) {
                const float y = capped(staged.logit(c), p.router.softcap);
                place.sums[c] += score_over_all(p.router.score, y, facts.lse) * facts.per_score;
            }
            if (p.counts_best != 0) count_best(p, staged.logits, p.panel_counts + columns);
            else if (lane_index() < p.router.top_k) {
                atomic_add(p.panel_counts + columns + static_cast<uint32_t>(load(p.topk_ids + row * p.router.top_k + lane_index())), 1u);
            }
        }
        sync_warp();  // before the next row lands
    }

    if (lane_index() == 0) warps[warp_index()] = sums;
    sync_block();
    const uint32_t stride = place.padded * (p.ref_logits != nullptr ? 3 : 2);
    const float* const first = shared + static_cast<size_t>(place.padded) * (p.ref_logits != nullptr ? 2 : 1);
    for (uint32_t e = thread_index(); e < experts; e += block_size()) {
        float sum = 0.0f;
        for (uint32_t w = 0; w < warp_count; w++) sum += first[static_cast<size_t>(w) * stride + e];
        store(p.panel_probabilities + columns + e, sum);
    }
    if (thread_index() != 0) return;
    MoerlPanelSums all = {0.0, 0.0, 0.0, 0, 0};
    for (uint32_t w = 0; w < warp_count; w++) {
        all.lse_squared += warps[w].lse_squared;
        all.entropy += warps[w].entropy;
        all.kl += warps[w].kl;
        all.rows += warps[w].rows;
        all.nonfinite += warps[w].nonfinite;
    }
    MoerlPanelSums* const to = p.panel_sums + block_index();
    store(&to->lse_squared, all.lse_squared);
    store(&to->entropy, all.entropy);
    store(&to->kl, all.kl);
    store(&to->rows, all.rows);
    store(&to->nonfinite, all.nonfinite);
}

template <class V> MOERL_DEVICE void put(V* to, V value, bool accumulate) { store(to, accumulate ? load(to) + value : value); }

// One thread an expert of a segment; the first block has the totals too.
MOERL_DEVICE void merge_panels(const MoerlRouterLoss& p) {
    const bool accumulate = p.accumulate != 0;
    const uint64_t experts = p.router.experts, chunks = (experts + block_size() - 1) / block_size();
    const uint64_t segment = block_index() / chunks, e = block_index() % chunks * block_size() + thread_index();
    const bool exists = segment < p.segments;
    const uint32_t begin = exists ? load(p.first_panels + segment) : 0, end = exists ? load(p.first_panels + segment + 1) : 0;
    if (exists && e < experts) {
        double sum = 0.0;
        uint64_t count = 0;
        for (uint64_t i = begin; i < end; i++) {
            sum += static_cast<double>(load(p.panel_probabilities + i * experts + e));
            count += load(p.panel_counts + i * experts + e);
        }
        put(p.probabilities + segment * experts + e, sum, accumulate);
        put(p.counts + segment * experts + e, count, accumulate);
    }
    if (exists && e == 0) {
        uint64_t rows = 0;
        for (uint64_t i = begin; i < end; i++) rows += load(&p.panel_sums[i].rows);
        put(p.segment_rows + segment, rows, accumulate);
    }
    if (block_index() != 0 || thread_index() != 0) return;
    MoerlPanelSums all = {0.0, 0.0, 0.0, 0, 0};
    uint64_t nonfinite = 0;
    for (uint64_t i = 0; i < p.panel_count; i++) {
        all.lse_squared += load(&p.panel_sums[i].lse_squared);
        all.entropy += load(&p.panel_sums[i].entropy);
        all.kl += load(&p.panel_sums[i].kl);
        nonfinite += load(&p.panel_sums[i].nonfinite);
    }
    put(p.totals, all.lse_squared, accumulate);
    put(p.totals + 1, all.entropy, accumulate);
    put(p.totals + 2, all.kl, accumulate);
    put(p.nonfinite, nonfinite, accumulate);
}
