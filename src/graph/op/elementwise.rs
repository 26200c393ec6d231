//! Elementwise sums.

use super::kernel::{Argument, Call, Kernel, Launch, input, output};
use super::{Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::Element;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::with_float;
use rayon::prelude::*;

/// Elements one task works on: fixed, so that no result depends on the number of threads.
pub const CHUNK: usize = 16_384;

/// `b += a`: the sum overwrites the second input.
#[derive(Debug)]
pub struct Add;

/// `a + b` in a storage of its own.
#[derive(Debug)]
pub struct Sum;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        same(self.name(), inputs)?;
        Ok(vec![Output::Overwrite { of: 1 }])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        at.pass(0, 0, true)?;
        at.pass(0, 1, true)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        add_tangents(at)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (a, b) = (io.inputs[0], &mut io.outputs[0]);
        with_float!("add", a.at.dtype, T => {
            b.of::<T>().par_chunks_mut(CHUNK).zip(a.of::<T>().par_chunks(CHUNK)).for_each(|(b, a)| {
                for (b, a) in b.iter_mut().zip(a) {
                    *b = T::narrow(b.wide() + a.wide());
                }
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        Kernel::one(
            over(call, self.name())
                .given([input(0), output(0)])
                .given([call.outputs[0].elements().into()]),
        )
    }
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        same(self.name(), inputs)?;
        Ok(vec![Output::Fresh(inputs[0].clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        at.pass(0, 0, true)?;
        at.pass(0, 1, true)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        add_tangents(at)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (a, b, c) = (io.inputs[0], io.inputs[1], &mut io.outputs[0]);
        with_float!("sum", a.at.dtype, T => {
            let sources = a.of::<T>().par_chunks(CHUNK).zip(b.of::<T>().par_chunks(CHUNK));
            c.of::<T>().par_chunks_mut(CHUNK).zip(sources).for_each(|(c, (a, b))| {
                for (c, (a, b)) in c.iter_mut().zip(a.iter().zip(b)) {
                    *c = T::narrow(a.wide() + b.wide());
                }
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let launch = over(call, self.name());
        Kernel::one(
            launch
                .given([input(0), input(1), output(0)])
                .given([call.outputs[0].elements().into()]),
        )
    }
}

/// `x *= by`, in place of x or in a storage of its own.
#[derive(Debug, Clone)]
pub struct Scale {
    /// The factor.
    pub by: f64,
    /// Whether the product overwrites x.
    pub in_place: bool,
    /// Format of a product in a storage of its own, where it is not that of x.
    pub format: Option<DType>,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        Ok(vec![match self.in_place {
            true => Output::Overwrite { of: 0 },
            false => Output::Fresh(inputs[0].with(self.format.unwrap_or(inputs[0].dtype))),
        }])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let wanted = at.format(0);
        let format = (wanted != at.type_of(dy).dtype).then_some(wanted);
        let in_place = format.is_none() && at.owns_grad(0);
        let op = Scale {
            by: self.by,
            in_place,
            format,
        };
        let dx = at.emit(op, &[dy])?[0];
        at.give(0, dx)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let in_place = at.owns(0);
        at.product_rule(Scale {
            in_place,
            ..self.clone()
        })
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, y, by) = (io.inputs[0], &mut io.outputs[0], self.by as f32);
        if self.in_place {
            return with_float!("scale", y.at.dtype, T => {
                let chunks = y.of::<T>().par_chunks_mut(CHUNK);
                chunks.for_each(|y| y.iter_mut().for_each(|y| *y = T::narrow(y.wide() * by)));
                Ok(())
            });
        }
        with_float!("scale", x.at.dtype, S => with_float!("scale", y.at.dtype, T => {
            let chunks = y.of::<T>().par_chunks_mut(CHUNK).zip(x.of::<S>().par_chunks(CHUNK));
            chunks.for_each(|(y, x)| {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = T::narrow(x.wide() * by));
            });
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let launch = over(call, self.name()).given([input(0), output(0)]);
        Kernel::one(
            launch
                .given([call.outputs[0].elements().into()])
                .given([(self.by as f32).into()]),
        )
    }
}

/// Zeros of a type: the tangent of what does not move, where a rule needs one.
#[derive(Debug)]
pub struct Zero {
    /// The type.
    pub at: Type,
}

impl Op for Zero {
    fn name(&self) -> &'static str {
        "zero"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 0)?;
        Ok(vec![Output::Fresh(self.at.clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 0,
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        io.outputs[0].bytes.fill(0);
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        Kernel::one(zero(0, &call.outputs[0]))
    }
}

/// A launch that sets output `index`, of type `at`, to zero.
pub(super) fn zero(index: usize, at: &Type) -> Launch {
    // A zero is a zero in every format, so bytes will do.
    let bytes = at.bytes().0;
    let launch = Launch::new("elementwise", "zero").format("S", DType::F32);
    let launch = launch.format("T", DType::F32).elements(bytes);
    launch.given([output(index), bytes.into()])
}

/// A launch that rounds f32 numbers at `from` into `into`, of type `at`.
pub(super) fn narrow(from: Argument, into: Argument, at: &Type) -> Launch {
    let launch = Launch::new("elementwise", "scale").format("S", DType::F32);
    let launch = launch.format("T", at.dtype).elements(at.elements());
    launch.given([from, into, at.elements().into(), 1.0f32.into()])
}

/// A launch over all elements of output 0.
fn over(call: &Call, entry: &'static str) -> Launch {
    let read = call.inputs.first().unwrap_or(&call.outputs[0]).dtype;
    Launch::new("elementwise", entry)
        .format("S", read)
        .format("T", call.outputs[0].dtype)
        .elements(call.outputs[0].elements())
}

/// The tangent of a sum, over one of its terms' where that is free.
fn add_tangents(at: &mut Tangent) -> Result<()> {
    match (at.of(0), at.of(1)) {
        (Some(a), Some(b)) => {
            let made = match (at.owns(0), at.owns(1)) {
                (_, true) => at.emit(Add, &[a, b])?,
                (true, false) => at.emit(Add, &[b, a])?,
                (false, false) => at.emit(Sum, &[a, b])?,
            };
            at.give(0, made[0]);
        }
        (Some(_), None) => at.pass(0),
        (None, _) => at.pass(1),
    }
    Ok(())
}

/// Two inputs of one type.
fn same(op: &'static str, inputs: &[Type]) -> Result<()> {
    expect_inputs(op, inputs, 2)?;
    expect(op, inputs[0] == inputs[1], || {
        format!("adds {} to {}", inputs[0], inputs[1])
    })
}
