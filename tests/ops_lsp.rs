//! LSP-Offload's ops: plain loops in f64 over dense matrices, written from the paper's formulas.

use memfit::graph::op::optimizer::lsp::{AdamStep, ApplyProjected, Renew, TakeStep};
use memfit::graph::op::sparse::{ProjectedLinear, SparseProject, sparse_types};
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, TensorId, Type};

use crate::bench::{Bench, assert_near, bytes_of, distance, floats, rounded};
use crate::low_memory::{GUARD, KINDS, Kind, cubes, keep, narrow, start};
use crate::reference::Evaluator;

const RATE: f64 = 1e-2;
const STEPS: u64 = 20;

/// Rows of a batch, a matrix (m, n), and its projectors: d columns, r non-zeros in a row.
const TOKENS: usize = 37;
const M: usize = 20;
const N: usize = 150;
const D: usize = 11;
const R: usize = 3;

/// A sparse matrix as an op holds it, and dense in f64.
struct Projector {
    values: Vec<f32>,
    columns: Vec<u16>,
    dense: Vec<Vec<f64>>,
}

fn projector(seed: u64, rows: usize, dtype: DType) -> Projector {
    let values = rounded(&cubes(seed, (rows * R) as u64), dtype);
    let mut columns = Vec::new();
    for row in 0..rows {
        let from = Key(seed).bits(row as u64) as usize;
        columns.extend((0..R).map(|k| ((from + 4 * k) % D) as u16));
    }
    let dense = dense(&values, &columns, R, D);
    Projector {
        values,
        columns,
        dense,
    }
}

fn dense(values: &[f32], columns: &[u16], r: usize, d: usize) -> Vec<Vec<f64>> {
    let rows = values.chunks(r).zip(columns.chunks(r));
    let row = |(values, columns): (&[f32], &[u16])| {
        let mut row = vec![0.0; d];
        for (value, column) in values.iter().zip(columns) {
            row[usize::from(*column)] += f64::from(*value);
        }
        row
    };
    rows.map(row).collect()
}

type Matrix = Vec<Vec<f64>>;

fn wide(values: &[f32], columns: usize) -> Matrix {
    let row = |row: &[f32]| row.iter().map(|x| f64::from(*x)).collect();
    values.chunks(columns).map(row).collect()
}

fn times(a: &Matrix, b: &Matrix) -> Matrix {
    let cell = |row: &Vec<f64>, j: usize| row.iter().zip(b).map(|(x, b)| x * b[j]).sum();
    let row = |row: &Vec<f64>| (0..b[0].len()).map(|j| cell(row, j)).collect();
    a.iter().map(row).collect()
}

fn turned(a: &Matrix) -> Matrix {
    (0..a[0].len())
        .map(|j| a.iter().map(|row| row[j]).collect())
        .collect()
}

fn flat(a: &Matrix) -> Vec<f32> {
    a.iter().flatten().map(|x| *x as f32).collect()
}

fn norm(a: &Matrix) -> f64 {
    a.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()
}

/// `‖P Pᵀ G Q Qᵀ - G‖ / ‖G‖`.
fn outside(p: &Matrix, g: &Matrix, q: &Matrix) -> f64 {
    let inner = times(&times(&turned(p), g), q);
    let back = times(&times(p, &inner), &turned(q));
    let left = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&back.iter().zip(g).map(left).collect()) / norm(g)
}

/// A layer with its backward pass and update, and what stands in it by name.
struct Layer {
    bench: Bench,
    x: TensorId,
    dy: TensorId,
    weight: TensorId,
    master: Option<TensorId>,
    all: [TensorId; 4],
    moments: [TensorId; 2],
    guard: Option<TensorId>,
    gradient: TensorId,
}

