//! Moving averages of lists of tensors: one large tensor, a layer's worth, and many small ones.

use moerl::element::{Float, bf16};
use moerl::ema::{Call as Ema, Step, Tensor};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer, Reference};

use super::case::{Call, Case, Floor, Scale, generate, normal};
use super::export::Exporter;
use super::measure::Measure;
use crate::failure::Result;

/// Of every step.
const DECAY: f64 = 0.999;

/// So many tensors of so many elements each.
#[derive(Clone, Copy)]
struct List {
    count: usize,
    len: usize,
}

/// All of them.
pub fn cases<B: Measure + 'static>(scale: Scale) -> Vec<Case<B>> {
    let lists = match scale {
        Scale::Full => [(1, 1 << 26), (12, 1 << 22), (512, 1 << 14)],
        Scale::Small => [(1, 1 << 14), (3, 1003), (64, 128)],
    };
    let mut cases = Vec::new();
    for (count, len) in lists {
        let list = List { count, len };
        cases.extend([false, true].map(|with_copy| case::<B, bf16>(list, with_copy)));
        cases.extend([false, true].map(|with_copy| case::<B, f32>(list, with_copy)));
    }
    cases
}

fn case<B: Measure + 'static, T: Float>(list: List, with_copy: bool) -> Case<B> {
    let elements = (list.count * list.len) as u64;
    let copied = if with_copy { 2 } else { 0 };
    Case {
        noun: "ema",
        operation: if with_copy { "step with a bf16 copy".into() } else { "step".into() },
        shape: format!("{} × {}", list.count, list.len),
        element: T::ELEMENT,
        floor: Floor { read: (T::ELEMENT.size() as u64 + 4) * elements, written: (4 + copied) * elements },
        prepare: Box::new(move |backend, stream| step::<B, T>(backend, stream, list, with_copy)),
    }
}

/// The arrays of a tensor.
struct Arrays<B: Measure, T: Float> {
    parameters: B::Buffer<T>,
    state: B::Buffer<f32>,
    copy: B::Buffer<bf16>,
}

fn step<B: Measure + 'static, T: Float>(
    backend: &B,
    stream: &B::Stream,
    list: List,
    with_copy: bool,
) -> moerl::Result<Call<B>> {
    let List { count, len } = list;
    let mut arrays = Vec::with_capacity(count);
    for _ in 0..count {
        // Zeros: no branch depends on the numbers.
        arrays.push(Arrays::<B, T> {
            parameters: backend.allocate(stream, len)?,
            state: backend.allocate(stream, len)?,
            copy: backend.allocate(stream, if with_copy { len } else { 0 })?,
        });
    }
    let step = Step::new(DECAY)?;
    Ok(Box::new(move |backend: &B, stream: &B::Stream| {
        let mut tensors = Vec::with_capacity(count);
        for Arrays { parameters, state, copy } in &mut arrays {
            let parameters = Matrix::new(parameters.view(), 1, len)?;
            let state = MatrixMut::new(state.view_mut(), 1, len)?;
            tensors.push(Tensor { copy: with_copy.then(|| copy.view_mut()), ..Tensor::new(parameters, state) });
        }
        backend.ema(stream, &step, Ema { tensors: &mut tensors, nonfinite: None })
    }))
}

/// A step of three tensors, with and without a bf16 copy.
///
/// # Errors
/// The backend's.
pub fn export<B: Backend>(to: &mut Exporter<'_, B>) -> Result<()> {
    for with_copy in [false, true] {
        export_type::<B, bf16>(to, with_copy)?;
        export_type::<B, f32>(to, with_copy)?;
    }
    Ok(())
}

fn export_type<B: Backend, T: Float>(to: &mut Exporter<'_, B>, with_copy: bool) -> Result<()> {
    let List { count, len } = List { count: 3, len: 1003 };
    let case = case::<Reference, T>(List { count, len }, with_copy);
    to.call(case.noun, &case.operation, &case.shape, case.element);
    for index in 0..count {
        let parameters = generate(len, |i| T::from_f32(normal(i + 2 * index * len)));
        let parameters = to.input(&format!("parameters {index}"), &[len], &parameters)?;
        let state = generate(len, |i| normal(i + (2 * index + 1) * len));
        let mut state = to.input(&format!("state {index}"), &[len], &state)?;
        let mut copy = to.zeros::<bf16>(if with_copy { len } else { 0 })?;
        let rows = (Matrix::new(parameters.view(), 1, len)?, MatrixMut::new(state.view_mut(), 1, len)?);
        let tensor = Tensor { copy: with_copy.then(|| copy.view_mut()), ..Tensor::new(rows.0, rows.1) };
        to.backend.ema(&to.stream, &Step::new(DECAY)?, Ema { tensors: &mut [tensor], nonfinite: None })?;
        to.result(&format!("state {index}"), &[len], &state)?;
        if with_copy {
            to.result(&format!("copy {index}"), &[len], &copy)?;
        }
    }
    Ok(())
}
