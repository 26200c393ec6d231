//! What crosses a border: moves between places, and values from and to the outside.

use super::kernel::{Call, Kernel};
use super::{Io, Op, Output, Work, expect, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;

/// Name of [`Move`]: its nodes are lowered to copies.
pub const MOVE: &str = "move";

/// Name of [`Settle`]: its nodes only order.
pub const SETTLE: &str = "settle";

/// A copy of input 0 in another place: fresh, or over input 1 with `into`.
#[derive(Debug, Clone)]
pub struct Move {
    /// Whether it writes over input 1.
    pub into: bool,
}

/// Nothing, once all its inputs are there: the point where the compute stream waits for copies.
#[derive(Debug, Clone)]
pub struct Settle;

/// A value from outside: bytes `offset..` of what is known there as `name`.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Name outside.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// Type of the value.
    pub at: Type,
}

/// Hands input 0 to the outside as bytes `offset..` of `name`.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name outside.
    pub name: String,
    /// First byte.
    pub offset: u64,
}

impl Op for Move {
    fn name(&self) -> &'static str {
        MOVE
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let good = inputs.len() == 1 + usize::from(self.into)
            && inputs.iter().all(|t| t.bytes() == inputs[0].bytes());
        expect(MOVE, good, || {
            format!("takes one value, and one of its size to write over; got {inputs:?}")
        })?;
        Ok(vec![if self.into {
            Output::Overwrite { of: 1 }
        } else {
            Output::Fresh(inputs[0].clone())
        }])
    }
    fn work(&self, inputs: &[Type], _: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 0,
            bytes: inputs[0].bytes().0,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        io.outputs[0].bytes.copy_from_slice(io.inputs[0].bytes);
        Ok(())
    }
    fn cuda(&self, _: &Call) -> Kernel {
        Kernel::Transfer
    }
}

impl Op for Settle {
    fn name(&self) -> &'static str {
        SETTLE
    }
    fn outputs(&self, _: &[Type]) -> Result<Vec<Output>> {
        Ok(Vec::new())
    }
    fn work(&self, _: &[Type], _: &[Type]) -> Work {
        Work::default()
    }
    fn backward(&self, _: &mut Backward) -> Result<()> {
        Ok(())
    }
    fn tangent(&self, _: &mut Tangent) -> Result<()> {
        Ok(())
    }
    fn cpu(&self, _: &mut Io) -> Result<()> {
        Ok(())
    }
    fn cuda(&self, _: &Call) -> Kernel {
        Kernel::Transfer
    }
}

impl Op for Feed {
    fn name(&self) -> &'static str {
        "feed"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect("feed", inputs.is_empty(), || {
            format!("takes nothing; got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(self.at.clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 0,
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, _: &mut Backward) -> Result<()> {
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        io.port.read(&self.name, self.offset, io.outputs[0].bytes)
    }
    fn cuda(&self, _: &Call) -> Kernel {
        Kernel::Transfer
    }
}

impl Op for Report {
    fn name(&self) -> &'static str {
        "report"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect("report", inputs.len() == 1, || {
            format!("takes one value; got {inputs:?}")
        })?;
        Ok(Vec::new())
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 0,
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, _: &mut Backward) -> Result<()> {
        Ok(())
    }
    fn tangent(&self, _: &mut Tangent) -> Result<()> {
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        io.port.write(&self.name, self.offset, io.inputs[0].bytes)
    }
    fn cuda(&self, _: &Call) -> Kernel {
        Kernel::Transfer
    }
}
