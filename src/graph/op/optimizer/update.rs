//! The walk over one parameter's elements that all optimizers share.

use std::ops::Range;

use bytemuck::Pod;

use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, input};
use crate::graph::op::simd;
use crate::graph::op::{Element, Io, Output, View, ViewMut, expect, expect_inputs};
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// Elements one task updates, and elements it holds in f32 at a time.
const CHUNK: usize = 16_384;
const BLOCK: usize = 512;

/// Most states an update has.
pub(super) const STATES: usize = 4;

/// A state beside a parameter.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// Its number format.
    pub(super) dtype: DType,
    /// Elements of the parameter that share one entry; divides `BLOCK`.
    pub(super) per: u64,
}

impl State {
    /// One f32 for each element.
    pub(super) const F32: State = State {
        dtype: DType::F32,
        per: 1,
    };

    /// Its type beside a parameter: the same shape, or a row of what is shared.
    pub(super) fn at(self, parameter: &Type) -> Type {
        match self.per {
            1 => parameter.with(self.dtype),
            per => Type::new(&[parameter.elements().div_ceil(per)], self.dtype),
        }
    }
}

/// What inputs an update has, and what it overwrites.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'a> {
    /// Whether gradient and parameter are inputs 0 and 1; else input 0 is a gradient, and its step takes its place.
    pub(super) parameter: bool,
    /// Whether the next input is the parameter in f32.
    pub(super) master: bool,
    /// States that follow.
    pub(super) states: &'a [State],
    /// Whether the last input is a guard.
    pub(super) guard: bool,
}

/// One optimizer's arithmetic.
pub(super) trait Rule: Sync {
    /// New weights and states from a gradient, of elements `at..`; states are empty where the optimizer has none.
    fn apply(
        &self,
        at: usize,
        gradient: &[f32],
        weight: &mut [f32],
        states: &mut [Part<'_>; STATES],
    );
}

impl Layout<'_> {
    /// The outputs: parameter, master and states, each overwritten.
    pub(super) fn outputs(self, op: &'static str, inputs: &[Type]) -> Result<Vec<Output>> {
        let first = usize::from(self.parameter);
        let kept = usize::from(self.master) + self.states.len();
        expect_inputs(op, inputs, first + 1 + kept + usize::from(self.guard))?;
        let at = &inputs[first];
        let master = self.master.then_some(State::F32);
        let wanted = master.iter().chain(self.states);
        let fits = inputs[0].shape == at.shape
            && wanted
                .zip(&inputs[first + 1..])
                .all(|(state, found)| state.at(at) == *found);
        expect(op, fits, || {
            format!("gradient, parameter and states of its shape; got {inputs:?}")
        })?;
        expect_guard(op, self.guard, inputs)?;
        Ok((first..=first + kept)
            .map(|of| Output::Overwrite { of })
            .collect())
    }

    /// The launch of a kernel of `update.cu`: gradient, parameter, master, `states` states and guard, of which the missing are null, and the count
    /// of elements; then the rule's constants.
    pub(super) fn launch(
        self,
        entry: &'static str,
        call: &Call,
        states: usize,
        constants: impl IntoIterator<Item = Argument>,
    ) -> Kernel {
        let first = usize::from(self.parameter);
        let mut next = first + 1;
        let mut take = |there: bool| match there {
            true => {
                next += 1;
                input(next - 1)
            }
            false => Argument::Null,
        };
        let kept: Vec<_> = [self.master]
            .into_iter()
            .chain((0..states).map(|i| i < self.states.len()))
            .chain([self.guard])
            .map(&mut take)
            .collect();
        let gradient = if self.parameter {
            input(0)
        } else {
            Argument::Null
        };
        let elements = call.inputs[first].elements();
        let momentum = self.states.first().map_or(DType::F32, |state| state.dtype);
        let launch = Launch::new("update", entry)
            .format("G", call.format(0))
            .format("P", call.format(first))
            .format(
                "M",
                if momentum == DType::U8 {
                    DType::F32
                } else {
                    momentum
                },
            )
            .elements(elements)
            .given([gradient, input(first)])
            .given(kept)
            .given([elements.into()]);
        Kernel::one(launch.given(constants))
    }

    /// Applies `rule` to the whole parameter, unless the guard says that the gradients are not finite.
    pub(super) fn run(self, op: &'static str, io: &mut Io, rule: &impl Rule) -> Result<()> {
        let Some(coefficient) = coefficient(self.guard, io) else {
            return Ok(());
        };
        let gradient = io.inputs[0];
        let mut outputs = io.outputs.iter_mut();
        let Some(parameter) = outputs.next() else {
            return Ok(());
        };
        let master = match self.master {
            true => outputs.next().map(ViewMut::of),
            false => None,
        };
        let mut parts = self.states.iter().zip(outputs);
        let states = std::array::from_fn(|_| {
            let next = parts.next();
            next.map_or_else(Part::default, |(state, view)| Part::new(view, *state))
        });
        let master = master.unwrap_or_default();
        walk(op, coefficient, gradient, parameter, master, states, rule)
    }
}

/// Fails unless the last input is a guard where there must be one.
pub(super) fn expect_guard(op: &'static str, guard: bool, inputs: &[Type]) -> Result<()> {
    let at = Type::new(&[3], DType::F32);
    expect(op, !guard || inputs.last() == Some(&at), || {
        format!("a guard {at} last; got {inputs:?}")
    })
}

