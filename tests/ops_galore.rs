//! GaLore: its package's results, a plain loop in f64, and what a projector is.

use memfit::graph::op::optimizer::galore::{Apply, Direction, Low, Project};
use memfit::graph::op::optimizer::{AdamW8Bit, Factorization, LEAST, Refresh};
use memfit::graph::tensor::{DType, Type};

use crate::bench::{Bench, assert_near, bytes_of, floats};
use crate::low_memory::{
    KINDS, Kind, PLAIN, STEPS, Trial, goldens, gradient_at, keep, narrow, near, seen, start, to,
};

const RATE: f64 = 1e-2;

/// GaLore of a matrix, as its technique emits it.
fn galore(shape: &[u64], kind: Kind, rank: u64, gap: u64, bytewise: bool) -> Trial {
    let mut trial = Trial::new(shape, kind);
    let low = Low::of(&Type::new(shape, kind.gradient), rank);
    let projector = trial.state(&low.projector(kind.gradient));
    let at = low.projected();
    let moments: Vec<_> = match bytewise {
        true => AdamW8Bit::states(&at)
            .map(|(_, at)| trial.state(&at))
            .to_vec(),
        false => vec![trial.state(&at), trial.state(&at)],
    };
    let refresh = Refresh {
        factorization: Factorization::Exact,
        guard: kind.guard,
    };
    let with_guard = |mut inputs: Vec<_>| {
        inputs.extend(trial.guard);
        inputs
    };
    let inputs = with_guard(vec![trial.gradient, projector]);
    let projector = trial.bench.emit(refresh, &inputs)[0];
    let step = trial.bench.emit(Project, &[trial.gradient, projector])[0];
    let direction = Direction {
        beta1: 0.9,
        beta2: 0.999,
        eps: if bytewise { 1e-8 } else { 1e-6 },
        bytewise,
        guard: kind.guard,
    };
    let inputs = with_guard([vec![step], moments].concat());
    let step = trial.bench.emit(direction, &inputs)[0];
    let apply = Apply {
        scale: 0.25,
        decay: 0.01,
        master: kind.master,
        guard: kind.guard,
    };
    let mut inputs = vec![step, projector, trial.parameter];
    inputs.extend(trial.master);
    let inputs = with_guard(inputs);
    trial.bench.emit(apply, &inputs);
    trial.period = gap;
    trial
}

#[test]
fn galore_gives_what_its_package_gives() {
    for name in ["galore.adamw", "galore.adamw8bit"] {
        for golden in goldens(name) {
            let number = |key: &str| golden.row[key].as_u64().unwrap();
            let low = Low::of(&Type::new(&golden.shape, DType::F32), number("rank"));
            let bytewise = name.ends_with("8bit");
            assert!(!bytewise || low.projected().elements() >= LEAST);
            let trial = galore(
                &golden.shape,
                PLAIN,
                number("rank"),
                number("gap"),
                bytewise,
            );
            let held = |shape: &str| format!("{:?}", golden.row["keys"]).contains(shape);
            assert!(held(&low.projected().shape[0].to_string()));
            golden.assert_near(&trial.run(RATE as f32).0);
        }
    }
}

