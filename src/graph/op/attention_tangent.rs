//! The tangent that both forms of attention share: the online softmax once more, with its derivative beside it.

use std::ops::Range;

use super::attention::{Block, QUERIES, slots, within};
use super::flash::KEYS;
use super::gemm::Mat;
use super::kernel::{Call, Kernel, input, output};
use super::scores::{self, AttentionKernel, AttentionShape, Dropout};
use super::simd::{self, vectorized};
use super::tile::{Heads, TileMut, carve, pieces, product, run_all, slot_of, widened};
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Inputs q (N, heads D), k and v (B (P + T), kv_heads D), out (N, heads D), then the tangents of q, k and v; output the tangent of out.
///
/// With e = exp(score - peak) and the factors f of dropout, out = Σ f e v / Σ e, so its tangent is
/// (Σ f e (dscore v + dv) - out Σ e dscore) / Σ e: one pass over tiles of keys, as Dao et al. 2022 go forward.
#[derive(Debug, Clone)]
pub struct AttentionTangent {
    /// As in the forward op.
    pub shape: AttentionShape,
}

/// What a call reads.
struct Reads<'a, T> {
    qkv: [Heads<'a, T>; 3],
    tangents: [Heads<'a, T>; 3],
    out: Heads<'a, T>,
    dropout: Dropout,
}

/// A tile (queries, keys) of exponentials and the tangents of their scores, with the soft cap's slopes of one row.
struct Scores<'a> {
    e: &'a mut [f32],
    moved: &'a mut [f32],
    slopes: &'a mut [f32],
}

/// What is summed over the keys of each query: the peak so far, Σ e, Σ e dscore, and Σ f e (dscore v + dv).
struct Sums<'a> {
    peaks: &'a mut [f32],
    totals: &'a mut [f32],
    spreads: &'a mut [f32],
    values: &'a mut [f32],
}

