//! One linear layer per expert, over rows sorted by expert.

use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::gemm::{Mat, matmul, matmul_scratch};
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, Matrix, input};
use crate::graph::op::{Element, Io, Op, Output, Work, expect, expect_inputs, summed, traffic};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// `y = rows · weight[e]ᵀ` for the rows `offsets[e]..offsets[e + 1]` of each expert: rows (R, I), weight (E, O, I) and
/// offsets (E + 1) (U32) to y (R, O).
#[derive(Debug, Clone)]
pub struct GroupedLinear;

/// The rows' gradient: dy (R, O), weight (E, O, I) and offsets (E + 1) to drows (R, I).
#[derive(Debug, Clone)]
pub struct GroupedLinearInputGradient;

/// The weight's gradient: dy (R, O), rows (R, I), offsets (E + 1) and, if accumulating, the sum so far, to dweight
/// (E, O, I); zero for experts without rows.
#[derive(Debug, Clone)]
pub struct GroupedLinearWeightGradient {
    /// Format of the gradient.
    pub format: DType,
    /// Whether input 3 is a sum to add to, which the output overwrites.
    pub accumulate: bool,
}

impl Op for GroupedLinear {
    fn name(&self) -> &'static str {
        "grouped_linear"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let (rows, weight) = (&inputs[0], &inputs[1]);
        expect_experts(self.name(), weight, &inputs[2])?;
        let fits = rows.columns() == weight.shape[2] && rows.dtype == weight.dtype;
        expect(self.name(), fits, || format!("{rows} by {weight}"))?;
        let shape = [rows.rows(), weight.shape[1]];
        Ok(vec![Output::Fresh(Type::new(&shape, rows.dtype))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, inputs[0].dtype, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        product(inputs, outputs, outputs[0].elements() * inputs[0].columns())
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let (rows, weight, offsets) = (at.input(0), at.input(1), at.input(2));
        if at.wants(1) {
            let sum = at.take_sum(1);
            let op = GroupedLinearWeightGradient {
                format: at.format(1),
                accumulate: sum.is_some(),
            };
            let inputs: Vec<_> = [dy, rows, offsets].into_iter().chain(sum).collect();
            let dweight = at.emit(op, &inputs)?[0];
            at.give(1, dweight)?;
        }
        if at.wants(0) {
            let drows = at.emit(GroupedLinearInputGradient, &[dy, weight, offsets])?[0];
            at.give(0, drows)?;
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(self.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (rows, weight) = (io.inputs[0], io.inputs[1]);
        let (outputs, inputs) = (weight.at.shape[1] as usize, weight.at.shape[2] as usize);
        with_float!("grouped_linear", rows.at.dtype, T => {
            let y = io.outputs[0].of::<T>();
            for group in groups(io.inputs[2].of(), weight.of::<T>()) {
                let x = Mat::new(&rows.of::<T>()[group.span(inputs)], group.rows, inputs);
                let w = Mat::new(group.weight, outputs, inputs);
                matmul(&mut y[group.span(outputs)], outputs, x, w.t(), false, io.scratch);
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let shape = &call.inputs[1].shape;
        let (rows, size) = (call.inputs[0].rows(), (shape[0], shape[1] * shape[2]));
        let (x, w) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let product = (rows, shape[1], shape[2]);
        let group = Experts {
            offsets: input(2),
            first: 0,
            count: size.0,
            each: size.1,
            summed: false,
        };
        Kernel::one(group.launch(product, x, w.t(), Matrix::output(call, 0), false))
    }
}

impl Op for GroupedLinearInputGradient {
    fn name(&self) -> &'static str {
        "grouped_linear_input_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let (dy, weight) = (&inputs[0], &inputs[1]);
        expect_experts(self.name(), weight, &inputs[2])?;
        let fits = dy.columns() == weight.shape[1] && dy.dtype == weight.dtype;
        expect(self.name(), fits, || format!("{dy} by {weight}"))?;
        let shape = [dy.rows(), weight.shape[2]];
        Ok(vec![Output::Fresh(Type::new(&shape, dy.dtype))])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, inputs[0].dtype, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        product(inputs, outputs, outputs[0].elements() * inputs[0].columns())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, weight) = (io.inputs[0], io.inputs[1]);
        let (outputs, inputs) = (weight.at.shape[1] as usize, weight.at.shape[2] as usize);
        with_float!("grouped_linear_input_backward", dy.at.dtype, T => {
            let drows = io.outputs[0].of::<T>();
            for group in groups(io.inputs[2].of(), weight.of::<T>()) {
                let dy = Mat::new(&dy.of::<T>()[group.span(outputs)], group.rows, outputs);
                let w = Mat::new(group.weight, outputs, inputs);
                matmul(&mut drows[group.span(inputs)], inputs, dy, w, false, io.scratch);
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let shape = &call.inputs[1].shape;
        let (rows, size) = (call.inputs[0].rows(), (shape[0], shape[1] * shape[2]));
        let (dy, w) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let product = (rows, shape[2], shape[1]);
        let group = Experts {
            offsets: input(2),
            first: 0,
            count: size.0,
            each: size.1,
            summed: false,
        };
        Kernel::one(group.launch(product, dy, w, Matrix::output(call, 0), false))
    }
}

impl Op for GroupedLinearWeightGradient {
    fn name(&self) -> &'static str {
        "grouped_linear_weight_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3 + usize::from(self.accumulate))?;
        let (dy, rows, offsets) = (&inputs[0], &inputs[1], &inputs[2]);
        let fits = dy.rows() == rows.rows() && dy.dtype == rows.dtype && offsets.elements() > 1;
        expect(self.name(), fits, || {
            format!("{dy} and {rows} by {offsets}")
        })?;
        let shape = [offsets.elements() - 1, dy.columns(), rows.columns()];
        let at = Type::new(&shape, self.format);
        summed(self.name(), at, inputs, self.accumulate, 3)
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, self.format, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        product(inputs, outputs, inputs[0].elements() * inputs[1].columns())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        with_float!("grouped_linear_weight_backward", io.inputs[0].at.dtype, T => {
            with_float!("grouped_linear_weight_backward", self.format, G => {
                self.sum::<T, G>(io);
                Ok(())
            })
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let shape = &call.outputs[0].shape;
        let (dy, x) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let (count, each) = (shape[0], shape[1] * shape[2]);
        let group = Experts {
            offsets: input(2),
            first: 0,
            count,
            each,
            summed: true,
        };
        let product = (shape[1], shape[2], call.inputs[0].rows());
        let into = Matrix::output(call, 0);
        Kernel::one(group.launch(product, dy.t(), x, into, self.accumulate))
    }
}

impl GroupedLinearWeightGradient {
    /// Expert by expert: dyᵀ · rows.
    fn sum<T: Element, G: Element>(&self, io: &mut Io) {
        let (dy, rows, offsets) = (io.inputs[0], io.inputs[1], io.inputs[2].of::<u32>());
        let (outputs, inputs) = (dy.at.columns() as usize, rows.at.columns() as usize);
        let experts = io.outputs[0].of::<G>().chunks_mut(outputs * inputs);
        for (bounds, dweight) in offsets.windows(2).zip(experts) {
            let (from, to) = (bounds[0] as usize, bounds[1] as usize);
            if from == to {
                if !self.accumulate {
                    dweight.fill(G::narrow(0.0));
                }
                continue;
            }
            let dy = &dy.of::<T>()[from * outputs..to * outputs];
            let rows = &rows.of::<T>()[from * inputs..to * inputs];
            let dy = Mat::new(dy, to - from, outputs).t();
            let rows = Mat::new(rows, to - from, inputs);
            matmul(dweight, inputs, dy, rows, self.accumulate, io.scratch);
        }
    }
}

/// Products of experts whose rows are known on the device only: of `count` experts from `first` on, with weights `each` elements apart.
pub(in crate::graph::op) struct Experts {
    pub(in crate::graph::op) offsets: Argument,
    pub(in crate::graph::op) first: u64,
    pub(in crate::graph::op) count: u64,
    pub(in crate::graph::op) each: u64,
    /// Whether an expert's rows are what is summed over; else they are the rows of the result.
    pub(in crate::graph::op) summed: bool,
}

impl Experts {
    /// Blocks for the case that one expert has all rows; those beyond its rows end at once.
    pub(in crate::graph::op) fn launch(
        &self,
        (m, n, k): (u64, u64, u64),
        a: Matrix,
        b: Matrix,
        d: Matrix,
        accumulate: bool,
    ) -> Launch {
        const TILE: u64 = 128;
        let flag = |on: bool| Argument::U32(u32::from(on));
        Launch::new("gemm", "grouped")
            .format("A", a.dtype)
            .format("B", b.dtype)
            .format("D", d.dtype)
            .define("A_TRANSPOSED", u32::from(a.transposed))
            .define("B_TRANSPOSED", u32::from(b.transposed))
            .grid(n.div_ceil(TILE), m.div_ceil(TILE), self.count)
            .given([a.at.into(), b.at.into(), d.at.into(), self.offsets])
            .given([
                (self.first as u32).into(),
                self.each.into(),
                flag(self.summed),
            ])
            .given([m, n, k, a.stride, b.stride, d.stride].map(Argument::U64))
            .given([flag(accumulate)])
    }
}

/// The rows of one expert, of which there is at least one, and its weight.
struct Group<'a, T> {
    from: usize,
    rows: usize,
    weight: &'a [T],
}

impl<T> Group<'_, T> {
    /// Where its rows lie in a matrix of this many columns.
    fn span(&self, columns: usize) -> std::ops::Range<usize> {
        self.from * columns..(self.from + self.rows) * columns
    }
}

/// The experts that have rows.
fn groups<'a, T>(offsets: &'a [u32], weight: &'a [T]) -> impl Iterator<Item = Group<'a, T>> {
    let each = weight.len() / (offsets.len() - 1);
    let experts = offsets.windows(2).zip(weight.chunks(each.max(1)));
    let group = |(bounds, weight): (&[u32], &'a [T])| Group {
        from: bounds[0] as usize,
        rows: (bounds[1] - bounds[0]) as usize,
        weight,
    };
    experts.map(group).filter(|group| group.rows > 0)
}

/// Fails unless these are weights of experts and the offsets of their rows.
fn expect_experts(op: &'static str, weight: &Type, offsets: &Type) -> Result<()> {
    let fits = weight.shape.len() == 3
        && offsets.elements() == weight.shape[0] + 1
        && offsets.dtype == DType::U32;
    expect(op, fits, || {
        format!("weight (E, O, I) and offsets (E + 1); got {weight} and {offsets}")
    })
}

/// The work of products of `pairs` multiply-adds.
fn product(inputs: &[Type], outputs: &[Type], pairs: u64) -> Work {
    Work {
        matmul: 2 * pairs,
        vector: 0,
        bytes: traffic(inputs, outputs),
    }
}
