//! The logprob stage: log-probabilities and entropies from logits, and the logits' gradient, a bounded number of rows at a time.

use std::borrow::Cow;
use std::ops::Range;

use moerl::element::Element;
use moerl::error::Fault;
use moerl::logprob::{Backward, Config, Forward, Gradient, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Reference};

use super::{Context, Stage, largest_difference};
use crate::clock::Clock;
use crate::failure::Result;
use crate::findings::{Settle, taken};
use crate::objective::Outcome;
use crate::progress::Progress;
use crate::stepfile::{StepFile, Tensor};
use crate::upload::AnyBuffer;

/// The bytes of logits that are handed to a backend at once.
const CHUNK_BYTES: usize = 16 << 20;

/// What the forward pass leaves for the rest of the step.
#[derive(Debug, Default)]
pub struct Forwarded<'a> {
    /// `[N]`.
    pub logprobs: Cow<'a, [f32]>,
    /// `[N]`.
    pub entropy: Vec<f32>,
    /// `[N]`: what backward needs.
    saved: Vec<Partial>,
}

impl Forwarded<'_> {
    /// Log-probabilities that the file brings, without logits.
    pub fn given(logprobs: Cow<'_, [f32]>) -> Forwarded<'_> {
        Forwarded { logprobs, entropy: Vec::new(), saved: Vec::new() }
    }
}

/// The rows of one chunk.
struct Rows<'a> {
    logits: Tensor<'a>,
    vocabulary: usize,
    range: Range<usize>,
    tokens: &'a [i32],
}

fn chunks(logits: &Tensor<'_>, vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    let row_bytes = vocabulary * logits.element.map_or(4, Element::size);
    let rows = logits.shape[0];
    let step = (CHUNK_BYTES / row_bytes.max(1)).max(1);
    (0..rows).step_by(step).map(move |first| first..(first + step).min(rows))
}

/// Log-probabilities and entropies of all N rows: `loss_mask` is not given to the operation.
///
/// # Errors
/// A finding at a counted token, or what the backend met.
pub fn forward<B: Backend>(
    context: &Context<'_, B>,
    config: &Config,
    logits: Tensor<'_>,
) -> Result<(Forwarded<'static>, Stage)> {
    let vocabulary = logits.shape[1];
    let mut stage = Stage::new("logprob", logits.shape[0]);
    let mut all = Forwarded::default();
    let progress = Progress::new(logits.shape[0] as u64, "logprob");
    for range in chunks(&logits, vocabulary) {
        let tokens = context.file.token_ids(range.clone());
        let rows = Rows { logits, vocabulary, range: range.clone(), tokens: &tokens };
        let (found, fault) = forward_rows(context.backend, &context.stream, config, &rows, None, &mut stage.clock)?;
        let settle =
            Settle { tensor: logits.name, rows: range.clone(), mask: &context.mask, nonfinite: context.nonfinite };
        stage.findings += settle.by(
            fault,
            |row| {
                unknown_token(rows.tokens[row - range.start], vocabulary)
                    .map(|message| format!("tokens: row {row} {message}"))
            },
            |mask| {
                Ok(forward_rows(context.backend, &context.stream, config, &rows, Some(mask), &mut Clock::default())?.1)
            },
        )?;
        if context.compare {
            let (exact, _) = forward_rows(&Reference, &(), config, &rows, None, &mut Clock::default())?;
            stage.differs("logprobs", largest_difference(&found.logprobs, &exact.logprobs));
            stage.differs("entropy", largest_difference(&found.entropy, &exact.entropy));
        }
        all.logprobs.to_mut().extend_from_slice(&found.logprobs);
        all.entropy.extend(found.entropy);
        all.saved.extend(found.saved);
        progress.advance(range.len() as u64);
    }
    Ok((all, stage))
}

/// The log-probabilities of a file's tokens, whatever its data: NaN where there is none.
///
/// # Errors
/// What the backend met.
pub fn logprobs_of<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    file: &StepFile,
    logits: Tensor<'_>,
) -> Result<Vec<f32>> {
    let vocabulary = logits.shape[1];
    let mut all = Vec::with_capacity(logits.shape[0]);
    let progress = Progress::new(logits.shape[0] as u64, "logprob");
    for range in chunks(&logits, vocabulary) {
        let tokens = file.token_ids(range.clone());
        let rows = Rows { logits, vocabulary, range: range.clone(), tokens: &tokens };
        let (found, _) = forward_rows(backend, stream, config, &rows, None, &mut Clock::default())?;
        all.extend_from_slice(&found.logprobs);
        progress.advance(range.len() as u64);
    }
    Ok(all)
}

fn unknown_token(token: i32, vocabulary: usize) -> Option<String> {
    let known = usize::try_from(token).is_ok_and(|token| token < vocabulary);
    (!known).then(|| format!("names token {token}, the vocabulary has {vocabulary}"))
}

