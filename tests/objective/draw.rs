//! Any call: a configuration, a batch, what is asked for and how it comes.

use moerl::objective::{
    Aggregation, Anchor, Cap, Cispo, CispoCap, Clip, Config, DenominatorBasis, Divergence, Dppo, Kl, KlForm, NonFinite,
    RatioLevel, RejectionScope, Sapo, Saturation, Variant, Vespo, Window,
};
use proptest::prelude::*;
use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::case::Case;
use crate::common;

/// A call, as it is drawn; small ones first, so that it shrinks to them.
#[derive(Clone, Debug)]
pub struct Call {
    pub config: Config,
    pub lengths: Vec<usize>,
    /// Of all numbers in the arrays.
    pub seed: u64,
    /// Which optional arrays there are: a bit each, [`MASK`] and so on.
    pub inputs: u32,
    /// Which outputs are asked for: a bit each, in the order of `outputs::OUTPUTS`.
    pub asked: u32,
    /// What lies in the arrays: [`FAR`] and so on.
    pub data: u32,
    /// Bad numbers of counted tokens: which array, where, what.
    pub bad: Vec<(u8, usize, u8)>,
    pub denominators: Given,
    /// Elements that every array begins behind a boundary of 16 bytes; 0 for all of them where the seed is even.
    pub shift: u64,
    /// Loss and diagnostics go on from something.
    pub accumulates: bool,
    /// Where the pieces of every segment end that come one by one.
    pub cuts: Vec<usize>,
    /// The pieces are ranks', whose planes are added up.
    pub has_ranks: bool,
    /// Whatever the configuration needs is there.
    pub is_complete: bool,
}

/// How denominators are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    Global,
    Device,
    Local,
    /// Zeros.
    Nothing,
}

// Bits of Call::inputs.
pub const MASK: u32 = 1;
pub const OLD: u32 = 2;
pub const WEIGHTS: u32 = 4;
pub const SEGMENT_WEIGHTS: u32 = 8;
pub const KEEP: u32 = 16;
pub const SHIFT: u32 = 32;
pub const ROLLOUT: u32 = 64;
pub const REFERENCE: u32 = 128;
pub const ENTROPY: u32 = 256;
pub const CHOSEN: u32 = 512;
pub const PER_TOKEN: u32 = 1024;
pub const SCALE: u32 = 2048;

// Bits of Call::data.
/// Log-ratios of ±30 and ±130 here and there.
pub const FAR: u32 = 1;
/// Advantages and weights of 0.
pub const ZEROS: u32 = 2;
/// Masked tokens hold anything.
pub const DIRTY: u32 = 4;
/// Nothing of some segments counts or is kept.
pub const EMPTY: u32 = 8;
/// Log-probabilities that are equal, so that ratios are 1.
pub const EQUAL: u32 = 16;

fn window() -> impl Strategy<Value = Window> {
    let side = || prop_oneof![3 => 0.001..0.5, 2 => 0.0003..0.02, 1 => Just(0.0)];
    (prop_oneof![8 => side(), 1 => Just(1.0), 1 => Just(1.5)], prop_oneof![8 => side(), 1 => Just(1e9)])
        .prop_map(|(low, high)| Window::new(low, high))
}

fn clip() -> impl Strategy<Value = Clip> {
    let cap = prop_oneof![
        2 => Just(Cap::None),
        1 => (1.001..4.0).prop_map(Cap::Dual),
        1 => (0.3..3.0).prop_map(Cap::Delta),
        1 => (0.95..1.1).prop_map(Cap::Delta),
    ];
    (window(), cap).prop_map(|(Window { low, high }, cap)| Clip { low, high, cap })
}

fn level() -> impl Strategy<Value = RatioLevel> {
    prop_oneof![Just(RatioLevel::Token), Just(RatioLevel::Sequence)]
}

fn cispo() -> impl Strategy<Value = Cispo> {
    let cap = prop_oneof![window().prop_map(CispoCap::Window), (0.5..3.0).prop_map(|max| CispoCap::Raw { max })];
    (cap, level(), proptest::option::of(window())).prop_map(|(cap, level, unified_mask)| Cispo {
        cap,
        level,
        unified_mask,
    })
}

