//! Chunk after chunk: a product, the kernels of [`logprob`], and in backward two more products. Launches `kernels/linear_logprob.cu` for what
//! has to be moved or rounded between them.

use std::ops::Range;

use super::logprob;
use crate::abi::{MoerlLinearCopy, MoerlLinearRound};
use crate::device::executor::{Arguments, Executor, Factor, Grid, Kernel, Parameters, Product};
use crate::element::Element;
use crate::error::Result;
use crate::linear_logprob::{Config, Footprint, Gradients, Piece, Projection, Shape, WeightGradient, absent, chunks};
use crate::logprob::{Backward, Forward, Gradient, PartialCall};
use crate::memory::{Matrix, MatrixMut, Memory, ViewMut};

// SAFETY: generated from the structure in kernels/abi.h that the kernel takes.
unsafe impl Parameters for MoerlLinearCopy {}
// SAFETY: likewise.
unsafe impl Parameters for MoerlLinearRound {}

/// Threads of a block, and how many such blocks a multiprocessor holds.
const BLOCK: (u32, usize) = (256, 8);

/// What lies where in a workspace, from a multiple of 256 on. Every part but the last is a multiple of 256 bytes long, as R is one of 128.
struct Parts<'a, M> {
    product: ViewMut<'a, u8, M>,
    /// `[R, V]`.
    logits: MatrixMut<'a, M>,
    /// `[R, V]`, where they have a type of their own.
    d_logits: Option<MatrixMut<'a, M>>,
    /// `[R, H]`, of hidden states or their gradient.
    staged: ViewMut<'a, u8, M>,
    /// `[V, H]` f32, where the caller's has another type.
    d_weight: Option<MatrixMut<'a, M>>,
}

impl<'a, M: Memory> Parts<'a, M> {
    fn of(workspace: ViewMut<'a, u8, M>, footprint: &Footprint, config: &Config, shape: &Shape) -> Result<Self> {
        let rows = config.chunk_rows(shape.vocabulary)?;
        let skipped = workspace.address().next_multiple_of(256) - workspace.address();
        let (_, rest) = workspace.split_at(skipped);
        let (product, rest) = rest.split_at(footprint.product);
        let (logits, rest) = rest.split_at(footprint.logits);
        let (d_logits, rest) = rest.split_at(footprint.d_logits);
        let (staged, rest) = rest.split_at(footprint.staged);
        let (d_weight, _) = rest.split_at(footprint.d_weight);
        let stride = config.logits_stride(shape.vocabulary);
        let chunk = |bytes, element: Element| MatrixMut::in_bytes(bytes, element, rows, shape.vocabulary, stride);
        Ok(Parts {
            product,
            logits: chunk(logits, config.head.logits()),
            d_logits: (footprint.d_logits > 0).then(|| chunk(d_logits, config.head.d_logits())),
            staged,
            d_weight: (footprint.d_weight > 0)
                .then(|| MatrixMut::in_bytes(d_weight, Element::F32, shape.vocabulary, shape.hidden, shape.hidden)),
        })
    }
}

/// What the chunks of a call are made of.
struct Operands<'a, M> {
    hidden: Matrix<'a, M>,
    weight: Matrix<'a, M>,
    chunk_rows: usize,
    chunks: Vec<Vec<Piece>>,
    absent: Vec<Range<usize>>,
}

impl<'a, M: Memory> Operands<'a, M> {
    fn of(projection: &Projection<'a, M>, config: &Config) -> Result<Self> {
        let Shape { rows, vocabulary, .. } = projection.shape();
        let chunk_rows = config.chunk_rows(vocabulary)?;
        Ok(Operands {
            hidden: projection.hidden,
            weight: projection.weight,
            chunk_rows,
            chunks: chunks(rows, projection.rows, chunk_rows),
            absent: absent(rows, projection.rows),
        })
    }

    /// True if a chunk is rows of a matrix as they are.
    fn is_whole(&self, chunk: &[Piece], has_no_gaps: bool) -> bool {
        has_no_gaps && chunk.len() == 1 && chunk[0].rows.len() == self.chunk_rows
    }
}

/// Rows of a chunk that have hidden states.
fn filled(chunk: &[Piece]) -> usize {
    chunk.last().map_or(0, |piece| piece.place().end)
}

