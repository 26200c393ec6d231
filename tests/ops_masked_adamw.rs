//! Adam on the largest directions: against a plain loop in f64 that sorts all coordinates.

use memfit::graph::op::optimizer::{Began, DirectionSum, MaskedAdamW, Threshold};
use memfit::graph::tensor::{DType, TensorId};

use crate::bench::{Bench, bytes_of, floats, rounded, values};
use crate::reference::Evaluator;

/// Elements of three tensors, of which `KEEP` move.
const LENS: [u64; 3] = [5_003, 700, 12_000];
const KEEP: u64 = 4_321;
const RATE: f32 = 1e-2;
const DECAY: f64 = 0.1;
const SINCE: u64 = 30;
const STEPS: u64 = 20;

const ADAM: Began = Began {
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    since: SINCE,
};

/// One step over all tensors: gradients, parameters, moments; and the sums of squares of directions.
struct Run {
    bench: Bench,
    gradients: Vec<TensorId>,
    parameters: Vec<TensorId>,
    moments: Vec<[TensorId; 2]>,
    sums: Vec<TensorId>,
    guard: Option<TensorId>,
    formats: (DType, DType),
}

impl Run {
    fn new(formats: (DType, DType), guarded: bool) -> Run {
        let mut bench = Bench::new();
        let gradients = LENS.map(|n| bench.input(&[n], formats.0)).to_vec();
        let parameters = LENS.map(|n| bench.input(&[n], formats.1)).to_vec();
        let moments = LENS.map(|n| [0, 1].map(|_| bench.input(&[n], DType::F32)));
        let guard = guarded.then(|| bench.input(&[3], DType::F32));
        let mut inputs = Vec::new();
        let mut sums = Vec::new();
        for (&gradient, moments) in gradients.iter().zip(&moments) {
            let mut own = vec![gradient, moments[0], moments[1]];
            inputs.extend(own.clone());
            own.extend(guard);
            let op = DirectionSum {
                adam: ADAM,
                moments: true,
                guard: guarded,
            };
            sums.push(bench.emit(op, &own)[0]);
        }
        inputs.extend(guard);
        let op = Threshold {
            adam: ADAM,
            tensors: LENS.len(),
            keep: KEEP,
            guard: guarded,
        };
        let threshold = bench.emit(op, &inputs)[0];
        for (i, &gradient) in gradients.iter().enumerate() {
            let mut inputs = vec![gradient, parameters[i]];
            inputs.extend(moments[i]);
            inputs.push(threshold);
            inputs.extend(guard);
            let op = MaskedAdamW {
                adam: ADAM,
                decay: DECAY,
                mask: true,
                guard: guarded,
            };
            bench.emit(op, &inputs);
        }
        let moments = moments.to_vec();
        Run {
            bench,
            gradients,
            parameters,
            moments,
            sums,
            guard,
            formats,
        }
    }

    /// The parameters after each of the steps, and the sums of squares of directions.
    fn run(&self, guard: [f32; 3], threads: usize) -> Vec<(Vec<Vec<f32>>, Vec<f32>)> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let mut e = Evaluator::new(self.bench.step.clone());
            for (i, &parameter) in self.parameters.iter().enumerate() {
                let bytes = bytes_of(&start(i), self.formats.1);
                e.raw(parameter).copy_from_slice(&bytes);
                self.moments[i].iter().for_each(|&m| e.raw(m).fill(0));
            }
            if let Some(id) = self.guard {
                e.set(id, &guard);
            }
            e.scalars.rate = RATE;
            let mut made = Vec::new();
            for step in 1..=STEPS {
                for (i, &id) in self.gradients.iter().enumerate() {
                    let bytes = bytes_of(&gradient(i, step), self.formats.0);
                    e.raw(id).copy_from_slice(&bytes);
                }
                e.scalars.step = SINCE + step;
                e.run(0..self.bench.step.nodes.len()).unwrap();
                let read = |id: &TensorId| floats(e.raw(*id), self.formats.1);
                let parameters = self.parameters.iter().map(read).collect();
                let sums = self.sums.iter().map(|&s| floats(e.raw(s), DType::F32)[0]);
                made.push((parameters, sums.collect()));
            }
            made
        })
    }
}

fn start(tensor: usize) -> Vec<f32> {
    values(tensor as u64, LENS[tensor] as usize, 1.0)
}

/// Of different sizes, so that no tensor has them all; a mean and noise, so that directions differ.
fn gradient(tensor: usize, step: u64) -> Vec<f32> {
    let len = LENS[tensor] as usize;
    let mean = values(50 + tensor as u64, len, 0.4);
    let noise = values(1000 * (tensor as u64 + 1) + step, len, 0.3);
    mean.iter().zip(noise).map(|(m, n)| m + n).collect()
}

