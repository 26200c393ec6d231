//! Rows times a sparse matrix.

use rayon::prelude::*;

use super::{LANES, Sparse, expect_sparse};
use crate::error::{Error, Result};
use crate::graph::backward::Backward;
use crate::graph::op::kernel::{Call, Kernel, Launch, input, output};
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Element, Io, Op, Output, Work, expect_inputs, traffic};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// `y (N, width) = x (N, n) · matrix (n, width)`: inputs x, values (n, r) and columns (n, r) (U16) of the matrix. The output has the
/// format of x; sums are in f32.
///
/// It stands in a forward pass for a derivative to read: what is made of it passes no gradient on.
#[derive(Debug, Clone)]
pub struct SparseProject {
    /// Columns of the matrix.
    pub width: u64,
}

/// Columns of x that are turned round at a time.
const BLOCK: usize = 64;

impl Op for SparseProject {
    fn name(&self) -> &'static str {
        "sparse_project"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let matrix = [&inputs[1], &inputs[2]];
        expect_sparse(self.name(), matrix, inputs[0].columns(), self.width)?;
        let shape = [inputs[0].rows(), self.width];
        Ok(vec![Output::Fresh(Type::new(&shape, inputs[0].dtype))])
    }
    fn scratch(&self, _: &[Type], backend: Backend) -> Bytes {
        match backend {
            Backend::Cpu { threads } => {
                Bytes(u64::from(threads.max(1)) * self.width * LANES as u64 * 4)
            }
            Backend::Cuda { .. } => Bytes::ZERO,
        }
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 2 * inputs[0].elements() * inputs[1].columns(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        match at.grad(0) {
            None => Ok(()),
            Some(_) => Err(Error::shape(self.name(), "passes no gradient on")),
        }
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        if at.of(1).is_some() {
            return Err(Error::shape(self.name(), "its matrix does not move"));
        }
        let Some(dx) = at.of(0) else { return Ok(()) };
        let (values, columns) = (at.input(1), at.input(2));
        let dy = at.emit(self.clone(), &[dx, values, columns])?[0];
        at.give(0, dy);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, values, columns) = (io.inputs[0], io.inputs[1], io.inputs[2]);
        let (width, n) = (self.width as usize, x.at.columns() as usize);
        let slot = width * LANES;
        let sums: &mut [f32] = bytemuck::cast_slice_mut(io.scratch);
        let rows = x.at.rows() as usize;
        // Each thread takes neighbouring rows; a row's bits do not depend on which.
        let each = rows
            .div_ceil(LANES)
            .div_ceil((sums.len() / slot).max(1))
            .max(1)
            * LANES;
        with_float!(self.name(), x.at.dtype, T => with_float!(self.name(), values.at.dtype, V => {
            let matrix = Sparse::<V>::of(values, columns);
            let y = io.outputs[0].of::<T>();
            y.par_chunks_mut(each * width)
                .zip(x.of::<T>().par_chunks(each * n))
                .zip(sums.par_chunks_mut(slot))
                .for_each(|((y, x), sums)| {
                    let tiles = y.chunks_mut(LANES * width).zip(x.chunks(LANES * n));
                    tiles.for_each(|(y, x)| tile(x, &matrix, sums, y));
                });
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        // Rows and columns of a block (`ROWS`, `COLUMNS` in the kernel).
        const TILE: (u64, u64) = (32, 512);
        let (rows, n) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = Launch::new("sparse", self.name())
            .format("T", call.format(0))
            .format("V", call.format(1))
            .grid(rows.div_ceil(TILE.0), self.width.div_ceil(TILE.1), 1)
            .shared(TILE.0 * TILE.1 * 4)
            .given([input(0), input(1), input(2), output(0)])
            .given([rows.into(), n.into(), (self.width as u32).into()]);
        Kernel::one(launch.given([(call.inputs[1].columns() as u32).into()]))
    }
}

/// Up to [`LANES`] rows: `sums` (width, lanes) collects what each non-zero adds to all of them.
fn tile<T: Element, V: Element>(x: &[T], matrix: &Sparse<V>, sums: &mut [f32], y: &mut [T]) {
    let width = sums.len() / LANES;
    let rows = y.len() / width;
    let n = x.len() / rows.max(1);
    sums.fill(0.0);
    let mut turned = [[0.0f32; LANES]; BLOCK];
    for from in (0..n).step_by(BLOCK) {
        let count = BLOCK.min(n - from);
        for (lane, row) in x.chunks_exact(n).enumerate() {
            for (into, x) in turned.iter_mut().zip(&row[from..from + count]) {
                into[lane] = x.wide();
            }
        }
        let range = from * matrix.per_row..(from + count) * matrix.per_row;
        spread(
            &turned[..count],
            &matrix.columns[range.clone()],
            &matrix.values[range],
            matrix.per_row,
            sums,
        );
    }
    for (lane, row) in y.chunks_exact_mut(width).enumerate() {
        for (y, sums) in row.iter_mut().zip(sums.chunks_exact(LANES)) {
            *y = T::narrow(sums[lane]);
        }
    }
}

vectorized! {
    /// Adds each turned column times its matrix row's values to the sums of their columns.
    fn spread<V: Element>(
        turned: &[[f32; LANES]],
        columns: &[u16],
        values: &[V],
        per_row: usize,
        sums: &mut [f32],
    ) {
        let matrix = columns.chunks_exact(per_row).zip(values.chunks_exact(per_row));
        for (x, (columns, values)) in turned.iter().zip(matrix) {
            for (column, value) in columns.iter().zip(values) {
                let at = *column as usize * LANES;
                let value = value.wide();
                for (sum, x) in sums[at..at + LANES].iter_mut().zip(x) {
                    *sum += value * x;
                }
            }
        }
    }
}
