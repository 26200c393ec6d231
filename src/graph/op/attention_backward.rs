//! The derivative that both forms of attention share, tile by tile.

use std::ops::Range;

use super::Element;
use super::attention::{Block, QUERIES, within};
use super::gemm::Mat;
use super::scores::{self, AttentionShape, Dropout};
use super::simd;
use super::tile::{Cut, Heads, TileMut, carve, packed, pieces, product, run_all, slot_of};

/// What the forward pass left to find the probabilities again.
#[derive(Debug, Clone, Copy)]
pub(super) enum Saved<'a, T> {
    /// The probabilities before dropout (B heads T, P + T).
    Probabilities(&'a [T]),
    /// The output and each row's log of the sum of exponentials (B heads, T).
    Output(Heads<'a, T>, &'a [f32]),
}

/// Everything the derivative reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gradients<'a, T> {
    pub shape: &'a AttentionShape,
    pub dropout: Dropout,
    /// Keys of a tile; all of them where only probabilities were saved.
    pub keys: usize,
    pub dout: Heads<'a, T>,
    pub q: Heads<'a, T>,
    pub k: Heads<'a, T>,
    pub v: Heads<'a, T>,
    pub saved: Saved<'a, T>,
}

/// A tile (queries, keys): probabilities, their gradients, slopes of the soft cap; and the dropout of one row.
struct Scores<'a> {
    p: &'a mut [f32],
    dp: &'a mut [f32],
    slopes: &'a mut [f32],
    factors: &'a mut [f32],
}

/// What one block of queries works with.
struct Room<'a> {
    scores: Scores<'a>,
    deltas: &'a mut [f32],
    dq: &'a mut [f32],
    q: &'a mut [f32],
    dout: &'a mut [f32],
}

