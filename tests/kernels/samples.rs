//! Calls of every op that has a kernel: types and values of its inputs, and how near the GPU's result must be to the CPU's.

mod attention;
mod direction;
mod held;
mod loss;
mod update;

use std::sync::Arc;

use memfit::graph::op::activation::{Act, ActBackward, Gated, GatedBackward, GatedTangent};
use memfit::graph::op::dropout::Dropout;
use memfit::graph::op::elementwise::{Add, Scale, Sum, Zero};
use memfit::graph::op::linear_add::LinearAdd;
use memfit::graph::op::matmul::{BiasGradient, Linear, LinearInputGradient, LinearWeightGradient};
use memfit::graph::op::norm::{LayerNorm, LayerNormBackward, RmsNorm, RmsNormBackward};
use memfit::graph::op::sparse::ProjectedLinear;
use memfit::graph::op::transfer::{Feed, Move, Report, Settle};
use memfit::graph::op::{Op, Scalars};
use memfit::graph::tensor::{DType, Type};
use memfit::spec::model::Activation;

/// Floating-point formats of tensors.
pub const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Values of an input.
#[derive(Debug, Clone)]
pub enum Fill {
    /// Normal, with this deviation.
    Normal(f32),
    /// Squares of normal numbers, with this deviation.
    Positive(f32),
    /// Integers below this.
    Below(u64),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// How near results must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Near {
    /// The same bits.
    Exact,
    /// Some units in the last place of their format, relative to the element or the typical element: sums in another order.
    Sums,
    /// The same relative to this, where errors grow.
    Within(f32),
}

/// One call of an op.
#[derive(Clone)]
pub struct Sample {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<(Type, Fill)>,
    pub near: Near,
    pub scalars: Scalars,
}

impl Sample {
    fn new(op: impl Op + 'static, near: Near) -> Sample {
        let scalars = Scalars {
            step: 3,
            micro: 0,
            rate: 1e-2,
        };
        Sample {
            op: Arc::new(op),
            inputs: Vec::new(),
            near,
            scalars,
        }
    }

    fn with(mut self, shape: &[u64], dtype: DType, fill: Fill) -> Sample {
        self.inputs.push((Type::new(shape, dtype), fill));
        self
    }

    fn normal(self, shape: &[u64], dtype: DType) -> Sample {
        self.with(shape, dtype, Fill::Normal(1.0))
    }
}

/// All samples.
pub fn samples() -> Vec<Sample> {
    let mut all = Vec::new();
    transfers(&mut all);
    for dtype in FLOATS {
        elementwise(&mut all, dtype);
        norms(&mut all, dtype);
        products(&mut all, dtype);
        activations(&mut all, dtype);
        attention::attention(&mut all, dtype);
        attention::rope(&mut all, dtype);
        loss::embeddings(&mut all, dtype);
        loss::losses(&mut all, dtype);
        held::compressed(&mut all, dtype);
        held::quantized(&mut all, dtype);
        held::experts(&mut all, dtype);
        direction::directions(&mut all, dtype);
        direction::steps(&mut all, dtype);
        direction::rows(&mut all, dtype);
        direction::low_rank(&mut all, dtype);
        direction::masked(&mut all, dtype);
        direction::sparse_matrices(&mut all, dtype);
        direction::renewals(&mut all, dtype);
        direction::refreshes(&mut all, dtype);
        update::adafactor(&mut all, dtype);
        update::microadam(&mut all, dtype);
        direction::attention(&mut all, dtype);
        direction::tangents(&mut all, dtype);
    }
    update::updates(&mut all);
    update::guards(&mut all);
    held::moments(&mut all);
    all
}

fn transfers(all: &mut Vec<Sample>) {
    let name = "x".to_string();
    let at = Type::new(&[3], DType::F32);
    let feed = Feed {
        name: name.clone(),
        offset: 0,
        at,
    };
    all.push(Sample::new(feed, Near::Exact));
    let report = Report { name, offset: 0 };
    all.push(Sample::new(report, Near::Exact).normal(&[3], DType::F32));
    all.push(Sample::new(Move { into: false }, Near::Exact).normal(&[3], DType::F32));
    all.push(Sample::new(Settle, Near::Exact).normal(&[3], DType::F32));
}

fn elementwise(all: &mut Vec<Sample>, dtype: DType) {
    for shape in [&[1][..], &[7, 9], &[2, 2048], &[3, 5, 411]] {
        let pair = |op: Sample| op.normal(shape, dtype).normal(shape, dtype);
        all.push(pair(Sample::new(Add, Near::Exact)));
        all.push(pair(Sample::new(Sum, Near::Exact)));
        let at = Type::new(shape, dtype);
        all.push(Sample::new(Zero { at }, Near::Exact));
        for (in_place, format) in [(true, None), (false, None), (false, Some(DType::F32))] {
            let op = Scale {
                by: 0.37,
                in_place,
                format,
            };
            all.push(Sample::new(op, Near::Exact).normal(shape, dtype));
        }
    }
}

