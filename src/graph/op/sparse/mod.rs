//! Matrices with the same small number of non-zeros in each row, and what linear layers make of them.

mod linear;
mod project;

pub use linear::ProjectedLinear;
pub use project::SparseProject;

use crate::error::Result;
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Element, View, expect};
use crate::graph::tensor::{DType, Type};

/// Rows that a kernel takes together, one to a lane.
pub const LANES: usize = 16;

/// A matrix (rows, width) with `per_row` non-zeros in each row: their values (rows, per_row) and columns (rows, per_row).
#[derive(Debug, Clone, Copy)]
pub struct Sparse<'a, T> {
    /// Values, row by row.
    pub values: &'a [T],
    /// The column of each value; those of one row differ.
    pub columns: &'a [u16],
    /// Non-zeros of a row.
    pub per_row: usize,
}

impl<'a, T: Element> Sparse<'a, T> {
    /// Of values and columns as an op sees them.
    pub fn of(values: View<'a>, columns: View<'a>) -> Sparse<'a, T> {
        Sparse {
            values: values.of(),
            columns: columns.of(),
            per_row: values.at.columns() as usize,
        }
    }

    /// Column and value of each non-zero of row `row`.
    #[inline(always)]
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + use<'_, 'a, T> {
        let range = row * self.per_row..(row + 1) * self.per_row;
        let columns = self.columns[range.clone()].iter();
        columns
            .zip(&self.values[range])
            .map(|(&column, value)| (usize::from(column), value.wide()))
    }
}

/// The types of values and columns of a sparse matrix with `rows` rows.
pub fn sparse_types(rows: u64, per_row: u64, dtype: DType) -> [Type; 2] {
    let shape = [rows, per_row];
    [Type::new(&shape, dtype), Type::new(&shape, DType::U16)]
}

/// Fails unless `values` and `columns` are those of a sparse matrix (rows, width).
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) in the name of `op`.
pub fn expect_sparse(
    op: &'static str,
    [values, columns]: [&Type; 2],
    rows: u64,
    width: u64,
) -> Result<()> {
    let per_row = values.columns();
    let fits = [values, columns] == sparse_types(rows, per_row, values.dtype).each_ref()
        && (1..=width).contains(&per_row)
        && width <= 1 << 16;
    expect(op, fits, || {
        format!(
            "takes a sparse matrix ({rows}, {width}) as values and 16-bit columns; got {values} and {columns}"
        )
    })
}

vectorized! {
    /// `y += a x`.
    pub fn add_scaled<T: Element>(a: f32, x: &[T], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x.wide();
        }
    }
}
