//! Combinations with a frozen model.

use super::{FAMILIES, Table};

/// Adapters, the weights they leave frozen, and what full training combines with.
pub(super) const ADAPTED: Table = Table {
    prefix: "a",
    factors: &[
        &FAMILIES,
        &["f32", "bf16", "fp16"],
        &[
            "lora:rank=4",
            "lora:rank=4,targets=all-linear,dropout=0.1,alpha=16",
            "lora:rank=2,site=layers.1-2",
            "adapter:width=8",
            "adapter:width=8,after=mlp,activation=relu,residual=no",
            "prefix_tuning:tokens=5",
            "prompt_tuning:tokens=5,spread=0.1",
        ],
        &[
            "",
            "nf4_weights",
            "nf4_weights:double=no",
            "int8_weights",
            "int8_weights:block=48",
            "nf4_weights:site=layers.1",
        ],
        &["adamw", "sgd", "zo_sgd", "forward_gradient"],
        &["", "clip:norm=0.5"],
        &["", "accumulate:micro=2"],
        &["", "flash_attention"],
        &["", "chunked_loss:rows=16"],
        &["", "fused_update"],
        &["", "recompute", "recompute:what=cheap"],
        &["", "offload:what=parameters", "offload:what=optimizer"],
        &["", "offload:what=activations", "compress_activations"],
    ],
    excluded: &[
        ("bert", "chunked_loss"),
        ("clip", "fused_update"),
        ("fp16", "fused_update"),
        ("zo_sgd", "clip"),
        ("zo_sgd", "accumulate"),
        ("zo_sgd", "fused_update"),
        ("zo_sgd", "recompute"),
        ("zo_sgd", "offload:what=optimizer"),
        ("zo_sgd", "offload:what=activations"),
        ("zo_sgd", "compress_activations"),
        ("forward_gradient", "clip"),
        ("forward_gradient", "accumulate"),
        ("forward_gradient", "fused_update"),
        ("forward_gradient", "recompute"),
        ("forward_gradient", "offload:what=optimizer"),
        ("forward_gradient", "offload:what=activations"),
        ("forward_gradient", "compress_activations"),
        ("recompute$", "offload:what=activations"),
        ("recompute$", "compress_activations"),
    ],
};