fn layer(kind: Kind) -> Layer {
    let at = kind.parameter;
    let mut bench = Bench::new();
    let mut input =
        |rows: usize, columns: usize, at| bench.input(&[rows as u64, columns as u64], at);
    let (x, dy) = (input(TOKENS, N, at), input(TOKENS, M, at));
    let weight = input(M, N, at);
    let master = kind.master.then(|| input(M, N, DType::F32));
    let (p, p_at) = (input(M, R, at), input(M, R, DType::U16));
    let (q, q_at) = (input(N, R, at), input(N, R, DType::U16));
    let moments = [input(D, D, DType::F32), input(D, D, DType::F32)];
    let guard = kind.guard.then(|| bench.input(&[3], DType::F32));
    let width = D as u64;
    let xq = bench.emit(SparseProject { width }, &[x, q, q_at])[0];
    let op = ProjectedLinear { width, bias: false };
    let y = bench.emit(op, &[x, weight, xq, p, p_at])[0];
    let gradient = bench.differentiate(&[weight], None, &[(y, dy)])[0];
    let step = AdamStep {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        guard: kind.guard,
    };
    let with_guard = |inputs: &[TensorId]| [inputs, guard.as_slice()].concat();
    let step = bench.emit(step, &with_guard(&[gradient, moments[0], moments[1]]))[0];
    let apply = ApplyProjected {
        decay: 0.1,
        master: kind.master,
        guard: kind.guard,
    };
    let mut inputs = vec![step, p, p_at, q, q_at, weight];
    inputs.extend(master);
    bench.emit(apply, &with_guard(&inputs));
    Layer {
        bench,
        x,
        dy,
        weight,
        master,
        all: [p, p_at, q, q_at],
        moments,
        guard,
        gradient,
    }
}

fn batch(step: u64, kind: Kind) -> (Vec<f32>, Vec<f32>) {
    let of = |seed, count: usize| rounded(&cubes(seed + step, count as u64), kind.parameter);
    (of(2000, TOKENS * N), of(3000, TOKENS * M))
}

/// The weight after 20 updates, and the first gradient as it was before its step took its place.
fn run(kind: Kind, threads: usize) -> (Vec<f32>, Vec<f32>) {
    let layer = layer(kind);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(|| {
        let mut e = Evaluator::new(layer.bench.step.clone());
        let first = start(kind, (M * N) as u64);
        let first = narrow(&first);
        e.raw(layer.weight)
            .copy_from_slice(&bytes_of(&first, kind.parameter));
        if let Some(master) = layer.master {
            e.set(master, &first);
        }
        let (p, q) = (
            projector(31, M, kind.parameter),
            projector(32, N, kind.parameter),
        );
        for (id, values) in [(layer.all[0], &p.values), (layer.all[2], &q.values)] {
            e.raw(id).copy_from_slice(&bytes_of(values, kind.parameter));
        }
        e.set(layer.all[1], &p.columns);
        e.set(layer.all[3], &q.columns);
        layer.moments.iter().for_each(|&m| e.raw(m).fill(0));
        if let Some(guard) = layer.guard {
            e.set(guard, &GUARD);
        }
        let nodes = layer.bench.step.nodes.len();
        let update = nodes - 2;
        let mut gradient = Vec::new();
        for step in 0..STEPS {
            let (x, dy) = batch(step, kind);
            e.raw(layer.x)
                .copy_from_slice(&bytes_of(&x, kind.parameter));
            e.raw(layer.dy)
                .copy_from_slice(&bytes_of(&dy, kind.parameter));
            (e.scalars.step, e.scalars.rate) = (step + 1, RATE as f32);
            e.run(0..update).unwrap();
            if step == 0 {
                gradient = e.get(layer.gradient);
            }
            e.run(update..nodes).unwrap();
        }
        let kept = layer.master.unwrap_or(layer.weight);
        let dtype = layer.bench.step.type_of(kept).dtype;
        (floats(e.raw(kept), dtype), gradient)
    })
}

#[test]
fn twenty_updates_are_those_of_dense_loops_in_f64() {
    for kind in KINDS {
        let (p, q) = (
            projector(31, M, kind.parameter),
            projector(32, N, kind.parameter),
        );
        let mut w = start(kind, (M * N) as u64);
        let (mut m, mut v) = (vec![0.0; D * D], vec![0.0; D * D]);
        let mut first = Vec::new();
        for step in 0..STEPS {
            let (x, dy) = batch(step, kind);
            let g = times(&turned(&wide(&dy, M)), &wide(&x, N));
            let mut s = times(&times(&turned(&p.dense), &g), &q.dense);
            if step == 0 {
                first = flat(&s);
            }
            let scale = if kind.guard { f64::from(GUARD[0]) } else { 1.0 };
            let t = step as i32 + 1;
            for (i, s) in s.iter_mut().flatten().enumerate() {
                let g = *s * scale;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (m, v) = (
                    m[i] / (1.0 - 0.9f64.powi(t)),
                    v[i] / (1.0 - 0.999f64.powi(t)),
                );
                *s = m / (v.sqrt() + 1e-8);
            }
            let step = times(&times(&p.dense, &s), &turned(&q.dense));
            for (w, step) in w.iter_mut().zip(step.iter().flatten()) {
                *w = *w * (1.0 - RATE * 0.1) - RATE * step;
            }
            keep(kind, &mut w);
        }
        let (got, gradient) = run(kind, 1);
        // Values of 16 bits: projections of activations and gradients are rounded to them.
        let half = kind.parameter != DType::F32;
        assert_near(
            "gradient",
            &gradient,
            &first,
            if half { 2e-2 } else { 1e-6 },
        );
        let bound = if half { 3e-2 } else { 1e-5 };
        let off = distance(&got, &narrow(&w));
        println!(
            "{kind:?}: weights {off:.1e}, gradient {:.1e}",
            distance(&gradient, &first)
        );
        assert!(off < bound, "{kind:?}: {off:e}");
        assert_eq!(run(kind, 2).0, got, "two threads differ");
        assert_eq!(run(kind, 3).0, got, "three threads differ");
    }
}

