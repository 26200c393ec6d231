//! Activations as model code spells them: one operation, or composed of several.

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::Tensor;
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Activation, Mlp, Spelling};

impl Torch {
    /// The activation of an MLP.
    ///
    /// # Errors
    /// Where an operation halts.
    pub fn activation(&self, x: &Tensor, mlp: Mlp) -> Made {
        match (mlp.spelling, mlp.activation) {
            (Spelling::GeluNew, _) => self.gelu_new(x),
            (Spelling::GeluFast, _) => self.gelu_fast(x),
            (Spelling::GeluPython, _) => self.gelu_python(x),
            (Spelling::Fused, Activation::Relu) => self.relu(x),
            (Spelling::Fused, Activation::Silu) => self.silu(x),
            (Spelling::Fused, Activation::Gelu | Activation::GeluTanh) => self.gelu(x),
        }
    }

    /// `0.5 * x * (1 + tanh(c * (x + 0.044715 * pow(x, 3))))`.
    fn gelu_new(&self, x: &Tensor) -> Made {
        let half = self.scaled(x)?;
        let cubic = self.scaled(self.pow(x)?)?;
        let inner = self.add(x, cubic)?;
        let curve = self.tanh(self.scaled(inner)?)?;
        self.mul(half, self.shifted(curve)?)
    }

    /// `0.5 * x * (1 + tanh(x * c * (1 + 0.044715 * x * x)))`.
    fn gelu_fast(&self, x: &Tensor) -> Made {
        let half = self.scaled(x)?;
        let line = self.scaled(x)?;
        let square = self.mul(self.scaled(x)?, x)?;
        let curve = self.tanh(self.mul(line, self.shifted(square)?)?)?;
        self.mul(half, self.shifted(curve)?)
    }

    /// `x * 0.5 * (1 + erf(x / sqrt(2)))`.
    fn gelu_python(&self, x: &Tensor) -> Made {
        let half = self.scaled(x)?;
        let curve = self.erf(self.scaled(x)?)?;
        self.mul(half, self.shifted(curve)?)
    }

    /// `erf(x)`: its gradient is `c * exp(-x.pow(2)) * g`.
    fn erf(&self, x: Tensor) -> Made {
        let mut record = Recording::new(self, "erf", &[&x]);
        record.save(&x)?;
        self.op("erf");
        self.reads(&[&x]);
        let made = self.empty_like(&x, x.dtype);
        let formula = |torch: &Torch, g: &[Maybe], saved: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let steps =
                ["pow", "neg", "exp", "mul"].map(|name| torch.plain_from(name, saved[0].clone()));
            let made = torch.plain_from("mul", g.clone());
            drop(steps);
            Ok(vec![Some(made)])
        };
        record.finish(made, false, Box::new(formula))
    }
}
