//! A uniform sample of the tokens that under-used experts were sent.

use std::collections::BTreeMap;

use super::layers::Layer;
use crate::error::{Checks, Error, Kind, Result};
use crate::gate::MAX_EXPERTS;
use crate::random;

/// Layers and experts share one word of the generator's counter: 20 and 12 bits. The last layer's is for samples.
const EXPERT_BITS: u32 = 12;
const MAX_LAYER: u32 = (1 << (32 - EXPERT_BITS)) - 1;
const _: () = assert!(MAX_EXPERTS <= 1 << EXPERT_BITS);

/// What a [`History`] keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryConfig {
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
    /// C: how many tokens are kept for each layer and expert.
    pub capacity: usize,
    /// β of the moving average of an expert's share of tokens: `a ← β·a + (1 − β)·n_e/T`, made unbiased by `1 − βⁿ`.
    pub decay: f64,
    /// τ: an expert is under-used while its average is below τ times k/E, its share under an even load.
    pub threshold: f64,
    /// Decides every draw.
    pub seed: u64,
}

impl HistoryConfig {
    fn validate(&self) -> Result<()> {
        let HistoryConfig { experts, top_k, capacity, decay, threshold, .. } = *self;
        let mut checks = Checks::new();
        checks
            .require((1..=MAX_EXPERTS).contains(&experts), Kind::Config, "experts", || {
                format!("are {experts}, need 1 to {MAX_EXPERTS}")
            })
            .require((1..=experts).contains(&top_k), Kind::Config, "top_k", || {
                format!("is {top_k}, needs 1 to the {experts} experts")
            })
            .require(capacity > 0, Kind::Config, "capacity", || "is 0, needs at least 1".into())
            .require((0.0..1.0).contains(&decay), Kind::Config, "decay", || {
                format!("is {decay}, needs 0 or more and less than 1")
            })
            .require(threshold.is_finite() && threshold >= 0.0, Kind::Config, "threshold", || {
                format!("is {threshold}, needs a finite number that is not negative")
            });
        checks.finish()
    }
}

/// A token that an expert was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// The caller's number of its sequence.
    pub sequence: u64,
    /// Its row on the tape.
    pub row: u64,
    /// Its log-probability under the policy that sampled it: what importance weights are formed from when it is trained on again.
    pub behaviour_logprob: f32,
    /// That policy's version.
    pub policy_version: u64,
    /// The expert's weight.
    pub gate: f32,
}

/// An [`Item`] that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The layer whose expert it was sent to.
    pub layer: Layer,
    /// The expert.
    pub expert: u16,
    /// The token.
    pub item: Item,
}

/// Moving averages of the load, and a reservoir for every layer and expert that was under-used at some time.
///
/// Item i < C of a reservoir takes slot i; a later one draws j of `0..=i` from Philox4x32-10, keyed by seed, layer, expert and i,
/// and replaces slot j if j < C. Every item that arrived is then kept with the same probability (Vitter's algorithm R), and what is
/// kept depends on the seed and the order of arrival alone. Items arrive by (step, row); ranks that merge theirs in that order hold the
/// same history.
///
/// This is a buffer of its own kind, not what the literature calls routing replay. It samples; the segments that are trained on
/// again need importance weights.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    config: HistoryConfig,
    loads: BTreeMap<Layer, Load>,
    reservoirs: BTreeMap<(Layer, u16), Reservoir>,
}

/// Moving averages of one layer.
#[derive(Clone, Debug, PartialEq)]
struct Load {
    averages: Vec<f64>,
    /// The weight that the averages have gathered: `1 − βⁿ`.
    weight: f64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Reservoir {
    items: Vec<Item>,
    arrived: u64,
    last: Option<(u64, u64)>,
}

impl History {
    /// An empty history.
    ///
    /// # Errors
    /// `Config` with every fault.
    pub fn new(config: HistoryConfig) -> Result<History> {
        config.validate()?;
        Ok(History { config, loads: BTreeMap::new(), reservoirs: BTreeMap::new() })
    }

