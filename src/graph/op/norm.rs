//! LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019), which keep only their input and its statistics.

use rayon::prelude::*;

use super::kernel::{Argument, Call, Kernel, Launch, THREADS, input, output, scratch};
use super::norm_tangent::{LayerNormTangent, RmsNormTangent, give_tangent};
use super::simd::{self, sum_of, sum_of_pairs, sum_of_triples, vectorized};
use super::{Element, Io, Op, Output, Work, exactly, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Most partial sums a parameter's gradient is made of.
const PARTS: usize = 64;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over each row: inputs x (N, C), weight (C),
/// bias (C); outputs y (N, C) and mean and 1/deviation of each row (N, 2).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// Inputs dy (N, C), x (N, C), weight (C), statistics (N, 2); outputs dx (N, C), dweight (C), dbias (C).
#[derive(Debug, Clone)]
pub struct LayerNormBackward {
    /// Format of dweight and dbias.
    pub grad: DType,
}

/// `x / sqrt(mean(x²) + eps) * weight` over each group of `width` columns: inputs x (N, C), weight
/// (width); outputs y (N, C) and 1/root-mean-square of each group (N, C / width).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the factor is `1 + weight` (Gemma).
    pub unit_offset: bool,
    /// Columns of a group: C, or the width of a head (Qwen 3).
    pub width: u64,
}

