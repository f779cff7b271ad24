//! Gate calls with their results on the host: what `step` and `check` share.

use moerl::error::Fault;
use moerl::gate::{Backward, Config, Forced, Forward, Routes};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Result};

use crate::clock::Clock;
use crate::findings::taken;
use crate::upload::AnyBuffer;

/// Rows of one layer, in a backend's memory.
pub struct Rows<'a, B: Backend> {
    /// `[rows, experts]`, without gaps.
    pub logits: &'a AnyBuffer<B>,
    /// How many.
    pub rows: usize,
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
    /// `[experts]`.
    pub bias: Option<&'a [f32]>,
    /// `[rows]`: 0 makes a row absent.
    pub mask: Option<&'a [u8]>,
    /// Experts to force.
    pub forced: Option<ForcedIds<'a, B>>,
    /// The layer, for faults.
    pub layer: usize,
}

/// Recorded experts of one layer, as a view of a tape of all layers.
pub struct ForcedIds<'a, B: Backend> {
    /// The tape.
    pub tape: &'a AnyBuffer<B>,
    /// The element at which the layer begins.
    pub first: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
}

impl<B: Backend> Clone for ForcedIds<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for ForcedIds<'_, B> {}

/// What a forward call computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// `[rows, k]`.
    pub ids: Vec<i32>,
    /// `[rows, k]`.
    pub weights: Vec<f32>,
    selected_logits: Vec<f32>,
    lse: Option<Vec<f32>>,
}

/// Experts and weights, and what the error word said.
///
/// # Errors
/// The operation's and the backend's.
pub fn forward<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    rows: &Rows<'_, B>,
    clock: &mut Clock,
) -> Result<(Choice, Option<Fault>)> {
    let (t, e, k) = (rows.rows, rows.experts, rows.top_k);
    let bias = rows.bias.map(|bias| backend.upload(stream, bias)).transpose()?;
    let mask = rows.mask.map(|mask| backend.upload(stream, mask)).transpose()?;
    let mut ids = backend.allocate::<i32>(stream, t * k)?;
    let mut weights = backend.allocate::<f32>(stream, t * k)?;
    let mut selected = backend.allocate::<f32>(stream, t * k)?;
    let mut lse = config.needs_lse().then(|| backend.allocate::<f32>(stream, t)).transpose()?;
    let mut errors = backend.error_word(stream)?;
    let routes = match rows.forced {
        None => Routes::Native,
        Some(ForcedIds { tape, first, row_stride }) => {
            // A byte names 256 experts only if none of its values means "not recorded".
            let has_sentinel = !(e == 256 && matches!(tape, AnyBuffer::U8(_)));
            Routes::Forced(Forced { has_sentinel, ..Forced::new(tape.matrix(first, t, k, row_stride)?) })
        }
    };
    let call = Forward {
        routes,
        selection_bias: bias.as_ref().map(Buffer::view),
        token_mask: mask.as_ref().map(Buffer::view),
        selected_logits: Some(selected.view_mut()),
        lse: lse.as_mut().map(Buffer::view_mut),
        errors: Some(errors.view_mut()),
        tag: rows.layer as u16,
        ..Forward::new(rows.logits.matrix(0, t, e, e)?, ids.view_mut(), MatrixMut::new(weights.view_mut(), t, k)?)
    };
    let config = Config { top_k: Some(k), ..config.clone() };
    clock.time(backend, stream, || backend.gate_forward(stream, &config, call))?;
    let fault = taken(backend.check(stream, &mut errors))?;
    let choice = Choice {
        ids: backend.download(stream, ids.view())?,
        weights: backend.download(stream, weights.view())?,
        selected_logits: backend.download(stream, selected.view())?,
        lse: lse.map(|lse| backend.download(stream, lse.view())).transpose()?,
    };
    Ok((choice, fault))
}

/// The gradient of the router logits, `[rows, experts]` f32, from that of the weights, `[rows, k]`.
///
/// # Errors
/// The operation's and the backend's.
pub fn backward<B: Backend>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    rows: &Rows<'_, B>,
    choice: &Choice,
    d_weights: &[f32],
    clock: &mut Clock,
) -> Result<Vec<f32>> {
    let (t, e, k) = (rows.rows, rows.experts, rows.top_k);
    let d_weights = backend.upload(stream, d_weights)?;
    let ids = backend.upload(stream, &choice.ids)?;
    let selected = backend.upload(stream, &choice.selected_logits)?;
    let lse = choice.lse.as_ref().map(|lse| backend.upload(stream, lse)).transpose()?;
    let mut d_logits = backend.allocate::<f32>(stream, t * e)?;
    let target = MatrixMut::new(d_logits.view_mut(), t, e)?;
    let call = Backward {
        router_logits: lse.is_some().then(|| rows.logits.matrix(0, t, e, e)).transpose()?,
        lse: lse.as_ref().map(Buffer::view),
        ..Backward::new(Matrix::new(d_weights.view(), t, k)?, ids.view(), selected.view(), target)
    };
    let config = Config { top_k: Some(k), ..config.clone() };
    clock.time(backend, stream, || backend.gate_backward(stream, &config, call))?;
    backend.download(stream, d_logits.view())
}
