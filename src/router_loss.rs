//! Regularisers of a router: balance of the experts' load, z-loss, entropy bonus, divergence from a reference router; and the update of a
//! selection bias without a loss.
//!
//! With `P_te` the router's probability of expert e for token t over **all** experts (softmax of the logits for both softmax scores; `s_te / (Σ_e s_te +
//! 1e-20)` for sigmoid and √softplus, with k = 1 too), M the rows that count, `T_v = |M|`, `n_e` the tokens sent to expert e, and a softcap as the
//! gate has it before everything:
//!
//! | loss | value | gradient of x |
//! |---|---|---|
//! | balance over the batch ([`Scope::Batch`]: switch, <https://arxiv.org/abs/2101.03961>) | `c·E·Σ_e f_e P̄_e`, `f_e = n_e/(k·T_n)`, `P̄_e = Σ_t P_te/T_v` | with `q_e = c·E·f_e/T_v` |
//! | balance over segments ([`Scope::Segments`]: DeepSeek's sequence loss) | the same per segment, mean over segments with a row | `f`, `T_v` per segment |
//! | z (<https://arxiv.org/abs/2202.08906>) | `c·Σ_t LSE_t²/T_v` | `2c·LSE_t·p_te/T_v` |
//! | entropy bonus | `−c·Σ_t H_t/T_v` | `(c/T_v)·p_te (log p_te + H_t)` |
//! | divergence from a reference | `c·Σ_t KL(p_ref‖p)_t/T_v` | `(c/T_v)·(p_te − p_ref,te)` |
//!
//! where `p` is the softmax over all experts whatever the score, and any `q_e = ∂L/∂P_te` has the gradient `P_te ρ_te (q_e − Σ_e' q_e' P_te')`, with ρ
//! 1, `σ(−x)` or `σ(x) / 2 softplus(x)` for softmax, sigmoid and √softplus. Counts are constants. The softcap's slope multiplies all.
//!
//! **Three steps.** [`router_loss_partial`] sums over rows into plain arrays ([`Partial`]), all of them additive over micro-batches and ranks;
//! [`router_loss_finish`] turns sums (reduced by whatever collective the trainer has) into values, and into what gradients are multiplied by
//! ([`Finish`]); then [`gate_backward`] adds the gradient in the same write as the gate's own ([`gate::Backward::regularizer`]), or [`router_loss_backward`] writes it
//! alone. A *global batch* balance is `finish` with `counts` and `count_rows` summed over more than `probabilities` and `rows` were.
//!
//! **Cost.** Any regulariser reads every row whole: a replayed layer, which otherwise reads k logits a row, then costs as much as a native one.
//!
//! **Rows.** Padding (`token_mask`, `row_count`), rows that forward marked in `selected_logits`, and rows with an id that is no expert do not count. A row whose
//! log-sum-exp is not finite (NaN or +∞ among its logits, or −∞ throughout; likewise in the reference), or whose divergence is infinite, is left out of all sums,
//! has no regulariser's gradient, and is counted in `nonfinite`.
//!
//! **Bits.** Column sums are made in f32 over panels of 256 rows, counted from the segment's start, and merged in order in f64: they do not depend on the device.
//!
//! [`router_loss_partial`]: crate::Backend::router_loss_partial
//! [`router_loss_finish`]: crate::Backend::router_loss_finish
//! [`router_loss_backward`]: crate::Backend::router_loss_backward
//! [`gate_backward`]: crate::Backend::gate_backward
//! [`gate::Backward::regularizer`]: crate::gate::Backward::regularizer

mod call;
mod plan;

pub use call::{Backward, BiasUpdate, Finish, Gradient, Partial};
pub(crate) use call::{PartialWorkspace, aligned};
pub use plan::Plan;

use crate::error::{Checks, Kind, Result};
use crate::gate;

/// What the load is balanced over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Scope {
    /// All rows of the plan's one segment.
    #[default]
    Batch,
    /// Each segment by itself; the loss is the mean over segments with a row that counts.
    Segments,
}

/// Which choice of experts is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum CountsFrom {
    /// The ids handed to the call: those that forward returned are the load that the experts really carried, replayed or not. (For the native choice
    /// of a replayed layer with a selection bias or groups, hand the ids of a native forward.)
    #[default]
    Routes,
    /// A fresh choice of the k largest logits, without bias and groups: what Megatron's auxiliary losses count.
    TopK,
}

/// Coefficients of the losses; 0: not asked for.
///
/// ```
/// use moerl::router_loss::Config;
/// let switch_and_z = Config { z: 1e-3, ..Config::switch(1e-2) };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// Of the balance.
    pub balance: f64,
    /// Over what.
    pub scope: Scope,
    /// Of the squared log-sum-exp.
    pub z: f64,
    /// Of the entropy, which is to be large.
    pub entropy: f64,
    /// Of the divergence KL(p_ref‖p) from a reference router.
    pub router_kl: f64,
    /// What `n_e` counts.
    pub counts_from: CountsFrom,
}

impl Config {
    /// Balance over the batch, of the routes taken.
    pub fn switch(coefficient: f64) -> Config {
        Config { balance: coefficient, ..Config::default() }
    }
    /// Balance over each segment, of the routes taken.
    pub fn sequence(coefficient: f64) -> Config {
        Config { scope: Scope::Segments, ..Config::switch(coefficient) }
    }
    /// As Megatron's auxiliary losses: balance over the batch and z-loss, counting a fresh choice without bias and groups. Its update of the
    /// bias counts the routes taken, as [`BiasUpdate`] does with the counts of a call that was handed ids.
    pub fn megatron(balance: f64, z: f64) -> Config {
        Config { z, counts_from: CountsFrom::TopK, ..Config::switch(balance) }
    }

    /// Checks what can be said without a call.
    ///
    /// # Errors
    /// `Config` with every fault.
    pub fn validate(&self, router: &gate::Config) -> Result<()> {
        let mut checks = Checks::new();
        for (name, coefficient) in
            [("balance", self.balance), ("z", self.z), ("entropy", self.entropy), ("router_kl", self.router_kl)]
        {
            checks.require(coefficient.is_finite(), Kind::Config, name, || {
                format!("has the coefficient {coefficient}, needs a finite number")
            });
        }
        checks.require(self.balance == 0.0 || router.score != gate::Score::Raw, Kind::Config, "balance", || {
            "needs probabilities, which raw logits are not".into()
        });
        checks.finish()
    }
}
