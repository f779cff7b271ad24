// Top-k expert gating with forced route replay: forward. Backward is in gate_backward.cu.
//
// For every token t with logits x[E]: k experts S and their weights w, from the native choice or from recorded ids,
//
//   S = the k best by  x_e  or  score(x_e) + bias_e          w_j = normalise(score(x_j), j in S) * scale
//
// Data movement. A row belongs to a group of 8, 16 or 32 lanes; a warp holds 4, 2 or 1 rows. Forward loads each logit of a native row
// once, 16 bytes at a time, straight into registers. Where there are many rows and none is forced, 2 or 4 lanes share a row, which is
// then copied to shared memory (gate/many.cuh). A replayed row loads its ids and the k logits that they name, and nothing else (all of
// the row where the softmax over all needs its sum); up to 16 slots, 2 or 4 lanes share it too (gate/replay.cuh).
//
//   gate/rows.cuh     what a row is: native, forced, without weights        gate/select.cuh   the k best of a row
//   gate/columns.cuh  a row in the registers of its lanes                   gate/weights.cuh  weights and their gradient
//   gate/slots.cuh    the k slots and sums over them                        gate/score.cuh    exponentials and scores
//   gate/many.cuh     the kernel for many rows: gate/segments.cuh, candidates.cuh, network.cuh, scored.cuh
//   gate/replay.cuh   the kernel for rows with forced ids, a few lanes each
//   gate/maps.cuh     what was chosen, as maps over all experts
//
// 1. Native is "select, then the replay road": behind the fork both kinds of row bring ids and logits to the same code, so replaying
//    the native choice is the native result bit for bit.
// 2. Selection is on integer keys that order as the values do; no value stands for "taken" that a value could have.
// 3. A biased selection needs the value of every expert but the logit of the chosen ones: the row is then also kept in shared memory, and
//    the weight is made from the logit, never recovered by subtracting the bias.
// 4. Sums over slots have a tree that does not know how many lanes a row has.
// 5. The lanes of a warp do what any of its rows needs and drop what their own row does not; so every collective is met by all.

#include "gate/forward.cuh"
#include "gate/many.cuh"
#include "gate/maps.cuh"
#include "gate/replay.cuh"

// The number is the most experts that a kernel takes. Some may take all the registers that one block leaves them, because ptxas
// otherwise trades a spill for an occupancy that shared memory does not allow them.
MOERL_KERNEL(gate_forward_bf16_128, MoerlGateForward, 256) { gate_forward<bf16, 8, 16, false>(p); }
MOERL_KERNEL(gate_forward_bf16_256, MoerlGateForward, 256) { gate_forward<bf16, 16, 16, false>(p); }
MOERL_KERNEL(gate_forward_bf16_512, MoerlGateForward, 256) { gate_forward<bf16, 32, 16, false>(p); }
MOERL_KERNEL(gate_forward_bf16_1024, MoerlGateForward, 256) { gate_forward<bf16, 32, 32, false>(p); }
MOERL_KERNEL(gate_forward_f16_128, MoerlGateForward, 256) { gate_forward<f16, 8, 16, false>(p); }
MOERL_KERNEL(gate_forward_f16_256, MoerlGateForward, 256) { gate_forward<f16, 16, 16, false>(p); }
MOERL_KERNEL(gate_forward_f16_512, MoerlGateForward, 256) { gate_forward<f16, 32, 16, false>(p); }
MOERL_KERNEL(gate_forward_f16_1024, MoerlGateForward, 256) { gate_forward<f16, 32, 32, false>(p); }
MOERL_KERNEL(gate_forward_f32_128, MoerlGateForward, 256) { gate_forward<float, 8, 16, false>(p); }
MOERL_KERNEL(gate_forward_f32_256, MoerlGateForward, 256) { gate_forward<float, 16, 16, false>(p); }
MOERL_KERNEL(gate_forward_f32_512, MoerlGateForward, 256) { gate_forward<float, 32, 16, false>(p); }
MOERL_KERNEL(gate_forward_f32_1024, MoerlGateForward, 256) { gate_forward<float, 32, 32, false>(p); }

