//! Tokens to rows sorted by expert, and rows back to tokens.

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, THREADS, input, output, scratch};
use crate::graph::op::simd::{self, vectorized};
use crate::graph::op::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Columns summed at a time, in f32 on the stack.
const COLUMNS: usize = 256;

/// `rows[r] = x[order[r] / k]`: x (N, H) and order (N·k) (U32) to rows (N·k, H).
#[derive(Debug, Clone)]
pub struct Gather;

/// `dx[n] = Σ drows` of the token's slots, by rank: drows (N·k, H) and order (N·k) to dx (N, H).
#[derive(Debug, Clone)]
pub struct GatherBackward {
    /// Slots k of each token.
    pub top_k: u64,
}

/// `y[n] = Σ weights[n, j] · row` of the token's slots, by rank: rows (N·k, H), weights (N, k) (F32) and order (N·k)
/// (U32) to y (N, H).
#[derive(Debug, Clone)]
pub struct Combine;

/// Both gradients: dy (N, H), rows (N·k, H), weights (N, k) and order (N·k) to drows (N·k, H) and dweights (N, k).
#[derive(Debug, Clone)]
pub struct CombineBackward;

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (x, order) = (&inputs[0], &inputs[1]);
        let slots = order.elements();
        let fits = order.dtype == DType::U32 && slots > 0 && slots.is_multiple_of(x.rows());
        expect(self.name(), fits, || format!("rows {order} of {x}"))?;
        Ok(vec![Output::Fresh(Type::new(
            &[slots, x.columns()],
            x.dtype,
        ))])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 0,
            bytes: inputs[1].bytes().0 + 2 * outputs[0].bytes().0,
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let (true, Some(drows)) = (at.wants(0), at.grad(0)) else {
            return Ok(());
        };
        let order = at.input(1);
        let op = GatherBackward {
            top_k: at.type_of(order).elements() / at.type_of(at.input(0)).rows(),
        };
        let dx = at.emit(op, &[drows, order])?[0];
        at.give(0, dx)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(self.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, order) = (io.inputs[0], io.inputs[1].of::<u32>());
        let (columns, k) = (x.at.columns() as usize, order.len() / x.at.rows() as usize);
        with_float!("gather", x.at.dtype, T => {
            let x = x.of::<T>();
            let rows = io.outputs[0].of::<T>().par_chunks_mut(columns);
            rows.zip(order).for_each(|(row, &slot)| {
                row.copy_from_slice(&x[slot as usize / k * columns..][..columns]);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let slots = call.outputs[0].rows();
        let launch = launch("gather", call, slots);
        let launch = launch.given([input(0), input(1), output(0), slots.into()]);
        Kernel::one(launch.given(widths(call, slots / call.inputs[0].rows())))
    }
}

impl Op for GatherBackward {
    fn name(&self) -> &'static str {
        "gather_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (drows, order) = (&inputs[0], &inputs[1]);
        let fits = drows.rows() == order.elements() && order.elements().is_multiple_of(self.top_k);
        expect(self.name(), fits, || format!("{drows} in order {order}"))?;
        let shape = [order.elements() / self.top_k, drows.columns()];
        Ok(vec![Output::Fresh(Type::new(&shape, drows.dtype))])
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[1].elements() * 4)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (drows, places) = (io.inputs[0], invert(io.inputs[1].of(), io.scratch));
        let (columns, k) = (drows.at.columns() as usize, self.top_k as usize);
        with_float!("gather_backward", drows.at.dtype, T => {
            let tokens = io.outputs[0].of::<T>().par_chunks_mut(columns);
            tokens.zip(places.par_chunks(k)).for_each(|(dx, places)| {
                sum(dx, drows.of::<T>(), places, |_| 1.0);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let tokens = call.outputs[0].rows();
        let sum = launch("combine", call, tokens);
        let sum = sum.given([
            input(0),
            Argument::Null,
            scratch(0),
            output(0),
            tokens.into(),
        ]);
        let sum = sum.given(widths(call, self.top_k));
        Kernel::all([inverted(call, 1), sum])
    }
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        "combine"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let (rows, weights) = (&inputs[0], &inputs[1]);
        expect_slots(self.name(), rows, weights, &inputs[2])?;
        let shape = [weights.rows(), rows.columns()];
        Ok(vec![Output::Fresh(Type::new(&shape, rows.dtype))])
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[2].elements() * 4)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 2 * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let inputs = [dy, at.input(0), at.input(1), at.input(2)];
        let gradients = at.emit(CombineBackward, &inputs)?;
        at.give(0, gradients[0])?;
        at.give(1, gradients[1])
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(self.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (rows, weights) = (io.inputs[0], io.inputs[1]);
        let places = invert(io.inputs[2].of(), io.scratch);
        let (columns, k) = (rows.at.columns() as usize, weights.at.columns() as usize);
        with_float!("combine", rows.at.dtype, T => {
            let tokens = io.outputs[0].of::<T>().par_chunks_mut(columns);
            let slots = places.par_chunks(k).zip(weights.of::<f32>().par_chunks(k));
            tokens.zip(slots).for_each(|(y, (places, weights))| {
                sum(y, rows.of::<T>(), places, |rank| weights[rank]);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let tokens = call.outputs[0].rows();
        let sum = launch("combine", call, tokens);
        let sum = sum.given([input(0), input(1), scratch(0), output(0), tokens.into()]);
        let sum = sum.given(widths(call, call.inputs[1].columns()));
        Kernel::all([inverted(call, 2), sum])
    }
}

impl Op for CombineBackward {
    fn name(&self) -> &'static str {
        "combine_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 4)?;
        let (dy, rows, weights) = (&inputs[0], &inputs[1], &inputs[2]);
        expect_slots(self.name(), rows, weights, &inputs[3])?;
        let fits = *dy == Type::new(&[weights.rows(), rows.columns()], rows.dtype);
        expect(self.name(), fits, || format!("{dy} for rows {rows}"))?;
        Ok(vec![
            Output::Fresh(rows.clone()),
            Output::Fresh(weights.clone()),
        ])
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[3].elements() * 4)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 3 * inputs[1].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, rows, order) = (io.inputs[0], io.inputs[1], io.inputs[3].of::<u32>());
        let (weights, k) = (io.inputs[2].of::<f32>(), io.inputs[2].at.columns() as usize);
        let columns = rows.at.columns() as usize;
        let dots: &mut [f32] = bytemuck::cast_slice_mut(io.scratch);
        with_float!("combine_backward", rows.at.dtype, T => {
            let (dy, rows) = (dy.of::<T>(), rows.of::<T>().par_chunks(columns));
            let made = io.outputs[0].of::<T>().par_chunks_mut(columns).zip(dots.par_iter_mut());
            made.zip(rows).zip(order).for_each(|(((drow, product), row), &slot)| {
                let dy = &dy[slot as usize / k * columns..][..columns];
                let weight = weights[slot as usize];
                weighted(drow, dy, weight);
                *product = simd::dot(dy, row);
            });
            Ok(())
        })?;
        let dweights = io.outputs[1].of::<f32>();
        for (&slot, product) in order.iter().zip(dots) {
            dweights[slot as usize] = *product;
        }
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let slots = call.inputs[1].rows();
        let launch = launch("combine_backward", call, slots);
        let launch = launch
            .given((0..4).map(input))
            .given([output(0), output(1)]);
        let launch = launch.given([slots.into()]);
        Kernel::one(launch.given(widths(call, call.inputs[2].columns())))
    }
}

/// A launch of a block for each of `rows` rows.
fn launch(entry: &'static str, call: &Call, rows: u64) -> Launch {
    Launch::new("moe", entry)
        .format("T", call.format(0))
        .blocks(rows)
}

/// Columns of a row and slots of a token.
fn widths(call: &Call, k: u64) -> [Argument; 2] {
    [call.inputs[0].columns(), k].map(|n| (n as u32).into())
}

/// Where each slot stands in the order that is input `index`, into scratch.
fn inverted(call: &Call, index: usize) -> Launch {
    let slots = call.inputs[index].elements();
    launch("invert", call, slots.div_ceil(u64::from(THREADS))).given([
        input(index),
        scratch(0),
        slots.into(),
    ])
}

/// Fails unless these are rows, weights and order of the same slots.
fn expect_slots(op: &'static str, rows: &Type, weights: &Type, order: &Type) -> Result<()> {
    let fits = rows.rows() == order.elements()
        && weights.elements() == order.elements()
        && weights.dtype == DType::F32
        && order.dtype == DType::U32;
    expect(op, fits, || {
        format!("rows (N·k, H), weights (N, k), order (N·k); got {rows}, {weights}, {order}")
    })
}

/// Where each slot stands in `order`.
fn invert<'a>(order: &[u32], scratch: &'a mut [u8]) -> &'a [u32] {
    let places: &mut [u32] = bytemuck::cast_slice_mut(scratch);
    for (place, &slot) in order.iter().enumerate() {
        places[slot as usize] = place as u32;
    }
    places
}

/// `into = Σ weight(rank) · rows[places[rank]]`, in f32, rounded once.
fn sum<T: Element>(into: &mut [T], rows: &[T], places: &[u32], weight: impl Fn(usize) -> f32) {
    let columns = into.len();
    for (block, into) in into.chunks_mut(COLUMNS).enumerate() {
        let mut sums = [0.0f32; COLUMNS];
        for (rank, &place) in places.iter().enumerate() {
            let (weight, from) = (weight(rank), place as usize * columns + block * COLUMNS);
            let row = &rows[from..from + into.len()];
            add_weighted(&mut sums, row, weight);
        }
        simd::narrow(&sums[..into.len()], into);
    }
}

vectorized! {
    /// `sum += weight · x`.
    fn add_weighted<T: Element>(sum: &mut [f32], x: &[T], weight: f32) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += weight * x.wide();
        }
    }

    /// `y = weight · x`.
    fn weighted<T: Element>(y: &mut [T], x: &[T], weight: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(weight * x.wide());
        }
    }
}
