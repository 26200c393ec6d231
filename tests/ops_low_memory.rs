//! 8-bit AdamW, Lion and Adafactor: the packages' results, plain loops in f64, and bytes of state.

use memfit::graph::op::dynamic;
use memfit::graph::op::optimizer::{Adafactor, AdamW, AdamW8Bit, LEAST, Lion};
use memfit::graph::tensor::{DType, Type};

use crate::bench::assert_near;
use crate::low_memory::{
    GUARD, Golden, KINDS, Kind, PLAIN, STEPS, Trial, bytes, goldens, keep, map, narrow, near, seen,
    start, to,
};

const RATE: f64 = 1e-3;

fn types(states: impl IntoIterator<Item = (&'static str, Type)>) -> Vec<Type> {
    states.into_iter().map(|(_, at)| at).collect()
}

fn eight(kind: Kind) -> AdamW8Bit {
    AdamW8Bit {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        decay: 0.01,
        master: kind.master,
        guard: kind.guard,
    }
}

#[test]
fn dynamic_maps_are_those_of_bitsandbytes() {
    assert_eq!(dynamic::SIGNED.values.to_vec(), map("signed"));
    assert_eq!(dynamic::UNSIGNED.values.to_vec(), map("unsigned"));
    for table in [&dynamic::SIGNED, &dynamic::UNSIGNED] {
        for (code, value) in table.values.iter().enumerate() {
            assert_eq!(usize::from(table.code(*value)), code);
        }
        for i in 0..20_000 {
            let x = (i as f32 / 10_000.0 - 1.0).powi(3);
            let found = table.values[usize::from(table.code(x))];
            let least = table
                .values
                .iter()
                .map(|v| (v - x).abs())
                .fold(9.0, f32::min);
            assert!((found - x).abs() <= least * (1.0 + 1e-5) + 1e-9, "{x}");
        }
    }
}

#[test]
fn adamw8bit_gives_what_bitsandbytes_gives() {
    for golden in goldens("adamw8bit") {
        let at = Type::new(&golden.shape, DType::F32);
        let trial = Trial::new(&golden.shape, PLAIN);
        let AdamW8Bit {
            beta1,
            beta2,
            eps,
            decay,
            master,
            guard,
        } = eight(PLAIN);
        let trial = match at.elements() >= LEAST {
            true => trial.apply(eight(PLAIN), &types(AdamW8Bit::states(&at))),
            false => {
                let op = AdamW {
                    beta1,
                    beta2,
                    eps,
                    decay,
                    master,
                    guard,
                };
                trial.apply(op, &[at.clone(), at.clone()])
            }
        };
        assert_eq!(bytes(&trial.bench.step, &trial.states), golden.row["state"]);
        golden.assert_near(&trial.run(RATE as f32).0);
    }
}

/// Moments rounded to the nearest number of a map times the block's largest, in f64.
fn round(map: &[f64], moments: &mut [f64]) {
    for block in moments.chunks_mut(256) {
        let most = f64::from(block.iter().fold(0.0f64, |a, x| a.max(x.abs())) as f32);
        for x in block {
            let y = *x / most;
            let nearest = map
                .iter()
                .min_by(|a, b| (*a - y).abs().total_cmp(&(*b - y).abs()));
            *x = nearest.unwrap() * most;
        }
    }
}

#[test]
fn adamw8bit_follows_the_formula_in_f64() {
    for kind in KINDS {
        let n = 5003u64;
        let at = Type::new(&[n], kind.parameter);
        let trial = Trial::new(&[n], kind).apply(eight(kind), &types(AdamW8Bit::states(&at)));
        let [signed, unsigned] = ["signed", "unsigned"]
            .map(|name| map(name).iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        let (mut m, mut v) = (vec![0.0; n as usize], vec![0.0; n as usize]);
        let mut w = start(kind, n);
        for t in 0..STEPS {
            let (one, two) = (
                1.0 - 0.9f64.powi(t as i32 + 1),
                1.0 - 0.999f64.powi(t as i32 + 1),
            );
            for (i, g) in seen(kind, t, n).into_iter().enumerate() {
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                w[i] *= 1.0 - RATE * 0.01;
                w[i] -= RATE * (m[i] / one) / ((v[i] / two).sqrt() + 1e-8);
            }
            keep(kind, &mut w);
            round(&signed, &mut m);
            round(&unsigned, &mut v);
        }
        let want = narrow(&w);
        // A moment may round to the other neighbour, which moves a weight by some percent of a step.
        assert_near(
            "adamw8bit",
            &trial.run(RATE as f32).0,
            &want,
            near(kind).max(1e-5),
        );
    }
}

#[test]
fn adamw8bit_holds_two_bytes_an_element_and_eight_a_block() {
    for n in [4096u64, 4097, 4352, 70_000] {
        let held: u64 = types(AdamW8Bit::states(&Type::new(&[n], DType::Bf16)))
            .iter()
            .map(|at| at.bytes().0)
            .sum();
        assert_eq!(held, 2 * n + 8 * n.div_ceil(256));
    }
}

fn lion(kind: Kind, momentum: DType) -> Lion {
    Lion {
        beta1: 0.9,
        beta2: 0.99,
        decay: 0.1,
        momentum,
        master: kind.master,
        guard: kind.guard,
    }
}

#[test]
fn lion_gives_what_lion_pytorch_gives() {
    for golden in goldens("lion") {
        let at = Type::new(&golden.shape, DType::F32);
        let trial = Trial::new(&golden.shape, PLAIN).apply(lion(PLAIN, DType::F32), &[at]);
        golden.assert_near(&trial.run(RATE as f32).0);
    }
}

#[test]
fn lion_follows_the_formula_in_f64() {
    for (kind, momentum) in KINDS
        .iter()
        .flat_map(|k| [(*k, DType::F32), (*k, DType::Bf16)])
    {
        let n = 20_011u64;
        let at = Type::new(&[n], momentum);
        let trial = Trial::new(&[n], kind).apply(lion(kind, momentum), &[at]);
        let (mut m, mut w) = (vec![0.0f64; n as usize], start(kind, n));
        for t in 0..STEPS {
            for (i, g) in seen(kind, t, n).into_iter().enumerate() {
                w[i] *= 1.0 - RATE * 0.1;
                let c: f64 = 0.9 * m[i] + 0.1 * g;
                w[i] -= RATE * if c == 0.0 { 0.0 } else { c.signum() };
                m[i] = 0.99 * m[i] + 0.01 * g;
                if momentum == DType::Bf16 {
                    m[i] = to(momentum, m[i]);
                }
            }
            keep(kind, &mut w);
        }
        let want = narrow(&w);
        // A sum that is almost zero may have the other sign, above all of a momentum that was rounded.
        let bound = if momentum == DType::Bf16 { 1e-3 } else { 1e-4 };
        let (made, states) = trial.run(RATE as f32);
        assert_near("lion", &made, &want, near(kind).max(bound));
        assert_eq!(states[0].len() as u64, n * momentum.bytes());
    }
}

fn adafactor(kind: Kind, form: &str) -> Adafactor {
    Adafactor {
        eps: 1e-30,
        scale: (form == "scaled").then_some(1e-3),
        clip: 1.0,
        exponent: -0.8,
        beta1: (form == "momentum").then_some(0.9),
        decay: if form == "decayed" { 0.1 } else { 0.0 },
        master: kind.master,
        guard: kind.guard,
    }
}

const FORMS: [&str; 4] = ["plain", "momentum", "scaled", "decayed"];

#[test]
fn adafactor_gives_what_transformers_gives() {
    for form in FORMS {
        for golden in goldens(&format!("adafactor.{form}")) {
            let Golden { shape, row } = &golden;
            let op = adafactor(PLAIN, form);
            let states = types(op.states(&Type::new(shape, DType::F32)));
            let trial = Trial::new(shape, PLAIN).apply(op, &states);
            assert_eq!(bytes(&trial.bench.step, &trial.states), row["state"]);
            golden.assert_near(&trial.run(1e-2).0);
        }
    }
}

/// Adafactor of a matrix, or of a vector with one row, in f64.
fn factored(kind: Kind, form: &str, (rows, columns): (usize, usize)) -> Vec<f32> {
    let n = rows * columns;
    let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
    let mut w = start(kind, n as u64);
    let (mut r, mut c, mut v) = (vec![0.0; rows], vec![0.0; columns], vec![0.0; n]);
    let mut mean = vec![0.0; n];
    for t in 0..STEPS {
        let g = seen(kind, t, n as u64);
        let beta = 1.0 - ((t + 1) as f64).powf(-0.8);
        let square = |i: usize| g[i] * g[i] + 1e-30;
        let mut rate = 1e-2;
        if form == "scaled" {
            rate *= rms(&w).max(1e-3);
        }
        let mut update = vec![0.0; n];
        for i in 0..n {
            v[i] = beta * v[i] + (1.0 - beta) * square(i);
            update[i] = g[i] / v[i].sqrt();
        }
        if rows > 1 {
            for (i, r) in r.iter_mut().enumerate() {
                let sum: f64 = (0..columns).map(|j| square(i * columns + j)).sum();
                *r = beta * *r + (1.0 - beta) * sum / columns as f64;
            }
            for (j, c) in c.iter_mut().enumerate() {
                let sum: f64 = (0..rows).map(|i| square(i * columns + j)).sum();
                *c = beta * *c + (1.0 - beta) * sum / rows as f64;
            }
            let middle = r.iter().sum::<f64>() / rows as f64;
            for i in 0..n {
                update[i] = g[i] / (r[i / columns] / middle * c[i % columns]).sqrt();
            }
        }
        let size = rms(&update).max(1.0);
        for i in 0..n {
            let mut step = rate * update[i] / size;
            if form == "momentum" {
                mean[i] = 0.9 * mean[i] + 0.1 * step;
                step = mean[i];
            }
            w[i] =
                w[i] * if form == "decayed" {
                    1.0 - 0.1 * rate
                } else {
                    1.0
                } - step;
        }
        keep(kind, &mut w);
    }
    narrow(&w)
}

#[test]
fn adafactor_follows_the_formula_in_f64() {
    for (kind, form) in KINDS.iter().flat_map(|k| FORMS.map(|f| (*k, f))) {
        for (rows, columns) in [(700, 67), (3, 30_001), (1, 40_003)] {
            let shape: &[u64] = match rows {
                1 => &[columns as u64],
                _ => &[rows as u64, columns as u64],
            };
            let op = adafactor(kind, form);
            let states = types(op.states(&Type::new(shape, kind.parameter)));
            let trial = Trial::new(shape, kind).apply(op, &states);
            let want = factored(kind, form, (rows, columns));
            assert_near(form, &trial.run(1e-2).0, &want, near(kind).max(2e-6));
        }
    }
}

#[test]
fn adafactor_holds_a_row_and_a_column() {
    let held = |shape: &[u64], form: &str| -> u64 {
        let states = types(adafactor(PLAIN, form).states(&Type::new(shape, DType::Bf16)));
        states.iter().map(|at| at.bytes().0).sum()
    };
    assert_eq!(held(&[300, 70], "plain"), 4 * (300 + 70));
    assert_eq!(held(&[300, 70], "momentum"), 4 * (300 + 70 + 300 * 70));
    assert_eq!(held(&[5, 300, 70], "plain"), 4 * 5 * (300 + 70));
    assert_eq!(held(&[70], "plain"), 4 * 70);
}

#[test]
fn a_guard_that_says_not_finite_leaves_every_byte() {
    let kind = Kind {
        guard: true,
        ..PLAIN
    };
    let guard = [GUARD[0], 0.0, f32::NAN];
    let at = Type::new(&[70, 67], DType::F32);
    let factors = adafactor(kind, "momentum");
    let states = types(factors.states(&at));
    let trials = [
        Trial::new(&at.shape, kind).apply(eight(kind), &types(AdamW8Bit::states(&at))),
        Trial::new(&at.shape, kind).apply(lion(kind, DType::F32), std::slice::from_ref(&at)),
        Trial::new(&at.shape, kind).apply(factors, &states),
    ];
    for trial in trials {
        let (weights, states) = trial.run_with(3, 1e-2, guard, |_, _| {});
        assert_eq!(weights, crate::low_memory::cubes(7, at.elements()));
        assert!(states.iter().flatten().all(|b| *b == 0));
    }
}
