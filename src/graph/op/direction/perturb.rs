//! A parameter moved along its random direction.

use rayon::prelude::*;

use super::draws::{Draws, MOST};
use super::{BLOCK, CHUNK, DRAW, Direction, launch, slopes};
use crate::error::Result;
use crate::graph::op::kernel::{Call, Kernel, input, output};
use crate::graph::op::{Element, Io, Op, Output, View, Work, expect, simd, traffic};
use crate::graph::random::Key;
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// `θ + by · z`, of draw `draw`; or, with `slopes`, `θ + by · rate / q · Σ_k slope_k z_k` over q draws.
///
/// Inputs: θ, and `slopes` of them (1) (F32). Output: of θ's type, fresh or in place.
#[derive(Debug, Clone)]
pub struct Perturb {
    /// Factor.
    pub by: f64,
    /// The draw, without slopes.
    pub draw: u32,
    /// Number of slopes.
    pub slopes: usize,
    /// What is drawn.
    pub direction: Direction,
    /// Whether θ is overwritten.
    pub in_place: bool,
}

impl Op for Perturb {
    fn name(&self) -> &'static str {
        "perturb"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let scalar = Type::new(&[1], DType::F32);
        let fits = self.slopes <= MOST
            && inputs.len() == 1 + self.slopes
            && inputs[1..].iter().all(|t| *t == scalar);
        expect(self.name(), fits, || {
            format!(
                "takes a parameter and {} slopes; got {inputs:?}",
                self.slopes
            )
        })?;
        Ok(vec![match self.in_place {
            true => Output::Overwrite { of: 0 },
            false => Output::Fresh(inputs[0].clone()),
        }])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: (DRAW + 2) * self.slopes.max(1) as u64 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let rate = f64::from(io.scalars.rate);
        let draws = match self.slopes {
            0 => Draws::one(self.draw, self.by),
            _ => Draws::mean(&io.inputs[1..], |slope| self.by * rate * slope),
        };
        let along = Along {
            direction: self.direction,
            key: io.key,
            draws,
        };
        let (from, made) = (io.inputs[0], &mut io.outputs[0]);
        with_float!("perturb", made.at.dtype, T => {
            along.moved::<T>(&from, made.of::<T>());
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let Some(slopes) = slopes(1, self.slopes) else {
            return Kernel::Missing;
        };
        let elements = call.inputs[0].elements();
        let by = match self.slopes {
            0 => self.by,
            _ => self.by * f64::from(call.scalars.rate),
        };
        let launch = launch("perturb", call.format(0), elements)
            .given([input(0), output(0)])
            .given(slopes)
            .given([self.draw.into(), elements.into(), call.key.0.into()]);
        Kernel::one(launch.given([self.direction.zeroed.into(), by.into()]))
    }
}

/// The move.
struct Along {
    direction: Direction,
    key: Key,
    draws: Draws,
}

impl Along {
    fn moved<T: Element>(&self, from: &View, made: &mut [T]) {
        // In place the input is empty: what is made holds its old value.
        let from = from.of::<T>();
        made.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(chunk, made)| {
                let start = chunk * CHUNK;
                if let Some(from) = from.get(start..start + made.len()) {
                    made.copy_from_slice(from);
                }
                for (block, made) in made.chunks_mut(BLOCK).enumerate() {
                    self.block((start + block * BLOCK) as u64, made);
                }
            });
    }

    fn block<T: Element>(&self, first: u64, made: &mut [T]) {
        let mut wide = [0.0f32; BLOCK];
        let wide = &mut wide[..made.len()];
        simd::widen(made, wide);
        self.direction.add(self.key, self.draws.all(), first, wide);
        simd::narrow(wide, made);
    }
}
