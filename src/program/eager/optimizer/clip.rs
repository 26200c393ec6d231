//! `torch.nn.utils.clip_grad_norm_(foreach=True)`.

use super::{by_dtype, over_lists, scalar};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::tensor::{DType, Dims, Tensor};
use crate::program::eager::torch::Torch;

/// Clips the gradients of these parameters; what it makes are scalars and their list.
pub fn clip_grad_norm(torch: &Torch, params: &[&Leaf]) {
    let Some(total) = total_norm(torch, params) else {
        return;
    };
    let dtype = total.dtype;
    // `max_norm / (total_norm + 1e-6)` is a reciprocal and a product, both made before the sum dies.
    let _coefficient = {
        let _shifted = scalar(torch, "add", dtype);
        let _inverse = scalar(torch, "reciprocal", dtype);
        scalar(torch, "mul", dtype)
    };
    let _clamped = scalar(torch, "clamp", dtype);
}

/// The norm of the norms; without gradients it is made on the host.
fn total_norm(torch: &Torch, params: &[&Leaf]) -> Option<Tensor> {
    let mut norms = Vec::new();
    for group in by_dtype(params) {
        torch.op("_foreach_norm");
        norms.extend(
            group
                .iter()
                .map(|param| torch.empty(Dims::new(&[]), param.dtype)),
        );
        // The norms read the gradients; `_foreach_mul_` by the coefficient, which is not asked whether it is one, reads and writes them.
        over_lists(torch, &group, &[1, 2]);
    }
    let dtype = norms
        .iter()
        .map(|norm| norm.dtype)
        .reduce(DType::promoted)?;
    let _stacked = torch.plain("stack", &[norms.len() as u64], dtype);
    Some(scalar(torch, "linalg_vector_norm", dtype))
}
