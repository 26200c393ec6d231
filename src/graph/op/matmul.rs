//! Linear layers in their three training orientations.

use rayon::prelude::*;

use super::embedding::PositionEmbedding;
use super::gemm::{Mat, matmul, matmul_scratch};
use super::kernel::{Call, Gemm, Kernel, Launch, Matrix, Memory, Task, at, input, output, scratch};
use super::{Element, Io, Op, Output, View, ViewMut, Work, expect, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, TensorId, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// `y (N, O) = x (N, I) · weight (O, I)ᵀ (+ bias (O))`: inputs x, weight and, with `bias`, the bias.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Whether a bias is added.
    pub bias: bool,
}

/// `dx (N, I) = dy (N, O) · weight (O, I)`: inputs dy, weight.
#[derive(Debug, Clone)]
pub struct LinearInputGradient;

/// `dweight (O, I) = dyᵀ (O, N) · x (N, I)`: inputs dy, x and, with `accumulate`, the sum so far, which it overwrites.
#[derive(Debug, Clone)]
pub struct LinearWeightGradient {
    /// Format of the gradient.
    pub format: DType,
    /// Whether it adds into input 2.
    pub accumulate: bool,
}

/// `dbias (O) = Σ over rows of dy (N, O)`.
#[derive(Debug, Clone)]
pub struct BiasGradient {
    /// Format of the gradient.
    pub format: DType,
}

