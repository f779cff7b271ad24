//! The correction stage, and how `--correction` is written.

use moerl::correction::{Config, Divergence, Level, Metropolis, Over, Preset, Rejection, Weight};
use moerl::objective::{Anchor, Groups, Segments};
use moerl::{Backend, Reference};

use super::{Context, Stage, largest_difference};
use crate::clock::Clock;
use crate::correction::{Inputs, run};
use crate::failure::{Failure, Result};
use crate::findings::Settle;
use crate::objective::HostAdvantages;
use crate::stepfile::Policy;

/// Terms with commas between them: at most one weight, any number of rejections, `normalise`; in front of them perhaps a system's own.
///
/// # Errors
/// In words, for a term that is not known or whose numbers are not what it takes.
pub fn parse(text: &str) -> std::result::Result<Config, String> {
    let mut config = Config::default().with_diagnostics();
    for (at, term) in text.split(',').map(str::trim).enumerate() {
        if let Some(preset) = preset(term) {
            if at > 0 {
                return Err(format!("{term}: stands in front; other terms add to it"));
            }
            config = Config::preset(preset).with_diagnostics();
            continue;
        }
        let (name, value) = term.split_once('=').unwrap_or((term, ""));
        if name == "normalise" {
            config.batch_normalise = true;
        } else if let Some(weight) = weight(name, value)? {
            if config.weight != Weight::One {
                return Err(format!("{term}: there is a weight already"));
            }
            config.weight = weight;
        } else {
            config.rejections.push(rejection(name, value)?);
        }
    }
    config.validate().map(|()| config).map_err(|error| error.to_string())
}

/// The correction of a system, by its name.
fn preset(name: &str) -> Option<Preset> {
    Some(match name {
        "trl" => Preset::Trl,
        "verl" => Preset::Verl,
        "slime" => Preset::Slime,
        "openrlhf" => Preset::OpenRlhf,
        "nemo-rl" => Preset::NemoRl,
        "skyrl" => Preset::SkyRl,
        _ => return None,
    })
}

fn number(name: &str, text: &str) -> std::result::Result<f64, String> {
    text.parse().map_err(|_| format!("{name}: needs a number, as in {name}=2"))
}

fn bounds(name: &str, text: &str) -> std::result::Result<(f64, f64), String> {
    let pair = text.split_once('_').and_then(|(low, high)| low.parse().ok().zip(high.parse().ok()));
    pair.ok_or_else(|| format!("{name}: needs two numbers, as in {name}=0.5_2"))
}

/// The level behind a name's last dash.
fn level_of(name: &str, default: Level) -> (&str, Level) {
    let levels = [("-token", Level::Token), ("-sequence", Level::Sequence), ("-geometric", Level::Geometric)];
    let found = levels.into_iter().find_map(|(ending, level)| Some((name.strip_suffix(ending)?, level)));
    found.unwrap_or((name, default))
}

fn weight(name: &str, value: &str) -> std::result::Result<Option<Weight>, String> {
    let (word, level) = level_of(name, Level::Token);
    let (_, of_segments) = level_of(name, Level::Sequence);
    let seed = || value.parse().map_err(|_| format!("{name}: needs a seed, as in {name}=7"));
    Ok(Some(match word {
        "tis" => Weight::Truncated { level, max: number(name, value)? },
        "clamp" => bounds(name, value).map(|(low, high)| Weight::Clamped { level, low, high })?,
        "icepop" => bounds(name, value).map(|(low, high)| Weight::Band { level, low, high })?,
        "seq-mask-tis" => bounds(name, value).map(|(low, high)| Weight::SequenceMasked { low, high })?,
        "snis" => Weight::SelfNormalised { level: of_segments, leave_one_out: false },
        "metropolis" => Weight::Metropolis { level: of_segments, mode: Metropolis::Multiplicity, seed: seed()? },
        "metropolis-mask" => Weight::Metropolis { level: of_segments, mode: Metropolis::Mask, seed: seed()? },
        _ => return Ok(None),
    }))
}

fn rejection(name: &str, value: &str) -> std::result::Result<Rejection, String> {
    let (word, level) = level_of(name, Level::Token);
    match word {
        "band" => return bounds(name, value).map(|(low, high)| Rejection::Band { level, low, high }),
        "veto" if value.contains('_') => return bounds(name, value).map(|(low, high)| Rejection::Veto { low, high }),
        "veto" => return Ok(Rejection::Veto { low: number(name, value)?, high: f64::INFINITY }),
        "opsm" => return Ok(Rejection::OffPolicySequence { threshold: number(name, value)? }),
        _ => {}
    }
    let over = |over: &str| match over {
        "token" => Some(Over::Token),
        "sum" => Some(Over::Sum),
        "mean" => Some(Over::Mean),
        "max" => Some(Over::Max),
        _ => None,
    };
    let Some((kind, over)) = name.split_once('-').and_then(|(kind, rest)| Some((kind, over(rest)?))) else {
        return Err(format!("{name}: is no weight and no rejection; see --help"));
    };
    let estimate = match kind {
        "k1" => bounds(name, value).map(|(low, high)| Divergence::K1 { low, high })?,
        "k2" => Divergence::K2(number(name, value)?),
        "k3" => Divergence::K3(number(name, value)?),
        _ => return Err(format!("{name}: is no weight and no rejection; see --help")),
    };
    Ok(Rejection::Divergence { estimate, over })
}

