//! One quantized linear layer per expert, over rows sorted by expert.

use super::linear::{Panels, backward, expect_parts, forward, panels, scratch, work};
use super::{Format, Weight};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::gemm::Mat;
use crate::graph::op::kernel::{Call, Kernel, Matrix, Memory, Task, input};
use crate::graph::op::moe::Experts;
use crate::graph::op::{Io, Op, Output, Work, expect};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// [`GroupedLinear`](crate::graph::op::moe::GroupedLinear) with a quantized weight (E, O, I): inputs rows (R, I), offsets (E + 1)
/// (U32) and the parts of the weight; output (R, O).
#[derive(Debug, Clone)]
pub struct QuantizedGroupedLinear {
    /// How the weight is held.
    pub format: Format,
    /// Rows of an expert's weight (O).
    pub outputs: u64,
}

/// The rows' gradient: inputs dy (R, O), offsets (E + 1) and the parts of the weight; output (R, I).
#[derive(Debug, Clone)]
pub struct QuantizedGroupedLinearInputGradient {
    /// How the weight is held.
    pub format: Format,
    /// Columns of an expert's weight (I).
    pub inputs: u64,
}

/// Fails unless `inputs` are rows, offsets and the parts of a weight of an expert each of `shape`.
fn expect_experts(
    op: &'static str,
    format: Format,
    inputs: &[Type],
    (outputs, columns): (u64, u64),
) -> Result<()> {
    let good = inputs.len() == 2 + format.count()
        && inputs[1].dtype == DType::U32
        && inputs[1].elements() > 1;
    expect(op, good, || {
        format!("takes rows, offsets (E + 1) and the parts of a weight; got {inputs:?}")
    })?;
    let shape = [inputs[1].elements() - 1, outputs, columns];
    expect_parts(op, format, &inputs[2..], &shape)
}

/// The product of one expert, whose weight is in scratch.
fn one(expert: u64) -> Experts {
    Experts {
        offsets: input(1),
        first: expert,
        count: 1,
        each: 0,
        summed: false,
    }
}

/// The rows of each expert that has any, and the expert.
fn groups(offsets: &[u32]) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let bounds = offsets.windows(2).map(|w| w[0] as usize..w[1] as usize);
    bounds.enumerate().filter(|(_, rows)| !rows.is_empty())
}

impl Op for QuantizedGroupedLinear {
    fn name(&self) -> &'static str {
        "quantized_grouped_linear"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let columns = inputs.first().map_or(0, Type::columns);
        expect_experts(self.name(), self.format, inputs, (self.outputs, columns))?;
        let y = [inputs[0].rows(), self.outputs];
        Ok(vec![Output::Fresh(Type::new(&y, inputs[0].dtype))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        scratch(inputs[0].dtype, self.outputs, inputs[0].columns(), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let (columns, experts) = (inputs[0].columns(), inputs[1].elements() - 1);
        let pairs = outputs[0].elements() * columns;
        work(inputs, outputs, pairs, experts * self.outputs * columns)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let (Some(dy), true) = (at.grad(0), at.wants(0)) else {
            return Ok(());
        };
        let op = QuantizedGroupedLinearInputGradient {
            format: self.format,
            inputs: at.type_of(at.input(0)).columns(),
        };
        let rest = (1..2 + self.format.count()).map(|i| at.input(i));
        let inputs: Vec<_> = [dy].into_iter().chain(rest).collect();
        let drows = at.emit(op, &inputs)?[0];
        at.give(0, drows)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(self.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (rows, offsets) = (io.inputs[0], io.inputs[1].of::<u32>());
        let shape = (self.outputs, rows.at.columns());
        let (outputs, inputs) = (shape.0 as usize, shape.1 as usize);
        let weight = Weight::new(self.format, inputs, &io.inputs[2..]);
        with_float!(self.name(), rows.at.dtype, T => {
            let y = io.outputs[0].of::<T>();
            for (expert, rows_of) in groups(offsets) {
                let x = &rows.of::<T>()[rows_of.start * inputs..rows_of.end * inputs];
                let x = Mat::new(x, rows_of.len(), inputs);
                let y = &mut y[rows_of.start * outputs..rows_of.end * outputs];
                forward(&weight, (expert * outputs, shape), x, y, io.scratch);
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (columns, experts) = (call.inputs[0].columns(), call.inputs[1].elements() - 1);
        let panel = Panels::of(self.format, call, 2, (experts * self.outputs, columns));
        let each = |expert: u64| {
            let panel = &panel;
            panels(self.outputs).flat_map(move |rows| {
                let (first, size) = (rows.start as u64, rows.len() as u64);
                let w = Matrix::new(Memory::Scratch, call.format(0), columns);
                let (x, y) = (Matrix::input(call, 0), Matrix::output(call, 0).skip(first));
                let at = (expert * self.outputs + first) * columns;
                let product = (call.inputs[0].rows(), size, columns);
                let product = one(expert).launch(product, x, w.t(), y, false);
                [panel.launch(at, size, columns), product].map(Task::Launch)
            })
        };
        Kernel::Run((0..experts).flat_map(each).collect())
    }
}

impl Op for QuantizedGroupedLinearInputGradient {
    fn name(&self) -> &'static str {
        "quantized_grouped_linear_input_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let rows = inputs.first().map_or(0, Type::columns);
        expect_experts(self.name(), self.format, inputs, (rows, self.inputs))?;
        let dx = [inputs[0].rows(), self.inputs];
        Ok(vec![Output::Fresh(Type::new(&dx, inputs[0].dtype))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        scratch(inputs[0].dtype, self.inputs, inputs[0].columns(), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let (rows, experts) = (inputs[0].columns(), inputs[1].elements() - 1);
        let pairs = outputs[0].elements() * rows;
        work(inputs, outputs, pairs, experts * self.inputs * rows)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, offsets) = (io.inputs[0], io.inputs[1].of::<u32>());
        let shape = (dy.at.columns(), self.inputs);
        let (outputs, inputs) = (shape.0 as usize, shape.1 as usize);
        let weight = Weight::new(self.format, inputs, &io.inputs[2..]);
        with_float!(self.name(), dy.at.dtype, T => {
            let dx = io.outputs[0].of::<T>();
            for (expert, rows) in groups(offsets) {
                let dy = &dy.of::<T>()[rows.start * outputs..rows.end * outputs];
                let dy = Mat::new(dy, rows.len(), outputs);
                let dx = &mut dx[rows.start * inputs..rows.end * inputs];
                backward(&weight, (expert * outputs, shape), dy, dx, io.scratch);
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, experts) = (call.inputs[0].columns(), call.inputs[1].elements() - 1);
        let panel = Panels::of(self.format, call, 2, (experts * rows, self.inputs));
        let each = |expert: u64| {
            let panel = &panel;
            panels(self.inputs).flat_map(move |columns| {
                let (first, size) = (columns.start as u64, columns.len() as u64);
                let w = Matrix::new(Memory::Scratch, call.format(0), size);
                let (dy, dx) = (Matrix::input(call, 0), Matrix::output(call, 0).skip(first));
                let at = expert * rows * self.inputs + first;
                let product = (call.inputs[0].rows(), size, rows);
                let product = one(expert).launch(product, dy, w, dx, false);
                [panel.launch(at, rows, size), product].map(Task::Launch)
            })
        };
        Kernel::Run((0..experts).flat_map(each).collect())
    }
}