fn dppo() -> impl Strategy<Value = Dppo> {
    let divergence = prop_oneof![
        Just(Divergence::TotalVariation),
        Just(Divergence::Kl { epsilon: 0.0 }),
        Just(Divergence::Kl { epsilon: 1e-8 })
    ];
    (divergence, 0.002..0.2, 0.002..0.2, prop_oneof![0.5..20.0, Just(f64::INFINITY)])
        .prop_map(|(divergence, low, high, cap)| Dppo { divergence, low, high, cap })
}

fn variant() -> impl Strategy<Value = Variant> {
    let sapo = (0.5..2.0, 0.5..2.0, level()).prop_map(|(tau_positive, tau_negative, level)| Sapo {
        tau_positive,
        tau_negative,
        level,
    });
    let pair = || (0.5..3.0, 0.5..3.0);
    let vespo = (pair(), pair()).prop_map(|(positive, negative)| Vespo { positive, negative });
    prop_oneof![
        4 => clip().prop_map(Variant::PpoClip),
        4 => clip().prop_map(Variant::Gspo),
        4 => clip().prop_map(Variant::GspoToken),
        3 => cispo().prop_map(Variant::Cispo),
        2 => window().prop_map(Variant::Gmpo),
        2 => sapo.prop_map(Variant::Sapo),
        2 => vespo.prop_map(Variant::Vespo),
        2 => dppo().prop_map(Variant::Dppo),
        1 => window().prop_map(Variant::MiniRl),
        1 => (0.0..2.0).prop_map(|penalty| Variant::KlCov { penalty }),
        1 => (0.01..1.0).prop_map(|tau| Variant::SquarePenalty { tau }),
        2 => proptest::sample::select(vec![
            Variant::ReinforceIs, Variant::Topr, Variant::Gpg, Variant::SnisAttached, Variant::TisLoss,
        ]),
    ]
}

fn kl() -> impl Strategy<Value = Option<Kl>> {
    let form = proptest::sample::select(vec![
        KlForm::K1,
        KlForm::Abs,
        KlForm::K2,
        KlForm::K3,
        KlForm::K3IsToken,
        KlForm::K3IsSequence,
    ]);
    let clamp = || proptest::option::of(0.05..2.0);
    let some = (prop_oneof![4 => 0.01..1.0, 1 => Just(0.0)], form, any::<bool>(), clamp(), clamp()).prop_map(
        |(beta, form, straight_through, input_clamp, output_clamp)| Kl {
            beta,
            form,
            straight_through,
            input_clamp,
            output_clamp,
        },
    );
    prop_oneof![2 => Just(None), 3 => some.prop_map(Some)]
}

fn saturation() -> impl Strategy<Value = Saturation> {
    prop_oneof![
        4 => Just(Saturation::default()),
        1 => Just(Saturation::NONE),
        1 => Just(Saturation::above(10.0)),
        1 => (0.01..1.0_f32).prop_map(Saturation::symmetric),
        1 => (-1.0..1.0_f32, 0.01..1.0_f32).prop_map(|(low, width)| Saturation { low, high: low + width }),
    ]
}

