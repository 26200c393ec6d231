//! Adafactor.

use super::adafactor_sizes::{Pass, Shape};
use super::update::{Part, Rule, STATES, State, coefficient, expect_guard, walk};
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, Memory, at, input, scratch};
use crate::graph::op::{Io, Op, Output, ViewMut, Work, expect, expect_inputs, traffic};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;

/// Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) in the form of Hugging Face Transformers, at a rate given from outside.
///
/// Inputs: gradient, parameter, master (F32, with `master`), the states of [`Adafactor::states`], guard (3) (with
/// `guard`, see [`ClipScale`](super::ClipScale)). Outputs overwrite all between gradient and guard, in this order.
#[derive(Debug, Clone)]
pub struct Adafactor {
    /// Added to squares of gradients.
    pub eps: f64,
    /// Least root mean square of a parameter that the rate is scaled by; `None` never scales.
    pub scale: Option<f64>,
    /// Root mean square above which an update is scaled down to it.
    pub clip: f64,
    /// Exponent of the decay: 1 - stepᵉ of a mean square remains.
    pub exponent: f64,
    /// Decay of the mean of updates; `None` keeps none.
    pub beta1: Option<f64>,
    /// Weight decay λ: the weight shrinks by rate · λ.
    pub decay: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

impl Adafactor {
    /// Suffixes and types of the states of a parameter: mean squares of rows and of columns, or of each element of a vector;
    /// with `beta1` also the mean of updates.
    pub fn states(&self, parameter: &Type) -> Vec<(&'static str, Type)> {
        let at = parameter.with(DType::F32);
        let without = |dimension: usize| {
            let mut at = at.clone();
            at.shape.remove(dimension);
            at
        };
        let n = at.shape.len();
        let mut states = match n {
            0 | 1 => vec![("square", at.clone())],
            _ => vec![("row", without(n - 1)), ("column", without(n - 2))],
        };
        if self.beta1.is_some() {
            states.push(("mean", at));
        }
        states
    }
}

impl Op for Adafactor {
    fn name(&self) -> &'static str {
        "adafactor"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let takes = || format!("takes gradient and parameter; got {inputs:?}");
        expect(self.name(), inputs.len() > 1, takes)?;
        let at = &inputs[1];
        let master = self.master.then(|| at.with(DType::F32));
        let states = self.states(at).into_iter().map(|(_, at)| at);
        let kept: Vec<Type> = master.into_iter().chain(states).collect();
        let count = 2 + kept.len();
        expect_inputs(self.name(), inputs, count + usize::from(self.guard))?;
        let fits = inputs[0].shape == at.shape && inputs[2..count] == kept[..];
        expect(self.name(), fits, || {
            format!("gradient, parameter and {kept:?}; got {inputs:?}")
        })?;
        expect_guard(self.name(), self.guard, inputs)?;
        Ok((1..count).map(|of| Output::Overwrite { of }).collect())
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        let shape = Shape::of(&inputs[0]);
        let (rows, columns) = shape.factors();
        Bytes(8 * shape.partials() as u64 + 4 * (rows + columns) as u64)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // The gradient is read three times: for squares, for the size of the update, for the update.
        let again = 2 * inputs[0].bytes().0;
        let scaled = u64::from(self.scale.is_some()) * outputs[0].bytes().0;
        Work {
            matmul: 0,
            vector: 20 * outputs[0].elements(),
            bytes: traffic(inputs, outputs) + again + scaled,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let Some(coefficient) = coefficient(self.guard, io) else {
            return Ok(());
        };
        let gradient = io.inputs[0];
        let shape = Shape::of(gradient.at);
        let (partials, factors) = io.scratch.split_at_mut(8 * shape.partials());
        let partials: &mut [f64] = bytemuck::cast_slice_mut(partials);
        let (rows, columns) = bytemuck::cast_slice_mut(factors).split_at_mut(shape.factors().0);
        let mut outputs = io.outputs.iter_mut();
        let (Some(parameter), first) = (outputs.next(), usize::from(self.master)) else {
            return Ok(());
        };
        let (masters, states) = outputs.into_slice().split_at_mut(first);
        let decay = 1.0 - (io.scalars.step as f64).powf(self.exponent);
        let pass = Pass {
            op: self.name(),
            shape,
            coefficient,
            eps: self.eps as f32,
            decay: decay as f32,
        };
        let (squares, means) = states.split_at_mut(1 + usize::from(shape.factored));
        let factors = (&mut *rows, &mut *columns);
        let size = pass.update(gradient, squares, factors, partials)?;
        let mut rate = f64::from(io.scalars.rate);
        if let Some(least) = self.scale {
            let weights = masters.first().unwrap_or(parameter);
            rate *= pass.weights(weights, partials)?.max(least);
        }
        let rule = Step {
            shape,
            rows,
            columns,
            keep: (1.0 - rate * self.decay) as f32,
            rate: (rate / (size / self.clip).max(1.0)) as f32,
            beta1: self.beta1.map(|beta| beta as f32),
        };
        let mut parts: [Part; STATES] = Default::default();
        if let ([square], false) = (squares, shape.factored) {
            parts[0] = Part::new(square, State::F32);
        }
        if let [mean] = means {
            parts[1] = Part::new(mean, State::F32);
        }
        let master = masters.first_mut().map(ViewMut::of).unwrap_or_default();
        let op = self.name();
        walk(op, coefficient, gradient, parameter, master, parts, &rule)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let walk = Passes::new(self, call);
        let mut launches = match walk.shape.factored {
            true => (0..walk.stack)
                .flat_map(|index| walk.factors(index))
                .collect(),
            false => vec![walk.squares()],
        };
        launches.extend(self.scale.map(|_| walk.weights()));
        launches.push(walk.step());
        Kernel::all(launches)
    }
}

/// The launches of one call: mean squares and factors, matrix by matrix; sizes; the step.
struct Passes<'a> {
    op: &'a Adafactor,
    call: &'a Call<'a>,
    shape: Shape,
    /// Matrices of the parameter.
    stack: u64,
    /// First byte of the factors of rows and of columns in scratch.
    factors: [u64; 2],
    /// First state, and the guard.
    states: usize,
    guard: Argument,
}

