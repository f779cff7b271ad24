//! What the options of an objective come to.

use clap::ValueEnum;
use moerl::advantage::{Baseline, Config as Group};
use moerl::correction::{self, Rejection, Weight};
use moerl::covariance::Rule;
use moerl::objective::{
    Aggregation, Anchor, Cap, Cispo, CispoCap, Config, Kl, NonFinite, Sapo, Variant, Warning, Window,
};

use crate::advantage::Estimator;
use crate::arguments::{AdvantageName, AggregationName, AnchorName, KlName, Objective, ObjectiveName, Switch, text_of};
use crate::failure::{Failure, Result};
use crate::page;

/// What KL-Cov penalises with unless told otherwise (verl's `ppo_kl_coef`).
const KL_COV_PENALTY: f64 = 1.0;
/// The shares of tokens that KL-Cov and Clip-Cov single out, and the covariances between which Clip-Cov does (2505.22617; verl).
const KL_COV_FRACTION: f64 = 2e-3;
const CLIP_COV_FRACTION: f64 = 2e-4;
const CLIP_COV_BOUNDS: (f64, f64) = (1.0, 5.0);

/// The settings of a step's objective.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The objective.
    pub config: Config,
    /// How rewards become advantages.
    pub advantage: Advantage,
    /// True where they do even if the file has advantages.
    pub from_rewards: bool,
    /// Weights and rejections.
    pub correction: Option<correction::Config>,
    /// Which tokens are singled out by their covariance.
    pub covariance: Option<Rule>,
    /// L, if it is given.
    pub max_len: Option<u64>,
    /// In words, for the table.
    pub words: String,
    /// What is legal and unusual.
    pub warnings: Vec<Warning>,
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Advantage {
    /// One per segment.
    Segments(Estimator),
    /// One per token: whitened returns.
    Returns {
        /// The discount.
        gamma: f64,
    },
    /// None: the correction makes factors of the rewards.
    Attached,
}

impl Advantage {
    /// In words, for the table.
    pub fn words(&self) -> String {
        let group = |config: &Group| {
            let less = match config.baseline {
                Baseline::Mean => "rewards less their group's mean",
                Baseline::LeaveOneOut => "rewards less the mean of their group's others",
                Baseline::LengthWeighted => "rewards less their group's mean by length",
            };
            if config.std { format!("{less}, over its standard deviation") } else { less.to_owned() }
        };
        match self {
            Advantage::Segments(Estimator::Group(config)) => group(config),
            Advantage::Segments(Estimator::BatchNorm(_)) => {
                "rewards less their group's mean, over the deviation of all".into()
            }
            Advantage::Segments(Estimator::ReinforcePpBaseline(config)) => {
                format!("{}, whitened over tokens", group(config))
            }
            Advantage::Returns { gamma } => format!("returns with the discount {gamma}, whitened over tokens"),
            Advantage::Attached => "rewards less their group's mean by weight, times the weight".into(),
        }
    }
}

impl Plan {
    /// What the options come to.
    ///
    /// # Errors
    /// [`Failure::Input`] for numbers outside their range, and for options that the objective does not have.
    pub fn new(options: &Objective) -> Result<Plan> {
        let name = text_of(options.name);
        let mut config = base(options)?;
        if let Some(kl) = kl(options) {
            config = config.with_kl(kl);
        }
        // Presets clamp the divergence, so it has to be there before.
        config = config.with_preset(options.preset.objective());
        window(&mut config.variant, options, &name)?;
        caps(&mut config.variant, options, &name)?;
        levels(&mut config.variant, options, &name)?;
        shapes(&mut config.variant, options, &name)?;
        if let Some(aggregation) = options.aggregation {
            config.aggregation = aggregation.into();
        }
        config.mismatch_penalty = options.mismatch_penalty.unwrap_or(0.0);
        config.entropy_bonus = options.entropy_coef.unwrap_or(0.0);
        config.nonfinite = options.nonfinite.map_or(NonFinite::ZeroWeight, NonFinite::from);
        if let Some(anchor) = options.anchor {
            config.anchor = if anchor == AnchorName::Rollout { Anchor::Rollout } else { Anchor::Old };
        }
        config.validate()?;
        let covariance = covariance(options, &name)?;
        if options.name == ObjectiveName::ReinforceIs && options.correction.is_none() {
            return Err(Failure::input("--objective reinforce-is: weighs tokens by --correction, which is not given"));
        }
        Ok(Plan {
            correction: correction(options, &config)?,
            advantage: advantage(options)?,
            from_rewards: options.advantage.is_some() || config.variant == Variant::SnisAttached,
            covariance,
            max_len: options.max_len,
            words: words(&name, &config),
            warnings: warnings(options, &config),
            config,
        })
    }
}

