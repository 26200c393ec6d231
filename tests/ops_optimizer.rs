//! Optimizers against plain loops over PyTorch's formulas, and the guard against its definition.

use memfit::graph::op::optimizer::{AdamW, ClipScale, Sgd, SquareSum};
use memfit::graph::tensor::{DType, TensorId};

use crate::bench::{Bench, assert_near, bytes_of, floats, rounded, values};

const LEN: u64 = 40_007;
const RATE: f64 = 1e-2;

/// Three steps of an optimizer node; the weight, master and states after each.
struct Run {
    gradient: DType,
    parameter: DType,
    master: bool,
    states: usize,
    guard: Option<[f32; 3]>,
}

impl Run {
    /// Emits with `op` and returns what the parameter and its companions are after three steps.
    fn three_steps(&self, op: impl memfit::graph::op::Op + Clone + 'static) -> Vec<Vec<u8>> {
        let mut bench = Bench::new();
        let gradients = [0, 1, 2].map(|_| bench.input(&[LEN], self.gradient));
        let parameter = bench.input(&[LEN], self.parameter);
        let kept = usize::from(self.master) + self.states;
        let mut state: Vec<TensorId> = vec![parameter];
        state.extend((0..kept).map(|_| bench.input(&[LEN], DType::F32)));
        let first = state.clone();
        let guard = self.guard.map(|_| bench.input(&[3], DType::F32));
        for gradient in gradients {
            let mut inputs = vec![gradient];
            inputs.extend(&state);
            inputs.extend(guard);
            state = bench.emit(op.clone(), &inputs);
        }
        for (new, old) in state.iter().zip(&first) {
            let home = |id: TensorId| bench.step.tensor(id).storage;
            assert_eq!(home(*new), home(*old));
        }
        let mut made = Vec::new();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            made.push(pool.build().unwrap().install(|| {
                let mut e = crate::reference::Evaluator::new(bench.step.clone());
                for (step, id) in gradients.iter().enumerate() {
                    let bytes = bytes_of(&gradient_at(step), self.gradient);
                    e.raw(*id).copy_from_slice(&bytes);
                }
                e.raw(parameter)
                    .copy_from_slice(&bytes_of(&start(), self.parameter));
                for (i, id) in first.iter().enumerate().skip(1) {
                    let weight = self.master && i == 1;
                    let zero = vec![0.0; LEN as usize];
                    e.set(*id, &if weight { start() } else { zero });
                }
                if let (Some(id), Some(values)) = (guard, self.guard) {
                    e.set(id, &values);
                }
                for step in 0..3 {
                    e.scalars.step = step as u64 + 1;
                    e.scalars.rate = RATE as f32;
                    e.run(step..step + 1).unwrap();
                }
                state
                    .iter()
                    .map(|id| e.raw(*id).to_vec())
                    .collect::<Vec<_>>()
            }));
        }
        assert!(made[0] == made[1] && made[1] == made[2], "threads differ");
        made.swap_remove(0)
    }
}

fn start() -> Vec<f32> {
    values(7, LEN as usize, 1.0)
}

fn gradient_at(step: usize) -> Vec<f32> {
    values(20 + step as u64, LEN as usize, 0.5)
}

fn adamw(master: bool, guard: bool) -> AdamW {
    AdamW {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
        master,
        guard,
    }
}

/// torch.optim.AdamW, one weight in f64: weight, m, v.
fn torch_adamw(op: &AdamW, gradients: [f64; 3], mut p: f64) -> [f32; 3] {
    let (mut m, mut v) = (0.0, 0.0);
    for (t, g) in gradients.iter().enumerate() {
        p *= 1.0 - RATE * op.decay;
        m = op.beta1 * m + (1.0 - op.beta1) * g;
        v = op.beta2 * v + (1.0 - op.beta2) * g * g;
        let (one, two) = (
            1.0 - op.beta1.powi(t as i32 + 1),
            1.0 - op.beta2.powi(t as i32 + 1),
        );
        p -= RATE / one * m / (v.sqrt() / two.sqrt() + op.eps);
    }
    [p, m, v].map(|x| x as f32)
}

/// torch.optim.SGD, one weight in f64: weight, buffer.
fn torch_sgd(op: &Sgd, gradients: [f64; 3], mut p: f64) -> [f32; 2] {
    let mut buffer = None;
    for g in gradients {
        let mut g = g + op.decay * p;
        if op.momentum != 0.0 {
            let next = buffer.map_or(g, |b: f64| op.momentum * b + g);
            buffer = Some(next);
            g = if op.nesterov {
                g + op.momentum * next
            } else {
                next
            };
        }
        p -= RATE * g;
    }
    [p as f32, buffer.unwrap_or(0.0) as f32]
}

/// Applies a loop over one weight to all, with gradients rounded and scaled.
fn each<const N: usize>(
    gradient: DType,
    weight: DType,
    scale: f64,
    rule: impl Fn([f64; 3], f64) -> [f32; N],
) -> [Vec<f32>; N] {
    let gradients = [0, 1, 2].map(|step| rounded(&gradient_at(step), gradient));
    let weights = rounded(&start(), weight);
    let results: Vec<[f32; N]> = (weights.iter().enumerate())
        .map(|(i, &w)| {
            let gradients = [0, 1, 2].map(|step: usize| f64::from(gradients[step][i]) * scale);
            rule(gradients, f64::from(w))
        })
        .collect();
    std::array::from_fn(|n| results.iter().map(|r| r[n]).collect())
}

