//! Policy objectives in plain f64 loops.

mod phases;
mod policy;
mod statistics;
mod terms;
#[cfg(test)]
mod tests;

pub(super) use phases::{apply, finish, one_call, partial};

use crate::abi::MOERL_NO_FAULT;
use crate::error::{Fault, FaultCode};
use crate::objective::{
    Aggregation, Bounds, Config, DenominatorBasis, KlForm, NonFinite, Rates, RejectionScope, Saturation, Variant,
};
use crate::segments::Segments;
use policy::{Policy, policy_of, sigmoid, sigmoid_slope};
use terms::{Divergence, divergence_of, plain_divergence};

/// Bits of [`Coefficient::flags`](crate::objective::Coefficient::flags).
pub(crate) mod flag {
    pub(crate) const ABOVE: u32 = 1;
    pub(crate) const BELOW: u32 = 2;
    pub(crate) const CAPPED: u32 = 4;
    pub(crate) const PASS_POSITIVE: u32 = 8;
    pub(crate) const PASS_NEGATIVE: u32 = 16;
    pub(crate) const NONFINITE: u32 = 32;
    pub(crate) const DROPPED: u32 = 64;
    pub(crate) const EMPTY: u32 = 128;
}

/// Above this a log-probability is a fault.
const POSITIVE_LOGPROB: f64 = 1e-3_f32 as f64;

/// The inputs of a batch, widened; those that the configuration does not use are absent.
#[derive(Clone, Debug, Default)]
struct Tokens {
    logprobs: Vec<f64>,
    /// o, or q where that is the anchor.
    old_logprobs: Option<Vec<f64>>,
    /// `[S]` or `[N]`.
    advantages: Vec<f64>,
    per_token: bool,
    loss_mask: Option<Vec<u8>>,
    weights: Option<Vec<f64>>,
    segment_weights: Option<Vec<f64>>,
    keep: Option<Vec<u8>>,
    chosen: Option<Vec<u8>>,
    router_shift: Option<Vec<f64>>,
    /// q, beside an old policy.
    rollout_logprobs: Option<Vec<f64>>,
    ref_logprobs: Option<Vec<f64>>,
    entropy: Option<Vec<f64>>,
    segment_scale: Option<Vec<f64>>,
}

/// One token, as the formulas see it.
#[derive(Clone, Copy, Debug)]
struct Token {
    current: f64,
    old: f64,
    delta: f64,
    advantage: f64,
    weight: f64,
    /// r − l.
    to_ref: f64,
    /// l − q.
    from_rollout: f64,
    entropy: f64,
    shift: f64,
    is_kept: bool,
    is_chosen: bool,
}

/// Which inputs make a token unsound: in the first phase those of the policy's term and what it sums beside, later all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    BySums,
    All,
}

impl Tokens {
    fn counts(&self, token: usize) -> bool {
        self.loss_mask.as_ref().is_none_or(|mask| mask[token] != 0)
    }

    fn is_kept(&self, token: usize) -> bool {
        self.keep.as_ref().is_none_or(|keep| keep[token] != 0)
    }

    fn segment_weight(&self, segment: usize) -> f64 {
        self.segment_weights.as_ref().map_or(1.0, |weights| weights[segment])
    }

    /// The token of a segment; `None` where one of its inputs is not finite.
    fn token(&self, token: usize, segment: usize) -> Option<Token> {
        self.token_alone(token, segment).filter(|token| token.advantage.is_finite())
    }

    /// As [`token`](Tokens::token), whatever its segment's advantage is.
    fn token_alone(&self, token: usize, segment: usize) -> Option<Token> {
        self.token_seen(token, segment, Seen::All, true)
    }

    /// The token as the first phase sees it.
    fn token_summed(&self, config: &Config, token: usize, segment: usize) -> Option<Token> {
        self.token_counted(config, token, segment).filter(|token| token.advantage.is_finite())
    }

    /// As [`token_summed`](Tokens::token_summed), whatever its segment's advantage is.
    fn token_counted(&self, config: &Config, token: usize, segment: usize) -> Option<Token> {
        let seen = if config.nonfinite == NonFinite::DropSegment { Seen::All } else { Seen::BySums };
        let with_ref = config.kl_form() == Some(KlForm::K3IsSequence);
        self.token_seen(token, segment, seen, with_ref)
    }

