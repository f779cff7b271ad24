//! Batches, and what a backend makes of them.

use moerl::objective::{
    Advantages, Batch, Cispo, CispoCap, Config, Denominators, Kl, KlForm, Output, Plan, RatioLevel, Segments, Variant,
    Vespo, Window, workspace_bytes,
};
use moerl::{Backend, Buffer, Error, diagnostics};
use rand::RngExt;

use crate::common;
use crate::common::property::Padded;

/// A batch in ordinary memory.
#[derive(Clone, Debug)]
pub struct Case {
    pub lengths: Vec<usize>,
    pub logprobs: Vec<f32>,
    pub old_logprobs: Option<Vec<f32>>,
    pub advantages: Vec<f32>,
    pub per_token: bool,
    pub loss_mask: Option<Vec<u8>>,
    pub weights: Option<Vec<f32>>,
    pub segment_weights: Option<Vec<f32>>,
    pub keep: Option<Vec<u8>>,
    pub chosen: Option<Vec<u8>>,
    pub router_shift: Option<Vec<f32>>,
    pub rollout_logprobs: Option<Vec<f32>>,
    pub ref_logprobs: Option<Vec<f32>>,
    pub entropy: Option<Vec<f32>>,
    pub segment_scale: Option<Vec<f32>>,
    /// T, B, P, L; `None`: local.
    pub denominators: Option<[u64; 4]>,
}

impl Case {
    /// Log-ratios of a few percent around a drift of each segment, some far out; every segment's advantage its own.
    pub fn random(lengths: &[usize], seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let tokens = lengths.iter().sum();
        let mut case = Case {
            lengths: lengths.to_vec(),
            logprobs: Vec::with_capacity(tokens),
            old_logprobs: Some(Vec::with_capacity(tokens)),
            advantages: lengths.iter().map(|_| rng.random_range(-2.0..2.0)).collect(),
            per_token: false,
            loss_mask: None,
            weights: None,
            segment_weights: None,
            keep: None,
            chosen: None,
            router_shift: None,
            rollout_logprobs: None,
            ref_logprobs: None,
            entropy: None,
            segment_scale: None,
            denominators: Some([tokens.max(1) as u64, lengths.len().max(1) as u64, 3, 4096]),
        };
        for &length in lengths {
            let drift: f32 = rng.random_range(-0.002..0.002);
            for _ in 0..length {
                let old: f32 = -rng.random_range(0.001_f32..1.0).powi(2) * 12.0;
                let far = if rng.random_range(0..20) == 0 { rng.random_range(-2.0..2.0) } else { 0.0 };
                case.old_logprobs.as_mut().unwrap().push(old);
                case.logprobs.push((old + drift + rng.random_range(-0.3..0.3) + far).min(0.0));
            }
        }
        case
    }

    pub fn with_mask(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        self.loss_mask = Some(self.logprobs.iter().map(|_| u8::from(rng.random_range(0..4) != 0)).collect());
        self
    }

    pub fn with_weights(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        self.weights = Some(self.logprobs.iter().map(|_| rng.random_range(0.0..2.0)).collect());
        self
    }

    pub fn with_token_advantages(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        self.advantages = self.logprobs.iter().map(|_| rng.random_range(-2.0..2.0)).collect();
        self.per_token = true;
        self
    }

    /// Every segment's tokens with the advantage of its first one.
    pub fn with_one_advantage_a_segment(mut self) -> Case {
        if self.per_token {
            for range in self.segments().ranges() {
                let first = self.advantages.get(range.start).copied().unwrap_or_default();
                self.advantages[range].fill(first);
            }
        }
        self
    }

    /// What the terms beside the policy's read, and the tokens that KlCov penalises.
    pub fn with_terms(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        let mut near = |spread: f32| -> Vec<f32> {
            self.logprobs.iter().map(|l| (l + rng.random_range(-spread..spread)).min(0.0)).collect()
        };
        (self.rollout_logprobs, self.ref_logprobs) = (Some(near(0.05)), Some(near(1.0)));
        self.entropy = Some(self.logprobs.iter().map(|_| rng.random_range(0.0..3.0)).collect());
        self.chosen = Some(self.logprobs.iter().map(|_| u8::from(rng.random_range(0..5) == 0)).collect());
        self
    }

