// What few calls ask of log-probabilities, in kernels of their own, so that the many pay nothing for it: several ids a row, ranks, the
// argmax, a softcap, vocabulary shards; and in the gradient keep-sets.
//
//   u = C * tanh(logit_scale * x / C) comes first; then all is as in logprob.cu, of u instead of x
//   rank_k = #(x_j > x_{y_k}) + #(x_j = x_{y_k}, j < y_k)     argmax: the column of rank 0
//
// Data. As in logprob.cu: the panel that a warp holds serves everything. The logit of an id is taken from the panel it lies in, whichever
// this is; only a rank needs it before the row is read, which costs a load per id. Squares are always summed. Backward: as many panels as a block has
// warps, side by side in a row, are a piece; pieces of all rows are dealt to all blocks, so that a row's ids and records are looked at once for
// all warps of a block.
//
// Tricks.
// 1. Ranks by one comparison per element: in the panels before the id's, columns that equal it count too, and to equal or exceed a number is to
//    exceed the next one below. Two counters of a 16-bit type go into one word.
// 2. The argmax is looked for only in panels whose maximum beats the best that any warp has met so far in the row: a few of them.
// 3. In the gradient, columns that are not like the others (ids, kept ones) are marked in a bitmap of the panel. Lanes compute what they
//    hold as in logprob.cu, then walk over their marked columns and store these again. Panels without marks, nearly all of them, cost what
//    they cost there.
// 4. Under a softcap the gradient is bound by arithmetic, and few packs at a time are enough: a loop of its own, with little code.
#include "logprob/backward_general.cuh"
#include "logprob/combine.cuh"
#include "logprob/keep.cuh"
#include "logprob/split.cuh"

// The threads named are those that a multiprocessor is to hold, in one block or two: they decide how many registers a thread gets.
MOERL_KERNEL(logprob_forward_general_bf16, MoerlLogprobForward, 256) { forward_by_rows<bf16, General>(p); }
MOERL_KERNEL(logprob_forward_general_f16, MoerlLogprobForward, 256) { forward_by_rows<f16, General>(p); }
MOERL_KERNEL(logprob_forward_general_f32, MoerlLogprobForward, 256) { forward_by_rows<float, General>(p); }

MOERL_ALL_REGISTERS(logprob_panels_general_bf16, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_panels_general_bf16, MoerlLogprobForward, 256) { forward_by_panels<bf16, General>(p); }
MOERL_ALL_REGISTERS(logprob_panels_general_f16, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_panels_general_f16, MoerlLogprobForward, 256) { forward_by_panels<f16, General>(p); }
MOERL_ALL_REGISTERS(logprob_panels_general_f32, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_panels_general_f32, MoerlLogprobForward, 256) { forward_by_panels<float, General>(p); }
MOERL_ALL_REGISTERS(logprob_merge_general, MoerlLogprobForward, 256)
MOERL_KERNEL(logprob_merge_general, MoerlLogprobForward, 256) { merge_rows<General>(p); }
MOERL_ALL_REGISTERS(logprob_combine, MoerlLogprobCombine, 256)
MOERL_KERNEL(logprob_combine, MoerlLogprobCombine, 256) { combine_rows(p); }

MOERL_KERNEL(logprob_keep_bf16, MoerlLogprobKeep, 384) { keep_by_rows<bf16>(p); }
MOERL_KERNEL(logprob_keep_f16, MoerlLogprobKeep, 384) { keep_by_rows<f16>(p); }
MOERL_KERNEL(logprob_keep_f32, MoerlLogprobKeep, 384) { keep_by_rows<float>(p); }

// Two blocks are to share a multiprocessor, which leaves 128 registers a thread.
MOERL_RESIDENT(logprob_backward_general_bf16, MoerlLogprobBackward, 256, 2)
MOERL_KERNEL(logprob_backward_general_bf16, MoerlLogprobBackward, 256) { backward_general<bf16, bf16>(p); }
MOERL_RESIDENT(logprob_backward_general_f16, MoerlLogprobBackward, 256, 2)
MOERL_KERNEL(logprob_backward_general_f16, MoerlLogprobBackward, 256) { backward_general<f16, f16>(p); }
MOERL_RESIDENT(logprob_backward_general_f32, MoerlLogprobBackward, 256, 2)
MOERL_KERNEL(logprob_backward_general_f32, MoerlLogprobBackward, 256) { backward_general<float, float>(p); }
MOERL_RESIDENT(logprob_backward_general_bf16_f32, MoerlLogprobBackward, 256, 2)
MOERL_KERNEL(logprob_backward_general_bf16_f32, MoerlLogprobBackward, 256) { backward_general<bf16, float>(p); }
MOERL_RESIDENT(logprob_backward_general_f32_bf16, MoerlLogprobBackward, 256, 2)
MOERL_KERNEL(logprob_backward_general_f32_bf16, MoerlLogprobBackward, 256) { backward_general<float, bf16>(p); }
MOERL_RESIDENT(logprob_backward_general_f16_f32, MoerlLogprobBackward, 256, 2)
MOERL_KERNEL(logprob_backward_general_f16_f32, MoerlLogprobBackward, 256) { backward_general<f16, float>(p); }