/// `[R, H]`: the hidden states of a chunk, where they are or staged; zeros where it has no rows.
fn gathered<'s, E: Executor>(
    executor: &E,
    stream: &E::Stream,
    operands: &Operands<'s, E::Memory>,
    chunk: &[Piece],
    staged: &'s mut ViewMut<'_, u8, E::Memory>,
) -> Result<Matrix<'s, E::Memory>> {
    let hidden = &operands.hidden;
    if operands.is_whole(chunk, hidden.layout().has_no_gaps()) {
        return Ok(hidden.row_range(chunk[0].rows.clone()));
    }
    let (rows, columns) = (operands.chunk_rows, hidden.columns());
    let row_bytes = columns * hidden.element().size();
    let padding = filled(chunk) * row_bytes..rows * row_bytes;
    executor.set_bytes(stream, staged.reborrow().slice(padding), 0)?;
    let mut to = MatrixMut::in_bytes(staged.reborrow(), hidden.element(), rows, columns, columns);
    for piece in chunk {
        copy(executor, stream, &hidden.row_range(piece.rows.clone()), to.reborrow().row_range(piece.place()))?;
    }
    Ok(MatrixMut::in_bytes(staged.reborrow(), hidden.element(), rows, columns, columns).into_matrix())
}

/// Rows of one matrix to another of the same shape and type.
fn copy<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    from: &Matrix<'_, E::Memory>,
    mut to: MatrixMut<'_, E::Memory>,
) -> Result<()> {
    let packs = |elements: usize| (elements * from.element().size() / 16) as u64;
    let mut arguments = Arguments::new::<E>();
    let params = MoerlLinearCopy {
        from: arguments.read_matrix("from", from),
        to: arguments.write_matrix("to", &mut to),
        rows: from.rows() as u64,
        packs: packs(from.columns()),
        from_stride: packs(from.row_stride()),
        to_stride: packs(to.row_stride()),
    };
    let grid = grid(executor, params.rows * params.packs);
    // SAFETY: both matrices have these rows, of as many packs; validate checked that all begin at multiples of 16 bytes.
    unsafe { executor.launch(stream, kernel("linear_copy"), grid, &arguments, &params) }
}

fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "linear_logprob", name }
}

/// One thread for each of so many packs, but no more than the device holds.
fn grid<E: Executor>(executor: &E, packs: u64) -> Grid {
    let (threads, resident) = BLOCK;
    let most = resident as u64 * u64::from(executor.multiprocessors());
    Grid { blocks: packs.div_ceil(u64::from(threads)).min(most) as u32, threads, shared_bytes: 0 }
}

/// The logits of a chunk.
fn project<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    hidden: Matrix<'_, E::Memory>,
    weight: Matrix<'_, E::Memory>,
    logits: &mut MatrixMut<'_, E::Memory>,
    workspace: &mut ViewMut<'_, u8, E::Memory>,
) -> Result<()> {
    executor.multiply(
        stream,
        Product {
            a: Factor::plain(hidden),
            b: Factor::transposed(weight),
            to: logits.reborrow(),
            is_added: false,
            workspace: workspace.reborrow(),
        },
    )
}

/// Projects chunk after chunk, and hands on the logits of every piece, and which rows they are of.
fn for_every_piece<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    operands: &Operands<'_, E::Memory>,
    parts: &mut Parts<'_, E::Memory>,
    mut work: impl FnMut(Matrix<'_, E::Memory>, &Range<usize>) -> Result<()>,
) -> Result<()> {
    for chunk in &operands.chunks {
        let hidden = gathered(executor, stream, operands, chunk, &mut parts.staged)?;
        project(executor, stream, hidden, operands.weight, &mut parts.logits, &mut parts.product)?;
        for piece in chunk {
            work(parts.logits.as_matrix().row_range(piece.place()), &piece.rows)?;
        }
    }
    Ok(())
}

