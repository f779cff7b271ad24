// Log-probability of the chosen token, entropy and log-sum-exp of every row of logits; and their gradients.
//
//   M = max x_j     t_j = max((x_j - M) * k, -200), k = log2(e)/T     e_j = 2^t_j
//   s = sum e_j     W = sum e_j * t_j     q = sum e_j^2
//
//   logprob = (x_y - M)/T - log s     entropy = log s - W * ln 2 / s     lse = M/T + log s     sum_p2 = q / s^2
//   d_logits_j = (a * 1[j = y] - e_j/s * (a - b * (W/s - t_j) * ln 2 - c)) / T
//
// Data. Every logit is loaded once, in 16-byte packs. Forward: a block takes a group of up to 32 rows; its warps take the panels of these
// rows in turn, one panel of 2048 columns in a warp's registers and the next one on its way; a panel leaves a record (M, s, W, q) of 16 bytes
// in shared memory; after the group's last panel a warp per row merges records, and one warp finishes all rows, a lane each. Where rows are
// few, panels of all rows are dealt to all warps of the grid, records go through a workspace, and a second kernel merges and
// finishes. Backward: the panels of all rows are dealt to all warps, so that rows without a gradient, which are only filled, leave no warp
// without work; a lane prepares the constants of one of its warp's next 32 panels.
//
// Tricks.
// 1. The difference before the scale. (x - M) * k, not x * k - M * k in one fma: the rounding of M * k would be common to all terms
//    and bias log s; and e is exactly 1 at the maximum, so that s >= 1, log s >= 0 and logprob <= 0 by construction.
// 2. No rescaling inside a panel: the panel is in registers, so its maximum is known before the first exponential. One per element.
// 3. No branch for -inf, for a panel of -inf alone, for overflow at tiny temperatures: the clamp turns -inf and NaN into t = -200, where e
//    is 0 and e * t is 0. NaN and +inf among the logits are recognised by M.
// 4. Any alignment at full width: panel.cuh rotates the ownership of sums instead of the data.
// 5. The order of every sum is a function of the column (panel.cuh, merge.cuh), so the bits do not depend on the grid, the batch, the
//    stride or the address.
// 6. Gradients know no panels: theirs begin at lines of 128 bytes of the memory that is written, so that rows at any address are stored by
//    whole lines but at their ends.
// 7. The label's gradient, a * (1 - p), is one number per row: it is formed with the row's constants and stored over its column,
//    instead of a comparison per element.
#include "logprob/backward.cuh"
#include "logprob/split.cuh"

// The threads named are those that a multiprocessor is to hold, in one block or two: they decide how many registers a thread gets.
MOERL_KERNEL(logprob_forward_bf16, MoerlLogprobForward, 384) { forward_by_rows<bf16, Plain>(p); }
MOERL_KERNEL(logprob_forward_f16, MoerlLogprobForward, 384) { forward_by_rows<f16, Plain>(p); }
MOERL_KERNEL(logprob_forward_f32, MoerlLogprobForward, 256) { forward_by_rows<float, Plain>(p); }
MOERL_KERNEL(logprob_forward_squares_bf16, MoerlLogprobForward, 384) { forward_by_rows<bf16, Squares>(p); }
MOERL_KERNEL(logprob_forward_squares_f16, MoerlLogprobForward, 384) { forward_by_rows<f16, Squares>(p); }
MOERL_KERNEL(logprob_forward_squares_f32, MoerlLogprobForward, 256) { forward_by_rows<float, Squares>(p); }

MOERL_ALL_REGISTERS(logprob_panels_bf16, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_panels_bf16, MoerlLogprobForward, 256) { forward_by_panels<bf16, Squares>(p); }
MOERL_ALL_REGISTERS(logprob_panels_f16, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_panels_f16, MoerlLogprobForward, 256) { forward_by_panels<f16, Squares>(p); }
MOERL_ALL_REGISTERS(logprob_panels_f32, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_panels_f32, MoerlLogprobForward, 256) { forward_by_panels<float, Squares>(p); }
MOERL_KERNEL(logprob_merge, MoerlLogprobForward, 256) { merge_rows<Plain>(p); }

// Three blocks are to share a multiprocessor, which leaves 80 registers a thread.
MOERL_RESIDENT(logprob_backward_bf16, MoerlLogprobBackward, 256, 3)
MOERL_KERNEL(logprob_backward_bf16, MoerlLogprobBackward, 256) { backward_by_panels<bf16, bf16>(p); }
MOERL_RESIDENT(logprob_backward_f16, MoerlLogprobBackward, 256, 3)
MOERL_KERNEL(logprob_backward_f16, MoerlLogprobBackward, 256) { backward_by_panels<f16, f16>(p); }
MOERL_RESIDENT(logprob_backward_f32, MoerlLogprobBackward, 256, 3)
MOERL_KERNEL(logprob_backward_f32, MoerlLogprobBackward, 256) { backward_by_panels<float, float>(p); }
MOERL_RESIDENT(logprob_backward_bf16_f32, MoerlLogprobBackward, 256, 3)
MOERL_KERNEL(logprob_backward_bf16_f32, MoerlLogprobBackward, 256) { backward_by_panels<bf16, float>(p); }
MOERL_RESIDENT(logprob_backward_f32_bf16, MoerlLogprobBackward, 256, 3)
MOERL_KERNEL(logprob_backward_f32_bf16, MoerlLogprobBackward, 256) { backward_by_panels<float, bf16>(p); }
MOERL_RESIDENT(logprob_backward_f16_f32, MoerlLogprobBackward, 256, 3)
MOERL_KERNEL(logprob_backward_f16_f32, MoerlLogprobBackward, 256) { backward_by_panels<f16, float>(p); }
