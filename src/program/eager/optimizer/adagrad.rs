//! `torch.optim.Adagrad`: a sum of squares in the parameter's type, made with the optimizer.

use super::{
    Optimizer, States, by_dtype, foreach, like, one_by_one, over_lists, size, state_like,
    step_count,
};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::torch::Torch;
use crate::spec::torch::OptimizerImpl;

/// `Adagrad` without weight decay.
pub struct Adagrad {
    how: OptimizerImpl,
    _states: States,
}

impl Adagrad {
    /// State of all parameters, those without gradients too.
    pub fn new(torch: &Torch, params: &[&Leaf], how: OptimizerImpl) -> Adagrad {
        let states = States::default();
        for param in params {
            states.lazily(param, || {
                step_count(torch, how)
                    .into_iter()
                    .chain([state_like(torch, param)])
                    .collect()
            });
        }
        Adagrad {
            how,
            _states: states,
        }
    }
}

impl Optimizer for Adagrad {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        match self.how {
            OptimizerImpl::Foreach => {
                // `std` and `numerator` live until the next group's are made.
                let (mut _roots, mut _numerators) = (Vec::new(), Vec::new());
                for group in by_dtype(params) {
                    _roots = foreach(torch, "_foreach_sqrt", &group);
                    _numerators = foreach(torch, "_foreach_mul", &group);
                    // Addcmul, add, addcdiv; of root and numerator what they read.
                    over_lists(torch, &group, &[3, 1, 2, 1, 4]);
                }
            }
            OptimizerImpl::Forloop => {
                let mut _root = None;
                for param in params {
                    one_by_one(torch, param, &[3]);
                    _root = Some(like(torch, "sqrt", param));
                    torch.moves(size(param));
                    one_by_one(torch, param, &[2, 4]);
                }
            }
            OptimizerImpl::Fused | OptimizerImpl::Bnb => {
                for group in by_dtype(params) {
                    over_lists(torch, &group, &[5]);
                }
            }
        }
    }
}
