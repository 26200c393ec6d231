//! Adafactor.

use rayon::prelude::*;

use super::update::{Part, Rule, STATES, State, coefficient, expect_guard, walk};
use crate::error::Result;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::op::simd::vectorized;
use crate::graph::op::{
    Element, Io, Op, Output, View, ViewMut, Work, expect, expect_inputs, traffic,
};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Most pieces a sum is made of.
const PIECES: usize = 64;

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

/// A parameter as a stack of matrices, or as one row with squares of its own.
#[derive(Debug, Clone, Copy)]
struct Shape {
    stack: usize,
    rows: usize,
    columns: usize,
    factored: bool,
}

impl Shape {
    fn of(at: &Type) -> Shape {
        let columns = at.columns() as usize;
        match at.shape.len() {
            0 | 1 => Shape {
                stack: 1,
                rows: 1,
                columns,
                factored: false,
            },
            n => {
                let rows = at.shape[n - 2] as usize;
                let stack = at.shape[..n - 2].iter().product::<u64>() as usize;
                Shape {
                    stack,
                    rows,
                    columns,
                    factored: true,
                }
            }
        }
    }

    /// Rows of a piece of a matrix: fixed, so that no sum depends on the number of threads.
    fn rows_of_piece(self) -> usize {
        let least = CHUNK.div_ceil(self.columns.max(1));
        self.rows.div_ceil(PIECES).max(least)
    }

    /// Elements of a piece of a parameter.
    fn elements_of_piece(self) -> usize {
        (self.stack * self.rows * self.columns)
            .div_ceil(PIECES)
            .max(CHUNK)
    }

    /// Sums of columns of the pieces of a matrix, in f64; and sums of pieces.
    fn partials(self) -> usize {
        let columns = match self.factored {
            true => self.rows.div_ceil(self.rows_of_piece()) * self.columns,
            false => 0,
        };
        columns + PIECES
    }

    /// Factors of rows and of columns, in f32.
    fn factors(self) -> (usize, usize) {
        match self.factored {
            true => (self.stack * self.rows, self.stack * self.columns),
            false => (0, 0),
        }
    }
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
            shape,
            coefficient,
            eps: self.eps as f32,
            decay: decay as f32,
        };
        let (squares, means) = states.split_at_mut(1 + usize::from(shape.factored));
        let sum = pass.sum(
            self.name(),
            gradient,
            squares,
            (&mut *rows, &mut *columns),
            partials,
        )?;
        let elements = gradient.at.elements().max(1) as f64;
        let size = (sum / elements).sqrt();
        let mut rate = f64::from(io.scalars.rate);
        if let Some(least) = self.scale {
            let sum = sum_of_squares(
                self.name(),
                masters.first().unwrap_or(parameter),
                shape,
                partials,
            )?;
            rate *= (sum / elements).sqrt().max(least);
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
        let master = masters.first_mut().map(|m| m.of()).unwrap_or_default();
        walk(
            self.name(),
            coefficient,
            gradient,
            parameter,
            master,
            parts,
            &rule,
        )
    }
}

/// What all passes over the gradient know.
#[derive(Clone, Copy)]
struct Pass {
    shape: Shape,
    coefficient: f32,
    eps: f32,
    decay: f32,
}

impl Pass {
    /// Renews all mean squares and factors, and returns the sum of squares of the update.
    fn sum(
        self,
        op: &'static str,
        gradient: View,
        states: &mut [ViewMut],
        factors: (&mut [f32], &mut [f32]),
        partials: &mut [f64],
    ) -> Result<f64> {
        with_float!(op, gradient.at.dtype, G => {
            let gradient = gradient.of::<G>();
            Ok(match states {
                [row, column] => self.factor(gradient, (row.of(), column.of()), factors, partials),
                [square, ..] => self.squares(gradient, square.of(), partials),
                [] => 0.0,
            })
        })
    }

    /// Renews mean squares of rows and columns, sets their factors, and returns the sum of squares of the update.
    fn factor<G: Element>(
        self,
        gradient: &[G],
        (rows, columns): (&mut [f32], &mut [f32]),
        (row_factors, column_factors): (&mut [f32], &mut [f32]),
        partials: &mut [f64],
    ) -> f64 {
        let Shape {
            rows: height,
            columns: width,
            ..
        } = self.shape;
        let matrix = height * width;
        let states = rows.chunks_mut(height).zip(columns.chunks_mut(width));
        let factors = row_factors
            .chunks_mut(height)
            .zip(column_factors.chunks_mut(width));
        let mut sum = 0.0;
        for ((gradient, state), factor) in gradient.chunks(matrix).zip(states).zip(factors) {
            self.means(gradient, (&mut *state.0, &mut *state.1), partials);
            let mean = state.0.iter().map(|x| f64::from(*x)).sum::<f64>() / height as f64;
            for (factor, row) in factor.0.iter_mut().zip(&*state.0) {
                *factor = 1.0 / (row / mean as f32).sqrt();
            }
            for (factor, column) in factor.1.iter_mut().zip(&*state.1) {
                *factor = 1.0 / column.sqrt();
            }
            sum += self.size(gradient, (factor.0, factor.1), partials);
        }
        sum
    }