    /// Segment weights, rejected tokens (and a whole rejected segment), a router's shift.
    pub fn with_corrections(mut self, seed: u64) -> Case {
        let mut rng = common::seeded(seed);
        self.segment_weights = Some(self.lengths.iter().map(|_| rng.random_range(0.0..2.0)).collect());
        let mut keep: Vec<u8> = self.logprobs.iter().map(|_| u8::from(rng.random_range(0..6) != 0)).collect();
        if let Some(range) = self.segments().ranges().nth(1) {
            keep[range].fill(0);
        }
        self.keep = Some(keep);
        self.router_shift = Some(self.logprobs.iter().map(|_| rng.random_range(-0.05..0.0)).collect());
        self
    }

    pub fn tokens(&self) -> usize {
        self.logprobs.len()
    }

    pub fn segments(&self) -> Segments {
        Segments::from_lengths(self.lengths.iter().copied()).unwrap()
    }

    /// These tokens of the batch, as pieces of its segments with `lengths`.
    pub fn select(&self, lengths: Vec<usize>, tokens: &[usize]) -> Case {
        fn pick<T: Copy>(values: &[T], tokens: &[usize]) -> Vec<T> {
            tokens.iter().map(|&u| values[u]).collect()
        }
        let floats = |values: &Option<Vec<f32>>| values.as_ref().map(|values| pick(values, tokens));
        let bytes = |values: &Option<Vec<u8>>| values.as_ref().map(|values| pick(values, tokens));
        Case {
            lengths,
            logprobs: pick(&self.logprobs, tokens),
            old_logprobs: floats(&self.old_logprobs),
            advantages: if self.per_token { pick(&self.advantages, tokens) } else { self.advantages.clone() },
            loss_mask: bytes(&self.loss_mask),
            weights: floats(&self.weights),
            segment_weights: self.segment_weights.clone(),
            keep: bytes(&self.keep),
            chosen: bytes(&self.chosen),
            router_shift: floats(&self.router_shift),
            rollout_logprobs: floats(&self.rollout_logprobs),
            ref_logprobs: floats(&self.ref_logprobs),
            entropy: floats(&self.entropy),
            segment_scale: self.segment_scale.clone(),
            ..*self
        }
    }

    /// The segments `range` of the batch, with the same denominators.
    pub fn part(&self, range: std::ops::Range<usize>) -> Case {
        let segments = self.segments();
        let (start, end) = (segments.offsets()[range.start] as usize, segments.offsets()[range.end] as usize);
        let of_segments = |values: &Option<Vec<f32>>| values.as_ref().map(|values| values[range.clone()].to_vec());
        let tokens: Vec<usize> = (start..end).collect();
        let mut part = self.select(self.lengths[range.clone()].to_vec(), &tokens);
        if !self.per_token {
            part.advantages = self.advantages[range.clone()].to_vec();
        }
        part.segment_weights = of_segments(&self.segment_weights);
        part.segment_scale = of_segments(&self.segment_scale);
        part
    }

    /// The batch behind `front`, which has the same arrays; with this one's denominators.
    pub fn behind(&self, front: &Case) -> Case {
        fn join<T: Copy>(a: &[T], b: &[T]) -> Vec<T> {
            [a, b].concat()
        }
        fn join_optional<T: Copy>(a: &Option<Vec<T>>, b: &Option<Vec<T>>) -> Option<Vec<T>> {
            a.as_ref().zip(b.as_ref()).map(|(a, b)| join(a, b))
        }
        Case {
            lengths: join(&front.lengths, &self.lengths),
            logprobs: join(&front.logprobs, &self.logprobs),
            old_logprobs: join_optional(&front.old_logprobs, &self.old_logprobs),
            advantages: join(&front.advantages, &self.advantages),
            loss_mask: join_optional(&front.loss_mask, &self.loss_mask),
            weights: join_optional(&front.weights, &self.weights),
            segment_weights: join_optional(&front.segment_weights, &self.segment_weights),
            keep: join_optional(&front.keep, &self.keep),
            chosen: join_optional(&front.chosen, &self.chosen),
            router_shift: join_optional(&front.router_shift, &self.router_shift),
            rollout_logprobs: join_optional(&front.rollout_logprobs, &self.rollout_logprobs),
            ref_logprobs: join_optional(&front.ref_logprobs, &self.ref_logprobs),
            entropy: join_optional(&front.entropy, &self.entropy),
            segment_scale: join_optional(&front.segment_scale, &self.segment_scale),
            ..*self
        }
    }
}

