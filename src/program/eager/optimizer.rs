//! Optimizers as their libraries write them, Python locals and tensor lists included: their state, and what one step allocates.
//!
//! What is allocated on the device is written down, and of operations in place what they read and write; step counts on the host are not there.

mod adafactor;
mod adafactor_torch;
mod adagrad;
mod adamw;
mod bitsandbytes;
mod clip;
mod rmsprop;
mod sgd;

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::autograd::Leaf;
use super::tape::Class;
use super::tensor::{DType, Tensor};
use super::torch::Torch;
use crate::spec::torch::{OptimizerImpl, TorchOptimizer, TorchOptions};
pub use clip::clip_grad_norm;

/// An optimizer with its state.
pub trait Optimizer {
    /// One step on parameters that have a gradient, in the order of their group; the gradients stay alive.
    fn step(&self, torch: &Torch, params: &[&Leaf]);
}

/// The optimizer of a job for these parameters; most make their state in their first step.
pub fn build(torch: &Torch, params: &[&Leaf], options: &TorchOptions) -> Box<dyn Optimizer> {
    use bitsandbytes::Bits;
    let how = options.optimizer_impl;
    match options.optimizer {
        TorchOptimizer::Adamw => Box::new(adamw::AdamW::new(how)),
        TorchOptimizer::Sgd => Box::new(sgd::Sgd::new(false, how)),
        TorchOptimizer::SgdMomentum => Box::new(sgd::Sgd::new(true, how)),
        TorchOptimizer::Rmsprop => Box::new(rmsprop::RmsProp::new(how)),
        TorchOptimizer::Adagrad => Box::new(adagrad::Adagrad::new(torch, params, how)),
        TorchOptimizer::Adafactor => Box::new(adafactor::Adafactor::default()),
        TorchOptimizer::AdafactorTorch => Box::new(adafactor_torch::Adafactor::new(how)),
        TorchOptimizer::Adamw8bit => Box::new(bitsandbytes::Blockwise::new(2, Bits::Eight)),
        TorchOptimizer::Lion8bit | TorchOptimizer::SgdMomentum8bit => {
            Box::new(bitsandbytes::Blockwise::new(1, Bits::Eight))
        }
        TorchOptimizer::AdamwBnb32bit => Box::new(bitsandbytes::Blockwise::new(2, Bits::ThirtyTwo)),
    }
}

/// State tensors by parameter, made when a parameter is first stepped (`if len(state) == 0`).
#[derive(Debug, Default)]
struct States(RefCell<BTreeMap<u64, Vec<Tensor>>>);

impl States {
    fn lazily(&self, param: &Leaf, make: impl FnOnce() -> Vec<Tensor>) {
        self.0.borrow_mut().entry(param.id).or_insert_with(make);
    }
}

/// A tensor of optimizer state.
fn state(torch: &Torch, shape: &[u64], dtype: DType) -> Tensor {
    torch.buffer(shape, dtype, Class::OptimizerState)
}

/// State like a parameter, in its own type.
fn state_like(torch: &Torch, param: &Leaf) -> Tensor {
    state(torch, param.shape.all(), param.dtype)
}

/// A step count, on the device with fused kernels only.
fn step_count(torch: &Torch, how: OptimizerImpl) -> Option<Tensor> {
    (how == OptimizerImpl::Fused).then(|| state(torch, &[], DType::F32))
}

/// A temporary like a parameter.
fn like(torch: &Torch, name: &'static str, param: &Leaf) -> Tensor {
    torch.plain(name, param.shape.all(), param.dtype)
}

/// A scalar on the device.
fn scalar(torch: &Torch, name: &'static str, dtype: DType) -> Tensor {
    torch.plain(name, &[], dtype)
}

/// A list of temporaries like these parameters, as a `_foreach_` operation returns it.
fn foreach(torch: &Torch, name: &'static str, params: &[&Leaf]) -> Vec<Tensor> {
    torch.op(name);
    params
        .iter()
        .map(|param| torch.empty(param.shape, param.dtype))
        .collect()
}

/// Elements of a tensor that one block of a multi-tensor kernel takes (`kChunkSize`, MultiTensorApply.cuh).
const CHUNK: u64 = 65536;

/// Bytes of a parameter.
fn size(param: &Leaf) -> u64 {
    param.shape.elements() * param.dtype.bytes()
}

/// Operations over lists like these parameters: each reads and writes so many of them, in blocks.
fn over_lists(torch: &Torch, params: &[&Leaf], operations: &[u64]) {
    let blocks: u64 = params
        .iter()
        .map(|p| p.shape.elements().div_ceil(CHUNK))
        .sum();
    let bytes: u64 = params.iter().map(|p| size(p)).sum();
    torch.blocks(blocks * operations.len() as u64);
    torch.moves(bytes * operations.iter().sum::<u64>());
}

/// Operations in place on a parameter and what is like it, one kernel each.
fn one_by_one(torch: &Torch, param: &Leaf, operations: &[u64]) {
    for tensors in operations {
        torch.in_place(size(param) * tensors);
    }
}

/// Parameters grouped by type as `_group_tensors_by_device_and_dtype` does, in order of appearance.
fn by_dtype<'l>(params: &[&'l Leaf]) -> Vec<Vec<&'l Leaf>> {
    let mut groups: Vec<Vec<&Leaf>> = Vec::new();
    for param in params {
        match groups
            .iter_mut()
            .find(|group| group[0].dtype == param.dtype)
        {
            Some(group) => group.push(param),
            None => groups.push(vec![param]),
        }
    }
    groups
}