    fn token_seen(&self, token: usize, segment: usize, seen: Seen, with_ref: bool) -> Option<Token> {
        let at = |array: &Option<Vec<f64>>, or: f64| array.as_ref().map_or(or, |array| array[token]);
        let current = self.logprobs[token];
        let old = at(&self.old_logprobs, current);
        let advantage = self.advantages[if self.per_token { token } else { segment }];
        let weight = at(&self.weights, 1.0);
        let shift = at(&self.router_shift, 0.0);
        let (reference, rollout, entropy) =
            (at(&self.ref_logprobs, current), at(&self.rollout_logprobs, old), at(&self.entropy, 0.0));
        let mut is_sound = [current, old, weight, shift].iter().all(|x| x.is_finite());
        is_sound &= !self.per_token || advantage.is_finite();
        is_sound &= reference.is_finite() || seen == Seen::BySums && !with_ref;
        is_sound &= seen == Seen::BySums || rollout.is_finite() && entropy.is_finite();
        is_sound.then_some(Token {
            current,
            old,
            delta: current - old + shift,
            advantage,
            weight,
            to_ref: reference - current,
            from_rollout: current - rollout,
            entropy,
            shift,
            is_kept: self.is_kept(token),
            is_chosen: self.chosen.as_ref().is_some_and(|chosen| chosen[token] != 0),
        })
    }

    /// The first fault of a token, as the error word holds it.
    fn fault(&self, token: usize, segment: usize, tag: u16) -> u64 {
        let word = |code| Fault { row: token as u64, tag, code }.to_word();
        let mut first = MOERL_NO_FAULT;
        if self.loss_mask.as_ref().is_some_and(|mask| mask[token] > 1) {
            first = first.min(word(FaultCode::Mask));
        }
        if self.counts(token) {
            let logprobs = [&self.old_logprobs, &self.rollout_logprobs, &self.ref_logprobs];
            let largest = logprobs.into_iter().flatten().map(|array| array[token]).fold(self.logprobs[token], f64::max);
            if self.token(token, segment).is_none() {
                first = first.min(word(FaultCode::NonfiniteInput));
            } else if largest > POSITIVE_LOGPROB {
                first = first.min(word(FaultCode::PositiveLogprob));
            }
        }
        first
    }
}

/// True where the variant takes one advantage of a segment and its tokens have several.
fn has_varying_advantage(config: &Config, tokens: &Tokens, segment: usize, range: std::ops::Range<usize>) -> bool {
    let shared = |u: usize| tokens.token_summed(config, u, segment).filter(|token| token.is_kept);
    let mut advantages = range.filter(|&u| tokens.counts(u)).filter_map(shared).map(|token| token.advantage);
    matches!(config.variant, Variant::Gmpo(_))
        && advantages.next().is_some_and(|first| advantages.any(|advantage| advantage != first))
}

/// The planes of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    log_ratio: f64,
    count: f64,
    positive: f64,
    negative: f64,
    kept: f64,
    divergence: f64,
    folded: f64,
    nonfinite: f64,
}

/// [`Coefficient`](crate::objective::Coefficient) before it is rounded.
#[derive(Clone, Copy, Debug, Default)]
struct Coefficient {
    ratio: f64,
    weight: f64,
    gradient: f64,
    flags: u32,
    scale: f64,
    sequence_ratio: f64,
    shared: f64,
    segment_weight: f64,
}

/// T, B, P and L.
type Counts = [f64; 4];

/// A factor of 0 leaves nothing, whatever it multiplies: that may be infinite.
fn times(factor: f64, x: f64) -> f64 {
    if factor == 0.0 { 0.0 } else { factor * x }
}

fn saturate(bounds: Saturation, x: f64) -> f64 {
    x.max(f64::from(bounds.low)).min(f64::from(bounds.high))
}

fn is_inside(bounds: Saturation, x: f64) -> bool {
    f64::from(bounds.low) <= x && x <= f64::from(bounds.high)
}

impl Bounds {
    fn positive(&self, ratio: f64) -> f64 {
        ratio.min(self.upper)
    }
    fn negative(&self, ratio: f64) -> f64 {
        ratio.max(self.lower).min(self.cap)
    }
    /// Where `x·scale` lies, for the scaled logarithm x of a ratio.
    fn flags(&self, x: f64, scale: f64) -> u32 {
        let mut flags = 0;
        if x > scale * self.log_upper {
            flags |= flag::ABOVE;
        }
        if x < scale * self.log_lower {
            flags |= flag::BELOW;
        }
        if x > scale * self.log_cap {
            flags |= flag::CAPPED;
        }
        flags
    }
}

/// The flags with what passes a gradient.
fn with_passes(flags: u32, inside: bool) -> u32 {
    let positive = inside && flags & flag::ABOVE == 0;
    let negative = inside && flags & (flag::BELOW | flag::CAPPED) == 0;
    flags | if positive { flag::PASS_POSITIVE } else { 0 } | if negative { flag::PASS_NEGATIVE } else { 0 }
}

