//! MicroAdam: a plain loop in f64 over its authors' algorithm, its state to the byte, and its traps.

use memfit::graph::op::Op;
use memfit::graph::op::optimizer::MicroAdam;
use memfit::graph::tensor::{DType, Type};
use memfit::spec::job::Backend;

use crate::bench::{assert_near, floats};
use crate::low_memory::{KINDS, Kind, PLAIN, STEPS, Trial, keep, narrow, near, seen, start, to};
use crate::reference::Evaluator;

const RATE: f64 = 1e-3;

fn microadam(kind: Kind) -> MicroAdam {
    MicroAdam {
        window: 4,
        density: 0.05,
        block: 300,
        quant: 64,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        decay: 0.01,
        alpha: 0.0,
        master: kind.master,
        guard: kind.guard,
    }
}

fn trial(op: &MicroAdam, n: u64, kind: Kind) -> Trial {
    let states = op
        .states(&Type::new(&[n], kind.parameter))
        .map(|(_, at)| at);
    Trial::new(&[n], kind).apply(op.clone(), &states)
}

/// The algorithm, tensor-wide and in f64, with numbers rounded where its buffers are narrow.
fn plain(op: &MicroAdam, n: usize, kind: Kind) -> Vec<f32> {
    let (block, quant) = ((op.block as usize).min(n), op.quant as usize);
    let mut w = start(kind, n as u64);
    let (mut error, mut joins) = (vec![0.0f64; n], vec![0.0f64; n]);
    let mut window: Vec<Vec<(usize, f64)>> = vec![Vec::new(); op.window as usize];
    for t in 1..=STEPS {
        let g = seen(kind, t - 1, n as u64);
        let mut a: Vec<f64> = g
            .iter()
            .zip(&error)
            .map(|(g, e)| to(kind.gradient, g + e))
            .collect();
        let row = &mut window[(t as usize - 1) % op.window as usize];
        row.clear();
        for from in (0..n).step_by(block) {
            let to_end = (from + block).min(n);
            let count = ((to_end - from) as f64 * op.density).ceil() as usize;
            let mut order: Vec<usize> = (from..to_end).collect();
            order.sort_by(|x, y| a[*y].abs().total_cmp(&a[*x].abs()).then(x.cmp(y)));
            for &i in &order[..count] {
                row.push((i, to(DType::Bf16, a[i])));
                a[i] = 0.0;
            }
        }
        for (from, part) in a.chunks(quant).enumerate() {
            let low = to(
                DType::Bf16,
                part.iter().copied().fold(f64::INFINITY, f64::min),
            );
            let high = to(
                DType::Bf16,
                part.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            );
            for (i, x) in part.iter().enumerate() {
                // In f32 as the authors' kernel: of a range around zero, zero lies halfway between two codes.
                let narrow = (*x as f32 - low as f32) / ((high as f32 - low as f32) / 15.0);
                let code = f64::from((narrow + 0.5).floor().clamp(0.0, 15.0));
                let code = if high > low { code } else { 0.0 };
                let value = |low: f64, high: f64| code * ((high - low) / 15.0) + low;
                let rest = |end: f64| to(DType::Bf16, end * (1.0 - op.alpha));
                joins[from * quant + i] = op.alpha * value(low, high);
                error[from * quant + i] = value(rest(low), rest(high));
            }
        }
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for (r, row) in window.iter().enumerate().take(t as usize) {
            let age = ((t as usize - 1 - r) % op.window as usize) as i32;
            for (i, x) in row {
                m[*i] += op.beta1.powi(age) * x;
                v[*i] += op.beta2.powi(age) * x * x;
            }
        }
        let share = |beta: f64| (1.0 - beta) / (1.0 - beta.powi(t as i32));
        for i in 0..n {
            let mut step = share(op.beta1) * m[i] / ((share(op.beta2) * v[i]).sqrt() + op.eps);
            step += joins[i];
            step = to(kind.gradient, step);
            w[i] = w[i] * (1.0 - RATE * op.decay) - RATE * step;
        }
        keep(kind, &mut w);
    }
    narrow(&w)
}

#[test]
fn microadam_follows_its_algorithm_in_f64() {
    for kind in KINDS {
        for n in [40u64, 64, 637, 640, 5003] {
            let op = microadam(kind);
            let want = plain(&op, n as usize, kind);
            let (made, _) = trial(&op, n, kind).run(RATE as f32);
            // In 16 bits, what is rounded to the other neighbour may be kept or coded otherwise.
            let bound = if kind.gradient == DType::F32 {
                3e-6
            } else {
                1e-4
            };
            assert_near(
                &format!("{kind:?} {n}"),
                &made,
                &want,
                near(kind).max(bound),
            );
        }
    }
}

#[test]
fn a_share_of_what_is_left_out_joins_the_step() {
    let op = MicroAdam {
        alpha: 0.25,
        ..microadam(PLAIN)
    };
    let want = plain(&op, 637, PLAIN);
    let (made, _) = trial(&op, 637, PLAIN).run(RATE as f32);
    assert_near("alpha", &made, &want, 1e-5);
    let without = plain(&microadam(PLAIN), 637, PLAIN);
    assert!(crate::bench::distance(&want, &without) > 1e-4);
}