impl Plan {
    /// The window that a ratio has to pass, if there is one.
    pub fn window(&self) -> Option<page::Window> {
        let is_of_sequences = self.config.variant.is_sequence_level();
        let around =
            |low: f64, high: f64| page::Window { low: (1.0 - low).max(0.0), high: 1.0 + high, is_of_sequences };
        match self.config.variant {
            Variant::Gmpo(Window { low, high }) => {
                Some(page::Window { low: (-low).exp(), high: high.exp(), is_of_sequences: false })
            }
            Variant::MiniRl(Window { low, high }) => Some(around(low, high)),
            Variant::Cispo(Cispo { cap, .. }) => {
                let (low, high) = cap.range();
                Some(page::Window { low, high, is_of_sequences })
            }
            variant => variant.clip().map(|clip| around(clip.low, clip.high)),
        }
    }
}

/// The objective as its paper has it, with the penalties that the options name.
fn base(options: &Objective) -> Result<Config> {
    let missing =
        || Failure::input("--objective cispo: needs --cispo-cap window:LO,HI or raw:MAX; conventions differ by 1");
    let mut config = match options.name {
        ObjectiveName::Cispo => Config::cispo(options.cispo_cap.ok_or_else(missing)?),
        ObjectiveName::ReinforceIs => Config::new(Variant::ReinforceIs),
        ObjectiveName::KlCov => Config::new(Variant::KlCov { penalty: KL_COV_PENALTY }),
        name => match name.algorithm() {
            Some(algorithm) => Config::preset(moerl::objective::Preset::Moerl, algorithm),
            None => return Err(Failure::input(format!("--objective {}: is not known", text_of(name)))),
        },
    };
    match (&mut config.variant, options.penalty) {
        (_, None) => {}
        (Variant::SquarePenalty { tau: weight } | Variant::KlCov { penalty: weight }, Some(penalty)) => {
            *weight = penalty
        }
        (_, Some(_)) => return Err(has_no("--penalty", &text_of(options.name), "square-penalty and kl-cov have one")),
    }
    Ok(config)
}

fn has_no(option: &str, name: &str, instead: &str) -> Failure {
    Failure::input(format!("{option}: does not go with --objective {name}; {instead}"))
}

fn kl(options: &Objective) -> Option<Kl> {
    options.beta.map(|beta| options.kl.unwrap_or(KlName::K3).weighted(beta))
}

/// `--clip-low` and `--clip-high`.
fn window(variant: &mut Variant, options: &Objective, name: &str) -> Result<()> {
    if options.clip_low.is_none() && options.clip_high.is_none() {
        return Ok(());
    }
    let (low, high) = match variant {
        Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => (&mut clip.low, &mut clip.high),
        Variant::Gmpo(window) | Variant::MiniRl(window) => (&mut window.low, &mut window.high),
        Variant::Dppo(dppo) => (&mut dppo.low, &mut dppo.high),
        Variant::Cispo(_) => return Err(has_no("--clip-low, --clip-high", name, "its clamp is --cispo-cap")),
        _ => return Err(has_no("--clip-low, --clip-high", name, "it has no window")),
    };
    *low = options.clip_low.unwrap_or(*low);
    *high = options.clip_high.unwrap_or(*high);
    Ok(())
}

/// `--dual-clip`, `--delta`, `--cispo-cap` and `--cispo-mask`.
fn caps(variant: &mut Variant, options: &Objective, name: &str) -> Result<()> {
    match variant {
        Variant::Cispo(cispo) => cispo.unified_mask = options.cispo_mask,
        _ if options.cispo_cap.is_some() || options.cispo_mask.is_some() => {
            return Err(has_no("--cispo-cap, --cispo-mask", name, "cispo has them"));
        }
        _ => {}
    }
    let cap = options.dual_clip.map(Cap::Dual).or(options.delta.map(Cap::Delta));
    let Some(cap) = cap else { return Ok(()) };
    match variant {
        Variant::PpoClip(clip) | Variant::Gspo(clip) | Variant::GspoToken(clip) => clip.cap = cap,
        _ => return Err(has_no("--dual-clip, --delta", name, "only a clipped ratio has a second bound")),
    }
    Ok(())
}