/// Any objective whose numbers are legal.
pub fn config() -> impl Strategy<Value = Config> {
    use Aggregation::{
        Custom, PromptMean, SeqMeanTokenMean, SeqMeanTokenSum, SeqMeanTokenSumNorm, TokenMean, TokenSum,
    };
    let aggregation = proptest::sample::select(vec![
        SeqMeanTokenMean,
        TokenMean,
        TokenSum,
        SeqMeanTokenSum,
        SeqMeanTokenSumNorm,
        PromptMean,
        Custom,
    ]);
    let small = || prop_oneof![3 => Just(0.0), 1 => 0.001..0.1];
    let nonfinite = proptest::sample::select(vec![NonFinite::ZeroWeight, NonFinite::Propagate, NonFinite::DropSegment]);
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (
        variant(),
        kl(),
        small(),
        small(),
        aggregation,
        saturation(),
        nonfinite,
        switches,
        prop_oneof![Just(1.0), 0.1..8.0],
    )
        .prop_map(
            |(variant, kl, mismatch_penalty, entropy_bonus, aggregation, saturation, nonfinite, switches, dp_scale)| {
                let (from_rollout, rejects_all, after_rejection, count_empty) = switches;
                let is_attached = variant == Variant::SnisAttached;
                let is_fixed = is_attached && aggregation == SeqMeanTokenMean;
                Config {
                    variant,
                    anchor: if from_rollout || is_attached { Anchor::Rollout } else { Anchor::Old },
                    kl,
                    mismatch_penalty,
                    entropy_bonus,
                    rejection: if rejects_all { RejectionScope::AllTerms } else { RejectionScope::PolicyTerm },
                    denominator_basis: if after_rejection {
                        DenominatorBasis::AfterRejection
                    } else {
                        DenominatorBasis::Original
                    },
                    aggregation: if is_fixed { TokenSum } else { aggregation },
                    saturation,
                    nonfinite,
                    dp_scale,
                    count_empty,
                }
            },
        )
}

/// Lengths that kernels tell apart: a lane, a warp, a unit, several tiles, several groups of 32 of them; segments by the unit, by the group, by the
/// tile of 1024.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let near = |bound: usize| bound - 1..bound + 2;
    let edge = || {
        prop_oneof![
            0..4_usize,
            near(32),
            near(128),
            near(256),
            near(1024),
            near(2048),
            400..600_usize,
            1100..1500_usize
        ]
    };
    prop_oneof![
        8 => proptest::collection::vec(0..6_usize, 0..6),
        6 => proptest::collection::vec(0..45_usize, 0..40),
        6 => proptest::collection::vec(edge(), 0..5),
        3 => prop_oneof![1..70_usize, near(256), near(512)].prop_map(|count| vec![1; count]),
        1 => near(1024).prop_map(|count| vec![1; count]),
        1 => (near(1056), 0..4_usize).prop_map(|(count, most)| (0..count).map(|i| i * i % (most + 1)).collect()),
        1 => (near(32 * 1024), 0..40_usize).prop_map(|(long, short)| vec![short, long, short]),
    ]
}

/// Any call.
pub fn call() -> impl Strategy<Value = Call> {
    // Half of the arrays of what may be there, or whatever bits there are.
    let inputs = prop_oneof![2 => any::<u32>(), 1 => any::<u32>().prop_map(|bits| bits & (MASK | OLD)), 1 => Just(OLD)];
    let asked = prop_oneof![2 => Just(3_u32), 3 => any::<u32>(), 1 => Just(u32::MAX)];
    let data = prop_oneof![2 => Just(0_u32), 3 => any::<u32>()];
    let bad = prop_oneof![3 => Just(vec![]), 1 => proptest::collection::vec(any::<(u8, usize, u8)>(), 1..4)];
    let given = prop_oneof![
        4 => Just(Given::Global),
        2 => Just(Given::Device),
        2 => Just(Given::Local),
        1 => Just(Given::Nothing),
    ];
    let cuts = prop_oneof![1 => Just(vec![]), 1 => proptest::collection::vec(1..60_usize, 1..3)];
    let how =
        (given, any::<u64>(), any::<bool>(), cuts, any::<bool>(), prop_oneof![15 => Just(true), 1 => Just(false)]);
    (config(), lengths(), any::<u64>(), inputs, asked, data, bad, how).prop_map(
        |(config, lengths, seed, inputs, asked, data, bad, how)| {
            let (denominators, shift, accumulates, mut cuts, has_ranks, is_complete) = how;
            cuts.sort_unstable();
            Call {
                config,
                lengths,
                seed,
                inputs,
                asked,
                data,
                bad,
                denominators,
                shift,
                accumulates,
                cuts,
                has_ranks,
                is_complete,
            }
        },
    )
}

impl Call {
    fn has(&self, input: u32) -> bool {
        self.inputs & input != 0
    }