/// Eigenvectors of a symmetric matrix by Jacobi's rotations, the largest eigenvalue first.
fn eigenvectors(mut a: Vec<f64>, n: usize) -> Vec<(f64, Vec<f64>)> {
    let mut v: Vec<f64> = (0..n * n)
        .map(|i| f64::from(u8::from(i / n == i % n)))
        .collect();
    for _ in 0..30 {
        for p in 0..n {
            for q in p + 1..n {
                let theta = 0.5 * (2.0 * a[p * n + q]).atan2(a[q * n + q] - a[p * n + p]);
                let (s, c) = theta.sin_cos();
                let turn = |x: &mut f64, y: &mut f64| (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                for k in 0..n {
                    let (mut x, mut y) = (a[k * n + p], a[k * n + q]);
                    turn(&mut x, &mut y);
                    (a[k * n + p], a[k * n + q]) = (x, y);
                }
                for k in 0..n {
                    let (mut x, mut y) = (a[p * n + k], a[q * n + k]);
                    turn(&mut x, &mut y);
                    (a[p * n + k], a[q * n + k]) = (x, y);
                    let (mut x, mut y) = (v[k * n + p], v[k * n + q]);
                    turn(&mut x, &mut y);
                    (v[k * n + p], v[k * n + q]) = (x, y);
                }
            }
        }
    }
    let column = |j: usize| (0..n).map(|k| v[k * n + j]).collect();
    let mut found: Vec<(f64, Vec<f64>)> = (0..n).map(|j| (a[j * n + j], column(j))).collect();
    found.sort_by(|x, y| y.0.total_cmp(&x.0));
    found
}

/// A matrix and what GaLore keeps of it, in f64.
struct Plain {
    rows: usize,
    columns: usize,
    rank: usize,
    projector: Vec<Vec<f64>>,
}

impl Plain {
    fn tall(&self) -> bool {
        self.rows >= self.columns
    }

    fn refresh(&mut self, g: &[f64], dtype: DType) {
        let n = self.rows.min(self.columns);
        let mut gram = vec![0.0; n * n];
        for i in 0..self.rows {
            for j in 0..self.columns {
                let x = g[i * self.columns + j];
                for k in 0..n {
                    match self.tall() {
                        true => gram[j * n + k] += x * g[i * self.columns + k],
                        false => gram[i * n + k] += x * g[k * self.columns + j],
                    }
                }
            }
        }
        let old = std::mem::take(&mut self.projector);
        for (j, (_, v)) in eigenvectors(gram, n)
            .into_iter()
            .take(self.rank)
            .enumerate()
        {
            let along = old
                .get(j)
                .map_or(0.0, |o| o.iter().zip(&v).map(|(a, b)| a * b).sum());
            let largest = v
                .iter()
                .copied()
                .max_by(|a, b| a.abs().total_cmp(&b.abs()))
                .unwrap();
            let side: f64 = if along == 0.0 { largest } else { along };
            self.projector
                .push(v.iter().map(|x| to(dtype, x * side.signum())).collect());
        }
    }

    /// Element (row or column `i`, direction `j`) of the projected gradient.
    fn project(&self, g: &[f64]) -> Vec<f64> {
        let most = self.rows.max(self.columns);
        let one = |i: usize, p: &Vec<f64>| -> f64 {
            let at = |k: usize| match self.tall() {
                true => g[i * self.columns + k],
                false => g[k * self.columns + i],
            };
            p.iter().enumerate().map(|(k, p)| at(k) * p).sum()
        };
        let rows = (0..most).flat_map(|i| self.projector.iter().map(move |p| one(i, p)));
        rows.collect()
    }

    fn back(&self, step: &[f64], i: usize, j: usize) -> f64 {
        let (most, least) = if self.tall() { (i, j) } else { (j, i) };
        (0..self.rank)
            .map(|r| step[most * self.rank + r] * self.projector[r][least])
            .sum()
    }
}

fn plain(kind: Kind, (rows, columns): (usize, usize), rank: usize, gap: u64) -> Vec<f32> {
    let n = rows * columns;
    let mut plain = Plain {
        rows,
        columns,
        rank,
        projector: Vec::new(),
    };
    let mut w = start(kind, n as u64);
    let (mut m, mut v) = (
        vec![0.0; rows.max(columns) * rank],
        vec![0.0; rows.max(columns) * rank],
    );
    for t in 0..STEPS {
        let g = seen(kind, t, n as u64);
        if t % gap == 0 {
            plain.refresh(&g, kind.gradient);
        }
        let mut step = plain.project(&g);
        let (one, two) = (
            1.0 - 0.9f64.powi(t as i32 + 1),
            1.0 - 0.999f64.powi(t as i32 + 1),
        );
        for (i, x) in step.iter_mut().enumerate() {
            m[i] = 0.9 * m[i] + 0.1 * *x;
            v[i] = 0.999 * v[i] + 0.001 * *x * *x;
            *x = m[i] / (v[i].sqrt() + 1e-6) * two.sqrt() / one;
        }
        for i in 0..rows {
            for j in 0..columns {
                let w = &mut w[i * columns + j];
                *w -= RATE * 0.25 * plain.back(&step, i, j);
                *w -= RATE * 0.01 * *w;
            }
        }
        keep(kind, &mut w);
    }
    narrow(&w)
}

#[test]
fn galore_follows_the_formula_in_f64() {
    for kind in KINDS {
        for (rows, columns, rank) in [(40, 17, 5), (13, 30, 4), (12, 12, 12), (9, 20, 50)] {
            let trial = galore(&[rows, columns], kind, rank, 6, false);
            let want = plain(
                kind,
                (rows as usize, columns as usize),
                rank.min(rows).min(columns) as usize,
                6,
            );
            // Rounded to 16 bits, a direction that is almost another's equal is not quite the same.
            let bound = if kind.gradient == DType::F32 {
                3e-6
            } else {
                1e-3
            };
            assert_near(
                "galore",
                &trial.run(RATE as f32).0,
                &want,
                near(kind).max(bound),
            );
        }
    }
}

#[test]
fn moments_stand_on_the_larger_side_and_the_projector_on_the_smaller() {
    for (shape, r) in [([300u64, 70], 16u64), ([70, 300], 16), ([64, 64], 100)] {
        for (dtype, wide) in [(DType::Bf16, 2), (DType::F32, 4)] {
            let low = Low::of(&Type::new(&shape, dtype), r);
            let (least, most) = (shape[0].min(shape[1]), shape[0].max(shape[1]));
            let r = r.min(least);
            assert_eq!(low.projector(dtype).bytes().0, wide * least * r);
            assert_eq!(2 * low.projected().bytes().0, 2 * 4 * most * r);
            let bytes: u64 = AdamW8Bit::states(&low.projected())
                .iter()
                .map(|(_, at)| at.bytes().0)
                .sum();
            assert_eq!(bytes, 2 * most * r + 8 * (most * r).div_ceil(256));
        }
    }
}

/// The projector of a gradient after one refresh.
fn projector(shape: &[u64], gradient: &[f32], rank: u64, factorization: Factorization) -> Vec<f32> {
    let mut bench = Bench::new();
    let input = bench.input(shape, DType::F32);
    let low = Low::of(&Type::new(shape, DType::F32), rank);
    let old = bench.input(&low.projector(DType::F32).shape, DType::F32);
    let refresh = Refresh {
        factorization,
        guard: false,
    };
    let new = bench.emit(refresh, &[input, old])[0];
    let made = bench.run_alike(&[new], |e| {
        e.set(input, gradient);
        e.raw(old).fill(0);
    });
    floats(&made[0], DType::F32)
}

/// What of a gradient lies outside a projector's directions, as a share of its norm.
fn outside(shape: &[u64], gradient: &[f32], rows: &[f32]) -> f64 {
    let columns = shape[1] as usize;
    let least = shape[0].min(shape[1]) as usize;
    let tall = shape[0] >= shape[1];
    let mut inside = 0.0f64;
    for p in rows.chunks(least) {
        for i in 0..gradient.len() / least {
            let at = |k: usize| {
                if tall {
                    gradient[i * columns + k]
                } else {
                    gradient[k * columns + i]
                }
            };
            let sum: f64 = (0..least).map(|k| f64::from(at(k)) * f64::from(p[k])).sum();
            inside += sum * sum;
        }
    }
    let all: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
    (1.0 - inside / all).max(0.0).sqrt()
}

/// A gradient whose singular values fall by a tenth each: a sum of outer products, and noise.
fn falling(shape: &[u64]) -> Vec<f32> {
    let (rows, columns) = (shape[0] as usize, shape[1] as usize);
    let mut g: Vec<f32> = gradient_at(77, (rows * columns) as u64);
    g.iter_mut().for_each(|x| *x *= 1e-5);
    for r in 0..8u64 {
        let (x, y) = (
            gradient_at(100 + r, rows as u64),
            gradient_at(200 + r, columns as u64),
        );
        for i in 0..rows {
            for j in 0..columns {
                g[i * columns + j] += 10f32.powi(-(r as i32)) * x[i] * y[j];
            }
        }
    }
    g
}

const RANDOM: Factorization = Factorization::Randomized { more: 8, power: 1 };

#[test]
fn directions_are_orthonormal_and_leave_what_the_best_leave() {
    for shape in [[150u64, 64], [64, 150], [300, 130], [40, 40]] {
        let g = falling(&shape);
        let least = shape[0].min(shape[1]) as usize;
        let best = projector(&shape, &g, 4, Factorization::Exact);
        for (rows, factorization) in [
            (&best, Factorization::Exact),
            (&projector(&shape, &g, 4, RANDOM), RANDOM),
        ] {
            for (i, a) in rows.chunks(least).enumerate() {
                for (j, b) in rows.chunks(least).enumerate() {
                    let dot: f64 = a
                        .iter()
                        .zip(b)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum();
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!(
                        (dot - want).abs() < 2e-5,
                        "{factorization:?} {i} {j}: {dot}"
                    );
                }
            }
            let (left, least) = (outside(&shape, &g, rows), outside(&shape, &g, &best));
            assert!(
                left < 1.01 * least + 1e-4,
                "{factorization:?}: {left} of {least}"
            );
        }
    }
}

#[test]
fn exact_directions_are_singular_vectors_to_a_millionth() {
    for shape in [[150u64, 64], [64, 150]] {
        let g: Vec<f64> = falling(&shape).iter().map(|x| f64::from(*x)).collect();
        let (least, columns, tall) = (64usize, shape[1] as usize, shape[0] > shape[1]);
        let narrow: Vec<f32> = g.iter().map(|x| *x as f32).collect();
        let rows = projector(&shape, &narrow, 6, Factorization::Exact);
        let at = |i: usize, k: usize| {
            if tall {
                g[i * columns + k]
            } else {
                g[k * columns + i]
            }
        };
        let mut first = 0.0;
        for p in rows.chunks(least) {
            let along: Vec<f64> = (0..150)
                .map(|i| (0..least).map(|k| at(i, k) * f64::from(p[k])).sum())
                .collect();
            let value: f64 = along.iter().map(|x| x * x).sum();
            first = f64::max(first, value);
            let residual: f64 = (0..least)
                .map(|k| {
                    (0..150).map(|i| at(i, k) * along[i]).sum::<f64>() - value * f64::from(p[k])
                })
                .map(|x| x * x)
                .sum();
            assert!(
                residual.sqrt() < 1e-6 * first,
                "{:e} of {first:e}",
                residual.sqrt()
            );
        }
    }
}

#[test]
fn random_directions_repeat_and_depend_on_the_step() {
    let shape = [150u64, 64];
    let g = gradient_at(3, 150 * 64);
    assert_eq!(
        projector(&shape, &g, 4, RANDOM),
        projector(&shape, &g, 4, RANDOM)
    );
    let whole = Factorization::Randomized { more: 64, power: 0 };
    let (exact, all) = (
        projector(&shape, &g, 4, Factorization::Exact),
        projector(&shape, &g, 4, whole),
    );
    assert_near("as many directions as there are", &all, &exact, 1e-4);
}

#[test]
fn a_direction_keeps_its_side_when_it_is_renewed() {
    let shape = [30u64, 12];
    let mut bench = Bench::new();
    let (g, old) = (
        bench.input(&shape, DType::F32),
        bench.input(&[5, 12], DType::F32),
    );
    let refresh = Refresh {
        factorization: Factorization::Exact,
        guard: false,
    };
    let new = bench.emit(refresh, &[g, old])[0];
    let gradient = falling(&shape);
    let first = projector(&shape, &gradient, 5, Factorization::Exact);
    for (row, flip) in (0..5).flat_map(|row| [(row, 1.0f32), (row, -1.0)]) {
        let mut before = first.clone();
        before[row * 12..(row + 1) * 12]
            .iter_mut()
            .for_each(|x| *x *= flip);
        let made = bench.run_alike(&[new], |e| {
            e.set(g, &gradient);
            e.set(old, &before);
        });
        assert_near("side", &floats(&made[0], DType::F32), &before, 1e-6);
    }
}

#[test]
fn a_step_is_projected_back_by_panels_as_in_one_piece() {
    for (rows, columns, dtype) in [
        (700u64, 500u64, DType::F32),
        (500, 700, DType::F32),
        (700, 500, DType::Bf16),
    ] {
        let low = Low::of(&Type::new(&[rows, columns], dtype), 8);
        let mut bench = Bench::new();
        let step = bench.input(&low.projected().shape, DType::F32);
        let projector = bench.input(&low.projector(dtype).shape, dtype);
        let parameter = bench.input(&[rows, columns], DType::F32);
        let apply = Apply {
            scale: 0.5,
            decay: 0.0,
            master: false,
            guard: false,
        };
        let new = bench.emit(apply, &[step, projector, parameter])[0];
        let s = gradient_at(1, low.projected().elements());
        let p = crate::bench::rounded(&gradient_at(2, low.projector(dtype).elements()), dtype);
        let made = bench.run_alike(&[new], |e| {
            e.scalars.rate = 1.0;
            e.set(step, &s);
            e.raw(projector).copy_from_slice(&bytes_of(&p, dtype));
            e.raw(parameter).fill(0);
        });
        let (m, n) = (rows as usize, columns as usize);
        let one = |i: usize, j: usize| -> f32 {
            let term = |r: usize| match rows >= columns {
                true => s[i * 8 + r] * p[r * n + j],
                false => p[r * m + i] * s[r * n + j],
            };
            -0.5 * (0..8).map(term).sum::<f32>()
        };
        let want: Vec<f32> = (0..m * n).map(|at| one(at / n, at % n)).collect();
        assert_near("panels", &floats(&made[0], DType::F32), &want, 1e-6);
    }
}

#[test]
fn without_a_finite_gradient_the_first_projector_is_made_of_unit_vectors() {
    let kind = Kind {
        guard: true,
        ..PLAIN
    };
    let trial = galore(&[20, 12], kind, 3, 1, false);
    let (weights, states) = trial.run_with(2, 1e-2, [1.0, 0.0, f32::NAN], |_, _| {});
    assert_eq!(weights, crate::low_memory::cubes(7, 240));
    let projector = floats(&states[0], DType::F32);
    for (j, row) in projector.chunks(12).enumerate() {
        assert!(
            row.iter()
                .enumerate()
                .all(|(i, x)| *x == if i == j { 1.0 } else { 0.0 })
        );
    }
    assert!(states[1..].iter().flatten().all(|b| *b == 0));
}
