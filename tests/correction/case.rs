//! Batches, and what a backend makes of them.

use bytemuck::Pod;
use moerl::advantage::GroupPlan;
use moerl::correction::{
    Batch, Config, Decision, GLOBALS, Level, Output, Phases, Plans, REJECTED, TurnPlan, Weight, diagnostics,
    turns_from_mask, workspace_bytes,
};
use moerl::objective::{Advantages, Groups, Plan, Segments};
use moerl::{Backend, Buffer, Error};
use rand::RngExt;

use crate::common;
use crate::common::property::Padded;

/// A batch in ordinary memory.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub lengths: Vec<usize>,
    pub old_logprobs: Vec<f32>,
    pub rollout_logprobs: Vec<f32>,
    pub loss_mask: Option<Vec<u8>>,
    pub kept_log_mass: Option<Vec<f32>>,
    pub router_shift: Option<Vec<f32>>,
    pub advantages: Option<Vec<f32>>,
    /// Said for a batch with as many tokens as segments.
    pub advantages_per_token: bool,
    pub current_log_ratio: Option<Vec<f64>>,
    pub segment_ids: Option<Vec<u64>>,
    pub uniforms: Option<Vec<f32>>,
    pub carried: Option<Vec<f64>>,
    pub rewards: Option<Vec<f32>>,
    pub target_logprobs: Option<Vec<f64>>,
    pub proposal_logprobs: Option<Vec<f64>>,
    pub groups: Option<Vec<i32>>,
    /// Turns by the mask, unless `turns` has others.
    pub has_turns: bool,
    pub turns: Option<Vec<i64>>,
}

impl Case {
    /// Log-ratios of a few percent around a drift of each segment, some far out.
    pub fn random(lengths: &[usize], seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let mut case = Case { lengths: lengths.to_vec(), ..Case::default() };
        for &length in lengths {
            let drift: f32 = rng.random_range(-0.01..0.01);
            for _ in 0..length {
                let rollout: f32 = -rng.random_range(0.001_f32..1.0).powi(2) * 12.0;
                let far = if rng.random_range(0..20) == 0 { rng.random_range(-2.0..2.0) } else { 0.0 };
                case.rollout_logprobs.push(rollout);
                case.old_logprobs.push((rollout + drift + rng.random_range(-0.1..0.1) + far).min(0.0));
            }
        }
        case.segment_ids = Some((0..lengths.len() as u64).map(|i| i * 7919 + (i << 40)).collect());
        case
    }

    /// One segment a weight, of one token with this δ.
    pub fn of_log_ratios(log_ratios: &[f32]) -> Case {
        Case {
            lengths: vec![1; log_ratios.len()],
            old_logprobs: log_ratios.iter().map(|x| x.min(0.0)).collect(),
            rollout_logprobs: log_ratios.iter().map(|x| (-x).min(0.0)).collect(),
            ..Case::default()
        }
    }

    /// Runs of tokens that count and that do not.
    pub fn with_mask(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let mut on = true;
        let mut next = || {
            on ^= rng.random_range(0..8) == 0;
            u8::from(on)
        };
        self.loss_mask = Some(self.rollout_logprobs.iter().map(|_| next()).collect());
        self
    }

    pub fn with_offsets(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        self.kept_log_mass = Some(self.rollout_logprobs.iter().map(|_| rng.random_range(-0.2..0.0)).collect());
        self.router_shift = Some(self.rollout_logprobs.iter().map(|_| rng.random_range(-0.05..0.0)).collect());
        self
    }

    pub fn with_repeats(mut self, repeats: usize, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let first = self.old_logprobs.clone();
        for _ in 1..repeats {
            self.old_logprobs.extend(first.iter().map(|o| (o + rng.random_range(-0.1..0.1)).min(0.0)));
        }
        self
    }

    pub fn with_advantages(mut self, per_token: bool, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let count = if per_token { self.tokens() } else { self.lengths.len() };
        self.advantages = Some((0..count).map(|_| rng.random_range(-2.0..2.0)).collect());
        self
    }

