//! Calls of attention and of what stands before it.

use memfit::graph::op::attention::{Attention, AttentionBackward, AttentionShape};
use memfit::graph::op::flash::{FlashAttention, FlashAttentionBackward};
use memfit::graph::op::rope::Rope;
use memfit::graph::random::Key;
use memfit::graph::tensor::DType;
use memfit::spec::model::{Rotary, RotaryScaling};

use super::{Fill, Near, Sample};
use crate::bench::bytes_of;

/// Shapes with and without what they may have: other heads for keys, a past, a window, a cap, dropout, wide heads.
pub fn shapes() -> Vec<AttentionShape> {
    let plain = AttentionShape {
        batch: 2,
        seq: 37,
        past: 0,
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        causal: true,
        window: None,
        scale: 0.25,
        softcap: None,
        dropout: 0.0,
    };
    let one = |change: &dyn Fn(&mut AttentionShape)| {
        let mut shape = plain.clone();
        change(&mut shape);
        shape
    };
    vec![
        plain.clone(),
        one(&|s| (s.seq, s.batch, s.causal) = (1, 1, false)),
        one(&|s| (s.heads, s.kv_heads, s.head_dim) = (4, 2, 10)),
        one(&|s| (s.past, s.seq, s.dropout) = (5, 33, 0.3)),
        one(&|s| (s.window, s.seq, s.batch) = (Some(7), 70, 1)),
        one(&|s| (s.causal, s.window, s.softcap) = (false, Some(40), Some(1.5))),
        one(&|s| (s.head_dim, s.seq, s.batch, s.heads, s.kv_heads) = (136, 20, 1, 2, 1)),
    ]
}

/// Heads as models have them, one shape each, in the formats of tensor cores: lengths that end within tiles and go on over several.
fn heads() -> Vec<AttentionShape> {
    let shape = |head_dim, seq, past, heads, kv_heads| AttentionShape {
        batch: 1,
        seq,
        past,
        heads,
        kv_heads,
        head_dim,
        causal: true,
        window: None,
        scale: 1.0 / (head_dim as f64).sqrt(),
        softcap: None,
        dropout: 0.0,
    };
    let mut all = vec![
        shape(64, 150, 0, 2, 1),
        shape(80, 65, 3, 1, 1),
        shape(96, 129, 0, 1, 1),
        shape(128, 140, 0, 1, 1),
        shape(256, 70, 0, 1, 1),
    ];
    (all[0].window, all[0].softcap) = (Some(40), Some(2.0));
    (all[3].causal, all[3].dropout) = (false, 0.2);
    all
}

/// How near gradients must be. Tensor cores take probabilities and gradients of scores rounded to the format, which adds as much again as
/// rounding results does, and more where terms cancel.
fn near_gradients(dtype: DType) -> Near {
    match dtype {
        DType::F32 => Near::Within(1e-5),
        DType::Bf16 => Near::Within(1.0 / 64.0),
        _ => Near::Within(1.0 / 512.0),
    }
}

/// Numbers between 0 and 1 where a query sees a key (B heads T, P + T).
fn probabilities(shape: &AttentionShape) -> Vec<f32> {
    let rows = (shape.batch * shape.heads * shape.seq) as usize;
    let one = |row: usize, column: usize| {
        let seen = shape.visible(row % shape.seq as usize).contains(&column);
        if seen {
            Key(9).uniform((row * 1000 + column) as u64)
        } else {
            0.0
        }
    };
    let row = |row| (0..shape.keys() as usize).map(move |column| one(row, column));
    (0..rows).flat_map(row).collect()
}

pub fn attention(all: &mut Vec<Sample>, dtype: DType) {
    let mut all_shapes = shapes();
    // Each head in one of the two formats, and both in every shape above.
    let own = heads().into_iter().enumerate();
    let own = own.filter(|(i, _)| [DType::Bf16, DType::F16][i % 2] == dtype);
    all_shapes.extend(own.map(|(_, shape)| shape));
    for shape in all_shapes {
        let s = &shape;
        let q = [s.batch * s.seq, s.heads * s.head_dim];
        let k = [s.batch * s.keys(), s.kv_heads * s.head_dim];
        let rows = s.batch * s.heads * s.seq;
        let qkv = |sample: Sample| sample.normal(&q, dtype).normal(&k, dtype).normal(&k, dtype);
        let near = Near::Within(1e-5);
        let op = Attention {
            shape: shape.clone(),
        };
        all.push(qkv(Sample::new(op, near)));
        let op = FlashAttention {
            shape: shape.clone(),
        };
        all.push(qkv(Sample::new(op, near)));
        // Any probabilities and logs of about the right size will do; of what is not seen they are zero.
        let op = AttentionBackward {
            shape: shape.clone(),
        };
        let probs = Fill::Bytes(bytes_of(&probabilities(s), dtype));
        let near = near_gradients(dtype);
        let sample = qkv(Sample::new(op, near).normal(&q, dtype));
        all.push(sample.with(&[rows, s.keys()], dtype, probs));
        let op = FlashAttentionBackward {
            shape: shape.clone(),
        };
        let sample = qkv(Sample::new(op, near).normal(&q, dtype)).normal(&q, dtype);
        let lse = [s.batch * s.heads, s.seq];
        all.push(sample.with(&lse, DType::F32, Fill::Positive(3.0)));
    }
}

pub fn rope(all: &mut Vec<Sample>, dtype: DType) {
    let llama3 = RotaryScaling::Llama3 {
        factor: 8.0,
        low: 1.0,
        high: 4.0,
        original: 16.0,
    };
    for (dims, head_dim, scaling, in_place) in [
        (16, 16, RotaryScaling::None, true),
        (16, 16, llama3, false),
        (10, 24, RotaryScaling::Linear { factor: 2.0 }, false),
        (10, 13, RotaryScaling::None, true),
    ] {
        for inverse in [false, true] {
            let op = Rope {
                batch: 2,
                seq: 19,
                first: if inverse { 0 } else { 70_000 },
                heads: 3,
                head_dim,
                rotary: Rotary {
                    theta: 10_000.0,
                    dims,
                    scaling: scaling.clone(),
                },
                inverse,
                in_place,
            };
            let sample = Sample::new(op, Near::Sums);
            all.push(sample.normal(&[38, 3 * head_dim], dtype));
        }
    }
}