/// `--ratio-level`, `--tau-pos` and `--tau-neg`.
fn levels(variant: &mut Variant, options: &Objective, name: &str) -> Result<()> {
    if let Some(level) = options.ratio_level {
        match variant {
            Variant::Cispo(Cispo { level: own, .. }) | Variant::Sapo(Sapo { level: own, .. }) => *own = level.into(),
            _ => return Err(has_no("--ratio-level", name, "cispo and sapo have both")),
        }
    }
    match variant {
        Variant::Sapo(sapo) => {
            sapo.tau_positive = options.tau_pos.unwrap_or(sapo.tau_positive);
            sapo.tau_negative = options.tau_neg.unwrap_or(sapo.tau_negative);
        }
        _ if options.tau_pos.is_some() || options.tau_neg.is_some() => {
            return Err(has_no("--tau-pos, --tau-neg", name, "sapo has them"));
        }
        _ => {}
    }
    Ok(())
}

/// `--vespo-pos`, `--vespo-neg` and `--dppo-cap`.
fn shapes(variant: &mut Variant, options: &Objective, name: &str) -> Result<()> {
    match variant {
        Variant::Vespo(vespo) => {
            vespo.positive = options.vespo_pos.unwrap_or(vespo.positive);
            vespo.negative = options.vespo_neg.unwrap_or(vespo.negative);
        }
        _ if options.vespo_pos.is_some() || options.vespo_neg.is_some() => {
            return Err(has_no("--vespo-pos, --vespo-neg", name, "vespo has them"));
        }
        Variant::Dppo(dppo) => dppo.cap = options.dppo_cap.unwrap_or(dppo.cap),
        _ => {}
    }
    if options.dppo_cap.is_some() && !matches!(variant, Variant::Dppo(_)) {
        return Err(has_no("--dppo-cap", name, "dppo-tv and dppo-kl have it"));
    }
    Ok(())
}

/// `--correction`, and the weights that are part of an objective.
fn correction(options: &Objective, config: &Config) -> Result<Option<correction::Config>> {
    if config.variant != Variant::SnisAttached {
        return Ok(options.correction.clone());
    }
    let rejections = options.correction.clone().unwrap_or_else(|| correction::Config::default().with_diagnostics());
    if rejections.weight != Weight::One {
        return Err(Failure::input(
            "--correction: a weight, but --objective snis-attached has its own; rejections are allowed",
        ));
    }
    if rejections.rejections.iter().any(|rejection| matches!(rejection, Rejection::OffPolicySequence { .. })) {
        return Err(Failure::input("--correction opsm: needs advantages, but --objective snis-attached takes rewards"));
    }
    Ok(Some(correction::Config { weight: Weight::SelfNormalisedAttached, ..rejections }))
}

/// LUSPO means to weigh sequences by length, and the custom coefficients of a step do not.
fn warnings(options: &Objective, config: &Config) -> Vec<Warning> {
    let is_meant = options.name == ObjectiveName::Luspo && config.aggregation == Aggregation::SeqMeanTokenSum
        || config.aggregation == Aggregation::Custom;
    let mut warnings = config.lint();
    warnings.retain(|warning| !(is_meant && matches!(warning, Warning::SequenceAggregation(_))));
    warnings
}

fn covariance(options: &Objective, name: &str) -> Result<Option<Rule>> {
    let rule = match options.name {
        ObjectiveName::KlCov => Rule::Largest { fraction: options.cov_fraction.unwrap_or(KL_COV_FRACTION) },
        ObjectiveName::ClipCov => {
            let missing = || Failure::input("--objective clip-cov: chooses at random and needs --cov-seed");
            let fraction = options.cov_fraction.unwrap_or(CLIP_COV_FRACTION);
            Rule::Random { bounds: CLIP_COV_BOUNDS, fraction, seed: options.cov_seed.ok_or_else(missing)? }
        }
        _ if options.cov_fraction.is_some() || options.cov_seed.is_some() => {
            return Err(has_no("--cov-fraction, --cov-seed", name, "clip-cov and kl-cov have them"));
        }
        _ => return Ok(None),
    };
    moerl::covariance::Config::new(rule).validate()?;
    Ok(Some(rule))
}