/// Inputs dy (N, C), x (N, C), weight (width), statistics (N, C / width); outputs dx (N, C), dweight (width).
#[derive(Debug, Clone)]
pub struct RmsNormBackward {
    /// As in the forward op.
    pub unit_offset: bool,
    /// As in the forward op.
    pub width: u64,
    /// Format of dweight.
    pub grad: DType,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let x = &inputs[0];
        let vector = Type::new(&[x.columns()], x.dtype);
        expect(
            self.name(),
            inputs[1..].iter().all(|t| *t == vector),
            || format!("takes x (N, C), weight (C), bias (C); got {inputs:?}"),
        )?;
        let stats = Type::new(&[x.rows(), 2], DType::F32);
        Ok(vec![Output::Fresh(x.clone()), Output::Fresh(stats)])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // mean, variance (subtract, multiply, add), and subtract, scale, weight, bias
        pointwise(8, inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let op = LayerNormBackward { grad: at.format(1) };
        give_all(at, op)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        give_tangent(at, 3, LayerNormTangent)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let [x, w, b] = [io.inputs[0], io.inputs[1], io.inputs[2]];
        let [y, stats] = exactly(self.name(), &mut io.outputs)?;
        let (columns, eps) = (x.at.columns() as usize, self.eps as f32);
        let rows = task_rows(columns);
        with_float!(self.name(), x.at.dtype, T => {
            let (x, w, b) = (x.of::<T>(), w.of::<T>(), b.of::<T>());
            let made = y.of::<T>().par_chunks_mut(rows * columns);
            made.zip(stats.of::<f32>().par_chunks_mut(rows * 2))
                .zip(x.par_chunks(rows * columns))
                .for_each(|((y, stats), x)| layer_rows(x, w, b, eps, y, stats));
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = by_rows(self.name(), call.format(0), rows, columns, false);
        let launch = launch.given([input(0), input(1), input(2), output(0), output(1)]);
        Kernel::one(
            launch
                .given(sizes(rows, columns))
                .given([(self.eps as f32).into()]),
        )
    }
}

impl Op for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 4)?;
        expect(self.name(), inputs[0] == inputs[1], || {
            format!("gradient {} of {}", inputs[0], inputs[1])
        })?;
        let vector = inputs[2].with(self.grad);
        let made = [inputs[1].clone(), vector.clone(), vector];
        Ok(made.map(Output::Fresh).to_vec())
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        partial_sums(inputs[1].rows(), inputs[1].columns(), 2, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // normalize (2), dy * weight, two sums (3), dx (4), dweight (2), dbias
        pointwise(13, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let [dy, x, w, stats] = [io.inputs[0], io.inputs[1], io.inputs[2], io.inputs[3]];
        let [dx, dw, db] = exactly(self.name(), &mut io.outputs)?;
        let columns = x.at.columns() as usize;
        let rows = part_rows(x.at.rows() as usize);
        let parts: &mut [f32] = bytemuck::cast_slice_mut(io.scratch);
        with_float!(self.name(), x.at.dtype, T => {
            let (dy, x, w) = (dy.of::<T>(), x.of::<T>(), w.of::<T>());
            dx.of::<T>()
                .par_chunks_mut(rows * columns)
                .zip(dy.par_chunks(rows * columns).zip(x.par_chunks(rows * columns)))
                .zip(stats.of::<f32>().par_chunks(rows * 2))
                .zip(parts.par_chunks_mut(2 * columns))
                .for_each(|(((dx, (dy, x)), stats), part)| {
                    layer_rows_backward(dy, x, w, stats, dx, part);
                });
            Ok(())
        })?;
        let sums = total(parts, 2 * columns);
        round(self.name(), &sums[..columns], dw)?;
        round(self.name(), &sums[columns..], db)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.inputs[1].rows(), call.inputs[1].columns());
        let launch = by_rows(self.name(), call.format(1), rows, columns, false);
        let pointers = [input(0), input(1), input(2), input(3), output(0)];
        let launch = launch.given(pointers).given(sizes(rows, columns));
        let gradients = Parameters {
            rows,
            columns,
            grad: self.grad,
            biased: true,
        };
        gradients.after(launch)
    }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (x, width) = (&inputs[0], self.width);
        let good = width > 0
            && x.columns().is_multiple_of(width)
            && inputs[1] == Type::new(&[width], x.dtype);
        expect(self.name(), good, || {
            format!("takes x (N, C) and weight ({width}), which divides C; got {inputs:?}")
        })?;
        let stats = Type::new(&[x.rows(), x.columns() / width], DType::F32);
        Ok(vec![Output::Fresh(x.clone()), Output::Fresh(stats)])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        pointwise(4, inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let op = RmsNormBackward {
            unit_offset: self.unit_offset,
            width: self.width,
            grad: at.format(1),
        };
        give_all(at, op)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let op = RmsNormTangent {
            unit_offset: self.unit_offset,
            width: self.width,
        };
        give_tangent(at, 2, op)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, w) = (io.inputs[0], io.inputs[1]);
        let [y, stats] = exactly(self.name(), &mut io.outputs)?;
        let (width, eps, offset) = (self.width as usize, self.eps as f32, self.offset());
        let rows = task_rows(width);
        with_float!(self.name(), x.at.dtype, T => {
            let (x, w) = (x.of::<T>(), w.of::<T>());
            let made = y.of::<T>().par_chunks_mut(rows * width);
            made.zip(stats.of::<f32>().par_chunks_mut(rows))
                .zip(x.par_chunks(rows * width))
                .for_each(|((y, stats), x)| rms_rows(x, w, offset, eps, y, stats));
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
        let launch = launch.given([input(0), input(1), output(0), output(1)]);
        Kernel::one(
            launch
                .given(sizes(rows, self.width))
                .given([(self.eps as f32).into()]),
        )
    }
}

impl RmsNorm {
    /// What is added to the weight.
    fn offset(&self) -> f32 {
        f32::from(u8::from(self.unit_offset))
    }
}

impl Op for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms_norm_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 4)?;
        expect(self.name(), inputs[0] == inputs[1], || {
            format!("gradient {} of {}", inputs[0], inputs[1])
        })?;
        let made = [inputs[1].clone(), inputs[2].with(self.grad)];
        Ok(made.map(Output::Fresh).to_vec())
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        let groups = inputs[1].elements() / self.width;
        partial_sums(groups, self.width, 1, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // dy * weight, its sum with x (2), dx (3), dweight (3)
        pointwise(9, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let [dy, x, w, stats] = [io.inputs[0], io.inputs[1], io.inputs[2], io.inputs[3]];
        let [dx, dw] = exactly(self.name(), &mut io.outputs)?;
        let (width, offset) = (self.width as usize, f32::from(u8::from(self.unit_offset)));
        let rows = part_rows(x.at.elements() as usize / width);
        let parts: &mut [f32] = bytemuck::cast_slice_mut(io.scratch);
        with_float!(self.name(), x.at.dtype, T => {
            let (dy, x, w) = (dy.of::<T>(), x.of::<T>(), w.of::<T>());
            dx.of::<T>()
                .par_chunks_mut(rows * width)
                .zip(dy.par_chunks(rows * width).zip(x.par_chunks(rows * width)))
                .zip(stats.of::<f32>().par_chunks(rows))
                .zip(parts.par_chunks_mut(width))
                .for_each(|(((dx, (dy, x)), stats), part)| {
                    rms_rows_backward(dy, x, w, offset, stats, dx, part);
                });
            Ok(())
        })?;
        round(self.name(), total(parts, width), dw)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.inputs[1].elements() / self.width, self.width);
        let launch = by_rows(self.name(), call.format(1), rows, columns, self.unit_offset);
        let pointers = [input(0), input(1), input(2), input(3), output(0)];
        let launch = launch.given(pointers).given(sizes(rows, columns));
        let gradients = Parameters {
            rows,
            columns,
            grad: self.grad,
            biased: false,
        };
        gradients.after(launch)
    }
}

