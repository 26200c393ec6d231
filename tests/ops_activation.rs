//! Activations and gates against candle, differences and themselves.

use std::sync::Arc;

use candle_core::Tensor;
use memfit::graph::op::activation::{Act, Gated};
use memfit::graph::op::elementwise::Sum;
use memfit::graph::tensor::DType;
use memfit::spec::model::Activation::{self, Gelu, GeluTanh, Relu, Silu};

use crate::derivatives::{Case, case};

const KINDS: [Activation; 4] = [Relu, Gelu, GeluTanh, Silu];

fn by_candle(kind: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match kind {
        Relu => x.relu(),
        Gelu => x.gelu_erf(),
        GeluTanh => x.gelu(),
        Silu => x.silu(),
    }
}

fn act(kind: Activation, len: u64) -> Case {
    let mut case = case(Act { kind }, &[&[len]]);
    for x in &mut case.inputs[0].1 {
        *x *= 2.0;
    }
    case
}

#[test]
fn activations_agree_with_candle() {
    for kind in KINDS {
        for len in [1, 33, 40_001] {
            act(kind, len).agrees_with_candle(|inputs| by_candle(kind, &inputs[0]));
        }
    }
}

#[test]
fn gates_agree_with_candle() {
    for kind in KINDS {
        let case = case(Gated { kind }, &[&[130, 133], &[130, 133]]);
        case.agrees_with_candle(|inputs| by_candle(kind, &inputs[0])? * &inputs[1]);
    }
}

#[test]
fn activations_agree_with_finite_differences() {
    for kind in [Gelu, GeluTanh, Silu] {
        act(kind, 31).agrees_with_differences(1e-2, 2e-3);
        case(Gated { kind }, &[&[5, 7], &[5, 7]]).agrees_with_differences(1e-2, 2e-3);
    }
}

#[test]
fn activations_do_not_depend_on_threads() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        act(GeluTanh, 50_001).is_the_same_on_any_threads(dtype);
        case(Gated { kind: Silu }, &[&[50_001], &[50_001]]).is_the_same_on_any_threads(dtype);
    }
}

#[test]
fn a_gradient_somebody_else_holds_is_not_overwritten() {
    // a + b passes one gradient to both; neither activation may write over it.
    for kind in KINDS {
        let make = |first: bool| {
            let inputs = case(Act { kind }, &[&[33], &[33], &[33]]).inputs;
            let op: Arc<dyn memfit::graph::op::Op> = match first {
                true => Arc::new(Act { kind }),
                false => Arc::new(Gated { kind }),
            };
            Case { op, inputs }
        };
        for first in [true, false] {
            let own = make(first);
            let count = if first { 1 } else { 2 };
            let own = Case {
                inputs: own.inputs[..count].to_vec(),
                ..own
            };
            let shared = own.run_after(Arc::new(Sum), DType::F32);
            assert_eq!(shared, own.run(DType::F32).gradients);
        }
    }
}
