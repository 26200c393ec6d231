//! `torch.optim.RMSprop`: a mean square in the parameter's type.

use super::{Optimizer, States, by_dtype, foreach, like, one_by_one, over_lists, size, state_like};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::torch::Torch;
use crate::spec::torch::OptimizerImpl;

/// `RMSprop` without momentum, not centered.
pub struct RmsProp {
    how: OptimizerImpl,
    states: States,
}

impl RmsProp {
    /// There are no fused kernels: what is not over lists is a loop.
    pub fn new(how: OptimizerImpl) -> RmsProp {
        let states = States::default();
        RmsProp { how, states }
    }
}

impl Optimizer for RmsProp {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        for param in params {
            self.states.lazily(param, || vec![state_like(torch, param)]);
        }
        // `avg` lives until the next is made.
        if self.how == OptimizerImpl::Foreach {
            let mut _averages = Vec::new();
            for group in by_dtype(params) {
                _averages = foreach(torch, "_foreach_sqrt", &group);
                // Mul, addcmul; of the root what it reads; add, addcdiv.
                over_lists(torch, &group, &[2, 3, 1, 2, 4]);
            }
        } else {
            let mut _average = None;
            for param in params {
                one_by_one(torch, param, &[2, 3]);
                _average = Some(like(torch, "sqrt", param));
                torch.moves(size(param));
                one_by_one(torch, param, &[2, 4]);
            }
        }
    }
}
