//! AdamW.

use super::update::{Layout, Rule};
use crate::error::Result;
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Io, Op, Output, Work, traffic};
use crate::graph::tensor::Type;

/// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), in PyTorch's form, with the rate and count of the step.
///
/// Inputs: gradient, parameter, master (F32, with `master`), m and v (F32, zero before the first step), guard (3)
/// (with `guard`, see [`ClipScale`](super::ClipScale)). Outputs overwrite all between gradient and guard, in this order.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Weight decay λ: the weight shrinks by rate · λ.
    pub decay: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

impl AdamW {
    fn layout(&self) -> Layout {
        Layout {
            master: self.master,
            states: 2,
            guard: self.guard,
        }
    }
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
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
        let (step, rate) = (io.scalars.step as f64, f64::from(io.scalars.rate));
        let correction = |beta: f64| 1.0 - beta.powf(step);
        let rule = Moments {
            keep: (1.0 - rate * self.decay) as f32,
            mean: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            square: (1.0 - self.beta2) as f32,
            root: (1.0 / correction(self.beta2).sqrt()) as f32,
            eps: self.eps as f32,
            rate: (rate / correction(self.beta1)) as f32,
        };
        self.layout().run(self.name(), io, &rule)
    }
}

/// The constants of one step.
struct Moments {
    keep: f32,
    mean: f32,
    beta2: f32,
    square: f32,
    root: f32,
    eps: f32,
    rate: f32,
}

impl Rule for Moments {
    fn apply(&self, gradient: &[f32], weight: &mut [f32], [m, v]: [&mut [f32]; 2]) {
        step(self, gradient, weight, m, v);
    }
}

vectorized! {
    /// Algorithm 2 of the paper, with the bias corrections folded into `rate` and `root`.
    fn step(rule: &Moments, gradient: &[f32], weight: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let moments = m.iter_mut().zip(v);
        for ((g, w), (m, v)) in gradient.iter().zip(weight).zip(moments) {
            *m += rule.mean * (g - *m);
            *v = rule.beta2 * *v + rule.square * g * g;
            let step = *m / (v.sqrt() * rule.root + rule.eps);
            *w = *w * rule.keep - rule.rate * step;
        }
    }
}
