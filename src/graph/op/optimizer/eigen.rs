//! Eigenvectors of a symmetric matrix in f64: Householder's reduction, then implicit QL (Golub and Van Loan, sections 8.3.1 and 8.3.3).

use rayon::prelude::*;

use crate::graph::op::simd::vectorized;

/// Most steps of QL for one eigenvalue; three are usual.
const STEPS: usize = 30;

/// Order below which a row of work is not worth a task.
const ALONE: usize = 128;

/// Numbers that [`decompose`] needs beside a matrix of order `n`.
pub(super) fn room(n: usize) -> usize {
    4 * n
}

/// Turns a symmetric matrix of order `n` into its eigenvectors, one a row, and leaves their eigenvalues at the start of `room`.
pub(super) fn decompose(matrix: &mut [f64], n: usize, room: &mut [f64]) {
    let (values, room) = room.split_at_mut(n);
    let (beside, room) = room.split_at_mut(n);
    let (factors, product) = room.split_at_mut(n);
    tridiagonal(
        matrix,
        n,
        (&mut *values, &mut *beside),
        (&mut *factors, product),
    );
    accumulate(matrix, n, factors);
    diagonal(matrix, n, values, beside);
}

/// Reduces a matrix to `diagonal` and what is `beside` it by reflections 1 - f u uᵀ; row k keeps u right of the diagonal.
fn tridiagonal(
    matrix: &mut [f64],
    n: usize,
    (diagonal, beside): (&mut [f64], &mut [f64]),
    (factors, product): (&mut [f64], &mut [f64]),
) {
    for k in 0..n {
        let (above, below) = matrix.split_at_mut((k + 1) * n);
        diagonal[k] = above[k * n + k];
        let u = &mut above[k * n + k + 1..];
        (factors[k], beside[k]) = reflection(u);
        if factors[k] == 0.0 {
            continue;
        }
        let product = &mut product[..n - k - 1];
        each(
            product.len(),
            product.par_iter_mut().zip(below.par_chunks(n)),
            |(p, row)| {
                *p = factors[k] * dot(&row[k + 1..], u);
            },
        );
        let half = 0.5 * factors[k] * dot(u, product);
        for (p, u) in product.iter_mut().zip(&*u) {
            *p -= half * u;
        }
        let pairs = u.par_iter().zip(product.par_iter());
        each(
            product.len(),
            below.par_chunks_mut(n).zip(pairs),
            |(row, (u_i, q_i))| {
                subtract_two(&mut row[k + 1..], *u_i, product, *q_i, u);
            },
        );
    }
}

/// Turns a row into the u of the reflection that leaves only its first element; the factor f, and that element.
fn reflection(u: &mut [f64]) -> (f64, f64) {
    let Some((first, rest)) = u.split_first_mut() else {
        return (0.0, 0.0);
    };
    let rest = dot(rest, rest);
    if rest == 0.0 {
        return (0.0, *first);
    }
    let left = -(*first * *first + rest).sqrt().copysign(*first);
    *first -= left;
    (2.0 / (*first * *first + rest), left)
}

/// Runs `task` on all items, in parallel where there are many.
fn each<I: IndexedParallelIterator>(count: usize, items: I, task: impl Fn(I::Item) + Sync + Send) {
    let least = if count < ALONE { count.max(1) } else { 8 };
    items.with_min_len(least).for_each(task);
}

/// Replaces a matrix with reflections by the transpose of their product.
fn accumulate(matrix: &mut [f64], n: usize, factors: &[f64]) {
    for k in (0..n).rev() {
        let (above, below) = matrix.split_at_mut((k + 1) * n);
        let row = &mut above[k * n..];
        if factors[k] != 0.0 {
            let u = &row[k + 1..];
            each(n - k - 1, below.par_chunks_mut(n), |row| {
                let row = &mut row[k + 1..];
                let along = factors[k] * dot(row, u);
                add(-along, u, row);
            });
        }
        row[k..].fill(0.0);
        row[k] = 1.0;
        for row in below.chunks_mut(n) {
            row[k] = 0.0;
        }
    }
}

