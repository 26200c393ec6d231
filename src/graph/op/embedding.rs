//! Rows of tables: token embeddings, and tables added by position or token type.

use rayon::prelude::*;

use super::elementwise::zero;
use super::kernel::{Call, Kernel, Launch, input, output};
use super::simd::{self, vectorized};
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, summed, traffic};
use crate::error::{Error, Result};
use crate::graph::backward::Backward;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Columns summed at a time, in f32 on the stack.
const COLUMNS: usize = 256;
/// Tokens one task of the backward sums at least, unless they are all of one row.
const TOKENS: usize = 128;

/// `y[n] = scale · table[ids[n]]`: table (V, H) and ids (N) (U32) to y (N, H).
///
/// Gemma scales by √H (Gemma Team 2024, arXiv:2403.08295); others by 1.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// What each row is multiplied by.
    pub scale: f64,
}

/// The table's gradient: dy (N, H), ids (N) and, if accumulating, the sum so far (V, H), to dtable (V, H).
///
/// Tokens are sorted, then each row sums its tokens in their order in f32 and rounds once: no atomics.
#[derive(Debug, Clone)]
pub struct EmbeddingBackward {
    /// Rows V of the table.
    pub vocab: u64,
    /// As of the forward op.
    pub scale: f64,
    /// Format of the gradient.
    pub format: DType,
    /// Whether input 2 is a sum to add to, which the output overwrites.
    pub accumulate: bool,
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (table, ids) = (&inputs[0], &inputs[1]);
        let fits = table.shape.len() == 2 && ids.shape.len() == 1 && ids.dtype == DType::U32;
        expect(self.name(), fits, || format!("{ids} of table {table}"))?;
        let shape = [ids.elements(), table.columns()];
        Ok(vec![Output::Fresh(Type::new(&shape, table.dtype))])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: outputs[0].elements(),
            bytes: inputs[1].bytes().0 + 2 * outputs[0].bytes().0,
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let (true, Some(dy)) = (at.wants(0), at.grad(0)) else {
            return Ok(());
        };
        let (format, sum) = (at.format(0), at.take_sum(0));
        let op = EmbeddingBackward {
            vocab: at.type_of(at.input(0)).shape[0],
            scale: self.scale,
            format,
            accumulate: sum.is_some(),
        };
        let inputs: Vec<_> = [dy, at.input(1)].into_iter().chain(sum).collect();
        let table = at.emit(op, &inputs)?[0];
        at.give(0, table)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        at.product_rule(self.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (table, ids, y) = (io.inputs[0], io.inputs[1].of::<u32>(), &mut io.outputs[0]);
        check_ids(ids, table.at.shape[0])?;
        let (columns, scale) = (table.at.columns() as usize, self.scale as f32);
        with_float!("embedding", table.at.dtype, T => {
            let table = table.of::<T>();
            y.of::<T>().par_chunks_mut(columns.max(1)).zip(ids).for_each(|(y, &id)| {
                let row = &table[id as usize * columns..][..columns];
                scaled(y, row, scale);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let tokens = call.inputs[1].elements();
        let launch = Launch::new("embedding", "embedding")
            .format("T", call.format(0))
            .format("G", call.format(0))
            .blocks(tokens)
            .given([input(0), input(1), output(0), tokens.into()])
            .given(table_size(&call.inputs[0]).map(Into::into));
        Kernel::one(launch.given([(self.scale as f32).into()]))
    }
}

impl Op for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2 + usize::from(self.accumulate))?;
        let fits = inputs[0].rows() == inputs[1].elements() && inputs[1].dtype == DType::U32;
        expect(self.name(), fits, || {
            format!("{} for tokens {}", inputs[0], inputs[1])
        })?;
        let table = Type::new(&[self.vocab, inputs[0].columns()], self.format);
        summed(self.name(), table, inputs, self.accumulate, 2)
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[1].elements() * 8)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 2 * inputs[0].elements(),
            bytes: traffic(&inputs[..2], outputs) + inputs[0].bytes().0,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, ids) = (io.inputs[0], io.inputs[1].of::<u32>());
        check_ids(ids, self.vocab)?;
        let slots: &mut [u64] = bytemuck::cast_slice_mut(io.scratch);
        for (n, (slot, &id)) in slots.iter_mut().zip(ids).enumerate() {
            *slot = (u64::from(id) << 32) | n as u64;
        }
        slots.par_sort_unstable();
        let (columns, scale) = (dy.at.columns() as usize, self.scale as f32);
        with_float!("embedding_backward", dy.at.dtype, X => {
            let gradients = Gradients { rows: dy.of::<X>(), columns, scale };
            with_float!("embedding_backward", self.format, G => {
                let table = io.outputs[0].of::<G>();
                if !self.accumulate {
                    table.par_chunks_mut(super::elementwise::CHUNK).for_each(|t| t.fill(G::narrow(0.0)));
                }
                gradients.scatter(table, 0, slots);
                Ok(())
            })
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (tokens, table) = (call.inputs[1].elements(), &call.outputs[0]);
        let launch = Launch::new("embedding", self.name())
            .format("T", call.format(0))
            .format("G", self.format)
            .grid(tokens, table.columns().div_ceil(2048), 1)
            .given([input(0), input(1), output(0), tokens.into()])
            .given(table_size(table).map(Into::into))
            .given([(self.scale as f32).into()]);
        let clear = (!self.accumulate).then(|| zero(0, table));
        Kernel::all(clear.into_iter().chain([launch]))
    }
}

/// Gradients of rows of a table: dy (N, H).
struct Gradients<'a, X> {
    /// The elements of dy.
    rows: &'a [X],
    /// H.
    columns: usize,
    /// What every sum is multiplied by.
    scale: f32,
}

