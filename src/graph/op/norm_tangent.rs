//! The tangents of LayerNorm and RMSNorm, from their input and its statistics.

use rayon::prelude::*;

use super::kernel::{Call, Kernel, input, output};
use super::norm::{by_rows, pointwise, sizes, task_rows};
use super::simd::{sum_of, sum_of_pairs, vectorized};
use super::{Element, Io, Op, Output, Work, expect, expect_inputs};
use crate::error::Result;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// Inputs: tangents of x (N, C), weight (C) and bias (C), then x (N, C), weight (C), statistics (N, 2). Output: the tangent of
/// y (N, C).
#[derive(Debug, Clone)]
pub struct LayerNormTangent;

/// Inputs: tangents of x (N, C) and weight (width), then x (N, C), weight (width), statistics (N, C / width). Output: the
/// tangent of y (N, C).
#[derive(Debug, Clone)]
pub struct RmsNormTangent {
    /// As in the forward op.
    pub unit_offset: bool,
    /// As in the forward op.
    pub width: u64,
}

impl Op for LayerNormTangent {
    fn name(&self) -> &'static str {
        "layer_norm_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 6)?;
        let fits = inputs[2] == inputs[1] && inputs[5] == stats(&inputs[3], 2);
        made(self.name(), fits, inputs, 3)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // normalize (2), two sums (4), dx (4), weight, dweight and dbias (4)
        pointwise(14, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let columns = io.inputs[0].at.columns() as usize;
        let size = task_rows(columns) * columns;
        let stats = io.inputs[5].of::<f32>();
        with_float!(self.name(), io.inputs[0].at.dtype, T => {
            let [dx, dw, db, x, w] = [0, 1, 2, 3, 4].map(|i| io.inputs[i].of::<T>());
            let made = io.outputs[0].of::<T>().par_chunks_mut(size);
            made.zip(dx.par_chunks(size).zip(x.par_chunks(size)))
                .zip(stats.par_chunks(size / columns * 2))
                .for_each(|((dy, (dx, x)), stats)| layer_rows(dx, dw, db, x, w, stats, dy));
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = by_rows(self.name(), call.format(0), rows, columns, false);
        let launch = launch.given((0..6).map(input)).given([output(0)]);
        Kernel::one(launch.given(sizes(rows, columns)))
    }
}

impl Op for RmsNormTangent {
    fn name(&self) -> &'static str {
        "rms_norm_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 5)?;
        let groups = inputs[2].columns() / self.width.max(1);
        let fits = self.width > 0 && inputs[4] == stats(&inputs[2], groups);
        made(self.name(), fits, inputs, 2)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // normalize, a sum (2), dx (3), weight and dweight (4)
        pointwise(10, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (width, offset) = (self.width as usize, f32::from(u8::from(self.unit_offset)));
        let size = task_rows(width) * width;
        let stats = io.inputs[4].of::<f32>();
        with_float!(self.name(), io.inputs[0].at.dtype, T => {
            let [dx, dw, x, w] = [0, 1, 2, 3].map(|i| io.inputs[i].of::<T>());
            let made = io.outputs[0].of::<T>().par_chunks_mut(size);
            made.zip(dx.par_chunks(size).zip(x.par_chunks(size)))
                .zip(stats.par_chunks(size / width))
                .for_each(|((dy, (dx, x)), stats)| rms_rows(dx, dw, x, w, offset, stats, dy));
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let rows = call.inputs[0].elements() / self.width;
        let launch = by_rows(
            self.name(),
            call.format(0),
            rows,
            self.width,
            self.unit_offset,
        );
        let launch = launch.given((0..5).map(input)).given([output(0)]);
        Kernel::one(launch.given(sizes(rows, self.width)))
    }
}

vectorized! {
    /// The tangent of LayerNorm for some rows.
    fn layer_rows<T: Element>(
        dx: &[T], dw: &[T], db: &[T], x: &[T], w: &[T], stats: &[f32], dy: &mut [T],
    ) {
        let c = w.len();
        let rows = dy.chunks_exact_mut(c).zip(dx.chunks_exact(c).zip(x.chunks_exact(c)));
        for ((dy, (dx, x)), stats) in rows.zip(stats.chunks_exact(2)) {
            let (mean, rstd) = (stats[0], stats[1]);
            let shift = sum_of(dx, |dx| dx) / c as f32;
            let spread = sum_of_pairs(dx, x, |dx, x| dx * ((x - mean) * rstd)) / c as f32;
            let weights = w.iter().zip(dw).zip(db);
            for ((dy, (dx, x)), ((w, dw), db)) in dy.iter_mut().zip(dx.iter().zip(x)).zip(weights) {
                let normal = (x.wide() - mean) * rstd;
                let moved = rstd * (dx.wide() - shift - normal * spread);
                *dy = T::narrow(moved * w.wide() + normal * dw.wide() + db.wide());
            }
        }
    }

    /// The tangent of RMSNorm for some groups.
    fn rms_rows<T: Element>(
        dx: &[T], dw: &[T], x: &[T], w: &[T], offset: f32, stats: &[f32], dy: &mut [T],
    ) {
        let c = w.len();
        let rows = dy.chunks_exact_mut(c).zip(dx.chunks_exact(c).zip(x.chunks_exact(c)));
        for ((dy, (dx, x)), &rstd) in rows.zip(stats) {
            let spread = sum_of_pairs(dx, x, |dx, x| dx * (x * rstd)) / c as f32;
            let weights = w.iter().zip(dw);
            for ((dy, (dx, x)), (w, dw)) in dy.iter_mut().zip(dx.iter().zip(x)).zip(weights) {
                let normal = x.wide() * rstd;
                let moved = rstd * (dx.wide() - normal * spread);
                *dy = T::narrow(moved * (offset + w.wide()) + normal * dw.wide());
            }
        }
    }
}

/// The type of `count` statistics of each row of x.
fn stats(x: &Type, count: u64) -> Type {
    Type::new(&[x.rows(), count], DType::F32)
}

/// The output where what else is asked `fits`: tangents of x and weight come first, x is input `at`, the weight follows.
fn made(op: &'static str, fits: bool, inputs: &[Type], at: usize) -> Result<Vec<Output>> {
    let fits = fits && inputs[0] == inputs[at] && inputs[1] == inputs[at + 1];
    expect(op, fits, || {
        format!("takes the tangent of each input, x, weight, statistics; got {inputs:?}")
    })?;
    Ok(vec![Output::Fresh(inputs[0].clone())])
}

/// Emits `op` on the tangents of the norm's `count` inputs, x, weight and statistics, and gives its output to y.
pub(super) fn give_tangent(at: &mut Tangent, count: usize, op: impl Op + 'static) -> Result<()> {
    let mut inputs = Vec::new();
    for index in 0..count {
        inputs.push(at.of_or_zero(index)?);
    }
    inputs.extend([at.input(0), at.input(1), at.output(1)]);
    let dy = at.emit(op, &inputs)?[0];
    at.give(0, dy);
    Ok(())
}
