//! A linear layer whose weight is quantized: panels of it are widened into scratch, one after the other.

use std::ops::Range;

use super::{Format, Weight};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::gemm::{Mat, matmul, matmul_scratch};
use crate::graph::op::kernel::{
    Argument, Call, Gemm, Kernel, Launch, Matrix, Memory, Task, at, input, scratch as room,
};
use crate::graph::op::matmul::{BiasGradient, add_bias};
use crate::graph::op::{Element, Io, Op, Output, Work, expect, traffic};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Rows of the weight, or its columns, that are widened together; the last panel has up to twice as many.
const PANEL: u64 = 512;

/// `y (N, O) = x (N, I) · weight (O, I)ᵀ (+ bias (O))`: inputs x, the parts of the weight and, with `bias`, the bias.
///
/// Elements are widened to the format of x, as bitsandbytes does; the weight itself gets no gradient.
#[derive(Debug, Clone)]
pub struct QuantizedLinear {
    /// How the weight is held.
    pub format: Format,
    /// Its rows (O).
    pub outputs: u64,
    /// Whether a bias is added.
    pub bias: bool,
}

/// `dx (N, I) = dy (N, O) · weight (O, I)`: inputs dy and the parts of the weight.
#[derive(Debug, Clone)]
pub struct QuantizedLinearInputGradient {
    /// How the weight is held.
    pub format: Format,
    /// Its columns (I).
    pub inputs: u64,
}

/// Fails unless `parts` are those of a weight of `shape`.
pub(super) fn expect_parts(
    op: &'static str,
    format: Format,
    parts: &[Type],
    shape: &[u64],
) -> Result<()> {
    let wanted = format.parts(shape);
    let fits = wanted.len() == parts.len() && wanted.iter().zip(parts).all(|((_, w), p)| w == p);
    expect(op, fits, || {
        format!("takes the parts {wanted:?} of a weight {shape:?}; got {parts:?}")
    })
}

/// The panels of `length` rows or columns.
pub(super) fn panels(length: u64) -> impl Iterator<Item = Range<usize>> {
    let count = (length / PANEL).max(1);
    (0..count).map(move |index| {
        let end = if index + 1 == count {
            length
        } else {
            (index + 1) * PANEL
        };
        (index * PANEL) as usize..end as usize
    })
}

/// Rows or columns of the widest panel of `length`.
fn widest(length: u64) -> u64 {
    panels(length).map(|p| p.len() as u64).max().unwrap_or(0)
}

/// Scratch: what the products need, then one panel of `across` elements in each of its rows or columns.
pub(super) fn scratch(x: DType, length: u64, across: u64, backend: Backend) -> Bytes {
    let panel = Bytes(widest(length) * across * x.bytes());
    matmul_scratch(x, x, backend).round_up(64) + panel
}

/// The scratch of the products, and the panel.
pub(super) fn split<T: Element>(scratch: &mut [u8], panel: usize) -> (&mut [u8], &mut [T]) {
    let at = scratch.len() - panel * size_of::<T>();
    let (products, panel) = scratch.split_at_mut(at);
    (products, bytemuck::cast_slice_mut(panel))
}

/// `y = x · weightᵀ` for a weight of `shape` (rows, columns) that begins at row `first` of the parts.
pub(super) fn forward<T: Element>(
    weight: &Weight,
    (first, shape): (usize, (u64, u64)),
    x: Mat<T>,
    y: &mut [T],
    scratch: &mut [u8],
) {
    let (outputs, inputs) = (shape.0 as usize, shape.1 as usize);
    let (products, room) = split::<T>(scratch, widest(shape.0) as usize * inputs);
    for rows in panels(shape.0) {
        let panel = &mut room[..rows.len() * inputs];
        weight.panel((first + rows.start..first + rows.end, 0..inputs), panel);
        let w = Mat::new(&*panel, rows.len(), inputs);
        matmul(&mut y[rows.start..], outputs, x, w.t(), false, products);
    }
}

