//! Attention that keeps its probabilities: softmax(scale q kᵀ) v (Vaswani et al. 2017).

use std::ops::Range;

use super::attention_backward::{Gradients, Saved, slot};
use super::attention_tangent::give_tangent;
use super::kernel::{Argument, Call, Kernel, input, output};
use super::scores::{self, AttentionKernel, Dropout};
use super::tile::{Cut, Heads, TileMut, carve, product, run_all, slot_of, widened};
use super::{Element, Io, Op, Output, Work, exactly, expect, expect_inputs, simd, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::gemm::Mat;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

pub use super::scores::AttentionShape;

/// Queries of a task.
pub(super) const QUERIES: usize = 64;

/// Inputs q (N, heads D), k and v (B (P + T), kv_heads D); outputs out (N, heads D) and the probabilities
/// before dropout (B heads T, P + T).
#[derive(Debug, Clone)]
pub struct Attention {
    /// What is attended to.
    pub shape: AttentionShape,
}

/// Inputs dout, q, k, v, probabilities; outputs dq, dk, dv.
#[derive(Debug, Clone)]
pub struct AttentionBackward {
    /// As in the forward op.
    pub shape: AttentionShape,
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        self.shape.check(self.name(), inputs)?;
        let s = &self.shape;
        let probs = Type::new(&[s.batch * s.heads * s.seq, s.keys()], inputs[0].dtype);
        Ok(vec![Output::Fresh(inputs[0].clone()), Output::Fresh(probs)])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        slots(slot_of(self.pieces(inputs[0].dtype.is_half())), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        forward_work(&self.shape, inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dout) = at.grad(0) else {
            return Ok(());
        };
        let shape = self.shape.clone();
        let inputs = [dout, at.input(0), at.input(1), at.input(2), at.output(1)];
        let made = at.emit(AttentionBackward { shape }, &inputs)?;
        give_wanted(at, &made)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        give_tangent(at, self.shape.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dropout = Dropout::new(&self.shape, io.key, io.scalars);
        let (seq, keys) = (self.shape.seq as usize, self.shape.keys() as usize);
        let [out, probs] = exactly(self.name(), &mut io.outputs)?;
        with_float!(self.name(), out.at.dtype, T => {
            let qkv = [0, 1, 2].map(|i| self.shape.heads_of(i, io.inputs[i].of::<T>()));
            let pieces = self.pieces(T::DTYPE.is_half());
            let probs = probs.of::<T>().chunks_mut(seq * keys);
            let probs = probs.flat_map(|head| head.chunks_mut(QUERIES * keys));
            let jobs = self.shape.query_blocks().zip(self.shape.out_tiles(out.of::<T>()).zip(probs));
            run_all(jobs, io.scratch, slot_of(pieces), |(at, (mut out, probs)), slot| {
                self.block(qkv, dropout, at, &mut out, probs, carve(slot, pieces));
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        forward_kernel(&self.shape, call, [Argument::Null, output(1)])
    }
}

impl Attention {
    /// f32 scratch of a task: scores, sums of values; widened queries, keys and values.
    fn pieces(&self, half: bool) -> [usize; 5] {
        let (t, d) = (self.shape.keys() as usize, self.shape.head_dim as usize);
        let wide = usize::from(half);
        [
            QUERIES * t,
            QUERIES * d,
            wide * QUERIES * d,
            wide * t * d,
            wide * t * d,
        ]
    }

    /// The probabilities (rows, T) and the output (rows, D) of some queries of one head.
    fn block<T: Element>(
        &self,
        [q, k, v]: [Heads<T>; 3],
        dropout: Dropout,
        at: Block,
        out: &mut TileMut<T>,
        probs: &mut [T],
        [scores, sums, q_room, k_room, v_room]: [&mut [f32]; 5],
    ) {
        let (shape, count, span) = (&self.shape, at.rows.len(), self.shape.span(&at.rows));
        let (batch, kv) = (at.batch, at.head / shape.group());
        let q = widened(at.of(q), q_room);
        let k = widened(k.tile(batch, kv, span.clone()), k_room);
        let v = widened(v.tile(batch, kv, span.clone()), v_room);
        let mut tile = TileMut::new(scores, count, span.len());
        product(&mut tile, q, k.t(), shape.scale as f32, false);
        let probs = probs.chunks_exact_mut(shape.keys() as usize);
        for ((row, i), probs) in at.rows.clone().enumerate().zip(probs) {
            let scores = tile.row(row);
            if let Some(cap) = shape.softcap {
                scores::soft_cap(scores, cap as f32);
            }
            scores::softmax(scores, within(shape.visible(i), &span));
            probs[..span.start].fill(T::narrow(0.0));
            probs[span.end..].fill(T::narrow(0.0));
            simd::narrow(scores, &mut probs[span.clone()]);
            if dropout.is_on() {
                dropout.apply(at.row(shape) + row, span.start, scores);
            }
        }
        let mut sums_tile = TileMut::new(sums, count, v.cols);
        product(
            &mut sums_tile,
            Mat::new(scores, count, span.len()),
            v,
            1.0,
            false,
        );
        for row in 0..count {
            simd::narrow(sums_tile.row(row), out.row(row));
        }
    }
}

impl Op for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 5)?;
        self.shape.check(self.name(), &inputs[1..4])?;
        expect(self.name(), inputs[0] == inputs[1], || {
            format!("gradient {} of {}", inputs[0], inputs[1])
        })?;
        Ok(inputs[1..4].iter().cloned().map(Output::Fresh).collect())
    }
    fn scratch(&self, _: &[Type], backend: Backend) -> Bytes {
        let keys = self.shape.keys() as usize;
        slots(slot(&self.shape, keys), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let (pairs, again) = (self.shape.pairs(), u64::from(self.shape.softcap.is_some()));
        Work {
            matmul: (8 + 2 * again) * pairs * self.shape.head_dim,
            vector: pairs * (6 + 30 * again),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dropout = Dropout::new(&self.shape, io.key, io.scalars);
        let made = exactly(self.name(), &mut io.outputs)?;
        with_float!(self.name(), made[0].at.dtype, T => {
            let [dout, q, k, v, probs] = [0, 1, 2, 3, 4].map(|i| io.inputs[i].of::<T>());
            let gradients = Gradients {
                shape: &self.shape,
                dropout,
                keys: self.shape.keys() as usize,
                dout: self.shape.heads_of(0, dout),
                q: self.shape.heads_of(0, q),
                k: self.shape.heads_of(1, k),
                v: self.shape.heads_of(2, v),
                saved: Saved::Probabilities(probs),
            };
            gradients.run(made.each_mut().map(|made| made.of::<T>()), io.scratch);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        backward_kernel(
            &self.shape,
            call,
            Argument::Null,
            [Argument::Null, input(4)],
        )
    }
}

/// Some queries of one head.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Sequence.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Positions.
    pub rows: Range<usize>,
}

impl Block {
    /// Its tile of an activation with the query's heads.
    pub fn of<'a, T>(&self, heads: Heads<'a, T>) -> Mat<'a, T> {
        heads.tile(self.batch, self.head, self.rows.clone())
    }

    /// The first of its rows in (B heads T).
    pub fn row(&self, shape: &AttentionShape) -> usize {
        let head = self.batch * shape.heads as usize + self.head;
        head * shape.seq as usize + self.rows.start
    }
}

impl AttentionShape {
    /// The heads of q (index 0), k (1) or v (2).
    pub(super) fn heads_of<'a, T>(&self, index: usize, data: &'a [T]) -> Heads<'a, T> {
        let (count, seq) = match index {
            0 => (self.heads, self.seq),
            _ => (self.kv_heads, self.keys()),
        };
        Heads {
            data,
            seq: seq as usize,
            count: count as usize,
            width: self.head_dim as usize,
        }
    }

    /// Blocks of [`QUERIES`] queries: by sequence, head, position.
    pub(super) fn query_blocks(&self) -> impl Iterator<Item = Block> + Send {
        let [batch, heads, seq] = [self.batch, self.heads, self.seq].map(|n| n as usize);
        let down = seq.div_ceil(QUERIES);
        (0..batch * heads * down).map(move |index| {
            let first = index % down * QUERIES;
            Block {
                batch: index / down / heads,
                head: index / down % heads,
                rows: first..seq.min(first + QUERIES),
            }
        })
    }

    /// The output tile of each of [`AttentionShape::query_blocks`].
    pub(super) fn out_tiles<'a, T: Send>(
        &self,
        out: &'a mut [T],
    ) -> impl Iterator<Item = TileMut<'a, T>> + Send + use<'a, T> {
        let cut = Cut {
            batch: self.batch as usize,
            seq: self.seq as usize,
            columns: (self.heads * self.head_dim) as usize,
            height: QUERIES,
            width: self.head_dim as usize,
        };
        cut.tiles(out)
    }
}

/// `range` counted from the start of `span`, and cut to it.
pub(super) fn within(range: Range<usize>, span: &Range<usize>) -> Range<usize> {
    let clip = |at: usize| at.clamp(span.start, span.end) - span.start;
    clip(range.start)..clip(range.end)
}

/// One slot of `size` f32 elements for each thread.
pub(super) fn slots(size: usize, backend: Backend) -> Bytes {
    match backend {
        Backend::Cpu { threads } => Bytes(size as u64 * 4 * u64::from(threads.max(1))),
        Backend::Cuda { .. } => Bytes::ZERO,
    }
}

/// The kernel of either forward op; `left` is where logs of sums and where probabilities go, one of them null.
pub(super) fn forward_kernel(shape: &AttentionShape, call: &Call, left: [Argument; 2]) -> Kernel {
    let saved = left[1] != Argument::Null;
    let rows = (shape.seq, shape.heads);
    let Some(launch) = shape.launch(AttentionKernel::Forward, rows, call, saved) else {
        return Kernel::Missing;
    };
    let launch = launch.given([input(0), input(1), input(2), output(0)]);
    Kernel::one(launch.given(left).given(shape.arguments(call)))
}

/// The kernels of either backward op: inputs dout, q, k, v; the forward pass's output where it is there; logs of sums and probabilities, one
/// of them null. Sums of probabilities and their gradients wait in dq until it is made.
pub(super) fn backward_kernel(
    shape: &AttentionShape,
    call: &Call,
    out: Argument,
    saved: [Argument; 2],
) -> Kernel {
    let is_saved = saved[1] != Argument::Null;
    let (queries, keys) = ((shape.seq, shape.heads), (shape.keys(), shape.kv_heads));
    let launch = |kernel, rows| {
        let launch = shape.launch(kernel, rows, call, is_saved)?;
        Some(launch.given([input(0)]))
    };
    let make = || {
        let deltas = launch(AttentionKernel::Deltas, queries)?;
        let deltas = match is_saved {
            true => {
                let deltas = deltas.given([input(3), saved[1], output(0)]);
                deltas.given(shape.arguments(call))
            }
            false => shape.deltas_along(deltas, out),
        };
        let rest = [
            (AttentionKernel::Keys, keys, 3),
            (AttentionKernel::Queries, queries, 1),
        ];
        let mut all = vec![deltas];
        for (kernel, rows, outputs) in rest {
            let launch = launch(kernel, rows)?.given([1, 2, 3].map(input));
            let launch = launch.given(saved).given((0..outputs).map(output));
            all.push(launch.given(shape.arguments(call)));
        }
        Some(Kernel::all(all))
    };
    make().unwrap_or(Kernel::Missing)
}

/// Two products and a softmax over the pairs that are seen.
pub(super) fn forward_work(shape: &AttentionShape, inputs: &[Type], outputs: &[Type]) -> Work {
    Work {
        matmul: 4 * shape.pairs() * shape.head_dim,
        vector: shape.pairs() * shape.pair_flops(),
        bytes: traffic(inputs, outputs),
    }
}

/// Gives dq, dk and dv to the inputs that want them.
pub(super) fn give_wanted(
    at: &mut Backward,
    made: &[crate::graph::tensor::TensorId],
) -> Result<()> {
    for (index, &gradient) in made.iter().enumerate() {
        if at.wants(index) {
            at.give(index, gradient)?;
        }
    }
    Ok(())
}
