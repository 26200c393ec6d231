//! GaLore's projector: the largest singular directions of a gradient on its smaller side.

mod launches;

use rayon::prelude::*;

use super::eigen;
use super::galore::Low;
use super::update::{coefficient, expect_guard};
use crate::error::Result;
use crate::graph::op::gemm::{Mat, matmul, matmul_scratch};
use crate::graph::op::kernel::{Call, Kernel};
use crate::graph::op::simd::{self, vectorized};
use crate::graph::op::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::graph::random::Key;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// How singular directions are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factorization {
    /// Eigenvectors of the Gram matrix of the smaller side, in f64.
    Exact,
    /// A randomized range finder (Halko et al. 2011, arXiv:0909.4061, algorithms 4.4 and 5.1), then the same on what it found.
    Randomized {
        /// Directions sought beyond the rank.
        more: u32,
        /// Products with the gradient and its transpose.
        power: u32,
    },
}

/// A new projector from a gradient, each direction on the side of the old one of its number, so that moments kept from
/// before still mean something; the first ones point where their largest component is positive.
///
/// Inputs: gradient (m, n), projector (r, min), guard (3) (with `guard`). Output overwrites the projector. Where the guard says
/// that the gradient is not finite it stays, or becomes the first unit vectors where there is none yet.
#[derive(Debug, Clone)]
pub struct Refresh {
    /// How.
    pub factorization: Factorization,
    /// Whether a guard may say that the gradient is not finite.
    pub guard: bool,
}

impl Refresh {
    /// Directions that are looked for.
    fn sought(&self, low: Low) -> usize {
        match self.factorization {
            Factorization::Exact => low.sides().0,
            Factorization::Randomized { more, .. } => (low.rank + more as usize).min(low.sides().0),
        }
    }

    /// Scratch in f64 (Gram matrix and its decomposition) and in f32 (directions, and the gradient along them).
    fn room(&self, low: Low) -> (usize, usize) {
        let (least, most) = low.sides();
        let sought = self.sought(low);
        let square = sought * sought + eigen::room(sought);
        match self.factorization {
            Factorization::Exact => (square, 0),
            Factorization::Randomized { .. } => (square, sought * (least + most)),
        }
    }
}