/// [`Backend::linear_logprob_forward`](crate::Backend::linear_logprob_forward).
pub(super) fn forward<'a, E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Forward<'a, E::Memory, Projection<'a, E::Memory>>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    let shape = call.logits.shape();
    let operands = Operands::of(&call.logits, config)?;
    let workspace = call.logits.workspace.take();
    let mut parts = Parts::of(workspace, &config.forward_footprint(&shape), config, &shape)?;
    for rows in &operands.absent {
        let mut absent = call.over((), rows.clone());
        for array in absent.rows_of_zeros() {
            executor.set_bytes(stream, array, 0)?;
        }
        for array in [absent.rank, absent.argmax].into_iter().flatten() {
            executor.set_bytes(stream, array, 0xff)?;
        }
    }
    for_every_piece(executor, stream, &operands, &mut parts, |logits, rows| {
        let call = call.over(logits, rows.clone());
        logprob::forward_of(executor, stream, &config.logprob, &sizes.piece(rows), call)
    })
}

/// [`Backend::linear_logprob_partial`](crate::Backend::linear_logprob_partial).
pub(super) fn partial<'a, E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: PartialCall<'a, E::Memory, Projection<'a, E::Memory>>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    let shape = call.logits.shape();
    let operands = Operands::of(&call.logits, config)?;
    let workspace = call.logits.workspace.take();
    let mut parts = Parts::of(workspace, &config.forward_footprint(&shape), config, &shape)?;
    for rows in &operands.absent {
        let mut absent = call.over((), rows.clone());
        for array in absent.rows_of_zeros() {
            executor.set_bytes(stream, array, 0)?;
        }
        if let Some(best) = absent.best {
            executor.set_bytes(stream, best, 0xff)?;
        }
    }
    for_every_piece(executor, stream, &operands, &mut parts, |logits, rows| {
        let call = call.over(logits, rows.clone());
        logprob::partial_of(executor, stream, &config.logprob, &sizes.piece(rows), call)
    })
}

/// [`Backend::linear_logprob_backward`](crate::Backend::linear_logprob_backward).
pub(super) fn backward<'a, E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    mut call: Backward<'a, E::Memory, Gradients<'a, E::Memory>>,
) -> Result<()> {
    let sizes = call.validate(config)?;
    let footprint = call.gradient.footprint(config);
    let shape = call.gradient.projection.shape();
    let operands = Operands::of(&call.gradient.projection, config)?;
    let workspace = call.gradient.projection.workspace.take();
    let mut parts = Parts::of(workspace, &footprint, config, &shape)?;
    let mut d_hidden = call.gradient.d_hidden.take();
    let mut sum = WeightSum::of(call.gradient.d_weight.take(), parts.d_weight.take());
    if let Some(d_hidden) = &mut d_hidden {
        for rows in &operands.absent {
            zero_rows(executor, stream, d_hidden.reborrow().row_range(rows.clone()))?;
        }
    }
    for chunk in &operands.chunks {
        let hidden = gathered(executor, stream, &operands, chunk, &mut parts.staged)?;
        project(executor, stream, hidden, operands.weight, &mut parts.logits, &mut parts.product)?;
        for piece in chunk {
            let gradient = match &mut parts.d_logits {
                None => Gradient::InPlace(parts.logits.reborrow().row_range(piece.place())),
                Some(d_logits) => Gradient::Into {
                    logits: parts.logits.as_matrix().row_range(piece.place()),
                    d_logits: d_logits.reborrow().row_range(piece.place()),
                },
            };
            let call = call.over(gradient, piece.rows.clone());
            logprob::backward_of(executor, stream, &config.logprob, &sizes.piece(&piece.rows), call)?;
        }
        let d_logits = parts.d_logits.as_mut().unwrap_or(&mut parts.logits);
        let missing = filled(chunk)..operands.chunk_rows;
        zero_rows(executor, stream, d_logits.reborrow().row_range(missing))?;
        let d_logits = d_logits.as_matrix();
        if let Some(sum) = &mut sum {
            sum.add(executor, stream, d_logits, hidden, &mut parts.product)?;
        }
        if let Some(d_hidden) = &mut d_hidden {
            let product = Chain { d_logits, workspace: &mut parts.product, staged: &mut parts.staged };
            product.d_hidden(executor, stream, &operands, chunk, d_hidden)?;
        }
    }
    sum.map_or(Ok(()), |sum| sum.finish(executor, stream))
}

/// +0.0 in all columns of all rows.
fn zero_rows<E: Executor>(executor: &E, stream: &E::Stream, rows: MatrixMut<'_, E::Memory>) -> Result<()> {
    if rows.layout().has_no_gaps() {
        return executor.set_bytes(stream, rows.into_bytes(), 0);
    }
    let mut rows = rows;
    (0..rows.rows())
        .try_for_each(|row| executor.set_bytes(stream, rows.reborrow().row_range(row..row + 1).into_bytes(), 0))
}

