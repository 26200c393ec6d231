//! Mean squares of rows and columns, and the size of the update they give: the sums of Adafactor.

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Element, View, ViewMut};
use crate::graph::tensor::Type;
use crate::with_float;

/// Most pieces a sum is made of.
const PIECES: usize = 64;

/// A parameter as a stack of matrices, or as one row with squares of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    stack: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) factored: bool,
}

impl Shape {
    pub(super) fn of(at: &Type) -> Shape {
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
    pub(super) fn partials(self) -> usize {
        let columns = match self.factored {
            true => self.rows.div_ceil(self.rows_of_piece()) * self.columns,
            false => 0,
        };
        columns + PIECES
    }

    /// Factors of rows and of columns, in f32.
    pub(super) fn factors(self) -> (usize, usize) {
        match self.factored {
            true => (self.stack * self.rows, self.stack * self.columns),
            false => (0, 0),
        }
    }
}

/// What all passes over the gradient know.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) op: &'static str,
    pub(super) shape: Shape,
    pub(super) coefficient: f32,
    pub(super) eps: f32,
    pub(super) decay: f32,
}

impl Pass {
    /// Renews all mean squares and factors, and returns the root mean square of the update.
    pub(super) fn update(
        self,
        gradient: View,
        states: &mut [ViewMut],
        factors: (&mut [f32], &mut [f32]),
        partials: &mut [f64],
    ) -> Result<f64> {
        let elements = gradient.at.elements().max(1) as f64;
        with_float!(self.op, gradient.at.dtype, G => {
            let gradient = gradient.of::<G>();
            let sum = match states {
                [row, column] => self.factor(gradient, (row.of(), column.of()), factors, partials),
                [square, ..] => self.squares(gradient, square.of(), partials),
                [] => 0.0,
            };
            Ok((sum / elements).sqrt())
        })
    }

    /// The root mean square of all weights.
    pub(super) fn weights(self, weights: &ViewMut, partials: &mut [f64]) -> Result<f64> {
        let elements = weights.at.elements().max(1) as f64;
        let piece = self.shape.elements_of_piece();
        let sums = &mut partials[..(elements as usize).div_ceil(piece)];
        with_float!(self.op, weights.at.dtype, P => {
            let pieces = bytemuck::cast_slice::<u8, P>(weights.bytes).par_chunks(piece);
            pieces.zip(sums.par_iter_mut()).for_each(|(weights, sum)| {
                *sum = weights.iter().map(|w| f64::from(w.wide()).powi(2)).sum();
            });
            Ok((sums.iter().sum::<f64>() / elements).sqrt())
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
