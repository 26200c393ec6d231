//! The update of a parameter along a gradient that is given, by the rules of estimated ones.

use super::descend::{Cells, Rule, Walk};
use super::{launch, slopes};
use crate::error::Result;
use crate::graph::op::kernel::{self, Call, Kernel, input};
use crate::graph::op::{Io, Op, Output, Work, expect, traffic};
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// One update by [`Rule::Sgd`], [`Rule::Momentum`] or [`Rule::Adam`] of a gradient instead of slopes along directions.
///
/// Inputs: gradient (of θ's type), θ, master (F32, with `master`), states of θ's type. Outputs: θ, master and states, overwritten.
#[derive(Debug, Clone)]
pub struct FirstOrder {
    /// The rule.
    pub rule: Rule,
    /// Weight decay added to the gradient.
    pub decay: f64,
    /// What the step's rate is multiplied by.
    pub factor: f64,
    /// Whether θ has a copy in f32 that is updated in its stead.
    pub master: bool,
}

impl FirstOrder {
    /// The decay of a parameter: biases and norms have none.
    fn decay_of(&self, parameter: &Type) -> f64 {
        match parameter.shape.len() {
            0 | 1 => 0.0,
            _ => self.decay,
        }
    }
}

impl Op for FirstOrder {
    fn name(&self) -> &'static str {
        "descend_gradient"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let kept = usize::from(self.master) + self.rule.states();
        let counted = inputs.len() == 2 + kept && !self.rule.needs_slopes();
        let typed = || {
            let at = &inputs[1];
            let master = !self.master || inputs[2] == at.with(DType::F32);
            let mut states = inputs[2 + usize::from(self.master)..].iter();
            inputs[0] == *at && master && states.all(|t| t == at)
        };
        expect(self.name(), counted && typed(), || {
            format!("takes a gradient, its parameter, and what is kept for it; got {inputs:?}")
        })?;
        Ok((1..2 + kept).map(|of| Output::Overwrite { of }).collect())
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: (3 + 6 * self.rule.states() as u64) * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let Some((parameter, kept)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let decay = self.decay_of(parameter.at);
        let walk = Walk::given(self.rule, decay, self.factor, &io.scalars);
        let (master, states) = kept.split_at_mut(usize::from(self.master));
        let master = master
            .first_mut()
            .map(|m| m.of::<f32>())
            .unwrap_or_default();
        let gradient = io.inputs[0];
        with_float!("descend_gradient", parameter.at.dtype, T => {
            let mut states = states.iter_mut().map(|s| s.of::<T>());
            let states = [states.next(), states.next()].map(Option::unwrap_or_default);
            let cells = Cells {
                first: 0,
                gradient: gradient.of::<T>(),
                parameter: parameter.of::<T>(),
                master,
                states,
            };
            cells.update(&walk);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let decay = self.decay_of(&call.inputs[1]);
        let walk = Walk::given(self.rule, decay, self.factor, &call.scalars);
        let launch = launch("descend", call.format(1), call.inputs[1].elements());
        let launch = launch.define("GIVEN", 1u32);
        let none = [kernel::Argument::Null; 3];
        let launch = launch
            .given([input(0)])
            .given(slopes(0, 0).unwrap_or_default());
        walk.launch(
            launch.given(none),
            call,
            (1, self.master),
            [0u64.into(), 0.0f64.into(), 0.0f64.into()],
        )
    }
}
