//! Any choice of tokens: rules, means, lengths, ties, masks, places and outputs in whatever combination, and what must be refused.

use moerl::covariance::{Call, Config, Rule, workspace_bytes};
use moerl::memory::{View, ViewMut};
use moerl::{Backend, Reference, Result};
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::Tokens;
use crate::common::placed::{Place, Placed, untouched};
use crate::common::property::{for_any, unless_refused};
#[cfg(feature = "emulate")]
use crate::common::schedules::schedules;
use crate::common::seeded;

/// What is drawn of a call.
#[derive(Clone, Debug)]
struct Drawn {
    config: Config,
    tokens: usize,
    kind: Kind,
    ids: u8,
    /// Mask, excluded tokens, and the two outputs: a bit each.
    has: u8,
    /// How likely a number is NaN or infinite.
    bad: f64,
    aligned: bool,
    flaw: Flaw,
    seed: u64,
}

const MASK: u8 = 1;
const EXCLUDED: u8 = 2;
const CHOSEN: u8 = 4;
const KEEP: u8 = 8;

/// Of which kind the numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Few values: covariances tie, and lie on bounds.
    Quarters,
    /// Multiples of 2⁻²⁰.
    Fine,
    Same,
    /// Of any magnitude: their sums depend on the order.
    Any,
    Extreme,
}

impl Kind {
    /// Whether f64 holds their sums, whatever the order: means are then the same on every backend, and so is every choice.
    fn has_exact_sums(self) -> bool {
        matches!(self, Kind::Quarters | Kind::Fine | Kind::Same)
    }
    fn number(self, rng: &mut StdRng, same: f32) -> f32 {
        let extremes = [f32::MAX, -f32::MAX, 1e30, f32::MIN_POSITIVE, 1e-45, -1e-45, 0.0, -0.0, 1.0, -1e-30];
        match self {
            Kind::Quarters => rng.random_range(-8_i32..8) as f32 / 4.0,
            Kind::Fine => rng.random_range(-2_000_000_i32..2_000_000) as f32 / 1_048_576.0,
            Kind::Same => same,
            Kind::Any => rng.random_range(-1.0_f32..1.0) * 10f32.powi(rng.random_range(-44..38)),
            Kind::Extreme => extremes[rng.random_range(0..extremes.len())],
        }
    }
}

/// What is wrong with the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    Advantages,
    Ids,
    Mask,
    Excluded,
    Chosen,
    Keep,
    Workspace,
    Shared,
    /// An address that is no multiple of an element.
    Odd,
}

fn rule() -> impl Strategy<Value = Rule> {
    let fraction = || select(vec![1e-9, 2e-4, 0.01, 0.1, 1.0 / 3.0, 0.5, 0.999, 1.0]);
    let infinity = f64::INFINITY;
    let bounds =
        || select(vec![(-infinity, infinity), (0.5, 3.0), (-1.0, 1.0), (0.0, infinity), (0.25, 0.5), (-1e-30, 1e-30)]);
    let probability = select(vec![0.0, 1.0, 0.3, 0.5f64.powi(32), 1.0 - 0.5f64.powi(33), 1e-12, 0.9]);
    let seed = || prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)];
    prop_oneof![
        (bounds(), fraction(), seed()).prop_map(|(bounds, fraction, seed)| Rule::Random { bounds, fraction, seed }),
        (bounds(), probability, seed()).prop_map(|(bounds, probability, seed)| Rule::Bernoulli {
            bounds,
            probability,
            seed
        }),
        fraction().prop_map(|fraction| Rule::Largest { fraction }),
    ]
}

