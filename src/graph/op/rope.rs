//! Rotary position embedding (Su et al. 2021), half-split as in Hugging Face's `rotate_half`.

use std::fmt;

use rayon::prelude::*;

use super::kernel::{Call, Kernel, Launch, input, output};
use super::simd::vectorized;
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::spec::job::Backend;
use crate::spec::model::{Rotary, RotaryScaling};
use crate::spec::units::Bytes;
use crate::with_float;

/// Positions whose angles are stepped from one exact start.
const STEPS: usize = 64;

/// Rotates the first `rotary.dims` of each head of x (N, heads * head_dim) by the row's position; the
/// inverse rotation is the derivative.
#[derive(Clone)]
pub struct Rope {
    /// Sequences (B); N = B T.
    pub batch: u64,
    /// Positions of a sequence (T).
    pub seq: u64,
    /// The first of them.
    pub first: u64,
    /// Heads.
    pub heads: u64,
    /// Columns of a head.
    pub head_dim: u64,
    /// Frequencies.
    pub rotary: Rotary,
    /// Whether it rotates backwards.
    pub inverse: bool,
    /// Whether the result overwrites input 0; else it has a storage of its own.
    pub in_place: bool,
}

impl fmt::Debug for Rope {
    /// Programs are told apart by this text: from position 0 on it is as it was before there was another.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Rope");
        text.field("batch", &self.batch).field("seq", &self.seq);
        if self.first > 0 {
            text.field("first", &self.first);
        }
        text.field("heads", &self.heads)
            .field("head_dim", &self.head_dim)
            .field("rotary", &self.rotary)
            .field("inverse", &self.inverse)
            .field("in_place", &self.in_place)
            .finish()
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        match self.inverse {
            false => "rope",
            true => "rope_backward",
        }
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        let shape = [self.batch * self.seq, self.heads * self.head_dim];
        let dims = self.rotary.dims;
        let good = inputs[0].shape == shape && dims.is_multiple_of(2) && dims <= self.head_dim;
        expect(self.name(), good, || {
            format!("rotates {dims} dims of {shape:?}; got {}", inputs[0])
        })?;
        Ok(vec![match self.in_place {
            true => Output::Overwrite { of: 0 },
            false => Output::Fresh(inputs[0].clone()),
        }])
    }
    fn scratch(&self, _: &[Type], backend: Backend) -> Bytes {
        match backend {
            Backend::Cpu { .. } => Bytes(self.seq * self.rotary.dims * 4),
            Backend::Cuda { .. } => Bytes::ZERO,
        }
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 3 * self.batch * self.seq * self.heads * self.rotary.dims,
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let op = Rope {
            inverse: !self.inverse,
            in_place: at.owns_grad(0),
            ..self.clone()
        };
        let dx = at.emit(op, &[dy])?[0];
        at.give(0, dx)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(Rope {
            in_place: at.owns(0),
            ..self.clone()
        })
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let table: &mut [f32] = bytemuck::cast_slice_mut(io.scratch);
        self.fill(table);
        let (seq, dims) = (self.seq as usize, self.rotary.dims as usize);
        let (columns, width) = (
            (self.heads * self.head_dim) as usize,
            self.head_dim as usize,
        );
        let rows = (CHUNK / columns).max(1);
        let (x, y) = (io.inputs[0], &mut io.outputs[0]);
        with_float!(self.name(), x.at.dtype, T => {
            if !self.in_place {
                y.bytes.copy_from_slice(x.bytes);
            }
            let tasks = y.of::<T>().par_chunks_mut(rows * columns).enumerate();
            tasks.for_each(|(task, y)| {
                for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                    let position = (task * rows + row) % seq;
                    rotate(y, width, &table[position * dims..][..dims]);
                }
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let scaling = match self.rotary.scaling {
            RotaryScaling::None => (0u32, [1.0, 0.0, 1.0, 1.0]),
            RotaryScaling::Linear { factor } => (1, [factor, 0.0, 1.0, 1.0]),
            RotaryScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => (2, [factor, low, high, original]),
        };
        let sign = if self.inverse { -1.0 } else { 1.0 };
        let dims = self.rotary.dims;
        let launch = Launch::new("rope", "rope")
            .format("T", call.format(0))
            .blocks(self.seq)
            .shared(dims * 4)
            .given([input(0), output(0)])
            .given([self.batch as u32, self.seq as u32].map(Into::into))
            .given([self.first.into()])
            .given([self.heads, self.head_dim, dims].map(|n| (n as u32).into()))
            .given([self.rotary.theta.into(), scaling.0.into()])
            .given(scaling.1.map(Into::into));
        Kernel::one(launch.given([sign.into()]))
    }
}

impl Rope {
    /// Fills (T, dims) with the cosines, then the sines, of each position's angles.
    fn fill(&self, table: &mut [f32]) {
        let dims = self.rotary.dims as usize;
        if dims == 0 {
            return;
        }
        let tasks = table.par_chunks_mut(STEPS * dims).enumerate();
        tasks.for_each(|(task, rows)| {
            for pair in 0..dims / 2 {
                let angle = self.rotary.frequency(pair) * if self.inverse { -1.0 } else { 1.0 };
                let (step_sin, step_cos) = angle.sin_cos();
                let start = self.first + (task * STEPS) as u64;
                let (mut sin, mut cos) = (angle * start as f64).sin_cos();
                for row in rows.chunks_exact_mut(dims) {
                    row[pair] = cos as f32;
                    row[pair + dims / 2] = sin as f32;
                    (cos, sin) = (
                        cos * step_cos - sin * step_sin,
                        sin * step_cos + cos * step_sin,
                    );
                }
            }
        });
    }
}

impl Rotary {
    /// Radians per position of the `pair`th pair of dimensions.
    pub fn frequency(&self, pair: usize) -> f64 {
        let plain = self.theta.powf(-2.0 * pair as f64 / self.dims as f64);
        match self.scaling {
            RotaryScaling::None => plain,
            RotaryScaling::Linear { factor } => plain / factor,
            RotaryScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                // How many wavelengths the original context held decides between divided and plain.
                let turns = original * plain / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - keep) * plain / factor + keep * plain
            }
        }
    }
}

vectorized! {
    /// Rotates each head of one row in place.
    fn rotate<T: Element>(row: &mut [T], width: usize, angles: &[f32]) {
        let half = angles.len() / 2;
        let (cos, sin) = angles.split_at(half);
        for head in row.chunks_exact_mut(width) {
            let (first, rest) = head.split_at_mut(half);
            let pairs = first.iter_mut().zip(&mut rest[..half]);
            for ((a, b), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                let (x, y) = (a.wide(), b.wide());
                *a = T::narrow(x * cos - y * sin);
                *b = T::narrow(y * cos + x * sin);
            }
        }
    }
}
