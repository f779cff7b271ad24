//! Batches, and what a backend makes of them.

use moerl::objective::{Advantages, Batch, Config, Denominators, Output, Plan, Segments, workspace_bytes};
use moerl::{Backend, Buffer, Error, diagnostics};
use rand::RngExt;

use crate::common;

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

    pub fn tokens(&self) -> usize {
        self.logprobs.len()
    }

    pub fn segments(&self) -> Segments {
        Segments::from_lengths(self.lengths.iter().copied()).unwrap()
    }

    /// The segments `range` of the batch, with the same denominators.
    pub fn part(&self, range: std::ops::Range<usize>) -> Case {
        let segments = self.segments();
        let (start, end) = (segments.offsets()[range.start] as usize, segments.offsets()[range.end] as usize);
        let cut = |values: &Vec<f32>| values[start..end].to_vec();
        Case {
            lengths: self.lengths[range.clone()].to_vec(),
            logprobs: cut(&self.logprobs),
            old_logprobs: self.old_logprobs.as_ref().map(cut),
            advantages: if self.per_token { cut(&self.advantages) } else { self.advantages[range.clone()].to_vec() },
            loss_mask: self.loss_mask.as_ref().map(|mask| mask[start..end].to_vec()),
            weights: self.weights.as_ref().map(cut),
            segment_scale: self.segment_scale.as_ref().map(|scale| scale[range].to_vec()),
            ..*self
        }
    }
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Found {
    pub loss: f64,
    pub d_logprobs: Vec<f32>,
    pub ratio: Vec<f32>,
    pub clipped: Vec<u8>,
    pub sequence_ratio: Vec<f32>,
    pub sequence_clipped: Vec<u8>,
    pub diagnostics: Vec<f64>,
    pub fault: Option<Error>,
}

/// A batch in a backend's memory.
pub struct Uploaded<B: Backend> {
    logprobs: B::Buffer<f32>,
    old_logprobs: Option<B::Buffer<f32>>,
    advantages: B::Buffer<f32>,
    per_token: bool,
    loss_mask: Option<B::Buffer<u8>>,
    weights: Option<B::Buffer<f32>>,
    segment_scale: Option<B::Buffer<f32>>,
    denominators: Option<[u64; 4]>,
}

impl<B: Backend> Uploaded<B> {
    pub fn new(backend: &B, stream: &B::Stream, case: &Case) -> Uploaded<B> {
        let send = |values: &Vec<f32>| backend.upload(stream, values).unwrap();
        Uploaded {
            logprobs: send(&case.logprobs),
            old_logprobs: case.old_logprobs.as_ref().map(send),
            advantages: send(&case.advantages),
            per_token: case.per_token,
            loss_mask: case.loss_mask.as_ref().map(|mask| backend.upload(stream, mask).unwrap()),
            weights: case.weights.as_ref().map(send),
            segment_scale: case.segment_scale.as_ref().map(send),
            denominators: case.denominators,
        }
    }

    pub fn batch(&self) -> Batch<'_, B::Memory> {
        let advantages = self.advantages.view();
        Batch {
            logprobs: self.logprobs.view(),
            old_logprobs: self.old_logprobs.as_ref().map(Buffer::view),
            advantages: if self.per_token {
                Advantages::PerToken(advantages)
            } else {
                Advantages::PerSegment(advantages)
            },
            loss_mask: self.loss_mask.as_ref().map(Buffer::view),
            weights: self.weights.as_ref().map(Buffer::view),
            segment_scale: self.segment_scale.as_ref().map(Buffer::view),
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
    let stream = backend.stream().unwrap();
    let plan = Plan::new(backend, &stream, &case.segments()).unwrap();
    let input = Uploaded::new(backend, &stream, case);
    let mut workspace = backend.upload(&stream, &vec![0xa5_u8; workspace_bytes(&plan)]).unwrap();
    let mut loss = backend.upload(&stream, &[f64::NAN]).unwrap();
    let mut d_logprobs = backend.upload(&stream, &vec![f32::NAN; case.tokens()]).unwrap();
    let mut output = Output::new(workspace.view_mut());
    output.loss = Some(loss.view_mut());
    output.d_logprobs = Some(d_logprobs.view_mut());
    backend.objective(&stream, config, &plan, input.batch(), output).unwrap();
    (backend.download(&stream, loss.view()).unwrap()[0], backend.download(&stream, d_logprobs.view()).unwrap())
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
