//! Fitting sparse projectors to a gradient: the values that leave the least of it outside.

use rayon::prelude::*;

use crate::graph::op::Element;
use crate::graph::op::simd::{dot, vectorized};
use crate::graph::op::sparse::{Sparse, add_scaled};

/// Columns of a panel: matrices (d, n) are held as panels (d, `PANEL`), so that each is one thread's.
pub(super) const PANEL: usize = 64;

/// Adam's numbers while values are fitted: PyTorch's defaults at the authors' rate, which falls to zero along half a cosine.
const RATE: f64 = 0.1;
const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f32 = 1e-8;

/// Lengths: a gradient (rows, columns), and how projectors narrow it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Rows of the gradient and of P.
    pub(super) rows: usize,
    /// Columns of the gradient, rows of Q.
    pub(super) columns: usize,
    /// Columns of P and Q.
    pub(super) width: usize,
    /// Non-zeros in a row of either.
    pub(super) per_row: usize,
}

impl Sizes {
    /// Panels of a matrix (d, n).
    fn panels(self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Non-zeros of both projectors.
    pub(super) fn values(self) -> usize {
        (self.rows + self.columns) * self.per_row
    }

    /// f32 elements of [`Room`] for a number of threads.
    pub(super) fn room(self, threads: usize) -> usize {
        let panels = 3 * self.panels() * PANEL * self.width;
        let squares = 3 * self.width * self.width;
        let sums = 2 * self.panels();
        panels + squares + 3 * self.values() + threads * 2 * self.width + sums
    }
}

/// What a fit works in.
pub(super) struct Room<'a> {
    /// Squares of what is left in each panel (f64, first for its alignment).
    sums: &'a mut [f64],
    /// `Pᵀ G`, `S Qᵀ` and `Pᵀ E` (d, n) in panels.
    pg: &'a mut [f32],
    sq: &'a mut [f32],
    pe: &'a mut [f32],
    /// `S = Pᵀ G Q`, `S Qᵀ Q` and `Pᵀ E Q` (d, d).
    pub(super) s: &'a mut [f32],
    pub(super) sqq: &'a mut [f32],
    pub(super) peq: &'a mut [f32],
    /// Gradient and two moments of all values.
    slope: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    /// Two rows (d) for each thread.
    rows: &'a mut [f32],
}

impl<'a> Room<'a> {
    /// Cuts f32 scratch of [`Sizes::room`] elements or more into its parts.
    pub(super) fn of(scratch: &'a mut [f32], sizes: Sizes) -> Room<'a> {
        let (sums, mut rest) = scratch.split_at_mut(2 * sizes.panels());
        let mut part = |count: usize| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(count);
            rest = after;
            part
        };
        let panels = sizes.panels() * PANEL * sizes.width;
        let square = sizes.width * sizes.width;
        let parts = [panels, panels, panels, square, square, square];
        let [pg, sq, pe, s, sqq, peq] = parts.map(&mut part);
        let [slope, m, v] = [sizes.values(); 3].map(&mut part);
        Room {
            sums: bytemuck::cast_slice_mut(sums),
            pg,
            sq,
            pe,
            s,
            sqq,
            peq,
            slope,
            m,
            v,
            rows: rest,
        }
    }
}

/// A fit of two projectors' values to a gradient.
pub(super) struct Fit<'a, G> {
    pub(super) sizes: Sizes,
    /// The gradient G (rows, columns), and its norm.
    pub(super) gradient: &'a [G],
    pub(super) norm: f64,
    /// Columns of the values of P, then of Q.
    pub(super) at: &'a [u16],
    /// The weight of the projectors' squares.
    pub(super) beta: f64,
}