fn norms(all: &mut Vec<Sample>, dtype: DType) {
    let f32 = DType::F32;
    for (rows, columns) in [(1, 5), (9, 33), (67, 64), (5, 1032), (3, 1283), (40, 4096)] {
        let (x, w) = ([rows, columns], [columns]);
        let op = LayerNorm { eps: 1e-5 };
        let sample = Sample::new(op, Near::Sums).normal(&x, dtype);
        all.push(sample.normal(&w, dtype).normal(&w, dtype));
        for grad in [dtype, f32] {
            let sample = Sample::new(LayerNormBackward { grad }, Near::Sums);
            let sample = sample.normal(&x, dtype).normal(&x, dtype);
            let stats = Fill::Positive(1.0);
            all.push(sample.normal(&w, dtype).with(&[rows, 2], f32, stats));
        }
    }
    for (rows, columns, width) in [
        (1, 5, 5),
        (9, 33, 33),
        (67, 64, 16),
        (3, 1283, 1283),
        (40, 4096, 4096),
    ] {
        let (x, w, stats) = ([rows, columns], [width], [rows, columns / width]);
        for unit_offset in [false, true] {
            let op = RmsNorm {
                eps: 1e-6,
                unit_offset,
                width,
            };
            let sample = Sample::new(op, Near::Sums).normal(&x, dtype);
            all.push(sample.normal(&w, dtype));
            let grad = if unit_offset { dtype } else { f32 };
            let op = RmsNormBackward {
                unit_offset,
                width,
                grad,
            };
            let sample = Sample::new(op, Near::Sums).normal(&x, dtype);
            let sample = sample.normal(&x, dtype).normal(&w, dtype);
            all.push(sample.with(&stats, f32, Fill::Positive(1.0)));
        }
    }
}

fn products(all: &mut Vec<Sample>, dtype: DType) {
    for (n, i, o) in [
        (1, 1, 1),
        (5, 7, 3),
        (70, 33, 130),
        (64, 64, 64),
        (129, 40, 65),
    ] {
        let (x, w, y) = ([n, i], [o, i], [n, o]);
        for bias in [false, true] {
            let mut sample = Sample::new(Linear { bias }, Near::Sums).normal(&x, dtype);
            sample = sample.normal(&w, dtype);
            if bias {
                sample = sample.normal(&[o], dtype);
            }
            all.push(sample);
        }
        for bias in [false, true] {
            let op = ProjectedLinear { width: 4, bias };
            let sample = Sample::new(op, Near::Sums).normal(&x, dtype);
            let sample = sample.normal(&w, dtype).normal(&[n, 4], dtype);
            let sample = sample.normal(&[o, 2], dtype);
            let sample = sample.with(&[o, 2], DType::U16, Fill::Below(4));
            all.push(match bias {
                true => sample.normal(&[o], dtype),
                false => sample,
            });
        }
        let sample = Sample::new(LinearInputGradient, Near::Sums);
        all.push(sample.normal(&y, dtype).normal(&w, dtype));
        let sample = Sample::new(LinearAdd, Near::Sums);
        all.push(sample.normal(&x, dtype).normal(&w, dtype).normal(&y, dtype));
        for (format, accumulate) in [(dtype, false), (dtype, true), (DType::F32, true)] {
            let op = LinearWeightGradient { format, accumulate };
            let mut sample = Sample::new(op, Near::Sums);
            sample = sample.normal(&y, dtype).normal(&x, dtype);
            if accumulate {
                sample = sample.normal(&w, format);
            }
            all.push(sample);
        }
        for format in [dtype, DType::F32] {
            let sample = Sample::new(BiasGradient { format }, Near::Sums);
            all.push(sample.normal(&[n * 5, o], dtype));
        }
    }
}

fn activations(all: &mut Vec<Sample>, dtype: DType) {
    let kinds = [
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
    ];
    for kind in kinds {
        let wide = |mut sample: Sample, count: usize| {
            for _ in 0..count {
                sample = sample.with(&[3, 701], dtype, Fill::Normal(3.0));
            }
            sample
        };
        all.push(wide(Sample::new(Act { kind }, Near::Exact), 1));
        all.push(wide(Sample::new(Gated { kind }, Near::Exact), 2));
        for in_place in [false, true] {
            let op = ActBackward { kind, in_place };
            all.push(wide(Sample::new(op, Near::Exact), 2));
            let op = GatedBackward { kind, in_place };
            all.push(wide(Sample::new(op, Near::Exact), 3));
            let op = GatedTangent { kind, in_place };
            all.push(wide(Sample::new(op, Near::Exact), 4));
        }
    }
    for in_place in [false, true] {
        let rate = 0.3;
        let mut sample = Sample::new(Dropout { rate, in_place }, Near::Exact);
        sample.scalars.micro = 3;
        all.push(sample.normal(&[3, 701], dtype));
    }
}
