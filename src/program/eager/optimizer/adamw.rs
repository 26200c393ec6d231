//! `torch.optim.AdamW`: two moments in the parameter's type.

use super::{
    Optimizer, States, by_dtype, foreach, like, one_by_one, over_lists, size, state_like,
    step_count,
};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::torch::Torch;
use crate::spec::torch::OptimizerImpl;

/// `AdamW` without AMSGrad.
pub struct AdamW {
    how: OptimizerImpl,
    states: States,
}

impl AdamW {
    /// Its state comes with the first step.
    pub fn new(how: OptimizerImpl) -> AdamW {
        let states = States::default();
        AdamW { how, states }
    }
}

impl Optimizer for AdamW {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        for param in params {
            self.states.lazily(param, || {
                let moments = [(); 2].map(|()| state_like(torch, param));
                step_count(torch, self.how)
                    .into_iter()
                    .chain(moments)
                    .collect()
            });
        }
        match self.how {
            OptimizerImpl::Foreach => {
                // A group's `exp_avg_sq_sqrt` lives until the next group's is made.
                let mut _roots = Vec::new();
                for group in by_dtype(params) {
                    _roots = foreach(torch, "_foreach_sqrt", &group);
                    // Decay, lerp, mul, addcmul; of the root what it reads; div, add, addcdiv.
                    over_lists(torch, &group, &[2, 3, 2, 3, 1, 2, 2, 4]);
                }
            }
            OptimizerImpl::Forloop => {
                // `denom` lives until the next parameter's is made.
                let mut _denominator = None;
                for param in params {
                    one_by_one(torch, param, &[2, 3, 2, 3]);
                    let root = like(torch, "sqrt", param);
                    torch.moves(size(param));
                    _denominator = Some(torch.plain_from("div", root));
                    one_by_one(torch, param, &[2, 4]);
                }
            }
            // Weight, gradient and moments are read, all but the gradient written.
            OptimizerImpl::Fused | OptimizerImpl::Bnb => {
                for group in by_dtype(params) {
                    over_lists(torch, &group, &[7]);
                }
            }
        }
    }
}
