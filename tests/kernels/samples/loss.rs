//! Calls of the embedding and of the loss.

use memfit::graph::op::cross_entropy::{CrossEntropy, CrossEntropyTangent};
use memfit::graph::op::embedding::{
    Embedding, EmbeddingBackward, PositionEmbedding, PositionEmbeddingBackward,
};
use memfit::graph::op::linear_cross_entropy::LinearCrossEntropy;
use memfit::graph::tensor::DType;

use super::{FLOATS, Fill, Near, Sample};

pub fn embeddings(all: &mut Vec<Sample>, dtype: DType) {
    let u32 = DType::U32;
    for (tokens, vocab, columns) in [(1, 3, 5), (40, 7, 24), (300, 1000, 33), (600, 2, 2056)] {
        let ids = Fill::Below(vocab);
        let op = Embedding { scale: 1.5 };
        let sample = Sample::new(op, Near::Exact).normal(&[vocab, columns], dtype);
        all.push(sample.with(&[tokens], u32, ids.clone()));
        for (format, accumulate) in [(dtype, false), (DType::F32, true)] {
            let op = EmbeddingBackward {
                vocab,
                scale: 1.5,
                format,
                accumulate,
            };
            let sample = Sample::new(op, Near::Exact).normal(&[tokens, columns], dtype);
            let sample = sample.with(&[tokens], u32, ids.clone());
            all.push(match accumulate {
                true => sample.normal(&[vocab, columns], format),
                false => sample,
            });
        }
    }
    for (seq, offset) in [(6, 2), (1, 3)] {
        let op = PositionEmbedding { seq, offset };
        let sample = Sample::new(op, Near::Exact).normal(&[12, 21], dtype);
        all.push(sample.normal(&[9, 21], dtype));
        for (format, accumulate) in [(dtype, true), (DType::F32, false)] {
            let op = PositionEmbeddingBackward {
                seq,
                offset,
                positions: 9,
                format,
                accumulate,
            };
            let sample = Sample::new(op, Near::Exact).normal(&[12, 21], dtype);
            all.push(match accumulate {
                true => sample.normal(&[9, 21], format),
                false => sample,
            });
        }
    }
}

/// Targets below `vocab`, of which every fifth is ignored.
fn targets(count: u64, vocab: u64) -> Fill {
    let one = |i: u64| {
        if i % 5 == 4 {
            u32::MAX
        } else {
            (i * 7 % vocab) as u32
        }
    };
    Fill::Bytes((0..count).flat_map(|i| one(i).to_ne_bytes()).collect())
}

/// One over the tokens that count, and a loss scale.
fn scale() -> Fill {
    Fill::Bytes(
        [0.125f32, 64.0]
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect(),
    )
}

pub fn losses(all: &mut Vec<Sample>, dtype: DType) {
    let (u32, f32) = (DType::U32, DType::F32);
    for (rows, vocab) in [(1, 3), (7, 300), (4, 5003)] {
        for (softcap, gradient) in [(None, true), (None, false), (Some(2.0), true)] {
            let op = CrossEntropy { softcap, gradient };
            let sample = Sample::new(op, Near::Sums);
            let sample = sample.with(&[rows, vocab], dtype, Fill::Normal(3.0));
            let sample = sample.with(&[rows], u32, targets(rows, vocab));
            all.push(sample.with(&[2], f32, scale()));
        }
        let sample = Sample::new(CrossEntropyTangent, Near::Within(1e-4));
        let sample = sample.normal(&[rows, vocab], dtype);
        all.push(
            sample
                .normal(&[rows, vocab], dtype)
                .with(&[2], f32, scale()),
        );
    }
    for (rows, gradient, frozen, format) in [
        (4, true, false, dtype),
        (4, true, false, f32),
        (64, true, false, FLOATS[1]),
        (5, true, true, dtype),
        (5, false, false, dtype),
    ] {
        let op = LinearCrossEntropy {
            rows,
            softcap: gradient.then_some(3.0),
            gradient,
            format,
            frozen,
        };
        let sample = Sample::new(op, Near::Sums).normal(&[13, 20], dtype);
        let sample = sample.with(&[37, 20], dtype, Fill::Normal(0.3));
        let sample = sample.with(&[13], u32, targets(13, 37));
        all.push(sample.with(&[2], f32, scale()));
    }
}