MOERL_ALL_REGISTERS(gate_forward_staged_bf16_128, MoerlGateForward, 256)
MOERL_KERNEL(gate_forward_staged_bf16_128, MoerlGateForward, 256) { gate_forward<bf16, 8, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_bf16_256, MoerlGateForward, 256) { gate_forward<bf16, 16, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_bf16_512, MoerlGateForward, 256) { gate_forward<bf16, 32, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_bf16_1024, MoerlGateForward, 256) { gate_forward<bf16, 32, 32, true>(p); }
MOERL_ALL_REGISTERS(gate_forward_staged_bf16_4096, MoerlGateForward, 256)
MOERL_KERNEL(gate_forward_staged_bf16_4096, MoerlGateForward, 256) { gate_forward<bf16, 32, IN_SHARED_MEMORY, true>(p); }
MOERL_ALL_REGISTERS(gate_forward_staged_f16_128, MoerlGateForward, 256)
MOERL_KERNEL(gate_forward_staged_f16_128, MoerlGateForward, 256) { gate_forward<f16, 8, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_f16_256, MoerlGateForward, 256) { gate_forward<f16, 16, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_f16_512, MoerlGateForward, 256) { gate_forward<f16, 32, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_f16_1024, MoerlGateForward, 256) { gate_forward<f16, 32, 32, true>(p); }
MOERL_ALL_REGISTERS(gate_forward_staged_f16_4096, MoerlGateForward, 256)
MOERL_KERNEL(gate_forward_staged_f16_4096, MoerlGateForward, 256) { gate_forward<f16, 32, IN_SHARED_MEMORY, true>(p); }
MOERL_ALL_REGISTERS(gate_forward_staged_f32_128, MoerlGateForward, 256)
MOERL_KERNEL(gate_forward_staged_f32_128, MoerlGateForward, 256) { gate_forward<float, 8, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_f32_256, MoerlGateForward, 256) { gate_forward<float, 16, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_f32_512, MoerlGateForward, 256) { gate_forward<float, 32, 16, true>(p); }
MOERL_KERNEL(gate_forward_staged_f32_1024, MoerlGateForward, 256) { gate_forward<float, 32, 32, true>(p); }
MOERL_ALL_REGISTERS(gate_forward_staged_f32_4096, MoerlGateForward, 256)
MOERL_KERNEL(gate_forward_staged_f32_4096, MoerlGateForward, 256) { gate_forward<float, 32, IN_SHARED_MEMORY, true>(p); }

// Many rows without forced ids, by the most chosen: by logit, and by sigmoid + bias.
MOERL_KERNEL(gate_forward_many_bf16_8, MoerlGateForward, 128) { gate_forward_many<bf16, 2, 8, false>(p); }
MOERL_KERNEL(gate_forward_many_bf16_10, MoerlGateForward, 128) { gate_forward_many<bf16, 2, 10, false>(p); }
MOERL_KERNEL(gate_forward_many_f16_8, MoerlGateForward, 128) { gate_forward_many<f16, 2, 8, false>(p); }
MOERL_KERNEL(gate_forward_many_f16_10, MoerlGateForward, 128) { gate_forward_many<f16, 2, 10, false>(p); }
MOERL_KERNEL(gate_forward_many_f32_8, MoerlGateForward, 128) { gate_forward_many<float, 4, 8, false>(p); }
MOERL_KERNEL(gate_forward_many_f32_10, MoerlGateForward, 128) { gate_forward_many<float, 4, 10, false>(p); }
MOERL_ALL_REGISTERS(gate_forward_many_biased_bf16_8, MoerlGateForward, 128)
MOERL_KERNEL(gate_forward_many_biased_bf16_8, MoerlGateForward, 128) { gate_forward_many<bf16, 2, 8, true>(p); }
MOERL_ALL_REGISTERS(gate_forward_many_biased_f16_8, MoerlGateForward, 128)
MOERL_KERNEL(gate_forward_many_biased_f16_8, MoerlGateForward, 128) { gate_forward_many<f16, 2, 8, true>(p); }
MOERL_KERNEL(gate_forward_many_biased_f32_8, MoerlGateForward, 128) { gate_forward_many<float, 4, 8, true>(p); }

// Rows with forced ids, by the most of them. With the registers of four blocks they spill.
MOERL_RESIDENT(gate_forward_replay_bf16_8, MoerlGateForward, 256, 3)
MOERL_KERNEL(gate_forward_replay_bf16_8, MoerlGateForward, 256) { gate_forward_replay<bf16, 2, 8>(p); }
MOERL_RESIDENT(gate_forward_replay_bf16_16, MoerlGateForward, 256, 3)
MOERL_KERNEL(gate_forward_replay_bf16_16, MoerlGateForward, 256) { gate_forward_replay<bf16, 4, 16>(p); }
MOERL_RESIDENT(gate_forward_replay_f16_8, MoerlGateForward, 256, 3)
MOERL_KERNEL(gate_forward_replay_f16_8, MoerlGateForward, 256) { gate_forward_replay<f16, 2, 8>(p); }
MOERL_RESIDENT(gate_forward_replay_f16_16, MoerlGateForward, 256, 3)
MOERL_KERNEL(gate_forward_replay_f16_16, MoerlGateForward, 256) { gate_forward_replay<f16, 4, 16>(p); }
MOERL_RESIDENT(gate_forward_replay_f32_8, MoerlGateForward, 256, 3)
MOERL_KERNEL(gate_forward_replay_f32_8, MoerlGateForward, 256) { gate_forward_replay<float, 2, 8>(p); }
MOERL_RESIDENT(gate_forward_replay_f32_16, MoerlGateForward, 256, 3)
MOERL_KERNEL(gate_forward_replay_f32_16, MoerlGateForward, 256) { gate_forward_replay<float, 4, 16>(p); }

MOERL_KERNEL(gate_maps, MoerlGateMaps, 128) { write_maps(p); }