#[test]
fn a_step_made_elsewhere_is_adams() {
    for kind in KINDS {
        let count = 3000u64;
        let mut bench = Bench::new();
        let gradient = bench.input(&[count], kind.gradient);
        let moments = [0, 1].map(|_| bench.input(&[count], DType::F32));
        let parameter = bench.input(&[count], kind.parameter);
        let master = kind.master.then(|| bench.input(&[count], DType::F32));
        let guard = kind.guard.then(|| bench.input(&[3], DType::F32));
        let step = AdamStep {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            guard: kind.guard,
        };
        let inputs = [&[gradient, moments[0], moments[1]], guard.as_slice()].concat();
        let step = bench.emit(step, &inputs)[0];
        let take = TakeStep {
            decay: 0.0,
            master: kind.master,
            guard: kind.guard,
        };
        let inputs = [&[step, parameter], master.as_slice(), guard.as_slice()].concat();
        bench.emit(take, &inputs);
        let kept = master.unwrap_or(parameter);
        let first = narrow(&start(kind, count));
        let got = bench.run_alike(&[kept], |e| {
            e.raw(parameter)
                .copy_from_slice(&bytes_of(&first, kind.parameter));
            if let Some(master) = master {
                e.set(master, &first);
            }
            moments.iter().for_each(|&m| e.raw(m).fill(0));
            if let Some(guard) = guard {
                e.set(guard, &GUARD);
            }
            e.raw(gradient)
                .copy_from_slice(&bytes_of(&cubes(9, count), kind.gradient));
            (e.scalars.step, e.scalars.rate) = (1, 1e-2);
        });
        // After one step Adam has moved each weight by the rate, but for eps.
        let seen = rounded(&cubes(9, count), kind.gradient);
        let scale = if kind.guard { GUARD[0] } else { 1.0 };
        let moved = |(w, g): (&f32, &f32)| w - 1e-2 * g / (g.abs() + 1e-8 / scale);
        let want: Vec<f32> = first.iter().zip(&seen).map(moved).collect();
        let dtype = bench.step.type_of(kept).dtype;
        let bound = if dtype == DType::F32 { 1e-4 } else { 1e-2 };
        assert_near("weight", &floats(&got[0], dtype), &want, bound);
    }
}

/// What a renewal makes of projectors and moments.
struct Renewed {
    p: Vec<f32>,
    p_at: Vec<u16>,
    q: Vec<f32>,
    q_at: Vec<u16>,
    m: Vec<f32>,
    v: Vec<f32>,
}

/// A renewal of a matrix's projectors, from `old` (zeros without) and moments that are cubes.
struct Look<'a> {
    shape: (usize, usize),
    d: usize,
    r: usize,
    op: Renew,
    gradient: &'a [f32],
    old: Option<&'a Renewed>,
    step: u64,
}

