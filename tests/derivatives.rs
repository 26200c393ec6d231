//! One op alone: its outputs and gradients, compared with candle, with finite differences and between thread counts.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use memfit::graph::backward::{Gradients, differentiate};
use memfit::graph::op::Op;
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, Role, TensorId, Type};
use memfit::graph::{Phase, Spot, Step};
use memfit::spec::job::Place;

use crate::bench::{bytes_of, distance, flat, floats};
use crate::reference::Evaluator;

/// An op and values for its inputs.
#[derive(Clone)]
pub struct Case {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<(Vec<u64>, Vec<f32>)>,
}

/// What a case computes, widened.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    pub outputs: Vec<Vec<f32>>,
    pub gradients: Vec<Vec<f32>>,
}

/// Normal numbers that depend on `seed`.
pub fn normals(seed: u64, count: u64) -> Vec<f32> {
    let key = Key::new(seed, 0, "test");
    (0..count).map(|i| key.normal(i)).collect()
}

/// An op with inputs of these shapes, filled with normal numbers.
pub fn case(op: impl Op + 'static, shapes: &[&[u64]]) -> Case {
    let values = |(i, s): (usize, &&[u64])| (s.to_vec(), normals(i as u64, s.iter().product()));
    Case {
        op: Arc::new(op),
        inputs: shapes.iter().enumerate().map(values).collect(),
    }
}

fn put(evaluator: &mut Evaluator, id: TensorId, values: &[f32]) {
    let dtype = evaluator.step.type_of(id).dtype;
    evaluator.raw(id).copy_from_slice(&bytes_of(values, dtype));
}

fn wide(evaluator: &mut Evaluator, id: TensorId) -> Vec<f32> {
    let dtype = evaluator.step.type_of(id).dtype;
    floats(evaluator.raw(id), dtype)
}

impl Case {
    /// The gradient that output 0 receives.
    pub fn seed(&self, count: usize) -> Vec<f32> {
        normals(99, count as u64)
    }

    /// Runs forward and backward in `dtype`; inputs keep their own gradient's format.
    pub fn run(&self, dtype: DType) -> Ran {
        self.run_with(dtype, None)
    }

    /// Runs with parameter gradients in `format`.
    pub fn run_with(&self, dtype: DType, format: Option<DType>) -> Ran {
        self.evaluate(dtype, format, None, 0)
    }

    fn evaluate(
        &self,
        dtype: DType,
        format: Option<DType>,
        then: Option<Arc<dyn Op>>,
        micro: u64,
    ) -> Ran {
        let mut step = Step::default();
        let input = |step: &mut Step, i: usize| {
            let at = Type::new(&self.inputs[i].0, dtype);
            step.persistent(&format!("input{i}"), at, Place::Gpu, Role::Parameter)
        };
        let inputs: Vec<_> = (0..self.inputs.len())
            .map(|i| input(&mut step, i))
            .collect();
        let spot = Spot::compute(Phase::Forward, "test", "op");
        let made = step.emit(self.op.clone(), &inputs, spot, Role::Activation);
        let made = made.unwrap();
        let at = step.type_of(made[0]).clone();
        let mut last = made[0];
        let mut wanted = inputs.clone();
        if let Some(then) = then {
            let other = step.persistent("other", at.clone(), Place::Gpu, Role::Parameter);
            let spot = Spot::compute(Phase::Forward, "test", "then");
            last = step
                .emit(then, &[last, other], spot, Role::Activation)
                .unwrap()[0];
            wanted.push(other);
        }
        let mut gradients = Gradients::new(&step, &wanted, format);
        let seed = step.persistent("seed", at.clone(), Place::Gpu, Role::Temporary);
        gradients.seed(last, seed);
        let forward = step.nodes.len();
        let gradients = differentiate(&mut step, gradients).unwrap();
        let nodes = step.nodes.len();
        let mut evaluator = Evaluator::new(step);
        evaluator.scalars.micro = micro;
        for (id, (_, values)) in inputs.iter().zip(&self.inputs) {
            put(&mut evaluator, *id, values);
        }
        put(&mut evaluator, seed, &self.seed(at.elements() as usize));
        evaluator.run(0..forward).unwrap();
        let outputs = made.iter().map(|&id| wide(&mut evaluator, id)).collect();
        evaluator.run(forward..nodes).unwrap();
        let gradients = inputs
            .iter()
            .map(|&id| wide(&mut evaluator, gradients.of(id).unwrap()))
            .collect();
        Ran { outputs, gradients }
    }

