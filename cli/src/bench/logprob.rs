//! Vocabularies of released models: forward, and backward with none, most and all of the rows clipped; what further outputs cost; keep-sets,
//! several tokens a row, and shards of a vocabulary.

use moerl::element::{Float, bf16};
use moerl::logprob::{Backward, Combine, Config, Forward, Gradient, KeepSets, Partial, PartialCall, workspace_bytes};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use super::case::{Call, Case, Floor, Prepare, Scale, normal};
use super::export::Exporter;
use super::measure::Measure;
use crate::failure::Result;

/// 50257 is odd, so that almost no row begins at a 16-byte boundary.
const VOCABULARIES: [usize; 5] = [32_000, 50_257, 128_256, 151_936, 262_144];
/// Rows of a training micro-batch.
const ROWS: usize = 8192;
/// Rows of a decoding step, where latency is what counts.
const FEW: [usize; 3] = [1, 16, 128];
/// Shares of rows without a gradient, in per cent.
const CLIPPED: [usize; 3] = [0, 90, 100];
/// Tokens of a row, where there are several.
const SEVERAL: usize = 4;
/// Tokens of a keep-set.
const KEPT: usize = 512;
/// Devices that share a vocabulary.
const SHARDS: usize = 4;

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    vocabulary: usize,
}

/// What is asked of a row beside, or instead of, its token's log-probability, entropy and saved state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Token,
    TokenAndSumP2,
    TokenRankAndArgmax,
    CappedToken,
    SeveralTokens,
    /// The same of [`KEPT`] tokens alone.
    Kept,
}

impl Of {
    fn suffix(self) -> String {
        match self {
            Of::Token => String::new(),
            Of::TokenAndSumP2 => ", sum_p2".into(),
            Of::TokenRankAndArgmax => ", rank and argmax".into(),
            Of::CappedToken => ", softcap".into(),
            Of::SeveralTokens => format!(", {SEVERAL} tokens a row"),
            Of::Kept => format!(", keep-sets of {KEPT} alone"),
        }
    }

    fn config(self) -> Config {
        Config { softcap: (self == Of::CappedToken).then_some(30.0), ..Config::default() }
    }

    /// K
    fn tokens(self) -> usize {
        if self == Of::SeveralTokens { SEVERAL } else { 1 }
    }

    fn kept(self) -> usize {
        if self == Of::Kept { KEPT } else { 0 }
    }
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let (vocabularies, rows, few, one): (&[usize], _, &[usize], _) = match scale {
        Scale::Full => (&VOCABULARIES, ROWS, &FEW, 151_936),
        Scale::Small => (&VOCABULARIES[..2], 10, &FEW[..1], 32_000),
    };
    let few = few.iter().map(|&rows| Shape { rows, vocabulary: 151_936 });
    let one = Shape { rows, vocabulary: one };
    let mut cases = Vec::new();
    for &vocabulary in vocabularies {
        let shape = Shape { rows, vocabulary };
        cases.extend(clipped_cases::<B, bf16>(shape));
        cases.extend(clipped_cases::<B, f32>(shape));
    }
    cases
        .extend(few.flat_map(|shape| [Of::Token, Of::TokenRankAndArgmax].map(|of| forward_case::<B, bf16>(shape, of))));
    cases.extend(
        [Of::TokenAndSumP2, Of::TokenRankAndArgmax, Of::CappedToken, Of::SeveralTokens, Of::Kept]
            .map(|of| forward_case::<B, bf16>(one, of)),
    );
    cases.extend([Of::CappedToken, Of::SeveralTokens, Of::Kept].map(|of| backward_case::<B, bf16>(one, of, 0)));
    cases.push(partial_case::<B, bf16>(one));
    cases.push(combine_case(one));
    cases
}

fn clipped_cases<B: Measure + 'static, T: Float>(shape: Shape) -> Vec<Case<B>> {
    let mut cases = vec![forward_case::<B, T>(shape, Of::Token)];
    cases.extend(CLIPPED.map(|clipped| backward_case::<B, T>(shape, Of::Token, clipped)));
    cases
}

fn case<B: Measure, T: Float>(operation: String, shape: Shape, floor: Floor, prepare: Prepare<B>) -> Case<B> {
    let shape = format!("N={} V={}", shape.rows, shape.vocabulary);
    Case { noun: "logprob", operation, shape, element: T::ELEMENT, floor, prepare }
}