/// `dx = dy · weight`, as [`forward`].
pub(super) fn backward<T: Element>(
    weight: &Weight,
    (first, shape): (usize, (u64, u64)),
    dy: Mat<T>,
    dx: &mut [T],
    scratch: &mut [u8],
) {
    let (outputs, inputs) = (shape.0 as usize, shape.1 as usize);
    let (products, room) = split::<T>(scratch, widest(shape.1) as usize * outputs);
    for columns in panels(shape.1) {
        let panel = &mut room[..columns.len() * outputs];
        weight.panel((first..first + outputs, columns.clone()), panel);
        let w = Mat::new(&*panel, outputs, columns.len());
        matmul(&mut dx[columns.start..], inputs, dy, w, false, products);
    }
}

/// Panels of a weight (rows, columns), or of several below each other, widened into scratch on a GPU.
pub(super) struct Panels {
    launch: Launch,
    columns: u64,
    block: u64,
}

impl Panels {
    /// Of a weight whose parts are inputs `first..`, each of `shape`.
    pub(super) fn of(format: Format, call: &Call, first: usize, shape: (u64, u64)) -> Panels {
        let kind = match format {
            Format::Nf4 { double: false } => "NF4",
            Format::Nf4 { double: true } => "NF4_DOUBLE",
            Format::Int8 { .. } => "INT8",
        };
        let part = |index: usize| match index < format.count() {
            true => input(first + index),
            false => Argument::Null,
        };
        Panels {
            launch: Launch::new("quantized", "dequantize")
                .format("T", call.format(0))
                .define("FORMAT", kind)
                .given([0, 1, 2, 3].map(part))
                .given([room(0)]),
            columns: shape.1,
            block: format.block(&[shape.0, shape.1]),
        }
    }

    /// Elements (rows, width) from element `first` on.
    pub(super) fn launch(&self, first: u64, rows: u64, width: u64) -> Launch {
        let items = rows * width.div_ceil(8);
        let launch = self.launch.clone().each(items);
        launch.given([rows, width, first, self.columns, self.block].map(Argument::U64))
    }
}

/// The work of products of `pairs` multiply-adds with a weight of `elements`, which is widened, written and read once.
pub(super) fn work(inputs: &[Type], outputs: &[Type], pairs: u64, elements: u64) -> Work {
    Work {
        matmul: 2 * pairs,
        vector: 2 * elements,
        bytes: traffic(inputs, outputs) + 2 * elements * inputs[0].dtype.bytes(),
    }
}

