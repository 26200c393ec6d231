//! `torch.optim.SGD`: everything happens in place, in each of its implementations.

use super::{Optimizer, States, state_like};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::torch::Torch;

/// `SGD` without weight decay and without Nesterov's momentum.
pub struct Sgd {
    momentum: bool,
    states: States,
}

impl Sgd {
    /// With `momentum` there is a buffer in the parameter's type, a copy of the first gradient.
    pub fn new(momentum: bool) -> Sgd {
        let states = States::default();
        Sgd { momentum, states }
    }
}

impl Optimizer for Sgd {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        if self.momentum {
            for param in params {
                self.states.lazily(param, || vec![state_like(torch, param)]);
            }
        }
    }
}