impl Look<'_> {
    fn run(&self) -> Renewed {
        let (rows, columns) = (self.shape.0 as u64, self.shape.1 as u64);
        let (d, r) = (self.d as u64, self.r as u64);
        let mut bench = Bench::new();
        let gradient = bench.input(&[rows, columns], DType::F32);
        let mut sparse =
            |rows| sparse_types(rows, r, DType::F32).map(|at| bench.input(&at.shape, at.dtype));
        let ([p, p_at], [q, q_at]) = (sparse(rows), sparse(columns));
        let [m, v] = [0, 1].map(|_| bench.input(&[d, d], DType::F32));
        let inputs = [gradient, p, p_at, q, q_at, m, v];
        bench.emit(self.op.clone(), &inputs);
        let made = bench.run_alike(&inputs[1..], |e| {
            e.scalars.step = self.step;
            e.set(gradient, self.gradient);
            match self.old {
                None => inputs[1..5].iter().for_each(|&id| e.raw(id).fill(0)),
                Some(old) => {
                    e.set(p, &old.p);
                    e.set(p_at, &old.p_at);
                    e.set(q, &old.q);
                    e.set(q_at, &old.q_at);
                }
            }
            e.set(m, &cubes(41, d * d));
            let squares: Vec<f32> = cubes(42, d * d).iter().map(|x| x * x).collect();
            e.set(v, &squares);
        });
        let float = |i: usize| floats(&made[i], DType::F32);
        let places = |i: usize| -> Vec<u16> {
            let pairs = made[i].chunks(2);
            pairs.map(|b| u16::from_ne_bytes([b[0], b[1]])).collect()
        };
        Renewed {
            p: float(0),
            p_at: places(1),
            q: float(2),
            q_at: places(3),
            m: float(4),
            v: float(5),
        }
    }

    fn dense(&self, of: &Renewed) -> (Matrix, Matrix) {
        (
            dense(&of.p, &of.p_at, self.r, self.d),
            dense(&of.q, &of.q_at, self.r, self.d),
        )
    }

    fn outside(&self, of: &Renewed) -> f64 {
        let (p, q) = self.dense(of);
        outside(&p, &wide(self.gradient, self.shape.1), &q)
    }
}

const NEVER: Renew = Renew {
    threshold: 0.0,
    beta: 0.0,
    fit: 0,
};

/// A gradient of which little lies outside a few directions.
fn low_rank(rows: usize, columns: usize, rank: u64) -> Vec<f32> {
    let mut g: Vec<f32> = cubes(77, (rows * columns) as u64);
    g.iter_mut().for_each(|x| *x *= 1e-3);
    for r in 0..rank {
        let (x, y) = (cubes(100 + r, rows as u64), cubes(200 + r, columns as u64));
        for i in 0..rows {
            for j in 0..columns {
                g[i * columns + j] += x[i] * y[j] / (r + 1) as f32;
            }
        }
    }
    g
}

#[test]
fn positions_are_drawn_without_replacement_and_values_with_their_deviation() {
    let gradient = low_rank(300, 200, 3);
    let look = Look {
        shape: (300, 200),
        d: 9,
        r: 4,
        op: NEVER,
        gradient: &gradient,
        old: None,
        step: 1,
    };
    let made = look.run();
    let mut counts = [0usize; 9];
    for row in made.p_at.chunks(4).chain(made.q_at.chunks(4)) {
        for (k, column) in row.iter().enumerate() {
            assert!(*column < 9 && !row[..k].contains(column), "{row:?}");
            counts[usize::from(*column)] += 1;
        }
    }
    // 500 rows take each of 9 columns 222 times, with a deviation of 11.
    assert!(counts.iter().all(|c| (180..265).contains(c)), "{counts:?}");
    let square = made.p.iter().chain(&made.q).map(|x| f64::from(*x).powi(2));
    let mean = square.sum::<f64>() / 2000.0;
    assert!((mean - 0.25).abs() < 0.03, "{mean}");
    let other = Look { step: 2, ..look }.run();
    assert!(other.p != made.p && other.p_at != made.p_at);
}

#[test]
fn moments_are_projected_over_as_the_formulas_have_it() {
    let gradient = low_rank(40, 70, 3);
    let mut look = Look {
        shape: (40, 70),
        d: 13,
        r: 3,
        op: NEVER,
        gradient: &gradient,
        old: None,
        step: 1,
    };
    let old = look.run();
    // What was never drawn carries nothing over.
    assert!(old.m.iter().chain(&old.v).all(|x| *x == 0.0));
    look.step = 2;
    look.old = Some(&old);
    let new = look.run();
    let ((p, q), (p_old, q_old)) = (look.dense(&new), look.dense(&old));
    let (mut a, mut b) = (times(&turned(&p), &p_old), times(&turned(&q_old), &q));
    let m = wide(&cubes(41, 13 * 13), 13);
    assert_near("m", &new.m, &flat(&times(&times(&a, &m), &b)), 1e-5);
    for x in a.iter_mut().chain(&mut b).flatten() {
        *x *= *x;
    }
    let squares: Vec<f32> = cubes(42, 13 * 13).iter().map(|x| x * x).collect();
    let v = times(&times(&a, &wide(&squares, 13)), &b);
    assert_near("v", &new.v, &flat(&v), 1e-5);
}