impl Op for QuantizedLinear {
    fn name(&self) -> &'static str {
        "quantized_linear"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let count = 1 + self.format.count();
        let good = inputs.len() == count + usize::from(self.bias)
            && (!self.bias || inputs[count] == Type::new(&[self.outputs], inputs[0].dtype));
        expect(self.name(), good, || {
            format!("takes x (N, I), the parts of a weight, bias (O); got {inputs:?}")
        })?;
        let shape = [self.outputs, inputs[0].columns()];
        expect_parts(self.name(), self.format, &inputs[1..count], &shape)?;
        let y = [inputs[0].rows(), self.outputs];
        Ok(vec![Output::Fresh(Type::new(&y, inputs[0].dtype))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        scratch(inputs[0].dtype, self.outputs, inputs[0].columns(), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let columns = inputs[0].columns();
        let pairs = outputs[0].elements() * columns;
        work(inputs, outputs, pairs, self.outputs * columns)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let count = 1 + self.format.count();
        if self.bias && at.wants(count) {
            let format = at.format(count);
            let dbias = at.emit(BiasGradient { format }, &[dy])?[0];
            at.give(count, dbias)?;
        }
        if at.wants(0) {
            let op = QuantizedLinearInputGradient {
                format: self.format,
                inputs: at.type_of(at.input(0)).columns(),
            };
            let parts = (1..count).map(|i| at.input(i));
            let inputs: Vec<_> = [dy].into_iter().chain(parts).collect();
            let dx = at.emit(op, &inputs)?[0];
            at.give(0, dx)?;
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let count = 1 + self.format.count();
        let mut bias = if self.bias { at.of(count) } else { None };
        let mut terms = Vec::new();
        if let Some(dx) = at.of(0) {
            let parts: Vec<_> = (1..count).map(|i| at.input(i)).collect();
            let dbias = bias.take();
            let op = QuantizedLinear {
                bias: dbias.is_some(),
                ..self.clone()
            };
            let inputs: Vec<_> = [dx].into_iter().chain(parts).chain(dbias).collect();
            terms.push(at.emit(op, &inputs)?[0]);
        }
        if let Some(bias) = bias {
            terms.push(crate::graph::op::matmul::repeat_bias(at, bias)?);
        }
        at.give_sum(&terms)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, count) = (io.inputs[0], 1 + self.format.count());
        let (rows, columns) = (x.at.rows() as usize, x.at.columns());
        let weight = Weight::new(self.format, columns as usize, &io.inputs[1..count]);
        with_float!(self.name(), x.at.dtype, T => {
            let y = io.outputs[0].of::<T>();
            let x = Mat::new(x.of::<T>(), rows, columns as usize);
            forward(&weight, (0, (self.outputs, columns)), x, y, io.scratch);
            if self.bias {
                add_bias(y, io.inputs[count].of::<T>());
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let columns = call.inputs[0].columns();
        let panel = Panels::of(self.format, call, 1, (self.outputs, columns));
        let count = 1 + self.format.count();
        let tasks = panels(self.outputs).flat_map(|rows| {
            let (first, size) = (rows.start as u64, rows.len() as u64);
            let w = Matrix::new(Memory::Scratch, call.format(0), columns);
            let (x, y) = (Matrix::input(call, 0), Matrix::output(call, 0).skip(first));
            let mut gemm = Gemm::new((call.inputs[0].rows(), size, columns), x, w.t(), y);
            let from = first * call.format(0).bytes();
            gemm.bias = self.bias.then_some(at(Memory::Input(count), from));
            let widened = panel.launch(first * columns, size, columns);
            [Task::Launch(widened), Task::Gemm(gemm)]
        });
        Kernel::Run(tasks.collect())
    }
}

impl Op for QuantizedLinearInputGradient {
    fn name(&self) -> &'static str {
        "quantized_linear_input_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let count = 1 + self.format.count();
        expect(self.name(), inputs.len() == count, || {
            format!("takes dy (N, O) and the parts of a weight; got {inputs:?}")
        })?;
        let shape = [inputs[0].columns(), self.inputs];
        expect_parts(self.name(), self.format, &inputs[1..], &shape)?;
        let dx = [inputs[0].rows(), self.inputs];
        Ok(vec![Output::Fresh(Type::new(&dx, inputs[0].dtype))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        scratch(inputs[0].dtype, self.inputs, inputs[0].columns(), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let rows = inputs[0].columns();
        let pairs = outputs[0].elements() * rows;
        work(inputs, outputs, pairs, self.inputs * rows)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dy = io.inputs[0];
        let (rows, outputs) = (dy.at.rows() as usize, dy.at.columns());
        let weight = Weight::new(self.format, self.inputs as usize, &io.inputs[1..]);
        with_float!(self.name(), dy.at.dtype, T => {
            let dx = io.outputs[0].of::<T>();
            let dy = Mat::new(dy.of::<T>(), rows, outputs as usize);
            backward(&weight, (0, (outputs, self.inputs)), dy, dx, io.scratch);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let rows = call.inputs[0].columns();
        let panel = Panels::of(self.format, call, 1, (rows, self.inputs));
        let tasks = panels(self.inputs).flat_map(|columns| {
            let (first, size) = (columns.start as u64, columns.len() as u64);
            let w = Matrix::new(Memory::Scratch, call.format(0), size);
            let (dy, dx) = (Matrix::input(call, 0), Matrix::output(call, 0).skip(first));
            let gemm = Gemm::new((call.inputs[0].rows(), size, rows), dy, w, dx);
            [
                Task::Launch(panel.launch(first, rows, size)),
                Task::Gemm(gemm),
            ]
        });
        Kernel::Run(tasks.collect())
    }
}
