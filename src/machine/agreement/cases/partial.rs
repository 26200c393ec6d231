//! Combinations in which a backward pass is of some parameters only.

use super::Table;

/// Selections by the paper's rule, and backward passes beside an estimate.
pub(super) const PARTIAL: Table = Table {
    prefix: "p",
    factors: &[
        &["llama", "gpt2", "gemma2", "bert"],
        &["f32", "bf16", "fp16"],
        &[
            "blockllm:rule=paper,sparsity=0.8,adapt=no",
            "blockllm:rule=paper,sparsity=0.6,adapt=no,mask=no",
            "zo_sgd:hybrid=1",
            "zo_momentum:hybrid=1,sides=1,in_place=yes",
            "zo_adam:hybrid=2,q=2,first_rate=0.5",
        ],
        &["", "flash_attention"],
        &["", "chunked_loss:rows=16"],
        &["", "recompute", "offload:what=activations"],
        &["", "offload:what=parameters"],
    ],
    excluded: &[
        ("bert", "chunked_loss"),
        ("fp16", "zo_"),
        ("recompute$", "offload:what=activations"),
    ],
};
