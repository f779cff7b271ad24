//! Products of matrices on the host, in place of a device's library.

use crate::device::executor::{Factor, Product};
use crate::error::Result;
use crate::memory::Host;

/// Every element is one sum in f32, in the order of k.
pub(super) fn multiply(mut product: Product<'_, Host>) -> Result<()> {
    product.validate()?;
    let (rows, k) = product.a.shape();
    let (_, columns) = product.b.shape();
    let a = rows_of(&product.a, rows, k);
    let b = rows_of(&Factor { is_transposed: !product.b.is_transposed, ..product.b }, columns, k);
    for row in 0..rows {
        let mut sums = vec![0.0_f32; columns];
        if product.is_added {
            let before = product.to.as_matrix().row_f64(row);
            sums.iter_mut().zip(before).for_each(|(sum, before)| *sum = before as f32);
        }
        for (sum, column) in sums.iter_mut().zip(b.chunks_exact(k)) {
            let dot = a[row * k..][..k].iter().zip(column).fold(0.0, |dot, (x, y)| dot + x * y);
            *sum += dot;
        }
        product.to.write_row(row, &sums)?;
    }
    Ok(())
}

/// The factor, row after row.
fn rows_of(factor: &Factor<'_, Host>, rows: usize, columns: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * columns];
    for r in 0..factor.matrix.rows() {
        for (c, x) in factor.matrix.row_f64(r).into_iter().enumerate() {
            values[if factor.is_transposed { c * columns + r } else { r * columns + c }] = x as f32;
        }
    }
    values
}