fn advantage(options: &Objective) -> Result<Advantage> {
    if options.name == ObjectiveName::SnisAttached {
        return match options.advantage {
            None => Ok(Advantage::Attached),
            Some(_) => Err(has_no("--advantage", "snis-attached", "it takes rewards as they are")),
        };
    }
    let name = options.advantage.unwrap_or(AdvantageName::Group);
    // Estimators with a baseline of their own do not divide, unless told to.
    let divides = name == AdvantageName::Group && options.name != ObjectiveName::DrGrpo;
    let group = options.preset.advantage(options.std.map_or(divides, |std| std == Switch::On));
    Ok(Advantage::Segments(match name {
        AdvantageName::Group => Estimator::Group(group),
        AdvantageName::Rloo => Estimator::Group(Group { baseline: Baseline::LeaveOneOut, ..group }),
        AdvantageName::Opo => Estimator::Group(Group { baseline: Baseline::LengthWeighted, ..group }),
        AdvantageName::BatchNorm => Estimator::BatchNorm(group),
        AdvantageName::ReinforcePpBaseline => Estimator::ReinforcePpBaseline(group),
        AdvantageName::ReinforcePp => return Ok(Advantage::Returns { gamma: options.gamma }),
    }))
}

/// The name that `--aggregation` has for it.
fn name_of(aggregation: Aggregation) -> String {
    let named = AggregationName::value_variants().iter().find(|&&name| Aggregation::from(name) == aggregation);
    named.map_or_else(|| "1 / (sequences · tokens of the sequence)".to_owned(), |&name| text_of(name))
}

fn words(name: &str, config: &Config) -> String {
    let around = |center: u8, low: f64, high: f64| match center {
        0 => format!(", window -{low} to {high} of the log-ratio"),
        _ => format!(", window 1 - {low} to 1 + {high}"),
    };
    let mut words = name.to_owned();
    words += &match config.variant {
        Variant::Gmpo(Window { low, high }) => around(0, low, high),
        Variant::MiniRl(Window { low, high }) => around(1, low, high),
        Variant::Dppo(dppo) => {
            let cap = if dppo.cap.is_finite() { format!(", ratio at most {}", dppo.cap) } else { String::new() };
            format!(", bounds {} down and {} up{cap}", dppo.low, dppo.high)
        }
        Variant::Vespo(vespo) => {
            let ((k, lambda), (k_negative, lambda_negative)) = (vespo.positive, vespo.negative);
            format!(", k {k} and {k_negative}, lambda {lambda} and {lambda_negative}")
        }
        Variant::Cispo(Cispo { cap, level, unified_mask }) => {
            let (low, high) = cap.range();
            let convention = if matches!(cap, CispoCap::Raw { .. }) { "raw" } else { "window" };
            let mask = unified_mask.map_or_else(String::new, |mask| {
                format!(", no gradient outside 1 - {} to 1 + {}", mask.low, mask.high)
            });
            format!(", {level:?} ratio clamped to {low} to {high} ({convention}){mask}").to_lowercase()
        }
        Variant::Sapo(sapo) => {
            let (positive, negative) = (sapo.tau_positive, sapo.tau_negative);
            format!(", {:?} ratio, tau {positive} and {negative}", sapo.level).to_lowercase()
        }
        Variant::SquarePenalty { tau } => format!(", penalty {tau}"),
        Variant::KlCov { penalty } => format!(", penalty {penalty}"),
        _ => config.variant.clip().map_or_else(String::new, |clip| around(1, clip.low, clip.high)),
    };
    words += &match config.variant.clip().map(|clip| clip.cap) {
        Some(Cap::Dual(bound)) => format!(", dual clip {bound}"),
        Some(Cap::Delta(bound)) => format!(", delta {bound}"),
        _ => String::new(),
    };
    words += &format!(", {}", name_of(config.aggregation));
    if let Some(kl) = config.kl {
        let straight = if kl.straight_through { " straight through" } else { "" };
        words += &format!(", {} · {:?}{straight} to the reference", kl.beta, kl.form);
    }
    if config.mismatch_penalty != 0.0 {
        words += &format!(", mismatch penalty {}", config.mismatch_penalty);
    }
    if config.entropy_bonus != 0.0 {
        words += &format!(", entropy bonus {}", config.entropy_bonus);
    }
    words
}