    /// Takes the load of a layer in one step into its moving averages: `counts` `[E]` of `tokens` tokens. No tokens change nothing.
    ///
    /// # Errors
    /// `Shape` for other than E counts, `Config` for a layer beyond 2²⁰ − 2.
    pub fn observe(&mut self, layer: Layer, counts: &[u64], tokens: u64) -> Result<()> {
        check_layer(layer)?;
        let HistoryConfig { experts, decay, .. } = self.config;
        if counts.len() != experts {
            let message = format!("has shape [{}], needs [{experts}]", counts.len());
            return Err(Error::invalid(Kind::Shape, "counts", message));
        }
        if tokens == 0 {
            return Ok(());
        }
        let load = self.loads.entry(layer).or_insert_with(|| Load { averages: vec![0.0; experts], weight: 0.0 });
        for (average, &n) in load.averages.iter_mut().zip(counts) {
            *average = decay * *average + (1.0 - decay) * (n as f64 / tokens as f64);
        }
        load.weight = decay * load.weight + (1.0 - decay);
        Ok(())
    }

    /// The experts of a layer whose average share is below τ·k/E, in rising order. None before the layer was observed.
    pub fn under_used(&self, layer: Layer) -> Vec<u16> {
        (0..self.config.experts as u16).filter(|&expert| self.is_under_used(layer, expert)).collect()
    }

    fn is_under_used(&self, layer: Layer, expert: u16) -> bool {
        let HistoryConfig { experts, top_k, threshold, .. } = self.config;
        let share = threshold * top_k as f64 / experts as f64;
        self.loads.get(&layer).is_some_and(|load| load.averages[usize::from(expert)] / load.weight < share)
    }

    /// Offers a token that `expert` of `layer` was sent in this step; true if it was kept. Tokens of experts that are not under-used
    /// are passed over, and do not count as arrived.
    ///
    /// # Errors
    /// `Routes` for an expert that there is not, and for a token that arrives before one that it should follow.
    pub fn offer(&mut self, layer: Layer, expert: u16, step: u64, item: Item) -> Result<bool> {
        check_layer(layer)?;
        let fault = |message: String| Error::invalid(Kind::Routes, "history", message);
        if usize::from(expert) >= self.config.experts {
            return Err(fault(format!("{layer} has {} experts, not expert {expert}", self.config.experts)));
        }
        if !self.is_under_used(layer, expert) {
            return Ok(false);
        }
        let reservoir = self.reservoirs.entry((layer, expert)).or_default();
        let arrival = (step, item.row);
        if let Some(last) = reservoir.last.filter(|&last| last >= arrival) {
            return Err(fault(format!(
                "{layer}, expert {expert}: (step {step}, row {}) arrives after (step {}, row {})",
                item.row, last.0, last.1
            )));
        }
        reservoir.last = Some(arrival);
        let i = reservoir.arrived;
        reservoir.arrived += 1;
        if reservoir.items.len() < self.config.capacity {
            reservoir.items.push(item);
            return Ok(true);
        }
        let counter = [i as u32, (i >> 32) as u32, layer.0 << EXPERT_BITS | u32::from(expert)];
        let slot = random::below(i + 1, random::key(self.config.seed), counter) as usize;
        let kept = slot < self.config.capacity;
        if kept {
            reservoir.items[slot] = item;
        }
        Ok(kept)
    }

    /// What is kept for an expert.
    pub fn items(&self, layer: Layer, expert: u16) -> &[Item] {
        self.reservoirs.get(&(layer, expert)).map_or(&[], |reservoir| &reservoir.items)
    }

    /// How many tokens arrived for an expert while it was under-used.
    pub fn arrived(&self, layer: Layer, expert: u16) -> u64 {
        self.reservoirs.get(&(layer, expert)).map_or(0, |reservoir| reservoir.arrived)
    }

    /// How many items are kept in all.
    pub fn len(&self) -> usize {
        self.reservoirs.values().map(|reservoir| reservoir.items.len()).sum()
    }
    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Draws `count` of all items kept, none twice, every choice equally likely; all of them where there are no more. The same round
    /// of the same history gives the same items.
    pub fn sample(&self, count: usize, round: u32) -> Vec<Sampled> {
        let mut all: Vec<Sampled> = self
            .reservoirs
            .iter()
            .flat_map(|(&(layer, expert), reservoir)| {
                reservoir.items.iter().map(move |&item| Sampled { layer, expert, item })
            })
            .collect();
        let key = random::key(self.config.seed);
        let count = count.min(all.len());
        // Fisher and Yates, from the front, as far as needed.
        for i in 0..count {
            let left = (all.len() - i) as u64;
            all.swap(i, i + random::below(left, key, [i as u32, round, u32::MAX]) as usize);
        }
        all.truncate(count);
        all
    }
}

fn check_layer(layer: Layer) -> Result<()> {
    if layer.0 < MAX_LAYER {
        return Ok(());
    }
    Err(Error::invalid(Kind::Config, "layer", format!("is {}, needs to be below {MAX_LAYER}", layer.0)))
}
