//! `moerl generate`: a synthetic policy update of any size, streamed to disk.
//!
//! What makes it realistic is the mismatch between the three policies of a step. Every token has *old* logits (those of the trainer
//! when the batch was sampled). The *rollout* engine saw them rounded to bf16, after noise of its own kernels; the *current* policy
//! has drifted from them by an optimiser step or two. Log-probabilities and expert choices follow from the logits, so ratios and
//! changed routes have the sizes of real runs: about 9 % of the (token, layer) expert sets change by the drift, about 3 % by the
//! engine (32 experts, 4 chosen).
//!
//! `--staleness`, `--rollout-noise`, `--rollout-precision` and `--changed-routes` move these sizes away from those of real runs.
//!
//! Each number is a function of the seed, the token and the layer alone, so a file is the same however it is cut into blocks.

use std::path::Path;

use moerl::element::{Element, bf16};
use moerl::gate::{MAX_EXPERTS, MAX_TOP_K};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, StandardNormal};

use crate::arguments::{Generate, Lengths, Precision};
use crate::failure::{Failure, Result};
use crate::progress::Progress;
use crate::random::{Stream, numbers};
use crate::stepfile::{MAX_LAYERS, Slot, Writer};

/// Standard deviation of router logits over experts.
const ROUTER_SPREAD: f32 = 1.5;
/// Standard deviation of what an update adds to a router logit.
const ROUTER_DRIFT: f32 = 0.04;
/// Standard deviation of what the rollout engine's kernels add to a router logit, before its rounding to bf16.
const ROUTER_ENGINE: f32 = 0.008;
/// Standard deviation of logits over the vocabulary: an entropy of a few nats.
const LOGIT_SPREAD: f32 = 3.0;
/// What an update adds to a logit.
const LOGIT_DRIFT: f32 = 0.1;
/// What the rollout engine adds to a logit before its rounding.
const LOGIT_ENGINE: f32 = 0.01;
/// What an update and the engine add to a log-probability where there are no logits.
const LOGPROB_DRIFT: f32 = 0.2;
const LOGPROB_ENGINE: f32 = 0.025;
/// The reference policy is further away than the old one.
const REFERENCE_DRIFT: f32 = 3.0;
/// Responses to one prompt.
const GROUP: usize = 8;
/// No log-normal length is above it.
const LONGEST: usize = 16_384;
/// The bytes of logits or router logits that one block of tokens may take.
const BLOCK_BYTES: usize = 8 << 20;

/// Runs the command.
///
/// # Errors
/// [`Failure::Input`] for sizes that a step file cannot have, [`Failure::Run`] if the file cannot be written.
pub fn run(options: &Generate) -> Result<()> {
    check(options)?;
    let offsets = segment_offsets(options.tokens, options.lengths, options.seed);
    let mut file = Output::create(&options.out, options, &offsets)?;
    file.segments(&offsets)?;
    let widest = 4 * options.experts.max(if options.no_logits { 0 } else { options.vocab }) + 64;
    let block = (BLOCK_BYTES / widest).clamp(1, 65_536);
    let progress = Progress::new(options.tokens as u64, "tokens");
    let mut first = 0;
    while first < options.tokens {
        let rows = first..(first + block).min(options.tokens);
        file.tokens(rows.clone(), &offsets)?;
        file.routes(rows.clone())?;
        progress.advance(rows.len() as u64);
        first = rows.end;
    }
    file.writer.finish(&[("generator", format!("moerl generate, seed {}", options.seed))])
}

fn check(options: &Generate) -> Result<()> {
    let Generate { tokens, vocab, experts, layers, top_k, .. } = *options;
    let mut problems = Vec::new();
    let mut require = |holds: bool, message: String| {
        if !holds {
            problems.push(message);
        }
    };
    require(tokens <= i32::MAX as usize, format!("--tokens {tokens}: at most {}", i32::MAX));
    require((2..=i32::MAX as usize).contains(&vocab), format!("--vocab {vocab}: 2 to {}", i32::MAX));
    require((1..=MAX_EXPERTS).contains(&experts), format!("--experts {experts}: 1 to {MAX_EXPERTS}"));
    require(layers <= MAX_LAYERS, format!("--layers {layers}: at most {MAX_LAYERS}"));
    for (name, value) in [("staleness", options.staleness), ("rollout-noise", options.rollout_noise)] {
        require((0.0..=1e6).contains(&value), format!("--{name} {value}: 0 to 1e6"));
    }
    let share = options.changed_routes;
    require((0.0..=1.0).contains(&share), format!("--changed-routes {share}: 0 to 1"));
    require(share == 0.0 || top_k < experts, format!("--changed-routes {share}: all {experts} experts are chosen"));
    let most = experts.min(MAX_TOP_K);
    require((1..=most).contains(&top_k), format!("--top-k {top_k}: 1 to {most} with {experts} experts"));
    if problems.is_empty() { Ok(()) } else { Err(Failure::input(problems.join("; "))) }
}