fn unsound_rule() -> impl Strategy<Value = Rule> {
    let number = || select(vec![0.0, -0.1, 1.0 + 1e-15, f64::NAN, f64::INFINITY, 0.5]);
    let bounds = || select(vec![(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (0.0, f64::NAN), (0.0, 1.0)]);
    prop_oneof![
        (bounds(), number()).prop_map(|(bounds, fraction)| Rule::Random { bounds, fraction, seed: 1 }),
        (bounds(), number()).prop_map(|(bounds, probability)| Rule::Bernoulli { bounds, probability, seed: 1 }),
        number().prop_map(|fraction| Rule::Largest { fraction }),
    ]
}

fn drawn() -> impl Strategy<Value = Drawn> {
    // Of a warp, of what a block takes at once, of a block.
    let tokens = prop_oneof![
        3 => 0_usize..9,
        3 => select(vec![31_usize, 32, 33, 255, 256, 257, 1023, 1024, 1025, 2047, 2049, 3100]),
    ];
    let means = select(vec![(0.1, -2.0), (0.0, 0.0), (0.25, -0.5), (1e308, -1e308), (-1e-30, 1e-300)]);
    let means = prop_oneof![4 => Just(None), 4 => means.prop_map(Some), 1 => Just(Some((f64::NAN, f64::INFINITY)))];
    let rule = prop_oneof![12 => rule().boxed(), 1 => unsound_rule().boxed()];
    let config = (rule, means).prop_map(|(rule, means)| Config { rule, means });
    let kind =
        select(vec![Kind::Quarters, Kind::Quarters, Kind::Fine, Kind::Fine, Kind::Same, Kind::Any, Kind::Extreme]);
    let flaws = [
        Flaw::Advantages,
        Flaw::Ids,
        Flaw::Mask,
        Flaw::Excluded,
        Flaw::Chosen,
        Flaw::Keep,
        Flaw::Workspace,
        Flaw::Shared,
        Flaw::Odd,
    ];
    let flaw = prop_oneof![6 => Just(Flaw::Nothing), 1 => select(flaws.to_vec())];
    let bad = select(vec![0.0, 0.0, 0.05, 0.9, 1.0]);
    (config, tokens, kind, 0_u8..3, 0_u8..16, bad, any::<bool>(), flaw, any::<u64>()).prop_map(
        |(config, tokens, kind, ids, has, bad, aligned, flaw, seed)| Drawn {
            config,
            tokens,
            kind,
            ids,
            has,
            bad,
            aligned,
            flaw,
            seed,
        },
    )
}

impl Drawn {
    fn has(&self, array: u8) -> bool {
        self.has & array != 0
    }

    fn tokens(&self) -> Tokens {
        let (mut rng, n) = (seeded(self.seed), self.tokens);
        let mut floats = || -> Vec<f32> {
            let same = rng.random_range(-8_i32..8) as f32 / 4.0;
            let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            let bad = self.bad;
            let mut one =
                || if rng.random_bool(bad) { few[rng.random_range(0..3)] } else { self.kind.number(&mut rng, same) };
            (0..n).map(|_| one()).collect()
        };
        let (logprobs, advantages) = (floats(), floats());
        let mut flags = |values: [u8; 4]| -> Vec<u8> { (0..n).map(|_| values[rng.random_range(0..4)]).collect() };
        let most = [[1, 1, 1, 0], [1, 2, 255, 0], [0; 4]][self.seed as usize % 3];
        let (loss_mask, excluded) =
            (flags(most), flags([[0, 0, 0, 1], [0, 7, 0, 1], [1; 4]][self.seed as usize % 7 % 3]));
        // An odd factor: no two are the same.
        let mut token_ids: Vec<u32> = match self.ids {
            0 => (0..n as u32).collect(),
            1 => (0..n as u32).map(|u| u.wrapping_mul(0x9e37_79b9)).collect(),
            _ => (0..n as u32).map(|u| u32::MAX - 256 * u).collect(),
        };
        token_ids.shuffle(&mut rng);
        Tokens { logprobs, advantages, loss_mask, excluded, token_ids }
    }

    fn counts(&self, tokens: &Tokens, u: usize) -> bool {
        (!self.has(MASK) || tokens.loss_mask[u] != 0)
            && tokens.logprobs[u].is_finite()
            && tokens.advantages[u].is_finite()
    }

    fn is_unlawful(&self) -> bool {
        let is_sound = self.config.validate().is_ok();
        let of_arrays = match self.flaw {
            Flaw::Nothing => false,
            Flaw::Mask => self.has(MASK),
            Flaw::Excluded => self.has(EXCLUDED),
            Flaw::Chosen => self.has(CHOSEN),
            Flaw::Keep => self.has(KEEP),
            Flaw::Shared => self.has(CHOSEN) && self.tokens > 0,
            Flaw::Advantages | Flaw::Ids | Flaw::Workspace | Flaw::Odd => true,
        };
        !is_sound || of_arrays
    }
}

/// These values and `longer` zeros.
fn put<B: Backend, T: bytemuck::Pod + Send + Sync>(
    (backend, stream): (&B, &B::Stream),
    place: Place,
    values: &[T],
    longer: usize,
) -> Placed<B, T> {
    let values = [values, &vec![T::zeroed(); longer]].concat();
    Placed::new(backend, stream, place, values.len(), &values)
}

/// What `chosen` and `keep` hold after two calls into the same arrays.
fn run<B: Backend>(backend: &B, drawn: &Drawn, tokens: &Tokens, has: u8, aligned: bool) -> Result<[Vec<u8>; 2]> {
    let stream = backend.stream()?;
    let mut rng = seeded(drawn.seed ^ 9);
    let mut place = || Place { before: if aligned { 0 } else { rng.random_range(0..17) }, gap: 0 };
    let longer = |flaw: Flaw| usize::from(drawn.flaw == flaw);
    let (to, n) = ((backend, &stream), tokens.token_ids.len());
    let logprobs = put(to, place(), &tokens.logprobs, 0);
    let advantages = put(to, place(), &tokens.advantages, longer(Flaw::Advantages));
    let ids = put(to, place(), &tokens.token_ids, longer(Flaw::Ids));
    let loss_mask = put(to, place(), &tokens.loss_mask, longer(Flaw::Mask));
    let excluded = put(to, place(), &tokens.excluded, longer(Flaw::Excluded));
    let mut chosen = Placed::output(backend, &stream, place().before, n + longer(Flaw::Chosen));
    let mut keep = Placed::output(backend, &stream, place().before, n + longer(Flaw::Keep));
    let bytes = workspace_bytes(n) - longer(Flaw::Workspace);
    let mut workspace = Placed::<B, u8>::output(backend, &stream, place().before, bytes);
    for _ in 0..2 {
        let mut call = Call {
            logprobs: logprobs.view(),
            advantages: advantages.view(),
            loss_mask: (has & MASK != 0).then(|| loss_mask.view()),
            excluded: (has & EXCLUDED != 0).then(|| excluded.view()),
            token_ids: ids.view(),
            chosen: (has & CHOSEN != 0).then(|| chosen.view_mut()),
            keep: (has & KEEP != 0).then(|| keep.view_mut()),
            workspace: workspace.view_mut(),
        };
        if drawn.flaw == Flaw::Shared && call.chosen.is_some() {
            // SAFETY: the call is refused before anything looks there, or there is nothing to look at.
            call.chosen = Some(unsafe { ViewMut::from_raw(ids.view().address(), n) });
        }
        if drawn.flaw == Flaw::Odd {
            // SAFETY: the call is refused before anything looks there.
            call.token_ids = unsafe { View::from_raw(ids.view().address() + 2, n) };
        }
        backend.covariance(&stream, &drawn.config, call)?;
    }
    workspace.read("workspace", backend, &stream);
    Ok([chosen.read("chosen", backend, &stream), keep.read("keep", backend, &stream)])
}

/// How many tokens are chosen, where that does not hang on the last digits of a mean.
fn wanted(drawn: &Drawn, tokens: &Tokens) -> Option<usize> {
    let Rule::Largest { fraction } = drawn.config.rule else { return None };
    let counted: Vec<usize> = (0..drawn.tokens).filter(|&u| drawn.counts(tokens, u)).collect();
    let eligible = counted.iter().filter(|&&u| !drawn.has(EXCLUDED) || tokens.excluded[u] == 0).count();
    Some(((fraction * counted.len() as f64) as usize).max(1).min(eligible))
}

pub fn any_choice_is_the_reference_s<B: Backend>(backend: &B) {
    for_any(150, &drawn(), |drawn| {
        let tokens = drawn.tokens();
        let every = drawn.has | if drawn.flaw == Flaw::Nothing { CHOSEN | KEEP } else { 0 };
        let both = unless_refused(
            run(backend, drawn, &tokens, every, drawn.aligned),
            run(&Reference, drawn, &tokens, every, drawn.aligned),
        );
        assert_eq!(both.is_none(), drawn.is_unlawful());
        let Some((found, expected)) = both else { return };
        let is_exact = drawn.config.means.is_some() || drawn.kind.has_exact_sums();
        if is_exact {
            assert_eq!(found, expected);
        }
        // As many as should be, none that may not be.
        if every & CHOSEN != 0 {
            let chosen: Vec<usize> = (0..drawn.tokens).filter(|&u| found[0][u] == 1).collect();
            assert!(wanted(drawn, &tokens).is_none_or(|wanted| chosen.len() == wanted), "{} are chosen", chosen.len());
            let may_be = |u: usize| drawn.counts(&tokens, u) && (!drawn.has(EXCLUDED) || tokens.excluded[u] == 0);
            assert!(chosen.iter().all(|&u| may_be(u)));
            assert!(every & KEEP == 0 || found[0].iter().zip(&found[1]).all(|(c, k)| c ^ k == 1 && c | k == 1));
        }
        // Fewer outputs, and every array somewhere else.
        let other = run(backend, drawn, &tokens, drawn.has, !drawn.aligned).unwrap();
        for (at, array) in [CHOSEN, KEEP].into_iter().enumerate() {
            let as_it_was = vec![untouched(); other[at].len()];
            assert_eq!(other[at], if drawn.has(array) { &found[at] } else { &as_it_was }[..]);
        }
        // In another order each token fares alike.
        let mut order: Vec<usize> = (0..drawn.tokens).collect();
        order.shuffle(&mut seeded(drawn.seed ^ 5));
        if is_exact && every & CHOSEN != 0 {
            let [chosen, _] = run(backend, drawn, &tokens.select(&order), every, drawn.aligned).unwrap();
            assert!(order.iter().zip(chosen).all(|(&u, chosen)| chosen == found[0][u]), "in another order");
        }
    });
}

/// The block that arrives last adds up more sums than it has threads.
pub fn means_are_over_any_number_of_blocks<B: Backend>(backend: &B) {
    let bounds = (0.0, f64::INFINITY);
    let drawn = Drawn {
        config: Config::new(Rule::Bernoulli { bounds, probability: 0.5, seed: 3 }),
        tokens: 257 * 1024 + 3,
        kind: Kind::Quarters,
        ids: 1,
        has: CHOSEN,
        bad: 0.0,
        aligned: true,
        flaw: Flaw::Nothing,
        seed: 3,
    };
    let mut tokens = drawn.tokens();
    // The means hang on the last blocks.
    tokens.logprobs[256 * 1024..].fill(4096.0);
    tokens.advantages[256 * 1024..].fill(-2048.0);
    let [found, expected] =
        [run(backend, &drawn, &tokens, CHOSEN, true), run(&Reference, &drawn, &tokens, CHOSEN, true)];
    assert!(found.unwrap() == expected.unwrap());
}

#[cfg(feature = "emulate")]
#[test]
fn any_schedule_makes_the_same_choice() {
    for_any(60, &drawn(), |drawn| {
        let (tokens, every) = (drawn.tokens(), drawn.has | CHOSEN);
        let Ok(expected) = run(&moerl::Emulator::new(), drawn, &tokens, every, drawn.aligned) else { return };
        let other = schedules().nth(drawn.seed as usize % 4).unwrap();
        assert_eq!(run(&other, drawn, &tokens, every, drawn.aligned).unwrap(), expected, "{other:?}");
    });
}
