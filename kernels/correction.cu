// Rollout correction: importance weights and rejections against the policy that sampled.
//
//   partial   X_i = sum m delta, delta = (o - (q + log S)) + shift     n_i = sum m     kept_i = sum m [rejections of tokens keep]
//             where asked for: sums of divergences, of o, q, weights, A; the largest and smallest delta
//   finish    keep_i = all rejections of segments and turns        W_i = weight(exp X_i), or by its group
//   apply     w_u = W_i weight(exp delta_u) / mean                     keep_u = m keep_i [rejections of tokens keep]
//
// Data. A warp takes a unit, as the objective's phases do (objective/unit.cuh): partial reads 4 + 4 + 1 bytes a token (and 4 for each
// offset), apply 1 where the weight is the segment's and nothing rejects tokens, else 9, and writes what is asked for. finish takes a lane a
// segment, or a warp a group.
//
// Tricks.
// 1. Sums have the tree of the objective: a function of the position in the piece. Those of tiles travel as 16 words, a lane each.
// 2. Everything of a segment's size is f64: bounds are compared as logarithms, and exp is taken once of what was bounded.
// 3. Counts of what the rejections of tokens reject share words: a tile has at most 1024 tokens.
// 4. A Metropolis chain is serial, but the X and ln U of its 32 next members are made at once; one lane walks over them in shared memory.
// 5. An unsound token is flagged with its piece; only then does an apply that needs the mask alone read the tokens again.
#include "correction/apply.cuh"
#include "correction/groups.cuh"

MOERL_ALL_REGISTERS(correction_partial, MoerlCorrection, 128)
MOERL_KERNEL(correction_partial, MoerlCorrection, 128) { correction_partial_phase<false>(p); }
MOERL_ALL_REGISTERS(correction_partial_full, MoerlCorrection, 64)
MOERL_KERNEL(correction_partial_full, MoerlCorrection, 64) { correction_partial_phase<true>(p); }

MOERL_ALL_REGISTERS(correction_finish, MoerlCorrection, 128)
MOERL_KERNEL(correction_finish, MoerlCorrection, 128) { correction_finish_phase<false>(p); }
MOERL_ALL_REGISTERS(correction_finish_tally, MoerlCorrection, 128)
MOERL_KERNEL(correction_finish_tally, MoerlCorrection, 128) { correction_finish_phase<true>(p); }
MOERL_ALL_REGISTERS(correction_finish_groups, MoerlCorrection, 128)
MOERL_KERNEL(correction_finish_groups, MoerlCorrection, 128) { correction_finish_groups_phase<false>(p); }
MOERL_ALL_REGISTERS(correction_finish_groups_tally, MoerlCorrection, 128)
MOERL_KERNEL(correction_finish_groups_tally, MoerlCorrection, 128) { correction_finish_groups_phase<true>(p); }

MOERL_ALL_REGISTERS(correction_apply, MoerlCorrection, 128)
MOERL_KERNEL(correction_apply, MoerlCorrection, 128) { correction_apply_phase(p); }