vectorized! {
    /// LayerNorm of some rows.
    fn layer_rows<T: Element>(x: &[T], w: &[T], b: &[T], eps: f32, y: &mut [T], stats: &mut [f32]) {
        let c = w.len();
        for ((y, x), stats) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(stats.chunks_exact_mut(2)) {
            let mean = sum_of(x, |x| x) / c as f32;
            let variance = sum_of(x, |x| (x - mean) * (x - mean)) / c as f32;
            let rstd = 1.0 / (variance + eps).sqrt();
            for ((y, x), (w, b)) in y.iter_mut().zip(x).zip(w.iter().zip(b)) {
                *y = T::narrow((x.wide() - mean) * rstd * w.wide() + b.wide());
            }
            stats.copy_from_slice(&[mean, rstd]);
        }
    }

    /// The derivative for some rows; `part` becomes their share of dweight, then of dbias.
    fn layer_rows_backward<T: Element>(
        dy: &[T], x: &[T], w: &[T], stats: &[f32], dx: &mut [T], part: &mut [f32],
    ) {
        let c = w.len();
        part.fill(0.0);
        let (dw, db) = part.split_at_mut(c);
        let rows = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c).zip(x.chunks_exact(c)));
        for ((dx, (dy, x)), stats) in rows.zip(stats.chunks_exact(2)) {
            let (mean, rstd) = (stats[0], stats[1]);
            for (((dw, db), dy), x) in dw.iter_mut().zip(db.iter_mut()).zip(dy).zip(x) {
                *dw += dy.wide() * ((x.wide() - mean) * rstd);
                *db += dy.wide();
            }
            let along = sum_of_pairs(dy, w, |dy, w| dy * w) / c as f32;
            let spread = sum_of_triples(dy, w, x, |dy, w, x| dy * w * ((x - mean) * rstd)) / c as f32;
            for ((dx, dy), (x, w)) in dx.iter_mut().zip(dy).zip(x.iter().zip(w)) {
                let normal = (x.wide() - mean) * rstd;
                *dx = T::narrow(rstd * (dy.wide() * w.wide() - along - normal * spread));
            }
        }
    }

    /// RMSNorm of some groups.
    fn rms_rows<T: Element>(x: &[T], w: &[T], offset: f32, eps: f32, y: &mut [T], stats: &mut [f32]) {
        let c = w.len();
        for ((y, x), stat) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(stats) {
            let rstd = 1.0 / (sum_of(x, |x| x * x) / c as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = T::narrow(x.wide() * rstd * (offset + w.wide()));
            }
            *stat = rstd;
        }
    }

    /// The derivative for some groups; `dw` becomes their share of dweight.
    fn rms_rows_backward<T: Element>(
        dy: &[T], x: &[T], w: &[T], offset: f32, stats: &[f32], dx: &mut [T], dw: &mut [f32],
    ) {
        let c = w.len();
        dw.fill(0.0);
        let rows = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c).zip(x.chunks_exact(c)));
        for ((dx, (dy, x)), &rstd) in rows.zip(stats) {
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw += dy.wide() * (x.wide() * rstd);
            }
            let spread = sum_of_triples(dy, w, x, |dy, w, x| dy * (offset + w) * (x * rstd)) / c as f32;
            for ((dx, dy), (x, w)) in dx.iter_mut().zip(dy).zip(x.iter().zip(w)) {
                let g = dy.wide() * (offset + w.wide());
                *dx = T::narrow(rstd * (g - x.wide() * rstd * spread));
            }
        }
    }
}

/// Rows one forward task takes.
pub(super) fn task_rows(columns: usize) -> usize {
    (CHUNK / columns).max(1)
}

