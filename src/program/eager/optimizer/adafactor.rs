//! The `Adafactor` (Shazeer and Stern 2018) of transformers, as its Trainer sets it: no relative step, no scaling by the parameter.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Optimizer, States, scalar, size, state};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::tape::Class;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::Torch;

/// `transformers.optimization.Adafactor`: factored second moments in f32, without a first.
#[derive(Default)]
pub struct Adafactor {
    states: States,
    /// `state["RMS"]`: a scalar on the device, made anew in each step.
    rms: RefCell<BTreeMap<u64, Tensor>>,
}

/// The locals of the loop: each lives until it is bound again.
#[derive(Default)]
struct Locals {
    /// The gradient in f32, where it is another tensor.
    gradient: Option<Tensor>,
    /// The parameter in f32, where it is another tensor.
    parameter: Option<Tensor>,
    update: Option<Tensor>,
}

/// Sizes without the last, and without the one before it.
fn factors(param: &Leaf) -> Option<[Vec<u64>; 2]> {
    let sizes = param.shape.all();
    let [outer @ .., rows, columns] = sizes else {
        return None;
    };
    let with = |size: u64| outer.iter().copied().chain([size]).collect();
    Some([with(*rows), with(*columns)])
}

impl Optimizer for Adafactor {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        let mut locals = Locals::default();
        for param in params {
            self.one(torch, param, &mut locals);
        }
    }
}

impl Adafactor {
    fn one(&self, torch: &Torch, param: &Leaf, locals: &mut Locals) {
        let wide = |name| torch.plain(name, param.shape.all(), DType::F32);
        // `grad = p.grad` lets go of the last copy before the next is made; so does `p_data_fp32 = p`.
        let widened = || (param.dtype != DType::F32).then(|| wide("_to_copy"));
        locals.gradient = None;
        locals.gradient = widened();
        self.states.lazily(param, || first(torch, param));
        locals.parameter = None;
        locals.parameter = widened();
        self.measure(torch, param);
        locals.update = Some({
            let square = wide("pow");
            torch.plain_from("add", square)
        });
        locals.update = Some(match factors(param) {
            Some([rows, columns]) => {
                // Each mean dies when it has been added to its state.
                torch.plain("mean", &rows, DType::F32);
                torch.plain("mean", &columns, DType::F32);
                estimate(torch, param, &rows, &columns)
            }
            None => wide("rsqrt"),
        });
        {
            let clipped = scalar(torch, "linalg_vector_norm", DType::F32);
            let rms = torch.plain_from("div", clipped);
            torch.plain_from("div", rms);
        }
        // `-update` dies when it has been added to the parameter.
        wide("neg");
        in_place(torch, param);
    }

    /// The parameter's root mean square; the last step's dies when this one is there.
    fn measure(&self, torch: &Torch, param: &Leaf) {
        let norm = scalar(torch, "linalg_vector_norm", DType::F32);
        let rms = torch.plain_from("div", norm);
        if let Some(storage) = &rms.storage {
            storage.is(Class::OptimizerState);
        }
        self.rms.borrow_mut().insert(param.id, rms);
    }
}

/// What is read by the operations that allocate (a norm, the square, two means, a norm, the negation), and what `mul_` by the gradient, `div_`,
/// `mul_` and `add_` read and write, all in f32; of 16-bit parameters the copies to and from f32 too.
fn in_place(torch: &Torch, param: &Leaf) {
    let wide = param.shape.elements() * DType::F32.bytes();
    torch.moves(6 * wide);
    for tensors in [3, 2, 2, 3] {
        torch.in_place(tensors * wide);
    }
    if param.dtype != DType::F32 {
        torch.moves(2 * size(param));
        torch.in_place(wide + size(param));
    }
}

/// Means of squares over columns and rows of a matrix, all of a vector's.
fn first(torch: &Torch, param: &Leaf) -> Vec<Tensor> {
    match factors(param) {
        Some(shapes) => shapes
            .iter()
            .map(|shape| state(torch, shape, DType::F32))
            .collect(),
        None => vec![state(torch, param.shape.all(), DType::F32)],
    }
}

/// The inverse root of the second moment as a product of its factors (`_approx_sq_grad`).
fn estimate(torch: &Torch, param: &Leaf, rows: &[u64], columns: &[u64]) -> Tensor {
    let _rows = {
        let mut one = rows.to_vec();
        if let Some(last) = one.last_mut() {
            *last = 1;
        }
        let _mean = torch.plain("mean", &one, DType::F32);
        torch.plain("div", rows, DType::F32)
    };
    let _columns = torch.plain("rsqrt", columns, DType::F32);
    torch.plain("mul", param.shape.all(), DType::F32)
}
