//! Heads of released models: forward and backward straight from hidden states, beside the products that they are made of, alone.

use moerl::device::executor::{Factor, Product};
use moerl::element::{Element, Float, bf16};
use moerl::linear_logprob::{Chunk, Config, Gradients, Head, Projection, Shape, WeightGradient};
use moerl::logprob::{Backward, Forward, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use super::case::{Call, Case, Floor, Prepare, Scale, normal};
use super::measure::Measure;
use crate::table::{Table, count};

/// Rows of weight and hidden states that differ; then they begin again.
const DIFFERENT: usize = 8;

/// A head and its sizes.
fn heads(scale: Scale) -> Vec<(Config, Shape)> {
    let of = |head, chunk, rows, hidden, vocabulary| {
        (Config { head, chunk: Chunk::Rows(chunk), ..Config::default() }, Shape { rows, hidden, vocabulary })
    };
    match scale {
        Scale::Full => vec![
            of(Head::Bf16Logits, 2048, 8192, 2048, 151_936),
            of(Head::F32Logits, 2048, 8192, 2048, 151_936),
            of(Head::F32Weights, 2048, 8192, 2048, 151_936),
            of(Head::Bf16Logits, 2048, 8192, 4096, 151_936),
            of(Head::F32Logits, 2048, 8192, 4096, 151_936),
        ],
        Scale::Small => vec![of(Head::Bf16Logits, 128, 200, 64, 1000), of(Head::F32Logits, 128, 200, 64, 1000)],
    }
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let of_head = |(config, shape): (Config, Shape)| match config.head {
        Head::Bf16Logits => of_types::<B, bf16, bf16>(&config, shape),
        Head::F32Logits => of_types::<B, bf16, f32>(&config, shape),
        Head::F32Weights => of_types::<B, f32, f32>(&config, shape),
    };
    heads(scale).into_iter().flat_map(of_head).collect()
}

/// What the calls take of memory, beside hidden states and weight.
pub fn memory(scale: Scale) -> String {
    let mut table =
        Table::new(&["linear", "head", ">forward", ">backward", ">with a main gradient", ">all logits at once"]);
    for (config, shape) in heads(scale) {
        let d_hidden = Some(config.head.operand());
        let backward = |d_weight| config.backward_footprint(&shape, d_hidden, Some(d_weight)).total();
        table.row([
            name(&config, &shape),
            format!("{:?}", config.head),
            count(config.forward_footprint(&shape).total() as u64),
            count(backward(config.head.operand()) as u64),
            count(backward(Element::F32) as u64),
            count((shape.rows * shape.vocabulary * config.head.logits().size()) as u64),
        ]);
    }
    format!("bytes beside hidden states and weight:\n{}", table.render())
}

fn name(config: &Config, shape: &Shape) -> String {
    let Chunk::Rows(chunk) = config.chunk else { unreachable!("the cases name their rows") };
    format!("N={} V={} H={} R={chunk}", shape.rows, shape.vocabulary, shape.hidden)
}

fn of_types<B: Measure + 'static, T: Float, L: Float>(config: &Config, shape: Shape) -> Vec<Case<B>> {
    let Shape { rows, hidden, vocabulary } = shape;
    let size = T::ELEMENT.size();
    let (states, weight) = ((rows * hidden * size) as u64, (vocabulary * hidden * size) as u64);
    let records = 16 * rows as u64;
    let floors = [
        Floor { read: states + weight + 4 * rows as u64, written: records + 8 * rows as u64 },
        Floor {
            read: states + weight + records + (4 * vocabulary * hidden) as u64,
            written: states + (4 * vocabulary * hidden) as u64,
        },
    ];
    let case = |operation: &str, floor, prepare| Case {
        noun: "linear",
        operation: format!("{operation}, {:?}", config.head),
        shape: name(config, &shape),
        element: L::ELEMENT,
        floor,
        prepare,
    };
    let of = |is_backward: bool| -> Prepare<B> {
        let config = config.clone();
        Box::new(move |backend, stream| {
            if is_backward {
                backward::<B, T, f32>(backend, stream, &config, shape, true)
            } else {
                forward::<B, T>(backend, stream, &config, shape)
            }
        })
    };
    let bare = |is_backward: bool| -> Prepare<B> {
        let config = config.clone();
        Box::new(move |backend, stream| products::<B, T, L>(backend, stream, &config, shape, is_backward))
    };
    let mut cases = Vec::new();
    for (is_backward, name) in [(false, "forward"), (true, "backward")] {
        let floor = floors[usize::from(is_backward)];
        cases.push(case(name, floor, of(is_backward)));
        if B::TIMES_PRODUCTS {
            cases.push(case(&format!("{name}, products alone"), floor, bare(is_backward)));
        }
    }
    if config.head == Head::Bf16Logits {
        let floor = Floor { read: states + weight + records, written: states + weight };
        let config = config.clone();
        let rounded: Prepare<B> =
            Box::new(move |backend, stream| backward::<B, T, T>(backend, stream, &config, shape, false));
        cases.push(case("backward, d_weight rounded once", floor, rounded));
    }
    cases
}

