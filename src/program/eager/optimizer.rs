//! Optimizers as `torch.optim` writes them, tensor lists included: their state, and what one step allocates.

use super::tape::Class;
use super::tensor::{DType, Tensor};
use super::torch::Torch;
use crate::spec::torch::{OptimizerImpl, TorchOptimizer, TorchOptions};

/// An optimizer with its state.
pub trait Optimizer {
    /// One step on the parameters it was made for; gradients are still alive.
    fn step(&self, torch: &Torch);
}

/// The optimizer of a job for `params`, its state as after a first step.
pub fn build(torch: &Torch, params: Vec<Tensor>, options: &TorchOptions) -> Box<dyn Optimizer> {
    let how = options.optimizer_impl;
    match options.optimizer {
        TorchOptimizer::Adamw => Box::new(AdamW::new(torch, params, how)),
        _ => Box::new(AdamW::new(torch, params, how)),
    }
}

/// State of an optimizer, like a parameter.
pub(super) fn state(torch: &Torch, like: &Tensor, dtype: DType) -> Tensor {
    torch.buffer(like.shape.all(), dtype, Class::OptimizerState)
}

/// `torch.optim.AdamW`.
struct AdamW {
    params: Vec<Tensor>,
    how: OptimizerImpl,
    /// First and second moments, and fused the step counts on the device.
    _state: Vec<Tensor>,
}

impl AdamW {
    fn new(torch: &Torch, params: Vec<Tensor>, how: OptimizerImpl) -> AdamW {
        let mut made = Vec::new();
        for param in &params {
            made.extend([(); 2].map(|()| state(torch, param, param.dtype)));
            if how == OptimizerImpl::Fused {
                made.push(torch.buffer(&[], DType::F32, Class::OptimizerState));
            }
        }
        AdamW { params, how, _state: made }
    }
}

impl Optimizer for AdamW {
    fn step(&self, torch: &Torch) {
        let new = |name, param: &Tensor| torch.plain(name, param.shape.all(), param.dtype);
        match self.how {
            OptimizerImpl::Foreach => {
                let _roots: Vec<Tensor> = self.params.iter().map(|p| new("_foreach_sqrt", p)).collect();
            }
            OptimizerImpl::Forloop => {
                // Python's `denom` lives until the next parameter's is made.
                let mut _denominator = None;
                for param in &self.params {
                    let root = new("sqrt", param);
                    _denominator = Some(torch.plain_from("div", root));
                }
            }
            OptimizerImpl::Fused | OptimizerImpl::Bnb => {}
        }
    }
}