/// Those of the bits 1, 2, 4 that concern an advantage of this sign.
fn clipped(flags: u32, advantage: f64) -> u32 {
    if advantage > 0.0 {
        flags & flag::ABOVE
    } else if advantage < 0.0 {
        flags & (flag::BELOW | flag::CAPPED)
    } else {
        0
    }
}

fn passes(flags: u32, advantage: f64) -> bool {
    advantage > 0.0 && flags & flag::PASS_POSITIVE != 0 || advantage < 0.0 && flags & flag::PASS_NEGATIVE != 0
}

/// The token's weight in the policy's term, beside c and W.
fn policy_weight(config: &Config, token: &Token) -> f64 {
    match (token.is_kept, config.variant.folds_weights()) {
        (false, _) => 0.0,
        (true, true) => 1.0,
        (true, false) => token.weight,
    }
}

/// The token's share of C.
fn folded_part(config: &Config, token: &Token, weighted: bool) -> f64 {
    let Bounds { log_upper, log_lower, .. } = Bounds::of(&config.variant);
    let x = match config.variant {
        Variant::Vespo(_) => token.delta.clamp(-20.0, 20.0),
        _ if token.advantage > 0.0 => token.delta.min(log_upper),
        _ if token.advantage < 0.0 => token.delta.max(log_lower),
        _ => token.delta,
    };
    x + if weighted { token.weight.ln() } else { 0.0 }
}

fn sum_segment(config: &Config, tokens: &Tokens, segment: usize, range: std::ops::Range<usize>) -> Sums {
    let mut sums = Sums::default();
    for u in range.filter(|&u| tokens.counts(u)) {
        sums.count += 1.0;
        sums.kept += f64::from(tokens.is_kept(u));
        let Some(token) = tokens.token_summed(config, u, segment) else {
            sums.nonfinite += 1.0;
            continue;
        };
        let weight = policy_weight(config, &token);
        sums.log_ratio += token.delta;
        sums.positive += weight * token.advantage.max(0.0);
        sums.negative += weight * token.advantage.min(0.0);
        if config.variant.folds_weights() && token.is_kept {
            sums.folded += folded_part(config, &token, tokens.weights.is_some());
        }
        if config.kl_form() == Some(KlForm::K3IsSequence) && has_terms(config, &token) {
            sums.divergence += plain_divergence(config, token.to_ref).value;
        }
    }
    sums
}

/// True where the token has what stands beside the policy's term.
fn has_terms(config: &Config, token: &Token) -> bool {
    token.is_kept || config.rejection == RejectionScope::PolicyTerm
}

/// c of a segment with `count` tokens in its denominators: 0 where rejection left none, NaN where a denominator that it uses is 0.
fn coefficient(config: &Config, counts: &Counts, count: f64, scale: f64) -> f64 {
    if count == 0.0 {
        return 0.0;
    }
    let [tokens, segments, prompts, longest] = *counts;
    let denominator = match config.aggregation {
        Aggregation::TokenMean => tokens,
        Aggregation::TokenSum => 1.0,
        Aggregation::SeqMeanTokenMean => segments * count,
        Aggregation::SeqMeanTokenSum => segments,
        Aggregation::SeqMeanTokenSumNorm => segments * longest,
        Aggregation::PromptMean => prompts * scale,
        Aggregation::Custom => return config.dp_scale * scale,
    };
    if denominator > 0.0 { config.dp_scale / denominator } else { f64::NAN }
}

/// The policy's term where the segment decides it: its value and the gradient that its tokens share, without c and W.
fn segment_term(config: &Config, sums: &Sums, ratio: f64, flags: u32, inside: bool) -> (f64, f64) {
    let (bounds, rates) = (Bounds::of(&config.variant), Rates::of(&config.variant));
    let Sums { count, positive, negative, .. } = *sums;
    match config.variant {
        Variant::Gspo(_) | Variant::GspoToken(_) => {
            let value = times(positive, bounds.positive(ratio)) + times(negative, bounds.negative(ratio));
            let up = if flags & flag::PASS_POSITIVE != 0 { positive } else { 0.0 };
            let down = if flags & flag::PASS_NEGATIVE != 0 { negative } else { 0.0 };
            (-value, -times(up + down, ratio / count))
        }
        Variant::Sapo(_) => {
            let (up, down) = (rates.positive * (ratio - 1.0), rates.negative * (ratio - 1.0));
            let value = 4.0 / rates.positive * sigmoid(up) * positive + 4.0 / rates.negative * sigmoid(down) * negative;
            let slope = sigmoid_slope(up) * positive + sigmoid_slope(down) * negative;
            (-value, if inside { times(slope, -ratio / count) } else { 0.0 })
        }
        Variant::Gmpo(_) => {
            let x = sums.folded / count;
            let mean = geometric_mean(config, sums);
            let sum = positive + negative;
            (times(sum, -mean), if is_inside(config.saturation, x) { times(sum, -mean / count) } else { 0.0 })
        }
        _ => (0.0, 0.0),
    }
}

