//! Lion.

use half::bf16;

use super::update::{Layout, Part, Rule, STATES, State};
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel};
use crate::graph::op::simd::{self, vectorized};
use crate::graph::op::{Io, Op, Output, Work, traffic};
use crate::graph::tensor::{DType, Type};

/// Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2): a step of the rate along the sign of a mix of momentum and gradient.
///
/// Inputs: gradient, parameter, master (F32, with `master`), momentum (zero before the first step), guard (3) (with
/// `guard`, see [`ClipScale`](super::ClipScale)). Outputs overwrite all between gradient and guard, in this order.
#[derive(Debug, Clone)]
pub struct Lion {
    /// Share of the momentum in what the sign is taken of.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Weight decay λ: the weight shrinks by rate · λ.
    pub decay: f64,
    /// Format of the momentum, F32 or Bf16.
    pub momentum: DType,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

impl Lion {
    fn with_layout<R>(&self, run: impl FnOnce(Layout) -> R) -> R {
        let momentum = State {
            dtype: self.momentum,
            per: 1,
        };
        run(Layout {
            parameter: true,
            master: self.master,
            states: &[momentum],
            guard: self.guard,
        })
    }

    /// The constants of a step at this rate.
    fn rule(&self, rate: f32) -> Signs {
        Signs {
            keep: (1.0 - f64::from(rate) * self.decay) as f32,
            rate,
            mix: (self.beta1 as f32, (1.0 - self.beta1) as f32),
            hold: (self.beta2 as f32, (1.0 - self.beta2) as f32),
            narrow: self.momentum == DType::Bf16,
        }
    }
}

impl Op for Lion {
    fn name(&self) -> &'static str {
        "lion"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        self.with_layout(|layout| layout.outputs(self.name(), inputs))
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 10 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let rule = self.rule(io.scalars.rate);
        self.with_layout(|layout| layout.run(self.name(), io, &rule))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let Signs {
            keep,
            rate,
            mix,
            hold,
            ..
        } = self.rule(call.scalars.rate);
        let constants = [keep, rate, mix.0, mix.1, hold.0, hold.1].map(Argument::F32);
        self.with_layout(|layout| layout.launch(self.name(), call, 1, constants))
    }
}

/// The constants of one step.
struct Signs {
    keep: f32,
    rate: f32,
    /// Shares of momentum and gradient in the step, and in the next momentum.
    mix: (f32, f32),
    hold: (f32, f32),
    /// Whether the momentum is in bf16.
    narrow: bool,
}

impl Rule for Signs {
    fn apply(
        &self,
        _: usize,
        gradient: &[f32],
        weight: &mut [f32],
        [momentum, ..]: &mut [Part<'_>; STATES],
    ) {
        if !self.narrow {
            return step(self, gradient, weight, momentum.of());
        }
        const WIDE: usize = 64;
        let mut wide = [0.0f32; WIDE];
        let narrow = momentum.of::<bf16>().chunks_mut(WIDE);
        let pieces = gradient.chunks(WIDE).zip(weight.chunks_mut(WIDE));
        for ((gradient, weight), narrow) in pieces.zip(narrow) {
            let wide = &mut wide[..narrow.len()];
            simd::widen(narrow, wide);
            step(self, gradient, weight, wide);
            simd::narrow(wide, narrow);
        }
    }
}

vectorized! {
    /// Algorithm 2 of the paper.
    fn step(rule: &Signs, gradient: &[f32], weight: &mut [f32], momentum: &mut [f32]) {
        for ((g, w), m) in gradient.iter().zip(weight).zip(momentum) {
            let mixed = rule.mix.0 * *m + rule.mix.1 * g;
            let sign = f32::from(i8::from(mixed > 0.0) - i8::from(mixed < 0.0));
            *w = *w * rule.keep - rule.rate * sign;
            *m = rule.hold.0 * *m + rule.hold.1 * g;
        }
    }
}
