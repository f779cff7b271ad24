// A router broken on purpose, in the ways that routers have been broken; the line at fault says BROKEN. tests/emulation/broken_gate.rs names the
// behaviour that each loses.

#include "call.h"
#include "device.cuh"

// A row a warp: `stride` logits and behind them as many biases. `number` ids to the output, and their weights, sigmoids, behind them.
// `variant` 0 is right.
MOERL_KERNEL(broken_router, TestCall, 32) {
    const uint32_t experts = static_cast<uint32_t>(p.stride), lane = lane_index();
    const float* const logits = reinterpret_cast<const float*>(p.input) + static_cast<uint64_t>(block_index()) * experts * 2;
    uint32_t taken = 0;  // bit i: column lane + 32 i
    for (uint32_t round = 0; round < p.number; round++) {
        float best = -INFINITY;
        uint32_t best_id = 0xffffffffu;
        for (uint32_t c = lane; c < experts; c += WARP) {
            float value = reciprocal_approx(1.0f + exp2_approx(load(logits + c) * -1.44269504f)) + load(logits + experts + c);
            if ((taken >> c / WARP & 1u) != 0) {
                if (p.variant != 2) continue;
                value = -10000.0f;  // BROKEN: values can be lower
            }
            if (best_id == 0xffffffffu || value > best) {
                best = value;
                best_id = c;
            }
        }
        for (int lanes = 1; lanes < WARP; lanes *= 2) {
            const float other = shuffle_xor(best, lanes);
            const uint32_t other_id = shuffle_xor(best_id, lanes);
            const bool exists = other_id != 0xffffffffu;
            bool better = best_id == 0xffffffffu || other > best || (other == best && other_id < best_id);
            if (p.variant == 1) better = best_id == 0xffffffffu || other > best;  // BROKEN: of equal ones the lane's own
            if (exists && better) {
                best = other;
                best_id = other_id;
            }
        }
        best = shuffle(best, 0);
        best_id = shuffle(best_id, 0);
        if (best_id % WARP == lane) taken |= 1u << best_id / WARP;
        if (lane != 0) continue;
        const float bias = load(logits + experts + best_id);
        float weight = reciprocal_approx(1.0f + exp2_approx(load(logits + best_id) * -1.44269504f));
        if (p.variant == 3) weight = best - bias;  // BROKEN: most of the score is gone
        uint32_t* const to = p.output + static_cast<uint64_t>(block_index()) * p.number * 2;
        store(to + round, best_id);
        store(to + p.number + round, bits_of(weight));
    }
}