fn forward_case<B: Measure + 'static, T: Float>(shape: Shape, of: Of) -> Case<B> {
    let Shape { rows, vocabulary } = shape;
    let size = T::ELEMENT.size();
    // A token and its log-probability, entropy and saved state; further tokens, and statistics.
    let (read, written) = match of {
        Of::Token | Of::CappedToken => (vocabulary * size + 4, 24),
        Of::TokenAndSumP2 => (vocabulary * size + 4, 28),
        Of::TokenRankAndArgmax => (vocabulary * size + 4, 32),
        Of::SeveralTokens => (vocabulary * size + 4 * SEVERAL, 20 + 4 * SEVERAL),
        // The ids and an offset; the sectors of their logits are added below.
        Of::Kept => (4 * KEPT + 12, 24),
    };
    let kept = if of == Of::Kept { touched(shape, size, 32) } else { 0 };
    let floor = Floor { read: (rows * read + kept) as u64, written: (rows * written) as u64 };
    let prepare: Prepare<B> = Box::new(move |backend, stream| forward::<B, T>(backend, stream, shape, of));
    case::<B, T>(format!("forward{}", of.suffix()), shape, floor, prepare)
}

fn backward_case<B: Measure + 'static, T: Float>(shape: Shape, of: Of, clipped: usize) -> Case<B> {
    let Shape { rows, vocabulary } = shape;
    let size = T::ELEMENT.size();
    let live = (0..rows).filter(|&row| is_live(row, clipped)).count();
    let upstream = 4 + 4 * of.tokens();
    let read = match of {
        Of::Kept => 4 * KEPT + 28,
        _ => vocabulary * size + 16 + 4 * of.tokens(),
    };
    let kept = if of == Of::Kept { touched(shape, size, 16) } else { 0 };
    let floor =
        Floor { read: (live * read + rows * upstream + kept) as u64, written: (rows * vocabulary * size) as u64 };
    let name = match of {
        Of::Token => format!("backward, {clipped} % of the rows without a gradient"),
        _ => format!("backward{}", of.suffix()),
    };
    let prepare: Prepare<B> = Box::new(move |backend, stream| backward::<B, T>(backend, stream, shape, of, clipped));
    case::<B, T>(name, shape, floor, prepare)
}

/// Spread over the rows without a pattern of their own.
fn is_live(row: usize, clipped: usize) -> bool {
    row * 61 % 100 >= clipped
}

/// [`KEPT`] tokens of a row, in ascending order.
fn keep_set(row: usize, vocabulary: usize) -> impl Iterator<Item = usize> {
    let step = vocabulary / KEPT;
    (0..KEPT).map(move |i| i * step + (row * 7 + i * 13) % step)
}

/// Bytes of the aligned pieces of `piece` bytes that hold the logit of a kept token.
fn touched(Shape { rows, vocabulary }: Shape, size: usize, piece: usize) -> usize {
    let pieces = |row: usize| {
        let mut pieces: Vec<usize> =
            keep_set(row, vocabulary).map(|id| (row * vocabulary + id) * size / piece).collect();
        pieces.dedup();
        pieces.len()
    };
    (0..rows).map(pieces).sum::<usize>() * piece
}

/// The arrays of a call.
struct Arrays<B: Measure, T: Float> {
    shape: Shape,
    of: Of,
    logits: B::Buffer<T>,
    tokens: B::Buffer<i32>,
    kept_ids: B::Buffer<i32>,
    kept_offsets: B::Buffer<i64>,
    logprobs: B::Buffer<f32>,
    entropy: B::Buffer<f32>,
    saved: B::Buffer<Partial>,
    sum_p2: B::Buffer<f32>,
    rank: B::Buffer<i32>,
    argmax: B::Buffer<i32>,
    workspace: B::Buffer<u8>,
}

impl<B: Measure, T: Float> Arrays<B, T> {
    fn new(backend: &B, stream: &B::Stream, shape: Shape, of: Of) -> moerl::Result<Self> {
        let Shape { rows, vocabulary } = shape;
        // One row, again and again: no branch of a kernel depends on the numbers.
        let row: Vec<T> = (0..vocabulary).map(|j| T::from_f32(3.0 * normal(j))).collect();
        let tokens: Vec<i32> = (0..rows * of.tokens()).map(|i| (i * 31 % vocabulary) as i32).collect();
        let kept = of.kept();
        let set = |row: usize| keep_set(row, vocabulary).take(kept).map(|id| id as i32);
        Ok(Arrays {
            shape,
            of,
            logits: backend.repeated(stream, &row, rows)?,
            tokens: backend.upload(stream, &tokens)?,
            kept_ids: backend.upload(stream, &(0..rows).flat_map(set).collect::<Vec<_>>())?,
            kept_offsets: backend.upload(stream, &(0..=rows).map(|row| (row * kept) as i64).collect::<Vec<_>>())?,
            logprobs: backend.allocate(stream, rows * of.tokens())?,
            entropy: backend.allocate(stream, rows)?,
            saved: backend.allocate(stream, rows)?,
            sum_p2: backend.allocate(stream, rows)?,
            rank: backend.allocate(stream, rows)?,
            argmax: backend.allocate(stream, rows)?,
            workspace: backend.allocate(stream, workspace_bytes(rows, vocabulary))?,
        })
    }