    /// Segments in `groups` groups, scattered.
    pub fn with_groups(mut self, groups: i32, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        self.groups = Some(self.lengths.iter().map(|_| rng.random_range(0..groups)).collect());
        self.rewards = Some(self.lengths.iter().map(|_| rng.random_range(-1.0..1.0)).collect());
        self
    }

    pub fn tokens(&self) -> usize {
        self.rollout_logprobs.len()
    }
    pub fn segments(&self) -> Segments {
        Segments::from_lengths(self.lengths.iter().copied()).unwrap()
    }
    pub fn turn_offsets(&self) -> Vec<i64> {
        if let Some(turns) = &self.turns {
            return turns.clone();
        }
        let all = vec![1; self.tokens()];
        turns_from_mask(&self.segments(), self.loss_mask.as_ref().unwrap_or(&all)).unwrap()
    }

    /// The tokens of these positions of every segment, as pieces of their own.
    pub fn piece(&self, positions: impl Fn(usize) -> bool) -> (Case, Vec<usize>) {
        let segments = self.segments();
        let tokens_of = |range: std::ops::Range<usize>| {
            let start = range.start;
            range.filter(|&u| positions(u - start)).collect::<Vec<_>>()
        };
        let parts: Vec<Vec<usize>> = segments.ranges().map(tokens_of).collect();
        let tokens: Vec<usize> = parts.concat();
        let pick = |values: &[f32]| tokens.iter().map(|&u| values[u]).collect::<Vec<_>>();
        let piece = Case {
            lengths: parts.iter().map(Vec::len).collect(),
            old_logprobs: self.old_logprobs.chunks(self.tokens().max(1)).flat_map(pick).collect(),
            rollout_logprobs: pick(&self.rollout_logprobs),
            loss_mask: self.loss_mask.as_ref().map(|mask| tokens.iter().map(|&u| mask[u]).collect()),
            kept_log_mass: self.kept_log_mass.as_deref().map(pick),
            router_shift: self.router_shift.as_deref().map(pick),
            ..self.clone()
        };
        (piece, tokens)
    }
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub weights: Vec<f32>,
    pub keep: Vec<u8>,
    pub log_ratio: Vec<f32>,
    pub segment_weights: Vec<f32>,
    pub segment_log_weights: Vec<f64>,
    pub kept: Vec<u32>,
    pub accepted: Vec<u8>,
    pub multiplicity: Vec<u32>,
    pub carry_multiplicity: Vec<u32>,
    pub carry_log_weights: Vec<f64>,
    pub advantages: Vec<f32>,
    pub expected_rewards: Vec<f64>,
    pub rejected: Vec<u64>,
    pub globals: Vec<f64>,
    pub diagnostics: Vec<f64>,
    pub fault: Option<Error>,
}

/// A batch in a backend's memory.
pub struct Uploaded<B: Backend> {
    plan: Plan<B>,
    turns: Option<TurnPlan<B>>,
    groups: Option<GroupPlan<B>>,
    floats: Vec<Option<Padded<B, f32>>>,
    doubles: Vec<Option<Padded<B, f64>>>,
    loss_mask: Option<Padded<B, u8>>,
    segment_ids: Option<Padded<B, u64>>,
    per_token: bool,
}

impl<B: Backend> Uploaded<B> {
    pub fn new(backend: &B, stream: &B::Stream, case: &Case) -> moerl::Result<Uploaded<B>> {
        Uploaded::shifted(backend, stream, case, || 0)
    }