/// An objective of every kernel: the three short ones, and some that take the long one by different ways.
pub fn objectives() -> Vec<Config> {
    let everything = Config {
        mismatch_penalty: 0.01,
        entropy_bonus: 0.02,
        ..Config::ppo_clip(0.2, 0.28).with_kl(Kl::new(0.05, KlForm::K3IsSequence))
    };
    let raw = CispoCap::Raw { max: 1.5 };
    let cispo = Cispo { level: RatioLevel::Sequence, ..Cispo::new(raw) };
    vec![
        Config::ppo_clip(0.2, 0.28),
        Config::gspo(0.01, 0.015),
        Config::gspo_token(0.01, 0.015),
        everything,
        Config::gspo(0.01, 0.015).with_kl(Kl::new(0.05, KlForm::K3)),
        Config::new(Variant::Cispo(cispo)),
        Config::new(Variant::Gmpo(Window::new(0.2, 0.2))),
        Config::new(Variant::Vespo(Vespo::default())).with_kl(Kl::new(0.05, KlForm::K3IsSequence)),
    ]
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Found {
    pub loss: f64,
    pub d_logprobs: Vec<f32>,
    /// Empty without an entropy bonus.
    pub d_entropy: Vec<f32>,
    /// Empty without a divergence.
    pub kl: Vec<f32>,
    pub ratio: Vec<f32>,
    pub clipped: Vec<u8>,
    pub sequence_ratio: Vec<f32>,
    pub sequence_clipped: Vec<u8>,
    pub diagnostics: Vec<f64>,
    pub fault: Option<Error>,
}

/// A batch in a backend's memory.
pub struct Uploaded<B: Backend> {
    logprobs: Padded<B, f32>,
    old_logprobs: Option<Padded<B, f32>>,
    advantages: Padded<B, f32>,
    per_token: bool,
    loss_mask: Option<Padded<B, u8>>,
    weights: Option<Padded<B, f32>>,
    segment_weights: Option<Padded<B, f32>>,
    keep: Option<Padded<B, u8>>,
    chosen: Option<Padded<B, u8>>,
    router_shift: Option<Padded<B, f32>>,
    rollout_logprobs: Option<Padded<B, f32>>,
    ref_logprobs: Option<Padded<B, f32>>,
    entropy: Option<Padded<B, f32>>,
    segment_scale: Option<Padded<B, f32>>,
    denominators: Option<[u64; 4]>,
}

impl<B: Backend> Uploaded<B> {
    pub fn new(backend: &B, stream: &B::Stream, case: &Case) -> Uploaded<B> {
        Uploaded::shifted(backend, stream, case, || 0)
    }

    /// Every array by as many elements as `shift` says.
    pub fn shifted(backend: &B, stream: &B::Stream, case: &Case, mut shift: impl FnMut() -> usize) -> Uploaded<B> {
        let mut shifts = [(); 14].map(|()| shift()).into_iter();
        let mut next = || shifts.next().unwrap();
        let mut send = |values: &Vec<f32>| Padded::new(backend, stream, values, next(), f32::NAN);
        let (logprobs, advantages) = (send(&case.logprobs), send(&case.advantages));
        let [
            old_logprobs,
            weights,
            segment_weights,
            router_shift,
            rollout_logprobs,
            ref_logprobs,
            entropy,
            segment_scale,
        ] = [
            &case.old_logprobs,
            &case.weights,
            &case.segment_weights,
            &case.router_shift,
            &case.rollout_logprobs,
            &case.ref_logprobs,
            &case.entropy,
            &case.segment_scale,
        ]
        .map(|values| values.as_ref().map(&mut send));
        let [loss_mask, keep, chosen] = [&case.loss_mask, &case.keep, &case.chosen]
            .map(|values| values.as_ref().map(|values| Padded::new(backend, stream, values, next(), 0xff)));
        Uploaded {
            logprobs,
            old_logprobs,
            advantages,
            per_token: case.per_token,
            loss_mask,
            weights,
            segment_weights,
            keep,
            chosen,
            router_shift,
            rollout_logprobs,
            ref_logprobs,
            entropy,
            segment_scale,
            denominators: case.denominators,
        }
    }

    pub fn batch(&self) -> Batch<'_, B::Memory> {
        let advantages = self.advantages.view();
        Batch {
            logprobs: self.logprobs.view(),
            old_logprobs: self.old_logprobs.as_ref().map(Padded::view),
            advantages: if self.per_token {
                Advantages::PerToken(advantages)
            } else {
                Advantages::PerSegment(advantages)
            },
            loss_mask: self.loss_mask.as_ref().map(Padded::view),
            weights: self.weights.as_ref().map(Padded::view),
            segment_weights: self.segment_weights.as_ref().map(Padded::view),
            keep: self.keep.as_ref().map(Padded::view),
            chosen: self.chosen.as_ref().map(Padded::view),
            router_shift: self.router_shift.as_ref().map(Padded::view),
            rollout_logprobs: self.rollout_logprobs.as_ref().map(Padded::view),
            ref_logprobs: self.ref_logprobs.as_ref().map(Padded::view),
            entropy: self.entropy.as_ref().map(Padded::view),
            segment_scale: self.segment_scale.as_ref().map(Padded::view),
            denominators: match self.denominators {
                None => Denominators::Local { max_len: 4096 },
                Some([tokens, segments, prompts, max_len]) => {
                    Denominators::Global { tokens, segments, prompts, max_len }
                }
            },
        }
    }
}