#[test]
fn a_fit_ends_at_the_threshold_or_after_its_steps() {
    let gradient = low_rank(96, 130, 3);
    let of = |fit, threshold| Look {
        shape: (96, 130),
        d: 40,
        r: 4,
        op: Renew {
            threshold,
            beta: 0.0,
            fit,
        },
        gradient: &gradient,
        old: None,
        step: 1,
    };
    let left = |fit, threshold| {
        let look = of(fit, threshold);
        look.outside(&look.run())
    };
    let (none, few, many) = (left(0, 0.0), left(10, 0.0), left(100, 0.0));
    println!("outside: {none:.3} drawn, {few:.3} after 10 steps, {many:.3} after 100");
    assert!(
        few < none && many < few && many < 0.2,
        "{none} {few} {many}"
    );
    let enough = 0.5 * (few + many);
    let stopped = left(100, enough);
    assert!(
        stopped <= enough * 1.0001 && stopped > many,
        "{stopped} of {enough}"
    );
    // What is good enough stays, moments and all.
    let look = of(100, enough);
    let good = look.run();
    let again = Look {
        old: Some(&good),
        step: 2,
        ..of(100, enough * 1.001)
    };
    let kept = again.run();
    assert!(kept.p == good.p && kept.q_at == good.q_at);
    assert_eq!(kept.m, cubes(41, 40 * 40));
    let worse = Look { op: NEVER, ..again };
    assert!(worse.run().p != good.p);
}

#[test]
fn the_derivative_of_a_fit_is_that_of_differences() {
    // One step of Adam moves each value by the rate against the sign of its derivative.
    let gradient = low_rank(30, 70, 3);
    let look = |fit| Look {
        shape: (30, 70),
        d: 7,
        r: 2,
        op: Renew {
            threshold: 0.0,
            beta: 1e-3,
            fit,
        },
        gradient: &gradient,
        old: None,
        step: 5,
    };
    let (drawn, moved) = (look(0).run(), look(1).run());
    let loss = |of: &Renewed| {
        let squares: f64 =
            of.p.iter()
                .chain(&of.q)
                .map(|x| f64::from(*x).powi(2))
                .sum();
        look(0).outside(of) + 1e-3 * squares
    };
    let mut seen = 0;
    for index in 0..drawn.p.len() + drawn.q.len() {
        let shifted = |by: f32| {
            let mut of = Renewed {
                p: drawn.p.clone(),
                q: drawn.q.clone(),
                p_at: drawn.p_at.clone(),
                q_at: drawn.q_at.clone(),
                m: Vec::new(),
                v: Vec::new(),
            };
            match index.checked_sub(of.p.len()) {
                None => of.p[index] += by,
                Some(index) => of.q[index] += by,
            }
            loss(&of)
        };
        let slope = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
        let (before, after) = match index.checked_sub(drawn.p.len()) {
            None => (drawn.p[index], moved.p[index]),
            Some(index) => (drawn.q[index], moved.q[index]),
        };
        if slope.abs() > 1e-4 {
            let step = f64::from(after - before);
            assert!(
                (step + 0.1 * slope.signum()).abs() < 2e-3,
                "{index}: {step} for {slope}"
            );
            seen += 1;
        }
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn a_gradient_that_is_not_finite_changes_no_projector() {
    let mut gradient = low_rank(30, 40, 3);
    let sound = gradient.clone();
    gradient[7] = f32::NAN;
    let look = Look {
        shape: (30, 40),
        d: 8,
        r: 2,
        op: Renew {
            threshold: 0.0,
            beta: 0.0,
            fit: 5,
        },
        gradient: &gradient,
        old: None,
        step: 1,
    };
    let first = look.run();
    assert!(first.p.iter().all(|x| x.is_finite()) && first.p.iter().any(|x| *x != 0.0));
    let again = Look {
        old: Some(&first),
        step: 2,
        ..look
    };
    assert!(again.run().p == first.p);
    let sound = Look {
        gradient: &sound,
        ..again
    };
    assert!(sound.run().p != first.p);
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let mut bench = Bench::new();
    let x = bench.input(&[4, 6], DType::F32);
    let [values, columns] =
        sparse_types(6, 3, DType::F32).map(|at: Type| bench.input(&at.shape, at.dtype));
    let refused = bench.try_emit(SparseProject { width: 2 }, &[x, values, columns]);
    assert!(refused.unwrap_err().to_string().contains("sparse_project"));
    let y = bench.emit(SparseProject { width: 5 }, &[x, values, columns])[0];
    assert_eq!(bench.step.type_of(y).shape, [4, 5]);
}