impl Op for Refresh {
    fn name(&self) -> &'static str {
        "galore_refresh"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2 + usize::from(self.guard))?;
        let low = Low::of(&inputs[0], inputs[1].rows());
        let fits = inputs[0].shape.len() == 2 && inputs[1] == low.projector(inputs[0].dtype);
        expect(self.name(), fits, || {
            format!("takes a matrix and its projector; got {inputs:?}")
        })?;
        expect_guard(self.name(), self.guard, inputs)?;
        Ok(vec![Output::Overwrite { of: 1 }])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        let (wide, narrow) = self.room(Low::of(&inputs[0], inputs[1].rows()));
        let room = Bytes((8 * wide + 4 * narrow) as u64);
        match self.factorization {
            Factorization::Exact => room,
            Factorization::Randomized { .. } => {
                room + matmul_scratch(inputs[0].dtype, DType::F32, backend)
            }
        }
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let low = Low::of(&inputs[0], inputs[1].rows());
        let (least, most) = low.sides();
        let (sought, elements) = (self.sought(low) as u64, inputs[0].elements());
        // Reduction 2 n³, product of reflections 4/3 n³, rotations about 5 n³.
        let eigenvectors = 25 * sought.pow(3) / 3;
        let (matmul, gram, passes) = match self.factorization {
            Factorization::Exact => (0, sought * elements, 1),
            Factorization::Randomized { power, .. } => {
                let passes = 1 + 2 * u64::from(power);
                let orthogonal = 8 * u64::from(power.max(1)) * sought * sought * least as u64;
                let gram = sought * sought * most as u64 + orthogonal;
                (2 * passes * elements * sought, gram, passes)
            }
        };
        Work {
            matmul,
            vector: gram + eigenvectors,
            bytes: traffic(inputs, outputs) + (passes - 1) * inputs[0].bytes().0,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let gradient = io.inputs[0];
        let finite = coefficient(self.guard, io).is_some();
        let projector = &mut io.outputs[0];
        let low = Low::of(gradient.at, projector.at.rows());
        let (wide, narrow) = self.room(low);
        let (wide, rest) = io.scratch.split_at_mut(8 * wide);
        let wide: &mut [f64] = bytemuck::cast_slice_mut(wide);
        let (narrow, scratch) = rest.split_at_mut(4 * narrow);
        let room = Room {
            wide,
            narrow: bytemuck::cast_slice_mut(narrow),
            scratch,
        };
        with_float!(self.name(), gradient.at.dtype, G => {
            let gradient = Mat::new(gradient.of::<G>(), low.rows, low.columns);
            let projector = projector.of::<G>();
            match (finite, self.factorization) {
                (false, _) => unit(low, projector),
                (true, Factorization::Exact) => exact(low, gradient, projector, room),
                (true, Factorization::Randomized { power, .. }) => {
                    randomized(low, self.sought(low), power, io.key, gradient, projector, room);
                }
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        launches::kernel(self, call)
    }
}

/// The scratch of a refresh.
struct Room<'a> {
    wide: &'a mut [f64],
    narrow: &'a mut [f32],
    scratch: &'a mut [u8],
}

/// Unit vectors, where nothing better was ever found.
fn unit<G: Element>(low: Low, projector: &mut [G]) {
    if projector.iter().any(|x| x.wide() != 0.0) {
        return;
    }
    for (j, row) in projector.chunks_mut(low.sides().0).enumerate() {
        row[j] = G::narrow(1.0);
    }
}

/// The singular directions themselves.
fn exact<G: Element>(low: Low, gradient: Mat<G>, projector: &mut [G], room: Room) {
    let n = low.sides().0;
    let (gram, values) = room.wide.split_at_mut(n * n);
    match low.is_tall() {
        true => gram_of_columns(gradient.data, n, gram),
        false => gram_of_rows(gradient.data, low.columns, n, gram),
    }
    eigen::decompose(gram, n, values);
    for row in projector.chunks_mut(n) {
        let best = largest(&mut values[..n]);
        let vector = &gram[best * n..(best + 1) * n];
        place(row, |i| vector[i]);
    }
}

/// Directions that a random block of vectors turns towards.
fn randomized<G: Element>(
    low: Low,
    sought: usize,
    power: u32,
    key: Key,
    gradient: Mat<G>,
    projector: &mut [G],
    room: Room,
) {
    let (least, most) = low.sides();
    let (found, along) = room.narrow.split_at_mut(sought * least);
    let tall = if low.is_tall() {
        gradient
    } else {
        gradient.t()
    }; // (most, least)
    found
        .par_chunks_mut(least)
        .enumerate()
        .for_each(|(j, row)| {
            for (i, x) in row.iter_mut().enumerate() {
                *x = key.normal((j * least + i) as u64);
            }
        });
    orthonormalize(found, least);
    for round in 0..=power {
        let directions = Mat::new(&*found, sought, least);
        matmul(along, sought, tall, directions.t(), false, room.scratch);
        if round < power {
            let along = Mat::new(&*along, most, sought);
            matmul(found, least, along.t(), tall, false, room.scratch);
            orthonormalize(found, least);
        }
    }
    let (gram, values) = room.wide.split_at_mut(sought * sought);
    gram_of_columns(along, sought, gram);
    eigen::decompose(gram, sought, values);
    for row in projector.chunks_mut(least) {
        let best = largest(&mut values[..sought]);
        let mix = &gram[best * sought..(best + 1) * sought];
        let sum = &mut along[..least];
        sum.fill(0.0);
        for (x, direction) in mix.iter().zip(found.chunks(least)) {
            add(*x as f32, direction, sum);
        }
        place(row, |i| f64::from(sum[i]));
    }
}

/// The place of the largest value, which is struck out.
fn largest(values: &mut [f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    values[best] = f64::NEG_INFINITY;
    best
}

/// Puts a direction in the place of an old one, on the old one's side.
fn place<G: Element>(row: &mut [G], direction: impl Fn(usize) -> f64) {
    let (mut along, mut largest) = (0.0, 0.0f64);
    for (i, old) in row.iter().enumerate() {
        let x = direction(i);
        along += f64::from(old.wide()) * x;
        largest = if x.abs() > largest.abs() { x } else { largest };
    }
    let side = if along == 0.0 { largest } else { along };
    for (i, into) in row.iter_mut().enumerate() {
        *into = G::narrow((direction(i) * 1.0f64.copysign(side)) as f32);
    }
}

/// Rows made orthonormal by Gram and Schmidt's process, twice; a row that depends on those before becomes zero.
fn orthonormalize(rows: &mut [f32], width: usize) {
    for j in 0..rows.len() / width {
        let (before, row) = rows.split_at_mut(j * width);
        let row = &mut row[..width];
        let size = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.chunks(width) {
                add(-dot(other, row) as f32, other, row);
            }
        }
        let left = dot(row, row).sqrt();
        let scale = if left > 1e-6 * size { 1.0 / left } else { 0.0 };
        simd::scale(row, scale as f32);
    }
}

/// Rows of a Gram matrix that one task sums.
const STRIP: usize = 16;

/// `xᵀ x` of an x with `n` columns.
fn gram_of_columns<T: Element>(x: &[T], n: usize, gram: &mut [f64]) {
    gram.par_chunks_mut(STRIP * n)
        .enumerate()
        .for_each(|(strip, gram)| {
            gram.fill(0.0);
            for row in x.chunks(n) {
                for (i, sums) in gram.chunks_mut(n).enumerate() {
                    let at = strip * STRIP + i;
                    add_wide(f64::from(row[at].wide()), &row[..=at], &mut sums[..=at]);
                }
            }
        });
    mirror(gram, n);
}

/// `x xᵀ` of an x with `n` rows.
fn gram_of_rows<T: Element>(x: &[T], columns: usize, n: usize, gram: &mut [f64]) {
    gram.par_chunks_mut(n).enumerate().for_each(|(i, sums)| {
        let row = &x[i * columns..(i + 1) * columns];
        for (sum, other) in sums[..=i].iter_mut().zip(x.chunks(columns)) {
            *sum = dot(row, other);
        }
    });
    mirror(gram, n);
}

/// Copies what is below the diagonal above it.
fn mirror(gram: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            gram[j * n + i] = gram[i * n + j];
        }
    }
}

vectorized! {
    /// Σ x y in f64.
    fn dot<T: Element>(x: &[T], y: &[T]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0f64; LANES];
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
                *lane += f64::from(x.wide()) * f64::from(y.wide());
            }
        }
        lanes.iter().sum()
    }

    /// `y += a x` in f64.
    fn add_wide<T: Element>(a: f64, x: &[T], y: &mut [f64]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * f64::from(x.wide());
        }
    }

    /// `y += a x`.
    fn add(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }
}