#[test]
fn adamw_follows_the_formula_of_pytorch() {
    for (gradient, guard) in [
        (DType::F32, None),
        (DType::Bf16, Some([0.25, 1.0, 9.0])),
        (DType::F16, None),
    ] {
        let op = adamw(false, guard.is_some());
        let run = Run {
            gradient,
            parameter: DType::F32,
            master: false,
            states: 2,
            guard,
        };
        let made = run.three_steps(op.clone());
        let scale = guard.map_or(1.0, |g| f64::from(g[0]));
        let want = each(gradient, DType::F32, scale, |g, w| torch_adamw(&op, g, w));
        for (made, want) in made.iter().zip(&want) {
            assert_near("adamw", &floats(made, DType::F32), want, 1e-6);
        }
    }
}

#[test]
fn a_master_copy_carries_the_weight_and_the_parameter_is_its_rounding() {
    let op = adamw(true, false);
    let run = Run {
        gradient: DType::F32,
        parameter: DType::Bf16,
        master: true,
        states: 2,
        guard: None,
    };
    let made = run.three_steps(op.clone());
    let want = each(DType::F32, DType::F32, 1.0, |g, w| torch_adamw(&op, g, w));
    let master = floats(&made[1], DType::F32);
    assert_near("master", &master, &want[0], 1e-6);
    assert_near("m", &floats(&made[2], DType::F32), &want[1], 1e-6);
    assert_near("v", &floats(&made[3], DType::F32), &want[2], 1e-6);
    assert_eq!(made[0], bytes_of(&master, DType::Bf16));
}

#[test]
fn without_a_master_copy_a_narrow_parameter_is_rounded_each_step() {
    let op = adamw(false, false);
    let run = Run {
        gradient: DType::Bf16,
        parameter: DType::Bf16,
        master: false,
        states: 2,
        guard: None,
    };
    let made = run.three_steps(op.clone());
    let want = each(DType::Bf16, DType::Bf16, 1.0, |g, w| torch_adamw(&op, g, w));
    assert_near("weight", &floats(&made[0], DType::Bf16), &want[0], 1e-2);
    assert_near("m", &floats(&made[1], DType::F32), &want[1], 1e-6);
}

#[test]
fn sgd_follows_the_formula_of_pytorch() {
    for (momentum, nesterov, master) in [
        (0.0, false, false),
        (0.9, false, false),
        (0.9, true, false),
        (0.9, true, true),
        (0.0, false, true),
    ] {
        let op = Sgd {
            momentum,
            decay: 0.05,
            nesterov,
            master,
            guard: false,
        };
        let run = Run {
            gradient: DType::F32,
            parameter: if master { DType::Bf16 } else { DType::F32 },
            master,
            states: usize::from(momentum != 0.0),
            guard: None,
        };
        let made = run.three_steps(op.clone());
        let want = each(DType::F32, DType::F32, 1.0, |g, w| torch_sgd(&op, g, w));
        for (made, want) in made.iter().skip(usize::from(master)).zip(&want) {
            assert_near("sgd", &floats(made, DType::F32), want, 1e-6);
        }
    }
}

#[test]
fn gradients_that_are_not_finite_change_nothing() {
    let guard = Some([f32::NAN, 0.0, f32::NAN]);
    let run = Run {
        gradient: DType::F32,
        parameter: DType::F32,
        master: false,
        states: 2,
        guard,
    };
    let made = run.three_steps(adamw(false, true));
    assert_eq!(floats(&made[0], DType::F32), start());
    assert!(made[1].iter().chain(&made[2]).all(|b| *b == 0));
}

/// The guard of two gradients, the second of which is `last`.
fn guard_of(
    dtype: DType,
    last: &[f32],
    max_norm: Option<f64>,
    loss_scale: Option<f32>,
) -> [f32; 3] {
    let mut bench = Bench::new();
    let long = bench.input(&[3, 360_001], dtype);
    let short = bench.input(&[last.len() as u64], dtype);
    let scale = bench.input(&[2], DType::F32);
    let mut inputs = [long, short]
        .map(|g| bench.emit(SquareSum, &[g])[0])
        .to_vec();
    inputs.extend(loss_scale.map(|_| scale));
    let op = ClipScale {
        max_norm,
        loss_scale: loss_scale.is_some(),
    };
    let guard = bench.emit(op, &inputs)[0];
    let made = bench.run_alike(&[guard], |e| {
        let ones = vec![0.5f32; 1_080_003];
        e.raw(long).copy_from_slice(&bytes_of(&ones, dtype));
        e.raw(short).copy_from_slice(&bytes_of(last, dtype));
        e.set(scale, &[3.0, loss_scale.unwrap_or(0.0)]);
    });
    let guard = floats(&made[0], DType::F32);
    [guard[0], guard[1], guard[2]]
}

#[test]
fn the_guard_clips_to_the_norm_and_takes_the_loss_scale_out() {
    let norm = (0.25 * 1_080_003.0f64 + 9.0 + 16.0).sqrt();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for scale in [None, Some(512.0f32)] {
            let inverse = 1.0 / f64::from(scale.unwrap_or(1.0));
            let [keep, finite, size] = guard_of(dtype, &[3.0, -4.0], None, scale);
            assert_eq!((keep, finite), (inverse as f32, 1.0));
            assert!((f64::from(size) / (norm * inverse) - 1.0).abs() < 1e-6);
            let [clip, _, _] = guard_of(dtype, &[3.0, -4.0], Some(0.5), scale);
            let want = 0.5 / (norm * inverse + 1e-6) * inverse;
            assert!((f64::from(clip) / want - 1.0).abs() < 1e-6);
            let [loose, _, _] = guard_of(dtype, &[3.0, -4.0], Some(1e9), scale);
            assert_eq!(loose, keep);
        }
    }
}

#[test]
fn the_guard_sees_one_value_that_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let guard = guard_of(DType::F16, &[1.0, bad, 2.0], Some(1.0), Some(8.0));
        assert_eq!(guard[1], 0.0);
    }
}