    fn keep(&self) -> Option<KeepSets<'_, B::Memory>> {
        (self.of.kept() > 0).then(|| KeepSets { ids: self.kept_ids.view(), offsets: self.kept_offsets.view() })
    }

    fn forward(&mut self, backend: &B, stream: &B::Stream) -> moerl::Result<()> {
        let Shape { rows, vocabulary } = self.shape;
        let mut call = Forward::new(Matrix::new(self.logits.view(), rows, vocabulary)?);
        call.tokens = Some(Matrix::new(self.tokens.view(), rows, self.of.tokens())?);
        let (logprobs, entropy) = (Some(self.logprobs.view_mut()), Some(self.entropy.view_mut()));
        let saved = Some(self.saved.view_mut());
        if self.of.kept() > 0 {
            call.keep = Some(KeepSets { ids: self.kept_ids.view(), offsets: self.kept_offsets.view() });
            (call.kept_logprobs, call.kept_entropy, call.kept_saved) = (logprobs, entropy, saved);
        } else {
            (call.logprobs, call.entropy, call.saved) = (logprobs, entropy, saved);
        }
        call.sum_p2 = (self.of == Of::TokenAndSumP2).then(|| self.sum_p2.view_mut());
        call.rank = (self.of == Of::TokenRankAndArgmax).then(|| self.rank.view_mut());
        call.argmax = (self.of == Of::TokenRankAndArgmax).then(|| self.argmax.view_mut());
        call.workspace = Some(self.workspace.view_mut());
        backend.logprob_forward(stream, &self.of.config(), call)
    }
}

fn forward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
    of: Of,
) -> moerl::Result<Call<B>> {
    let mut arrays = Arrays::<B, T>::new(backend, stream, shape, of)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| arrays.forward(backend, stream)))
}

fn backward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    shape: Shape,
    of: Of,
    clipped: usize,
) -> moerl::Result<Call<B>> {
    let Shape { rows, vocabulary } = shape;
    let mut arrays = Arrays::<B, T>::new(backend, stream, shape, of)?;
    arrays.forward(backend, stream)?;
    let upstream: Vec<f32> =
        (0..rows * of.tokens()).map(|i| f32::from(u8::from(is_live(i / of.tokens(), clipped)))).collect();
    let d_entropy: Vec<f32> = upstream.iter().step_by(of.tokens()).copied().collect();
    let (d_logprobs, d_entropy) = (backend.upload(stream, &upstream)?, backend.upload(stream, &d_entropy)?);
    let mut d_logits = backend.allocate::<T>(stream, rows * vocabulary)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let gradient = Gradient::Into {
            logits: Matrix::new(arrays.logits.view(), rows, vocabulary)?,
            d_logits: MatrixMut::new(d_logits.view_mut(), rows, vocabulary)?,
        };
        let mut call = Backward::new(gradient, arrays.saved.view());
        call.tokens = Some(Matrix::new(arrays.tokens.view(), rows, of.tokens())?);
        let upstream = (Some(d_logprobs.view()), Some(d_entropy.view()));
        if of.kept() > 0 {
            call.keep = arrays.keep();
            call.kept_saved = Some(arrays.saved.view());
            (call.d_kept_logprobs, call.d_kept_entropy) = upstream;
        } else {
            (call.d_logprobs, call.d_entropy) = upstream;
        }
        backend.logprob_backward(stream, &of.config(), call)
    }))
}

/// One shard's sums: the first of [`SHARDS`].
fn partial_case<B: Measure + 'static, T: Float>(shape: Shape) -> Case<B> {
    let Shape { rows, vocabulary } = shape;
    let read = rows * (vocabulary * T::ELEMENT.size() + 4);
    let floor = Floor { read: read as u64, written: 16 * rows as u64 };
    let config = Config { vocab_total: Some(SHARDS * vocabulary), ..Config::default() };
    let prepare: Prepare<B> = Box::new(move |backend, stream| {
        let mut arrays = Arrays::<B, T>::new(backend, stream, shape, Of::Token)?;
        let config = config.clone();
        Ok(Box::new(move |backend: &B, stream: &B::Stream| {
            let logits = Matrix::new(arrays.logits.view(), rows, vocabulary)?;
            let mut call = PartialCall::new(logits, arrays.saved.view_mut());
            call.tokens = Some(Matrix::new(arrays.tokens.view(), rows, 1)?);
            call.workspace = Some(arrays.workspace.view_mut());
            backend.logprob_partial(stream, &config, call)
        }))
    });
    case::<B, T>(format!("partial, a shard of {SHARDS}"), shape, floor, prepare)
}

