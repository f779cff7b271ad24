// The backward pass of top-k expert gating: from the gradient of the weights to that of the router logits.
//
//   d_x_e = sum_j d_w_j * dw_j/dx_e      (0 outside the slots, unless the score is the softmax over all)  - c A (g~_e - p_e)  if asked for
//
// Data movement. A row loads k ids, k logits (saved, or gathered from the row) and k gradients, and stores every element of d_x once, zeros and slots in
// the same 16 bytes; compact, it stores k gradients and touches nothing dense. With few slots it belongs to 2 or 4 lanes, and its warp stores
// several rows from shared memory; with many, and where 16 bytes do not divide a row, to 8, 16 or 32. Where the gradient reaches every expert
// the row's logits are loaded once, into shared memory.
//
//   gate/backward.cuh      the slots alone, dense and compact       gate/weights.cuh       weights and their gradient
//   gate/backward_row.cuh  every expert of a row                    gate/expert_scale.cuh  the gradient of expert_scale
//
// 1. Saved ids are used and never chosen again: a tie that falls the other way would change the counts of tokens.
// 2. Rows without weights (padding, zero weight) are selected away before arithmetic: their inputs may hold anything.
// 3. Zeros are written by the pass that writes the slots; adding to an existing buffer visits only what changes.

#include "gate/backward.cuh"
#include "gate/backward_row.cuh"
#include "gate/expert_scale.cuh"

// By the type of d_x; the number is the most experts that a kernel takes.
MOERL_KERNEL(gate_backward_bf16_128, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<bf16, 8>(p); }
MOERL_KERNEL(gate_backward_bf16_256, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<bf16, 16>(p); }
MOERL_KERNEL(gate_backward_bf16_4096, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<bf16, 32>(p); }
MOERL_KERNEL(gate_backward_f16_128, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<f16, 8>(p); }
MOERL_KERNEL(gate_backward_f16_256, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<f16, 16>(p); }
MOERL_KERNEL(gate_backward_f16_4096, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<f16, 32>(p); }
MOERL_KERNEL(gate_backward_f32_128, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<float, 8>(p); }
MOERL_KERNEL(gate_backward_f32_256, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<float, 16>(p); }
MOERL_KERNEL(gate_backward_f32_4096, MoerlGateBackward, BACKWARD_THREADS) { gate_backward<float, 32>(p); }

// Blocks have BACKWARD_THREADS; declared for more, ptxas does not spill a few registers for one block more.
MOERL_KERNEL(gate_backward_row_bf16_128, MoerlGateBackward, 1024) { gate_backward_row<bf16, 8>(p); }
MOERL_KERNEL(gate_backward_row_bf16_256, MoerlGateBackward, 1024) { gate_backward_row<bf16, 16>(p); }
MOERL_KERNEL(gate_backward_row_bf16_4096, MoerlGateBackward, 1024) { gate_backward_row<bf16, 32>(p); }
MOERL_KERNEL(gate_backward_row_f16_128, MoerlGateBackward, 1024) { gate_backward_row<f16, 8>(p); }
MOERL_KERNEL(gate_backward_row_f16_256, MoerlGateBackward, 1024) { gate_backward_row<f16, 16>(p); }
MOERL_KERNEL(gate_backward_row_f16_4096, MoerlGateBackward, 1024) { gate_backward_row<f16, 32>(p); }
MOERL_KERNEL(gate_backward_row_f32_128, MoerlGateBackward, 1024) { gate_backward_row<float, 8>(p); }
MOERL_KERNEL(gate_backward_row_f32_256, MoerlGateBackward, 1024) { gate_backward_row<float, 16>(p); }
MOERL_KERNEL(gate_backward_row_f32_4096, MoerlGateBackward, 1024) { gate_backward_row<float, 32>(p); }

// By the most slots of a row.
MOERL_KERNEL(gate_backward_tiles_bf16_8, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_tiles<bf16, Runs<2, 8>>(p); }
MOERL_KERNEL(gate_backward_tiles_bf16_16, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_tiles<bf16, Runs<4, 16>>(p); }
MOERL_KERNEL(gate_backward_tiles_f16_8, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_tiles<f16, Runs<2, 8>>(p); }
MOERL_KERNEL(gate_backward_tiles_f16_16, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_tiles<f16, Runs<4, 16>>(p); }
MOERL_KERNEL(gate_backward_tiles_f32_8, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_tiles<float, Runs<2, 8>>(p); }
MOERL_KERNEL(gate_backward_tiles_f32_16, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_tiles<float, Runs<4, 16>>(p); }

MOERL_KERNEL(gate_backward_compact_8, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_compact<Runs<2, 8>>(p); }
MOERL_KERNEL(gate_backward_compact_16, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_compact<Runs<4, 16>>(p); }
MOERL_KERNEL(gate_backward_compact_32, MoerlGateBackward, BACKWARD_THREADS) { gate_backward_compact<Group<8>>(p); }

MOERL_KERNEL(gate_expert_scale_panel, MoerlGateBackward, BACKWARD_THREADS) { expert_scale_panel(p); }
MOERL_KERNEL(gate_expert_scale_finish, MoerlGateBackward, BACKWARD_THREADS) { expert_scale_finish(p); }
