//! What happens to rows of attention scores between the matrix products.

use std::fmt;
use std::ops::Range;

use super::kernel::{Argument, Call, Launch, THREADS, output};
use super::simd::{self, max_of, sum_of, sum_of_triples, vectorized};
use super::{Element, Scalars};
use crate::error::Result;
use crate::graph::op::expect;
use crate::graph::random::Key;
use crate::graph::tensor::Type;

/// What attention attends to. Query head h reads key and value head `h / (heads / kv_heads)`.
#[derive(Clone)]
pub struct AttentionShape {
    /// Sequences (B); N = B T.
    pub batch: u64,
    /// Positions of a sequence (T).
    pub seq: u64,
    /// Keys and values before those of a sequence (P), which come from elsewhere.
    pub past: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Columns of a head (D).
    pub head_dim: u64,
    /// Whether a position sees none after it.
    pub causal: bool,
    /// A position sees only those less than this far away.
    pub window: Option<u64>,
    /// Scores are multiplied by this.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f64>,
    /// Rate at which probabilities are dropped.
    pub dropout: f64,
}

impl fmt::Debug for AttentionShape {
    /// Programs are told apart by this text: without a past it is as it was before there was one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("AttentionShape");
        text.field("batch", &self.batch).field("seq", &self.seq);
        if self.past > 0 {
            text.field("past", &self.past);
        }
        text.field("heads", &self.heads)
            .field("kv_heads", &self.kv_heads)
            .field("head_dim", &self.head_dim)
            .field("causal", &self.causal)
            .field("window", &self.window)
            .field("scale", &self.scale)
            .field("softcap", &self.softcap)
            .field("dropout", &self.dropout)
            .finish()
    }
}

/// Kernels of attention that go tile by tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionKernel {
    /// The forward pass.
    Forward,
    /// Sums of probabilities and their gradients, where probabilities are saved.
    Deltas,
    /// Gradients of keys and values.
    Keys,
    /// Gradients of queries.
    Queries,
    /// The tangent.
    Tangent,
}

/// Rows of a tile of `attention.cu`.
fn plain_tile(width: u64) -> u64 {
    if width > 128 { 16 } else { 32 }
}

impl AttentionKernel {
    fn entry(self) -> &'static str {
        match self {
            AttentionKernel::Forward => "attention_forward",
            AttentionKernel::Deltas => "attention_deltas",
            AttentionKernel::Keys => "attention_keys",
            AttentionKernel::Queries => "attention_queries",
            AttentionKernel::Tangent => "attention_tangent",
        }
    }

    /// Shared memory in `attention.cu`: tiles of columns of a head and tiles of scores, in f32.
    fn plain(self, width: u64) -> u64 {
        let (columns, scores) = match self {
            AttentionKernel::Forward => (2, 1),
            AttentionKernel::Deltas => (2, 0),
            _ => (4, 2),
        };
        let tile = plain_tile(width);
        (columns * tile * (width + 1) + scores * tile * tile) * 4
    }

    /// Rows of a block in `attention_mma.cu`.
    fn rows(self, width: u64) -> u64 {
        let backward = matches!(self, AttentionKernel::Keys | AttentionKernel::Queries);
        if backward && width > 128 { 64 } else { 128 }
    }

    /// Shared memory in `attention_mma.cu`: 16-bit rows of the block and of two tiles of the other side, with 8 bytes a query for keys.
    fn staged(self, width: u64) -> u64 {
        let wide = width > 128;
        let forward = self.rows(width) + 2 * if width > 192 { 32 } else { 64 };
        let others = if wide { 16 } else { 32 };
        let backward = 2 * self.rows(width) + 4 * others;
        let row = width.next_multiple_of(16) * 2;
        match self {
            AttentionKernel::Keys => backward * row + 2 * others * 8,
            AttentionKernel::Queries => backward * row,
            _ => forward * row,
        }
    }
}

impl AttentionShape {
    /// Keys of a sequence (P + T).
    pub fn keys(&self) -> u64 {
        self.past + self.seq
    }

    /// The keys that query `i` of a sequence sees.
    pub fn visible(&self, i: usize) -> Range<usize> {
        let keys = self.keys() as usize;
        let window = self.window.map_or(keys, |w| w as usize);
        let i = i + self.past as usize;
        let end = if self.causal {
            i + 1
        } else {
            i.saturating_add(window)
        };
        (i + 1).saturating_sub(window)..end.min(keys)
    }

    /// The keys that any of the queries `rows` sees.
    pub fn span(&self, rows: &Range<usize>) -> Range<usize> {
        self.visible(rows.start).start..self.visible(rows.end - 1).end
    }

