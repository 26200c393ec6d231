//! LayerNorm and RMSNorm against candle, differences and themselves.

use candle_core::{D, Tensor};
use memfit::graph::op::norm::{LayerNorm, RmsNorm};
use memfit::graph::tensor::DType;

use crate::derivatives::{Case, case};

fn layer_norm(rows: u64, columns: u64) -> Case {
    case(
        LayerNorm { eps: 1e-5 },
        &[&[rows, columns], &[columns], &[columns]],
    )
}

fn rms_norm(rows: u64, columns: u64, width: u64, unit_offset: bool) -> Case {
    let op = RmsNorm {
        eps: 1e-6,
        unit_offset,
        width,
    };
    case(op, &[&[rows, columns], &[width]])
}

fn layer_norm_by_candle(inputs: &[Tensor]) -> candle_core::Result<Tensor> {
    let [x, w, b] = inputs else {
        panic!("three inputs")
    };
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
    x.broadcast_div(&deviation)?
        .broadcast_mul(w)?
        .broadcast_add(b)
}

fn rms_norm_by_candle(inputs: &[Tensor], unit_offset: bool) -> candle_core::Result<Tensor> {
    let [x, w] = inputs else { panic!("two inputs") };
    let (rows, columns) = x.dims2()?;
    let width = w.dims1()?;
    let x = x.reshape((rows * columns / width, width))?;
    let size = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
    let w = (w + f64::from(u8::from(unit_offset)))?;
    x.broadcast_div(&size)?
        .broadcast_mul(&w)?
        .reshape((rows, columns))
}

#[test]
fn layer_norm_agrees_with_candle() {
    for (rows, columns) in [(1, 5), (7, 33), (130, 64), (129, 100)] {
        layer_norm(rows, columns).agrees_with_candle(layer_norm_by_candle);
    }
}

#[test]
fn rms_norm_agrees_with_candle_per_row_and_per_head() {
    for (rows, columns, width) in [(1, 5, 5), (7, 33, 33), (130, 64, 16), (129, 100, 100)] {
        for offset in [false, true] {
            let case = rms_norm(rows, columns, width, offset);
            case.agrees_with_candle(|inputs| rms_norm_by_candle(inputs, offset));
        }
    }
}

#[test]
fn norms_agree_with_finite_differences() {
    layer_norm(3, 13).agrees_with_differences(1e-2, 2e-3);
    rms_norm(3, 12, 6, true).agrees_with_differences(1e-2, 2e-3);
}

#[test]
fn norms_do_not_depend_on_threads() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        layer_norm(333, 130).is_the_same_on_any_threads(dtype);
        rms_norm(333, 120, 40, false).is_the_same_on_any_threads(dtype);
    }
}

#[test]
fn norm_gradients_of_parameters_may_be_wider_than_the_parameters() {
    let wide = layer_norm(7, 33).run_with(DType::Bf16, Some(DType::F32));
    let own = layer_norm(7, 33).run(DType::Bf16);
    let rounded = |x: &f32| half::bf16::from_f32(*x).to_f32();
    let narrowed: Vec<f32> = wide.gradients[1].iter().map(rounded).collect();
    assert_ne!(wide.gradients[1], own.gradients[1]);
    assert_eq!(narrowed, own.gradients[1]);
}
