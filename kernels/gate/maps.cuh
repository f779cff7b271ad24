// What the rows chose, as maps over all experts: weights, bytes, bits. Every element is written once, zeros and ones alike.
//
// A warp has a row: which slot names each expert stands in shared memory, then lane l writes columns l, l + 32, and so on.
#pragma once

#include "../block.cuh"

template <class T> MOERL_DEVICE float load_weight(const void* from, int64_t at) { return to_f32(load(static_cast<const T*>(from) + at)); }

MOERL_DEVICE void write_maps(const MoerlGateMaps& p) {
    MOERL_DYNAMIC_SHARED(unsigned char, shared);
    const uint64_t row = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (row >= p.rows) return;  // whole warps
    // One more than the slot that names the expert; 0: none does.
    unsigned char* const slots = shared + static_cast<size_t>(warp_index()) * ((p.experts + 31) / 32 * 32);
    for (uint32_t c = lane_index(); c < (p.experts + 31) / 32 * 32; c += WARP) slots[c] = 0;
    sync_warp();
    float weight = 0.0f;
    if (lane_index() < p.top_k) {
        const int32_t id = load(p.topk_ids + static_cast<int64_t>(row * p.top_k + lane_index()));
        if (id >= 0) slots[id] = static_cast<unsigned char>(lane_index() + 1);  // -1: a row that goes nowhere
        const int64_t at = static_cast<int64_t>(row) * p.topk_weights_stride + lane_index();
        if (p.topk_weights_element == MOERL_BF16) weight = load_weight<bf16>(p.topk_weights, at);
        else if (p.topk_weights_element == MOERL_F16) weight = load_weight<f16>(p.topk_weights, at);
        else weight = load_weight<float>(p.topk_weights, at);
    }
    sync_warp();
    float* const probs = static_cast<float*>(p.dense_probs) + static_cast<int64_t>(row) * p.dense_probs_stride;
    const uint32_t bytes = (p.experts + 7) / 8;
    for (uint32_t first = 0; first < p.experts; first += WARP) {
        const uint32_t column = first + lane_index(), slot = slots[column];
        const float of_slot = shuffle(weight, static_cast<int>(slot == 0 ? 0 : slot - 1));
        const uint32_t bits = ballot(slot != 0, FULL_WARP);
        if (column < p.experts && p.dense_probs != nullptr) store_stream(probs + column, slot == 0 ? 0.0f : of_slot);
        if (column < p.experts && p.bytemap != nullptr) {
            store_stream(p.bytemap + static_cast<int64_t>(row * p.experts + column), static_cast<uint8_t>(slot != 0 ? 1 : 0));
        }
        const uint32_t byte = first / 8 + lane_index();
        if (lane_index() < 4 && byte < bytes && p.bitmap != nullptr) {
            store_stream(p.bitmap + static_cast<int64_t>(row * bytes + byte), static_cast<uint8_t>(bits >> (lane_index() * 8)));
        }
    }
}
