//! Calls of what holds values in fewer bits: compressed values, quantized weights, moments of a byte.

use memfit::graph::op::compress::{Compress, Decompress, Grid};
use memfit::graph::op::moe::{
    Combine, CombineBackward, Gather, GatherBackward, GroupedLinear, GroupedLinearInputGradient,
    GroupedLinearWeightGradient, Route, RouteBackward, RouteTangent,
};
use memfit::graph::op::optimizer::AdamW8Bit;
use memfit::graph::op::quantized::{
    Format, QuantizedGroupedLinear, QuantizedGroupedLinearInputGradient, QuantizedLinear,
    QuantizedLinearInputGradient,
};
use memfit::graph::tensor::{DType, Type};

use super::{FLOATS, Fill, Near, Sample};

const FORMATS: [Format; 4] = [
    Format::Nf4 { double: false },
    Format::Nf4 { double: true },
    Format::Int8 { block: None },
    Format::Int8 { block: Some(48) },
];

pub fn compressed(all: &mut Vec<Sample>, dtype: DType) {
    for (bits, block, stochastic) in [
        (8, 64, false),
        (4, 64, true),
        (4, 2048, false),
        (8, 4096, true),
    ] {
        for elements in [1u64, 3001, 9000] {
            let grid = Grid {
                bits,
                block,
                stochastic,
            };
            let sample = Sample::new(Compress { grid }, Near::Exact);
            all.push(sample.normal(&[elements], dtype));
            let at = Type::new(&[elements], dtype);
            // Bounds of some size, then any codes.
            let held = grid.held(elements);
            let blocks = elements.div_ceil(block);
            let bounds = (0..2 * blocks).flat_map(|i| (i as f32 * 0.01 - 1.0).to_ne_bytes());
            let codes = (0..held.elements() - 8 * blocks).map(|i| (i * 37 % 251) as u8);
            let bytes = Fill::Bytes(bounds.chain(codes).collect());
            let sample = Sample::new(Decompress { grid, at }, Near::Exact);
            all.push(sample.with(&held.shape, DType::U8, bytes));
        }
    }
}

impl Sample {
    /// With the parts of a quantized weight.
    fn held(mut self, format: Format, shape: &[u64]) -> Sample {
        for (_, at) in format.parts(shape) {
            let fill = match at.dtype {
                DType::U8 => Fill::Below(256),
                _ => Fill::Positive(0.1),
            };
            self = self.with(&at.shape, at.dtype, fill);
        }
        self
    }
}

pub fn quantized(all: &mut Vec<Sample>, dtype: DType) {
    for format in FORMATS {
        for (n, i, o) in [(3, 64, 5), (17, 33, 70), (2, 20, 1100)] {
            for bias in [false, true] {
                let op = QuantizedLinear {
                    format,
                    outputs: o,
                    bias,
                };
                let sample = Sample::new(op, Near::Sums).normal(&[n, i], dtype);
                let sample = sample.held(format, &[o, i]);
                all.push(if bias {
                    sample.normal(&[o], dtype)
                } else {
                    sample
                });
            }
            let op = QuantizedLinearInputGradient { format, inputs: i };
            let sample = Sample::new(op, Near::Sums).normal(&[n, o], dtype);
            all.push(sample.held(format, &[o, i]));
        }
        let offsets = offsets(&[0, 4, 4, 11]);
        let op = QuantizedGroupedLinear { format, outputs: 6 };
        let sample = Sample::new(op, Near::Sums).normal(&[11, 20], dtype);
        let sample = sample.with(&[4], DType::U32, offsets.clone());
        all.push(sample.held(format, &[3, 6, 20]));
        let op = QuantizedGroupedLinearInputGradient { format, inputs: 20 };
        let sample = Sample::new(op, Near::Sums).normal(&[11, 6], dtype);
        let sample = sample.with(&[4], DType::U32, offsets);
        all.push(sample.held(format, &[3, 6, 20]));
    }
}

fn offsets(bounds: &[u32]) -> Fill {
    Fill::Bytes(bounds.iter().flat_map(|x| x.to_ne_bytes()).collect())
}