    /// Pairs of a query and a key it sees, in all heads of the batch.
    pub fn pairs(&self) -> u64 {
        let seen: usize = (0..self.seq as usize).map(|i| self.visible(i).len()).sum();
        self.batch * self.heads * seen as u64
    }

    /// Query heads of a key head.
    pub fn group(&self) -> usize {
        (self.heads / self.kv_heads) as usize
    }

    /// Flops beside products for each pair, an exponential counted as ten.
    pub fn pair_flops(&self) -> u64 {
        let cap = if self.softcap.is_some() { 30 } else { 0 };
        let drop = if self.dropout > 0.0 { 2 } else { 0 };
        14 + cap + drop
    }

    /// A launch of the kernel of either file of attention without arguments: tiles of rows for each of `heads` heads of each sequence.
    /// Nothing where a head is too wide or too narrow for the kernels.
    pub(super) fn launch(
        &self,
        kernel: AttentionKernel,
        (rows, heads): (u64, u64),
        call: &Call,
        saved: bool,
    ) -> Option<Launch> {
        let width = self.head_dim;
        // A head's row of dq must hold an f32 while it is not made.
        let fits = (2..=320).contains(&width) && self.keys() < 1 << 31;
        let tensor = call.format(0).is_half() && width <= 256 && kernel != AttentionKernel::Tangent;
        let (stem, tile, shared) = match tensor {
            true => ("attention_mma", kernel.rows(width), kernel.staged(width)),
            false => ("attention", plain_tile(width), kernel.plain(width)),
        };
        let launch = Launch::new(stem, kernel.entry())
            .format("T", call.format(0))
            .define("SAVED", u32::from(saved))
            .define("HEAD", width);
        let launch = match tensor {
            true => launch,
            false => launch.define("TILE", tile),
        };
        let launch = launch.grid(rows.div_ceil(tile), heads, self.batch);
        fits.then_some(launch.shared(shared))
    }

    /// The launch of deltas in its simpler form, over a saved output: each row of q by some threads.
    pub(super) fn deltas_along(&self, tiles: Launch, out: Argument) -> Launch {
        let rows = self.batch * self.seq * self.heads;
        let mut launch = tiles.shared(0).given([out, output(0), rows.into()]);
        launch.entry = "attention_along";
        let threads = match self.head_dim {
            129.. => 32,
            65.. => 16,
            33.. => 8,
            _ => 4,
        };
        launch.blocks(rows.div_ceil(u64::from(THREADS) / threads))
    }

    /// The last arguments of all kernels of attention.
    pub(super) fn arguments(&self, call: &Call) -> Vec<Argument> {
        let sizes = [self.seq, self.keys(), self.past, self.heads, self.kv_heads];
        let sizes = sizes.map(|n| Argument::U32(n as u32)).into_iter();
        let dropout = Dropout::new(self, call.key, call.scalars);
        let window = self.window.unwrap_or(u64::MAX).min(self.keys()) as u32;
        let cap = self.softcap.unwrap_or(0.0) as f32;
        let rest = [
            u32::from(self.causal).into(),
            window.into(),
            (self.scale as f32).into(),
            cap.into(),
            dropout.key.0.into(),
            dropout.first.into(),
            dropout.rate.into(),
        ];
        sizes.chain(rest).collect()
    }

    /// Fails unless `inputs` start with q (N, heads D), k and v (B (P + T), kv_heads D).
    pub(super) fn check(&self, op: &'static str, inputs: &[Type]) -> Result<()> {
        let (queries, keys) = ((self.heads, self.seq), (self.kv_heads, self.keys()));
        let shape = |(heads, rows)| [self.batch * rows, heads * self.head_dim];
        let shapes = [queries, keys, keys].map(shape);
        let good = self.seq > 0
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.window != Some(0)
            && inputs.len() >= 3
            && inputs.iter().zip(shapes).all(|(t, shape)| t.shape == shape)
            && inputs[..3].iter().all(|t| t.dtype == inputs[0].dtype);
        expect(op, good, || {
            format!("takes q, k, v of {self:?}; got {inputs:?}")
        })
    }
}

/// Which probabilities are dropped, as a function of their place in the global batch.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    key: Key,
    first: u64,
    keys: u64,
    rate: f32,
}

impl Dropout {
    /// The dropout of one call.
    pub fn new(shape: &AttentionShape, key: Key, scalars: Scalars) -> Dropout {
        Dropout {
            key,
            first: scalars.micro * shape.batch * shape.heads * shape.seq * shape.keys(),
            keys: shape.keys(),
            rate: shape.dropout as f32,
        }
    }

