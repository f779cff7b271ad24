//! Exponential moving averages in plain f64 loops; a state is rounded to f32 once a step.

use half::bf16;

use crate::ema::{Call, Step, floats};
use crate::error::Result;
use crate::memory::Host;

/// Rounded once. `bf16::from_f64` is not used: it passes over 32 bits, and takes what lies just above a middle for the middle.
fn nearest_bf16(x: f64) -> bf16 {
    let near = x as f32;
    let is_middle = near.to_bits() & 0xffff == 0x8000;
    // Where x is no middle between two bf16 but rounds to one, it is f32's neighbour on x's side that is to be rounded.
    bf16::from_f32(match f64::from(near) {
        middle if is_middle && x > middle => near.next_up(),
        middle if is_middle && x < middle => near.next_down(),
        _ => near,
    })
}

/// [`Backend::ema`](crate::Backend::ema).
pub(super) fn ema(step: &Step, mut call: Call<'_, '_, Host>) -> Result<()> {
    call.validate(step)?;
    let mut lost = 0;
    for tensor in call.tensors.iter_mut() {
        let parameters = floats(&tensor.parameters);
        let initial = tensor.initial.as_ref().map(floats);
        let mut state = floats(&tensor.state.as_matrix());
        for (index, (s, &p)) in state.iter_mut().zip(&parameters).enumerate() {
            let before = initial.as_ref().map_or(0.0, |initial| initial[index]);
            let is_sound = p.is_finite() && before.is_finite();
            if is_sound {
                *s = f64::from((*s + step.weight * (p - *s)) as f32);
            } else {
                lost += 1;
            }
            if let Some(copy) = &mut tensor.copy {
                let out = if initial.is_some() && is_sound { step.bias * (p - before) + *s } else { step.scale * *s };
                copy.as_mut_slice()[index] = nearest_bf16(out);
            }
        }
        let columns = tensor.state.columns();
        for row in 0..tensor.state.rows() {
            let values: Vec<f32> = state[row * columns..(row + 1) * columns].iter().map(|&s| s as f32).collect();
            tensor.state.write_row(row, &values)?;
        }
    }
    if let Some(count) = &mut call.nonfinite {
        count.as_mut_slice()[0] += lost;
    }
    Ok(())
}