/// Keys and values (P + T, D) of one head and the sums of their gradients.
struct Shared<'a> {
    k: Mat<'a, f32>,
    v: Mat<'a, f32>,
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl<T: Element> Gradients<'_, T> {
    /// Computes dq, dk and dv, one task for each key head of each sequence.
    pub fn run(&self, [dq, dk, dv]: [&mut [T]; 3], scratch: &mut [u8]) {
        let shape = self.shape;
        let [batch, kv, d] = [shape.batch, shape.kv_heads, shape.head_dim].map(|n| n as usize);
        let cut = |seq: u64, width: usize| Cut {
            batch,
            seq: seq as usize,
            columns: kv * width,
            height: seq as usize,
            width,
        };
        let keys = shape.keys();
        let made = cut(keys, d).tiles(dk).zip(cut(keys, d).tiles(dv));
        let queries = cut(shape.seq, shape.group() * d).tiles(dq);
        let jobs = queries.zip(made).enumerate();
        let sizes = sizes(shape, self.keys);
        run_all(
            jobs,
            scratch,
            slot_of(sizes),
            |(index, (dq, made)), slot| {
                self.group(index / kv, index % kv, dq, made, carve(slot, sizes));
            },
        );
    }

    /// dq (T, group D), dk and dv (P + T, D) of one key head.
    fn group(
        &self,
        batch: usize,
        kv: usize,
        mut made_q: TileMut<T>,
        (mut made_k, mut made_v): (TileMut<T>, TileMut<T>),
        room: [&mut [f32]; 12],
    ) {
        let (keys, d, group) = (self.k.seq, self.k.width, self.shape.group());
        let [p, dp, slopes, factors, deltas, dq, q, dout, dk, dv, k, v] = room;
        dk.fill(0.0);
        dv.fill(0.0);
        factors.fill(1.0);
        let scores = Scores {
            p,
            dp,
            slopes,
            factors,
        };
        let mut room = Room {
            scores,
            deltas,
            dq,
            q,
            dout,
        };
        let k = packed(self.k.tile(batch, kv, 0..keys), k);
        let v = packed(self.v.tile(batch, kv, 0..keys), v);
        let mut shared = Shared { k, v, dk, dv };
        for member in 0..group {
            for rows in pieces(0..self.q.seq, QUERIES) {
                let head = kv * group + member;
                let at = Block {
                    batch,
                    head,
                    rows: rows.clone(),
                };
                self.block(&at, &mut shared, &mut room);
                for (i, dq) in rows.zip(room.dq.chunks_exact(d)) {
                    simd::narrow(dq, &mut made_q.row(i)[member * d..][..d]);
                }
            }
        }
        for (i, (dk, dv)) in shared
            .dk
            .chunks_exact(d)
            .zip(shared.dv.chunks_exact(d))
            .enumerate()
        {
            simd::narrow(dk, made_k.row(i));
            simd::narrow(dv, made_v.row(i));
        }
    }

    /// dq of some queries into `room`; their share of dk and dv is added.
    fn block(&self, at: &Block, shared: &mut Shared, room: &mut Room) {
        let (count, d, scale) = (at.rows.len(), self.q.width, self.shape.scale as f32);
        let q = packed(at.of(self.q), room.q);
        let dout = packed(at.of(self.dout), room.dout);
        let deltas = self.deltas(at, dout, room.deltas);
        let mut dq = TileMut::new(room.dq, count, d);
        for (index, keys) in pieces(self.shape.span(&at.rows), self.keys).enumerate() {
            let width = keys.len();
            let k = shared.k.rows_of(keys.clone());
            let v = shared.v.rows_of(keys.clone());
            self.probabilities(at, &keys, q, k, &mut room.scores);
            let mut dp = TileMut::new(room.scores.dp, count, width);
            product(&mut dp, dout, v.t(), 1.0, false);
            self.score_gradients(at, &keys, deltas, &mut room.scores);
            let p = Mat::new(&*room.scores.p, count, width);
            let ds = Mat::new(&*room.scores.dp, count, width);
            let part = keys.start * d..keys.end * d;
            let mut dv = TileMut::new(&mut shared.dv[part.clone()], width, d);
            product(&mut dv, p.t(), dout, 1.0, true);
            let mut dk = TileMut::new(&mut shared.dk[part], width, d);
            product(&mut dk, ds.t(), q, scale, true);
            product(&mut dq, ds, k, scale, index > 0);
        }
    }

    /// Σ dout out of each row, where the output was saved.
    fn deltas<'d>(&self, at: &Block, dout: Mat<f32>, deltas: &'d mut [f32]) -> Option<&'d [f32]> {
        let Saved::Output(out, _) = self.saved else {
            return None;
        };
        let out = at.of(out);
        for (row, delta) in deltas.iter_mut().take(at.rows.len()).enumerate() {
            *delta = simd::dot(dout.row(row), out.row(row));
        }
        Some(deltas)
    }

    /// Turns a tile's dp into the gradients of its scores, and drops from its p.
    fn score_gradients(
        &self,
        at: &Block,
        keys: &Range<usize>,
        deltas: Option<&[f32]>,
        tile: &mut Scores,
    ) {
        let (count, width) = (at.rows.len(), keys.len());
        let factors = &mut tile.factors[..width];
        let rows = tile
            .p
            .chunks_exact_mut(width)
            .zip(tile.dp.chunks_exact_mut(width));
        for (row, (p, dp)) in rows.take(count).enumerate() {
            if self.dropout.is_on() {
                let row = at.row(self.shape) + row;
                self.dropout.factors(row, keys.start, factors);
            }
            scores::score_gradients(p, dp, factors, deltas.map(|deltas| deltas[row]));
        }
        if self.shape.softcap.is_some() {
            scores::multiply(tile.slopes, &mut tile.dp[..count * width]);
        }
    }

    /// The probabilities before dropout of one tile, and the slopes of the soft cap where there is one.
    fn probabilities(
        &self,
        at: &Block,
        keys: &Range<usize>,
        q: Mat<f32>,
        k: Mat<f32>,
        tile: &mut Scores,
    ) {
        let (shape, slopes) = (self.shape, &mut *tile.slopes);
        let mut p = TileMut::new(tile.p, at.rows.len(), keys.len());
        if shape.softcap.is_some() || matches!(self.saved, Saved::Output(..)) {
            product(&mut p, q, k.t(), shape.scale as f32, false);
        }
        for (row, i) in at.rows.clone().enumerate() {
            let p = p.row(row);
            if let Some(cap) = shape.softcap {
                let slopes = &mut slopes[row * keys.len()..][..keys.len()];
                scores::soft_cap_slope(p, slopes, cap as f32);
            }
            match self.saved {
                Saved::Probabilities(saved) => {
                    let saved = &saved[(at.row(shape) + row) * self.k.seq..];
                    simd::widen(&saved[keys.clone()], p);
                }
                Saved::Output(_, lse) => {
                    let seen = within(shape.visible(i), keys);
                    scores::from_lse(p, seen, lse[at.row(shape) + row]);
                }
            }
        }
    }
}

/// f32 elements of a task's slot with tiles of `keys` keys.
pub(super) fn slot(shape: &AttentionShape, keys: usize) -> usize {
    slot_of(sizes(shape, keys))
}

/// f32 scratch of a task: the pieces of [`Room`], then dk, dv and the packed keys and values.
fn sizes(shape: &AttentionShape, keys: usize) -> [usize; 12] {
    let (whole, block) = (
        (shape.keys() * shape.head_dim) as usize,
        QUERIES * shape.head_dim as usize,
    );
    let tile = QUERIES * keys;
    let slopes = if shape.softcap.is_some() { tile } else { 0 };
    [
        tile, tile, slopes, keys, QUERIES, block, block, block, whole, whole, whole, whole,
    ]
}