impl<G: Element> Fit<'_, G> {
    /// P and Q with `values`.
    fn pair<'v>(&'v self, values: &'v [f32]) -> (Sparse<'v, f32>, Sparse<'v, f32>) {
        let Sizes { rows, per_row, .. } = self.sizes;
        let (p, q) = values.split_at(rows * per_row);
        let (p_at, q_at) = self.at.split_at(rows * per_row);
        let sparse = |values, columns| Sparse {
            values,
            columns,
            per_row,
        };
        (sparse(p, p_at), sparse(q, q_at))
    }

    /// Moves `values` until the share of the gradient that they leave out is `enough`, or `most` times.
    pub(super) fn run(&self, values: &mut [f32], room: &mut Room, enough: f64, most: u32) {
        room.m.fill(0.0);
        room.v.fill(0.0);
        for turn in 0..most {
            if self.outside(values, room) <= enough {
                return;
            }
            self.differentiate(values, room);
            let (root, rate) = rates(turn, most);
            descend(values, room.slope, room.m, room.v, root, rate);
        }
    }

    /// `‖P Pᵀ G Q Qᵀ - G‖ / ‖G‖`, with what it is made of left in `room`.
    pub(super) fn outside(&self, values: &[f32], room: &mut Room) -> f64 {
        let (p, q) = self.pair(values);
        let Sizes {
            rows,
            columns,
            width,
            ..
        } = self.sizes;
        room.pg
            .par_chunks_mut(PANEL * width)
            .enumerate()
            .for_each(|(panel, pg)| {
                let (from, count) = (panel * PANEL, PANEL.min(columns - panel * PANEL));
                pg.fill(0.0);
                for i in 0..rows {
                    let g = &self.gradient[i * columns + from..][..count];
                    p.row(i).for_each(|(k, x)| {
                        add_scaled(x, g, &mut pg[k * PANEL..][..count]);
                    });
                }
            });
        narrowed(self.sizes, room.pg, &q, room.s);
        let s = &*room.s;
        room.sq
            .par_chunks_mut(PANEL * width)
            .enumerate()
            .for_each(|(panel, sq)| widened(self.sizes, s, &q, panel, sq));
        let sq = &*room.sq;
        room.pe
            .par_chunks_mut(PANEL * width)
            .zip(room.sums.par_iter_mut())
            .enumerate()
            .for_each(|(panel, (pe, sum))| {
                *sum = self.left(&p, &sq[panel * PANEL * width..], panel, pe);
            });
        room.sums.iter().sum::<f64>().sqrt() / self.norm
    }

    /// `Pᵀ E` in a panel, of E = P S Qᵀ - G; the sum of the squares of E there.
    fn left(&self, p: &Sparse<f32>, sq: &[f32], panel: usize, pe: &mut [f32]) -> f64 {
        let columns = self.sizes.columns;
        let (from, count) = (panel * PANEL, PANEL.min(columns - panel * PANEL));
        pe.fill(0.0);
        let (mut e, mut sum) = ([0.0f32; PANEL], 0.0);
        for i in 0..self.sizes.rows {
            let e = &mut e[..count];
            e.fill(0.0);
            add_scaled(-1.0, &self.gradient[i * columns + from..][..count], e);
            p.row(i)
                .for_each(|(k, x)| add_scaled(x, &sq[k * PANEL..][..count], e));
            p.row(i)
                .for_each(|(k, x)| add_scaled(x, e, &mut pe[k * PANEL..][..count]));
            sum += f64::from(dot(e, e));
        }
        sum
    }

    /// The derivative of `‖E‖ / ‖G‖ + β (‖P‖² + ‖Q‖²)` by the values, at the non-zeros only: with S = Pᵀ G Q,
    /// dP = (E Q Sᵀ + G Q (Pᵀ E Q)ᵀ) / ‖E‖ and dQ = (Eᵀ P S + Gᵀ P Pᵀ E Q) / ‖E‖. After [`Fit::outside`].
    fn differentiate(&self, values: &[f32], room: &mut Room) {
        let (p, q) = self.pair(values);
        let Sizes {
            rows,
            columns,
            width,
            per_row,
        } = self.sizes;
        narrowed(self.sizes, room.sq, &q, room.sqq);
        narrowed(self.sizes, room.pe, &q, room.peq);
        let norm = room.sums.iter().sum::<f64>().sqrt() * self.norm;
        let by = (1.0 / norm.max(f64::MIN_POSITIVE)) as f32;
        let (dp, dq) = room.slope.split_at_mut(rows * per_row);
        let (s, sqq, peq) = (&*room.s, &*room.sqq, &*room.peq);
        let each = rows.div_ceil((room.rows.len() / (2 * width)).max(1)).max(1);
        dp.par_chunks_mut(each * per_row)
            .zip(room.rows.par_chunks_exact_mut(2 * width))
            .enumerate()
            .for_each(|(share, (dp, buffers))| {
                let (gq, eq) = buffers.split_at_mut(width);
                for (i, dp) in dp.chunks_exact_mut(per_row).enumerate() {
                    let i = share * each + i;
                    self.narrow_row(i, &p, &q, sqq, gq, eq);
                    for (dp, (k, _)) in dp.iter_mut().zip(p.row(i)) {
                        let row = k * width..(k + 1) * width;
                        *dp = by * (dot(&*eq, &s[row.clone()]) + dot(&*gq, &peq[row]));
                    }
                }
            });
        let (pg, pe) = (&*room.pg, &*room.pe);
        dq.par_chunks_mut(PANEL * per_row)
            .enumerate()
            .for_each(|(panel, dq)| {
                let panels = panel * PANEL * width..(panel + 1) * PANEL * width;
                let count = PANEL.min(columns - panel * PANEL);
                let at = &q.columns[panel * PANEL * per_row..][..count * per_row];
                let (pe, pg) = (&pe[panels.clone()], &pg[panels]);
                gather((pe, s), (pg, peq), (at, per_row), by, dq);
            });
        add_scaled((2.0 * self.beta) as f32, values, room.slope);
    }

    /// Row `i` of `G Q`, and of `E Q` = P S Qᵀ Q - G Q.
    fn narrow_row(
        &self,
        i: usize,
        p: &Sparse<f32>,
        q: &Sparse<f32>,
        sqq: &[f32],
        gq: &mut [f32],
        eq: &mut [f32],
    ) {
        let Sizes { columns, width, .. } = self.sizes;
        gq.fill(0.0);
        let row = &self.gradient[i * columns..][..columns];
        for (j, g) in row.iter().enumerate() {
            let g = g.wide();
            q.row(j).for_each(|(l, x)| gq[l] += g * x);
        }
        eq.fill(0.0);
        add_scaled(-1.0, &*gq, eq);
        p.row(i)
            .for_each(|(k, x)| add_scaled(x, &sqq[k * width..][..width], eq));
    }
}