/// Lengths that add up to `tokens`; the last one is what is left.
fn segment_offsets(tokens: usize, lengths: Lengths, seed: u64) -> Vec<i32> {
    let mut numbers = numbers(seed, Stream::Lengths, 0, 0);
    let mut draw = || match lengths {
        Lengths::Fixed(length) => length,
        Lengths::Uniform(low, high) => numbers.random_range(low..=high),
        Lengths::LogNormal(mean, sigma) => {
            let deviation: f64 = StandardNormal.sample(&mut numbers);
            ((mean + sigma * deviation).exp() as usize).clamp(1, LONGEST)
        }
    };
    let mut offsets = vec![0];
    let mut end = 0;
    while end < tokens {
        end += draw().min(tokens - end);
        offsets.push(end as i32);
    }
    offsets
}

/// How unlike the policies of a file are.
#[derive(Clone, Copy, Debug)]
struct Unlike {
    /// Of the drift of one update.
    drift: f32,
    /// Of a sound engine's noise.
    noise: f32,
    precision: Precision,
}

impl Unlike {
    fn of(options: &Generate) -> Unlike {
        // A policy that has taken n steps at random is √n steps away.
        let (drift, noise) = (options.staleness.sqrt() as f32, options.rollout_noise as f32);
        Unlike { drift, noise, precision: options.rollout_precision }
    }

    fn rounded(&self, x: f32) -> f32 {
        match self.precision {
            Precision::Bf16 => bf16::from_f32(x).to_f32(),
            Precision::F32 => x,
        }
    }
}

fn normal(numbers: &mut Xoshiro256PlusPlus) -> f32 {
    StandardNormal.sample(numbers)
}

/// The file and its tensors.
struct Output<'a> {
    options: &'a Generate,
    writer: Writer,
    tokens: Slot,
    offsets: Slot,
    mask: Slot,
    group: Slot,
    reward: Slot,
    policy: Slot,
    old: Slot,
    rollout: Slot,
    reference: Slot,
    router: Slot,
    routes_rollout: Slot,
    routes_old: Slot,
    route_element: Element,
}