/// One call with every output.
pub fn run<B: Backend>(backend: &B, config: &Config, case: &Case) -> Found {
    try_run(backend, config, case).unwrap()
}

pub fn try_run<B: Backend>(backend: &B, config: &Config, case: &Case) -> moerl::Result<Found> {
    let stream = backend.stream()?;
    let plan = Plan::new(backend, &stream, &case.segments())?;
    let input = Uploaded::new(backend, &stream, case);
    let (tokens, segments) = (case.tokens(), case.lengths.len());
    // What another plan may have left there must not matter.
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; workspace_bytes(&plan)])?;
    let mut errors = backend.error_word(&stream)?;
    let mut loss = backend.upload(&stream, &[f64::NAN])?;
    let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; tokens])?;
    let mut d_entropy = backend.upload(&stream, &vec![f32::NAN; tokens])?;
    let mut kl = backend.upload(&stream, &vec![f32::NAN; tokens])?;
    let mut ratio = backend.upload(&stream, &vec![f32::NAN; tokens])?;
    let mut clipped = backend.upload(&stream, &vec![0xff_u8; tokens])?;
    let mut sequence_ratio = backend.upload(&stream, &vec![f32::NAN; segments])?;
    let mut sequence_clipped = backend.upload(&stream, &vec![0xff_u8; segments])?;
    let mut sums = backend.upload(&stream, &[f64::NAN; diagnostics::LEN])?;
    // Twice: the first call must leave the workspace as it found it.
    for _ in 0..2 {
        let output = Output {
            loss: Some(loss.view_mut()),
            d_logprobs: Some(d_logprobs.view_mut()),
            d_entropy: (config.entropy_bonus != 0.0).then(|| d_entropy.view_mut()),
            kl: config.kl.map(|_| kl.view_mut()),
            ratio: Some(ratio.view_mut()),
            clipped: Some(clipped.view_mut()),
            sequence_ratio: Some(sequence_ratio.view_mut()),
            sequence_clipped: Some(sequence_clipped.view_mut()),
            diagnostics: Some(sums.view_mut()),
            workspace: workspace.view_mut(),
            errors: Some(errors.view_mut()),
            tag: 7,
            accumulate: false,
        };
        backend.objective(&stream, config, &plan, input.batch(), output)?;
    }
    let fault = backend.check(&stream, &mut errors).err();
    Ok(Found {
        loss: backend.download(&stream, loss.view())?[0],
        d_logprobs: backend.download(&stream, d_logprobs.view())?,
        d_entropy: if config.entropy_bonus != 0.0 { backend.download(&stream, d_entropy.view())? } else { vec![] },
        kl: if config.kl.is_some() { backend.download(&stream, kl.view())? } else { vec![] },
        ratio: backend.download(&stream, ratio.view())?,
        clipped: backend.download(&stream, clipped.view())?,
        sequence_ratio: backend.download(&stream, sequence_ratio.view())?,
        sequence_clipped: backend.download(&stream, sequence_clipped.view())?,
        diagnostics: backend.download(&stream, sums.view())?,
        fault,
    })
}