    /// The arrays that the configuration needs, and none that it excludes.
    fn completed(&self) -> u32 {
        let config = &self.config;
        let mut inputs = self.inputs;
        if !self.is_complete {
            return inputs;
        }
        let is_anchored = config.anchor == Anchor::Rollout;
        for (is_needed, input) in [
            (is_anchored || config.mismatch_penalty != 0.0 || matches!(config.variant, Variant::MiniRl(_)), ROLLOUT),
            (config.kl.is_some(), REFERENCE),
            (config.entropy_bonus != 0.0, ENTROPY),
            (matches!(config.variant, Variant::KlCov { .. }), CHOSEN),
            (config.variant == Variant::ReinforceIs, WEIGHTS),
            (matches!(config.aggregation, Aggregation::Custom | Aggregation::PromptMean), SCALE),
        ] {
            if is_needed {
                inputs |= input;
            }
        }
        if is_anchored && config.variant != Variant::ReinforceIs {
            inputs &= !(WEIGHTS | SEGMENT_WEIGHTS);
        }
        if config.variant == Variant::SnisAttached {
            inputs &= !PER_TOKEN;
        }
        inputs
    }

    /// The batch of the call.
    pub fn case(&self) -> Case {
        let call = &Call { inputs: self.completed(), ..self.clone() };
        let seed = call.seed;
        let mut rng = common::seeded(seed);
        let mut case = Case::random(&call.lengths, seed).with_terms(seed).with_corrections(seed).with_weights(seed);
        if call.has(MASK) {
            case = case.with_mask(seed);
        }
        if call.has(PER_TOKEN) {
            case = case.with_token_advantages(seed);
            // One that varies inside a segment of GMPO is a fault; now and then it is to be one.
            if matches!(call.config.variant, Variant::Gmpo(_)) && rng.random_range(0..8) != 0 {
                case = case.with_one_advantage_a_segment();
            }
        }
        case.segment_scale = Some(call.lengths.iter().map(|&length| length.max(1) as f32 * 1.5).collect());
        call.alter(&mut case, &mut rng);
        for (input, array) in [
            (OLD, &mut case.old_logprobs),
            (WEIGHTS, &mut case.weights),
            (SEGMENT_WEIGHTS, &mut case.segment_weights),
            (SHIFT, &mut case.router_shift),
            (ROLLOUT, &mut case.rollout_logprobs),
            (REFERENCE, &mut case.ref_logprobs),
            (ENTROPY, &mut case.entropy),
            (SCALE, &mut case.segment_scale),
        ] {
            if !call.has(input) {
                *array = None;
            }
        }
        for (input, array) in [(KEEP, &mut case.keep), (CHOSEN, &mut case.chosen)] {
            if !call.has(input) {
                *array = None;
            }
        }
        call.spoil(&mut case);
        case.denominators = match call.denominators {
            Given::Local => None,
            Given::Nothing => Some([0; 4]),
            _ => case.denominators,
        };
        case
    }

    fn alter(&self, case: &mut Case, rng: &mut impl rand::Rng) {
        let data = |bit| self.data & bit != 0;
        let tokens = case.tokens();
        if data(EQUAL) {
            let start = rng.random_range(0..tokens.max(1)).min(tokens);
            let from = case.logprobs[start..].to_vec();
            for array in [&mut case.old_logprobs, &mut case.ref_logprobs, &mut case.rollout_logprobs] {
                array.as_mut().unwrap()[start..].copy_from_slice(&from);
            }
        }
        if data(FAR) {
            for u in (0..tokens).filter(|_| rng.random_range(0..12) == 0).collect::<Vec<_>>() {
                let low = *[-30.0, -31.0, -130.0, -131.5].choose(rng).unwrap();
                let is_up = rng.random_range(0..2) == 0;
                let old = &mut case.old_logprobs.as_mut().unwrap()[u];
                (case.logprobs[u], *old) = if is_up { (-0.5, low) } else { (low, -0.5) };
                case.rollout_logprobs.as_mut().unwrap()[u] = *old;
                // A divergence of e^70 would be alone in the loss, and of the two parts of its gradient by s nothing would be left in f32.
                case.ref_logprobs.as_mut().unwrap()[u] = case.logprobs[u] - 0.5;
            }
        }
        if data(ZEROS) {
            for a in &mut case.advantages {
                if rng.random_range(0..4) == 0 {
                    *a = 0.0;
                }
            }
            for weights in [&mut case.weights, &mut case.segment_weights] {
                for w in weights.as_mut().unwrap() {
                    if rng.random_range(0..4) == 0 {
                        *w = 0.0;
                    }
                }
            }
        }
        if data(EMPTY) {
            let ranges: Vec<_> = case.segments().ranges().collect();
            for range in ranges {
                match rng.random_range(0..4) {
                    0 => case.keep.as_mut().unwrap()[range].fill(0),
                    1 => case.loss_mask.iter_mut().for_each(|mask| mask[range.clone()].fill(0)),
                    _ => {}
                }
            }
        }
    }

