//! Attention that keeps no probabilities (Dao et al. 2022): tiles of keys, with the softmax computed online.

use super::attention::{
    AttentionShape, Block, QUERIES, backward_kernel, forward_kernel, forward_work, give_wanted,
    slots, within,
};
use super::attention_backward::{Gradients, Saved, slot};
use super::attention_tangent::give_tangent;
use super::gemm::Mat;
use super::kernel::{Argument, Call, Kernel, input, output};
use super::scores::{self, Dropout};
use super::tile::{Heads, TileMut, carve, pieces, product, run_all, slot_of, widened};
use super::{Element, Io, Op, Output, Work, exactly, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Keys of a tile.
pub(super) const KEYS: usize = 256;

/// Inputs q (N, heads D), k and v (B (P + T), kv_heads D); outputs out (N, heads D) and each row's log of the
/// sum of exponentials (B heads, T).
#[derive(Debug, Clone)]
pub struct FlashAttention {
    /// What is attended to.
    pub shape: AttentionShape,
}

/// Inputs dout, q, k, v, out and the logs; outputs dq, dk, dv.
#[derive(Debug, Clone)]
pub struct FlashAttentionBackward {
    /// As in the forward op.
    pub shape: AttentionShape,
}

impl Op for FlashAttention {
    fn name(&self) -> &'static str {
        "flash_attention"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        self.shape.check(self.name(), inputs)?;
        let lse = [self.shape.batch * self.shape.heads, self.shape.seq];
        let lse = Type::new(&lse, DType::F32);
        Ok(vec![Output::Fresh(inputs[0].clone()), Output::Fresh(lse)])
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
        let [q, k, v] = [0, 1, 2].map(|i| at.input(i));
        let inputs = [dout, q, k, v, at.output(0), at.output(1)];
        let made = at.emit(FlashAttentionBackward { shape }, &inputs)?;
        give_wanted(at, &made)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        give_tangent(at, self.shape.clone())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dropout = Dropout::new(&self.shape, io.key, io.scalars);
        let [out, lse] = exactly(self.name(), &mut io.outputs)?;
        with_float!(self.name(), out.at.dtype, T => {
            let qkv = [0, 1, 2].map(|i| self.shape.heads_of(i, io.inputs[i].of::<T>()));
            let pieces = self.pieces(T::DTYPE.is_half());
            let lse = lse.of::<f32>().chunks_mut(self.shape.seq as usize);
            let lse = lse.flat_map(|head| head.chunks_mut(QUERIES));
            let jobs = self.shape.query_blocks().zip(self.shape.out_tiles(out.of::<T>()).zip(lse));
            run_all(jobs, io.scratch, slot_of(pieces), |(at, (mut out, lse)), slot| {
                self.block(qkv, dropout, at, &mut out, lse, carve(slot, pieces));
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        forward_kernel(&self.shape, call, [output(1), Argument::Null])
    }
}

impl FlashAttention {
    /// f32 scratch of a task: scores, sums of values, totals; widened queries, keys and values.
    fn pieces(&self, half: bool) -> [usize; 6] {
        let (d, wide) = (self.shape.head_dim as usize, usize::from(half));
        let (keys, queries) = (wide * KEYS * d, wide * QUERIES * d);
        [QUERIES * KEYS, QUERIES * d, QUERIES, queries, keys, keys]
    }

    /// The output (rows, D) and logs of some queries of one head; `lse` holds the peaks meanwhile.
    fn block<T: Element>(
        &self,
        [q, k, v]: [Heads<T>; 3],
        dropout: Dropout,
        at: Block,
        out: &mut TileMut<T>,
        lse: &mut [f32],
        [scores, sums, totals, q_room, k_room, v_room]: [&mut [f32]; 6],
    ) {
        let (shape, count, d) = (&self.shape, at.rows.len(), q.width);
        let (batch, kv) = (at.batch, at.head / shape.group());
        let q = widened(at.of(q), q_room);
        lse.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        sums.fill(0.0);
        for keys in pieces(shape.span(&at.rows), KEYS) {
            let k = widened(k.tile(batch, kv, keys.clone()), k_room);
            let mut tile = TileMut::new(scores, count, keys.len());
            product(&mut tile, q, k.t(), shape.scale as f32, false);
            for (row, i) in at.rows.clone().enumerate() {
                let scores = tile.row(row);
                if let Some(cap) = shape.softcap {
                    scores::soft_cap(scores, cap as f32);
                }
                let (seen, sums) = (within(shape.visible(i), &keys), &mut sums[row * d..][..d]);
                scores::online(scores, seen, &mut lse[row], &mut totals[row], sums);
                if dropout.is_on() {
                    dropout.apply(at.row(shape) + row, keys.start, scores);
                }
            }
            let v = widened(v.tile(batch, kv, keys.clone()), v_room);
            let probs = Mat::new(&*scores, count, keys.len());
            product(&mut TileMut::new(sums, count, d), probs, v, 1.0, true);
        }
        for (row, (lse, total)) in lse.iter_mut().zip(totals).enumerate() {
            scores::narrow_scaled(&sums[row * d..][..d], 1.0 / *total, out.row(row));
            *lse += total.ln();
        }
    }
}

impl Op for FlashAttentionBackward {
    fn name(&self) -> &'static str {
        "flash_attention_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 6)?;
        self.shape.check(self.name(), &inputs[1..4])?;
        let good = inputs[0] == inputs[1] && inputs[4] == inputs[1];
        expect(self.name(), good, || {
            format!("takes dout and out like q; got {inputs:?}")
        })?;
        Ok(inputs[1..4].iter().cloned().map(Output::Fresh).collect())
    }
    fn scratch(&self, _: &[Type], backend: Backend) -> Bytes {
        slots(slot(&self.shape, KEYS), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let pairs = self.shape.pairs();
        Work {
            matmul: 10 * pairs * self.shape.head_dim,
            vector: pairs * (self.shape.pair_flops() + 4) + 2 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dropout = Dropout::new(&self.shape, io.key, io.scalars);
        let lse = io.inputs[5].of::<f32>();
        let made = exactly(self.name(), &mut io.outputs)?;
        with_float!(self.name(), made[0].at.dtype, T => {
            let [dout, q, k, v, out] = [0, 1, 2, 3, 4].map(|i| io.inputs[i].of::<T>());
            let gradients = Gradients {
                shape: &self.shape,
                dropout,
                keys: KEYS,
                dout: self.shape.heads_of(0, dout),
                q: self.shape.heads_of(0, q),
                k: self.shape.heads_of(1, k),
                v: self.shape.heads_of(2, v),
                saved: Saved::Output(self.shape.heads_of(0, out), lse),
            };
            gradients.run(made.each_mut().map(|made| made.of::<T>()), io.scratch);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        backward_kernel(&self.shape, call, input(4), [input(5), Argument::Null])
    }
}
