// A forward call of the gate that looks at itself: the results of kernels/gate.cu bit for bit, and beside them what was counted and
// measured of its rows; the shift of the router between two policies.
//
//   overlap = #(F ∩ N)      margin = c_(k) − c_(k+1)      deficit = c_(k) − min over F of c      mass = Σ over F of softmax(x)
//   gate_l1 = Σ |w − w̄| / scale      set_kl = Σ ŵ̄ log(ŵ̄/ŵ)      router_kl = KL(p_ref ‖ p)      shift += mean over S_old of |log p − log p_old|
//
// F: the row's experts (the recorded ones of a replayed row), N: its native choice, c: what selection goes by.
//
// Data movement. What only needs the slots reads only those (gate_l1, set_kl, the counts of the experts that rows go to). What needs the
// native choice or the sum of a replayed row reads its logits once, into shared memory, and both the choice and the weights come from there.
//
//   gate/telemetry.cuh      a row's way           gate/row_measures.cuh     what is counted and measured of it
//
// 1. A row takes the road of the staged forward, with as many lanes, so that its sums have the same trees and its results the same bits.
// 2. Counts are integers, a block's own in shared memory, added to the sums once at its end: a block takes many rows for that.
// 3. The reference row of router_kl lands where the keys of the selection were, and goes through the same sum: equal rows are exactly 0 apart.

#include "gate/telemetry.cuh"

MOERL_ALL_REGISTERS(gate_telemetry_bf16_128, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_bf16_128, MoerlGateTelemetry, 256) { gate_telemetry<bf16, 8, 16>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_bf16_256, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_bf16_256, MoerlGateTelemetry, 256) { gate_telemetry<bf16, 16, 16>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_bf16_4096, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_bf16_4096, MoerlGateTelemetry, 256) { gate_telemetry<bf16, 32, IN_SHARED_MEMORY>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_f16_128, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_f16_128, MoerlGateTelemetry, 256) { gate_telemetry<f16, 8, 16>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_f16_256, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_f16_256, MoerlGateTelemetry, 256) { gate_telemetry<f16, 16, 16>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_f16_4096, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_f16_4096, MoerlGateTelemetry, 256) { gate_telemetry<f16, 32, IN_SHARED_MEMORY>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_f32_128, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_f32_128, MoerlGateTelemetry, 256) { gate_telemetry<float, 8, 16>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_f32_256, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_f32_256, MoerlGateTelemetry, 256) { gate_telemetry<float, 16, 16>(p); }
MOERL_ALL_REGISTERS(gate_telemetry_f32_4096, MoerlGateTelemetry, 256)
MOERL_KERNEL(gate_telemetry_f32_4096, MoerlGateTelemetry, 256) { gate_telemetry<float, 32, IN_SHARED_MEMORY>(p); }

// max(floor, -shift / layers), a token a thread.
MOERL_KERNEL(gate_router_shift, MoerlGateRouterShift, 256) {
    const uint64_t row = static_cast<uint64_t>(block_index()) * block_size() + thread_index();
    if (row < p.rows) store(p.router_shift + row, max_nan(p.floor, 0.0f - load(p.shift + row) / p.layers));
}