impl<X: Element> Gradients<'_, X> {
    /// Adds the tokens of `slots` (row << 32 | token, sorted) to `table`, whose first row is `first`.
    fn scatter<G: Element>(&self, table: &mut [G], first: usize, slots: &[u64]) {
        let row = |slot: u64| (slot >> 32) as usize;
        let (Some(&low), Some(&high)) = (slots.first(), slots.last()) else {
            return;
        };
        if row(low) == row(high) {
            let at = (row(low) - first) * self.columns;
            let tokens = slots.iter().map(|&s| s as u32 as usize);
            return self.add(&mut table[at..at + self.columns], tokens);
        }
        let middle = row(slots[slots.len() / 2]);
        // The run of equal rows around the middle goes left, or right where it begins the list.
        let pivot = if middle == row(low) {
            middle + 1
        } else {
            middle
        };
        let (left, right) = slots.split_at(slots.partition_point(|&s| row(s) < pivot));
        let (above, below) = table.split_at_mut((pivot - first) * self.columns);
        if slots.len() <= TOKENS {
            self.scatter(above, first, left);
            self.scatter(below, pivot, right);
        } else {
            rayon::join(
                || self.scatter(above, first, left),
                || self.scatter(below, pivot, right),
            );
        }
    }

    /// `row += scale · Σ dy[token]`, in f32, rounded once.
    fn add<G: Element>(&self, row: &mut [G], tokens: impl Iterator<Item = usize> + Clone) {
        for (block, row) in row.chunks_mut(COLUMNS).enumerate() {
            let mut sum = [0.0f32; COLUMNS];
            for token in tokens.clone() {
                let from = &self.rows[token * self.columns + block * COLUMNS..][..row.len()];
                simd::add(from, &mut sum);
            }
            add_scaled(row, &sum, self.scale);
        }
    }
}

vectorized! {
    /// `y = scale · x`.
    fn scaled<T: Element>(y: &mut [T], x: &[T], scale: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(x.wide() * scale);
        }
    }

    /// `y += x`.
    fn add<T: Element>(y: &mut [T], x: &[T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(y.wide() + x.wide());
        }
    }

    /// `y += scale · x`.
    fn add_scaled<T: Element>(y: &mut [T], x: &[f32], scale: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(y.wide() + scale * x);
        }
    }
}

/// `x[n] += table[n mod seq + offset]`: x (N, H), which the output overwrites, and table (P, H).
///
/// Learned positions (Vaswani et al. 2017; OPT starts at offset 2). With `seq` 1 every row gets row `offset`, as
/// with one token type everywhere (BERT, Devlin et al. 2019).
#[derive(Debug, Clone)]
pub struct PositionEmbedding {
    /// Rows of one sequence.
    pub seq: u64,
    /// Row of the table the first position gets.
    pub offset: u64,
}

/// The table's gradient: dy (N, H) and, if accumulating, the sum so far (P, H), to dtable (P, H).
#[derive(Debug, Clone)]
pub struct PositionEmbeddingBackward {
    /// As of the forward op.
    pub seq: u64,
    /// As of the forward op.
    pub offset: u64,
    /// Rows P of the table.
    pub positions: u64,
    /// Format of the gradient.
    pub format: DType,
    /// Whether input 1 is a sum to add to, which the output overwrites.
    pub accumulate: bool,
}

