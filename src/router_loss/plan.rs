//! Rows in panels.

use bytemuck::{Pod, Zeroable};

use crate::abi::MOERL_PANEL;
use crate::backend::{Backend, Buffer};
use crate::error::Result;
use crate::memory::View;
use crate::segments::Segments;

/// Consecutive rows of one segment: `MoerlPanel` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    pub(crate) row: u64,
    pub(crate) segment: u32,
    pub(crate) rows: u32,
}

/// The division of T rows into panels of 256, counted from the start of their segment, where a backend's kernels can read it. May be used for
/// any number of calls on batches of these segments.
#[derive(Debug)]
pub struct Plan<B: Backend> {
    segments: Segments,
    panel_count: usize,
    panels: B::Buffer<Panel>,
    first_panels: B::Buffer<u32>,
    offsets: B::Buffer<i64>,
}

impl<B: Backend> Plan<B> {
    /// Rows that are segments: sequences, for [`Scope::Segments`](super::Scope::Segments).
    ///
    /// # Errors
    /// The backend's, where it cannot take the arrays.
    pub fn new(backend: &B, stream: &B::Stream, segments: &Segments) -> Result<Plan<B>> {
        let mut panels = Vec::new();
        let mut first_panels = vec![0];
        for (index, range) in segments.ranges().enumerate() {
            panels.extend(range.clone().step_by(MOERL_PANEL as usize).map(|row| Panel {
                row: row as u64,
                segment: index as u32,
                rows: (range.end - row).min(MOERL_PANEL as usize) as u32,
            }));
            first_panels.push(panels.len() as u32);
        }
        Ok(Plan {
            segments: segments.clone(),
            panel_count: panels.len(),
            panels: backend.upload(stream, &panels)?,
            first_panels: backend.upload(stream, &first_panels)?,
            offsets: backend.upload(stream, segments.offsets())?,
        })
    }

    /// `tokens` rows as one segment: a batch, for [`Scope::Batch`](super::Scope::Batch).
    ///
    /// # Errors
    /// As [`new`](Plan::new).
    pub fn whole(backend: &B, stream: &B::Stream, tokens: usize) -> Result<Plan<B>> {
        Plan::new(backend, stream, &Segments::from_lengths([tokens])?)
    }

    /// The segments that it divides.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    pub(crate) fn panel_count(&self) -> usize {
        self.panel_count
    }
    pub(crate) fn panels(&self) -> View<'_, Panel, B::Memory> {
        self.panels.view()
    }
    pub(crate) fn first_panels(&self) -> View<'_, u32, B::Memory> {
        self.first_panels.view()
    }
    pub(crate) fn offsets(&self) -> View<'_, i64, B::Memory> {
        self.offsets.view()
    }
}