fn forward_rows<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    rows: &Rows<'_>,
    mask: Option<&[u8]>,
    clock: &mut Clock,
) -> moerl::Result<(Forwarded<'static>, Option<Fault>)> {
    let (n, v) = (rows.range.len(), rows.vocabulary);
    let logits = AnyBuffer::upload(backend, stream, &rows.logits, rows.range.start * v..rows.range.end * v)?;
    let tokens = backend.upload(stream, rows.tokens)?;
    let mask = mask.map(|mask| backend.upload(stream, mask)).transpose()?;
    let mut logprobs = backend.allocate::<f32>(stream, n)?;
    let mut entropy = backend.allocate::<f32>(stream, n)?;
    let mut saved = backend.allocate::<Partial>(stream, n)?;
    let mut errors = backend.error_word(stream)?;
    let call = Forward {
        tokens: Some(Matrix::new(tokens.view(), n, 1)?),
        loss_mask: mask.as_ref().map(Buffer::view),
        logprobs: Some(logprobs.view_mut()),
        entropy: Some(entropy.view_mut()),
        saved: Some(saved.view_mut()),
        errors: Some(errors.view_mut()),
        ..Forward::new(logits.matrix(0, n, v, v)?)
    };
    clock.time(backend, stream, || backend.logprob_forward(stream, config, call))?;
    let fault = taken(backend.check(stream, &mut errors))?;
    let found = Forwarded {
        logprobs: backend.download(stream, logprobs.view())?.into(),
        entropy: backend.download(stream, entropy.view())?,
        saved: backend.download(stream, saved.view())?,
    };
    Ok((found, fault))
}

/// The gradient of the logits, in f32, and its Euclidean norm; handed to `keep` piece by piece, with the first row of each.
///
/// # Errors
/// What the backend or `keep` met.
pub fn backward<B: Backend>(
    context: &Context<'_, B>,
    config: &Config,
    logits: Tensor<'_>,
    forwarded: &Forwarded<'_>,
    gradients: &Outcome,
    mut keep: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<(f64, Stage)> {
    let vocabulary = logits.shape[1];
    let mut stage = Stage::new("logprob backward", logits.shape[0]);
    let mut squares = 0.0;
    let progress = Progress::new(logits.shape[0] as u64, "logprob backward");
    for range in chunks(&logits, vocabulary) {
        let tokens = context.file.token_ids(range.clone());
        let rows = Rows { logits, vocabulary, range: range.clone(), tokens: &tokens };
        let saved = &forwarded.saved[range.clone()];
        let d_entropy = (!gradients.d_entropy.is_empty()).then(|| &gradients.d_entropy[range.clone()]);
        let upstream = Upstream { d_logprobs: &gradients.d_logprobs[range.clone()], d_entropy };
        let found = backward_rows(context.backend, &context.stream, config, &rows, saved, upstream, &mut stage.clock)?;
        if context.compare {
            let exact = backward_rows(&Reference, &(), config, &rows, saved, upstream, &mut Clock::default())?;
            stage.differs("d_logits", largest_difference(&found, &exact));
        }
        squares += found.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        keep(range.start, &found)?;
        progress.advance(range.len() as u64);
    }
    Ok((squares.sqrt(), stage))
}

/// The gradients of some rows' results.
#[derive(Clone, Copy)]
struct Upstream<'a> {
    d_logprobs: &'a [f32],
    d_entropy: Option<&'a [f32]>,
}

fn backward_rows<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    rows: &Rows<'_>,
    saved: &[Partial],
    upstream: Upstream<'_>,
    clock: &mut Clock,
) -> moerl::Result<Vec<f32>> {
    let (n, v) = (rows.range.len(), rows.vocabulary);
    let logits = AnyBuffer::upload(backend, stream, &rows.logits, rows.range.start * v..rows.range.end * v)?;
    let tokens = backend.upload(stream, rows.tokens)?;
    let saved = backend.upload(stream, saved)?;
    let d_logprobs = backend.upload(stream, upstream.d_logprobs)?;
    let d_entropy = upstream.d_entropy.map(|gradient| backend.upload(stream, gradient)).transpose()?;
    let mut d_logits = backend.allocate::<f32>(stream, n * v)?;
    let gradient =
        Gradient::Into { logits: logits.matrix(0, n, v, v)?, d_logits: MatrixMut::new(d_logits.view_mut(), n, v)? };
    let call = Backward {
        tokens: Some(Matrix::new(tokens.view(), n, 1)?),
        d_logprobs: Some(d_logprobs.view()),
        d_entropy: d_entropy.as_ref().map(Buffer::view),
        ..Backward::new(gradient, saved.view())
    };
    clock.time(backend, stream, || backend.logprob_backward(stream, config, call))?;
    backend.download(stream, d_logits.view())
}
