//! Which tokens Clip-Cov and KL-Cov single out: what every backend must agree on.

#[path = "covariance/any.rs"]
mod any;
mod common;

use any::*;
use moerl::covariance::{Call, Config, Rule, workspace_bytes};
use moerl::error::Kind;
use moerl::{Backend, Buffer, Reference, Result};
use rand::RngExt;
use rand::seq::SliceRandom;

on_every_backend!(
    choices_agree_with_the_reference,
    a_choice_depends_on_ids_and_not_on_places,
    the_largest_covariances_are_chosen,
    coins_do_not_depend_on_the_split,
    nothing_to_choose_from_is_no_choice,
    faults_of_a_call_are_listed_together,
    any_choice_is_the_reference_s,
    means_are_over_any_number_of_blocks,
);

/// A batch in ordinary memory.
#[derive(Clone)]
struct Tokens {
    logprobs: Vec<f32>,
    advantages: Vec<f32>,
    loss_mask: Vec<u8>,
    excluded: Vec<u8>,
    token_ids: Vec<u32>,
}

impl Tokens {
    fn random(n: usize, seed: u64) -> Tokens {
        let mut rng = common::seeded(seed);
        Tokens {
            logprobs: (0..n).map(|_| -rng.random_range(0.0_f32..1.0).powi(2) * 8.0).collect(),
            advantages: (0..n).map(|_| rng.random_range(-2.0..2.0)).collect(),
            loss_mask: (0..n).map(|_| u8::from(rng.random_range(0..5) != 0)).collect(),
            excluded: (0..n).map(|_| u8::from(rng.random_range(0..9) == 0)).collect(),
            token_ids: (0..n as u32).map(|u| u * 7 + 3).collect(),
        }
    }

    fn select(&self, order: &[usize]) -> Tokens {
        fn pick<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
            order.iter().map(|&u| values[u]).collect()
        }
        Tokens {
            logprobs: pick(&self.logprobs, order),
            advantages: pick(&self.advantages, order),
            loss_mask: pick(&self.loss_mask, order),
            excluded: pick(&self.excluded, order),
            token_ids: pick(&self.token_ids, order),
        }
    }
}

/// The chosen tokens, 1 for each.
fn choose<B: Backend>(backend: &B, config: &Config, tokens: &Tokens) -> Result<Vec<u8>> {
    let stream = backend.stream()?;
    let n = tokens.logprobs.len();
    let (logprobs, advantages) =
        (backend.upload(&stream, &tokens.logprobs)?, backend.upload(&stream, &tokens.advantages)?);
    let (mask, excluded) = (backend.upload(&stream, &tokens.loss_mask)?, backend.upload(&stream, &tokens.excluded)?);
    let ids = backend.upload(&stream, &tokens.token_ids)?;
    let mut chosen = backend.upload(&stream, &vec![9_u8; n])?;
    let mut keep = backend.upload(&stream, &vec![9_u8; n])?;
    // What another call left there must not matter.
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; workspace_bytes(n)])?;
    for _ in 0..2 {
        let call = Call {
            logprobs: logprobs.view(),
            advantages: advantages.view(),
            loss_mask: Some(mask.view()),
            excluded: Some(excluded.view()),
            token_ids: ids.view(),
            chosen: Some(chosen.view_mut()),
            keep: Some(keep.view_mut()),
            workspace: workspace.view_mut(),
        };
        backend.covariance(&stream, config, call)?;
    }
    let (chosen, keep) = (backend.download(&stream, chosen.view())?, backend.download(&stream, keep.view())?);
    assert!(chosen.iter().zip(&keep).all(|(&c, &k)| c + k == 1));
    Ok(chosen)
}

fn rules() -> [Rule; 5] {
    let bounds = (0.5, 3.0);
    [
        Rule::Random { bounds, fraction: 0.02, seed: 7 },
        Rule::Random { bounds, fraction: 1.0, seed: 7 },
        Rule::Bernoulli { bounds, probability: 0.3, seed: 7 },
        Rule::Largest { fraction: 0.01 },
        Rule::Largest { fraction: 1e-6 },
    ]
}

fn choices_agree_with_the_reference<B: Backend>(backend: &B) {
    for n in [1, 31, 1000, 1024, 5000] {
        let tokens = Tokens::random(n, n as u64);
        for rule in rules() {
            for means in common::sampled([None, Some((0.1, -2.0))], n) {
                let config = Config { rule, means };
                let (found, expected) =
                    (choose(backend, &config, &tokens).unwrap(), choose(&Reference, &config, &tokens).unwrap());
                assert_eq!(found, expected, "{n} tokens, {config:?}");
            }
        }
    }
}

