//! A direction as a tensor, for derivatives along it.

use rayon::prelude::*;

use super::{BLOCK, DRAW, Direction, launch};
use crate::error::Result;
use crate::graph::op::kernel::{Call, Kernel, output};
use crate::graph::op::{Element, Io, Op, Output, Work, expect_inputs, simd, traffic};
use crate::graph::tensor::Type;
use crate::with_float;

/// The direction of a parameter, rounded to its format: no inputs, output of type `at`.
#[derive(Debug, Clone)]
pub struct Draw {
    /// The parameter's type.
    pub at: Type,
    /// What is drawn.
    pub direction: Direction,
}

impl Op for Draw {
    fn name(&self) -> &'static str {
        "draw"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 0)?;
        Ok(vec![Output::Fresh(self.at.clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: DRAW * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (key, direction) = (io.key, self.direction);
        let made = &mut io.outputs[0];
        with_float!("draw", made.at.dtype, T => {
            made.of::<T>().par_chunks_mut(BLOCK).enumerate().for_each(|(block, made)| {
                draw(direction, key, (block * BLOCK) as u64, made);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let elements = self.at.elements();
        let launch = launch("draw", self.at.dtype, elements).given([output(0), elements.into()]);
        Kernel::one(launch.given([call.key.0.into(), self.direction.zeroed.into()]))
    }
}

/// One block.
fn draw<T: Element>(
    direction: Direction,
    key: crate::graph::random::Key,
    first: u64,
    made: &mut [T],
) {
    let mut z = [0.0f32; BLOCK];
    let z = &mut z[..made.len()];
    direction.fill(key.part(0), first, z);
    simd::narrow(z, made);
}
