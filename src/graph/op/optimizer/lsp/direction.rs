//! Adam's step in a gradient's place.

use crate::error::Result;
use crate::graph::op::kernel::{Call, Kernel};
use crate::graph::op::optimizer::adamw::Moments;
use crate::graph::op::optimizer::update::{Layout, State};
use crate::graph::op::{Io, Op, Output, Scalars, Work, traffic};
use crate::graph::tensor::Type;

/// Adam's step of unit rate from a gradient, in the gradient's place and format: `m̂ / (√v̂ + eps)`, PyTorch's form.
///
/// Inputs: gradient, m and v (F32), guard (3) (with `guard`). Outputs overwrite all but the guard. Where the guard says that
/// gradients are not finite, all stay as they are.
#[derive(Debug, Clone)]
pub struct AdamStep {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Whether the gradient is scaled, and the step left out, as a guard says.
    pub guard: bool,
}

impl AdamStep {
    /// The constants of a step.
    fn rule(&self, mut scalars: Scalars) -> Moments {
        // What is stepped from is zero: with this rate the step itself is left.
        scalars.rate = -1.0;
        Moments::of((self.beta1, self.beta2), self.eps, 0.0, &scalars)
    }

    fn layout(&self) -> Layout<'static> {
        Layout {
            parameter: false,
            master: false,
            states: &[State::F32; 2],
            guard: self.guard,
        }
    }
}

impl Op for AdamStep {
    fn name(&self) -> &'static str {
        "adam_step"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        self.layout().outputs(self.name(), inputs)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 15 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let rule = self.rule(io.scalars);
        self.layout().run(self.name(), io, &rule)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let rule = self.rule(call.scalars);
        self.layout().launch("adamw", call, 2, rule.constants())
    }
}
