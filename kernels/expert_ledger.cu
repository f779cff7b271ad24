// What the advantages of an expert's tokens come to, and what they and its gradient are normalised by.
//
//   g_te = w_te / sum_e w_te     n_e = tokens     G_e = sum_t g_te     G1_e = sum_t g_te (A_t - K_e)     G2_e = sum_t g_te (A_t - K_e)^2
//   Â_t += (1/L) sum_{e in S_t} g_te clip((A_t - mu_e) / (sd_e + eps), ±C)          scale_e = min(1, C / (|gradient_e| + 1e-6))
//
// Data movement. A block takes a panel of 256 rows and 256 experts, a thread an expert: the rows come to shared memory 32 at a time, and
// what an expert finds of them it adds up in its registers, in the order of the rows. Another kernel adds up the panels in their order. A
// gradient is read once, in packs of 16 bytes, a block a panel of 8192 elements of one expert.
//
// Tricks. Which of 32 rows went to an expert is a word of bits, set by integer additions that may come in any order: so every token is
// looked at by the experts that have it and by no others. f64 throughout: the sums run over all tokens of a step.
#include "block.cuh"
#include "pack.cuh"

constexpr int LEDGER_THREADS = 256;  // rows of a panel, experts of a block
constexpr uint32_t LEDGER_ROWS = 32;
constexpr uint32_t MOST_SLOTS = 32;

MOERL_DEVICE float load_weight(const MoerlExpertLedger& p, uint64_t row, uint32_t slot) {
    const int64_t at = static_cast<int64_t>(row) * p.topk_weights_stride + slot;
    if (p.topk_weights_element == MOERL_BF16) return to_f32(load(static_cast<const bf16*>(p.topk_weights) + at));
    if (p.topk_weights_element == MOERL_F16) return to_f32(load(static_cast<const f16*>(p.topk_weights) + at));
    return load(static_cast<const float*>(p.topk_weights) + at);
}

// What a row's weights are divided by; 0: the row is absent. Rows with a weight or an advantage that is no number are, too.
struct RowShare {
    double sum;
    bool nonfinite;
};
template <class WeightOf> MOERL_DEVICE RowShare share_of_row(uint32_t top_k, float advantage, WeightOf weight_of) {
    double sum = 0.0;
    bool finite = is_finite(advantage);
    for (uint32_t slot = 0; slot < top_k; slot++) {
        const float weight = weight_of(slot);
        finite = finite && is_finite(weight);
        sum += static_cast<double>(weight);
    }
    return {finite ? sum : 0.0, !finite};
}

MOERL_DEVICE bool counts(const MoerlExpertLedger& p, uint64_t row) {
    return row < p.rows && (p.loss_mask == nullptr || load(p.loss_mask + row) != 0);
}