    /// Runs in f32 as micro-batch `micro` of the step.
    pub fn run_micro(&self, micro: u64) -> Ran {
        self.evaluate(DType::F32, None, None, micro)
    }

    /// Gradients where `then` joins output 0 with another value, so that the gradient is not owned.
    pub fn run_after(&self, then: Arc<dyn Op>, dtype: DType) -> Vec<Vec<f32>> {
        self.evaluate(dtype, None, Some(then), 0).gradients
    }

    /// Output 0 and the gradients by candle's autograd.
    pub fn candle(&self, forward: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>) -> Ran {
        let var = |(shape, values): &(Vec<u64>, Vec<f32>)| {
            let shape: Vec<usize> = shape.iter().map(|&s| s as usize).collect();
            Var::from_vec(values.clone(), shape, &Device::Cpu).unwrap()
        };
        let vars: Vec<Var> = self.inputs.iter().map(var).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = forward(&tensors).unwrap();
        let seed = self.seed(y.elem_count());
        let seed = Tensor::from_vec(seed, y.shape(), &Device::Cpu).unwrap();
        let loss = (&y * seed).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = |v: &Var| flat(gradients.get(v).unwrap());
        Ran {
            outputs: vec![flat(&y)],
            gradients: vars.iter().map(gradient).collect(),
        }
    }

    /// f32 within 1e-5 of candle and bf16 within 1e-2, outputs and gradients.
    pub fn agrees_with_candle(&self, forward: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>) {
        self.run(DType::F32).is_near(&self.candle(&forward), 1e-5);
        let mut rounded = self.clone();
        for (_, values) in &mut rounded.inputs {
            *values = crate::bench::rounded(values, DType::Bf16);
        }
        let wanted = rounded.candle(&forward);
        self.run(DType::Bf16).is_near(&wanted, 1e-2);
    }

    /// Gradients within `tolerance` of central differences with step `by`, at up to 40 elements of each input.
    pub fn agrees_with_differences(&self, by: f32, tolerance: f64) {
        let ran = self.run(DType::F32);
        let seed = self.seed(ran.outputs[0].len());
        let loss = |case: &Case| -> f64 {
            let y = &case.run(DType::F32).outputs[0];
            y.iter()
                .zip(&seed)
                .map(|(y, s)| f64::from(*y) * f64::from(*s))
                .sum()
        };
        for (input, gradient) in ran.gradients.iter().enumerate() {
            let (mut got, mut wanted) = (Vec::new(), Vec::new());
            for at in (0..gradient.len()).step_by(gradient.len().div_ceil(40)) {
                let (mut above, mut below) = (self.clone(), self.clone());
                above.inputs[input].1[at] += by;
                below.inputs[input].1[at] -= by;
                let width = above.inputs[input].1[at] - below.inputs[input].1[at];
                wanted.push(((loss(&above) - loss(&below)) / f64::from(width)) as f32);
                got.push(gradient[at]);
            }
            let error = distance(&got, &wanted);
            assert!(error < tolerance, "input {input} differs by {error:e}");
        }
    }

    /// The same bits with 1, 2 and 3 threads.
    pub fn is_the_same_on_any_threads(&self, dtype: DType) {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| self.run(dtype))
        };
        let one = on(1);
        assert!(one.outputs.iter().flatten().all(|x| x.is_finite()));
        assert!(one == on(2) && one == on(3), "threads change the result");
    }
}

impl Ran {
    /// Output 0 and all gradients are within `tolerance`, relative to the norm of what is wanted.
    pub fn is_near(&self, wanted: &Ran, tolerance: f64) {
        let error = distance(&self.outputs[0], &wanted.outputs[0]);
        assert!(error < tolerance, "output differs by {error:e}");
        for (i, (got, wanted)) in self.gradients.iter().zip(&wanted.gradients).enumerate() {
            let error = distance(got, wanted);
            assert!(error < tolerance, "gradient {i} differs by {error:e}");
        }
    }
}