    /// Renews the mean squares of one matrix.
    fn means<G: Element>(
        self,
        gradient: &[G],
        state: (&mut [f32], &mut [f32]),
        partials: &mut [f64],
    ) {
        let (height, width) = (self.shape.rows, self.shape.columns);
        let piece = self.shape.rows_of_piece();
        let sums = &mut partials[..height.div_ceil(piece) * width];
        let pieces = gradient
            .par_chunks(piece * width)
            .zip(state.0.par_chunks_mut(piece));
        pieces
            .zip(sums.par_chunks_mut(width))
            .for_each(|((gradient, rows), sums)| {
                sums.fill(0.0);
                for (gradient, row) in gradient.chunks(width).zip(rows) {
                    let sum = squares(self.coefficient, self.eps, gradient, sums);
                    *row = self.decayed(*row, sum / width as f64);
                }
            });
        for (j, column) in state.1.iter_mut().enumerate() {
            let sum: f64 = sums.iter().skip(j).step_by(width).sum();
            *column = self.decayed(*column, sum / height as f64);
        }
    }

    fn decayed(self, old: f32, new: f64) -> f32 {
        self.decay * old + (1.0 - self.decay) * new as f32
    }

    /// The sum of squares of one matrix's update.
    fn size<G: Element>(
        self,
        gradient: &[G],
        factors: (&[f32], &[f32]),
        partials: &mut [f64],
    ) -> f64 {
        let width = self.shape.columns;
        let piece = self.shape.rows_of_piece();
        let pieces = gradient
            .par_chunks(piece * width)
            .zip(factors.0.par_chunks(piece));
        let sums = &mut partials[..gradient.len().div_ceil((piece * width).max(1))];
        pieces
            .zip(sums.par_iter_mut())
            .for_each(|((gradient, rows), sum)| {
                let rows = gradient.chunks(width).zip(rows);
                *sum = rows
                    .map(|(g, row)| update_of(self.coefficient * row, g, factors.1))
                    .sum();
            });
        sums.iter().sum()
    }

    /// Renews the mean squares of a vector, and returns the sum of squares of the update.
    fn squares<G: Element>(self, gradient: &[G], states: &mut [f32], partials: &mut [f64]) -> f64 {
        let piece = self.shape.elements_of_piece();
        let sums = &mut partials[..gradient.len().div_ceil(piece)];
        let pieces = gradient.par_chunks(piece).zip(states.par_chunks_mut(piece));
        pieces
            .zip(sums.par_iter_mut())
            .for_each(|((gradient, states), sum)| {
                *sum = 0.0;
                for (g, state) in gradient.iter().zip(states) {
                    let g = self.coefficient * g.wide();
                    *state = self.decay * *state + (1.0 - self.decay) * (g * g + self.eps);
                    let update = g / state.sqrt();
                    *sum += f64::from(update * update);
                }
            });
        sums.iter().sum()
    }
}

vectorized! {
    /// Adds `(c g)² + eps` to each column's sum, and returns their sum.
    fn squares<G: Element>(c: f32, eps: f32, gradient: &[G], columns: &mut [f64]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0f64; LANES];
        for (gradient, columns) in gradient.chunks(LANES).zip(columns.chunks_mut(LANES)) {
            for ((lane, g), column) in lanes.iter_mut().zip(gradient).zip(columns) {
                let g = c * g.wide();
                let square = f64::from(g * g + eps);
                *lane += square;
                *column += square;
            }
        }
        lanes.iter().sum()
    }

    /// `Σ (c g f)²` of a row and its columns' factors.
    fn update_of<G: Element>(c: f32, gradient: &[G], factors: &[f32]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0f64; LANES];
        for (gradient, factors) in gradient.chunks(LANES).zip(factors.chunks(LANES)) {
            for ((lane, g), f) in lanes.iter_mut().zip(gradient).zip(factors) {
                let update = c * f * g.wide();
                *lane += f64::from(update * update);
            }
        }
        lanes.iter().sum()
    }
}

/// The sum of squares of all weights.
fn sum_of_squares(
    op: &'static str,
    weights: &ViewMut,
    shape: Shape,
    partials: &mut [f64],
) -> Result<f64> {
    let piece = shape.elements_of_piece();
    let sums = &mut partials[..(weights.at.elements() as usize).div_ceil(piece)];
    with_float!(op, weights.at.dtype, P => {
        let pieces = bytemuck::cast_slice::<u8, P>(weights.bytes).par_chunks(piece);
        pieces.zip(sums.par_iter_mut()).for_each(|(weights, sum)| {
            *sum = weights.iter().map(|w| f64::from(w.wide()).powi(2)).sum();
        });
        Ok(sums.iter().sum())
    })
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