/// A permutation of `count` slots.
fn order(count: u32) -> Fill {
    Fill::Bytes(
        (0..count)
            .flat_map(|i| (i * 7 % count).to_ne_bytes())
            .collect(),
    )
}

pub fn experts(all: &mut Vec<Sample>, dtype: DType) {
    let (u32, f32) = (DType::U32, DType::F32);
    for (tokens, experts, top_k) in [(1, 2, 1), (300, 8, 2), (70, 5, 5)] {
        let sample = Sample::new(Route { experts, top_k }, Near::Sums);
        all.push(sample.normal(&[tokens, experts], dtype));
        let slots = [tokens, top_k];
        let format = dtype;
        let sample = Sample::new(RouteBackward { experts, format }, Near::Sums);
        let sample = sample
            .normal(&slots, f32)
            .with(&slots, f32, Fill::Positive(0.3));
        // Experts of a token differ.
        let chosen = (0..tokens).flat_map(|n| (0..top_k).map(move |k| ((n + k) % experts) as u32));
        let chosen: Vec<u8> = chosen.flat_map(u32::to_ne_bytes).collect();
        all.push(sample.with(&slots, u32, Fill::Bytes(chosen.clone())));
        let sample = Sample::new(RouteTangent, Near::Sums).normal(&[tokens, experts], dtype);
        let sample = sample.with(&slots, f32, Fill::Positive(0.3));
        all.push(sample.with(&slots, u32, Fill::Bytes(chosen)));
    }
    let (tokens, k, columns) = (10, 3, 37);
    let (x, rows, slots) = ([tokens, columns], [tokens * k, columns], [tokens * k]);
    let order = || order((tokens * k) as u32);
    let sample = Sample::new(Gather, Near::Exact).normal(&x, dtype);
    all.push(sample.with(&slots, u32, order()));
    let sample = Sample::new(GatherBackward { top_k: k }, Near::Exact).normal(&rows, dtype);
    all.push(sample.with(&slots, u32, order()));
    let sample = Sample::new(Combine, Near::Exact).normal(&rows, dtype);
    all.push(sample.normal(&[tokens, k], f32).with(&slots, u32, order()));
    let sample = Sample::new(CombineBackward, Near::Sums).normal(&x, dtype);
    let sample = sample.normal(&rows, dtype).normal(&[tokens, k], f32);
    all.push(sample.with(&slots, u32, order()));
    let (rows, o, i) = (140, 33, 20);
    let bounds = offsets(&[0, 70, 70, 75, 140]);
    let weight = [4, o, i];
    let sample = Sample::new(GroupedLinear, Near::Sums).normal(&[rows, i], dtype);
    all.push(
        sample
            .normal(&weight, dtype)
            .with(&[5], u32, bounds.clone()),
    );
    let sample = Sample::new(GroupedLinearInputGradient, Near::Sums).normal(&[rows, o], dtype);
    all.push(
        sample
            .normal(&weight, dtype)
            .with(&[5], u32, bounds.clone()),
    );
    for (format, accumulate) in [(dtype, false), (f32, true)] {
        let op = GroupedLinearWeightGradient { format, accumulate };
        let sample = Sample::new(op, Near::Sums).normal(&[rows, o], dtype);
        let sample = sample
            .normal(&[rows, i], dtype)
            .with(&[5], u32, bounds.clone());
        all.push(match accumulate {
            true => sample.normal(&weight, format),
            false => sample,
        });
    }
}

pub fn moments(all: &mut Vec<Sample>) {
    for dtype in FLOATS {
        for (len, master) in [(1003, false), (513, true)] {
            let op = AdamW8Bit {
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                decay: 0.1,
                master,
                guard: false,
            };
            let shape = [len];
            let mut sample = Sample::new(op, Near::Exact).normal(&shape, dtype);
            sample = sample.normal(&shape, dtype);
            if master {
                sample = sample.normal(&shape, DType::F32);
            }
            for (_, at) in AdamW8Bit::states(&Type::new(&shape, dtype)) {
                let fill = match at.dtype {
                    DType::U8 => Fill::Below(256),
                    _ => Fill::Positive(0.1),
                };
                sample = sample.with(&at.shape, at.dtype, fill);
            }
            all.push(sample);
        }
    }
}