/// Rotates what is beside the diagonal away, and the rows of `vectors` along.
fn diagonal(vectors: &mut [f64], n: usize, diagonal: &mut [f64], beside: &mut [f64]) {
    let sizes = diagonal
        .iter()
        .zip(&*beside)
        .map(|(d, e)| d.abs() + e.abs());
    let least = f64::EPSILON * sizes.fold(0.0, f64::max);
    for from in 0..n {
        for _ in 0..STEPS {
            let small = |m: &usize| beside[*m].abs() <= least;
            let to = (from..n - 1).find(small).unwrap_or(n - 1);
            if to == from {
                break;
            }
            chase(vectors, n, (diagonal, beside), from, to);
        }
    }
}

/// One step of QL with Wilkinson's shift on rows `from..=to`.
fn chase(
    vectors: &mut [f64],
    n: usize,
    (diagonal, beside): (&mut [f64], &mut [f64]),
    from: usize,
    to: usize,
) {
    let slope = (diagonal[from + 1] - diagonal[from]) / (2.0 * beside[from]);
    let shift = beside[from] / (slope + slope.hypot(1.0).copysign(slope));
    let mut g = diagonal[to] - diagonal[from] + shift;
    let (mut sine, mut cosine, mut p) = (1.0, 1.0, 0.0);
    for i in (from..to).rev() {
        let (f, b) = (sine * beside[i], cosine * beside[i]);
        let r = f.hypot(g);
        beside[i + 1] = r;
        if r == 0.0 {
            diagonal[i + 1] -= p;
            beside[to] = 0.0;
            return;
        }
        (sine, cosine) = (f / r, g / r);
        g = diagonal[i + 1] - p;
        let r = (diagonal[i] - g) * sine + 2.0 * cosine * b;
        p = sine * r;
        diagonal[i + 1] = g + p;
        g = cosine * r - b;
        let (left, right) = vectors[i * n..(i + 2) * n].split_at_mut(n);
        rotate(left, right, cosine, sine);
    }
    diagonal[from] -= p;
    beside[from] = g;
    beside[to] = 0.0;
}

vectorized! {
    /// Σ x y.
    fn dot(x: &[f64], y: &[f64]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0f64; LANES];
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
                *lane += x * y;
            }
        }
        lanes.iter().sum()
    }

    /// `y += a x`.
    fn add(a: f64, x: &[f64], y: &mut [f64]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }

    /// `row -= a x + b y`.
    fn subtract_two(row: &mut [f64], a: f64, x: &[f64], b: f64, y: &[f64]) {
        for ((row, x), y) in row.iter_mut().zip(x).zip(y) {
            *row -= a * x + b * y;
        }
    }

    /// Turns two rows in their plane.
    fn rotate(left: &mut [f64], right: &mut [f64], cosine: f64, sine: f64) {
        for (left, right) in left.iter_mut().zip(right) {
            let f = *right;
            *right = sine * *left + cosine * f;
            *left = cosine * *left - sine * f;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::random::Key;

    /// A symmetric matrix of order `n` and rank at most `rank`, and its eigenvectors and eigenvalues.
    fn decomposed(n: usize, rank: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let key = Key(n as u64);
        let x: Vec<f64> = (0..n * rank)
            .map(|i| f64::from(key.normal(i as u64)))
            .collect();
        let entry = |at: usize| {
            let (i, j) = (at / n, at % n);
            (0..rank).map(|k| x[k * n + i] * x[k * n + j]).sum()
        };
        let matrix: Vec<f64> = (0..n * n).map(entry).collect();
        let (mut vectors, mut room) = (matrix.clone(), vec![f64::NAN; room(n)]);
        decompose(&mut vectors, n, &mut room);
        room.truncate(n);
        (matrix, vectors, room)
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_leave_no_residual() {
        for (n, rank) in [
            (1, 1),
            (2, 2),
            (3, 1),
            (17, 17),
            (64, 9),
            (200, 300),
            (33, 0),
        ] {
            let (matrix, vectors, values) = decomposed(n, rank);
            let size = values.iter().fold(1e-300f64, |a, x| a.max(x.abs()));
            for (i, v) in vectors.chunks(n).enumerate() {
                for (j, other) in vectors.chunks(n).enumerate() {
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((dot(v, other) - want).abs() < 1e-12, "{n} {i} {j}");
                }
                for (row, x) in matrix.chunks(n).zip(v) {
                    let residual = (dot(row, v) - values[i] * x).abs();
                    assert!(
                        residual <= 1e-12 * size,
                        "{n} {i}: {residual:e} of {size:e}"
                    );
                }
            }
        }
    }
}