/// Bytes of state, as the authors' buffers have them.
#[test]
fn microadam_holds_a_window_half_a_byte_an_element_and_two_ends_a_range() {
    for (w, density, block, qb) in [
        (10u64, 0.01, 20_864u64, 64u64),
        (20, 0.01, 12_672, 100_000),
        (3, 0.5, 100, 32),
    ] {
        for d in [1u64, 63, 64, 65, 20_864, 50_001, 131_072] {
            let op = MicroAdam {
                window: w as u32,
                density,
                block: block as u32,
                quant: qb as u32,
                ..microadam(PLAIN)
            };
            let ceil = |n: u64| (n as f64 * density).ceil() as u64;
            let block = block.min(d);
            let k = d / block * ceil(block) + ceil(d % block);
            let held: u64 = op
                .states(&Type::new(&[d], DType::Bf16))
                .iter()
                .map(|(_, at)| at.bytes().0)
                .sum();
            assert_eq!(
                held,
                4 * w * k + d.div_ceil(2) + 4 * (d / qb + 1),
                "{w} {d}"
            );
        }
    }
}

/// A parameter with all its tensors at hand, and `op` applied to it.
fn by_hand(op: MicroAdam, n: u64) -> (Trial, Evaluator) {
    let made = trial(&op, n, PLAIN);
    let mut e = Evaluator::new(made.bench.step.clone());
    for id in made.states.iter().chain([&made.parameter, &made.gradient]) {
        e.raw(*id).fill(0);
    }
    (made, e)
}

#[test]
fn a_coordinate_in_every_row_moves_six_and_a_half_rates() {
    let op = MicroAdam {
        window: 10,
        density: 1.0,
        decay: 0.0,
        ..microadam(PLAIN)
    };
    let (made, mut e) = by_hand(op, 16);
    e.scalars.rate = 1.0;
    for step in 100_000..100_010 {
        e.set(made.gradient, &[0.3f32; 16]);
        e.raw(made.parameter).fill(0);
        e.scalars.step = step;
        e.run(0..1).unwrap();
    }
    let moved = -floats(e.raw(made.parameter), DType::F32)[0];
    let want = (1.0 - 0.9f32.powi(10)) / (1.0 - 0.999f32.powi(10)).sqrt();
    assert!((want - 6.53).abs() < 0.005, "{want}");
    assert!((moved / want - 1.0).abs() < 1e-4, "{moved}");
}

#[test]
fn the_first_of_two_codes_is_in_the_high_half_and_the_gradient_becomes_the_step() {
    let op = MicroAdam {
        density: 0.01,
        decay: 0.0,
        ..microadam(PLAIN)
    };
    let (made, mut e) = by_hand(op, 5);
    e.set(made.gradient, &[0.0f32, 15.0, 7.0, 100.0, 15.0]);
    (e.scalars.step, e.scalars.rate) = (1, 0.5);
    e.run(0..1).unwrap();
    let [index, value, error, low, high] = made.states[..] else {
        panic!()
    };
    assert_eq!(e.raw(error), [0x0f, 0x70, 0xf0]);
    assert_eq!(e.get::<u16>(index)[0], 3);
    assert_eq!(floats(e.raw(value), DType::Bf16)[0], 100.0);
    assert_eq!(floats(e.raw(low), DType::Bf16)[0], 0.0);
    assert_eq!(floats(e.raw(high), DType::Bf16)[0], 15.0);
    let step: Vec<f32> = e.get(made.gradient);
    assert!((step[3] - 1.0).abs() < 1e-6 && step[..3] == [0.0; 3]);
    assert_eq!(floats(e.raw(made.parameter), DType::F32)[3], -0.5 * step[3]);
}

#[test]
fn indices_are_relative_and_the_last_small_block_keeps_its_own_share() {
    let op = MicroAdam {
        density: 0.02,
        block: 100,
        ..microadam(PLAIN)
    };
    let (made, mut e) = by_hand(op, 230);
    let mut g = vec![0.001f32; 230];
    for i in [7, 93, 100, 199, 229] {
        g[i] = i as f32;
    }
    e.set(made.gradient, &g);
    (e.scalars.step, e.scalars.rate) = (2, 0.5);
    e.run(0..1).unwrap();
    let index: Vec<u16> = e.get(made.states[0]);
    assert_eq!(index.len(), 4 * (2 + 2 + 1));
    assert_eq!(index[5..10], [7, 93, 0, 99, 29]);
}

#[test]
fn a_gradient_that_is_not_finite_leaves_an_empty_row() {
    let kind = Kind {
        guard: true,
        ..PLAIN
    };
    let op = microadam(kind);
    let made = trial(&op, 637, kind);
    let (weights, states) = made.run_with(STEPS, RATE as f32, [1.0, 0.0, f32::NAN], |_, _| {});
    assert_eq!(weights, crate::low_memory::cubes(7, 637));
    assert!(states.iter().flatten().all(|b| *b == 0));
}

#[test]
fn room_beside_the_state_is_a_block_for_each_thread_and_none_on_a_gpu() {
    let op = MicroAdam {
        block: 20_864,
        density: 0.01,
        ..microadam(PLAIN)
    };
    let at = Type::new(&[50_000], DType::Bf16);
    let inputs = [at.clone(), at];
    let of = |backend| op.scratch(&inputs, backend).0;
    assert_eq!(of(Backend::Cpu { threads: 3 }), 3 * 8 * 20_864);
    assert_eq!(of(Backend::Cuda { capability: 80 }), 0);
}
