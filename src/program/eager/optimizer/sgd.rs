//! `torch.optim.SGD`: everything happens in place, in each of its implementations.

use super::{Optimizer, States, by_dtype, one_by_one, over_lists, state_like};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::torch::Torch;
use crate::spec::torch::OptimizerImpl;

/// `SGD` without weight decay and without Nesterov's momentum.
pub struct Sgd {
    momentum: bool,
    how: OptimizerImpl,
    states: States,
}

impl Sgd {
    /// With `momentum` there is a buffer in the parameter's type, a copy of the first gradient.
    pub fn new(momentum: bool, how: OptimizerImpl) -> Sgd {
        let states = States::default();
        Sgd {
            momentum,
            how,
            states,
        }
    }
}

impl Optimizer for Sgd {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        if self.momentum {
            for param in params {
                self.states.lazily(param, || vec![state_like(torch, param)]);
            }
        }
        // With momentum: mul and add of the buffer, then of the weight; fused, each is read and written once.
        let operations: &[u64] = match (self.momentum, self.how) {
            (false, _) => &[3],
            (true, OptimizerImpl::Fused) => &[5],
            (true, _) => &[2, 3, 3],
        };
        match self.how {
            OptimizerImpl::Forloop => params
                .iter()
                .for_each(|param| one_by_one(torch, param, operations)),
            _ => by_dtype(params)
                .iter()
                .for_each(|group| over_lists(torch, group, operations)),
        }
    }
}
