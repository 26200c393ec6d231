//! Both forms of attention against candle, differences, each other and themselves.

use candle_core::{D, Device, Tensor};
use memfit::graph::op::Op;
use memfit::graph::op::attention::{Attention, AttentionShape};
use memfit::graph::op::flash::FlashAttention;
use memfit::graph::tensor::{DType, Type};
use memfit::spec::job::Backend;

use crate::derivatives::{Case, case};

/// Causal attention of 2 sequences, 2 heads of 8 columns, scaled as usual.
fn plain(seq: u64) -> AttentionShape {
    AttentionShape {
        batch: 2,
        seq,
        past: 0,
        heads: 2,
        kv_heads: 2,
        head_dim: 8,
        causal: true,
        window: None,
        scale: 8f64.powf(-0.5),
        softcap: None,
        dropout: 0.0,
    }
}

/// Each feature alone, and all together.
pub fn shapes(seq: u64) -> Vec<AttentionShape> {
    let all = AttentionShape {
        heads: 6,
        window: Some(9),
        softcap: Some(2.0),
        ..plain(seq)
    };
    vec![
        plain(seq),
        AttentionShape {
            causal: false,
            ..plain(seq)
        },
        AttentionShape {
            heads: 6,
            ..plain(seq)
        },
        AttentionShape {
            window: Some(5),
            ..plain(seq)
        },
        AttentionShape {
            window: Some(40),
            causal: false,
            ..plain(seq)
        },
        AttentionShape {
            softcap: Some(1.5),
            ..plain(seq)
        },
        all,
    ]
}

fn filled(op: impl Op + 'static, shape: &AttentionShape) -> Case {
    let rows = shape.batch * shape.seq;
    let (q, kv) = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    );
    case(op, &[&[rows, q], &[rows, kv], &[rows, kv]])
}

fn kept(shape: &AttentionShape) -> Case {
    filled(
        Attention {
            shape: shape.clone(),
        },
        shape,
    )
}

fn flash(shape: &AttentionShape) -> Case {
    filled(
        FlashAttention {
            shape: shape.clone(),
        },
        shape,
    )
}

/// 0 where query i sees key j, else -1e30.
fn mask(shape: &AttentionShape) -> candle_core::Result<Tensor> {
    let t = shape.seq as usize;
    let sees = |i: usize, j: usize| {
        let near = shape.window.is_none_or(|w| i.abs_diff(j) < w as usize);
        near && (j <= i || !shape.causal)
    };
    let values = (0..t * t).map(|at| if sees(at / t, at % t) { 0f32 } else { -1e30 });
    Tensor::from_iter(values, &Device::Cpu)?.reshape((1, 1, t, t))
}

fn by_candle(shape: &AttentionShape, inputs: &[Tensor]) -> candle_core::Result<Tensor> {
    let [b, t, d] = [shape.batch, shape.seq, shape.head_dim].map(|n| n as usize);
    let (heads, kv) = (shape.heads as usize, shape.kv_heads as usize);
    let split = |x: &Tensor, count: usize| x.reshape((b, t, count, d))?.transpose(1, 2);
    let repeated = |x: &Tensor| {
        let x = split(x, kv)?.unsqueeze(2)?;
        let x = x.broadcast_as((b, kv, heads / kv, t, d))?;
        x.reshape((b, heads, t, d))?.contiguous()
    };
    let (q, k, v) = (
        split(&inputs[0], heads)?,
        repeated(&inputs[1])?,
        repeated(&inputs[2])?,
    );
    let mut scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * shape.scale)?;
    if let Some(cap) = shape.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let scores = scores.broadcast_add(&mask(shape)?)?;
    let scores = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let probs = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    probs
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((b * t, heads * d))
}

#[test]
fn attention_that_keeps_probabilities_agrees_with_candle() {
    for shape in [1, 7, 33, 130].into_iter().flat_map(shapes) {
        kept(&shape).agrees_with_candle(|inputs| by_candle(&shape, inputs));
    }
}

#[test]
fn flash_attention_agrees_with_candle() {
    for shape in [1, 7, 33, 130, 300].into_iter().flat_map(shapes) {
        flash(&shape).agrees_with_candle(|inputs| by_candle(&shape, inputs));
    }
}