/// Numbers like those of a model: a tensor core that only meets zeros draws less power and runs faster.
fn operands<B: Measure, T: Float>(
    backend: &B,
    stream: &B::Stream,
    rows: usize,
    hidden: usize,
    scale: f32,
) -> moerl::Result<B::Buffer<T>> {
    let row: Vec<T> = (0..DIFFERENT * hidden).map(|i| T::from_f32(scale * normal(i))).collect();
    backend.repeated(stream, &row, rows / DIFFERENT)
}

/// The same everywhere, for both directions.
struct Inputs<B: Backend, T: Float> {
    hidden: B::Buffer<T>,
    weight: B::Buffer<T>,
    tokens: B::Buffer<i32>,
}

impl<B: Measure, T: Float> Inputs<B, T> {
    fn new(backend: &B, stream: &B::Stream, shape: Shape) -> moerl::Result<Self> {
        let Shape { rows, hidden, vocabulary } = shape;
        let tokens: Vec<i32> = (0..rows).map(|row| (row * 31 % vocabulary) as i32).collect();
        Ok(Inputs {
            hidden: operands(backend, stream, rows, hidden, 1.0)?,
            weight: operands(backend, stream, vocabulary, hidden, 2.0 / (hidden as f32).sqrt())?,
            tokens: backend.upload(stream, &tokens)?,
        })
    }

    fn hidden(&self, shape: Shape) -> moerl::Result<Matrix<'_, B::Memory>> {
        Matrix::new(self.hidden.view(), shape.rows, shape.hidden)
    }

    fn weight(&self, shape: Shape) -> moerl::Result<Matrix<'_, B::Memory>> {
        Matrix::new(self.weight.view(), shape.vocabulary, shape.hidden)
    }
}

fn forward<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    shape: Shape,
) -> moerl::Result<Call<B>> {
    let inputs = Inputs::<B, T>::new(backend, stream, shape)?;
    let mut logprobs = backend.allocate::<f32>(stream, shape.rows)?;
    let mut entropy = backend.allocate::<f32>(stream, shape.rows)?;
    let mut saved = backend.allocate::<Partial>(stream, shape.rows)?;
    let mut workspace = backend.allocate::<u8>(stream, config.forward_footprint(&shape).workspace())?;
    let config = config.clone();
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let projection = Projection::new(inputs.hidden(shape)?, inputs.weight(shape)?, workspace.view_mut());
        let mut call = Forward::new(projection);
        call.tokens = Some(Matrix::new(inputs.tokens.view(), shape.rows, 1)?);
        call.logprobs = Some(logprobs.view_mut());
        call.entropy = Some(entropy.view_mut());
        call.saved = Some(saved.view_mut());
        backend.linear_logprob_forward(stream, &config, call)
    }))
}