/// Parts of each sum (`PARTS` in the kernels).
const PARTS: u64 = 32;

impl<'a> Passes<'a> {
    fn new(op: &'a Adafactor, call: &'a Call<'a>) -> Passes<'a> {
        let shape = Shape::of(&call.inputs[0]);
        let first = 8 * shape.partials() as u64;
        let states = 2 + usize::from(op.master);
        let count = 1 + usize::from(shape.factored) + usize::from(op.beta1.is_some());
        Passes {
            op,
            call,
            shape,
            stack: call.inputs[0].elements() / (shape.rows * shape.columns).max(1) as u64,
            factors: [first, first + 4 * shape.factors().0 as u64],
            states,
            guard: if op.guard {
                input(states + count)
            } else {
                Argument::Null
            },
        }
    }

    fn launch(&self, entry: &'static str) -> Launch {
        Launch::new("adafactor", entry)
            .format("G", self.call.format(0))
            .format("P", self.call.format(1))
    }

    /// Decay of mean squares in this step.
    fn decay(&self) -> f32 {
        (1.0 - (self.call.scalars.step as f64).powf(self.op.exponent)) as f32
    }

    /// Mean squares and factors of matrix `index`, and its part of the update's size.
    fn factors(&self, index: u64) -> [Launch; 4] {
        let (rows, columns) = (self.shape.rows as u64, self.shape.columns as u64);
        let from = |of, elements: u64, bytes: u64| Argument::from(at(of, elements * bytes));
        let bytes = self.call.format(0).bytes();
        let gradient = from(Memory::Input(0), index * rows * columns, bytes);
        let row = from(Memory::Input(self.states), index * rows, 4);
        let column = from(Memory::Input(self.states + 1), index * columns, 4);
        let row_factors = scratch(self.factors[0] + 4 * index * rows);
        let factors = scratch(self.factors[1] + 4 * index * columns);
        let size = [rows.into(), (columns as u32).into()];
        let constants = [(self.op.eps as f32).into(), self.decay().into()];
        [
            self.launch("adafactor_rows")
                .blocks(rows)
                .given([gradient, row, self.guard])
                .given(size)
                .given(constants),
            self.launch("adafactor_columns")
                .grid(columns.div_ceil(32), 1, 1)
                .given([gradient, column, factors, self.guard])
                .given(size)
                .given(constants),
            self.launch("adafactor_factors")
                .given([row, row_factors, rows.into()]),
            self.launch("adafactor_size")
                .grid(PARTS, 1, 1)
                .given([gradient, row_factors, factors, self.guard, self.parts()])
                .given(size)
                .given([u32::from(index == 0).into()]),
        ]
    }

    /// Sums of parts, behind those of columns on a CPU.
    fn parts(&self) -> Argument {
        scratch(self.factors[0] - 8 * 2 * PARTS)
    }

    /// Mean squares of a vector, and the update's size.
    fn squares(&self) -> Launch {
        self.launch("adafactor_squares")
            .grid(PARTS, 1, 1)
            .given([input(0), input(self.states), self.guard, self.parts()])
            .given([self.call.inputs[0].elements().into()])
            .given([(self.op.eps as f32).into(), self.decay().into()])
    }

    fn master(&self) -> Argument {
        if self.op.master {
            input(2)
        } else {
            Argument::Null
        }
    }

    fn weights(&self) -> Launch {
        self.launch("adafactor_weights")
            .grid(PARTS, 1, 1)
            .given([input(1), self.master(), self.parts()])
            .given([self.call.inputs[0].elements().into()])
    }

    fn step(&self) -> Launch {
        let (op, elements) = (self.op, self.call.inputs[0].elements());
        let factored = self.shape.factored;
        let square = if factored {
            Argument::Null
        } else {
            input(self.states)
        };
        let mean = match op.beta1 {
            Some(_) => input(self.states + 1 + usize::from(factored)),
            None => Argument::Null,
        };
        let factor = |index: usize| match factored {
            true => scratch(self.factors[index]),
            false => Argument::Null,
        };
        let rate = f64::from(self.call.scalars.rate);
        self.launch("adafactor")
            .elements(elements)
            .given([input(0), input(1), self.master(), square, mean])
            .given([
                self.guard,
                self.parts(),
                factor(0),
                factor(1),
                elements.into(),
            ])
            .given([(self.shape.rows as u64).into()])
            .given([(self.shape.columns as u32).into()])
            .given([rate, op.scale.unwrap_or(0.0), op.clip, op.decay].map(Argument::F64))
            .given([(op.beta1.unwrap_or(0.0) as f32).into()])
    }
}

/// The step itself, once all sizes are known.
struct Step<'a> {
    shape: Shape,
    /// Factors of rows and columns.
    rows: &'a [f32],
    columns: &'a [f32],
    keep: f32,
    rate: f32,
    beta1: Option<f32>,
}

impl Rule for Step<'_> {
    fn apply(
        &self,
        at: usize,
        gradient: &[f32],
        weight: &mut [f32],
        [square, mean, ..]: &mut [Part<'_>; STATES],
    ) {
        let square = square.of::<f32>();
        let mean = mean.of::<f32>();
        let Shape {
            rows,
            columns,
            factored,
            ..
        } = self.shape;
        for (i, (g, w)) in gradient.iter().zip(weight).enumerate() {
            let size = match factored {
                true => {
                    let row = (at + i) / columns;
                    self.rows[row] * self.columns[row / rows * columns + (at + i) % columns]
                }
                false => 1.0 / square[i].sqrt(),
            };
            let mut update = self.rate * size * g;
            if let Some(beta) = self.beta1 {
                mean[i] = beta * mean[i] + (1.0 - beta) * update;
                update = mean[i];
            }
            *w = *w * self.keep - update;
        }
    }
}
