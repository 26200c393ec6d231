//! The same rows before those of every sequence, and sequences without their first rows.

use rayon::prelude::*;

use super::kernel::{Call, Kernel, Launch, input, output};
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, summed, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::elementwise::Zero;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// `y (B (P + T), C)`: rows `prefix` (P, C) before each of the B sequences of x (B T, C).
#[derive(Debug, Clone)]
pub struct Prepend {
    /// Sequences (B).
    pub batch: u64,
}

/// The prefix's gradient: dy (B (P + T), C) and, if accumulating, the sum so far (P, C), to dprefix (P, C).
#[derive(Debug, Clone)]
pub struct PrependBackward {
    /// Sequences (B).
    pub batch: u64,
    /// Rows before each (P).
    pub rows: u64,
    /// Format of the gradient.
    pub format: DType,
    /// Whether input 1 is a sum to add to, which the output overwrites.
    pub accumulate: bool,
}

/// `y (B (T - P), C)`: the sequences of x (B T, C) without the first `rows` (P) of each.
#[derive(Debug, Clone)]
pub struct Trim {
    /// Sequences (B).
    pub batch: u64,
    /// Rows that are left out of each (P).
    pub rows: u64,
}

/// A launch of a thread for each of `count` elements.
fn launch(entry: &'static str, format: DType, gradient: DType, count: u64) -> Launch {
    Launch::new("prepend", entry)
        .format("T", format)
        .format("G", gradient)
        .elements(count)
}

/// Work that is only moved bytes.
fn moved(inputs: &[Type], outputs: &[Type]) -> Work {
    Work {
        matmul: 0,
        vector: 0,
        bytes: traffic(inputs, outputs),
    }
}

