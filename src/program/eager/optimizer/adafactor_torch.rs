//! `torch.optim.Adafactor`: factored second moments in the parameter's type.

use super::{
    Optimizer, States, by_dtype, foreach, like, one_by_one, over_lists, scalar, size, state,
    state_like,
};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::tensor::{Dims, Tensor};
use crate::program::eager::torch::Torch;
use crate::spec::torch::OptimizerImpl;

/// `Adafactor`.
pub struct Adafactor {
    how: OptimizerImpl,
    states: States,
}

/// The locals of the loop: each lives until it is bound again, so those of matrices outlive the vectors that follow.
#[derive(Default)]
struct Locals {
    row_mean: Option<Tensor>,
    column_mean: Option<Tensor>,
    grad_squared: Option<Tensor>,
    var_estimate: Option<Tensor>,
    /// The estimate, once it has become the update.
    update: Option<Tensor>,
}

/// The same over lists, from one group to the next.
#[derive(Default)]
struct Lists {
    var_estimates: Vec<Tensor>,
    updates: Vec<Tensor>,
}

/// A parameter's sizes with one column, and with one row.
fn factors(param: &Leaf) -> Option<[Dims; 2]> {
    let row = param.shape.all().len().checked_sub(2)?;
    Some([param.shape.with_last(1), param.shape.with(row, 1)])
}

/// Sizes of the mean of the row factor over its rows.
fn mean_of_rows(row_factor: Dims) -> Dims {
    let row = row_factor.all().len().saturating_sub(2);
    row_factor.with(row, 1)
}

impl Adafactor {
    /// Its state comes with the first step.
    pub fn new(how: OptimizerImpl) -> Adafactor {
        let states = States::default();
        Adafactor { how, states }
    }
}

impl Optimizer for Adafactor {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        for param in params {
            self.states.lazily(param, || match factors(param) {
                Some(shapes) => shapes
                    .iter()
                    .map(|shape| state(torch, shape.all(), param.dtype))
                    .collect(),
                None => vec![state_like(torch, param)],
            });
        }
        if self.how == OptimizerImpl::Foreach {
            let mut lists = Lists::default();
            for group in by_dtype(params) {
                let (matrices, vectors): (Vec<&Leaf>, Vec<&Leaf>) =
                    group.iter().copied().partition(|p| factors(p).is_some());
                // The kind that appears first is stepped first.
                let mut kinds = [matrices, vectors];
                if factors(group[0]).is_none() {
                    kinds.swap(0, 1);
                }
                kinds
                    .iter()
                    .filter(|kind| !kind.is_empty())
                    .for_each(|kind| list(torch, kind, &mut lists));
            }
        } else {
            let mut locals = Locals::default();
            params
                .iter()
                .for_each(|param| one(torch, param, &mut locals));
        }
    }
}

/// `_single_tensor_adafactor` for one parameter. The norms are read on the host and die at once.
fn one(torch: &Torch, param: &Leaf, locals: &mut Locals) {
    let new = |name, shape: Dims| torch.plain(name, shape.all(), param.dtype);
    scalar(torch, "linalg_vector_norm", param.dtype);
    match factors(param) {
        Some([row, column]) => {
            locals.row_mean = Some(new("linalg_vector_norm", row));
            locals.column_mean = Some(new("linalg_vector_norm", column));
            locals.var_estimate = Some(like(torch, "mm", param));
            new("mean", mean_of_rows(row));
        }
        None => {
            locals.grad_squared = Some(like(torch, "mul", param));
            locals.var_estimate = Some(like(torch, "clone", param));
        }
    }
    locals.update = locals.var_estimate.clone();
    // Two norms and two factors read; clamp, rsqrt and mul by the gradient in place; the weight's add.
    torch.moves(4 * size(param));
    one_by_one(torch, param, &[2, 2, 3, 3]);
    scalar(torch, "linalg_vector_norm", param.dtype);
}

/// `_multi_tensor_adafactor` for the matrices or the vectors of one type.
fn list(torch: &Torch, params: &[&Leaf], lists: &mut Lists) {
    let norms = || {
        params
            .iter()
            .for_each(|p| drop(scalar(torch, "linalg_vector_norm", p.dtype)))
    };
    let each = |name, shape: fn([Dims; 2]) -> Dims| -> Vec<Tensor> {
        let new = |p: &&Leaf| factors(p).map(|f| torch.plain(name, shape(f).all(), p.dtype));
        params.iter().filter_map(new).collect()
    };
    norms();
    if params.iter().any(|param| factors(param).is_some()) {
        drop(each("linalg_vector_norm", |[row, _]| row));
        drop(each("linalg_vector_norm", |[_, column]| column));
        lists.var_estimates = foreach(torch, "mm", params);
        drop(each("mean", |[row, _]| mean_of_rows(row)));
    } else {
        drop(foreach(torch, "_foreach_mul", params));
        lists.var_estimates = foreach(torch, "clone", params);
    }
    lists.updates = lists.var_estimates.clone();
    over_lists(torch, params, &[1, 1, 1, 1, 2, 2, 3, 3]);
    norms();
}