#[test]
fn both_attentions_drop_the_same_probabilities() {
    for shape in shapes(150) {
        let shape = AttentionShape {
            dropout: 0.3,
            ..shape
        };
        flash(&shape)
            .run(DType::F32)
            .is_near(&kept(&shape).run(DType::F32), 1e-5);
    }
}

#[test]
fn dropout_drops_at_its_rate_and_keeps_the_mean() {
    let without = AttentionShape {
        causal: false,
        ..plain(130)
    };
    let with = AttentionShape {
        dropout: 0.25,
        ..without.clone()
    };
    let ones = |shape: &AttentionShape| {
        let mut case = kept(shape);
        case.inputs[2].1.fill(1.0);
        let out = case.run(DType::F32).outputs.swap_remove(0);
        out.iter().sum::<f32>() / out.len() as f32
    };
    assert!((ones(&without) - 1.0).abs() < 1e-5);
    assert!((ones(&with) - 1.0).abs() < 2e-2);
    assert_ne!(kept(&with).run(DType::F32), kept(&without).run(DType::F32));
}

#[test]
fn attentions_agree_with_finite_differences_with_and_without_dropout() {
    for (shape, dropout) in shapes(7)
        .into_iter()
        .zip([0.0, 0.4, 0.3, 0.0, 0.2, 0.0, 0.3])
    {
        let shape = AttentionShape { dropout, ..shape };
        kept(&shape).agrees_with_differences(1e-2, 2e-3);
        flash(&shape).agrees_with_differences(1e-2, 2e-3);
    }
}

#[test]
fn attentions_do_not_depend_on_threads() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for shape in [&shapes(130)[0], &shapes(130)[6]] {
            let shape = AttentionShape {
                dropout: 0.1,
                ..shape.clone()
            };
            kept(&shape).is_the_same_on_any_threads(dtype);
            flash(&shape).is_the_same_on_any_threads(dtype);
        }
    }
}

#[test]
fn micro_batches_drop_what_the_whole_batch_drops() {
    let whole = AttentionShape {
        dropout: 0.3,
        ..plain(33)
    };
    let half = AttentionShape {
        batch: 1,
        ..whole.clone()
    };
    let run = |shape: &AttentionShape, micro: u64, part: std::ops::Range<usize>| {
        let mut case = flash(shape);
        for (to, from) in case.inputs.iter_mut().zip(flash(&whole).inputs) {
            to.1 = from.1[part.clone()].to_vec();
        }
        case.run_micro(micro).outputs.swap_remove(0)
    };
    let middle = 33 * 16;
    let both = [run(&half, 0, 0..middle), run(&half, 1, middle..2 * middle)].concat();
    assert_eq!(run(&whole, 0, 0..2 * middle), both);
}

#[test]
fn work_counts_only_pairs_that_are_seen() {
    let seen = |shape: &AttentionShape| shape.pairs() / (shape.batch * shape.heads);
    assert_eq!(seen(&plain(7)), 28);
    assert_eq!(
        seen(&AttentionShape {
            causal: false,
            ..plain(7)
        }),
        49
    );
    assert_eq!(
        seen(&AttentionShape {
            window: Some(2),
            ..plain(7)
        }),
        13
    );
    let narrow = AttentionShape {
        window: Some(2),
        causal: false,
        ..plain(7)
    };
    assert_eq!(seen(&narrow), 19);
}

#[test]
fn flash_scratch_grows_with_threads_and_not_with_the_square_of_the_sequence() {
    let scratch = |seq: u64, threads: u32| {
        let shape = plain(seq);
        let inputs = vec![Type::new(&[2 * seq, 16], DType::F32); 3];
        FlashAttention { shape }
            .scratch(&inputs, Backend::Cpu { threads })
            .0
    };
    assert_eq!(scratch(4096, 1), scratch(256, 1));
    assert_eq!(scratch(256, 6), 6 * scratch(256, 1));
}

#[test]
fn attention_refuses_heads_that_do_not_divide() {
    let shape = AttentionShape {
        heads: 3,
        ..plain(7)
    };
    let inputs = [24, 16, 16].map(|c| Type::new(&[14, c], DType::F32));
    assert!(Attention { shape }.outputs(&inputs).is_err());
}