impl Linear {
    /// Its tangent, for a node that has the bias as input `bias`.
    ///
    /// # Errors
    /// As [`Op::tangent`].
    pub(super) fn tangent_with(&self, at: &mut Tangent, bias: usize) -> Result<()> {
        let (x, weight) = (Some(at.input(0)), Some(at.input(1)));
        let mut bias = if self.bias { at.of(bias) } else { None };
        let mut terms = Vec::new();
        for factors in [(at.of(0), weight), (x, at.of(1))] {
            let (Some(x), Some(weight)) = factors else {
                continue;
            };
            // The first product adds the bias's tangent.
            let bias = bias.take();
            let op = Linear {
                bias: bias.is_some(),
            };
            let inputs: Vec<_> = [x, weight].into_iter().chain(bias).collect();
            terms.push(at.emit(op, &inputs)?[0]);
        }
        if let Some(bias) = bias {
            terms.push(repeat_bias(at, bias)?);
        }
        at.give_sum(&terms)
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let good = inputs.len() == 2 + usize::from(self.bias)
            && inputs[1].shape.len() == 2
            && inputs[0].columns() == inputs[1].columns()
            && inputs.iter().all(|t| t.dtype == inputs[0].dtype)
            && (!self.bias || inputs[2].shape == inputs[1].shape[..1]);
        expect(self.name(), good, || {
            format!("takes x (N, I), weight (O, I), bias (O); got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(Type::new(
            &[inputs[0].rows(), inputs[1].rows()],
            inputs[0].dtype,
        ))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, inputs[0].dtype, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        product(
            inputs,
            outputs,
            inputs[0].columns(),
            u64::from(self.bias) * outputs[0].elements(),
        )
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        if at.wants(1) {
            let x = at.input(0);
            let sum = at.take_sum(1);
            let op = LinearWeightGradient {
                format: at.format(1),
                accumulate: sum.is_some(),
            };
            let inputs: Vec<_> = [dy, x].into_iter().chain(sum).collect();
            let dweight = at.emit(op, &inputs)?[0];
            at.give(1, dweight)?;
        }
        if self.bias && at.wants(2) {
            let dbias = at.emit(
                BiasGradient {
                    format: at.format(2),
                },
                &[dy],
            )?[0];
            at.give(2, dbias)?;
        }
        if at.wants(0) {
            let weight = at.input(1);
            let dx = at.emit(LinearInputGradient, &[dy, weight])?[0];
            at.give(0, dx)?;
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        self.tangent_with(at, 2)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, w) = (io.inputs[0], io.inputs[1]);
        with_float!("linear", x.at.dtype, T => {
            let y = io.outputs[0].of::<T>();
            let columns = w.at.rows() as usize;
            matmul(y, columns, mat::<T>(x), mat::<T>(w).t(), false, io.scratch);
            if self.bias {
                add_bias(y, io.inputs[2].of::<T>());
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (x, w) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let mut gemm = gemm(call, x, w.t(), call.inputs[0].columns());
        gemm.bias = self.bias.then_some(at(Memory::Input(2), 0));
        Kernel::Run(vec![Task::Gemm(gemm)])
    }
}

impl Op for LinearInputGradient {
    fn name(&self) -> &'static str {
        "linear_input_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let good = inputs.len() == 2
            && inputs[1].shape.len() == 2
            && inputs[0].columns() == inputs[1].rows();
        expect(self.name(), good, || {
            format!("takes dy (N, O), weight (O, I); got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(Type::new(
            &[inputs[0].rows(), inputs[1].columns()],
            inputs[0].dtype,
        ))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, inputs[0].dtype, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        product(inputs, outputs, inputs[0].columns(), 0)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, w) = (io.inputs[0], io.inputs[1]);
        with_float!("linear_input_backward", dy.at.dtype, T => {
            let columns = w.at.columns() as usize;
            matmul(io.outputs[0].of::<T>(), columns, mat::<T>(dy), mat::<T>(w), false, io.scratch);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (dy, w) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let gemm = gemm(call, dy, w, call.inputs[0].columns());
        Kernel::Run(vec![Task::Gemm(gemm)])
    }
}

impl Op for LinearWeightGradient {
    fn name(&self) -> &'static str {
        "linear_weight_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let good = inputs.len() == 2 + usize::from(self.accumulate)
            && inputs[0].rows() == inputs[1].rows();
        expect(self.name(), good, || {
            format!("takes dy (N, O), x (N, I) and the sum so far; got {inputs:?}")
        })?;
        let at = Type::new(&[inputs[0].columns(), inputs[1].columns()], self.format);
        match self.accumulate {
            false => Ok(vec![Output::Fresh(at)]),
            true => {
                expect(self.name(), inputs[2] == at, || {
                    format!("adds {at} into {}", inputs[2])
                })?;
                Ok(vec![Output::Overwrite { of: 2 }])
            }
        }
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, self.format, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        product(inputs, outputs, inputs[0].rows(), 0)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, x) = (io.inputs[0], io.inputs[1]);
        with_float!("linear_weight_backward", dy.at.dtype, T => {
            let into = &mut io.outputs[0];
            with_float!("linear_weight_backward", into.at.dtype, D => {
                let columns = x.at.columns() as usize;
                matmul(into.of::<D>(), columns, mat::<T>(dy).t(), mat::<T>(x), self.accumulate, io.scratch);
                Ok(())
            })
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (dy, x) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let mut gemm = gemm(call, dy.t(), x, call.inputs[0].rows());
        gemm.accumulate = self.accumulate;
        Kernel::Run(vec![Task::Gemm(gemm)])
    }
}

/// Row chunks of a bias gradient: partial sums are joined in their order.
const PARTIALS: usize = 32;

impl Op for BiasGradient {
    fn name(&self) -> &'static str {
        "bias_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect(self.name(), inputs.len() == 1, || {
            format!("takes dy (N, O); got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(Type::new(
            &[inputs[0].columns()],
            self.format,
        ))])
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[0].columns() * 4 * PARTIALS as u64)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dy = io.inputs[0];
        with_float!("bias_backward", dy.at.dtype, T => {
            sum_rows::<T>(dy, &mut io.outputs[0], io.scratch)
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = |entry| {
            Launch::new("bias", entry)
                .format("T", call.format(0))
                .format("G", self.format)
        };
        let sizes = [rows.into(), (columns as u32).into()];
        let part = launch("bias_parts").grid(columns.div_ceil(32), PARTIALS as u64, 1);
        let part = part.given([input(0), scratch(0)]).given(sizes);
        let total = launch("bias_total").blocks(columns.div_ceil(256));
        let total = total.given([scratch(0), output(0), (PARTIALS as u32).into(), sizes[1]]);
        Kernel::all([part, total])
    }
}

/// Sums the rows of `dy` into one row.
fn sum_rows<T: Element>(dy: View, into: &mut ViewMut, scratch: &mut [u8]) -> Result<()> {
    let columns = dy.at.columns() as usize;
    let rows = (dy.at.rows() as usize).div_ceil(PARTIALS).max(1);
    let partials: &mut [f32] = bytemuck::cast_slice_mut(scratch);
    partials.fill(0.0);
    partials
        .par_chunks_mut(columns)
        .zip(dy.of::<T>().par_chunks(rows * columns))
        .for_each(|(sum, dy)| {
            for row in dy.chunks_exact(columns) {
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(sum, dy)| *sum += dy.wide());
            }
        });
    let (first, rest) = partials.split_at_mut(columns);
    for partial in rest.chunks_exact(columns) {
        first
            .iter_mut()
            .zip(partial)
            .for_each(|(sum, part)| *sum += part);
    }
    with_float!("bias_backward", into.at.dtype, D => {
        into.of::<D>().iter_mut().zip(first).for_each(|(into, sum)| *into = D::narrow(*sum));
        Ok(())
    })
}

/// Rows like output 0, each of them `bias`: the tangent of a layer of which only the bias moves.
pub(super) fn repeat_bias(at: &mut Tangent, bias: TensorId) -> Result<TensorId> {
    let rows = at.zero(at.output(0))?;
    let op = PositionEmbedding { seq: 1, offset: 0 };
    Ok(at.emit(op, &[rows, bias])?[0])
}

/// Adds `bias` to every row of `y`.
pub(super) fn add_bias<T: Element>(y: &mut [T], bias: &[T]) {
    y.par_chunks_mut(bias.len())
        .with_min_len(16)
        .for_each(|row| {
            row.iter_mut()
                .zip(bias)
                .for_each(|(y, b)| *y = T::narrow(y.wide() + b.wide()));
        });
}

/// The product of `a` and `b` over `depth` into all of output 0.
pub(super) fn gemm(call: &Call, a: Matrix, b: Matrix, depth: u64) -> Gemm {
    let (m, n) = (call.outputs[0].rows(), call.outputs[0].columns());
    Gemm::new((m, n, depth), a, b, Matrix::output(call, 0))
}

/// A two-dimensional input as a matrix.
pub(super) fn mat<T: Element>(view: View<'_>) -> Mat<'_, T> {
    Mat::new(
        view.of(),
        view.at.rows() as usize,
        view.at.columns() as usize,
    )
}

/// The work of one product whose inner length is `depth`.
fn product(inputs: &[Type], outputs: &[Type], depth: u64, vector: u64) -> Work {
    Work {
        matmul: 2 * outputs[0].elements() * depth,
        vector,
        bytes: traffic(inputs, outputs),
    }
}
