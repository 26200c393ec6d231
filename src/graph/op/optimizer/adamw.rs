//! AdamW.

use super::update::{Layout, Part, Rule, STATES, State};
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel};
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Io, Op, Output, Scalars, Work, traffic};
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
    fn layout(&self) -> Layout<'static> {
        Layout {
            parameter: true,
            master: self.master,
            states: &[State::F32; 2],
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
        let (betas, decay) = ((self.beta1, self.beta2), self.decay);
        let rule = Moments::of(betas, self.eps, decay, &io.scalars);
        self.layout().run(self.name(), io, &rule)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let betas = (self.beta1, self.beta2);
        let rule = Moments::of(betas, self.eps, self.decay, &call.scalars);
        self.layout().launch(self.name(), call, 2, rule.constants())
    }
}

/// The constants of one step.
pub(super) struct Moments {
    /// What remains of the weight.
    pub(super) keep: f32,
    /// Share of the gradient in the mean.
    pub(super) mean: f32,
    /// What remains of the mean square.
    pub(super) beta2: f32,
    /// Share of the gradient's square in it.
    pub(super) square: f32,
    /// What its root is multiplied by.
    pub(super) root: f32,
    /// What is added to that.
    pub(super) eps: f32,
    /// What the ratio is multiplied by.
    pub(super) rate: f32,
}

impl Moments {
    /// Of betas, eps and weight decay, at the rate and count of the step.
    pub(super) fn of(
        (beta1, beta2): (f64, f64),
        eps: f64,
        decay: f64,
        scalars: &Scalars,
    ) -> Moments {
        let (step, rate) = (scalars.step as f64, f64::from(scalars.rate));
        let correction = |beta: f64| 1.0 - beta.powf(step);
        Moments {
            keep: (1.0 - rate * decay) as f32,
            mean: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            square: (1.0 - beta2) as f32,
            root: (1.0 / correction(beta2).sqrt()) as f32,
            eps: eps as f32,
            rate: (rate / correction(beta1)) as f32,
        }
    }

    /// Its constants, as kernels take them.
    pub(super) fn constants(&self) -> [Argument; 7] {
        let Moments {
            keep,
            mean,
            beta2,
            square,
            root,
            eps,
            rate,
        } = *self;
        [keep, mean, beta2, square, root, eps, rate].map(Argument::F32)
    }

    /// New weights and moments.
    pub(super) fn step(&self, gradient: &[f32], weight: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        step(self, gradient, weight, m, v);
    }
}

impl Rule for Moments {
    fn apply(
        &self,
        _: usize,
        gradient: &[f32],
        weight: &mut [f32],
        [m, v, ..]: &mut [Part<'_>; STATES],
    ) {
        self.step(gradient, weight, m.of(), v.of());
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