/// From the records of [`SHARDS`] shards.
fn combine_case<B: Measure + 'static>(shape: Shape) -> Case<B> {
    let Shape { rows, vocabulary } = shape;
    let floor = Floor { read: (rows * (16 * SHARDS + 4)) as u64, written: 24 * rows as u64 };
    let config = Config { vocab_total: Some(SHARDS * vocabulary), ..Config::default() };
    let prepare: Prepare<B> = Box::new(move |backend, stream| {
        let record = Partial { max_logit: 1.0, sum: 2.0, weighted: -1.0, label: 0.5 };
        let records = backend.upload(stream, &vec![record; SHARDS * rows])?;
        let tokens = backend.upload(stream, &(0..rows as i32).collect::<Vec<_>>())?;
        let mut logprobs = backend.allocate::<f32>(stream, rows)?;
        let mut entropy = backend.allocate::<f32>(stream, rows)?;
        let mut saved = backend.allocate::<Partial>(stream, rows)?;
        let config = config.clone();
        Ok(Box::new(move |backend: &B, stream: &B::Stream| {
            let mut call = Combine::new(&[1; SHARDS], records.view());
            call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
            call.logprobs = Some(logprobs.view_mut());
            call.entropy = Some(entropy.view_mut());
            call.saved = Some(saved.view_mut());
            backend.logprob_combine(stream, &config, call)
        }))
    });
    case::<B, f32>(format!("combine, {SHARDS} shards"), shape, floor, prepare)
}

/// Forward and backward.
///
/// # Errors
/// The backend's.
pub fn export<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    export_type::<B, bf16>(to)?;
    export_type::<B, f32>(to)
}

fn export_type<B: Backend, T: Float>(to: &mut Exporter<'_, B>) -> Result<()> {
    let (rows, vocabulary) = (6, 1000);
    let (name, config) = (format!("N={rows} V={vocabulary}"), Config::default());
    let values: Vec<T> = (0..rows * vocabulary).map(|i| T::from_f32(3.0 * normal(i))).collect();
    let chosen: Vec<i32> = (0..rows).map(|i| (i * 331 % vocabulary) as i32).collect();
    to.call("logprob", "forward", &name, T::ELEMENT);
    let logits = to.input("logits", &[rows, vocabulary], &values)?;
    let tokens = to.input("tokens", &[rows], &chosen)?;
    let (mut logprobs, mut entropy) = (to.zeros::<f32>(rows)?, to.zeros::<f32>(rows)?);
    let mut saved = to.zeros::<Partial>(rows)?;
    let mut workspace = to.zeros::<u8>(workspace_bytes(rows, vocabulary))?;
    let mut call = Forward::new(Matrix::new(logits.view(), rows, vocabulary)?);
    call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
    call.logprobs = Some(logprobs.view_mut());
    call.entropy = Some(entropy.view_mut());
    call.saved = Some(saved.view_mut());
    call.workspace = Some(workspace.view_mut());
    to.backend.logprob_forward(&to.stream, &config, call)?;
    to.result("logprobs", &[rows], &logprobs)?;
    to.result("entropy", &[rows], &entropy)?;

    to.call("logprob", "backward, 0 % of the rows without a gradient", &name, T::ELEMENT);
    let logits = to.input("logits", &[rows, vocabulary], &values)?;
    let tokens = to.input("tokens", &[rows], &chosen)?;
    let upstream: Vec<f32> = (0..2 * rows).map(normal).collect();
    let d_logprobs = to.input("d_logprobs", &[rows], &upstream[..rows])?;
    let d_entropy = to.input("d_entropy", &[rows], &upstream[rows..])?;
    // The second is what a peer can compute that knows no entropy.
    for (name, d_entropy) in [("d_logits", Some(&d_entropy)), ("d_logits of logprobs", None)] {
        let mut d_logits = to.zeros::<T>(rows * vocabulary)?;
        let gradient = Gradient::Into {
            logits: Matrix::new(logits.view(), rows, vocabulary)?,
            d_logits: MatrixMut::new(d_logits.view_mut(), rows, vocabulary)?,
        };
        let mut call = Backward::new(gradient, saved.view());
        call.tokens = Some(Matrix::new(tokens.view(), rows, 1)?);
        call.d_logprobs = Some(d_logprobs.view());
        call.d_entropy = d_entropy.map(|array| array.view());
        to.backend.logprob_backward(&to.stream, &config, call)?;
        to.result(name, &[rows, vocabulary], &d_logits)?;
    }
    Ok(())
}