MOERL_KERNEL(expert_ledger_panels, MoerlExpertLedger, LEDGER_THREADS) {
    MOERL_SHARED(int32_t, ids, LEDGER_ROWS * MOST_SLOTS);
    MOERL_SHARED(float, weights, LEDGER_ROWS * MOST_SLOTS);
    MOERL_SHARED(double, sums, LEDGER_ROWS);
    MOERL_SHARED(float, advantages, LEDGER_ROWS);
    MOERL_SHARED(uint32_t, rows_of_expert, LEDGER_THREADS);
    const uint32_t top_k = p.top_k, expert_blocks = (p.experts + LEDGER_THREADS - 1) / LEDGER_THREADS;
    const uint32_t first_expert = block_index() % expert_blocks * LEDGER_THREADS, own = thread_index();
    const uint64_t panel = block_index() / expert_blocks;
    const uint32_t expert = first_expert + own;
    const double shift = expert < p.experts && p.shift != nullptr ? load(p.shift + expert) : 0.0;
    MoerlExpertSums sum = {0, 0.0, 0.0, 0.0};
    uint32_t nonfinite = 0;
    for (uint32_t part = 0; part < MOERL_LEDGER_PANEL / LEDGER_ROWS; part++) {
        const uint64_t first = panel * MOERL_LEDGER_PANEL + part * LEDGER_ROWS;
        rows_of_expert[own] = 0;
        for (uint32_t i = own; i < LEDGER_ROWS * top_k; i += LEDGER_THREADS) {
            const uint64_t row = first + i / top_k;
            const bool is_there = counts(p, row);
            ids[i] = is_there ? load(p.topk_ids + (row * top_k + i % top_k)) : -1;
            weights[i] = is_there ? load_weight(p, row, i % top_k) : 0.0f;
        }
        sync_block();
        if (own < LEDGER_ROWS) {
            advantages[own] = counts(p, first + own) ? load(p.advantages + (first + own)) : 0.0f;
            const RowShare share = share_of_row(top_k, advantages[own], [&](uint32_t slot) { return weights[own * top_k + slot]; });
            sums[own] = share.sum;
            nonfinite += share.nonfinite ? 1u : 0u;
        }
        sync_block();
        for (uint32_t i = own; i < LEDGER_ROWS * top_k; i += LEDGER_THREADS) {
            const uint32_t place = static_cast<uint32_t>(ids[i]) - first_expert;
            // A row names an expert once: the bits add up to their union.
            if (sums[i / top_k] != 0.0 && place < LEDGER_THREADS) shared_atomic_add(rows_of_expert + place, 1u << (i / top_k));
        }
        sync_block();
        for (uint32_t rows = rows_of_expert[own]; rows != 0; rows &= rows - 1) {
            const uint32_t row = static_cast<uint32_t>(lowest_set(rows));
            const double away = static_cast<double>(advantages[row]) - shift;
            for (uint32_t slot = 0; slot < top_k; slot++) {
                if (static_cast<uint32_t>(ids[row * top_k + slot]) != expert) continue;
                const double gate = static_cast<double>(weights[row * top_k + slot]) / sums[row];
                sum.n++;
                sum.gate += gate;
                sum.advantage += gate * away;
                sum.advantage_square += gate * away * away;
            }
        }
        sync_block();
    }
    if (expert < p.experts) {
        MoerlExpertSums* const to = p.panels + (panel * p.experts + expert);
        store(&to->n, sum.n);
        store(&to->gate, sum.gate);
        store(&to->advantage, sum.advantage);
        store(&to->advantage_square, sum.advantage_square);
    }
    // One of the blocks of a panel reports its rows.
    if (first_expert == 0 && nonfinite != 0 && p.nonfinite != nullptr) atomic_add(p.nonfinite, static_cast<uint64_t>(nonfinite));
}

// An expert a thread: its panels, in their order, then what was there.
MOERL_KERNEL(expert_ledger_merge, MoerlExpertLedger, LEDGER_THREADS) {
    const uint32_t expert = block_index() * LEDGER_THREADS + thread_index();
    if (expert >= p.experts) return;
    MoerlExpertSums sum = {0, 0.0, 0.0, 0.0};
    for (uint64_t panel = 0; panel < p.panel_count; panel++) {
        const MoerlExpertSums* const from = p.panels + (panel * p.experts + expert);
        sum.n += load(&from->n);
        sum.gate += load(&from->gate);
        sum.advantage += load(&from->advantage);
        sum.advantage_square += load(&from->advantage_square);
    }
    MoerlExpertSums* const to = p.sums + expert;
    store(&to->n, load(&to->n) + sum.n);
    store(&to->gate, load(&to->gate) + sum.gate);
    store(&to->advantage, load(&to->advantage) + sum.advantage);
    store(&to->advantage_square, load(&to->advantage_square) + sum.advantage_square);
}

