//! The optimizers of published records.

use super::Word;
use crate::spec::torch::{OptimizerImpl, TorchOptimizer};

/// An optimizer, and where and how wide its state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::machine::compare) struct Update {
    pub(in crate::machine::compare) optimizer: TorchOptimizer,
    pub(in crate::machine::compare) kind: OptimizerImpl,
    pub(in crate::machine::compare) in_backward: bool,
    /// Bytes of a trained parameter beside its weight, its gradient and the state that the optimizer has in the
    /// weight's type: fp32 weights, or wider states.
    pub(in crate::machine::compare) beside: u64,
    /// More bytes of a trained parameter while the update runs.
    pub(in crate::machine::compare) in_update: u64,
    /// The state is on the host.
    pub(in crate::machine::compare) elsewhere: bool,
    /// And the host updates: gradients go there, weights come back.
    pub(in crate::machine::compare) on_host: bool,
}

const fn update(optimizer: TorchOptimizer, kind: OptimizerImpl) -> Update {
    Update {
        optimizer,
        kind,
        in_backward: false,
        beside: 0,
        in_update: 0,
        elsewhere: false,
        on_host: false,
    }
}

const fn in_backward(of: Update) -> Update {
    Update {
        in_backward: true,
        ..of
    }
}

const fn elsewhere(of: Update) -> Update {
    Update {
        elsewhere: true,
        ..of
    }
}

/// fp32 weights and both moments in fp32, where weights and moments would be of 16 bits: 4 + 2 + 2.
const fn masters(of: Update) -> Update {
    Update { beside: 8, ..of }
}

const FOREACH: Update = update(TorchOptimizer::Adamw, OptimizerImpl::Foreach);
const FUSED: Update = update(TorchOptimizer::Adamw, OptimizerImpl::Fused);
const EIGHT_BIT: Update = update(TorchOptimizer::Adamw8bit, OptimizerImpl::Bnb);
/// ZeRO's update flattens the gradients into a copy, which it turns to fp32 (`flatten_dense_tensors_aligned(…).to(…)`, stage_1_and_2.py): 2 + 4.
const DEEPSPEED: Update = Update {
    in_update: 6,
    ..masters(FUSED)
};
const SGD: Update = update(TorchOptimizer::Sgd, OptimizerImpl::Foreach);
/// Mixed precision updates an fp32 copy of the weights: LOMO's table lists 4 bytes of a parameter as SGD's state.
const SGD_MASTERS: Update = Update { beside: 4, ..SGD };
const IN_PLACE: Update = in_backward(update(TorchOptimizer::Sgd, OptimizerImpl::Forloop));
const HOST: &str = "state and update on the host: none on the device";
const SUBSPACE: &str = "a projected gradient: predicted as AdamW with its state on the host";

pub(in crate::machine::compare) const OPTIMIZERS: &[Word<Update>] = &[
    ("AdamW", FOREACH, "torch.optim, foreach"),
    ("Adam", FOREACH, "torch.optim, foreach"),
    ("torch AdamW", FOREACH, "foreach"),
    ("AdamW (fp32 states)", FOREACH, "torch.optim, foreach"),
    ("AdamW bf16", FOREACH, "torch.optim, foreach"),
    ("AdamW fused", FUSED, ""),
    ("AdamW fused bf16", FUSED, ""),
    ("AdamW fused (CPU when offloaded)", FUSED, ""),
    (
        "fused AdamW fp32 states, fp32 sharded params, bf16 compute",
        FUSED,
        "",
    ),
    (
        "AdamW bf16, fused into backward",
        in_backward(FOREACH),
        "torch.optim, foreach",
    ),
    ("DecoupledLionW or AdamW (yaml)", FOREACH, "AdamW"),
    (
        "AdamW mixed",
        masters(FOREACH),
        "fp32 weights beside the fp16 ones, in the optimizer",
    ),
    (
        "AdamW via DeepSpeed ZeRO-2/3, fp32 masters",
        DEEPSPEED,
        "fp32 weights and moments; gradients flattened and turned to fp32 for the update; buckets are not predicted",
    ),
    (
        "AdamW (HF AdamW, fp32 states)",
        update(TorchOptimizer::Adamw, OptimizerImpl::Forloop),
        "one parameter after the other",
    ),
    (
        "Adafactor",
        update(TorchOptimizer::Adafactor, OptimizerImpl::Forloop),
        "",
    ),
    (
        "SGD",
        SGD_MASTERS,
        "no momentum; fp32 weights beside the fp16 ones",
    ),
    ("LOMO", IN_PLACE, "SGD in the backward pass"),
    (
        "MeZO SGD in place",
        IN_PLACE,
        "no backward pass: predicted as SGD in it, every layer recomputed",
    ),
    ("bnb Adam 8-bit", EIGHT_BIT, ""),
    ("bnb AdamW 8-bit", EIGHT_BIT, ""),
    (
        "torchao AdamW 8-bit",
        EIGHT_BIT,
        "bitsandbytes' state instead of torchao's",
    ),
    (
        "torchao AdamW 4-bit",
        EIGHT_BIT,
        "8-bit states instead of 4-bit ones",
    ),
    (
        "AdamW 8-bit, fused into backward",
        in_backward(EIGHT_BIT),
        "",
    ),
    (
        "bnb PagedAdamW",
        elsewhere(update(TorchOptimizer::AdamwBnb32bit, OptimizerImpl::Bnb)),
        "paged state is not counted",
    ),
    (
        "bnb PagedAdamW8bit, fused into backward",
        elsewhere(in_backward(EIGHT_BIT)),
        "paged state is not counted",
    ),
    (
        "CPU Adam fp32 states",
        Update {
            on_host: true,
            ..elsewhere(in_backward(FOREACH))
        },
        HOST,
    ),
    (
        "LSP subspace Adam d=2048 r=8",
        elsewhere(in_backward(FOREACH)),
        SUBSPACE,
    ),
    (
        "LSP subspace Adam d=512 r=8..32",
        elsewhere(in_backward(FOREACH)),
        SUBSPACE,
    ),
    (
        "LSP subspace Adam d=1280 r=4",
        elsewhere(in_backward(FOREACH)),
        SUBSPACE,
    ),
];