impl Op for PositionEmbedding {
    fn name(&self) -> &'static str {
        "position_embedding"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (x, table) = (&inputs[0], &inputs[1]);
        let fits = x.columns() == table.columns()
            && x.dtype == table.dtype
            && self.seq > 0
            && x.rows().is_multiple_of(self.seq)
            && self.seq + self.offset <= table.rows();
        expect(self.name(), fits, || {
            let (seq, offset) = (self.seq, self.offset);
            format!("adds {seq} rows of {table} from row {offset} on to each {seq} rows of {x}")
        })?;
        Ok(vec![Output::Overwrite { of: 0 }])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let row = inputs[1].columns() * inputs[1].dtype.bytes();
        Work {
            matmul: 0,
            vector: outputs[0].elements(),
            bytes: 2 * outputs[0].bytes().0 + self.seq * row,
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        if let (true, Some(dy)) = (at.wants(1), at.grad(0)) {
            let (format, sum) = (at.format(1), at.take_sum(1));
            let op = PositionEmbeddingBackward {
                seq: self.seq,
                offset: self.offset,
                positions: at.type_of(at.input(1)).rows(),
                format,
                accumulate: sum.is_some(),
            };
            let inputs: Vec<_> = [dy].into_iter().chain(sum).collect();
            let table = at.emit(op, &inputs)?[0];
            at.give(1, table)?;
        }
        at.pass(0, 0, false)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let (owned, dx) = (at.owns(0), at.of(0));
        let Some(dtable) = at.of(1) else {
            at.pass(0);
            return Ok(());
        };
        let base = match dx.filter(|_| owned) {
            Some(dx) => dx,
            None => at.zero(at.output(0))?,
        };
        let rows = at.emit(self.clone(), &[base, dtable])?[0];
        let terms: Vec<_> = dx.filter(|_| !owned).into_iter().chain([rows]).collect();
        at.give_sum(&terms)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (table, x) = (io.inputs[1], &mut io.outputs[0]);
        let columns = table.at.columns() as usize;
        let (seq, offset) = (self.seq as usize, self.offset as usize);
        with_float!("position_embedding", table.at.dtype, T => {
            let table = table.of::<T>();
            x.of::<T>().par_chunks_mut(columns.max(1)).enumerate().for_each(|(n, x)| {
                let row = &table[(n % seq + offset) * columns..][..columns];
                add(x, row);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.outputs[0].rows(), call.outputs[0].columns());
        let launch = Launch::new("embedding", self.name())
            .format("T", call.format(0))
            .format("G", call.format(0))
            .blocks(rows)
            .given([output(0), input(1), rows.into(), (columns as u32).into()]);
        Kernel::one(launch.given([self.seq.into(), self.offset.into()]))
    }
}

impl Op for PositionEmbeddingBackward {
    fn name(&self) -> &'static str {
        "position_embedding_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1 + usize::from(self.accumulate))?;
        let fits = self.seq > 0 && inputs[0].rows().is_multiple_of(self.seq);
        expect(self.name(), fits, || {
            format!("{} in sequences of {}", inputs[0], self.seq)
        })?;
        let table = Type::new(&[self.positions, inputs[0].columns()], self.format);
        summed(self.name(), table, inputs, self.accumulate, 1)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, table) = (io.inputs[0], &mut io.outputs[0]);
        let (columns, rows) = (dy.at.columns() as usize, dy.at.rows() as usize);
        let (seq, offset) = (self.seq as usize, self.offset as usize);
        with_float!("position_embedding_backward", dy.at.dtype, X => {
            let gradients = Gradients { rows: dy.of::<X>(), columns, scale: 1.0 };
            with_float!("position_embedding_backward", self.format, G => {
                let table = table.of::<G>().par_chunks_mut(columns.max(1));
                table.enumerate().for_each(|(p, row)| {
                    if !self.accumulate {
                        row.fill(G::narrow(0.0));
                    }
                    if (offset..offset + seq).contains(&p) {
                        gradients.add(row, (p - offset..rows).step_by(seq));
                    }
                });
                Ok(())
            })
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rows, columns) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = Launch::new("embedding", self.name())
            .format("T", call.format(0))
            .format("G", self.format)
            .blocks(self.positions)
            .given([input(0), output(0), rows.into(), (columns as u32).into()])
            .given([self.seq, self.offset, self.positions].map(Into::into));
        Kernel::one(launch.given([u32::from(self.accumulate).into()]))
    }
}

/// Columns and rows of a table.
fn table_size(table: &Type) -> [u32; 2] {
    [table.columns(), table.rows()].map(|n| n as u32)
}

/// Fails on a token that has no row.
fn check_ids(ids: &[u32], vocab: u64) -> Result<()> {
    match ids.iter().position(|&id| u64::from(id) >= vocab) {
        None => Ok(()),
        Some(n) => Err(Error::value(
            format!("token {n} of the batch"),
            ids[n],
            format!("the vocabulary has {vocab} tokens"),
            "use the tokenizer the model was made with",
        )),
    }
}