/// What Adam divides the root of its second moment by, and its rate, in turn `turn` of `most`: both corrected for moments that began at zero.
pub(super) fn rates(turn: u32, most: u32) -> (f32, f32) {
    let way = f64::from(turn) / f64::from(most);
    let rate = RATE * 0.5 * (1.0 + (std::f64::consts::PI * way).cos());
    let correct = |beta: f64| 1.0 - beta.powi(turn as i32 + 1);
    let (root, rate) = (correct(BETAS.1).sqrt(), rate / correct(BETAS.0));
    (root as f32, rate as f32)
}

/// A matrix (d, n) in panels times Q: `into` (d, d).
fn narrowed(sizes: Sizes, panels: &[f32], q: &Sparse<f32>, into: &mut [f32]) {
    let Sizes { columns, width, .. } = sizes;
    into.par_chunks_mut(width)
        .enumerate()
        .for_each(|(k, into)| {
            into.fill(0.0);
            for (panel, part) in panels.chunks_exact(PANEL * width).enumerate() {
                let count = PANEL.min(columns - panel * PANEL);
                for (j, x) in part[k * PANEL..][..count].iter().enumerate() {
                    q.row(panel * PANEL + j).for_each(|(l, y)| into[l] += x * y);
                }
            }
        });
}

/// One panel of `S Qᵀ`.
fn widened(sizes: Sizes, s: &[f32], q: &Sparse<f32>, panel: usize, into: &mut [f32]) {
    let count = PANEL.min(sizes.columns - panel * PANEL);
    let rows = s
        .chunks_exact(sizes.width)
        .zip(into.chunks_exact_mut(PANEL));
    for (s, into) in rows {
        for (j, x) in into[..count].iter_mut().enumerate() {
            *x = q.row(panel * PANEL + j).map(|(l, y)| s[l] * y).sum();
        }
    }
}

/// `by (peᵀ s + pgᵀ peq)` at the columns `at` of each row: pe and pg are one panel (d, `PANEL`), s and peq (d, d).
fn gather(
    (pe, s): (&[f32], &[f32]),
    (pg, peq): (&[f32], &[f32]),
    (at, per_row): (&[u16], usize),
    by: f32,
    into: &mut [f32],
) {
    let width = pe.len() / PANEL;
    into.fill(0.0);
    for k in 0..width {
        let (s, peq) = (&s[k * width..][..width], &peq[k * width..][..width]);
        let (pe, pg) = (&pe[k * PANEL..][..PANEL], &pg[k * PANEL..][..PANEL]);
        let rows = into.chunks_exact_mut(per_row).zip(at.chunks_exact(per_row));
        for ((into, at), (e, g)) in rows.zip(pe.iter().zip(pg)) {
            for (into, &l) in into.iter_mut().zip(at) {
                *into += by * (e * s[usize::from(l)] + g * peq[usize::from(l)]);
            }
        }
    }
}

vectorized! {
    /// A step of Adam.
    fn descend(x: &mut [f32], slope: &[f32], m: &mut [f32], v: &mut [f32], root: f32, rate: f32) {
        let (mean, square) = (1.0 - BETAS.0 as f32, 1.0 - BETAS.1 as f32);
        let moments = m.iter_mut().zip(v);
        for ((x, g), (m, v)) in x.iter_mut().zip(slope).zip(moments) {
            *m += mean * (g - *m);
            *v += square * (g * g - *v);
            *x -= rate * *m / (v.sqrt() / root + EPS);
        }
    }
}
