//! Moving averages of lists of tensors: one large tensor, a layer's worth, and many small ones.

use moerl::Buffer;
use moerl::element::{Float, bf16};
use moerl::ema::{Call as Ema, Step, Tensor};
use moerl::memory::{Matrix, MatrixMut};

use super::case::{Call, Case, Floor, Scale};
use super::measure::Measure;

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
    let step = Step::new(0.999)?;
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