/// One call with nothing but loss and gradient.
pub fn run_plain<B: Backend>(backend: &B, config: &Config, case: &Case) -> (f64, Vec<f32>) {
    let Asked { loss, d_logprobs, .. } = run_asking(backend, config, case, Asking::default());
    (loss, d_logprobs)
}

/// What is asked for beside loss and gradient.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asking {
    pub diagnostics: bool,
    pub ratio: bool,
}

/// What came of it; no diagnostics where they were not asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub loss: f64,
    pub d_logprobs: Vec<f32>,
    pub diagnostics: Vec<f64>,
    pub fault: Option<Error>,
}

/// One call with loss, gradient and what else is asked for.
pub fn run_asking<B: Backend>(backend: &B, config: &Config, case: &Case, asking: Asking) -> Asked {
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
    let input = Uploaded::new(backend, &stream, case);
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; workspace_bytes(&plan)]).unwrap();
    let mut errors = backend.error_word(&stream).unwrap();
    let mut loss = backend.upload(&stream, &[f64::NAN]).unwrap();
    let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; case.tokens()]).unwrap();
    let mut ratio = backend.upload(&stream, &vec![f32::NAN; case.tokens()]).unwrap();
    let mut sums = backend.upload(&stream, &[f64::NAN; diagnostics::LEN]).unwrap();
    let mut output = Output::new(workspace.view_mut());
    output.loss = Some(loss.view_mut());
    output.d_logprobs = Some(d_logprobs.view_mut());
    output.ratio = asking.ratio.then(|| ratio.view_mut());
    output.diagnostics = asking.diagnostics.then(|| sums.view_mut());
    output.errors = Some(errors.view_mut());
    output.tag = 7;
    backend.objective(&stream, config, &plan, input.batch(), output).unwrap();
    let sums = if asking.diagnostics { backend.download(&stream, sums.view()).unwrap() } else { vec![] };
    Asked {
        loss: backend.download(&stream, loss.view()).unwrap()[0],
        d_logprobs: backend.download(&stream, d_logprobs.view()).unwrap(),
        diagnostics: sums,
        fault: backend.check(&stream, &mut errors).err(),
    }
}

/// Lengths of every kind that the kernels tell apart.
pub fn distributions() -> Vec<(&'static str, Vec<usize>)> {
    let mut rng = common::seeded(11);
    let log_normal: Vec<usize> =
        (0..40).map(|_| (5.0 + 1.2 * rng.random_range(-1.7_f64..1.7)).exp() as usize).collect();
    vec![
        ("ones", vec![1; 700]),
        ("seventeens", vec![17; 90]),
        ("log_normal", log_normal),
        ("one_long", vec![3500]),
        ("mixed", vec![0, 1, 1024, 3, 1025, 0, 2049, 31, 32, 33, 500, 500, 0, 7]),
        ("empty", vec![0, 0, 0]),
    ]
}