impl Op for AttentionTangent {
    fn name(&self) -> &'static str {
        "attention_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 7)?;
        self.shape.check(self.name(), inputs)?;
        let fits = inputs[3] == inputs[0] && inputs[4..] == inputs[..3];
        expect(self.name(), fits, || {
            format!("takes q, k, v, out like q, and the tangents of q, k, v; got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(inputs[0].clone())])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        slots(slot_of(self.pieces(inputs[0].dtype.is_half())), backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let pairs = self.shape.pairs();
        Work {
            matmul: 10 * pairs * self.shape.head_dim,
            vector: pairs * (self.shape.pair_flops() + 3) + 3 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dropout = Dropout::new(&self.shape, io.key, io.scalars);
        let made = &mut io.outputs[0];
        with_float!(self.name(), made.at.dtype, T => {
            let heads = |index: usize, of: usize| self.shape.heads_of(of, io.inputs[index].of::<T>());
            let reads = Reads {
                qkv: [0, 1, 2].map(|i| heads(i, i)),
                tangents: [0, 1, 2].map(|i| heads(4 + i, i)),
                out: heads(3, 0),
                dropout,
            };
            let pieces = self.pieces(T::DTYPE.is_half());
            let jobs = self.shape.query_blocks().zip(self.shape.out_tiles(made.of::<T>()));
            run_all(jobs, io.scratch, slot_of(pieces), |(at, mut made), slot| {
                self.block(&reads, &at, &mut made, carve(slot, pieces));
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let rows = (self.shape.seq, self.shape.heads);
        let launch = self
            .shape
            .launch(AttentionKernel::Tangent, rows, call, false);
        launch.map_or(Kernel::Missing, |launch| {
            let launch = launch.given((0..7).map(input)).given([output(0)]);
            Kernel::one(launch.given(self.shape.arguments(call)))
        })
    }
}

impl AttentionTangent {
    /// f32 scratch of a task: the parts of [`Scores`] and [`Sums`]; queries, keys and values with their tangents, widened.
    fn pieces(&self, half: bool) -> [usize; 13] {
        let (d, wide) = (self.shape.head_dim as usize, usize::from(half));
        let (width, rows, values) = (KEYS.min(self.shape.keys() as usize), QUERIES, QUERIES * d);
        let (tile, queries, keys) = (QUERIES * width, wide * values, wide * width * d);
        [
            tile, tile, width, rows, rows, rows, values, queries, queries, keys, keys, keys, keys,
        ]
    }

    /// The tangent of the output (rows, D) of some queries of one head.
    fn block<T: Element>(
        &self,
        from: &Reads<T>,
        at: &Block,
        into: &mut TileMut<T>,
        room: [&mut [f32]; 13],
    ) {
        let [e, moved, slopes, peaks, totals, spreads, values, rest @ ..] = room;
        let [q_room, dq_room, k_room, dk_room, v_room, dv_room] = rest;
        let (count, d, scale) = (at.rows.len(), from.out.width, self.shape.scale as f32);
        let kv = at.head / self.shape.group();
        let mut tile = Scores { e, moved, slopes };
        let mut sums = Sums::new(peaks, totals, spreads, values);
        let q = widened(at.of(from.qkv[0]), q_room);
        let dq = widened(at.of(from.tangents[0]), dq_room);
        for keys in pieces(self.shape.span(&at.rows), KEYS) {
            let ([_, k, v], [_, dk, dv]) = (from.qkv, from.tangents);
            let [k, v, dk, dv] = [k, v, dk, dv].map(|of| of.tile(at.batch, kv, keys.clone()));
            let (k, dk) = (widened(k, k_room), widened(dk, dk_room));
            product(&mut tile.e(count, &keys), q, k.t(), scale, false);
            product(&mut tile.moved(count, &keys), dq, k.t(), scale, false);
            product(&mut tile.moved(count, &keys), q, dk.t(), scale, true);
            self.softmax(at, &keys, from.dropout, &mut tile, &mut sums);
            let (v, dv) = (widened(v, v_room), widened(dv, dv_room));
            let mut values = TileMut::new(sums.values, count, d);
            let (e, moved) = (&*tile.e, &*tile.moved);
            product(
                &mut values,
                Mat::new(moved, count, keys.len()),
                v,
                1.0,
                true,
            );
            product(&mut values, Mat::new(e, count, keys.len()), dv, 1.0, true);
        }
        let out = at.of(from.out);
        for (row, sum) in sums.values.chunks_exact(d).take(count).enumerate() {
            let (spread, share) = (sums.spreads[row], 1.0 / sums.totals[row]);
            finish(sum, out.row(row), spread, share, into.row(row));
        }
    }

    /// Turns a tile's scores into f e and their tangents into f e dscore, and moves the sums along.
    fn softmax(
        &self,
        at: &Block,
        keys: &Range<usize>,
        dropout: Dropout,
        tile: &mut Scores,
        sums: &mut Sums,
    ) {
        let (shape, width) = (&self.shape, keys.len());
        let d = shape.head_dim as usize;
        for (row, i) in at.rows.clone().enumerate() {
            let e = &mut tile.e[row * width..][..width];
            let moved = &mut tile.moved[row * width..][..width];
            if let Some(cap) = shape.softcap {
                let slopes = &mut tile.slopes[..width];
                scores::soft_cap_slope(e, slopes, cap as f32);
                scores::multiply(slopes, moved);
            }
            let (before, peak) = (sums.peaks[row], &mut sums.peaks[row]);
            let values = &mut sums.values[row * d..][..d];
            let seen = within(shape.visible(i), keys);
            scores::online(e, seen, peak, &mut sums.totals[row], values);
            if *peak > before {
                sums.spreads[row] *= (before - *peak).exp();
            }
            sums.spreads[row] += simd::dot(e, moved);
            if dropout.is_on() {
                dropout.apply(at.row(shape) + row, keys.start, e);
            }
            scores::multiply(e, moved);
        }
    }
}

impl Scores<'_> {
    fn e(&mut self, count: usize, keys: &Range<usize>) -> TileMut<'_, f32> {
        TileMut::new(self.e, count, keys.len())
    }

    fn moved(&mut self, count: usize, keys: &Range<usize>) -> TileMut<'_, f32> {
        TileMut::new(self.moved, count, keys.len())
    }
}

impl<'a> Sums<'a> {
    /// Sums of nothing.
    fn new(
        peaks: &'a mut [f32],
        totals: &'a mut [f32],
        spreads: &'a mut [f32],
        values: &'a mut [f32],
    ) -> Sums<'a> {
        peaks.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        spreads.fill(0.0);
        values.fill(0.0);
        Sums {
            peaks,
            totals,
            spreads,
            values,
        }
    }
}

vectorized! {
    /// `into = (sum - spread * out) * share`.
    fn finish<T: Element>(sum: &[f32], out: &[T], spread: f32, share: f32, into: &mut [T]) {
        for (into, (sum, out)) in into.iter_mut().zip(sum.iter().zip(out)) {
            *into = T::narrow((sum - spread * out.wide()) * share);
        }
    }
}

/// Emits the tangent of either form of attention and gives it to its output.
pub(super) fn give_tangent(at: &mut Tangent, shape: AttentionShape) -> Result<()> {
    let mut inputs = vec![at.input(0), at.input(1), at.input(2), at.output(0)];
    for index in 0..3 {
        inputs.push(at.of_or_zero(index)?);
    }
    let out = at.emit(AttentionTangent { shape }, &inputs)?[0];
    at.give(0, out);
    Ok(())
}