    /// Every array by as many elements as `shift` says.
    pub fn shifted(
        backend: &B,
        stream: &B::Stream,
        case: &Case,
        mut shift: impl FnMut() -> usize,
    ) -> moerl::Result<Uploaded<B>> {
        fn padded<B: Backend, T: Pod + Send + Sync>(
            (backend, stream): (&B, &B::Stream),
            shift: usize,
            values: Option<&Vec<T>>,
            beside: T,
        ) -> Option<Padded<B, T>> {
            values.map(|values| Padded::new(backend, stream, values, shift, beside))
        }
        let to = (backend, stream);
        let segments = case.segments();
        let turns = case.has_turns.then(|| TurnPlan::new(backend, stream, &segments, &case.turn_offsets()));
        let groups = case.groups.as_ref().map(|ids| GroupPlan::new(backend, stream, &Groups::from_ids(ids)));
        let floats = [
            Some(&case.old_logprobs),
            Some(&case.rollout_logprobs),
            case.kept_log_mass.as_ref(),
            case.router_shift.as_ref(),
            case.advantages.as_ref(),
            case.uniforms.as_ref(),
            case.rewards.as_ref(),
        ];
        let doubles = [&case.current_log_ratio, &case.carried, &case.target_logprobs, &case.proposal_logprobs];
        Ok(Uploaded {
            plan: Plan::new(backend, stream, &segments)?,
            turns: turns.transpose()?,
            groups: groups.transpose()?,
            floats: floats.map(|values| padded(to, shift(), values, f32::NAN)).into(),
            doubles: doubles.map(|values| padded(to, shift(), values.as_ref(), f64::NAN)).into(),
            loss_mask: padded(to, shift(), case.loss_mask.as_ref(), 77),
            segment_ids: padded(to, shift(), case.segment_ids.as_ref(), 77),
            per_token: case.advantages_per_token
                || case.advantages.as_ref().is_some_and(|a| a.len() != case.lengths.len()),
        })
    }

    pub fn plans(&self) -> Plans<'_, B> {
        Plans { segments: &self.plan, turns: self.turns.as_ref(), groups: self.groups.as_ref() }
    }

    pub fn batch(&self) -> Batch<'_, B::Memory> {
        let float = |at: usize| self.floats[at].as_ref().map(Padded::view);
        let double = |at: usize| self.doubles[at].as_ref().map(Padded::view);
        Batch {
            loss_mask: self.loss_mask.as_ref().map(Padded::view),
            kept_log_mass: float(2),
            router_shift: float(3),
            advantages: float(4)
                .map(|a| if self.per_token { Advantages::PerToken(a) } else { Advantages::PerSegment(a) }),
            uniforms: float(5),
            rewards: float(6),
            current_log_ratio: double(0),
            carried: double(1),
            target_logprobs: double(2),
            proposal_logprobs: double(3),
            segment_ids: self.segment_ids.as_ref().map(Padded::view),
            ..Batch::new(float(0).unwrap(), float(1).unwrap())
        }
    }
}

/// Everything that a call may write, and what it is written into.
pub struct Arrays<B: Backend> {
    floats: Vec<B::Buffer<f32>>,
    doubles: Vec<B::Buffer<f64>>,
    bytes: Vec<B::Buffer<u8>>,
    words: Vec<B::Buffer<u32>>,
    rejected: B::Buffer<u64>,
    workspace: B::Buffer<u8>,
    errors: moerl::ErrorWord<B>,
}

impl<B: Backend> Arrays<B> {
    pub fn new(backend: &B, stream: &B::Stream, plans: Plans<'_, B>) -> Arrays<B> {
        let (tokens, segments) = (plans.segments.segments().tokens(), plans.segments.segments().len());
        let groups = plans.groups.map_or(0, |groups| groups.groups().len());
        let floats = |len: usize| backend.upload(stream, &vec![f32::NAN; len]).unwrap();
        let doubles = |len: usize| backend.upload(stream, &vec![f64::NAN; len]).unwrap();
        let bytes = |len: usize| backend.upload(stream, &vec![0xa5_u8; len]).unwrap();
        let words = |len: usize| backend.upload(stream, &vec![0xa5a5_u32; len]).unwrap();
        Arrays {
            floats: vec![floats(tokens), floats(tokens), floats(segments), floats(segments)],
            doubles: vec![
                doubles(segments),
                doubles(groups),
                doubles(GLOBALS),
                doubles(diagnostics::LEN),
                doubles(groups),
            ],
            bytes: vec![bytes(tokens), bytes(segments)],
            words: vec![words(segments), words(segments), words(groups)],
            rejected: backend.allocate(stream, REJECTED).unwrap(),
            // What another plan may have left there must not matter.
            workspace: bytes(workspace_bytes(&plans)),
            errors: backend.error_word(stream).unwrap(),
        }
    }