// A token a thread.
MOERL_KERNEL(expert_ledger_advantages, MoerlExpertLedger, LEDGER_THREADS) {
    const uint64_t row = static_cast<uint64_t>(block_index()) * LEDGER_THREADS + thread_index();
    if (!counts(p, row)) return;
    const float advantage = load(p.advantages + row);
    const RowShare share = share_of_row(p.top_k, advantage, [&](uint32_t slot) { return load_weight(p, row, slot); });
    if (share.sum == 0.0) return;
    const double most = static_cast<double>(p.clip);
    double sum = 0.0;
    for (uint32_t slot = 0; slot < p.top_k; slot++) {
        const uint32_t expert = static_cast<uint32_t>(load(p.topk_ids + (row * p.top_k + slot)));
        if (expert >= p.experts) continue;
        double term = (static_cast<double>(advantage) - load(p.shift + expert)) * load(p.inverse_deviation + expert);
        term = term > most ? most : term < -most ? -most : term;
        sum += static_cast<double>(load_weight(p, row, slot)) / share.sum * term;
    }
    store(p.normalized + row, static_cast<float>(static_cast<double>(load(p.normalized + row)) + sum / p.layers));
}

// ---- norms of gradients ---------------------------------------------------------------------------------------------------

MOERL_DEVICE double warp_sum_f64(double x) {
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

// A block sums the squares of one panel of one expert. Element i belongs to thread i / PACK % 256 wherever the row lies.
template <class T> MOERL_DEVICE void norm_of_panel(const MoerlExpertNorms& p) {
    MOERL_SHARED(double, of_warps, LEDGER_THREADS / WARP);
    const uint64_t expert = block_index() / p.panel_count, panel = block_index() % p.panel_count;
    const T* const row = static_cast<const T*>(p.gradient) + static_cast<int64_t>(expert) * p.gradient_stride;
    const uint64_t begin = panel * MOERL_NORM_PANEL;
    const uint64_t end = begin + MOERL_NORM_PANEL < p.elements ? begin + MOERL_NORM_PANEL : p.elements;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    double sum = 0.0;
    for (uint64_t at = begin + thread_index() * PACK<T>; at < end; at += LEDGER_THREADS * PACK<T>) {
        float x[PACK<T>];
        if (aligned && at + PACK<T> <= end) {
            unpack<T>(load16_stream(row + at), x);
        } else {
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) x[j] = at + j < end ? to_f32(load(row + at + j)) : 0.0f;
        }
        MOERL_UNROLL
        for (int j = 0; j < PACK<T>; j++) sum += static_cast<double>(x[j]) * static_cast<double>(x[j]);
    }
    sum = warp_sum_f64(sum);
    if (lane_index() == 0) of_warps[warp_index()] = sum;
    sync_block();
    if (thread_index() != 0) return;
    double total = 0.0;
    for (int warp = 0; warp < LEDGER_THREADS / WARP; warp++) total += of_warps[warp];
    store(p.panels + (expert * p.panel_count + panel), total);
}

MOERL_KERNEL(expert_norm_panels_bf16, MoerlExpertNorms, LEDGER_THREADS) { norm_of_panel<bf16>(p); }
MOERL_KERNEL(expert_norm_panels_f16, MoerlExpertNorms, LEDGER_THREADS) { norm_of_panel<f16>(p); }
MOERL_KERNEL(expert_norm_panels_f32, MoerlExpertNorms, LEDGER_THREADS) { norm_of_panel<float>(p); }

// An expert a thread: its panels in their order.
MOERL_KERNEL(expert_norm_merge, MoerlExpertNorms, LEDGER_THREADS) {
    const uint32_t expert = block_index() * LEDGER_THREADS + thread_index();
    if (expert >= p.experts) return;
    double sum = 0.0;
    for (uint64_t panel = 0; panel < p.panel_count; panel++) sum += load(p.panels + (expert * p.panel_count + panel));
    store(p.squares + expert, load(p.squares + expert) + sum);
}

// An expert a thread.
MOERL_KERNEL(expert_norm_scale, MoerlExpertNorms, LEDGER_THREADS) {
    const uint32_t expert = block_index() * LEDGER_THREADS + thread_index();
    if (expert >= p.experts) return;
    const double scale = p.clip / (sqrt(load(p.squares + expert)) + 1e-6);
    store(p.scale + expert, scale >= 1.0 ? 1.0f : static_cast<float>(scale));
}