/// A chunk's gradient on its way to the hidden states.
struct Chain<'a, 'w, M> {
    d_logits: Matrix<'a, M>,
    workspace: &'a mut ViewMut<'w, u8, M>,
    /// The hidden states in it are no longer needed.
    staged: &'a mut ViewMut<'w, u8, M>,
}

impl<M: Memory> Chain<'_, '_, M> {
    /// Where the rows of the chunk lie in `d_hidden`, or through the staged ones.
    fn d_hidden<E: Executor<Memory = M>>(
        self,
        executor: &E,
        stream: &E::Stream,
        operands: &Operands<'_, M>,
        chunk: &[Piece],
        d_hidden: &mut MatrixMut<'_, M>,
    ) -> Result<()> {
        let (element, columns) = (d_hidden.element(), d_hidden.columns());
        let Chain { d_logits, workspace, staged } = self;
        let mut multiply = |to: MatrixMut<'_, M>| {
            let (a, b) = (Factor::plain(d_logits), Factor::plain(operands.weight));
            executor.multiply(stream, Product { a, b, to, is_added: false, workspace: workspace.reborrow() })
        };
        if operands.is_whole(chunk, d_hidden.layout().has_no_gaps()) {
            return multiply(d_hidden.reborrow().row_range(chunk[0].rows.clone()));
        }
        let mut to = MatrixMut::in_bytes(staged.reborrow(), element, operands.chunk_rows, columns, columns);
        multiply(to.reborrow())?;
        let staged = to.into_matrix();
        chunk.iter().try_for_each(|piece| {
            let from = staged.row_range(piece.place());
            copy(executor, stream, &from, d_hidden.reborrow().row_range(piece.rows.clone()))
        })
    }
}

/// The f32 sum over chunks of the weight's gradient.
struct WeightSum<'a, M> {
    sum: MatrixMut<'a, M>,
    /// What the next chunk finds there counts.
    is_begun: bool,
    /// Where it is rounded to in the end.
    rounded: Option<MatrixMut<'a, M>>,
}

impl<'a, M: Memory> WeightSum<'a, M> {
    fn of(gradient: Option<WeightGradient<'a, M>>, own: Option<MatrixMut<'a, M>>) -> Option<Self> {
        Some(match (gradient?, own) {
            (WeightGradient::Added(sum), _) => WeightSum { sum, is_begun: true, rounded: None },
            (WeightGradient::Written(sum), None) => WeightSum { sum, is_begun: false, rounded: None },
            (WeightGradient::Written(rounded), Some(sum)) => WeightSum { sum, is_begun: false, rounded: Some(rounded) },
        })
    }

    fn add<E: Executor<Memory = M>>(
        &mut self,
        executor: &E,
        stream: &E::Stream,
        d_logits: Matrix<'_, M>,
        hidden: Matrix<'_, M>,
        workspace: &mut ViewMut<'_, u8, M>,
    ) -> Result<()> {
        let product = Product {
            a: Factor::transposed(d_logits),
            b: Factor::plain(hidden),
            to: self.sum.reborrow(),
            is_added: self.is_begun,
            workspace: workspace.reborrow(),
        };
        self.is_begun = true;
        executor.multiply(stream, product)
    }

    fn finish<E: Executor<Memory = M>>(mut self, executor: &E, stream: &E::Stream) -> Result<()> {
        if !self.is_begun {
            zero_rows(executor, stream, self.sum.reborrow())?;
        }
        let Some(mut rounded) = self.rounded else { return Ok(()) };
        let length = (rounded.rows() * rounded.columns()) as u64;
        let mut arguments = Arguments::new::<E>();
        let params = MoerlLinearRound {
            from: arguments.read_matrix("sum", &self.sum.as_matrix()).cast(),
            to: arguments.write_matrix("d_weight", &mut rounded),
            length,
        };
        let grid = grid(executor, length.div_ceil(8));
        // SAFETY: both hold `length` numbers without gaps: the sum f32, `d_weight` bf16, the only type that is not summed in itself.
        unsafe { executor.launch(stream, kernel("linear_round"), grid, &arguments, &params) }
    }
}
