//! How steep the loss is along a direction, from its values at two points.

use super::launch;
use crate::error::Result;
use crate::graph::op::kernel::{Call, Kernel, input, output};
use crate::graph::op::{Io, Op, Output, Work, expect, traffic};
use crate::graph::tensor::{DType, Type};

/// `(plus - other) / distance` (Spall 1992): inputs two losses (1) (F32), output (1) (F32). A loss that is not finite
/// makes it zero, so that such a step moves nothing.
#[derive(Debug, Clone)]
pub struct Slope {
    /// Distance of the two points along the direction.
    pub distance: f64,
}

impl Op for Slope {
    fn name(&self) -> &'static str {
        "slope"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let scalar = Type::new(&[1], DType::F32);
        let fits = inputs.len() == 2 && inputs.iter().all(|t| *t == scalar);
        expect(self.name(), fits, || {
            format!("takes two losses; got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(scalar)])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 2,
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let value = |index: usize| f64::from(io.inputs[index].of::<f32>()[0]);
        let slope = (value(0) - value(1)) / self.distance;
        let finite = slope.is_finite();
        io.outputs[0].of::<f32>()[0] = if finite { slope as f32 } else { 0.0 };
        Ok(())
    }
    fn cuda(&self, _: &Call) -> Kernel {
        let launch = launch("slope", DType::F32, 1).given([input(0), input(1), output(0)]);
        Kernel::one(launch.given([self.distance.into()]))
    }
}
