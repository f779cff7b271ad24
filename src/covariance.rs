//! Which tokens Clip-Cov and KL-Cov single out (2505.22617): those whose log-probability and advantage vary together, which is where a policy
//! loses its entropy.
//!
//! ```text
//! cov_u = (A_u − Ā)(l_u − l̄)      means over counted tokens, constants of the gradient
//! k = max(1, ⌊fraction · n⌋)       n counted tokens
//! ```
//!
//! | method | call | then |
//! |---|---|---|
//! | Clip-Cov | [`Rule::Random`], `excluded` = the tokens that the objective's `clipped` marks | [`objective`](crate::objective) with `PpoClip` and [`Call::keep`] as `keep` |
//! | the same, whatever the split | [`Rule::Bernoulli`] with means over the whole step | likewise |
//! | KL-Cov | [`Rule::Largest`] | [`Variant::KlCov`](crate::objective::Variant::KlCov) with [`Call::chosen`] as `chosen` |
//!
//! A choice is a function of token ids, values and the seed: the same tokens in another order, packing or on another machine are chosen alike.
//! (verl shuffles with `torch.randperm`, which cannot be repeated.) `Random` and `Largest` look at the tokens of the call alone. A counted
//! token whose l or A is not finite has no part in any of it.

use crate::device::workspace::CovarianceWorkspace;
use crate::error::{Checks, Kind, Result};
use crate::memory::{Memory, View, ViewMut};

/// Which tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Rule {
    /// Of the tokens with lower < cov < upper, the k with the smallest keys Philox4x32-10(seed; token id, 0, 1, 0), first word; ties by token id.
    Random {
        /// Bounds of the covariance, both excluded.
        bounds: (f64, f64),
        /// Of the counted tokens; in (0, 1]. The paper's is 2e-4.
        fraction: f64,
        /// Of the keys. There is no default.
        seed: u64,
    },
    /// Of the same tokens, each with this probability, by the same word.
    Bernoulli {
        /// Bounds of the covariance, both excluded.
        bounds: (f64, f64),
        /// In [0, 1]: k over the eligible tokens of the whole step.
        probability: f64,
        /// Of the coins.
        seed: u64,
    },
    /// The k with the largest covariance, in f32; ties by token id.
    Largest {
        /// Of the counted tokens; in (0, 1]. The paper's is 2e-3.
        fraction: f64,
    },
}

/// Which tokens, and around which means.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Config {
    /// Which tokens are chosen.
    pub rule: Rule,
    /// Ā and l̄ of the whole step; absent: those of the call.
    pub means: Option<(f64, f64)>,
}

impl Config {
    /// Around the call's own means.
    pub const fn new(rule: Rule) -> Config {
        Config { rule, means: None }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        let mut number = |holds: bool, name: &'static str, value: f64, needed: &str| {
            checks.require(holds, Kind::Config, name, || format!("is {value}, needs {needed}"));
        };
        match self.rule {
            Rule::Random { fraction, .. } | Rule::Largest { fraction } => {
                number(fraction > 0.0 && fraction <= 1.0, "fraction", fraction, "a number above 0, at most 1");
            }
            Rule::Bernoulli { probability: p, .. } => {
                number((0.0..=1.0).contains(&p), "probability", p, "a number between 0 and 1");
            }
        }
        if let Rule::Random { bounds: (low, high), .. } | Rule::Bernoulli { bounds: (low, high), .. } = self.rule {
            number(low < high, "bounds", low, &format!("a number below the upper bound {high}"));
        }
        if let Some((advantage, logprob)) = self.means {
            number(advantage.is_finite(), "mean_advantage", advantage, "a finite number");
            number(logprob.is_finite(), "mean_logprob", logprob, "a finite number");
        }
        checks.finish()
    }
}

/// One call on N tokens.
#[derive(Debug)]
pub struct Call<'a, M> {
    /// `[N]`: l, under the current policy.
    pub logprobs: View<'a, f32, M>,
    /// `[N]`: A.
    pub advantages: View<'a, f32, M>,
    /// `[N]`: 1 where the token counts; absent: every token does.
    pub loss_mask: Option<View<'a, u8, M>>,
    /// `[N]`: not 0 for tokens that count and may not be chosen.
    pub excluded: Option<View<'a, u8, M>>,
    /// `[N]`: different for every token of the step.
    pub token_ids: View<'a, u32, M>,
    /// `[N]`: 1 for the chosen tokens, else 0.
    pub chosen: Option<ViewMut<'a, u8, M>>,
    /// `[N]`: 0 for the chosen tokens, else 1.
    pub keep: Option<ViewMut<'a, u8, M>>,
    /// Scratch memory of at least [`workspace_bytes`], whatever it holds.
    pub workspace: ViewMut<'a, u8, M>,
}

/// The bytes of workspace that a call on `tokens` tokens needs.
pub fn workspace_bytes(tokens: usize) -> usize {
    CovarianceWorkspace::of(tokens).bytes()
}

impl<M: Memory> Call<'_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Shape`, `Alignment`, `Overlap`, `Workspace`.
    pub fn validate(&self, config: &Config) -> Result<()> {
        let n = self.logprobs.len();
        let needed = workspace_bytes(n);
        let mut checks = Checks::new();
        checks.merge(config.validate());
        checks.shape("advantages", &[self.advantages.len()], &[n]);
        checks.shape("token_ids", &[self.token_ids.len()], &[n]);
        for (name, array) in [("loss_mask", self.loss_mask), ("excluded", self.excluded)] {
            if let Some(array) = array {
                checks.shape(name, &[array.len()], &[n]);
            }
        }
        for (name, array) in [("chosen", &self.chosen), ("keep", &self.keep)] {
            if let Some(array) = array {
                checks.shape(name, &[array.len()], &[n]);
            }
        }
        for (name, address) in [
            ("logprobs", self.logprobs.address()),
            ("advantages", self.advantages.address()),
            ("token_ids", self.token_ids.address()),
        ] {
            checks.require(address.is_multiple_of(4), Kind::Alignment, name, || {
                format!("address {address:#x} is not a multiple of 4")
            });
        }
        checks.require(self.workspace.len() >= needed, Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {needed}", self.workspace.len())
        });
        checks.disjoint(&[
            Some(self.logprobs.extent("logprobs")),
            Some(self.advantages.extent("advantages")),
            Some(self.token_ids.extent("token_ids")),
            self.loss_mask.map(|array| array.extent("loss_mask")),
            self.excluded.map(|array| array.extent("excluded")),
            self.chosen.as_ref().map(|array| array.extent("chosen")),
            self.keep.as_ref().map(|array| array.extent("keep")),
            Some(self.workspace.extent("workspace")),
        ]);
        checks.finish()
    }
}
