//! A step between two sparse projectors, taken.

use rayon::prelude::*;

use super::step::Descend;
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, SHARED, input};
use crate::graph::op::optimizer::update::{coefficient, expect_guard};
use crate::graph::op::simd::vectorized;
use crate::graph::op::sparse::{LANES, Sparse, add_scaled, expect_sparse};
use crate::graph::op::{Element, Io, Op, Output, ViewMut, Work, expect, expect_inputs, traffic};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// `W ← W (1 - rate λ) - rate · P S Qᵀ`, a few rows at a time: the matrix P S Qᵀ never exists.
///
/// Inputs: step S (d, d) (F32), values and columns of P (m, r), values and columns of Q (n, r), parameter W (m, n), master (F32,
/// with `master`), guard (3) (with `guard`). Outputs overwrite parameter and master.
#[derive(Debug, Clone)]
pub struct ApplyProjected {
    /// Weight decay λ.
    pub decay: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether a guard may say to leave the step out.
    pub guard: bool,
}

/// f32 elements of one thread's scratch: one row of P S, and the rows of a tile side by side.
fn slot(width: usize) -> usize {
    width * (LANES + 1)
}

impl Op for ApplyProjected {
    fn name(&self) -> &'static str {
        "lsp_apply"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let count = 6 + usize::from(self.master);
        expect_inputs(self.name(), inputs, count + usize::from(self.guard))?;
        let (width, at) = (inputs[0].columns(), &inputs[5]);
        let fits = inputs[0] == Type::new(&[width, width], DType::F32)
            && at.shape.len() == 2
            && (!self.master || inputs[6] == at.with(DType::F32));
        expect(self.name(), fits, || {
            format!("takes a step (d, d), P, Q and a parameter; got {inputs:?}")
        })?;
        expect_sparse(self.name(), [&inputs[1], &inputs[2]], at.rows(), width)?;
        expect_sparse(self.name(), [&inputs[3], &inputs[4]], at.columns(), width)?;
        expect_guard(self.name(), self.guard, inputs)?;
        Ok((5..count).map(|of| Output::Overwrite { of }).collect())
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        match backend {
            Backend::Cpu { threads } => {
                Bytes(u64::from(threads.max(1)) * slot(inputs[0].columns() as usize) as u64 * 4)
            }
            // A thread block holds its rows of P S in shared memory.
            Backend::Cuda { .. } => Bytes::ZERO,
        }
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let (width, at) = (inputs[0].columns(), &inputs[5]);
        let left = 2 * at.rows() * inputs[1].columns() * width;
        let right = 2 * at.elements() * inputs[3].columns();
        Work {
            matmul: 0,
            vector: left + right + 3 * at.elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        if coefficient(self.guard, io).is_none() {
            return Ok(());
        }
        let rule = Descend::of(&io.scalars, self.decay);
        let [step, p, p_at, q, q_at] = [0, 1, 2, 3, 4].map(|i| io.inputs[i]);
        let Some((parameter, masters)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let columns = parameter.at.columns() as usize;
        let master = masters.first_mut().map(ViewMut::of).unwrap_or_default();
        let scratch = bytemuck::cast_slice_mut(io.scratch);
        with_float!(self.name(), p.at.dtype, P => with_float!(self.name(), parameter.at.dtype, W => {
            let applied = Applied {
                step: step.of(),
                width: step.at.columns() as usize,
                p: Sparse::<P>::of(p, p_at),
                q: Sparse::<P>::of(q, q_at),
                rule,
            };
            applied.run(parameter.of::<W>(), master, columns, scratch);
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        // Rows of P S that fit in a block's shared memory, at most eight.
        let (width, at) = (call.inputs[0].columns(), &call.inputs[5]);
        let rows = (SHARED / (4 * width)).min(8);
        if rows == 0 {
            return Kernel::Missing;
        }
        let rule = Descend::of(&call.scalars, self.decay);
        let optional = |there: bool, index: usize| match there {
            true => input(index),
            false => Argument::Null,
        };
        let sizes = [
            width,
            call.inputs[1].columns(),
            call.inputs[3].columns(),
            rows,
        ];
        let launch = Launch::new("sparse", self.name())
            .format("T", at.dtype)
            .format("V", call.format(1))
            .grid(at.rows().div_ceil(rows), 1, 1)
            .shared(rows * width * 4)
            .given((0..6).map(input))
            .given([optional(self.master, 6)])
            .given([optional(self.guard, 6 + usize::from(self.master))])
            .given([at.rows().into(), at.columns().into()])
            .given(sizes.map(|n| Argument::U32(n as u32)));
        Kernel::one(launch.given([rule.rate, rule.keep].map(Argument::F32)))
    }
}

/// One step between its projectors.
struct Applied<'a, P> {
    step: &'a [f32],
    width: usize,
    p: Sparse<'a, P>,
    q: Sparse<'a, P>,
    rule: Descend,
}

/// Columns of a weight that a tile changes at a time.
const BLOCK: usize = 64;

/// Rows of a weight for one thread: the first, the rows of parameter and master, and scratch.
type Share<'a, W> = (usize, &'a mut [W], &'a mut [f32], &'a mut [f32]);

impl<P: Element> Applied<'_, P> {
    /// Takes the step, each thread in neighbouring rows.
    fn run<W: Element>(
        &self,
        mut weight: &mut [W],
        mut master: &mut [f32],
        columns: usize,
        scratch: &mut [f32],
    ) {
        let rows = weight.len() / columns.max(1);
        let slots = scratch.len() / slot(self.width);
        let each = rows.div_ceil(LANES).div_ceil(slots.max(1)).max(1) * LANES;
        let mut shares: Vec<Share<W>> = Vec::with_capacity(slots);
        for (index, scratch) in scratch.chunks_exact_mut(slot(self.width)).enumerate() {
            let count = (each * columns).min(weight.len());
            let (mine, rest) = weight.split_at_mut(count);
            weight = rest;
            let (wide, rest) = master.split_at_mut(count.min(master.len()));
            master = rest;
            shares.push((index * each, mine, wide, scratch));
        }
        shares
            .into_par_iter()
            .for_each(|share| self.rows(share, columns));
    }

    /// The rows of one thread.
    fn rows<W: Element>(&self, (first, weight, mut master, scratch): Share<W>, columns: usize) {
        let (row, tile) = scratch.split_at_mut(self.width);
        for (index, weight) in weight.chunks_mut(LANES * columns).enumerate() {
            let (wide, rest) = master.split_at_mut(weight.len().min(master.len()));
            master = rest;
            self.left(first + index * LANES, weight.len() / columns, row, tile);
            let mut steps = [[0.0f32; LANES]; BLOCK];
            for from in (0..columns).step_by(BLOCK) {
                let count = BLOCK.min(columns - from);
                let range = from * self.q.per_row..(from + count) * self.q.per_row;
                let (at, values) = (&self.q.columns[range.clone()], &self.q.values[range]);
                right(tile, at, values, self.q.per_row, &mut steps[..count]);
                self.take(&steps[..count], (from, columns), weight, wide);
            }
        }
    }

    /// `rows` rows of P S from `first` on, side by side in `tile` (width, lanes).
    fn left(&self, first: usize, rows: usize, row: &mut [f32], tile: &mut [f32]) {
        for lane in 0..rows {
            row.fill(0.0);
            for (k, value) in self.p.row(first + lane) {
                let step = &self.step[k * self.width..(k + 1) * self.width];
                add_scaled(value, step, row);
            }
            for (into, x) in tile.chunks_exact_mut(LANES).zip(&*row) {
                into[lane] = *x;
            }
        }
    }

    /// Takes `steps` in columns `from..` of a tile's rows.
    fn take<W: Element>(
        &self,
        steps: &[[f32; LANES]],
        (from, columns): (usize, usize),
        weight: &mut [W],
        master: &mut [f32],
    ) {
        let mut masters = master.chunks_exact_mut(columns);
        for (lane, row) in weight.chunks_exact_mut(columns).enumerate() {
            let row = row[from..].iter_mut().zip(steps);
            match masters.next() {
                None => row.for_each(|(weight, step)| {
                    *weight = W::narrow(self.rule.take(weight.wide(), step[lane]));
                }),
                Some(master) => row
                    .zip(&mut master[from..])
                    .for_each(|((weight, step), wide)| {
                        *wide = self.rule.take(*wide, step[lane]);
                        *weight = W::narrow(*wide);
                    }),
            }
        }
    }
}

vectorized! {
    /// A tile (width, lanes) of P S times the rows of Q that `columns` and `values` are.
    fn right<P: Element>(
        tile: &[f32],
        columns: &[u16],
        values: &[P],
        per_row: usize,
        steps: &mut [[f32; LANES]],
    ) {
        let matrix = columns.chunks_exact(per_row).zip(values.chunks_exact(per_row));
        for (step, (columns, values)) in steps.iter_mut().zip(matrix) {
            *step = [0.0; LANES];
            for (column, value) in columns.iter().zip(values) {
                let at = *column as usize * LANES;
                let value = value.wide();
                for (step, x) in step.iter_mut().zip(&tile[at..at + LANES]) {
                    *step += value * x;
                }
            }
        }
    }
}
