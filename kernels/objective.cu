// Policy objectives over packed segments: loss, gradient of every token's log-probability, ratios, clip flags, diagnostics.
//
//   partial   D_i = sum m (l - o)    n_i = sum m    S+ = sum m w max(A, 0)    S- = sum m w min(A, 0)
//   finish    s_i = exp(D_i / n_i)   c_i by the aggregation   loss_i = -c_i (min(s, 1 + eh) S+ + max(s, 1 - el) S-)   G_i = dloss_i / dl_u
//   apply     g_u = m_u G_i                                   (GSPO, sequence SAPO)
//             g_u = -c_i w_u s_i A_u [clip passes]            (GSPO-token)
//             g_u = -c_i w_u rho_u A_u [clip passes], rho_u = exp(l - o); its value joins the loss here   (PPO: GRPO, DAPO, ...)
//             g_u = c_i (w_u W_i dL_u/dl + beta dKL_u/dl + 2 kappa (l - q))                               (every other: policy.cuh)
//
// The first three have code of their own; `wide` and `any` are the two kernels that know every objective by a switch that a whole grid takes alike,
// and read only the arrays that it needs: bytes, not the switch, are what they cost.
//
// Data. A warp takes a unit: a tile of 1024 tokens of a long segment, or whole short segments of up to 1024 tokens together. partial reads
// 4 + 4 + 1 bytes a token (and 4 for A, 4 for w, where they are per token), apply 1 (GSPO), 5 (GSPO-token with A per token) or 9 (PPO) and
// writes 4. Where no more than n is needed, partial reads the mask alone. finish takes a lane for four segments.
//
// Tricks.
// 1. Subtract before summing: sum (l - o), never sum l - sum o, which at 32k tokens loses 2 % of GSPO's window.
// 2. The order of every sum is a function of the position in the segment (unit.cuh), so the gradient does not depend on what else is in the
//    batch, on alignment or on how units were made. Long segments join their tiles in f64, by the last to arrive (partial.cuh).
// 3. Clip tests compare logarithms: D with n log1p(eh) in f64 and without a division.
// 4. Masked is absent: the inputs of a masked token are selected away before any arithmetic. An input that is not finite is found by one test of
//    the difference; such a segment is flagged, and only then does apply read its tokens again to know which to leave out.
// 5. Where every segment fits in a warp's unit, one launch does all of it for the most used calls (fused.cuh), and where each is one token, for every call
//    and without shared memory (singles.cuh).
// 6. One call has phase 2 in the launch of phase 1 (sums.cuh): what a segment sums to is in registers there, and only its coefficient is handed on.
// 7. The totals climb a tree of tickets (climb.cuh), so that no launch is needed for them and no float is added atomically.
#include "objective/apply.cuh"
#include "objective/finish.cuh"
#include "objective/fused.cuh"
#include "objective/singles.cuh"
#include "objective/sums.cuh"

MOERL_RESIDENT(objective_partial, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_partial, MoerlObjective, 128) { partial_phase<false, false>(p); }
MOERL_ALL_REGISTERS(objective_partial_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_partial_tally, MoerlObjective, 128) { partial_phase<false, true>(p); }
MOERL_ALL_REGISTERS(objective_partial_wide, MoerlObjective, 128)
MOERL_KERNEL(objective_partial_wide, MoerlObjective, 128) { partial_phase<true, false>(p); }
MOERL_ALL_REGISTERS(objective_partial_wide_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_partial_wide_tally, MoerlObjective, 128) { partial_phase<true, true>(p); }

MOERL_KERNEL(objective_finish, MoerlObjective, 256) { finish_phase<false>(p); }
MOERL_RESIDENT(objective_finish_tally, MoerlObjective, 256, 2)
MOERL_KERNEL(objective_finish_tally, MoerlObjective, 256) { finish_phase<true>(p); }

MOERL_RESIDENT(objective_apply_ppo, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_apply_ppo, MoerlObjective, 128) { apply_phase<CLIPPED_RATIO, false>(p); }
MOERL_ALL_REGISTERS(objective_apply_ppo_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_apply_ppo_tally, MoerlObjective, 128) { apply_phase<CLIPPED_RATIO, true>(p); }
MOERL_RESIDENT(objective_apply_gspo, MoerlObjective, 128, 8)
MOERL_KERNEL(objective_apply_gspo, MoerlObjective, 128) { apply_phase<SHARED_GRADIENT, false>(p); }
MOERL_RESIDENT(objective_apply_gspo_token, MoerlObjective, 128, 6)
MOERL_KERNEL(objective_apply_gspo_token, MoerlObjective, 128) { apply_phase<SEGMENT_RATIO, false>(p); }
MOERL_ALL_REGISTERS(objective_apply_any, MoerlObjective, 128)
MOERL_KERNEL(objective_apply_any, MoerlObjective, 128) { apply_phase<ANY, false>(p); }
MOERL_ALL_REGISTERS(objective_apply_any_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_apply_any_tally, MoerlObjective, 128) { apply_phase<ANY, true>(p); }

MOERL_KERNEL(objective_fused_ppo, MoerlObjective, 128) { fused_phase<CLIPPED_RATIO, false>(p); }
MOERL_ALL_REGISTERS(objective_fused_ppo_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_fused_ppo_tally, MoerlObjective, 128) { fused_phase<CLIPPED_RATIO, true>(p); }
// With the registers of more blocks these two spill on sm_100.
MOERL_RESIDENT(objective_fused_gspo, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_fused_gspo, MoerlObjective, 128) { fused_phase<SHARED_GRADIENT, false>(p); }
MOERL_ALL_REGISTERS(objective_fused_gspo_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_fused_gspo_tally, MoerlObjective, 128) { fused_phase<SHARED_GRADIENT, true>(p); }
MOERL_RESIDENT(objective_fused_gspo_token, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_fused_gspo_token, MoerlObjective, 128) { fused_phase<SEGMENT_RATIO, false>(p); }
MOERL_ALL_REGISTERS(objective_fused_gspo_token_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_fused_gspo_token_tally, MoerlObjective, 128) { fused_phase<SEGMENT_RATIO, true>(p); }

MOERL_RESIDENT(objective_singles_ppo, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_singles_ppo, MoerlObjective, 128) { singles_phase<CLIPPED_RATIO, false>(p); }
MOERL_RESIDENT(objective_singles_gspo, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_singles_gspo, MoerlObjective, 128) { singles_phase<SHARED_GRADIENT, false>(p); }
MOERL_RESIDENT(objective_singles_gspo_token, MoerlObjective, 128, 5)
MOERL_KERNEL(objective_singles_gspo_token, MoerlObjective, 128) { singles_phase<SEGMENT_RATIO, false>(p); }
MOERL_RESIDENT(objective_singles_any, MoerlObjective, 128, 4)
MOERL_KERNEL(objective_singles_any, MoerlObjective, 128) { singles_phase<ANY, false>(p); }
MOERL_ALL_REGISTERS(objective_singles_any_tally, MoerlObjective, 128)
MOERL_KERNEL(objective_singles_any_tally, MoerlObjective, 128) { singles_phase<ANY, true>(p); }