impl Op for Prepend {
    fn name(&self) -> &'static str {
        "prepend"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (prefix, x) = (&inputs[0], &inputs[1]);
        let fits = self.batch > 0
            && x.rows().is_multiple_of(self.batch)
            && prefix.columns() == x.columns()
            && prefix.dtype == x.dtype;
        expect(self.name(), fits, || {
            format!("{prefix} before {} sequences of {x}", self.batch)
        })?;
        let rows = x.rows() + self.batch * prefix.rows();
        let y = Type::new(&[rows, x.columns()], x.dtype);
        Ok(vec![Output::Fresh(y)])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        moved(inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let rows = at.type_of(at.input(0)).rows();
        let batch = self.batch;
        if at.wants(0) {
            let sum = at.take_sum(0);
            let op = PrependBackward {
                batch,
                rows,
                format: at.format(0),
                accumulate: sum.is_some(),
            };
            let inputs: Vec<_> = [dy].into_iter().chain(sum).collect();
            let dprefix = at.emit(op, &inputs)?[0];
            at.give(0, dprefix)?;
        }
        if at.wants(1) {
            let dx = at.emit(Trim { batch, rows }, &[dy])?[0];
            at.give(1, dx)?;
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let (prefix, x) = (at.of_or_zero(0)?, at.of_or_zero(1)?);
        let y = at.emit(self.clone(), &[prefix, x])?[0];
        at.give(0, y);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (prefix, x, y) = (io.inputs[0], io.inputs[1], &mut io.outputs[0]);
        with_float!(self.name(), x.at.dtype, T => {
            let (prefix, x) = (prefix.of::<T>(), x.of::<T>());
            let sequence = x.len() / self.batch as usize;
            let sequences = y.of::<T>().par_chunks_mut((prefix.len() + sequence).max(1));
            sequences.enumerate().for_each(|(b, y)| {
                let (head, rest) = y.split_at_mut(prefix.len());
                head.copy_from_slice(prefix);
                rest.copy_from_slice(&x[b * sequence..(b + 1) * sequence]);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (prefix, all) = (call.inputs[0].elements(), call.outputs[0].elements());
        let launch = launch("prepend", call.format(0), call.format(0), all);
        let launch = launch.given([input(0), input(1), output(0), self.batch.into()]);
        Kernel::one(launch.given([prefix.into(), (all / self.batch - prefix).into()]))
    }
}

impl Op for PrependBackward {
    fn name(&self) -> &'static str {
        "prepend_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1 + usize::from(self.accumulate))?;
        let fits = self.batch > 0 && inputs[0].rows().is_multiple_of(self.batch);
        expect(self.name(), fits, || {
            format!("{} of {} sequences", inputs[0], self.batch)
        })?;
        let at = Type::new(&[self.rows, inputs[0].columns()], self.format);
        summed(self.name(), at, inputs, self.accumulate, 1)
    }
    fn work(&self, _: &[Type], outputs: &[Type]) -> Work {
        let elements = self.batch * outputs[0].elements();
        Work {
            matmul: 0,
            vector: elements,
            bytes: elements * 4 + outputs[0].bytes().0,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, made) = (io.inputs[0], &mut io.outputs[0]);
        let columns = dy.at.columns() as usize;
        let sequence = (dy.at.rows() / self.batch) as usize * columns;
        with_float!(self.name(), dy.at.dtype, T => {
            let dy = dy.of::<T>();
            with_float!(self.name(), self.format, G => {
                let rows = made.of::<G>().par_chunks_mut(columns.max(1));
                rows.enumerate().for_each(|(row, made)| for (column, made) in made.iter_mut().enumerate() {
                    let at = row * columns + column;
                    let each = dy[at..].iter().step_by(sequence);
                    let sum: f32 = each.map(|dy| dy.wide()).sum();
                    let before = if self.accumulate { made.wide() } else { 0.0 };
                    *made = G::narrow(before + sum);
                });
                Ok(())
            })
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let prefix = call.outputs[0].elements();
        let launch = launch(self.name(), call.format(0), self.format, prefix);
        let launch = launch.given([input(0), output(0), self.batch.into(), prefix.into()]);
        let width = call.inputs[0].elements() / self.batch;
        Kernel::one(launch.given([width.into(), u32::from(self.accumulate).into()]))
    }
}

impl Op for Trim {
    fn name(&self) -> &'static str {
        "trim"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        let x = &inputs[0];
        let fits = self.batch > 0
            && x.rows().is_multiple_of(self.batch)
            && x.rows() > self.batch * self.rows;
        expect(self.name(), fits, || {
            let (batch, rows) = (self.batch, self.rows);
            format!("the first {rows} rows of each of {batch} sequences of {x}")
        })?;
        let y = [x.rows() - self.batch * self.rows, x.columns()];
        Ok(vec![Output::Fresh(Type::new(&y, x.dtype))])
    }
    fn work(&self, _: &[Type], outputs: &[Type]) -> Work {
        moved(outputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let dy_type = at.type_of(dy);
        let zero = Type::new(&[self.rows, dy_type.columns()], dy_type.dtype);
        let zero = at.emit(Zero { at: zero }, &[])?[0];
        let dx = at.emit(Prepend { batch: self.batch }, &[zero, dy])?[0];
        at.give(0, dx)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(self.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, y) = (io.inputs[0], &mut io.outputs[0]);
        let skipped = (self.rows * x.at.columns()) as usize;
        with_float!(self.name(), x.at.dtype, T => {
            let (x, y) = (x.of::<T>(), y.of::<T>());
            let (before, after) = (x.len() / self.batch as usize, y.len() / self.batch as usize);
            let sequences = y.par_chunks_mut(after).zip(x.par_chunks(before));
            sequences.for_each(|(y, x)| y.copy_from_slice(&x[skipped..]));
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (skipped, kept) = (
            self.rows * call.inputs[0].columns(),
            call.outputs[0].elements(),
        );
        let launch = launch("trim", call.format(0), call.format(0), kept);
        let launch = launch.given([input(0), output(0), self.batch.into(), skipped.into()]);
        Kernel::one(launch.given([(kept / self.batch).into()]))
    }
}