/// R·W of GMPO; a weight of 0 leaves nothing of the product.
fn geometric_mean(config: &Config, sums: &Sums) -> f64 {
    let x = sums.folded / sums.count;
    if x == f64::NEG_INFINITY { 0.0 } else { saturate(config.saturation, x).exp() }
}

/// φ of VESPO, for (k, λ).
fn shaped_weight(sums: &Sums, rate: f64, scale: f64) -> f64 {
    let log_weight = sums.folded.clamp(1e-8_f64.ln(), 20.0);
    (scale + rate * log_weight - scale * log_weight.exp()).exp()
}

/// What stands in place of a token's ratio.
fn ratio_for_tokens(config: &Config, sums: &Sums, ratio: f64) -> f64 {
    match config.variant {
        Variant::Cispo(_) if config.variant.is_sequence_level() => {
            let bounds = Bounds::of(&config.variant);
            ratio.max(bounds.lower).min(bounds.upper)
        }
        Variant::Gmpo(_) => geometric_mean(config, sums),
        Variant::Vespo(vespo) => shaped_weight(sums, vespo.positive.0, vespo.positive.1),
        _ => ratio,
    }
}

/// A segment, decided.
struct Finished {
    coefficient: Coefficient,
    /// The policy's loss, where it is known by now.
    value: f64,
    no_denominator: bool,
    bad_weight: bool,
    /// Of an advantage that the tokens have to share: pieces of a segment that came in several calls show by their sums alone.
    both_signs: bool,
}

/// What the sums of a segment come to.
fn finish_segment(config: &Config, counts: &Counts, sums: &Sums, scale: f64, segment_weight: f64) -> Finished {
    let mut c = Coefficient { ratio: 1.0, sequence_ratio: 1.0, segment_weight: 1.0, ..Coefficient::default() };
    if sums.count == 0.0 {
        c.flags = flag::EMPTY;
        return Finished { coefficient: c, value: 0.0, no_denominator: false, bad_weight: false, both_signs: false };
    }
    let (variant, sequence) = (&config.variant, config.variant.is_sequence_level());
    let log_ratio = sums.log_ratio / sums.count;
    let inside = is_inside(config.saturation, log_ratio);
    // A clamped ratio is a constant, which no saturation stops.
    let moves = inside || matches!(variant, Variant::Cispo(_)) && sequence;
    c.flags = with_passes(Bounds::of(variant).flags(sums.log_ratio, sums.count), moves);
    c.sequence_ratio = saturate(config.saturation, log_ratio).exp();
    let in_denominators = match config.denominator_basis {
        DenominatorBasis::Original => sums.count,
        DenominatorBasis::AfterRejection => sums.kept,
    };
    c.scale = coefficient(config, counts, in_denominators, scale);
    let bad_weight = !segment_weight.is_finite();
    c.segment_weight = match config.nonfinite {
        _ if !bad_weight => segment_weight,
        NonFinite::ZeroWeight => 0.0,
        NonFinite::Propagate | NonFinite::DropSegment => f64::NAN,
    };
    if sums.nonfinite > 0.0 || bad_weight {
        c.flags |= flag::NONFINITE;
        match config.nonfinite {
            NonFinite::DropSegment => {
                c.flags |= flag::DROPPED;
                (c.scale, c.segment_weight) = (0.0, 0.0);
            }
            NonFinite::Propagate if sequence => c.sequence_ratio = f64::NAN,
            NonFinite::Propagate | NonFinite::ZeroWeight => {}
        }
    }
    let no_denominator = c.scale.is_nan();
    c.weight = c.scale * c.segment_weight;
    c.ratio = c.sequence_ratio;
    let mut value = 0.0;
    if c.flags & flag::DROPPED == 0 && sequence {
        let is_nan = c.sequence_ratio.is_nan();
        c.ratio = if is_nan { f64::NAN } else { ratio_for_tokens(config, sums, c.sequence_ratio) };
        let (policy, slope) = segment_term(config, sums, c.sequence_ratio, c.flags, inside);
        if variant.is_valued_by_segment() {
            value = if is_nan { f64::NAN } else { times(c.weight, policy) };
        }
        if variant.shares_gradient() || matches!(variant, Variant::Gmpo(_)) {
            c.gradient = if is_nan { f64::NAN } else { times(c.weight, slope) + 0.0 };
        }
        if let Variant::Vespo(vespo) = variant {
            c.gradient = if is_nan { f64::NAN } else { shaped_weight(sums, vespo.negative.0, vespo.negative.1) };
        }
    }
    if let Some(kl) = config.kl.filter(|kl| kl.form == KlForm::K3IsSequence)
        && inside
        && c.scale != 0.0
        && !kl.straight_through
    {
        c.shared = times(kl.beta * c.scale * sums.divergence, c.sequence_ratio / sums.count);
    }
    let both_signs = matches!(variant, Variant::Gmpo(_)) && sums.positive > 0.0 && sums.negative < 0.0;
    Finished { coefficient: c, value, no_denominator, bad_weight, both_signs }
}

