// Advantages: what rewards come to, per segment or per token.
//
//   groups.cuh   A_i = (R_i - shift) * factor, both from the rewards of the group
//   batch.cuh    sums over a batch, (x - mean) / sd, counted tokens, doubly robust estimates
//   tokens.cuh   from the end of a segment backwards: returns, GAE, V-trace
//   baseline.cuh the optimal baseline of a token index
#include "advantage/baseline.cuh"
#include "advantage/batch.cuh"
#include "advantage/groups.cuh"
#include "advantage/tokens.cuh"

MOERL_KERNEL(group_advantages, MoerlGroupAdvantages, 128) { small_groups(p); }
MOERL_KERNEL(group_sums, MoerlGroupAdvantages, 256) { chunk_sums(p); }
MOERL_KERNEL(group_squares, MoerlGroupAdvantages, 256) { chunk_squares(p); }
MOERL_KERNEL(group_apply, MoerlGroupAdvantages, 256) { chunk_apply(p); }

MOERL_KERNEL(batch_moments, MoerlMoments, 256) { moments_of(p); }
MOERL_KERNEL(batch_whiten, MoerlWhiten, 256) { whiten(p); }
MOERL_KERNEL(count_tokens, MoerlCountTokens, 128) { count_units(p); }
MOERL_KERNEL(doubly_robust, MoerlDoublyRobust, 256) { doubly_robust_segments(p); }

MOERL_KERNEL(token_maps, MoerlTokenAdvantages, 64) { map_tiles(p); }
MOERL_KERNEL(token_advantages, MoerlTokenAdvantages, 64) { walk_units(p); }

MOERL_KERNEL(energy_tiles, MoerlTokenBaseline, 64) { sum_tiles(p); }
MOERL_KERNEL(energy_scatter, MoerlTokenBaseline, 64) { scatter_units(p); }
MOERL_KERNEL(token_baseline, MoerlTokenBaseline, 128) { baseline_of_groups(p); }