/// What the guard multiplies gradients by, 1 without one; nothing where it says that they are not finite.
pub(super) fn coefficient(guard: bool, io: &Io) -> Option<f32> {
    match (guard, io.inputs.last()) {
        (true, Some(guard)) => match guard.of::<f32>() {
            [_, 0.0, ..] => None,
            guard => Some(guard[0]),
        },
        _ => Some(1.0),
    }
}

/// Applies `rule` to a parameter, or to a gradient in its own place where `gradient` is empty.
pub(super) fn walk(
    op: &'static str,
    coefficient: f32,
    gradient: View,
    parameter: &mut ViewMut,
    master: &mut [f32],
    states: [Part; STATES],
    rule: &impl Rule,
) -> Result<()> {
    with_float!(op, gradient.at.dtype, G => with_float!(op, parameter.at.dtype, P => {
        let cells = Cells {
            at: 0,
            gradient: gradient.of::<G>(),
            parameter: parameter.of::<P>(),
            master,
            states,
        };
        cells.update(coefficient, rule);
        Ok(())
    }))
}

/// The entries of a state that belong to a range of elements; none where there is no state.
#[derive(Debug)]
pub(super) struct Part<'a> {
    bytes: &'a mut [u8],
    /// Bytes of an entry, and elements that share one.
    entry: usize,
    per: usize,
}

impl Default for Part<'_> {
    fn default() -> Self {
        Part {
            bytes: &mut [],
            entry: 1,
            per: 1,
        }
    }
}

impl<'a> Part<'a> {
    /// A whole state.
    pub(super) fn new(view: &'a mut ViewMut, state: State) -> Part<'a> {
        Part {
            bytes: view.bytes,
            entry: state.dtype.bytes() as usize,
            per: state.per as usize,
        }
    }

    /// The entries; none where there is no state.
    pub(super) fn of<T: Pod>(&mut self) -> &mut [T] {
        // An empty slice may be misaligned for `T`.
        match self.bytes.is_empty() {
            true => &mut [],
            false => bytemuck::cast_slice_mut(self.bytes),
        }
    }

    /// The entries of elements `..element` and those of the rest.
    fn split(self, element: usize) -> (Part<'a>, Part<'a>) {
        let Part { bytes, entry, per } = self;
        let middle = (element / per * entry).min(bytes.len());
        let (left, right) = bytes.split_at_mut(middle);
        let part = |bytes| Part { bytes, entry, per };
        (part(left), part(right))
    }

    /// The entries of a range of elements.
    fn span(&mut self, span: &Range<usize>) -> Part<'_> {
        let Part { entry, per, .. } = *self;
        let range = span.start / per * entry..span.end.div_ceil(per) * entry;
        let bytes = self.bytes.get_mut(range).unwrap_or_default();
        Part { bytes, entry, per }
    }
}

/// A range of a parameter's elements: gradient, parameter, and master and states where there are any.
struct Cells<'a, G, P> {
    /// The first element.
    at: usize,
    gradient: &'a [G],
    parameter: &'a mut [P],
    master: &'a mut [f32],
    states: [Part<'a>; STATES],
}

impl<'a, G: Element, P: Element> Cells<'a, G, P> {
    /// Every block is on its own, so it does not matter how the range is halved.
    fn update(self, coefficient: f32, rule: &impl Rule) {
        if self.parameter.len() <= CHUNK {
            return self.blocks(coefficient, rule);
        }
        let (left, right) = self.halve();
        rayon::join(
            || left.update(coefficient, rule),
            || right.update(coefficient, rule),
        );
    }

    /// Both halves, cut between blocks.
    fn halve(self) -> (Cells<'a, G, P>, Cells<'a, G, P>) {
        let middle = (self.parameter.len() / 2).next_multiple_of(BLOCK);
        let gradient = self.gradient.split_at(middle.min(self.gradient.len()));
        let parameter = self.parameter.split_at_mut(middle);
        let master = self.master.split_at_mut(middle.min(self.master.len()));
        let [a, b, c, d] = self.states.map(|state| state.split(middle));
        let half = |at, gradient, parameter, master, states| Cells {
            at,
            gradient,
            parameter,
            master,
            states,
        };
        (
            half(
                self.at,
                gradient.0,
                parameter.0,
                master.0,
                [a.0, b.0, c.0, d.0],
            ),
            half(
                self.at + middle,
                gradient.1,
                parameter.1,
                master.1,
                [a.1, b.1, c.1, d.1],
            ),
        )
    }

    /// Block by block: widen, apply the rule, round.
    fn blocks(mut self, coefficient: f32, rule: &impl Rule) {
        let (mut gradient, mut weight) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for from in (0..self.parameter.len()).step_by(BLOCK) {
            let span = from..self.parameter.len().min(from + BLOCK);
            let parameter = &mut self.parameter[span.clone()];
            let (gradient, weight) = (&mut gradient[..span.len()], &mut weight[..span.len()]);
            match (
                self.gradient.get(span.clone()),
                self.master.get(span.clone()),
            ) {
                (None, _) => {
                    simd::widen(parameter, gradient);
                    weight.fill(0.0);
                }
                (Some(from), master) => {
                    simd::widen(from, gradient);
                    match master {
                        Some(master) => weight.copy_from_slice(master),
                        None => simd::widen(parameter, weight),
                    }
                }
            }
            simd::scale(gradient, coefficient);
            let mut states = self.states.each_mut().map(|state| state.span(&span));
            rule.apply(self.at + from, gradient, weight, &mut states);
            if let Some(master) = self.master.get_mut(span) {
                master.copy_from_slice(weight);
            }
            simd::narrow(weight, parameter);
        }
    }
}
