//! Advantages: how much better an answer, or a token of it, is than what was to be expected.
//!
//! | estimator | A | how |
//! |---|---|---|
//! | GRPO (2402.03300) | (R − μ) / (sd + ε), mean and deviation of the group | [`Config::default`] |
//! | Dr. GRPO (2503.20783) | R − μ | [`Config::without_std`] |
//! | RLOO (2402.14740) | R_i − mean of the others | [`Config::rloo`] |
//! | OPO (2505.23585) | R_i − Σ nR / Σ n, n the counted tokens | [`Config::opo`] |
//! | batch norm (TRL `scale_rewards="batch"`) | (R − μ) / (sd of all rewards + ε) | [`batch_norm`] |
//! | REINFORCE++ baseline (2501.03262) | R − μ, whitened over the counted tokens of the batch | [`reinforce_pp_baseline`] |
//! | REINFORCE++ (2501.03262) | Σ γ^k r, whitened over the counted tokens of the batch | [`reinforce_pp`] |
//! | GAE (1506.02438) | δ_t + γλ A_{t+1} | [`TokenEstimator::Gae`] |
//! | V-trace (1802.01561), doubly robust per decision | min(ρ̄, ρ_t) δ_t + γλ min(c̄, ρ_t) y_{t+1} | [`TokenEstimator::Vtrace`] |
//! | optimal token baseline (2602.07078) | G_t − b_t, a baseline of least variance for each token index of a group | [`TokenBaseline`] |
//! | doubly robust per sequence | W_i (R_i − V_i) | [`Backend::doubly_robust`](crate::Backend::doubly_robust) |
//!
//! Those that look at tokens skip masked ones: t + 1 is the next counted token.
//!
//! Rewards are per segment, groups are the answers to one prompt. Mean and variance are formed in f64, in two passes: the mean of squares less the
//! square of the mean cancels. A NaN or infinite reward gets A = 0 (or what [`LeftOut`] says) and leaves its group's statistics. A group whose rewards differ by no more than
//! [`Config::degenerate_tol`] gets exactly 0: dividing by its sd of 1e-8 would make noise an advantage. A group of one gets what [`Single`] says.
//!
//! Statistics of a batch ([`Moments`], [`Whiten`]) are sums: with ranks, an all-reduce goes between the passes.

mod baseline;
mod batch;
mod group;
mod token;

pub(crate) use baseline::BASELINE_TILE;
pub use baseline::{BaselineCall, BaselinePlan, TokenBaseline, baseline_workspace_bytes};

pub use batch::{
    BatchNorm, CountTokens, DoublyRobust, MOMENTS, Moments, Pass, ReinforcePpBaseline, Weights, Whiten, Whitening,
    batch_norm, moments_workspace_bytes, reinforce_pp_baseline, whiten,
};
pub use group::{Baseline, COUNTS, Call, Config, Count, GroupPlan, LeftOut, Single, workspace_bytes};
pub(crate) use group::{CHUNK, Piece, array};
pub use token::{ReinforcePp, TokenCall, TokenEstimator, reinforce_pp, token_workspace_bytes};
