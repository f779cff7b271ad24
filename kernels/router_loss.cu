// Regularisers of a router: balance of the load, z-loss, entropy bonus, divergence from a reference; and the aux-free update of the selection bias.
//
//   switch    coef E sum_e f_e P̄_e,  f_e = n_e / (k T_n),  P̄_e = sum_t P_te / T_v         q_e = coef E f_e / T_v
//   z         coef sum_t LSE_t² / T_v                                    entropy   -coef sum_t H_t / T_v
//   KL        coef sum_t KL(p_ref || p)_t / T_v                          bias      b_e += u sign(sum n - E n_e)
//
// Data movement. `partial` reads each logit once, into the shared memory of the warp that has the row, and keeps column sums there; a block has a panel of at
// most 256 rows, and a second kernel merges panels. Between `partial` and `finish` lies a plain array for each sum, so that any collective can sit in
// the middle. The gradient is part of the gate's backward (gate/backward_row.cuh), which reads the row once for all of its terms.
//
//   router_loss/row.cuh  the sums of a row      router_loss/partial.cuh  over rows      router_loss/finish.cuh  losses and coefficients
//
// 1. Panels are counted from the segment's start, and a panel's tree depends on E alone.
// 2. A row whose sums are not numbers is left out and counted.

#include "router_loss/finish.cuh"
#include "router_loss/partial.cuh"

// Blocks have PARTIAL_THREADS or fewer; declared for more, ptxas does not spill a few registers for one block more.
MOERL_KERNEL(router_loss_partial, MoerlRouterLoss, 1024) { sum_panel(p); }
MOERL_KERNEL(router_loss_merge, MoerlRouterLoss, PARTIAL_THREADS) { merge_panels(p); }
MOERL_KERNEL(router_loss_segment, MoerlRouterLoss, FINISH_THREADS) { finish_segment(p); }
MOERL_KERNEL(router_loss_finish, MoerlRouterLoss, FINISH_THREADS) { finish_batch(p); }
MOERL_KERNEL(router_loss_bias, MoerlRouterLoss, FINISH_THREADS) { update_bias(p); }
