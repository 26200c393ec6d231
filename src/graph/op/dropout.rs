//! Dropout.

use rayon::prelude::*;

use super::elementwise::CHUNK;
use super::kernel::{Call, Kernel, Launch, input, output};
use super::simd::vectorized;
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::random::Key;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::with_float;

/// Zeroes elements of x with probability `rate`, multiplies the others by 1 / (1 - rate) (Srivastava et al. 2014).
///
/// The mask is no tensor: it is drawn again from the node's key, so the derivative is this op on dy.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Probability of a zero, in (0, 1).
    pub rate: f64,
    /// Whether y overwrites x.
    pub in_place: bool,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect(self.name(), (0.0..=1.0).contains(&self.rate), || {
            format!("a rate of {}", self.rate)
        })?;
        Ok(vec![match self.in_place {
            true => Output::Overwrite { of: 0 },
            false => Output::Fresh(inputs[0].clone()),
        }])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        // Two 64-bit multiplications and three shifts per draw, besides the scaling.
        Work {
            matmul: 0,
            vector: 10 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let op = Dropout {
            in_place: at.owns_grad(0),
            ..self.clone()
        };
        let dx = at.emit(op, &[dy])?[0];
        at.give(0, dx)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(Dropout {
            in_place: at.owns(0),
            ..self.clone()
        })
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, y, key) = (io.inputs[0], &mut io.outputs[0], io.key);
        // Every micro-batch draws from its own range of indices.
        let first = io.scalars.micro * y.at.elements();
        let (rate, scale) = (self.rate as f32, (1.0 / (1.0 - self.rate)) as f32);
        with_float!("dropout", y.at.dtype, T => {
            y.of::<T>().par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
                let from = chunk * CHUNK;
                if !self.in_place {
                    y.copy_from_slice(&x.of()[from..from + y.len()]);
                }
                mask(y, key, first + from as u64, rate, scale);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let elements = call.outputs[0].elements();
        let first = call.scalars.micro * elements;
        let launch = Launch::new("dropout", "dropout")
            .format("T", call.format(0))
            .elements(elements)
            .given([input(0), output(0), elements.into()])
            .given([call.key.0.into(), first.into()]);
        let scale = (1.0 / (1.0 - self.rate)) as f32;
        Kernel::one(launch.given([(self.rate as f32).into(), scale.into()]))
    }
}

vectorized! {
    /// Keeps and scales, or zeroes, elements whose draws begin at `first`.
    fn mask<T: Element>(y: &mut [T], key: Key, first: u64, rate: f32, scale: f32) {
        for (i, y) in y.iter_mut().enumerate() {
            let kept = key.uniform(first + i as u64) >= rate;
            *y = T::narrow(if kept { y.wide() * scale } else { 0.0 });
        }
    }
}