fn a_choice_depends_on_ids_and_not_on_places<B: Backend>(backend: &B) {
    let tokens = Tokens::random(3000, 5);
    let mut order: Vec<usize> = (0..3000).collect();
    order.shuffle(&mut common::seeded(9));
    for rule in common::sampled(rules(), 0) {
        // Given, so that the order of their sums does not matter.
        let config = Config { rule, means: Some((0.0, -2.5)) };
        let there = choose(backend, &config, &tokens).unwrap();
        let here = choose(backend, &config, &tokens.select(&order)).unwrap();
        assert!(order.iter().zip(here).all(|(&u, chosen)| chosen == there[u]), "{rule:?}");
    }
    let with_seed = |seed| {
        let rule = Rule::Random { bounds: (0.5, 3.0), fraction: 0.02, seed };
        choose(backend, &Config::new(rule), &tokens).unwrap()
    };
    assert_ne!(with_seed(1), with_seed(2));
}

fn the_largest_covariances_are_chosen<B: Backend>(backend: &B) {
    let tokens = Tokens { excluded: vec![0; 2000], loss_mask: vec![1; 2000], ..Tokens::random(2000, 3) };
    let chosen = choose(backend, &Config { rule: Rule::Largest { fraction: 0.01 }, means: Some((0.0, -2.0)) }, &tokens);
    let chosen = chosen.unwrap();
    let covariance = |u: usize| f64::from(tokens.advantages[u]) * (f64::from(tokens.logprobs[u]) + 2.0);
    let of = |value: u8| (0..2000).filter(|&u| chosen[u] == value).map(covariance).collect::<Vec<f64>>();
    let least = of(1).into_iter().fold(f64::INFINITY, f64::min);
    assert_eq!(of(1).len(), 20);
    assert!(of(0).into_iter().all(|other| other <= least));
}

fn coins_do_not_depend_on_the_split<B: Backend>(backend: &B) {
    let tokens = Tokens::random(4000, 8);
    let rule = Rule::Bernoulli { bounds: (0.2, 4.0), probability: 0.25, seed: 3 };
    let config = Config { rule, means: Some((0.0, -2.0)) };
    let whole = choose(backend, &config, &tokens).unwrap();
    let halves: Vec<u8> = [(0..1700), (1700..4000)]
        .into_iter()
        .flat_map(|part| choose(backend, &config, &tokens.select(&part.collect::<Vec<_>>())).unwrap())
        .collect();
    assert_eq!(whole, halves);
    let eligible = Config { rule: Rule::Bernoulli { bounds: (0.2, 4.0), probability: 1.0, seed: 3 }, ..config };
    let count = |chosen: Vec<u8>| chosen.iter().map(|&c| f64::from(c)).sum::<f64>();
    let (all, some) = (count(choose(backend, &eligible, &tokens).unwrap()), count(whole));
    // Four standard deviations of a binomial count; the seed is fixed, so the test cannot flicker.
    assert!((some - 0.25 * all).abs() < 4.0 * (all * 0.1875).sqrt(), "{some} of {all}");
}

fn nothing_to_choose_from_is_no_choice<B: Backend>(backend: &B) {
    let tokens = Tokens::random(100, 1);
    let rules = rules();
    let masked = Tokens { loss_mask: vec![0; 100], ..tokens.clone() };
    let excluded = Tokens { excluded: vec![1; 100], ..tokens.clone() };
    let unsound = Tokens { advantages: vec![f32::NAN; 100], ..tokens.clone() };
    for case in [masked, excluded, unsound] {
        for rule in rules {
            assert_eq!(choose(backend, &Config::new(rule), &case).unwrap(), [0; 100], "{rule:?}");
        }
    }
    assert_eq!(choose(backend, &Config::new(rules[0]), &tokens.select(&[])).unwrap(), [0_u8; 0]);
}

fn faults_of_a_call_are_listed_together<B: Backend>(backend: &B) {
    let mut tokens = Tokens::random(10, 1);
    tokens.token_ids.pop();
    let rule = Rule::Random { bounds: (2.0, 1.0), fraction: 0.0, seed: 1 };
    let error = choose(backend, &Config::new(rule), &tokens).unwrap_err();
    assert!(error.is(Kind::Config) && error.is(Kind::Shape), "{error}");
    for part in ["fraction: is 0", "bounds: is 2", "token_ids: has shape [9], needs [10]"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}