/// What a correction came to.
#[derive(Clone, Debug)]
pub struct Corrected {
    /// `[S]`: what the objective takes for advantages, where the correction makes that of rewards.
    pub factors: Option<Vec<f32>>,
    /// The mean over groups of their estimated mean reward, likewise.
    pub expected_reward: Option<f64>,
    /// `[N]`: the weight of every token, if the correction has one.
    pub weights: Option<Vec<f32>>,
    /// `[N]`: 0 where a token is rejected, if the correction rejects.
    pub keep: Option<Vec<u8>>,
}

impl Corrected {
    /// What a token's loss is multiplied by, all in all.
    pub fn at(&self, token: usize) -> f32 {
        let weight = self.weights.as_ref().map_or(1.0, |weights| weights[token]);
        if self.keep.as_ref().is_some_and(|keep| keep[token] == 0) { 0.0 } else { weight }
    }
}

/// Weights and rejections, and the line of the table. `logprobs` are the current policy's, `advantages` rewards where the correction makes
/// factors of them.
///
/// # Errors
/// Inputs that the correction needs, one correction too many, a finding at a counted token, or what the backend met.
pub fn correct<B: Backend>(
    context: &Context<'_, B>,
    config: &Config,
    anchor: Anchor,
    logprobs: &[f32],
    advantages: HostAdvantages<'_>,
) -> Result<(Corrected, Stage)> {
    let file = context.file;
    let is_attached = config.weight == Weight::SelfNormalisedAttached;
    if anchor == Anchor::Rollout && config.weight != Weight::One && !is_attached {
        return Err(Failure::input(
            "--correction: a weight on ratios against the rollout (--anchor rollout) corrects twice",
        ));
    }
    let by = if is_attached { "--objective snis-attached" } else { "--correction" };
    let missing = || Failure::input(format!("rollout_logprobs: missing, needed by {by}"));
    let rollout = file.logprobs(Policy::Rollout).ok_or_else(missing)?;
    let old = file.logprobs(Policy::Old).filter(|_| !is_attached);
    let segments = Segments::from_offsets(&file.offsets)?;
    let groups = file.group().map(|ids| Groups::from_ids(&ids));
    let inputs = Inputs {
        segments: &segments,
        // Without an old policy the correction is of the current one, and what is attached always is.
        old: old.as_deref().unwrap_or(logprobs),
        rollout: &rollout,
        mask: &context.mask,
        groups: groups.as_ref(),
        advantages: Some(advantages).filter(|_| !is_attached),
        rewards: match advantages {
            HostAdvantages::PerSegment(rewards) if is_attached => Some(rewards),
            _ => None,
        },
    };
    let mut stage = Stage::new("correction", file.tokens);
    let (found, fault) = run(context.backend, &context.stream, config, &inputs, &mut stage.clock)?;
    let settle =
        Settle { tensor: "correction", rows: 0..file.tokens, mask: &context.mask, nonfinite: context.nonfinite };
    stage.findings += settle.by(fault, |_| None, |_| Ok(fault))?;
    if context.compare {
        let (exact, _) = run(&Reference, &(), config, &inputs, &mut Clock::default())?;
        stage.differs("weights", largest_difference(&found.weights, &exact.weights));
        if is_attached {
            stage.differs("factors", largest_difference(&found.factors, &exact.factors));
        }
        stage.rows_differ("keep", found.keep.iter().zip(&exact.keep).filter(|(a, b)| a != b).count());
    }
    let groups = found.expected_rewards.len();
    let expected_reward =
        (is_attached && groups > 0).then(|| found.expected_rewards.iter().sum::<f64>() / groups as f64);
    let factors = is_attached.then_some(found.factors);
    let weights = (config.weight != Weight::One && !is_attached).then_some(found.weights);
    let keep = (!config.rejections.is_empty()).then_some(found.keep);
    Ok((Corrected { factors, expected_reward, weights, keep }, stage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_as_they_are_written() {
        let config = parse("tis-sequence=2,veto=1e-4,k3-mean=0.1,band-geometric=0.99_1.01,normalise").unwrap();
        assert_eq!(config.weight, Weight::Truncated { level: Level::Sequence, max: 2.0 });
        assert!(config.batch_normalise);
        let k3 = Rejection::Divergence { estimate: Divergence::K3(0.1), over: Over::Mean };
        let band = Rejection::Band { level: Level::Geometric, low: 0.99, high: 1.01 };
        assert_eq!(config.rejections, [Rejection::Veto { low: 1e-4, high: f64::INFINITY }, k3, band]);
        let snis = Weight::SelfNormalised { level: Level::Sequence, leave_one_out: false };
        assert_eq!(parse("snis").unwrap().weight, snis);
        let skyrl = parse("skyrl,k3-mean=0.1").unwrap();
        assert_eq!(skyrl, Config::preset(Preset::SkyRl).with_rejection(k3).with_diagnostics());
        assert_eq!(parse("nemo-rl").unwrap().weight, Weight::SequenceMasked { low: 0.999, high: 1.002 });
        assert_eq!(parse("icepop=0.5_5").unwrap().weight, Weight::Band { level: Level::Token, low: 0.5, high: 5.0 });
    }

    #[test]
    fn terms_that_make_no_sense_are_refused_in_words() {
        for (text, part) in [
            ("tis", "needs a number, as in tis=2"),
            ("tis=-1", "max: is -1"),
            ("tis=2,icepop=0.5_5", "there is a weight already"),
            ("verl,icepop=0.5_5", "there is a weight already"),
            ("veto=0.1,verl", "verl: stands in front"),
            ("icepop=2", "needs two numbers"),
            ("k1-max=0.5_2", "k1: has no maximum"),
            ("k4-sum=2", "k4-sum: is no weight and no rejection"),
            ("metropolis", "needs a seed"),
            ("", "is no weight and no rejection"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}
