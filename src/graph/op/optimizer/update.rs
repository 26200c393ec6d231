//! The walk over one parameter's elements that all optimizers share.

use crate::error::Result;
use crate::graph::op::simd;
use crate::graph::op::{Element, Io, Output, expect, expect_inputs};
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// Elements one task updates, and elements it holds in f32 at a time.
const CHUNK: usize = 16_384;
const BLOCK: usize = 512;

/// What inputs an update has beside gradient and parameter, and what it overwrites.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Whether input 2 is the parameter in f32.
    pub(super) master: bool,
    /// F32 states that follow.
    pub(super) states: usize,
    /// Whether the last input is a guard.
    pub(super) guard: bool,
}

/// One optimizer's arithmetic.
pub(super) trait Rule: Sync {
    /// New weights and states from a gradient; `states` are empty where the optimizer has none.
    fn apply(&self, gradient: &[f32], weight: &mut [f32], states: [&mut [f32]; 2]);
}

impl Layout {
    /// The outputs: parameter, master and states, each overwritten.
    pub(super) fn outputs(self, op: &'static str, inputs: &[Type]) -> Result<Vec<Output>> {
        let kept = usize::from(self.master) + self.states;
        expect_inputs(op, inputs, 2 + kept + usize::from(self.guard))?;
        let wide = inputs[1].with(DType::F32);
        let fits =
            inputs[0].shape == wide.shape && inputs[2..2 + kept].iter().all(|state| *state == wide);
        expect(op, fits, || {
            format!("gradient, parameter and F32 states of one shape; got {inputs:?}")
        })?;
        let guard = Type::new(&[3], DType::F32);
        let guarded = !self.guard || inputs.last() == Some(&guard);
        expect(op, guarded, || {
            format!("a guard {guard} last; got {inputs:?}")
        })?;
        Ok((1..2 + kept).map(|of| Output::Overwrite { of }).collect())
    }

    /// Applies `rule` to the whole parameter, unless the guard says that the gradients are not finite.
    pub(super) fn run(self, op: &'static str, io: &mut Io, rule: &impl Rule) -> Result<()> {
        let coefficient = match (self.guard, io.inputs.last()) {
            (true, Some(guard)) => match guard.of::<f32>() {
                [_, 0.0, ..] => return Ok(()),
                guard => guard[0],
            },
            _ => 1.0,
        };
        let gradient = io.inputs[0];
        let Some((parameter, states)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let mut states = states.iter_mut().map(|s| s.of::<f32>());
        let master = if self.master { states.next() } else { None };
        let states = [master, states.next(), states.next()].map(Option::unwrap_or_default);
        with_float!(op, gradient.at.dtype, G => with_float!(op, parameter.at.dtype, P => {
            let cells = Cells { gradient: gradient.of::<G>(), parameter: parameter.of::<P>(), states };
            cells.update(coefficient, rule);
            Ok(())
        }))
    }
}

/// A range of a parameter's elements: gradient, parameter, and master and states where there are any.
struct Cells<'a, G, P> {
    gradient: &'a [G],
    parameter: &'a mut [P],
    states: [&'a mut [f32]; 3],
}

impl<'a, G: Element, P: Element> Cells<'a, G, P> {
    /// Every element is on its own, so it does not matter how the range is halved.
    fn update(self, coefficient: f32, rule: &impl Rule) {
        if self.gradient.len() <= CHUNK {
            return self.blocks(coefficient, rule);
        }
        let (left, right) = self.halve();
        rayon::join(
            || left.update(coefficient, rule),
            || right.update(coefficient, rule),
        );
    }

    /// Both halves.
    fn halve(self) -> (Cells<'a, G, P>, Cells<'a, G, P>) {
        let middle = self.gradient.len() / 2;
        let gradient = self.gradient.split_at(middle);
        let parameter = self.parameter.split_at_mut(middle);
        let [a, b, c] = self
            .states
            .map(|state| state.split_at_mut(middle.min(state.len())));
        let half = |gradient, parameter, states| Cells {
            gradient,
            parameter,
            states,
        };
        (
            half(gradient.0, parameter.0, [a.0, b.0, c.0]),
            half(gradient.1, parameter.1, [a.1, b.1, c.1]),
        )
    }

    /// Block by block: widen, apply the rule, round.
    fn blocks(self, coefficient: f32, rule: &impl Rule) {
        let [master, first, second] = self.states;
        let (mut gradient, mut weight) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for from in (0..self.gradient.len()).step_by(BLOCK) {
            let span = from..self.gradient.len().min(from + BLOCK);
            let gradient = &mut gradient[..span.len()];
            simd::widen(&self.gradient[span.clone()], gradient);
            simd::scale(gradient, coefficient);
            let parameter = &mut self.parameter[span.clone()];
            let weight = &mut weight[..span.len()];
            match master.is_empty() {
                true => simd::widen(parameter, weight),
                false => weight.copy_from_slice(&master[span.clone()]),
            }
            rule.apply(gradient, weight, [part(first, &span), part(second, &span)]);
            if !master.is_empty() {
                master[span].copy_from_slice(weight);
            }
            simd::narrow(weight, parameter);
        }
    }
}

/// The range of a state, or nothing where there is no state.
fn part<'a>(state: &'a mut [f32], span: &std::ops::Range<usize>) -> &'a mut [f32] {
    state.get_mut(span.clone()).unwrap_or_default()
}