    /// Whether anything is dropped.
    pub fn is_on(&self) -> bool {
        self.rate > 0.0
    }

    /// Factors of the probabilities at `row` of (B heads T) from column `column` on: 0 or 1 / (1 - rate).
    pub fn factors(&self, row: usize, column: usize, factors: &mut [f32]) {
        let first = self.first + row as u64 * self.keys + column as u64;
        draw(self.key, first, self.rate, factors);
    }

    /// Applies the factors to probabilities.
    pub fn apply(&self, row: usize, column: usize, probs: &mut [f32]) {
        let first = self.first + row as u64 * self.keys + column as u64;
        drop(self.key, first, self.rate, probs);
    }
}

vectorized! {
    fn draw(key: Key, first: u64, rate: f32, factors: &mut [f32]) {
        let kept = 1.0 / (1.0 - rate);
        for (i, factor) in factors.iter_mut().enumerate() {
            *factor = if key.uniform(first + i as u64) >= rate { kept } else { 0.0 };
        }
    }

    fn drop(key: Key, first: u64, rate: f32, probs: &mut [f32]) {
        let kept = 1.0 / (1.0 - rate);
        for (i, p) in probs.iter_mut().enumerate() {
            *p = if key.uniform(first + i as u64) >= rate { *p * kept } else { 0.0 };
        }
    }

    /// `s = cap * tanh(s / cap)`.
    pub fn soft_cap(scores: &mut [f32], cap: f32) {
        for s in scores {
            *s = cap * simd::tanh(*s / cap);
        }
    }

    /// [`soft_cap`], with its slope into `slopes`.
    pub fn soft_cap_slope(scores: &mut [f32], slopes: &mut [f32], cap: f32) {
        for (s, slope) in scores.iter_mut().zip(slopes) {
            let bent = simd::tanh(*s / cap);
            *s = cap * bent;
            *slope = 1.0 - bent * bent;
        }
    }

    /// The softmax of `row[seen]`; zero elsewhere.
    pub fn softmax(row: &mut [f32], seen: Range<usize>) {
        let scores = keep_only(row, seen);
        let peak = max_of(scores);
        for s in scores.iter_mut() {
            *s = simd::exp(*s - peak);
        }
        let share = 1.0 / sum_of(scores, |p| p);
        for p in scores {
            *p *= share;
        }
    }

    /// One step of the online softmax (Milakov and Gimelshein 2018): `row[seen]` becomes exp(score -
    /// peak), zero elsewhere; peak, total and the sums of values so far move to the new peak.
    pub fn online(row: &mut [f32], seen: Range<usize>, peak: &mut f32, total: &mut f32, sums: &mut [f32]) {
        let scores = keep_only(row, seen);
        let highest = max_of(scores);
        if highest > *peak {
            let shrink = simd::exp(*peak - highest);
            *peak = highest;
            *total *= shrink;
            for sum in sums {
                *sum *= shrink;
            }
        }
        let peak = *peak;
        for s in scores.iter_mut() {
            *s = simd::exp(*s - peak);
        }
        *total += sum_of(scores, |p| p);
    }

    /// `row[seen]` becomes exp(score - lse), zero elsewhere.
    pub fn from_lse(row: &mut [f32], seen: Range<usize>, lse: f32) {
        for s in keep_only(row, seen) {
            *s = simd::exp(*s - lse);
        }
    }

    /// The softmax's derivative for one row: `dp` becomes `p * (dp * factor - delta)`, then `p *= factor`;
    /// without `delta` it is Σ p factor dp.
    pub fn score_gradients(p: &mut [f32], dp: &mut [f32], factors: &[f32], delta: Option<f32>) {
        let delta = match delta {
            Some(delta) => delta,
            None => sum_of_triples(p, factors, dp, |p, f, dp| p * f * dp),
        };
        for ((p, dp), f) in p.iter_mut().zip(dp).zip(factors) {
            *dp = *p * (*dp * f - delta);
            *p *= f;
        }
    }

    /// `y *= x`.
    pub fn multiply(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y *= x;
        }
    }

    /// `y = x * by`, rounded.
    pub fn narrow_scaled<T: Element>(x: &[f32], by: f32, y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(x * by);
        }
    }
}

/// `row[seen]`, with the rest of the row set to zero.
#[inline(always)]
fn keep_only(row: &mut [f32], seen: Range<usize>) -> &mut [f32] {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    &mut row[seen]
}
