//! What tests of ops share: steps of a few nodes, run on several numbers of threads, and comparisons with an oracle.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use memfit::error::Result;
use memfit::graph::backward::{Gradients, differentiate};
use memfit::graph::op::Op;
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, Role, TensorId, Type};
use memfit::graph::{Phase, Spot, Step};
use memfit::spec::job::Place;

use crate::reference::Evaluator;

/// A step under construction, whose inputs are named by number.
pub struct Bench {
    pub step: Step,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            step: Step::default(),
        }
    }

    pub fn input(&mut self, shape: &[u64], dtype: DType) -> TensorId {
        let name = format!("input{}", self.step.storages.len());
        let at = Type::new(shape, dtype);
        self.step.persistent(&name, at, Place::Gpu, Role::Input)
    }

    pub fn emit(&mut self, op: impl Op + 'static, inputs: &[TensorId]) -> Vec<TensorId> {
        self.try_emit(op, inputs).unwrap()
    }

    pub fn try_emit(
        &mut self,
        op: impl Op + 'static,
        inputs: &[TensorId],
    ) -> Result<Vec<TensorId>> {
        let spot = Spot::compute(Phase::Forward, "block", op.name());
        self.step.emit(Arc::new(op), inputs, spot, Role::Activation)
    }

    /// The derivative with regard to `wanted`, from seeds of (value, gradient).
    pub fn differentiate(
        &mut self,
        wanted: &[TensorId],
        format: Option<DType>,
        seeds: &[(TensorId, TensorId)],
    ) -> Vec<TensorId> {
        let mut gradients = Gradients::new(&self.step, wanted, format);
        for &(value, gradient) in seeds {
            gradients.seed(value, gradient);
        }
        let gradients = differentiate(&mut self.step, gradients).unwrap();
        wanted.iter().map(|&w| gradients.of(w).unwrap()).collect()
    }

    /// Runs everything on `threads` threads after `fill`, and returns the raw bytes of `wanted`.
    pub fn run(
        &self,
        threads: usize,
        wanted: &[TensorId],
        fill: impl Fn(&mut Evaluator) + Send + Sync,
    ) -> Vec<Vec<u8>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let mut evaluator = Evaluator::new(self.step.clone());
            fill(&mut evaluator);
            evaluator.run(0..self.step.nodes.len()).unwrap();
            wanted.iter().map(|&w| evaluator.get(w)).collect()
        })
    }

    /// As [`Bench::run`], on 1, 2 and 3 threads, which must agree to the bit.
    pub fn run_alike(
        &self,
        wanted: &[TensorId],
        fill: impl Fn(&mut Evaluator) + Send + Sync,
    ) -> Vec<Vec<u8>> {
        let one = self.run(1, wanted, &fill);
        assert!(one == self.run(2, wanted, &fill), "two threads differ");
        assert!(one == self.run(3, wanted, &fill), "three threads differ");
        one
    }
}

/// Deterministic values about normal with deviation `scale`.
pub fn values(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    (0..len as u64)
        .map(|i| scale * Key(seed).normal(i))
        .collect()
}

/// Deterministic integers below `below`.
pub fn integers(seed: u64, len: usize, below: u64) -> Vec<u32> {
    (0..len as u64)
        .map(|i| (Key(seed).bits(i) % below) as u32)
        .collect()
}

/// `values` as bytes of a format.
pub fn bytes_of(values: &[f32], dtype: DType) -> Vec<u8> {
    let round = |v: &f32| match dtype {
        DType::F32 => v.to_ne_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f32(*v).to_ne_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(*v).to_ne_bytes().to_vec(),
        DType::U32 | DType::U16 | DType::U8 => unreachable!(),
    };
    values.iter().flat_map(round).collect()
}

/// Bytes of a format, widened.
pub fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pair = |b: &[u8]| [b[0], b[1]];
    match dtype {
        DType::F32 => bytes
            .chunks(4)
            .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        DType::Bf16 => (bytes.chunks(2))
            .map(|b| half::bf16::from_ne_bytes(pair(b)).to_f32())
            .collect(),
        DType::F16 => (bytes.chunks(2))
            .map(|b| half::f16::from_ne_bytes(pair(b)).to_f32())
            .collect(),
        DType::U32 | DType::U16 | DType::U8 => unreachable!(),
    }
}

/// Values as they are after rounding to a format.
pub fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    floats(&bytes_of(values, dtype), dtype)
}

/// ‖a - b‖ / ‖b‖.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-30)
}

pub fn assert_near(what: &str, a: &[f32], b: &[f32], limit: f64) {
    let distance = distance(a, b);
    assert!(distance <= limit, "{what} is off by {distance:e}");
}

/// How near results in a format must be to the oracle.
pub fn limit(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1e-2 }
}

pub fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
}

pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