    pub fn output(&mut self, config: &Config) -> Output<'_, B::Memory> {
        let [weights, log_ratio, segment_weights, advantages] = &mut self.floats[..] else { unreachable!() };
        let [x, carry, globals, sums, expected] = &mut self.doubles[..] else { unreachable!() };
        let [keep, accepted] = &mut self.bytes[..] else { unreachable!() };
        let [kept, multiplicity, carried] = &mut self.words[..] else { unreachable!() };
        let walks = matches!(config.weight, Weight::Metropolis { level: Level::Sequence | Level::Geometric, .. });
        Output {
            weights: Some(weights.view_mut()),
            keep: Some(keep.view_mut()),
            log_ratio: Some(log_ratio.view_mut()),
            segment_weights: Some(segment_weights.view_mut()),
            segment_log_weights: Some(x.view_mut()),
            kept: Some(kept.view_mut()),
            accepted: walks.then(|| accepted.view_mut()),
            multiplicity: walks.then(|| multiplicity.view_mut()),
            carry_multiplicity: walks.then(|| carried.view_mut()),
            carry_log_weights: walks.then(|| carry.view_mut()),
            advantages: config.makes_advantages().then(|| advantages.view_mut()),
            expected_rewards: config.makes_advantages().then(|| expected.view_mut()),
            rejected: Some(self.rejected.view_mut()),
            globals: Some(globals.view_mut()),
            diagnostics: config.diagnostics.then(|| sums.view_mut()),
            errors: Some(self.errors.view_mut()),
            tag: 7,
            ..Output::new(self.workspace.view_mut())
        }
    }

    pub fn found(mut self, backend: &B, stream: &B::Stream) -> Found {
        let fault = backend.check(stream, &mut self.errors).err();
        let float = |at: usize| backend.download(stream, self.floats[at].view()).unwrap();
        let double = |at: usize| backend.download(stream, self.doubles[at].view()).unwrap();
        let byte = |at: usize| backend.download(stream, self.bytes[at].view()).unwrap();
        let word = |at: usize| backend.download(stream, self.words[at].view()).unwrap();
        Found {
            weights: float(0),
            keep: byte(0),
            log_ratio: float(1),
            segment_weights: float(2),
            segment_log_weights: double(0),
            kept: word(0),
            accepted: byte(1),
            multiplicity: word(1),
            carry_multiplicity: word(2),
            carry_log_weights: double(1),
            advantages: float(3),
            expected_rewards: double(4),
            rejected: backend.download(stream, self.rejected.view()).unwrap(),
            globals: double(2),
            diagnostics: double(3),
            fault,
        }
    }
}

/// One call with every output.
pub fn run<B: Backend>(backend: &B, config: &Config, case: &Case) -> Found {
    try_run(backend, config, case).unwrap()
}

pub fn try_run<B: Backend>(backend: &B, config: &Config, case: &Case) -> moerl::Result<Found> {
    let stream = backend.stream()?;
    let input = Uploaded::new(backend, &stream, case)?;
    let mut arrays = Arrays::new(backend, &stream, input.plans());
    backend.correction(&stream, config, input.plans(), input.batch(), arrays.output(config))?;
    Ok(arrays.found(backend, &stream))
}

/// One call with nothing but `weights` and `keep`.
pub fn run_plain<B: Backend>(backend: &B, config: &Config, case: &Case) -> (Vec<f32>, Vec<u8>) {
    let stream = backend.stream().unwrap();
    let input = Uploaded::new(backend, &stream, case).unwrap();
    let mut arrays = Arrays::new(backend, &stream, input.plans());
    let mut output = arrays.output(config);
    (output.log_ratio, output.segment_weights, output.segment_log_weights, output.kept) = (None, None, None, None);
    (output.accepted, output.multiplicity, output.carry_multiplicity) = (None, None, None);
    (output.carry_log_weights, output.advantages, output.rejected, output.diagnostics) = (None, None, None, None);
    output.expected_rewards = None;
    if !config.batch_normalise {
        output.globals = None;
    }
    backend.correction(&stream, config, input.plans(), input.batch(), output).unwrap();
    let found = arrays.found(backend, &stream);
    (found.weights, found.keep)
}