/// With the weight's gradient in the type W: added to the caller's main gradient, or written.
fn backward<B: Measure + 'static, T: Float, W: Float>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    shape: Shape,
    is_added: bool,
) -> moerl::Result<Call<B>> {
    let Shape { rows, hidden, vocabulary } = shape;
    let inputs = Inputs::<B, T>::new(backend, stream, shape)?;
    let upstream = backend.upload(stream, &vec![1.0 / rows as f32; rows])?;
    let mut saved = backend.allocate::<Partial>(stream, rows)?;
    let mut d_hidden = backend.allocate::<T>(stream, rows * hidden)?;
    let mut d_weight = backend.allocate::<W>(stream, vocabulary * hidden)?;
    let footprint = config.backward_footprint(&shape, Some(T::ELEMENT), Some(W::ELEMENT));
    let mut workspace = backend.allocate::<u8>(stream, footprint.workspace())?;
    let config = config.clone();

    let projection = Projection::new(inputs.hidden(shape)?, inputs.weight(shape)?, workspace.view_mut());
    let mut call = Forward::new(projection);
    call.tokens = Some(Matrix::new(inputs.tokens.view(), rows, 1)?);
    call.saved = Some(saved.view_mut());
    backend.linear_logprob_forward(stream, &config, call)?;

    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let projection = Projection::new(inputs.hidden(shape)?, inputs.weight(shape)?, workspace.view_mut());
        let d_weight = MatrixMut::new(d_weight.view_mut(), vocabulary, hidden)?;
        let gradients = Gradients {
            projection,
            d_hidden: Some(MatrixMut::new(d_hidden.view_mut(), rows, hidden)?),
            d_weight: Some(if is_added { WeightGradient::Added(d_weight) } else { WeightGradient::Written(d_weight) }),
        };
        let mut call = Backward::new(gradients, saved.view());
        call.tokens = Some(Matrix::new(inputs.tokens.view(), rows, 1)?);
        call.d_logprobs = Some(upstream.view());
        backend.linear_logprob_backward(stream, &config, call)
    }))
}

/// The products of a call, chunk after chunk, and nothing else.
fn products<B: Measure + 'static, T: Float, L: Float>(
    backend: &B,
    stream: &B::Stream,
    config: &Config,
    shape: Shape,
    is_backward: bool,
) -> moerl::Result<Call<B>> {
    let Shape { rows, hidden, vocabulary } = shape;
    let chunk = config.chunk_rows(vocabulary)?;
    let inputs = Inputs::<B, T>::new(backend, stream, shape)?;
    let mut logits = backend.allocate::<L>(stream, chunk * vocabulary)?;
    // Of the size of their logits' gradient, and as likely to be anything.
    let of_backward = |len: usize| if is_backward { len } else { 0 };
    let d_logits = operands::<B, T>(backend, stream, of_backward(chunk), vocabulary, 1e-3)?;
    let mut d_hidden = backend.allocate::<T>(stream, of_backward(rows * hidden))?;
    let mut main_gradient = backend.allocate::<f32>(stream, of_backward(vocabulary * hidden))?;
    let mut workspace = backend.allocate::<u8>(stream, config.product_workspace)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let weight = inputs.weight(shape)?;
        for first in (0..rows).step_by(chunk) {
            let states = inputs.hidden(shape)?.row_range(first..first + chunk);
            let to = MatrixMut::new(logits.view_mut(), chunk, vocabulary)?;
            let (a, b) = (Factor::plain(states), Factor::transposed(weight));
            backend.multiply(stream, Product { a, b, to, is_added: false, workspace: workspace.view_mut() })?;
            if !is_backward {
                continue;
            }
            let d_logits = Matrix::new(d_logits.view(), chunk, vocabulary)?;
            let to = MatrixMut::new(main_gradient.view_mut(), vocabulary, hidden)?;
            let (a, b) = (Factor::transposed(d_logits), Factor::plain(states));
            backend.multiply(stream, Product { a, b, to, is_added: true, workspace: workspace.view_mut() })?;
            let to = MatrixMut::new(d_hidden.view_mut(), rows, hidden)?.row_range(first..first + chunk);
            let (a, b) = (Factor::plain(d_logits), Factor::plain(weight));
            backend.multiply(stream, Product { a, b, to, is_added: false, workspace: workspace.view_mut() })?;
        }
        Ok(())
    }))
}
