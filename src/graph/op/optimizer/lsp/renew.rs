//! Sparse projectors looked at and, where they leave too much of a gradient out, drawn and fitted anew.

use crate::error::Result;
use crate::graph::op::gemm::{Mat, matmul};
use crate::graph::op::kernel::{Call, Kernel};
use crate::graph::op::optimizer::lsp::fit::{Fit, Room, Sizes};
use crate::graph::op::optimizer::lsp::launches;
use crate::graph::op::simd;
use crate::graph::op::sparse::{Sparse, expect_sparse};
use crate::graph::op::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::graph::random::Key;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Keeps projectors P and Q of a gradient G where `‖P Pᵀ G Q Qᵀ - G‖ / ‖G‖` is at most `threshold`. Else it draws new ones (the
/// positions in a row without replacement, values normal with deviation 1/√r), fits their values to G, and projects the moments
/// over: M ← Pᵀ P₀ M Q₀ᵀ Q, and V alike with the elements of both factors squared (Chen et al. 2024, arXiv:2406.10181).
///
/// Inputs: gradient (m, n), values and columns of P (m, r), values and columns of Q (n, r), M and V (d, d) (F32). Outputs overwrite
/// all but the gradient. Zeros are projectors that were never drawn. By a gradient that is zero or not finite nothing is fitted.
#[derive(Debug, Clone)]
pub struct Renew {
    /// The largest share of the gradient that may be left out (α).
    pub threshold: f64,
    /// The weight of the projectors' squares while they are fitted (β).
    pub beta: f64,
    /// Steps of a fit at most.
    pub fit: u32,
}

fn sizes(inputs: &[Type]) -> Sizes {
    let length = |x: u64| x as usize;
    Sizes {
        rows: length(inputs[0].rows()),
        columns: length(inputs[0].columns()),
        width: length(inputs[5].columns()),
        per_row: length(inputs[1].columns()),
    }
}

impl Op for Renew {
    fn name(&self) -> &'static str {
        "lsp_renew"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 7)?;
        let (at, width) = (&inputs[0], inputs[5].columns());
        let square = Type::new(&[width, width], DType::F32);
        let fits = at.shape.len() == 2
            && inputs[5..] == [square.clone(), square]
            && inputs[1].columns() == inputs[3].columns();
        expect(self.name(), fits, || {
            format!("takes a gradient, P, Q and two moments; got {inputs:?}")
        })?;
        expect_sparse(self.name(), [&inputs[1], &inputs[2]], at.rows(), width)?;
        expect_sparse(self.name(), [&inputs[3], &inputs[4]], at.columns(), width)?;
        Ok((1..7).map(|of| Output::Overwrite { of }).collect())
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        let sizes = sizes(inputs);
        let threads = match backend {
            Backend::Cpu { threads } => threads.max(1) as usize,
            Backend::Cuda { .. } => return Bytes(launches::Room::of(sizes).bytes),
        };
        // Values of new projectors beside those of the old, and the columns of both.
        Bytes((4 * sizes.room(threads) + 12 * sizes.values()) as u64)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let [m, n, d, r] = {
            let s = sizes(inputs);
            [s.rows, s.columns, s.width, s.per_row].map(|x| x as u64)
        };
        let turns = u64::from(self.fit) + 1;
        let turn = 2 * r * (4 * m * n + 6 * d * n + 3 * m * d);
        Work {
            matmul: 8 * d * d * d,
            vector: turns * turn,
            bytes: traffic(inputs, outputs)
                + turns * (3 * inputs[0].bytes().0 + 4 * (8 * d * n + 6 * d * d)),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let gradient = io.inputs[0];
        let [p, p_at, q, q_at, m, v] = crate::graph::op::exactly(self.name(), &mut io.outputs)?;
        let sizes = Sizes {
            rows: gradient.at.rows() as usize,
            columns: gradient.at.columns() as usize,
            width: m.at.columns() as usize,
            per_row: p.at.columns() as usize,
        };
        let (values, columns, room) = carve(io.scratch, sizes);
        let (old, new) = values.split_at_mut(sizes.values());
        let (old_at, new_at) = columns.split_at_mut(sizes.values());
        let count = sizes.rows * sizes.per_row;
        old_at[..count].copy_from_slice(p_at.of());
        old_at[count..].copy_from_slice(q_at.of());
        let mut room = Room::of(room, sizes);
        with_float!(self.name(), p.at.dtype, P => {
            simd::widen(p.of::<P>(), &mut old[..count]);
            simd::widen(q.of::<P>(), &mut old[count..]);
            let drawn = with_float!(self.name(), gradient.at.dtype, G => {
                let g = gradient.of::<G>();
                Ok(self.renewed(sizes, g, (&*old, &*old_at), (&mut *new, &mut *new_at), &mut room, io.key))
            })?;
            if drawn {
                let (p, q) = (p.of::<P>(), q.of::<P>());
                simd::narrow(&new[..count], p);
                simd::narrow(&new[count..], q);
                simd::widen(&*p, &mut new[..count]);
                simd::widen(&*q, &mut new[count..]);
                p_at.of::<u16>().copy_from_slice(&new_at[..count]);
                q_at.of::<u16>().copy_from_slice(&new_at[count..]);
                carry(sizes, (old, old_at), (new, new_at), &mut room, (m.of(), v.of()));
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        launches::kernel(self, call, sizes(call.inputs))
    }
}

/// Values and columns of old and new projectors, and the rest for the fit.
fn carve(scratch: &mut [u8], sizes: Sizes) -> (&mut [f32], &mut [u16], &mut [f32]) {
    let kept = 12 * sizes.values();
    let (fit, rest) = scratch.split_at_mut(scratch.len() - kept);
    let (values, columns) = rest.split_at_mut(8 * sizes.values());
    (
        bytemuck::cast_slice_mut(values),
        bytemuck::cast_slice_mut(columns),
        bytemuck::cast_slice_mut(fit),
    )
}

impl Renew {
    /// Whether `new` are to take the place of `old`; they are drawn and fitted then.
    fn renewed<G: Element>(
        &self,
        sizes: Sizes,
        gradient: &[G],
        (old, old_at): (&[f32], &[u16]),
        (new, new_at): (&mut [f32], &mut [u16]),
        room: &mut Room,
        key: Key,
    ) -> bool {
        let norm = norm(gradient);
        let seen = norm.is_finite() && norm > 0.0;
        let fit = |at| Fit {
            sizes,
            gradient,
            norm,
            at,
            beta: self.beta,
        };
        let drawn = old.iter().any(|x| *x != 0.0);
        if drawn && (!seen || fit(old_at).outside(old, room) <= self.threshold) {
            return false;
        }
        let count = sizes.rows * sizes.per_row;
        let (p, q) = new.split_at_mut(count);
        let (p_at, q_at) = new_at.split_at_mut(count);
        draw(key.part(0), sizes, p, p_at);
        draw(key.part(1), sizes, q, q_at);
        if seen {
            fit(new_at).run(new, room, self.threshold, self.fit);
        }
        true
    }
}

/// ‖x‖, row by row in f64.
fn norm<G: Element>(x: &[G]) -> f64 {
    let square = |x: &[G]| f64::from(simd::sum_of_squares(x));
    x.chunks(1024).map(square).sum::<f64>().sqrt()
}

/// Draws a projector: in each row a set of columns, all alike likely (Floyd's algorithm, Bentley 1987), and normal values.
fn draw(key: Key, sizes: Sizes, values: &mut [f32], columns: &mut [u16]) {
    let Sizes { width, per_row, .. } = sizes;
    let deviation = 1.0 / (per_row as f32).sqrt();
    let rows = values.chunks_exact_mut(per_row);
    for (row, (values, columns)) in rows.zip(columns.chunks_exact_mut(per_row)).enumerate() {
        let (places, normals) = (key.part(2 * row as u64), key.part(2 * row as u64 + 1));
        for (k, last) in (width - per_row..width).enumerate() {
            let tried = (places.bits(k as u64) % (last as u64 + 1)) as u16;
            let taken = columns[..k].contains(&tried);
            columns[k] = if taken { last as u16 } else { tried };
            values[k] = deviation * normals.normal(k as u64);
        }
    }
}

/// Projects both moments from between the old projectors to between the new ones.
fn carry(
    sizes: Sizes,
    (old, old_at): (&[f32], &[u16]),
    (new, new_at): (&[f32], &[u16]),
    room: &mut Room,
    (m, v): (&mut [f32], &mut [f32]),
) {
    let Sizes {
        width,
        per_row,
        rows,
        ..
    } = sizes;
    let count = rows * per_row;
    let sparse = |values, columns| Sparse {
        values,
        columns,
        per_row,
    };
    let (left, right) = (&mut *room.s, &mut *room.sqq);
    overlap(
        (
            sparse(&new[..count], &new_at[..count]),
            sparse(&old[..count], &old_at[..count]),
        ),
        width,
        left,
    );
    overlap(
        (
            sparse(&old[count..], &old_at[count..]),
            sparse(&new[count..], &new_at[count..]),
        ),
        width,
        right,
    );
    between(width, left, m, right, room.peq);
    for x in left.iter_mut().chain(right.iter_mut()) {
        *x *= *x;
    }
    between(width, left, v, right, room.peq);
}

/// `left · moment · right` in the moment's place, all (d, d).
fn between(width: usize, left: &[f32], moment: &mut [f32], right: &[f32], half: &mut [f32]) {
    let square = |x| Mat::new(x, width, width);
    let (left, right) = (square(left), square(right));
    let old = Mat::new(&*moment, width, width);
    matmul(half, width, left, old, false, &mut []);
    let half = Mat::new(&*half, width, width);
    matmul(moment, width, half, right, false, &mut []);
}

/// `xᵀ y` (d, d) of two sparse matrices with as many rows.
fn overlap((x, y): (Sparse<f32>, Sparse<f32>), width: usize, into: &mut [f32]) {
    into.fill(0.0);
    for row in 0..x.values.len() / x.per_row {
        for (k, a) in x.row(row) {
            y.row(row).for_each(|(l, b)| into[k * width + l] += a * b);
        }
    }
}