/// In f64: parameters after each step, and the norms of directions.
fn plain(formats: (DType, DType), scale: f64) -> Vec<(Vec<Vec<f64>>, Vec<f64>)> {
    let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<f64>>();
    let mut weights: Vec<Vec<f64>> = (0..3)
        .map(|i| wide(rounded(&start(i), formats.1)))
        .collect();
    let mut moments: Vec<Vec<[f64; 2]>> =
        LENS.iter().map(|&n| vec![[0.0; 2]; n as usize]).collect();
    let mut made = Vec::new();
    for step in 1..=STEPS {
        let mut all = Vec::new();
        let mut sums = Vec::new();
        for (i, moments) in moments.iter_mut().enumerate() {
            let gradient = wide(rounded(&gradient(i, step), formats.0));
            let mut sum = 0.0;
            for (at, (g, [m, v])) in gradient.iter().zip(moments).enumerate() {
                let g = g * scale;
                *m = ADAM.beta1 * *m + (1.0 - ADAM.beta1) * g;
                *v = ADAM.beta2 * *v + (1.0 - ADAM.beta2) * g * g;
                let corrected = |x: f64, beta: f64| x / (1.0 - beta.powi(step as i32));
                let direction =
                    corrected(*m, ADAM.beta1) / (corrected(*v, ADAM.beta2).sqrt() + ADAM.eps);
                sum += direction * direction;
                let coarse = half::bf16::from_f64(direction.abs()).to_f64();
                all.push((coarse, g.abs(), i, at, direction));
            }
            sums.push(sum);
        }
        all.sort_by(|a, b| (b.0, b.1).partial_cmp(&(a.0, a.1)).unwrap());
        for &(_, _, i, at, direction) in &all[..KEEP as usize] {
            let rate = f64::from(RATE);
            weights[i][at] = weights[i][at] * (1.0 - rate * DECAY) - rate * direction;
        }
        made.push((weights.clone(), sums));
    }
    made
}

#[test]
fn twenty_masked_steps_agree_with_a_sort_of_all_coordinates_in_f64() {
    for (gradient, guard) in [(DType::F32, None), (DType::Bf16, Some([0.5f32, 1.0, 1.0]))] {
        let formats = (gradient, DType::F32);
        let run = Run::new(formats, guard.is_some());
        let ours = run.run(guard.unwrap_or_default(), 1);
        assert!(ours == run.run(guard.unwrap_or_default(), 3), "threads");
        let wanted = plain(formats, guard.map_or(1.0, |g| f64::from(g[0])));
        let mut before: Vec<Vec<f32>> = (0..3).map(start).collect();
        let (mut way, mut off) = (0.0, 0.0);
        for (step, ((weights, sums), (reference, norms))) in ours.iter().zip(&wanted).enumerate() {
            for (sum, norm) in sums.iter().zip(norms) {
                let error = (f64::from(*sum) - norm).abs() / norm;
                assert!(error < 1e-5, "step {step}: {sum} for {norm}");
            }
            let pairs = weights.iter().flatten().zip(before.iter().flatten());
            let moved = pairs.filter(|(new, old)| new != old).count() as u64;
            // Directions of moments that begin are equal, and many gradients of eight bits are too.
            let ties = if gradient == DType::F32 { 0 } else { KEEP / 50 };
            assert!((KEEP..=KEEP + ties).contains(&moved), "{step}: {moved}");
            assert!(step < 3 || moved <= KEEP + 2, "{step}: {moved}");
            way = 0.0;
            off = 0.0;
            let starts: Vec<Vec<f32>> = (0..3).map(start).collect();
            let all = weights.iter().flatten().zip(reference.iter().flatten());
            for ((ours, wanted), start) in all.zip(starts.iter().flatten()) {
                way += (wanted - f64::from(*start)).powi(2);
                off += (wanted - f64::from(*ours)).powi(2);
            }
            before = weights.clone();
        }
        let error = (off / way).sqrt();
        println!("{gradient:?}: off by {error:.1e} of the way");
        let bound = if gradient == DType::F32 { 1e-5 } else { 5e-2 };
        assert!(error < bound, "{gradient:?}: {error:e}");
    }
}

#[test]
fn all_three_tensors_have_coordinates_that_move_and_no_guard_of_zero_moves_any() {
    let run = Run::new((DType::F32, DType::Bf16), true);
    let moved = run.run([1.0, 1.0, 1.0], 2);
    for i in 0..3 {
        let start = rounded(&start(i), DType::Bf16);
        let last = &moved[STEPS as usize - 1].0[i];
        assert!(last.iter().zip(start).any(|(a, b)| *a != b), "tensor {i}");
    }
    let kept = run.run([1.0, 0.0, 1.0], 2);
    let start: Vec<Vec<f32>> = (0..3).map(|i| rounded(&start(i), DType::Bf16)).collect();
    assert!(kept[STEPS as usize - 1].0 == start);
}

#[test]
fn a_gradient_without_moments_has_directions_of_one_above_eps() {
    let mut bench = Bench::new();
    let gradient = bench.input(&[LENS[0]], DType::F32);
    let op = DirectionSum {
        adam: Began { eps: 1e-3, ..ADAM },
        moments: false,
        guard: false,
    };
    let sum = bench.emit(op, &[gradient])[0];
    let made = bench.run_alike(&[sum], |e| {
        e.scalars.step = 77;
        e.set(gradient, &values(4, LENS[0] as usize, 1e-2));
    });
    let wanted: f64 = (values(4, LENS[0] as usize, 1e-2).iter())
        .map(|g| (f64::from(*g) / (f64::from(g.abs()) + 1e-3)).powi(2))
        .sum();
    let got = f64::from(floats(&made[0], DType::F32)[0]);
    assert!((got - wanted).abs() < 1e-5 * wanted, "{got} for {wanted}");
}