impl<'a> Output<'a> {
    fn create(path: &Path, options: &'a Generate, offsets: &[i32]) -> Result<Output<'a>> {
        let Generate { tokens: n, vocab, experts, layers, top_k, no_logits, .. } = *options;
        let segments = offsets.len() - 1;
        let (f32, i32) = (Element::F32, Element::I32);
        let ids = if experts <= 256 { Element::U8 } else { Element::U16 };
        let logits: (&str, Element, &[usize]) =
            if no_logits { ("logprobs", f32, &[n]) } else { ("logits", f32, &[n, vocab]) };
        let (per_token, per_segment) = ([n], [segments]);
        let tensors: [(&str, Element, &[usize]); 12] = [
            ("tokens", i32, &per_token),
            ("cu_seqlens", i32, &[offsets.len()]),
            ("loss_mask", Element::U8, &per_token),
            ("group", i32, &per_segment),
            ("reward", f32, &per_segment),
            logits,
            ("old_logprobs", f32, &per_token),
            ("rollout_logprobs", f32, &per_token),
            ("ref_logprobs", f32, &per_token),
            ("router_logits", f32, &[layers, n, experts]),
            ("routes_rollout", ids, &[n, layers, top_k]),
            ("routes_old", ids, &[n, layers, top_k]),
        ];
        let (writer, slots) = Writer::create(path, &tensors, 256)?;
        let [tokens, offsets, mask, group, reward, policy, old, rollout, reference, router, routes_rollout, routes_old] =
            slots[..]
        else {
            unreachable!("a slot for each of the tensors above")
        };
        Ok(Output {
            options,
            writer,
            tokens,
            offsets,
            mask,
            group,
            reward,
            policy,
            old,
            rollout,
            reference,
            router,
            routes_rollout,
            routes_old,
            route_element: ids,
        })
    }

    /// Offsets, groups, rewards.
    fn segments(&mut self, offsets: &[i32]) -> Result<()> {
        let segments = offsets.len() - 1;
        let group: Vec<i32> = (0..segments).map(|i| (i / GROUP) as i32).collect();
        let reward: Vec<f32> = (0..segments)
            .map(|i| {
                let difficulty = normal(&mut numbers(self.options.seed, Stream::Segment, i / GROUP, 1));
                difficulty + normal(&mut numbers(self.options.seed, Stream::Segment, i, 0))
            })
            .collect();
        self.writer.write(self.offsets, 0, offsets)?;
        self.writer.write(self.group, 0, &group)?;
        self.writer.write(self.reward, 0, &reward)
    }

    /// Tokens, masks and log-probabilities of `rows`.
    fn tokens(&mut self, rows: std::ops::Range<usize>, offsets: &[i32]) -> Result<()> {
        let vocab = self.options.vocab;
        let with_logits = !self.options.no_logits;
        let mut current = Vec::with_capacity(if with_logits { rows.len() * vocab } else { rows.len() });
        let (mut tokens, mut mask) = (Vec::new(), Vec::new());
        let (mut old, mut rollout, mut reference) = (Vec::new(), Vec::new(), Vec::new());
        let unlike = Unlike::of(self.options);
        for u in rows.clone() {
            let mut numbers = numbers(self.options.seed, Stream::Token, u, 0);
            let token = if with_logits {
                Token::from_logits(&mut numbers, vocab, &unlike, &mut current)
            } else {
                Token::alone(&mut numbers, vocab, &unlike)
            };
            if !with_logits {
                current.push(token.current);
            }
            tokens.push(token.id);
            old.push(token.old);
            rollout.push(if self.options.bf16_logprobs {
                bf16::from_f32(token.rollout).to_f32()
            } else {
                token.rollout
            });
            reference.push(token.reference);
            mask.push(u8::from(!is_tool_output(self.options.seed, offsets, u)));
        }
        let width = if with_logits { vocab } else { 1 };
        self.writer.write(self.policy, rows.start * width, &current)?;
        self.writer.write(self.tokens, rows.start, &tokens)?;
        self.writer.write(self.mask, rows.start, &mask)?;
        self.writer.write(self.old, rows.start, &old)?;
        self.writer.write(self.rollout, rows.start, &rollout)?;
        self.writer.write(self.reference, rows.start, &reference)
    }

    /// Router logits and recorded experts of `rows`.
    fn routes(&mut self, rows: std::ops::Range<usize>) -> Result<()> {
        let Generate { tokens: n, experts, layers, top_k, seed, .. } = *self.options;
        let row_ids = layers * top_k;
        let (mut by_rollout, mut by_old) = (vec![0_u16; rows.len() * row_ids], vec![0_u16; rows.len() * row_ids]);
        let mut current = Vec::with_capacity(rows.len() * experts);
        let mut old = vec![0.0_f32; experts];
        let mut engine = vec![0.0_f32; experts];
        let mut order = Vec::with_capacity(experts);
        let unlike = Unlike::of(self.options);
        for layer in 0..layers {
            current.clear();
            for (row, u) in rows.clone().enumerate() {
                let mut numbers = numbers(seed, Stream::Router, u, layer);
                for e in 0..experts {
                    old[e] = ROUTER_SPREAD * normal(&mut numbers);
                    engine[e] = unlike.rounded(old[e] + unlike.noise * ROUTER_ENGINE * normal(&mut numbers));
                    current.push(old[e] + unlike.drift * ROUTER_DRIFT * normal(&mut numbers));
                }
                let slots = row * row_ids + layer * top_k..row * row_ids + (layer + 1) * top_k;
                choose(&engine, &mut order, &mut by_rollout[slots.clone()]);
                self.change(u, layer, &mut by_rollout[slots.clone()]);
                choose(&old, &mut order, &mut by_old[slots]);
            }
            self.writer.write(self.router, (layer * n + rows.start) * experts, &current)?;
        }
        self.write_ids(self.routes_rollout, rows.start * row_ids, &by_rollout)?;
        self.write_ids(self.routes_old, rows.start * row_ids, &by_old)
    }

    /// In the share of sets that the options say, one expert becomes another.
    fn change(&self, u: usize, layer: usize, ids: &mut [u16]) {
        let share = self.options.changed_routes;
        let mut numbers = numbers(self.options.seed, Stream::ChangedRoutes, u, layer);
        if share == 0.0 || numbers.random::<f64>() >= share {
            return;
        }
        let slot = numbers.random_range(0..ids.len());
        let other = loop {
            let other = numbers.random_range(0..self.options.experts) as u16;
            if !ids.contains(&other) {
                break other;
            }
        };
        ids[slot] = other;
    }

    fn write_ids(&mut self, slot: Slot, offset: usize, ids: &[u16]) -> Result<()> {
        if self.route_element == Element::U8 {
            let narrow: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
            self.writer.write(slot, offset, &narrow)
        } else {
            self.writer.write(slot, offset, ids)
        }
    }
}

/// True for one stretch in the middle of every fourth response: the output of a tool, which is not trained on.
fn is_tool_output(seed: u64, offsets: &[i32], u: usize) -> bool {
    let segment = offsets.partition_point(|&end| end as usize <= u) - 1;
    let (start, end) = (offsets[segment] as usize, offsets[segment + 1] as usize);
    let third = (end - start) / 3;
    let turns = numbers(seed, Stream::Segment, segment, 2).random_range(0..4) == 0;
    turns && (start + third..start + 2 * third).contains(&u)
}

/// The `ids.len()` experts with the largest logits, best first, ties to the lower id.
fn choose(logits: &[f32], order: &mut Vec<u16>, ids: &mut [u16]) {
    let before = |&a: &u16, &b: &u16| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    order.clear();
    order.extend(0..logits.len() as u16);
    let k = ids.len();
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, before);
    }
    order[..k].sort_unstable_by(before);
    ids.copy_from_slice(&order[..k]);
}

