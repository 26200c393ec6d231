//! Stochastic gradient descent.

use super::update::{Layout, Part, Rule, STATES, State};
use crate::error::Result;
use crate::graph::op::kernel::{Call, Kernel};
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Io, Op, Output, Work, traffic};
use crate::graph::tensor::Type;

/// SGD in PyTorch's form, with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013), at the rate of the step.
///
/// Inputs: gradient, parameter, master (F32, with `master`), momentum buffer (F32, zero before the first step; only
/// where `momentum` is not 0), guard (3) (with `guard`, see [`ClipScale`](super::ClipScale)). Outputs overwrite all
/// between gradient and guard, in this order.
#[derive(Debug, Clone)]
pub struct Sgd {
    /// What remains of the buffer each step; 0 for no buffer.
    pub momentum: f64,
    /// Weight decay λ: λ · weight is added to the gradient.
    pub decay: f64,
    /// Whether to look ahead along the buffer.
    pub nesterov: bool,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

impl Sgd {
    fn layout(&self) -> Layout<'static> {
        Layout {
            parameter: true,
            master: self.master,
            states: if self.momentum == 0.0 {
                &[]
            } else {
                &[State::F32]
            },
            guard: self.guard,
        }
    }
}

impl Op for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        self.layout().outputs(self.name(), inputs)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let each = if self.momentum == 0.0 { 5 } else { 9 };
        Work {
            matmul: 0,
            vector: each * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let rule = Momentum {
            rate: io.scalars.rate,
            momentum: self.momentum as f32,
            decay: self.decay as f32,
            nesterov: self.nesterov,
        };
        self.layout().run(self.name(), io, &rule)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (momentum, decay) = (self.momentum as f32, self.decay as f32);
        let constants = [call.scalars.rate, momentum, decay].map(Into::into);
        let nesterov = u32::from(self.nesterov).into();
        let constants = constants.into_iter().chain([nesterov]);
        self.layout().launch(self.name(), call, 1, constants)
    }
}

/// The constants of one step.
struct Momentum {
    rate: f32,
    momentum: f32,
    decay: f32,
    nesterov: bool,
}

impl Rule for Momentum {
    fn apply(
        &self,
        _: usize,
        gradient: &[f32],
        weight: &mut [f32],
        [buffer, ..]: &mut [Part<'_>; STATES],
    ) {
        let buffer = buffer.of();
        match buffer.is_empty() {
            true => descend(self, gradient, weight),
            false => roll(self, gradient, weight, buffer),
        }
    }
}

vectorized! {
    /// Without a buffer.
    fn descend(rule: &Momentum, gradient: &[f32], weight: &mut [f32]) {
        for (g, w) in gradient.iter().zip(weight) {
            *w -= rule.rate * (g + rule.decay * *w);
        }
    }

    /// With a buffer.
    fn roll(rule: &Momentum, gradient: &[f32], weight: &mut [f32], buffer: &mut [f32]) {
        for ((g, w), buffer) in gradient.iter().zip(weight).zip(buffer) {
            let g = g + rule.decay * *w;
            *buffer = rule.momentum * *buffer + g;
            let ahead = g + rule.momentum * *buffer;
            *w -= rule.rate * if rule.nesterov { ahead } else { *buffer };
        }
    }
}