/// The three phases over pieces of the segments, as ranks or calls hold them; `accumulates`: each goes on from the planes of the one before it,
/// otherwise the planes of all are joined as ranks would. Returns weights, `keep` and the weights of segments.
pub fn run_in_pieces<B: Backend>(
    backend: &B,
    config: &Config,
    case: &Case,
    pieces: &[(Case, Vec<usize>)],
    accumulates: bool,
) -> (Vec<f32>, Vec<u8>, Vec<f32>) {
    let stream = backend.stream().unwrap();
    let planes = config.planes();
    let count = case.lengths.len();
    let inputs: Vec<Uploaded<B>> =
        pieces.iter().map(|(piece, _)| Uploaded::new(backend, &stream, piece).unwrap()).collect();
    let mut arrays: Vec<Arrays<B>> = inputs.iter().map(|input| Arrays::new(backend, &stream, input.plans())).collect();
    let mut decisions = backend.upload(&stream, &vec![Decision { weight: f32::NAN, flags: 99 }; count]).unwrap();
    let mut sums = backend.upload(&stream, &vec![f64::NAN; planes.len() * count]).unwrap();
    let mut joined: Vec<f64> = Vec::new();
    let mut totals = vec![0.0; GLOBALS];
    let mut globals = backend.upload(&stream, &[f64::NAN; GLOBALS]).unwrap();
    for (at, (input, arrays)) in inputs.iter().zip(&mut arrays).enumerate() {
        let mut output = Output { accumulate: accumulates && at > 0, diagnostics: None, ..arrays.output(config) };
        output.globals = Some(globals.view_mut());
        let phases = Phases { sums: sums.view_mut(), decisions: decisions.view_mut() };
        backend.correction_partial(&stream, config, input.plans(), input.batch(), phases, output).unwrap();
        let own = backend.download(&stream, globals.view()).unwrap();
        for (to, from) in totals.iter_mut().zip(own) {
            *to = if accumulates { from } else { *to + from };
        }
        let own = backend.download(&stream, sums.view()).unwrap();
        if at == 0 || accumulates {
            joined = own;
        } else {
            for (place, (to, from)) in joined.iter_mut().zip(own).enumerate() {
                *to = if planes[place / count].is_maximum() { to.max(from) } else { *to + from };
            }
        }
    }
    let mut sums = backend.upload(&stream, &joined).unwrap();
    let mut globals = backend.upload(&stream, &[0.0; GLOBALS]).unwrap();
    let last = inputs.len() - 1;
    let mut output = arrays[last].output(config);
    output.globals = Some(globals.view_mut());
    output.diagnostics = None;
    let phases = Phases { sums: sums.view_mut(), decisions: decisions.view_mut() };
    backend.correction_finish(&stream, config, inputs[last].plans(), inputs[last].batch(), phases, output).unwrap();
    let of_segments = backend.download(&stream, globals.view()).unwrap();
    totals[..GLOBALS / 2].copy_from_slice(&of_segments[..GLOBALS / 2]);
    let mut globals = backend.upload(&stream, &totals).unwrap();
    let (mut weights, mut keep) = (vec![f32::NAN; case.tokens()], vec![9; case.tokens()]);
    for ((input, mut arrays), (_, tokens)) in inputs.iter().zip(arrays).zip(pieces) {
        let mut output = arrays.output(config);
        output.globals = Some(globals.view_mut());
        output.diagnostics = None;
        let phases = Phases { sums: sums.view_mut(), decisions: decisions.view_mut() };
        backend.correction_apply(&stream, config, input.plans(), input.batch(), phases, output).unwrap();
        let found = arrays.found(backend, &stream);
        for ((&u, w), k) in tokens.iter().zip(found.weights).zip(found.keep) {
            (weights[u], keep[u]) = (w, k);
        }
    }
    let of_segments = backend.download(&stream, decisions.view()).unwrap().iter().map(|d| d.weight).collect();
    (weights, keep, of_segments)
}

/// Lengths of every kind that the kernels tell apart.
pub fn distributions() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("ones", vec![1; 300]),
        ("seventeens", vec![17; 70]),
        ("one_long", vec![3500]),
        ("mixed", vec![0, 1, 1024, 3, 1025, 0, 2049, 31, 32, 33, 500, 0, 7]),
        ("empty", vec![0, 0, 0]),
    ]
}