/// A token and its log-probability under each policy.
struct Token {
    id: i32,
    current: f32,
    old: f32,
    rollout: f32,
    reference: f32,
}

impl Token {
    /// Appends the current logits to `current`; the token is sampled from the rollout engine's.
    fn from_logits(numbers: &mut Xoshiro256PlusPlus, vocab: usize, unlike: &Unlike, current: &mut Vec<f32>) -> Token {
        let first = current.len();
        let (mut old, mut engine, mut reference) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..vocab {
            let x = LOGIT_SPREAD * normal(numbers);
            old.push(x);
            engine.push(unlike.rounded(x + unlike.noise * LOGIT_ENGINE * normal(numbers)));
            let drift = LOGIT_DRIFT * normal(numbers);
            current.push(x + unlike.drift * drift);
            reference.push(x - REFERENCE_DRIFT * drift);
        }
        let id = sample(&engine, numbers.random());
        Token {
            id: id as i32,
            current: logprob(&current[first..], id),
            old: logprob(&old, id),
            rollout: logprob(&engine, id),
            reference: logprob(&reference, id),
        }
    }

    /// Log-probabilities without logits.
    fn alone(numbers: &mut Xoshiro256PlusPlus, vocab: usize, unlike: &Unlike) -> Token {
        let depth: f64 = -f64::ln(1.0 - numbers.random::<f64>());
        // Probability 1 is rare but real; the noise of a policy shrinks with the probability that is left to move.
        let old = -(depth as f32) * 1.5;
        let room = old.abs().min(1.0);
        let mut moved = |by: f32| (old + by * room * normal(numbers)).min(0.0);
        let (current, rollout) = (moved(unlike.drift * LOGPROB_DRIFT), moved(unlike.noise * LOGPROB_ENGINE));
        let reference = moved(REFERENCE_DRIFT * LOGPROB_DRIFT);
        Token { id: numbers.random_range(0..vocab as i32), current, old, rollout, reference }
    }
}

/// Sums of exponentials are taken in f64: the log-probability is then right to its own rounding.
fn logprob(logits: &[f32], id: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    (f64::from(logits[id] - max) - sum.ln()).min(0.0) as f32
}

/// The column in which `uniform` falls, of the distribution that `logits` describe.
fn sample(logits: &[f32], uniform: f64) -> usize {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let mut left = uniform * sum;
    for (id, &x) in logits.iter().enumerate() {
        left -= f64::from(x - max).exp();
        if left <= 0.0 {
            return id;
        }
    }
    logits.len() - 1
}
