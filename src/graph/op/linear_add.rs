//! A product added to what is there: the second half of a low-rank update, which needs no room of its own.

use super::gemm::{matmul, matmul_scratch};
use super::kernel::{Call, Kernel, Matrix, Task};
use super::matmul::{LinearInputGradient, LinearWeightGradient, gemm, mat};
use super::{Io, Op, Output, Work, expect, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::elementwise::Add;
use crate::graph::op::matmul::Linear;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// `y (N, O) += x (N, I) · weight (O, I)ᵀ`: inputs x, weight, y.
#[derive(Debug, Clone)]
pub struct LinearAdd;

impl Op for LinearAdd {
    fn name(&self) -> &'static str {
        "linear_add"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let good = inputs.len() == 3
            && inputs[1].shape.len() == 2
            && inputs[0].columns() == inputs[1].columns()
            && inputs[2].shape == [inputs[0].rows(), inputs[1].rows()]
            && inputs.iter().all(|t| t.dtype == inputs[0].dtype);
        expect(self.name(), good, || {
            format!("takes x (N, I), weight (O, I), y (N, O); got {inputs:?}")
        })?;
        Ok(vec![Output::Overwrite { of: 2 }])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, inputs[0].dtype, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 2 * outputs[0].elements() * inputs[0].columns(),
            vector: outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        if at.wants(1) {
            let (x, sum) = (at.input(0), at.take_sum(1));
            let op = LinearWeightGradient {
                format: at.format(1),
                accumulate: sum.is_some(),
            };
            let inputs: Vec<_> = [dy, x].into_iter().chain(sum).collect();
            let dweight = at.emit(op, &inputs)?[0];
            at.give(1, dweight)?;
        }
        if at.wants(0) {
            let weight = at.input(1);
            let dx = at.emit(LinearInputGradient, &[dy, weight])?[0];
            at.give(0, dx)?;
        }
        at.pass(0, 2, false)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let (x, weight) = (at.input(0), at.input(1));
        let owned = at.of(2).filter(|_| at.owns(2));
        let mut terms: Vec<_> = at.of(2).filter(|_| owned.is_none()).into_iter().collect();
        let mut sum = owned;
        for factors in [
            at.of(0).map(|dx| [dx, weight]),
            at.of(1).map(|dweight| [x, dweight]),
        ] {
            let Some([x, weight]) = factors else { continue };
            sum = Some(match sum {
                Some(sum) => at.emit(LinearAdd, &[x, weight, sum])?[0],
                None => at.emit(Linear { bias: false }, &[x, weight])?[0],
            });
        }
        match (sum, terms.pop()) {
            (Some(sum), Some(term)) => {
                let sum = at.emit(Add, &[term, sum])?[0];
                at.give(0, sum);
            }
            (Some(sum), None) => at.give(0, sum),
            (None, _) => at.pass(2),
        }
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, w) = (io.inputs[0], io.inputs[1]);
        with_float!(self.name(), x.at.dtype, T => {
            let y = io.outputs[0].of::<T>();
            let columns = w.at.rows() as usize;
            matmul(y, columns, mat::<T>(x), mat::<T>(w).t(), true, io.scratch);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (x, w) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let mut gemm = gemm(call, x, w.t(), call.inputs[0].columns());
        gemm.accumulate = true;
        Kernel::Run(vec![Task::Gemm(gemm)])
    }
}