/// Rows behind one partial sum.
fn part_rows(rows: usize) -> usize {
    rows.div_ceil(PARTS).max(1)
}

/// Scratch of the partial sums over `rows` rows, of `sums` vectors of `columns`.
fn partial_sums(rows: u64, columns: u64, sums: u64, backend: Backend) -> Bytes {
    let parts = match backend {
        Backend::Cpu { .. } => rows.div_ceil(part_rows(rows as usize) as u64).max(1),
        // One part goes straight to the gradient.
        Backend::Cuda { .. } => match cuda_parts(columns) {
            1 => 0,
            parts => parts,
        },
    };
    Bytes(parts * sums * columns * 4)
}

/// Parts that rows are cut into on a GPU, so that some hundred blocks of 32 columns sum a parameter's gradient.
fn cuda_parts(columns: u64) -> u64 {
    (4096 / columns.max(1)).clamp(1, PARTS as u64)
}

/// A launch for `rows` rows, each by a warp, or by a block where it is long.
pub(super) fn by_rows(
    entry: &'static str,
    format: DType,
    rows: u64,
    columns: u64,
    offset: bool,
) -> Launch {
    let threads = if columns > 1024 { THREADS } else { 32 };
    Launch::new("norm", entry)
        .format("T", format)
        .format("G", format)
        .define("ROW", threads)
        .define("OFFSET", if offset { "1.0f" } else { "0.0f" })
        .define("MEANS", 0u32)
        .blocks(rows.div_ceil(u64::from(THREADS / threads)))
}

/// The last parameters of launches by rows.
pub(super) fn sizes(rows: u64, columns: u64) -> [Argument; 2] {
    [rows.into(), (columns as u32).into()]
}

/// The gradients of weight and, where it is `biased`, bias; inputs dy, x, weight and statistics.
struct Parameters {
    rows: u64,
    columns: u64,
    grad: DType,
    biased: bool,
}

impl Parameters {
    /// The launch of dx, then those of the gradients of parameters.
    fn after(&self, first: Launch) -> Kernel {
        let parts = cuda_parts(self.columns);
        let bias = if self.biased {
            output(2)
        } else {
            Argument::Null
        };
        let launch = |entry| {
            let mut launch = Launch::new("norm", entry);
            launch.defines.clone_from(&first.defines);
            let launch = launch.format("G", self.grad);
            launch.define("MEANS", u32::from(self.biased))
        };
        let part = launch("norm_parameters").grid(self.columns.div_ceil(32), parts, 1);
        let part = part.given([input(0), input(1), input(3), output(1), bias, scratch(0)]);
        let part = part.given(sizes(self.rows, self.columns));
        let total = launch("norm_total").each(2 * self.columns);
        let total = total.given([scratch(0), output(1), bias, (parts as u32).into()]);
        let total = total.given([(self.columns as u32).into()]);
        Kernel::all(
            [first, part]
                .into_iter()
                .chain((parts > 1).then_some(total)),
        )
    }
}

/// Adds all partial sums, in order, into the first.
fn total(parts: &mut [f32], columns: usize) -> &[f32] {
    let (sums, rest) = parts.split_at_mut(columns);
    for part in rest.chunks_exact(columns) {
        simd::add(part, sums);
    }
    sums
}

/// Rounds `sums` into a parameter's gradient.
fn round(op: &'static str, sums: &[f32], into: &mut super::ViewMut) -> Result<()> {
    with_float!(op, into.at.dtype, T => {
        simd::narrow(sums, into.of::<T>());
        Ok(())
    })
}

/// `flops` per element of input 0 and all bytes once.
pub(super) fn pointwise(flops: u64, inputs: &[Type], outputs: &[Type]) -> Work {
    Work {
        matmul: 0,
        vector: flops * inputs[0].elements(),
        bytes: traffic(inputs, outputs),
    }
}

/// Emits `op` on dy, x, weight and statistics, and gives its outputs to the inputs in order.
fn give_all(at: &mut Backward, op: impl Op + 'static) -> Result<()> {
    let Some(dy) = at.grad(0) else { return Ok(()) };
    let inputs = [dy, at.input(0), at.input(1), at.output(1)];
    for (index, gradient) in at.emit(op, &inputs)?.into_iter().enumerate() {
        if at.wants(index) {
            at.give(index, gradient)?;
        }
    }
    Ok(())
}
