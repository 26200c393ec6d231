//! Taking a step that was made elsewhere.

use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel};
use crate::graph::op::optimizer::update::{
    Layout, Part, Rule, STATES, coefficient, expect_guard, walk,
};
use crate::graph::op::{Io, Op, Output, Scalars, ViewMut, Work, traffic};
use crate::graph::tensor::Type;

/// `w ← w (1 - rate λ) - rate · step`.
///
/// Inputs: step, parameter, master (F32, with `master`), guard (3) (with `guard`). Outputs overwrite parameter and master. The
/// guard only says whether the step is taken: it was scaled where it was made.
#[derive(Debug, Clone)]
pub struct TakeStep {
    /// Weight decay λ.
    pub decay: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether a guard may say to leave the step out.
    pub guard: bool,
}

impl Op for TakeStep {
    fn name(&self) -> &'static str {
        "take_step"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let layout = Layout {
            parameter: true,
            master: self.master,
            states: &[],
            guard: self.guard,
        };
        expect_guard(self.name(), self.guard, inputs)?;
        layout.outputs(self.name(), inputs)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 3 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        if coefficient(self.guard, io).is_none() {
            return Ok(());
        }
        let rule = Descend::of(&io.scalars, self.decay);
        let step = io.inputs[0];
        let Some((parameter, masters)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let master = masters.first_mut().map(ViewMut::of).unwrap_or_default();
        let none = Default::default();
        walk(self.name(), 1.0, step, parameter, master, none, &rule)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let Descend { rate, keep } = Descend::of(&call.scalars, self.decay);
        let layout = Layout {
            parameter: true,
            master: self.master,
            states: &[],
            guard: self.guard,
        };
        layout.launch(self.name(), call, 0, [keep, rate].map(Argument::F32))
    }
}

/// The constants of one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descend {
    pub(super) rate: f32,
    pub(super) keep: f32,
}

impl Descend {
    /// At the rate of the step, with weight decay.
    pub(super) fn of(scalars: &Scalars, decay: f64) -> Descend {
        let rate = f64::from(scalars.rate);
        Descend {
            rate: rate as f32,
            keep: (1.0 - rate * decay) as f32,
        }
    }

    /// One weight after one step.
    #[inline(always)]
    pub(super) fn take(self, weight: f32, step: f32) -> f32 {
        weight * self.keep - self.rate * step
    }
}

impl Rule for Descend {
    fn apply(&self, _: usize, step: &[f32], weight: &mut [f32], _: &mut [Part<'_>; STATES]) {
        for (w, step) in weight.iter_mut().zip(step) {
            *w = self.take(*w, *step);
        }
    }
}