    /// Numbers that must not matter, and some that must.
    fn spoil(&self, case: &mut Case) {
        let counts = |case: &Case, u: usize| case.loss_mask.as_ref().is_none_or(|mask| mask[u] != 0);
        if self.data & DIRTY != 0 {
            for u in (0..case.tokens()).filter(|&u| !counts(case, u)).collect::<Vec<_>>() {
                let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 500.0][u % 4];
                case.logprobs[u] = bad;
                if case.per_token {
                    case.advantages[u] = bad;
                }
                for array in [
                    &mut case.old_logprobs,
                    &mut case.weights,
                    &mut case.rollout_logprobs,
                    &mut case.ref_logprobs,
                    &mut case.entropy,
                    &mut case.router_shift,
                ] {
                    array.iter_mut().for_each(|array| array[u] = bad);
                }
            }
            let empty: Vec<usize> = case
                .segments()
                .ranges()
                .enumerate()
                .filter(|(_, range)| !range.clone().any(|u| counts(case, u)))
                .map(|(i, _)| i)
                .collect();
            for i in empty {
                if !case.per_token {
                    case.advantages[i] = f32::NAN;
                }
                case.segment_weights.iter_mut().for_each(|array| array[i] = f32::NAN);
                case.segment_scale.iter_mut().for_each(|array| array[i] = f32::NAN);
            }
        }
        for &(which, at, what) in &self.bad {
            if case.tokens() == 0 {
                return;
            }
            let (u, i) = (at % case.tokens(), at % case.lengths.len());
            let number = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5, 5e-4][usize::from(what) % 5];
            let logprob = number;
            let other = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][usize::from(what) % 3];
            let put = |array: &mut Option<Vec<f32>>, at: usize, number: f32| {
                array.iter_mut().for_each(|array| array[at] = number);
            };
            match which % 12 {
                0 | 1 => case.logprobs[u] = logprob,
                // What a term without a ratio does not read is looked at only where a ratio is asked for.
                2 if !self.is_linear() => put(&mut case.old_logprobs, u, logprob),
                3 => {
                    let place = if case.per_token { u } else { i };
                    case.advantages[place] = other;
                }
                4 => put(&mut case.weights, u, other),
                5 if !self.is_linear() || self.config.anchor == Anchor::Old => {
                    put(&mut case.rollout_logprobs, u, logprob)
                }
                6 => put(&mut case.ref_logprobs, u, logprob),
                7 => put(&mut case.entropy, u, other),
                8 if !self.is_linear() => put(&mut case.router_shift, u, other),
                9 => put(&mut case.segment_weights, i, other),
                10 => put(&mut case.segment_scale, i, [f32::NAN, 0.0, -1.0][usize::from(what) % 3]),
                _ => case.loss_mask.iter_mut().for_each(|mask| mask[u] = 2 + what / 2),
            }
        }
    }

    fn is_linear(&self) -> bool {
        matches!(self.config.variant, Variant::ReinforceIs | Variant::Gpg | Variant::SnisAttached)
    }
}
