//! LSP-Offload beside what it composes with.

use super::cases::Table;

/// Projected gradients, moments on the host, and a program of its own that renews projectors.
pub(super) const TABLE: Table = Table {
    prefix: "l",
    factors: &[
        &["llama", "gpt2", "mixtral", "bert", "gemma2"],
        &["f32", "bf16", "fp16"],
        &[
            "lsp_offload:check=2,fit=5",
            "lsp_offload:check=2,fit=5,d=12,nonzeros=2,delay=1",
            "lsp_offload:check=2,fit=5,d=4000,rest=device",
            "lsp_offload:schedule=after,check=2,fit=5",
        ],
        &["", "clip:norm=0.5"],
        &["", "accumulate:micro=1", "accumulate:micro=2"],
        &["", "flash_attention"],
        &["", "chunked_loss:rows=16"],
        &["", "recompute", "recompute:what=cheap"],
        &[
            "",
            "offload:what=activations",
            "offload:what=activations,to=disk",
        ],
        &["", "offload:what=parameters"],
        &["", "200e6"],
    ],
    excluded: &[
        ("bert", "chunked_loss"),
        ("clip", "lsp_offload:check"),
        ("fp16", "lsp_offload:check"),
        ("recompute$", "offload:what=activations"),
    ],
};
