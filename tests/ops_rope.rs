//! Rotary embedding against candle, differences and itself.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use memfit::graph::op::elementwise::Sum;
use memfit::graph::op::rope::Rope;
use memfit::graph::tensor::DType;
use memfit::spec::model::{Rotary, RotaryScaling};

use crate::bench::distance;
use crate::derivatives::{Case, case};

const LLAMA3: RotaryScaling = RotaryScaling::Llama3 {
    factor: 8.0,
    low: 1.0,
    high: 4.0,
    original: 64.0,
};

pub fn rope(
    batch: u64,
    seq: u64,
    heads: u64,
    head_dim: u64,
    dims: u64,
    scaling: RotaryScaling,
) -> Rope {
    let rotary = Rotary {
        theta: 1e4,
        dims,
        scaling,
    };
    let (inverse, in_place) = (false, true);
    Rope {
        batch,
        seq,
        first: 0,
        heads,
        head_dim,
        rotary,
        inverse,
        in_place,
    }
}

fn filled(op: &Rope) -> Case {
    case(op.clone(), &[&[op.batch * op.seq, op.heads * op.head_dim]])
}

/// Hugging Face's inverse frequencies, as its source computes them.
fn frequencies(rotary: &Rotary) -> Vec<f64> {
    let plain =
        (0..rotary.dims / 2).map(|i| 1.0 / 1e4f64.powf(2.0 * i as f64 / rotary.dims as f64));
    let scaled = |f: f64| match rotary.scaling {
        RotaryScaling::None => f,
        RotaryScaling::Linear { factor } => f / factor,
        RotaryScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => {
            let wavelength = 2.0 * std::f64::consts::PI / f;
            if wavelength > original / low {
                f / factor
            } else if wavelength < original / high {
                f
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    };
    plain.map(scaled).collect()
}

/// x cos + rotate_half(x) sin, as Hugging Face writes it.
fn by_candle(op: &Rope, x: &Tensor) -> candle_core::Result<Tensor> {
    let [b, t, h, d] = [op.batch, op.seq, op.heads, op.head_dim].map(|n| n as usize);
    let (dims, half) = (op.rotary.dims as usize, op.rotary.dims as usize / 2);
    let all = frequencies(&op.rotary);
    let angle = |i: usize| (i / dims) as f64 * all[i % dims % half];
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..t * dims).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_vec(values, (1, t, 1, dims), &Device::Cpu)
    };
    let x = x.reshape((b, t, h, d))?;
    let (turned, rest) = (
        x.narrow(D::Minus1, 0, dims)?,
        x.narrow(D::Minus1, dims, d - dims)?,
    );
    let (first, second) = (
        turned.narrow(D::Minus1, 0, half)?,
        turned.narrow(D::Minus1, half, half)?,
    );
    let rotated = Tensor::cat(&[&second.neg()?, &first], D::Minus1)?;
    let cos = turned.broadcast_mul(&table(f64::cos)?)?;
    let turned = (cos + rotated.broadcast_mul(&table(f64::sin)?)?)?;
    let whole = if d > dims {
        Tensor::cat(&[&turned, &rest], D::Minus1)?
    } else {
        turned
    };
    whole.reshape((b * t, h * d))
}

#[test]
fn rope_agrees_with_candle_under_each_scaling() {
    let linear = RotaryScaling::Linear { factor: 4.0 };
    for scaling in [RotaryScaling::None, linear, LLAMA3] {
        for op in [
            rope(1, 7, 1, 2, 2, scaling.clone()),
            rope(2, 33, 3, 16, 16, scaling.clone()),
            rope(1, 130, 2, 10, 6, scaling.clone()),
        ] {
            filled(&op).agrees_with_candle(|inputs| by_candle(&op, &inputs[0]));
        }
    }
}

#[test]
fn rope_agrees_with_finite_differences() {
    filled(&rope(1, 5, 1, 8, 4, LLAMA3)).agrees_with_differences(1e-2, 2e-3);
}

#[test]
fn rotating_back_restores_the_input() {
    let op = rope(2, 130, 2, 16, 16, RotaryScaling::None);
    let forth = filled(&op);
    let mut back = filled(&Rope {
        inverse: true,
        in_place: false,
        ..op
    });
    back.inputs[0].1 = forth.run(DType::F32).outputs.remove(0);
    assert!(distance(&back.run(DType::F32).outputs[0], &forth.inputs[0].1) < 1e-6);
}

#[test]
fn rope_does_not_depend_on_threads_nor_on_who_holds_the_gradient() {
    let case = filled(&rope(2, 333, 3, 32, 32, LLAMA3));
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        case.is_the_same_on_any_threads(dtype);
        let shared = case.run_after(Arc::new(Sum), dtype);
        assert_eq!(shared, case.run(dtype).gradients);
    }
}
