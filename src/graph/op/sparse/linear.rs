//! A linear layer whose weight gets its gradient between two sparse projections.

use super::{SparseProject, expect_sparse};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::kernel::{Call, Kernel, Memory, Task, at};
use crate::graph::op::matmul::{BiasGradient, Linear, LinearInputGradient, LinearWeightGradient};
use crate::graph::op::{Io, Op, Output, Work, expect};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;

/// `y (N, O) = x (N, I) · weight (O, I)ᵀ (+ bias (O))`, whose weight's gradient is `Pᵀ (dyᵀ x) Q` (d, d) (F32), made as
/// `(dy P)ᵀ (x Q)`: neither x is kept nor is a matrix of the weight's size made (Chen et al. 2024, arXiv:2406.10181).
///
/// Inputs: x, weight, `x Q` (N, d), values (O, r) and columns (O, r) of P, and with `bias` the bias.
#[derive(Debug, Clone)]
pub struct ProjectedLinear {
    /// Columns of P and Q: d.
    pub width: u64,
    /// Whether a bias is added.
    pub bias: bool,
}

impl ProjectedLinear {
    /// The layer it is going forward.
    fn plain(&self) -> Linear {
        Linear { bias: self.bias }
    }

    /// What that layer reads: x, weight and bias.
    fn read(&self, inputs: &[Type]) -> Vec<Type> {
        let bias = inputs.get(5).filter(|_| self.bias);
        inputs[..2].iter().chain(bias).cloned().collect()
    }
}

impl Op for ProjectedLinear {
    fn name(&self) -> &'static str {
        "projected_linear"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let good = inputs.len() == 5 + usize::from(self.bias)
            && inputs[2] == Type::new(&[inputs[0].rows(), self.width], inputs[0].dtype);
        expect(self.name(), good, || {
            format!("takes x (N, I), weight (O, I), x Q (N, d), P, bias (O); got {inputs:?}")
        })?;
        let matrix = [&inputs[3], &inputs[4]];
        expect_sparse(self.name(), matrix, inputs[1].rows(), self.width)?;
        self.plain().outputs(&self.read(inputs))
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        self.plain().scratch(inputs, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        self.plain().work(&self.read(inputs), outputs)
    }
    fn gradient(&self, _: &[Type], index: usize) -> Option<Type> {
        (index == 1).then(|| Type::new(&[self.width, self.width], DType::F32))
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        if at.wants(1) {
            let (xq, values, columns) = (at.input(2), at.input(3), at.input(4));
            let project = SparseProject { width: self.width };
            let dyp = at.emit(project, &[dy, values, columns])?[0];
            let sum = at.take_sum(1);
            let op = LinearWeightGradient {
                format: DType::F32,
                accumulate: sum.is_some(),
            };
            let inputs: Vec<_> = [dyp, xq].into_iter().chain(sum).collect();
            let dweight = at.emit(op, &inputs)?[0];
            at.give(1, dweight)?;
        }
        if self.bias && at.wants(5) {
            let format = at.format(5);
            let dbias = at.emit(BiasGradient { format }, &[dy])?[0];
            at.give(5, dbias)?;
        }
        if at.wants(0) {
            let weight = at.input(1);
            let dx = at.emit(LinearInputGradient, &[dy, weight])?[0];
            at.give(0, dx)?;
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        self.plain().tangent_with(at, 5)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        if self.bias {
            io.inputs.swap(2, 5);
        }
        self.plain().cpu(io)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let mut kernel = Linear { bias: false }.cuda(call);
        if let (true, Kernel::Run(tasks)) = (self.bias, &mut kernel)
            && let Some(Task::Gemm(gemm)) = tasks.first_mut()
        {
            gemm.bias = Some(at(Memory::Input(5), 0));
        }
        kernel
    }
}