/// What a counted token comes to.
#[derive(Clone, Copy, Debug)]
struct Applied {
    /// Its value, without c.
    value: f64,
    gradient: f64,
    clipped: u32,
    ratio: f64,
    kl: f64,
    d_entropy: f64,
    policy: Policy,
    /// The values of the terms beside the policy's, without c: divergence, mismatch, entropy.
    terms: [f64; 3],
}

/// A token that is not sound.
fn apply_unsound(config: &Config) -> Applied {
    let x = if config.nonfinite == NonFinite::Propagate { f64::NAN } else { 0.0 };
    let ratio = if x.is_nan() { x } else { 1.0 };
    let policy = Policy::default();
    Applied { value: x, gradient: x, clipped: 0, ratio, kl: x, d_entropy: x, policy, terms: [0.0; 3] }
}

/// A counted token.
fn apply_token(config: &Config, segment: &Coefficient, token: Option<Token>) -> Applied {
    let Some(token) = token else { return apply_unsound(config) };
    let ratio = saturate(config.saturation, token.delta).exp();
    let mut policy = policy_of(config, segment, &token, ratio);
    let weight = policy_weight(config, &token);
    let clipped = clipped(policy.flags, token.advantage);
    let mut gradient = times(segment.weight, times(weight, policy.slope));
    let shares = config.variant.shares_gradient()
        || matches!(config.variant, Variant::Gmpo(_)) && token.is_kept && passes(policy.flags, token.advantage);
    if shares {
        gradient += segment.gradient;
    }
    let mut value = if segment.weight == 0.0 { 0.0 } else { times(segment.segment_weight * weight, policy.value) };
    if weight == 0.0 || segment.flags & flag::DROPPED != 0 {
        policy.pull = 0.0;
    }
    let kl = config.kl.map_or(Divergence::default(), |_| divergence_of(config, &token, segment, ratio));
    let (mut d_entropy, mut terms) = (0.0, [0.0; 3]);
    if has_terms(config, &token) && segment.scale != 0.0 {
        let (beta, kappa, eta) = (config.kl.map_or(0.0, |kl| kl.beta), config.mismatch_penalty, config.entropy_bonus);
        terms = [times(beta, kl.value), kappa * token.from_rollout * token.from_rollout, -eta * token.entropy];
        value += terms.iter().sum::<f64>();
        gradient += segment.scale * (times(beta, kl.slope) + 2.0 * kappa * token.from_rollout);
        d_entropy = -segment.scale * eta + 0.0;
    }
    gradient += segment.shared + 0.0;
    if segment.flags & flag::DROPPED != 0 {
        (value, gradient, d_entropy) = (0.0, 0.0, 0.0);
    }
    Applied { value, gradient, clipped, ratio, kl: kl.value, d_entropy, policy, terms }
}

/// T and B of a batch, and what else the caller said.
fn local_counts(config: &Config, segments: &Segments, tokens: &Tokens, max_len: u64) -> Counts {
    let is_after = config.denominator_basis == DenominatorBasis::AfterRejection;
    let in_denominators = |u: &usize| tokens.counts(*u) && (!is_after || tokens.is_kept(*u));
    let counts = segments.ranges().map(|range| range.filter(in_denominators).count());
    let (mut total, mut nonempty) = (0, 0);
    for count in counts {
        total += count;
        nonempty += usize::from(count > 0 || config.count_empty);
    }
    [total as f64, nonempty as f64, 0.0, max_len as f64]
}
